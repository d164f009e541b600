//! From the `-wal` file into the spool.
//!
//! Owns our descriptor of the `-wal` file, with the lock that keeps a second daemon away, and the
//! streaming of frames. Invariants: a commit becomes durable only together with the proof that the
//! frames lead to the place that was asked for; half a transaction never does; memory does not grow
//! with the size of a transaction (but for a bit for each page that it adds to the database).

use crate::error::{Error, Result};
use crate::format::ids::{PageSize, Pgno, Timestamp, WalEnd};
use crate::format::wal::{Chain, FrameHeader, HEADER_BYTES, WalHeader, frame_offset};
use crate::replicate::decide::{Break, stamp};
use crate::replicate::spool::{Position, Spool, SpooledCommit};
use crate::replicate::writers::Ending;
use nix::fcntl::{Flock, FlockArg};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The WAL is read in pieces of about this size, bytes.
const READ_BYTES: usize = 1 << 20;
/// More than this is verified before the first commit of it becomes durable, and then made durable
/// in parts of this size, bytes; less is cut away again if it turns out wrong.
const PART_BYTES: u64 = 16 << 20;
/// So many frames are looked at before it is asked whether there is time for more.
const LOOKED_FRAMES: u32 = 256;

/// The `-wal` file, opened beside SQLite, which keeps no POSIX locks on it; locked with `flock`
/// against a second daemon.
#[derive(Debug)]
pub(super) struct WalFile {
    file: Flock<File>,
    /// Device and inode.
    id: (u64, u64),
    path: PathBuf,
}

impl WalFile {
    /// Opens the `-wal` file and takes the lock.
    ///
    /// # Errors
    /// `Conflict` if another daemon has the lock, `Disk`.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .open(path)
            .map_err(|e| Error::disk(format!("open {}", path.display()), e))?;
        let file =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(
                |(_, errno)| match errno {
                    nix::errno::Errno::EWOULDBLOCK => Error::conflict(format!(
                        "another sqlrepl replicates this database: it holds the lock on {}",
                        path.display()
                    )),
                    errno => Error::disk(format!("lock {}", path.display()), errno.into()),
                },
            )?;
        let meta = file
            .metadata()
            .map_err(|e| Error::disk(format!("stat {}", path.display()), e))?;
        Ok(Self {
            file,
            id: id(&meta),
            path: path.to_path_buf(),
        })
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its descriptor.
    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Size, bytes.
    pub(super) fn bytes(&self) -> Result<u64> {
        Ok(self.metadata()?.size())
    }

    /// Size, bytes, if the path still leads to this file. While it is open its inode is no other's.
    pub(super) fn bytes_in_place(&self) -> Result<Option<u64>> {
        match std::fs::metadata(&self.path) {
            Ok(there) => Ok((id(&there) == self.id).then_some(there.size())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::disk(format!("stat {}", self.path.display()), e)),
        }
    }

    fn metadata(&self) -> Result<std::fs::Metadata> {
        self.file
            .metadata()
            .map_err(|e| Error::disk(format!("stat {}", self.path.display()), e))
    }

    /// Reads the header. `None` if there is no whole and valid one.
    pub(super) fn header(&self) -> Result<Option<WalHeader>> {
        let mut bytes = [0; HEADER_BYTES];
        let length = self.read(&mut bytes, 0)?;
        Ok(WalHeader::parse(&bytes[..length]))
    }

