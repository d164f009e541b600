//! Every way to name a moment in the mount, what is said beside the moments, and what looking
//! costs.

use crate::program::{LONG, wait_until};
use crate::s3_server::Verb;
use crate::world::{Mount, Point, VERSION, World};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// A replica of the sample and some more commits, whose daemon has ended.
fn versions(world: &World, count: usize) -> Vec<Point> {
    world.sample();
    let mut daemon = world.daemon();
    for version in 1..=count {
        let update = format!("UPDATE t SET v = 'version {version}' WHERE id = 1");
        world.sql("app.db", &update);
    }
    world.sync();
    assert_eq!(daemon.term(), 0);
    world.points()
}

fn dashes(time: &str) -> String {
    format!("{}T{}", &time[..10], time[11..].replace(':', "-"))
}

/// README: "Every commit lies in `by-time/2026/11/20/17/` and, under its generation and txid, in
/// `by-txid/`, and is the same file under all names."
#[test]
fn every_commit_is_found_by_time_and_by_txid() {
    let world = World::new();
    let points = versions(&world, 5);
    let mount = world.mount();
    for (n, point) in points.iter().enumerate() {
        let name = dashes(&point.time);
        let (date, hour) = (name[..10].replace('-', "/"), &name[11..13]);
        let folder = format!("app/by-time/{date}/{hour}");
        assert!(
            mount.names(&folder).contains(&format!("{name}.db")),
            "{folder}"
        );
        let by_txid = format!("app/by-txid/{}-{}", point.generation, point.txid);
        let version = match n {
            0 => "row 1".to_owned(),
            n => format!("version {n}"),
        };
        let inode = |path: &str| fs::metadata(world.path("mnt").join(path)).unwrap().ino();
        let names = [
            &*format!("{folder}/{name}"),
            &by_txid,
            &format!("app/{name}"),
        ];
        for path in names.map(|path| format!("{path}.db")) {
            assert_eq!(
                world.sql(&format!("mnt/{path}"), VERSION),
                version,
                "{path}"
            );
            assert_eq!(inode(&path), inode(&format!("app/{name}.db")), "{path}");
        }
    }
    assert_eq!(mount.names("app/by-txid").len(), points.len());
    let found = world
        .run("find", &["mnt/app/by-time", "-name", "*.db"])
        .ok();
    assert_eq!(found.lines().count(), points.len());
    for nothing in [
        "by-time/2001",
        "by-time/x",
        "by-txid/ffff.db",
        "by-txid/x.db",
    ] {
        let error = fs::metadata(world.path("mnt/app").join(nothing)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{nothing}");
    }
}

/// README: "Any time that can be read is a name, listed or not."
#[test]
fn a_moment_is_found_by_offset_fraction_epoch_and_distance() {
    let world = World::new();
    let points = versions(&world, 3);
    let _mount = world.mount();
    let second = &points[2];
    // 2026-11-20T17:45:12.345678Z, two hours east of Greenwich.
    let script = "import datetime, sys
at = datetime.datetime.fromisoformat(sys.argv[1].replace('Z', '+00:00'))
east = datetime.timezone(datetime.timedelta(hours=2))
print(at.astimezone(east).isoformat(timespec='microseconds'))
micros = round((at - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc))
               / datetime.timedelta(microseconds=1))
print('@%d.%06d' % divmod(micros, 1000000))";
    let printed = world
        .run("/usr/bin/python3", &["-c", script, &second.time])
        .ok();
    for name in printed.lines() {
        assert_eq!(
            world.sql(&format!("mnt/app/{name}.db"), VERSION),
            "version 2",
            "{name}"
        );
    }
    for name in ["0s-ago", "now", "today", "latest", "2099-12"] {
        assert_eq!(
            world.sql(&format!("mnt/app/{name}.db"), VERSION),
            "version 3",
            "{name}"
        );
    }
    for early in ["1w-ago", "@1", "2001"] {
        let path = world.path("mnt/app").join(format!("{early}.db"));
        let error = fs::metadata(path).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{early}");
    }
}

