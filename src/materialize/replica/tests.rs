use super::*;
use crate::format::ids::Pgno;
use crate::materialize::model::{Random, Writer, image, open_replica, read_all};
use crate::materialize::pages::ReadAhead;
use crate::storage::fault::{Fault, FaultStore, Verb};
use crate::storage::memory::MemoryStore;
use crate::storage::object::StoredObject;
use crate::storage::{Body, Listed};
use std::sync::atomic::AtomicBool;

const CACHE: u64 = 64 << 20;

async fn written(uploads: usize) -> (Arc<FaultStore>, Writer) {
    let store = FaultStore::new(MemoryStore::new());
    let mut writer = Writer::new(store.clone(), 31, 1, 512, 20).await;
    writer.exact_snapshot(false).await;
    for _ in 0..uploads {
        writer.commit();
        writer.upload().await;
    }
    (store, writer)
}

#[tokio::test]
async fn a_refresh_that_finds_nothing_new_costs_one_listing() {
    let (store, mut writer) = written(3).await;
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    let before = (
        store.counts(Verb::List).calls,
        store.counts(Verb::GetRange).calls,
    );
    replica.refresh().await.unwrap();
    let after = (
        store.counts(Verb::List).calls,
        store.counts(Verb::GetRange).calls,
    );
    assert_eq!(after, (before.0 + 1, before.1));
    replica.open(&replica.newest().unwrap()).await.unwrap();
    writer.commit();
    writer.upload().await;
    let before = store.counts(Verb::GetRange).calls;
    replica.refresh().await.unwrap();
    assert_eq!(store.counts(Verb::GetRange).calls - before, 1);
    assert_eq!(replica.newest(), writer.points().last().copied());
    // Its index came with its footer: opening it costs nothing more.
    replica.open(&replica.newest().unwrap()).await.unwrap();
    assert_eq!(store.counts(Verb::GetRange).calls - before, 1);
}

#[tokio::test]
async fn hints_spare_most_footers() {
    let (store, writer) = written(100).await;
    let before = store.counts(Verb::GetRange).calls;
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    let reads = store.counts(Verb::GetRange).calls - before;
    assert!(reads < 20, "{reads} reads for 102 objects");
    let mut random = Random::new(1);
    for point in writer.points() {
        let database = replica.open(&point).await.unwrap();
        assert!(read_all(&database, &mut random).await.unwrap() == image(&writer, &point));
    }
}

#[tokio::test]
async fn an_object_that_vanishes_after_the_listing_is_looked_for_again() {
    let (store, writer) = written(6).await;
    let gone = AtomicBool::new(false);
    store.set_rule(move |call| {
        let is_upload = call.verb == Verb::GetRange && call.key.contains("/wal/0/");
        let first = is_upload && !gone.swap(true, Ordering::Relaxed);
        first.then_some(Fault::Refuse(ErrorKind::NotFound))
    });
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    assert_eq!(store.counts(Verb::List).calls, 2);
    assert!(replica.troubles().is_empty());
    assert_eq!(replica.points(&PointsQuery::default()), writer.points());
}

#[tokio::test]
async fn an_object_that_is_listed_and_never_there_is_an_error_that_names_it() {
    let (store, writer) = written(6).await;
    let newest = "generations/00000001-feed0001/wal/0/0000000000000007.wal";
    store.set_rule(move |call| {
        let is_newest = call.verb == Verb::GetRange && call.key == newest;
        is_newest.then_some(Fault::Refuse(ErrorKind::NotFound))
    });
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    assert_eq!(store.counts(Verb::List).calls, 3);
    assert_eq!(
        replica.points(&PointsQuery::default()),
        writer.points()[..6]
    );
    let error = replica.resolve(Moment::Latest).unwrap_err();
    assert!(error.to_string().contains(newest), "{error}");
    store.heal();
    replica.refresh().await.unwrap();
    assert_eq!(replica.resolve(Moment::Latest).unwrap(), writer.points()[6]);
}

#[tokio::test]
async fn a_refresh_that_fails_leaves_all_as_it_was() {
    let (store, mut writer) = written(2).await;
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    let before = replica.points(&PointsQuery::default());
    writer.commit();
    writer.upload().await;
    for verb in [Verb::List, Verb::GetRange] {
        store.set_rule(move |call| {
            (call.verb == verb).then_some(Fault::Refuse(ErrorKind::Unavailable))
        });
        let error = replica.refresh().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(replica.points(&PointsQuery::default()), before);
    }
    store.heal();
    replica.refresh().await.unwrap();
    assert_eq!(replica.points(&PointsQuery::default()), writer.points());
}

