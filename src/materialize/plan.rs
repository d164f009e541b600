//! Which objects a moment needs, and which moment a time means. Pure.
//!
//! A generation is planned as a whole, once for each listing: `cover` says which segment stands
//! for which transactions, [`reach`] which transactions can be opened from which snapshot, and why
//! not the others. A [`Plan`] for one moment is then cut out of that.
//!
//! Invariants: pieces are ascending and without overlap; stretches too; a transaction between the
//! first and the last known one lies in a stretch or in a break, never in neither.

use crate::error::{Error, Result};
use crate::format::container::Parent;
use crate::format::ids::{GenerationId, RestorePoint, Timestamp, Txid};
use crate::storage::cover::Piece;
use std::collections::BTreeMap;

/// A snapshot as planning sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) txid: Txid,
    /// Later versions than this one are laid over it.
    pub(crate) since: Txid,
    /// All that its root names is listed.
    pub(crate) is_complete: bool,
}

/// What is known of a generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Ascending by txid.
    pub(crate) snapshots: Vec<Base>,
    /// What `cover` found.
    pub(crate) pieces: Vec<Piece>,
    /// Transactions whose pages lie in a snapshot and in no segment, ascending.
    pub(crate) marks: Vec<Txid>,
    /// The first and last transactions of segments that are listed and cannot be read, ascending.
    pub(crate) unreadable: Vec<(Txid, Txid)>,
    /// The transactions of snapshots that are listed and cannot be read.
    pub(crate) unreadable_snapshots: Vec<Txid>,
}

/// Transactions that can be opened from one snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Which snapshot.
    pub(crate) base: usize,
    pub(crate) first: Txid,
    pub(crate) last: Txid,
}

/// Why transactions cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// No segment has this one, or none that can be read.
    Missing(Txid),
    /// The pages of this one lie in a snapshot that is not there.
    SnapshotMissing(Txid),
    /// Nothing is listed of this one, nor of all up to the next complete snapshot: that is what
    /// retention leaves.
    Removed(Txid),
}

/// Transactions that are known and cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Break {
    pub(crate) from: Txid,
    /// None: up to the end of the generation.
    pub(crate) to: Option<Txid>,
    pub(crate) why: Why,
}

impl Break {
    /// True if retention left it: then it is no damage.
    pub(crate) fn is_gap(&self) -> bool {
        matches!(self.why, Why::Removed(_))
    }
}

/// What can be opened, and what cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Ascending.
    pub(crate) stretches: Vec<Stretch>,
    /// Ascending.
    pub(crate) breaks: Vec<Break>,
}

/// Which transactions can be opened, each from the last complete snapshot at or before it and the
/// segments after that one's `since`. Nothing is opened across a gap or a mark.
pub(crate) fn reach(shape: &Shape) -> Reach {
    let complete: Vec<(usize, Base)> = shape.snapshots.iter().copied().enumerate().collect();
    let complete: Vec<_> = complete
        .into_iter()
        .filter(|(_, b)| b.is_complete)
        .collect();
    let mut reach = Reach::default();
    for (order, &(index, base)) in complete.iter().enumerate() {
        let next = complete.get(order + 1).map(|&(_, next)| next.txid);
        if next == Some(base.txid) {
            continue;
        }
        let limit = next.and_then(|next| Txid::new(next.get() - 1));
        let (end, why) = reached_from(base, shape);
        let last = limit.map_or(end, |limit| limit.min(end));
        if last >= base.txid {
            reach.stretches.push(Stretch {
                base: index,
                first: base.txid,
                last,
            });
        }
        let from = last.next().max(base.txid);
        let is_known = match limit {
            Some(limit) => from <= limit,
            // A fuzzy snapshot may be listed before the segments up to its txid are: that is no
            // break. Segments behind a gap are one.
            None => shape.known_through() > last && !shape.awaits(why),
        };
        if is_known {
            let why = match (why, limit) {
                (Why::Missing(txid), Some(limit)) if !shape.shows(txid, limit) => {
                    Why::Removed(txid)
                }
                _ => why,
            };
            reach.breaks.push(Break {
                from,
                to: limit,
                why,
            });
        }
    }
    reach
}

/// The last transaction up to which everything after the snapshot's `since` is there, and what
/// keeps the next one from being opened.
fn reached_from(base: Base, shape: &Shape) -> (Txid, Why) {
    let mut end = base.since;
    let start = shape.pieces.partition_point(|piece| piece.to <= base.since);
    for piece in &shape.pieces[start..] {
        if piece.from > end.next() {
            break;
        }
        end = piece.to;
    }
    let mark = shape.marks.iter().find(|&&mark| mark > base.since);
    match mark {
        Some(&mark) if mark <= end => {
            let before = Txid::new(mark.get() - 1).expect("a mark comes after a `since`");
            (before, Why::SnapshotMissing(mark))
        }
        _ => (end, Why::Missing(end.next())),
    }
}

impl Shape {
    /// The last transaction of which anything is known, 1 if none is.
    fn known_through(&self) -> Txid {
        let covered = self.pieces.last().map(|piece| piece.to);
        let unreadable = self.unreadable.last().map(|&(first, _)| first);
        covered.max(unreadable).unwrap_or(Txid::FIRST)
    }

    /// True if only the snapshot of the last transaction of all is not there: a mark is stored
    /// before its snapshot.
    fn awaits(&self, why: Why) -> bool {
        let Why::SnapshotMissing(mark) = why else {
            return false;
        };
        let is_listed = self.snapshots.iter().any(|base| base.txid == mark)
            || self.unreadable_snapshots.contains(&mark);
        mark == self.known_through() && !is_listed
    }

