//! One generation as retention sees it: which segments stand for which transactions, and which
//! transactions can be opened from which snapshot. Pure.
//!
//! Invariants: pieces and stretches are ascending and without overlap. A segment that was not read
//! counts as whole: so more counts as open than readers may find, never less.

use crate::format::ids::{GenerationId, Timestamp, Txid};
use crate::maintain::survey::{Surveyed, SurveyedSegment, end, pieces};
use crate::storage::cover::Piece;
use std::collections::HashMap;
use std::ops::Range;

/// A transaction and when it was committed.
pub(super) type Point = (Txid, Timestamp);

/// A snapshot from which moments can be opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base {
    /// Which snapshot of the generation.
    pub(super) index: usize,
    /// Its own restore point.
    pub(super) point: Point,
    /// Later versions than this one are laid over it.
    pub(super) since: Txid,
    /// What is laid over it begins after this one: `since`, or before it if that is not known.
    pub(super) over: Txid,
}

/// Transactions that can be opened from one snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    pub(super) base: Base,
    /// Its own is the first one.
    pub(super) last: Txid,
}

/// What of a segment, or of a snapshot's own point, lies in a stretch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    /// Which stretch.
    pub(super) stretch: usize,
    pub(super) content: Content<'a>,
}

/// The restore points of a run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    /// Ascending, at least one.
    Points(&'a [Point]),
    /// The segment was not read: each transaction up to this one may be one.
    NotRead {
        /// Up to this transaction.
        to: Txid,
        /// The time of the last one, or about when it was stored.
        time: Timestamp,
    },
}

/// A generation.
pub(super) struct Line<'a> {
    pub(super) id: GenerationId,
    pub(super) surveyed: &'a Surveyed,
    /// Which segment, by its index, stands for what.
    pub(super) pieces: Vec<Piece>,
    /// Of each snapshot: is all there that it needs?
    pub(super) is_complete: Vec<bool>,
    /// As readers open moments: from complete snapshots.
    pub(super) stretches: Vec<Stretch>,
    /// As they would if damaged snapshots were not: what could be read once may be read again.
    pub(super) hoped: Option<Vec<Stretch>>,
    /// The `since` of the last complete snapshot.
    pub(super) last_since: Option<Txid>,
}

impl<'a> Line<'a> {
    /// `sizes`: of all objects that are listed, by key.
    pub(super) fn new(
        id: GenerationId,
        surveyed: &'a Surveyed,
        sizes: &HashMap<&str, u64>,
    ) -> Self {
        let pieces = pieces(&surveyed.segments);
        let snapshots = surveyed.snapshots.iter();
        let is_complete: Vec<bool> = snapshots.map(|s| s.is_complete(sizes)).collect();
        let base = |index| base(surveyed, index);
        let all = 0..surveyed.snapshots.len();
        let complete: Vec<Base> = all.clone().filter(|&i| is_complete[i]).map(base).collect();
        let is_damaged = |index: usize| surveyed.snapshots[index].inside.is_none();
        let hoped = all.clone().any(is_damaged).then(|| {
            let those = all.filter(|&index| is_complete[index] || is_damaged(index));
            reach(&those.map(base).collect::<Vec<_>>(), &pieces, surveyed)
        });
        Self {
            id,
            surveyed,
            stretches: reach(&complete, &pieces, surveyed),
            hoped,
            last_since: complete.last().map(|base| base.since),
            pieces,
            is_complete,
        }
    }

    /// True if it has a snapshot that is complete, or one that is damaged.
    pub(super) fn has_base(&self) -> bool {
        self.last_since.is_some() || self.hoped.is_some()
    }

    /// The first restore point that readers can open.
    pub(super) fn first(&self) -> Option<Point> {
        self.stretches.first().map(|stretch| stretch.base.point)
    }

    /// The last transaction of which anything is listed; `None` if that is not known.
    pub(super) fn last(&self) -> Option<Txid> {
        let segments = self.surveyed.segments.iter();
        let ends: Option<Vec<Txid>> = segments.map(end).collect();
        let snapshot = self.surveyed.snapshots.last().map(|s| s.listed.txid);
        ends?.into_iter().chain(snapshot).max()
    }

