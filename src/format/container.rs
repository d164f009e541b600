//! The container that both object kinds share: header, blocks, sections, footer.
//!
//! This module owns the values and how they are read; [`crate::format::segment`] and
//! [`crate::format::snapshot`] say what the sections mean. It never trusts a length: each is
//! checked against what it describes before anything is allocated for it.
//!
//! # An object
//!
//! All integers are little-endian. Every byte lies in a frame of the zstd format (RFC 8878), so
//! `zstd -d` takes any object; it skips the skippable frames, and what comes out are the pages.
//!
//! | part | zstd frame | holds |
//! | --- | --- | --- |
//! | header | skippable, magic 0x184D2A50 | [the header](#the-header), 256 bytes |
//! | blocks | ordinary, one for each block | pages; from byte [`BLOCKS_START`], without gaps |
//! | sections | skippable, magic 0x184D2A51, one for each section | stored bytes of the section |
//! | footer | skippable, magic 0x184D2A52 | [the footer](#the-footer) |
//!
//! A skippable frame is its magic (u32), the length of its payload (u32), and the payload.
//!
//! # The header
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic, `sqlrepl` and a zero byte |
//! | 8 | 2 | container version, 1 |
//! | 10 | 1 | kind: 1 segment, 2 snapshot, 3 part |
//! | 11 | 1 | level, 0 to 15; 0 in snapshots and parts |
//! | 12 | 4 | page size, bytes |
//! | 16 | 4 | required features: a reader refuses a set bit that it does not know; none is defined |
//! | 20 | 4 | optional features: a reader ignores a set bit that it does not know; none is defined |
//! | 24 | 1 | compression: 1 zstd |
//! | 25 | 1 | checksum: 1 xxh3-64 (seed 0) |
//! | 26 | 1 | hash: 1 BLAKE3 |
//! | 27 | 1 | encryption: 0 none |
//! | 28 | 4 | flags: bit 0 exact, bit 1 thinned, the others zero |
//! | 32 | 16 | key id, zero without encryption |
//! | 48 | 16 | database id |
//! | 64 | 8 | writer id |
//! | 72 | 8 | object id |
//! | 80 | 8 | generation: ordinal (u32), random part (u32) |
//! | 88 | 8 | parent generation: the same; zero without a parent |
//! | 96 | 8 | last txid shared with the parent; zero without a parent |
//! | 104 | 8 | first txid |
//! | 112 | 8 | last txid |
//! | 120 | 8 | since, a txid |
//! | 128 | 20 | end of SQLite's WAL: salt-1, salt-2, frame, checksum-1, checksum-2 (u32 each) |
//! | 148 | 4 | SQLITE_VERSION_NUMBER of the application |
//! | 152 | 32 | previous: hash |
//! | 184 | 32 | last input: hash |
//! | 216 | 32 | reserved, zero |
//! | 248 | 8 | xxh3-64 of the bytes before |
//!
//! In a segment `since` is `first`. In a snapshot `first` and `last` are its txid, in a part
//! `first`, `last` and `since` are the same. Only snapshots and parts are exact, and then `since`
//! is `last`; only segments are thinned, have a level and a previous hash. A segment above level 0
//! has a last input: the hash that the level-0 segment behind it carries as its previous one. A
//! snapshot that was made from segments may have it too, and has zeros where it is not known.
//!
//! A later container version keeps magic, version, and the checksum at the end of 256 bytes.
//!
//! # Blocks
//!
//! A block is one zstd frame, without dictionary and with its content size, of whole pages: at most
//! 256 KiB of them. Pages (in segments: page versions) are numbered from 0 over the object: the
//! *slot*. What each slot holds, the sections say.
//!
//! # Sections
//!
//! | code | section | in |
//! | --- | --- | --- |
//! | 0x0001 | [`SectionKind::Blocks`] | all |
//! | 0x0002 | [`SectionKind::Versions`] | all |
//! | 0x0003 | [`SectionKind::Timeline`] | segments, snapshots |
//! | 0x8004 | [`SectionKind::PageHashes`] | all |
//! | 0x8005 | [`SectionKind::Predecessors`] | segments of level 0 |
//! | 0x0006 | [`SectionKind::MapRoot`] | snapshots |
//! | 0x0007 | [`SectionKind::MapLeaves`] | snapshots |
//! | 0x8008 | [`SectionKind::InteriorPages`] | snapshots |
//! | 0x0009 | [`SectionKind::SnapshotKey`] | segments |
//!
//! A reader skips a section whose code it does not know if the code's top bit is set, and else
//! refuses the object. The stored bytes are one zstd frame (window at most 8 MiB) if they are
//! shorter than the raw length, and the section itself if they are as long. `PageHashes` and
//! `MapLeaves` are always stored as they are.
//!
//! `Blocks` holds the number of blocks (varint), then three columns: the stored length of each
//! block (varint), its slots (varint), and the xxh3-64 of its stored bytes (8 bytes).
//!
//! # The footer
//!
//! `n` is the number of sections, at most 64.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 256 | the header once more |
//! | 256 | 4 | `n` |
//! | 260 | 4 | reserved, zero |
//! | 264 | 40 `n` | the section directory, in the order of the file |
//! | 264 + 40 `n` | 8 | length of the whole object, bytes |
//! | 272 + 40 `n` | 32 | BLAKE3 of the object from byte [`BLOCKS_START`] up to this field |
//! | 304 + 40 `n` | 8 | xxh3-64 of the payload up to this field |
//! | 312 + 40 `n` | 4 | length of this payload: 316 + 40 `n` |
//!
//! An entry of the directory:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 2 | code |
//! | 2 | 6 | reserved, zero |
//! | 8 | 8 | offset of the stored bytes in the object |
//! | 16 | 8 | length of the stored bytes |
//! | 24 | 8 | raw length |
//! | 32 | 8 | xxh3-64 of the stored bytes |

