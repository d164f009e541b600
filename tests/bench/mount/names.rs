//! Names in a directory with millions of restore points.

use super::{CACHE, milliseconds};
use crate::bench::history::{long_replica, timelines};
use crate::bench::{RUNS, Row, highest, median, megabytes, seconds};
use crate::world::World;
use crate::writer::Dice;
use std::fs;
use std::ops::Range;
use std::time::Instant;

/// How soon they are there.
pub(in crate::bench) fn names() -> Vec<Row> {
    const COMMITS: u64 = 1_000_000;
    let world = World::alone();
    let folder = world.path("long");
    fs::create_dir(&folder).unwrap();
    let first = long_replica(&folder, COMMITS);
    let whats = [
        "ls of 1,000,000 restore points",
        "  lookup of a random time",
        "  memory meanwhile",
    ];
    let last = first.micros() + COMMITS as i64 * 100_000;
    look(&world, whats, first.micros()..last)
}

/// The same with ten million, at random times, in segments of half a million each.
pub(in crate::bench) fn ten_million() -> Vec<Row> {
    let world = World::alone();
    let folder = world.path("long");
    fs::create_dir(&folder).unwrap();
    let (first, last) = timelines(&folder, 20, 500_000);
    let whats = [
        "ls of 10,000,000 restore points",
        "  lookup of a random time",
        "  memory meanwhile",
    ];
    look(&world, whats, first.micros()..last.micros())
}

/// Looks into a directory, and for random times.
fn look(world: &World, whats: [&'static str; 3], times: Range<i64>) -> Vec<Row> {
    let mount = world.mount_at(&format!("mount --page-cache {CACHE} long/replica mnt"));
    let directory = world.path("mnt/replica");
    let list = || fs::read_dir(&directory).unwrap().count();
    let mut listed = 0;
    let mut first = 0.0;
    let memory = highest(&mount.program, || first = seconds(|| listed = list()));
    let listing = median((0..RUNS).map(|_| seconds(|| listed = list())).collect());
    let mut dice = Dice(5);
    let found = |name: &str| {
        let start = Instant::now();
        fs::metadata(directory.join(name)).unwrap();
        start.elapsed().as_secs_f64()
    };
    let span = (times.end - times.start) as u64 / 1_000_000;
    let times: Vec<f64> = (0..1_000)
        .map(|_| {
            let seconds = times.start / 1_000_000 + dice.roll(span) as i64;
            found(&format!("@{seconds}.db"))
        })
        .collect();
    let slowest = times.iter().copied().fold(0.0, f64::max);
    let lookup = median(times);
    let limit = (64 << 20) as f64 + CACHE as f64;
    vec![
        milliseconds(whats[0], listing, "<= 50 ms", 0.05).beside(format!(
            "{listed} lines; the first look {:.0} ms",
            first * 1e3
        )),
        milliseconds(whats[1], lookup, "<= 5 ms", 0.005)
            .beside(format!("the slowest {:.2} ms", slowest * 1e3)),
        megabytes(whats[2], memory, "<= 64 MB + cache", memory <= limit),
    ]
}
