//! From the store, or from the disk cache, into the cache: blocks, block tables, map leaves.
//!
//! Readers that need the same thing share one fetch, which runs in a task of its own: a reader that
//! gives up strands nobody. What lies close together in an object is read with one ranged GET.
//! Nothing enters the cache, or reaches a reader, before its checksum was verified.

use crate::error::{Error, ErrorKind, Result};
use crate::format::container::{BlockRef, BlockTable, Footer, Kind, SectionKind, SectionRef};
use crate::format::ids::{ObjectId, PageSize, Pgno, Txid};
use crate::format::interior::decode_interior;
use crate::format::key::{Key, ObjectKey};
use crate::format::segment::{SegmentIndex, read_timeline_section};
use crate::format::snapshot::{Leaf, LeafRef, SnapshotIndex};
use crate::materialize::cache::{BlockCache, Index, IndexPiece, ObjectNumber, Piece, Slots, Table};
use crate::materialize::disk::PieceKey;
use crate::materialize::flights::{Flights, Takeoff, all_landed};
use crate::materialize::history::Object;
use crate::materialize::through::through;
use crate::materialize::timeline::{Point, Timeline, TimelineWriter};
use crate::storage::Store;
use crate::storage::object::{StoredObject, get_exactly};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use std::future::Future;
use std::sync::Arc;

/// Ranged reads on the way at a time, of one reader.
pub(crate) const PARALLEL: usize = 32;
/// Bytes that nobody asked for are read if that saves a request, up to so many.
const GAP_BYTES: u64 = 16 << 10;
/// What a transaction takes in the index of a segment, bytes: an entry of the timeline, and mostly
/// fewer than eight page versions.
const TRANSACTION_BYTES: u64 = 24;
/// The largest ranged read of a single reader, bytes.
pub(crate) const GET_BYTES: u64 = 4 << 20;
/// Pieces that are read from the disk cache one after the other.
const KEPT_AT_ONCE: usize = 32;

