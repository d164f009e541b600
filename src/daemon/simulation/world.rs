//! Machines, the store between them, and time.

use crate::daemon::simulation::capture::SharedDatabase;
use crate::daemon::simulation::database::{Database, Histories};
use crate::daemon::simulation::machine::{Frozen, Image, Machine};
use crate::daemon::simulation::merger::Merger;
use crate::daemon::simulation::reader::{Kept, Reader, Wrong};
use crate::daemon::simulation::wire::{Fate, Release};
use crate::error::Error;
use crate::format::ids::Timestamp;
use crate::maintain::keeper::KeepSettings;
use crate::materialize::model::Random;
use crate::replicate::upload::HUGE_BYTES;
use crate::storage::memory::MemoryStore;
use crate::storage::{Body, Store};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// A Friday in 2026, microseconds.
const START: i64 = 1_795_196_712_000_000;
/// Where retention deletes, no put arrives later than this: in a gap that it left, what comes days
/// later looks like the rest of something that was lost.
const LATE: Duration = Duration::from_secs(900);
/// A writer has settled within this time, or it never will.
const SETTLED: Duration = Duration::from_secs(600);

/// Everything that there is.
pub(super) struct World {
    pub(super) random: Random,
    pub(super) store: Arc<MemoryStore>,
    pub(super) machines: Vec<Machine>,
    /// Disks as they were, each with whose.
    pub(super) images: Vec<(usize, Image)>,
    pub(super) histories: Arc<Histories>,
    pub(super) reader: Reader,
    merger: Merger,
    /// A machine without a state directory came to a replica that others write: nobody can say
    /// where its history parted from theirs.
    pub(super) has_stranger: bool,
    /// The store ignores `If-None-Match`.
    pub(super) overwrites: bool,
    /// How daemons maintain the replica, if they do.
    keeping: Option<KeepSettings>,
    /// A transaction that takes more becomes a snapshot.
    huge_bytes: u64,
    /// The true time, microseconds; the store's.
    pub(super) now: Arc<AtomicI64>,
    /// What happened, a line each.
    pub(super) trace: Vec<String>,
    /// Runs the reader. Time does not pass for it.
    runtime: tokio::runtime::Runtime,
    directory: tempfile::TempDir,
}

