//! What the application, its user and other daemons do beside the capture.

use crate::config::Environment;
use crate::error::ErrorKind;
use crate::format::ids::Timestamp;
use crate::replicate::act::Capture;
use crate::replicate::spool::Spool;
use crate::replicate::tests::world::{App, Image, World, clock};
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// A checkpointer or writer that waited for its busy timeout would take 5 s; what it takes at most
/// here is a loaded machine's.
const PROMPT: Duration = Duration::from_secs(1);

fn python(code: &str, arguments: &[&std::path::Path]) {
    let ran = Command::new("python3")
        .arg("-c")
        .arg(code)
        .args(arguments)
        .status();
    assert!(ran.unwrap().success());
}

#[test]
fn a_waiting_checkpointer_gets_on_and_leaves_an_empty_wal() {
    let world = World::new();
    let mut app = world.app_with_table();
    let mut other = world.app();
    let running = world.capture();
    running.barrier();
    let mut met = 0;
    for pause_ms in [0, 1, 5, 20, 60, 150, 300] {
        for row in 0..20 {
            other.sql(&format!("insert into t(x) values({row})"));
        }
        std::thread::sleep(Duration::from_millis(pause_ms));
        for mode in ["truncate", "restart", "full"] {
            let start = Instant::now();
            let checkpoint = format!("pragma wal_checkpoint({mode})");
            let mut answer = app.sql(&checkpoint);
            // Of two at once SQLite refuses one, and at rest we make one, too.
            met += u32::from(answer == "1,-1,-1");
            while answer == "1,-1,-1" && start.elapsed() < PROMPT {
                answer = app.sql(&checkpoint);
            }
            assert!(start.elapsed() < PROMPT, "{mode}: {:?}", start.elapsed());
            assert!(
                answer.starts_with("0,"),
                "{mode} after {pause_ms} ms: {answer}"
            );
        }
        app.sql("pragma wal_checkpoint(truncate)");
        assert_eq!(world.wal_bytes(), 0);
    }
    assert!(met <= 3, "{met} of 21 met one of ours");
    running.stop();
}

#[test]
fn no_writer_waits_for_a_checkpointer_that_waits_for_us() {
    let world = World::new();
    let mut writer = world.app_with_table();
    let mut checkpointer = world.app();
    let running = world.capture();
    for round in 0..20 {
        writer.sql(&format!("insert into t(x) values({round})"));
        checkpointer.send("pragma wal_checkpoint(truncate)");
        let start = Instant::now();
        writer.sql("insert into t(x) values('beside it')");
        assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
        checkpointer.answer();
    }
    running.stop();
}

#[test]
fn at_rest_the_wal_is_empty_and_a_backup_copied_over_the_database_stays() {
    let world = World::new();
    let mut app = world.app_with_table();
    app.sql("insert into t values(1, 'old')");
    let backup = world.dir.path().join("backup.db");
    app.sql(&format!("vacuum into '{}'", backup.display()));
    let running = world.capture();
    app.sql("insert into t values(2, 'new')");
    app.sql("create table more as select randomblob(5000) from t");
    let hash = app.hash();
    app.kill();
    running.until("an empty WAL", || world.wal_bytes() == 0);
    let run = running.run();
    let mut image = Image::read(&mut *running.pin());
    assert_eq!(image.hash(), hash);
    // The pin is let go again before anything else is looked at.
    fs::copy(&backup, world.database()).unwrap();
    running.until("a new run", || running.run() == run + 1);
    assert_eq!(
        running.spool.runs()[1].reason,
        "the database file was written to while its WAL was empty, as by a copy over it"
    );
    image = Image::read(&mut *running.pin());
    let mut app = world.app();
    assert_eq!(app.sql("select * from t"), "1,old");
    assert_eq!(app.sql("pragma integrity_check"), "ok");
    assert_eq!(image.hash(), app.hash());
    running.stop();
}

#[test]
fn a_backup_copied_over_the_database_while_nothing_runs_stays_and_begins_a_run() {
    let world = World::new();
    let mut app = world.app_with_table();
    app.sql("insert into t values(1, 'old')");
    let backup = world.dir.path().join("backup.db");
    app.sql(&format!("vacuum into '{}'", backup.display()));
    let running = world.capture();
    app.sql("insert into t values(2, 'new')");
    app.kill();
    running.stop();
    fs::copy(&backup, world.database()).unwrap();
    let running = world.capture();
    assert_eq!(
        running.spool.runs()[1].reason,
        "the database file changed while nothing was captured"
    );
    let mut app = world.app();
    assert_eq!(app.sql("select * from t"), "1,old");
    assert_eq!(Image::read(&mut *running.pin()).hash(), app.hash());
    running.stop();
}

