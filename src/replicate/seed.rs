//! Where the capture of a new spool begins: at what the replicas hold, if that can be.
//!
//! When a state directory is lost, the replicas still say where SQLite's WAL stood behind the last
//! transaction that they have. A run that begins there is proved as after any downtime; if it is,
//! the generations of those replicas go on. Only asks: what the replicas hold is their uploaders'.

use crate::config::Environment;
use crate::error::Result;
use crate::format::ids::{DatabaseId, Timestamp};
use crate::format::wal::WordOrder;
use crate::replicate::blocking;
use crate::replicate::copy::WalFile;
use crate::replicate::history;
use crate::replicate::spool::{RunStart, Spool};
use crate::replicate::writers::{Ending, Found};
use crate::storage::Store;
use crate::storage::catalog::Catalog;
use std::path::Path;
use std::sync::Arc;

/// Segments whose ends are looked for in the WAL: if another writer went on in the generation, or
/// began others, what is ours ends before the last one.
const ENDS_TRIED: usize = 64;

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

/// Whether the frames of the WAL lead to the end of a transaction.
type Passes = dyn Fn(&Ending) -> Result<bool> + Send + Sync;

/// Asks the replicas of a database before its capture begins. Keeps other daemons from capturing it
/// meanwhile, and a capture of our own as well: drop it first.
pub struct Asking {
    passes: Arc<Passes>,
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
            return Ok(Self::new(|_| Ok(false)));
        }
        let wal = WalFile::open(path)?;
        Ok(Self::new(move |ending| {
            wal.leads_to(ending.page_size, &ending.end)
        }))
    }

    /// Asks with this idea of what the WAL leads to.
    pub fn new(passes: impl Fn(&Ending) -> Result<bool> + Send + Sync + 'static) -> Self {
        Self {
            passes: Arc::new(passes),
        }
    }

    /// What a replica holds.
    ///
    /// # Errors
    /// What the store says; `Corrupt`, `Invalid`.
    pub async fn ask(&self, store: &dyn Store) -> Result<Held> {
        let catalog = Catalog::new(store.list("generations/", None).await?);
        let mut held = Held {
            database_id: history::database_id(store, &catalog).await?,
            ..Held::default()
        };
        for count in [2, ENDS_TRIED] {
            let found = history::last_of_all(store, &catalog, count).await?;
            let segments: Vec<&Found> = found.iter().flat_map(|(_, found)| found).collect();
            let endings: Vec<Ending> = segments.iter().filter_map(|found| ending(found)).collect();
            held.newest = endings.first().copied();
            held.passed = self.passed(endings).await?;
            if held.passed.is_some() || segments.len() < count {
                break;
            }
        }
        Ok(held)
    }

    /// The first of these that the frames of the WAL lead to.
    async fn passed(&self, endings: Vec<Ending>) -> Result<Option<Ending>> {
        let passes = Arc::clone(&self.passes);
        blocking(move || {
            for ending in endings {
                if passes(&ending)? {
                    return Ok(Some(ending));
                }
            }
            Ok(None)
        })
        .await
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
