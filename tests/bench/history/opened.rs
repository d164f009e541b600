//! What a cold process pays to open a random moment of a long history, and to ask one point query.
//!
//! The replica is that of a 10 GB database with 10 commits and one upload a second. Which objects
//! it consists of, the rules of maintenance say, upload by upload; then each is made once, as it
//! stands in the end. What is never read of the first snapshot is all alike, so that it takes
//! little room; all that commits write compresses as real pages do.

use super::made::{
    Commit, DAY, GENERATION, Hands, Made, PAGE_BYTES, PAGE_SIZE, header, key, pgno, scratch, txid,
};
use super::{folder, scaled};
use crate::bench::Row;
use crate::writer::Dice;
use sqlrepl::format::container::{Header, Kind};
use sqlrepl::format::ids::{ObjectHash, ObjectId, Timestamp, Txid};
use sqlrepl::format::key::{Key, MAX_LEVEL, ObjectKey};
use sqlrepl::format::moment::Moment;
use sqlrepl::format::segment::{SegmentWriter, TimelineEntry};
use sqlrepl::maintain::later::{self, Later, Place};
use sqlrepl::maintain::rules::{self, Planned, Since, Standing};
use sqlrepl::materialize::cache::BlockCache;
use sqlrepl::materialize::pages::ReadAhead;
use sqlrepl::materialize::replica::Replica;
use sqlrepl::storage::directory::DirectoryStore;
use sqlrepl::storage::fault::{Call, Fault, FaultStore, Verb};
use sqlrepl::storage::{Body, Put, Store};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Cursor};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PAGES: u32 = 2_621_440;
/// 2 % of the pages take 80 % of the writes. They stand anywhere.
const HOT: u32 = PAGES / 50;
const WRITES: usize = 4;
const AN_UPLOAD: u64 = 10;
const UPLOADS: Duration = Duration::from_secs(1);
/// A b-tree of three levels above its leaves: the page of one on the lowest level above leaves
/// stands before each so many of these.
const CHILDREN: u32 = 340;
/// The root, and the first of those below it.
const ROOT: u32 = 2;
const UPPER: u32 = 3;
/// Bytes of a page that do not compress; the rest is zeros.
const DENSE: usize = 1600;
/// Bytes that a commit changes in a page.
const ROW: usize = 100;
/// Moments that are opened of each history, each in a cold process.
const MOMENTS: usize = 40;
/// What a request takes longer when round trips are counted.
const AWAY: Duration = Duration::from_millis(20);

/// The pages that a commit writes, ascending.
fn written(commit: u64) -> Vec<u32> {
    let mut dice = Dice(commit.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut pages = Vec::with_capacity(WRITES);
    while pages.len() < WRITES {
        let page = match dice.roll(5) {
            0 => UPPER + 997 + dice.roll(u64::from(PAGES - 1000)) as u32,
            _ => hot(&mut dice),
        };
        if !is_interior(page) && !pages.contains(&page) {
            pages.push(page);
        }
    }
    pages.sort_unstable();
    pages
}

/// One of the pages that are written often.
fn hot(dice: &mut Dice) -> u32 {
    let number = dice.roll(u64::from(HOT) - 100) as u32 + 50;
    let page = number * 50 + Dice(number.into()).roll(50) as u32;
    // Not an interior one.
    page + u32::from(is_interior(page))
}

fn is_interior(page: u32) -> bool {
    page <= UPPER + PAGES / CHILDREN / CHILDREN || page.is_multiple_of(CHILDREN)
}

fn fill(bytes: &mut [u8], seed: u64) {
    let mut dice = Dice(seed);
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&dice.roll(u64::MAX).to_le_bytes());
    }
}

/// A page as a commit left it: like all its versions, but for one row.
fn version(page: u32, commit: u64, bytes: &mut [u8]) {
    bytes.fill(0);
    fill(&mut bytes[8..8 + DENSE], page.into());
    bytes[0] = 13;
    let row = 8 + Dice(commit).roll((DENSE / ROW) as u64) as usize * ROW;
    fill(&mut bytes[row..row + ROW], commit ^ u64::from(page) << 40);
}

