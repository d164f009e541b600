//! What is merged and taken must be what was written, page by page: checked against a model that
//! keeps every state whole.

use crate::config::Environment;
use crate::error::{ErrorKind, Result};
use crate::format::container::{BlockTable, Header, Kind, Parent, SectionKind};
use crate::format::ids::{
    GenerationId, ObjectHash, ObjectId, PageSize, Timestamp, Txid, WalEnd, WriterId,
};
use crate::format::interior::{InteriorPages, decode_interior};
use crate::format::key::{Key, ObjectKey};
use crate::format::sample::{self, pgno, scratch, txid};
use crate::format::segment::{SegmentIndex, SegmentWriter, TimelineEntry};
use crate::format::snapshot::{LeafSource, MapToWrite, SnapshotIndex, SnapshotWriter, leaves};
use crate::maintain::account::account;
use crate::maintain::later::{self, Later, Place, Taken};
use crate::maintain::merge::{Merge, merge};
use crate::maintain::workshop::Workshop;
use crate::storage::memory::MemoryStore;
use crate::storage::object::{StoredObject, get_exactly};
use crate::storage::{Body, Store};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::ops::RangeInclusive;

mod keeping;

const SIZE: PageSize = PageSize::new(512).unwrap();
const GENERATION: GenerationId = GenerationId {
    ordinal: 1,
    random: 7,
};
const FORK: GenerationId = GenerationId {
    ordinal: 2,
    random: 8,
};

/// The pages of a database, by number.
type Image = BTreeMap<u32, Vec<u8>>;

/// Key, bytes, and the transactions that count.
type Segment = (String, u64, RangeInclusive<Txid>);

/// One transaction: the pages that it writes, and the size that it leaves.
#[derive(Clone, Debug)]
struct Commit {
    writes: Vec<u32>,
    pages: u32,
}

/// A replica of a generation, and all that it should hold.
struct Model {
    workshop: Workshop,
    _directory: tempfile::TempDir,
    /// The state at each transaction, from 1.
    states: Vec<Image>,
    /// What each wrote.
    written: Vec<Vec<u32>>,
    /// Key, bytes, first and last transaction.
    segments: Vec<(String, u64, u64, u64)>,
    /// Key, bytes, transaction.
    snapshots: Vec<(String, u64, u64)>,
    /// What the next segment carries.
    previous: ObjectHash,
}

fn header(kind: Kind, first: u64, last: u64) -> Header {
    Header {
        object_id: ObjectId([first as u8; 8]),
        generation: GENERATION,
        ..sample::header(kind, SIZE, first, last)
    }
}

fn entry(number: u64, pages: u32) -> TimelineEntry {
    let time = Timestamp::from_micros(number as i64 * 1000);
    TimelineEntry::new(txid(number), time, pages)
}

impl Model {
    /// A database of so many pages, and its first snapshot.
    async fn new(pages: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut model = Self {
            workshop: Workshop {
                store: MemoryStore::new(),
                directory: directory.path().to_owned(),
                environment: Environment::of_tests(),
                writer: WriterId([6; 8]),
                kept: None,
            },
            _directory: directory,
            states: vec![(1..=pages).map(|page| (page, content(page, 1))).collect()],
            written: vec![Vec::new()],
            segments: Vec::new(),
            snapshots: Vec::new(),
            previous: ObjectHash([9; 32]),
        };
        let header = header(Kind::Snapshot, 1, 1);
        let out = Cursor::new(Vec::new());
        let mut writer = SnapshotWriter::new(out, header.object_id, SIZE, &scratch).unwrap();
        let mut interior = InteriorPages::new(SIZE, &scratch).unwrap();
        for (&page, bytes) in &model.states[0] {
            writer.push(pgno(page), bytes).unwrap();
            interior.offer(pgno(page), bytes).unwrap();
        }
        let leaves: Vec<LeafSource> = leaves(writer.stored(), pages)
            .into_iter()
            .map(LeafSource::Here)
            .collect();
        let map = MapToWrite {
            pages,
            homes: &[],
            leaves: &leaves,
        };
        let entry = entry(1, pages);
        let (out, written) = writer.finish(&header, &map, entry, Some(interior)).unwrap();
        let object = ObjectKey::Snapshot {
            txid: txid(1),
            time: entry.time,
            hash8: written.hash.hash8(),
        };
        let key = model.put(object, out.into_inner()).await;
        model.snapshots.push((key, written.length, 1));
        model
    }

