//! The capture of a database that is open: carries out what [`crate::replicate::decide`] says.
//!
//! Owns the connections, the pin, and the position. Invariants: a read transaction is open at every
//! moment; a pin is closed only when everything up to the mxFrame read after the next one opened is
//! durable in the spool; the application is never waited for but for 10 ms with the write lock.

use crate::config::{CaptureSettings, Clock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::db_header::{DB_HEADER_BYTES, DbHeader};
use crate::format::ids::{PageSize, Timestamp, WalEnd};
use crate::format::wal::WordOrder;
use crate::replicate::connection::{Checkpoint, CheckpointMode, Connection, from_sqlite, is_busy};
use crate::replicate::copy::{Copied, Copy, WalFile};
use crate::replicate::decide::{
    self, Break, Files, Found, Limits, Pin, Rest, Resume, Seen, Step, TICK, Timing, Tries, TryEnd,
    Uncopied,
};
use crate::replicate::locks::ShmLocks;
use crate::replicate::observe::{
    FileId, FileState, Index, boot_id, other_read_lock, settled_index,
};
use crate::replicate::pages::{PinState, PinnedAt, SnapshotPin, View};
use crate::replicate::rest::RestNote;
use crate::replicate::salvage::{self, LastCommit};
use crate::replicate::spool::{Position, RunStart, Spool};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The wal-index settles within microseconds unless a writer died over it.
const SETTLE: Duration = Duration::from_millis(5);
/// How long a lock of the application, a recovery say, may keep us from a read transaction.
const OPEN: Duration = Duration::from_secs(5);
/// How long frames may fail to chain on lock 0, where a writer may be restarting the WAL.
const CHAIN: Duration = Duration::from_secs(1);
/// How long the write lock may be waited for, and held.
const LOCK: Duration = Duration::from_millis(10);
/// How long an exactly known commit is tried for without the write lock.
const EXACT: Duration = Duration::from_secs(1);
/// How long we stay aside for a checkpointer before we look again whether it still waits.
const ASIDE: Duration = Duration::from_millis(30);
/// How often one try to restart the WAL looks for the moment between two commits.
const ROUNDS: u32 = 2;
/// How long somebody else's checkpoint is watched for its end.
const WATCH: Duration = Duration::from_millis(2);
/// How long it may take to backfill most of the WAL before the write lock is taken.
const APPROACH: Duration = Duration::from_millis(250);
/// What may be left to backfill under the write lock, frames.
const NEAR_FRAMES: u32 = 500;
/// How often a failed spool is read back.
const READ_BACK: Duration = Duration::from_secs(1);
/// A spool takes a tenth of the free space, and no more than this unless told, bytes.
const BUDGET_MAX: u64 = 10 << 30;

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
    /// What time it is.
    pub clock: Clock,
    /// How long to wait for what.
    pub timing: Timing,
}

