//! A replica written with the real encoders from random transactions, and the images that its
//! restore points must read as. For tests.
//!
//! The model keeps every state of the database as a list of pages; a [`Writer`] stores what a
//! daemon would store of them: uploads, first snapshots of both kinds, later ones, merged and
//! thinned segments, transactions shipped as snapshots, and generations that map into their
//! parent's snapshots. Everything follows from a seed.

use crate::error::Result;
use crate::format::claim::Claim;
use crate::format::container::{Header, Kind, Parent, Written};
use crate::format::ids::{
    DatabaseId, GenerationId, ObjectHash, ObjectId, PageSize, Pgno, RestorePoint, Timestamp, Txid,
    WriterId,
};
use crate::format::interior::InteriorPages;
use crate::format::key::{Key, ObjectKey};
use crate::format::sample;
use crate::format::segment::{Predecessor, SegmentIndex, SegmentWriter, TimelineEntry};
use crate::format::snapshot::{
    Home, Leaf, LeafRef, LeafSource, MapRoot, MapToWrite, Run, SnapshotIndex, SnapshotWriter,
    leaves, overlay,
};
use crate::materialize::cache::BlockCache;
use crate::materialize::pages::{Database, ReadAhead};
use crate::materialize::replica::Replica;
use crate::storage::object::StoredObject;
use crate::storage::{Body, Put, Store};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Cursor;
use std::sync::Arc;

/// Random numbers that follow from a seed (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 up to `below`, without it.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        (self.next() >> 11) % below
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// A state of the database.
pub(crate) type Image = Vec<Bytes>;

/// One transaction.
#[derive(Clone)]
pub(crate) struct Commit {
    pub(crate) time: Timestamp,
    pub(crate) image: Image,
    frames: BTreeMap<u32, Bytes>,
    in_snapshot: bool,
}

/// A stored segment.
#[derive(Clone)]
struct Stored {
    level: u8,
    first: u64,
    last: u64,
    key: String,
    previous: ObjectHash,
    hands_on: ObjectHash,
    hint: Option<Predecessor>,
}

/// A stored snapshot.
#[derive(Clone)]
struct Snap {
    txid: u64,
    pages: u32,
    leaves: Vec<(Option<LeafRef>, Leaf)>,
    /// What its map says of each page; `None` where it says nothing.
    content: Vec<Option<Bytes>>,
}

/// One generation, as its writer sees it.
pub(crate) struct Writer {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) random: Random,
    pub(crate) id: GenerationId,
    pub(crate) parent: Option<Parent>,
    page_size: PageSize,
    /// By txid, from 1.
    pub(crate) commits: BTreeMap<u64, Commit>,
    uploaded: u64,
    segments: Vec<Stored>,
    snapshots: Vec<Snap>,
    homes: HashMap<ObjectId, Home>,
    /// Transactions that retention dropped.
    thinned: BTreeSet<u64>,
    /// What the upload that begins after each of these transactions goes on from.
    chain: BTreeMap<u64, ObjectHash>,
}

fn scratch() -> std::io::Result<Box<dyn crate::format::container::ScratchFile>> {
    Ok(Box::new(Cursor::new(Vec::new())))
}

fn txid(number: u64) -> Txid {
    Txid::new(number).unwrap()
}

fn pgno(number: u32) -> Pgno {
    Pgno::new(number).unwrap()
}

impl Writer {
    /// A new generation of a database of `pages` pages; nothing but its claim is stored.
    pub(crate) async fn new(
        store: Arc<dyn Store>,
        seed: u64,
        ordinal: u32,
        page_size: u32,
        pages: u32,
    ) -> Self {
        let mut random = Random::new(seed);
        let page_size = PageSize::new(page_size).unwrap();
        let image = (0..pages)
            .map(|_| random_page(&mut random, page_size))
            .collect();
        let start = Timestamp::from_micros(1_700_000_000_000_000);
        Self::begin(store, random, ordinal, page_size, None, image, start).await
    }

    /// A new generation of a database with these bytes.
    pub(crate) async fn with_image(
        store: Arc<dyn Store>,
        seed: u64,
        page_size: u32,
        bytes: &[u8],
    ) -> Self {
        let page_size = PageSize::new(page_size).unwrap();
        let image = bytes
            .chunks(page_size.bytes())
            .map(Bytes::copy_from_slice)
            .collect();
        let start = Timestamp::from_micros(1_700_000_000_000_000);
        Self::begin(store, Random::new(seed), 1, page_size, None, image, start).await
    }

