//! A database as it was, as a new file: byte for byte, or not at all.
//!
//! Every block that a moment needs is read once, in large ranged reads, verified, inflated, and its
//! pages are written where they belong in a file with a temporary name. Only when all of it is on
//! the disk does the file get its own name, which nothing else may have: nothing is ever
//! overwritten. A file that did not come so far is removed.

use crate::error::{Error, ErrorKind, Result};
use crate::format::container::BlockRef;
use crate::format::ids::{PageSize, Pgno};
use crate::materialize::cache::{ObjectNumber, Slots, locked};
use crate::materialize::fetch::Fetcher;
use crate::materialize::history::Object;
use crate::materialize::pages::{Above, Database, Layout, Place, confirm};
use crate::materialize::replica::{PLANS, all_leaves};
use crate::storage::object::get_exactly;
use futures_util::{StreamExt, TryStreamExt};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The largest ranged read, bytes.
const GET_BYTES: u64 = 4 << 20;
/// Bytes that are not needed are read if that saves a request, up to so many.
const GAP_BYTES: u64 = 64 << 10;
/// Bytes written at a time, about.
const WRITE_BYTES: usize = 512 << 10;
/// Objects whose block tables are in memory at a time.
const TABLES: usize = 64;
/// What SQLite would replay into a restored file, or take for a part of it.
const SIDECARS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// How to restore.
#[derive(Clone)]
pub struct RestoreOptions {
    /// Ranged reads on the way at a time; at least one.
    pub parallelism: usize,
    /// Told after each step how many of how many stored bytes were read.
    pub progress: Option<Arc<dyn Fn(u64, u64) + Send + Sync>>,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            parallelism: 8,
            progress: None,
        }
    }
}

/// What a restore reads and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreSummary {
    /// Objects that pages are read from.
    pub objects: usize,
    /// Ranged reads.
    pub reads: usize,
    /// Bytes to read from the store, without what finds them.
    pub stored_bytes: u64,
    /// Bytes of the restored file.
    pub file_bytes: u64,
}

/// Says what a restore would read, and checks the path: for `--dry-run`.
///
/// # Errors
/// As [`restore`], as far as no page needs to be read.
pub async fn summarize(database: &Arc<Database>, path: &Path) -> Result<RestoreSummary> {
    refuse_existing(path)?;
    let work = Work::plan(database, &database.layout()).await?;
    Ok(work.summary)
}

/// Writes the database to a new file, and makes it durable.
///
/// # Errors
/// `Invalid` if the path exists or files of an earlier database lie beside it, `Disk`; of reading
/// `Unavailable`, `Corrupt`, `NotFound`.
pub async fn restore(
    database: &Arc<Database>,
    path: &Path,
    options: &RestoreOptions,
) -> Result<RestoreSummary> {
    refuse_existing(path)?;
    let mut plans = 1;
    loop {
        match restore_once(database, path, options).await {
            // Retention or merging passed by: what took the object's place holds the same pages.
            Err(error) if error.kind() == ErrorKind::NotFound && plans < PLANS => {
                plans += 1;
                database.plan_anew().await?;
            }
            restored => return restored,
        }
    }
}

async fn restore_once(
    database: &Arc<Database>,
    path: &Path,
    options: &RestoreOptions,
) -> Result<RestoreSummary> {
    let work = Work::plan(database, &database.layout()).await?;
    let directory = directory_of(path);
    let temporary = new_file(&directory, path, database.size())?;
    work.run(database, temporary.as_file(), path, options)
        .await?;
    let path = path.to_owned();
    in_thread(move || publish(temporary, &directory, &path)).await?;
    Ok(work.summary)
}

/// Refuses a path at which something is, or beside which files of an earlier database lie.
///
/// # Errors
/// `Invalid`, with the remedy.
pub fn refuse_existing(path: &Path) -> Result<()> {
    let shown = path.display();
    let name = path
        .file_name()
        .ok_or_else(|| Error::invalid(format!("{shown} does not name a file to restore to")))?;
    if path.symlink_metadata().is_ok() {
        return Err(exists(path));
    }
    for suffix in SIDECARS {
        let mut beside = OsString::from(name);
        beside.push(suffix);
        let beside = path.with_file_name(beside);
        if beside.symlink_metadata().is_ok() {
            return Err(Error::invalid(format!(
                "{} lies beside {shown} and belongs to an earlier database: SQLite would mix it \
                 into the restored one; move it away or choose another path",
                beside.display()
            )));
        }
    }
    Ok(())
}

