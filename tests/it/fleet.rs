//! Many databases in one process: what fails stops nothing else and shows in log, status and exit
//! code; what is idle costs next to nothing.

use crate::program::{LONG, Running, wait_for, wait_until};
use crate::world::World;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A `[[db]]` of the config file for the database at `path`, with replicas of these names, each in
/// `replicas/` and its own name.
fn db(world: &World, path: &str, replicas: &[&str]) -> String {
    let mut text = format!("[[db]]\npath = \"{path}\"\n");
    for name in replicas {
        let place = world.place(&format!("replicas/{name}"));
        let key = if place.contains("://") { "url" } else { "path" };
        writeln!(
            text,
            "[[db.replica]]\nname = \"{name}\"\n{key} = \"{place}\"\nsync-interval = \"50ms\""
        )
        .unwrap();
    }
    text
}

/// Writes the config file of these databases, each with one replica of its name.
pub(crate) fn config(world: &World, names: &[&str]) {
    let dbs = names
        .iter()
        .map(|name| db(world, &format!("{name}.db"), &[name]));
    fs::write(world.path("fleet.toml"), dbs.collect::<String>()).unwrap();
}

/// Makes a database with a table `t(v)`.
#[track_caller]
pub(crate) fn make(world: &World, name: &str) {
    let made = "PRAGMA journal_mode=WAL; CREATE TABLE t(v); INSERT INTO t VALUES('made')";
    world.sql(&format!("{name}.db"), made);
}

#[track_caller]
pub(crate) fn insert(world: &World, name: &str, value: &str) {
    let insert = format!("INSERT INTO t VALUES('{value}')");
    world.sql(&format!("{name}.db"), &insert);
}

/// The value that was inserted last, by a replica.
#[track_caller]
pub(crate) fn newest(world: &World, replica: &str) -> String {
    // Each restore needs a name of its own.
    let name = tempfile::Builder::new().tempfile_in(world.logs()).unwrap();
    let path = name.path().with_extension("db");
    let path = path.to_str().unwrap();
    world
        .sqlrepl(&format!("restore -o {path} replicas/{replica}"))
        .ok();
    world.sql(path, "SELECT v FROM t ORDER BY rowid DESC LIMIT 1")
}

#[track_caller]
pub(crate) fn await_sync(world: &World, daemon: &mut Running, name: &str) {
    wait_until(LONG, &format!("a sync of {name}"), || {
        assert!(daemon.is_running(), "the daemon ended");
        world.sqlrepl(&format!("sync {name}.db --timeout 30s")).code == 0
    });
}

/// What `status` says of each database, and its exit code.
#[track_caller]
pub(crate) fn status(world: &World, of: &str) -> (Vec<Value>, i32) {
    let output = world.sqlrepl(&format!("status {of} --json"));
    match serde_json::from_str(&output.stdout) {
        Ok(Value::Array(databases)) => (databases, output.code),
        _ => panic!("no array: {output}"),
    }
}

/// The line of the log that has these words.
#[track_caller]
fn line(daemon: &Running, words: &str) -> String {
    let log = daemon.stderr();
    let line = log.lines().find(|line| line.contains(words));
    line.unwrap_or_else(|| panic!("no \"{words}\" in {log}"))
        .to_owned()
}