/// A page of the database as it began.
fn original(page: u32, bytes: &mut [u8]) {
    bytes.fill(0);
    if !is_interior(page) {
        bytes[0] = 13;
        return;
    }
    let start = if page == 1 { 100 } else { 0 };
    let children: Vec<u32> = match page {
        1 => vec![ROOT],
        ROOT => (UPPER..=UPPER + PAGES / CHILDREN / CHILDREN).collect(),
        _ if !page.is_multiple_of(CHILDREN) => {
            let first = (page - UPPER) * CHILDREN;
            (first..first + CHILDREN)
                .map(|child| child * CHILDREN)
                .filter(|child| (1..=PAGES).contains(child))
                .collect()
        }
        _ => (page + 1..(page + CHILDREN).min(PAGES)).collect(),
    };
    let (last, cells) = children.split_last().unwrap();
    let content = PAGE_BYTES - cells.len() * 9;
    fill(&mut bytes[content..], page.into());
    bytes[start] = 5;
    bytes[start + 3..start + 5].copy_from_slice(&(cells.len() as u16).to_be_bytes());
    bytes[start + 5..start + 7].copy_from_slice(&(content as u16).to_be_bytes());
    bytes[start + 8..start + 12].copy_from_slice(&last.to_be_bytes());
    for (number, child) in cells.iter().enumerate() {
        let (pointer, cell) = (start + 12 + number * 2, content + number * 9);
        bytes[pointer..pointer + 2].copy_from_slice(&(cell as u16).to_be_bytes());
        bytes[cell..cell + 4].copy_from_slice(&child.to_be_bytes());
    }
}

/// Pages that so many commits write, on the average.
fn distinct(commits: u64) -> u64 {
    let of = |pages: u32, writes: f64| {
        let pages = f64::from(pages);
        pages * (1.0 - (-writes / pages).exp())
    };
    let writes = (commits * WRITES as u64) as f64;
    (of(HOT, writes * 0.8) + of(PAGES, writes * 0.2)) as u64
}

/// What a page takes in a snapshot, and in a segment, bytes; a version with its hash.
const PAGE_STORED: u64 = DENSE as u64 + 30;
const VERSION_STORED: u64 = 155;
/// And in the index.
const VERSION_INDEX: u64 = 3;

fn segment_bytes(commits: u64) -> u64 {
    let versions = commits * WRITES as u64;
    distinct(commits) * PAGE_STORED + versions * VERSION_STORED
}

fn since(open: &[Standing], age: Duration) -> Since {
    let commits: u64 = open.iter().map(|s| s.last.get() + 1 - s.first.get()).sum();
    Since {
        segment_bytes: open.iter().map(|segment| segment.bytes).sum(),
        index_bytes: commits * (WRITES as u64 * VERSION_INDEX + 3),
        snapshot_bytes: None,
        age,
    }
}

/// What the rules make of a history: its segments, and the last transactions of its snapshots.
#[derive(Default)]
struct History {
    segments: Vec<Standing>,
    snapshots: Vec<Txid>,
}

