//! What a replica holds, as its writer needs to know: which database, up to where, and who wrote
//! what is not ours.

use crate::error::{Error, ErrorKind, Result};
use crate::format::claim::Claim;
use crate::format::container::{Header, Kind, Parent, SectionKind};
use crate::format::ids::{DatabaseId, GenerationId, Timestamp, Txid, WriterId};
use crate::format::key::{GENERATIONS, Key, ObjectKey, generation_prefix};
use crate::format::segment::{TimelineEntry, decode_snapshot_key, decode_timeline_section};
use crate::replicate::writers::{Ending, Found, Inside};
use crate::storage::catalog::{Catalog, GenerationListing, SegmentListing};
use crate::storage::object::{StoredObject, get_exactly};
use crate::storage::{Listed, Store, refuse_foreign};
use futures_util::{StreamExt, TryStreamExt, stream};

/// Generations that are looked at, the highest first, for one that is ours.
pub const GENERATIONS_TRIED: usize = 32;

/// Segments whose ends are looked for in what is ours: if another writer went on in a generation,
/// or began others, that ends before the last one.
pub const ENDS_TRIED: usize = 64;

/// Footers that are read at once.
const PARALLEL: usize = 8;

/// The past of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// The database that it holds.
    pub database_id: Option<DatabaseId>,
    /// The last transaction of the highest generation that has one, and its time.
    pub newest: Option<(Parent, Timestamp)>,
}

impl Past {
    /// Looks at the claims and the newest objects that a listing shows. For an object that is
    /// damaged, the one before it has to do: what is lost does not keep what comes from being
    /// stored.
    ///
    /// # Errors
    /// `Invalid` if the path holds another tool's objects, or a later version's; `NotFound` if an
    /// object was deleted since the listing; `Unavailable`, `Disk`.
    pub async fn find(store: &dyn Store, catalog: &Catalog) -> Result<Self> {
        refuse_foreign(store).await?;
        let mut newest = None;
        for (&generation, listing) in catalog.generations.iter().rev() {
            if let Some((txid, time)) = last_transaction(store, listing).await? {
                newest = Some((Parent { generation, txid }, time));
                break;
            }
        }
        Ok(Self {
            database_id: database_id(store, catalog).await?,
            newest,
        })
    }
}

/// The database of which the highest claim that can be read is.
///
/// # Errors
/// `Invalid` if a later version wrote it; `NotFound`, `Unavailable`, `Disk`.
pub async fn database_id(store: &dyn Store, catalog: &Catalog) -> Result<Option<DatabaseId>> {
    let claims = catalog.generations.values().rev();
    for claim in claims.filter_map(|listing| listing.claim.as_ref()) {
        if let Some(claim) = intact(read_claim(store, claim).await)? {
            return Ok(Some(claim.database_id));
        }
    }
    Ok(None)
}

/// The database of which the highest claim that can be read is, of these generations, without a
/// listing of what else they hold.
///
/// # Errors
/// As [`database_id`].
pub async fn database_of(
    store: &dyn Store,
    generations: &[GenerationId],
) -> Result<Option<DatabaseId>> {
    for &generation in generations.iter().rev() {
        if let Some(claim) = listed_claim(store, generation).await?
            && let Some(claim) = intact(read_claim(store, &claim).await)?
        {
            return Ok(Some(claim.database_id));
        }
    }
    Ok(None)
}

/// Reads a claim that was listed.
///
/// # Errors
/// `Corrupt`; `Invalid` for a later version; `NotFound`, `Unavailable`, `Disk`.
pub async fn read_claim(store: &dyn Store, claim: &Listed) -> Result<Claim> {
    let bytes = get_exactly(store, &claim.key, 0, claim.size).await?;
    Claim::decode(&bytes).map_err(|e| e.context(format!("read {}/{}", store.location(), claim.key)))
}

