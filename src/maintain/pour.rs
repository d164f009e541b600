//! Pages of several stored objects, read in the order of their versions and handed on one by one:
//! in bounded memory, whatever the sizes.
//!
//! A *lane* is one object that is read from its first wanted block to its last. Fetching is async
//! and in parallel; inflating and handing on is blocking work between two fetches.

use crate::error::{Error, Result};
use crate::format::container::BlockTable;
use crate::format::ids::{PageSize, Pgno, Txid};
use crate::maintain::versions::{Keep, Kept, Listed, Version};
use crate::storage::Store;
use crate::storage::blocking::blocking;
use crate::storage::object::get_exactly;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::VecDeque;
use std::sync::Arc;

/// Stored bytes that all lanes together fetch ahead.
const AHEAD_BYTES: u64 = 8 << 20;
/// The least and the most that one lane fetches at once, unless a block is larger.
const WINDOW_MIN: u64 = 64 << 10;
const WINDOW_MAX: u64 = 4 << 20;
/// Unwanted bytes between two wanted blocks that are fetched along with them.
const GAP_BYTES: u64 = 32 << 10;
/// Fetches on their way at once.
const PARALLEL: usize = 8;

/// Takes pages in the order of (page, transaction).
pub(super) trait Sink: Send + Sized + 'static {
    /// The next one.
    ///
    /// # Errors
    /// `Disk`.
    fn push(&mut self, pgno: Pgno, txid: Txid, page: &[u8]) -> Result<()>;

    /// Takes no more before it was emptied.
    fn is_full(&self) -> bool {
        false
    }

    /// Makes room.
    ///
    /// # Errors
    /// `Unavailable`, `Disk`.
    fn emptied(self) -> impl Future<Output = Result<Self>> + Send {
        async { Ok(self) }
    }
}

/// An object whose pages are read.
pub(super) struct Poured {
    /// Below the replica.
    pub(super) key: String,
    pub(super) blocks: BlockTable,
    /// What of it is read, and in what order.
    pub(super) listed: Listed,
}

/// What to do before the next page.
enum Step {
    Fetch,
    Empty,
    Done,
}

/// Pages on their way.
pub(super) struct Pouring<S> {
    lanes: Vec<Lane>,
    kept: Kept,
    /// A version whose page is not there yet.
    waiting: Option<Version>,
    window: u64,
    sink: S,
}

/// Hands the kept versions of these objects to a sink.
///
/// # Errors
/// `NotFound`, `Corrupt`, `Unavailable`, `Disk`.
pub(super) async fn pour<S: Sink>(
    store: &Arc<dyn Store>,
    page_size: PageSize,
    objects: Vec<Poured>,
    keep: Keep,
    sink: S,
) -> Result<S> {
    let mut pouring = blocking(move || Pouring::new(page_size, objects, keep, sink)).await?;
    loop {
        let (next, step) = blocking(move || pouring.advance()).await?;
        pouring = next;
        match step {
            Step::Fetch => pouring.fetch(store).await?,
            Step::Empty => pouring.sink = pouring.sink.emptied().await?,
            Step::Done => return Ok(pouring.sink),
        }
    }
}

impl<S: Sink> Pouring<S> {
    fn new(page_size: PageSize, objects: Vec<Poured>, keep: Keep, sink: S) -> Result<Self> {
        let window = AHEAD_BYTES / objects.len().max(1) as u64;
        let mut lanes = Vec::new();
        let mut listed = Vec::new();
        for object in objects {
            listed.push(object.listed);
            lanes.push(Lane::new(object.key, object.blocks, page_size));
        }
        let kept = Kept::new(listed, keep)?;
        let mut wanted = kept.clone();
        while let Some(version) = wanted.next()? {
            lanes[version.object].want(version.slot)?;
        }
        Ok(Self {
            lanes,
            kept,
            waiting: None,
            window: window.clamp(WINDOW_MIN, WINDOW_MAX),
            sink,
        })
    }

