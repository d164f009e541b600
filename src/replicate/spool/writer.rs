//! The end of the newest log file, to which commits are appended.
//!
//! A failed write or fsync latches: nothing is acknowledged until the file was read back from the
//! disk.

use crate::error::{Error, ErrorKind, Result};
use crate::format::wal::WordOrder;
use crate::replicate::spool::log::LogHeader;
use crate::replicate::spool::read::{file_length, read_header, verify};
use crate::replicate::spool::{Log, Position, RunInfo, Tip};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is appended goes to the file in pieces of about this size, bytes.
const WRITE_BYTES: usize = 1 << 20;

/// The end of the newest log file.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    pub(super) run: Arc<RunInfo>,
    pub(super) data: u64,
    /// Behind everything that was handed to the file; `buffer` goes here.
    pub(super) length: u64,
    pub(super) buffer: Vec<u8>,
    /// What is durable, and where it ends in the file.
    pub(super) durable: Position,
    pub(super) durable_length: u64,
    /// The largest number that was ever shown as durable, though the disk may have lost it since.
    pub(super) acknowledged: u64,
    /// What was appended, behind `durable`, and where it will end in the file.
    pub(super) appended: Position,
    pub(super) appended_length: u64,
    /// Bytes of frames since the spool was opened, those appended included.
    pub(super) bytes: u64,
    /// Why nothing can be acknowledged, until the disk was read back.
    pub(super) broken: Option<String>,
}

impl Writer {
    /// Makes a log file whose header is durable before anything is appended.
    pub(super) fn create(
        dir: &Path,
        run: Arc<RunInfo>,
        start: Position,
        bytes: u64,
    ) -> Result<Self> {
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
            acknowledged: start.seq,
            appended: start,
            appended_length: length,
            bytes,
            broken: None,
        })
    }

    /// Opens the newest log file to go on in it: verifies all of it and cuts a torn tail.
    pub(super) fn reopen(log: &mut Log) -> Result<Self> {
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
            acknowledged: seen.position.seq,
            appended: seen.position,
            appended_length: seen.length,
            bytes: 0,
            broken: None,
        })
    }

    pub(super) fn log(&self) -> Log {
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

    pub(super) fn tip(&self) -> Tip {
        Tip {
            run: self.run.id,
            seq: self.durable.seq,
            bytes: self.bytes,
        }
    }

    /// Behind everything that was appended.
    pub(super) fn end(&self) -> u64 {
        self.length + self.buffer.len() as u64
    }

    pub(super) fn check(&self) -> Result<()> {
        match &self.broken {
            Some(sentence) => Err(Error::new(ErrorKind::Disk, sentence)),
            None => Ok(()),
        }
    }

    pub(super) fn assert_nothing_pending(&self) {
        assert_eq!(
            self.end(),
            self.durable_length,
            "what was appended is durable or cut away before a run ends"
        );
    }

    pub(super) fn latch(&mut self, error: Error) -> Error {
        self.broken = Some(error.to_string());
        error
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
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

    pub(super) fn sync(&mut self) -> Result<()> {
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
        self.acknowledged = self.acknowledged.max(self.durable.seq);
        Ok(())
    }

    pub(super) fn cut(&mut self) -> Result<()> {
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

    pub(super) fn read_back(&mut self) -> Result<()> {
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
