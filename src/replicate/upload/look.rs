//! What others stored behind our position, and above our generation.
//!
//! Requests: a look behind our position is one LIST, and so is one above our generation (but for
//! what is new there). What is found is read, and judged in [`crate::replicate::writers`].

use crate::error::{Error, ErrorKind, Result};
use crate::format::container::Parent;
use crate::format::ids::{GenerationId, ObjectHash, Timestamp, Txid, WalEnd, WriterId};
use crate::format::key::{Key, ObjectKey, generation_prefix, segments_prefix, snapshots_prefix};
use crate::replicate::decide::clock_stepped_back;
use crate::replicate::history;
use crate::replicate::upload::send::Encoded;
use crate::replicate::upload::task::Task;
use crate::replicate::writers::{
    self, Fencing, Found, Higher, Inside, Verdict, superseded_sentence, writer_of,
};
use crate::storage::Listed;
use crate::storage::blocking::blocking;
use crate::storage::catalog::{Catalog, GenerationListing};
use std::collections::{BTreeMap, HashMap};

/// Segments whose footers are read before those behind them.
const READ_AT_ONCE: usize = 16;

/// What a look behind our position came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// Nobody else is in the generation.
    Clear,
    /// The state was wrong, and is another one now: whoever looked begins again.
    Anew,
}

/// When a look is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// So soon after the store answered that nothing behind our position was deleted meanwhile.
    Contact,
    /// So late that retention may have left of what another writer stored nothing but a snapshot.
    Pause,
}

/// What is not of our making.
enum Other {
    Segment(Box<Found>),
    /// An object, by its key, that shows a history of which no segment is left.
    History(String),
}

impl Task {
    /// Whether another writer may have come since the store last answered.
    pub(super) fn must_look(&self) -> bool {
        let (uptime, clock) = ((self.environment.uptime)(), self.environment.now());
        let is_long_ago = |contact: writers::Contact| contact.was_long_ago(uptime, clock);
        self.state().fencing == Fencing::None || self.contact.is_none_or(is_long_ago)
    }

    /// Whether what was stored with an answer of this date counts only after a look behind it.
    pub(super) fn is_doubtful(&self, date: Option<Timestamp>) -> bool {
        let (uptime, clock) = ((self.environment.uptime)(), self.environment.now());
        writers::is_doubtful(self.contact.as_ref(), date, uptime, clock)
    }

    /// Lists what stands behind our position, and goes on behind what is ours. `waiting` is the
    /// hash of the object that is to be stored next.
    ///
    /// # Errors
    /// `Conflict` if another writer is in the generation.
    pub(super) async fn look(
        &mut self,
        waiting: Option<ObjectHash>,
        after: After,
    ) -> Result<Looked> {
        loop {
            let listed = self.list_behind(after).await?;
            let found = self.read_found(&listed, waiting).await?;
            let verdict = self.judge(&found, waiting).await?;
            let (Verdict::GoOn { adopted } | Verdict::NewGeneration { adopted, .. }) = &verdict;
            for &index in adopted {
                self.adopt(&found[index], waiting).await?;
            }
            let other = match verdict {
                Verdict::GoOn { adopted } if adopted.is_empty() => {
                    match self.gone_on_elsewhere(&listed) {
                        None => return Ok(Looked::Clear),
                        Some(key) => Other::History(key),
                    }
                }
                Verdict::GoOn { .. } => continue,
                Verdict::NewGeneration { other, .. } => {
                    Other::Segment(Box::new(found[other].clone()))
                }
            };
            // It may be that our state is too old, not that another one wrote.
            let before = self.state().clone();
            return match self.adopt_newest().await? && before != *self.state() {
                true => Ok(Looked::Anew),
                false => Err(match other {
                    Other::Segment(segment) => self.foreign(&segment).await?,
                    Other::History(key) => self.foreign_history(&key),
                }),
            };
        }
    }

    /// What shows that somebody went on behind our position, though retention has left no segment
    /// of it: a snapshot there, or a claim that shares more with our generation than we have.
    fn gone_on_elsewhere(&self, listed: &[Listed]) -> Option<String> {
        let state = self.state();
        let shares_more =
            |parent: Parent| parent.generation == state.id && parent.txid > state.sent_txid();
        let claims = self
            .higher
            .values()
            .filter_map(|higher| higher.claim.as_ref());
        let mut later = claims.filter(|claim| claim.parent.is_some_and(shares_more));
        if let Some(claim) = later.next() {
            let object = ObjectKey::Claim;
            let generation = claim.generation;
            return Some(Key { generation, object }.to_string());
        }
        let is_behind = |listed: &&Listed| match Key::parse(&listed.key).map(|key| key.object) {
            Some(ObjectKey::Snapshot { txid, .. }) => txid > state.sent_txid(),
            _ => false,
        };
        listed
            .iter()
            .find(is_behind)
            .map(|listed| listed.key.clone())
    }

