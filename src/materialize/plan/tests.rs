use super::*;
use crate::storage::cover::{Span, cover};

fn txid(number: u64) -> Txid {
    Txid::new(number).unwrap()
}

/// A generation as words: `snap@10` (`/1` after it: since 1; `!`: incomplete), `seg@11-15`
/// (`seg2@..`: level 2), `mark@12`, `bad@16-20`, `badsnap@16`.
fn shape(words: &str) -> (Shape, Vec<String>) {
    let mut shape = Shape::default();
    let mut segments: Vec<(Span, String)> = Vec::new();
    for word in words.split_whitespace() {
        let (kind, place) = word.split_once('@').unwrap();
        let number = |text: &str| txid(text.trim_end_matches('!').parse().unwrap());
        match kind {
            "snap" => {
                let (at, since) = place.split_once('/').unwrap_or((place, place));
                shape.snapshots.push(Base {
                    txid: number(at),
                    since: number(since),
                    is_complete: !place.ends_with('!'),
                });
            }
            "mark" => shape.marks.push(number(place)),
            "bad" => {
                let (first, last) = place.split_once('-').unwrap();
                shape.unreadable.push((number(first), number(last)));
            }
            "badsnap" => shape.unreadable_snapshots.push(number(place)),
            _ => {
                let (first, last) = place.split_once('-').unwrap();
                let span = Span {
                    level: kind["seg".len()..].parse().unwrap_or(0),
                    first: number(first),
                    last: number(last),
                };
                segments.push((span, word.to_owned()));
            }
        }
    }
    let spans: Vec<Span> = segments.iter().map(|(span, _)| *span).collect();
    shape.pieces = cover(&spans);
    (shape, segments.into_iter().map(|(_, word)| word).collect())
}

fn why(why: Why) -> String {
    match why {
        Why::Missing(txid) => format!("txid {} is missing", txid.get()),
        Why::SnapshotMissing(txid) => format!("the snapshot at {} is missing", txid.get()),
        Why::Removed(txid) => format!("txid {} was removed", txid.get()),
    }
}

#[track_caller]
fn check(objects: &str, point: u64, expect: &str) {
    let (shape, names) = shape(objects);
    let said = match reach(&shape).plan(&shape, txid(point)) {
        Ok(plan) => {
            let mut said = format!("snap@{}", shape.snapshots[plan.base].txid.get());
            for piece in &shape.pieces[plan.pieces] {
                said += &format!(" {}", names[piece.index]);
            }
            format!("{said} to {point}")
        }
        Err(Unplanned::Broken(found)) if found.is_gap() => format!("gone: {}", why(found.why)),
        Err(Unplanned::Broken(found)) => format!("corrupt: {}", why(found.why)),
        Err(Unplanned::Before(Some(first))) => format!("before {}", first.get()),
        Err(Unplanned::Before(None)) => "nothing".to_owned(),
        Err(Unplanned::After(last)) => format!("after {}", last.get()),
    };
    assert_eq!(said, expect);
}

#[test]
fn a_plan_is_the_last_snapshot_and_the_segments_after_it() {
    check("snap@10 seg@11-15 snap@16", 14, "snap@10 seg@11-15 to 14");
    check("snap@10 seg@11-15 snap@16", 10, "snap@10 to 10");
    check("snap@1 seg@2-5 seg@6-9", 9, "snap@1 seg@2-5 seg@6-9 to 9");
    check("snap@1 seg@2-5 seg@6-9", 5, "snap@1 seg@2-5 to 5");
    check("snap@1 seg@2-5 snap@5 seg@6-9", 7, "snap@5 seg@6-9 to 7");
}

#[test]
fn a_gap_is_an_error_and_names_the_missing_txid() {
    check("snap@10 seg@12-15", 14, "corrupt: txid 11 is missing");
    check("snap@1 seg@2-5 seg@7-9", 8, "corrupt: txid 6 is missing");
    check("snap@1 seg@2-5 seg@7-9", 5, "snap@1 seg@2-5 to 5");
    check("snap@1 seg@2-5 seg@7-9 snap@9", 9, "snap@9 to 9");
    check("snap@1 seg@2-5 bad@6-9", 6, "corrupt: txid 6 is missing");
}

