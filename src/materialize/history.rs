//! One generation as readers know it: its snapshots and segments, read and checked against each
//! other, and its restore points. Immutable; made anew when a listing shows something new.
//!
//! Fetches nothing. Owns the chain: each segment carries the hash of the one before it, and what
//! does not fit is treated like an object that cannot be read. A moment that damage might concern
//! is an error that names the object; all others stay readable.
//!
//! Points lie in timelines that are shared with the segments they come from.

use crate::error::{Error, ErrorKind, Result};
use crate::format::claim::Claim;
use crate::format::container::{Parent, SectionRef};
use crate::format::ids::{
    GenerationId, ObjectHash, ObjectId, PageSize, RestorePoint, Timestamp, Txid,
};
use crate::format::snapshot::MapRoot;
use crate::materialize::cache::{ObjectNumber, locked};
use crate::materialize::disk::Identity;
use crate::materialize::plan::{self, Base, Break, Line, Plan, Reach, Shape, Unplanned, Why};
use crate::materialize::timeline::{Point, Timeline};
use crate::storage::cover::{Piece, Span, cover};
use crate::storage::{Listed, Store};
use bytes::Bytes;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A stored object. One value for each key of a replica, as long as listings show it.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) number: ObjectNumber,
    /// Below the replica.
    pub(crate) key: String,
    /// Bytes.
    pub(crate) size: u64,
    /// What the disk cache calls it, as the last listing has it.
    identity: Mutex<Identity>,
    is_gone: AtomicBool,
}

impl Object {
    /// Of a store that has listed it.
    pub(crate) fn new(number: ObjectNumber, store: &dyn Store, listed: &Listed) -> Self {
        Self {
            number,
            key: listed.key.clone(),
            size: listed.size,
            identity: Mutex::new(Identity::new(store, listed)),
            is_gone: AtomicBool::new(false),
        }
    }

    /// What the disk cache calls it.
    pub(crate) fn identity(&self) -> Identity {
        *locked(&self.identity)
    }

    /// Another listing shows it: the time of an object that only its writer told of may differ.
    pub(crate) fn set_listed(&self, store: &dyn Store, listed: &Listed) {
        *locked(&self.identity) = Identity::new(store, listed);
    }

    /// True once a listing no longer showed it.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    pub(crate) fn set_gone(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
    }
}

/// A claim that was read, with the hash that the first segment must carry.
#[derive(Debug)]
pub(crate) struct ReadClaim {
    pub(crate) object: Arc<Object>,
    pub(crate) claim: Claim,
    pub(crate) hash: ObjectHash,
}

/// A segment whose footer, or a later one's hint, was read.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) object: Arc<Object>,
    pub(crate) level: u8,
    pub(crate) first: Txid,
    pub(crate) last: Txid,
    /// The hash of the level-0 segment before `first`, or of the claim.
    pub(crate) previous: ObjectHash,
    /// The hash that the level-0 segment after `last` carries.
    pub(crate) hands_on: ObjectHash,
    /// Unknown if only a hint was read.
    pub(crate) page_size: Option<PageSize>,
    /// Its restore points.
    pub(crate) timeline: Arc<Timeline>,
    /// Transactions whose pages lie in a snapshot.
    pub(crate) marks: Box<[Txid]>,
    /// How many versions of pages lie in it.
    pub(crate) versions: u64,
}

impl Segment {
    /// True if transactions of its range are not in its timeline. Then it keeps of each page only
    /// the versions that those which are see, or its last one.
    pub(crate) fn is_thinned(&self) -> bool {
        (self.timeline.count() as u64).checked_sub(1) != Some(self.last.get() - self.first.get())
    }

    /// True if it keeps all versions in its range that the moment of this transaction sees.
    pub(crate) fn serves(&self, txid: Txid) -> bool {
        let is_outside = txid < self.first || txid >= self.last;
        is_outside || self.timeline.find(txid).is_some()
    }
}

