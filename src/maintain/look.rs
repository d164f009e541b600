//! From a listing to a survey: what objects say of themselves is read once, and only where it
//! decides something.

use crate::config::settings::Retention;
use crate::error::{Error, ErrorKind, Result};
use crate::format::claim::Claim;
use crate::format::container::{Kind, Parent, SectionKind};
use crate::format::ids::{GenerationId, Timestamp, Txid};
use crate::format::segment::{SegmentIndex, decode_timeline_section};
use crate::format::snapshot::SnapshotIndex;
use crate::maintain::rules::later;
use crate::maintain::survey::{
    SegmentInside, SnapshotInside, Survey, Surveyed, SurveyedSegment, SurveyedSnapshot,
};
use crate::storage::catalog::{Catalog, GenerationListing, SegmentListing};
use crate::storage::object::{StoredObject, get_exactly};
use crate::storage::{Listed, Store};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Objects that are read at once.
const PARALLEL: usize = 8;
/// The largest claim that is read, bytes.
const CLAIM_BYTES: u64 = 1 << 20;

/// What was read so far, by key; `None` for what is damaged.
#[derive(Default)]
pub(super) struct Insides {
    claims: HashMap<String, Option<Option<Parent>>>,
    snapshots: HashMap<String, Option<SnapshotInside>>,
    segments: HashMap<String, Option<(Txid, SegmentInside)>>,
}

/// Something that was read.
enum Read {
    Claim(Option<Option<Parent>>),
    Snapshot(Option<SnapshotInside>),
    Segment(Option<(Txid, SegmentInside)>),
}

/// Which segments are read.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// Those whose last transaction may be older.
    pub(super) before: Timestamp,
    /// Those of this generation behind this transaction; in any case the last of each generation,
    /// and those whose pages may lie in a snapshot.
    pub(super) behind: Option<(GenerationId, Txid)>,
}

impl Wanted {
    /// Segments that a policy may touch now.
    pub(super) fn of(policy: &Retention, now: Timestamp) -> Self {
        let all = policy.all.unwrap_or(Duration::ZERO);
        let micros = i64::try_from(all.as_micros()).unwrap_or(i64::MAX);
        Self {
            before: Timestamp::from_micros(now.micros().saturating_sub(micros)),
            behind: None,
        }
    }

    /// All.
    pub(super) fn all() -> Self {
        Self {
            before: Timestamp::from_micros(i64::MAX),
            behind: None,
        }
    }

    fn has(&self, id: GenerationId, listing: &GenerationListing, segment: &SegmentListing) -> bool {
        // An upload is no older than it was stored, but for an hour of a slow clock.
        let stored = later(segment.object.modified, Duration::from_secs(3600));
        let is_old = segment.time.unwrap_or(stored) <= self.before;
        let is_behind = self
            .behind
            .is_some_and(|(open, txid)| open == id && segment.last.is_none_or(|last| last > txid));
        let mut snapshots = listing.snapshots.iter();
        let may_be_mark = segment.level == 0 && snapshots.any(|s| s.txid == segment.first);
        // Where it ends only its footer says.
        is_old || is_behind || may_be_mark || segment.last.is_none()
    }
}

impl Insides {
    /// What a listing shows, with what is known of it.
    pub(super) async fn survey(
        &mut self,
        store: &dyn Store,
        catalog: &Catalog,
        wanted: Wanted,
    ) -> Result<Survey> {
        self.forget_unlisted(catalog);
        let mut jobs = Vec::new();
        for (&id, listing) in &catalog.generations {
            jobs.extend(self.jobs(id, listing, wanted));
        }
        let reads = jobs.into_iter().map(async |job: Job| {
            let read = job.read(store).await?;
            Ok::<_, Error>((job.object().key.clone(), read))
        });
        let mut reads = Box::pin(stream::iter(reads).buffer_unordered(PARALLEL));
        while let Some((key, read)) = reads.try_next().await? {
            match read {
                Read::Claim(parent) => drop(self.claims.insert(key, parent)),
                Read::Snapshot(inside) => drop(self.snapshots.insert(key, inside)),
                Read::Segment(inside) => drop(self.segments.insert(key, inside)),
            }
        }
        drop(reads);
        let generations = catalog.generations.iter();
        Ok(Survey {
            generations: generations
                .map(|(&id, listing)| (id, self.surveyed(listing)))
                .collect(),
        })
    }