fn exists(path: &Path) -> Error {
    let shown = path.display();
    Error::invalid(format!(
        "{shown} exists, and restore overwrites nothing: move it away or choose another path"
    ))
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn new_file(directory: &Path, path: &Path, bytes: u64) -> Result<tempfile::NamedTempFile> {
    let failed = |e| {
        let shown = directory.display();
        Error::disk(format!("create a file in {shown}, to restore into"), e)
    };
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".restore-");
    let temporary = tempfile::Builder::new()
        .prefix(&prefix)
        // As SQLite creates a database, so that the umask decides.
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(directory)
        .map_err(failed)?;
    temporary.as_file().set_len(bytes).map_err(failed)?;
    Ok(temporary)
}

/// Makes the file durable and gives it its name.
fn publish(temporary: tempfile::NamedTempFile, directory: &Path, path: &Path) -> Result<()> {
    let failed = |e| Error::disk(format!("make {} durable", path.display()), e);
    temporary.as_file().sync_all().map_err(failed)?;
    refuse_existing(path)?;
    temporary
        .persist_noclobber(path)
        .map_err(|e| match e.error.kind() {
            std::io::ErrorKind::AlreadyExists => exists(path),
            _ => failed(e.error),
        })?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed)
}

/// Pages that lie in consecutive slots and go to consecutive places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Strip {
    slot: u32,
    page: u32,
    count: u32,
}

/// One ranged read, and what of it goes where.
struct Read {
    object: Arc<Object>,
    offset: u64,
    length: u64,
    blocks: Vec<(BlockRef, Vec<Strip>)>,
}

/// All that a restore reads, each block once.
struct Work {
    reads: Vec<Read>,
    summary: RestoreSummary,
}

/// The strips from one object, ascending by slot.
struct Source {
    object: Arc<Object>,
    /// What the map calls it, if it names it.
    id: Option<crate::format::ids::ObjectId>,
    strips: Vec<Strip>,
}

impl Work {
    async fn plan(database: &Arc<Database>, layout: &Layout) -> Result<Self> {
        let fetcher = database.replica().fetcher();
        let mut superseded = Pages::new(layout.pages);
        let mut sources = from_segments(fetcher, layout, &mut superseded).await?;
        sources.extend(from_map(fetcher, layout, &superseded).await?);
        let objects = sources.len();
        let mut reads = Vec::new();
        for sources in sources.chunks_mut(TABLES) {
            let wanted = sources
                .iter()
                .map(|source| Arc::clone(&source.object))
                .collect();
            let tables = fetcher.tables(wanted).await?;
            for (source, table) in sources.iter_mut().zip(tables) {
                if let Some(id) = source.id {
                    confirm(&table, &source.object, id)?;
                }
                source.reads(&table.blocks.blocks, &mut reads)?;
            }
        }
        // In the order of the file, as far as there is one.
        reads.sort_by_key(|read| read.blocks.first().map(|(_, strips)| strips[0].page));
        let summary = RestoreSummary {
            objects,
            reads: reads.len(),
            stored_bytes: reads.iter().map(|read| read.length).sum(),
            file_bytes: database.size(),
        };
        Ok(Self { reads, summary })
    }

    async fn run(
        &self,
        database: &Arc<Database>,
        file: &File,
        path: &Path,
        options: &RestoreOptions,
    ) -> Result<()> {
        let fetcher = database.replica().fetcher();
        let total = self.summary.stored_bytes;
        let done = AtomicU64::new(0);
        let target = Arc::new(Target {
            file: file.try_clone().map_err(|e| failed_write(path, e))?,
            path: path.to_owned(),
            page_size: database.layout().page_size,
            buffers: Mutex::default(),
        });
        let steps = self.reads.iter().map(|read| {
            let (target, fetcher) = (Arc::clone(&target), Arc::clone(fetcher));
            let (object, range) = (Arc::clone(&read.object), (read.offset, read.length));
            let blocks = read.blocks.clone();
            async move {
                let (offset, length) = range;
                let store = &*fetcher.store;
                let stored = get_exactly(store, &object.key, offset, length).await?;
                let location = store.location().to_owned();
                in_thread(move || {
                    target
                        .write(&stored, offset, &blocks)
                        .map_err(|e| match e.kind() {
                            ErrorKind::Disk => e,
                            _ => e.context(format!("read {location}/{}", object.key)),
                        })
                })
                .await?;
                Ok(length)
            }
        });
        let steps = futures_util::stream::iter(steps);
        let mut steps = steps.buffer_unordered(options.parallelism.max(1));
        while let Some(length) = steps.try_next().await? {
            let done = done.fetch_add(length, Ordering::Relaxed) + length;
            if let Some(progress) = &options.progress {
                progress(done, total);
            }
        }
        Ok(())
    }
}