impl History {
    /// Upload by upload, as the keeper would.
    fn plan(commits: u64, start: Timestamp) -> Self {
        let mut history = Self::default();
        let mut open: Vec<Standing> = Vec::new();
        let (mut now, mut taken, mut refused) = (start, start, 0);
        for upload in 0..commits / AN_UPLOAD {
            now = rules::later(now, UPLOADS);
            let first = upload * AN_UPLOAD + 2;
            open.push(Standing {
                level: 0,
                first: txid(first),
                last: txid(first + AN_UPLOAD - 1),
                bytes: segment_bytes(AN_UPLOAD),
                stored: now,
                stays: false,
                points: AN_UPLOAD,
            });
            let waiting = open.iter().rev().take_while(|s| s.level == 0).count();
            if waiting < rules::UPLOADS {
                continue;
            }
            while let Some(planned) = rules::next_merge(&open, &[], now) {
                merge(&mut open, &planned);
            }
            let age = Duration::from_micros((now.micros() - taken.micros()) as u64);
            let mut since = since(&open, age);
            if since.segment_bytes > refused + refused / 4 && rules::may_be_due(&since, DAY) {
                let last = open[open.len() - 1].last;
                let changed = distinct(last.get() + 1 - open[0].first.get());
                since.snapshot_bytes = Some(changed * PAGE_STORED);
                refused = since.segment_bytes;
            }
            if rules::is_due(&since, DAY) {
                while let Some(planned) = rules::next_closing(&open, &[]) {
                    merge(&mut open, &planned);
                }
                history.snapshots.push(open[open.len() - 1].last);
                history.segments.append(&mut open);
                (taken, refused) = (now, 0);
            }
        }
        history.segments.append(&mut open);
        history
    }
}

fn merge(open: &mut Vec<Standing>, planned: &Planned) {
    assert!(planned.level <= MAX_LEVEL);
    let (first, last) = (open[planned.inputs.start], open[planned.inputs.end - 1]);
    let merged = Standing {
        level: planned.level,
        last: last.last,
        bytes: segment_bytes(last.last.get() + 1 - first.first.get()),
        points: last.last.get() + 1 - first.first.get(),
        ..first
    };
    open.splice(planned.inputs.clone(), [merged]);
}

/// The time of a transaction.
fn time(start: Timestamp, txid: Txid) -> Timestamp {
    let each = UPLOADS / AN_UPLOAD as u32;
    rules::later(start, each * (txid.get() - 1) as u32)
}

/// The hash that the segment behind a transaction carries; nothing is there to have it.
fn chain(made: &Made, last: Txid) -> ObjectHash {
    let mut hash = [7; 32];
    hash[..8].copy_from_slice(&last.get().to_le_bytes());
    match last {
        Txid::FIRST => made.claim,
        _ => ObjectHash(hash),
    }
}

/// Makes a merged segment in a file and stores it: key and bytes.
fn segment(made: &Made, start: Timestamp, folder: &Path, standing: &Standing) -> (String, u64) {
    let Standing {
        first, last, level, ..
    } = *standing;
    let id = ObjectId(made.workshop.environment.draw().unwrap());
    let path = folder.join(format!("{id}.segment"));
    let out = BufWriter::with_capacity(256 << 10, File::create(&path).unwrap());
    let mut writer = SegmentWriter::new(out, id, PAGE_SIZE, &scratch).unwrap();
    let commits = first.get()..=last.get();
    let each = commits.clone();
    let mut versions: Vec<(u32, u64)> = each
        .flat_map(|commit| written(commit).into_iter().map(move |page| (page, commit)))
        .collect();
    versions.sort_unstable();
    let mut bytes = vec![0; PAGE_BYTES];
    for (page, commit) in versions {
        version(page, commit, &mut bytes);
        writer.push(pgno(page), txid(commit), &bytes).unwrap();
    }
    let timeline: Vec<_> = commits
        .map(|commit| TimelineEntry::new(txid(commit), time(start, txid(commit)), PAGES))
        .collect();
    let before = Txid::new(first.get() - 1).unwrap();
    let header = Header {
        level,
        previous: chain(made, before),
        last_input: chain(made, last),
        ..header(Kind::Segment, id, first, last)
    };
    let (out, written) = writer.finish(&header, &timeline, &[], None).unwrap();
    drop(out.into_inner().unwrap());
    let key = key(ObjectKey::Merged {
        level,
        first,
        last,
        time: time(start, last),
        hash8: written.hash.hash8(),
    });
    let put = made.store.put(&key, Body::File(path.clone()));
    let put = made.runtime.block_on(put).unwrap();
    assert!(matches!(put, Put::Created { .. }));
    std::fs::remove_file(path).ok();
    (key, written.length)
}

