//! The time of a decision, and when the next one may be another. Pure.
//!
//! Invariant: every comparison with the time goes through here, so `next` knows them all.

use crate::config::settings::Retention;
use crate::format::ids::Timestamp;
use std::time::Duration;

/// The time, and the earliest one at which some answer would have been another.
pub(super) struct Clock {
    now: Timestamp,
    next: Option<i64>,
}

impl Clock {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { now, next: None }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    /// True if so much time has passed since then.
    pub(super) fn has_passed(&mut self, since: Timestamp, wait: Duration) -> bool {
        let end = since.micros().saturating_add(micros(wait));
        let has_passed = end <= self.now.micros();
        if !has_passed {
            self.next = Some(self.next.map_or(end, |next| next.min(end)));
        }
        has_passed
    }

    /// The earliest time at which something may change.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.next.map(Timestamp::from_micros)
    }
}

/// A window of a policy at a time. A point is in it if it is later than the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    length: Duration,
    /// Microseconds; may lie before the calendar begins.
    start: i64,
}

impl Window {
    fn new(length: Duration, now: Timestamp) -> Self {
        Self {
            length,
            start: now.micros().saturating_sub(micros(length)),
        }
    }

    pub(super) fn has(&self, time: Timestamp) -> bool {
        time.micros() > self.start
    }

    /// True if its start has reached a time.
    pub(super) fn has_passed(&self, time: Timestamp, clock: &mut Clock) -> bool {
        clock.has_passed(time, self.length)
    }
}

/// A policy at a time.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    /// Every point in it is kept: those of the future are in it even if it was not given.
    pub(super) all: Window,
    pub(super) hourly: Option<Window>,
    pub(super) daily: Option<Window>,
    /// Those that the policy has.
    pub(super) given: Vec<Window>,
    /// What lies before it is in no window.
    pub(super) longest: Window,
}

impl Windows {
    pub(super) fn new(policy: &Retention, now: Timestamp) -> Self {
        let window = |length| Window::new(length, now);
        let given = [policy.all, policy.hourly, policy.daily];
        let longest = given.into_iter().flatten().max();
        Self {
            all: window(policy.all.unwrap_or_default()),
            hourly: policy.hourly.map(window),
            daily: policy.daily.map(window),
            given: given.into_iter().flatten().map(window).collect(),
            longest: window(longest.unwrap_or_default()),
        }
    }
}

/// As many as fit: 292,000 years.
fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
