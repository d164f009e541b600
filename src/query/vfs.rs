//! One moment as a file of SQLite's: a virtual file system (c3ref, "OS Interface Object") with a
//! single database in it that nobody can change.
//!
//! SQLite calls it through C, so that this file is `unsafe`; nothing else in `query` is. What it
//! does behind that is little: reads go to [`Database`], and whatever would write is refused. A
//! panic never crosses into C. What a sort or a temporary table cannot keep in memory goes to
//! SQLite's own temporary files, which have no name.

use crate::error::{Error, Result};
use crate::format::db_header::served;
use crate::materialize::cache::locked;
use crate::materialize::pages::{Database, ReadAhead};
use bytes::Bytes;
use rusqlite::ffi;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::runtime::Handle;

/// The name of the only database.
pub(super) const FILE: &str = "moment";

/// Bytes in a path, as SQLite's own file system for Unix has it.
const PATH_BYTES_MAX: c_int = 512;
const SECTOR_BYTES: c_int = 4096;

/// A registered file system, until this is dropped. Connections that use it must have gone by then.
pub(super) struct Vfs {
    // What SQLite holds a pointer to, and what that points to: neither moves.
    registered: Box<ffi::sqlite3_vfs>,
    source: Box<Source>,
    name: CString,
}

/// Where bytes come from.
struct Source {
    database: Arc<Database>,
    ahead: ReadAhead,
    runtime: Handle,
    /// The last that failed, in our own words.
    failure: Mutex<Option<Error>>,
    /// SQLite's own file system, which lives as long as the process.
    default: *mut ffi::sqlite3_vfs,
}

/// An open file, in memory that SQLite gives us.
#[repr(C)]
struct OpenFile {
    /// SQLite looks only at this.
    base: ffi::sqlite3_file,
    source: *const Source,
}

impl Vfs {
    /// Registers a file system for a moment. Within a runtime.
    ///
    /// # Errors
    /// `Refused` if SQLite does not take it.
    pub(super) fn register(database: Arc<Database>) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // ORDERING: only uniqueness matters.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = CString::new(format!("sqlrepl-{number}")).expect("it holds no zero byte");
        // SAFETY: null asks for the default; SQLite is made ready by the call, and answers with
        // null or with what lives as long as the process.
        let default = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
        // SAFETY: as above.
        let Some(size) = unsafe { default.as_ref() }.map(|default| default.szOsFile) else {
            return Err(Error::refused("SQLite has no file system of its own here"));
        };
        let source = Box::new(Source {
            database,
            ahead: ReadAhead::default(),
            runtime: Handle::current(),
            failure: Mutex::default(),
            default,
        });
        let own = c_int::try_from(size_of::<OpenFile>()).expect("it is a few words");
        let mut registered = Box::new(ffi::sqlite3_vfs {
            iVersion: 1,
            // The same memory holds the temporary files of the default.
            szOsFile: size.max(own),
            mxPathname: PATH_BYTES_MAX,
            pNext: ptr::null_mut(),
            zName: name.as_ptr(),
            pAppData: ptr::from_ref(&*source).cast_mut().cast(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_path),
            // Nobody loads an extension: it is off unless a connection asks for it.
            xDlOpen: None,
            xDlError: None,
            xDlSym: None,
            xDlClose: None,
            xRandomness: Some(randomness),
            xSleep: Some(sleep),
            xCurrentTime: Some(current_time),
            xGetLastError: Some(last_error),
            xCurrentTimeInt64: None,
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        });
        // SAFETY: it is whole, and what it points to stays where it is until `drop` takes it back.
        let code = unsafe { ffi::sqlite3_vfs_register(&raw mut *registered, 0) };
        if code != ffi::SQLITE_OK {
            return Err(Error::refused(format!(
                "SQLite takes no other file system: code {code}"
            )));
        }
        Ok(Self {
            registered,
            source,
            name,
        })
    }

    /// What a connection asks for to use it.
    pub(super) fn name(&self) -> &CStr {
        &self.name
    }

    /// What failed since this was asked last.
    pub(super) fn take_failure(&self) -> Option<Error> {
        locked(&self.source.failure).take()
    }
}