/// README: "A database or a replica that fails stops no other, and shows in the log, in `sqlrepl
/// status` and in the exit code."
#[test]
fn a_bad_path_and_a_bad_replica_stop_nothing_else_and_show_everywhere() {
    let world = World::new();
    for name in ["app", "shop", "blog", "wiki"] {
        make(&world, name);
    }
    let foreign = world.path("replicas/foreign/ltx/0");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("1.ltx"), "another tool's").unwrap();
    config(&world, &["app", "shop", "blog"]);
    let mut text = fs::read_to_string(world.path("fleet.toml")).unwrap();
    text += &db(&world, "wiki.db", &["foreign", "wiki"]);
    text += &db(&world, "gone/lost.db", &["lost"]);
    fs::write(world.path("fleet.toml"), text).unwrap();

    let mut daemon = world.replicate("--config fleet.toml");
    for name in ["app", "shop", "blog"] {
        await_sync(&world, &mut daemon, name);
    }
    daemon.wait_says("another tool");
    daemon.wait_says("lost.db-sqlrepl");
    let said = line(&daemon, "another tool");
    assert!(said.contains("wiki") && said.contains("foreign"), "{said}");
    let said = line(&daemon, "lost.db-sqlrepl");
    assert!(said.contains("database{database=lost}"), "{said}");
    insert(&world, "wiki", "one replica goes on");
    let sync = "sync wiki.db --replica wiki --timeout 300s";
    world.sqlrepl(sync).ok();
    assert_eq!(newest(&world, "wiki"), "one replica goes on");

    is_shown_everywhere(&world);
    assert_eq!(daemon.term(), 1);
}

/// That `wiki` and `lost` are not well.
#[track_caller]
fn is_shown_everywhere(world: &World) {
    // While it is tried again a database is starting.
    let (databases, code) = wait_for(LONG, "the one that is lost to wait", || {
        let (databases, code) = status(world, "--config fleet.toml");
        (databases[4]["state"] == "waiting").then_some((databases, code))
    });
    assert_eq!(code, 1);
    let states: Vec<_> = databases
        .iter()
        .map(|it| (it["name"].as_str().unwrap(), it["state"].as_str().unwrap()))
        .collect();
    let expected = [
        ("app", "capturing"),
        ("shop", "capturing"),
        ("blog", "capturing"),
        ("wiki", "capturing"),
        ("lost", "waiting"),
    ];
    assert_eq!(states, expected);
    assert_eq!(databases[0]["replicas"][0]["state"], "replicating");
    let foreign = &databases[3]["replicas"][0];
    assert_eq!(foreign["state"], "failed");
    let why = foreign["trouble"].as_str().unwrap();
    assert!(why.contains("another tool"), "{why}");
    assert_eq!(databases[3]["replicas"][1]["state"], "replicating");
    let why = databases[4]["trouble"].as_str().unwrap();
    assert!(why.contains("lost.db-sqlrepl"), "{why}");

    let text = wait_for(LONG, "the one that is lost to wait", || {
        let text = world.sqlrepl("status --config fleet.toml");
        text.stdout
            .contains("waiting to be tried again")
            .then_some(text)
    });
    let rows: Vec<&str> = text.stdout.lines().collect();
    assert!(rows[0].starts_with("DATABASE  REPLICA  STATE"), "{text}");
    assert_eq!(rows.len(), 7, "{text}");
    assert!(rows[6].contains("waiting to be tried again"), "{text}");
    assert!(
        text.stderr
            .contains("2 of 5 databases are not well: wiki, lost"),
        "{text}"
    );
    world.sqlrepl("status app --config fleet.toml").ok();
}

#[test]
fn a_database_whose_directory_comes_later_is_replicated_from_then_on() {
    let world = World::new();
    make(&world, "app");
    config(&world, &["app", "disk/later"]);
    let mut daemon = world.replicate("--config fleet.toml");
    daemon.wait_says("later.db-sqlrepl");
    fs::create_dir(world.path("disk")).unwrap();
    make(&world, "disk/later");
    await_sync(&world, &mut daemon, "disk/later");
    assert_eq!(newest(&world, "disk/later"), "made");
    assert_eq!(status(&world, "--config fleet.toml").1, 0);
    assert_eq!(daemon.term(), 0);
}

