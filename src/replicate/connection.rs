//! One connection of ours to the captured database.
//!
//! Owns everything that goes through SQLite's own handles: read transactions, checkpoints that
//! never wait, the mapping of the wal-index, reads of the database file. Never writes to the
//! database but for the switch to WAL mode, never parses its schema.
//!
//! No descriptor of the database or of its `-shm` file is ever opened beside SQLite's: closing one
//! would drop every POSIX lock that this process has on it, SQLite's too (howtocorrupt, "Posix
//! advisory locks canceled by a separate thread doing close()").

use crate::error::{Error, ErrorKind, Result};
use rusqlite::{OpenFlags, ffi};
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::Once;
use std::time::Duration;

/// Size of a region of the wal-index, bytes (walformat, "The WAL-Index File Format").
pub(super) const REGION_BYTES: usize = 32 << 10;

/// What a checkpoint that does not wait came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checkpoint {
    /// It did what the marks of all readers allowed.
    Ran,
    /// Someone else checkpoints just now, or a lock that it needs is taken.
    Busy,
}

/// Which checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckpointMode {
    /// Backfills what it can.
    Passive,
    /// Backfills everything and empties the `-wal` file, or does nothing.
    Truncate,
}

/// A read lock that goes with a mark, 1 to 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadLock(pub u8);

/// Read lock 0 among the locks of the shared memory (walformat, "WAL Locks").
const FIRST_READ_LOCK: c_int = 3;

/// A read lock held without a transaction, until this is dropped.
pub(super) struct HeldLock<'a> {
    connection: &'a Connection,
    lock: ReadLock,
}

impl Drop for HeldLock<'_> {
    fn drop(&mut self) {
        let flags = ffi::SQLITE_SHM_UNLOCK | ffi::SQLITE_SHM_SHARED;
        if let Err(e) = self.connection.shm_lock(self.lock, flags).and_then(check) {
            tracing::error!("release read lock {}: {e}", self.lock.0);
        }
    }
}

/// An open connection. Used by one thread at a time.
#[derive(Debug)]
pub(super) struct Connection {
    inner: rusqlite::Connection,
}

impl Connection {
    /// Opens an existing database; never creates one.
    ///
    /// # Errors
    /// What [`from_sqlite`] says.
    pub(super) fn open(path: &Path) -> Result<Self> {
        set_no_pages_aside();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let inner = rusqlite::Connection::open_with_flags(path, flags)
            .map_err(|e| from_sqlite(path, &e))?;
        let this = Self { inner };
        this.configure().map_err(|e| from_sqlite(path, &e))?;
        Ok(this)
    }

    fn configure(&self) -> rusqlite::Result<()> {
        self.inner.busy_timeout(Duration::ZERO)?;
        // SAFETY: the connection is open and has not allocated from its lookaside buffer yet; the
        // three arguments are those of this option: buffer, slot size, slots.
        unsafe {
            ffi::sqlite3_db_config(
                self.inner.handle(),
                ffi::SQLITE_DBCONFIG_LOOKASIDE,
                ptr::null_mut::<c_void>(),
                0 as c_int,
                0 as c_int,
            );
        }
        // SAFETY: the arguments are those of this option: the value to set, and where to put the
        // value that it has now, which may be null.
        unsafe {
            ffi::sqlite3_db_config(
                self.inner.handle(),
                ffi::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE,
                1 as c_int,
                ptr::null_mut::<c_int>(),
            );
        }
        self.inner.set_prepared_statement_cache_capacity(8);
        // Not cache_size: it would parse the schema, and only the first page is ever read this way.
        self.inner.execute_batch("PRAGMA wal_autocheckpoint=0")?;
        let mut persist: c_int = 1;
        self.file_control(ffi::SQLITE_FCNTL_PERSIST_WAL, (&raw mut persist).cast())
    }

    fn file_control(&self, operation: c_int, argument: *mut c_void) -> rusqlite::Result<()> {
        // SAFETY: the connection is open; the callers pass what their operation writes to.
        let code = unsafe {
            ffi::sqlite3_file_control(self.inner.handle(), c"main".as_ptr(), operation, argument)
        };
        check(code)
    }

