//! The pages that a replica already holds: what a new generation need not upload again.
//!
//! The last complete snapshot's map, and over it the parts of a first snapshot that never became
//! complete. Pages are compared by hash; the hashes are read from the objects as the comparison
//! comes by, in bounded memory. Ranges of a hash section cannot be verified on their own, and need
//! not be: a wrong hash equals no page, so the page is uploaded.

use crate::error::Result;
use crate::format::container::{Kind, Parent, SectionKind};
use crate::format::ids::{GenerationId, ObjectId, PageHash, PageSize, Pgno, Txid, WalEnd};
use crate::format::snapshot::{self, Home, LEAF_PAGES, Leaf, LeafRef, MapRoot, Run, SnapshotIndex};
use crate::storage::catalog::{Catalog, SnapshotListing};
use crate::storage::object::StoredObject;
use crate::storage::{Listed, Store};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Hashes that are fetched at once: 1 MiB of them.
const WINDOW: u64 = 64 << 10;

/// Windows that are kept; a comparison in page order rarely needs more than two.
const WINDOWS: usize = 8;

/// The pages that a replica holds already.
pub struct KnownPages {
    store: Arc<dyn Store>,
    /// The leaves of the last complete snapshot.
    leaves: Vec<Option<LeafRef>>,
    /// Over them: the pages of parts, ascending by page within each part.
    parts: Vec<Run>,
    homes: BTreeMap<ObjectId, Home>,
    /// Where an object's hashes lie, and how many there are.
    sections: HashMap<ObjectId, (u64, u64)>,
    windows: HashMap<ObjectId, Window>,
}

/// A stretch of an object's page hashes.
struct Window {
    /// The slot of the first one.
    first: u64,
    hashes: Vec<PageHash>,
}

