//! The LRU page cache: verified, inflated blocks, keyed by where they lie (object, block).

use crate::format::ids::ObjectId;
use bytes::Bytes;

/// A byte-bounded cache of blocks, shared by all replicas and moments of a process.
pub struct BlockCache {
    _capacity: u64,
}

impl BlockCache {
    /// A cache for up to `capacity` bytes of inflated pages.
    pub fn new(capacity: u64) -> Self {
        Self {
            _capacity: capacity,
        }
    }

    /// A block, if it is here.
    pub fn get(&self, object: ObjectId, block: u32) -> Option<Bytes> {
        let _ = (object, block);
        todo!()
    }
}
