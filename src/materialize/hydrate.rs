//! Fetching a whole moment into the disk cache, behind those who read it.
//!
//! Random reads of a slow store stay slow whatever one does, so when they pile up the rest of the
//! moment is fetched in a few large reads. The rule: within a minute reads of the moment waited for
//! as many blocks as fetching all of it takes ranged reads, at least 32. Then what was spent equals
//! what will be. It is fetched again only after twice as many. Moments share what they share: a
//! block that is there is not fetched again.

use crate::error::Result;
use crate::materialize::fetch::{self, GET_BYTES, WantedBlock};
use crate::materialize::pages::Database;
use futures_util::StreamExt;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Moments fetched at a time.
const MOMENTS: usize = 2;
/// Ranged reads on the way at a time for each.
const READS: usize = 2;
/// Misses are counted for so long.
const WINDOW: Duration = Duration::from_secs(60);
/// So few are no reason.
const MISSES_MIN: u64 = 32;
/// Of a database this many bytes are planned at a time.
const PART_BYTES: u64 = 1 << 30;

/// When moments are fetched whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hydrate {
    /// When reads that had to wait for the store pile up.
    Auto,
    /// When they are opened.
    Always,
    /// Not at all.
    #[default]
    Never,
}

/// Which moments are fetched whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HydrateOptions {
    /// When.
    pub when: Hydrate,
    /// Those of databases of at most so many bytes.
    pub limit: u64,
}

/// Fetches moments whole, a few at a time.
pub(crate) struct Hydrator {
    options: HydrateOptions,
    turns: Arc<Semaphore>,
}

/// How reads of one moment miss. Pure: time comes in.
#[derive(Debug, Default)]
pub(crate) struct Misses {
    since: Option<Instant>,
    count: u64,
    /// It is being fetched.
    is_fetched: bool,
    /// How often it was before. If that did not help for long, others push it out again.
    fetched: u32,
}

impl Misses {
    /// Notes that reads of a moment of so many bytes waited for so many blocks; true if it is to be
    /// fetched now.
    fn note(&mut self, now: Instant, blocks: u64, size: u64) -> bool {
        if self.is_fetched {
            return false;
        }
        if self.since.is_none_or(|since| now >= since + WINDOW) {
            self.since = Some(now);
            self.count = 0;
        }
        self.count += blocks;
        self.is_fetched = self.count >= self.enough(size);
        self.is_fetched
    }

    /// So many misses are a reason; twice as many each time.
    fn enough(&self, size: u64) -> u64 {
        let doubled = 1_u64.checked_shl(self.fetched).unwrap_or(u64::MAX);
        MISSES_MIN.max(size / GET_BYTES).saturating_mul(doubled)
    }

    /// Notes that it is fetched, or could not be: misses count again.
    fn ended(&mut self) {
        *self = Self {
            fetched: self.fetched + 1,
            ..Self::default()
        };
    }
}

impl Hydrator {
    pub(crate) fn new(options: HydrateOptions) -> Self {
        Self {
            options,
            turns: Arc::new(Semaphore::new(MOMENTS)),
        }
    }

    /// A moment was opened.
    pub(crate) fn opened(&self, database: &Arc<Database>) {
        if self.options.when == Hydrate::Always && self.takes(database) {
            database.misses().is_fetched = true;
            self.start(database);
        }
    }

    /// Reads of a moment waited for blocks from the store.
    pub(crate) fn missed(&self, database: &Arc<Database>, blocks: usize) {
        if self.options.when != Hydrate::Never && blocks > 0 && self.takes(database) {
            let size = database.size();
            let now = Instant::now();
            if database.misses().note(now, blocks as u64, size) {
                self.start(database);
            }
        }
    }

    /// What would fill most of the cache pushes out all that others read.
    fn takes(&self, database: &Database) -> bool {
        let disk = database.replica().fetcher().cache.disk();
        let share = disk
            .filter(|disk| !disk.is_off())
            .map(|disk| disk.capacity() / 2);
        share.is_some_and(|share| database.size() <= share) && database.size() <= self.options.limit
    }

    fn start(&self, database: &Arc<Database>) {
        let (moment, turns) = (Arc::downgrade(database), Arc::clone(&self.turns));
        database.runtime().spawn(async move {
            let _turn = turns.acquire_owned().await.expect("it is never closed");
            let fetched = fetch(&moment).await;
            if let Some(database) = moment.upgrade() {
                let txid = database.point().txid;
                let location = database.replica().fetcher().store.location();
                match fetched {
                    Ok(()) => tracing::info!("fetched all of {location}, txid {txid}"),
                    // What fails here fails again, and is reported, when somebody reads it.
                    Err(e) => tracing::debug!("did not fetch all of {location}, txid {txid}: {e}"),
                }
                database.misses().ended();
            }
        });
    }
}

