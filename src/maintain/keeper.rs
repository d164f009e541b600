//! One replica, kept cheap: each round looks at it, merges, takes a snapshot if one is due, and
//! lets go what retention no longer wants.
//!
//! Safe to be killed at any point and to run again: what is listed is all that counts. Only the
//! writer of the highest generation works here, and nothing goes in a run whose listing shows an
//! object that it does not know. What commands ask of a replica is in [`asked`].

pub mod asked;

use crate::config::settings::Retention;
use crate::error::{Error, ErrorKind, Result};
use crate::format::ids::{GenerationId, Timestamp, Txid};
use crate::format::key::{GENERATIONS, Key, ObjectKey};
use crate::maintain::account::account;
use crate::maintain::clock::{self, LastLook, Now};
use crate::maintain::later::{self, Place, Taken};
use crate::maintain::look::{Insides, Wanted};
use crate::maintain::merge::{Merge, Merged, merge};
use crate::maintain::retain::{Decision, Deletion, Limits, Why, retain};
use crate::maintain::rules;
use crate::maintain::standing::Line;
use crate::maintain::survey::Survey;
use crate::maintain::workshop::Workshop;
use crate::storage::blocking::blocking;
use crate::storage::catalog::Catalog;
use crate::storage::durable::{read_if_there, replace_file};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

/// How a replica is kept.
#[derive(Clone, Debug)]
pub struct KeepSettings {
    /// How long which restore points stay.
    pub retention: Retention,
    /// How often a snapshot is taken when there are changes.
    pub snapshot_interval: Duration,
    /// How long a segment stays after another one was stored that holds it.
    pub merged_grace: Duration,
    /// What is remembered between two runs; nothing when absent.
    pub notes: Option<PathBuf>,
}

/// On whose behalf a round works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behalf {
    /// The daemon's that writes this generation, and has stored its transactions up to this one.
    Writer(GenerationId, Txid),
    /// Of a command, which looks at all that is stored.
    Nobody,
}

/// What a round came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Merges done.
    pub merges: usize,
    /// The snapshot that was taken.
    pub snapshot: Option<Taken>,
    /// Objects deleted, and their bytes.
    pub deleted: (usize, u64),
    /// Uploads that wait to be merged.
    pub uploads: usize,
    /// When the oldest of them was stored.
    pub oldest: Option<Timestamp>,
    /// When something falls due by time alone.
    pub due_at: Option<Timestamp>,
}

/// What is remembered between two runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    /// Snapshots and parts that nothing needed, since which listing.
    unneeded: BTreeMap<String, Timestamp>,
    /// What the clocks said.
    clock: Option<LastLook>,
}

/// Keeps one replica.
pub struct Keeper {
    workshop: Workshop,
    settings: KeepSettings,
    insides: Insides,
    notes: Notes,
    /// The objects of the last listing, and those made since.
    known: Option<HashSet<String>>,
    /// An object that a listing of this round showed and nobody had told us of.
    stranger: Option<String>,
    /// By output: the segments that it was found to account for.
    accounted: HashMap<(String, u64), HashSet<String>>,
    /// Merges that cannot be done, by their first input.
    stuck: HashSet<String>,
    /// By generation: how many bytes of segments there were when a snapshot was found not to be
    /// worth it.
    refused: HashMap<GenerationId, u64>,
}

/// A replica as one listing shows it.
struct Looked {
    catalog: Catalog,
    survey: Survey,
    /// A claim that cannot be read.
    damaged_claim: Option<String>,
    /// When something was stored last.
    added: Option<Timestamp>,
    /// Bytes of all that is listed, whatever it is.
    bytes: u64,
}

impl Keeper {
    /// Reads what an earlier run noted. Blocking.
    ///
    /// # Errors
    /// `Disk`.
    pub fn new(workshop: Workshop, settings: KeepSettings) -> Result<Self> {
        let noted = settings.notes.as_deref().map(read_if_there).transpose()?;
        // Notes that cannot be read only make what they say take longer.
        let notes = noted
            .flatten()
            .and_then(|json| serde_json::from_slice(&json).ok());
        let mut notes: Notes = notes.unwrap_or_default();
        if settings.notes.is_some() && notes.clock.is_none() {
            // A clock that jumps before the first round is found out, too.
            let environment = &workshop.environment;
            let (clock, uptime) = (environment.now(), (environment.uptime)());
            notes.clock = Some(clock::judge(None, clock, uptime, None).1);
        }
        Ok(Self {
            workshop,
            settings,
            insides: Insides::default(),
            notes,
            known: None,
            stranger: None,
            accounted: HashMap::new(),
            stuck: HashSet::new(),
            refused: HashMap::new(),
        })
    }

