//! WAL segments: every page version of a run of transactions, sorted by (pgno, txid).
//!
//! A slot of a segment is a page version; neighbouring versions of a page lie side by side in a
//! block and compress into almost nothing. [`crate::format::container`] says how blocks and
//! sections are stored, [`crate::format`] what a varint is. A *column* holds one field of every
//! entry, one entry after the other.
//!
//! # Sections
//!
//! `Versions`: the number of versions (varint), which is that of the slots, and two columns in the
//! order of the slots:
//!
//! | column | each | is |
//! | --- | --- | --- |
//! | pgno | varint | pgno minus that of the slot before (of slot 0: minus 0) |
//! | txid | varint | same page as the slot before: txid minus its txid, at least 1; else: txid minus the header's first |
//!
//! `Timeline`: the number of entries (varint), and five columns. Txids and times ascend strictly.
//! There is one entry for each txid from the header's first to its last; in a thinned segment there
//! may be fewer.
//!
//! | column | each | is |
//! | --- | --- | --- |
//! | txid | varint | txid minus the one before (of the first: minus the header's first) |
//! | time | signed varint | microseconds since 1970-01-01 UTC, minus the one before (the first: minus 0) |
//! | flags | varint | bit 0: the time is an upper bound; bit 1: the pages lie in a snapshot; others zero |
//! | pages | signed varint | database size in pages minus the one before (the first: minus 0) |
//! | dip | varint | database size minus the smallest size since the entry before, pages |
//!
//! `PageHashes`: 16 bytes for each slot, the first 128 bits of BLAKE3 of its page.
//!
//! `Predecessors`, at most [`PREDECESSORS_MAX`], ascending: their number (varint) and columns;
//! then, for each entry that says so, its block table (as in `Blocks`), its versions and its
//! timeline (as above, "the header's" being the entry's own). At most [`PREDECESSORS_BYTES`]
//! stored.
//!
//! | column | each | is |
//! | --- | --- | --- |
//! | first | varint | first txid minus the last txid of the entry before (of the first: minus 0) |
//! | count | varint | last txid minus first txid |
//! | length | varint | bytes of the object |
//! | key | varint, bytes | length of the key, and the key below the replica in UTF-8 |
//! | flags | varint | bit 0: the previous hash is that of the entry before; bit 1: an index follows |
//! | id | 8 bytes | object id |
//! | hash | 32 bytes | hash of the object |
//! | previous | 32 or 0 bytes | its previous hash, unless bit 0 is set |
//!
//! `SnapshotKey`: the key below the replica, UTF-8, of the snapshot that holds the pages of the
//! segment's one transaction. The segment is stored before that snapshot is.

use crate::error::{Error, Result};
use crate::format::container::{
    BLOCK_RAW_MAX, BlockTable, Footer, Header, Kind, Scratch, SectionKind, Written,
};
use crate::format::ids::{ObjectHash, ObjectId, PageHash, PageSize, Pgno, Timestamp, Txid};
use crate::format::object::{CHUNK_BYTES, ObjectWriter, SectionEncoder, Spill, scratch_failed};
use crate::format::varint::{self, Fields};
use bytes::Bytes;
use std::io::{Seek, Write};

/// A segment names at most this many predecessors.
pub const PREDECESSORS_MAX: usize = 64;
/// Their section is at most this long as stored, bytes: the writer leaves out the indexes of the
/// oldest.
pub const PREDECESSORS_BYTES: usize = 8 * 1024;
/// Their indexes are at most this long once inflated, bytes.
const PREDECESSOR_INDEXES_BYTES: usize = 64 * 1024;
/// How errors name the section of page versions.
const VERSIONS: &str = "section Versions";
/// What a block should come to when compressed, bytes.
const BLOCK_STORED_TARGET: usize = 32 * 1024;

/// One transaction in a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineEntry {
    /// The transaction.
    pub txid: Txid,
    /// When it was first seen committed.
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

impl TimelineEntry {
    /// A transaction whose time is known and whose pages lie in the segment, and which was not
    /// smaller in between.
    pub fn new(txid: Txid, time: Timestamp, pages: u32) -> Self {
        Self {
            txid,
            time,
            upper_bound: false,
            in_snapshot: false,
            pages,
            min_pages: pages,
        }
    }
}

