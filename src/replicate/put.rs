//! Storing objects that are written once: a key that is taken is either our own lost reply or
//! somebody else's object.

use crate::error::{Error, ErrorKind, Result};
use crate::format::ids::ObjectHash;
use crate::storage::object::StoredObject;
use crate::storage::{Body, Put, Store};
use bytes::Bytes;
use std::path::Path;

/// Stores the encoded object in `file`, whose hash is `hash`.
///
/// # Errors
/// `Conflict` if another object has the key; what the store says.
pub async fn put_object(
    store: &dyn Store,
    key: &str,
    file: &Path,
    hash: &ObjectHash,
) -> Result<()> {
    match store.put(key, Body::File(file.to_owned())).await? {
        Put::Created { .. } => Ok(()),
        Put::Exists => {
            let size = stored_size(store, key).await?;
            let found = StoredObject::open(store, key, size).await;
            match found {
                Ok(object) if object.footer.hash == *hash => Ok(()),
                Ok(_) => Err(taken(store, key)),
                Err(e) if e.kind() == ErrorKind::Corrupt => Err(taken(store, key).because(e)),
                Err(e) => Err(e),
            }
        }
    }
}

/// Stores a small object that is told by its bytes alone.
///
/// # Errors
/// As [`put_object`].
pub async fn put_bytes(store: &dyn Store, key: &str, bytes: Bytes) -> Result<()> {
    match store.put(key, Body::Bytes(bytes.clone())).await? {
        Put::Created { .. } => Ok(()),
        Put::Exists => {
            let size = stored_size(store, key).await?;
            if size == bytes.len() as u64 && store.get_range(key, 0, size).await? == bytes {
                Ok(())
            } else {
                Err(taken(store, key))
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

fn taken(store: &dyn Store, key: &str) -> Error {
    Error::conflict(format!(
        "put {}/{key}: another writer stored an object there",
        store.location()
    ))
}
