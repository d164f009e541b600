//! After a downtime in which the WAL was restarted once: whether the last commit of its old end
//! ever happened.
//!
//! An application that is killed, or gets an error, in the fsync of a commit leaves a perfect
//! commit frame that SQLite never counted. Behind it nothing chains, so it can only be the last
//! one. A restart means that everything that was counted had been backfilled: so the pages of a
//! commit that happened lie in the database file, but for those that a checkpoint of the new WAL
//! has overwritten.

use crate::error::Result;
use crate::format::ids::{PageSize, WalEnd};
use crate::format::wal::{FRAME_HEADER_BYTES, FrameHeader, frame_offset};
use crate::replicate::connection::{Connection, from_sqlite};
use crate::replicate::copy::WalFile;
use crate::replicate::observe::{Index, backfill_attempted};
use crate::replicate::pages::find_frame;
use std::collections::BTreeMap;

/// A larger commit is not judged.
const FRAMES_MAX: u32 = 64 << 10;

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastCommit {
    /// It happened, or changed nothing.
    Counts,
    /// It never happened.
    NeverWas,
    /// What would tell is overwritten.
    Unknown,
}

/// Judges the commit whose frames lie behind `start`, up to `end`, by the database file. `pin` has
/// a read transaction open, in which `index` was read.
///
/// # Errors
/// `Disk`.
pub(super) fn last_commit(
    wal: &WalFile,
    pin: &Connection,
    index: &Index,
    page_size: PageSize,
    (start, end): (&WalEnd, &WalEnd),
) -> Result<LastCommit> {
    if end.frame - start.frame > FRAMES_MAX {
        return Ok(LastCommit::Unknown);
    }
    let failed = |e: rusqlite::Error| from_sqlite(wal.path(), &e).context("read pages");
    let (pages, size) = frames(wal, page_size, start, end)?;
    let mut logged = vec![0; page_size.bytes()];
    let mut stored = vec![0; page_size.bytes()];
    let mut outcome = LastCommit::Counts;
    for (pgno, frame) in pages {
        if pgno > size {
            continue;
        }
        let offset = frame_offset(page_size, frame - 1) + FRAME_HEADER_BYTES as u64;
        wal.read(&mut logged, offset)?;
        let offset = u64::from(pgno - 1) * page_size.bytes() as u64;
        pin.read_file(&mut stored, offset).map_err(failed)?;
        // Asked after the page was read: a checkpoint says what it will do before it does it.
        let attempted = backfill_attempted(pin).map_err(failed)?;
        let newer = find_frame(pin, pgno, index.end.frame).map_err(failed)?;
        let overwritten = find_frame(pin, pgno, attempted).map_err(failed)?;
        // The new WAL may have cut it off, or written it again and been backfilled.
        if pgno > index.pages || overwritten.is_some() || newer.is_some() && logged != stored {
            outcome = LastCommit::Unknown;
            continue;
        }
        if logged != stored {
            return Ok(LastCommit::NeverWas);
        }
    }
    Ok(outcome)
}

/// The last frame of each page in a commit, and the database size that it leaves.
fn frames(
    wal: &WalFile,
    page_size: PageSize,
    start: &WalEnd,
    end: &WalEnd,
) -> Result<(BTreeMap<u32, u32>, u32)> {
    let mut pages = BTreeMap::new();
    let mut size = 0;
    for frame in start.frame + 1..=end.frame {
        let mut header = [0; FRAME_HEADER_BYTES];
        wal.read(&mut header, frame_offset(page_size, frame - 1))?;
        if let Some(header) = FrameHeader::parse(&header) {
            pages.insert(header.pgno.get(), frame);
            size = header.commit.unwrap_or(size);
        }
    }
    Ok((pages, size))
}
