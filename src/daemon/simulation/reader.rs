//! What must hold of a replica, seen through the real reader.

use crate::config::settings::Retention;
use crate::daemon::simulation::database::{Commit, Histories};
use crate::daemon::simulation::machine::Promised;
use crate::daemon::simulation::merger::Commits;
use crate::error::{Error, ErrorKind};
use crate::format::ids::{GenerationId, RestorePoint, Timestamp, Txid};
use crate::format::moment::Moment;
use crate::materialize::cache::BlockCache;
use crate::materialize::pages::{Database, ReadAhead};
use crate::materialize::replica::{PointsQuery, Replica};
use crate::storage::Store;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What was wrong: a sentence.
pub(super) type Wrong = String;

/// When the clock lies so far behind, times begin anew (DESIGN 3.8).
const HOUR_MICROS: i64 = 3_600_000_000;

/// The clock of a machine may have been so far back when it gave a commit its time.
const CLOCK_BACK_MICROS: i64 = 2 * HOUR_MICROS;

/// Moments that stay open while everything else goes on.
const OPEN: usize = 3;

/// Remembers what was durable.
#[derive(Default)]
pub(super) struct Reader {
    /// Every restore point that was ever listed, and what it was.
    points: BTreeMap<(GenerationId, Txid), (Timestamp, Arc<Commit>)>,
    /// Commits that a writer called durable, each with who said so.
    promised: BTreeMap<u64, (Promised, String)>,
    /// Those that the last check saw.
    listed: Vec<(GenerationId, Txid)>,
    /// When commits were made, microseconds.
    made: HashMap<u64, i64>,
    /// Moments that were opened at earlier checks.
    open: VecDeque<(Arc<Database>, Arc<Commit>)>,
}

/// What must be kept.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub(super) policy: Retention,
    /// By the clock of the store.
    pub(super) now: Timestamp,
}

impl Kept {
    /// Whether a time lies in a window.
    fn is_in(&self, window: Option<Duration>, time: Timestamp) -> bool {
        let age = self.now.micros() - time.micros();
        window.is_some_and(|window| age < window.as_micros() as i64)
    }

    /// Whether a restore point stays that is followed by another one of its generation at `next`.
    fn keeps(&self, time: Timestamp, next: Option<Timestamp>) -> bool {
        let is_last_of = |unit: i64| {
            let of = |time: Timestamp| time.micros().div_euclid(unit);
            next.is_none_or(|next| of(next) != of(time))
        };
        self.is_in(self.policy.all, time)
            || self.is_in(self.policy.hourly, time) && is_last_of(HOUR_MICROS)
            || self.is_in(self.policy.daily, time) && is_last_of(24 * HOUR_MICROS)
    }
}

/// A restore point that was read.
struct Point {
    point: RestorePoint,
    commit: Arc<Commit>,
}

/// A replica that was read whole.
struct Seen {
    replica: Arc<Replica>,
    points: BTreeMap<(GenerationId, Txid), Point>,
}

impl Reader {
    /// A writer said that these commits are durable.
    pub(super) fn promise(&mut self, commits: Vec<Promised>, who: &str) {
        for promised in commits {
            let known = self.promised.get(&promised.commit.id);
            if known.is_none_or(|(known, _)| promised.has_moment && !known.has_moment) {
                let promise = (promised, who.to_owned());
                self.promised.insert(promise.0.commit.id, promise);
            }
        }
    }

    /// A commit was made.
    pub(super) fn made(&mut self, commit: &Commit, time: i64) {
        self.made.insert(commit.id, time);
    }

    /// Whether this commit can be restored, as the last check saw it.
    pub(super) fn has(&self, commit: &Commit) -> bool {
        self.points.values().any(|(_, known)| known.id == commit.id)
    }

    /// The times of the restore points that the last check saw.
    pub(super) fn times(&self) -> BTreeMap<(GenerationId, Txid), Timestamp> {
        let points = self.listed.iter();
        points
            .filter_map(|key| Some((*key, self.points.get(key)?.0)))
            .collect()
    }

    /// The commits of all restore points, as the last check saw them.
    pub(super) fn commits(&self) -> Commits {
        let points = self.points.iter();
        points
            .map(|(key, (_, commit))| (*key, Arc::clone(commit)))
            .collect()
    }

