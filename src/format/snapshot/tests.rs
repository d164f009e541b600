//! Snapshots and maps written and read back, and the algebra of maps.

use super::*;
use crate::error::ErrorKind;
use crate::format::container::tests::{
    Contents, entry, header, page, pgno, read, read_verified, scratch, unzstd,
};
use proptest::prelude::*;
use std::io::Cursor;

const OWN: ObjectId = ObjectId([7; 8]);
const OTHER: ObjectId = ObjectId([8; 8]);

fn run(first: u32, count: u32, object: ObjectId, slot: u32) -> Run {
    Run {
        first: pgno(first),
        count,
        object,
        slot,
    }
}

fn home(id: ObjectId) -> Home {
    Home {
        id,
        key: format!("generations/00000001-9f3c2a7b/snapshots/{id}.snapshot"),
        length: 1 << 33,
    }
}

/// Writes pages with a map of the leaves that `leaves` makes of what is stored.
fn write(
    header: &Header,
    numbers: impl IntoIterator<Item = u32>,
    pages: u32,
    homes: &[Home],
    leaves: impl FnOnce(&[Run]) -> Vec<LeafSource>,
) -> Vec<u8> {
    let out = Cursor::new(Vec::new());
    let mut writer =
        SnapshotWriter::new(out, header.object_id, header.page_size, &scratch).unwrap();
    for number in numbers {
        let bytes = page(number.into(), header.page_size.get());
        writer.push(pgno(number), &bytes).unwrap();
    }
    let map = MapToWrite {
        pages,
        homes,
        leaves: &leaves(writer.stored()),
    };
    let entry = entry(header.last.get(), pages);
    let (out, written) = writer.finish(header, &map, entry, None).unwrap();
    assert_eq!(written.length, out.get_ref().len() as u64);
    out.into_inner()
}

fn all_here(leaves: Vec<Leaf>) -> Vec<LeafSource> {
    leaves.into_iter().map(LeafSource::Here).collect()
}

fn root(contents: &Contents) -> &MapRoot {
    let index = contents.snapshot.as_ref().unwrap();
    index.root.as_ref().unwrap()
}

#[test]
fn an_exact_snapshot_unzstds_to_the_database() {
    for (page_size, pages) in [(512, 1000), (4096, 70), (65536, 3)] {
        let header = header(Kind::Snapshot, page_size, 30, 30);
        let object = write(&header, 1..=pages, pages, &[], |stored| {
            all_here(super::leaves(stored, pages))
        });
        let database: Vec<u8> = (1..=pages)
            .flat_map(|n| page(n.into(), page_size))
            .collect();
        assert_eq!(unzstd(&object), database);
        let contents = read_verified(&object).unwrap();
        assert_eq!(contents.footer.header, header);
        assert_eq!(
            contents.leaves,
            [Leaf {
                runs: vec![run(1, pages, OWN, 0)]
            }]
        );
        let index = contents.snapshot.unwrap();
        assert_eq!(index.stored, [run(1, pages, OWN, 0)]);
        assert_eq!(index.timeline, Some(entry(30, pages)));
        let (last, full) = index.blocks.blocks.split_last().unwrap();
        let pages_a_block = BLOCK_BYTES as u32 / page_size;
        assert!(full.iter().all(|block| block.slots == pages_a_block));
        assert_eq!(last.slots, (pages - 1) % pages_a_block + 1);
    }
}

#[test]
fn parts_and_snapshot_together_unzstd_to_the_database() {
    let mut part = header(Kind::Part, 512, 30, 30);
    part.object_id = OTHER;
    let out = Cursor::new(Vec::new());
    let mut writer = SnapshotWriter::new(out, OTHER, part.page_size, &scratch).unwrap();
    for number in 1..=200_u32 {
        writer
            .push(pgno(number), &page(number.into(), 512))
            .unwrap();
    }
    assert!(writer.bytes() > 0);
    let mut stored = writer.stored().to_vec();
    let (out, written) = writer.finish_part(&part).unwrap();
    let part_object = out.into_inner();
    assert_eq!(written.slots, 200);
    let contents = read_verified(&part_object).unwrap();
    let index = contents.snapshot.unwrap();
    assert_eq!((index.root, index.timeline), (None, None));
    assert_eq!(index.stored, stored);

    let header = header(Kind::Snapshot, 512, 30, 30);
    let snapshot = write(&header, 201..=300, 300, &[home(OTHER)], |here| {
        stored.extend_from_slice(here);
        all_here(super::leaves(&stored, 300))
    });
    let database: Vec<u8> = (1..=300_u32).flat_map(|n| page(n.into(), 512)).collect();
    assert_eq!(unzstd(&[part_object, snapshot.clone()].concat()), database);
    let contents = read_verified(&snapshot).unwrap();
    let runs = [run(1, 200, OTHER, 0), run(201, 100, OWN, 0)];
    assert_eq!(contents.leaves[0].runs, runs);
    assert_eq!(root(&contents).homes, [home(OTHER)]);
}

