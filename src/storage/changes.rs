//! What this process changes in a replica, for who would have to list it to learn of that.
//!
//! Changes are numbered from 0 within an *epoch*. Whoever takes a [`Mark`] and lists the replica
//! after that has the listing of every later mark of the same epoch by applying the changes between
//! the two, in their order. What leaves the listing unknown begins another epoch: a put that found
//! its key taken, a put or a deletion that failed or was given up. A request that was given up may
//! still take effect later; what that changed, only a listing shows.
//!
//! A change is noted before the call that made it returns. Nothing is noted until somebody asks,
//! nor any more once nobody has fetched what was noted: see [`CHANGES`].

use crate::error::Result;
use crate::format::ids::Timestamp;
use crate::storage::{Body, Listed, Put, Store};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many changes are noted in an epoch, about 100 KB; one more begins another epoch.
pub const CHANGES: usize = 512;

/// A change of a replica's listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// An object was stored.
    Stored {
        /// Below the replica.
        key: String,
        /// Bytes.
        size: u64,
        /// When, by the clock of the store, since 1970.
        modified_micros: i64,
    },
    /// There is no object with this key any more.
    Deleted {
        /// Below the replica.
        key: String,
    },
}

/// How much somebody knows of what has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// In which the changes are numbered.
    pub epoch: u64,
    /// How many changes of it are known.
    pub count: u64,
}

/// What has changed since a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    /// What is known with these changes.
    pub mark: Mark,
    /// In their order; `None` if that is not known.
    pub changes: Option<Vec<Change>>,
}

/// The changes of one replica by this process.
pub struct Changes(Mutex<State>);

struct State {
    epoch: u64,
    /// `None` until somebody asks.
    noted: Option<Vec<Change>>,
}

impl Changes {
    /// Those from now on, with a random number for the first epoch.
    pub fn new(epoch: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { epoch, noted: None })))
    }

    /// What has changed since a mark.
    pub fn since(&self, mark: Option<Mark>) -> Since {
        let mut state = self.state();
        let epoch = state.epoch;
        let noted = state.noted.get_or_insert_default();
        let known = mark.filter(|mark| mark.epoch == epoch);
        let known = known.and_then(|mark| usize::try_from(mark.count).ok());
        Since {
            mark: Mark {
                epoch,
                count: noted.len() as u64,
            },
            changes: known
                .and_then(|count| noted.get(count..))
                .map(<[Change]>::to_vec),
        }
    }

    fn note(&self, changes: impl IntoIterator<Item = Change>) {
        let mut state = self.state();
        let Some(noted) = &mut state.noted else {
            return;
        };
        noted.extend(changes);
        if noted.len() > CHANGES {
            state.begin_epoch();
        }
    }

    /// The state. What panicked with the lock in hand left it whole: each change of it is one step.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin_epoch(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.noted = None;
    }
}

/// A call that may change the listing. Begins another epoch if it ends without saying how.
struct Underway<'a>(Option<&'a Changes>);

impl Underway<'_> {
    fn made(mut self, changes: impl IntoIterator<Item = Change>) {
        if let Some(noted) = self.0.take() {
            noted.note(changes);
        }
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        if let Some(changes) = self.0 {
            changes.state().begin_epoch();
        }
    }
}

/// A store that notes what is changed through it. What lies in a folder of it is another replica's.
pub struct Recorded {
    inner: Arc<dyn Store>,
    changes: Arc<Changes>,
}

impl Recorded {
    /// `changes` are those of `inner`, and of nothing else.
    pub fn new(inner: Arc<dyn Store>, changes: Arc<Changes>) -> Arc<Self> {
        Arc::new(Self { inner, changes })
    }

    fn begin(&self) -> Underway<'_> {
        Underway(Some(&self.changes))
    }
}

