//! One replica as readers see it: its restore points, and how to open them.
//!
//! What a replica shows is one immutable `State`, swapped by [`Replica::refresh`]: whoever asks
//! meanwhile gets an answer from memory and never waits for the store.

use crate::error::{Error, ErrorKind, Result};
use crate::format::claim::Claim;
use crate::format::ids::{GenerationId, RestorePoint, Timestamp, Txid};
use crate::format::moment::Moment;
use crate::format::snapshot::LeafRef;
use crate::materialize::cache::{BlockCache, ObjectNumber, Piece, Slots, locked};
use crate::materialize::fetch::Fetcher;
use crate::materialize::history::{History, Laid, Needed, Object, Segment, Snapshot};
use crate::materialize::overlay::{Layer, Overlay, Shrink};
use crate::materialize::pages::{Database, Layout};
use crate::materialize::plan::{self, Line};
use crate::materialize::points::Points;
use crate::materialize::refresh::{Histories, Loader, Refreshed};
use crate::storage::Store;
use crate::storage::catalog::Catalog;
use lru::LruCache;
use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Overlays kept for moments to come: so many at most, and of those that no open moment has so many
/// bytes.
const OVERLAYS: NonZeroUsize = NonZeroUsize::new(4).expect("it is not 0");
const OVERLAY_BYTES: usize = 16 << 20;
/// A map's leaves are read when a moment is opened if they take no more than so many bytes; else
/// when they are needed.
const LEAF_BYTES_AT_OPEN: u64 = 1 << 20;
/// What lies in other objects than the snapshot itself, leaves and block tables, is read when a
/// moment is opened if these are no more: a query needs what one or two of many hold.
const HOMES_AT_OPEN: usize = 2;
/// Segments whose versions are in memory at a time while an overlay is made.
const LAYERS: usize = 256;
/// How often a moment is planned anew when objects vanish under it.
pub(crate) const PLANS: u32 = 3;

/// A replica, opened for reading. Methods without `async` answer from memory.
pub struct Replica {
    fetcher: Arc<Fetcher>,
    state: RwLock<Arc<State>>,
    /// What one moment needs, without the rest of the replica.
    located: RwLock<Option<Arc<State>>>,
    loader: tokio::sync::Mutex<Loader>,
    /// By the snapshot under them.
    overlays: Mutex<LruCache<ObjectNumber, Built>>,
    /// One overlay is made at a time: moments that are opened together mostly need the same one.
    building: tokio::sync::Mutex<()>,
}

/// What a refresh found.
#[derive(Default)]
struct State {
    catalog: Arc<Catalog>,
    histories: Histories,
}

type Layers = Overlay<Arc<Object>>;

/// An overlay over one snapshot, as far as it was made.
#[derive(Clone)]
struct Built {
    overlay: Arc<Layers>,
    /// The last transaction in it.
    through: Txid,
    /// The entry before the next one: what a shrink is measured against.
    last: (Txid, u32),
    /// The thinned segments in it: it holds for the moments that they serve.
    thinned: Vec<Arc<Segment>>,
}

/// What to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct PointsQuery {
    /// Only of this generation.
    pub generation: Option<GenerationId>,
    /// Not before this time.
    pub since: Option<Timestamp>,
    /// Not after this time.
    pub until: Option<Timestamp>,
    /// Only the newest so many.
    pub newest: Option<usize>,
}

/// A generation, as it is listed.
#[derive(Clone, Debug)]
pub struct GenerationInfo {
    /// Its name.
    pub id: GenerationId,
    /// Who began it, and from what; `None` if it is gone or damaged.
    pub claim: Option<Claim>,
    /// The first restore point; `None` if readers cannot use the generation.
    pub first: Option<RestorePoint>,
    /// The last restore point that can be opened.
    pub last: Option<RestorePoint>,
    /// Bytes in a page; unknown without a snapshot.
    pub page_size: Option<u32>,
    /// Snapshots stored.
    pub snapshots: usize,
    /// Segments stored.
    pub segments: usize,
    /// Bytes stored, of all objects.
    pub bytes: u64,
}

