//! The tree as FUSE asks for it: translate the call, answer, errno. No other file names FUSE types
//! but [`crate::mount::session`], which starts the session.
//!
//! What memory holds is answered on the FUSE thread; anything else moves its reply into a task. A
//! request that nobody answers leaves its caller in an uninterruptible sleep, so every task has a
//! deadline, and a reply that is dropped on the way (a panic, say) is EIO. No notification is ever
//! sent to the kernel: they deadlock against requests that are under way. What it may remember is
//! said by the time-to-live of each answer.

use crate::error::{Error, ErrorKind, Result};
use crate::format::db_header::served;
use crate::format::ids::Timestamp;
use crate::materialize::pages::ReadAhead;
use crate::mount::calls::Call;
use crate::mount::complaints::Complaints;
use crate::mount::inode::Inode;
use crate::mount::locked;
use crate::mount::view::{Answer, Attributes, Contents, Found, How, Kind, Line, View};
use bytes::Bytes;
use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyXattr, Request,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime;
use tokio::time::timeout;

/// Requests that the kernel may have under way in the background, mostly its readahead.
const MAX_BACKGROUND: u16 = 64;

const BLOCK_BYTES: u32 = 4096;
/// The unit of `st_blocks`, whatever the block size.
const STAT_BLOCK_BYTES: u64 = 512;
const NAME_BYTES_MAX: u32 = 255;

/// How the file system answers.
#[derive(Clone, Copy, Debug)]
pub struct FuseOptions {
    /// Until a read or an open gives up.
    pub read_deadline: Duration,
    /// Until a name gives up waiting for what is new.
    pub patience: Duration,
    /// The owner of everything.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
    /// The permissions that nothing has.
    pub umask: u16,
}

/// The file system; cheap to clone into tasks.
#[derive(Clone)]
pub struct MountedView {
    shared: Arc<Shared>,
}

struct Shared {
    view: Arc<View>,
    runtime: runtime::Handle,
    options: FuseOptions,
    handles: Mutex<HashMap<u64, Arc<OpenFile>>>,
    next_handle: AtomicU64,
    complaints: Mutex<Complaints>,
}

/// An open file.
struct OpenFile {
    inode: Inode,
    contents: Contents,
    /// As of when it was opened.
    attributes: Option<Attributes>,
    ahead: ReadAhead,
}

impl MountedView {
    /// A file system for `view`, whose tasks run on `runtime`.
    pub fn new(view: Arc<View>, runtime: runtime::Handle, options: FuseOptions) -> Self {
        Self {
            shared: Arc::new(Shared {
                view,
                runtime,
                options,
                handles: Mutex::default(),
                next_handle: AtomicU64::new(1),
                complaints: Mutex::default(),
            }),
        }
    }

    /// Asks the view and answers: at once from memory, else in a task that looks first.
    fn answer<T: Send + 'static>(
        &self,
        how: How,
        ask: impl Fn(&View, How) -> Result<Answer<T>> + Send + 'static,
        reply: impl FnOnce(&Shared, Result<T>) + Send + 'static,
    ) {
        let shared = &self.shared;
        match ask(&shared.view, how) {
            Ok(Answer::Now(answer)) => reply(shared, Ok(answer)),
            Ok(Answer::Behind(answer, subject)) => {
                reply(shared, Ok(answer));
                // It goes on without anyone waiting for it.
                drop(shared.view.look(subject));
            }
            Ok(Answer::After(subject)) => {
                let look = shared.view.look(subject);
                let shared = shared.clone();
                let task = async move {
                    // Failed or late, what is known is the answer, and the failure is logged by
                    // the look itself.
                    let _in_time = timeout(shared.options.patience, look).await;
                    let answer = match ask(&shared.view, How::Known) {
                        Ok(Answer::Now(answer) | Answer::Behind(answer, _)) => Ok(answer),
                        Ok(Answer::After(_)) => Err(Error::unavailable("nothing is known yet")),
                        Err(error) => Err(error),
                    };
                    reply(&shared, answer);
                };
                self.shared.runtime.spawn(task);
            }
            Err(error) => reply(shared, Err(error)),
        }
    }

    /// Counts a call and runs its handler on the FUSE thread. A panic in it must not end the
    /// thread, and with the threads the mount: the reply that it drops is EIO.
    fn guarded(&self, call: Call, handler: impl FnOnce()) {
        self.shared.view.count(call);
        // Looks and read-ahead start tasks.
        let _within = self.shared.runtime.enter();
        if catch_unwind(AssertUnwindSafe(handler)).is_err() {
            tracing::error!("a bug: {call:?} panicked");
        }
    }
}

