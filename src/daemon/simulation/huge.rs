//! Transactions too large for a segment: each becomes a snapshot and a mark, and keeps its moment,
//! and so do those before and behind it.

use crate::config::settings::Retention;
use crate::daemon::simulation::database::Commit;
use crate::daemon::simulation::forks::{check_moments, collision, commit, generation_of};
use crate::daemon::simulation::reader::Wrong;
use crate::daemon::simulation::rules::{
    MINUTE, at_work, clone_machine, generation, now, play, reason, refuse_puts, upload,
};
use crate::daemon::simulation::wire::{Fate, Release};
use crate::daemon::simulation::world::World;
use crate::format::container::SectionKind;
use crate::format::ids::GenerationId;
use crate::format::key::GENERATIONS;
use crate::maintain::keeper::KeepSettings;
use crate::replicate::upload::HUGE_BYTES;
use crate::storage::Store;
use crate::storage::catalog::Catalog;
use crate::storage::fault::Verb;
use crate::storage::object::StoredObject;
use std::sync::Arc;
use std::time::Duration;

/// Stored bytes above which a commit is huge: one of several pages is, one of a single page is not.
pub(super) const FEW_PAGES: u64 = 80;

/// The daemon of the first machine starts again, and makes snapshots of what takes more than this.
fn restart(world: &mut World, huge_bytes: u64) -> Result<(), Wrong> {
    world.kill(0);
    world.ship(huge_bytes);
    world.start(0)?;
    world.pass(MINUTE / 60)
}

/// The snapshots and segments of a generation, by txid: `snap@1 seg@2 mark@3`.
fn explain(world: &World, generation: GenerationId) -> String {
    let catalog = Catalog::new(now(world.store.list(GENERATIONS, None)).unwrap());
    let listing = &catalog.generations[&generation];
    let mut said: Vec<(u64, &str)> = Vec::new();
    for snapshot in &listing.snapshots {
        said.push((snapshot.txid.get(), "snap"));
    }
    for segment in &listing.segments {
        let object = &segment.object;
        let opened = now(StoredObject::open(&*world.store, &object.key, object.size)).unwrap();
        let is_mark = opened.footer.section(SectionKind::SnapshotKey).is_some();
        said.push((segment.first.get(), if is_mark { "mark" } else { "seg" }));
    }
    said.sort_unstable();
    let words = said.iter().map(|(txid, what)| format!("{what}@{txid}"));
    words.collect::<Vec<_>>().join(" ")
}

/// A machine at work whose commit with txid 3 is huge, and cannot store keys with this in them.
fn stuck(world: &mut World, refused: &'static str) -> Result<Vec<Arc<Commit>>, Wrong> {
    at_work(world)?;
    restart(world, 0)?;
    refuse_puts(world, refused);
    let commits = commit(world, 0, 1)?;
    world.pass(MINUTE)?;
    Ok(commits)
}

#[test]
fn a_huge_transaction_is_a_snapshot_and_a_mark_and_the_history_goes_on() {
    play(|world| {
        at_work(world)?;
        let first = generation(world);
        restart(world, 0)?;
        let mut commits = commit(world, 0, 1)?;
        world.settle()?;
        restart(world, HUGE_BYTES)?;
        commits.extend(commit(world, 0, 2)?);
        check_moments(world, &commits)?;
        assert_eq!(generation(world), first);
        let expected = "snap@1 seg@2 mark@3 snap@3 seg@4";
        assert_eq!(explain(world, first), expected);
        Ok(())
    });
}

#[test]
fn a_snapshot_is_stored_behind_its_mark_by_whoever_starts_next() {
    play(|world| {
        let mut commits = stuck(world, "/snapshots/")?;
        let first = generation(world);
        assert_eq!(explain(world, first), "snap@1 seg@2 mark@3");
        // Until it is there, the transaction is no restore point, and nothing is wrong.
        world.check()?;
        assert!(!world.reader.has(&commits[0]));
        world.kill(0);
        world.machines[0].line.heal();
        world.database(0).lock().unwrap().is_locked = true;
        world.start(0)?;
        commits.extend(commit(world, 0, 1)?);
        check_moments(world, &commits)?;
        assert_eq!(generation(world), first);
        let expected = "snap@1 seg@2 mark@3 snap@3 mark@4 snap@4";
        assert_eq!(explain(world, first), expected);
        Ok(())
    });
}

#[test]
fn retention_counts_on_no_snapshot_that_is_not_stored_yet() {
    play(|world| {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        world.keep(KeepSettings {
            retention: Retention {
                all: Some(hours(1)),
                hourly: None,
                daily: Some(hours(240)),
            },
            snapshot_interval: hours(3),
            merged_grace: hours(1),
            notes: None,
        });
        let commits = stuck(world, "/snapshots/")?;
        for _ in 0..60 {
            world.pass(hours(1))?;
            world.check()?;
        }
        world.machines[0].line.heal();
        check_moments(world, &commits)
    });
}

