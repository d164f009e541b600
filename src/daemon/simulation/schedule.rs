//! What happens to the machines: drawn from a seed.

use crate::daemon::simulation::database::Restart;
use crate::daemon::simulation::reader::Wrong;
use crate::daemon::simulation::wire::{Fate, Release};
use crate::daemon::simulation::world::World;
use std::time::Duration;

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Action {
    Commit,
    Checkpoint,
    Moment,
    Minutes,
    Day,
    Outage,
    Losses,
    Heal,
    HoldAndKill,
    HoldAndFreeze,
    HoldAndGoOn,
    Kill,
    Stop,
    Start,
    LoseState,
    BreakContinuity,
    Check,
}

/// How often each happens with one writer.
const ONE_WRITER: [(u64, Action); 17] = [
    (30, Action::Commit),
    (6, Action::Checkpoint),
    (20, Action::Moment),
    (5, Action::Minutes),
    (1, Action::Day),
    (3, Action::Outage),
    (4, Action::Losses),
    (6, Action::Heal),
    (6, Action::HoldAndKill),
    (3, Action::HoldAndFreeze),
    (4, Action::HoldAndGoOn),
    (4, Action::Kill),
    (4, Action::Stop),
    (12, Action::Start),
    (1, Action::LoseState),
    (1, Action::BreakContinuity),
    (2, Action::Check),
];

/// Plays the schedule of a seed with one writer.
pub(super) fn one_writer(world: &mut World) -> Result<(), Wrong> {
    world.start(0)?;
    let actions = 10 + world.random.below(20);
    for _ in 0..actions {
        let action = draw(world, &ONE_WRITER);
        happen(world, 0, action)?;
    }
    end(world)
}

/// Everything heals, every writer goes on, and all that was durable is there.
pub(super) fn end(world: &mut World) -> Result<(), Wrong> {
    world.note("all heals");
    world.settle()?;
    world.check()?;
    for machine in 0..world.machines.len() {
        world.database(machine).lock().unwrap().commit();
    }
    world.settle()?;
    world.check()?;
    for machine in &world.machines {
        let tip = machine.database.lock().unwrap().tip.clone();
        if !world.reader.has(&tip) {
            return Err(format!("the last commit of {} is not there", machine.name));
        }
    }
    Ok(())
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
        Action::Checkpoint => {
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
        Action::LoseState if !is_running => world.machines[machine].lose_state(),
        Action::BreakContinuity => {
            let broken = world.machines[machine].break_continuity();
            world.must(broken)?;
        }
        Action::Check => world.check()?,
        _ => {}
    }
    Ok(())
}

fn commit(world: &mut World, machine: usize) -> Result<(), Wrong> {
    for _ in 0..1 + world.random.below(4) {
        let database = world.database(machine);
        let mut database = database.lock().unwrap();
        database.commit();
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
    let mut random = crate::materialize::model::Random::new(world.random.next());
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
    let time = match world.random.below(3) {
        0 => Duration::from_secs(30),
        1 => Duration::from_secs(1200),
        _ => Duration::from_secs(24 * 60 * 60),
    };
    world.advance(time);
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