    fn store(&self) -> &dyn Store {
        &*self.workshop.store
    }

    async fn put(&self, object: ObjectKey, bytes: Vec<u8>) -> String {
        let generation = GENERATION;
        let key = Key { generation, object }.to_string();
        let body = Body::Bytes(bytes.into());
        self.store().put(&key, body).await.unwrap();
        key
    }

    /// The last transaction.
    fn last(&self) -> u64 {
        self.states.len() as u64
    }

    /// Commits, and uploads them as one segment.
    async fn upload(&mut self, commits: &[Commit]) {
        let first = self.last() + 1;
        for commit in commits {
            self.commit(commit);
        }
        let header = Header {
            previous: self.previous,
            ..header(Kind::Segment, first, self.last())
        };
        let out = Cursor::new(Vec::new());
        let mut writer = SegmentWriter::new(out, header.object_id, SIZE, &scratch).unwrap();
        let mut versions = BTreeMap::new();
        for number in first..=self.last() {
            for &page in &self.written[number as usize - 1] {
                let bytes = self.states[number as usize - 1][&page].clone();
                versions.insert((page, number), bytes);
            }
        }
        for ((page, number), bytes) in versions {
            writer.push(pgno(page), txid(number), &bytes).unwrap();
        }
        let size = |number: u64| self.states[number as usize - 1].len() as u32;
        let timeline: Vec<TimelineEntry> = (first..=self.last())
            .map(|number| entry(number, size(number)))
            .collect();
        let (out, written) = writer.finish(&header, &timeline, &[], None).unwrap();
        self.previous = written.hash;
        let first_txid = txid(first);
        let key = self
            .put(ObjectKey::Upload { first: first_txid }, out.into_inner())
            .await;
        self.segments
            .push((key, written.length, first, self.last()));
    }

    /// Pages with which the database grows carry frames, as SQLite's do.
    fn commit(&mut self, commit: &Commit) {
        let number = self.last() + 1;
        let mut image = self.states.last().unwrap().clone();
        let grown = image.len() as u32 + 1..=commit.pages;
        let mut written: Vec<u32> = commit.writes.iter().copied().chain(grown).collect();
        written.retain(|page| *page <= commit.pages);
        written.sort_unstable();
        written.dedup();
        for &page in &written {
            image.insert(page, content(page, number));
        }
        image.retain(|page, _| *page <= commit.pages);
        self.states.push(image);
        self.written.push(written);
    }

    fn input(&self, index: usize) -> (String, u64) {
        let (key, size, ..) = &self.segments[index];
        (key.clone(), *size)
    }

    /// Merges the segments with these indexes, makes sure that the output accounts for them, and
    /// deletes them.
    async fn merge(&mut self, range: std::ops::Range<usize>, keep: Option<Vec<u64>>) {
        let inputs: Vec<_> = range.clone().map(|index| self.input(index)).collect();
        let level = inputs.iter().map(|(key, _)| level(key)).max().unwrap() + 1;
        let asked = Merge {
            generation: GENERATION,
            inputs: inputs.clone(),
            level,
            keep: keep.map(|keep| keep.into_iter().map(txid).collect()),
        };
        let merged = merge(&self.workshop, &asked).await.unwrap();
        let output = (merged.key, merged.length);
        let scratch = self.workshop.directory.clone();
        account(self.store(), &scratch, &inputs, &output)
            .await
            .unwrap();
        let keys: Vec<String> = inputs.into_iter().map(|(key, _)| key).collect();
        self.store().delete(&keys).await.unwrap();
        let (first, last) = (self.segments[range.start].2, self.segments[range.end - 1].3);
        self.segments
            .splice(range, [(output.0, output.1, first, last)]);
    }

