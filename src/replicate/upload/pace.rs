//! When what waits is sent. Pure.

use crate::replicate::spool::Tip;
use std::time::Duration;
use tokio::time::Instant;

/// Raw frames that are sent at once without waiting for the interval, and that a busy database
/// gathers for one put.
const GATHERED_BYTES: u64 = 1 << 20;

/// How many commits wait, and since when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) since: Instant,
    /// `Tip::bytes` when nothing waited.
    pub(super) bytes_before: u64,
}

/// Up to where it is sent, and what hurries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// The run that the generation follows.
    pub(super) run: u64,
    /// The last commit of it that is stored.
    pub(super) seq: u64,
    /// Everything up to this one is to be sent at once.
    pub(super) urgent: u64,
}

impl Waiting {
    /// When what waits is to be sent: at once (a time in the past) or at some time.
    pub(super) fn due(&self, tip: &Tip, sent: &Sent, interval: Duration) -> Instant {
        let is_full = tip.bytes.saturating_sub(self.bytes_before) >= GATHERED_BYTES;
        if is_full || sent.urgent > sent.seq || tip.run != sent.run {
            self.since
        } else {
            self.since + interval
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    /// How long after the first waiting commit it is sent, in milliseconds.
    #[track_caller]
    fn check(waiting_bytes: u64, urgent: u64, tip_run: u64, expect_ms: u64) {
        let since = Instant::now();
        let waiting = Waiting {
            since,
            bytes_before: 1000,
        };
        let tip = Tip {
            run: tip_run,
            seq: 8,
            bytes: 1000 + waiting_bytes,
        };
        let sent = Sent {
            run: 1,
            seq: 7,
            urgent,
        };
        let due = waiting.due(&tip, &sent, INTERVAL);
        assert_eq!(due - since, Duration::from_millis(expect_ms));
    }

    #[test]
    fn a_quiet_database_waits_for_company_and_a_busy_one_does_not() {
        check(4096, 0, 1, 1000);
        check(1 << 20, 0, 1, 0);
    }

    #[test]
    fn a_sync_sends_at_once_but_only_what_it_asks_for() {
        check(4096, 8, 1, 0);
        check(4096, 7, 1, 1000);
    }

    #[test]
    fn what_a_run_left_behind_is_sent_at_once() {
        check(4096, 0, 2, 0);
    }
}
