use super::*;
use crate::error::{Error, Result};
use crate::format::ids::RestorePoint;
use crate::format::key::{Key, ObjectKey};
use crate::materialize::cache::BlockCache;
use crate::materialize::model::{Random, Writer, build_tangled, image, open_replica, read_all};
use crate::materialize::replica::{PointsQuery, Replica};
use crate::storage::fault::{FaultStore, Verb};
use crate::storage::memory::MemoryStore;
use crate::storage::{Body, Listed, Store};
use std::sync::Arc;

fn txid(number: u64) -> Txid {
    Txid::new(number).unwrap()
}

fn second(number: u64) -> Timestamp {
    Timestamp::from_micros(number as i64 * 1_000_000)
}

fn generation(ordinal: u32) -> GenerationId {
    GenerationId { ordinal, random: 7 }
}

/// Objects as words: `snap@10`, `seg@11` (an upload), `seg1@2-9` (level 1), each stored as second
/// as its last txid says; `claim` before those of the generation that follows.
fn listing(text: &[&str]) -> Catalog {
    let mut objects = Vec::new();
    for (ordinal, words) in (1..).zip(text) {
        for word in words.split_whitespace() {
            let (kind, place) = word.split_once('@').unwrap_or((word, "1"));
            let (first, last) = place.split_once('-').unwrap_or((place, place));
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            let object = match kind {
                "claim" => ObjectKey::Claim,
                "snap" => ObjectKey::Snapshot {
                    txid: txid(first),
                    time: second(first),
                    hash8: 1,
                },
                "seg" => ObjectKey::Upload { first: txid(first) },
                _ => ObjectKey::Merged {
                    level: kind["seg".len()..].parse().unwrap(),
                    first: txid(first),
                    last: txid(last),
                    time: second(last),
                    hash8: 1,
                },
            };
            let key = Key {
                generation: generation(ordinal),
                object,
            };
            objects.push(Listed {
                key: key.to_string(),
                size: 1,
                modified: second(1),
            });
        }
    }
    Catalog::new(objects)
}

/// The same words of what was selected; `<seg` is a border, `(snap` is needed if the base carries
/// no interior pages.
fn said(catalog: &Catalog, selection: &Selection) -> String {
    let mut words = Vec::new();
    let segment = |segment: &SegmentListing| match (segment.level, segment.last) {
        (0, _) => format!("seg@{}", segment.first.get()),
        (level, last) => {
            let last = last.unwrap().get();
            format!("seg{level}@{}-{last}", segment.first.get())
        }
    };
    for (id, listing) in &selection.catalog.generations {
        if catalog.generations.len() > 1 {
            words.push(format!("{}:", id.ordinal));
        }
        words.extend(listing.claim.iter().map(|_| "claim".to_owned()));
        let first = selection.interior.iter().filter(|(of, _)| of == id);
        words.extend(first.map(|(_, s)| format!("(snap@{})", s.txid.get())));
        let snapshots = listing.snapshots.iter();
        words.extend(snapshots.map(|s| format!("snap@{}", s.txid.get())));
        let mine = selection.borders.iter().filter(|(of, _)| of == id);
        words.extend(mine.map(|(_, border)| format!("<{}", segment(border))));
        words.extend(listing.segments.iter().map(segment));
    }
    words.join(" ")
}

/// What is selected of generations, whose parents are (generation, txid), each the one before.
#[track_caller]
fn check(text: &[&str], parents: &[u64], moment: &str, expect: &str) {
    let catalog = listing(text);
    let moment = match (moment, moment.strip_prefix("at ")) {
        ("latest", _) => Moment::Latest,
        (_, Some(time)) => Moment::At(second(time.parse().unwrap())),
        (number, None) => Moment::Txid(None, txid(number.parse().unwrap())),
    };
    let claims = |id: GenerationId| {
        let shared = parents.get(id.ordinal as usize - 1)?;
        Some(txid(*shared)).map(|shared| {
            (id.ordinal > 1).then_some(Parent {
                generation: generation(id.ordinal - 1),
                txid: shared,
            })
        })
    };
    let narrowed = match narrow(&catalog, &claims, moment, None) {
        Narrowed::To(selection) => said(&catalog, &selection),
        Narrowed::Unclear => "unclear".to_owned(),
        Narrowed::Claims(ids) => {
            let ids: Vec<String> = ids.iter().map(|id| id.ordinal.to_string()).collect();
            format!("claims {}", ids.join(" "))
        }
    };
    assert_eq!(narrowed, expect);
}

