//! Snapshots: a page map of the whole database at one txid, and the pages that it adds.
//!
//! A slot of a snapshot or a part is a page, in ascending order of their numbers. The map says for
//! every page of the database in which slot of which snapshot or part it lies; so a later snapshot
//! costs what changed. [`crate::format::container`] says how blocks and sections are stored,
//! [`crate::format`] what a varint is. A *column* holds one field of every entry, one entry after
//! the other.
//!
//! A block holds 64 KiB of pages; the last one may hold fewer. In an `exact` snapshot the lock-byte
//! page is stored as zeros, so that the inflated blocks are the database file.
//!
//! # Sections
//!
//! `Versions`, the pages in this object: the number of runs of consecutive pages (varint), and two
//! columns. Runs ascend and do not touch; slots follow from the counts.
//!
//! | column | each | is |
//! | --- | --- | --- |
//! | first | varint | first page minus the page behind the run before (of the first run: minus 0) |
//! | count | varint | pages, at least 1 |
//!
//! `Timeline` (not in parts): as in [`crate::format::segment`], with one entry, that of the txid.
//!
//! `PageHashes`: as in segments.
//!
//! `MapLeaves`: encoded leaves, one behind the other. Where each lies, a root says. A leaf is one
//! byte, 0 or 1, and then what follows (0), or one zstd frame of it (1), which is at most
//! 128 KiB long: the number of objects (varint), their ids (8 bytes each), the number of runs
//! (varint), and four columns. Runs ascend, do not overlap, and lie within the 4,096 pages of the
//! leaf. A page of no run is zeros.
//!
//! | column | each | is |
//! | --- | --- | --- |
//! | first | varint | first page minus the page behind the run before (of the first run: minus 0) |
//! | count | varint | pages, at least 1 |
//! | object | varint | position in the list of ids |
//! | slot | signed varint | slot of the first page minus the slot behind the last run in the same object (without one: minus 0) |
//!
//! `MapRoot`: database size in pages (varint); the number of homes (varint), which are the other
//! objects that the map needs, and their three columns; then four columns of leaves, of which there
//! is one for each 4,096 pages or part of them.
//!
//! | column | each | is |
//! | --- | --- | --- |
//! | id | 8 bytes | object id of the home |
//! | length | varint | bytes of the home |
//! | key | varint, bytes | length of the home's key, and the key below the replica in UTF-8 |
//! | object | varint | 0: no page of this leaf is stored; 1: the leaf lies in this object; `i` + 2: in home `i` |
//! | offset | signed varint | of each leaf that is stored: its offset in that object minus the end of the leaf before in the same object (without one: minus 0) |
//! | length | varint | of each leaf that is stored: its stored bytes |
//! | checksum | 8 bytes | of each leaf that is stored: xxh3-64 of its stored bytes |
//!
//! `InteriorPages`: the number of pages (varint), their numbers as ascending differences (varint;
//! of the first: minus 0), and the pages, as they were when they were read: those of the first
//! 64 KiB, and b-tree interior pages. They lie in the blocks as well, of this object or another.

use crate::error::{Error, Result};
use crate::format::container::{
    BlockTable, Footer, Header, Kind, Scratch, SectionKind, Written, inflate_behind,
};
use crate::format::ids::{ObjectId, PageHash, PageSize, Pgno};
use crate::format::interior::InteriorPages;
use crate::format::object::{ObjectWriter, Spill, scratch_failed};
use crate::format::segment::{TimelineEntry, decode_timeline_section, encode_timeline_section};
use crate::format::varint::{self, Fields};
use std::collections::{HashMap, HashSet};
use std::io::{Seek, Write};
use xxhash_rust::xxh3::xxh3_64;

/// Pages that one leaf of a map covers.
pub const LEAF_PAGES: u32 = 4096;
/// Bytes of pages in a block.
pub const BLOCK_BYTES: usize = 64 * 1024;
/// A leaf is at most this long once inflated, bytes: 4,096 ids of 8 bytes, and 4,096 runs of a page
/// each with at most 2, 1, 2 and 5 bytes, fit.
const LEAF_RAW_MAX: usize = 128 * 1024;
const _: () = assert!(LEAF_PAGES as usize * (8 + 2 + 1 + 2 + 5) + 16 <= LEAF_RAW_MAX);
const LEAF_AS_IS: u8 = 0;
const LEAF_COMPRESSED: u8 = 1;