impl Source {
    /// Cuts the strips at the borders of blocks, and puts neighbouring blocks into one read.
    fn reads(&mut self, blocks: &[BlockRef], reads: &mut Vec<Read>) -> Result<()> {
        self.strips.sort_unstable_by_key(|strip| strip.slot);
        let first = reads.len();
        let mut strips = self.strips.iter().copied().peekable();
        let mut rest: Option<Strip> = None;
        for block in blocks {
            let end = block.first_slot + block.slots;
            let mut within = Vec::new();
            while let Some(strip) = rest.take().or_else(|| strips.next_if(|c| c.slot < end)) {
                let (here, later) = strip.split(end);
                within.extend(here);
                rest = later;
                if rest.is_some() {
                    break;
                }
            }
            if within.is_empty() {
                continue;
            }
            match reads[first..].last_mut() {
                Some(read) if read.takes(block) => {
                    read.length = block.offset + u64::from(block.length) - read.offset;
                    read.blocks.push((*block, within));
                }
                _ => reads.push(Read {
                    object: Arc::clone(&self.object),
                    offset: block.offset,
                    length: u64::from(block.length),
                    blocks: vec![(*block, within)],
                }),
            }
        }
        match rest.or_else(|| strips.next()) {
            None => Ok(()),
            Some(strip) => Err(Error::corrupt(format!(
                "{}: slot {} of page {} lies in no block",
                self.object.key, strip.slot, strip.page
            ))),
        }
    }
}

impl Read {
    fn takes(&self, block: &BlockRef) -> bool {
        let end = self.offset + self.length;
        let new_end = block.offset + u64::from(block.length);
        block.offset <= end + GAP_BYTES && new_end - self.offset <= GET_BYTES
    }
}

impl Strip {
    /// What lies in slots before `end`, and the rest.
    fn split(self, end: u32) -> (Option<Self>, Option<Self>) {
        if self.slot >= end {
            return (None, Some(self));
        }
        let here = self.count.min(end - self.slot);
        let later = Self {
            slot: self.slot + here,
            page: self.page + here,
            count: self.count - here,
        };
        let here = Self {
            count: here,
            ..self
        };
        (Some(here), (later.count > 0).then_some(later))
    }

    /// Puts a page behind, if it goes on from here.
    fn grow(strips: &mut Vec<Self>, slot: u32, page: u32) {
        match strips.last_mut() {
            Some(last) if last.slot + last.count == slot && last.page + last.count == page => {
                last.count += 1;
            }
            _ => strips.push(Self {
                slot,
                page,
                count: 1,
            }),
        }
    }
}

/// One bit for each page.
struct Pages(Vec<u64>);

impl Pages {
    fn new(pages: u32) -> Self {
        Self(vec![0; pages as usize / 64 + 1])
    }

    fn insert(&mut self, page: u32) {
        self.0[page as usize / 64] |= 1 << (page % 64);
    }

    fn contains(&self, page: u32) -> bool {
        self.0[page as usize / 64] & (1 << (page % 64)) != 0
    }
}

/// The pages whose newest version lies in a segment.
async fn from_segments(
    fetcher: &Arc<Fetcher>,
    layout: &Layout,
    superseded: &mut Pages,
) -> Result<Vec<Source>> {
    let mut objects: Vec<Arc<Object>> = layout.overlay.objects().to_vec();
    objects.sort_by_key(|object| object.number);
    objects.dedup_by_key(|object| object.number);
    let mut sources = Vec::new();
    for objects in objects.chunks(TABLES) {
        let tables = fetcher.tables(objects.to_vec()).await?;
        for (object, table) in objects.iter().zip(tables) {
            let Slots::Versions(versions) = &table.slots else {
                return Err(Error::corrupt(format!("{}: it is no segment", object.key)));
            };
            let mut strips = Vec::new();
            for (slot, (page, _)) in (0..).zip(versions) {
                // Versions of one page lie side by side: the last one alone may be the newest,
                // but for those behind the moment.
                let place = layout.above(*page);
                if let Above::Found(Place::Segment(found, at)) = place
                    && (found.number, at) == (object.number, slot)
                {
                    Strip::grow(&mut strips, slot, page.get());
                    superseded.insert(page.get());
                }
            }
            if !strips.is_empty() {
                sources.push(Source {
                    object: Arc::clone(object),
                    id: None,
                    strips,
                });
            }
        }
    }
    Ok(sources)
}