/// The claim of a generation, and how it is listed. `None` if there is none, or none that can be
/// read.
///
/// # Errors
/// `Unavailable`, `Disk`.
pub async fn claim_of(
    store: &dyn Store,
    generation: GenerationId,
) -> Result<Option<(Claim, Listed)>> {
    let Some(listed) = listed_claim(store, generation).await? else {
        return Ok(None);
    };
    let claim = readable(read_claim(store, &listed).await)?;
    Ok(claim.map(|claim| (claim, listed)))
}

async fn listed_claim(store: &dyn Store, generation: GenerationId) -> Result<Option<Listed>> {
    let object = ObjectKey::Claim;
    let key = Key { generation, object }.to_string();
    let listed = store.list(&key, None).await?;
    Ok(listed.into_iter().find(|listed| listed.key == key))
}

/// The generations of a replica, ascending.
///
/// # Errors
/// `Unavailable`, `Disk`.
pub async fn generations(store: &dyn Store) -> Result<Vec<GenerationId>> {
    let names = store.list_folder(GENERATIONS).await?;
    let parsed = names
        .iter()
        .filter_map(|name| name.strip_suffix('/')?.parse().ok());
    Ok(parsed.collect())
}

/// True if nothing but a claim is stored for a generation.
///
/// # Errors
/// `Unavailable`, `Disk`.
pub async fn is_bare(store: &dyn Store, generation: GenerationId) -> Result<bool> {
    let names = store.list_folder(&generation_prefix(generation)).await?;
    Ok(names == ["claim"])
}

/// The newest claim of a writer.
///
/// # Errors
/// `Unavailable`, `Disk`.
pub async fn claim_of_writer(store: &dyn Store, writer: WriterId) -> Result<Option<Claim>> {
    for generation in generations(store).await?.into_iter().rev() {
        let claim = claim_of(store, generation).await?;
        if let Some((claim, _)) = claim.filter(|(claim, _)| claim.writer_id == writer) {
            return Ok(Some(claim));
        }
    }
    Ok(None)
}

/// The last transaction of a generation, if it has a snapshot.
async fn last_transaction(
    store: &dyn Store,
    listing: &GenerationListing,
) -> Result<Option<(Txid, Timestamp)>> {
    let Some(snapshot) = listing.snapshots.last() else {
        return Ok(None);
    };
    let mut segments: Vec<&SegmentListing> = listing.standing().collect();
    segments.sort_by_key(|segment| (segment.first, segment.last));
    for segment in segments.into_iter().rev() {
        if let Some(inside) = intact(read_inside(store, &segment.object).await)? {
            let last = (inside.ending.txid, inside.ending.time);
            return Ok(Some(last.max((snapshot.txid, snapshot.time))));
        }
    }
    Ok(Some((snapshot.txid, snapshot.time)))
}

/// The segments of a generation that end last, the newest first, at most `count`.
///
/// # Errors
/// `NotFound` if one was deleted since the listing; `Unavailable`, `Disk`.
pub async fn last_segments(
    store: &dyn Store,
    listing: &GenerationListing,
    count: usize,
) -> Result<Vec<Found>> {
    let mut segments: Vec<&SegmentListing> = listing.standing().collect();
    // The last transaction of the newest upload stands in its footer only.
    segments.sort_by_key(|segment| (segment.last.unwrap_or(segment.first), segment.level));
    let wanted = segments.into_iter().rev().take(count);
    let objects: Vec<Listed> = wanted.map(|segment| segment.object.clone()).collect();
    let mut found = read_segments(store, &objects).await?;
    found.sort_by_key(|segment| std::cmp::Reverse(segment.last));
    Ok(found)
}

/// The last segments of a replica, at most `count`: by generation, the highest first, of those that
/// have a snapshot; the newest segment of each first.
///
/// # Errors
/// `NotFound` if one was deleted since the listing; `Unavailable`, `Disk`.
pub async fn last_of_all(
    store: &dyn Store,
    catalog: &Catalog,
    count: usize,
) -> Result<Vec<(GenerationId, Vec<Found>)>> {
    let mut all = Vec::new();
    let mut left = count;
    for (&generation, listing) in catalog.generations.iter().rev() {
        if left > 0 && !listing.snapshots.is_empty() {
            let found = last_segments(store, listing, left).await?;
            left -= found.len();
            all.push((generation, found));
        }
    }
    Ok(all)
}

