//! Who may write: two machines and one replica, states that were lost or come from yesterday, and
//! clocks that are wrong. Whatever happens, no restore point is wrong and none is gone.

use crate::lineage;
use crate::machine::{Clock, HOUR, Machine, REPLICA, STATE};
use crate::program::{LONG, wait_until};
use crate::s3_server::{Stop, Verb};
use crate::world::World;
use sqlrepl::format::ids::Txid;
use std::fs;
use std::time::Duration;

fn stored_bytes(world: &World) -> u64 {
    let objects = world.objects(REPLICA);
    objects.iter().map(|(_, size)| size).sum()
}

/// README: "Two daemons on one replica never mix their commits: the second begins a generation of
/// its own, and both histories stay whole, each commit at its own moment."
#[test]
fn a_machine_cloned_with_its_state_forks_and_both_histories_stay_whole() {
    let world = World::new();
    let mut one = Machine::new(&world, "one", 0);
    // However slow this machine is, the WAL is not emptied meanwhile.
    let reader = world.keep_open("one/app.db", "BEGIN; SELECT count(*) FROM t");
    one.replicate("");
    one.commit_each(5);
    let mut two = one.clone_to("two");
    one.replicate("");
    two.replicate("");
    reader.end("COMMIT");
    std::thread::scope(|scope| {
        for machine in [&mut one, &mut two] {
            scope.spawn(|| machine.commit_each(20));
        }
    });
    let lineage = lineage::check(&world, &[&one, &two]);
    assert_eq!(lineage.generations.len(), 2);
    let highest = lineage.generations[1].claim.path.clone();
    if highest == one.text_path("app.db") {
        std::mem::swap(&mut one, &mut two);
    }
    // Now it is the second one that had to give way.
    let (mut stayed, mut forked) = (one, two);
    let said = forked.daemon().stderr();
    assert!(said.contains("is not of this daemon's making"), "{said}");
    assert!(!stayed.daemon().stderr().contains("ERROR"));

    stayed.stop();
    stayed.replicate("");
    stayed
        .daemon()
        .wait_says(&format!("the daemon of {highest} on "));
    stayed.daemon().wait_says("replicate --take-over");
    assert_eq!(stayed.status()["state"], "superseded");
    stayed.commit_each(2);
    forked.commit_each(2);
    assert_eq!(forked.status()["state"], "replicating");
    lineage::check(&world, &[&stayed, &forked]);

    stayed.stop();
    stayed.replicate("--take-over");
    wait_until(LONG, "a generation above all", || {
        stayed.status()["state"] == "replicating"
    });
    stayed.commit_each(2);
    forked.stop();
    forked.replicate("");
    let path = stayed.text_path("app.db");
    forked
        .daemon()
        .wait_says(&format!("the daemon of {path} on "));
    let lineage = lineage::check(&world, &[&stayed, &forked]);
    assert_eq!(lineage.generations.len(), 3);
    assert_eq!(lineage.generations[2].claim.path, path);
}

#[test]
fn a_clone_that_starts_hours_later_forks_before_its_first_upload() {
    let world = World::new();
    let mut one = Machine::new(&world, "one", 0);
    one.replicate("");
    one.commit_each(3);
    let mut two = one.clone_to("two");
    one.replicate("");
    one.commit_each(3);
    two.commit(3);
    two.replicate("");
    two.commit_each(2);
    one.commit_each(2);
    lineage::check(&world, &[&one, &two]);
}

