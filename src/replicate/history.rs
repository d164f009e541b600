//! What a replica held before this daemon came: which database, and up to where.

use crate::error::Result;
use crate::format::claim::Claim;
use crate::format::container::Parent;
use crate::format::ids::{DatabaseId, Timestamp};
use crate::format::segment::SegmentIndex;
use crate::storage::catalog::{Catalog, GenerationListing};
use crate::storage::object::StoredObject;
use crate::storage::{Store, refuse_foreign};

/// The past of a replica.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// The database that it holds.
    pub database_id: Option<DatabaseId>,
    /// The last transaction of the highest generation that has one, and its time.
    pub newest: Option<(Parent, Timestamp)>,
}

impl Past {
    /// Looks at the claims and the newest objects that a listing shows.
    ///
    /// # Errors
    /// `Invalid` if the path holds another tool's objects; `Corrupt`, `Unavailable`.
    pub async fn find(store: &dyn Store, catalog: &Catalog) -> Result<Self> {
        refuse_foreign(store).await?;
        let mut past = Self::default();
        for (generation, listing) in catalog.generations.iter().rev() {
            if past.database_id.is_none()
                && let Some(claim) = &listing.claim
            {
                let bytes = store.get_range(&claim.key, 0, claim.size).await?;
                let claim = Claim::decode(&bytes)
                    .map_err(|e| e.context(format!("read {}/{}", store.location(), claim.key)))?;
                past.database_id = Some(claim.database_id);
            }
            if past.newest.is_none() && !listing.snapshots.is_empty() {
                let (txid, time) = newest(store, listing).await?;
                past.newest = Some((
                    Parent {
                        generation: *generation,
                        txid,
                    },
                    time,
                ));
            }
        }
        Ok(past)
    }
}

/// The last transaction of a generation that has a snapshot.
async fn newest(
    store: &dyn Store,
    listing: &GenerationListing,
) -> Result<(crate::format::ids::Txid, Timestamp)> {
    let snapshot = listing.snapshots.last().expect("looked at before");
    let mut newest = (snapshot.txid, snapshot.time);
    if let Some(segment) = listing.segments.iter().max_by_key(|s| (s.first, s.last)) {
        let object = StoredObject::open(store, &segment.object.key, segment.object.size).await?;
        let [blocks, versions, timeline] = SegmentIndex::SECTIONS;
        let blocks = object.section(store, blocks).await?;
        let versions = object.section(store, versions).await?;
        let timeline = object.section(store, timeline).await?;
        let index = SegmentIndex::decode(&object.footer, [&blocks, &versions, &timeline])?;
        newest = newest.max(index.timeline.last().map_or(newest, |e| (e.txid, e.time)));
    }
    Ok(newest)
}
