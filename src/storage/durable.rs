//! Local files that survive a power cut: written beside, fsynced, renamed, directory fsynced.

use crate::error::{Error, Result};
use crate::format::container::ScratchFile;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Replaces the file at `path` (mode 0600) by `bytes`, whole or not at all.
///
/// # Errors
/// `Disk`, naming the file.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = temporary_name(path);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        sync_directory(path)
    };
    write().map_err(|e| Error::disk(format!("write {}", path.display()), e))
}

/// The bytes of a file that may not be there.
///
/// # Errors
/// `Disk`, naming the file.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::disk(format!("read {}", path.display()), e)),
    }
}

/// Makes the entry of `path` in its directory survive a power cut.
///
/// # Errors
/// What the system says.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// Scratch files in a directory, unnamed. It is made if it is missing.
pub fn scratch_in(dir: &Path) -> impl Fn() -> std::io::Result<Box<dyn ScratchFile>> + use<> {
    let dir = dir.to_owned();
    move || {
        fs::create_dir_all(&dir)?;
        Ok(Box::new(tempfile::tempfile_in(&dir)?) as Box<dyn ScratchFile>)
    }
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_files_need_no_directory_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = scratch_in(&dir.path().join("making/this"));
        let mut file = scratch().unwrap();
        file.write_all(b"something").unwrap();
    }

    #[test]
    fn a_replaced_file_holds_the_new_bytes_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        replace_file(&path, b"one").unwrap();
        replace_file(&path, b"two").unwrap();
        assert_eq!(read_if_there(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_absent_file_is_none_and_an_unwritable_place_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_if_there(&dir.path().join("absent")).unwrap().is_none());
        let error = replace_file(&dir.path().join("no/state"), b"x").unwrap_err();
        assert!(
            error.to_string().contains("no/state: No such file"),
            "{error}"
        );
    }
}