/// Consecutive pages that lie in consecutive slots of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first page.
    pub first: Pgno,
    /// Pages, at least 1.
    pub count: u32,
    /// Where they lie.
    pub object: ObjectId,
    /// The slot of the first page.
    pub slot: u32,
}

impl Run {
    /// The number behind the last page.
    pub fn end(&self) -> u64 {
        u64::from(self.first.get()) + u64::from(self.count)
    }

    /// The pages of this run from `from` on that come before `to`.
    pub fn part(&self, from: u64, to: u64) -> Option<Self> {
        let from = from.max(u64::from(self.first.get()));
        let to = to.min(self.end());
        let skipped = u32::try_from(from - u64::from(self.first.get())).ok()?;
        Some(Self {
            first: Pgno::new(u32::try_from(from).ok()?)?,
            count: u32::try_from(to.checked_sub(from)?)
                .ok()
                .filter(|&n| n > 0)?,
            object: self.object,
            slot: self.slot.checked_add(skipped)?,
        })
    }

    /// True if `next` goes on where this run ends, in pages and in slots.
    fn continues(&self, next: &Self) -> bool {
        self.end() == u64::from(next.first.get())
            && self.object == next.object
            && u64::from(self.slot) + u64::from(self.count) == u64::from(next.slot)
    }

    /// The leaf that covers the first page.
    fn leaf(&self) -> u32 {
        (self.first.get() - 1) / LEAF_PAGES
    }
}

/// Appends a run, to the last one if it goes on there.
fn push_run(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.continues(&run) => last.count += run.count,
        _ => runs.push(run),
    }
}

/// Where the pages of one leaf lie: ascending, without overlap; pages of no run are zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// All within the leaf's 4,096 pages.
    pub runs: Vec<Run>,
}

impl Leaf {
    /// The object and the slot of a page, if it is stored.
    pub fn locate(&self, pgno: Pgno) -> Option<(ObjectId, u32)> {
        let behind = self.runs.partition_point(|run| run.first <= pgno);
        let run = &self.runs[behind.checked_sub(1)?];
        let within = pgno.get() - run.first.get();
        (within < run.count).then(|| (run.object, run.slot + within))
    }
}

/// Where a leaf is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafRef {
    /// The snapshot that it was written with.
    pub object: ObjectId,
    /// Where its stored bytes begin in that object.
    pub offset: u64,
    /// Stored bytes.
    pub length: u32,
    /// xxh3-64 of the stored bytes.
    pub checksum: u64,
}

/// An object that a map points into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// As runs and leaves name it.
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
    /// Where the slots are stored.
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
        let kind = footer.header.kind;
        if kind == Kind::Segment {
            return Err(Error::corrupt("a segment, not a snapshot"));
        }
        let needed = |index: usize| {
            sections[index].ok_or_else(|| {
                Error::corrupt(format!("a {kind:?} without {:?}", Self::SECTIONS[index]))
            })
        };
        let blocks = BlockTable::decode_section(footer, needed(0)?)?;
        let stored = decode_stored(footer, blocks.slots(), needed(1)?)?;
        if kind == Kind::Part {
            return Ok(Self {
                blocks,
                stored,
                root: None,
                timeline: None,
            });
        }
        let timeline = decode_timeline_section(&footer.header, needed(2)?)?;
        let root = MapRoot::decode(footer, needed(3)?)?;
        if timeline.iter().any(|entry| entry.pages != root.pages) {
            return Err(Error::corrupt(format!(
                "section MapRoot: {} pages, and the timeline has another size",
                root.pages
            )));
        }
        Ok(Self {
            blocks,
            stored,
            root: Some(root),
            timeline: timeline.first().copied(),
        })
    }
}

