//! What wakes a capture: a change of the files, a request, or the slow poll.
//!
//! Owns the inotify instance and the bell that other threads ring. Files are watched only while the
//! capture sleeps, and for one event: a writer in full flight pays nothing for it.

use crate::error::{Error, ErrorKind, Result};
use inotify::{Inotify, WatchMask};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// The sleeping side.
pub(super) struct Wake {
    /// `None` if the system has no instance left: then there is the slow poll.
    files: Option<Inotify>,
    bell: PipeReader,
    is_armed: bool,
}

/// The side that wakes it; any number of threads may ring.
#[derive(Debug)]
pub(super) struct Bell {
    pipe: PipeWriter,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The time was over.
    Time,
    /// Something happened to a watched file.
    File,
    /// Somebody rang.
    Bell,
}

impl Wake {
    /// A pair of sleeper and bell.
    ///
    /// # Errors
    /// `Unavailable` if the system has no descriptors left.
    pub(super) fn new() -> Result<(Self, Bell)> {
        let files = Inotify::init()
            .inspect_err(|e| {
                tracing::warn!(
                    "changes are polled for, since the system gives no inotify instance: {e}; \
                     fs.inotify.max_user_instances limits them"
                );
            })
            .ok();
        let (reader, writer) =
            io::pipe().map_err(|e| Error::new(ErrorKind::Unavailable, "no pipe").because(e))?;
        Ok((
            Self {
                files,
                bell: reader,
                is_armed: false,
            },
            Bell { pipe: writer },
        ))
    }

    /// Whether the next event of a file ends a wait. Look once more after arming: what happened
    /// before does not count.
    pub(super) fn is_armed(&self) -> bool {
        self.is_armed
    }

    /// Watches for writes to these files, and for their removal or renaming. One that is not there
    /// is left out: the slow poll finds it.
    pub(super) fn arm(&mut self, files: &[&Path]) {
        for path in files {
            let mask = WatchMask::MODIFY
                | WatchMask::ATTRIB
                | WatchMask::MOVE_SELF
                | WatchMask::DELETE_SELF
                | WatchMask::ONESHOT;
            self.watch(path, mask);
        }
        self.is_armed = true;
    }

    /// Watches a directory for anything that may bring a database into it.
    pub(super) fn arm_directory(&mut self, dir: &Path) {
        let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::MODIFY | WatchMask::ONESHOT;
        self.watch(dir, mask);
        self.is_armed = true;
    }

    fn watch(&mut self, path: &Path, mask: WatchMask) {
        let Some(files) = &self.files else {
            return;
        };
        if let Err(e) = files.watches().add(path, mask) {
            tracing::debug!("{} is not watched, only polled: {e}", path.display());
        }
    }

    /// Sleeps until something happens, at most `limit`.
    pub(super) fn wait(&mut self, limit: Duration) -> Woken {
        let timeout =
            PollTimeout::try_from(limit.max(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX);
        // While the capture is busy it looks by the clock.
        let files = self.files.as_ref().filter(|_| self.is_armed);
        let watched = 1 + usize::from(files.is_some());
        let bell = self.bell.as_fd();
        let files = files.map_or(bell, AsFd::as_fd);
        let mut fds = [bell, files].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds[..watched], timeout) {
            Ok(0) | Err(Errno::EINTR) => return Woken::Time,
            Ok(_) => {}
            Err(errno) => {
                // Without poll there is still the clock.
                tracing::error!("poll failed: {errno}");
                std::thread::sleep(limit);
                return Woken::Time;
            }
        }
        let has = |fd: &PollFd| fd.revents().is_some_and(|seen| !seen.is_empty());
        let (rang, changed) = (has(&fds[0]), watched == 2 && has(&fds[1]));
        if changed {
            self.is_armed = false;
            let mut events = [0; 4096];
            // What happened to which file shows in the next look; the events only need to go away.
            while let Some(files) = &mut self.files
                && files.read_events(&mut events).is_ok()
            {}
        }
        if rang {
            let mut rings = [0; 64];
            // Reading what poll saw cannot block; a closed pipe reads as nothing, and the requests
            // show that nobody is left to make any.
            if let Err(e) = self.bell.read(&mut rings) {
                tracing::error!("the wake-up pipe failed: {e}");
            }
            return Woken::Bell;
        }
        Woken::File
    }
}

impl Bell {
    /// Ends the wait of the sleeper, the next one if it does not sleep.
    pub(super) fn ring(&self) {
        // A sleeper that has gone needs no bell; who asked it for something sees that anyway.
        if (&self.pipe).write_all(&[1]).is_err() {
            tracing::debug!("a capture that has ended was rung");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_a_ring_or_the_clock_ends_a_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"1").unwrap();
        let (mut wake, bell) = Wake::new().unwrap();
        assert_eq!(wake.wait(Duration::from_millis(1)), Woken::Time);
        wake.arm(&[&path]);
        std::fs::write(&path, b"2").unwrap();
        assert_eq!(wake.wait(Duration::from_secs(9)), Woken::File);
        assert!(!wake.is_armed());
        wake.arm(&[&path]);
        bell.ring();
        bell.ring();
        assert_eq!(wake.wait(Duration::from_secs(9)), Woken::Bell);
        assert_eq!(wake.wait(Duration::from_millis(1)), Woken::Time);
    }

    #[test]
    fn a_file_that_appears_in_a_watched_directory_ends_a_wait() {
        let dir = tempfile::tempdir().unwrap();
        let (mut wake, _bell) = Wake::new().unwrap();
        wake.arm_directory(dir.path());
        std::fs::write(dir.path().join("f"), b"1").unwrap();
        assert_eq!(wake.wait(Duration::from_secs(9)), Woken::File);
    }
}
