//! A machine: a database, the state directory of its daemon, a clock, and a daemon while it runs.
//!
//! One machine runs at a time, and time passes for it only while it runs, so that a schedule is
//! what its seed makes it. A daemon here is what the real one is without SQLite and sockets: the
//! real spool and the real uploader with a simulated capture.

use crate::config::Environment;
use crate::daemon::maintenance::{Given, Maintenance, keeper};
use crate::daemon::simulation::capture::{Seqs, SharedDatabase, SimulatedCapture};
use crate::daemon::simulation::database::{Commit, Database, Restart};
use crate::daemon::simulation::wire::{Line, Wire};
use crate::error::Result;
use crate::format::ids::{Timestamp, WriterId};
use crate::maintain::keeper::KeepSettings;
use crate::materialize::model::Random;
use crate::replicate::budget::Budget;
use crate::replicate::identity::Identity;
use crate::replicate::seed::{self, Asking};
use crate::replicate::source::Source;
use crate::replicate::spool::Spool;
use crate::replicate::state::GenerationState;
use crate::replicate::upload::{HUGE_BYTES, Status, UploadSettings, Uploader, open_kept};
use crate::storage::Store;
use crate::storage::kept::Kept;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};

/// A machine with its disk.
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) database: SharedDatabase,
    pub(super) line: Arc<Line>,
    pub(super) time: Arc<Time>,
    /// Where its state directories lie, one after the other.
    root: PathBuf,
    /// The state directory of now.
    meta: PathBuf,
    seqs: Arc<Mutex<Seqs>>,
    /// By run of the spool: where its first generation began, and that one's first restore point.
    bases: BTreeMap<u64, (u64, u64)>,
    random: Random,
    store: Arc<dyn Store>,
    daemon: Option<Daemon>,
    /// How its daemon is started.
    pub(super) take_over: bool,
    /// It does not run, and may not know that.
    pub(super) frozen: Option<Frozen>,
    /// How its daemon maintains the replica, if it does.
    pub(super) keeping: Option<KeepSettings>,
    /// A transaction that takes more becomes a snapshot.
    pub(super) huge_bytes: u64,
    /// What its spool may take, unless the disk says that.
    pub(super) spool_bytes: Option<u64>,
}

/// What stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frozen {
    /// The daemon's process.
    Process,
    /// The virtual machine, its clocks too.
    Machine,
}

/// A machine's clocks, microseconds.
#[derive(Default)]
pub(super) struct Time {
    /// The time of day.
    pub(super) clock: AtomicI64,
    /// Since its boot.
    pub(super) uptime: AtomicI64,
}

struct Daemon {
    uploader: Uploader,
    _maintenance: Option<Maintenance>,
    capture: Arc<SimulatedCapture>,
    spool: Arc<Spool>,
    runtime: Runtime,
}

/// A commit that has to be on the replica.
pub(super) struct Promised {
    pub(super) commit: Arc<Commit>,
    /// As a restore point of its own; else it may be contained in a later one.
    pub(super) has_moment: bool,
}

/// The number in the spool of a generation's first restore point.
fn first_point(state: &GenerationState) -> Option<u64> {
    Some(state.base + state.complete?.get() - 1)
}

/// The disk of a machine at some time.
pub(super) struct Image {
    database: Database,
    seqs: Seqs,
    meta: PathBuf,
}

impl Image {
    /// Whether it says which database it is.
    pub(super) fn has_identity(&self) -> bool {
        self.meta.join("database-id").exists()
    }

    /// A copy of its database, which goes on in its own way.
    pub(super) fn database(&self, random: &mut Random) -> Database {
        let mut database = self.database.clone();
        database.diverge(random.next());
        database
    }
}