/// What these segments are, in the same order; keys that are no segment's are left out.
///
/// # Errors
/// `NotFound` if one was deleted since the listing; `Unavailable`, `Disk`.
pub async fn read_segments(store: &dyn Store, objects: &[Listed]) -> Result<Vec<Found>> {
    let reads = objects.iter().filter_map(|object| {
        let (level, first, last) = match Key::parse(&object.key)?.object {
            ObjectKey::Upload { first } => (0, first, None),
            ObjectKey::Merged {
                level, first, last, ..
            } => (level, first, Some(last)),
            _ => return None,
        };
        Some(async move {
            let inside = readable(read_inside(store, object).await)?;
            // What it says of itself counts only in the place that it says.
            let inside = inside.filter(|inside| inside.is_named(level, first, last));
            let ends = inside.as_ref().map(|inside| inside.ending.txid);
            Ok(Found {
                key: object.key.clone(),
                level,
                first,
                last: last.or(ends).unwrap_or(first),
                inside,
            })
        })
    });
    stream::iter(reads.collect::<Vec<_>>())
        .buffered(PARALLEL)
        .try_collect()
        .await
}

/// Whether a segment lists a transaction as a restore point. False if it cannot be read.
///
/// # Errors
/// `NotFound` if it was deleted since the listing; `Unavailable`, `Disk`.
pub async fn has_point(store: &dyn Store, segment: &Listed, txid: Txid) -> Result<bool> {
    let read = async {
        let object = StoredObject::open(store, &segment.key, segment.size).await?;
        let section = object.section(store, SectionKind::Timeline).await?;
        decode_timeline_section(&object.footer.header, &section)
    };
    let timeline = readable(read.await)?.unwrap_or_default();
    Ok(timeline.iter().any(|entry| entry.txid == txid))
}

/// What the footer and the timeline of a segment say.
async fn read_inside(store: &dyn Store, listed: &Listed) -> Result<Inside> {
    let key = &listed.key;
    let object = StoredObject::open(store, key, listed.size).await?;
    let header = &object.footer.header;
    let named = |e: Error| e.context(format!("read {}/{key}", store.location()));
    if header.kind != Kind::Segment {
        return Err(named(Error::corrupt(format!(
            "a {:?}, not a segment",
            header.kind
        ))));
    }
    let section = object.section(store, SectionKind::Timeline).await?;
    let timeline = decode_timeline_section(header, &section).map_err(named)?;
    let last = timeline
        .last()
        .ok_or_else(|| named(Error::corrupt("it has no transaction")))?;
    let hash = object.footer.hash;
    Ok(Inside {
        hash,
        level: header.level,
        first: header.first,
        previous: header.previous,
        hands_on: match header.level {
            0 => hash,
            _ => header.last_input,
        },
        writer: header.writer_id,
        ending: ending(header, last),
        snapshot: match last.in_snapshot {
            true => Some(snapshot_key(store, &object).await?),
            false => None,
        },
    })
}

async fn snapshot_key(store: &dyn Store, object: &StoredObject) -> Result<String> {
    let section = object.section(store, SectionKind::SnapshotKey).await?;
    let key = decode_snapshot_key(&section);
    key.map_err(|e| e.context(format!("read {}/{}", store.location(), object.key)))
}

