//! One replica as readers see it: its restore points, and how to open them.

use crate::error::Result;
use crate::format::ids::{GenerationId, RestorePoint, Timestamp, Txid};
use crate::format::moment::Moment;
use crate::materialize::cache::BlockCache;
use crate::materialize::pages::Database;
use crate::storage::Store;
use std::sync::Arc;

/// A replica, opened for reading. Methods without `async` answer from memory.
pub struct Replica {
    _store: Arc<dyn Store>,
}

/// What to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct PointsQuery {
    pub generation: Option<GenerationId>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Only the newest so many.
    pub newest: Option<usize>,
}

impl Replica {
    /// A reader of the replica at the root of `store`. Reads nothing yet.
    pub fn new(store: Arc<dyn Store>, cache: Arc<BlockCache>) -> Arc<Self> {
        let _ = cache;
        Arc::new(Self { _store: store })
    }

    /// Looks for what is new: one LIST, and the footers of new objects.
    ///
    /// # Errors
    /// `Unavailable`, `Corrupt`, `NotFound` if there is no replica here.
    pub async fn refresh(&self) -> Result<()> {
        todo!()
    }

    /// The restore points that a query names, ascending by (generation, txid).
    pub fn points(&self, query: &PointsQuery) -> Vec<RestorePoint> {
        let _ = query;
        todo!()
    }

    /// The restore point that a moment means (DESIGN: by parentage, from the highest generation).
    ///
    /// # Errors
    /// `NotFound`: there is none, or the moment lies before the history.
    pub fn resolve(&self, moment: Moment) -> Result<RestorePoint> {
        let _ = moment;
        todo!()
    }

    /// A restore point by its exact name.
    pub fn point(&self, generation: GenerationId, txid: Txid) -> Option<RestorePoint> {
        let _ = (generation, txid);
        todo!()
    }

    /// The newest restore point of all, if there is one.
    pub fn newest(&self) -> Option<RestorePoint> {
        todo!()
    }

    /// Bytes in a page of this generation's database.
    pub fn page_size(&self, generation: GenerationId) -> Option<u32> {
        let _ = generation;
        todo!()
    }

    /// Opens a moment: reads the page map and the indexes that are not in memory yet.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Unavailable`.
    pub async fn open(self: &Arc<Self>, point: &RestorePoint) -> Result<Arc<Database>> {
        let _ = point;
        todo!()
    }
}
