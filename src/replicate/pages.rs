//! Pages of the live database, as a read transaction sees them.
//!
//! Owns the lookup of a page in SQLite's wal-index (walformat, "Hash Table") and the snapshot pin.
//! Reads go through SQLite's handle of the database and our own descriptor of the `-wal` file; no
//! map of frames is ever copied.

use crate::error::{Error, Result};
use crate::format::ids::{PageSize, Pgno, WalEnd};
use crate::format::wal::{FRAME_HEADER_BYTES, frame_offset};
use crate::replicate::connection::{Connection, REGION_BYTES, from_sqlite, is_busy};
use crate::replicate::copy::WalFile;
use crate::replicate::decide::Pin;
use crate::replicate::observe::{Index, settled_index};
use crate::replicate::source::PageSource;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Pages are read ahead in runs of about this size, bytes: one call for all that lie in the
/// database file, and a read transaction of some hundred microseconds.
const RUN_BYTES: usize = 512 << 10;
/// How long the wal-index may take to settle.
const SETTLE: Duration = Duration::from_secs(1);
/// How long opening a read transaction may fail because of somebody's lock.
const OPEN: Duration = Duration::from_secs(5);

/// Slots of a hash table, and entries that it indexes; the first region has fewer, since the header
/// of the wal-index stands there.
const SLOTS: usize = 8192;
const ENTRIES: usize = 4096;
const HEADER_ENTRIES: usize = 34;
const _: () = assert!(ENTRIES * 4 + SLOTS * 2 == REGION_BYTES);

/// What an open read transaction sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// The database file with these frames of the WAL over it.
    Wal {
        /// The last frame that counts.
        last: u32,
    },
    /// The database file alone.
    File,
}

impl View {
    /// What a transaction sees that was opened between two looks at the index. `None` if that
    /// cannot be told. On a mark the view may be as new as the second look: all those frames are
    /// committed and none can vanish.
    pub(super) fn between(before: &Index, after: &Index) -> Option<Self> {
        match Pin::between(before, after) {
            Pin::Mark => Some(Self::Wal {
                last: after.end.frame,
            }),
            Pin::Lock0 => Some(Self::File),
            Pin::Fresh | Pin::Unknown => None,
        }
    }
}

