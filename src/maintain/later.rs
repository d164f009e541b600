//! Snapshots made from what is stored: the page map of an earlier one, and the segments since. No
//! page of the database is read.
//!
//! Stored are the pages that changed, and of the others those that are written again: of leaves
//! that have scattered, and of objects that are mostly dead. The rest of the map points into
//! earlier objects.

use crate::error::{Error, Result};
use crate::format::container::{BlockTable, Header, Kind, Parent, SectionKind};
use crate::format::ids::{GenerationId, ObjectHash, ObjectId, Pgno, Timestamp, Txid, WalEnd};
use crate::format::interior::{InteriorPages, decode_interior};
use crate::format::key::{GENERATIONS, Key, ObjectKey};
use crate::format::segment::{TimelineEntry, decode_timeline_section};
use crate::format::snapshot::{
    self, Home, LEAF_PAGES, Leaf, LeafRef, LeafSource, MapRoot, MapToWrite, Run, SnapshotIndex,
    SnapshotWriter,
};
use crate::maintain::map::{PageSet, Sizes, in_leaf, is_scattered, pages_of_leaf, remaining};
use crate::maintain::pour::{self, Poured, Sink};
use crate::maintain::segment::OpenSegment;
use crate::maintain::usage::Used;
use crate::maintain::versions::{Keep, Kept, Listed};
use crate::maintain::workshop::{Draft, Out, Workshop, close};
use crate::storage::Store;
use crate::storage::blocking::blocking;
use crate::storage::durable::scratch_in;
use crate::storage::object::{StoredObject, get_exactly};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use tempfile::TempPath;

/// Raw bytes that one object holds at most, as in a first snapshot.
const OBJECT_BYTES: u64 = 960 << 20;
/// Leaves that lie so close together in an object are fetched together, bytes.
const GAP_BYTES: u64 = 64 << 10;
/// So much of them is fetched at once, bytes.
const FETCHED_AT_ONCE: u64 = 4 << 20;
const PARALLEL: usize = 8;
/// A snapshot that takes so many times what the interior pages of its base take, about, carries
/// them too: whoever opens it needs one request less.
const INTERIOR_TIMES: u64 = 64;
/// To how much of their size pages compress, at best: one part of so many.
const COMPRESSED_PART: u64 = 4;

/// A snapshot to make.
#[derive(Clone, Debug)]
pub struct Later {
    /// Key and bytes of the snapshot that it goes on from.
    pub base: (String, u64),
    /// Key and bytes of each segment behind the base's `since`, in the order of their
    /// transactions, and which of these count: up to the snapshot's own. A fork may need none.
    pub segments: Vec<(String, u64, RangeInclusive<Txid>)>,
    /// As what it is stored.
    pub place: Place,
}

/// As what a snapshot is stored.
#[derive(Clone, Debug)]
pub enum Place {
    /// In the generation of the segments, at the last transaction of the last one.
    Later,
    /// The same, but what will be stored of that transaction is a mark: nobody knows its hash yet.
    Marked,
    /// As the first one of a generation that goes on from that transaction.
    Fork {
        /// The new generation.
        generation: GenerationId,
        /// Where it goes on from.
        parent: Parent,
        /// The time of its txid 1.
        started: Timestamp,
        /// SQLite's WAL there.
        end: WalEnd,
    },
}

/// A snapshot that was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Where it lies.
    pub key: String,
    /// Its transaction.
    pub txid: Txid,
    /// Bytes, with those of its parts.
    pub bytes: u64,
    /// Pages stored.
    pub pages: u64,
}

/// A snapshot whose parts are stored, and the rest of it is in a local file.
pub struct Prepared {
    /// What it is once it is stored.
    pub taken: Taken,
    /// Fsynced.
    pub file: TempPath,
    hash: ObjectHash,
    homes: Vec<Home>,
}

impl Prepared {
    /// Stores it, and makes sure that all that it needs is there.
    ///
    /// # Errors
    /// `NotFound` if something that it needs is gone; `Unavailable`, `Disk`.
    pub async fn store(&self, workshop: &Workshop) -> Result<()> {
        let key = &self.taken.key;
        workshop.put(&self.file, key, &self.hash).await?;
        check_listed(&*workshop.store, &self.homes).await
    }
}