#[test]
fn a_gap_of_which_nothing_is_listed_before_a_later_snapshot_is_what_retention_leaves() {
    check("snap@1 seg@2-5 snap@9", 5, "snap@1 seg@2-5 to 5");
    check("snap@1 seg@2-5 snap@9", 7, "gone: txid 6 was removed");
    check("snap@1 snap@5 snap@9", 3, "gone: txid 2 was removed");
    check("snap@7/1 snap@9", 8, "gone: txid 2 was removed");
    check("snap@7/1 seg@8-9 snap@9", 8, "corrupt: txid 2 is missing");
    check(
        "snap@1 seg@2-5 seg@7-8 snap@9",
        7,
        "corrupt: txid 6 is missing",
    );
    check(
        "snap@1 seg@2-5 seg@7-8 snap@9",
        6,
        "corrupt: txid 6 is missing",
    );
    check(
        "snap@1 seg@2-5 snap@9 seg@9-12",
        7,
        "gone: txid 6 was removed",
    );
    check(
        "snap@1 seg@2-5 bad@4-7 snap@9",
        8,
        "corrupt: txid 6 is missing",
    );
    check(
        "snap@1 seg@2-5 badsnap@7 snap@9",
        8,
        "corrupt: txid 6 is missing",
    );
    check(
        "snap@1 seg@2-5 snap@7! snap@9",
        8,
        "corrupt: txid 6 is missing",
    );
    check("snap@5 seg@6-9", 3, "before 5");
    check("seg@2-4 snap@5 seg@6-9", 3, "before 5");
}

#[test]
fn only_what_retention_did_not_leave_stands_between_a_point_and_the_next() {
    let (shape, _) = shape("snap@1 seg@2-5 snap@9/8 seg@12-13 snap@20");
    let reach = reach(&shape);
    let between = |after, through: Option<u64>| {
        let found = reach.break_between(txid(after), through.map(txid));
        found.map(|found| why(found.why))
    };
    assert_eq!(between(5, Some(8)), None);
    assert_eq!(between(5, Some(20)), Some("txid 9 is missing".to_owned()));
    assert_eq!(between(5, None), Some("txid 9 is missing".to_owned()));
    assert_eq!(between(9, Some(20)), None);
}

#[test]
fn a_point_outside_the_history_is_not_there() {
    check("snap@10 seg@11-15", 9, "before 10");
    check("snap@10 seg@11-15", 16, "after 15");
    check("seg@2-15", 9, "nothing");
    check("", 1, "nothing");
}

#[test]
fn an_incomplete_snapshot_is_no_base() {
    check(
        "snap@1 seg@2-5 snap@5! seg@6-9",
        7,
        "snap@1 seg@2-5 seg@6-9 to 7",
    );
    check("snap@1! seg@2-5", 3, "nothing");
    check("snap@1! seg@2-5 snap@5", 3, "before 5");
}

#[test]
fn a_fuzzy_snapshot_opens_from_its_txid_on_with_all_since_its_beginning() {
    check("snap@7/1 seg@2-5 seg@6-9", 7, "snap@7 seg@2-5 seg@6-9 to 7");
    check("snap@7/1 seg@2-5 seg@6-9", 6, "before 7");
    check("snap@7/1 seg@3-9", 8, "corrupt: txid 2 is missing");
    check("snap@7/1 seg@2-5", 7, "nothing");
    check("snap@7/1 seg@2-5 seg@7-7", 7, "corrupt: txid 6 is missing");
}

