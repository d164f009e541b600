//! `make demo`, but for building what is built already.

use crate::program::{bound, run};
use crate::world::World;
use std::fs;

#[test]
fn the_demo_shows_a_row_before_and_after_and_leaves_nothing_behind() {
    let world = World::new();
    let mut command = bound(concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/demo"));
    command
        .env("SQLREPL", env!("CARGO_BIN_EXE_sqlrepl"))
        .env("TMPDIR", world.path(""));
    let shown = run(command.current_dir(env!("CARGO_MANIFEST_DIR"))).ok();
    for words in [
        "alice|100",
        "alice|0",
        "ok",
        "sqlrepl restore",
        "Nothing is left behind",
    ] {
        assert!(shown.contains(words), "\"{words}\" is not in: {shown}");
    }
    let left: Vec<_> = fs::read_dir(world.path(""))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(left, [world.path("logs")]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(world.path("").to_str().unwrap()),
        "{mounts}"
    );
}
