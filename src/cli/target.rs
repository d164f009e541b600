//! What a command's target means: a replica as it is written, or a database of the config file with
//! its replicas; and which of those is read.

use crate::cli::config::Config;
use crate::cli::moment::{At, split};
use crate::cli::{CACHE_BYTES, clock};
use sqlrepl::config::file::{is_named, replica_name};
use sqlrepl::config::location::{Location, real_path};
use sqlrepl::config::settings::{DatabaseSettings, Settings};
use sqlrepl::error::{Error, ErrorKind, Result};
use sqlrepl::format::ids::Timestamp;
use sqlrepl::format::key::GENERATIONS;
use sqlrepl::format::moment::Moment;
use sqlrepl::materialize::cache::BlockCache;
use sqlrepl::materialize::replica::Replica;
use sqlrepl::storage::{self, Store};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a replica may take to be looked at while there is another one to read.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a target means.
#[derive(Debug)]
pub(crate) enum Target<'a> {
    /// A replica.
    Replica(Candidate),
    /// A database of the config file.
    Database(&'a DatabaseSettings),
}

/// A replica that may be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// How messages name it.
    pub(crate) name: String,
    /// Where it lies.
    pub(crate) location: Location,
}

/// How to name a place that looks like a moment of another one.
pub(crate) const AS_WRITTEN: &str = "a place whose own name has this @ ends with a /";

impl<'a> Target<'a> {
    /// A URL, or a directory in which a replica lies, is meant as it is written; else a database
    /// is, by its name and then by its path; else a directory, whatever it holds.
    ///
    /// # Errors
    /// `NotFound`, which says what was tried.
    pub(crate) fn find(text: &str, config: &'a Config) -> Result<Self> {
        let as_written = || {
            Ok(Self::Replica(Candidate {
                name: replica_name(text),
                location: config.location(text)?,
            }))
        };
        let path = Path::new(text);
        if is_url(text) || path.join(GENERATIONS).is_dir() {
            return as_written();
        }
        if let Some(database) = config.known().and_then(|known| named(known, text)) {
            return Ok(Self::Database(database));
        }
        match path.is_dir() {
            true => as_written(),
            false => Err(Error::not_found(nowhere(text, config.known()))),
        }
    }

    /// The same, and the moment behind an `@`. What exists as it is written has no moment: a
    /// database, a path, or a replica below such a prefix in S3.
    ///
    /// # Errors
    /// As [`Target::find`]; `Invalid` if what stands behind the `@` is no moment; `Unavailable` if
    /// the store that may have such a prefix does not answer.
    pub(crate) async fn find_at(text: &str, config: &'a Config) -> Result<(Self, Option<At>)> {
        let Some((place, words)) = split(text) else {
            return Ok((Self::find(text, config)?, None));
        };
        if !is_url(text) {
            match Self::find(text, config) {
                Ok(target) => return Ok((target, None)),
                Err(e) if Path::new(text).exists() => return Err(e),
                Err(_) => {}
            }
        }
        let moment = Moment::parse(words, clock()())
            .map_err(|e| Error::invalid(format!("behind the @, {e}; {AS_WRITTEN}")))?;
        if is_url(text) && has_replica(text, config).await? {
            return Ok((Self::find(text, config)?, None));
        }
        let at = At {
            words: words.to_owned(),
            moment,
        };
        Ok((Self::find(&place, config)?, Some(at)))
    }

    /// The same for a command that is about all moments; `why` says what it does with them.
    ///
    /// # Errors
    /// As [`Target::find_at`]; `Invalid` if there is a moment.
    pub(crate) async fn find_whole(text: &str, config: &'a Config, why: &str) -> Result<Self> {
        match Self::find_at(text, config).await? {
            (target, None) => Ok(target),
            (_, Some(at)) => Err(Error::invalid(format!(
                "{why}: leave out @{}; {AS_WRITTEN}",
                at.words
            ))),
        }
    }

    /// The replicas that may be read, in order; only the one with this name, if there is a name.
    ///
    /// # Errors
    /// `Invalid` if no replica has that name.
    pub(crate) fn candidates(&self, replica: Option<&str>) -> Result<Vec<Candidate>> {
        let database = match (self, replica) {
            (Self::Replica(candidate), None) => return Ok(vec![candidate.clone()]),
            (Self::Replica(candidate), Some(_)) => {
                return Err(Error::invalid(format!(
                    "--replica picks a replica of a database in the config file; {} is one itself",
                    candidate.name
                )));
            }
            (Self::Database(database), _) => database,
        };
        let found: Vec<Candidate> = database
            .replicas
            .iter()
            .filter(|other| replica.is_none_or(|replica| is_named(&other.name, replica)))
            .map(|replica| Candidate {
                name: replica.name.clone(),
                location: replica.location.clone(),
            })
            .collect();
        match (found.is_empty(), replica) {
            (true, Some(replica)) => {
                let names = database.replicas.iter().map(|replica| &*replica.name);
                Err(Error::invalid(format!(
                    "database {} has no replica {}; it has {}",
                    database.name,
                    replica_name(replica),
                    names.collect::<Vec<_>>().join(", ")
                )))
            }
            _ => Ok(found),
        }
    }
}

/// Whether a replica lies at a URL as it is written. Who may not look there has none there.
async fn has_replica(url: &str, config: &Config) -> Result<bool> {
    let Ok(location) = config.location(url) else {
        return Ok(false);
    };
    let folders = storage::open(&location)
        .await?
        .list_folder(GENERATIONS)
        .await;
    match folders {
        Ok(folders) => Ok(!folders.is_empty()),
        Err(e) if e.kind() == ErrorKind::Unavailable => Err(e),
        Err(_) => Ok(false),
    }
}

