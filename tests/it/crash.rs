//! Kills, restarts and downtimes: what was durable stays, and histories go on where they can.

use crate::exact::{check_all, check_durable, check_some};
use crate::oracle::images;
use crate::program::{LONG, Running, wait_for, wait_until};
use crate::world::World;
use crate::writer::{Dice, Setup, Writer};
use crate::{seed, soak};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::SystemTime;

const START: &str = "app.db replicas/app --sync-interval 50ms";

/// README: "What `sqlrepl sync` called durable is there after the daemon was killed, however hard."
#[test]
fn twenty_kills_under_a_writer_at_full_speed_lose_nothing_durable() {
    let mut dice = Dice(seed());
    let world = World::new();
    world.sample();
    let mut writer = Writer::rust(&Setup::new(&world.path("")), &world.logs());
    writer.send("updates 100000000 0");
    let ledger = world.path("ledger");
    let replica = world.path("replicas/app");
    let mut daemon = world.replicate(START);
    await_commits(&world, &mut writer, 1);
    for _ in 0..20 * soak() {
        let shown = images(&ledger).len();
        world.await_sync(&mut daemon);
        await_commits(&world, &mut writer, dice.roll(2_000));
        daemon.kill9();
        check_durable(&replica, &ledger, shown);
        await_commits(&world, &mut writer, dice.roll(1_000));
        daemon = world.replicate(START);
    }
    fs::write(world.path("stop"), "").unwrap();
    let answer = writer.answer();
    world.await_sync(&mut daemon);
    check_durable(&replica, &ledger, images(&ledger).len());
    assert_eq!(daemon.term(), 0);
    let exact = check_some(&replica, &ledger, 800, &mut dice);
    println!(
        "{answer}: {} restore points in {:?}",
        exact.points, exact.ranges
    );
}

/// README: "After a restart on a database that only saw a few commits meanwhile, the same
/// generation goes on, and only those commits are stored."
#[test]
fn a_clean_restart_with_one_changed_row_goes_on_and_stores_little() {
    let world = World::new();
    world.sample();
    world.sql(
        "app.db",
        "INSERT INTO t SELECT id + 1000, randomblob(50000) FROM t",
    );
    let application = world.keep_open("app.db", "SELECT count(*) FROM t");
    let mut daemon = world.daemon();
    assert_eq!(daemon.term(), 0);
    let before: u64 = world
        .objects("replicas/app")
        .iter()
        .map(|(_, size)| size)
        .sum();
    world.sql("app.db", "UPDATE t SET v = 'one row' WHERE id = 50");
    let mut daemon = world.daemon();
    assert_eq!(daemon.term(), 0);
    application.end("SELECT 1");
    let after: u64 = world
        .objects("replicas/app")
        .iter()
        .map(|(_, size)| size)
        .sum();
    assert_eq!(world.generations().len(), 1);
    assert!(
        after - before <= 64 << 10,
        "{} bytes stored",
        after - before
    );
    world.restore("out.db", "");
    assert_eq!(
        world.sql("out.db", "SELECT v FROM t WHERE id = 50"),
        "one row"
    );
}

#[test]
fn a_failed_commit_at_the_end_of_a_wal_that_was_restarted_since_never_was() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    let mut setup = Setup::new(&world.path(""));
    setup.synchronous = "FULL".into();
    setup.library = Some(world.fault_library());
    // Some sync of the `-wal`, long after the daemon is gone.
    setup.faults = "420:eio".into();
    let mut writer = Writer::rust(&setup, &world.logs());
    writer.ask("updates 300 0");
    // The daemon lets the WAL restart, so that older frames lie behind those that come now.
    let salts = || fs::read(world.path("app.db-wal")).unwrap()[16..24].to_vec();
    let before = salts();
    wait_until(LONG, "the WAL to restart", || {
        writer.ask("updates 2 2");
        salts() != before
    });
    writer.ask("updates 10 0");
    world.await_sync(&mut daemon);
    daemon.kill9();

    let mut number = 0;
    let failed = wait_for(LONG, "a commit to fail", || {
        number += 1;
        let set = format!(
            "sql UPDATE t SET v = 'down {number}' WHERE id = {}",
            number % 100
        );
        writer.ask(&set)["error"].as_str().map(str::to_owned)
    });
    assert!(failed.contains("disk I/O error"), "{failed}");
    let checkpoint = writer.ask("checkpoint PASSIVE 0");
    assert_eq!(checkpoint["busy"], 0, "{checkpoint}");
    let changed = salts();
    writer.ask("sql UPDATE t SET v = 'restarted' WHERE id = 1");
    assert!(salts() != changed, "the WAL did not restart");

    world.daemon();
    check_all(&world.path("replicas/app"), &world.path("ledger"));
}

