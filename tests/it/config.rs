//! The config file: what it may say, and what commands make of it.

use crate::program::{LONG, Running, run, wait_until};
use crate::s3_server::{self, Server};
use crate::world::{Mount, World};
use serde_json::Value;
use std::fs;

/// Nobody listens here, so a replica there is away.
const NOWHERE: &str = "s3://bucket/app?endpoint=http://127.0.0.1:1&region=us-east-1";

/// A world with `app.db` and a daemon on it that ran and stopped: what was written is in
/// `backup/one`; then one more commit, which is only in `backup/two`, as all before it is not.
fn two_replicas() -> World {
    let world = World::new();
    world.sample();
    for (place, spool, version) in [("one", "spool1", "first"), ("two", "spool2", "second")] {
        let mut daemon = replicate(&world, &format!("backup/{place} --meta-path {spool}"));
        world.sql(
            "app.db",
            &format!("UPDATE t SET v = '{version}' WHERE id = 1"),
        );
        assert_eq!(daemon.term(), 0);
    }
    world
}

/// A daemon on `app.db` that captures.
fn replicate(world: &World, arguments: &str) -> Running {
    let daemon = world.replicate(&format!("app.db {arguments} --sync-interval 50ms"));
    let spool = arguments.split_once("--meta-path ").unwrap().1;
    wait_until(LONG, "the first sync", || {
        world
            .sqlrepl(&format!("sync --meta-path {spool} x.db"))
            .code
            == 0
    });
    daemon
}

/// Writes `c.toml`: `app.db` with replicas at these places, in this order.
fn config(world: &World, replicas: &[(&str, &str)]) {
    let mut text = "[[db]]\npath = \"app.db\"\nmeta-path = \"spool1\"\n".to_owned();
    for (name, place) in replicas {
        let key = if place.contains("://") { "url" } else { "path" };
        text += &format!("[[db.replica]]\nname = \"{name}\"\n{key} = \"{place}\"\n");
    }
    fs::write(world.path("c.toml"), text).unwrap();
}

fn version(world: &World, database: &str) -> String {
    world.sql(database, "SELECT v FROM t WHERE id = 1")
}

fn delete(world: &World, database: &str) {
    for suffix in ["", "-wal", "-shm"] {
        // Not all of them are there.
        fs::remove_file(world.path(&format!("{database}{suffix}"))).ok();
    }
}

#[test]
fn a_wrong_file_stops_every_command_and_names_file_and_line() {
    let world = World::new();
    let wrong = "[[db]]\npath = \"app.db\"\n[[db.replica]]\npth = \"x\"\n";
    fs::write(world.path("c.toml"), wrong).unwrap();
    let sentence = "c.toml:4: [[db.replica]] has no key \"pth\"; did you mean path?";
    for command in [
        "config",
        "config --check",
        "databases",
        "restore app",
        "points app",
        "sync app",
        "mount mnt",
        "replicate app.db backup/app",
    ] {
        world
            .sqlrepl(&format!("--config c.toml {command}"))
            .fails(2, sentence);
        run(world.ours(command).env("SQLREPL_CONFIG", "c.toml")).fails(2, sentence);
    }
    world
        .sqlrepl("config --config missing.toml")
        .fails(2, "read config file missing.toml: No such file");
    world.sqlrepl("--config c.toml version").ok();
}

#[test]
fn values_take_words_from_the_environment() {
    let world = World::new();
    let text = "[[db]]\npath = \"${FOLDER}/app.db\"\nname = \"$$${NAME}\"\n[[db.replica]]\n\
                path = \"b\"\n";
    fs::write(world.path("c.toml"), text).unwrap();
    let check = "config --check --config c.toml";
    world
        .sqlrepl(check)
        .fails(2, "c.toml:2: path: ${FOLDER} is not set in the environment");
    let mut command = world.ours(&format!("{check} --json"));
    let printed = run(command.env("FOLDER", "/data").env("NAME", "shop")).ok();
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed["db"][0]["path"], "/data/app.db");
    assert_eq!(printed["db"][0]["name"], "$shop");
    let file = fs::canonicalize(world.path("c.toml")).unwrap();
    assert_eq!(printed["file"], file.to_str().unwrap());
    // Below the file, wherever the command is started.
    let place = file.with_file_name("b");
    assert_eq!(
        printed["db"][0]["replica"][0]["path"],
        place.to_str().unwrap()
    );
}