impl Context {
    /// Bytes that spool and held-back WAL may take.
    pub(super) fn budget(&self) -> u64 {
        self.settings.max_spool_size.unwrap_or_else(|| {
            let dir = self.spool.dir();
            match nix::sys::statvfs::statvfs(dir) {
                Ok(stat) => {
                    let free = stat.blocks_available() * stat.fragment_size();
                    ((free + self.spool.bytes()) / 10).min(BUDGET_MAX)
                }
                Err(errno) => {
                    tracing::warn!("free space of {}: {errno}", dir.display());
                    BUDGET_MAX
                }
            }
        })
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
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

/// A snapshot pin that is exact as far as we know.
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
        make_wal(&context, &pin)?;
        begin(&context, &pin)?;
        let wal = Arc::new(WalFile::open(&beside(&context.database, "-wal"))?);
        let file = file_state(&context.database)?;
        warn_of_wal_reset_bug(&context, &pin);
        let seen = index(&context, &pin)?;
        let locks = ShmLocks::find(&beside(&context.database, "-shm"))
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

    fn resume(&mut self, seen: &Index, file: &FileState, anew: Option<Break>) -> Result<()> {
        let lost = match anew {
            _ if self.done.run == 0 => Some(Break::First),
            Some(why) => Some(why),
            None => self.prove(seen, file)?,
        };
        match lost {
            Some(why) => self.start_run(&why),
            None => {
                tracing::info!(
                    "{}: the capture goes on behind commit {}",
                    self.context.database.display(),
                    self.done.seq
                );
                Ok(())
            }
        }
    }

    /// Rule 3, after a downtime: why continuity cannot be proved, or `None` if it is.
    fn prove(&mut self, seen: &Index, file: &FileState) -> Result<Option<Break>> {
        let size = size_of_file(&self.context, &self.pin)?.0;
        if size != self.page_size {
            return Ok(Some(Break::PageSize(self.page_size, size)));
        }
        let note = RestNote::load(self.context.spool.dir())?.filter(|note| {
            (note.run, note.seq) == (self.done.run, self.done.seq)
                && boot_id() == Some(note.boot.clone())
        });
        let found = Found {
            index: *seen,
            header: self.wal.header()?,
            is_unchanged: note.map(|note| note.file == *file),
        };
        match decide::resume(&found, &self.done.end) {
            Resume::Lost(why) => Ok(Some(why)),
            Resume::FromFirstFrame => {
                self.done.end = WalEnd {
                    salts: seen.end.salts,
                    ..WalEnd::default()
                };
                if seen.end.frame == 0 {
                    self.kind = Pin::Unknown;
                }
                Ok(None)
            }
            Resume::VerifyChain => {
                let leads = self.wal.leads_to(self.page_size, &self.done.end)?;
                Ok((!leads).then_some(Break::RewrittenWhileDown))
            }
            Resume::FollowTail => self.salvage(&found),
        }
    }

    /// Copies what the old WAL still holds behind our position, if that is provably all of it.
    fn salvage(&mut self, found: &Found) -> Result<Option<Break>> {
        let tail = self.wal.tail(&self.done, self.page_size)?;
        let (old, new) = (self.done.end.salts, found.index.end.salts);
        if !decide::tail_is_whole(&tail.slot, self.page_size, old, new) {
            return Ok(Some(Break::RestartedWhileDown));
        }
        let between = (&tail.before, &tail.last_commit);
        let judged =
            salvage::last_commit(&self.wal, &self.pin, &found.index, self.page_size, between)?;
        let end = match judged {
            LastCommit::Counts => tail.last_commit,
            LastCommit::NeverWas => tail.before,
            LastCommit::Unknown => return Ok(Some(Break::RestartedWhileDown)),
        };
        if end != self.done.end {
            let copy = self.copy(true);
            let mut done = self.done;
            match copy.run(&mut done, &end)? {
                Copied::Done => self.done = done,
                Copied::Unproved | Copied::Broken(_) => {
                    return Ok(Some(Break::RestartedWhileDown));
                }
            }
        }
        // The new WAL is expected by its salts: it may be restarted once more before it is copied,
        // and that is a loss.
        self.done.end = WalEnd {
            salts: new,
            ..WalEnd::default()
        };
        Ok(None)
    }

    fn copy(&self, upper_bound: bool) -> Copy<'_> {
        Copy {
            wal: &self.wal,
            spool: &self.context.spool,
            page_size: self.page_size,
            clock: self.context.now(),
            upper_bound,
        }
    }

