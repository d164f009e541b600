//! From the spool to a stored segment.

use crate::error::{Error, ErrorKind, Result};
use crate::format::container::{Header, Kind};
use crate::format::ids::{GenerationId, ObjectHash, ObjectId, PageSize, Txid, WalEnd};
use crate::format::key::{Key, ObjectKey};
use crate::replicate::encode::{encode_segment, timeline};
use crate::replicate::sent::Recent;
use crate::replicate::spool::{Batch, SpooledCommit, Tip};
use crate::replicate::upload::look::{After, Looked};
use crate::replicate::upload::pace::Waiting;
use crate::replicate::upload::task::Task;
use crate::storage::blocking::blocking;
use crate::storage::durable::scratch_in;
use crate::storage::put::{self, Stored};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tokio::time::Instant;

/// Raw frames in a segment, unless one transaction has more.
const SEGMENT_BYTES: u64 = 16 << 20;

/// A segment in a local file, on its way to the store.
pub(super) struct Encoded {
    pub(super) first: Txid,
    pub(super) file: PathBuf,
    pub(super) hash: ObjectHash,
    /// Its last commit.
    pub(super) last: SpooledCommit,
    pub(super) sqlite_version: u32,
}

impl Task {
    /// Sends batches as long as one is due, or until the state is another one: then the replica is
    /// not resumed any more.
    pub(super) async fn send_what_is_due(&mut self, mut tip: Tip) -> Result<()> {
        loop {
            let sent = self.progress(self.state());
            if tip.run == sent.run && tip.seq <= sent.seq {
                self.waiting = None;
                return Ok(());
            }
            let waiting = *self.waiting.get_or_insert(Waiting {
                since: Instant::now(),
                bytes_before: tip.bytes,
            });
            self.waits_since(self.waiting_since.unwrap_or_else(|| self.environment.now()));
            if waiting.due(&tip, &sent, self.settings.sync_interval) > Instant::now() {
                return Ok(());
            }
            if self.must_look() && self.look(None, After::Pause).await? == Looked::Anew {
                return Ok(());
            }
            let Some(batch) = self.next_batch().await? else {
                self.waiting = None;
                return Ok(());
            };
            self.waits_since(batch.commits[0].time);
            let encoded = self.encode(batch).await?;
            if self.store_segment(encoded).await? == Looked::Anew {
                return Ok(());
            }
            self.waiting_since = None;
            // What came meanwhile gathered while the upload was on its way; it waits from now on.
            // What was there before is due.
            if (tip.run, tip.seq) <= (self.state().run, self.state().sent_seq()) {
                self.waiting = Some(Waiting {
                    since: Instant::now(),
                    bytes_before: tip.bytes,
                });
                tip = self.tip.borrow_and_update().unwrap_or(tip);
            }
            self.publish(None, None);
            if self.look_now_and_then().await? == Looked::Anew {
                return Ok(());
            }
        }
    }

