//! Objects that are not what was stored.

use crate::seed;
use crate::world::World;
use crate::writer::Dice;
use std::fs;
use std::path::Path;

/// A world with one generation of several segments; its daemon has ended.
fn replica() -> World {
    let world = World::new();
    world.sample();
    world.sql(
        "app.db",
        "INSERT INTO t SELECT id + 1000, randomblob(2000) FROM t",
    );
    let mut daemon = world.daemon();
    for n in 0..4 {
        world.sql(
            "app.db",
            &format!("UPDATE t SET v = v || ' {n}' WHERE id % 4 = {n}"),
        );
        world.sync();
    }
    assert_eq!(daemon.term(), 0);
    world.restore("good.db", "");
    world
}

/// Changes one object for the time of a look at it.
fn with_damage(object: &Path, damaged: Option<Vec<u8>>, look: impl FnOnce()) {
    let good = fs::read(object).unwrap();
    match damaged {
        Some(bytes) => fs::write(object, bytes).unwrap(),
        None => fs::remove_file(object).unwrap(),
    }
    look();
    fs::write(object, good).unwrap();
}

/// README: "A changed, truncated or missing object is an error that names it, never a wrong byte."
#[test]
fn a_damaged_object_is_an_error_that_names_it() {
    let mut dice = Dice(seed());
    let world = replica();
    let good = fs::read(world.path("good.db")).unwrap();
    let needed = |name: &str| name.ends_with(".snapshot") || name.ends_with(".wal");
    let objects = world.objects("replicas/app");
    let mut errors = 0;
    for (name, size) in objects.iter().filter(|(name, _)| needed(name)) {
        let path = world.path("replicas/app").join(name);
        let bytes = fs::read(&path).unwrap();
        for cut in [1, size / 2, *size] {
            let cut = usize::try_from(size - cut).unwrap();
            with_damage(&path, Some(bytes[..cut].to_vec()), || {
                world
                    .sqlrepl("restore -o cut.db replicas/app")
                    .fails(1, name);
            });
        }
        for _ in 0..8 {
            let mut changed = bytes.clone();
            let at = usize::try_from(dice.roll(*size)).unwrap();
            changed[at] ^= 1 << dice.roll(8);
            with_damage(&path, Some(changed), || {
                let output = world.sqlrepl("restore -o changed.db replicas/app");
                if output.code == 0 {
                    // Not all that an object holds is read by a restore of one moment.
                    let restored = fs::read(world.path("changed.db")).unwrap();
                    assert!(restored == good, "{name}: byte {at} went unseen");
                    fs::remove_file(world.path("changed.db")).unwrap();
                } else {
                    output.fails(1, name);
                    errors += 1;
                }
            });
        }
    }
    assert!(errors > 10, "only {errors} changed bytes were seen");
    assert!(!world.path("cut.db").exists() && !world.path("changed.db").exists());
}

#[test]
fn a_missing_object_in_the_middle_is_an_error_that_names_what_is_missing() {
    let world = replica();
    let objects = world.objects("replicas/app");
    let segments: Vec<_> = objects
        .iter()
        .filter(|(name, _)| name.ends_with(".wal"))
        .collect();
    assert!(segments.len() >= 3, "{objects:?}");
    let (middle, _) = segments[1];
    let txid = middle.rsplit('/').next().unwrap().trim_end_matches(".wal");
    with_damage(&world.path("replicas/app").join(middle), None, || {
        world
            .sqlrepl("restore -o out.db replicas/app")
            .fails(1, txid);
    });
    world.restore("out.db", "");
    assert_eq!(
        fs::read(world.path("out.db")).unwrap(),
        fs::read(world.path("good.db")).unwrap()
    );
}

#[test]
fn a_listing_shows_what_is_there_and_fails_with_the_name_of_what_is_damaged() {
    let world = replica();
    let objects = world.objects("replicas/app");
    let (name, size) = objects
        .iter()
        .rfind(|(name, _)| name.ends_with(".wal"))
        .unwrap();
    let path = world.path("replicas/app").join(name);
    let bytes = fs::read(&path).unwrap();
    let cut = usize::try_from(size / 2).unwrap();
    with_damage(&path, Some(bytes[..cut].to_vec()), || {
        for listing in ["points", "wal", "snapshots", "generations"] {
            let output = world
                .sqlrepl(&format!("{listing} replicas/app"))
                .fails(1, name);
            assert!(output.stdout.lines().count() > 1, "{output}");
        }
    });
}

#[test]
fn a_damaged_page_in_the_mount_is_an_io_error() {
    let world = replica();
    let objects = world.objects("replicas/app");
    let (snapshot, size) = objects
        .iter()
        .find(|(name, _)| name.ends_with(".snapshot"))
        .unwrap();
    let path = world.path("replicas/app").join(snapshot);
    let mut bytes = fs::read(&path).unwrap();
    // The pages come first, and fill most of the object.
    let middle = usize::try_from(size / 2).unwrap();
    bytes[middle] ^= 0x10;
    with_damage(&path, Some(bytes), || {
        let mut mount = world.mount();
        let first = format!("mnt/app/{}.db", world.points()[0].time);
        let copied = world.run("cp", &[&first, "copied.db"]);
        assert!(copied.stderr.contains("Input/output error"), "{copied}");
        assert_eq!(mount.interrupt(), 0);
    });
}
