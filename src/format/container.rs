//! The container that both object kinds share: header, blocks, sections, footer.

use crate::error::Result;
use crate::format::ids::{
    DatabaseId, GenerationId, ObjectHash, ObjectId, PageSize, Txid, WalEnd, WriterId,
};
use std::io::{Read, Seek, Write};

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A run of whole transactions.
    Segment,
    /// A page map, and the pages that it adds.
    Snapshot,
    /// Pages of a snapshot above 1 GiB, without a map.
    Part,
}

/// The generation that another one goes on from, and the last txid that both share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The older generation.
    pub generation: GenerationId,
    /// Its last transaction that is part of the younger one's past.
    pub txid: Txid,
}

/// What every object says of itself; 256 bytes at its start, and once more in its footer, so that
/// one read of the tail suffices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// 0 for what the daemon uploads, 1 and up for merged segments.
    pub level: u8,
    pub page_size: PageSize,
    pub object_id: ObjectId,
    pub database_id: DatabaseId,
    pub writer_id: WriterId,
    pub generation: GenerationId,
    pub parent: Option<Parent>,
    /// Segments: the first and the last transaction. Snapshots: both are the txid. Parts: `since`.
    pub first: Txid,
    pub last: Txid,
    /// Every page is at least as new as this transaction; segments: `first`.
    pub since: Txid,
    /// SQLite's WAL behind `last`.
    pub end: WalEnd,
    /// `since` = txid, and this object with its parts holds every page once, in page order.
    pub exact: bool,
    /// Some versions were dropped by retention.
    pub thinned: bool,
    /// SQLITE_VERSION_NUMBER of the application, from page 1, offset 96; 0 where unknown.
    pub sqlite_version: u32,
    /// The hash of the level-0 segment before the first input (the claim's for the first one); zeros
    /// in snapshots and parts.
    pub previous: ObjectHash,
    /// Of merged segments: the hash of the last level-0 input. Zeros at level 0.
    pub last_input: ObjectHash,
}

/// The sections that follow the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SectionKind {
    Blocks,
    Versions,
    Timeline,
    PageHashes,
    Predecessors,
    MapRoot,
    MapLeaves,
    InteriorPages,
    SnapshotKey,
}

/// Where a section lies: stored bytes, checksum, and length once inflated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionRef {
    pub kind: SectionKind,
    pub offset: u64,
    pub length: u64,
    /// Length after decompression, bytes.
    pub raw_length: u64,
    /// xxh3-64 of the stored bytes.
    pub checksum: u64,
}

/// The end of an object, from which a reader starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    pub header: Header,
    pub sections: Vec<SectionRef>,
    /// Bytes of the whole object.
    pub length: u64,
    pub hash: ObjectHash,
}

/// What the last bytes of an object gave.
#[derive(Debug)]
pub enum Tail {
    /// The footer.
    Whole(Footer),
    /// The footer is longer: fetch this many last bytes.
    Needs(u64),
}

impl Footer {
    /// Reads the footer from the last bytes of an object of `object_length` bytes.
    ///
    /// # Errors
    /// `Corrupt`, with offset, and `Invalid` for a version or a required feature we do not know.
    pub fn decode(tail: &[u8], object_length: u64) -> Result<Tail> {
        let _ = (tail, object_length);
        todo!()
    }

    /// The section of a kind, if the object has it.
    pub fn section(&self, kind: SectionKind) -> Option<&SectionRef> {
        self.sections.iter().find(|section| section.kind == kind)
    }
}

impl SectionRef {
    /// Verifies the stored bytes and inflates them.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn open(&self, stored: &[u8]) -> Result<Vec<u8>> {
        let _ = stored;
        todo!()
    }
}

/// One block as stored: where, how long, and its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRef {
    pub offset: u64,
    pub length: u32,
    /// xxh3-64 of the stored bytes.
    pub checksum: u64,
    /// Number of the first page (version) in it, counted from 0 over the object.
    pub first_slot: u32,
    /// Pages (versions) in it.
    pub slots: u32,
}

/// All blocks of an object, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    pub blocks: Vec<BlockRef>,
}

impl BlockTable {
    /// The block that holds the page (version) with this number, and the slot within it.
    pub fn locate(&self, slot: u32) -> Option<(usize, usize)> {
        let _ = slot;
        todo!()
    }
}

impl BlockRef {
    /// Verifies the stored bytes and inflates them to `slots` pages.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn open(&self, stored: &[u8], page_size: PageSize) -> Result<Vec<u8>> {
        let _ = (stored, page_size);
        todo!()
    }
}

/// Room for what does not fit in memory while an object is written: an unnamed file of the caller.
pub trait ScratchFile: Read + Write + Seek + Send {}
impl<T: Read + Write + Seek + Send> ScratchFile for T {}

/// Makes scratch files.
pub type Scratch<'a> = &'a dyn Fn() -> std::io::Result<Box<dyn ScratchFile>>;

/// A written object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes.
    pub length: u64,
    pub hash: ObjectHash,
    pub object_id: ObjectId,
    /// Pages (versions) stored.
    pub slots: u32,
}
