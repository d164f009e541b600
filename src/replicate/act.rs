//! The capture of one database: observe, decide, act.
//!
//! Owns the task that captures, step by step on a thread of the pool, and what other threads ask of
//! it. Never fails as a whole: what is wrong with the database shows as [`Capture::trouble`] and is
//! tried again.

use crate::config::{CaptureSettings, Environment};
use crate::error::{Error, ErrorKind, Result};
use crate::replicate::decide::{Break, TICK, Timing};
use crate::replicate::live::{Context, Leave, Live};
use crate::replicate::pages::SnapshotPin;
use crate::replicate::pool::{Bell, Pool, Task, Wake};
use crate::replicate::shown::Shown;
use crate::replicate::source::{PageSource, Source};
use crate::replicate::spool::Spool;
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long to wait after a failure before the database is opened again.
const RETRY: Duration = Duration::from_secs(1);
/// How long [`Capture::stop`] may take to leave an empty WAL behind.
const STOP: Duration = Duration::from_secs(8);

/// A running capture. Dropped without [`Capture::stop`] it ends as it stands.
#[derive(Debug)]
pub struct Capture {
    requests: Sender<Request>,
    /// Rings as it is dropped, behind the requests: then the task sees that nobody is left.
    bell: Bell,
    shown: Arc<Shown>,
    database: PathBuf,
}

enum Request {
    Barrier(oneshot::Sender<Result<u64>>),
    Snapshot(oneshot::Sender<Result<SnapshotPin>>),
    Stop(oneshot::Sender<Result<()>>),
}

impl Capture {
    /// Starts capturing: opens the database, then leaves it to the threads of the process's pool.
    /// What is wrong with the database for the moment (absent, empty, not to be switched to WAL
    /// mode) shows in [`Capture::trouble`] and is tried again. Blocking.
    ///
    /// # Errors
    /// `Conflict` if another daemon captures this database, `Unavailable` if the system gives no
    /// thread.
    pub fn start(
        settings: CaptureSettings,
        spool: Arc<Spool>,
        environment: Environment,
    ) -> Result<Self> {
        Self::start_on(
            Pool::of_process(),
            settings,
            spool,
            environment,
            Timing::default(),
        )
    }

    /// The same on another pool, with other ideas of how long to wait for what.
    pub(super) fn start_on(
        pool: &Arc<Pool>,
        settings: CaptureSettings,
        spool: Arc<Spool>,
        environment: Environment,
        timing: Timing,
    ) -> Result<Self> {
        let (wake, bell) = pool.enter()?;
        let (requests, received) = channel();
        let shown = Arc::<Shown>::default();
        let capture = Self {
            requests,
            bell,
            shown: Arc::clone(&shown),
            database: settings.database.clone(),
        };
        let id = wake.id();
        let mut worker = Worker {
            context: Context {
                database: settings.database.clone(),
                settings: Arc::new(settings),
                spool,
                environment,
                timing,
                shown,
            },
            wake,
            requests: received,
            mode: Mode::Away {
                again: Instant::now(),
                anew: None,
                needs_room: false,
            },
            stopping: None,
            span: tracing::Span::current(),
        };
        let attached = worker.attach();
        worker.context.shown.rest();
        match attached {
            Err(e) if e.kind() == ErrorKind::Conflict => return Err(e),
            Ok(()) => {}
            Err(e) => {
                worker.stay_away(&e);
            }
        }
        pool.begin(id, Box::new(worker));
        Ok(capture)
    }

    /// Why nothing is captured at the moment, if so: a sentence.
    pub fn trouble(&self) -> Option<String> {
        match self.shown.held_up(Instant::now()) {
            None => self.shown.trouble(),
            Some(time) => Some(format!(
                "the capture of {} has been held up for {} s: its file system, or that of its \
                 spool, does not answer",
                self.database.display(),
                time.as_secs()
            )),
        }
    }

    /// Bytes of the `-wal` file when the capture last looked; None while nothing is captured.
    pub fn wal_bytes(&self) -> Option<u64> {
        self.shown.wal_bytes()
    }

    /// Captures what is committed, leaves the WAL empty if it can (bounded, 5 s), notes how it
    /// leaves the file, closes it.
    ///
    /// # Errors
    /// `Disk`.
    pub async fn stop(&self) -> Result<()> {
        self.ask(Request::Stop).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).map_err(|_| ended())?;
        self.bell.ring();
        answer.await.map_err(|_| ended())?
    }
}

#[async_trait]
impl Source for Capture {
    async fn barrier(&self) -> Result<u64> {
        self.ask(Request::Barrier).await
    }