/// Makes a snapshot, stores it, and makes sure that all that it needs is there.
///
/// # Errors
/// `NotFound` if something that it needs is gone; `Corrupt`, `Unavailable`, `Disk`.
pub async fn take(workshop: &Workshop, later: &Later) -> Result<Taken> {
    let prepared = prepare(workshop, later).await?;
    prepared.store(workshop).await?;
    Ok(prepared.taken)
}

/// Makes a snapshot.
///
/// # Errors
/// As [`take`].
pub async fn prepare(workshop: &Workshop, later: &Later) -> Result<Prepared> {
    prepare_in(workshop, later, OBJECT_BYTES).await
}

/// The same, in objects that hold so many raw bytes at most.
pub(super) async fn prepare_in(
    workshop: &Workshop,
    later: &Later,
    object_bytes: u64,
) -> Result<Prepared> {
    let base = Base::open(workshop, &later.base).await?;
    let mut segments = Vec::new();
    for (key, size, counts) in &later.segments {
        let segment = OpenSegment::open(&*workshop.store, key, *size).await?;
        segments.push((segment, counts.clone()));
    }
    check(&base, &segments)?;
    let state = State::find(workshop, &base, &segments, &later.place).await?;
    let moment = Moment::new(state, &later.place);
    let changes = Changes::find(&base, &segments, &moment).await?;
    let old = OldMap::read(workshop, &base).await?;
    let pages = moment.entry.pages;
    let mut rewriting = Rewriting::choose(workshop, &old, &changes, pages).await?;
    let mut poured: Vec<Poured> = segments
        .iter()
        .map(|(segment, counts)| segment.poured(counts.clone()))
        .collect();
    poured.append(&mut rewriting.poured);
    let header = moment.header.clone();
    let parts = Parts {
        pages_max: object_bytes / u64::from(header.page_size.get()),
        interior: interior(workshop, &base, &changes, pages).await?,
        ..Parts::new(workshop, header.clone(), changes.sizes.clone(), pages)?
    };
    let keep = Keep::SeenBy(Arc::new([moment.through]));
    let parts = pour::pour(&workshop.store, header.page_size, poured, keep, parts).await?;
    let map = NewMap::new(&old, &changes, &rewriting, &parts)?;
    parts.finish(map, &moment).await
}

/// The interior pages that the base carries and that did not change; `None` if the new snapshot
/// carries none.
async fn interior(
    workshop: &Workshop,
    base: &Base,
    changes: &Changes,
    pages: u32,
) -> Result<Option<InteriorPages>> {
    let page_size = base.header().page_size;
    let Some(section) = base.object.footer.section(SectionKind::InteriorPages) else {
        return Ok(None);
    };
    let stored = changes.newer.count() * u64::from(page_size.get()) / COMPRESSED_PART;
    if section.length.saturating_mul(INTERIOR_TIMES) > stored {
        return Ok(None);
    }
    let store = &*workshop.store;
    let section = base
        .object
        .section(store, SectionKind::InteriorPages)
        .await?;
    let mut carried = decode_interior(&section, page_size.bytes())
        .map_err(|e| e.context(format!("read {}/{}", store.location(), base.object.key)))?;
    carried.retain(|(pgno, _)| pgno.get() <= pages && !changes.touched.contains(pgno.get()));
    let scratch = scratch_in(&workshop.directory);
    blocking(move || {
        let mut interior = InteriorPages::new(page_size, &scratch)?;
        for (pgno, page) in carried {
            interior.offer(pgno, &page)?;
        }
        Ok(Some(interior))
    })
    .await
}

/// Bytes of the pages that such a snapshot would have to store at least.
///
/// # Errors
/// As [`take`].
pub async fn changed_bytes(workshop: &Workshop, later: &Later) -> Result<u64> {
    let mut listed = Vec::new();
    let mut page_bytes = 0;
    let mut through = Txid::FIRST;
    for (key, size, counts) in &later.segments {
        let segment = OpenSegment::open(&*workshop.store, key, *size).await?;
        page_bytes = u64::from(segment.header().page_size.get());
        through = *counts.end();
        listed.push(segment.listed(counts.clone()));
    }
    blocking(move || {
        let mut kept = Kept::new(listed, Keep::SeenBy(Arc::new([through])))?;
        let mut pages = 0;
        while kept.next()?.is_some() {
            pages += 1;
        }
        Ok(pages * page_bytes)
    })
    .await
}

