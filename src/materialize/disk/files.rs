//! The files of a disk cache. Blocking.
//!
//! | file | holds |
//! | --- | --- |
//! | `sqlrepl-cache` | the id of the process that has the cache, which holds a lock on it |
//! | `00000007.data` | pieces, each behind its checksum (8 bytes) |
//! | `00000007.list` | for each piece a line of 24 bytes |
//!
//! | offset | bytes | field of a line, little endian |
//! | ---: | ---: | --- |
//! | 0 | 8 | the first half of the piece's key |
//! | 8 | 4 | where its checksum lies in the data |
//! | 12 | 4 | bytes of the piece |
//! | 16 | 8 | XXH3 of the 16 bytes before |
//!
//! The checksum of a piece is XXH3 of its whole key and its bytes. Nothing is ever made durable: a
//! line that is damaged is passed over, and so is a piece that does not have its checksum, whatever
//! a crash left of them. A start reads the lists alone, some 6 MB of a full cache of 4 GiB.

use crate::error::{Error, Result};
use crate::materialize::cache::locked;
use crate::materialize::disk::PieceKey;
use crate::materialize::disk::index::{Index, LINE_BYTES, Place, SUM_BYTES, Step};
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// By this file a directory is known as a cache.
const MARK: &str = "sqlrepl-cache";
/// An ext4 file system has this in its root from the beginning.
const FOUND_BY_FSCK: &str = "lost+found";
const LINE: usize = LINE_BYTES as usize;
const SUM: usize = SUM_BYTES as usize;

/// The directory of a cache, and what lies where in it.
pub(super) struct Files {
    directory: PathBuf,
    index: Mutex<Index>,
    /// Nobody else writes while this lives.
    _lock: Flock<File>,
}

/// What is being appended to.
#[derive(Default)]
pub(super) struct Appending(Option<(u32, File, File)>);

impl Files {
    /// Takes a directory, which is made if it is missing, and finds what it holds.
    ///
    /// # Errors
    /// `Conflict` if another process has it; `Invalid` if it holds something else; `Disk`.
    pub(super) fn open(directory: &Path, capacity: u64) -> Result<Self> {
        let failed = |e| {
            Error::disk(
                format!("use the cache directory {}", directory.display()),
                e,
            )
        };
        // Pages of databases are nobody else's to read.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(directory).map_err(failed)?;
        refuse_others(directory)?;
        let lock = lock(directory)?;
        let mut index = Index::new(capacity);
        for number in numbers(directory).map_err(failed)? {
            find(directory, number, &mut index).map_err(failed)?;
        }
        let files = Self {
            directory: directory.to_owned(),
            index: Mutex::new(index),
            _lock: lock,
        };
        // The cache may have been larger.
        files
            .make_room(0, &mut Appending::default())
            .map_err(failed)?;
        Ok(files)
    }

    /// True if a piece seems to be there. Does not block.
    pub(super) fn has(&self, key: PieceKey) -> bool {
        locked(&self.index).has(key.half())
    }

    /// A piece as it was put; `None` if it is not there, damaged or not to be read now.
    pub(super) fn get(&self, key: PieceKey) -> Option<Bytes> {
        let place = locked(&self.index).find(key.half())?;
        let read = self.read(place);
        match read {
            Ok(stored) if sum(key, &stored[SUM..]).to_le_bytes() == stored[..SUM] => {
                Some(Bytes::from(stored).slice(SUM..))
            }
            // Too many open files say nothing about this one.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => None,
            // Damaged, or evicted meanwhile, or the disk has lost it.
            _ => {
                locked(&self.index).forget(key.half(), place);
                None
            }
        }
    }

    /// Forgets a piece whose bytes turned out to be wrong.
    pub(super) fn forget(&self, key: PieceKey) {
        let mut index = locked(&self.index);
        if let Some(place) = index.find(key.half()) {
            index.forget(key.half(), place);
        }
    }

    /// Writes a piece unless it is there. One thread alone may write.
    ///
    /// # Errors
    /// The directory fails.
    pub(super) fn put(
        &self,
        key: PieceKey,
        piece: &[u8],
        appending: &mut Appending,
    ) -> io::Result<()> {
        if self.has(key) || !self.make_room(piece.len(), appending)? {
            return Ok(());
        }
        let mut stored = Vec::with_capacity(SUM + piece.len());
        stored.extend_from_slice(&sum(key, piece).to_le_bytes());
        stored.extend_from_slice(piece);
        self.append(key.half(), &stored, appending)
    }

    /// Evicts until so many bytes fit; false if they never will.
    fn make_room(&self, length: usize, appending: &mut Appending) -> io::Result<bool> {
        loop {
            let step = locked(&self.index).before(length);
            match step {
                Step::Refuse => return Ok(false),
                Step::Write => return Ok(true),
                Step::Evict(segment, kept) => {
                    for (key, place) in kept {
                        // What cannot be read goes with its segment.
                        if let Ok(stored) = self.read(place) {
                            self.append(key, &stored, appending)?;
                        }
                    }
                    if appending.0.as_ref().is_some_and(|open| open.0 == segment) {
                        appending.0 = None;
                    }
                    for kind in ["data", "list"] {
                        remove(&self.path(segment, kind))?;
                    }
                    locked(&self.index).evicted(segment);
                }
            }
        }
    }

