//! What to do next. Pure.
//!
//! Owns the rules of the capture: what is proved, what is lost, when the pin moves, when the WAL is
//! restarted, emptied, noted. Never does I/O, never asks the time. The loop is
//! `observe -> next_step -> act`.
//!
//! The words: a *pin* is the read transaction that we hold at every moment. While it is on a read
//! mark above zero no writer can restart the WAL. On read lock 0 the next commit restarts it, once,
//! and nothing of the new WAL can be backfilled while we sit there, so that no frame can vanish as
//! long as all frames before were copied.

use crate::format::ids::PageSize;
use crate::format::ids::{Timestamp, WalEnd};
use crate::format::wal::{FRAME_HEADER_BYTES, FrameHeader, WalHeader, frame_bytes};
use crate::replicate::observe::Index;
use std::fmt;
use std::time::Duration;

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Quiet for so long, the application has probably finished what it was doing.
    pub quiet: Duration,
    /// Idle for so long on lock 0, the database is at rest: the WAL is emptied.
    pub rest: Duration,
    /// The coarsest times of files that we reckon with. A file whose time is younger may be written
    /// to again without a change of its time.
    pub file_time_grain: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(200),
            rest: Duration::from_secs(2),
            file_time_grain: Duration::from_secs(2),
        }
    }
}

/// How often we look while the application is busy: a checkpointer that waits for us, and with it
/// every writer, gets on within 20 ms.
pub const TICK: Duration = Duration::from_millis(8);
/// How often the mark moves while nobody waits for it. Past 1,000 frames an application with
/// autocheckpoint checkpoints at every commit; each move gives it frames to backfill, and so that
/// commit an fsync to wait for.
pub const MARK: Duration = Duration::from_millis(100);
/// So long after a file event we look again and again, by the clock: a writer publishes a commit,
/// and a checkpointer starts to wait for us, only after their last write.
pub const ALERT: Duration = Duration::from_secs(1);
/// The first of these looks.
const ALERT_FIRST: Duration = Duration::from_millis(1);
/// A checkpointer that keeps writers out and finds the same frames for so long waits for a reader.
pub const WAITING: Duration = Duration::from_millis(10);
/// Tries to restart the WAL without the write lock before it is taken. With pauses of some
/// milliseconds between commits the first ones succeed; else each only costs the application
/// fsyncs.
pub const TRIES_WITHOUT_LOCK: u32 = 3;
/// The write lock is taken at most once in this time; eight times if the WAL is [`HUGE`].
pub const LOCK_INTERVAL: Duration = Duration::from_secs(1);
/// So many times larger than the user wants it, the WAL of a writer that never pauses is huge.
pub const HUGE: u64 = 4;
/// A last time that lies further ahead of the clock than this begins a new run on the clock's time,
/// microseconds.
const AHEAD_MAX_MICROS: i64 = 3_600_000_000;
/// A salt-1 that lies this far behind ours is taken for an older one.
const OLDER_SALTS: u32 = 1 << 20;

/// What our read transaction sits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Opened after a downtime: what was in the WAL before may not be protected by it.
    Fresh,
    /// A read mark: the WAL cannot be restarted.
    Mark,
    /// Read lock 0, and everything that was in the WAL before it was taken is copied.
    Lock0,
    /// Lock 0 or a mark, and everything before it is copied.
    Unknown,
}

impl Pin {
    /// What a transaction sits on that was opened between these two looks at the index. SQLite
    /// takes lock 0 if everything is backfilled at that moment, else a mark.
    pub fn between(before: &Index, after: &Index) -> Self {
        if before == after {
            return if after.is_backfilled() {
                Self::Lock0
            } else {
                Self::Mark
            };
        }
        // nBackfill only grows while the salts stay; so it was behind mxFrame all the time.
        let same_wal = before.end.salts == after.end.salts;
        if same_wal && after.backfilled < before.end.frame {
            Self::Mark
        } else {
            Self::Unknown
        }
    }

    /// Whether any change of salts is harmless: all before is copied, and nothing after can vanish.
    pub fn follows_restarts(self) -> bool {
        matches!(self, Self::Lock0 | Self::Unknown)
    }
}