    /// Looks, merges, takes a snapshot if one is due, and deletes.
    ///
    /// # Errors
    /// `NotFound` if something went while it was needed: the next round sees why; `Unavailable`,
    /// `Disk`.
    pub async fn round(&mut self, behalf: Behalf) -> Result<Round> {
        let mut round = Round::default();
        self.stranger = None;
        let mut looked = self.look(behalf).await?;
        if !leads(&looked.catalog, behalf, self.now().0) {
            return Ok(round);
        }
        while let Some(next) = self.next_merge(&looked.survey) {
            let made = self.merge(&next).await?;
            round.merges += usize::from(made);
            looked = self.look(behalf).await?;
        }
        match self.snapshot_if_due(&looked, behalf).await {
            // What is damaged keeps nothing else from being done.
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::error!("no snapshot is taken: {e}");
            }
            taken => round.snapshot = taken?,
        }
        if round.snapshot.is_some() {
            looked = self.look(behalf).await?;
        }
        if !leads(&looked.catalog, behalf, self.now().0) {
            return Ok(round);
        }
        (round.deleted, round.due_at) = self.retain(&looked, behalf).await?;
        (round.uploads, round.oldest) = waiting(&looked.survey);
        Ok(round)
    }

    /// What the clock of the store says, or else ours.
    fn now(&self) -> (Timestamp, Option<Timestamp>) {
        let store = self.workshop.store.date();
        let clock = self.workshop.environment.now();
        (store.unwrap_or(clock), store)
    }

    /// One listing, and what has to be read for it.
    async fn look(&mut self, behalf: Behalf) -> Result<Looked> {
        let listed = self.workshop.store.list(GENERATIONS, None).await?;
        let keys: HashSet<String> = listed.iter().map(|object| object.key.clone()).collect();
        let is_known = |key: &String| {
            self.known.as_ref().is_some_and(|known| known.contains(key)) || is_of(behalf, key)
        };
        let mut keys_listed = listed.iter().map(|o| &o.key);
        let stranger = keys_listed.find(|key| !is_known(key)).cloned();
        self.stranger = self.stranger.take().or(stranger);
        let added = listed.iter().map(|object| object.modified).max();
        let bytes = listed.iter().map(|object| object.size).sum();
        self.known = Some(keys);
        let catalog = Catalog::new(listed);
        let mut wanted = match behalf {
            Behalf::Writer(..) => Wanted::of(&self.settings.retention, self.now().0),
            Behalf::Nobody => Wanted::all(),
        };
        wanted.behind = catalog.generations.iter().rev().find_map(|(&id, listing)| {
            let last = listing.snapshots.last()?;
            Some((id, last.txid))
        });
        let store = &*self.workshop.store;
        let survey = self.insides.survey(store, &catalog, wanted).await?;
        Ok(Looked {
            catalog,
            survey,
            damaged_claim: self.insides.damaged_claim().map(str::to_owned),
            added,
            bytes,
        })
    }

    /// The next merge of the highest generation that has one.
    fn next_merge(&self, survey: &Survey) -> Option<Merge> {
        let now = self.now().0;
        survey.generations.keys().rev().find_map(|&id| {
            let line = Line::new(survey, id)?;
            let planned = rules::next_merge(&line.segments, &line.snapshots, now)?;
            let merge = line.merge(&planned);
            (!self.is_known_stuck(&merge)).then_some(merge)
        })
    }

    /// Merges, and makes sure of the output. False if that cannot be done.
    async fn merge(&mut self, merge: &Merge) -> Result<bool> {
        match self.try_to_merge(merge).await {
            // What is kept here may be damaged: what is stored counts.
            Err(e) if e.kind() == ErrorKind::Corrupt && self.forget_kept(merge) => {
                tracing::warn!("{e}; trying again with what is stored");
                match self.try_to_merge(merge).await {
                    Err(e) if e.kind() == ErrorKind::Corrupt => Ok(self.is_stuck(merge, &e)),
                    merged => merged,
                }
            }
            Err(e) if e.kind() == ErrorKind::Corrupt => Ok(self.is_stuck(merge, &e)),
            merged => merged,
        }
    }

    async fn try_to_merge(&mut self, asked: &Merge) -> Result<bool> {
        let Merged { key, length, file } = merge(&self.workshop, asked).await?;
        tracing::debug!("{} segments merged into {key}", asked.inputs.len());
        let output = (key, length);
        let accounted = self.account(&asked.inputs, &output).await;
        if let Err(e) = &accounted
            && e.kind() == ErrorKind::Corrupt
        {
            // Readers would take it for what it was made from.
            self.workshop.store.delete(&[output.0]).await?;
            return accounted.map(|()| true);
        }
        accounted?;
        let keys = asked.inputs.iter().map(|(key, _)| key.as_str());
        if let Some(kept) = &self.workshop.kept {
            kept.forget(keys);
        }
        self.note_made(output.0.clone());
        // Only now: it was to be read back from the store.
        self.workshop.keep(output.0, file).await;
        Ok(true)
    }

    fn note_made(&mut self, key: String) {
        self.known.get_or_insert_default().insert(key);
    }

    async fn account(&mut self, inputs: &[(String, u64)], output: &(String, u64)) -> Result<()> {
        let Workshop {
            store, directory, ..
        } = &self.workshop;
        account(&**store, directory, inputs, output).await?;
        let held = self.accounted.entry(output.clone()).or_default();
        held.extend(inputs.iter().map(|(key, _)| key.clone()));
        Ok(())
    }

    /// True if anything was kept here that may have been damaged.
    fn forget_kept(&self, merge: &Merge) -> bool {
        let Some(kept) = &self.workshop.kept else {
            return false;
        };
        let were = merge.inputs.iter().any(|(key, _)| kept.has(key));
        kept.forget(merge.inputs.iter().map(|(key, _)| key.as_str()));
        were
    }

    fn is_stuck(&mut self, merge: &Merge, error: &Error) -> bool {
        tracing::error!("segments stay as they are: {error}");
        self.stuck.insert(merge.inputs[0].0.clone());
        false
    }

    async fn snapshot_if_due(&mut self, looked: &Looked, behalf: Behalf) -> Result<Option<Taken>> {
        match self.due_snapshot(looked, behalf).await? {
            Some(generation) => self.close_and_take(generation, behalf).await,
            None => Ok(None),
        }
    }

    /// The generation of which a snapshot is due.
    async fn due_snapshot(
        &mut self,
        looked: &Looked,
        behalf: Behalf,
    ) -> Result<Option<GenerationId>> {
        let interval = self.settings.snapshot_interval;
        // One that the writer gave up gets none any more.
        let is_written = |id| !matches!(behalf, Behalf::Writer(ours, _) if ours != id);
        let Some((id, line)) = newest(&looked.survey).filter(|(id, _)| is_written(*id)) else {
            return Ok(None);
        };
        let mut since = line.since(self.now().0);
        let refused = self.refused.get(&id).copied().unwrap_or(0);
        let has_grown = since.segment_bytes > refused + refused / 4;
        if has_grown
            && rules::may_be_due(&since, interval)
            && let Some(later) = line.later(Place::Later)
        {
            let bytes = later::changed_bytes(&self.workshop, &later).await?;
            since.snapshot_bytes = Some(line.cost(bytes));
            self.refused.insert(id, since.segment_bytes);
        }
        Ok(rules::is_due(&since, interval).then_some(id))
    }

    /// Merges what a snapshot ends, and takes it; `None` if nothing was committed since the last
    /// one.
    async fn close_and_take(&mut self, id: GenerationId, behalf: Behalf) -> Result<Option<Taken>> {
        loop {
            let looked = self.look(behalf).await?;
            let Some(line) = Line::new(&looked.survey, id) else {
                return Ok(None);
            };
            let closing = rules::next_closing(&line.segments, &line.snapshots);
            let closing = closing.map(|planned| line.merge(&planned));
            if let Some(merge) = closing.filter(|merge| !self.is_known_stuck(merge)) {
                self.merge(&merge).await?;
                continue;
            }
            let Some(later) = line.later(Place::Later) else {
                return Ok(None);
            };
            let taken = later::take(&self.workshop, &later).await?;
            let Taken {
                key,
                txid,
                bytes,
                pages,
            } = &taken;
            tracing::info!(generation = %id, %txid, pages, bytes, "snapshot taken");
            self.note_made(key.clone());
            self.refused.remove(&id);
            return Ok(Some(taken));
        }
    }

    fn is_known_stuck(&self, merge: &Merge) -> bool {
        self.stuck.contains(&merge.inputs[0].0)
    }

    /// What retention decides at a time.
    fn decide(&self, looked: &Looked, now: Timestamp) -> Decision {
        let limits = Limits {
            merged_grace: self.settings.merged_grace,
        };
        let unneeded = &self.notes.unneeded;
        retain(
            &looked.survey,
            unneeded,
            &self.settings.retention,
            &limits,
            now,
        )
    }

    /// Rewrites and deletes what retention says, if it may; objects and bytes, and when something
    /// falls due by time alone.
    async fn retain(
        &mut self,
        looked: &Looked,
        behalf: Behalf,
    ) -> Result<((usize, u64), Option<Timestamp>)> {
        let environment = &self.workshop.environment;
        let (clock, uptime) = (environment.now(), (environment.uptime)());
        let (now, look) = clock::judge(self.notes.clock, clock, uptime, self.now().1);
        self.notes.clock = Some(look);
        // Nothing goes now; but it may later.
        let nothing = ((0, 0), Some(clock));
        let now = match now {
            Now::At(now) => now,
            Now::Unknown(why) => {
                tracing::warn!("{why}");
                self.save_notes().await?;
                return Ok(nothing);
            }
        };
        let decision = self.decide(looked, now);
        self.notes.unneeded = decision.unneeded.clone();
        self.save_notes().await?;
        if let Some(claim) = &looked.damaged_claim {
            tracing::error!("nothing is deleted: {claim} cannot be read");
            return Ok(nothing);
        }
        if behalf != Behalf::Nobody
            && let Some(stranger) = &self.stranger
        {
            tracing::debug!("nothing is deleted in this round: {stranger} is new");
            let is_due = !decision.deletions.is_empty() || !decision.rewrites.is_empty();
            return Ok(((0, 0), if is_due { Some(clock) } else { decision.next }));
        }
        let thinned = self.rewrite(looked, &decision).await?;
        let deleted = self.let_go(looked, &decision).await?;
        // What was thinned or deleted makes other things superfluous.
        let due_at = match thinned > 0 || deleted.0 > 0 {
            true => Some(clock),
            false => decision.next,
        };
        Ok((deleted, due_at))
    }

    /// Deletes what has to go, as far as what is left holds it.
    async fn let_go(&mut self, looked: &Looked, decision: &Decision) -> Result<(usize, u64)> {
        let sizes = segment_sizes(&looked.survey);
        let mut gone = Vec::new();
        for (output, inputs) in merged_into(&decision.deletions) {
            let Some(&size) = sizes.get(output.as_str()) else {
                continue;
            };
            match self.make_sure(&inputs, (output, size)).await {
                Ok(()) => gone.extend(inputs),
                Err(e) if e.kind() == ErrorKind::Corrupt => tracing::error!("they stay: {e}"),
                Err(e) => return Err(e),
            }
        }
        let others = decision.deletions.iter();
        let others = others.filter(|deletion| !matches!(deletion.why, Why::MergedInto(_)));
        gone.extend(others.cloned());
        self.delete(gone).await
    }

    /// Thins segments; how many.
    async fn rewrite(&mut self, looked: &Looked, decision: &Decision) -> Result<usize> {
        let mut rewritten = 0;
        for rewrite in &decision.rewrites {
            let sizes = segment_sizes(&looked.survey);
            let Some(&size) = sizes.get(rewrite.key.as_str()) else {
                continue;
            };
            let thinned = Merge {
                generation: rewrite.generation,
                inputs: vec![(rewrite.key.clone(), size)],
                level: rewrite.level,
                keep: Some(rewrite.keep.clone()),
            };
            if !self.is_known_stuck(&thinned) {
                rewritten += usize::from(self.merge(&thinned).await?);
            }
        }
        Ok(rewritten)
    }

    /// Makes sure that a segment holds others, unless that was done.
    async fn make_sure(&mut self, inputs: &[Deletion], output: (String, u64)) -> Result<()> {
        let held = self.accounted.get(&output);
        let is_held = |input: &Deletion| held.is_some_and(|held| held.contains(&input.key));
        let left = inputs.iter().filter(|input| !is_held(input));
        let left: Vec<_> = left.map(|input| (input.key.clone(), input.size)).collect();
        if left.is_empty() {
            return Ok(());
        }
        self.account(&left, &output).await
    }

    async fn delete(&mut self, gone: Vec<Deletion>) -> Result<(usize, u64)> {
        if gone.is_empty() {
            return Ok((0, 0));
        }
        let bytes = gone.iter().map(|deletion| deletion.size).sum();
        for deletion in &gone {
            tracing::debug!("delete {}: {}", deletion.key, deletion.why);
        }
        let keys: Vec<String> = gone.iter().map(|deletion| deletion.key.clone()).collect();
        self.workshop.store.delete(&keys).await?;
        let gone: HashSet<&str> = keys.iter().map(String::as_str).collect();
        self.accounted.retain(|(output, _), inputs| {
            inputs.retain(|input| !gone.contains(input.as_str()));
            !gone.contains(output.as_str()) && !inputs.is_empty()
        });
        tracing::info!(
            objects = keys.len(),
            bytes,
            "deleted what is not needed any more"
        );
        Ok((keys.len(), bytes))
    }

    async fn save_notes(&self) -> Result<()> {
        let Some(path) = self.settings.notes.clone() else {
            return Ok(());
        };
        let json = serde_json::to_vec(&self.notes).expect("keys and times are JSON");
        blocking(move || replace_file(&path, &json)).await
    }
}

