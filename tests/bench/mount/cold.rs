//! A mount that was just started, with the store on loopback and some way off.

use super::{CACHE, milliseconds, open, points, random_ids, replicated};
use crate::bench::{RUNS, Row, highest, megabytes, seconds};
use crate::s3_server::Counts;
use crate::world::World;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// What each request takes longer where the store is some way off.
const AWAY: Duration = Duration::from_millis(25);

pub(super) fn total(counts: &Counts) -> u64 {
    counts.calls.values().sum()
}

/// What some work in a mount took that was just started.
struct Cold {
    seconds: f64,
    memory: f64,
    said: String,
}

/// Mounts anew, so that nothing is warm, and works with every request this much slower.
fn measure(world: &World, latency: Duration, work: &(dyn Fn(&Path) + Sync)) -> Cold {
    let mount = world.mount_at(&format!("mount --page-cache {CACHE} replicas mnt"));
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
    let (calls, sent) = (total(&counts), counts.sent as f64 / 1e6);
    Cold {
        seconds: took,
        memory,
        said: format!("{calls} requests, {sent:.1} MB"),
    }
}

fn read_all(path: &Path) {
    let mut file = fs::File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer).unwrap() > 0 {}
}

/// Cold: 1 GB, with the store on loopback and some way off.
pub(in crate::bench) fn cold() -> Vec<Row> {
    const ROWS: u32 = 950_000;
    let world = World::alone_on_s3();
    replicated(&world, ROWS);
    let size = fs::metadata(world.path("app.db")).unwrap().len();
    let ids = random_ids(2, 1_000, ROWS);
    let ask = |count: usize| {
        let ids = &ids[..count];
        move |path: &Path| points(&open(path), ids.iter().copied())
    };
    let memory = |cold: &Cold| {
        let met = cold.memory <= (64 << 20) as f64 + CACHE as f64;
        megabytes("  memory meanwhile", cold.memory, "<= 64 MB + cache", met)
    };
    let mut rows = Vec::new();
    for (latency, what) in [
        (Duration::ZERO, "first point query of 1 GB, cold"),
        (AWAY, "first point query of 1 GB, 25 ms away"),
    ] {
        let is_away = latency == AWAY;
        let target = |target| if is_away { target } else { "" };
        let mut firsts: Vec<Cold> = (0..RUNS)
            .map(|_| measure(&world, latency, &ask(1)))
            .collect();
        firsts.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let first = firsts.swap_remove(RUNS / 2);
        let limit = if is_away { 0.2 } else { f64::INFINITY };
        rows.push(milliseconds(what, first.seconds, target("<= 200 ms"), limit).beside(first.said));
        let random = measure(&world, latency, &ask(1_000));
        let row = milliseconds("  1,000 random points", random.seconds, "", f64::INFINITY);
        rows.push(memory(&random));
        rows.push(row.beside(random.said));
        let scan = measure(&world, latency, &read_all);
        let speed = size as f64 / 1e6 / scan.seconds;
        rows.push(memory(&scan));
        rows.push(Row {
            what: "  a full scan",
            figure: format!("{speed:.0} MB/s"),
            target: target(">= 150 MB/s"),
            met: !is_away || speed >= 150.0,
            beside: scan.said,
        });
    }
    rows
}
