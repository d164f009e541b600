//! A capture without SQLite: copies the frames of a model database into a real spool.
//!
//! It keeps to what the real one promises: whole commits in order, a run without a break, a new run
//! where continuity cannot be proved (`replicate::live::resume`), pages of a first snapshot that
//! are exact as long as it says so.

use crate::config::Environment;
use crate::daemon::simulation::database::{
    Commit, Database, Histories, Logged, ORDER, PAGE_SIZE, Restart, page_of,
};
use crate::error::{Error, Result};
use crate::format::ids::{PageSize, Pgno, Timestamp, WalEnd};
use crate::materialize::model::Random;
use crate::replicate::decide::{clock_stepped_back, stamp};
use crate::replicate::source::{PageSource, Source};
use crate::replicate::spool::{Position, RunStart, Spool, SpooledCommit};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// Which commit has which `seq` in a spool, and in which run; goes wherever the spool goes.
pub(super) type Seqs = BTreeMap<u64, (u64, Arc<Commit>)>;

/// A machine's database, which its application and its capture share.
pub(super) type SharedDatabase = Arc<Mutex<Database>>;

/// A running capture.
pub(super) struct SimulatedCapture {
    shared: Arc<Shared>,
}

struct Shared {
    database: SharedDatabase,
    histories: Arc<Histories>,
    spool: Arc<Spool>,
    seqs: Arc<Mutex<Seqs>>,
    environment: Environment,
    note: PathBuf,
    state: Mutex<State>,
}

struct State {
    done: Position,
    random: Random,
}

/// How the database was left at rest.
#[derive(serde::Serialize, serde::Deserialize, PartialEq)]
struct Note {
    run: u64,
    seq: u64,
    /// What the database file holds.
    commit: u64,
}

impl SimulatedCapture {
    /// Opens the database: goes on where the spool ends, or begins a run.
    pub(super) fn start(
        database: SharedDatabase,
        spool: Arc<Spool>,
        seqs: Arc<Mutex<Seqs>>,
        environment: Environment,
        random: Random,
    ) -> Result<Self> {
        let note = spool.dir().join("capture.json");
        let known = spool.position();
        let done = known.unwrap_or(Position {
            run: 0,
            seq: 0,
            time: environment.now(),
            pages: 0,
            end: WalEnd::default(),
            order: ORDER,
        });
        let histories = Arc::clone(&database.lock().unwrap().histories);
        let shared = Arc::new(Shared {
            database,
            histories,
            spool,
            seqs,
            environment,
            note,
            state: Mutex::new(State { done, random }),
        });
        let capture = Self { shared };
        match known {
            None => capture.begin_run("this is the first run")?,
            Some(known) if capture.prove()? => capture.know_commit_at(&known),
            Some(_) => capture.begin_run("the WAL was restarted while replicate was down")?,
        }
        capture.copy(true)?;
        Ok(capture)
    }

    /// Whether continuity is proved; then the position is on the WAL.
    fn prove(&self) -> Result<bool> {
        let shared = &*self.shared;
        let database = shared.database.lock().unwrap();
        let mut state = shared.state.lock().unwrap();
        let done = state.done;
        let from_start = WalEnd {
            salts: database.wal.end().salts,
            ..WalEnd::default()
        };
        let at_rest = Note {
            run: done.run,
            seq: done.seq,
            commit: database.wal.base.id,
        };
        if read_note(&shared.note) == Some(at_rest) {
            state.done.end = from_start;
            return Ok(true);
        }
        if done.end.salts == from_start.salts {
            return Ok(database.wal.has(&done.end));
        }
        let Some(old) = database.salvageable(&done.end) else {
            return Ok(false);
        };
        for logged in old.behind(&done.end) {
            shared.append(&mut state.done, &logged, true)?;
        }
        shared.spool.sync()?;
        state.done.end = from_start;
        Ok(true)
    }

    /// A spool that is new begins at a commit that a replica named.
    fn know_commit_at(&self, known: &Position) {
        let database = self.shared.database.lock().unwrap();
        let wals = [Some(&database.wal), database.old_wal.as_ref()];
        let mut logged = wals.into_iter().flatten().flat_map(|wal| &wal.commits);
        if let Some(found) = logged.find(|logged| logged.end == known.end) {
            let commit = (known.run, Arc::clone(&found.commit));
            let mut seqs = self.shared.seqs.lock().unwrap();
            seqs.entry(known.seq).or_insert(commit);
        }
    }

    /// Continuity was lost, or given up.
    pub(super) fn begin_run(&self, why: &str) -> Result<()> {
        let database = self.shared.database.lock().unwrap();
        let mut state = self.shared.state();
        let (tip, end) = (Arc::clone(&database.tip), database.wal.end());
        self.shared.begin_run(&mut state, tip, end, why)
    }

    /// Captures what is committed.
    pub(super) fn copy(&self, upper_bound: bool) -> Result<u64> {
        self.shared.copy(upper_bound)
    }

    /// A checkpoint of everything, as the real capture lets it happen: nothing is lost by it.
    pub(super) fn restart_wal(&self) -> Result<()> {
        let mut database = self.shared.database.lock().unwrap();
        let mut state = self.shared.state();
        self.shared.copy_to_tip(&database, &mut state, false)?;
        database.restart_wal(Restart::InPlace);
        state.done.end = WalEnd {
            salts: database.wal.end().salts,
            ..WalEnd::default()
        };
        Ok(())
    }

