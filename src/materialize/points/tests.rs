use crate::format::ids::{RestorePoint, Timestamp, Txid};
use crate::format::moment::Moment;
use crate::materialize::model::{Random, Writer, open_replica};
use crate::materialize::replica::{PointsQuery, Replica};
use crate::storage::Store;
use crate::storage::memory::MemoryStore;
use std::sync::Arc;

/// Three generations, each going on from the middle of the one before.
async fn forked(seed: u64) -> (Arc<Replica>, Random) {
    let store: Arc<dyn Store> = MemoryStore::new();
    let mut random = Random::new(seed);
    let mut writer = Writer::new(Arc::clone(&store), seed, 1, 512, 5).await;
    writer.exact_snapshot(false).await;
    for generation in 0..3 {
        if generation > 0 {
            let shared = 1 + random.below(writer.last());
            writer = writer.child(shared).await;
        }
        for _ in 0..random.below(12) {
            for _ in 0..=random.below(5) {
                writer.commit();
            }
            writer.upload().await;
        }
    }
    (open_replica(&store, 1 << 20).await, random)
}

fn means(replica: &Replica, time: Timestamp) -> Option<RestorePoint> {
    replica.resolve(Moment::At(time)).ok()
}

#[tokio::test]
async fn all_points_are_those_of_every_generation_in_order() {
    for seed in 0..30 {
        let (replica, mut random) = forked(seed).await;
        let expect = replica.points(&PointsQuery::default());
        let points = replica.all_points();
        assert_eq!(points.count(), expect.len());
        assert_eq!(points.from(0).collect::<Vec<_>>(), expect);
        for _ in 0..20 {
            let index = random.below(expect.len() as u64 + 2) as usize;
            assert_eq!(points.get(index), expect.get(index).copied());
            let rest: Vec<_> = points.from(index).collect();
            assert_eq!(rest, expect.get(index..).unwrap_or(&[]));
            let generation = expect[random.below(expect.len() as u64) as usize].generation;
            let txid = Txid::new(1 + random.below(40)).unwrap();
            let through = expect.partition_point(|p| (p.generation, p.txid) <= (generation, txid));
            assert_eq!(points.count_through(generation, txid), through);
        }
    }
}

#[tokio::test]
async fn points_by_time_are_those_that_their_own_times_mean() {
    let mut hidden = 0;
    for seed in 0..30 {
        let (replica, _) = forked(seed).await;
        let all = replica.points(&PointsQuery::default());
        let own = |point: &&RestorePoint| means(&replica, point.time) == Some(**point);
        let expect: Vec<RestorePoint> = all.iter().filter(own).copied().collect();
        hidden += all.len() - expect.len();
        let points = replica.points_by_time();
        assert_eq!(points.from(0).collect::<Vec<_>>(), expect, "seed {seed}");
        for point in &all {
            for micros in [-1, 0, 1] {
                let time = Timestamp::from_micros(point.time.micros() + micros);
                let until = points.count_until(time);
                let last = until.checked_sub(1).and_then(|index| points.get(index));
                assert_eq!(last, means(&replica, time), "seed {seed}, {time}");
            }
        }
    }
    assert!(hidden > 100, "{hidden} points that later generations hide");
}

#[tokio::test]
async fn points_stay_as_they_were_when_the_replica_goes_on() {
    let store: Arc<dyn Store> = MemoryStore::new();
    let mut writer = Writer::new(Arc::clone(&store), 1, 1, 512, 5).await;
    writer.exact_snapshot(false).await;
    let replica = open_replica(&store, 1 << 20).await;
    let before = replica.points_by_time();
    writer.commit();
    writer.upload().await;
    replica.refresh().await.unwrap();
    assert_eq!((before.count(), replica.points_by_time().count()), (1, 2));
    assert_eq!(before.page_size(writer.id), Some(512));
}

#[test]
fn a_replica_without_anything_has_no_points() {
    let points = super::Points::default();
    assert_eq!((points.count(), points.get(0)), (0, None));
    assert_eq!(points.count_until(Timestamp::from_micros(0)), 0);
}
