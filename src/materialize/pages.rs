//! The pages of one moment.
//!
//! A page is the newest version that the segments have of it, else what the snapshot's map names,
//! else zeros. A `Layout` says where that lies; a read looks for the bytes in the cache, fetches
//! what is missing (leaf, then table, then block: at most three rounds, mostly one or none), and
//! never waits while it holds a lock. Bytes come from here exactly as they were committed: whoever
//! serves them to SQLite in another journal mode changes them himself.

use crate::error::{Error, ErrorKind, Result};
use crate::format::ids::{ObjectId, PageSize, Pgno, RestorePoint, Txid};
use crate::format::snapshot::{LEAF_PAGES, Leaf, LeafRef};
pub use crate::materialize::ahead::ReadAhead;
use crate::materialize::cache::{BlockCache, ObjectNumber, Piece, Table, locked};
use crate::materialize::fetch::{GET_BYTES, WantedBlock};
use crate::materialize::history::{Object, Snapshot};
use crate::materialize::hydrate::Misses;
use crate::materialize::overlay::Overlay;
use crate::materialize::replica::{PLANS, Replica};
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Reading ahead splits what it fetches into about so many ranged reads.
const AHEAD_READS: u64 = 8;
/// The smallest ranged read of reading ahead, where the layout allows, bytes.
const AHEAD_BYTES_MIN: u64 = 1 << 20;

static ZEROS: [u8; 65536] = [0; 65536];

/// A database as it was at one restore point, byte for byte.
pub struct Database {
    replica: Arc<Replica>,
    point: RestorePoint,
    page_size: PageSize,
    /// Planned anew when objects vanish.
    layout: RwLock<Arc<Layout>>,
    misses: Mutex<Misses>,
    /// Reading ahead starts from threads that are none of the runtime's.
    runtime: tokio::runtime::Handle,
}

/// Where the pages of one moment lie.
pub(crate) struct Layout {
    pub(crate) base: Arc<Snapshot>,
    pub(crate) overlay: Arc<Overlay<Arc<Object>>>,
    /// The moment.
    pub(crate) through: Txid,
    pub(crate) page_size: PageSize,
    /// Database size.
    pub(crate) pages: u32,
}

/// Where a page lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// Nowhere: it is all zeros.
    Zeros,
    /// In a segment.
    Segment(&'a Arc<Object>, u32),
    /// In a snapshot or a part, which the map knows by this id.
    Home(&'a Arc<Object>, ObjectId, u32),
}

/// What must be known first.
pub(crate) enum Above<'a> {
    /// Nothing.
    Found(Place<'a>),
    /// The map decides.
    Map,
}

impl Layout {
    /// The leaf that covers a page.
    pub(crate) fn leaf_index(page: Pgno) -> usize {
        ((page.get() - 1) / LEAF_PAGES) as usize
    }

    /// Where a page lies, as far as the map does not decide.
    pub(crate) fn above(&self, page: Pgno) -> Above<'_> {
        // SQLite stores nothing in the lock-byte page (fileformat2, "The Lock-Byte Page").
        if page.get() > self.pages || page.get() == self.page_size.lock_byte_page() {
            return Above::Found(Place::Zeros);
        }
        let since = self.base.since;
        let newest = self.overlay.newest(page, since, self.through);
        let at = newest.as_ref().map_or(since, |found| found.txid);
        if self.overlay.cut_off(page, at, self.through) {
            return Above::Found(Place::Zeros);
        }
        match newest {
            Some(found) => Above::Found(Place::Segment(found.object, found.slot)),
            None => Above::Map,
        }
    }

    /// The stored leaf that decides about a page; none: it is all zeros.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn leaf_ref(&self, page: Pgno) -> Result<Option<(&Arc<Object>, LeafRef)>> {
        let leaf = self.base.root.leaves.get(Self::leaf_index(page));
        match leaf.copied().flatten() {
            Some(leaf) => Ok(Some((self.base.home(leaf.object)?, leaf))),
            None => Ok(None),
        }
    }

    /// Where a page lies that the map decides about.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn below(&self, leaf: &Leaf, page: Pgno) -> Result<Place<'_>> {
        match leaf.locate(page) {
            Some((id, slot)) => Ok(Place::Home(self.base.home(id)?, id, slot)),
            None => Ok(Place::Zeros),
        }
    }
}

