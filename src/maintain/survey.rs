//! What maintenance knows of a replica: a listing, and what its objects say of themselves. Plain
//! data.

use crate::format::container::Parent;
use crate::format::ids::{GenerationId, Timestamp, Txid};
use crate::format::snapshot::Home;
use crate::storage::Listed;
use crate::storage::catalog::{Held, PartListing, SegmentListing, SnapshotListing};
use crate::storage::cover::{Piece, Span, cover};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// One replica. Keys that are not ours are not in it: nobody touches them.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Those that have any object, if only a claim.
    pub generations: BTreeMap<GenerationId, Surveyed>,
}

/// One generation's objects, all that are listed.
#[derive(Clone, Debug, Default)]
pub struct Surveyed {
    /// The claim, if there is one.
    pub claim: Option<Listed>,
    /// What it says of the generation that this one goes on from; `None` also if it is damaged.
    pub parent: Option<Parent>,
    /// Ascending by txid, then by key.
    pub snapshots: Vec<SurveyedSnapshot>,
    /// Ascending by `since`, then by first page, then by key.
    pub parts: Vec<PartListing>,
    /// Ascending by first txid, then by level, then by key.
    pub segments: Vec<SurveyedSegment>,
}

/// A snapshot.
#[derive(Clone, Debug)]
pub struct SurveyedSnapshot {
    /// What its key says.
    pub listed: SnapshotListing,
    /// What its footer and its root say; `None` if it is damaged.
    pub inside: Option<SnapshotInside>,
}

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInside {
    /// Later versions than this one are laid over it.
    pub since: Txid,
    /// Pages stored in this object.
    pub stored_pages: u32,
    /// Bytes in a page.
    pub page_bytes: u32,
    /// Stored bytes of its pages.
    pub block_bytes: u64,
    /// Every other object that its map needs. It is a base only if all of them are listed.
    pub homes: Vec<Home>,
}

/// A WAL segment.
#[derive(Clone, Debug)]
pub struct SurveyedSegment {
    /// What its key says; `last` of level 0 is what its footer says, once that was read.
    pub listed: SegmentListing,
    /// What its footer and its timeline say; `None` if it was not read, or is damaged: then nothing
    /// is decided that depends on it.
    pub inside: Option<SegmentInside>,
}

/// What a segment says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInside {
    /// Its pages lie in a snapshot.
    pub is_mark: bool,
    /// Its restore points, ascending.
    pub points: Arc<[(Txid, Timestamp)]>,
    /// Stored bytes of its page index: the sections that a reader needs before a page.
    pub index_bytes: u64,
    /// Stored bytes of its page versions.
    pub block_bytes: u64,
}

impl Survey {
    /// The lengths of all objects but claims, by key.
    pub fn all_sizes(&self) -> HashMap<&str, u64> {
        let segments = self.generations.values().flat_map(|s| &s.segments);
        let segments = segments.map(|s| &s.listed.object);
        let mut sizes = self.sizes();
        sizes.extend(segments.map(|object| (object.key.as_str(), object.size)));
        sizes
    }

    /// The lengths of all objects that a map can name, by key.
    pub(super) fn sizes(&self) -> HashMap<&str, u64> {
        let homes = self.generations.values().flat_map(|surveyed| {
            let snapshots = surveyed.snapshots.iter().map(|s| &s.listed.object);
            snapshots.chain(surveyed.parts.iter().map(|part| &part.object))
        });
        homes.map(|home| (home.key.as_str(), home.size)).collect()
    }
}

impl SurveyedSnapshot {
    /// Whether all is listed that its map needs, of objects with these sizes.
    pub(super) fn is_complete(&self, sizes: &HashMap<&str, u64>) -> bool {
        let is_listed = |home: &Home| sizes.get(home.key.as_str()) == Some(&home.length);
        let inside = self.inside.as_ref();
        inside.is_some_and(|inside| inside.homes.iter().all(is_listed))
    }
}

/// Which segment, by its index, stands for which transactions.
pub(super) fn pieces(segments: &[SurveyedSegment]) -> Vec<Piece> {
    let held = Held::new(segments.iter().map(|segment| &segment.listed));
    let standing = segments.iter().enumerate();
    let standing = standing.filter(|(_, segment)| !held.has(&segment.listed));
    let span = |segment: &SurveyedSegment| Span {
        level: segment.listed.level,
        first: segment.listed.first,
        // It has one transaction at least.
        last: end(segment).unwrap_or(segment.listed.first),
    };
    let (indexes, spans): (Vec<usize>, Vec<Span>) = standing.map(|(i, s)| (i, span(s))).unzip();
    let named = cover(&spans).into_iter().map(|piece| Piece {
        index: indexes[piece.index],
        ..piece
    });
    named.collect()
}

/// The last transaction of a segment, if it is known.
pub(super) fn end(segment: &SurveyedSegment) -> Option<Txid> {
    let inside = || {
        segment
            .inside
            .as_ref()?
            .points
            .last()
            .map(|&(txid, _)| txid)
    };
    segment.listed.last.or_else(inside)
}
