//! A replica as a read-only file system: every commit is a plain SQLite file.
//!
//! [`view`] is the tree: names, attributes, what is served; it knows nothing of FUSE.
//! [`mod@fuse`] translates the kernel's calls to it and its answers back. [`session`] owns the
//! mount itself, from the checks of the mount point to the unmounting. Contents never change under
//! a reader: one restore point is one inode, and a name that moves on (`latest.db`) is a link.

pub mod calls;
pub mod complaints;
pub mod discover;
mod disk_cache;
pub mod follow;
pub mod fuse;
pub mod inode;
pub mod mountpoint;
pub mod opened;
pub mod period;
pub mod session;
pub mod view;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a mutex guards here is whole between any two statements, so a panic elsewhere, which the
/// FUSE threads survive, does not make it unusable.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
