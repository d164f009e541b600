use super::*;
use crate::storage::conformance::check_store;
use crate::storage::memory::MemoryStore;

async fn store() -> Arc<FaultStore> {
    let store = FaultStore::new(MemoryStore::new());
    put(&*store, "a", "0123456789").await.unwrap();
    store
}

async fn put(store: &dyn Store, key: &str, text: &'static str) -> Result<Put> {
    store
        .put(key, Body::Bytes(Bytes::from_static(text.as_bytes())))
        .await
}

async fn keys(store: &dyn Store) -> Vec<String> {
    let listed = store.list("", None).await.unwrap();
    listed.into_iter().map(|object| object.key).collect()
}

#[tokio::test]
async fn without_a_rule_it_is_the_store_that_it_wraps() {
    check_store(|| FaultStore::new(MemoryStore::new())).await;
}

#[tokio::test]
async fn a_refused_call_does_nothing_and_says_which_it_was() {
    let store = store().await;
    store.set_rule(nth(Verb::Put, 3, Fault::Refuse(ErrorKind::Conflict)));
    put(&*store, "b", "").await.unwrap();
    let error = put(&*store, "c", "").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(
        error.to_string(),
        "Put number 3 of c in memory: refused, as told"
    );
    put(&*store, "d", "").await.unwrap();
    assert_eq!(keys(&*store).await, ["a", "b", "d"]);
}

#[tokio::test]
async fn a_call_whose_reply_is_lost_has_done_its_work() {
    let store = store().await;
    store.set_rule(every(Fault::LoseReply));
    let error = put(&*store, "b", "").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(store.delete(&["a".to_string()]).await.is_err());
    assert!(store.list("", None).await.is_err());
    assert!(store.list_folder("").await.is_err());
    assert!(store.get_range("b", 0, 0).await.is_err());
    store.heal();
    assert_eq!(keys(&*store).await, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_call_works_later() {
    let store = store().await;
    let start = tokio::time::Instant::now();
    store.set_rule(nth(
        Verb::GetRange,
        1,
        Fault::Delay(Duration::from_secs(60)),
    ));
    assert_eq!(&store.get_range("a", 0, 1).await.unwrap()[..], b"0");
    assert_eq!(start.elapsed().as_secs(), 60);
    store.get_range("a", 0, 1).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 60);
}

#[tokio::test]
async fn a_read_is_cut_or_changed_in_one_bit_and_the_object_is_not() {
    let store = store().await;
    for (fault, expect) in [
        (Fault::Cut(1), "01234567"),
        (Fault::Cut(20), ""),
        (Fault::Flip(0), "112345678"),
        (Fault::Flip(9 * 8 + 1), "212345678"),
        (Fault::Flip(8 * 8), "012345679"),
    ] {
        store.set_rule(every(fault));
        let read = store.get_range("a", 0, 9).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&read), expect, "{fault:?}");
        assert_eq!(store.get_range("a", 0, 0).await.unwrap(), "", "{fault:?}");
    }
    store.heal();
    assert_eq!(store.get_range("a", 0, 9).await.unwrap(), "012345678");
}

#[tokio::test]
async fn calls_and_bytes_are_counted_below_too_and_a_rule_sees_whole_keys() {
    let store = store().await;
    let below = store.below("app");
    put(&*below, "b", "12345").await.unwrap();
    below.get_range("b", 1, 3).await.unwrap();
    below.get_range("absent", 1, 3).await.unwrap_err();
    below.delete(&[]).await.unwrap();
    store.set_rule(|call| (call.key == "app/b").then_some(Fault::Refuse(ErrorKind::NotFound)));
    below.get_range("b", 0, 1).await.unwrap_err();
    store.get_range("app/b", 0, 1).await.unwrap_err();
    store.get_range("a", 0, 1).await.unwrap();

    let count = |verb| (store.counts(verb).calls, store.counts(verb).bytes);
    assert_eq!(count(Verb::Put), (2, 15));
    assert_eq!(count(Verb::GetRange), (5, 4));
    assert_eq!(count(Verb::Delete), (1, 0));
    assert_eq!(count(Verb::List), (0, 0));
    assert_eq!(count(Verb::ListFolder), (0, 0));
}

#[tokio::test]
async fn the_contract_catches_a_store_that_breaks_it() {
    for fault in [Fault::Flip(3), Fault::Cut(1), Fault::LoseReply] {
        let checked = tokio::spawn(check_store(move || {
            let store = FaultStore::new(MemoryStore::new());
            store.set_rule(move |call| (call.number == 2).then_some(fault));
            store
        }));
        assert!(checked.await.is_err_and(|e| e.is_panic()), "{fault:?}");
    }
}
