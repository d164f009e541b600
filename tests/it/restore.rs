//! `sqlrepl restore`: which moment, where to, and what it refuses.

use crate::program::{LONG, bound, run, wait_until};
use crate::world::{VERSION, World, three_versions};
use std::fs;

fn version(world: &World, database: &str) -> String {
    world.sql(database, VERSION)
}

#[test]
fn every_way_to_name_a_moment_finds_it() {
    let world = three_versions();
    let points = world.points();
    let [start, one, two, three] = points.as_slice() else {
        panic!("not four restore points: {points:?}");
    };
    let short = two.txid.trim_start_matches('0').to_owned();
    let named = [
        (String::new(), "three"),
        ("--timestamp now".into(), "three"),
        ("--timestamp latest".into(), "three"),
        ("--timestamp 0s-ago".into(), "three"),
        ("--timestamp 2099-01-01".into(), "three"),
        (format!("--timestamp {}", three.time), "three"),
        (format!("--timestamp {}", two.time), "two"),
        (
            format!("--timestamp {}", one.time.replace('Z', "+00:00")),
            "one",
        ),
        (format!("--txid {}", two.txid), "two"),
        (format!("--txid {short}"), "two"),
        (
            format!("--txid {} --generation {}", one.txid, one.generation),
            "one",
        ),
        (format!("--generation {}", one.generation), "three"),
        (format!("--txid {}", start.txid), "row 1"),
    ];
    for (n, (options, expected)) in named.iter().enumerate() {
        let to = format!("out.{n}.db");
        world.restore(&to, options);
        assert_eq!(version(&world, &to), *expected, "{options}");
    }
    let refused = [
        ("--timestamp 2001-01-01", 3),
        ("--txid ffffff", 3),
        ("--generation 00000009-00000009", 3),
        ("--timestamp tomorrow-ish", 2),
        ("--txid xyz", 2),
    ];
    for (options, code) in refused {
        let word = options.split(' ').nth(1).unwrap();
        let refused = world.sqlrepl(&format!("restore -o never.db replicas/app {options}"));
        refused.fails(code, word);
        assert!(!world.path("never.db").exists(), "{options}");
    }
}

/// README: "`restore` overwrites nothing, and refuses a path beside which a `-wal`, `-shm` or
/// `-journal` of an earlier database lies: SQLite would replay it into the restored file."
#[test]
fn a_path_that_is_taken_or_has_leftovers_beside_it_is_refused() {
    let world = three_versions();
    fs::write(world.path("taken.db"), "precious").unwrap();
    world
        .sqlrepl("restore -o taken.db replicas/app")
        .fails(2, "taken.db exists");
    world
        .sqlrepl("restore -o taken.db replicas/app --if-db-not-exists")
        .ok();
    assert_eq!(
        fs::read_to_string(world.path("taken.db")).unwrap(),
        "precious"
    );
    for suffix in ["-wal", "-shm", "-journal"] {
        let beside = world.path(&format!("out.db{suffix}"));
        fs::write(&beside, "of an earlier database").unwrap();
        let refused = world.sqlrepl("restore -o out.db replicas/app");
        refused.fails(2, &format!("out.db{suffix}"));
        assert!(!world.path("out.db").exists(), "{suffix}");
        fs::remove_file(beside).unwrap();
    }
    world.restore("out.db", "--if-db-not-exists");
    assert_eq!(version(&world, "out.db"), "three");
}

#[test]
fn a_dry_run_says_what_it_would_do_and_writes_nothing() {
    let world = three_versions();
    let newest = world.points().pop().unwrap();
    let said = world
        .sqlrepl("restore -o out.db replicas/app --dry-run")
        .ok();
    assert!(said.contains(&newest.txid), "{said}");
    let left: Vec<_> = fs::read_dir(world.path(""))
        .unwrap()
        .map(|entry| entry.unwrap())
        .collect();
    let left = left
        .iter()
        .map(|entry| entry.file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.contains("out")).count(), 0);
}

/// README: "`restore` writes to a temporary name, verifies, and renames: a file that stands there
/// is whole."
#[test]
fn a_restore_that_is_killed_leaves_no_file_of_that_name() {
    let world = World::new();
    world.sample();
    world.sql(
        "app.db",
        "INSERT INTO t SELECT id + 1000, randomblob(1000000) FROM t",
    );
    let mut daemon = world.daemon();
    assert_eq!(daemon.term(), 0);
    let names = || {
        let names = fs::read_dir(world.path("out")).unwrap();
        names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect::<Vec<_>>()
    };
    fs::create_dir(world.path("out")).unwrap();
    let mut restore = world.start("restore -o out/app.db replicas/app");
    wait_until(LONG, "the temporary file", || !names().is_empty());
    restore.kill9();
    // What was left does not stand in the way, and what has its name is whole.
    if !world.path("out/app.db").exists() {
        world
            .sqlrepl("restore -o out/app.db replicas/app --parallelism 1")
            .ok();
    }
    let query = "PRAGMA integrity_check; SELECT count(*) FROM t";
    assert_eq!(world.sql("out/app.db", query), "ok\n200");
}

#[test]
fn a_restored_database_is_in_wal_mode_and_nothing_lies_beside_it() {
    let world = three_versions();
    fs::create_dir(world.path("out")).unwrap();
    world.restore("out/app.db", "");
    let header = fs::read(world.path("out/app.db")).unwrap();
    assert_eq!(header[18..20], [2, 2]);
    let beside = fs::read_dir(world.path("out")).unwrap().count();
    assert_eq!(beside, 1);
}

#[test]
fn a_place_without_a_replica_is_no_such_database() {
    let world = World::new();
    world
        .sqlrepl("restore -o out.db nowhere")
        .fails(3, "nowhere");
    fs::create_dir(world.path("empty")).unwrap();
    world.sqlrepl("restore -o out.db empty").fails(3, "empty");
    for listing in ["points", "generations", "snapshots", "wal"] {
        world
            .sqlrepl(&format!("{listing} nowhere"))
            .fails(3, "nowhere");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let world = World::new();
    for wrong in [
        "",
        "restore",
        "restor",
        "points --since",
        "replicate app.db --sync-interval x a",
    ] {
        assert_eq!(world.sqlrepl(wrong).code, 2, "{wrong}");
    }
    let words = run(bound(env!("CARGO_BIN_EXE_sqlrepl")).arg("--help")).ok();
    for command in ["replicate", "sync", "mount", "restore", "points", "version"] {
        assert!(
            words.contains(command),
            "{command} is not in the help: {words}"
        );
    }
}
