//! What a replica's bytes are for. Pure.
//!
//! Invariant: each byte counts once, so the sums are those of the listing.

use crate::format::ids::GenerationId;
use crate::maintain::retain::Decision;
use crate::maintain::survey::{Survey, Surveyed};
use crate::storage::Listed;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::AddAssign;

/// Stored bytes, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Pages in snapshots that the newest snapshot's map uses. Of an object that it uses in part,
    /// as large a part of its bytes as of its pages.
    pub live: u64,
    /// Page versions in WAL segments, and pages in snapshots that only older moments need.
    pub history: u64,
    /// What finds and checks them: indexes, hashes, maps, timelines, footers, claims.
    pub index: u64,
    /// All of each object that stands for nothing: it was merged, no kept restore point needs it,
    /// or it was never finished.
    pub reclaimable: u64,
    /// Objects that are damaged, or not ours.
    pub other: u64,
}

impl Bytes {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.live + self.history + self.index + self.reclaimable + self.other
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, more: Self) {
        self.live += more.live;
        self.history += more.history;
        self.index += more.index;
        self.reclaimable += more.reclaimable;
        self.other += more.other;
    }
}

/// What the newest snapshot's map uses of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Pages that it uses.
    pub pages: u64,
    /// Pages that are stored there.
    pub of: u64,
}

/// What is known of objects beside a survey, by key.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Stored bytes of the pages in parts that are not damaged.
    pub(super) parts: HashMap<String, u64>,
    /// The objects that the newest snapshot's map uses.
    pub(super) used: HashMap<String, Used>,
}

/// What the bytes of each generation are for.
pub(super) fn split(
    survey: &Survey,
    decision: &Decision,
    known: &Known,
) -> BTreeMap<GenerationId, Bytes> {
    let gone = decision.deletions.iter().map(|deletion| &deletion.key);
    let superfluous: HashSet<&str> = gone
        .chain(decision.unneeded.keys())
        .map(String::as_str)
        .collect();
    let splits = survey.generations.iter().map(|(&id, surveyed)| {
        let mut bytes = Bytes::default();
        for (object, pages) in objects(surveyed, known) {
            let used = known.used.get(&object.key).copied().unwrap_or_default();
            bytes += match superfluous.contains(object.key.as_str()) {
                true => Bytes {
                    reclaimable: object.size,
                    ..Bytes::default()
                },
                false => of_object(object.size, pages, used),
            };
        }
        (id, bytes)
    });
    splits.collect()
}

/// All objects, and the stored bytes of the pages in each; `None` for one that is damaged.
fn objects<'a>(
    surveyed: &'a Surveyed,
    known: &'a Known,
) -> impl Iterator<Item = (&'a Listed, Option<u64>)> {
    let claims = surveyed.claim.iter().map(|claim| (claim, Some(0)));
    let snapshots = surveyed.snapshots.iter().map(|snapshot| {
        let inside = snapshot.inside.as_ref();
        (&snapshot.listed.object, inside.map(|i| i.block_bytes))
    });
    let parts = surveyed.parts.iter();
    let parts = parts.map(|p| (&p.object, known.parts.get(&p.object.key).copied()));
    let segments = surveyed.segments.iter().map(|segment| {
        let inside = segment.inside.as_ref();
        (&segment.listed.object, inside.map(|i| i.block_bytes))
    });
    claims.chain(snapshots).chain(parts).chain(segments)
}

fn of_object(size: u64, pages: Option<u64>, used: Used) -> Bytes {
    let Some(pages) = pages.filter(|pages| *pages <= size) else {
        return Bytes {
            other: size,
            ..Bytes::default()
        };
    };
    let part = u128::from(pages) * u128::from(used.pages.min(used.of));
    let live = part / u128::from(used.of.max(1));
    let live = u64::try_from(live).expect("a part is no more than all");
    Bytes {
        live,
        history: pages - live,
        index: size - pages,
        ..Bytes::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(size: u64, pages: Option<u64>, used: (u64, u64), expect: [u64; 4]) {
        let (pages_used, of) = used;
        let used = Used {
            pages: pages_used,
            of,
        };
        let bytes = of_object(size, pages, used);
        let Bytes {
            live,
            history,
            index,
            other,
            ..
        } = bytes;
        assert_eq!([live, history, index, other], expect);
        assert_eq!(bytes.total(), size);
    }

    #[test]
    fn each_byte_of_an_object_counts_once() {
        check(100, Some(70), (0, 0), [0, 70, 30, 0]);
        check(100, Some(70), (1, 3), [23, 47, 30, 0]);
        check(100, Some(70), (3, 3), [70, 0, 30, 0]);
        check(100, Some(0), (0, 0), [0, 0, 100, 0]);
        check(100, None, (3, 3), [0, 0, 0, 100]);
        // A map that claims more than there is, and a footer that does.
        check(100, Some(70), (9, 3), [70, 0, 30, 0]);
        check(100, Some(101), (1, 3), [0, 0, 0, 100]);
    }
}