    async fn begin(
        store: Arc<dyn Store>,
        random: Random,
        ordinal: u32,
        page_size: PageSize,
        parent: Option<Parent>,
        image: Image,
        time: Timestamp,
    ) -> Self {
        let claim = Claim {
            generation: GenerationId {
                ordinal,
                random: 0xfeed_0000 | ordinal,
            },
            database_id: DatabaseId([3; 16]),
            writer_id: WriterId([4; 8]),
            parent,
            host: "model".to_owned(),
            path: "app.db".to_owned(),
            started: time,
            reason: "a test".to_owned(),
        };
        let first = Commit {
            time,
            image,
            frames: BTreeMap::new(),
            in_snapshot: false,
        };
        let writer = Self {
            store,
            random,
            id: claim.generation,
            parent,
            page_size,
            commits: BTreeMap::from([(1, first)]),
            uploaded: 1,
            segments: Vec::new(),
            snapshots: Vec::new(),
            homes: HashMap::new(),
            thinned: BTreeSet::new(),
            chain: BTreeMap::from([(1, claim.hash())]),
        };
        writer.put(ObjectKey::Claim, claim.encode()).await;
        writer
    }

    /// A generation that goes on from this one at a txid that both share, with the pages as they
    /// were there but for a few that changed meanwhile. Its first snapshot maps into ours.
    pub(crate) async fn child(&mut self, shared: u64) -> Self {
        self.child_named(shared, self.id.ordinal + 1).await
    }

    async fn child_named(&mut self, shared: u64, ordinal: u32) -> Self {
        let parent = Parent {
            generation: self.id,
            txid: txid(shared),
        };
        let random = Random::new(self.random.next());
        let time = later(self.commits[self.commits.keys().last().unwrap()].time, 5);
        let image = self.commits[&shared].image.clone();
        let store = Arc::clone(&self.store);
        let page_size = self.page_size;
        let mut child =
            Self::begin(store, random, ordinal, page_size, Some(parent), image, time).await;
        for _ in 0..child.random.below(4) {
            let at = child.random.below(child.pages(1).into()) as usize;
            let page = random_page(&mut child.random, page_size);
            child.commits.get_mut(&1).unwrap().image[at] = page;
        }
        child.homes = self.homes.clone();
        let before = self
            .snapshots
            .iter()
            .rfind(|s| s.txid <= shared)
            .unwrap()
            .clone();
        child.snapshot_over(&before, 1).await;
        child
    }

    pub(crate) fn last(&self) -> u64 {
        *self.commits.keys().last().unwrap()
    }

    fn pages(&self, at: u64) -> u32 {
        self.commits[&at].image.len() as u32
    }

    /// The restore points that a reader must list, ascending.
    pub(crate) fn points(&self) -> Vec<RestorePoint> {
        let Some(first) = self.snapshots.first() else {
            return Vec::new();
        };
        let uploaded = self.commits.range(first.txid..=self.uploaded);
        uploaded
            .filter(|(at, _)| !self.thinned.contains(at))
            .map(|(&at, commit)| RestorePoint {
                generation: self.id,
                txid: txid(at),
                time: commit.time,
                pages: commit.image.len() as u32,
            })
            .collect()
    }

    /// How many transactions retention dropped.
    pub(crate) fn thinned(&self) -> usize {
        self.thinned.len()
    }

    /// Commits a random transaction.
    pub(crate) fn commit(&mut self) {
        let mut image = self.commits[&self.last()].image.clone();
        let mut touched = BTreeSet::from([0]);
        let size = image.len() as u64;
        match self.random.below(100) {
            0..12 => grow(&mut image, &mut touched, 1 + self.random.below(20)),
            12..20 => image.truncate((size - self.random.below(size / 2 + 1)).max(1) as usize),
            20..24 => {
                // As VACUUM does: every page anew, in a smaller file.
                image.truncate((size - size / 4).max(1) as usize);
                touched.extend(0..image.len());
            }
            24..27 => grow(&mut image, &mut touched, 64),
            _ => {}
        }
        for _ in 0..self.random.below(5) {
            touched.insert(self.random.below(image.len() as u64) as usize);
        }
        let mut frames = BTreeMap::new();
        for at in touched {
            image[at] = random_page(&mut self.random, self.page_size);
            frames.insert(at as u32 + 1, image[at].clone());
        }
        let last = self.commits[&self.last()].time;
        let step = 1 + self.random.below(3_000_000);
        let commit = Commit {
            time: later(last, step as i64),
            image,
            frames,
            in_snapshot: false,
        };
        self.commits.insert(self.last() + 1, commit);
    }