#[test]
fn a_lost_state_goes_on_in_its_generation_when_the_wal_proves_it() {
    let world = World::new();
    let mut one = Machine::new(&world, "one", 1_000_000);
    // However slow this machine is, the WAL is not restarted meanwhile.
    let reader = world.keep_open("one/app.db", "BEGIN; SELECT count(*) FROM t");
    one.replicate("");
    one.commit_each(5);
    one.kill();
    fs::remove_dir_all(one.path(STATE)).unwrap();
    let before = stored_bytes(&world);
    one.commit(3);
    one.replicate("");
    reader.end("COMMIT");
    one.commit_each(2);
    let after = stored_bytes(&world);
    let lineage = lineage::check(&world, &[&one]);
    assert_eq!(lineage.generations.len(), 1);
    assert_eq!(lineage.generations[0].points.len(), 11);
    assert!(after - before < 64 << 10, "{} bytes", after - before);
}

/// README: "A daemon without its state directory, and without a WAL that shows what it stored last,
/// takes the replica's last commit for its own past: copy the state directory with the database."
#[test]
fn a_lost_state_without_proof_begins_anew_and_stores_what_differs() {
    let world = World::new();
    let mut one = Machine::new(&world, "one", 1_000_000);
    one.replicate("");
    one.commit_each(5);
    one.kill();
    fs::remove_dir_all(one.path(STATE)).unwrap();
    let before = stored_bytes(&world);
    one.writer().ask("checkpoint TRUNCATE 10000");
    one.commit(3);
    one.replicate("");
    one.commit_each(2);
    let after = stored_bytes(&world);
    let lineage = lineage::check(&world, &[&one]);
    let parent = lineage.generations[1].claim.parent.unwrap();
    let last = lineage.generations[0].points.last().unwrap();
    assert_eq!(
        (parent.generation, parent.txid),
        (last.generation, last.txid)
    );
    // What differs, and the first 64 KiB, which each snapshot has at hand.
    assert!(after - before < 128 << 10, "{} bytes", after - before);
}

#[test]
fn a_copy_without_a_state_goes_on_from_the_last_commit_that_its_wal_shows() {
    for later in [0, 2] {
        let world = World::new();
        let mut one = Machine::new(&world, "one", 0);
        // However slow this machine is, the WAL is not restarted meanwhile.
        let reader = world.keep_open("one/app.db", "BEGIN; SELECT count(*) FROM t");
        one.replicate("");
        one.commit_each(5);
        let mut two = one.clone_to("two");
        fs::remove_dir_all(two.path(STATE)).unwrap();
        two.commit(3);

        one.replicate("");
        one.commit_each(later);
        one.kill();
        reader.end("COMMIT");
        one.writer().ask("checkpoint TRUNCATE 10000");
        one.commit(3);
        one.replicate("");
        one.commit_each(5);
        two.replicate("");
        two.commit_each(2);
        let lineage = lineage::check(&world, &[&one, &two]);
        let parents = lineage.generations.iter().map(|one| one.claim.parent);
        let shared: Vec<u64> = parents.flatten().map(|one| one.txid.get()).collect();
        let state = two.status()["state"].clone();
        // Nobody else went on in the generation of both: it does, below the one begun meanwhile.
        let expected = match later {
            0 => (vec![6], "superseded"),
            _ => (vec![6 + later, 6], "replicating"),
        };
        assert_eq!((shared, state.as_str().unwrap()), expected, "{lineage}");
    }
}

/// README: "A state directory that comes from a backup loses nothing that the replica has."
#[test]
fn a_state_from_yesterday_with_the_database_of_today_loses_nothing() {
    for restarts in [false, true] {
        let world = World::new();
        let mut one = Machine::new(&world, "one", 0);
        one.replicate("");
        one.commit_each(3);
        one.kill();
        let (state, yesterday) = (one.text_path(STATE), one.text_path("yesterday"));
        world.run("cp", &["-a", &state, &yesterday]).ok();
        one.replicate("");
        one.commit_each(3);
        if restarts {
            one.writer().ask("checkpoint TRUNCATE 10000");
            one.commit_each(3);
        }
        one.kill();
        fs::remove_dir_all(&state).unwrap();
        world.run("mv", &[&yesterday, &state]).ok();
        one.commit(2);
        one.replicate("");
        one.commit_each(2);
        // Once the WAL is overwritten nothing there shows what was stored last. On a slow machine
        // the daemon itself has seen to that, at rest, before it was killed.
        let said = one.daemon().stderr();
        let check = match restarts || said.contains("the WAL was restarted") {
            false => lineage::check,
            true => lineage::check_unproved,
        };
        check(&world, &[&one]);
    }
}

