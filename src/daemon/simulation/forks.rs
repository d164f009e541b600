//! What a fork keeps: where another writer is in the way, each commit has its own moment all the
//! same, and no page of the database is read for that.

use crate::config::Environment;
use crate::daemon::simulation::database::{Commit, PAGE_SIZE};
use crate::daemon::simulation::reader::Wrong;
use crate::daemon::simulation::rules::{
    MINUTE, at_work, clone_machine, generation, last_txid, now, play, reason, refuse_puts_of,
    upload,
};
use crate::daemon::simulation::world::World;
use crate::format::container::Parent;
use crate::format::ids::{GenerationId, PageHash, Pgno, Txid, WriterId};
use crate::format::key::GENERATIONS;
use crate::maintain::later::{self, Later, Place};
use crate::maintain::workshop::Workshop;
use crate::replicate::history;
use crate::replicate::known::KnownPages;
use crate::storage::catalog::Catalog;
use crate::storage::{Body, Store};
use std::sync::Arc;

/// Two machines with the same disk; the first one goes on in the generation of both. The second one
/// runs, has committed so many times, and cannot store keys with this in them.
pub(super) fn collision(
    world: &mut World,
    commits: u64,
    refused: &'static str,
) -> Result<Vec<Arc<Commit>>, Wrong> {
    at_work(world)?;
    collide(world, commits, refused)
}

/// The same of a machine that is at work.
fn collide(
    world: &mut World,
    commits: u64,
    refused: &'static str,
) -> Result<Vec<Arc<Commit>>, Wrong> {
    clone_machine(world);
    world.start(0)?;
    for _ in 0..2 {
        upload(world, 0)?;
    }
    refuse_puts_of(world, 1, refused);
    world.start(1)?;
    commit(world, 1, commits)
}

/// Commits that are captured one by one.
pub(super) fn commit(
    world: &mut World,
    machine: usize,
    count: u64,
) -> Result<Vec<Arc<Commit>>, Wrong> {
    let mut commits = Vec::new();
    for _ in 0..count {
        world.database(machine).lock().unwrap().commit();
        commits.push(Arc::clone(&world.database(machine).lock().unwrap().tip));
        let captured = world.machines[machine].capture();
        world.must(captured)?;
        world.pass(MINUTE / 60)?;
    }
    Ok(commits)
}

pub(super) fn generation_of(world: &World, machine: usize) -> GenerationId {
    let status = world.machines[machine].status().unwrap_or_default();
    status.generation.expect("it writes one")
}

fn parent_of(world: &World, generation: GenerationId) -> Option<Parent> {
    let claim = now(history::claim_of(&*world.store, generation)).unwrap();
    claim.expect("it has a claim").0.parent
}

/// Every one of these is a restore point.
pub(super) fn check_moments(world: &mut World, commits: &[Arc<Commit>]) -> Result<(), Wrong> {
    world.settle()?;
    world.promise_all();
    world.check()?;
    let lost: Vec<u64> = commits
        .iter()
        .filter(|commit| !world.reader.has(commit))
        .map(|commit| commit.id)
        .collect();
    match lost.is_empty() {
        true => Ok(()),
        false => Err(format!("commits {lost:?} are no restore points")),
    }
}

#[test]
fn each_commit_of_two_writers_that_collide_is_a_restore_point() {
    play(|world| {
        let mut commits = collision(world, 3, "/wal/")?;
        let shared = generation_of(world, 0);
        // No page can be read.
        world.database(1).lock().unwrap().is_locked = true;
        commits.extend(commit(world, 0, 2)?);
        check_moments(world, &commits)?;
        let theirs = generation_of(world, 1);
        let expected = Parent {
            generation: shared,
            txid: Txid::new(2).unwrap(),
        };
        assert_eq!(parent_of(world, theirs), Some(expected));
        let status = world.machines[1].status().unwrap_or_default();
        assert_eq!(status.newest.map(|(txid, _)| txid), Txid::new(4));
        Ok(())
    });
}