/// Why a run ends and a new one begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Break {
    /// Nothing was captured before.
    First,
    /// Salts changed under a pin that excludes it.
    LocksGone,
    /// The WAL was restarted after a downtime, before its frames were copied.
    RestartedAtStart,
    /// The frames of the file do not lead to what the wal-index says is committed.
    ChainBroken,
    /// A commit added a page without a frame for it.
    GrewWithoutFrames,
    /// The path leads to another file.
    Replaced,
    /// The file was written to while its WAL was empty.
    ReplacedInPlace,
    /// The `-wal` file was removed or replaced.
    WalReplaced,
    /// Another page size than that of the run: before, now.
    PageSize(PageSize, PageSize),
    /// While nothing was captured, the file changed although it had been at rest.
    ChangedWhileDown,
    /// While nothing was captured, the WAL was emptied or removed.
    WalGoneWhileDown,
    /// While nothing was captured, what we had captured of the WAL was overwritten.
    RewrittenWhileDown,
    /// While nothing was captured, the WAL was restarted, and its old end is not whole.
    RestartedWhileDown,
    /// The last time lies more than an hour ahead of the clock.
    ClockSteppedBack,
    /// Commits were let go since the spool had no room: bytes that it may take.
    SpoolFull(u64),
    /// The local disk lost commits that it had acknowledged.
    SpoolLost,
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentence = match self {
            Self::First => "this is the first capture of the database",
            Self::LocksGone => {
                "the WAL was restarted although we held a read mark: something closed a file of \
                 the database and dropped our locks"
            }
            Self::RestartedAtStart => "the WAL was restarted before the capture had caught up",
            Self::ChainBroken => {
                "the frames of the -wal file do not lead to what the wal-index counts as committed"
            }
            Self::GrewWithoutFrames => "a commit added pages without writing them to the WAL",
            Self::Replaced => "the database file was replaced",
            Self::ReplacedInPlace => {
                "the database file was written to while its WAL was empty, as by a copy over it"
            }
            Self::WalReplaced => "the -wal file was removed or replaced",
            Self::PageSize(was, is) => {
                return write!(
                    f,
                    "the page size changed from {} to {} bytes",
                    was.get(),
                    is.get()
                );
            }
            Self::ChangedWhileDown => "the database file changed while nothing was captured",
            Self::WalGoneWhileDown => "the WAL was emptied while nothing was captured",
            Self::RewrittenWhileDown => "the WAL was written anew while nothing was captured",
            Self::RestartedWhileDown => {
                "the WAL was restarted while nothing was captured, and its end may be lost"
            }
            Self::ClockSteppedBack => "the clock is more than an hour behind the last commit",
            Self::SpoolFull(bytes) => {
                return write!(
                    f,
                    "commits were let go: spool and held-back WAL would exceed {bytes} bytes \
                     (max-spool-size)"
                );
            }
            Self::SpoolLost => "the local disk lost captured commits",
        };
        f.write_str(sentence)
    }
}

/// What of the WAL is not in the spool yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uncopied {
    /// All committed frames are there.
    Nothing,
    /// The frames behind our position; from the first one if the WAL is a new one.
    Frames,
    /// Some may be gone.
    Lost(Break),
}

/// Compares what SQLite counts as committed with how far we are.
pub fn uncopied(index: &WalEnd, done: &WalEnd, pin: Pin) -> Uncopied {
    if index.salts == done.salts {
        return match index.frame.cmp(&done.frame) {
            std::cmp::Ordering::Greater => Uncopied::Frames,
            std::cmp::Ordering::Equal if done.frame == 0 || index.checksum == done.checksum => {
                Uncopied::Nothing
            }
            _ => Uncopied::Lost(Break::ChainBroken),
        };
    }
    // The index shows a restart before the file does, even one whose transaction has not committed
    // yet: what was not copied by now is lost, unless nothing was.
    match pin {
        Pin::Mark => Uncopied::Lost(Break::LocksGone),
        Pin::Fresh => Uncopied::Lost(Break::RestartedAtStart),
        Pin::Lock0 | Pin::Unknown if index.frame == 0 => Uncopied::Nothing,
        Pin::Lock0 | Pin::Unknown => Uncopied::Frames,
    }
}

/// How the last try to restart the WAL ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryEnd {
    /// We sit on lock 0: the next commit restarts it.
    Done,
    /// Someone else checkpoints just now.
    Busy,
    /// New commits came meanwhile.
    Behind,
    /// Another reader's mark lies below ours.
    OtherReader,
}

