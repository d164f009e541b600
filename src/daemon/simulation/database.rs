//! A database as a capture sees it: commits, and a WAL with SQLite's own salts and checksums.
//!
//! Every commit writes its own number, so every state tells which commit it is. Copies of a machine
//! share what they share: a commit names the one before it and is never changed.

use crate::format::ids::{PageHash, PageSize, Pgno, WalEnd};
use crate::format::wal::{WordOrder, checksum};
use crate::materialize::model::Random;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The size of all pages here.
pub(super) const PAGE_SIZE: PageSize = PageSize::new(512).expect("it is one");
/// The words of all checksums here.
pub(super) const ORDER: WordOrder = WordOrder::Little;
/// A database does not grow further, pages.
const PAGES_MAX: usize = 24;

/// A state of a database, and how it came about.
pub(super) struct Commit {
    /// Which one of all in this simulation.
    pub(super) id: u64,
    pub(super) parent: Option<Arc<Commit>>,
    /// How many lie before it.
    depth: u64,
    /// The pages after it.
    pub(super) image: Vec<Bytes>,
    /// The pages that it wrote, in the order of its frames.
    pub(super) written: Vec<usize>,
}

impl Commit {
    /// How many commits after `earlier` this one is; `None` if it does not go on from there.
    pub(super) fn distance_from(&self, earlier: &Self) -> Option<u64> {
        let mut at = self;
        while at.depth > earlier.depth {
            at = at.parent.as_deref()?;
        }
        (at.id == earlier.id).then(|| self.depth - earlier.depth)
    }
}

/// All commits of a simulation.
#[derive(Default)]
pub(super) struct Histories {
    shared: Mutex<Shared>,
    /// Runs that captures began since they had no proof of what went before.
    unproved: AtomicU64,
}

#[derive(Default)]
struct Shared {
    commits: Vec<Arc<Commit>>,
    by_image: HashMap<PageHash, usize>,
}

impl Histories {
    /// A capture began a run, without proof of what went before.
    pub(super) fn note_run(&self) {
        self.unproved.fetch_add(1, Ordering::Relaxed);
    }

    /// No capture ever missed anything: all there is goes on from the first run of all.
    pub(super) fn are_unbroken(&self) -> bool {
        self.unproved.load(Ordering::Relaxed) <= 1
    }

    /// The commit after which a database has these bytes.
    pub(super) fn find(&self, image: &[u8]) -> Option<Arc<Commit>> {
        let shared = self.shared.lock().unwrap();
        let found = shared.by_image.get(&PageHash::of(image))?;
        Some(Arc::clone(&shared.commits[*found]))
    }

    /// A commit that another copy of the database made behind `parent`.
    fn child_of(&self, parent: &Commit) -> Option<Arc<Commit>> {
        let shared = self.shared.lock().unwrap();
        let is_child = |commit: &&Arc<Commit>| {
            let before = commit.parent.as_ref();
            before.is_some_and(|before| before.id == parent.id)
        };
        shared.commits.iter().find(is_child).cloned()
    }

    fn add(
        &self,
        parent: Option<Arc<Commit>>,
        mut image: Vec<Bytes>,
        written: Vec<usize>,
    ) -> Arc<Commit> {
        let mut shared = self.shared.lock().unwrap();
        let id = shared.commits.len() as u64;
        for &page in &written {
            image[page] = content(id, page);
        }
        shared
            .by_image
            .insert(PageHash::of(&image.concat()), id as usize);
        let commit = Arc::new(Commit {
            id,
            depth: parent.as_ref().map_or(0, |parent| parent.depth + 1),
            parent,
            image,
            written,
        });
        shared.commits.push(Arc::clone(&commit));
        commit
    }
}

/// What a commit writes into a page: who wrote it and where, all over.
fn content(commit: u64, page: usize) -> Bytes {
    let word = [commit.to_le_bytes(), (page as u64 + 1).to_le_bytes()].concat();
    Bytes::from(word.repeat(PAGE_SIZE.bytes() / word.len()))
}

/// A commit in a WAL.
#[derive(Clone)]
pub(super) struct Logged {
    pub(super) commit: Arc<Commit>,
    pub(super) start: WalEnd,
    pub(super) end: WalEnd,
    pub(super) frames: Bytes,
}

/// A WAL from its header on.
#[derive(Clone)]
pub(super) struct Wal {
    /// The state that lies in the database file below it.
    pub(super) base: Arc<Commit>,
    /// Before the first frame.
    start: WalEnd,
    pub(super) commits: Vec<Logged>,
}

impl Wal {
    fn new(base: Arc<Commit>, salts: [u32; 2]) -> Self {
        let words = [0x377f_0682, 3_007_000, PAGE_SIZE.get(), 0];
        let header: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let salted: Vec<u8> = salts.iter().flat_map(|salt| salt.to_be_bytes()).collect();
        let start = WalEnd {
            salts,
            frame: 0,
            checksum: checksum(ORDER, [0; 2], &[header, salted].concat()),
        };
        Self {
            base,
            start,
            commits: Vec::new(),
        }
    }

    pub(super) fn end(&self) -> WalEnd {
        self.commits.last().map_or(self.start, |last| last.end)
    }

    /// Whether a commit ends there, or the WAL begins there.
    pub(super) fn has(&self, end: &WalEnd) -> bool {
        let begins_there = end.frame == 0 && end.salts == self.start.salts;
        begins_there || self.commits.iter().any(|logged| logged.end == *end)
    }

