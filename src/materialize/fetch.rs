//! From the store into the cache: blocks, block tables, map leaves.
//!
//! Readers that need the same thing share one fetch, which runs in a task of its own: a reader that
//! gives up strands nobody. What lies close together in an object is read with one ranged GET.
//! Nothing enters the cache, or reaches a reader, before its checksum was verified.

use crate::error::{Error, Result};
use crate::format::container::{BlockRef, Kind, SectionKind, SectionRef};
use crate::format::ids::{ObjectId, PageSize, Pgno};
use crate::format::interior::decode_interior;
use crate::format::key::{Key, ObjectKey};
use crate::format::segment::SegmentIndex;
use crate::format::snapshot::{Leaf, LeafRef, SnapshotIndex};
use crate::materialize::cache::{
    BlockCache, Index, IndexPiece, ObjectNumber, Piece, Slots, Table, locked,
};
use crate::materialize::history::Object;
use crate::storage::Store;
use crate::storage::object::{StoredObject, get_exactly};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// Ranged reads on the way at a time, of one reader.
pub(crate) const PARALLEL: usize = 32;
/// Bytes that nobody asked for are read if that saves a request, up to so many.
const GAP_BYTES: u64 = 16 << 10;
/// The largest first read of an object, bytes.
const TAIL_BYTES_MAX: u64 = 512 << 10;
/// The largest ranged read of a single reader, bytes.
pub(crate) const GET_BYTES: u64 = 4 << 20;

type BlockKey = (ObjectNumber, u32);
type IndexKey = (ObjectNumber, IndexPiece);
type BlockDuty = Takeoff<BlockKey, Bytes>;
type IndexDuty = Takeoff<IndexKey, Index>;

/// Fetches for all moments of one replica.
pub(crate) struct Fetcher {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: Arc<BlockCache>,
    blocks: Arc<Flights<BlockKey, Bytes>>,
    index: Arc<Flights<IndexKey, Index>>,
}

/// A block that is needed.
#[derive(Clone, Debug)]
pub(crate) struct WantedBlock {
    pub(crate) object: Arc<Object>,
    pub(crate) number: u32,
    pub(crate) block: BlockRef,
}

impl Fetcher {
    pub(crate) fn new(store: Arc<dyn Store>, cache: Arc<BlockCache>) -> Self {
        Self {
            store,
            cache,
            blocks: Arc::default(),
            index: Arc::default(),
        }
    }

    /// Blocks, inflated, in the order asked for, in ranged reads of up to `get_bytes`.
    pub(crate) async fn blocks(
        self: &Arc<Self>,
        wanted: &[WantedBlock],
        page_size: PageSize,
        get_bytes: u64,
    ) -> Result<Vec<Bytes>> {
        let mut seats = Vec::with_capacity(wanted.len());
        let mut requests = Vec::new();
        for WantedBlock {
            object,
            number,
            block,
        } in wanted
        {
            let cached = || self.cache.get(object.number, Piece::Block(*number));
            let (seat, takeoff) = self.blocks.board((object.number, *number), cached);
            seats.push(seat);
            requests.extend(takeoff.map(|takeoff| Request {
                object: Arc::clone(object),
                offset: block.offset,
                length: u64::from(block.length),
                then: (takeoff, *block),
            }));
        }
        for group in coalesce(requests, get_bytes) {
            let fetcher = Arc::clone(self);
            tokio::spawn(async move { fetcher.land_blocks(group, page_size).await });
        }
        let mut blocks = Vec::with_capacity(seats.len());
        for seat in seats {
            blocks.push(seat.landed().await?);
        }
        Ok(blocks)
    }

    async fn land_blocks(&self, group: Group<(BlockDuty, BlockRef)>, page_size: PageSize) {
        let read = self.read_group(&group).await;
        for (takeoff, block) in group.members {
            let opened = read.as_ref().map_err(copy).and_then(|bytes| {
                let stored = within(bytes, block.offset - group.offset, block.length);
                let pages = block
                    .open(stored, page_size)
                    .map_err(|e| self.named(e, &group.object, block.offset))?;
                Ok(Bytes::from(pages))
            });
            if let Ok(bytes) = &opened {
                let (object, number) = *takeoff.key();
                self.cache.put(object, Piece::Block(number), bytes.clone());
            }
            takeoff.land(opened);
        }
    }

