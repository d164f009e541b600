//! Writers, checkpointers, the capture: killed, stopped, frozen at random; every captured state
//! must be SQLite's own, and none may be missing within a run.
//!
//! `SQLREPL_STRESS_SECONDS` makes it longer, `SQLREPL_STRESS_SEED` repeats one.

use crate::config::{CaptureSettings, Environment};
use crate::format::ids::PageSize;
use crate::replicate::act::Capture;
use crate::replicate::pool::Pool;
use crate::replicate::source::Source;
use crate::replicate::spool::Spool;
use crate::replicate::tests::world::{App, Image, TIMING, clock};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

const CHILD: &str = "SQLREPL_TEST_CAPTURE_CHILD";

/// A generator of the test's own: the same seed, the same run as far as scheduling allows.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn settings(dir: &Path) -> CaptureSettings {
    CaptureSettings {
        database: dir.join("app.db"),
        meta_path: dir.join("meta"),
        wal_size: 200_000,
        writer_lock: true,
        monitor_interval: Duration::from_millis(300),
    }
}

/// The daemon of the stress test, in a process of its own: captures until its input ends, and takes
/// a snapshot of each run.
#[test]
fn capture_child() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let dir = Path::new(&dir);
    let log = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(dir.join("capture.log"));
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(std::sync::Mutex::new(log.unwrap()))
        .init();
    let is_over = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_over);
    std::thread::spawn(move || {
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        flag.store(true, Ordering::SeqCst);
    });
    let spool = Arc::new(Spool::open(&settings(dir).meta_path, Arc::default()).unwrap());
    let environment = Environment::of_tests();
    let capture = Capture::start_on(
        Pool::of_process(),
        settings(dir),
        Arc::clone(&spool),
        environment,
        TIMING,
    )
    .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        while !is_over.load(Ordering::SeqCst) {
            let run = spool.position().map_or(0, |position| position.run);
            if run > 0 && !dir.join(format!("snapshot-{run}")).exists() {
                // The run may have ended meanwhile: the next one has its turn.
                drop(take_snapshot(dir, &capture).await);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        capture.stop().await.unwrap();
    });
}

/// Writes the pages of a snapshot to a file named by its run: first a line with what it is.
async fn take_snapshot(dir: &Path, capture: &Capture) -> crate::error::Result<()> {
    let mut pin = capture.snapshot_pin().await?;
    let (page_size, pages) = pin.size();
    let mut bytes = vec![0; page_size.bytes() * pages as usize];
    for (pgno, page) in (1..).zip(bytes.chunks_exact_mut(page_size.bytes())) {
        pin.read(crate::format::ids::Pgno::new(pgno).unwrap(), page)?;
    }
    let valid_from = if pin.is_exact() {
        pin.seq()
    } else {
        capture.barrier().await?
    };
    let (run, seq) = (pin.run(), pin.seq());
    let mut file = format!("{seq} {valid_from} {} {pages}\n", page_size.get()).into_bytes();
    file.extend(bytes);
    fs::write(dir.join("snapshot.tmp"), file).unwrap();
    fs::rename(
        dir.join("snapshot.tmp"),
        dir.join(format!("snapshot-{run}")),
    )
    .unwrap();
    Ok(())
}

fn start_capture(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "replicate::tests::stress::capture_child",
            "--nocapture",
        ])
        .env(CHILD, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn start_writer(dir: &Path, seed: u64, deadline: f64) -> Child {
    Command::new("python3")
        .arg("-c")
        .arg(include_str!("writer.py"))
        .arg(dir.join("app.db"))
        .arg(dir.join("oracle"))
        .arg(seed.to_string())
        .arg(deadline.to_string())
        .spawn()
        .expect("python3 is there")
}

fn make_database(dir: &Path, random: &mut Random) {
    let page_size = [512, 1024, 4096, 4096, 65536][random.below(5) as usize];
    let auto_vacuum = random.below(3);
    let made = Command::new("python3")
        .arg("-c")
        .arg(format!(
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
             for s in ('page_size={page_size}', 'auto_vacuum={auto_vacuum}',\
              'journal_mode=wal'):\n \
               c.execute('pragma ' + s)\n\
             c.execute('create table t(id integer primary key, x)')"
        ))
        .arg(dir.join("app.db"))
        .status()
        .unwrap();
    assert!(made.success());
}

fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    // It may have ended by itself.
    nix::sys::signal::kill(pid, signal).unwrap_or(());
}

