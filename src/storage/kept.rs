//! Stored objects that stay on the local disk for a while, to be read instead of from the store.
//!
//! A directory holds one file for each: its name is the key, with `+` for each `/`. Together they
//! have at most so many bytes; the one that was kept first goes first. To lose one costs a request,
//! so nothing here is fsynced, and after a power loss a file may hold anything: whoever reads one
//! checks its bytes as if they came from a store.

use crate::error::{Error, Result};
use crate::format::container::{Footer, verify_object};
use crate::format::ids::Timestamp;
use crate::format::key::{Key, ObjectKey};
use crate::storage::blocking::blocking;
use crate::storage::{Body, Listed, Put, Store};
use async_trait::async_trait;
use bytes::Bytes;
use nix::fcntl::OFlag;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// So many objects of another process are known to be whole at a time.
const WHOLE: usize = 4096;

/// The largest object of another process that is read here, bytes: all of it is checked first.
const READ_BYTES: u64 = 8 << 20;

/// A directory of kept objects. Blocking, but brief: no call waits for a disk to have written.
#[derive(Debug)]
pub struct Kept {
    directory: PathBuf,
    max_bytes: u64,
    files: Mutex<Files>,
}

/// What lies in the directory.
#[derive(Debug, Default)]
struct Files {
    /// The key and the bytes of each, in the order in which they were kept.
    by_number: BTreeMap<u64, (String, u64)>,
    numbers: HashMap<String, u64>,
    next: u64,
    bytes: u64,
}

impl Files {
    fn insert(&mut self, key: String, bytes: u64) {
        self.numbers.insert(key.clone(), self.next);
        self.by_number.insert(self.next, (key, bytes));
        self.next += 1;
        self.bytes += bytes;
    }

    /// True if it was there.
    fn remove(&mut self, key: &str) -> bool {
        let number = self.numbers.remove(key);
        let removed = number.and_then(|number| self.by_number.remove(&number));
        self.bytes -= removed.as_ref().map_or(0, |(_, bytes)| *bytes);
        removed.is_some()
    }
}

