//! Goes on in a generation after a start or a failure: with a state, once the replica is found to
//! be as the state says; without one, in the generation whose end lies on our chain.

use crate::error::{ErrorKind, Result};
use crate::format::container::Parent;
use crate::format::ids::{GenerationId, Timestamp, Txid, WalEnd};
use crate::replicate::decide::clock_stepped_back;
use crate::replicate::history::{self, ENDS_TRIED, GENERATIONS_TRIED};
use crate::replicate::known;
use crate::replicate::sent::SentSegment;
use crate::replicate::spool::{RunInfo, Tip};
use crate::replicate::state::GenerationState;
use crate::replicate::upload::huge::hash_of;
use crate::replicate::upload::look::{After, Looked};
use crate::replicate::upload::send::{Encoded, remove_others, shipped_beside};
use crate::replicate::upload::task::Task;
use crate::replicate::writers::{Fencing, Place, base_if_ours, is_unbroken};
use crate::storage::blocking::blocking;
use crate::storage::catalog::{Catalog, GenerationListing};
use crate::storage::{Body, Put};

/// Segments of which one has the last end: the newest upload, and a merged one beside it.
const LAST_SEGMENTS: usize = 2;

/// Uploads of others that began so long ago will not end.
const UNFINISHED_MICROS: i64 = 7 * 24 * 3600 * 1_000_000;
/// How often that is looked for.
const CLEANED_MICROS: i64 = 24 * 3600 * 1_000_000;

impl Task {
    /// After a start: sends the object that waited, and looks whether anybody else wrote here. If
    /// `resumed` is not set then, the state was replaced, and this is done again.
    pub(super) async fn resume(&mut self) -> Result<()> {
        let tip = *self.tip.borrow();
        let is_ours = self
            .state()
            .check_spool(&self.spool.runs(), tip.map_or(0, |tip| tip.seq));
        if let Err(why) = is_ours {
            return match self.adopt_newest().await? {
                true => Ok(()),
                false => Err(why),
            };
        }
        self.needs_after(self.state().sent_seq());
        self.sent.send_replace(self.state().sent);
        self.check_presence().await?;
        self.look_above().await?;
        if self.send_what_waited().await? == Looked::Anew {
            return Ok(());
        }
        if self.state().fencing == Fencing::Unknown {
            self.probe().await?;
        }
        if self.superseded.is_some() && self.adopt_above().await? {
            return Ok(());
        }
        self.resumed = true;
        Ok(())
    }

    /// Stores the object that an earlier run was about to store, unless it is stored by now.
    async fn send_what_waited(&mut self) -> Result<Looked> {
        let state = self.state();
        let first = state.sent_txid().next();
        let file = self.segment_file(state.id, first);
        let (pending, key, hash) = (
            self.pending.clone(),
            state.last_key.clone(),
            state.last_hash,
        );
        let mut recent = std::mem::take(&mut self.recent);
        let path = file.clone();
        let (recent, waiting) = blocking(move || {
            recent.load(&pending, key, &hash)?;
            remove_others(&pending, &path)?;
            // One that was damaged is made again, of what is in the spool; so is a mark without the
            // snapshot that it stands for.
            let waiting = SentSegment::read_if_right(&path)?;
            let is_mark = waiting.as_ref().is_some_and(|w| w.snapshot.is_some());
            let is_whole = !is_mark || hash_of(&shipped_beside(&path))?.is_some();
            Ok((recent, waiting.filter(|_| is_whole)))
        })
        .await?;
        self.recent = recent;
        let hash = waiting.as_ref().map(|waiting| waiting.footer.hash);
        let looked = self.look(hash, After::Pause).await?;
        let is_due = looked == Looked::Clear && self.state().sent_txid().next() == first;
        if let Some(waiting) = waiting.filter(|_| is_due) {
            let encoded = Encoded {
                first,
                file,
                hash: waiting.footer.hash,
                last: waiting.last_commit(self.state().base),
                sqlite_version: waiting.footer.header.sqlite_version,
                snapshot: waiting.snapshot,
            };
            return self.store_segment(encoded).await;
        }
        Ok(looked)
    }