    /// Forgets what was damaged, so that it is read once more: it may have been the way here. The
    /// keys.
    pub(super) fn forget_damaged(&mut self) -> Vec<String> {
        let mut damaged = Vec::new();
        forget_none(&mut self.claims, &mut damaged);
        forget_none(&mut self.snapshots, &mut damaged);
        forget_none(&mut self.segments, &mut damaged);
        damaged
    }

    /// A claim that cannot be read: where its generation goes on from nobody knows.
    pub(super) fn damaged_claim(&self) -> Option<&str> {
        let mut claims = self.claims.iter();
        let damaged = claims.find(|(_, parent)| parent.is_none());
        damaged.map(|(key, _)| key.as_str())
    }

    fn forget_unlisted(&mut self, catalog: &Catalog) {
        let mut listed: HashSet<&str> = HashSet::new();
        for generation in catalog.generations.values() {
            listed.extend(generation.claim.iter().map(|o| o.key.as_str()));
            listed.extend(generation.snapshots.iter().map(|s| s.object.key.as_str()));
            listed.extend(generation.segments.iter().map(|s| s.object.key.as_str()));
        }
        self.claims.retain(|key, _| listed.contains(key.as_str()));
        self.snapshots
            .retain(|key, _| listed.contains(key.as_str()));
        self.segments.retain(|key, _| listed.contains(key.as_str()));
    }

    fn jobs(&self, id: GenerationId, listing: &GenerationListing, wanted: Wanted) -> Vec<Job> {
        let claims = listing.claim.iter();
        let claims = claims.filter(|claim| !self.claims.contains_key(&claim.key));
        let mut jobs: Vec<Job> = claims.cloned().map(Job::Claim).collect();
        let snapshots = listing.snapshots.iter().map(|s| &s.object);
        let snapshots = snapshots.filter(|object| !self.snapshots.contains_key(&object.key));
        jobs.extend(snapshots.cloned().map(Job::Snapshot));
        let segments = listing.segments.iter().filter(|segment| {
            !self.segments.contains_key(&segment.object.key) && wanted.has(id, listing, segment)
        });
        jobs.extend(segments.map(|segment| Job::Segment(segment.object.clone())));
        jobs
    }

    fn surveyed(&self, listing: &GenerationListing) -> Surveyed {
        let claim = listing.claim.clone();
        let parent = claim
            .as_ref()
            .and_then(|claim| (*self.claims.get(&claim.key)?)?);
        let snapshots = listing.snapshots.iter().map(|listed| SurveyedSnapshot {
            listed: listed.clone(),
            inside: self.snapshots.get(&listed.object.key).cloned().flatten(),
        });
        let segments = listing.segments.iter().map(|listed| {
            let read = self.segments.get(&listed.object.key).cloned().flatten();
            let mut listed = listed.clone();
            if let Some((last, _)) = &read {
                listed.last = Some(*last);
            }
            let inside = read.map(|(_, inside)| inside);
            SurveyedSegment { listed, inside }
        });
        Surveyed {
            parent,
            snapshots: snapshots.collect(),
            parts: listing.parts.clone(),
            segments: segments.collect(),
            claim,
        }
    }
}

fn forget_none<T>(read: &mut HashMap<String, Option<T>>, damaged: &mut Vec<String>) {
    read.retain(|key, inside| {
        if inside.is_none() {
            damaged.push(key.clone());
        }
        inside.is_some()
    });
}

/// Something to read.
enum Job {
    Claim(Listed),
    Snapshot(Listed),
    Segment(Listed),
}

impl Job {
    fn object(&self) -> &Listed {
        let (Self::Claim(object) | Self::Snapshot(object) | Self::Segment(object)) = self;
        object
    }