/// Fetches all blocks of a moment, as long as somebody has it open.
async fn fetch(moment: &Weak<Database>) -> Result<()> {
    let mut at = 0;
    loop {
        let blocks = match moment.upgrade() {
            Some(database) if at < database.size() => {
                let end = (at + PART_BYTES).min(database.size());
                let missing = database.missing_on_disk(at..end).await?;
                at = end;
                missing
            }
            // Read back at once, it must be there.
            Some(database) => return database.replica().fetcher().kept().await,
            None => return Ok(()),
        };
        keep(moment, blocks).await?;
    }
}

/// Fetches blocks into the disk cache, a few reads at a time, so that those who wait for theirs get
/// on beside it.
async fn keep(moment: &Weak<Database>, blocks: Vec<WantedBlock>) -> Result<()> {
    let groups = fetch::neighbours(blocks);
    let mut reads = futures_util::stream::iter(groups)
        .map(|group| async move {
            match moment.upgrade() {
                Some(database) => {
                    let page_size = database.layout().page_size;
                    let fetcher = Arc::clone(database.replica().fetcher());
                    drop(database);
                    fetcher.keep(group, page_size).await
                }
                None => Ok(()),
            }
        })
        .buffer_unordered(READS);
    while let Some(read) = reads.next().await {
        read?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::materialize::cache::BlockCache;
    use crate::materialize::disk::CACHE_BYTES_MIN;
    use crate::materialize::disk::tests::open as open_disk;
    use crate::materialize::model::Writer;
    use crate::materialize::replica::Replica;
    use crate::storage::memory::MemoryStore;

    #[tokio::test]
    async fn a_moment_that_would_fill_most_of_the_cache_is_not_fetched_whole() {
        const PAGE_BYTES: u64 = 4096;
        let half = CACHE_BYTES_MIN / 2 / PAGE_BYTES;
        for (pages, is_fetched) in [(half, true), (half + 1, false)] {
            let store = MemoryStore::new();
            let pages = u32::try_from(pages).unwrap();
            let mut writer = Writer::new(store.clone(), 3, 1, PAGE_BYTES as u32, pages).await;
            writer.exact_snapshot(false).await;
            let directory = tempfile::tempdir().unwrap();
            let disk = open_disk(directory.path(), CACHE_BYTES_MIN).await;
            let options = HydrateOptions {
                when: Hydrate::Always,
                limit: u64::MAX,
            };
            let cache = Arc::new(BlockCache::over(disk, options, 1 << 20));
            let replica = Replica::new(store, cache);
            replica.refresh().await.unwrap();
            let database = replica.open(&writer.points()[0]).await.unwrap();
            assert_eq!(database.size(), u64::from(pages) * PAGE_BYTES);
            let misses = database.misses();
            let begun = misses.is_fetched || misses.fetched > 0;
            assert_eq!(begun, is_fetched, "{pages} pages");
        }
    }

    /// Misses as `<seconds> <blocks>` of a moment of so many MiB: when it is fetched.
    #[track_caller]
    fn check(mib: u64, script: &[(u64, u64)], expected: Option<u64>) {
        let start = Instant::now();
        let mut misses = Misses::default();
        let at = script.iter().find(|(seconds, blocks)| {
            let now = start + Duration::from_secs(*seconds);
            misses.note(now, *blocks, mib << 20)
        });
        assert_eq!(at.map(|at| at.0), expected, "{mib} MiB: {script:?}");
        if expected.is_some() {
            assert!(!misses.note(start, 1000, mib << 20), "it is on its way");
            misses.ended();
            assert!(!misses.note(start, 1, mib << 20));
        }
    }

    #[test]
    fn a_moment_that_is_pushed_out_again_needs_twice_the_misses() {
        let now = Instant::now();
        let mut misses = Misses::default();
        for fetched in 0..4 {
            assert!(!misses.note(now, (32 << fetched) - 1, 1 << 20));
            assert!(misses.note(now, 1, 1 << 20));
            misses.ended();
        }
        misses.fetched = 200;
        assert!(!misses.note(now, 1 << 40, 1 << 20));
    }

    #[test]
    fn a_moment_is_fetched_when_its_misses_are_as_many_as_that_takes_reads() {
        check(1, &[(0, 31)], None);
        check(1, &[(0, 31), (59, 1)], Some(59));
        check(1, &[(0, 31), (60, 1), (61, 30), (119, 1)], Some(119));
        check(1, &[(0, 31), (60, 31), (120, 31)], None);
        check(2048, &[(0, 500), (1, 11)], None);
        check(2048, &[(0, 500), (1, 12)], Some(1));
    }
}