    /// Uploads what is committed and not uploaded yet, as one segment.
    pub(crate) async fn upload(&mut self) {
        if self.uploaded < self.last() {
            self.upload_through(self.last(), None).await;
        }
    }

    async fn upload_through(&mut self, last: u64, snapshot: Option<&str>) {
        let first = self.uploaded + 1;
        let all: BTreeSet<u64> = (first..=last).collect();
        let previous = self.chain[&self.uploaded];
        let header = Header {
            previous,
            ..self.header(Kind::Segment, first, last)
        };
        let uploads = self.segments.iter().filter(|s| s.level == 0);
        let hints: Vec<_> = uploads.filter_map(|s| s.hint.clone()).collect();
        let (bytes, written) = self.segment(&header, &all, &hints, snapshot);
        let key = ObjectKey::Upload { first: txid(first) };
        let key = self.put(key, bytes).await;
        let stored = StoredObject::open(&*self.store, &key, written.length)
            .await
            .unwrap();
        let sections = stored
            .sections(&*self.store, SegmentIndex::SECTIONS)
            .await
            .unwrap();
        let sections = sections
            .each_ref()
            .map(|section| section.as_deref().unwrap());
        let index = SegmentIndex::decode(&stored.footer, sections).unwrap();
        let index = (index.versions.len() < 200).then_some(index);
        self.segments.push(Stored {
            level: 0,
            first,
            last,
            previous,
            hands_on: written.hash,
            hint: Some(Predecessor::new(key.clone(), &stored.footer, index)),
            key,
        });
        self.chain.insert(last, written.hash);
        self.uploaded = last;
    }

    /// A segment that stands for the header's range and keeps some of its transactions.
    fn segment(
        &self,
        header: &Header,
        kept: &BTreeSet<u64>,
        hints: &[Predecessor],
        snapshot: Option<&str>,
    ) -> (Vec<u8>, Written) {
        let (first, last) = (header.first.get(), header.last.get());
        let mut versions: BTreeMap<(u32, u64), &Bytes> = BTreeMap::new();
        for &seen_by in kept.iter().chain([&last]) {
            let mut newest: BTreeMap<u32, (u64, &Bytes)> = BTreeMap::new();
            for (&at, commit) in self.commits.range(first..=seen_by) {
                let frames = commit.frames.iter().filter(|_| !commit.in_snapshot);
                newest.extend(frames.map(|(&page, bytes)| (page, (at, bytes))));
            }
            versions.extend(
                newest
                    .into_iter()
                    .map(|(page, (at, bytes))| ((page, at), bytes)),
            );
        }
        let out = Cursor::new(Vec::new());
        let mut writer =
            SegmentWriter::new(out, header.object_id, self.page_size, &scratch).unwrap();
        for ((page, at), bytes) in versions {
            writer.push(pgno(page), txid(at), bytes).unwrap();
        }
        let before = [first - 1].into_iter().chain(kept.iter().copied());
        let pairs = before.zip(kept);
        let timeline: Vec<_> = pairs.map(|(before, &at)| self.entry(before, at)).collect();
        let (out, written) = writer.finish(header, &timeline, hints, snapshot).unwrap();
        (out.into_inner(), written)
    }

    fn entry(&self, before: u64, at: u64) -> TimelineEntry {
        let commit = &self.commits[&at];
        let since = self.commits.range(before + 1..=at);
        let pages = |commit: &Commit| commit.image.len() as u32;
        TimelineEntry {
            in_snapshot: commit.in_snapshot,
            min_pages: since.map(|(_, commit)| pages(commit)).min().unwrap(),
            ..TimelineEntry::new(txid(at), commit.time, pages(commit))
        }
    }

    /// A first snapshot of the state at txid 1, in two parts or more if `parts`.
    pub(crate) async fn exact_snapshot(&mut self, parts: bool) {
        let image = self.commits[&1].image.clone();
        let pages = image.into_iter().map(Some).collect();
        self.first_snapshot(pages, 1, true, parts).await;
    }

