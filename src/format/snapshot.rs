//! Snapshots: a page map of the whole database at one txid, and the pages that it adds.

use crate::error::Result;
use crate::format::container::{BlockTable, Footer, Header, Scratch, SectionKind, Written};
use crate::format::ids::{ObjectId, PageSize, Pgno};
use crate::format::segment::TimelineEntry;
use std::io::{Seek, Write};

/// Pages that one leaf of a map covers.
pub const LEAF_PAGES: u32 = 4096;

/// Consecutive pages that lie in consecutive slots of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first: Pgno,
    pub count: u32,
    pub object: ObjectId,
    /// The slot of the first page.
    pub slot: u32,
}

/// Where the pages of one leaf lie: ascending, without overlap; pages of no run are zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    pub runs: Vec<Run>,
}

/// Where a leaf is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafRef {
    pub object: ObjectId,
    pub offset: u64,
    pub length: u32,
    /// xxh3-64 of the stored bytes.
    pub checksum: u64,
}

/// An object that a map points into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    pub id: ObjectId,
    /// Below the replica, earlier generations' too.
    pub key: String,
    /// Bytes.
    pub length: u64,
}

/// The root of a page map. Leaf `i` covers pages `i * 4096 + 1 ..= (i + 1) * 4096`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRoot {
    /// Database size at the snapshot's txid, pages.
    pub pages: u32,
    /// Every other object that the map needs; the snapshot itself is not among them.
    pub homes: Vec<Home>,
    /// A `None` leaf has no stored page.
    pub leaves: Vec<Option<LeafRef>>,
}

/// A snapshot's own part of its index, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotIndex {
    pub blocks: BlockTable,
    /// The pages stored in this object, in slot order, as runs (of this object).
    pub stored: Vec<Run>,
    /// None for a part.
    pub root: Option<MapRoot>,
    /// The snapshot's own txid; None for a part.
    pub timeline: Option<TimelineEntry>,
}

impl SnapshotIndex {
    /// The sections to fetch before [`SnapshotIndex::decode`]; a part has the first two only.
    pub const SECTIONS: [SectionKind; 4] = [
        SectionKind::Blocks,
        SectionKind::Versions,
        SectionKind::Timeline,
        SectionKind::MapRoot,
    ];

    /// Decodes inflated and verified sections, in the order of [`Self::SECTIONS`].
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(footer: &Footer, sections: [Option<&[u8]>; 4]) -> Result<Self> {
        let _ = (footer, sections);
        todo!()
    }
}

impl LeafRef {
    /// Verifies and decodes a leaf's stored bytes.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn open(&self, stored: &[u8]) -> Result<Leaf> {
        let _ = stored;
        todo!()
    }
}

/// The interior b-tree pages that a snapshot carries once more, inflated: (pgno, page).
///
/// # Errors
/// `Corrupt`.
pub fn decode_interior(section: &[u8], page_size: usize) -> Result<Vec<(Pgno, Vec<u8>)>> {
    let _ = (section, page_size);
    todo!()
}

/// A leaf of the map to write.
#[derive(Clone, Debug)]
pub enum LeafSource {
    /// Unchanged: stored in an earlier object.
    Earlier(LeafRef),
    /// Written into this object; its runs may name this object or others.
    Here(Leaf),
    /// No page.
    Empty,
}

/// `leaf` with the pages of `newer` laid over it, and nothing beyond `pages`: how a later snapshot
/// changes a leaf.
pub fn overlay(leaf: &Leaf, newer: &[Run], pages: u32) -> Leaf {
    let _ = (leaf, newer, pages);
    todo!()
}

/// The leaves of a map of `pages` pages in which exactly the pages of `runs` (ascending, possibly
/// crossing leaves) are stored.
pub fn leaves(runs: &[Run], pages: u32) -> Vec<Leaf> {
    let _ = (runs, pages);
    todo!()
}

/// Writes a snapshot or a part in one pass; memory stays bounded whatever its size. The header comes
/// last, since a fuzzy snapshot's txid is known last: `W` must seek back to the start (a file).
pub struct SnapshotWriter<W: Write + Seek> {
    _out: W,
}

impl<W: Write + Seek> SnapshotWriter<W> {
    /// Starts a snapshot or a part at the current position of `out`, which must be 0.
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

    /// Adds a page; in strictly ascending order.
    ///
    /// # Errors
    /// `Disk`.
    ///
    /// # Panics
    /// If the order is wrong or the page has another size than given to `new`.
    pub fn push(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        let _ = (pgno, page);
        todo!()
    }

    /// The pages added so far, as runs of this object, ascending.
    pub fn stored(&self) -> &[Run] {
        todo!()
    }

    /// Ends a part (`header.kind` is `Part`).
    ///
    /// # Errors
    /// `Disk`.
    pub fn finish_part(self, header: &Header) -> Result<(W, Written)> {
        let _ = header;
        todo!()
    }

    /// Ends a snapshot with its map and, when given, the interior b-tree pages to carry once more.
    ///
    /// # Errors
    /// `Disk`.
    pub fn finish(
        self,
        header: &Header,
        map: &MapToWrite<'_>,
        entry: TimelineEntry,
        interior: Option<InteriorPages>,
    ) -> Result<(W, Written)> {
        let _ = (header, map, entry, interior);
        todo!()
    }
}

/// The map of a snapshot to write.
#[derive(Clone, Copy, Debug)]
pub struct MapToWrite<'a> {
    /// Database size, pages.
    pub pages: u32,
    /// Every other object that the leaves point into or lie in.
    pub homes: &'a [Home],
    /// One for each 4,096 pages.
    pub leaves: &'a [LeafSource],
}

/// Collects the b-tree interior pages that go by, over all parts of a snapshot, in a scratch file;
/// at the end chooses at most 512 KiB (stored), roots and upper levels first.
pub struct InteriorPages {
    _page_size: PageSize,
}

impl InteriorPages {
    /// An empty collection.
    ///
    /// # Errors
    /// `Disk`.
    pub fn new(page_size: PageSize, scratch: Scratch<'_>) -> Result<Self> {
        let _ = scratch;
        Ok(Self {
            _page_size: page_size,
        })
    }

    /// Keeps the page if it looks like an interior page.
    ///
    /// # Errors
    /// `Disk`.
    pub fn offer(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        let _ = (pgno, page);
        todo!()
    }
}