#[test]
fn a_time_before_the_history_is_said_in_the_log_once() {
    let world = World::new();
    versions(&world, 1);
    let mut mount = world.mount();
    for year in 2001..2010 {
        let path = world.path("mnt/app").join(format!("{year}-01-01.db"));
        assert!(fs::metadata(path).is_err());
    }
    assert_eq!(mount.interrupt(), 0);
    let log = mount.program.stderr();
    let said: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("no such file"))
        .collect();
    assert_eq!(said.len(), 1, "{log}");
    assert!(
        said[0].contains("2001-01-01T23:59:59.999999Z lies before the history"),
        "{log}"
    );
}

/// README: "`--list all` lists every commit, `--list none` none; all have names all the same."
#[test]
fn the_directory_of_a_database_lists_what_was_asked_for() {
    let world = World::new();
    let points = versions(&world, 130);
    for (list, count) in [("", 100), ("--list all", points.len()), ("--list none", 0)] {
        let mount = world.mount_at(&format!("mount {list} replicas mnt"));
        let mut names = mount.names("app");
        names.retain(|name| name.starts_with("20"));
        match list {
            // One more of each minute before the hundred.
            "" => assert!(
                (count..count + 10).contains(&names.len()),
                "{}",
                names.len()
            ),
            _ => assert_eq!(names.len(), count, "{list}"),
        }
        let newest = points[points.len() - names.len().min(100)..].iter();
        let newest: Vec<String> = newest.map(|p| dashes(&p.time) + ".db").collect();
        assert!(names.ends_with(&newest), "{list}");
        let third = format!("mnt/app/{}.db", points[3].time);
        assert_eq!(world.sql(&third, VERSION), "version 3", "{list}");
    }
}

/// README: "The extended attributes `user.sqlrepl.txid`, `.timestamp`, `.generation` and
/// `.snapshot` say which moment a file is."
#[test]
fn extended_attributes_say_which_moment_a_file_is() {
    let world = World::new();
    let points = versions(&world, 2);
    let _mount = world.mount();
    let script = "import os, sys
for name in sorted(os.listxattr(sys.argv[1])):
    print(name, os.getxattr(sys.argv[1], name).decode())
try:
    os.getxattr(sys.argv[1], 'user.other')
except OSError as e:
    print(e.strerror)
print(os.listxattr('mnt/app'))";
    for name in ["2s-ago", "latest", &points[1].time] {
        let name = if name == "2s-ago" {
            &points[2].time
        } else {
            name
        };
        let path = format!("mnt/app/{name}.db");
        let printed = world.run("/usr/bin/python3", &["-c", script, &path]).ok();
        let point = points.iter().find(|point| point.time == name);
        let point = point.unwrap_or(&points[2]);
        let expect = format!(
            "user.sqlrepl.generation {}\nuser.sqlrepl.snapshot {}\nuser.sqlrepl.timestamp {}\n\
             user.sqlrepl.txid {}\nNo data available\n[]\n",
            point.generation, points[0].txid, point.time, point.txid
        );
        assert_eq!(printed, expect, "{name}");
    }
}

