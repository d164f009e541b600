//! Many databases on the threads of one pool.

use crate::config::{CaptureSettings, Environment};
use crate::replicate::act::Capture;
use crate::replicate::pool::Pool;
use crate::replicate::source::Source;
use crate::replicate::spool::Spool;
use crate::replicate::tests::world::{App, PATIENCE, World, clock};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const COUNT: usize = 300;

/// Databases in one directory, and the captures of all of them on a pool of their own.
struct Many {
    world: World,
    captures: Vec<(Capture, Arc<Spool>)>,
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Makes a template of a WAL database with a table `t`.
fn template(path: &Path) {
    let code = "import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute('pragma journal_mode=wal')
db.execute('create table t(id integer primary key, x)')
db.close()";
    let made = Command::new("python3")
        .arg("-c")
        .arg(code)
        .arg(path)
        .status();
    assert!(made.unwrap().success());
}

impl Many {
    fn start(count: usize, threads_max: usize) -> Self {
        let mut world = World::new();
        world.pool = Pool::new(threads_max, Duration::from_millis(100));
        let first = world.dir.path().join("0.db");
        template(&first);
        let mut many = Self {
            world,
            captures: Vec::new(),
        };
        for n in 0..count {
            if n > 0 {
                fs::copy(&first, many.path(n)).unwrap();
            }
        }
        for n in 0..count {
            many.capture(n);
        }
        many
    }

    fn path(&self, n: usize) -> PathBuf {
        self.world.dir.path().join(format!("{n}.db"))
    }

    fn capture(&mut self, n: usize) {
        let settings = CaptureSettings {
            database: self.path(n),
            meta_path: self.world.dir.path().join(format!("{n}.meta")),
            // Nothing but an event shows a commit before the test is over.
            monitor_interval: Duration::from_secs(3600),
            ..self.world.settings.clone()
        };
        let spool = Arc::new(Spool::open(&settings.meta_path, Arc::default()).unwrap());
        let (pool, timing) = (&self.world.pool, self.world.timing);
        let shown = Arc::clone(&spool);
        let capture =
            Capture::start_on(pool, settings, spool, Environment::of_tests(), timing).unwrap();
        self.captures.push((capture, shown));
    }

    fn seq(&self, n: usize) -> u64 {
        self.captures[n].1.position().unwrap().seq
    }

    fn wait_for_rest(&self) {
        until("no thread but the one that waits", || {
            self.world.pool.threads() == 0
        });
    }

    fn stop(self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let stops = self.captures.iter().map(|(capture, _)| capture.stop());
            for stopped in futures_util::future::join_all(stops).await {
                stopped.unwrap();
            }
        });
    }
}

#[test]
fn three_hundred_idle_databases_hold_no_thread_and_commits_to_any_are_captured() {
    let many = Many::start(COUNT, 8);
    many.wait_for_rest();
    // Any order will do in which neighbours are not neighbours.
    for n in (0..COUNT).step_by(7).map(|n| n * 11 % COUNT) {
        let before = many.seq(n);
        let mut app = App::start(&many.path(n));
        app.sql("insert into t(x) values('one')");
        let committed = Instant::now();
        until("the commit", || many.seq(n) == before + 1);
        assert!(committed.elapsed() < Duration::from_secs(2));
    }
    many.wait_for_rest();
    many.stop();
}

#[test]
fn a_busy_database_keeps_its_pace_among_idle_ones() {
    let many = Many::start(100, 2);
    many.wait_for_rest();
    let mut app = App::start(&many.path(0));
    let before = many.seq(0);
    let mut slowest = Duration::ZERO;
    for row in 0..200 {
        app.sql(&format!("insert into t(x) values({row})"));
        let committed = Instant::now();
        until("the commit", || many.seq(0) == before + row + 1);
        slowest = slowest.max(committed.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    many.stop();
}

#[test]
fn databases_that_appear_in_one_directory_are_captured_as_soon_as_they_do() {
    let mut many = Many::start(1, 4);
    let names = 1..20;
    for n in names.clone() {
        many.capture(n);
        let trouble = many.captures[n].0.trouble().unwrap();
        assert!(trouble.contains("there is no database"), "{trouble}");
    }
    for n in names {
        fs::copy(many.path(0), many.path(n)).unwrap();
        until("its capture", || many.captures[n].0.trouble().is_none());
    }
    many.stop();
}

#[test]
fn a_capture_that_panics_ends_alone_and_says_so() {
    let world = World::new();
    let mut app = world.app_with_table();
    let is_broken = Arc::new(AtomicBool::new(false));
    let breaks = Arc::clone(&is_broken);
    let now = move || {
        assert!(!breaks.load(Ordering::SeqCst), "as the test wants it");
        clock()
    };
    let spool = Arc::new(Spool::open(&world.settings.meta_path, Arc::default()).unwrap());
    let running = world.capture_with(spool, Arc::new(now));
    let other = World::new();
    let mut other_app = other.app_with_table();
    let other_running = other.capture();
    is_broken.store(true, Ordering::SeqCst);
    app.sql("insert into t(x) values(1)");
    running.until("its end", || running.capture.trouble().is_some());
    let ended = "the capture has ended unexpectedly";
    assert_eq!(running.capture.trouble().unwrap(), ended);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let asked = runtime.block_on(running.capture.barrier());
    assert_eq!(asked.unwrap_err().to_string(), ended);
    let stopped = runtime.block_on(running.capture.stop());
    assert_eq!(stopped.unwrap_err().to_string(), ended);
    let before = other_running.barrier();
    other_app.sql("insert into t(x) values(1)");
    assert_eq!(other_running.barrier(), before + 1);
    other_running.stop();
}
