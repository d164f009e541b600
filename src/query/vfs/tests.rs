use super::*;
use crate::error::ErrorKind;
use crate::materialize::model::{Random, Writer, build, image, open_replica};
use crate::storage::Store;
use crate::storage::fault::{Fault, FaultStore, every};
use crate::storage::memory::MemoryStore;
use rusqlite::{Connection, OpenFlags};

const CACHE: u64 = 1 << 20;

/// The moment as an SQLite connection has it open.
struct Opened {
    connection: Connection,
    vfs: Vfs,
}

impl Opened {
    fn new(database: Arc<Database>) -> Self {
        let vfs = Vfs::register(database).unwrap();
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection = Connection::open_with_flags_and_vfs(FILE, flags, vfs.name()).unwrap();
        Self { connection, vfs }
    }

    fn file(&self) -> *mut ffi::sqlite3_file {
        let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
        // SAFETY: the connection is open; this operation writes a pointer to the file of the
        // database, which stays as long.
        let code = unsafe {
            ffi::sqlite3_file_control(
                self.connection.handle(),
                c"main".as_ptr(),
                ffi::SQLITE_FCNTL_FILE_POINTER,
                (&raw mut file).cast(),
            )
        };
        assert_eq!(code, ffi::SQLITE_OK);
        file
    }

    fn size(&self) -> u64 {
        let mut size = 0;
        let file = self.file();
        // SAFETY: the file is open, and its methods are those of this module.
        let code = unsafe { (*(*file).pMethods).xFileSize.unwrap()(file, &raw mut size) };
        assert_eq!(code, ffi::SQLITE_OK);
        u64::try_from(size).unwrap()
    }

    /// What SQLite gets when it reads, and the code.
    fn read(&self, offset: u64, length: usize) -> (c_int, Vec<u8>) {
        let mut bytes = vec![0xee; length];
        let (file, out) = (self.file(), bytes.as_mut_ptr().cast());
        let (length, offset) = (length.try_into().unwrap(), offset.try_into().unwrap());
        // SAFETY: as above, with as much room as is asked for.
        let code = unsafe { (*(*file).pMethods).xRead.unwrap()(file, out, length, offset) };
        (code, bytes)
    }
}

/// Runs on a thread that may wait.
async fn waiting<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(act).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_read_gives_the_bytes_of_the_moment_with_a_rollback_header() {
    for (seed, page_size, pages) in [(1, 512, 40), (2, 4096, 25), (3, 512, 3000), (4, 65536, 3)] {
        let store: Arc<dyn Store> = MemoryStore::new();
        let writers: [Writer; 2] = build(&store, seed, page_size, pages).await;
        let replica = open_replica(&store, CACHE).await;
        let mut random = Random::new(seed);
        for point in writers.iter().flat_map(Writer::points) {
            if random.percent(70) {
                continue;
            }
            let writer = writers.iter().find(|writer| writer.id == point.generation);
            let mut expected = image(writer.unwrap(), &point);
            expected[18..20].fill(1);
            let database = replica.open(&point).await.unwrap();
            let seed = random.next();
            waiting(move || check_reads(&Opened::new(database), &expected, seed)).await;
        }
    }
}

/// Pages, parts of pages, stretches of several, and reads across the end.
fn check_reads(opened: &Opened, expected: &[u8], seed: u64) {
    assert_eq!(opened.size(), expected.len() as u64);
    let mut random = Random::new(seed);
    for _ in 0..100 {
        let offset = random.below(expected.len() as u64 + 100);
        let offset = if random.percent(50) {
            offset / 512 * 512
        } else {
            offset
        };
        let length = 1 + random.below(10_000) as usize;
        let (code, bytes) = opened.read(offset, length);
        let start = (offset as usize).min(expected.len());
        let found = &expected[start..(start + length).min(expected.len())];
        assert!(
            bytes[..found.len()] == *found,
            "seed {seed}: {length} bytes at {offset}"
        );
        assert!(bytes[found.len()..].iter().all(|byte| *byte == 0));
        let whole = if found.len() == length {
            ffi::SQLITE_OK
        } else {
            ffi::SQLITE_IOERR_SHORT_READ
        };
        assert_eq!(code, whole, "seed {seed}: {length} bytes at {offset}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_fails_is_an_error_of_sqlite_and_ours_is_kept_once() {
    let memory: Arc<dyn Store> = MemoryStore::new();
    let [writer, _] = build(&memory, 5, 4096, 200).await;
    let store = FaultStore::new(memory);
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    let point = writer.points().pop().unwrap();
    let database = replica.open(&point).await.unwrap();
    waiting(move || {
        let opened = Opened::new(database);
        let size = opened.size() as usize;
        store.set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
        let (code, _) = opened.read(0, size);
        assert_eq!(code, ffi::SQLITE_IOERR_READ);
        let kept = opened.vfs.take_failure().unwrap();
        assert_eq!(kept.kind(), ErrorKind::Unavailable);
        assert!(opened.vfs.take_failure().is_none());
        store.heal();
        assert_eq!(opened.read(0, size).0, ffi::SQLITE_OK);
        assert!(opened.vfs.take_failure().is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_below_sqlite_is_an_error_of_sqlite() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let [writer, _] = build(&store, 6, 512, 50).await;
    let replica = open_replica(&store, CACHE).await;
    let point = writer.points().pop().unwrap();
    let database = replica.open(&point).await.unwrap();
    waiting(move || {
        let opened = Opened::new(database);
        let size = opened.size() as usize;
        // To wait where a task runs is a panic of the runtime.
        let (code, _) = Handle::current().block_on(async { opened.read(0, size) });
        assert_eq!(code, ffi::SQLITE_IOERR_READ);
        assert!(opened.vfs.take_failure().is_none());
        assert_eq!(opened.read(0, size).0, ffi::SQLITE_OK);
    })
    .await;
}