    /// A clean stop: the WAL is emptied, and the file noted.
    pub(super) fn rest(&self) -> Result<()> {
        self.restart_wal()?;
        let (done, base) = {
            let database = self.shared.database.lock().unwrap();
            (self.shared.state().done, database.wal.base.id)
        };
        let note = Note {
            run: done.run,
            seq: done.seq,
            commit: base,
        };
        let bytes = serde_json::to_vec(&note).unwrap();
        crate::storage::durable::replace_file(&self.shared.note, &bytes)
    }
}

fn read_note(path: &Path) -> Option<Note> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn begin_run(&self, state: &mut State, at: Arc<Commit>, end: WalEnd, why: &str) -> Result<()> {
        let clock = self.environment.now();
        let last = self.spool.position().map(|last| last.time);
        let began = match last {
            Some(last) if !clock_stepped_back(clock, last) => stamp(clock, last),
            _ => clock,
        };
        let before = Timestamp::from_micros(began.micros() - 1);
        let checksum = if end.frame == 0 { [0; 2] } else { end.checksum };
        let run = self.spool.begin_run(RunStart {
            token: u64::from_le_bytes(self.environment.draw()?),
            base: 0,
            page_size: PAGE_SIZE,
            pages: at.image.len() as u32,
            end: WalEnd { checksum, ..end },
            order: ORDER,
            after: last.map_or(before, |last| last.min(before)),
            began,
            reason: why.to_owned(),
        })?;
        self.histories.note_run();
        self.seqs.lock().unwrap().insert(run.base, (run.id, at));
        state.done = self.spool.position().expect("a run began");
        Ok(())
    }

    fn copy(&self, upper_bound: bool) -> Result<u64> {
        let database = self.database.lock().unwrap();
        let mut state = self.state();
        self.copy_to_tip(&database, &mut state, upper_bound)?;
        Ok(state.done.seq)
    }

    fn copy_to_tip(&self, database: &Database, state: &mut State, upper_bound: bool) -> Result<()> {
        let behind = database.wal.behind(&state.done.end);
        if !behind.is_empty() && clock_stepped_back(self.environment.now(), state.done.time) {
            let at = Arc::clone(&self.seqs.lock().unwrap()[&state.done.seq].1);
            let end = state.done.end;
            self.begin_run(state, at, end, "the clock was set back")?;
        }
        for logged in behind {
            self.append(&mut state.done, &logged, upper_bound)?;
        }
        self.spool.sync()
    }

    fn append(&self, done: &mut Position, logged: &Logged, upper_bound: bool) -> Result<()> {
        let commit = SpooledCommit {
            seq: done.seq + 1,
            time: stamp(self.environment.now(), done.time),
            upper_bound,
            pages: logged.commit.image.len() as u32,
            frames: logged.end.frame - logged.start.frame,
            end: logged.end,
        };
        self.spool.append(&logged.frames)?;
        self.spool.commit(commit, logged.start.checksum, ORDER)?;
        let mut seqs = self.seqs.lock().unwrap();
        seqs.insert(commit.seq, (done.run, Arc::clone(&logged.commit)));
        (done.seq, done.time, done.pages, done.end) =
            (commit.seq, commit.time, commit.pages, commit.end);
        Ok(())
    }
}

#[async_trait]
impl Source for SimulatedCapture {
    async fn barrier(&self) -> Result<u64> {
        self.copy(false)
    }

    async fn snapshot_pin(&self) -> Result<Box<dyn PageSource>> {
        let database = self.shared.database.lock().unwrap();
        let mut state = self.shared.state();
        self.shared.copy_to_tip(&database, &mut state, false)?;
        let image = database.tip.image.clone();
        let mut random = Random::new(state.random.next());
        if random.percent(5) || database.is_locked {
            return Err(Error::unavailable("the database is locked, as told"));
        }
        // Behind the last page: exact to the end.
        let until = random.below(image.len() as u64 * 2) as u32;
        let Position { run, seq, end, .. } = state.done;
        Ok(Box::new(Pin {
            shared: Arc::clone(&self.shared),
            run,
            seq,
            end,
            image,
            is_exact: true,
            until,
            random,
        }))
    }
}

/// Exact until it is let go, by itself at some page if not before. The application goes on
/// meanwhile.
struct Pin {
    shared: Arc<Shared>,
    run: u64,
    seq: u64,
    end: WalEnd,
    image: Vec<Bytes>,
    is_exact: bool,
    until: u32,
    random: Random,
}

impl PageSource for Pin {
    fn run(&self) -> u64 {
        self.run
    }

    fn seq(&self) -> u64 {
        self.seq
    }

    fn size(&self) -> (PageSize, u32) {
        (PAGE_SIZE, self.image.len() as u32)
    }

    fn end(&self) -> WalEnd {
        self.end
    }

    fn let_go(&mut self) {
        self.is_exact = false;
    }

    fn is_exact(&self) -> bool {
        self.is_exact
    }

    fn read(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        if self.random.percent(5) {
            self.shared.database.lock().unwrap().commit();
        }
        if self.random.percent(3) {
            self.shared.copy(false)?;
        }
        if pgno.get() > self.until {
            self.is_exact = false;
        }
        if self.shared.state().done.run != self.run {
            return Err(Error::conflict("the run ended under the snapshot"));
        }
        let found = if self.is_exact {
            page_of(&self.image, pgno)
        } else {
            self.shared.database.lock().unwrap().page(pgno)
        };
        page.copy_from_slice(&found);
        Ok(())
    }
}
