//! `sqlrepl mount --hydrate`: moments that are fetched whole into the disk cache. What was asked of
//! the store is what the S3 server counted.

use crate::disk_cache::{MOUNT, QUERY, history};
use crate::s3_server::Verb;
use crate::world::{Mount, World};
use std::fs;
use std::ops::Range;

/// Rows of the large table, some 1,000 bytes each.
const ROWS: u64 = 40_000;
/// So few do not wait for the store often enough to be a reason.
const FEW: u64 = 5;
/// So many are one.
const MANY: u64 = 100;

const ALL: &str = "SELECT count(*), sum(length(v)), hex(max(v)), hex(min(v)) FROM large";

/// What a mount says of each moment that it has fetched.
const WHOLE: &str = "fetched all of ";

/// The history of some 4 MB, and one more commit by which the newest moment has 40 MB more.
fn large() -> World {
    let world = history();
    let mut daemon = world.daemon();
    world.sql(
        "app.db",
        &format!(
            "CREATE TABLE large(id INTEGER PRIMARY KEY, v);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
             INSERT INTO large SELECT i, randomblob(1000) FROM n;"
        ),
    );
    world.sync();
    assert_eq!(daemon.term(), 0);
    world
}

/// A new mount with an empty cache.
fn cold(world: &World, options: &str) -> Mount {
    if world.path("cache").exists() {
        fs::remove_dir_all(world.path("cache")).unwrap();
    }
    world.mount_at(&format!("{MOUNT} 1GiB {options}"))
}

/// What the newest moment says of some of its rows, which lie here and there, and how often the
/// server was read from meanwhile.
fn rows(world: &World, numbers: Range<u64>) -> (Vec<String>, u64) {
    world.server().reset();
    let said = numbers.map(|number| {
        let id = number * 7919 % ROWS + 1;
        let query = format!("SELECT hex(substr(v, 1, 8)) FROM large WHERE id = {id}");
        world.sql("mnt/app/latest.db", &query)
    });
    (said.collect(), reads(world))
}

/// How often the server was read from since it was reset.
fn reads(world: &World) -> u64 {
    let counts = world.server().counts();
    counts.calls.get(&Verb::Get).copied().unwrap_or(0)
}

/// Reads all of a moment; how often the server was read from meanwhile.
fn copy(world: &World, moment: &str) -> u64 {
    world.server().reset();
    world.run("cp", &[moment, "copied.db"]).ok();
    reads(world)
}

/// README: "Once a moment is fetched whole nothing in it asks anything of the store any more." Nor
/// does it in a mount to come.
#[track_caller]
fn is_whole(world: &World, mut mount: Mount, said: &[String]) {
    assert_eq!(rows(world, 0..MANY), (said.to_vec(), 0));
    assert_eq!(copy(world, "mnt/app/latest.db"), 0);
    assert_eq!(world.sql("copied.db", ALL), world.sql("app.db", ALL));
    assert_eq!(mount.interrupt(), 0);
    world.server().reset();
    let mut next = world.mount_at(&format!("{MOUNT} 1GiB --hydrate never"));
    world.run("cp", &["mnt/app/latest.db", "copied.db"]).ok();
    assert_eq!(next.interrupt(), 0);
    assert_eq!(reads(world), 0);
}

/// README: "With `--hydrate auto`, a moment whose reads wait for the store again and again is
/// fetched whole into the cache directory, in few requests, while it is read."
#[test]
fn a_moment_that_is_read_here_and_there_is_fetched_whole() {
    let world = large();
    let mut never = cold(&world, "--hydrate never");
    let (few, few_reads) = rows(&world, 0..FEW);
    let (others, other_reads) = rows(&world, FEW..MANY);
    assert_eq!(never.interrupt(), 0);

    let mut auto = cold(&world, "");
    let (said, asked) = rows(&world, 0..FEW);
    assert_eq!(said, few);
    // To fetch the rest takes some ten reads.
    assert!(asked <= few_reads + 3, "{asked} reads, {few_reads} without");
    let (said, _) = rows(&world, FEW..MANY);
    assert_eq!(said, others);
    auto.program.wait_says(WHOLE);
    let asked = reads(&world);
    assert!(asked < other_reads, "{asked} reads, {other_reads} without");
    is_whole(&world, auto, &[few, others].concat());
}

/// README: "`--hydrate always` fetches each moment that is opened, and `never` none; neither
/// `always` nor `auto` fetches one of a database larger than `--hydrate-limit`."
#[test]
fn a_moment_is_fetched_when_it_is_opened_or_never() {
    let world = large();
    let mut never = cold(&world, "--hydrate never");
    let (said, without) = rows(&world, 0..MANY);
    assert!(copy(&world, "mnt/app/latest.db") > 0);
    assert_eq!(never.interrupt(), 0);
    assert!(!never.program.stderr().contains(WHOLE));

    let mut always = cold(&world, "--hydrate always");
    let (first, _) = rows(&world, 0..1);
    assert_eq!(first, said[..1]);
    always.program.wait_says(WHOLE);
    let asked = reads(&world);
    assert!(asked < without / 2, "{asked} reads, {without} without");
    is_whole(&world, always, &said);
}

#[test]
fn a_moment_above_the_limit_is_left_alone() {
    let world = large();
    let points = world.points();
    let before = format!("mnt/app/{}.db", points[points.len() - 2].time);
    for when in ["always", "auto"] {
        let options = format!("--hydrate {when} --hydrate-limit 16MiB");
        let mut mount = cold(&world, &options);
        let (_, asked) = rows(&world, 0..MANY);
        assert!(asked > MANY / 2, "{asked} reads of {MANY} rows");
        assert!(copy(&world, "mnt/app/latest.db") > 0);
        // One below it is not.
        if when == "always" {
            world.sql(&before, QUERY);
            mount.program.wait_says(WHOLE);
            assert_eq!(copy(&world, &before), 0);
        }
        assert_eq!(mount.interrupt(), 0);
        let fetched = mount.program.stderr().matches(WHOLE).count();
        assert_eq!(fetched, usize::from(when == "always"), "{when}");
    }
}