#[test]
fn a_database_that_does_not_exist_yet_is_waited_for_and_never_made() {
    let world = World::new();
    let running = world.capture();
    assert_eq!(
        running.capture.trouble().unwrap(),
        format!(
            "there is no database {} yet; it is captured as soon as there is one",
            world.database().display()
        )
    );
    fs::write(world.database(), b"").unwrap();
    running.until("a look at the empty file", || {
        running.capture.trouble().unwrap().contains("is empty")
    });
    assert_eq!(
        running.capture.trouble().unwrap(),
        format!(
            "{} is empty; it is captured as soon as an application writes to it",
            world.database().display()
        )
    );
    assert_eq!(fs::metadata(world.database()).unwrap().len(), 0);
    let mut app = world.app();
    app.sql("pragma page_size=1024");
    app.sql("pragma journal_mode=wal");
    app.sql("create table t(x)");
    running.until("a capture", || running.capture.trouble().is_none());
    let mut pin = running.pin();
    assert_eq!(pin.size().0.get(), 1024);
    let image = Image::read(&mut *pin);
    assert_eq!(image.hash(), app.hash());
    running.stop();
}

#[test]
fn a_database_in_another_journal_mode_is_switched_to_wal() {
    let world = World::new();
    let mut app = world.app();
    app.sql("create table t(x)");
    assert_eq!(app.sql("pragma journal_mode"), "delete");
    let running = world.capture();
    assert_eq!(running.capture.trouble(), None);
    app.sql("insert into t values(1)");
    assert_eq!(app.sql("pragma journal_mode"), "wal");
    running.barrier();
    assert_eq!(Image::read(&mut *running.pin()).hash(), app.hash());
    app.send("pragma journal_mode=delete");
    assert_eq!(app.answer(), "error: database is locked");
    running.stop();
}

#[test]
fn a_database_that_is_locked_for_good_says_so_until_it_is_free() {
    let world = World::new();
    let mut app = world.app_with_table();
    app.sql("pragma locking_mode=exclusive");
    app.sql("insert into t(x) values(1)");
    let running = world.capture();
    assert_eq!(
        running.capture.trouble().unwrap(),
        format!(
            "{} is locked by another process; if it says PRAGMA locking_mode=EXCLUSIVE the \
             database cannot be replicated",
            world.database().display()
        )
    );
    app.kill();
    running.until("a capture", || running.capture.trouble().is_none());
    running.stop();
}

#[test]
fn what_is_no_database_is_named_and_left_alone() {
    let world = World::new();
    fs::write(world.database(), vec![7; 8192]).unwrap();
    let running = world.capture();
    assert_eq!(
        running.capture.trouble().unwrap(),
        format!(
            "{} is not an SQLite database, or an encrypted one",
            world.database().display()
        )
    );
    assert_eq!(fs::read(world.database()).unwrap(), vec![7; 8192]);
    running.stop();
}