    /// The segments behind a snapshot up to a transaction.
    fn behind(&self, since: u64, through: u64) -> Vec<Segment> {
        let behind = self.segments.iter();
        let behind = behind.filter(|(_, _, first, last)| *last > since && *first <= through);
        behind
            .map(|(key, size, first, last)| {
                let counts = txid((*first).max(since + 1))..=txid((*last).min(through));
                (key.clone(), *size, counts)
            })
            .collect()
    }

    async fn snapshot(&mut self) {
        let (key, size, since) = self.snapshots.last().unwrap().clone();
        let later = Later {
            base: (key, size),
            segments: self.behind(since, self.last()),
            place: Place::Later,
        };
        let taken = later::take(&self.workshop, &later).await.unwrap();
        assert_eq!(taken.txid, txid(self.last()));
        let size = self.size(&taken.key).await;
        assert_eq!(taken.bytes, size);
        self.snapshots.push((taken.key, size, self.last()));
    }

    async fn fork(&self, through: u64) -> String {
        let mut bases = self.snapshots.iter().rev();
        let base = bases.find(|snapshot| snapshot.2 <= through).unwrap();
        let segments = self.behind(base.2, through);
        self.fork_of(base, segments, through).await.unwrap().key
    }

    async fn fork_of(
        &self,
        (base, size, _): &(String, u64, u64),
        segments: Vec<Segment>,
        through: u64,
    ) -> Result<Taken> {
        let later = Later {
            base: (base.clone(), *size),
            segments,
            place: Place::Fork {
                generation: FORK,
                parent: Parent {
                    generation: GENERATION,
                    txid: txid(through),
                },
                started: Timestamp::from_micros(1),
                end: WalEnd::default(),
            },
        };
        later::take(&self.workshop, &later).await
    }

    async fn size(&self, key: &str) -> u64 {
        let listed = self.store().list(key, None).await.unwrap();
        listed[0].size
    }

    /// Every snapshot is the state at its transaction, and every segment holds what was written.
    async fn check(&self) {
        for (key, _, number) in &self.snapshots {
            let image = self.read_snapshot(key).await.unwrap();
            assert_eq!(&image, &self.states[*number as usize - 1], "{key}");
        }
        for index in 0..self.segments.len() {
            self.check_segment(index).await;
        }
    }

    /// Each version is what was written, and of what its points see none is missing.
    async fn check_segment(&self, segment: usize) {
        let (key, _, first, last) = &self.segments[segment];
        let (header, index) = self.index(segment).await;
        let mut there: BTreeSet<(u32, u64)> = BTreeSet::new();
        for (slot, &(page, number)) in index.versions.iter().enumerate() {
            let (page, number) = (page.get(), number.get());
            let content = self.page_in(key, &index.blocks, slot as u32).await;
            assert_eq!(
                content,
                self.states[number as usize - 1][&page],
                "{key}: {page} {number}"
            );
            there.insert((page, number));
        }
        let written = (*first..=*last).flat_map(|number| {
            let pages = self.written[number as usize - 1].iter();
            pages.map(move |&page| (page, number))
        });
        let written: BTreeSet<(u32, u64)> = written.collect();
        assert!(there.is_subset(&written), "{key}");
        if !header.thinned {
            assert_eq!(there, written, "{key}");
        }
        for point in &index.timeline {
            let seen = |versions: &BTreeSet<(u32, u64)>| -> BTreeMap<u32, u64> {
                let seen = versions
                    .iter()
                    .filter(|(_, number)| *number <= point.txid.get());
                seen.copied().collect()
            };
            assert_eq!(seen(&there), seen(&written), "{key} at {}", point.txid);
        }
    }

    /// The page in a slot of an object.
    async fn page_in(&self, key: &str, blocks: &BlockTable, slot: u32) -> Vec<u8> {
        let (block, within) = blocks.locate(slot).unwrap();
        let block = blocks.blocks[block];
        let (offset, length) = (block.offset, block.length.into());
        let stored = get_exactly(self.store(), key, offset, length)
            .await
            .unwrap();
        let pages = block.open(&stored, SIZE).unwrap();
        let start = within * SIZE.bytes();
        pages[start..start + SIZE.bytes()].to_vec()
    }