    /// Puts the generation's claim once more: a store that takes it overwrites what is there.
    pub(super) async fn probe(&mut self) -> Result<()> {
        let id = self.state().id;
        let Some((claim, listed)) = history::claim_of(&*self.store, id).await? else {
            return Ok(());
        };
        let body = Body::Bytes(claim.encode().into());
        let second = self.store.put(&listed.key, body).await?;
        self.fenced_by(&second).await
    }

    /// Notes what the second put of a claim came to.
    pub(super) async fn fenced_by(&mut self, second: &Put) -> Result<()> {
        let fencing = match second {
            Put::Created { .. } => Fencing::None,
            Put::Exists => Fencing::PutIfAbsent,
        };
        if fencing == Fencing::None {
            tracing::error!(
                "fencing: none: {} overwrites objects that a put must not overwrite (it ignores \
                 If-None-Match); two daemons on it are told apart only by listing it before each \
                 upload",
                self.store.location()
            );
        }
        let state = self.state.as_mut().expect("begun before");
        state.fencing = fencing;
        self.save().await
    }

    /// Once after a start, before anything is put: gives up what the last daemon was putting when
    /// it ended. It only takes room, so a failure can wait for [`Task::give_up_old_unfinished`].
    pub(super) async fn give_up_our_unfinished(&mut self) {
        let any_time = Timestamp::from_micros(i64::MAX);
        for key in std::mem::take(&mut self.unfinished) {
            self.give_up_unfinished(&key, any_time).await;
        }
    }

    /// Once a day, while we write: gives up what anybody began so long ago that nobody will end it.
    /// That is for the store's clock to say: by one that is wrong all others would lose what they
    /// are sending just now.
    pub(super) async fn give_up_old_unfinished(&mut self) {
        let Some((date, _)) = self.contact.and_then(|contact| contact.date) else {
            return;
        };
        let is_due =
            |last: Timestamp| date.micros().saturating_sub(last.micros()) >= CLEANED_MICROS;
        if self.cleaned_at.is_none_or(is_due) {
            self.cleaned_at = Some(date);
            let old = Timestamp::from_micros(date.micros() - UNFINISHED_MICROS);
            self.give_up_unfinished("", old).await;
        }
    }

    async fn give_up_unfinished(&self, prefix: &str, before: Timestamp) {
        match self.store.abort_unfinished(prefix, before).await {
            Ok(0) => {}
            Ok(count) => tracing::info!("{count} unfinished uploads of {prefix:?} given up"),
            Err(e) => tracing::warn!("unfinished uploads stay in the store: {e}"),
        }
    }

    /// The first thing that is done with a replica that has no state here.
    pub(super) async fn begin_or_adopt(&mut self, tip: Tip) -> Result<()> {
        let survey = self.survey().await?;
        if self.adopt_from(&survey.catalog, |_| true).await? {
            return Ok(());
        }
        self.begin(tip, None, survey).await
    }

    /// Goes on where our chain has the end of the generation that we write, or of one above it:
    /// whatever our state says, it is ours. Below it lies nothing that readers follow.
    pub(super) async fn adopt_newest(&mut self) -> Result<bool> {
        let survey = self.survey().await?;
        let ours = self.state().id;
        self.adopt_from(&survey.catalog, |id| id >= ours).await
    }

    /// Goes on in a generation above ours, if its end lies on our chain: then we wrote it
    /// ourselves, and our state is an old one. If nothing is captured now, nobody can tell.
    async fn adopt_above(&mut self) -> Result<bool> {
        let survey = self.survey().await?;
        let ours = self.state().id;
        match self.adopt_from(&survey.catalog, |id| id > ours).await {
            Err(e) if e.kind() == ErrorKind::Unavailable => Ok(false),
            adopted => adopted,
        }
    }

