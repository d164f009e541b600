//! When to look in the store for what is new, and looking once for everyone who waits.
//!
//! Looks only happen when somebody asks, start at least one interval apart, and are shared: while
//! one is on the way nobody starts another. A look belongs to itself, not to the caller who began
//! it, so a caller who stops waiting does not throw away what a slow store has sent so far. While
//! the store fails, what is known is answered at once and the next look goes on behind.

use crate::error::{Error, Result};
use crate::format::ids::Timestamp;
use futures_util::future::{BoxFuture, FutureExt, Shared};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What came of looks so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// Nobody has looked, or no look has ended yet.
    Never,
    /// The last look showed what was there when it started.
    Seen {
        /// When it started.
        started: Timestamp,
    },
    /// The last look failed.
    Failed {
        /// When it failed: a look that took long to fail is not started again at once.
        ended: Timestamp,
        /// An earlier one did not: what it saw is still known.
        known: bool,
    },
}

/// What an answer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// What is known is new enough, or there is no use in trying again yet.
    Nothing,
    /// Wait for a look, then answer.
    Wait,
    /// Answer with what is known and look behind it: the store failed when last asked.
    Behind,
}

/// Decides whether to look. `running` is when the look that is on the way started; `patience` is
/// how long anyone waits for one.
pub fn need(
    last: Last,
    running: Option<Timestamp>,
    now: Timestamp,
    interval: Duration,
    patience: Duration,
) -> Need {
    let known = !matches!(last, Last::Never | Last::Failed { known: false, .. });
    if let Some(started) = running {
        return match (since(started, now) < patience, last, known) {
            // A waiter gave up on this look already; the next one need not find out for itself.
            (false, _, true) | (true, Last::Failed { .. }, true) => Need::Behind,
            (false, _, false) => Need::Nothing,
            (true, _, _) => Need::Wait,
        };
    }
    match last {
        Last::Never => Need::Wait,
        Last::Seen { started } if since(started, now) < interval => Need::Nothing,
        Last::Seen { .. } => Need::Wait,
        Last::Failed { ended, .. } if since(ended, now) < interval => Need::Nothing,
        Last::Failed { known: true, .. } => Need::Behind,
        Last::Failed { known: false, .. } => Need::Wait,
    }
}

/// A clock that was set back makes everything due, never fresh for as long as it was set back.
fn since(then: Timestamp, now: Timestamp) -> Duration {
    match u64::try_from(now.micros() - then.micros()) {
        Ok(micros) => Duration::from_micros(micros),
        Err(_) => Duration::MAX,
    }
}

/// A look that any number of callers wait for; true if it succeeded.
pub type Look = Shared<BoxFuture<'static, bool>>;

/// Follows one thing in the store: the list of databases, or one database.
pub struct Follow {
    /// For messages.
    name: String,
    state: Mutex<State>,
}

struct State {
    last: Last,
    /// When the last look that did not fail started.
    seen: Option<Timestamp>,
    /// Why the last look failed, if it did.
    error: Option<String>,
    running: Option<(Timestamp, Look)>,
}

impl Follow {
    /// Nothing seen yet.
    pub fn new(name: String) -> Arc<Self> {
        Arc::new(Self {
            name,
            state: Mutex::new(State {
                last: Last::Never,
                seen: None,
                error: None,
                running: None,
            }),
        })
    }

    /// Whether to look before an answer: see [`need`].
    pub fn need(&self, now: Timestamp, interval: Duration, patience: Duration) -> Need {
        let state = self.state();
        let running = state.running.as_ref().map(|(started, _)| *started);
        need(state.last, running, now, interval, patience)
    }

    /// How long what was seen last stays new enough.
    pub fn fresh_for(&self, now: Timestamp, interval: Duration) -> Duration {
        match self.state().last {
            Last::Seen { started } => interval.saturating_sub(since(started, now)),
            Last::Never | Last::Failed { .. } => interval,
        }
    }

    /// What is followed, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Notes that somebody looked on their own account.
    pub fn seen(&self, started: Timestamp) {
        self.state().seen(started);
    }

    /// Notes that they failed.
    pub fn failed(&self, now: Timestamp, error: &Error) {
        self.state().failed(now, error);
    }

    /// What is known is what was there at this time.
    pub fn known_since(&self) -> Option<Timestamp> {
        self.state().seen
    }

    /// Why the last look failed, if it did.
    pub fn error(&self) -> Option<String> {
        self.state().error.clone()
    }

    /// True once a look has succeeded.
    pub fn is_known(&self) -> bool {
        !matches!(
            self.state().last,
            Last::Never | Last::Failed { known: false, .. }
        )
    }

    /// True if the last look failed.
    pub fn is_failing(&self) -> bool {
        matches!(self.state().last, Last::Failed { .. })
    }

