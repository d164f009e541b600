//! Pins for first snapshots, and when they are in the application's way.

use crate::error::{Error, Result};
use crate::format::ids::WalEnd;
use crate::replicate::connection::Connection;
use crate::replicate::decide::{self, Break, Seen, TICK};
use crate::replicate::live::{Halt, Leave, Live, Watched, begin, open_reader, spin_for_lock};
use crate::replicate::pages::{PinnedAt, SnapshotPin, View};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an exactly known commit is tried for without the write lock.
const EXACT: Duration = Duration::from_secs(1);

impl Live {
    /// A pin for a first snapshot: exact if that can be had, else one that reads in short
    /// transactions from the start. The inner error does not concern the capture.
    pub(in crate::replicate) fn snapshot_pin(&mut self) -> Result<Result<SnapshotPin>, Leave> {
        self.catch_up()?;
        match self.try_snapshot_pin() {
            Ok(pin) => Ok(Ok(pin)),
            Err(Halt::Break(why @ Break::SpoolFull(_))) => Err(Leave::LetGo(why)),
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

    /// Lets snapshot pins go that are in the application's way. True if one must be watched
    /// closely.
    pub(super) fn watch_snapshots(&mut self, seen: &Seen) -> Result<bool> {
        // One that was let go reads on, and must end with the run.
        self.snapshots
            .retain(|watched| watched.pin.strong_count() > 0);
        let pins = self.snapshots.iter().filter_map(|watched| {
            let pin = watched.pin.upgrade().filter(|pin| pin.may_be_exact())?;
            Some((pin, watched.at))
        });
        let exact: Vec<_> = pins.collect();
        if exact.is_empty() {
            return Ok(false);
        }
        let held = self.context.spool.bytes() + self.wal.bytes()?;
        let is_over = held > self.context.spool.room();
        let mut is_close = false;
        for (pin, at) in exact {
            let in_the_way = match pin.exact() {
                None => false,
                Some(View::File) => seen.index.end.frame > 0 && seen.index.end != at,
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
}