impl Kept {
    /// What an earlier run kept in `directory`, which is made (mode 0700) if it is not there. Files
    /// in it that are none of ours are removed.
    ///
    /// # Errors
    /// `Disk`.
    pub fn open(directory: &Path, max_bytes: u64) -> Result<Self> {
        let failed = |e| Error::disk(format!("open {}", directory.display()), e);
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory);
        made.map_err(failed)?;
        let mut found: Vec<(SystemTime, String, u64)> = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let metadata = entry.metadata().map_err(failed)?;
            let key = entry.file_name().to_str().and_then(key_of);
            match key.filter(|_| metadata.is_file()) {
                Some(key) => {
                    let modified = metadata.modified().map_err(failed)?;
                    found.push((modified, key, metadata.len()));
                }
                None if metadata.is_dir() => {}
                None => fs::remove_file(entry.path()).map_err(failed)?,
            }
        }
        // About the order in which they were kept.
        found.sort_unstable();
        let mut files = Files::default();
        for (_, key, bytes) in found {
            files.insert(key, bytes);
        }
        let kept = Self {
            directory: directory.to_owned(),
            max_bytes,
            files: Mutex::default(),
        };
        kept.make_room(&mut files, 0);
        *kept.files() = files;
        Ok(kept)
    }

    /// Keeps what `file` holds, which is complete and does not change, as the object `key`. Unless
    /// it is larger than all that may be kept; others make room for it.
    ///
    /// # Errors
    /// `Disk`; `Invalid` if `key` is none of a replica.
    pub fn keep(&self, key: &str, file: &Path) -> Result<()> {
        let Some(path) = self.path(key) else {
            return Err(Error::invalid(format!("{key:?} is no key of a replica")));
        };
        let failed = |e| Error::disk(format!("keep {} as {}", file.display(), path.display()), e);
        let bytes = fs::metadata(file).map_err(failed)?.len();
        let mut files = self.files();
        self.drop_file(&mut files, key);
        if bytes > self.max_bytes {
            return Ok(());
        }
        self.make_room(&mut files, bytes);
        if let Err(e) = link_or_copy(file, &path) {
            // What came of a copy; most often nothing.
            let _ = fs::remove_file(&path);
            return Err(failed(e));
        }
        files.insert(key.to_owned(), bytes);
        Ok(())
    }

    /// Whether the object `key` is kept.
    pub fn has(&self, key: &str) -> bool {
        self.files().numbers.contains_key(key)
    }

    /// These bytes of the object `key`, if it is kept.
    pub fn read(&self, key: &str, offset: u64, length: u64) -> Option<Vec<u8>> {
        if !self.files().numbers.contains_key(key) {
            return None;
        }
        let file = File::open(self.path(key)?).ok()?;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }

    /// Keeps these no more.
    pub fn forget<'a>(&self, keys: impl IntoIterator<Item = &'a str>) {
        let mut files = self.files();
        for key in keys {
            self.drop_file(&mut files, key);
        }
    }

    /// Keeps only those whose keys pass.
    pub fn retain(&self, passes: impl Fn(&str) -> bool) {
        let mut files = self.files();
        let keys = files.numbers.keys();
        let gone: Vec<String> = keys.filter(|key| !passes(key)).cloned().collect();
        for key in gone {
            self.drop_file(&mut files, &key);
        }
    }

    /// Drops the oldest until there is room for so many bytes, which are no more than may be kept.
    fn make_room(&self, files: &mut Files, bytes: u64) {
        while files.bytes > self.max_bytes - bytes {
            let (_, (oldest, _)) = files.by_number.first_key_value().expect("it has bytes");
            self.drop_file(files, &oldest.clone());
        }
    }

    fn drop_file(&self, files: &mut Files, key: &str) {
        if !files.remove(key) {
            return;
        }
        let path = self.path(key).expect("only such were inserted");
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::debug!("{} stays until the next start: {e}", path.display());
            }
            _ => {}
        }
    }

    /// Where an object is kept; `None` if nothing has such a key.
    fn path(&self, key: &str) -> Option<PathBuf> {
        Key::parse(key)?;
        Some(self.directory.join(file_name(key)))
    }

    /// What lies here. What panicked with the lock in hand is at worst a file too many.
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A store of which some objects are kept here: ranges of those are read without a request.
pub struct KeptStore {
    inner: Arc<dyn Store>,
    kept: Arc<Kept>,
}

impl KeptStore {
    /// `kept` are objects of `inner`.
    pub fn new(inner: Arc<dyn Store>, kept: Arc<Kept>) -> Arc<Self> {
        Arc::new(Self { inner, kept })
    }
}

#[async_trait]
impl Store for KeptStore {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn server(&self) -> &str {
        self.inner.server()
    }

    fn below(&self, name: &str) -> Arc<dyn Store> {
        self.inner.below(name)
    }

    fn date(&self) -> Option<Timestamp> {
        self.inner.date()
    }

    async fn put(&self, key: &str, body: Body) -> Result<Put> {
        self.inner.put(key, body).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let (kept, named) = (Arc::clone(&self.kept), key.to_owned());
        let read = blocking(move || Ok(kept.read(&named, offset, length))).await?;
        match read {
            Some(bytes) => Ok(bytes.into()),
            None => self.inner.get_range(key, offset, length).await,
        }
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        self.inner.list(prefix, start_after).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>> {
        self.inner.list_folder(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        self.inner.delete(keys).await?;
        self.kept.forget(keys.iter().map(String::as_str));
        Ok(())
    }

    async fn abort_unfinished(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        self.inner.abort_unfinished(prefix, before).await
    }
}

/// Objects that another process keeps here, and may drop at any time. One that is not whole does
/// not count: the store has it.
pub struct KeptElsewhere {
    directory: PathBuf,
    /// Those that were checked.
    whole: Mutex<HashSet<Key>>,
}

impl KeptElsewhere {
    /// The objects in this directory, of which none is known yet.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            whole: Mutex::default(),
        }
    }

