//! What of a listing one moment can need, by the names alone. Pure.
//!
//! A long history has hundreds of objects, of which one moment needs a handful: the last snapshot
//! at or before it and the segments from there on. Names say which, but not all: where level-0
//! segments end, whether a snapshot is complete, who a generation's parent is. So this is a guess
//! that is checked: what is narrowed here is read and planned as if it was all that is listed. If a
//! clean point comes of it, the whole listing would give the same one; else the whole is read.
//!
//! What makes that so: a later object never changes which pieces stand for earlier transactions; a
//! merged segment's name has the time of its last transaction, and times ascend; a segment is
//! checked against the one before it, of which the footer is read for that (the *border*).

use crate::format::container::Parent;
use crate::format::ids::{GenerationId, Timestamp, Txid};
use crate::format::moment::Moment;
use crate::storage::catalog::{Catalog, GenerationListing, SegmentListing, SnapshotListing};
use crate::storage::cover::{Piece, Span, cover};

/// Generations of which a bare txid is looked for in one go.
const CANDIDATES_MAX: usize = 4;

/// What names say of a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Narrowed {
    /// Nothing certain: the whole listing is needed.
    Unclear,
    /// The claims of these generations must be read first.
    Claims(Vec<GenerationId>),
    /// No more than this is needed.
    To(Selection),
}

/// What one moment can need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Where the moment is looked for, in this order: the first that has it counts.
    pub(crate) targets: Vec<Target>,
    /// It is not after this transaction.
    pub(crate) limit: Option<Txid>,
    /// The objects to read.
    pub(crate) catalog: Catalog,
    /// Snapshots that carry interior pages, each for a generation whose base may carry none itself.
    pub(crate) interior: Vec<(GenerationId, SnapshotListing)>,
    /// Segments of which the footer is needed, to check those that go on from them.
    pub(crate) borders: Vec<(GenerationId, SegmentListing)>,
    /// The moment lies before this generation, if readers know it: the search begins there.
    pub(crate) before: Option<GenerationId>,
}

/// Where a moment is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) generation: GenerationId,
    /// The transaction of the snapshot from which it is opened.
    pub(crate) base: Txid,
    /// More is listed behind what was selected: a point counts only if it is certain that none
    /// comes between it and what was asked for.
    pub(crate) is_cut: bool,
}

/// Up to where a generation is needed.
#[derive(Clone, Copy, Debug, Default)]
struct Bound {
    txid: Option<Txid>,
    time: Option<Timestamp>,
}

impl Bound {
    fn admits(&self, snapshot: &SnapshotListing) -> bool {
        self.txid.is_none_or(|txid| snapshot.txid <= txid)
            && self.time.is_none_or(|time| snapshot.time <= time)
    }
}

/// What a moment needs, in one generation or by parentage. `claims` says what a generation's claim
/// names, as far as it was read.
pub(crate) fn narrow(
    catalog: &Catalog,
    claims: &dyn Fn(GenerationId) -> Option<Option<Parent>>,
    moment: Moment,
    generation: Option<GenerationId>,
) -> Narrowed {
    let selection = match (moment, generation) {
        (Moment::Txid(Some(named), _), Some(id)) if named != id => None,
        (Moment::Txid(Some(id), txid), _) | (Moment::Txid(None, txid), Some(id)) => {
            only(catalog, id, Bound::txid(txid))
        }
        (Moment::Txid(None, txid), None) => newest_with(catalog, txid),
        (Moment::Latest, Some(id)) => only(catalog, id, Bound::default()),
        (Moment::Latest, None) => {
            highest(catalog).and_then(|id| only(catalog, id, Bound::default()))
        }
        (Moment::At(time), Some(id)) => only(catalog, id, Bound::time(time)),
        (Moment::At(time), None) => return by_parentage(catalog, claims, time),
    };
    selection.map_or(Narrowed::Unclear, Narrowed::To)
}

/// The highest generation that has a snapshot.
fn highest(catalog: &Catalog) -> Option<GenerationId> {
    let mut generations = catalog.generations.iter().rev();
    let (id, _) = generations.find(|(_, listing)| !listing.snapshots.is_empty())?;
    Some(*id)
}