type BlockKey = (ObjectNumber, u32);
type IndexKey = (ObjectNumber, IndexPiece);
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

    /// Blocks, inflated, in the order asked for, in ranged reads of up to `get_bytes`; and how many
    /// of them were asked of the store for this.
    pub(crate) async fn blocks(
        self: &Arc<Self>,
        wanted: &[WantedBlock],
        page_size: PageSize,
        get_bytes: u64,
    ) -> Result<(Vec<Bytes>, usize)> {
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
                then: BlockDuty {
                    takeoff,
                    block: *block,
                    page_size,
                },
            }));
        }
        let missed = self.fetch(requests, get_bytes);
        Ok((all_landed(seats).await?, missed))
    }

    /// Starts to read what is asked for: from the disk cache what it has, the rest from the store
    /// in ranged reads of up to `get_bytes`. How many that is of the store.
    fn fetch<D: Duty>(self: &Arc<Self>, requests: Vec<Request<D>>, get_bytes: u64) -> usize {
        let kept = |request: &Request<D>| {
            let disk = self.cache.disk();
            disk.is_some_and(|disk| disk.has(request.piece()))
        };
        let (mut kept, missing): (Vec<_>, Vec<_>) = requests.into_iter().partition(kept);
        let missed = missing.len();
        for group in coalesce(missing, get_bytes) {
            let fetcher = Arc::clone(self);
            tokio::spawn(async move { fetcher.land(group).await });
        }
        while !kept.is_empty() {
            let some = kept.split_off(kept.len().saturating_sub(KEPT_AT_ONCE));
            let fetcher = Arc::clone(self);
            tokio::spawn(async move {
                for group in coalesce(fetcher.land_kept(some).await, get_bytes) {
                    fetcher.land(group).await;
                }
            });
        }
        missed
    }

    /// True if the disk cache has a block, or there is none.
    pub(crate) fn is_kept(&self, wanted: &WantedBlock) -> bool {
        let WantedBlock { object, block, .. } = wanted;
        let piece = object.identity().piece(block.offset, block.length.into());
        self.cache.disk().is_none_or(|disk| disk.has(piece))
    }

    /// Reads blocks from the store into the disk cache alone, verified.
    pub(crate) async fn keep(&self, group: Group<BlockRef>, page_size: PageSize) -> Result<()> {
        let disk = self
            .cache
            .disk()
            .filter(|disk| !disk.is_off())
            .ok_or_else(off)?;
        let (key, length) = (&group.object.key, group.length);
        let bytes = get_exactly(&*self.store, key, group.offset, length).await?;
        let mut verified = Vec::with_capacity(group.members.len());
        let mut pages = Vec::new();
        for request in &group.members {
            let stored = request.within(&bytes, group.offset);
            pages.clear();
            let opened = request.then.open_into(&stored, page_size, &mut pages);
            opened.map_err(|e| self.named(e, &request.object, request.offset))?;
            verified.push((request.piece(), stored));
        }
        match disk.put_in_turn(verified).await {
            true => Ok(()),
            false => Err(off()),
        }
    }

    /// Waits until the disk cache has written what it was given to keep.
    pub(crate) async fn kept(&self) -> Result<()> {
        match self.cache.disk() {
            Some(disk) if disk.is_written().await => Ok(()),
            _ => Err(off()),
        }
    }

    /// Reads a group from the store. What is right goes to those who wait for it, then to the disk
    /// cache, so that nobody waits for that.
    async fn land<D: Duty>(&self, group: Group<D>) {
        let (key, length) = (&group.object.key, group.length);
        let read = get_exactly(&*self.store, key, group.offset, length).await;
        let mut verified = Vec::new();
        for request in group.members {
            let opened = read.as_ref().map_err(copy).and_then(|bytes| {
                let stored = request.within(bytes, group.offset);
                let opened = request.then.open(&stored);
                let opened = opened.map_err(|e| self.named(e, &request.object, request.offset))?;
                if self.cache.disk().is_some() {
                    verified.push((request.piece(), stored));
                }
                Ok(opened)
            });
            request.then.land(&self.cache, opened);
        }
        if let Some(disk) = self.cache.disk() {
            disk.put(verified);
        }
    }

    /// Lands what the disk cache has; gives back what it does not have, or only damaged.
    async fn land_kept<D: Duty>(&self, requests: Vec<Request<D>>) -> Vec<Request<D>> {
        let Some(disk) = self.cache.disk() else {
            return requests;
        };
        let stored = disk
            .get(requests.iter().map(Request::piece).collect())
            .await;
        let mut missing = Vec::new();
        for (request, stored) in requests.into_iter().zip(stored) {
            match stored.map(|stored| request.then.open(&stored)) {
                Some(Ok(opened)) => request.then.land(&self.cache, Ok(opened)),
                Some(Err(_)) => {
                    disk.forget(request.piece());
                    missing.push(request);
                }
                None => missing.push(request),
            }
        }
        missing
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
        self.through(object, |store| async move {
            let stored = open(&*store, object, 0).await?;
            let id = stored.footer.header.object_id;
            if stored.footer.header.kind == Kind::Segment {
                return read_segment_table(&*store, &stored).await;
            }
            Ok(snapshot_table(id, snapshot_index(&*store, &stored).await?))
        })
        .await
    }

    /// Reads something of an object by way of the disk cache; `read` may run twice, and verifies
    /// what it reads.
    ///
    /// # Errors
    /// Those of `read`.
    pub(crate) async fn through<T, F>(
        &self,
        object: &Object,
        read: impl Fn(Arc<dyn Store>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        through(&self.store, self.cache.disk(), object, read).await
    }

    /// A claim, if the disk cache has it.
    pub(crate) async fn kept_claim(&self, object: &Object) -> Option<Bytes> {
        let piece = object.identity().piece(0, object.size);
        self.cache.disk()?.get(vec![piece]).await.pop()?
    }

    /// Has the disk cache forget a claim; true if it had it.
    pub(crate) fn forget_claim(&self, object: &Object) -> bool {
        let piece = object.identity().piece(0, object.size);
        let disk = self.cache.disk().filter(|disk| disk.has(piece));
        disk.map(|disk| disk.forget(piece)).is_some()
    }

    /// Has the disk cache keep a claim, unless it has it.
    pub(crate) fn keep_claim(&self, object: &Object, bytes: Vec<u8>) {
        let piece = object.identity().piece(0, object.size);
        let disk = self.cache.disk().filter(|disk| !disk.has(piece));
        if let Some(disk) = disk.filter(|_| bytes.len() as u64 == object.size) {
            disk.put(vec![(piece, bytes.into())]);
        }
    }

    /// The interior pages that a snapshot carries once more. `already`: as they are stored, if that
    /// was read.
    pub(crate) async fn interior(
        &self,
        object: &Object,
        section: &SectionRef,
        already: Option<Bytes>,
        page_size: PageSize,
    ) -> Result<Vec<(Pgno, Vec<u8>)>> {
        let (offset, length) = (section.offset, section.length);
        let open = |stored: &[u8]| {
            let raw = section.open(stored);
            let pages = raw.and_then(|raw| decode_interior(&raw, page_size.bytes()));
            pages.map_err(|e| self.named(e, object, offset))
        };
        match already {
            Some(stored) => open(&stored),
            None => {
                let read = |store: Arc<dyn Store>| async move {
                    open(&get_exactly(&*store, &object.key, offset, length).await?)
                };
                self.through(object, read).await
            }
        }
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
                then: LeafDuty {
                    takeoff,
                    leaf: *leaf,
                },
            }));
        }
        self.fetch(requests, GET_BYTES);
        let leaf = |index| match index {
            Index::Leaf(leaf) => leaf,
            Index::Table(_) => unreachable!("leaves alone land under this key"),
        };
        Ok(all_landed(seats).await?.into_iter().map(leaf).collect())
    }
}