    /// A first snapshot whose pages are read while transactions are committed.
    pub(crate) async fn fuzzy_snapshot(&mut self, parts: bool) {
        let mut read: Vec<Option<Bytes>> = Vec::new();
        loop {
            let image = &self.commits[&self.last()].image;
            if read.len() >= image.len() {
                break;
            }
            let chunk = 1 + self.random.below(image.len() as u64 / 3 + 1) as usize;
            let image = &self.commits[&self.last()].image;
            let pages = image.iter().skip(read.len()).take(chunk).cloned();
            read.extend(pages.map(Some));
            for _ in 0..self.random.below(3) {
                self.commit();
            }
            if self.random.percent(50) {
                self.upload().await;
            }
        }
        self.commit();
        self.upload().await;
        self.first_snapshot(read, self.last(), false, parts).await;
    }

    /// A first snapshot that stores these pages alone; all others are zeros to its readers.
    pub(crate) async fn sparse_snapshot(&mut self, stored: &[u32]) {
        let image = self.commits[&1].image.iter().enumerate();
        let kept = |(at, page): (usize, &Bytes)| {
            let number = at as u32 + 1;
            stored.contains(&number).then(|| page.clone())
        };
        let content = image.map(kept).collect();
        self.first_snapshot(content, 1, false, false).await;
    }

    async fn first_snapshot(
        &mut self,
        content: Vec<Option<Bytes>>,
        at: u64,
        exact: bool,
        parts: bool,
    ) {
        let mut interior = InteriorPages::new(self.page_size, &scratch).unwrap();
        let mut runs = Vec::new();
        let mut rest = 1;
        let count = content.len() as u32;
        while parts && rest + 2 < count && runs.len() < 3 {
            let end = rest + 1 + self.random.below(u64::from(count - rest) / 2 + 1) as u32;
            let header = Header {
                exact,
                ..self.header(Kind::Part, 1, 1)
            };
            let mut writer = self.snapshot_writer(&header);
            push_pages(&mut writer, &content, rest..end, &mut interior);
            runs.extend_from_slice(writer.stored());
            let (out, written) = writer.finish_part(&header).unwrap();
            let key = ObjectKey::Part {
                since: Txid::FIRST,
                first: pgno(rest),
                hash8: written.hash.hash8(),
            };
            self.put_home(key, out.into_inner(), &written).await;
            rest = end;
        }
        let header = Header {
            exact,
            since: Txid::FIRST,
            ..self.header(Kind::Snapshot, at, at)
        };
        let mut writer = self.snapshot_writer(&header);
        push_pages(&mut writer, &content, rest..count + 1, &mut interior);
        runs.extend_from_slice(writer.stored());
        let mapped = leaves(&runs, self.pages(at));
        let sources = mapped.into_iter().map(LeafSource::Here).collect();
        self.finish_snapshot(writer, &header, sources, content, Some(interior))
            .await;
    }

    /// A snapshot at the last uploaded transaction: what changed, over the last one.
    pub(crate) async fn later_snapshot(&mut self) {
        let before = self.snapshots.last().unwrap().clone();
        if self.uploaded > before.txid {
            self.snapshot_over(&before, self.uploaded).await;
        }
    }

    /// Stores the pages at `at` that another snapshot's map does not hold.
    async fn snapshot_over(&mut self, before: &Snap, at: u64) -> String {
        let header = self.header(Kind::Snapshot, at, at);
        let mut writer = self.snapshot_writer(&header);
        let content: Vec<_> = self.commits[&at].image.iter().cloned().map(Some).collect();
        for (number, page) in (1..).zip(&content) {
            let held = before.content.get(number as usize - 1);
            // The writer does not compare but takes what segments hold; the same comes of it.
            if held != Some(page) || before.pages < number {
                writer.push(pgno(number), page.as_ref().unwrap()).unwrap();
            }
        }
        let pages = content.len() as u32;
        let newer = leaves(writer.stored(), pages);
        let nothing = (None, Leaf::default());
        let sources = newer.iter().enumerate().map(|(index, newer)| {
            let (place, leaf) = before.leaves.get(index).unwrap_or(&nothing);
            let is_cut = leaf
                .runs
                .last()
                .is_some_and(|run| run.end() > u64::from(pages) + 1);
            match place {
                Some(place) if newer.runs.is_empty() && !is_cut => LeafSource::Earlier(*place),
                _ => LeafSource::Here(overlay(leaf, &newer.runs, pages)),
            }
        });
        let sources = sources.collect();
        self.finish_snapshot(writer, &header, sources, content, None)
            .await
    }