/// What the map of a snapshot uses of the objects that it names, and of itself; by key.
///
/// # Errors
/// As [`take`].
pub(super) async fn used(
    workshop: &Workshop,
    snapshot: &(String, u64),
) -> Result<HashMap<String, Used>> {
    let map = OldMap::read(workshop, &Base::open(workshop, snapshot).await?).await?;
    let mut pages: BTreeMap<ObjectId, u64> = BTreeMap::new();
    for number in 0..map.leaves.len() {
        for run in map.leaf(number as u32)?.runs {
            *pages.entry(run.object).or_default() += u64::from(run.count);
        }
    }
    let mut used = HashMap::new();
    for (id, pages) in pages {
        let home = map.home(id)?;
        let table = block_table(&*workshop.store, home).await?;
        let of = u64::from(table.slots());
        used.insert(home.key.clone(), Used { pages, of });
    }
    Ok(used)
}

/// The snapshot that another one goes on from.
struct Base {
    object: StoredObject,
    root: MapRoot,
}

impl Base {
    async fn open(workshop: &Workshop, (key, size): &(String, u64)) -> Result<Self> {
        let store = &*workshop.store;
        let object = StoredObject::open(store, key, *size).await?;
        let sections = object.sections(store, SnapshotIndex::SECTIONS).await?;
        let index =
            SnapshotIndex::decode(&object.footer, sections.each_ref().map(|s| s.as_deref()));
        let named = |e: Error| e.context(format!("read {}/{key}", store.location()));
        let root = index.map_err(named)?.root;
        let root = root.ok_or_else(|| named(Error::corrupt("it has no page map")))?;
        Ok(Self { object, root })
    }

    fn header(&self) -> &Header {
        &self.object.footer.header
    }

    /// The entry of its transaction.
    async fn timeline(&self, workshop: &Workshop) -> Result<Vec<TimelineEntry>> {
        let store = &*workshop.store;
        let section = self.object.section(store, SectionKind::Timeline).await?;
        let timeline = decode_timeline_section(self.header(), &section);
        timeline.map_err(|e| e.context(format!("read {}/{}", store.location(), self.object.key)))
    }

    /// The objects that its map names, itself among them.
    fn homes(&self) -> HashMap<ObjectId, Home> {
        let itself = Home {
            id: self.header().object_id,
            key: self.object.key.clone(),
            length: self.object.footer.length,
        };
        let others = self.root.homes.iter().cloned();
        others.chain([itself]).map(|home| (home.id, home)).collect()
    }
}

/// What does not go on from the base must not be laid over it, nor what retention has dropped
/// versions of that the snapshot's transaction sees.
fn check(base: &Base, segments: &[(OpenSegment, RangeInclusive<Txid>)]) -> Result<()> {
    let mut next = base.header().since.next();
    let Some(through) = segments.last().map(|(_, counts)| *counts.end()) else {
        return Ok(());
    };
    for (segment, counts) in segments {
        let header = segment.header();
        let goes_on = *counts.start() == next
            && counts.start() <= counts.end()
            && header.first <= *counts.start()
            && *counts.end() <= header.last
            && header.generation == base.header().generation
            && header.page_size == base.header().page_size
            && !segment.is_mark();
        if !goes_on {
            return Err(Error::corrupt(format!(
                "take a snapshot: {} does not go on from txid {next} minus one of {}",
                segment.object.key, base.object.key
            )));
        }
        let mut points = segment.timeline.iter().map(|entry| entry.txid);
        let is_held = through >= header.last || points.any(|txid| txid == through);
        if header.thinned && !is_held {
            return Err(Error::corrupt(format!(
                "take a snapshot: {} does not hold all of txid {through}",
                segment.object.key
            )));
        }
        next = counts.end().next();
    }
    Ok(())
}

/// The last state of what a snapshot is made of.
struct State {
    entry: TimelineEntry,
    /// Of the object that has it.
    header: Header,
    /// The hash that the level-0 segment behind it carries; zeros if that is not known.
    hands_on: ObjectHash,
}

impl State {
    async fn find(
        workshop: &Workshop,
        base: &Base,
        segments: &[(OpenSegment, RangeInclusive<Txid>)],
        place: &Place,
    ) -> Result<Self> {
        match segments.last() {
            Some((last, counts)) => {
                let mut state = Self::at(&last.object, &last.timeline, *counts.end())?;
                let is_known = *counts.end() == last.header().last;
                if is_known && matches!(place, Place::Later) {
                    state.hands_on = last.hands_on();
                }
                Ok(state)
            }
            None if matches!(place, Place::Later) => Err(Error::invalid(format!(
                "nothing was committed since snapshot {}",
                base.object.key
            ))),
            None => {
                let timeline = base.timeline(workshop).await?;
                Self::at(&base.object, &timeline, base.header().since)
            }
        }
    }