use crate::error::{Error, Result};
use crate::format::ids::{
    DatabaseId, GenerationId, ObjectHash, ObjectId, PageSize, Txid, WalEnd, WriterId,
};
use crate::format::varint::{self, Fields};
use std::cell::RefCell;
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use xxhash_rust::xxh3::xxh3_64;

/// The magic and the length before the payload of a skippable frame, bytes.
pub const FRAME_BYTES: usize = 8;
/// The header's payload, bytes.
pub const HEADER_BYTES: usize = 256;
/// Where the first block begins: behind the header's frame.
pub const BLOCKS_START: u64 = (FRAME_BYTES + HEADER_BYTES) as u64;
/// A block holds at most this many bytes of pages.
pub const BLOCK_RAW_MAX: usize = 256 * 1024;
/// The highest level of a merged segment.
pub const LEVEL_MAX: u8 = 15;
/// A section holds at most this many bytes once inflated.
pub const SECTION_RAW_MAX: u64 = 1 << 30;

pub(super) const HEADER_MAGIC: u32 = 0x184D_2A50;
pub(super) const SECTION_MAGIC: u32 = 0x184D_2A51;
pub(super) const FOOTER_MAGIC: u32 = 0x184D_2A52;

const MAGIC: [u8; 8] = *b"sqlrepl\0";
const VERSION: u16 = 1;
const COMPRESSION_ZSTD: u8 = 1;
const CHECKSUM_XXH3: u8 = 1;
const HASH_BLAKE3: u8 = 1;
const ENCRYPTION_NONE: u8 = 0;
const FLAG_EXACT: u32 = 1;
const FLAG_THINNED: u32 = 2;
/// The required features that this code knows.
const KNOWN_FEATURES: u32 = 0;

/// Offsets in the header's payload.
mod at {
    pub(super) const VERSION: usize = 8;
    pub(super) const KIND: usize = 10;
    pub(super) const LEVEL: usize = 11;
    pub(super) const PAGE_SIZE: usize = 12;
    pub(super) const REQUIRED: usize = 16;
    pub(super) const METHODS: usize = 24;
    pub(super) const FLAGS: usize = 28;
    pub(super) const KEY_ID: usize = 32;
    pub(super) const DATABASE: usize = 48;
    pub(super) const WRITER: usize = 64;
    pub(super) const OBJECT: usize = 72;
    pub(super) const GENERATION: usize = 80;
    pub(super) const PARENT: usize = 88;
    pub(super) const PARENT_TXID: usize = 96;
    pub(super) const FIRST: usize = 104;
    pub(super) const LAST: usize = 112;
    pub(super) const SINCE: usize = 120;
    pub(super) const WAL_END: usize = 128;
    pub(super) const SQLITE: usize = 148;
    pub(super) const PREVIOUS: usize = 152;
    pub(super) const LAST_INPUT: usize = 184;
    pub(super) const RESERVED: usize = 216;
    pub(super) const CHECKSUM: usize = 248;
}
const _: () = assert!(at::VERSION == MAGIC.len() && at::KIND == at::VERSION + 2);
const _: () = assert!(at::LEVEL == at::KIND + 1 && at::PAGE_SIZE == at::LEVEL + 1);
const _: () = assert!(at::REQUIRED == at::PAGE_SIZE + 4 && at::METHODS == at::REQUIRED + 8);
const _: () = assert!(at::FLAGS == at::METHODS + 4 && at::KEY_ID == at::FLAGS + 4);
const _: () = assert!(at::DATABASE == at::KEY_ID + 16 && at::WRITER == at::DATABASE + 16);
const _: () = assert!(at::OBJECT == at::WRITER + 8 && at::GENERATION == at::OBJECT + 8);
const _: () = assert!(at::PARENT == at::GENERATION + 8 && at::PARENT_TXID == at::PARENT + 8);
const _: () = assert!(at::FIRST == at::PARENT_TXID + 8 && at::LAST == at::FIRST + 8);
const _: () = assert!(at::SINCE == at::LAST + 8 && at::WAL_END == at::SINCE + 8);
const _: () = assert!(at::SQLITE == at::WAL_END + 20 && at::PREVIOUS == at::SQLITE + 4);
const _: () = assert!(at::LAST_INPUT == at::PREVIOUS + 32 && at::RESERVED == at::LAST_INPUT + 32);
const _: () = assert!(at::CHECKSUM == at::RESERVED + 32 && HEADER_BYTES == at::CHECKSUM + 8);

