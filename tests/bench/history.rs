//! `make bench` on a long history: what it takes in the store, what merging costs, what a later
//! snapshot uploads, and what it takes to open a moment of it. Nothing here waits for time to pass:
//! replicas are made by our own encoders and kept by our own keeper, by a clock that the bench
//! moves.

mod application;
mod made;
mod opened;

use super::{Row, highest, megabytes, ratio};
use crate::world::World;
use crate::writer::Dice;
use application::{Application, Keys};
use made::{Commit, Costs, DAY, Hands, Made, PAGE_BYTES, Stored};
pub(super) use opened::{long_replica, open, timelines};
use sqlrepl::format::key::ObjectKey;
use sqlrepl::storage::memory::MemoryStore;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Transactions of the workloads.
const COMMITS: usize = 20_000;
/// What a peer stores beside each page version: where it lies and what it is, and a hash.
const BESIDE_PAGE: u64 = 24 + 16;
/// Between two uploads.
const UPLOADS: Duration = Duration::from_secs(1);

/// A smaller number for a quick look: `SQLREPL_BENCH_PART=20` takes the twentieth part.
fn scaled(number: usize) -> usize {
    let part = std::env::var("SQLREPL_BENCH_PART");
    part.map_or(number, |part| number / part.parse::<usize>().unwrap())
}

fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("sqlrepl-bench-")
        .tempdir()
        .unwrap()
}

/// A replica in memory, made and kept in a folder.
fn in_memory(folder: &Path) -> Made {
    let hands = Hands::new();
    std::fs::create_dir_all(folder).unwrap();
    Made::new(MemoryStore::with_clock(hands.clock()), hands, folder)
}

/// What others would store of the same transactions.
#[derive(Default)]
struct Others {
    wal: u64,
    lz4: u64,
    /// Of each page that was written, the newest version.
    newest: HashMap<u32, u64>,
}

impl Others {
    fn add(&mut self, commit: &Commit) {
        for (page, bytes) in &commit.writes {
            self.wal += 24 + bytes.len() as u64;
            let stored = lz4_flex::block::compress(bytes).len() as u64 + BESIDE_PAGE;
            self.lz4 += stored;
            self.newest.insert(*page, stored);
        }
    }

    fn newest(&self) -> u64 {
        self.newest.values().sum()
    }
}

/// What is stored of a workload that was sent in uploads of so many commits.
struct Kept {
    /// All segments and the claim, once merging has settled.
    segments: Stored,
    /// The same a day later, when a snapshot has closed the stretch.
    closed: Stored,
    /// The snapshots behind the first one.
    later: Stored,
    costs: Costs,
}

/// A workload, what others would store of it, and what we do.
struct Workload {
    others: Others,
    /// At one commit an upload, and at 60.
    kept: [Kept; 2],
}

fn is_history(key: &ObjectKey) -> bool {
    let is_upload = matches!(key, ObjectKey::Upload { .. } | ObjectKey::Merged { .. });
    is_upload || *key == ObjectKey::Claim
}

fn is_later(key: &ObjectKey) -> bool {
    match key {
        ObjectKey::Snapshot { txid, .. } => txid.get() > 1,
        ObjectKey::Part { since, .. } => since.get() > 1,
        _ => false,
    }
}

fn workload(keys: Keys) -> Workload {
    let folder = folder();
    let mut application = Application::new(&folder.path().join("app.db"), keys);
    let image = application.image();
    let pages: Vec<&[u8]> = image.chunks_exact(PAGE_BYTES).collect();
    let mut replicas: Vec<(usize, Made, Vec<Commit>)> = Vec::new();
    for at_once in [1, 60] {
        let mut made = in_memory(&folder.path().join(format!("{at_once}")));
        made.snapshot(pages.len() as u32, |number, page| {
            page.copy_from_slice(pages[number as usize - 1]);
        });
        replicas.push((at_once, made, Vec::new()));
    }
    let mut others = Others::default();
    application.commit(scaled(COMMITS), |commit| {
        others.add(&commit);
        for (at_once, made, waiting) in &mut replicas {
            waiting.push(commit.clone());
            if waiting.len() == *at_once {
                made.hands.advance(UPLOADS);
                made.upload(waiting);
                made.keep_if_due();
                waiting.clear();
            }
        }
    });
    let kept: Vec<Kept> = replicas
        .into_iter()
        .map(|(_, made, waiting)| kept(made, &waiting))
        .collect();
    Workload {
        others,
        kept: kept.try_into().ok().unwrap(),
    }
}

fn kept(mut made: Made, waiting: &[Commit]) -> Kept {
    if !waiting.is_empty() {
        made.hands.advance(UPLOADS);
        made.upload(waiting);
    }
    made.settle();
    let segments = made.stored(is_history);
    let costs = made.costs;
    made.hands.advance(DAY);
    made.settle();
    Kept {
        segments,
        closed: made.stored(is_history),
        later: made.stored(is_later),
        costs,
    }
}

