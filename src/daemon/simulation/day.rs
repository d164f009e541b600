//! A day that is always the same, but for one call to the store at which the daemon is killed.

use crate::config::settings::Retention;
use crate::daemon::simulation::database::Restart;
use crate::daemon::simulation::reader::Wrong;
use crate::daemon::simulation::schedule::end;
use crate::daemon::simulation::wire::Fate;
use crate::daemon::simulation::world::World;
use crate::maintain::keeper::KeepSettings;
use std::time::Duration;

/// What becomes of the daemon at a call, and of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Killed before the call was sent.
    Before,
    /// Killed after the call was sent; it arrives while the next daemon is at work.
    Late,
    /// Killed when the call was done, before its answer came.
    After,
    /// Not killed: the answer was lost.
    ReplyLost,
}

/// All of them.
pub(super) const ENDS: [End; 4] = [End::Before, End::Late, End::After, End::ReplyLost];

/// How a replica is kept on a day on which everything falls due.
pub(super) const KEEPING: KeepSettings = KeepSettings {
    retention: Retention {
        all: Some(Duration::from_secs(3 * 3600)),
        hourly: Some(Duration::from_secs(5 * 3600)),
        daily: None,
    },
    snapshot_interval: Duration::from_secs(2 * 3600),
    merged_grace: Duration::from_secs(900),
    notes: None,
};

/// Plays the day with one writer. `at`: which call goes wrong, counted from 1, and how. Returns how
/// many calls there were before the evening.
pub(super) fn play(world: &mut World, at: Option<(u64, End)>) -> Result<u64, Wrong> {
    let how = at.map(|(_, how)| how);
    if let Some((number, how)) = at {
        let fate = match how {
            End::Before | End::Late => Fate::HeldBefore,
            End::After => Fate::HeldAfter,
            End::ReplyLost => Fate::ReplyLost,
        };
        world.machines[0].line.appoint(number, fate);
    }
    world.start(0)?;
    for hour in 0..8 {
        for _ in 0..3 {
            work(world, 2)?;
            wait(world, Duration::from_secs(2), how)?;
        }
        world.check()?;
        match hour {
            0 | 4 => checkpoint(world)?,
            1 | 6 => redeploy(world, how)?,
            2 => lose_continuity(world)?,
            5 => world.machines[0]
                .break_continuity()
                .map_err(|e| e.to_string())?,
            _ => {}
        }
        wait(world, Duration::from_secs(3600), how)?;
    }
    let calls = world.machines[0].line.calls();
    end(world)?;
    Ok(calls)
}

fn work(world: &mut World, commits: u64) -> Result<(), Wrong> {
    for _ in 0..commits {
        world.database(0).lock().unwrap().commit();
    }
    let captured = world.machines[0].capture();
    world.must(captured).map(drop)
}

/// Lets time pass; when the daemon comes to the call that goes wrong, kills it and starts it again.
fn wait(world: &mut World, time: Duration, how: Option<End>) -> Result<(), Wrong> {
    world.pass(time)?;
    if !world.machines[0].line.is_held() {
        return Ok(());
    }
    world.kill(0);
    world.start(0)?;
    if how == Some(End::Late) {
        world.run(0, Duration::from_millis(1))?;
        world.deliver_late(0);
    }
    world.pass(time)
}

fn checkpoint(world: &mut World) -> Result<(), Wrong> {
    let restarted = world.machines[0].restart_wal(Restart::InPlace);
    world.must(restarted)
}

/// A clean stop; the application goes on without the daemon.
fn redeploy(world: &mut World, how: Option<End>) -> Result<(), Wrong> {
    work(world, 1)?;
    world.stop(0)?;
    work(world, 2)?;
    world.start(0)?;
    wait(world, Duration::from_secs(2), how)
}

/// The daemon is killed, and frames are gone before it comes back.
fn lose_continuity(world: &mut World) -> Result<(), Wrong> {
    work(world, 1)?;
    world.kill(0);
    for _ in 0..2 {
        work(world, 1)?;
        checkpoint(world)?;
    }
    world.start(0)
}