#[test]
fn a_second_daemon_stops_at_the_lock_even_with_another_spool() {
    let world = World::new();
    let _app = world.app_with_table();
    let running = world.capture();
    let spool = Arc::new(Spool::open(&world.dir.path().join("other"), Arc::default()).unwrap());
    let refused =
        Capture::start(world.settings.clone(), spool, Environment::of_tests()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert_eq!(
        refused.to_string(),
        format!(
            "another sqlrepl replicates this database: it holds the lock on {}-wal",
            world.database().display()
        )
    );
    running.stop();
}

#[test]
fn a_database_replaced_by_rename_begins_a_run() {
    let world = World::new();
    let mut app = world.app_with_table();
    let running = world.capture();
    app.sql("insert into t values(1, 'old')");
    running.barrier();
    app.kill();
    let next = world.dir.path().join("next.db");
    python(
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
         c.execute('create table u(x)'); c.execute('insert into u values(7)')",
        &[&next],
    );
    running.until("an empty WAL", || world.wal_bytes() == 0);
    fs::rename(&next, world.database()).unwrap();
    running.until("a new run", || {
        running.run() == 2 && running.capture.trouble().is_none()
    });
    let mut app = world.app();
    assert_eq!(app.sql("select * from u"), "7");
    app.sql("insert into u values(8)");
    running.barrier();
    assert_eq!(Image::read(&mut *running.pin()).hash(), app.hash());
    assert_eq!(
        running.spool.runs()[1].reason,
        "the database file was replaced"
    );
    running.stop();
}

#[test]
fn a_deleted_database_is_waited_for_and_begins_a_run() {
    let world = World::new();
    let mut app = world.app_with_table();
    let running = world.capture();
    app.sql("insert into t values(1, 'old')");
    running.barrier();
    app.kill();
    for suffix in ["", "-wal", "-shm"] {
        fs::remove_file(format!("{}{suffix}", world.database().display())).unwrap();
    }
    running.until("trouble", || running.capture.trouble().is_some());
    let mut app = world.app_with_table();
    running.until("a new run", || running.capture.trouble().is_none());
    app.sql("insert into t values(1, 'new')");
    running.barrier();
    assert_eq!(running.run(), 2);
    assert_eq!(Image::read(&mut *running.pin()).hash(), app.hash());
    running.stop();
}

#[test]
fn another_page_size_begins_a_run() {
    let world = World::new();
    let mut app = world.app_with_table();
    world.capture().stop();
    app.sql("pragma journal_mode=delete");
    app.sql("pragma page_size=8192");
    app.sql("vacuum");
    app.sql("pragma journal_mode=wal");
    let running = world.capture();
    assert_eq!(
        running.spool.runs().pop().unwrap().reason,
        "the page size changed from 4096 to 8192 bytes"
    );
    app.sql("insert into t(x) values(1)");
    running.barrier();
    assert_eq!(Image::read(&mut *running.pin()).hash(), app.hash());
    running.stop();
}

#[test]
fn a_transaction_beyond_the_budget_ends_the_run_and_the_next_begins() {
    let mut world = World::new();
    world.max_spool_size = Some(1 << 20);
    let mut app = world.app_with_table();
    let running = world.capture();
    app.sql("insert into t values(1, randomblob(3000000))");
    running.until("a new run", || running.run() == 2);
    assert_eq!(
        running.spool.runs().pop().unwrap().reason,
        "commits were let go: spool and held-back WAL would exceed 1048576 bytes (max-spool-size)"
    );
    app.sql("insert into t values(2, 'small')");
    running.barrier();
    assert_eq!(Image::read(&mut *running.pin()).hash(), app.hash());
    running.stop();
}

#[test]
fn a_full_spool_is_waited_for_without_holding_back_the_wal() {
    let mut world = World::new();
    world.max_spool_size = Some(1 << 20);
    let mut app = world.app_with_table();
    let running = world.capture();
    let mut rows = 0;
    running.until("a full spool", || {
        rows += 1;
        app.sql(&format!("insert into t values({rows}, randomblob(50000))"));
        running
            .capture
            .trouble()
            .is_some_and(|trouble| trouble.contains("has room"))
    });
    // Nobody holds the WAL: it can be emptied.
    assert!(app.sql("pragma wal_checkpoint(truncate)").starts_with("0,"));
    let seq = running.spool.position().unwrap().seq;
    running.spool.release(seq).unwrap();
    running.until("a new run", || {
        running.run() == 2 && running.capture.trouble().is_none()
    });
    app.sql("insert into t values(0, 'captured again')");
    running.barrier();
    assert_eq!(Image::read(&mut *running.pin()).hash(), app.hash());
    running.stop();
}

#[test]
fn a_link_that_leads_elsewhere_begins_a_run() {
    let mut world = World::new();
    let mut app = world.app_with_table();
    app.sql("insert into t values(1, 'first')");
    let link = world.dir.path().join("link.db");
    std::os::unix::fs::symlink(world.database(), &link).unwrap();
    let other = world.dir.path().join("other.db");
    app.sql(&format!("vacuum into '{}'", other.display()));
    world.settings.database = link.clone();
    let running = world.capture();
    running.barrier();
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&other, &link).unwrap();
    running.until("a new run", || {
        running.run() == 2 && running.capture.trouble().is_none()
    });
    let mut app = App::start(&other);
    app.sql("insert into t values(2, 'second')");
    running.barrier();
    assert_eq!(Image::read(&mut *running.pin()).hash(), app.hash());
    running.stop();
}