    /// True if anything is listed that holds one of these transactions, or should.
    fn shows(&self, from: Txid, to: Txid) -> bool {
        let within = |txid: Txid| from <= txid && txid <= to;
        let overlaps = |first: Txid, last: Txid| first <= to && from <= last;
        let start = self.pieces.partition_point(|piece| piece.to < from);
        let mut snapshots = self.snapshots.iter();
        self.pieces.get(start).is_some_and(|piece| piece.from <= to)
            || self.unreadable.iter().any(|&(f, l)| overlaps(f, l))
            || self.unreadable_snapshots.iter().any(|&txid| within(txid))
            || snapshots.any(|base| !base.is_complete && within(base.txid))
    }
}

/// What a moment needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Which snapshot.
    pub(crate) base: usize,
    /// The segments to lay over it: those for `base.since + 1` up to the moment. The last one may
    /// go on beyond it.
    pub(crate) pieces: std::ops::Range<usize>,
}

/// Why there is no plan for a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unplanned {
    /// It lies before the first one that can be opened, or there is none at all.
    Before(Option<Txid>),
    /// It lies behind the last one that is known.
    After(Txid),
    /// Something is missing.
    Broken(Break),
}

impl Reach {
    /// The plan for a transaction.
    pub(crate) fn plan(&self, shape: &Shape, txid: Txid) -> Result<Plan, Unplanned> {
        let after = self.stretches.partition_point(|s| s.first <= txid);
        if let Some(stretch) = self.stretches[..after].last()
            && txid <= stretch.last
        {
            let since = shape.snapshots[stretch.base].since;
            let start = shape.pieces.partition_point(|piece| piece.to <= since);
            let end = shape.pieces.partition_point(|piece| piece.from <= txid);
            return Ok(Plan {
                base: stretch.base,
                pieces: start..end.max(start),
            });
        }
        match self.break_at(txid) {
            Some(found) => Err(Unplanned::Broken(*found)),
            None => match self.stretches.last() {
                Some(last) if txid > last.last => Err(Unplanned::After(last.last)),
                _ => Err(Unplanned::Before(self.stretches.first().map(|s| s.first))),
            },
        }
    }

    /// The break in which a transaction lies.
    pub(crate) fn break_at(&self, txid: Txid) -> Option<&Break> {
        let after = self.breaks.partition_point(|b| b.from <= txid);
        let found = self.breaks[..after].last()?;
        found.to.is_none_or(|to| txid <= to).then_some(found)
    }

    /// The first break that begins after `after`, up to `through`, and is none that retention left.
    pub(crate) fn break_between(&self, after: Txid, through: Option<Txid>) -> Option<&Break> {
        let start = self.breaks.partition_point(|b| b.from <= after);
        self.breaks[start..]
            .iter()
            .take_while(|b| through.is_none_or(|through| b.from <= through))
            .find(|b| !b.is_gap())
    }
}

/// One generation, as a time is resolved through several.
pub(crate) trait Line {
    /// True if readers know it: it has a complete snapshot, or one that is damaged.
    fn exists(&self) -> bool;

    /// What its claim names.
    ///
    /// # Errors
    /// If the claim is damaged.
    fn parent(&self) -> Result<Option<Parent>>;

    /// Its first restore point.
    fn first(&self) -> Option<RestorePoint>;

    /// Its last restore point at or before a time and not after `limit`.
    ///
    /// # Errors
    /// If what is missing or damaged might hold a later one.
    fn at(&self, time: Timestamp, limit: Option<Txid>) -> Result<Option<RestorePoint>>;
}

/// The restore point that a time means: begin at the highest generation; while the time lies
/// before its first restore point go to the parent that its claim names; there, the last commit at
/// or before the time and not after the txid that the claim names.
///
/// # Errors
/// `NotFound` if the time lies before the history; what a [`Line`] says.
pub(crate) fn resolve_at<L: Line>(
    lines: &BTreeMap<GenerationId, L>,
    time: Timestamp,
) -> Result<RestorePoint> {
    let (mut id, mut line) = highest(lines)?;
    let mut limit = None;
    let mut begins = None;
    loop {
        if line.exists() {
            if let Some(point) = line.at(time, limit)? {
                return Ok(point);
            }
            begins = line.first().map(|first| first.time).or(begins);
        }
        // Only a lower one can be a parent: so this ends, whatever claims say.
        let parent = line.parent()?.filter(|parent| parent.generation < id);
        match parent.and_then(|parent| Some((parent, lines.get(&parent.generation)?))) {
            Some((parent, older)) => {
                (id, line, limit) = (parent.generation, older, Some(parent.txid))
            }
            None => return Err(before_history(time, begins)),
        }
    }
}

fn before_history(time: Timestamp, begins: Option<Timestamp>) -> Error {
    Error::not_found(match begins {
        Some(begins) => format!("{time} lies before the history, which begins at {begins}"),
        None => format!("there is no restore point at or before {time}"),
    })
}

/// The highest generation that readers know.
///
/// # Errors
/// `NotFound`.
pub(crate) fn highest<L: Line>(lines: &BTreeMap<GenerationId, L>) -> Result<(GenerationId, &L)> {
    lines
        .iter()
        .rev()
        .find(|(_, line)| line.exists())
        .map(|(&id, line)| (id, line))
        .ok_or_else(|| {
            Error::not_found(if lines.is_empty() {
                "the replica is empty"
            } else {
                "no generation has a complete snapshot yet"
            })
        })
}

/// Which of the level-0 segments that are not known yet to read next, so that the hints in their
/// footers spare most of the others: the newest and then every `stride`th before it. Indexes.
pub(crate) fn sample(wanted: usize, stride: usize) -> Vec<usize> {
    (0..wanted).rev().step_by(stride.max(1)).collect()
}

#[cfg(test)]
mod tests;
