//! Who runs, who waits until when, and how many threads that takes. Pure.
//!
//! Never asks the time, starts no thread: says what the pool is to do about its threads.
//!
//! A task that rests for no longer than [`TICK`] *dozes*: it keeps its thread. One that rests for
//! longer is *parked* and holds none. What becomes ready waits in one queue, first come, first
//! served. News (a file event, a ring) gets an idle thread, or a new one below the bound; what is
//! merely due shares one, however much it is. Where all threads are taken and somebody waits for
//! one, nobody dozes: everybody has a turn, in the order of the queue. A thread that is held up, by
//! a file system that does not answer say, counts no more: it must not be missing to the others.

use crate::replicate::decide::TICK;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// A parked task is called earlier than it has to be, by this part of its time at most, where
/// another one is called anyway: so that one wake-up is for many, and they stay in step.
const SLACK_PART: u32 = 4;
/// Nobody waits longer.
const WAIT_MAX: Duration = Duration::from_secs(86_400);
/// How long nothing is asked of a system that gave no thread.
const NO_THREAD: Duration = Duration::from_secs(1);
/// A step that takes longer is held up by something, and its thread does not count.
const HUNG: Duration = Duration::from_secs(5);

/// One of the tasks of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::replicate) struct Id(pub(in crate::replicate) u64);

/// One of its threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Hand(pub(super) u64);

/// What is to be done about a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// It sleeps, and is to look what there is to do.
    Wake(Hand),
    /// It is to be started.
    Start(Hand),
}

/// What the thread of a task that rests does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// There is news already: one more step.
    Again {
        /// Something happened to its files.
        changed: bool,
    },
    /// Sleeps with the task, for the time of the rest or until it is called.
    Doze,
    /// Gives the task back and takes another.
    Part,
}

enum Place {
    /// Not in the schedule yet.
    Outside,
    Running {
        since: Instant,
    },
    /// Keeps this thread.
    Dozing(Hand),
    Ready,
    /// Holds no thread for so long, until then, unless there is news.
    Parked {
        wait: Duration,
        until: Instant,
    },
}

struct Slot {
    place: Place,
    /// The next file event counts.
    is_armed: bool,
    changed: bool,
    rung: bool,
    /// It has run for so long that its thread does not count.
    is_hung: bool,
}

/// The tasks and threads of a pool.
pub(super) struct Schedule {
    slots: HashMap<Id, Slot>,
    ready: VecDeque<Id>,
    /// When something was last taken from a queue of several, or it was empty before.
    moved: Instant,
    /// The parked ones by the time from which they may be called, and by that at which they must.
    may: BTreeSet<(Instant, Id)>,
    must: BTreeSet<(Instant, Id)>,
    /// The last to lie down is called first, so that those not needed end.
    idle: Vec<Hand>,
    threads: usize,
    threads_max: usize,
    /// Threads of tasks that hang.
    hung: usize,
    named: u64,
}

impl Schedule {
    pub(super) fn new(threads_max: usize, now: Instant) -> Self {
        Self {
            slots: HashMap::new(),
            ready: VecDeque::new(),
            moved: now,
            may: BTreeSet::new(),
            must: BTreeSet::new(),
            idle: Vec::new(),
            threads: 0,
            threads_max,
            hung: 0,
            named: 0,
        }
    }

    fn name(&mut self) -> u64 {
        self.named += 1;
        self.named
    }

    /// A new task. It has no turn before [`Schedule::begin`].
    pub(super) fn enter(&mut self) -> Id {
        let id = Id(self.name());
        let slot = Slot {
            place: Place::Outside,
            is_armed: false,
            changed: false,
            rung: false,
            is_hung: false,
        };
        self.slots.insert(id, slot);
        id
    }

    /// It has its first turn.
    pub(super) fn begin(&mut self, id: Id, now: Instant) -> Option<Call> {
        self.queue(id, now);
        self.call()
    }

