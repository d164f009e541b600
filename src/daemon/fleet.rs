//! The databases of a process, and the life of each: start, work, failure, another try.

use crate::config::Environment;
use crate::config::settings::DatabaseSettings;
use crate::daemon::database::Database;
use crate::daemon::status::{DatabaseState, DatabaseStatus};
use crate::daemon::{Replicated, control};
use crate::error::{Error, ErrorKind, Result};
use crate::replicate::budget::Budget;
use crate::storage::blocking::{blocking, joined};
use std::convert::Infallible;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tokio::time::{Instant, timeout};
use tracing::Instrument;

/// So many databases are opened at once, and so many meet their replicas for the first time: each
/// costs work, memory and requests that it does not need later.
const STARTS: usize = 16;

/// So many replicas are maintained at once: each takes a core and some 30 MB while it merges.
const TURNS: usize = 1;

/// An open that takes longer leaves its turn to others, and shows as trouble.
const SLOW: Duration = Duration::from_secs(5);

/// The same of all databases together: systemd gives up after 90 s.
const ALL_SLOW: Duration = Duration::from_secs(30);

/// Wait until a database that failed is tried again: the first and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The databases of a process.
pub(crate) struct Fleet {
    members: Vec<Member>,
    /// Open files and read what the spools hold.
    starts: Semaphore,
    /// Ask stores, and make first snapshots.
    contacts: Semaphore,
    /// Merge and take snapshots.
    pub(super) turns: Arc<Semaphore>,
    pub(super) budget: Arc<Budget>,
    pub(super) environment: Environment,
    pub(super) host: String,
    pub(super) take_over: bool,
}

struct Member {
    settings: DatabaseSettings,
    state: Mutex<State>,
}

#[derive(Clone)]
enum State {
    /// Others come first.
    Starting,
    /// It has been opened since then.
    Opening(Instant),
    Running(Arc<Database>),
    /// It failed, and is tried again.
    Waiting(String),
    /// It failed for good.
    Failed(String),
    Ended,
}

/// Hears of the first start of a database.
#[derive(Clone)]
pub(super) struct First {
    outcome: Option<mpsc::UnboundedSender<bool>>,
    /// Dropped when there is no sense in waiting for it any longer.
    attempt: Option<mpsc::Sender<Infallible>>,
}

/// What is heard of the first starts.
pub(super) struct Firsts {
    /// Whether it came to work, once for each database.
    pub(super) outcomes: mpsc::UnboundedReceiver<bool>,
    /// Ends when each database works, has failed or takes long to start.
    pub(super) attempts: mpsc::Receiver<Infallible>,
    /// Who waits for the process to be ready waits no longer for those.
    pub(super) deadline: Instant,
}

impl First {
    pub(super) fn new() -> (Self, Firsts) {
        let (outcome, outcomes) = mpsc::unbounded_channel();
        let (attempt, attempts) = mpsc::channel(1);
        let first = Self {
            outcome: Some(outcome),
            attempt: Some(attempt),
        };
        let firsts = Firsts {
            outcomes,
            attempts,
            deadline: Instant::now() + ALL_SLOW,
        };
        (first, firsts)
    }

    fn is_awaited(&self) -> bool {
        self.outcome.is_some()
    }

    /// Says once whether it came to work; nobody listens once the process is about to end.
    fn tell(&mut self, is_up: bool) {
        if let Some(outcome) = self.outcome.take() {
            outcome.send(is_up).ok();
        }
        self.takes_long();
    }

    fn takes_long(&mut self) {
        self.attempt = None;
    }
}

impl Fleet {
    pub(super) fn new(replicated: Replicated, environment: Environment) -> Self {
        let member = |settings| Member {
            settings,
            state: Mutex::new(State::Starting),
        };
        Self {
            members: replicated.databases.into_iter().map(member).collect(),
            starts: Semaphore::new(STARTS),
            contacts: Semaphore::new(STARTS),
            turns: Arc::new(Semaphore::new(TURNS)),
            budget: Budget::new(replicated.max_spool_size),
            environment,
            host: replicated.host,
            take_over: replicated.take_over,
        }
    }

