//! `sqlrepl compact`, `retain` and `du`: replicas that no daemon looks after any more, and what
//! becomes of them.

use crate::exact::Reader;
use crate::machine::{Clock, HOUR};
use crate::oracle::ImageHash;
use crate::program::{Running, run};
use crate::world::{World, walk};
use serde_json::Value;
use sqlrepl::format::ids::RestorePoint;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, SystemTime};

const COMMITS: usize = 12;

/// A world with a replica of so many commits, each stored by itself, and no daemon.
fn left_behind() -> World {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon_with("--sync-interval 0");
    commit(&world, COMMITS);
    assert_eq!(daemon.term(), 0);
    world
}

fn commit(world: &World, commits: usize) {
    for n in 0..commits {
        let sql = format!("UPDATE t SET v = v || '+' WHERE id = {}", n % 3 + 1);
        world.sql("app.db", &sql);
        world.sync();
    }
}

/// A world whose config file has `app.db` and `replicas/app`, and a daemon that it was given to.
fn configured(retention: &str) -> (World, Running) {
    let world = World::new();
    world.sample();
    let place = world.place("replicas/app");
    let place = match place.contains("://") {
        true => format!("url = \"{place}\""),
        false => format!("path = \"{place}\""),
    };
    let text = format!(
        "[[db]]\npath = \"app.db\"\n[[db.replica]]\nname = \"near\"\n{place}\n\
         sync-interval = 0\nretention = {retention}\n"
    );
    fs::write(world.path("c.toml"), text).unwrap();
    let mut daemon = world.replicate("--config c.toml");
    world.await_sync(&mut daemon);
    (world, daemon)
}

/// Makes all that is stored look so much older.
fn age(world: &World, by: Duration) {
    let then = SystemTime::now() - by;
    walk(&world.path("replicas/app/generations"), &mut |path| {
        let file = File::options().append(true).open(path).unwrap();
        file.set_modified(then).unwrap();
    });
}

/// Every restore point, and the hash of all its pages.
fn images(world: &World) -> Vec<(RestorePoint, ImageHash)> {
    let reader = Reader::new(&world.path("replicas/app"));
    let points = reader.generations().into_iter().flatten();
    let images = points.map(|point| (point, reader.hash(&point)));
    images.collect()
}

/// How many objects lie in the folder of a level.
fn level(world: &World, level: u8) -> usize {
    let objects = world.objects("replicas/app");
    let folder = format!("/wal/{level}/");
    objects.iter().filter(|(n, _)| n.contains(&folder)).count()
}