/// A replica of so many commits.
struct Replicated {
    made: Made,
    start: Timestamp,
    commits: u64,
    /// What it consists of: a sentence.
    shape: String,
    /// Which commits write a page that is asked for, ascending.
    writers: HashMap<u32, Vec<u64>>,
    asked: Vec<Asked>,
}

/// A moment, and the leaf that a query needs in it.
#[derive(Clone, Copy)]
struct Asked {
    commit: Txid,
    leaf: u32,
}

impl Replicated {
    /// Behind the first snapshot, which is there.
    fn new(made: Made, folder: &Path, start: Timestamp, commits: u64) -> Self {
        let history = History::plan(commits, start);
        let merged: Vec<&Standing> = history.segments.iter().filter(|s| s.level > 0).collect();
        let stored = Mutex::new(BTreeMap::new());
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(standing) = merged.get(next.fetch_add(1, Ordering::Relaxed)) {
                let object = segment(&made, start, folder, standing);
                stored.lock().unwrap().insert(standing.first, object);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(work);
            work();
        });
        let stored = stored.into_inner().unwrap();
        let mut replicated = Self {
            made,
            start,
            commits,
            shape: String::new(),
            writers: HashMap::new(),
            asked: Vec::new(),
        };
        replicated.ask();
        let pages = replicated.take_snapshots(&history, &stored);
        replicated.upload(&history);
        let bytes: u64 = stored.values().map(|(_, bytes)| bytes).sum();
        replicated.shape = format!(
            "{} merged segments of {:.0} MB, {} snapshots of {pages} pages, {} uploads",
            stored.len(),
            bytes as f64 / 1e6 / stored.len().max(1) as f64,
            history.snapshots.len(),
            history.segments.len() - stored.len()
        );
        replicated
    }

    /// All but the claim and the first snapshot goes.
    fn emptied(self) -> Made {
        let goes = |key: &str| match Key::parse(key).unwrap().object {
            ObjectKey::Claim => false,
            ObjectKey::Snapshot { txid, .. } => txid > Txid::FIRST,
            ObjectKey::Part { since, .. } => since > Txid::FIRST,
            _ => true,
        };
        let objects = self.made.objects().into_iter().map(|object| object.key);
        let gone: Vec<String> = objects.filter(|key| goes(key)).collect();
        let deleted = self.made.store.delete(&gone);
        self.made.runtime.block_on(deleted).unwrap();
        self.made
    }

    /// Chooses what is asked, and finds out what the answers are.
    fn ask(&mut self) {
        let mut dice = Dice(2026);
        self.asked = (0..MOMENTS)
            .map(|_| Asked {
                commit: txid(dice.roll(self.commits) + 2),
                leaf: hot(&mut dice),
            })
            .collect();
        let leaves = self.asked.iter().map(|asked| (asked.leaf, Vec::new()));
        self.writers = leaves.collect();
        for commit in 2..self.commits + 2 {
            for page in written(commit) {
                if let Some(writers) = self.writers.get_mut(&page) {
                    writers.push(commit);
                }
            }
        }
    }

    /// Takes the later snapshots; the pages of the largest.
    fn take_snapshots(&self, history: &History, stored: &BTreeMap<Txid, (String, u64)>) -> u64 {
        let mut pages = 0;
        let (mut base, mut behind) = (self.first_snapshot(), Txid::FIRST);
        for &through in &history.snapshots {
            let within = history.segments.iter();
            let within = within.filter(|s| s.first > behind && s.last <= through);
            let segments = within.map(|standing| {
                let (key, bytes) = stored[&standing.first].clone();
                (key, bytes, standing.first..=standing.last)
            });
            let later = Later {
                base: base.clone(),
                segments: segments.collect(),
                place: Place::Later,
            };
            let taken = later::take(&self.made.workshop, &later);
            let taken = self.made.runtime.block_on(taken).unwrap();
            let listed = self.made.store.list(&taken.key, None);
            let size = self.made.runtime.block_on(listed).unwrap()[0].size;
            pages = pages.max(taken.pages);
            (base, behind) = ((taken.key, size), through);
        }
        pages
    }

    fn first_snapshot(&self) -> (String, u64) {
        let is_snapshot = |key: &str| {
            let object = Key::parse(key).unwrap().object;
            matches!(object, ObjectKey::Snapshot { .. })
        };
        let objects = self.made.objects();
        let found = objects.into_iter().find(|o| is_snapshot(&o.key)).unwrap();
        (found.key, found.size)
    }

    /// The uploads at the end.
    fn upload(&mut self, history: &History) {
        let uploads = history.segments.iter().filter(|s| s.level == 0);
        let uploads: Vec<Standing> = uploads.copied().collect();
        let Some(first) = uploads.first() else {
            return;
        };
        let before = Txid::new(first.first.get() - 1).unwrap();
        let previous = chain(&self.made, before);
        self.made.go_on(before, time(self.start, before), previous);
        for standing in uploads {
            let commits: Vec<Commit> = (standing.first.get()..=standing.last.get())
                .map(|commit| Commit {
                    pages: PAGES,
                    writes: written(commit)
                        .into_iter()
                        .map(|page| {
                            let mut bytes = vec![0; PAGE_BYTES];
                            version(page, commit, &mut bytes);
                            (page, bytes)
                        })
                        .collect(),
                })
                .collect();
            self.made.hands.set(time(self.start, standing.last));
            self.made.upload(&commits);
        }
    }

    /// Opens a random moment in a cold process and asks for one row of it.
    fn open(&self, asked: Asked, latency: Option<Duration>) -> Opened {
        let store = FaultStore::new(Arc::clone(&self.made.store));
        let calls: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&calls);
        store.set_rule(move |call: &Call| {
            if call.verb == Verb::GetRange {
                seen.lock().unwrap().push(call.key.clone());
            }
            latency.map(Fault::Delay)
        });
        let Asked { commit, leaf } = asked;
        let moment = Moment::At(time(self.start, commit));
        let parent = leaf / CHILDREN * CHILDREN;
        let query = [1, ROOT, UPPER + parent / CHILDREN / CHILDREN, parent, leaf];
        let mut parts = Vec::new();
        let mut part = || {
            let counts = store.counts(Verb::GetRange);
            parts.push((counts.calls, counts.bytes));
        };
        let began = Instant::now();
        self.made.runtime.block_on(async {
            let whole = Arc::clone(&store) as Arc<dyn Store>;
            let replica = Replica::new(whole, Arc::new(BlockCache::new(64 << 20)));
            let point = replica.locate(moment, None).await.unwrap();
            assert_eq!((point.txid, point.generation), (commit, GENERATION));
            part();
            let database = replica.open(&point).await.unwrap();
            part();
            let ahead = ReadAhead::default();
            for page in query {
                let offset = u64::from(page - 1) * PAGE_BYTES as u64;
                let read = database.read(offset, PAGE_BYTES, &ahead).await.unwrap();
                assert!(
                    read == expected(page, commit, &self.writers),
                    "page {page} at {commit}"
                );
                part();
            }
        });
        let took = began.elapsed();
        let counts = store.counts(Verb::GetRange);
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for key in calls.lock().unwrap().iter() {
            *kinds.entry(kind(key)).or_default() += 1;
        }
        Opened {
            requests: counts.calls,
            bytes: counts.bytes,
            listings: store.counts(Verb::List).calls + store.counts(Verb::ListFolder).calls,
            took,
            parts,
            kinds,
        }
    }
}