    async fn finish_snapshot(
        &mut self,
        writer: SnapshotWriter<Cursor<Vec<u8>>>,
        header: &Header,
        sources: Vec<LeafSource>,
        mut content: Vec<Option<Bytes>>,
        interior: Option<InteriorPages>,
    ) -> String {
        let at = header.last.get();
        let pages = self.pages(at);
        content.resize(pages as usize, None);
        let mut needed = HashSet::new();
        let mut decoded = Vec::new();
        for source in &sources {
            let leaf = match source {
                LeafSource::Here(leaf) => leaf.clone(),
                LeafSource::Earlier(place) => {
                    needed.insert(place.object);
                    self.read_leaf(place).await
                }
                LeafSource::Empty => Leaf::default(),
            };
            needed.extend(leaf.runs.iter().map(|run: &Run| run.object));
            decoded.push(leaf);
        }
        needed.remove(&header.object_id);
        let homes: Vec<Home> = needed.iter().map(|id| self.homes[id].clone()).collect();
        let map = MapToWrite {
            pages,
            homes: &homes,
            leaves: &sources,
        };
        let (out, written) = writer
            .finish(header, &map, self.entry(at - 1, at), interior)
            .unwrap();
        let key = ObjectKey::Snapshot {
            txid: header.last,
            time: self.commits[&at].time,
            hash8: written.hash.hash8(),
        };
        let key = self.put_home(key, out.into_inner(), &written).await;
        let root = self.read_root(&key, written.length).await;
        // It carries its own entry, so its transaction is one that can be asked for.
        self.thinned.remove(&at);
        self.snapshots.push(Snap {
            txid: at,
            pages,
            leaves: root.leaves.into_iter().zip(decoded).collect(),
            content,
        });
        key
    }

    async fn read_root(&self, key: &str, length: u64) -> MapRoot {
        let stored = StoredObject::open(&*self.store, key, length).await.unwrap();
        let sections = stored.sections(&*self.store, SnapshotIndex::SECTIONS);
        let sections = sections.await.unwrap();
        let sections = sections.each_ref().map(Option::as_deref);
        let index = SnapshotIndex::decode(&stored.footer, sections).unwrap();
        index.root.unwrap()
    }

    async fn read_leaf(&self, place: &LeafRef) -> Leaf {
        let key = &self.homes[&place.object].key;
        let length = u64::from(place.length);
        let stored = self
            .store
            .get_range(key, place.offset, length)
            .await
            .unwrap();
        place.open(&stored).unwrap()
    }

    /// A transaction that goes into a snapshot of its own, and a segment without its pages.
    pub(crate) async fn commit_in_snapshot(&mut self) {
        self.upload().await;
        self.commit();
        let at = self.last();
        self.commits.get_mut(&at).unwrap().in_snapshot = true;
        let before = self.snapshots.last().unwrap().clone();
        let key = self.snapshot_over(&before, at).await;
        self.upload_through(at, Some(&key)).await;
    }

    /// Merges consecutive segments of a level, if there are any that may be; deletes them on
    /// request. With `thin`, about half of the transactions are dropped.
    pub(crate) async fn merge(&mut self, level: u8, thin: bool, delete: bool) {
        let mut inputs = self.mergeable(level);
        inputs.truncate(2 + self.random.below(3) as usize);
        let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else {
            return;
        };
        let header = Header {
            level: level + 1,
            thinned: thin,
            previous: first.previous,
            last_input: last.hands_on,
            ..self.header(Kind::Segment, first.first, last.last)
        };
        let range = first.first..=last.last;
        if thin {
            let at_snapshot: HashSet<u64> = self.snapshots.iter().map(|s| s.txid).collect();
            for at in range.clone() {
                let is_marked = self.commits[&at].in_snapshot;
                let stays = at == last.last || at_snapshot.contains(&at) || is_marked;
                if !stays && self.random.percent(50) {
                    self.thinned.insert(at);
                }
            }
        }
        let kept: BTreeSet<u64> = range.filter(|at| !self.thinned.contains(at)).collect();
        let header = Header {
            thinned: kept.len() as u64 != last.last - first.first + 1,
            ..header
        };
        let (bytes, written) = self.segment(&header, &kept, &[], None);
        let key = ObjectKey::Merged {
            level: header.level,
            first: header.first,
            last: header.last,
            time: self.commits[&last.last].time,
            hash8: written.hash.hash8(),
        };
        let key = self.put(key, bytes).await;
        let inputs: HashSet<String> = inputs.iter().map(|input| input.key.clone()).collect();
        if delete {
            let keys: Vec<String> = inputs.iter().cloned().collect();
            self.store.delete(&keys).await.unwrap();
        }
        self.segments
            .retain(|segment| !inputs.contains(&segment.key));
        self.segments.push(Stored {
            level: header.level,
            first: header.first.get(),
            last: header.last.get(),
            key,
            previous: header.previous,
            hands_on: header.last_input,
            hint: None,
        });
        self.segments.sort_by_key(|segment| segment.first);
    }

