//! Replicas that live for months: commits, snapshots, merges, younger generations, and retention
//! whose decisions are carried out now and then, whole or in part.
//!
//! The oracle knows every commit that ever was and finds what can be opened in a plain way, one
//! transaction after the other.

use super::words::{generation, listed, policy, sort, txid};
use super::*;
use crate::format::container::Parent;
use crate::format::ids::{ObjectId, Pgno};
use crate::format::sample::soak;
use crate::format::snapshot::Home;
use crate::maintain::survey::{SegmentInside, SnapshotInside, Surveyed, SurveyedSnapshot};
use crate::storage::catalog::{Held, PartListing, SegmentListing, SnapshotListing};
use proptest::prelude::*;
use std::collections::BTreeSet;

const HOUR: i64 = 3_600_000_000;

/// Random numbers that follow from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % below
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// All that ever happened in a generation.
struct Truth {
    id: GenerationId,
    parent: Option<Parent>,
    /// By txid, from 1.
    times: Vec<Timestamp>,
    /// The txid of its first snapshot.
    opens: Option<u64>,
}

struct World {
    random: Random,
    now: i64,
    truths: Vec<Truth>,
    survey: Survey,
    unneeded: BTreeMap<String, Timestamp>,
    policy: Retention,
    count: u32,
}

type Open = BTreeMap<GenerationId, BTreeMap<Txid, Timestamp>>;

impl World {
    fn new(seed: u64) -> Self {
        let policies = [
            "all=1d hourly=4d daily=20d",
            "all=2d",
            "hourly=3d",
            "daily=9d",
            "all=5 hourly=1d",
            "all=3d daily=30d",
            "all=1d hourly=1d daily=1d",
        ];
        let mut random = Random(seed | 1);
        let policy = policy(policies[random.below(policies.len() as u64) as usize]);
        let mut world = Self {
            random,
            now: super::words::at(0).micros(),
            truths: Vec::new(),
            survey: Survey::default(),
            unneeded: BTreeMap::new(),
            policy,
            count: 0,
        };
        world.begin();
        world
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_micros(self.now)
    }

    /// An object of a generation, stored now. Its key is a real one, made with a new hash: in
    /// which order things are deleted follows from what keys say.
    fn object(&mut self, which: usize, key: impl FnOnce(u32) -> ObjectKey) -> Listed {
        self.count += 1;
        let key = Key {
            generation: self.truths[which].id,
            object: key(self.count),
        };
        listed(&key.to_string(), self.time())
    }

    fn surveyed(&mut self, which: usize) -> &mut Surveyed {
        let id = self.truths[which].id;
        self.survey.generations.entry(id).or_default()
    }

    fn newest(&self) -> usize {
        self.truths.len() - 1
    }

    /// A new generation, mostly with a snapshot.
    fn begin(&mut self) {
        self.now += 1;
        let parent = self.truths.last().map(|truth| {
            let last = truth.times.len() as u64;
            let shared = if self.random.percent(70) {
                last
            } else {
                1 + self.random.below(last)
            };
            Parent {
                generation: truth.id,
                txid: txid(shared),
            }
        });
        let id = generation(self.truths.len() as u32 + 1);
        self.truths.push(Truth {
            id,
            parent,
            times: vec![self.time()],
            opens: None,
        });
        let which = self.newest();
        let claim = self.object(which, |_| ObjectKey::Claim);
        let surveyed = self.surveyed(which);
        surveyed.claim = Some(claim);
        surveyed.parent = parent;
        match self.random.below(10) {
            0..6 => self.snapshot(which, 1),
            6..9 => {
                (0..2).for_each(|_| self.commit(which));
                self.snapshot(which, 1);
            }
            _ => {}
        }
    }

    /// Some commits, in one upload.
    fn commit(&mut self, which: usize) {
        let first = self.truths[which].times.len() as u64 + 1;
        for _ in 0..=self.random.below(9) {
            self.now += 1 + self.random.below(HOUR as u64 / 2) as i64;
            let time = self.time();
            self.truths[which].times.push(time);
        }
        self.upload(which, first, false);
    }