#[test]
fn what_is_printed_is_a_config_file_that_says_the_same() {
    let world = World::new();
    config(&world, &[("a", "backup/app"), ("b", NOWHERE)]);
    let printed = world.sqlrepl("config --config c.toml").ok();
    assert!(printed.starts_with("# c.toml\n"), "{printed}");
    fs::write(world.path("d.toml"), &printed).unwrap();
    let again = world.sqlrepl("config --check --config d.toml").ok();
    assert_eq!(printed.replace("# c.toml", "# d.toml"), again);
}

#[test]
fn databases_that_share_what_is_ones_own_are_refused() {
    let world = World::new();
    let database = |path: &str, replica: &str| {
        format!("[[db]]\npath = \"{path}\"\n[[db.replica]]\npath = \"{replica}\"\n")
    };
    for (text, sentence) in [
        (
            database("a/app.db", "x") + &database("b/app.db", "y"),
            "two databases have the name \"app\"",
        ),
        (
            database("a.db", "x") + &database("./a.db", "y"),
            "are one file",
        ),
        (
            database("a.db", "x") + &database("b.db", "x/y"),
            "replica \"x\" of database a lies around replica \"x/y\" of database b",
        ),
    ] {
        fs::write(world.path("c.toml"), text).unwrap();
        world
            .sqlrepl("config --check --config c.toml")
            .fails(2, sentence);
    }
}

/// README: "Secrets from a config file appear in no message, log or listing."
#[test]
fn no_secret_is_printed_or_logged() {
    let world = World::new();
    world.sample();
    fs::create_dir_all(world.path("buckets/bucket")).unwrap();
    let server = Server::start(&world.path("buckets"));
    let url = format!(
        "s3://bucket/app?endpoint={}&region={}",
        server.endpoint(),
        s3_server::REGION
    );
    let text = format!(
        "access-key-id = \"AKIAWRONG\"\nsecret-access-key = \"${{SECRET}}\"\n[log]\n\
         level = \"trace\"\n[[db]]\npath = \"app.db\"\n[[db.replica]]\nurl = \"{url}\"\n\
         [[db.replica]]\nname = \"own\"\nbucket = \"bucket\"\npath = \"own\"\n\
         endpoint = \"{}\"\nregion = \"us-east-1\"\naccess-key-id = \"AKIAOWN\"\n\
         secret-access-key = \"own-${{SECRET}}\"\n",
        server.endpoint()
    );
    fs::write(world.path("c.toml"), text).unwrap();
    for (command, code) in [
        ("config", 0),
        ("config --check", 0),
        ("config --check --json", 0),
        ("points app", 1),
        ("points app --replica own", 1),
        ("restore app -o out.db", 1),
        ("databases", 1),
        ("databases --json", 1),
        ("mount mnt", 1),
        ("sync app", 1),
    ] {
        fs::create_dir_all(world.path("mnt")).unwrap();
        let mut command = world.ours(&format!("--config c.toml {command}"));
        let output = run(command.env("SECRET", "hunter2").env("SQLREPL_LOG", "trace"));
        assert_eq!(output.code, code, "{output}");
        assert!(!output.to_string().contains("hunter2"), "{output}");
    }
    // A daemon, too, whose key is refused; the place is given on the command line.
    let place = format!("replicate --config c.toml app.db {url}");
    let mut command = world.ours(&place);
    let output = run(command.env("SECRET", "hunter2"));
    assert_eq!(output.code, 1, "{output}");
    assert!(!output.to_string().contains("hunter2"), "{output}");
    let printed = run(world
        .ours("config --config c.toml")
        .env("SECRET", "hunter2"))
    .ok();
    assert_eq!(printed.matches("\"***\"").count(), 2, "{printed}");
}

#[test]
fn a_database_is_restored_by_its_name_or_path_to_where_it_belongs() {
    let world = two_replicas();
    config(&world, &[("one", "backup/one"), ("two", "backup/two")]);
    let ours = |arguments: &str| world.sqlrepl(&format!("--config c.toml {arguments}"));
    ours("restore app").fails(2, "app.db exists");
    ours("restore app --if-db-not-exists").ok();
    let said = ours("restore app -o out.db --replica one").ok();
    assert!(said.starts_with("restored one as of "), "{said}");
    assert_eq!(version(&world, "out.db"), "first");
    ours("restore app.db -o two.db --replica two").ok();
    assert_eq!(version(&world, "two.db"), "second");
    ours("restore app --replica three").fails(2, "has no replica three; it has one, two");
    delete(&world, "app.db");
    fs::write(world.path("app.db-wal"), "of an earlier database").unwrap();
    ours("restore app").fails(2, "app.db-wal");
    fs::remove_file(world.path("app.db-wal")).unwrap();
    ours("restore app --replica two").ok();
    assert_eq!(version(&world, "app.db"), "second");
    // A replica says nothing of where its database belongs.
    ours("restore backup/one").fails(2, "give -o PATH, or a database of the config file");
    ours("restore backup/one --replica one -o x.db").fails(2, "--replica picks");
    ours("restore shop").fails(3, "no database of ");
    for listing in ["points", "generations", "snapshots", "wal"] {
        let of_name = ours(&format!("{listing} app --json")).ok();
        assert_eq!(of_name, ours(&format!("{listing} backup/one --json")).ok());
        let of_two = ours(&format!("{listing} app --replica two --json")).ok();
        assert_eq!(of_two, ours(&format!("{listing} backup/two --json")).ok());
    }
}