/// A level-0 object before this one, with what a reader needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predecessor {
    /// Below the replica.
    pub key: String,
    /// Bytes.
    pub length: u64,
    /// Of the object.
    pub hash: ObjectHash,
    /// Of the object.
    pub object_id: ObjectId,
    /// Its first transaction.
    pub first: Txid,
    /// Its last transaction.
    pub last: Txid,
    /// The hash that it gives for the segment before it, or for the claim.
    pub previous: ObjectHash,
    /// Its block table, page versions and timeline, while they are small.
    pub index: Option<SegmentIndex>,
}

impl Predecessor {
    /// What a later segment says of the level-0 segment with this key and footer.
    pub fn new(key: String, footer: &Footer, index: Option<SegmentIndex>) -> Self {
        Self {
            key,
            length: footer.length,
            hash: footer.hash,
            object_id: footer.header.object_id,
            first: footer.header.first,
            last: footer.header.last,
            previous: footer.header.previous,
            index,
        }
    }
}

/// What a segment holds and where, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentIndex {
    /// Where the slots are stored.
    pub blocks: BlockTable,
    /// Sorted by (pgno, txid); the position in this list is the slot.
    pub versions: Vec<(Pgno, Txid)>,
    /// Ascending.
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
        let [blocks, versions, timeline] = sections;
        let (blocks, versions) = Self::decode_slots(footer, blocks, versions)?;
        let timeline = decode_timeline_section(&footer.header, timeline)?;
        Ok(Self {
            blocks,
            versions,
            timeline,
        })
    }

    /// Where the slots are stored, and so how many versions there are, from the section `Blocks`.
    ///
    /// # Errors
    /// As [`SegmentIndex::decode`].
    pub fn decode_blocks(footer: &Footer, blocks: &[u8]) -> Result<BlockTable> {
        let kind = footer.header.kind;
        if kind != Kind::Segment {
            return Err(Error::corrupt(format!("a {kind:?}, not a segment")));
        }
        BlockTable::decode_section(footer, blocks)
    }

    /// Where the slots are stored and what they hold, from the sections `Blocks` and `Versions`.
    ///
    /// # Errors
    /// As [`SegmentIndex::decode`].
    pub fn decode_slots(
        footer: &Footer,
        blocks: &[u8],
        versions: &[u8],
    ) -> Result<(BlockTable, Vec<(Pgno, Txid)>)> {
        let header = &footer.header;
        let blocks = Self::decode_blocks(footer, blocks)?;
        let mut fields = Fields::new(VERSIONS, versions);
        let versions = decode_versions(&mut fields, header.first, header.last)?;
        if versions.len() != blocks.slots() as usize {
            return Err(fields.wrong(format!(
                "{} versions in {} slots",
                versions.len(),
                blocks.slots()
            )));
        }
        fields.end()?;
        Ok((blocks, versions))
    }

    /// As predecessors carry it.
    fn encode(&self, first: Txid) -> Vec<u8> {
        let mut out = Vec::new();
        self.blocks.encode(&mut out);
        varint::put(&mut out, self.versions.len() as u64);
        for step in [pgno_step, txid_step] {
            let mut before = None;
            for &version in &self.versions {
                varint::put(&mut out, step(before, version, first));
                before = Some(version);
            }
        }
        encode_timeline(&mut out, &self.timeline, first);
        out
    }
}

/// What the pgno column says of a version.
fn pgno_step(before: Option<(Pgno, Txid)>, version: (Pgno, Txid), _first: Txid) -> u64 {
    u64::from(version.0.get() - before.map_or(0, |(pgno, _)| pgno.get()))
}

/// What the txid column says of a version.
fn txid_step(before: Option<(Pgno, Txid)>, version: (Pgno, Txid), first: Txid) -> u64 {
    match before {
        Some((pgno, txid)) if pgno == version.0 => version.1.get() - txid.get(),
        _ => version.1.get() - first.get(),
    }
}

fn decode_versions(fields: &mut Fields<'_>, first: Txid, last: Txid) -> Result<Vec<(Pgno, Txid)>> {
    let count = fields.count(2)?;
    let mut pgnos: Vec<Pgno> = Vec::with_capacity(count);
    for _ in 0..count {
        let before = pgnos.last().map_or(0, |pgno| pgno.get());
        pgnos.push(next_pgno(fields, before)?);
    }
    let mut versions: Vec<(Pgno, Txid)> = Vec::with_capacity(count);
    for pgno in pgnos {
        let txid = next_txid(fields, pgno, versions.last().copied(), (first, last))?;
        versions.push((pgno, txid));
    }
    Ok(versions)
}

