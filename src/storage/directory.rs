//! A store in a directory: one file for each object, under its key.
//!
//! An object appears under its key whole and durable, or not at all: it is written to a file in
//! `.tmp`, fsynced, moved to its key without replacing anything, and the directories that lead to
//! it are fsynced. Readers never write here: the directory itself, and the sweep of `.tmp`, wait
//! for the first put. Only directories and regular files are seen; what else lies here is not ours.
//!
//! Several processes may use one directory. A delete removes the directories that it emptied, so a
//! put makes the directories above its key again for as long as they vanish under it.

use crate::config;
use crate::error::{Error, ErrorKind, Result};
use crate::format::ids::Timestamp;
use crate::storage::{
    Body, Listed, Put, Store, UNFINISHED, assert_part, check_folder, check_key, check_prefix,
    no_object, range_end,
};
use async_trait::async_trait;
use bytes::Bytes;
use lru::LruCache;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// What a put left unfinished in `.tmp` is removed when it is this old.
const LEFT_OVER: Duration = Duration::from_secs(24 * 60 * 60);

/// How long an open waits to be told what lies at its path.
const ANSWER: Duration = Duration::from_secs(2);

/// How often a put makes its directories again when deletes remove them under it.
const MOVE_TRIES: usize = 100;

/// Directories of which we remember that the names leading to them are durable.
const REMEMBERED_FOLDERS: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not 0");

/// The longest read that is tried on the thread that asks for it, bytes.
const INLINE_READ: u64 = 128 * 1024;

/// A directory of objects.
pub struct DirectoryStore {
    root: Arc<Root>,
}

/// What the blocking work needs.
struct Root {
    path: PathBuf,
    location: String,
    /// True once a put has made the directory and swept `.tmp`. From then on a directory that is
    /// gone is an error: it may be a disk that was unmounted, and writing below its mount point
    /// would fill another one.
    is_prepared: Mutex<bool>,
    /// Directories whose names are durable up to the root.
    durable: Mutex<LruCache<PathBuf, Identity>>,
}

/// Which directory a path leads to. The time of birth tells a new one from an old one whose inode
/// number it got; a file system that keeps no such time has no identities.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    born: SystemTime,
}

impl DirectoryStore {
    /// The store in the directory `root`, which the first put makes if it does not exist yet.
    ///
    /// # Errors
    /// `Invalid` if there is something else than a directory, `Disk`.
    pub fn open(root: &Path) -> Result<Arc<Self>> {
        let path = std::path::absolute(root)
            .map_err(|e| Error::invalid(format!("open {:?} as a replica", root)).because(e))?;
        match fs::metadata(&path) {
            Ok(found) if !found.is_dir() => Err(Error::invalid(format!(
                "open {} as a replica: it is a file, expected a directory",
                path.display()
            ))),
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("open", &path, e)),
            _ => Ok(Arc::new(Self::at(path))),
        }
    }

    /// The same beside the runtime. A file system that does not answer in time is left to the first
    /// use of the store.
    ///
    /// # Errors
    /// As [`DirectoryStore::open`].
    pub async fn open_in_time(root: &Path) -> Result<Arc<Self>> {
        let asked = root.to_owned();
        let opening = tokio::task::spawn_blocking(move || Self::open(&asked));
        match timeout(ANSWER, opening).await {
            Ok(Ok(opened)) => opened,
            _ => Ok(Arc::new(Self::at(root.to_owned()))),
        }
    }

    fn at(path: PathBuf) -> Self {
        let root = Root {
            location: path.display().to_string(),
            path,
            is_prepared: Mutex::new(false),
            durable: Mutex::new(LruCache::new(REMEMBERED_FOLDERS)),
        };
        Self {
            root: Arc::new(root),
        }
    }

    /// Runs what blocks on a thread that may.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Root) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let root = self.root.clone();
        match tokio::task::spawn_blocking(move || work(&root)).await {
            Ok(result) => result,
            Err(e) => match e.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Error::unavailable(format!(
                    "use {}: the runtime is shutting down",
                    self.root.location
                ))),
            },
        }
    }
}

#[async_trait]
impl Store for DirectoryStore {
    fn location(&self) -> &str {
        &self.root.location
    }

    fn server(&self) -> &str {
        ""
    }

    fn below(&self, name: &str) -> Arc<dyn Store> {
        assert_part(name);
        Arc::new(Self::at(self.root.path.join(name)))
    }

