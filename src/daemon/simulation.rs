//! Writers against a store in memory: real spools and uploaders, real readers, and all else made
//! up. Every schedule follows from a seed, and waits of a day pass at once.
//!
//! A failure prints its seed and what happened. `SQLREPL_SEED` plays one seed again, with the
//! uploaders' log; `SQLREPL_SOAK` makes it so many times more schedules.
//!
//! What is made up keeps to what the real thing promises: the database has SQLite's salts and
//! checksums ([`database`]), the capture begins a run where continuity is not proved ([`capture`]),
//! a call to the store may be refused, unheard of, or late ([`wire`]).

mod capture;
mod database;
mod day;
mod forks;
mod huge;
mod machine;
mod merger;
mod reader;
mod rules;
mod schedule;
mod soak;
mod wire;
mod world;

use crate::daemon::simulation::reader::Wrong;
use crate::daemon::simulation::world::World;
use crate::format::sample::{number, soak};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// So many that are wrong end it.
const WRONG_MAX: usize = 30;

/// A schedule to play in a new world.
type Play<'a> = &'a (dyn Fn(&mut World) -> Result<(), Wrong> + Sync);

/// Plays so many schedules, one of them if `SQLREPL_SEED` says which.
fn play_schedules(schedules: u64, play: Play) {
    if let Some(seed) = number("SQLREPL_SEED") {
        show_log();
        return play_one(seed, play).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    let schedules = schedules * soak();
    on_all_cores(schedules, &|seed| {
        let played = play_one(seed, play);
        played.map_err(|wrong| format!("{wrong} (SQLREPL_SEED={seed})"))
    });
}

fn show_log() {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_test_writer()
        .init();
}

/// Does something for 1 and so on, on as many threads as there are cores. Tells all of the first
/// that is wrong, and of the others what is wrong.
fn on_all_cores(count: u64, each: &(dyn Fn(u64) -> Result<(), Wrong> + Sync)) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(1);
    let wrong = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number > count || wrong.lock().unwrap().len() == WRONG_MAX {
                        break;
                    }
                    if let Err(found) = each(number) {
                        wrong.lock().unwrap().insert(number, found);
                    }
                }
            });
        }
    });
    let wrong: Vec<Wrong> = wrong.into_inner().unwrap().into_values().collect();
    let last_line = |wrong: &Wrong| wrong.lines().last().unwrap_or_default().to_owned();
    let others: Vec<String> = wrong.iter().skip(1).map(last_line).collect();
    if let Some(first) = wrong.first() {
        panic!("{first}\n{} others:\n{}", others.len(), others.join("\n"));
    }
}

fn play_one(seed: u64, play: Play) -> Result<(), Wrong> {
    let mut world = World::new(seed);
    let played = catch_unwind(AssertUnwindSafe(|| play(&mut world)));
    let wrong = match played {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(wrong)) => wrong,
        Err(_) => "it panicked".to_owned(),
    };
    Err(format!("{}\n{wrong}", world.trace.join("\n")))
}

#[test]
fn one_writer_loses_nothing_whatever_happens_to_it_and_its_line() {
    play_schedules(500, &schedule::one_writer);
}

#[test]
fn several_writers_never_mix_their_histories() {
    play_schedules(2000, &schedule::several_writers);
}

#[test]
fn several_writers_are_kept_apart_by_looking_where_the_store_does_not() {
    play_schedules(500, &schedule::several_writers_on_a_careless_store);
}

#[test]
fn a_machine_that_slept_while_names_became_free_again_mixes_nothing() {
    play_schedules(500, &schedule::a_sleeper);
}

#[test]
fn what_retention_keeps_stays_whatever_happens_to_its_keeper() {
    play_schedules(400, &schedule::one_keeper);
}

#[test]
fn what_retention_keeps_stays_beside_writers_that_are_superseded() {
    play_schedules(400, &schedule::several_keepers);
}

#[test]
fn after_ten_days_a_replica_has_thinned_out_and_grows_no_more() {
    play_one(1, &soak::play).unwrap_or_else(|wrong| panic!("{wrong}"));
}

#[test]
fn a_daemon_killed_at_any_call_of_a_day_goes_on_without_a_wrong_point() {
    kill_at_any_call(&|_| {});
}

#[test]
fn a_daemon_killed_at_any_call_of_a_day_of_maintenance_goes_on_without_a_wrong_point() {
    let mut world = World::new(1);
    world.keep(day::KEEPING);
    day::play(&mut world, None).unwrap_or_else(|wrong| panic!("{wrong}"));
    for (verb, folder) in [
        ("Put", "/wal/1/"),
        ("Put", "/wal/2/"),
        ("Put", "/snapshots/"),
        ("Delete", "/wal/"),
    ] {
        let is_it = |line: &&String| line.contains(verb) && line.contains(folder);
        let calls = world.trace.iter().filter(is_it).count();
        assert!(calls > 1, "{calls} times {verb} in {folder}");
    }
    kill_at_any_call(&|world| world.keep(day::KEEPING));
}

#[test]
fn a_daemon_killed_at_any_call_of_a_day_of_huge_transactions_goes_on_without_a_wrong_point() {
    kill_at_any_call(&|world| world.ship(huge::FEW_PAGES));
}

/// How a world is made ready.
type Prepare<'a> = &'a (dyn Fn(&mut World) + Sync);

fn kill_at_any_call(prepare: Prepare) {
    if let Some(call) = number("SQLREPL_SEED") {
        show_log();
        return kill_at(call, prepare).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    let calls = AtomicU64::new(0);
    let count = |world: &mut World| {
        prepare(world);
        calls.store(day::play(world, None)?, Ordering::Relaxed);
        Ok(())
    };
    play_one(1, &count).unwrap_or_else(|wrong| panic!("{wrong}"));
    let calls = calls.into_inner();
    assert!(calls > 50, "a day of {calls} calls");
    on_all_cores(calls, &|call| {
        let killed = kill_at(call, prepare);
        killed.map_err(|wrong| format!("{wrong} (SQLREPL_SEED={call})"))
    });
}

/// Plays the day once for each way in which this call may end.
fn kill_at(call: u64, prepare: Prepare) -> Result<(), Wrong> {
    for end in day::ENDS {
        let play = |world: &mut World| {
            prepare(world);
            day::play(world, Some((call, end))).map(drop)
        };
        play_one(1, &play).map_err(|wrong| format!("{wrong} ({end:?} at call {call})"))?;
    }
    Ok(())
}
