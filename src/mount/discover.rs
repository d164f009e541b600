//! Which databases the sources hold: a source that is a replica itself, or the replicas one level
//! below it. Finds them; remembers nothing.

use crate::error::{Error, Result};
use crate::storage::Store;
use futures_util::stream::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A replica's own folder, by which it is known.
const GENERATIONS: &str = "generations/";

/// Folders asked at once.
const AT_ONCE: usize = 16;

/// Where a replica lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which source.
    pub source: usize,
    /// Which folder of it, if it is not the source itself.
    pub folder: Option<String>,
}

impl Place {
    /// The store that the replica is the root of.
    pub fn store(&self, sources: &[Arc<dyn Store>]) -> Arc<dyn Store> {
        let source = &sources[self.source];
        match &self.folder {
            Some(folder) => source.below(folder),
            None => source.clone(),
        }
    }
}

/// The replicas of all sources by the names of their directories. `is_known` spares a question to
/// the store about a folder that was found to be a replica before.
///
/// # Errors
/// `Unavailable`, and `Invalid` if two replicas have one name or one has none.
pub async fn replicas(
    sources: &[Arc<dyn Store>],
    is_known: &(dyn Fn(&Place) -> bool + Sync),
) -> Result<BTreeMap<String, Place>> {
    let mut by_name: BTreeMap<String, Place> = BTreeMap::new();
    for (source, store) in sources.iter().enumerate() {
        for place in below(source, store, is_known).await? {
            let name = name(&place, store.location())?;
            if let Some(other) = by_name.get(&name) {
                return Err(Error::invalid(format!(
                    "two replicas would both be the directory \"{name}\": {} and {}; \
                     mount them in two places or rename one",
                    other.store(sources).location(),
                    place.store(sources).location(),
                )));
            }
            by_name.insert(name, place);
        }
    }
    Ok(by_name)
}

async fn below(
    source: usize,
    store: &Arc<dyn Store>,
    is_known: &(dyn Fn(&Place) -> bool + Sync),
) -> Result<Vec<Place>> {
    let folders = store.list_folder("").await?;
    if folders.iter().any(|name| name == GENERATIONS) {
        return Ok(vec![Place {
            source,
            folder: None,
        }]);
    }
    let mut places = Vec::new();
    for folder in folders.iter().filter_map(|name| name.strip_suffix('/')) {
        if is_directory_name(folder) {
            let folder = Some(folder.to_owned());
            places.push(Place { source, folder });
        }
    }
    let asked = futures_util::stream::iter(places)
        .map(|place| async move {
            let is_replica = is_known(&place) || is_replica(store, &place).await?;
            Ok::<_, Error>(is_replica.then_some(place))
        })
        .buffered(AT_ONCE);
    let found: Vec<Option<Place>> = asked.try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

async fn is_replica(store: &Arc<dyn Store>, place: &Place) -> Result<bool> {
    let Some(folder) = &place.folder else {
        return Ok(true);
    };
    let inside = store.list_folder(&format!("{folder}/")).await?;
    Ok(inside.iter().any(|name| name == GENERATIONS))
}

/// The last part of the replica's path.
fn name(place: &Place, location: &str) -> Result<String> {
    let name = match &place.folder {
        Some(folder) => folder,
        None => location
            .trim_end_matches('/')
            .rsplit('/')
            .next()
            .unwrap_or(""),
    };
    if is_directory_name(name) {
        return Ok(name.to_owned());
    }
    Err(Error::invalid(format!(
        "the replica {location} has no name for a directory; give its full path"
    )))
}

/// Object stores know folders that no directory can be called.
fn is_directory_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255 && !name.contains(['/', '\0'])
}