/// What its generation had by then is not known, and what the one before had is not meant.
#[tokio::test]
async fn a_time_behind_a_snapshot_that_cannot_be_read_is_an_error_and_no_older_commit() {
    let store = FaultStore::new(MemoryStore::new());
    let mut parent = Writer::new(store.clone(), 5, 1, 512, 20).await;
    parent.exact_snapshot(false).await;
    parent.commit();
    parent.upload().await;
    let mut child = parent.child(2).await;
    for _ in 0..3 {
        child.commit();
        child.upload().await;
    }
    child.later_snapshot().await;
    child.commit();
    child.upload().await;
    let folder = format!("generations/{}/snapshots/", child.id);
    let first = store.list(&folder, None).await.unwrap().remove(0).key;
    store.set_rule(move |call| {
        let is_damaged = call.verb == Verb::GetRange && call.key == first;
        is_damaged.then_some(Fault::Refuse(ErrorKind::Corrupt))
    });
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    let points = child.points();
    let known = points.last().unwrap();
    assert_eq!(replica.resolve(Moment::At(known.time)).unwrap(), *known);
    let unknown = replica.resolve(Moment::At(points[1].time)).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Corrupt, "{unknown}");
    let before = parent.points()[1];
    assert_eq!(replica.resolve(Moment::At(before.time)).unwrap(), before);
}

/// More than half of what is kept for nobody.
fn large_overlay(number: ObjectNumber) -> Built {
    let listed = Listed {
        key: "key".to_owned(),
        size: 1,
        modified: Timestamp::from_micros(1),
    };
    let object = Arc::new(Object::new(number, &*MemoryStore::new(), &listed));
    let second = Txid::FIRST.next();
    let pages = u32::try_from(OVERLAY_BYTES / 16 * 6 / 10).unwrap();
    let versions: Vec<_> = (1..=pages)
        .map(|page| (Pgno::new(page).unwrap(), second))
        .collect();
    let layer = Layer {
        object: &object,
        versions: &versions,
        from: second,
        to: second,
        shrinks: &[],
    };
    let overlay = Overlay::new(Txid::FIRST).extended([layer]).unwrap();
    assert!(overlay.bytes() * 2 > OVERLAY_BYTES);
    Built {
        overlay: Arc::new(overlay),
        through: second,
        last: (second, pages),
        thinned: Vec::new(),
    }
}

#[test]
fn overlays_that_nobody_reads_through_are_kept_as_far_as_there_is_room() {
    let cache = Arc::new(BlockCache::new(CACHE));
    let replica = Replica::new(MemoryStore::new(), Arc::clone(&cache));
    let [read, old, new] = [(); 3].map(|()| cache.number_object());
    let kept = || {
        locked(&replica.overlays)
            .iter()
            .map(|(&key, _)| key)
            .collect::<Vec<_>>()
    };
    let reader = large_overlay(read);
    replica.keep(read, reader.clone());
    replica.keep(old, large_overlay(old));
    assert_eq!(kept(), [old, read]);
    replica.keep(new, large_overlay(new));
    assert_eq!(kept(), [new, read]);
    drop(reader);
    replica.keep(old, large_overlay(old));
    assert_eq!(kept(), [old]);
}

