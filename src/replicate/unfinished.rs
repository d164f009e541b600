//! The objects of a replica that were on their way to the store: a put that was cut short may have
//! left parts of them there, which take room until they are given up.
//!
//! A segment is noted by its own file, which waits in the directory until it is stored. The file of
//! a snapshot or part has its key only at the end, so an empty file beside it is named after that.

use crate::error::{Error, Result};
use crate::format::key::{Key, ObjectKey};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Notes that a snapshot or part is about to be put; the note is to be removed once that is over.
///
/// # Errors
/// `Disk`.
pub fn note(directory: &Path, key: &str) -> Result<PathBuf> {
    // No key has a plus sign.
    let path = directory.join(key.replace('/', "+"));
    File::create(&path).map_err(|e| Error::disk(format!("create {}", path.display()), e))?;
    Ok(path)
}

/// Removes a note.
///
/// # Errors
/// `Disk`.
pub fn forget(note: &Path) -> Result<()> {
    fs::remove_file(note).map_err(|e| Error::disk(format!("remove {}", note.display()), e))
}

/// The keys of the objects that were on their way when the last daemon ended.
///
/// # Errors
/// `Disk`.
pub fn left(directory: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::disk(format!("read {}", directory.display()), e);
    let mut keys = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        keys.extend(name.to_str().and_then(key_of));
    }
    keys.sort_unstable();
    Ok(keys)
}

/// The key of the object that the file with this name stands for.
fn key_of(name: &str) -> Option<String> {
    if let Some(key) = Key::parse(&name.replace('+', "/")) {
        return Some(key.to_string());
    }
    let (generation, first) = name.strip_suffix(".wal")?.rsplit_once('-')?;
    let (generation, first) = (generation.parse().ok()?, first.parse().ok()?);
    let object = ObjectKey::Upload { first };
    Some(Key { generation, object }.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_on_its_way_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let of = "generations/00000001-0000000a";
        let part = format!("{of}/pages/0000000000000001-00000002-0000000b.pages");
        let done = format!("{of}/pages/0000000000000001-00000001-0000000a.pages");
        note(directory.path(), &part).unwrap();
        forget(&note(directory.path(), &done).unwrap()).unwrap();
        for other in [
            "00000001-0000000a-0000000000000002.wal",
            "00000001-0000000a-0102030405060708",
            "00000001-0000000a-0000000000000003.new",
            "last.wal",
        ] {
            File::create(directory.path().join(other)).unwrap();
        }
        let segment = format!("{of}/wal/0/0000000000000002.wal");
        assert_eq!(left(directory.path()).unwrap(), [part, segment]);
    }
}