fn only(catalog: &Catalog, id: GenerationId, bound: Bound) -> Option<Selection> {
    let mut selection = Selection::default();
    selection.add(catalog, id, bound)?;
    Some(selection)
}

/// From the highest generation down to the first that has the txid by its names. How far those
/// above it go, their footers say.
fn newest_with(catalog: &Catalog, txid: Txid) -> Option<Selection> {
    let mut selection = Selection::default();
    for (&id, listing) in catalog.generations.iter().rev() {
        let snapshots = &listing.snapshots;
        if snapshots.first().is_none_or(|first| txid < first.txid) {
            continue;
        }
        if selection.add(catalog, id, Bound::txid(txid))? {
            return Some(selection);
        }
        if selection.targets.len() == CANDIDATES_MAX {
            break;
        }
    }
    (!selection.targets.is_empty()).then_some(selection)
}

/// From the highest generation to its parent, and so on, while the time lies before every snapshot
/// that it could be opened from.
fn by_parentage(
    catalog: &Catalog,
    claims: &dyn Fn(GenerationId) -> Option<Option<Parent>>,
    time: Timestamp,
) -> Narrowed {
    let Some(top) = highest(catalog) else {
        return Narrowed::Unclear;
    };
    let (mut id, mut bound) = (top, Bound::time(time));
    while let Some(listing) = catalog.generations.get(&id)
        && !listing.snapshots.iter().any(|s| bound.admits(s))
    {
        let parent = match claims(id) {
            Some(parent) => parent.filter(|parent| parent.generation < id),
            None if listing.claim.is_some() => {
                return Narrowed::Claims(unread(catalog, claims, id, time));
            }
            None => None,
        };
        match parent {
            Some(parent) => (id, bound.txid) = (parent.generation, Some(parent.txid)),
            None => return Narrowed::Unclear,
        }
    }
    let Some(mut selection) = only(catalog, id, bound) else {
        return Narrowed::Unclear;
    };
    selection.limit = bound.txid;
    if id != top {
        let newest = catalog.generations[&top].snapshots.last().cloned();
        let listing = GenerationListing {
            snapshots: newest.into_iter().collect(),
            ..GenerationListing::default()
        };
        selection.catalog.generations.insert(top, listing);
        selection.before = Some(top);
    }
    Narrowed::To(selection)
}

/// The claims to read in one go: mostly a generation's parent is the one before it.
fn unread(
    catalog: &Catalog,
    claims: &dyn Fn(GenerationId) -> Option<Option<Parent>>,
    from: GenerationId,
    time: Timestamp,
) -> Vec<GenerationId> {
    let bound = Bound::time(time);
    let below = catalog.generations.range(..=from).rev();
    let passed = below.take_while(|(id, listing)| {
        **id == from || !listing.snapshots.iter().any(|s| bound.admits(s))
    });
    let claimed = passed.filter(|(_, listing)| listing.claim.is_some());
    let ids = claimed.map(|(id, _)| *id);
    ids.filter(|id| claims(*id).is_none()).collect()
}

impl Bound {
    fn txid(txid: Txid) -> Self {
        Self {
            txid: Some(txid),
            time: None,
        }
    }

    fn time(time: Timestamp) -> Self {
        Self {
            txid: None,
            time: Some(time),
        }
    }
}

