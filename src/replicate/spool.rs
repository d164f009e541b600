//! The spool: every captured commit, durable on the local disk until each replica has it.
//!
//! Commits are numbered by `seq` over the life of the spool. A *run* is a stretch of commits
//! without a break in continuity; a generation of a replica lies within one run.
//!
//! Owns the log files in `log/` of its directory and the lock on that directory. Never looks at the
//! database. Invariants:
//! - Only commits that are fsynced are shown to readers, in whole, and in the order of their `seq`.
//! - A run is durable before its first commit.
//! - A failed write or fsync latches: nothing more is acknowledged until [`Spool::read_back`] has
//!   read from the disk what is really there.
//! - Memory does not grow with the backlog: of each file only a summary is kept.

mod log;
mod read;
mod writer;

#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::format::ids::{PageSize, Pgno, Timestamp, WalEnd};
use crate::format::wal::{FRAME_HEADER_BYTES, FrameHeader, WordOrder, frame_bytes};
use crate::replicate::budget::{Budget, Share};
use crate::replicate::spool::log::{RECORD_BYTES, Record};
use crate::replicate::spool::read::{
    behind, damaged, find_ends, read_batch, read_header, read_logs, verify,
};
use crate::replicate::spool::writer::Writer;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// A log file is closed at the first commit boundary behind this many bytes.
const ROTATE_BYTES: u64 = 16 << 20;
/// The newest file is closed before that once half of its commits are released, unless it has no
/// more than this many bytes of commits: it can go only when it is no longer the newest.
const KEEP_BYTES: u64 = 64 << 10;

/// A stretch of the capture without a break.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Counted from 1 over the life of the spool.
    pub id: u64,
    /// Random: tells this run from one with the same number in a spool that was removed.
    pub token: u64,
    /// The number of the state that the run starts from: its first commit is `base + 1`.
    pub base: u64,
    /// The page size of all its frames.
    pub page_size: PageSize,
    /// Where the WAL stood at `base`.
    pub start: WalEnd,
    /// Why the run before ended: a sentence for log and claim.
    pub reason: String,
    /// The time before which no commit of this run may lie (the last time of the run before).
    pub after: Timestamp,
    /// The time stamped on the state at `base`; every commit of the run is later.
    pub began: Timestamp,
}

/// How far the capture has got; everything up to here is fsynced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    /// The current run.
    pub run: u64,
    /// Its last commit, or its base.
    pub seq: u64,
    /// Bytes of frames captured since the spool was opened.
    pub bytes: u64,
}

/// One captured commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpooledCommit {
    /// Its number over the life of the spool.
    pub seq: u64,
    /// When it was first seen.
    pub time: Timestamp,
    /// Found after a downtime: as old as `time`, or older.
    pub upper_bound: bool,
    /// Database size after it, pages.
    pub pages: u32,
    /// Frames that it wrote.
    pub frames: u32,
    /// SQLite's WAL behind it.
    pub end: WalEnd,
}

/// A frame of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpooledFrame {
    /// The page that it holds.
    pub pgno: Pgno,
    /// Which commit of the batch, from 0.
    pub commit: u32,
    /// Where [`Batch::read_page`] finds the page.
    pub offset: u64,
}

/// Where the capture goes on: behind the last durable commit, or at the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The current run.
    pub run: u64,
    /// The last commit, or the run's base.
    pub seq: u64,
    /// Its time.
    pub time: Timestamp,
    /// The database size at it, pages.
    pub pages: u32,
    /// SQLite's WAL behind it.
    pub end: WalEnd,
    /// How that WAL's checksums read words.
    pub order: WordOrder,
}

/// What a new run starts from.
#[derive(Clone, Debug)]
pub struct RunStart {
    /// Random.
    pub token: u64,
    /// Its base has this number, or a greater one.
    pub base: u64,
    /// The page size of the database.
    pub page_size: PageSize,
    /// The database size, pages.
    pub pages: u32,
    /// Where SQLite's WAL stands.
    pub end: WalEnd,
    /// How its checksums read words.
    pub order: WordOrder,
    /// The time before which no commit of the run may lie.
    pub after: Timestamp,
    /// The time of the state that the run starts from.
    pub began: Timestamp,
    /// Why a new run begins: a sentence.
    pub reason: String,
}

