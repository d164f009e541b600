//! One replica, kept cheap: each round looks at it, merges, takes a snapshot if one is due, and
//! lets go what retention no longer wants.
//!
//! Safe to be killed at any point and to run again: what is listed is all that counts. Only the
//! writer of the highest generation works here, and nothing goes in a run whose listing shows an
//! object that it does not know. What commands ask of a replica is in [`asked`].

pub mod asked;

use crate::config::settings::Retention;
use crate::error::{ErrorKind, Result};
use crate::format::ids::{GenerationId, Timestamp, Txid};
use crate::format::key::{GENERATIONS, Key, ObjectKey};
use crate::maintain::account::account;
use crate::maintain::clock::{self, LastLook, Now};
use crate::maintain::later::{self, Taken};
use crate::maintain::look::{Insides, Wanted};
use crate::maintain::merge::{Merge, Merged, merge};
use crate::maintain::retain::{Decision, Deletion, Limits, Why, retain, waves};
use crate::maintain::rules;
use crate::maintain::segment;
use crate::maintain::standing::Line;
use crate::maintain::survey::Survey;
use crate::maintain::workshop::Workshop;
use crate::storage::Listed;
use crate::storage::blocking::blocking;
use crate::storage::catalog::Catalog;
use crate::storage::durable::{read_if_there, replace_file};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