    async fn read_group<T>(&self, group: &Group<T>) -> Result<Bytes> {
        let (key, length) = (&group.object.key, group.length);
        get_exactly(&*self.store, key, group.offset, length).await
    }

    fn named(&self, error: Error, object: &Object, offset: u64) -> Error {
        let location = self.store.location();
        error.context(format!("read {location}/{}, offset {offset}", object.key))
    }

    /// The block table of an object, and what lies in its slots.
    async fn table(self: &Arc<Self>, object: &Arc<Object>) -> Result<Arc<Table>> {
        let cached = || self.cache.table(object.number).map(Index::Table);
        let key = (object.number, IndexPiece::Table);
        let (seat, takeoff) = self.index.board(key, cached);
        if let Some(takeoff) = takeoff {
            let (fetcher, object) = (Arc::clone(self), Arc::clone(object));
            tokio::spawn(async move {
                let read = fetcher.read_table(&object).await.map(Arc::new);
                let read = read.map(Index::Table);
                if let Ok(index) = &read {
                    fetcher
                        .cache
                        .put_index(object.number, IndexPiece::Table, index.clone());
                }
                takeoff.land(read);
            });
        }
        match seat.landed().await? {
            Index::Table(table) => Ok(table),
            Index::Leaf(_) => unreachable!("tables alone land under this key"),
        }
    }