#[test]
fn a_map_may_point_into_earlier_objects() {
    let mut header = header(Kind::Snapshot, 4096, 30, 30);
    header.exact = false;
    let earlier = |offset| LeafRef {
        object: OTHER,
        offset,
        length: 20,
        checksum: offset ^ 0x1234,
    };
    let pages = 5 * LEAF_PAGES - 1;
    let sources = [
        LeafSource::Earlier(earlier(1 << 32)),
        LeafSource::Here(Leaf {
            runs: vec![
                run(LEAF_PAGES + 1, 5, OTHER, 900),
                run(LEAF_PAGES + 7, 2, OWN, 0),
                run(LEAF_PAGES + 9, 1, OTHER, 908),
                run(2 * LEAF_PAGES, 1, OTHER, 3),
            ],
        }),
        LeafSource::Empty,
        LeafSource::Here(Leaf::default()),
        LeafSource::Earlier(earlier(264)),
    ];
    let numbers = [LEAF_PAGES + 7, LEAF_PAGES + 8];
    let object = write(&header, numbers, pages, &[home(OTHER)], |_| {
        sources.to_vec()
    });
    let contents = read_verified(&object).unwrap();
    let root = root(&contents);
    assert_eq!(root.pages, pages);
    assert_eq!(root.leaves[0], Some(earlier(1 << 32)));
    assert_eq!(root.leaves[1].unwrap().object, OWN);
    assert_eq!(root.leaves[2..4], [None, None]);
    assert_eq!(root.leaves[4], Some(earlier(264)));
    let LeafSource::Here(expected) = &sources[1] else {
        unreachable!()
    };
    assert_eq!(contents.leaves, std::slice::from_ref(expected));
    let leaf = &contents.leaves[0];
    assert_eq!(leaf.locate(pgno(LEAF_PAGES + 3)), Some((OTHER, 902)));
    assert_eq!(leaf.locate(pgno(LEAF_PAGES + 8)), Some((OWN, 1)));
    assert_eq!(leaf.locate(pgno(LEAF_PAGES + 6)), None);
    assert_eq!(leaf.locate(pgno(1)), None);
}

#[test]
fn a_clean_map_costs_33_bytes_for_16_mib() {
    let pages = 600 * LEAF_PAGES;
    let runs: Vec<Run> = (0..10)
        .map(|part| {
            let count = pages / 10;
            run(part * count + 1, count, ObjectId([part as u8; 8]), 0)
        })
        .collect();
    let homes: Vec<Home> = (0..10).map(|part| home(ObjectId([part; 8]))).collect();
    let mut own = header(Kind::Snapshot, 4096, 30, 30);
    own.object_id = ObjectId([99; 8]);
    let object = write(&own, [], pages, &homes, |_| {
        all_here(super::leaves(&runs, pages))
    });
    let contents = read_verified(&object).unwrap();
    let bytes: u64 = [SectionKind::MapRoot, SectionKind::MapLeaves]
        .map(|kind| contents.footer.section(kind).unwrap().length)
        .iter()
        .sum();
    let per_leaf = bytes as f64 / 600.0;
    println!("{per_leaf:.1} bytes for 16 MiB");
    assert!(per_leaf < 34.0, "{per_leaf}");
    assert_eq!(contents.leaves, super::leaves(&runs, pages));
}

#[test]
fn a_leaf_of_single_pages_reads_back() {
    let ids: Vec<ObjectId> = (0..=255).map(|n| ObjectId([n; 8])).collect();
    let runs: Vec<Run> = (0..LEAF_PAGES)
        .map(|n| {
            run(
                n + 1,
                1,
                ids[(n * 37 % 256) as usize],
                u32::MAX - 1 - (n * 7919) % 4096,
            )
        })
        .collect();
    let homes: Vec<Home> = ids
        .iter()
        .filter(|&&id| id != OWN)
        .map(|&id| home(id))
        .collect();
    let leaf = Leaf {
        runs: runs.into_iter().filter(|run| run.object != OWN).collect(),
    };
    let own = header(Kind::Snapshot, 4096, 30, 30);
    let object = write(&own, [], LEAF_PAGES, &homes, |_| {
        vec![LeafSource::Here(leaf.clone())]
    });
    let contents = read_verified(&object).unwrap();
    assert_eq!(contents.leaves, [leaf]);
    println!("{} bytes", root(&contents).leaves[0].unwrap().length);
}

