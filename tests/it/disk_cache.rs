//! `sqlrepl mount --cache-dir`: what was read once is there for the next mount.

use crate::s3_server::{Fault, Verb};
use crate::world::{World, walk};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

pub(crate) const MOUNT: &str = "mount replicas mnt --cache-dir cache --cache-size";
pub(crate) const QUERY: &str = "SELECT count(*), sum(length(v)), max(id) FROM t";

/// A replica of some 4 MB with a few versions of each row; its daemon has ended.
pub(crate) fn history() -> World {
    let world = World::on_s3();
    world.sample();
    let mut daemon = world.daemon();
    world.sql("app.db", "INSERT INTO t(v) SELECT randomblob(40000) FROM t");
    for version in 0..3 {
        world.sql(
            "app.db",
            &format!("UPDATE t SET v = v || '{version}' WHERE id % 7 = {version}"),
        );
        world.sync();
    }
    assert_eq!(daemon.term(), 0);
    world
}

/// What a new mount says to the query for the newest moment and for the one before, and how often
/// it read from the server.
fn asked(world: &World, size: &str) -> ([String; 2], u64) {
    let points = world.points();
    world.server().reset();
    let mut mount = world.mount_at(&format!("{MOUNT} {size}"));
    let before = format!("mnt/app/{}.db", points[points.len() - 2].time);
    let said = ["mnt/app/latest.db", &before].map(|name| world.sql(name, QUERY));
    assert_eq!(mount.interrupt(), 0);
    let counts = world.server().counts();
    (said, counts.calls.get(&Verb::Get).copied().unwrap_or(0))
}

/// Asks again until a mount has nothing to read: what one reads ahead, and what is still on its way
/// to it when it ends, differs from mount to mount.
#[track_caller]
fn reads_nothing_at_last(world: &World, said: &[String; 2]) {
    let mut rounds = Vec::new();
    while rounds.last() != Some(&0) {
        assert!(rounds.len() < 10, "reads of each mount: {rounds:?}");
        let (again, reads) = asked(world, "1GiB");
        assert_eq!(again, *said);
        rounds.push(reads);
    }
}

/// What the directory takes, bytes. What goes while it is looked at takes nothing.
fn disk_usage(world: &World) -> u64 {
    let mut bytes = fs::metadata(world.path("cache")).unwrap().blocks() * 512;
    walk(&world.path("cache"), &mut |path| {
        bytes += fs::metadata(path).map_or(0, |file| file.blocks() * 512);
    });
    bytes
}

/// README: "With `mount --cache-dir DIR` a query that was asked before, by a mount that has ended
/// too, costs no request but the listing that names what there is."
#[test]
fn a_mount_that_comes_later_reads_nothing_again() {
    let world = history();
    let (said, reads) = asked(&world, "1GiB");
    assert!(reads > 3, "{reads} reads");
    reads_nothing_at_last(&world, &said);
    // A replica that another commit came to costs what is new.
    let mut daemon = world.daemon();
    world.sql("app.db", "UPDATE t SET v = 'new' WHERE id = 5");
    world.sync();
    assert_eq!(daemon.term(), 0);
    let (newer, more) = asked(&world, "1GiB");
    assert_eq!(newer[1], said[0]);
    assert!(0 < more && more < reads, "{more} reads after {reads}");
}

/// README: "With `mount --cache-dir DIR` the names, sizes and times that a mount showed need no
/// more than the listing in the next one: all else of the store may be away."
#[test]
fn names_that_were_shown_before_need_the_listing_alone() {
    let world = history();
    let shown = || {
        world.server().reset();
        let mut mount = world.mount_at(&format!("{MOUNT} 1GiB"));
        // What the mount says of itself is another thing each time.
        let which = "-name .sqlrepl -prune -o -type f -printf";
        let mut find = vec!["mnt"];
        find.extend(which.split(' '));
        find.push("%p %s %T@\n");
        let said = world.run("find", &find).ok();
        assert_eq!(mount.interrupt(), 0);
        let counts = world.server().counts();
        (said, counts.calls.get(&Verb::Get).copied().unwrap_or(0))
    };
    let (said, mut reads) = shown();
    // Each point by its time twice, and by its txid.
    assert_eq!(said.lines().count(), 3 * world.points().len(), "{said}");
    assert!(reads > 0);
    // What is still on its way to the disk when a mount ends is read once more.
    for _ in 0..10 {
        reads = shown().1;
        if reads == 0 {
            break;
        }
    }
    assert_eq!(reads, 0);
    world.server().set_rule(|call| {
        let is_read = call.verb == Verb::Get;
        is_read.then_some(Fault::Refuse(503, "SlowDown"))
    });
    assert_eq!(shown(), (said, 0));
    world.server().heal();
}

