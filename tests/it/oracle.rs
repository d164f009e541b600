//! What SQLite itself showed: the ledger in which writers note, under a lock that all of them
//! share, the hash of the database's image (`sqlite3_serialize`) after each commit.
//!
//! A line is 80 bytes, so that the last one is found at once: a letter, the SHA-256 of the image
//! in hex, its size in bytes. `B`: a commit begins. `C`: the image is another one. `A`: it is the
//! same, since nothing changed, or since the commit failed. A writer that finds a `B` at the end
//! looks at the database before anything else: the one before it was killed there.

use sha2::{Digest as _, Sha256};
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const LINE: usize = 80;

/// The SHA-256 of a database's image.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ImageHash([u8; 32]);

impl ImageHash {
    /// The hash of an image.
    pub(crate) fn of(image: &[u8]) -> Self {
        Self(Sha256::digest(image).into())
    }

    /// The hash of an image that comes in pieces.
    pub(crate) fn of_pieces(pieces: impl Iterator<Item = Vec<u8>>) -> Self {
        let mut hash = Sha256::new();
        pieces.for_each(|piece| hash.update(piece));
        Self(hash.finalize().into())
    }
}

impl fmt::Display for ImageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ImageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A writer's hand on the ledger.
pub(crate) struct Ledger {
    file: File,
}

impl Ledger {
    /// Opens or creates it.
    pub(crate) fn open(path: &Path) -> Self {
        let mut options = File::options();
        let file = options.read(true).append(true).create(true).open(path);
        Self {
            file: file.unwrap(),
        }
    }

    /// Notes that a commit begins, runs it, and notes what the database is then. No other writer
    /// commits in between.
    pub(crate) fn commit<T>(&self, commit: impl FnOnce() -> T, image: impl Fn() -> Vec<u8>) -> T {
        self.locked(|| {
            if self.last().is_some_and(|line| line.starts_with('B')) {
                self.settle(&image);
            }
            self.append('B', &"-".repeat(64), 0);
            let outcome = commit();
            self.settle(&image);
            outcome
        })
    }

    /// Notes the image as it is, if it is another one than the last.
    pub(crate) fn look(&self, image: impl Fn() -> Vec<u8>) {
        self.locked(|| self.settle(&image));
    }

    fn settle(&self, image: &impl Fn() -> Vec<u8>) {
        let image = image();
        let hash = ImageHash::of(&image).to_string();
        let lines = self.count();
        let last = (0..lines)
            .rev()
            .map(|n| self.line(n))
            .find(|line| line.starts_with('C'));
        match last {
            Some(line) if line[2..66] == hash => self.append('A', &hash, image.len()),
            _ => self.append('C', &hash, image.len()),
        }
    }

    fn locked<T>(&self, work: impl FnOnce() -> T) -> T {
        // SAFETY: flock takes two numbers; the descriptor is open as long as the file is.
        let flock = |how| unsafe { libc::flock(self.file.as_raw_fd(), how) };
        assert_eq!(flock(libc::LOCK_EX), 0);
        let outcome = work();
        assert_eq!(flock(libc::LOCK_UN), 0);
        outcome
    }

    fn count(&self) -> u64 {
        self.file.metadata().unwrap().len() / LINE as u64
    }

    fn last(&self) -> Option<String> {
        let count = self.count();
        (count > 0).then(|| self.line(count - 1))
    }

    fn line(&self, number: u64) -> String {
        let mut line = [0; LINE];
        self.file
            .read_exact_at(&mut line, number * LINE as u64)
            .unwrap();
        String::from_utf8(line.to_vec()).unwrap()
    }

    fn append(&self, kind: char, hash: &str, bytes: usize) {
        let line = format!("{kind} {hash} {bytes:12}\n");
        (&self.file).write_all(line.as_bytes()).unwrap();
    }
}

/// The images that SQLite showed, in order; no two in a row are equal.
pub(crate) fn images(ledger: &Path) -> Vec<ImageHash> {
    let text = std::fs::read_to_string(ledger).unwrap_or_default();
    let hash = |line: &str| {
        let digits = &line[2..66];
        let byte = |n: usize| u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).unwrap();
        ImageHash(std::array::from_fn(byte))
    };
    let whole = text.lines().filter(|line| line.len() == LINE - 1);
    whole
        .filter(|line| line.starts_with('C'))
        .map(hash)
        .collect()
}