/// The tries to restart the WAL since we last sat on lock 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    /// How many failed.
    pub failed: u32,
    /// How the last one ended.
    pub last: TryEnd,
    /// How long ago that was.
    pub since_last: Duration,
    /// How long ago the write lock was taken for it.
    pub since_lock: Duration,
}

/// What the paths of the database lead to, compared with the files that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// The same.
    Same,
    /// There is no database.
    Gone,
    /// Another database file.
    Replaced,
    /// Another `-wal` file, or none.
    WalReplaced,
}

/// What is known of the database file at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It is not at rest.
    No,
    /// It looks as it did when the WAL was found empty; how long ago it was written to.
    Unchanged(Duration),
    /// The same, and that is noted for the next start.
    Noted,
    /// It was written to since.
    Changed,
}

/// What was seen at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What SQLite counts as committed.
    pub index: Index,
    /// What we sit on.
    pub pin: Pin,
    /// Where the paths lead.
    pub files: Files,
    /// Whether the file is known at rest.
    pub rest: Rest,
    /// The index showed at least this frame when our pin was opened.
    pub mark: u32,
    /// How long ago that was.
    pub pin_age: Duration,
    /// So long a checkpointer of another process has kept writers out without getting anywhere.
    pub waited_for: Option<Duration>,
    /// Since the last commit.
    pub idle: Duration,
    /// Since something last happened to the files.
    pub since_event: Duration,
    /// Whether the `-wal` file has no bytes.
    pub wal_is_empty: bool,
    /// The tries to restart the WAL.
    pub tries: Tries,
    /// Since we last tried to empty the WAL in vain.
    pub since_empty: Duration,
    /// Whether the spool failed and was not read back.
    pub spool_fails: bool,
    /// Whether the clock is far behind the last commit ([`clock_stepped_back`]).
    pub clock_stepped_back: bool,
    /// Bytes in the spool.
    pub spool_bytes: u64,
}

/// What the user allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of frames past which the WAL is restarted although the application is busy.
    pub wal_bytes: u64,
    /// Whether the write lock may be taken for it.
    pub writer_lock: bool,
    /// Bytes for spool and held-back WAL.
    pub budget_bytes: u64,
    /// The slow poll.
    pub monitor: Duration,
    /// How long to wait for what.
    pub timing: Timing,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait at most this long, or until something happens.
    Wait(Duration),
    /// Copy, make durable.
    Copy,
    /// Open the next pin, copy, make durable, close the last.
    HandOver,
    /// Try to get to lock 0, so that the next commit restarts the WAL.
    PrepareRestart {
        /// Hold the write lock meanwhile.
        with_lock: bool,
    },
    /// Leave the read lock that we sit on for another one, and come back.
    StepAside,
    /// Truncate the `-wal` file, without waiting.
    EmptyWal,
    /// Remember how the file looks.
    RememberFile,
    /// Note for the next start how the file looks.
    NoteRest,
    /// Read back from the disk what the spool has.
    ReadBackSpool,
    /// End the run and begin another where the WAL stands now.
    StartRun(Break),
    /// End the run and begin another at our position: no commit lies between them.
    SplitRun(Break),
    /// Close everything; open again when there is a database, and begin a new run for this reason.
    Reopen(Break),
    /// Stop holding back the WAL until there is room.
    LetGo(Break),
}

/// How much of the WAL up to `end` is not copied, bytes.
pub fn uncopied_bytes(end: &WalEnd, done: &WalEnd, page_size: PageSize) -> u64 {
    let same_wal = end.salts == done.salts;
    let copied = if same_wal { done.frame } else { 0 };
    u64::from(end.frame.saturating_sub(copied)) * frame_bytes(page_size) as u64
}