/// Reads what [`pgno_step`] said.
fn next_pgno(fields: &mut Fields<'_>, before: u32) -> Result<Pgno> {
    let step = fields.number32()?;
    let next = before.checked_add(step).and_then(Pgno::new);
    next.ok_or_else(|| fields.wrong(format!("pgno {before} plus {step}")))
}

/// Reads what [`txid_step`] said, in a segment from one transaction to another.
fn next_txid(
    fields: &mut Fields<'_>,
    pgno: Pgno,
    before: Option<(Pgno, Txid)>,
    (first, last): (Txid, Txid),
) -> Result<Txid> {
    let step = fields.number()?;
    let same_page = before.filter(|before| before.0 == pgno);
    let base = same_page.map_or(first, |before| before.1).get();
    let txid = base
        .checked_add(step)
        .and_then(Txid::new)
        .filter(|&txid| txid <= last && (same_page.is_none() || step > 0));
    txid.ok_or_else(|| {
        fields.wrong(format!(
            "page {}: txid {base} plus {step}, the last is {}",
            pgno.get(),
            last.get()
        ))
    })
}

/// The versions of a segment in the order of their slots, decoded one by one: a segment may have
/// more than a list in memory should hold.
#[derive(Clone, Debug)]
pub struct VersionCursor {
    section: Bytes,
    first: Txid,
    last: Txid,
    count: usize,
    slot: usize,
    /// Where the columns go on.
    pgno_at: usize,
    txid_at: usize,
    before: Option<(Pgno, Txid)>,
}

impl VersionCursor {
    /// Begins at slot 0 of the inflated and verified `Versions` section of such a segment.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn new(footer: &Footer, section: Bytes) -> Result<Self> {
        let mut fields = Fields::new(VERSIONS, &section);
        let count = fields.count(2)?;
        let pgno_at = fields.position();
        for _ in 0..count {
            fields.number32()?;
        }
        let txid_at = fields.position();
        Ok(Self {
            first: footer.header.first,
            last: footer.header.last,
            count,
            slot: 0,
            pgno_at,
            txid_at,
            before: None,
            section,
        })
    }

    /// Versions in the segment.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The next version: page, transaction, slot.
    ///
    /// # Errors
    /// `Corrupt`: also if the section goes on behind the last one.
    pub fn next_version(&mut self) -> Result<Option<(Pgno, Txid, u32)>> {
        let mut txids = Fields::at(VERSIONS, &self.section, self.txid_at);
        if self.slot == self.count {
            return txids.end().map(|()| None);
        }
        let mut pgnos = Fields::at(VERSIONS, &self.section, self.pgno_at);
        let pgno = next_pgno(&mut pgnos, self.before.map_or(0, |(pgno, _)| pgno.get()))?;
        let txid = next_txid(&mut txids, pgno, self.before, (self.first, self.last))?;
        (self.pgno_at, self.txid_at) = (pgnos.position(), txids.position());
        self.before = Some((pgno, txid));
        let slot = self.slot as u32;
        self.slot += 1;
        Ok(Some((pgno, txid, slot)))
    }
}

const FLAG_UPPER_BOUND: u64 = 1;
const FLAG_IN_SNAPSHOT: u64 = 2;

/// Appends a timeline whose txids are counted from `first`.
pub(super) fn encode_timeline(out: &mut Vec<u8>, timeline: &[TimelineEntry], first: Txid) {
    varint::put(out, timeline.len() as u64);
    let mut before = first.get();
    for entry in timeline {
        varint::put(out, entry.txid.get() - before);
        before = entry.txid.get();
    }
    let mut before = 0;
    for entry in timeline {
        varint::put_signed(out, entry.time.micros() - before);
        before = entry.time.micros();
    }
    for entry in timeline {
        let upper_bound = if entry.upper_bound {
            FLAG_UPPER_BOUND
        } else {
            0
        };
        let in_snapshot = if entry.in_snapshot {
            FLAG_IN_SNAPSHOT
        } else {
            0
        };
        varint::put(out, upper_bound | in_snapshot);
    }
    let mut before = 0;
    for entry in timeline {
        varint::put_signed(out, i64::from(entry.pages) - before);
        before = i64::from(entry.pages);
    }
    for entry in timeline {
        varint::put(out, u64::from(entry.pages - entry.min_pages));
    }
}

