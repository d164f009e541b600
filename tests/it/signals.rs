//! How signals end a mount and a daemon: a terminal that is closed, `nohup`, a store that hangs.

use crate::program::{LONG, Running, bound, wait_until};
use crate::s3_server::{Stop, Verb};
use crate::world::{VERSION, World, three_versions};
use std::fs;
use std::process::{Command, Stdio};

/// Runs a program on a terminal of its own, shows what it prints there, closes the terminal when
/// the standard input ends, and ends as the program does.
const ON_A_TERMINAL: &str = "
import os, pty, select, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
process, terminal = pty.fork()
if process == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
while 0 not in select.select([0, terminal], [], [])[0]:
    os.write(1, os.read(terminal, 1000))
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
";

/// `sqlrepl` with these words, run by another program.
fn run_by(world: &World, program: &str, before: &[&str], words: &str) -> Command {
    let ours = world.ours(words);
    let mut command = bound(program);
    command
        .args(before)
        .arg(ours.get_program())
        .args(ours.get_args())
        .current_dir(world.path(""))
        .stdin(Stdio::null());
    for (name, value) in ours.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

fn on_a_terminal(world: &World, words: &str) -> Command {
    let mut command = run_by(world, "/usr/bin/python3", &["-c", ON_A_TERMINAL], words);
    command.stdin(Stdio::piped());
    command
}

/// README: "SIGHUP, as of a terminal that is closed, ends `mount` and `replicate` as SIGTERM does,
/// unless they were started to ignore it, as by `nohup`."
#[test]
fn a_terminal_that_is_closed_ends_a_mount_and_a_daemon_in_good_order() {
    let world = three_versions();
    let mut mount = world.mount_by(&mut on_a_terminal(&world, "mount replicas mnt"));
    assert_eq!(world.sql("mnt/app/latest.db", VERSION), "three");
    drop(mount.program.stdin());
    assert_eq!(mount.program.wait_exit(), 0);
    assert!(!mount.is_mounted());

    let words = "replicate app.db replicas/app --sync-interval 1h";
    let mut command = on_a_terminal(&world, words);
    let mut daemon = Running::start(&mut command, &world.logs());
    world.await_sync(&mut daemon);
    world.sql("app.db", "UPDATE t SET v = 'last' WHERE id = 1");
    drop(daemon.stdin());
    assert_eq!(daemon.wait_exit(), 0);
    world.restore("out.db", "");
    assert_eq!(world.sql("out.db", VERSION), "last");
}

#[test]
fn a_mount_and_a_daemon_under_nohup_outlive_their_terminal() {
    let world = three_versions();
    let by_nohup = |words: &str| run_by(&world, "nohup", &[], words);
    let mut mount = world.mount_by(&mut by_nohup("mount replicas mnt"));
    let mut daemon = by_nohup("replicate app.db replicas/app --sync-interval 50ms");
    let mut daemon = Running::start(&mut daemon, &world.logs());
    world.await_sync(&mut daemon);
    for program in [&mut daemon, &mut mount.program] {
        program.signal(libc::SIGHUP);
    }
    world.sql("app.db", "UPDATE t SET v = 'later' WHERE id = 1");
    world.sync();
    wait_until(LONG, "the newest commit", || {
        world.sql("mnt/app/latest.db", VERSION) == "later"
    });
    for program in [&mut daemon, &mut mount.program] {
        assert_eq!(program.term(), 0);
        let said = program.stderr();
        assert!(!said.contains("SIGHUP"), "{said}");
    }
}

#[test]
fn a_signal_ends_a_mount_that_waits_for_a_store_and_nothing_was_mounted() {
    let world = World::on_s3();
    fs::create_dir(world.path("mnt")).unwrap();
    let server = world.server();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let held = server.hold(Stop::Before, |call| call.verb == Verb::List);
        let mut mount = world.start("mount replicas mnt");
        held.wait();
        mount.signal(signal);
        assert_eq!(mount.wait_exit(), 0);
        // It would say so after the first look, whatever came of it.
        assert_eq!(mount.stdout(), "");
        drop(held);
    }
}