/// README: "Merging and retention change nothing in the restore points that stay."
#[test]
fn what_a_stopped_daemon_left_is_merged_and_every_moment_stays_as_it_was() {
    let world = left_behind();
    let before = images(&world);
    assert_eq!((before.len(), level(&world, 0)), (COMMITS + 1, COMMITS));
    let said = world.sqlrepl("compact replicas/app").ok();
    assert!(said.contains("app: merged 12 segments into 1"), "{said}");
    assert!(said.contains("--force deletes all the same"), "{said}");
    assert_eq!((level(&world, 0), level(&world, 1)), (COMMITS, 1));
    assert_eq!(images(&world), before);
    let said = world.sqlrepl("compact replicas/app --force").ok();
    let expected = "app: nothing to merge, deleted 12 objects, ";
    assert!(said.contains(expected), "{said}");
    assert_eq!((level(&world, 0), level(&world, 1)), (0, 1));
    assert_eq!(images(&world), before);
    let said = world.sqlrepl("compact replicas/app --force").ok();
    let expected = "app: nothing to merge, nothing to delete";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn a_daemon_goes_on_behind_what_was_merged_meanwhile() {
    let world = left_behind();
    world.sqlrepl("compact replicas/app --force").ok();
    let before = images(&world);
    let mut daemon = world.daemon_with("--sync-interval 0");
    commit(&world, 3);
    assert_eq!(daemon.term(), 0);
    let after = images(&world);
    assert_eq!(after.len(), before.len() + 3);
    assert_eq!(after[..before.len()], before);
    assert_eq!(world.generations().len(), 1);
}

/// README: "`compact` and `retain` delete nothing from a replica to which something was added
/// within 24 hours, unless they are told to with `--force`."
#[test]
fn commands_delete_only_where_nothing_was_added_for_a_day() {
    let world = left_behind();
    age(&world, 23 * HOUR + HOUR / 2);
    let held = "app was added to 23 hours ago: nothing is deleted; --force deletes all the same";
    let retain = "retain replicas/app --retention 1ms";
    world.sqlrepl(retain).fails(1, held);
    let said = world.sqlrepl("compact replicas/app --retention 1ms").ok();
    assert!(said.contains(held), "{said}");
    assert_eq!((level(&world, 0), world.points().len()), (COMMITS, 13));
    age(&world, 25 * HOUR);
    let before = images(&world);
    let said = world.json("compact replicas/app").remove(0);
    assert_eq!(said["deleted"], COMMITS);
    assert_eq!(said["refused"], Value::Null);
    assert_eq!((level(&world, 0), level(&world, 1)), (0, 1));
    assert_eq!(images(&world), before);
}

#[test]
fn compact_gives_up_restore_points_only_if_it_is_told_how_long_they_stay() {
    let world = left_behind();
    let newest = images(&world).pop().unwrap();
    world.sqlrepl("compact replicas/app --force").ok();
    assert_eq!(world.points().len(), COMMITS + 1);
    let command = "compact replicas/app --force --retention hourly=1ms";
    let said = world.json(command).remove(0);
    assert_eq!((&said["thinned"], &said["deleted"]), (&1.into(), &1.into()));
    // The snapshot stays for a while, and with it its own moment.
    let left = images(&world);
    assert_eq!((left.len(), left.last()), (2, Some(&newest)));
}

#[test]
fn commands_delete_nothing_by_a_clock_that_says_2100() {
    let world = left_behind();
    let clock = Clock::new(&world, "command");
    clock.set_ahead(HOUR * 24 * 365 * 74);
    let command = |words: &str| {
        let mut command = world.ours(&format!("{words} replicas/app --retention 1ms"));
        run(command.envs(clock.environment()))
    };
    let refused = command("retain").stderr;
    assert!(
        refused.contains("nothing is deleted: the clock says 2100-"),
        "{refused}"
    );
    let said = command("compact").stdout;
    assert!(
        said.contains("nothing is deleted: the clock says 2100-"),
        "{said}"
    );
    assert_eq!((level(&world, 0), world.points().len()), (COMMITS, 13));
}

#[test]
fn a_moment_that_is_deleted_while_it_is_open_is_gone_and_not_damaged() {
    let world = World::new();
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)";
    world.sql(
        "app.db",
        &format!(
            "PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v);
             {rows} INSERT INTO t SELECT i, randomblob(8000) FROM n"
        ),
    );
    let mut daemon = world.daemon_with("--sync-interval 0");
    for _ in 0..3 {
        world.sync();
        world.sql("app.db", "UPDATE t SET v = randomblob(8000)");
    }
    world.sync();
    assert_eq!(daemon.term(), 0);
    let mut mount = world.mount_at("mount --page-cache 1MiB replicas mnt");
    let point = &world.points()[1];
    let file = File::open(world.path(&format!("mnt/app/{}.db", point.time))).unwrap();
    let mut page = [0; 4096];
    file.read_exact_at(&mut page, 0).unwrap();
    world
        .sqlrepl("compact replicas/app --force --retention all=1ms")
        .ok();
    let error = file.read_exact_at(&mut page, point.size - 4096);
    assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ESTALE));
    mount.program.wait_says(&format!(
        "keeps no restore point at txid {}: retention removed it",
        point.txid
    ));
}

