//! The model test: random transactions of several applications, checkpoints, kills of both sides,
//! states from yesterday and failing syncs, against SQLite's own image of every commit.

use crate::exact::{check_all, check_durable, check_kept};
use crate::machine::{Clock, STATE};
use crate::oracle::images;
use crate::program::{LONG, Running, wait_until};
use crate::world::World;
use crate::writer::{Dice, Setup, Writer};
use crate::{seed, soak};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// Transactions that each command to a writer asks for.
const PIECE: u64 = 20;

/// README: "Every commit that the daemon saw is a restore point, and restores byte for byte."
/// README: "A commit that SQLite did not complete, because the application was killed or the disk
/// failed in the middle of it, is in no restore point."
#[test]
fn every_restore_point_is_what_sqlite_showed_and_no_commit_is_missing() {
    let seed = seed();
    let lives = 10 * soak();
    let totals = std::thread::scope(|scope| {
        let halves = [0, 1].map(|half| {
            scope.spawn(move || -> (usize, usize) {
                let seeds = (half..lives).step_by(2).map(|n| seed.wrapping_add(n));
                let lives = seeds.map(|seed| Life::new(seed).live());
                lives.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
            })
        });
        halves.map(|half| {
            half.join()
                .expect("a life failed; its message stands above")
        })
    });
    let (commits, points) = (totals[0].0 + totals[1].0, totals[0].1 + totals[1].1);
    println!("{commits} commits, {points} restore points");
    assert!(commits >= 2_000, "only {commits} commits");
    assert!(
        points >= commits / 4,
        "only {points} restore points of {commits} commits"
    );
}

/// The same while hours pass for the daemon, which merges, takes snapshots, thins out and deletes.
///
/// README: "Merging and retention change nothing in the restore points that stay."
#[test]
fn what_a_daemon_maintains_for_hours_stays_what_sqlite_showed() {
    let seed = seed();
    let lives = 3 * soak();
    let mut kept = Kept::default();
    for n in 0..lives {
        let life = Life::new(seed.wrapping_add(n)).with_hours();
        kept.add(&life.live_for_hours());
    }
    println!("{kept:?}");
    assert!(kept.merged > 0 && kept.snapshots > 0, "{kept:?}");
    assert!(kept.thinned >= lives as usize, "{kept:?}");
    assert!(kept.points < kept.commits, "{kept:?}");
}

/// What is left of lives.
#[derive(Debug, Default)]
struct Kept {
    commits: usize,
    points: usize,
    merged: usize,
    thinned: usize,
    snapshots: usize,
}

impl Kept {
    fn add(&mut self, other: &Self) {
        self.commits += other.commits;
        self.points += other.points;
        self.merged += other.merged;
        self.thinned += other.thinned;
        self.snapshots += other.snapshots;
    }
}

/// So much of a life of hours is whole at its end. Every commit stays for two hours; the daemon's
/// clock may be half an hour past the last one.
const WHOLE: Duration = Duration::from_secs(90 * 60);

/// One database with its applications, its daemon and their troubles.
struct Life {
    world: World,
    dice: Dice,
    seed: u64,
    library: PathBuf,
    writers: Vec<(Writer, Kind)>,
    /// Pieces of work that no writer was asked for yet.
    pieces: u64,
    /// The daemon's clock, which runs ahead, and by how much.
    clock: Option<(Clock, Duration)>,
}

#[derive(Clone, Copy)]
enum Kind {
    Rust,
    Python,
}

impl Life {
    fn new(seed: u64) -> Self {
        println!("life with SQLREPL_SEED={seed}");
        let world = World::new();
        let mut dice = Dice(seed);
        let page_size = dice.pick(&[512, 1024, 4096, 4096, 8192, 65536]);
        let auto_vacuum = dice.roll(3);
        let table = "(id INTEGER PRIMARY KEY, a, b)";
        world.sql(
            "app.db",
            &format!(
                "PRAGMA page_size = {page_size}; PRAGMA auto_vacuum = {auto_vacuum};
                 PRAGMA journal_mode = WAL; CREATE TABLE tick(n); INSERT INTO tick VALUES(0);
                 CREATE TABLE t0{table}; CREATE TABLE t1{table}; CREATE TABLE t2{table};
                 CREATE INDEX i1 ON t1(a); CREATE INDEX i2 ON t2(a, b);"
            ),
        );
        let library = world.fault_library();
        Self {
            world,
            dice,
            seed,
            library,
            writers: Vec::new(),
            pieces: 15,
            clock: None,
        }
    }

    fn with_hours(mut self) -> Self {
        self.clock = Some((Clock::new(&self.world, "daemon"), Duration::ZERO));
        self.pieces = 24;
        self
    }

