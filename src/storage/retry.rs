//! A store that tries again what was `Unavailable`, and nothing else. The only place that retries.
//!
//! Each attempt has a deadline, and all attempts of a call together have one. Between two attempts
//! lies a random wait of anything up to a bound that doubles ("full jitter"), so that a thousand
//! databases do not come back to a store all at once.
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

/// How long a call may take, and how it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetrySettings {
    /// The longest wait before the second attempt; doubles with each that follows.
    pub first_wait: Duration,
    /// Where the doubling ends.
    pub longest_wait: Duration,
    /// How long one attempt may take, in addition to the time that its bytes may take.
    pub attempt: Duration,
    /// How long all attempts and waits may take, in addition to the time that the bytes may take.
    pub total: Duration,
    /// Bytes per second that a working store moves at least; at least 1. Puts and reads are given
    /// the time that their bytes take at this pace.
    pub slowest: u64,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(5),
            attempt: Duration::from_secs(10),
            total: Duration::from_secs(30),
            slowest: 256 * 1024,
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

    /// Runs `attempt` until it gives anything else than `Unavailable`, or time is up. `doing` is
    /// what is attempted, for messages; `bytes` is how many it moves.
    async fn retry<T, F>(&self, doing: &str, bytes: u64, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let settings = &self.settings;
        let moving = Duration::from_secs(bytes / settings.slowest.max(1));
        let total = settings.total.saturating_add(moving);
        let start = Instant::now();
        let mut longest_wait = settings.first_wait.min(settings.longest_wait);
        for attempts in 1_u64.. {
            let left = total.saturating_sub(start.elapsed());
            let patience = settings.attempt.saturating_add(moving).min(left);
            let error = match timeout(patience, attempt()).await {
                Ok(Err(e)) if e.kind() == ErrorKind::Unavailable => e,
                Ok(result) => return result,
                Err(_) => Error::unavailable(format!(
                    "{doing} in {}: no answer within {:.1} s",
                    self.location(),
                    patience.as_secs_f64()
                )),
            };
            let wait = jitter(longest_wait);
            if start.elapsed().saturating_add(wait) >= total {
                return Err(error.context(format_args!(
                    "gave up after {attempts} attempts in {:.1} s",
                    start.elapsed().as_secs_f64()
                )));
            }
            tracing::debug!(%error, attempts, ?wait, "trying again");
            sleep(wait).await;
            longest_wait = longest_wait.saturating_mul(2).min(settings.longest_wait);
        }
        unreachable!("nobody makes 2^64 attempts")
    }
}

/// A random part of `longest`; all of it if the system has no random bytes, which spares the store
/// as well.
fn jitter(longest: Duration) -> Duration {
    let mut bytes = [0; 4];
    match config::random(&mut bytes) {
        Ok(()) => longest.mul_f64(f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)),
        Err(_) => longest,
    }
}

#[async_trait]
impl Store for RetryStore {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn below(&self, name: &str) -> Arc<dyn Store> {
        Self::new(self.inner.below(name), self.settings)
    }

    async fn put(&self, key: &str, body: Body) -> Result<Put> {
        let length = body.length().await;
        let attempt = || self.inner.put(key, body.clone());
        self.retry(&format!("put {key}"), length, attempt).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let attempt = || self.inner.get_range(key, offset, length);
        self.retry(&format!("read {key}"), length, attempt).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        let attempt = || self.inner.list(prefix, start_after);
        self.retry(&format!("list {prefix:?}"), 0, attempt).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>> {
        let attempt = || self.inner.list_folder(prefix);
        self.retry(&format!("list {prefix:?}"), 0, attempt).await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        let attempt = || self.inner.delete(keys);
        self.retry(&format!("delete {} objects", keys.len()), 0, attempt)
            .await
    }

    async fn abort_unfinished(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        let attempt = || self.inner.abort_unfinished(prefix, before);
        self.retry(&format!("abort uploads of {prefix:?}"), 0, attempt)
            .await
    }
}

#[cfg(test)]
mod tests;