/// README: "A machine that is restored from an old image takes nothing away from what it stored
/// since."
#[test]
fn a_machine_restored_from_the_image_of_yesterday_forks_and_today_stays() {
    let world = World::new();
    let mut one = Machine::new(&world, "one", 0);
    // However slow this machine is, the WAL is not emptied meanwhile.
    let reader = world.keep_open("one/app.db", "BEGIN; SELECT count(*) FROM t");
    one.replicate("");
    one.commit_each(3);
    let image = one.clone_to("image");
    one.replicate("");
    reader.end("COMMIT");
    one.commit_each(4);
    let gone = one.replace_by(&image, "gone");
    one.replicate("");
    one.commit_each(2);
    let said = one.daemon().stderr();
    assert!(said.contains("is not of this daemon's making"), "{said}");
    let lineage = lineage::check(&world, &[&one, &gone]);
    assert_eq!(lineage.generations.len(), 2);
}

#[test]
fn a_clock_that_is_set_back_an_hour_leaves_every_point_in_order() {
    let world = World::new();
    let clock = Clock::new(&world, "one");
    let mut one = Machine::new(&world, "one", 0);
    one.environment = clock.environment();
    one.replicate("");
    one.commit_each(3);
    clock.set_back(HOUR);
    one.commit_each(3);
    let lineage = lineage::check(&world, &[&one]);
    assert_eq!(lineage.generations.len(), 1);
    one.stop();
    one.replicate("");
    one.commit_each(3);
    clock.set_back(2 * HOUR);
    one.commit_each(3);
    clock.set_ahead(Duration::ZERO);
    one.commit_each(3);
    lineage::check(&world, &[&one]);
}

/// README: "A clock that is set back, or says 2099, leaves every moment in order."
#[test]
fn a_clock_that_says_2099_and_is_put_right_leaves_every_point_in_order() {
    let world = World::new();
    let clock = Clock::new(&world, "one");
    let mut one = Machine::new(&world, "one", 0);
    one.environment = clock.environment();
    one.replicate("");
    one.commit_each(3);
    clock.set_ahead(HOUR * 24 * 365 * 74);
    one.commit_each(3);
    lineage::check(&world, &[&one]);
    clock.set_ahead(Duration::ZERO);
    one.commit_each(3);
    let lineage = lineage::check(&world, &[&one]);
    assert_eq!(lineage.generations.len(), 2);
    one.stop();
    clock.set_ahead(HOUR * 24 * 365 * 74);
    one.replicate("");
    one.commit_each(3);
    clock.set_ahead(Duration::ZERO);
    one.stop();
    one.replicate("");
    one.commit_each(3);
    lineage::check(&world, &[&one]);
}

#[test]
fn a_clock_that_jumps_by_decades_during_an_upload_stops_nothing() {
    // A board without a clock of its own, until the network tells it the time.
    let world = World::on_s3();
    let clock = Clock::new(&world, "one");
    let mut one = Machine::new(&world, "one", 0);
    one.environment = clock.environment();
    clock.set_back(HOUR * 24 * 365 * 50);
    // By its times the first commits are fifty years old.
    one.replicate("--retention 100y");
    one.commit_each(3);
    let held = world
        .server()
        .hold(Stop::Before, |call| call.verb == Verb::Put);
    one.commit(1);
    held.wait();
    clock.set_ahead(Duration::ZERO);
    held.let_go();
    one.commit_each(3);
    lineage::check(&world, &[&one]);
}