/// Reads the footer of an object, and mostly its index with it. `before` says how many bytes before
/// that are wanted too.
pub(crate) async fn open(store: &dyn Store, object: &Object, before: u64) -> Result<StoredObject> {
    let tail = tail_bytes(&object.key, object.size) + before;
    StoredObject::open_tail(store, &object.key, object.size, tail).await
}

/// What a listing shows of a segment.
pub(crate) struct SegmentNames {
    pub(crate) timeline: Timeline,
    /// Transactions whose pages lie in a snapshot.
    pub(crate) marks: Box<[Txid]>,
    /// How many versions of pages lie in it.
    pub(crate) versions: u64,
}

/// Reads what a listing shows of a segment, and what finds its pages, many times as large: if it is
/// `wanted`, or came with the footer and there `is_room` for so many versions.
pub(crate) async fn segment_index(
    store: &dyn Store,
    stored: &StoredObject,
    wanted: bool,
    is_room: impl Fn(u64) -> bool,
) -> Result<(SegmentNames, Option<Table>)> {
    let footer = &stored.footer;
    let named = |e: Error| e.context(format!("read {}/{}", store.location(), stored.key));
    if wanted {
        let kinds = SegmentIndex::SECTIONS;
        let [blocks, versions, timeline] = needed_sections(store, stored, kinds).await?;
        let names = decode_names(footer, &blocks, &timeline).map_err(named)?;
        let table = decode_table(footer, &blocks, &versions).map_err(named)?;
        return Ok((names, Some(table)));
    }
    let kinds = [SectionKind::Blocks, SectionKind::Timeline];
    let [blocks, timeline] = needed_sections(store, stored, kinds).await?;
    let names = decode_names(footer, &blocks, &timeline).map_err(named)?;
    let versions = footer.section(SectionKind::Versions);
    let is_here = versions.is_some_and(|v| stored.read_already(v.offset, v.length).is_some());
    if !is_here || !is_room(names.versions) {
        return Ok((names, None));
    }
    let [versions] = needed_sections(store, stored, [SectionKind::Versions]).await?;
    // Damage in it takes no name away: who opens a moment that needs it finds it again.
    Ok((names, decode_table(footer, &blocks, &versions).ok()))
}

/// Reads what finds the pages of a segment.
async fn read_segment_table(store: &dyn Store, stored: &StoredObject) -> Result<Table> {
    let kinds = [SectionKind::Blocks, SectionKind::Versions];
    let [blocks, versions] = needed_sections(store, stored, kinds).await?;
    decode_table(&stored.footer, &blocks, &versions)
        .map_err(|e| e.context(format!("read {}/{}", store.location(), stored.key)))
}

fn decode_names(footer: &Footer, blocks: &[u8], timeline: &[u8]) -> Result<SegmentNames> {
    let versions = SegmentIndex::decode_blocks(footer, blocks)?.slots();
    let (mut writer, mut marks) = (TimelineWriter::default(), Vec::new());
    read_timeline_section(&footer.header, timeline, |entry| {
        writer.push(Point::from(entry));
        marks.extend(entry.in_snapshot.then_some(entry.txid));
    })?;
    Ok(SegmentNames {
        timeline: writer.finish(),
        marks: marks.into(),
        versions: versions.into(),
    })
}

fn decode_table(footer: &Footer, blocks: &[u8], versions: &[u8]) -> Result<Table> {
    let (blocks, versions) = SegmentIndex::decode_slots(footer, blocks, versions)?;
    Ok(segment_table(footer.header.object_id, blocks, versions))
}

async fn needed_sections<const N: usize>(
    store: &dyn Store,
    stored: &StoredObject,
    kinds: [SectionKind; N],
) -> Result<[Vec<u8>; N]> {
    let sections = stored.sections(store, kinds).await?;
    if let Some(lacking) = sections.iter().position(Option::is_none) {
        let (location, kind) = (store.location(), kinds[lacking]);
        let what = format!("{location}/{} has no section {kind:?}", stored.key);
        return Err(Error::corrupt(what));
    }
    Ok(sections.map(Option::unwrap_or_default))
}

/// Reads the index of a snapshot or a part.
pub(crate) async fn snapshot_index(
    store: &dyn Store,
    stored: &StoredObject,
) -> Result<SnapshotIndex> {
    let kinds = SnapshotIndex::SECTIONS;
    let sections = stored.sections(store, kinds).await?;
    SnapshotIndex::decode(&stored.footer, sections.each_ref().map(Option::as_deref))
        .map_err(|e| e.context(format!("read {}/{}", store.location(), stored.key)))
}

