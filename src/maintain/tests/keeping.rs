//! A keeper on replicas where something is wrong.

use super::*;
use crate::config::settings::Retention;
use crate::maintain::keeper::{Behalf, KeepSettings, Keeper, Round};
use crate::storage::fault::{FaultStore, Verb};
use futures_util::FutureExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A keeper that keeps every commit, and takes no snapshot because of time.
fn keeper(model: &Model) -> Keeper {
    keeper_with(model, CENTURY)
}

/// A keeper that keeps every commit.
fn keeper_with(model: &Model, snapshot_interval: Duration) -> Keeper {
    let workshop = Workshop {
        directory: model.workshop.directory.join("not there yet"),
        ..model.workshop.clone()
    };
    let settings = KeepSettings {
        retention: Retention {
            all: Some(CENTURY),
            hourly: None,
            daily: None,
        },
        snapshot_interval,
        merged_grace: Duration::from_secs(3600),
        notes: None,
    };
    Keeper::new(workshop, settings).unwrap()
}

async fn round(keeper: &mut Keeper, model: &Model) -> Round {
    let behalf = Behalf::Writer(GENERATION, txid(model.last()));
    keeper.round(behalf).await.unwrap()
}

async fn uploads(count: usize) -> Model {
    let mut model = Model::new(20).await;
    for number in 0..count {
        model
            .upload(&[writes([1, 2 + number as u32 % 18], 20)])
            .await;
    }
    model
}

/// Keys and bytes of the segments that are listed.
async fn segments(model: &Model) -> Vec<(String, u64)> {
    let listed = model.store().list("generations/", None).await.unwrap();
    let segments = listed.into_iter().filter(|o| o.key.ends_with(".wal"));
    segments.map(|object| (object.key, object.size)).collect()
}

