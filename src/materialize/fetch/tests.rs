use super::*;
use crate::error::ErrorKind;
use crate::format::ids::Timestamp;
use crate::materialize::model::{Writer, image, open_replica};
use crate::materialize::pages::{Database, ReadAhead};
use crate::storage::Listed;
use crate::storage::fault::{Fault, FaultStore, Verb, every};
use crate::storage::memory::MemoryStore;
use std::time::Duration;

/// The beginning of a database that is in memory once it is open.
const FIRST_PAGES: u64 = 16;

/// A database of one block beside its beginning, opened, and that block's pages.
async fn one_block() -> (Arc<FaultStore>, Arc<Database>, Vec<u8>) {
    let memory: Arc<dyn Store> = MemoryStore::new();
    let mut writer = Writer::new(Arc::clone(&memory), 1, 1, 4096, 32).await;
    writer.exact_snapshot(false).await;
    let store = FaultStore::new(memory);
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), 1 << 20).await;
    let point = writer.points()[0];
    let database = replica.open(&point).await.unwrap();
    let pages = image(&writer, &point).split_off(FIRST_PAGES as usize * 4096);
    (store, database, pages)
}

fn read(database: &Arc<Database>, page: u64) -> tokio::task::JoinHandle<Result<Bytes>> {
    let database = Arc::clone(database);
    tokio::spawn(async move {
        database
            .read((FIRST_PAGES + page) * 4096, 4096, &ReadAhead::default())
            .await
    })
}

#[tokio::test]
async fn readers_of_one_block_share_one_fetch() {
    let (store, database, whole) = one_block().await;
    let before = store.counts(Verb::GetRange).calls;
    let readers: Vec<_> = (0..16).map(|page| read(&database, page)).collect();
    for (page, reader) in readers.into_iter().enumerate() {
        let bytes = reader.await.unwrap().unwrap();
        assert!(bytes[..] == whole[page * 4096..][..4096]);
    }
    assert_eq!(store.counts(Verb::GetRange).calls - before, 1);
}

#[tokio::test]
async fn a_failed_fetch_is_an_error_for_all_that_wait_and_is_tried_again_by_the_next() {
    let (store, database, _) = one_block().await;
    store.set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
    let before = store.counts(Verb::GetRange).calls;
    let readers: Vec<_> = (0..8).map(|page| read(&database, page)).collect();
    for reader in readers {
        let error = reader.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    assert_eq!(store.counts(Verb::GetRange).calls - before, 1);
    store.heal();
    assert!(read(&database, 3).await.unwrap().is_ok());
}

#[tokio::test]
async fn wrong_bytes_name_object_and_offset_and_are_not_kept() {
    let (store, database, _) = one_block().await;
    store.set_rule(every(Fault::Flip(5000)));
    for _ in 0..2 {
        let error = read(&database, 3).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let sentence = error.to_string();
        assert!(sentence.contains(".snapshot, offset "), "{sentence}");
    }
    store.heal();
    assert!(read(&database, 3).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_reader_that_gives_up_strands_nobody() {
    let (store, database, whole) = one_block().await;
    store.set_rule(every(Fault::Delay(Duration::from_millis(20))));
    let before = store.counts(Verb::GetRange).calls;
    let first = read(&database, 1);
    while store.counts(Verb::GetRange).calls == before {
        tokio::task::yield_now().await;
    }
    let second = read(&database, 2);
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let bytes = tokio::time::timeout(Duration::from_secs(30), second).await;
    assert!(bytes.unwrap().unwrap().unwrap()[..] == whole[8192..][..4096]);
    assert_eq!(store.counts(Verb::GetRange).calls - before, 1);
}

#[tokio::test]
async fn a_duty_that_is_dropped_wakes_those_who_wait() {
    let flights: Arc<Flights<u32, u32>> = Arc::default();
    let (seat, takeoff) = flights.board(1, || None);
    let (waiting, nothing) = flights.board(1, || None);
    assert!(nothing.is_none());
    drop(takeoff);
    assert_eq!(
        seat.landed().await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(
        waiting.landed().await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    let (seat, takeoff) = flights.board(1, || None);
    takeoff.unwrap().land(Ok(7));
    assert_eq!(seat.landed().await.unwrap(), 7);
    let (seat, takeoff) = flights.board(1, || Some(8));
    assert!(takeoff.is_none());
    assert_eq!(seat.landed().await.unwrap(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_learns_of_a_failure_and_reads_again_boards_nothing_that_failed() {
    for round in 0..500 {
        let flights: Arc<Flights<u32, u32>> = Arc::default();
        let [first, second] = [1, 2].map(|key| flights.board(key, || None));
        let both = tokio::spawn(all_landed(vec![first.0, second.0]));
        let fail = |takeoff: Option<Takeoff<u32, u32>>| {
            let takeoff = takeoff.expect("nobody else fetches it");
            takeoff.land(Err(Error::unavailable("away")));
        };
        tokio::spawn(async move {
            fail(first.1);
            fail(second.1);
        });
        both.await.unwrap().unwrap_err();
        for key in [1, 2] {
            let (_, takeoff) = flights.board(key, || None);
            assert!(takeoff.is_some(), "round {round}, {key}");
        }
    }
}

#[test]
fn neighbours_are_read_at_once_up_to_a_limit() {
    let cache = BlockCache::new(0);
    let object = |key: &str| {
        let listed = Listed {
            key: key.to_owned(),
            size: 1 << 30,
            modified: Timestamp::from_micros(1),
        };
        let store = MemoryStore::new();
        Arc::new(Object::new(cache.number_object(), &*store, &listed))
    };
    let (one, two) = (object("one"), object("two"));
    let at = |object: &Arc<Object>, offset, length| Request {
        object: Arc::clone(object),
        offset,
        length,
        then: (),
    };
    let far = 1 << 20;
    let requests = vec![
        at(&one, far, 10),
        at(&one, 0, 10),
        at(&two, 20, 10),
        at(&one, 10, 10),
        at(&one, 20 + GAP_BYTES, 10),
        at(&one, far + 10, 95),
    ];
    let groups: Vec<_> = coalesce(requests, far / 2)
        .iter()
        .map(|group| {
            (
                group.object.key.clone(),
                group.offset,
                group.length,
                group.members.len(),
            )
        })
        .collect();
    let named = |key: &str, offset, length, members| (key.to_owned(), offset, length, members);
    let expected = [
        named("one", 0, 30 + GAP_BYTES, 3),
        named("one", far, 105, 2),
        named("two", 20, 10, 1),
    ];
    assert_eq!(groups, expected);
    let pair = vec![at(&one, 0, 60), at(&one, 60, 60)];
    assert_eq!(coalesce(pair, 100).len(), 2);
}