/// The footer's payload without the section directory, and one entry of that, bytes.
const FOOTER_FIXED: usize = HEADER_BYTES + 8 + 8 + 32 + 8 + 4;
const ENTRY_BYTES: usize = 40;
const SECTIONS_MAX: usize = 64;
const _: () = assert!(FOOTER_FIXED == 316);

/// A first read of this many last bytes brings every possible footer, and usually all sections of a
/// small object.
pub const TAIL_BYTES: u64 = 64 * 1024;
const _: () =
    assert!(FRAME_BYTES + FOOTER_FIXED + SECTIONS_MAX * ENTRY_BYTES <= TAIL_BYTES as usize);

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

impl Kind {
    const ALL: [Self; 3] = [Self::Segment, Self::Snapshot, Self::Part];

    const fn code(self) -> u8 {
        match self {
            Self::Segment => 1,
            Self::Snapshot => 2,
            Self::Part => 3,
        }
    }

    /// The sections without which such an object cannot be read.
    fn needs(self) -> &'static [SectionKind] {
        use SectionKind::{Blocks, MapRoot, Timeline, Versions};
        match self {
            Self::Segment => &[Blocks, Versions, Timeline],
            Self::Snapshot => &[Blocks, Versions, Timeline, MapRoot],
            Self::Part => &[Blocks, Versions],
        }
    }
}

/// The generation that another one goes on from, and the last txid that both share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// What the object is.
    pub kind: Kind,
    /// 0 for what the daemon uploads, 1 and up for merged segments.
    pub level: u8,
    /// The database's.
    pub page_size: PageSize,
    /// Drawn by the writer of this object.
    pub object_id: ObjectId,
    /// Whose pages these are.
    pub database_id: DatabaseId,
    /// The run of the daemon that wrote this object.
    pub writer_id: WriterId,
    /// The history that the object belongs to.
    pub generation: GenerationId,
    /// The history that this one goes on from.
    pub parent: Option<Parent>,
    /// Segments: the first and the last transaction. Snapshots: both are the txid. Parts: `since`.
    pub first: Txid,
    /// See `first`.
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
    /// The hash of the level-0 segment before the first input (the claim's for the first one);
    /// zeros in snapshots and parts.
    pub previous: ObjectHash,
    /// Of merged segments: the hash of the last level-0 input. Zeros at level 0.
    pub last_input: ObjectHash,
}

impl Header {
    /// Reads the header from the first [`BLOCKS_START`] bytes of an object. What it says counts
    /// only if it equals the footer's ([`verify_object`]): the hash covers that copy.
    ///
    /// # Errors
    /// `Corrupt`, and `Invalid` for a version or a required feature we do not know.
    pub fn decode(start: &[u8]) -> Result<Self> {
        let payload = start
            .get(FRAME_BYTES..FRAME_BYTES + HEADER_BYTES)
            .ok_or_else(|| {
                Error::corrupt(format!(
                    "header: {} bytes are fewer than the {BLOCKS_START} of a header",
                    start.len()
                ))
            })?;
        if start[..FRAME_BYTES] != frame_start(HEADER_MAGIC, HEADER_BYTES as u32) {
            return Err(Error::corrupt(
                "header: the object does not begin with a header's frame",
            ));
        }
        Self::decode_payload(payload)
    }

