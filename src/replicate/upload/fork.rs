//! A fork: a generation that starts from a stored commit. Its first snapshot is made of what its
//! parent has stored, beside the upload of its segments.
//!
//! Whether the parent's objects are there is looked at before the claim is put. If they are gone or
//! damaged all the same when the snapshot is made, the generation ends, and the next one starts
//! from the live database.

use crate::error::{Error, ErrorKind, Result};
use crate::format::container::Parent;
use crate::format::ids::{Timestamp, Txid, WalEnd};
use crate::format::key::GENERATIONS;
use crate::maintain::later::{self, Later, Prepared};
use crate::maintain::workshop::Workshop;
use crate::replicate::backoff::Backoff;
use crate::replicate::first::will_pass;
use crate::replicate::fork::{Behind, Holds, fork_starts, is_ours, segments_between};
use crate::replicate::history;
use crate::replicate::known;
use crate::replicate::spool::{Spool, Tip};
use crate::replicate::state::GenerationState;
use crate::replicate::upload::task::{Task, joined};
use crate::replicate::writers::{Fencing, Found, Place, is_unbroken};
use crate::storage::blocking::blocking;
use crate::storage::catalog::Catalog;
use crate::storage::cover::Span;
use crate::storage::{Listed, Store};
use std::ops::RangeInclusive;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::Instrument;

/// So often a snapshot is begun again of whose pieces one was gone: merging passes by.
const TRIES: u32 = 3;

/// A fork that can be made.
pub(super) struct Fork {
    /// The commit that it starts from.
    pub(super) place: Place,
    /// The time of its txid 1.
    pub(super) started: Timestamp,
    pieces: Pieces,
}

/// A stored state of our past.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    pub(super) at: Parent,
    /// SQLite's WAL there; all zeros if that is not known.
    pub(super) end: WalEnd,
    /// What was stored once is never overwritten.
    pub(super) is_fenced: bool,
}

/// What a state is made of: a snapshot, and segments up to there. Keys and bytes.
pub(super) struct Pieces {
    base: (String, u64),
    segments: Vec<Segment>,
}

/// The key and the bytes of a segment, and what of it counts.
type Segment = (String, u64, RangeInclusive<Txid>);

impl Task {
    /// Whether the next generation can be a fork from this place.
    pub(super) async fn fork_from(
        &self,
        place: Option<Place>,
        tip: Tip,
        catalog: &Catalog,
    ) -> Result<Option<Fork>> {
        let Some(place) = place.filter(|_| !self.must_begin_live) else {
            return Ok(None);
        };
        let spool = self.spool.clone();
        let holds = blocking(move || holds(&spool, tip, &place)).await?;
        let Some(started) = fork_starts(&place, &holds, self.environment.now()) else {
            return Ok(None);
        };
        let fencing = self.previous.as_ref().map(|previous| previous.fencing);
        let shared = Shared {
            at: place.parent,
            end: place.end,
            is_fenced: fencing == Some(Fencing::PutIfAbsent),
        };
        let pieces = pieces(&*self.store, catalog, shared).await?;
        if pieces.is_none() {
            let Parent { generation, txid } = place.parent;
            tracing::warn!(
                "what the replica holds of txid {txid} of generation {generation} is not all that \
                 a generation needs to start there; the next one starts from the live database"
            );
        }
        Ok(pieces.map(|pieces| Fork {
            place,
            started,
            pieces,
        }))
    }

    /// Makes the first snapshot of the generation, which is a fork, in the background.
    pub(super) fn make_fork_snapshot(&mut self, fork: Option<Fork>) {
        let (trouble, first_trouble) = watch::channel(None);
        let state = self.state();
        let parent = state.parent().expect("a fork has a parent");
        let Parent { generation, txid } = parent;
        let making = Making {
            workshop: self.workshop(self.store.clone()),
            shared: Shared {
                at: parent,
                end: state.start,
                is_fenced: state.fencing == Fencing::PutIfAbsent,
            },
            behind: None,
            place: later::Place::Fork {
                generation: state.id,
                parent,
                started: state.started,
                end: state.start,
            },
            claim: state.claim_key(),
            trouble,
            failed: format!("no generation can start from txid {txid} of generation {generation}"),
        };
        let pieces = fork.map(|fork| fork.pieces);
        let made = async move { Ok(making.make(pieces).await?.taken.txid) };
        self.first_trouble = first_trouble;
        self.first = Some(tokio::spawn(made.in_current_span()));
    }

    /// Where snapshots are made of what this store shows of the replica.
    pub(super) fn workshop(&self, store: Arc<dyn Store>) -> Workshop {
        Workshop {
            store,
            directory: self.pending.clone(),
            environment: self.environment.clone(),
            writer: self.identity.writer,
            kept: None,
        }
    }

    /// Before a fork ends its first snapshot is made: without one nothing in it can be restored,
    /// and no other fork can start from it. It needs nothing but what is stored.
    pub(super) async fn complete_fork(&mut self) -> Result<()> {
        let is_unmade = |state: &GenerationState| state.is_unmade_fork();
        if !self.state.as_ref().is_some_and(is_unmade) || self.must_begin_live {
            return Ok(());
        }
        self.make_first_snapshot().await?;
        let Some(first) = self.first.as_mut() else {
            return Ok(());
        };
        let ended = joined(first.await);
        self.first = None;
        match self.first_snapshot_ended(ended).await {
            // The generation ends without.
            Err(e) if e.kind() == ErrorKind::Conflict => {
                tracing::warn!("{e}");
                Ok(())
            }
            ended => ended,
        }
    }
}

