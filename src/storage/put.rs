//! Storing objects that are written once: a key that is taken is either our own lost reply or
//! somebody else's object.

use crate::error::{Error, ErrorKind, Result};
use crate::format::ids::{ObjectHash, Timestamp};
use crate::storage::object::StoredObject;
use crate::storage::{Body, Put, Store};
use bytes::Bytes;
use std::path::Path;

/// What came of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The object is stored; when, by the clock of the store, if it says so.
    Now(Option<Timestamp>),
    /// It was stored before: a lost reply.
    Before,
    /// Another object has the key.
    Taken,
}

/// Stores the encoded object in `file`, whose hash is `hash`.
///
/// # Errors
/// What the store says.
pub async fn put_object(
    store: &dyn Store,
    key: &str,
    file: &Path,
    hash: &ObjectHash,
) -> Result<Stored> {
    match store.put(key, Body::File(file.to_owned())).await? {
        Put::Created { date } => Ok(Stored::Now(date)),
        Put::Exists => {
            let size = stored_size(store, key).await?;
            match StoredObject::open(store, key, size).await {
                Ok(object) if object.footer.hash == *hash => Ok(Stored::Before),
                Ok(_) => Ok(Stored::Taken),
                Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
                    tracing::warn!("{e}");
                    Ok(Stored::Taken)
                }
                Err(e) => Err(e),
            }
        }
    }
}

/// Stores a small object that is told by its bytes alone.
///
/// # Errors
/// What the store says.
pub async fn put_bytes(store: &dyn Store, key: &str, bytes: Bytes) -> Result<Stored> {
    match store.put(key, Body::Bytes(bytes.clone())).await? {
        Put::Created { date } => Ok(Stored::Now(date)),
        Put::Exists => {
            let size = stored_size(store, key).await?;
            if size == bytes.len() as u64 && store.get_range(key, 0, size).await? == bytes {
                Ok(Stored::Before)
            } else {
                Ok(Stored::Taken)
            }
        }
    }
}

async fn stored_size(store: &dyn Store, key: &str) -> Result<u64> {
    let listed = store.list(key, None).await?;
    listed
        .iter()
        .find(|object| object.key == key)
        .map(|object| object.size)
        .ok_or_else(|| {
            Error::unavailable(format!(
                "put {}/{key}: the store says that it exists and does not list it",
                store.location()
            ))
        })
}

/// Another writer has the key of an object whose name cannot be another's.
pub fn taken(store: &dyn Store, key: &str) -> Error {
    Error::conflict(format!(
        "put {}/{key}: another writer stored an object there",
        store.location()
    ))
}