#[test]
fn what_another_process_replicates_is_left_to_it() {
    let world = World::new();
    make(&world, "app");
    make(&world, "shop");
    config(&world, &["app"]);
    let mut first = world.replicate("--config fleet.toml");
    await_sync(&world, &mut first, "app");

    // Nothing else to do: it ends.
    let mut second = world.replicate("--config fleet.toml");
    assert_eq!(second.wait_exit(), 1);
    assert!(second.stderr().contains("another process"));

    config(&world, &["app", "shop"]);
    let mut second = world.replicate("--config fleet.toml");
    await_sync(&world, &mut second, "shop");
    second.wait_says("not replicated any more");
    let said = line(&second, "another process");
    assert!(said.contains("database{database=app}"), "{said}");
    assert!(said.contains("not replicated any more"), "{said}");
    // The one that replicates it speaks for it.
    assert_eq!(status(&world, "--config fleet.toml").1, 0);
    insert(&world, "app", "still here");
    await_sync(&world, &mut first, "app");
    assert_eq!(newest(&world, "app"), "still here");
    assert_eq!(second.term(), 1);
    assert_eq!(first.term(), 0);
}

#[test]
fn databases_without_a_daemon_are_shown_as_not_running() {
    let world = World::new();
    make(&world, "app");
    config(&world, &["app", "shop"]);
    let (databases, code) = status(&world, "--config fleet.toml");
    assert_eq!(code, 1);
    let not_running = |it: &Value| it["state"] == "not-running";
    assert!(databases.iter().all(not_running), "{databases:?}");
    let text = world.sqlrepl("status app.db").fails(1, "app is not well");
    assert!(text.stdout.contains("not running"), "{text}");
}

/// Nobody knows how the databases are of a daemon that hangs.
#[test]
fn a_daemon_that_hangs_is_not_said_not_to_run() {
    let world = World::new();
    make(&world, "app");
    config(&world, &["app"]);
    let mut daemon = world.replicate("--config fleet.toml");
    await_sync(&world, &mut daemon, "app");
    daemon.signal(libc::SIGSTOP);
    let (databases, code) = status(&world, "--config fleet.toml");
    assert_eq!(code, 1);
    let app = &databases[0];
    assert_eq!(app["state"], "unknown", "{app}");
    assert_eq!(app["replicas"][0]["state"], "unknown", "{app}");
    let why = app["trouble"].as_str().unwrap();
    assert!(
        why.contains("did not answer within 5s; look at its log"),
        "{why}"
    );
    let text = world.sqlrepl("status app.db").fails(1, "app is not well");
    assert!(text.stdout.contains("unknown"), "{text}");
    world
        .sqlrepl("sync app.db --timeout 100ms")
        .fails(1, "did not answer within 5.1s");
    daemon.signal(libc::SIGCONT);
    assert_eq!(status(&world, "--config fleet.toml").1, 0);
    assert_eq!(daemon.term(), 0);
}

/// README: "`sqlrepl status` shows how far a replica is behind while its store is away."
#[test]
fn the_lag_is_shown_while_a_replica_is_away_and_ends_when_it_is_back() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    let of = "app.db";
    let replica = |databases: &[Value]| databases[0]["replicas"][0].clone();
    let (databases, code) = status(&world, of);
    assert_eq!(code, 0, "{databases:?}");
    let before = replica(&databases);
    assert_eq!(before["lag_seconds"], 0.0);
    assert_eq!(before["waiting_commits"], 0);
    let points = world.points();
    let last = points.last().unwrap();
    assert_eq!(before["txid"], last.txid);
    assert_eq!(before["time"], last.time);
    assert_eq!(before["generation"], last.generation);

    world.take_replica_away();
    for n in 0..3 {
        world.sql(
            "app.db",
            &format!("UPDATE t SET v = 'away {n}' WHERE id = 1"),
        );
    }
    wait_until(LONG, "a lag of two seconds and a reason", || {
        let away = replica(&status(&world, of).0);
        away["lag_seconds"].as_f64().unwrap() > 2.0
            && away["waiting_commits"] == 3
            && away["state"] == "retrying"
    });
    let (databases, code) = status(&world, of);
    let away = replica(&databases);
    assert_eq!(code, 1, "{away}");
    assert_eq!(databases[0]["state"], "capturing");
    assert_eq!(away["txid"], before["txid"], "{away}");
    assert!(away["trouble"].is_string(), "{away}");

    world.bring_replica_back();
    wait_until(LONG, "the end of the lag", || {
        let (databases, code) = status(&world, of);
        code == 0 && replica(&databases)["lag_seconds"] == 0.0
    });
    assert_eq!(world.points().len(), points.len() + 3);
    assert_eq!(daemon.term(), 0);
}

