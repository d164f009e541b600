//! Many databases in one daemon.

use crate::program::{LONG, wait_until};
use crate::world::{World, walk};
use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

const COUNT: usize = 200;
/// CPU is measured over so long.
const WINDOW: Duration = Duration::from_secs(10);

/// Makes `0.db` to `199.db` and a config with a replica for each.
fn databases(world: &World) {
    world.sample();
    let mut config = String::new();
    for n in 0..COUNT {
        fs::copy(world.path("app.db"), world.path(&format!("{n}.db"))).unwrap();
        write!(
            config,
            "[[db]]\npath = \"{n}.db\"\nmeta-path = \"{n}.meta\"\n\
             [[db.replica]]\nurl = \"s3://replicas/{n}\"\n"
        )
        .unwrap();
    }
    fs::write(world.path("c.toml"), config).unwrap();
}

/// CPU time of a process.
fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which may hold blanks; utime and stime, in ticks of 10 ms.
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|n| n.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// A line of `smaps_rollup`, bytes.
fn memory(pid: u32, line: &str) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let found = rollup.lines().find_map(|text| text.strip_prefix(line));
    let kilobytes = found.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<u64>().unwrap() << 10
}

/// README: "Two hundred idle databases in one daemon cost less than 1 % of a core and 100 MB of
/// memory, and a commit to any of them is captured at once."
#[test]
fn two_hundred_idle_databases_cost_next_to_nothing_and_each_commit_is_captured() {
    let world = World::on_s3();
    databases(&world);
    let mut daemon = world.replicate("--config c.toml");
    wait_until(LONG * 3, "the first snapshots", || {
        let mut count = 0;
        walk(&world.path("replicas"), &mut |path| {
            count += usize::from(path.extension().is_some_and(|kind| kind == "snapshot"));
        });
        count == COUNT
    });
    wait_until(LONG * 3, "an idle daemon", || {
        world.server().reset();
        let (since, before) = (Instant::now(), cpu(daemon.pid()));
        while since.elapsed() < WINDOW && world.server().requests() == 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
        let (used, passed) = (cpu(daemon.pid()) - before, since.elapsed());
        println!("{used:?} of CPU in {passed:?}");
        passed >= WINDOW && used < passed / 100
    });
    let pss = memory(daemon.pid(), "Pss:");
    assert!(pss < 100 << 20, "{} MiB", pss >> 20);
    for n in [0, 77, 199] {
        world.sql(&format!("{n}.db"), "UPDATE t SET v = 'new' WHERE id = 1");
        world.sqlrepl(&format!("--config c.toml sync {n}")).ok();
        world
            .sqlrepl(&format!("--config c.toml restore {n} -o {n}.new"))
            .ok();
        let row = world.sql(&format!("{n}.new"), "SELECT v FROM t WHERE id = 1");
        assert_eq!(row, "new");
    }
    assert_eq!(daemon.term(), 0);
}