/// A snapshot, as it is listed.
#[derive(Clone, Debug)]
pub struct SnapshotInfo {
    /// The history that it belongs to.
    pub generation: GenerationId,
    /// The transaction whose state it is.
    pub txid: Txid,
    /// When that was seen committed.
    pub time: Timestamp,
    /// Bytes of the object, without the parts and the earlier snapshots that it needs.
    pub bytes: u64,
    /// Database size, pages; unknown if the snapshot is damaged.
    pub pages: Option<u32>,
    /// Pages in the object; the others lie in its parts and in earlier snapshots. The same.
    pub stored: Option<u64>,
    /// What these pages are uncompressed, bytes; the same.
    pub raw_bytes: Option<u64>,
    /// It and its parts hold every page as it was at one moment; unknown if it is damaged.
    pub is_exact: Option<bool>,
    /// All that it needs is listed, and moments can be opened from it.
    pub is_complete: bool,
    /// Below the replica.
    pub key: String,
}

/// A WAL segment, as it is listed.
#[derive(Clone, Debug)]
pub struct SegmentInfo {
    /// The history that it belongs to.
    pub generation: GenerationId,
    /// 0 for what the daemon uploaded, 1 and up for merged ones.
    pub level: u8,
    /// Its first transaction.
    pub first: Txid,
    /// Its last transaction; unknown of level 0 if it was not read.
    pub last: Option<Txid>,
    /// When its last transaction was seen committed; the same.
    pub time: Option<Timestamp>,
    /// Its restore points; unknown if it was not read, as those are not for which another one
    /// stands.
    pub count: Option<u64>,
    /// Versions of pages in it; the same.
    pub versions: Option<u64>,
    /// What these are uncompressed, bytes; the same.
    pub raw_bytes: Option<u64>,
    /// Retention left out some transactions of its range; the same.
    pub is_thinned: Option<bool>,
    /// Bytes of the object.
    pub bytes: u64,
    /// Below the replica.
    pub key: String,
}

impl Replica {
    /// A reader of the replica at the root of `store`. Reads nothing yet.
    pub fn new(store: Arc<dyn Store>, cache: Arc<BlockCache>) -> Arc<Self> {
        let fetcher = Arc::new(Fetcher::new(store, cache));
        Arc::new(Self {
            loader: tokio::sync::Mutex::new(Loader::new(Arc::clone(&fetcher))),
            fetcher,
            state: RwLock::default(),
            located: RwLock::default(),
            overlays: Mutex::new(LruCache::new(OVERLAYS)),
            building: tokio::sync::Mutex::new(()),
        })
    }

    /// Looks for what is new: one LIST, and the footers of new objects. Damage that it finds is
    /// not an error of this call but of those that need the damaged object; see
    /// [`Replica::troubles`].
    ///
    /// # Errors
    /// `Unavailable`, `NotFound` if there is no replica here. Then all is as it was before.
    pub async fn refresh(&self) -> Result<()> {
        let mut loader = self.loader.lock().await;
        let old = self.state();
        if let Some(Refreshed { catalog, histories }) = loader.refresh(&old.histories).await? {
            let state = Arc::new(State { catalog, histories });
            let mut known = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let before = std::mem::replace(&mut *known, state);
            // Freeing it takes its time, and others wait for the lock.
            drop(known);
            drop(before);
        }
        self.set_located(None);
        Ok(())
    }

