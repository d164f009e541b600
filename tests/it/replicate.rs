//! `sqlrepl replicate` and `sqlrepl sync`: what a user's database goes through, and what comes
//! of it.

use crate::program::{LONG, wait_for, wait_until};
use crate::world::World;
use crate::writer::{Setup, Writer};
use std::fs;
use std::time::{Duration, Instant};

/// README: "SIGINT and SIGTERM flush what is pending; the exit code is 0."
#[test]
fn an_asked_for_end_flushes_what_is_pending_and_exits_with_0() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let world = World::new();
        world.sample();
        let mut daemon = world.replicate("app.db replicas/app --sync-interval 1h");
        world.await_sync(&mut daemon);
        world.sql("app.db", "UPDATE t SET v = 'pending' WHERE id = 1");
        daemon.signal(signal);
        assert_eq!(daemon.wait_exit(), 0, "after signal {signal}");
        world.restore("out.db", "");
        assert_eq!(
            world.sql("out.db", "SELECT v FROM t WHERE id = 1"),
            "pending"
        );
    }
}

#[test]
fn two_signals_in_one_moment_are_one_wish() {
    let world = World::new();
    world.sample();
    let mut daemon = world.replicate("app.db replicas/app --sync-interval 1h");
    world.await_sync(&mut daemon);
    world.sql("app.db", "UPDATE t SET v = 'pending' WHERE id = 1");
    // As `timeout` does, to the process and to its group; unlike two of one kind these are two
    // however fast they come.
    daemon.signal(libc::SIGTERM);
    daemon.signal(libc::SIGINT);
    assert_eq!(daemon.wait_exit(), 0);
    world.restore("out.db", "");
    let restored = world.sql("out.db", "SELECT v FROM t WHERE id = 1");
    assert_eq!(restored, "pending");
}

/// README: "Another SIGINT or SIGTERM, a second later or more, ends the process at once."
#[test]
fn a_second_signal_ends_what_a_store_that_is_away_holds_up() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    world.take_replica_away();
    world.sql("app.db", "UPDATE t SET v = 'pending' WHERE id = 1");
    daemon.signal(libc::SIGTERM);
    daemon.wait_says("SIGTERM: ending");
    let asked = Instant::now();
    wait_until(LONG, "the moment to pass", || {
        asked.elapsed() > Duration::from_millis(1200)
    });
    assert!(daemon.is_running());
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.wait_exit(), 1);
    assert!(daemon.stderr().contains("second signal: ended at once"));
}

/// README: "No table and, but for the switch to WAL mode, no write in your database."
#[test]
fn the_database_is_byte_for_byte_what_the_application_wrote() {
    let world = World::new();
    world.sample();
    let before = fs::read(world.path("app.db")).unwrap();
    let mut daemon = world.daemon();
    assert_eq!(daemon.term(), 0);
    assert!(
        fs::read(world.path("app.db")).unwrap() == before,
        "the file changed"
    );

    let mut daemon = world.daemon();
    world.sql("app.db", "UPDATE t SET v = 'changed' WHERE id = 7");
    assert_eq!(daemon.term(), 0);
    assert_eq!(world.sql("app.db", "SELECT name FROM sqlite_schema"), "t");
}

/// README: "The database need not exist yet: `replicate` waits for it, and never creates it."
#[test]
fn a_database_that_does_not_exist_or_is_empty_is_waited_for_and_left_alone() {
    let world = World::new();
    let mut daemon = world.replicate("app.db replicas/app --sync-interval 50ms");
    daemon.wait_says("there is no database");
    assert!(!world.path("app.db").exists());
    let answered = wait_for(LONG, "an answer", || {
        let output = world.sqlrepl("sync app.db --timeout 200ms");
        // Until the daemon listens, there is none.
        (!output.stderr.contains("no replicate runs")).then_some(output)
    });
    answered.fails(1, "there is no database");

    fs::write(world.path("app.db"), "").unwrap();
    daemon.wait_says("is empty");
    assert_eq!(fs::metadata(world.path("app.db")).unwrap().len(), 0);

    // The application decides what only the first write can.
    let made = "PRAGMA page_size = 512; PRAGMA auto_vacuum = 1; CREATE TABLE t(v);";
    world.sql("app.db", made);
    world.await_sync(&mut daemon);
    world.sql("app.db", "INSERT INTO t VALUES('first')");
    world.sync();
    world.restore("out.db", "");
    let seen = world.sql(
        "out.db",
        "PRAGMA page_size; PRAGMA auto_vacuum; SELECT v FROM t",
    );
    assert_eq!(seen, "512\n1\nfirst");
}

