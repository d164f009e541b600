//! Who waits: the locks that other processes hold on SQLite's shared memory.
//!
//! Owns nothing: asks the kernel, by SQLite's own descriptor of the `-shm` file, which lock would
//! be refused. Takes no lock, opens and closes no descriptor (closing one would drop SQLite's
//! locks). The bytes are those of walformat, "WAL Locks".

use crate::error::{Error, Result};
use nix::fcntl::{FcntlArg, fcntl};
use std::fs;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A commit, and a checkpoint that keeps writers out, holds this byte.
const WRITE_BYTE: i64 = 120;
/// Every checkpoint holds this byte.
const CHECKPOINT_BYTE: i64 = 121;

/// Descriptors that are looked at before all others.
const NEAR: RawFd = 8;

/// SQLite's descriptor of a `-shm` file.
#[derive(Debug)]
pub(super) struct ShmLocks {
    descriptor: RawFd,
}

impl ShmLocks {
    /// Finds the descriptor that a connection of this process has open. It stays so as long as any
    /// connection of the process to the database does. `after`: one that was opened soon after it;
    /// the process may have thousands.
    ///
    /// # Errors
    /// `Disk` if it cannot be found.
    pub(super) fn find(shm: &Path, after: RawFd) -> Result<Self> {
        let failed = |e| Error::disk(format!("find the descriptor of {}", shm.display()), e);
        let wanted = fs::metadata(shm).map_err(failed)?;
        let is_it = |descriptor: &RawFd| {
            // Looks through the link, without opening anything; some links lead nowhere.
            let seen = fs::metadata(format!("/proc/self/fd/{descriptor}"));
            seen.is_ok_and(|seen| (seen.dev(), seen.ino()) == (wanted.dev(), wanted.ino()))
        };
        let found = (after.saturating_sub(NEAR)..after).rev().find(is_it);
        if let Some(descriptor) = found {
            return Ok(Self { descriptor });
        }
        for entry in fs::read_dir("/proc/self/fd").map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let descriptor = name.to_str().and_then(|name| name.parse().ok());
            if let Some(descriptor) = descriptor.filter(is_it) {
                return Ok(Self { descriptor });
            }
        }
        Err(failed(std::io::ErrorKind::NotFound.into()))
    }

    /// Whether another process checkpoints and keeps writers out meanwhile: FULL, RESTART or
    /// TRUNCATE, which wait for readers. (A PASSIVE one beside a writer looks the same.)
    pub(super) fn is_checkpointer_waiting(&self) -> bool {
        self.is_held(CHECKPOINT_BYTE) && self.is_held(WRITE_BYTE)
    }

    fn is_held(&self, byte: i64) -> bool {
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: byte,
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: SQLite keeps the descriptor open as long as we hold a connection to the database,
        // which is longer than this value lives.
        let descriptor = unsafe { BorrowedFd::borrow_raw(self.descriptor) };
        let asked = fcntl(descriptor, FcntlArg::F_GETLK(&mut lock));
        asked.is_ok() && lock.l_type != libc::F_UNLCK as i16
    }
}