/// README: "`restore` of the newest moment looks at all replicas of a database and takes the one
/// that goes furthest."
#[test]
fn a_replica_that_others_have_left_behind_is_not_taken_for_the_newest() {
    let world = two_replicas();
    let end = world.points_of("backup/one").pop().unwrap().time;
    let ours = |arguments: &str| world.sqlrepl(&format!("--config c.toml {arguments}"));
    config(
        &world,
        &[
            ("one", "backup/one"),
            ("two", "backup/two"),
            ("new", "backup/new"),
        ],
    );
    for (to, moment) in [("a.db", ""), ("b.db", "--timestamp now")] {
        let restored = ours(&format!("restore app -o {to} {moment}"));
        let said = format!("replica one is passed over: it ends at {end}");
        assert!(restored.stderr.contains(&said), "{restored}");
        assert!(restored.ok().starts_with("restored two as of "));
        assert_eq!(version(&world, to), "second");
    }
    // What the first one has is not asked of others; of those that go equally far it is the first.
    let restored = ours(&format!("restore app -o old.db --timestamp {end}"));
    assert!(!restored.stderr.contains("passed over"), "{restored}");
    assert!(restored.ok().starts_with("restored one as of "));
    assert!(world.run("cp", &["-r", "backup/one", "backup/again"]).code == 0);
    config(
        &world,
        &[
            ("one", "backup/one"),
            ("again", "backup/again"),
            ("away", NOWHERE),
        ],
    );
    let restored = ours("restore app -o same.db");
    assert!(
        restored.stderr.contains("replica away is passed over: "),
        "{restored}"
    );
    assert!(restored.ok().starts_with("restored one as of "));
}

/// README: "`restore` of a database reads the first of its replicas that has the moment, and passes
/// over one that is away."
#[test]
fn a_replica_that_is_away_or_lacks_the_moment_is_passed_over() {
    let world = two_replicas();
    let old = world.points_of("backup/one").pop().unwrap();
    let ours = |arguments: &str| world.sqlrepl(&format!("--config c.toml {arguments}"));
    config(
        &world,
        &[
            ("away", NOWHERE),
            ("two", "backup/two"),
            ("one", "backup/one"),
        ],
    );
    let said = ours("restore app -o newest.db");
    assert!(
        said.stderr.contains("replica away is passed over: "),
        "{said}"
    );
    assert_eq!(version(&world, "newest.db"), "second");
    let restored = ours(&format!("restore app -o old.db --timestamp {}", old.time));
    assert!(
        restored.stderr.contains("replica two is passed over: "),
        "{restored}"
    );
    assert_eq!(version(&world, "old.db"), "first");
    let listed = ours(&format!(
        "points app --generation {} --json",
        old.generation
    ));
    assert!(listed.ok().contains(&old.txid));
    // Nobody can say that no replica has it while one is away.
    let unknown = ours("restore app -o never.db --timestamp 2001-01-01");
    let unknown = unknown.fails(1, "no replica has it: away: ");
    assert!(unknown.stderr.contains("; one: "), "{unknown}");
    config(&world, &[("two", "backup/two"), ("one", "backup/one")]);
    ours("restore app -o never.db --timestamp 2001-01-01").fails(3, "no replica has it: two: ");
    // One that lacks an object does not stand in the way of one that has it.
    let (lost, _) = world
        .objects("backup/two")
        .into_iter()
        .find(|(name, _)| name.contains("/snapshots/"))
        .unwrap();
    fs::write(world.path(&format!("backup/two/{lost}")), "damaged").unwrap();
    ours("restore app -o whole.db").ok();
    assert_eq!(version(&world, "whole.db"), "first");
}

