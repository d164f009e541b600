//! A mount on the machine of the daemon: what it learns from that, and what it does without.

use crate::machine::{Clock, Machine};
use crate::program::{LONG, Running, bound, wait_until};
use crate::s3_server::Verb;
use crate::world::{Mount, VERSION, World};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::time::{Duration, Instant};

/// How often these mounts look: the stories take less time.
const REFRESH: Duration = Duration::from_millis(100);

const MOUNT: &str = "mount --refresh 100ms replicas mnt";

/// What the mount says of a database.
fn status(world: &World, database: &str) -> Value {
    let path = world.path(&format!("mnt/{database}/.sqlrepl/status.json"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Whether it says that a daemon tells it what changes.
fn is_informed(world: &World) -> bool {
    status(world, "app")["informed"].as_bool().unwrap()
}

fn await_informed(world: &World, expect: bool) {
    let what = if expect {
        "a daemon to inform"
    } else {
        "no daemon to inform"
    };
    wait_until(LONG, what, || is_informed(world) == expect);
}

/// Sets the first row of a database.
fn update(world: &World, database: &str, value: &str) {
    let update = format!("UPDATE t SET v = '{value}' WHERE id = 1");
    world.sql(database, &update);
}

/// Waits until `latest.db` shows this version of the first row.
fn await_seen(world: &World, value: &str) {
    wait_until(LONG, value, || {
        world.sql("mnt/app/latest.db", VERSION) == value
    });
}

/// Commits one by one, each after the one before was seen; the longest time from a commit's being
/// durable to its being seen.
fn commit_and_see(world: &World, count: u64) -> Duration {
    let one = |n| {
        let value = format!("commit {n}");
        update(world, "app.db", &value);
        world.sync();
        let durable = Instant::now();
        await_seen(world, &value);
        durable.elapsed()
    };
    (1..=count).map(one).max().unwrap_or_default()
}

/// README: "New commits appear in a mount within `--refresh` (1 s) of being looked for. On the
/// machine of the daemon that writes them a mount learns of them from the daemon, and lists the
/// store about once a minute."
#[test]
fn commits_show_in_a_mount_beside_the_daemon_without_a_request() {
    let world = World::alone_on_s3();
    world.sample();
    let mut daemon = world.daemon_with("--sync-interval 10ms");
    let mount = world.mount_at(MOUNT);
    // A machine that stands still makes the mount list for a while, as it should.
    let rounds = (0..3).map(|_| round_without_a_request(&world));
    let failed: Vec<String> = rounds.map_while(Result::err).collect();
    assert!(failed.len() < 3, "{failed:#?}");
    drop::<Mount>(mount);
    assert_eq!(daemon.term(), 0);
}

/// Commits fifty times. Says what was wrong if one showed late or something was asked for them.
fn round_without_a_request(world: &World) -> Result<(), String> {
    await_informed(world, true);
    // What no commit changes is read now.
    commit_and_see(world, 1);
    let (began, before) = (Instant::now(), world.server().requests() as usize);
    let slowest = commit_and_see(world, 50);
    let asked = world.server().calls()[before..].to_vec();
    let minutes = began.elapsed().as_secs() / 60 + 1;
    let lists = asked.iter().filter(|call| call.verb == Verb::List).count();
    println!("the slowest of 50 commits was seen after {slowest:?}; {lists} listings");
    let others = asked.iter().filter(|call| call.verb != Verb::Put).count() - lists;
    // Besides the look it takes a sqlite3 to see it.
    let is_soon = slowest < REFRESH + Duration::from_secs(1);
    if is_soon && lists as u64 <= minutes && others == 0 && is_informed(world) {
        return Ok(());
    }
    Err(format!(
        "{slowest:?}, {lists} listings in {minutes} min: {asked:?}"
    ))
}

#[test]
fn a_mount_goes_on_without_the_daemon_and_finds_the_next_one() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    let _mount = world.mount_at(MOUNT);
    await_informed(&world, true);
    commit_and_see(&world, 5);
    daemon.kill9();
    await_informed(&world, false);
    await_seen(&world, "commit 5");
    // One that the mount does not know of.
    let elsewhere = "app.db replicas/app --sync-interval 10ms --meta-path elsewhere";
    let mut daemon = world.replicate(elsewhere);
    for value in ["first", "second", "third"] {
        update(&world, "app.db", value);
        await_seen(&world, value);
    }
    assert!(!is_informed(&world));
    assert_eq!(daemon.term(), 0);
    let mut daemon = world.daemon();
    await_informed(&world, true);
    commit_and_see(&world, 5);
    await_informed(&world, true);
    assert_eq!(daemon.term(), 0);
}

/// README: "What another machine writes to a replica appears within a minute in a mount that learns
/// from a daemon. A daemon tells only a mount of its own user or of root, and one with
/// `--meta-path` only if the config file says so."
#[test]
fn what_another_machine_writes_appears_within_a_minute() {
    let world = World::new();
    let mut one = Machine::new(&world, "one", 0);
    one.replicate("");
    let clock = Clock::new(&world, "mount");
    let mut mounting = world.ours(MOUNT);
    let _mount = world.mount_by(mounting.envs(clock.environment()));
    await_informed(&world, true);
    update(&world, "one/app.db", "of one");
    await_seen(&world, "of one");

    let mut two = Machine::restored(&world, "two", &one);
    two.start("--take-over --meta-path spool");
    let claims = |world: &World| {
        let objects = world.objects("replicas/app");
        objects
            .iter()
            .filter(|(key, _)| key.ends_with(".snapshot"))
            .count()
    };
    wait_until(LONG, "a generation of the other machine", || {
        claims(&world) == 2
    });
    update(&world, "two/app.db", "of two");
    let began = Instant::now();
    clock.set_ahead(Duration::from_secs(60));
    await_seen(&world, "of two");
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "the clock did it"
    );
    await_informed(&world, false);
    update(&world, "two/app.db", "of two again");
    await_seen(&world, "of two again");
    one.kill();
    two.kill();
}

#[test]
fn a_copy_of_a_replica_is_not_what_the_daemon_writes() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    world.sync();
    world
        .run("cp", &["-a", "replicas/app", "replicas/copy"])
        .ok();
    let mount = world.mount_at(MOUNT);
    await_informed(&world, true);
    for _ in 0..3 {
        assert_eq!(world.sql("mnt/copy/latest.db", VERSION), "row 1");
        assert_eq!(status(&world, "copy")["informed"], false);
        commit_and_see(&world, 1);
    }
    drop::<Mount>(mount);
    assert_eq!(daemon.term(), 0);
}

