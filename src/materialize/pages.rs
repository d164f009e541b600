//! The pages of one moment.

use crate::error::Result;
use crate::format::ids::RestorePoint;
use bytes::Bytes;
use std::sync::Arc;

/// A database as it was at one restore point, byte for byte.
pub struct Database {
    _private: (),
}

/// How one reader goes through a database; sees sequential access and reads ahead of it.
#[derive(Debug, Default)]
pub struct ReadAhead {
    _private: (),
}

impl Database {
    /// The moment.
    pub fn point(&self) -> &RestorePoint {
        todo!()
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        todo!()
    }

    /// Bytes in a page.
    pub fn page_size(&self) -> u32 {
        todo!()
    }

    /// The bytes from `offset`, cut at the end of the database, if all of them are in memory.
    /// Never waits; `ahead` learns of the read, so that what follows it is fetched in time.
    pub fn read_cached(
        self: &Arc<Self>,
        offset: u64,
        length: usize,
        ahead: &ReadAhead,
    ) -> Option<Bytes> {
        let _ = (offset, length, ahead);
        todo!()
    }

    /// The bytes from `offset`, cut at the end of the database, fetched where needed. Readers that
    /// need the same block share one fetch.
    ///
    /// # Errors
    /// `Unavailable`, `Corrupt`, `NotFound`; never a wrong byte.
    pub async fn read(
        self: &Arc<Self>,
        offset: u64,
        length: usize,
        ahead: &ReadAhead,
    ) -> Result<Bytes> {
        let _ = (offset, length, ahead);
        todo!()
    }
}