impl Machine {
    pub(super) fn new(
        name: &str,
        root: &Path,
        store: Arc<dyn Store>,
        database: Database,
        seed: u64,
    ) -> Self {
        let mut machine = Self {
            name: name.to_owned(),
            database: Arc::new(Mutex::new(database)),
            line: Line::new(),
            time: Arc::default(),
            root: root.join(name),
            meta: PathBuf::new(),
            seqs: Arc::default(),
            bases: BTreeMap::new(),
            random: Random::new(seed),
            store,
            daemon: None,
            take_over: false,
            frozen: None,
            keeping: None,
            huge_bytes: HUGE_BYTES,
            spool_bytes: None,
        };
        machine.lose_state();
        machine
    }

    pub(super) fn is_running(&self) -> bool {
        self.daemon.is_some()
    }

    /// Starts the daemon.
    pub(super) fn start(&mut self) -> Result<()> {
        assert!(self.daemon.is_none(), "{} runs", self.name);
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let entered = runtime.enter();
        let environment = self.environment();
        let budget = Budget::new(self.spool_bytes);
        let spool = Arc::new(Spool::open(&self.meta, budget)?);
        let identity = Identity::load(
            self.meta.join("database-id"),
            self.name.clone(),
            "app.db".to_owned(),
            &environment,
        )?;
        let wire = Arc::new(Wire {
            store: Arc::clone(&self.store),
            line: Arc::clone(&self.line),
        });
        if spool.position().is_none() {
            let held = runtime.block_on(self.asking().ask(&*wire));
            // As the daemon does it: a replica that does not answer has no say.
            if let Ok(held) = held {
                if held.database_id.is_some() {
                    identity.decide(held.database_id, self.store.location())?;
                }
                seed::begin_at(&spool, &[held], &environment)?;
            }
        }
        let capture = Arc::new(SimulatedCapture::start(
            Arc::clone(&self.database),
            Arc::clone(&spool),
            Arc::clone(&self.seqs),
            environment.clone(),
            Random::new(self.random.next()),
        )?);
        let directory = self.meta.join("replica");
        let (kept, writer) = (open_kept(&directory)?, identity.writer);
        let settings = UploadSettings {
            name: self.name.clone(),
            sync_interval: Duration::from_secs(1),
            take_over: self.take_over,
            kept: kept.clone(),
            directory,
            huge_bytes: self.huge_bytes,
        };
        let source: Arc<dyn Source> = capture.clone();
        let uploader = Uploader::start(
            wire.clone(),
            source,
            spool.clone(),
            Arc::new(identity),
            settings,
            environment.clone(),
        )?;
        let status = uploader.status.clone();
        let maintenance = self.maintenance(wire, kept, writer, environment, status)?;
        drop(entered);
        self.daemon = Some(Daemon {
            uploader,
            _maintenance: maintenance,
            capture,
            spool,
            runtime,
        });
        Ok(())
    }

    fn asking(&self) -> Asking {
        let database = Arc::clone(&self.database);
        Asking::new(move |endings, _| {
            let wal = &database.lock().unwrap().wal;
            Ok(endings.iter().copied().find(|it| wal.has(&it.end)))
        })
    }

    /// What looks after the replica, if anything does.
    fn maintenance(
        &self,
        wire: Arc<dyn Store>,
        kept: Arc<Kept>,
        writer: WriterId,
        environment: Environment,
        status: watch::Receiver<Status>,
    ) -> Result<Option<Maintenance>> {
        let Some(settings) = &self.keeping else {
            return Ok(None);
        };
        let directory = self.meta.join("replica");
        let settings = KeepSettings {
            notes: Some(directory.join("maintenance.json")),
            ..settings.clone()
        };
        let (check_interval, clock) = (settings.merged_grace, environment.clock.clone());
        let given = Given {
            keeper: keeper(wire, kept, &directory, writer, environment, settings)?,
            status,
            turns: Arc::new(Semaphore::new(1)),
            clock,
            check_interval,
        };
        Ok(Some(Maintenance::start(given, &self.name)))
    }