    /// The 256 bytes that say this.
    ///
    /// # Panics
    /// If the header contradicts itself.
    pub(super) fn encode_payload(&self) -> [u8; HEADER_BYTES] {
        if let Some(contradiction) = self.contradiction() {
            panic!("header: {contradiction}");
        }
        let mut out = [0; HEADER_BYTES];
        let mut put =
            |offset: usize, field: &[u8]| out[offset..offset + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(at::VERSION, &VERSION.to_le_bytes());
        put(at::KIND, &[self.kind.code()]);
        put(at::LEVEL, &[self.level]);
        put(at::PAGE_SIZE, &self.page_size.get().to_le_bytes());
        put(at::METHODS, &METHODS);
        let flags =
            if self.exact { FLAG_EXACT } else { 0 } | if self.thinned { FLAG_THINNED } else { 0 };
        put(at::FLAGS, &flags.to_le_bytes());
        put(at::DATABASE, &self.database_id.0);
        put(at::WRITER, &self.writer_id.0);
        put(at::OBJECT, &self.object_id.0);
        put(at::GENERATION, &generation_bytes(self.generation));
        if let Some(parent) = self.parent {
            put(at::PARENT, &generation_bytes(parent.generation));
            put(at::PARENT_TXID, &parent.txid.get().to_le_bytes());
        }
        put(at::FIRST, &self.first.get().to_le_bytes());
        put(at::LAST, &self.last.get().to_le_bytes());
        put(at::SINCE, &self.since.get().to_le_bytes());
        let WalEnd {
            salts,
            frame,
            checksum,
        } = self.end;
        let end = [salts[0], salts[1], frame, checksum[0], checksum[1]];
        put(at::WAL_END, end.map(u32::to_le_bytes).as_flattened());
        put(at::SQLITE, &self.sqlite_version.to_le_bytes());
        put(at::PREVIOUS, &self.previous.0);
        put(at::LAST_INPUT, &self.last_input.0);
        let checksum = xxh3_64(&out[..at::CHECKSUM]);
        out[at::CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    fn decode_payload(payload: &[u8]) -> Result<Self> {
        check_known(payload)?;
        let number = |offset| u64::from_le_bytes(field(payload, offset));
        let number32 = |offset| u32::from_le_bytes(field(payload, offset));
        let txid = |offset, name: &str| {
            Txid::new(number(offset))
                .ok_or_else(|| Error::corrupt(format!("header: {name} is txid 0")))
        };
        let code = payload[at::KIND];
        let kind = Kind::ALL.into_iter().find(|kind| kind.code() == code);
        let page_size = number32(at::PAGE_SIZE);
        let word = |index: usize| number32(at::WAL_END + 4 * index);
        let flags = number32(at::FLAGS);
        let header = Self {
            kind: kind.ok_or_else(|| Error::invalid(format!("header: kind {code} is unknown")))?,
            level: payload[at::LEVEL],
            page_size: PageSize::new(page_size)
                .ok_or_else(|| Error::corrupt(format!("header: page size {page_size}")))?,
            object_id: ObjectId(field(payload, at::OBJECT)),
            database_id: DatabaseId(field(payload, at::DATABASE)),
            writer_id: WriterId(field(payload, at::WRITER)),
            generation: generation_of(field(payload, at::GENERATION)),
            parent: Txid::new(number(at::PARENT_TXID)).map(|txid| Parent {
                generation: generation_of(field(payload, at::PARENT)),
                txid,
            }),
            first: txid(at::FIRST, "first")?,
            last: txid(at::LAST, "last")?,
            since: txid(at::SINCE, "since")?,
            end: WalEnd {
                salts: [word(0), word(1)],
                frame: word(2),
                checksum: [word(3), word(4)],
            },
            exact: flags & FLAG_EXACT != 0,
            thinned: flags & FLAG_THINNED != 0,
            sqlite_version: number32(at::SQLITE),
            previous: ObjectHash(field(payload, at::PREVIOUS)),
            last_input: ObjectHash(field(payload, at::LAST_INPUT)),
        };
        match header.contradiction() {
            None => Ok(header),
            Some(contradiction) => Err(Error::corrupt(format!("header: {contradiction}"))),
        }
    }

    /// What no writer says.
    fn contradiction(&self) -> Option<&'static str> {
        let segment = self.kind == Kind::Segment;
        let zeros = ObjectHash([0; 32]);
        let rules = [
            (self.level <= LEVEL_MAX, "the level is above 15"),
            (
                segment || self.level == 0,
                "only segments have a level above 0",
            ),
            (
                self.first <= self.last,
                "the first txid lies behind the last",
            ),
            (
                !segment || self.since == self.first,
                "the since of a segment is not its first txid",
            ),
            (
                segment || self.first == self.last,
                "first and last txid of pages of one moment differ",
            ),
            (self.since <= self.last, "since lies behind the last txid"),
            (segment || !self.thinned, "only segments are thinned"),
            (
                !self.exact || !segment && self.since == self.last,
                "exact, but since is not the txid",
            ),
            (
                self.kind != Kind::Part || self.since == self.last,
                "the since of a part is not its txid",
            ),
            (
                segment || self.previous == zeros,
                "only segments have a previous one",
            ),
            (
                self.level > 0 || self.kind == Kind::Snapshot || self.last_input == zeros,
                "only merged segments and snapshots have inputs",
            ),
        ];
        rules
            .into_iter()
            .find_map(|(holds, broken)| (!holds).then_some(broken))
    }
}

/// Ids of compression, checksum, hash and encryption.
const METHODS: [u8; 4] = [
    COMPRESSION_ZSTD,
    CHECKSUM_XXH3,
    HASH_BLAKE3,
    ENCRYPTION_NONE,
];

/// Checks the checksum of a header's payload, and then whether we know all that it asks for.
fn check_known(payload: &[u8]) -> Result<()> {
    if payload[..MAGIC.len()] != MAGIC {
        return Err(Error::corrupt("header: not an object of sqlrepl"));
    }
    check_sum(
        "header",
        &payload[..at::CHECKSUM],
        u64::from_le_bytes(field(payload, at::CHECKSUM)),
    )?;
    let later = |what: String| Error::invalid(format!("header: {what}; a later sqlrepl wrote it"));
    let version = u16::from_le_bytes(field(payload, at::VERSION));
    if version != VERSION {
        return Err(later(format!("container version {version} is not 1")));
    }
    let unknown = u32::from_le_bytes(field(payload, at::REQUIRED)) & !KNOWN_FEATURES;
    if unknown != 0 {
        let bit = unknown.trailing_zeros();
        return Err(later(format!(
            "required feature bit {bit} (0x{:x}) is not known here",
            1_u32 << bit
        )));
    }
    let methods: [u8; 4] = field(payload, at::METHODS);
    let names = ["compression", "checksum", "hash", "encryption"];
    for ((name, found), known) in names.iter().zip(methods).zip(METHODS) {
        if found != known {
            return Err(later(format!("{name} {found} is not known here")));
        }
    }
    let flags = u32::from_le_bytes(field(payload, at::FLAGS));
    let no_parent = payload[at::PARENT_TXID..at::FIRST] == [0; 8];
    let zero = flags & !(FLAG_EXACT | FLAG_THINNED) == 0
        && payload[at::KEY_ID..at::DATABASE] == [0; 16]
        && payload[at::RESERVED..at::CHECKSUM] == [0; 32]
        && (!no_parent || payload[at::PARENT..at::PARENT_TXID] == [0; 8]);
    if !zero {
        return Err(later("a reserved field is not zero".into()));
    }
    Ok(())
}

fn generation_bytes(generation: GenerationId) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&generation.ordinal.to_le_bytes());
    bytes[4..].copy_from_slice(&generation.random.to_le_bytes());
    bytes
}