    /// Where they lie.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// These bytes of a segment, if it is kept and may be read. Blocking.
    pub fn read(&self, key: &Key, offset: u64, length: u64) -> Option<Vec<u8>> {
        let name = file_name(&key.to_string());
        // Whatever lies there, nobody waits for it to open.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(self.directory.join(name));
        let mut file = opened.ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || metadata.len() > READ_BYTES {
            return None;
        }
        if !self.whole().contains(key) {
            let footer = verify_object(&mut file).ok()?;
            if !is_at(&footer, key) {
                return None;
            }
            let mut whole = self.whole();
            // To check one twice is no harm.
            if whole.len() == WHOLE {
                whole.clear();
            }
            whole.insert(*key);
        }
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }

    /// What was checked. What panicked with the lock in hand left it whole.
    fn whole(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a segment is the one that a key names.
fn is_at(footer: &Footer, key: &Key) -> bool {
    let is_named = match key.object {
        ObjectKey::Upload { first } => footer.header.level == 0 && footer.header.first == first,
        ObjectKey::Merged { hash8, .. } => footer.hash.hash8() == hash8,
        ObjectKey::Claim | ObjectKey::Part { .. } | ObjectKey::Snapshot { .. } => false,
    };
    is_named && footer.header.generation == key.generation
}

/// What the file of an object is called.
fn file_name(key: &str) -> String {
    key.replace('/', "+")
}

/// The key of what is kept under a name.
fn key_of(name: &str) -> Option<String> {
    // A key has no `+`, so there is one name for it.
    let key = name.replace('+', "/");
    (!name.contains('/') && Key::parse(&key).is_some()).then_some(key)
}

/// Gives a file another name, or its bytes another file where that cannot be.
fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        // Left by a removal that failed, or put there by somebody.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(to)?;
            fs::hard_link(from, to)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(e),
        // Another file system, or one that has no links.
        Err(_) => fs::copy(from, to).map(drop),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use tempfile::TempDir;

    /// The key of the upload that begins with a txid.
    fn key(txid: u64) -> String {
        format!("generations/0000000a-9f3c2a7b/wal/0/{txid:016x}.wal")
    }

    struct World {
        dir: TempDir,
        kept: Kept,
    }

    impl World {
        fn new(max_bytes: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let kept = Kept::open(&dir.path().join("kept"), max_bytes).unwrap();
            Self { dir, kept }
        }

        /// Keeps an upload of so many bytes, each its txid.
        fn keep(&self, txid: u8, bytes: usize) {
            let file = self.dir.path().join("last.wal");
            fs::write(&file, vec![txid; bytes]).unwrap();
            self.kept.keep(&key(txid.into()), &file).unwrap();
            // As the uploader does: the next one is another file.
            fs::remove_file(file).unwrap();
        }

        fn reopen(&mut self, max_bytes: u64) {
            self.kept = Kept::open(&self.kept.directory, max_bytes).unwrap();
        }

        /// The txids of what is kept, as the files and as the memory say.
        fn txids(&self) -> Vec<u64> {
            let names = fs::read_dir(&self.kept.directory).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let keys: Vec<String> = names.map(|name| key_of(&name).unwrap()).collect();
            let txids: Vec<u64> = (1..100).filter(|txid| keys.contains(&key(*txid))).collect();
            let files = self.kept.files();
            let known = (1..100).filter(|txid| files.numbers.contains_key(&key(*txid)));
            assert_eq!(known.collect::<Vec<u64>>(), txids);
            let sizes = files.by_number.values().map(|(_, bytes)| bytes);
            assert_eq!(files.bytes, sizes.sum::<u64>());
            txids
        }
    }

    #[test]
    fn what_is_kept_is_read_again_also_after_a_restart() {
        let mut world = World::new(100);
        world.keep(2, 10);
        for _ in 0..2 {
            assert_eq!(world.kept.read(&key(2), 0, 10), Some(vec![2; 10]));
            assert_eq!(world.kept.read(&key(2), 4, 6), Some(vec![2; 6]));
            assert_eq!(world.kept.read(&key(2), 0, 11), None);
            assert_eq!(world.kept.read(&key(3), 0, 10), None);
            assert_eq!(world.kept.read("..", 0, 1), None);
            world.reopen(100);
        }
        let directory = fs::metadata(&world.kept.directory).unwrap();
        assert_eq!(directory.permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_kept_file_is_the_same_file_and_takes_no_room_twice() {
        let world = World::new(100);
        let file = world.dir.path().join("last.wal");
        fs::write(&file, "segment").unwrap();
        world.kept.keep(&key(2), &file).unwrap();
        let kept = world.kept.path(&key(2)).unwrap();
        assert_eq!(
            fs::metadata(kept).unwrap().ino(),
            fs::metadata(&file).unwrap().ino()
        );
        world.kept.forget([&*key(2)]);
        assert_eq!(fs::read(&file).unwrap(), b"segment");
    }

    #[test]
    fn the_first_ones_make_room_and_what_is_larger_than_all_is_not_kept() {
        let mut world = World::new(30);
        for txid in 2..=5 {
            world.keep(txid, 10);
        }
        assert_eq!(world.txids(), [3, 4, 5]);
        world.keep(3, 10);
        world.keep(6, 15);
        assert_eq!(world.txids(), [3, 6]);
        world.keep(7, 31);
        assert_eq!(world.txids(), [3, 6]);
        world.keep(8, 30);
        assert_eq!(world.txids(), [8]);
        // What grew in its place is not what was kept.
        world.keep(8, 31);
        assert!(world.txids().is_empty());
        world.keep(9, 10);
        world.keep(10, 10);
        assert_eq!(world.kept.files().bytes, 20);
        world.reopen(15);
        assert_eq!(world.txids().len(), 1);
        assert_eq!(world.kept.files().bytes, 10);
    }

    #[test]
    fn what_is_forgotten_or_not_retained_is_gone() {
        let world = World::new(100);
        for txid in 2..=6 {
            world.keep(txid, 10);
        }
        world.kept.forget([&*key(3), &*key(9), "strange"]);
        assert_eq!(world.txids(), [2, 4, 5, 6]);
        world.kept.retain(|kept| kept == key(2) || kept == key(6));
        assert_eq!(world.txids(), [2, 6]);
    }

    #[test]
    fn files_that_are_none_of_ours_go_when_it_opens() {
        let mut world = World::new(100);
        world.keep(2, 10);
        let strange = [
            "last.wal",
            "claim+",
            "generations+0000000a-9f3c2a7b+wal+0+2.wal",
        ];
        for name in strange {
            fs::write(world.kept.directory.join(name), "x").unwrap();
        }
        world.reopen(100);
        assert_eq!(world.txids(), [2]);
    }

    #[test]
    fn what_vanished_or_cannot_be_kept_harms_nothing() {
        let world = World::new(100);
        world.keep(2, 10);
        let error = world.kept.keep(&key(2), Path::new("/absent")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disk);
        let file = world.dir.path().join("last.wal");
        fs::write(&file, "x").unwrap();
        let error = world.kept.keep("../up", &file).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert_eq!(world.txids(), [2]);
        fs::remove_dir_all(&world.kept.directory).unwrap();
        assert_eq!(world.kept.read(&key(2), 0, 10), None);
        assert!(world.kept.keep(&key(3), &file).is_err());
        world.kept.forget([&*key(2)]);
        assert_eq!(world.kept.files().bytes, 0);
    }

    #[test]
    fn what_is_no_small_file_of_another_process_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join(file_name(&key(2)));
        let elsewhere = KeptElsewhere::new(dir.path().to_owned());
        let parsed = Key::parse(&key(2)).unwrap();
        assert_eq!(elsewhere.read(&parsed, 0, 1), None);
        nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(elsewhere.read(&parsed, 0, 1), None);
        fs::remove_file(&place).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &place).unwrap();
        assert_eq!(elsewhere.read(&parsed, 0, 1), None);
        fs::remove_file(&place).unwrap();
        let file = File::create(&place).unwrap();
        file.set_len(READ_BYTES + 1).unwrap();
        assert_eq!(elsewhere.read(&parsed, 0, 1), None);
        assert!(elsewhere.whole().is_empty());
    }
}
