//! Which databases the sources hold: a source that is a replica itself, the replicas one level
//! below it, or one database with several replicas. Finds them; remembers nothing.

use crate::error::{Error, ErrorKind, Result};
use crate::format::key::GENERATIONS;
use crate::storage::Store;
use crate::storage::informed::Informant;
use futures_util::future::join_all;
use futures_util::stream::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Folders asked at once.
const AT_ONCE: usize = 16;

/// How long one of several replicas of a database may take to answer before it is passed over.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is mounted.
#[derive(Clone)]
pub enum Source {
    /// A replica, or the folder of several; each is called as its folder is.
    Folder(Arc<dyn Store>),
    /// One database.
    Database {
        /// What it is called.
        name: String,
        /// Its replicas: the first that answers is shown.
        replicas: Vec<Arc<dyn Store>>,
    },
}

/// Where a replica lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which source.
    pub source: usize,
    /// Where in it.
    pub part: Part,
}

/// A part of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// A folder of it.
    Folder(String),
    /// One of its replicas.
    Replica(usize),
}

impl Place {
    /// The store that the replica is the root of.
    pub fn store(&self, sources: &[Source]) -> Arc<dyn Store> {
        match (&sources[self.source], &self.part) {
            (Source::Folder(store), Part::Folder(folder)) => store.below(folder),
            (Source::Folder(store), _) => store.clone(),
            (Source::Database { replicas, .. }, Part::Replica(n)) => replicas[*n].clone(),
            (Source::Database { replicas, .. }, _) => replicas[0].clone(),
        }
    }
}

/// Who knows which replicas a daemon on this machine may write.
pub trait Informants: Send + Sync + Debug {
    /// Who asks that daemon; `None` if no daemon can be asked.
    fn of(&self, place: &Place) -> Option<Arc<dyn Informant>>;
}

/// What was found.
#[derive(Default)]
pub struct Found {
    /// Replicas by the names of their directories.
    pub by_name: BTreeMap<String, Place>,
    /// Why replicas of databases were passed over.
    pub passed_over: Vec<Error>,
}

/// What is known of a replica from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// It was not found yet.
    New,
    /// It was found, and nothing speaks against reading it.
    Found,
    /// It was found, but could not be read when last asked.
    Failing,
}

/// The replicas of all sources. `before` spares questions to the stores about replicas that were
/// found before.
///
/// # Errors
/// `Invalid` if two replicas have one name or one has none; why a folder cannot be listed; if no
/// database was found, why one was passed over.
pub async fn replicas(
    sources: &[Source],
    before: &(dyn Fn(&Place) -> Before + Sync),
) -> Result<Found> {
    let mut found = Found::default();
    let each = sources.iter().enumerate();
    let each: Vec<_> = each.map(|(n, source)| within(n, source, before)).collect();
    let mut each = futures_util::stream::iter(each).buffered(AT_ONCE);
    while let Some(one) = each.next().await {
        let (places, passed_over) = one?;
        found.passed_over.extend(passed_over);
        for place in places {
            let name = name(&place, sources)?;
            if let Some(other) = found.by_name.get(&name) {
                return Err(Error::invalid(format!(
                    "two replicas would both be the directory \"{name}\": {} and {}; \
                     mount them in two places or rename one",
                    other.store(sources).location(),
                    place.store(sources).location(),
                )));
            }
            found.by_name.insert(name, place);
        }
    }
    if found.by_name.is_empty() && !found.passed_over.is_empty() {
        // One that does not answer may yet have something, whatever others refuse.
        let away = |error: &Error| error.kind() == ErrorKind::Unavailable;
        let first = found.passed_over.iter().position(away).unwrap_or(0);
        return Err(found.passed_over.swap_remove(first));
    }
    Ok(found)
}

/// The replicas of one source, and why others were passed over.
async fn within(
    n: usize,
    source: &Source,
    before: &(dyn Fn(&Place) -> Before + Sync),
) -> Result<(Vec<Place>, Vec<Error>)> {
    match source {
        Source::Folder(store) => Ok((below(n, store, before).await?, Vec::new())),
        Source::Database { replicas, .. } => Ok(best(n, replicas, before).await),
    }
}

/// The first replica of a database that answers and holds something. One that was found before
/// stays, unless one before it answers now; one that fails, if no other answers.
async fn best(
    source: usize,
    replicas: &[Arc<dyn Store>],
    before: &(dyn Fn(&Place) -> Before + Sync),
) -> (Vec<Place>, Vec<Error>) {
    let part = |n| Place {
        source,
        part: Part::Replica(n),
    };
    let first = |state| (0..replicas.len()).find(|n| before(&part(*n)) == state);
    let shown = first(Before::Found);
    let asked = &replicas[..shown.unwrap_or(replicas.len())];
    let answers: Vec<_> = asked.iter().map(holds_replica).collect();
    let mut passed_over = Vec::new();
    for (n, answer) in join_all(answers).await.into_iter().enumerate() {
        match answer {
            Ok(true) => return (vec![part(n)], passed_over),
            Ok(false) => {}
            Err(e) => passed_over.push(e),
        }
    }
    let kept = shown.or_else(|| first(Before::Failing));
    (kept.map(part).into_iter().collect(), passed_over)
}

/// Whether a replica lies at the root of a store, if it answers in time.
async fn holds_replica(store: &Arc<dyn Store>) -> Result<bool> {
    match timeout(PATIENCE, store.list_folder("")).await {
        Ok(Ok(names)) => Ok(names.iter().any(|name| name == GENERATIONS)),
        Ok(Err(e)) if e.kind() == ErrorKind::NotFound => Ok(false),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(Error::unavailable(format!(
            "{}: no answer within {} s",
            store.location(),
            PATIENCE.as_secs()
        ))),
    }
}