    async fn read_snapshot(&self, key: &str) -> Result<Image> {
        let mut objects = BTreeMap::new();
        let (object, index) = self.open(key).await?;
        let own = object.footer.header.object_id;
        let root = index.root.clone().unwrap();
        objects.insert(own, (object, index));
        for home in &root.homes {
            objects.insert(home.id, self.open(&home.key).await?);
        }
        let mut image = Image::new();
        for (number, place) in root.leaves.iter().enumerate() {
            let Some(place) = place else { continue };
            let key = &objects[&place.object].0.key;
            let stored = get_exactly(self.store(), key, place.offset, place.length.into()).await?;
            let leaf = place.open(&stored)?;
            for page in 1..=4096 {
                let page = number as u32 * 4096 + page;
                let Some((id, slot)) = leaf.locate(pgno(page)) else {
                    continue;
                };
                let (object, index) = &objects[&id];
                let content = self.page_in(&object.key, &index.blocks, slot).await;
                image.insert(page, content);
            }
        }
        Ok(image)
    }

    async fn open(&self, key: &str) -> Result<(StoredObject, SnapshotIndex)> {
        let object = StoredObject::open(self.store(), key, self.size(key).await).await?;
        let sections = object
            .sections(self.store(), SnapshotIndex::SECTIONS)
            .await?;
        let sections = sections.each_ref().map(|section| section.as_deref());
        let index = SnapshotIndex::decode(&object.footer, sections)?;
        Ok((object, index))
    }

    /// The versions and the timeline of a segment.
    async fn index(&self, segment: usize) -> (Header, SegmentIndex) {
        let (key, size) = self.input(segment);
        let object = StoredObject::open(self.store(), &key, size).await.unwrap();
        let sections = object
            .sections(self.store(), SegmentIndex::SECTIONS)
            .await
            .unwrap();
        let sections = sections
            .each_ref()
            .map(|section| section.as_deref().unwrap());
        let index = SegmentIndex::decode(&object.footer, sections).unwrap();
        assert!(object.footer.section(SectionKind::Predecessors).is_none());
        (object.footer.header, index)
    }
}

fn level(key: &str) -> u8 {
    match Key::parse(key).unwrap().object {
        ObjectKey::Merged { level, .. } => level,
        _ => 0,
    }
}

/// Some pages of a transaction; each compresses a little.
fn content(page: u32, number: u64) -> Vec<u8> {
    let mut bytes = vec![page as u8; 512];
    bytes[..4].copy_from_slice(&page.to_le_bytes());
    bytes[4..12].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn commits(pages: u32) -> impl Strategy<Value = Vec<Commit>> {
    let writes = prop::collection::vec(1..=pages, 0..8);
    let size = prop_oneof![8 => Just(pages), 1 => 1..=pages];
    let commit = (writes, size).prop_map(|(writes, pages)| Commit { writes, pages });
    prop::collection::vec(commit, 1..4)
}

/// What happens to a replica.
#[derive(Clone, Debug)]
enum Action {
    Upload(Vec<Commit>),
    Merge(usize, usize),
    Thin(usize, u64),
    Snapshot,
    Fork(u64),
}

fn actions(pages: u32) -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        6 => commits(pages).prop_map(Action::Upload),
        3 => (any::<usize>(), 2_usize..5).prop_map(|(at, count)| Action::Merge(at, count)),
        1 => (any::<usize>(), 1_u64..5).prop_map(|(at, every)| Action::Thin(at, every)),
        2 => Just(Action::Snapshot),
        1 => any::<u64>().prop_map(Action::Fork),
    ];
    prop::collection::vec(action, 1..24)
}

