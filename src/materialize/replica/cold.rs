//! What a cold reader asks of a store for a random moment of a long history.

use crate::format::claim::Claim;
use crate::format::container::{Header, Kind};
use crate::format::ids::{
    DatabaseId, GenerationId, ObjectHash, ObjectId, PageSize, Pgno, Timestamp, WriterId,
};
use crate::format::interior::InteriorPages;
use crate::format::key::{Key, ObjectKey};
use crate::format::moment::Moment;
use crate::format::sample::{self, scratch, txid};
use crate::format::segment::{SegmentWriter, TimelineEntry};
use crate::format::snapshot::{
    Home, Leaf, LeafRef, LeafSource, MapToWrite, SnapshotIndex, SnapshotWriter, leaves, overlay,
};
use crate::materialize::cache::BlockCache;
use crate::materialize::model::Random;
use crate::materialize::pages::ReadAhead;
use crate::materialize::replica::Replica;
use crate::storage::fault::{FaultStore, Verb};
use crate::storage::memory::MemoryStore;
use crate::storage::object::StoredObject;
use crate::storage::{Body, Store};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Cursor;
use std::sync::Arc;

const PAGE_BYTES: usize = 4096;
const PAGES: u32 = 200_000;
/// Of so many pages one is an interior page.
const INTERIOR: u32 = 500;
/// Transactions of the merged segments between two snapshots.
const MERGED: [u64; 3] = [100, 40, 40];

fn time(at: u64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + at as i64 * 1_000_000)
}

/// A page as a transaction left it: a tenth of it does not compress.
fn content(page: u32, at: u64) -> Vec<u8> {
    let mut random = Random::new(u64::from(page) << 32 | at);
    let mut bytes = vec![page as u8; PAGE_BYTES];
    for word in bytes[400..800].chunks_mut(8) {
        word.copy_from_slice(&random.next().to_be_bytes());
    }
    bytes[..16].fill(0);
    if page.is_multiple_of(INTERIOR) {
        // One cell at 4,000 and two children (fileformat2, "B-tree Pages").
        bytes[0] = 5;
        bytes[4] = 1;
        bytes[5..7].copy_from_slice(&4000_u16.to_be_bytes());
        bytes[8..12].copy_from_slice(&7_u32.to_be_bytes());
        bytes[12..14].copy_from_slice(&4000_u16.to_be_bytes());
        bytes[4000..4004].copy_from_slice(&6_u32.to_be_bytes());
    }
    bytes
}

/// A generation, and the transaction that wrote each page last.
struct Lean {
    store: Arc<FaultStore>,
    random: Random,
    /// By page, those of each transaction.
    touched: BTreeMap<u64, Vec<u32>>,
    chain: ObjectHash,
    last: u64,
    /// Since the last snapshot.
    changed: BTreeMap<u32, u64>,
    leaves: Vec<(Option<LeafRef>, Leaf)>,
    homes: HashMap<ObjectId, Home>,
}

fn generation() -> GenerationId {
    GenerationId {
        ordinal: 1,
        random: 7,
    }
}

impl Lean {
    async fn new() -> Self {
        let claim = Claim {
            generation: generation(),
            database_id: DatabaseId([3; 16]),
            writer_id: WriterId([4; 8]),
            parent: None,
            host: "cold".to_owned(),
            path: "app.db".to_owned(),
            started: time(1),
            reason: "a test".to_owned(),
        };
        let mut lean = Self {
            store: FaultStore::new(MemoryStore::new()),
            random: Random::new(5),
            touched: BTreeMap::new(),
            chain: claim.hash(),
            last: 1,
            changed: (1..=PAGES).map(|page| (page, 1)).collect(),
            leaves: Vec::new(),
            homes: HashMap::new(),
        };
        lean.put(ObjectKey::Claim, claim.encode()).await;
        lean.snapshot(true).await;
        lean
    }

    async fn put(&self, object: ObjectKey, bytes: Vec<u8>) -> String {
        let key = Key {
            generation: generation(),
            object,
        };
        let key = key.to_string();
        self.store
            .put(&key, Body::Bytes(bytes.into()))
            .await
            .unwrap();
        key
    }

    fn header(&mut self, kind: Kind, first: u64, last: u64) -> Header {
        Header {
            object_id: ObjectId(self.random.next().to_be_bytes()),
            generation: generation(),
            ..sample::header(kind, PageSize::new(PAGE_BYTES as u32).unwrap(), first, last)
        }
    }

