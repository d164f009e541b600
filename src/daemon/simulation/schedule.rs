//! What happens to the machines: drawn from a seed.

use crate::config::settings::Retention;
use crate::daemon::simulation::database::Restart;
use crate::daemon::simulation::huge::FEW_PAGES;
use crate::daemon::simulation::machine::Frozen;
use crate::daemon::simulation::reader::Wrong;
use crate::daemon::simulation::wire::{Fate, Release};
use crate::daemon::simulation::world::World;
use crate::maintain::keeper::KeepSettings;
use crate::materialize::model::Random;
use crate::replicate::upload::HUGE_BYTES;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Action {
    Commit,
    Checkpoint,
    Moment,
    Minutes,
    Hours,
    Day,
    Outage,
    Losses,
    Heal,
    HoldAndKill,
    HoldAndFreeze,
    HoldAndGoOn,
    Freeze,
    Thaw,
    Kill,
    Stop,
    Start,
    LoseState,
    BreakContinuity,
    Check,
    ClockBack,
    ClockFar,
    ClockRight,
    Clone,
    CopyDatabase,
    TakeImage,
    PutImageBack,
    PutStateBack,
    Merge,
}

/// How often each happens, with one writer and with several.
const WEIGHTS: [(u64, u64, Action); 29] = [
    (30, 30, Action::Commit),
    (6, 4, Action::Checkpoint),
    (20, 20, Action::Moment),
    (5, 4, Action::Minutes),
    (1, 4, Action::Hours),
    (1, 1, Action::Day),
    (3, 2, Action::Outage),
    (4, 3, Action::Losses),
    (6, 4, Action::Heal),
    (6, 3, Action::HoldAndKill),
    (3, 3, Action::HoldAndFreeze),
    (4, 4, Action::HoldAndGoOn),
    (0, 4, Action::Freeze),
    (0, 6, Action::Thaw),
    (4, 4, Action::Kill),
    (4, 4, Action::Stop),
    (12, 16, Action::Start),
    (1, 2, Action::LoseState),
    (1, 1, Action::BreakContinuity),
    (2, 3, Action::Check),
    (0, 1, Action::ClockBack),
    (0, 1, Action::ClockFar),
    (0, 1, Action::ClockRight),
    (0, 5, Action::Clone),
    (0, 1, Action::CopyDatabase),
    (0, 4, Action::TakeImage),
    (0, 4, Action::PutImageBack),
    (0, 4, Action::PutStateBack),
    (2, 8, Action::Merge),
];

/// No more machines than these.
const NAMES: [&str; 3] = ["A", "B", "C"];

/// 2099, microseconds.
const FAR: i64 = 4_070_908_800_000_000;

/// Plays the schedule of a seed with one writer.
pub(super) fn one_writer(world: &mut World) -> Result<(), Wrong> {
    let weights = WEIGHTS.map(|(one, _, action)| (one, action));
    play(world, &weights)?;
    end(world)
}

/// Plays the schedule of a seed with copies of a machine and of its disk.
pub(super) fn several_writers(world: &mut World) -> Result<(), Wrong> {
    let weights = WEIGHTS.map(|(_, several, action)| (several, action));
    play(world, &weights)?;
    end_of_several(world)
}

/// Plays the schedule of a seed with one writer that maintains its replica while days pass.
pub(super) fn one_keeper(world: &mut World) -> Result<(), Wrong> {
    let policy = world.random.below(4);
    world.keep(settings(policy));
    let weights = WEIGHTS.map(|(one, _, action)| (kept_weight(one, action), action));
    play(world, &weights)?;
    end(world)
}

/// The same with copies of a machine and of its disk, of which one is superseded.
pub(super) fn several_keepers(world: &mut World) -> Result<(), Wrong> {
    let policy = world.random.below(4);
    world.keep(settings(policy));
    let weights = WEIGHTS.map(|(_, several, action)| (kept_weight(several, action), action));
    play(world, &weights)?;
    end_of_several(world)
}

/// Much is committed and much time passes; the daemons merge for themselves.
fn kept_weight(weight: u64, action: Action) -> u64 {
    match action {
        Action::Commit => 40,
        Action::Moment => 30,
        Action::Minutes => 20,
        Action::Hours => 8,
        Action::Day => 2,
        Action::Check => 4,
        Action::Merge => 0,
        _ => weight,
    }
}