/// A snapshot whose footer and map root were read.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) object: Arc<Object>,
    pub(crate) txid: Txid,
    pub(crate) since: Txid,
    pub(crate) is_exact: bool,
    pub(crate) page_size: PageSize,
    pub(crate) root: MapRoot,
    /// How many pages lie in this object.
    pub(crate) stored: u64,
    /// Every object that the map may name, this one among them.
    pub(crate) homes: HashMap<ObjectId, Arc<Object>>,
    pub(crate) point: Point,
    /// The hash that the level-0 segment behind it carries, if it is known.
    pub(crate) hands_on: Option<ObjectHash>,
    /// Where its interior pages lie, if it carries them.
    pub(crate) interior: Option<SectionRef>,
    /// These, as they are stored, if they came with the footer and are not in the cache yet.
    pub(crate) interior_stored: Mutex<Option<Bytes>>,
    /// The interior pages are, or were, in the cache.
    pub(crate) interior_read: AtomicBool,
}

impl Snapshot {
    /// The object of a map by its id.
    ///
    /// # Errors
    /// `Corrupt` if the root does not name it.
    pub(crate) fn home(&self, id: ObjectId) -> Result<&Arc<Object>> {
        self.homes.get(&id).ok_or_else(|| {
            let key = &self.object.key;
            Error::corrupt(format!(
                "{key}: its map needs object {id}, which its root does not name"
            ))
        })
    }
}

/// What kind of object is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damaged {
    Claim,
    Snapshot {
        txid: Txid,
        time: Timestamp,
    },
    /// With the transactions that its key names; `last` is beyond all where the key has none.
    Segment {
        first: Txid,
        last: Txid,
    },
}

/// An object that is listed and cannot be used.
#[derive(Clone, Debug)]
pub(crate) struct Damage {
    pub(crate) what: Damaged,
    pub(crate) kind: ErrorKind,
    /// Names the object.
    pub(crate) sentence: String,
}

impl Damage {
    pub(crate) fn error(&self) -> Error {
        Error::new(self.kind, self.sentence.clone())
    }

    fn segment(&self) -> Option<(Txid, Txid)> {
        match self.what {
            Damaged::Segment { first, last } => Some((first, last)),
            Damaged::Claim | Damaged::Snapshot { .. } => None,
        }
    }

    fn snapshot(&self) -> Option<(Txid, Timestamp)> {
        match self.what {
            Damaged::Snapshot { txid, time } => Some((txid, time)),
            Damaged::Claim | Damaged::Segment { .. } => None,
        }
    }
}

/// An object that a snapshot's root names and that is not listed with that length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lack {
    pub(crate) key: String,
    /// Bytes.
    pub(crate) length: u64,
}

/// What a generation is made from.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) id: GenerationId,
    pub(crate) claim: Option<Arc<ReadClaim>>,
    /// In the order of the listing, each with what it needs and the listing does not show.
    pub(crate) snapshots: Vec<(Arc<Snapshot>, Option<Lack>)>,
    /// In the order of the listing.
    pub(crate) segments: Vec<Arc<Segment>>,
    /// What the first of them may go on from.
    pub(crate) border: Option<Border>,
    pub(crate) damage: Vec<Damage>,
}

/// The end of a segment, or of what a snapshot was made from, of which no more is known.
#[derive(Clone, Debug)]
pub(crate) struct Border {
    pub(crate) key: String,
    pub(crate) last: Txid,
    pub(crate) hands_on: ObjectHash,
}

/// One generation.
#[derive(Debug)]
pub(crate) struct History {
    pub(crate) id: GenerationId,
    pub(crate) claim: Option<Arc<ReadClaim>>,
    /// Ascending by txid.
    pub(crate) snapshots: Vec<Arc<Snapshot>>,
    /// What each of them lacks.
    lacks: Vec<Option<Lack>>,
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) damage: Vec<Damage>,
    shape: Shape,
    reach: Reach,
    chunks: Vec<Chunk>,
    /// How many restore points lie before each chunk.
    starts: Vec<usize>,
}