#[test]
fn no_plan_crosses_a_transaction_that_lies_in_a_snapshot() {
    let objects = "snap@1 seg@2-5 seg@6-6 mark@6 snap@6 seg@7-9";
    check(objects, 5, "snap@1 seg@2-5 to 5");
    check(objects, 6, "snap@6 to 6");
    check(objects, 8, "snap@6 seg@7-9 to 8");
    let without = "snap@1 seg@2-5 seg@6-6 mark@6 snap@6! seg@7-9";
    check(without, 6, "corrupt: the snapshot at 6 is missing");
    check(without, 8, "corrupt: the snapshot at 6 is missing");
    let coming = "snap@1 seg@2-5 seg@6-6 mark@6";
    check(coming, 5, "snap@1 seg@2-5 to 5");
    check(coming, 6, "after 5");
    let later = "snap@1 seg@2-5 seg@6-6 mark@6 seg@7-9 snap@8";
    check(later, 7, "corrupt: the snapshot at 6 is missing");
    check(later, 9, "snap@8 seg@7-9 to 9");
}

#[test]
fn of_two_segments_the_higher_level_is_taken_then_the_one_that_ends_later() {
    check("snap@1 seg@2-5 seg1@2-9 seg@6-9", 7, "snap@1 seg1@2-9 to 7");
    check("snap@1 seg1@2-9 seg2@2-9", 7, "snap@1 seg2@2-9 to 7");
    check("snap@1 seg1@2-9 seg1@2-20", 7, "snap@1 seg1@2-20 to 7");
    check(
        "snap@1 seg1@2-9 seg1@5-12",
        11,
        "snap@1 seg1@2-9 seg1@5-12 to 11",
    );
    check(
        "snap@1 seg@2-20 seg1@5-9",
        15,
        "snap@1 seg@2-20 seg1@5-9 seg@2-20 to 15",
    );
}

#[test]
fn two_snapshots_at_one_txid_are_one_base() {
    check("snap@1 snap@1 seg@2-5", 1, "snap@1 to 1");
    check("snap@1 seg@2-5 snap@5 snap@5", 5, "snap@5 to 5");
    // No transaction lies in two stretches: each would be listed as a point twice.
    let (shape, _) = shape("snap@1 snap@1 seg@2-5");
    let only = Stretch {
        base: 1,
        first: txid(1),
        last: txid(5),
    };
    assert_eq!(reach(&shape).stretches, [only]);
}

/// A generation with restore points (txid, second), a parent, and a txid behind which all is
/// broken.
#[derive(Default)]
struct Words {
    id: u32,
    parent: Option<Parent>,
    points: Vec<(u64, i64)>,
    broken_at: Option<u64>,
}

fn generation(ordinal: u32) -> GenerationId {
    GenerationId { ordinal, random: 7 }
}

impl Line for Words {
    fn exists(&self) -> bool {
        !self.points.is_empty()
    }
    fn parent(&self) -> Result<Option<Parent>> {
        Ok(self.parent)
    }
    fn first(&self) -> Option<RestorePoint> {
        self.points.first().map(|&point| self.point(point))
    }
    fn at(&self, time: Timestamp, limit: Option<Txid>) -> Result<Option<RestorePoint>> {
        let found = self.points.iter().rev().find(|&&(t, second)| {
            second * 1_000_000 <= time.micros() && limit.is_none_or(|limit| t <= limit.get())
        });
        match (found, self.broken_at) {
            (Some(_), Some(at)) if limit.is_none_or(|limit| limit.get() >= at) => {
                Err(Error::corrupt(format!("txid {at} is missing")))
            }
            _ => Ok(found.map(|&point| self.point(point))),
        }
    }
}

impl Words {
    fn point(&self, (number, second): (u64, i64)) -> RestorePoint {
        RestorePoint {
            generation: generation(self.id),
            txid: txid(number),
            time: Timestamp::from_micros(second * 1_000_000),
            pages: 1,
        }
    }
}

