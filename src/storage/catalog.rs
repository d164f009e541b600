//! What a listing of keys shows: generations, snapshots, parts and segments. Pure.
//!
//! A catalog believes names alone and reads no object. So it never says that a snapshot is complete
//! (its root names what it needs), nor where a level-0 segment really ends (its footer does): it
//! says what is there, and which segments stand for transactions.
//!
//! Invariants: lists are sorted as their fields say; a key that does not parse is in `unknown` and
//! nowhere else.

use crate::format::ids::{GenerationId, Pgno, Timestamp, Txid};
use crate::format::key::{Key, ObjectKey};
use crate::storage::Listed;
use std::collections::BTreeMap;

/// All that a replica's listing shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Those that have any object, if only a claim.
    pub generations: BTreeMap<GenerationId, GenerationListing>,
    /// Keys that are not ours, in the order of the listing: never touched.
    pub unknown: Vec<String>,
}

/// One generation's objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationListing {
    /// The claim, if there is one.
    pub claim: Option<Listed>,
    /// Ascending by txid, then by key.
    pub snapshots: Vec<SnapshotListing>,
    /// Ascending by `since`, then by first page, then by key.
    pub parts: Vec<PartListing>,
    /// Ascending by first txid, then by level, then by key.
    pub segments: Vec<SegmentListing>,
}

/// A snapshot, as its key describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotListing {
    /// The transaction whose state it is.
    pub txid: Txid,
    /// When that was committed.
    pub time: Timestamp,
    /// The first 32 bits of the object's hash.
    pub hash8: u32,
    /// The object itself.
    pub object: Listed,
}

/// A part of a large snapshot, as its key describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartListing {
    /// Every page in it is at least as new as this transaction.
    pub since: Txid,
    /// Its first page.
    pub first: Pgno,
    /// The first 32 bits of the object's hash.
    pub hash8: u32,
    /// The object itself.
    pub object: Listed,
}

/// A WAL segment, as its key and its neighbours' describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentListing {
    /// 0 for an upload of the daemon, 1 and up for merged ones.
    pub level: u8,
    /// Its first transaction.
    pub first: Txid,
    /// Its last transaction. The key of a level-0 segment does not have it: it is taken to be the
    /// one before the next level-0 segment, and `None` for the newest. Objects that are missing
    /// between two level-0 segments hide behind that, so a reader checks the footer.
    pub last: Option<Txid>,
    /// When the last transaction was committed; level 0 says so in its footer only.
    pub time: Option<Timestamp>,
    /// The first 32 bits of the object's hash; not in the key of level 0.
    pub hash8: Option<u32>,
    /// The object itself.
    pub object: Listed,
}

impl Catalog {
    /// Reads a listing of everything below a replica (keys relative to the replica), in any order.
    pub fn new(listing: Vec<Listed>) -> Self {
        let mut catalog = Self::default();
        for object in listing {
            match Key::parse(&object.key) {
                Some(key) => catalog
                    .generations
                    .entry(key.generation)
                    .or_default()
                    .add(key.object, object),
                None => catalog.unknown.push(object.key),
            }
        }
        for generation in catalog.generations.values_mut() {
            generation.sort();
            generation.derive_ends();
        }
        catalog
    }

    /// The highest ordinal of a generation that is listed; 0 if there is none.
    pub fn highest_ordinal(&self) -> u32 {
        self.generations
            .last_key_value()
            .map_or(0, |(id, _)| id.ordinal)
    }
}

impl GenerationListing {
    /// The segments that stand for transactions: merged ones, and the uploads that they do not
    /// hold. An upload whose first transaction lies in a merged one was merged; or, if it goes on
    /// behind that one, it is of another history: merging takes whole uploads, so it came later,
    /// from a writer that slept until its name was free again.
    pub fn standing(&self) -> impl Iterator<Item = &SegmentListing> {
        let held = Held::new(self.segments.iter());
        self.segments
            .iter()
            .filter(move |segment| !held.has(segment))
    }

    fn add(&mut self, key: ObjectKey, object: Listed) {
        match key {
            ObjectKey::Claim => self.claim = Some(object),
            ObjectKey::Part {
                since,
                first,
                hash8,
            } => self.parts.push(PartListing {
                since,
                first,
                hash8,
                object,
            }),
            ObjectKey::Snapshot { txid, time, hash8 } => self.snapshots.push(SnapshotListing {
                txid,
                time,
                hash8,
                object,
            }),
            ObjectKey::Upload { first } => self.segments.push(SegmentListing {
                level: 0,
                first,
                last: None,
                time: None,
                hash8: None,
                object,
            }),
            ObjectKey::Merged {
                level,
                first,
                last,
                time,
                hash8,
            } => self.segments.push(SegmentListing {
                level,
                first,
                last: Some(last),
                time: Some(time),
                hash8: Some(hash8),
                object,
            }),
        }
    }

    fn sort(&mut self) {
        self.snapshots
            .sort_by(|a, b| (a.txid, &a.object.key).cmp(&(b.txid, &b.object.key)));
        self.parts.sort_by(|a, b| {
            (a.since, a.first, &a.object.key).cmp(&(b.since, b.first, &b.object.key))
        });
        self.segments.sort_by(|a, b| {
            (a.first, a.level, &a.object.key).cmp(&(b.first, b.level, &b.object.key))
        });
    }

    /// Ends each level-0 segment before the next one.
    fn derive_ends(&mut self) {
        let mut next = None;
        for segment in self.segments.iter_mut().rev().filter(|s| s.level == 0) {
            segment.last = next.and_then(|next: Txid| Txid::new(next.get() - 1));
            next = Some(segment.first);
        }
    }
}

/// The transactions that merged segments hold: an upload that begins in one stands for nothing.
pub(crate) struct Held(Vec<(Txid, Option<Txid>)>);

impl Held {
    /// From all segments of a generation, in the order of a listing.
    pub(crate) fn new<'a>(segments: impl Iterator<Item = &'a SegmentListing>) -> Self {
        let merged = segments.filter(|segment| segment.level > 0);
        let mut end = None;
        let ranges = merged.filter_map(|segment| {
            end = end.max(Some(segment.last?));
            Some((segment.first, end))
        });
        Self(ranges.collect())
    }

    /// True if a segment is an upload that does not stand.
    pub(crate) fn has(&self, segment: &SegmentListing) -> bool {
        let begun = self.0.partition_point(|(first, _)| *first <= segment.first);
        let end = self.0[..begun].last().map(|&(_, end)| end);
        segment.level == 0 && end.is_some_and(|end| end >= Some(segment.first))
    }
}

#[cfg(test)]
mod tests;