    fn at(object: &StoredObject, timeline: &[TimelineEntry], through: Txid) -> Result<Self> {
        let entry = timeline.iter().find(|entry| entry.txid == through);
        let entry = *entry.ok_or_else(|| {
            Error::corrupt(format!("{} does not list txid {through}", object.key))
        })?;
        let header = object.footer.header.clone();
        Ok(Self {
            entry,
            header,
            hands_on: ObjectHash([0; 32]),
        })
    }
}

/// What the new snapshot is the state of.
struct Moment {
    /// The last transaction whose versions count.
    through: Txid,
    /// The one of the snapshot's own timeline.
    entry: TimelineEntry,
    header: Header,
}

impl Moment {
    fn new(state: State, place: &Place) -> Self {
        let State {
            entry,
            header,
            hands_on,
        } = state;
        let through = entry.txid;
        let header = Header {
            kind: Kind::Snapshot,
            level: 0,
            first: through,
            last: through,
            since: through,
            exact: false,
            thinned: false,
            previous: ObjectHash([0; 32]),
            last_input: ObjectHash([0; 32]),
            ..header
        };
        match place {
            Place::Later | Place::Marked => Self {
                through,
                entry,
                header: Header {
                    last_input: hands_on,
                    ..header
                },
            },
            Place::Fork {
                generation,
                parent,
                started,
                end,
            } => Self {
                through,
                entry: TimelineEntry::new(Txid::FIRST, *started, entry.pages),
                header: Header {
                    generation: *generation,
                    parent: Some(*parent),
                    first: Txid::FIRST,
                    last: Txid::FIRST,
                    since: Txid::FIRST,
                    end: *end,
                    ..header
                },
            },
        }
    }
}

/// What the segments change.
struct Changes {
    /// Pages that have a newer version, and are still there.
    newer: PageSet,
    /// Pages that have one.
    touched: PageSet,
    sizes: Sizes,
}

impl Changes {
    async fn find(
        base: &Base,
        segments: &[(OpenSegment, RangeInclusive<Txid>)],
        moment: &Moment,
    ) -> Result<Self> {
        let entries = segments
            .iter()
            .flat_map(|(segment, counts)| counted(segment, counts));
        let sizes = Sizes::new(base.header().since, entries);
        let pages = moment.entry.pages;
        let listed = segments
            .iter()
            .map(|(segment, counts)| segment.listed(counts.clone()));
        let (listed, through) = (listed.collect(), moment.through);
        blocking(move || {
            let (mut newer, mut touched) = (PageSet::new(pages), PageSet::new(pages));
            let mut kept = Kept::new(listed, Keep::SeenBy(Arc::new([through])))?;
            while let Some(version) = kept.next()? {
                touched.insert(version.pgno);
                if version.pgno.get() <= pages && !sizes.cut_off(version.pgno, version.txid) {
                    newer.insert(version.pgno);
                }
            }
            Ok(Self {
                newer,
                touched,
                sizes,
            })
        })
        .await
    }

    /// How many pages of a leaf are newer.
    fn in_leaf(&self, number: u32) -> u32 {
        let pages = pages_of_leaf(number);
        pages
            .filter(|page| self.newer.contains(*page as u32))
            .count() as u32
    }
}

/// The entries of the transactions that count. The first one of a thinned segment may say how small
/// the database was before they began: that cut nothing off that they see.
fn counted(
    segment: &OpenSegment,
    counts: &RangeInclusive<Txid>,
) -> impl Iterator<Item = TimelineEntry> {
    let mut is_cut = *counts.start() > segment.header().first;
    let entries = segment.timeline.iter().copied();
    let counted = entries.filter(|entry| counts.contains(&entry.txid));
    counted.map(move |entry| TimelineEntry {
        min_pages: match std::mem::take(&mut is_cut) {
            true => entry.pages,
            false => entry.min_pages,
        },
        ..entry
    })
}

/// The map of the base, all leaves as they are stored: about 3 MB for 100 GB.
struct OldMap {
    homes: HashMap<ObjectId, Home>,
    leaves: Vec<Option<(LeafRef, Bytes)>>,
    since: Txid,
}

