//! Replicas in S3: what users read when a server refuses them, what an idle daemon asks of it, and
//! what becomes of commits while it is away. `contract.rs` has the contract of a store, `wire.rs`
//! what goes wrong on the wire.

mod contract;
mod wire;

use crate::exact::check_all;
use crate::program::{LONG, Output, wait_for, wait_until};
use crate::s3_server::{Server, Verb};
use crate::soak;
use crate::world::World;
use crate::writer::{Setup, Writer};
use serde_json::Value;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// A way in which a server refuses whoever asks.
struct Refusal {
    name: &'static str,
    /// Makes the server refuse.
    arrange: fn(&World),
    /// Makes a command be refused.
    change: fn(&mut Command),
    /// What the message says, where `HOST` is the server and `...` may be anything.
    says: &'static str,
}

const KEYS: &str = "set access-key-id and secret-access-key in the config, or AWS_ACCESS_KEY_ID \
                    and AWS_SECRET_ACCESS_KEY";

const REFUSALS: [Refusal; 6] = [
    Refusal {
        name: "wrong secret",
        arrange: |_| {},
        change: |command| {
            command.env("AWS_SECRET_ACCESS_KEY", "wrong");
        },
        says: "HOST says that the secret access key is not the access key's; KEYS",
    },
    Refusal {
        name: "unknown access key",
        arrange: |_| {},
        change: |command| {
            command.env("AWS_ACCESS_KEY_ID", "AKIAOTHER");
        },
        says: "HOST knows no such access key; KEYS",
    },
    Refusal {
        name: "no credentials",
        arrange: |_| {},
        change: |command| {
            command.env_remove("AWS_ACCESS_KEY_ID");
            command.env_remove("AWS_SECRET_ACCESS_KEY");
        },
        says: "no credentials were found (neither in the config nor in environment, profile or \
               instance); KEYS",
    },
    Refusal {
        name: "wrong region",
        arrange: |world| world.server().set(|s| s.region = Some("eu-central-1")),
        change: |_| {},
        says: "the bucket \"replicas\" lies in region eu-central-1, not in us-east-1; set region \
               to eu-central-1",
    },
    Refusal {
        name: "missing bucket",
        arrange: |world| fs::remove_dir_all(world.path("replicas")).unwrap(),
        change: |_| {},
        says: "there is no bucket \"replicas\" at HOST; create it, or correct its name",
    },
    Refusal {
        name: "clock off",
        arrange: |world| world.server().set(|s| s.clock_ahead = 3600),
        change: |_| {},
        says: "the clock here says 20..., that of HOST 20...; set the clock",
    },
];

/// README: "Wrong credentials, a wrong region, a missing bucket and a clock that is off are said in
/// one sentence with the remedy within 10 s, and the exit code is 1."
#[test]
fn what_a_server_refuses_is_said_in_one_sentence_with_the_remedy() {
    std::thread::scope(|scope| {
        for refusal in &REFUSALS {
            scope.spawn(|| check_refusal(refusal));
        }
    });
}

fn check_refusal(refusal: &Refusal) {
    let world = World::on_s3();
    world.sample();
    let mut daemon = world.daemon();
    assert_eq!(daemon.term(), 0);
    (refusal.arrange)(&world);
    fs::create_dir(world.path("mnt")).unwrap();
    let host = world.server().endpoint().replace("http://", "");
    let says = refusal.says.replace("HOST", &host).replace("KEYS", KEYS);
    let run = |arguments: &str| -> Output {
        let mut command = world.ours(arguments);
        (refusal.change)(&mut command);
        crate::program::run(&mut command)
    };
    for arguments in [
        "points replicas/app",
        "restore -o out.db replicas/app",
        "mount replicas mnt",
        "replicate app.db replicas/app",
        "replicate not-there-yet.db replicas/other",
    ] {
        let timed = || {
            let start = Instant::now();
            let output = run(arguments).fails(1, "sqlrepl: ");
            (start.elapsed(), output)
        };
        let name = refusal.name;
        // What else runs on the machine can only add.
        let soon = |(took, _): &(Duration, Output)| *took < Duration::from_secs(10);
        let found = (0..3).map(|_| timed()).find(soon);
        let (_, output) = found.unwrap_or_else(|| panic!("{name}: {arguments}: it took long"));
        let last = output.stderr.lines().next_back().unwrap_or_default();
        assert!(last.starts_with("sqlrepl: "), "{name}: {output}");
        let says = |line: &&str| says.split("...").all(|words| line.contains(words));
        assert!(says(&last), "{name}: {output}");
        // Of a daemon's replica, of its database, and as its last words.
        let said = output.stderr.lines().filter(says).count();
        assert!(said <= 3, "{name}: {output}");
        assert!(!output.stderr.contains("wrong"), "{name}: {output}");
    }
    assert!(!world.path("out.db").exists(), "{}", refusal.name);
}

/// README: "A line of 2 Mbit/s is enough: what moves is never given up, however long it takes." Of
/// eight reads at a time each has an eighth of the line. With `SQLREPL_SOAK`, a database of 40 MiB
/// goes up in parts over it, too.
#[test]
fn a_slow_line_is_enough() {
    const RATE: u64 = 2_000_000 / 8;
    let world = World::on_s3();
    world.sample();
    let mut patience = LONG;
    if soak() > 1 {
        world.sql("app.db", "INSERT INTO t(v) VALUES(randomblob(40 << 20))");
        world.server().set(|s| s.rate = Some(RATE));
        patience *= 10;
    }
    let mut daemon = world.replicate("app.db replicas/app --sync-interval 50ms");
    wait_until(patience, "the first sync", || {
        world.sqlrepl("sync app.db --timeout 30s").code == 0
    });
    world.server().set(|s| s.rate = None);
    for _ in 0..8 {
        world.sql("app.db", "INSERT INTO t(v) VALUES(randomblob(640 << 10))");
        world.sync();
    }
    assert_eq!(daemon.term(), 0);
    world.server().set(|s| s.rate = Some(RATE));
    let start = Instant::now();
    world.restore("out.db", "");
    let took = start.elapsed();
    assert!(took > Duration::from_secs(18), "{took:?}: too fast to show");
    let dump = |database| world.run("sqlite3", &[database, "SELECT sum(length(v)) FROM t"]);
    assert_eq!(dump("out.db").ok(), dump("app.db").ok());
}