    /// Reads at an offset, as many bytes as there are.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> Result<usize> {
        let mut length = 0;
        while length < bytes.len() {
            match self
                .file
                .read_at(&mut bytes[length..], offset + length as u64)
            {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::disk(format!("read {}", self.path.display()), e)),
            }
        }
        Ok(length)
    }

    /// Where the chain stands behind the frames that are already copied: at `done`, or before the
    /// first frame if that is in a new WAL. `None` if the file holds another WAL than `target`.
    fn chain(
        &self,
        done: &Position,
        page_size: PageSize,
        target: &WalEnd,
    ) -> Result<Option<Chain>> {
        if target.salts == done.end.salts && done.end.frame > 0 {
            return Ok(Some(Chain {
                order: done.order,
                page_size,
                end: done.end,
            }));
        }
        // The seed is read each time: a transaction that rolled back leaves a header with the same
        // salts and another seed.
        let header = self.header()?;
        Ok(header
            .filter(|header| header.salts == target.salts && header.page_size == page_size)
            .map(|header| Chain::of_header(&header)))
    }

    /// Steps over the frames behind `chain`, at most up to frame `last`. True if they reach it.
    fn follow(
        &self,
        chain: &mut Chain,
        last: u32,
        mut visit: impl FnMut(&Chain, FrameHeader, &[u8]) -> Result<()>,
    ) -> Result<bool> {
        let at_once = (READ_BYTES / chain.frame_bytes()).max(1);
        let left = |chain: &Chain| (last - chain.end.frame) as usize;
        let mut bytes = vec![0; at_once.min(left(chain)) * chain.frame_bytes()];
        while left(chain) > 0 {
            let wanted = at_once.min(left(chain)) * chain.frame_bytes();
            let length = self.read(&mut bytes[..wanted], chain.offset())?;
            for frame in bytes[..length].chunks(chain.frame_bytes()) {
                match chain.advance(frame) {
                    Ok(header) => visit(chain, header, frame)?,
                    Err(_) => return Ok(false),
                }
            }
            if length < wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the frames from the header on lead to `end`.
    ///
    /// # Errors
    /// `Disk`.
    pub(super) fn leads_to(&self, page_size: PageSize, end: &WalEnd) -> Result<bool> {
        let Some(header) = self.header()? else {
            return Ok(false);
        };
        if header.salts != end.salts || header.page_size != page_size {
            return Ok(false);
        }
        let mut chain = Chain::of_header(&header);
        let reached = self.follow(&mut chain, end.frame, |_, _, _| Ok(()))?;
        Ok(reached && (end.frame == 0 || chain.end == *end))
    }

    /// The first of these endings that the frames from the header on lead to. All are looked for on
    /// one way through the file, which ends early once `is_over`.
    ///
    /// # Errors
    /// `Disk`.
    pub(super) fn first_passed(
        &self,
        endings: &[Ending],
        is_over: &dyn Fn() -> bool,
    ) -> Result<Option<Ending>> {
        let Some(header) = self.header()? else {
            return Ok(None);
        };
        let is_here = |ending: &&Ending| {
            ending.end.salts == header.salts && ending.page_size == header.page_size
        };
        let wanted: HashSet<WalEnd> = endings.iter().filter(is_here).map(|it| it.end).collect();
        let last = wanted.iter().map(|end| end.frame).max().unwrap_or(0);
        let mut passed: HashSet<WalEnd> = HashSet::new();
        let mut chain = Chain::of_header(&header);
        while chain.end.frame < last && !is_over() {
            let next = chain.end.frame.saturating_add(LOOKED_FRAMES).min(last);
            let reached = self.follow(&mut chain, next, |chain, _, _| {
                passed.extend(wanted.get(&chain.end));
                Ok(())
            })?;
            if !reached {
                break;
            }
        }
        let mut endings = endings.iter().copied();
        Ok(endings.find(|ending| passed.contains(&ending.end)))
    }

    /// Follows the frames behind `done` as far as they chain.
    ///
    /// # Errors
    /// `Disk`.
    pub(super) fn tail(&self, done: &Position, page_size: PageSize) -> Result<Tail> {
        let mut chain = Chain {
            order: done.order,
            page_size,
            end: done.end,
        };
        let (mut before, mut last_commit) = (done.end, done.end);
        self.follow(&mut chain, u32::MAX, |chain, frame, _| {
            if frame.commit.is_some() {
                (before, last_commit) = (last_commit, chain.end);
            }
            Ok(())
        })?;
        let mut slot = vec![0; chain.frame_bytes()];
        let length = self.read(&mut slot, frame_offset(page_size, chain.end.frame))?;
        slot.truncate(length);
        Ok(Tail {
            before,
            last_commit,
            slot,
        })
    }
}

/// What lies behind our position in a WAL that was restarted since.
pub(super) struct Tail {
    /// The commit frame before that, or our position.
    pub before: WalEnd,
    /// The last commit frame that chains.
    pub last_commit: WalEnd,
    /// What stands behind all frames that chain: at most one frame.
    pub slot: Vec<u8>,
}

/// What a copy came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Copied {
    /// Everything up to the target is durable.
    Done,
    /// The file does not lead there, at least not now; nothing is durable of the part that failed.
    Unproved,
    /// What the file holds breaks a rule.
    Broken(Break),
}