    async fn put(&self, key: &str, body: Body) -> Result<Put> {
        check_key(key)?;
        let key = key.to_string();
        self.blocking(move |root| root.put(&key, &body)).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        check_key(key)?;
        // A block of pages, most often in the kernel's cache: handing 5 us of work to another
        // thread takes six times as long as the work (measured).
        if (1..=INLINE_READ).contains(&length)
            && let Some(bytes) = read_without_waiting(&self.root.path.join(key), offset, length)
        {
            return Ok(bytes);
        }
        let key = key.to_string();
        self.blocking(move |root| root.get_range(&key, offset, length))
            .await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        check_prefix(prefix)?;
        let wanted = Wanted {
            prefix: prefix.to_string(),
            start_after: start_after.map(str::to_string),
        };
        self.blocking(move |root| root.list(&wanted)).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>> {
        check_folder(prefix)?;
        let folder = prefix.trim_end_matches('/').to_string();
        self.blocking(move |root| root.list_folder(&folder)).await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        keys.iter().try_for_each(|key| check_key(key))?;
        let keys = keys.to_vec();
        self.blocking(move |root| keys.iter().try_for_each(|key| root.delete(key)))
            .await
    }
}

impl Root {
    fn put(&self, key: &str, body: &Body) -> Result<Put> {
        let path = self.path.join(key);
        let folder = path.parent().expect("a key lies below the root");
        // Not the judge, which is the move; it spares a retry the copy of what is stored already.
        let put = if path.exists() {
            Put::Exists
        } else {
            let unfinished = self.write_unfinished(body)?;
            move_into_place(unfinished, &path)?
        };
        // Also for what was there: its writer may have died before it came so far.
        self.make_durable(folder)?;
        Ok(put)
    }

    /// Writes the bytes to a new file in `.tmp`, durably.
    fn write_unfinished(&self, body: &Body) -> Result<Unfinished> {
        let mut is_prepared = lock(&self.is_prepared);
        if !*is_prepared {
            create_folders(&self.path.join(UNFINISHED))?;
            // Another process may have made the directory just now, and be about to do this.
            sync_folder(self.path.parent().unwrap_or(&self.path))?;
        }
        let mut unfinished = Unfinished::create(&self.path.join(UNFINISHED))?;
        if !*is_prepared {
            sweep(&unfinished)?;
            *is_prepared = true;
        }
        drop(is_prepared);
        unfinished.write(body)?;
        Ok(unfinished)
    }

