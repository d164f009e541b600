//! From the spool to a stored segment.

use crate::error::{Error, ErrorKind, Result};
use crate::format::container::{Header, Kind, Written};
use crate::format::ids::{GenerationId, ObjectHash, ObjectId, PageSize, Txid, WalEnd};
use crate::format::key::{Key, ObjectKey};
use crate::format::segment::TimelineEntry;
use crate::replicate::encode::{encode_segment, timeline};
use crate::replicate::sent::Recent;
use crate::replicate::spool::{Batch, SpooledCommit, Tip};
use crate::replicate::upload::HUGE_BYTES;
use crate::replicate::upload::look::{After, Looked};
use crate::replicate::upload::pace::Waiting;
use crate::replicate::upload::task::Task;
use crate::replicate::writers::Fencing;
use crate::storage::blocking::blocking;
use crate::storage::durable::scratch_in;
use crate::storage::put::{self, Stored};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use tokio::time::Instant;

/// Raw frames in a segment, unless one transaction has more.
const SEGMENT_BYTES: u64 = 16 << 20;
// What gathers in a segment is not huge.
const _: () = assert!(SEGMENT_BYTES < HUGE_BYTES);

/// A segment in a local file that has no name yet.
pub(super) struct Drafted {
    pub(super) header: Header,
    /// One entry for each of its transactions.
    pub(super) timeline: Vec<TimelineEntry>,
    /// Its last commit, at the time that it has in the replica.
    pub(super) last: SpooledCommit,
    pub(super) file: PathBuf,
    pub(super) written: Written,
    /// The key of the snapshot that holds its pages, if one does.
    pub(super) snapshot: Option<String>,
}

/// A segment in a local file, on its way to the store.
pub(super) struct Encoded {
    pub(super) first: Txid,
    pub(super) file: PathBuf,
    pub(super) hash: ObjectHash,
    /// Its last commit.
    pub(super) last: SpooledCommit,
    pub(super) sqlite_version: u32,
    /// The key of the snapshot that holds its pages, if one does: it is stored behind the segment.
    pub(super) snapshot: Option<String>,
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
            let drafted = self.draft(batch).await?;
            let Some(drafted) = self.ship_if_huge(drafted).await? else {
                match self.resumed {
                    true => continue,
                    false => return Ok(()),
                }
            };
            let encoded = self.seal(drafted).await?;
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
        let most = SEGMENT_BYTES.min(self.settings.huge_bytes);
        let batch = blocking(move || spool.batch(run, sent, most)).await;
        batch.map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::conflict(format!("the replica was too far behind: {e}")),
            _ => e,
        })
    }

    /// Writes a segment to a file, fsynced.
    async fn draft(&self, batch: Batch) -> Result<Drafted> {
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
        let file = self.segment_file(state.id, first).with_extension("new");
        let (path, scratch) = (file.clone(), scratch_in(&self.pending));
        let predecessors = self.recent.predecessors();
        blocking(move || {
            let out = create(&path)?;
            let encoded = encode_segment(&batch, out, &header, &timeline, &predecessors, &scratch);
            let (written, sqlite_version) = encoded.inspect_err(|_| {
                // It may have filled the disk. What stays is written over, or goes at the next
                // start.
                let _ = fs::remove_file(&path);
            })?;
            header.sqlite_version = sqlite_version;
            Ok(Drafted {
                header,
                timeline,
                last,
                file,
                written,
                snapshot: None,
            })
        })
        .await
    }

    /// Gives a segment the name by which a restart finds it.
    async fn seal(&self, drafted: Drafted) -> Result<Encoded> {
        let Drafted { header, last, .. } = drafted;
        let file = self.segment_file(header.generation, header.first);
        let (from, to) = (drafted.file, file.clone());
        blocking(move || {
            fs::rename(&from, &to)
                .and_then(|()| crate::storage::durable::sync_directory(&to))
                .map_err(|e| Error::disk(format!("write {}", to.display()), e))
        })
        .await?;
        Ok(Encoded {
            first: header.first,
            file,
            hash: drafted.written.hash,
            last,
            sqlite_version: header.sqlite_version,
            snapshot: drafted.snapshot,
        })
    }

    /// Stores an encoded segment and remembers that it is stored; unless what is found in its place
    /// is on our chain: then that counts.
    pub(super) async fn store_segment(&mut self, encoded: Encoded) -> Result<Looked> {
        let key = self.upload_key(encoded.first);
        let stored = put::put_object(&*self.store, &key, &encoded.file, &encoded.hash).await?;
        let date = match stored {
            Stored::Taken => return self.look_at_taken(&key, encoded.hash).await,
            Stored::Now(date) => date,
            Stored::Before => None,
        };
        if self.is_doubtful(date) {
            // Where nothing keeps writers apart it may have been there before, for others.
            let is_fenced = self.state().fencing == Fencing::PutIfAbsent;
            let is_new = is_fenced && matches!(stored, Stored::Now(_));
            self.look_behind_put(&key, encoded.hash, is_new).await?;
        }
        self.answered(date);
        self.segment_is_stored(key, encoded).await?;
        Ok(Looked::Clear)
    }

    /// Remembers that a segment is stored, once its pages are.
    pub(super) async fn segment_is_stored(&mut self, key: String, encoded: Encoded) -> Result<()> {
        if let Some(snapshot) = &encoded.snapshot {
            self.store_shipped(encoded.first, snapshot).await?;
        }
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
            if encoded.snapshot.is_some() {
                remove_file(&shipped_beside(&encoded.file))?;
            }
            Ok(recent)
        })
        .await?;
        Ok(())
    }

    /// The key of the upload that begins with a transaction.
    pub(super) fn upload_key(&self, first: Txid) -> String {
        let generation = self.state().id;
        let object = ObjectKey::Upload { first };
        Key { generation, object }.to_string()
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

/// # Errors
/// `Disk`.
pub(super) fn create(path: &Path) -> Result<File> {
    File::create(path).map_err(|e| Error::disk(format!("create {}", path.display()), e))
}

/// Removes the local files of segments, or of snapshots and parts.
///
/// # Errors
/// `Disk`.
pub(super) fn remove_files(pending: &Path, kind: Kind) -> Result<()> {
    remove(pending, |path| is_segment(path) == (kind == Kind::Segment))
}

/// Removes the local files of segments but for the one that waits, with the snapshot that goes with
/// it, and the last one that was stored: of a segment that an earlier run stored, and was killed
/// before it could put its file away.
///
/// # Errors
/// `Disk`.
pub(super) fn remove_others(pending: &Path, waiting: &Path) -> Result<()> {
    let (last, shipped) = (pending.join(Recent::FILE), shipped_beside(waiting));
    remove(pending, |path| {
        is_segment(path) && path != waiting && path != shipped && path != last
    })
}

/// Where the snapshot of a mark lies, which is stored behind it.
pub(super) fn shipped_beside(mark: &Path) -> PathBuf {
    mark.with_extension("shipped")
}

/// Whether it is of a segment, or goes with one.
fn is_segment(path: &Path) -> bool {
    path.extension()
        .is_some_and(|found| found == "wal" || found == "shipped")
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::disk(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
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