fn status(world: &World, path: &str) -> Value {
    let text = fs::read_to_string(world.path("mnt").join(path)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// README: "`.sqlrepl/status.json` says what is known of a database, how new that is, and why no
/// more; `.sqlrepl/points.jsonl` has one line for each restore point."
#[test]
fn status_and_points_are_files_beside_the_moments() {
    let world = World::new();
    let points = versions(&world, 4);
    let _mount = world.mount();
    let shown = status(&world, "app/.sqlrepl/status.json");
    assert_eq!(shown["database"], "app");
    assert_eq!(shown["state"], "known");
    assert_eq!(shown["points"], points.len());
    let newest = points.last().unwrap();
    assert_eq!(shown["newest"]["txid"], *newest.txid);
    assert_eq!(shown["newest"]["size"], newest.size);
    world
        .run("cp", &["mnt/app/.sqlrepl/points.jsonl", "points.jsonl"])
        .ok();
    let text = fs::read_to_string(world.path("points.jsonl")).unwrap();
    assert_eq!(text.lines().count(), points.len());
    for (line, point) in text.lines().zip(&points) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["generation"], *point.generation);
        assert_eq!(line["txid"], *point.txid);
        assert_eq!(line["time"], *point.time);
        assert_eq!(line["pages"], point.pages);
        assert_eq!(line["size"], point.size);
    }
    let size = fs::metadata(world.path("mnt/app/.sqlrepl/points.jsonl"))
        .unwrap()
        .len();
    assert_eq!(size, text.len() as u64);

    world.take_replica_away();
    wait_until(LONG, "the status to say that the store is away", || {
        status(&world, "app/.sqlrepl/status.json")["state"] == "failing"
    });
    let shown = status(&world, "app/.sqlrepl/status.json");
    assert!(shown["error"].is_string(), "{shown}");
    assert_eq!(shown["newest"]["txid"], *newest.txid, "what is known stays");
    world.bring_replica_back();
    wait_until(LONG, "the status to say that it is back", || {
        status(&world, "app/.sqlrepl/status.json")["state"] == "known"
    });
}

/// README: "A store that is away does not stop a mount: `.sqlrepl/status.json` in the mount says
/// why it is empty, and it fills when the store answers."
#[test]
fn the_status_of_an_empty_mount_says_why_it_is_empty() {
    let world = World::on_s3();
    versions(&world, 1);
    world.server().down();
    let mount = world.mount();
    wait_until(LONG, "the reason", || {
        status(&world, ".sqlrepl/status.json")["error"].is_string()
    });
    let shown = status(&world, ".sqlrepl/status.json");
    assert_eq!(shown["state"], "unknown");
    assert!(
        shown["error"].as_str().unwrap().contains("s3://replicas"),
        "{shown}"
    );
    world.server().up();
    // Until then it cannot even be listed.
    wait_until(LONG, "the mount to fill", || {
        fs::metadata(world.path("mnt/app/latest.db")).is_ok()
    });
    assert_eq!(mount.names(""), ["app"]);
    let shown = status(&world, ".sqlrepl/status.json");
    assert_eq!(shown["state"], "known");
    assert_eq!(shown["databases"][0]["database"], "app");
}

/// How often the kernel asked a mount for something.
fn calls(world: &World, what: &str) -> u64 {
    status(world, ".sqlrepl/status.json")["calls"][what]
        .as_u64()
        .unwrap()
}

fn reads(world: &World) -> u64 {
    world
        .server()
        .counts()
        .calls
        .get(&Verb::Get)
        .copied()
        .unwrap_or(0)
}

/// README: "`ls`, `stat`, `find` and whatever walks through the whole mount read no page."
#[test]
fn walking_through_the_whole_mount_reads_no_page() {
    let world = World::on_s3();
    let points = versions(&world, 20);
    let mount = world.mount();
    // The first look at a database reads its timelines.
    assert!(mount.names("app").len() > 20);
    let before = reads(&world);
    for (program, arguments) in [
        ("ls", &["-lR", "mnt"][..]),
        ("find", &["mnt", "-ls"]),
        ("find", &["mnt", "-newermt", "2001-01-01", "-size", "+1"]),
        ("du", &["-a", "mnt"]),
        ("stat", &["-L", "mnt/app/latest.db"]),
    ] {
        let printed = world.run(program, arguments).ok();
        assert!(
            printed.contains(".db"),
            "{program} {arguments:?}: {printed}"
        );
    }
    assert_eq!(reads(&world), before);
    assert_eq!(calls(&world, "misses"), 0);
    assert_eq!(
        world.sql(&format!("mnt/app/{}.db", points[7].time), VERSION),
        "version 7"
    );
    assert!(reads(&world) > before, "a query does");
}

