//! The LRU page cache: verified, inflated blocks, keyed by where they lie (object, block).
//!
//! Owns every byte that reading keeps in memory for later, but for timelines and the overlays of
//! open moments: blocks and single pages on one side; block tables, version lists and map leaves on
//! the other, so that a scan of pages cannot push out what finds them. Never holds a byte that was
//! not verified, never waits, never fetches.
//!
//! Objects go by a number that this cache hands out, one for each key of each replica, and not by
//! the id that their headers claim: two replicas, or one with a damaged header, could share an id.

use crate::format::container::BlockTable;
use crate::format::ids::{ObjectId, Pgno, Txid};
use crate::format::snapshot::Leaf;
use crate::materialize::disk::DiskCache;
use crate::materialize::hydrate::{HydrateOptions, Hydrator};
use bytes::Bytes;
use lru::LruCache;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Semaphore;

/// What an entry costs beside its value, in bytes: key, links, table slot, allocation.
const ENTRY_BYTES: u64 = 128;
/// Locks of pages, and of what finds them, unless each had less than so many bytes: then one lock
/// serves all. What finds the pages of one object may take some MB, and is kept whole or not at
/// all.
const SHARDS: u64 = 16;
const PIECES_SHARD_BYTES: u64 = 1 << 20;
const INDEX_SHARD_BYTES: u64 = 16 << 20;
/// The grain in which the memory of reading ahead is counted, bytes.
const AHEAD_GRAIN: u64 = 64 << 10;

/// An object of some replica; unique in a process and never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectNumber(u64);

/// A thing in an object that is cached whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Piece {
    /// A block, by its number.
    Block(u32),
    /// One page, by its slot: an interior page that came ahead of its block.
    Page(u32),
    /// One page of the database, by its number, as the map of this snapshot has it: an interior
    /// page that came ahead of the leaf that says where it lies.
    Interior(u32),
}

/// Where an entry of an object's index lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum IndexPiece {
    /// The block table and, of a segment, the versions.
    Table,
    /// The leaf of a page map at this offset.
    Leaf(u64),
}

/// What finds pages.
#[derive(Clone, Debug)]
pub(crate) enum Index {
    /// Of one object.
    Table(Arc<Table>),
    /// Of 4,096 pages of a map.
    Leaf(Arc<Leaf>),
}

/// What finds the pages of one object.
#[derive(Debug)]
pub(crate) struct Table {
    /// What the object's header says.
    pub(crate) id: ObjectId,
    pub(crate) blocks: BlockTable,
    /// What lies in the slots: of segments every version, of snapshots and parts the stored pages,
    /// which have no txid of their own.
    pub(crate) slots: Slots,
}

/// What lies in the slots of an object, in slot order.
#[derive(Debug)]
pub(crate) enum Slots {
    /// Of a segment.
    Versions(Vec<(Pgno, Txid)>),
    /// Of a snapshot or a part: runs as (first page, first slot, pages).
    Pages(Vec<(u32, u32, u32)>),
}

/// A byte-bounded cache of blocks, shared by all replicas and moments of a process.
pub struct BlockCache {
    pieces: Shards<(ObjectNumber, Piece), Bytes>,
    index: Shards<(ObjectNumber, IndexPiece), Index>,
    objects: AtomicU64,
    ahead: Arc<Semaphore>,
    disk: Option<(Arc<DiskCache>, Hydrator)>,
    capacity: u64,
}

impl BlockCache {
    /// A cache for up to `capacity` bytes of inflated pages and of what finds them.
    pub fn new(capacity: u64) -> Self {
        Self::with(capacity, None)
    }

    /// The same, and beneath it what is kept on the disk, where moments may be fetched whole.
    pub fn over(disk: Arc<DiskCache>, hydrate: HydrateOptions, capacity: u64) -> Self {
        Self::with(capacity, Some((disk, Hydrator::new(hydrate))))
    }

    fn with(capacity: u64, disk: Option<(Arc<DiskCache>, Hydrator)>) -> Self {
        let grains = (capacity / 4 / AHEAD_GRAIN).min(u64::from(u32::MAX)) as usize;
        Self {
            pieces: Shards::new(capacity - capacity / 4, PIECES_SHARD_BYTES),
            index: Shards::new(capacity / 4, INDEX_SHARD_BYTES),
            objects: AtomicU64::new(0),
            ahead: Arc::new(Semaphore::new(grains)),
            disk,
            capacity,
        }
    }

