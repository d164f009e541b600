//! From listings to histories: finds what is new in a replica and reads it, once.
//!
//! A refresh that finds nothing new costs one LIST. New objects are read in parallel: of claims all
//! bytes; of snapshots the footer and the map's root; of segments the footer and the timeline, and
//! what finds their pages where that comes along. Footers of level-0 segments carry hints about
//! those before them, so only some of them are read.
//!
//! Objects come and go between the LIST and the reads: what has vanished is looked for in another
//! listing. What is damaged is kept as [`Damage`], and read again by the next refresh.

use crate::error::{Error, ErrorKind, Result};
use crate::format::claim::Claim;
use crate::format::container::{Footer, Header, Kind, Parent, SectionKind, SectionRef};
use crate::format::ids::{GenerationId, ObjectHash, RestorePoint, Timestamp, Txid};
use crate::format::interior::STORED_MAX;
use crate::format::key::{GENERATIONS, Key, ObjectKey};
use crate::format::moment::Moment;
use crate::format::segment::{Predecessor, SegmentIndex, decode_predecessors};
use crate::format::snapshot::{Home, MapRoot};
use crate::materialize::cache::{Index, IndexPiece, Table};
use crate::materialize::fetch::{self, Fetcher, PARALLEL};
use crate::materialize::history::{
    Border, Damage, Damaged, History, Lack, Object, Parts, ReadClaim, Segment, Snapshot,
};
use crate::materialize::narrow::{self, Narrowed, Selection};
use crate::materialize::plan::{self, Line};
use crate::materialize::timeline::Point;
use crate::storage::catalog::{Catalog, GenerationListing, SegmentListing, SnapshotListing};
use crate::storage::cover::Span;
use crate::storage::object::{StoredObject, get_exactly};
use crate::storage::{Listed, Store};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{Stream, StreamExt};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

/// Listings that one refresh takes at most.
const LISTINGS: u32 = 3;
/// Of the level-0 segments that no hint covers yet, every so manieth is read: a footer has hints
/// for up to 64, fewer when they are large. The last round reads what is left.
const STRIDES: [usize; 3] = [32, 8, 1];
/// The first read of a segment of which the footer alone is needed, bytes.
const BORDER_BYTES: u64 = 4 << 10;
/// The largest claim that is read, bytes.
const CLAIM_BYTES: u64 = 1 << 20;

/// All generations that a listing shows.
pub(crate) type Histories = BTreeMap<GenerationId, Arc<History>>;

/// What was read so far, by key.
pub(crate) struct Loader {
    fetcher: Arc<Fetcher>,
    /// The last listing.
    catalog: Arc<Catalog>,
    /// Nothing was damaged or missing in it.
    is_settled: bool,
    /// The snapshots that needed what was not listed.
    incomplete: HashSet<String>,
    objects: HashMap<String, Arc<Object>>,
    claims: HashMap<String, Arc<ReadClaim>>,
    snapshots: HashMap<String, Arc<Snapshot>>,
    segments: HashMap<String, Arc<Segment>>,
}

/// Something to read.
enum Job {
    Claim(GenerationId, Arc<Object>),
    /// With so many bytes before its index.
    Snapshot(GenerationId, SnapshotListing, Arc<Object>, u64),
    /// With what finds its pages, or without.
    Segment(GenerationId, SegmentListing, Arc<Object>, bool),
}

impl Job {
    async fn read(&self, fetcher: &Fetcher) -> Result<Loaded> {
        match self {
            Self::Claim(id, object) => read_claim(fetcher, *id, object).await,
            Self::Snapshot(id, listed, object, before) => {
                read_snapshot(fetcher, *id, listed, object, *before).await
            }
            Self::Segment(id, listed, object, opening) => {
                read_segment(fetcher, *id, listed, object, *opening).await
            }
        }
    }
}

/// Something that was read.
enum Loaded {
    Claim(ReadClaim),
    Snapshot(Box<ReadSnapshot>),
    Segment(Segment, Vec<Predecessor>),
}

/// A snapshot without the objects that its root names.
struct ReadSnapshot {
    header: Header,
    root: MapRoot,
    stored: u64,
    point: Point,
    interior: Option<SectionRef>,
    interior_stored: Option<Bytes>,
}

/// What went wrong with which object.
type Failures = HashMap<String, (GenerationId, Damaged, Error)>;

/// What the first segments that are read may go on from, by generation.
type Borders = BTreeMap<GenerationId, Border>;

/// The segments that count, by generation.
type Counting<'a> = HashMap<GenerationId, Vec<&'a SegmentListing>>;

/// What a refresh found.
pub(crate) struct Refreshed {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) histories: Histories,
}