/// README: "A statement on what was read before asks nothing of the store."
#[test]
fn a_warm_statement_asks_nothing_of_the_store_and_little_of_the_mount() {
    let world = World::on_s3();
    let points = versions(&world, 3);
    let _mount = world.mount();
    let path = format!("mnt/app/{}.db", points[2].time);
    let query = "SELECT count(*), sum(length(v)) FROM t";
    let expect = world.sql(&path, query);
    let requests = world.server().requests();
    let before = ["lookups", "misses", "opens"].map(|what| calls(&world, what));
    let script = "import sqlite3, sys
for _ in range(100):
    print(*sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchone(), sep='|')";
    let printed = world
        .run("/usr/bin/python3", &["-c", script, &path, query])
        .ok();
    assert_eq!(printed.lines().collect::<Vec<_>>(), vec![&*expect; 100]);
    let after = ["lookups", "misses", "opens"].map(|what| calls(&world, what));
    // Reading the counts asks for names, too, and looks for databases.
    let lookups = after[0] - before[0];
    assert!(lookups < 20, "{lookups} lookups for 100 opens");
    assert_eq!(after[1], before[1]);
    assert!(after[2] - before[2] >= 100);
    let listed = |call: &crate::s3_server::Call| call.verb == Verb::List;
    let asked = world.server().calls()[requests as usize..].to_vec();
    assert!(asked.iter().all(listed), "{asked:?}");
}

/// README: "`latest.db` is a link to the newest commit: who opens it reads one commit to the end."
#[test]
fn a_reader_of_latest_never_sees_half_a_transaction() {
    const OPENS: u64 = 2_000;
    let world = World::new();
    let create = "PRAGMA journal_mode=WAL;
        CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER, filler BLOB);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
        INSERT INTO account SELECT i, 100, randomblob(500) FROM n";
    world.sql("app.db", create);
    let mut daemon = world.daemon_with("--sync-interval 20ms");
    world.sync();
    let mount = world.mount();
    let transfers = "import random, sqlite3, os
db = sqlite3.connect('app.db', isolation_level=None, timeout=10)
while not os.path.exists('stop'):
    a, b, sum = random.randint(1, 100), random.randint(1, 100), random.randint(1, 50)
    db.execute('BEGIN IMMEDIATE')
    db.execute('UPDATE account SET balance = balance - ? WHERE id = ?', (sum, a))
    db.execute('UPDATE account SET balance = balance + ? WHERE id = ?', (sum, b))
    db.execute('COMMIT')";
    let opens = format!(
        "import os, sqlite3, time
seen, opens, began = set(), 0, time.monotonic()
while opens < {OPENS} or len(seen) < 10:
    assert opens < {OPENS} or time.monotonic() - began < 300, len(seen)
    db = sqlite3.connect('mnt/app/latest.db')
    total, count = db.execute('SELECT sum(balance), count(*) FROM account').fetchone()
    assert (total, count) == (10000, 100), (total, count)
    db.close()
    opens += 1
    seen.add(os.readlink('mnt/app/latest.db'))
print(len(seen))"
    );
    let seen = std::thread::scope(|scope| {
        let writer = scope.spawn(|| world.run("/usr/bin/python3", &["-c", transfers]));
        let seen = world.run("/usr/bin/python3", &["-c", &opens]);
        fs::write(world.path("stop"), "").unwrap();
        writer.join().unwrap().ok();
        seen.ok()
    });
    let seen: u64 = seen.trim().parse().unwrap();
    assert!(seen >= 10, "latest.db went on {seen} times");
    drop::<Mount>(mount);
    assert_eq!(daemon.term(), 0);
}