    /// The names of the databases, in their order.
    pub(super) fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.members.iter().map(|member| &*member.settings.name)
    }

    /// The database at this place, while it runs.
    ///
    /// # Errors
    /// `Unavailable`, with the reason.
    pub(super) fn running(&self, at: usize) -> Result<Arc<Database>> {
        let member = &self.members[at];
        let why = match member.state() {
            State::Running(database) => return Ok(database),
            State::Starting => "it is just being started".to_owned(),
            State::Opening(since) => slow(&member.settings, since)
                .unwrap_or_else(|| "it is just being started".to_owned()),
            State::Waiting(why) | State::Failed(why) => why,
            State::Ended => "it has been stopped".to_owned(),
        };
        Err(Error::unavailable(format!(
            "{} is not replicated: {why}",
            member.settings.capture.database.display()
        )))
    }

    /// What is to be said of the database at this place.
    pub(super) fn status(&self, at: usize) -> DatabaseStatus {
        let member = &self.members[at];
        let without =
            |state, trouble| DatabaseStatus::of_settings(&member.settings).with(state, trouble);
        match member.state() {
            State::Running(database) => database.status(),
            State::Starting => without(DatabaseState::Starting, None),
            State::Opening(since) => {
                without(DatabaseState::Starting, slow(&member.settings, since))
            }
            State::Waiting(why) => without(DatabaseState::Waiting, Some(why)),
            State::Failed(why) => without(DatabaseState::Failed, Some(why)),
            State::Ended => without(DatabaseState::NotRunning, None),
        }
    }

    /// What is to be said of all databases.
    pub(super) fn statuses(&self) -> Vec<DatabaseStatus> {
        (0..self.members.len()).map(|at| self.status(at)).collect()
    }

    /// Runs a database until `stop`. Tells `first` of the first start.
    ///
    /// # Errors
    /// What it has failed with, if it does not run at the end.
    pub(super) async fn supervise(
        self: Arc<Self>,
        at: usize,
        mut stop: watch::Receiver<bool>,
        mut first: First,
    ) -> Result<()> {
        let member = &self.members[at];
        let mut pause = AGAIN.0;
        loop {
            let (began, is_first) = (Instant::now(), first.is_awaited());
            let worked = self.run_once(at, &mut stop, &mut first).await;
            first.tell(false);
            let Err(error) = worked else {
                member.set(State::Ended);
                return Ok(());
            };
            let error = self.named(at, error);
            if *stop.borrow() {
                member.set(State::Ended);
                return Err(error);
            }
            if !may_pass(error.kind(), is_first) {
                tracing::error!("not replicated any more: {error}");
                member.set(State::Failed(error.to_string()));
                return Err(error);
            }
            if began.elapsed() > AGAIN.1 {
                pause = AGAIN.0;
            }
            tracing::error!("{error}");
            member.set(State::Waiting(error.to_string()));
            if timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok() {
                member.set(State::Ended);
                return Err(error);
            }
            tracing::info!("trying again");
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    /// Starts a database and runs it until `stop`, until something fails, or until all its replicas
    /// have given up.
    async fn run_once(
        self: &Arc<Self>,
        at: usize,
        stop: &mut watch::Receiver<bool>,
        first: &mut First,
    ) -> Result<()> {
        let member = &self.members[at];
        let turn = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            turn = self.starts.acquire() => turn.expect("it is never closed"),
        };
        member.set(State::Opening(Instant::now()));
        let (database, listener) = self.open(at, turn, stop, first).await?;
        let database = Arc::new(database);
        member.set(State::Running(database.clone()));
        first.tell(true);
        let worked = match listener.and_then(|listener| control::serve(listener, self, at)) {
            Ok(_served) => tokio::select! {
                _ = stop.wait_for(|stop| *stop) => Ok(()),
                worked = database.work(&self.contacts) => worked,
            },
            Err(e) => Err(e),
        };
        let outcome = worked.and(database.stop().await);
        if let Err(e) = &outcome {
            member.set(State::Waiting(e.to_string()));
            // Before its files are closed, to open them anew would meet its own locks.
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                () = database.closed() => {}
            }
        }
        outcome
    }

    /// Opens a database and its control socket, in a task of its own: one whose file system does
    /// not answer holds up neither the others nor the end of the process.
    ///
    /// # Errors
    /// As [`Database::open`]; `Unavailable` if it is not opened before `stop`.
    async fn open(
        self: &Arc<Self>,
        at: usize,
        turn: SemaphorePermit<'_>,
        stop: &mut watch::Receiver<bool>,
        first: &mut First,
    ) -> Result<(Database, Result<UnixListener>)> {
        let began = Instant::now();
        let fleet = self.clone();
        let open = async move {
            let database = Database::open(&fleet.members[at].settings, &fleet).await?;
            let meta_path = fleet.meta_path(at).to_owned();
            let listener = blocking(move || control::listen(&meta_path)).await;
            Ok((database, listener))
        };
        let mut opening = tokio::spawn(open.in_current_span());
        if let Ok(opened) = timeout(SLOW, &mut opening).await {
            return joined(opened);
        }
        drop(turn);
        let settings = &self.members[at].settings;
        tracing::warn!("{}", slow_since(settings, SLOW));
        first.takes_long();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {
                Err(Error::unavailable(slow_since(settings, began.elapsed())))
            }
            opened = opening => joined(opened),
        }
    }

    /// Where the spool of the database at this place lies.
    pub(super) fn meta_path(&self, at: usize) -> &Path {
        &self.members[at].settings.capture.meta_path
    }

    /// The error with the database's name, if there are several.
    fn named(&self, at: usize, error: Error) -> Error {
        match self.members.len() {
            1 => error,
            _ => error.context(&self.members[at].settings.name),
        }
    }
}

