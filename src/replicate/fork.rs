//! How a generation begins that goes on from a stored commit of our past. Pure.
//!
//! If the spool holds every commit behind that one, the generation is a *fork*: it starts from the
//! state of the shared commit, which the replica has already, and all that the spool holds follows,
//! each commit at its own time. Its first snapshot is made of what the parent has stored; no page
//! of the database is read. Else it starts from the database as it is now, and what was committed
//! in between has no restore point of its own.

use crate::format::ids::{Timestamp, Txid, WalEnd};
use crate::replicate::decide::clock_stepped_back;
use crate::replicate::writers::Place;
use crate::storage::cover::{Span, cover};
use std::ops::RangeInclusive;

/// What the spool has behind a commit, of the run that the commit belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// The next commit, which was made then.
    Commit(Timestamp),
    /// No commit: none came yet, or the run ended there.
    Nothing,
    /// What came next was dropped, or cannot be read any more.
    Lost,
}

/// What a spool holds, as a fork needs to know it.
#[derive(Clone, Debug)]
pub struct Holds {
    /// The number and the token of each run, ascending; the last one goes on.
    pub runs: Vec<(u64, u64)>,
    /// The last commit of the last one.
    pub tip: u64,
    /// What it has behind the commit from which the generation is to go on.
    pub behind: Behind,
}

/// When a fork from this place starts, which is the time of its txid 1; `None` if the generation
/// has to start from the database as it is `now`. A run that ended may be forked as long as the
/// spool has something of it: that is stored nowhere else.
pub fn fork_starts(place: &Place, holds: &Holds, now: Timestamp) -> Option<Timestamp> {
    let is_last = holds.runs.last() == Some(&place.run);
    let next = match holds.behind {
        Behind::Commit(time) if holds.runs.contains(&place.run) => time,
        Behind::Nothing if is_last && holds.tip == place.seq => now,
        _ => return None,
    };
    // Commits keep their own times, unless those lie so far behind that they begin anew.
    Some(match clock_stepped_back(next, place.time) {
        true => Timestamp::from_micros(next.micros() - 1),
        false => Timestamp::from_micros(place.time.micros() + 1),
    })
}

/// Which of these segments of one generation lead from a snapshot's `since` to a transaction, and
/// what of each counts; as readers choose among them. `None` if something is missing.
pub(crate) fn segments_between(
    since: Txid,
    through: Txid,
    segments: &[Span],
) -> Option<Vec<(usize, RangeInclusive<Txid>)>> {
    let mut next = since.next();
    let mut chosen = Vec::new();
    for piece in cover(segments) {
        let counts = piece.from.max(since.next())..=piece.to.min(through);
        if counts.is_empty() {
            continue;
        }
        if *counts.start() != next {
            return None;
        }
        next = counts.end().next();
        chosen.push((piece.index, counts));
    }
    (next == through.next()).then_some(chosen)
}

