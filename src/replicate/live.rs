//! The capture of a database that is open: carries out what [`crate::replicate::decide`] says.
//!
//! Owns the connections, the pin, and the position. Invariants: a read transaction is open at every
//! moment; a pin is closed only when everything up to the mxFrame read after the next one opened is
//! durable in the spool; the application is never waited for but for 10 ms with the write lock.

mod pin;
mod quiet;
mod restart;
mod resume;
mod run;
mod snapshots;

use crate::config::{CaptureSettings, Environment};
use crate::error::{Error, ErrorKind, Result};
use crate::format::db_header::{DB_HEADER_BYTES, DbHeader};
use crate::format::ids::{PageSize, Timestamp, WalEnd};
use crate::replicate::connection::{Connection, from_sqlite, is_busy};
use crate::replicate::copy::WalFile;
use crate::replicate::decide::{
    self, Break, Files, Limits, Pin, Rest, Seen, Step, TICK, Timing, Tries, TryEnd, Uncopied,
};
use crate::replicate::locks::ShmLocks;
use crate::replicate::observe::{FileId, FileState, Index, settled_index};
use crate::replicate::pages::PinState;
use crate::replicate::shown::Shown;
use crate::replicate::spool::{Position, Spool};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The wal-index settles within microseconds unless a writer died over it.
const SETTLE: Duration = Duration::from_millis(5);
/// How long a lock of the application, a recovery say, may keep us from a read transaction.
const OPEN: Duration = Duration::from_secs(5);
/// How long the write lock may be waited for, and held.
const LOCK: Duration = Duration::from_millis(10);
/// How often a failed spool is read back.
const READ_BACK: Duration = Duration::from_secs(1);

