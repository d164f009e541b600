//! A transaction that is too large for a segment: `VACUUM` of a large database.
//!
//! It becomes a later snapshot, made of what is stored and of the segment that it would have been,
//! which stays on the local disk; and a *mark*, a segment without pages that names the snapshot and
//! keeps the transaction's place in the history. The parts of the snapshot are stored, then the
//! mark, then the snapshot itself, which waits on the local disk until nobody else can have the
//! transaction's number: before, readers might lay over it what another writer stored under that
//! and later ones. Nothing behind the transaction is sent until all of it is stored.
//!
//! A snapshot needs another one to go on from. Where there is none yet, or no room on the local
//! disk, the generation ends, and the next one starts from the database as it is then.

use crate::error::{Error, ErrorKind, Result};
use crate::format::container::{Header, Parent, verify_object};
use crate::format::ids::{GenerationId, ObjectHash, ObjectId, Txid};
use crate::maintain::later::{self, Prepared, Taken};
use crate::replicate::encode::encode_mark;
use crate::replicate::known;
use crate::replicate::unfinished;
use crate::replicate::upload::fork::{Making, Shared};
use crate::replicate::upload::look::{After, Looked};
use crate::replicate::upload::send::{Drafted, create, shipped_beside};
use crate::replicate::upload::task::Task;
use crate::replicate::writers::Fencing;
use crate::storage::blocking::blocking;
use crate::storage::durable::{scratch_in, sync_directory};
use crate::storage::kept::KeptStore;
use crate::storage::put::{self, Stored};
use std::fs::File;
use std::io;
use std::path::Path;
use std::pin::pin;
use tokio::sync::watch;

impl Task {
    /// What is to be stored of a segment: itself, or, of a huge transaction, the mark, once the
    /// snapshot is stored. `None` if our position is another one by now.
    ///
    /// # Errors
    /// `Conflict` if the generation ends with it.
    pub(super) async fn ship_if_huge(&mut self, drafted: Drafted) -> Result<Option<Drafted>> {
        let block_bytes = drafted.written.block_bytes;
        if !is_huge(
            drafted.timeline.len(),
            block_bytes,
            self.settings.huge_bytes,
        ) {
            return Ok(Some(drafted));
        }
        let txid = drafted.header.first;
        if let Some(why) = self.why_none_can_be_made(&drafted).await? {
            let error = Error::conflict(format!(
                "txid {txid} is too large for a segment, with {block_bytes} bytes of compressed \
                 pages, and cannot become a snapshot: {why}"
            ));
            return Err(self.ends_with(error));
        }
        let prepared = self.prepare(&drafted).await?;
        let looked = match self.must_look() {
            true => self.look(None, After::Pause).await?,
            false => Looked::Clear,
        };
        if looked == Looked::Anew || self.state().sent_txid().next() != txid {
            return Ok(None);
        }
        self.mark(drafted, prepared).await.map(Some)
    }