impl Loader {
    pub(crate) fn new(fetcher: Arc<Fetcher>) -> Self {
        Self {
            fetcher,
            catalog: Arc::default(),
            is_settled: false,
            incomplete: HashSet::new(),
            objects: HashMap::new(),
            claims: HashMap::new(),
            snapshots: HashMap::new(),
            segments: HashMap::new(),
        }
    }

    /// Lists the replica and reads what is new; `None` if nothing is.
    ///
    /// # Errors
    /// `Unavailable`; `NotFound` if there is no replica. Damage is not an error here.
    pub(crate) async fn refresh(&mut self, old: &Histories) -> Result<Option<Refreshed>> {
        let mut listing = 0;
        loop {
            listing += 1;
            if listing > 1 || !self.is_settled {
                // What a daemon told may be why something is missing.
                self.fetcher.store.doubt_listing();
            }
            let listed = self.fetcher.store.list(GENERATIONS, None).await?;
            if listed.is_empty() {
                let location = self.fetcher.store.location();
                return Err(Error::not_found(format!(
                    "{location} holds no replica: there is no object below {GENERATIONS}"
                )));
            }
            let catalog = Catalog::new(listed);
            if listing == 1 && self.is_settled && catalog == *self.catalog {
                return Ok(None);
            }
            self.forget_unlisted(&catalog);
            let counting: Counting = catalog.generations.iter().map(counting).collect();
            let mut failures = self.read_new(&catalog, &counting, false).await?;
            self.reread_claims(&catalog, &mut failures).await?;
            let vanished = failures
                .values()
                .any(|(_, _, e)| e.kind() == ErrorKind::NotFound);
            // A listing is no single moment: what a root names may have come after its page of it.
            let lacking = self.incomplete();
            let unsure = vanished || !lacking.is_subset(&self.incomplete);
            self.incomplete = lacking;
            let histories = self.assemble(&catalog, &counting, failures, &Borders::new(), old);
            self.forget_incomplete();
            self.forget_superseded(&counting);
            self.catalog = Arc::new(catalog);
            self.is_settled = histories.values().all(|history| history.damage.is_empty());
            self.keep_claims(&histories);
            if !unsure || listing == LISTINGS {
                let catalog = Arc::clone(&self.catalog);
                return Ok(Some(Refreshed { catalog, histories }));
            }
        }
    }