#[test]
fn a_moment_needs_the_snapshot_before_it_and_the_segments_up_to_it() {
    let all = "claim snap@1 seg2@2-40 snap@40 seg1@41-50 seg1@51-60 seg@61 seg@70";
    let one = |moment, expect| check(&[all], &[], moment, expect);
    one("45", "(snap@1) snap@40 <seg2@2-40 seg1@41-50");
    one("at 45", "(snap@1) snap@40 <seg2@2-40 seg1@41-50");
    one("at 50", "(snap@1) snap@40 <seg2@2-40 seg1@41-50");
    one("51", "(snap@1) snap@40 <seg2@2-40 seg1@41-50 seg1@51-60");
    one("40", "(snap@1) snap@40");
    one("at 40", "(snap@1) snap@40");
    one("1", "snap@1");
    one("20", "claim snap@1 seg2@2-40");
    one(
        "65",
        "(snap@1) snap@40 <seg2@2-40 seg1@41-50 seg1@51-60 seg@61",
    );
    let tail = "(snap@1) snap@40 <seg2@2-40 seg1@41-50 seg1@51-60 seg@61 seg@70";
    one("at 61", tail);
    one("latest", tail);
    one("99", tail);
    one("at 99", tail);
}

#[test]
fn a_first_snapshot_may_need_all_since_the_beginning() {
    let all = "claim snap@20 seg1@2-10 seg1@11-20 seg1@21-30 snap@30 seg@31";
    check(&[all], &[], "20", "claim snap@20 seg1@2-10 seg1@11-20");
    check(&[all], &[], "at 20", "claim snap@20 seg1@2-10 seg1@11-20");
    let more = "claim snap@20 seg1@2-10 seg1@11-20 seg1@21-30";
    check(&[all], &[], "25", more);
    check(&[all], &[], "31", "(snap@20) snap@30 <seg1@21-30 seg@31");
    check(&[all], &[], "19", "unclear");
    check(&[all], &[1], "at 19", "unclear");
    let kept = ["snap@20 seg1@21-30 snap@30"];
    check(&kept, &[], "25", "snap@20 seg1@21-30");
}

#[test]
fn a_gap_that_a_snapshot_ends_is_read_up_to_that_and_others_are_unclear() {
    let gap = ["snap@1 seg1@2-10 snap@40 seg1@41-50"];
    check(&gap, &[], "at 20", "snap@1 snap@40 seg1@2-10");
    check(&gap, &[], "8", "snap@1 seg1@2-10");
    let left = ["snap@1 seg1@2-10 seg1@21-40 snap@40 seg1@41-50"];
    check(&left, &[], "at 20", "unclear");
    check(&left, &[], "20", "unclear");
    let open = ["snap@1 seg1@2-10 seg1@21-40"];
    check(&open, &[], "at 20", "unclear");
    check(&open, &[], "latest", "unclear");
    check(&open, &[], "at 9", "snap@1 seg1@2-10");
}

#[test]
fn the_time_in_a_name_counts_where_the_piece_ends_with_its_segment() {
    let cut = ["snap@1 seg1@2-20 seg2@15-30 seg1@31-40"];
    check(&cut, &[], "at 18", "snap@1 seg1@2-20 seg2@15-30");
    check(&cut, &[], "18", "snap@1 seg1@2-20 seg2@15-30");
    check(&cut, &[], "14", "snap@1 seg1@2-20");
}

#[test]
fn a_time_before_a_generation_is_looked_for_by_its_claim() {
    let two = [
        "claim snap@1 seg1@2-40",
        "claim snap@50 seg1@51-60",
        "claim snap@70",
    ];
    check(&two, &[], "at 30", "claims 3 2");
    check(
        &two,
        &[1, 35, 55],
        "at 30",
        "1: claim snap@1 seg1@2-40 3: snap@70",
    );
    check(
        &two,
        &[1, 35, 55],
        "at 65",
        "2: snap@50 seg1@51-60 3: snap@70",
    );
    check(
        &two,
        &[1, 35, 45],
        "at 65",
        "1: claim snap@1 seg1@2-40 3: snap@70",
    );
    check(&two, &[1, 35, 55], "at 80", "3: snap@70");
    check(&two, &[], "latest", "3: snap@70");
    check(&["snap@10", "snap@20"], &[], "at 15", "unclear");
}

#[test]
fn a_bare_txid_is_one_of_the_highest_generation_that_may_have_it() {
    let two = ["claim snap@1 seg1@2-40", "claim snap@1 seg1@2-10 seg@11"];
    check(&two, &[], "5", "2: claim snap@1 seg1@2-10");
    check(
        &two,
        &[],
        "12",
        "1: claim snap@1 seg1@2-40 2: claim snap@1 seg1@2-10 seg@11",
    );
    let ends = ["claim snap@1 seg1@2-40", "claim snap@1 seg1@2-10"];
    check(
        &ends,
        &[],
        "12",
        "1: claim snap@1 seg1@2-40 2: claim snap@1 seg1@2-10",
    );
    check(
        &["claim snap@1 seg@2", "snap@9"],
        &[],
        "3",
        "1: claim snap@1 seg@2",
    );
    check(&["claim seg@2"], &[], "3", "unclear");
    check(&[], &[], "3", "unclear");
}

/// What a moment gives on a cold reader: the point, and all its bytes.
async fn read(replica: &Arc<Replica>, point: RestorePoint) -> Result<Vec<u8>> {
    let database = replica.open(&point).await?;
    read_all(&database, &mut Random::new(1)).await
}

fn shown<T: std::fmt::Debug>(result: &Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{:?}: {error}", error.kind()),
    }
}