/// True for what is written as a URL, be it a good one or not.
pub(crate) fn is_url(text: &str) -> bool {
    text.contains("://") || text.starts_with("s3:")
}

/// The database of this name, else the one at this path.
pub(crate) fn named<'a>(settings: &'a Settings, text: &str) -> Option<&'a DatabaseSettings> {
    let by = |is: &dyn Fn(&DatabaseSettings) -> bool| settings.databases.iter().find(|db| is(db));
    by(&|database| database.name == text).or_else(|| {
        let path = real_path(Path::new(text)).ok()?;
        by(&|database| database.capture.database == path)
    })
}

fn nowhere(text: &str, settings: Option<&Settings>) -> String {
    match settings {
        Some(settings) => {
            let file = settings.file.as_deref().unwrap_or(Path::new("the config"));
            format!(
                "{text}: no such directory, so no replica is there, and no database of {} has \
                 that name or path",
                file.display()
            )
        }
        None => format!("{text}: no such directory, so no replica is there"),
    }
}

/// The replica at a place that must be there already, read once.
pub(crate) async fn open(location: &Location) -> Result<Arc<Replica>> {
    let replica = reach(location, CACHE_BYTES).await?;
    replica.refresh().await?;
    Ok(replica)
}

/// The same before anything is read of it.
async fn reach(location: &Location, cache_bytes: u64) -> Result<Arc<Replica>> {
    let cache = Arc::new(BlockCache::new(cache_bytes));
    Ok(Replica::new(store(location).await?, cache))
}

/// The store at a place that must be there already.
pub(crate) async fn store(location: &Location) -> Result<Arc<dyn Store>> {
    if let Location::Directory(path) = location
        && !path.is_dir()
    {
        return Err(Error::not_found(format!(
            "{location}: no such directory, so no replica is there"
        )));
    }
    storage::open(location).await
}

/// What a replica has of what was asked for; and, if that is the last that it holds, of when that
/// is: then another replica may go further.
pub(crate) type Answer<T> = (T, Option<Timestamp>);

/// What `ask` gives of the first replica that answers and has what it asks for, or, where none has
/// all of it, of the one that goes furthest. Those that are passed over for that are warned of.
/// `look` reads of a replica what there is to ask about, in time while there is another one. Each
/// has a page cache of `cache_bytes`.
///
/// # Errors
/// The only one's; else what came of each, as `NotFound` only if none has it, for sure.
pub(crate) async fn first<L, T>(
    candidates: &[Candidate],
    cache_bytes: u64,
    look: impl AsyncFn(&Arc<Replica>) -> Result<L>,
    ask: impl AsyncFn(&Arc<Replica>, &Candidate, L) -> Result<Answer<T>>,
) -> Result<T> {
    let mut failures: Vec<(&str, Error)> = Vec::new();
    let mut furthest: Option<(&str, T, Timestamp)> = None;
    for (n, candidate) in candidates.iter().enumerate() {
        let has_others = n + 1 < candidates.len() || furthest.is_some();
        let asked = match in_time(&look, candidate, cache_bytes, has_others).await {
            Ok((replica, looked)) => ask(&replica, candidate, looked).await,
            Err(e) => Err(e),
        };
        match (asked, &furthest) {
            (Ok((answer, None)), _) => return Ok(answer),
            (Ok((answer, Some(end))), None) => furthest = Some((&candidate.name, answer, end)),
            (Ok((answer, Some(end))), Some((name, _, other))) if end > *other => {
                tracing::warn!("replica {name} is passed over: it ends at {other}");
                furthest = Some((&candidate.name, answer, end));
            }
            (Ok(_), Some(_)) => {}
            (Err(e), None) if e.kind() == ErrorKind::Invalid => return Err(e),
            // It has nothing, for sure, so it does not go further.
            (Err(e), Some(_)) if e.kind() == ErrorKind::NotFound => {}
            (Err(e), _) => {
                if has_others {
                    tracing::warn!("replica {} is passed over: {e}", candidate.name);
                }
                failures.push((&candidate.name, e));
            }
        }
    }
    match furthest {
        Some((_, answer, _)) => Ok(answer),
        None => Err(none(failures)),
    }
}

/// A replica, looked at. While there is another one it must answer in time.
async fn in_time<L>(
    look: &impl AsyncFn(&Arc<Replica>) -> Result<L>,
    candidate: &Candidate,
    cache_bytes: u64,
    has_others: bool,
) -> Result<(Arc<Replica>, L)> {
    let look = async {
        let replica = reach(&candidate.location, cache_bytes).await?;
        let looked = look(&replica).await?;
        Ok((replica, looked))
    };
    if !has_others {
        return look.await;
    }
    timeout(PATIENCE, look).await.unwrap_or_else(|_| {
        Err(Error::unavailable(format!(
            "{}: no answer within {} s; --replica waits longer",
            candidate.location,
            PATIENCE.as_secs()
        )))
    })
}

/// Of several failures one that leaves the matter open weighs most.
fn none(mut failures: Vec<(&str, Error)>) -> Error {
    if failures.len() == 1 {
        return failures.remove(0).1;
    }
    let kind = failures
        .iter()
        .map(|(_, e)| e.kind())
        .find(|kind| *kind != ErrorKind::NotFound)
        .unwrap_or(ErrorKind::NotFound);
    let each = failures.iter().map(|(name, e)| format!("{name}: {e}"));
    let each: Vec<String> = each.collect();
    Error::new(kind, format!("no replica has it: {}", each.join("; ")))
}
