//! The binary: parses the command line, runs one subcommand, turns what came of it into an exit
//! code. The clock and the signals come in here.

mod args;
mod background;
mod compact;
mod config;
mod databases;
mod du;
mod fstab;
mod gathered;
mod informant;
mod kept;
mod listings;
mod log;
mod memory;
mod moment;
mod mount;
mod notify;
mod query;
mod replicate;
mod restore;
mod retain;
mod rows;
mod status;
mod sync;
mod syslog;
mod table;
mod target;
mod umount;

use crate::cli::config::Config;
use crate::cli::log::Log;
use clap::Parser;
use nix::time::{ClockId, clock_gettime};
use sqlrepl::config::settings::LogTarget;
use sqlrepl::config::{Clock, Environment, random};
use sqlrepl::error::{Error, ErrorKind, Result};
use sqlrepl::format::ids::Timestamp;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::signal::unix::{SignalKind, signal};

/// Pages that a command keeps in memory, bytes.
const CACHE_BYTES: u64 = 64 << 20;

/// Who runs us, and so which exit codes are understood.
#[derive(Clone, Copy)]
enum Caller {
    Shell,
    /// mount(8).
    Mount,
}

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    memory::give_back_what_is_free();
    let argv: Vec<OsString> = std::env::args_os().collect();
    let (cli, caller) = match parse(&argv) {
        Ok(parsed) => parsed,
        Err(ended) => return ended,
    };
    let said = |e: Error| {
        eprintln!("sqlrepl: {e}");
        exit_code(e.kind(), caller)
    };
    // Before there is any thread, file or log of ours.
    if matches!(&cli.command, args::Command::Mount(mount) if mount.daemon) && !background::is_this()
    {
        return background::start(&argv).unwrap_or_else(said);
    }
    let (config, log) = match start(&cli) {
        Ok(started) => started,
        Err(e) => return said(e),
    };
    match run(cli.command, &config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log.last_words(&e);
            exit_code(e.kind(), caller)
        }
    }
}

/// Understands the command line, which may be one of mount(8), or ends with the exit code.
fn parse(argv: &[OsString]) -> Result<(args::Cli, Caller), ExitCode> {
    let Some(asked) = fstab::rewritten(argv) else {
        return Ok((args::Cli::understand(argv), Caller::Shell));
    };
    let wrong = ExitCode::from(MOUNT_USAGE);
    let asked = asked.map_err(|e| {
        eprintln!("sqlrepl: {e}");
        wrong
    })?;
    match args::Cli::try_parse_from(asked.arguments) {
        Ok(_) if asked.is_fake => Err(ExitCode::SUCCESS),
        Ok(cli) => Ok((cli, Caller::Mount)),
        Err(e) => {
            eprint!("{e}");
            Err(wrong)
        }
    }
}

/// Finds the config file and begins the log that it asks for.
fn start(cli: &args::Cli) -> Result<(Config, Log)> {
    let config = match cli.command {
        args::Command::Version => Config::none(),
        _ => Config::find(cli.config.as_deref())?,
    };
    let is_daemon = matches!(
        cli.command,
        args::Command::Replicate(_) | args::Command::Mount(_)
    );
    let mut settings = config.log();
    if let args::Command::Mount(args::Mount {
        log_file: Some(path),
        ..
    }) = &cli.command
    {
        settings.target = LogTarget::File(path.clone());
    }
    let log = Log::start(&settings, is_daemon)?;
    Ok((config, log))
}

fn run(command: args::Command, config: &Config) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Error::disk("start the runtime", e))?;
    let done = runtime.block_on(async {
        match command {
            args::Command::Replicate(args) => replicate::run(args, config).await,
            args::Command::Sync(args) => sync::run(args, config).await,
            args::Command::Status(args) => status::run(args, config).await,
            args::Command::Mount(args) => mount::run(args, config).await,
            args::Command::Umount(args) => umount::run(&args),
            args::Command::Restore(args) => restore::run(args, config).await,
            args::Command::Query(args) => query::run(args, config).await,
            args::Command::Generations(args) => listings::generations(args, config).await,
            args::Command::Snapshots(args) => listings::snapshots(args, config).await,
            args::Command::Wal(args) => listings::wal(args, config).await,
            args::Command::Points(args) => listings::points(args, config).await,
            args::Command::Compact(args) => compact::run(args, config).await,
            args::Command::Retain(args) => retain::run(args, config).await,
            args::Command::Du(args) => du::run(args, config).await,
            args::Command::Databases(args) => databases::run(&args, config).await,
            args::Command::Config(args) => config::run(&args, config),
            args::Command::Version => say(concat!("sqlrepl ", env!("CARGO_PKG_VERSION"))),
        }
    });
    // What still runs holds nothing that its end could harm; a read of a store that hangs must not
    // hold up the exit.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// What mount(8) understands as a wrong command line.