/// README: "A database that is not in WAL mode is switched to it."
#[test]
fn a_database_in_rollback_mode_is_switched_and_what_prevents_it_is_said() {
    let world = World::new();
    world.sql(
        "app.db",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(1, 'a')",
    );
    let reader = world.keep_open("app.db", "BEGIN; SELECT * FROM t");

    let mut daemon = world.replicate("app.db replicas/app --sync-interval 50ms");
    daemon.wait_says("is locked by another process");
    assert_eq!(world.sql("app.db", "PRAGMA journal_mode"), "delete");
    reader.end("COMMIT");

    world.await_sync(&mut daemon);
    assert_eq!(world.sql("app.db", "PRAGMA journal_mode"), "wal");
    world.restore("out.db", "");
    assert_eq!(world.sql("out.db", "SELECT v FROM t"), "a");
}

/// README: "`PRAGMA locking_mode=EXCLUSIVE` keeps everyone else out, and so cannot be replicated;
/// the daemon says so."
#[test]
fn an_application_that_locks_everyone_out_is_named_as_the_reason() {
    let world = World::new();
    world.sample();
    let lock = "PRAGMA locking_mode=EXCLUSIVE; UPDATE t SET v = 'mine' WHERE id = 1";
    let application = world.keep_open("app.db", lock);
    let mut daemon = world.replicate("app.db replicas/app --sync-interval 50ms");
    daemon.wait_says("locking_mode=EXCLUSIVE");
    application.end("SELECT 1");
    world.await_sync(&mut daemon);
}

/// README: "`VACUUM` is one transaction like any other: the same generation goes on."
#[test]
fn vacuum_stays_in_its_generation() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    world.sql(
        "app.db",
        "INSERT INTO t SELECT id + 1000, randomblob(5000) FROM t",
    );
    world.sql("app.db", "DELETE FROM t WHERE id % 3 = 0");
    world.sync();
    let before = world.points();
    world.sql("app.db", "VACUUM");
    world.sync();
    let after = world.points();
    assert_eq!(after.len(), before.len() + 1);
    assert_eq!(world.generations().len(), 1);
    let (fat, slim) = (&after[after.len() - 2], &after[after.len() - 1]);
    assert!(slim.size < fat.size, "{slim:?} after {fat:?}");
    assert_eq!(daemon.term(), 0);
    world.restore("fat.db", &format!("--txid {}", fat.txid));
    world.restore("slim.db", &format!("--txid {}", slim.txid));
    let query = "PRAGMA integrity_check; SELECT count(*), sum(length(v)) FROM t";
    assert_eq!(world.sql("fat.db", query), world.sql("slim.db", query));
    assert_eq!(world.sql("slim.db", query), world.sql("app.db", query));
}

/// Makes `app.db` with 90 MB that nothing compresses.
fn large_sample(world: &World) {
    world.sample();
    let blobs = "INSERT INTO t SELECT id + 1000 * n.value, randomblob(100000)
                 FROM t, generate_series(1, 9) AS n";
    world.sql("app.db", blobs);
}

