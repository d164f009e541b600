//! When the maintenance of a replica has its rounds, beside the uploader that writes it.

use crate::config::{Clock, Environment};
use crate::error::{Error, Result};
use crate::format::ids::{Timestamp, WriterId};
use crate::maintain::keeper::{Behalf, KeepSettings, Keeper, Round};
use crate::maintain::rules::{UPLOADS, UPLOADS_AGE, UPLOADS_MIN, later};
use crate::maintain::workshop::Workshop;
use crate::replicate::upload::Status;
use crate::storage::Store;
use crate::storage::kept::{Kept, KeptStore};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tracing::Instrument;

/// After a round that failed: the first pause, and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// Clocks are looked at so often while something is due some time.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Running maintenance; it ends where it stands when this is dropped, which it may at any point.
pub(super) struct Maintenance(JoinHandle<()>);

impl Drop for Maintenance {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What maintenance is started with.
pub(super) struct Given {
    pub(super) keeper: Keeper,
    /// Of the uploader.
    pub(super) status: watch::Receiver<Status>,
    /// How many replicas are maintained at once: each takes memory and a core.
    pub(super) turns: Arc<Semaphore>,
    pub(super) clock: Clock,
    /// Rounds that only time asks for are so far apart at least.
    pub(super) check_interval: Duration,
}

/// The keeper of a replica whose state lies in this directory, on behalf of `writer`. Blocking.
///
/// # Errors
/// `Disk`.
pub(super) fn keeper(
    store: Arc<dyn Store>,
    kept: Arc<Kept>,
    directory: &Path,
    writer: WriterId,
    environment: Environment,
    settings: KeepSettings,
) -> Result<Keeper> {
    let making = directory.join("making");
    // What an earlier run was making.
    match std::fs::remove_dir_all(&making) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::disk(format!("clean {}", making.display()), e));
        }
        _ => {}
    }
    let workshop = Workshop {
        store: KeptStore::new(store, Arc::clone(&kept)),
        directory: making,
        environment,
        writer,
        kept: Some(kept),
    };
    Keeper::new(workshop, settings)
}

impl Maintenance {
    /// It ends where it stands.
    pub(super) fn stop(&self) {
        self.0.abort();
    }

    /// Starts it on the current runtime.
    pub(super) fn start(given: Given, replica: &str) -> Self {
        let span = tracing::error_span!("replica", %replica);
        Self(tokio::spawn(run(given).instrument(span)))
    }
}

