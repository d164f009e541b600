//! Mounting and unmounting, with the library in this process: places that will not do, mounts left
//! by a killed daemon, mounts of others, ends of every kind.

use crate::program::{LONG, wait_until};
use nix::mount::{MntFlags, MsFlags, umount2};
use sqlrepl::error::{Error, ErrorKind};
use sqlrepl::format::ids::Timestamp;
use sqlrepl::mount::mountpoint::Mount;
use sqlrepl::mount::session::{self, MountOptions};
use sqlrepl::storage::Store;
use sqlrepl::storage::memory::MemoryStore;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::SystemTime;
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

/// A mount of an empty store, served by this process.
struct Served {
    stop: Option<oneshot::Sender<()>>,
    thread: JoinHandle<Result<(), Error>>,
}

impl Served {
    /// Returns when the mount is ready or has failed.
    fn start(at: &Path) -> Self {
        let at = at.to_owned();
        let (stop, stopped) = oneshot::channel::<()>();
        let (is_ready, ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let store: Arc<dyn Store> = MemoryStore::new();
            runtime.block_on(session::run(
                vec![store],
                &at,
                MountOptions::default(),
                Arc::new(|| {
                    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
                    Timestamp::from_micros(now.as_micros().try_into().unwrap())
                }),
                |ready| {
                    assert_eq!(ready.databases, Some(0));
                    is_ready.send(()).unwrap();
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
    let mut served = Served::start(&place.0.path());
    assert_eq!(place.mounted(), ["fuse.sqlrepl"]);
    assert_eq!(names(place.0.path()), [""; 0]);
    served.stop();
    served.outcome().unwrap();
    assert_eq!(place.mounted(), [""; 0]);
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
