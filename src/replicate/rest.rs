//! The note of how the database file was left at rest, for the next start.
//!
//! Owns `capture.json` in the spool's directory. The note is of one position: a commit captured
//! later makes it void without touching it.

use crate::error::{Error, Result};
use crate::replicate::observe::FileState;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const NAME: &str = "capture.json";

/// How the file was when its WAL was empty and everything was captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RestNote {
    /// The run, and the last commit captured.
    pub run: u64,
    /// That commit.
    pub seq: u64,
    /// The file after it.
    pub file: FileState,
    /// The boot in which it was seen; times mean nothing across boots.
    pub boot: String,
}

impl RestNote {
    /// Reads the note. `None` if there is none, or none that this program wrote.
    ///
    /// # Errors
    /// `Disk`.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        match fs::read(&path) {
            // A note that says nothing costs a new generation at worst.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::disk(format!("read {}", path.display()), e)),
        }
    }

    /// Writes the note in place of the last one, durably.
    ///
    /// # Errors
    /// `Disk`.
    pub(super) fn store(&self, dir: &Path) -> Result<()> {
        let path = dir.join(NAME);
        let temporary = dir.join("capture.json.tmp");
        let json = serde_json::to_vec_pretty(self).expect("numbers and strings become JSON");
        let stored = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&json)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(dir)?.sync_all()
        };
        stored().map_err(|e| Error::disk(format!("write {}", path.display()), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_stored_and_rubbish_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(RestNote::load(dir.path()).unwrap(), None);
        let note = RestNote {
            run: 1,
            seq: 2,
            file: FileState::of(dir.path()).unwrap().unwrap(),
            boot: "b".into(),
        };
        note.store(dir.path()).unwrap();
        assert_eq!(RestNote::load(dir.path()).unwrap(), Some(note));
        fs::write(dir.path().join(NAME), b"{").unwrap();
        assert_eq!(RestNote::load(dir.path()).unwrap(), None);
    }
}