/// README: "`retain --dry-run` says what would stay and go, and why, and changes nothing."
#[test]
fn a_dry_run_of_retain_says_what_stays_and_goes_and_why_and_changes_nothing() {
    let world = left_behind();
    world.sqlrepl("compact replicas/app --force").ok();
    let (objects, before) = (world.objects("replicas/app"), images(&world));
    let command = "retain replicas/app --retention all=1ms,daily=1y";
    let said = world.sqlrepl(&format!("{command} --dry-run")).ok();
    for words in [
        "the last commit of its day",
        "app: would be thinned: 1",
        "app: would go: 0",
        "seconds ago: nothing is deleted; --force deletes all the same",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let said = world.json(&format!("{command} --dry-run")).remove(0);
    let stays = said["stays"].as_array().unwrap();
    let newest = &before.last().unwrap().0;
    // Two days may have seen commits.
    assert!((1..=2).contains(&stays.len()), "{said}");
    assert_eq!(stays.last().unwrap()["last"], newest.txid.to_string());
    assert_eq!(said["thinned"][0]["commits"], COMMITS);
    assert_eq!(said["thinned"][0]["stay"], stays.len());
    assert_eq!(world.objects("replicas/app"), objects);
    let done = world.json(&format!("{command} --force")).remove(0);
    assert_eq!((&done["thinned"], &done["deleted"]), (&1.into(), &1.into()));
    let left = images(&world);
    assert!(left.iter().all(|kept| before.contains(kept)));
    assert_eq!(left.len(), stays.len() + 1);
    assert_eq!(left.last(), before.last());
    // By default every commit of a week stays.
    let said = world.sqlrepl("retain replicas/app --force").ok();
    assert!(said.contains("app: nothing to delete"), "{said}");
}

#[test]
fn a_snapshot_can_be_taken_at_any_time_beside_the_daemon_too() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon_with("--sync-interval 0");
    commit(&world, 3);
    let said = world.sqlrepl("compact --snapshot replicas/app").ok();
    let expected = "app: took a snapshot of txid 0000000000000004, ";
    assert!(said.contains(expected), "{said}");
    let said = world.sqlrepl("compact --snapshot replicas/app").ok();
    let expected = "app: nothing was committed since the last snapshot";
    assert!(said.contains(expected), "{said}");
    commit(&world, 2);
    let said = world.json("compact --snapshot replicas/app").remove(0);
    assert_eq!(said["snapshot"]["txid"], "0000000000000006");
    commit(&world, 1);
    assert_eq!(daemon.term(), 0);
    assert_eq!(world.json("snapshots replicas/app").len(), 3);
    assert_eq!(images(&world).len(), 7);
    world.restore("out.db", "");
    let all = "SELECT group_concat(id || v) FROM t";
    assert_eq!(world.sql("out.db", all), world.sql("app.db", all));
}

#[test]
fn what_a_running_daemon_does_by_itself_no_command_does_beside_it() {
    let (world, mut daemon) = configured("{ hourly = \"30d\" }");
    commit(&world, COMMITS);
    let words = "database app is replicated by a running daemon, which does this by itself; stop \
                 it first, or ";
    for target in ["app", "app.db", "replicas/app", "app --replica near"] {
        let command = |command: &str| world.sqlrepl(&format!("--config c.toml {command} {target}"));
        let remedy = format!("{words}take a snapshot with --snapshot");
        command("compact --force").fails(1, &remedy);
        command("retain --force").fails(1, words);
        command("retain --dry-run").ok();
    }
    world.sqlrepl("--config c.toml compact --snapshot app").ok();
    assert_eq!(daemon.term(), 0);
    // As the config file says, not all of a week.
    let said = world.json("--config c.toml retain replicas/app --dry-run");
    assert_eq!(said[0]["stays"][0]["why"], "the last commit of its hour");
    let said = world.sqlrepl("--config c.toml compact app --force").ok();
    assert!(
        said.starts_with("near: merged 12 segments into 1"),
        "{said}"
    );
}