    fn foreign_history(&self, key: &str) -> Error {
        let state = self.state();
        Error::conflict(format!(
            "{}/{key} is not of this daemon's making: it goes on behind txid {}, up to which \
             generation {} is ours",
            self.store.location(),
            state.sent_txid(),
            state.id
        ))
    }

    /// Our last segment and what stands behind it; after a pause the snapshots that do, too.
    ///
    /// # Errors
    /// `Conflict` if our last segment is gone.
    async fn list_behind(&mut self, after: After) -> Result<Vec<Listed>> {
        let listed = self.list_all_behind(after).await?;
        self.check_last(&listed)?;
        Ok(listed)
    }

    async fn list_all_behind(&mut self, after: After) -> Result<Vec<Listed>> {
        let state = self.state();
        let start = state.list_after();
        let listed = match after {
            After::Contact => {
                let prefix = segments_prefix(state.id);
                self.store.list(&prefix, start.as_deref()).await?
            }
            // Snapshots are listed before segments, of which not all lie behind us.
            After::Pause => {
                let snapshots = snapshots_prefix(state.id);
                let next = format!("{snapshots}{}", state.sent_txid().next());
                let prefix = generation_prefix(state.id);
                let mut listed = self.store.list(&prefix, Some(&next)).await?;
                let segments = segments_prefix(state.id);
                listed.retain(|listed| {
                    let is_segment = listed.key.starts_with(&segments);
                    !is_segment || start.as_ref().is_none_or(|start| listed.key > *start)
                });
                listed
            }
        };
        self.answered(None);
        Ok(listed)
    }

    /// Our last segment, or one that it was merged into, must be listed.
    fn check_last(&mut self, listed: &[Listed]) -> Result<()> {
        let state = self.state();
        let last = state.sent_txid();
        let holds_last = |listed: &Listed| match Key::parse(&listed.key).map(|key| key.object) {
            Some(ObjectKey::Merged {
                first, last: end, ..
            }) => first <= last && last <= end,
            _ => listed.key == state.last_key,
        };
        if last > Txid::FIRST && !listed.iter().any(holds_last) {
            let last_key = state.last_key.clone();
            return Err(self.gone(&last_key));
        }
        Ok(())
    }

    /// Reads what may hold the transactions behind our position, up to the first upload that is not
    /// ours.
    async fn read_found(
        &self,
        listed: &[Listed],
        waiting: Option<ObjectHash>,
    ) -> Result<Vec<Found>> {
        let state = self.state();
        let next = state.sent_txid().next();
        let catalog = Catalog::new(listed.to_vec());
        let (mut uploads, mut merged) = (Vec::new(), Vec::new());
        for segment in catalog
            .generations
            .values()
            .flat_map(GenerationListing::standing)
        {
            match (segment.level, segment.last) {
                _ if segment.object.key == state.last_key => {}
                (0, _) => uploads.push(segment.object.clone()),
                (_, last) if last >= Some(next) => merged.push(segment.object.clone()),
                _ => {}
            }
        }
        let mut found = history::read_segments(&*self.store, &merged).await?;
        for uploads in uploads.chunks(READ_AT_ONCE) {
            let read = history::read_segments(&*self.store, uploads).await?;
            let chain = self.chain(state.run, &read).await?;
            let is_ours = |inside: &Inside| {
                waiting == Some(inside.hash) || chain.contains_key(&inside.ending.end)
            };
            let all_ours = read
                .iter()
                .all(|segment| segment.inside.as_ref().is_some_and(is_ours));
            found.extend(read);
            if !all_ours {
                break;
            }
        }
        Ok(found)
    }

