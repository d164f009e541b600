//! Opening the disk cache of a mount: where it may lie, and what becomes of a mount without it.

use crate::config::location::real_path;
use crate::error::{Error, ErrorKind, Result};
use crate::materialize::disk::DiskCache;
use crate::materialize::hydrate::HydrateOptions;
use crate::storage::blocking::blocking;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Where to keep what was read.
#[derive(Clone, Debug)]
pub struct DiskCacheOptions {
    /// Made if it is missing.
    pub directory: PathBuf,
    /// Bytes that it may take, at least 16 MiB.
    pub bytes: u64,
    /// Which moments are fetched whole.
    pub hydrate: HydrateOptions,
}

/// How long the directory may take to be opened.
const OPENING: Duration = Duration::from_secs(5);
/// How long another mount may have it: one that was unmounted ends a little later.
const HANDOVER: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Opens the cache; `None` with a warning if its directory fails or does not answer: the mount does
/// without. Waits for a mount that has it, which may be about to end.
///
/// # Errors
/// `Conflict` if another process has it and goes on; `Invalid` if it lies in the mount point, in
/// one of the directories that the mount reads, or holds something else.
pub(crate) async fn open_in_time(
    options: &DiskCacheOptions,
    mountpoint: &Path,
    read: &[PathBuf],
) -> Result<Option<Arc<DiskCache>>> {
    let last_look = Instant::now() + HANDOVER;
    let mut is_first = true;
    loop {
        let (options, path, read) = (options.clone(), mountpoint.to_owned(), read.to_owned());
        let directory = options.directory.clone();
        let opening = blocking(move || open(&options, &path, &read));
        match timeout(OPENING, opening).await {
            Ok(Err(e)) if e.kind() == ErrorKind::Conflict && Instant::now() < last_look => {
                if std::mem::take(&mut is_first) {
                    tracing::info!("waiting for the end of the mount before: {e}");
                }
                sleep(LOOK).await;
            }
            Ok(opened) => return opened,
            Err(_) => {
                let directory = directory.display();
                tracing::warn!("mounting without the disk cache: no answer from {directory}");
                return Ok(None);
            }
        }
    }
}

/// Opens the cache; `None` with a warning if its directory fails: the mount does without. Blocking.
///
/// # Errors
/// `Conflict` if another process has it; `Invalid` if it lies in the mount point, in one of the
/// directories that the mount reads, or holds something else.
fn open(
    options: &DiskCacheOptions,
    mountpoint: &Path,
    read: &[PathBuf],
) -> Result<Option<Arc<DiskCache>>> {
    let directory = &options.directory;
    refuse_within(directory, mountpoint, "is to be the mount")?;
    for place in read {
        refuse_within(directory, place, "holds what is mounted")?;
    }
    match DiskCache::open(directory, options.bytes) {
        Err(error) if error.kind() == ErrorKind::Disk => {
            tracing::warn!("mounting without the disk cache: {error}");
            Ok(None)
        }
        opened => opened.map(Some),
    }
}

fn refuse_within(directory: &Path, place: &Path, why: &str) -> Result<()> {
    let (at, place) = (real_path(directory)?, real_path(place)?);
    if at.starts_with(&place) {
        return Err(Error::invalid(format!(
            "the disk cache cannot lie in {}: it lies in {}, which {why}; use a directory outside",
            directory.display(),
            place.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[track_caller]
    fn refused(directory: &Path, mountpoint: &Path, read: &[PathBuf], why: &str) {
        let options = DiskCacheOptions {
            directory: directory.to_owned(),
            bytes: 16 << 20,
            hydrate: HydrateOptions::default(),
        };
        let error = open(&options, mountpoint, read).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(why), "{error}");
        assert!(!directory.exists());
    }

    #[test]
    fn it_lies_neither_in_the_mount_nor_in_a_replica() {
        let root = tempfile::tempdir().unwrap();
        let [mount, replica, link] = ["mnt", "replica", "link"].map(|name| root.path().join(name));
        fs::create_dir(&mount).unwrap();
        fs::create_dir(&replica).unwrap();
        std::os::unix::fs::symlink(&replica, &link).unwrap();
        let read = [replica.clone()];
        refused(
            &mount.join("cache"),
            &mount,
            &read,
            "which is to be the mount",
        );
        refused(
            &replica.join("a/cache"),
            &mount,
            &read,
            "which holds what is mounted",
        );
        refused(
            &link.join("cache"),
            &mount,
            &read,
            "use a directory outside",
        );
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_done_without() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let options = DiskCacheOptions {
            directory: file.join("cache"),
            bytes: 16 << 20,
            hydrate: HydrateOptions::default(),
        };
        assert!(
            open(&options, &root.path().join("mnt"), &[])
                .unwrap()
                .is_none()
        );
    }
}
