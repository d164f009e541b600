//! `make bench` of the mount: warm against the plain file on the same disk, and many moments of one
//! database.

mod cold;
mod litestream;
mod names;

use super::{Row, in_turns, megabytes, ratio, seconds};
use crate::world::World;
use crate::writer::Dice;
pub(super) use cold::cold;
use cold::total;
pub(super) use litestream::litestream;
pub(super) use names::{names, ten_million};
use rusqlite::{Connection, OpenFlags};
use std::fs;
use std::path::Path;

/// What a mount is told here unless a row says otherwise, and the bytes of pages it keeps then.
const SMALL: &str = "--page-cache 64MiB";
const CACHE: u64 = 64 << 20;
/// How many it keeps if nobody says.
const DEFAULT_CACHE: u64 = 256 << 20;

/// A replica of `app.db`, a table of so many rows of about 1 KB with an index on a number, whose
/// daemon has ended.
fn replicated(world: &World, rows: u32) {
    world.sql(
        "app.db",
        &format!(
            "PRAGMA journal_mode=WAL;
             CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v TEXT);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO t SELECT i, (i * 7919) % {rows}, hex(randomblob(500)) FROM n;
             CREATE INDEX t_k ON t(k);"
        ),
    );
    let mut daemon = world.daemon_with("--max-spool-size 4GiB");
    world.await_sync(&mut daemon);
    assert_eq!(daemon.term(), 0);
    world.sql("app.db", "PRAGMA wal_checkpoint(TRUNCATE)");
}

fn open(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

/// Asks for rows by their ids, each in a statement.
fn points(database: &Connection, ids: impl Iterator<Item = u32>) {
    let mut statement = database.prepare("SELECT v FROM t WHERE id = ?1").unwrap();
    for id in ids {
        let length: usize = statement
            .query_row([id], |row| Ok(row.get_ref(0)?.as_str()?.len()))
            .unwrap();
        assert_eq!(length, 1000);
    }
}

fn number(database: &Connection, query: &str) -> i64 {
    database.query_row(query, [], |row| row.get(0)).unwrap()
}

fn random_ids(seed: u64, count: usize, rows: u32) -> Vec<u32> {
    let mut dice = Dice(seed);
    let mut id = || 1 + dice.roll(rows.into()) as u32;
    (0..count).map(|_| id()).collect()
}

/// Warm: the same work on a plain file and on the moment of the mount that it was copied from, so
/// that both are in rollback-journal mode; the kernel has the pages of both.
pub(super) fn warm() -> Vec<Row> {
    const ROWS: u32 = 200_000;
    let world = World::alone();
    replicated(&world, ROWS);
    let mount = world.mount_at(&format!("mount {SMALL} replicas mnt"));
    let moment = fs::canonicalize(world.path("mnt/app/latest.db")).unwrap();
    // As deep and under the same name: SQLite has the kernel walk the path twice for a statement.
    let plain = world.path("plain/app").join(moment.file_name().unwrap());
    fs::create_dir_all(world.path("plain/app")).unwrap();
    fs::copy(&moment, &plain).unwrap();
    let files = [plain, moment];
    let shell = |program: &str| {
        let run = |path: &Path| {
            let line = program.replace("FILE", path.to_str().unwrap());
            seconds(|| drop(world.run("sh", &["-c", &line]).ok()))
        };
        run(&files[0]);
        run(&files[1]);
        in_turns(|| run(&files[0]), || run(&files[1]))
    };
    let sql = |work: &dyn Fn(&Connection)| {
        let run = |path: &Path| seconds(|| work(&open(path)));
        run(&files[0]);
        run(&files[1]);
        in_turns(|| run(&files[0]), || run(&files[1]))
    };
    let mut rows = Vec::new();
    let mut add = |what, (plain, ours): (f64, f64), target, limit: f64| {
        let beside = format!("{:.1} / {:.1} ms", ours * 1e3, plain * 1e3);
        rows.push(ratio(what, ours / plain, target, ours / plain <= limit).beside(beside));
    };
    let ids = random_ids(1, 20_000, ROWS);
    let each = |database: &Connection| points(database, ids.iter().copied());
    add(
        "20,000 warm point queries, / plain file",
        sql(&each),
        "<= 1.10",
        1.10,
    );
    let scan =
        |query: &'static str| move |database: &Connection| assert!(number(database, query) > 0);
    let by_index = scan("SELECT sum(length(v)) FROM t WHERE k BETWEEN 1000 AND 21000");
    add(
        "  an index scan of 20,000 rows",
        sql(&by_index),
        "<= 1.20",
        1.20,
    );
    let full = scan("SELECT sum(length(v)) FROM t");
    add("  a full scan of 220 MB", sql(&full), "<= 1.20", 1.20);
    let groups = "SELECT count(*) FROM (SELECT substr(v, 1, 3) AS s, count(*) FROM t GROUP BY s)";
    add("  an aggregate", sql(&scan(groups)), "<= 1.20", 1.20);
    add("  cp", shell("cp FILE copy.db"), "<= 1.3", 1.3);
    add("  md5sum", shell("md5sum FILE"), "<= 1.3", 1.3);
    drop(mount);
    rows
}

fn milliseconds(what: &'static str, seconds: f64, target: &'static str, limit: f64) -> Row {
    Row {
        what,
        figure: format!("{:.2} ms", seconds * 1e3),
        target,
        met: seconds <= limit,
        beside: String::new(),
    }
}

/// What a mount took at most, beside what it may take with such a cache.
fn memory(what: &'static str, bytes: f64, cache: u64) -> Row {
    let limit = (64 << 20) as f64 + cache as f64;
    megabytes(what, bytes, "<= 64 MB + cache", bytes <= limit)
}

/// A hundred moments of one day, each asked for the same 200 rows.
pub(super) fn moments() -> Vec<Row> {
    const ROWS: u32 = 100_000;
    const MOMENTS: usize = 100;
    let world = World::alone_on_s3();
    replicated(&world, ROWS);
    let mut daemon = world.daemon();
    let application = Connection::open(world.path("app.db")).unwrap();
    let mut dice = Dice(3);
    for _ in 0..10 * MOMENTS {
        let change = "UPDATE t SET v = hex(randomblob(500)) WHERE id = ?1";
        let row = 1 + dice.roll(ROWS.into()) as u32;
        application.execute(change, [row]).unwrap();
    }
    world.await_sync(&mut daemon);
    assert_eq!(daemon.term(), 0);
    let all = world.points();
    let step = all.len() / MOMENTS;
    let chosen: Vec<_> = all
        .iter()
        .skip(step - 1)
        .step_by(step)
        .take(MOMENTS)
        .collect();
    assert_eq!(chosen.len(), MOMENTS);
    let mount = world.mount_at("mount replicas mnt");
    let ids = random_ids(4, 200, ROWS);
    let mut requests = Vec::new();
    world.server().reset();
    let took = seconds(|| {
        for point in &chosen {
            let path = world.path(&format!("mnt/app/{}.db", point.time));
            points(&open(&path), ids.iter().copied());
            requests.push(total(&world.server().counts()) as f64);
        }
    });
    drop(mount);
    let figure = requests[MOMENTS - 1] / requests[0];
    let beside = format!("{} / {}, {took:.1} s", requests[MOMENTS - 1], requests[0]);
    let what = "requests of 100 moments / those of the first";
    vec![ratio(what, figure, "<= 1.5", figure <= 1.5).beside(beside)]
}
