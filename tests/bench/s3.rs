//! `make bench` on S3: the server of the tests, on loopback, in this process. Requests and bytes
//! are what the server counted.

use super::{Row, fill, in_turns, median, ratio, seconds, write};
use crate::program::{LONG, wait_until};
use crate::s3_server::{Counts, Verb};
use crate::world::World;
use bytes::Bytes;
use rusqlite::Connection;
use sqlrepl::config::location::Location;
use sqlrepl::daemon::control;
use sqlrepl::storage::{self, Body, Put};
use std::fs;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Commits whose way is timed, ten a second.
const TIMED: u32 = 60;
const PACE: Duration = Duration::from_millis(100);

/// What every request takes longer in a store that is not next door.
const AWAY: Duration = Duration::from_millis(10);

/// Dollars for a thousand requests, list price of S3 standard in us-east-1: PUT and LIST, GET.
const PRICES: (f64, f64) = (0.005, 0.0004);

/// Does something ten times a second; the median of the milliseconds that it says it took.
fn paced(mut timed: impl FnMut(u32) -> f64) -> f64 {
    let start = Instant::now();
    let each = |number| {
        wait_until(LONG, "the time of the next commit", || {
            start.elapsed() >= PACE * number
        });
        timed(number)
    };
    median((1..=TIMED).map(each).collect())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Milliseconds from a commit to the moment at which the daemon says that it is durable.
fn to_durable(world: &World, runtime: &Runtime) -> f64 {
    let application = Connection::open(world.path("app.db")).unwrap();
    let spool = world.path(".app.db-sqlrepl");
    paced(|number| {
        let row = (number % 100 + 1, format!("changed {number}"));
        let changed = application
            .execute("UPDATE t SET v = ?2 WHERE id = ?1", row)
            .unwrap();
        let committed = Instant::now();
        assert_eq!(changed, 1);
        let synced = control::sync(&spool, None, LONG);
        runtime.block_on(synced).unwrap();
        milliseconds(committed)
    })
}

/// Milliseconds that the store takes to put an object as large as a segment.
fn bare_put(location: &Location, segment: usize, runtime: &Runtime) -> f64 {
    let store = runtime.block_on(storage::open(location)).unwrap();
    paced(|number| {
        let body = Body::Bytes(Bytes::from(vec![number as u8; segment]));
        let start = Instant::now();
        let put = runtime.block_on(store.put(&format!("bare/{number:03}"), body));
        assert!(matches!(put, Ok(Put::Created { .. })), "{put:?}");
        milliseconds(start)
    })
}

/// The median of several fsyncs of a small file, in milliseconds.
fn one_fsync(world: &World) -> f64 {
    let mut file = fs::File::create(world.path("fsynced")).unwrap();
    paced(|_| {
        std::io::Write::write_all(&mut file, &[1; 4096]).unwrap();
        let start = Instant::now();
        file.sync_data().unwrap();
        milliseconds(start)
    })
}

/// Commit to durable, in milliseconds, with every request this much slower; and a bare put.
fn durable_on_s3(latency: Duration, runtime: &Runtime) -> (f64, f64) {
    let world = World::alone_on_s3();
    world.sample();
    let mut daemon = world.daemon_with("--sync-interval 0");
    let slow = |latency| world.server().set(|settings| settings.latency = latency);
    slow(latency);
    let durable = to_durable(&world, runtime);
    slow(Duration::ZERO);
    assert_eq!(daemon.term(), 0);
    let segments = world.objects("replicas/app");
    let sizes = segments.iter().filter(|(key, _)| key.ends_with(".wal"));
    let segment = median(sizes.map(|(_, size)| *size as f64).collect()) as usize;
    slow(latency);
    let other = Location::S3(world.server().place("replicas", "other"));
    (durable, bare_put(&other, segment, runtime))
}

/// (a): how long a commit takes to be safe.
pub(super) fn commit_to_durable() -> Vec<Row> {
    let runtime = Runtime::new().unwrap();
    let (away, bare) = durable_on_s3(AWAY, &runtime);
    let (near, near_bare) = durable_on_s3(Duration::ZERO, &runtime);
    let world = World::alone();
    world.sample();
    let mut daemon = world.daemon_with("--sync-interval 0");
    let directory = to_durable(&world, &runtime);
    assert_eq!(daemon.term(), 0);
    let fsync = one_fsync(&world);
    let beside = |what, took: f64, against: &str, other: f64| {
        Row {
            what,
            figure: format!("{took:.1} ms"),
            target: "",
            met: true,
            beside: String::new(),
        }
        .beside(format!("{against} {other:.1} ms"))
    };
    vec![
        ratio(
            "commit to durable / bare put, 10 ms a request",
            away / bare,
            "<= 1.5",
            away / bare <= 1.5,
        )
        .beside(format!("{away:.1} / {bare:.1} ms")),
        beside(
            "commit to durable, S3 on loopback",
            near,
            "bare put",
            near_bare,
        ),
        beside(
            "commit to durable, directory",
            directory,
            "one fsync",
            fsync,
        ),
    ]
}

fn total(counts: &Counts) -> u64 {
    counts.calls.values().sum()
}

fn requests(what: &'static str, counts: &Counts, took: f64) -> Row {
    let (calls, bytes) = (total(counts), counts.sent);
    Row {
        what,
        figure: format!("{calls}"),
        target: "",
        met: true,
        beside: String::new(),
    }
    .beside(format!("{:.2} MB, {took:.2} s", bytes as f64 / 1e6))
}

/// (b): a first point query in a moment of 1 GB, against a restore of all of it.
pub(super) fn first_query() -> Vec<Row> {
    let world = World::alone_on_s3();
    fill(&world, 975);
    let mut daemon = world.daemon_with("--max-spool-size 4GiB");
    world.await_sync(&mut daemon);
    let size = fs::metadata(world.path("app.db")).unwrap().len();
    assert!(size >= 1_000_000_000, "{size} bytes are no GB");
    assert_eq!(daemon.term(), 0);
    let query = "SELECT length(v) FROM t WHERE id = 612345";
    world.server().reset();
    let start = Instant::now();
    let mount = world.mount();
    assert_eq!(world.sql("mnt/app/now.db", query), "1000");
    let first = (world.server().counts(), start.elapsed().as_secs_f64());
    drop(mount);
    world.server().reset();
    let restored = seconds(|| world.restore("out.db", ""));
    let whole = (world.server().counts(), restored);
    let (calls, bytes) = (total(&first.0), first.0.sent);
    vec![
        Row {
            target: "<= 8, 2 MB",
            met: calls <= 8 && bytes <= 2_000_000,
            ..requests(
                "requests to mount 1 GB and query a point",
                &first.0,
                first.1,
            )
        },
        requests("requests to restore it", &whole.0, whole.1),
    ]
}

/// (c): an hour of one commit a second, with the clock running a hundred times as fast: as many
/// commits, each as far from the next as the sync interval, so that an upload often holds two; and
/// at worst, each in an upload of its own.
pub(super) fn an_hour() -> Vec<Row> {
    vec![
        hour_of(
            "requests for 3,600 commits, one a sync interval",
            |_, due| {
                while Instant::now() < due {
                    std::thread::yield_now();
                }
            },
        ),
        hour_of("requests for 3,600 commits, an upload each", |world, _| {
            world.sync();
        }),
    ]
}

/// What an hour's commits ask of the store. `wait` is called before each, with the time at which it
/// is due.
fn hour_of(what: &'static str, wait: impl Fn(&World, Instant)) -> Row {
    const COMMITS: u32 = 3_600;
    let world = World::alone_on_s3();
    world.sample();
    let mut daemon = world.daemon_with("--sync-interval 10ms");
    world.server().reset();
    let application = Connection::open(world.path("app.db")).unwrap();
    let start = Instant::now();
    for number in 0..COMMITS {
        wait(&world, start + Duration::from_millis(10) * number);
        let row = (number % 100 + 1, format!("changed {number}"));
        application
            .execute("UPDATE t SET v = ?2 WHERE id = ?1", row)
            .unwrap();
    }
    world.sync();
    let counts = world.server().counts();
    assert_eq!(daemon.term(), 0);
    let of =
        |verbs: &[Verb]| -> u64 { verbs.iter().filter_map(|verb| counts.calls.get(verb)).sum() };
    let gets = of(&[Verb::Get, Verb::Head]);
    let puts = total(&counts) - gets - of(&[Verb::Delete]);
    let price = (puts as f64 * PRICES.0 + gets as f64 * PRICES.1) / 1e3;
    Row {
        what,
        figure: format!("{}", total(&counts)),
        target: "",
        met: true,
        beside: String::new(),
    }
    .beside(format!(
        "{:.1} MB sent, {} LIST, ${price:.3}",
        counts.received as f64 / 1e6,
        of(&[Verb::List]),
    ))
}

/// Restore over loopback, against a copy of the file.
pub(super) fn restore_against_copy() -> Vec<Row> {
    let world = World::alone_on_s3();
    fill(&world, 500);
    let mut daemon = world.daemon();
    assert_eq!(daemon.term(), 0);
    let (copy, restore) = in_turns(
        || {
            fs::remove_file(world.path("copy.db")).ok();
            let copy = "cp app.db copy.db && sync copy.db";
            seconds(|| drop(world.run("sh", &["-c", copy]).ok()))
        },
        || {
            fs::remove_file(world.path("out.db")).ok();
            seconds(|| world.restore("out.db", ""))
        },
    );
    let speed = copy / restore;
    vec![
        ratio(
            "restore of 500 MB from S3, speed of / cp and sync",
            speed,
            ">= 0.5",
            speed >= 0.5,
        )
        .beside(format!("{restore:.2} / {copy:.2} s")),
    ]
}

/// A writer while the store is away for a minute, against one without a daemon.
pub(super) fn store_away() -> Vec<Row> {
    const RATE: u64 = 1_000;
    const AWAY: u64 = 60;
    let plain = {
        let world = World::alone();
        world.sample();
        write(&world, RATE, AWAY)
    };
    let world = World::alone_on_s3();
    world.sample();
    let mut daemon = world.daemon();
    let before = world.points().len() as u64;
    world.server().down();
    let away = write(&world, RATE, AWAY);
    world.server().up();
    let caught_up = seconds(|| world.await_sync(&mut daemon));
    assert_eq!(daemon.term(), 0);
    let arrived = world.points().len() as u64 - before;
    let slower = away.p99_us / plain.p99_us;
    vec![
        ratio(
            "p99 at 1,000/s, store away for 60 s / no daemon",
            slower,
            "<= 2",
            slower <= 2.0,
        )
        .beside(format!("{:.0} / {:.0} us", away.p99_us, plain.p99_us)),
        Row {
            what: "of these commits not arrived",
            figure: format!("{}", away.commits - arrived),
            target: "0",
            met: away.commits == arrived,
            beside: String::new(),
        }
        .beside(format!(
            "of {}; {caught_up:.1} s after the store was back",
            away.commits
        )),
    ]
}