#[test]
fn histories_go_on_over_downtimes_in_which_the_application_ran_no_checkpoint() {
    let seed = seed();
    let worlds = 6;
    let each = 10 * soak();
    let counts = std::thread::scope(|scope| {
        let worlds: Vec<_> = (0..worlds)
            .map(|n| {
                scope.spawn(move || Downtimes::new(seed.wrapping_add(n), n % 3 == 2).run(each))
            })
            .collect();
        let counts = worlds
            .into_iter()
            .map(|world| world.join().expect("see its message above"));
        counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    println!(
        "{} downtimes; {} at rest without a checkpoint",
        worlds * each,
        counts.1
    );
    assert!(
        counts.1 >= worlds * each / 6,
        "too few downtimes began at rest: {counts:?}"
    );
}

/// Waits until so many more commits are in the ledger.
fn await_commits(world: &World, writer: &mut Writer, more: u64) {
    let size = || fs::metadata(world.path("ledger")).map_or(0, |file| file.len());
    // Each commit is two lines of 80 bytes.
    let enough = size() + more * 160;
    wait_until(LONG, "commits", || {
        assert!(writer.program.is_running(), "the writer ended");
        size() >= enough
    });
}

/// A database whose daemon is down again and again.
struct Downtimes {
    world: World,
    dice: Dice,
    writer: Writer,
    daemon: Running,
}

impl Downtimes {
    fn new(seed: u64, python: bool) -> Self {
        println!("downtimes with SQLREPL_SEED={seed}");
        let world = World::new();
        world.sample();
        let mut setup = Setup::new(&world.path(""));
        setup.seed = seed;
        let start = if python { Writer::python } else { Writer::rust };
        let mut writer = start(&setup, &world.logs());
        writer.ask("updates 10 0");
        let daemon = world.daemon();
        Self {
            world,
            dice: Dice(seed),
            writer,
            daemon,
        }
    }

    /// Goes through so many; how many there were in all and at rest without a checkpoint.
    fn run(mut self, count: u64) -> (u64, u64) {
        let mut unchecked = 0;
        for _ in 0..count {
            if self.dice.once_in(3) {
                self.under_load();
            } else {
                unchecked += u64::from(self.at_rest());
            }
        }
        assert_eq!(self.daemon.term(), 0);
        let ledger = self.world.path("ledger");
        let replica = self.world.path("replicas/app");
        check_some(&replica, &ledger, 200, &mut self.dice);
        (count, unchecked)
    }

    /// A downtime that begins while the application writes, which goes on.
    fn under_load(&mut self) {
        self.writer.send("updates 100000000 1000");
        let before = self.dice.roll(800);
        await_commits(&self.world, &mut self.writer, before);
        self.end_daemon();
        let during = self.dice.roll(2_500);
        await_commits(&self.world, &mut self.writer, during);
        self.start_daemon();
        fs::write(self.world.path("stop"), "").unwrap();
        self.writer.answer();
        fs::remove_file(self.world.path("stop")).unwrap();
    }

    /// A downtime that begins at rest. True if the application ran no checkpoint in it; then the
    /// generation went on.
    fn at_rest(&mut self) -> bool {
        self.world.await_rest();
        let generations = self.world.generations().len();
        self.end_daemon();
        let file = self.file();
        let updates = self.dice.pick(&[0, 1, 10, 100, 300, 600, 900, 2_500]);
        self.writer.ask(&format!("updates {updates} 0"));
        let unchecked = self.file() == file;
        self.start_daemon();
        let now = self.world.generations();
        if unchecked {
            assert_eq!(
                now.len(),
                generations,
                "{updates} updates ended a generation: {now:?}"
            );
        }
        unchecked
    }

    fn end_daemon(&mut self) {
        if self.dice.once_in(2) {
            assert_eq!(self.daemon.term(), 0);
        } else {
            self.daemon.kill9();
        }
    }

    fn start_daemon(&mut self) {
        self.daemon = self.world.replicate(START);
        let ledger = self.world.path("ledger");
        let shown = images(&ledger).len();
        self.world.await_sync(&mut self.daemon);
        check_durable(&self.world.path("replicas/app"), &ledger, shown);
    }

    /// What shows a checkpoint: SQLite writes the database file in no other case.
    fn file(&self) -> (u64, u64, SystemTime) {
        let file = fs::metadata(self.world.path("app.db")).unwrap();
        (file.ino(), file.len(), file.modified().unwrap())
    }
}

#[test]
fn a_replica_that_was_emptied_begins_anew() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    // The capture goes on where it was, since somebody has the database open.
    let application = world.keep_open("app.db", "SELECT count(*) FROM t");
    assert_eq!(daemon.term(), 0);
    fs::remove_dir_all(world.path("replicas/app")).unwrap();
    world.sql("app.db", "UPDATE t SET v = 'after' WHERE id = 1");
    let mut daemon = world.daemon();
    daemon.wait_says("is gone: somebody removed what the replica held");
    world.sync();
    drop(application);
    world.restore("out.db", "");
    assert_eq!(world.sql("out.db", "SELECT v FROM t WHERE id = 1"), "after");
}

#[test]
fn a_spool_that_was_lost_begins_a_new_generation() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    world.sql("app.db", "UPDATE t SET v = 'before' WHERE id = 1");
    world.sync();
    assert_eq!(daemon.term(), 0);
    fs::remove_dir_all(world.path(".app.db-sqlrepl/log")).unwrap();
    world.sql("app.db", "UPDATE t SET v = 'after' WHERE id = 1");
    let _daemon = world.daemon();
    assert_eq!(world.generations().len(), 2);
    world.restore("out.db", "");
    assert_eq!(world.sql("out.db", "SELECT v FROM t WHERE id = 1"), "after");
}
