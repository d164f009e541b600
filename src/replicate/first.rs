//! The first snapshot of a generation: every page of the live database, read in page order, less
//! those that the replica holds already.
//!
//! Read at one commit if that is possible without getting in the application's way (*exact*).
//! Otherwise *fuzzy*: no page is older than txid 1, and the snapshot is valid from txid X on, the
//! last transaction of a segment that was stored after the last page was read; readers lay every
//! newer version over it.

use crate::config::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::format::container::{Header, Kind};
use crate::format::ids::{ObjectHash, ObjectId, PageHash, PageSize, Pgno, Txid, WalEnd};
use crate::format::interior::InteriorPages;
use crate::format::key::{Key, ObjectKey};
use crate::format::segment::TimelineEntry;
use crate::format::snapshot::{
    self, Home, LEAF_PAGES, Leaf, LeafSource, MapToWrite, Run, SnapshotWriter,
};
use crate::replicate::backoff::Backoff;
use crate::replicate::known::{KnownPages, within_leaf};
use crate::replicate::source::PageSource;
use crate::replicate::unfinished;
use crate::storage::blocking::blocking;
use crate::storage::durable::scratch_in;
use crate::storage::put::{self, Stored};
use crate::storage::{Listed, Store};
use std::fs::File;
use std::io::BufWriter;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempPath;
use tokio::sync::watch;

/// Raw bytes that one object holds at most: with its index it then stays below 1 GiB, also when
/// nothing compresses.
const OBJECT_BYTES: u64 = 960 << 20;

/// What a first snapshot is made from and into.
pub struct FirstSnapshot {
    /// The replica.
    pub store: Arc<dyn Store>,
    /// Why nothing can be stored at the moment, if so: a sentence.
    pub trouble: watch::Sender<Option<String>>,
    /// Where objects wait until they are stored.
    pub pending: PathBuf,
    /// The ids, generation and parent of the object to come; the rest is filled in here.
    pub header: Header,
    /// Randomness.
    pub environment: Environment,
    /// What need not be uploaded.
    pub known: KnownPages,
}

/// Everything is read; what is missing is the txid from which it is valid.
pub struct PagesRead {
    job: FirstSnapshot,
    open: OpenObject,
    parts: Vec<StoredPart>,
    interior: InteriorPages,
    page_size: PageSize,
    /// The pages that were read: 1 to this one.
    pages: u32,
    /// All of them were read at the first commit of the pin.
    pub exact: bool,
    /// Some were left out because the replica has them.
    reused: bool,
}

/// The pages on their way from the database into an object.
struct Reading {
    pin: Box<dyn PageSource>,
    page: Vec<u8>,
    interior: InteriorPages,
    open: OpenObject,
    /// Pages in the open object.
    stored: u64,
    reused: bool,
    sqlite_version: u32,
}

impl Reading {
    /// Reads these pages; `known` are the hashes of those that the replica has.
    fn read(mut self, numbers: RangeInclusive<u32>, known: &[Option<PageHash>]) -> Result<Self> {
        for (number, known) in numbers.zip(known) {
            let pgno = Pgno::new(number).expect("pages count from 1");
            self.pin.read(pgno, &mut self.page)?;
            self.interior.offer(pgno, &self.page)?;
            if pgno == Pgno::FIRST {
                let version = self.page[96..100].try_into().expect("4 bytes");
                self.sqlite_version = u32::from_be_bytes(version);
            }
            if known.is_some_and(|known| known == PageHash::of(&self.page)) {
                self.reused = true;
            } else {
                self.open.writer.push(pgno, &self.page)?;
                self.stored += 1;
            }
        }
        Ok(self)
    }
}

/// An object that is being written. Its file goes when it is stored, or given up.
struct OpenObject {
    id: ObjectId,
    writer: SnapshotWriter<BufWriter<File>>,
    file: TempPath,
}

/// A part that was stored.
struct StoredPart {
    key: String,
    length: u64,
    object: ObjectId,
}

/// The moment from which the snapshot is valid.
#[derive(Clone, Copy, Debug)]
pub struct ValidFrom {
    /// Its txid, time and size.
    pub entry: TimelineEntry,
    /// SQLite's WAL there.
    pub end: WalEnd,
}

/// Bytes of pages that are read in one piece of work: a snapshot that is given up ends behind it.
const READ_AT_ONCE: u32 = 1 << 20;

/// Pages between two lines of the log that say where the reading is.
const LOGGED_PAGES: u32 = 64 << 10;