    fn upload(&mut self, which: usize, first: u64, is_mark: bool) {
        let last = self.truths[which].times.len() as u64;
        let points: BTreeSet<u64> = (first..=last).collect();
        self.store(which, 0, (first, last), &points, is_mark);
    }

    fn store(
        &mut self,
        which: usize,
        level: u8,
        (first, last): (u64, u64),
        points: &BTreeSet<u64>,
        is_mark: bool,
    ) {
        let time = self.truths[which].times[last as usize - 1];
        let object = self.object(which, |hash8| match level {
            0 => ObjectKey::Upload { first: txid(first) },
            _ => ObjectKey::Merged {
                level,
                first: txid(first),
                last: txid(last),
                time,
                hash8,
            },
        });
        let times = &self.truths[which].times;
        let points = points.iter().map(|&t| (txid(t), times[t as usize - 1]));
        let points: Vec<(Txid, Timestamp)> = points.collect();
        let surveyed = self.surveyed(which);
        surveyed.segments.push(SurveyedSegment {
            listed: SegmentListing {
                level,
                first: txid(first),
                last: Some(txid(last)),
                time: None,
                hash8: None,
                object,
            },
            inside: Some(SegmentInside {
                is_mark,
                points: points.into(),
                index_bytes: 0,
                block_bytes: 0,
            }),
        });
        sort(surveyed);
    }

    /// A snapshot at the last transaction, which may need older ones and a part.
    fn snapshot(&mut self, which: usize, since: u64) {
        let last = self.truths[which].times.len() as u64;
        let mut homes = Vec::new();
        if self.random.percent(60) {
            let complete = self.survey.generations.values().flat_map(|surveyed| {
                let snapshots = surveyed.snapshots.iter();
                snapshots.filter(|snapshot| is_complete(&self.survey, snapshot))
            });
            homes.extend(complete.last().map(|s| s.listed.object.key.clone()));
        }
        if self.random.percent(20) {
            homes.push(self.part(which));
        }
        let time = self.truths[which].times[last as usize - 1];
        let object = self.object(which, |hash8| ObjectKey::Snapshot {
            txid: txid(last),
            time,
            hash8,
        });
        let homes = homes.into_iter().map(|key| Home {
            id: ObjectId([0; 8]),
            key,
            length: 100,
        });
        let inside = SnapshotInside {
            since: txid(since),
            stored_pages: 1,
            page_bytes: 512,
            block_bytes: 0,
            homes: homes.collect(),
        };
        let surveyed = self.surveyed(which);
        surveyed.snapshots.push(SurveyedSnapshot {
            listed: SnapshotListing {
                txid: txid(last),
                time,
                hash8: 0,
                object,
            },
            inside: Some(inside),
        });
        sort(surveyed);
        self.truths[which].opens.get_or_insert(last);
    }

    fn part(&mut self, which: usize) -> String {
        let object = self.object(which, |hash8| ObjectKey::Part {
            since: Txid::FIRST,
            first: Pgno::FIRST,
            hash8,
        });
        let key = object.key.clone();
        self.surveyed(which).parts.push(PartListing {
            since: txid(1),
            first: Pgno::FIRST,
            hash8: 0,
            object,
        });
        key
    }

