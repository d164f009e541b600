//! The disk cache: what was read from stores, as it is stored there, kept across mounts.
//!
//! Optional, and never relied upon: each piece has a checksum of its own here and is verified again
//! as what it is, block or leaf or footer, by whoever reads it; what is damaged is forgotten and
//! read from the store. A directory that cannot be written to or is full turns the cache off, with
//! one warning; one that does not answer in time is left alone for a while.
//! Reading and writing block, so they happen beside the runtime. No reader waits for a write; who
//! reads a footer or a section waits a moment for room, so that names are kept.
//!
//! `index` decides what lies where and what goes; `files` does it; `health` says whether to.

mod files;
mod health;
mod index;

use crate::error::{Error, Result};
use crate::materialize::cache::locked;
use crate::materialize::disk::files::{Appending, Files};
use crate::materialize::disk::health::Health;
use crate::storage::blocking::blocking;
use crate::storage::{Listed, Store};
use bytes::Bytes;
pub(crate) use index::CACHE_BYTES_MIN;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use xxhash_rust::xxh3::xxh3_128;

/// What may wait to be written, bytes; what comes beyond that is not kept.
const WAITING_BYTES: usize = 8 << 20;
/// How long a reader waits for the directory before it asks the store.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long whoever has time waits for room: a disk that writes less meanwhile does not answer.
const PATIENCE_WITH_WRITES: Duration = Duration::from_secs(30);

/// The same object in every process: its server, replica, key, size, and when it was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity([u8; 32]);

/// A range of bytes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PieceKey([u8; 16]);