    /// Makes the names of all that lies in `folder`, and of the folders up to the root, durable.
    fn make_durable(&self, folder: &Path) -> Result<()> {
        let identity = Identity::of(folder);
        sync_folder(folder)?;
        let known = lock(&self.durable).get(folder).copied();
        if known.is_some() && known == identity {
            return Ok(());
        }
        for above in folder.ancestors().skip(1) {
            if !above.starts_with(&self.path) {
                break;
            }
            sync_folder(above)?;
        }
        if let Some(identity) = identity {
            lock(&self.durable).put(folder.to_path_buf(), identity);
        }
        Ok(())
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let path = self.path.join(key);
        let absent = || no_object(&self.location, key);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if is_absent(&e) => return Err(absent()),
            Err(e) => return Err(failed("read", &path, e)),
        };
        let found = file.metadata().map_err(|e| failed("read", &path, e))?;
        if !found.is_file() {
            return Err(absent());
        }
        // Before anything is allocated: the length may come from damaged bytes.
        range_end(&self.location, key, found.len(), offset, length)?;
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, offset)
            .map_err(|e| failed("read", &path, e))?;
        Ok(bytes.into())
    }

    /// A directory that was there when we wrote to it and is gone is not an empty one: it may be a
    /// disk that was unmounted.
    fn check_in_place(&self) -> Result<()> {
        let folder = self.path.join(UNFINISHED);
        if *lock(&self.is_prepared) && !folder.is_dir() {
            return Err(Error::unavailable(format!(
                "list {}: it is gone; is its disk still mounted",
                self.location
            )));
        }
        Ok(())
    }

    fn list(&self, wanted: &Wanted) -> Result<Vec<Listed>> {
        self.check_in_place()?;
        let base = wanted.prefix.rsplit_once('/').map_or("", |(base, _)| base);
        let mut folders = vec![base.to_string()];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in self.entries(&folder)? {
                let key = if folder.is_empty() {
                    entry.name
                } else {
                    format!("{folder}/{}", entry.name)
                };
                if entry.is_folder {
                    if wanted.may_lie_below(&key) {
                        folders.push(key);
                    }
                } else if wanted.includes(&key)
                    && let Some(metadata) = unless_gone(entry.found.metadata(), &self.path)?
                {
                    found.push(Listed {
                        key,
                        size: metadata.len(),
                        modified: modified(&metadata),
                    });
                }
            }
        }
        // By whole keys: in the order of the folders "a/b" would come before "a-b".
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    fn list_folder(&self, folder: &str) -> Result<Vec<String>> {
        self.check_in_place()?;
        let mut names: Vec<String> = self
            .entries(folder)?
            .into_iter()
            .map(|entry| match entry.is_folder {
                true => format!("{}/", entry.name),
                false => entry.name,
            })
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// What lies in a folder, in no order; nothing if the folder is not there.
    fn entries(&self, folder: &str) -> Result<Vec<Entry>> {
        let path = self.path.join(folder);
        let read = |e| failed("list", &path, e);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if is_absent(&e) => return Ok(Vec::new()),
            Err(e) => return Err(read(e)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(read)?;
            // A name that is not UTF-8 is no key, but must be seen: who deletes wants to know.
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_folder = match entry.file_type() {
                Ok(kind) if kind.is_dir() => true,
                Ok(kind) if kind.is_file() => false,
                Err(e) if !is_absent(&e) => return Err(read(e)),
                _ => continue,
            };
            if name != UNFINISHED {
                found.push(Entry {
                    name,
                    found: entry,
                    is_folder,
                });
            }
        }
        Ok(found)
    }

    /// Removes an object, and the folders above it that this empties. Not durable by itself: after
    /// a power loss it may be there again, which is harmless as any leftover is.
    fn delete(&self, key: &str) -> Result<()> {
        let path = self.path.join(key);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if is_absent(&e) => return Ok(()),
            Err(e) => return Err(failed("delete", &path, e)),
        }
        for folder in path.ancestors().skip(1) {
            // Fails for one that is not empty, or that someone else removed: then we are done.
            if folder == self.path || fs::remove_dir(folder).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Reads a range if names and bytes are in the kernel's memory, without waiting for any disk or
/// server. `None` says nothing about the object: ask again in the way that waits.
fn read_without_waiting(path: &Path, offset: u64, length: u64) -> Option<Bytes> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED));
    let file = openat2(AT_FDCWD, path, how).ok()?;
    let mut bytes: Vec<u8> = vec![0; usize::try_from(length).ok()?];
    let buffer = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let offset = libc::off_t::try_from(offset).ok()?;
    // SAFETY: the descriptor is open, and `buffer` describes memory that `bytes` owns and that
    // nobody else touches during the call.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &buffer, 1, offset, libc::RWF_NOWAIT) };
    (usize::try_from(read) == Ok(bytes.len())).then(|| bytes.into())
}

/// What a listing is about.
struct Wanted {
    prefix: String,
    start_after: Option<String>,
}

impl Wanted {
    fn includes(&self, key: &str) -> bool {
        key.starts_with(&self.prefix) && self.start_after.as_deref().is_none_or(|after| key > after)
    }

    /// False if no key in the folder can be wanted.
    fn may_lie_below(&self, folder: &str) -> bool {
        let below = format!("{folder}/");
        (below.starts_with(&self.prefix) || self.prefix.starts_with(&below))
            && self.start_after.as_deref().is_none_or(|after| {
                // Every key in the folder begins with `below`; so either all of them come after,
                // or some may, or none do.
                below.as_str() > after || after.starts_with(&below)
            })
    }
}

/// A name in a directory.
struct Entry {
    name: String,
    found: fs::DirEntry,
    is_folder: bool,
}

/// A file in `.tmp`, removed when dropped.
struct Unfinished {
    file: File,
    path: PathBuf,
}

impl Unfinished {
    fn create(folder: &Path) -> Result<Self> {
        let mut name = [0; 8];
        config::random(&mut name)?;
        let path = folder.join(format!("{:016x}", u64::from_be_bytes(name)));
        match File::create_new(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::unavailable(format!(
                "{} is gone, expected what an earlier put made; is its disk still mounted",
                folder.display()
            ))),
            Err(e) => Err(failed("create", &path, e)),
        }
    }

    fn write(&mut self, body: &Body) -> Result<()> {
        let written = match body {
            Body::Bytes(bytes) => self.file.write_all(bytes),
            Body::File(from) => {
                let mut from = File::open(from).map_err(|e| failed("read", from, e))?;
                io::copy(&mut from, &mut self.file).map(|_| ())
            }
        };
        written
            .and_then(|()| self.file.sync_all())
            .map_err(|e| failed("write", &self.path, e))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Moved away by now, or of no use; what stays is swept when it is old.
        let _ = fs::remove_file(&self.path);
    }
}