    /// Lists the replica and reads what one moment needs, by the names. `None` if that does not
    /// lead to a clean point: then the whole listing says what the moment means.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(crate) async fn locate(
        &mut self,
        moment: Moment,
        generation: Option<GenerationId>,
    ) -> Result<Option<(Refreshed, RestorePoint)>> {
        let catalog = Catalog::new(self.fetcher.store.list(GENERATIONS, None).await?);
        // The next refresh must not take what it has for all that there is.
        self.is_settled &= catalog == *self.catalog;
        self.forget_unlisted(&catalog);
        let mut selection = loop {
            let claims = |id| self.parent(&catalog, id);
            match narrow::narrow(&catalog, &claims, moment, generation) {
                Narrowed::To(selection) => break selection,
                Narrowed::Claims(ids) if self.read_claims(&catalog, &ids).await? => {}
                Narrowed::Claims(_) | Narrowed::Unclear => return Ok(None),
            }
        };
        if !self.read_selected(&selection.catalog).await? {
            return Ok(None);
        }
        if self.add_interior(&mut selection) && !self.read_selected(&selection.catalog).await? {
            return Ok(None);
        }
        let Some(borders) = self.borders(&selection).await? else {
            return Ok(None);
        };
        let counting: Counting = selection.catalog.generations.iter().map(counting).collect();
        let none = Histories::new();
        let failures = Failures::new();
        let histories = self.assemble(&selection.catalog, &counting, failures, &borders, &none);
        self.forget_incomplete();
        let point = found(&selection, &histories, moment);
        let catalog = Arc::new(selection.catalog);
        Ok(point.map(|point| (Refreshed { catalog, histories }, point)))
    }

    /// Reads what a moment is to be opened from; true if all of it could be read.
    async fn read_selected(&mut self, catalog: &Catalog) -> Result<bool> {
        let counting: Counting = catalog.generations.iter().map(counting).collect();
        let mut failures = self.read_new(catalog, &counting, true).await?;
        self.reread_claims(catalog, &mut failures).await?;
        Ok(failures.is_empty())
    }

    /// Selects the snapshots that carry interior pages where the bases do not; true if there are
    /// any.
    fn add_interior(&self, selection: &mut Selection) -> bool {
        let mut is_any = false;
        for (id, first) in std::mem::take(&mut selection.interior) {
            let listing = selection.catalog.generations.get_mut(&id);
            let snapshots = &mut listing.expect("it was selected").snapshots;
            let carries = |listed: &SnapshotListing| {
                let read = self.snapshots.get(&listed.object.key);
                read.is_some_and(|snapshot| snapshot.interior.is_some())
            };
            if !snapshots.first().is_some_and(carries) {
                snapshots.insert(0, first);
                is_any = true;
            }
        }
        is_any
    }

    /// What the first segments of a selection go on from: as the snapshot before them says that was
    /// read, else as the segments before them say. `None` if one of these is not what its name
    /// says.
    async fn borders(&self, selection: &Selection) -> Result<Option<Borders>> {
        let said = |(id, listed): &(GenerationId, SegmentListing)| {
            let mut snapshots = selection.catalog.generations[id].snapshots.iter();
            let snapshot = snapshots.find(|snapshot| Some(snapshot.txid) == listed.last)?;
            let key = &snapshot.object.key;
            let border = Border {
                key: key.clone(),
                last: snapshot.txid,
                hands_on: self.snapshots.get(key)?.hands_on?,
            };
            Some((*id, border))
        };
        let known: Borders = selection.borders.iter().filter_map(said).collect();
        let unknown = selection.borders.iter();
        let unknown: Vec<_> = unknown.filter(|(id, _)| !known.contains_key(id)).collect();
        let read = read_borders(&self.fetcher, &unknown).await?;
        Ok(read.map(|read| read.into_iter().chain(known).collect()))
    }

    /// What the claim of a generation names, if it was read.
    fn parent(&self, catalog: &Catalog, id: GenerationId) -> Option<Option<Parent>> {
        let claim = catalog.generations.get(&id)?.claim.as_ref()?;
        Some(self.claims.get(&claim.key)?.claim.parent)
    }

    /// True if all of them could be read.
    async fn read_claims(&mut self, catalog: &Catalog, ids: &[GenerationId]) -> Result<bool> {
        let claim = |id: &GenerationId| Some((*id, catalog.generations.get(id)?.claim.as_ref()?));
        let jobs = ids.iter().filter_map(claim);
        let jobs = jobs.map(|(id, claim)| Job::Claim(id, self.object(claim)));
        let mut results = read_all(&self.fetcher, jobs.collect());
        let mut failures = Failures::new();
        while let Some((job, result)) = results.next().await {
            self.keep(job, result, &mut failures)?;
        }
        Ok(failures.is_empty() && !ids.is_empty())
    }

    fn forget_unlisted(&mut self, catalog: &Catalog) {
        let mut listed = HashSet::new();
        for object in catalog.generations.values().flat_map(objects) {
            listed.insert((object.key.as_str(), object.size));
        }
        let is_listed = |object: &Object| listed.contains(&(object.key.as_str(), object.size));
        self.objects.retain(|_, object| {
            let keep = is_listed(object);
            if !keep {
                object.set_gone();
            }
            keep
        });
        self.claims.retain(|key, _| self.objects.contains_key(key));
        self.snapshots
            .retain(|key, _| self.objects.contains_key(key));
        self.segments
            .retain(|key, _| self.objects.contains_key(key));
        for object in catalog.generations.values().flat_map(objects) {
            let store = &*self.fetcher.store;
            match self.objects.get(&object.key) {
                Some(known) => known.set_listed(store, object),
                None => {
                    let number = self.fetcher.cache.number_object();
                    let known = Object::new(number, store, object);
                    self.objects.insert(object.key.clone(), Arc::new(known));
                }
            }
        }
    }

    fn object(&self, listed: &Listed) -> Arc<Object> {
        Arc::clone(&self.objects[&listed.key])
    }

    /// The keys of snapshots that need what is not listed.
    fn incomplete(&self) -> HashSet<String> {
        let lacking = self
            .snapshots
            .iter()
            .filter(|(_, snapshot)| !self.is_complete(snapshot));
        lacking.map(|(key, _)| key.clone()).collect()
    }

    fn is_complete(&self, snapshot: &Snapshot) -> bool {
        self.lack(snapshot).is_none()
    }

    /// What a snapshot's root names and the listing does not show.
    fn lack(&self, snapshot: &Snapshot) -> Option<Lack> {
        let is_missing = |home: &&Home| {
            let listed = self.objects.get(&home.key);
            listed.is_none_or(|object| object.size != home.length)
        };
        let home = snapshot.root.homes.iter().find(is_missing)?;
        Some(Lack {
            key: home.key.clone(),
            length: home.length,
        })
    }

    /// What such a snapshot lacks may be listed later; it is read again then.
    fn forget_incomplete(&mut self) {
        let snapshots = std::mem::take(&mut self.snapshots).into_iter();
        self.snapshots = snapshots
            .filter(|(_, snapshot)| self.is_complete(snapshot))
            .collect();
    }

    /// Drops the segments for which others stand, which stay listed for a while.
    fn forget_superseded(&mut self, counting: &Counting<'_>) {
        let counting = counting.values().flatten();
        let keys: HashSet<&str> = counting.map(|s| s.object.key.as_str()).collect();
        self.segments.retain(|key, _| keys.contains(key.as_str()));
    }

    /// Reads what is not known yet. `opening` says that a moment of what is listed will be opened.
    async fn read_new(
        &mut self,
        catalog: &Catalog,
        counting: &Counting<'_>,
        opening: bool,
    ) -> Result<Failures> {
        let mut failures = Failures::new();
        let mut jobs = self.claims_and_snapshots(catalog, opening);
        for stride in STRIDES {
            let segments = self.segments_to_read(catalog, counting, &failures, stride);
            jobs.extend(segments.into_iter().map(|(id, listed)| {
                let object = self.object(&listed.object);
                Job::Segment(id, listed.clone(), object, opening)
            }));
            let mut results = read_all(&self.fetcher, std::mem::take(&mut jobs));
            // Each is kept as it comes: a caller that gives up and tries again gets on.
            while let Some((job, result)) = results.next().await {
                self.keep(job, result, &mut failures)?;
            }
        }
        Ok(failures)
    }

    fn claims_and_snapshots(&self, catalog: &Catalog, opening: bool) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (&id, generation) in &catalog.generations {
            let claim = generation.claim.iter();
            let claim = claim.filter(|claim| !self.claims.contains_key(&claim.key));
            jobs.extend(claim.map(|claim| Job::Claim(id, self.object(claim))));
            for (index, snapshot) in generation.snapshots.iter().enumerate() {
                if !self.snapshots.contains_key(&snapshot.object.key) {
                    let object = self.object(&snapshot.object);
                    // The first one carries interior pages, or it is the base, which may.
                    let before = match opening && index == 0 {
                        true => interior_bytes(generation, snapshot),
                        false => 0,
                    };
                    jobs.push(Job::Snapshot(id, snapshot.clone(), object, before));
                }
            }
        }
        jobs
    }

    /// The segments to read now: all new merged ones that count, and a sample of level 0. Without a
    /// snapshot a generation does not exist for readers, so its segments are left alone.
    fn segments_to_read<'a>(
        &self,
        catalog: &Catalog,
        counting: &Counting<'a>,
        failures: &Failures,
        stride: usize,
    ) -> Vec<(GenerationId, &'a SegmentListing)> {
        let mut segments = Vec::new();
        let with_snapshot = catalog
            .generations
            .iter()
            .filter(|(_, g)| !g.snapshots.is_empty());
        for (&id, _) in with_snapshot {
            let is_new = |segment: &&SegmentListing| {
                let key = &segment.object.key;
                !self.segments.contains_key(key) && !failures.contains_key(key)
            };
            let new = counting[&id].iter().copied().filter(is_new);
            let (uploads, merged): (Vec<_>, Vec<_>) = new.partition(|s| s.level == 0);
            let sampled = plan::sample(uploads.len(), stride);
            let sampled = sampled.into_iter().map(|index| uploads[index]);
            // The newest are the likeliest to be opened: what finds their pages comes first.
            let newest_first = merged.into_iter().chain(sampled).rev();
            segments.extend(newest_first.map(|segment| (id, segment)));
        }
        segments
    }

    fn keep(&mut self, job: Job, result: Result<Loaded>, failures: &mut Failures) -> Result<()> {
        let (id, what, object) = match job {
            Job::Claim(id, object) => (id, Damaged::Claim, object),
            Job::Snapshot(id, listed, object, _) => {
                let SnapshotListing { txid, time, .. } = listed;
                (id, Damaged::Snapshot { txid, time }, object)
            }
            Job::Segment(id, listed, object, _) => (id, damaged(&listed), object),
        };
        match result {
            Ok(Loaded::Claim(claim)) => {
                self.claims.insert(object.key.clone(), Arc::new(claim));
            }
            Ok(Loaded::Snapshot(read)) => {
                let snapshot = self.snapshot(&object, *read);
                self.snapshots
                    .insert(object.key.clone(), Arc::new(snapshot));
            }
            Ok(Loaded::Segment(segment, hints)) => {
                self.segments.insert(object.key.clone(), Arc::new(segment));
                self.take_hints(id, hints);
            }
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Disk) => {
                return Err(error);
            }
            Err(error) => {
                failures.insert(object.key.clone(), (id, what, error));
            }
        }
        Ok(())
    }

    fn snapshot(&self, object: &Arc<Object>, read: ReadSnapshot) -> Snapshot {
        let ReadSnapshot {
            header,
            root,
            stored,
            point,
            interior,
            interior_stored,
        } = read;
        // A home that is not listed makes the snapshot incomplete, so that nothing is read from it;
        // it may be listed next time, under the number that it gets then.
        let homes = root.homes.iter();
        let homes = homes.filter_map(|home| Some((home.id, self.objects.get(&home.key)?.clone())));
        let itself = (header.object_id, Arc::clone(object));
        Snapshot {
            homes: homes.chain([itself]).collect(),
            object: Arc::clone(object),
            txid: header.last,
            since: header.since,
            is_exact: header.exact,
            page_size: header.page_size,
            root,
            stored,
            point,
            hands_on: (header.last_input != ObjectHash([0; 32])).then_some(header.last_input),
            interior,
            interior_stored: Mutex::new(interior_stored),
            interior_read: AtomicBool::new(false),
        }
    }

    /// A hint counts only if the listing shows an object of that key and length.
    fn take_hints(&mut self, id: GenerationId, hints: Vec<Predecessor>) {
        for hint in hints {
            let object = self.objects.get(&hint.key);
            let object = object.filter(|object| object.size == hint.length);
            let (Some(object), Some(index)) = (object, hint.index) else {
                continue;
            };
            let upload = Key {
                generation: id,
                object: ObjectKey::Upload { first: hint.first },
            };
            if Key::parse(&hint.key) != Some(upload) || self.segments.contains_key(&hint.key) {
                continue;
            }
            let segment = Segment {
                object: Arc::clone(object),
                level: 0,
                first: hint.first,
                last: hint.last,
                previous: hint.previous,
                hands_on: hint.hash,
                page_size: None,
                timeline: Arc::new(index.timeline.iter().map(Point::from).collect()),
                marks: marks(&index),
                versions: index.versions.len() as u64,
            };
            let SegmentIndex {
                blocks, versions, ..
            } = index;
            let table = fetch::segment_table(hint.object_id, blocks, versions);
            keep_table(&self.fetcher, object, table);
            self.segments.insert(hint.key, Arc::new(segment));
        }
    }

    fn assemble(
        &self,
        catalog: &Catalog,
        counting: &Counting<'_>,
        failures: Failures,
        borders: &Borders,
        old: &Histories,
    ) -> Histories {
        let mut damage: HashMap<GenerationId, Vec<Damage>> = HashMap::new();
        for (id, what, error) in failures.into_values() {
            damage.entry(id).or_default().push(Damage {
                what,
                kind: match error.kind() {
                    // Listed again and again, and not there: that is no absence to ask around.
                    ErrorKind::NotFound => ErrorKind::Corrupt,
                    kind => kind,
                },
                sentence: error.to_string(),
            });
        }
        let mut histories = Histories::new();
        for (&id, generation) in &catalog.generations {
            let damage = damage.remove(&id).unwrap_or_default();
            let parts = Parts {
                border: borders.get(&id).cloned(),
                ..self.parts(id, generation, &counting[&id], damage)
            };
            let kept = old.get(&id).filter(|history| history.is_made_from(&parts));
            let history = kept
                .cloned()
                .unwrap_or_else(|| Arc::new(History::new(parts)));
            histories.insert(id, history);
        }
        histories
    }

    /// Has the disk cache keep claims. They have no checksum: what a claim says is certain once the
    /// segment that goes on from it carries its hash.
    fn keep_claims(&self, histories: &Histories) {
        for history in histories.values() {
            let Some(read) = &history.claim else {
                continue;
            };
            let is_certain = history
                .segments
                .iter()
                .any(|s| goes_on(s, read) == Some(true));
            let bytes = read.claim.encode();
            if is_certain && *blake3::hash(&bytes).as_bytes() == read.hash.0 {
                self.fetcher.keep_claim(&read.object, bytes);
            }
        }
    }

    /// Reads claims anew that the disk cache had and that do not fit.
    async fn reread_claims(&mut self, catalog: &Catalog, failures: &mut Failures) -> Result<()> {
        let mut jobs = Vec::new();
        for (&id, generation) in &catalog.generations {
            let claim = generation.claim.as_ref();
            let Some(read) = claim.and_then(|claim| self.claims.get(&claim.key)) else {
                continue;
            };
            let segments = generation.segments.iter();
            let segments = segments.filter_map(|listed| self.segments.get(&listed.object.key));
            let is_misfit = segments
                .map(|segment| goes_on(segment, read))
                .any(|fits| fits == Some(false));
            if is_misfit && self.fetcher.forget_claim(&read.object) {
                jobs.push(Job::Claim(id, Arc::clone(&read.object)));
            }
        }
        let mut results = read_all(&self.fetcher, jobs);
        while let Some((job, result)) = results.next().await {
            self.keep(job, result, failures)?;
        }
        Ok(())
    }

    fn parts(
        &self,
        id: GenerationId,
        generation: &GenerationListing,
        counting: &[&SegmentListing],
        mut damage: Vec<Damage>,
    ) -> Parts {
        damage.sort_by(|a, b| a.sentence.cmp(&b.sentence));
        let claim = generation.claim.as_ref();
        let snapshots = generation.snapshots.iter();
        let snapshots = snapshots.filter_map(|s| self.snapshots.get(&s.object.key));
        Parts {
            id,
            claim: claim.and_then(|claim| self.claims.get(&claim.key).cloned()),
            snapshots: snapshots
                .map(|snapshot| (Arc::clone(snapshot), self.lack(snapshot)))
                .collect(),
            segments: counting
                .iter()
                .filter_map(|s| self.segments.get(&s.object.key).cloned())
                .collect(),
            border: None,
            damage,
        }
    }
}

