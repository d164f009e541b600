//! Objects in memory, read back whole; and what becomes of damaged ones.

use super::*;
use crate::error::ErrorKind;
use crate::format::ids::{PageHash, Pgno, Timestamp};
use crate::format::interior::{InteriorPages, decode_interior};
use crate::format::segment::{
    Predecessor, SegmentIndex, SegmentWriter, TimelineEntry, VersionCursor, decode_hashes,
    decode_predecessors, decode_snapshot_key,
};
use crate::format::snapshot::{
    Leaf, LeafSource, MapToWrite, Run, SnapshotIndex, SnapshotWriter, leaves,
};
use std::io::Cursor;

pub(in crate::format) fn scratch() -> std::io::Result<Box<dyn ScratchFile>> {
    Ok(Box::new(Cursor::new(Vec::new())))
}

pub(in crate::format) fn txid(number: u64) -> Txid {
    Txid::new(number).unwrap()
}

pub(in crate::format) fn pgno(number: u32) -> Pgno {
    Pgno::new(number).unwrap()
}

pub(in crate::format) fn header(kind: Kind, page_size: u32, first: u64, last: u64) -> Header {
    let segment = kind == Kind::Segment;
    Header {
        kind,
        level: 0,
        page_size: PageSize::new(page_size).unwrap(),
        object_id: ObjectId([7; 8]),
        database_id: DatabaseId([1; 16]),
        writer_id: WriterId([2; 8]),
        generation: "00000002-9f3c2a7b".parse().unwrap(),
        parent: Some(Parent {
            generation: "00000001-00c0ffee".parse().unwrap(),
            txid: txid(9),
        }),
        first: txid(first),
        last: txid(last),
        since: txid(first),
        end: WalEnd {
            salts: [3, 4],
            frame: 5,
            checksum: [6, 7],
        },
        exact: kind == Kind::Snapshot,
        thinned: false,
        sqlite_version: 3_054_001,
        previous: ObjectHash([if segment { 9 } else { 0 }; 32]),
        last_input: ObjectHash([0; 32]),
    }
}

pub(in crate::format) fn entry(number: u64, pages: u32) -> TimelineEntry {
    TimelineEntry {
        txid: txid(number),
        time: Timestamp::from_micros(1_795_196_712_000_000 + 1_003 * number as i64),
        upper_bound: number.is_multiple_of(5),
        in_snapshot: false,
        pages,
        min_pages: pages - pages / 7,
    }
}

/// A page with some text and some noise, another one for each seed.
pub(in crate::format) fn page(seed: u64, bytes: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes)
        .map(|at| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if at % 4 == 0 {
                (state >> 24) as u8
            } else {
                b'a' + (at % 7) as u8
            }
        })
        .collect()
}

/// All that an object holds.
#[derive(Debug, PartialEq)]
pub(in crate::format) struct Contents {
    pub(in crate::format) footer: Footer,
    pub(in crate::format) pages: Vec<Vec<u8>>,
    pub(in crate::format) segment: Option<SegmentIndex>,
    pub(in crate::format) snapshot: Option<SnapshotIndex>,
    pub(in crate::format) leaves: Vec<Leaf>,
    pub(in crate::format) predecessors: Vec<Predecessor>,
    pub(in crate::format) interior: Vec<(Pgno, Vec<u8>)>,
    pub(in crate::format) snapshot_key: Option<String>,
}

/// Reads an object as a reader does, from its tail: all but the header at its start and the frames'
/// own first bytes.
pub(in crate::format) fn read(object: &[u8]) -> Result<Contents> {
    read_changed(object, |_, raw| raw)
}

/// The versions of a segment, as the cursor gives them.
fn one_by_one(footer: &Footer, section: Vec<u8>) -> Result<Vec<(Pgno, Txid)>> {
    let mut cursor = VersionCursor::new(footer, section.into())?;
    let mut versions = Vec::new();
    while let Some((pgno, txid, slot)) = cursor.next_version()? {
        assert_eq!(slot as usize, versions.len());
        versions.push((pgno, txid));
    }
    assert_eq!(cursor.count(), versions.len());
    Ok(versions)
}