/// The object and slot of each page, from page 1; what [`leaves`] and [`overlay`] must agree with.
fn naive(runs: &[Run], pages: u32) -> Vec<Option<(ObjectId, u32)>> {
    let mut map = vec![None; pages as usize];
    for run in runs {
        for step in 0..run.count {
            if let Some(page) = map.get_mut((run.first.get() - 1 + step) as usize) {
                *page = Some((run.object, run.slot + step));
            }
        }
    }
    map
}

fn of_leaves(leaves: &[Leaf], pages: u32) -> Vec<Option<(ObjectId, u32)>> {
    (1..=pages)
        .map(|number| leaves[((number - 1) / LEAF_PAGES) as usize].locate(pgno(number)))
        .collect()
}

/// Ascending runs, some touching, some going on in the slots of the one before.
fn any_runs() -> impl Strategy<Value = Vec<Run>> {
    let step = (0..900_u32, 1..1500_u32, 0..3_u8, 0..3_u32);
    prop::collection::vec(step, 0..24).prop_map(|steps| {
        let (mut behind, mut slots) = (1, [0; 3]);
        let mut runs = Vec::new();
        for (gap, count, object, slot_gap) in steps {
            // Small gaps, so that runs often touch.
            let first = behind + gap.saturating_sub(600);
            let slot = &mut slots[usize::from(object)];
            *slot += slot_gap / 2;
            runs.push(run(first, count, ObjectId([object; 8]), *slot));
            *slot += count;
            behind = first + count;
        }
        runs
    })
}