/// Moments at, around and far from the points that there are, by any name.
fn moments(writers: &[Writer], random: &mut Random) -> Vec<(Moment, Option<GenerationId>)> {
    let unknown = GenerationId {
        ordinal: 9,
        random: 9,
    };
    let mut ids: Vec<Option<GenerationId>> = writers.iter().map(|w| Some(w.id)).collect();
    ids.extend([None, None, None, None]);
    let any = |random: &mut Random| ids[random.below(ids.len() as u64) as usize];
    let mut moments = vec![
        (Moment::Latest, None),
        (Moment::Latest, any(random)),
        (Moment::At(second(1)), None),
        (Moment::At(second(9_000_000_000)), any(random)),
        (Moment::Txid(None, txid(500)), any(random)),
        (Moment::Txid(Some(unknown), txid(2)), None),
        (Moment::Latest, Some(unknown)),
    ];
    for writer in writers {
        let commits: Vec<(&u64, _)> = writer.commits.iter().collect();
        for _ in 0..5 {
            let (number, commit) = commits[random.below(commits.len() as u64) as usize];
            let near = random.below(3) as i64 - 1;
            let time = Timestamp::from_micros(commit.time.micros() + near);
            moments.push((Moment::At(time), any(random)));
            moments.push((Moment::Txid(any(random), txid(*number)), any(random)));
        }
    }
    moments
}

/// Both ways must come to the same; returns how often names alone sufficed.
async fn compare(store: &Arc<dyn Store>, writers: &[Writer], seed: u64, told: &str) -> [u64; 2] {
    let mut random = Random::new(seed);
    let full = open_replica(store, 1 << 20).await;
    let mut counts = [0, 0];
    for (moment, generation) in moments(writers, &mut random) {
        let told = format!("{told}: {moment:?} in {generation:?}");
        let counted = FaultStore::new(Arc::clone(store));
        let cache = Arc::new(BlockCache::new(1 << 20));
        let lazy = Replica::new(counted.clone(), cache);
        let located = lazy.locate(moment, generation).await;
        let resolved = match generation {
            Some(id) => full.resolve_in(id, moment),
            None => full.resolve(moment),
        };
        assert_eq!(shown(&located), shown(&resolved), "{told}");
        counts[usize::from(counted.counts(Verb::List).calls > 1)] += 1;
        if let (Ok(point), true) = (located, random.percent(40)) {
            // A cold one, too: what others read may be in the cache twice.
            let full = open_replica(store, 1 << 20).await;
            let (lazily, fully) = (read(&lazy, point).await, read(&full, point).await);
            // Of several damaged objects either may be met first.
            let kind = |read: &Result<Vec<u8>>| read.as_ref().err().map(Error::kind);
            assert_eq!(kind(&lazily), kind(&fully), "{told}");
            assert!(lazily.ok().unwrap_or_default() == *fully.as_deref().unwrap_or_default());
            let writer = writers.iter().find(|w| w.id == point.generation).unwrap();
            assert!(
                fully.is_err() || fully.unwrap() == image(writer, &point),
                "{told}"
            );
        }
        if random.percent(10) {
            lazy.refresh().await.unwrap();
            let all = PointsQuery::default();
            assert_eq!(lazy.points(&all), full.points(&all), "{told}");
        }
    }
    counts
}

/// The same objects but for some: gone, cut, or with a bit that is wrong.
async fn damaged(store: &Arc<dyn Store>, random: &mut Random, chance: u64) -> Arc<dyn Store> {
    let copy: Arc<dyn Store> = MemoryStore::new();
    for listed in store.list("", None).await.unwrap() {
        let bytes = store.get_range(&listed.key, 0, listed.size).await.unwrap();
        let mut bytes = bytes.to_vec();
        if random.percent(chance) {
            match random.below(3) {
                0 => continue,
                1 => bytes.truncate(random.below(listed.size) as usize),
                _ => bytes[random.below(listed.size) as usize] ^= 1,
            }
        }
        let body = Body::Bytes(bytes.into());
        copy.put(&listed.key, body).await.unwrap();
    }
    copy
}

#[tokio::test]
async fn what_names_narrow_means_the_same_as_the_whole_listing() {
    let mut whole = [0, 0];
    for seed in [859, 260].into_iter().chain(200..230) {
        let store: Arc<dyn Store> = MemoryStore::new();
        let writers = build_tangled(&store, seed, 512, 12).await;
        let told = format!("seed {seed}");
        let [once, again] = compare(&store, &writers, seed, &told).await;
        whole = [whole[0] + once, whole[1] + again];
        let mut random = Random::new(seed);
        for chance in [3, 10, 30] {
            let damaged = damaged(&store, &mut random, chance).await;
            if !damaged.list("", None).await.unwrap().is_empty() {
                let told = format!("seed {seed}, {chance} % damaged");
                compare(&damaged, &writers, seed + chance, &told).await;
            }
        }
    }
    // What is no point is looked for twice.
    assert!(whole[0] > 2 * whole[1], "{whole:?}");
}