    /// The commits behind a place in it.
    pub(super) fn behind(&self, end: &WalEnd) -> Vec<Logged> {
        let behind = |logged: &&Logged| logged.start.frame >= end.frame;
        self.commits.iter().filter(behind).cloned().collect()
    }

    fn append(&mut self, commit: &Arc<Commit>) {
        let start = self.end();
        let (mut end, mut frames) = (start, Vec::new());
        for (&page, left) in commit.written.iter().zip((0..commit.written.len()).rev()) {
            let pages = if left == 0 { commit.image.len() } else { 0 };
            let at = frames.len();
            frames.extend((page as u32 + 1).to_be_bytes());
            frames.extend((pages as u32).to_be_bytes());
            end.checksum = checksum(ORDER, end.checksum, &frames[at..]);
            end.checksum = checksum(ORDER, end.checksum, &commit.image[page]);
            end.frame += 1;
            let words = [end.salts, end.checksum].concat();
            frames.extend(words.iter().flat_map(|word| word.to_be_bytes()));
            frames.extend_from_slice(&commit.image[page]);
        }
        self.commits.push(Logged {
            commit: Arc::clone(commit),
            start,
            end,
            frames: frames.into(),
        });
    }
}

/// How a WAL begins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    /// As the next commit after a checkpoint does it: what it does not overwrite stays in the file.
    InPlace,
    /// The file was removed: the last connection was closed.
    Removed,
}

/// A database file with its WAL. A clone is a copy of both.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) histories: Arc<Histories>,
    random: u64,
    pub(super) tip: Arc<Commit>,
    pub(super) wal: Wal,
    /// The WAL before the last restart, as far as the file still has it.
    pub(super) old_wal: Option<Wal>,
    /// Its application keeps everybody else out.
    pub(super) is_locked: bool,
}

impl Database {
    pub(super) fn new(histories: Arc<Histories>, random: &mut Random) -> Self {
        let pages = 1 + random.below(8) as usize;
        let image = vec![Bytes::new(); pages];
        let tip = histories.add(None, image, (0..pages).collect());
        let salts = salts(random);
        Self {
            histories,
            random: random.next(),
            wal: Wal::new(Arc::clone(&tip), salts),
            tip,
            old_wal: None,
            is_locked: false,
        }
    }

    /// What happens next in a copy is not what happens next in the original.
    pub(super) fn diverge(&mut self, random: u64) {
        self.random = random;
    }

    /// Commits something. In one of ten cases what another copy committed after the same state, as
    /// two machines do on which the same job runs.
    pub(super) fn commit(&mut self) {
        let mut random = self.next_random();
        let twin = self.histories.child_of(&self.tip);
        let commit = match twin.filter(|_| random.percent(10)) {
            Some(twin) => twin,
            None => self.new_commit(&mut random),
        };
        self.wal.append(&commit);
        self.tip = commit;
    }

    fn new_commit(&self, random: &mut Random) -> Arc<Commit> {
        let mut image = self.tip.image.clone();
        let before = image.len();
        match random.below(10) {
            0 if before > 1 => image.truncate(1 + random.below(before as u64 - 1) as usize),
            1..=3 => image.resize(before + 1 + random.below(5) as usize, Bytes::new()),
            _ => {}
        }
        image.truncate(PAGES_MAX.max(before));
        let mut written: Vec<usize> = (before.min(image.len())..image.len()).collect();
        for _ in 0..1 + random.below(3) {
            let page = random.below(image.len() as u64) as usize;
            if !written.contains(&page) {
                written.push(page);
            }
        }
        self.histories
            .add(Some(Arc::clone(&self.tip)), image, written)
    }

    /// A checkpoint of everything, and another WAL.
    pub(super) fn restart_wal(&mut self, how: Restart) {
        let mut random = self.next_random();
        let salts = match how {
            Restart::InPlace => [
                self.wal.start.salts[0].wrapping_add(1),
                random.next() as u32,
            ],
            Restart::Removed => salts(&mut random),
        };
        let next = Wal::new(Arc::clone(&self.tip), salts);
        let old = std::mem::replace(&mut self.wal, next);
        self.old_wal = (how == Restart::InPlace).then_some(old);
    }

    /// The old WAL, if all of it that lies behind `end` is still in the file and nothing else can
    /// have come between it and the new one.
    pub(super) fn salvageable(&self, end: &WalEnd) -> Option<&Wal> {
        let old = self.old_wal.as_ref()?;
        (old.has(end) && self.wal.end().frame <= end.frame).then_some(old)
    }

    /// A page, or zeros where there is none.
    pub(super) fn page(&self, pgno: Pgno) -> Bytes {
        page_of(&self.tip.image, pgno)
    }

    fn next_random(&mut self) -> Random {
        let mut random = Random::new(self.random);
        self.random = random.next();
        random
    }
}

/// A page of a state, or zeros where there is none.
pub(super) fn page_of(image: &[Bytes], pgno: Pgno) -> Bytes {
    let page = image.get(pgno.get() as usize - 1).cloned();
    page.unwrap_or_else(|| Bytes::from(vec![0; PAGE_SIZE.bytes()]))
}

fn salts(random: &mut Random) -> [u32; 2] {
    [random.next() as u32, random.next() as u32]
}
