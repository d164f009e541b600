//! Settings: plain validated data, and the two things that come from outside, clock and randomness.

use crate::error::{Error, Result};
use crate::format::ids::Timestamp;
use std::{path::PathBuf, sync::Arc, time::Duration};

/// What time it is. Comes in as a value, so that tests can say what they like.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How one database is captured.
#[derive(Clone, Debug)]
pub struct CaptureSettings {
    /// The database file.
    pub database: PathBuf,
    /// Where the spool lies.
    pub meta_path: PathBuf,
    /// Size of the `-wal` file, in bytes, past which we see to its restart.
    pub wal_size: u64,
    /// Whether we may take the write lock for 10 ms at most when nothing else restarts the WAL.
    pub writer_lock: bool,
    /// The slow poll behind inotify.
    pub monitor_interval: Duration,
    /// Bytes that the spool and the held-back WAL may take; None: a tenth of the free space, at
    /// most 10 GiB.
    pub max_spool_size: Option<u64>,
}

/// Fills `bytes` with random bytes of the operating system.
///
/// # Errors
/// `Unavailable` if it has none.
pub fn random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes)
        .map_err(|e| Error::unavailable(format!("the system gave no random bytes: {e}")))
}