/// What a timeline must fit.
#[derive(Clone, Copy)]
struct Span {
    first: Txid,
    last: Txid,
    /// Entries may be missing.
    thinned: bool,
}

impl Span {
    /// What is impossible about an entry behind another one.
    fn contradiction(
        &self,
        before: Option<&TimelineEntry>,
        entry: &TimelineEntry,
    ) -> Option<&'static str> {
        if before.is_some_and(|b| entry.txid <= b.txid || entry.time <= b.time) {
            return Some("txids or times do not ascend");
        }
        let is_within = self.first <= entry.txid && entry.txid <= self.last;
        (!is_within).then_some("a txid lies outside of the header's range")
    }

    /// What is impossible about so many entries.
    fn lack(&self, count: usize) -> Option<&'static str> {
        let whole = self.last.get() - self.first.get() == (count as u64).wrapping_sub(1);
        (!whole && !self.thinned).then_some("a txid of the header's range is missing")
    }
}

/// Hands out the entries of a timeline, one by one: there may be more than a list in memory should
/// hold.
fn each_entry(
    fields: &mut Fields<'_>,
    span: Span,
    mut each: impl FnMut(&TimelineEntry),
) -> Result<()> {
    let count = fields.count(5)?;
    if let Some(lack) = span.lack(count) {
        return Err(fields.wrong(lack));
    }
    let mut column = || {
        let column = fields.clone();
        fields.skip(count).map(|()| column)
    };
    let (mut txids, mut times) = (column()?, column()?);
    let (mut flagged, mut pages) = (column()?, column()?);
    let (mut txid, mut time, mut size) = (span.first.get(), 0_i64, 0_i64);
    let mut before = None;
    for index in 0..count {
        let dip = fields.number32()?;
        let wrong = |what: &str| fields.wrong(format!("entry {index}: impossible {what}"));
        txid = txid
            .checked_add(txids.number()?)
            .ok_or_else(|| wrong("txid"))?;
        time = time
            .checked_add(times.signed()?)
            .filter(|&time| Timestamp::from_micros(time).micros() == time)
            .ok_or_else(|| wrong("time"))?;
        size = size
            .checked_add(pages.signed()?)
            .filter(|&size| u32::try_from(size).is_ok())
            .ok_or_else(|| wrong("size"))?;
        let flags = flagged.number()?;
        if flags & !(FLAG_UPPER_BOUND | FLAG_IN_SNAPSHOT) != 0 {
            return Err(wrong("flags"));
        }
        let entry = TimelineEntry {
            txid: Txid::new(txid).ok_or_else(|| wrong("txid"))?,
            time: Timestamp::from_micros(time),
            upper_bound: flags & FLAG_UPPER_BOUND != 0,
            in_snapshot: flags & FLAG_IN_SNAPSHOT != 0,
            pages: size as u32,
            min_pages: (size as u32)
                .checked_sub(dip)
                .ok_or_else(|| wrong("smallest size"))?,
        };
        if let Some(contradiction) = span.contradiction(before.as_ref(), &entry) {
            return Err(fields.wrong(contradiction));
        }
        each(&entry);
        before = Some(entry);
    }
    Ok(())
}

/// What no writer puts into a timeline.
fn timeline_contradiction(timeline: &[TimelineEntry], span: Span) -> Option<&'static str> {
    let mut before = None;
    let mut wrong = timeline.iter().filter_map(|entry| {
        let before = before.replace(entry);
        let too_low = entry.min_pages > entry.pages;
        let too_low = too_low.then_some("a smallest size above the size");
        span.contradiction(before, entry).or(too_low)
    });
    wrong.next().or_else(|| span.lack(timeline.len()))
}

impl From<&Header> for Span {
    fn from(header: &Header) -> Self {
        Self {
            first: header.first,
            last: header.last,
            thinned: header.thinned,
        }
    }
}