impl Shared {
    fn open_file(&self, handle: FileHandle) -> Option<Arc<OpenFile>> {
        locked(&self.handles).get(&handle.0).cloned()
    }

    /// Replies to an open with a new handle.
    fn opened(&self, inode: Inode, contents: Contents, reply: ReplyOpen) {
        // ORDERING: only uniqueness matters; the map is locked.
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        // A moment never changes, so the kernel keeps its pages from one open to the next (a warm
        // query takes six times as long without). A text is another one with each open, and as
        // long as it is then, whatever `stat` said. Nothing is written, so nothing is flushed.
        let kept = match contents {
            Contents::Moment(_) => FopenFlags::FOPEN_KEEP_CACHE,
            Contents::Text(_) => FopenFlags::FOPEN_DIRECT_IO,
        };
        let attributes = self.view.attributes(inode).ok();
        let attributes = attributes.map(|attributes| Attributes {
            size: contents.size(),
            ..attributes
        });
        let file = Arc::new(OpenFile {
            inode,
            contents,
            attributes,
            ahead: ReadAhead::default(),
        });
        locked(&self.handles).insert(handle, file);
        reply.opened(FileHandle(handle), kept | FopenFlags::FOPEN_NOFLUSH);
    }

    fn attr(&self, attributes: &Attributes) -> FileAttr {
        let time = system_time(attributes.time);
        let (kind, perm) = match attributes.kind {
            Kind::Directory => (FileType::Directory, 0o555),
            Kind::Link => (FileType::Symlink, 0o777),
            Kind::File | Kind::Text => (FileType::RegularFile, 0o444),
        };
        FileAttr {
            ino: INodeNo(attributes.inode.0),
            size: attributes.size,
            // All of it, or cp and tar would take what is not here yet for holes.
            blocks: attributes.size.div_ceil(STAT_BLOCK_BYTES),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: perm & !self.options.umask,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: self.options.uid,
            gid: self.options.gid,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }

    /// Logs a failure unless the same `what` failed so lately; `doing` may differ from one try to
    /// the next.
    fn complain(&self, doing: &str, what: &str, error: &Error) {
        let failed = format!("{what}: {error}");
        if locked(&self.complaints).is_news(&failed, Instant::now()) {
            tracing::error!("cannot {doing} {failed}");
        }
    }

    /// What the caller sees of an error about a name; damage is logged too.
    fn name_errno(&self, error: &Error) -> Errno {
        if error.kind() == ErrorKind::Corrupt {
            self.complain("tell", "what a name means", error);
        }
        errno(error, Of::Name)
    }

    fn reply_entry(&self, found: Result<Found>, reply: ReplyEntry) {
        match found {
            Ok(Found::Entry(entry)) => reply.entry_with_ttls(
                &entry.attributes.ttl,
                &entry.ttl,
                &self.attr(&entry.attributes),
                Generation(0),
            ),
            // ENOENT would not be remembered; an entry without an inode is.
            Ok(Found::Nothing(ttl)) => {
                let nothing = Attributes {
                    inode: Inode(0),
                    kind: Kind::File,
                    size: 0,
                    time: Timestamp::from_micros(0),
                    ttl,
                };
                reply.entry(&ttl, &self.attr(&nothing), Generation(0));
            }
            Err(error) => reply.error(self.name_errno(&error)),
        }
    }
}

impl OpenFile {
    /// Bytes that are in memory, as they are served.
    fn read_cached(&self, offset: u64, length: usize) -> Option<Bytes> {
        match &self.contents {
            Contents::Moment(database) => {
                let bytes = database.read_cached(offset, length, &self.ahead)?;
                Some(served(offset, bytes))
            }
            Contents::Text(text) => Some(text.read(offset, length)),
        }
    }

    async fn read(&self, offset: u64, length: usize, deadline: Duration) -> Result<Bytes> {
        match &self.contents {
            Contents::Moment(database) => {
                let read = database.read(offset, length, &self.ahead);
                Ok(served(offset, within(deadline, read).await?))
            }
            Contents::Text(text) => Ok(text.read(offset, length)),
        }
    }

