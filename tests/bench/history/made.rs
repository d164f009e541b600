//! A replica that is made and kept by our own encoders and our own keeper, with a clock that the
//! bench moves: months of history in seconds.

use crate::writer::Dice;
use sqlrepl::config::Environment;
use sqlrepl::config::settings::Retention;
use sqlrepl::error::Result;
use sqlrepl::format::claim::Claim;
use sqlrepl::format::container::{
    FRAME_BYTES, Footer, Header, Kind, ScratchFile, SectionKind, TAIL_BYTES, Tail,
};
use sqlrepl::format::ids::{
    DatabaseId, GenerationId, ObjectHash, ObjectId, PageSize, Pgno, Timestamp, Txid, WalEnd,
    WriterId,
};
use sqlrepl::format::interior::InteriorPages;
use sqlrepl::format::key::{Key, ObjectKey};
use sqlrepl::format::segment::{Predecessor, SegmentIndex, SegmentWriter, TimelineEntry};
use sqlrepl::format::snapshot::{self, Home, LeafSource, MapToWrite, Run, SnapshotWriter};
use sqlrepl::maintain::keeper::{Behalf, KeepSettings, Keeper, Round};
use sqlrepl::maintain::rules::{UPLOADS, UPLOADS_AGE, UPLOADS_MIN, later};
use sqlrepl::maintain::workshop::Workshop;
use sqlrepl::storage::{Body, Listed, Put, Store};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Cursor};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Runtime;

pub(super) const PAGE_SIZE: PageSize = PageSize::new(4096).unwrap();
pub(super) const PAGE_BYTES: usize = PAGE_SIZE.bytes();
pub(super) const GENERATION: GenerationId = GenerationId {
    ordinal: 1,
    random: 7,
};
/// Raw bytes in a part of a first snapshot, as the daemon makes them.
const PART_BYTES: u64 = 960 << 20;
/// As long as by default.
const GRACE: Duration = Duration::from_secs(3600);
const CHECK: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// A transaction: the database size after it, and the pages that it wrote, each once.
#[derive(Clone, Debug)]
pub(super) struct Commit {
    pub(super) pages: u32,
    pub(super) writes: Vec<(u32, Vec<u8>)>,
}

/// The CPU time that this process has taken, seconds.
fn cpu() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// A clock that stands until it is moved.
#[derive(Clone)]
pub(super) struct Hands(Arc<AtomicI64>);

impl Hands {
    pub(super) fn new() -> Self {
        // 2026-01-01.
        Self(Arc::new(AtomicI64::new(1_767_225_600_000_000)))
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, time: Timestamp) {
        self.0.store(time.micros(), Ordering::Relaxed);
    }

    pub(super) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_micros() as i64, Ordering::Relaxed);
    }

    pub(super) fn clock(&self) -> sqlrepl::config::Clock {
        let hands = self.clone();
        Arc::new(move || hands.now())
    }
}

/// What making it has cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Costs {
    /// Raw frames, with their headers.
    pub(super) wal_bytes: u64,
    /// CPU seconds of encoding uploads, and of the keeper's rounds.
    pub(super) encoding: f64,
    pub(super) keeping: f64,
    pub(super) merges: usize,
}

/// One replica, one generation.
pub(super) struct Made {
    pub(super) store: Arc<dyn Store>,
    pub(super) runtime: Runtime,
    pub(super) hands: Hands,
    pub(super) workshop: Workshop,
    pub(super) costs: Costs,
    keeper: Keeper,
    /// The hash of the claim.
    pub(super) claim: ObjectHash,
    previous: ObjectHash,
    /// The last transaction.
    last: Txid,
    /// The time of the last one.
    time: Timestamp,
    recent: Vec<Predecessor>,
    /// Uploads since the last round, and when that was.
    new: usize,
    first_new: Timestamp,
    round: Round,
    at: Timestamp,
    directory: PathBuf,
}

pub(super) fn txid(number: u64) -> Txid {
    Txid::new(number).unwrap()
}

pub(super) fn pgno(number: u32) -> Pgno {
    Pgno::new(number).unwrap()
}

pub(super) fn scratch() -> std::io::Result<Box<dyn ScratchFile>> {
    Ok(Box::new(Cursor::new(Vec::new())))
}