/// The point that a moment means, if what was selected by names alone holds it, whole and without
/// any doubt.
fn found(selection: &Selection, histories: &Histories, moment: Moment) -> Option<RestorePoint> {
    let is_known = |id: &GenerationId| histories.get(id).is_some_and(|history| history.exists());
    let is_clean = histories.values().all(|history| history.damage.is_empty());
    if !is_clean || !selection.before.iter().all(is_known) {
        return None;
    }
    for target in &selection.targets {
        let history = &histories[&target.generation];
        if !history.begins_at(target.base) {
            return None;
        }
        let point = match moment {
            Moment::Latest => history.at(Timestamp::from_micros(i64::MAX), None).ok()?,
            Moment::At(time) => history.at(time, selection.limit).ok()?,
            Moment::Txid(_, txid) if history.broken_at(txid).is_some() => return None,
            Moment::Txid(_, txid) => history.point(txid),
        };
        if let Some(point) = point {
            let is_certain = match moment {
                Moment::At(time) if target.is_cut => {
                    let is_last = point.time == time || Some(point.txid) == selection.limit;
                    is_last || history.after(point.txid).is_some()
                }
                Moment::At(_) | Moment::Latest | Moment::Txid(..) => true,
            };
            let is_opened = point.txid >= target.base && history.needed(point.txid).is_ok();
            return (is_certain && is_opened).then_some(point);
        }
    }
    None
}

