//! Applications that write to a database: processes of their own, with SQLite's default
//! autocheckpoint. One is this very binary with the SQLite that it bundles, the other `writer.py`
//! with Debian's. Both obey one command per line, answer each with one line, and note what SQLite
//! shows after each commit in the ledger.
//!
//! - `random N`: N random transactions, with checkpoints, VACUUMs and readers between them
//! - `updates N RATE`: N updates of a row of `t` (RATE a second; 0: as fast as possible), fewer if
//!   the file `stop` appears
//! - `sql TEXT`, `checkpoint MODE BUSY_MS`, `image PATH`

use crate::oracle::Ledger;
use crate::program::{LONG, Running, bound, wait_for};
use rusqlite::{Connection, ErrorCode, ffi};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// The environment variable that makes this binary a writer; its value is a [`Setup`].
const ROLE: &str = "SQLREPL_TEST_WRITER";

/// What a writer is told when it starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The database file.
    pub(crate) database: PathBuf,
    /// Where to note what SQLite shows; none: nowhere, which is faster.
    pub(crate) ledger: Option<PathBuf>,
    /// `PRAGMA synchronous`.
    pub(crate) synchronous: String,
    /// Where its random choices start.
    pub(crate) seed: u64,
    /// Which syncs of the `-wal` go wrong: `12:eio,40:kill` (see `eio.c`).
    pub(crate) faults: String,
    /// The library that makes them go wrong.
    pub(crate) library: Option<PathBuf>,
}

impl Setup {
    /// A writer of `app.db` in this folder, with a ledger.
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            database: folder.join("app.db"),
            ledger: Some(folder.join("ledger")),
            synchronous: "NORMAL".into(),
            seed: 1,
            faults: String::new(),
            library: None,
        }
    }
}

/// A writer in a process of its own.
pub(crate) struct Writer {
    pub(crate) program: Running,
    stdin: ChildStdin,
    asked: usize,
    answered: usize,
}

impl Writer {
    /// Starts this binary as a writer.
    #[track_caller]
    pub(crate) fn rust(setup: &Setup, logs: &Path) -> Self {
        let mut command = bound(std::env::current_exe().unwrap());
        command
            .args(["writer::process", "--exact", "--ignored", "--nocapture"])
            .env(ROLE, serde_json::to_string(setup).unwrap());
        Self::start(command, setup, logs)
    }

    /// Starts Debian's Python as a writer.
    #[track_caller]
    pub(crate) fn python(setup: &Setup, logs: &Path) -> Self {
        let mut command = bound("/usr/bin/python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/writer.py"));
        command.arg(serde_json::to_string(setup).unwrap());
        Self::start(command, setup, logs)
    }

    #[track_caller]
    fn start(mut command: Command, setup: &Setup, logs: &Path) -> Self {
        if let Some(library) = &setup.library {
            command.env("LD_PRELOAD", library);
            command.env("SQLREPL_SYNC_FAULTS", &setup.faults);
        }
        let mut program = Running::start(command.stdin(Stdio::piped()), logs);
        let stdin = program.stdin().expect("the command asked for a pipe");
        Self {
            program,
            stdin,
            asked: 0,
            answered: 0,
        }
    }

    /// Sends a command and waits for nothing. A writer that was killed does not hear it.
    pub(crate) fn send(&mut self, command: &str) {
        self.asked += 1;
        // A broken pipe shows as soon as somebody waits for the answer.
        writeln!(self.stdin, "{command}").ok();
    }

    /// True while the last command is not answered and the writer lives.
    pub(crate) fn is_busy(&mut self) -> bool {
        self.program.is_running() && self.answers().len() < self.asked
    }

    /// Waits for the answer to the oldest command whose answer was not read yet.
    ///
    /// # Panics
    /// If the writer ends instead.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Value {
        let answer = wait_for(LONG, "a writer's answer", || {
            let alive = self.program.is_running();
            let answer = self.answers().get(self.answered).cloned();
            assert!(alive || answer.is_some(), "the writer ended");
            answer
        });
        self.answered += 1;
        serde_json::from_str(&answer).unwrap()
    }

    /// Sends a command and waits for its answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str) -> Value {
        self.send(command);
        self.answer()
    }

    fn answers(&self) -> Vec<String> {
        let printed = self.program.stdout();
        // The last piece is a line that is being written.
        let (whole, _) = printed.rsplit_once('\n').unwrap_or_default();
        let answers = whole.lines().filter_map(|line| line.strip_prefix("> "));
        answers.map(str::to_owned).collect()
    }
}

/// Seeded random numbers (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    /// True once in so many times.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.roll(times) == 0
    }

    /// One of several.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let sides = u64::try_from(from.len()).unwrap();
        from[usize::try_from(self.roll(sides)).unwrap()]
    }
}

