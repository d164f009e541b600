//! Segments written and read back, and what they cost.

use super::*;
use crate::format::container::tests::{
    entry, header, page, pgno, read, read_verified, scratch, txid, unzstd,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::Cursor;

type Versions = BTreeMap<(u32, u64), Vec<u8>>;

/// Writes versions as a segment of the transactions of `timeline`.
fn write(
    header: &Header,
    versions: &Versions,
    timeline: &[TimelineEntry],
    predecessors: &[Predecessor],
) -> Vec<u8> {
    let out = Cursor::new(Vec::new());
    let mut writer = SegmentWriter::new(out, header.object_id, header.page_size, &scratch).unwrap();
    for (&(number, at), bytes) in versions {
        writer.push(pgno(number), txid(at), bytes).unwrap();
    }
    let (out, written) = writer.finish(header, timeline, predecessors, None).unwrap();
    assert_eq!(written.slots as usize, versions.len());
    assert_eq!(written.length, out.get_ref().len() as u64);
    out.into_inner()
}

fn timeline(first: u64, last: u64, pages: u32) -> Vec<TimelineEntry> {
    (first..=last).map(|number| entry(number, pages)).collect()
}

fn check_round_trip(page_size: u32, first: u64, last: u64, versions: Versions) {
    let header = header(Kind::Segment, page_size, first, last);
    let timeline = timeline(first, last, 5000);
    let object = write(&header, &versions, &timeline, &[]);
    let contents = read_verified(&object).unwrap();
    assert_eq!(contents.footer.header, header);
    let index = contents.segment.unwrap();
    let keys: Vec<_> = versions.keys().map(|&(p, t)| (pgno(p), txid(t))).collect();
    assert_eq!(index.versions, keys);
    assert_eq!(index.timeline, timeline);
    let pages: Vec<_> = versions.into_values().collect();
    assert_eq!(unzstd(&object), pages.concat());
    assert_eq!(contents.pages, pages);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_written_reads_back(
        page_size in prop::sample::select(vec![512, 1024, 4096, 65536]),
        first in prop_oneof![2..100_u64, Just(u64::MAX - 40)],
        keys in prop::collection::btree_set((1..30_u32, 0..20_u64), 0..40),
        far in prop::option::of(1..u32::MAX),
    ) {
        let keys = keys.into_iter().chain(far.map(|far| (far, 7)));
        let versions = keys
            .map(|(number, at)| ((number, first + at), page(u64::from(number), page_size)))
            .collect();
        check_round_trip(page_size, first, first + 19, versions);
    }

    #[test]
    fn a_thinned_timeline_reads_back(
        steps in prop::collection::vec(
            (1..1000_u64, 1..1_i64 << 40, 1..u32::MAX, any::<u8>()),
            0..30,
        ),
        start in -60_000_000_000_000_000_i64..1 << 50,
    ) {
        let (mut at, mut time) = (100, start);
        let timeline: Vec<_> = steps
            .into_iter()
            .map(|(step, later, pages, bits)| {
                (at, time) = (at + step, time + later);
                TimelineEntry {
                    txid: txid(at),
                    time: Timestamp::from_micros(time),
                    upper_bound: bits & 1 != 0,
                    in_snapshot: bits & 2 != 0,
                    pages,
                    min_pages: pages / (1 + u32::from(bits)),
                }
            })
            .collect();
        let mut header = header(Kind::Segment, 512, 100, 40_000);
        header.level = 2;
        header.thinned = true;
        header.last_input = ObjectHash([8; 32]);
        let object = write(&header, &Versions::new(), &timeline, &[]);
        let contents = read_verified(&object).unwrap();
        prop_assert_eq!(contents.footer.header, header);
        prop_assert_eq!(contents.segment.unwrap().timeline, timeline);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(
        bytes in prop::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..200),
    ) {
        let object = write(
            &header(Kind::Segment, 512, 5, 5),
            &Versions::new(),
            &timeline(5, 5, 1),
            &[],
        );
        let footer = read(&object).unwrap().footer;
        // A result of either kind will do.
        let good = [0];
        let changed = [
            [&bytes[..], &good, &good],
            [&good, &bytes, &good],
            [&good, &good, &bytes],
        ];
        for sections in changed {
            drop(SegmentIndex::decode(&footer, sections));
        }
        drop(decode_predecessors(&bytes));
        drop(decode_hashes(&bytes));
    }
}

#[test]
fn a_segment_without_pages_reads_back() {
    check_round_trip(4096, 2, 2, Versions::new());
}

#[test]
fn a_segment_larger_than_its_memory_reads_back() {
    // 60,000 records of 28 bytes exceed what a spill keeps in memory.
    let versions = (0..60_000_u32)
        .map(|n| {
            let page = n.to_le_bytes().repeat(128);
            ((1 + n / 7, 100 + u64::from(n % 7) * 2), page)
        })
        .collect();
    check_round_trip(512, 100, 120, versions);
}

#[test]
fn blocks_follow_what_their_pages_compress_to() {
    let noise = |seed| {
        let mut bytes = vec![0; 4096];
        blake3::Hasher::new()
            .update(&u64::to_le_bytes(seed))
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    };
    let versions = (1..=400_u32)
        .map(|n| {
            let bytes = if n <= 200 {
                page(1, 4096)
            } else {
                noise(n.into())
            };
            ((n, 5), bytes)
        })
        .collect();
    let header = header(Kind::Segment, 4096, 5, 5);
    let object = write(&header, &versions, &timeline(5, 5, 400), &[]);
    let blocks = read(&object).unwrap().segment.unwrap().blocks.blocks;
    assert_eq!(blocks[0].slots, 16, "the first is cut blindly");
    assert_eq!(blocks[1].slots, 64, "256 KiB of alike pages");
    let last_full = blocks[blocks.len() - 2];
    assert!(last_full.slots <= 8, "{last_full:?}");
    assert!(blocks.iter().all(|block| block.slots <= 64));
}

#[test]
fn one_page_of_64_kib_is_a_block() {
    let versions = (1..=3_u32)
        .map(|n| ((n, 5), page(n.into(), 65536)))
        .collect();
    let header = header(Kind::Segment, 65536, 5, 5);
    let object = write(&header, &versions, &timeline(5, 5, 3), &[]);
    let blocks = read(&object).unwrap().segment.unwrap().blocks.blocks;
    assert_eq!(blocks.iter().map(|block| block.slots).sum::<u32>(), 3);
}

#[test]
fn an_index_costs_few_bytes() {
    // Each transaction changes the root of a table, a leaf near its end, and a random page, at
    // uneven times.
    let mut versions = Versions::new();
    let mut timeline = timeline(1000, 1999, 9000);
    let mut random = 1_u64;
    let mut time = 1_795_196_712_000_000;
    for entry in &mut timeline {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        time += 500 + (random >> 40) as i64 % 1000;
        entry.time = Timestamp::from_micros(time);
        let at = entry.txid.get();
        let leaf = 3000 + (at as u32 - 1000) / 20;
        for number in [2, leaf, 1 + (random >> 33) as u32 % 9000] {
            versions.insert((number, at), page(number.into(), 512));
        }
    }
    let header = header(Kind::Segment, 512, 1000, 1999);
    let object = write(&header, &versions, &timeline, &[]);
    let footer = read(&object).unwrap().footer;
    let per = |kind, count: usize| {
        let bytes = footer.section(kind).unwrap().length as f64 / count as f64;
        println!("{kind:?}: {bytes:.2} bytes");
        bytes
    };
    assert!(per(SectionKind::Versions, versions.len()) < 3.0);
    assert!(per(SectionKind::Timeline, timeline.len()) < 3.5);
    assert_eq!(per(SectionKind::PageHashes, versions.len()), 16.0);
}

/// A segment of `count` transactions as a later one names it.
fn predecessor(first: u64, count: u64, hash: u8, previous: u8) -> Predecessor {
    let mut own = header(Kind::Segment, 512, first, first + count - 1);
    own.object_id = ObjectId([hash; 8]);
    own.previous = ObjectHash([previous; 32]);
    let versions = (0..count)
        .map(|n| ((1 + n as u32 % 3, first + n), page(first + n, 512)))
        .collect();
    let mut timeline = timeline(first, first + count - 1, 3);
    for entry in &mut timeline {
        // Commits do not come in an even beat, which would compress to nothing.
        let uneven = blake3::hash(&entry.txid.get().to_le_bytes()).as_bytes()[0];
        entry.time = Timestamp::from_micros(entry.time.micros() + i64::from(uneven));
    }
    let contents = read(&write(&own, &versions, &timeline, &[])).unwrap();
    let key = format!("generations/00000002-9f3c2a7b/wal/0/{first:016x}.wal");
    let mut predecessor = Predecessor::new(key, &contents.footer, contents.segment);
    predecessor.hash = ObjectHash([hash; 32]);
    predecessor
}

fn with_predecessors(predecessors: &[Predecessor]) -> (Vec<Predecessor>, u64) {
    let header = header(Kind::Segment, 512, 1 << 20, 1 << 20);
    let entries = timeline(1 << 20, 1 << 20, 1);
    let object = write(&header, &Versions::new(), &entries, predecessors);
    let contents = read_verified(&object).unwrap();
    let section = contents.footer.section(SectionKind::Predecessors);
    (contents.predecessors, section.unwrap().length)
}

#[test]
fn predecessors_read_back_chained_or_not() {
    let mut predecessors = vec![
        predecessor(2, 1, 1, 77),
        predecessor(3, 4, 2, 1),
        predecessor(9, 2, 3, 99),
        predecessor(11, 1, 4, 3),
    ];
    predecessors[2].index = None;
    let (read, bytes) = with_predecessors(&predecessors);
    assert_eq!(read, predecessors);
    println!("4 predecessors, 3 with an index: {bytes} bytes");
}

#[test]
fn the_oldest_indexes_are_left_out_when_they_do_not_fit() {
    let predecessors: Vec<_> = (0..70_u64)
        .map(|n| predecessor(2 + 150 * n, 150, n as u8 + 1, n as u8))
        .collect();
    let (read, bytes) = with_predecessors(&predecessors);
    assert_eq!(read.len(), PREDECESSORS_MAX);
    let newest = &predecessors[predecessors.len() - PREDECESSORS_MAX..];
    let kept = read.iter().filter(|entry| entry.index.is_some()).count();
    println!("{kept} indexes of 150 transactions in {bytes} bytes");
    assert!(bytes <= PREDECESSORS_BYTES as u64, "{bytes}");
    assert!(bytes > PREDECESSORS_BYTES as u64 * 3 / 4, "{bytes}");
    assert!(kept > 0 && kept < PREDECESSORS_MAX, "{kept}");
    for (position, (read, written)) in read.into_iter().zip(newest).enumerate() {
        let mut expected = written.clone();
        if position < PREDECESSORS_MAX - kept {
            expected.index = None;
        }
        assert_eq!(read, expected, "{position}");
    }
}

#[test]
fn a_section_that_contradicts_the_header_is_refused() {
    let own = header(Kind::Segment, 512, 5, 6);
    let versions = [((1, 5), page(1, 512)), ((1, 6), page(2, 512))].into();
    let object = write(&own, &versions, &timeline(5, 6, 3), &[]);
    let footer = read(&object).unwrap().footer;
    let [blocks, versions, timeline] = SegmentIndex::SECTIONS.map(|kind| {
        let section = footer.section(kind).unwrap();
        let start = section.offset as usize;
        section
            .open(&object[start..start + section.length as usize])
            .unwrap()
    });
    let refused = |sections: [&[u8]; 3], words: &str| {
        let error = SegmentIndex::decode(&footer, sections).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Corrupt);
        assert!(error.to_string().contains(words), "{error}");
    };
    let late = [2, 1, 0, 0, 2];
    refused([&blocks, &late, &timeline], "the last is 6");
    let one = [1, 1, 0];
    refused([&blocks, &one, &timeline], "1 versions in 2 slots");
    let twice = [2, 1, 0, 0, 0];
    refused([&blocks, &twice, &timeline], "txid 5 plus 0");
    let gap = [1, 0, 2, 0, 2, 0];
    refused([&blocks, &versions, &gap], "missing");
    let mut long = blocks.clone();
    long[1] += 1;
    refused([&long, &versions, &timeline], "the blocks end at");
    let mut trailing = timeline.clone();
    trailing.push(0);
    refused([&blocks, &versions, &trailing], "1 bytes too many");
}

#[test]
#[should_panic(expected = "page versions come in order")]
fn versions_out_of_order_are_a_bug() {
    let size = PageSize::new(512).unwrap();
    let out = Cursor::new(Vec::new());
    let mut writer = SegmentWriter::new(out, ObjectId([0; 8]), size, &scratch).unwrap();
    writer.push(pgno(2), txid(2), &[0; 512]).unwrap();
    writer.push(pgno(2), txid(2), &[0; 512]).unwrap();
}

#[test]
#[should_panic(expected = "a txid of the header's range is missing")]
fn a_timeline_with_a_gap_is_a_bug() {
    let timeline = [entry(2, 1), entry(4, 1)];
    write(
        &header(Kind::Segment, 512, 2, 4),
        &Versions::new(),
        &timeline,
        &[],
    );
}
