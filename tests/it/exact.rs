//! Every restore point of a replica against what SQLite showed, through the library: as fast as
//! reading can be, and the same code as `restore` and the mount.

use crate::oracle::{ImageHash, images};
use crate::writer::Dice;
use sqlrepl::format::container::Parent;
use sqlrepl::format::ids::{GenerationId, RestorePoint};
use sqlrepl::materialize::cache::BlockCache;
use sqlrepl::materialize::pages::ReadAhead;
use sqlrepl::materialize::replica::{PointsQuery, Replica};
use sqlrepl::storage::directory::DirectoryStore;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// What a comparison found: for each generation, which images of the ledger its restore points are.
#[derive(Debug, Default)]
pub(crate) struct Exact {
    pub(crate) points: usize,
    pub(crate) ranges: Vec<RangeInclusive<usize>>,
}

/// A replica, read through the library.
pub(crate) struct Reader {
    runtime: Runtime,
    pub(crate) replica: Arc<Replica>,
}

impl Reader {
    /// Reads what the replica holds now.
    pub(crate) fn new(path: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
        let store = DirectoryStore::open(path).unwrap();
        let replica = Replica::new(store, Arc::new(BlockCache::new(64 << 20)));
        runtime.block_on(replica.refresh()).unwrap();
        Self { runtime, replica }
    }

    /// The restore points of each generation, ascending.
    pub(crate) fn generations(&self) -> Vec<Vec<RestorePoint>> {
        let mut generations: Vec<(GenerationId, Vec<RestorePoint>)> = Vec::new();
        for point in self.replica.points(&PointsQuery::default()) {
            match generations.last_mut() {
                Some((last, points)) if *last == point.generation => points.push(point),
                _ => generations.push((point.generation, vec![point])),
            }
        }
        generations.into_iter().map(|(_, points)| points).collect()
    }

    /// What a generation says that it goes on from.
    pub(crate) fn parent(&self, generation: GenerationId) -> Option<Parent> {
        let generations = self.replica.generations();
        let info = generations.iter().find(|info| info.id == generation)?;
        info.claim.as_ref()?.parent
    }

    /// The hash of all pages of a restore point.
    pub(crate) fn hash(&self, point: &RestorePoint) -> ImageHash {
        self.runtime.block_on(async {
            let database = self.replica.open(point).await.unwrap();
            let size = database.size();
            assert_eq!(
                size,
                u64::from(point.pages) * u64::from(database.page_size()),
                "{point:?}"
            );
            let ahead = ReadAhead::default();
            let mut pieces = Vec::new();
            let mut offset = 0;
            while offset < size {
                let piece = database.read(offset, 1 << 20, &ahead).await.unwrap();
                assert!(!piece.is_empty(), "{point:?} ends at {offset} of {size}");
                offset += piece.len() as u64;
                pieces.push(piece.to_vec());
            }
            ImageHash::of_pieces(pieces.into_iter())
        })
    }
}

/// Checks that the newest restore point has all of the first `shown` images behind it or is the
/// last of them: a commit that was called durable is in some restore point. Of the commit that is
/// just under way, or in which a writer was killed, the ledger may not know yet; `check_all` does.
#[track_caller]
pub(crate) fn check_durable(replica: &Path, ledger: &Path, shown: usize) {
    let reader = Reader::new(replica);
    let points = reader.generations().pop().unwrap_or_default();
    let hashes = points.iter().rev().take(2).map(|point| reader.hash(point));
    let hashes: Vec<_> = hashes.collect();
    assert!(
        !hashes.is_empty(),
        "a replica on which something is durable has restore points"
    );
    let images = images(ledger);
    let place = |hash: &ImageHash| images.iter().rposition(|other| other == hash);
    let known = hashes
        .iter()
        .enumerate()
        .find_map(|(back, hash)| Some(place(hash)? + back));
    match known {
        Some(newest) => assert!(
            newest + 1 >= shown,
            "{shown} images were durable, the newest point is number {newest}"
        ),
        None => assert_eq!(
            points.len(),
            1,
            "SQLite never showed the last two of {points:?}"
        ),
    }
}