fn skewed() -> &'static Workload {
    static SKEWED: OnceLock<Workload> = OnceLock::new();
    SKEWED.get_or_init(|| workload(Keys::Skewed))
}

/// A row of what is stored, per commit.
fn stored(what: &'static str, bytes: f64, beside: String) -> Row {
    Row {
        what,
        figure: format!("{:.0} B", bytes / scaled(COMMITS) as f64),
        target: "",
        met: true,
        beside,
    }
}

/// (a): what every version costs in the store.
pub(super) fn size() -> Vec<Row> {
    let mut rows = Vec::new();
    let uniform = workload(Keys::Uniform);
    let names = [
        ["skewed, a commit: raw WAL", "uniform, a commit: raw WAL"],
        ["  per-page LZ4, all versions", "  the same"],
        ["  per-page LZ4, newest versions only", "  the same"],
    ];
    for (column, workload) in [skewed(), &uniform].into_iter().enumerate() {
        let others = &workload.others;
        let (wal, lz4, newest) = (others.wal, others.lz4, others.newest());
        let pages = others.newest.len();
        rows.push(stored(names[0][column], wal as f64, String::new()));
        rows.push(stored(names[1][column], lz4 as f64, String::new()));
        rows.push(stored(
            names[2][column],
            newest as f64,
            format!("{pages} pages"),
        ));
        rows.extend(match column {
            0 => skewed_rows(workload),
            _ => uniform_rows(workload),
        });
    }
    rows
}

fn skewed_rows(workload: &Workload) -> Vec<Row> {
    let newest = workload.others.newest() as f64;
    let lz4 = workload.others.lz4 as f64;
    let names = [
        [
            "  ours, all versions, 1 commit an upload",
            "    / newest only",
            "    / per-page LZ4",
            "    a day later with a snapshot / newest only",
        ],
        [
            "  ours, all versions, 60 commits an upload",
            "    / newest only",
            "    / per-page LZ4",
            "    a day later with a snapshot / newest only",
        ],
    ];
    let mut rows = Vec::new();
    for (names, kept) in names.iter().zip(&workload.kept) {
        let bytes = kept.segments.bytes();
        let day = kept.closed.bytes() + kept.later.bytes();
        let (most, part, with) = (bytes / newest, bytes / lz4, day / newest);
        rows.push(stored(names[0], bytes, kept.segments.to_string()));
        rows.push(ratio(names[1], most, "<= 1.5", most <= 1.5));
        rows.push(ratio(names[2], part, "<= 0.167", part <= 1.0 / 6.0));
        rows.push(
            ratio(names[3], with, "<= 2", with <= 2.0)
                .beside(format!("{}; snapshots: {}", kept.closed, kept.later)),
        );
    }
    rows
}

fn uniform_rows(workload: &Workload) -> Vec<Row> {
    let lz4 = workload.others.lz4 as f64;
    let names = [
        [
            "  ours, all versions, 1 commit an upload",
            "    / per-page LZ4",
            "    a day later with a snapshot / per-page LZ4",
        ],
        [
            "  ours, all versions, 60 commits an upload",
            "    / per-page LZ4",
            "    a day later with a snapshot / per-page LZ4",
        ],
    ];
    let mut rows = Vec::new();
    for (names, kept) in names.iter().zip(&workload.kept) {
        let bytes = kept.segments.bytes();
        let day = kept.closed.bytes() + kept.later.bytes();
        let (part, with) = (bytes / lz4, day / lz4);
        rows.push(stored(names[0], bytes, kept.segments.to_string()));
        rows.push(ratio(names[1], part, "<= 0.5", part <= 0.5));
        rows.push(
            ratio(names[2], with, "", true)
                .beside(format!("{}; snapshots: {}", kept.closed, kept.later)),
        );
    }
    rows
}

/// (c): what a later snapshot uploads when 1 % of a database has changed.
pub(super) fn changed() -> Vec<Row> {
    let folder = folder();
    let path = folder.path().join("app.db");
    let image = Application::new(&path, Keys::Uniform).image();
    let real: Vec<&[u8]> = image.chunks_exact(PAGE_BYTES).collect();
    let pages = scaled(262_144) as u32;
    let mut made = in_memory(&folder.path().join("made"));
    made.snapshot(pages, |number, page| {
        page.copy_from_slice(real[(number as usize - 1) % real.len()]);
    });
    let mut dice = Dice(1);
    let days: Vec<(f64, String)> = (0..7)
        .map(|_| day_of_changes(&mut made, pages, &real, &mut dice))
        .collect();
    let each: Vec<String> = days
        .iter()
        .map(|(ratio, _)| format!("{ratio:.2}"))
        .collect();
    let row = |what, day: usize, beside| {
        let figure = days[day].0;
        ratio(what, figure, "<= 1.3", figure <= 1.3).beside(beside)
    };
    vec![
        row(
            "snapshot after 1 % of 1 GB / those pages in zstd",
            0,
            days[0].1.clone(),
        ),
        row(
            "  the same on a seventh day",
            6,
            format!("each day: {}", each.join(" ")),
        ),
    ]
}