    /// Reads every restore point and checks all that must hold at any time. With a stranger among
    /// the writers older times may be the past of another one.
    pub(super) async fn check(
        &mut self,
        store: Arc<dyn Store>,
        histories: &Histories,
        has_stranger: bool,
        kept: Option<Kept>,
    ) -> Result<(), Wrong> {
        if store.list("", None).await.unwrap().is_empty() {
            return self.nothing_is_gone(&BTreeMap::new(), None);
        }
        let replica = Replica::new(Arc::clone(&store), Arc::new(BlockCache::new(8 << 20)));
        replica
            .refresh()
            .await
            .map_err(|e| format!("refresh: {e}"))?;
        if let Some(trouble) = replica.troubles().first() {
            return Err(format!("a reader sees trouble: {trouble}"));
        }
        let mut points = BTreeMap::new();
        for point in replica.points(&PointsQuery::default()) {
            let commit = read(&replica, &point, histories).await?;
            let key = (point.generation, point.txid);
            points.insert(key, Point { point, commit });
        }
        let seen = Seen { replica, points };
        seen.generations_are_histories()?;
        self.nothing_is_gone(&seen.points, kept)?;
        self.promises_are_kept(&seen, kept)?;
        // Where nothing goes, what is in memory will do.
        let cold = kept.map(|_| Replica::new(store, Arc::new(BlockCache::new(0))));
        self.open_moments_are_right(&seen, cold).await?;
        seen.now_is_the_highest_generation()?;
        if !has_stranger {
            seen.older_times_are_its_past()?;
        }
        seen.times_ascend()?;
        self.listed = seen.points.keys().copied().collect();
        let listed = seen.points.into_iter();
        self.points
            .extend(listed.map(|(key, point)| (key, (point.point.time, point.commit))));
        Ok(())
    }

    fn nothing_is_gone(
        &self,
        points: &BTreeMap<(GenerationId, Txid), Point>,
        kept: Option<Kept>,
    ) -> Result<(), Wrong> {
        let mut times: BTreeMap<(GenerationId, Txid), Timestamp> = BTreeMap::new();
        times.extend(self.points.iter().map(|(key, (time, _))| (*key, *time)));
        times.extend(points.iter().map(|(key, point)| (*key, point.point.time)));
        for ((generation, txid), (time, commit)) in &self.points {
            let known = (*time, commit.id);
            let now = points.get(&(*generation, *txid));
            let now = now.map(|now| (now.point.time, now.commit.id));
            let next = times.range((*generation, txid.next())..).next();
            let next = next.filter(|((id, _), _)| id == generation);
            let may_go = kept.is_some_and(|kept| !kept.keeps(*time, next.map(|(_, time)| *time)));
            if now != Some(known) && !(now.is_none() && may_go) {
                return Err(format!(
                    "restore point {generation} {txid} was {known:?} and is {now:?}"
                ));
            }
        }
        Ok(())
    }

    /// A commit that was called durable is a restore point; or, where no more was promised, it is
    /// contained in the first one of the generation that it went to (DESIGN 2).
    fn promises_are_kept(&self, seen: &Seen, policy: Option<Kept>) -> Result<(), Wrong> {
        let kept: HashSet<u64> = seen.points.values().map(|point| point.commit.id).collect();
        let firsts = seen.firsts();
        for (Promised { commit, has_moment }, who) in self.promised.values() {
            let is_before = |first: &&Point| {
                let distance = first.commit.distance_from(commit);
                distance.is_some_and(|distance| distance < first.point.txid.get())
            };
            let is_old = policy.is_some_and(|policy| {
                let made = self.made.get(&commit.id).copied().unwrap_or(i64::MIN / 2);
                let given = Timestamp::from_micros(made - CLOCK_BACK_MICROS);
                !policy.is_in(policy.policy.all, given)
            });
            // By a clock that stood still a moment is older than it is.
            let may_be_contained = !has_moment || policy.is_some();
            let is_contained = may_be_contained && firsts.iter().any(is_before);
            if !is_old && !kept.contains(&commit.id) && !is_contained {
                return Err(format!(
                    "{who} called commit {} durable (with a moment of its own: {has_moment}), and \
                     no restore point has it",
                    commit.id
                ));
            }
        }
        Ok(())
    }
}

impl Reader {
    /// What was opened before is what it was, or gone; and gone only if it is listed no more. One
    /// more is opened, without a cache if there is a reader who has none.
    async fn open_moments_are_right(
        &mut self,
        seen: &Seen,
        cold: Option<Arc<Replica>>,
    ) -> Result<(), Wrong> {
        for (database, commit) in &self.open {
            let point = database.point();
            let is_listed = seen.points.contains_key(&(point.generation, point.txid));
            match whole(database).await {
                Ok(bytes) if bytes == commit.image.concat() => {}
                Ok(_) => return Err(format!("{point:?}, opened before, has other bytes")),
                Err(e) if !is_listed && e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(format!("{point:?}, opened before: {e}")),
            }
        }
        let newest = seen.points.values().next_back();
        if let Some(newest) = newest {
            let named = |e: Error| format!("{:?}: {e}", newest.point);
            let replica = match cold {
                Some(cold) => {
                    cold.refresh().await.map_err(named)?;
                    cold
                }
                None => Arc::clone(&seen.replica),
            };
            let opened = replica.open(&newest.point).await.map_err(named)?;
            self.open.push_back((opened, Arc::clone(&newest.commit)));
        }
        if self.open.len() > OPEN {
            self.open.pop_front();
        }
        Ok(())
    }
}

