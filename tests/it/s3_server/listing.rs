//! A page of a listing, from the folders in which the objects lie. Reads no more folders than it
//! must, in the order of the keys, so that thousands of objects are listed fast.

use std::io;
use std::path::Path;
use std::time::SystemTime;

/// What a page shall hold.
pub(super) struct Ask {
    pub(super) prefix: String,
    /// Keys are shown up to the next `/` only.
    pub(super) one_level: bool,
    /// Only what comes after it.
    pub(super) after: String,
    pub(super) limit: usize,
}

/// An entry of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Object {
        key: String,
        size: u64,
        modified: SystemTime,
    },
    /// A folder that has objects.
    Folder(String),
}

impl Entry {
    /// Where the next page begins if this is the last entry of one.
    pub(super) fn last_key(&self) -> String {
        match self {
            Self::Object { key, .. } => key.clone(),
            // No key that begins so comes after it.
            Self::Folder(key) => format!("{key}{}", char::MAX),
        }
    }
}

/// The entries of a page, in order, and whether there are more.
pub(super) fn page(bucket: &Path, ask: &Ask) -> io::Result<(Vec<Entry>, bool)> {
    let mut entries = Vec::new();
    walk(bucket, "", ask, &mut entries)?;
    let more = entries.len() > ask.limit;
    entries.truncate(ask.limit);
    Ok((entries, more))
}

/// Adds the entries of a folder, whose keys begin with `folder_key`. Ends with one entry too many.
fn walk(folder: &Path, folder_key: &str, ask: &Ask, entries: &mut Vec<Entry>) -> io::Result<()> {
    for name in names(folder)? {
        if entries.len() > ask.limit {
            break;
        }
        let key = format!("{folder_key}{name}");
        let path = folder.join(&name);
        if !name.ends_with('/') {
            if key.starts_with(&ask.prefix) && key > ask.after {
                // It may just have been deleted.
                if let Ok(file) = path.metadata() {
                    entries.push(Entry::Object {
                        key,
                        size: file.len(),
                        modified: file.modified()?,
                    });
                }
            }
        } else if may_hold(&key, ask) {
            let below = ask.one_level && key.starts_with(&ask.prefix) && key != ask.prefix;
            if !below {
                walk(&path, &key, ask, entries)?;
            } else if has_object(&path, &key, &ask.after)? {
                entries.push(Entry::Folder(key));
            }
        }
    }
    Ok(())
}

/// Whether keys that begin with `folder_key` can be asked for.
fn may_hold(folder_key: &str, ask: &Ask) -> bool {
    let fits = folder_key.starts_with(&ask.prefix) || ask.prefix.starts_with(folder_key);
    fits && (folder_key > ask.after.as_str() || ask.after.starts_with(folder_key))
}

/// Whether a folder, or one below it, has an object that comes after `after`.
fn has_object(folder: &Path, folder_key: &str, after: &str) -> io::Result<bool> {
    for name in names(folder)? {
        let key = format!("{folder_key}{name}");
        let found = match name.ends_with('/') {
            true => has_object(&folder.join(&name), &key, after)?,
            false => key.as_str() > after,
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The names in a folder in the order of keys: folders end in `/`. None if it is not there.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let entries = match folder.read_dir() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(names),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        // No key is anything else than UTF-8.
        if let Ok(mut name) = entry.file_name().into_string() {
            if entry.file_type()?.is_dir() {
                name.push('/');
            }
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
