//! The page versions of many segments, laid over a map. Pure.
//!
//! An overlay only grows: [`Overlay::extended`] gives a new one that shares nearly everything with
//! the old one, which readers go on using. Versions lie in sorted runs, the oldest first, each
//! at least twice as long as the next: a lookup is a binary search in each of a few runs, and a
//! version is copied O(log n) times in its life. 16 bytes a version.
//!
//! All moments between two snapshots share one overlay and differ by the txid they look through.

use crate::format::ids::{Pgno, Txid};
use std::sync::Arc;

/// A version of a page: where it lies. Ordered by (page, txid).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    page: u32,
    /// Counted from the overlay's `since`.
    txid: u32,
    /// Index into the overlay's list of objects.
    object: u32,
    slot: u32,
}

impl Version {
    fn order(&self) -> (u32, u32) {
        (self.page, self.txid)
    }
}

/// The database was smaller than before: pages beyond are gone, and what was in them does not come
/// back when it grows again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shrink {
    /// The kept transaction before.
    pub(crate) after: Txid,
    /// The kept transaction at or before which it happened.
    pub(crate) txid: Txid,
    /// The smallest size meanwhile, pages.
    pub(crate) min_pages: u32,
}

/// What one segment adds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer<'a, O> {
    pub(crate) object: &'a O,
    /// Sorted by (page, txid); the index is the slot.
    pub(crate) versions: &'a [(Pgno, Txid)],
    /// Only versions of these transactions count.
    pub(crate) from: Txid,
    /// The last of them.
    pub(crate) to: Txid,
    /// Ascending.
    pub(crate) shrinks: &'a [Shrink],
}

/// A version that was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found<'a, O> {
    pub(crate) txid: Txid,
    pub(crate) object: &'a O,
    pub(crate) slot: u32,
}

/// Page versions by (page, txid), and shrinks. `O` names an object.
#[derive(Clone, Debug)]
pub(crate) struct Overlay<O> {
    /// No version is as old as this.
    since: Txid,
    objects: Vec<O>,
    runs: Vec<Arc<Vec<Version>>>,
    shrinks: Shrinks,
}

impl<O: Clone> Overlay<O> {
    /// An overlay for later versions than this one, without any.
    pub(crate) fn new(since: Txid) -> Self {
        Self {
            since,
            objects: Vec::new(),
            runs: Vec::new(),
            shrinks: Shrinks::default(),
        }
    }

    /// This overlay with layers on top, oldest first, whose transactions come after all before.
    /// `None` if these are more than four billion behind its `since`.
    pub(crate) fn extended<'a>(
        &self,
        layers: impl IntoIterator<Item = Layer<'a, O>>,
    ) -> Option<Self>
    where
        O: 'a,
    {
        let mut overlay = self.clone();
        for layer in layers {
            if layer.to.get() - self.since.get() > u64::from(u32::MAX) {
                return None;
            }
            overlay.push(&layer);
        }
        Some(overlay)
    }

    fn push(&mut self, layer: &Layer<'_, O>) {
        let object = u32::try_from(self.objects.len()).expect("fewer objects than memory");
        self.objects.push(layer.object.clone());
        let kept = layer.from..=layer.to;
        let mut run: Vec<Version> = (0..)
            .zip(layer.versions)
            .filter(|(_, (_, txid))| kept.contains(txid))
            .map(|(slot, (page, txid))| Version {
                page: page.get(),
                txid: self.count(*txid),
                object,
                slot,
            })
            .collect();
        run.shrink_to_fit();
        self.push_run(run);
        for &shrink in layer.shrinks {
            if kept.contains(&shrink.txid) {
                self.shrinks.push(shrink);
            }
        }
    }

    fn push_run(&mut self, mut run: Vec<Version>) {
        if run.is_empty() {
            return;
        }
        while let Some(older) = self.runs.pop_if(|older| older.len() < 2 * run.len()) {
            run = merged(&older, &run);
        }
        self.runs.push(Arc::new(run));
    }

    /// A transaction as versions name it.
    fn count(&self, txid: Txid) -> u32 {
        u32::try_from(txid.get().saturating_sub(self.since.get())).unwrap_or(u32::MAX)
    }

    /// The newest version of a page after `since`, up to `through`.
    pub(crate) fn newest(&self, page: Pgno, since: Txid, through: Txid) -> Option<Found<'_, O>> {
        self.runs.iter().rev().find_map(|run| {
            let wanted = (page.get(), self.count(through));
            let end = run.partition_point(|version| version.order() <= wanted);
            let version = run[..end].last()?;
            if version.page != page.get() || version.txid <= self.count(since) {
                return None;
            }
            let txid = self.since.get() + u64::from(version.txid);
            Some(Found {
                txid: Txid::new(txid).expect("made from a txid"),
                object: &self.objects[version.object as usize],
                slot: version.slot,
            })
        })
    }

    /// True if a page that was there at `at` was cut off between then and `through`: what it held
    /// then is not what it holds now, even if the database has grown over it again.
    pub(crate) fn cut_off(&self, page: Pgno, at: Txid, through: Txid) -> bool {
        self.shrinks.smallest(at, through) < page.get()
    }

    /// The objects of the layers, in their order.
    pub(crate) fn objects(&self) -> &[O] {
        &self.objects
    }

    /// About how many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        let versions = self.runs.iter().map(|run| size_of_val(&run[..]));
        let shrinks = size_of_val(&self.shrinks.all[..]);
        versions.sum::<usize>() + shrinks + size_of_val(&self.objects[..])
    }

    #[cfg(test)]
    fn run_lengths(&self) -> Vec<usize> {
        self.runs.iter().map(|run| run.len()).collect()
    }
}