    /// Where an offset lies, for messages.
    fn part(&self, offset: u64) -> String {
        match &self.contents {
            Contents::Moment(database) => {
                let page = offset / u64::from(database.page_size().max(1)) + 1;
                format!("page {page}")
            }
            Contents::Text(_) => format!("byte {offset}"),
        }
    }
}

/// A result, or `Unavailable` when it takes too long.
async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    match timeout(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::unavailable(format!(
            "no answer from the store within {deadline:?}"
        ))),
    }
}

/// What the caller of a file operation sees of an error. Never ENOSYS: the kernel takes that for
/// "this mount cannot", for ever. A store that does not answer is not EIO, which SQLite reports as
/// "database disk image is malformed" (it does so for EIO, ERANGE and ENXIO on a read); any other
/// errno is a "disk I/O error", and so is what retention deleted under an open file. Damage is EIO,
/// and SQLite's words are right.
fn errno(error: &Error, of: Of) -> Errno {
    match (error.kind(), of) {
        (ErrorKind::Unavailable, _) => Errno::ETIMEDOUT,
        (ErrorKind::NotFound, Of::Name) => Errno::ENOENT,
        (ErrorKind::Invalid, Of::Name) => Errno::EINVAL,
        (ErrorKind::NotFound, Of::Bytes) => Errno::ESTALE,
        (ErrorKind::Invalid, Of::Bytes)
        | (ErrorKind::Corrupt | ErrorKind::Disk | ErrorKind::Conflict, _) => Errno::EIO,
        (ErrorKind::Refused, _) => Errno::EACCES,
    }
}

/// What a call asks for.
#[derive(Clone, Copy)]
enum Of {
    Name,
    Bytes,
}

fn system_time(time: Timestamp) -> SystemTime {
    let micros = Duration::from_micros(time.micros().unsigned_abs());
    if time.micros() < 0 {
        SystemTime::UNIX_EPOCH - micros
    } else {
        SystemTime::UNIX_EPOCH + micros
    }
}

fn file_type(line: &Line) -> FileType {
    match line.entry.attributes.kind {
        Kind::Directory => FileType::Directory,
        Kind::Link => FileType::Symlink,
        Kind::File | Kind::Text => FileType::RegularFile,
    }
}

/// A directory is listed anew from its start, and gone on with from what is known.
fn freshness(offset: u64) -> How {
    if offset == 0 { How::Fresh } else { How::Known }
}