impl FirstSnapshot {
    /// Reads all pages; stores what exceeds one object as parts. What an earlier attempt stored as
    /// parts is known, and so is not stored again.
    ///
    /// # Errors
    /// `Disk`, `Unavailable`; `Conflict` if the run of the pin ended.
    pub async fn read(mut self, mut pin: Box<dyn PageSource>) -> Result<PagesRead> {
        let (page_size, pages) = pin.size();
        self.header.page_size = page_size;
        if u64::from(pages) * page_size.bytes() as u64 > OBJECT_BYTES {
            pin.let_go();
        }
        let mut reading = Reading {
            pin,
            page: vec![0; page_size.bytes()],
            interior: InteriorPages::new(page_size, &scratch_in(&self.pending))?,
            open: self.start_object(page_size)?,
            stored: 0,
            reused: false,
            sqlite_version: 0,
        };
        let (per_object, at_once) = (
            self.pages_per_object(page_size),
            READ_AT_ONCE / page_size.get(),
        );
        let mut compared = Compared::default();
        let mut parts = Vec::new();
        let mut read = 0;
        while read < pages {
            let room = u32::try_from(per_object - reading.stored).unwrap_or(u32::MAX);
            let numbers = read + 1..=read + at_once.min(pages - read).min(room);
            let before = std::mem::replace(&mut read, *numbers.end());
            let known = compared.hashes(&mut self.known, numbers.clone()).await?;
            reading = blocking(move || reading.read(numbers, &known)).await?;
            if reading.stored == per_object && read < pages {
                let next = self.start_object(page_size)?;
                let full = std::mem::replace(&mut reading.open, next);
                parts.push(self.store_part(full).await?);
                reading.stored = 0;
            }
            if before / LOGGED_PAGES != read / LOGGED_PAGES {
                tracing::info!(
                    generation = %self.header.generation,
                    "first snapshot: {read} of {pages} pages read"
                );
            }
        }
        self.header.sqlite_version = reading.sqlite_version;
        Ok(PagesRead {
            job: self,
            open: reading.open,
            parts,
            interior: reading.interior,
            page_size,
            pages,
            exact: reading.pin.is_exact(),
            reused: reading.reused,
        })
    }

    /// At most what an object may hold, and no more than a quarter of the room on the local disk,
    /// where an object waits until it is stored.
    fn pages_per_object(&self, page_size: PageSize) -> u64 {
        let room = nix::sys::statvfs::statvfs(&self.pending)
            .map_or(u64::MAX, |fs| fs.blocks_available() * fs.fragment_size());
        OBJECT_BYTES.min((room / 4).max(16 << 20)) / page_size.bytes() as u64
    }

    fn start_object(&self, page_size: PageSize) -> Result<OpenObject> {
        let id = self.environment.draw()?;
        let path = self
            .pending
            .join(format!("{}-{}", self.header.generation, ObjectId(id)));
        let out = File::create(&path)
            .map_err(|e| Error::disk(format!("create {}", path.display()), e))?;
        let file = TempPath::try_from_path(path.clone())
            .map_err(|e| Error::disk(format!("create {}", path.display()), e))?;
        let out = BufWriter::with_capacity(256 << 10, out);
        let scratch = scratch_in(&self.pending);
        let writer = SnapshotWriter::new(out, ObjectId(id), page_size, &scratch)?;
        Ok(OpenObject {
            id: ObjectId(id),
            writer,
            file,
        })
    }

    async fn store_part(&self, full: OpenObject) -> Result<StoredPart> {
        let OpenObject { id, writer, file } = full;
        let first = writer.stored().first().expect("a part holds pages").first;
        let header = Header {
            kind: Kind::Part,
            object_id: id,
            ..self.header.clone()
        };
        let (generation, since) = (header.generation, header.since);
        let (written, file) = blocking(move || {
            let (out, written) = writer.finish_part(&header)?;
            sync(out, &file)?;
            Ok((written, file))
        })
        .await?;
        let object = ObjectKey::Part {
            since,
            first,
            hash8: written.hash.hash8(),
        };
        let key = Key { generation, object }.to_string();
        self.put(&key, &file, &written.hash).await?;
        Ok(StoredPart {
            key,
            length: written.length,
            object: written.object_id,
        })
    }

    /// Stores an object, which is noted meanwhile.
    async fn put(&self, key: &str, file: &Path, hash: &ObjectHash) -> Result<()> {
        let (pending, noted) = (self.pending.clone(), key.to_owned());
        let note = blocking(move || unfinished::note(&pending, &noted)).await?;
        let put = self.try_to_put(key, file, hash).await;
        put.and(blocking(move || unfinished::forget(&note)).await)
    }

