//! What a disk cache saves a reader that comes later, and what it never does.

use crate::error::ErrorKind;
use crate::format::claim::Claim;
use crate::format::ids::RestorePoint;
use crate::format::key::{Key, ObjectKey};
use crate::materialize::cache::BlockCache;
use crate::materialize::disk::tests::open as open_disk;
use crate::materialize::disk::{CACHE_BYTES_MIN, Identity};
use crate::materialize::hydrate::{Hydrate, HydrateOptions};
use crate::materialize::model::{Random, Writer, build, image, read_all};
use crate::materialize::pages::ReadAhead;
use crate::materialize::replica::Replica;
use crate::storage::fault::{Fault, FaultStore, Verb, every};
use crate::storage::memory::MemoryStore;
use crate::storage::{Listed, Store};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is kept in memory: less than what is read.
const MEMORY: u64 = 8 << 20;

/// Reads moments as a new process does, and gives how many ranged reads that took.
async fn read(
    store: &Arc<FaultStore>,
    directory: &Path,
    moments: &[(RestorePoint, Vec<u8>)],
) -> u64 {
    let before = store.counts(Verb::GetRange).calls;
    let disk = open_disk(directory, CACHE_BYTES_MIN).await;
    let cache = Arc::new(BlockCache::over(
        Arc::clone(&disk),
        HydrateOptions::default(),
        MEMORY,
    ));
    let replica = Replica::new(store.clone(), cache);
    replica.refresh().await.unwrap();
    for (point, image) in moments {
        let database = replica.open(point).await.unwrap();
        let bytes = read_all(&database, &mut Random::new(7)).await.unwrap();
        assert!(bytes == *image, "{point:?}");
    }
    disk.settle().await;
    store.counts(Verb::GetRange).calls - before
}

/// A history with merged segments and later snapshots, and some of its moments.
async fn history() -> (Arc<FaultStore>, [Writer; 2], Vec<(RestorePoint, Vec<u8>)>) {
    let store = FaultStore::new(MemoryStore::new());
    let writers = build(&(store.clone() as Arc<dyn Store>), 5, 4096, 300).await;
    let moments = writers.iter().flat_map(|writer| {
        let points = writer.points().into_iter().rev().step_by(3).take(4);
        points.map(|point| (point, image(writer, &point)))
    });
    let moments = moments.collect();
    (store, writers, moments)
}

#[tokio::test]
async fn what_one_process_read_the_next_one_reads_without_the_store() {
    let (store, _writers, moments) = history().await;
    let directory = tempfile::tempdir().unwrap();
    let first = read(&store, directory.path(), &moments).await;
    assert!(first > 10, "{first}");
    assert_eq!(read(&store, directory.path(), &moments).await, 0);
    // Only names are asked of the store: it may be away for all else.
    store.set_rule(|call| {
        let away = Fault::Refuse(ErrorKind::Unavailable);
        (call.verb == Verb::GetRange).then_some(away)
    });
    assert_eq!(read(&store, directory.path(), &moments).await, 0);
}

#[tokio::test]
async fn damage_of_the_cache_costs_reads_and_changes_no_byte() {
    let (store, _writers, moments) = history().await;
    let directory = tempfile::tempdir().unwrap();
    read(&store, directory.path(), &moments).await;
    let mut random = Random::new(11);
    let mut reads = 0;
    for _ in 0..10 {
        for kind in ["data", "list"] {
            let path = directory.path().join(format!("00000000.{kind}"));
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            let length = file.metadata().unwrap().len();
            for _ in 0..3 {
                let noise = random.next().to_le_bytes();
                file.write_all_at(&noise, random.below(length - 8)).unwrap();
            }
        }
        reads += read(&store, directory.path(), &moments).await;
        assert_eq!(read(&store, directory.path(), &moments).await, 0);
    }
    assert!(reads > 10, "{reads}");
}

#[tokio::test]
async fn wrong_bytes_of_a_store_are_not_kept() {
    let (store, _writers, moments) = history().await;
    let directory = tempfile::tempdir().unwrap();
    let disk = open_disk(directory.path(), CACHE_BYTES_MIN).await;
    let cache = Arc::new(BlockCache::over(
        Arc::clone(&disk),
        HydrateOptions::default(),
        MEMORY,
    ));
    store.set_rule(|call| (call.verb == Verb::GetRange).then_some(Fault::Flip(1000)));
    let replica = Replica::new(store.clone() as Arc<dyn Store>, cache);
    replica.refresh().await.unwrap();
    assert!(!replica.troubles().is_empty());
    for (point, image) in &moments {
        // The bit may lie where nobody looks.
        if let Ok(database) = replica.open(point).await
            && let Ok(bytes) = read_all(&database, &mut Random::new(7)).await
        {
            assert!(bytes == *image, "{point:?}");
        }
    }
    disk.settle().await;
    drop((replica, disk));
    store.heal();
    read(&store, directory.path(), &moments).await;
    assert_eq!(read(&store, directory.path(), &moments).await, 0);
}