impl Drop for Vfs {
    fn drop(&mut self) {
        // SAFETY: it was registered, and no connection uses it any more.
        unsafe { ffi::sqlite3_vfs_unregister(&raw mut *self.registered) };
    }
}

impl Source {
    /// The bytes from `offset`, cut at the end of the database; a code of SQLite's if they cannot
    /// be read, and why is kept.
    fn read(&self, offset: u64, length: usize) -> Result<Bytes, c_int> {
        let read = match self.database.read_cached(offset, length, &self.ahead) {
            Some(bytes) => Ok(bytes),
            None => {
                let read = self.database.read(offset, length, &self.ahead);
                self.runtime.block_on(read)
            }
        };
        match read {
            Ok(bytes) => Ok(served(offset, bytes)),
            Err(error) => {
                *locked(&self.failure) = Some(error);
                Err(ffi::SQLITE_IOERR_READ)
            }
        }
    }
}

/// Runs what SQLite called. A panic must not unwind into C: it becomes an error code.
fn guarded(call: &str, otherwise: c_int, act: impl FnOnce() -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| {
        tracing::error!("a bug: {call} of a moment panicked");
        otherwise
    })
}

/// What SQLite calls on an open file. Version 1: no shared memory and no memory maps.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(lock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// The source behind a file system of ours.
///
/// # Safety
/// `vfs` is what [`Vfs::register`] registered, and still is.
unsafe fn source_of<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a Source {
    // SAFETY: `pAppData` points to the source, which the `Vfs` owns that owns `vfs`.
    unsafe { &*(*vfs).pAppData.cast::<Source>() }
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    guarded("open", ffi::SQLITE_CANTOPEN, || {
        // SAFETY: SQLite passes the file system that it was given, and memory of `szOsFile` bytes,
        // in which a null for the methods says that nothing is to be closed. `default` is SQLite's
        // own, which takes the same arguments. A name ends with a zero byte. `out_flags` is null or
        // can be written.
        unsafe {
            (*file).pMethods = ptr::null();
            let source = source_of(vfs);
            if flags & ffi::SQLITE_OPEN_MAIN_DB == 0 {
                // A journal or WAL has a name, and there is none; what has no name is temporary.
                return match (*source.default).xOpen {
                    Some(open) if name.is_null() => {
                        open(source.default, name, file, flags, out_flags)
                    }
                    _ => ffi::SQLITE_CANTOPEN,
                };
            }
            // Nothing but the moment is here, whoever asks.
            if name.is_null() || CStr::from_ptr(name).to_bytes() != FILE.as_bytes() {
                return ffi::SQLITE_CANTOPEN;
            }
            file.cast::<OpenFile>().write(OpenFile {
                base: ffi::sqlite3_file {
                    pMethods: &raw const METHODS,
                },
                source,
            });
            if !out_flags.is_null() {
                let writable = ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_CREATE;
                *out_flags = flags & !writable | ffi::SQLITE_OPEN_READONLY;
            }
        }
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buffer: *mut c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    guarded("read", ffi::SQLITE_IOERR_READ, || {
        let (Ok(offset), Ok(length)) = (u64::try_from(offset), usize::try_from(length)) else {
            return ffi::SQLITE_IOERR_READ;
        };
        // SAFETY: SQLite passes a file that `open` made, whose source lives longer.
        let source = unsafe { &*(*file.cast::<OpenFile>()).source };
        let bytes = match source.read(offset, length) {
            Ok(bytes) => bytes,
            Err(code) => return code,
        };
        let (found, out) = (bytes.len().min(length), buffer.cast::<u8>());
        // SAFETY: `buffer` has room for `length` bytes, and does not overlap with ours. SQLite
        // wants zeros behind the end of the file.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), out, found);
            out.add(found).write_bytes(0, length - found);
        }
        match found == length {
            true => ffi::SQLITE_OK,
            false => ffi::SQLITE_IOERR_SHORT_READ,
        }
    })
}

unsafe extern "C" fn file_size(
    file: *mut ffi::sqlite3_file,
    size: *mut ffi::sqlite3_int64,
) -> c_int {
    guarded("file size", ffi::SQLITE_IOERR_FSTAT, || {
        // SAFETY: as in `read`; `size` can be written.
        unsafe {
            let source = &*(*file.cast::<OpenFile>()).source;
            let bytes = source.database.size();
            *size = ffi::sqlite3_int64::try_from(bytes).expect("2^32 pages of 2^16 bytes fit");
        }
        ffi::SQLITE_OK
    })
}

/// Nothing is owned by a file: its source belongs to the file system.
unsafe extern "C" fn close(_: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn write(
    _: *mut ffi::sqlite3_file,
    _: *const c_void,
    _: c_int,
    _: ffi::sqlite3_int64,
) -> c_int {
    ffi::SQLITE_READONLY
}

unsafe extern "C" fn truncate(_: *mut ffi::sqlite3_file, _: ffi::sqlite3_int64) -> c_int {
    ffi::SQLITE_READONLY
}

unsafe extern "C" fn sync(_: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    ffi::SQLITE_OK
}

/// Nobody else can have a lock on what never changes.
unsafe extern "C" fn lock(_: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(_: *mut ffi::sqlite3_file, taken: *mut c_int) -> c_int {
    // SAFETY: SQLite passes where to write the answer.
    unsafe { *taken = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(_: *mut ffi::sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_: *mut ffi::sqlite3_file) -> c_int {
    SECTOR_BYTES
}

/// It never changes: SQLite takes no locks, looks for no journal, and keeps the pages that it read.
unsafe extern "C" fn device_characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_IMMUTABLE
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, _: *const c_char, _: c_int) -> c_int {
    ffi::SQLITE_IOERR_DELETE
}

/// Neither a journal nor anything else lies beside the moment.
unsafe extern "C" fn access(
    _: *mut ffi::sqlite3_vfs,
    _: *const c_char,
    _: c_int,
    found: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes where to write the answer.
    unsafe { *found = 0 };
    ffi::SQLITE_OK
}

/// A name is a whole path here.
unsafe extern "C" fn full_path(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    size: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite passes text that ends in a zero byte, and `size` bytes of room for it.
    unsafe {
        let bytes = CStr::from_ptr(name).to_bytes_with_nul();
        if usize::try_from(size).is_ok_and(|size| bytes.len() <= size) {
            ptr::copy_nonoverlapping(bytes.as_ptr(), out.cast(), bytes.len());
            return ffi::SQLITE_OK;
        }
    }
    ffi::SQLITE_CANTOPEN
}

/// Hands a call on to SQLite's own file system.
macro_rules! delegate {
    ($name:ident, $method:ident, $otherwise:expr, $($arg:ident: $type:ty),*) => {
        unsafe extern "C" fn $name(vfs: *mut ffi::sqlite3_vfs, $($arg: $type),*) -> c_int {
            // SAFETY: `vfs` is ours; the default lives as long as the process, and takes what ours
            // was given.
            unsafe {
                let default = source_of(vfs).default;
                match (*default).$method {
                    Some(method) => method(default, $($arg),*),
                    None => $otherwise,
                }
            }
        }
    };
}

delegate!(randomness, xRandomness, 0, length: c_int, out: *mut c_char);
delegate!(sleep, xSleep, 0, microseconds: c_int);
delegate!(current_time, xCurrentTime, ffi::SQLITE_ERROR, out: *mut f64);
delegate!(last_error, xGetLastError, 0, length: c_int, out: *mut c_char);

#[cfg(test)]
mod tests;
