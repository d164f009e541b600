use super::*;
use proptest::prelude::*;

/// How a database is written to: what stands between two commits.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// Always as long.
    Even(u64),
    /// Up to so long.
    Uneven(u64),
    /// So many a microsecond apart, as they are found together; then a pause of up to so long.
    Bursts(u64, u64),
}

/// What a test draws its numbers from.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(self.0) * u128::from(sides)) >> 64) as u64
    }

    fn is_one_of(&mut self, many: u64) -> bool {
        self.roll(many) == 0
    }
}

/// Points behind each other; of `growth` one makes the database larger, of `gaps` one has others
/// before it that were left out.
fn history(seed: u64, count: usize, pace: Pace, growth: u64, gaps: u64) -> Vec<Point> {
    let mut dice = Dice(seed);
    let (mut txid, mut time, mut pages) = (2, 1_795_176_000_000_000, 1000_u32);
    let point = |number: u64| {
        txid += 1;
        if dice.is_one_of(gaps) {
            txid += dice.roll(40_000);
        }
        time += 1 + match pace {
            Pace::Even(micros) => micros as i64,
            Pace::Uneven(micros) => dice.roll(micros) as i64,
            Pace::Bursts(many, _) if !number.is_multiple_of(many) => 0,
            Pace::Bursts(_, micros) => dice.roll(micros) as i64,
        };
        if dice.is_one_of(growth) {
            pages += 1 + dice.roll(3) as u32;
        }
        let dip = if dice.is_one_of(growth * 50) { 7 } else { 0 };
        Point {
            txid: Txid::new(txid).unwrap(),
            time: Timestamp::from_micros(time),
            pages,
            min_pages: pages - dip,
        }
    };
    (0..count as u64).map(point).collect()
}

fn bytes_a_point(points: &[Point]) -> f64 {
    let timeline: Timeline = points.iter().copied().collect();
    timeline.bytes() as f64 / points.len() as f64
}

#[test]
fn a_usual_history_takes_two_or_three_bytes_a_point() {
    const NEVER: u64 = u64::MAX / 64;
    let bytes = |pace, growth, gaps| bytes_a_point(&history(1, 100_000, pace, growth, gaps));
    for (pace, growth, gaps, limit) in [
        (Pace::Even(100_000), NEVER, NEVER, 0.5),
        (Pace::Uneven(10_000), 20, NEVER, 2.3),
        (Pace::Uneven(1_000_000), 20, NEVER, 3.1),
        (Pace::Uneven(2_000_000), NEVER, NEVER, 3.1),
        (Pace::Bursts(20, 50_000), 20, NEVER, 1.2),
        // Thinned to one of some thousands.
        (Pace::Uneven(3_600_000_000), 2, 1, 7.0),
    ] {
        let bytes = bytes(pace, growth, gaps);
        assert!(bytes <= limit, "{pace:?}: {bytes:.2} bytes a point");
    }
}

/// Times as the commits of an application that has nothing to do with a clock: 10 a second, with
/// pauses of all lengths.
#[test]
fn pauses_do_not_cost_what_lies_beside_them() {
    let mut points = history(3, 100_000, Pace::Uneven(200_000), 20, u64::MAX / 64);
    let mut pause = 0;
    for (number, point) in points.iter_mut().enumerate() {
        if number % 100 == 99 {
            pause += 3_600_000_000 * (number as i64 % 7);
        }
        point.time = Timestamp::from_micros(point.time.micros() + pause);
    }
    let bytes = bytes_a_point(&points);
    assert!(bytes <= 2.9, "{bytes:.2} bytes a point");
}

#[test]
fn the_worst_takes_little_more_than_points_do_in_the_open() {
    let mut dice = Dice(5);
    let point = |number: u64| Point {
        // Steps of all lengths.
        txid: Txid::new((number << 54) + dice.roll(1 << (1 + number % 53)) + 1).unwrap(),
        time: Timestamp::from_micros(
            -62_135_596_800_000_000
                + (number as i64 * 306_000_000_000_000)
                + dice.roll(1 << (1 + number % 47)) as i64,
        ),
        pages: dice.roll(1 << 32) as u32,
        min_pages: 0,
    };
    let points: Vec<Point> = (0..1000).map(point).collect();
    let timeline: Timeline = points.iter().copied().collect();
    assert!(timeline.points(0..1000).eq(points.iter().copied()));
    let bytes = bytes_a_point(&points);
    assert!(bytes <= 26.0, "{bytes:.2} bytes a point");
}

