//! The harness: an application in a process of its own, since POSIX locks are per process, and a
//! reader that rebuilds each captured state from the spool.

use crate::config::{CaptureSettings, Clock, Environment};
use crate::format::ids::{PageSize, Pgno, Timestamp};
use crate::replicate::act::Capture;
use crate::replicate::budget::Budget;
use crate::replicate::decide::Timing;
use crate::replicate::pool::Pool;
use crate::replicate::source::{PageSource, Source};
use crate::replicate::spool::{Spool, SpooledCommit};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How long anything that must happen may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Shorter than in life, so that every rule has its turn within seconds.
pub(super) const TIMING: Timing = Timing {
    quiet: Duration::from_millis(20),
    rest: Duration::from_millis(150),
    file_time_grain: Duration::from_millis(50),
};

/// A python3 with one connection.
pub(super) struct App {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl App {
    pub(super) fn start(database: &Path) -> Self {
        let mut child = Command::new("python3")
            .arg("-c")
            .arg(include_str!("app.py"))
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
        }
    }

    /// Sends a statement without waiting for its answer.
    pub(super) fn send(&mut self, sql: &str) {
        writeln!(self.input, "{sql}").unwrap();
    }

    pub(super) fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    }

    #[track_caller]
    pub(super) fn sql(&mut self, sql: &str) -> String {
        self.send(sql);
        let answer = self.answer();
        assert!(!answer.starts_with("error"), "{sql}: {answer}");
        answer
    }

    pub(super) fn hash(&mut self) -> String {
        self.sql(".hash")
    }

    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A directory with a database and its spool.
pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    pub(super) settings: CaptureSettings,
    pub(super) timing: Timing,
    pub(super) max_spool_size: Option<u64>,
    pub(super) pool: Arc<Pool>,
    runtime: tokio::runtime::Runtime,
}

impl World {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = CaptureSettings {
            database: dir.path().join("app.db"),
            meta_path: dir.path().join("meta"),
            wal_size: 4 << 20,
            writer_lock: true,
            monitor_interval: Duration::from_secs(1),
        };
        Self {
            dir,
            settings,
            timing: TIMING,
            max_spool_size: None,
            pool: Arc::clone(Pool::of_process()),
            runtime: tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap(),
        }
    }

    pub(super) fn database(&self) -> PathBuf {
        self.settings.database.clone()
    }

    pub(super) fn app(&self) -> App {
        App::start(&self.settings.database)
    }

    /// An application that has made a WAL database with a table `t`.
    pub(super) fn app_with_table(&self) -> App {
        let mut app = self.app();
        app.sql("pragma journal_mode=wal");
        app.sql("create table t(id integer primary key, x)");
        app
    }

    pub(super) fn capture(&self) -> Running<'_> {
        let spool = Arc::new(
            Spool::open(&self.settings.meta_path, Budget::new(self.max_spool_size)).unwrap(),
        );
        self.capture_with(spool, Arc::new(clock))
    }

    pub(super) fn capture_with(&self, spool: Arc<Spool>, clock: Clock) -> Running<'_> {
        let (settings, capturing) = (self.settings.clone(), Arc::clone(&spool));
        let environment = Environment {
            clock,
            ..Environment::of_tests()
        };
        let capture =
            Capture::start_on(&self.pool, settings, capturing, environment, self.timing).unwrap();
        Running {
            world: self,
            spool,
            capture,
        }
    }

    pub(super) fn wal_bytes(&self) -> u64 {
        std::fs::metadata(self.dir.path().join("app.db-wal")).map_or(0, |meta| meta.len())
    }
}

pub(super) fn clock() -> Timestamp {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    Timestamp::from_micros(since.as_micros() as i64)
}

/// A capture at work.
pub(super) struct Running<'a> {
    world: &'a World,
    pub(super) spool: Arc<Spool>,
    pub(super) capture: Capture,
}

