//! The making of a generation's first snapshot, beside the upload of its segments: reads the pages,
//! finds the moment from which they are valid, stores the map.

use crate::error::{Error, Result};
use crate::format::ids::{Txid, WalEnd};
use crate::format::segment::TimelineEntry;
use crate::replicate::first::{FirstSnapshot, PagesRead, ValidFrom};
use crate::replicate::source::{PageSource, Source};
use crate::replicate::spool::{Spool, SpooledCommit, Tip};
use crate::replicate::state::GenerationState;
use std::sync::Arc;
use tokio::sync::watch;

/// What the making needs of the uploader.
pub(super) struct Making {
    pub source: Arc<dyn Source>,
    pub sent: watch::Receiver<Option<SpooledCommit>>,
    /// Asks for everything up to a `seq` to be sent.
    pub hurry: Box<dyn Fn(u64) + Send + Sync>,
    pub tip: watch::Receiver<Option<Tip>>,
    pub spool: Arc<Spool>,
    pub generation: GenerationState,
}

impl Making {
    pub(super) async fn make(self, job: FirstSnapshot, pin: Box<dyn PageSource>) -> Result<Txid> {
        let (end, begins_there) = (pin.end(), pin.seq() == self.generation.base);
        let read = job.read(pin).await?;
        let base = self.generation.base;
        let valid_from = if begins_there && read.exact {
            self.at_base(&read, end)
        } else {
            let seen = self.source.barrier().await?;
            if seen == base && begins_there {
                self.at_base(&read, end)
            } else {
                self.at_sent(seen).await?
            }
        };
        read.store(valid_from).await
    }

    /// Every page is as it was where the generation begins.
    fn at_base(&self, read: &PagesRead, end: WalEnd) -> ValidFrom {
        let entry = TimelineEntry::new(Txid::FIRST, self.generation.started, read.pages());
        ValidFrom { entry, end }
    }

    /// The end of the first stored segment that holds all that had been committed at `seen`.
    async fn at_sent(mut self, seen: u64) -> Result<ValidFrom> {
        (self.hurry)(seen);
        let run = self.generation.run;
        let ended = || Error::conflict("the capture lost continuity while it was being made");
        let commit = loop {
            if let Some(commit) = *self.sent.borrow_and_update()
                && commit.seq >= seen
            {
                break commit;
            }
            self.tip.borrow_and_update();
            let next = self.spool.runs().into_iter().find(|next| next.id > run);
            if next.is_some_and(|next| seen >= next.base) {
                return Err(ended());
            }
            tokio::select! {
                changed = self.sent.changed() => changed.map_err(|_| ended())?,
                changed = self.tip.changed() => changed.map_err(|_| ended())?,
            }
        };
        let txid = self.generation.txid(commit.seq);
        let entry = TimelineEntry {
            upper_bound: commit.upper_bound,
            ..TimelineEntry::new(txid, commit.time, commit.pages)
        };
        Ok(ValidFrom {
            entry,
            end: commit.end,
        })
    }
}