/// Merges of one round at most, but for those before a snapshot.
const MERGES_MAX: usize = 32;

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
    /// There is more to merge: other replicas have their turn before.
    pub is_cut: bool,
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
    /// Segments that cannot be merged, by key.
    damaged: HashSet<String>,
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
            damaged: HashSet::new(),
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
        // A copy that is kept here may be what is damaged.
        let damaged = self.insides.forget_damaged();
        if let Some(kept) = &self.workshop.kept {
            kept.forget(damaged.iter().map(String::as_str));
        }
        let mut looked = self.look(behalf).await?;
        if !self.leads(&looked, behalf) {
            return Ok(round);
        }
        while let Some(next) = self.next_merge(&looked.survey) {
            if round.merges == MERGES_MAX {
                round.is_cut = true;
                return Ok(round);
            }
            let made = self.merge(&next).await?;
            round.merges += usize::from(made);
            looked = self.look(behalf).await?;
        }
        match self.snapshot_if_due(&mut looked, behalf).await {
            // What is damaged keeps nothing else from being done.
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::error!("no snapshot is taken: {e}");
            }
            taken => round.snapshot = taken?,
        }
        if round.snapshot.is_some() {
            looked = self.look(behalf).await?;
        }
        if !self.leads(&looked, behalf) {
            return Ok(round);
        }
        (round.deleted, round.due_at) = self.retain(&looked, behalf).await?;
        let snapshot = self.snapshot_due_at(&looked.survey, behalf);
        round.due_at = round.due_at.into_iter().chain(snapshot).min();
        (round.uploads, round.oldest) = self.waiting(&looked.survey);
        Ok(round)
    }

    /// What the clock of the store says, or else ours.
    fn now(&self) -> (Timestamp, Option<Timestamp>) {
        let store = self.workshop.store.date();
        let clock = self.workshop.environment.now();
        (store.unwrap_or(clock), store)
    }

    /// As the function, and says so if somebody does.
    fn leads(&self, looked: &Looked, behalf: Behalf) -> bool {
        let leads = leads(&looked.catalog, behalf, self.now().1, looked.added);
        if !leads {
            tracing::debug!("nothing is done: another writer's generation is above ours");
        }
        leads
    }

    /// One listing, and what has to be read for it.
    async fn look(&mut self, behalf: Behalf) -> Result<Looked> {
        let listed = self.workshop.store.list(GENERATIONS, None).await?;
        let keys: HashSet<String> = listed.iter().map(|object| object.key.clone()).collect();
        let is_known = |key: &String| {
            self.known.as_ref().is_some_and(|known| known.contains(key)) || is_expected(behalf, key)
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
            let line = self.line(survey, id)?;
            let planned = rules::next_merge(&line.segments, &line.snapshots, now)?;
            Some(line.merge(&planned))
        })
    }

    fn line<'a>(&self, survey: &'a Survey, id: GenerationId) -> Option<Line<'a>> {
        Line::new(survey, id, &self.damaged)
    }

    /// Merges, and makes sure of the output. False if that cannot be done: then some of the inputs
    /// stay as they are from now on.
    async fn merge(&mut self, merge: &Merge) -> Result<bool> {
        let mut merged = self.try_to_merge(merge).await;
        // What is kept here may be damaged: what is stored counts.
        if let Err(e) = &merged
            && e.kind() == ErrorKind::Corrupt
            && self.forget_kept(merge)
        {
            tracing::warn!("{e}; trying again with what is stored");
            merged = self.try_to_merge(merge).await;
        }
        match merged {
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                tracing::error!("segments stay as they are: {e}");
                let damaged = damaged_among(&self.workshop, &merge.inputs).await?;
                self.damaged.extend(damaged);
                Ok(false)
            }
            merged => merged.map(|()| true),
        }
    }

    async fn try_to_merge(&mut self, asked: &Merge) -> Result<()> {
        let Merged { key, length, file } = merge(&self.workshop, asked).await?;
        tracing::debug!("{} segments merged into {key}", asked.inputs.len());
        let output = (key, length);
        let accounted = self.account(&asked.inputs, &output).await;
        if let Err(e) = &accounted
            && e.kind() == ErrorKind::Corrupt
        {
            // Readers would take it for what it was made from.
            self.workshop.store.delete(&[output.0]).await?;
            return accounted;
        }
        accounted?;
        let keys = asked.inputs.iter().map(|(key, _)| key.as_str());
        if let Some(kept) = &self.workshop.kept {
            kept.forget(keys);
        }
        self.note_made(output.0.clone());
        // Only now: it was to be read back from the store.
        self.workshop.keep(output.0, file).await;
        Ok(())
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

    async fn snapshot_if_due(
        &mut self,
        looked: &mut Looked,
        behalf: Behalf,
    ) -> Result<Option<Taken>> {
        match self.due_snapshot(looked, behalf).await? {
            Some(generation) => self.close_and_take(looked, generation, behalf).await,
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
        let Some((id, line)) = self.written(&looked.survey, behalf) else {
            return Ok(None);
        };
        let mut since = line.since(self.now().0);
        let refused = self.refused.get(&id).copied().unwrap_or(0);
        let has_grown = since.segment_bytes > refused + refused / 4;
        if has_grown
            && rules::may_be_due(&since, interval)
            && let Some(later) = line.later(line.last())
        {
            let bytes = later::changed_bytes(&self.workshop, &later).await?;
            since.snapshot_bytes = Some(line.cost(bytes));
        }
        let is_due = rules::is_due(&since, interval);
        if !is_due && since.snapshot_bytes.is_some() {
            self.refused.insert(id, since.segment_bytes);
        }
        Ok(is_due.then_some(id))
    }

    /// When a snapshot falls due by time alone.
    fn snapshot_due_at(&self, survey: &Survey, behalf: Behalf) -> Option<Timestamp> {
        let (_, line) = self.written(survey, behalf)?;
        let has_changed = line.since(self.now().0).segment_bytes > 0;
        let taken = line.base().listed.time;
        has_changed.then(|| rules::later(taken, self.settings.snapshot_interval))
    }

    /// The highest generation that has a complete snapshot, unless the writer gave it up: then it
    /// gets none any more.
    fn written<'a>(&self, survey: &'a Survey, behalf: Behalf) -> Option<(GenerationId, Line<'a>)> {
        let newest = self.newest(survey)?;
        let is_written = !matches!(behalf, Behalf::Writer(ours, _) if ours != newest.0);
        is_written.then_some(newest)
    }

    /// Merges what a snapshot ends, and takes it; `None` if nothing was committed since the last
    /// one.
    async fn close_and_take(
        &mut self,
        looked: &mut Looked,
        id: GenerationId,
        behalf: Behalf,
    ) -> Result<Option<Taken>> {
        // What comes meanwhile lies behind the snapshot, or this would never end.
        let Some(through) = self.line(&looked.survey, id).map(|line| line.last()) else {
            return Ok(None);
        };
        loop {
            let Some(line) = self.line(&looked.survey, id) else {
                return Ok(None);
            };
            if let Some(merge) = line.closing(through) {
                self.merge(&merge).await?;
                *looked = self.look(behalf).await?;
                continue;
            }
            let Some(later) = line.later(through) else {
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

    /// How many uploads wait to be merged in the highest generation, and when the oldest came.
    fn waiting(&self, survey: &Survey) -> (usize, Option<Timestamp>) {
        self.newest(survey).map_or((0, None), |(_, line)| {
            let newest = line.segments.iter().rev();
            let behind =
                newest.take_while(|s| s.level == 0 && line.snapshots.iter().all(|t| *t < s.first));
            let stored: Vec<Timestamp> = behind.map(|s| s.stored).collect();
            (stored.len(), stored.into_iter().min())
        })
    }

    /// The highest generation that has a complete snapshot.
    fn newest<'a>(&self, survey: &'a Survey) -> Option<(GenerationId, Line<'a>)> {
        let ids = survey.generations.keys().rev();
        ids.copied()
            .find_map(|id| Some((id, self.line(survey, id)?)))
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
        let sizes = looked.survey.all_sizes();
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
        let sizes = looked.survey.all_sizes();
        for rewrite in &decision.rewrites {
            let Some(&size) = sizes.get(rewrite.key.as_str()) else {
                continue;
            };
            let thinned = Merge {
                generation: rewrite.generation,
                inputs: vec![(rewrite.key.clone(), size)],
                level: rewrite.level,
                keep: Some(rewrite.keep.clone()),
            };
            if !self.damaged.contains(&rewrite.key) {
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
        let mut keys: Vec<String> = Vec::new();
        for wave in waves(gone) {
            let these: Vec<String> = wave.into_iter().map(|deletion| deletion.key).collect();
            self.workshop.store.delete(&these).await?;
            keys.extend(these);
        }
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

/// Those that a plain reading of the keys alone finds damaged; all of them, if it finds none.
async fn damaged_among(workshop: &Workshop, inputs: &[(String, u64)]) -> Result<Vec<String>> {
    let mut damaged = Vec::new();
    for (key, size) in inputs {
        match segment::verify(&workshop.store, key, *size).await {
            Err(e) if e.kind() == ErrorKind::Corrupt => damaged.push(key.clone()),
            verified => verified?,
        }
    }
    let all = inputs.iter().map(|(key, _)| key.clone());
    Ok(match damaged.is_empty() {
        true => all.collect(),
        false => damaged,
    })
}

/// Whether nobody else leads: another writer's generation above ours counts, unless it is an old
/// claim with nothing under it, by the clock of the store. One that does not say the time tells how
/// old things are by when something was `added` last.
fn leads(
    catalog: &Catalog,
    behalf: Behalf,
    now: Option<Timestamp>,
    added: Option<Timestamp>,
) -> bool {
    let Behalf::Writer(ours, _) = behalf else {
        return true;
    };
    let now = now.or(added);
    let above = catalog.generations.iter().filter(|(id, _)| **id > ours);
    let mut above = above.map(|(_, listing)| {
        let is_bare =
            listing.snapshots.is_empty() && listing.parts.is_empty() && listing.segments.is_empty();
        let claim = listing.claim.as_ref();
        let is_old = |claim: &Listed| Some(rules::later(claim.modified, BARE_CLAIM)) < now;
        is_bare && claim.is_some_and(is_old)
    });
    above.all(|is_old| is_old)
}

/// A higher claim with nothing stored under it counts for so long.
pub const BARE_CLAIM: Duration = Duration::from_secs(24 * 3600);

/// Whether the writer itself stored such an object: its claim, its first snapshot, its uploads; or
/// one that it has superseded uploaded it. Of what that one uploads only a mark names anything, and
/// the snapshot that it names is a stranger.
fn is_expected(behalf: Behalf, key: &str) -> bool {
    let Behalf::Writer(ours, last) = behalf else {
        return false;
    };
    Key::parse(key).is_some_and(|key| match key.object {
        // What another writer uploads in our generation the uploader meets itself.
        ObjectKey::Upload { .. } => key.generation <= ours,
        ObjectKey::Claim | ObjectKey::Part { .. } => key.generation == ours,
        ObjectKey::Snapshot { txid, .. } => key.generation == ours && txid <= last,
        ObjectKey::Merged { .. } => false,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;
    const OURS: &str = "00000002-0000000a";
    const ABOVE: &str = "00000003-0000000b";

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_micros(hour * HOUR)
    }

    /// Whether the writer of generation 2 leads beside these objects, each with the hour when it
    /// was stored.
    #[track_caller]
    fn check(objects: &[(&str, &str, i64)], now: Option<i64>, expect: bool) {
        let listed = objects.iter().map(|(generation, name, hour)| Listed {
            key: format!("{GENERATIONS}{generation}/{name}"),
            size: 100,
            modified: at(*hour),
        });
        let catalog = Catalog::new(listed.collect());
        let added = objects.iter().map(|(_, _, hour)| at(*hour)).max();
        let behalf = Behalf::Writer(OURS.parse().unwrap(), Txid::FIRST);
        assert_eq!(leads(&catalog, behalf, now.map(at), added), expect);
        assert!(leads(&catalog, Behalf::Nobody, now.map(at), added));
    }

    #[test]
    fn a_bare_claim_above_counts_for_a_day_by_the_clock_of_the_store() {
        let claims = [(OURS, "claim", 1), (ABOVE, "claim", 10)];
        check(&claims[..1], None, true);
        check(&claims, None, false);
        check(&claims, Some(34), false);
        check(&claims, Some(35), true);
        let uploaded = |hour| (OURS, "wal/0/0000000000000002.wal", hour);
        check(&[claims[0], claims[1], uploaded(34)], None, false);
        check(&[claims[0], claims[1], uploaded(35)], None, true);
        check(&[claims[0], claims[1], uploaded(35)], Some(34), false);
    }

    #[test]
    fn a_generation_above_with_anything_in_it_counts_for_ever() {
        let upload = "wal/0/0000000000000002.wal";
        let objects = [(ABOVE, "claim", 10), (ABOVE, upload, 11)];
        check(&objects, Some(1_000_000), false);
        check(&objects[1..], Some(1_000_000), false);
        check(&[("00000001-0000000c", upload, 1)], None, true);
    }

    #[test]
    fn what_a_superseded_writer_uploads_is_no_stranger() {
        let behalf = Behalf::Writer(OURS.parse().unwrap(), Txid::FIRST);
        let is_expected = |generation: &str, name: &str| {
            is_expected(behalf, &format!("{GENERATIONS}{generation}/{name}"))
        };
        let upload = "wal/0/0000000000000002.wal";
        let below = "00000001-0000000c";
        assert!(is_expected(OURS, upload) && is_expected(below, upload));
        assert!(!is_expected(ABOVE, upload));
        assert!(is_expected(OURS, "claim") && !is_expected(below, "claim"));
        assert!(!is_expected(
            below,
            "pages/0000000000000001-00000001-0000002a.pages"
        ));
    }
}