    /// Puts a thinned segment over whatever is there, as another writer's retention could. Returns
    /// what it dropped.
    pub(crate) async fn overlap(&mut self) -> BTreeSet<u64> {
        let ends: Vec<u64> = self.chain.keys().copied().collect();
        let from = self.random.below(ends.len() as u64) as usize;
        let to = from + self.random.below((ends.len() - from).min(6) as u64) as usize;
        if from == to {
            return BTreeSet::new();
        }
        let (first, last) = (ends[from] + 1, ends[to]);
        let all: BTreeSet<u64> = (first..=last).collect();
        let mut kept = all.clone();
        kept.retain(|at| *at == last || self.commits[at].in_snapshot || self.random.percent(50));
        let header = Header {
            level: 1 + self.random.below(4) as u8,
            thinned: kept.len() < all.len(),
            previous: self.chain[&(first - 1)],
            last_input: self.chain[&last],
            ..self.header(Kind::Segment, first, last)
        };
        let (bytes, written) = self.segment(&header, &kept, &[], None);
        let key = ObjectKey::Merged {
            level: header.level,
            first: header.first,
            last: header.last,
            time: self.commits[&last].time,
            hash8: written.hash.hash8(),
        };
        self.put(key, bytes).await;
        &all - &kept
    }

    /// The longest run of segments of a level between two snapshots.
    fn mergeable(&self, level: u8) -> Vec<Stored> {
        let borders: HashSet<u64> = self.snapshots.iter().map(|snap| snap.txid).collect();
        let mut best: Vec<Stored> = Vec::new();
        let mut run: Vec<Stored> = Vec::new();
        for segment in &self.segments {
            let goes_on = run.last().is_none_or(|before| {
                before.last + 1 == segment.first && !borders.contains(&before.last)
            });
            if segment.level != level || !goes_on {
                run.clear();
            }
            if segment.level == level {
                run.push(segment.clone());
            }
            if run.len() > best.len() {
                best = run.clone();
            }
        }
        if best.len() < 2 { Vec::new() } else { best }
    }

    fn snapshot_writer(&self, header: &Header) -> SnapshotWriter<Cursor<Vec<u8>>> {
        let out = Cursor::new(Vec::new());
        SnapshotWriter::new(out, header.object_id, self.page_size, &scratch).unwrap()
    }

    fn header(&mut self, kind: Kind, first: u64, last: u64) -> Header {
        Header {
            object_id: ObjectId(self.random.next().to_be_bytes()),
            generation: self.id,
            parent: self.parent,
            ..sample::header(kind, self.page_size, first, last)
        }
    }

    async fn put_home(&mut self, key: ObjectKey, bytes: Vec<u8>, written: &Written) -> String {
        let key = self.put(key, bytes).await;
        let home = Home {
            id: written.object_id,
            key: key.clone(),
            length: written.length,
        };
        self.homes.insert(written.object_id, home);
        key
    }

    async fn put(&self, object: ObjectKey, bytes: Vec<u8>) -> String {
        let key = Key {
            generation: self.id,
            object,
        };
        let key = key.to_string();
        let put = self
            .store
            .put(&key, Body::Bytes(bytes.into()))
            .await
            .unwrap();
        assert!(matches!(put, Put::Created { .. }), "{key}");
        key
    }