/// README: "A transaction of more than 64 MiB of compressed pages is stored as a snapshot, and is a
/// restore point like any other."
#[test]
fn vacuum_of_a_large_database_is_stored_as_a_snapshot() {
    let world = World::new();
    large_sample(&world);
    let mut daemon = world.daemon();
    let mut states = Vec::new();
    for sql in [
        "DELETE FROM t WHERE id % 10 = 0",
        "VACUUM",
        "DELETE FROM t WHERE id % 10 = 1",
    ] {
        world.sql("app.db", sql);
        world.sync();
        states.push(world.sql("app.db", ".sha3sum"));
    }
    assert_eq!(world.generations().len(), 1);
    let points = world.points();
    let points = &points[points.len() - 3..];
    let vacuumed = points[1].txid.as_str();
    let snapshots = world.json("snapshots replicas/app");
    assert_eq!(snapshots.last().unwrap()["txid"], vacuumed);
    let wal = world.json("wal replicas/app");
    let mark = wal.iter().find(|entry| entry["first"] == vacuumed).unwrap();
    assert_eq!(
        (&mark["last"], &mark["versions"]),
        (&vacuumed.into(), &0.into())
    );
    assert_eq!(daemon.term(), 0);
    for (point, state) in points.iter().zip(&states) {
        let restored = format!("{}.db", point.txid);
        world.restore(&restored, &format!("--txid {}", point.txid));
        assert_eq!(world.sql(&restored, "PRAGMA integrity_check"), "ok");
        assert_eq!(world.sql(&restored, ".sha3sum"), *state);
    }
}

/// README: "A transaction of more than 64 MiB of compressed pages starts a new generation if the
/// first snapshot of the one before is not stored yet, or `max-spool-size` leaves no room for it."
#[test]
fn vacuum_of_a_large_database_without_room_for_a_snapshot_starts_a_new_generation() {
    let world = World::new();
    large_sample(&world);
    let mut daemon = world.daemon_with("--max-spool-size 120MiB");
    world.sql("app.db", "DELETE FROM t WHERE id % 10 = 0");
    world.sync();
    assert_eq!(world.generations().len(), 1);
    world.sql("app.db", "VACUUM");
    daemon.wait_says("the spool has no room for it");
    world.sync();
    assert_eq!(world.generations().len(), 2);
    assert_eq!(daemon.term(), 0);
    world.restore("out.db", "");
    assert_eq!(
        world.sql("out.db", ".sha3sum"),
        world.sql("app.db", ".sha3sum")
    );
}

/// README: "A database that is replaced, deleted and made again, or given another page size starts
/// a new generation; the moments before it stay."
#[test]
fn a_database_that_became_another_one_starts_a_new_generation() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    let first = world.points().pop().unwrap();

    // Replaced by a rename, under the running daemon. At rest, for a WAL that is not empty is
    // replayed by SQLite into whatever lies there.
    world.await_rest();
    world.sql(
        "other.db",
        "PRAGMA journal_mode=WAL; CREATE TABLE t(id, v); INSERT INTO t VALUES(1, 'b')",
    );
    fs::rename(world.path("other.db"), world.path("app.db")).unwrap();
    wait_until(LONG, "a second generation", || {
        world.generations().len() == 2
    });
    world.sync();
    world.restore("second.db", "");
    assert_eq!(world.sql("second.db", "SELECT v FROM t"), "b");

    // Deleted and made again.
    for file in ["app.db", "app.db-wal", "app.db-shm"] {
        fs::remove_file(world.path(file)).ok();
    }
    daemon.wait_says("there is no database");
    world.sql(
        "app.db",
        "CREATE TABLE t(id, v); INSERT INTO t VALUES(1, 'c')",
    );
    wait_until(LONG, "a third generation", || {
        world.generations().len() == 3
    });
    world.sync();
    world.restore("third.db", "");
    assert_eq!(world.sql("third.db", "SELECT v FROM t"), "c");

    // Another page size, which SQLite gives only to a database that nobody else has open.
    assert_eq!(daemon.term(), 0);
    let remade = "PRAGMA journal_mode=DELETE; PRAGMA page_size=8192; VACUUM";
    world.sql("app.db", remade);
    let mut daemon = world.daemon();
    assert_eq!(world.generations().len(), 4);
    world.restore("fourth.db", "");
    assert_eq!(
        world.sql("fourth.db", "PRAGMA page_size; SELECT v FROM t"),
        "8192\nc"
    );
    assert_eq!(daemon.term(), 0);

    let named = format!("--txid {} --generation {}", first.txid, first.generation);
    world.restore("first.db", &named);
    assert_eq!(
        world.sql("first.db", "SELECT v FROM t WHERE id = 1"),
        "row 1"
    );
}