#[test]
fn a_restart_does_not_make_waiting_commits_younger() {
    let world = World::on_s3();
    world.sample();
    let mut daemon = world.daemon();
    world.take_replica_away();
    world.sql("app.db", "UPDATE t SET v = 'away' WHERE id = 1");
    let waits = |seconds: f64| {
        let (databases, _) = status(&world, "app.db");
        let replica = &databases[0]["replicas"][0];
        replica["lag_seconds"].as_f64() > Some(seconds) && replica["state"] == "retrying"
    };
    wait_until(LONG, "a lag of two seconds", || waits(2.0));
    daemon.kill9();
    let mut daemon = world.replicate("app.db replicas/app --sync-interval 50ms");
    wait_until(LONG, "the same lag after the restart", || waits(2.0));
    world.bring_replica_back();
    wait_until(LONG, "the end of the lag", || {
        status(&world, "app.db").1 == 0 && !waits(0.0)
    });
    assert_eq!(daemon.term(), 0);
}

#[test]
fn all_databases_go_on_after_the_process_was_killed() {
    let names = ["app", "shop", "blog", "wiki"];
    let world = World::new();
    for name in names {
        make(&world, name);
    }
    config(&world, &names);
    let mut daemon = world.replicate("--config fleet.toml");
    for name in names {
        await_sync(&world, &mut daemon, name);
        insert(&world, name, "seen");
        await_sync(&world, &mut daemon, name);
    }
    daemon.kill9();
    for name in names {
        insert(&world, name, "meanwhile");
    }
    let mut daemon = world.replicate("--config fleet.toml");
    for name in names {
        await_sync(&world, &mut daemon, name);
        assert_eq!(newest(&world, name), "meanwhile");
    }
    assert_eq!(status(&world, "--config fleet.toml").1, 0);
    assert_eq!(daemon.term(), 0);
}

#[test]
fn a_database_whose_replica_is_away_leaves_room_in_the_spool_for_the_others() {
    let world = World::new();
    make(&world, "app");
    make(&world, "shop");
    // Directories, so that one can be away alone.
    let db = |name| {
        format!(
            "[[db]]\npath = \"{name}.db\"\n[[db.replica]]\npath = \"replicas/{name}\"\n\
             sync-interval = \"50ms\"\n"
        )
    };
    let text = format!("max-spool-size = \"8MiB\"\n{}{}", db("app"), db("shop"));
    fs::write(world.path("fleet.toml"), text).unwrap();
    let mut daemon = world.replicate("--config fleet.toml");
    await_sync(&world, &mut daemon, "app");
    await_sync(&world, &mut daemon, "shop");
    fs::rename(world.path("replicas/app"), world.path("away")).unwrap();
    fs::write(world.path("replicas/app"), "not a directory").unwrap();
    wait_until(LONG, "a full spool", || {
        world.sql("app.db", "INSERT INTO t VALUES(randomblob(500000))");
        daemon.stderr().contains("max-spool-size")
    });
    world.sql("shop.db", "INSERT INTO t VALUES(randomblob(500000))");
    insert(&world, "shop", "as if nothing were");
    await_sync(&world, &mut daemon, "shop");
    let (databases, _) = status(&world, "--config fleet.toml");
    assert_eq!(databases[0]["state"], "interrupted", "{databases:?}");
    assert_eq!(databases[1]["state"], "capturing", "{databases:?}");
    let shop = fs::read_dir(world.path("replicas/shop/generations")).unwrap();
    assert_eq!(shop.count(), 1);

    fs::remove_file(world.path("replicas/app")).unwrap();
    fs::rename(world.path("away"), world.path("replicas/app")).unwrap();
    await_sync(&world, &mut daemon, "app");
    assert_eq!(daemon.term(), 0);
}

