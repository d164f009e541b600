//! What a daemon asks of a store in a day, estimated from when commits came. Pure.

use crate::format::ids::Timestamp;
use crate::maintain::rules::{UPLOADS, UPLOADS_AGE, UPLOADS_MIN, later};
use std::time::Duration;

/// What a PUT or a LIST costs on S3, standard class, US dollars.
const PUT_USD: f64 = 0.005 / 1000.0;
/// What a GET costs there.
const GET_USD: f64 = 0.0004 / 1000.0;
/// What a GiB costs there in a month.
const GIB_MONTH_USD: f64 = 0.023;
const MONTH_DAYS: f64 = 30.0;

/// An uploader looks for other writers after so many uploads,
const LIST_UPLOADS: u64 = 64;
/// and after a pause of such a length.
const LIST_PAUSE: Duration = Duration::from_secs(600);
/// After uploads maintenance looks so often at least.
const CHECK_INTERVAL: Duration = Duration::from_secs(3600);
/// To merge: the output's index and its hashes are read back.
const MERGE_GETS: u64 = 2;

/// Requests of some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// That store.
    pub puts: u64,
    /// That list.
    pub lists: u64,
    /// That read.
    pub gets: u64,
}

impl Requests {
    /// What they cost in a month if they are those of a day: US dollars, on S3, standard class.
    pub fn usd_a_month(&self) -> f64 {
        let day = (self.puts + self.lists) as f64 * PUT_USD + self.gets as f64 * GET_USD;
        day * MONTH_DAYS
    }
}

/// What so many stored bytes cost in a month: US dollars, on S3, standard class.
pub fn storage_usd_a_month(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30) * GIB_MONTH_USD
}

/// The requests of a daemon that stored these commits of a day, which ascend, if the first one that
/// was not sent waited for so long each time.
pub fn of_a_day(commits: impl Iterator<Item = Timestamp>, sync_interval: Duration) -> Requests {
    let mut day = Day::default();
    let mut sent_at: Option<Timestamp> = None;
    for commit in commits {
        if sent_at.is_none_or(|at| commit >= at) {
            let at = later(commit, sync_interval.max(Duration::from_micros(1)));
            day.upload(at);
            sent_at = Some(at);
        }
    }
    if sent_at.is_some() {
        // A snapshot.
        day.requests.puts += 1;
        day.requests.lists += 2;
        day.requests.gets += 2;
    }
    day.requests
}

#[derive(Default)]
struct Day {
    requests: Requests,
    uploads: u64,
    /// Those that are not merged, and when the oldest came.
    waiting: usize,
    oldest: Option<Timestamp>,
    last: Option<Timestamp>,
    looked: Option<Timestamp>,
    /// Merges of uploads.
    merges: u64,
}

impl Day {
    fn upload(&mut self, at: Timestamp) {
        self.merge_if_due(at);
        self.uploads += 1;
        self.waiting += 1;
        self.oldest = self.oldest.or(Some(at));
        self.requests.puts += 1;
        let paused = self.last.is_some_and(|last| later(last, LIST_PAUSE) < at);
        let looks = paused || self.uploads.is_multiple_of(LIST_UPLOADS);
        self.requests.lists += u64::from(looks);
        self.last = Some(at);
        self.merge_if_due(at);
        let looked = *self.looked.get_or_insert(at);
        if later(looked, CHECK_INTERVAL) <= at {
            self.requests.lists += 1;
            self.looked = Some(at);
        }
    }

    /// Merges if there are many, or some and the oldest is old.
    fn merge_if_due(&mut self, at: Timestamp) {
        let is_old = |oldest| later(oldest, UPLOADS_AGE) <= at;
        let is_due = self.waiting >= UPLOADS_MIN && self.oldest.is_some_and(is_old);
        if !is_due && self.waiting < UPLOADS {
            return;
        }
        (self.waiting, self.oldest, self.looked) = (0, None, Some(at));
        self.merges += 1;
        // The round begins with a look.
        self.requests.lists += 1;
        // As many bytes as came last lie before them every second time: a merge of those follows.
        let merges = 1 + u64::from(self.merges.is_multiple_of(2));
        // So does a look.
        self.requests.lists += merges;
        self.requests.puts += merges;
        self.requests.gets += merges * MERGE_GETS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commits that come at such intervals, milliseconds.
    #[track_caller]
    fn check(count: i64, apart_ms: i64, expect: (u64, u64, u64)) {
        let times = (0..count).map(|n| Timestamp::from_micros(n * apart_ms * 1000));
        let Requests { puts, lists, gets } = of_a_day(times, Duration::from_secs(1));
        assert_eq!((puts, lists, gets), expect);
    }

    #[test]
    fn a_day_without_commits_asks_for_nothing() {
        check(0, 1, (0, 0, 0));
    }

    #[test]
    fn uploads_take_what_comes_within_the_interval() {
        // One upload and the snapshot.
        check(1, 1, (2, 2, 2));
        check(100, 10, (2, 2, 2));
        check(101, 10, (3, 2, 2));
    }

    #[test]
    fn a_commit_a_second_is_an_upload_a_second_and_a_merge_a_minute() {
        // 1350 merges of uploads, and one of what came of every second.
        let merges = 1350 + 675;
        let lists = 1350 + 1350 + merges + 2;
        check(86_400, 1000, (86_400 + merges + 1, lists, 2 * merges + 2));
    }

    #[test]
    fn seldom_uploads_are_merged_eight_at_a_time() {
        // Every 20 minutes: before each the uploader looks for others, every eighth is merged with
        // those before it, and between two merges maintenance looks twice.
        let merges = 9 + 4;
        let lists = 71 + 9 + merges + 2 * 9 + 2;
        check(72, 1_200_000, (72 + merges + 1, lists, 2 * merges + 2));
    }

    #[test]
    fn a_month_costs_what_s3_asks_for() {
        let requests = Requests {
            puts: 900,
            lists: 100,
            gets: 10_000,
        };
        assert!((requests.usd_a_month() - 0.27).abs() < 1e-9);
        assert!((storage_usd_a_month(10 << 30) - 0.23).abs() < 1e-9);
    }
}