/// What a copy is of.
pub(super) struct Copy<'a> {
    /// From where.
    pub wal: &'a WalFile,
    /// Where to.
    pub spool: &'a Spool,
    /// Page size of the run.
    pub page_size: PageSize,
    /// What the commits are stamped with.
    pub clock: Timestamp,
    /// Whether they may be older than that.
    pub upper_bound: bool,
}

impl Copy<'_> {
    /// Copies everything behind `done` up to `target`, and moves `done` there.
    ///
    /// # Errors
    /// `Disk`.
    pub(super) fn run(&self, done: &mut Position, target: &WalEnd) -> Result<Copied> {
        let Some(start) = self.wal.chain(done, self.page_size, target)? else {
            return Ok(Copied::Unproved);
        };
        let frames = u64::from(target.frame - start.end.frame);
        let in_parts = frames * start.frame_bytes() as u64 > PART_BYTES;
        if in_parts {
            let mut chain = start;
            let reached = self
                .wal
                .follow(&mut chain, target.frame, |_, _, _| Ok(()))?;
            if !reached || chain.end != *target {
                return Ok(Copied::Unproved);
            }
        }
        let copied = self.stream(done, start, target, in_parts);
        match copied {
            Ok(Copied::Done) => {}
            // After a failed write there is nothing to cut: the spool is read back before it goes
            // on.
            Err(_) => {}
            Ok(_) => self.spool.cut()?,
        }
        if let Some(durable) = self
            .spool
            .position()
            .filter(|durable| durable.seq > done.seq)
        {
            *done = durable;
        }
        copied
    }

    fn stream(
        &self,
        done: &Position,
        start: Chain,
        target: &WalEnd,
        in_parts: bool,
    ) -> Result<Copied> {
        let mut open = OpenCommit::behind(done, start.end);
        let mut chain = start;
        let mut unsynced = 0;
        let reached = self
            .wal
            .follow(&mut chain, target.frame, |chain, frame, bytes| {
                if open.grew_without_frames {
                    return Ok(());
                }
                self.spool.append(bytes)?;
                unsynced += bytes.len() as u64;
                open.add(frame.pgno);
                let Some(pages) = frame.commit else {
                    return Ok(());
                };
                if !open.has_all_new_pages(pages, self.page_size) {
                    open.grew_without_frames = true;
                    return Ok(());
                }
                let (commit, sum) = open.close(chain.end, pages, self.clock, self.upper_bound);
                self.spool.commit(commit, sum, chain.order)?;
                if in_parts && unsynced >= PART_BYTES {
                    self.spool.sync()?;
                    unsynced = 0;
                }
                Ok(())
            })?;
        if open.grew_without_frames {
            return Ok(Copied::Broken(Break::GrewWithoutFrames));
        }
        if !reached || chain.end != *target || open.frames > 0 {
            return Ok(Copied::Unproved);
        }
        self.spool.sync()?;
        Ok(Copied::Done)
    }
}