#[test]
fn a_first_deploy_finds_nothing_to_restore_and_goes_on() {
    let world = World::new();
    config(&world, &[("a", "backup/one"), ("b", "backup/two")]);
    let ours = |arguments: &str| world.sqlrepl(&format!("--config c.toml {arguments}"));
    ours("restore app").fails(3, "no replica has it: a: ");
    let nothing = ours("restore app --if-replica-exists");
    assert_eq!(nothing.code, 0, "{nothing}");
    assert!(
        nothing.stderr.contains("nothing to restore yet"),
        "{nothing}"
    );
    let place = world.sqlrepl("restore --if-replica-exists -o app.db backup/app");
    assert_eq!(place.code, 0, "{place}");
    // A slip is no first deploy, and one that is away may hold something.
    ours("restore ap --if-replica-exists -o app.db").fails(3, "ap: ");
    config(&world, &[("a", "backup/one"), ("away", NOWHERE)]);
    ours("restore app --if-replica-exists").fails(1, "away: ");
    assert!(!world.path("app.db").exists());
    drop(world);
    // Once there is something, it must be found.
    let world = two_replicas();
    config(&world, &[("one", "backup/one")]);
    delete(&world, "app.db");
    let flags = "--if-replica-exists --if-db-not-exists";
    world
        .sqlrepl(&format!(
            "--config c.toml restore app {flags} --timestamp 2001-01-01"
        ))
        .fails(3, "");
    world
        .sqlrepl(&format!("--config c.toml restore app {flags}"))
        .ok();
    assert_eq!(version(&world, "app.db"), "first");
}

#[test]
fn sync_and_databases_ask_the_daemon_of_a_database_by_its_name() {
    let world = World::new();
    world.sample();
    config(&world, &[("one", "backup/one"), ("two", "backup/two")]);
    let ours = |arguments: &str| world.sqlrepl(&format!("--config c.toml {arguments}"));
    ours("sync app").fails(1, "no replicate runs with its spool in ");
    let listed = ours("databases").ok();
    assert_eq!(listed.lines().count(), 3, "{listed}");
    let mut daemon = replicate(&world, "backup/one --meta-path spool1");
    ours("sync app").ok();
    ours("sync app.db").ok();
    ours("sync app --replica s3://AKIA:hun/ter2@bucket")
        .fails(1, "has no replica s3://***@bucket; it has backup/one");
    let listed: Value = serde_json::from_str(&ours("databases --json").ok()).unwrap();
    let (one, two) = (&listed[0], &listed[1]);
    assert_eq!(one["database"], "app");
    assert_eq!(one["replica"], "one");
    let newest = world.points_of("backup/one").pop().unwrap();
    assert_eq!(one["newest"], newest.time.as_str());
    assert!(one["age"].as_f64().is_some(), "{one}");
    assert!(one["lag"].as_f64().is_some(), "{one}");
    assert_eq!(one["fencing"], "put-if-absent");
    assert!(two["newest"].is_null() && two["lag"].is_null(), "{two}");
    assert_eq!(daemon.term(), 0);
}