#[test]
fn a_daemon_that_stands_still_holds_up_no_look_for_long() {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    let clock = Clock::new(&world, "mount");
    let mut mounting = world.ours(MOUNT);
    let _mount = world.mount_by(mounting.envs(clock.environment()));
    await_informed(&world, true);
    daemon.signal(libc::SIGSTOP);
    await_informed(&world, false);
    let twenty_looks = || {
        let began = Instant::now();
        for _ in 0..20 {
            assert_eq!(world.sql("mnt/app/latest.db", VERSION), "row 1");
        }
        began.elapsed()
    };
    // What else runs on the machine can only add.
    let is_soon = (0..3).any(|_| twenty_looks() < Duration::from_secs(10));
    assert!(is_soon, "each look waited");
    assert_eq!(status(&world, "app")["state"], "known");
    daemon.signal(libc::SIGCONT);
    clock.set_ahead(Duration::from_secs(60));
    await_informed(&world, true);
}

#[test]
fn a_daemon_elsewhere_is_found_by_the_config_file() {
    let world = World::new();
    world.sample();
    let replica = match world.requests() {
        Some(_) => "url = \"s3://replicas/app\"",
        None => "path = \"replicas/app\"",
    };
    let config = format!(
        "[[db]]\npath = \"app.db\"\nmeta-path = \"elsewhere\"\n[[db.replica]]\n{replica}\n"
    );
    fs::write(world.path("sqlrepl.toml"), config).unwrap();
    let mut daemon = world.start("--config sqlrepl.toml replicate");
    wait_until(LONG, "the first sync", || {
        assert!(daemon.is_running(), "the daemon ended");
        world.sqlrepl("--config sqlrepl.toml sync app").code == 0
    });
    for mount in ["mount --refresh 100ms mnt", MOUNT] {
        let mount = world.mount_at(&format!("--config sqlrepl.toml {mount}"));
        await_informed(&world, true);
        drop::<Mount>(mount);
    }
    let mount = world.mount_at(MOUNT);
    await_seen(&world, "row 1");
    await_seen(&world, "row 1");
    assert!(!is_informed(&world));
    drop::<Mount>(mount);
    assert_eq!(daemon.term(), 0);
}

#[test]
fn a_mount_that_may_not_ask_the_daemon_lists() {
    let world = World::new();
    world.sample();
    let daemon = world.daemon();
    // As if another user ran it.
    let spool = world.path(".app.db-sqlrepl");
    fs::set_permissions(&spool, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(mode(&spool.join("control.sock")), 0o600);
    for path in [&spool, &spool.join("control.sock")] {
        chown(path, Some(65534), Some(65534)).unwrap();
    }
    let ours = world.ours(MOUNT);
    let mut mounting = bound("setpriv");
    // Without these root is a user as any other; fusermount3 is not needed.
    mounting.args(["--bounding-set", "-dac_override,-dac_read_search"]);
    mounting.arg(ours.get_program()).args(ours.get_args());
    for (name, value) in ours.get_envs() {
        match value {
            Some(value) => mounting.env(name, value),
            None => mounting.env_remove(name),
        };
    }
    mounting.current_dir(ours.get_current_dir().unwrap());
    mounting.stdin(std::process::Stdio::null());
    let mut mount = world.mount_by(&mut mounting);
    commit_and_see(&world, 5);
    assert!(!is_informed(&world));
    assert_eq!(mount.interrupt(), 0);
    assert_eq!(mount.program.stderr().matches("WARN").count(), 0);
    drop::<Running>(daemon);
}

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}