/// How often a new process reads claims from the store.
async fn claims_read(store: &Arc<FaultStore>, directory: &Path) -> u64 {
    let reads = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&reads);
    store.set_rule(move |call| {
        let is_claim = call.verb == Verb::GetRange && call.key.ends_with("/claim");
        // ORDERING: nothing else hangs on it.
        counted.fetch_add(is_claim.into(), Ordering::Relaxed);
        None
    });
    read(store, directory, &[]).await;
    reads.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_claim_is_kept_when_the_segment_that_goes_on_from_it_confirms_it() {
    let store = FaultStore::new(MemoryStore::new());
    let mut writer = Writer::new(store.clone(), 31, 1, 512, 20).await;
    writer.exact_snapshot(false).await;
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        assert_eq!(claims_read(&store, directory.path()).await, 1);
    }
    writer.commit();
    writer.upload().await;
    assert_eq!(claims_read(&store, directory.path()).await, 1);
    assert_eq!(claims_read(&store, directory.path()).await, 0);
}

#[tokio::test]
async fn a_kept_claim_that_does_not_fit_is_read_again() {
    let (store, _writers, _) = history().await;
    let directory = tempfile::tempdir().unwrap();
    let disk = open_disk(directory.path(), CACHE_BYTES_MIN).await;
    let mut claims = 0;
    for listed in store.list("", None).await.unwrap() {
        let Listed { key, size, .. } = &listed;
        let whole = Key::parse(key).filter(|key| key.object == ObjectKey::Claim);
        if whole.is_none() {
            continue;
        }
        let bytes = store.get_range(key, 0, *size).await.unwrap();
        let mut claim = Claim::decode(&bytes).unwrap();
        // It is whole, and of this generation: only the next segment knows better.
        claim.host = "other".to_owned();
        let wrong = claim.encode();
        assert!(wrong.len() == bytes.len() && wrong != bytes);
        let identity = Identity::new(&*store, &listed);
        disk.put(vec![(identity.piece(0, *size), wrong.into())]);
        claims += 1;
    }
    assert!(claims > 0);
    disk.settle().await;
    let cache = Arc::new(BlockCache::over(disk, HydrateOptions::default(), MEMORY));
    let replica = Replica::new(store.clone() as Arc<dyn Store>, cache);
    replica.refresh().await.unwrap();
    assert!(replica.troubles().is_empty());
}

/// Ranged reads of 1,000 random point reads of 50 MB, of which little fits into memory.
async fn random_reads(when: Hydrate, limit: u64) -> u64 {
    const PAGES: u64 = 12_801;
    let store = FaultStore::new(MemoryStore::new());
    let mut writer = Writer::new(store.clone(), 3, 1, 4096, PAGES as u32).await;
    writer.exact_snapshot(false).await;
    let point = writer.points()[0];
    let whole = image(&writer, &point);
    let directory = tempfile::tempdir().unwrap();
    let disk = open_disk(directory.path(), 128 << 20).await;
    let options = HydrateOptions { when, limit };
    let cache = Arc::new(BlockCache::over(disk, options, MEMORY / 4));
    let replica = Replica::new(store.clone(), cache);
    replica.refresh().await.unwrap();
    // Of a store that answers at once a reader has all, before anybody else has read a part.
    store.set_rule(every(Fault::Delay(Duration::from_millis(3))));
    let before = store.counts(Verb::GetRange).calls;
    let database = replica.open(&point).await.unwrap();
    let mut random = Random::new(9);
    for number in 0..1000 {
        if number == 60 && when != Hydrate::Never && limit == u64::MAX {
            // What was read before may be in memory alone.
            let deadline = Instant::now() + Duration::from_secs(60);
            while database
                .missing_on_disk(0..PAGES * 4096)
                .await
                .unwrap()
                .len()
                > 60
            {
                assert!(Instant::now() < deadline, "it is not fetched whole");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let at = random.below(PAGES) * 4096;
        let ahead = ReadAhead::default();
        let page = database.read(at, 4096, &ahead).await.unwrap();
        assert!(page[..] == whole[at as usize..][..4096]);
    }
    store.counts(Verb::GetRange).calls - before
}

#[tokio::test]
async fn random_reads_of_a_moment_that_is_fetched_whole_cost_few_requests() {
    let never = random_reads(Hydrate::Never, u64::MAX).await;
    assert!(never > 400, "{never}");
    for when in [Hydrate::Auto, Hydrate::Always] {
        let whole = random_reads(when, u64::MAX).await;
        assert!(whole < never / 2, "{when:?}: {whole}, and {never} without");
    }
    let too_large = random_reads(Hydrate::Auto, 50 << 20).await;
    assert!(too_large > 400, "{too_large}");
}
