//! Rule 3 after a downtime: whether the capture goes on where it was.
//!
//! Never guesses: what cannot be proved begins a new run.

use crate::error::Result;
use crate::format::ids::WalEnd;
use crate::replicate::copy::Copied;
use crate::replicate::decide::{self, Break, Found, Pin, Resume};
use crate::replicate::live::{Live, size_of_file};
use crate::replicate::observe::{FileState, Index, boot_id};
use crate::replicate::rest::RestNote;
use crate::replicate::salvage::{self, LastCommit};

impl Live {
    pub(super) fn resume(
        &mut self,
        seen: &Index,
        file: &FileState,
        anew: Option<Break>,
    ) -> Result<()> {
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
}