/// Puts the same object with another byte in its first block.
async fn damage(model: &Model, (key, size): &(String, u64)) {
    let bytes = get_exactly(model.store(), key, 0, *size).await.unwrap();
    let mut bytes = bytes.to_vec();
    bytes[280] ^= 1;
    let keys = [key.clone()];
    model.store().delete(&keys).await.unwrap();
    model
        .store()
        .put(key, Body::Bytes(bytes.into()))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_damaged_upload_stays_and_those_beside_it_are_merged() {
    let model = uploads(200).await;
    let damaged = model.input(100);
    damage(&model, &damaged).await;
    let mut keeper = keeper(&model);
    let done = round(&mut keeper, &model).await;
    assert!(done.merges >= 3, "{done:?}");
    assert!(done.deleted.0 > 150, "{done:?}");
    let left = segments(&model).await;
    let left: Vec<&str> = left
        .iter()
        .map(|(key, _)| key.as_str())
        .filter(|key| level(key) == 0)
        .collect();
    assert_eq!(left, [damaged.0.as_str()]);
    assert_eq!(round(&mut keeper, &model).await.merges, 0);
}

#[tokio::test]
async fn after_a_start_what_was_merged_before_is_accounted_for_and_goes() {
    let mut model = Model::new(4000).await;
    for _ in 0..2 {
        model.upload(&[writes(1..=4000, 4000)]).await;
    }
    let inputs: Vec<_> = (0..2).map(|index| model.input(index)).collect();
    let asked = Merge {
        generation: GENERATION,
        inputs: inputs.clone(),
        level: 1,
        keep: None,
    };
    let merged = merge(&model.workshop, &asked).await.unwrap();
    let mut keeper = keeper(&model);
    let done = round(&mut keeper, &model).await;
    assert_eq!(done.deleted.0, 0, "nobody had told of the merged segment");
    let done = round(&mut keeper, &model).await;
    assert_eq!((done.merges, done.deleted.0), (0, 2));
    assert_eq!(segments(&model).await, [(merged.key, merged.length)]);
}

#[tokio::test]
async fn a_snapshot_is_taken_although_each_merge_before_it_takes_as_long_as_the_next_upload() {
    let mut model = uploads(60).await;
    let memory = model.workshop.store.clone();
    let mut arriving = Vec::new();
    for index in (30..60).rev() {
        let (key, size) = model.input(index);
        let bytes = get_exactly(&*memory, &key, 0, size).await.unwrap();
        memory.delete(std::slice::from_ref(&key)).await.unwrap();
        arriving.push((key, bytes));
    }
    let arriving = Arc::new(Mutex::new(arriving));
    let store = FaultStore::new(memory.clone());
    model.workshop.store = store.clone();
    let queue = arriving.clone();
    store.set_rule(move |call| {
        let is_merge = call.verb == Verb::Put && call.key.ends_with(".wal");
        if let Some((key, bytes)) = queue.lock().unwrap().pop_if(|_| is_merge) {
            let put = memory.put(&key, Body::Bytes(bytes)).now_or_never();
            put.expect("memory does not wait").unwrap();
        }
        None
    });
    let mut keeper = keeper_with(&model, Duration::from_secs(1));
    let taken = round(&mut keeper, &model).await.snapshot.unwrap();
    let left = arriving.lock().unwrap().len() as u64;
    assert!((1..30).contains(&left), "{left} of 30 are still to come");
    assert!(taken.txid < txid(model.last() - left), "{taken:?}");
    let image = model.read_snapshot(&taken.key).await.unwrap();
    assert_eq!(image, model.states[taken.txid.get() as usize - 1]);
}

/// A claim that nobody can read.
async fn claim(model: &Model, generation: GenerationId) -> String {
    let object = ObjectKey::Claim;
    let key = Key { generation, object }.to_string();
    let body = Body::Bytes("no claim".into());
    model.store().put(&key, body).await.unwrap();
    key
}

#[tokio::test]
async fn while_a_claim_cannot_be_read_nothing_is_deleted() {
    let model = uploads(200).await;
    let key = claim(&model, GENERATION).await;
    let mut keeper = keeper(&model);
    let done = round(&mut keeper, &model).await;
    assert!(done.merges >= 3, "{done:?}");
    assert_eq!(done.deleted.0, 0);
    assert_eq!(round(&mut keeper, &model).await.deleted.0, 0);
    model.store().delete(&[key]).await.unwrap();
    let done = round(&mut keeper, &model).await;
    assert!(done.deleted.0 > 150, "{done:?}");
}

#[tokio::test]
async fn whom_another_writer_has_superseded_changes_nothing() {
    let model = uploads(200).await;
    let mut keeper = keeper(&model);
    claim(&model, FORK).await;
    let before = segments(&model).await;
    assert_eq!(round(&mut keeper, &model).await, Round::default());
    assert_eq!(segments(&model).await, before);
}

#[tokio::test]
async fn a_snapshot_is_no_good_if_what_it_needs_goes_while_it_is_stored() {
    let mut model = uploads(3).await;
    let memory = model.workshop.store.clone();
    let store = FaultStore::new(memory.clone());
    model.workshop.store = store.clone();
    let (base, size, since) = model.snapshots[0].clone();
    let home = base.clone();
    store.set_rule(move |call| {
        if call.verb == Verb::Put {
            let deleted = memory.delete(std::slice::from_ref(&home)).now_or_never();
            deleted.expect("memory does not wait").unwrap();
        }
        None
    });
    let later = Later {
        base: (base.clone(), size),
        segments: model.behind(since, model.last()),
        place: Place::Later,
    };
    let error = later::take(&model.workshop, &later).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let words = format!("{base}, which a new snapshot needs, is gone; it is taken again");
    assert!(error.to_string().contains(&words), "{error}");
}

#[tokio::test]
async fn no_fork_is_made_of_what_retention_has_dropped() {
    let model = uploads(104).await;
    let made = async |range: std::ops::Range<usize>, level, keep: Option<Vec<u64>>| {
        let asked = Merge {
            generation: GENERATION,
            inputs: range.map(|index| model.input(index)).collect(),
            level,
            keep: keep.map(|keep| keep.into_iter().map(txid).collect()),
        };
        let merged = merge(&model.workshop, &asked).await.unwrap();
        (merged.key, merged.length)
    };
    // Of what txid 30 wrote, 20 and 65 see nothing that 50 does not.
    let thinned = made(0..64, 2, Some(vec![20, 65])).await;
    let whole = made(38..104, 3, None).await;
    let take = async |through: u64| {
        let (first, second) = (thinned.clone(), whole.clone());
        let segments = vec![
            (first.0, first.1, txid(2)..=txid(39)),
            (second.0, second.1, txid(40)..=txid(through)),
        ];
        model.fork_of(&model.snapshots[0], segments, through).await
    };
    let error = take(50).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let sentence = format!(
        "take a snapshot: {} does not hold all of txid {}",
        thinned.0,
        txid(50)
    );
    assert_eq!(error.to_string(), sentence);
    let taken = take(80).await.unwrap();
    assert_eq!(
        model.read_snapshot(&taken.key).await.unwrap(),
        model.states[79]
    );
}
