//! A store that fails as told, and counts what is asked of it: for tests and long runs.
//!
//! A *rule* looks at each call and says what goes wrong with it, if anything. Stores that are made
//! with [`Store::below`] share rule and counts with the one that they lie in, and the rule sees the
//! whole key.

use crate::error::{Error, ErrorKind, Result};
use crate::format::ids::Timestamp;
use crate::storage::{Body, Listed, Put, Store};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What can be asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// [`Store::put`]
    Put,
    /// [`Store::get_range`]
    GetRange,
    /// [`Store::list`]
    List,
    /// [`Store::list_folder`]
    ListFolder,
    /// [`Store::delete`]
    Delete,
    /// [`Store::abort_unfinished`]
    AbortUnfinished,
}

/// A call, as a rule sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is asked for.
    pub verb: Verb,
    /// Which call of this verb, from 1.
    pub number: u64,
    /// The key, or the prefix of a listing, or the first of the keys to delete.
    pub key: String,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, and the call fails so.
    Refuse(ErrorKind),
    /// All is done, and the call fails as `Unavailable`.
    LoseReply,
    /// All is done, so much later.
    Delay(Duration),
    /// A read gives so many bytes less than it should. Other verbs are not harmed.
    Cut(u64),
    /// A bit of what a read gives is wrong: this one, counted round and round. Other verbs are not
    /// harmed.
    Flip(u64),
}

/// What was asked of a store so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls, failed ones too.
    pub calls: u64,
    /// Bytes of the bodies put, of the ranges read; 0 for other verbs.
    pub bytes: u64,
}

type Rule = Arc<dyn Fn(&Call) -> Option<Fault> + Send + Sync>;

/// A wrapper around another store.
pub struct FaultStore {
    inner: Arc<dyn Store>,
    /// What every key begins with in the outermost store: empty, or with `/` at the end.
    folder: String,
    shared: Arc<Shared>,
}

struct Shared {
    rule: Mutex<Rule>,
    counters: [Counter; 6],
}

#[derive(Default)]
struct Counter {
    calls: AtomicU64,
    bytes: AtomicU64,
}

/// The rule by which one call goes wrong: the `number`th of a verb, counted from 1.
pub fn nth(verb: Verb, number: u64, fault: Fault) -> impl Fn(&Call) -> Option<Fault> {
    move |call| (call.verb == verb && call.number == number).then_some(fault)
}

/// The rule by which every call goes wrong: the store is away.
pub fn every(fault: Fault) -> impl Fn(&Call) -> Option<Fault> {
    move |_| Some(fault)
}