    /// The restore point that a moment means, by parentage or in one generation, as
    /// [`Replica::resolve`] and [`Replica::resolve_in`] give it after a refresh, for the cost of
    /// one LIST and what this moment needs. All else that this replica shows stays as it was, but
    /// for the point, which can be opened until the next call or the next refresh.
    ///
    /// # Errors
    /// As [`Replica::refresh`] and [`Replica::resolve`]; then all was refreshed.
    pub async fn locate(
        &self,
        moment: Moment,
        generation: Option<GenerationId>,
    ) -> Result<RestorePoint> {
        let mut loader = self.loader.lock().await;
        if let Some((Refreshed { catalog, histories }, point)) =
            loader.locate(moment, generation).await?
        {
            self.set_located(Some(Arc::new(State { catalog, histories })));
            return Ok(point);
        }
        drop(loader);
        self.refresh().await?;
        match generation {
            Some(generation) => self.resolve_in(generation, moment),
            None => self.resolve(moment),
        }
    }

    fn set_located(&self, state: Option<Arc<State>>) {
        *self.located.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// What is damaged or missing, as the last refresh saw it; each error names an object or a
    /// transaction.
    pub fn troubles(&self) -> Vec<Error> {
        let state = self.state();
        state
            .histories
            .values()
            .flat_map(|history| history.troubles())
            .map(|error| self.located(error))
            .collect()
    }

    /// The restore points that a query names, ascending by (generation, txid).
    pub fn points(&self, query: &PointsQuery) -> Vec<RestorePoint> {
        let state = self.state();
        let limit = query.newest.unwrap_or(usize::MAX);
        let histories = state.histories.values().rev();
        let mut points: Vec<RestorePoint> = histories
            .filter(|history| query.generation.is_none_or(|id| id == history.id))
            .flat_map(|history| history.points_back(query.since, query.until))
            .take(limit)
            .collect();
        points.reverse();
        points
    }

    /// All restore points that can be opened.
    pub fn all_points(&self) -> Points {
        Points::all(&self.state().histories)
    }

    /// The restore points that times mean: not those that a later generation hides.
    pub fn points_by_time(&self) -> Points {
        Points::by_time(&self.state().histories)
    }

    /// The restore point that a moment means (DESIGN: by parentage, from the highest generation).
    ///
    /// # Errors
    /// `NotFound`: there is none, or the moment lies before the history. `Corrupt`, `Invalid`: what
    /// is damaged or missing might hold it.
    pub fn resolve(&self, moment: Moment) -> Result<RestorePoint> {
        let state = self.state();
        let histories = &state.histories;
        let resolved = match moment {
            Moment::Latest => plan::highest(histories).and_then(|(id, history)| {
                let none = || Error::not_found(format!("generation {id} has no restore point"));
                history
                    .at(Timestamp::from_micros(i64::MAX), None)?
                    .ok_or_else(none)
            }),
            Moment::At(time) => plan::resolve_at(histories, time),
            Moment::Txid(Some(id), txid) => within(histories, id, Moment::Txid(None, txid)),
            Moment::Txid(None, txid) => newest_with(histories, txid),
        };
        resolved.map_err(|error| self.located(error))
    }

    /// The restore point that a moment means in one generation, whatever came before or after it.
    ///
    /// # Errors
    /// As [`Replica::resolve`]; `Invalid` if the moment names another generation.
    pub fn resolve_in(&self, generation: GenerationId, moment: Moment) -> Result<RestorePoint> {
        let state = self.state();
        let resolved = within(&state.histories, generation, moment);
        resolved.map_err(|error| self.located(error))
    }

    /// The same error, with the replica named if the object alone is.
    fn located(&self, error: Error) -> Error {
        let location = self.fetcher.store.location();
        match error.to_string().contains(location) {
            true => error,
            false => error.context(location),
        }
    }

    /// A restore point by its exact name.
    pub fn point(&self, generation: GenerationId, txid: Txid) -> Option<RestorePoint> {
        self.state().histories.get(&generation)?.point(txid)
    }

    /// True if a restore point is gone, and nothing that is damaged or missing may be why.
    pub(crate) fn has_dropped(&self, point: &RestorePoint) -> bool {
        let state = self.state();
        let history = state.histories.get(&point.generation);
        history.is_none_or(|h| h.point(point.txid).is_none() && h.troubles().next().is_none())
    }

    /// The level of the segment that holds a restore point; `None` for that of a snapshot.
    pub fn level(&self, point: &RestorePoint) -> Option<u8> {
        let state = self.state();
        state.histories.get(&point.generation)?.level(point.txid)
    }

    /// The snapshot that a restore point is read from: the pages that nobody wrote since.
    ///
    /// # Errors
    /// `NotFound` if it is no restore point; `Corrupt` if something is missing or damaged.
    pub fn snapshot_under(&self, point: &RestorePoint) -> Result<Txid> {
        let state = self.state();
        let (_, needed) = self.needed(&state, point)?;
        Ok(needed.base.txid)
    }

    fn needed<'a>(&self, state: &'a State, point: &RestorePoint) -> Result<(&'a History, Needed)> {
        let history = state.histories.get(&point.generation);
        let history = history.ok_or_else(|| {
            self.located(Error::not_found(format!(
                "there is no generation {}",
                point.generation
            )))
        })?;
        let needed = history.needed(point.txid);
        Ok((history, needed.map_err(|error| self.located(error))?))
    }