/// Becomes a writer if that is what this process was started for, and then never returns.
pub(crate) fn become_writer() {
    let Ok(setup) = std::env::var(ROLE) else {
        return;
    };
    // Whoever started this line of output, an answer begins its own.
    println!();
    let mut process = Process::new(serde_json::from_str(&setup).unwrap());
    for line in std::io::stdin().lock().lines() {
        let answer = process.obey(&line.unwrap());
        println!("> {answer}");
    }
    std::process::exit(0);
}

#[test]
#[ignore = "not a story: it is the process that stories start as an application"]
fn process() {
    become_writer();
    panic!("this is for stories to start, with {ROLE} set");
}

struct Process {
    setup: Setup,
    /// Writes.
    main: Connection,
    /// Reads, for long, or writes now and then.
    other: Connection,
    /// Sees what any new reader would see.
    judge: Connection,
    ledger: Option<Ledger>,
    dice: Dice,
    number: u64,
}

impl Process {
    fn new(setup: Setup) -> Self {
        let ledger = setup.ledger.as_deref().map(Ledger::open);
        let process = Self {
            main: open(&setup),
            other: open(&setup),
            judge: open(&setup),
            ledger,
            dice: Dice(setup.seed),
            number: 0,
            setup,
        };
        if let Some(ledger) = &process.ledger {
            // Recovery may have brought back a commit that was written but never published.
            ledger.look(|| image(&process.judge));
        }
        process
    }

    fn obey(&mut self, command: &str) -> Value {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        let words: Vec<&str> = rest.split(' ').collect();
        match verb {
            "random" => self.random(words[0].parse().unwrap()),
            "updates" => self.updates(words[0].parse().unwrap(), words[1].parse().unwrap()),
            "sql" => {
                let outcome = self.commit(&self.main, |main| main.execute_batch(rest));
                json!({ "error": outcome.err().map(|error| error.to_string()) })
            }
            "checkpoint" => self.checkpoint(words[0], words[1].parse().unwrap()),
            "image" => {
                std::fs::write(rest, image(&self.judge)).unwrap();
                json!({})
            }
            _ => panic!("no such command: {command}"),
        }
    }

    /// Runs what commits, and notes what SQLite shows then.
    fn commit<T>(&self, on: &Connection, work: impl FnOnce(&Connection) -> T) -> T {
        match &self.ledger {
            Some(ledger) => ledger.commit(|| work(on), || image(&self.judge)),
            None => work(on),
        }
    }

    fn updates(&mut self, count: u64, rate: u64) -> Value {
        let stop = self.setup.database.with_file_name("stop");
        let start = Instant::now();
        let mut micros = Vec::new();
        for n in 0..count {
            let due = Duration::from_micros((n * 1_000_000).checked_div(rate).unwrap_or(0));
            if let Some(wait) = due.checked_sub(start.elapsed()) {
                // The pace of the application that this process plays.
                std::thread::sleep(wait);
            }
            self.number += 1;
            let value = format!("{}:{}", self.setup.seed, self.number);
            let row = u32::try_from(self.dice.roll(100) + 1).unwrap();
            let begin = Instant::now();
            self.commit(&self.main, |main| {
                let mut update = main
                    .prepare_cached("UPDATE t SET v = ?1 WHERE id = ?2")
                    .unwrap();
                update.execute((&value, row)).unwrap();
            });
            micros.push(u64::try_from(begin.elapsed().as_micros()).unwrap());
            if n % 16 == 0 && stop.exists() {
                break;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let commits = micros.len();
        micros.sort_unstable();
        let p99 = micros.get(commits * 99 / 100);
        json!({
            "commits": commits, "seconds": seconds, "p99_us": p99, "max_us": micros.last(),
        })
    }

    fn checkpoint(&self, mode: &str, busy_ms: u64) -> Value {
        self.main
            .busy_timeout(Duration::from_millis(busy_ms))
            .unwrap();
        let begin = Instant::now();
        let row = self
            .main
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), (), |row| {
                row.get::<_, i64>(0)
            });
        let ms = u64::try_from(begin.elapsed().as_millis()).unwrap();
        self.main.busy_timeout(BUSY_TIMEOUT).unwrap();
        match row {
            Ok(busy) => json!({ "ms": ms, "busy": busy }),
            Err(error) => json!({ "ms": ms, "error": error.to_string() }),
        }
    }

    fn random(&mut self, count: u64) -> Value {
        let mut failed = 0;
        for _ in 0..count {
            self.between();
            match self.transaction() {
                Ok(()) => {}
                Err(error) if is_fault(&error) => {
                    failed += 1;
                    self.reopen();
                }
                Err(error) => panic!("{error}"),
            }
        }
        json!({ "failed": failed })
    }