    async fn why_none_can_be_made(&mut self, drafted: &Drafted) -> Result<Option<&'static str>> {
        let is_complete = self.is_complete().await?;
        let spool = self.spool.clone();
        let (taken, room) = blocking(move || Ok((spool.bytes(), spool.room()))).await?;
        Ok(why_not(is_complete, taken + drafted.written.length, room))
    }

    /// Whether the generation has a snapshot to go on from.
    async fn is_complete(&mut self) -> Result<bool> {
        // That of a fork needs nothing that comes later.
        self.complete_fork().await?;
        let id = self.state().id;
        if self.state().complete.is_none() {
            let catalog = self.list_all().await?;
            // Stored, and not noted yet.
            if let Some(txid) = known::complete_snapshot(&*self.store, &catalog, id).await? {
                self.first_snapshot_ended(Ok(txid)).await?;
            }
        }
        Ok(self.state().complete.is_some())
    }

    /// Makes a snapshot at a transaction, and stores its parts.
    async fn prepare(&mut self, drafted: &Drafted) -> Result<Prepared> {
        let txid = drafted.header.first;
        let named = self.upload_key(txid);
        let (aside, key, file) = (self.aside.clone(), named.clone(), drafted.file.clone());
        blocking(move || aside.keep(&key, &file)).await?;
        let state = self.state();
        let place = state.place();
        let (trouble, mut told) = watch::channel(None);
        let making = Making {
            workshop: self.workshop(KeptStore::new(self.store.clone(), self.aside.clone())),
            shared: Shared {
                at: place.parent,
                end: place.end,
                is_fenced: state.fencing == Fencing::PutIfAbsent,
            },
            behind: Some((named.clone(), drafted.written.length, txid..=txid)),
            place: later::Place::Marked,
            claim: state.claim_key(),
            trouble,
            failed: format!("txid {txid} is too large for a segment, and no snapshot is possible"),
        };
        let mut made = pin!(making.make(None));
        let made = loop {
            tokio::select! {
                made = &mut made => break made,
                Ok(()) = told.changed() => {
                    let trouble = told.borrow_and_update().clone();
                    self.publish(trouble, None);
                }
            }
        };
        self.aside.forget([named.as_str()]);
        let made = made.map_err(|e| self.ends_with(e))?;
        let Taken { bytes, pages, .. } = made.taken;
        tracing::info!(%txid, pages, bytes, "too large for a segment: it becomes a snapshot");
        Ok(made)
    }

    /// From the commit before, the next generation would come to the same.
    fn ends_with(&mut self, error: Error) -> Error {
        self.must_begin_live |= error.kind() == ErrorKind::Conflict;
        error
    }

    /// Writes the mark of a transaction in the place of its segment; lays the snapshot beside it.
    async fn mark(&self, drafted: Drafted, prepared: Prepared) -> Result<Drafted> {
        let header = Header {
            object_id: ObjectId(self.environment.draw()?),
            previous: self.state().last_hash,
            ..drafted.header
        };
        let (file, scratch) = (drafted.file, scratch_in(&self.pending));
        let (predecessors, entry) = (self.recent.predecessors(), drafted.timeline[0]);
        blocking(move || {
            let Prepared {
                taken,
                file: snapshot,
                ..
            } = prepared;
            let beside = shipped_beside(&file);
            let failed = |e| Error::disk(format!("write {}", beside.display()), e);
            snapshot.persist(&beside).map_err(|e| failed(e.error))?;
            sync_directory(&beside).map_err(failed)?;
            let out = create(&file)?;
            let written = encode_mark(&taken.key, out, &header, entry, &predecessors, &scratch)?;
            Ok(Drafted {
                header,
                timeline: vec![entry],
                last: drafted.last,
                file,
                written,
                snapshot: Some(taken.key),
            })
        })
        .await
    }

    /// Stores the snapshot of a transaction whose mark is stored, unless it is stored by now.
    pub(super) async fn store_shipped(&mut self, txid: Txid, key: &str) -> Result<()> {
        let id = self.state().id;
        let file = shipped_beside(&self.segment_file(id, txid));
        let path = file.clone();
        if let Some(hash) = blocking(move || hash_of(&path)).await? {
            let (pending, noted) = (self.pending.clone(), key.to_owned());
            let note = blocking(move || unfinished::note(&pending, &noted)).await?;
            let put = put::put_object(&*self.store, key, &file, &hash).await;
            blocking(move || unfinished::forget(&note)).await?;
            if put? == Stored::Taken {
                return Err(put::taken(&*self.store, key));
            }
        }
        match self.is_openable(id, txid).await? {
            true => Ok(()),
            false => Err(self.without_pages(txid)),
        }
    }

    /// Whether a snapshot at this transaction is stored with all that it needs.
    pub(super) async fn is_openable(&self, generation: GenerationId, txid: Txid) -> Result<bool> {
        let catalog = self.list_all().await?;
        let at = Parent { generation, txid };
        let last = known::last_snapshot(&*self.store, &catalog, at).await?;
        Ok(last.is_some_and(|last| last.txid == txid))
    }

    /// A transaction has its place in the history, and its pages are gone.
    pub(super) fn without_pages(&mut self, txid: Txid) -> Error {
        let (place, id) = (self.store.location(), self.state().id);
        let error = Error::conflict(format!(
            "{place}: the snapshot that holds the pages of txid {txid} of generation {id} is not \
             there, or not all that it needs"
        ));
        self.ends_with(error)
    }
}

/// The hash of the object in a file, if every byte of it is right.
pub(super) fn hash_of(path: &Path) -> Result<Option<ObjectHash>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::disk(format!("read {}", path.display()), e)),
    };
    match verify_object(&mut file) {
        Ok(footer) => Ok(Some(footer.hash)),
        Err(e) if e.kind() == ErrorKind::Corrupt => {
            tracing::warn!("read {}: {e}", path.display());
            Ok(None)
        }
        Err(e) => Err(e.context(format!("read {}", path.display()))),
    }
}

/// Whether what so many transactions wrote goes into a snapshot.
fn is_huge(transactions: usize, block_bytes: u64, huge_bytes: u64) -> bool {
    transactions == 1 && block_bytes > huge_bytes
}

/// Why a huge transaction cannot become a snapshot. `taken_bytes`: of the local disk, with the
/// segment that it would have been.
fn why_not(is_complete: bool, taken_bytes: u64, room_bytes: u64) -> Option<&'static str> {
    match is_complete {
        false => Some("the first snapshot of its generation is not stored yet"),
        true if taken_bytes > room_bytes => Some("the spool has no room for it"),
        true => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_transaction_is_huge_above_the_limit() {
        for (transactions, bytes, expected) in [
            (1, 100, false),
            (1, 101, true),
            (1, u64::MAX, true),
            (2, u64::MAX, false),
        ] {
            assert_eq!(is_huge(transactions, bytes, 100), expected, "{bytes}");
        }
    }

    #[test]
    fn a_huge_transaction_needs_a_snapshot_to_go_on_from_and_room_on_the_disk() {
        let first = Some("the first snapshot of its generation is not stored yet");
        let room = Some("the spool has no room for it");
        for (is_complete, taken, expected) in [
            (true, 0, None),
            (true, 100, None),
            (true, 101, room),
            (false, 0, first),
            (false, 101, first),
        ] {
            assert_eq!(why_not(is_complete, taken, 100), expected, "{taken} taken");
        }
    }
}
