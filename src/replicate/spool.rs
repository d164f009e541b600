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

#[cfg(test)]
mod tests;

use crate::error::{Error, ErrorKind, Result};
use crate::format::ids::{PageSize, Pgno, Timestamp, WalEnd};
use crate::format::wal::{Chain, FRAME_HEADER_BYTES, FrameHeader, WordOrder, frame_bytes};
use crate::replicate::spool::log::{HEADER_BYTES_MAX, LogHeader, RECORD_BYTES, Record};
use nix::fcntl::{Flock, FlockArg, PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// A log file is closed at the first commit boundary behind this many bytes.
const ROTATE_BYTES: u64 = 16 << 20;
/// What is appended goes to the file in pieces of about this size, bytes.
const WRITE_BYTES: usize = 1 << 20;
/// What is verified is read in pieces of about this size, bytes.
const READ_BYTES: usize = 256 << 10;

/// A stretch of the capture without a break.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Counted from 1.
    pub id: u64,
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
    logs: Mutex<VecDeque<Log>>,
    writer: Mutex<Option<Writer>>,
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

/// The end of the newest log file.
#[derive(Debug)]
struct Writer {
    file: Arc<File>,
    path: PathBuf,
    run: Arc<RunInfo>,
    data: u64,
    /// Behind everything that was handed to the file; `buffer` goes here.
    length: u64,
    buffer: Vec<u8>,
    /// What is durable, and where it ends in the file.
    durable: Position,
    durable_length: u64,
    /// What was appended, behind `durable`, and where it will end in the file.
    appended: Position,
    appended_length: u64,
    /// Bytes of frames since the spool was opened, those appended included.
    bytes: u64,
    /// Why nothing can be acknowledged, until the disk was read back.
    broken: Option<String>,
}

impl Spool {
    /// Opens or creates the spool in `dir` (mode 0700) and takes its lock; reads back what is
    /// durable there.
    ///
    /// # Errors
    /// `Conflict` if another process has the lock, `Disk`, `Corrupt` if a file's header is damaged.
    pub fn open(dir: &Path) -> Result<Self> {
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
        Ok(Self {
            dir: dir.to_path_buf(),
            _lock: lock,
            tip: watch::Sender::new(tip),
            logs: Mutex::new(logs),
            writer: Mutex::new(writer),
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
                    let ended = logs.iter().find(|log| log.run.id > run);
                    let end = ended.map(|next| next.run.base - 1);
                    let newest = logs.back().filter(|log| log.run.id == run);
                    return match end.or(newest.map(|log| log.last)) {
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

    /// What every replica has up to `seq` may go.
    ///
    /// # Errors
    /// `Disk`.
    pub fn release(&self, seq: u64) -> Result<()> {
        let mut logs = self.logs();
        while logs.len() > 1 && logs.front().is_some_and(|log| log.last <= seq) {
            let path = &logs.front().expect("just seen").path;
            fs::remove_file(path)
                .or_else(|e| match e.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(e),
                })
                .map_err(|e| Error::disk(format!("remove spool file {}", path.display()), e))?;
            logs.pop_front();
        }
        Ok(())
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.logs().iter().map(|log| log.length).sum()
    }

    /// Where the capture goes on. `None` until the first run began.
    pub fn position(&self) -> Option<Position> {
        self.writer().as_ref().map(|writer| writer.durable)
    }

    /// Begins a run, durably. Its base gets a number of its own: what was committed between the
    /// last commit and this state is lost, so they are two states.
    ///
    /// # Errors
    /// `Disk`.
    ///
    /// # Panics
    /// If something was appended that is neither durable nor cut away.
    pub fn begin_run(&self, start: RunStart) -> Result<RunInfo> {
        let mut writer = self.writer();
        let before = match &*writer {
            Some(writer) => {
                writer.check()?;
                writer.assert_nothing_pending();
                Some(writer.durable)
            }
            None => None,
        };
        let base = before.map_or(0, |last| last.seq + 1);
        let run = RunInfo {
            id: before.map_or(0, |last| last.run) + 1,
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
        }
        self.tip.send_replace(Some(writer.tip()));
        if writer.durable_length - writer.data >= ROTATE_BYTES {
            let (run, position) = (Arc::clone(&writer.run), writer.durable);
            let next = Writer::create(&self.log_dir(), run, position, writer.bytes);
            match next {
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
        }
        self.tip.send_replace(Some(writer.tip()));
        Ok(())
    }

    fn take_over(&self, writer: &mut Option<Writer>, next: Writer) {
        {
            let mut logs = self.logs();
            if let Some(last) = logs.back_mut() {
                last.file = None;
            }
            logs.push_back(next.log());
        }
        self.tip.send_replace(Some(next.tip()));
        *writer = Some(next);
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

impl Writer {
    /// Makes a log file whose header is durable before anything is appended.
    fn create(dir: &Path, run: Arc<RunInfo>, start: Position, bytes: u64) -> Result<Self> {
        let header = LogHeader {
            run: RunInfo::clone(&run),
            after: start.seq,
            time: start.time,
            pages: start.pages,
            end: start.end,
            big_endian: start.order == WordOrder::Big,
        }
        .encode();
        let path = dir.join(format!("{:08x}-{:016x}.log", run.id, start.seq));
        let temporary = path.with_extension("tmp");
        let made = || -> io::Result<File> {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all_at(&header, 0)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(dir)?.sync_all()?;
            Ok(file)
        };
        let file = made().map_err(|e| Error::disk(format!("make {}", path.display()), e))?;
        let length = header.len() as u64;
        Ok(Self {
            file: Arc::new(file),
            path,
            run,
            data: length,
            length,
            buffer: Vec::new(),
            durable: start,
            durable_length: length,
            appended: start,
            appended_length: length,
            bytes,
            broken: None,
        })
    }

    /// Opens the newest log file to go on in it: verifies all of it and cuts a torn tail.
    fn reopen(log: &mut Log) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&log.path)
            .map_err(|e| Error::disk(format!("open spool file {}", log.path.display()), e))?;
        let (header, data) = read_header(&log.path, &file)?;
        let length = file_length(&log.path, &file)?;
        let seen = verify(&log.path, &file, &header, data, length)?;
        if seen.length < length {
            file.set_len(seen.length)
                .and_then(|()| file.sync_all())
                .map_err(|e| Error::disk(format!("cut spool file {}", log.path.display()), e))?;
        }
        let file = Arc::new(file);
        log.last = seen.position.seq;
        log.length = seen.length;
        log.is_verified = true;
        log.file = Some(Arc::clone(&file));
        Ok(Self {
            file,
            path: log.path.clone(),
            run: Arc::clone(&log.run),
            data,
            length: seen.length,
            buffer: Vec::new(),
            durable: seen.position,
            durable_length: seen.length,
            appended: seen.position,
            appended_length: seen.length,
            bytes: 0,
            broken: None,
        })
    }

    fn log(&self) -> Log {
        Log {
            path: self.path.clone(),
            run: Arc::clone(&self.run),
            after: self.durable.seq,
            last: self.durable.seq,
            data: self.data,
            length: self.durable_length,
            is_verified: true,
            file: Some(Arc::clone(&self.file)),
        }
    }

    fn tip(&self) -> Tip {
        Tip {
            run: self.run.id,
            seq: self.durable.seq,
            bytes: self.bytes,
        }
    }

    /// Behind everything that was appended.
    fn end(&self) -> u64 {
        self.length + self.buffer.len() as u64
    }

    fn check(&self) -> Result<()> {
        match &self.broken {
            Some(sentence) => Err(Error::new(ErrorKind::Disk, sentence)),
            None => Ok(()),
        }
    }

    fn assert_nothing_pending(&self) {
        assert_eq!(
            self.end(),
            self.durable_length,
            "what was appended is durable or cut away before a run ends"
        );
    }

    fn latch(&mut self, error: Error) -> Error {
        self.broken = Some(error.to_string());
        error
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.check()?;
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(WRITE_BYTES);
        }
        if self.buffer.len() + bytes.len() > WRITE_BYTES {
            self.flush()?;
        }
        if bytes.len() >= WRITE_BYTES {
            return self.put(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let put = self.put(&buffer);
        self.buffer = buffer;
        self.buffer.clear();
        put
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if let Err(e) = self.file.write_all_at(bytes, self.length) {
            let sentence = format!("write spool file {}", self.path.display());
            return Err(self.latch(Error::disk(sentence, e)));
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.check()?;
        assert_eq!(self.end(), self.appended_length, "whole commits only");
        if self.appended == self.durable {
            return Ok(());
        }
        self.flush()?;
        if let Err(e) = self.file.sync_data() {
            let sentence = format!("fsync spool file {}", self.path.display());
            return Err(self.latch(Error::disk(sentence, e)));
        }
        self.durable = self.appended;
        self.durable_length = self.length;
        Ok(())
    }

    fn cut(&mut self) -> Result<()> {
        self.check()?;
        self.buffer.clear();
        self.appended = self.durable;
        self.appended_length = self.durable_length;
        if self.length > self.durable_length {
            if let Err(e) = self.file.set_len(self.durable_length) {
                let sentence = format!("cut spool file {}", self.path.display());
                return Err(self.latch(Error::disk(sentence, e)));
            }
            self.length = self.durable_length;
        }
        Ok(())
    }

    fn read_back(&mut self) -> Result<()> {
        let file = Arc::clone(&self.file);
        let failed = |doing: &str, e: io::Error| {
            Error::disk(format!("{doing} spool file {}", self.path.display()), e)
        };
        file.set_len(self.durable_length)
            .and_then(|()| file.sync_all())
            .map_err(|e| failed("cut", e))?;
        // After a failed fsync the kernel counts the pages as clean although the disk does not have
        // them; dropped from the cache they are read from where they will be after a crash.
        posix_fadvise(&*file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|e| failed("drop the cached pages of", e.into()))?;
        let (header, data) = read_header(&self.path, &file)?;
        let seen = verify(&self.path, &file, &header, data, self.durable_length)?;
        file.set_len(seen.length)
            .and_then(|()| file.sync_all())
            .map_err(|e| failed("cut", e))?;
        self.buffer.clear();
        self.length = seen.length;
        self.durable_length = seen.length;
        self.durable = seen.position;
        self.appended = seen.position;
        self.appended_length = seen.length;
        self.broken = None;
        Ok(())
    }
}

/// How much of a log file is whole.
struct Verified {
    position: Position,
    /// Where the last good record ends.
    length: u64,
}

/// Reads a log file up to `length`: commit by commit, each with all its frames.
fn verify(
    path: &Path,
    file: &File,
    header: &LogHeader,
    data: u64,
    length: u64,
) -> Result<Verified> {
    let order = if header.big_endian {
        WordOrder::Big
    } else {
        WordOrder::Little
    };
    let mut seen = Verified {
        position: Position {
            run: header.run.id,
            seq: header.after,
            time: header.time,
            pages: header.pages,
            end: header.end,
            order,
        },
        length: data,
    };
    while let Some((record, end)) = verify_commit(file, header, &seen, length)
        .map_err(|e| Error::disk(format!("read spool file {}", path.display()), e))?
    {
        seen.position = behind(header.run.id, &record);
        seen.length = end;
    }
    Ok(seen)
}

/// The next commit and where its record ends, if all of it is there and right.
fn verify_commit(
    file: &File,
    header: &LogHeader,
    before: &Verified,
    length: u64,
) -> io::Result<Option<(Record, u64)>> {
    let frame_bytes = frame_bytes(header.run.page_size);
    let mut frames: u32 = 0;
    let mut at = before.length;
    let mut frame = [0; FRAME_HEADER_BYTES];
    let mut is_last = false;
    while !is_last {
        if at + (frame_bytes + RECORD_BYTES) as u64 > length {
            return Ok(None);
        }
        file.read_exact_at(&mut frame, at)?;
        let Some(frame) = FrameHeader::parse(&frame) else {
            return Ok(None);
        };
        is_last = frame.commit.is_some();
        frames += 1;
        at += frame_bytes as u64;
    }
    let mut record = [0; RECORD_BYTES];
    file.read_exact_at(&mut record, at)?;
    let Some(record) = Record::decode(&record) else {
        return Ok(None);
    };
    if record.commit.seq != before.position.seq + 1
        || record.commit.frames != frames
        || record.commit.time <= before.position.time
        || !chains(file, header.run.page_size, before.length, &record)?
    {
        return Ok(None);
    }
    Ok(Some((record, at + RECORD_BYTES as u64)))
}

/// Whether the frames at `offset` lead from where the record says to where it says.
fn chains(file: &File, page_size: PageSize, offset: u64, record: &Record) -> io::Result<bool> {
    let mut chain = Chain {
        order: record.order,
        page_size,
        end: record.start(),
    };
    let at_once = (READ_BYTES / chain.frame_bytes()).max(1) as u32;
    let mut left = record.commit.frames;
    let mut at = offset;
    let mut bytes = vec![0; at_once.min(left) as usize * chain.frame_bytes()];
    let mut commit = None;
    while left > 0 {
        let bytes = &mut bytes[..at_once.min(left) as usize * chain.frame_bytes()];
        file.read_exact_at(bytes, at)?;
        for frame in bytes.chunks_exact(chain.frame_bytes()) {
            match chain.advance(frame) {
                Ok(frame) => commit = frame.commit,
                Err(_) => return Ok(false),
            }
        }
        left -= at_once.min(left);
        at += bytes.len() as u64;
    }
    Ok(chain.end == record.commit.end && commit == Some(record.commit.pages))
}

/// The place behind a commit.
fn behind(run: u64, record: &Record) -> Position {
    Position {
        run,
        seq: record.commit.seq,
        time: record.commit.time,
        pages: record.commit.pages,
        end: record.commit.end,
        order: record.order,
    }
}

/// Reads the records from the end of the file back to the one behind `after`, and takes from there
/// what fits. The end is what uploaders that keep up want.
fn read_batch(log: &Log, file: Arc<File>, after: u64, max_bytes: u64) -> Result<Batch> {
    let frame_bytes = frame_bytes(log.run.page_size) as u64;
    let mut commits = Vec::new();
    let mut end = log.length;
    for seq in (after + 1..=log.last).rev() {
        let at = end.checked_sub(RECORD_BYTES as u64);
        let record = at
            .map(|at| read_record(&log.path, &file, at))
            .transpose()?
            .flatten()
            .filter(|record| record.commit.seq == seq);
        let start = record
            .and_then(|record| at?.checked_sub(u64::from(record.commit.frames) * frame_bytes));
        let (Some(record), Some(start)) = (record, start) else {
            return Err(damaged(&log.path, end, "no commit record where one was"));
        };
        commits.push(record.commit);
        end = start;
    }
    commits.reverse();
    let mut bytes = 0;
    let fitting = commits.iter().take_while(|commit| {
        bytes += u64::from(commit.frames) * frame_bytes;
        bytes <= max_bytes
    });
    let count = fitting.count().max(1);
    commits.truncate(count);
    commits.shrink_to_fit();
    Ok(Batch {
        run: RunInfo::clone(&log.run),
        commits,
        file,
        path: log.path.clone(),
        offset: end,
    })
}

fn read_record(path: &Path, file: &File, offset: u64) -> Result<Option<Record>> {
    let mut record = [0; RECORD_BYTES];
    file.read_exact_at(&mut record, offset)
        .map_err(|e| Error::disk(format!("read spool file {}", path.display()), e))?;
    Ok(Record::decode(&record))
}

fn read_header(path: &Path, file: &File) -> Result<(LogHeader, u64)> {
    let failed = |e| Error::disk(format!("read spool file {}", path.display()), e);
    let length = file_length(path, file)?.min(HEADER_BYTES_MAX as u64);
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    LogHeader::decode(&bytes).map_err(|e| {
        e.context(format!(
            "spool file {} cannot be read; remove it to let a new generation begin",
            path.display()
        ))
    })
}

fn file_length(path: &Path, file: &File) -> Result<u64> {
    file.metadata()
        .map(|meta| meta.len())
        .map_err(|e| Error::disk(format!("stat spool file {}", path.display()), e))
}

/// The log files, ascending, but for the end of the newest one; removes half-made ones.
fn read_logs(dir: &Path) -> Result<VecDeque<Log>> {
    let failed = |e| Error::disk(format!("list {}", dir.display()), e);
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("log") => paths.push(path),
            Some("tmp") => fs::remove_file(&path)
                .map_err(|e| Error::disk(format!("remove {}", path.display()), e))?,
            _ => {}
        }
    }
    paths.sort();
    let mut logs: VecDeque<Log> = VecDeque::new();
    for path in paths {
        let file = File::open(&path)
            .map_err(|e| Error::disk(format!("open spool file {}", path.display()), e))?;
        let (header, data) = read_header(&path, &file)?;
        let length = file_length(&path, &file)?;
        let last = match length.checked_sub(RECORD_BYTES as u64) {
            Some(at) if at >= data => read_record(&path, &file, at)?,
            _ => None,
        };
        let run = match logs.back() {
            Some(log) if *log.run == header.run => Arc::clone(&log.run),
            _ => Arc::new(header.run),
        };
        logs.push_back(Log {
            path,
            run,
            after: header.after,
            last: last.map_or(header.after, |record| record.commit.seq),
            data,
            length,
            is_verified: false,
            file: None,
        });
    }
    Ok(logs)
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

fn damaged(path: &Path, offset: u64, what: &str) -> Error {
    Error::not_found(format!(
        "the spool has lost commits: {} has {what} at byte {offset}",
        path.display()
    ))
}