async fn run(mut given: Given) {
    let began = (given.clock)();
    let mut last = Last {
        at: began,
        // What was stored before may fall due while nothing new comes.
        round: Round {
            due_at: Some(began),
            ..Round::default()
        },
        uploads: 0,
        pause: None,
    };
    let mut new_since = None;
    loop {
        let status = given.status.borrow_and_update().clone();
        let now = (given.clock)();
        last.set_back(now);
        let new = status.uploads.saturating_sub(last.uploads);
        new_since = (new > 0).then(|| new_since.map_or(now, |since: Timestamp| since.min(now)));
        let behalf = behalf(&status);
        let at = behalf.and_then(|_| last.next(new, new_since, given.check_interval));
        match (behalf, at) {
            (Some(_), Some(at)) if at <= now => {
                let turn = given.turns.acquire().await;
                // Much may have happened while others had theirs.
                let status = given.status.borrow_and_update().clone();
                if let Some(behalf) = self::behalf(&status) {
                    last = last.after(given.keeper.round(behalf).await, now, status.uploads);
                }
                drop(turn);
                new_since = None;
            }
            _ => {
                let changed = given.status.changed();
                let timer = async {
                    match at {
                        Some(at) => tokio::time::sleep(until(now, at)).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = changed => if changed.is_err() { return },
                    () = timer => {}
                }
            }
        }
    }
}

/// For whom a round may work now: nobody else leads, and all before is stored.
fn behalf(status: &Status) -> Option<Behalf> {
    let is_ours = status.superseded.is_none() && status.failed.is_none();
    let (generation, (newest, _)) = status.generation.zip(status.newest)?;
    is_ours.then_some(Behalf::Writer(generation, newest))
}

/// How long to wait for a time. A clock may be set meanwhile, and a machine that sleeps counts no
/// waiting.
fn until(now: Timestamp, at: Timestamp) -> Duration {
    let micros = at.micros().saturating_sub(now.micros()).max(0);
    Duration::from_micros(micros.unsigned_abs()).min(LOOK_AGAIN)
}

/// The last round.
#[derive(Clone, Debug)]
struct Last {
    /// When it began; before the first one, the start.
    at: Timestamp,
    round: Round,
    /// Uploads since the start when it began.
    uploads: u64,
    /// It failed: so long nothing is tried.
    pause: Option<Duration>,
}

impl Last {
    fn after(&self, outcome: Result<Round>, at: Timestamp, uploads: u64) -> Self {
        match outcome {
            Ok(round) => Self {
                at,
                round,
                uploads,
                pause: None,
            },
            Err(e) => {
                let pause = self.pause.map_or(AGAIN.0, |pause| (pause * 2).min(AGAIN.1));
                tracing::warn!("maintenance: {e}; trying again in {pause:?}");
                Self {
                    at,
                    pause: Some(pause),
                    ..self.clone()
                }
            }
        }
    }

    /// What a clock said that was set back since must not put anything off.
    fn set_back(&mut self, now: Timestamp) {
        let by = self.at.micros().saturating_sub(now.micros());
        if by > 0 {
            let earlier = |time: Timestamp| Timestamp::from_micros(time.micros() - by);
            self.at = now;
            self.round.oldest = self.round.oldest.map(|oldest| oldest.min(now));
            self.round.due_at = self.round.due_at.map(earlier);
        }
    }

    /// When the next round is due; in the past: now. `new`: uploads since the last round began, the
    /// first of them seen at `new_since`.
    fn next(
        &self,
        new: u64,
        new_since: Option<Timestamp>,
        check_interval: Duration,
    ) -> Option<Timestamp> {
        let checked = later(self.at, check_interval);
        if let Some(pause) = self.pause {
            return Some(later(self.at, pause));
        }
        if self.round.is_cut {
            return Some(self.at);
        }
        let left = self.round.uploads;
        let waiting = usize::try_from(new)
            .unwrap_or(usize::MAX)
            .saturating_add(left);
        // What the last round could not merge does not hurry the next one.
        let many = new > 0 && waiting >= UPLOADS && (left < UPLOADS || new >= UPLOADS as u64);
        let oldest = self.round.oldest.or(new_since);
        let some = oldest.filter(|_| waiting >= UPLOADS_MIN);
        let some = some
            .map(|oldest| later(oldest, UPLOADS_AGE))
            .filter(|at| *at > self.at);
        let changed = (new > 0).then_some(checked);
        let due = self.round.due_at.map(|due| due.max(checked));
        let many = many.then_some(self.at);
        [many, some, changed, due].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    /// After a round at second 1000 that left so many uploads, the oldest stored at `oldest`.
    #[track_caller]
    fn check(left: usize, oldest: i64, due: Option<i64>, new: u64, expect: Option<i64>) {
        let last = Last {
            at: at(1000),
            round: Round {
                uploads: left,
                oldest: (left > 0).then(|| at(oldest)),
                due_at: due.map(at),
                ..Round::default()
            },
            uploads: 0,
            pause: None,
        };
        let new_since = (new > 0).then(|| at(1100));
        let next = last.next(new, new_since, Duration::from_secs(3600));
        assert_eq!(next.map(|at| at.micros() / 1_000_000), expect);
    }

    #[test]
    fn many_uploads_are_merged_at_once_and_some_after_a_while() {
        check(0, 0, None, 64, Some(1000));
        check(60, 900, None, 4, Some(1000));
        check(0, 0, None, 63, Some(1700));
        check(7, 900, None, 1, Some(1500));
        check(0, 0, None, 7, Some(4600));
    }

    #[test]
    fn what_could_not_be_merged_hurries_nobody() {
        check(70, 10, None, 1, Some(4600));
        check(70, 10, None, 64, Some(1000));
        check(70, 10, None, 0, None);
    }

    #[test]
    fn an_idle_replica_is_looked_at_when_something_falls_due_and_not_before() {
        check(0, 0, None, 0, None);
        check(3, 900, None, 0, None);
        check(0, 0, Some(90_000), 0, Some(90_000));
        check(0, 0, Some(1200), 0, Some(4600));
    }

    #[test]
    fn a_clock_that_was_set_back_puts_nothing_off() {
        let mut last = Last {
            at: at(1_000_000),
            round: Round {
                uploads: 60,
                oldest: Some(at(999_900)),
                due_at: Some(at(1_090_000)),
                ..Round::default()
            },
            uploads: 0,
            pause: None,
        };
        last.set_back(at(2_000_000));
        assert_eq!(last.at, at(1_000_000));
        last.set_back(at(1000));
        let interval = Duration::from_secs(3600);
        assert_eq!(last.next(0, None, interval), Some(at(1600)));
        assert_eq!(last.next(4, Some(at(1100)), interval), Some(at(1000)));
        last.round = Round {
            due_at: last.round.due_at,
            ..Round::default()
        };
        assert_eq!(last.next(0, None, interval), Some(at(91_000)));
    }

    #[test]
    fn a_round_that_left_something_to_merge_is_followed_by_another_one_at_once() {
        let last = Last {
            at: at(1000),
            round: Round {
                is_cut: true,
                ..Round::default()
            },
            uploads: 0,
            pause: None,
        };
        let next = last.next(0, None, Duration::from_secs(3600));
        assert_eq!(next, Some(at(1000)));
    }

    #[test]
    fn after_a_failure_the_pauses_grow() {
        let mut last = Last {
            at: at(0),
            round: Round::default(),
            uploads: 0,
            pause: None,
        };
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let failed = Err(crate::error::Error::unavailable("away"));
            last = last.after(failed, at(0), 5);
            let next = last.next(100, Some(at(0)), Duration::from_secs(9));
            pauses.push(next.unwrap().micros() / 1_000_000);
        }
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
    }
}
