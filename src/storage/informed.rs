//! A replica whose changes a daemon on this machine tells: listings without requests.
//!
//! The daemon that writes a replica knows what it changed ([`crate::storage::changes`]). Whoever
//! lists the replica once, with a mark taken before that, has every later listing from there. It is
//! never believed for long: others may write the replica, too. So once a minute the store itself is
//! listed, and also when the daemon does not say, when it does not write the highest generation,
//! and when what was listed is in doubt.
//!
//! Which daemon that is, the claim of the highest generation says. The segments that it keeps
//! on the local disk are read from there.

use crate::config::Clock;
use crate::error::Result;
use crate::format::claim::Claim;
use crate::format::ids::{GenerationId, Timestamp};
use crate::format::key::{GENERATIONS, Key, ObjectKey};
use crate::storage::blocking::blocking;
use crate::storage::changes::{Change, Mark};
use crate::storage::kept::KeptElsewhere;
use crate::storage::{Body, Listed, Put, Store};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// What a daemon says holds so long without a look at the store itself. And a daemon that does not
/// answer is asked again after it.
const BELIEVED: Duration = Duration::from_secs(60);

/// How long a read of what a daemon keeps may take.
const KEPT_PATIENCE: Duration = Duration::from_secs(2);

/// What a daemon says of a replica that it writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// To say the next time.
    pub mark: Mark,
    /// What has changed since the mark that was said; `None` if that is not known.
    pub changes: Option<Vec<Change>>,
    /// Which generation it writes.
    pub generation: Option<GenerationId>,
    /// Where it keeps what it stored.
    pub kept: PathBuf,
}

/// Who asks the daemon that writes a replica.
#[async_trait]
pub trait Informant: Send + Sync + 'static {
    /// What has changed since a mark, from the daemon that a claim names; `None` if it does not run
    /// on this machine, or does not write this replica.
    ///
    /// # Errors
    /// `Unavailable`: it may run, but does not say.
    async fn news(&self, claim: &Claim, since: Option<Mark>) -> Result<Option<News>>;
}

/// A store with one replica, whose listings come from memory while a daemon tells what changes.
pub struct Informed {
    inner: Arc<dyn Store>,
    informant: Arc<dyn Informant>,
    clock: Clock,
    /// One listing is made at a time.
    listing: tokio::sync::Mutex<Listing>,
    shared: Mutex<Shared>,
}

/// What listings go on from.
#[derive(Default)]
struct Listing {
    known: Option<Known>,
    /// When the daemon was asked and did not say.
    silent_since: Option<Timestamp>,
}

/// A listing, and how it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    objects: BTreeMap<String, Listed>,
    mark: Mark,
    /// When the store was asked.
    listed: Timestamp,
}

/// What others see of it, too.
#[derive(Default)]
struct Shared {
    /// The next listing is to be one of the store.
    is_doubted: bool,
    /// That of the highest generation, which names the daemon.
    claim: Option<Arc<Claim>>,
    /// Where the daemon that informs keeps segments; `None` while none does.
    kept: Option<Arc<KeptElsewhere>>,
    /// That place did not answer once: it is left alone.
    is_stuck: bool,
}

impl Known {
    /// What was listed then, with a mark from before.
    fn new(listed: &[Listed], mark: Mark, at: Timestamp) -> Self {
        let objects = listed.iter().map(|object| (object.key.clone(), object));
        Self {
            objects: objects.map(|(key, object)| (key, object.clone())).collect(),
            mark,
            listed: at,
        }
    }

    /// Goes on to what a daemon says; false if only the store knows what is there. Does no I/O.
    fn go_on(&mut self, news: &News, now: Timestamp) -> bool {
        let Some(changes) = &news.changes else {
            return false;
        };
        for change in changes {
            self.apply(change);
        }
        self.mark = news.mark;
        is_within(self.listed, now) && news.is_of(highest(self.objects.keys()))
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Stored {
                key,
                size,
                modified_micros,
            } => {
                let listed = Listed {
                    key: key.clone(),
                    size: *size,
                    modified: Timestamp::from_micros(*modified_micros),
                };
                self.objects.insert(key.clone(), listed);
            }
            Change::Deleted { key } => {
                self.objects.remove(key);
            }
        }
    }

    fn list(&self) -> Vec<Listed> {
        self.objects.values().cloned().collect()
    }
}

impl News {
    /// Who writes an older generation does not know what others do in the highest one.
    fn is_of(&self, highest: Option<GenerationId>) -> bool {
        self.generation.is_some() && self.generation == highest
    }
}

