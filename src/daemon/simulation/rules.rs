//! What the rules of who may write cost and say, one by one.

use crate::daemon::simulation::play_one;
use crate::daemon::simulation::reader::Wrong;
use crate::daemon::simulation::world::World;
use std::sync::atomic::Ordering;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR_MICROS: i64 = 3_600_000_000;

fn play(play: impl Fn(&mut World) -> Result<(), Wrong> + Sync) {
    play_one(1, &play).unwrap_or_else(|wrong| panic!("{wrong}"));
}

/// One machine, whose first generation is complete.
fn at_work(world: &mut World) -> Result<(), Wrong> {
    world.start(0)?;
    world.settle()?;
    upload(world, 0)
}

/// A commit that reaches the replica.
fn upload(world: &mut World, machine: usize) -> Result<(), Wrong> {
    world.database(machine).lock().unwrap().commit();
    let captured = world.machines[machine].capture();
    world.must(captured)?;
    world.pass(Duration::from_secs(3))
}

/// What is asked of the store meanwhile; `G` is the generation that is written.
fn calls(
    world: &mut World,
    during: impl FnOnce(&mut World) -> Result<(), Wrong>,
) -> Result<Vec<String>, Wrong> {
    let before = world.trace.len();
    during(world)?;
    let status = world.machines[0].status().unwrap_or_default();
    let generation = status.generation.map(|id| id.to_string());
    let calls = world.trace[before..].iter().filter_map(|line| {
        let call = line.split_once(" call ")?.1;
        let (what, _) = call.split_once(": ")?.1.rsplit_once(": ")?;
        Some(what.replace(generation.as_deref().unwrap_or("-"), "G"))
    });
    Ok(calls.collect())
}

fn put(txid: u64) -> String {
    format!("Put generations/G/wal/0/{txid:016x}.wal")
}

const LOOK: &str = "List generations/G/wal/";

#[test]
fn a_start_with_a_state_makes_five_requests_and_an_idle_daemon_none() {
    play(|world| {
        at_work(world)?;
        let idle = calls(world, |world| world.pass(MINUTE * 60 * 24))?;
        assert_eq!(idle, [""; 0]);
        world.kill(0);
        let started = calls(world, |world| {
            world.start(0)?;
            world.pass(MINUTE)
        })?;
        let expected = [
            "ListFolder generations/G/",
            LOOK,
            "ListFolder generations/",
            "AbortUnfinished generations/G/",
            "AbortUnfinished ",
        ];
        assert_eq!(started, expected);
        Ok(())
    });
}

#[test]
fn the_first_upload_after_a_start_counts_after_a_look() {
    play(|world| {
        at_work(world)?;
        world.kill(0);
        world.start(0)?;
        world.pass(MINUTE)?;
        let first = calls(world, |world| upload(world, 0))?;
        assert_eq!(first, [&put(3), LOOK]);
        let second = calls(world, |world| upload(world, 0))?;
        assert_eq!(second, [put(4)]);
        Ok(())
    });
}

#[test]
fn after_a_pause_of_ten_minutes_an_upload_comes_after_a_look() {
    play(|world| {
        at_work(world)?;
        world.advance(MINUTE * 9);
        assert_eq!(calls(world, |world| upload(world, 0))?, [put(3)]);
        world.advance(MINUTE * 11);
        assert_eq!(calls(world, |world| upload(world, 0))?, [LOOK, &put(4)]);
        assert_eq!(calls(world, |world| upload(world, 0))?, [put(5)]);
        Ok(())
    });
}

#[test]
fn after_a_change_of_the_clock_an_upload_comes_after_a_look() {
    play(|world| {
        at_work(world)?;
        for (change, txid) in [(-HOUR_MICROS, 3), (HOUR_MICROS * 24 * 365, 4)] {
            let clock = &world.machines[0].time.clock;
            clock.fetch_add(change, Ordering::Relaxed);
            let calls = calls(world, |world| upload(world, 0))?;
            assert_eq!(calls, [LOOK, &put(txid)], "{change}");
        }
        Ok(())
    });
}

#[test]
fn an_upload_after_a_pause_that_only_the_store_saw_counts_after_a_look() {
    play(|world| {
        at_work(world)?;
        world.now.fetch_add(HOUR_MICROS, Ordering::Relaxed);
        assert_eq!(calls(world, |world| upload(world, 0))?, [&put(3), LOOK]);
        assert_eq!(calls(world, |world| upload(world, 0))?, [put(4)]);
        Ok(())
    });
}

#[test]
fn every_64th_upload_is_followed_by_a_look_at_all_that_counts() {
    play(|world| {
        at_work(world)?;
        for _ in 2..64 {
            upload(world, 0)?;
        }
        let expected = [
            &put(65),
            "ListFolder generations/G/",
            LOOK,
            "ListFolder generations/",
        ];
        assert_eq!(calls(world, |world| upload(world, 0))?, expected);
        Ok(())
    });
}
