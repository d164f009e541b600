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
mod machine;
mod reader;
mod rules;
mod schedule;
mod wire;
mod world;

use crate::daemon::simulation::reader::Wrong;
use crate::daemon::simulation::world::World;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A schedule to play in a new world.
type Play<'a> = &'a (dyn Fn(&mut World) -> Result<(), Wrong> + Sync);

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// Plays so many schedules, one of them if `SQLREPL_SEED` says which.
fn play_schedules(schedules: u64, play: Play) {
    if let Some(seed) = number("SQLREPL_SEED") {
        show_log();
        return play_one(seed, play).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    let schedules = schedules * number("SQLREPL_SOAK").unwrap_or(1);
    on_all_cores(schedules, &|seed| {
        let played = play_one(seed, play);
        played.map_err(|wrong| format!("{wrong}\nSQLREPL_SEED={seed}"))
    });
}

fn show_log() {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_test_writer()
        .init();
}

/// Does something for 1 and so on, on as many threads as there are cores. The first that is wrong
/// ends it.
fn on_all_cores(count: u64, each: &(dyn Fn(u64) -> Result<(), Wrong> + Sync)) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(1);
    let wrong = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number > count || wrong.lock().unwrap().is_some() {
                        break;
                    }
                    if let Err(found) = each(number) {
                        wrong.lock().unwrap().get_or_insert(found);
                    }
                }
            });
        }
    });
    if let Some(wrong) = wrong.into_inner().unwrap() {
        panic!("{wrong}");
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
fn a_daemon_killed_at_any_call_of_a_day_goes_on_without_a_wrong_point() {
    if let Some(call) = number("SQLREPL_SEED") {
        show_log();
        return kill_at(call).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    let calls = AtomicU64::new(0);
    let count = |world: &mut World| {
        calls.store(day::play(world, None)?, Ordering::Relaxed);
        Ok(())
    };
    play_one(1, &count).unwrap_or_else(|wrong| panic!("{wrong}"));
    let calls = calls.into_inner();
    assert!(calls > 50, "a day of {calls} calls");
    on_all_cores(calls, &|call| {
        kill_at(call).map_err(|wrong| format!("{wrong}\nSQLREPL_SEED={call}"))
    });
}

/// Plays the day once for each way in which this call may end.
fn kill_at(call: u64) -> Result<(), Wrong> {
    for end in day::ENDS {
        let play = |world: &mut World| day::play(world, Some((call, end))).map(drop);
        play_one(1, &play).map_err(|wrong| format!("{wrong}\n{end:?} at call {call}"))?;
    }
    Ok(())
}
