use super::*;
use crate::format::ids::{GenerationId, Timestamp};
use crate::format::moment::Moment;
use crate::materialize::model::{Random, Writer, build, image, open_replica, read_all};
use crate::materialize::replica::PointsQuery;
use crate::storage::fault::{Fault, FaultStore, Verb, nth};
use crate::storage::memory::MemoryStore;
use crate::storage::{Body, Store};
use std::collections::BTreeSet;
use std::sync::Mutex;

const CACHE: u64 = 64 << 20;

/// Every restore point must be listed, and read as the model has it.
async fn check_all(replica: &Arc<Replica>, writers: &[&Writer], told: &str) {
    let mut random = Random::new(7);
    let expected: Vec<RestorePoint> = writers.iter().flat_map(|w| w.points()).collect();
    let listed = replica.points(&PointsQuery::default());
    let differs = listed.iter().zip(&expected).find(|(a, b)| a != b);
    assert_eq!(differs, None, "{told}");
    assert_eq!(listed.len(), expected.len(), "{told}");
    for writer in writers {
        for point in writer.points() {
            let opened = replica.open(&point).await;
            let database = opened.unwrap_or_else(|e| panic!("{told}: {e}"));
            let read = read_all(&database, &mut random).await;
            let read = read.unwrap_or_else(|e| panic!("{told}, {point:?}: {e}"));
            let same = read == image(writer, &point);
            assert!(same, "{told}: {point:?} reads as something else");
        }
    }
}

#[tokio::test]
async fn every_restore_point_reads_as_it_was() {
    let small = (1..60).map(|seed| (seed, 512, 1 + seed as u32 % 90));
    let sizes = [
        (61, 1024, 40),
        (62, 4096, 30),
        (63, 65536, 4),
        (64, 512, 9000),
    ];
    let mut levels = [0; 4];
    let mut exact = [0; 2];
    let mut thinned = 0;
    for (seed, page_size, pages) in small.chain(sizes) {
        let store: Arc<dyn Store> = MemoryStore::new();
        let [parent, child] = build(&store, seed, page_size, pages).await;
        let told = format!("seed {seed}, {pages} pages of {page_size} bytes");
        let replica = open_replica(&store, CACHE).await;
        check_all(&replica, &[&parent, &child], &told).await;
        assert!(replica.troubles().is_empty(), "{told}");
        for segment in replica.segments(None) {
            levels[usize::from(segment.level)] += 1;
        }
        for snapshot in replica.snapshots() {
            exact[usize::from(snapshot.is_exact.unwrap())] += 1;
        }
        thinned += parent.thinned() + child.thinned();
    }
    // What the model claims to cover, it covers.
    assert!(levels[..3].iter().all(|&count| count > 30), "{levels:?}");
    assert!(exact.iter().all(|&count| count > 10), "{exact:?}");
    assert!(thinned > 30, "{thinned}");
}

#[tokio::test]
async fn whatever_overlaps_no_point_is_listed_that_reads_as_another_one() {
    let mut hidden = 0;
    for seed in 100..160 {
        let store: Arc<dyn Store> = MemoryStore::new();
        let mut writer = Writer::new(Arc::clone(&store), seed, 1, 512, 20).await;
        if writer.random.percent(50) {
            writer.fuzzy_snapshot(false).await;
        } else {
            writer.exact_snapshot(false).await;
        }
        let mut dropped = BTreeSet::new();
        for _ in 0..25 {
            writer.step().await;
            if writer.random.percent(20) {
                dropped.extend(writer.overlap().await);
            }
        }
        let replica = open_replica(&store, CACHE).await;
        assert!(replica.troubles().is_empty(), "seed {seed}");
        let listed = replica.points(&PointsQuery::default());
        for point in &listed {
            let database = replica.open(point).await.unwrap();
            let read = read_all(&database, &mut Random::new(seed)).await.unwrap();
            assert!(read == image(&writer, point), "seed {seed}: {point:?}");
        }
        for point in writer.points() {
            let is_listed = listed.contains(&point);
            hidden += usize::from(!is_listed);
            let may_be_hidden = dropped.contains(&point.txid.get());
            assert!(is_listed || may_be_hidden, "seed {seed}: {point:?}");
            let asked = Moment::Txid(Some(writer.id), point.txid);
            let kind = replica.resolve(asked).map_err(|e| e.kind());
            let expected = is_listed.then_some(point).ok_or(ErrorKind::NotFound);
            assert_eq!(kind, expected, "seed {seed}: {point:?}");
        }
    }
    assert!(hidden > 100, "{hidden}");
}

