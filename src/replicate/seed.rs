//! Where the capture of a new spool begins: at what the replicas hold, if that can be.
//!
//! When a state directory is lost, the replicas still say where SQLite's WAL stood behind the last
//! transaction that they have. A run that begins there is proved as after any downtime; if it is,
//! the generations of those replicas go on. Only asks: what the replicas hold is their uploaders'.

use crate::config::Environment;
use crate::error::{Error, Result};
use crate::format::ids::{DatabaseId, GenerationId, Timestamp};
use crate::format::key::generation_prefix;
use crate::format::wal::WordOrder;
use crate::replicate::copy::WalFile;
use crate::replicate::history::{self, ENDS_TRIED, GENERATIONS_TRIED};
use crate::replicate::spool::{RunStart, Spool};
use crate::replicate::writers::{Ending, Found};
use crate::storage::Store;
use crate::storage::blocking::blocking;
use crate::storage::catalog::{Catalog, GenerationListing};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long a replica may take to answer at all: one that is away does not keep a database from
/// being captured.
const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// How long one that answered may take to say what it holds. A generation of a day that nobody
/// merged is listed in 87 requests, one after the other.
const ANSWERS: Duration = Duration::from_secs(30);

/// Segments that show in most cases where the replica ends: the newest upload, and a merged one
/// beside it.
const LAST_SEGMENTS: usize = 2;

/// What one replica holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The database.
    pub database_id: Option<DatabaseId>,
    /// The last transaction of the highest generation that has one.
    newest: Option<Ending>,
    /// The last transaction that the frames of the WAL lead to.
    passed: Option<Ending>,
}

/// The first of some endings that the frames of the WAL lead to; none if the time is over before it
/// is found.
type FirstPassed = dyn Fn(&[Ending], &dyn Fn() -> bool) -> Result<Option<Ending>> + Send + Sync;

/// Asks the replicas of a database before its capture begins. Keeps other daemons from capturing it
/// meanwhile, and a capture of our own as well: drop it first.
pub struct Asking {
    first_passed: Arc<FirstPassed>,
}

impl Asking {
    /// Opens the `-wal` file of a database, if there is one.
    ///
    /// # Errors
    /// `Conflict` if another daemon captures the database, `Disk`.
    pub fn open(database: &Path) -> Result<Self> {
        let real = std::fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
        let mut path = real.into_os_string();
        path.push("-wal");
        let path = Path::new(&path);
        if !path.exists() {
            return Ok(Self::new(|_, _| Ok(None)));
        }
        let wal = WalFile::open(path)?;
        Ok(Self::new(move |endings, is_over| {
            wal.first_passed(endings, is_over)
        }))
    }

    /// Asks with this idea of what the WAL leads to.
    pub fn new(
        first_passed: impl Fn(&[Ending], &dyn Fn() -> bool) -> Result<Option<Ending>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self {
            first_passed: Arc::new(first_passed),
        }
    }

    /// What a replica holds, as far as it says so in time. When this returns, nothing reads the WAL
    /// for its sake any more.
    ///
    /// # Errors
    /// `Unavailable` if it does not answer in time; what else the store says; `Corrupt`, `Invalid`.
    pub async fn ask(&self, store: &dyn Store) -> Result<Held> {
        let began = Instant::now();
        let generations = in_time(began, FIRST_ANSWER, history::generations(store)).await?;
        let database_id = history::database_of(store, &generations);
        let mut held = Held {
            database_id: in_time(began, ANSWERS, database_id).await?,
            ..Held::default()
        };
        if let Err(e) = self.find_end(store, generations, began, &mut held).await {
            // Which database it holds is known all the same, and its newest end may be: a capture
            // that begins there may prove that the WAL goes on from it.
            tracing::warn!("{}: where it ends is not known: {e}", store.location());
        }
        Ok(held)
    }

    /// Finds where a replica ends, and where it ends in the WAL.
    async fn find_end(
        &self,
        store: &dyn Store,
        generations: Vec<GenerationId>,
        began: Instant,
        held: &mut Held,
    ) -> Result<()> {
        let mut ends = Ends::of(store, generations);
        for count in [LAST_SEGMENTS, ENDS_TRIED] {
            let found = in_time(began, ANSWERS, ends.last(count)).await?;
            let endings: Vec<Ending> = found.iter().filter_map(ending).collect();
            held.newest = endings.first().copied();
            held.passed = self.passed(endings, began + ANSWERS).await?;
            if held.passed.is_some() || found.len() < count {
                break;
            }
        }
        Ok(())
    }

    /// The first of these that the frames of the WAL lead to. It is the reading that looks at the
    /// deadline: a future that was dropped would leave a thread behind that has the file locked.
    async fn passed(&self, endings: Vec<Ending>, deadline: Instant) -> Result<Option<Ending>> {
        let first_passed = Arc::clone(&self.first_passed);
        blocking(move || first_passed(&endings, &|| Instant::now() >= deadline)).await
    }
}

/// What a store answers within this time.
async fn in_time<T>(
    began: Instant,
    patience: Duration,
    answer: impl Future<Output = Result<T>>,
) -> Result<T> {
    let answer = timeout_at(began + patience, answer).await;
    answer.unwrap_or_else(|_| {
        let seconds = patience.as_secs();
        Err(Error::unavailable(format!("no answer within {seconds} s")))
    })
}