/// Checks that an object is the one that a map means.
///
/// # Errors
/// `Corrupt`.
pub(crate) fn confirm(table: &Table, object: &Object, id: ObjectId) -> Result<()> {
    match table.id {
        seen if seen != id => Err(Error::corrupt(format!(
            "{}: it is object {seen}, expected {id}",
            object.key
        ))),
        _ => Ok(()),
    }
}

/// The bytes of a page, or where they come from.
enum Spot {
    Zeros,
    Page(Bytes),
    /// The page with this index in a block.
    Block(Bytes, usize),
}

/// What is not in memory.
enum Miss {
    Leaf(Arc<Object>, LeafRef),
    Table(Arc<Object>),
    Block(WantedBlock),
}

/// What a read holds while it goes on, so that it comes to its end however small the cache is.
#[derive(Default)]
struct Held {
    leaves: HashMap<(ObjectNumber, u64), Arc<Leaf>>,
    tables: HashMap<ObjectNumber, Arc<Table>>,
    blocks: HashMap<(ObjectNumber, u32), Bytes>,
}

impl Held {
    fn leaf(&mut self, cache: &BlockCache, object: &Object, leaf: &LeafRef) -> Option<Arc<Leaf>> {
        let key = (object.number, leaf.offset);
        if let Some(leaf) = self.leaves.get(&key) {
            return Some(Arc::clone(leaf));
        }
        let leaf = cache.leaf(key.0, key.1)?;
        self.leaves.insert(key, Arc::clone(&leaf));
        Some(leaf)
    }

    fn table(&mut self, cache: &BlockCache, object: &Object) -> Option<Arc<Table>> {
        if let Some(table) = self.tables.get(&object.number) {
            return Some(Arc::clone(table));
        }
        let table = cache.table(object.number)?;
        self.tables.insert(object.number, Arc::clone(&table));
        Some(table)
    }

    fn block(&mut self, cache: &BlockCache, object: &Object, block: u32) -> Option<Bytes> {
        let key = (object.number, block);
        if let Some(bytes) = self.blocks.get(&key) {
            return Some(bytes.clone());
        }
        let bytes = cache.get(object.number, Piece::Block(block))?;
        self.blocks.insert(key, bytes.clone());
        Some(bytes)
    }
}

