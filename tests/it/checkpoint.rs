//! What an application may do to its own database beside the daemon: checkpoints, and backups
//! copied over it.

use crate::world::World;
use crate::writer::{Setup, Writer};
use std::fs;

/// How often something is tried that must be quick at least once.
const TIMES: usize = 5;

/// README: "An application's own checkpoints get on beside the daemon, and no writer waits for
/// them."
#[test]
fn a_truncate_checkpoint_with_a_long_busy_timeout_returns_soon_and_no_writer_waits() {
    let world = World::alone();
    world.sample();
    let _daemon = world.daemon();
    let mut setup = Setup::new(&world.path(""));
    setup.ledger = None;
    let mut writer = Writer::rust(&setup, &world.logs());
    setup.seed = 2;
    let mut checkpointer = Writer::rust(&setup, &world.logs());
    let mut checkpoint = |mode: &str| {
        let answer = checkpointer.ask(&format!("checkpoint {mode} 5000"));
        assert_eq!(answer["busy"], 0, "{mode}: {answer}");
        // The next one meets the daemon in another state.
        let commits = checkpointer.ask("updates 37 500");
        assert_eq!(commits["commits"], 37);
        answer["ms"].as_u64().unwrap()
    };
    let mut under_load = || {
        writer.send("updates 100000000 1000");
        let modes = ["TRUNCATE", "RESTART", "TRUNCATE", "FULL"].repeat(3);
        let longest_ms = modes.into_iter().map(&mut checkpoint).max();
        fs::write(world.path("stop"), "").unwrap();
        let waited_ms = writer.answer()["max_us"].as_u64().unwrap() / 1000;
        fs::remove_file(world.path("stop")).unwrap();
        println!("longest checkpoint {longest_ms:?} ms, longest commit {waited_ms} ms");
        longest_ms <= Some(300) && waited_ms <= 300
    };
    // A disk that is busy with other things can only add.
    assert!(
        (0..TIMES).any(|_| under_load()),
        "who waited is shown above"
    );

    let mut at_rest = || {
        world.await_rest();
        checkpoint("TRUNCATE") <= 300
    };
    assert!((0..TIMES).any(|_| at_rest()), "it took long at rest");
    world.sync();
}

/// README: "A backup copied over a database that rested for 3 s stays, with the daemon running or
/// stopped."
#[test]
fn a_backup_copied_over_a_database_at_rest_stays() {
    for running in [true, false] {
        let world = World::new();
        world.sample();
        world.sql("app.db", ".backup backup.db");
        let application = world.keep_open("app.db", "UPDATE t SET v = 'newer'");
        let mut daemon = world.daemon();
        world.sql(
            "app.db",
            "INSERT INTO t SELECT id + 1000, randomblob(3000) FROM t",
        );
        world.sync();
        world.await_rest();
        if !running {
            assert_eq!(daemon.term(), 0);
        }
        drop(application);
        fs::copy(world.path("backup.db"), world.path("app.db")).unwrap();
        if !running {
            daemon = world.daemon();
        }
        let query = "PRAGMA integrity_check; SELECT count(*), min(v), max(v) FROM t";
        let copied = "ok\n100|row 1|row 99";
        assert_eq!(
            world.sql("app.db", query),
            copied,
            "daemon running: {running}"
        );

        world.sql("app.db", "INSERT INTO t VALUES(101, 'after')");
        world.await_sync(&mut daemon);
        assert_eq!(world.sql("app.db", query), "ok\n101|after|row 99");
        world.restore("out.db", "");
        assert_eq!(world.sql("out.db", query), "ok\n101|after|row 99");
        assert_eq!(world.generations().len(), 2);
        assert_eq!(daemon.term(), 0);
        assert_eq!(world.sql("app.db", query), "ok\n101|after|row 99");
    }
}

/// README: "Stop the application and `replicate` before you put another database in the place of
/// one that is in use: over a busy one a copied backup may be lost or mixed, as SQLite itself
/// warns."
#[test]
fn a_database_put_in_place_while_everything_is_stopped_is_taken_as_it_is() {
    let world = World::new();
    world.sample();
    world.sql("app.db", ".backup backup.db");
    let mut daemon = world.daemon();
    world.sql("app.db", "UPDATE t SET v = 'newer'");
    world.sync();
    let before = world.points().pop().unwrap();
    // Nobody waits for a rest: a clean stop leaves the WAL empty.
    assert_eq!(daemon.term(), 0);
    assert_eq!(
        fs::metadata(world.path("app.db-wal")).map_or(0, |wal| wal.len()),
        0
    );
    fs::copy(world.path("backup.db"), world.path("app.db")).unwrap();
    world.daemon();
    assert_eq!(world.sql("app.db", "SELECT v FROM t WHERE id = 1"), "row 1");
    world.restore("now.db", "");
    assert_eq!(world.sql("now.db", "SELECT v FROM t WHERE id = 1"), "row 1");
    let named = format!("--generation {} --txid {}", before.generation, before.txid);
    world.restore("before.db", &named);
    assert_eq!(
        world.sql("before.db", "SELECT v FROM t WHERE id = 1"),
        "newer"
    );
}