impl Selection {
    /// Adds what a generation needs up to a bound, and says whether names alone show that it goes
    /// so far; `None` if they show that something is missing.
    fn add(&mut self, catalog: &Catalog, id: GenerationId, bound: Bound) -> Option<bool> {
        let listing = catalog.generations.get(&id)?;
        let snapshots = &listing.snapshots;
        let at = snapshots.iter().rposition(|s| bound.admits(s))?;
        let (first, base) = (&snapshots[0], &snapshots[at]);
        let next = snapshots[at..].iter().find(|s| s.txid > base.txid);
        let (standing, pieces) = standing(listing);
        // A first snapshot may need all since the beginning: its name does not say. Where retention
        // left a gap before it, it is no such one.
        let is_lowest = base.txid == first.txid;
        let is_first = is_lowest && reaches(&pieces, base.txid);
        let since = if is_first { Txid::FIRST } else { base.txid };
        let (earlier, later) = pieces.split_at(pieces.partition_point(|p| p.to <= since));
        let bound = match bound.time == Some(base.time) {
            true => Bound::txid(base.txid),
            false => bound,
        };
        let taken = Taken::new(&standing, later, since, next, bound)?;
        let mut narrowed = GenerationListing {
            parts: listing.parts.clone(),
            ..GenerationListing::default()
        };
        // The first one carries interior pages.
        self.interior
            .extend((!is_lowest).then(|| (id, first.clone())));
        narrowed.snapshots.push(base.clone());
        narrowed.snapshots.extend(taken.ended_by.cloned());
        narrowed.segments = listed(&standing, &later[..taken.count]);
        match (earlier.last(), later[..taken.count].first()) {
            (Some(before), Some(piece)) if before.to.next() == piece.from => {
                self.borders.push((id, standing[before.index].clone()));
            }
            (None, Some(_)) if is_first => narrowed.claim.clone_from(&listing.claim),
            _ => {}
        }
        self.catalog.generations.insert(id, narrowed);
        self.targets.push(Target {
            generation: id,
            base: base.txid,
            is_cut: taken.count < later.len() || taken.ended_by.is_none() && next.is_some(),
        });
        Some(taken.is_reached)
    }
}

/// The pieces that lead from a snapshot to a bound.
struct Taken<'a> {
    count: usize,
    is_reached: bool,
    /// The pieces end in a gap, and this is behind it.
    ended_by: Option<&'a SnapshotListing>,
}

impl<'a> Taken<'a> {
    /// `None` if what is listed behind a gap may belong to what is asked for.
    fn new(
        standing: &[&SegmentListing],
        pieces: &[Piece],
        since: Txid,
        next: Option<&'a SnapshotListing>,
        bound: Bound,
    ) -> Option<Self> {
        let mut end = since.get();
        let mut taken = Self {
            count: 0,
            is_reached: false,
            ended_by: None,
        };
        for piece in pieces {
            taken.is_reached |= bound.txid.is_some_and(|txid| txid.get() <= end);
            if taken.is_reached || next.is_some_and(|next| piece.from > next.txid) {
                break;
            }
            if piece.from.get() - 1 > end {
                return None;
            }
            end = piece.to.get();
            taken.count += 1;
            let listed = standing[piece.index];
            // Of a piece that is cut short the name has a later time.
            let time = listed.time.filter(|_| listed.last == Some(piece.to));
            taken.is_reached |= bound.time.is_some_and(|wanted| time >= Some(wanted));
        }
        // A footer alone says where the newest upload ends.
        let is_known = |txid: Txid| txid.get() <= end && end < Txid::MAX.get();
        taken.is_reached |= bound.txid.is_some_and(is_known);
        if !taken.is_reached {
            taken.ended_by = next.filter(|next| end < next.txid.get() - 1);
        }
        Some(taken)
    }
}

/// True if the pieces lead from the beginning of a generation to a transaction.
fn reaches(pieces: &[Piece], txid: Txid) -> bool {
    let mut end = Txid::FIRST.get();
    for piece in pieces {
        if end >= txid.get() || piece.from.get() - 1 > end {
            break;
        }
        end = piece.to.get();
    }
    end >= txid.get()
}

fn listed(standing: &[&SegmentListing], pieces: &[Piece]) -> Vec<SegmentListing> {
    let mut indexes: Vec<usize> = pieces.iter().map(|piece| piece.index).collect();
    indexes.sort_unstable();
    indexes.dedup();
    let segments = indexes.into_iter().map(|index| standing[index].clone());
    segments.collect()
}

/// The segments that may stand for transactions, and for which of them each does, by the names.
pub(crate) fn standing(listing: &GenerationListing) -> (Vec<&SegmentListing>, Vec<Piece>) {
    let standing: Vec<&SegmentListing> = listing.standing().collect();
    let spans: Vec<Span> = standing.iter().map(|segment| span(segment)).collect();
    let pieces = cover(&spans);
    (standing, pieces)
}

/// The transactions that a name gives to a segment.
pub(crate) fn span(segment: &SegmentListing) -> Span {
    Span {
        level: segment.level,
        first: segment.first,
        // The newest segment of level 0 goes on until its footer says otherwise.
        last: segment.last.unwrap_or(Txid::MAX),
    }
}

#[cfg(test)]
mod tests;