/// The raw `Timeline` section of an object with this header.
///
/// # Panics
/// If header and timeline contradict each other.
pub(super) fn encode_timeline_section(header: &Header, timeline: &[TimelineEntry]) -> Vec<u8> {
    if let Some(contradiction) = timeline_contradiction(timeline, header.into()) {
        panic!("timeline: {contradiction}");
    }
    let mut out = Vec::new();
    encode_timeline(&mut out, timeline, header.first);
    out
}

/// Decodes the raw `Timeline` section of an object with this header.
///
/// # Errors
/// `Corrupt`: also if it contradicts the header.
pub fn decode_timeline_section(header: &Header, section: &[u8]) -> Result<Vec<TimelineEntry>> {
    let mut timeline = Vec::new();
    read_timeline_section(header, section, |entry| timeline.push(*entry))?;
    Ok(timeline)
}

/// The same, entry by entry: a list of all of them may be more than memory should hold. What was
/// handed out counts only if there is no error in the end.
///
/// # Errors
/// `Corrupt`: also if it contradicts the header.
pub fn read_timeline_section(
    header: &Header,
    section: &[u8],
    each: impl FnMut(&TimelineEntry),
) -> Result<()> {
    let mut fields = Fields::new("section Timeline", section);
    each_entry(&mut fields, header.into(), each)?;
    fields.end()
}

const FLAG_CHAINED: u64 = 1;
const FLAG_INDEXED: u64 = 2;

/// Encodes predecessors, those with an index in `indexes` with that.
fn encode_predecessors(predecessors: &[Predecessor], indexes: &[Option<&[u8]>]) -> Vec<u8> {
    let mut out = Vec::new();
    varint::put(&mut out, predecessors.len() as u64);
    let mut before = 0;
    for entry in predecessors {
        varint::put(&mut out, entry.first.get() - before);
        before = entry.last.get();
    }
    for entry in predecessors {
        varint::put(&mut out, entry.last.get() - entry.first.get());
    }
    for entry in predecessors {
        varint::put(&mut out, entry.length);
    }
    for entry in predecessors {
        varint::put_text(&mut out, &entry.key);
    }
    let chained = |position: usize| {
        position > 0 && predecessors[position].previous == predecessors[position - 1].hash
    };
    for (position, index) in indexes.iter().enumerate() {
        let chained = if chained(position) { FLAG_CHAINED } else { 0 };
        let indexed = if index.is_some() { FLAG_INDEXED } else { 0 };
        varint::put(&mut out, chained | indexed);
    }
    for entry in predecessors {
        out.extend_from_slice(&entry.object_id.0);
    }
    for entry in predecessors {
        out.extend_from_slice(&entry.hash.0);
    }
    for (position, entry) in predecessors.iter().enumerate() {
        if !chained(position) {
            out.extend_from_slice(&entry.previous.0);
        }
    }
    for index in indexes.iter().flatten() {
        out.extend_from_slice(index);
    }
    out
}

/// Decodes the predecessors of a level-0 segment.
///
/// # Errors
/// `Corrupt`.
pub fn decode_predecessors(section: &[u8]) -> Result<Vec<Predecessor>> {
    let mut fields = Fields::new("section Predecessors", section);
    let count = fields.count(45)?;
    if count > PREDECESSORS_MAX {
        return Err(fields.wrong(format!("{count} predecessors")));
    }
    let firsts = fields.column(count)?;
    let counts = fields.column(count)?;
    let lengths = fields.column(count)?;
    let keys: Vec<&str> = (0..count).map(|_| fields.text()).collect::<Result<_>>()?;
    let flags = fields.column(count)?;
    let ids: Vec<[u8; 8]> = (0..count).map(|_| fields.array()).collect::<Result<_>>()?;
    let hashes: Vec<[u8; 32]> = (0..count).map(|_| fields.array()).collect::<Result<_>>()?;
    let mut predecessors: Vec<Predecessor> = Vec::with_capacity(count);
    let mut behind = 0_u64;
    for entry in 0..count {
        let first = behind
            .checked_add(firsts[entry])
            .filter(|&first| first > behind)
            .and_then(Txid::new);
        let last = first
            .and_then(|first| first.get().checked_add(counts[entry]))
            .and_then(Txid::new);
        let (Some(first), Some(last)) = (first, last) else {
            return Err(fields.wrong(format!("entry {entry}: impossible txids")));
        };
        behind = last.get();
        let previous = match (flags[entry] & FLAG_CHAINED != 0, predecessors.last()) {
            (false, _) => ObjectHash(fields.array()?),
            (true, Some(before)) => before.hash,
            (true, None) => return Err(fields.wrong("the first entry is chained to nothing")),
        };
        if flags[entry] & !(FLAG_CHAINED | FLAG_INDEXED) != 0 {
            return Err(fields.wrong(format!("entry {entry}: impossible flags")));
        }
        predecessors.push(Predecessor {
            key: keys[entry].to_owned(),
            length: lengths[entry],
            hash: ObjectHash(hashes[entry]),
            object_id: ObjectId(ids[entry]),
            first,
            last,
            previous,
            index: None,
        });
    }
    for (entry, flags) in predecessors.iter_mut().zip(flags) {
        if flags & FLAG_INDEXED != 0 {
            entry.index = Some(decode_predecessor_index(&mut fields, entry)?);
        }
    }
    fields.end()?;
    Ok(predecessors)
}