/// Appends the columns of page numbers and counts of ascending runs.
fn encode_ranges(out: &mut Vec<u8>, runs: &[Run]) {
    let mut behind = 0;
    for run in runs {
        varint::put(out, u64::from(run.first.get()) - behind);
        behind = run.end();
    }
    for run in runs {
        varint::put(out, u64::from(run.count));
    }
}

/// Reads what [`encode_ranges`] wrote.
fn decode_ranges(fields: &mut Fields<'_>, count: usize) -> Result<Vec<(Pgno, u32)>> {
    let steps = fields.column(count)?;
    let mut ranges = Vec::with_capacity(count);
    let mut behind = 0_u64;
    for step in steps {
        let count = fields.number32()?;
        let first = behind
            .checked_add(step)
            .and_then(|first| u32::try_from(first).ok())
            .and_then(Pgno::new);
        let Some(first) = first.filter(|first| {
            count > 0 && u64::from(first.get()) + u64::from(count) - 1 <= u64::from(u32::MAX)
        }) else {
            return Err(fields.wrong(format!("a run of {count} pages, {step} behind {behind}")));
        };
        behind = u64::from(first.get()) + u64::from(count);
        ranges.push((first, count));
    }
    Ok(ranges)
}

fn encode_stored(stored: &[Run]) -> Vec<u8> {
    let mut out = Vec::new();
    varint::put(&mut out, stored.len() as u64);
    encode_ranges(&mut out, stored);
    out
}

fn decode_stored(footer: &Footer, slots: u32, section: &[u8]) -> Result<Vec<Run>> {
    let mut fields = Fields::new("section Versions", section);
    let count = fields.count(2)?;
    let ranges = decode_ranges(&mut fields, count)?;
    let mut stored: Vec<Run> = Vec::with_capacity(count);
    let mut slot = 0_u32;
    for (first, count) in ranges {
        let run = Run {
            first,
            count,
            object: footer.header.object_id,
            slot,
        };
        if stored.last().is_some_and(|last| last.continues(&run)) {
            return Err(fields.wrong(format!("two runs touch at page {}", first.get())));
        }
        stored.push(run);
        slot = match slot.checked_add(count) {
            Some(slot) if slot <= slots => slot,
            _ => return Err(fields.wrong(format!("more pages than the {slots} slots"))),
        };
    }
    if slot != slots {
        return Err(fields.wrong(format!("{slot} pages in {slots} slots")));
    }
    fields.end()?;
    Ok(stored)
}

impl Leaf {
    /// The stored bytes: compressed if that makes them shorter.
    fn encode<W: Write + Seek>(&self, object: &mut ObjectWriter<W>) -> Result<Vec<u8>> {
        let mut ids: Vec<ObjectId> = Vec::new();
        let mut positions = HashMap::new();
        for run in &self.runs {
            positions.entry(run.object).or_insert_with(|| {
                ids.push(run.object);
                ids.len() - 1
            });
        }
        let mut raw = vec![LEAF_AS_IS];
        varint::put(&mut raw, ids.len() as u64);
        for id in &ids {
            raw.extend_from_slice(&id.0);
        }
        varint::put(&mut raw, self.runs.len() as u64);
        encode_ranges(&mut raw, &self.runs);
        for run in &self.runs {
            varint::put(&mut raw, positions[&run.object] as u64);
        }
        let mut behind = vec![0_u32; ids.len()];
        for run in &self.runs {
            let behind = &mut behind[positions[&run.object]];
            varint::put_signed(&mut raw, i64::from(run.slot) - i64::from(*behind));
            *behind = run.slot + run.count;
        }
        let compressed = object.compress(&raw[1..])?;
        if compressed.len() < raw.len() - 1 {
            raw.clear();
            raw.push(LEAF_COMPRESSED);
            raw.extend_from_slice(compressed);
        }
        Ok(raw)
    }