    /// Where the ends of segments lie on our chain.
    ///
    /// # Errors
    /// `Conflict` if the spool has lost commits: it cannot say.
    pub(super) async fn chain(&self, run: u64, found: &[Found]) -> Result<HashMap<WalEnd, u64>> {
        let insides = found.iter().filter_map(|segment| segment.inside.as_ref());
        let ends: Vec<WalEnd> = insides.map(|inside| inside.ending.end).collect();
        if ends.is_empty() {
            return Ok(HashMap::new());
        }
        let spool = self.spool.clone();
        let chain = blocking(move || spool.seqs(run, &ends)).await;
        chain.map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                Error::conflict(format!("nobody can tell what of the replica is ours: {e}"))
            }
            _ => e,
        })
    }

    async fn judge(&self, found: &[Found], waiting: Option<ObjectHash>) -> Result<Verdict> {
        let state = self.state();
        let known = state.known(waiting);
        let chain = self.chain(state.run, found).await?;
        let verdict = writers::judge(&known, found, &|end| chain.get(end).copied());
        let goes_on = self.tip.borrow().is_some_and(|tip| tip.run == state.run);
        if matches!(verdict, Verdict::GoOn { .. }) || !goes_on {
            return Ok(verdict);
        }
        // What we have not captured yet may be ours all the same.
        self.source.barrier().await?;
        let chain = self.chain(state.run, found).await?;
        Ok(writers::judge(&known, found, &|end| {
            chain.get(end).copied()
        }))
    }

    /// Goes on behind a segment that holds our own commits.
    ///
    /// # Errors
    /// `Conflict` if another writer gave them times so far ahead of the clock that ours cannot go
    /// on behind them; `Disk`.
    async fn adopt(&mut self, found: &Found, waiting: Option<ObjectHash>) -> Result<()> {
        let inside = found.inside.as_ref().expect("judged by what it says");
        let state = self.state();
        let file = self.segment_file(state.id, found.first);
        if waiting == Some(inside.hash) {
            let last = inside.ending.commit(state.base);
            let encoded = Encoded {
                first: found.first,
                file,
                hash: inside.hash,
                last,
                sqlite_version: inside.ending.sqlite_version,
                snapshot: inside.snapshot.clone(),
            };
            return self.segment_is_stored(found.key.clone(), encoded).await;
        }
        let (id, time) = (state.id, inside.ending.time);
        if inside.snapshot.is_some() && !self.is_openable(id, found.last).await? {
            return Err(self.without_pages(found.last));
        }
        let state = self.state.as_mut().expect("begun before");
        state.adopt(found.key.clone(), inside);
        let sent = state.sent;
        let place = self.store.location();
        if clock_stepped_back(self.environment.now(), time) {
            // Not saved: until the next generation is, each start has to find this again.
            return Err(Error::conflict(format!(
                "{place}/{} gives what was captured here times up to {time}, more than an hour \
                 ahead of the clock; generation {id} ends with it",
                found.key
            )));
        }
        tracing::warn!(
            "{place}/{} holds what was captured here: going on behind txid {}",
            found.key,
            found.last
        );
        self.save().await?;
        self.sent.send_replace(sent);
        self.forget_segments().await
    }

    /// Another object has the key of one of ours.
    pub(super) async fn look_at_taken(&mut self, key: &str, hash: ObjectHash) -> Result<Looked> {
        let before = self.state().sent_txid();
        let looked = self.look(Some(hash), After::Contact).await?;
        if looked == Looked::Anew || before != self.state().sent_txid() {
            return Ok(looked);
        }
        Err(Error::unavailable(format!(
            "put {}/{key}: the store says that it exists and does not list it",
            self.store.location()
        )))
    }

    /// Looks whether anybody else wrote while a machine that was paused thought that no time had
    /// passed: its put may have succeeded only because the name was free again. `hash` is that of
    /// what was put. If the name was free, `is_new`, and others had gone on behind it before, it
    /// goes again: readers would take it for a part of their history.
    ///
    /// # Errors
    /// `Conflict` if another writer is in the generation.
    pub(super) async fn look_behind_put(
        &mut self,
        key: &str,
        hash: ObjectHash,
        is_new: bool,
    ) -> Result<()> {
        let listed = self.list_all_behind(After::Pause).await?;
        let foreign = match self.check_last(&listed) {
            Err(e) => Some(e),
            Ok(()) => self.foreign_among(&listed, key, hash).await?,
        };
        let Some(foreign) = foreign else {
            return Ok(());
        };
        if is_new
            && writers::came_late(key, &listed)
            && let Err(e) = self.store.delete(&[key.to_owned()]).await
        {
            tracing::warn!("a segment stays where it does not belong: {e}");
        }
        Err(foreign)
    }

    /// What says that others have gone on behind our position.
    async fn foreign_among(
        &mut self,
        listed: &[Listed],
        key: &str,
        hash: ObjectHash,
    ) -> Result<Option<Error>> {
        let others: Vec<Listed> = listed
            .iter()
            .filter(|listed| listed.key != key)
            .cloned()
            .collect();
        if self.read_found(&others, None).await?.is_empty() {
            let gone_on = self.gone_on_elsewhere(&others);
            return Ok(gone_on.map(|key| self.foreign_history(&key)));
        }
        // Ours may have been merged by now.
        let found = self.read_found(listed, Some(hash)).await?;
        match self.judge(&found, Some(hash)).await? {
            Verdict::GoOn { .. } => Ok(None),
            Verdict::NewGeneration { other, .. } => self.foreign(&found[other]).await.map(Some),
        }
    }

    /// The sentence about a segment that another writer stored.
    async fn foreign(&self, other: &Found) -> Result<Error> {
        let who = match &other.inside {
            None => "nobody knows whose it is, for it cannot be read".to_owned(),
            Some(inside) if inside.writer == self.identity.writer => {
                "a copy of this machine wrote it".to_owned()
            }
            Some(inside) => format!("{} wrote it", self.author(inside.writer).await?),
        };
        let state = self.state();
        Ok(Error::conflict(format!(
            "{}/{} is not of this daemon's making: {who}; both share generation {} up to txid {}",
            self.store.location(),
            other.key,
            state.id,
            state.sent_txid()
        )))
    }

    /// Who this writer is, as far as claims tell. Most writers have none: a daemon that goes on in
    /// its generation after a restart is another writer.
    async fn author(&self, writer: WriterId) -> Result<String> {
        if let Some(claim) = history::claim_of_writer(&*self.store, writer).await? {
            return Ok(writer_of(&claim));
        }
        let claim = history::claim_of(&*self.store, self.state().id).await?;
        Ok(match claim {
            Some((claim, _)) => format!(
                "a later run of {}, or of a copy of that machine,",
                writer_of(&claim)
            ),
            None => format!("writer {writer}, which has no claim,"),
        })
    }

    /// Whether the replica still holds what the generation stands on. Somebody may have emptied it.
    pub(super) async fn check_presence(&mut self) -> Result<()> {
        let prefix = generation_prefix(self.state().id);
        let names = self.store.list_folder(&prefix).await?;
        let state = self.state();
        let has = |name: &str| names.iter().any(|found| found == name);
        let claim = Key {
            generation: state.id,
            object: ObjectKey::Claim,
        };
        if !has("claim") {
            return Err(self.gone(&claim.to_string()));
        }
        if state.complete.is_some() && !has("snapshots/") {
            let place = self.store.location();
            let id = state.id;
            return Err(self.lost(format!(
                "{place} lost the first snapshot of generation {id}"
            )));
        }
        Ok(())
    }

    fn gone(&mut self, key: &str) -> Error {
        let place = self.store.location();
        self.lost(format!(
            "{place}/{key} is gone: somebody removed what the replica held"
        ))
    }

    /// What was durable on the replica is so no more.
    fn lost(&mut self, why: String) -> Error {
        (self.durable, self.resumed) = (None, false);
        Error::conflict(why)
    }

    /// Finds out whether another writer's generation is above ours, and says so.
    pub(super) async fn look_above(&mut self) -> Result<()> {
        let ours = self.state().id;
        let names = history::generations(&*self.store).await?;
        let mut higher = BTreeMap::new();
        for generation in names.into_iter().filter(|&generation| generation > ours) {
            let known = self.higher.remove(&generation);
            higher.insert(generation, self.read_higher(generation, known).await?);
        }
        let all: Vec<Higher> = higher.values().cloned().collect();
        self.higher = higher;
        self.knows_ages = self.store_time().is_some();
        let sentence = writers::superseded(&all).map(|other| superseded_sentence(ours, other));
        if sentence != self.superseded {
            match &sentence {
                Some(sentence) => tracing::error!("{sentence}"),
                None => tracing::info!("no generation of another writer is above {ours} any more"),
            }
            self.superseded = sentence;
        }
        Ok(())
    }

    fn store_time(&self) -> Option<Timestamp> {
        self.contact?.store_time((self.environment.uptime)())
    }

    /// Looks once more at what is above ours, if a claim there is of an age that was not known as
    /// long as the store had not said the time.
    pub(super) async fn look_at_ages(&mut self) -> Result<()> {
        let is_bare = |higher: &Higher| higher.bare_for.is_some();
        let is_unsure = !self.knows_ages && self.higher.values().any(is_bare);
        match is_unsure && self.store_time().is_some() {
            true => self.look_above().await,
            false => Ok(()),
        }
    }

    /// Reads what is not known yet of a generation above ours.
    async fn read_higher(&self, generation: GenerationId, known: Option<Higher>) -> Result<Higher> {
        if let Some(known) = known.filter(|known| !known.is_ours && known.bare_for.is_none()) {
            return Ok(known);
        }
        let is_bare = history::is_bare(&*self.store, generation).await?;
        let mut higher = Higher {
            generation,
            // Our state would say so if we had stored more: a clone of this machine did.
            is_ours: is_bare && self.begun.contains(generation),
            claim: None,
            bare_for: None,
        };
        if higher.is_ours {
            return Ok(higher);
        }
        if let Some((claim, listed)) = history::claim_of(&*self.store, generation).await? {
            let age = writers::age_of_claim(listed.modified, self.store_time());
            higher.bare_for = is_bare.then_some(age);
            higher.claim = Some(claim);
        }
        Ok(higher)
    }
}
