//! The mount with the library in this process: places that will not do, mounts left by a killed
//! daemon, mounts of others, ends of every kind; and what programs see when the store fails.

use crate::program::{LONG, Output, bound, run, wait_for, wait_until};
use crate::stored::{Stored, at};
use nix::mount::{MntFlags, MsFlags, umount2};
use sqlrepl::error::{Error, ErrorKind};
use sqlrepl::format::ids::Timestamp;
use sqlrepl::materialize::hydrate::HydrateOptions;
use sqlrepl::mount::discover::Source;
use sqlrepl::mount::mountpoint::Mount;
use sqlrepl::mount::session::{self, DiskCacheOptions, MountOptions, Ready};
use sqlrepl::storage::Store;
use sqlrepl::storage::fault::{Fault, FaultStore, Verb};
use sqlrepl::storage::memory::MemoryStore;
use sqlrepl::storage::retry::{RetrySettings, RetryStore};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// An empty directory to mount on, that nothing is mounted on when the test has ended.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().canonicalize().unwrap()
    }

    /// What is mounted here, bottom first: the types.
    fn mounted(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = self.0.path().to_str().unwrap();
        let lines = table
            .lines()
            .filter(|line| line.split(' ').nth(4) == Some(here));
        lines
            .map(|line| {
                let (_, behind) = line.split_once(" - ").unwrap();
                behind.split(' ').next().unwrap().to_owned()
            })
            .collect()
    }

    fn mount_tmpfs(&self) {
        let none: Option<&str> = None;
        nix::mount::mount(
            Some("foreign"),
            self.0.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )
        .unwrap();
    }

    fn unmount(&self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }

    /// What a daemon leaves that is killed: a mount of ours that nobody serves.
    fn leave_stale_mount(&self) {
        let (device, mount) = Mount::new(self.0.path(), "killed", false).unwrap();
        drop(device);
        // Dropping it would unmount.
        std::mem::forget(mount);
        let error = fs::metadata(self.0.path()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while !self.mounted().is_empty() {
            self.unmount();
        }
    }
}

/// A mount that this process serves.
struct Served {
    stop: Option<oneshot::Sender<()>>,
    thread: JoinHandle<Result<(), Error>>,
}

impl Served {
    /// Mounts an empty store. Returns when the mount is ready or has failed.
    fn start(at: &Path) -> Self {
        Self::serve(at, MemoryStore::new(), MountOptions::default(), |ready| {
            assert_eq!(ready.databases, Some(0));
        })
    }