    /// Stores an object; for as long as the store or its disk refuses, tries again, since what was
    /// read to make it would have to be read again.
    async fn try_to_put(&self, key: &str, file: &Path, hash: &ObjectHash) -> Result<()> {
        let mut backoff = Backoff::default();
        loop {
            match put::put_object(&*self.store, key, file, hash).await {
                Ok(Stored::Now(_) | Stored::Before) => {
                    self.trouble
                        .send_if_modified(|trouble| trouble.take().is_some());
                    return Ok(());
                }
                Ok(Stored::Taken) => return Err(put::taken(&*self.store, key)),
                Err(e) if will_pass(e.kind()) => {
                    let pause = backoff.pause();
                    tracing::warn!("{e}; trying again in {pause:?}");
                    self.trouble.send_replace(Some(e.to_string()));
                    tokio::time::sleep(pause).await;
                }
                Err(e) => return Err(e),
            }
        }
    }
}

impl PagesRead {
    /// How many pages were read.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Writes the map, stores the snapshot and makes sure that all that it needs is still there.
    /// `valid_from` lies at or behind everything that was read. Returns the snapshot's txid.
    ///
    /// # Errors
    /// `Disk`, `Unavailable`; `NotFound` if an object that the map needs is gone.
    pub async fn store(self, valid_from: ValidFrom) -> Result<Txid> {
        let Self {
            mut job,
            open,
            parts,
            interior,
            page_size,
            pages,
            reused,
            ..
        } = self;
        let OpenObject { id, writer, file } = open;
        let entry = valid_from.entry;
        for part in &parts {
            let listed = Listed {
                key: part.key.clone(),
                size: part.length,
                modified: entry.time,
            };
            if !job.known.add_part(&listed, page_size).await? {
                return Err(gone(&*job.store, &part.key));
            }
        }
        let own = writer.stored().to_vec();
        let (leaves, homes) = map(&job.known, &own, pages.min(entry.pages), entry.pages).await?;
        let header = Header {
            kind: Kind::Snapshot,
            object_id: id,
            first: entry.txid,
            last: entry.txid,
            end: valid_from.end,
            exact: entry.txid == Txid::FIRST && !reused && own_pages(&homes, &parts),
            ..job.header.clone()
        };
        let generation = header.generation;
        let (written, file, homes) = blocking(move || {
            let map = MapToWrite {
                pages: entry.pages,
                homes: &homes,
                leaves: &leaves,
            };
            let (out, written) = writer.finish(&header, &map, entry, Some(interior))?;
            sync(out, &file)?;
            Ok((written, file, homes))
        })
        .await?;
        let object = ObjectKey::Snapshot {
            txid: entry.txid,
            time: entry.time,
            hash8: written.hash.hash8(),
        };
        let key = Key { generation, object }.to_string();
        job.put(&key, &file, &written.hash).await?;
        all_listed(&*job.store, &homes).await?;
        Ok(entry.txid)
    }
}

/// An exact snapshot holds every page itself or in its own parts.
fn own_pages(homes: &[Home], parts: &[StoredPart]) -> bool {
    homes
        .iter()
        .all(|home| parts.iter().any(|part| part.object == home.id))
}

/// The leaves of the new map: what is known, with the pages of this object over it, up to page
/// `read`; and every other object that they need. Pages from there to `pages` are in segments.
async fn map(
    known: &KnownPages,
    own: &[Run],
    read: u32,
    pages: u32,
) -> Result<(Vec<LeafSource>, Vec<Home>)> {
    let mut leaves = Vec::new();
    let mut homes = std::collections::BTreeMap::new();
    for number in 0..pages.div_ceil(LEAF_PAGES) {
        let (before, stored) = known.leaf(number).await?;
        let newer: Vec<Run> = within_leaf(own, number).collect();
        let leaf = snapshot::overlay(&before, &newer, read);
        check_whole(&leaf, number, read)?;
        let needed = leaf.runs.iter().map(|run| run.object);
        let source = match stored {
            _ if leaf.runs.is_empty() => LeafSource::Empty,
            Some(place) if leaf == before => {
                homes.extend(known.home(place.object).map(|home| (home.id, home.clone())));
                LeafSource::Earlier(place)
            }
            _ => LeafSource::Here(leaf.clone()),
        };
        homes.extend(
            needed
                .filter_map(|id| known.home(id))
                .map(|home| (home.id, home.clone())),
        );
        leaves.push(source);
    }
    Ok((leaves, homes.into_values().collect()))
}