impl Informed {
    /// `inner` has one replica at its root, of which `informant` knows.
    pub fn new(inner: Arc<dyn Store>, informant: Arc<dyn Informant>, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            inner,
            informant,
            clock,
            listing: tokio::sync::Mutex::default(),
            shared: Mutex::default(),
        })
    }

    /// Names the daemon to ask: what the claim of the highest generation says, whose reader knows
    /// it anyway. Until then nobody is asked.
    pub fn set_claim(&self, claim: Option<Claim>) {
        self.shared().claim = claim.map(Arc::new);
    }

    /// Whether a daemon told what has changed, when last asked.
    pub fn is_informed(&self) -> bool {
        self.shared().kept.is_some()
    }

    async fn list_replica(&self) -> Result<Vec<Listed>> {
        let mut listing = self.listing.lock().await;
        let now = (self.clock)();
        let news = self.ask(&mut listing, now).await;
        let is_doubted = std::mem::take(&mut self.shared().is_doubted);
        if let (Some(known), Some(news)) = (&mut listing.known, &news)
            && known.go_on(news, now)
            && !is_doubted
        {
            self.believe(Some(news));
            return Ok(known.list());
        }
        listing.known = None;
        let listed = self.inner.list(GENERATIONS, None).await;
        let listed = listed.inspect_err(|_| self.believe(None))?;
        let generation = highest(listed.iter().map(|object| &object.key));
        let news = news.filter(|news| news.is_of(generation));
        listing.known = news.as_ref().map(|n| Known::new(&listed, n.mark, now));
        self.believe(news.as_ref());
        Ok(listed)
    }

    /// What the daemon says, with a mark to take before the store is listed.
    async fn ask(&self, listing: &mut Listing, now: Timestamp) -> Option<News> {
        if listing
            .silent_since
            .is_some_and(|since| is_within(since, now))
        {
            return None;
        }
        let claim = self.shared().claim.clone()?;
        let mark = listing.known.as_ref().map(|known| known.mark);
        let answer = self.informant.news(&claim, mark).await;
        listing.silent_since = answer.is_err().then_some(now);
        answer.unwrap_or_else(|e| {
            tracing::debug!(
                "{} is listed, though a daemon may run: {e}",
                self.location()
            );
            None
        })
    }

    /// Notes whether a daemon informs, and where it keeps segments.
    fn believe(&self, news: Option<&News>) {
        let directory = news.map(|news| news.kept.as_path());
        let mut shared = self.shared();
        if shared.kept.as_ref().map(|kept| kept.directory()) != directory {
            let kept = directory.map(Path::to_owned).map(KeptElsewhere::new);
            shared.kept = kept.map(Arc::new);
        }
    }

    /// These bytes of an object, if the daemon keeps it.
    async fn kept(&self, key: &str, offset: u64, length: u64) -> Option<Bytes> {
        let kept = {
            let shared = self.shared();
            shared.kept.clone().filter(|_| !shared.is_stuck)?
        };
        let is_segment = |key: &Key| {
            matches!(
                key.object,
                ObjectKey::Upload { .. } | ObjectKey::Merged { .. }
            )
        };
        let key = Key::parse(key).filter(is_segment)?;
        let read = blocking(move || Ok(kept.read(&key, offset, length)));
        // Its file system may be dead, and the store has the same.
        let Ok(read) = timeout(KEPT_PATIENCE, read).await else {
            tracing::warn!(
                "the spool does not answer: {} is read alone",
                self.location()
            );
            self.shared().is_stuck = true;
            return None;
        };
        read.ok().flatten().map(Bytes::from)
    }

    /// What all calls share. What panicked with the lock in hand left it whole: each change of it
    /// is one step.
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for Informed {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn server(&self) -> &str {
        self.inner.server()
    }

    fn below(&self, name: &str) -> Arc<dyn Store> {
        self.inner.below(name)
    }

    fn date(&self) -> Option<Timestamp> {
        self.inner.date()
    }

    async fn put(&self, key: &str, body: Body) -> Result<Put> {
        self.inner.put(key, body).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        match self.kept(key, offset, length).await {
            Some(bytes) => Ok(bytes),
            None => self.inner.get_range(key, offset, length).await,
        }
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        match (prefix, start_after) {
            (GENERATIONS, None) => self.list_replica().await,
            _ => self.inner.list(prefix, start_after).await,
        }
    }

    fn doubt_listing(&self) {
        self.shared().is_doubted = true;
    }

    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>> {
        self.inner.list_folder(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        self.inner.delete(keys).await
    }

    async fn abort_unfinished(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        self.inner.abort_unfinished(prefix, before).await
    }
}

/// Whether what was so at `then` is still believed. A clock that was set back ends all belief.
fn is_within(then: Timestamp, now: Timestamp) -> bool {
    let micros = u64::try_from(now.micros().saturating_sub(then.micros()));
    micros.is_ok_and(|micros| Duration::from_micros(micros) < BELIEVED)
}

/// The highest generation of keys that ascend.
fn highest<'a>(keys: impl DoubleEndedIterator<Item = &'a String>) -> Option<GenerationId> {
    let parsed = keys.rev().find_map(|key| Key::parse(key));
    parsed.map(|key| key.generation)
}

#[cfg(test)]
mod tests;