    /// Does any of the things that a daemon does over time.
    pub(crate) async fn step(&mut self) {
        match self.random.below(100) {
            0..65 => {
                for _ in 0..=self.random.below(4) {
                    self.commit();
                }
                self.upload().await;
            }
            65..70 => self.later_snapshot().await,
            70..73 => self.commit_in_snapshot().await,
            73..85 => {
                let delete = self.random.percent(50);
                self.merge(0, false, delete).await;
            }
            85..95 => self.merge(1, false, true).await,
            _ => {
                let level = self.random.below(3) as u8;
                self.merge(level, true, true).await;
            }
        }
    }
}

/// A replica with everything in it that can be in one: a generation, and a child of it.
pub(crate) async fn build(
    store: &Arc<dyn Store>,
    seed: u64,
    page_size: u32,
    pages: u32,
) -> [Writer; 2] {
    let mut writer = Writer::new(Arc::clone(store), seed, 1, page_size, pages).await;
    let parts = writer.random.percent(70);
    if writer.random.percent(50) {
        writer.fuzzy_snapshot(parts).await;
    } else {
        writer.exact_snapshot(parts).await;
    }
    for _ in 0..30 {
        writer.step().await;
    }
    let points = writer.points();
    let shared = points[writer.random.below(points.len() as u64) as usize].txid;
    let mut child = writer.child(shared.get()).await;
    for _ in 0..10 {
        child.step().await;
    }
    // The parent goes on for a while, as a clone of a machine would.
    writer.step().await;
    [writer, child]
}

/// The same with overlapping segments, and a third generation that goes on from either.
pub(crate) async fn build_tangled(
    store: &Arc<dyn Store>,
    seed: u64,
    page_size: u32,
    pages: u32,
) -> Vec<Writer> {
    let mut writers = Vec::from(build(store, seed, page_size, pages).await);
    let parent = writers[0].random.below(2) as usize;
    let points = writers[parent].points();
    let shared = writers[0].random.below(points.len() as u64) as usize;
    let shared = points[shared].txid.get();
    let mut child = writers[parent].child_named(shared, 3).await;
    for _ in 0..10 {
        child.step().await;
    }
    writers.push(child);
    for writer in &mut writers {
        while writer.random.percent(50) {
            writer.overlap().await;
        }
    }
    writers
}

/// The bytes of the database at a restore point.
pub(crate) fn image(writer: &Writer, point: &RestorePoint) -> Vec<u8> {
    assert_eq!(writer.id, point.generation);
    writer.commits[&point.txid.get()].image.concat()
}

/// A reader with a cache of its own, which has seen all that is stored.
pub(crate) async fn open_replica(store: &Arc<dyn Store>, cache: u64) -> Arc<Replica> {
    let replica = Replica::new(Arc::clone(store), Arc::new(BlockCache::new(cache)));
    replica.refresh().await.unwrap();
    replica
}

/// All bytes of a database, in reads of random lengths.
pub(crate) async fn read_all(database: &Arc<Database>, random: &mut Random) -> Result<Vec<u8>> {
    let ahead = ReadAhead::default();
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < database.size() {
        let length = 1 + random.below(200_000) as usize;
        let read = database.read(bytes.len() as u64, length, &ahead).await?;
        assert!(!read.is_empty());
        bytes.extend_from_slice(&read);
    }
    Ok(bytes)
}

fn push_pages(
    writer: &mut SnapshotWriter<Cursor<Vec<u8>>>,
    content: &[Option<Bytes>],
    range: std::ops::Range<u32>,
    interior: &mut InteriorPages,
) {
    for number in range {
        if let Some(page) = &content[number as usize - 1] {
            writer.push(pgno(number), page).unwrap();
            interior.offer(pgno(number), page).unwrap();
        }
    }
}

fn grow(image: &mut Image, touched: &mut BTreeSet<usize>, pages: u64) {
    let before = image.len();
    image.resize(before + pages as usize, Bytes::new());
    touched.extend(before..image.len());
}

fn later(time: Timestamp, micros: i64) -> Timestamp {
    Timestamp::from_micros(time.micros() + micros)
}

/// Mostly a pattern, sometimes noise, sometimes zeros.
fn random_page(random: &mut Random, page_size: PageSize) -> Bytes {
    let mut page = vec![0; page_size.bytes()];
    match random.below(10) {
        0 => {}
        1 => page.chunks_mut(8).for_each(|word| {
            word.copy_from_slice(&random.next().to_le_bytes());
        }),
        _ => {
            let word = random.next().to_le_bytes();
            page.chunks_mut(8).for_each(|at| at.copy_from_slice(&word));
        }
    }
    Bytes::from(page)
}