    fn serve(
        at: &Path,
        store: Arc<dyn Store>,
        options: MountOptions,
        check: impl FnOnce(&Ready) + Send + 'static,
    ) -> Self {
        let at = at.to_owned();
        let (stop, stopped) = oneshot::channel::<()>();
        let (is_ready, ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(session::run(
                vec![Source::Folder(store)],
                "memory",
                &at,
                options,
                Arc::new(|| {
                    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
                    Timestamp::from_micros(now.as_micros().try_into().unwrap())
                }),
                |ready| {
                    check(ready);
                    is_ready.send(()).unwrap();
                    Ok(())
                },
                // Also when the test has failed and nobody is left to say so.
                async { drop(stopped.await) },
            ))
        });
        // Fails when the sender is dropped, because the mount failed.
        ready.recv_timeout(LONG).ok();
        Self {
            stop: Some(stop),
            thread,
        }
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    fn outcome(self) -> Result<(), Error> {
        wait_until(LONG, "the mount to end", || self.thread.is_finished());
        self.thread.join().unwrap()
    }
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_mount_without_databases_is_an_empty_directory_until_it_is_stopped() {
    let place = Place::new();
    let mut served = Served::start(&place.path());
    assert_eq!(place.mounted(), ["fuse.sqlrepl"]);
    assert_eq!(names(&place.path()), [""; 0]);
    let error = File::open(place.path().join("app/latest.db")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    let error = File::create(place.path().join("new")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    served.stop();
    served.outcome().unwrap();
    assert_eq!(place.mounted(), [""; 0]);
}

#[test]
fn an_unmount_from_elsewhere_ends_it_well() {
    let place = Place::new();
    let served = Served::start(&place.path());
    place.unmount();
    served.outcome().unwrap();
}

#[test]
fn a_mount_is_stopped_while_somebody_has_a_file_open_and_waits_for_them() {
    let place = Place::new();
    let mut served = Served::start(&place.path());
    let open = File::open(place.path()).unwrap();
    served.stop();
    wait_until(LONG, "the mount to go", || place.mounted().is_empty());
    assert!(open.metadata().unwrap().is_dir());
    drop(open);
    served.outcome().unwrap();
}

#[test]
fn what_somebody_mounts_there_later_stays() {
    let place = Place::new();
    let mut served = Served::start(&place.path());
    // An open file keeps the session alive behind the unmount.
    let open = File::open(place.path()).unwrap();
    place.unmount();
    place.mount_tmpfs();
    served.stop();
    drop(open);
    served.outcome().unwrap();
    assert_eq!(place.mounted(), ["tmpfs"]);
}

#[test]
fn a_mount_left_by_a_killed_daemon_is_replaced() {
    let place = Place::new();
    place.leave_stale_mount();
    let mut served = Served::start(place.0.path());
    assert_eq!(place.mounted(), ["fuse.sqlrepl"]);
    assert_eq!(names(place.0.path()), [""; 0]);
    served.stop();
    served.outcome().unwrap();
    assert_eq!(place.mounted(), [""; 0]);
}

#[test]
fn a_cache_directory_that_does_not_answer_is_done_without() {
    let (place, silent) = (Place::new(), Place::new());
    // Nobody serves it, and nobody has given it up: whoever looks at it waits.
    let (device, mount) = Mount::new(&silent.path(), "silent", false).unwrap();
    let disk_cache = DiskCacheOptions {
        directory: silent.0.path().join("cache"),
        bytes: 16 << 20,
        hydrate: HydrateOptions::default(),
    };
    let options = MountOptions {
        disk_cache: Some(disk_cache),
        ..MountOptions::default()
    };
    let mut served = Served::serve(&place.path(), MemoryStore::new(), options, |_| {});
    assert_eq!(place.mounted(), ["fuse.sqlrepl"]);
    served.stop();
    drop((device, mount));
    served.outcome().unwrap();
}

#[track_caller]
fn refused(at: &Path, why: &str) {
    let error = Served::start(at).outcome().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains(why), "{error}");
}

#[test]
fn what_is_mounted_there_is_refused_and_stays() {
    let place = Place::new();
    place.mount_tmpfs();
    refused(&place.path(), "foreign (tmpfs) is mounted there");
    assert_eq!(place.mounted(), ["tmpfs"]);
}

#[test]
fn a_second_mount_on_one_directory_is_refused_and_the_first_goes_on() {
    let place = Place::new();
    let mut served = Served::start(&place.path());
    refused(&place.path(), "a running sqlrepl is mounted there");
    assert_eq!(names(&place.path()), [""; 0]);
    served.stop();
    served.outcome().unwrap();
}

#[test]
fn a_path_that_is_no_directory_is_refused() {
    let place = Place::new();
    refused(&place.path().join("none"), "create it: mkdir -p");
}

/// A mounted database of three versions of a row and 2 MB beside it, and its files as SQLite had
/// them.
struct Versions {
    place: Place,
    served: Served,
    faults: Arc<FaultStore>,
    images: Vec<Vec<u8>>,
    // Read from until the mount has ended.
    _stored: Stored,
}

impl Versions {
    fn mount(options: MountOptions) -> Self {
        let stored = Stored::new();
        let images = vec![
            stored.commit(
                at(10),
                "CREATE TABLE t(id INTEGER PRIMARY KEY, v, w);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
                 INSERT INTO t SELECT i, 'one', randomblob(2000) FROM n;",
            ),
            stored.commit(at(11), "UPDATE t SET v = 'two'"),
            stored.commit(
                at(12),
                "UPDATE t SET v = 'three'; DELETE FROM t WHERE id > 900; VACUUM",
            ),
        ];
        let faults = FaultStore::new(stored.replicas());
        let place = Place::new();
        let patient = RetryStore::new(
            faults.clone(),
            RetrySettings {
                first_wait: Duration::from_millis(1),
                longest_wait: Duration::from_millis(10),
                total: Duration::from_millis(300),
                // This store does not see by itself that nothing moves.
                slowest: 1 << 30,
                ..RetrySettings::default()
            },
        );
        let served = Served::serve(&place.path(), patient, options, |ready| {
            assert_eq!(ready.databases, Some(1));
        });
        Self {
            place,
            served,
            faults,
            images,
            _stored: stored,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.place.path().join("app").join(name)
    }

    fn try_sql(&self, name: &str, sql: &str) -> Output {
        run(bound("sqlite3").arg(self.file(name)).arg(sql))
    }

    fn sql(&self, name: &str, sql: &str) -> String {
        self.try_sql(name, sql).ok().trim_end().to_owned()
    }

    fn end(mut self) {
        self.served.stop();
        let Self { served, .. } = self;
        served.outcome().unwrap();
    }
}

/// As the mount serves it: in rollback-journal mode.
fn served(image: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    assert_eq!(image[18..20], [2, 2]);
    image[18..20].fill(1);
    image
}

#[test]
fn ordinary_programs_read_every_moment() {
    let versions = Versions::mount(MountOptions::default());
    let names = [at(10), at(11), at(12)].map(|time| time.file_name() + ".db");
    for (name, (image, version)) in names
        .iter()
        .zip(versions.images.iter().zip(["one", "two", "three"]))
    {
        assert_eq!(versions.sql(name, "SELECT DISTINCT v FROM t"), version);
        assert_eq!(
            versions.sql(
                name,
                "PRAGMA mmap_size = 1000000000; SELECT DISTINCT v FROM t"
            ),
            format!("1000000000\n{version}")
        );
        assert_eq!(versions.sql(name, "PRAGMA integrity_check"), "ok");
        let file = versions.file(name);
        assert!(fs::read(&file).unwrap() == served(image), "{name}");
        let copy = versions.place.0.path().with_extension("copy");
        run(bound("cp").arg(&file).arg(&copy)).ok();
        let copied = fs::read(&copy);
        fs::remove_file(&copy).unwrap();
        assert!(copied.unwrap() == served(image), "{name}");
        let python = "import sqlite3, sys; \
                      print(*sqlite3.connect(sys.argv[1]).execute('SELECT DISTINCT v FROM t'))";
        let printed = run(bound("python3").args(["-c", python]).arg(&file)).ok();
        assert_eq!(printed.trim_end(), format!("('{version}',)"));
    }
    assert_eq!(
        versions.sql("latest.db", "SELECT DISTINCT v FROM t"),
        "three"
    );
    assert_eq!(versions.sql("now.db", "SELECT DISTINCT v FROM t"), "three");
    assert_eq!(
        versions.sql("2026-11-20T11:30:00Z.db", "SELECT DISTINCT v FROM t"),
        "two"
    );
    versions.end();
}

#[test]
fn a_file_shows_its_commit_in_stat_and_is_one_inode_under_all_names() {
    let versions = Versions::mount(MountOptions::default());
    let metadata = fs::metadata(versions.file("2026-11-20T11:00:00Z.db")).unwrap();
    assert_eq!(metadata.len(), versions.images[1].len() as u64);
    assert_eq!(metadata.mtime() * 1_000_000, at(11).micros());
    assert_eq!(metadata.ctime(), metadata.mtime());
    assert_eq!(metadata.mode(), libc::S_IFREG | 0o444);
    assert_eq!(metadata.nlink(), 1);
    assert_eq!(metadata.blocks(), metadata.len().div_ceil(512));
    let other = fs::metadata(versions.file("2026-11-20T11:59Z.db")).unwrap();
    assert_eq!(other.ino(), metadata.ino());
    let link = fs::read_link(versions.file("latest.db")).unwrap();
    assert_eq!(link.to_str().unwrap(), at(12).file_name() + ".db");
    let mut listed = names(&versions.place.path().join("app"));
    listed.sort();
    let mut expect: Vec<String> = [9, 10, 11, 12]
        .iter()
        .map(|&h| at(h).file_name() + ".db")
        .collect();
    expect.extend(["by-time", "by-txid", "latest.db"].map(str::to_owned));
    assert_eq!(listed, expect);
    versions.end();
}

#[test]
fn a_read_that_the_store_does_not_answer_fails_in_time_and_holds_up_nothing_else() {
    let versions = Versions::mount(MountOptions {
        read_deadline: Duration::from_millis(100),
        ..MountOptions::default()
    });
    let place = versions.file("2026-11-20T11:00:00Z.db");
    // To open it takes reads, too, which may take longer than that.
    let file = wait_for(LONG, "the file to open", || File::open(&place).ok());
    versions.faults.set_rule(|call| {
        let never = Fault::Delay(Duration::from_secs(3600));
        (call.verb == Verb::GetRange).then_some(never)
    });
    let start = Instant::now();
    let reader = std::thread::spawn(move || file.read_at(&mut [0; 4096], 1_000_000));
    assert_eq!(names(&versions.place.path()), ["app"]);
    fs::metadata(versions.file("2026-11-20T12:00:00Z.db")).unwrap();
    let error = reader.join().unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    let query = "SELECT count(*) FROM t";
    let failed = versions.try_sql("2026-11-20T11:00:00Z.db", query);
    assert!(failed.stderr.contains("disk I/O error"), "{failed}");
    versions.faults.heal();
    wait_until(LONG, "the store to be asked again", || {
        versions.try_sql("2026-11-20T11:00:00Z.db", query).stdout == "1000\n"
    });
    versions.end();
}

#[test]
fn what_was_read_can_be_read_while_the_store_is_away() {
    let versions = Versions::mount(MountOptions::default());
    let query = "SELECT sum(length(w)) FROM t";
    assert_eq!(versions.sql("latest.db", query), "1800000");
    let away = Fault::Refuse(ErrorKind::Unavailable);
    versions.faults.set_rule(move |_| Some(away));
    assert_eq!(versions.sql("latest.db", query), "1800000");
    assert_eq!(names(&versions.place.path().join("app")).len(), 7);
    let journal = fs::metadata(versions.file("2026-11-20T12:00:00Z.db-wal"));
    assert_eq!(journal.unwrap_err().kind(), io::ErrorKind::NotFound);
    let failed = versions.try_sql("2026-11-20T10:00:00Z.db", query);
    assert!(!failed.stderr.contains("malformed"), "{failed}");
    assert_ne!(failed.code, 0, "{failed}");
    versions.end();
}

/// README: "While a store is away, reads of a mount that need it fail at once after the first ones
/// have waited, and go well again when it is back."
#[test]
fn reads_of_a_store_that_is_away_fail_without_asking_it_again_and_again() {
    let versions = Versions::mount(MountOptions::default());
    let file = File::open(versions.file("2026-11-20T11:00:00Z.db")).unwrap();
    versions.faults.set_rule(|call| {
        let away = Fault::Refuse(ErrorKind::Unavailable);
        (call.verb == Verb::GetRange).then_some(away)
    });
    let calls = || versions.faults.counts(Verb::GetRange).calls;
    let read = |page: u64| file.read_at(&mut [0; 4096], 4096 * page);
    let before = calls();
    read(10).unwrap_err();
    read(20).unwrap_err();
    let (waited, begun) = (calls() - before, Instant::now());
    assert!(waited > 2, "{waited}");
    for page in 100..300 {
        let error = read(page).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    }
    // Without the circuit each of them asks as often as one of the first two. One a second may.
    let probes = 2 + begun.elapsed().as_secs();
    let asked = calls() - before - waited;
    assert!(asked <= probes * waited, "{asked} after {waited}");
    versions.faults.heal();
    wait_until(LONG, "the store to be asked again", || read(10).is_ok());
    versions.end();
}