/// What `sqlrepl du` says of all generations, and the one that it says it of.
fn usage(world: &World, options: &str) -> (Value, Value) {
    let mut said = world.json(&format!("du replicas/app {options}"));
    let said = said.remove(0);
    let rows = said["bytes"].as_array().unwrap();
    for row in rows {
        let parts = ["live", "history", "index", "reclaimable", "other"];
        let parts: u64 = parts.iter().map(|part| row[part].as_u64().unwrap()).sum();
        assert_eq!(row["total"], parts, "{said}");
    }
    let listed: u64 = world.objects("replicas/app").iter().map(|(_, n)| n).sum();
    assert_eq!(rows.last().unwrap()["total"], listed, "{said}");
    (rows.last().unwrap().clone(), rows[0].clone())
}

/// README: "`du` counts each byte of a replica once."
#[test]
fn du_says_what_each_byte_is_for_and_counts_it_once() {
    let world = left_behind();
    let (all, first) = usage(&world, "");
    let of = |row: &Value, part: &str| row[part].as_u64().unwrap();
    assert_eq!((of(&all, "reclaimable"), of(&all, "other")), (0, 0));
    assert!(of(&all, "live") > 0 && of(&all, "history") > 0 && of(&all, "index") > 0);
    assert_eq!(of(&all, "total"), of(&first, "total"));
    // What was merged stands for nothing.
    let objects = world.objects("replicas/app");
    let uploads = objects.iter().filter(|(name, _)| name.contains("/wal/0/"));
    let merged: u64 = uploads.map(|(_, size)| size).sum();
    world.sqlrepl("compact replicas/app").ok();
    assert_eq!(of(&usage(&world, "").0, "reclaimable"), merged);
    // What the map of a newer snapshot does not use is history.
    let before = usage(&world, "").0;
    world.sqlrepl("compact --snapshot replicas/app").ok();
    let after = usage(&world, "").0;
    assert!(of(&after, "history") > of(&before, "history"), "{after}");
    // What is not ours, and what is damaged, is neither.
    let stray = "replicas/app/generations/stray";
    fs::write(world.path(stray), "not ours").unwrap();
    assert_eq!(of(&usage(&world, "").0, "other"), 8);
    let (snapshot, size) = objects.iter().find(|(n, _)| n.contains("snap")).unwrap();
    let path = world.path("replicas/app").join(snapshot);
    fs::write(path, vec![0; usize::try_from(*size).unwrap()]).unwrap();
    assert_eq!(of(&usage(&world, "").0, "other"), 8 + size);
}

#[test]
fn du_estimates_what_a_day_asks_of_a_store_and_what_that_costs() {
    let world = left_behind();
    let said = world.json("du replicas/app").remove(0);
    assert_eq!(said["commits"], COMMITS);
    let puts = said["requests"]["put"].as_u64().unwrap();
    // By default a second passes before an upload.
    assert!((2..=COMMITS as u64 + 1).contains(&puts), "{said}");
    assert!(said["usd_a_month"]["requests"].as_f64().unwrap() > 0.0);
    let said = world.sqlrepl("du replicas/app").ok();
    for words in [
        "GENERATION ",
        "RECLAIMABLE",
        "\nall ",
        "12 commits in the last 24 h: about ",
        "at S3 standard prices 0.00 USD a month for requests like these, 0.00 USD for the bytes",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn wrong_windows_and_places_that_hold_nothing_are_said_in_a_sentence() {
    let world = World::new();
    world.sample();
    fs::create_dir_all(world.path("replicas/none")).unwrap();
    for (command, code, words) in [
        ("compact replicas/none", 3, "holds no replica"),
        ("du replicas/none", 3, "holds no replica"),
        ("retain nowhere", 3, "nowhere: no such directory"),
        ("compact replicas/none --replica x", 2, "--replica picks"),
        (
            "retain x --retention weekly=1d",
            2,
            "no window of retention",
        ),
        ("retain x --force --dry-run", 2, "cannot be used with"),
        (
            "replicate app.db x --retention 0",
            2,
            "must be longer than 0",
        ),
        (
            "replicate app.db x --merged-grace 1m",
            2,
            "for 15m at least",
        ),
        (
            "replicate app.db x --snapshot-interval 0",
            2,
            "longer than 0",
        ),
    ] {
        world.sqlrepl(command).fails(code, words);
    }
}