fn generation_of(bytes: [u8; 8]) -> GenerationId {
    GenerationId {
        ordinal: u32::from_le_bytes(field(&bytes, 0)),
        random: u32::from_le_bytes(field(&bytes, 4)),
    }
}

/// The `N` bytes at `offset`, which the caller knows to be there.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[offset..offset + N]);
    field
}

/// The first bytes of a skippable frame.
pub(super) fn frame_start(magic: u32, length: u32) -> [u8; FRAME_BYTES] {
    let mut start = [0; FRAME_BYTES];
    start[..4].copy_from_slice(&magic.to_le_bytes());
    start[4..].copy_from_slice(&length.to_le_bytes());
    start
}

fn check_sum(what: &str, bytes: &[u8], expected: u64) -> Result<()> {
    let seen = xxh3_64(bytes);
    if seen == expected {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "{what}: checksum {seen:016x}, expected {expected:016x}"
    )))
}

/// The sections that follow the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SectionKind {
    /// Length, slots and checksum of every block.
    Blocks,
    /// Which page (version) each slot holds.
    Versions,
    /// Transactions and their times.
    Timeline,
    /// BLAKE3-128 of each slot's page.
    PageHashes,
    /// The level-0 objects before this one.
    Predecessors,
    /// The root of a page map.
    MapRoot,
    /// Leaves of page maps, each of its own.
    MapLeaves,
    /// First pages and b-tree interior pages once more.
    InteriorPages,
    /// The snapshot that holds a transaction's pages.
    SnapshotKey,
}

impl SectionKind {
    const ALL: [Self; 9] = [
        Self::Blocks,
        Self::Versions,
        Self::Timeline,
        Self::PageHashes,
        Self::Predecessors,
        Self::MapRoot,
        Self::MapLeaves,
        Self::InteriorPages,
        Self::SnapshotKey,
    ];

    const fn code(self) -> u16 {
        match self {
            Self::Blocks => 1,
            Self::Versions => 2,
            Self::Timeline => 3,
            Self::PageHashes => MAY_BE_SKIPPED | 4,
            Self::Predecessors => MAY_BE_SKIPPED | 5,
            Self::MapRoot => 6,
            Self::MapLeaves => 7,
            Self::InteriorPages => MAY_BE_SKIPPED | 8,
            Self::SnapshotKey => 9,
        }
    }
}

const MAY_BE_SKIPPED: u16 = 0x8000;

/// Where a section lies: stored bytes, checksum, and length once inflated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionRef {
    /// What it holds.
    pub kind: SectionKind,
    /// Where the stored bytes begin in the object.
    pub offset: u64,
    /// Stored bytes.
    pub length: u64,
    /// Length after decompression, bytes.
    pub raw_length: u64,
    /// xxh3-64 of the stored bytes.
    pub checksum: u64,
}

/// The end of an object, from which a reader starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// What the object says of itself.
    pub header: Header,
    /// The sections that we know, in the order of the file.
    pub sections: Vec<SectionRef>,
    /// Bytes of the whole object.
    pub length: u64,
    /// Of the object.
    pub hash: ObjectHash,
    /// Where the last block ends.
    pub blocks_end: u64,
}

/// What the last bytes of an object gave.
#[expect(
    clippy::large_enum_variant,
    reason = "taken apart at once, and mostly the footer"
)]
#[derive(Debug)]
pub enum Tail {
    /// The footer.
    Whole(Footer),
    /// The footer is longer: fetch this many last bytes.
    Needs(u64),
}

impl Footer {
    /// Stored bytes of the pages.
    pub fn block_bytes(&self) -> u64 {
        self.blocks_end.saturating_sub(BLOCKS_START)
    }

