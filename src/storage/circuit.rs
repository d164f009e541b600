//! A store that is not waited for again and again while it is away: a circuit breaker for reads.
//!
//! A read of a store that is away fails only when its attempts are used up, which takes long. Two
//! of them without an answer between, or one that waits for much longer than the bytes that are on
//! their way take, while nothing at all arrives, open the circuit: those that come then fail at
//! once, with the same error, until a pause is over. Then one is let through to find out, and
//! another one when that takes long. The pause begins with a second and doubles up to ten; any
//! answer closes the circuit. Reads that are on their way when it opens go on: what moves is never
//! given up.
//!
//! Only ranged reads are treated so: who lists looks for what is new, and paces that himself.

use crate::error::{Error, ErrorKind, Result};
use crate::format::ids::Timestamp;
use crate::storage::retry::SLOWEST_LINE;
use crate::storage::{Body, Listed, Put, Store};
use async_trait::async_trait;
use bytes::Bytes;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The first pause, and where the doubling ends.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a read waits before it counts as a sign that the store is away, beside the time that
/// the bytes on their way take: as long as an S3 server may take for one request. And how long a
/// probe stands in for the others.
const OVERDUE: Duration = Duration::from_secs(10);
/// Bytes per second that all reads of a replica together get at least: others share the line.
const SLOWEST_SHARE: u64 = SLOWEST_LINE / 2;
/// So many reads in a row must have failed. One alone may be the fault of its object, or of this
/// process, which has too many files open.
const FAILURES: u32 = 2;

/// What is known of a store. Pure: time comes in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Circuit {
    state: State,
    /// When it answered last.
    answered: Option<Instant>,
    /// How many reads have failed since, while it was closed.
    failures: u32,
    /// What the reads on their way have asked for.
    underway_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing speaks against asking the store.
    #[default]
    Closed,
    /// It is away.
    Open {
        /// What the last read said that found out.
        why: String,
        /// When the next one may try.
        until: Instant,
        pause: Duration,
        /// When the one began that is on its way to find out.
        probe: Option<Instant>,
    },
}

/// How a read was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// As ever.
    Plain,
    /// To find out for the others.
    Probe,
}

impl Circuit {
    /// Lets a read through, or says why not.
    fn admit(&mut self, now: Instant) -> Result<Pass, String> {
        match &mut self.state {
            State::Closed => Ok(Pass::Plain),
            State::Open { until, probe, .. }
                if *until <= now && probe.is_none_or(|began| began + OVERDUE <= now) =>
            {
                *probe = Some(now);
                Ok(Pass::Probe)
            }
            State::Open { why, .. } => Err(why.clone()),
        }
    }

    /// The store answered, whatever it was; true if that closes the circuit.
    fn answered(&mut self, now: Instant) -> bool {
        self.answered = Some(now);
        self.failures = 0;
        std::mem::take(&mut self.state) != State::Closed
    }

    /// A read that began then found the store away; true if that opens the circuit. It is no news
    /// if another one was answered since, or if it was let through before the circuit opened.
    fn failed(&mut self, pass: Pass, began: Instant, now: Instant, why: String) -> bool {
        match (&self.state, pass) {
            (State::Closed, _) if !self.is_silent_since(began) => false,
            (State::Closed, _) => {
                self.failures += 1;
                let is_away = self.failures >= FAILURES;
                if is_away {
                    self.open(now, PAUSE_MIN, why);
                }
                is_away
            }
            (State::Open { probe, pause, .. }, Pass::Probe) if *probe == Some(began) => {
                let pause = (*pause * 2).min(PAUSE_MAX);
                self.open(now, pause, why);
                false
            }
            (State::Open { .. }, _) => false,
        }
    }

    fn open(&mut self, now: Instant, pause: Duration, why: String) {
        self.state = State::Open {
            why,
            until: now + pause,
            pause,
            probe: None,
        };
    }

    /// When a read that began then is overdue, as far as is known by now.
    fn due(&self, began: Instant) -> Instant {
        began + OVERDUE + Duration::from_secs(self.underway_bytes / SLOWEST_SHARE)
    }

