use super::*;
use proptest::prelude::*;

fn txid(number: u64) -> Txid {
    Txid::new(number).unwrap()
}

fn seconds(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

/// Segments as words: `3x0` for three of level 0, `1x2/40M` for one of level 2 with 40 MiB, `|` for
/// a snapshot, `gap`, `mark`. Each of level 0 has one transaction, each of level n 8 to the n; each
/// was stored a second after the one before.
fn replica(words: &str) -> (Vec<Standing>, Vec<Txid>) {
    let (mut segments, mut snapshots): (Vec<Standing>, Vec<Txid>) = (Vec::new(), vec![txid(1)]);
    let mut next = 2;
    for word in words.split_whitespace() {
        match word {
            "|" => snapshots.push(txid(next - 1)),
            "gap" => next += 1,
            word => {
                let word = if word == "mark" { "1x0!" } else { word };
                let (word, size) = word.split_once('/').unwrap_or((word, "0M"));
                let (count, level) = word.trim_end_matches('!').split_once('x').unwrap();
                let level: u8 = level.parse().unwrap();
                let mib: u64 = size.trim_end_matches('M').parse().unwrap();
                for _ in 0..count.parse().unwrap() {
                    let length = 8_u64.pow(level.into());
                    segments.push(Standing {
                        level,
                        first: txid(next),
                        last: txid(next + length - 1),
                        bytes: (mib << 20).max(1000),
                        stored: seconds(segments.len() as i64),
                        stays: word.ends_with('!'),
                        points: length,
                    });
                    next += length;
                }
            }
        }
    }
    (segments, snapshots)
}

/// Of `0..64 to level 1`, or `none`.
fn explain(planned: Option<Planned>) -> String {
    planned.map_or("none".to_owned(), |planned| {
        let Range { start, end } = planned.inputs;
        format!("{start}..{end} to level {}", planned.level)
    })
}

#[track_caller]
fn check(words: &str, at: i64, expect: &str) {
    let (segments, snapshots) = replica(words);
    let planned = next_merge(&segments, &snapshots, seconds(at));
    assert_eq!(explain(planned), expect, "{words}");
}

#[test]
fn sixty_four_uploads_make_one_segment_at_once_and_eight_after_ten_minutes() {
    check("63x0", 500, "none");
    check("64x0", 64, "0..64 to level 1");
    check("100x0", 100, "0..64 to level 1");
    check("8x0", 599, "none");
    check("8x0", 600, "0..8 to level 1");
    check("7x0", 9999, "none");
}

#[test]
fn what_came_later_joins_an_older_segment_once_it_has_as_many_bytes() {
    check("1x2/4M 1x1/2M 1x1/1M 5x0/9M", 20, "none");
    check("1x2/4M 1x1/2M 2x1/1M 5x0", 20, "0..4 to level 2");
    check("1x2/5M 1x1/2M 2x1/1M 5x0", 20, "1..4 to level 2");
    check("1x2/6M 1x1/3M 2x1/1M 5x0", 20, "2..4 to level 2");
    check("1x1/5M 1x2/5M", 20, "0..2 to level 3");
    // An upload between them goes along.
    check("1x1/4M 1x0/3M 1x1/1M", 20, "0..3 to level 2");
}

#[test]
fn an_older_segment_is_not_read_again_for_a_few_transactions() {
    check("1x4/1M 1x2/2M", 20, "none");
    check("1x4/1M 1x3/2M", 20, "none");
    check("1x3/1M 2x2/2M", 20, "0..3 to level 3");
}

#[test]
fn at_rest_a_quarter_of_its_bytes_joins_an_older_segment() {
    check("1x2/8M 1x1/1M 1x1/1M 5x0", 606, "1..3 to level 2");
    check("1x2/8M 1x1/1M 1x1/1M 5x0", 607, "0..3 to level 2");
    check("1x2/8M 1x2/2M 5x0", 605, "none");
    check("1x2/8M 1x2/2M 5x0", 606, "0..2 to level 3");
    check("1x2/9M 1x2/2M 5x0", 9999, "none");
    check("1x4/8M 1x2/2M 5x0", 9999, "none");
}

#[test]
fn what_is_full_stays_while_its_stretch_grows() {
    check("8x1/10M", 9, "0..6 to level 2");
    check("8x1/40M", 9, "none");
    check("1x1/40M 8x1/1M", 9, "1..9 to level 2");
    check("7x1/1M 1x1/40M", 9, "none");
    check("1x1/30M 1x1/25M 1x1/20M", 9, "none");
}

#[test]
fn nothing_is_merged_across_a_snapshot_a_gap_or_a_mark() {
    check("40x0 | 40x0", 80, "0..40 to level 1");
    check("40x0 gap 40x0", 80, "none");
    check("40x0 mark 40x0", 80, "none");
    check("64x0 mark 40x0", 80, "0..64 to level 1");
}

#[test]
fn what_is_left_of_a_stretch_is_merged_when_a_snapshot_has_ended_it() {
    check("2x2 3x1 5x0 |", 10, "0..10 to level 2");
    check("1x3 | 2x0", 10, "none");
    check("3x1/30M |", 10, "0..2 to level 2");
    check("1x1/60M 1x1/10M 1x0/10M |", 10, "1..3 to level 1");
    check("1x1/60M 1x1/60M |", 10, "none");
    check("100x0 |", 10, "0..64 to level 1");
    check("2x0 | 64x0", 70, "2..66 to level 1");
}

#[test]
fn before_a_snapshot_the_last_stretch_is_closed_in_the_same_way() {
    let (segments, snapshots) = replica("2x0 | 1x1 5x0");
    assert_eq!(
        explain(next_closing(&segments, &snapshots)),
        "2..8 to level 1"
    );
    let (segments, snapshots) = replica("2x0 | 1x1");
    assert_eq!(explain(next_closing(&segments, &snapshots)), "none");
}

proptest! {
    #[test]
    fn merging_comes_to_rest_and_leaves_few_segments(
        uploads in 1_usize..3000,
        snapshots in prop::collection::btree_set(2_u64..3000, 0..4),
        kib in 1_u64..2000,
    ) {
        let mut segments: Vec<Standing> = Vec::new();
        let snapshots: Vec<Txid> = snapshots.into_iter().map(txid).collect();
        let mut written = vec![0_u32; uploads + 2];
        for number in 0..uploads {
            let at = txid(number as u64 + 2);
            segments.push(Standing {
                level: 0,
                first: at,
                last: at,
                bytes: kib << 10,
                stored: seconds(number as i64),
                stays: false,
                points: 1,
            });
            let seen = snapshots.partition_point(|snapshot| *snapshot <= at);
            let now = seconds(number as i64);
            while let Some(planned) = next_merge(&segments, &snapshots[..seen], now) {
                let inputs = segments[planned.inputs.clone()].to_vec();
                let (first, last) = (inputs[0], inputs[inputs.len() - 1]);
                for at in first.first.get()..=last.last.get() {
                    written[at as usize - 2] += 1;
                }
                let merged = Standing {
                    level: planned.level,
                    last: last.last,
                    // Neighbours compress.
                    bytes: inputs.iter().map(|s| s.bytes).sum::<u64>() * 2 / 3,
                    stored: now,
                    points: inputs.iter().map(|s| s.points).sum(),
                    ..first
                };
                prop_assert!(inputs.len() > 1);
                segments.splice(planned.inputs, [merged]);
            }
        }
        let all: u64 = segments.iter().map(|s| s.bytes).sum();
        // Those that are not full: each has more bytes or transactions than what came later.
        let most = 63 + 16 + 2 * (all / FULL_BYTES) as usize + 2 * snapshots.len() + 2;
        prop_assert!(segments.len() <= most, "{} segments, at most {most}", segments.len());
        prop_assert!(segments.iter().all(|s| s.level <= 5));
        prop_assert!(written.iter().all(|&times| times <= 12), "{:?}", written.iter().max());
    }
}

#[track_caller]
fn due(segment_mib: u64, index_mib: u64, snapshot_mib: u64, hours: u64, expect: bool) {
    let day = Duration::from_secs(24 * 3600);
    let since = Since {
        segment_bytes: segment_mib << 20,
        index_bytes: index_mib << 20,
        snapshot_bytes: Some(snapshot_mib << 20),
        age: Duration::from_secs(hours * 3600),
    };
    assert_eq!(is_due(&since, day), expect);
    assert!(!expect || may_be_due(&since, day));
}

#[test]
fn a_snapshot_is_due_when_it_makes_opening_cheap_or_a_day_has_passed() {
    due(17, 0, 4, 1, true);
    due(17, 0, 5, 1, false);
    due(15, 0, 1, 1, false);
    due(300, 1, 199, 1, true);
    due(300, 1, 200, 1, false);
    due(192, 1, 100, 1, false);
    due(17, 3, 16, 1, true);
    due(17, 3, 17, 1, false);
    due(17, 17, 90, 1, true);
    due(1, 0, 90, 24, true);
    due(0, 0, 0, 99, false);
}