#[test]
fn the_databases_of_the_file_are_mounted_by_their_names() {
    let world = two_replicas();
    world.sql("shop.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    let mut shop = world.replicate("shop.db backup/shop --meta-path spool3");
    wait_until(LONG, "the first sync", || {
        world.sqlrepl("sync --meta-path spool3 x.db").code == 0
    });
    assert_eq!(shop.term(), 0);
    config(
        &world,
        &[
            ("away", NOWHERE),
            ("two", "backup/two"),
            ("one", "backup/one"),
        ],
    );
    let more = "[[db]]\npath = \"shop.db\"\nname = \"the shop\"\n[[db.replica]]\n\
                path = \"backup/shop\"\n[[db]]\npath = \"new.db\"\n[[db.replica]]\n\
                path = \"backup/new\"\n";
    let text = fs::read_to_string(world.path("c.toml")).unwrap() + more;
    fs::write(world.path("c.toml"), text).unwrap();
    // The first look waits for what is away, but not for long.
    let is_ready = |mount: &Mount| mount.program.stdout().contains("mounted 2 databases");
    let mut mounts = (0..3).map(|_| world.mount_at("--config c.toml mount mnt"));
    let mut mount = mounts.find(is_ready).expect("the first look took long");
    assert!(
        mount
            .program
            .stderr()
            .contains("a replica is passed over: ")
    );
    assert_eq!(mount.names(""), ["app", "the shop"]);
    assert_eq!(version(&world, "mnt/app/latest.db"), "second");
    let tables = world.sql("mnt/the shop/latest.db", "SELECT name FROM sqlite_schema");
    assert_eq!(tables, "t");
    // A database that comes later is there when it is looked for.
    world.sql("new.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    let mut new = world.replicate("new.db backup/new --meta-path spool4");
    wait_until(LONG, "the new database", || mount.names("").len() == 3);
    assert_eq!(new.term(), 0);
    assert_eq!(mount.interrupt(), 0);
}

#[test]
fn a_mount_starts_while_all_replicas_are_away_and_fills_later() {
    let world = two_replicas();
    fs::create_dir_all(world.path("buckets/bucket")).unwrap();
    fs::rename(world.path("backup/one"), world.path("buckets/bucket/app")).unwrap();
    let server = Server::start(&world.path("buckets"));
    let text = format!(
        "access-key-id = \"{}\"\nsecret-access-key = \"{}\"\n[[db]]\npath = \"app.db\"\n\
         [[db.replica]]\nurl = \"s3://bucket/app\"\nendpoint = \"{}\"\nregion = \"{}\"\n",
        s3_server::ACCESS_KEY_ID,
        s3_server::SECRET_ACCESS_KEY,
        server.endpoint(),
        s3_server::REGION
    );
    fs::write(world.path("c.toml"), text).unwrap();
    server.down();
    let mut mount = world.mount_at("--config c.toml mount mnt");
    assert!(
        mount
            .program
            .stdout()
            .contains("it fills when the replicas answer")
    );
    server.up();
    wait_until(LONG, "the database to appear", || {
        world.path("mnt/app/latest.db").exists()
    });
    assert_eq!(version(&world, "mnt/app/latest.db"), "first");
    assert_eq!(mount.interrupt(), 0);
}

#[test]
fn a_mount_without_source_needs_a_config_file_with_databases() {
    let world = World::new();
    fs::create_dir(world.path("mnt")).unwrap();
    fs::write(world.path("c.toml"), "").unwrap();
    world
        .sqlrepl("--config c.toml mount mnt")
        .fails(2, "has no [[db]], so there is nothing to mount");
}

#[test]
fn a_log_in_json_is_one_object_a_line_wherever_it_goes() {
    let world = World::new();
    world.sample();
    let is_json = |text: &str| {
        assert!(!text.is_empty());
        for line in text.lines() {
            let entry: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            assert!(entry["level"].is_string(), "{line}");
            // What says which database it is about stands under a key of its own.
            for span in entry["spans"].as_array().into_iter().flatten() {
                assert!(
                    span["database"].is_string() || span["replica"].is_string(),
                    "{line}"
                );
            }
        }
    };
    fs::write(world.path("c.toml"), "[log]\nformat = \"json\"\n").unwrap();
    let mut daemon = replicate(&world, "backup/one --config c.toml --meta-path spool1");
    assert_eq!(daemon.term(), 0);
    is_json(&daemon.stderr());
    let refused = world.sqlrepl("--config c.toml restore nowhere -o x.db");
    assert_eq!(refused.code, 3, "{refused}");
    is_json(&refused.stderr);
    // Whatever is not logged, a failure is said.
    let mut command = world.ours("--config c.toml restore nowhere -o x.db");
    let refused = run(command.env("SQLREPL_LOG", "off"));
    assert!(
        refused.stderr.starts_with("sqlrepl: nowhere: "),
        "{refused}"
    );
    let file = "[log]\nformat = \"json\"\ntarget = \"./s.log\"\nlevel = \"error\"\n";
    fs::write(world.path("c.toml"), file).unwrap();
    let mut command = world.ours("replicate app.db backup/one --config c.toml --meta-path spool1");
    let mut daemon = Running::start(command.env("SQLREPL_LOG", "info"), &world.logs());
    wait_until(LONG, "the log file to say something", || {
        fs::read_to_string(world.path("s.log")).is_ok_and(|log| log.contains("replicating"))
    });
    assert_eq!(daemon.term(), 0);
    assert_eq!(daemon.stderr(), "");
    is_json(&fs::read_to_string(world.path("s.log")).unwrap());
    // Without the variable the file's level is in force.
    fs::write(world.path("s.log"), "").unwrap();
    let mut daemon = replicate(&world, "backup/one --config c.toml --meta-path spool1");
    assert_eq!(daemon.term(), 0);
    assert_eq!(fs::read_to_string(world.path("s.log")).unwrap(), "");
    // What other commands say of themselves is for who started them.
    let refused = world.sqlrepl("--config c.toml restore nowhere -o x.db");
    is_json(&refused.stderr);
}
