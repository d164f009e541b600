//! What a capture shows of itself: to be seen at any time, also while a step of it hangs.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A step that takes longer is held up by something: those that wait for locks wait for less.
const SLOW: Duration = Duration::from_secs(10);

/// Written by the capture, read by whoever asks; nobody waits with its lock held.
#[derive(Debug, Default)]
pub(super) struct Shown(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    trouble: Option<String>,
    wal_bytes: Option<u64>,
    /// When the step that is being taken last came by a look at the files.
    busy_since: Option<Instant>,
}

impl Shown {
    /// Why nothing is captured, if so.
    pub(super) fn trouble(&self) -> Option<String> {
        self.state().trouble.clone()
    }

    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        self.state().trouble = trouble;
    }

    /// Bytes of the `-wal` file at the last look.
    pub(super) fn wal_bytes(&self) -> Option<u64> {
        self.state().wal_bytes
    }

    pub(super) fn set_wal_bytes(&self, bytes: Option<u64>) {
        self.state().wal_bytes = bytes;
    }

    /// Something begins that may be held up, or goes on.
    pub(super) fn begin(&self) {
        self.state().busy_since = Some(Instant::now());
    }

    /// It is over.
    pub(super) fn rest(&self) {
        self.state().busy_since = None;
    }

    /// For how long it has been held up by `now`, if it has.
    pub(super) fn held_up(&self, now: Instant) -> Option<Duration> {
        let since = self.state().busy_since?;
        let time = now.saturating_duration_since(since);
        (time > SLOW).then_some(time)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics with this lock held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_step_that_takes_long_is_held_up() {
        let shown = Shown::default();
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert_eq!(shown.held_up(later(60)), None);
        shown.begin();
        assert_eq!(shown.held_up(later(9)), None);
        assert!(shown.held_up(later(60)) > Some(Duration::from_secs(59)));
        shown.rest();
        assert_eq!(shown.held_up(later(60)), None);
    }
}