    /// Stores two segments or more as one of the next level, up to a snapshot.
    fn merge(&mut self) {
        let which = self.random.below(self.truths.len() as u64) as usize;
        let surveyed = self.surveyed(which).clone();
        let owners = owners(&surveyed);
        let stands = |index: usize| {
            let listed = &surveyed.segments[index].listed;
            (listed.first.get()..=listed.last.unwrap().get()).all(|t| owners[&t] == index)
        };
        let borders: BTreeSet<Option<Txid>> = {
            let snapshots = surveyed.snapshots.iter();
            snapshots.map(|s| Some(s.listed.txid)).collect()
        };
        let mut runs: Vec<Vec<usize>> = Vec::new();
        let all: Vec<usize> = (0..surveyed.segments.len())
            .filter(|&i| stands(i))
            .collect();
        for index in all {
            let listed = &surveyed.segments[index].listed;
            let goes_on = runs
                .last()
                .and_then(|run| run.last())
                .is_some_and(|&before| {
                    let before = &surveyed.segments[before].listed;
                    before.level == listed.level
                        && before.last.map(Txid::next) == Some(listed.first)
                        && !borders.contains(&before.last)
                });
            match runs.last_mut() {
                Some(run) if goes_on => run.push(index),
                _ => runs.push(vec![index]),
            }
        }
        let is_good = |run: &&Vec<usize>| {
            let inside = |&i: &usize| surveyed.segments[i].inside.as_ref().unwrap().is_mark;
            run.len() > 1 && !run.iter().any(inside) && surveyed.segments[run[0]].listed.level < 14
        };
        let good: Vec<&Vec<usize>> = runs.iter().filter(is_good).collect();
        if good.is_empty() {
            return;
        }
        let run = good[self.random.below(good.len() as u64) as usize];
        let some = &run[..2 + self.random.below(run.len() as u64 - 1) as usize];
        let inputs = some.iter().map(|&i| &surveyed.segments[i]);
        let points = inputs.flat_map(|s| s.inside.as_ref().unwrap().points.iter());
        let points: BTreeSet<u64> = points.map(|(txid, _)| txid.get()).collect();
        let (first, last) = (
            &surveyed.segments[some[0]],
            &surveyed.segments[some[some.len() - 1]],
        );
        let range = (first.listed.first.get(), last.listed.last.unwrap().get());
        self.store(which, first.listed.level + 1, range, &points, false);
    }

    fn step(&mut self) {
        let newest = self.newest();
        match self.random.below(100) {
            0..45 => self.commit(newest),
            45..60 => self.merge(),
            60..70 => {
                let last = self.truths[newest].times.len() as u64;
                let since = if self.truths[newest].opens.is_none() {
                    1
                } else {
                    last
                };
                self.snapshot(newest, since);
            }
            70..73 => {
                // A transaction that is shipped as a snapshot.
                if self.truths[newest].opens.is_some() {
                    self.now += 1;
                    let time = self.time();
                    self.truths[newest].times.push(time);
                    let last = self.truths[newest].times.len() as u64;
                    self.snapshot(newest, last);
                    self.upload(newest, last, true);
                }
            }
            73..78 => self.begin(),
            78..80 => {
                // A clone goes on where readers still come.
                let which = self.random.below(self.truths.len() as u64) as usize;
                let last = txid(self.truths[which].times.len() as u64);
                let open = open(&self.survey);
                let points = open.get(&self.truths[which].id);
                if points.is_some_and(|points| points.contains_key(&last)) {
                    self.commit(which);
                }
            }
            80..82 => {
                self.part(newest);
            }
            82..97 => self.now += self.random.below(HOUR as u64 * 30) as i64,
            _ => self.now += self.random.below(HOUR as u64 * 24 * 15) as i64,
        }
    }

    /// What a shell would see that reads only what it must, and sometimes reads it wrong.
    fn seen(&mut self) -> Survey {
        let mut survey = self.survey.clone();
        for surveyed in survey.generations.values_mut() {
            for snapshot in &mut surveyed.snapshots {
                snapshot.inside = snapshot.inside.take().filter(|_| !self.random.percent(3));
            }
        }
        let start = Windows::new(&self.policy, self.time()).all;
        for surveyed in survey.generations.values_mut() {
            for segment in &mut surveyed.segments {
                let points = &segment.inside.as_ref().unwrap().points;
                let is_recent = points.iter().all(|&(_, time)| start.has(time));
                if is_recent && self.random.percent(50) || self.random.percent(2) {
                    segment.inside = None;
                }
            }
        }
        survey
    }