fn decode_predecessor_index(fields: &mut Fields<'_>, entry: &Predecessor) -> Result<SegmentIndex> {
    let blocks = BlockTable::decode(fields)?;
    let versions = decode_versions(fields, entry.first, entry.last)?;
    if versions.len() != blocks.slots() as usize || blocks.end() > entry.length {
        return Err(fields.wrong(format!("the blocks of {} do not fit it", entry.key)));
    }
    let span = Span {
        first: entry.first,
        last: entry.last,
        // Level-0 segments never are.
        thinned: false,
    };
    let mut timeline = Vec::new();
    each_entry(fields, span, |entry| timeline.push(*entry))
        .map_err(|e| e.context(format!("timeline of {}", entry.key)))?;
    Ok(SegmentIndex {
        blocks,
        versions,
        timeline,
    })
}

/// Decodes page hashes, one for each slot.
///
/// # Errors
/// `Corrupt`.
pub fn decode_hashes(section: &[u8]) -> Result<Vec<PageHash>> {
    let (hashes, []) = section.as_chunks::<16>() else {
        return Err(Error::corrupt(format!(
            "section PageHashes: {} bytes are not a multiple of 16",
            section.len()
        )));
    };
    Ok(hashes.iter().map(|&hash| PageHash(hash)).collect())
}

/// Decodes the key of the snapshot that a transaction was shipped as.
///
/// # Errors
/// `Corrupt`.
pub fn decode_snapshot_key(section: &[u8]) -> Result<String> {
    String::from_utf8(section.to_vec())
        .map_err(|_| Error::corrupt("section SnapshotKey: the key is not UTF-8"))
}

/// A version as it lies in the scratch file: pgno (4 bytes), txid (8), hash of the page (16).
const RECORD_BYTES: usize = 28;
const RECORDS_A_CHUNK: usize = CHUNK_BYTES / RECORD_BYTES;

