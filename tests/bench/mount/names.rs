//! Names in a directory with millions of restore points.

use super::{CACHE, DEFAULT_CACHE, SMALL, memory, milliseconds};
use crate::bench::history::{long_replica, timelines};
use crate::bench::{RUNS, Row, highest, median, seconds};
use crate::world::World;
use crate::writer::Dice;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

const COMMITS: u64 = 1_000_000;

/// What `ls` reads.
fn list(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

/// How soon names are there, how many lines a second listings have, and the memory of the mount.
pub(in crate::bench) fn names() -> Vec<Row> {
    let world = World::alone();
    let folder = world.path("long");
    fs::create_dir(&folder).unwrap();
    let first = long_replica(&folder, COMMITS).micros();
    let times = first..first + COMMITS as i64 * 100_000;
    let what = "ls of 1,000,000 restore points";
    let mut rows = curated(&world, SMALL, CACHE, what, &times);
    let mut by_default = curated(&world, "", DEFAULT_CACHE, what, &times);
    let by_default = by_default.pop().unwrap();
    rows.push(Row {
        what: "  memory with the default cache",
        ..by_default
    });
    let all = "--list all";
    rows.extend(whole(&world, all, "", "ls of all 1,000,000, --list all"));
    rows.extend(whole(&world, "", "by-txid", "ls of by-txid/"));
    rows
}

/// The same with ten million, at random times, in segments of half a million each.
pub(in crate::bench) fn ten_million() -> Vec<Row> {
    let world = World::alone();
    let folder = world.path("long");
    fs::create_dir(&folder).unwrap();
    let (first, last) = timelines(&folder, 20, 500_000);
    let times = first.micros()..last.micros();
    curated(
        &world,
        SMALL,
        CACHE,
        "ls of 10,000,000 restore points",
        &times,
    )
}

/// The directory as it is listed unless one asks for more; `times` are those of its commits.
fn curated(
    world: &World,
    options: &str,
    cache: u64,
    what: &'static str,
    times: &Range<i64>,
) -> Vec<Row> {
    let mount = world.mount_at(&format!("mount {options} long/replica mnt"));
    let directory = world.path("mnt/replica");
    let mut listed = 0;
    let (mut look, mut listing) = (0.0, 0.0);
    let mut found = Vec::new();
    let most = highest(&mount.program, || {
        look = seconds(|| listed = list(&directory));
        let mut again = || seconds(|| listed = list(&directory));
        listing = median((0..RUNS).map(|_| again()).collect());
        found = lookups(&directory, times);
    });
    let slowest = found.iter().copied().fold(0.0, f64::max);
    let looked = format!("{listed} lines; the first look {:.0} ms", look * 1e3);
    vec![
        milliseconds(what, listing, "<= 50 ms", 0.05).beside(looked),
        milliseconds("  lookup of a random time", median(found), "<= 5 ms", 0.005)
            .beside(format!("the slowest {:.2} ms", slowest * 1e3)),
        memory("  memory meanwhile", most, cache),
    ]
}

/// Seconds that random times take, each looked up once.
fn lookups(directory: &Path, times: &Range<i64>) -> Vec<f64> {
    let mut dice = Dice(5);
    let span = (times.end - times.start) as u64 / 1_000_000;
    (0..1_000)
        .map(|_| {
            let seconds = times.start / 1_000_000 + dice.roll(span) as i64;
            let start = Instant::now();
            fs::metadata(directory.join(format!("@{seconds}.db"))).unwrap();
            start.elapsed().as_secs_f64()
        })
        .collect()
}

/// A directory that lists every commit, first as a mount lists it that was just started.
fn whole(world: &World, options: &str, below: &str, what: &'static str) -> Vec<Row> {
    let mount = world.mount_at(&format!("mount {SMALL} {options} long/replica mnt"));
    let directory = world.path("mnt/replica").join(below);
    let mut listed = 0;
    let (mut look, mut listing) = (0.0, 0.0);
    let most = highest(&mount.program, || {
        look = seconds(|| listed = list(&directory));
        listing = seconds(|| listed = list(&directory));
    });
    let pace = listed as f64 / listing;
    vec![
        milliseconds(what, listing, "", f64::INFINITY).beside(format!(
            "{listed} lines, {pace:.0} a second; the first look {:.0} ms",
            look * 1e3
        )),
        memory("  memory meanwhile", most, CACHE),
    ]
}