    /// SQLite's own handle of the database file; it lives as long as the connection.
    fn file(&self) -> rusqlite::Result<*mut ffi::sqlite3_file> {
        let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
        self.file_control(ffi::SQLITE_FCNTL_FILE_POINTER, (&raw mut file).cast())?;
        Ok(file)
    }

    /// The journal mode that the database is in: `wal`, `delete`, ... Parses the schema, which
    /// stays in memory as long as the connection.
    pub(super) fn journal_mode(&self) -> rusqlite::Result<String> {
        self.inner
            .query_row("PRAGMA journal_mode", [], |row| row.get(0))
    }

    /// Switches the database to WAL mode; the mode that it is in afterwards. Parses the schema.
    pub(super) fn switch_to_wal(&self) -> rusqlite::Result<String> {
        self.inner
            .query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))
    }

    /// Opens a read transaction, without parsing the schema.
    pub(super) fn begin_read(&self) -> rusqlite::Result<()> {
        self.inner.prepare_cached("BEGIN")?.execute([])?;
        let read = self
            .inner
            .prepare_cached("PRAGMA user_version")?
            .query_row([], |row| row.get::<_, i64>(0));
        if read.is_err() {
            self.end()?;
        }
        read.map(|_| ())
    }

    /// Opens a transaction that holds the write lock; false if someone else has it.
    pub(super) fn begin_write(&self) -> rusqlite::Result<bool> {
        match self.inner.prepare_cached("BEGIN IMMEDIATE")?.execute([]) {
            Ok(_) => Ok(true),
            Err(e) if is_busy(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Ends the transaction, if there is one.
    pub(super) fn end(&self) -> rusqlite::Result<()> {
        if !self.inner.is_autocommit() {
            self.inner.prepare_cached("ROLLBACK")?.execute([])?;
        }
        Ok(())
    }

    /// A checkpoint that never waits for anybody.
    pub(super) fn checkpoint(&self, mode: CheckpointMode) -> rusqlite::Result<Checkpoint> {
        let mode = match mode {
            CheckpointMode::Passive => ffi::SQLITE_CHECKPOINT_PASSIVE,
            CheckpointMode::Truncate => ffi::SQLITE_CHECKPOINT_TRUNCATE,
        };
        // SAFETY: the connection is open; null asks for no figures.
        let code = unsafe {
            ffi::sqlite3_wal_checkpoint_v2(
                self.inner.handle(),
                c"main".as_ptr(),
                mode,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        match check(code) {
            Ok(()) => Ok(Checkpoint::Ran),
            Err(e) if is_busy(&e) => Ok(Checkpoint::Busy),
            Err(e) => Err(e),
        }
    }

    /// The start of a region of the wal-index as SQLite has it mapped; `None` if there is no such
    /// region yet. Valid as long as any connection of this process to the database is open; written
    /// by other processes at any time.
    pub(super) fn region(&self, region: u32) -> rusqlite::Result<Option<*const u32>> {
        let file = self.file()?;
        let mut map: *mut c_void = ptr::null_mut();
        // SAFETY: `file` is the open file of this connection; SQLite writes one pointer. The last
        // argument but one, 0, never makes a region that is not there.
        let code = unsafe {
            let Some(shm_map) = (*(*file).pMethods).xShmMap else {
                return Ok(None);
            };
            let region = c_int::try_from(region).expect("2^19 regions index 2^31 frames");
            shm_map(file, region, REGION_BYTES as c_int, 0, &raw mut map)
        };
        // A mapping that we may not write is as good as another.
        if code != ffi::SQLITE_READONLY {
            check(code)?;
        }
        Ok((!map.is_null()).then_some(map.cast_const().cast()))
    }

    /// Takes a read lock without a transaction, so that no writer can restart the WAL while it is
    /// held, and none of what it says about frames. `None` if somebody changes its mark just now.
    pub(super) fn hold_read_lock(&self, lock: ReadLock) -> rusqlite::Result<Option<HeldLock<'_>>> {
        let flags = ffi::SQLITE_SHM_LOCK | ffi::SQLITE_SHM_SHARED;
        match check(self.shm_lock(lock, flags)?) {
            Ok(()) => Ok(Some(HeldLock {
                connection: self,
                lock,
            })),
            Err(e) if is_busy(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn shm_lock(&self, lock: ReadLock, flags: c_int) -> rusqlite::Result<c_int> {
        let file = self.file()?;
        // SAFETY: `file` is the open file of this connection, which has its shared memory open
        // since it has read a WAL database, and holds no lock of its own while it is in no
        // transaction.
        Ok(unsafe {
            let shm_lock = (*(*file).pMethods)
                .xShmLock
                .expect("a database in WAL mode has shared memory");
            shm_lock(file, FIRST_READ_LOCK + lock.0 as c_int, 1, flags)
        })
    }

    /// Reads from the database file; what lies behind its end reads as zeros. A page of it is right
    /// only for a transaction that has no newer version of it in the WAL.
    pub(super) fn read_file(&self, bytes: &mut [u8], offset: u64) -> rusqlite::Result<()> {
        let file = self.file()?;
        let length = c_int::try_from(bytes.len()).expect("reads are of some MiB at most");
        // SAFETY: `file` is the open file of this connection and the buffer has `length` bytes.
        let code = unsafe {
            let read = (*(*file).pMethods)
                .xRead
                .expect("every file system of SQLite reads");
            read(file, bytes.as_mut_ptr().cast(), length, offset as i64)
        };
        // SQLite fills with zeros what a short read leaves.
        if code == ffi::SQLITE_IOERR_SHORT_READ {
            return Ok(());
        }
        check(code)
    }
}

/// Keeps SQLite from setting memory for twenty pages aside for each connection, 88 KB.
fn set_no_pages_aside() {
    static IS_SET: Once = Once::new();
    IS_SET.call_once(|| {
        // SAFETY: nothing else in this program uses SQLite, and all that this module does with it
        // comes behind this call; the three arguments are those of this option: buffer, size of a
        // page, pages.
        let code = unsafe {
            ffi::sqlite3_config(
                ffi::SQLITE_CONFIG_PAGECACHE,
                ptr::null_mut::<c_void>(),
                0 as c_int,
                0 as c_int,
            )
        };
        // Somebody has used SQLite before: it only takes more memory.
        if let Err(e) = check(code) {
            tracing::debug!("SQLite keeps its pages as it likes: {e}");
        }
    });
}

fn check(code: c_int) -> rusqlite::Result<()> {
    if code == ffi::SQLITE_OK {
        return Ok(());
    }
    Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))
}

/// True if another connection has a lock that this one needs.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            rusqlite::ErrorCode::DatabaseBusy
                | rusqlite::ErrorCode::DatabaseLocked
                | rusqlite::ErrorCode::FileLockingProtocolFailed
        )
    )
}

/// What SQLite's refusal means to a user of `path`: `Unavailable` where waiting helps, else
/// `Invalid` or `Disk`.
pub(super) fn from_sqlite(path: &Path, error: &rusqlite::Error) -> Error {
    let path = path.display();
    if is_busy(error) {
        return Error::unavailable(format!(
            "{path} is locked by another process; if it says PRAGMA locking_mode=EXCLUSIVE the \
             database cannot be replicated"
        ));
    }
    let (kind, sentence) = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase) => (
            ErrorKind::Invalid,
            format!("{path} is not an SQLite database, or an encrypted one"),
        ),
        Some(rusqlite::ErrorCode::CannotOpen) => (
            ErrorKind::Invalid,
            format!("{path} cannot be opened: may this user write to it and to its directory?"),
        ),
        Some(rusqlite::ErrorCode::ReadOnly | rusqlite::ErrorCode::PermissionDenied) => (
            ErrorKind::Invalid,
            format!("{path} is read-only for this user; SQLite needs to write beside it"),
        ),
        _ => (ErrorKind::Disk, format!("SQLite fails on {path}: {error}")),
    };
    Error::new(kind, sentence)
}