    fn decide(&self, survey: &Survey, now: Timestamp) -> Decision {
        retain(
            survey,
            &self.unneeded,
            &self.policy,
            &Limits::default(),
            now,
        )
    }

    /// Carries a decision out, or begins to.
    fn apply(&mut self, decision: &Decision, is_whole: bool) {
        self.unneeded.clone_from(&decision.unneeded);
        for rewrite in &decision.rewrites {
            if is_whole || self.random.percent(70) {
                let which = rewrite.generation.ordinal as usize - 1;
                let segments = &self.surveyed(which).segments;
                let input = segments.iter().find(|s| s.listed.object.key == rewrite.key);
                let listed = &input.unwrap().listed;
                let range = (listed.first.get(), listed.last.unwrap().get());
                let points = rewrite.keep.iter().map(|t| t.get()).collect();
                self.store(which, rewrite.level, range, &points, false);
            }
        }
        let mut gone: BTreeSet<String> = BTreeSet::new();
        for wave in waves(decision.deletions.clone()) {
            let is_cut = !is_whole && self.random.percent(20);
            for deletion in wave {
                if !is_cut || self.random.percent(50) {
                    let key = deletion.key.clone();
                    assert!(gone.insert(deletion.key), "{key} goes twice");
                }
            }
            if is_cut {
                break;
            }
        }
        let is_there = |object: &Listed| !gone.contains(object.key.as_str());
        for surveyed in self.survey.generations.values_mut() {
            surveyed.claim = surveyed.claim.take().filter(is_there);
            surveyed.snapshots.retain(|s| is_there(&s.listed.object));
            surveyed.parts.retain(|part| is_there(&part.object));
            surveyed.segments.retain(|s| is_there(&s.listed.object));
        }
        self.survey.generations.retain(|_, surveyed| {
            let is_empty = surveyed.snapshots.is_empty() && surveyed.segments.is_empty();
            surveyed.claim.is_some() || !surveyed.parts.is_empty() || !is_empty
        });
    }

    /// The points that the policy keeps of all that ever was.
    fn ideal(&self) -> Open {
        let windows = Windows::new(&self.policy, self.time());
        let mut ideal = Open::new();
        for truth in &self.truths {
            let Some(opens) = truth.opens else { continue };
            let points: Vec<(Txid, Timestamp)> = {
                let points = (1..).zip(&truth.times).map(|(t, &time)| (txid(t), time));
                points.skip(opens as usize - 1).collect()
            };
            let last = points.last().unwrap().0;
            let is_end = !self.truths.iter().any(|child| {
                let parent = child.parent.filter(|parent| parent.generation == truth.id);
                parent.is_some_and(|parent| parent.txid >= last)
            });
            let kept = points.iter().enumerate().filter(|&(index, &(_, time))| {
                let next = points.get(index + 1).map(|(_, time)| time.micros());
                let ends = |unit: i64| {
                    next.is_none_or(|next| next.div_euclid(unit) != time.micros().div_euclid(unit))
                };
                windows.all.has(time)
                    || windows.hourly.is_some_and(|w| w.has(time) && ends(HOUR))
                    || windows
                        .daily
                        .is_some_and(|w| w.has(time) && ends(24 * HOUR))
                    || next.is_none() && is_end
            });
            ideal.insert(truth.id, kept.map(|(_, &point)| point).collect());
        }
        ideal
    }