impl Identity {
    /// Of an object as a listing of its store shows it. A store in which objects are overwritten
    /// shows another time then; two servers may have a bucket of one name.
    pub(crate) fn new(store: &dyn Store, listed: &Listed) -> Self {
        let mut hasher = blake3::Hasher::new();
        // No server, location or key contains this character.
        for part in [store.server(), store.location(), &listed.key] {
            hasher.update(part.as_bytes());
            hasher.update(b"\0");
        }
        hasher.update(&listed.size.to_le_bytes());
        hasher.update(&listed.modified.micros().to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// A range of it, both in bytes.
    pub(crate) fn piece(&self, offset: u64, length: u64) -> PieceKey {
        let mut name = [0; 48];
        name[..32].copy_from_slice(&self.0);
        name[32..40].copy_from_slice(&offset.to_le_bytes());
        name[40..].copy_from_slice(&length.to_le_bytes());
        PieceKey(xxh3_128(&name).to_le_bytes())
    }
}

impl PieceKey {
    fn half(self) -> u64 {
        let (half, _) = self.0.split_first_chunk().expect("it has 16 bytes");
        u64::from_le_bytes(*half)
    }
}

/// A directory of pieces, bounded by their bytes.
pub struct DiskCache {
    files: Arc<Files>,
    health: Arc<Mutex<Health>>,
    writer: mpsc::Sender<Writing>,
    /// Bytes that may still wait to be written.
    room: Arc<Semaphore>,
    capacity: u64,
}

struct Writing {
    pieces: Vec<(PieceKey, Bytes)>,
    _room: OwnedSemaphorePermit,
}

impl DiskCache {
    /// Opens or makes a cache of at most `bytes` bytes on the disk. Blocking: reads what finds the
    /// pieces that are there, for a fraction of a second. Whoever holds it alone has the directory.
    ///
    /// # Errors
    /// `Conflict` if another process has the directory, `Invalid` if it holds something else or the
    /// size is below 16 MiB, `Disk`.
    pub fn open(directory: &Path, bytes: u64) -> Result<Arc<Self>> {
        if bytes < CACHE_BYTES_MIN {
            return Err(Error::invalid(format!(
                "a disk cache of {bytes} bytes is too small: give it 16MiB or more"
            )));
        }
        let files = Arc::new(Files::open(directory, bytes)?);
        let health = Arc::<Mutex<Health>>::default();
        let (writer, writings) = mpsc::channel();
        let (files_too, health_too) = (Arc::clone(&files), Arc::clone(&health));
        std::thread::Builder::new()
            .name("disk-cache".to_owned())
            .spawn(move || write(&files_too, &health_too, &writings))
            .map_err(|e| Error::disk("start a thread for the disk cache", e))?;
        Ok(Arc::new(Self {
            files,
            health,
            writer,
            room: Arc::new(Semaphore::new(WAITING_BYTES)),
            capacity: bytes,
        }))
    }

    /// Bytes on the disk at most.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// True once the directory failed, and while it is left alone because it did not answer: then
    /// it holds nothing and keeps nothing.
    pub(crate) fn is_off(&self) -> bool {
        !locked(&self.health).is_well(Instant::now())
    }

    /// True if a piece seems to be there. Never waits.
    pub(crate) fn has(&self, key: PieceKey) -> bool {
        !self.is_off() && self.files.has(key)
    }

    /// Pieces as they were put, in the order asked for; `None` for what is not there.
    pub(crate) async fn get(&self, keys: Vec<PieceKey>) -> Vec<Option<Bytes>> {
        let nothing = vec![None; keys.len()];
        if keys.is_empty() || !keys.iter().any(|key| self.has(*key)) {
            return nothing;
        }
        let began = Instant::now();
        if !locked(&self.health).admit(began, PATIENCE) {
            return nothing;
        }
        let files = Arc::clone(&self.files);
        let reading = blocking(move || Ok(keys.iter().map(|key| files.get(*key)).collect()));
        match timeout(PATIENCE, reading).await {
            Ok(pieces) => {
                if locked(&self.health).answered() {
                    tracing::info!("the disk cache answers again");
                }
                // The process is ending.
                pieces.unwrap_or(nothing)
            }
            Err(_) => {
                self.stalled(began);
                nothing
            }
        }
    }

    /// Who waits since then has had no answer.
    fn stalled(&self, began: Instant) {
        let pause = locked(&self.health).stalled(began, Instant::now());
        if let Some(pause) = pause {
            tracing::warn!(
                "the disk cache does not answer: it is left alone for {} s",
                pause.as_secs()
            );
        }
    }

    /// Writes pieces by and by, unless too much waits to be written already.
    pub(crate) fn put(&self, pieces: Vec<(PieceKey, Bytes)>) {
        // A failure only says that there is no room: then these are not kept.
        if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(weight(&pieces)) {
            self.write(pieces, room);
        }
    }

    /// The same for what comes in a rush, and once: waits a moment for room.
    pub(crate) async fn put_soon(&self, pieces: Vec<(PieceKey, Bytes)>) {
        self.put_within(pieces, PATIENCE).await;
    }

    /// The same for whoever has time: waits until there is room for them. False if they are not
    /// kept, since the directory failed or does not answer.
    pub(crate) async fn put_in_turn(&self, pieces: Vec<(PieceKey, Bytes)>) -> bool {
        let began = Instant::now();
        if !self.put_within(pieces, PATIENCE_WITH_WRITES).await {
            self.stalled(began);
        }
        !self.is_off()
    }

    /// False if there was no room for so long: the directory may be no more than slow.
    async fn put_within(&self, pieces: Vec<(PieceKey, Bytes)>, patience: Duration) -> bool {
        let room = Arc::clone(&self.room).acquire_many_owned(weight(&pieces));
        let room = timeout(patience, room).await;
        let is_in_time = room.is_ok();
        if let Ok(room) = room {
            self.write(pieces, room.expect("it is never closed"));
        }
        is_in_time
    }

    fn write(&self, pieces: Vec<(PieceKey, Bytes)>, room: OwnedSemaphorePermit) {
        let writing = Writing {
            pieces,
            _room: room,
        };
        // It ends only when this is dropped, or broke off: then nothing is kept any more.
        if !self.is_off() && self.writer.send(writing).is_err() {
            turn_off(&self.health, "its writer broke off");
        }
    }

    /// Forgets a piece whose bytes turned out to be wrong.
    pub(crate) fn forget(&self, key: PieceKey) {
        self.files.forget(key);
    }

    /// Waits until all that was put so far is written. False if it is not: the directory failed or
    /// does not answer.
    pub(crate) async fn is_written(&self) -> bool {
        let began = Instant::now();
        if timeout(PATIENCE_WITH_WRITES, self.settle()).await.is_err() {
            self.stalled(began);
        }
        !self.is_off()
    }

    /// Waits until all that was put so far is written.
    pub async fn settle(&self) {
        let all = self.room.acquire_many(WAITING_BYTES as u32);
        drop(all.await.expect("it is never closed"));
    }
}

/// What pieces take of the room, at most all of it.
fn weight(pieces: &[(PieceKey, Bytes)]) -> u32 {
    let bytes: usize = pieces.iter().map(|(_, piece)| piece.len()).sum();
    bytes.min(WAITING_BYTES) as u32
}

/// Writes what comes until nobody sends any more.
fn write(files: &Files, health: &Mutex<Health>, writings: &mpsc::Receiver<Writing>) {
    let mut appending = Appending::default();
    for Writing { pieces, _room } in writings {
        for (key, piece) in pieces {
            if !locked(health).is_well(Instant::now()) {
                break;
            }
            if let Err(e) = files.put(key, &piece, &mut appending) {
                turn_off(health, &format!("write a file of it: {e}"));
            }
        }
    }
}

fn turn_off(health: &Mutex<Health>, why: &str) {
    if locked(health).failed() {
        tracing::warn!("the disk cache is off until the next mount: {why}");
    }
}

#[cfg(test)]
pub(crate) mod tests;