const MOUNT_USAGE: u8 = 1;

/// What mount(8) understands as a mount that failed.
const MOUNT_FAILURE: u8 = 32;

/// 0 done, 1 failed, 2 usage or config, 3 no such database or moment.
fn exit_code(kind: ErrorKind, caller: Caller) -> ExitCode {
    match (caller, kind) {
        (Caller::Mount, _) => ExitCode::from(MOUNT_FAILURE),
        (Caller::Shell, ErrorKind::Invalid) => ExitCode::from(2),
        (Caller::Shell, ErrorKind::NotFound) => ExitCode::from(3),
        (Caller::Shell, _) => ExitCode::FAILURE,
    }
}

/// Prints a line, or several.
///
/// # Errors
/// `Disk`, but not if whoever read it has gone: then nobody misses the rest.
fn say(lines: &str) -> Result<()> {
    say_to(&mut io::stdout().lock(), lines)
}

fn say_to(out: &mut impl Write, lines: &str) -> Result<()> {
    match writeln!(out, "{lines}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::disk("write to the standard output", e))
        }
        _ => Ok(()),
    }
}

/// The system's clock.
fn clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    })
}

/// The system's clocks and randomness.
fn environment() -> Environment {
    Environment {
        clock: clock(),
        // No Linux since 2.6.39 is without this clock.
        uptime: Arc::new(|| {
            clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
        }),
        random: Arc::new(random),
    }
}

/// For this long after the first signal another one is the same wish. `timeout` sends two, to the
/// process and to its group, and Ctrl-C reaches both a program and whoever passes it on.
const SAME_WISH: Duration = Duration::from_secs(1);

/// Returns at SIGINT, SIGTERM or SIGHUP, but for a SIGHUP that we were started to ignore. The
/// signals are caught from the call on; a second SIGINT or SIGTERM, not just after the first
/// signal, ends the process at once.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let catch = |kind| signal(kind).map_err(|e| Error::disk("catch signals", e));
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut terminate = catch(SignalKind::terminate())?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut hangup = match is_ignored(SignalKind::hangup(), &status) {
        true => None,
        false => Some(catch(SignalKind::hangup())?),
    };
    Ok(async move {
        let first = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            Some(_) = async { hangup.as_mut()?.recv().await } => "SIGHUP",
        };
        let began = Instant::now();
        tracing::info!("{first}: ending");
        notify::stopping();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if began.elapsed() >= SAME_WISH {
                    break;
                }
            }
            tracing::warn!("second signal: ended at once");
            std::process::exit(1);
        });
    })
}

/// Whether a process of this `/proc/PID/status` ignores a signal, as `nohup` asks for.
fn is_ignored(signal: SignalKind, status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal.as_raw_value() - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_ignored_has_its_bit_in_the_mask() {
        let status = |mask: &str| format!("Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
        for (mask, hangup, terminate) in [
            ("0000000000000000", false, false),
            ("0000000000001001", true, false),
            ("0000000000005000", false, true),
            ("unreadable", false, false),
        ] {
            let status = status(mask);
            assert_eq!(is_ignored(SignalKind::hangup(), &status), hangup, "{mask}");
            assert_eq!(
                is_ignored(SignalKind::terminate(), &status),
                terminate,
                "{mask}"
            );
        }
        assert!(!is_ignored(SignalKind::hangup(), ""));
    }

    /// Fails with this error.
    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure_and_a_full_disk_is() {
        say_to(&mut Failing(io::ErrorKind::BrokenPipe), "line").unwrap();
        let full = say_to(&mut Failing(io::ErrorKind::StorageFull), "line").unwrap_err();
        assert_eq!(full.kind(), ErrorKind::Disk);
        let mut out = Vec::new();
        say_to(&mut out, "line").unwrap();
        assert_eq!(out, b"line\n");
    }
}