/// What the interior pages that a snapshot carries take at most, as a rule, bytes: 0.2 % of a
/// database, up to a limit, and a first snapshot that comes in parts is larger than that; a later
/// one carries none that take more than a hundredth of it.
fn interior_bytes(generation: &GenerationListing, snapshot: &SnapshotListing) -> u64 {
    let limit = STORED_MAX as u64;
    match snapshot.txid > Txid::FIRST || generation.parts.is_empty() {
        true => limit.min(snapshot.object.size / 128),
        false => limit,
    }
}

/// Reads the footers of segments, as far as their ends; `None` if one is not what its name says.
async fn read_borders(
    fetcher: &Fetcher,
    wanted: &[&(GenerationId, SegmentListing)],
) -> Result<Option<Borders>> {
    let reads = wanted
        .iter()
        .map(|(id, listed)| read_border(fetcher, *id, listed));
    let mut borders = Borders::new();
    for (read, (id, _)) in join_all(reads).await.into_iter().zip(wanted) {
        match read {
            Ok(Some(border)) => borders.insert(*id, border),
            Err(e) if matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Disk) => {
                return Err(e);
            }
            Ok(None) | Err(_) => return Ok(None),
        };
    }
    Ok(Some(borders))
}

async fn read_border(
    fetcher: &Fetcher,
    id: GenerationId,
    listed: &SegmentListing,
) -> Result<Option<Border>> {
    let Listed { key, size, .. } = &listed.object;
    let object = Object::new(
        fetcher.cache.number_object(),
        &*fetcher.store,
        &listed.object,
    );
    let open = |store: Arc<dyn Store>| async move {
        StoredObject::open_tail(&*store, key, *size, BORDER_BYTES).await
    };
    let footer = fetcher.through(&object, open).await?.footer;
    let header = &footer.header;
    let named = narrow::span(listed);
    let is_named = header.level == named.level
        && header.first == named.first
        && (header.last == named.last || listed.level == 0 && header.last < named.last);
    if !is_named || agree(id, Kind::Segment, listed.hash8, &footer).is_err() {
        return Ok(None);
    }
    Ok(Some(Border {
        key: key.clone(),
        last: header.last,
        hands_on: hands_on(&footer),
    }))
}