/// Whether nobody else leads: another writer's generation above ours counts, unless it is an old
/// claim with nothing under it.
fn leads(catalog: &Catalog, behalf: Behalf, now: Timestamp) -> bool {
    let Behalf::Writer(ours, _) = behalf else {
        return true;
    };
    let above = catalog.generations.iter().filter(|(id, _)| **id > ours);
    let mut above = above.map(|(_, listing)| {
        let is_bare =
            listing.snapshots.is_empty() && listing.parts.is_empty() && listing.segments.is_empty();
        let claimed = listing.claim.as_ref();
        is_bare && claimed.is_some_and(|c| rules::later(c.modified, BARE_CLAIM) < now)
    });
    above.all(|is_old| is_old)
}

/// A higher claim with nothing stored under it counts for so long.
const BARE_CLAIM: Duration = Duration::from_secs(24 * 3600);

/// Whether the writer itself stored such an object: its claim, its first snapshot, its uploads.
fn is_of(behalf: Behalf, key: &str) -> bool {
    let Behalf::Writer(ours, last) = behalf else {
        return false;
    };
    Key::parse(key).is_some_and(|key| {
        key.generation == ours
            && match key.object {
                ObjectKey::Claim | ObjectKey::Part { .. } => true,
                ObjectKey::Snapshot { txid, .. } => txid <= last,
                // What another writer uploads here the uploader meets itself.
                ObjectKey::Upload { .. } => true,
                ObjectKey::Merged { .. } => false,
            }
    })
}