/// What a spool has behind a place.
fn holds(spool: &Spool, tip: Tip, place: &Place) -> Result<Holds> {
    let behind = match spool.batch(place.run.0, place.seq, 1) {
        Ok(Some(batch)) => Behind::Commit(batch.commits[0].time),
        Ok(None) => Behind::Nothing,
        Err(e) if e.kind() == ErrorKind::NotFound => Behind::Lost,
        Err(e) => return Err(e),
    };
    let runs = spool.runs();
    Ok(Holds {
        runs: runs.iter().map(|run| (run.id, run.token)).collect(),
        tip: tip.seq,
        behind,
    })
}

/// What a state is made of, if all of it is listed, can be read, and is ours.
async fn pieces(store: &dyn Store, catalog: &Catalog, state: Shared) -> Result<Option<Pieces>> {
    let Parent { generation, txid } = state.at;
    let Some(base) = known::last_snapshot(store, catalog, state.at).await? else {
        return Ok(None);
    };
    let standing = catalog.generations[&generation].standing();
    let wanted = standing.filter(|segment| {
        segment.first <= txid && segment.last.is_none_or(|last| last > base.since)
    });
    let objects: Vec<Listed> = wanted.map(|segment| segment.object.clone()).collect();
    let found = history::read_segments(store, &objects).await?;
    let (objects, found): (Vec<Listed>, Vec<Found>) = objects
        .into_iter()
        .zip(found)
        .filter(|(_, found)| found.inside.is_some())
        .unzip();
    let spans: Vec<Span> = found.iter().map(span).collect();
    let chosen = segments_between(base.since, txid, &spans).filter(|_| is_unbroken(&found));
    let is_mark = |(index, _): &(usize, _)| {
        let inside = found[*index].inside.as_ref();
        inside.is_some_and(|inside| inside.snapshot.is_some())
    };
    let Some(chosen) = chosen.filter(|chosen| !chosen.iter().any(is_mark)) else {
        return Ok(None);
    };
    let last = chosen.last().map(|(index, _)| *index);
    let end = match last.map(|index| &found[index]) {
        None => Some(base.end),
        Some(last) if last.last == txid => last.inside.as_ref().map(|inside| inside.ending.end),
        Some(_) => None,
    };
    // A part of a segment: whether this transaction is in it still, its timeline says.
    if let (Some(last), None) = (last, end)
        && !history::has_point(store, &objects[last], txid).await?
    {
        return Ok(None);
    }
    if !is_ours(state.end, end, state.is_fenced) {
        return Ok(None);
    }
    let segments = chosen.into_iter().map(|(index, counts)| {
        let object = &objects[index];
        (object.key.clone(), object.size, counts)
    });
    Ok(Some(Pieces {
        base: (base.object.key, base.object.size),
        segments: segments.collect(),
    }))
}

fn span(found: &Found) -> Span {
    Span {
        level: found.level,
        first: found.first,
        last: found.last,
    }
}

/// The making of a snapshot of what is stored.
pub(super) struct Making {
    pub(super) workshop: Workshop,
    /// The state that it begins with.
    pub(super) shared: Shared,
    /// A segment that lies behind that state and is not stored.
    pub(super) behind: Option<Segment>,
    pub(super) place: later::Place,
    /// The key of the generation's claim.
    pub(super) claim: String,
    /// Why it cannot be made at the moment, if so: a sentence.
    pub(super) trouble: watch::Sender<Option<String>>,
    /// The sentence if it cannot be made for good, but for the reason.
    pub(super) failed: String,
}

impl Making {
    /// # Errors
    /// `Conflict` if it cannot be made for good.
    pub(super) async fn make(self, mut pieces: Option<Pieces>) -> Result<Prepared> {
        let mut backoff = Backoff::default();
        let mut left = TRIES;
        loop {
            match self.try_to_make(pieces.take()).await {
                Ok(made) => {
                    self.trouble.send_replace(None);
                    return Ok(made);
                }
                Err(e) if will_pass(e.kind()) => {
                    let pause = backoff.pause();
                    tracing::warn!("{e}; trying again in {pause:?}");
                    self.trouble.send_replace(Some(e.to_string()));
                    tokio::time::sleep(pause).await;
                }
                Err(e) if e.kind() == ErrorKind::NotFound && left > 0 => {
                    left -= 1;
                    tracing::warn!("{e}");
                }
                Err(e) => return Err(Error::conflict(format!("{}: {e}", self.failed))),
            }
        }
    }

    async fn try_to_make(&self, pieces: Option<Pieces>) -> Result<Prepared> {
        let Pieces { base, mut segments } = match pieces {
            Some(pieces) => pieces,
            None => self.find_pieces().await?,
        };
        segments.extend(self.behind.clone());
        let place = self.place.clone();
        let later = Later {
            base,
            segments,
            place,
        };
        let prepared = later::prepare(&self.workshop, &later).await?;
        // What is behind all that is stored has to wait for its mark.
        if self.behind.is_none() {
            prepared.store(&self.workshop).await?;
        }
        Ok(prepared)
    }

    async fn find_pieces(&self) -> Result<Pieces> {
        let store = &*self.workshop.store;
        let listed = store.list(GENERATIONS, None).await?;
        let gone =
            |what: &str| Error::not_found(format!("{}: {what} is not there", store.location()));
        if !listed.iter().any(|object| object.key == self.claim) {
            return Err(gone(&self.claim));
        }
        let found = pieces(store, &Catalog::new(listed), self.shared).await?;
        found.ok_or_else(|| gone("all that its state is made of"))
    }
}