fn is_tidy(leaf: &Leaf) -> bool {
    leaf.runs
        .windows(2)
        .all(|pair| pair[0].end() <= u64::from(pair[1].first.get()) && !pair[0].continues(&pair[1]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn leaves_hold_exactly_the_pages_of_the_runs(runs in any_runs(), pages in 0..20_000_u32) {
        let leaves = super::leaves(&runs, pages);
        prop_assert_eq!(leaves.len(), pages.div_ceil(LEAF_PAGES) as usize);
        prop_assert!(leaves.iter().all(is_tidy));
        prop_assert_eq!(of_leaves(&leaves, pages), naive(&runs, pages));
        for (number, leaf) in leaves.iter().enumerate() {
            prop_assert!(leaf.runs.iter().all(|run| run.leaf() as usize == number));
            prop_assert!(leaf.runs.iter().all(|run| run.end() <= u64::from(pages) + 1));
        }
    }

    #[test]
    fn an_overlaid_leaf_has_the_newer_pages_and_else_the_old(
        old in any_runs(),
        newer in any_runs(),
        sizes in (1..20_000_u32, 1..20_000_u32),
    ) {
        let (before, after) = sizes;
        let mut leaves = super::leaves(&old, before);
        leaves.resize(after.div_ceil(LEAF_PAGES) as usize, Leaf::default());
        let overlaid: Vec<Leaf> = leaves
            .iter()
            .zip(super::leaves(&newer, u32::MAX - 1))
            .map(|(leaf, newer)| overlay(leaf, &newer.runs, after))
            .collect();
        let mut expected = naive(&old, before);
        expected.resize(after as usize, None);
        for (page, newer) in expected.iter_mut().zip(naive(&newer, after)) {
            *page = newer.or(*page);
        }
        prop_assert!(overlaid.iter().all(is_tidy));
        prop_assert_eq!(of_leaves(&overlaid, after), expected);
    }

    #[test]
    fn any_pages_and_any_map_read_back(
        runs in any_runs(),
        numbers in prop::collection::btree_set(1..20_000_u32, 0..60),
        page_size in prop::sample::select(vec![512, 4096, 65536]),
    ) {
        let mut header = header(Kind::Snapshot, page_size, 30, 30);
        header.exact = false;
        header.since = crate::format::ids::Txid::FIRST;
        header.object_id = ObjectId([9; 8]);
        let pages = 20_000;
        let homes: Vec<Home> = (0..3).map(|id| home(ObjectId([id; 8]))).collect();
        let mut map = Vec::new();
        let object = write(&header, numbers.iter().copied(), pages, &homes, |stored| {
            map = super::leaves(&runs, pages)
                .iter()
                .zip(super::leaves(stored, pages))
                .map(|(old, new)| overlay(old, &new.runs, pages))
                .collect();
            all_here(map.clone())
        });
        let contents = read_verified(&object).unwrap();
        map.retain(|leaf| !leaf.runs.is_empty());
        prop_assert_eq!(&contents.leaves, &map);
        let expected: Vec<_> = numbers.iter().map(|&n| page(n.into(), page_size)).collect();
        prop_assert_eq!(&contents.pages, &expected);
        let stored = contents.snapshot.unwrap().stored;
        let stored = stored.iter().flat_map(|r| (0..r.count).map(move |n| r.first.get() + n));
        prop_assert!(stored.eq(numbers));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(
        bytes in prop::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..200),
    ) {
        let object = write(&header(Kind::Snapshot, 512, 5, 5), [], 1, &[], |_| {
            vec![LeafSource::Empty]
        });
        let footer = read(&object).unwrap().footer;
        // A result of either kind will do.
        drop(decode_stored(&footer, 7, &bytes));
        drop(MapRoot::decode(&footer, &bytes));
        drop(Leaf::decode(&bytes));
    }
}

#[test]
fn a_leaf_changed_behind_its_checksum_is_refused_or_still_a_leaf() {
    let leaf = Leaf {
        runs: vec![
            run(4097, 5, OTHER, 900),
            run(4110, 200, OWN, 0),
            run(8191, 2, OTHER, 905),
        ],
    };
    let mut object = ObjectWriter::new(Cursor::new(Vec::new())).unwrap();
    let stored = leaf.encode(&mut object).unwrap();
    for (at, mask) in (0..stored.len()).flat_map(|at| (0..=255).map(move |mask| (at, mask))) {
        let mut changed = stored.clone();
        changed[at] ^= mask;
        let place = LeafRef {
            object: OWN,
            offset: 264,
            length: changed.len() as u32,
            checksum: xxh3_64(&changed),
        };
        match place.open(&changed) {
            Ok(changed) if mask == 0 => assert_eq!(changed, leaf),
            Ok(changed) => {
                let number = changed.runs.first().map_or(0, Run::leaf);
                assert!(changed.runs.iter().all(|run| run.leaf() == number));
                assert!(
                    changed
                        .runs
                        .windows(2)
                        .all(|p| p[0].end() <= p[1].first.get().into())
                );
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt),
        }
    }
}

#[test]
fn a_leaf_that_claims_too_much_is_refused() {
    let leaf = |stored: Vec<u8>| LeafRef {
        object: OWN,
        offset: 264,
        length: stored.len() as u32,
        checksum: xxh3_64(&stored),
    };
    let refused = |stored: Vec<u8>, words: &str| {
        let error = leaf(stored.clone()).open(&stored).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(vec![], "neither");
    refused(vec![2, 0, 0], "neither");
    refused(vec![0, 0x80, 0x80, 1, 0], "do not fit");
    let id = [0, 1, 8, 8, 8, 8, 8, 8, 8, 8];
    // One run of 4,097 pages from page 1; from page 2; in object 1 of 1.
    refused(
        [&id[..], &[1, 1, 0x81, 0x20, 0, 0]].concat(),
        "beyond the leaf",
    );
    refused(
        [&id[..], &[1, 2, 0x80, 0x20, 0, 0]].concat(),
        "beyond the leaf",
    );
    refused(
        [&id[..], &[1, 1, 0x80, 0x20, 1, 0]].concat(),
        "no such object",
    );
    refused(
        [&id[..], &[1, 1, 0x80, 0x20, 0, 1]].concat(),
        "no such slot",
    );
    let good = [&id[..], &[1, 1, 0x80, 0x20, 0, 0]].concat();
    assert_eq!(
        leaf(good.clone()).open(&good).unwrap().runs,
        [run(1, 4096, OTHER, 0)]
    );
    let huge = zstd::bulk::compress(&vec![0; LEAF_RAW_MAX + 1], 3).unwrap();
    refused([&[1], &huge[..]].concat(), "does not inflate");
}

#[test]
fn a_root_that_points_outside_of_its_homes_is_refused() {
    let object = write(&header(Kind::Snapshot, 512, 5, 5), [1], 1, &[], |stored| {
        all_here(super::leaves(stored, 1))
    });
    let footer = read(&object).unwrap().footer;
    let refused = |object: u8, end: u64, words: &str| {
        let mut root = vec![1, 1];
        root.extend(OTHER.0);
        varint::put(&mut root, 1000);
        varint::put_text(&mut root, "k");
        root.push(object);
        varint::put_signed(&mut root, end as i64 - 10);
        root.push(10);
        root.extend([0; 8]);
        match MapRoot::decode(&footer, &root) {
            Ok(root) => assert_eq!(words, "", "{root:?}"),
            Err(error) => assert!(error.to_string().contains(words), "{error}"),
        }
    };
    refused(2, 1000, "");
    refused(2, 1001, "outside");
    refused(2, 9, "outside");
    refused(3, 1000, "no such object");
    refused(1, 1000, "outside");
}

#[test]
#[should_panic(expected = "every page of leaf 0 has a home")]
fn a_map_into_an_unknown_object_is_a_bug() {
    let header = header(Kind::Snapshot, 512, 5, 5);
    write(&header, [1], 9, &[], |_| {
        all_here(super::leaves(&[run(1, 9, OTHER, 0)], 9))
    });
}