    async fn snapshot_pin(&self) -> Result<Box<dyn PageSource>> {
        let pin = self.ask(Request::Snapshot).await?;
        Ok(Box::new(pin))
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Disk, "the capture has ended unexpectedly")
}

/// The task.
struct Worker {
    context: Context,
    wake: Wake,
    requests: Receiver<Request>,
    mode: Mode,
    stopping: Option<Stopping>,
    /// Where it was started: what it logs belongs there.
    span: tracing::Span,
}

/// What is left to do for [`Capture::stop`].
struct Stopping {
    since: Instant,
    reply: oneshot::Sender<Result<()>>,
    /// How it ended.
    stopped: Result<()>,
}

enum Mode {
    /// Nothing is open.
    Away {
        /// When to try.
        again: Instant,
        /// Why the next run begins, if the last one has ended.
        anew: Option<Break>,
        /// Whether the spool must have room first.
        needs_room: bool,
    },
    Live(Box<Live>),
}

impl Task for Worker {
    fn step(&mut self, is_changed: bool) -> Option<Duration> {
        let span = self.span.clone();
        let _entered = span.enter();
        self.context.shown.begin();
        let wait = self.steps(is_changed);
        self.context.shown.rest();
        wait
    }

    fn end(self: Box<Self>, has_panicked: bool) {
        let _entered = self.span.enter();
        if has_panicked {
            tracing::error!("{}: {}", self.context.database.display(), ended());
            self.context.shown.set_trouble(Some(ended().to_string()));
            self.context.shown.rest();
        }
        // Whoever is told that it has stopped may open the same files again.
        drop(self.mode);
        drop(self.wake);
        drop(self.context);
        if let Some(stopping) = self.stopping.filter(|_| !has_panicked) {
            answer(stopping.reply, stopping.stopped);
        }
    }
}

impl Worker {
    /// Steps until there is nothing to do; how long to wait then.
    fn steps(&mut self, is_changed: bool) -> Option<Duration> {
        if is_changed && let Mode::Live(live) = &mut self.mode {
            live.note_event();
        }
        loop {
            if self.stopping.is_some() {
                return self.step_to_stop();
            }
            let wait = self.turn();
            match self.serve() {
                Served::Nothing => {}
                Served::Some => continue,
                Served::Over => return None,
            }
            if wait > TICK && !self.wake.is_armed() {
                self.arm();
                continue;
            }
            return Some(wait);
        }
    }

    /// What is to be done now; how long to wait then.
    fn turn(&mut self) -> Duration {
        let left = match &mut self.mode {
            Mode::Live(live) => match live.turn() {
                Ok(wait) => {
                    let failure = self.context.spool.failure();
                    self.set_trouble(failure);
                    return wait;
                }
                Err(left) => left,
            },
            Mode::Away { again, .. } => {
                let wait = again.saturating_duration_since(Instant::now());
                // A file event says that it may be worth trying before; the events may be those of
                // a busy database in the same directory.
                if !wait.is_zero() {
                    let pause = TICK.saturating_sub(RETRY.saturating_sub(wait));
                    match self.wake.is_armed() {
                        true => return wait,
                        false if !pause.is_zero() => return pause,
                        false => {}
                    }
                }
                return match self.attach() {
                    Ok(()) => Duration::ZERO,
                    Err(e) => self.stay_away(&e),
                };
            }
        };
        self.leave(left);
        Duration::ZERO
    }

    fn leave(&mut self, left: Leave) {
        match left {
            Leave::Reopen(why) => self.away(why.to_string(), Some(why), false),
            Leave::LetGo(why) => {
                tracing::warn!("{}: {why}", self.context.database.display());
                self.away(why.to_string(), Some(why), true);
            }
            Leave::Failed(e) => {
                tracing::warn!("{}: {e}", self.context.database.display());
                self.away(e.to_string(), None, false);
            }
        }
    }

    fn away(&mut self, trouble: String, anew: Option<Break>, needs_room: bool) {
        // Closes everything that was open.
        self.mode = Mode::Away {
            again: Instant::now(),
            anew,
            needs_room,
        };
        self.set_trouble(Some(trouble));
    }

    fn stay_away(&mut self, error: &Error) -> Duration {
        if let Mode::Away { again, .. } = &mut self.mode {
            *again = Instant::now() + RETRY;
        }
        if self.trouble() != Some(error.to_string()) {
            tracing::warn!("{error}");
        }
        self.set_trouble(Some(error.to_string()));
        RETRY
    }

