//! What a file system that does not answer holds up: its own database, and nothing else.

use crate::fleet::{await_sync, config, insert, make, newest, status};
use crate::program::{LONG, Running, wait_for, wait_until};
use crate::start::Manager;
use crate::world::World;
use serde_json::Value;
use sqlrepl::mount::mountpoint::Mount;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// A mount whose requests nobody answers, as of a server that is gone, until it is dropped: then
/// those who wait get an error, and what lay there before is seen again.
struct Hung {
    // Unmounted first, so that nobody waits there anew; then those who wait are let go.
    _mount: Mount,
    _device: OwnedFd,
}

impl Hung {
    #[track_caller]
    fn over(folder: &Path) -> Self {
        let (device, mount) = Mount::new(folder, "hung", false).unwrap();
        Self {
            _mount: mount,
            _device: device,
        }
    }
}

/// Asks it to end, which must not take long.
#[track_caller]
fn end_in_time(daemon: &mut Running) -> i32 {
    let asked = Instant::now();
    let code = daemon.term();
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(60), "it ended after {took:?}");
    code
}

/// What `status` says of the database `disk/shop` beside `app`, in time.
#[track_caller]
fn shop(world: &World) -> Value {
    wait_for(LONG, "the other database to be captured", || {
        let asked = Instant::now();
        let (mut databases, _) = status(world, "--config fleet.toml");
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(60), "status took {took:?}");
        (databases[0]["state"] == "capturing").then(|| databases.remove(1))
    })
}

fn two(world: &World) {
    std::fs::create_dir(world.path("disk")).unwrap();
    make(world, "app");
    make(world, "disk/shop");
    config(world, &["app", "disk/shop"]);
}

#[test]
fn a_replica_on_a_dead_mount_holds_up_no_other_replica_of_its_database() {
    let world = World::new();
    std::fs::create_dir(world.path("disk")).unwrap();
    make(&world, "app");
    config(&world, &["app"]);
    let text = std::fs::read_to_string(world.path("fleet.toml")).unwrap();
    let dead = "[[db.replica]]\nname = \"dead\"\npath = \"disk/replica\"\n";
    std::fs::write(world.path("fleet.toml"), text + dead).unwrap();
    let _hung = Hung::over(&world.path("disk"));
    let mut daemon = world.replicate("--config fleet.toml");
    wait_until(LONG, "a sync of the other replica", || {
        assert!(daemon.is_running(), "the daemon ended");
        let sync = world.sqlrepl("sync app.db --replica app --timeout 30s");
        sync.code == 0
    });
    assert_eq!(newest(&world, "app"), "made");
    let (databases, _) = status(&world, "--config fleet.toml");
    assert_eq!(databases[0]["replicas"][0]["state"], "replicating");
    assert_eq!(databases[0]["replicas"][1]["state"], "starting");
    assert_eq!(end_in_time(&mut daemon), 0);
}

/// README: "A database whose file system does not answer holds up no other one, shows in `sqlrepl
/// status`, and does not keep the process from its end."
#[test]
fn a_database_on_a_dead_mount_is_named_and_holds_up_neither_others_nor_the_end() {
    let world = World::new();
    two(&world);
    let hung = Hung::over(&world.path("disk"));
    let mut daemon = world.replicate("--config fleet.toml");
    await_sync(&world, &mut daemon, "app");
    insert(&world, "app", "as if nothing were");
    await_sync(&world, &mut daemon, "app");
    assert_eq!(newest(&world, "app"), "as if nothing were");
    wait_until(LONG, "the trouble to show", || {
        let shop = shop(&world);
        assert_eq!(shop["state"], "starting", "{shop}");
        let trouble = shop["trouble"].as_str();
        trouble.is_some_and(|it| it.contains("disk/shop.db is not open after"))
    });
    assert_eq!(end_in_time(&mut daemon), 1);
    assert!(daemon.stderr().contains("does not answer"));

    let mut daemon = world.replicate("--config fleet.toml");
    await_sync(&world, &mut daemon, "app");
    drop(hung);
    await_sync(&world, &mut daemon, "disk/shop");
    assert_eq!(newest(&world, "disk/shop"), "made");
    assert_eq!(daemon.term(), 0);
}

#[test]
fn a_service_manager_hears_that_a_daemon_is_ready_when_one_database_alone_does_not_answer() {
    let world = World::new();
    two(&world);
    let _hung = Hung::over(&world.path("disk"));
    let manager = Manager::new(&world);
    let mut daemon = manager.start(&world, "replicate --config fleet.toml");
    assert_eq!(manager.hear(), "READY=1\nSTATUS=replicating 2 databases");
    // So long it was waited for; the other one runs.
    let said = daemon.stderr();
    assert!(
        said.contains("disk/shop.db is not open after 5 s"),
        "{said}"
    );
    assert_eq!(shop(&world)["state"], "starting");
    assert_eq!(end_in_time(&mut daemon), 1);
}

#[test]
fn a_mount_that_dies_under_a_capture_is_named_and_the_capture_goes_on_when_it_is_back() {
    let world = World::new();
    two(&world);
    let mut daemon = world.replicate("--config fleet.toml");
    await_sync(&world, &mut daemon, "app");
    await_sync(&world, &mut daemon, "disk/shop");
    for is_end in [false, true] {
        // About to be dropped from the spool: that hangs, too.
        world.sql("disk/shop.db", "INSERT INTO t VALUES(randomblob(300000))");
        await_sync(&world, &mut daemon, "disk/shop");
        let hung = Hung::over(&world.path("disk"));
        insert(&world, "app", "as if nothing were");
        await_sync(&world, &mut daemon, "app");
        wait_until(LONG, "the trouble to show", || {
            let shop = shop(&world);
            let trouble = shop["trouble"].as_str();
            trouble.is_some_and(|it| it.contains("disk/shop.db has been held up for"))
        });
        if is_end {
            assert_eq!(end_in_time(&mut daemon), 1);
            let said = daemon.stderr();
            assert!(said.contains("did not end within 10 s"), "{said}");
        }
        drop(hung);
        if !is_end {
            insert(&world, "disk/shop", "back");
            await_sync(&world, &mut daemon, "disk/shop");
            assert_eq!(newest(&world, "disk/shop"), "back");
        }
    }
    assert_eq!(world.sql("disk/shop.db", "PRAGMA integrity_check"), "ok");
}