impl KnownPages {
    /// Nothing is known: every page is to be uploaded.
    pub fn nothing(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            leaves: Vec::new(),
            parts: Vec::new(),
            homes: BTreeMap::new(),
            sections: HashMap::new(),
            windows: HashMap::new(),
        }
    }

    /// What the replica holds of a database with this page size: the newest complete snapshot, and
    /// the parts in the generations since.
    ///
    /// # Errors
    /// `Unavailable`; damaged objects count as not there.
    pub async fn load(
        store: Arc<dyn Store>,
        catalog: &Catalog,
        page_size: PageSize,
    ) -> Result<Self> {
        let mut known = Self::nothing(store);
        let listed = listed_homes(catalog);
        let mut since: Option<GenerationId> = None;
        'search: for (generation, listing) in catalog.generations.iter().rev() {
            for snapshot in listing.snapshots.iter().rev() {
                if known
                    .add_snapshot(&snapshot.object, page_size, &listed)
                    .await?
                {
                    since = Some(*generation);
                    break 'search;
                }
            }
        }
        for (generation, listing) in &catalog.generations {
            if since.is_none_or(|since| *generation > since) {
                for part in &listing.parts {
                    known.add_part(&part.object, page_size).await?;
                }
            }
        }
        Ok(known)
    }

    /// Lays the pages of a stored part over what is known. False if it is gone or damaged.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn add_part(&mut self, part: &Listed, page_size: PageSize) -> Result<bool> {
        let Some((object, index)) = self.open(part, Kind::Part, page_size).await? else {
            return Ok(false);
        };
        self.add_home(&object);
        self.parts.extend(index.stored);
        Ok(true)
    }

    async fn add_snapshot(
        &mut self,
        snapshot: &Listed,
        page_size: PageSize,
        listed: &HashMap<&str, u64>,
    ) -> Result<bool> {
        let Some((object, index)) = self.open(snapshot, Kind::Snapshot, page_size).await? else {
            return Ok(false);
        };
        let Some(MapRoot { homes, leaves, .. }) = index.root else {
            return Ok(false);
        };
        if !homes.iter().all(|home| is_listed(home, listed)) {
            return Ok(false);
        }
        self.leaves = leaves;
        self.add_home(&object);
        self.homes
            .extend(homes.into_iter().map(|home| (home.id, home)));
        Ok(true)
    }

    /// The object with its index; `None` if it is damaged or of another kind or page size.
    async fn open(
        &self,
        listed: &Listed,
        kind: Kind,
        page_size: PageSize,
    ) -> Result<Option<(StoredObject, SnapshotIndex)>> {
        let read = async {
            let object = StoredObject::open(&*self.store, &listed.key, listed.size).await?;
            let sections = object
                .sections(&*self.store, SnapshotIndex::SECTIONS)
                .await?;
            let index =
                SnapshotIndex::decode(&object.footer, sections.each_ref().map(|s| s.as_deref()))?;
            Ok((object, index))
        };
        match usable(read.await)? {
            Some((object, index))
                if object.footer.header.kind == kind
                    && object.footer.header.page_size == page_size =>
            {
                Ok(Some((object, index)))
            }
            _ => Ok(None),
        }
    }

    fn add_home(&mut self, object: &StoredObject) {
        let id = object.footer.header.object_id;
        let home = Home {
            id,
            key: object.key.clone(),
            length: object.footer.length,
        };
        self.homes.insert(id, home);
    }

    /// An object that [`KnownPages::leaf`] points into.
    pub fn home(&self, id: ObjectId) -> Option<&Home> {
        self.homes.get(&id)
    }

    /// What is known of the pages of leaf `number`, and where exactly that leaf is stored already,
    /// if it is.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn leaf(&self, number: u32) -> Result<(Leaf, Option<LeafRef>)> {
        let (mut leaf, mut stored) = (Leaf::default(), None);
        if let Some(Some(place)) = self.leaves.get(number as usize)
            && let Some(home) = self.homes.get(&place.object)
        {
            let bytes = self
                .store
                .get_range(&home.key, place.offset, u64::from(place.length))
                .await;
            if let Some(read) = usable(bytes.and_then(|bytes| place.open(&bytes)))?
                && read
                    .runs
                    .iter()
                    .all(|run| self.homes.contains_key(&run.object))
            {
                (leaf, stored) = (read, Some(*place));
            }
        }
        for run in within_leaf(&self.parts, number) {
            leaf = snapshot::overlay(&leaf, &[run], u32::MAX);
            stored = None;
        }
        Ok((leaf, stored))
    }

    /// The hashes of the pages of a run, as far as they can be read.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn hashes(&mut self, run: &Run) -> Result<Vec<PageHash>> {
        let (first, count) = (u64::from(run.slot), u64::from(run.count));
        let in_window =
            |w: &Window| first >= w.first && first + count <= w.first + w.hashes.len() as u64;
        if !self.windows.get(&run.object).is_some_and(in_window) {
            let Some(window) = self.fetch_window(run.object, first, count).await? else {
                return Ok(Vec::new());
            };
            if self.windows.len() >= WINDOWS {
                self.windows.clear();
            }
            self.windows.insert(run.object, window);
        }
        let window = &self.windows[&run.object];
        let start = (first - window.first) as usize;
        let end = (start + count as usize).min(window.hashes.len());
        Ok(window.hashes[start.min(end)..end].to_vec())
    }

    async fn fetch_window(
        &mut self,
        id: ObjectId,
        first: u64,
        count: u64,
    ) -> Result<Option<Window>> {
        let Some(home) = self.homes.get(&id) else {
            return Ok(None);
        };
        let (offset, slots) = match self.sections.get(&id) {
            Some(section) => *section,
            None => {
                let object = StoredObject::open(&*self.store, &home.key, home.length).await;
                let section = usable(object)?
                    .and_then(|object| object.footer.section(SectionKind::PageHashes).cloned())
                    .map_or((0, 0), |section| (section.offset, section.raw_length / 16));
                self.sections.insert(id, section);
                section
            }
        };
        let end = (first + count.max(WINDOW)).min(slots);
        if first >= end {
            return Ok(None);
        }
        let bytes = self
            .store
            .get_range(&home.key, offset + first * 16, (end - first) * 16)
            .await;
        let Some(bytes) = usable(bytes)? else {
            return Ok(None);
        };
        let hash = |bytes: &[u8]| PageHash(bytes.try_into().expect("chunks of 16 bytes"));
        let hashes = bytes.chunks_exact(16).map(hash).collect();
        Ok(Some(Window { first, hashes }))
    }
}