#[tokio::test]
async fn an_empty_store_holds_no_replica() {
    let replica = Replica::new(MemoryStore::new(), Arc::new(BlockCache::new(CACHE)));
    let error = replica.refresh().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_segment_that_goes_on_from_another_one_is_refused_by_name() {
    let (store, writer) = written(4).await;
    let mut stranger = Writer::new(MemoryStore::new(), 32, 1, 512, 20).await;
    stranger.exact_snapshot(false).await;
    for _ in 0..4 {
        stranger.commit();
        stranger.upload().await;
    }
    let key = "generations/00000001-feed0001/wal/0/0000000000000004.wal";
    let listed = stranger.store.list(key, None).await.unwrap();
    let foreign = stranger
        .store
        .get_range(key, 0, listed[0].size)
        .await
        .unwrap();
    store.delete(&[key.to_owned()]).await.unwrap();
    store.put(key, Body::Bytes(foreign)).await.unwrap();
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    assert_eq!(
        replica.points(&PointsQuery::default()),
        writer.points()[..3]
    );
    let error = replica.resolve(Moment::Latest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(key), "{error}");
}

/// What stands in the place of an upload is another generation's; the whole sentence.
async fn replaced_by_a_stranger(store: &Arc<FaultStore>, first: u64) -> String {
    let mut stranger = Writer::new(MemoryStore::new(), 32, 1, 512, 20).await;
    stranger.exact_snapshot(false).await;
    for _ in 1..first {
        stranger.commit();
        stranger.upload().await;
    }
    let key = format!("generations/00000001-feed0001/wal/0/{first:016x}.wal");
    let size = stranger.store.list(&key, None).await.unwrap()[0].size;
    let foreign = stranger.store.get_range(&key, 0, size).await.unwrap();
    let named = StoredObject::open(&*stranger.store, &key, size);
    let previous = named.await.unwrap().footer.header.previous;
    store.delete(std::slice::from_ref(&key)).await.unwrap();
    store.put(&key, Body::Bytes(foreign)).await.unwrap();
    format!("memory: {key}: it goes on from hash {previous}, but ")
}

#[tokio::test]
async fn the_chain_is_checked_across_a_merged_segment() {
    let (store, mut writer) = written(2).await;
    let folder = "generations/00000001-feed0001/wal/";
    let key = format!("{folder}0/0000000000000003.wal");
    let size = store.list(&key, None).await.unwrap()[0].size;
    let last_input = StoredObject::open(&*store, &key, size).await.unwrap();
    writer.merge(0, false, true).await;
    let merged = store.list(folder, None).await.unwrap();
    assert_eq!(merged.len(), 1);
    writer.commit();
    writer.upload().await;
    let whole = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    assert_eq!(whole.points(&PointsQuery::default()), writer.points());

    let said = replaced_by_a_stranger(&store, 4).await;
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    let error = replica.resolve(Moment::Latest).unwrap_err();
    let has = format!("{} has {}", merged[0].key, last_input.footer.hash);
    assert_eq!(error.to_string(), said + &has);
}

#[tokio::test]
async fn what_lies_in_segments_and_snapshots_is_known_once_they_are_listed() {
    let (store, mut writer) = written(6).await;
    writer.later_snapshot().await;
    while writer.thinned() == 0 {
        for _ in 0..4 {
            writer.commit();
            writer.upload().await;
        }
        writer.merge(0, true, true).await;
    }
    writer.commit();
    writer.upload().await;
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    let reads = store.counts(Verb::GetRange).calls;
    let segments = replica.segments(None);
    assert_eq!(store.counts(Verb::GetRange).calls, reads);
    let count = |thinned| -> u64 {
        let such = segments.iter().filter(|s| s.is_thinned == Some(thinned));
        such.map(|segment| segment.count.unwrap()).sum()
    };
    let points = writer.points();
    assert_eq!(count(true) + count(false), points.len() as u64 - 1);
    for segment in &segments {
        let versions = segment.versions.unwrap();
        assert!(versions >= segment.count.unwrap(), "{segment:?}");
        assert_eq!(segment.raw_bytes, Some(versions * 512));
        let range = segment.first..=segment.last.unwrap();
        let within = points.iter().filter(|point| range.contains(&point.txid));
        assert_eq!(segment.count, Some(within.clone().count() as u64));
        for point in within {
            let is_snapshot = matches!(point.txid.get(), 1 | 7);
            let expected = (!is_snapshot).then_some(segment.level);
            assert_eq!(replica.level(point), expected, "{point:?}");
        }
    }
    let snapshots = replica.snapshots();
    assert_eq!(snapshots[0].stored, snapshots[0].pages.map(u64::from));
    assert_eq!(snapshots[0].raw_bytes, snapshots[0].stored.map(|n| n * 512));
    assert!(snapshots[1].stored < snapshots[1].pages.map(u64::from));
}

#[tokio::test]
async fn a_snapshot_without_its_parts_is_no_base_and_names_what_it_needs() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let mut writer = Writer::new(Arc::clone(&store), 33, 1, 512, 40).await;
    writer.exact_snapshot(true).await;
    let parts = store
        .list("generations/00000001-feed0001/pages/", None)
        .await
        .unwrap();
    let part = parts[0].key.clone();
    store.delete(std::slice::from_ref(&part)).await.unwrap();
    let replica = open_replica(&store, CACHE).await;
    assert_eq!(replica.newest(), None);
    let point = writer.points()[0];
    let asked = Moment::Txid(Some(point.generation), point.txid);
    let error = replica.resolve(asked).unwrap_err();
    assert!(error.to_string().contains(&part), "{error}");
    assert_eq!(
        replica.resolve(Moment::Latest).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(replica.troubles().len(), 1);
    assert!(!replica.snapshots()[0].is_complete);
}

/// A database that SQLite made: enough rows for a tree of three levels.
fn rows_database() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rows.db");
    let database = rusqlite::Connection::open(&path).unwrap();
    database
        .execute_batch(
            "PRAGMA page_size=1024; PRAGMA journal_mode=MEMORY;
             CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000)
             INSERT INTO t SELECT i, 'row ' || i || hex(randomblob(40)) FROM n;",
        )
        .unwrap();
    drop(database);
    std::fs::read(&path).unwrap()
}

