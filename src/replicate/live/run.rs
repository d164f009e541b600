//! Where a run begins.
//!
//! Its base is a state that the wal-index names, read under a pin that protects all that follows.

use crate::error::{Error, Result};
use crate::format::ids::{PageSize, Timestamp, WalEnd};
use crate::format::wal::WordOrder;
use crate::replicate::connection::Connection;
use crate::replicate::decide::{self, Break, Pin};
use crate::replicate::live::{Halt, Live, OPEN, begin, size_of_file};
use crate::replicate::spool::{Position, RunStart};
use std::time::Instant;

impl Live {
    /// Begins a run where the WAL stands under a new pin.
    pub(super) fn start_run(&mut self, why: &Break) -> Result<()> {
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
            token: u64::from_le_bytes(self.context.environment.draw()?),
            base: 0,
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

    pub(super) fn split_run(&mut self, why: &Break) -> Result<(), Halt> {
        self.end_snapshots();
        let Position {
            pages, end, order, ..
        } = self.done;
        Ok(self.begin_run(why, self.page_size, pages, end, order)?)
    }
}