/// Every page that was read must be somewhere: what was known when it was compared may be gone by
/// now, and a page of no run would read as zeros.
fn check_whole(leaf: &Leaf, number: u32, read: u32) -> Result<()> {
    let first = number * LEAF_PAGES;
    let expected = read.saturating_sub(first).min(LEAF_PAGES);
    let found: u32 = leaf.runs.iter().map(|run| run.count).sum();
    if found == expected {
        Ok(())
    } else {
        Err(Error::not_found(format!(
            "the replica lost pages {} and on while a first snapshot referred to them; it is made \
             again",
            first + 1
        )))
    }
}

/// Which pages the replica holds already, leaf by leaf.
#[derive(Default)]
struct Compared {
    leaf: Option<u32>,
    runs: Vec<Run>,
    /// The run that was compared last, and its hashes.
    current: Option<(Run, Vec<PageHash>)>,
}

impl Compared {
    /// The hashes of these pages, as far as the replica has them.
    async fn hashes(
        &mut self,
        known: &mut KnownPages,
        numbers: RangeInclusive<u32>,
    ) -> Result<Vec<Option<PageHash>>> {
        let mut hashes = Vec::with_capacity(numbers.clone().count());
        for number in numbers {
            let pgno = Pgno::new(number).expect("pages count from 1");
            hashes.push(self.hash(known, pgno).await?);
        }
        Ok(hashes)
    }

    async fn hash(&mut self, known: &mut KnownPages, pgno: Pgno) -> Result<Option<PageHash>> {
        let leaf = (pgno.get() - 1) / LEAF_PAGES;
        if self.leaf != Some(leaf) {
            self.runs = known.leaf(leaf).await?.0.runs;
            (self.leaf, self.current) = (Some(leaf), None);
        }
        let holds = |run: &Run| run.first <= pgno && pgno.get() - run.first.get() < run.count;
        if !self.current.as_ref().is_some_and(|(run, _)| holds(run)) {
            let next = self.runs.partition_point(|run| run.first <= pgno);
            let Some(run) = next.checked_sub(1).map(|at| self.runs[at]).filter(holds) else {
                return Ok(None);
            };
            self.current = Some((run, known.hashes(&run).await?));
        }
        let (run, hashes) = self.current.as_ref().expect("found or fetched just now");
        let at = (pgno.get() - run.first.get()) as usize;
        Ok(hashes.get(at).copied())
    }
}

/// What the store or its disk refuses now it may take later.
pub(super) fn will_pass(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Unavailable | ErrorKind::Disk | ErrorKind::Refused
    )
}

/// After the put: a map is only as good as what it points into.
async fn all_listed(store: &dyn Store, homes: &[Home]) -> Result<()> {
    for home in homes {
        let listed = store.list(&home.key, None).await?;
        if !listed
            .iter()
            .any(|object| object.key == home.key && object.size == home.length)
        {
            return Err(gone(store, &home.key));
        }
    }
    Ok(())
}

fn gone(store: &dyn Store, key: &str) -> Error {
    Error::not_found(format!(
        "{}/{key}, which a first snapshot needs, is gone or damaged; the snapshot is made again",
        store.location()
    ))
}

fn sync(out: BufWriter<File>, path: &Path) -> Result<()> {
    let synced = out
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error);
    synced
        .and_then(|file| file.sync_all())
        .map_err(|e| Error::disk(format!("write {}", path.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(runs: &[(u32, u32)], number: u32, read: u32, is_whole: bool) {
        let run = |&(first, count): &(u32, u32)| Run {
            first: Pgno::new(first).unwrap(),
            count,
            object: ObjectId([1; 8]),
            slot: 0,
        };
        let leaf = Leaf {
            runs: runs.iter().map(run).collect(),
        };
        assert_eq!(check_whole(&leaf, number, read).is_ok(), is_whole);
    }

    #[test]
    fn every_page_that_was_read_is_in_the_map() {
        check(&[(1, 10)], 0, 10, true);
        check(&[(1, 4), (6, 5)], 0, 10, false);
        check(&[(4097, 4)], 1, 4100, true);
        check(&[], 1, 4100, false);
    }

    #[test]
    fn pages_that_only_segments_have_are_not_missing() {
        check(&[(1, 10)], 0, 10, true);
        check(&[], 2, 4100, true);
    }
}
