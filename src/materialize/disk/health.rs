//! Whether the directory of a disk cache is asked. Pure: time comes in.

use std::time::Duration;
use tokio::time::Instant;

/// The first pause, and where the doubling ends.
pub(super) const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What is known of a directory.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// It failed or is full.
    is_off: bool,
    stall: Option<Stall>,
}

/// It did not answer in time.
#[derive(Debug)]
struct Stall {
    /// When that was found out last.
    since: Instant,
    /// When it is asked again.
    until: Instant,
    pause: Duration,
}

impl Health {
    /// True if it may be asked.
    pub(super) fn is_well(&self, now: Instant) -> bool {
        !self.is_off && self.stall.as_ref().is_none_or(|stall| stall.until <= now)
    }

    /// Lets a reader ask, who waits for so long at most. After a pause it is one alone.
    pub(super) fn admit(&mut self, now: Instant, patience: Duration) -> bool {
        let is_well = self.is_well(now);
        if let Some(stall) = self.stall.as_mut().filter(|_| is_well) {
            stall.until = now + patience;
        }
        is_well
    }

    /// It answered; true if that ends a stall.
    pub(super) fn answered(&mut self) -> bool {
        self.stall.take().is_some()
    }

    /// Somebody who began to wait then had no answer; how long it is left alone, if that is news.
    pub(super) fn stalled(&mut self, began: Instant, now: Instant) -> Option<Duration> {
        let pause = match &self.stall {
            // They waited beside the one who found out.
            Some(stall) if began < stall.since => return None,
            Some(stall) => (stall.pause * 2).min(PAUSE_MAX),
            None => PAUSE_MIN,
        };
        self.stall = Some(Stall {
            since: now,
            until: now + pause,
            pause,
        });
        Some(pause)
    }

    /// It failed; true if that is news.
    pub(super) fn failed(&mut self) -> bool {
        !std::mem::replace(&mut self.is_off, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    #[test]
    fn pauses_double_and_one_at_a_time_finds_out() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut health = Health::default();
        assert!(health.admit(at(0), PATIENCE) && health.admit(at(1), PATIENCE));
        assert_eq!(health.stalled(at(0), at(2)), Some(PAUSE_MIN));
        assert!(!health.is_well(at(2)) && !health.admit(at(2), PATIENCE));
        // The other one waited beside it.
        assert_eq!(health.stalled(at(1), at(3)), None);
        assert!(health.is_well(at(3)) && health.admit(at(3), PATIENCE));
        assert!(!health.admit(at(3), PATIENCE));
        let (mut began, mut pauses) = (3, Vec::new());
        for _ in 0..7 {
            let pause = health.stalled(at(began), at(began + 2)).unwrap().as_secs();
            pauses.push(pause);
            assert!(!health.is_well(at(began + 1 + pause)));
            began += 2 + pause;
            assert!(health.admit(at(began), PATIENCE));
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60]);
        assert!(health.answered() && !health.answered());
        assert!(health.admit(at(began), PATIENCE) && health.admit(at(began), PATIENCE));
        assert_eq!(health.stalled(at(began), at(began + 2)), Some(PAUSE_MIN));
    }

    #[test]
    fn a_failure_is_for_good() {
        let mut health = Health::default();
        assert!(health.failed() && !health.failed());
        health.answered();
        assert!(!health.is_well(Instant::now() + PAUSE_MAX));
    }
}
