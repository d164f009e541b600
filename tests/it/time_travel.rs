//! `sqlrepl mount`: every commit as a file that ordinary programs open.

use crate::program::{LONG, bound, run, wait_until};
use crate::world::{VERSION, World};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;

/// A world with a replica of three versions of a row; its daemon has ended.
fn three_versions() -> World {
    let world = World::new();
    world.sample();
    world.sql(
        "app.db",
        "INSERT INTO t SELECT id + 1000, randomblob(3000) FROM t",
    );
    let mut daemon = world.daemon();
    for version in ["one", "two", "three"] {
        world.sql(
            "app.db",
            &format!("UPDATE t SET v = '{version}' WHERE id = 1"),
        );
        world.sync();
    }
    assert_eq!(daemon.term(), 0);
    world
}

#[test]
fn any_name_of_a_moment_opens_in_the_real_sqlite3() {
    let world = three_versions();
    let points = world.points();
    let mount = world.mount();
    let (two, three) = (&points[2], &points[3]);
    let dashes = |time: &str| format!("{}T{}", &time[..10], time[11..].replace(':', "-"));
    let compact = |time: &str| time.replace(['-', ':'], "");
    let named = [
        ("latest".to_owned(), "three"),
        (three.time.clone(), "three"),
        (two.time.clone(), "two"),
        (dashes(&two.time), "two"),
        (compact(&two.time), "two"),
        (two.time.replace('Z', "+00:00"), "two"),
        (points[1].time.clone(), "one"),
        (points[0].time.clone(), "row 1"),
        ("2099-01-01T00:00:00Z".to_owned(), "three"),
        ("2099-01-01".to_owned(), "three"),
        ("now".to_owned(), "three"),
        ("0s-ago".to_owned(), "three"),
    ];
    for (name, expected) in named {
        assert_eq!(
            world.sql(&format!("mnt/app/{name}.db"), VERSION),
            expected,
            "{name}"
        );
    }
    // Understood, but before the first commit.
    for early in [
        "2024-01-01T00:00:00Z.db",
        "2001-01-01.db",
        "@1.db",
        "no-such-name.db",
    ] {
        let error = fs::metadata(world.path("mnt/app").join(early)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{early}");
    }
    let listed = mount.names("app");
    let expected = points
        .iter()
        .map(|point| format!("{}.db", dashes(&point.time)));
    let mut expected: Vec<String> = expected.collect();
    expected.extend(["by-time", "by-txid", "latest.db"].map(str::to_owned));
    assert_eq!(listed, expected);
    assert_eq!(mount.names(""), ["app"]);
}

/// README: "A file in the mount never changes: it is one commit, under all its names."
#[test]
fn a_file_in_the_mount_never_changes_while_the_application_goes_on() {
    let world = World::new();
    world.sample();
    let _daemon = world.daemon();
    let _mount = world.mount();
    let before = world.points().pop().unwrap();
    let name = format!("mnt/app/{}.db", before.time);
    let image = fs::read(world.path(&name)).unwrap();
    let open = fs::File::open(world.path("mnt/app/latest.db")).unwrap();
    for n in 0..20 {
        world.sql("app.db", &format!("UPDATE t SET v = 'version {n}'"));
    }
    world.sync();
    assert!(
        fs::read(world.path(&name)).unwrap() == image,
        "{name} changed"
    );
    let mut still = Vec::new();
    (&open).read_to_end(&mut still).unwrap();
    assert!(still == image, "an open file changed");
    // latest.db is a link, which soon points to the newest.
    wait_until(LONG, "the newest version behind latest.db", || {
        world.sql("mnt/app/latest.db", VERSION) == "version 19"
    });
    assert!(
        fs::symlink_metadata(world.path("mnt/app/latest.db"))
            .unwrap()
            .is_symlink()
    );
}

/// README: "A `cp` from the mount differs from a `restore` in two bytes, since the mount shows
/// rollback-journal mode in the header; `PRAGMA journal_mode=WAL` sets it back."
#[test]
fn a_copy_differs_from_a_restore_in_two_bytes() {
    let world = three_versions();
    let point = world.points().remove(2);
    let _mount = world.mount();
    world
        .run("cp", &[&format!("mnt/app/{}.db", point.time), "copied.db"])
        .ok();
    world.restore("restored.db", &format!("--txid {}", point.txid));
    let copied = fs::read(world.path("copied.db")).unwrap();
    let restored = fs::read(world.path("restored.db")).unwrap();
    assert_eq!(copied.len(), restored.len());
    let pairs = copied.iter().zip(&restored).enumerate();
    let other: Vec<_> = pairs
        .filter(|(_, (a, b))| a != b)
        .map(|(n, (a, b))| (n, *a, *b))
        .collect();
    assert_eq!(other, [(18, 1, 2), (19, 1, 2)]);
    world.run("chmod", &["u+w", "copied.db"]).ok();
    let query = format!("PRAGMA journal_mode=WAL; PRAGMA integrity_check; {VERSION}");
    assert_eq!(world.sql("copied.db", &query), "wal\nok\ntwo");
    assert_eq!(fs::read(world.path("copied.db")).unwrap()[18..20], [2, 2]);
}

/// README: "A `cp` from the mount must not land beside an old `-wal`, which SQLite would replay
/// into it: only `restore` refuses that."
#[test]
fn a_copy_beside_an_old_wal_is_not_what_was_copied_and_restore_refuses_the_place() {
    let world = three_versions();
    let _mount = world.mount();
    // An application that was killed leaves a WAL behind.
    world.sql("old.db", ".restore app.db");
    let update = "PRAGMA journal_mode=WAL; UPDATE t SET v = 'from the old WAL' WHERE id = 1";
    drop(world.keep_open("old.db", update));
    assert!(fs::metadata(world.path("old.db-wal")).unwrap().len() > 0);
    fs::remove_file(world.path("old.db")).unwrap();
    world
        .sqlrepl("restore -o old.db replicas/app")
        .fails(2, "old.db-wal");
    world.run("cp", &["mnt/app/latest.db", "old.db"]).ok();
    world.run("chmod", &["u+w", "old.db"]).ok();
    assert_eq!(world.sql("old.db", VERSION), "from the old WAL");
}

#[test]
fn python_mmap_and_several_readers_at_once_see_the_same() {
    let world = three_versions();
    let point = world.points().remove(2);
    let _mount = world.mount();
    let path = world.path("mnt/app").join(format!("{}.db", point.time));
    let path = path.to_str().unwrap();
    let python = "import mmap, sqlite3, sys
name = sys.argv[1]
rows = sqlite3.connect(name).execute('SELECT v FROM t WHERE id = 1').fetchall()
check = sqlite3.connect(name).execute('PRAGMA integrity_check').fetchall()
with open(name, 'rb') as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    print(rows, check, mapped[:] == file.read(), len(mapped))";
    let seen = world.run("/usr/bin/python3", &["-c", python, path]).ok();
    assert_eq!(
        seen.trim(),
        format!("[('two',)] [('ok',)] True {}", point.size)
    );
    let mapped = format!("PRAGMA mmap_size=100000000; PRAGMA integrity_check; {VERSION}");
    assert_eq!(world.sql(path, &mapped), "100000000\nok\ntwo");

    let whole = fs::read(path).unwrap();
    std::thread::scope(|scope| {
        for reader in 0..8_usize {
            let (whole, path) = (&whole, &path);
            scope.spawn(move || {
                let file = fs::File::open(path).unwrap();
                let mut piece = vec![0; 10_000];
                for n in 0..100 {
                    let at = (n * 7919 * (reader + 1)) % (whole.len() - piece.len());
                    file.read_exact_at(&mut piece, at as u64).unwrap();
                    assert!(
                        piece == whole[at..at + piece.len()],
                        "reader {reader} at {at}"
                    );
                }
            });
        }
    });
}

#[test]
fn ls_and_stat_and_the_shell_work_and_nothing_can_be_written() {
    let world = three_versions();
    let _mount = world.mount();
    let newest = world.points().pop().unwrap();
    let size = world
        .run("stat", &["-L", "-c", "%s", "mnt/app/latest.db"])
        .ok();
    assert_eq!(size.trim(), newest.size.to_string());
    let listed = world.run("ls", &["-l", "mnt/app"]).ok();
    assert!(listed.contains("latest.db -> "), "{listed}");
    let touched = world.run("touch", &["mnt/app/new.db"]);
    assert!(
        touched.stderr.contains("Read-only file system"),
        "{touched}"
    );
    let written = world.try_sql("mnt/app/latest.db", "DELETE FROM t");
    assert!(written.stderr.contains("readonly"), "{written}");
}

#[test]
fn ctrl_c_sigterm_and_umount_from_elsewhere_end_the_mount_with_0() {
    let world = three_versions();
    for end in ["SIGINT", "SIGTERM", "umount"] {
        let mut mount = world.mount();
        assert!(mount.is_mounted());
        assert_eq!(world.sql("mnt/app/latest.db", VERSION), "three");
        match end {
            "SIGINT" => mount.program.signal(libc::SIGINT),
            "SIGTERM" => mount.program.signal(libc::SIGTERM),
            _ => {
                // fusermount3 for whoever is not root.
                let root = run(bound("id").arg("-u")).ok().trim() == "0";
                let words: &[&str] = if root {
                    &["umount"]
                } else {
                    &["fusermount3", "-u"]
                };
                let arguments = [&words[1..], &["mnt"]].concat();
                world.run(words[0], &arguments).ok();
            }
        }
        assert_eq!(mount.program.wait_exit(), 0, "{end}");
        assert!(!mount.is_mounted(), "{end}");
    }
}

#[test]
fn a_mount_that_was_killed_is_replaced_by_the_next_one() {
    let world = three_versions();
    let mut killed = world.mount();
    killed.program.kill9();
    let mut second = world.mount();
    assert_eq!(world.sql("mnt/app/latest.db", VERSION), "three");
    assert_eq!(second.interrupt(), 0);
    assert!(!second.is_mounted());
}

#[test]
fn a_mount_of_one_replica_or_of_nothing_says_what_is_there() {
    let world = three_versions();
    fs::create_dir(world.path("mnt")).unwrap();
    world.sqlrepl("mount replicas nowhere").fails(2, "nowhere");
    world
        .sqlrepl("mount no-replicas mnt")
        .fails(3, "no-replicas");
    fs::rename(world.path("replicas/app"), world.path("single")).unwrap();
    fs::remove_dir(world.path("replicas")).unwrap();
    fs::rename(world.path("single"), world.path("replicas")).unwrap();
    let mount = world.mount();
    assert_eq!(mount.names(""), ["replicas"]);
    assert_eq!(world.sql("mnt/replicas/latest.db", VERSION), "three");
}