impl FaultStore {
    /// A store in which nothing goes wrong yet.
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        let shared = Shared {
            rule: Mutex::new(Arc::new(|_| None)),
            counters: Default::default(),
        };
        Arc::new(Self {
            inner,
            folder: String::new(),
            shared: Arc::new(shared),
        })
    }

    /// From now on calls go wrong by this rule and no other.
    pub fn set_rule(&self, rule: impl Fn(&Call) -> Option<Fault> + Send + Sync + 'static) {
        *self.shared.rule() = Arc::new(rule);
    }

    /// From now on nothing goes wrong.
    pub fn heal(&self) {
        self.set_rule(|_| None);
    }

    /// What was asked of this store, of all that lie below it, and of the one that it lies in.
    pub fn counts(&self, verb: Verb) -> Counts {
        let counter = self.shared.counter(verb);
        Counts {
            calls: counter.calls.load(Ordering::Relaxed),
            bytes: counter.bytes.load(Ordering::Relaxed),
        }
    }

    /// Counts a call, and does to it what may happen before it reaches the store.
    async fn before(&self, verb: Verb, key: &str) -> Result<Option<Fault>> {
        let counter = self.shared.counter(verb);
        let call = Call {
            verb,
            number: counter.calls.fetch_add(1, Ordering::Relaxed) + 1,
            key: format!("{}{key}", self.folder),
        };
        let rule = self.shared.rule().clone();
        let fault = rule(&call);
        match fault {
            Some(Fault::Refuse(kind)) => {
                let Call { number, key, .. } = call;
                let location = self.location();
                let sentence =
                    format!("{verb:?} number {number} of {key} in {location}: refused, as told");
                Err(Error::new(kind, sentence))
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                Ok(None)
            }
            Some(Fault::LoseReply | Fault::Cut(_) | Fault::Flip(_)) | None => Ok(fault),
        }
    }

    /// Does to a result what may happen on its way back.
    fn after<T>(&self, verb: Verb, fault: Option<Fault>, result: Result<T>) -> Result<T> {
        match fault {
            Some(Fault::LoseReply) => Err(Error::unavailable(format!(
                "{verb:?} in {}: the reply was lost, as told",
                self.location()
            ))),
            _ => result,
        }
    }

    fn count_bytes(&self, verb: Verb, bytes: u64) {
        let counter = self.shared.counter(verb);
        counter.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Shared {
    /// The rule. What panicked with the lock in hand left it whole: it is replaced in one step.
    fn rule(&self) -> std::sync::MutexGuard<'_, Rule> {
        self.rule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counter(&self, verb: Verb) -> &Counter {
        &self.counters[verb as usize]
    }
}

#[async_trait]
impl Store for FaultStore {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn server(&self) -> &str {
        self.inner.server()
    }

    fn below(&self, name: &str) -> Arc<dyn Store> {
        Arc::new(Self {
            inner: self.inner.below(name),
            folder: format!("{}{name}/", self.folder),
            shared: self.shared.clone(),
        })
    }

    fn date(&self) -> Option<Timestamp> {
        self.inner.date()
    }

    async fn put(&self, key: &str, body: Body) -> Result<Put> {
        let fault = self.before(Verb::Put, key).await?;
        self.count_bytes(Verb::Put, body.length().await);
        let put = self.inner.put(key, body).await;
        self.after(Verb::Put, fault, put)
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let fault = self.before(Verb::GetRange, key).await?;
        let mut bytes = self.inner.get_range(key, offset, length).await;
        if let Ok(bytes) = &mut bytes {
            self.count_bytes(Verb::GetRange, bytes.len() as u64);
            match fault {
                Some(Fault::Cut(missing)) => cut(bytes, missing),
                Some(Fault::Flip(bit)) => *bytes = flip(bytes, bit),
                _ => {}
            }
        }
        self.after(Verb::GetRange, fault, bytes)
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        let fault = self.before(Verb::List, prefix).await?;
        let listed = self.inner.list(prefix, start_after).await;
        self.after(Verb::List, fault, listed)
    }

    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>> {
        let fault = self.before(Verb::ListFolder, prefix).await?;
        let names = self.inner.list_folder(prefix).await;
        self.after(Verb::ListFolder, fault, names)
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        let first = keys.first().map_or("", String::as_str);
        let fault = self.before(Verb::Delete, first).await?;
        let deleted = self.inner.delete(keys).await;
        self.after(Verb::Delete, fault, deleted)
    }

    async fn abort_unfinished(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        let fault = self.before(Verb::AbortUnfinished, prefix).await?;
        let aborted = self.inner.abort_unfinished(prefix, before).await;
        self.after(Verb::AbortUnfinished, fault, aborted)
    }
}

fn cut(bytes: &mut Bytes, missing: u64) {
    let kept = (bytes.len() as u64).saturating_sub(missing);
    // No longer than what is in memory already.
    bytes.truncate(kept as usize);
}

fn flip(bytes: &Bytes, bit: u64) -> Bytes {
    let mut bytes = BytesMut::from(&bytes[..]);
    let bits = bytes.len() as u64 * 8;
    if let Some(bit) = bit.checked_rem(bits) {
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests;