/// Device and inode of a file.
fn id(meta: &std::fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// A commit of which not all frames were seen yet.
struct OpenCommit {
    seq: u64,
    time: Timestamp,
    /// Database size after the commit before, pages.
    pages_before: u32,
    /// One bit for each page above that.
    new_pages: Vec<u64>,
    frames: u32,
    /// The running checksum before its first frame.
    start: [u32; 2],
    grew_without_frames: bool,
}

impl OpenCommit {
    fn behind(done: &Position, start: WalEnd) -> Self {
        Self {
            seq: done.seq,
            time: done.time,
            pages_before: done.pages,
            new_pages: Vec::new(),
            frames: 0,
            start: start.checksum,
            grew_without_frames: false,
        }
    }

    fn add(&mut self, pgno: Pgno) {
        self.frames += 1;
        let Some(above) = (pgno.get() - 1).checked_sub(self.pages_before) else {
            return;
        };
        let (word, bit) = ((above / 64) as usize, above % 64);
        if self.new_pages.len() <= word {
            self.new_pages.resize(word + 1, 0);
        }
        self.new_pages[word] |= 1 << bit;
    }

    /// Whether each page that the commit adds to the database has a frame. All do, but for the
    /// lock-byte page.
    fn has_all_new_pages(&self, pages: u32, page_size: PageSize) -> bool {
        (self.pages_before..pages).all(|above| {
            let bit = above - self.pages_before;
            let word = self.new_pages.get((bit / 64) as usize);
            word.is_some_and(|word| word & 1 << (bit % 64) != 0)
                || above + 1 == page_size.lock_byte_page()
        })
    }

    fn close(
        &mut self,
        end: WalEnd,
        pages: u32,
        clock: Timestamp,
        upper_bound: bool,
    ) -> (SpooledCommit, [u32; 2]) {
        self.seq += 1;
        self.time = stamp(clock, self.time);
        let commit = SpooledCommit {
            seq: self.seq,
            time: self.time,
            upper_bound,
            pages,
            frames: self.frames,
            end,
        };
        let start = std::mem::replace(&mut self.start, end.checksum);
        self.frames = 0;
        self.pages_before = pages;
        self.new_pages.clear();
        (commit, start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::Txid;
    use std::cell::Cell;

    /// A WAL of three commits, and their ends.
    fn three_commits(path: &Path) -> [WalEnd; 3] {
        let db = rusqlite::Connection::open(path).unwrap();
        db.execute_batch(
            "PRAGMA page_size=512; PRAGMA journal_mode=WAL; CREATE TABLE t(x);
             INSERT INTO t VALUES(1); INSERT INTO t VALUES(2);",
        )
        .unwrap();
        let wal = std::fs::read(path.with_extension("db-wal")).unwrap();
        // Closing the connection would delete it.
        std::fs::write(path.with_extension("wal"), &wal).unwrap();
        let mut chain = Chain::of_header(&WalHeader::parse(&wal).unwrap());
        let mut ends = Vec::new();
        while let Ok(frame) = chain.advance(&wal[chain.offset() as usize..]) {
            ends.extend(frame.commit.map(|_| chain.end));
        }
        ends.try_into().unwrap()
    }

    fn ending(end: WalEnd) -> Ending {
        Ending {
            txid: Txid::FIRST,
            time: Timestamp::from_micros(0),
            upper_bound: false,
            pages: 1,
            end,
            page_size: PageSize::new(512).unwrap(),
            sqlite_version: 0,
        }
    }

    #[test]
    fn of_many_endings_the_first_in_the_wal_is_found_on_one_way_through_it() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two, three] = three_commits(&dir.path().join("app.db"));
        let wal = WalFile::open(&dir.path().join("app.wal")).unwrap();
        let of_another_wal = WalEnd {
            salts: [7, 7],
            ..one
        };
        let of_another_commit = WalEnd {
            checksum: [7, 7],
            ..two
        };
        let behind = WalEnd { frame: 99, ..three };
        for (ends, expect) in [
            (&[][..], None),
            (&[three, one], Some(three)),
            (&[one, three], Some(one)),
            (&[of_another_wal, behind, of_another_commit, two], Some(two)),
            (&[of_another_wal, of_another_commit], None),
        ] {
            let endings: Vec<Ending> = ends.iter().copied().map(ending).collect();
            let looks = Cell::new(0);
            let is_over = || {
                looks.set(looks.get() + 1);
                looks.get() > 1
            };
            let passed = wal.first_passed(&endings, &is_over).unwrap();
            assert_eq!(passed.map(|ending| ending.end), expect, "{ends:?}");
        }
        let mut larger = ending(one);
        larger.page_size = PageSize::new(1024).unwrap();
        assert_eq!(wal.first_passed(&[larger], &|| false).unwrap(), None);
        assert_eq!(wal.first_passed(&[ending(one)], &|| true).unwrap(), None);
    }
}
