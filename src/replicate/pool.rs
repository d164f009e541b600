//! The threads of all captures of a process: one that waits for files and times, and as many as
//! captures are busy.
//!
//! A task works in steps, one at a time. Between two steps it may rest on its thread, for some
//! milliseconds, or without one. Owns threads, times and wake-ups; what to do about them says
//! [`schedule`]. A task that panics ends alone.
//!
//! POSIX locks belong to the process, so that a capture may go from thread to thread.

mod schedule;

pub(super) use schedule::Id;

use crate::error::{Error, Result};
use crate::replicate::wake::Watcher;
use inotify::Inotify;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use schedule::{Call, Hand, Rest, Schedule};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::thread::{Builder, Thread};
use std::time::{Duration, Instant};

/// SQLite needs little, and there may be some dozens of these.
const STACK_BYTES: usize = 512 << 10;
/// Beyond so many busy captures they take turns.
const THREADS_MAX: usize = 64;
/// A thread that found nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(10);
/// A task rests for so long at least.
const REST_MIN: Duration = Duration::from_millis(1);

/// What a pool carries out.
pub(super) trait Task: Send {
    /// Does what is to be done now. Returns how long to wait then, at most; `None` once it is over.
    /// `is_changed`: something happened to a file that it watches.
    fn step(&mut self, is_changed: bool) -> Option<Duration>;

    /// It is over, or has panicked and must not be used again.
    fn end(self: Box<Self>, has_panicked: bool);
}

/// Threads for any number of tasks.
pub(super) struct Pool {
    state: Mutex<State>,
    watcher: Watcher,
    idle: Duration,
}

struct State {
    schedule: Schedule,
    /// Those that hold no thread.
    tasks: HashMap<Id, Box<dyn Task>>,
    threads: HashMap<Hand, Thread>,
    /// The thread that waits for files and times, as long as there are tasks.
    lookout: Option<Lookout>,
}

struct Lookout {
    bell: PipeWriter,
    /// When it looks at the schedule if nobody rings before.
    next: Option<Instant>,
}

/// A task's place in the pool, until it is dropped.
pub(super) struct Wake {
    pool: Arc<Pool>,
    id: Id,
}

/// Wakes a task; any number of threads may ring. Dropped it rings once more.
pub(super) struct Bell {
    pool: Arc<Pool>,
    id: Id,
}

