//! WAL segments: every page version of a run of transactions, sorted by (pgno, txid).

use crate::error::Result;
use crate::format::container::{BlockTable, Footer, Header, Scratch, SectionKind, Written};
use crate::format::ids::{ObjectHash, ObjectId, PageHash, PageSize, Pgno, Timestamp, Txid};
use std::io::{Seek, Write};

/// One transaction in a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineEntry {
    pub txid: Txid,
    pub time: Timestamp,
    /// The transaction was found after a downtime: it is as old as this or older.
    pub upper_bound: bool,
    /// Its pages lie in a snapshot at this txid, not in the segment.
    pub in_snapshot: bool,
    /// Database size after it, pages.
    pub pages: u32,
    /// The smallest size since the entry before, pages.
    pub min_pages: u32,
}

/// A level-0 object before this one, with what a reader needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predecessor {
    pub key: String,
    pub length: u64,
    pub hash: ObjectHash,
    /// Its block table, page versions and timeline, while they are small.
    pub index: Option<SegmentIndex>,
}

/// What a segment holds and where, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentIndex {
    pub blocks: BlockTable,
    /// Sorted by (pgno, txid); the position in this list is the slot.
    pub versions: Vec<(Pgno, Txid)>,
    pub timeline: Vec<TimelineEntry>,
}

impl SegmentIndex {
    /// The sections to fetch before [`SegmentIndex::decode`].
    pub const SECTIONS: [SectionKind; 3] = [
        SectionKind::Blocks,
        SectionKind::Versions,
        SectionKind::Timeline,
    ];

    /// Decodes the sections, given inflated and verified, in the order of [`Self::SECTIONS`].
    ///
    /// # Errors
    /// `Corrupt`: also if the sections contradict the header or each other.
    pub fn decode(footer: &Footer, sections: [&[u8]; 3]) -> Result<Self> {
        let _ = (footer, sections);
        todo!()
    }
}

/// Decodes the predecessors of a level-0 segment.
///
/// # Errors
/// `Corrupt`.
pub fn decode_predecessors(section: &[u8]) -> Result<Vec<Predecessor>> {
    let _ = section;
    todo!()
}

/// Decodes page hashes, one for each slot.
///
/// # Errors
/// `Corrupt`.
pub fn decode_hashes(section: &[u8]) -> Result<Vec<PageHash>> {
    let _ = section;
    todo!()
}

/// Writes a segment in one pass; memory stays bounded whatever its size. The header comes last,
/// since what it says is known last: `W` must seek back to the start (a file).
pub struct SegmentWriter<W: Write + Seek> {
    _out: W,
}

impl<W: Write + Seek> SegmentWriter<W> {
    /// Starts a segment at the current position of `out`, which must be 0.
    ///
    /// # Errors
    /// `Disk`.
    pub fn new(
        out: W,
        object_id: ObjectId,
        page_size: PageSize,
        scratch: Scratch<'_>,
    ) -> Result<Self> {
        let _ = (object_id, page_size, scratch);
        Ok(Self { _out: out })
    }

    /// Adds a page version; in strictly ascending order of (pgno, txid).
    ///
    /// # Errors
    /// `Disk`.
    ///
    /// # Panics
    /// If the order is wrong or the page has another size than given to `new`.
    pub fn push(&mut self, pgno: Pgno, txid: Txid, page: &[u8]) -> Result<()> {
        let _ = (pgno, txid, page);
        todo!()
    }

    /// Writes the sections, the footer and, at the start, the header.
    /// `snapshot_key`: of a transaction shipped as a snapshot. The timeline has one entry for each
    /// transaction of the segment (of a thinned one: for each that was kept), ascending.
    ///
    /// # Errors
    /// `Disk`.
    ///
    /// # Panics
    /// If header, timeline and pages contradict each other.
    pub fn finish(
        self,
        header: &Header,
        timeline: &[TimelineEntry],
        predecessors: &[Predecessor],
        snapshot_key: Option<&str>,
    ) -> Result<(W, Written)> {
        let _ = (header, timeline, predecessors, snapshot_key);
        todo!()
    }
}