fn end(mut child: Child) {
    drop(child.kill());
    child.wait().unwrap();
}

/// Ends the input of a capture and waits for it.
fn stop(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success(), "the capture failed");
}

/// Lets all of it run for a while.
fn torment(dir: &Path, random: &mut Random, time: Duration) -> Tormented {
    use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
    let start = Instant::now();
    let deadline = SystemTime::UNIX_EPOCH.elapsed().unwrap() + time;
    let deadline = deadline.as_secs_f64();
    let mut counts = Tormented::default();
    let mut writers: Vec<Child> = (0..2)
        .map(|_| start_writer(dir, random.below(1 << 40), deadline))
        .collect();
    let mut capture = start_capture(dir);
    while start.elapsed() < time {
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        let frozen = Duration::from_micros(random.below(40_000));
        match random.below(60) {
            0 => {
                end(capture);
                std::thread::sleep(Duration::from_millis(random.below(400)));
                capture = start_capture(dir);
                counts.captures_killed += 1;
            }
            1 => {
                stop(capture);
                std::thread::sleep(Duration::from_millis(random.below(400)));
                capture = start_capture(dir);
                counts.captures_stopped += 1;
            }
            2 | 3 => {
                let victim = random.below(writers.len() as u64) as usize;
                end(writers.swap_remove(victim));
                writers.push(start_writer(dir, random.below(1 << 40), deadline));
                counts.writers_killed += 1;
            }
            4..20 => {
                signal(&capture, SIGSTOP);
                std::thread::sleep(frozen);
                signal(&capture, SIGCONT);
            }
            20..30 => {
                let frozen_one = &writers[random.below(writers.len() as u64) as usize];
                signal(frozen_one, SIGSTOP);
                std::thread::sleep(frozen);
                signal(frozen_one, SIGCONT);
            }
            _ => {}
        }
    }
    for mut writer in writers {
        assert!(writer.wait().unwrap().success(), "a writer failed");
    }
    // A writer that was killed may have left a state that nobody hashed.
    let last = App::start(&dir.join("app.db")).hash();
    let mut oracle = fs::OpenOptions::new()
        .append(true)
        .open(dir.join("oracle"))
        .unwrap();
    writeln!(oracle, "{last}").unwrap();
    stop(capture);
    counts
}

#[derive(Debug, Default)]
struct Tormented {
    captures_killed: u32,
    captures_stopped: u32,
    writers_killed: u32,
}

/// What the writers logged.
struct Oracle {
    /// Where each hashed state stands, counted in states.
    known: HashMap<String, u64>,
    /// The positions of hashed states, and how many states lie between one and the one before it:
    /// `None` if a writer was killed in a burst.
    between: BTreeMap<u64, Option<u64>>,
    last: String,
}

impl Oracle {
    fn read(path: &Path) -> Self {
        let (mut known, mut between) = (HashMap::new(), BTreeMap::new());
        let (mut position, mut unhashed, mut in_burst) = (0, Some(0), false);
        let mut last = String::new();
        for entry in fs::read_to_string(path).unwrap().lines() {
            if entry == "(" {
                if in_burst {
                    unhashed = None;
                }
                in_burst = true;
            } else if let Some(count) = entry.strip_prefix(')') {
                in_burst = false;
                // The last one is hashed.
                let count: u64 = count.parse().unwrap();
                unhashed = unhashed.map(|before: u64| before + count - 1);
            } else if entry != last {
                if std::mem::take(&mut in_burst) {
                    unhashed = None;
                }
                position += 1;
                between.insert(position, unhashed);
                unhashed = Some(0);
                known.insert(entry.to_string(), position);
                last = entry.to_string();
            }
        }
        Self {
            known,
            between,
            last,
        }
    }