/// What a page held at a commit, if the commits that write it are known.
fn expected(page: u32, at: Txid, writers: &HashMap<u32, Vec<u64>>) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_BYTES];
    let newest = writers.get(&page).and_then(|commits| {
        let behind = commits.partition_point(|commit| *commit <= at.get());
        commits[..behind].last()
    });
    match newest {
        Some(newest) => version(page, *newest, &mut bytes),
        None => original(page, &mut bytes),
    }
    bytes
}

fn kind(key: &str) -> String {
    match Key::parse(key).map(|key| key.object) {
        Some(ObjectKey::Claim) => "claim".to_owned(),
        Some(ObjectKey::Part { .. }) => "part".to_owned(),
        Some(ObjectKey::Snapshot { .. }) => "snapshot".to_owned(),
        Some(ObjectKey::Upload { .. }) => "level 0".to_owned(),
        Some(ObjectKey::Merged { level, .. }) => format!("level {level}"),
        None => "other".to_owned(),
    }
}

/// What it took.
struct Opened {
    requests: u64,
    bytes: u64,
    listings: u64,
    took: Duration,
    /// Requests and bytes so far: when the moment was found, when it was open, behind each page.
    parts: Vec<(u64, u64)>,
    kinds: BTreeMap<String, usize>,
}