impl Member {
    fn state(&self) -> State {
        let state = self.state.lock();
        state.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// What is to be said of a database that has been opened since then, if that takes long.
fn slow(settings: &DatabaseSettings, since: Instant) -> Option<String> {
    let time = since.elapsed();
    (time > SLOW).then(|| slow_since(settings, time))
}

fn slow_since(settings: &DatabaseSettings, time: Duration) -> String {
    format!(
        "{} is not open after {} s: its file system, that of its spool {} or a replica does not \
         answer",
        settings.capture.database.display(),
        time.as_secs(),
        settings.capture.meta_path.display()
    )
}

/// Whether what keeps a database from being replicated may go away by itself. A lock that somebody
/// holds at the first start does not: another process replicates the database, and will go on.
/// Later it may be one of ours, as long as a `sync` is not answered.
fn may_pass(kind: ErrorKind, is_first: bool) -> bool {
    match kind {
        ErrorKind::Disk | ErrorKind::Unavailable => true,
        ErrorKind::Conflict => !is_first,
        ErrorKind::NotFound | ErrorKind::Refused | ErrorKind::Corrupt | ErrorKind::Invalid => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_somebody_elses_only_at_the_first_start() {
        let passes = |kind| [true, false].map(|is_first| may_pass(kind, is_first));
        assert_eq!(passes(ErrorKind::Conflict), [false, true]);
        for kind in [ErrorKind::Disk, ErrorKind::Unavailable] {
            assert_eq!(passes(kind), [true, true]);
        }
        use ErrorKind::{Corrupt, Invalid, NotFound, Refused};
        for kind in [NotFound, Refused, Corrupt, Invalid] {
            assert_eq!(passes(kind), [false, false]);
        }
    }
}
