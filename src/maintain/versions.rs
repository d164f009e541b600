//! The page versions of several objects in one order: by page, then by transaction. Pure.

use crate::error::Result;
use crate::format::ids::{Pgno, Txid};
use crate::format::segment::VersionCursor;
use crate::format::snapshot::Run;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A version of a page: where it lies. Ordered by (page, transaction).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    pub(super) pgno: Pgno,
    pub(super) txid: Txid,
    /// Which object.
    pub(super) object: usize,
    pub(super) slot: u32,
}

/// The versions in one object, in the order of their slots.
#[derive(Clone, Debug)]
pub(super) enum Listed {
    /// Those of a segment, as far as their transactions count.
    Segment {
        cursor: VersionCursor,
        counts: RangeInclusive<Txid>,
    },
    /// Pages of a snapshot, ascending; older than any version of a segment.
    Pages {
        runs: Arc<[Run]>,
        run: usize,
        at: u32,
    },
}

impl Listed {
    /// The pages of these runs, which ascend in pages and in slots.
    pub(super) fn pages(runs: Vec<Run>) -> Self {
        Self::Pages {
            runs: runs.into(),
            run: 0,
            at: 0,
        }
    }

    fn next(&mut self) -> Result<Option<(Pgno, Txid, u32)>> {
        match self {
            Self::Segment { cursor, counts } => loop {
                match cursor.next_version()? {
                    Some((_, txid, _)) if !counts.contains(&txid) => {}
                    next => return Ok(next),
                }
            },
            Self::Pages { runs, run, at } => {
                let Some(current) = runs.get(*run) else {
                    return Ok(None);
                };
                let pgno =
                    Pgno::new(current.first.get() + *at).expect("a run begins at 1 or later");
                let found = (pgno, Txid::FIRST, current.slot + *at);
                *at += 1;
                if *at == current.count {
                    (*run, *at) = (*run + 1, 0);
                }
                Ok(Some(found))
            }
        }
    }
}

/// The versions of all of them, in order.
#[derive(Clone, Debug)]
pub(super) struct Versions {
    objects: Vec<Listed>,
    heads: BinaryHeap<Reverse<Version>>,
}

impl Versions {
    pub(super) fn new(objects: Vec<Listed>) -> Result<Self> {
        let mut versions = Self {
            heads: BinaryHeap::with_capacity(objects.len()),
            objects,
        };
        for object in 0..versions.objects.len() {
            versions.refill(object)?;
        }
        Ok(versions)
    }

    pub(super) fn next(&mut self) -> Result<Option<Version>> {
        let Some(Reverse(version)) = self.heads.pop() else {
            return Ok(None);
        };
        self.refill(version.object)?;
        Ok(Some(version))
    }

    fn refill(&mut self, object: usize) -> Result<()> {
        let next = self.objects[object].next()?;
        self.heads.extend(next.map(|(pgno, txid, slot)| {
            Reverse(Version {
                pgno,
                txid,
                object,
                slot,
            })
        }));
        Ok(())
    }
}

/// Which versions of a page are kept.
#[derive(Clone, Debug)]
pub(super) enum Keep {
    /// Every one.
    All,
    /// Those that one of these transactions sees, which ascend.
    SeenBy(Arc<[Txid]>),
}

impl Keep {
    /// Whether a version is kept that is followed by a newer one of the same page at `next`.
    pub(super) fn keeps(&self, txid: Txid, next: Option<Txid>) -> bool {
        match self {
            Self::All => true,
            Self::SeenBy(points) => {
                let first = points.partition_point(|point| *point < txid);
                let sees = |point: &Txid| next.is_none_or(|next| *point < next);
                points.get(first).is_some_and(sees)
            }
        }
    }
}

/// The versions that are kept, in order.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    versions: Versions,
    ahead: Option<Version>,
    keep: Keep,
}

impl Kept {
    pub(super) fn new(objects: Vec<Listed>, keep: Keep) -> Result<Self> {
        let mut versions = Versions::new(objects)?;
        Ok(Self {
            ahead: versions.next()?,
            versions,
            keep,
        })
    }

    pub(super) fn next(&mut self) -> Result<Option<Version>> {
        while let Some(version) = self.ahead {
            self.ahead = self.versions.next()?;
            let same_page = self.ahead.filter(|next| next.pgno == version.pgno);
            if self
                .keep
                .keeps(version.txid, same_page.map(|next| next.txid))
            {
                return Ok(Some(version));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txid(number: u64) -> Txid {
        Txid::new(number).unwrap()
    }

    #[track_caller]
    fn check(points: &[u64], txid_and_next: (u64, Option<u64>), expect: bool) {
        let points: Vec<Txid> = points.iter().map(|&point| txid(point)).collect();
        let (at, next) = txid_and_next;
        let keeps = Keep::SeenBy(points.into()).keeps(txid(at), next.map(txid));
        assert_eq!(keeps, expect);
    }

    #[test]
    fn a_version_is_kept_if_a_point_lies_between_it_and_the_next_one() {
        check(&[5, 9], (5, Some(6)), true);
        check(&[5, 9], (6, Some(9)), false);
        check(&[5, 9], (6, Some(10)), true);
        check(&[5, 9], (9, None), true);
        check(&[5, 9], (7, None), true);
        check(&[5, 9], (10, None), false);
        check(&[], (2, None), false);
    }

    #[test]
    fn the_pages_of_a_snapshot_come_in_order_with_their_slots() {
        let run = |first, count, slot| Run {
            first: Pgno::new(first).unwrap(),
            count,
            object: crate::format::ids::ObjectId([1; 8]),
            slot,
        };
        let older = Listed::pages(vec![run(3, 2, 7), run(9, 1, 20)]);
        let other = Listed::pages(vec![run(4, 1, 0)]);
        let mut versions = Versions::new(vec![older, other]).unwrap();
        let mut seen = Vec::new();
        while let Some(version) = versions.next().unwrap() {
            seen.push((version.pgno.get(), version.object, version.slot));
        }
        assert_eq!(seen, [(3, 0, 7), (4, 0, 8), (4, 1, 0), (9, 0, 20)]);
    }
}