/// Writes a segment in one pass; memory stays bounded whatever its size. The header comes last,
/// since what it says is known last: `W` must seek back to the start (a file).
pub struct SegmentWriter<W: Write + Seek> {
    object: ObjectWriter<W>,
    object_id: ObjectId,
    page_size: PageSize,
    /// The pages of the block to come, and how many shall be in it.
    block: Vec<u8>,
    block_pages: usize,
    /// A record for each version.
    versions: Spill,
    slots: u32,
    newest: Option<(Pgno, Txid)>,
    /// The lowest and the highest txid so far.
    txids: Option<(Txid, Txid)>,
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
        Ok(Self {
            object: ObjectWriter::new(out)?,
            object_id,
            page_size,
            block: Vec::new(),
            // As if the block before had been compressed to half.
            block_pages: (2 * BLOCK_STORED_TARGET / page_size.bytes()).max(1),
            versions: Spill::new(scratch().map_err(scratch_failed)?),
            slots: 0,
            newest: None,
            txids: None,
        })
    }

    /// Adds a page version; in strictly ascending order of (pgno, txid).
    ///
    /// # Errors
    /// `Disk`.
    ///
    /// # Panics
    /// If the order is wrong or the page has another size than given to `new`.
    pub fn push(&mut self, pgno: Pgno, txid: Txid, page: &[u8]) -> Result<()> {
        assert_eq!(page.len(), self.page_size.bytes(), "the size of a page");
        assert!(
            self.newest < Some((pgno, txid)),
            "page versions come in order"
        );
        self.newest = Some((pgno, txid));
        let (low, high) = self.txids.unwrap_or((txid, txid));
        self.txids = Some((low.min(txid), high.max(txid)));
        self.slots = self
            .slots
            .checked_add(1)
            .ok_or_else(|| Error::invalid("a segment of over 4,294,967,295 page versions"))?;
        let mut record = [0; RECORD_BYTES];
        record[..4].copy_from_slice(&pgno.get().to_le_bytes());
        record[4..12].copy_from_slice(&txid.get().to_le_bytes());
        record[12..].copy_from_slice(&PageHash::of(page).0);
        self.versions.append(&record)?;
        self.block.extend_from_slice(page);
        if self.block.len() >= self.block_pages * self.page_size.bytes() {
            self.end_block()?;
        }
        Ok(())
    }

    fn end_block(&mut self) -> Result<()> {
        let raw = self.block.len();
        if raw == 0 {
            return Ok(());
        }
        let pages = (raw / self.page_size.bytes()) as u32;
        let stored = self.object.block(&self.block, pages)? as usize;
        self.block.clear();
        // Versions that lie side by side are alike, so the next block will compress as this one.
        let next = (BLOCK_STORED_TARGET * raw / stored).min(BLOCK_RAW_MAX);
        self.block_pages = (next / self.page_size.bytes()).max(1);
        Ok(())
    }

    /// Writes the sections, the footer and, at the start, the header.
    /// `snapshot_key`: of a transaction shipped as a snapshot. The timeline has one entry for each
    /// transaction of the segment (of a thinned one: for each that was kept), ascending. Of more
    /// than [`PREDECESSORS_MAX`] predecessors, ascending, the newest count.
    ///
    /// # Errors
    /// `Disk`; `Invalid` if the segment is too large for its format (far above 1 TB of pages).
    ///
    /// # Panics
    /// If header, timeline and pages contradict each other.
    pub fn finish(
        mut self,
        header: &Header,
        timeline: &[TimelineEntry],
        predecessors: &[Predecessor],
        snapshot_key: Option<&str>,
    ) -> Result<(W, Written)> {
        self.check(header, predecessors);
        self.end_block()?;
        if self.slots > 0 {
            self.write_hashes()?;
        }
        self.write_versions(header.first)?;
        let mut blocks = Vec::new();
        self.object.blocks().encode(&mut blocks);
        self.object.section(SectionKind::Blocks, &blocks)?;
        let timeline = encode_timeline_section(header, timeline);
        self.object.section(SectionKind::Timeline, &timeline)?;
        let newest = predecessors.len().saturating_sub(PREDECESSORS_MAX);
        if !predecessors.is_empty() {
            let section = self.fit_predecessors(&predecessors[newest..])?;
            self.object.section(SectionKind::Predecessors, &section)?;
        }
        if let Some(key) = snapshot_key {
            self.object
                .section(SectionKind::SnapshotKey, key.as_bytes())?;
        }
        self.object.finish(header)
    }

    fn check(&self, header: &Header, predecessors: &[Predecessor]) {
        assert_eq!(header.kind, Kind::Segment, "a segment's header");
        assert_eq!(header.object_id, self.object_id, "the object id as begun");
        assert_eq!(header.page_size, self.page_size, "the page size as begun");
        let within = |(low, high)| header.first <= low && high <= header.last;
        assert!(
            self.txids.is_none_or(within),
            "every version lies in the header's range"
        );
        assert!(
            header.level == 0 || predecessors.is_empty(),
            "only level 0 has predecessors"
        );
        assert!(
            predecessors.windows(2).all(|p| p[0].last < p[1].first)
                && predecessors.last().is_none_or(|p| p.last < header.first)
                && predecessors.iter().all(|p| p.first <= p.last),
            "predecessors come in order, before the segment"
        );
    }

    fn write_hashes(&mut self) -> Result<()> {
        let length = u64::from(self.slots) * 16;
        let mut section = self
            .object
            .open_section(SectionKind::PageHashes, length, length)?;
        let mut hashes = Vec::with_capacity(CHUNK_BYTES);
        for slot in (0..self.slots).step_by(RECORDS_A_CHUNK) {
            hashes.clear();
            for record in read_records(&mut self.versions, slot, self.slots)? {
                hashes.extend_from_slice(&record[12..]);
            }
            section.write(&hashes)?;
        }
        section.close()
    }

    fn write_versions(&mut self, first: Txid) -> Result<()> {
        let (versions, slots) = (&mut self.versions, self.slots);
        let mut raw_length = 0;
        emit_versions(versions, slots, first, |_, raw| {
            raw_length += raw.len() as u64;
            Ok(())
        })?;
        // The frame goes behind the records into the same scratch file: a section's length stands
        // before its bytes.
        let start = versions.len();
        let mut encoder = SectionEncoder::new(raw_length)?;
        emit_versions(versions, slots, first, |spill, raw| {
            encoder.write(raw, spill)
        })?;
        encoder.finish(versions)?;
        let stored = start..versions.len();
        if stored.end - stored.start < raw_length {
            return self
                .object
                .section_from(SectionKind::Versions, raw_length, versions, stored);
        }
        let mut section =
            self.object
                .open_section(SectionKind::Versions, raw_length, raw_length)?;
        emit_versions(versions, slots, first, |_, raw| section.write(raw))?;
        section.close()
    }

    /// The predecessors with as many of the newest indexes as fit.
    fn fit_predecessors(&mut self, predecessors: &[Predecessor]) -> Result<Vec<u8>> {
        let mut indexes: Vec<Vec<u8>> = Vec::new();
        let mut bytes = 0;
        for entry in predecessors.iter().rev() {
            let index = entry.index.as_ref();
            indexes.push(index.map_or(Vec::new(), |index| index.encode(entry.first)));
            bytes += indexes[indexes.len() - 1].len();
            if bytes > PREDECESSOR_INDEXES_BYTES {
                indexes.pop();
                break;
            }
        }
        let with_newest = |count: usize| {
            let mut chosen: Vec<Option<&[u8]>> = vec![None; predecessors.len()];
            for (place, index) in chosen.iter_mut().rev().zip(&indexes[..count]) {
                *place = Some(index.as_slice()).filter(|index| !index.is_empty());
            }
            encode_predecessors(predecessors, &chosen)
        };
        // Binary search: `fits` do, `fits + 1 ..= most` are not tried yet.
        let (mut fits, mut most) = (0, indexes.len());
        while fits < most {
            let count = fits + (most - fits).div_ceil(2);
            if self.object.compress(&with_newest(count))?.len() <= PREDECESSORS_BYTES {
                fits = count;
            } else {
                most = count - 1;
            }
        }
        Ok(with_newest(fits))
    }
}

