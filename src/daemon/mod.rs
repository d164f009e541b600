//! Many databases in one process: each has its own spool, capture and uploaders, and starts, runs
//! and fails by itself.
//!
//! What fails ends its own database or its own replica, never the others, and shows in the log, in
//! `status` and in the exit code:
//!
//! - *A replica* that gave up (a wrong setting, damaged objects, a store that refused it from the
//!   start) is left; the database's other replicas go on. When all have given up the database ends.
//! - *A database* whose start or work failed for a reason that may pass by itself (the local disk,
//!   no answer) is tried again, at growing intervals; one that another process has, whose state is
//!   damaged or whose settings are wrong stays down until the process is started again.
//! - *The process* ends by itself when no database is left, or when not one could be started.

pub mod control;
mod database;
mod fleet;
mod maintenance;
mod replica;
#[cfg(test)]
mod simulation;
pub mod status;

use crate::config::Environment;
use crate::config::settings::DatabaseSettings;
use crate::daemon::fleet::{First, Fleet};
use crate::error::{Error, ErrorKind, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::future::Future;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout_at;
use tracing::Instrument;

/// Files that a database and its replicas have open at most, about.
const FILES_EACH: u64 = 20;

/// Files that the process has open besides.
const FILES_BESIDES: u64 = 100;

/// What a process replicates.
pub struct Replicated {
    /// The databases; their names, meta-paths and replica locations are unique.
    pub databases: Vec<DatabaseSettings>,
    /// Bytes that all spools and held-back WALs together may take; None: a tenth of the free
    /// space, at most 10 GiB.
    pub max_spool_size: Option<u64>,
    /// The machine, for messages.
    pub host: String,
    /// Where another writer's generation is above ours, begin one above all.
    pub take_over: bool,
}

/// Replicates databases until `stop`; then sends what is pending, as far as that goes within ten
/// seconds. What is not sent stays in the spool for the next start. Calls `ready` when each
/// database has been opened, has failed or does not answer; not if all have failed.
///
/// # Errors
/// The gravest of what has failed by the end: `Conflict` if another process replicates a database,
/// `Disk`, `Invalid`; what made a replica give up.
pub async fn run(
    replicated: Replicated,
    environment: Environment,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> Result<()> {
    raise_open_files(replicated.databases.len());
    let fleet = Arc::new(Fleet::new(replicated, environment));
    let (stopping, stopped) = watch::channel(false);
    let (first, mut firsts) = First::new();
    let mut tasks = JoinSet::new();
    for (at, name) in fleet.names().enumerate() {
        let supervised = fleet.clone().supervise(at, stopped.clone(), first.clone());
        let span = tracing::error_span!("database", database = %name);
        tasks.spawn(supervised.instrument(span));
    }
    drop(first);
    let mut stop = std::pin::pin!(stop);
    let mut failures = Vec::new();
    let mut down = 0;
    let mut ready = Some(ready);
    while down < fleet.names().len() {
        tokio::select! {
            biased;
            () = &mut stop => break,
            Some(is_up) = firsts.outcomes.recv() => down += usize::from(!is_up),
            _ = timeout_at(firsts.deadline, firsts.attempts.recv()), if ready.is_some() => {
                while let Ok(is_up) = firsts.outcomes.try_recv() {
                    down += usize::from(!is_up);
                }
                if let Some(ready) = ready.take_if(|_| down < fleet.names().len()) {
                    ready();
                }
            }
            ended = tasks.join_next() => match ended {
                Some(ended) => failures.extend(failure(ended)),
                None => break,
            },
        }
    }
    stopping.send_replace(true);
    while let Some(ended) = tasks.join_next().await {
        failures.extend(failure(ended));
    }
    match gravest(failures) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// What a database ended with, if it failed.
fn failure(ended: Result<Result<()>, JoinError>) -> Option<Error> {
    match ended {
        Ok(outcome) => outcome.err(),
        Err(e) => Some(Error::new(ErrorKind::Disk, "a database ended unexpectedly").because(e)),
    }
}

/// The failure that the exit code tells of: first what went wrong at work, then what is wrong with
/// the settings.
fn gravest(failures: impl IntoIterator<Item = Error>) -> Option<Error> {
    let rank = |kind| match kind {
        ErrorKind::Corrupt => 0,
        ErrorKind::Disk => 1,
        ErrorKind::Conflict => 2,
        ErrorKind::Refused => 3,
        ErrorKind::Unavailable => 4,
        ErrorKind::Invalid => 5,
        ErrorKind::NotFound => 6,
    };
    failures.into_iter().min_by_key(|error| rank(error.kind()))
}

/// Lets the process open as many files as it may.
fn raise_open_files(databases: usize) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let raised = if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        } else {
            Ok(())
        };
        raised.map(|()| hard)
    });
    let needed = FILES_BESIDES + databases as u64 * FILES_EACH;
    match raised {
        Ok(limit) if limit >= needed => {}
        Ok(limit) => tracing::warn!(
            "at most {limit} files may be open, and {databases} databases need up to {needed}: \
             raise LimitNOFILE= of the service, or `ulimit -Hn`"
        ),
        Err(errno) => tracing::warn!("raise the limit of open files: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_at_work_is_graver_than_a_wrong_setting() {
        let of = |kinds: &[ErrorKind]| {
            let errors = kinds.iter().map(|kind| Error::new(*kind, "sentence"));
            gravest(errors).map(|error| error.kind())
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[ErrorKind::Invalid]), Some(ErrorKind::Invalid));
        assert_eq!(
            of(&[ErrorKind::Invalid, ErrorKind::Conflict]),
            Some(ErrorKind::Conflict)
        );
        assert_eq!(
            of(&[ErrorKind::Disk, ErrorKind::Corrupt, ErrorKind::NotFound]),
            Some(ErrorKind::Corrupt)
        );
    }
}
