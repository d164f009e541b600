//! Reading log files back: what is whole, and the commits behind a given one.
//!
//! A commit is believed only if all its frames chain from where its record says to where it says.

use crate::error::{Error, Result};
use crate::format::ids::{PageSize, WalEnd};
use crate::format::wal::{Chain, FRAME_HEADER_BYTES, FrameHeader, WordOrder, frame_bytes};
use crate::replicate::spool::log::{HEADER_BYTES_MAX, LogHeader, RECORD_BYTES, Record};
use crate::replicate::spool::{Batch, Log, Position, RunInfo};
use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// What is verified is read in pieces of about this size, bytes.
const READ_BYTES: usize = 256 << 10;

/// How much of a log file is whole.
pub(super) struct Verified {
    pub(super) position: Position,
    /// Where the last good record ends.
    pub(super) length: u64,
}

/// Reads a log file up to `length`: commit by commit, each with all its frames.
pub(super) fn verify(
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
pub(super) fn behind(run: u64, record: &Record) -> Position {
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
pub(super) fn read_batch(log: &Log, file: Arc<File>, after: u64, max_bytes: u64) -> Result<Batch> {
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

/// Notes the numbers of those commits of a file behind which the WAL stood at one of these ends,
/// and of the state that the file starts from.
pub(super) fn find_ends(
    log: &Log,
    ends: &[WalEnd],
    found: &mut HashMap<WalEnd, u64>,
) -> Result<()> {
    let file = match File::open(&log.path) {
        Ok(file) => file,
        // Released meanwhile.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => {
            return Err(Error::disk(
                format!("open spool file {}", log.path.display()),
                e,
            ));
        }
    };
    let header = read_header(&log.path, &file)?.0;
    let mut note = |end: WalEnd, seq: u64| {
        if ends.contains(&end) {
            found.insert(end, seq);
        }
    };
    note(header.end, header.after);
    let frame_bytes = frame_bytes(log.run.page_size) as u64;
    let mut end = log.length;
    for seq in (log.after + 1..=log.last).rev() {
        let at = end.checked_sub(RECORD_BYTES as u64);
        let record = at
            .map(|at| read_record(&log.path, &file, at))
            .transpose()?
            .flatten();
        let Some((record, at)) = record
            .zip(at)
            .filter(|(record, _)| record.commit.seq == seq)
        else {
            return Err(damaged(&log.path, end, "no commit record where one was"));
        };
        note(record.commit.end, seq);
        end = at.saturating_sub(u64::from(record.commit.frames) * frame_bytes);
    }
    Ok(())
}

fn read_record(path: &Path, file: &File, offset: u64) -> Result<Option<Record>> {
    let mut record = [0; RECORD_BYTES];
    file.read_exact_at(&mut record, offset)
        .map_err(|e| Error::disk(format!("read spool file {}", path.display()), e))?;
    Ok(Record::decode(&record))
}

pub(super) fn read_header(path: &Path, file: &File) -> Result<(LogHeader, u64)> {
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

pub(super) fn file_length(path: &Path, file: &File) -> Result<u64> {
    file.metadata()
        .map(|meta| meta.len())
        .map_err(|e| Error::disk(format!("stat spool file {}", path.display()), e))
}

/// The log files, ascending, but for the end of the newest one; removes half-made ones.
pub(super) fn read_logs(dir: &Path) -> Result<VecDeque<Log>> {
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

pub(super) fn damaged(path: &Path, offset: u64, what: &str) -> Error {
    Error::not_found(format!(
        "the spool has lost commits: {} has {what} at byte {offset}",
        path.display()
    ))
}