/// Some restore points of a timeline, ascending; never empty.
#[derive(Debug)]
struct Chunk {
    timeline: Arc<Timeline>,
    range: Range<usize>,
    first: Point,
    last: Point,
}

impl Chunk {
    fn new(timeline: &Arc<Timeline>, range: Range<usize>) -> Option<Self> {
        let last = timeline.get(range.end.checked_sub(1)?)?;
        (range.start < range.end).then_some(Self {
            timeline: Arc::clone(timeline),
            first: timeline.get(range.start)?,
            last,
            range,
        })
    }

    fn count(&self) -> usize {
        self.range.len()
    }

    /// How many of the first ones are so. What holds of one holds of all before it.
    fn partition_point(&self, holds: impl Fn(&Point) -> bool) -> usize {
        let Range { start, end } = self.range;
        self.timeline.partition_point(holds).clamp(start, end) - start
    }

    /// Those with these places, from either end.
    fn points(&self, range: Range<usize>) -> impl DoubleEndedIterator<Item = Point> + '_ {
        let start = self.range.start;
        self.timeline
            .points(start + range.start..start + range.end.min(self.count()))
    }
}

/// Pieces of segments to lay over a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Laid {
    pub(crate) segment: Arc<Segment>,
    pub(crate) from: Txid,
    pub(crate) to: Txid,
}

/// The objects that one moment needs.
#[derive(Clone, Debug)]
pub(crate) struct Needed {
    pub(crate) base: Arc<Snapshot>,
    /// For [`History::laid`].
    pub(crate) pieces: Range<usize>,
    /// The newest snapshot at or before the base that carries interior pages.
    pub(crate) interior: Option<Arc<Snapshot>>,
}