    /// The block tables of several objects, in the order asked for.
    pub(crate) async fn tables(
        self: &Arc<Self>,
        objects: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Table>>> {
        let table = |object: Arc<Object>| {
            let fetcher = Arc::clone(self);
            async move { fetcher.table(&object).await }
        };
        let tables = futures_util::stream::iter(objects).map(table);
        tables.buffered(PARALLEL).try_collect().await
    }

    async fn read_table(&self, object: &Object) -> Result<Table> {
        let stored = self.open(object).await?;
        if stored.footer.header.kind == Kind::Segment {
            let index = self.segment_index(&stored).await?;
            return Ok(segment_table(stored.footer.header.object_id, index));
        }
        let index = self.snapshot_index(&stored).await?;
        Ok(snapshot_table(stored.footer.header.object_id, index))
    }

    /// Reads the footer of an object, and mostly its index with it.
    pub(crate) async fn open(&self, object: &Object) -> Result<StoredObject> {
        let tail = tail_bytes(&object.key, object.size);
        StoredObject::open_tail(&*self.store, &object.key, object.size, tail).await
    }

    /// Reads the index of a segment.
    pub(crate) async fn segment_index(&self, stored: &StoredObject) -> Result<SegmentIndex> {
        let kinds = SegmentIndex::SECTIONS;
        let [blocks, versions, timeline] = stored.sections(&*self.store, kinds).await?;
        let present = |section: Option<Vec<u8>>, kind: SectionKind| {
            section.ok_or_else(|| {
                let location = self.store.location();
                Error::corrupt(format!("{location}/{} has no section {kind:?}", stored.key))
            })
        };
        let blocks = present(blocks, kinds[0])?;
        let versions = present(versions, kinds[1])?;
        let timeline = present(timeline, kinds[2])?;
        SegmentIndex::decode(&stored.footer, [&blocks, &versions, &timeline])
            .map_err(|e| e.context(format!("read {}/{}", self.store.location(), stored.key)))
    }

    /// Reads the index of a snapshot or a part.
    pub(crate) async fn snapshot_index(&self, stored: &StoredObject) -> Result<SnapshotIndex> {
        let kinds = SnapshotIndex::SECTIONS;
        let sections = stored.sections(&*self.store, kinds).await?;
        SnapshotIndex::decode(&stored.footer, sections.each_ref().map(Option::as_deref))
            .map_err(|e| e.context(format!("read {}/{}", self.store.location(), stored.key)))
    }

    /// The interior pages that a snapshot carries once more.
    pub(crate) async fn interior(
        &self,
        object: &Object,
        section: &SectionRef,
        page_size: PageSize,
    ) -> Result<Vec<(Pgno, Vec<u8>)>> {
        let (offset, length) = (section.offset, section.length);
        let stored = get_exactly(&*self.store, &object.key, offset, length).await?;
        let pages = section
            .open(&stored)
            .and_then(|raw| decode_interior(&raw, page_size.bytes()));
        pages.map_err(|e| self.named(e, object, offset))
    }

    /// Leaves of page maps, into the cache; returned in the order asked for.
    pub(crate) async fn leaves(
        self: &Arc<Self>,
        wanted: &[(Arc<Object>, LeafRef)],
    ) -> Result<Vec<Arc<Leaf>>> {
        let mut seats = Vec::with_capacity(wanted.len());
        let mut requests = Vec::new();
        for (object, leaf) in wanted {
            let cached = || self.cache.leaf(object.number, leaf.offset).map(Index::Leaf);
            let key = (object.number, IndexPiece::Leaf(leaf.offset));
            let (seat, takeoff) = self.index.board(key, cached);
            seats.push(seat);
            requests.extend(takeoff.map(|takeoff| Request {
                object: Arc::clone(object),
                offset: leaf.offset,
                length: u64::from(leaf.length),
                then: (takeoff, *leaf),
            }));
        }
        for group in coalesce(requests, GET_BYTES) {
            let fetcher = Arc::clone(self);
            tokio::spawn(async move { fetcher.land_leaves(group).await });
        }
        let mut leaves = Vec::with_capacity(seats.len());
        for seat in seats {
            match seat.landed().await? {
                Index::Leaf(leaf) => leaves.push(leaf),
                Index::Table(_) => unreachable!("leaves alone land under this key"),
            }
        }
        Ok(leaves)
    }

    async fn land_leaves(&self, group: Group<(IndexDuty, LeafRef)>) {
        let read = self.read_group(&group).await;
        for (takeoff, leaf) in group.members {
            let opened = read.as_ref().map_err(copy).and_then(|bytes| {
                let stored = within(bytes, leaf.offset - group.offset, leaf.length);
                let opened = leaf
                    .open(stored)
                    .map_err(|e| self.named(e, &group.object, leaf.offset))?;
                Ok(Index::Leaf(Arc::new(opened)))
            });
            if let Ok(index) = &opened {
                let (object, piece) = *takeoff.key();
                self.cache.put_index(object, piece, index.clone());
            }
            takeoff.land(opened);
        }
    }
}

/// How much of the end of an object is read first, bytes: what its footer and its index take, as a
/// rule. A block table is about 1/2,600 of the pages' stored bytes, the index of a segment 1/45;
/// and a later snapshot has many leaves for its size.
fn tail_bytes(key: &str, size: u64) -> u64 {
    let (part, least) = match Key::parse(key).map(|key| key.object) {
        Some(ObjectKey::Merged { .. }) => (size / 40, 64 << 10),
        Some(ObjectKey::Snapshot { .. }) => (size / 2048, 256 << 10),
        _ => (size / 2048, 64 << 10),
    };
    part.clamp(least, TAIL_BYTES_MAX)
}

/// What the cache keeps of a segment's index.
pub(crate) fn segment_table(id: ObjectId, index: SegmentIndex) -> Table {
    Table {
        id,
        blocks: index.blocks,
        slots: Slots::Versions(index.versions),
    }
}

/// What the cache keeps of the index of a snapshot or a part.
pub(crate) fn snapshot_table(id: ObjectId, index: SnapshotIndex) -> Table {
    let runs = index.stored.iter();
    Table {
        id,
        blocks: index.blocks,
        slots: Slots::Pages(runs.map(|r| (r.first.get(), r.slot, r.count)).collect()),
    }
}

/// The same error for another reader that waited for the same thing.
fn copy(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string())
}