/// Whole commits of one run, in order, that lie in one file of the spool.
#[derive(Debug)]
pub struct Batch {
    /// The run of all of them.
    pub run: RunInfo,
    /// The commits, ascending, without gaps.
    pub commits: Vec<SpooledCommit>,
    file: Arc<File>,
    path: PathBuf,
    /// Where the first commit's frames begin.
    offset: u64,
}

impl Batch {
    /// The frames in the order of the WAL, read from the spool as they are asked for.
    pub fn frames(&self) -> impl Iterator<Item = Result<SpooledFrame>> + '_ {
        let frame_bytes = frame_bytes(self.run.page_size) as u64;
        let mut offset = self.offset;
        let mut left = self.commits.iter().zip(0..);
        let mut current = None;
        std::iter::from_fn(move || {
            let (commit, frames) = match current.take() {
                Some((commit, frames)) => (commit, frames),
                None => {
                    let (spooled, commit) = left.next()?;
                    (commit, spooled.frames)
                }
            };
            let mut header = [0; FRAME_HEADER_BYTES];
            let at = offset;
            offset += frame_bytes;
            if frames > 1 {
                current = Some((commit, frames - 1));
            } else {
                offset += RECORD_BYTES as u64;
            }
            Some(
                self.read(at, &mut header)
                    .and_then(|()| {
                        FrameHeader::parse(&header)
                            .ok_or_else(|| damaged(&self.path, at, "no frame where one was"))
                    })
                    .map(|frame| SpooledFrame {
                        pgno: frame.pgno,
                        commit,
                        offset: at + FRAME_HEADER_BYTES as u64,
                    }),
            )
        })
    }

    /// Reads the page of a frame; verified against the commit's checksum when the spool was opened
    /// or the frame was captured.
    ///
    /// # Errors
    /// `Disk`.
    pub fn read_page(&self, offset: u64, page: &mut [u8]) -> Result<()> {
        self.read(offset, page)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(bytes, offset)
            .map_err(|e| Error::disk(format!("read spool file {}", self.path.display()), e))
    }
}

/// The spool of one database. Shared by the capture, which appends, and the uploaders, which read.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    /// Held as long as the spool is open.
    _lock: Flock<File>,
    tip: watch::Sender<Option<Tip>>,
    /// Where the capture goes on: to be asked while the writer waits for the disk.
    position: Mutex<Option<Position>>,
    logs: Mutex<VecDeque<Log>>,
    writer: Mutex<Option<Writer>>,
    share: Share,
}

/// The summary of a log file.
#[derive(Clone, Debug)]
struct Log {
    path: PathBuf,
    run: Arc<RunInfo>,
    /// The commit before its first.
    after: u64,
    /// Its last durable commit; `after` if it has none.
    last: u64,
    /// Where its first frame lies.
    data: u64,
    /// Where its last durable commit ends.
    length: u64,
    /// Whether its frames were seen to chain, when they were captured or since.
    is_verified: bool,
    /// The descriptor of the file that is appended to.
    file: Option<Arc<File>>,
}

impl Spool {
    /// Opens or creates the spool in `dir` (mode 0700) and takes its lock; reads back what is
    /// durable there. What it takes counts in `budget`.
    ///
    /// # Errors
    /// `Conflict` if another process has the lock, `Disk`, `Corrupt` if a file's header is damaged.
    pub fn open(dir: &Path, budget: Arc<Budget>) -> Result<Self> {
        let log_dir = dir.join("log");
        for dir in [dir, &log_dir] {
            make_private_dir(dir)?;
        }
        let lock = lock(dir)?;
        let mut logs = read_logs(&log_dir)?;
        let writer = match logs.back_mut() {
            Some(log) => Some(Writer::reopen(log)?),
            None => None,
        };
        let tip = writer.as_ref().map(Writer::tip);
        let position = writer.as_ref().map(|writer| writer.durable);
        let share = Share::new(budget);
        share.set_spool(length(&logs));
        Ok(Self {
            dir: dir.to_path_buf(),
            _lock: lock,
            tip: watch::Sender::new(tip),
            position: Mutex::new(position),
            logs: Mutex::new(logs),
            writer: Mutex::new(writer),
            share,
        })
    }

    /// The directory, in which uploaders keep their own files (objects on the way, state).
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Follows the tip. `None` until the first run began.
    pub fn tip(&self) -> watch::Receiver<Option<Tip>> {
        self.tip.subscribe()
    }