#[test]
fn a_fork_whose_daemon_is_killed_goes_on() {
    play(|world| {
        let mut commits = collision(world, 3, "/snapshots/")?;
        world.pass(MINUTE)?;
        let theirs = generation_of(world, 1);
        assert_ne!(theirs, generation_of(world, 0));
        let status = world.machines[1].status().unwrap_or_default();
        let said = status.trouble.expect("it cannot store the snapshot");
        assert!(said.contains("/snapshots/"), "{said}");
        world.kill(1);
        world.database(1).lock().unwrap().is_locked = true;
        world.start(1)?;
        commits.extend(commit(world, 1, 2)?);
        world.machines[1].line.heal();
        check_moments(world, &commits)?;
        assert_eq!(generation_of(world, 1), theirs);
        Ok(())
    });
}

#[test]
fn a_fork_that_is_left_for_another_is_completed_first() {
    play(|world| {
        let mut commits = collision(world, 2, "/snapshots/")?;
        world.pass(MINUTE)?;
        world.kill(1);
        let image = world.machines[1].image();
        let database = image.database(&mut world.random);
        world.add_machine("C", database);
        world.machines[2].put_back(&image);
        for machine in [1, 2] {
            refuse_puts_of(world, machine, "/snapshots/");
            world.start(machine)?;
            commits.extend(commit(world, machine, 2)?);
            world.pass(MINUTE)?;
        }
        let [first, second] = [1, 2].map(|machine| generation_of(world, machine));
        assert_eq!(first, second, "it ends only when it is complete");
        check_moments(world, &commits)?;
        let second = generation_of(world, 2);
        let txid = Txid::new(3).unwrap();
        assert_eq!(
            parent_of(world, second),
            Some(Parent {
                generation: first,
                txid
            })
        );
        Ok(())
    });
}

#[test]
fn what_the_spool_holds_of_a_run_that_ended_keeps_its_moments() {
    play(|world| {
        let commits = collision(world, 3, "")?;
        let shared = generation_of(world, 0);
        let broken = world.machines[1].break_continuity();
        world.must(broken)?;
        world.machines[1].line.heal();
        check_moments(world, &commits)?;
        // The fork, and what begins behind the break.
        let last = generation_of(world, 1);
        assert_eq!(last.ordinal, shared.ordinal + 2);
        let fork = parent_of(world, last).expect("it goes on from the fork");
        let txid = Txid::new(2).unwrap();
        let generation = shared;
        assert_eq!(
            parent_of(world, fork.generation),
            Some(Parent { generation, txid })
        );
        assert_eq!(fork.txid, Txid::new(4).unwrap());
        Ok(())
    });
}

#[test]
fn a_take_over_reads_no_page() {
    play(|world| {
        let commits = collision(world, 1, "/wal/")?;
        check_moments(world, &commits)?;
        let (ours, theirs) = (generation_of(world, 0), generation_of(world, 1));
        assert!(theirs > ours);
        let commits = commit(world, 0, 2)?;
        world.settle()?;
        let txid = last_txid(world);
        world.kill(0);
        world.machines[0].take_over = true;
        world.database(0).lock().unwrap().is_locked = true;
        world.start(0)?;
        world.pass(MINUTE)?;
        let above = generation_of(world, 0);
        assert!(above > theirs);
        assert_eq!(
            parent_of(world, above),
            Some(Parent {
                generation: ours,
                txid
            })
        );
        let commits = [commits, commit(world, 0, 2)?].concat();
        check_moments(world, &commits)
    });
}

#[test]
fn a_fork_of_what_is_gone_meanwhile_gives_way_to_the_live_database() {
    play(|world| {
        collision(world, 2, "/snapshots/")?;
        world.pass(MINUTE)?;
        let forked = generation_of(world, 1);
        world.kill(1);
        world.kill(0);
        let listed = now(world.store.list(GENERATIONS, None)).unwrap();
        let keys = listed.into_iter().map(|listed| listed.key);
        let keys: Vec<String> = keys.filter(|key| key.contains("/snapshots/")).collect();
        now(world.store.delete(&keys)).unwrap();
        world.machines[1].line.heal();
        world.start(1)?;
        world.pass(MINUTE)?;
        world.machines.swap(0, 1);
        assert!(generation(world) > forked);
        let reason = reason(world);
        let expected = "no generation can start from txid 0000000000000002 of generation ";
        assert!(reason.starts_with(expected), "{reason}");
        let status = world.machines[0].status().unwrap_or_default();
        assert_eq!(status.trouble, None);
        assert!(status.newest.is_some());
        Ok(())
    });
}