/// Reads an object as if its inflated sections were what `change` makes of them.
fn read_changed(
    object: &[u8],
    change: impl Fn(SectionKind, Vec<u8>) -> Vec<u8>,
) -> Result<Contents> {
    let footer = read_footer(object)?;
    let page_size = footer.header.page_size;
    let range = |offset: u64, length: u64| &object[offset as usize..(offset + length) as usize];
    let section = |kind| {
        let section = footer.section(kind);
        let open = |s: &SectionRef| Ok(change(kind, s.open(range(s.offset, s.length))?));
        section.map(open).transpose()
    };
    let mut contents = Contents {
        footer: footer.clone(),
        pages: Vec::new(),
        segment: None,
        snapshot: None,
        leaves: Vec::new(),
        predecessors: Vec::new(),
        interior: Vec::new(),
        snapshot_key: None,
    };
    let blocks = if footer.header.kind == Kind::Segment {
        let sections = SegmentIndex::SECTIONS.map(|kind| section(kind).map(Option::unwrap));
        let [blocks, versions, timeline] = sections;
        let versions = versions?;
        let index = SegmentIndex::decode(&footer, [&blocks?, &versions, &timeline?])?;
        assert_eq!(one_by_one(&footer, versions)?, index.versions);
        contents.segment.insert(index).blocks.clone()
    } else {
        let mut sections = Vec::new();
        for kind in SnapshotIndex::SECTIONS {
            sections.push(section(kind)?);
        }
        let given = std::array::from_fn(|index| sections[index].as_deref());
        let index = SnapshotIndex::decode(&footer, given)?;
        for leaf in index.root.iter().flat_map(|root| &root.leaves).flatten() {
            if leaf.object == footer.header.object_id {
                let stored = range(leaf.offset, leaf.length.into());
                contents.leaves.push(leaf.open(stored)?);
            }
        }
        contents.snapshot.insert(index).blocks.clone()
    };
    for block in &blocks.blocks {
        let raw = block.open(range(block.offset, block.length.into()), page_size)?;
        let pages = raw.chunks_exact(page_size.bytes());
        contents.pages.extend(pages.map(<[u8]>::to_vec));
    }
    if let Some(hashes) = section(SectionKind::PageHashes)? {
        let seen: Vec<PageHash> = contents.pages.iter().map(|p| PageHash::of(p)).collect();
        if decode_hashes(&hashes)? != seen {
            return Err(Error::corrupt("a page has another hash"));
        }
    }
    if let Some(raw) = section(SectionKind::Predecessors)? {
        contents.predecessors = decode_predecessors(&raw)?;
    }
    if let Some(raw) = section(SectionKind::InteriorPages)? {
        contents.interior = decode_interior(&raw, page_size.bytes())?;
    }
    if let Some(raw) = section(SectionKind::SnapshotKey)? {
        contents.snapshot_key = Some(decode_snapshot_key(&raw)?);
    }
    Ok(contents)
}

/// The footer, asked for as a reader may: with ever longer tails.
fn read_footer(object: &[u8]) -> Result<Footer> {
    let mut bytes = 0;
    for _ in 0..3 {
        let tail = &object[object.len() - bytes..];
        match Footer::decode(tail, object.len() as u64)? {
            Tail::Whole(footer) => return Ok(footer),
            Tail::Needs(more) => {
                assert!(more > bytes as u64 && more <= object.len() as u64);
                bytes = if bytes == 0 { 4 } else { more as usize };
            }
        }
    }
    panic!("three tails are enough");
}

/// Reads all of an object, and checks what [`read`] does not look at.
pub(in crate::format) fn read_verified(object: &[u8]) -> Result<Contents> {
    let contents = read(object)?;
    let footer = verify_object(&mut Cursor::new(object))?;
    assert_eq!(footer, contents.footer);
    Ok(contents)
}

/// What zstd makes of a whole object.
pub(in crate::format) fn unzstd(object: &[u8]) -> Vec<u8> {
    zstd::stream::decode_all(object).unwrap()
}

fn predecessor(first: u64, hash: u8) -> Predecessor {
    let block = BlockRef {
        offset: BLOCKS_START,
        length: 100,
        checksum: 77,
        first_slot: 0,
        slots: 2,
    };
    Predecessor {
        key: format!("generations/00000002-9f3c2a7b/wal/0/{first:016x}.wal"),
        length: 4000,
        hash: ObjectHash([hash; 32]),
        object_id: ObjectId([hash; 8]),
        first: txid(first),
        last: txid(first + 1),
        previous: ObjectHash([hash - 1; 32]),
        index: Some(SegmentIndex {
            blocks: BlockTable {
                blocks: vec![block],
            },
            versions: vec![(pgno(1), txid(first)), (pgno(1), txid(first + 1))],
            timeline: vec![entry(first, 3), entry(first + 1, 3)],
        }),
    }
}