#[test]
fn an_empty_one_has_nothing_and_one_of_one_point_no_columns() {
    let timeline = Timeline::default();
    assert_eq!((timeline.count(), timeline.get(0)), (0, None));
    assert_eq!((timeline.last(), timeline.find(Txid::FIRST)), (None, None));
    assert_eq!(timeline.partition_point(|_| true), 0);
    assert_eq!(timeline.points(0..9).next(), None);
    let points = history(1, 1, Pace::Even(1), 1, 1);
    let timeline: Timeline = points.iter().copied().collect();
    assert!(timeline.words.is_empty());
    assert_eq!(timeline.last(), Some(points[0]));
}

/// Lengths about the ends of blocks, and others.
fn counts() -> impl Strategy<Value = usize> {
    let edges = prop::sample::select(vec![1, 2, 127, 128, 129, 255, 256, 257, 384]);
    prop_oneof![edges, 1_usize..700]
}

fn paces() -> impl Strategy<Value = Pace> {
    prop_oneof![
        (0_u64..10_000_000).prop_map(Pace::Even),
        (0_u32..50).prop_map(|bits| Pace::Uneven(1 << bits)),
        (1_u64..200, 1_u64..1 << 40).prop_map(|(many, pause)| Pace::Bursts(many, pause)),
    ]
}

fn some_history() -> impl Strategy<Value = Vec<Point>> {
    let rare = || prop::sample::select(vec![1_u64, 3, 30, 1 << 40]);
    let drawn = (any::<u64>(), counts(), paces(), rare(), rare());
    drawn.prop_map(|(seed, count, pace, growth, gaps)| history(seed, count, pace, growth, gaps))
}

proptest! {
    #[test]
    fn places_and_ranges_give_what_was_put_in(
        points in some_history(),
        ranges in prop::collection::vec((0_usize..800, 0_usize..800), 1..20),
    ) {
        let timeline: Timeline = points.iter().copied().collect();
        prop_assert_eq!(timeline.count(), points.len());
        prop_assert_eq!(timeline.last(), points.last().copied());
        for (start, end) in ranges {
            prop_assert_eq!(timeline.get(start), points.get(start).copied());
            let (start, end) = (start.min(end), end.max(start));
            let expect = &points[start.min(points.len())..end.min(points.len())];
            let found: Vec<Point> = timeline.points(start..end).collect();
            prop_assert_eq!(&found[..], expect);
            let back = timeline.points(start..end).rev();
            prop_assert!(back.eq(expect.iter().rev().copied()));
        }
    }

    #[test]
    fn searches_find_what_a_list_finds(
        points in some_history(),
        near in prop::collection::vec((any::<prop::sample::Index>(), -1_i64..=1), 1..20),
    ) {
        let timeline: Timeline = points.iter().copied().collect();
        for (index, beside) in near {
            let point = points[index.index(points.len())];
            let time = Timestamp::from_micros(point.time.micros() + beside);
            let expect = points.partition_point(|point| point.time <= time);
            prop_assert_eq!(timeline.partition_point(|point| point.time <= time), expect);
            let txid = Txid::new(point.txid.get().saturating_add_signed(beside)).unwrap();
            let expect = points.partition_point(|point| point.txid < txid);
            prop_assert_eq!(timeline.partition_point(|point| point.txid < txid), expect);
            let found = points.get(expect).filter(|point| point.txid == txid);
            prop_assert_eq!(timeline.find(txid), found.copied());
        }
        prop_assert_eq!(timeline.partition_point(|_| true), points.len());
        prop_assert_eq!(timeline.partition_point(|_| false), 0);
    }
}