#[test]
fn a_transaction_whose_mark_is_not_stored_shows_nowhere_and_is_not_lost() {
    play(|world| {
        let commits = stuck(world, "/wal/")?;
        let first = generation(world);
        assert_eq!(explain(world, first), "snap@1 seg@2");
        restart(world, 0)?;
        world.machines[0].line.heal();
        check_moments(world, &commits)?;
        assert_eq!(generation(world), first);
        assert_eq!(explain(world, first), "snap@1 seg@2 mark@3 snap@3");
        Ok(())
    });
}

#[test]
fn a_mark_whose_snapshot_went_with_the_disk_ends_its_generation() {
    play(|world| {
        stuck(world, "/snapshots/")?;
        let first = generation(world);
        world.kill(0);
        world.machines[0].lose_state();
        world.machines[0].line.heal();
        world.start(0)?;
        let commits = commit(world, 0, 2)?;
        check_moments(world, &commits[1..])?;
        assert_ne!(generation(world), first);
        assert_eq!(explain(world, first), "snap@1 seg@2 mark@3");
        Ok(())
    });
}

#[test]
fn without_a_first_snapshot_a_huge_transaction_ends_its_generation() {
    play(|world| {
        world.ship(0);
        refuse_puts(world, "/snapshots/");
        world.start(0)?;
        world.pass(MINUTE / 60)?;
        let first = generation(world);
        commit(world, 0, 1)?;
        world.pass(MINUTE)?;
        assert_ne!(generation(world), first);
        let said = reason(world);
        assert!(
            said.contains("the first snapshot of its generation"),
            "{said}"
        );
        world.machines[0].line.heal();
        world.settle()?;
        let commits = commit(world, 0, 1)?;
        check_moments(world, &commits)?;
        let last = generation(world);
        assert_eq!(explain(world, last), "snap@1 mark@2 snap@2");
        Ok(())
    });
}

#[test]
fn where_the_spool_has_no_room_a_huge_transaction_ends_its_generation() {
    play(|world| {
        at_work(world)?;
        let first = generation(world);
        world.machines[0].spool_bytes = Some(1000);
        restart(world, 0)?;
        commit(world, 0, 1)?;
        world.settle()?;
        let last = generation(world);
        assert_eq!(last.ordinal, first.ordinal + 1);
        let said = reason(world);
        assert!(said.contains("the spool has no room for it"), "{said}");
        assert_eq!(explain(world, first), "snap@1 seg@2");
        assert_eq!(explain(world, last), "snap@1");
        world.check()
    });
}

#[test]
fn a_fork_completes_its_first_snapshot_before_a_huge_transaction() {
    play(|world| {
        world.ship(0);
        let mut commits = collision(world, 2, "/wal/")?;
        world.database(1).lock().unwrap().is_locked = true;
        commits.extend(commit(world, 0, 1)?);
        check_moments(world, &commits)?;
        let theirs = generation_of(world, 1);
        assert_ne!(theirs, generation_of(world, 0));
        let expected = "snap@1 mark@2 snap@2 mark@3 snap@3";
        assert_eq!(explain(world, theirs), expected);
        Ok(())
    });
}

#[test]
fn a_mark_that_arrives_where_others_merged_meanwhile_hides_nothing_of_theirs() {
    arrive_late(|_| (), Fate::Refused, true);
}

#[test]
fn who_put_a_segment_where_others_have_gone_on_takes_it_back() {
    arrive_late(|_| (), Fate::Answered, false);
}

/// It may have put it over what somebody else put there.
#[test]
fn nothing_is_taken_back_on_a_store_that_overwrites() {
    arrive_late(overwrite, Fate::Answered, true);
}

fn overwrite(world: &mut World) {
    world.overwrites = true;
    world.machines[0].line.overwrite();
}

/// A mark arrives late in such a world, and its writer may delete it, or not.
fn arrive_late(world_is: fn(&mut World), deletion: Fate, stays: bool) {
    play(|world| {
        world_is(world);
        at_work(world)?;
        let shared = generation(world);
        clone_machine(world);
        world.start(0)?;
        world.machines[1].huge_bytes = 0;
        world.start(1)?;
        world.pass(MINUTE / 60)?;
        world.machines[1].line.set_rule(|verb, key| {
            match verb == Verb::Put && key.contains("/wal/") {
                true => Fate::HeldBefore,
                false => Fate::Answered,
            }
        });
        let mut commits = commit(world, 1, 1)?;
        world.pass(MINUTE / 60)?;
        assert!(world.machines[1].line.is_held());
        for _ in 0..3 {
            upload(world, 0)?;
            commits.push(Arc::clone(&world.database(0).lock().unwrap().tip));
        }
        world.merge()?;
        world.pass(MINUTE * 120)?;
        world.machines[1].line.set_rule(move |verb, _| match verb {
            Verb::Delete => deletion,
            _ => Fate::Answered,
        });
        world.machines[1].line.release(Release::Answer);
        world.pass(MINUTE)?;
        let said = explain(world, shared);
        assert!(said.starts_with("snap@1 seg@2"), "{said}");
        assert_eq!(said.contains("mark@3"), stays, "{said}");
        check_moments(world, &commits)
    });
}
