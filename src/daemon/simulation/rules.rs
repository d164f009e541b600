//! What the rules of who may write cost and say, one by one.

use crate::config::Environment;
use crate::daemon::simulation::database::Restart;
use crate::daemon::simulation::play_one;
use crate::daemon::simulation::reader::Wrong;
use crate::daemon::simulation::wire::{Fate, Release};
use crate::daemon::simulation::world::World;
use crate::error::{Error, ErrorKind};
use crate::format::container::Parent;
use crate::format::ids::{GenerationId, Txid};
use crate::replicate::history;
use crate::replicate::seed::{self, Asking};
use crate::replicate::spool::Spool;
use crate::replicate::writers::Fencing;
use crate::storage::fault::Verb;
use crate::storage::{Body, Store};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(super) const MINUTE: Duration = Duration::from_secs(60);
const HOUR_MICROS: i64 = 3_600_000_000;

pub(super) fn play(play: impl Fn(&mut World) -> Result<(), Wrong> + Sync) {
    play_one(1, &play).unwrap_or_else(|wrong| panic!("{wrong}"));
}

/// One machine, whose first generation is complete.
pub(super) fn at_work(world: &mut World) -> Result<(), Wrong> {
    world.start(0)?;
    world.settle()?;
    upload(world, 0)
}

/// A commit that reaches the replica.
pub(super) fn upload(world: &mut World, machine: usize) -> Result<(), Wrong> {
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
/// A look after a pause.
const LONG_LOOK: &str = "List generations/G/";

#[test]
fn a_start_with_a_state_makes_three_requests_and_an_idle_daemon_none() {
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
            "ListFolder generations/",
            LONG_LOOK,
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
        let old = "AbortUnfinished  before 2026-11-13T17:46:23.000000Z";
        assert_eq!(first, [&put(3), LONG_LOOK, old]);
        let second = calls(world, |world| upload(world, 0))?;
        assert_eq!(second, [put(4)]);
        Ok(())
    });
}

#[test]
fn what_was_cut_short_is_given_up_by_its_key_at_the_next_start() {
    play(|world| {
        world.machines[0].line.set_rule(|verb, key| {
            let is_snapshot = verb == Verb::Put && key.contains("/snapshots/");
            if is_snapshot {
                Fate::HeldBefore
            } else {
                Fate::Answered
            }
        });
        world.start(0)?;
        let before = world.trace.len();
        upload(world, 0)?;
        let is_held = |line: &&String| line.contains("snapshots/");
        let held = world.trace[before..].iter().find(is_held);
        let held = held.and_then(|line| line.split_once("Put ")?.1.split_once(" stands"));
        let key = held.expect("it was put").0.to_owned();
        world.kill(0);
        world.machines[0].line.heal();
        let started = calls(world, |world| {
            world.start(0)?;
            world.pass(MINUTE)
        })?;
        let given_up = started
            .iter()
            .filter_map(|call| call.strip_prefix("AbortUnfinished "));
        let key = key.replace(&generation(world).to_string(), "G");
        let expected = [format!("{key} before 9999-12-31T23:59:59.999999Z")];
        assert_eq!(given_up.collect::<Vec<_>>(), expected);
        Ok(())
    });
}

#[test]
fn a_failed_upload_gives_up_nothing_that_others_send_nor_does_a_wrong_clock() {
    play(|world| {
        at_work(world)?;
        world.machines[0].line.set_rule(|verb, _| match verb {
            Verb::Put => Fate::Refused,
            _ => Fate::Answered,
        });
        let failed = calls(world, |world| upload(world, 0))?;
        assert!(failed.contains(&put(3)), "{failed:?}");
        world.kill(0);
        world.machines[0].line.heal();
        let clock = &world.machines[0].time.clock;
        clock.fetch_add(HOUR_MICROS * 24 * 365 * 73, Ordering::Relaxed);
        let started = calls(world, |world| {
            world.start(0)?;
            world.pass(MINUTE)
        })?;
        let both = [failed, started].concat();
        let given_up = both
            .iter()
            .filter_map(|call| call.strip_prefix("AbortUnfinished "));
        let expected = [
            format!(
                "{} before 9999-12-31T23:59:59.999999Z",
                &put(3)["Put ".len()..]
            ),
            " before 2026-11-13T17:46:23.000000Z".to_owned(),
        ];
        assert_eq!(given_up.collect::<Vec<_>>(), expected);
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
        assert_eq!(
            calls(world, |world| upload(world, 0))?,
            [LONG_LOOK, &put(4)]
        );
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
            assert_eq!(calls, [LONG_LOOK, &put(txid)], "{change}");
        }
        Ok(())
    });
}