    /// Times whose meaning must not change.
    fn probes(&mut self) -> Vec<Timestamp> {
        let windows = Windows::new(&self.policy, self.time());
        let now = self.now;
        let mut probes = vec![self.time()];
        let lengths = [self.policy.all, self.policy.hourly, self.policy.daily];
        for length in lengths.into_iter().flatten() {
            let start = now - i64::try_from(length.as_micros()).unwrap();
            probes.push(Timestamp::from_micros(start));
        }
        for (length, unit) in [
            (self.policy.all, 1),
            (self.policy.hourly, HOUR),
            (self.policy.daily, 24 * HOUR),
        ] {
            let Some(length) = length else { continue };
            for _ in 0..20 {
                let back = self.random.below(length.as_micros() as u64) as i64;
                let time = (now - back).div_euclid(unit) * unit - i64::from(unit > 1);
                let time = Timestamp::from_micros(time);
                probes.extend((unit == 1 || windows.longest.has(time)).then_some(time));
            }
        }
        // The ends of hours before the window begins mean nothing.
        let hourly = windows.hourly.unwrap_or(windows.all);
        let daily = windows.daily.unwrap_or(windows.all);
        probes.retain(|&time| {
            let is_day = (time.micros() + 1) % (24 * HOUR) == 0;
            let is_hour = (time.micros() + 1) % HOUR == 0;
            !is_hour || hourly.has(time) || is_day && daily.has(time)
        });
        probes
    }

    fn check(&mut self) {
        let before = open(&self.survey);
        let probes = self.probes();
        let seen = self.seen();
        let decision = self.decide(&seen, self.time());
        self.check_next(&seen, &decision);
        let is_whole = self.random.percent(60);
        let meant = |open: &Open| -> Vec<_> {
            let meant = probes.iter().map(|&time| resolve(&self.survey, open, time));
            meant.collect()
        };
        let meant_before = meant(&before);
        self.apply(&decision, is_whole);
        let after = open(&self.survey);
        for (id, points) in self.ideal() {
            let open = after.get(&id).cloned().unwrap_or_default();
            let lost = points
                .iter()
                .find(|point| open.get(point.0) != Some(point.1));
            assert_eq!(lost, None, "lost of {id}");
        }
        let meant_after: Vec<_> = {
            let meant = probes
                .iter()
                .map(|&time| resolve(&self.survey, &after, time));
            meant.collect()
        };
        assert_eq!(meant_before, meant_after, "{probes:?}");
        let newest = |open: &Open| {
            let line = open.iter().next_back();
            line.map(|(&id, points)| (id, points.last_key_value().map(|(&t, &time)| (t, time))))
        };
        assert_eq!(newest(&before), newest(&after));
    }

    /// At any time before the next one the same is decided.
    fn check_next(&mut self, seen: &Survey, decision: &Decision) {
        let end = decision
            .next
            .map_or(self.now + 900 * 24 * HOUR, Timestamp::micros);
        assert!(end > self.now);
        let between = self.now + self.random.below((end - self.now) as u64) as i64;
        for time in [between, end - 1] {
            let time = Timestamp::from_micros(time);
            let limits = Limits::default();
            let later = retain(seen, &decision.unneeded, &self.policy, &limits, time);
            assert_eq!(words::said(decision), words::said(&later), "at {time}");
            assert_eq!(decision.unneeded, later.unneeded, "at {time}");
            assert_eq!(decision.next, later.next, "at {time}");
        }
    }

    /// Carried out again and again at one time, decisions come to an end and keep the same.
    fn check_settles(&mut self) {
        let mut kept = None;
        for _ in 0..12 {
            let decision = self.decide(&self.survey, self.time());
            let now = (words::kept(&decision), decision.recent.clone());
            assert_eq!(*kept.get_or_insert(now.clone()), now);
            if decision.rewrites.is_empty() && decision.deletions.is_empty() {
                return;
            }
            self.apply(&decision, true);
        }
        panic!("it never ends");
    }
}

fn is_complete(survey: &Survey, snapshot: &SurveyedSnapshot) -> bool {
    let is_listed = |key: &str| {
        survey.generations.values().any(|surveyed| {
            let mut snapshots = surveyed.snapshots.iter();
            let mut parts = surveyed.parts.iter();
            snapshots.any(|s| s.listed.object.key == key) || parts.any(|p| p.object.key == key)
        })
    };
    let inside = snapshot.inside.as_ref().unwrap();
    inside.homes.iter().all(|home| is_listed(&home.key))
}