/// The hash that the level-0 segment after a segment carries.
fn hands_on(footer: &Footer) -> ObjectHash {
    match footer.header.level {
        0 => footer.hash,
        _ => footer.header.last_input,
    }
}

/// Reads objects in parallel.
fn read_all(
    fetcher: &Arc<Fetcher>,
    jobs: Vec<Job>,
) -> impl Stream<Item = (Job, Result<Loaded>)> + Unpin + use<> {
    let fetcher = Arc::clone(fetcher);
    let read = move |job: Job| {
        let fetcher = Arc::clone(&fetcher);
        async move {
            let result = job.read(&fetcher).await;
            (job, result)
        }
    };
    let reads = futures_util::stream::iter(jobs).map(read);
    Box::pin(reads.buffer_unordered(PARALLEL))
}

fn objects(generation: &GenerationListing) -> impl Iterator<Item = &Listed> {
    let claim = generation.claim.iter();
    let parts = generation.parts.iter().map(|part| &part.object);
    let snapshots = generation.snapshots.iter().map(|snapshot| &snapshot.object);
    let segments = generation.segments.iter().map(|segment| &segment.object);
    claim.chain(parts).chain(snapshots).chain(segments)
}

/// The segments of a generation that stand for anything, in the order of the listing.
fn counting<'a>(
    (&id, generation): (&GenerationId, &'a GenerationListing),
) -> (GenerationId, Vec<&'a SegmentListing>) {
    let (standing, pieces) = narrow::standing(generation);
    let mut indexes: Vec<usize> = pieces.iter().map(|piece| piece.index).collect();
    indexes.sort_unstable();
    indexes.dedup();
    let segments = indexes.into_iter().map(|index| standing[index]);
    (id, segments.collect())
}