async fn whole(database: &Arc<Database>) -> crate::error::Result<Bytes> {
    let ahead = ReadAhead::default();
    database.read(0, database.size() as usize, &ahead).await
}

/// Reads all pages of a restore point; the commit that they are the state of.
async fn read(
    replica: &Arc<Replica>,
    point: &RestorePoint,
    histories: &Histories,
) -> Result<Arc<Commit>, Wrong> {
    let named = |what: String| format!("{} {}: {what}", point.generation, point.txid);
    let opened = replica.open(point).await;
    let database = opened.map_err(|e| named(e.to_string()))?;
    let bytes = whole(&database).await.map_err(|e| named(e.to_string()))?;
    let found = histories.find(&bytes);
    found.ok_or_else(|| named("its bytes are no state of any writer".to_owned()))
}

impl Seen {
    /// The first restore point of each generation.
    fn firsts(&self) -> Vec<&Point> {
        let mut firsts: BTreeMap<GenerationId, &Point> = BTreeMap::new();
        for ((generation, _), point) in &self.points {
            firsts.entry(*generation).or_insert(point);
        }
        firsts.into_values().collect()
    }

    fn last_of(&self, generation: GenerationId) -> Option<&Point> {
        let mut points = self.points.values();
        points.rfind(|point| point.point.generation == generation)
    }

    /// In each generation every commit follows the one before it, at a later time.
    fn generations_are_histories(&self) -> Result<(), Wrong> {
        let pairs = self.points.values().zip(self.points.values().skip(1));
        for (before, after) in pairs.filter(|(a, b)| a.point.generation == b.point.generation) {
            let between = after.point.txid.get() - before.point.txid.get();
            let follows = after.commit.distance_from(&before.commit) == Some(between)
                && after.point.time > before.point.time;
            if !follows {
                return Err(format!(
                    "{:?} is commit {}, and {:?} after it is commit {}",
                    before.point, before.commit.id, after.point, after.commit.id
                ));
            }
        }
        Ok(())
    }

    /// The highest generation that has a restore point.
    fn highest(&self) -> Option<GenerationId> {
        self.points.keys().map(|(generation, _)| *generation).max()
    }

    fn now_is_the_highest_generation(&self) -> Result<(), Wrong> {
        let expected = self.highest().and_then(|highest| self.last_of(highest));
        let now = self.replica.resolve(Moment::Latest).ok();
        let expected = expected.map(|last| last.point);
        if now != expected {
            return Err(format!("now is {now:?} and should be {expected:?}"));
        }
        Ok(())
    }

    /// Every time resolves to a state that lies in the past of the newest one, or to none, and a
    /// later time to a later one.
    fn older_times_are_its_past(&self) -> Result<(), Wrong> {
        let Some(newest) = self.highest().and_then(|highest| self.last_of(highest)) else {
            return Ok(());
        };
        let times = self.points.values().map(|point| point.point.time.micros());
        let mut times: Vec<i64> = times.flat_map(|time| [time - 1, time]).collect();
        times.sort_unstable();
        let mut before: Option<&Point> = None;
        for time in times.into_iter().map(Timestamp::from_micros) {
            let there = self.at(time)?;
            let follows = match (before, there) {
                (Some(before), Some(there)) => there.commit.distance_from(&before.commit).is_some(),
                (before, _) => before.is_none(),
            };
            let is_past = |there: &Point| newest.commit.distance_from(&there.commit).is_some();
            if !follows || !there.is_none_or(is_past) {
                let show =
                    |point: Option<&Point>| point.map(|point| (point.commit.id, point.point));
                return Err(format!(
                    "{time} is {:?}, a moment before it is {:?}, and now is {:?}",
                    show(there),
                    show(before),
                    show(Some(newest))
                ));
            }
            before = there;
        }
        Ok(())
    }

    /// What a time resolves to; `None` before the first one.
    fn at(&self, time: Timestamp) -> Result<Option<&Point>, Wrong> {
        match self.replica.resolve(Moment::At(time)) {
            Ok(found) => Ok(Some(&self.points[&(found.generation, found.txid)])),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(format!("{time}: {e}")),
        }
    }

    /// From each generation to the one that goes on from it, times ascend, unless the clock was set
    /// back by more than an hour.
    fn times_ascend(&self) -> Result<(), Wrong> {
        let claims = self.replica.generations().into_iter();
        for claim in claims.filter_map(|info| info.claim) {
            let parent = claim.parent;
            let shared = parent.and_then(|p| self.points.get(&(p.generation, p.txid)));
            let Some(shared) = shared else {
                continue;
            };
            let ahead = shared.point.time.micros() - claim.started.micros();
            if (0..=HOUR_MICROS).contains(&ahead) {
                return Err(format!(
                    "generation {} starts at {}, not after {:?}, from which it goes on",
                    claim.generation, claim.started, shared.point
                ));
            }
        }
        Ok(())
    }
}