    async fn read(&self, store: &dyn Store) -> Result<Read> {
        Ok(match self {
            Self::Claim(object) => Read::Claim(readable(claim(store, object).await)?),
            Self::Snapshot(object) => Read::Snapshot(readable(snapshot(store, object).await)?),
            Self::Segment(object) => Read::Segment(readable(segment(store, object).await)?),
        })
    }
}

/// Stored bytes of the pages in each part, by key; none of what is damaged.
pub(super) async fn parts(store: &dyn Store, survey: &Survey) -> Result<HashMap<String, u64>> {
    let parts = survey.generations.values().flat_map(|s| &s.parts);
    let objects: Vec<Listed> = parts.map(|part| part.object.clone()).collect();
    let reads = objects.into_iter().map(async |object: Listed| {
        let opened = readable(StoredObject::open(store, &object.key, object.size).await)?;
        let bytes = opened.map(|opened| opened.footer.block_bytes());
        Ok::<_, Error>(bytes.map(|bytes| (object.key, bytes)))
    });
    let reads = Box::pin(stream::iter(reads).buffer_unordered(PARALLEL));
    let found: Vec<_> = reads.try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// What is damaged, of a later version, or gone since the listing, decides nothing.
pub(super) fn readable<T>(read: Result<T>) -> Result<Option<T>> {
    use ErrorKind::{Corrupt, Invalid, NotFound};
    match read {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), Corrupt | Invalid | NotFound) => {
            tracing::warn!("left alone, with all that depends on it: {e}");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

async fn claim(store: &dyn Store, object: &Listed) -> Result<Option<Parent>> {
    if object.size > CLAIM_BYTES {
        let (size, key) = (object.size, &object.key);
        return Err(Error::corrupt(format!("{key}: a claim of {size} bytes")));
    }
    let bytes = get_exactly(store, &object.key, 0, object.size).await?;
    let claim = Claim::decode(&bytes).map_err(|e| e.context(&object.key))?;
    Ok(claim.parent)
}

async fn snapshot(store: &dyn Store, listed: &Listed) -> Result<SnapshotInside> {
    let object = StoredObject::open(store, &listed.key, listed.size).await?;
    let sections = object.sections(store, SnapshotIndex::SECTIONS).await?;
    let sections = sections.each_ref().map(|section| section.as_deref());
    let named = |e: Error| e.context(format!("read {}/{}", store.location(), listed.key));
    let index = SnapshotIndex::decode(&object.footer, sections).map_err(named)?;
    let root = index
        .root
        .filter(|_| object.footer.header.kind == Kind::Snapshot);
    let root = root.ok_or_else(|| named(Error::corrupt("it has no page map")))?;
    Ok(SnapshotInside {
        since: object.footer.header.since,
        stored_pages: index.blocks.slots(),
        page_bytes: object.footer.header.page_size.get(),
        block_bytes: object.footer.block_bytes(),
        homes: root.homes,
    })
}

async fn segment(store: &dyn Store, listed: &Listed) -> Result<(Txid, SegmentInside)> {
    let object = StoredObject::open(store, &listed.key, listed.size).await?;
    let header = &object.footer.header;
    let named = |e: Error| e.context(format!("read {}/{}", store.location(), listed.key));
    if header.kind != Kind::Segment {
        return Err(named(Error::corrupt("it is no segment")));
    }
    let section = object.section(store, SectionKind::Timeline).await?;
    let timeline = decode_timeline_section(header, &section).map_err(named)?;
    let index = SegmentIndex::SECTIONS.iter();
    let index = index.filter_map(|&kind| object.footer.section(kind));
    let inside = SegmentInside {
        is_mark: object.footer.section(SectionKind::SnapshotKey).is_some(),
        points: timeline
            .iter()
            .map(|entry| (entry.txid, entry.time))
            .collect(),
        index_bytes: index.map(|section| section.length).sum(),
        block_bytes: object.footer.block_bytes(),
    };
    Ok((header.last, inside))
}