    /// What an application does between two transactions.
    fn between(&mut self) {
        let outcome = match self.dice.roll(24) {
            0 | 1 => {
                let mode = self.dice.pick(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
                let busy_ms = self.dice.pick(&[0, 50]);
                self.checkpoint(mode, busy_ms);
                Ok(())
            }
            2 => {
                let limit = self.dice.pick(&["-1", "0", "32768"]);
                self.main
                    .execute_batch(&format!("PRAGMA journal_size_limit = {limit}"))
            }
            3 => {
                let pages = self.dice.pick(&[5, 2000]);
                self.main
                    .execute_batch(&format!("PRAGMA cache_size = {pages}"))
            }
            4 if self.other.is_autocommit() => {
                self.other.execute_batch("BEGIN; SELECT n FROM tick")
            }
            4..8 if !self.other.is_autocommit() => self.other.execute_batch("COMMIT"),
            8 if self.dice.once_in(3) => self.vacuum(),
            9 if self.dice.once_in(4) => {
                self.reopen();
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            assert!(is_fault(&error), "{error}");
        }
    }

    fn vacuum(&self) -> rusqlite::Result<()> {
        // Under the ledger's lock nobody waits for the write lock: its holder may want the ledger.
        self.main.busy_timeout(Duration::ZERO)?;
        let outcome = self.commit(&self.main, |main| main.execute_batch("VACUUM"));
        self.main.busy_timeout(BUSY_TIMEOUT)?;
        outcome
    }

    fn transaction(&mut self) -> rusqlite::Result<()> {
        let on_other = self.other.is_autocommit() && self.dice.once_in(4);
        let connection = if on_other { &self.other } else { &self.main };
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let pages: u32 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
        let page_bytes: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let mut work = String::new();
        if u64::from(pages) * u64::from(page_bytes) > 1_500_000 {
            work.push_str("DELETE FROM t0; DELETE FROM t1 WHERE id % 3 > 0;");
        }
        for _ in 0..=self.dice.roll(4) {
            work.push_str(&change(&mut self.dice, page_bytes.into()));
        }
        connection.execute_batch(&work)?;
        if self.dice.once_in(12) {
            return connection.execute_batch("ROLLBACK");
        }
        // No two commits leave the same image, so that an order of images is an order of commits.
        connection.execute_batch("UPDATE tick SET n = n + 1")?;
        self.commit(connection, |connection| connection.execute_batch("COMMIT"))
    }

    fn reopen(&mut self) {
        for connection in [&mut self.main, &mut self.other] {
            *connection = open(&self.setup);
        }
    }
}

const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

fn open(setup: &Setup) -> Connection {
    let connection = Connection::open(&setup.database).unwrap();
    connection.busy_timeout(BUSY_TIMEOUT).unwrap();
    connection
        .pragma_update(None, "synchronous", &setup.synchronous)
        .unwrap();
    connection
}

/// What a fault in a sync, or a lock that somebody else has, may lead to.
fn is_fault(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

/// SQL that changes something, at random.
fn change(dice: &mut Dice, page_bytes: u64) -> String {
    let table = dice.pick(&["t0", "t1", "t2"]);
    let size = dice.roll(page_bytes.min(4096) * 2);
    let (few, many) = (dice.roll(20) + 1, dice.roll(400) + 100);
    let insert = |rows: u64, blob: u64| {
        format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO {table}(a, b) SELECT random(), randomblob({blob}) FROM n;"
        )
    };
    let some = format!("(SELECT id FROM {table} ORDER BY random() LIMIT {few})");
    match dice.roll(14) {
        0..4 => insert(few, size),
        4..7 => {
            format!("UPDATE {table} SET a = random(), b = randomblob({size}) WHERE id IN {some};")
        }
        7 => format!("DELETE FROM {table} WHERE id IN {some};"),
        8 => format!("DELETE FROM {table} WHERE id % 2 = {};", few % 2),
        9 => insert(many, size.min(1000)),
        10 => format!("CREATE TABLE IF NOT EXISTS x{few}(a); INSERT INTO x{few} VALUES(random());"),
        11 => format!("DROP TABLE IF EXISTS x{few}; PRAGMA incremental_vacuum({many});"),
        12 => format!("UPDATE {table} SET b = zeroblob({});", size / 4),
        _ => {
            let rows = insert(many, size.min(1000));
            format!("SAVEPOINT s; {rows} DELETE FROM t2; ROLLBACK TO s; RELEASE s;")
        }
    }
}

/// SQLite's own image of the database.
fn image(connection: &Connection) -> Vec<u8> {
    wait_for(LONG, "SQLite to show the database", || {
        let mut size: i64 = 0;
        // SAFETY: the handle is open, the name is a C string, and `size` outlives the call.
        let bytes =
            unsafe { ffi::sqlite3_serialize(connection.handle(), c"main".as_ptr(), &mut size, 0) };
        if bytes.is_null() {
            return None;
        }
        let length = usize::try_from(size).unwrap();
        // SAFETY: SQLite returned `size` bytes there, which are ours until they are freed.
        let image = unsafe { std::slice::from_raw_parts(bytes, length) }.to_vec();
        // SAFETY: allocated by sqlite3_serialize, and freed once.
        unsafe { ffi::sqlite3_free(bytes.cast()) };
        Some(image)
    })
}