#[test]
fn locks_that_something_dropped_are_noticed() {
    let mut world = World::new();
    // So that we stay on the mark.
    world.timing.quiet = Duration::from_secs(3600);
    let mut app = world.app_with_table();
    let running = world.capture();
    app.sql("insert into t values(1, 'before')");
    running.barrier();
    // What no part of this program may do: POSIX drops all locks of a process on a file as soon as
    // it closes any descriptor of it.
    drop(fs::File::open(format!("{}-shm", world.database().display())).unwrap());
    app.sql("insert into t values(2, 'unprotected')");
    app.sql("pragma wal_checkpoint(truncate)");
    app.sql("insert into t values(3, 'in the next WAL')");
    running.until("a new run", || running.run() == 2);
    assert_eq!(
        running.spool.runs().pop().unwrap().reason,
        "the WAL was restarted although we held a read mark: something closed a file of the \
         database and dropped our locks"
    );
    assert_eq!(Image::read(&mut *running.pin()).hash(), app.hash());
    running.stop();
}

#[test]
fn a_spool_that_fails_holds_the_pin_and_goes_on_when_it_can() {
    let world = World::new();
    let mut app = world.app_with_table();
    let running = world.capture();
    let mut pin = running.pin();
    let mut image = Image::read(&mut *pin);
    let (log, moved) = (
        world.settings.meta_path.join("log"),
        world.dir.path().join("moved"),
    );
    fs::rename(&log, &moved).unwrap();
    // The next file cannot be made once this one is full.
    app.sql("insert into t values(1, randomblob(17000000))");
    running.until("trouble", || running.capture.trouble().is_some());
    let trouble = running.capture.trouble().unwrap();
    assert!(
        trouble.starts_with("make ") && trouble.contains("No such file"),
        "{trouble}"
    );
    app.sql("insert into t values(2, 'meanwhile')");
    app.sql("pragma wal_checkpoint(passive)");
    app.sql("insert into t values(3, 'meanwhile')");
    fs::rename(&moved, &log).unwrap();
    running.until("no trouble", || running.capture.trouble().is_none());
    running.barrier();
    assert_eq!(running.run(), 1);
    image.replay(&running.spool, 1, pin.seq(), |_, _| {});
    assert_eq!(image.hash(), app.hash());
    drop(pin);
    running.stop();
}

#[test]
fn sqlite_is_one_without_the_wal_reset_bug() {
    assert!(
        rusqlite::version_number() >= 3_051_003,
        "{}",
        rusqlite::version()
    );
}

#[test]
fn commits_stay_in_order_whatever_the_clock_says() {
    let world = World::new();
    let mut app = world.app_with_table();
    let now = Arc::new(AtomicI64::new(clock().micros()));
    let spool = Arc::new(Spool::open(&world.settings.meta_path, Arc::default()).unwrap());
    let read = Arc::clone(&now);
    let stopped = move || Timestamp::from_micros(read.load(Ordering::SeqCst));
    let running = world.capture_with(spool, Arc::new(stopped));
    let began = running.spool.position().unwrap().time;
    for row in 0..3 {
        app.sql(&format!("insert into t values({row}, 1)"));
        running.barrier();
    }
    let minute = 60_000_000;
    let last = running.spool.position().unwrap().time;
    assert_eq!(last.micros(), began.micros() + 3);
    now.fetch_sub(59 * minute, Ordering::SeqCst);
    app.sql("insert into t values(4, 1)");
    running.barrier();
    assert_eq!(
        running.spool.position().unwrap().time.micros(),
        last.micros() + 1
    );
    assert_eq!(running.run(), 1);

    now.fetch_sub(2 * minute, Ordering::SeqCst);
    let before = running.spool.position().unwrap();
    app.sql("insert into t values(5, 1)");
    running.barrier();
    let after = running.spool.position().unwrap();
    // The state that the run starts from has a number of its own.
    assert_eq!((after.run, after.seq), (2, before.seq + 2));
    assert_eq!(after.time.micros(), now.load(Ordering::SeqCst) + 1);
    let run = running.spool.runs().pop().unwrap();
    assert_eq!(run.start, before.end);
    // So that the file's time can be seen to be old enough to be noted.
    now.store(clock().micros() + minute, Ordering::SeqCst);
    running.stop();
}
