//! The binary: parses the command line, runs one subcommand, turns what came of it into an exit
//! code. The clock and the signals come in here.

mod args;
mod listings;
mod mount;
mod replicate;
mod restore;
mod status;
mod sync;
mod table;

use clap::Parser;
use nix::time::{ClockId, clock_gettime};
use sqlrepl::config::location::Location;
use sqlrepl::config::{Clock, Environment, random};
use sqlrepl::error::{Error, ErrorKind, Result};
use sqlrepl::format::ids::Timestamp;
use sqlrepl::materialize::cache::BlockCache;
use sqlrepl::materialize::replica::Replica;
use sqlrepl::storage::{self, Store};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Pages that a command keeps in memory, bytes.
const CACHE_BYTES: u64 = 64 << 20;

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let cli = args::Cli::parse();
    start_log();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sqlrepl: {e}");
            exit_code(e.kind())
        }
    }
}

fn run(command: args::Command) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Error::disk("start the runtime", e))?;
    let done = runtime.block_on(async {
        match command {
            args::Command::Replicate(args) => replicate::run(args).await,
            args::Command::Sync(args) => sync::run(args).await,
            args::Command::Status(args) => status::run(args).await,
            args::Command::Mount(args) => mount::run(args).await,
            args::Command::Restore(args) => restore::run(args).await,
            args::Command::Generations(args) => listings::generations(args).await,
            args::Command::Snapshots(args) => listings::snapshots(args).await,
            args::Command::Wal(args) => listings::wal(args).await,
            args::Command::Points(args) => listings::points(args).await,
            args::Command::Version => say(concat!("sqlrepl ", env!("CARGO_PKG_VERSION"))),
        }
    });
    // What still runs holds nothing that its end could harm; a read of a store that hangs must not
    // hold up the exit.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// 0 done, 1 failed, 2 usage or config, 3 no such database or moment.
fn exit_code(kind: ErrorKind) -> ExitCode {
    match kind {
        ErrorKind::Invalid => ExitCode::from(2),
        ErrorKind::NotFound => ExitCode::from(3),
        _ => ExitCode::FAILURE,
    }
}

fn start_log() {
    // fuser logs each reply to a reader that was killed as an error.
    let filter =
        EnvFilter::try_from_env("SQLREPL_LOG").unwrap_or_else(|_| EnvFilter::new("info,fuser=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
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

/// Returns at SIGINT or SIGTERM. The signals are caught from the call on; a second one ends the
/// process at once.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let catch = |kind| signal(kind).map_err(|e| Error::disk("catch signals", e));
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut terminate = catch(SignalKind::terminate())?;
    Ok(async move {
        let first = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        tracing::info!("{first}: ending");
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            tracing::warn!("second signal: ended at once");
            std::process::exit(1);
        });
    })
}

/// The store at a place that must be there already, to be read.
async fn existing_store_at(place: &str) -> Result<Arc<dyn Store>> {
    let location = Location::parse(place)?;
    match &location {
        Location::Directory(path) if !path.is_dir() => Err(Error::not_found(format!(
            "{place}: no such directory, so no replica is there"
        ))),
        _ => storage::open(&location).await,
    }
}

/// The replica at a place that must be there already, read once.
async fn replica_at(place: &str) -> Result<Arc<Replica>> {
    let cache = Arc::new(BlockCache::new(CACHE_BYTES));
    let replica = Replica::new(existing_store_at(place).await?, cache);
    replica.refresh().await?;
    Ok(replica)
}

#[cfg(test)]
mod tests {
    use super::*;

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