/// Why the capture cannot go on with what it has open.
#[derive(Debug)]
pub(super) enum Halt {
    /// Continuity is lost, or given up: begin anew.
    Break(Break),
    /// Something failed.
    Error(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// What a turn came to, if it could not go on.
#[derive(Debug)]
pub(super) enum Leave {
    /// Close all, open again, begin a new run.
    Reopen(Break),
    /// Close all until the spool has room, then begin a new run.
    LetGo(Break),
    /// Close all, try again later.
    Failed(Error),
}

/// What all captures of a database share, however often it is opened.
#[derive(Clone)]
pub(super) struct Context {
    /// What the user said.
    pub settings: Arc<CaptureSettings>,
    /// The database, symbolic links resolved.
    pub database: PathBuf,
    /// Where commits go.
    pub spool: Arc<Spool>,
    /// Time and randomness.
    pub environment: Environment,
    /// How long to wait for what.
    pub timing: Timing,
    /// What is seen from outside.
    pub shown: Arc<Shown>,
}

impl Context {
    fn now(&self) -> Timestamp {
        self.environment.now()
    }

    fn sql(&self, error: &rusqlite::Error) -> Error {
        from_sqlite(&self.database, error)
    }
}

/// An open database.
pub(super) struct Live {
    context: Context,
    wal: Arc<WalFile>,
    file: FileId,
    /// Always in a read transaction.
    pin: Connection,
    kind: Pin,
    /// Our mark is at least this frame, unless all marks are taken.
    mark: u32,
    /// When the pin was opened.
    pinned: Instant,
    /// Never in a transaction between steps.
    spare: Option<Connection>,
    /// Holds what is held without a transaction, and the write lock.
    locker: Option<Connection>,
    page_size: PageSize,
    done: Position,
    /// Counts how often everything was captured that an index showed.
    times_caught_up: u64,
    last_commit: Instant,
    last_event: Instant,
    rest: Option<FileState>,
    is_noted: bool,
    tries: u32,
    last_try: (TryEnd, Instant),
    /// nBackfill behind it.
    backfilled: u32,
    last_lock: Option<Instant>,
    last_empty: Option<Instant>,
    last_read_back: Option<Instant>,
    reported_reader: bool,
    snapshots: Vec<Watched>,
    locks: Option<ShmLocks>,
    /// Since when a checkpointer has waited, at which state of the index.
    waiting: Option<(Instant, Index)>,
    is_stopping: bool,
}

/// A snapshot pin of the run, exact or let go.
struct Watched {
    pin: Weak<PinState>,
    /// Where the WAL stood when it was opened.
    at: WalEnd,
}

/// Opens a connection to a database in WAL mode, with the WAL and its index open too.
fn open_reader(context: &Context) -> Result<Connection> {
    let connection = Connection::open(&context.database)?;
    begin(context, &connection)?;
    connection.end().map_err(|e| context.sql(&e))?;
    Ok(connection)
}

/// Opens a read transaction; waits a while for a lock, such as that of a recovery.
fn begin(context: &Context, connection: &Connection) -> Result<()> {
    let start = Instant::now();
    loop {
        match connection.begin_read() {
            Ok(()) => return Ok(()),
            Err(e) if is_busy(&e) && start.elapsed() < OPEN => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(context.sql(&e)),
        }
    }
}

/// The wal-index, settled. If a writer died over it, SQLite mends it as we open a transaction on
/// `other`.
fn index(context: &Context, connection: &Connection) -> Result<Index> {
    let start = Instant::now();
    loop {
        let settled = settled_index(connection, SETTLE).map_err(|e| context.sql(&e))?;
        if let Some(index) = settled {
            return Ok(index);
        }
        if start.elapsed() > OPEN {
            return Err(Error::unavailable(format!(
                "the wal-index of {} does not settle",
                context.database.display()
            )));
        }
        open_reader(context)?;
    }
}

impl Live {
    /// Opens the database, pins it, and finds out whether the capture goes on where it was.
    /// `anew`: why it does not, if that is known already.
    ///
    /// # Errors
    /// `Conflict` if another daemon captures this database; else what keeps it from being captured.
    pub(super) fn attach(context: Context, anew: Option<Break>) -> Result<Self> {
        let pin = Connection::open(&context.database)?;
        if !is_wal(&context, &pin)? {
            make_wal(&context, &Connection::open(&context.database)?)?;
        }
        begin(&context, &pin)?;
        let wal = Arc::new(WalFile::open(&beside(&context.database, "-wal"))?);
        let file = file_state(&context.database)?;
        warn_of_wal_reset_bug(&context, &pin);
        let seen = index(&context, &pin)?;
        let locks = ShmLocks::find(&beside(&context.database, "-shm"), wal.descriptor())
            .inspect_err(|e| tracing::warn!("{e}; a waiting checkpointer will not be noticed"))
            .ok();
        let now = Instant::now();
        // Before the first run there is no position; the run gives one.
        let done = context.spool.position().unwrap_or(Position {
            run: 0,
            seq: 0,
            time: context.now(),
            pages: 0,
            end: seen.end,
            order: seen.order,
        });
        let page_size = match context.spool.runs().pop() {
            Some(run) => run.page_size,
            None => size_of_file(&context, &pin)?.0,
        };
        let mut live = Self {
            wal,
            file: file.id(),
            pin,
            kind: Pin::Fresh,
            mark: seen.end.frame,
            pinned: now,
            spare: None,
            locker: None,
            page_size,
            done,
            times_caught_up: 0,
            last_commit: now,
            last_event: now,
            rest: None,
            is_noted: false,
            tries: 0,
            last_try: (TryEnd::Done, now),
            backfilled: 0,
            last_lock: None,
            last_empty: None,
            last_read_back: None,
            reported_reader: false,
            snapshots: Vec::new(),
            locks,
            waiting: None,
            is_stopping: false,
            context,
        };
        live.resume(&seen, &file, anew)?;
        Ok(live)
    }

    /// Does what is to be done now. Returns how long to wait then.
    pub(super) fn turn(&mut self) -> Result<Duration, Leave> {
        loop {
            let seen = self.look().map_err(Leave::Failed)?;
            let must_tick = self.watch_snapshots(&seen).map_err(Leave::Failed)?;
            let limits = self.limits(&seen);
            let step = decide::next_step(&seen, &self.done.end, self.page_size, &limits);
            tracing::trace!(
                "{:?} {:?} at {:?} -> {step:?}",
                seen.pin,
                seen.index,
                self.done
            );
            let before = self.done.seq;
            let done = match step {
                Step::Wait(limit) if must_tick => return Ok(limit.min(TICK)),
                Step::Wait(limit) => {
                    self.close_what_idles(limit);
                    return Ok(limit);
                }
                Step::Reopen(why) => return Err(Leave::Reopen(why)),
                Step::LetGo(why) => return Err(Leave::LetGo(why)),
                step => self.act(step, &seen),
            };
            match done {
                Ok(()) => {}
                Err(Halt::Break(why @ Break::SpoolFull(_))) => return Err(Leave::LetGo(why)),
                Err(Halt::Break(why)) => self.start_run(&why).map_err(Leave::Failed)?,
                // The pin stays while the spool fails.
                Err(Halt::Error(e)) if self.context.spool.failure().is_some() => {
                    tracing::warn!("{}: {e}", self.context.database.display());
                    return Ok(READ_BACK);
                }
                Err(Halt::Error(e)) => return Err(Leave::Failed(e)),
            }
            // Not on lock 0, which is to be left at the first new frame.
            if self.done.seq > before && self.kind != Pin::Lock0 {
                return Ok(TICK);
            }
            if self.context.spool.failure().is_some() {
                return Ok(READ_BACK);
            }
        }
    }

    fn act(&mut self, step: Step, seen: &Seen) -> Result<(), Halt> {
        match step {
            Step::Copy => self.copy_to(seen.index.end),
            Step::HandOver => self.hand_over(),
            Step::PrepareRestart { with_lock } => self.prepare_restart(with_lock),
            Step::StepAside => self.step_aside(),
            Step::EmptyWal => self.empty_wal(),
            Step::RememberFile => self.remember_file(),
            Step::NoteRest => self.note_rest(&seen.index),
            Step::ReadBackSpool => self.read_back_spool(),
            Step::StartRun(why) => Ok(self.start_run(&why)?),
            Step::SplitRun(why) => self.split_run(&why),
            Step::Wait(_) | Step::Reopen(_) | Step::LetGo(_) => {
                unreachable!("the turn ends with these")
            }
        }
    }

    fn limits(&self, seen: &Seen) -> Limits {
        let settings = &self.context.settings;
        // Asks the file system: only where there is something to find room for.
        let needs_room = seen.index.end != self.done.end;
        Limits {
            wal_bytes: settings.wal_size,
            writer_lock: settings.writer_lock,
            budget_bytes: match needs_room {
                true => self.context.spool.room(),
                false => u64::MAX,
            },
            monitor: settings.monitor_interval,
            timing: self.context.timing,
        }
    }

    fn look(&mut self) -> Result<Seen> {
        self.context.shown.begin();
        let index = self.index()?;
        let waited_for = self.waited_for(&index);
        // By the path that the user gave: a symbolic link may lead elsewhere by now.
        let file = FileState::of(&self.context.settings.database)?;
        let wal_bytes = self.wal.bytes_in_place()?;
        self.context.shown.set_wal_bytes(wal_bytes);
        let files = match &file {
            None => Files::Gone,
            Some(file) if file.id() != self.file => Files::Replaced,
            Some(_) if wal_bytes.is_none() => Files::WalReplaced,
            Some(_) => Files::Same,
        };
        let held = decide::uncopied_bytes(&index.end, &self.done.end, self.page_size);
        self.context.spool.hold(held);
        let now = self.context.now();
        let rest = match (&self.rest, &file) {
            (Some(known), Some(file)) if !known.has_same_content(file) => Rest::Changed,
            (Some(_), _) if self.is_noted => Rest::Noted,
            (Some(known), _) => Rest::Unchanged(known.age(now.micros())),
            (None, _) => Rest::No,
        };
        let since = |at: Option<Instant>| at.map_or(Duration::MAX, |at| at.elapsed());
        let hurry = |since: Duration| {
            if self.is_stopping {
                Duration::MAX
            } else {
                since
            }
        };
        Ok(Seen {
            index,
            pin: self.kind,
            files,
            rest,
            mark: self.mark,
            pin_age: self.pinned.elapsed(),
            waited_for,
            idle: hurry(self.last_commit.elapsed()),
            since_event: self.last_event.elapsed(),
            wal_is_empty: wal_bytes == Some(0),
            tries: Tries {
                failed: self.tries,
                last: self.last_try.0,
                since_last: self.last_try.1.elapsed(),
                since_lock: since(self.last_lock),
            },
            since_empty: since(self.last_empty),
            spool_fails: self.context.spool.failure().is_some(),
            clock_stepped_back: decide::clock_stepped_back(now, self.done.time),
            spool_bytes: self.context.spool.bytes(),
        })
    }

    /// How long a checkpointer has waited while the index stood still.
    fn waited_for(&mut self, index: &Index) -> Option<Duration> {
        let locks = self.locks.as_ref();
        let is_waiting = locks.is_some_and(ShmLocks::is_checkpointer_waiting);
        let since = match self.waiting {
            Some((since, at)) if at == *index => since,
            _ => Instant::now(),
        };
        self.waiting = is_waiting.then_some((since, *index));
        is_waiting.then(|| since.elapsed())
    }

    fn read_back_spool(&mut self) -> Result<(), Halt> {
        let is_due = self
            .last_read_back
            .is_none_or(|last| last.elapsed() >= READ_BACK);
        if !is_due {
            return Ok(());
        }
        self.last_read_back = Some(Instant::now());
        self.context.spool.read_back()?;
        let back = self.context.spool.position();
        if back.map(|back| (back.run, back.seq)) != Some((self.done.run, self.done.seq)) {
            return Err(Halt::Break(Break::SpoolLost));
        }
        Ok(())
    }

    /// Captures everything that is committed by now; the last commit.
    ///
    /// # Errors
    /// What keeps it from being captured.
    pub(super) fn catch_up(&mut self) -> Result<u64, Leave> {
        let now = self.index().map_err(Leave::Failed)?;
        if decide::uncopied(&now.end, &self.done.end, self.kind) != Uncopied::Nothing {
            // What is copied, or begun with, from here on is by an index read later than this one.
            let before = self.times_caught_up;
            while self.times_caught_up == before {
                self.turn()?;
                if let Some(sentence) = self.context.spool.failure() {
                    return Err(Leave::Failed(Error::new(ErrorKind::Disk, sentence)));
                }
            }
        }
        Ok(self.done.seq)
    }

    /// Something happened to the files.
    pub(super) fn note_event(&mut self) {
        self.last_event = Instant::now();
    }

    /// The files whose changes wake us.
    pub(super) fn watched_files(&self) -> [&Path; 2] {
        [self.wal.path(), &self.context.database]
    }

    /// Goes to rest as fast as it can. True once it is there, with the file noted, or if it cannot.
    pub(super) fn is_stopped(&mut self, since: Instant) -> bool {
        if !self.is_stopping {
            self.is_stopping = true;
            // A snapshot's read transaction would keep the WAL from being emptied.
            self.end_snapshots();
        }
        // Somebody writes on: the WAL cannot be left empty.
        let is_hopeless = self.kind != Pin::Lock0 && since.elapsed() > Duration::from_secs(1);
        self.rest.is_some() && self.is_noted || is_hopeless
    }

    fn close_what_idles(&mut self, limit: Duration) {
        if self.kind == Pin::Lock0 && limit > TICK {
            self.spare = None;
            self.locker = None;
            self.context.spool.rest();
        }
    }

    fn take_spare(&mut self) -> Result<Connection> {
        match self.spare.take() {
            Some(spare) => Ok(spare),
            None => open_reader(&self.context),
        }
    }

    fn take_locker(&mut self) -> Result<Connection> {
        match self.locker.take() {
            Some(locker) => Ok(locker),
            None => open_reader(&self.context),
        }
    }

    fn index(&self) -> Result<Index> {
        index(&self.context, &self.pin)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.end_snapshots();
        // What is not copied is let go.
        self.context.spool.hold(0);
        self.context.shown.set_wal_bytes(None);
    }
}

/// Takes the write lock, trying for 10 ms at most.
fn spin_for_lock(locker: &Connection) -> rusqlite::Result<bool> {
    let start = Instant::now();
    loop {
        if locker.begin_write()? {
            return Ok(true);
        }
        if start.elapsed() > LOCK {
            return Ok(false);
        }
        std::hint::spin_loop();
    }
}

/// Whether the database is in WAL mode, without parsing its schema.
fn is_wal(context: &Context, connection: &Connection) -> Result<bool> {
    let mut bytes = [0; DB_HEADER_BYTES];
    // Within a transaction the file is what it says; what a writer left behind is rolled back.
    let read = connection.begin_read().and_then(|()| {
        connection.read_file(&mut bytes, 0)?;
        connection.end()
    });
    read.map_err(|e| context.sql(&e))?;
    Ok(DbHeader::parse(&bytes).is_ok_and(|header| header.is_wal))
}

/// Sees to it that the database is in WAL mode. What this connection learns of the schema stays in
/// memory: not one to keep.
fn make_wal(context: &Context, connection: &Connection) -> Result<()> {
    let path = context.database.display();
    let mode = connection.journal_mode().map_err(|e| context.sql(&e))?;
    if mode == "wal" {
        return Ok(());
    }
    let mode = connection.switch_to_wal().map_err(|e| {
        context.sql(&e).context(format!(
            "{path} is in journal mode {mode} and cannot be switched to WAL"
        ))
    })?;
    if mode != "wal" {
        return Err(Error::invalid(format!(
            "{path} stays in journal mode {mode}; only a database in WAL mode can be replicated"
        )));
    }
    tracing::info!("{path}: switched to WAL mode");
    Ok(())
}

/// Page size and size in pages by the header of the database file: right while its WAL is empty,
/// and the page size always.
fn size_of_file(context: &Context, connection: &Connection) -> Result<(PageSize, u32)> {
    let mut bytes = [0; DB_HEADER_BYTES];
    connection
        .read_file(&mut bytes, 0)
        .map_err(|e| context.sql(&e))?;
    let header = DbHeader::parse(&bytes)
        .map_err(|e| e.context(format!("read {}", context.database.display())))?;
    let by_size = file_state(&context.database)?.size() / header.page_size.bytes() as u64;
    let pages = header
        .pages
        .unwrap_or(by_size.min(u64::from(u32::MAX)) as u32);
    Ok((header.page_size, pages))
}

fn warn_of_wal_reset_bug(context: &Context, connection: &Connection) {
    let mut bytes = [0; DB_HEADER_BYTES];
    let header = connection
        .read_file(&mut bytes, 0)
        .ok()
        .and_then(|()| DbHeader::parse(&bytes).ok());
    if let Some(header) = header.filter(DbHeader::has_wal_reset_bug) {
        tracing::warn!(
            "{}: last written by SQLite {}, which can lose commits when two checkpoints race \
             (the WAL-reset bug); use 3.51.3 or later",
            context.database.display(),
            header.sqlite_version_text()
        );
    }
}

fn file_state(path: &Path) -> Result<FileState> {
    FileState::of(path)?
        .ok_or_else(|| Error::not_found(format!("there is no database {}", path.display())))
}

/// SQLite's name for a file of a database.
fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_os_string();
    path.push(suffix);
    path.into()
}