    fn attach(&mut self) -> Result<()> {
        let Mode::Away {
            anew, needs_room, ..
        } = &self.mode
        else {
            return Ok(());
        };
        let anew = anew.clone();
        if *needs_room && self.context.spool.is_tight() {
            let why = anew.map_or(String::new(), |why| format!(": {why}"));
            return Err(Error::unavailable(format!(
                "nothing is captured until the spool has room{why}"
            )));
        }
        let path = &self.context.settings.database;
        self.context.database = existing(path)?;
        let live = Live::attach(self.context.clone(), anew)?;
        self.mode = Mode::Live(Box::new(live));
        self.set_trouble(None);
        Ok(())
    }

    fn arm(&mut self) {
        match &self.mode {
            Mode::Live(live) => self.wake.arm(&live.watched_files()),
            Mode::Away { .. } => {
                let database = &self.context.settings.database;
                let dir = database.parent().filter(|dir| *dir != Path::new(""));
                self.wake.arm_directory(dir.unwrap_or(Path::new(".")));
            }
        }
    }

    fn serve(&mut self) -> Served {
        let mut served = Served::Nothing;
        loop {
            match self.requests.try_recv() {
                Ok(Request::Barrier(reply)) => {
                    let seq = self.with_live(|live| live.catch_up().map(Ok));
                    answer(reply, seq);
                }
                Ok(Request::Snapshot(reply)) => {
                    let pin = self.with_live(Live::snapshot_pin);
                    answer(reply, pin);
                }
                Ok(Request::Stop(reply)) => {
                    let since = Instant::now();
                    let stopped = self.begin_to_stop();
                    let is_over = stopped.is_err();
                    self.stopping = Some(Stopping {
                        since,
                        reply,
                        stopped,
                    });
                    return if is_over { Served::Over } else { Served::Some };
                }
                Err(TryRecvError::Empty) => return served,
                Err(TryRecvError::Disconnected) => return Served::Over,
            }
            served = Served::Some;
        }
    }

    fn with_live<T>(
        &mut self,
        ask: impl FnOnce(&mut Live) -> Result<Result<T>, Leave>,
    ) -> Result<T> {
        let Mode::Live(live) = &mut self.mode else {
            let trouble = self.trouble().unwrap_or_default();
            return Err(Error::unavailable(format!(
                "nothing is captured: {trouble}"
            )));
        };
        match ask(live) {
            Ok(answered) => answered,
            Err(left) => {
                self.leave(left);
                let trouble = self.trouble().unwrap_or_default();
                Err(Error::unavailable(trouble))
            }
        }
    }

    /// Captures what is there.
    fn begin_to_stop(&mut self) -> Result<()> {
        let caught_up = match &mut self.mode {
            Mode::Live(live) => live.catch_up().map(|_| ()),
            Mode::Away { .. } => Ok(()),
        };
        match caught_up {
            Err(Leave::Failed(e)) => Err(e),
            Ok(()) | Err(Leave::Reopen(_) | Leave::LetGo(_)) => Ok(()),
        }
    }

    /// Goes to rest if that is possible.
    fn step_to_stop(&mut self) -> Option<Duration> {
        let (Mode::Live(live), Some(stopping)) = (&mut self.mode, &mut self.stopping) else {
            return None;
        };
        if live.is_stopped(stopping.since) || stopping.since.elapsed() > STOP {
            return None;
        }
        match live.turn() {
            Ok(wait) => Some(wait.min(TICK)),
            Err(Leave::Failed(e)) => {
                stopping.stopped = Err(e);
                None
            }
            Err(Leave::Reopen(_) | Leave::LetGo(_)) => None,
        }
    }

    fn trouble(&self) -> Option<String> {
        self.context.shown.trouble()
    }

    fn set_trouble(&self, trouble: Option<String>) {
        self.context.shown.set_trouble(trouble);
    }
}

enum Served {
    Nothing,
    Some,
    Over,
}

/// Answers a request; whoever asked may have gone, and then nobody needs the answer.
fn answer<T>(reply: oneshot::Sender<T>, answer: T) {
    drop(reply.send(answer));
}

/// The database, symbolic links resolved, if there is one to capture. An empty file is not one yet:
/// to switch it to WAL mode would write page 1, and so decide its page size for the application.
fn existing(path: &Path) -> Result<PathBuf> {
    let real = std::fs::canonicalize(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::not_found(format!(
            "there is no database {} yet; it is captured as soon as there is one",
            path.display()
        )),
        _ => Error::disk(format!("find {}", path.display()), e),
    })?;
    let meta =
        std::fs::metadata(&real).map_err(|e| Error::disk(format!("stat {}", path.display()), e))?;
    if !meta.is_file() {
        return Err(Error::invalid(format!("{} is not a file", path.display())));
    }
    if meta.len() == 0 {
        return Err(Error::not_found(format!(
            "{} is empty; it is captured as soon as an application writes to it",
            path.display()
        )));
    }
    Ok(real)
}