/// An endpoint that cannot be is said at once: the daemon does not wait for it.
#[test]
fn an_endpoint_that_cannot_be_is_an_error_at_once() {
    let world = World::on_s3();
    world.sample();
    let says = "http://127.0.0.1:99999: no endpoint: a port is a number from 1 to 65535";
    let place = "s3://replicas/a?endpoint=http://127.0.0.1:99999";
    let given = world.sqlrepl(&format!("replicate app.db {place}"));
    given.fails(2, says);
    let mut named = world.ours("replicate app.db replicas/a");
    named.env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:99999");
    let named = crate::program::run(&mut named);
    named.fails(2, &format!("AWS_ENDPOINT_URL_S3: {says}"));
}

/// README: "An idle daemon asks nothing of an S3 server until a deletion or a snapshot falls due,
/// and then once an hour at most; a mount that nobody looks at asks nothing."
#[test]
fn an_idle_daemon_and_a_mount_that_nobody_looks_at_ask_nothing() {
    let world = World::on_s3();
    world.sample();
    let mut daemon = world.daemon();
    world.sql("app.db", "UPDATE t SET v = 'last' WHERE id = 1");
    world.sync();
    let mut mount = world.mount();
    assert_eq!(mount.names(""), ["app"]);
    let row = world.sql("mnt/app/latest.db", "SELECT v FROM t WHERE id = 1");
    assert_eq!(row, "last");
    world.await_rest();
    await_silence(world.server(), Duration::from_secs(30));
    assert_eq!(mount.interrupt(), 0);
    assert_eq!(daemon.term(), 0);
}

/// Waits until the server was asked nothing for so long.
fn await_silence(server: &Server, silence: Duration) {
    let mut since = Instant::now();
    server.reset();
    wait_until(LONG, "a server that nobody asks", || {
        if server.requests() > 0 {
            println!("asked after {:?}: {:?}", since.elapsed(), server.calls());
            server.reset();
            since = Instant::now();
        }
        since.elapsed() > silence
    });
}

/// README: "While a store is away capture goes on, the application never waits, and when it is back
/// everything arrives, in order."
#[test]
fn commits_made_while_the_server_is_away_arrive_in_order_when_it_is_back() {
    let outage = Duration::from_secs(if soak() > 1 { 60 } else { 8 });
    let world = World::on_s3();
    world.sample();
    let mut writer = Writer::rust(&Setup::new(&world.path("")), &world.logs());
    writer.ask("updates 10 0");
    let mut daemon = world.daemon();
    let durable = world.points().len();
    writer.send("updates 100000000 100");
    world.server().down();
    let start = Instant::now();
    let size = || fs::metadata(world.path("ledger")).unwrap().len();
    let mut last = (start, size());
    let mut longest = Duration::ZERO;
    while start.elapsed() < outage {
        let now = wait_for(LONG, "another commit", || {
            (size() != last.1).then(|| (Instant::now(), size()))
        });
        longest = longest.max(now.0 - last.0);
        last = now;
    }
    assert!(daemon.is_running());
    let unsynced = world.sqlrepl("sync app.db --timeout 5s");
    unsynced.fails(1, "s3://replicas/app lacks commits");
    let status = replica_status(&world);
    assert_eq!(status["state"], "retrying", "{status}");
    let trouble = status["trouble"].as_str().unwrap_or_default();
    assert!(trouble.contains("Connection refused"), "{status}");
    let lag = status["lag_seconds"].as_f64().unwrap();
    assert!(lag + 2.0 > outage.as_secs_f64(), "{status}");
    assert!(status["waiting_commits"].as_u64() > Some(100), "{status}");
    world.server().up();
    wait_until(LONG, "a sync", || {
        world.sqlrepl("sync app.db --timeout 10s").code == 0
    });
    fs::write(world.path("stop"), "").unwrap();
    let answer = writer.answer();
    world.sync();
    let status = replica_status(&world);
    assert_eq!(status["state"], "replicating", "{status}");
    assert_eq!(status["waiting_commits"], 0, "{status}");
    assert_eq!(daemon.term(), 0);
    let exact = check_all(&world.path("replicas/app"), &world.path("ledger"));
    println!("{answer}, away for {outage:?}: {exact:?}; longest time without a commit {longest:?}");
    let commits = usize::try_from(answer["commits"].as_u64().unwrap()).unwrap();
    assert_eq!(exact.points, durable + commits);
    assert_eq!(exact.ranges.len(), 1, "one generation");
    assert!(longest < outage / 2, "a commit waited {longest:?}");
    assert!(world.server().counts().calls[&Verb::Put] > 0);
}

/// What `sqlrepl status` says of the only replica.
#[track_caller]
fn replica_status(world: &World) -> Value {
    // Its exit code says whether all is well.
    let printed = world.sqlrepl("status app.db --json").stdout;
    let status: Value = serde_json::from_str(&printed).unwrap();
    status[0]["replicas"][0].clone()
}