    /// A running task is over. True if it was the last one.
    pub(super) fn leave(&mut self, id: Id) -> bool {
        self.counts_again(id);
        self.slots.remove(&id);
        self.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// From now on a file event counts.
    pub(super) fn arm(&mut self, id: Id) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.is_armed = true;
        }
    }

    pub(super) fn is_armed(&self, id: Id) -> bool {
        self.slots.get(&id).is_some_and(|slot| slot.is_armed)
    }

    /// Something happened to its files. Counts once for each [`Schedule::arm`].
    pub(super) fn change(&mut self, id: Id, now: Instant) -> Option<Call> {
        let slot = self.slots.get_mut(&id).filter(|slot| slot.is_armed)?;
        slot.is_armed = false;
        slot.changed = true;
        self.rouse(id, now)
    }

    /// Somebody asks for it.
    pub(super) fn ring(&mut self, id: Id, now: Instant) -> Option<Call> {
        self.slots.get_mut(&id)?.rung = true;
        self.rouse(id, now)
    }

    fn rouse(&mut self, id: Id, now: Instant) -> Option<Call> {
        match self.slots.get(&id)?.place {
            Place::Outside | Place::Running { .. } | Place::Ready => None,
            Place::Dozing(hand) => Some(Call::Wake(hand)),
            Place::Parked { .. } => {
                self.queue(id, now);
                self.call()
            }
        }
    }

    /// The next task for a thread that has none, and whether something happened to its files.
    pub(super) fn take(&mut self, now: Instant) -> Option<(Id, bool)> {
        let id = self.ready.pop_front()?;
        self.moved = now;
        Some((id, self.resume(id, now)))
    }

    /// A task runs again; whether something happened to its files.
    pub(super) fn resume(&mut self, id: Id, now: Instant) -> bool {
        let slot = self.slots.get_mut(&id).expect("a task leaves as it runs");
        slot.place = Place::Running { since: now };
        slot.rung = false;
        std::mem::take(&mut slot.changed)
    }

    /// A running task waits so long at most.
    pub(super) fn rest(&mut self, id: Id, hand: Hand, wait: Duration, now: Instant) -> Rest {
        self.counts_again(id);
        let is_crowded = self.is_crowded();
        let slot = self.slots.get_mut(&id).expect("a task leaves as it runs");
        if slot.rung || slot.changed {
            if is_crowded {
                self.queue(id, now);
                return Rest::Part;
            }
            let changed = self.resume(id, now);
            return Rest::Again { changed };
        }
        if wait <= TICK && !is_crowded {
            slot.place = Place::Dozing(hand);
            return Rest::Doze;
        }
        let wait = wait.min(WAIT_MAX);
        let until = now + wait;
        slot.place = Place::Parked { wait, until };
        self.may.insert((until - wait / SLACK_PART, id));
        self.must.insert((until, id));
        Rest::Part
    }

    fn is_crowded(&self) -> bool {
        !self.ready.is_empty() && self.idle.is_empty() && self.is_full()
    }

    fn is_full(&self) -> bool {
        self.threads >= self.threads_max + self.hung
    }

    /// A task that has run goes on, or is over.
    fn counts_again(&mut self, id: Id) {
        let slot = self.slots.get_mut(&id);
        if slot.is_some_and(|slot| std::mem::take(&mut slot.is_hung)) {
            self.hung -= 1;
        }
    }

    /// Since when each of the tasks runs whose threads count.
    fn running(&mut self) -> impl Iterator<Item = (Instant, &mut Slot)> {
        let counting = self.slots.values_mut().filter(|slot| !slot.is_hung);
        counting.filter_map(|slot| match slot.place {
            Place::Running { since } => Some((since, slot)),
            _ => None,
        })
    }

    /// Whether there is news for a task that dozes.
    pub(super) fn is_called(&self, id: Id) -> bool {
        let slot = self.slots.get(&id);
        slot.is_some_and(|slot| slot.rung || slot.changed)
    }

    /// Makes ready what is due by now; once something is, also what may be called.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Call> {
        let mut calls = Vec::new();
        if self.is_crowded() {
            let mut found = 0;
            for (_, slot) in self.running().filter(|(since, _)| *since + HUNG <= now) {
                slot.is_hung = true;
                found += 1;
            }
            self.hung += found;
        }
        let is_due = self.must.first().is_some_and(|(until, _)| *until <= now);
        while let Some((from, id)) = self.may.first().copied().filter(|_| is_due) {
            if from > now {
                break;
            }
            let wait = self.queue(id, now);
            // One thread for all but those that would have dozed.
            if wait <= TICK || calls.is_empty() {
                calls.extend(self.call());
            }
        }
        if self.is_stuck(now) {
            self.moved = now;
            calls.extend(self.call());
        }
        calls
    }

    /// Whether those who wait for a thread have done so for too long: one that was called for them
    /// may be held up by what it found.
    fn is_stuck(&self, now: Instant) -> bool {
        self.may_be_stuck() && self.moved + TICK <= now
    }

    fn may_be_stuck(&self) -> bool {
        !self.ready.is_empty() && (!self.is_full() || !self.idle.is_empty())
    }

    /// When [`Schedule::due`] has something to do.
    pub(super) fn next_due(&mut self) -> Option<Instant> {
        let due = self.must.first().map(|(until, _)| *until);
        let stuck = self.may_be_stuck().then(|| self.moved + TICK);
        let hung = match self.is_crowded() {
            true => self.running().map(|(since, _)| since + HUNG).min(),
            false => None,
        };
        due.into_iter().chain(stuck).chain(hung).min()
    }

    /// How long it was parked for, if it was.
    fn queue(&mut self, id: Id, now: Instant) -> Duration {
        if self.ready.is_empty() {
            self.moved = now;
        }
        self.ready.push_back(id);
        let slot = self.slots.get_mut(&id).expect("only known tasks are ready");
        match std::mem::replace(&mut slot.place, Place::Ready) {
            Place::Parked { wait, until } => {
                self.may.remove(&(until - wait / SLACK_PART, id));
                self.must.remove(&(until, id));
                wait
            }
            Place::Outside | Place::Running { .. } | Place::Dozing(_) | Place::Ready => {
                Duration::ZERO
            }
        }
    }

    /// A thread for what is ready.
    fn call(&mut self) -> Option<Call> {
        if let Some(hand) = self.idle.pop() {
            return Some(Call::Wake(hand));
        }
        (!self.is_full()).then(|| {
            self.threads += 1;
            Call::Start(Hand(self.name()))
        })
    }

    /// The system did not give that thread.
    pub(super) fn not_started(&mut self, now: Instant) {
        self.threads -= 1;
        self.moved = now + NO_THREAD;
    }

    /// A thread has nothing to do.
    pub(super) fn lie_down(&mut self, hand: Hand) {
        if !self.idle.contains(&hand) {
            self.idle.push(hand);
        }
    }

    /// A thread that has nothing to do ends.
    pub(super) fn end(&mut self, hand: Hand) {
        self.idle.retain(|other| *other != hand);
        self.threads -= 1;
    }

    /// How many threads there are.
    #[cfg(test)]
    pub(super) fn threads(&self) -> usize {
        self.threads
    }
}

#[cfg(test)]
mod tests;
