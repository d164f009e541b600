//! `generations`, `snapshots`, `wal`, `points` and `version`.

use crate::world::World;
use serde_json::Value;
use std::collections::BTreeSet;

fn replica() -> World {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    for n in 0..5 {
        world.sql(
            "app.db",
            &format!("UPDATE t SET v = 'version {n}' WHERE id = 1"),
        );
        world.sync();
    }
    assert_eq!(daemon.term(), 0);
    world
}

#[test]
fn points_print_times_in_utc_with_microseconds_and_txids_of_sixteen_digits() {
    let world = replica();
    let entries = world.json("points replicas/app");
    assert_eq!(entries.len(), 6);
    for entry in &entries {
        let fields: BTreeSet<_> = entry
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            fields,
            BTreeSet::from(["generation", "txid", "time", "pages", "size", "level"])
        );
    }
    // The first one is the snapshot's own, and each of the others lies in an upload.
    let levels: Vec<&Value> = entries.iter().map(|entry| &entry["level"]).collect();
    assert_eq!(levels[0], "S");
    assert!(levels[1..].iter().all(|level| **level == 0), "{levels:?}");
    for (n, point) in world.points().iter().enumerate() {
        assert_eq!(point.txid, format!("{:016x}", n + 1));
        assert_eq!(
            point.time.len(),
            "2026-11-20T17:45:12.345678Z".len(),
            "{}",
            point.time
        );
        assert!(
            point.time.ends_with('Z') && point.time.as_bytes()[10] == b'T',
            "{}",
            point.time
        );
        assert_eq!(point.size, point.pages * 4096);
    }
}

#[test]
fn points_can_be_narrowed_by_time_count_and_generation() {
    let world = replica();
    let points = world.points();
    let txids = |options: &str| -> Vec<String> {
        let entries = world.json(&format!("points replicas/app {options}"));
        entries
            .iter()
            .map(|entry| entry["txid"].as_str().unwrap().to_owned())
            .collect()
    };
    let expected = |range: std::ops::Range<usize>| -> Vec<String> {
        points[range]
            .iter()
            .map(|point| point.txid.clone())
            .collect()
    };
    assert_eq!(
        txids(&format!("--since {}", points[2].time)),
        expected(2..6)
    );
    assert_eq!(
        txids(&format!("--until {}", points[2].time)),
        expected(0..3)
    );
    assert_eq!(txids("--limit 2"), expected(4..6));
    assert_eq!(
        txids(&format!("--generation {}", points[0].generation)),
        expected(0..6)
    );
    let none = world.sqlrepl("points replicas/app --generation 00000009-00000009");
    none.fails(3, "00000009-00000009");
}

#[test]
fn tables_are_aligned_and_hold_what_json_holds() {
    let world = replica();
    for listing in ["generations", "snapshots", "wal", "points"] {
        let entries = world.json(&format!("{listing} replicas/app"));
        let table = world.sqlrepl(&format!("{listing} replicas/app")).ok();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), entries.len() + 1, "{table}");
        for (line, entry) in lines[1..].iter().zip(&entries) {
            let generation = entry["generation"].as_str().unwrap();
            assert!(line.contains(generation), "{table}");
        }
        // Each heading stands above the first letter, or the last, of its column.
        let heads = lines[0].split_whitespace().count();
        assert!(heads >= 3, "{table}");
        for line in &lines[1..] {
            assert!(line.split_whitespace().count() >= heads, "{table}");
        }
    }
}

#[test]
fn wal_and_snapshots_show_the_objects_that_are_stored() {
    let world = replica();
    let objects = world.objects("replicas/app");
    let stored = |folder: &str| {
        objects
            .iter()
            .filter(|(name, _)| name.contains(folder))
            .count()
    };
    assert_eq!(world.json("wal replicas/app").len(), stored("/wal/"));
    assert_eq!(
        world.json("snapshots replicas/app").len(),
        stored("/snapshots/")
    );
    let generation = world.generations().remove(0);
    let narrowed = world.json(&format!("wal replicas/app --generation {generation}"));
    assert_eq!(narrowed.len(), stored("/wal/"));
}

#[test]
fn wal_and_snapshots_tell_what_lies_in_each_object_and_how_small_it_is() {
    let world = replica();
    let number = |entry: &Value, field: &str| match entry[field].as_f64() {
        Some(number) => number,
        None => panic!("{entry}: {field}"),
    };
    let wal = world.json("wal replicas/app");
    let commits: f64 = wal.iter().map(|entry| number(entry, "count")).sum();
    assert_eq!(commits, 5.0);
    for entry in &wal {
        assert_eq!(
            (&entry["level"], &entry["thinned"]),
            (&0.into(), &false.into())
        );
        assert!(
            number(entry, "versions") >= number(entry, "count"),
            "{entry}"
        );
        let raw = number(entry, "versions") * 4096.0;
        let off = number(entry, "ratio") - raw / number(entry, "bytes");
        assert!(off.abs() <= 0.05 + 1e-9, "{entry}");
    }
    let snapshot = &world.json("snapshots replicas/app")[0];
    assert_eq!(snapshot["stored"], snapshot["pages"]);
    let raw = number(snapshot, "stored") * 4096.0;
    let off = number(snapshot, "ratio") - raw / number(snapshot, "bytes");
    assert!(off.abs() <= 0.05 + 1e-9, "{snapshot}");
    for (listing, heading) in [
        (
            "snapshots",
            "GENERATION TXID TIME PAGES STORED BYTES RATIO EXACT COMPLETE",
        ),
        (
            "wal",
            "GENERATION LEVEL FIRST LAST TIME COUNT VERSIONS BYTES RATIO THINNED",
        ),
        ("points", "GENERATION TXID TIME PAGES SIZE LEVEL"),
    ] {
        let table = world.sqlrepl(&format!("{listing} replicas/app")).ok();
        let seen: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(seen.join(" "), heading);
    }
}

#[test]
fn version_names_the_program_and_its_number() {
    let printed = World::new().sqlrepl("version").ok();
    assert!(printed.contains(env!("CARGO_PKG_VERSION")), "{printed}");
}