/// A small segment with every section that a segment can have.
fn small_segment() -> Vec<u8> {
    let header = header(Kind::Segment, 512, 20, 22);
    let out = Cursor::new(Vec::new());
    let mut writer = SegmentWriter::new(out, header.object_id, header.page_size, &scratch).unwrap();
    for (number, at) in [(1, 20), (1, 22), (3, 21), (900, 22)] {
        let bytes = page(u64::from(number) + at, 512);
        writer.push(pgno(number), txid(at), &bytes).unwrap();
    }
    let timeline = [entry(20, 900), entry(21, 900), entry(22, 901)];
    let predecessors = [predecessor(12, 40), predecessor(18, 41)];
    let (out, written) = writer
        .finish(&header, &timeline, &predecessors, Some("snapshots/x"))
        .unwrap();
    assert_eq!(written.length, out.get_ref().len() as u64);
    out.into_inner()
}

/// A small snapshot with every section that a snapshot can have.
fn small_snapshot() -> Vec<u8> {
    let header = header(Kind::Snapshot, 512, 30, 30);
    let out = Cursor::new(Vec::new());
    let mut writer =
        SnapshotWriter::new(out, header.object_id, header.page_size, &scratch).unwrap();
    let mut interior = InteriorPages::new(header.page_size, &scratch).unwrap();
    for number in 1..=5 {
        let mut bytes = page(number.into(), 512);
        if number == 3 {
            bytes[..14].copy_from_slice(&[5, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 9, 1, 0]);
        }
        // Version 1 began without the first pages among them.
        if number == 3 {
            interior.offer(pgno(number), &bytes).unwrap();
        }
        writer.push(pgno(number), &bytes).unwrap();
    }
    let map = leaves(writer.stored(), 5);
    let map: Vec<LeafSource> = map.into_iter().map(LeafSource::Here).collect();
    let map = MapToWrite {
        pages: 5,
        homes: &[],
        leaves: &map,
    };
    let (out, _) = writer
        .finish(&header, &map, entry(30, 5), Some(interior))
        .unwrap();
    out.into_inner()
}

#[test]
fn small_objects_hold_every_section() {
    let segment = read_verified(&small_segment()).unwrap();
    let snapshot = read_verified(&small_snapshot()).unwrap();
    let mut kinds: Vec<SectionKind> = Vec::new();
    for section in segment
        .footer
        .sections
        .iter()
        .chain(&snapshot.footer.sections)
    {
        if !kinds.contains(&section.kind) {
            kinds.push(section.kind);
        }
    }
    assert_eq!(kinds.len(), SectionKind::ALL.len(), "{kinds:?}");
    assert_eq!(segment.predecessors[1], predecessor(18, 41));
    assert_eq!(segment.snapshot_key.as_deref(), Some("snapshots/x"));
    assert_eq!(snapshot.interior[0].0, pgno(3));
    let object = ObjectId([7; 8]);
    let run = Run {
        first: pgno(1),
        count: 5,
        object,
        slot: 0,
    };
    assert_eq!(snapshot.leaves[0].runs, [run]);
    assert_eq!(segment.footer.header, header(Kind::Segment, 512, 20, 22));
}