impl History {
    /// Puts a generation together: checks the chain, says what can be opened, lists the points.
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            id,
            claim,
            snapshots,
            mut segments,
            border,
            mut damage,
        } = parts;
        let claimed = claim.as_ref().map(|claim| Border {
            key: claim.object.key.clone(),
            last: Txid::FIRST,
            hands_on: claim.hash,
        });
        let border = border.or(claimed);
        let bases = snapshots.iter().map(|(snapshot, lack)| Base {
            txid: snapshot.txid,
            since: snapshot.since,
            is_complete: lack.is_none(),
        });
        let mut shape = Shape {
            snapshots: bases.collect(),
            ..Shape::default()
        };
        let (snapshots, lacks): (Vec<_>, Vec<_>) = snapshots.into_iter().unzip();
        let page_size = snapshots.last().map(|snapshot| snapshot.page_size);
        // Each round takes out one segment that does not fit, so this ends.
        loop {
            shape.pieces = cover(&spans(&segments));
            match misfit(&segments, &shape, border.as_ref(), page_size) {
                Some((index, found)) => {
                    segments.remove(index);
                    damage.push(found);
                }
                None => break,
            }
        }
        shape.marks = segments
            .iter()
            .flat_map(|s| s.marks.iter().copied())
            .collect();
        shape.marks.sort_unstable();
        shape.unreadable = damage.iter().filter_map(|found| found.segment()).collect();
        shape.unreadable.sort_unstable();
        let unreadable = damage.iter().filter_map(|found| found.snapshot());
        shape.unreadable_snapshots = unreadable.map(|(txid, _)| txid).collect();
        let reach = plan::reach(&shape);
        let chunks = chunks(&snapshots, &segments, &shape, &reach);
        let starts = chunks.iter().scan(0, |before, chunk| {
            let start = *before;
            *before += chunk.count();
            Some(start)
        });
        let starts = starts.collect();
        Self {
            id,
            claim,
            snapshots,
            lacks,
            segments,
            damage,
            shape,
            reach,
            chunks,
            starts,
        }
    }

    /// True if this is what would come of these parts.
    pub(crate) fn is_made_from(&self, parts: &Parts) -> bool {
        // What was damaged is read again each time, and segments that do not fit are taken out.
        let same_snapshots = self.snapshots.len() == parts.snapshots.len()
            && parts
                .snapshots
                .iter()
                .enumerate()
                .all(|(index, (snapshot, lack))| {
                    Arc::ptr_eq(snapshot, &self.snapshots[index]) && *lack == self.lacks[index]
                });
        let same_claim = match (&self.claim, &parts.claim) {
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs),
            (ours, theirs) => ours.is_none() && theirs.is_none(),
        };
        let same_segments = self.segments.len() == parts.segments.len()
            && self
                .segments
                .iter()
                .zip(&parts.segments)
                .all(|(a, b)| Arc::ptr_eq(a, b));
        let is_clean = self.damage.is_empty() && parts.damage.is_empty();
        is_clean && same_claim && same_snapshots && same_segments
    }

    /// True if a moment can be opened from the snapshot with this index.
    pub(crate) fn is_complete(&self, snapshot: usize) -> bool {
        self.shape.snapshots[snapshot].is_complete
    }

    /// True if moments can be opened from a snapshot of this transaction.
    pub(crate) fn begins_at(&self, txid: Txid) -> bool {
        let mut bases = self.shape.snapshots.iter();
        bases.any(|base| base.txid == txid && base.is_complete)
    }

    /// Bytes in a page.
    pub(crate) fn page_size(&self) -> Option<PageSize> {
        self.snapshots.last().map(|snapshot| snapshot.page_size)
    }

    /// What is wrong where moments cannot be opened although something newer is stored, or because
    /// an object is damaged. A gap that a later snapshot ends is what retention leaves, and is not
    /// among them.
    pub(crate) fn troubles(&self) -> impl Iterator<Item = Error> + '_ {
        let open_end = self.reach.breaks.iter().filter(|b| b.to.is_none());
        let gaps = open_end.filter(|b| self.damage_at(b).is_none());
        let damaged = self.damage.iter().map(Damage::error);
        let lacking = (0..self.snapshots.len()).filter_map(|index| self.lacking(index));
        damaged
            .chain(lacking)
            .chain(gaps.map(|found| self.broken(found)))
    }

    fn restore_point(&self, point: &Point) -> RestorePoint {
        RestorePoint {
            generation: self.id,
            txid: point.txid,
            time: point.time,
            pages: point.pages,
        }
    }

    /// The restore point with this txid.
    pub(crate) fn point(&self, txid: Txid) -> Option<RestorePoint> {
        let index = self.chunks.partition_point(|chunk| chunk.last.txid < txid);
        let chunk = self.chunks.get(index).filter(|c| c.first.txid <= txid)?;
        Some(self.restore_point(&chunk.timeline.find(txid)?))
    }

    /// The level of the segment that a transaction lies in; `None` for that of a snapshot from
    /// which moments are opened, and for one of which nothing is listed.
    pub(crate) fn level(&self, txid: Txid) -> Option<u8> {
        let bases = &self.shape.snapshots;
        let start = bases.partition_point(|base| base.txid < txid);
        let mut own = bases[start..].iter().take_while(|base| base.txid == txid);
        if own.any(|base| base.is_complete) {
            return None;
        }
        let index = self.shape.pieces.partition_point(|piece| piece.to < txid);
        let piece = self.shape.pieces.get(index)?;
        (piece.from <= txid).then(|| self.segments[piece.index].level)
    }

    /// The last restore point that can be opened, whatever may be missing behind it.
    pub(crate) fn last(&self) -> Option<RestorePoint> {
        Some(self.restore_point(&self.chunks.last()?.last))
    }

    /// How many restore points there are.
    pub(crate) fn count(&self) -> usize {
        let last = self.starts.last().zip(self.chunks.last());
        last.map_or(0, |(start, chunk)| start + chunk.count())
    }

    /// Restore points from this one on, by their place in the order of txids, from 0.
    pub(crate) fn points_from(&self, index: usize) -> impl Iterator<Item = RestorePoint> + '_ {
        let first = self.starts.partition_point(|start| *start <= index);
        let first = first.saturating_sub(1);
        let skipped = index - self.starts.get(first).copied().unwrap_or(index);
        let chunks = self.chunks.get(first..).unwrap_or(&[]);
        let points = chunks.iter().enumerate().flat_map(move |(place, chunk)| {
            let start = if place == 0 { skipped } else { 0 };
            chunk.points(start..chunk.count())
        });
        points.map(|point| self.restore_point(&point))
    }

    /// How many of the first restore points are so. What holds of one holds of all before it.
    pub(crate) fn count_while(&self, holds: impl Fn(&RestorePoint) -> bool) -> usize {
        let holds = |point: &Point| holds(&self.restore_point(point));
        let index = self.chunks.partition_point(|chunk| holds(&chunk.last));
        match self.chunks.get(index) {
            Some(chunk) => self.starts[index] + chunk.partition_point(holds),
            None => self.count(),
        }
    }

    /// When its first snapshot was taken, damaged ones too: no earlier time means a commit of it.
    pub(crate) fn begins(&self) -> Option<Timestamp> {
        let snapshots = self.snapshots_listed().map(|(_, time)| time);
        let first = self.chunks.first().map(|chunk| chunk.first.time);
        snapshots.chain(first).min()
    }

    /// Restore points within the times, descending.
    pub(crate) fn points_back(
        &self,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> impl Iterator<Item = RestorePoint> + '_ {
        let end = self
            .chunks
            .partition_point(|chunk| until.is_none_or(|until| chunk.first.time <= until));
        let chunks = self.chunks[..end].iter().rev();
        chunks
            .flat_map(|chunk| chunk.points(0..chunk.count()).rev())
            .skip_while(move |point| until.is_some_and(|until| point.time > until))
            .take_while(move |point| since.is_none_or(|since| point.time >= since))
            .map(|point| self.restore_point(&point))
    }

    /// The objects that a moment needs.
    ///
    /// # Errors
    /// `NotFound` if it is no restore point; `Corrupt` if something is missing or damaged.
    pub(crate) fn needed(&self, txid: Txid) -> Result<Needed> {
        let Plan { base, pieces } = self
            .reach
            .plan(&self.shape, txid)
            .map_err(|unplanned| self.unplanned(txid, unplanned))?;
        if self.point(txid).is_none() {
            return Err(self.removed(txid));
        }
        let interior = self.snapshots[..=base]
            .iter()
            .rev()
            .find(|s| s.interior.is_some());
        Ok(Needed {
            base: Arc::clone(&self.snapshots[base]),
            pieces,
            interior: interior.cloned(),
        })
    }

    /// The next `count` pieces of segments, at most, that go on after a transaction.
    pub(crate) fn laid(&self, pieces: &Range<usize>, after: Txid, count: usize) -> Vec<Laid> {
        let pieces = &self.shape.pieces[pieces.clone()];
        let done = pieces.partition_point(|piece| piece.to <= after);
        let next = pieces[done..].iter().take(count).map(|piece| Laid {
            segment: Arc::clone(&self.segments[piece.index]),
            from: piece.from.max(after.next()),
            to: piece.to,
        });
        next.collect()
    }

    /// Why a transaction is no restore point.
    pub(crate) fn unplanned(&self, txid: Txid, unplanned: Unplanned) -> Error {
        let id = self.id;
        match unplanned {
            Unplanned::Broken(found) if found.is_gap() => self.removed(txid),
            Unplanned::Broken(found) => self.broken(&found),
            Unplanned::After(last) => Error::not_found(format!(
                "generation {id} has no txid {txid}: its last one is {last}"
            )),
            Unplanned::Before(first) => {
                // A later snapshot would not help.
                let helps = |at: Txid| first.is_none() || at <= txid;
                let damage = self.damaged_snapshot(helps).map(Damage::error);
                let mut those =
                    (0..self.snapshots.len()).filter(|&i| helps(self.snapshots[i].txid));
                let lacking = || those.find_map(|index| self.lacking(index));
                damage.or_else(lacking).unwrap_or_else(|| {
                    Error::not_found(match first {
                        Some(first) => format!(
                            "generation {id} has no restore point at txid {txid}: its first one \
                             is {first}"
                        ),
                        None => format!("generation {id} has no complete snapshot"),
                    })
                })
            }
        }
    }

    fn removed(&self, txid: Txid) -> Error {
        let id = self.id;
        Error::not_found(format!(
            "generation {id} keeps no restore point at txid {txid}: retention removed it"
        ))
    }

    /// What the moment of a txid cannot be opened for, if it lies in a break that retention did not
    /// leave.
    pub(crate) fn broken_at(&self, txid: Txid) -> Option<Error> {
        let found = self.reach.break_at(txid).filter(|found| !found.is_gap());
        found.map(|found| self.broken(found))
    }

    /// What keeps a snapshot from being a base.
    fn lacking(&self, index: usize) -> Option<Error> {
        let Lack { key, length } = self.lacks.get(index)?.as_ref()?;
        let snapshot = &self.snapshots[index].object.key;
        Some(Error::corrupt(format!(
            "{snapshot} needs {key} of {length} bytes, which the listing does not show"
        )))
    }

    fn damaged_claim(&self) -> Option<&Damage> {
        let mut damage = self.damage.iter();
        damage.find(|damage| damage.what == Damaged::Claim)
    }

    /// A damaged snapshot of such a transaction.
    fn damaged_snapshot(&self, which: impl Fn(Txid) -> bool) -> Option<&Damage> {
        let is_one = |damage: &&Damage| damage.snapshot().is_some_and(|(txid, _)| which(txid));
        self.damage.iter().find(is_one)
    }

    fn damage_at(&self, found: &Break) -> Option<&Damage> {
        let Why::Missing(missing) = found.why else {
            return None;
        };
        let holds = |(first, last): (Txid, Txid)| first <= missing && missing <= last;
        self.damage
            .iter()
            .find(|damage| damage.segment().is_some_and(holds))
    }

    fn broken(&self, found: &Break) -> Error {
        if let Some(damage) = self.damage_at(found) {
            return damage.error();
        }
        let id = self.id;
        match found.why {
            Why::Missing(txid) | Why::Removed(txid) => Error::corrupt(format!(
                "generation {id}: txid {txid} is missing: no segment in the listing holds it"
            )),
            Why::SnapshotMissing(txid) => {
                let index = self.snapshots.iter().position(|s| s.txid == txid);
                let lacking = index.and_then(|index| self.lacking(index));
                let damage = || self.damaged_snapshot(|_| true).map(Damage::error);
                lacking.or_else(damage).unwrap_or_else(|| {
                    Error::corrupt(format!(
                        "generation {id}: the pages of txid {txid} lie in a snapshot that the \
                         listing does not show"
                    ))
                })
            }
        }
    }
}

