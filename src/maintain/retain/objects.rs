//! What of snapshots, parts and claims goes, over all generations: a snapshot is a home of pages
//! for younger generations too. Pure.

use super::clock::Clock;
use super::line::Line;
use super::points::Chosen;
use super::{Decision, Deletion, ORPHANED_FOR, UNNEEDED_FOR, Why, YOUNG};
use crate::format::ids::{GenerationId, Timestamp};
use crate::maintain::survey::Surveyed;
use crate::storage::Listed;
use std::collections::{BTreeMap, HashSet};

/// Adds what of snapshots, parts and claims goes, and all of what was abandoned. Snapshots go
/// before what they name.
pub(super) fn decide(
    lines: &BTreeMap<GenerationId, Line<'_>>,
    chosen: &BTreeMap<GenerationId, Chosen>,
    unneeded: &BTreeMap<String, Timestamp>,
    clock: &mut Clock,
    decision: &mut Decision,
) {
    let needed = Needed::new(lines, chosen, clock);
    let complete = lines.values().rev().find(|line| line.last_since.is_some());
    let highest_complete = complete.map(|line| line.id);
    for line in lines.values().rev() {
        if line.has_base() {
            forget(line, &needed, unneeded, clock, decision);
        } else if Some(line.id) < highest_complete {
            abandon(line, &needed, clock, decision);
        }
    }
    wait_for_snapshots(lines, decision);
    claims(lines, clock, decision);
}

/// What live snapshots need.
struct Needed<'a> {
    keys: HashSet<&'a str>,
    /// What complete snapshots name, live or not.
    named: HashSet<&'a str>,
    /// Live snapshots that are damaged: where they are, and when they were stored. They may name
    /// whatever is not younger.
    damaged: Vec<(GenerationId, Timestamp)>,
}

impl<'a> Needed<'a> {
    fn new(
        lines: &BTreeMap<GenerationId, Line<'a>>,
        chosen: &BTreeMap<GenerationId, Chosen>,
        clock: &mut Clock,
    ) -> Self {
        let mut needed = Self {
            keys: HashSet::new(),
            named: HashSet::new(),
            damaged: Vec::new(),
        };
        for line in lines.values() {
            for (index, snapshot) in line.surveyed.snapshots.iter().enumerate() {
                let object = &snapshot.listed.object;
                let inside = snapshot.inside.as_ref();
                let homes = inside.into_iter().flat_map(|inside| &inside.homes);
                let homes = homes.map(|home| home.key.as_str());
                if line.is_complete[index] {
                    needed.named.extend(homes.clone());
                }
                let is_base = chosen
                    .get(&line.id)
                    .is_some_and(|c| c.bases.contains(&index));
                if is_base || !clock.has_passed(object.modified, YOUNG) {
                    needed.keys.insert(&object.key);
                    needed.keys.extend(homes);
                    if inside.is_none() {
                        needed.damaged.push((line.id, object.modified));
                    }
                }
            }
        }
        needed
    }

    fn has(&self, generation: GenerationId, object: &Listed) -> bool {
        let may_name = |&(id, stored): &(GenerationId, Timestamp)| {
            generation <= id && object.modified <= stored
        };
        self.keys.contains(object.key.as_str()) || self.damaged.iter().any(may_name)
    }
}

/// Snapshots and parts that nothing needs are noted, and go when they were noted long enough.
fn forget(
    line: &Line<'_>,
    needed: &Needed<'_>,
    unneeded: &BTreeMap<String, Timestamp>,
    clock: &mut Clock,
    decision: &mut Decision,
) {
    let snapshots = line.surveyed.snapshots.iter().zip(&line.is_complete).rev();
    let snapshots =
        snapshots.map(|(snapshot, is_complete)| (&snapshot.listed.object, *is_complete));
    let parts = line.surveyed.parts.iter().map(|part| (&part.object, false));
    for (object, is_complete) in snapshots.chain(parts) {
        if needed.has(line.id, object) {
            continue;
        }
        let noted = unneeded.get(&object.key).copied();
        // What was noted by a clock that ran ahead counts from now on.
        let since = noted.unwrap_or(clock.now()).min(clock.now());
        decision.unneeded.insert(object.key.clone(), since);
        let is_orphan = !is_complete && !needed.named.contains(object.key.as_str());
        let is_old = !is_orphan || clock.has_passed(object.modified, ORPHANED_FOR);
        if clock.has_passed(since, UNNEEDED_FOR) && is_old {
            let why = if is_orphan {
                Why::Orphan
            } else {
                Why::Unneeded(since)
            };
            decision.deletions.push(Deletion::new(object, why));
        }
    }
}

/// What a complete snapshot names that stays waits for it, needed or not: readers would find that
/// it lacks something.
fn wait_for_snapshots(lines: &BTreeMap<GenerationId, Line<'_>>, decision: &mut Decision) {
    let mut going: HashSet<String> = decision.deletions.iter().map(|d| d.key.clone()).collect();
    loop {
        let mut waiting: HashSet<&str> = HashSet::new();
        for line in lines.values() {
            let snapshots = line.surveyed.snapshots.iter().zip(&line.is_complete);
            let staying = snapshots.filter(|(snapshot, is_complete)| {
                **is_complete && !going.contains(&snapshot.listed.object.key)
            });
            let inside = staying.filter_map(|(snapshot, _)| snapshot.inside.as_ref());
            let homes = inside.flat_map(|inside| &inside.homes);
            waiting.extend(homes.map(|home| home.key.as_str()));
        }
        let before = going.len();
        going.retain(|key| !waiting.contains(key.as_str()));
        if going.len() == before {
            break;
        }
    }
    decision
        .deletions
        .retain(|deletion| going.contains(&deletion.key));
}

/// A generation without a complete snapshot goes when nothing was added to it for long enough.
fn abandon(line: &Line<'_>, needed: &Needed<'_>, clock: &mut Clock, decision: &mut Decision) {
    let newest = objects(line.surveyed).chain(&line.surveyed.claim);
    let Some(newest) = newest.map(|object| object.modified).max() else {
        return;
    };
    if clock.has_passed(newest, ORPHANED_FOR) {
        let gone = objects(line.surveyed).filter(|object| !needed.has(line.id, object));
        let gone = gone.map(|object| Deletion::new(object, Why::Abandoned));
        decision.deletions.extend(gone);
    }
}

/// A claim goes when nothing else is left of its generation, nor of an older one: younger claims
/// lead to it.
fn claims(lines: &BTreeMap<GenerationId, Line<'_>>, clock: &mut Clock, decision: &mut Decision) {
    let highest = lines.keys().next_back();
    for (id, line) in lines {
        let is_bare = objects(line.surveyed).next().is_none();
        match &line.surveyed.claim {
            None if is_bare => {}
            Some(claim)
                if is_bare
                    && Some(id) != highest
                    && clock.has_passed(claim.modified, ORPHANED_FOR) =>
            {
                let why = Why::EmptyGeneration;
                decision.deletions.push(Deletion::new(claim, why));
            }
            // What is above it stays.
            _ => return,
        }
    }
}

/// All objects of a generation but its claim, snapshots before what they name.
fn objects(surveyed: &Surveyed) -> impl Iterator<Item = &Listed> {
    let snapshots = surveyed.snapshots.iter().rev().map(|s| &s.listed.object);
    let parts = surveyed.parts.iter().map(|part| &part.object);
    let segments = surveyed.segments.iter().map(|s| &s.listed.object);
    snapshots.chain(parts).chain(segments)
}