#[test]
fn several_replicas_get_every_commit_and_one_of_them_can_be_synced_alone() {
    let world = World::new();
    world.sample();
    let mut daemon = world.replicate("app.db replicas/app replicas/two replicas/three");
    world.await_sync(&mut daemon);
    for n in 0..10 {
        world.sql(
            "app.db",
            &format!("UPDATE t SET v = 'change {n}' WHERE id = 1"),
        );
    }
    world
        .sqlrepl("sync app.db --replica replicas/two --timeout 300s")
        .ok();
    world.sqlrepl("restore -o two.db replicas/two").ok();
    assert_eq!(
        world.sql("two.db", "SELECT v FROM t WHERE id = 1"),
        "change 9"
    );
    world.sync();
    let points = world.points();
    for other in ["replicas/two", "replicas/three"] {
        let others = world.points_of(other);
        assert_eq!(others.len(), points.len(), "{other}");
        let times = |points: &[crate::world::Point]| -> Vec<String> {
            // Each replica dates the state that it starts from by its own snapshot.
            points[1..].iter().map(|point| point.time.clone()).collect()
        };
        assert_eq!(times(&others), times(&points), "{other}");
    }
    world
        .sqlrepl("sync app.db --replica replicas/four")
        .fails(1, "replicas/four");
}

#[test]
fn a_sync_that_cannot_be_done_in_time_fails_with_the_reason_and_the_commits_follow_later() {
    let world = World::new();
    world.sample();
    let _daemon = world.daemon();
    world.take_replica_away();
    world.sql("app.db", "UPDATE t SET v = 'meanwhile' WHERE id = 1");
    let refused = world
        .sqlrepl("sync app.db --timeout 5s")
        .fails(1, "replicas/app");
    let reasons = [
        "Not a directory",
        "is its disk still mounted",
        "commits are still on their way",
        "Connection refused",
    ];
    let says = |reason: &&str| refused.stderr.contains(*reason);
    assert!(reasons.iter().any(says), "{refused}");
    world.bring_replica_back();
    world.sync();
    world.restore("out.db", "");
    assert_eq!(
        world.sql("out.db", "SELECT v FROM t WHERE id = 1"),
        "meanwhile"
    );
    assert_eq!(world.generations().len(), 1);
}

#[test]
fn a_sync_without_a_daemon_says_that_none_runs() {
    let world = World::new();
    world.sample();
    world.sqlrepl("sync app.db").fails(1, "replicate");
}

/// README: "The second daemon on one database stops with a sentence."
#[test]
fn the_second_daemon_on_one_database_stops() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    for options in ["", "--meta-path elsewhere"] {
        let mut second = world.replicate(&format!("app.db replicas/second {options}"));
        assert_eq!(second.wait_exit(), 1);
        let said = second.stderr();
        assert!(
            said.contains("app.db") && said.contains("another"),
            "{said}"
        );
    }
    assert!(daemon.is_running());
    world.sql("app.db", "UPDATE t SET v = 'still replicated' WHERE id = 1");
    world.sync();
    world.restore("out.db", "");
    assert_eq!(
        world.sql("out.db", "SELECT v FROM t WHERE id = 1"),
        "still replicated"
    );
}

/// README: "A path that holds another tool's objects is refused with a sentence that names one."
#[test]
fn a_path_with_another_tools_objects_is_refused() {
    let world = World::new();
    world.sample();
    for foreign in [
        "ltx/0/0001.ltx",
        "0000/0001.ltx",
        "generations/0123456789abcdef/wal/0",
    ] {
        let path = world.path("replicas/app").join(foreign);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "another tool's").unwrap();
        let mut daemon = world.replicate("app.db replicas/app");
        assert_eq!(daemon.wait_exit(), 2, "{foreign}");
        let named = foreign.split("/0").next().unwrap();
        let said = daemon.stderr();
        assert!(
            said.contains("another tool") && said.contains(named),
            "{foreign}: {said}"
        );
        fs::remove_dir_all(world.path("replicas/app")).unwrap();
    }
}