/// Policies, one for each number.
fn settings(number: u64) -> KeepSettings {
    let hours = |hours: u64| Some(Duration::from_secs(hours * 3600));
    let retention = match number {
        0 => Retention::WEEK,
        1 => Retention {
            all: hours(6),
            hourly: hours(48),
            daily: hours(24 * 7),
        },
        2 => Retention {
            all: hours(1),
            hourly: hours(12),
            daily: None,
        },
        _ => Retention {
            all: None,
            hourly: None,
            daily: hours(24 * 3),
        },
    };
    KeepSettings {
        retention,
        snapshot_interval: Duration::from_secs(3 * 3600),
        merged_grace: Duration::from_secs(900),
        notes: None,
    }
}

/// The same over a store that ignores `If-None-Match`. Nothing comes between the look and the put
/// of an upload, and no request is late: there is no help against that.
pub(super) fn several_writers_on_a_careless_store(world: &mut World) -> Result<(), Wrong> {
    world.overwrites = true;
    world.machines[0].line.overwrite();
    let weights = WEIGHTS.map(|(_, several, action)| match action {
        Action::HoldAndKill | Action::HoldAndFreeze | Action::HoldAndGoOn => (0, action),
        _ => (several, action),
    });
    play(world, &weights)?;
    end_of_several(world)
}

/// A machine sleeps in one of several ways while its clone goes on in the same generation, whose
/// uploads are merged and deleted: when it wakes up their names are free.
pub(super) fn a_sleeper(world: &mut World) -> Result<(), Wrong> {
    ship_some(world);
    world.start(0)?;
    world.settle()?;
    for _ in 0..world.random.below(3) {
        commit(world, 0)?;
        world.pass_some(3000)?;
    }
    if world.random.percent(30) {
        hold(world, 0)?;
    }
    copy_machine(world, 0, Action::Clone);
    match world.random.below(4) {
        0 => world.kill(0),
        1 => world.stop(0)?,
        _ => happen(world, 0, Action::Freeze)?,
    }
    world.start(1)?;
    for _ in 0..1 + world.random.below(4) {
        commit(world, 1)?;
        world.pass_some(6000)?;
    }
    for _ in 0..1 + world.random.below(2) {
        world.merge()?;
        happen(world, 1, Action::Hours)?;
        commit(world, 1)?;
        world.pass_some(6000)?;
    }
    if !world.machines[0].is_running() {
        world.start(0)?;
    }
    happen(world, 0, Action::Thaw)?;
    if world.random.percent(50) {
        world.machines[0].line.release(Release::Answer);
    }
    for _ in 0..1 + world.random.below(4) {
        commit(world, 0)?;
        if world.random.percent(15) {
            hold_and_kill(world, 0)?;
            world.start(0)?;
        }
        world.pass_some(6000)?;
    }
    world.check()?;
    end_of_several(world)
}

fn end_of_several(world: &mut World) -> Result<(), Wrong> {
    end(world)?;
    // Who is superseded is looked at when a daemon starts, and now and then.
    for machine in 0..world.machines.len() {
        world.kill(machine);
        world.settle()?;
        world.check_place_of(machine)?;
    }
    world.check()
}

fn play(world: &mut World, weights: &[(u64, Action)]) -> Result<(), Wrong> {
    ship_some(world);
    world.start(0)?;
    let actions = match world.is_kept() {
        true => 60 + world.random.below(120),
        false => 10 + world.random.below(20),
    };
    for _ in 0..actions {
        let machine = world.random.below(world.machines.len() as u64) as usize;
        let action = draw(world, weights);
        happen(world, machine, action)?;
    }
    Ok(())
}

/// Everything heals, every writer goes on, and all that was durable is there.
pub(super) fn end(world: &mut World) -> Result<(), Wrong> {
    world.note("all heals");
    world.settle()?;
    world.check()?;
    for machine in 0..world.machines.len() {
        world.commit(machine);
    }
    world.settle()?;
    world.promise_all();
    world.check()?;
    for machine in &world.machines {
        let tip = machine.database.lock().unwrap().tip.clone();
        if !world.reader.has(&tip) {
            return Err(format!("the last commit of {} is not there", machine.name));
        }
    }
    Ok(())
}