/// Whether what is stored of a state is ours, given where SQLite's WAL stood there: as we know it,
/// and as the object says that ends with it, if one does. A store that overwrites may hold another
/// writer's commits in the place of ours: there nobody can tell of a part of an object.
pub fn is_ours(known: WalEnd, stored: Option<WalEnd>, is_fenced: bool) -> bool {
    match stored {
        // Only the state that a generation starts from has an empty WAL: nobody overwrites that.
        Some(stored) => stored == known || stored.frame == 0 || known.frame == 0,
        None => is_fenced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::container::Parent;
    use crate::format::ids::GenerationId;

    const HOUR: i64 = 3_600_000_000;
    /// The time of the shared commit, microseconds.
    const SHARED: i64 = 50 * HOUR;
    const NOW: i64 = SHARED + 1000;

    fn time(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    /// When a fork behind commit 20 of run 3 starts, counted from the time of that commit.
    #[track_caller]
    fn check(runs: &[(u64, u64)], tip: u64, behind: Behind, now: i64, expect: Option<i64>) {
        let place = Place {
            parent: Parent {
                generation: GenerationId {
                    ordinal: 1,
                    random: 2,
                },
                txid: Txid::FIRST,
            },
            time: time(SHARED),
            run: (3, 7),
            seq: 20,
            end: WalEnd::default(),
        };
        let holds = Holds {
            runs: runs.to_vec(),
            tip,
            behind,
        };
        let starts = fork_starts(&place, &holds, time(now));
        assert_eq!(starts.map(|at| at.micros() - SHARED), expect);
    }

    fn at(after: i64) -> Behind {
        Behind::Commit(time(SHARED + after))
    }

    #[test]
    fn a_fork_needs_all_that_came_behind_the_shared_commit() {
        check(&[(3, 7)], 25, at(500), NOW, Some(1));
        check(&[(3, 7)], 25, Behind::Lost, NOW, None);
        check(&[(3, 7)], 20, Behind::Nothing, NOW, Some(1));
        // The disk has lost what is stored.
        check(&[(3, 7)], 19, Behind::Nothing, NOW, None);
    }

    #[test]
    fn behind_the_end_of_a_run_nobody_knows_what_was_committed() {
        check(&[(3, 7), (4, 9)], 30, Behind::Nothing, NOW, None);
        check(&[(4, 9)], 20, Behind::Nothing, NOW, None);
        // What the spool still holds of it is stored nowhere else.
        check(&[(3, 7), (4, 9)], 30, at(500), NOW, Some(1));
    }

    #[test]
    fn a_run_of_the_same_number_in_another_spool_is_not_forked() {
        check(&[(3, 8)], 25, at(500), NOW, None);
        check(&[(3, 8)], 20, Behind::Nothing, NOW, None);
    }

    #[test]
    fn times_go_on_behind_the_shared_commit_unless_they_begin_anew() {
        check(&[(3, 7)], 25, at(1), NOW, Some(1));
        // The other daemon's clock was ahead of ours.
        check(&[(3, 7)], 25, at(-HOUR), NOW, Some(1));
        check(&[(3, 7)], 25, at(-HOUR - 1), NOW, Some(-HOUR - 2));
        let long_ago = SHARED - 2 * HOUR;
        check(
            &[(3, 7)],
            20,
            Behind::Nothing,
            long_ago,
            Some(-2 * HOUR - 1),
        );
        // What the clock says now does not matter to what was committed before.
        check(&[(3, 7)], 25, at(1), long_ago, Some(1));
    }

    #[test]
    fn where_a_store_overwrites_only_the_end_of_the_wal_says_whose_a_state_is() {
        let end = |frame| WalEnd {
            frame,
            ..WalEnd::default()
        };
        for (known, stored, fenced, careless) in [
            (end(5), Some(end(5)), true, true),
            (end(5), Some(end(6)), false, false),
            (end(5), Some(end(0)), true, true),
            (end(0), Some(end(6)), true, true),
            (end(5), None, true, false),
        ] {
            assert_eq!(is_ours(known, stored, true), fenced, "{known:?} {stored:?}");
            assert_eq!(
                is_ours(known, stored, false),
                careless,
                "{known:?} {stored:?}"
            );
        }
    }

    /// Segments as `2-4` or, merged, `m2-8`.
    #[track_caller]
    fn check_segments(since: u64, through: u64, segments: &str, expect: &str) {
        let txid = |number: u64| Txid::new(number).unwrap();
        let span = |text: &str| {
            let (first, last) = text.trim_start_matches('m').split_once('-').unwrap();
            Span {
                level: u8::from(text.starts_with('m')),
                first: txid(first.parse().unwrap()),
                last: txid(last.parse().unwrap()),
            }
        };
        let names: Vec<&str> = segments.split_whitespace().collect();
        let spans: Vec<Span> = names.iter().copied().map(span).collect();
        let chosen = segments_between(txid(since), txid(through), &spans);
        let explained = chosen.map_or("missing".to_owned(), |chosen| {
            let each = chosen.into_iter().map(|(index, counts)| {
                let (from, to) = (counts.start().get(), counts.end().get());
                format!("{}[{from}-{to}]", names[index])
            });
            each.collect::<Vec<_>>().join(" ")
        });
        assert_eq!(explained, expect);
    }

    #[test]
    fn the_segments_of_a_fork_end_with_the_shared_transaction() {
        check_segments(1, 6, "2-4 5-6 7-9", "2-4[2-4] 5-6[5-6]");
        check_segments(1, 8, "m2-9 10-12", "m2-9[2-8]");
        check_segments(3, 6, "2-4 5-6", "2-4[4-4] 5-6[5-6]");
        check_segments(1, 9, "2-4 m3-6 5-9", "2-4[2-2] m3-6[3-6] 5-9[7-9]");
        check_segments(6, 6, "2-4 5-6 7-9", "");
        check_segments(6, 6, "", "");
    }

    #[test]
    fn a_gap_leaves_nothing_to_fork_from() {
        check_segments(1, 6, "2-4 6-9", "missing");
        check_segments(1, 6, "3-9", "missing");
        check_segments(1, 6, "2-5", "missing");
        check_segments(1, 6, "", "missing");
    }
}