impl World {
    /// A machine with a database and nothing else.
    pub(super) fn new(seed: u64) -> Self {
        let now = Arc::new(AtomicI64::new(START));
        let clock = Arc::clone(&now);
        let store = MemoryStore::with_clock(Arc::new(move || {
            Timestamp::from_micros(clock.load(Ordering::Relaxed))
        }));
        let mut world = Self {
            random: Random::new(seed),
            store,
            machines: Vec::new(),
            images: Vec::new(),
            histories: Arc::default(),
            reader: Reader::default(),
            merger: Merger::default(),
            has_stranger: false,
            overwrites: false,
            keeping: None,
            huge_bytes: HUGE_BYTES,
            now,
            trace: Vec::new(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap(),
            directory: directory(),
        };
        let database = Database::new(Arc::clone(&world.histories), &mut world.random);
        world.add_machine("A", database);
        world
    }

    /// Another machine, with an empty state directory.
    pub(super) fn add_machine(&mut self, name: &str, database: Database) {
        let store: Arc<dyn Store> = self.store.clone();
        let seed = self.random.next();
        let mut machine = Machine::new(name, self.directory.path(), store, database, seed);
        machine.time.clock.store(self.time(), Ordering::Relaxed);
        machine.keeping.clone_from(&self.keeping);
        machine.huge_bytes = self.huge_bytes;
        if self.overwrites {
            machine.line.overwrite();
        }
        self.machines.push(machine);
    }

    /// From now on daemons maintain the replica as they start.
    pub(super) fn keep(&mut self, settings: KeepSettings) {
        for machine in &mut self.machines {
            machine.keeping = Some(settings.clone());
        }
        self.keeping = Some(settings);
    }

    /// From now on daemons make a snapshot of each transaction that takes more than so many bytes,
    /// as they start.
    pub(super) fn ship(&mut self, huge_bytes: u64) {
        for machine in &mut self.machines {
            machine.huge_bytes = huge_bytes;
        }
        self.huge_bytes = huge_bytes;
    }

    /// Whether daemons maintain the replica.
    pub(super) fn is_kept(&self) -> bool {
        self.keeping.is_some()
    }

    /// Bytes of all that is stored.
    pub(super) fn stored_bytes(&self) -> u64 {
        let listed = self.runtime.block_on(self.store.list("", None)).unwrap();
        listed.iter().map(|object| object.size).sum()
    }

    /// Commits to the database of a machine.
    pub(super) fn commit(&mut self, machine: usize) {
        let database = self.database(machine);
        let mut database = database.lock().unwrap();
        database.commit();
        self.reader.made(&database.tip, self.time());
    }

    pub(super) fn time(&self) -> i64 {
        self.now.load(Ordering::Relaxed)
    }

    pub(super) fn note(&mut self, what: impl Into<String>) {
        let at = (self.time() - START) as f64 / 1e6;
        self.trace.push(format!("{at:12.3} {}", what.into()));
    }

    fn note_calls(&mut self, machine: usize) {
        let machine = &self.machines[machine];
        let lines = machine.line.take_log();
        let lines: Vec<String> = lines
            .into_iter()
            .map(|line| format!("{}   {line}", machine.name))
            .collect();
        for line in lines {
            self.note(line);
        }
    }

    /// Something of ours failed that never may.
    pub(super) fn must<T>(&mut self, what: Result<T, Error>) -> Result<T, Wrong> {
        what.map_err(|e| format!("this must not fail: {e}"))
    }

    pub(super) fn database(&self, machine: usize) -> SharedDatabase {
        Arc::clone(&self.machines[machine].database)
    }

    /// Lets time pass: for each running daemon in turn, no more than it needs.
    pub(super) fn pass(&mut self, time: Duration) -> Result<(), Wrong> {
        // A daemon waits for half a minute at most.
        let slice = time.min(Duration::from_secs(60));
        self.advance(time);
        if self.is_kept() && time >= LATE {
            for machine in &self.machines {
                machine.line.take_late();
            }
        }
        let now = self.time();
        let deleted = self.merger.delete_due(&*self.store, now);
        for key in self.runtime.block_on(deleted) {
            self.note(format!("merged long ago: {key} is deleted"));
        }
        let first = self.random.below(self.machines.len() as u64) as usize;
        for step in 0..self.machines.len() {
            let machine = (first + step) % self.machines.len();
            self.run(machine, slice)?;
        }
        Ok(())
    }

    /// Lets up to so many milliseconds pass.
    pub(super) fn pass_some(&mut self, millis: u64) -> Result<(), Wrong> {
        let millis = 1 + self.random.below(millis);
        self.pass(Duration::from_millis(millis))
    }

    /// Moves all clocks and runs nothing.
    pub(super) fn advance(&mut self, time: Duration) {
        let micros = time.as_micros() as i64;
        self.now.fetch_add(micros, Ordering::Relaxed);
        for machine in &self.machines {
            if machine.frozen != Some(Frozen::Machine) {
                machine.time.clock.fetch_add(micros, Ordering::Relaxed);
                machine.time.uptime.fetch_add(micros, Ordering::Relaxed);
            }
        }
    }

    /// Runs one machine's daemon for a while, or until a call stands still.
    pub(super) fn run(&mut self, machine: usize, time: Duration) -> Result<(), Wrong> {
        let ran = self.machines[machine].run(time);
        self.note_calls(machine);
        self.must(ran)?;
        self.look_at(machine)
    }

    /// What the uploader says is kept to.
    fn look_at(&mut self, machine: usize) -> Result<(), Wrong> {
        let machine = &mut self.machines[machine];
        let Some(status) = machine.status() else {
            return Ok(());
        };
        machine.note_generation().map_err(|e| e.to_string())?;
        if machine.has_ended() || status.failed.is_some() {
            return Err(format!(
                "the uploader of {} gave up: {status:?}",
                machine.name
            ));
        }
        let durable = machine.durable().map_err(|e| e.to_string())?;
        self.reader.promise(durable, &machine.name);
        Ok(())
    }

    pub(super) fn start(&mut self, machine: usize) -> Result<(), Wrong> {
        let started = self.machines[machine].start();
        self.must(started)
    }

    pub(super) fn kill(&mut self, machine: usize) {
        self.machines[machine].kill();
        self.note_calls(machine);
    }

    pub(super) fn stop(&mut self, machine: usize) -> Result<(), Wrong> {
        self.advance(Duration::from_secs(5));
        let stopped = self.machines[machine].stop();
        self.note_calls(machine);
        self.must(stopped)
    }

    /// Puts that were given up while they stood still arrive after all.
    pub(super) fn deliver_late(&mut self, machine: usize) {
        for late in self.machines[machine].line.take_late() {
            let put = self.store.put(&late.key, Body::Bytes(late.bytes));
            let put = self.runtime.block_on(put).unwrap();
            self.note(format!("late: {} {put:?}", late.key));
        }
    }

    /// Reads all there is.
    pub(super) fn check(&mut self) -> Result<(), Wrong> {
        let store: Arc<dyn Store> = self.store.clone();
        let kept = self.keeping.as_ref().map(|settings| Kept {
            policy: settings.retention,
            now: Timestamp::from_micros(self.time()),
        });
        let check = self
            .reader
            .check(store, &self.histories, self.has_stranger, kept);
        self.runtime.block_on(check)
    }

    /// Merges what can be merged in the highest generation.
    pub(super) fn merge(&mut self) -> Result<(), Wrong> {
        self.check()?;
        let (commits, now) = (self.reader.commits(), self.time());
        let merge = self
            .merger
            .merge(&*self.store, &commits, now, &mut self.random);
        if let Some(key) = self.runtime.block_on(merge) {
            self.note(format!("merged: {key}"));
        }
        Ok(())
    }

    /// Ends all that is wrong, and lets every writer come to rest.
    pub(super) fn settle(&mut self) -> Result<(), Wrong> {
        for machine in 0..self.machines.len() {
            self.machines[machine].frozen = None;
            self.machines[machine].line.heal();
            self.machines[machine].line.release(Release::Answer);
            self.machines[machine].line.take_late();
            if !self.machines[machine].is_running() {
                self.start(machine)?;
            }
        }
        let mut left = SETTLED;
        while !self.is_settled()? {
            let step = Duration::from_secs(5);
            left = left.checked_sub(step).ok_or_else(|| self.unsettled())?;
            self.pass(step)?;
        }
        Ok(())
    }

    fn is_settled(&mut self) -> Result<bool, Wrong> {
        let mut is_settled = true;
        for machine in 0..self.machines.len() {
            let captured = self.machines[machine].capture();
            let captured = self.must(captured)?;
            let status = self.machines[machine].status().unwrap_or_default();
            is_settled &= status.trouble.is_none() && status.durable >= captured;
        }
        Ok(is_settled)
    }

    fn unsettled(&self) -> Wrong {
        let each = self.machines.iter();
        let each = each.map(|machine| format!("{}: {:?}", machine.name, machine.status()));
        format!(
            "no rest within {SETTLED:?}: {}",
            each.collect::<Vec<_>>().join("; ")
        )
    }

    /// When all is at rest, everything that was captured for a generation is durable.
    pub(super) fn promise_all(&mut self) {
        let is_alone = self.machines.len() == 1 && self.images.is_empty();
        // A copy that lost continuity begins with what it found, and others go on behind that.
        // Where a store overwrites, nobody can tell whose a part of a merged segment is; and what
        // retention thinned is no place for a fork.
        let is_careful = !self.overwrites && self.keeping.is_none();
        let keep_moments = is_alone || (self.histories.are_unbroken() && is_careful);
        for machine in &self.machines {
            let mut followed = machine.followed();
            // What another machine made of it may be gone with its disk.
            followed.retain(|promised| is_alone || (promised.has_moment && keep_moments));
            self.reader.promise(followed, &machine.name);
        }
    }

    /// A writer that was just started writes the highest generation, or says that it is superseded.
    pub(super) fn check_place_of(&self, machine: usize) -> Result<(), Wrong> {
        let all = self.machines.iter().filter_map(Machine::status);
        let highest = all.filter_map(|status| status.generation).max();
        let status = self.machines[machine].status().unwrap_or_default();
        if status.generation == highest || status.superseded.is_some() {
            return Ok(());
        }
        let name = &self.machines[machine].name;
        Err(format!(
            "{name} does not know that it is superseded: {status:?}"
        ))
    }

    /// The next-but-`ahead` call of a machine meets this fate.
    pub(super) fn appoint(&mut self, machine: usize, ahead: u64, fate: Fate) {
        let line = &self.machines[machine].line;
        line.appoint(line.calls() + 1 + ahead, fate);
    }
}

/// In memory where that is possible: many thousands of fsyncs.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.unwrap()
}