    /// Reads the footer from the last bytes of an object of `object_length` bytes. [`TAIL_BYTES`]
    /// of them, or all of a shorter object, are always enough.
    ///
    /// # Errors
    /// `Corrupt`, with offset, and `Invalid` for a version or a required feature we do not know.
    pub fn decode(tail: &[u8], object_length: u64) -> Result<Tail> {
        let wrong = |why: String| Error::corrupt(format!("footer: {why}"));
        let shortest = BLOCKS_START + (FRAME_BYTES + FOOTER_FIXED) as u64;
        if object_length < shortest {
            return Err(wrong(format!(
                "{object_length} bytes are no object, the shortest has {shortest}"
            )));
        }
        if tail.len() as u64 > object_length {
            return Err(wrong("the tail is longer than the object".into()));
        }
        let Some(&length) = tail.last_chunk::<4>() else {
            return Ok(Tail::Needs(object_length.min(TAIL_BYTES)));
        };
        let length = u32::from_le_bytes(length) as usize;
        let directory = length.wrapping_sub(FOOTER_FIXED);
        let frame = (FRAME_BYTES as u64).saturating_add(length as u64);
        if length < FOOTER_FIXED
            || directory > SECTIONS_MAX * ENTRY_BYTES
            || !directory.is_multiple_of(ENTRY_BYTES)
            || BLOCKS_START + frame > object_length
        {
            return Err(wrong(format!(
                "length {length} at the end of {object_length} bytes: the object was cut or changed"
            )));
        }
        if (tail.len() as u64) < frame {
            return Ok(Tail::Needs(frame));
        }
        let (start, payload) = tail[tail.len() - frame as usize..].split_at(FRAME_BYTES);
        if *start != frame_start(FOOTER_MAGIC, length as u32) {
            return Err(wrong(format!(
                "no frame of {length} bytes at {}",
                object_length - frame
            )));
        }
        Self::decode_payload(payload, object_length).map(Tail::Whole)
    }

    fn decode_payload(payload: &[u8], object_length: u64) -> Result<Self> {
        let length_at = FOOTER_FIXED - 4 - 8 - 32 - 8 + (payload.len() - FOOTER_FIXED);
        let (hash_at, checksum_at) = (length_at + 8, length_at + 40);
        check_sum(
            "footer",
            &payload[..checksum_at],
            u64::from_le_bytes(field(payload, checksum_at)),
        )?;
        let header = Header::decode_payload(&payload[..HEADER_BYTES])?;
        let length = u64::from_le_bytes(field(payload, length_at));
        if length != object_length {
            return Err(Error::corrupt(format!(
                "footer: the object has {object_length} bytes, expected {length}"
            )));
        }
        let count = u32::from_le_bytes(field(payload, HEADER_BYTES)) as usize;
        let directory = &payload[HEADER_BYTES + 8..length_at];
        if count * ENTRY_BYTES != directory.len() {
            return Err(Error::corrupt(format!(
                "footer: {count} sections in a directory of {} bytes",
                directory.len()
            )));
        }
        if payload[HEADER_BYTES + 4..HEADER_BYTES + 8] != [0; 4] {
            return Err(Error::invalid(
                "footer: a reserved field is not zero; a later sqlrepl wrote it",
            ));
        }
        let end = object_length - (FRAME_BYTES + payload.len()) as u64;
        let (sections, blocks_end) = decode_directory(directory, end)?;
        for kind in header.kind.needs() {
            if !sections.iter().any(|section| section.kind == *kind) {
                return Err(Error::corrupt(format!(
                    "footer: a {:?} without {kind:?}",
                    header.kind
                )));
            }
        }
        Ok(Self {
            header,
            sections,
            length,
            hash: ObjectHash(field(payload, hash_at)),
            blocks_end,
        })
    }

    /// The section of a kind, if the object has it.
    pub fn section(&self, kind: SectionKind) -> Option<&SectionRef> {
        self.sections.iter().find(|section| section.kind == kind)
    }
}

/// The sections that we know, and where the first of all begins; they follow each other without a
/// gap up to `end`, where the footer's frame begins.
fn decode_directory(directory: &[u8], end: u64) -> Result<(Vec<SectionRef>, u64)> {
    let mut sections: Vec<SectionRef> = Vec::new();
    let mut blocks_end = end;
    let mut next = None;
    for (index, entry) in directory.chunks_exact(ENTRY_BYTES).enumerate() {
        let code = u16::from_le_bytes(field(entry, 0));
        let number = |offset| u64::from_le_bytes(field(entry, offset));
        let (offset, length) = (number(8), number(16));
        let wrong = |why: &str| Error::corrupt(format!("footer: section {code:#06x}: {why}"));
        if entry[2..8] != [0; 6] {
            return Err(Error::invalid(format!(
                "footer: section {code:#06x}: a reserved field is not zero; a later sqlrepl wrote \
                 it"
            )));
        }
        let frame = offset
            .checked_sub(FRAME_BYTES as u64)
            .filter(|&frame| frame >= BLOCKS_START && next.unwrap_or(frame) == frame)
            .ok_or_else(|| wrong("it does not lie behind what comes before it"))?;
        if index == 0 {
            blocks_end = frame;
        }
        next = offset.checked_add(length).filter(|&next| next <= end);
        if next.is_none() || length > u64::from(u32::MAX) {
            return Err(wrong("it does not end before the footer"));
        }
        let Some(kind) = SectionKind::ALL.into_iter().find(|k| k.code() == code) else {
            if code & MAY_BE_SKIPPED != 0 {
                continue;
            }
            return Err(Error::invalid(format!(
                "footer: section {code:#06x} is not known here and must not be skipped; \
                 a later sqlrepl wrote it"
            )));
        };
        if sections.iter().any(|section| section.kind == kind) {
            return Err(wrong("it is there twice"));
        }
        sections.push(SectionRef {
            kind,
            offset,
            length,
            raw_length: number(24),
            checksum: number(32),
        });
    }
    if next.is_some_and(|next| next != end) {
        return Err(Error::corrupt(
            "footer: a gap between the sections and the footer",
        ));
    }
    Ok((sections, blocks_end))
}