#[tokio::test]
async fn interior_pages_are_in_memory_once_a_moment_is_open() {
    let bytes = rows_database();
    let store = FaultStore::new(MemoryStore::new());
    let mut writer = Writer::with_image(store.clone(), 34, 1024, &bytes).await;
    writer.exact_snapshot(false).await;
    // Its own map points into the first one: the same places.
    writer.commit();
    writer.upload().await;
    writer.later_snapshot().await;
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    let database = replica.open(&replica.newest().unwrap()).await.unwrap();
    let before = store.counts(Verb::GetRange).calls;
    let ahead = ReadAhead::default();
    let mut interior = 0;
    let now = image(&writer, database.point());
    for (number, (page, was)) in now.chunks(1024).zip(bytes.chunks(1024)).enumerate().skip(1) {
        // An interior page of a table (fileformat2, "B-tree Pages"), not written since.
        if was[0] == 5 && page == was {
            let read = database.read_cached(number as u64 * 1024, 1024, &ahead);
            assert!(read.expect("an interior page")[..] == *page);
            interior += 1;
        }
    }
    assert!(interior > 10, "{interior}");
    assert_eq!(store.counts(Verb::GetRange).calls, before);
}

#[tokio::test]
async fn what_listings_need_is_told() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let mut writer = Writer::new(Arc::clone(&store), 35, 1, 512, 20).await;
    writer.exact_snapshot(false).await;
    for _ in 0..4 {
        writer.commit();
        writer.upload().await;
    }
    writer.later_snapshot().await;
    writer.merge(0, false, false).await;
    let mut child = writer.child(4).await;
    child.commit();
    child.upload().await;
    let replica = open_replica(&store, CACHE).await;
    let points = [writer.points(), child.points()];
    let generations = replica.generations();
    assert_eq!(generations.len(), 2);
    for (info, points) in generations.iter().zip(&points) {
        assert_eq!(info.first.as_ref(), points.first());
        assert_eq!(info.last.as_ref(), points.last());
        assert_eq!(info.page_size, Some(512));
        assert_eq!(info.claim.as_ref().unwrap().generation, info.id);
    }
    assert_eq!(generations[1].claim.as_ref().unwrap().parent, child.parent);
    let listed = store.list("", None).await.unwrap();
    let bytes: u64 = listed.iter().map(|object| object.size).sum();
    assert_eq!(
        generations.iter().map(|info| info.bytes).sum::<u64>(),
        bytes
    );
    let snapshots = replica.snapshots();
    let txids: Vec<u64> = snapshots.iter().map(|info| info.txid.get()).collect();
    assert_eq!(txids, [1, 5, 1]);
    assert!(snapshots.iter().all(|info| info.is_complete));
    let exact: Vec<_> = snapshots
        .iter()
        .map(|info| info.is_exact.unwrap())
        .collect();
    assert_eq!(exact, [true, false, false]);
    let segments = replica.segments(Some(writer.id));
    let levels: Vec<u8> = segments.iter().map(|info| info.level).collect();
    assert_eq!(levels.iter().filter(|&&level| level == 1).count(), 1);
    assert_eq!(levels.iter().filter(|&&level| level == 0).count(), 4);
    let merged = segments.iter().find(|info| info.level == 1).unwrap();
    let last = points[0]
        .iter()
        .find(|point| Some(point.txid) == merged.last)
        .unwrap();
    assert_eq!(merged.time, Some(last.time));
}