impl Running<'_> {
    pub(super) fn barrier(&self) -> u64 {
        self.world.runtime.block_on(self.capture.barrier()).unwrap()
    }

    pub(super) fn pin(&self) -> Box<dyn PageSource> {
        let pin = self.world.runtime.block_on(self.capture.snapshot_pin());
        pin.unwrap()
    }

    pub(super) fn stop(self) {
        self.world.runtime.block_on(self.capture.stop()).unwrap();
    }

    pub(super) fn run(&self) -> u64 {
        self.spool.position().expect("a run").run
    }

    /// Waits for a condition.
    #[track_caller]
    pub(super) fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_so() {
            let trouble = self.capture.trouble();
            assert!(start.elapsed() < PATIENCE, "waited for {what}; {trouble:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The pages of a database at one commit.
pub(super) struct Image {
    pub(super) page_size: PageSize,
    pages: HashMap<u32, Vec<u8>>,
    size: u32,
    sum: u64,
}

impl Image {
    /// Reads all pages of a pin.
    pub(super) fn read(pin: &mut dyn PageSource) -> Self {
        let (page_size, size) = pin.size();
        let mut image = Self::empty(page_size);
        for pgno in 1..=size {
            let mut page = vec![0; page_size.bytes()];
            pin.read(Pgno::new(pgno).unwrap(), &mut page).unwrap();
            image.set(pgno, page);
        }
        image.resize(size);
        image
    }

    pub(super) fn empty(page_size: PageSize) -> Self {
        Self {
            page_size,
            pages: HashMap::new(),
            size: 0,
            sum: 0,
        }
    }

    pub(super) fn set(&mut self, pgno: u32, page: Vec<u8>) {
        self.sum = self.sum.wrapping_add(page_hash(pgno, &page));
        if let Some(before) = self.pages.insert(pgno, page) {
            self.sum = self.sum.wrapping_sub(page_hash(pgno, &before));
        }
    }

    /// Pages beyond the size are gone; those that no frame ever held are zeros.
    pub(super) fn resize(&mut self, size: u32) {
        // A transaction may write pages beyond the size that it ends with.
        for (pgno, page) in self.pages.extract_if(|pgno, _| *pgno > size) {
            self.sum = self.sum.wrapping_sub(page_hash(pgno, &page));
        }
        for pgno in self.size + 1..=size {
            if !self.pages.contains_key(&pgno) {
                self.set(pgno, vec![0; self.page_size.bytes()]);
            }
        }
        self.size = size;
    }

    /// The hash that `.hash` of the application gives.
    pub(super) fn hash(&self) -> String {
        format!("{:016x}:{}", self.sum, self.size)
    }

    /// Lays the commits behind `after` over the image; calls `visit` behind each.
    pub(super) fn replay(
        &mut self,
        spool: &Spool,
        run: u64,
        mut after: u64,
        mut visit: impl FnMut(&SpooledCommit, &Self),
    ) {
        while let Some(batch) = spool.batch(run, after, 1 << 20).unwrap() {
            let mut frames = batch.frames().map(Result::unwrap).peekable();
            for (index, commit) in (0..).zip(&batch.commits) {
                while let Some(frame) = frames.next_if(|frame| frame.commit == index) {
                    let mut page = vec![0; self.page_size.bytes()];
                    batch.read_page(frame.offset, &mut page).unwrap();
                    self.set(frame.pgno.get(), page);
                }
                self.resize(commit.pages);
                visit(commit, self);
                after = commit.seq;
            }
        }
    }
}

/// The same as in `app.py`.
fn page_hash(pgno: u32, page: &[u8]) -> u64 {
    let crc = !page.iter().fold(!pgno, |crc, byte| {
        CRC[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8)
    });
    let (a, b) = page.iter().fold((1_u64, 0_u64), |(a, b), byte| {
        let a = a + u64::from(*byte);
        (a, b + a)
    });
    let adler = ((b % 65521) << 16) | (a % 65521);
    (u64::from(crc) << 32 | adler).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};