/// The footer's frame for an object that has `position` bytes without it; `hasher` has seen those
/// behind the header. Returns the object's length and hash too.
pub(super) fn encode_footer(
    header: &[u8; HEADER_BYTES],
    directory: &[SectionRef],
    position: u64,
    mut hasher: blake3::Hasher,
) -> (Vec<u8>, u64, ObjectHash) {
    let payload = FOOTER_FIXED + directory.len() * ENTRY_BYTES;
    let object_length = position + (FRAME_BYTES + payload) as u64;
    let mut out = frame_start(FOOTER_MAGIC, payload as u32).to_vec();
    out.extend_from_slice(header);
    out.extend_from_slice(&(directory.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for entry in directory {
        out.extend_from_slice(&entry.kind.code().to_le_bytes());
        out.extend_from_slice(&[0; 6]);
        for number in [entry.offset, entry.length, entry.raw_length, entry.checksum] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }
    out.extend_from_slice(&object_length.to_le_bytes());
    hasher.update(&out);
    let hash = ObjectHash(*hasher.finalize().as_bytes());
    out.extend_from_slice(&hash.0);
    let checksum = xxh3_64(&out[FRAME_BYTES..]);
    out.extend_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(&(payload as u32).to_le_bytes());
    (out, object_length, hash)
}

/// Reads a whole object and checks every byte of it: both headers, the footer, and the hash, which
/// covers all between them. What the sections say is for their decoders to judge.
///
/// # Errors
/// `Corrupt`, `Invalid` for a version or a required feature we do not know, `Disk` if `object`
/// cannot be read.
pub fn verify_object<R: Read + Seek>(object: &mut R) -> Result<Footer> {
    let disk = |error| Error::disk("read the object", error);
    let length = object.seek(SeekFrom::End(0)).map_err(disk)?;
    let tail_start = length - length.min(TAIL_BYTES);
    object.seek(SeekFrom::Start(tail_start)).map_err(disk)?;
    let mut tail = Vec::new();
    object.read_to_end(&mut tail).map_err(disk)?;
    let Tail::Whole(footer) = Footer::decode(&tail, length)? else {
        return Err(Error::corrupt("footer: longer than any can be"));
    };
    object.seek(SeekFrom::Start(0)).map_err(disk)?;
    let mut start = [0; BLOCKS_START as usize];
    object.read_exact(&mut start).map_err(disk)?;
    if Header::decode(&start)? != footer.header {
        return Err(Error::corrupt(
            "header: it differs from its copy in the footer",
        ));
    }
    // Behind the hash field come the footer's checksum and length.
    let mut covered = Read::by_ref(object).take(length - 32 - 8 - 4 - BLOCKS_START);
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&mut covered).map_err(disk)?;
    let seen = ObjectHash(*hasher.finalize().as_bytes());
    if seen != footer.hash {
        return Err(Error::corrupt(format!(
            "object hash {seen}, expected {}",
            footer.hash
        )));
    }
    Ok(footer)
}

impl SectionRef {
    /// Verifies the stored bytes and inflates them.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn open(&self, stored: &[u8]) -> Result<Vec<u8>> {
        let wrong = |why: String| {
            Error::corrupt(format!("section {:?} at {}: {why}", self.kind, self.offset))
        };
        if stored.len() as u64 != self.length {
            return Err(wrong(format!(
                "{} bytes, expected {}",
                stored.len(),
                self.length
            )));
        }
        check_sum(
            &format!("section {:?} at {}", self.kind, self.offset),
            stored,
            self.checksum,
        )?;
        if self.length == self.raw_length {
            return Ok(stored.to_vec());
        }
        if self.length > self.raw_length || self.raw_length > SECTION_RAW_MAX {
            return Err(wrong(format!("raw length {}", self.raw_length)));
        }
        inflate(stored, self.raw_length as usize).map_err(wrong)
    }
}

/// Inflates one zstd frame to exactly `raw_length` bytes. The output grows with what is found, so
/// that a length nobody can keep allocates nothing.
pub(super) fn inflate(stored: &[u8], raw_length: usize) -> std::result::Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("it does not inflate: {error}");
    let mut decoder = zstd::stream::read::Decoder::with_buffer(stored)
        .map_err(failed)?
        .single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(failed)?;
    let mut raw = Vec::with_capacity(raw_length.min(stored.len().saturating_mul(8)));
    (&mut decoder)
        .take(raw_length as u64 + 1)
        .read_to_end(&mut raw)
        .map_err(failed)?;
    let left = decoder.finish().len();
    if raw.len() != raw_length || left != 0 {
        return Err(format!(
            "it inflates to {} bytes and leaves {left}, expected {raw_length} and 0",
            raw.len()
        ));
    }
    Ok(raw)
}

/// The window of a section's zstd frame, as a power of two.
const WINDOW_LOG_MAX: u32 = 23;

/// One block as stored: where, how long, and its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRef {
    /// Where it begins in the object.
    pub offset: u64,
    /// Stored bytes.
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
    /// They lie behind each other without gaps.
    pub blocks: Vec<BlockRef>,
}

