//! `make bench`: how fast things are next to plain SQLite and to `cp`. Each figure is the median of
//! five runs; those that are compared take turns, so that both meet the same machine.

mod history;
mod mount;
mod s3;

use crate::exact::check_some;
use crate::program::{LONG, Running, wait_until};
use crate::world::World;
use crate::writer::{Dice, Setup, Writer};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

const RUNS: usize = 5;

/// A figure and what it should be.
struct Row {
    what: &'static str,
    figure: String,
    target: &'static str,
    met: bool,
    /// What stands behind the figure, if it says more.
    beside: String,
}

impl Row {
    fn beside(self, beside: String) -> Self {
        Self { beside, ..self }
    }
}

/// Makes some rows of the table.
type Measure = fn() -> Vec<Row>;

#[test]
#[ignore = "make bench runs it, alone and with optimisation"]
fn table() {
    let parts: [(&str, Measure); 21] = [
        ("pace", writer_at_a_pace),
        ("speed", writer_at_full_speed),
        ("restore", restore_against_copy),
        ("warm", mount::warm),
        ("cold", mount::cold),
        ("litestream", mount::litestream),
        ("moments", mount::moments),
        ("names", mount::names),
        ("ten-million", mount::ten_million),
        ("restart", clean_restart),
        ("memory", memory),
        ("durable", s3::commit_to_durable),
        ("first", s3::first_query),
        ("hour", s3::an_hour),
        ("away", s3::store_away),
        ("cloud", s3::restore_against_copy),
        ("size", history::size),
        ("changed", history::changed),
        ("merging", history::merging),
        ("open", history::open),
        ("resident", history::resident),
    ];
    let only = std::env::var("SQLREPL_BENCH").unwrap_or_default();
    let chosen = parts
        .iter()
        .filter(|(name, _)| only.is_empty() || only.contains(name));
    let rows: Vec<Row> = chosen.flat_map(|(_, measure)| measure()).collect();
    assert!(
        !rows.is_empty(),
        "SQLREPL_BENCH names none of the parts: {only}"
    );
    println!("\n{:<52} {:>16} {:>12}", "what", "figure", "target");
    for row in &rows {
        let missed = if row.met { "" } else { "  missed" };
        println!(
            "{:<52} {:>16} {:>12}{missed}  {}",
            row.what, row.figure, row.target, row.beside
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of the plain runs, and of ours, in turns.
fn in_turns(mut plain: impl FnMut() -> f64, mut ours: impl FnMut() -> f64) -> (f64, f64) {
    let pairs: Vec<(f64, f64)> = (0..RUNS).map(|_| (plain(), ours())).collect();
    let (plain, ours) = pairs.into_iter().unzip();
    (median(plain), median(ours))
}

fn ratio(what: &'static str, figure: f64, target: &'static str, met: bool) -> Row {
    Row {
        what,
        figure: format!("{figure:.2}"),
        target,
        met,
        beside: String::new(),
    }
}

fn megabytes(what: &'static str, bytes: f64, target: &'static str, met: bool) -> Row {
    Row {
        what,
        figure: format!("{:.1} MB", bytes / 1e6),
        target,
        met,
        beside: String::new(),
    }
}

/// What a writer did, and how large the `-wal` became meanwhile.
struct Load {
    commits: u64,
    per_second: f64,
    p99_us: f64,
    wal_bytes: f64,
}

/// A writer without a ledger in a world of its own, with or without the daemon.
fn load(world: &World, replicated: bool, rate: u64, seconds: u64) -> Load {
    world.sample();
    fs::copy(world.path("app.db"), world.path("initial.db")).unwrap();
    let daemon = replicated.then(|| world.daemon());
    let load = write(world, rate, seconds);
    if let Some(mut daemon) = daemon {
        world.sync();
        assert_eq!(daemon.term(), 0);
    }
    load
}

/// A writer without a ledger, for a time.
fn write(world: &World, rate: u64, seconds: u64) -> Load {
    let mut setup = Setup::new(&world.path(""));
    setup.ledger = None;
    let mut writer = Writer::rust(&setup, &world.logs());
    writer.send(&format!("updates 1000000000 {rate}"));
    let start = Instant::now();
    let mut wal_bytes = 0;
    wait_until(10 * LONG, "the time of a run", || {
        let now = fs::metadata(world.path("app.db-wal")).map_or(0, |wal| wal.len());
        wal_bytes = wal_bytes.max(now);
        start.elapsed() >= Duration::from_secs(seconds)
    });
    fs::write(world.path("stop"), "").unwrap();
    let answer = writer.answer();
    let number = |field: &str| answer[field].as_f64().unwrap();
    Load {
        commits: answer["commits"].as_u64().unwrap(),
        per_second: number("commits") / number("seconds"),
        p99_us: number("p99_us"),
        wal_bytes: wal_bytes as f64,
    }
}

/// What came of loads without and with the daemon, in turns.
struct Loads {
    /// Commits per second, with / without.
    commits: f64,
    /// Microseconds that all but one commit in a hundred stayed below, without and with.
    p99_us: (f64, f64),
    /// The largest `-wal` with the daemon.
    wal_bytes: f64,
}

impl Loads {
    fn p99(&self, target: &'static str, met: impl Fn(f64) -> bool) -> Row {
        let (plain, ours) = self.p99_us;
        Row {
            what: "their p99, with / without",
            figure: format!("{:.2} ({ours:.0} us)", ours / plain),
            target,
            met: met(ours / plain),
            beside: String::new(),
        }
    }
}

fn loads(rate: u64, seconds: u64) -> Loads {
    let (mut p99, mut wal) = ((Vec::new(), Vec::new()), 0.0_f64);
    let (plain, ours) = in_turns(
        || {
            let load = load(&World::alone(), false, rate, seconds);
            p99.0.push(load.p99_us);
            load.per_second
        },
        || {
            let load = load(&World::alone(), true, rate, seconds);
            p99.1.push(load.p99_us);
            wal = wal.max(load.wal_bytes);
            load.per_second
        },
    );
    Loads {
        commits: ours / plain,
        p99_us: (median(p99.0), median(p99.1)),
        wal_bytes: wal,
    }
}

fn writer_at_a_pace() -> Vec<Row> {
    let loads = loads(1_000, 5);
    let (commits, wal) = (loads.commits, loads.wal_bytes);
    vec![
        ratio(
            "commits/s at 1,000/s, with / without",
            commits,
            ">= 0.98",
            commits >= 0.98,
        ),
        loads.p99("<= 2", |ratio| ratio <= 2.0),
        megabytes("-wal at 1,000/s", wal, "<= 16 MB", wal <= 16e6),
    ]
}

fn writer_at_full_speed() -> Vec<Row> {
    let loads = loads(0, 10);
    let (commits, wal) = (loads.commits, loads.wal_bytes);
    let world = World::alone();
    load(&world, true, 0, 10);
    let points = world.points().len();
    // The same commits once more, from the same file and seed, this time with a ledger.
    let again = world.path("again");
    fs::create_dir(&again).unwrap();
    fs::copy(world.path("initial.db"), again.join("app.db")).unwrap();
    let mut writer = Writer::rust(&Setup::new(&again), &world.logs());
    for _ in 0..=points / 10_000 {
        writer.ask("updates 10000 0");
    }
    let ledger = again.join("ledger");
    let exact = check_some(&world.path("replicas/app"), &ledger, 500, &mut Dice(1));
    vec![
        ratio(
            "commits/s unpaced, with / without",
            commits,
            ">= 0.5",
            commits >= 0.5,
        ),
        loads.p99("", |_| true),
        megabytes("-wal unpaced", wal, "<= 256 MB", wal <= 256e6),
        Row {
            what: "restore points of an unpaced run, all exact",
            figure: format!("{}", exact.points),
            target: "",
            met: true,
            beside: String::new(),
        },
    ]
}

/// A world with a database of about this size and its daemon.
fn large(megabytes: u64, options: &str) -> (World, Running) {
    let world = World::alone();
    fill(&world, megabytes);
    let daemon = world.replicate(&format!("app.db replicas/app {options}"));
    (world, daemon)
}

/// Makes `app.db` of about this size, as compressible as text is.
fn fill(world: &World, megabytes: u64) {
    let rows = megabytes * 1_000;
    world.sql(
        "app.db",
        &format!(
            "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO t SELECT i, hex(randomblob(500)) FROM n;"
        ),
    );
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn restore_against_copy() -> Vec<Row> {
    let (world, mut daemon) = large(500, "");
    world.await_sync(&mut daemon);
    assert_eq!(daemon.term(), 0);
    let (copy, restore) = in_turns(
        || {
            fs::remove_file(world.path("copy.db")).ok();
            seconds(|| {
                world
                    .run("sh", &["-c", "cp app.db copy.db && sync copy.db"])
                    .ok();
            })
        },
        || {
            fs::remove_file(world.path("out.db")).ok();
            seconds(|| world.restore("out.db", ""))
        },
    );
    let speed = copy / restore;
    vec![ratio(
        "restore of 500 MB, speed of / cp and sync",
        speed,
        ">= 0.6",
        speed >= 0.6,
    )]
}

fn clean_restart() -> Vec<Row> {
    let (world, mut daemon) = large(100, "");
    world.await_sync(&mut daemon);
    assert_eq!(daemon.term(), 0);
    let stored = || -> u64 {
        world
            .objects("replicas/app")
            .iter()
            .map(|(_, size)| size)
            .sum()
    };
    let before = stored();
    let application = world.keep_open("app.db", "UPDATE t SET v = 'changed' WHERE id = 5");
    let mut daemon = world.daemon();
    assert_eq!(daemon.term(), 0);
    drop(application);
    let bytes = stored() - before;
    let generations = world.generations().len();
    vec![Row {
        what: "stored by a clean restart with one row changed",
        figure: format!("{:.1} KiB", bytes as f64 / 1024.0),
        target: "<= 64 KiB",
        met: bytes <= 64 << 10 && generations == 1,
        beside: String::new(),
    }]
}

/// Runs work beside the daemon; the highest RssAnon of the daemon meanwhile, in bytes.
fn highest(daemon: &Running, work: impl FnOnce() + Send) -> f64 {
    let status = format!("/proc/{}/status", daemon.pid());
    let anon = || -> f64 {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        kib.map_or(0.0, |kib| kib.parse::<f64>().unwrap() * 1024.0)
    };
    std::thread::scope(|scope| {
        let work = scope.spawn(work);
        let mut most = anon();
        wait_until(10 * LONG, "the work", || {
            most = most.max(anon());
            work.is_finished()
        });
        work.join()
            .expect("the work failed; its message stands above");
        most
    })
}

fn memory() -> Vec<Row> {
    let (world, daemon) = large(2_000, "--max-spool-size 4GiB");
    let sync = || {
        wait_until(10 * LONG, "the snapshot", || {
            world.sqlrepl("sync app.db --timeout 60s").code == 0
        });
    };
    let snapshot = highest(&daemon, sync);
    let transaction = highest(&daemon, || {
        world.sql("app.db", "UPDATE t SET v = hex(randomblob(500))");
        sync();
    });
    let generations: Vec<Value> = world.json("generations replicas/app");
    let target = "<= 64 MB + caches";
    vec![
        megabytes(
            "RssAnon, first snapshot of 2 GB",
            snapshot,
            target,
            snapshot <= 96e6,
        ),
        megabytes(
            "RssAnon, transaction of 2 GB",
            transaction,
            target,
            transaction <= 96e6,
        ),
        Row {
            what: "generations after them",
            figure: format!("{}", generations.len()),
            target: "1",
            met: generations.len() == 1,
            beside: String::new(),
        },
    ]
}