#[test]
fn a_machine_that_comes_back_after_another_took_over_hides_nothing_of_it() {
    let world = World::new();
    let mut one = Machine::new(&world, "one", 0);
    one.replicate("");
    one.commit_each(3);
    one.crash();
    let mut two = Machine::restored(&world, "two", &one);
    two.replicate("");
    two.commit_each(3);
    one.commit(2);
    one.replicate("");
    one.commit_each(2);
    two.commit_each(2);
    let lineage = lineage::check(&world, &[&one, &two]);
    assert_eq!(lineage.generations.len(), 2);
}

/// README: "Two daemons on one replica never mix their commits: the second begins a generation of
/// its own, and both histories stay whole, each commit at its own moment."
#[test]
fn a_daemon_that_stood_still_while_a_clone_of_it_wrote_forks() {
    let world = World::new();
    let mut one = Machine::new(&world, "one", 1_000_000);
    one.replicate("");
    one.commit_each(3);
    let mut two = one.clone_to("two");
    one.replicate("");
    one.daemon().signal(libc::SIGSTOP);
    two.replicate("");
    two.commit_each(3);
    let before = stored_bytes(&world);
    // The daemon holds the WAL: it misses none of them.
    one.commit(30);
    one.daemon().signal(libc::SIGCONT);
    one.sync();
    let after = stored_bytes(&world);
    two.commit_each(1);
    let lineage = lineage::check(&world, &[&one, &two]);
    assert_eq!(lineage.generations.len(), 2);
    lineage.check_moments(&one);
    let fork = &lineage.generations[1];
    let parent = fork.claim.parent.expect("it goes on from the other");
    assert_eq!(fork.points.len(), 31, "{lineage}");
    // Just behind the commit that both share, however late it began.
    let shared = lineage.generations[0].points.iter();
    let shared = shared
        .rev()
        .find(|point| point.txid == parent.txid)
        .unwrap();
    let first = fork.points[0].time.micros() - shared.time.micros();
    assert_eq!((fork.points[0].txid, first), (Txid::FIRST, 1));
    assert!(after - before < 64 << 10, "{} bytes", after - before);
}

#[test]
fn on_a_store_that_overwrites_two_writers_that_take_turns_do_no_harm() {
    let world = World::on_s3();
    let server = world.server();
    server.set(|settings| settings.ignores_if_none_match = true);
    let mut one = Machine::new(&world, "one", 0);
    one.replicate("");
    one.daemon().wait_says("fencing: none");
    assert_eq!(one.status()["fencing"], "none");
    one.commit_each(3);
    let mut two = one.clone_to("two");
    one.replicate("");
    two.replicate("");
    for _ in 0..3 {
        one.commit_each(2);
        two.commit_each(2);
    }
    let lineage = lineage::check(&world, &[&one, &two]);
    assert_eq!(lineage.generations.len(), 2);
    assert_eq!(two.status()["fencing"], "none");
}

#[test]
fn a_store_that_keeps_writers_apart_is_said_to() {
    let world = World::new();
    let mut one = Machine::new(&world, "one", 0);
    one.replicate("");
    one.commit_each(1);
    assert_eq!(one.status()["fencing"], "put-if-absent");
    assert!(!one.daemon().stderr().contains("fencing"));
}

/// A virtual machine that was paused sees neither of its own clocks jump.
#[test]
fn an_upload_after_a_pause_that_only_the_store_saw_counts_after_a_listing() {
    let world = World::on_s3();
    let server = world.server();
    let mut one = Machine::new(&world, "one", 0);
    one.replicate("");
    one.commit_each(2);
    let listings = || server.counts().calls.get(&Verb::List).copied();
    let before = listings();
    one.commit_each(2);
    assert_eq!(listings(), before);
    server.set(|settings| settings.clock_ahead = 660);
    one.commit_each(1);
    assert!(listings() > before);
    lineage::check(&world, &[&one]);
}