    /// The look that is on the way, or a new one that does `work`. Must be called within the
    /// runtime.
    pub fn look<W>(self: &Arc<Self>, clock: &crate::config::Clock, work: W) -> Look
    where
        W: Future<Output = Result<()>> + Send + 'static,
    {
        let mut state = self.state();
        if let Some((_, look)) = &state.running {
            return look.clone();
        }
        let started = clock();
        let (follow, clock) = (self.clone(), clock.clone());
        let task = tokio::spawn(async move {
            // A look that panicked and stayed "on the way" would be the last one.
            let outcome = AssertUnwindSafe(work).catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|_| Err(Error::corrupt("a look panicked")));
            follow.ended(started, clock(), outcome)
        });
        // The task ends without a result only when the runtime ends.
        let look = task.map(|ended| ended.unwrap_or(false)).boxed().shared();
        state.running = Some((started, look.clone()));
        look
    }

    /// Notes what came of a look; speaks when that is news.
    fn ended(&self, started: Timestamp, now: Timestamp, outcome: Result<()>) -> bool {
        let mut state = self.state();
        state.running = None;
        let failing = matches!(state.last, Last::Failed { .. });
        match outcome {
            Ok(()) => {
                if failing {
                    tracing::info!("{} can be read again", self.name);
                }
                state.seen(started);
                true
            }
            Err(error) => {
                if !failing {
                    tracing::warn!("cannot look for what is new in {}: {error}", self.name);
                }
                state.failed(now, &error);
                false
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        crate::mount::locked(&self.state)
    }
}

impl State {
    fn failed(&mut self, now: Timestamp, error: &Error) {
        let known = !matches!(self.last, Last::Never | Last::Failed { known: false, .. });
        self.last = Last::Failed { ended: now, known };
        self.error = Some(error.to_string());
    }

    fn seen(&mut self, started: Timestamp) {
        self.last = Last::Seen { started };
        self.seen = Some(started);
        self.error = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Duration = Duration::from_secs(5);

    fn at(seconds: f64) -> Timestamp {
        Timestamp::from_micros((seconds * 1e6) as i64)
    }

    #[track_caller]
    fn check(last: Last, running: Option<f64>, now: f64, expect: Need) {
        assert_eq!(
            need(last, running.map(at), at(now), SECOND, PATIENCE),
            expect
        );
    }

    fn seen(started: f64) -> Last {
        Last::Seen {
            started: at(started),
        }
    }

    fn failed(ended: f64, known: bool) -> Last {
        Last::Failed {
            ended: at(ended),
            known,
        }
    }

    #[test]
    fn the_first_question_waits_for_a_look() {
        check(Last::Never, None, 100.0, Need::Wait);
        check(Last::Never, Some(99.0), 100.0, Need::Wait);
    }

    #[test]
    fn questions_within_an_interval_share_a_look() {
        check(seen(100.0), None, 100.9, Need::Nothing);
        check(seen(100.0), None, 101.0, Need::Wait);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_stop_the_looks() {
        check(seen(100.0), None, 50.0, Need::Wait);
    }

    #[test]
    fn while_the_store_fails_what_is_known_is_answered_at_once() {
        check(failed(100.0, true), None, 100.5, Need::Nothing);
        check(failed(100.0, true), None, 101.0, Need::Behind);
        check(failed(100.0, true), Some(101.0), 101.5, Need::Behind);
    }

    #[test]
    fn while_the_store_fails_what_is_unknown_waits_once_an_interval() {
        check(failed(100.0, false), None, 100.5, Need::Nothing);
        check(failed(100.0, false), None, 101.0, Need::Wait);
        check(failed(100.0, false), Some(101.0), 101.5, Need::Wait);
    }

    #[test]
    fn nobody_waits_for_a_look_that_somebody_gave_up_on() {
        check(seen(100.0), Some(102.0), 106.9, Need::Wait);
        check(seen(100.0), Some(102.0), 107.0, Need::Behind);
        check(Last::Never, Some(102.0), 107.0, Need::Nothing);
    }

    #[tokio::test]
    async fn callers_share_one_look_and_one_who_leaves_does_not_end_it() {
        let clock: crate::config::Clock = Arc::new(|| at(100.0));
        let follow = Follow::new("app".to_owned());
        let (open, opened) = tokio::sync::oneshot::channel::<()>();
        let first = follow.look(&clock, async move {
            opened.await.map_err(|_| Error::unavailable("closed"))
        });
        let second = follow.look(&clock, async { Err(Error::unavailable("never started")) });
        drop(first);
        assert!(!follow.is_known());
        open.send(()).unwrap();
        assert!(second.await);
        assert!(follow.is_known());
        assert_eq!(follow.need(at(100.5), SECOND, PATIENCE), Need::Nothing);
        assert_eq!(follow.fresh_for(at(100.75), SECOND), SECOND / 4);
        assert_eq!(follow.fresh_for(at(102.0), SECOND), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_look_that_fails_keeps_what_was_known() {
        let clock: crate::config::Clock = Arc::new(|| at(100.0));
        let follow = Follow::new("app".to_owned());
        assert!(follow.look(&clock, async { Ok(()) }).await);
        assert!(
            !follow
                .look(&clock, async { Err(Error::unavailable("no answer")) })
                .await
        );
        assert!(follow.is_known());
        assert_eq!(follow.need(at(101.0), SECOND, PATIENCE), Need::Behind);
    }

    #[tokio::test]
    async fn a_look_that_panics_counts_as_failed() {
        let clock: crate::config::Clock = Arc::new(|| at(100.0));
        let follow = Follow::new("app".to_owned());
        assert!(!follow.look(&clock, async { panic!("a bug") }).await);
        assert_eq!(follow.need(at(100.5), SECOND, PATIENCE), Need::Nothing);
        assert!(follow.look(&clock, async { Ok(()) }).await);
    }
}