/// Generations as words: `1: 1@10 2@20 3@30` and `2<1/2: 1@25 2@35` (its parent is 1, which it
/// shares up to txid 2); `!4` breaks a generation at txid 4.
fn lines(text: &[&str]) -> BTreeMap<GenerationId, Words> {
    let parse = |text: &str| text.parse::<u64>().unwrap();
    let line = |text: &&str| {
        let (name, points) = text.split_once(':').unwrap();
        let (id, parent) = name.split_once('<').unwrap_or((name, ""));
        let mut line = Words {
            id: parse(id) as u32,
            parent: parent.split_once('/').map(|(parent, shared)| Parent {
                generation: generation(parse(parent) as u32),
                txid: txid(parse(shared)),
            }),
            ..Words::default()
        };
        for word in points.split_whitespace() {
            match word.split_once('@') {
                Some((t, second)) => line.points.push((parse(t), parse(second) as i64)),
                None => line.broken_at = word.strip_prefix('!').map(parse),
            }
        }
        (generation(line.id), line)
    };
    text.iter().map(line).collect()
}

#[track_caller]
fn means(text: &[&str], second: i64, expect: &str) {
    let time = Timestamp::from_micros(second * 1_000_000);
    let said = match resolve_at(&lines(text), time) {
        Ok(point) => format!("{}/{}", point.generation.ordinal, point.txid.get()),
        Err(error) => error.to_string(),
    };
    assert_eq!(said, expect);
}

#[test]
fn a_time_means_the_last_commit_at_or_before_it() {
    let one = ["1: 1@10 2@20 3@30"];
    means(&one, 20, "1/2");
    means(&one, 29, "1/2");
    means(&one, 99, "1/3");
    let before = "1970-01-01T00:00:09.000000Z lies before the history, which begins at \
                  1970-01-01T00:00:10.000000Z";
    means(&one, 9, before);
}

#[test]
fn a_time_before_the_first_point_of_a_generation_goes_to_its_parent() {
    let two = ["1: 1@10 2@20 3@30", "2<1/3: 1@40 2@50"];
    means(&two, 39, "1/3");
    means(&two, 40, "2/1");
    means(&two, 15, "1/1");
}

#[test]
fn what_the_parent_did_after_the_shared_txid_is_not_in_the_past_of_the_child() {
    let fork = ["1: 1@10 2@20 3@30 4@45", "2<1/2: 1@40 2@50"];
    means(&fork, 35, "1/2");
    means(&fork, 60, "2/2");
}

#[test]
fn the_parent_is_the_one_that_the_claim_names_and_not_the_one_listed_before() {
    let clone = ["1: 1@10 2@20", "2<1/1: 1@30 2@60", "3<1/2: 1@40"];
    means(&clone, 35, "1/2");
    means(&clone, 100, "3/1");
}

#[test]
fn a_generation_without_a_snapshot_does_not_exist_for_readers() {
    means(&["1: 1@10 2@20", "2<1/2:"], 30, "1/2");
    means(&["1: 1@10 2@20", "2<1/1:", "3<2/1: 1@40"], 30, "1/1");
    means(&["1:"], 30, "no generation has a complete snapshot yet");
    means(&[], 30, "the replica is empty");
}

#[test]
fn a_break_is_an_error_only_where_the_answer_may_lie_in_it() {
    let broken = ["1: 1@10 2@20 !3", "2<1/2: 1@40"];
    means(&broken, 30, "1/2");
    means(&["1: 1@10 2@20 !3"], 30, "txid 3 is missing");
}

#[test]
fn claims_that_name_each_other_end_in_an_error() {
    let circle = ["1<2/1: 1@10", "2<1/1: 1@20"];
    let before = "1970-01-01T00:00:05.000000Z lies before the history, which begins at \
                  1970-01-01T00:00:10.000000Z";
    means(&circle, 5, before);
}

#[test]
fn a_sample_holds_the_newest_and_few_others() {
    assert_eq!(sample(70, 32), [69, 37, 5]);
    assert_eq!(sample(3, 1), [2, 1, 0]);
    assert_eq!(sample(0, 32), [0_usize; 0]);
}