/// Who asks with no room wants to know how much it takes.
fn reply_extended(value: &[u8], room: u32, reply: ReplyXattr) {
    let size = u32::try_from(value.len()).expect("names and values of some bytes");
    match room {
        0 => reply.size(size),
        room if room < size => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

impl Filesystem for MountedView {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Locks stay with the kernel (no POSIX_LOCKS): nobody can write, and each would be a round
        // trip. Readahead stays at its default: mmap readers pay for larger ones many times over.
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_READ;
        let offered = wanted & config.capabilities();
        config
            .add_capabilities(offered)
            .map_err(|_| io::Error::other("the kernel refuses what it offered"))?;
        config
            .set_max_background(MAX_BACKGROUND)
            .map_err(|_| io::Error::other("64 background requests are refused"))?;
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.guarded(Call::Lookup, || {
            let (parent, name) = (Inode(parent.0), name.to_owned());
            self.answer(
                How::Fresh,
                move |view, how| view.lookup(parent, &name, how),
                |shared, found| shared.reply_entry(found, reply),
            );
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.guarded(Call::Attributes, || {
            // What is open is as it was then, whatever became of it.
            let open = fh.and_then(|fh| self.shared.open_file(fh));
            let attributes = match open.and_then(|file| file.attributes) {
                Some(attributes) => Ok(attributes),
                None => self.shared.view.attributes(Inode(ino.0)),
            };
            match attributes {
                Ok(attributes) => reply.attr(&attributes.ttl, &self.shared.attr(&attributes)),
                Err(error) => reply.error(self.shared.name_errno(&error)),
            }
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.guarded(Call::Lookup, || {
            let inode = Inode(ino.0);
            self.answer(
                How::Fresh,
                move |view, how| view.link_target(inode, how),
                |shared, target| match target {
                    Ok(target) => reply.data(target.as_bytes()),
                    Err(error) => reply.error(shared.name_errno(&error)),
                },
            );
        });
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.guarded(Call::Open, || {
            let inode = Inode(ino.0);
            if let Some(contents) = self.shared.view.opened(inode) {
                return self.shared.opened(inode, contents, reply);
            }
            let shared = self.shared.clone();
            self.shared.runtime.spawn(async move {
                let opened = within(shared.options.read_deadline, shared.view.open(inode)).await;
                match opened {
                    Ok(contents) => shared.opened(inode, contents, reply),
                    Err(error) => {
                        let moment = shared.view.describe(inode);
                        shared.complain("open", &moment, &error);
                        reply.error(errno(&error, Of::Name));
                    }
                }
            });
        });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.guarded(Call::Read, || {
            let Some(file) = self.shared.open_file(fh) else {
                return reply.error(Errno::EBADF);
            };
            let length = size as usize;
            if let Some(bytes) = file.read_cached(offset, length) {
                return reply.data(&bytes);
            }
            self.shared.view.count(Call::Miss);
            let shared = self.shared.clone();
            self.shared.runtime.spawn(async move {
                let deadline = shared.options.read_deadline;
                match file.read(offset, length, deadline).await {
                    Ok(bytes) => reply.data(&bytes),
                    Err(error) => {
                        let moment = shared.view.describe(file.inode);
                        let doing = format!("read {} of", file.part(offset));
                        shared.complain(&doing, &moment, &error);
                        reply.error(errno(&error, Of::Bytes));
                    }
                }
            });
        });
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.guarded(Call::Release, || {
            let file = locked(&self.shared.handles).remove(&fh.0);
            reply.ok();
            // After the reply: the last handle of a moment gives back what the moment holds.
            drop(file);
        });
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.guarded(Call::List, || {
            let inode = Inode(ino.0);
            self.answer(
                freshness(offset),
                move |view, how| view.list(inode, offset, how),
                move |shared, lines| match lines {
                    Ok(lines) => {
                        for line in &lines {
                            let inode = INodeNo(line.entry.attributes.inode.0);
                            if reply.add(inode, line.cookie, file_type(line), &line.name) {
                                break;
                            }
                        }
                        reply.ok();
                    }
                    Err(error) => reply.error(shared.name_errno(&error)),
                },
            );
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.guarded(Call::List, || {
            let inode = Inode(ino.0);
            self.answer(
                freshness(offset),
                move |view, how| view.list(inode, offset, how),
                move |shared, lines| match lines {
                    Ok(lines) => {
                        for line in &lines {
                            let attributes = &line.entry.attributes;
                            // fuser takes one for the name and the attributes.
                            let ttl = line.entry.ttl.min(attributes.ttl);
                            if reply.add(
                                INodeNo(attributes.inode.0),
                                line.cookie,
                                &line.name,
                                &ttl,
                                &shared.attr(attributes),
                                Generation(0),
                            ) {
                                break;
                            }
                        }
                        reply.ok();
                    }
                    Err(error) => reply.error(shared.name_errno(&error)),
                },
            );
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.guarded(Call::Attributes, || {
            let found = self.shared.view.extended(Inode(ino.0)).map(|all| {
                let mut all = all.into_iter();
                let named = all.find(|(other, _)| OsStr::new(other) == name);
                named.map(|(_, value)| value)
            });
            match found {
                Ok(Some(value)) => reply_extended(value.as_bytes(), size, reply),
                Ok(None) => reply.error(Errno::NO_XATTR),
                Err(error) => reply.error(self.shared.name_errno(&error)),
            }
        });
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.guarded(Call::Attributes, || {
            match self.shared.view.extended(Inode(ino.0)) {
                Ok(all) => {
                    let names = all.into_iter().map(|(name, _)| name + "\0");
                    reply_extended(names.collect::<String>().as_bytes(), size, reply);
                }
                Err(error) => reply.error(self.shared.name_errno(&error)),
            }
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        // Sizes of moments add up to nothing: they share most of their pages.
        reply.statfs(0, 0, 0, 0, 0, BLOCK_BYTES, NAME_BYTES_MAX, BLOCK_BYTES);
    }

    // What follows is not here and never will be while the mount lives, which is what the kernel
    // takes ENOSYS for: it asks once. In words, or fuser would log a warning for each.

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    /// Without it the kernel finds data everywhere and no holes, as it should.
    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