    /// Makes the highest generation ours that has a complete snapshot and whose end lies on our
    /// chain, of those that may be ours.
    async fn adopt_from(
        &mut self,
        catalog: &Catalog,
        may_be_ours: impl Fn(GenerationId) -> bool,
    ) -> Result<bool> {
        if catalog.generations.values().all(|g| g.snapshots.is_empty()) {
            return Ok(false);
        }
        // What is not captured yet may be what makes it ours.
        self.source.barrier().await?;
        let tried = catalog.generations.iter().rev().take(GENERATIONS_TRIED);
        for (&id, listing) in tried.take_while(|&(&id, _)| may_be_ours(id)) {
            let complete = known::complete_snapshot(&*self.store, catalog, id).await?;
            if let Some(complete) = complete
                && let Some(state) = self.as_ours(id, listing, complete).await?
            {
                self.adopt_state(state).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The state of a generation, if its end lies on our chain.
    async fn as_ours(
        &self,
        id: GenerationId,
        listing: &GenerationListing,
        complete: Txid,
    ) -> Result<Option<GenerationState>> {
        let Some(run) = self.newest_run() else {
            return Ok(None);
        };
        let Some((claim, listed)) = history::claim_of(&*self.store, id).await? else {
            return Ok(None);
        };
        let found = match listing.segments.is_empty() {
            false => history::last_segments(&*self.store, listing, LAST_SEGMENTS).await?,
            true => history::first_state(&*self.store, listing, &claim, &listed).await?,
        };
        let Some((last, inside)) = found
            .first()
            .and_then(|last| Some((last, last.inside.as_ref()?)))
        else {
            return Ok(None);
        };
        let stepped_back = clock_stepped_back(self.environment.now(), inside.ending.time);
        let chain = self.chain(run.id, &found).await?;
        let seq = chain.get(&inside.ending.end).copied();
        let known = self.state.as_ref().filter(|state| state.id == id);
        let of_run = known.filter(|state| (state.run, state.token) == (run.id, run.token));
        let base = of_run.map(|state| state.base);
        let Some(base) = base_if_ours((last.last, seq), base, stepped_back) else {
            return Ok(None);
        };
        let recent = history::last_segments(&*self.store, listing, ENDS_TRIED).await?;
        let is_whole = inside.snapshot.is_none() || self.is_openable(id, last.last).await?;
        if !is_unbroken(&recent) || !is_whole {
            tracing::warn!("generation {id} is ours, and something is missing near its end");
            return Ok(None);
        }
        Ok(Some(GenerationState {
            id,
            run: run.id,
            token: run.token,
            base,
            start: match last.last {
                Txid::FIRST => inside.ending.end,
                _ => WalEnd::default(),
            },
            is_fork: false,
            parent: claim.parent.map(|parent| (parent.generation, parent.txid)),
            started: claim.started,
            reason: claim.reason,
            complete: Some(complete),
            sent: (last.last > Txid::FIRST).then(|| inside.ending.commit(base)),
            last_hash: inside.hands_on,
            last_key: last.key.clone(),
            sqlite_version: inside.ending.sqlite_version,
            fencing: known.map_or(Fencing::Unknown, |state| state.fencing),
        }))
    }

    async fn adopt_state(&mut self, state: GenerationState) -> Result<()> {
        tracing::warn!(
            "the end of generation {} in {} is what was captured here: going on behind txid {}",
            state.id,
            self.store.location(),
            state.sent_txid()
        );
        self.cancel_first_snapshot();
        self.forget_segments().await?;
        self.state = Some(state);
        self.save().await?;
        (self.previous, self.waiting, self.resumed) = (None, None, false);
        Ok(())
    }

    /// The last end of a segment on our chain. There another writer went on from what we had, in
    /// the same generation or in others; or we did ourselves, and our state is an old one.
    pub(super) async fn shared_with(&self, catalog: &Catalog) -> Result<Option<Place>> {
        let Some(run) = self.newest_run() else {
            return Ok(None);
        };
        for (generation, found) in history::last_of_all(&*self.store, catalog, ENDS_TRIED).await? {
            let chain = match self.chain(run.id, &found).await {
                // A generation begins all the same.
                Err(e) if e.kind() == ErrorKind::Conflict => {
                    tracing::warn!("{e}");
                    return Ok(None);
                }
                chain => chain?,
            };
            for segment in &found {
                if let Some(inside) = &segment.inside
                    && let Some(&seq) = chain.get(&inside.ending.end)
                {
                    let txid = segment.last;
                    return Ok(Some(Place {
                        parent: Parent { generation, txid },
                        time: inside.ending.time,
                        run: (run.id, run.token),
                        seq,
                        end: inside.ending.end,
                    }));
                }
            }
        }
        Ok(None)
    }

    fn newest_run(&self) -> Option<RunInfo> {
        self.spool.runs().pop()
    }
}