    fn decode(raw: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("map leaf", raw);
        let ids = fields.count(8)?;
        let ids: Vec<[u8; 8]> = (0..ids).map(|_| fields.array()).collect::<Result<_>>()?;
        let count = fields.count(4)?;
        let ranges = decode_ranges(&mut fields, count)?;
        let positions = fields.column(count)?;
        let mut behind = vec![0_u32; ids.len()];
        let mut runs: Vec<Run> = Vec::with_capacity(count);
        for ((first, count), position) in ranges.into_iter().zip(positions) {
            let step = fields.signed()?;
            let wrong = |what: &str| fields.wrong(format!("page {}: {what}", first.get()));
            let position = usize::try_from(position)
                .ok()
                .filter(|&position| position < ids.len())
                .ok_or_else(|| wrong("no such object"))?;
            let slot = i64::from(behind[position])
                .checked_add(step)
                .and_then(|slot| u32::try_from(slot).ok())
                .ok_or_else(|| wrong("no such slot"))?;
            behind[position] = slot
                .checked_add(count)
                .ok_or_else(|| wrong("too many slots"))?;
            let run = Run {
                first,
                count,
                object: ObjectId(ids[position]),
                slot,
            };
            let leaf = runs.first().unwrap_or(&run).leaf();
            if run.end() > u64::from(leaf + 1) * u64::from(LEAF_PAGES) + 1 {
                return Err(wrong("the run lies beyond the leaf"));
            }
            runs.push(run);
        }
        fields.end()?;
        Ok(Self { runs })
    }
}

impl LeafRef {
    /// Verifies and decodes a leaf's stored bytes.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn open(&self, stored: &[u8]) -> Result<Leaf> {
        let wrong = |why: String| Error::corrupt(format!("map leaf at {}: {why}", self.offset));
        if stored.len() != self.length as usize {
            return Err(wrong(format!(
                "{} bytes, expected {}",
                stored.len(),
                self.length
            )));
        }
        let checksum = xxh3_64(stored);
        if checksum != self.checksum {
            return Err(wrong(format!(
                "checksum {checksum:016x}, expected {:016x}",
                self.checksum
            )));
        }
        match stored.split_first() {
            Some((&LEAF_AS_IS, raw)) => Leaf::decode(raw),
            Some((&LEAF_COMPRESSED, frame)) => {
                let mut raw = Vec::with_capacity(LEAF_RAW_MAX);
                inflate_behind(frame, &mut raw)
                    .map_err(|error| wrong(format!("it does not inflate: {error}")))?;
                Leaf::decode(&raw)
            }
            _ => Err(wrong("neither as it is nor compressed".into())),
        }
        .map_err(|error| error.context(format!("map leaf at {}", self.offset)))
    }
}

/// Leaves of a map of so many pages.
fn leaf_count(pages: u32) -> usize {
    pages.div_ceil(LEAF_PAGES) as usize
}

impl MapRoot {
    fn encode(&self, own: ObjectId) -> Vec<u8> {
        let mut out = Vec::new();
        varint::put(&mut out, u64::from(self.pages));
        varint::put(&mut out, self.homes.len() as u64);
        for home in &self.homes {
            out.extend_from_slice(&home.id.0);
        }
        for home in &self.homes {
            varint::put(&mut out, home.length);
        }
        for home in &self.homes {
            varint::put_text(&mut out, &home.key);
        }
        let ids = std::iter::once(own).chain(self.homes.iter().map(|home| home.id));
        let codes: HashMap<ObjectId, u64> = ids.zip(1..).collect();
        for leaf in &self.leaves {
            varint::put(&mut out, leaf.map_or(0, |leaf| codes[&leaf.object]));
        }
        let mut behind: HashMap<ObjectId, u64> = HashMap::new();
        for leaf in self.leaves.iter().flatten() {
            let behind = behind.entry(leaf.object).or_default();
            varint::put_signed(&mut out, leaf.offset as i64 - *behind as i64);
            *behind = leaf.offset + u64::from(leaf.length);
        }
        for leaf in self.leaves.iter().flatten() {
            varint::put(&mut out, u64::from(leaf.length));
        }
        for leaf in self.leaves.iter().flatten() {
            out.extend_from_slice(&leaf.checksum.to_le_bytes());
        }
        out
    }