/// Checks that every restore point is an image that SQLite showed, in order, and that none is
/// missing between two of one generation. A generation starts behind all that is stored before it,
/// or is a fork, which starts with the image that it shares with its parent.
#[track_caller]
pub(crate) fn check_all(replica: &Path, ledger: &Path) -> Exact {
    let reader = Reader::new(replica);
    let shown = images(ledger);
    let mut exact = Exact::default();
    let mut places: HashMap<Parent, usize> = HashMap::new();
    for points in reader.generations() {
        check_names(&points);
        let mut seen: Vec<ImageHash> = Vec::new();
        let mut steps = Vec::new();
        for point in &points {
            let hash = reader.hash(point);
            assert!(shown.contains(&hash), "SQLite never showed {point:?}");
            // A transaction may write pages and change nothing.
            if seen.last() != Some(&hash) {
                seen.push(hash);
            }
            steps.push(seen.len() - 1);
        }
        let forked = reader.parent(points[0].generation);
        let forked = forked.and_then(|parent| places.get(&parent).copied());
        let earliest = exact.ranges.iter().map(|range| *range.end()).max();
        let starts = earliest.unwrap_or(0)..(shown.len() + 1).saturating_sub(seen.len());
        let is_start = |start: &usize| shown[*start..].starts_with(&seen);
        let Some(start) = starts.chain(forked).find(is_start) else {
            let at = |hash| shown.iter().position(|other| other == hash);
            let order: Vec<_> = seen.iter().map(at).collect();
            panic!(
                "from {:?} on not in the order of SQLite, behind {:?}: {order:?}",
                points[0], exact.ranges
            );
        };
        places.extend(points.iter().zip(steps).map(|(point, step)| {
            let RestorePoint {
                generation, txid, ..
            } = *point;
            (Parent { generation, txid }, start + step)
        }));
        exact.ranges.push(start..=start + seen.len() - 1);
        exact.points += points.len();
    }
    exact
}

/// Checks that every restore point is an image that SQLite showed, in order, and that none of the
/// newest so much time is missing, whatever generation it is in. The number of points.
#[track_caller]
pub(crate) fn check_kept(replica: &Path, ledger: &Path, window: Duration) -> usize {
    let reader = Reader::new(replica);
    let shown = images(ledger);
    let generations = reader.generations();
    let newest = generations
        .iter()
        .flatten()
        .map(|point| point.time.micros());
    let start = newest.max().unwrap() - i64::try_from(window.as_micros()).unwrap();
    for points in &generations {
        let mut place = 0;
        for point in points {
            let hash = reader.hash(point);
            let found = shown[place..].iter().position(|image| *image == hash);
            place +=
                found.unwrap_or_else(|| panic!("SQLite never showed {point:?} behind {place}"));
        }
        let recent = points.partition_point(|point| point.time.micros() < start);
        check_names(&points[recent..]);
    }
    generations.iter().map(Vec::len).sum()
}

/// The same as [`check_all`] for a writer that is faster than every restore point could be read:
/// checks the first and the last of each generation and `count` others, each commit being one more
/// image.
#[track_caller]
pub(crate) fn check_some(replica: &Path, ledger: &Path, count: u64, dice: &mut Dice) -> Exact {
    let reader = Reader::new(replica);
    let shown = images(ledger);
    let places: HashMap<_, _> = shown
        .iter()
        .enumerate()
        .map(|(n, hash)| (*hash, n))
        .collect();
    assert_eq!(
        places.len(),
        shown.len(),
        "the writer showed an image twice"
    );
    let generations = reader.generations();
    let total: usize = generations.iter().map(Vec::len).sum();
    let mut exact = Exact::default();
    for points in generations {
        check_names(&points);
        let place = |point: &RestorePoint| match places.get(&reader.hash(point)) {
            Some(place) => *place,
            None => panic!("SQLite never showed {point:?}"),
        };
        let first = place(&points[0]);
        let share = count * points.len() as u64 / total as u64;
        let mut chosen: Vec<usize> = vec![points.len() - 1];
        let some = (0..share).map(|_| usize::try_from(dice.roll(points.len() as u64)).unwrap());
        chosen.extend(some);
        for n in chosen {
            assert_eq!(
                place(&points[n]),
                first + n,
                "{:?}, number {n} of its kind",
                points[n]
            );
        }
        let earliest = exact.ranges.last().map_or(0, |range| *range.end());
        assert!(
            first >= earliest,
            "{:?} goes back behind the generation before it",
            points[0]
        );
        exact.ranges.push(first..=first + points.len() - 1);
        exact.points += points.len();
    }
    exact
}

/// Checks that txids have no gaps and times go up.
#[track_caller]
pub(crate) fn check_names(points: &[RestorePoint]) {
    for pair in points.windows(2) {
        assert_eq!(pair[0].txid.next(), pair[1].txid, "a txid is missing");
        assert!(
            pair[0].time < pair[1].time,
            "the time stands still: {pair:?}"
        );
    }
}