async fn below(
    source: usize,
    store: &Arc<dyn Store>,
    before: &(dyn Fn(&Place) -> Before + Sync),
) -> Result<Vec<Place>> {
    let folders = store.list_folder("").await?;
    if folders.iter().any(|name| name == GENERATIONS) {
        return Ok(vec![Place {
            source,
            part: Part::Whole,
        }]);
    }
    let mut places = Vec::new();
    for folder in folders.iter().filter_map(|name| name.strip_suffix('/')) {
        if is_directory_name(folder) {
            let part = Part::Folder(folder.to_owned());
            places.push(Place { source, part });
        }
    }
    let asked = futures_util::stream::iter(places)
        .map(|place| async move {
            let is_known = before(&place) != Before::New;
            let is_replica = is_known || is_replica(store, &place).await?;
            Ok::<_, Error>(is_replica.then_some(place))
        })
        .buffered(AT_ONCE);
    let found: Vec<Option<Place>> = asked.try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

async fn is_replica(store: &Arc<dyn Store>, place: &Place) -> Result<bool> {
    let Part::Folder(folder) = &place.part else {
        return Ok(true);
    };
    let inside = store.list_folder(&format!("{folder}/")).await?;
    Ok(inside.iter().any(|name| name == GENERATIONS))
}

/// The name of a database, else the last part of the replica's path.
fn name(place: &Place, sources: &[Source]) -> Result<String> {
    let store = place.store(sources);
    let location = store.location();
    let name = match (&sources[place.source], &place.part) {
        (Source::Database { name, .. }, _) => name,
        (_, Part::Folder(folder)) => folder,
        _ => location
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Body;
    use crate::storage::fault::{Fault, FaultStore, Verb, every};
    use crate::storage::memory::MemoryStore;

    /// The stores of a database's replicas: the first holds nothing, the others one object each.
    async fn database() -> (Vec<Arc<FaultStore>>, Vec<Source>) {
        let mut stores = Vec::new();
        for n in 0..3 {
            let store = FaultStore::new(MemoryStore::new());
            if n > 0 {
                let body = Body::Bytes("a claim".into());
                store.put("generations/1/claim", body).await.unwrap();
            }
            stores.push(store);
        }
        let replicas = stores.iter().map(|store| store.clone() as Arc<dyn Store>);
        let source = Source::Database {
            name: "app".to_owned(),
            replicas: replicas.collect(),
        };
        (stores, vec![source])
    }

    /// Which replica of `app` is found, and how many others were passed over.
    async fn found(sources: &[Source], known: &[usize]) -> Result<(Option<Part>, usize)> {
        found_after(sources, known, Before::Found).await
    }

    async fn found_after(
        sources: &[Source],
        known: &[usize],
        state: Before,
    ) -> Result<(Option<Part>, usize)> {
        let known: Vec<Part> = known.iter().map(|n| Part::Replica(*n)).collect();
        let before = |place: &Place| match known.contains(&place.part) {
            true => state,
            false => Before::New,
        };
        let found = replicas(sources, &before).await?;
        let part = found.by_name.get("app").map(|place| place.part.clone());
        Ok((part, found.passed_over.len()))
    }

    #[tokio::test]
    async fn the_first_replica_that_answers_and_holds_something_is_shown() {
        let (stores, sources) = database().await;
        let second = (Some(Part::Replica(1)), 0);
        assert_eq!(found(&sources, &[]).await.unwrap(), second);
        stores[1].set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
        let third = (Some(Part::Replica(2)), 1);
        assert_eq!(found(&sources, &[]).await.unwrap(), third);
        // The one that is shown is not asked again; one before it is shown when it answers.
        stores[2].set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
        assert_eq!(found(&sources, &[2]).await.unwrap(), third);
        let asked = stores[2].counts(Verb::ListFolder).calls;
        stores[1].set_rule(|_| None);
        assert_eq!(found(&sources, &[2]).await.unwrap(), second);
        assert_eq!(stores[2].counts(Verb::ListFolder).calls, asked);
    }

    #[tokio::test]
    async fn a_replica_that_fails_gives_way_to_one_that_answers() {
        let (stores, sources) = database().await;
        let failing = async || found_after(&sources, &[1], Before::Failing).await.unwrap();
        // It fails no longer.
        assert_eq!(failing().await, (Some(Part::Replica(1)), 0));
        stores[1].set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
        assert_eq!(failing().await, (Some(Part::Replica(2)), 1));
        stores[2].set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
        assert_eq!(failing().await, (Some(Part::Replica(1)), 2));
    }

    #[tokio::test]
    async fn a_database_of_which_nothing_answers_is_an_error_only_when_it_is_alone() {
        let (stores, mut sources) = database().await;
        for (store, kind) in stores.iter().zip([
            ErrorKind::Refused,
            ErrorKind::Refused,
            ErrorKind::Unavailable,
        ]) {
            store.set_rule(every(Fault::Refuse(kind)));
        }
        let error = found(&sources, &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let (_, mut other) = database().await;
        if let Source::Database { name, .. } = &mut other[0] {
            *name = "shop".to_owned();
        }
        sources.append(&mut other);
        assert_eq!(found(&sources, &[]).await.unwrap(), (None, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_does_not_answer_in_time_is_passed_over() {
        let (stores, sources) = database().await;
        stores[0].set_rule(every(Fault::Delay(PATIENCE * 10)));
        let second = (Some(Part::Replica(1)), 1);
        assert_eq!(found(&sources, &[]).await.unwrap(), second);
    }
}