impl Made {
    /// A generation without a snapshot; `directory` is for what is being made.
    pub(super) fn new(store: Arc<dyn Store>, hands: Hands, directory: &Path) -> Self {
        let runtime = Runtime::new().unwrap();
        let dice = Mutex::new(Dice(4711));
        let random = move |bytes: &mut [u8]| -> Result<()> {
            let mut dice = dice.lock().unwrap();
            bytes.fill_with(|| dice.roll(256) as u8);
            Ok(())
        };
        let environment = Environment {
            clock: hands.clock(),
            uptime: Arc::new(|| Duration::ZERO),
            random: Arc::new(random),
        };
        let workshop = Workshop {
            store: Arc::clone(&store),
            directory: directory.join("making"),
            environment,
            writer: WriterId([6; 8]),
            kept: None,
        };
        let settings = KeepSettings {
            retention: Retention::WEEK,
            snapshot_interval: DAY,
            merged_grace: GRACE,
            notes: None,
        };
        let claim = claim(hands.now());
        let key = key(ObjectKey::Claim);
        let body = Body::Bytes(claim.encode().into());
        let put = runtime.block_on(store.put(&key, body)).unwrap();
        assert!(matches!(put, Put::Created { .. }));
        Self {
            keeper: Keeper::new(workshop.clone(), settings).unwrap(),
            workshop,
            claim: claim.hash(),
            previous: claim.hash(),
            costs: Costs::default(),
            last: Txid::FIRST,
            time: hands.now(),
            recent: Vec::new(),
            new: 0,
            first_new: hands.now(),
            round: Round::default(),
            at: hands.now(),
            directory: directory.to_owned(),
            store,
            runtime,
            hands,
        }
    }

    /// Stores the first snapshot: `page` writes each page, which come in order.
    pub(super) fn snapshot(&mut self, pages: u32, mut page: impl FnMut(u32, &mut [u8])) {
        let mut bytes = vec![0; PAGE_BYTES];
        let mut interior = InteriorPages::new(PAGE_SIZE, &scratch).unwrap();
        let (mut homes, mut runs): (Vec<Home>, Vec<Run>) = (Vec::new(), Vec::new());
        let mut open = self.object();
        for number in 1..=pages {
            page(number, &mut bytes);
            interior.offer(pgno(number), &bytes).unwrap();
            open.2.push(pgno(number), &bytes).unwrap();
            let raw: u64 = open.2.stored().iter().map(|run| u64::from(run.count)).sum();
            if raw * PAGE_BYTES as u64 == PART_BYTES {
                let next = self.object();
                let (id, path, writer) = std::mem::replace(&mut open, next);
                runs.extend(writer.stored());
                homes.push(self.part(id, &path, writer));
            }
        }
        let (id, path, writer) = open;
        runs.extend(writer.stored());
        let leaves: Vec<LeafSource> = snapshot::leaves(&runs, pages)
            .into_iter()
            .map(LeafSource::Here)
            .collect();
        let map = MapToWrite {
            pages,
            homes: &homes,
            leaves: &leaves,
        };
        let header = Header {
            exact: true,
            ..header(Kind::Snapshot, id, Txid::FIRST, Txid::FIRST)
        };
        let entry = TimelineEntry::new(Txid::FIRST, self.time, pages);
        let (out, written) = writer.finish(&header, &map, entry, Some(interior)).unwrap();
        drop(out.into_inner().unwrap());
        let object = ObjectKey::Snapshot {
            txid: Txid::FIRST,
            time: self.time,
            hash8: written.hash.hash8(),
        };
        self.put(object, Body::File(path));
    }

    fn object(&self) -> (ObjectId, PathBuf, SnapshotWriter<BufWriter<File>>) {
        let id = ObjectId(self.workshop.environment.draw().unwrap());
        let path = self.directory.join(format!("{id}.object"));
        let out = BufWriter::new(File::create(&path).unwrap());
        let writer = SnapshotWriter::new(out, id, PAGE_SIZE, &scratch).unwrap();
        (id, path, writer)
    }

    fn part(&self, id: ObjectId, path: &Path, writer: SnapshotWriter<BufWriter<File>>) -> Home {
        let first = writer.stored()[0].first;
        let header = header(Kind::Part, id, Txid::FIRST, Txid::FIRST);
        let (out, written) = writer.finish_part(&header).unwrap();
        drop(out.into_inner().unwrap());
        let object = ObjectKey::Part {
            since: Txid::FIRST,
            first,
            hash8: written.hash.hash8(),
        };
        Home {
            id,
            length: written.length,
            key: self.put(object, Body::File(path.to_owned())),
        }
    }