fn damaged(listed: &SegmentListing) -> Damaged {
    let Span { first, last, .. } = narrow::span(listed);
    Damaged::Segment { first, last }
}

/// Whether a segment carries the hash of a claim; `None` if another one is to.
fn goes_on(segment: &Segment, claim: &ReadClaim) -> Option<bool> {
    let is_first = segment.first == Txid::FIRST.next();
    is_first.then(|| segment.previous == claim.hash)
}

async fn read_claim(fetcher: &Fetcher, id: GenerationId, object: &Arc<Object>) -> Result<Loaded> {
    let location = fetcher.store.location();
    let named = |e: Error| e.context(format!("read {location}/{}", object.key));
    if object.size > CLAIM_BYTES {
        let size = object.size;
        return Err(named(Error::corrupt(format!(
            "a claim of {size} bytes, expected at most {CLAIM_BYTES}"
        ))));
    }
    if let Some(kept) = fetcher.kept_claim(object).await {
        match decode_claim(id, object, &kept) {
            Ok(claim) => return Ok(Loaded::Claim(claim)),
            Err(_) => fetcher.forget_claim(object),
        };
    }
    let bytes = get_exactly(&*fetcher.store, &object.key, 0, object.size).await?;
    let claim = decode_claim(id, object, &bytes).map_err(named)?;
    Ok(Loaded::Claim(claim))
}

fn decode_claim(id: GenerationId, object: &Arc<Object>, bytes: &[u8]) -> Result<ReadClaim> {
    let claim = Claim::decode(bytes)?;
    let hash = ObjectHash(*blake3::hash(bytes).as_bytes());
    if claim.generation != id {
        let seen = claim.generation;
        return Err(Error::corrupt(format!(
            "it is the claim of generation {seen}"
        )));
    }
    Ok(ReadClaim {
        object: Arc::clone(object),
        claim,
        hash,
    })
}

async fn read_snapshot(
    fetcher: &Fetcher,
    id: GenerationId,
    listed: &SnapshotListing,
    object: &Object,
    before: u64,
) -> Result<Loaded> {
    let before_index = fetch::leaves_bytes(object.size) + before;
    let wrong = |what: &str| {
        let location = fetcher.store.location();
        Error::corrupt(format!("{location}/{}: {what}", object.key))
    };
    let (stored, index) = fetcher
        .through(object, |store| async move {
            let stored = fetch::open(&*store, object, before_index).await?;
            agree(id, Kind::Snapshot, Some(listed.hash8), &stored.footer).map_err(wrong)?;
            let index = fetch::snapshot_index(&*store, &stored).await?;
            Ok((stored, index))
        })
        .await?;
    let header = &stored.footer.header;
    let root = index
        .root
        .clone()
        .ok_or_else(|| wrong("it has no page map"))?;
    let entry = index.timeline.ok_or_else(|| wrong("it has no timeline"))?;
    let at = (header.last, entry.txid, entry.time, entry.pages);
    if at != (listed.txid, listed.txid, listed.time, root.pages) || header.since > header.last {
        return Err(wrong(
            "its header, its timeline and its key contradict each other",
        ));
    }
    let interior = stored.footer.section(SectionKind::InteriorPages);
    // What came by chance is dropped: of many snapshots a moment needs those of one.
    let wanted = interior.filter(|_| before > 0);
    let interior_stored = wanted.and_then(|s| stored.read_already(s.offset, s.length));
    let read = ReadSnapshot {
        header: header.clone(),
        root,
        stored: index.stored.iter().map(|run| u64::from(run.count)).sum(),
        point: Point::from(&entry),
        interior: interior.cloned(),
        interior_stored,
    };
    let table = fetch::snapshot_table(header.object_id, index);
    keep_table(fetcher, object, table);
    keep_leaves(fetcher, object, &stored, &read.root);
    Ok(Loaded::Snapshot(Box::new(read)))
}

