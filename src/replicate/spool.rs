//! The spool: every captured commit, durable on the local disk until each replica has it.
//!
//! Commits are numbered by `seq` over the life of the spool. A *run* is a stretch of commits without
//! a break in continuity; a generation of a replica lies within one run.

use crate::error::Result;
use crate::format::ids::{PageSize, Pgno, Timestamp, WalEnd};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tokio::sync::watch;

/// A stretch of the capture without a break.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Counted from 1.
    pub id: u64,
    /// The state that the run starts from: its first commit is `base + 1`.
    pub base: u64,
    pub page_size: PageSize,
    /// Where the WAL stood at `base`.
    pub start: WalEnd,
    /// Why the run before ended: a sentence for log and claim.
    pub reason: String,
    /// The time before which no commit of this run may lie (the last time of the run before).
    pub after: Timestamp,
}

/// How far the capture has got; everything up to here is fsynced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    pub run: u64,
    pub seq: u64,
    /// Bytes of frames captured since the spool was opened.
    pub bytes: u64,
}

/// One captured commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpooledCommit {
    pub seq: u64,
    pub time: Timestamp,
    /// Found after a downtime.
    pub upper_bound: bool,
    /// Database size after it, pages.
    pub pages: u32,
    pub frames: u32,
    /// SQLite's WAL behind it.
    pub end: WalEnd,
}

/// A frame of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpooledFrame {
    pub pgno: Pgno,
    /// Which commit of the batch, from 0.
    pub commit: u32,
    /// Where [`Batch::read_page`] finds the page.
    pub offset: u64,
}

/// Whole commits of one run, in order, that lie in one file of the spool.
#[derive(Debug)]
pub struct Batch {
    pub run: RunInfo,
    pub commits: Vec<SpooledCommit>,
}

impl Batch {
    /// The frames in the order of the WAL, read from the spool as they are asked for.
    pub fn frames(&self) -> impl Iterator<Item = Result<SpooledFrame>> + '_ {
        std::iter::from_fn(|| todo!())
    }

    /// Reads the page of a frame; verified against the commit's checksum when the spool was opened
    /// or the frame was captured.
    ///
    /// # Errors
    /// `Disk`.
    pub fn read_page(&self, offset: u64, page: &mut [u8]) -> Result<()> {
        let _ = (offset, page);
        todo!()
    }
}

/// The spool of one database. Shared by the capture, which appends, and the uploaders, which read.
#[derive(Debug)]
pub struct Spool {
    _dir: PathBuf,
}

impl Spool {
    /// Opens or creates the spool in `dir` (mode 0700) and takes its lock; reads back what is
    /// durable there.
    ///
    /// # Errors
    /// `Conflict` if another process has the lock, `Disk`.
    pub fn open(dir: &Path) -> Result<Self> {
        let _ = dir;
        todo!()
    }

    /// The directory, in which uploaders keep their own files (objects on the way, state).
    pub fn dir(&self) -> &Path {
        &self._dir
    }

    /// Follows the tip. `None` until the first run began.
    pub fn tip(&self) -> watch::Receiver<Option<Tip>> {
        todo!()
    }

    /// The current run and those before it that still have commits here, ascending.
    pub fn runs(&self) -> Vec<RunInfo> {
        todo!()
    }

    /// The commits after `seq`, of the run that has `seq + 1`: as many whole ones as fit
    /// `max_bytes` of raw frames, at least one. `None` if there is none yet, or if that run ended
    /// at `seq`.
    ///
    /// # Errors
    /// `NotFound` if the spool dropped them, `Disk`.
    pub fn batch(&self, run: u64, after: u64, max_bytes: u64) -> Result<Option<Batch>> {
        let _ = (run, after, max_bytes);
        todo!()
    }

    /// What every replica has up to `seq` may go.
    ///
    /// # Errors
    /// `Disk`.
    pub fn release(&self, seq: u64) -> Result<()> {
        let _ = seq;
        todo!()
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        todo!()
    }
}