    fn entry(at: u64) -> TimelineEntry {
        TimelineEntry::new(txid(at), time(at), PAGES)
    }

    /// A merged segment of so many transactions, each of page 1 and three others.
    async fn merged(&mut self, level: u8, count: u64) {
        let (first, last) = (self.last + 1, self.last + count);
        let mut versions = Vec::new();
        for at in first..=last {
            let mut pages = vec![1];
            pages.extend((0..3).map(|_| 2 + self.random.below(u64::from(PAGES) - 1) as u32));
            pages.sort_unstable();
            pages.dedup();
            versions.extend(pages.iter().map(|&page| (page, at)));
            self.changed.extend(pages.iter().map(|&page| (page, at)));
            self.touched.insert(at, pages);
        }
        versions.sort_unstable();
        let handed_on = ObjectHash([self.random.next() as u8; 32]);
        let header = Header {
            level,
            previous: self.chain,
            last_input: handed_on,
            ..self.header(Kind::Segment, first, last)
        };
        let out = Cursor::new(Vec::new());
        let mut writer =
            SegmentWriter::new(out, header.object_id, header.page_size, &scratch).unwrap();
        for (page, at) in versions {
            let page_number = Pgno::new(page).unwrap();
            writer
                .push(page_number, txid(at), &content(page, at))
                .unwrap();
        }
        let timeline: Vec<_> = (first..=last).map(Self::entry).collect();
        let (out, written) = writer.finish(&header, &timeline, &[], None).unwrap();
        let key = ObjectKey::Merged {
            level,
            first: header.first,
            last: header.last,
            time: time(last),
            hash8: written.hash.hash8(),
        };
        self.put(key, out.into_inner()).await;
        self.chain = handed_on;
        self.last = last;
    }

    /// A snapshot of what changed.
    async fn snapshot(&mut self, with_interior: bool) {
        let at = self.last;
        let is_first = at == 1;
        let header = Header {
            exact: is_first,
            ..self.header(Kind::Snapshot, at, at)
        };
        let (writer, interior) = self.pages(&header, with_interior);
        let newer = leaves(writer.stored(), PAGES);
        let nothing = (None, Leaf::default());
        let sources = newer.iter().enumerate().map(|(index, newer)| {
            let (place, leaf) = self.leaves.get(index).unwrap_or(&nothing);
            match place {
                Some(place) if newer.runs.is_empty() => LeafSource::Earlier(*place),
                _ => LeafSource::Here(overlay(leaf, &newer.runs, PAGES)),
            }
        });
        let sources: Vec<LeafSource> = sources.collect();
        let befores = self.leaves.iter().map(|(_, leaf)| leaf);
        let befores = befores.chain(std::iter::repeat(&nothing.1));
        let decoded = sources
            .iter()
            .zip(befores)
            .map(|(source, before)| match source {
                LeafSource::Here(leaf) => leaf.clone(),
                LeafSource::Earlier(_) | LeafSource::Empty => before.clone(),
            });
        let decoded: Vec<Leaf> = decoded.collect();
        let mut needed: HashSet<ObjectId> = HashSet::new();
        for (source, leaf) in sources.iter().zip(&decoded) {
            needed.extend(leaf.runs.iter().map(|run| run.object));
            if let LeafSource::Earlier(place) = source {
                needed.insert(place.object);
            }
        }
        needed.remove(&header.object_id);
        let homes: Vec<Home> = needed.iter().map(|id| self.homes[id].clone()).collect();
        let map = MapToWrite {
            pages: PAGES,
            homes: &homes,
            leaves: &sources,
        };
        let (out, written) = writer
            .finish(&header, &map, Self::entry(at), interior)
            .unwrap();
        let key = ObjectKey::Snapshot {
            txid: header.last,
            time: time(at),
            hash8: written.hash.hash8(),
        };
        let key = self.put(key, out.into_inner()).await;
        let places = self.leaf_places(&key, written.length).await;
        self.leaves = places.into_iter().zip(decoded).collect();
        let home = Home {
            id: header.object_id,
            key,
            length: written.length,
        };
        self.homes.insert(header.object_id, home);
        self.changed.clear();
    }

