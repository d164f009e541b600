//! The capture of one database: observe, decide, act.

use crate::config::{CaptureSettings, Clock};
use crate::error::Result;
use crate::format::ids::{PageSize, Pgno};
use crate::replicate::spool::Spool;
use std::sync::Arc;

/// A running capture, on a thread of its own.
pub struct Capture {
    _spool: Arc<Spool>,
}

impl Capture {
    /// Starts capturing. What is wrong with the database for the moment (absent, empty, not to be
    /// switched to WAL mode) shows in [`Capture::trouble`] and is tried again.
    ///
    /// # Errors
    /// `Conflict` if another daemon captures this database, `Invalid`, `Disk`.
    pub fn start(settings: CaptureSettings, spool: Arc<Spool>, clock: Clock) -> Result<Self> {
        let _ = (settings, clock);
        Ok(Self { _spool: spool })
    }

    /// Waits until everything that was committed before the call is in the spool; its last `seq`.
    ///
    /// # Errors
    /// What keeps the capture from working.
    pub async fn barrier(&self) -> Result<u64> {
        todo!()
    }

    /// A read transaction at a known commit, for a first snapshot.
    ///
    /// # Errors
    /// What keeps the capture from working.
    pub async fn snapshot_pin(&self) -> Result<SnapshotPin> {
        todo!()
    }

    /// Why nothing is captured at the moment, if so: a sentence.
    pub fn trouble(&self) -> Option<String> {
        todo!()
    }

    /// Captures what is committed, leaves the WAL empty if it can (bounded, 5 s), notes how it
    /// leaves the file, closes it.
    ///
    /// # Errors
    /// `Disk`.
    pub async fn stop(&self) -> Result<()> {
        todo!()
    }
}

/// Reads the pages of the database in page order, as they were at one commit as long as that is
/// possible without getting in the application's way; after that, in short read transactions.
/// Blocking; for a thread of its own.
pub struct SnapshotPin {
    _private: (),
}

impl SnapshotPin {
    /// The run that the commit belongs to.
    pub fn run(&self) -> u64 {
        todo!()
    }

    /// The commit whose state this is; when no longer exact, the state before the first page read.
    pub fn seq(&self) -> u64 {
        todo!()
    }

    /// Where SQLite's WAL stood at `seq`.
    pub fn end(&self) -> crate::format::ids::WalEnd {
        todo!()
    }

    /// Gives up exactness: what is read from now on is read in short read transactions.
    pub fn let_go(&mut self) {
        todo!()
    }

    /// Page size and database size in pages at that commit.
    pub fn size(&self) -> (PageSize, u32) {
        todo!()
    }

    /// False once the pin was let go: the pages read later may be newer than `seq`.
    pub fn is_exact(&self) -> bool {
        todo!()
    }

    /// Reads a page; zeros for the lock-byte page and for one that is no longer there.
    ///
    /// # Errors
    /// `Disk`; `Conflict` if the run ended meanwhile.
    pub fn read(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        let _ = (pgno, page);
        todo!()
    }
}
