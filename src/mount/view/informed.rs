//! The tree while a daemon tells what it changes.

use super::history::{History, PAGE, TestClock};
use super::*;
use crate::format::claim::Claim;
use crate::format::ids::DatabaseId;
use crate::materialize::ahead::ReadAhead;
use crate::mount::discover::Part;
use crate::storage::changes::{Changes, Mark, Recorded, Since};
use crate::storage::fault::{FaultStore, Verb};
use crate::storage::informed::{Informant, News};
use crate::storage::memory::MemoryStore;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// The daemon of the database `app`, which keeps what it stores in a directory.
#[derive(Clone)]
struct Daemon {
    changes: Arc<Changes>,
    kept: PathBuf,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Daemon")
    }
}

impl Informants for Daemon {
    fn of(&self, place: &Place) -> Option<Arc<dyn Informant>> {
        assert_eq!(place.part, Part::Folder("app".to_owned()));
        Some(Arc::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl Informant for Daemon {
    async fn news(&self, claim: &Claim, since: Option<Mark>) -> Result<Option<News>> {
        assert_eq!(claim.database_id, DatabaseId([1; 16]));
        let Since { mark, changes } = self.changes.since(since);
        Ok(Some(News {
            mark,
            changes,
            generation: Some(claim.generation),
            kept: self.kept.clone(),
        }))
    }
}

struct World {
    folder: TempDir,
    /// What the mount asks for.
    reads: Arc<FaultStore>,
    stored: Arc<dyn Store>,
    app: History,
    clock: TestClock,
    view: Arc<View>,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stored = MemoryStore::new();
        let daemon = Daemon {
            changes: Changes::new(1),
            kept: folder.path().to_owned(),
        };
        let recorded = Recorded::new(stored.below("app"), daemon.changes.clone());
        let recorded: Arc<dyn Store> = recorded;
        let app = History::begin(&recorded, 1, None, "09:00:00").await;
        let reads = FaultStore::new(stored.clone());
        let clock = TestClock::at("10:00:00");
        let view = View::new(
            vec![Source::Folder(reads.clone())],
            Some(Arc::new(daemon)),
            Arc::new(BlockCache::new(1 << 20)),
            ViewOptions {
                refresh: Duration::from_secs(1),
                patience: Duration::from_secs(5),
                listed: Listed::All,
            },
            clock.clock(),
        );
        view.start().await.unwrap();
        let world = Self {
            folder,
            reads,
            stored: stored.below("app"),
            app,
            clock,
            view,
        };
        // The second look finds the daemon.
        world.look().await;
        world.look().await;
        world
    }

    fn member(&self) -> Arc<Member> {
        locked(&self.view.databases).by_name["app"].clone()
    }

    async fn look(&self) {
        let look = self.view.look(Subject::Database(self.member()));
        assert!(look.await);
    }

    fn newest(&self) -> u64 {
        self.member().replica.newest().unwrap().txid.get()
    }

    /// What the mount has asked the store for: listings, and ranges.
    fn requests(&self) -> (u64, u64) {
        let calls = |verb| self.reads.counts(verb).calls;
        (calls(Verb::List), calls(Verb::GetRange))
    }

    /// Keeps an upload, but for so many of its last bytes.
    async fn keep(&self, txid: u64, cut: usize) {
        self.keep_as(txid, txid, cut).await;
    }

    /// The same in the place of another one.
    async fn keep_as(&self, place: u64, txid: u64, cut: usize) {
        let key_of = |txid| format!("generations/00000001-000000ab/wal/0/{txid:016x}.wal");
        let key = key_of(txid);
        let size = self.stored.list(&key, None).await.unwrap()[0].size;
        let bytes = self.stored.get_range(&key, 0, size).await.unwrap();
        let file = key_of(place).replace('/', "+");
        let file = self.folder.path().join(file);
        fs::write(file, &bytes[..bytes.len() - cut]).unwrap();
    }

    fn is_informed(&self) -> bool {
        let inode = Inode::status(Some(self.member().number));
        let Some(Text::Status(json)) = self.view.text(inode) else {
            panic!("there is no status.json");
        };
        let status: serde_json::Value = serde_json::from_slice(&json).unwrap();
        status["informed"].as_bool().unwrap()
    }
}

#[tokio::test]
async fn a_commit_that_the_daemon_keeps_shows_without_a_request() {
    let mut world = World::new().await;
    assert!(world.is_informed());
    let before = world.requests();
    for txid in 2..10 {
        world.app.commit(&format!("10:00:{txid:02}"), 2).await;
        world.keep(txid, 0).await;
        world.look().await;
        assert_eq!(world.newest(), txid);
    }
    assert_eq!(world.requests(), before);
    let point = world.member().replica.newest().unwrap();
    let database = world.member().replica.open(&point).await.unwrap();
    let page = database.read(0, PAGE, &ReadAhead::default()).await;
    assert_eq!(page.unwrap()[4..12], 9_u64.to_be_bytes());
    let (lists, _) = world.requests();
    assert_eq!(lists, before.0);
}

#[tokio::test]
async fn what_is_kept_but_damaged_or_not_kept_is_read_from_the_store() {
    let mut world = World::new().await;
    world.app.commit("10:00:01", 2).await;
    world.look().await;
    assert_eq!(world.newest(), 2);
    world.app.commit("10:00:02", 2).await;
    world.keep(3, 1).await;
    let (lists, ranges) = world.requests();
    world.look().await;
    assert_eq!(world.newest(), 3);
    world.app.commit("10:00:03", 2).await;
    world.keep_as(4, 3, 0).await;
    world.look().await;
    assert_eq!(world.newest(), 4);
    assert_eq!(world.member().replica.troubles().len(), 0);
    assert_eq!(world.requests(), (lists, ranges + 2));
}

#[tokio::test]
async fn what_was_told_and_is_not_there_is_looked_for_in_the_store() {
    let mut world = World::new().await;
    world.app.commit("10:00:01", 2).await;
    world.app.commit("10:00:02", 2).await;
    // Behind the daemon's back.
    let gone = "generations/00000001-000000ab/wal/0/0000000000000003.wal";
    world.stored.delete(&[gone.to_owned()]).await.unwrap();
    let (lists, _) = world.requests();
    world.look().await;
    assert_eq!(world.newest(), 2);
    assert_eq!(world.member().replica.troubles().len(), 0);
    assert_eq!(world.requests().0, lists + 1);
    world.clock.set("10:00:59");
    world.look().await;
    assert_eq!(world.requests().0, lists + 1);
    world.clock.set("10:01:01");
    world.look().await;
    assert_eq!(world.requests().0, lists + 2);
}