impl Pool {
    /// The one that captures use: the system limits a user's inotify instances, not their watches.
    pub(super) fn of_process() -> &'static Arc<Self> {
        static POOL: LazyLock<Arc<Pool>> = LazyLock::new(|| Pool::new(THREADS_MAX, IDLE));
        &POOL
    }

    pub(super) fn new(threads_max: usize, idle: Duration) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                schedule: Schedule::new(threads_max, Instant::now()),
                tasks: HashMap::new(),
                threads: HashMap::new(),
                lookout: None,
            }),
            watcher: Watcher::new(),
            idle,
        })
    }

    /// A place for a task, and its bell. The task has no turn before [`Pool::begin`].
    ///
    /// # Errors
    /// `Unavailable` if the system gives no thread or no descriptor.
    pub(super) fn enter(self: &Arc<Self>) -> Result<(Wake, Bell)> {
        let mut state = self.state();
        if state.lookout.is_none() {
            state.lookout = Some(self.look_out()?);
        }
        let id = state.schedule.enter();
        let pool = || Arc::clone(self);
        Ok((Wake { pool: pool(), id }, Bell { pool: pool(), id }))
    }

    /// The task that has this place has its first turn.
    pub(super) fn begin(self: &Arc<Self>, id: Id, task: Box<dyn Task>) {
        let mut state = self.state();
        state.tasks.insert(id, task);
        let calls = state.schedule.begin(id, Instant::now());
        self.answer(state, calls);
    }

    fn look_out(self: &Arc<Self>) -> Result<Lookout> {
        let (reader, bell) = io::pipe()
            .map_err(|e| Error::unavailable("the system gives no pipe for captures").because(e))?;
        let (pool, inotify) = (Arc::clone(self), self.watcher.open());
        Builder::new()
            .name("capture-wake".into())
            .stack_size(STACK_BYTES)
            .spawn(move || pool.wait_for_all(&reader, inotify))
            .map_err(|e| {
                Error::unavailable("the system gives no thread for captures").because(e)
            })?;
        Ok(Lookout { bell, next: None })
    }

    /// What the lookout does: wakes tasks as files change and times come.
    fn wait_for_all(self: &Arc<Self>, bell: &PipeReader, mut inotify: Option<Inotify>) {
        loop {
            let mut state = self.state();
            if state.schedule.is_empty() {
                state.lookout = None;
                return;
            }
            let calls = state.schedule.due(Instant::now());
            let next = state.schedule.next_due();
            if let Some(lookout) = &mut state.lookout {
                lookout.next = next;
            }
            self.answer(state, calls);
            let (has_rung, is_changed) = wait_for_any(bell, inotify.as_ref(), next);
            // What poll saw there can be read at once.
            if has_rung && let Err(e) = (&*bell).read(&mut [0; 64]) {
                tracing::error!("the wake-up pipe failed: {e}");
            }
            if let Some(inotify) = inotify.as_mut().filter(|_| is_changed) {
                let changed = self.watcher.read(inotify);
                let (mut state, now) = (self.state(), Instant::now());
                // It looks at the schedule again anyway.
                if let Some(lookout) = &mut state.lookout {
                    lookout.next = Some(now);
                }
                let calls: Vec<_> = changed
                    .into_iter()
                    .filter_map(|id| state.schedule.change(id, now))
                    .collect();
                self.answer(state, calls);
            }
        }
    }

    /// Carries out what the schedule asks for, and tells the lookout if it has to look earlier.
    fn answer(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        calls: impl IntoIterator<Item = Call>,
    ) {
        let mut started = Vec::new();
        for call in calls {
            match call {
                Call::Start(hand) => started.push(hand),
                // One that is about to sleep does not sleep then.
                Call::Wake(hand) => {
                    if let Some(thread) = state.threads.get(&hand) {
                        thread.unpark();
                    }
                }
            }
        }
        state.ring_if_due_before();
        drop(state);
        for hand in started {
            self.start_thread(hand);
        }
    }

    fn start_thread(self: &Arc<Self>, hand: Hand) {
        let pool = Arc::clone(self);
        let started = Builder::new()
            .name("capture".into())
            .stack_size(STACK_BYTES)
            .spawn(move || pool.work(hand));
        if let Err(e) = started {
            tracing::warn!("the system gives no thread for captures: {e}");
            self.state().schedule.not_started(Instant::now());
        }
    }

    /// What a thread does: takes what is ready, until there was nothing for a while.
    fn work(self: &Arc<Self>, hand: Hand) {
        self.state().threads.insert(hand, std::thread::current());
        let mut since = Instant::now();
        loop {
            let mut state = self.state();
            if let Some((id, is_changed)) = state.schedule.take(Instant::now()) {
                let task = state.tasks.remove(&id).expect("what is ready lies here");
                drop(state);
                self.run(hand, id, task, is_changed);
                since = Instant::now();
                continue;
            }
            let Some(left) = self.idle.checked_sub(since.elapsed()) else {
                state.schedule.end(hand);
                state.threads.remove(&hand);
                return;
            };
            state.schedule.lie_down(hand);
            drop(state);
            std::thread::park_timeout(left);
        }
    }

    /// Runs a task until it is over or rests without a thread.
    fn run(self: &Arc<Self>, hand: Hand, id: Id, mut task: Box<dyn Task>, mut is_changed: bool) {
        loop {
            let stepped = catch_unwind(AssertUnwindSafe(|| task.step(is_changed)));
            let wait = match stepped {
                Ok(Some(wait)) => wait.max(REST_MIN),
                Ok(None) => return end(task, false),
                Err(_) => return end(task, true),
            };
            let now = Instant::now();
            let mut state = self.state();
            match state.schedule.rest(id, hand, wait, now) {
                Rest::Again { changed } => is_changed = changed,
                Rest::Doze => {
                    drop(state);
                    is_changed = self.doze(id, now + wait);
                }
                Rest::Part => {
                    state.tasks.insert(id, task);
                    state.ring_if_due_before();
                    return;
                }
            }
        }
    }

    /// Sleeps until then, or until there is news; whether something happened to a file.
    fn doze(&self, id: Id, until: Instant) -> bool {
        loop {
            let now = Instant::now();
            let left = until.saturating_duration_since(now);
            let mut state = self.state();
            if left.is_zero() || state.schedule.is_called(id) {
                return state.schedule.resume(id, now);
            }
            drop(state);
            std::thread::park_timeout(left);
        }
    }

    /// Something happened to the files of this one.
    fn change(self: &Arc<Self>, id: Id) {
        let mut state = self.state();
        let calls = state.schedule.change(id, Instant::now());
        self.answer(state, calls);
    }

    /// How many threads run or doze, besides the lookout.
    #[cfg(test)]
    pub(super) fn threads(&self) -> usize {
        self.state().schedule.threads()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nobody panics with this lock held")
    }
}