    /// A read that began then is overdue; true if that opens the circuit.
    fn overdue(&mut self, began: Instant, now: Instant, why: String) -> bool {
        let is_news = self.state == State::Closed && self.is_silent_since(began);
        if is_news {
            self.open(now, PAUSE_MIN, why);
        }
        is_news
    }

    fn is_silent_since(&self, began: Instant) -> bool {
        self.answered.is_none_or(|at| at < began)
    }

    /// A probe that began then was given up before it ended: the next read is one.
    fn given_up(&mut self, began: Instant) {
        if let State::Open { probe, .. } = &mut self.state {
            probe.take_if(|probe| *probe == began);
        }
    }
}

/// A wrapper around another store.
pub struct CircuitStore {
    inner: Arc<dyn Store>,
    circuit: Mutex<Circuit>,
}

/// A read that has not ended.
struct Underway<'a> {
    store: &'a CircuitStore,
    began: Instant,
    pass: Pass,
    bytes: u64,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        let mut circuit = self.store.circuit();
        circuit.underway_bytes -= self.bytes;
        // One that came to an end has changed the state already.
        if self.pass == Pass::Probe {
            circuit.given_up(self.began);
        }
    }
}

impl CircuitStore {
    /// The same store, with less patience while it is away.
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            circuit: Mutex::default(),
        })
    }

    /// The circuit. It is changed in one step, so a panic elsewhere leaves it whole.
    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a read of so many bytes through, or says why not.
    fn admit(&self, bytes: u64) -> Result<Underway<'_>> {
        let began = Instant::now();
        let mut circuit = self.circuit();
        let pass = circuit.admit(began).map_err(Error::unavailable)?;
        circuit.underway_bytes += bytes;
        Ok(Underway {
            store: self,
            began,
            pass,
            bytes,
        })
    }

    async fn guarded<T>(
        &self,
        key: &str,
        bytes: u64,
        read: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let underway = self.admit(bytes)?;
        let began = underway.began;
        let mut read = pin!(read);
        let result = loop {
            let due = self.circuit().due(began);
            match timeout_at(due, &mut read).await {
                Ok(result) => break result,
                // Others have begun meanwhile, and share the line.
                Err(_) if due < self.circuit().due(began) => {}
                Err(_) => {
                    self.is_overdue(key, began);
                    break read.await;
                }
            }
        };
        let now = Instant::now();
        match &result {
            Err(e) if e.kind() == ErrorKind::Unavailable => {
                let why = e.to_string();
                if self.circuit().failed(underway.pass, began, now, why) {
                    self.opened(&e.to_string());
                }
            }
            _ => {
                if self.circuit().answered(now) {
                    tracing::info!("{} answers again", self.inner.location());
                }
            }
        }
        result
    }

    /// A read that began then waits longer than any that moves.
    fn is_overdue(&self, key: &str, began: Instant) {
        let now = Instant::now();
        let waited = (now - began).as_secs();
        let location = self.inner.location();
        let why = format!("read {location}/{key}: no answer within {waited} s");
        if self.circuit().overdue(began, now, why.clone()) {
            self.opened(&why);
        }
    }

    fn opened(&self, why: &str) {
        let location = self.inner.location();
        tracing::warn!("{location} is away, reads of it fail at once until it answers: {why}");
    }
}

#[async_trait]
impl Store for CircuitStore {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn server(&self) -> &str {
        self.inner.server()
    }

    fn below(&self, name: &str) -> Arc<dyn Store> {
        Self::new(self.inner.below(name))
    }

    fn date(&self) -> Option<Timestamp> {
        self.inner.date()
    }

    async fn put(&self, key: &str, body: Body) -> Result<Put> {
        self.inner.put(key, body).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let read = self.inner.get_range(key, offset, length);
        self.guarded(key, length, read).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        self.inner.list(prefix, start_after).await
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

#[cfg(test)]
mod tests;