async fn play(model: &mut Model, action: Action) {
    // Nothing crosses a snapshot.
    let snapshot = model.snapshots.last().unwrap().2;
    match action {
        Action::Upload(commits) => model.upload(&commits).await,
        Action::Merge(at, count) => {
            let start = model.segments.iter().position(|s| s.2 > snapshot);
            let start = start.unwrap_or(model.segments.len());
            let open = model.segments.len() - start;
            if open >= count {
                let at = start + at % (open - count + 1);
                model.merge(at..at + count, None).await;
            }
        }
        Action::Thin(at, every) if !model.segments.is_empty() => {
            let at = at % model.segments.len();
            let last = model.segments[at].3;
            let (_, index) = model.index(at).await;
            let points = index.timeline.iter().map(|entry| entry.txid.get());
            let points = points.filter(|number| number % every == 0 || *number == last);
            let points = points.collect();
            model.merge(at..at + 1, Some(points)).await;
        }
        Action::Snapshot if model.last() > snapshot => model.snapshot().await,
        Action::Fork(at) => {
            let through = 1 + at % model.last();
            let is_base = model.snapshots.iter().any(|s| s.2 == through);
            if is_base || is_kept(model, through).await {
                let key = model.fork(through).await;
                let image = model.read_snapshot(&key).await.unwrap();
                assert_eq!(image, model.states[through as usize - 1], "{key}");
                model.store().delete(&[key]).await.unwrap();
            }
        }
        _ => {}
    }
}

/// No segment up to there lacks it.
async fn is_kept(model: &Model, through: u64) -> bool {
    for index in 0..model.segments.len() {
        if model.segments[index].2 <= through && through <= model.segments[index].3 {
            let (_, index) = model.index(index).await;
            return index
                .timeline
                .iter()
                .any(|entry| entry.txid == txid(through));
        }
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn whatever_is_merged_thinned_and_taken_the_pages_are_what_they_were(
        (pages, actions) in (1_u32..40).prop_flat_map(|pages| (Just(pages), actions(pages))),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut model = Model::new(pages).await;
            for action in actions {
                play(&mut model, action).await;
            }
            model.check().await;
        });
    }
}

fn writes(pages: impl IntoIterator<Item = u32>, size: u32) -> Commit {
    Commit {
        writes: pages.into_iter().collect(),
        pages: size,
    }
}

#[tokio::test]
async fn a_later_snapshot_stores_what_changed_and_points_to_the_rest() {
    let mut model = Model::new(9000).await;
    model
        .upload(&[writes([5, 4097], 9000), writes([5], 9000)])
        .await;
    model.snapshot().await;
    let (_, index) = model.open(&model.snapshots[1].0).await.unwrap();
    let stored: Vec<_> = index
        .stored
        .iter()
        .map(|run| (run.first.get(), run.count))
        .collect();
    assert_eq!(stored, [(5, 1), (4097, 1)]);
    let root = index.root.unwrap();
    let first = model
        .open(&model.snapshots[0].0)
        .await
        .unwrap()
        .0
        .footer
        .header
        .object_id;
    assert_eq!(root.homes.len(), 1);
    let leaves: Vec<bool> = root
        .leaves
        .iter()
        .map(|leaf| leaf.unwrap().object == first)
        .collect();
    assert_eq!(
        leaves,
        [false, false, true],
        "the leaf that did not change stays where it is"
    );
    model.check().await;
}

#[tokio::test]
async fn a_later_snapshot_of_several_objects_can_be_read_and_gone_on_from() {
    let mut model = Model::new(3000).await;
    model.upload(&[writes(1..=3000, 3000)]).await;
    let later = Later {
        base: (model.snapshots[0].0.clone(), model.snapshots[0].1),
        segments: model.behind(1, 2),
        place: Place::Later,
    };
    let prepared = later::prepare_in(&model.workshop, &later, 1000 * 512).await;
    let prepared = prepared.unwrap();
    prepared.store(&model.workshop).await.unwrap();
    let key = prepared.taken.key;
    let size = model.size(&key).await;
    let (_, index) = model.open(&key).await.unwrap();
    let parts = index.root.unwrap().homes;
    let parts = parts.iter().filter(|home| home.key.contains("/pages/"));
    assert!(parts.count() >= 2);
    model.snapshots.push((key, size, 2));
    model.upload(&[writes([7, 2999], 3000)]).await;
    model.snapshot().await;
    model.check().await;
}