/// The next thing to do, given what the wal-index, the files and our own pin look like. Does no
/// I/O.
pub fn next_step(seen: &Seen, done: &WalEnd, page_size: PageSize, limits: &Limits) -> Step {
    match seen.files {
        Files::Same => {}
        Files::Gone | Files::Replaced => return Step::Reopen(Break::Replaced),
        Files::WalReplaced => return Step::Reopen(Break::WalReplaced),
    }
    if let Some(size) = seen.index.page_size.filter(|size| *size != page_size) {
        return Step::Reopen(Break::PageSize(page_size, size));
    }
    let frame_bytes = frame_bytes(page_size) as u64;
    match uncopied(&seen.index.end, done, seen.pin) {
        Uncopied::Lost(why) => Step::StartRun(why),
        // No checkpoint gets past lock 0: a commit does not explain the change.
        Uncopied::Frames if seen.pin == Pin::Lock0 && seen.rest == Rest::Changed => {
            Step::Reopen(Break::ReplacedInPlace)
        }
        Uncopied::Frames => {
            let bytes = uncopied_bytes(&seen.index.end, done, page_size);
            if seen.spool_bytes + bytes > limits.budget_bytes {
                Step::LetGo(Break::SpoolFull(limits.budget_bytes))
            } else if seen.spool_fails {
                Step::ReadBackSpool
            } else if seen.clock_stepped_back {
                Step::SplitRun(Break::ClockSteppedBack)
            } else if seen.pin != Pin::Mark {
                Step::HandOver
            } else {
                match on_mark(seen, frame_bytes, limits) {
                    Step::Wait(_) => Step::Copy,
                    step => step,
                }
            }
        }
        Uncopied::Nothing if seen.spool_fails => Step::ReadBackSpool,
        Uncopied::Nothing => match seen.pin {
            // What it sits on shows only by taking the next one.
            Pin::Fresh | Pin::Unknown => Step::HandOver,
            Pin::Mark => alert(seen, TICK, on_mark(seen, frame_bytes, limits)),
            Pin::Lock0 => alert(seen, ALERT, on_lock0(seen, limits)),
        },
    }
}

/// Shortens a wait after a file event: the longer ago that is, the less.
fn alert(seen: &Seen, longest: Duration, step: Step) -> Step {
    match step {
        Step::Wait(limit) if seen.since_event < ALERT => {
            let pause = (seen.since_event / 4).clamp(ALERT_FIRST, longest);
            Step::Wait(limit.min(pause))
        }
        step => step,
    }
}

fn on_mark(seen: &Seen, frame_bytes: u64, limits: &Limits) -> Step {
    // The next pin lands on lock 0. A checkpointer that waits for it gets on.
    if seen.index.is_backfilled() {
        return Step::HandOver;
    }
    let restart = restart(seen, frame_bytes, limits);
    if let Step::PrepareRestart { .. } = restart {
        return restart;
    }
    let is_behind = seen.mark < seen.index.end.frame;
    match (seen.waited_for, &restart) {
        (Some(_), _) if is_behind => Step::HandOver,
        // It may wait for the very lock that we sit on although our mark is high enough: it read
        // the mark just before we raised it. A next pin would share that lock with the last.
        (Some(time), _) if time >= WAITING => Step::StepAside,
        (Some(time), _) => Step::Wait(WAITING - time),
        (None, _) if is_behind && seen.pin_age >= MARK => Step::HandOver,
        (None, Step::Wait(limit)) if is_behind => Step::Wait((MARK - seen.pin_age).min(*limit)),
        (None, _) => restart,
    }
}

/// Rule 2: whether to try now, on a mark, to get to lock 0, or how long not.
fn restart(seen: &Seen, frame_bytes: u64, limits: &Limits) -> Step {
    let wal_bytes = u64::from(seen.index.end.frame) * frame_bytes;
    let is_large = wal_bytes >= limits.wal_bytes;
    if !is_large && seen.idle < limits.timing.quiet {
        return Step::Wait(limits.timing.quiet - seen.idle);
    }
    let tries = &seen.tries;
    let may_lock = is_large && limits.writer_lock && tries.failed >= TRIES_WITHOUT_LOCK;
    let interval = match wal_bytes / HUGE >= limits.wal_bytes {
        true => LOCK_INTERVAL / 8,
        false => LOCK_INTERVAL,
    };
    // A try that did not even get the lock held nobody up, and may soon be repeated.
    let is_due = tries.since_lock >= interval && tries.since_last >= 2 * TICK;
    if may_lock && tries.last != TryEnd::OtherReader && is_due {
        return Step::PrepareRestart { with_lock: true };
    }
    let pause = match tries.last {
        TryEnd::Done => Duration::ZERO,
        _ if tries.failed < TRIES_WITHOUT_LOCK => TICK,
        TryEnd::Busy | TryEnd::Behind => LOCK_INTERVAL / 4,
        // Nothing that we do helps; the events of the file tell when that reader has gone.
        TryEnd::OtherReader => {
            let doubled = TICK * (1 << (tries.failed - TRIES_WITHOUT_LOCK).min(16));
            doubled.min(limits.monitor)
        }
    };
    if tries.since_last >= pause {
        return Step::PrepareRestart { with_lock: false };
    }
    Step::Wait(pause - tries.since_last)
}