/// Half of them are no more than the first, all but one in 20 no more than the second.
fn spread(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[values.len() * 19 / 20])
}

/// Makes a replica of so many commits, a tenth of a second apart, in `replica` below a folder; when
/// they began.
pub(in crate::bench) fn long_replica(folder: &Path, commits: u64) -> Timestamp {
    let hands = Hands::new();
    let store = DirectoryStore::open(&folder.join("replica")).unwrap();
    let start = hands.now();
    let mut made = Made::new(store, hands, folder);
    made.snapshot(PAGES, original);
    Replicated::new(made, folder, start, commits);
    start
}

/// Makes a replica of segments of so many commits each, which come at random and change nothing but
/// one page now and then, in `replica` below a folder; when they began, and the last of them.
pub(in crate::bench) fn timelines(
    folder: &Path,
    segments: u64,
    commits: u64,
) -> (Timestamp, Timestamp) {
    let hands = Hands::new();
    let store = DirectoryStore::open(&folder.join("replica")).unwrap();
    let start = hands.now();
    let mut made = Made::new(store, hands, folder);
    made.snapshot(2, |_, page| page.fill(0));
    let mut dice = Dice(10);
    let mut time = start;
    for segment in 0..segments {
        let first = segment * commits + 2;
        let commits = first..first + commits;
        let entries = commits.clone().map(|commit| {
            time = rules::later(time, Duration::from_micros(dice.roll(200_000) + 1));
            TimelineEntry::new(txid(commit), time, 2)
        });
        let timeline: Vec<TimelineEntry> = entries.collect();
        let id = ObjectId(made.workshop.environment.draw().unwrap());
        let out = Cursor::new(Vec::new());
        let mut writer = SegmentWriter::new(out, id, PAGE_SIZE, &scratch).unwrap();
        let last = txid(commits.end - 1);
        writer.push(pgno(2), last, &vec![0; PAGE_BYTES]).unwrap();
        let before = Txid::new(first - 1).unwrap();
        let header = Header {
            level: MAX_LEVEL,
            previous: chain(&made, before),
            last_input: chain(&made, last),
            ..header(Kind::Segment, id, txid(first), last)
        };
        let (out, written) = writer.finish(&header, &timeline, &[], None).unwrap();
        let key = key(ObjectKey::Merged {
            level: MAX_LEVEL,
            first: txid(first),
            last,
            time,
            hash8: written.hash.hash8(),
        });
        let body = Body::Bytes(out.into_inner().into());
        let put = made.runtime.block_on(made.store.put(&key, body)).unwrap();
        assert!(matches!(put, Put::Created { .. }));
    }
    (start, time)
}