/// A hundredth of the pages, anywhere, becomes like others; what the snapshot at the end of the day
/// uploads, against these pages compressed in its blocks.
fn day_of_changes(made: &mut Made, pages: u32, real: &[&[u8]], dice: &mut Dice) -> (f64, String) {
    let changed: BTreeSet<u32> = (0..pages / 100)
        .map(|_| dice.roll(u64::from(pages) - 1) as u32 + 2)
        .collect();
    let writes: Vec<(u32, Vec<u8>)> = changed
        .iter()
        .map(|page| (*page, dice.pick(real).to_vec()))
        .collect();
    let raw: Vec<u8> = writes
        .iter()
        .flat_map(|(_, bytes)| bytes)
        .copied()
        .collect();
    let compressed: usize = raw
        .chunks(64 << 10)
        .map(|block| zstd::bulk::compress(block, 3).unwrap().len())
        .sum();
    made.hands.advance(DAY);
    made.upload(&[Commit { pages, writes }]);
    let taken = made.keep().snapshot.expect("a day has passed");
    let (bytes, compressed) = (taken.bytes as f64, compressed as f64);
    let beside = format!(
        "{:.2} / {:.2} MB, {} pages; {}",
        bytes / 1e6,
        compressed / 1e6,
        taken.pages,
        made.stored(is_later)
    );
    (bytes / compressed, beside)
}

/// (e): what all merging takes, against the encoding of what is merged.
pub(super) fn merging() -> Vec<Row> {
    let names = [
        "CPU of merging / of encoding, 1 commit an upload",
        "CPU of merging / of encoding, 60 commits an upload",
    ];
    let each = names.into_iter().zip(&skewed().kept);
    each.map(|(what, kept)| {
        let Costs {
            wal_bytes,
            encoding,
            keeping,
            merges,
        } = kept.costs;
        let (times, gigabytes) = (keeping / encoding, wal_bytes as f64 / 1e9);
        ratio(what, times, "<= 3", times <= 3.0).beside(format!(
            "{:.1} / {:.1} s a GB of WAL, {merges} merges",
            keeping / gigabytes,
            encoding / gigabytes
        ))
    })
    .collect()
}

/// (d): what daemon and mount hold in memory while an application writes as fast as it can, and
/// all that maintenance does is due again and again.
pub(super) fn resident() -> Vec<Row> {
    const PAGE_CACHE: f64 = (16 << 20) as f64;
    let world = World::alone();
    let mut application = Application::new(&world.path("app.db"), Keys::Skewed);
    let retention = "--retention all=20s,hourly=30d --retention-check-interval 2s";
    let mut daemon = world.daemon_with(&format!("--snapshot-interval 10s {retention}"));
    let mount = world.mount_at("mount --page-cache 16MiB replicas mnt");
    let seconds = scaled(60) as u64;
    let (mut commits, mut mounted, mut opened) = (0, 0.0, 0);
    let replicating = highest(&daemon, || {
        mounted = highest(&mount.program, || {
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    commits = application.write(seconds);
                    done.store(true, Ordering::Relaxed);
                });
                while !done.load(Ordering::Relaxed) {
                    for moment in ["latest", "10s-ago"] {
                        let query = "SELECT count(*) FROM ledger WHERE customer = 4712";
                        // A moment 10 s ago may lie before the first one, or be thinned.
                        let asked = world.try_sql(&format!("mnt/app/{moment}.db"), query);
                        opened += u32::from(asked.code == 0);
                    }
                }
            });
        });
    });
    drop(mount);
    world.sync();
    assert_eq!(daemon.term(), 0);
    let count = |is: &dyn Fn(&str) -> bool| {
        let objects = world.objects("replicas/app");
        objects.iter().filter(|(key, _)| is(key)).count()
    };
    let merged = count(&|key| key.ends_with(".wal") && !key.contains("/wal/0/"));
    let snapshots = count(&|key| key.ends_with(".snapshot"));
    let beside = format!("{commits} commits, {merged} merged segments, {snapshots} snapshots");
    vec![
        megabytes(
            "RssAnon of the daemon while it merges and thins",
            replicating,
            "<= 64 MB",
            replicating <= 64e6,
        )
        .beside(beside),
        megabytes(
            "RssAnon of a mount meanwhile, page cache of 16 MiB",
            mounted,
            "<= 64 MB + cache",
            mounted <= 64e6 + PAGE_CACHE,
        )
        .beside(format!("{opened} moments queried")),
    ]
}