    /// What is kept on the disk.
    pub(crate) fn disk(&self) -> Option<&Arc<DiskCache>> {
        self.disk.as_ref().map(|(disk, _)| disk)
    }

    /// Who fetches moments whole, if they are kept on the disk.
    pub(crate) fn hydrator(&self) -> Option<&Hydrator> {
        self.disk.as_ref().map(|(_, hydrator)| hydrator)
    }

    /// Bytes held at the moment.
    pub fn bytes(&self) -> u64 {
        self.pieces.bytes() + self.index.bytes()
    }

    /// Bytes at most.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// A number for an object that was not seen before.
    pub(crate) fn number_object(&self) -> ObjectNumber {
        ObjectNumber(self.objects.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn get(&self, object: ObjectNumber, piece: Piece) -> Option<Bytes> {
        self.pieces.get(&(object, piece))
    }

    pub(crate) fn put(&self, object: ObjectNumber, piece: Piece, bytes: Bytes) {
        let weight = bytes.len() as u64;
        self.pieces.put((object, piece), bytes, weight);
    }

    pub(crate) fn table(&self, object: ObjectNumber) -> Option<Arc<Table>> {
        match self.index.get(&(object, IndexPiece::Table))? {
            Index::Table(table) => Some(table),
            Index::Leaf(_) => None,
        }
    }

    pub(crate) fn leaf(&self, object: ObjectNumber, offset: u64) -> Option<Arc<Leaf>> {
        match self.index.get(&(object, IndexPiece::Leaf(offset)))? {
            Index::Leaf(leaf) => Some(leaf),
            Index::Table(_) => None,
        }
    }

    pub(crate) fn put_index(&self, object: ObjectNumber, piece: IndexPiece, index: Index) {
        let weight = index.weight();
        self.index.put((object, piece), index, weight);
    }

    /// True if so many versions of pages can be kept without anything being dropped for them.
    pub(crate) fn has_room_for_versions(&self, versions: u64) -> bool {
        let bytes = versions.saturating_mul(size_of::<(Pgno, Txid)>() as u64);
        self.index.bytes().saturating_add(bytes) <= self.capacity / 4
    }

    /// Room for `bytes` of reading ahead, of a quarter of the cache; `None` if it is taken. Given
    /// back when dropped.
    pub(crate) fn room_ahead(&self, bytes: u64) -> Option<tokio::sync::OwnedSemaphorePermit> {
        let grains = u32::try_from(bytes.div_ceil(AHEAD_GRAIN)).ok()?;
        // A failure only says that all room is taken: nothing is read ahead then.
        Arc::clone(&self.ahead).try_acquire_many_owned(grains).ok()
    }
}

impl Index {
    fn weight(&self) -> u64 {
        let bytes = match self {
            Self::Table(table) => {
                std::mem::size_of_val(&table.blocks.blocks[..])
                    + match &table.slots {
                        Slots::Versions(versions) => std::mem::size_of_val(&versions[..]),
                        Slots::Pages(runs) => std::mem::size_of_val(&runs[..]),
                    }
            }
            Self::Leaf(leaf) => std::mem::size_of_val(&leaf.runs[..]),
        };
        bytes as u64
    }
}

/// An LRU map bounded by the weight of its values, in one shard or sixteen.
struct Shards<K, V> {
    shards: Vec<Mutex<Shard<K, V>>>,
}

struct Shard<K, V> {
    entries: LruCache<K, (V, u64)>,
    bytes: u64,
    capacity: u64,
}

impl<K: Hash + Eq, V: Clone> Shards<K, V> {
    fn new(capacity: u64, shard_bytes: u64) -> Self {
        let count = match capacity < SHARDS * shard_bytes {
            true => 1,
            false => SHARDS,
        };
        let shard = || Shard {
            entries: LruCache::unbounded(),
            bytes: 0,
            capacity: capacity / count,
        };
        Self {
            shards: (0..count).map(|_| Mutex::new(shard())).collect(),
        }
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K, V>> {
        let index = if self.shards.len() == 1 {
            0
        } else {
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            hasher.finish() as usize % self.shards.len()
        };
        locked(&self.shards[index])
    }

    fn get(&self, key: &K) -> Option<V> {
        self.shard(key).entries.get(key).map(|(v, _)| v.clone())
    }

    fn put(&self, key: K, value: V, weight: u64) {
        let weight = weight + ENTRY_BYTES;
        let mut shard = self.shard(&key);
        if weight > shard.capacity {
            return;
        }
        shard.bytes += weight;
        if let Some((_, replaced)) = shard.entries.put(key, (value, weight)) {
            shard.bytes -= replaced;
        }
        while shard.bytes > shard.capacity {
            let (_, (_, evicted)) = shard.entries.pop_lru().expect("weights add up to bytes");
            shard.bytes -= evicted;
        }
    }

    fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| locked(shard).bytes).sum()
    }
}

/// A panic elsewhere leaves these maps whole: no code between their updates can panic.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(size: usize) -> Bytes {
        Bytes::from(vec![7; size])
    }

    #[test]
    fn what_was_used_last_stays_within_the_bytes() {
        let cache = BlockCache::new(4 * (1000 + ENTRY_BYTES));
        let object = cache.number_object();
        for number in 0..3 {
            cache.put(object, Piece::Block(number), block(1000));
        }
        assert!(cache.get(object, Piece::Block(0)).is_some());
        cache.put(object, Piece::Block(3), block(1000));
        assert!(cache.get(object, Piece::Block(0)).is_some());
        assert!(cache.get(object, Piece::Block(1)).is_none());
        assert!(cache.bytes() <= cache.capacity());
    }

    #[test]
    fn the_same_entry_put_twice_counts_once() {
        let cache = BlockCache::new(1 << 20);
        let object = cache.number_object();
        cache.put(object, Piece::Block(1), block(1000));
        let once = cache.bytes();
        cache.put(object, Piece::Block(1), block(1000));
        assert_eq!(cache.bytes(), once);
    }

    #[test]
    fn what_exceeds_the_cache_is_not_kept_and_pushes_nothing_out() {
        let cache = BlockCache::new(4000);
        let object = cache.number_object();
        cache.put(object, Piece::Block(0), block(100));
        cache.put(object, Piece::Block(1), block(5000));
        assert!(cache.get(object, Piece::Block(0)).is_some());
        assert!(cache.get(object, Piece::Block(1)).is_none());
    }

    #[test]
    fn objects_and_pages_and_blocks_do_not_mix() {
        let cache = BlockCache::new(64 << 20);
        let (one, two) = (cache.number_object(), cache.number_object());
        cache.put(one, Piece::Block(5), block(1));
        assert!(cache.get(two, Piece::Block(5)).is_none());
        assert!(cache.get(one, Piece::Page(5)).is_none());
        assert_eq!(cache.get(one, Piece::Block(5)), Some(block(1)));
    }

    #[test]
    fn a_scan_of_pages_pushes_out_no_index() {
        let cache = BlockCache::new(1 << 20);
        let object = cache.number_object();
        let leaf = Arc::new(Leaf::default());
        cache.put_index(object, IndexPiece::Leaf(9), Index::Leaf(leaf));
        for number in 0..1000 {
            cache.put(object, Piece::Block(number), block(4096));
        }
        assert!(cache.leaf(object, 9).is_some());
        assert!(cache.table(object).is_none());
    }

    #[test]
    fn what_finds_the_pages_of_a_large_object_is_kept() {
        let cache = BlockCache::new(64 << 20);
        let object = cache.number_object();
        let versions = vec![(Pgno::FIRST, Txid::FIRST); 200_000];
        let table = Table {
            id: ObjectId([1; 8]),
            blocks: BlockTable::default(),
            slots: Slots::Versions(versions),
        };
        let index = Index::Table(Arc::new(table));
        cache.put_index(object, IndexPiece::Table, index);
        assert!(cache.table(object).is_some());
    }

    #[test]
    fn reading_ahead_gets_a_quarter_of_the_cache_and_gives_it_back() {
        let cache = BlockCache::new(4 << 20);
        let room = cache.room_ahead(1 << 20);
        assert!(room.is_some());
        assert!(cache.room_ahead(1).is_none());
        drop(room);
        assert!(cache.room_ahead(1).is_some());
    }
}
