//! A store in memory, for tests. It ends with the process: nothing in it is durable.

use crate::config::Clock;
use crate::error::{Error, Result};
use crate::format::ids::Timestamp;
use crate::storage::{
    Body, Listed, Put, Store, assert_part, check_folder, check_key, check_prefix, no_object,
    range_end,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Objects in a map. Clones of it, and what [`Store::below`] gives, are views of one map.
#[derive(Clone)]
pub struct MemoryStore {
    objects: Arc<Mutex<BTreeMap<String, Object>>>,
    clock: Clock,
    /// The clock is no mere counter of puts.
    tells_time: bool,
    location: String,
    /// What every key of this view begins with in the map: empty, or with `/` at the end.
    folder: String,
}

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    modified: Timestamp,
}

impl MemoryStore {
    /// An empty store, whose clock goes on by one microsecond with each put.
    pub fn new() -> Arc<Self> {
        let ticks = AtomicI64::new(0);
        let clock = move || Timestamp::from_micros(ticks.fetch_add(1, Ordering::Relaxed));
        Self::empty(Arc::new(clock), false)
    }

    /// An empty store with a clock of the caller's.
    pub fn with_clock(clock: Clock) -> Arc<Self> {
        Self::empty(clock, true)
    }

    fn empty(clock: Clock, tells_time: bool) -> Arc<Self> {
        Arc::new(Self {
            objects: Arc::default(),
            clock,
            tells_time,
            location: "memory".to_string(),
            folder: String::new(),
        })
    }

    /// The map. What panicked with the lock in hand left it whole: each change is one insertion or
    /// removal.
    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Object>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn location(&self) -> &str {
        &self.location
    }

    fn server(&self) -> &str {
        ""
    }

    fn below(&self, name: &str) -> Arc<dyn Store> {
        assert_part(name);
        Arc::new(Self {
            objects: self.objects.clone(),
            clock: self.clock.clone(),
            tells_time: self.tells_time,
            location: format!("{}/{name}", self.location),
            folder: format!("{}{name}/", self.folder),
        })
    }

    fn date(&self) -> Option<Timestamp> {
        self.tells_time.then(|| (self.clock)())
    }

    async fn put(&self, key: &str, body: Body) -> Result<Put> {
        check_key(key)?;
        let bytes = match body {
            Body::Bytes(bytes) => bytes,
            Body::File(path) => tokio::fs::read(&path)
                .await
                .map_err(|e| Error::disk(format!("read {} to store it", path.display()), e))?
                .into(),
        };
        let mut objects = self.objects();
        let key = format!("{}{key}", self.folder);
        if objects.contains_key(&key) {
            return Ok(Put::Exists);
        }
        let modified = (self.clock)();
        objects.insert(key, Object { bytes, modified });
        Ok(Put::Created {
            date: Some(modified),
        })
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        check_key(key)?;
        let Object { bytes, .. } = self
            .objects()
            .get(&format!("{}{key}", self.folder))
            .cloned()
            .ok_or_else(|| no_object(&self.location, key))?;
        let end = range_end(&self.location, key, bytes.len() as u64, offset, length)?;
        // Both lie within bytes in memory, so they fit.
        Ok(bytes.slice(offset as usize..end as usize))
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        check_prefix(prefix)?;
        let prefix = format!("{}{prefix}", self.folder);
        let after = format!("{}{}", self.folder, start_after.unwrap_or_default());
        let start = if start_after.is_some() && after >= prefix {
            Bound::Excluded(after)
        } else {
            Bound::Included(prefix.clone())
        };
        let objects = self.objects();
        let listed = objects
            .range((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&prefix))
            .map(|(key, object)| Listed {
                key: key[self.folder.len()..].to_string(),
                size: object.bytes.len() as u64,
                modified: object.modified,
            })
            .collect();
        Ok(listed)
    }

    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>> {
        check_folder(prefix)?;
        let prefix = format!("{}{prefix}", self.folder);
        let objects = self.objects();
        let mut names: Vec<String> = objects
            .range(prefix.clone()..)
            .map_while(|(key, _)| key.strip_prefix(&prefix))
            .map(|rest| match rest.split_once('/') {
                Some((folder, _)) => format!("{folder}/"),
                None => rest.to_string(),
            })
            .collect();
        // All keys of a folder follow each other.
        names.dedup();
        Ok(names)
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        keys.iter().try_for_each(|key| check_key(key))?;
        let mut objects = self.objects();
        for key in keys {
            objects.remove(&format!("{}{key}", self.folder));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance::check_store;

    #[tokio::test]
    async fn it_keeps_to_the_contract_of_a_store() {
        check_store(|| MemoryStore::new()).await;
    }

    #[tokio::test]
    async fn a_folder_of_it_keeps_to_the_contract_too() {
        check_store(|| MemoryStore::new().below("app")).await;
    }

    #[tokio::test]
    async fn the_time_of_an_object_is_the_clocks() {
        let noon = Timestamp::from_micros(1_795_176_000_000_000);
        let store = MemoryStore::with_clock(Arc::new(move || noon));
        store.put("a", Body::Bytes(Bytes::new())).await.unwrap();
        assert_eq!(store.list("", None).await.unwrap()[0].modified, noon);
        assert_eq!(store.date(), Some(noon));
        assert_eq!(store.below("app").date(), Some(noon));
        assert_eq!(MemoryStore::new().date(), None);
    }
}