impl OldMap {
    async fn read(workshop: &Workshop, base: &Base) -> Result<Self> {
        let homes = base.homes();
        let mut places: Vec<LeafRef> = base.root.leaves.iter().flatten().copied().collect();
        places.sort_by_key(|place| (place.object.0, place.offset));
        let mut windows: Vec<Vec<LeafRef>> = Vec::new();
        for place in places {
            match windows.last_mut().filter(|window| fits(window, &place)) {
                Some(window) => window.push(place),
                None => windows.push(vec![place]),
            }
        }
        let reads = windows.into_iter().map(|window| {
            let (store, home) = (&workshop.store, homes.get(&window[0].object));
            async move { read_leaves(&**store, home, &window).await }
        });
        let read: Vec<_> = stream::iter(reads.collect::<Vec<_>>())
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        let read: HashMap<(ObjectId, u64), Bytes> = read.into_iter().flatten().collect();
        let leaves =
            base.root.leaves.iter().map(|place| {
                place.map(|place| (place, read[&(place.object, place.offset)].clone()))
            });
        Ok(Self {
            leaves: leaves.collect(),
            since: base.header().since,
            homes,
        })
    }

    /// Where a leaf is stored, if it has pages.
    fn place(&self, number: u32) -> Option<LeafRef> {
        let leaf = self.leaves.get(number as usize)?.as_ref();
        leaf.map(|(place, _)| *place)
    }

    /// The leaf as it is stored.
    fn leaf(&self, number: u32) -> Result<Leaf> {
        match self.leaves.get(number as usize) {
            Some(Some((place, stored))) => {
                let home = self.home(place.object)?;
                place.open(stored).map_err(|e| e.context(&home.key))
            }
            _ => Ok(Leaf::default()),
        }
    }

    fn home(&self, id: ObjectId) -> Result<&Home> {
        self.homes.get(&id).ok_or_else(|| unnamed(id))
    }

    /// What of a leaf is neither newer nor gone.
    fn remaining(&self, number: u32, changes: &Changes, pages: u32) -> Result<Vec<Run>> {
        let is_gone = |page: u32| {
            let pgno = Pgno::new(page).expect("pages count from 1");
            page > pages
                || changes.touched.contains(page)
                || changes.sizes.cut_off(pgno, self.since)
        };
        Ok(remaining(&self.leaf(number)?, is_gone))
    }
}

fn unnamed(id: ObjectId) -> Error {
    Error::corrupt(format!(
        "a page map needs object {id}, which its root does not name"
    ))
}

fn fits(window: &[LeafRef], next: &LeafRef) -> bool {
    let (first, last) = (&window[0], &window[window.len() - 1]);
    let end = last.offset + u64::from(last.length);
    first.object == next.object
        && next.offset <= end + GAP_BYTES
        && next.offset + u64::from(next.length) - first.offset <= FETCHED_AT_ONCE
}

async fn read_leaves(
    store: &dyn Store,
    home: Option<&Home>,
    window: &[LeafRef],
) -> Result<Vec<((ObjectId, u64), Bytes)>> {
    let home = home.ok_or_else(|| unnamed(window[0].object))?;
    let start = window[0].offset;
    let ends = window
        .iter()
        .map(|place| place.offset + u64::from(place.length));
    let end = ends.max().unwrap_or(start);
    let bytes = get_exactly(store, &home.key, start, end - start).await?;
    let leaf = |place: &LeafRef| {
        let at = (place.offset - start) as usize;
        let stored = bytes.slice(at..at + place.length as usize);
        ((place.object, place.offset), stored)
    };
    Ok(window.iter().map(leaf).collect())
}

/// Pages that are stored again though nothing changed them: those of scattered leaves, and those
/// in objects that are mostly dead.
struct Rewriting {
    scattered: Vec<bool>,
    dead: HashSet<ObjectId>,
    poured: Vec<Poured>,
}