/// How much of the end of an object is read first, bytes: what its footer and its index take, as a
/// rule. A block table is about 1/2,600 of the pages' stored bytes, and a later snapshot has many
/// runs for its size. The index of a segment is between 1/40 of it, if its transactions changed
/// little, and 1/500.
fn tail_bytes(key: &str, size: u64) -> u64 {
    let (part, least, most) = match Key::parse(key).map(|key| key.object) {
        Some(ObjectKey::Merged { first, last, .. }) => {
            let transactions = last.get().saturating_sub(first.get()) + 1;
            let index = transactions.saturating_mul(TRANSACTION_BYTES);
            (index.max(size / 400).min(size / 40), 64 << 10, 512 << 10)
        }
        Some(ObjectKey::Snapshot { .. }) => (size / 800, 256 << 10, 512 << 10),
        _ => (size / 2048, 64 << 10, 512 << 10),
    };
    part.clamp(least, most)
}

/// How much of the leaves of a snapshot's map is read along with its index, bytes: all, if they are
/// few. A query needs one or two of them.
pub(crate) fn leaves_bytes(size: u64) -> u64 {
    (size / 256).min(512 << 10)
}

/// What the cache keeps of a segment's index.
pub(crate) fn segment_table(
    id: ObjectId,
    blocks: BlockTable,
    versions: Vec<(Pgno, Txid)>,
) -> Table {
    Table {
        id,
        blocks,
        slots: Slots::Versions(versions),
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

fn off() -> Error {
    Error::new(ErrorKind::Disk, "the disk cache keeps nothing now")
}

/// The same error for another reader that waited for the same thing.
pub(super) fn copy(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string())
}

/// Bytes of an object that are needed, and what to do with them.
struct Request<T> {
    object: Arc<Object>,
    offset: u64,
    length: u64,
    then: T,
}

impl<T> Request<T> {
    /// What the disk cache calls these bytes.
    fn piece(&self) -> PieceKey {
        self.object.identity().piece(self.offset, self.length)
    }

    /// They, of bytes that begin at `start` in the object.
    fn within(&self, bytes: &Bytes, start: u64) -> Bytes {
        let from = (self.offset - start) as usize;
        bytes.slice(from..from + self.length as usize)
    }
}

/// What becomes of the bytes of a request.
trait Duty: Sized + Send + 'static {
    type Opened: Send;

    /// Verifies and inflates them.
    ///
    /// # Errors
    /// `Corrupt`.
    fn open(&self, stored: &[u8]) -> Result<Self::Opened>;

    /// Puts what is right into the cache, and gives it to all who wait.
    fn land(self, cache: &BlockCache, opened: Result<Self::Opened>);
}

struct BlockDuty {
    takeoff: Takeoff<BlockKey, Bytes>,
    block: BlockRef,
    page_size: PageSize,
}

impl Duty for BlockDuty {
    type Opened = Bytes;

    fn open(&self, stored: &[u8]) -> Result<Bytes> {
        Ok(Bytes::from(self.block.open(stored, self.page_size)?))
    }

    fn land(self, cache: &BlockCache, opened: Result<Bytes>) {
        if let Ok(bytes) = &opened {
            let (object, number) = *self.takeoff.key();
            cache.put(object, Piece::Block(number), bytes.clone());
        }
        self.takeoff.land(opened);
    }
}

struct LeafDuty {
    takeoff: Takeoff<IndexKey, Index>,
    leaf: LeafRef,
}

impl Duty for LeafDuty {
    type Opened = Index;

    fn open(&self, stored: &[u8]) -> Result<Index> {
        Ok(Index::Leaf(Arc::new(self.leaf.open(stored)?)))
    }

    fn land(self, cache: &BlockCache, opened: Result<Index>) {
        if let Ok(index) = &opened {
            let (object, piece) = *self.takeoff.key();
            cache.put_index(object, piece, index.clone());
        }
        self.takeoff.land(opened);
    }
}

/// Blocks as one ranged read each brings them.
pub(crate) fn neighbours(blocks: Vec<WantedBlock>) -> Vec<Group<BlockRef>> {
    let request = |wanted: WantedBlock| Request {
        object: wanted.object,
        offset: wanted.block.offset,
        length: wanted.block.length.into(),
        then: wanted.block,
    };
    coalesce(blocks.into_iter().map(request).collect(), GET_BYTES)
}

/// Requests that one ranged read answers.
pub(crate) struct Group<T> {
    object: Arc<Object>,
    offset: u64,
    length: u64,
    members: Vec<Request<T>>,
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
                group.members.push(request);
            }
            _ => groups.push(Group {
                object: Arc::clone(&request.object),
                offset: request.offset,
                length: request.length,
                members: vec![request],
            }),
        }
    }
    groups
}

#[cfg(test)]
mod tests;