    /// Writes a piece with its checksum, then the line that finds it.
    fn append(&self, key: u64, stored: &[u8], appending: &mut Appending) -> io::Result<()> {
        let (place, line_at) = {
            let index = locked(&self.index);
            let place = index.next(stored.len() - SUM);
            (place, index.next_line(place))
        };
        let (data, list) = match &mut appending.0 {
            Some((number, data, list)) if *number == place.segment => (data, list),
            other => {
                let data = writable(&self.path(place.segment, "data"))?;
                let list = writable(&self.path(place.segment, "list"))?;
                let (_, data, list) = other.insert((place.segment, data, list));
                (data, list)
            }
        };
        data.write_all_at(stored, place.offset.into())?;
        list.write_all_at(&line(key, place), line_at)?;
        locked(&self.index).wrote(key, place);
        Ok(())
    }

    /// A piece behind its checksum, as they are.
    fn read(&self, place: Place) -> io::Result<Vec<u8>> {
        let data = File::open(self.path(place.segment, "data"))?;
        let mut stored = vec![0; SUM + place.length as usize];
        data.read_exact_at(&mut stored, place.offset.into())?;
        Ok(stored)
    }

    fn path(&self, segment: u32, kind: &str) -> PathBuf {
        path(&self.directory, segment, kind)
    }
}

fn path(directory: &Path, segment: u32, kind: &str) -> PathBuf {
    directory.join(format!("{segment:08}.{kind}"))
}

/// Refuses a directory that is neither empty nor a cache: files there may be deleted.
fn refuse_others(directory: &Path) -> Result<()> {
    let shown = directory.display();
    let failed = |e| Error::disk(format!("use the cache directory {shown}"), e);
    if fs::exists(directory.join(MARK)).map_err(failed)? {
        return Ok(());
    }
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name != FOUND_BY_FSCK {
            return Err(Error::invalid(format!(
                "{shown} is no cache and not empty, it holds {}: give the cache a directory of \
                 its own",
                name.display()
            )));
        }
    }
    Ok(())
}

/// The numbers of the segments, ascending.
fn numbers(directory: &Path) -> io::Result<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let parts = name.to_str().and_then(|name| name.split_once('.'));
        let number =
            parts.filter(|(number, kind)| number.len() == 8 && matches!(*kind, "data" | "list"));
        numbers.extend(number.and_then(|(number, _)| number.parse::<u32>().ok()));
    }
    Ok(numbers)
}

/// Reads the list of a segment. What a crash left of its last line is written over. A list that
/// cannot be read now may be another time: its segment finds nothing, and is left alone.
fn find(directory: &Path, number: u32, index: &mut Index) -> io::Result<()> {
    let (data, list) = (
        path(directory, number, "data"),
        path(directory, number, "list"),
    );
    let size = |path: &Path| fs::metadata(path).map(|metadata| metadata.len());
    let (data_bytes, list_bytes) = match (size(&data), size(&list)) {
        (Ok(data_bytes), Ok(list_bytes)) => (data_bytes, list_bytes),
        (Err(e), _) | (_, Err(e)) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {
            // Half of a segment finds nothing.
            remove(&data)?;
            return remove(&list);
        }
    };
    let lines = fs::read(&list).unwrap_or_default();
    index.found(
        number,
        data_bytes,
        list_bytes / LINE_BYTES * LINE_BYTES,
        lines.chunks_exact(LINE).filter_map(parse),
    );
    Ok(())
}

fn line(key: u64, place: Place) -> [u8; LINE] {
    let mut line = [0; LINE];
    line[..8].copy_from_slice(&key.to_le_bytes());
    line[8..12].copy_from_slice(&place.offset.to_le_bytes());
    line[12..16].copy_from_slice(&place.length.to_le_bytes());
    let check = xxh3_64(&line[..16]);
    line[16..].copy_from_slice(&check.to_le_bytes());
    line
}

/// Key, offset and length; `None` of a line that is damaged.
fn parse(line: &[u8]) -> Option<(u64, u32, u32)> {
    let (fields, check) = line.split_at_checked(16)?;
    if xxh3_64(fields).to_le_bytes() != check {
        return None;
    }
    let key = u64::from_le_bytes(fields[..8].try_into().ok()?);
    let offset = u32::from_le_bytes(fields[8..12].try_into().ok()?);
    let length = u32::from_le_bytes(fields[12..].try_into().ok()?);
    Some((key, offset, length))
}

fn sum(key: PieceKey, piece: &[u8]) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(&key.0);
    sum.update(piece);
    sum.digest()
}

fn writable(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.open(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Holds a directory for this process.
fn lock(directory: &Path) -> Result<Flock<File>> {
    let path = directory.join(MARK);
    let failed = |e| Error::disk(format!("lock {}", path.display()), e);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.mode(0o600).open(&path).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let id = format!("{}\n", std::process::id());
            // Only a message names it: a full disk, of which the cache frees some, may refuse it.
            lock.set_len(0)
                .and_then(|()| lock.write_all(id.as_bytes()))
                .ok();
            Ok(lock)
        }
        Err((_, Errno::EWOULDBLOCK)) => {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                id => format!("process {id}"),
            };
            Err(Error::conflict(format!(
                "{} is the cache of {holder}, which runs: give each mount a directory of its own",
                directory.display()
            )))
        }
        Err((_, errno)) => Err(failed(errno.into())),
    }
}