/// Gives an unfinished object its key, unless something has it.
fn move_into_place(unfinished: Unfinished, path: &Path) -> Result<Put> {
    let folder = path.parent().expect("a key lies below the root");
    for _ in 0..MOVE_TRIES {
        match rename_without_replacing(&unfinished.path, path) {
            Ok(()) => {
                let date = fs::metadata(path).ok().map(|metadata| modified(&metadata));
                return Ok(Put::Created { date });
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(Put::Exists),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                match fs::create_dir_all(folder) {
                    // Removed again before its last part was made.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    made => made.map_err(|e| failed("create", folder, e))?,
                }
            }
            Err(e) => return Err(failed("create", path, e)),
        }
    }
    Err(Error::unavailable(format!(
        "create {}: its directory vanished {MOVE_TRIES} times",
        path.display()
    )))
}

fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(()),
        // Not every file system has it (NFS does not); a link replaces nothing either, and leaves
        // the first name to be removed.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => fs::hard_link(from, to),
        Err(e) => Err(e.into()),
    }
}

/// Removes what earlier puts left in `.tmp` a day or more before `newest` was made: both times are
/// those of the file system, so no clock of ours matters.
fn sweep(newest: &Unfinished) -> Result<()> {
    let folder = newest.path.parent().expect("it lies in .tmp");
    let swept = |e| failed("sweep", folder, e);
    let now = newest
        .file
        .metadata()
        .and_then(|m| m.modified())
        .map_err(swept)?;
    for entry in fs::read_dir(folder).map_err(swept)? {
        let path = entry.map_err(swept)?.path();
        let Some(metadata) = unless_gone(fs::symlink_metadata(&path), &path)? else {
            continue;
        };
        let written = metadata.modified().map_err(swept)?;
        if now
            .duration_since(written)
            .is_ok_and(|age| age >= LEFT_OVER)
        {
            match fs::remove_file(&path) {
                Err(e) if !is_absent(&e) => return Err(failed("delete", &path, e)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Makes a folder and those above it, each durable before the next.
fn create_folders(folder: &Path) -> Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|f| !f.is_dir()).collect();
    for folder in missing.into_iter().rev() {
        match fs::create_dir(folder) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("create", folder, e));
            }
            _ => sync_folder(folder.parent().unwrap_or(folder))?,
        }
    }
    Ok(())
}

/// Makes the names in a folder durable. One that is not there any more has none.
fn sync_folder(folder: &Path) -> Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Some network file systems know no fsync of directories: there the server answers for it.
        Err(e) if !is_absent(&e) && e.kind() != io::ErrorKind::InvalidInput => {
            Err(failed("sync", folder, e))
        }
        _ => Ok(()),
    }
}

impl Identity {
    fn of(folder: &Path) -> Option<Self> {
        let metadata = fs::metadata(folder).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            born: metadata.created().ok()?,
        })
    }
}

/// The metadata of a file, or `None` if it is gone by now.
fn unless_gone(metadata: io::Result<Metadata>, path: &Path) -> Result<Option<Metadata>> {
    match metadata {
        Ok(metadata) => Ok(Some(metadata)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(failed("read", path, e)),
    }
}

fn modified(metadata: &Metadata) -> Timestamp {
    let micros = metadata.mtime().saturating_mul(1_000_000);
    Timestamp::from_micros(micros.saturating_add(metadata.mtime_nsec() / 1000))
}

/// True if a path leads nowhere: its end is not there, or something on the way is no directory.
fn is_absent(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// A full disk, a server that is away and a lack of descriptors pass, and a put that they ended
/// left nothing behind: they may be tried again. Nothing else may, least of all a failed fsync.
fn failed(doing: &str, path: &Path, e: io::Error) -> Error {
    let sentence = format!("{doing} {}", path.display());
    let passes = matches!(
        e.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::StaleNetworkFileHandle
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NotConnected
            | io::ErrorKind::OutOfMemory
    ) || matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    match passes {
        true => Error::new(ErrorKind::Unavailable, sentence).because(e),
        false => Error::disk(sentence, e),
    }
}

/// The value. What panicked with the lock in hand left it whole: each change is one step.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