/// How many uploads wait to be merged in the highest generation, and when the oldest was stored.
fn waiting(survey: &Survey) -> (usize, Option<Timestamp>) {
    newest(survey).map_or((0, None), |(_, line)| {
        let newest = line.segments.iter().rev();
        let behind =
            newest.take_while(|s| s.level == 0 && line.snapshots.iter().all(|t| *t < s.first));
        let stored: Vec<Timestamp> = behind.map(|s| s.stored).collect();
        (stored.len(), stored.into_iter().min())
    })
}

/// The highest generation that has a complete snapshot.
fn newest(survey: &Survey) -> Option<(GenerationId, Line<'_>)> {
    let ids = survey.generations.keys().rev();
    ids.copied()
        .find_map(|id| Some((id, Line::new(survey, id)?)))
}

/// The lengths of all segments, by key.
fn segment_sizes(survey: &Survey) -> HashMap<&str, u64> {
    let segments = survey.generations.values().flat_map(|g| &g.segments);
    let objects = segments.map(|segment| &segment.listed.object);
    objects.map(|o| (o.key.as_str(), o.size)).collect()
}

/// The segments that others hold, by these.
fn merged_into(deletions: &[Deletion]) -> BTreeMap<String, Vec<Deletion>> {
    let mut merged: BTreeMap<String, Vec<Deletion>> = BTreeMap::new();
    for deletion in deletions {
        if let Why::MergedInto(output) = &deletion.why {
            let inputs = merged.entry(output.clone()).or_default();
            inputs.push(deletion.clone());
        }
    }
    merged
}