    /// Does what is to be done now. Returns how long to wait then.
    pub(super) fn turn(&mut self) -> Result<Duration, Leave> {
        loop {
            let seen = self.look().map_err(Leave::Failed)?;
            let must_tick = self.watch_snapshots(&seen).map_err(Leave::Failed)?;
            let limits = self.limits();
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

    fn limits(&self) -> Limits {
        let settings = &self.context.settings;
        Limits {
            wal_bytes: settings.wal_size,
            writer_lock: settings.writer_lock,
            budget_bytes: self.context.budget(),
            monitor: settings.monitor_interval,
            timing: self.context.timing,
        }
    }

    fn look(&mut self) -> Result<Seen> {
        let index = self.index()?;
        let waited_for = self.waited_for(&index);
        let file = FileState::of(&self.context.database)?;
        let files = match &file {
            None => Files::Gone,
            Some(file) if file.id() != self.file => Files::Replaced,
            Some(_) if !self.wal.is_in_place()? => Files::WalReplaced,
            Some(_) => Files::Same,
        };
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
            wal_is_empty: self.wal.bytes()? == 0,
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
        let is_waiting = (self.kind == Pin::Mark || !self.snapshots.is_empty())
            && self
                .locks
                .as_ref()
                .is_some_and(ShmLocks::is_checkpointer_waiting);
        let since = match self.waiting {
            Some((since, at)) if at == *index => since,
            _ => Instant::now(),
        };
        self.waiting = is_waiting.then_some((since, *index));
        is_waiting.then(|| since.elapsed())
    }

    /// Rule 1: open the next pin, copy up to the mxFrame read after it opened, close the last.
    fn hand_over(&mut self) -> Result<(), Halt> {
        let next = self.take_spare()?;
        let opened = self.open_next(&next);
        let copied = opened.and_then(|(kind, mark, after)| {
            // Until it closes, the last pin is what protects us.
            self.copy_to(after.end)?;
            Ok((kind, mark))
        });
        self.close_last(next, copied)
    }

    /// Moves to a higher mark without copying what came meanwhile: no frame can vanish as long as
    /// one pin after the other is on a mark for certain. If the next one is not, copies first.
    fn raise_mark(&mut self) -> Result<(), Halt> {
        let next = self.take_spare()?;
        let opened = self.open_next(&next);
        let moved = opened.and_then(|(kind, mark, after)| {
            if (self.kind, kind) != (Pin::Mark, Pin::Mark) {
                self.copy_to(after.end)?;
            }
            Ok((kind, mark))
        });
        self.close_last(next, moved)
    }

    fn open_next(&self, next: &Connection) -> Result<(Pin, u32, Index), Halt> {
        let before = self.index()?;
        begin(&self.context, next)?;
        let after = self.index()?;
        Ok((Pin::between(&before, &after), before.end.frame, after))
    }

    /// Closes the last pin if the next one may take its place, else the next one.
    fn close_last(
        &mut self,
        next: Connection,
        opened: Result<(Pin, u32), Halt>,
    ) -> Result<(), Halt> {
        let (kind, mark) = match opened {
            Ok(opened) => opened,
            Err(e) => {
                next.end().map_err(|e| self.context.sql(&e))?;
                self.spare = Some(next);
                return Err(e);
            }
        };
        self.sit_on(next)?;
        self.kind = kind;
        self.mark = mark;
        if kind == Pin::Lock0 {
            self.tries = 0;
            self.last_try = (TryEnd::Done, Instant::now());
            self.reported_reader = false;
        }
        Ok(())
    }

    fn sit_on(&mut self, next: Connection) -> Result<()> {
        let last = std::mem::replace(&mut self.pin, next);
        self.pinned = Instant::now();
        last.end().map_err(|e| self.context.sql(&e))?;
        self.spare = Some(last);
        Ok(())
    }

    /// Copies and makes durable what is committed up to `target`, or up to where the WAL stands by
    /// then if it was restarted meanwhile.
    fn copy_to(&mut self, mut target: WalEnd) -> Result<(), Halt> {
        let start = Instant::now();
        loop {
            match decide::uncopied(&target, &self.done.end, self.kind) {
                Uncopied::Nothing => {
                    self.times_caught_up += 1;
                    return Ok(());
                }
                Uncopied::Lost(why) => return Err(Halt::Break(why)),
                Uncopied::Frames => {}
            }
            let mut done = self.done;
            let copied = self.copy(self.kind == Pin::Fresh).run(&mut done, &target);
            if done.seq > self.done.seq {
                self.done = done;
                self.last_commit = Instant::now();
                self.rest = None;
                self.is_noted = false;
            }
            match copied? {
                Copied::Done => {
                    self.times_caught_up += 1;
                    return Ok(());
                }
                Copied::Broken(why) => return Err(Halt::Break(why)),
                Copied::Unproved => {}
            }
            let now = self.index()?.end;
            let may_change = self.kind.follows_restarts() && start.elapsed() < CHAIN;
            if now == target && !may_change {
                return Err(Halt::Break(Break::ChainBroken));
            }
            target = now;
        }
    }

    /// Leaves our read lock to a checkpointer that waits for it. Meanwhile another read lock, held
    /// without a transaction, keeps the WAL from being restarted as our pin does.
    fn step_aside(&mut self) -> Result<(), Halt> {
        let keeper = self.take_locker()?;
        let stepped = self.step_aside_with(&keeper);
        self.locker = Some(keeper);
        stepped
    }

    fn step_aside_with(&mut self, keeper: &Connection) -> Result<(), Halt> {
        let sql = |e: rusqlite::Error| self.context.sql(&e);
        let other = other_read_lock(keeper, self.mark).map_err(sql)?;
        let Some(other) = other else {
            return Ok(());
        };
        let held = keeper.hold_read_lock(other).map_err(sql)?;
        if held.is_none() {
            return Ok(());
        }
        self.pin.end().map_err(sql)?;
        let (start, before) = (Instant::now(), self.index()?);
        let waits = |locks: &Option<ShmLocks>| {
            locks
                .as_ref()
                .is_some_and(ShmLocks::is_checkpointer_waiting)
        };
        while start.elapsed() < ASIDE && waits(&self.locks) && self.index()? == before {
            std::thread::sleep(Duration::from_micros(500));
        }
        let before = self.index()?;
        begin(&self.context, &self.pin)?;
        let after = self.index()?;
        self.copy_to(after.end)?;
        self.kind = Pin::between(&before, &after);
        self.mark = before.end.frame;
        self.pinned = Instant::now();
        drop(held);
        Ok(())
    }

    /// Rule 2. Afterwards we sit on lock 0, or know why not.
    fn prepare_restart(&mut self, with_lock: bool) -> Result<(), Halt> {
        self.hand_over()?;
        let mut end = self.try_restart()?;
        if with_lock && matches!(end, TryEnd::Busy | TryEnd::Behind) {
            end = match self.approach()? {
                TryEnd::Behind => self.restart_under_lock()?,
                end => end,
            };
        }
        tracing::trace!("try {}: {end:?} lock {with_lock}", self.tries);
        self.last_try = (end, Instant::now());
        if end == TryEnd::Done {
            return Ok(());
        }
        self.tries += 1;
        self.report_reader(end);
        Ok(())
    }

    /// PASSIVE up to our mark; if that was everything, over to lock 0. What takes long comes first:
    /// a later round has only the last few frames to do, between two commits perhaps.
    fn try_restart(&mut self) -> Result<TryEnd, Halt> {
        for _ in 0..ROUNDS {
            if self.kind == Pin::Lock0 {
                return Ok(TryEnd::Done);
            }
            let ran = self.passive()?;
            let mut now = self.index()?;
            let start = Instant::now();
            while ran == Checkpoint::Busy && !now.is_backfilled() && start.elapsed() < WATCH {
                std::thread::sleep(WATCH / 20);
                now = self.index()?;
            }
            if now.is_backfilled() {
                self.hand_over()?;
                continue;
            }
            if ran == Checkpoint::Busy {
                return Ok(TryEnd::Busy);
            }
            if now.backfilled < self.mark {
                return Ok(TryEnd::OtherReader);
            }
            self.raise_mark()?;
        }
        Ok(match self.kind {
            Pin::Lock0 => TryEnd::Done,
            _ => TryEnd::Behind,
        })
    }

    fn passive(&mut self) -> Result<Checkpoint> {
        let checkpointer = self.take_spare()?;
        let ran = checkpointer.checkpoint(CheckpointMode::Passive);
        self.spare = Some(checkpointer);
        ran.map_err(|e| self.context.sql(&e))
    }

    /// Backfills until only the last few frames are left, so that the write lock is needed for some
    /// milliseconds only. `Behind` if that succeeded.
    fn approach(&mut self) -> Result<TryEnd, Halt> {
        let start = Instant::now();
        loop {
            let mut ran = self.passive()?;
            let mut now = self.index()?;
            while now.backfilled < self.mark && start.elapsed() < APPROACH {
                std::thread::sleep(WATCH / 20);
                ran = self.passive()?;
                now = self.index()?;
            }
            if now.backfilled < self.mark {
                return Ok(match ran {
                    Checkpoint::Busy => TryEnd::Busy,
                    Checkpoint::Ran => TryEnd::OtherReader,
                });
            }
            if now.end.frame - now.backfilled <= NEAR_FRAMES || start.elapsed() >= APPROACH {
                return Ok(TryEnd::Behind);
            }
            self.raise_mark()?;
            if self.kind != Pin::Mark {
                return Ok(TryEnd::Busy);
            }
        }
    }

    /// The last round once more, with no writer in between. What takes long is done before.
    fn restart_under_lock(&mut self) -> Result<TryEnd, Halt> {
        let start = Instant::now();
        while self.frames_behind()? > NEAR_FRAMES && start.elapsed() < APPROACH {
            self.hand_over()?;
        }
        let locker = self.take_locker()?;
        let locked = spin_for_lock(&locker).map_err(|e| self.context.sql(&e));
        let start = Instant::now();
        self.last_lock = Some(start);
        let end = match locked {
            Ok(true) => self.move_while_locked(),
            Ok(false) => Ok(TryEnd::Behind),
            Err(e) => Err(Halt::Error(e)),
        };
        locker.end().map_err(|e| self.context.sql(&e))?;
        tracing::trace!("write lock held for {:?}: {end:?}", start.elapsed());
        self.locker = Some(locker);
        end
    }

    fn move_while_locked(&mut self) -> Result<TryEnd, Halt> {
        let start = Instant::now();
        if self.frames_behind()? > NEAR_FRAMES {
            return Ok(TryEnd::Behind);
        }
        self.hand_over()?;
        // The application may be at the checkpoint behind its last commit.
        while start.elapsed() < LOCK && self.kind == Pin::Mark {
            if self.passive()? == Checkpoint::Ran {
                break;
            }
            std::thread::sleep(WATCH / 20);
        }
        if !self.index()?.is_backfilled() {
            return Ok(TryEnd::Behind);
        }
        self.hand_over()?;
        Ok(match self.kind {
            Pin::Lock0 => TryEnd::Done,
            _ => TryEnd::Behind,
        })
    }

    /// Committed frames that are not copied yet.
    fn frames_behind(&self) -> Result<u32> {
        Ok(self.index()?.end.frame.saturating_sub(self.done.end.frame))
    }

    /// Says once what keeps the WAL from being restarted, if that is a reader not ours.
    fn report_reader(&mut self, end: TryEnd) {
        let mut ours = self.snapshots.iter();
        let is_ours = ours.any(|watched| watched.pin.strong_count() > 0);
        if end == TryEnd::OtherReader && !is_ours && !self.reported_reader && self.tries > 100 {
            self.reported_reader = true;
            tracing::warn!(
                "{}: another reader keeps the WAL from being checkpointed and restarted; it grows \
                 until that read transaction ends",
                self.context.database.display()
            );
        }
    }

    /// Rule 5: an empty WAL at rest. Never waits.
    fn empty_wal(&mut self) -> Result<(), Halt> {
        let checkpointer = self.take_spare()?;
        let ran = checkpointer.checkpoint(CheckpointMode::Truncate);
        self.spare = Some(checkpointer);
        if ran.map_err(|e| self.context.sql(&e))? == Checkpoint::Busy {
            self.last_empty = Some(Instant::now());
            // SQLite takes a mark if somebody has lock 0 at that moment: then it was us.
            self.kind = Pin::Unknown;
        }
        Ok(())
    }

    fn remember_file(&mut self) -> Result<(), Halt> {
        self.rest = FileState::of(&self.context.database)?;
        self.is_noted = false;
        Ok(())
    }

    fn note_rest(&mut self, seen: &Index) -> Result<(), Halt> {
        let (Some(file), Some(boot)) = (self.rest, boot_id()) else {
            self.is_noted = true;
            return Ok(());
        };
        if self.index()? != *seen || FileState::of(&self.context.database)? != Some(file) {
            // Looked at once more; its owner or mode may have changed.
            return self.remember_file();
        }
        RestNote {
            run: self.done.run,
            seq: self.done.seq,
            file,
            boot,
        }
        .store(self.context.spool.dir())?;
        self.is_noted = true;
        Ok(())
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

    /// Begins a run where the WAL stands under a new pin.
    fn start_run(&mut self, why: &Break) -> Result<()> {
        self.end_snapshots();
        let next = self.take_spare()?;
        let started = self.start_under(&next, why);
        match started {
            Ok(kind) => {
                self.sit_on(next)?;
                self.kind = kind;
                self.times_caught_up += 1;
                self.last_commit = Instant::now();
                self.rest = None;
                self.is_noted = false;
                Ok(())
            }
            Err(e) => {
                next.end().map_err(|e| self.context.sql(&e))?;
                self.spare = Some(next);
                Err(e)
            }
        }
    }

    fn start_under(&mut self, next: &Connection, why: &Break) -> Result<Pin> {
        let start = Instant::now();
        let (seen, kind, page_size, pages) = loop {
            let before = self.index()?;
            begin(&self.context, next)?;
            let after = self.index()?;
            if let Some(page_size) = after.page_size.filter(|_| after.end.frame > 0) {
                break (after, Pin::between(&before, &after), page_size, after.pages);
            }
            // The WAL is empty: the file alone says how large it is, as long as it stays so.
            let (page_size, pages) = size_of_file(&self.context, next)?;
            if before == after && self.index()? == after {
                break (after, Pin::Lock0, page_size, pages);
            }
            next.end().map_err(|e| self.context.sql(&e))?;
            if start.elapsed() > OPEN {
                return Err(Error::unavailable(format!(
                    "the wal-index of {} does not stand still",
                    self.context.database.display()
                )));
            }
        };
        let end = match seen.end.frame {
            0 => WalEnd {
                checksum: [0; 2],
                ..seen.end
            },
            _ => seen.end,
        };
        self.mark = end.frame;
        self.begin_run(why, page_size, pages, end, seen.order)?;
        Ok(kind)
    }

    fn begin_run(
        &mut self,
        why: &Break,
        page_size: PageSize,
        pages: u32,
        end: WalEnd,
        order: WordOrder,
    ) -> Result<()> {
        let clock = self.context.now();
        let last = self.context.spool.position().map(|last| last.time);
        let began = match last {
            Some(last) if !decide::clock_stepped_back(clock, last) => decide::stamp(clock, last),
            _ => clock,
        };
        let before_began = Timestamp::from_micros(began.micros() - 1);
        let run = self.context.spool.begin_run(RunStart {
            page_size,
            pages,
            end,
            order,
            after: last.map_or(before_began, |last| last.min(before_began)),
            began,
            reason: why.to_string(),
        })?;
        let database = self.context.database.display();
        match why {
            Break::First => tracing::info!("{database}: run {} begins: {why}", run.id),
            Break::LocksGone => tracing::error!("{database}: run {} begins: {why}", run.id),
            _ => tracing::warn!("{database}: run {} begins: {why}", run.id),
        }
        self.page_size = page_size;
        self.done = self
            .context
            .spool
            .position()
            .expect("a run that began has a position");
        Ok(())
    }

    fn split_run(&mut self, why: &Break) -> Result<(), Halt> {
        self.end_snapshots();
        let Position {
            pages, end, order, ..
        } = self.done;
        Ok(self.begin_run(why, self.page_size, pages, end, order)?)
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

    /// A pin for a first snapshot: exact if that can be had, else one that reads in short
    /// transactions from the start. The inner error does not concern the capture.
    pub(super) fn snapshot_pin(&mut self) -> Result<Result<SnapshotPin>, Leave> {
        self.catch_up()?;
        match self.try_snapshot_pin() {
            Ok(pin) => Ok(Ok(pin)),
            Err(Halt::Break(why)) => {
                self.start_run(&why).map_err(Leave::Failed)?;
                Ok(Err(Error::conflict(format!(
                    "the capture began anew while a snapshot was to be pinned: {why}"
                ))))
            }
            Err(Halt::Error(e)) => Ok(Err(e)),
        }
    }

    fn try_snapshot_pin(&mut self) -> Result<SnapshotPin, Halt> {
        let connection = open_reader(&self.context)?;
        let start = Instant::now();
        let mut exact = None;
        let mut moved = start;
        while exact.is_none() && start.elapsed() < EXACT {
            if moved.elapsed() > TICK {
                self.hand_over()?;
                moved = Instant::now();
            }
            let is_busy = self.last_commit.elapsed() < self.context.timing.quiet;
            exact = self.pin_exactly(&connection, is_busy)?;
        }
        if exact.is_none() && self.context.settings.writer_lock {
            let locker = open_reader(&self.context)?;
            if spin_for_lock(&locker).map_err(|e| self.context.sql(&e))? {
                exact = self.pin_exactly(&connection, false)?;
            }
            locker.end().map_err(|e| self.context.sql(&e))?;
        }
        let at = PinnedAt {
            run: self.done.run,
            seq: self.done.seq,
            page_size: self.page_size,
            pages: self.done.pages,
            end: self.done.end,
        };
        let (database, wal) = (self.context.database.clone(), Arc::clone(&self.wal));
        let view = exact.map(|(view, _)| view);
        let (pin, state) = SnapshotPin::new(database, connection, wal, view, at);
        self.snapshots.push(Watched {
            pin: Arc::downgrade(&state),
            at: exact.map_or(WalEnd::default(), |(_, end)| end),
        });
        Ok(pin)
    }

    /// One try: the transaction sees exactly our position, or is ended. `is_busy`: the next commit
    /// is near, so lock 0, which we would have to leave at once, is not worth having.
    fn pin_exactly(
        &mut self,
        connection: &Connection,
        is_busy: bool,
    ) -> Result<Option<(View, WalEnd)>, Halt> {
        let before = self.index()?;
        begin(&self.context, connection)?;
        let after = self.index()?;
        let view = View::between(&before, &after)
            .filter(|view| before.end == after.end && !(is_busy && *view == View::File));
        if let Some(view) = view {
            self.copy_to(after.end)?;
            let here = self.done.end;
            if (here.salts, here.frame) == (after.end.salts, after.end.frame)
                || after.end.frame == 0
            {
                return Ok(Some((view, after.end)));
            }
        }
        connection.end().map_err(|e| self.context.sql(&e))?;
        std::thread::sleep(Duration::from_micros(200));
        Ok(None)
    }

    /// Lets snapshot pins go that are in the application's way. True if one must be watched closely.
    fn watch_snapshots(&mut self, seen: &Seen) -> Result<bool> {
        self.snapshots.retain(|watched| {
            watched
                .pin
                .upgrade()
                .is_some_and(|pin| pin.exact().is_some())
        });
        if self.snapshots.is_empty() {
            return Ok(false);
        }
        let held = self.context.spool.bytes() + self.wal.bytes()?;
        let is_over = held > self.context.budget();
        let mut is_close = false;
        for watched in &self.snapshots {
            let Some(pin) = watched.pin.upgrade() else {
                continue;
            };
            let in_the_way = match pin.exact() {
                None => false,
                Some(View::File) => seen.index.end.frame > 0 && seen.index.end != watched.at,
                Some(View::Wal { last }) => {
                    is_close = true;
                    // Before it backfills, a PASSIVE one beside a busy writer looks the same.
                    let patience = match seen.index.backfilled >= last {
                        true => decide::WAITING,
                        false => decide::WAITING * 4,
                    };
                    seen.waited_for.is_some_and(|time| time >= patience)
                }
            };
            if in_the_way || is_over && pin.exact().is_some() {
                tracing::debug!(
                    "{}: a snapshot goes on as fuzzy",
                    self.context.database.display()
                );
                pin.let_go();
            }
        }
        Ok(is_close)
    }

    /// Ends all snapshot pins of the run.
    pub(super) fn end_snapshots(&mut self) {
        for watched in self.snapshots.drain(..) {
            if let Some(pin) = watched.pin.upgrade() {
                pin.end();
            }
        }
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

/// Sees to it that the database is in WAL mode.
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

/// Page size and size in pages by the header of the database file: right while its WAL is empty, and
/// the page size always.
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