/// In some worlds some transactions are huge, or all are.
fn ship_some(world: &mut World) {
    let huge_bytes = match world.random.below(4) {
        0 => 0,
        1 => FEW_PAGES,
        _ => HUGE_BYTES,
    };
    world.ship(huge_bytes);
}

fn draw(world: &mut World, actions: &[(u64, Action)]) -> Action {
    let sum = actions.iter().map(|(weight, _)| weight).sum();
    let mut at = world.random.below(sum);
    for (weight, action) in actions {
        match at.checked_sub(*weight) {
            Some(left) => at = left,
            None => return *action,
        }
    }
    unreachable!("it is below the sum")
}

fn happen(world: &mut World, machine: usize, action: Action) -> Result<(), Wrong> {
    let name = world.machines[machine].name.clone();
    world.note(format!("{name} {action:?}"));
    let is_running = world.machines[machine].is_running();
    match action {
        Action::Commit => return commit(world, machine),
        // A process that stands still holds its locks.
        Action::Checkpoint if world.machines[machine].frozen.is_none() => {
            let how = if world.random.percent(80) || is_running {
                Restart::InPlace
            } else {
                Restart::Removed
            };
            let restarted = world.machines[machine].restart_wal(how);
            world.must(restarted)?;
        }
        Action::Moment => world.pass_some(4000)?,
        Action::Minutes => {
            let time = Duration::from_secs(60 + world.random.below(1200));
            world.pass(time)?;
        }
        Action::Hours => world.pass(Duration::from_secs(2 * 60 * 60))?,
        Action::Day => world.pass(Duration::from_secs(24 * 60 * 60))?,
        Action::Outage => world.machines[machine].line.set_rule(|_, _| Fate::Refused),
        Action::Losses => lose_some(world, machine),
        Action::Heal => world.machines[machine].line.heal(),
        Action::HoldAndKill if is_running => hold_and_kill(world, machine)?,
        Action::HoldAndFreeze if is_running => hold_and_freeze(world, machine)?,
        Action::HoldAndGoOn if is_running => hold_and_go_on(world, machine)?,
        Action::Kill if is_running => world.kill(machine),
        Action::Stop if is_running => world.stop(machine)?,
        Action::Start if !is_running => world.start(machine)?,
        Action::LoseState if !is_running => {
            let is_copied = world.machines.len() > 1 || !world.images.is_empty();
            // An id that no replica has yet would be another one the next time.
            if !is_copied || world.machines[machine].has_state() {
                world.has_stranger |= is_copied;
                world.machines[machine].lose_state();
            }
        }
        Action::BreakContinuity if world.machines[machine].frozen.is_none() => {
            let broken = world.machines[machine].break_continuity();
            world.must(broken)?;
        }
        Action::Check => world.check()?,
        Action::Merge => world.merge()?,
        Action::Freeze | Action::Thaw => freeze(world, machine, action),
        Action::ClockBack | Action::ClockFar | Action::ClockRight => {
            set_clock(world, machine, action);
        }
        Action::Clone | Action::CopyDatabase => copy_machine(world, machine, action),
        Action::TakeImage => {
            let image = world.machines[machine].image();
            world.images.push((machine, image));
        }
        Action::PutImageBack | Action::PutStateBack if !is_running => {
            put_back(world, machine, action);
        }
        _ => {}
    }
    Ok(())
}

fn freeze(world: &mut World, machine: usize, action: Action) {
    world.machines[machine].frozen = match action {
        Action::Freeze if world.random.percent(50) => Some(Frozen::Machine),
        Action::Freeze => Some(Frozen::Process),
        _ => None,
    };
}

fn set_clock(world: &mut World, machine: usize, action: Action) {
    let now = world.time();
    let time = match action {
        Action::ClockBack => now - 3_700_000_000,
        Action::ClockFar => FAR,
        _ => now,
    };
    let clock = &world.machines[machine].time.clock;
    clock.store(time, Ordering::Relaxed);
}

/// A machine goes on twice, or its database does.
fn copy_machine(world: &mut World, machine: usize, action: Action) {
    let Some(name) = NAMES.get(world.machines.len()) else {
        return;
    };
    // Before, each would take the replica for its own.
    let may_be_copied = match action {
        Action::Clone => world.machines[machine].has_identity(),
        _ => world.machines[machine].has_state(),
    };
    if !may_be_copied {
        return;
    }
    world.has_stranger |= !world.machines[machine].has_state();
    let image = world.machines[machine].image();
    let database = image.database(&mut world.random);
    world.add_machine(name, database);
    match action {
        Action::Clone => {
            let copy = world.machines.last_mut().expect("just added");
            copy.put_state_back(&image);
        }
        _ => world.has_stranger = true,
    }
}