/// README: "Damage in the cache directory changes no byte that is read: what is wrong is fetched
/// again."
#[test]
fn damage_in_the_cache_changes_nothing() {
    let world = history();
    let (said, _) = asked(&world, "1GiB");
    let mut noise = crate::seed();
    for _ in 0..3 {
        walk(&world.path("cache"), &mut |path| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            let length = file.metadata().unwrap().len();
            noise = noise
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // So close that no piece of some size stays whole.
            for at in ((noise >> 20 & 255)..length).step_by(256) {
                file.write_all_at(&noise.to_le_bytes()[..1], at).unwrap();
            }
        });
        let (again, reads) = asked(&world, "1GiB");
        assert_eq!(again, said);
        assert!(reads > 0);
        reads_nothing_at_last(&world, &said);
    }
}

/// README: "The cache directory takes no more than `--cache-size`; a full disk turns the cache off,
/// and fails no read."
#[test]
fn the_cache_keeps_its_size_and_a_full_disk_turns_it_off() {
    let world = history();
    world
        .sqlrepl(&format!("{MOUNT} 1MiB"))
        .fails(2, "give it 16MiB or more");
    let mut daemon = world.daemon();
    for _ in 0..4 {
        world.sql("app.db", "UPDATE t SET v = randomblob(40000)");
        world.sync();
    }
    assert_eq!(daemon.term(), 0);
    let mut mount = world.mount_at(&format!("{MOUNT} 16MiB"));
    for point in world.points() {
        let said = world.sql(&format!("mnt/app/{}.db", point.time), QUERY);
        assert!(!said.is_empty());
        assert!(disk_usage(&world) <= 16 << 20);
    }
    assert_eq!(mount.interrupt(), 0);
    assert!(disk_usage(&world) > 8 << 20, "{} bytes", disk_usage(&world));

    let full = world.path("full");
    fs::create_dir(&full).unwrap();
    world
        .run("mount", &["-t", "tmpfs", "-o", "size=1m", "none", "full"])
        .ok();
    let mut mount = world.mount_at("mount replicas mnt --cache-dir full/cache");
    let said = world.sql("mnt/app/latest.db", QUERY);
    const WARNING: &str = "the disk cache is off until";
    mount.program.wait_says(WARNING);
    assert_eq!(mount.interrupt(), 0);
    let warnings = mount.program.stderr().matches(WARNING).count();
    world.run("umount", &["full"]).ok();
    assert_eq!(said, world.sql("app.db", QUERY));
    assert_eq!(warnings, 1, "{}", mount.program.stderr());
}

#[test]
fn a_mount_that_follows_another_waits_for_its_cache() {
    let world = history();
    let mut first = world.mount_at(&format!("{MOUNT} 1GiB"));
    fs::create_dir(world.path("other")).unwrap();
    let mut second = world.start("mount replicas other --cache-dir cache");
    second.wait_says("waiting for the end of the mount before");
    assert_eq!(first.interrupt(), 0);
    second.wait_says("mounted 1 database");
    second.signal(libc::SIGINT);
    assert_eq!(second.wait_exit(), 0);
}

#[test]
fn a_cache_has_one_mount_and_a_place_of_its_own() {
    let world = history();
    let mount = world.mount_at(&format!("{MOUNT} 1GiB"));
    fs::create_dir(world.path("other")).unwrap();
    let second = world.sqlrepl("mount replicas other --cache-dir cache");
    let holder = mount.program.pid().to_string();
    second.fails(1, &format!("is the cache of process {holder}, which runs"));
    drop(mount);
    fs::create_dir(world.path("cache/mnt")).unwrap();
    world
        .sqlrepl("mount replicas cache/mnt --cache-dir cache")
        .fails(2, "use a directory outside");
    world
        .sqlrepl("mount replicas other --cache-dir other/cache")
        .fails(2, "which is to be the mount; use a directory outside");
    world
        .sqlrepl("mount replicas other --cache-dir logs")
        .fails(2, "is no cache and not empty");
    world
        .sqlrepl("mount replicas other --cache-size 1GiB")
        .fails(2, "--cache-dir");
    world
        .sqlrepl("mount replicas other --hydrate always")
        .fails(2, "--cache-dir");
}