/// A snapshot that is stored with all that it needs.
pub struct Complete {
    /// It.
    pub object: Listed,
    /// The transaction whose state it is.
    pub txid: Txid,
    /// Later versions than this one are laid over it.
    pub since: Txid,
    /// SQLite's WAL at its transaction.
    pub end: WalEnd,
}

/// The txid of a snapshot of this generation that is stored with all that it needs, if there is
/// one.
///
/// # Errors
/// `Unavailable`.
pub async fn complete_snapshot(
    store: &dyn Store,
    catalog: &Catalog,
    generation: GenerationId,
) -> Result<Option<Txid>> {
    let Some(listing) = catalog.generations.get(&generation) else {
        return Ok(None);
    };
    let found = first_complete(store, catalog, listing.snapshots.iter()).await?;
    Ok(found.map(|found| found.txid))
}

/// The last snapshot at or before a transaction that is stored with all that it needs, if there is
/// one.
///
/// # Errors
/// `Unavailable`.
pub async fn last_snapshot(
    store: &dyn Store,
    catalog: &Catalog,
    through: Parent,
) -> Result<Option<Complete>> {
    let Some(listing) = catalog.generations.get(&through.generation) else {
        return Ok(None);
    };
    let before = listing.snapshots.iter().rev();
    let before = before.filter(|snapshot| snapshot.txid <= through.txid);
    first_complete(store, catalog, before).await
}

/// The first of these that is stored with all that it needs.
async fn first_complete(
    store: &dyn Store,
    catalog: &Catalog,
    snapshots: impl Iterator<Item = &SnapshotListing>,
) -> Result<Option<Complete>> {
    let listed = listed_homes(catalog);
    for SnapshotListing { txid, object, .. } in snapshots {
        let read = async {
            let object = StoredObject::open(store, &object.key, object.size).await?;
            let sections = object.sections(store, SnapshotIndex::SECTIONS).await?;
            let sections = sections.each_ref().map(|section| section.as_deref());
            let index = SnapshotIndex::decode(&object.footer, sections)?;
            Ok((object.footer.header, index.root))
        };
        if let Some((header, Some(root))) = usable(read.await)?
            && root.homes.iter().all(|home| is_listed(home, &listed))
        {
            return Ok(Some(Complete {
                object: object.clone(),
                txid: *txid,
                since: header.since,
                end: header.end,
            }));
        }
    }
    Ok(None)
}

/// The lengths of all that a page map may point into, by key.
fn listed_homes(catalog: &Catalog) -> HashMap<&str, u64> {
    let snapshots = catalog.generations.values().flat_map(|g| &g.snapshots);
    let parts = catalog.generations.values().flat_map(|g| &g.parts);
    let snapshots = snapshots.map(|snapshot| &snapshot.object);
    let objects = snapshots.chain(parts.map(|part| &part.object));
    objects
        .map(|object| (object.key.as_str(), object.size))
        .collect()
}

fn is_listed(home: &Home, listed: &HashMap<&str, u64>) -> bool {
    listed.get(home.key.as_str()) == Some(&home.length)
}

/// The runs of `runs` that lie in a leaf, cut to it.
pub fn within_leaf(runs: &[Run], number: u32) -> impl Iterator<Item = Run> + '_ {
    let first = u64::from(number) * u64::from(LEAF_PAGES) + 1;
    let end = first + u64::from(LEAF_PAGES);
    runs.iter().filter_map(move |run| {
        let start = u64::from(run.first.get()).max(first);
        let stop = (u64::from(run.first.get()) + u64::from(run.count)).min(end);
        (start < stop).then(|| Run {
            first: Pgno::new(start as u32).expect("pages count from 1"),
            count: (stop - start) as u32,
            object: run.object,
            slot: run.slot + (start as u32 - run.first.get()),
        })
    })
}

/// What cannot be read for good is not there: its pages are uploaded again. What cannot be read
/// now is an error.
fn usable<T>(read: Result<T>) -> Result<Option<T>> {
    use crate::error::ErrorKind::{Corrupt, Invalid, NotFound};
    match read {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), Corrupt | Invalid | NotFound) => {
            tracing::warn!("not comparing with what the replica holds: {e}");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}
