//! What a replica held before this daemon came: which database, and up to where.

use crate::error::{Error, ErrorKind, Result};
use crate::format::claim::Claim;
use crate::format::container::{Kind, Parent, SectionKind};
use crate::format::ids::{DatabaseId, Timestamp, Txid};
use crate::format::segment::decode_timeline_section;
use crate::storage::catalog::{Catalog, GenerationListing, SegmentListing};
use crate::storage::object::{StoredObject, get_exactly};
use crate::storage::{Listed, Store, refuse_foreign};

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

async fn read_claim(store: &dyn Store, claim: &Listed) -> Result<Claim> {
    let bytes = get_exactly(store, &claim.key, 0, claim.size).await?;
    Claim::decode(&bytes).map_err(|e| e.context(format!("read {}/{}", store.location(), claim.key)))
}

/// The last transaction of a generation, if it has a snapshot.
async fn last_transaction(
    store: &dyn Store,
    listing: &GenerationListing,
) -> Result<Option<(Txid, Timestamp)>> {
    let Some(snapshot) = listing.snapshots.last() else {
        return Ok(None);
    };
    let mut segments: Vec<&SegmentListing> = listing.segments.iter().collect();
    segments.sort_by_key(|segment| (segment.first, segment.last));
    for segment in segments.into_iter().rev() {
        if let Some(last) = intact(end_of(store, segment).await)? {
            return Ok(Some(last.max((snapshot.txid, snapshot.time))));
        }
    }
    Ok(Some((snapshot.txid, snapshot.time)))
}

/// The last transaction of a segment.
async fn end_of(store: &dyn Store, segment: &SegmentListing) -> Result<(Txid, Timestamp)> {
    let Listed { key, size, .. } = &segment.object;
    let object = StoredObject::open(store, key, *size).await?;
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
    Ok((last.txid, last.time))
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
        let catalog = Catalog::new(store.list("generations/", None).await.unwrap());
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