#[tokio::test]
async fn a_large_later_snapshot_carries_the_interior_pages_as_they_are_now() {
    let mut model = Model::new(9000).await;
    model.upload(&[writes(100..=9000, 9000)]).await;
    model.snapshot().await;
    model.upload(&[writes([1], 9000)]).await;
    model.snapshot().await;
    model.upload(&[writes(100..=9000, 9000)]).await;
    model.snapshot().await;
    let carried = async |number: usize| {
        let (object, _) = model.open(&model.snapshots[number].0).await.unwrap();
        object.footer.section(SectionKind::InteriorPages)?;
        let kind = SectionKind::InteriorPages;
        let section = object.section(model.store(), kind).await.unwrap();
        Some(decode_interior(&section, SIZE.bytes()).unwrap())
    };
    let pages = carried(1).await.expect("it is large");
    assert_eq!(pages.len(), 128, "the first 64 KiB");
    for (page, bytes) in pages {
        assert_eq!(bytes, model.states[1][&page.get()], "page {page:?}");
    }
    assert_eq!(carried(2).await, None, "they would take more than it does");
    assert_eq!(carried(3).await, None, "its base has none");
    model.check().await;
}

#[tokio::test]
async fn hot_pages_leave_no_row_of_mostly_dead_objects_behind() {
    let mut model = Model::new(2000).await;
    for round in 0..30 {
        let hot = (0..100).map(|page| 1 + (page * 7 + round) % 200);
        model.upload(&[writes(hot, 2000)]).await;
        model.snapshot().await;
    }
    let (_, index) = model.open(&model.snapshots[30].0).await.unwrap();
    let homes = index.root.unwrap().homes;
    assert!(homes.len() <= 6, "{} homes", homes.len());
    model.check().await;
}

#[tokio::test]
async fn a_leaf_whose_pages_have_scattered_is_written_again() {
    let mut model = Model::new(100).await;
    for round in 0..7 {
        model
            .upload(&[writes((0..10).map(|page| page * 10 + 1 + round), 100)])
            .await;
        model.snapshot().await;
    }
    let (_, index) = model.open(&model.snapshots[6].0).await.unwrap();
    let stored: Vec<_> = index
        .stored
        .iter()
        .map(|run| (run.first.get(), run.count))
        .collect();
    assert_eq!(stored, [(1, 100)]);
    model.check().await;
}

#[tokio::test]
async fn what_was_cut_off_does_not_come_back() {
    let mut model = Model::new(50).await;
    model
        .upload(&[writes([1, 40], 50), writes([1], 20), writes([1], 45)])
        .await;
    model.snapshot().await;
    model.upload(&[writes([2], 10)]).await;
    model.upload(&[writes([2], 30)]).await;
    model.merge(1..3, Some(vec![6])).await;
    model.snapshot().await;
    model.check().await;
}

#[tokio::test]
async fn a_shrink_before_the_snapshot_cuts_nothing_off_behind_it() {
    let mut model = Model::new(50).await;
    let commits = [writes([1], 20), writes([1], 50), writes([1], 50)];
    model.upload(&commits).await;
    let later = Later {
        base: (model.snapshots[0].0.clone(), model.snapshots[0].1),
        segments: model.behind(1, 3),
        place: Place::Later,
    };
    let taken = later::take(&model.workshop, &later).await.unwrap();
    model.snapshots.push((taken.key, taken.bytes, 3));
    // Its one entry left says how small the database was at txid 2.
    model.merge(0..1, Some(vec![4])).await;
    model.snapshot().await;
    model.check().await;
}

