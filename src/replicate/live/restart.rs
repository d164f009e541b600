//! Rule 2: to lock 0, so that the next commit restarts the WAL, and out of the way of a
//! checkpointer that waits.
//!
//! No writer is ever waited for or held up, but for some milliseconds with the write lock.

use crate::error::Result;
use crate::replicate::connection::{Checkpoint, CheckpointMode, Connection};
use crate::replicate::decide::{Pin, TryEnd};
use crate::replicate::live::{Halt, LOCK, Live, begin, spin_for_lock};
use crate::replicate::locks::ShmLocks;
use crate::replicate::observe::other_read_lock;
use std::time::{Duration, Instant};

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

impl Live {
    /// Leaves our read lock to a checkpointer that waits for it. Meanwhile another read lock, held
    /// without a transaction, keeps the WAL from being restarted as our pin does.
    pub(super) fn step_aside(&mut self) -> Result<(), Halt> {
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
    pub(super) fn prepare_restart(&mut self, with_lock: bool) -> Result<(), Halt> {
        self.hand_over()?;
        let tried = self.try_restart()?;
        let mut end = self.unless_it_moves(tried)?;
        if with_lock && matches!(end, TryEnd::Busy | TryEnd::Behind) {
            end = match self.approach()? {
                TryEnd::Behind => self.restart_under_lock()?,
                end => self.unless_it_moves(end)?,
            };
        }
        tracing::trace!("try {}: {end:?} lock {with_lock}", self.tries);
        self.backfilled = self.index()?.backfilled;
        self.last_try = (end, Instant::now());
        if end == TryEnd::Done {
            return Ok(());
        }
        self.tries += 1;
        self.report_reader(end);
        Ok(())
    }

    /// A writer that never pauses holds some mark at every moment, but not for long: only if
    /// nothing was backfilled since the last try, another reader is the obstacle.
    fn unless_it_moves(&self, end: TryEnd) -> Result<TryEnd, Halt> {
        match end {
            TryEnd::OtherReader if self.index()?.backfilled != self.backfilled => {
                Ok(TryEnd::Behind)
            }
            end => Ok(end),
        }
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
        if let Ok(true) = locked {
            self.last_lock = Some(start);
        }
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
}