    /// Lives while hours pass.
    fn live_for_hours(mut self) -> Kept {
        self.work();
        let ledger = self.world.path("ledger");
        let objects = self.world.objects("replicas/app");
        let count = |folder: &str| objects.iter().filter(|(n, _)| n.contains(folder)).count();
        let merged = count("/wal/") - count("/wal/0/");
        Kept {
            commits: images(&ledger).len(),
            points: check_kept(&self.world.path("replicas/app"), &ledger, WHOLE),
            merged,
            thinned: self.thinned(),
            snapshots: count("/snapshots/"),
        }
    }

    /// Starts the daemon.
    fn replicate(&self) -> Running {
        let Some((clock, _)) = &self.clock else {
            return self
                .world
                .replicate("app.db replicas/app --sync-interval 50ms");
        };
        let mut command = self.world.ours(
            "replicate app.db replicas/app --sync-interval 50ms --retention all=2h,hourly=1d \
             --snapshot-interval 1h --merged-grace 15m --retention-check-interval 15m",
        );
        command.envs(clock.environment());
        Running::start(&mut command, &self.world.logs())
    }

    /// So much passes for the daemon that it has something to do.
    fn pass(&mut self) {
        let minutes = 5 + self.dice.roll(20);
        if let Some((clock, ahead)) = &mut self.clock {
            *ahead += Duration::from_secs(minutes * 60);
            clock.set_passed(*ahead);
            self.world.let_pass(*ahead);
        }
    }

    /// Lives; the number of commits and of restore points.
    fn live(mut self) -> (usize, usize) {
        self.work();
        self.judge()
    }

    fn work(&mut self) {
        let mut daemon = self.replicate();
        self.world.await_sync(&mut daemon);
        for kind in [Kind::Rust, Kind::Python, Kind::Rust] {
            let writer = self.writer(kind);
            self.writers.push((writer, kind));
        }
        while self.work_goes_on() {
            self.pass();
            self.trouble(&mut daemon);
            let lines = self.dice.roll(80);
            self.await_lines(lines);
        }
        // What a writer left half done when it was killed is looked at by the next one.
        drop(self.writer(Kind::Rust).ask("random 1"));
        self.sync(&mut daemon);
        if self.clock.is_some() {
            self.be_huge(&mut daemon);
            self.thin_out(&mut daemon);
        }
        assert_eq!(daemon.term(), 0);
    }

    /// A transaction that is shipped as a snapshot, while the daemon may be killed. What it wrote
    /// is dropped again: others look at all of the database after each of their commits.
    fn be_huge(&mut self, daemon: &mut Running) {
        let mut writer = self.steady_writer();
        let sql = |work: &str| format!("sql BEGIN; {work}; UPDATE tick SET n = n + 1; COMMIT");
        writer.send(&sql(
            "CREATE TABLE huge AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 \
             FROM n WHERE i < 70) SELECT randomblob(1000000) FROM n",
        ));
        let is_killed = self.dice.once_in(2);
        if is_killed {
            let bytes = self.dice.roll(60 << 20);
            let wal = self.world.path("app.db-wal");
            wait_until(LONG, "so much of it is in the WAL", || {
                wal.metadata().is_ok_and(|wal| wal.len() >= bytes)
            });
            daemon.kill9();
            self.restart(daemon);
        }
        let done = json!({ "error": null });
        assert_eq!(writer.answer(), done);
        self.sync(daemon);
        let segments = self.world.json("wal replicas/app");
        let is_marked = segments.iter().any(|segment| segment["versions"] == 0);
        // Without the daemon the WAL may be restarted: then a new generation begins.
        assert!(is_marked || is_killed, "{segments:?}");
        assert_eq!(writer.ask(&sql("DROP TABLE huge")), done);
        assert_eq!(writer.ask("sql VACUUM"), done);
        self.sync(daemon);
    }

    /// Hours in which little happens, until something was thinned out.
    fn thin_out(&mut self, daemon: &mut Running) {
        let mut writer = self.steady_writer();
        wait_until(LONG, "something is thinned out", || {
            self.pass();
            let answer = writer.ask("sql UPDATE tick SET n = n + 1");
            assert_eq!(answer, json!({ "error": null }));
            self.sync(daemon);
            self.thinned() > 0
        });
    }

    /// How many segments were thinned out.
    fn thinned(&self) -> usize {
        let segments = self.world.json("wal replicas/app");
        segments.iter().filter(|s| s["thinned"] == true).count()
    }

