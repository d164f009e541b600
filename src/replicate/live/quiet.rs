//! Rule 5: an empty WAL at rest, and the note of how the file was left.

use crate::replicate::connection::{Checkpoint, CheckpointMode};
use crate::replicate::decide::Pin;
use crate::replicate::live::{Halt, Live};
use crate::replicate::observe::{FileState, Index, boot_id};
use crate::replicate::rest::RestNote;
use std::time::Instant;

impl Live {
    /// Rule 5: an empty WAL at rest. Never waits.
    pub(super) fn empty_wal(&mut self) -> Result<(), Halt> {
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

    pub(super) fn remember_file(&mut self) -> Result<(), Halt> {
        self.rest = FileState::of(&self.context.database)?;
        self.is_noted = false;
        Ok(())
    }

    pub(super) fn note_rest(&mut self, seen: &Index) -> Result<(), Halt> {
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
}