/// Reads a segment, and what finds its pages if it will be opened, or if that comes along.
async fn read_segment(
    fetcher: &Fetcher,
    id: GenerationId,
    listed: &SegmentListing,
    object: &Arc<Object>,
    opening: bool,
) -> Result<Loaded> {
    let wrong = |what: &str| {
        let location = fetcher.store.location();
        Error::corrupt(format!("{location}/{}: {what}", object.key))
    };
    let (footer, names, table, hints) = fetcher
        .through(object, |store| async move {
            let stored = fetch::open(&*store, object, 0).await?;
            agree(id, Kind::Segment, listed.hash8, &stored.footer).map_err(wrong)?;
            // What comes by chance pushes out nothing that is in use.
            let is_room = |versions| fetcher.cache.has_room_for_versions(versions);
            let (names, table) = fetch::segment_index(&*store, &stored, opening, is_room).await?;
            let hints = read_hints(&*store, &stored).await?;
            Ok((stored.footer, names, table, hints))
        })
        .await?;
    let header = &footer.header;
    let ends_as_named = listed.level == 0 || Some(header.last) == listed.last;
    let end = names.timeline.last().filter(|end| end.txid == header.last);
    let ends_as_named =
        ends_as_named && listed.time.is_none_or(|t| end.is_some_and(|e| e.time == t));
    if header.level != listed.level || header.first != listed.first || !ends_as_named {
        return Err(wrong("its header and its key contradict each other"));
    }
    let segment = Segment {
        object: Arc::clone(object),
        level: header.level,
        first: header.first,
        last: header.last,
        previous: header.previous,
        hands_on: hands_on(&footer),
        page_size: Some(header.page_size),
        timeline: Arc::new(names.timeline),
        marks: names.marks,
        versions: names.versions,
    };
    if let Some(table) = table {
        keep_table(fetcher, object, table);
    }
    Ok(Loaded::Segment(segment, hints))
}

/// What a segment says of those before it.
async fn read_hints(store: &dyn Store, stored: &StoredObject) -> Result<Vec<Predecessor>> {
    if stored.footer.section(SectionKind::Predecessors).is_none() {
        return Ok(Vec::new());
    }
    let section = stored.section(store, SectionKind::Predecessors).await?;
    decode_predecessors(&section).map_err(|e| e.context(&stored.key))
}

fn keep_table(fetcher: &Fetcher, object: &Object, table: Table) {
    let index = Index::Table(Arc::new(table));
    fetcher
        .cache
        .put_index(object.number, IndexPiece::Table, index);
}

/// Keeps the leaves of the map that came with the footer. A damaged one is found, and named, by who
/// needs it.
fn keep_leaves(fetcher: &Fetcher, object: &Object, stored: &StoredObject, root: &MapRoot) {
    let own = stored.footer.header.object_id;
    for leaf in root
        .leaves
        .iter()
        .flatten()
        .filter(|leaf| leaf.object == own)
    {
        let bytes = stored.read_already(leaf.offset, leaf.length.into());
        if let Some(Ok(opened)) = bytes.map(|bytes| leaf.open(&bytes)) {
            let index = Index::Leaf(Arc::new(opened));
            let piece = IndexPiece::Leaf(leaf.offset);
            fetcher.cache.put_index(object.number, piece, index);
        }
    }
}

/// What an object says of itself must be what its key says.
fn agree(
    id: GenerationId,
    kind: Kind,
    hash8: Option<u32>,
    footer: &Footer,
) -> Result<(), &'static str> {
    if footer.header.kind != kind {
        return Err("it is an object of another kind");
    }
    if footer.header.generation != id {
        return Err("it belongs to another generation");
    }
    if hash8.is_some_and(|hash8| hash8 != footer.hash.hash8()) {
        return Err("its hash is not the one in its key");
    }
    Ok(())
}

fn marks(index: &SegmentIndex) -> Box<[Txid]> {
    let marked = index.timeline.iter().filter(|entry| entry.in_snapshot);
    marked.map(|entry| entry.txid).collect()
}

#[cfg(test)]
mod tests;