/// The disk, or only the state directory, is what it was when an image was taken.
fn put_back(world: &mut World, machine: usize, action: Action) {
    let images = world.images.iter();
    let Some((_, image)) = images.rev().find(|(whose, _)| *whose == machine) else {
        return;
    };
    // An id that no replica has yet would be another one the next time.
    if !image.has_identity() && !world.machines[machine].has_state() {
        return;
    }
    match action {
        Action::PutImageBack => world.machines[machine].put_back(image),
        _ => world.machines[machine].put_state_back(image),
    }
    world.has_stranger |= !world.machines[machine].has_state();
}

fn commit(world: &mut World, machine: usize) -> Result<(), Wrong> {
    if world.machines[machine].frozen == Some(Frozen::Machine) {
        return Ok(());
    }
    for _ in 0..1 + world.random.below(4) {
        world.commit(machine);
        let database = world.database(machine);
        let database = database.lock().unwrap();
        let (tip, pages) = (database.tip.id, database.tip.image.len());
        let name = world.machines[machine].name.clone();
        world.note(format!("{name}   commit {tip}, {pages} pages"));
    }
    if world.random.percent(80) {
        let captured = world.machines[machine].capture();
        world.must(captured)?;
    }
    if world.random.percent(20) {
        let hurried = world.machines[machine].hurry();
        world.must(hurried)?;
    }
    Ok(())
}

/// Some calls are refused, some replies are lost.
fn lose_some(world: &mut World, machine: usize) {
    let mut random = Random::new(world.random.next());
    world.machines[machine]
        .line
        .set_rule(move |_, _| match random.below(10) {
            0 => Fate::Refused,
            1 | 2 => Fate::ReplyLost,
            _ => Fate::Answered,
        });
}

/// Appoints a stand-still to one of the next calls, and lets time pass until it comes.
fn hold(world: &mut World, machine: usize) -> Result<(), Wrong> {
    let fate = if world.random.percent(50) {
        Fate::HeldBefore
    } else {
        Fate::HeldAfter
    };
    let ahead = world.random.below(6);
    world.appoint(machine, ahead, fate);
    for _ in 0..10 {
        if world.machines[machine].line.is_held() {
            break;
        }
        world.pass_some(1500)?;
        if world.random.percent(30) {
            commit(world, machine)?;
        }
    }
    Ok(())
}

fn hold_and_kill(world: &mut World, machine: usize) -> Result<(), Wrong> {
    hold(world, machine)?;
    world.kill(machine);
    match world.random.below(4) {
        0 => world.deliver_late(machine),
        1 => {}
        _ => drop(world.machines[machine].line.take_late()),
    }
    Ok(())
}

/// The machine stands still as a whole; others go on.
fn hold_and_freeze(world: &mut World, machine: usize) -> Result<(), Wrong> {
    hold(world, machine)?;
    freeze(world, machine, Action::Freeze);
    let time = match world.random.below(3) {
        0 => Duration::from_secs(30),
        1 => Duration::from_secs(1200),
        _ => Duration::from_secs(24 * 60 * 60),
    };
    world.pass(time)?;
    for other in (0..world.machines.len()).filter(|other| *other != machine) {
        commit(world, other)?;
        world.pass_some(3000)?;
    }
    freeze(world, machine, Action::Thaw);
    go_on(world, machine)
}

/// The call hangs while the machine goes on.
fn hold_and_go_on(world: &mut World, machine: usize) -> Result<(), Wrong> {
    hold(world, machine)?;
    for _ in 0..world.random.below(4) {
        commit(world, machine)?;
        world.pass_some(5000)?;
    }
    go_on(world, machine)
}

fn go_on(world: &mut World, machine: usize) -> Result<(), Wrong> {
    let how = if world.random.percent(60) {
        Release::Answer
    } else {
        Release::Fail
    };
    world.machines[machine].line.release(how);
    if world.random.percent(50) {
        world.deliver_late(machine);
    }
    world.pass_some(2000)
}