/// README: "`zstd -d < first.snapshot > app.db` is the database as it was when a generation began,
/// below 1 GiB and where `sqlrepl snapshots` says `exact` (no checkpoint waits for it, so that it
/// may not be): reading it back needs no sqlrepl."
#[test]
fn zstd_alone_reads_the_first_snapshot_also_of_a_busy_database() {
    const TIMES: usize = 5;
    let is_exact = (0..TIMES).any(|_| {
        let world = World::new();
        let is_exact = begin_on_a_busy_database(&world);
        if is_exact {
            check_by_zstd_alone(&world);
        }
        is_exact
    });
    assert!(is_exact, "a checkpoint went first, {TIMES} times");
}

/// Replicates for a moment beside a writer; whether the first snapshot is exact.
fn begin_on_a_busy_database(world: &World) -> bool {
    world.sample();
    let filler = "INSERT INTO t SELECT id + 1000, randomblob(100000) FROM t";
    world.sql("app.db", filler);
    let mut writer = Writer::rust(&Setup::new(&world.path("")), &world.logs());
    writer.send("updates 100000 200");
    let mut daemon = world.daemon();
    fs::write(world.path("stop"), "").unwrap();
    writer.answer();
    assert_eq!(daemon.term(), 0);
    world.json("snapshots replicas/app")[0]["exact"] == true
}

fn check_by_zstd_alone(world: &World) {
    let objects = world.objects("replicas/app");
    let (snapshot, _) = objects
        .iter()
        .find(|(name, _)| name.ends_with(".snapshot"))
        .unwrap();
    let command = format!("zstd -d < replicas/app/{snapshot} > plain.db");
    world.run("sh", &["-c", &command]).ok();
    let first = &world.points()[0];
    world.restore("restored.db", &format!("--txid {}", first.txid));
    let plain = fs::read(world.path("plain.db")).unwrap();
    assert!(
        plain == fs::read(world.path("restored.db")).unwrap(),
        "not what restore gives"
    );
    let shown = crate::oracle::images(&world.path("ledger"));
    assert!(
        shown.contains(&crate::oracle::ImageHash::of(&plain)),
        "SQLite never showed it"
    );
    assert_eq!(world.sql("plain.db", "PRAGMA integrity_check"), "ok");
}

/// README: "`PRAGMA journal_mode=DELETE` fails while `replicate` runs, since it holds a connection:
/// stop it first."
#[test]
fn journal_mode_delete_fails_under_the_daemon_and_works_without() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    let switch = "PRAGMA busy_timeout=0; PRAGMA journal_mode=DELETE";
    let refused = world.try_sql("app.db", switch);
    assert!(refused.stderr.contains("locked"), "{refused}");
    assert_eq!(world.sql("app.db", "PRAGMA journal_mode"), "wal");
    assert_eq!(daemon.term(), 0);
    assert_eq!(world.sql("app.db", "PRAGMA journal_mode=DELETE"), "delete");
}

/// README: "When nothing else lets the WAL restart, the daemon takes the write lock for some 10 ms:
/// set a busy timeout in your application, or start `replicate` with `--no-writer-lock`."
#[test]
fn without_the_write_lock_an_application_without_a_busy_timeout_is_never_busy() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon_with("--no-writer-lock --wal-size 1MiB");
    let mut setup = Setup::new(&world.path(""));
    setup.ledger = None;
    let mut writer = Writer::rust(&setup, &world.logs());
    writer.ask("sql PRAGMA busy_timeout = 0");
    // A busy answer would end the writer.
    let answer = writer.ask("updates 60000 0");
    assert_eq!(answer["commits"], 60_000);
    world.sync();
    assert!(daemon.is_running());
}

/// README: "Commits of the last `--sync-interval` (1 s) may not be stored yet when the machine is
/// lost; those that were captured go on their way at the next start."
#[test]
fn what_was_captured_and_not_stored_is_stored_after_the_next_start() {
    let world = World::new();
    world.sample();
    let mut daemon = world.replicate("app.db replicas/app --sync-interval 1h");
    world.await_sync(&mut daemon);
    let stored = world.points().len();
    world.sql("app.db", "UPDATE t SET v = 'captured' WHERE id = 1");
    world.await_rest();
    assert_eq!(world.points().len(), stored);
    daemon.kill9();
    world.daemon();
    assert_eq!(world.points().len(), stored + 1);
    assert_eq!(world.generations().len(), 1);
}

