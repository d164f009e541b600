//! Where objects live: the [`Store`] trait, its implementations, and the wrappers around them.

pub mod catalog;
pub mod directory;
pub mod fault;
pub mod memory;
pub mod object;
pub mod retry;

use crate::error::Result;
use crate::format::ids::Timestamp;
use async_trait::async_trait;
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::Arc;

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Below the root of the store, with `/` between the parts.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When it was stored, by the clock of the store.
    pub modified: Timestamp,
}

/// What to store. Can be read any number of times, so a retry sends the same bytes.
#[derive(Clone, Debug)]
pub enum Body {
    /// A small object.
    Bytes(Bytes),
    /// A file that is complete and fsynced; objects exceed memory.
    File(PathBuf),
}

/// What came of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object is stored.
    Created,
    /// The key was taken; what is stored there is as it was. It may be our own lost reply.
    Exists,
}

/// A flat space of objects that are written once and never changed.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// How messages name the store: a path or a URL without secrets.
    fn location(&self) -> &str;

    /// The store of what lies in a folder of this one (`name` holds no `/`): one replica of several.
    fn below(&self, name: &str) -> Arc<dyn Store>;

    /// Stores an object if nothing has its key. When it returns, the object is durable.
    ///
    /// # Errors
    /// `Unavailable`, `Disk`, `Invalid`.
    async fn put(&self, key: &str, body: Body) -> Result<Put>;

    /// Reads exactly `length` bytes from `offset`.
    ///
    /// # Errors
    /// `NotFound` for no such object, `Corrupt` if it ends before, `Unavailable`.
    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes>;

    /// All objects whose keys start with `prefix` and, as strings, come after `start_after`;
    /// ascending by key.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>>;

    /// The names one level below `prefix` (which is empty or ends in `/`), ascending: folders end
    /// in `/`, objects do not. What lies in the folders is not read: this finds the replicas below a
    /// path, and shows what else a path holds.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>>;

    /// Deletes objects; those that do not exist count as deleted.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn delete(&self, keys: &[String]) -> Result<()>;
}