#[tokio::test]
async fn inputs_that_do_not_follow_each_other_do_not_become_one() {
    let mut model = Model::new(5).await;
    for _ in 0..3 {
        model.upload(&[writes([1], 5)]).await;
    }
    let try_to = async |inputs: Vec<(String, u64)>| {
        let (generation, level, keep) = (GENERATION, 1, None);
        let asked = Merge {
            generation,
            inputs,
            level,
            keep,
        };
        merge(&model.workshop, &asked).await.unwrap_err()
    };
    let error = try_to(vec![model.input(0), model.input(2)]).await;
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let sentence = "merge generations/00000001-00000007/wal/0/0000000000000004.wal: it does not \
                    follow generations/00000001-00000007/wal/0/0000000000000002.wal";
    assert_eq!(error.to_string(), sentence);
    let error = try_to(vec![model.input(1), model.input(0)]).await;
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_segment_that_lacks_something_accounts_for_nothing() {
    let mut model = Model::new(5).await;
    for _ in 0..2 {
        model.upload(&[writes([1, 2], 5), writes([2], 5)]).await;
    }
    let scratch = model.workshop.directory.clone();
    let inputs = [model.input(0), model.input(1)];
    let of = async |inputs: &[(String, u64)], keep: Option<Vec<Txid>>| {
        let (generation, inputs, level) = (GENERATION, inputs.to_vec(), 3);
        let asked = Merge {
            generation,
            inputs,
            level,
            keep,
        };
        let merged = merge(&model.workshop, &asked).await.unwrap();
        (merged.key, merged.length)
    };
    let (whole, first) = (of(&inputs, None).await, of(&inputs[..1], None).await);
    let thinned = of(&inputs, Some(vec![txid(5)])).await;
    let judge = async |inputs: &[(String, u64)], output: &(String, u64)| {
        let judged = account(model.store(), &scratch, inputs, output).await;
        judged.map_err(|e| e.to_string())
    };
    assert_eq!(judge(&inputs, &whole).await, Ok(()));
    assert_eq!(judge(&inputs, &thinned).await, Ok(()));
    assert_eq!(judge(std::slice::from_ref(&whole), &thinned).await, Ok(()));
    let error = judge(&inputs, &first).await.unwrap_err();
    assert!(error.contains("it does not stand for"), "{error}");
    let error = judge(&[thinned], &whole).await;
    assert_eq!(error, Ok(()), "what was dropped elsewhere is no loss here");
    let changed = forge(&model, |at| (at == (2, 3)).then(|| vec![7; 512])).await;
    let error = judge(&inputs, &changed).await.unwrap_err();
    assert!(
        error.contains("another content of page 2 of txid 0000000000000003"),
        "{error}"
    );
    let lacking = forge(&model, |at| (at == (2, 3)).then(Vec::new)).await;
    let error = judge(&inputs, &lacking).await.unwrap_err();
    assert!(
        error.contains("it lacks page 2 of txid 0000000000000003"),
        "{error}"
    );
}

/// A segment of all transactions from 2 on, of which some page versions are others, or (empty) not
/// there.
async fn forge(model: &Model, other: impl Fn((u32, u64)) -> Option<Vec<u8>>) -> (String, u64) {
    let last = model.last();
    let mut header = header(Kind::Segment, 2, last);
    (header.level, header.last_input) = (1, ObjectHash([1; 32]));
    let out = Cursor::new(Vec::new());
    let mut writer = SegmentWriter::new(out, header.object_id, SIZE, &scratch).unwrap();
    let written = |number: u64| model.written[number as usize - 1].iter();
    let versions = (2..=last).flat_map(|number| written(number).map(move |page| (*page, number)));
    let versions: BTreeSet<(u32, u64)> = versions.collect();
    for (page, number) in versions {
        let real = || model.states[number as usize - 1][&page].clone();
        let bytes = other((page, number)).unwrap_or_else(real);
        if !bytes.is_empty() {
            writer.push(pgno(page), txid(number), &bytes).unwrap();
        }
    }
    let size = |number: u64| model.states[number as usize - 1].len() as u32;
    let timeline: Vec<TimelineEntry> = (2..=last).map(|n| entry(n, size(n))).collect();
    let (out, written) = writer.finish(&header, &timeline, &[], None).unwrap();
    let object = ObjectKey::Merged {
        level: 1,
        first: header.first,
        last: header.last,
        time: timeline.last().unwrap().time,
        hash8: written.hash.hash8(),
    };
    let key = model.put(object, out.into_inner()).await;
    (key, written.length)
}
