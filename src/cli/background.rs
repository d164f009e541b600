//! `--daemon`: a mount that goes on when the command has returned.
//!
//! The command runs itself once more and waits for the new process: a fork alone would have to come
//! before any thread, and is not safe. The new process has the same arguments, directory, standard
//! output and error, so it fails with the same words and exit code as it would in the foreground.
//! Its standard input is a pipe, on which it says that it is ready. Only then it leaves the shell's
//! session and directory: systemd lets nobody but its own process group walk into the mount point
//! of an automount that waits to be mounted, and a new session would be a new group.

use crate::cli::syslog;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use sqlrepl::error::{Error, Result};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt, parent_id};
use std::process::{Command, ExitCode, ExitStatus};

/// Tells the new process whose it is, by the process id.
const PARENT: &str = "SQLREPL_BACKGROUND_OF";

/// Whether we are the new process.
pub(crate) fn is_this() -> bool {
    let parent = std::env::var(PARENT).ok();
    parent.is_some_and(|parent| parent == parent_id().to_string())
}

/// Runs this command line once more and returns when that process is ready or has ended: with
/// success, or with its exit code.
///
/// # Errors
/// `Disk` if it cannot be started.
pub(crate) fn start(argv: &[OsString]) -> Result<ExitCode> {
    let failed = |e| Error::disk("start in the background", e);
    let (mut ready, say_ready) = io::pipe().map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    if let [name, arguments @ ..] = argv {
        command.arg0(name).args(arguments);
    }
    command.env(PARENT, std::process::id().to_string());
    let mut process = command.stdin(say_ready).spawn().map_err(failed)?;
    // It holds our copy of the pipe's other end.
    drop(command);
    match ready.read(&mut [0]).map_err(failed)? {
        0 => process.wait().map(code).map_err(failed),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The exit code of a process that was never ready.
fn code(status: ExitStatus) -> ExitCode {
    match status.code() {
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        None => {
            let signal = status.signal().unwrap_or_default();
            eprintln!("sqlrepl: it was killed by signal {signal} before it was ready");
            ExitCode::FAILURE
        }
    }
}

/// Leaves the shell, as the new process that is ready.
///
/// # Errors
/// `Disk`, also if nobody waits for us any more.
pub(crate) fn leave() -> Result<()> {
    let failed = |e| Error::disk("go on in the background", e);
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(failed)?;
    let pipe = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    std::env::set_current_dir("/").map_err(failed)?;
    setsid().map_err(|e| failed(e.into()))?;
    syslog::take_over();
    let detached = dup2_stdin(&null)
        .and_then(|()| dup2_stdout(&null))
        .and_then(|()| dup2_stderr(&null));
    detached.map_err(|e| failed(e.into()))?;
    // Last: the shell goes on now.
    File::from(pipe).write_all(b"r").map_err(failed)
}
