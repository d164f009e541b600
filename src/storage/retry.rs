//! A store that tries again what was `Unavailable`, and nothing else. The only place that retries:
//! the parts of an upload are tried again by the same loop.
//!
//! Each attempt has a deadline. Between two attempts lies a random wait of anything up to a bound
//! that doubles ("full jitter"), so that a thousand databases do not come back to a store all at
//! once; and beside it the time for which the store asked to be left alone. A call ends when its
//! attempts have taken a few seconds: those who must not give up come back by themselves, and the
//! others want to know.
//!
//! A put may be tried again because its body replays. If the store had stored it and only the reply
//! was lost, the next attempt gives [`Put::Exists`]: whether what is there is ours, the caller must
//! find out.

use crate::config;
use crate::error::{Error, ErrorKind, Result};
use crate::format::ids::Timestamp;
use crate::storage::{Body, Listed, Put, Store};
use async_trait::async_trait;
use bytes::Bytes;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Bytes per second of the slowest line over which everything gets done.
pub const SLOWEST_LINE: u64 = 256 << 10;

/// Calls that may share that line, each at the same time. A call that hangs ends long before its
/// time is over, where the store sees that nothing moves.
const SHARED_BY: u64 = 1024;

/// How long a call may take, and how it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySettings {
    /// The longest wait before the second attempt; doubles with each that follows.
    pub first_wait: Duration,
    /// Where the doubling ends.
    pub longest_wait: Duration,
    /// How long one attempt may take, in addition to the time that its bytes may take.
    pub attempt: Duration,
    /// How often a call is tried, however long it takes.
    pub attempts: u64,
    /// How long it is tried again beyond that, without the time for which the store asked to be
    /// left alone.
    pub total: Duration,
    /// Bytes per second that a call moves at least; at least 1. Puts and reads are given the time
    /// that their bytes take at this pace: that of a line which many calls share, since the store
    /// itself sees much earlier that nothing moves.
    pub slowest: u64,
    /// How long a listing or a deletion may take in addition: nobody knows how many requests it is,
    /// and the store has a deadline for each.
    pub listing: Duration,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            first_wait: Duration::from_millis(50),
            longest_wait: Duration::from_secs(2),
            // The store's own deadline for a request is 10 s, and knows more of what it was.
            attempt: Duration::from_secs(15),
            attempts: 3,
            total: Duration::from_secs(4),
            slowest: SLOWEST_LINE / SHARED_BY,
            listing: Duration::from_secs(10 * 60),
        }
    }
}

/// A wrapper around another store.
pub struct RetryStore {
    inner: Arc<dyn Store>,
    settings: RetrySettings,
}

impl RetryStore {
    /// The same store, with more patience.
    pub fn new(inner: Arc<dyn Store>, settings: RetrySettings) -> Arc<Self> {
        Arc::new(Self { inner, settings })
    }

    /// Makes attempts of a call, each with a deadline. `doing` is what is attempted, for messages;
    /// `more` is how long an attempt may take in addition.
    async fn retry<T, F>(&self, doing: &str, more: Duration, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let patience = self.settings.attempt.saturating_add(more);
        let in_time = || {
            let done = timeout(patience, attempt());
            async move {
                done.await.unwrap_or_else(|_| {
                    Err(Error::unavailable(format!(
                        "{doing} in {}: no answer within {:.1} s",
                        self.location(),
                        patience.as_secs_f64()
                    )))
                })
            }
        };
        persist(&self.settings, in_time).await
    }

    /// How long so many bytes may take.
    fn moving(&self, bytes: u64) -> Duration {
        Duration::from_secs(bytes / self.settings.slowest.max(1))
    }
}

/// Makes attempts until one gives anything else than `Unavailable`, or patience ends. An attempt
/// has a deadline of its own.
///
/// # Errors
/// That of the last attempt.
pub(super) async fn persist<T, F>(settings: &RetrySettings, attempt: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>> + Send,
{
    let start = Instant::now();
    let mut left_alone = Duration::ZERO;
    let mut longest_wait = settings.first_wait.min(settings.longest_wait);
    for attempts in 1_u64.. {
        let error = match attempt().await {
            Err(e) if e.kind() == ErrorKind::Unavailable => e,
            result => return result,
        };
        let wait = jitter(longest_wait, random());
        let spent = start.elapsed().saturating_sub(left_alone) + wait;
        if attempts >= settings.attempts && spent >= settings.total {
            return Err(error.context(format_args!(
                "gave up after {attempts} attempts in {:.1} s",
                start.elapsed().as_secs_f64()
            )));
        }
        match attempts {
            1 => tracing::warn!(%error, "trying again"),
            _ => tracing::debug!(%error, attempts, "trying again"),
        }
        left_alone += error.wait();
        sleep(wait + error.wait()).await;
        longest_wait = longest_wait.saturating_mul(2).min(settings.longest_wait);
    }
    unreachable!("nobody makes 2^64 attempts")
}

/// The part of `longest` that a random number says.
fn jitter(longest: Duration, random: u32) -> Duration {
    longest.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// A random number; the greatest if the system has none, which spares the store as well.
fn random() -> u32 {
    let mut bytes = [u8::MAX; 4];
    match config::random(&mut bytes) {
        Ok(()) => u32::from_be_bytes(bytes),
        Err(_) => u32::MAX,
    }
}

#[async_trait]
impl Store for RetryStore {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn server(&self) -> &str {
        self.inner.server()
    }

    fn below(&self, name: &str) -> Arc<dyn Store> {
        Self::new(self.inner.below(name), self.settings)
    }

    fn date(&self) -> Option<Timestamp> {
        self.inner.date()
    }

    async fn put(&self, key: &str, body: Body) -> Result<Put> {
        let length = body.length().await;
        let attempt = || self.inner.put(key, body.clone());
        let moving = self.moving(length);
        self.retry(&format!("put {key}"), moving, attempt).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let attempt = || self.inner.get_range(key, offset, length);
        let moving = self.moving(length);
        self.retry(&format!("read {key}"), moving, attempt).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        let attempt = || self.inner.list(prefix, start_after);
        let more = self.settings.listing;
        self.retry(&format!("list {prefix:?}"), more, attempt).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>> {
        let attempt = || self.inner.list_folder(prefix);
        let more = self.settings.listing;
        self.retry(&format!("list {prefix:?}"), more, attempt).await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        let attempt = || self.inner.delete(keys);
        let doing = format!("delete {} objects", keys.len());
        self.retry(&doing, self.settings.listing, attempt).await
    }

    async fn abort_unfinished(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        let attempt = || self.inner.abort_unfinished(prefix, before);
        let doing = format!("abort uploads of {prefix:?}");
        self.retry(&doing, self.settings.listing, attempt).await
    }
}

#[cfg(test)]
mod tests;