    fn decode(footer: &Footer, section: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("section MapRoot", section);
        let pages = fields.number32()?;
        let homes = decode_homes(&mut fields, footer.header.object_id)?;
        // What is known of each object that a leaf may lie in: its id, where leaves may lie, and
        // where the last one ended.
        let own = footer.section(SectionKind::MapLeaves);
        let own = own.map_or(0..0, |own| own.offset..own.offset + own.length);
        let mut objects = vec![(footer.header.object_id, own, 0_i64)];
        objects.extend(homes.iter().map(|home| (home.id, 0..home.length, 0)));
        let left = fields.column(leaf_count(pages))?;
        let stored = left.iter().filter(|&&code| code != 0).count();
        let offsets: Vec<i64> = (0..stored)
            .map(|_| fields.signed())
            .collect::<Result<_>>()?;
        let lengths = fields.column(stored)?;
        let mut places = offsets.into_iter().zip(lengths);
        let mut leaves = Vec::with_capacity(left.len());
        for code in left {
            let Some(object) = code.checked_sub(1) else {
                leaves.push(None);
                continue;
            };
            let wrong = |what: &str| fields.wrong(format!("leaf {}: {what}", leaves.len()));
            let (step, length) = places.next().ok_or_else(|| wrong("no place"))?;
            let (id, bounds, behind) = usize::try_from(object)
                .ok()
                .and_then(|object| objects.get_mut(object))
                .ok_or_else(|| wrong("no such object"))?;
            let offset = behind.checked_add(step);
            let end = offset
                .zip(i64::try_from(length).ok())
                .and_then(|(offset, length)| offset.checked_add(length));
            let (Some(offset), Some(end), Ok(length)) = (offset, end, u32::try_from(length)) else {
                return Err(wrong("impossible offset or length"));
            };
            if offset < 0 || (offset as u64) < bounds.start || end as u64 > bounds.end {
                return Err(wrong("it lies outside of its object"));
            }
            *behind = end;
            let (object, offset) = (*id, offset as u64);
            leaves.push(Some(LeafRef {
                object,
                offset,
                length,
                checksum: fields.checksum()?,
            }));
        }
        fields.end()?;
        Ok(Self {
            pages,
            homes,
            leaves,
        })
    }
}