/// What a process has used so far.
struct Usage {
    cpu: Duration,
    /// Bytes of its own; what is mapped from files is shared.
    memory: u64,
}

impl Usage {
    fn of(daemon: &Running) -> Self {
        let proc = PathBuf::from(format!("/proc/{}", daemon.pid()));
        let stat = fs::read_to_string(proc.join("stat")).unwrap();
        // The name, in parentheses, may hold anything; user and system time come 11 fields later.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|it| it.parse::<u64>().unwrap())
            .sum();
        let status = fs::read_to_string(proc.join("status")).unwrap();
        let anonymous = status
            .lines()
            .find(|line| line.starts_with("RssAnon"))
            .unwrap();
        let kib: u64 = anonymous
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        Self {
            // A tick of /proc is 10 ms on every Linux.
            cpu: Duration::from_millis(ticks * 10),
            memory: kib << 10,
        }
    }
}

/// How much of a core a process uses for so long.
fn percent_of_a_core(daemon: &Running, time: Duration) -> f64 {
    let (start, before) = (Instant::now(), Usage::of(daemon).cpu);
    wait_until(LONG, "the time to pass", || start.elapsed() >= time);
    let used = Usage::of(daemon).cpu - before;
    used.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0
}

/// README: "200 idle databases in one process take less than 1 % of a core and less than 100 MB,
/// and ask nothing of their stores until something falls due."
#[test]
fn two_hundred_idle_databases_cost_next_to_nothing() {
    const TIMES: usize = 12;
    const TIME: Duration = Duration::from_secs(10);
    let world = World::alone();
    make(&world, "seed");
    world.sql("seed.db", "PRAGMA wal_checkpoint(TRUNCATE)");
    let names: Vec<String> = (0..200).map(|n| format!("db{n}")).collect();
    for name in &names {
        fs::copy(world.path("seed.db"), world.path(&format!("{name}.db"))).unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    config(&world, &names);
    let began = Instant::now();
    let mut daemon = world.replicate("--config fleet.toml");
    wait_until(LONG, "all first snapshots", || {
        assert!(daemon.is_running(), "the daemon ended");
        // Some are started later than others; those that are not there yet are `starting`.
        let (databases, _) = status(&world, "--config fleet.toml");
        let is_there = |it: &Value| it["replicas"][0]["state"] == "replicating";
        databases.iter().all(is_there)
    });
    println!("first snapshots of 200 databases: {:?}", began.elapsed());
    // Rested: the `-wal` files are empty, and the state of the files is noted.
    wait_until(LONG, "all databases to rest", || {
        let noted = |name: &&str| {
            world
                .path(&format!(".{name}.db-sqlrepl/capture.json"))
                .exists()
        };
        names.iter().all(noted)
    });
    let (objects, requests) = (world.objects("replicas/db0"), world.requests());
    // What else runs on the machine can only add: the least of several times is what they take.
    let percent = (0..TIMES).map(|_| percent_of_a_core(&daemon, TIME));
    let mut percent = percent.inspect(|percent| println!("{percent:.2} % of a core"));
    let is_little = percent.any(|percent| percent < 1.0);
    let memory = Usage::of(&daemon).memory;
    println!("{} MB", memory / 1_000_000);
    assert_eq!(world.requests(), requests);
    assert_eq!(world.objects("replicas/db0"), objects);
    assert!(is_little, "more than 1 % of a core, {TIMES} times");
    assert!(memory < 100_000_000, "{memory} bytes");
    // However many rest, a commit to one of them is captured.
    for name in ["db0", "db77", "db199"] {
        insert(&world, name, "awake");
        await_sync(&world, &mut daemon, name);
        assert_eq!(newest(&world, name), "awake");
    }
    assert_eq!(daemon.term(), 0);
}