fn merged(older: &[Version], newer: &[Version]) -> Vec<Version> {
    let mut all = Vec::with_capacity(older.len() + newer.len());
    let mut newer = newer.iter().copied().peekable();
    for &version in older {
        while let Some(earlier) = newer.next_if(|n| n.order() < version.order()) {
            all.push(earlier);
        }
        all.push(version);
    }
    all.extend(newer);
    all
}

/// Shrinks in order, with the minimum of each stretch of 64 kept apart: a database with
/// auto_vacuum may shrink in every commit.
#[derive(Clone, Debug, Default)]
struct Shrinks {
    all: Vec<Shrink>,
    smallest: Vec<u32>,
}

const STRETCH: usize = 64;

impl Shrinks {
    fn push(&mut self, shrink: Shrink) {
        if self.all.len().is_multiple_of(STRETCH) {
            self.smallest.push(shrink.min_pages);
        } else {
            let smallest = self.smallest.last_mut().expect("a stretch has begun");
            *smallest = (*smallest).min(shrink.min_pages);
        }
        self.all.push(shrink);
    }

    /// The smallest size that the database had after `at`, up to `through`, if it shrank.
    ///
    /// Where versions between two kept transactions were dropped, nothing says whether one came
    /// before or after a shrink there. After it, always: pages with which the database grows again
    /// carry frames, and the newest version is what is asked about.
    fn smallest(&self, at: Txid, through: Txid) -> u32 {
        let start = self.all.partition_point(|shrink| shrink.after < at);
        let end = self.all.partition_point(|shrink| shrink.txid <= through);
        let mut smallest = u32::MAX;
        let mut index = start;
        while index < end {
            if index % STRETCH == 0 && index + STRETCH <= end {
                smallest = smallest.min(self.smallest[index / STRETCH]);
                index += STRETCH;
            } else {
                smallest = smallest.min(self.all[index].min_pages);
                index += 1;
            }
        }
        smallest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn txid(number: u64) -> Txid {
        Txid::new(number).unwrap()
    }

    fn page(number: u32) -> Pgno {
        Pgno::new(number).unwrap()
    }

    fn shrink(after: u64, at: u64, min_pages: u32) -> Shrink {
        Shrink {
            after: txid(after),
            txid: txid(at),
            min_pages,
        }
    }

    /// Segments of consecutive transactions, each a list of touched pages.
    fn layered(segments: &[Vec<Vec<u32>>]) -> Overlay<usize> {
        let mut overlay = Overlay::new(Txid::FIRST);
        let mut next = 2;
        for (index, transactions) in segments.iter().enumerate() {
            let from = next;
            let mut versions = Vec::new();
            for pages in transactions {
                versions.extend(pages.iter().map(|&n| (page(n), txid(next))));
                next += 1;
            }
            versions.sort();
            versions.dedup();
            let layer = Layer {
                object: &index,
                versions: &versions,
                from: txid(from),
                to: txid(next.max(from + 1) - 1),
                shrinks: &[],
            };
            overlay = overlay.extended([layer]).unwrap();
        }
        overlay
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_newest_version_is_the_one_a_plain_search_finds(
            segments in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(1_u32..20, 0..4), 1..4), 0..40),
            since in 1_u64..60, length in 0_u64..60,
        ) {
            let overlay = layered(&segments);
            let all: Vec<&Vec<u32>> = segments.iter().flatten().collect();
            let through = since + length;
            for n in 1..20 {
                let expect = (since + 1..=through).rev().find(|&t| {
                    all.get(t as usize - 2).is_some_and(|pages| pages.contains(&n))
                });
                let found = overlay.newest(page(n), txid(since), txid(through));
                prop_assert_eq!(found.map(|f| f.txid.get()), expect);
            }
        }
    }

    #[test]
    fn runs_stay_few_and_each_is_twice_the_next() {
        let segments: Vec<_> = (0..1000)
            .map(|i| vec![vec![i % 50 + 1, i % 7 + 60]])
            .collect();
        let lengths = layered(&segments).run_lengths();
        assert!(lengths.len() <= 11, "{lengths:?}");
        assert!(lengths.windows(2).all(|w| w[0] >= 2 * w[1]), "{lengths:?}");
    }

    #[test]
    fn only_the_range_that_a_plan_gives_to_a_segment_counts() {
        let versions = [(page(1), txid(5)), (page(1), txid(9)), (page(2), txid(7))];
        let layer = Layer {
            object: &"merged",
            versions: &versions,
            from: txid(6),
            to: txid(8),
            shrinks: &[],
        };
        let overlay = Overlay::new(txid(1)).extended([layer]).unwrap();
        assert_eq!(overlay.newest(page(1), txid(1), txid(99)), None);
        let found = overlay.newest(page(2), txid(1), txid(99)).unwrap();
        assert_eq!((found.object, found.slot), (&"merged", 2));
    }

    #[test]
    fn an_older_overlay_does_not_see_what_was_laid_over_a_copy() {
        let old = layered(&[vec![vec![1]]]);
        let layer = Layer {
            object: &7,
            versions: &[(page(1), txid(3))],
            from: txid(3),
            to: txid(3),
            shrinks: &[],
        };
        let new = old.extended([layer]).unwrap();
        let newest = |overlay: &Overlay<usize>| {
            let found = overlay.newest(page(1), txid(1), txid(9)).unwrap();
            found.txid.get()
        };
        assert_eq!((newest(&old), newest(&new)), (2, 3));
    }

    #[test]
    fn transactions_are_counted_from_the_snapshot_up_to_four_billion() {
        let since = 1 << 60;
        let layer = |first: u64, last: u64| Layer {
            object: &"one",
            versions: &[],
            from: txid(since + first),
            to: txid(since + last),
            shrinks: &[],
        };
        let most = u64::from(u32::MAX);
        let versions = [(page(1), txid(since + 1)), (page(1), txid(since + most))];
        let whole = Layer {
            versions: &versions,
            ..layer(1, most)
        };
        let overlay = Overlay::new(txid(since)).extended([whole]).unwrap();
        let newest = |through| {
            let found = overlay.newest(page(1), txid(since), txid(through));
            found.map(|found| found.txid.get() - since)
        };
        assert_eq!(newest(since), None);
        assert_eq!(newest(since + most - 1), Some(1));
        assert_eq!(newest(Txid::MAX.get()), Some(most));
        let more = overlay.extended([layer(most + 1, most + 1)]);
        assert!(more.is_none());
    }

    #[test]
    fn a_page_beyond_a_shrink_is_cut_off_and_one_written_after_it_is_not() {
        let mut overlay = Overlay::<u8>::new(Txid::FIRST);
        overlay.shrinks.push(shrink(9, 10, 5));
        assert!(overlay.cut_off(page(6), txid(9), txid(10)));
        assert!(!overlay.cut_off(page(5), txid(9), txid(10)));
        assert!(!overlay.cut_off(page(6), txid(10), txid(20)));
        assert!(!overlay.cut_off(page(6), txid(1), txid(9)));
    }

    #[test]
    fn a_version_between_two_kept_transactions_survives_the_shrink_between_them() {
        let mut overlay = Overlay::<u8>::new(Txid::FIRST);
        overlay.shrinks.push(shrink(3, 10, 5));
        assert!(!overlay.cut_off(page(6), txid(8), txid(12)));
        assert!(overlay.cut_off(page(6), txid(3), txid(12)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_smallest_size_is_that_of_a_plain_search(
            sizes in prop::collection::vec(1_u32..1000, 0..300),
            at in 1_u64..300, length in 0_u64..300,
        ) {
            let mut shrinks = Shrinks::default();
            for (t, &size) in (2..).zip(&sizes) {
                shrinks.push(shrink(t - 1, t, size));
            }
            let plain = (2..).zip(&sizes)
                .filter(|(t, _)| *t > at && *t <= at + length)
                .map(|(_, &size)| size).min();
            let found = shrinks.smallest(txid(at), txid(at + length));
            prop_assert_eq!(found, plain.unwrap_or(u32::MAX));
        }
    }
}