impl Rewriting {
    async fn choose(
        workshop: &Workshop,
        old: &OldMap,
        changes: &Changes,
        pages: u32,
    ) -> Result<Self> {
        let mut rewriting = Self {
            scattered: Vec::new(),
            dead: HashSet::new(),
            poured: Vec::new(),
        };
        let mut live: BTreeMap<ObjectId, u64> = BTreeMap::new();
        for number in 0..pages.div_ceil(LEAF_PAGES) {
            let runs = old.remaining(number, changes, pages)?;
            let newer = changes.in_leaf(number);
            rewriting.scattered.push(is_scattered(&runs, newer));
            for run in runs {
                *live.entry(run.object).or_default() += u64::from(run.count);
            }
        }
        let mut tables = HashMap::new();
        for (id, live) in live {
            let table = block_table(&*workshop.store, old.home(id)?).await?;
            if live * 2 < u64::from(table.slots()) {
                rewriting.dead.insert(id);
            }
            tables.insert(id, table);
        }
        let mut moved: BTreeMap<ObjectId, Vec<Run>> = BTreeMap::new();
        for number in 0..pages.div_ceil(LEAF_PAGES) {
            for run in old.remaining(number, changes, pages)? {
                if rewriting.moves(number, &run) {
                    moved.entry(run.object).or_default().push(run);
                }
            }
        }
        for (id, runs) in moved {
            rewriting.poured.push(Poured {
                key: old.home(id)?.key.clone(),
                blocks: tables.remove(&id).unwrap_or_default(),
                listed: Listed::pages(runs),
            });
        }
        Ok(rewriting)
    }

    /// Whether this run of a leaf is stored again.
    fn moves(&self, leaf: u32, run: &Run) -> bool {
        self.scattered[leaf as usize] || self.dead.contains(&run.object)
    }
}

async fn block_table(store: &dyn Store, home: &Home) -> Result<BlockTable> {
    let object = StoredObject::open(store, &home.key, home.length).await?;
    let section = object.section(store, SectionKind::Blocks).await?;
    let table = BlockTable::decode_section(&object.footer, &section);
    table.map_err(|e| e.context(format!("read {}/{}", store.location(), home.key)))
}

/// The objects that the new snapshot becomes: what is full is stored as a part.
struct Parts {
    workshop: Workshop,
    stored: Vec<(Home, Vec<Run>)>,
    bytes: u64,
    header: Header,
    draft: Draft,
    writer: SnapshotWriter<Out>,
    /// The interior pages that it carries, if it carries any.
    interior: Option<InteriorPages>,
    /// Pages in the open object.
    pages: u64,
    pages_max: u64,
    /// What counts of the versions that come.
    sizes: Sizes,
    database_pages: u32,
    sqlite_version: Option<u32>,
}

impl Sink for Parts {
    fn push(&mut self, pgno: Pgno, txid: Txid, page: &[u8]) -> Result<()> {
        if pgno.get() > self.database_pages || self.sizes.cut_off(pgno, txid) {
            return Ok(());
        }
        if pgno == Pgno::FIRST {
            let version = page[96..100].try_into().expect("4 bytes");
            self.sqlite_version = Some(u32::from_be_bytes(version));
        }
        if let Some(interior) = &mut self.interior {
            interior.offer(pgno, page)?;
        }
        self.pages += 1;
        self.writer.push(pgno, page)
    }

    fn is_full(&self) -> bool {
        self.pages == self.pages_max
    }

    /// Stores what is full as a part.
    async fn emptied(mut self) -> Result<Self> {
        let (draft, writer) = open_object(&self.workshop, &self.header)?;
        let draft = std::mem::replace(&mut self.draft, draft);
        let writer = std::mem::replace(&mut self.writer, writer);
        self.pages = 0;
        let runs = writer.stored().to_vec();
        let header = Header {
            kind: Kind::Part,
            object_id: draft.id,
            last_input: ObjectHash([0; 32]),
            ..self.header.clone()
        };
        let (out, written) = blocking(move || writer.finish_part(&header)).await?;
        let object = ObjectKey::Part {
            since: self.header.since,
            first: runs[0].first,
            hash8: written.hash.hash8(),
        };
        let generation = self.header.generation;
        let key = Key { generation, object }.to_string();
        self.workshop.store(draft, out, &key, &written.hash).await?;
        let home = Home {
            id: written.object_id,
            key,
            length: written.length,
        };
        self.bytes += written.length;
        self.stored.push((home, runs));
        Ok(self)
    }
}

impl Parts {
    /// All in one object, without interior pages.
    fn new(workshop: &Workshop, header: Header, sizes: Sizes, database_pages: u32) -> Result<Self> {
        let (draft, writer) = open_object(workshop, &header)?;
        Ok(Self {
            workshop: workshop.clone(),
            stored: Vec::new(),
            bytes: 0,
            pages_max: u64::MAX,
            header: Header {
                writer_id: workshop.writer,
                ..header
            },
            draft,
            writer,
            interior: None,
            pages: 0,
            sizes,
            database_pages,
            sqlite_version: None,
        })
    }