    fn environment(&mut self) -> Environment {
        let (clock, uptime) = (Arc::clone(&self.time), Arc::clone(&self.time));
        // Threads draw names of objects in any order; that of a generation must not depend on it.
        let names = Mutex::new(Random::new(self.random.next()));
        let others = Mutex::new(Random::new(self.random.next()));
        Environment {
            clock: Arc::new(move || Timestamp::from_micros(clock.clock.load(Ordering::Relaxed))),
            uptime: Arc::new(move || {
                Duration::from_micros(uptime.uptime.load(Ordering::Relaxed) as u64)
            }),
            random: Arc::new(move |bytes| {
                let random = if bytes.len() == 4 { &names } else { &others };
                let mut random = random.lock().unwrap();
                bytes.fill_with(|| random.next() as u8);
                Ok(())
            }),
        }
    }

    /// Lets time pass for the daemon, or until a call stands still.
    pub(super) fn run(&mut self, time: Duration) -> Result<()> {
        let Some(daemon) = &self.daemon else {
            return Ok(());
        };
        if self.frozen.is_some() || self.line.is_held_beside() {
            return Ok(());
        }
        daemon.runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(time) => {}
                () = self.line.stands_still() => {}
            }
        });
        let needs = daemon.uploader.status.borrow().needs;
        needs.map_or(Ok(()), |needs| daemon.spool.release(needs))
    }

    /// What the uploader says of itself, while the daemon runs.
    pub(super) fn status(&self) -> Option<Status> {
        let status = &self.daemon.as_ref()?.uploader.status;
        Some(status.borrow().clone())
    }

    /// The uploader panicked.
    pub(super) fn has_ended(&self) -> bool {
        let daemon = self.daemon.as_ref();
        daemon.is_some_and(|daemon| daemon.uploader.status.has_changed().is_err())
    }

    /// The commits that the uploader says are durable, from the first one of its generation on. A
    /// generation that an earlier run wrote has other numbers there.
    pub(super) fn durable(&self) -> Result<Vec<Promised>> {
        let status = self.status().unwrap_or_default();
        let state = GenerationState::load(&self.meta.join("replica/state.json"))?;
        let state = state.filter(|state| status.generation == Some(state.id));
        let (Some(state), Some(durable)) = (state, status.durable) else {
            return Ok(Vec::new());
        };
        let seqs = self.seqs.lock().unwrap();
        let of_generation = seqs.range(state.base..);
        let of_run = of_generation.filter(|(_, (run, _))| *run == state.run);
        let sent = of_run.take_while(|(seq, _)| **seq <= durable);
        let first = first_point(&state);
        let promised = sent.map(|(seq, (_, commit))| Promised {
            commit: Arc::clone(commit),
            has_moment: first.is_some_and(|first| *seq >= first),
        });
        Ok(promised.collect())
    }

    /// Notes where its generations begin that have restore points.
    pub(super) fn note_generation(&mut self) -> Result<()> {
        let state = GenerationState::load(&self.meta.join("replica/state.json"))?;
        if let Some(state) = state
            && let Some(first) = first_point(&state)
        {
            let noted = self.bases.entry(state.run).or_insert((state.base, first));
            noted.0 = state.base.min(noted.0);
        }
        Ok(())
    }

    /// Every commit that was captured since the first generation of its run began. Some time it has
    /// to be a restore point; or, before the first one of that generation, contained in that.
    pub(super) fn followed(&self) -> Vec<Promised> {
        let seqs = self.seqs.lock().unwrap();
        let followed = seqs.iter().filter_map(|(seq, (run, commit))| {
            let (base, first) = self.bases.get(run)?;
            (base <= seq).then(|| Promised {
                commit: Arc::clone(commit),
                has_moment: first <= seq,
            })
        });
        followed.collect()
    }

    /// The capture looks at the database, if it runs.
    pub(super) fn capture(&self) -> Result<Option<u64>> {
        let daemon = self.daemon.as_ref().filter(|_| self.frozen.is_none());
        daemon.map(|daemon| daemon.capture.copy(false)).transpose()
    }

    /// Asks for everything to be sent without waiting for company.
    pub(super) fn hurry(&self) -> Result<()> {
        if let (Some(daemon), Some(seq)) = (&self.daemon, self.capture()?) {
            daemon.uploader.hurry(seq);
        }
        Ok(())
    }

    /// A checkpoint.
    pub(super) fn restart_wal(&self, how: Restart) -> Result<()> {
        match &self.daemon {
            Some(daemon) => daemon.capture.restart_wal(),
            None => {
                self.database.lock().unwrap().restart_wal(how);
                Ok(())
            }
        }
    }

    /// The capture finds its locks gone, if it runs.
    pub(super) fn break_continuity(&self) -> Result<()> {
        let daemon = self.daemon.as_ref();
        daemon.map_or(Ok(()), |daemon| {
            daemon.capture.begin_run("our locks are gone")
        })
    }

    /// The files of the state directory's folder, by name.
    pub(super) fn files(&self, folder: &str) -> BTreeMap<String, PathBuf> {
        let entries = fs::read_dir(self.meta.join(folder)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        paths.map(|path| (name(&path), path)).collect()
    }

    /// Whether it is decided which database it is.
    pub(super) fn has_identity(&self) -> bool {
        self.meta.join("database-id").exists()
    }

    /// Whether its daemon has a state of the replica.
    pub(super) fn has_state(&self) -> bool {
        self.meta.join("replica/state.json").exists()
    }

    /// The daemon's process ends at once, wherever it is.
    pub(super) fn kill(&mut self) {
        self.frozen = None;
        self.line.hang_up();
        // The runtime waits for its threads, and drops its tasks where they stand.
        self.daemon = None;
        self.line.pick_up();
    }

    /// Stops the daemon: sends what is pending if that goes within some seconds, and leaves the
    /// WAL empty.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.hurry()?;
        self.run(Duration::from_secs(5))?;
        if let Some(daemon) = &self.daemon {
            daemon.capture.rest()?;
            if !self.line.is_held_beside() {
                let stopped = async {
                    tokio::time::timeout(Duration::from_secs(1), daemon.uploader.stop()).await
                };
                // A store that hangs does not hold up the end.
                drop(daemon.runtime.block_on(stopped));
            }
        }
        self.kill();
        Ok(())
    }

    /// The disk as it is now.
    pub(super) fn image(&mut self) -> Image {
        let meta = self.new_directory();
        copy_directory(&self.meta, &meta);
        Image {
            database: self.database.lock().unwrap().clone(),
            seqs: self.seqs.lock().unwrap().clone(),
            meta,
        }
    }

    /// The state directory is that of an image; the daemon does not run.
    pub(super) fn put_state_back(&mut self, image: &Image) {
        assert!(self.daemon.is_none(), "{} runs", self.name);
        self.meta = self.new_directory();
        copy_directory(&image.meta, &self.meta);
        self.seqs = Arc::new(Mutex::new(image.seqs.clone()));
        self.bases.clear();
    }

    /// The whole disk is that of an image; the daemon does not run.
    pub(super) fn put_back(&mut self, image: &Image) {
        self.put_state_back(image);
        let database = image.database(&mut self.random);
        self.database = Arc::new(Mutex::new(database));
    }

    /// The state directory is gone; the daemon does not run.
    pub(super) fn lose_state(&mut self) {
        assert!(self.daemon.is_none(), "{} runs", self.name);
        self.meta = self.new_directory();
        self.seqs = Arc::default();
        self.bases.clear();
    }

    fn new_directory(&mut self) -> PathBuf {
        let directory = self.root.join(format!("{:016x}", self.random.next()));
        fs::create_dir_all(&directory).unwrap();
        directory
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
