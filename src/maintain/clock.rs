//! What time it is for deletions: a clock that is wrong must not make everything old. Pure.

use crate::format::ids::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Clock and store may differ by so much.
const APART: Duration = Duration::from_secs(300);
/// A clock may advance by so much more than the time since boot.
const JUMP: Duration = Duration::from_secs(3600);
/// After such a jump nothing is deleted for so long.
const HOLD: Duration = Duration::from_secs(24 * 3600);
/// A machine may be switched off for so long: then a jump does not begin the wait anew.
const AWAY: Duration = Duration::from_secs(3 * 24 * 3600);

/// What the clocks of this machine said at the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastLook {
    clock: Timestamp,
    uptime: Duration,
    /// For so long nothing is deleted, by the time since boot.
    hold: Duration,
}

/// The time, or why nobody can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Now {
    /// It is this time, or later.
    At(Timestamp),
    /// Nothing may be deleted: a sentence says why.
    Unknown(String),
}

/// What time it is, by the clock of this machine, its time since boot (sleep included), and the
/// clock of the store if it has one; and what to remember.
pub fn judge(
    last: Option<LastLook>,
    clock: Timestamp,
    uptime: Duration,
    store: Option<Timestamp>,
) -> (Now, LastLook) {
    let mut look = LastLook {
        clock,
        uptime,
        hold: Duration::ZERO,
    };
    if let Some(store) = store {
        let apart = Duration::from_micros(clock.micros().abs_diff(store.micros()));
        let now = match apart > APART {
            false => Now::At(clock.min(store)),
            true => Now::Unknown(format!(
                "nothing is deleted: the clock says {clock} and the store {store}"
            )),
        };
        return (now, look);
    }
    let Some(last) = last else {
        return (Now::At(clock), look);
    };
    // After a reboot the time since boot is the least that passed.
    let since = uptime.checked_sub(last.uptime);
    let passed = since.unwrap_or(uptime);
    let advanced = clock.micros().saturating_sub(last.clock.micros()).max(0);
    let jump = Duration::from_micros(advanced.unsigned_abs()).saturating_sub(passed);
    // A machine that is switched off each night would hold for ever if each start began anew.
    let goes_on = since.is_none() && jump < AWAY && !last.hold.is_zero();
    look.hold = match jump > JUMP && !goes_on {
        true => HOLD,
        false => last.hold.saturating_sub(passed),
    };
    let now = match look.hold.is_zero() {
        true => Now::At(clock),
        false => Now::Unknown(format!(
            "nothing is deleted for {} h: the clock advanced by {} h more than this machine ran",
            look.hold.as_secs().div_ceil(3600),
            jump.max(JUMP).as_secs() / 3600
        )),
    };
    (now, look)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;

    /// Looks at hours: clock, time since boot, store; whether the time is known.
    #[track_caller]
    fn check(looks: &[(i64, u64, Option<i64>, bool)]) {
        let mut last = None;
        for (index, &(clock, uptime, store, expect)) in looks.iter().enumerate() {
            let at = |hours: i64| Timestamp::from_micros(hours * HOUR);
            let uptime = Duration::from_secs(uptime * 3600);
            let (now, look) = judge(last, at(clock), uptime, store.map(at));
            assert_eq!(matches!(now, Now::At(_)), expect, "look {index}: {now:?}");
            last = Some(look);
        }
    }

    #[test]
    fn a_clock_that_the_store_contradicts_says_nothing() {
        check(&[
            (5, 1, Some(5), true),
            (9, 2, Some(6), false),
            (3, 3, Some(7), false),
        ]);
    }

    #[test]
    fn the_older_of_clock_and_store_counts() {
        let at = Timestamp::from_micros;
        let (now, _) = judge(None, at(HOUR + 1), Duration::ZERO, Some(at(HOUR)));
        assert_eq!(now, Now::At(at(HOUR)));
    }

    #[test]
    fn without_a_clock_of_the_store_a_jump_stops_deletions_for_a_day() {
        check(&[(5, 1, None, true), (6, 2, None, true), (8, 3, None, true)]);
        check(&[
            (5, 1, None, true),
            (99, 2, None, false),
            (100, 3, None, false),
            (122, 25, None, false),
            (123, 26, None, true),
        ]);
    }

    #[test]
    fn a_reboot_counts_as_the_time_since_it() {
        check(&[(5, 90, None, true), (7, 1, None, true)]);
        check(&[(5, 90, None, true), (9, 1, None, false)]);
    }

    #[test]
    fn a_machine_that_is_switched_off_each_night_holds_for_a_day_that_it_runs() {
        // Twelve hours on, twelve off.
        check(&[
            (8, 1, None, true),
            (20, 13, None, true),
            (32, 1, None, false),
            (44, 13, None, false),
            (56, 1, None, false),
            (68, 13, None, true),
            (80, 1, None, false),
        ]);
        // Or its clock is wrong.
        check(&[
            (5, 90, None, true),
            (20, 1, None, false),
            (20 + 24 * 365, 1, None, false),
            (44 + 24 * 365, 24, None, false),
        ]);
    }

    #[test]
    fn a_clock_that_was_set_back_only_makes_things_younger() {
        check(&[(50, 1, None, true), (5, 2, None, true)]);
    }
}
