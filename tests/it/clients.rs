//! The programs that people have read the mount like any directory of databases.

use crate::program::{Output, bound, run};
use crate::world::{Mount, Point, World};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// From PyPI; the extension comes with it, since DuckDB would fetch it from a server of its own.
const DUCKDB: [&str; 2] = ["duckdb==1.5.5", "duckdb-extension-sqlite-scanner==1.5.5"];

/// A mount of a database in which each commit made one more of 100 rows its own.
fn commits(world: &World, count: usize) -> (Mount, Vec<Point>) {
    world.sample();
    let mut daemon = world.daemon();
    for version in 1..=count {
        let update = format!("UPDATE t SET v = 'commit {version}' WHERE id = {version}");
        world.sql("app.db", &update);
    }
    world.sync();
    assert_eq!(daemon.term(), 0);
    (world.mount(), world.points())
}

fn file(point: &Point) -> String {
    format!("mnt/app/{}.db", point.time)
}

/// README: "Two moments join in one statement: `ATTACH` one to the other."
#[test]
fn sqlite3_joins_two_moments_and_prints_in_its_modes() {
    let world = World::new();
    let (_mount, points) = commits(&world, 4);
    let (then, now) = (file(&points[2]), file(&points[4]));
    let differ = format!(
        "ATTACH '{then}' AS before;
         SELECT id, a.v, b.v FROM t AS a JOIN before.t AS b USING (id) WHERE a.v <> b.v"
    );
    let shown = world.sql(&now, &differ);
    assert_eq!(shown, "3|commit 3|row 3\n4|commit 4|row 4");
    let query = "SELECT id, v FROM t WHERE id IN (2, 3)";
    for (mode, expect) in [
        (
            "json",
            "[{\"id\":2,\"v\":\"commit 2\"},\n{\"id\":3,\"v\":\"row 3\"}]",
        ),
        ("csv", "2,\"commit 2\"\n3,\"row 3\""),
    ] {
        let mode = format!(".mode {mode}");
        let printed = world.run("sqlite3", &[&then, &mode, query]).ok();
        assert_eq!(printed.replace('\r', "").trim_end(), expect, "{mode}");
    }
}

#[test]
fn what_changed_between_two_moments_is_what_was_committed() {
    let world = World::new();
    let (_mount, points) = commits(&world, 6);
    let script = "import sqlite3, sys
def rows(name):
    db = sqlite3.connect(f'file:{name}?mode=ro', uri=True)
    return dict(db.execute('SELECT id, v FROM t'))
one, two = map(rows, sys.argv[1:])
print([(id, one[id], two[id]) for id in one if one[id] != two[id]])";
    let (one, two) = (file(&points[5]), file(&points[6]));
    let printed = world
        .run("/usr/bin/python3", &["-c", script, &one, &two])
        .ok();
    assert_eq!(printed.trim(), "[(6, 'row 6', 'commit 6')]");
}

/// README: "`cp`, `rsync`, `tar`, `file`, Python and DuckDB read a moment like any file."
#[test]
fn copying_programs_copy_a_moment_byte_for_byte() {
    let world = World::new();
    let (_mount, points) = commits(&world, 2);
    let moment = file(&points[1]);
    let bytes = fs::read(world.path(&moment)).unwrap();
    let name = Path::new(&moment).file_name().unwrap().to_str().unwrap();
    for (program, arguments, copy) in [
        ("cp", vec!["-a", &moment, "cp.db"], "cp.db"),
        ("rsync", vec!["-a", &moment, "rsync.db"], "rsync.db"),
        (
            "dd",
            vec!["status=none", "if=mnt/app/latest.db", "of=dd.db"],
            "dd.db",
        ),
        (
            "tar",
            vec!["--force-local", "-cf", "moment.tar", "-C", "mnt/app", name],
            "moment.tar",
        ),
    ] {
        world.run(program, &arguments).ok();
        let copied = fs::read(world.path(copy)).unwrap();
        match program {
            "tar" => assert!(copied.windows(bytes.len()).any(|part| part == bytes), "tar"),
            "dd" => assert_eq!(world.sql(copy, "SELECT v FROM t WHERE id = 2"), "commit 2"),
            _ => assert!(copied == bytes, "{program}"),
        }
    }
    let said = world.run("file", &["-L", "mnt/app/latest.db"]).ok();
    assert!(said.contains("SQLite 3.x database"), "{said}");
    // As `rsync -a` sees it: nothing to be done again.
    let again = world.run("rsync", &["-ai", &moment, "rsync.db"]).ok();
    assert_eq!(again, "");
}

/// The Python of a virtual environment with packages from PyPI, installed once for each checkout;
/// or what went wrong.
pub(crate) fn python_with(environment: &str, packages: &[&str]) -> Result<PathBuf, Output> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(environment);
    let python = place.join("bin/python");
    let whole = place.join("whole");
    if !whole.exists() {
        let venv = ["-m", "venv"];
        succeeds(bound("/usr/bin/python3").args(venv).arg(&place))?;
        let install = ["-m", "pip", "install", "--quiet"];
        succeeds(bound(&python).args(install).args(packages))?;
        fs::write(whole, "").unwrap();
    }
    Ok(python)
}

fn succeeds(command: &mut Command) -> Result<(), Output> {
    let output = run(command);
    if output.code == 0 {
        Ok(())
    } else {
        Err(output)
    }
}

#[test]
fn duckdb_reads_a_moment() {
    let world = World::new();
    let (_mount, points) = commits(&world, 3);
    let script = "import duckdb, duckdb_extension_sqlite_scanner as scanner, glob, sys
extension, = glob.glob(scanner.__path__[0] + '/extensions/*/*.duckdb_extension')
db = duckdb.connect()
db.execute(f\"LOAD '{extension}'\")
for n, name in enumerate(sys.argv[1:]):
    db.execute(f\"ATTACH '{name}' AS m{n} (TYPE sqlite, READ_ONLY)\")
print(db.execute('SELECT count(*) FROM m0.t').fetchone())
print(db.execute('SELECT a.id, a.v::VARCHAR, b.v::VARCHAR FROM m0.t a JOIN m1.t b USING (id) '
                 'WHERE a.v <> b.v ORDER BY 1').fetchall())";
    let python = match python_with("duckdb-1.5.5", &DUCKDB) {
        Ok(python) => python,
        Err(output) => panic!("{output}"),
    };
    let arguments = ["-c", script, &file(&points[1]), &file(&points[3])];
    let printed: Output = world.run(python.to_str().unwrap(), &arguments);
    assert_eq!(
        printed.ok(),
        "(100,)\n[(2, 'row 2', 'commit 2'), (3, 'row 3', 'commit 3')]\n"
    );
}

#[test]
fn many_programs_read_many_moments_at_once() {
    let world = World::new();
    let (_mount, points) = commits(&world, 12);
    std::thread::scope(|scope| {
        for (version, point) in points.iter().enumerate().skip(1) {
            for _ in 0..2 {
                let world = &world;
                scope.spawn(move || {
                    let query = format!(
                        "PRAGMA integrity_check; SELECT count(*) FROM t WHERE v LIKE 'commit%';
                         SELECT v FROM t WHERE id = {version}"
                    );
                    let expect = format!("ok\n{version}\ncommit {version}");
                    assert_eq!(world.sql(&file(point), &query), expect);
                });
            }
        }
    });
}