/// The records of `slot` and of the slots that follow, as many as make a chunk.
fn read_records(spill: &mut Spill, slot: u32, slots: u32) -> Result<Vec<[u8; RECORD_BYTES]>> {
    let count = ((slots - slot) as usize).min(RECORDS_A_CHUNK);
    let mut records = vec![[0; RECORD_BYTES]; count];
    spill.read_at(
        u64::from(slot) * RECORD_BYTES as u64,
        records.as_flattened_mut(),
    )?;
    Ok(records)
}

/// Hands out the raw `Versions` section piece by piece, together with the spill it comes from.
fn emit_versions(
    spill: &mut Spill,
    slots: u32,
    first: Txid,
    mut emit: impl FnMut(&mut Spill, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut raw = Vec::new();
    varint::put(&mut raw, u64::from(slots));
    for step in [pgno_step, txid_step] {
        let mut before = None;
        for slot in (0..slots).step_by(RECORDS_A_CHUNK) {
            for record in read_records(spill, slot, slots)? {
                let version = version_of(&record);
                varint::put(&mut raw, step(before, version, first));
                before = Some(version);
            }
            emit(spill, &raw)?;
            raw.clear();
        }
    }
    emit(spill, &raw)
}

fn version_of(record: &[u8; RECORD_BYTES]) -> (Pgno, Txid) {
    let mut pgno = [0; 4];
    let mut txid = [0; 8];
    pgno.copy_from_slice(&record[..4]);
    txid.copy_from_slice(&record[4..12]);
    let pgno = Pgno::new(u32::from_le_bytes(pgno));
    let txid = Txid::new(u64::from_le_bytes(txid));
    pgno.zip(txid).expect("a record holds what was pushed")
}

#[cfg(test)]
mod tests;