#[async_trait]
impl Store for Recorded {
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
        let underway = self.begin();
        let size = body.length().await;
        let put = self.inner.put(key, body).await?;
        if let Put::Created { date: Some(date) } = put {
            underway.made([Change::Stored {
                key: key.to_owned(),
                size,
                modified_micros: date.micros(),
            }]);
        }
        Ok(put)
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.inner.get_range(key, offset, length).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        self.inner.list(prefix, start_after).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>> {
        self.inner.list_folder(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        let underway = self.begin();
        self.inner.delete(keys).await?;
        underway.made(keys.iter().cloned().map(|key| Change::Deleted { key }));
        Ok(())
    }

    async fn abort_unfinished(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        self.inner.abort_unfinished(prefix, before).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::storage::conformance::check_store;
    use crate::storage::fault::{Fault, FaultStore, Verb, every, nth};
    use crate::storage::memory::MemoryStore;
    use std::time::Duration;
    use tokio::time::timeout;

    struct World {
        faults: Arc<FaultStore>,
        store: Arc<Recorded>,
        changes: Arc<Changes>,
    }

    impl World {
        fn new() -> Self {
            let faults = FaultStore::new(MemoryStore::new());
            let changes = Changes::new(7);
            let store = Recorded::new(faults.clone(), changes.clone());
            Self {
                faults,
                store,
                changes,
            }
        }

        async fn put(&self, key: &str) -> Result<Put> {
            let body = Body::Bytes(Bytes::from(key.to_owned()));
            self.store.put(key, body).await
        }

        async fn delete(&self, keys: &[&str]) -> Result<()> {
            let keys: Vec<String> = keys.iter().copied().map(str::to_owned).collect();
            self.store.delete(&keys).await
        }

        fn mark(&self) -> Mark {
            self.changes.since(None).mark
        }

        /// What changed since a mark: `+` before keys that were stored, `-` before those deleted.
        fn since(&self, mark: Mark) -> Option<String> {
            let changes = self.changes.since(Some(mark)).changes?;
            let shown = changes.iter().map(|change| match change {
                Change::Stored { key, size, .. } => {
                    assert_eq!(*size, key.len() as u64);
                    format!("+{key}")
                }
                Change::Deleted { key } => format!("-{key}"),
            });
            Some(shown.collect::<Vec<_>>().join(" "))
        }
    }

    #[tokio::test]
    async fn it_keeps_to_the_contract_of_a_store() {
        check_store(|| Recorded::new(MemoryStore::new(), Changes::new(1))).await;
    }

    #[tokio::test]
    async fn changes_are_told_in_their_order_from_any_mark_on() {
        let world = World::new();
        let first = world.mark();
        assert_eq!(world.since(first).unwrap(), "");
        world.put("a").await.unwrap();
        let second = world.mark();
        world.put("b").await.unwrap();
        world.delete(&["a", "c"]).await.unwrap();
        world.put("a").await.unwrap();
        assert_eq!(world.since(first).unwrap(), "+a +b -a -c +a");
        assert_eq!(world.since(second).unwrap(), "+b -a -c +a");
        assert_eq!(world.since(world.mark()).unwrap(), "");
        let told = world.changes.since(Some(first)).changes.unwrap();
        let listed = world.store.list("b", None).await.unwrap().remove(0);
        let Change::Stored {
            modified_micros, ..
        } = told[1]
        else {
            panic!("{told:?}");
        };
        assert_eq!(modified_micros, listed.modified.micros());
    }

    #[tokio::test]
    async fn a_mark_of_another_epoch_or_the_future_says_nothing() {
        let world = World::new();
        let Mark { epoch, count } = world.mark();
        let later = Mark {
            epoch,
            count: count + 1,
        };
        assert_eq!(world.since(later), None);
        let other = Mark {
            epoch: epoch + 1,
            count,
        };
        assert_eq!(world.since(other), None);
        assert_eq!(world.changes.since(None).changes, None);
    }

    #[tokio::test]
    async fn what_leaves_the_listing_unknown_begins_another_epoch() {
        let world = World::new();
        world.put("a").await.unwrap();
        let mark = world.mark();
        assert_eq!(world.put("a").await.unwrap(), Put::Exists);
        assert_eq!(world.since(mark), None);
        for fault in [Fault::Refuse(ErrorKind::Unavailable), Fault::LoseReply] {
            let mark = world.mark();
            assert_eq!(world.since(mark).unwrap(), "");
            world.faults.set_rule(every(fault));
            world.put("b").await.unwrap_err();
            assert_eq!(world.since(mark), None, "{fault:?}");
            let mark = world.mark();
            world.delete(&["a"]).await.unwrap_err();
            assert_eq!(world.since(mark), None, "{fault:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_given_up_begins_another_epoch() {
        let world = World::new();
        let slow = Fault::Delay(Duration::from_secs(10));
        world.faults.set_rule(nth(Verb::Put, 1, slow));
        let mark = world.mark();
        let given_up = timeout(Duration::from_secs(1), world.put("a")).await;
        assert!(given_up.is_err());
        assert_eq!(world.since(mark), None);
    }

    #[tokio::test]
    async fn nothing_is_noted_for_nobody_nor_without_end() {
        let world = World::new();
        world.put("a").await.unwrap();
        assert!(world.changes.state().noted.is_none());
        let mark = world.mark();
        let keys: Vec<String> = (0..CHANGES).map(|n| n.to_string()).collect();
        world.store.delete(&keys).await.unwrap();
        let told = world.changes.since(Some(mark)).changes.unwrap();
        assert_eq!(told.len(), CHANGES);
        world.put("b").await.unwrap();
        assert!(world.changes.state().noted.is_none());
        assert_eq!(world.since(mark), None);
    }
}