/// (b): what it takes a cold process to open a moment and ask for one row, however long the
/// history.
pub(in crate::bench) fn open() -> Vec<Row> {
    let names = [
        [
            "requests to open and query, after 1,000 commits",
            "  bytes",
            "  milliseconds",
        ],
        [
            "  requests after 100,000 commits",
            "  bytes",
            "  milliseconds",
        ],
        [
            "  requests after 1,000,000 commits",
            "  bytes",
            "  milliseconds",
        ],
    ];
    let mut rows = Vec::new();
    let mut before = None;
    let folder = folder();
    let hands = Hands::new();
    let store = DirectoryStore::open(&folder.path().join("replica")).unwrap();
    let start = hands.now();
    let mut made = Made::new(store, hands, folder.path());
    made.snapshot(PAGES, original);
    for (names, commits) in names.into_iter().zip([1_000, 100_000, 1_000_000]) {
        let commits = scaled(commits) as u64 / AN_UPLOAD * AN_UPLOAD;
        let began = Instant::now();
        let replicated = Replicated::new(made, folder.path(), start, commits);
        let making = began.elapsed().as_secs_f64();
        let asked = replicated.asked.iter();
        let opened: Vec<Opened> = asked.map(|a| replicated.open(*a, None)).collect();
        let asked = replicated.asked.iter().step_by(4);
        let away = asked.map(|a| replicated.open(*a, Some(AWAY)).took.as_secs_f64() * 1e3);
        let away = spread(away.collect::<Vec<f64>>().into_iter());
        let requests = spread(opened.iter().map(|o| o.requests as f64));
        let bytes = spread(opened.iter().map(|o| o.bytes as f64));
        let took = spread(opened.iter().map(|o| o.took.as_secs_f64() * 1e3));
        let grown = before.map(|before| requests.0 / before);
        before = Some(requests.0);
        let row = |what, figure, target, met, beside| Row {
            what,
            figure,
            target,
            met,
            beside,
        };
        rows.push(row(
            names[0],
            format!("{:.0}, p95 {:.0}", requests.0, requests.1),
            "<= 8, 14",
            requests.0 <= 8.0 && requests.1 <= 14.0,
            format!("{}; {}", replicated.shape, kinds(&opened)),
        ));
        rows.extend(grown.map(|grown| {
            row(
                "  requests / those of the history before",
                format!("{grown:.2}"),
                "<= 1.5",
                grown <= 1.5,
                String::new(),
            )
        }));
        rows.push(row(
            names[1],
            format!("{:.2}, p95 {:.2} MB", bytes.0 / 1e6, bytes.1 / 1e6),
            "<= 2.5, 4",
            bytes.0 <= 2.5e6 && bytes.1 <= 4e6,
            parts(&opened),
        ));
        rows.push(row(
            names[2],
            format!("{:.1}, p95 {:.1}", took.0, took.1),
            "",
            true,
            format!(
                "20 ms a request: {:.0}, p95 {:.0}; made in {making:.0} s",
                away.0, away.1
            ),
        ));
        made = replicated.emptied();
    }
    rows
}

/// Requests by the kind of object, on the average.
fn kinds(opened: &[Opened]) -> String {
    let mut all: BTreeMap<&str, usize> = BTreeMap::new();
    for (kind, requests) in opened.iter().flat_map(|o| &o.kinds) {
        *all.entry(kind).or_default() += requests;
    }
    let each: Vec<String> = all
        .into_iter()
        .map(|(kind, requests)| format!("{kind} {:.1}", requests as f64 / opened.len() as f64))
        .collect();
    each.join(", ")
}

/// Requests and bytes of each step, on the average.
fn parts(opened: &[Opened]) -> String {
    let names = ["find", "open", "page 1", "root", "upper", "lower", "leaf"];
    let mut shown = Vec::new();
    for (step, name) in names.iter().enumerate() {
        let (mut requests, mut bytes) = (0, 0);
        for opened in opened {
            let before = step.checked_sub(1).map_or((0, 0), |s| opened.parts[s]);
            requests += opened.parts[step].0 - before.0;
            bytes += opened.parts[step].1 - before.1;
        }
        let (requests, bytes) = (requests as f64, bytes as f64 / 1e3);
        let count = opened.len() as f64;
        shown.push(format!(
            "{name} {:.1} {:.0} KB",
            requests / count,
            bytes / count
        ));
    }
    let listings: u64 = opened.iter().map(|o| o.listings).sum();
    shown.push(format!("LIST {:.1}", listings as f64 / opened.len() as f64));
    shown.join(", ")
}