    fn put(&self, object: ObjectKey, body: Body) -> String {
        let key = key(object);
        let file = match &body {
            Body::File(path) => Some(path.clone()),
            Body::Bytes(_) => None,
        };
        let put = self.runtime.block_on(self.store.put(&key, body)).unwrap();
        assert!(matches!(put, Put::Created { .. }));
        if let Some(file) = file {
            // A store may have moved it, or linked to it.
            std::fs::remove_file(file).ok();
        }
        key
    }

    /// Uploads go on behind what was stored in another way: its last transaction, that one's time,
    /// and the hash that the next upload carries.
    pub(super) fn go_on(&mut self, last: Txid, time: Timestamp, previous: ObjectHash) {
        (self.last, self.time, self.previous) = (last, time, previous);
        self.recent.clear();
    }

    /// One upload of these commits, as the daemon encodes it; the last one is seen now.
    pub(super) fn upload(&mut self, commits: &[Commit]) {
        let before = cpu();
        let first = self.last.next();
        let timeline = self.timeline(commits);
        let (bytes, footer) = self.encode(commits, first, &timeline);
        self.costs.encoding += cpu() - before;
        let frames: usize = commits.iter().map(|commit| commit.writes.len()).sum();
        self.costs.wal_bytes += (frames * (PAGE_BYTES + 24)) as u64;
        let key = self.put(
            ObjectKey::Upload { first },
            Body::Bytes(bytes.clone().into()),
        );
        let before = cpu();
        let index = index(&bytes, &footer);
        if self.recent.len() == 64 {
            self.recent.remove(0);
        }
        self.recent
            .push(Predecessor::new(key, &footer, Some(index)));
        self.costs.encoding += cpu() - before;
        self.previous = footer.hash;
        if self.new == 0 {
            self.first_new = self.hands.now();
        }
        self.new += 1;
    }

    fn timeline(&mut self, commits: &[Commit]) -> Vec<TimelineEntry> {
        // They are spread over the time since the last upload.
        let now = self.hands.now().micros();
        let step = (now - self.time.micros()) / commits.len() as i64;
        let each = |(commit, left): (&Commit, i64)| {
            self.last = self.last.next();
            self.time = Timestamp::from_micros((now - left * step).max(self.time.micros() + 1));
            TimelineEntry::new(self.last, self.time, commit.pages)
        };
        let left = (0..commits.len() as i64).rev();
        commits.iter().zip(left).map(each).collect()
    }

    fn encode(
        &self,
        commits: &[Commit],
        first: Txid,
        timeline: &[TimelineEntry],
    ) -> (Vec<u8>, Footer) {
        let id = ObjectId(self.workshop.environment.draw().unwrap());
        let header = Header {
            previous: self.previous,
            ..header(Kind::Segment, id, first, self.last)
        };
        let out = Cursor::new(Vec::new());
        let mut writer = SegmentWriter::new(out, id, PAGE_SIZE, &scratch).unwrap();
        let mut versions: Vec<(u32, Txid, &[u8])> = Vec::new();
        for (commit, entry) in commits.iter().zip(timeline) {
            let writes = commit.writes.iter();
            versions.extend(writes.map(|(page, bytes)| (*page, entry.txid, &bytes[..])));
        }
        versions.sort_unstable_by_key(|(page, txid, _)| (*page, *txid));
        for (page, txid, bytes) in versions {
            writer.push(pgno(page), txid, bytes).unwrap();
        }
        let recent = &self.recent;
        let (out, _) = writer.finish(&header, timeline, recent, None).unwrap();
        let bytes = out.into_inner();
        let footer = footer(&bytes);
        (bytes, footer)
    }

    /// A round of the keeper if the daemon would have one now.
    pub(super) fn keep_if_due(&mut self) {
        let now = self.hands.now();
        let (left, waiting) = (self.round.uploads, self.round.uploads + self.new);
        let many = waiting >= UPLOADS && (left < UPLOADS || self.new >= UPLOADS);
        let oldest = self.round.oldest.unwrap_or(self.first_new);
        let some = waiting >= UPLOADS_MIN && later(oldest, UPLOADS_AGE) <= now;
        let checked = later(self.at, CHECK) <= now;
        if self.new > 0 && (many || some || checked) {
            self.keep();
        }
    }