impl Line for Arc<History> {
    fn exists(&self) -> bool {
        // A generation whose snapshot is damaged, or whose first segments are lost, is there: to
        // pass over it in silence would give an older state for the newest one.
        let is_known = !self.reach.stretches.is_empty() || !self.reach.breaks.is_empty();
        is_known || self.damaged_snapshot(|_| true).is_some()
    }

    fn parent(&self) -> Result<Option<Parent>> {
        match self.damaged_claim() {
            Some(damage) => Err(damage.error()),
            None => Ok(self.claim.as_ref().and_then(|read| read.claim.parent)),
        }
    }

    fn first(&self) -> Option<RestorePoint> {
        Some(self.restore_point(&self.chunks.first()?.first))
    }

    fn at(&self, time: Timestamp, limit: Option<Txid>) -> Result<Option<RestorePoint>> {
        let is_before = |txid, at| at <= time && limit.is_none_or(|limit| txid <= limit);
        let mut snapshots = self.snapshots_listed();
        if !snapshots.any(|(txid, at)| is_before(txid, at)) {
            // Whatever is damaged or missing, it lies before all that this generation can have.
            return Ok(None);
        }
        if self.chunks.is_empty() {
            let damage = self.damaged_snapshot(|_| true).map(Damage::error);
            let mut breaks = self.reach.breaks.iter().filter(|found| !found.is_gap());
            let broken = || breaks.next().map(|found| self.broken(found));
            return damage.or_else(broken).map_or(Ok(None), Err);
        }
        let is_after = |p: &Point| p.time > time || limit.is_some_and(|limit| p.txid > limit);
        let index = self.chunks.partition_point(|chunk| !is_after(&chunk.last));
        let within = self.chunks.get(index).and_then(|chunk| {
            let count = chunk.partition_point(|point| !is_after(point));
            chunk.points(0..count).next_back()
        });
        let before = index.checked_sub(1).map(|index| self.chunks[index].last);
        let Some(found) = within.or(before) else {
            // A snapshot was there by then. If it cannot be read, nobody knows what it would show.
            let by_then = |(txid, at)| is_before(txid, at);
            let mut damage = self.damage.iter();
            let damage = damage.find(|damage| damage.snapshot().is_some_and(by_then));
            return damage.map_or(Ok(None), |damage| Err(damage.error()));
        };
        if found.time == time {
            // Times ascend: what comes after it is later, whether it is known or not.
            return Ok(Some(self.restore_point(&found)));
        }
        // A break between this point and the next known one may hold a later one.
        let next = self.after(found.txid).map(|next| next.txid);
        let through = [limit, next].into_iter().flatten().min();
        match self.reach.break_between(found.txid, through) {
            Some(found) => Err(self.broken(found)),
            None => Ok(Some(self.restore_point(&found))),
        }
    }
}