/// The newest frame of a page, up to frame `last`. Reads what other processes are adding to: what
/// they add lies behind `last`.
pub(super) fn find_frame(
    connection: &Connection,
    pgno: u32,
    last: u32,
) -> rusqlite::Result<Option<u32>> {
    let region_of = |frame: u32| (frame as usize + HEADER_ENTRIES - 1) / ENTRIES;
    for region in (0..=region_of(last)).rev() {
        if last == 0 {
            break;
        }
        let Some(map) = connection.region(region as u32)? else {
            continue;
        };
        let (entries_at, first) = match region {
            0 => (HEADER_ENTRIES, 1),
            _ => (0, (region * ENTRIES - HEADER_ENTRIES + 1) as u32),
        };
        let entries = ENTRIES - entries_at;
        // SAFETY: a region has ENTRIES words, then SLOTS half words; all indices below stay within.
        // Other processes write it: hence volatile reads.
        let slot = |at: usize| unsafe { map.add(ENTRIES).cast::<u16>().add(at).read_volatile() };
        // SAFETY: as above.
        let page = |at: usize| unsafe { map.add(entries_at + at).read_volatile() };
        let mut found = None;
        let mut at = (pgno as usize * 383) & (SLOTS - 1);
        for _ in 0..SLOTS {
            // Counted from 1; 0 ends a chain of collisions.
            let Some(entry) = (slot(at) as usize).checked_sub(1) else {
                break;
            };
            let frame = first + entry as u32;
            if entry < entries && frame <= last && page(entry) == pgno {
                found = found.max(Some(frame));
            }
            at = (at + 1) & (SLOTS - 1);
        }
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Reads a run of pages into `bytes`. The transaction of `connection` that has this view stays
/// open.
fn read_run(
    connection: &Connection,
    wal: &WalFile,
    view: View,
    first: Pgno,
    page_size: PageSize,
    bytes: &mut [u8],
) -> Result<()> {
    let failed = |e: rusqlite::Error| from_sqlite(wal.path(), &e).context("read pages");
    let offset = u64::from(first.get() - 1) * page_size.bytes() as u64;
    connection.read_file(bytes, offset).map_err(failed)?;
    let View::Wal { last } = view else {
        return Ok(());
    };
    for (pgno, page) in (first.get()..).zip(bytes.chunks_exact_mut(page_size.bytes())) {
        let Some(frame) = find_frame(connection, pgno, last).map_err(failed)? else {
            continue;
        };
        let offset = frame_offset(page_size, frame - 1) + FRAME_HEADER_BYTES as u64;
        if wal.read(page, offset)? < page.len() {
            return Err(Error::corrupt(format!(
                "read page {pgno} of the database: {} ends before frame {frame}, which the \
                 wal-index counts as committed",
                wal.path().display()
            )));
        }
    }
    Ok(())
}

/// Opens a read transaction and finds out what it sees. Waits for no lock once `is_ended`.
///
/// # Errors
/// `Unavailable` if a lock stays taken.
pub(super) fn begin_view(
    connection: &Connection,
    wal: &WalFile,
    is_ended: &AtomicBool,
) -> Result<(View, Index)> {
    let failed = |e: &rusqlite::Error| from_sqlite(wal.path(), e);
    let start = Instant::now();
    let may_wait = || start.elapsed() < OPEN && !is_ended.load(Ordering::Acquire);
    loop {
        let before = settled_index(connection, SETTLE).map_err(|e| failed(&e))?;
        match connection.begin_read() {
            Ok(()) => {}
            Err(e) if is_busy(&e) && may_wait() => {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(e) => return Err(failed(&e)),
        }
        let after = settled_index(connection, SETTLE).map_err(|e| failed(&e))?;
        if let (Some(before), Some(after)) = (before, after)
            && let Some(view) = View::between(&before, &after)
        {
            return Ok((view, after));
        }
        connection.end().map_err(|e| failed(&e))?;
        if !may_wait() {
            return Err(Error::unavailable(format!(
                "the wal-index of {} does not settle",
                wal.path().display()
            )));
        }
    }
}

/// Reads the pages of the database in page order, as they were at one commit as long as that is
/// possible without getting in the application's way; after that, in short read transactions.
/// Blocking; for a thread of its own.
pub struct SnapshotPin {
    state: Arc<PinState>,
    at: PinnedAt,
    /// Pages read ahead: the first of them, and their bytes.
    ahead: (u32, Vec<u8>),
}

/// What the capture and the reader of a pin share.
#[derive(Debug)]
pub(super) struct PinState {
    inner: Mutex<PinInner>,
    /// Set for good before the lock is asked for to do the same: no one who only looks waits for a
    /// reader, and a reader does not begin again.
    is_let_go: AtomicBool,
    is_ended: AtomicBool,
    database: PathBuf,
}

#[derive(Debug)]
struct PinInner {
    /// `None` once the run ended.
    open: Option<(Connection, Arc<WalFile>)>,
    /// While exact: what the open transaction sees.
    exact: Option<View>,
}

impl PinState {
    /// False once the pin was let go. Never waits for its reader.
    pub(super) fn may_be_exact(&self) -> bool {
        !self.is_let_go.load(Ordering::Acquire)
    }

    /// What the pin sees while it is exact.
    pub(super) fn exact(&self) -> Option<View> {
        self.lock().exact
    }

    /// Lets the transaction go; from now on pages are read in short ones.
    pub(super) fn let_go(&self) {
        self.is_let_go.store(true, Ordering::Release);
        let mut inner = self.lock();
        if inner.exact.take().is_some()
            && let Some((connection, _)) = &inner.open
            && let Err(e) = connection.end()
        {
            tracing::warn!("end the snapshot pin of {}: {e}", self.database.display());
            // Closing it ends the transaction whatever state it is in.
            inner.open = None;
        }
    }

    /// Ends the pin with its run. Waits for a read, but not for one that waits for a lock.
    pub(super) fn end(&self) {
        self.is_let_go.store(true, Ordering::Release);
        self.is_ended.store(true, Ordering::Release);
        let mut inner = self.lock();
        inner.exact = None;
        inner.open = None;
    }

    fn lock(&self) -> MutexGuard<'_, PinInner> {
        self.inner
            .lock()
            .expect("a panic with this lock held is our own bug")
    }
}

/// The state that a pin stands for.
pub(super) struct PinnedAt {
    /// The run.
    pub run: u64,
    /// The commit.
    pub seq: u64,
    /// Page size of the run.
    pub page_size: PageSize,
    /// Database size at the commit, pages.
    pub pages: u32,
    /// SQLite's WAL behind the commit.
    pub end: WalEnd,
}

impl SnapshotPin {
    /// A pin on an open transaction that sees exactly `at` through `exact`; without `exact`, one
    /// that reads in short transactions from the start.
    pub(super) fn new(
        database: PathBuf,
        connection: Connection,
        wal: Arc<WalFile>,
        exact: Option<View>,
        at: PinnedAt,
    ) -> (Self, Arc<PinState>) {
        let state = Arc::new(PinState {
            inner: Mutex::new(PinInner {
                open: Some((connection, wal)),
                exact,
            }),
            is_let_go: AtomicBool::new(exact.is_none()),
            is_ended: AtomicBool::new(false),
            database,
        });
        let pin = Self {
            state: Arc::clone(&state),
            at,
            ahead: (1, Vec::new()),
        };
        (pin, state)
    }

    fn read_ahead(&mut self, first: Pgno) -> Result<()> {
        let size = self.at.page_size.bytes();
        let left = self.at.pages.saturating_sub(first.get() - 1).max(1) as usize;
        let count = (RUN_BYTES / size).max(1).min(left);
        let mut bytes = std::mem::take(&mut self.ahead.1);
        bytes.resize(count * size, 0);
        {
            let inner = self.state.lock();
            let Some((connection, wal)) = &inner.open else {
                return Err(Error::conflict(format!(
                    "the capture of {} began anew while its pages were read",
                    self.state.database.display()
                )));
            };
            match inner.exact {
                Some(view) => {
                    read_run(connection, wal, view, first, self.at.page_size, &mut bytes)?;
                }
                None => {
                    let view = begin_view(connection, wal, &self.state.is_ended)?.0;
                    let read =
                        read_run(connection, wal, view, first, self.at.page_size, &mut bytes);
                    connection.end().map_err(|e| from_sqlite(wal.path(), &e))?;
                    read?;
                }
            }
        }
        self.ahead = (first.get(), bytes);
        Ok(())
    }
}

impl PageSource for SnapshotPin {
    fn run(&self) -> u64 {
        self.at.run
    }

    fn seq(&self) -> u64 {
        self.at.seq
    }

    fn size(&self) -> (PageSize, u32) {
        (self.at.page_size, self.at.pages)
    }

    fn end(&self) -> WalEnd {
        self.at.end
    }

    fn let_go(&mut self) {
        self.state.let_go();
    }

    fn is_exact(&self) -> bool {
        self.state.exact().is_some()
    }

    fn read(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        let size = self.at.page_size.bytes();
        assert_eq!(page.len(), size, "a buffer of one page");
        if pgno.get() == self.at.page_size.lock_byte_page() {
            page.fill(0);
            return Ok(());
        }
        let ahead = |this: &Self| {
            let index = pgno.get().checked_sub(this.ahead.0)? as usize;
            (index < this.ahead.1.len() / size).then_some(index * size)
        };
        let at = match ahead(self) {
            Some(at) => at,
            None => {
                self.read_ahead(pgno)?;
                0
            }
        };
        page.copy_from_slice(&self.ahead.1[at..at + size]);
        Ok(())
    }
}