#[test]
fn an_upload_after_a_pause_that_only_the_store_saw_counts_after_a_look() {
    play(|world| {
        at_work(world)?;
        world.now.fetch_add(HOUR_MICROS, Ordering::Relaxed);
        assert_eq!(
            calls(world, |world| upload(world, 0))?,
            [&put(3), LONG_LOOK]
        );
        assert_eq!(calls(world, |world| upload(world, 0))?, [put(4)]);
        Ok(())
    });
}

#[test]
fn a_segment_that_was_merged_before_the_look_behind_it_is_ours() {
    play(|world| {
        at_work(world)?;
        upload(world, 0)?;
        let ours = generation(world);
        world.now.fetch_add(HOUR_MICROS, Ordering::Relaxed);
        world.machines[0].line.set_rule(|verb, _| match verb {
            Verb::List => Fate::HeldBefore,
            _ => Fate::Answered,
        });
        upload(world, 0)?;
        assert!(world.machines[0].line.is_held());
        world.merge()?;
        world.machines[0].line.heal();
        world.machines[0].line.release(Release::Answer);
        upload(world, 0)?;
        assert_eq!(generation(world), ours);
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

pub(super) fn now<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

pub(super) fn generation(world: &World) -> GenerationId {
    let status = world.machines[0].status().unwrap_or_default();
    status.generation.expect("it writes one")
}

/// What the generation that is written now says why it began.
pub(super) fn reason(world: &World) -> String {
    let read = now(history::claim_of(&*world.store, generation(world)));
    read.unwrap().expect("it has a claim").0.reason
}

#[test]
fn an_object_that_nobody_can_read_is_another_writers() {
    play(|world| {
        at_work(world)?;
        let ours = generation(world);
        let key = format!("generations/{ours}/wal/0/0000000000000003.wal");
        now(world.store.put(&key, Body::Bytes("garbage".into()))).unwrap();
        upload(world, 0)?;
        world.settle()?;
        let expected = format!(
            "memory/{key} is not of this daemon's making: nobody knows whose it is, for it cannot \
             be read; both share generation {ours} up to txid 0000000000000002"
        );
        assert_eq!(reason(world), expected);
        Ok(())
    });
}

#[test]
fn a_replica_that_lost_the_first_snapshot_gets_another_generation() {
    play(|world| {
        at_work(world)?;
        world.kill(0);
        let listed = now(world.store.list("generations/", None)).unwrap();
        let keys = listed.into_iter().map(|listed| listed.key);
        let keys: Vec<String> = keys.filter(|key| key.contains("/snapshots/")).collect();
        now(world.store.delete(&keys)).unwrap();
        world.start(0)?;
        world.settle()?;
        let lost = &keys[0]["generations/".len()..][..17];
        let expected = format!("memory lost the first snapshot of generation {lost}");
        assert_eq!(reason(world), expected);
        Ok(())
    });
}

#[test]
fn on_a_replica_that_was_emptied_nothing_is_durable_before_the_next_first_snapshot() {
    play(|world| {
        at_work(world)?;
        upload(world, 0)?;
        let durable = |world: &World| {
            let status = world.machines[0].status().unwrap_or_default();
            (status.durable, status.newest.is_some())
        };
        let before = durable(world);
        assert!(before.0.is_some() && before.1);
        let listed = now(world.store.list("", None)).unwrap();
        let keys: Vec<String> = listed.into_iter().map(|listed| listed.key).collect();
        now(world.store.delete(&keys)).unwrap();
        let ours = generation(world);
        world.machines[0].line.set_rule(move |verb, key| {
            let is_snapshot = key.contains("/snapshots/");
            let is_ours = key.contains(&ours.to_string());
            match verb == Verb::Put && (is_snapshot || is_ours) {
                true => Fate::Refused,
                false => Fate::Answered,
            }
        });
        upload(world, 0)?;
        world.pass(MINUTE)?;
        assert_ne!(generation(world), ours);
        assert_eq!(durable(world), (None, false));
        world.machines[0].line.heal();
        world.settle()?;
        assert!(durable(world) > before);
        Ok(())
    });
}

/// A copy of the first machine's disk in a second machine; neither runs.
pub(super) fn clone_machine(world: &mut World) {
    world.kill(0);
    let image = world.machines[0].image();
    let database = image.database(&mut world.random);
    world.add_machine("B", database);
    world.machines[1].put_back(&image);
}

#[test]
fn a_clone_that_collides_names_the_other_and_the_other_names_it() {
    play(|world| {
        at_work(world)?;
        let ours = generation(world);
        clone_machine(world);
        world.start(0)?;
        upload(world, 0)?;
        world.start(1)?;
        upload(world, 1)?;
        world.settle()?;
        let status = world.machines[1].status().unwrap_or_default();
        let theirs = status.generation.expect("it writes one");
        let claim = now(history::claim_of(&*world.store, theirs)).unwrap();
        let expected = format!(
            "memory/generations/{ours}/wal/0/0000000000000003.wal is not of this daemon's making: \
             a later run of the daemon of app.db on A (writing since 2026-11-20T17:45:17.000000Z), \
             or of a copy of that machine, wrote it; both share generation {ours} up to txid \
             0000000000000002"
        );
        assert_eq!(claim.expect("it has a claim").0.reason, expected);
        assert_eq!(status.superseded, None);

        world.kill(0);
        world.start(0)?;
        world.pass(MINUTE)?;
        let status = world.machines[0].status().unwrap_or_default();
        let said = status.superseded.expect("readers follow the other");
        let expected = "the daemon of app.db on B (writing since 2026-11-20T17:45:";
        assert!(said.starts_with(expected), "{said}");
        assert!(
            said.contains(&format!("began generation {theirs} above ours")),
            "{said}"
        );
        world.check()
    });
}

/// The state directory of yesterday beside the database of today, to which nothing was committed
/// since the last upload.
fn state_of_yesterday(between: fn(&mut World) -> Result<(), Wrong>) {
    play(|world| {
        at_work(world)?;
        world.kill(0);
        let yesterday = world.machines[0].image();
        world.start(0)?;
        upload(world, 0)?;
        between(world)?;
        let (last, txid) = (generation(world), last_txid(world));
        world.kill(0);
        world.machines[0].put_state_back(&yesterday);
        world.start(0)?;
        world.settle()?;
        upload(world, 0)?;
        let claim = now(history::claim_of(&*world.store, generation(world))).unwrap();
        let parent = claim.expect("it has a claim").0.parent;
        let generation = last;
        assert_eq!(parent, Some(Parent { generation, txid }));
        world.check()
    });
}

pub(super) fn last_txid(world: &World) -> Txid {
    let status = world.machines[0].status().unwrap_or_default();
    status.newest.expect("it has stored one").0
}

/// Checkpoints that overwrite the end of yesterday's WAL, and commits.
fn checkpoints(world: &mut World) -> Result<(), Wrong> {
    for _ in 0..3 {
        let restarted = world.machines[0].restart_wal(Restart::InPlace);
        world.must(restarted)?;
        upload(world, 0)?;
    }
    Ok(())
}

#[test]
fn behind_a_state_from_yesterday_the_times_of_today_stay() {
    state_of_yesterday(checkpoints);
    state_of_yesterday(|world| {
        let broken = world.machines[0].break_continuity();
        world.must(broken)?;
        world.settle()?;
        checkpoints(world)
    });
}

#[test]
fn behind_what_a_clone_in_2099_stored_of_ours_a_generation_begins_on_the_clocks_time() {
    play(|world| {
        at_work(world)?;
        let ours = generation(world);
        world.kill(0);
        // Not captured when the machine is cloned.
        world.database(0).lock().unwrap().commit();
        clone_machine(world);
        let clock = &world.machines[1].time.clock;
        clock.fetch_add(HOUR_MICROS * 24 * 365 * 73, Ordering::Relaxed);
        world.start(1)?;
        world.pass(MINUTE)?;
        world.kill(1);
        refuse_puts(world, "/claim");
        world.start(0)?;
        world.pass(MINUTE)?;
        world.kill(0);
        world.machines[0].line.heal();
        world.start(0)?;
        world.pass(MINUTE)?;
        let claim = now(history::claim_of(&*world.store, generation(world))).unwrap();
        let claim = claim.expect("it has a claim").0;
        let key = format!("generations/{ours}/wal/0/0000000000000003.wal");
        let expected = format!("memory/{key} gives what was captured here times up to 2099-");
        assert!(claim.reason.starts_with(&expected), "{}", claim.reason);
        let (generation, txid) = (ours, Txid::new(3).unwrap());
        assert_eq!(claim.parent, Some(Parent { generation, txid }));
        upload(world, 0)?;
        let status = world.machines[0].status().unwrap_or_default();
        let (_, time) = status.newest.expect("it has stored one");
        assert!(time.micros() <= world.time(), "{time}");
        world.check()
    });
}

/// Two generations of one upload each; then the state directory is lost.
fn lost_state(world: &mut World) -> Result<(), Wrong> {
    at_work(world)?;
    let broken = world.machines[0].break_continuity();
    world.must(broken)?;
    world.settle()?;
    for _ in 0..2 {
        upload(world, 0)?;
    }
    world.kill(0);
    world.machines[0].lose_state();
    Ok(())
}

#[test]
fn a_lost_state_is_found_without_a_listing_of_older_generations() {
    play(|world| {
        lost_state(world)?;
        let calls = calls(world, |world| {
            world.start(0)?;
            world.pass(MINUTE)
        })?;
        let expected = [
            "ListFolder generations/",
            "List generations/G/claim",
            "GetRange generations/G/claim",
            "List generations/G/",
        ];
        assert_eq!(calls[..4], expected, "{calls:#?}");
        // What the uploader asks for.
        let survey = calls.iter().position(|call| call == "List generations/");
        let reads = &calls[4..survey.expect("it looks at the replica")];
        let is_segment = |call: &String| call.starts_with("GetRange generations/G/wal/0/");
        assert!(reads.iter().all(is_segment), "{calls:#?}");
        assert_eq!(last_txid(world), Txid::new(3).unwrap());
        Ok(())
    });
}

#[test]
fn a_wal_that_takes_too_long_to_read_is_left_before_the_capture_begins() {
    play(|world| {
        lost_state(world)?;
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (begun, is_read) = (Mutex::new(Some(begun)), Arc::new(Mutex::new(())));
        let reads = Arc::clone(&is_read);
        let asking = Asking::new(move |_, is_over| {
            let _reads = reads.lock().unwrap();
            if let Some(begun) = begun.lock().unwrap().take() {
                begun.send(()).unwrap();
            }
            let began = Instant::now();
            while !is_over() && began.elapsed() < Duration::from_secs(10) {
                std::thread::yield_now();
            }
            Ok(None)
        });
        let time_passes = async {
            has_begun.await.unwrap();
            tokio::time::advance(MINUTE).await;
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        let asked = async { tokio::join!(asking.ask(&*world.store), time_passes).0 };
        let held = runtime.unwrap().block_on(async {
            let held = asked.await;
            assert!(is_read.try_lock().is_ok(), "it is being read");
            held
        });
        check_end_is_known(&held.unwrap());
        Ok(())
    });
}

#[test]
fn where_a_replica_ends_is_known_although_the_wal_cannot_be_read() {
    play(|world| {
        lost_state(world)?;
        let asking = Asking::new(|_, _| {
            let error = std::io::Error::other("as told");
            Err(Error::disk("read the WAL", error))
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let held = runtime.unwrap().block_on(asking.ask(&*world.store));
        check_end_is_known(&held.unwrap());
        Ok(())
    });
}

/// The replica's database and end are known all the same, and the capture may prove the end.
fn check_end_is_known(held: &seed::Held) {
    assert!(held.database_id.is_some());
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), Arc::default()).unwrap();
    seed::begin_at(&spool, std::slice::from_ref(held), &Environment::of_tests()).unwrap();
    assert_eq!(spool.position().map(|at| at.seq), Some(2));
}

#[test]
fn a_higher_generation_that_vanishes_is_forgotten() {
    play(|world| {
        at_work(world)?;
        clone_machine(world);
        world.start(1)?;
        upload(world, 1)?;
        world.start(0)?;
        upload(world, 0)?;
        world.settle()?;
        let higher = generation(world);
        world.kill(0);
        world.kill(1);
        world.start(1)?;
        world.pass(MINUTE)?;
        let superseded = |world: &World| {
            let status = world.machines[1].status().unwrap_or_default();
            status.superseded.is_some()
        };
        assert!(superseded(world));
        let prefix = format!("generations/{higher}/");
        let listed = now(world.store.list(&prefix, None)).unwrap();
        let keys: Vec<String> = listed.into_iter().map(|listed| listed.key).collect();
        now(world.store.delete(&keys)).unwrap();
        world.kill(1);
        world.start(1)?;
        world.pass(MINUTE)?;
        assert!(!superseded(world));
        Ok(())
    });
}

#[test]
fn a_store_that_never_had_us_ends_the_uploader_and_one_that_had_us_does_not() {
    play(|world| {
        let forbid = |world: &World| world.machines[0].line.set_rule(|_, _| Fate::Forbidden);
        let failed = |world: &World| {
            let status = world.machines[0].status().unwrap_or_default();
            (status.failed, status.trouble.is_some())
        };
        forbid(world);
        world.start(0)?;
        let ran = world.machines[0].run(MINUTE);
        world.must(ran)?;
        assert_eq!(failed(world), (Some(ErrorKind::Refused), true));
        world.kill(0);
        world.machines[0].line.heal();
        at_work(world)?;
        forbid(world);
        upload(world, 0)?;
        world.pass(MINUTE * 10)?;
        assert_eq!(failed(world), (None, true));
        world.machines[0].line.heal();
        world.pass(MINUTE)?;
        assert_eq!(failed(world), (None, false));
        Ok(())
    });
}

/// Puts of keys with this in them are refused.
pub(super) fn refuse_puts(world: &World, part: &'static str) {
    refuse_puts_of(world, 0, part);
}

/// The same of one machine's puts.
pub(super) fn refuse_puts_of(world: &World, machine: usize, part: &'static str) {
    world.machines[machine].line.set_rule(move |verb, key| {
        match verb == Verb::Put && key.contains(part) {
            true => Fate::Refused,
            false => Fate::Answered,
        }
    });
}

#[test]
fn while_no_page_can_be_read_for_a_first_snapshot_the_store_is_asked_nothing() {
    play(|world| {
        refuse_puts(world, "/snapshots/");
        world.start(0)?;
        world.pass(MINUTE)?;
        world.kill(0);
        world.machines[0].line.heal();
        world.database(0).lock().unwrap().is_locked = true;
        world.start(0)?;
        world.pass(MINUTE)?;
        let asked = calls(world, |world| world.pass(MINUTE))?;
        assert_eq!(asked, [""; 0]);
        let status = world.machines[0].status().unwrap_or_default();
        assert_eq!(status.trouble.unwrap(), "the database is locked, as told");
        let broken = world.machines[0].break_continuity();
        world.must(broken)?;
        world.database(0).lock().unwrap().is_locked = false;
        world.settle()
    });
}

#[test]
fn a_generation_that_cannot_begin_drops_nothing_that_the_one_before_may_still_send() {
    play(|world| {
        at_work(world)?;
        let ours = generation(world);
        let needs = |world: &World| world.machines[0].status().unwrap_or_default().needs;
        refuse_puts(world, "");
        upload(world, 0)?;
        upload(world, 0)?;
        let before = needs(world);
        let claim = format!("generations/{ours}/claim");
        let size = now(world.store.list(&claim, None)).unwrap()[0].size;
        let bytes = now(world.store.get_range(&claim, 0, size)).unwrap();
        now(world.store.delete(std::slice::from_ref(&claim))).unwrap();
        world.pass(MINUTE)?;
        let status = world.machines[0].status().unwrap_or_default();
        assert_eq!(status.generation, None);
        assert_eq!(needs(world), before);
        world.kill(0);
        now(world.store.put(&claim, Body::Bytes(bytes))).unwrap();
        world.settle()?;
        assert_eq!(generation(world), ours);
        world.promise_all();
        world.check()
    });
}

#[test]
fn a_generation_that_is_taken_up_in_the_middle_is_looked_at_as_after_a_start() {
    play(|world| {
        at_work(world)?;
        let ours = generation(world);
        clone_machine(world);
        // Another daemon of the first one's database.
        let image = world.machines[0].image();
        let database = image.database(&mut world.random);
        world.add_machine("C", database);
        world.machines[2].put_state_back(&image);
        world.machines[2].database = world.database(0);
        for machine in 0..3 {
            world.start(machine)?;
        }
        world.pass(MINUTE)?;
        world.database(1).lock().unwrap().commit();
        world.database(0).lock().unwrap().commit();
        let mut asked = Vec::new();
        for machine in [1, 0, 2] {
            let captured = world.machines[machine].capture();
            world.must(captured)?;
            world.advance(MINUTE);
            asked = calls(world, |world| world.run(machine, MINUTE))?;
        }
        let [first, second] = [0, 2].map(|at| world.machines[at].status().unwrap_or_default());
        assert!(first.generation > Some(ours));
        assert_eq!(second.generation, first.generation);
        assert_eq!(second.fencing, Fencing::PutIfAbsent);
        assert_eq!(second.newest, first.newest);
        // Nobody needs to know who wrote what stood in the way.
        let theirs = format!("GetRange generations/{ours}/claim");
        assert!(!asked.contains(&theirs), "{asked:#?}");
        Ok(())
    });
}

#[test]
fn a_first_snapshot_that_cannot_be_stored_is_a_trouble_that_shows() {
    play(|world| {
        refuse_puts(world, "/snapshots/");
        world.start(0)?;
        upload(world, 0)?;
        let trouble = |world: &World| world.machines[0].status().unwrap_or_default().trouble;
        let said = trouble(world).expect("it cannot store the snapshot");
        assert!(
            said.contains("/snapshots/") && said.ends_with("refused, as told"),
            "{said}"
        );
        world.settle()?;
        assert_eq!(trouble(world), None);
        Ok(())
    });
}

/// What waits to be stored, and the last that was.
const PENDING: &str = "replica/pending";

#[test]
fn a_segment_that_was_damaged_while_it_waited_is_made_again() {
    let damages: [fn(&mut Vec<u8>); 3] = [
        |bytes| bytes.clear(),
        |bytes| bytes.truncate(1000),
        // In its pages.
        |bytes| bytes[200] ^= 1,
    ];
    for damage in damages {
        play(|world| {
            at_work(world)?;
            let ours = generation(world);
            refuse_puts(world, "/wal/");
            upload(world, 0)?;
            world.kill(0);
            let waiting = format!("{ours}-0000000000000003.wal");
            let file = &world.machines[0].files(PENDING)[&waiting];
            let mut bytes = std::fs::read(file).unwrap();
            damage(&mut bytes);
            std::fs::write(file, bytes).unwrap();
            world.settle()?;
            assert_eq!(generation(world), ours);
            world.promise_all();
            world.check()
        });
    }
}

#[test]
fn a_segment_that_was_stored_before_a_kill_does_not_stay_on_the_disk() {
    play(|world| {
        at_work(world)?;
        world.kill(0);
        let files = world.machines[0].files(PENDING);
        let last = &files["last.wal"];
        let name = format!("{}-0000000000000002.wal", "00000001-00000002");
        std::fs::copy(last, last.with_file_name(name)).unwrap();
        world.start(0)?;
        upload(world, 0)?;
        let files = world.machines[0].files(PENDING);
        assert_eq!(files.into_keys().collect::<Vec<_>>(), ["last.wal"]);
        Ok(())
    });
}

#[test]
fn stored_segments_stay_on_the_disk_as_they_are_stored() {
    play(|world| {
        at_work(world)?;
        world.kill(0);
        world.start(0)?;
        upload(world, 0)?;
        upload(world, 0)?;
        let kept = world.machines[0].files("replica/kept");
        assert_eq!(kept.len(), 3, "{kept:?}");
        for (name, path) in kept {
            let bytes = std::fs::read(path).unwrap();
            let key = name.replace('+', "/");
            let stored = now(world.store.get_range(&key, 0, bytes.len() as u64));
            assert_eq!(stored.unwrap(), bytes, "{name}");
        }
        Ok(())
    });
}

#[test]
fn each_stored_segment_is_counted_from_the_start_on() {
    let uploads = |world: &World| world.machines[0].status().map(|status| status.uploads);
    play(|world| {
        at_work(world)?;
        assert_eq!(uploads(world), Some(1));
        upload(world, 0)?;
        assert_eq!(uploads(world), Some(2));
        world.kill(0);
        world.start(0)?;
        world.pass(MINUTE)?;
        assert_eq!(uploads(world), Some(0));
        // What waited while the store was away is sent with the next start.
        refuse_puts(world, "/wal/");
        upload(world, 0)?;
        world.kill(0);
        world.machines[0].line.heal();
        world.start(0)?;
        world.pass(MINUTE)?;
        assert_eq!(uploads(world), Some(1));
        Ok(())
    });
}

#[test]
fn a_spool_that_cannot_say_what_is_ours_ends_the_generation() {
    play(|world| {
        at_work(world)?;
        let ours = generation(world);
        clone_machine(world);
        world.start(0)?;
        world.pass(MINUTE)?;
        world.start(1)?;
        upload(world, 1)?;
        let (name, log) = world.machines[0].files("log").pop_last().expect("a log");
        let mut bytes = std::fs::read(&log).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&log, bytes).unwrap();
        upload(world, 0)?;
        world.pass(MINUTE)?;
        assert!(generation(world) > ours);
        let reason = reason(world);
        let expected = "nobody can tell what of the replica is ours: the spool has lost commits: ";
        assert!(
            reason.starts_with(expected) && reason.contains(&name),
            "{reason}"
        );
        Ok(())
    });
}

#[test]
fn a_segment_that_was_found_stored_after_a_sleep_counts_after_a_look() {
    play(|world| {
        at_work(world)?;
        upload(world, 0)?;
        world.machines[0].line.set_rule(|verb, _| match verb {
            Verb::Put => Fate::HeldBefore,
            _ => Fate::Answered,
        });
        upload(world, 0)?;
        assert!(world.machines[0].line.is_held());
        let ours = generation(world);
        let files = world.machines[0].files(PENDING);
        let sent = std::fs::read(&files[&format!("{ours}-0000000000000004.wal")]).unwrap();
        let key = format!("generations/{ours}/wal/0/0000000000000004.wal");
        now(world.store.put(&key, Body::Bytes(sent.into()))).unwrap();
        world.advance(MINUTE * 60);
        world.machines[0].line.heal();
        world.machines[0].line.release(Release::Answer);
        let calls = calls(world, |world| world.pass(MINUTE))?;
        assert_eq!(calls.last().unwrap(), LONG_LOOK, "{calls:?}");
        Ok(())
    });
}

#[test]
fn how_old_a_bare_claim_is_the_clock_of_the_store_says() {
    for (hours, counts) in [(1, true), (30, false)] {
        play(|world| {
            at_work(world)?;
            let ours = generation(world);
            world.kill(0);
            let mut claim = now(history::claim_of(&*world.store, ours)).unwrap();
            let claim = &mut claim.as_mut().expect("it has one").0;
            claim.generation.ordinal += 1;
            let key = format!("generations/{}/claim", claim.generation);
            now(world.store.put(&key, Body::Bytes(claim.encode().into()))).unwrap();
            world.advance(MINUTE * 60 * hours);
            let clock = &world.machines[0].time.clock;
            clock.fetch_add(HOUR_MICROS * 24 * 365 * 70, Ordering::Relaxed);
            world.start(0)?;
            world.pass(MINUTE)?;
            let superseded = |world: &World| {
                let status = world.machines[0].status().unwrap_or_default();
                status.superseded.is_some()
            };
            assert!(superseded(world));
            upload(world, 0)?;
            assert_eq!(superseded(world), counts, "{hours} h");
            Ok(())
        });
    }
}