    /// All pages that were stored, ascending.
    fn runs(&self) -> Vec<Run> {
        let parts = self.stored.iter().flat_map(|(_, runs)| runs);
        parts.chain(self.writer.stored()).copied().collect()
    }

    /// Writes the map with the pages that are left.
    async fn finish(self, map: NewMap, moment: &Moment) -> Result<Prepared> {
        let pages = self.runs().iter().map(|run| u64::from(run.count)).sum();
        let Self {
            draft,
            writer,
            interior,
            bytes,
            ..
        } = self;
        let header = Header {
            object_id: draft.id,
            sqlite_version: self.sqlite_version.unwrap_or(self.header.sqlite_version),
            ..self.header
        };
        let (generation, entry) = (header.generation, moment.entry);
        let NewMap { leaves, homes } = map;
        let (out, written, homes) = blocking(move || {
            let map = MapToWrite {
                pages: entry.pages,
                homes: &homes,
                leaves: &leaves,
            };
            let (out, written) = writer.finish(&header, &map, entry, interior)?;
            Ok((out, written, homes))
        })
        .await?;
        let object = ObjectKey::Snapshot {
            txid: entry.txid,
            time: entry.time,
            hash8: written.hash.hash8(),
        };
        let key = Key { generation, object }.to_string();
        let file = close(draft, out).await?;
        let taken = Taken {
            key,
            txid: entry.txid,
            bytes: bytes + written.length,
            pages,
        };
        Ok(Prepared {
            taken,
            file,
            hash: written.hash,
            homes,
        })
    }
}

fn open_object(workshop: &Workshop, header: &Header) -> Result<(Draft, SnapshotWriter<Out>)> {
    let (draft, out) = workshop.draft()?;
    let scratch = scratch_in(&workshop.directory);
    let writer = SnapshotWriter::new(out, draft.id, header.page_size, &scratch)?;
    Ok((draft, writer))
}

/// The map to write.
struct NewMap {
    leaves: Vec<LeafSource>,
    homes: Vec<Home>,
}

impl NewMap {
    fn new(old: &OldMap, changes: &Changes, rewriting: &Rewriting, parts: &Parts) -> Result<Self> {
        let (own, pages) = (parts.runs(), parts.database_pages);
        let part = |id: ObjectId| parts.stored.iter().find(|(home, _)| home.id == id);
        let mut homes: BTreeMap<ObjectId, Home> = BTreeMap::new();
        let mut need = |id: ObjectId| -> Result<()> {
            if id == parts.draft.id || homes.contains_key(&id) {
                return Ok(());
            }
            let home = match part(id) {
                Some((home, _)) => home,
                None => old.home(id)?,
            };
            homes.insert(id, home.clone());
            Ok(())
        };
        let mut leaves = Vec::new();
        for number in 0..pages.div_ceil(LEAF_PAGES) {
            let mut runs = old.remaining(number, changes, pages)?;
            runs.retain(|run| !rewriting.moves(number, run));
            let newer = in_leaf(&own, number);
            let leaf = snapshot::overlay(&Leaf { runs }, &newer, pages);
            for run in &leaf.runs {
                need(run.object)?;
            }
            let place = old.place(number).filter(|_| newer.is_empty());
            leaves.push(match place {
                _ if leaf.runs.is_empty() => LeafSource::Empty,
                Some(place) if old.leaf(number)? == leaf => {
                    need(place.object)?;
                    LeafSource::Earlier(place)
                }
                _ => LeafSource::Here(leaf),
            });
        }
        Ok(Self {
            leaves,
            homes: homes.into_values().collect(),
        })
    }
}

/// A map is only as good as what it points into.
async fn check_listed(store: &dyn Store, homes: &[Home]) -> Result<()> {
    let listed = store.list(GENERATIONS, None).await?;
    let there: HashSet<(&str, u64)> = listed.iter().map(|o| (o.key.as_str(), o.size)).collect();
    match homes
        .iter()
        .find(|home| !there.contains(&(home.key.as_str(), home.length)))
    {
        None => Ok(()),
        Some(home) => Err(Error::not_found(format!(
            "{}/{}, which a new snapshot needs, is gone; it is taken again",
            store.location(),
            home.key
        ))),
    }
}
