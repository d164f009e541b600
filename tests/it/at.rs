//! A moment behind an `@`, in place of `--timestamp` or `--txid`.

use crate::program::{LONG, run, wait_until};
use crate::world::{VERSION, World, three_versions};
use std::fs;

/// README: "A moment behind an `@` is what `--timestamp` or `--txid` say; a place that exists as it
/// is written wins."
#[test]
fn a_moment_behind_an_at_is_what_the_options_say_and_a_place_as_it_is_written_wins() {
    let world = three_versions();
    let points = world.points();
    let two = &points[2];
    let version = |n: usize, arguments: &str| {
        let to = format!("out.{n}.db");
        world.sqlrepl(&format!("restore -o {to} {arguments}")).ok();
        world.sql(&to, VERSION)
    };
    let day = &points[3].time[..10];
    for (n, (at, expected)) in [
        (two.time.clone(), "two"),
        (two.time.replace('Z', "+00:00"), "two"),
        (two.txid.clone(), "two"),
        (two.txid.trim_start_matches('0').to_owned(), "two"),
        (
            format!("{}-{}", points[1].generation, points[1].txid),
            "one",
        ),
        (day.to_owned(), "three"),
        ("0s-ago".to_owned(), "three"),
        ("latest".to_owned(), "three"),
        ("9999999999".to_owned(), "three"),
        ("@9999999999".to_owned(), "three"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(version(n, &format!("replicas/app@{at}")), expected, "{at}");
    }
    // A directory of such a name is that directory, and has moments of its own.
    for name in ["backups@home", "backups@latest", "backups@1"] {
        world.run("cp", &["-r", "replicas/app", name]).ok();
        let queried = |arguments: &str| {
            let mut command = world.ours(&format!("query {arguments} --csv"));
            run(command.arg(VERSION)).ok()
        };
        assert_eq!(queried(name), "v\r\nthree\r\n", "{name}");
        assert_eq!(
            queried(&format!("{name}@{}", two.time)),
            "v\r\ntwo\r\n",
            "{name}"
        );
        assert_eq!(queried(&format!("./{name}/")), "v\r\nthree\r\n", "{name}");
    }
    world
        .sqlrepl(&format!("points backups@home@{}", two.txid))
        .ok();
}

#[test]
fn a_replica_whose_prefix_looks_like_a_moment_of_another_one_is_that_replica() {
    let world = World::on_s3();
    for (name, version) in [("team", "ours"), ("team@2", "theirs")] {
        let database = format!("{version}.db");
        let create = "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
        world.sql(&database, create);
        world.sql(&database, &format!("INSERT INTO t VALUES(1, '{version}')"));
        let mut daemon = world.replicate(&format!("{database} replicas/{name}"));
        wait_until(LONG, "a sync", || {
            assert!(daemon.is_running(), "the daemon ended");
            world.sqlrepl(&format!("sync {database}")).code == 0
        });
        assert_eq!(daemon.term(), 0);
    }
    for (place, version) in [
        ("team@2", "theirs"),
        ("team@now", "ours"),
        ("team@1", "ours"),
    ] {
        let mut command = world.ours(&format!("query --csv replicas/{place}"));
        let shown = run(command.arg("SELECT v FROM t")).ok();
        assert_eq!(shown, format!("v\r\n{version}\r\n"), "{place}");
    }
}

/// At the first start of a machine the replica of its own name is not there yet.
#[test]
fn if_replica_exists_takes_no_neighbour_for_a_replica_that_is_not_there_yet() {
    let world = three_versions();
    for moment in ["2", "now"] {
        let arguments = format!("restore -o x.db --if-replica-exists replicas/app@{moment}");
        let says = format!(
            "with --if-replica-exists say the moment with --timestamp or --txid, since {moment} \
             may belong to the name; a place whose own name has this @ ends with a /"
        );
        world.sqlrepl(&arguments).fails(2, &says);
    }
    world
        .sqlrepl("restore -o x.db --if-replica-exists replicas/app@2/")
        .ok();
    assert!(!world.path("x.db").exists());
}

#[test]
fn what_is_no_moment_or_is_said_twice_is_refused_with_the_remedy() {
    let world = three_versions();
    let neither = "behind the @, \"home\" is neither a time nor a txid: say a time such as \
                   2024-01-01T10:30:00Z, 2024-01-01, 5m-ago or latest, or a txid such as 1c; a \
                   place whose own name has this @ ends with a /";
    for (arguments, code, says) in [
        ("restore -o x.db replicas/app@home", 2, neither),
        ("points replicas/app@home", 2, neither),
        ("points s3://bucket/app@home", 2, neither),
        (
            "restore -o x.db backup@home --if-replica-exists",
            2,
            neither,
        ),
        ("compact replicas/app@home", 2, neither),
        (
            "restore -o x.db replicas/app@20230231",
            2,
            "\"20230231\" is no moment: the calendar",
        ),
        (
            "restore -o x.db replicas/app@now --timestamp now",
            2,
            "@now and --timestamp both say which moment: leave out one of them",
        ),
        (
            "points replicas/app@now --until now",
            2,
            "@now and --until both say which moment: leave out one of them",
        ),
        ("restore -o x.db replicas/app@ffffff", 3, "ffffff"),
        ("restore -o x.db replicas/app@2001-01-01", 3, "2001-01-01"),
        (
            "restore -o x.db nowhere@now",
            3,
            "nowhere: no such directory",
        ),
        ("restore -o x.db replicas/app@", 3, "app@"),
    ] {
        let refused = world.sqlrepl(arguments).fails(code, says);
        assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
    }
    assert!(!world.path("x.db").exists());
    // A directory that may come is waited for, also one with an @ of its own.
    let later = "restore -o x.db ./backup@home/ --if-replica-exists";
    world.sqlrepl(later).ok();
    let secret = world.sqlrepl("points s3://AKIAID:secret@beef");
    let secret = secret.fails(2, "a URL holds no credentials");
    assert!(!secret.stderr.contains("secret@"), "{secret}");
}

#[test]
fn points_end_with_the_moment_and_commands_about_all_moments_refuse_it() {
    let world = three_versions();
    let points = world.points();
    let newest = points[3].txid.clone();
    for (at, count) in [
        (points[2].time.clone(), 3),
        (points[2].txid.clone(), 3),
        (format!("{}-{}", points[1].generation, points[1].txid), 2),
        ("latest".to_owned(), 4),
        (newest, 4),
    ] {
        let shown = world.points_of(&format!("replicas/app@{at}"));
        assert_eq!(shown, points[..count], "{at}");
    }
    world
        .sqlrepl("points replicas/app@ffffff")
        .fails(3, "ffffff");
    for (command, says) in [
        (
            "generations",
            "`generations` lists the histories that all moments of a replica lie in: leave out \
             @5m-ago",
        ),
        (
            "compact",
            "`compact` merges all of a replica, and no single moment: leave out @5m-ago",
        ),
        (
            "retain",
            "`retain` decides about all moments of a replica, and --retention says which stay: \
             leave out @5m-ago",
        ),
        (
            "du",
            "`du` counts all bytes of a replica, which its moments share: leave out @5m-ago",
        ),
    ] {
        world
            .sqlrepl(&format!("{command} replicas/app@5m-ago"))
            .fails(2, says);
    }
}

#[test]
fn snapshots_and_wal_of_a_moment_list_what_reading_it_takes() {
    let world = World::new();
    world.sample();
    // Pages that no commit changes.
    let large = "CREATE TABLE large AS SELECT randomblob(9000) AS b FROM t";
    world.sql("app.db", large);
    let mut daemon = world.daemon();
    for version in ["one", "two", "three"] {
        let update = format!("UPDATE t SET v = '{version}' WHERE id = 1");
        world.sql("app.db", &update);
        world.sync();
    }
    assert_eq!(daemon.term(), 0);
    world.sqlrepl("compact --snapshot replicas/app").ok();
    let points = world.points();
    let listed = |arguments: &str| -> Vec<String> {
        let (command, options) = arguments.split_once(' ').unwrap();
        let column = if command == "wal" { "first" } else { "txid" };
        let entries = world.json(&format!("{command} {options}"));
        let column = entries.iter().map(|entry| entry[column].as_str().unwrap());
        column.map(str::to_owned).collect()
    };
    let txids: Vec<&str> = points.iter().map(|point| point.txid.as_str()).collect();
    assert_eq!(txids.len(), 4);
    let all = [txids[0], txids[3]];
    assert_eq!(listed("snapshots replicas/app"), all);
    let (two, newest) = (&points[2], &points[3]);
    for moment in [
        format!("replicas/app@{}", two.txid),
        format!("replicas/app@{}", two.time),
        format!("replicas/app --txid {}", two.txid),
        format!("replicas/app --timestamp {}", two.time),
        format!("replicas/app@{} --generation {}", two.time, two.generation),
    ] {
        assert_eq!(listed(&format!("snapshots {moment}")), all[..1], "{moment}");
        assert_eq!(listed(&format!("wal {moment}")), txids[1..=2], "{moment}");
    }
    // The later snapshot holds the pages that changed; its map names the first one for the others.
    let latest = format!("replicas/app@{}", newest.txid);
    assert_eq!(listed(&format!("snapshots {latest}")), all);
    assert!(listed(&format!("wal {latest}")).is_empty());
    for (arguments, code, says) in [
        ("replicas/app@ffffff", 3, "ffffff"),
        ("replicas/app@2001-01-01", 3, "2001-01-01"),
        (
            "replicas/app@now --txid 2",
            2,
            "@now and --txid both say which moment: leave out one of them",
        ),
    ] {
        for command in ["snapshots", "wal"] {
            world
                .sqlrepl(&format!("{command} {arguments}"))
                .fails(code, says);
        }
    }
}

#[test]
fn a_database_of_the_config_file_takes_a_moment_by_its_name_and_by_its_path() {
    let world = three_versions();
    let (kind, place) = match world.requests() {
        Some(_) => ("url", world.place("replicas/app")),
        None => ("path", "replicas/app".to_owned()),
    };
    let replica = format!("[[db.replica]]\nname = \"r\"\n{kind} = \"{place}\"\n");
    let text = format!(
        "[[db]]\npath = \"app.db\"\n{replica}\n[[db]]\npath = \"b.db\"\n\
                        name = \"app@1\"\n{}",
        replica.replace(&place, "elsewhere").replace("url", "path")
    );
    fs::write(world.path("c.toml"), text).unwrap();
    let two = &world.points()[2];
    for (n, target) in ["app", "app.db", "./app.db"].into_iter().enumerate() {
        let command = format!(
            "--config c.toml restore {target}@{} -o out.{n}.db",
            two.time
        );
        let said = world.sqlrepl(&command).ok();
        assert!(said.starts_with("restored r as of "), "{said}");
        assert_eq!(world.sql(&format!("out.{n}.db"), VERSION), "two");
    }
    // A database of such a name is that database.
    world
        .sqlrepl("--config c.toml points app@1")
        .fails(3, "elsewhere");
    world.sqlrepl("--config c.toml points app@01").ok();
}
