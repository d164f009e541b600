//! Days of an application that writes, with a daemon that maintains its replica all the while: what
//! is listed thins out with age, and the replica grows no more.

use crate::config::settings::Retention;
use crate::daemon::simulation::reader::Wrong;
use crate::daemon::simulation::world::World;
use crate::format::ids::{GenerationId, Timestamp, Txid};
use crate::format::sample::soak;
use crate::maintain::keeper::KeepSettings;
use std::collections::BTreeMap;
use std::time::Duration;

const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;

/// Days that are played.
pub(super) fn days() -> u64 {
    10 * soak().min(6)
}

/// Every commit of a day, then one an hour for two more, then one a day for five.
const POLICY: Retention = Retention {
    all: Some(Duration::from_secs(24 * 3600)),
    hourly: Some(Duration::from_secs(3 * 24 * 3600)),
    daily: Some(Duration::from_secs(8 * 24 * 3600)),
};

/// Plays the days.
pub(super) fn play(world: &mut World) -> Result<(), Wrong> {
    world.keep(KeepSettings {
        retention: POLICY,
        snapshot_interval: Duration::from_secs(6 * 3600),
        merged_grace: Duration::from_secs(900),
        notes: None,
    });
    world.start(0)?;
    let mut bytes = Vec::new();
    for day in 1..=days() {
        for quarter in 0..4 * 24 {
            for _ in 0..1 + world.random.below(2) {
                world.commit(0);
            }
            let captured = world.machines[0].capture();
            world.must(captured)?;
            world.pass(Duration::from_secs(15 * 60))?;
            if quarter % 24 == 0 {
                world.check()?;
            }
        }
        if day % 4 == 0 {
            world.kill(0);
            world.start(0)?;
        }
        bytes.push(world.stored_bytes());
    }
    world.settle()?;
    world.check()?;
    looked_for_unfinished(world)?;
    let now = world.time();
    thinned(&world.reader.times(), now)?;
    levelled(&bytes)
}

/// Once a day what others left unfinished is looked for.
fn looked_for_unfinished(world: &World) -> Result<(), Wrong> {
    let calls = world.trace.iter();
    let calls = calls
        .filter(|line| line.contains("AbortUnfinished"))
        .count() as u64;
    match (days() - 1..=days() + days() / 4 + 1).contains(&calls) {
        true => Ok(()),
        false => Err(format!("unfinished uploads were looked for {calls} times")),
    }
}

/// What a window keeps, at most: twice that, for what is rewritten only when half of it may go, and
/// what lies between two rounds.
fn thinned(times: &BTreeMap<(GenerationId, Txid), Timestamp>, now: i64) -> Result<(), Wrong> {
    let ages = || times.values().map(|time| now - time.micros());
    let between = |young: i64, old: i64| ages().filter(|age| young <= *age && *age < old).count();
    let recent = between(0, DAY);
    let hourly = between(DAY + 6 * HOUR, 3 * DAY);
    let daily = between(3 * DAY + 6 * HOUR, 8 * DAY);
    let older = between(9 * DAY, i64::MAX);
    let is_right = recent >= 96 && (42..=96).contains(&hourly) && (4..=24).contains(&daily);
    match is_right && older <= 2 {
        true => Ok(()),
        false => Err(format!(
            "{recent} points of the last day, {hourly} of the two before, {daily} of the five \
             before those, {older} older"
        )),
    }
}

/// After the windows are full nothing grows.
fn levelled(bytes: &[u64]) -> Result<(), Wrong> {
    let full = &bytes[8.min(bytes.len() - 1)..];
    let (first, last) = (full[0], full[full.len() - 1]);
    match last <= first + first / 5 {
        true => Ok(()),
        false => Err(format!(
            "the replica grows: {bytes:?} bytes at the end of each day"
        )),
    }
}