#[test]
fn every_truncation_is_an_error() {
    for object in [small_segment(), small_snapshot()] {
        for length in 0..object.len() {
            let cut = &object[..length];
            let error = verify_object(&mut Cursor::new(cut)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{length}: {error}");
            assert!(read(cut).is_err(), "{length}");
        }
    }
}

#[test]
fn every_single_flipped_bit_is_an_error() {
    for object in [small_segment(), small_snapshot()] {
        for bit in 0..object.len() * 8 {
            let mut flipped = object.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = verify_object(&mut Cursor::new(&flipped)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "bit {bit}: {error}");
        }
    }
}

#[test]
fn a_ranged_read_never_returns_another_byte_for_a_flipped_bit() {
    for object in [small_segment(), small_snapshot()] {
        let good = read(&object).unwrap();
        for bit in 0..object.len() * 8 {
            let mut flipped = object.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Only the header at the start and the sections' frames are not looked at.
            if let Ok(contents) = read(&flipped) {
                assert_eq!(contents, good, "bit {bit}");
                let at = bit as u64 / 8;
                let framed = |section: &SectionRef| {
                    (section.offset - FRAME_BYTES as u64..section.offset).contains(&at)
                };
                let sections = &good.footer.sections;
                assert!(
                    at < BLOCKS_START || sections.iter().any(framed),
                    "bit {bit}"
                );
            }
        }
    }
}

#[test]
fn a_section_changed_behind_its_checksum_never_makes_a_decoder_panic() {
    for object in [small_segment(), small_snapshot()] {
        for section in read(&object).unwrap().footer.sections {
            for at in 0..section.raw_length as usize {
                let cut = |kind, mut raw: Vec<u8>| {
                    raw.truncate(if kind == section.kind { at } else { usize::MAX });
                    raw
                };
                // A key cut short is a key, and leaves are opened one by one.
                let result = read_changed(&object, cut);
                let whole = matches!(
                    section.kind,
                    SectionKind::SnapshotKey | SectionKind::MapLeaves
                );
                assert!(result.is_err() || whole, "{:?} cut to {at}", section.kind);
                for mask in [1, 0x7f, 0x80, 0xff] {
                    let flip = |kind, mut raw: Vec<u8>| {
                        raw[if kind == section.kind { at } else { 0 }] ^=
                            if kind == section.kind { mask } else { 0 };
                        raw
                    };
                    // A change may still make sense; that is for checksums to see.
                    drop(read_changed(&object, flip));
                }
            }
        }
    }
}

/// What an object says, wherever its bytes lie: another zstd may compress to other lengths.
fn meaning(mut contents: Contents) -> Contents {
    contents.footer.sections.clear();
    contents.footer.length = 0;
    contents.footer.blocks_end = 0;
    contents.footer.hash = ObjectHash([0; 32]);
    if let Some(segment) = &mut contents.segment {
        segment.blocks.blocks.clear();
    }
    if let Some(snapshot) = &mut contents.snapshot {
        snapshot.blocks.blocks.clear();
        for leaf in snapshot.root.iter_mut().flat_map(|root| &mut root.leaves) {
            *leaf = None;
        }
    }
    contents
}

#[test]
fn objects_stored_by_version_1_read_as_they_always_did() {
    let stored: [&[u8]; 2] = [
        include_bytes!("golden/version-1.wal"),
        include_bytes!("golden/version-1.snapshot"),
    ];
    for (stored, written) in stored.into_iter().zip([small_segment(), small_snapshot()]) {
        let stored = read_verified(stored).unwrap();
        let written = read_verified(&written).unwrap();
        assert_eq!(meaning(stored), meaning(written));
    }
}

/// Writes checksums and hash anew, so that only what a test changed is wrong.
fn reseal(object: &mut [u8]) {
    let length = object.len();
    let payload_length = u32::from_le_bytes(*object.last_chunk().unwrap()) as usize;
    let payload = length - payload_length;
    for header in [FRAME_BYTES, payload] {
        let checksum = xxh3_64(&object[header..header + at::CHECKSUM]);
        object[header + at::CHECKSUM..header + HEADER_BYTES]
            .copy_from_slice(&checksum.to_le_bytes());
    }
    let hash = blake3::hash(&object[BLOCKS_START as usize..length - 44]);
    object[length - 44..length - 12].copy_from_slice(hash.as_bytes());
    let checksum = xxh3_64(&object[payload..length - 12]);
    object[length - 12..length - 4].copy_from_slice(&checksum.to_le_bytes());
}

/// Changes a byte of both headers.
fn with_header_byte(mut object: Vec<u8>, offset: usize, byte: u8) -> Vec<u8> {
    let payload = object.len() - u32::from_le_bytes(*object.last_chunk().unwrap()) as usize;
    object[FRAME_BYTES + offset] = byte;
    object[payload + offset] = byte;
    reseal(&mut object);
    object
}

/// Gives the section with this position in the directory another code.
fn with_section_code(mut object: Vec<u8>, position: usize, code: u16) -> Vec<u8> {
    let payload = object.len() - u32::from_le_bytes(*object.last_chunk().unwrap()) as usize;
    let entry = payload + HEADER_BYTES + 8 + position * ENTRY_BYTES;
    object[entry..entry + 2].copy_from_slice(&code.to_le_bytes());
    reseal(&mut object);
    object
}

#[track_caller]
fn refused(object: &[u8], kind: ErrorKind, words: &str) {
    let error = verify_object(&mut Cursor::new(object)).unwrap_err();
    assert!(error.to_string().contains(words), "{error}");
    assert_eq!(error.kind(), kind, "{error}");
}

#[test]
fn resealing_an_unchanged_object_changes_nothing() {
    let object = small_segment();
    let mut again = object.clone();
    reseal(&mut again);
    assert_eq!(object, again);
}

#[test]
fn an_unknown_required_feature_is_refused_by_its_bit() {
    let object = with_header_byte(small_segment(), at::REQUIRED + 1, 0b10_0000);
    refused(&object, ErrorKind::Invalid, "feature bit 13 (0x2000)");
}

#[test]
fn an_unknown_optional_feature_is_ignored() {
    let object = with_header_byte(small_segment(), at::REQUIRED + 4, 0xff);
    let good = read_verified(&small_segment()).unwrap();
    let read = read_verified(&object).unwrap();
    assert_eq!(read.footer.header, good.footer.header);
    assert_eq!(read.pages, good.pages);
}

#[test]
fn what_a_later_version_may_say_is_refused_and_named() {
    let refused = |offset, byte, words: &str| {
        let object = with_header_byte(small_segment(), offset, byte);
        refused(&object, ErrorKind::Invalid, words);
    };
    refused(at::VERSION, 2, "container version 2");
    refused(at::KIND, 9, "kind 9");
    refused(at::METHODS, 3, "compression 3");
    refused(at::METHODS + 3, 1, "encryption 1");
    refused(at::FLAGS, 4, "reserved");
    refused(at::KEY_ID + 15, 1, "reserved");
    refused(at::RESERVED + 31, 1, "reserved");
}

#[test]
fn a_header_that_contradicts_itself_is_refused() {
    let refused = |object, offset, byte, words: &str| {
        let object = with_header_byte(object, offset, byte);
        refused(&object, ErrorKind::Corrupt, words);
    };
    refused(small_segment(), at::PAGE_SIZE, 1, "page size 513");
    refused(small_segment(), at::FIRST, 0, "first is txid 0");
    refused(small_segment(), at::LAST, 19, "behind the last");
    refused(small_segment(), at::FLAGS, 1, "exact");
    refused(small_segment(), at::LEVEL, 16, "level is above");
    refused(small_snapshot(), at::LEVEL, 1, "only segments");
    refused(small_snapshot(), at::SINCE, 29, "exact");
    refused(small_snapshot(), at::PREVIOUS, 1, "previous");
}

#[test]
fn an_unknown_section_is_skipped_only_if_it_says_so() {
    let good = read_verified(&small_segment()).unwrap();
    let hashes = good.footer.sections.iter();
    let position = hashes
        .enumerate()
        .find_map(|(i, s)| (s.kind == SectionKind::PageHashes).then_some(i))
        .unwrap();
    let object = with_section_code(small_segment(), position, 0x8123);
    let skipped = read_verified(&object).unwrap();
    assert_eq!(skipped.pages, good.pages);
    assert_eq!(skipped.footer.section(SectionKind::PageHashes), None);
    let object = with_section_code(small_segment(), position, 0x0123);
    refused(&object, ErrorKind::Invalid, "section 0x0123 is not known");
}

#[test]
fn an_object_without_a_section_that_it_needs_is_refused() {
    let segment = read(&small_segment()).unwrap();
    for (position, section) in segment.footer.sections.iter().enumerate() {
        if Kind::Segment.needs().contains(&section.kind) {
            let object = with_section_code(small_segment(), position, 0x8123);
            refused(&object, ErrorKind::Corrupt, "a Segment without");
        }
    }
}

#[test]
fn headers_that_differ_are_an_error() {
    let mut object = small_segment();
    object[FRAME_BYTES + at::SQLITE] ^= 1;
    let checksum = xxh3_64(&object[FRAME_BYTES..FRAME_BYTES + at::CHECKSUM]);
    object[FRAME_BYTES + at::CHECKSUM..BLOCKS_START as usize]
        .copy_from_slice(&checksum.to_le_bytes());
    refused(&object, ErrorKind::Corrupt, "differs from its copy");
}

#[test]
fn a_section_that_claims_to_be_huge_costs_nothing() {
    let raw = vec![0; 1 << 20];
    let stored = zstd::bulk::compress(&raw, 3).unwrap();
    let mut section = SectionRef {
        kind: SectionKind::Versions,
        offset: 0,
        length: stored.len() as u64,
        raw_length: 1 << 20,
        checksum: xxh3_64(&stored),
    };
    assert_eq!(section.open(&stored).unwrap(), raw);
    for wrong in [
        (1 << 20) - 1,
        (1 << 20) + 1,
        1 << 30,
        (1 << 30) + 1,
        u64::MAX,
    ] {
        section.raw_length = wrong;
        assert_eq!(
            section.open(&stored).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
    }
}

#[test]
fn a_slot_is_found_in_its_block() {
    let block = |first_slot, slots| BlockRef {
        offset: 0,
        length: 1,
        checksum: 0,
        first_slot,
        slots,
    };
    let table = BlockTable {
        blocks: vec![block(0, 3), block(3, 1), block(4, 2)],
    };
    let found: Vec<_> = (0..7).map(|slot| table.locate(slot)).collect();
    let expected = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)];
    assert_eq!(found[..6], expected.map(Some));
    assert_eq!(found[6], None);
    assert_eq!(BlockTable::default().locate(0), None);
    assert_eq!(table.slots(), 6);
}