    async fn next_batch(&self) -> Result<Option<Batch>> {
        let (run, sent) = (self.state().run, self.state().sent_seq());
        let spool = self.spool.clone();
        let batch = blocking(move || spool.batch(run, sent, SEGMENT_BYTES)).await;
        batch.map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::conflict(format!("the replica was too far behind: {e}")),
            _ => e,
        })
    }

    /// Writes a segment to a file, fsynced, under the name by which a restart finds it.
    async fn encode(&self, batch: Batch) -> Result<Encoded> {
        let state = self.state();
        let last = *batch.commits.last().expect("a batch holds a commit");
        let first = state.txid(batch.commits[0].seq);
        let mut header = self.header(Kind::Segment, batch.run.page_size);
        header.object_id = ObjectId(self.environment.draw()?);
        (header.first, header.last, header.since) = (first, state.txid(last.seq), first);
        header.end = last.end;
        header.previous = state.last_hash;
        header.sqlite_version = state.sqlite_version;
        let timeline = timeline(&batch.commits, first, state.last_time());
        let last = SpooledCommit {
            time: timeline.last().expect("one entry a commit").time,
            ..last
        };
        let file = self.segment_file(state.id, first);
        let (path, scratch) = (file.clone(), scratch_in(&self.pending));
        let predecessors = self.recent.predecessors();
        let (written, sqlite_version) = blocking(move || {
            let beside = path.with_extension("new");
            let out = File::create(&beside)
                .map_err(|e| Error::disk(format!("create {}", beside.display()), e))?;
            let done = encode_segment(&batch, out, &header, &timeline, &predecessors, &scratch)?;
            fs::rename(&beside, &path)
                .and_then(|()| crate::storage::durable::sync_directory(&path))
                .map_err(|e| Error::disk(format!("write {}", path.display()), e))?;
            Ok(done)
        })
        .await?;
        Ok(Encoded {
            first,
            file,
            hash: written.hash,
            last,
            sqlite_version,
        })
    }

    /// Stores an encoded segment and remembers that it is stored; unless what is found in its place
    /// is on our chain: then that counts.
    pub(super) async fn store_segment(&mut self, encoded: Encoded) -> Result<Looked> {
        let key = Key {
            generation: self.state().id,
            object: ObjectKey::Upload {
                first: encoded.first,
            },
        }
        .to_string();
        let date = match put::put_object(&*self.store, &key, &encoded.file, &encoded.hash).await? {
            Stored::Taken => return self.look_at_taken(&key, encoded.hash).await,
            Stored::Now(date) => date,
            Stored::Before => None,
        };
        if self.is_doubtful(date) {
            self.look_behind_put(&key, encoded.hash).await?;
        }
        self.answered(date);
        self.segment_is_stored(key, encoded).await?;
        Ok(Looked::Clear)
    }

    /// Remembers that a segment is stored.
    pub(super) async fn segment_is_stored(&mut self, key: String, encoded: Encoded) -> Result<()> {
        let state = self.state.as_mut().expect("begun before");
        state.sent = Some(encoded.last);
        state.last_hash = encoded.hash;
        state.sqlite_version = encoded.sqlite_version;
        state.last_key.clone_from(&key);
        self.save().await?;
        self.uploads += 1;
        self.sent.send_replace(Some(encoded.last));
        let (mut recent, pending) = (std::mem::take(&mut self.recent), self.pending.clone());
        let kept = self.settings.kept.clone();
        self.recent = blocking(move || {
            if let Err(e) = kept.keep(&key, &encoded.file) {
                tracing::debug!("it will be read from the store: {e}");
            }
            recent.keep(&pending, key, &encoded.file)?;
            Ok(recent)
        })
        .await?;
        Ok(())
    }

    pub(super) fn segment_file(&self, generation: GenerationId, first: Txid) -> PathBuf {
        self.pending.join(format!("{generation}-{first}.wal"))
    }

    /// What all objects of the current generation say.
    pub(super) fn header(&self, kind: Kind, page_size: PageSize) -> Header {
        let state = self.state();
        Header {
            kind,
            level: 0,
            page_size,
            object_id: ObjectId([0; 8]),
            database_id: self
                .identity
                .database_id()
                .expect("decided before a generation begins"),
            writer_id: self.identity.writer,
            generation: state.id,
            parent: state.parent(),
            first: Txid::FIRST,
            last: Txid::FIRST,
            since: Txid::FIRST,
            end: WalEnd::default(),
            exact: false,
            thinned: false,
            sqlite_version: 0,
            previous: ObjectHash([0; 32]),
            last_input: ObjectHash([0; 32]),
        }
    }

    /// Forgets the segments that wait and were sent: they belong to another generation, or another
    /// place in it.
    pub(super) async fn forget_segments(&mut self) -> Result<()> {
        self.recent = Recent::default();
        let pending = self.pending.clone();
        blocking(move || remove_files(&pending, Kind::Segment)).await
    }
}

/// Removes the local files of segments, or of snapshots and parts.
///
/// # Errors
/// `Disk`.
pub(super) fn remove_files(pending: &Path, kind: Kind) -> Result<()> {
    remove(pending, |path| is_segment(path) == (kind == Kind::Segment))
}

/// Removes the local files of segments but for the one that waits and the last one that was stored:
/// of a segment that an earlier run stored, and was killed before it could put its file away.
///
/// # Errors
/// `Disk`.
pub(super) fn remove_others(pending: &Path, waiting: &Path) -> Result<()> {
    let last = pending.join(Recent::FILE);
    remove(pending, |path| {
        is_segment(path) && path != waiting && path != last
    })
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|found| found == "wal")
}

fn remove(pending: &Path, which: impl Fn(&Path) -> bool) -> Result<()> {
    let failed = |e| Error::disk(format!("clean {}", pending.display()), e);
    for entry in fs::read_dir(pending).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if which(&path) {
            fs::remove_file(path).map_err(failed)?;
        }
    }
    Ok(())
}