    /// The keys of all objects that hold pages of a restore point: the snapshot that it is read
    /// from, those that its map names, and the segments that are laid over it.
    ///
    /// # Errors
    /// As [`Replica::snapshot_under`].
    pub fn keys_under(&self, point: &RestorePoint) -> Result<HashSet<String>> {
        let state = self.state();
        let (history, needed) = self.needed(&state, point)?;
        let base = &needed.base;
        let laid = history.laid(&needed.pieces, base.since, usize::MAX);
        let segments = laid.iter().map(|piece| piece.segment.object.key.clone());
        let homes = base.homes.values().map(|home| home.key.clone());
        let own = std::iter::once(base.object.key.clone());
        Ok(own.chain(homes).chain(segments).collect())
    }

    /// The newest restore point of all that can be opened, if there is one.
    pub fn newest(&self) -> Option<RestorePoint> {
        let state = self.state();
        state
            .histories
            .values()
            .rev()
            .find_map(|history| history.last())
    }

    /// Bytes in a page of this generation's database.
    pub fn page_size(&self, generation: GenerationId) -> Option<u32> {
        let page_size = self.state().histories.get(&generation)?.page_size()?;
        Some(page_size.get())
    }

    /// The claim of the highest generation; `None` if it is gone or damaged.
    pub fn highest_claim(&self) -> Option<Claim> {
        let state = self.state();
        let (_, highest) = state.histories.last_key_value()?;
        highest.claim.as_ref().map(|read| read.claim.clone())
    }

    /// All generations, ascending, those too that readers cannot use.
    pub fn generations(&self) -> Vec<GenerationInfo> {
        let state = self.state();
        let info = |(id, history): (&GenerationId, &Arc<History>)| {
            let listed = state.catalog.generations.get(id)?;
            let snapshots = listed.snapshots.iter().map(|s| s.object.size);
            let parts = listed.parts.iter().map(|p| p.object.size);
            let segments = listed.segments.iter().map(|s| s.object.size);
            let claim = listed.claim.iter().map(|claim| claim.size);
            Some(GenerationInfo {
                id: *id,
                claim: history.claim.as_ref().map(|read| read.claim.clone()),
                first: history.first(),
                last: history.last(),
                page_size: history.page_size().map(|size| size.get()),
                snapshots: listed.snapshots.len(),
                segments: listed.segments.len(),
                bytes: claim.chain(parts).chain(snapshots).chain(segments).sum(),
            })
        };
        state.histories.iter().filter_map(info).collect()
    }