    /// Checks the states of a run; how many of them the oracle had hashed.
    fn check(&self, states: &[(String, String)]) -> u64 {
        let mut checked = 0;
        let mut last: Option<(usize, u64)> = None;
        for (index, (commit, hash)) in states.iter().enumerate() {
            let Some(&position) = self.known.get(hash) else {
                continue;
            };
            checked += 1;
            if let Some((last_index, last_position)) = last {
                assert_eq!(position, last_position + 1, "a gap before {commit} {hash}");
                if let Some(between) = self.between[&position] {
                    let captured = (index - last_index - 1) as u64;
                    assert_eq!(captured, between, "unhashed ones before {commit}");
                }
            }
            last = Some((index, position));
        }
        checked
    }
}

fn check_runs(dir: &Path, oracle: &Oracle) -> (u64, u64) {
    let spool = Spool::open(&dir.join("meta"), Arc::default()).unwrap();
    let runs = spool.runs();
    let mut checked = 0;
    let mut last = String::new();
    for run in &runs {
        let Ok(file) = fs::read(dir.join(format!("snapshot-{}", run.id))) else {
            continue;
        };
        let line = file.iter().position(|byte| *byte == b'\n').unwrap();
        let numbers: Vec<u64> = std::str::from_utf8(&file[..line])
            .unwrap()
            .split(' ')
            .map(|number| number.parse().unwrap())
            .collect();
        let &[seq, valid_from, page_size, size] = &numbers[..] else {
            panic!("four numbers");
        };
        let mut image = Image::empty(PageSize::new(page_size as u32).unwrap());
        for (pgno, page) in (1..).zip(file[line + 1..].chunks(page_size as usize)) {
            image.set(pgno, page.to_vec());
        }
        image.resize(size as u32);
        let mut states = Vec::new();
        if valid_from == seq {
            states.push((format!("the snapshot at {seq}"), image.hash()));
        }
        image.replay(&spool, run.id, seq, |commit, image| {
            if commit.seq >= valid_from {
                states.push((format!("{commit:?}"), image.hash()));
            }
        });
        checked += oracle.check(&states);
        if let Some((_, hash)) = states.last() {
            last.clone_from(hash);
        }
    }
    assert_eq!(
        last,
        oracle.last,
        "the last state is captured; see {}",
        dir.display()
    );
    (checked, runs.len() as u64)
}

#[test]
fn every_captured_state_is_sqlites_own_and_none_is_missing() {
    let seconds = std::env::var("SQLREPL_STRESS_SECONDS").map_or(4, |text| text.parse().unwrap());
    let seed = std::env::var("SQLREPL_STRESS_SEED")
        .map_or_else(|_| clock().micros() as u64, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    eprintln!("SQLREPL_STRESS_SEED={seed} in {}", dir.path().display());
    let mut random = Random(seed | 1);
    make_database(dir.path(), &mut random);
    let counts = torment(dir.path(), &mut random, Duration::from_secs(seconds));
    let dir = dir.keep();
    let oracle = Oracle::read(&dir.join("oracle"));
    let hashed = oracle.between.len() as u64;
    let (checked, runs) = check_runs(&dir, &oracle);
    // Kept if something is wrong.
    fs::remove_dir_all(&dir).unwrap();
    eprintln!("{hashed} hashed states, {checked} captured and equal, {runs} runs, {counts:?}");
    assert!(
        checked * 3 > hashed,
        "{checked} of {hashed} states are enough to mean something"
    );
}
