//! A mount that was just started, with the store on loopback and some way off.

use super::{
    CACHE, DEFAULT_CACHE, SMALL, memory, milliseconds, open, points, random_ids, replicated,
};
use crate::bench::{RUNS, Row, highest, seconds};
use crate::program::{LONG, wait_until};
use crate::s3_server::Counts;
use crate::world::{Mount, World};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// What each request takes longer where the store is some way off.
pub(super) const AWAY: Duration = Duration::from_millis(25);

const ROWS: u32 = 950_000;
const POINTS: usize = 1_000;

pub(super) fn total(counts: &Counts) -> u64 {
    counts.calls.values().sum()
}

/// What some work took.
struct Taken {
    seconds: f64,
    /// Of the mount meanwhile, bytes.
    memory: f64,
    requests: u64,
    megabytes: f64,
}

impl Taken {
    fn said(&self) -> String {
        format!("{} requests, {:.1} MB", self.requests, self.megabytes)
    }

    fn row(&self, what: &'static str) -> Row {
        milliseconds(what, self.seconds, "", f64::INFINITY).beside(self.said())
    }

    fn memory(&self, what: &'static str, cache: u64) -> Row {
        memory(what, self.memory, cache)
    }
}

/// Works in a mount with every request this much slower.
fn taken(
    world: &World,
    mount: &Mount,
    latency: Duration,
    work: impl FnOnce(&Path) + Send,
) -> Taken {
    world.server().set(|settings| settings.latency = latency);
    world.server().reset();
    let mut took = 0.0;
    let memory = highest(&mount.program, || {
        took = seconds(|| work(&world.path("mnt/app/now.db")));
    });
    let counts = world.server().counts();
    world
        .server()
        .set(|settings| settings.latency = Duration::ZERO);
    Taken {
        seconds: took,
        memory,
        requests: total(&counts),
        megabytes: counts.sent as f64 / 1e6,
    }
}

/// Mounts anew, so that nothing is warm but what the disk has.
fn mounted(world: &World, options: &str) -> Mount {
    world.mount_at(&format!("mount replicas mnt {options}"))
}

/// The same work in a mount of its own.
fn measure(
    world: &World,
    options: &str,
    latency: Duration,
    work: impl FnOnce(&Path) + Send,
) -> Taken {
    taken(world, &mounted(world, options), latency, work)
}

fn read_all(path: &Path) {
    let mut file = fs::File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer).unwrap() > 0 {}
}

/// Asks for random rows.
fn ask(ids: &[u32]) -> impl FnOnce(&Path) + Send {
    |path| points(&open(path), ids.iter().copied())
}

/// Cold: 1 GB, with the store on loopback and some way off.
pub(in crate::bench) fn cold() -> Vec<Row> {
    let world = World::alone_on_s3();
    replicated(&world, ROWS);
    let ids = random_ids(2, POINTS, ROWS);
    let mut rows = Vec::new();
    for (latency, what) in [
        (Duration::ZERO, "first point query of 1 GB, cold"),
        (AWAY, "first point query of 1 GB, 25 ms away"),
    ] {
        rows.extend(uncached(&world, latency, what, &ids));
    }
    rows.extend(with_default_cache(&world, &ids));
    rows.extend(from_disk(&world, &ids));
    for (when, whats) in HYDRATED {
        rows.extend(hydrated(&world, when, whats));
    }
    rows
}

/// Without a disk cache.
fn uncached(world: &World, latency: Duration, what: &'static str, ids: &[u32]) -> Vec<Row> {
    let is_away = latency == AWAY;
    let target = |target| if is_away { target } else { "" };
    let mut firsts: Vec<Taken> = (0..RUNS)
        .map(|_| measure(world, SMALL, latency, ask(&ids[..1])))
        .collect();
    firsts.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let first = firsts.swap_remove(RUNS / 2);
    let limit = if is_away { 0.2 } else { f64::INFINITY };
    let first = milliseconds(what, first.seconds, target("<= 200 ms"), limit).beside(first.said());
    let random = measure(world, SMALL, latency, ask(ids));
    let scan = measure(world, SMALL, latency, read_all);
    let size = fs::metadata(world.path("app.db")).unwrap().len();
    let speed = size as f64 / 1e6 / scan.seconds;
    vec![
        first,
        random.row("  1,000 random points"),
        random.memory("  memory meanwhile", CACHE),
        Row {
            what: "  a full scan",
            figure: format!("{speed:.0} MB/s"),
            target: target(">= 150 MB/s"),
            met: !is_away || speed >= 150.0,
            beside: scan.said(),
        },
        scan.memory("  memory meanwhile", CACHE),
    ]
}

/// The same with as much memory as a mount takes unless it is told otherwise.
fn with_default_cache(world: &World, ids: &[u32]) -> Vec<Row> {
    let random = measure(world, "", AWAY, ask(ids));
    let scan = measure(world, "", AWAY, read_all);
    let (what, of_scan) = (
        "  memory with the default cache: random points",
        "  memory with the default cache: a full scan",
    );
    vec![
        random.memory(what, DEFAULT_CACHE),
        scan.memory(of_scan, DEFAULT_CACHE),
    ]
}

/// With a disk cache that keeps what is read and fetches nothing else.
fn from_disk(world: &World, ids: &[u32]) -> Vec<Row> {
    forget(world);
    let options = format!("{SMALL} --cache-dir cache --hydrate never");
    let run = || measure(world, &options, AWAY, ask(ids));
    let (before, after) = (run(), run());
    vec![
        before.row("1,000 random points into a disk cache, 25 ms away"),
        after.row("  the same in the next mount"),
        after.memory("  memory meanwhile", CACHE),
    ]
}

/// Empties the disk cache.
pub(super) fn forget(world: &World) {
    if world.path("cache").exists() {
        fs::remove_dir_all(world.path("cache")).unwrap();
    }
}

/// What is fetched whole, and the rows about it.
const HYDRATED: [(&str, [&str; 4]); 2] = [
    (
        "auto",
        [
            "1,000 random points, --hydrate auto, 25 ms away",
            "  until the moment is whole",
            "  1,000 others then",
            "  memory meanwhile",
        ],
    ),
    (
        "always",
        [
            "1,000 random points, --hydrate always, 25 ms away",
            "  until the moment is whole",
            "  1,000 others then",
            "  memory meanwhile",
        ],
    ),
];

/// With a disk cache into which the moment is fetched whole beside its reader.
fn hydrated(world: &World, when: &str, whats: [&'static str; 4]) -> Vec<Row> {
    forget(world);
    let options = format!("{SMALL} --cache-dir cache --hydrate {when}");
    let mount = mounted(world, &options);
    let (ids, others) = (random_ids(2, POINTS, ROWS), random_ids(6, POINTS, ROWS));
    let (mut asking, mut whole) = (0.0, 0.0);
    let all = taken(world, &mount, AWAY, |path| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| seconds(|| ask(&ids)(path)));
            wait_until(10 * LONG, "the moment to be whole", || {
                mount.program.stderr().contains("fetched all of ")
            });
            whole = start.elapsed().as_secs_f64();
            asking = asked.join().unwrap();
        });
    });
    let then = taken(world, &mount, AWAY, ask(&others));
    let [what, until_whole, what_then, memory] = whats;
    vec![
        milliseconds(what, asking, "", f64::INFINITY),
        milliseconds(until_whole, whole, "", f64::INFINITY).beside(all.said()),
        then.row(what_then),
        all.memory(memory, CACHE),
    ]
}
