//! Where objects live: the [`Store`] trait, its implementations, and the wrappers around them.
//!
//! A store is a flat space of objects under keys such as `generations/00000001-9f3c2a7b/claim`.
//! It knows nothing of what the keys mean, but for `catalog`, which is pure. Invariants, which
//! `conformance` checks for every store: an object is whole or absent, is never changed, and is
//! durable when its put returns.

pub(crate) mod blocking;
pub mod catalog;
pub mod changes;
pub mod circuit;
#[doc(hidden)]
pub mod conformance;
pub(crate) mod cover;
pub mod directory;
pub mod durable;
pub mod fault;
pub mod informed;
pub mod kept;
pub mod memory;
pub mod object;
pub mod put;
pub mod retry;
pub mod s3;

use crate::config::location::Location;
use crate::error::{Error, Result};
use crate::format::ids::Timestamp;
use crate::format::key::{GENERATIONS, foreign};
use crate::storage::directory::DirectoryStore;
use crate::storage::retry::{RetrySettings, RetryStore};
use crate::storage::s3::S3Store;
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

impl Body {
    /// Bytes; 0 for a file that is not there, whose put will say so.
    pub async fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(path) => tokio::fs::metadata(path).await.map_or(0, |file| file.len()),
        }
    }
}

/// What came of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object is stored.
    Created {
        /// When, by the clock of the store, if its answer says so.
        date: Option<Timestamp>,
    },
    /// The key was taken; what is stored there is as it was. It may be our own lost reply.
    Exists,
}

/// A flat space of objects that are written once and never changed.
///
/// Keys have parts with `/` between them; no part is empty, `.`, `..` or `.tmp`, and none has a
/// control character. A call whose future is dropped may still take effect, as a request on its way
/// may.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// How messages name the store: a path or a URL without secrets.
    fn location(&self) -> &str;

    /// Which server it is of, once that was asked, where stores of several have one location: to
    /// tell them apart, not for messages. Empty where the location says it all.
    fn server(&self) -> &str;

    /// The store of what lies in a folder of this one: one replica of several.
    ///
    /// # Panics
    /// If `name` is not one part of a key.
    fn below(&self, name: &str) -> Arc<dyn Store>;

    /// The time by the clock of the store, as its last answer said, moved on by the time since;
    /// `None` if it has no clock of its own, or has not answered yet. Asks nobody. While the
    /// machine is suspended it may stand still.
    fn date(&self) -> Option<Timestamp> {
        None
    }

    /// Stores an object if nothing has its key. When it returns, with either answer, the object
    /// that has the key is durable.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`, `Disk`, `Invalid`.
    async fn put(&self, key: &str, body: Body) -> Result<Put>;

    /// Reads exactly `length` bytes from `offset`.
    ///
    /// # Errors
    /// `NotFound` for no such object, `Corrupt` if it ends before, `Unavailable`, `Refused`,
    /// `Disk`, `Invalid`.
    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes>;

    /// All objects whose keys start with `prefix` and, as strings, come after `start_after`;
    /// ascending by key.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`, `Disk`, `Invalid`.
    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>>;

    /// Says that what was listed does not hold: the next listing is one of the store itself, even
    /// where a wrapper has one in memory.
    fn doubt_listing(&self) {}

    /// The names one level below `prefix` (which is empty or ends in `/`), ascending: folders end
    /// in `/`, objects do not. What lies in the folders is not read: this finds the replicas below
    /// a path, and shows what else a path holds.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`, `Disk`, `Invalid`.
    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>>;

    /// Deletes objects; those that do not exist count as deleted.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`, `Disk`, `Invalid`.
    async fn delete(&self, keys: &[String]) -> Result<()>;

    /// Gives up the uploads of objects whose keys start with `prefix` that began before `before`
    /// and never ended: they take room, and no listing shows them. How many there were; a store
    /// in which a put leaves nothing unfinished has none.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`, `Invalid`.
    async fn abort_unfinished(&self, _prefix: &str, _before: Timestamp) -> Result<u64> {
        Ok(0)
    }
}

/// The store at a place. Makes no request: what is wrong with a bucket, the first use says.
///
/// # Errors
/// `Invalid` if the path is something else than a directory, `Disk`.
pub async fn open(location: &Location) -> Result<Arc<dyn Store>> {
    match location {
        Location::Directory(path) => Ok(DirectoryStore::open_in_time(path).await?),
        Location::S3(place) => {
            let store = S3Store::new(place.clone());
            Ok(RetryStore::new(store, RetrySettings::default()))
        }
    }
}

/// Refuses a path that holds another tool's objects. A daemon asks before its first put: two tools
/// in one place would delete each other's objects.
///
/// # Errors
/// `Invalid`, naming one of those objects; else as [`Store::list_folder`].
pub async fn refuse_foreign(store: &dyn Store) -> Result<()> {
    let mut names = store.list_folder("").await?;
    if names.iter().any(|name| name == GENERATIONS) {
        let below = store.list_folder(GENERATIONS).await?;
        names.extend(below.into_iter().map(|name| format!("{GENERATIONS}{name}")));
    }
    match foreign(names.iter().map(String::as_str)) {
        None => Ok(()),
        Some(name) => Err(Error::invalid(format!(
            "{} holds objects of another tool, such as {name}; give replicate an empty directory \
             or prefix",
            store.location()
        ))),
    }
}

/// The folder in which a directory store keeps unfinished objects; no key has such a part.
const UNFINISHED: &str = ".tmp";

/// Refuses what is no key, in every store alike, so that no key works in one and fails in another.
fn check_key(key: &str) -> Result<()> {
    if key.split('/').all(is_part) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{key:?} is no key: it needs parts with / between them, none empty, \".\", \"..\" or \
         \"{UNFINISHED}\", and no control characters"
    )))
}

/// Refuses what no key can begin with. The last part may be cut anywhere.
fn check_prefix(prefix: &str) -> Result<()> {
    match prefix.rsplit_once('/') {
        Some((folders, last)) if !has_control(last) => check_key(folders),
        None if !has_control(prefix) => Ok(()),
        _ => check_key(prefix),
    }
}

/// Refuses what is no folder: empty, or a key with `/` behind it.
fn check_folder(prefix: &str) -> Result<()> {
    match prefix.strip_suffix('/') {
        Some(folder) => check_key(folder),
        None if prefix.is_empty() => Ok(()),
        None => Err(Error::invalid(format!(
            "{prefix:?} is no folder: it must be empty or end in /"
        ))),
    }
}

/// # Panics
/// If `name` is not one part of a key.
fn assert_part(name: &str) {
    assert!(
        !name.contains('/') && is_part(name),
        "{name:?} is not the name of a folder"
    );
}

fn is_part(part: &str) -> bool {
    !matches!(part, "" | "." | ".." | UNFINISHED) && !has_control(part)
}

fn has_control(text: &str) -> bool {
    text.contains(|c: char| c.is_ascii_control())
}

/// The sentence for a key that nothing has.
fn no_object(location: &str, key: &str) -> Error {
    Error::not_found(format!("read {location}/{key}: there is no such object"))
}

/// Where a range ends, if the object reaches so far.
fn range_end(location: &str, key: &str, size: u64, offset: u64, length: u64) -> Result<u64> {
    offset
        .checked_add(length)
        .filter(|end| *end <= size)
        .ok_or_else(|| {
            Error::corrupt(format!(
                "read {location}/{key}: it has {size} bytes, expected {length} from {offset} on"
            ))
        })
}

#[cfg(test)]
mod tests;
