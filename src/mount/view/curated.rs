//! Which restore points a directory shows: few enough for `ls`, and dense where people look. Pure.

use crate::format::ids::Timestamp;

/// The newest ones are listed whatever their times are.
const NEWEST: usize = 100;

const MINUTE: i64 = 60 * 1_000_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// How long before the newest restore point the last one of each unit is listed, in microseconds.
const DENSITIES: [(i64, i64); 3] = [(HOUR, MINUTE), (30 * DAY, HOUR), (i64::MAX, DAY)];

/// The indexes of those listed of `count` restore points, ascending: the newest hundred, then the
/// last of each minute for an hour, of each hour for 30 days, and of each day, by UTC and counted
/// back from the newest one. `time` ascends; `before` says how many lie before a time.
pub(super) fn curated(
    count: usize,
    time: impl Fn(usize) -> Timestamp,
    before: impl Fn(Timestamp) -> usize,
) -> Vec<usize> {
    let mut listed: Vec<usize> = (count.saturating_sub(NEWEST)..count).rev().collect();
    let Some(newest) = count.checked_sub(1).map(&time) else {
        return listed;
    };
    while let Some(&last) = listed.last() {
        let at = time(last);
        let age = newest.micros().saturating_sub(at.micros());
        let density = DENSITIES.iter().find(|(until, _)| age < *until);
        let unit = density.map_or(DAY, |(_, unit)| *unit);
        let start = at.micros() - at.micros().rem_euclid(unit);
        // What is stored may say that times go back, or that one is the first there can be.
        match before(Timestamp::from_micros(start)).min(last) {
            0 => break,
            count => listed.push(count - 1),
        }
    }
    listed.reverse();
    listed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The seconds before the newest of those listed, the newest first.
    fn listed(ages: &[i64]) -> Vec<i64> {
        // 2026-11-20T12:00:00Z: minutes, hours and days begin at whole ages.
        let newest = 1_795_176_000;
        let mut times: Vec<i64> = ages.iter().map(|age| newest - age).collect();
        times.sort_unstable();
        let time = |at: usize| Timestamp::from_micros(times[at] * 1_000_000);
        let before = |limit| times.partition_point(|at| *at * 1_000_000 < Timestamp::micros(limit));
        let shown = curated(times.len(), time, before);
        shown.iter().rev().map(|&at| newest - times[at]).collect()
    }

    #[test]
    fn the_newest_hundred_are_listed_however_close_they_are() {
        let ages: Vec<i64> = (0..100).collect();
        assert_eq!(listed(&ages), ages);
        assert_eq!(listed(&[]), [0; 0]);
    }

    #[test]
    fn times_that_do_not_ascend_end_the_list() {
        let at = |_| Timestamp::from_micros(0);
        assert_eq!(curated(3, at, |_| 1), [0, 1, 2]);
        let at = |place: usize| Timestamp::from_micros([0, 7 * DAY, -DAY][place / 100]);
        let shown = curated(300, at, |_| 300);
        assert_eq!(shown.len(), 300);
    }

    #[test]
    fn before_them_one_a_minute_then_one_an_hour_then_one_a_day() {
        let second_by_second: Vec<i64> = (0..3 * 86_400).collect();
        let shown = listed(&second_by_second);
        let (newest, rest) = shown.split_at(100);
        assert_eq!(newest, &second_by_second[..100]);
        // 99 s ago is in the minute that began 120 s ago; the minute before ended 121 s ago.
        let minutes: Vec<i64> = (2..=60).map(|minute| minute * 60 + 1).collect();
        assert_eq!(rest[..59], minutes);
        let hours: Vec<i64> = (2..72).map(|hour| hour * 3600 + 1).collect();
        assert_eq!(rest[59..], hours);
        let half_hours: Vec<i64> = (0..90 * 48).map(|half| half * 1800).collect();
        let shown = listed(&half_hours);
        let days = shown.iter().filter(|age| **age > 31 * 86_400).count();
        assert_eq!(days, 59, "{shown:?}");
    }

    proptest! {
        #[test]
        fn each_listed_one_is_the_last_of_its_unit_and_each_unit_has_one(
            mut ages in prop::collection::vec(0_i64..40 * 86_400, 0..400),
        ) {
            ages.push(0);
            ages.sort_unstable();
            ages.dedup();
            let shown = listed(&ages);
            prop_assert!(shown.is_sorted());
            prop_assert_eq!(&shown[..ages.len().min(100)], &ages[..ages.len().min(100)]);
            for pair in shown[ages.len().clamp(1, 100) - 1..].windows(2) {
                let unit = match pair[0] {
                    ..3600 => 60,
                    3600..2_592_000 => 3600,
                    _ => 86_400,
                };
                // Epoch seconds of the newest are a multiple of an hour, and noon.
                let of = |age: i64| (43_200 - age).div_euclid(unit);
                prop_assert!(of(pair[1]) < of(pair[0]), "{} and {}", pair[0], pair[1]);
                let between = ages.iter().filter(|age| pair[0] < **age && **age < pair[1]);
                for age in between {
                    prop_assert_eq!(of(*age), of(pair[0]));
                }
            }
        }
    }
}