    /// The pages of a snapshot, and those that it carries once more.
    fn pages(
        &self,
        header: &Header,
        with_interior: bool,
    ) -> (SnapshotWriter<Cursor<Vec<u8>>>, Option<InteriorPages>) {
        let out = Cursor::new(Vec::new());
        let mut writer =
            SnapshotWriter::new(out, header.object_id, header.page_size, &scratch).unwrap();
        let mut interior = InteriorPages::new(header.page_size, &scratch).unwrap();
        let at = header.last.get();
        let all = (INTERIOR..=PAGES).step_by(INTERIOR as usize);
        for page in (1..=16).chain(all).filter(|_| with_interior) {
            let bytes = content(page, self.version(page, at));
            interior.offer(Pgno::new(page).unwrap(), &bytes).unwrap();
        }
        for (&page, &seen) in &self.changed {
            let bytes = content(page, seen);
            writer.push(Pgno::new(page).unwrap(), &bytes).unwrap();
        }
        (writer, with_interior.then_some(interior))
    }

    async fn leaf_places(&self, key: &str, length: u64) -> Vec<Option<LeafRef>> {
        let stored = StoredObject::open(&*self.store, key, length).await.unwrap();
        let sections = stored.sections(&*self.store, SnapshotIndex::SECTIONS);
        let sections = sections.await.unwrap();
        let sections = sections.each_ref().map(Option::as_deref);
        let index = SnapshotIndex::decode(&stored.footer, sections).unwrap();
        index.root.unwrap().leaves
    }

    /// The transaction that wrote a page last, up to a moment.
    fn version(&self, page: u32, at: u64) -> u64 {
        let before = self.touched.range(..=at).rev();
        let mut writers = before.filter(|(_, pages)| pages.contains(&page));
        writers.next().map_or(1, |(&at, _)| at)
    }

    /// Requests besides the LIST, and bytes, of a point query at a random moment.
    async fn query(&mut self) -> (u64, u64) {
        let at = 1 + self.random.below(self.last);
        let interior = INTERIOR * (1 + self.random.below((PAGES / INTERIOR).into()) as u32);
        let mut leaf = 20 + self.random.below(u64::from(PAGES) - 20) as u32;
        leaf += u32::from(leaf.is_multiple_of(INTERIOR));
        let moment = match self.random.percent(50) {
            true => Moment::Txid(None, txid(at)),
            false => Moment::At(Timestamp::from_micros(time(at).micros() + 1)),
        };
        let before = self.counts();
        let lists = self.store.counts(Verb::List).calls;
        let cache = Arc::new(BlockCache::new(64 << 20));
        let replica = Replica::new(self.store.clone(), cache);
        let point = replica.locate(moment, None).await.unwrap();
        assert_eq!(point.txid.get(), at);
        let database = replica.open(&point).await.unwrap();
        for page in [1, interior, leaf] {
            let offset = u64::from(page - 1) * PAGE_BYTES as u64;
            let ahead = ReadAhead::default();
            let read = database.read(offset, PAGE_BYTES, &ahead).await.unwrap();
            assert!(
                read[..] == content(page, self.version(page, at)),
                "page {page}"
            );
        }
        assert_eq!(self.store.counts(Verb::List).calls - lists, 1);
        let after = self.counts();
        (after.0 - before.0, after.1 - before.1)
    }

    fn counts(&self) -> (u64, u64) {
        let counts = self.store.counts(Verb::GetRange);
        (counts.calls, counts.bytes)
    }
}

/// Requests and bytes: the median, the 95th of a hundred, and the most.
async fn measured(lean: &mut Lean) -> [(u64, u64); 3] {
    let mut requests = Vec::new();
    let mut bytes = Vec::new();
    for _ in 0..60 {
        let (calls, read) = lean.query().await;
        requests.push(calls);
        bytes.push(read);
    }
    requests.sort_unstable();
    bytes.sort_unstable();
    [30, 57, 59].map(|at| (requests[at], bytes[at]))
}

#[tokio::test]
async fn a_point_query_at_any_moment_costs_few_requests_however_long_the_history() {
    for with_interior in [false, true] {
        let mut lean = Lean::new().await;
        for intervals in [3, 27] {
            for _ in 0..intervals {
                for (level, count) in [2, 1, 1].into_iter().zip(MERGED) {
                    lean.merged(level, count).await;
                }
                lean.snapshot(with_interior).await;
            }
            let found = measured(&mut lean).await;
            println!("{intervals} more, interior {with_interior}: {found:?}");
            let [(median, bytes), (most, most_bytes), _] = found;
            assert!(median <= 8 && bytes <= 5 << 19, "{found:?}");
            assert!(most <= 10 && most_bytes <= 4 << 20, "{found:?}");
        }
    }
}