#[tokio::test]
async fn every_restore_point_reads_as_it_was_when_nothing_is_cached() {
    for (seed, page_size, pages) in [(71, 512, 50), (72, 4096, 20), (73, 512, 4500)] {
        let store: Arc<dyn Store> = MemoryStore::new();
        let [parent, child] = build(&store, seed, page_size, pages).await;
        let replica = open_replica(&store, 0).await;
        check_all(&replica, &[&parent, &child], &format!("seed {seed}")).await;
        assert_eq!(replica.fetcher().cache.bytes(), 0);
    }
}

#[tokio::test]
async fn a_replica_is_followed_while_it_is_written_merged_and_thinned() {
    for seed in 80..90 {
        let store: Arc<dyn Store> = MemoryStore::new();
        let mut writer = Writer::new(Arc::clone(&store), seed, 1, 512, 30).await;
        writer.exact_snapshot(false).await;
        let replica = open_replica(&store, 0).await;
        let mut open: Vec<Arc<Database>> = Vec::new();
        for _ in 0..40 {
            writer.step().await;
            replica.refresh().await.unwrap();
            let newest = replica.newest().unwrap();
            assert_eq!(newest, *writer.points().last().unwrap(), "seed {seed}");
            open.push(replica.open(&newest).await.unwrap());
        }
        // Most of what they were opened on has been merged and deleted since.
        let kept = writer.points();
        for database in open
            .iter()
            .filter(|database| kept.contains(database.point()))
        {
            let read = read_all(database, &mut Random::new(seed)).await;
            let read = read.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert!(read == image(&writer, database.point()), "seed {seed}");
        }
        check_all(&replica, &[&writer], &format!("seed {seed}")).await;
    }
}

/// The same objects but for one, which becomes what `change` makes of it.
async fn changed(
    store: &Arc<dyn Store>,
    key: &str,
    change: impl Fn(Vec<u8>) -> Option<Vec<u8>>,
) -> Arc<dyn Store> {
    let copy: Arc<dyn Store> = MemoryStore::new();
    for listed in store.list("", None).await.unwrap() {
        let bytes = store.get_range(&listed.key, 0, listed.size).await.unwrap();
        let bytes = match listed.key == key {
            true => change(bytes.to_vec()),
            false => Some(bytes.to_vec()),
        };
        if let Some(bytes) = bytes {
            copy.put(&listed.key, Body::Bytes(bytes.into()))
                .await
                .unwrap();
        }
    }
    copy
}

/// Reads everything that the model has; returns what went wrong. Nothing may read as anything else.
async fn errors(store: &Arc<dyn Store>, writers: &[Writer], told: &str) -> Vec<Error> {
    let replica = Replica::new(Arc::clone(store), Arc::new(BlockCache::new(0)));
    if let Err(error) = replica.refresh().await {
        return vec![error];
    }
    let mut errors = replica.troubles();
    let mut random = Random::new(1);
    for writer in writers {
        for point in writer.points() {
            let asked = Moment::Txid(Some(point.generation), point.txid);
            let read = async {
                let found = replica.resolve(asked)?;
                assert_eq!(found, point, "{told}");
                let database = replica.open(&found).await?;
                read_all(&database, &mut random).await
            };
            match read.await {
                Ok(read) => assert!(read == image(writer, &point), "{told}: {point:?}"),
                Err(error) => errors.push(error),
            }
        }
    }
    errors
}