impl History {
    /// Of all snapshots, damaged ones too.
    fn snapshots_listed(&self) -> impl Iterator<Item = (Txid, Timestamp)> + '_ {
        let read = self.snapshots.iter().map(|s| (s.txid, s.point.time));
        read.chain(self.damage.iter().filter_map(Damage::snapshot))
    }

    /// The first restore point after a transaction.
    pub(crate) fn after(&self, txid: Txid) -> Option<Point> {
        let is_before = |point: &Point| point.txid <= txid;
        let index = self.chunks.partition_point(|chunk| is_before(&chunk.last));
        let chunk = self.chunks.get(index)?;
        let place = chunk.range.start + chunk.partition_point(is_before);
        chunk.timeline.get(place)
    }
}

fn spans(segments: &[Arc<Segment>]) -> Vec<Span> {
    let span = |segment: &Arc<Segment>| Span {
        level: segment.level,
        first: segment.first,
        last: segment.last,
    };
    segments.iter().map(span).collect()
}

/// The first segment that does not go on from the one before it, and what is wrong with it.
fn misfit(
    segments: &[Arc<Segment>],
    shape: &Shape,
    border: Option<&Border>,
    page_size: Option<PageSize>,
) -> Option<(usize, Damage)> {
    let mut before = border.map(|border| (border.last, border.hands_on, border.key.as_str()));
    for piece in &shape.pieces {
        let segment = &segments[piece.index];
        let wrong = |what: String| Damage {
            what: Damaged::Segment {
                first: segment.first,
                last: segment.last,
            },
            kind: ErrorKind::Corrupt,
            sentence: format!("{}: {what}", segment.object.key),
        };
        if let (Some(seen), Some(expected)) = (segment.page_size, page_size)
            && seen != expected
        {
            let (seen, expected) = (seen.get(), expected.get());
            let what = format!("pages of {seen} bytes, expected {expected} as in the snapshot");
            return Some((piece.index, wrong(what)));
        }
        let previous = segment.previous;
        if let Some((end, hash, key)) = before
            && end.next() == piece.from
            && piece.from == segment.first
            && hash != previous
        {
            let what = format!("it goes on from hash {previous}, but {key} has {hash}");
            return Some((piece.index, wrong(what)));
        }
        // Within a segment no level-0 segment ends, so nothing can be checked there.
        before = (piece.to == segment.last).then_some((
            piece.to,
            segment.hands_on,
            segment.object.key.as_str(),
        ));
    }
    None
}