impl State {
    fn ring_if_due_before(&mut self) {
        let next = self.schedule.next_due();
        let Some(lookout) = &mut self.lookout else {
            return;
        };
        if next.is_some_and(|next| lookout.next.is_none_or(|known| next < known)) {
            lookout.next = next;
            lookout.ring();
        }
    }
}

impl Lookout {
    fn ring(&self) {
        // It reads as long as there are tasks.
        if let Err(e) = (&self.bell).write_all(&[1]) {
            tracing::error!("the wake-up pipe failed: {e}");
        }
    }
}

impl Wake {
    /// Which place it is.
    pub(super) fn id(&self) -> Id {
        self.id
    }

    /// Whether the next event of a file counts. Look once more after arming: what happened before
    /// does not count.
    pub(super) fn is_armed(&self) -> bool {
        self.pool.state().schedule.is_armed(self.id)
    }

    /// Watches for the next change of these files.
    pub(super) fn arm(&self, files: &[&Path]) {
        // First: an event that comes before this ends its watch, and so must count.
        self.pool.state().schedule.arm(self.id);
        if self.pool.watcher.watch_files(self.id, files) {
            self.pool.change(self.id);
        }
    }

    /// Watches a directory for anything that may bring a database into it.
    pub(super) fn arm_directory(&self, dir: &Path) {
        self.pool.state().schedule.arm(self.id);
        if self.pool.watcher.watch_directory(self.id, dir) {
            self.pool.change(self.id);
        }
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        self.pool.watcher.forget(self.id);
        let mut state = self.pool.state();
        if state.schedule.leave(self.id)
            && let Some(lookout) = &state.lookout
        {
            lookout.ring();
        }
    }
}

impl Bell {
    /// Lets the task have a turn now, or one more after the one that it has.
    pub(super) fn ring(&self) {
        let mut state = self.pool.state();
        let calls = state.schedule.ring(self.id, Instant::now());
        self.pool.answer(state, calls);
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.ring();
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").field("id", &self.id).finish()
    }
}

fn end(task: Box<dyn Task>, has_panicked: bool) {
    if catch_unwind(AssertUnwindSafe(|| task.end(has_panicked))).is_err() {
        tracing::error!("a capture panicked as it ended");
    }
}

/// Waits for the bell, files or a time; which of the first two it was.
fn wait_for_any(
    bell: &PipeReader,
    inotify: Option<&Inotify>,
    until: Option<Instant>,
) -> (bool, bool) {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    // Up to the next millisecond: before its time there is nothing to do.
    let timeout = left.map_or(PollTimeout::NONE, |left| {
        PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
    });
    let bell = bell.as_fd();
    let files = inotify.map_or(bell, AsFd::as_fd);
    let mut fds = [bell, files].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut fds, timeout) {
        Ok(_) => {}
        Err(Errno::EINTR) => return (false, false),
        Err(errno) => {
            // Without poll there is still the clock.
            tracing::error!("poll failed: {errno}");
            std::thread::sleep(left.unwrap_or(IDLE).min(Duration::from_secs(1)));
            return (false, true);
        }
    }
    let has = |fd: &PollFd<'_>| fd.revents().is_some_and(|seen| !seen.is_empty());
    (has(&fds[0]), inotify.is_some() && has(&fds[1]))
}

#[cfg(test)]
mod tests;