    /// All snapshots, ascending by (generation, txid).
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let state = self.state();
        let mut infos = Vec::new();
        for (id, history) in &state.histories {
            let Some(listed) = state.catalog.generations.get(id) else {
                continue;
            };
            for snapshot in &listed.snapshots {
                let key = &snapshot.object.key;
                let index = history.snapshots.iter().position(|s| s.object.key == *key);
                let read = index.map(|index| &history.snapshots[index]);
                infos.push(SnapshotInfo {
                    generation: *id,
                    txid: snapshot.txid,
                    time: snapshot.time,
                    bytes: snapshot.object.size,
                    pages: read.map(|read| read.root.pages),
                    stored: read.map(|read| read.stored),
                    raw_bytes: read.map(|read| read.stored * u64::from(read.page_size.get())),
                    is_exact: read.map(|read| read.is_exact),
                    is_complete: index.is_some_and(|index| history.is_complete(index)),
                    key: key.clone(),
                });
            }
        }
        infos
    }

    /// All segments, ascending by (generation, first txid, level), superseded ones too.
    pub fn segments(&self, generation: Option<GenerationId>) -> Vec<SegmentInfo> {
        let state = self.state();
        let mut infos = Vec::new();
        let histories = state.histories.iter();
        for (id, history) in histories.filter(|(id, _)| generation.is_none_or(|only| only == **id))
        {
            let Some(listed) = state.catalog.generations.get(id) else {
                continue;
            };
            let read: HashMap<&str, &Arc<_>> = history
                .segments
                .iter()
                .map(|s| (s.object.key.as_str(), s))
                .collect();
            infos.extend(listed.segments.iter().map(|segment| {
                let read = read.get(segment.object.key.as_str());
                let last_point = read.and_then(|read| read.timeline.last());
                let versions = read.map(|read| read.versions);
                let page_size = history.page_size().map(|size| u64::from(size.get()));
                SegmentInfo {
                    generation: *id,
                    level: segment.level,
                    first: segment.first,
                    last: read.map(|read| read.last).or(segment.last),
                    time: segment.time.or(last_point.map(|point| point.time)),
                    count: read.map(|read| read.timeline.count() as u64),
                    versions,
                    raw_bytes: versions.zip(page_size).map(|(count, size)| count * size),
                    is_thinned: read.map(|read| read.is_thinned()),
                    bytes: segment.object.size,
                    key: segment.object.key.clone(),
                }
            }));
        }
        infos
    }

    /// Opens a moment: reads the page map and the indexes that are not in memory yet.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Unavailable`.
    pub async fn open(self: &Arc<Self>, point: &RestorePoint) -> Result<Arc<Database>> {
        let mut plans = 1;
        let layout = loop {
            match self.layout(point).await {
                // What the plan names is gone: another listing shows what took its place.
                Err(error) if error.kind() == ErrorKind::NotFound && plans < PLANS => {
                    plans += 1;
                    self.fetcher.store.doubt_listing();
                    self.refresh().await?;
                }
                layout => break layout?,
            }
        };
        let database = Arc::new(Database::new(Arc::clone(self), *point, layout));
        if let Some(hydrator) = self.fetcher.cache.hydrator() {
            hydrator.opened(&database);
        }
        Ok(database)
    }

    /// The objects of a moment, as the last listing shows them.
    pub(crate) async fn layout(self: &Arc<Self>, point: &RestorePoint) -> Result<Arc<Layout>> {
        let state = self.state_with(point);
        let location = self.fetcher.store.location();
        let id = point.generation;
        let history = state
            .histories
            .get(&id)
            .ok_or_else(|| Error::not_found(format!("{location}: there is no generation {id}")))?;
        let named = |error: Error| self.located(error);
        let pages = named_point(history, point.txid).map_err(named)?.pages;
        let needed = history.needed(point.txid).map_err(named)?;
        let (overlay, ()) = tokio::try_join!(
            self.overlay(history, point.txid, &needed),
            self.warm(&needed)
        )?;
        Ok(Arc::new(Layout {
            page_size: needed.base.page_size,
            base: needed.base,
            overlay,
            through: point.txid,
            pages,
        }))
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What was located, if that has this point.
    fn state_with(&self, point: &RestorePoint) -> Arc<State> {
        let located = self.located.read().unwrap_or_else(PoisonError::into_inner);
        let has_point = |state: &&Arc<State>| {
            let history = state.histories.get(&point.generation);
            history.is_some_and(|history| history.point(point.txid).is_some())
        };
        match located.as_ref().filter(has_point) {
            Some(state) => Arc::clone(state),
            None => self.state(),
        }
    }

    pub(crate) fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    /// The overlay of a snapshot, made as far as a moment needs it.
    async fn overlay(&self, history: &History, txid: Txid, needed: &Needed) -> Result<Arc<Layers>> {
        let key = needed.base.object.number;
        let ready = |built: &Built| built.through >= txid && built.serves(txid);
        let kept = || locked(&self.overlays).get(&key).cloned();
        if let Some(built) = kept().filter(ready) {
            return Ok(built.overlay);
        }
        let _building = self.building.lock().await;
        let mut built = match kept() {
            Some(built) if ready(&built) => return Ok(built.overlay),
            Some(built) if built.serves(txid) => built,
            _ => Built::new(&needed.base),
        };
        loop {
            let pieces = history.laid(&needed.pieces, built.through, LAYERS);
            if pieces.is_empty() {
                break;
            }
            built = self.extended(built, &pieces).await?;
        }
        self.keep(key, built.clone());
        Ok(built.overlay)
    }

    fn keep(&self, key: ObjectNumber, built: Built) {
        let mut kept = locked(&self.overlays);
        kept.put(key, built);
        let mut bytes = 0;
        let idle = kept.iter().filter(|(_, built)| built.is_idle());
        let surplus = idle.filter_map(|(&key, built)| {
            bytes += built.overlay.bytes();
            (bytes > OVERLAY_BYTES).then_some(key)
        });
        for key in surplus.collect::<Vec<_>>() {
            kept.pop(&key);
        }
    }

    async fn extended(&self, built: Built, pieces: &[Laid]) -> Result<Built> {
        let objects = pieces.iter().map(|piece| Arc::clone(&piece.segment.object));
        let objects = objects.collect();
        let tables = self.fetcher.tables(objects).await?;
        let mut last = built.last;
        let mut shrinks = Vec::new();
        for piece in pieces {
            shrinks.push(shrinks_in(piece, &mut last));
        }
        let mut layers = Vec::new();
        for ((piece, table), shrinks) in pieces.iter().zip(&tables).zip(&shrinks) {
            let Slots::Versions(versions) = &table.slots else {
                let key = &piece.segment.object.key;
                return Err(Error::corrupt(format!("{key}: it is no segment")));
            };
            layers.push(Layer {
                object: &piece.segment.object,
                versions,
                from: piece.from,
                to: piece.to,
                shrinks,
            });
        }
        let thinned = pieces.iter().map(|piece| &piece.segment);
        let thinned = thinned.filter(|segment| segment.is_thinned());
        let overlay = built.overlay.extended(layers).ok_or_else(|| {
            let last = pieces.last().map_or(built.through, |piece| piece.to);
            Error::corrupt(format!(
                "txid {last} lies more than four billion behind the snapshot before it"
            ))
        })?;
        Ok(Built {
            overlay: Arc::new(overlay),
            through: pieces.last().map_or(built.through, |piece| piece.to),
            last,
            thinned: [built.thinned, thinned.cloned().collect()].concat(),
        })
    }

    /// Reads what the first queries of a moment will need: leaves of the map, block tables, and
    /// the interior pages.
    async fn warm(&self, needed: &Needed) -> Result<()> {
        let base = &needed.base;
        let interior = needed.interior.as_ref();
        let interior = interior.filter(|s| !s.interior_read.load(Ordering::Relaxed));
        tokio::try_join!(self.warm_leaves(base), self.warm_tables(base), async {
            match interior {
                Some(snapshot) => self.warm_interior(snapshot).await,
                None => Ok(()),
            }
        })?;
        Ok(())
    }

    async fn warm_leaves(&self, base: &Snapshot) -> Result<()> {
        let mut leaves = all_leaves(base)?;
        let numbers = leaves.iter().map(|(object, _)| object.number);
        let others: HashSet<_> = numbers.filter(|n| *n != base.object.number).collect();
        if others.len() > HOMES_AT_OPEN {
            leaves = own_leaves(base)?;
        }
        if leaf_bytes(&leaves) <= LEAF_BYTES_AT_OPEN {
            self.fetcher.leaves(&leaves).await?;
        }
        Ok(())
    }

    async fn warm_tables(&self, base: &Snapshot) -> Result<()> {
        // The snapshot itself is among them, and its own table came with its footer.
        if base.homes.len() <= HOMES_AT_OPEN + 1 {
            self.fetcher
                .tables(base.homes.values().cloned().collect())
                .await?;
        }
        Ok(())
    }

    /// Interior pages go into the cache under the places that the map names, where a read that
    /// comes through any map looks first; those whose leaves lie elsewhere, or are not read because
    /// they take too much, under their numbers, for reads through the map of this snapshot.
    async fn warm_interior(&self, snapshot: &Snapshot) -> Result<()> {
        let Some(section) = &snapshot.interior else {
            return Ok(());
        };
        let mut refs = own_leaves(snapshot)?;
        let cache = &self.fetcher.cache;
        if leaf_bytes(&refs) > LEAF_BYTES_AT_OPEN {
            let is_there = |place: &LeafRef| cache.leaf(snapshot.object.number, place.offset);
            refs.retain(|(_, place)| is_there(place).is_some());
        }
        let already = locked(&snapshot.interior_stored).take();
        let (pages, leaves) = tokio::try_join!(
            self.fetcher
                .interior(&snapshot.object, section, already, snapshot.page_size),
            self.fetcher.leaves(&refs),
        )?;
        let leaves = refs.iter().map(|(_, place)| place.offset).zip(leaves);
        let leaves: HashMap<u64, _> = leaves.collect();
        for (pgno, page) in pages {
            let place = snapshot.root.leaves.get(Layout::leaf_index(pgno));
            let Some(place) = place.copied().flatten() else {
                continue;
            };
            let own = snapshot.home(place.object)?.number == snapshot.object.number;
            match leaves.get(&place.offset).filter(|_| own) {
                Some(leaf) => {
                    if let Some((id, slot)) = leaf.locate(pgno) {
                        let object = snapshot.home(id)?.number;
                        cache.put(object, Piece::Page(slot), page.into());
                    }
                }
                None => {
                    let piece = Piece::Interior(pgno.get());
                    cache.put(snapshot.object.number, piece, page.into());
                }
            }
        }
        snapshot.interior_read.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Built {
    fn new(base: &Snapshot) -> Self {
        // How large the database was at the `since` of a fuzzy snapshot is not known: its first
        // entry counts as a shrink, which cuts off nothing that was not written again.
        let pages = if base.since == base.txid {
            base.root.pages
        } else {
            u32::MAX
        };
        Self {
            overlay: Arc::new(Overlay::new(base.since)),
            through: base.since,
            last: (base.since, pages),
            thinned: Vec::new(),
        }
    }

    /// True if no moment is read through it.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.overlay) == 1
    }

    /// True if a moment may be read through it, or through what it grows to: no object that it
    /// names is gone, and it holds all that the moment sees.
    fn serves(&self, txid: Txid) -> bool {
        let mut objects = self.overlay.objects().iter();
        let is_whole = objects.all(|object| !object.is_gone());
        is_whole && self.thinned.iter().all(|segment| segment.serves(txid))
    }
}

/// Where the database was smaller than at the entry before.
fn shrinks_in(piece: &Laid, last: &mut (Txid, u32)) -> Vec<Shrink> {
    let timeline = &piece.segment.timeline;
    let start = timeline.partition_point(|point| point.txid < piece.from);
    let end = timeline.partition_point(|point| point.txid <= piece.to);
    let mut shrinks = Vec::new();
    // What its own segment counts from.
    let before = start.checked_sub(1).and_then(|index| timeline.get(index));
    let mut counts_from = before.map_or(piece.segment.first, |before| before.txid.next());
    for point in timeline.points(start..end.max(start)) {
        // A size from before the piece says nothing of what another segment has up to there.
        let min_pages = match counts_from < piece.from {
            true => point.pages,
            false => point.min_pages,
        };
        counts_from = point.txid.next();
        if min_pages < last.1 {
            shrinks.push(Shrink {
                after: last.0,
                txid: point.txid,
                min_pages,
            });
        }
        *last = (point.txid, point.pages);
    }
    shrinks
}

/// Where the leaves of a map lie.
pub(crate) fn all_leaves(base: &Snapshot) -> Result<Vec<(Arc<Object>, LeafRef)>> {
    let leaves = base.root.leaves.iter().flatten();
    leaves
        .map(|leaf| Ok((Arc::clone(base.home(leaf.object)?), *leaf)))
        .collect()
}

/// Those that lie in the snapshot itself.
fn own_leaves(snapshot: &Snapshot) -> Result<Vec<(Arc<Object>, LeafRef)>> {
    let mut leaves = all_leaves(snapshot)?;
    leaves.retain(|(object, _)| object.number == snapshot.object.number);
    Ok(leaves)
}

fn leaf_bytes(leaves: &[(Arc<Object>, LeafRef)]) -> u64 {
    leaves.iter().map(|(_, leaf)| u64::from(leaf.length)).sum()
}

fn named_point(history: &History, txid: Txid) -> Result<RestorePoint> {
    history
        .point(txid)
        .ok_or_else(|| match history.needed(txid) {
            Err(error) => error,
            Ok(_) => unreachable!("what can be planned is a restore point"),
        })
}

/// What a moment means in one generation.
fn within(histories: &Histories, id: GenerationId, moment: Moment) -> Result<RestorePoint> {
    let history = histories
        .get(&id)
        .ok_or_else(|| Error::not_found(format!("there is no generation {id}")))?;
    let time = match moment {
        Moment::Latest => Timestamp::from_micros(i64::MAX),
        Moment::At(time) => time,
        Moment::Txid(Some(named), _) if named != id => {
            return Err(Error::invalid(format!(
                "the txid is one of generation {named}, and generation {id} is asked for"
            )));
        }
        Moment::Txid(_, txid) => {
            return history
                .needed(txid)
                .and_then(|_| named_point(history, txid));
        }
    };
    history.at(time, None)?.ok_or_else(|| {
        Error::not_found(match history.first() {
            Some(first) => format!(
                "{time} lies before the first restore point of generation {id}, {}",
                first.time
            ),
            None => format!("generation {id} has no complete snapshot"),
        })
    })
}

/// A transaction of the newest generation that has it.
fn newest_with(histories: &Histories, txid: Txid) -> Result<RestorePoint> {
    for history in histories.values().rev() {
        if let Some(point) = history.point(txid) {
            return Ok(point);
        }
        if let Some(error) = history.broken_at(txid) {
            return Err(error);
        }
    }
    let newest = histories.values().rev().find_map(|history| history.last());
    Err(Error::not_found(match newest {
        Some(newest) => format!(
            "no generation has a restore point at txid {txid}; the newest one is txid {} of \
             generation {}",
            newest.txid, newest.generation
        ),
        None => format!("no generation has a restore point at txid {txid}"),
    }))
}

#[cfg(test)]
mod cold;
#[cfg(test)]
mod kept;
#[cfg(test)]
mod tests;