fn on_lock0(seen: &Seen, limits: &Limits) -> Step {
    let (rest, grain) = (limits.timing.rest, limits.timing.file_time_grain);
    // Nobody waits for lock 0 here; but SQLite takes a mark if somebody has lock 0 at that moment.
    if seen.waited_for.is_some_and(|time| time >= WAITING) && seen.pin_age >= MARK {
        return Step::HandOver;
    }
    match seen.rest {
        Rest::Changed => Step::Reopen(Break::ReplacedInPlace),
        Rest::Noted => Step::Wait(limits.monitor),
        Rest::Unchanged(age) if age >= grain => Step::NoteRest,
        Rest::Unchanged(age) => Step::Wait((grain - age).min(limits.monitor)),
        // Recovered since: lock 0 would make each checkpoint of a busy application fail.
        Rest::No if !seen.index.is_backfilled() => Step::HandOver,
        Rest::No if seen.idle < rest => Step::Wait((rest - seen.idle).min(limits.monitor)),
        Rest::No if seen.index.end.frame == 0 && seen.wal_is_empty => Step::RememberFile,
        Rest::No if seen.since_empty >= rest => Step::EmptyWal,
        Rest::No => Step::Wait((rest - seen.since_empty).min(limits.monitor)),
    }
}

/// What was found at the start of the capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What SQLite counts as committed, after it recovered.
    pub index: Index,
    /// The header of the `-wal` file.
    pub header: Option<WalHeader>,
    /// Whether the file is as it was when it was noted at rest, and that note is of our position;
    /// `None` without such a note of this boot.
    pub is_unchanged: Option<bool>,
}

/// How to find out whether the WAL goes on from our position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Nobody checkpointed since the WAL was empty, so all that happened since stands in it.
    FromFirstFrame,
    /// It goes on if its frames lead to our position.
    VerifyChain,
    /// It was restarted once; the old end may still be there behind the new frames.
    FollowTail,
    /// It does not.
    Lost(Break),
}

/// How to go on after a downtime.
pub fn resume(found: &Found, done: &WalEnd) -> Resume {
    match found.is_unchanged {
        Some(true) => return Resume::FromFirstFrame,
        Some(false) => return Resume::Lost(Break::ChangedWhileDown),
        None => {}
    }
    let index = &found.index.end;
    let Some(header) = found.header.filter(|header| header.salts == index.salts) else {
        return Resume::Lost(Break::WalGoneWhileDown);
    };
    if index.frame == 0 {
        return Resume::Lost(Break::WalGoneWhileDown);
    }
    if header.salts == done.salts {
        return if index.frame >= done.frame {
            Resume::VerifyChain
        } else {
            Resume::Lost(Break::RewrittenWhileDown)
        };
    }
    if header.salts[0] == done.salts[0].wrapping_add(1) && done.frame > 0 {
        Resume::FollowTail
    } else {
        Resume::Lost(Break::RestartedWhileDown)
    }
}

/// Whether the old WAL is proved to end where its frames no longer chain. `slot`: the bytes behind
/// all that chain, at most one frame. Only a whole frame of the old WAL or of an older one proves
/// it. New salts do not: a large transaction may have spilled over the end and rolled back. The end
/// of the file, or half a frame, does not: journal_size_limit may have cut it there.
pub fn tail_is_whole(slot: &[u8], page_size: PageSize, old: [u32; 2], new: [u32; 2]) -> bool {
    if slot.len() < frame_bytes(page_size) {
        return false;
    }
    let header = slot
        .first_chunk::<FRAME_HEADER_BYTES>()
        .and_then(FrameHeader::parse);
    header.is_some_and(|frame| {
        frame.salts != new && old[0].wrapping_sub(frame.salts[0]) <= OLDER_SALTS
    })
}

/// The time of the next commit, in microseconds since 1970: the clock's, but after the last one.
pub fn stamp(clock: Timestamp, last: Timestamp) -> Timestamp {
    clock.max(Timestamp::from_micros(last.micros() + 1))
}

/// Whether the clock is so far behind the last commit that a new run begins on the clock's time.
pub fn clock_stepped_back(clock: Timestamp, last: Timestamp) -> bool {
    last.micros() - clock.micros() > AHEAD_MAX_MICROS
}

#[cfg(test)]
mod tests;