/// The state that a generation starts from, for one that has no segment yet, as a segment that ends
/// there. Empty if it cannot be read.
///
/// # Errors
/// `NotFound` if the snapshot was deleted since the listing; `Unavailable`, `Disk`.
pub async fn first_state(
    store: &dyn Store,
    listing: &GenerationListing,
    claim: &Claim,
    claim_object: &Listed,
) -> Result<Vec<Found>> {
    let Some(snapshot) = listing.snapshots.first() else {
        return Ok(Vec::new());
    };
    let read = async {
        let object = StoredObject::open(store, &snapshot.object.key, snapshot.object.size).await?;
        let section = object.section(store, SectionKind::Timeline).await?;
        let header = object.footer.header;
        let timeline = decode_timeline_section(&header, &section)?;
        Ok((header, timeline))
    };
    let Some((header, timeline)) = readable(read.await)? else {
        return Ok(Vec::new());
    };
    let hash = claim.hash();
    let inside = timeline.last().map(|last| Inside {
        hash,
        level: 0,
        first: snapshot.txid,
        previous: hash,
        hands_on: hash,
        writer: claim.writer_id,
        ending: ending(&header, last),
        snapshot: None,
    });
    Ok(vec![Found {
        key: claim_object.key.clone(),
        level: 0,
        first: snapshot.txid,
        last: snapshot.txid,
        inside,
    }])
}

fn ending(header: &Header, last: &TimelineEntry) -> Ending {
    Ending {
        txid: last.txid,
        time: last.time,
        upper_bound: last.upper_bound,
        pages: last.pages,
        end: header.end,
        page_size: header.page_size,
        sqlite_version: header.sqlite_version,
    }
}

/// What is damaged is as if it were not there.
fn intact<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == ErrorKind::Corrupt => {
            tracing::warn!("going on from what lies before it: {e}");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// What is damaged or of a later version is not readable.
fn readable<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
            tracing::warn!("{e}");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{GenerationId, WriterId};
    use crate::format::key::{Key, ObjectKey};
    use crate::storage::Body;
    use crate::storage::memory::MemoryStore;

    fn generation(ordinal: u32) -> GenerationId {
        GenerationId { ordinal, random: 7 }
    }

    fn claim(ordinal: u32, id: u8) -> Vec<u8> {
        let claim = Claim {
            generation: generation(ordinal),
            database_id: DatabaseId([id; 16]),
            writer_id: WriterId([1; 8]),
            parent: None,
            host: "host".into(),
            path: "/data/app.db".into(),
            started: Timestamp::from_micros(1),
            reason: "first start".into(),
        };
        claim.encode()
    }

    async fn past(objects: &[(u32, ObjectKey, &[u8])]) -> Past {
        let store = MemoryStore::new();
        for (ordinal, object, bytes) in objects {
            let key = Key {
                generation: generation(*ordinal),
                object: *object,
            };
            let body = Body::Bytes(bytes.to_vec().into());
            store.put(&key.to_string(), body).await.unwrap();
        }
        let catalog = Catalog::new(store.list(GENERATIONS, None).await.unwrap());
        Past::find(&*store, &catalog).await.unwrap()
    }

    #[tokio::test]
    async fn behind_a_damaged_claim_the_one_before_says_which_database_it_is() {
        let (older, newer) = (claim(1, 1), claim(2, 2));
        let both = |newer| past_of_claims(&older, newer);
        assert_eq!(both(&newer).await, Some(DatabaseId([2; 16])));
        assert_eq!(both(&newer[1..]).await, Some(DatabaseId([1; 16])));
    }

    async fn past_of_claims(older: &[u8], newer: &[u8]) -> Option<DatabaseId> {
        let claims = [(1, ObjectKey::Claim, older), (2, ObjectKey::Claim, newer)];
        past(&claims).await.database_id
    }

    #[tokio::test]
    async fn behind_a_damaged_segment_the_snapshot_says_how_far_it_went() {
        let (txid, time) = (Txid::new(5).unwrap(), Timestamp::from_micros(9));
        let snapshot = ObjectKey::Snapshot {
            txid,
            time,
            hash8: 3,
        };
        let first = Txid::new(6).unwrap();
        let claim = claim(1, 1);
        let found = past(&[
            (1, ObjectKey::Claim, &claim),
            (1, snapshot, b"not read"),
            (1, ObjectKey::Upload { first }, b"damaged"),
        ])
        .await;
        let parent = Parent {
            generation: generation(1),
            txid,
        };
        assert_eq!(found.newest, Some((parent, time)));
    }
}