/// The pages that the map decides about.
async fn from_map(
    fetcher: &Arc<Fetcher>,
    layout: &Layout,
    superseded: &Pages,
) -> Result<Vec<Source>> {
    let mut sources: HashMap<ObjectNumber, Source> = HashMap::new();
    for refs in all_leaves(&layout.base)?.chunks(TABLES) {
        for leaf in fetcher.leaves(refs).await? {
            for run in &leaf.runs {
                let object = layout.base.home(run.object)?;
                let source = sources.entry(object.number).or_insert_with(|| Source {
                    object: Arc::clone(object),
                    id: Some(run.object),
                    strips: Vec::new(),
                });
                for within in 0..run.count {
                    let page = run.first.get() + within;
                    if page <= layout.pages
                        && !superseded.contains(page)
                        && is_of_the_map(layout, page)
                    {
                        Strip::grow(&mut source.strips, run.slot + within, page);
                    }
                }
            }
        }
    }
    let mut sources: Vec<Source> = sources.into_values().collect();
    sources.retain(|source| !source.strips.is_empty());
    Ok(sources)
}

/// True unless the page is one that no object decides about: cut off, or the lock-byte page.
fn is_of_the_map(layout: &Layout, page: u32) -> bool {
    let page = Pgno::new(page).expect("pages are counted from 1");
    matches!(layout.above(page), Above::Map)
}

/// Bytes to write, which go on from each other: one long write costs less than many short ones,
/// all of which take the file's lock.
#[derive(Default)]
struct Pending {
    at: u64,
    bytes: Vec<u8>,
}

impl Pending {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }
}

/// The file that pages are written to.
struct Target {
    file: File,
    path: PathBuf,
    page_size: PageSize,
    /// Used again and again: fresh memory costs as much as inflating into it.
    buffers: Mutex<Vec<(Pending, Vec<u8>)>>,
}

impl Target {
    fn write(&self, stored: &[u8], offset: u64, blocks: &[(BlockRef, Vec<Strip>)]) -> Result<()> {
        let page_bytes = self.page_size.bytes();
        let (mut pending, mut pages) = locked(&self.buffers).pop().unwrap_or_default();
        for (block, strips) in blocks {
            let start = (block.offset - offset) as usize;
            let stored = &stored[start..start + block.length as usize];
            let named = |e: Error| e.context(format!("offset {}", block.offset));
            let at = |strip: &Strip| u64::from(strip.page - 1) * page_bytes as u64;
            if let [strip] = strips[..]
                && strip.count == block.slots
            {
                self.make_room(&mut pending, at(&strip))?;
                let into = &mut pending.bytes;
                block
                    .open_into(stored, self.page_size, into)
                    .map_err(named)?;
                continue;
            }
            pages.clear();
            block
                .open_into(stored, self.page_size, &mut pages)
                .map_err(named)?;
            for strip in strips {
                let start = (strip.slot - block.first_slot) as usize * page_bytes;
                let bytes = &pages[start..start + strip.count as usize * page_bytes];
                self.make_room(&mut pending, at(strip))?;
                pending.bytes.extend_from_slice(bytes);
            }
        }
        self.flush(&mut pending)?;
        locked(&self.buffers).push((pending, pages));
        Ok(())
    }

    /// Writes what is pending unless the bytes for `at` go on from it and it is short enough.
    fn make_room(&self, pending: &mut Pending, at: u64) -> Result<()> {
        if pending.end() != at || pending.bytes.len() >= WRITE_BYTES {
            self.flush(pending)?;
            pending.at = at;
        }
        Ok(())
    }

    fn flush(&self, pending: &mut Pending) -> Result<()> {
        let written = self.file.write_all_at(&pending.bytes, pending.at);
        written.map_err(|e| failed_write(&self.path, e))?;
        pending.at = pending.end();
        pending.bytes.clear();
        Ok(())
    }
}

fn failed_write(path: &Path, error: std::io::Error) -> Error {
    Error::disk(format!("restore to {}", path.display()), error)
}

/// Runs what blocks on a thread that may.
async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(stopped) => match stopped.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::unavailable("the work was stopped before it ended")),
        },
    }
}

#[cfg(test)]
mod tests;