impl Database {
    pub(crate) fn new(replica: Arc<Replica>, point: RestorePoint, layout: Arc<Layout>) -> Self {
        Self {
            replica,
            point,
            page_size: layout.page_size,
            layout: RwLock::new(layout),
            misses: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// The moment.
    pub fn point(&self) -> &RestorePoint {
        &self.point
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        u64::from(self.point.pages) * u64::from(self.page_size.get())
    }

    /// Bytes in a page.
    pub fn page_size(&self) -> u32 {
        self.page_size.get()
    }

    pub(crate) fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// How its reads miss.
    pub(crate) fn misses(&self) -> MutexGuard<'_, Misses> {
        locked(&self.misses)
    }

    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    pub(crate) fn layout(&self) -> Arc<Layout> {
        Arc::clone(&self.layout.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The bytes from `offset`, cut at the end of the database, if all of them are in memory.
    /// Never waits; `ahead` learns of the read, so that what follows it is fetched in time.
    pub fn read_cached(
        self: &Arc<Self>,
        offset: u64,
        length: usize,
        ahead: &ReadAhead,
    ) -> Option<Bytes> {
        let Some((range, pages)) = self.range(offset, length) else {
            return Some(Bytes::new());
        };
        let layout = self.layout();
        let mut held = Held::default();
        let mut spots = Vec::with_capacity(pages.clone().count());
        for number in pages {
            // What is damaged is found again, and named, by the read that follows.
            match self.spot(&layout, &mut held, number) {
                Ok(Ok(spot)) => spots.push(spot),
                Ok(Err(_)) | Err(_) => return None,
            }
        }
        self.note(&range, ahead);
        Some(self.assemble(&range, spots))
    }

    /// The bytes from `offset`, cut at the end of the database, fetched where needed. Readers that
    /// need the same block share one fetch.
    ///
    /// # Errors
    /// `Unavailable`, `Corrupt`, `NotFound`; never a wrong byte.
    pub async fn read(
        self: &Arc<Self>,
        offset: u64,
        length: usize,
        ahead: &ReadAhead,
    ) -> Result<Bytes> {
        let Some((range, pages)) = self.range(offset, length) else {
            return Ok(Bytes::new());
        };
        let mut plans = 1;
        let spots = loop {
            let layout = self.layout();
            match self.spots(&layout, pages.clone()).await {
                // Retention or merging passed by: what took the object's place holds the same
                // pages.
                Err(error) if error.kind() == ErrorKind::NotFound && plans < PLANS => {
                    plans += 1;
                    self.plan_anew().await?;
                }
                spots => break spots?,
            }
        };
        self.note(&range, ahead);
        Ok(self.assemble(&range, spots))
    }

    /// Lists the replica again and plans the same moment again.
    ///
    /// # Errors
    /// `NotFound` if it is gone for good.
    pub(crate) async fn plan_anew(&self) -> Result<()> {
        self.replica.fetcher().store.doubt_listing();
        self.replica.refresh().await?;
        let layout = match self.replica.layout(&self.point).await {
            // It was whole when it was opened.
            Err(e) if self.replica.has_dropped(&self.point) => {
                return Err(Error::not_found(format!("deleted while it was open: {e}")));
            }
            layout => layout?,
        };
        *self.layout.write().unwrap_or_else(PoisonError::into_inner) = layout;
        Ok(())
    }

    /// The bytes of a read that lie within the database, and their pages; `None` if there are none.
    fn range(&self, offset: u64, length: usize) -> Option<(Range<u64>, RangeInclusive<u32>)> {
        let end = offset.saturating_add(length as u64).min(self.size());
        if offset >= end {
            return None;
        }
        Some((offset..end, self.pages_of(offset..end)))
    }

    /// The pages of a range of bytes, which is not empty and lies within the database.
    fn pages_of(&self, bytes: Range<u64>) -> RangeInclusive<u32> {
        let page_size = u64::from(self.page_size.get());
        let number = |offset: u64| {
            u32::try_from(offset / page_size + 1).expect("a database has at most 2^32 - 2 pages")
        };
        number(bytes.start)..=number(bytes.end - 1)
    }

    /// Finds a page in memory. The outer error is damage, the inner one what is not in memory.
    fn spot(&self, layout: &Layout, held: &mut Held, number: u32) -> Result<Result<Spot, Miss>> {
        let cache = &self.replica.fetcher().cache;
        let page = Pgno::new(number).expect("pages are counted from 1");
        let place = match layout.above(page) {
            Above::Found(place) => place,
            Above::Map => match layout.leaf_ref(page)? {
                None => Place::Zeros,
                Some((object, leaf)) => match held.leaf(cache, object, &leaf) {
                    Some(leaf) => layout.below(&leaf, page)?,
                    None => {
                        let number = layout.base.object.number;
                        let interior = cache.get(number, Piece::Interior(page.get()));
                        let miss = || Miss::Leaf(Arc::clone(object), leaf);
                        return Ok(interior.map(Spot::Page).ok_or_else(miss));
                    }
                },
            },
        };
        let (object, slot) = match place {
            Place::Zeros => return Ok(Ok(Spot::Zeros)),
            Place::Segment(object, slot) => (object, slot),
            Place::Home(object, _, slot) => {
                if let Some(page) = cache.get(object.number, Piece::Page(slot)) {
                    return Ok(Ok(Spot::Page(page)));
                }
                (object, slot)
            }
        };
        let Some(table) = held.table(cache, object) else {
            return Ok(Err(Miss::Table(Arc::clone(object))));
        };
        if let Place::Home(_, id, _) = place {
            confirm(&table, object, id)?;
        }
        let (block, index) = table.blocks.locate(slot).ok_or_else(|| {
            let key = &object.key;
            Error::corrupt(format!(
                "{key}: slot {slot} of page {number} lies in no block"
            ))
        })?;
        let block_number = block as u32;
        Ok(match held.block(cache, object, block_number) {
            Some(bytes) => Ok(Spot::Block(bytes, index)),
            None => Err(Miss::Block(WantedBlock {
                object: Arc::clone(object),
                number: block_number,
                block: table.blocks.blocks[block],
            })),
        })
    }

    /// Finds pages, fetching what is not in memory.
    async fn spots(
        self: &Arc<Self>,
        layout: &Layout,
        pages: RangeInclusive<u32>,
    ) -> Result<Vec<Spot>> {
        let mut held = Held::default();
        loop {
            let mut spots = Vec::with_capacity(pages.clone().count());
            let mut misses = Vec::new();
            for number in pages.clone() {
                match self.spot(layout, &mut held, number)? {
                    Ok(spot) => spots.push(spot),
                    Err(miss) => misses.push(miss),
                }
            }
            if misses.is_empty() {
                return Ok(spots);
            }
            let blocks = self.find(misses, &mut held).await?;
            let fetcher = self.replica.fetcher();
            let fetched = fetcher.blocks(&blocks, self.page_size, GET_BYTES).await;
            let (bytes, missed) = fetched?;
            if let Some(hydrator) = fetcher.cache.hydrator() {
                hydrator.missed(self, missed);
            }
            for (block, bytes) in blocks.iter().zip(bytes) {
                held.blocks
                    .insert((block.object.number, block.number), bytes);
            }
        }
    }

    /// Fetches leaves and tables; returns the blocks, each once.
    async fn find(&self, misses: Vec<Miss>, held: &mut Held) -> Result<Vec<WantedBlock>> {
        let fetcher = self.replica.fetcher();
        let mut leaves = Vec::new();
        let mut tables = Vec::new();
        let mut blocks = Vec::new();
        let mut seen = HashSet::new();
        for miss in misses {
            match miss {
                Miss::Leaf(object, leaf) if seen.insert((object.number, leaf.offset, 0)) => {
                    leaves.push((object, leaf));
                }
                Miss::Table(object) if seen.insert((object.number, 0, 1)) => tables.push(object),
                Miss::Block(block) => {
                    if seen.insert((block.object.number, u64::from(block.number), 2)) {
                        blocks.push(block);
                    }
                }
                Miss::Leaf(..) | Miss::Table(_) => {}
            }
        }
        let found = fetcher.leaves(&leaves).await?;
        for ((object, leaf), found) in leaves.iter().zip(found) {
            held.leaves.insert((object.number, leaf.offset), found);
        }
        let numbers: Vec<_> = tables
            .iter()
            .map(|object: &Arc<Object>| object.number)
            .collect();
        held.tables
            .extend(numbers.into_iter().zip(fetcher.tables(tables).await?));
        Ok(blocks)
    }

    fn assemble(&self, range: &Range<u64>, spots: Vec<Spot>) -> Bytes {
        let page_bytes = self.page_size.bytes();
        let length = (range.end - range.start) as usize;
        // Where the read begins within its first page.
        let skip = (range.start % page_bytes as u64) as usize;
        if let Some(bytes) = in_one_block(&spots, page_bytes) {
            return bytes.slice(skip..skip + length);
        }
        let mut bytes = Vec::with_capacity(spots.len() * page_bytes);
        for spot in &spots {
            match spot {
                Spot::Zeros => bytes.extend_from_slice(&ZEROS[..page_bytes]),
                Spot::Page(page) => bytes.extend_from_slice(page),
                Spot::Block(block, index) => {
                    let start = index * page_bytes;
                    bytes.extend_from_slice(&block[start..start + page_bytes]);
                }
            }
        }
        Bytes::from(bytes).slice(skip..skip + length)
    }

    /// Tells the read-ahead of a read, and starts what it asks for.
    fn note(self: &Arc<Self>, range: &Range<u64>, ahead: &ReadAhead) {
        let cache = &self.replica.fetcher().cache;
        let limit = cache.capacity() / 8;
        let length = range.end - range.start;
        let Some(wanted) = ahead.note(range.start, length, self.size(), limit) else {
            return;
        };
        let Some(room) = cache.room_ahead(wanted.end - wanted.start) else {
            return;
        };
        let database = Arc::clone(self);
        self.runtime.spawn(async move {
            // What fails here fails again, and is reported, when somebody reads it.
            database.fetch_ahead(wanted).await.unwrap_or_default();
            drop(room);
        });
    }

    async fn fetch_ahead(&self, range: Range<u64>) -> Result<()> {
        let fetcher = self.replica.fetcher();
        let blocks = self.missing(self.pages_of(range)).await?;
        let stored: u64 = blocks
            .iter()
            .map(|block| u64::from(block.block.length))
            .sum();
        let get_bytes = (stored / AHEAD_READS).clamp(AHEAD_BYTES_MIN, GET_BYTES);
        fetcher.blocks(&blocks, self.page_size, get_bytes).await?;
        Ok(())
    }

    /// The blocks of some bytes that are neither in memory nor in the disk cache, each once.
    ///
    /// # Errors
    /// As [`Database::read`].
    pub(crate) async fn missing_on_disk(&self, range: Range<u64>) -> Result<Vec<WantedBlock>> {
        let fetcher = self.replica.fetcher();
        let pages = self.pages_of(range);
        let mut seen = HashSet::new();
        let mut blocks = Vec::new();
        for first in pages.clone().step_by(LEAF_PAGES as usize) {
            let last = first.saturating_add(LEAF_PAGES - 1).min(*pages.end());
            let mut missing = self.missing(first..=last).await?;
            missing.retain(|b| !fetcher.is_kept(b) && seen.insert((b.object.number, b.number)));
            blocks.append(&mut missing);
            // There may be many pages, and readers wait.
            tokio::task::yield_now().await;
        }
        Ok(blocks)
    }

    /// The blocks of pages that are not in memory.
    async fn missing(&self, pages: RangeInclusive<u32>) -> Result<Vec<WantedBlock>> {
        let layout = self.layout();
        let mut held = Held::default();
        loop {
            let mut misses = Vec::new();
            for number in pages.clone() {
                misses.extend(self.spot(&layout, &mut held, number)?.err());
                held.blocks.clear();
            }
            let rounds = misses.iter().any(|miss| !matches!(miss, Miss::Block(_)));
            let blocks = self.find(misses, &mut held).await?;
            if !rounds {
                return Ok(blocks);
            }
        }
    }
}

/// The stretch of one block that holds all pages, in order, if there is one: then nothing needs to
/// be copied.
fn in_one_block(spots: &[Spot], page_bytes: usize) -> Option<Bytes> {
    match spots {
        [Spot::Zeros] => return Some(Bytes::from_static(&ZEROS[..page_bytes])),
        [Spot::Page(page)] => return Some(page.clone()),
        _ => {}
    }
    let Some(Spot::Block(first, start)) = spots.first() else {
        return None;
    };
    let is_next = |(order, spot): (usize, &Spot)| match spot {
        Spot::Block(block, index) => block.as_ptr() == first.as_ptr() && *index == start + order,
        Spot::Zeros | Spot::Page(_) => false,
    };
    if !spots.iter().enumerate().all(is_next) {
        return None;
    }
    let start = start * page_bytes;
    Some(first.slice(start..start + spots.len() * page_bytes))
}

#[cfg(test)]
mod tests;
