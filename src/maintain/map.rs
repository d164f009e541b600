//! The page map under a later snapshot: what of it stays, and what is written again. Pure.

use crate::format::ids::{ObjectId, Pgno, Txid};
use crate::format::segment::TimelineEntry;
use crate::format::snapshot::{LEAF_PAGES, Leaf, Run};
use std::collections::HashMap;

/// A set of pages: a bit for each.
#[derive(Clone, Debug)]
pub(super) struct PageSet(Vec<u64>);

impl PageSet {
    /// None of `pages` pages.
    pub(super) fn new(pages: u32) -> Self {
        Self(vec![0; (pages as usize + 1).div_ceil(64)])
    }

    /// Adds a page, unless it lies beyond the size.
    pub(super) fn insert(&mut self, pgno: Pgno) {
        let number = pgno.get() as usize;
        if let Some(bits) = self.0.get_mut(number / 64) {
            *bits |= 1 << (number % 64);
        }
    }

    /// How many pages are in it.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|bits| u64::from(bits.count_ones())).sum()
    }

    pub(super) fn contains(&self, pgno: u32) -> bool {
        let bits = self.0.get(pgno as usize / 64);
        bits.is_some_and(|bits| bits >> (pgno % 64) & 1 == 1)
    }
}

/// How small the database was after each of some transactions: pages beyond were cut off, and what
/// was in them does not come back when it grows again.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    /// The transaction before each entry, ascending.
    befores: Vec<Txid>,
    /// The smallest size at the entry and all behind it.
    smallest: Vec<u32>,
}

impl Sizes {
    /// Of the entries behind `since`, ascending.
    pub(super) fn new(since: Txid, entries: impl Iterator<Item = TimelineEntry>) -> Self {
        let (mut befores, mut smallest) = (Vec::new(), Vec::new());
        let mut before = since;
        for entry in entries {
            befores.push(before);
            smallest.push(entry.min_pages);
            before = entry.txid;
        }
        for index in (1..smallest.len()).rev() {
            smallest[index - 1] = smallest[index - 1].min(smallest[index]);
        }
        Self { befores, smallest }
    }

    /// Whether a page as it was at `at` was cut off since. Between two entries nothing says which
    /// came first: the page, for one with which the database grows again carries a frame.
    pub(super) fn cut_off(&self, pgno: Pgno, at: Txid) -> bool {
        let behind = self.befores.partition_point(|before| *before < at);
        self.smallest
            .get(behind)
            .is_some_and(|size| *size < pgno.get())
    }
}

/// What stays of an old leaf when these pages are newer elsewhere, or cut off.
pub(super) fn remaining(leaf: &Leaf, is_gone: impl Fn(u32) -> bool) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for run in &leaf.runs {
        for offset in 0..run.count {
            let first = run.first.get() + offset;
            if is_gone(first) {
                continue;
            }
            let slot = run.slot + offset;
            match runs.last_mut() {
                Some(last)
                    if last.object == run.object
                        && last.first.get() + last.count == first
                        && last.slot + last.count == slot =>
                {
                    last.count += 1;
                }
                _ => runs.push(Run {
                    first: Pgno::new(first).expect("a run begins at 1 or later"),
                    count: 1,
                    slot,
                    ..*run
                }),
            }
        }
    }
    runs
}

/// Whether the pages of a leaf have scattered so far that it is better written again: more than
/// half of them lie outside of the object that has the most. `newer`: pages that will lie in the
/// new object.
pub(super) fn is_scattered(remaining: &[Run], newer: u32) -> bool {
    let mut each: HashMap<ObjectId, u32> = HashMap::new();
    for run in remaining {
        *each.entry(run.object).or_default() += run.count;
    }
    let all = newer + each.values().sum::<u32>();
    let most = each.into_values().chain([newer]).max().unwrap_or(0);
    (all - most) * 2 > all
}

/// The first page of a leaf, and the one behind its last.
pub(super) fn pages_of_leaf(number: u32) -> std::ops::Range<u64> {
    let first = u64::from(number) * u64::from(LEAF_PAGES) + 1;
    first..first + u64::from(LEAF_PAGES)
}

/// The runs that lie in a leaf, of runs that ascend, cut to it.
pub(super) fn in_leaf(runs: &[Run], number: u32) -> Vec<Run> {
    let pages = pages_of_leaf(number);
    let start = runs.partition_point(|run| run.end() <= pages.start);
    let end = runs.partition_point(|run| u64::from(run.first.get()) < pages.end);
    let within = runs[start..end.max(start)].iter();
    within
        .filter_map(|run| run.part(pages.start, pages.end))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::Timestamp;

    fn run(object: u8, first: u32, count: u32, slot: u32) -> Run {
        Run {
            first: Pgno::new(first).unwrap(),
            count,
            object: ObjectId([object; 8]),
            slot,
        }
    }

    #[test]
    fn what_is_gone_is_cut_out_of_the_runs() {
        let leaf = Leaf {
            runs: vec![run(1, 1, 5, 0), run(2, 6, 2, 40)],
        };
        let rest = remaining(&leaf, |page| page == 3 || page == 7);
        assert_eq!(rest, [run(1, 1, 2, 0), run(1, 4, 2, 3), run(2, 6, 1, 40)]);
        assert_eq!(remaining(&leaf, |_| false), leaf.runs);
        assert_eq!(remaining(&leaf, |_| true), []);
    }

    #[test]
    fn a_leaf_is_scattered_when_no_object_has_half_of_it() {
        assert!(!is_scattered(&[run(1, 1, 100, 0)], 0));
        assert!(!is_scattered(&[run(1, 1, 50, 0), run(2, 60, 50, 0)], 0));
        assert!(!is_scattered(&[run(1, 1, 30, 0), run(2, 60, 30, 0)], 60));
        assert!(is_scattered(&[run(1, 1, 30, 0), run(2, 60, 31, 0)], 30));
        assert!(!is_scattered(&[], 0));
    }

    #[test]
    fn a_page_is_cut_off_by_what_shrinks_behind_it() {
        let entry = |txid, min_pages| TimelineEntry {
            txid: Txid::new(txid).unwrap(),
            time: Timestamp::from_micros(txid as i64),
            upper_bound: false,
            in_snapshot: false,
            pages: 90,
            min_pages,
        };
        let txid = |number| Txid::new(number).unwrap();
        let sizes = Sizes::new(
            txid(1),
            [entry(2, 90), entry(3, 40), entry(4, 60)].into_iter(),
        );
        let cut = |page, at| sizes.cut_off(Pgno::new(page).unwrap(), txid(at));
        assert!(cut(50, 1) && cut(50, 2));
        assert!(!cut(40, 1) && !cut(50, 3) && !cut(80, 4));
        assert!(cut(80, 3));
        assert!(!Sizes::new(txid(1), [].into_iter()).cut_off(Pgno::FIRST, txid(1)));
    }

    #[test]
    fn a_set_of_pages_ignores_what_lies_beyond_its_size() {
        let mut set = PageSet::new(64);
        for number in [1, 64, 65, 5000] {
            set.insert(Pgno::new(number).unwrap());
        }
        assert!(set.contains(1) && set.contains(64) && !set.contains(2) && !set.contains(5000));
    }
}