fn decode_homes(fields: &mut Fields<'_>, own: ObjectId) -> Result<Vec<Home>> {
    let count = fields.count(10)?;
    let ids: Vec<[u8; 8]> = (0..count).map(|_| fields.array()).collect::<Result<_>>()?;
    let lengths = fields.column(count)?;
    let mut homes = Vec::with_capacity(count);
    let mut known = HashSet::from([own]);
    for (id, length) in ids.into_iter().zip(lengths) {
        let key = fields.text()?.to_owned();
        let id = ObjectId(id);
        if !known.insert(id) {
            return Err(fields.wrong(format!("{key} is object {id}, as another is")));
        }
        homes.push(Home { id, key, length });
    }
    Ok(homes)
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

/// `leaf` with the pages of `newer` (ascending, of the same leaf) laid over it, and nothing beyond
/// `pages`: how a later snapshot changes a leaf.
pub fn overlay(leaf: &Leaf, newer: &[Run], pages: u32) -> Leaf {
    let mut parts = newer.to_vec();
    for old in &leaf.runs {
        let mut from = u64::from(old.first.get());
        let hidden = newer.partition_point(|run| run.end() <= from);
        for run in &newer[hidden..] {
            parts.extend(old.part(from, u64::from(run.first.get())));
            from = from.max(run.end());
            if from >= old.end() {
                break;
            }
        }
        parts.extend(old.part(from, old.end()));
    }
    parts.sort_unstable_by_key(|run| run.first);
    let mut runs = Vec::with_capacity(parts.len());
    for run in parts {
        if let Some(run) = run.part(1, u64::from(pages) + 1) {
            push_run(&mut runs, run);
        }
    }
    Leaf { runs }
}

/// The leaves of a map of `pages` pages in which exactly the pages of `runs` (ascending, possibly
/// crossing leaves) are stored.
pub fn leaves(runs: &[Run], pages: u32) -> Vec<Leaf> {
    let mut leaves = vec![Leaf::default(); leaf_count(pages)];
    for run in runs {
        let mut rest = run.part(1, u64::from(pages) + 1);
        while let Some(run) = rest {
            let leaf = run.leaf();
            let end = u64::from(leaf + 1) * u64::from(LEAF_PAGES) + 1;
            if let Some(here) = run.part(1, end) {
                push_run(&mut leaves[leaf as usize].runs, here);
            }
            rest = run.part(end, run.end());
        }
    }
    leaves
}

/// Writes a snapshot or a part in one pass; memory stays bounded whatever its size. The header
/// comes last, since a fuzzy snapshot's txid is known last: `W` must seek back to the start (a
/// file).
pub struct SnapshotWriter<W: Write + Seek> {
    object: ObjectWriter<W>,
    object_id: ObjectId,
    page_size: PageSize,
    /// The pages of the block to come.
    block: Vec<u8>,
    /// The hash of each page.
    hashes: Spill,
    slots: u32,
    stored: Vec<Run>,
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
        Ok(Self {
            object: ObjectWriter::new(out)?,
            object_id,
            page_size,
            block: Vec::with_capacity(BLOCK_BYTES),
            hashes: Spill::new(scratch().map_err(scratch_failed)?),
            slots: 0,
            stored: Vec::new(),
        })
    }

    /// Adds a page; in strictly ascending order.
    ///
    /// # Errors
    /// `Disk`.
    ///
    /// # Panics
    /// If the order is wrong or the page has another size than given to `new`.
    pub fn push(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        assert_eq!(page.len(), self.page_size.bytes(), "the size of a page");
        let behind = self.stored.last().map_or(1, Run::end);
        assert!(u64::from(pgno.get()) >= behind, "pages come in order");
        push_run(
            &mut self.stored,
            Run {
                first: pgno,
                count: 1,
                object: self.object_id,
                slot: self.slots,
            },
        );
        self.slots += 1;
        self.hashes.append(&PageHash::of(page).0)?;
        self.block.extend_from_slice(page);
        if self.block.len() >= BLOCK_BYTES {
            self.end_block()?;
        }
        Ok(())
    }

    fn end_block(&mut self) -> Result<()> {
        if !self.block.is_empty() {
            let pages = (self.block.len() / self.page_size.bytes()) as u32;
            self.object.block(&self.block, pages)?;
            self.block.clear();
        }
        Ok(())
    }

    /// The pages added so far, as runs of this object, ascending.
    pub fn stored(&self) -> &[Run] {
        &self.stored
    }

    /// Bytes written so far, without the pages of the block to come: what tells when a part is
    /// full.
    pub fn bytes(&self) -> u64 {
        self.object.position()
    }

    /// Ends a part (`header.kind` is `Part`).
    ///
    /// # Errors
    /// `Disk`.
    ///
    /// # Panics
    /// If the header contradicts itself or what `new` was given.
    pub fn finish_part(mut self, header: &Header) -> Result<(W, Written)> {
        self.check(header, Kind::Part);
        self.end_block()?;
        self.write_hashes()?;
        self.write_index()?;
        self.object.finish(header)
    }

    /// Ends a snapshot with its map and, when given, the interior b-tree pages to carry once more.
    ///
    /// # Errors
    /// `Disk`.
    ///
    /// # Panics
    /// If header, entry and map contradict each other, or the map names an object that is neither
    /// this one nor a home.
    pub fn finish(
        mut self,
        header: &Header,
        map: &MapToWrite<'_>,
        entry: TimelineEntry,
        interior: Option<InteriorPages>,
    ) -> Result<(W, Written)> {
        self.check(header, Kind::Snapshot);
        assert_eq!(entry.pages, map.pages, "the size of the database");
        self.check_map(map);
        self.end_block()?;
        self.write_hashes()?;
        let leaves = self.write_leaves(map.leaves)?;
        // What is read at open lies together at the end.
        if let Some(interior) = interior
            && let Some(section) = interior.section(&mut self.object)?
        {
            self.object.section(SectionKind::InteriorPages, &section)?;
        }
        self.write_index()?;
        let timeline = encode_timeline_section(header, &[entry]);
        self.object.section(SectionKind::Timeline, &timeline)?;
        let root = MapRoot {
            pages: map.pages,
            homes: map.homes.to_vec(),
            leaves,
        };
        self.object
            .section(SectionKind::MapRoot, &root.encode(self.object_id))?;
        self.object.finish(header)
    }

    fn check(&self, header: &Header, kind: Kind) {
        assert_eq!(header.kind, kind, "the kind of object that ends here");
        assert_eq!(header.object_id, self.object_id, "the object id as begun");
        assert_eq!(header.page_size, self.page_size, "the page size as begun");
    }

    fn check_map(&self, map: &MapToWrite<'_>) {
        assert_eq!(
            map.leaves.len(),
            leaf_count(map.pages),
            "a leaf for each 4,096 pages"
        );
        let homes: HashSet<ObjectId> = map.homes.iter().map(|home| home.id).collect();
        assert!(
            homes.len() == map.homes.len() && !homes.contains(&self.object_id),
            "every home is another object"
        );
        for (number, leaf) in map.leaves.iter().enumerate() {
            match leaf {
                LeafSource::Empty => {}
                LeafSource::Earlier(leaf) => {
                    assert!(homes.contains(&leaf.object), "leaf {number} has a home");
                }
                LeafSource::Here(leaf) => {
                    let mut behind = number as u64 * u64::from(LEAF_PAGES) + 1;
                    let end = behind + u64::from(LEAF_PAGES);
                    for run in &leaf.runs {
                        let slots = u64::from(run.slot) + u64::from(run.count);
                        let own = run.object == self.object_id && slots <= self.slots.into();
                        let first = u64::from(run.first.get());
                        assert!(
                            run.count > 0 && behind <= first && run.end() <= end,
                            "runs of leaf {number} come in order"
                        );
                        assert!(
                            own || homes.contains(&run.object),
                            "every page of leaf {number} has a home"
                        );
                        behind = run.end();
                    }
                }
            }
        }
    }

    fn write_hashes(&mut self) -> Result<()> {
        let length = self.hashes.len();
        if length == 0 {
            return Ok(());
        }
        self.object
            .section_from(SectionKind::PageHashes, length, &mut self.hashes, 0..length)
    }

    /// Writes the leaves that are new, and says where all of them lie.
    fn write_leaves(&mut self, sources: &[LeafSource]) -> Result<Vec<Option<LeafRef>>> {
        // They go behind the hashes into the same scratch file: a section's length stands before
        // its bytes.
        let start = self.hashes.len();
        let section = self.object.section_offset();
        let mut leaves = Vec::with_capacity(sources.len());
        for source in sources {
            leaves.push(match source {
                LeafSource::Empty => None,
                LeafSource::Earlier(leaf) => Some(*leaf),
                LeafSource::Here(leaf) if leaf.runs.is_empty() => None,
                LeafSource::Here(leaf) => {
                    let stored = leaf.encode(&mut self.object)?;
                    let offset = section + self.hashes.len() - start;
                    self.hashes.append(&stored)?;
                    Some(LeafRef {
                        object: self.object_id,
                        offset,
                        length: u32::try_from(stored.len())
                            .expect("4,096 runs are shorter than 4 GiB"),
                        checksum: xxh3_64(&stored),
                    })
                }
            });
        }
        let end = self.hashes.len();
        if end > start {
            self.object.section_from(
                SectionKind::MapLeaves,
                end - start,
                &mut self.hashes,
                start..end,
            )?;
        }
        Ok(leaves)
    }

    fn write_index(&mut self) -> Result<()> {
        let stored = encode_stored(&self.stored);
        self.object.section(SectionKind::Versions, &stored)?;
        let mut blocks = Vec::new();
        self.object.blocks().encode(&mut blocks);
        self.object.section(SectionKind::Blocks, &blocks)
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

#[cfg(test)]
mod tests;
