//! `sqlrepl mount --cache-dir` in odd company: two servers, a process with too many open files.

use crate::program::{LONG, wait_until};
use crate::s3_server::{Server, Verb};
use crate::world::{Mount, VERSION, World, three_versions};
use std::fs;
use std::path::Path;

const MOUNT: &str = "mount replicas mnt --cache-dir cache";

/// What is read of a server, ranged reads.
fn reads(server: &Server) -> u64 {
    server.counts().calls.get(&Verb::Get).copied().unwrap_or(0)
}

#[test]
fn two_servers_with_a_bucket_of_one_name_share_nothing_in_the_cache() {
    let world = World::on_s3();
    world.sample();
    assert_eq!(world.daemon().term(), 0);
    let mut mount = world.mount_at(MOUNT);
    assert_eq!(world.sql("mnt/app/latest.db", VERSION), "row 1");
    assert_eq!(mount.interrupt(), 0);
    // The same names, sizes and times.
    let other = Server::start(&world.path(".s3"));
    let mut command = world.ours(MOUNT);
    command.env("AWS_ENDPOINT_URL", other.endpoint());
    let mut mount = world.mount_by(&mut command);
    assert_eq!(world.sql("mnt/app/latest.db", VERSION), "row 1");
    assert_eq!(mount.interrupt(), 0);
    assert!(reads(&other) > 2, "{} reads", reads(&other));
}

/// Mounts with the library that refuses to open what the cache holds while `too-many` is there.
fn mounted(world: &World, library: &Path) -> Mount {
    let mut command = world.ours(MOUNT);
    command
        .env("LD_PRELOAD", library)
        .env("SQLREPL_TOO_MANY", world.path("too-many"));
    world.mount_by(&mut command)
}

#[test]
fn too_many_open_files_fail_no_read_and_turn_the_cache_off_when_it_writes() {
    let world = three_versions();
    let library = world.preloaded("emfile.c");
    fs::write(world.path("too-many"), "").unwrap();
    let mut mount = mounted(&world, &library);
    assert_eq!(world.sql("mnt/app/latest.db", VERSION), "three");
    mount
        .program
        .wait_says("the disk cache is off until the next mount: write a file of it: Too many");
    assert_eq!(
        world.sql("mnt/app/latest.db", "SELECT count(*) FROM t"),
        "100"
    );
    assert_eq!(mount.interrupt(), 0);

    fs::remove_file(world.path("too-many")).unwrap();
    let mut mount = mounted(&world, &library);
    assert_eq!(world.sql("mnt/app/latest.db", VERSION), "three");
    let kept = world.path("cache/00000000.data");
    wait_until(LONG, "what was read to be kept", || kept.exists());
    assert_eq!(mount.interrupt(), 0);

    // What is kept cannot be read now: it is read from the store.
    fs::write(world.path("too-many"), "").unwrap();
    let mut mount = mounted(&world, &library);
    assert_eq!(world.sql("mnt/app/latest.db", VERSION), "three");
    assert_eq!(mount.interrupt(), 0);
}