    /// A round of the keeper.
    pub(super) fn keep(&mut self) -> Round {
        let behalf = Behalf::Writer(GENERATION, self.last);
        let before = cpu();
        let round = self.runtime.block_on(self.keeper.round(behalf)).unwrap();
        self.costs.keeping += cpu() - before;
        self.costs.merges += round.merges;
        (self.new, self.at) = (0, self.hands.now());
        self.round = round.clone();
        round
    }

    /// Rounds until nothing is left to merge and what was merged is gone.
    pub(super) fn settle(&mut self) {
        for pause in [UPLOADS_AGE, GRACE, GRACE] {
            self.hands.advance(pause + Duration::from_secs(1));
            self.keep();
        }
    }

    pub(super) fn objects(&self) -> Vec<Listed> {
        self.runtime.block_on(self.store.list("", None)).unwrap()
    }

    /// Stored bytes of all objects whose kind is wanted, by what they are for.
    pub(super) fn stored(&self, wanted: impl Fn(&ObjectKey) -> bool) -> Stored {
        let mut stored = Stored::default();
        for object in self.objects() {
            let key = Key::parse(&object.key).unwrap();
            if !wanted(&key.object) {
                continue;
            }
            stored.objects += 1;
            *stored.each.entry("all").or_default() += object.size;
            if key.object == ObjectKey::Claim {
                continue;
            }
            let tail = object.size.min(TAIL_BYTES);
            let read = self.store.get_range(&object.key, object.size - tail, tail);
            let read = self.runtime.block_on(read).unwrap();
            let Ok(Tail::Whole(footer)) = Footer::decode(&read, object.size) else {
                panic!("{} has a footer", object.key);
            };
            *stored.each.entry("pages").or_default() += footer.blocks_end;
            for section in &footer.sections {
                let bytes = section.length + FRAME_BYTES as u64;
                *stored.each.entry(named(section.kind)).or_default() += bytes;
            }
        }
        stored
    }
}

fn named(kind: SectionKind) -> &'static str {
    match kind {
        SectionKind::Blocks => "block tables",
        SectionKind::Versions => "versions",
        SectionKind::Timeline => "timelines",
        SectionKind::PageHashes => "hashes",
        SectionKind::Predecessors => "predecessors",
        SectionKind::MapRoot | SectionKind::MapLeaves => "maps",
        _ => "others",
    }
}

/// Stored bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Stored {
    objects: usize,
    each: BTreeMap<&'static str, u64>,
}

impl Stored {
    pub(super) fn bytes(&self) -> f64 {
        self.each.get("all").copied().unwrap_or(0) as f64
    }
}

impl std::fmt::Display for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} objects", self.objects)?;
        for (what, bytes) in &self.each {
            write!(f, ", {what} {:.2} MB", *bytes as f64 / 1e6)?;
        }
        Ok(())
    }
}

pub(super) fn key(object: ObjectKey) -> String {
    let generation = GENERATION;
    Key { generation, object }.to_string()
}

fn claim(started: Timestamp) -> Claim {
    Claim {
        generation: GENERATION,
        database_id: DatabaseId([4; 16]),
        writer_id: WriterId([5; 8]),
        parent: None,
        host: "bench".to_owned(),
        path: "/bench/app.db".to_owned(),
        started,
        reason: "a bench".to_owned(),
    }
}

pub(super) fn header(kind: Kind, object_id: ObjectId, first: Txid, last: Txid) -> Header {
    Header {
        kind,
        level: 0,
        page_size: PAGE_SIZE,
        object_id,
        database_id: DatabaseId([4; 16]),
        writer_id: WriterId([5; 8]),
        generation: GENERATION,
        parent: None,
        first,
        last,
        since: first,
        end: WalEnd::default(),
        exact: false,
        thinned: false,
        sqlite_version: 0,
        previous: ObjectHash([0; 32]),
        last_input: ObjectHash([0; 32]),
    }
}

fn footer(object: &[u8]) -> Footer {
    let tail = object.len().min(TAIL_BYTES as usize);
    match Footer::decode(&object[object.len() - tail..], object.len() as u64) {
        Ok(Tail::Whole(footer)) => footer,
        other => panic!("an object that was just written: {other:?}"),
    }
}

fn index(object: &[u8], footer: &Footer) -> SegmentIndex {
    let sections = SegmentIndex::SECTIONS.map(|kind| {
        let place = footer.section(kind).unwrap();
        let stored = &object[place.offset as usize..(place.offset + place.length) as usize];
        place.open(stored).unwrap()
    });
    SegmentIndex::decode(footer, sections.each_ref().map(|section| &section[..])).unwrap()
}