/// The restore points of all stretches.
fn chunks(
    snapshots: &[Arc<Snapshot>],
    segments: &[Arc<Segment>],
    shape: &Shape,
    reach: &Reach,
) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for stretch in &reach.stretches {
        let base = &snapshots[stretch.base];
        let start = shape.pieces.partition_point(|p| p.to <= base.since);
        let end = shape.pieces.partition_point(|p| p.from <= stretch.last);
        let pieces = &shape.pieces[start..end.max(start)];
        // A fuzzy one needs segments for its own moment, too.
        let is_fuzzy = base.since < base.txid;
        let below = pieces
            .iter()
            .take_while(|p| is_fuzzy && p.from <= stretch.first);
        let mut below_first = Sieve::default();
        for piece in below {
            below_first.pass(&segments[piece.index], piece);
        }
        // A snapshot carries its own entry: no segment needs to hold it.
        if below_first.lets_through(stretch.first) {
            let own: Timeline = [base.point].into_iter().collect();
            chunks.extend(Chunk::new(&Arc::new(own), 0..1));
        }
        let mut sieve = Sieve::default();
        for piece in pieces {
            let segment = &segments[piece.index];
            sieve.pass(segment, piece);
            let timeline = &segment.timeline;
            let after = piece.from.max(stretch.first.next());
            let start = timeline.partition_point(|point| point.txid < after);
            let end = timeline.partition_point(|p| p.txid <= piece.to.min(stretch.last));
            chunks.extend(sieve.chunk(segment, start..end.max(start)));
        }
    }
    chunks
}