    /// The current run and those before it that still have commits here, ascending.
    pub fn runs(&self) -> Vec<RunInfo> {
        let logs = self.logs();
        let mut runs: Vec<RunInfo> = Vec::new();
        for (log, is_newest) in logs.iter().zip((0..logs.len()).rev().map(|left| left == 0)) {
            let is_known = runs.last().is_some_and(|run| run.id == log.run.id);
            if !is_known && (is_newest || log.last > log.after) {
                runs.push(RunInfo::clone(&log.run));
            }
        }
        runs
    }

    /// The commits after `seq`, of the run that has `seq + 1`: as many whole ones as fit
    /// `max_bytes` of raw frames, at least one. `None` if there is none yet, or if that run ended
    /// at `seq`.
    ///
    /// # Errors
    /// `NotFound` if the spool dropped them or can no longer read them whole, `Disk`.
    pub fn batch(&self, run: u64, after: u64, max_bytes: u64) -> Result<Option<Batch>> {
        let found = {
            let logs = self.logs();
            let mut of_run = logs.iter().filter(|log| log.run.id == run);
            match of_run.find(|log| (log.after..log.last).contains(&after)) {
                Some(log) => log.clone(),
                None => {
                    let newest = logs.iter().rfind(|log| log.run.id == run);
                    let next = logs.iter().find(|log| log.run.id > run);
                    // The next base may lie further off if the disk has lost commits.
                    let end = newest.map(|log| log.last);
                    return match end.or(next.map(|next| next.run.base - 1)) {
                        Some(end) if after >= end => Ok(None),
                        _ => Err(dropped(run, after)),
                    };
                }
            }
        };
        let file = match &found.file {
            Some(file) => Arc::clone(file),
            None => Arc::new(File::open(&found.path).map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => dropped(run, after),
                _ => Error::disk(format!("open spool file {}", found.path.display()), e),
            })?),
        };
        if !found.is_verified {
            self.verify(&found, &file)?;
        }
        read_batch(&found, file, after, max_bytes).map(Some)
    }

    /// Where SQLite's WAL stood at these ends, if that was in this run and is still known: the
    /// number of the commit before each. An empty WAL looks like any other empty one, and is never
    /// found.
    ///
    /// # Errors
    /// `Disk`; `NotFound` if the spool can no longer be read whole.
    pub fn seqs(&self, run: u64, ends: &[WalEnd]) -> Result<HashMap<WalEnd, u64>> {
        let logs: Vec<Log> = {
            let logs = self.logs();
            logs.iter()
                .filter(|log| log.run.id == run)
                .cloned()
                .collect()
        };
        let ends: Vec<WalEnd> = ends.iter().copied().filter(|end| end.frame > 0).collect();
        let mut found = HashMap::new();
        for log in logs.iter().rev() {
            if ends.iter().all(|end| found.contains_key(end)) {
                break;
            }
            find_ends(log, &ends, &mut found)?;
        }
        Ok(found)
    }

    /// What every replica has up to `seq` may go. Never waits for the capture.
    ///
    /// # Errors
    /// `Disk`.
    pub fn release(&self, seq: u64) -> Result<()> {
        self.close_if_released(seq);
        while let Some(path) = self.released(seq) {
            fs::remove_file(&path)
                .or_else(|e| match e.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(e),
                })
                .map_err(|e| Error::disk(format!("remove spool file {}", path.display()), e))?;
            let mut logs = self.logs();
            logs.retain(|log| log.path != path);
            self.share.set_spool(length(&logs));
        }
        Ok(())
    }

    /// The oldest file, if it may go. The newest one stays.
    fn released(&self, seq: u64) -> Option<PathBuf> {
        let logs = self.logs();
        let oldest = logs.front().filter(|log| log.last <= seq)?;
        (logs.len() > 1).then(|| oldest.path.clone())
    }

    /// Begins the next file if most of the newest one is to go. If the capture is busy with it, the
    /// next release comes soon.
    fn close_if_released(&self, seq: u64) {
        let is_due = self.logs().back().is_some_and(|log| {
            let half = log.after + (log.last - log.after).div_ceil(2);
            log.length - log.data > KEEP_BYTES && half <= seq
        });
        let Some(mut writer) = is_due.then(|| self.writer.try_lock().ok()).flatten() else {
            return;
        };
        let idle = writer
            .as_ref()
            .filter(|writer| writer.broken.is_none() && writer.end() == writer.durable_length);
        match idle.map(|writer| self.next_file(writer)) {
            Some(Ok(next)) => self.take_over(&mut writer, next),
            // Nothing is lost but room; appending tells what is wrong with the disk.
            Some(Err(e)) => tracing::debug!("{e}"),
            None => {}
        }
    }

    /// Bytes on disk: of what is not released, and of no more than about as much beside it.
    pub fn bytes(&self) -> u64 {
        length(&self.logs())
    }

    /// Bytes that this spool and the held-back WAL may take now, with what they take already.
    pub fn room(&self) -> u64 {
        self.share.room(&self.dir)
    }

    /// Whether more than half of the room is taken. A capture that found none waits until it is
    /// not.
    pub fn is_tight(&self) -> bool {
        self.bytes() > self.room() / 2
    }

    /// So many bytes of the WAL are held back now, since they are not copied.
    pub fn hold(&self, bytes: u64) {
        self.share.set_held(bytes);
    }

    /// Where the capture goes on. `None` until the first run began. Never waits for the disk.
    pub fn position(&self) -> Option<Position> {
        *self.shown_position()
    }

    /// Begins a run, durably. Its base gets a number of its own: what was committed between the
    /// last commit and this state is lost, so they are two states. No number is used again that was
    /// shown before, even if the disk has lost that commit since: a replica may have it.
    ///
    /// # Errors
    /// `Disk`.
    ///
    /// # Panics
    /// If something was appended that is neither durable nor cut away.
    pub fn begin_run(&self, start: RunStart) -> Result<RunInfo> {
        let mut writer = self.writer();
        let (last_run, base) = match &*writer {
            Some(writer) => {
                writer.check()?;
                writer.assert_nothing_pending();
                (writer.run.id, start.base.max(writer.acknowledged + 1))
            }
            None => (0, start.base),
        };
        let run = RunInfo {
            id: last_run + 1,
            token: start.token,
            base,
            page_size: start.page_size,
            start: start.end,
            reason: start.reason,
            after: start.after,
            began: start.began,
        };
        let position = Position {
            run: run.id,
            seq: base,
            time: start.began,
            pages: start.pages,
            end: start.end,
            order: start.order,
        };
        let bytes = writer.as_ref().map_or(0, |writer| writer.bytes);
        let next = Writer::create(&self.log_dir(), Arc::new(run.clone()), position, bytes)?;
        self.take_over(&mut writer, next);
        Ok(run)
    }

    /// Appends frames, byte for byte as they lie in the WAL; verified by the caller.
    ///
    /// # Errors
    /// `Disk`: then [`Spool::read_back`] comes next.
    ///
    /// # Panics
    /// If no run began.
    pub fn append(&self, frames: &[u8]) -> Result<()> {
        let mut guard = self.writer();
        let writer = guard.as_mut().expect("a run began before its first frame");
        writer.write(frames)?;
        writer.bytes += frames.len() as u64;
        Ok(())
    }

    /// Ends a commit whose frames were appended. `start`: the running checksum before the first of
    /// them.
    ///
    /// # Errors
    /// `Disk`.
    ///
    /// # Panics
    /// If `seq` or `time` do not go on from the commit before.
    pub fn commit(&self, commit: SpooledCommit, start: [u32; 2], order: WordOrder) -> Result<()> {
        let mut guard = self.writer();
        let writer = guard.as_mut().expect("a run began before its first commit");
        assert_eq!(commit.seq, writer.appended.seq + 1, "commits have no gaps");
        assert!(commit.time > writer.appended.time, "times ascend");
        let record = Record {
            commit,
            order,
            start,
        };
        writer.write(&record.encode())?;
        writer.appended = behind(writer.run.id, &record);
        writer.appended_length = writer.end();
        Ok(())
    }

    /// Makes the commits that were appended durable, and shows them. One fsync.
    ///
    /// # Errors
    /// `Disk`.
    ///
    /// # Panics
    /// If frames were appended behind the last commit.
    pub fn sync(&self) -> Result<()> {
        let mut guard = self.writer();
        let Some(writer) = guard.as_mut() else {
            return Ok(());
        };
        writer.sync()?;
        {
            let mut logs = self.logs();
            let log = logs.back_mut().expect("the writer's file is the newest");
            log.last = writer.durable.seq;
            log.length = writer.durable_length;
            self.share.set_spool(length(&logs));
        }
        self.show(writer);
        if writer.durable_length - writer.data >= ROTATE_BYTES {
            match self.next_file(writer) {
                Ok(next) => self.take_over(&mut guard, next),
                Err(e) => return Err(writer.latch(e)),
            }
        }
        Ok(())
    }

    /// Forgets what was appended since the last [`Spool::sync`].
    ///
    /// # Errors
    /// `Disk`.
    pub fn cut(&self) -> Result<()> {
        match self.writer().as_mut() {
            Some(writer) => writer.cut(),
            None => Ok(()),
        }
    }

    /// Gives back the memory for appending, while nothing is appended.
    pub fn rest(&self) {
        if let Some(writer) = self.writer().as_mut() {
            writer.buffer = Vec::new();
        }
    }

    /// What failed, until it was read back: a sentence.
    pub fn failure(&self) -> Option<String> {
        self.writer()
            .as_ref()
            .and_then(|writer| writer.broken.clone())
    }

    /// Ends a latched failure: reads from the disk, not from the page cache, what is there.
    /// [`Spool::position`] may lie before what was acknowledged if the disk lost it.
    ///
    /// # Errors
    /// `Disk`: the failure goes on.
    pub fn read_back(&self) -> Result<()> {
        let mut guard = self.writer();
        let Some(writer) = guard.as_mut() else {
            return Ok(());
        };
        writer.read_back()?;
        {
            let mut logs = self.logs();
            let log = logs.back_mut().expect("the writer's file is the newest");
            log.last = writer.durable.seq;
            log.length = writer.durable_length;
            self.share.set_spool(length(&logs));
        }
        self.show(writer);
        Ok(())
    }

    /// Makes the file that the run goes on in.
    fn next_file(&self, writer: &Writer) -> Result<Writer> {
        let (run, position) = (Arc::clone(&writer.run), writer.durable);
        Writer::create(&self.log_dir(), run, position, writer.bytes)
    }

    fn take_over(&self, writer: &mut Option<Writer>, next: Writer) {
        {
            let mut logs = self.logs();
            if let Some(last) = logs.back_mut() {
                last.file = None;
            }
            logs.push_back(next.log());
            self.share.set_spool(length(&logs));
        }
        self.show(&next);
        *writer = Some(next);
    }

    /// Shows what is durable.
    fn show(&self, writer: &Writer) {
        *self.shown_position() = Some(writer.durable);
        self.tip.send_replace(Some(writer.tip()));
    }

    fn verify(&self, log: &Log, file: &File) -> Result<()> {
        let header = read_header(&log.path, file)?.0;
        let seen = verify(&log.path, file, &header, log.data, log.length)?;
        if seen.length < log.length {
            return Err(Error::not_found(format!(
                "the spool has lost commits after {}: {} is damaged at byte {}",
                seen.position.seq,
                log.path.display(),
                seen.length
            )));
        }
        let mut logs = self.logs();
        if let Some(log) = logs.iter_mut().find(|other| other.path == log.path) {
            log.is_verified = true;
        }
        Ok(())
    }

    fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn shown_position(&self) -> MutexGuard<'_, Option<Position>> {
        self.position
            .lock()
            .expect("nobody panics with this lock held")
    }

    fn logs(&self) -> MutexGuard<'_, VecDeque<Log>> {
        self.logs
            .lock()
            .expect("a panic with this lock held is our own bug")
    }

    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.writer
            .lock()
            .expect("a panic with this lock held is our own bug")
    }
}

/// Bytes of these files.
fn length(logs: &VecDeque<Log>) -> u64 {
    logs.iter().map(|log| log.length).sum()
}

fn make_private_dir(dir: &Path) -> Result<()> {
    let made = match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
        }
        made => made,
    };
    made.map_err(|e| Error::disk(format!("make the spool directory {}", dir.display()), e))
}

fn lock(dir: &Path) -> Result<Flock<File>> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| Error::disk(format!("open {}", path.display()), e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => Error::conflict(format!(
            "another process uses the spool {}: it holds the lock on {}",
            dir.display(),
            path.display()
        )),
        errno => Error::disk(format!("lock {}", path.display()), errno.into()),
    })
}

fn dropped(run: u64, after: u64) -> Error {
    Error::not_found(format!(
        "the spool no longer has the commits after {after} of run {run}"
    ))
}
