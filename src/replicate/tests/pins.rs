//! Snapshot pins beside an application that goes on.

use crate::error::ErrorKind;
use crate::format::ids::Pgno;
use crate::replicate::source::PageSource;
use crate::replicate::tests::world::{App, Image, Running, World};
use std::time::{Duration, Instant};

/// Reads a part of the pages; returns the first that is left.
fn read_some(pin: &mut dyn PageSource, image: &mut Image, from: u32, to: u32) {
    let (page_size, _) = pin.size();
    for pgno in from..=to {
        let mut page = vec![0; page_size.bytes()];
        pin.read(Pgno::new(pgno).unwrap(), &mut page).unwrap();
        image.set(pgno, page);
    }
}

/// Lays over the image what was captured since; it must then be what the application sees.
#[track_caller]
fn check_against(app: &mut App, running: &Running<'_>, pin: &dyn PageSource, mut image: Image) {
    running.barrier();
    image.resize(pin.size().1);
    image.replay(&running.spool, pin.run(), pin.seq(), |_, _| {});
    assert_eq!(image.hash(), app.hash());
}

/// A table of some MiB.
fn fill(app: &mut App) {
    app.sql("pragma cache_size=100");
    app.sql(
        "insert into t(x) with recursive n(i) as (select 1 union all select i + 1 from n \
         where i < 3000) select randomblob(2500) from n",
    );
}

/// A writer that never pauses, until the file is removed.
const BUSY: &str = "import os, sqlite3, sys\n\
    c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)\n\
    c.execute('pragma synchronous=normal')\n\
    n = 0\n\
    while os.path.exists(sys.argv[2]):\n \
      n += 1; c.execute('update t set x = randomblob(2400) where id = ?', (n * 7 % 3000,))";

#[test]
fn a_busy_writer_with_default_autocheckpoint_leaves_a_snapshot_exact() {
    let world = World::new();
    let mut app = world.app_with_table();
    fill(&mut app);
    let running = world.capture();
    let going = world.dir.path().join("going");
    std::fs::write(&going, b"").unwrap();
    let mut writer = std::process::Command::new("python3")
        .args(["-c", BUSY])
        .args([&world.database(), &going])
        .spawn()
        .unwrap();
    let first = running.barrier();
    running.until("a writer in full flight", || {
        running.barrier() > first + 100
    });
    let mut pin = running.pin();
    let mut image = Image::empty(pin.size().0);
    let pages = pin.size().1;
    for part in 0..10 {
        let seq = running.barrier();
        running.until("more commits", || running.barrier() > seq + 50);
        read_some(
            &mut *pin,
            &mut image,
            pages * part / 10 + 1,
            pages * (part + 1) / 10,
        );
        assert!(pin.is_exact(), "after part {part}");
    }
    std::fs::remove_file(&going).unwrap();
    assert!(writer.wait().unwrap().success());
    check_against(&mut app, &running, &*pin, image);
    drop(pin);
    running.stop();
}

#[test]
fn a_waiting_checkpointer_gets_on_and_the_snapshot_goes_on_as_fuzzy() {
    let world = World::new();
    let mut app = world.app_with_table();
    let mut checkpointer = world.app();
    fill(&mut app);
    let running = world.capture();
    // While commits come the pin is taken on a mark.
    app.sql("update t set x = 1 where id = 1");
    running.barrier();
    let pinning = Instant::now();
    app.send("update t set x = 2 where id = 2");
    let mut pin = running.pin();
    app.answer();
    assert!(pinning.elapsed() < Duration::from_secs(2));
    assert!(pin.is_exact());
    let mut image = Image::empty(pin.size().0);
    let pages = pin.size().1;
    read_some(&mut *pin, &mut image, 1, pages / 3);
    app.sql("update t set x = randomblob(2400) where id % 10 = 0");
    let start = Instant::now();
    let answer = checkpointer.sql("pragma wal_checkpoint(truncate)");
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    assert!(answer.starts_with("0,"), "{answer}");
    assert!(!pin.is_exact());
    app.sql("update t set x = randomblob(2300) where id % 10 = 1");
    read_some(&mut *pin, &mut image, pages / 3 + 1, pages);
    check_against(&mut app, &running, &*pin, image);
    running.stop();
}

#[test]
fn a_pin_on_lock_0_is_let_go_at_the_next_commit() {
    let world = World::new();
    let mut app = world.app_with_table();
    fill(&mut app);
    let running = world.capture();
    running.until("an empty WAL", || world.wal_bytes() == 0);
    let mut pin = running.pin();
    assert!(pin.is_exact());
    let mut image = Image::empty(pin.size().0);
    read_some(&mut *pin, &mut image, 1, 10);
    app.sql("pragma wal_checkpoint(truncate)");
    assert!(pin.is_exact());
    app.sql("update t set x = 'new'");
    running.until("the pin to be let go", || !pin.is_exact());
    let pages = pin.size().1;
    read_some(&mut *pin, &mut image, 11, pages);
    app.sql("delete from t where id > 10");
    app.sql("vacuum");
    check_against(&mut app, &running, &*pin, image);
    running.stop();
}

#[test]
fn a_pin_that_was_let_go_ends_with_its_run_too() {
    let mut world = World::new();
    world.max_spool_size = Some(1 << 20);
    let mut app = world.app_with_table();
    let running = world.capture();
    assert_eq!(running.spool.room(), 1 << 20);
    let mut pin = running.pin();
    pin.let_go();
    app.sql("insert into t values(1, 'small')");
    running.barrier();
    let mut page = vec![0; 4096];
    pin.read(Pgno::FIRST, &mut page).unwrap();
    app.sql("insert into t values(2, randomblob(3000000))");
    running.until("a new run", || {
        running.run() == 2 && running.capture.trouble().is_none()
    });
    let ended = pin.read(Pgno::new(9).unwrap(), &mut page).unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Conflict);
    app.sql("insert into t values(3, 'small')");
    running.barrier();
    assert_eq!(Image::read(&mut *running.pin()).hash(), app.hash());
    running.stop();
}

#[test]
fn a_pin_ends_with_its_run() {
    let world = World::new();
    let mut app = world.app_with_table();
    fill(&mut app);
    let running = world.capture();
    let mut pin = running.pin();
    let mut page = vec![0; 4096];
    pin.read(Pgno::FIRST, &mut page).unwrap();
    app.kill();
    running.until("an empty WAL", || world.wal_bytes() == 0);
    let copy = std::fs::read(world.database()).unwrap();
    std::fs::write(world.database(), copy).unwrap();
    running.until("a new run", || running.run() == 2);
    let ended = pin.read(Pgno::new(2000).unwrap(), &mut page).unwrap_err();
    assert_eq!(
        ended.to_string(),
        format!(
            "the capture of {} began anew while its pages were read",
            world.database().display()
        )
    );
    running.stop();
}