/// Which segment readers take for each transaction.
fn owners(surveyed: &Surveyed) -> BTreeMap<u64, usize> {
    let held = Held::new(surveyed.segments.iter().map(|segment| &segment.listed));
    let mut owners: BTreeMap<u64, usize> = BTreeMap::new();
    let rank = |index: usize| {
        let listed = &surveyed.segments[index].listed;
        (listed.level, listed.last, index)
    };
    for (index, segment) in surveyed.segments.iter().enumerate() {
        let listed = &segment.listed;
        if !held.has(listed) {
            for t in listed.first.get()..=listed.last.unwrap().get() {
                let owner = owners.entry(t).or_insert(index);
                if rank(index) > rank(*owner) {
                    *owner = index;
                }
            }
        }
    }
    owners
}

/// All that readers can open.
fn open(survey: &Survey) -> Open {
    let mut open = Open::new();
    for (&id, surveyed) in &survey.generations {
        let owners = owners(surveyed);
        let mut points = BTreeMap::new();
        let snapshots = surveyed.snapshots.iter();
        let complete: Vec<_> = snapshots.filter(|s| is_complete(survey, s)).collect();
        for (order, base) in complete.iter().enumerate() {
            let limit = complete
                .get(order + 1)
                .map(|next| next.listed.txid.get() - 1);
            let at = base.listed.txid.get();
            let since = base.inside.as_ref().unwrap().since.get();
            if since == at && limit.is_none_or(|limit| at <= limit) {
                points.insert(txid(at), base.listed.time);
            }
            for t in since + 1..=limit.unwrap_or(u64::MAX) {
                let Some(&owner) = owners.get(&t) else { break };
                let inside = surveyed.segments[owner].inside.as_ref().unwrap();
                if inside.is_mark || !joins(surveyed, &owners, t, since) {
                    break;
                }
                let found = inside.points.iter().find(|point| point.0.get() == t);
                let found = found.filter(|_| t > at).map(|&(_, time)| time);
                let own = (t == at).then_some(base.listed.time);
                points.extend(found.or(own).map(|time| (txid(t), time)));
            }
        }
        if !points.is_empty() {
            open.insert(id, points);
        }
    }
    open
}

/// True if what comes before a transaction is whole there: a thinned segment is only where it has
/// a point, and at its end.
fn joins(surveyed: &Surveyed, owners: &BTreeMap<u64, usize>, t: u64, since: u64) -> bool {
    let Some(&before) = owners.get(&(t - 1)).filter(|_| t - 1 > since) else {
        return true;
    };
    let segment = &surveyed.segments[before];
    let points = &segment.inside.as_ref().unwrap().points;
    before == owners[&t]
        || segment.listed.last == Some(txid(t - 1))
        || points.iter().any(|point| point.0 == txid(t - 1))
}

/// What a time means to readers.
fn resolve(survey: &Survey, open: &Open, time: Timestamp) -> Option<(GenerationId, Txid)> {
    let mut id = *open.keys().next_back()?;
    let mut limit = None;
    loop {
        if let Some(points) = open.get(&id) {
            let is_it = |&(&t, &at): &(&Txid, &Timestamp)| {
                at <= time && limit.is_none_or(|limit| t <= limit)
            };
            if let Some((&t, _)) = points.iter().rev().find(is_it) {
                return Some((id, t));
            }
        }
        let parent = survey.generations.get(&id)?.parent?;
        (id, limit) = (parent.generation, Some(parent.txid));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800 * soak() as u32))]
    #[test]
    fn what_the_policy_keeps_can_be_opened_for_as_long_as_it_says(seed in any::<u64>()) {
        let mut world = World::new(seed);
        for round in 0..90 {
            world.step();
            if round % 4 == 3 {
                world.check();
            }
        }
        world.check_settles();
    }
}