/// Bytes of an object that are needed, and what to do with them.
struct Request<T> {
    object: Arc<Object>,
    offset: u64,
    length: u64,
    then: T,
}

fn within(bytes: &[u8], offset: u64, length: u32) -> &[u8] {
    &bytes[offset as usize..][..length as usize]
}

/// Requests that one ranged read answers.
struct Group<T> {
    object: Arc<Object>,
    offset: u64,
    length: u64,
    members: Vec<T>,
}

/// Puts requests together that lie close to each other in one object, up to `limit` bytes.
fn coalesce<T>(mut requests: Vec<Request<T>>, limit: u64) -> Vec<Group<T>> {
    requests.sort_by_key(|request| (request.object.number, request.offset));
    let mut groups: Vec<Group<T>> = Vec::new();
    for request in requests {
        let end = request.offset + request.length;
        match groups.last_mut() {
            Some(group)
                if group.object.number == request.object.number
                    && request.offset <= group.offset + group.length + GAP_BYTES
                    && end - group.offset <= limit =>
            {
                group.length = group.length.max(end - group.offset);
                group.members.push(request.then);
            }
            _ => groups.push(Group {
                object: request.object,
                offset: request.offset,
                length: request.length,
                members: vec![request.then],
            }),
        }
    }
    groups
}

type Landing<V> = Option<Result<V, Error>>;

/// Fetches on their way, by what they bring.
struct Flights<K, V> {
    flying: Mutex<HashMap<K, watch::Receiver<Landing<V>>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self {
            flying: Mutex::new(HashMap::new()),
        }
    }
}

/// A reader's place on a flight.
enum Seat<V> {
    Landed(V),
    Flying(watch::Receiver<Landing<V>>),
}

/// The duty to fetch something and to land it for all that wait. Dropped without that (a panic, the
/// end of the runtime), those who wait get an error.
struct Takeoff<K: Hash + Eq, V> {
    flights: Arc<Flights<K, V>>,
    key: K,
    sender: watch::Sender<Landing<V>>,
}

impl<K: Hash + Eq + Copy, V: Clone> Flights<K, V> {
    /// A seat, and if nobody fetches this yet the duty to do it. `cached` is looked up under the
    /// lock, since a flight enters the cache before it leaves the list.
    fn board(
        self: &Arc<Self>,
        key: K,
        cached: impl FnOnce() -> Option<V>,
    ) -> (Seat<V>, Option<Takeoff<K, V>>) {
        let mut flying = locked(&self.flying);
        match flying.entry(key) {
            Entry::Occupied(flight) => (Seat::Flying(flight.get().clone()), None),
            Entry::Vacant(slot) => {
                if let Some(value) = cached() {
                    return (Seat::Landed(value), None);
                }
                let (sender, receiver) = watch::channel(None);
                slot.insert(receiver.clone());
                let takeoff = Takeoff {
                    flights: Arc::clone(self),
                    key,
                    sender,
                };
                (Seat::Flying(receiver), Some(takeoff))
            }
        }
    }
}

impl<K: Hash + Eq, V> Takeoff<K, V> {
    fn key(&self) -> &K {
        &self.key
    }

    fn land(self, result: Result<V>) {
        self.sender.send_replace(Some(result));
    }
}

impl<K: Hash + Eq, V> Drop for Takeoff<K, V> {
    fn drop(&mut self) {
        locked(&self.flights.flying).remove(&self.key);
    }
}

impl<V: Clone> Seat<V> {
    async fn landed(self) -> Result<V> {
        let mut receiver = match self {
            Self::Landed(value) => return Ok(value),
            Self::Flying(receiver) => receiver,
        };
        match receiver.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(value))) => Ok(value.clone()),
            Ok(Some(Err(error))) => Err(copy(error)),
            Ok(None) | Err(_) => Err(Error::unavailable("a fetch was stopped before it ended")),
        }
    }
}

#[cfg(test)]
mod tests;