    /// Hands on what is there.
    fn advance(mut self) -> Result<(Self, Step)> {
        loop {
            if self.sink.is_full() {
                return Ok((self, Step::Empty));
            }
            let next = match self.waiting.take() {
                Some(version) => Some(version),
                None => self.kept.next()?,
            };
            let Some(version) = next else {
                return Ok((self, Step::Done));
            };
            match self.lanes[version.object].page(version.slot)? {
                Some(page) => self.sink.push(version.pgno, version.txid, page)?,
                None => {
                    self.waiting = Some(version);
                    return Ok((self, Step::Fetch));
                }
            }
        }
    }

    /// Fetches the next blocks of all lanes that have none left.
    async fn fetch(&mut self, store: &Arc<dyn Store>) -> Result<()> {
        let window = self.window;
        let dry = self.lanes.iter_mut().filter(|lane| lane.fetched.is_empty());
        let reads = dry.filter_map(|lane| {
            let blocks = lane.next_window(window)?;
            let store = Arc::clone(store);
            Some(async move { lane.fetch(&*store, blocks).await })
        });
        stream::iter(reads.collect::<Vec<_>>())
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await
    }
}

/// One object, read from front to back.
struct Lane {
    key: String,
    blocks: BlockTable,
    page_size: PageSize,
    /// The blocks that are read, ascending, those that were fetched apart.
    wanted: VecDeque<usize>,
    fetched: VecDeque<(usize, Bytes)>,
    /// The block that is being handed on, and its pages.
    open: Option<usize>,
    pages: Vec<u8>,
}

impl Lane {
    fn new(key: String, blocks: BlockTable, page_size: PageSize) -> Self {
        Self {
            key,
            blocks,
            page_size,
            wanted: VecDeque::new(),
            fetched: VecDeque::new(),
            open: None,
            pages: Vec::new(),
        }
    }

    fn locate(&self, slot: u32) -> Result<(usize, usize)> {
        let place = self.blocks.locate(slot);
        place.ok_or_else(|| Error::corrupt(format!("{}: it has no slot {slot}", self.key)))
    }

    fn want(&mut self, slot: u32) -> Result<()> {
        let (block, _) = self.locate(slot)?;
        if self.wanted.back() != Some(&block) {
            self.wanted.push_back(block);
        }
        Ok(())
    }

    /// The next blocks to fetch together, with the unwanted ones between them.
    fn next_window(&mut self, bytes: u64) -> Option<std::ops::RangeInclusive<usize>> {
        let first = self.wanted.pop_front()?;
        let mut last = first;
        let start = self.blocks.blocks[first].offset;
        while let Some(&next) = self.wanted.front() {
            let (behind, block) = (self.end(last), &self.blocks.blocks[next]);
            let is_near = block.offset - behind <= GAP_BYTES;
            if !is_near || block.offset + u64::from(block.length) - start > bytes {
                break;
            }
            last = next;
            self.wanted.pop_front();
        }
        Some(first..=last)
    }

    fn end(&self, block: usize) -> u64 {
        let block = &self.blocks.blocks[block];
        block.offset + u64::from(block.length)
    }

    async fn fetch(
        &mut self,
        store: &dyn Store,
        blocks: std::ops::RangeInclusive<usize>,
    ) -> Result<()> {
        let start = self.blocks.blocks[*blocks.start()].offset;
        let length = self.end(*blocks.end()) - start;
        let bytes = get_exactly(store, &self.key, start, length).await?;
        for number in blocks {
            let block = &self.blocks.blocks[number];
            let at = (block.offset - start) as usize;
            let stored = bytes.slice(at..at + block.length as usize);
            self.fetched.push_back((number, stored));
        }
        Ok(())
    }

    /// The page in a slot, if its block was fetched. Slots ascend.
    fn page(&mut self, slot: u32) -> Result<Option<&[u8]>> {
        let (block, within) = self.locate(slot)?;
        if self.open != Some(block) {
            while self.fetched.front().is_some_and(|(next, _)| *next < block) {
                self.fetched.pop_front();
            }
            let Some((_, stored)) = self.fetched.pop_front() else {
                return Ok(None);
            };
            self.pages.clear();
            let opened =
                self.blocks.blocks[block].open_into(&stored, self.page_size, &mut self.pages);
            opened.map_err(|e| e.context(&self.key))?;
            self.open = Some(block);
        }
        let start = within * self.page_size.bytes();
        Ok(Some(&self.pages[start..start + self.page_size.bytes()]))
    }
}
