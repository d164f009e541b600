//! A store in an S3 bucket, or in what speaks like one: an object under its key behind a prefix.
//!
//! Objects are put with `If-None-Match: *`, so that of two writers one is told that it came second;
//! larger ones go up in parts, and appear with the last request or not at all. Nothing is asked
//! before the first call and nothing while nobody calls. A call that fails is not made again here:
//! `storage/retry.rs` does that. Only the parts of an upload are tried again one by one, since much
//! has gone up by then. Each request has a deadline of its own, since a call may be many of them.

mod answer;
mod client;
mod clock;
mod delete;
mod list;
mod read;
mod upload;
mod watch;

use crate::config::location::S3Location;
use crate::error::Result;
use crate::format::ids::Timestamp;
use crate::storage::retry::RetrySettings;
use crate::storage::s3::answer::{Action, Asked};
use crate::storage::s3::client::{Connected, connect};
use crate::storage::s3::clock::ServerClock;
use crate::storage::{
    Body, Listed, Put, Store, assert_part, check_folder, check_key, check_prefix,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// A prefix in a bucket.
pub struct S3Store {
    bucket: Arc<Bucket>,
    /// What all keys begin with in the bucket: empty, or with `/` at the end.
    folder: String,
    location: String,
}

/// What a store and those below it share.
struct Bucket {
    place: S3Location,
    connected: OnceCell<Connected>,
    clock: ServerClock,
    /// How the parts of an upload are tried again.
    retries: RetrySettings,
}

impl S3Store {
    /// The store at a place. Asks nobody anything.
    pub fn new(place: S3Location) -> Arc<Self> {
        Self::with_retries(place, RetrySettings::default())
    }

    /// The same, with another patience for the parts of an upload.
    pub fn with_retries(place: S3Location, retries: RetrySettings) -> Arc<Self> {
        let folder = match place.prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Arc::new(Self {
            folder,
            location: place.to_string(),
            bucket: Arc::new(Bucket {
                place,
                connected: OnceCell::new(),
                clock: ServerClock::default(),
                retries,
            }),
        })
    }

    /// The client, made when it is first needed.
    async fn connected(&self) -> Result<&Connected> {
        let bucket = &self.bucket;
        let connecting = || connect(&bucket.place, &bucket.clock);
        bucket.connected.get_or_try_init(connecting).await
    }

    /// The name of the bucket, for a request.
    fn bucket(&self) -> &str {
        &self.bucket.place.bucket
    }

    /// A key as the bucket has it.
    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.folder)
    }

    /// What messages say of a request for an object, or for those with a prefix.
    fn asked<'a>(&self, action: Action, key: &str, connected: &'a Connected) -> Asked<'a> {
        let object = match key {
            "" => self.location.clone(),
            key => format!("{}/{key}", self.location),
        };
        Asked::new(action, object, &connected.server)
    }
}

#[async_trait]
impl Store for S3Store {
    fn location(&self) -> &str {
        &self.location
    }

    fn server(&self) -> &str {
        let connected = self.bucket.connected.get();
        connected.map_or("", |connected| &connected.server.host)
    }

    fn below(&self, name: &str) -> Arc<dyn Store> {
        assert_part(name);
        Arc::new(Self {
            bucket: self.bucket.clone(),
            folder: format!("{}{name}/", self.folder),
            location: format!("{}/{name}", self.location),
        })
    }

    fn date(&self) -> Option<Timestamp> {
        self.bucket.clock.now()
    }

    async fn put(&self, key: &str, body: Body) -> Result<Put> {
        check_key(key)?;
        self.upload(key, body).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        check_key(key)?;
        self.read(key, offset, length).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        check_prefix(prefix)?;
        self.list_objects(prefix, start_after).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>> {
        check_folder(prefix)?;
        self.list_names(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        keys.iter().try_for_each(|key| check_key(key))?;
        self.delete_objects(keys).await
    }

    async fn abort_unfinished(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        check_prefix(prefix)?;
        self.abort_uploads(prefix, before).await
    }
}

#[cfg(test)]
mod tests;
