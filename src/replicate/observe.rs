//! What the wal-index, the files and our own pins look like.
//!
//! Owns the reading of the wal-index header and of file identities. Never reads the header from the
//! `-shm` file, only from the mapping that SQLite itself has of it (see
//! `connection.rs`).

use crate::error::{Error, Result};
use crate::format::ids::{PageSize, WalEnd};
use crate::format::wal::{self, WordOrder};
use crate::replicate::connection::{Connection, ReadLock};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

/// Words of one copy of the wal-index header (walformat, "The WAL-Index File Format").
const HEADER_WORDS: usize = 12;
/// Where nBackfill stands, in words.
const BACKFILL_WORD: usize = 24;
/// Where the marks of the read locks stand, in words, lock 0 first.
const MARKS_WORD: usize = 25;
/// Where nBackfillAttempted stands, in words.
const ATTEMPTED_WORD: usize = 32;
/// The layout that every SQLite since 3.7.0 uses.
const INDEX_VERSION: u32 = 3_007_000;

/// What SQLite counts as committed: the header of the wal-index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index {
    /// Salts of the WAL; mxFrame, the last committed frame; its running checksum.
    pub end: WalEnd,
    /// Database size in pages at that frame; means nothing while there is no frame.
    pub pages: u32,
    /// Page size of the database; `None` before the first frame since the index was recovered.
    pub page_size: Option<PageSize>,
    /// How the checksums of the WAL read words.
    pub order: WordOrder,
    /// Frames that a checkpoint has moved into the database file.
    pub backfilled: u32,
}

impl Index {
    /// True if the database file alone holds the last commit.
    pub fn is_backfilled(&self) -> bool {
        self.backfilled == self.end.frame
    }

    /// Takes a header apart. `None` if it is being written just now or was never finished.
    fn parse(header: &[u32; HEADER_WORDS], backfilled: u32) -> Option<Self> {
        let bytes = header.map(u32::to_ne_bytes);
        let bytes = bytes.as_flattened();
        let native = if cfg!(target_endian = "big") {
            WordOrder::Big
        } else {
            WordOrder::Little
        };
        let is_initialized = bytes[12] != 0;
        let sum = wal::checksum(native, [0; 2], &bytes[..40]);
        if !is_initialized || header[0] != INDEX_VERSION || sum != [header[10], header[11]] {
            return None;
        }
        // 65536 does not fit the field; SQLite writes it as 1.
        let page_size = u32::from(u16::from_ne_bytes([bytes[14], bytes[15]]));
        let page_size = page_size & 0xfe00 | (page_size & 1) << 16;
        Some(Self {
            end: WalEnd {
                salts: [u32::from_be(header[8]), u32::from_be(header[9])],
                frame: header[4],
                checksum: [header[6], header[7]],
            },
            pages: header[5],
            page_size: PageSize::new(page_size),
            order: if bytes[13] != 0 {
                WordOrder::Big
            } else {
                WordOrder::Little
            },
            backfilled: (backfilled <= header[4]).then_some(backfilled)?,
        })
    }
}

/// Reads the wal-index once. `None` while someone changes it, before it was first used, or after a
/// writer was killed in the middle of changing it (then SQLite mends it with the next transaction).
///
/// # Errors
/// SQLite's.
pub(super) fn read_index(connection: &Connection) -> rusqlite::Result<Option<Index>> {
    let Some(map) = connection.region(0)? else {
        return Ok(None);
    };
    // SAFETY: a region has 8,192 words, is mapped while the connection is open, and other processes
    // write it: hence volatile reads.
    let word = |at: usize| unsafe { map.add(at).read_volatile() };
    let header = |copy: usize| std::array::from_fn(|at| word(copy * HEADER_WORDS + at));
    // A writer changes the second copy, then the first: read the other way round, two equal ones
    // are whole. nBackfill belongs to them only if they are the same before and after it was read,
    // since a restart changes the header first.
    let first: [u32; HEADER_WORDS] = header(0);
    fence(Ordering::SeqCst);
    let second: [u32; HEADER_WORDS] = header(1);
    let backfilled = word(BACKFILL_WORD);
    fence(Ordering::SeqCst);
    let again: [u32; HEADER_WORDS] = header(0);
    if first != second || first != again {
        return Ok(None);
    }
    Ok(Index::parse(&first, backfilled))
}

/// Up to which frame checkpoints may have overwritten pages of the database file.
///
/// # Errors
/// SQLite's.
pub(super) fn backfill_attempted(connection: &Connection) -> rusqlite::Result<u32> {
    let Some(map) = connection.region(0)? else {
        return Ok(0);
    };
    // SAFETY: as in `read_index`.
    let word = |at: usize| unsafe { map.add(at).read_volatile() };
    fence(Ordering::SeqCst);
    Ok(word(BACKFILL_WORD).max(word(ATTEMPTED_WORD)))
}

/// A read lock to hold for a moment instead of the one whose mark is `mark`: best one that is not
/// in use. `None` if there is none.
///
/// # Errors
/// SQLite's.
pub(super) fn other_read_lock(
    connection: &Connection,
    mark: u32,
) -> rusqlite::Result<Option<ReadLock>> {
    let Some(map) = connection.region(0)? else {
        return Ok(None);
    };
    // SAFETY: as in `read_index`.
    let mark_of = |lock: u8| unsafe { map.add(MARKS_WORD + usize::from(lock)).read_volatile() };
    // A lock that is not in use has the greatest number for a mark.
    let others = (1..=4).filter(|lock| mark_of(*lock) != mark);
    Ok(others.max_by_key(|lock| mark_of(*lock)).map(ReadLock))
}

/// Which file a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

/// How a file was left: enough to see whether anybody wrote to it since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i64,
    changed_ns: i64,
}

impl FileState {
    /// Looks at a file. `None` if there is none.
    ///
    /// # Errors
    /// `Disk`.
    pub(super) fn of(path: &Path) -> Result<Option<Self>> {
        let meta = match std::fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::disk(format!("stat {}", path.display()), e)),
        };
        let ns = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        Ok(Some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }))
    }

    /// Which file it is.
    pub fn id(&self) -> FileId {
        FileId {
            device: self.device,
            inode: self.inode,
        }
    }

    /// Size, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// True if nobody wrote to the file in between; its owner or mode may have changed.
    pub fn has_same_content(&self, other: &Self) -> bool {
        self.id() == other.id() && self.size == other.size && self.modified_ns == other.modified_ns
    }

    /// How long before `now`, in microseconds since 1970, the file was written to.
    pub fn age(&self, now_micros: i64) -> Duration {
        let age = now_micros.saturating_sub(self.modified_ns / 1000);
        Duration::from_micros(u64::try_from(age).unwrap_or(0))
    }
}

/// The boot that this machine runs since; times of files mean nothing across it.
pub(super) fn boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .map(|id| id.trim().to_string())
}

/// Reads the wal-index until it settles. `None` if it does not within `limit`.
///
/// # Errors
/// SQLite's.
pub(super) fn settled_index(
    connection: &Connection,
    limit: Duration,
) -> rusqlite::Result<Option<Index>> {
    let start = Instant::now();
    loop {
        for _ in 0..100 {
            if let Some(index) = read_index(connection)? {
                return Ok(Some(index));
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > limit {
            return Ok(None);
        }
        std::thread::yield_now();
    }
}