#[test]
fn a_transaction_that_the_budget_has_no_room_for_ends_the_generation_with_a_sentence() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon_with("--max-spool-size 4MiB");
    world.sql(
        "app.db",
        "INSERT INTO t SELECT id + 1000, randomblob(200000) FROM t",
    );
    daemon.wait_says("max-spool-size");
    world.await_sync(&mut daemon);
    assert_eq!(world.generations().len(), 2);
    world.sql("app.db", "UPDATE t SET v = 'after' WHERE id = 1");
    world.sync();
    world.restore("out.db", "");
    let query = "SELECT count(*), min(v) FROM t WHERE id < 1000 AND v = 'after'";
    assert_eq!(world.sql("out.db", query), "1|after");
    assert_eq!(world.sql("out.db", "SELECT count(*) FROM t"), "200");
    assert_eq!(daemon.term(), 0);
}

#[test]
fn a_quiet_database_costs_no_object_and_a_busy_one_few() {
    let world = World::new();
    world.sample();
    let _daemon = world.daemon_with("--sync-interval 300ms");
    let mut writer = Writer::rust(&Setup::new(&world.path("")), &world.logs());
    let before = world.objects("replicas/app").len();
    let answer = writer.ask("updates 600 300");
    world.sync();
    let busy = world.objects("replicas/app").len();
    let seconds = answer["seconds"].as_f64().unwrap();
    // One for each interval, one for each MiB of frames (600 commits are about 5 MiB), the sync's.
    let most = seconds / 0.3 + 8.0;
    assert!(
        (busy - before) as f64 <= most,
        "{} objects in {seconds} s",
        busy - before
    );
    world.await_rest();
    assert_eq!(world.objects("replicas/app").len(), busy);
}

#[test]
fn the_socket_of_sync_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    world.sample();
    let _daemon = world.daemon();
    let mut sockets = Vec::new();
    crate::world::walk(&world.path(".app.db-sqlrepl"), &mut |path| {
        use std::os::unix::fs::FileTypeExt as _;
        let metadata = fs::metadata(path).unwrap();
        if metadata.file_type().is_socket() {
            sockets.push(metadata.permissions().mode() & 0o777);
        }
    });
    assert_eq!(sockets, [0o600]);
}

/// With the spool lost, an empty replica that is named first must not make it another database.
#[test]
fn a_lost_spool_is_made_up_for_by_any_replica_that_knows_the_database() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    assert_eq!(daemon.term(), 0);
    fs::remove_dir_all(world.path(".app.db-sqlrepl")).unwrap();
    let mut daemon = world.replicate("app.db replicas/new/ replicas/app");
    world.await_sync(&mut daemon);
    world.sqlrepl("sync app.db --replica replicas/new").ok();
    assert_eq!(daemon.term(), 0);
    assert_eq!(world.generations().len(), 2);
}

#[test]
fn two_replicas_in_one_place_or_one_within_the_other_are_refused() {
    let world = World::new();
    world.sample();
    for (places, sentence) in [
        (
            "replicas/app ./replicas/app/",
            "lies in the place of replica",
        ),
        ("replicas/app replicas/app/more", "lies around replica"),
        (
            "s3://bucket/app?endpoint=http://127.0.0.1:1 \
             s3://bucket/app?endpoint=http://127.0.0.1:1&region=eu-west-1",
            "replica \"s3://bucket/app\" of database app lies in the place of replica",
        ),
    ] {
        let mut daemon = world.replicate(&format!("app.db {places}"));
        assert_eq!(daemon.wait_exit(), 2, "{places}");
        let said = daemon.stderr();
        assert!(said.contains(sentence), "{said}");
        assert!(!world.path("replicas/app").exists());
        assert!(!world.path(".app.db-sqlrepl").exists());
    }
}
