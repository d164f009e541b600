//! Rule 1: from one pin to the next, and the copying between.
//!
//! A pin is closed only when everything up to the mxFrame read after the next one opened is durable
//! in the spool, or when both are on a mark for certain.

use crate::error::Result;
use crate::format::ids::WalEnd;
use crate::replicate::connection::Connection;
use crate::replicate::copy::{Copied, Copy};
use crate::replicate::decide::{self, Break, Pin, TryEnd, Uncopied};
use crate::replicate::live::{Halt, Live, begin};
use crate::replicate::observe::Index;
use std::time::{Duration, Instant};

/// How long frames may fail to chain on lock 0, where a writer may be restarting the WAL.
const CHAIN: Duration = Duration::from_secs(1);

impl Live {
    /// Rule 1: open the next pin, copy up to the mxFrame read after it opened, close the last.
    pub(super) fn hand_over(&mut self) -> Result<(), Halt> {
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
    pub(super) fn raise_mark(&mut self) -> Result<(), Halt> {
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

    pub(super) fn sit_on(&mut self, next: Connection) -> Result<()> {
        let last = std::mem::replace(&mut self.pin, next);
        self.pinned = Instant::now();
        last.end().map_err(|e| self.context.sql(&e))?;
        self.spare = Some(last);
        Ok(())
    }

    /// Copies and makes durable what is committed up to `target`, or up to where the WAL stands by
    /// then if it was restarted meanwhile.
    pub(super) fn copy_to(&mut self, mut target: WalEnd) -> Result<(), Halt> {
        let start = Instant::now();
        loop {
            match decide::uncopied(&target, &self.done.end, self.kind) {
                Uncopied::Nothing => {
                    self.times_caught_up += 1;
                    return Ok(());
                }
                Uncopied::Lost(why) => return Err(Halt::Break(why)),
                Uncopied::Frames => self.check_room(&target)?,
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

    /// What was committed since the last look may be more than the spool may take.
    fn check_room(&self, target: &WalEnd) -> Result<(), Halt> {
        let bytes = decide::uncopied_bytes(target, &self.done.end, self.page_size);
        let spool = &self.context.spool;
        // Counted before it is compared, so that two large transactions of two databases do not
        // both find room for one.
        spool.hold(bytes);
        let room = spool.room();
        if spool.bytes() + bytes > room {
            return Err(Halt::Break(Break::SpoolFull(room)));
        }
        Ok(())
    }

    pub(super) fn copy(&self, upper_bound: bool) -> Copy<'_> {
        Copy {
            wal: &self.wal,
            spool: &self.context.spool,
            page_size: self.page_size,
            clock: self.context.now(),
            upper_bound,
        }
    }
}