/// The keys of all objects that reading everything reads.
async fn needed(store: &Arc<dyn Store>, writers: &[Writer]) -> HashSet<String> {
    let keys: Arc<Mutex<HashSet<String>>> = Arc::default();
    let fault = FaultStore::new(Arc::clone(store));
    let seen = Arc::clone(&keys);
    fault.set_rule(move |call| {
        if call.verb == Verb::GetRange {
            seen.lock().unwrap().insert(call.key.clone());
        }
        None
    });
    let store: Arc<dyn Store> = fault;
    assert!(errors(&store, writers, "whole").await.is_empty());
    let keys = keys.lock().unwrap();
    keys.clone()
}

#[tokio::test]
async fn a_truncated_changed_or_missing_object_is_an_error_that_names_it() {
    for seed in 90..92 {
        let store: Arc<dyn Store> = MemoryStore::new();
        let writers = build(&store, seed, 512, 25).await;
        let needed = needed(&store, &writers).await;
        let mut random = Random::new(seed);
        for listed in store.list("", None).await.unwrap() {
            let key = &listed.key;
            let told = format!("seed {seed}, {key}");
            let cut = changed(&store, key, |mut bytes| {
                bytes.truncate(bytes.len() - 1);
                Some(bytes)
            });
            let found = errors(&cut.await, &writers, &told).await;
            let named = found
                .iter()
                .filter(|e| e.to_string().contains(key.as_str()));
            assert!(named.count() > 0 || !needed.contains(key), "{told}: cut");

            let at = random.below(listed.size) as usize;
            let flipped = changed(&store, key, |mut bytes| {
                bytes[at] ^= 0x10;
                Some(bytes)
            });
            for error in errors(&flipped.await, &writers, &told).await {
                let sentence = error.to_string();
                assert!(
                    sentence.contains(key.as_str()),
                    "{told}, byte {at}: {sentence}"
                );
                assert_ne!(error.kind(), ErrorKind::Unavailable, "{told}: {sentence}");
            }

            let missing = changed(&store, key, |_| None);
            for error in errors(&missing.await, &writers, &told).await {
                let sentence = error.to_string();
                let says = [
                    "missing",
                    "does not show",
                    "no txid",
                    "no restore point",
                    "snapshot",
                ];
                assert!(
                    says.iter().any(|what| sentence.contains(what)),
                    "{told}: {sentence}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_segment_lost_in_the_middle_is_named_by_its_txid() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let mut writer = Writer::new(Arc::clone(&store), 5, 1, 512, 8).await;
    writer.exact_snapshot(false).await;
    for _ in 0..3 {
        writer.commit();
        writer.upload().await;
    }
    let lost = "generations/00000001-feed0001/wal/0/0000000000000003.wal";
    store.delete(&[lost.to_owned()]).await.unwrap();
    let replica = open_replica(&store, CACHE).await;
    for moment in [
        Moment::Latest,
        Moment::At(writer.points()[3].time),
        Moment::Txid(None, writer.points()[2].txid),
    ] {
        let error = replica.resolve(moment).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let sentence = error.to_string();
        assert!(
            sentence.contains("txid 0000000000000003 is missing"),
            "{sentence}"
        );
    }
    let before = replica
        .resolve(Moment::Txid(None, writer.points()[1].txid))
        .unwrap();
    let database = replica.open(&before).await.unwrap();
    let read = read_all(&database, &mut Random::new(1)).await.unwrap();
    assert!(read == image(&writer, &before));
    assert_eq!(replica.troubles().len(), 1);
}

#[tokio::test]
async fn what_retention_removed_is_silent_and_a_time_in_it_means_the_point_before() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let mut writer = Writer::new(Arc::clone(&store), 6, 1, 512, 8).await;
    writer.exact_snapshot(false).await;
    for _ in 0..6 {
        writer.commit();
        writer.upload().await;
    }
    writer.later_snapshot().await;
    writer.commit();
    writer.upload().await;
    let points = writer.points();
    let upload = |txid: u64| format!("generations/00000001-feed0001/wal/0/{txid:016x}.wal");
    let damaged = changed(&store, &upload(4), |_| Some(vec![0; 100])).await;
    for txid in [5, 6, 7] {
        store.delete(&[upload(txid)]).await.unwrap();
        damaged.delete(&[upload(txid)]).await.unwrap();
    }
    let said = |replica: &Arc<Replica>, moment| match replica.resolve(moment) {
        Ok(point) => format!("{:x}", point.txid.get()),
        Err(error) => format!("{:?}", error.kind()),
    };
    let at = |index: usize| Moment::At(points[index].time);
    let numbered = |index: usize| Moment::Txid(None, points[index].txid);
    let replica = open_replica(&store, CACHE).await;
    assert!(replica.troubles().is_empty());
    let times: Vec<String> = (0..8).map(|index| said(&replica, at(index))).collect();
    assert_eq!(times, ["1", "2", "3", "4", "4", "4", "7", "8"]);
    let txids: Vec<String> = (3..8)
        .map(|index| said(&replica, numbered(index)))
        .collect();
    assert_eq!(txids, ["4", "NotFound", "NotFound", "7", "8"]);
    // What is listed and cannot be read is damage, and may hold what is asked for.
    let replica = open_replica(&damaged, CACHE).await;
    let times: Vec<String> = (1..8).map(|index| said(&replica, at(index))).collect();
    let corrupt = "Corrupt";
    assert_eq!(times, ["2", "3", corrupt, corrupt, corrupt, "7", "8"]);
    // Behind the last snapshot a gap is one that nothing explains.
    writer.commit();
    writer.upload().await;
    store.delete(&[upload(8)]).await.unwrap();
    let replica = open_replica(&store, CACHE).await;
    assert_eq!(said(&replica, Moment::Latest), corrupt);
}

#[tokio::test]
async fn a_store_that_fails_once_gives_an_error_and_then_the_right_bytes() {
    let faults = [
        Fault::Refuse(ErrorKind::Unavailable),
        Fault::Cut(1),
        Fault::Flip(0),
        Fault::Refuse(ErrorKind::NotFound),
    ];
    let memory: Arc<dyn Store> = MemoryStore::new();
    let [writer, _] = build(&memory, 95, 512, 40).await;
    let point = writer.points()[writer.points().len() / 2];
    for fault in faults {
        let mut failures = 0;
        for number in 1..60 {
            let store = FaultStore::new(Arc::clone(&memory));
            let fault = match fault {
                Fault::Flip(_) => Fault::Flip(number * 4099),
                fault => fault,
            };
            store.set_rule(nth(Verb::GetRange, number, fault));
            let replica = Replica::new(store.clone(), Arc::new(BlockCache::new(CACHE)));
            loop {
                let read = async {
                    replica.refresh().await?;
                    let moment = Moment::Txid(Some(point.generation), point.txid);
                    let database = replica.open(&replica.resolve(moment)?).await?;
                    read_all(&database, &mut Random::new(number)).await
                };
                match read.await {
                    Ok(read) => {
                        assert!(read == image(&writer, &point), "{fault:?} at read {number}");
                        break;
                    }
                    Err(_) => failures += 1,
                }
                assert!(failures < 120, "{fault:?} at read {number} does not heal");
            }
        }
        let may_pass = fault == Fault::Refuse(ErrorKind::NotFound);
        assert!(may_pass || failures > 0, "{fault:?}: {failures}");
    }
}

#[tokio::test]
async fn the_lock_byte_page_reads_as_zeros() {
    // Page 16385 of 65,536 bytes holds byte 2^30. The map stores the pages around it alone.
    let store: Arc<dyn Store> = MemoryStore::new();
    let mut writer = Writer::new(Arc::clone(&store), 3, 1, 65536, 16_386).await;
    writer.sparse_snapshot(&[1, 16_384, 16_385, 16_386]).await;
    let replica = open_replica(&store, CACHE).await;
    let point = replica.resolve(Moment::Latest).unwrap();
    let database = replica.open(&point).await.unwrap();
    let ahead = ReadAhead::default();
    let read = database.read(1 << 30, 65536, &ahead).await.unwrap();
    assert!(read.iter().all(|&byte| byte == 0));
    assert!(database.read_cached(1 << 30, 65536, &ahead).is_some());
    let last = database
        .read((1 << 30) + 65536, 65536, &ahead)
        .await
        .unwrap();
    assert!(last[..] == writer.commits[&1].image[16_385][..]);
}

#[tokio::test]
async fn reads_are_cut_at_the_end_of_the_database() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let mut writer = Writer::new(Arc::clone(&store), 9, 1, 512, 3).await;
    writer.exact_snapshot(false).await;
    let replica = open_replica(&store, CACHE).await;
    let database = replica.open(&writer.points()[0]).await.unwrap();
    let ahead = ReadAhead::default();
    assert_eq!(database.size(), 1536);
    let whole = image(&writer, &writer.points()[0]);
    for (offset, length) in [
        (0, 1536),
        (0, 9999),
        (100, 1),
        (500, 20),
        (1535, 5),
        (511, 1025),
    ] {
        let end = (offset + length).min(1536);
        let read = database.read(offset as u64, length, &ahead).await.unwrap();
        assert!(
            read[..] == whole[offset..end],
            "{length} bytes from {offset}"
        );
        let cached = database.read_cached(offset as u64, length, &ahead).unwrap();
        assert_eq!(cached, read);
    }
    for offset in [1536, 99_999, u64::MAX] {
        assert_eq!(database.read(offset, 10, &ahead).await.unwrap().len(), 0);
        assert_eq!(database.read_cached(offset, 10, &ahead).unwrap().len(), 0);
    }
}

#[tokio::test]
async fn what_was_read_once_is_answered_from_memory() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let [writer, _] = build(&store, 97, 512, 60).await;
    let fault = FaultStore::new(store);
    let replica = open_replica(&(fault.clone() as Arc<dyn Store>), CACHE).await;
    let point = *writer.points().last().unwrap();
    let database = replica.open(&point).await.unwrap();
    let ahead = ReadAhead::default();
    let length = database.size() as usize;
    let read = database.read(0, length, &ahead).await.unwrap();
    let before = fault.counts(Verb::GetRange);
    assert_eq!(database.read_cached(0, length, &ahead), Some(read));
    assert_eq!(fault.counts(Verb::GetRange), before);
}

#[tokio::test]
async fn moments_share_the_blocks_that_they_share() {
    let memory: Arc<dyn Store> = MemoryStore::new();
    let mut writer = Writer::new(Arc::clone(&memory), 11, 1, 512, 400).await;
    writer.exact_snapshot(false).await;
    for _ in 0..20 {
        writer.commit();
    }
    writer.upload().await;
    let store = FaultStore::new(memory);
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    let mut random = Random::new(1);
    let points = writer.points();
    let newest = replica.open(points.last().unwrap()).await.unwrap();
    read_all(&newest, &mut random).await.unwrap();
    let before = store.counts(Verb::GetRange).calls;
    for point in &points {
        let database = replica.open(point).await.unwrap();
        assert!(read_all(&database, &mut random).await.unwrap() == image(&writer, point));
    }
    // Pages that shrinking cut off are not in the newest moment: their blocks alone are new.
    let reads = store.counts(Verb::GetRange).calls - before;
    assert!(reads <= 4, "{reads} reads for {} moments", points.len());
}

#[tokio::test]
async fn a_sequential_reader_costs_few_requests() {
    let memory: Arc<dyn Store> = MemoryStore::new();
    let mut writer = Writer::new(Arc::clone(&memory), 12, 1, 4096, 8000).await;
    writer.exact_snapshot(false).await;
    let store = FaultStore::new(memory);
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    let database = replica.open(&writer.points()[0]).await.unwrap();
    let before = store.counts(Verb::GetRange).calls;
    let ahead = ReadAhead::default();
    let whole = image(&writer, &writer.points()[0]);
    let mut hits = 0;
    let reads = database.size() / (128 << 10);
    for number in 0..reads {
        let offset = number * (128 << 10);
        let cached = database.read_cached(offset, 128 << 10, &ahead);
        hits += usize::from(cached.is_some());
        let read = match cached {
            Some(read) => read,
            None => database.read(offset, 128 << 10, &ahead).await.unwrap(),
        };
        assert!(read[..] == whole[offset as usize..][..128 << 10]);
        tokio::task::yield_now().await;
    }
    let requests = store.counts(Verb::GetRange).calls - before;
    assert!(
        requests < reads / 4,
        "{requests} requests for {reads} reads"
    );
    assert!(hits > 0);
}

#[tokio::test]
async fn a_time_is_resolved_by_parentage() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let mut parent = Writer::new(Arc::clone(&store), 21, 1, 512, 10).await;
    parent.exact_snapshot(false).await;
    for _ in 0..6 {
        parent.commit();
    }
    parent.upload().await;
    let points = parent.points();
    let mut child = parent.child(points[3].txid.get()).await;
    child.commit();
    child.upload().await;
    parent.commit();
    parent.upload().await;
    let replica = open_replica(&store, CACHE).await;
    let at = |time: Timestamp| replica.resolve(Moment::At(time)).unwrap();
    let first = child.points()[0];
    assert_eq!(at(first.time), first);
    // Before the child: its parent, but not what the parent did after the shared transaction.
    assert_eq!(
        at(Timestamp::from_micros(first.time.micros() - 1)),
        points[3]
    );
    assert_eq!(at(points[1].time), points[1]);
    assert_eq!(replica.resolve(Moment::Latest).unwrap(), child.points()[1]);
    // A bare txid is one of the newest generation that has it.
    let bare = |point: RestorePoint| replica.resolve(Moment::Txid(None, point.txid)).unwrap();
    assert_eq!(bare(points[1]), child.points()[1]);
    assert_eq!(bare(points[5]), points[5]);
    let before = Timestamp::from_micros(points[0].time.micros() - 1);
    let error = replica.resolve(Moment::At(before)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let unknown = GenerationId {
        ordinal: 9,
        random: 9,
    };
    let error = replica
        .resolve(Moment::Txid(Some(unknown), points[0].txid))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_generation_that_is_named_is_searched_alone() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let mut parent = Writer::new(Arc::clone(&store), 22, 1, 512, 10).await;
    parent.exact_snapshot(false).await;
    for _ in 0..4 {
        parent.commit();
        parent.upload().await;
    }
    let points = parent.points();
    let child = parent.child(points[1].txid.get()).await;
    let replica = open_replica(&store, CACHE).await;
    let within = |moment| replica.resolve_in(parent.id, moment);
    assert_eq!(within(Moment::Latest).unwrap(), points[4]);
    assert_eq!(within(Moment::At(points[3].time)).unwrap(), points[3]);
    let kind = |moment| replica.resolve_in(child.id, moment).unwrap_err().kind();
    assert_eq!(kind(Moment::At(points[3].time)), ErrorKind::NotFound);
    assert_eq!(
        kind(Moment::Txid(Some(parent.id), points[1].txid)),
        ErrorKind::Invalid
    );
    // What is lost behind the last point is no older answer but an error.
    let lost = "generations/00000001-feed0001/wal/0/0000000000000004.wal";
    store.delete(&[lost.to_owned()]).await.unwrap();
    replica.refresh().await.unwrap();
    let error = replica.resolve_in(parent.id, Moment::Latest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[tokio::test]
async fn points_are_listed_by_generation_time_and_number() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let [parent, child] = build(&store, 23, 512, 10).await;
    let replica = open_replica(&store, CACHE).await;
    let all: Vec<RestorePoint> = [parent.points(), child.points()].concat();
    let query = PointsQuery::default();
    assert_eq!(replica.points(&query), all);
    let newest = Some(5);
    let listed = replica.points(&PointsQuery { newest, ..query });
    assert_eq!(listed, all[all.len() - 5..]);
    let generation = Some(parent.points()[0].generation);
    let listed = replica.points(&PointsQuery {
        generation,
        ..query
    });
    assert_eq!(listed, parent.points());
    let (since, until) = (Some(all[2].time), Some(all[6].time));
    let listed = replica.points(&PointsQuery {
        since,
        until,
        ..query
    });
    let within = |p: &&RestorePoint| all[2].time <= p.time && p.time <= all[6].time;
    assert_eq!(
        listed,
        all.iter().filter(within).copied().collect::<Vec<_>>()
    );
}