    fn judge(&self) -> (usize, usize) {
        let ledger = self.world.path("ledger");
        let exact = check_all(&self.world.path("replicas/app"), &ledger);
        let listed = self.world.points();
        assert_eq!(
            listed.len(),
            exact.points,
            "`points` lists what the library opens"
        );
        // The same through the command, for some.
        for n in 0..3 {
            let at = usize::try_from(self.dice_free(n) % listed.len() as u64).unwrap();
            let point = &listed[at];
            let (to, txid, generation) = (format!("restored.{n}"), &point.txid, &point.generation);
            let options = format!("--txid {txid} --generation {generation}");
            self.world.restore(&to, &options);
            let image = std::fs::read(self.world.path(&to)).unwrap();
            let hash = crate::oracle::ImageHash::of(&image);
            assert!(images(&ledger).contains(&hash), "restored {point:?}");
        }
        (images(&ledger).len(), exact.points)
    }

    fn dice_free(&self, n: u64) -> u64 {
        Dice(self.seed ^ n).roll(u64::MAX)
    }

    /// A writer to which nothing happens.
    fn steady_writer(&self) -> Writer {
        Writer::rust(&Setup::new(&self.world.path("")), &self.world.logs())
    }

    fn writer(&mut self, kind: Kind) -> Writer {
        let mut setup = Setup::new(&self.world.path(""));
        setup.seed = self.dice.roll(u64::MAX) >> 1;
        setup.synchronous = self.dice.pick(&["NORMAL", "FULL", "FULL"]).into();
        let first = self.dice.roll(60) + 5;
        let second = first + self.dice.roll(60) + 1;
        let last = second + self.dice.roll(100) + 1;
        setup.faults = format!("{first}:eio,{second}:eio,{last}:kill");
        setup.library = Some(self.library.clone());
        match kind {
            Kind::Rust => Writer::rust(&setup, &self.world.logs()),
            Kind::Python => Writer::python(&setup, &self.world.logs()),
        }
    }

    /// Gives idle writers something to do and replaces dead ones. False when all is done.
    fn work_goes_on(&mut self) -> bool {
        for n in 0..self.writers.len() {
            let (writer, kind) = &mut self.writers[n];
            if writer.is_busy() {
                continue;
            }
            let kind = *kind;
            if !self.writers[n].0.program.is_running() {
                self.writers[n].0 = self.writer(kind);
            }
            if self.pieces > 0 {
                self.pieces -= 1;
                self.writers[n].0.send(&format!("random {PIECE}"));
            }
        }
        self.writers.iter_mut().any(|(writer, _)| writer.is_busy())
    }

    fn trouble(&mut self, daemon: &mut Running) {
        match self.dice.roll(10) {
            0..4 => self.sync(daemon),
            4 | 5 => {
                let code = daemon.term();
                // One that has only just begun may not have got to catching signals yet.
                let began = !daemon.stderr().is_empty();
                assert!(
                    code == 0 || !began,
                    "a daemon that was asked to end: {code}"
                );
                self.restart(daemon);
            }
            6 | 7 => {
                daemon.kill9();
                self.restart(daemon);
            }
            8 => {
                let victim = usize::try_from(self.dice.roll(3)).unwrap();
                self.writers[victim].0.program.kill9();
            }
            _ => self.trade_states(daemon),
        }
    }

    fn restart(&mut self, daemon: &mut Running) {
        let lines = self.dice.roll(60);
        self.await_lines(lines);
        *daemon = self.replicate();
    }

    /// Keeps a copy of the daemon's state, or puts the one from before in its place: the daemon
    /// finds again what it stored since, or forks.
    fn trade_states(&mut self, daemon: &mut Running) {
        const YESTERDAY: &str = "yesterday";
        daemon.kill9();
        if self.world.path(YESTERDAY).exists() {
            self.world.run("rm", &["-r", STATE]).ok();
            self.world.run("mv", &[YESTERDAY, STATE]).ok();
        } else if self.world.path(STATE).exists() {
            self.world.run("cp", &["-a", STATE, YESTERDAY]).ok();
        }
        self.restart(daemon);
    }

    fn sync(&mut self, daemon: &mut Running) {
        let ledger = self.world.path("ledger");
        let shown = images(&ledger).len();
        self.world.await_sync(daemon);
        check_durable(&self.world.path("replicas/app"), &ledger, shown);
    }

    /// Waits until the ledger has so many more lines, or nobody writes.
    fn await_lines(&mut self, more: u64) {
        let ledger = self.world.path("ledger");
        let size = || std::fs::metadata(&ledger).map_or(0, |file| file.len());
        let enough = size() + more * 80;
        wait_until(LONG, "the writers", || {
            size() >= enough || !self.writers.iter_mut().any(|(writer, _)| writer.is_busy())
        });
    }
}