impl BlockTable {
    /// The block that holds the page (version) with this number, and the slot within it.
    pub fn locate(&self, slot: u32) -> Option<(usize, usize)> {
        let behind = self.blocks.partition_point(|b| b.first_slot <= slot);
        let block = behind.checked_sub(1)?;
        let within = slot - self.blocks[block].first_slot;
        (within < self.blocks[block].slots).then_some((block, within as usize))
    }

    /// Pages (versions) in all blocks.
    pub fn slots(&self) -> u32 {
        self.blocks
            .last()
            .map_or(0, |last| last.first_slot + last.slots)
    }

    /// Where the last block ends.
    pub(super) fn end(&self) -> u64 {
        self.blocks
            .last()
            .map_or(BLOCKS_START, |last| last.offset + u64::from(last.length))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        varint::put(out, self.blocks.len() as u64);
        for block in &self.blocks {
            varint::put(out, u64::from(block.length));
        }
        for block in &self.blocks {
            varint::put(out, u64::from(block.slots));
        }
        for block in &self.blocks {
            out.extend_from_slice(&block.checksum.to_le_bytes());
        }
    }

    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<Self> {
        let count = fields.count(10)?;
        let lengths = fields.column(count)?;
        let slots = fields.column(count)?;
        let mut table = Self {
            blocks: Vec::with_capacity(count),
        };
        for (length, slots) in lengths.into_iter().zip(slots) {
            let (Ok(length), Ok(slots)) = (u32::try_from(length), u32::try_from(slots)) else {
                return Err(fields.wrong("a block exceeds 32 bits"));
            };
            let first_slot = table.slots();
            if length == 0 || slots == 0 || first_slot.checked_add(slots).is_none() {
                return Err(fields.wrong(format!("a block of {slots} slots in {length} bytes")));
            }
            let offset = table.end();
            let checksum = fields.checksum()?;
            table.blocks.push(BlockRef {
                offset,
                length,
                checksum,
                first_slot,
                slots,
            });
        }
        Ok(table)
    }

    /// Decodes the `Blocks` section of an object.
    pub(crate) fn decode_section(footer: &Footer, section: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("section Blocks", section);
        let table = Self::decode(&mut fields)?;
        let block_slots = (BLOCK_RAW_MAX / footer.header.page_size.bytes()) as u32;
        if table.blocks.iter().any(|block| block.slots > block_slots) {
            return Err(fields.wrong("a block of over 256 KiB"));
        }
        if table.end() != footer.blocks_end {
            return Err(fields.wrong(format!(
                "the blocks end at {}, expected {}",
                table.end(),
                footer.blocks_end
            )));
        }
        fields.end()?;
        Ok(table)
    }
}

impl BlockRef {
    /// Verifies the stored bytes and inflates them to `slots` pages.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn open(&self, stored: &[u8], page_size: PageSize) -> Result<Vec<u8>> {
        let mut pages = Vec::new();
        self.open_into(stored, page_size, &mut pages)?;
        Ok(pages)
    }

    /// Verifies the stored bytes and appends the `slots` pages that they inflate to.
    ///
    /// # Errors
    /// `Corrupt`; then `pages` is as it was.
    pub fn open_into(&self, stored: &[u8], page_size: PageSize, pages: &mut Vec<u8>) -> Result<()> {
        let what = format!("block at {}", self.offset);
        let wrong = |why: String| Error::corrupt(format!("{what}: {why}"));
        if stored.len() != self.length as usize {
            return Err(wrong(format!(
                "{} bytes, expected {}",
                stored.len(),
                self.length
            )));
        }
        check_sum(&what, stored, self.checksum)?;
        let raw_length = (self.slots as usize).saturating_mul(page_size.bytes());
        if raw_length > BLOCK_RAW_MAX {
            return Err(wrong(format!("{} pages", self.slots)));
        }
        let before = pages.len();
        pages.reserve(raw_length);
        let inflated = inflate_behind(stored, pages)
            .map_err(|error| wrong(format!("it does not inflate: {error}")));
        let inflated = inflated.and_then(|length| match length == raw_length {
            true => Ok(()),
            false => Err(wrong(format!(
                "it inflates to {length} bytes, expected {raw_length}"
            ))),
        });
        if inflated.is_err() {
            pages.truncate(before);
        }
        inflated
    }
}

/// Inflates one zstd frame behind what a buffer holds, as far as it has room, and says how long it
/// was.
pub(super) fn inflate_behind(stored: &[u8], buffer: &mut Vec<u8>) -> std::io::Result<usize> {
    thread_local! {
        // A new context for each block would cost a tenth of a restore's time.
        static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
            const { RefCell::new(None) };
    }
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(zstd::bulk::Decompressor::new()?),
        };
        let mut behind = Cursor::new(std::mem::take(buffer));
        behind.set_position(behind.get_ref().len() as u64);
        let length = decompressor.decompress_to_buffer(stored, &mut behind);
        *buffer = behind.into_inner();
        length
    })
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
    /// What its key carries.
    pub hash: ObjectHash,
    /// As given.
    pub object_id: ObjectId,
    /// Pages (versions) stored.
    pub slots: u32,
    /// Stored bytes of the pages.
    pub block_bytes: u64,
}

#[cfg(test)]
pub(in crate::format) mod tests;
