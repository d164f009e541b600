//! What a listing of keys shows: generations, snapshots, parts and segments. Pure.

use crate::format::ids::{GenerationId, Pgno, Timestamp, Txid};
use crate::storage::Listed;
use std::collections::BTreeMap;

/// All that a replica's listing shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    pub generations: BTreeMap<GenerationId, GenerationListing>,
    /// Keys that are not ours: never touched.
    pub unknown: Vec<String>,
}

/// One generation's objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationListing {
    /// The claim, if there is one.
    pub claim: Option<Listed>,
    /// Ascending by txid.
    pub snapshots: Vec<SnapshotListing>,
    pub parts: Vec<PartListing>,
    /// Ascending by first txid, then by level.
    pub segments: Vec<SegmentListing>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotListing {
    pub txid: Txid,
    pub time: Timestamp,
    pub hash8: u32,
    pub object: Listed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartListing {
    pub since: Txid,
    pub first: Pgno,
    pub hash8: u32,
    pub object: Listed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentListing {
    pub level: u8,
    pub first: Txid,
    /// Of level 0 known only from the next one's first, or from its footer.
    pub last: Option<Txid>,
    pub time: Option<Timestamp>,
    pub hash8: Option<u32>,
    pub object: Listed,
}

impl Catalog {
    /// Reads a listing of everything below a replica (keys relative to the replica).
    pub fn new(listing: Vec<Listed>) -> Self {
        let _ = listing;
        todo!()
    }
}