    /// What lies in each stretch, ascending.
    pub(super) fn runs<'b>(&'b self, stretches: &'b [Stretch]) -> Vec<Run<'b>> {
        let mut runs = Vec::new();
        for (index, stretch) in stretches.iter().enumerate() {
            let mut add = |content| {
                runs.push(Run {
                    stretch: index,
                    content,
                });
            };
            add(Content::Points(std::slice::from_ref(&stretch.base.point)));
            for piece in &self.pieces[self.between(stretch.base.point.0, stretch.last)] {
                let from = piece.from.max(stretch.base.point.0.next());
                let to = piece.to.min(stretch.last);
                let SurveyedSegment { listed, inside } = &self.surveyed.segments[piece.index];
                match inside {
                    None => add(Content::NotRead {
                        to,
                        time: listed.time.unwrap_or(listed.object.modified),
                    }),
                    Some(inside) => {
                        let start = inside.points.partition_point(|&(txid, _)| txid < from);
                        let end = inside.points.partition_point(|&(txid, _)| txid <= to);
                        if start < end {
                            add(Content::Points(&inside.points[start..end]));
                        }
                    }
                }
            }
        }
        runs
    }

    /// The pieces that hold anything after one transaction and up to another.
    pub(super) fn between(&self, after: Txid, through: Txid) -> Range<usize> {
        let start = self.pieces.partition_point(|piece| piece.to <= after);
        let end = self.pieces.partition_point(|piece| piece.from <= through);
        start..end.max(start)
    }

    /// The pieces within the range of a segment that stands for nothing; if its end is not known,
    /// those where it begins.
    pub(super) fn over(&self, segment: &SurveyedSegment) -> Range<usize> {
        let first = segment.listed.first;
        let last = end(segment).unwrap_or(first);
        let start = self.pieces.partition_point(|piece| piece.to < first);
        let end = self.pieces.partition_point(|piece| piece.from <= last);
        start..end.max(start)
    }

    /// True if these pieces stand for all of a segment.
    pub(super) fn is_covered(&self, segment: &SurveyedSegment, over: Range<usize>) -> bool {
        let pieces = &self.pieces[over];
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            return false;
        };
        let is_whole = pieces.windows(2).all(|two| two[0].to.next() == two[1].from);
        let begins = first.from <= segment.listed.first;
        begins && is_whole && end(segment).is_some_and(|end| end <= last.to)
    }
}

fn base(surveyed: &Surveyed, index: usize) -> Base {
    let snapshot = &surveyed.snapshots[index];
    let txid = snapshot.listed.txid;
    let inside = snapshot.inside.as_ref();
    // Only the first snapshot of a generation needs segments before its txid.
    let is_lowest = index == 0;
    let over = if is_lowest { Txid::FIRST } else { txid };
    Base {
        index,
        point: (txid, snapshot.listed.time),
        since: inside.map_or(txid, |inside| inside.since),
        over: inside.map_or(over, |inside| inside.since),
    }
}

/// Which transactions can be opened, each from the last base at or before it. Nothing is opened
/// across a gap or a mark.
fn reach(bases: &[Base], pieces: &[Piece], surveyed: &Surveyed) -> Vec<Stretch> {
    let mut stretches = Vec::new();
    for (order, base) in bases.iter().enumerate() {
        let next = bases.get(order + 1).map(|next| next.point.0);
        if next == Some(base.point.0) {
            continue;
        }
        let limit = next.and_then(|next| Txid::new(next.get() - 1));
        let mut end = base.since;
        let start = pieces.partition_point(|piece| piece.to <= base.since);
        for piece in &pieces[start..] {
            let inside = &surveyed.segments[piece.index].inside;
            let is_mark = inside.as_ref().is_some_and(|inside| inside.is_mark);
            if is_mark || piece.from > end.next() || limit.is_some_and(|limit| end >= limit) {
                break;
            }
            end = piece.to;
        }
        let last = limit.map_or(end, |limit| limit.min(end));
        if last >= base.point.0 {
            stretches.push(Stretch { base: *base, last });
        }
    }
    stretches
}
