//! One object, read through the disk cache: for footers and sections, which nobody can verify
//! before all of them are there.
//!
//! What a read took from the store is kept only once the read as a whole has succeeded; what it
//! took from the cache is forgotten, and read from the store, if the read made no sense of it.

use crate::error::{ErrorKind, Result};
use crate::format::ids::Timestamp;
use crate::materialize::cache::locked;
use crate::materialize::disk::{DiskCache, Identity, PieceKey};
use crate::materialize::history::Object;
use crate::storage::{Body, Listed, Put, Store};
use async_trait::async_trait;
use bytes::Bytes;
use std::future::Future;
use std::sync::{Arc, Mutex};

/// Reads something of an object, through the cache if there is one. `read` may run twice.
///
/// # Errors
/// Those of `read`, by what the store holds.
pub(crate) async fn through<T, F>(
    store: &Arc<dyn Store>,
    disk: Option<&Arc<DiskCache>>,
    object: &Object,
    read: impl Fn(Arc<dyn Store>) -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let Some(disk) = disk.filter(|disk| !disk.is_off()) else {
        return read(Arc::clone(store)).await;
    };
    let through = Arc::new(Through {
        store: Arc::clone(store),
        disk: Arc::clone(disk),
        identity: object.identity(),
        taken: Mutex::default(),
    });
    let mut result = read(Arc::clone(&through) as Arc<dyn Store>).await;
    if matches!(&result, Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Invalid))
        && through.forget()
    {
        result = read(Arc::clone(&through) as Arc<dyn Store>).await;
    }
    if result.is_ok() {
        let fetched = std::mem::take(&mut locked(&through.taken).fetched);
        disk.put_soon(fetched).await;
    }
    result
}

/// A store in which one object is mostly read from the cache.
struct Through {
    store: Arc<dyn Store>,
    disk: Arc<DiskCache>,
    identity: Identity,
    taken: Mutex<Taken>,
}

/// What one read took.
#[derive(Default)]
struct Taken {
    /// From the store.
    fetched: Vec<(PieceKey, Bytes)>,
    /// From the cache.
    kept: Vec<PieceKey>,
}

impl Through {
    /// Forgets what came from the cache; true if that was anything.
    fn forget(&self) -> bool {
        let mut taken = locked(&self.taken);
        taken.fetched.clear();
        let kept = std::mem::take(&mut taken.kept);
        for key in &kept {
            self.disk.forget(*key);
        }
        !kept.is_empty()
    }
}

#[async_trait]
impl Store for Through {
    fn location(&self) -> &str {
        self.store.location()
    }

    fn server(&self) -> &str {
        self.store.server()
    }

    fn below(&self, name: &str) -> Arc<dyn Store> {
        self.store.below(name)
    }

    fn date(&self) -> Option<Timestamp> {
        self.store.date()
    }

    async fn put(&self, key: &str, body: Body) -> Result<Put> {
        self.store.put(key, body).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let piece = self.identity.piece(offset, length);
        if let Some(bytes) = self.disk.get(vec![piece]).await.pop().flatten() {
            locked(&self.taken).kept.push(piece);
            return Ok(bytes);
        }
        let bytes = self.store.get_range(key, offset, length).await?;
        locked(&self.taken).fetched.push((piece, bytes.clone()));
        Ok(bytes)
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        self.store.list(prefix, start_after).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>> {
        self.store.list_folder(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        self.store.delete(keys).await
    }
}