/// The thinned segments that a plan passes through. A moment that one of them, cut short by a
/// segment that readers prefer, does not serve is no restore point, whoever else lists it.
#[derive(Default)]
struct Sieve<'a>(Vec<&'a Segment>);

impl<'a> Sieve<'a> {
    /// Goes on to a piece.
    fn pass(&mut self, segment: &'a Segment, piece: &Piece) {
        self.0.retain(|before| before.last >= piece.from);
        if segment.is_thinned() && !self.0.iter().any(|other| std::ptr::eq(*other, segment)) {
            self.0.push(segment);
        }
    }

    fn lets_through(&self, txid: Txid) -> bool {
        self.0.iter().all(|segment| segment.serves(txid))
    }

    /// What it lets through of some points of a segment that it has come to.
    fn chunk(&self, segment: &Segment, range: Range<usize>) -> Option<Chunk> {
        let timeline = &segment.timeline;
        // A segment serves its own points.
        let others = self
            .0
            .iter()
            .filter(|other| !std::ptr::eq(**other, segment));
        let others: Vec<&Segment> = others.copied().collect();
        let is_let_through = |point: &Point| others.iter().all(|s| s.serves(point.txid));
        if others.is_empty() || timeline.points(range.clone()).all(|p| is_let_through(&p)) {
            return Chunk::new(timeline, range);
        }
        let through = timeline.points(range).filter(is_let_through);
        let through: Timeline = through.collect();
        let count = through.count();
        Chunk::new(&Arc::new(through), 0..count)
    }
}