#[test]
fn where_another_writer_overwrote_what_we_stored_nothing_is_forked() {
    play(|world| {
        at_work(world)?;
        clone_machine(world);
        world.start(0)?;
        upload(world, 0)?;
        let ours = generation(world);
        let key = format!("generations/{ours}/wal/0/0000000000000003.wal");
        let size = now(world.store.list(&key, None)).unwrap()[0].size;
        let theirs = now(world.store.get_range(&key, 0, size)).unwrap();
        // As on a store that ignores If-None-Match.
        now(world.store.delete(std::slice::from_ref(&key))).unwrap();
        world.start(1)?;
        upload(world, 1)?;
        now(world.store.delete(std::slice::from_ref(&key))).unwrap();
        now(world.store.put(&key, Body::Bytes(theirs))).unwrap();
        upload(world, 0)?;
        world.database(1).lock().unwrap().is_locked = true;
        upload(world, 1)?;
        world.pass(MINUTE)?;
        let status = world.machines[1].status().unwrap_or_default();
        assert_eq!(status.trouble.unwrap(), "the database is locked, as told");
        world.database(1).lock().unwrap().is_locked = false;
        world.settle()?;
        assert!(generation_of(world, 1) > ours);
        Ok(())
    });
}

/// A snapshot at the last transaction of the generation that a machine writes.
fn take_later(world: &World, machine: usize) {
    let status = world.machines[machine].status().unwrap_or_default();
    let generation = status.generation.expect("it writes one");
    let through = status.newest.expect("it has stored one").0;
    let listed = now(world.store.list(GENERATIONS, None)).unwrap();
    let catalog = Catalog::new(listed);
    let listing = &catalog.generations[&generation];
    let base = listing.snapshots.last().expect("it has one");
    let behind = listing.segments.iter().filter(|it| it.first > base.txid);
    let segments = behind.map(|it| {
        let last = it.last.unwrap_or(through);
        (it.object.key.clone(), it.object.size, it.first..=last)
    });
    let later = Later {
        base: (base.object.key.clone(), base.object.size),
        segments: segments.collect(),
        place: Place::Later,
    };
    let directory = tempfile::tempdir().unwrap();
    let workshop = Workshop {
        store: world.store.clone(),
        directory: directory.path().to_owned(),
        environment: Environment::of_tests(),
        writer: WriterId([1; 8]),
        kept: None,
    };
    now(later::take(&workshop, &later)).unwrap();
}

#[test]
fn what_a_replica_holds_is_known_by_its_newest_snapshot_whoever_made_it() {
    play(|world| {
        at_work(world)?;
        take_later(world, 0);
        let commits = collide(world, 2, "/wal/")?;
        check_moments(world, &commits)?;
        take_later(world, 1);
        let listed = now(world.store.list(GENERATIONS, None)).unwrap();
        let catalog = Catalog::new(listed);
        let known = KnownPages::load(world.store.clone(), &catalog, PAGE_SIZE);
        let mut known = now(known).unwrap();
        let (leaf, _) = now(known.leaf(0)).unwrap();
        let mut pages = Vec::new();
        for run in &leaf.runs {
            assert!(known.home(run.object).is_some());
            pages.extend(now(known.hashes(run)).unwrap());
        }
        let objects: std::collections::BTreeSet<_> = leaf.runs.iter().map(|it| it.object).collect();
        assert!(objects.len() > 1, "{leaf:?}");
        let image = world.database(1).lock().unwrap().tip.image.clone();
        let expected: Vec<PageHash> = image.iter().map(|page| PageHash::of(page)).collect();
        assert_eq!(pages, expected);
        assert_eq!(leaf.runs.first().map(|run| run.first), Some(Pgno::FIRST));
        Ok(())
    });
}