/// Where a replica ends, listed only as far down as that needs.
struct Ends<'a> {
    store: &'a dyn Store,
    /// The generations that are not listed yet, ascending.
    below: Vec<GenerationId>,
    /// What is listed.
    catalog: Catalog,
}

impl<'a> Ends<'a> {
    fn of(store: &'a dyn Store, mut generations: Vec<GenerationId>) -> Self {
        let tried = generations.len().saturating_sub(GENERATIONS_TRIED);
        Self {
            store,
            below: generations.split_off(tried),
            catalog: Catalog::default(),
        }
    }

    /// The last segments, at most `count`: those of the highest generation first, and of each the
    /// newest first.
    async fn last(&mut self, count: usize) -> Result<Vec<Found>> {
        while self.listed_segments() < count
            && let Some(generation) = self.below.pop()
        {
            let prefix = generation_prefix(generation);
            let listed = Catalog::new(self.store.list(&prefix, None).await?);
            self.catalog.generations.extend(listed.generations);
        }
        let found = history::last_of_all(self.store, &self.catalog, count).await?;
        Ok(found.into_iter().flat_map(|(_, found)| found).collect())
    }

    /// How many segments stand in generations that have a snapshot.
    fn listed_segments(&self) -> usize {
        let listings = self.catalog.generations.values();
        let begun = listings.filter(|listing| !listing.snapshots.is_empty());
        begun.flat_map(GenerationListing::standing).count()
    }
}

fn ending(found: &Found) -> Option<Ending> {
    let ending = found.inside.as_ref()?.ending;
    // An empty WAL looks like any other.
    (ending.end.frame > 0).then_some(ending)
}

/// Begins the first run of a spool where the replicas say that the last transaction was, if one of
/// them knows: the newest that stands in the WAL, else the newest.
///
/// # Errors
/// `Disk`; `Unavailable` if there are no random bytes.
pub fn begin_at(spool: &Spool, held: &[Held], environment: &Environment) -> Result<()> {
    let newest = |of: fn(&Held) -> Option<Ending>| {
        let endings = held.iter().filter_map(of);
        endings.max_by_key(|ending| ending.time)
    };
    let Some(last) = newest(|held| held.passed).or_else(|| newest(|held| held.newest)) else {
        return Ok(());
    };
    // Numbers must not begin before the txids of any generation that may go on.
    let endings = held.iter().flat_map(|held| [held.newest, held.passed]);
    let base = endings.flatten().map(|ending| ending.txid.get() - 1).max();
    spool.begin_run(RunStart {
        token: u64::from_le_bytes(environment.draw()?),
        base: base.unwrap_or(0),
        page_size: last.page_size,
        pages: last.pages,
        end: last.end,
        order: WordOrder::NATIVE,
        after: Timestamp::from_micros(last.time.micros() - 1),
        began: last.time,
        reason: "the spool is a new one, and the replicas hold more".to_owned(),
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{PageSize, Txid, WalEnd};

    fn ending(txid: u64, time: i64) -> Ending {
        Ending {
            txid: Txid::new(txid).unwrap(),
            time: Timestamp::from_micros(time),
            upper_bound: false,
            pages: 3,
            end: WalEnd {
                salts: [1, 2],
                frame: time as u32,
                checksum: [3, 4],
            },
            page_size: PageSize::new(512).unwrap(),
            sqlite_version: 0,
        }
    }

    /// A transaction: txid and time.
    type Last = Option<(u64, i64)>;

    /// The last transactions of replicas, and those that stand in the WAL; where the run begins, as
    /// (number, frame).
    #[track_caller]
    fn check(held: &[(Last, Last)], expect: Option<(u64, u32)>) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), Arc::default()).unwrap();
        let held = held.iter().map(|(newest, passed)| Held {
            database_id: None,
            newest: newest.map(|(txid, time)| ending(txid, time)),
            passed: passed.map(|(txid, time)| ending(txid, time)),
        });
        let held: Vec<Held> = held.collect();
        begin_at(&spool, &held, &Environment::of_tests()).unwrap();
        let position = spool.position();
        assert_eq!(position.map(|at| (at.seq, at.end.frame)), expect);
    }

    #[test]
    fn a_new_spool_begins_where_the_newest_replica_ends() {
        check(&[], None);
        check(&[(None, None)], None);
        check(&[(Some((5, 70)), None)], Some((4, 70)));
        check(
            &[(Some((5, 70)), None), (Some((3, 90)), None), (None, None)],
            Some((4, 90)),
        );
    }

    #[test]
    fn what_stands_in_the_wal_counts_before_what_another_writer_may_have_added() {
        check(&[(Some((9, 90)), Some((5, 50)))], Some((8, 50)));
        // Of a generation before the newest one.
        check(&[(Some((2, 90)), Some((5, 50)))], Some((4, 50)));
        check(
            &[(Some((9, 90)), None), (Some((7, 60)), Some((7, 60)))],
            Some((8, 60)),
        );
    }
}
