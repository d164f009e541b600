//! The watches on a real file system.

use crate::replicate::decide::TICK;
use crate::replicate::pool::Id;
use crate::replicate::wake::{FILE, Watcher, no_instance, no_watch};
use inotify::Inotify;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

fn ids<const N: usize>() -> [Id; N] {
    std::array::from_fn(|n| Id(n as u64))
}

fn opened() -> (Watcher, Inotify) {
    let watcher = Watcher::new();
    let inotify = watcher.open().expect("an inotify instance");
    (watcher, inotify)
}

/// Whom the next events wake.
fn woken(watcher: &Watcher, inotify: &mut Inotify) -> HashSet<Id> {
    let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(9000_u16)).unwrap();
    watcher.read(inotify)
}

/// Nothing comes any more.
fn assert_quiet(watcher: &Watcher, inotify: &mut Inotify) {
    thread::sleep(TICK);
    assert_eq!(watcher.read(inotify), HashSet::new());
}

#[test]
fn a_change_wakes_once_for_each_arming() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, b"1").unwrap();
    let ((watcher, mut inotify), [one]) = (opened(), ids());
    watcher.watch_files(one, &[&path, &dir.path().join("absent")]);
    fs::write(&path, b"2").unwrap();
    assert_eq!(woken(&watcher, &mut inotify), [one].into());
    fs::write(&path, b"3").unwrap();
    assert_quiet(&watcher, &mut inotify);
    watcher.watch_files(one, &[&path]);
    fs::rename(&path, dir.path().join("g")).unwrap();
    assert_eq!(woken(&watcher, &mut inotify), [one].into());
}

#[test]
fn captures_that_watch_one_directory_all_wake() {
    let dir = tempfile::tempdir().unwrap();
    let ((watcher, mut inotify), [one, two, gone]) = (opened(), ids());
    for id in [one, two, one, gone] {
        watcher.watch_directory(id, dir.path());
    }
    watcher.forget(gone);
    fs::write(dir.path().join("f"), b"1").unwrap();
    assert_eq!(woken(&watcher, &mut inotify), [one, two].into());
    watcher.watch_directory(two, dir.path());
    watcher.forget(two);
    fs::write(dir.path().join("g"), b"1").unwrap();
    assert_quiet(&watcher, &mut inotify);
}

#[test]
fn a_path_that_takes_long_holds_up_no_other_and_what_happens_to_it_meanwhile_counts() {
    let dir = tempfile::tempdir().unwrap();
    let [slow, other] = ["slow", "other"].map(|name| dir.path().join(name));
    for path in [&slow, &other] {
        fs::write(path, b"1").unwrap();
    }
    let ((watcher, mut inotify), [one, two]) = (opened(), ids());
    let (sender, seen) = mpsc::channel();
    let (happened, seen) = thread::scope(|scope| {
        let mut seen_in_time = None;
        let happened = watcher.watch_by(one, &slow, |watches| {
            let watch = watches.add(&slow, FILE);
            fs::write(&slow, b"2").unwrap();
            scope.spawn(|| {
                let early = woken(&watcher, &mut inotify);
                watcher.watch_files(two, &[&other]);
                fs::write(&other, b"2").unwrap();
                let seen = (early, woken(&watcher, &mut inotify));
                sender.send(seen).unwrap();
            });
            seen_in_time = seen.recv_timeout(Duration::from_secs(20)).ok();
            watch
        });
        (happened, seen_in_time)
    });
    assert_eq!(seen, Some(([].into(), [two].into())));
    assert!(happened);
}

#[test]
fn a_watch_that_ends_without_a_change_wakes_too() {
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("below");
    fs::create_dir(&below).unwrap();
    let ((watcher, mut inotify), [one]) = (opened(), ids());
    watcher.watch_directory(one, &below);
    fs::remove_dir(&below).unwrap();
    assert_eq!(woken(&watcher, &mut inotify), [one].into());
}

#[test]
fn a_system_without_watches_is_named_with_what_limits_it() {
    assert_eq!(
        no_instance(&io::Error::from_raw_os_error(24)),
        "changes are polled for, since the system gives no inotify instance: Too many open files \
         (os error 24); fs.inotify.max_user_instances limits them"
    );
    assert_eq!(
        no_watch(Path::new("/d/app.db"), &io::Error::from_raw_os_error(28)),
        "changes of /d/app.db and of other databases are polled for, since the system gives no \
         more inotify watches: No space left on device (os error 28); \
         fs.inotify.max_user_watches limits them"
    );
}
