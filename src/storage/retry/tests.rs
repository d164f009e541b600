use super::*;
use crate::storage::conformance::check_store;
use crate::storage::fault::{Call, Fault, FaultStore, Verb, every, nth};
use crate::storage::memory::MemoryStore;

const AWAY: Fault = Fault::Refuse(ErrorKind::Unavailable);

fn stores() -> (Arc<FaultStore>, Arc<RetryStore>) {
    let faulty = FaultStore::new(MemoryStore::new());
    let retrying = RetryStore::new(faulty.clone(), RetrySettings::default());
    (faulty, retrying)
}

async fn put(store: &dyn Store, key: &str) -> Result<Put> {
    store.put(key, Body::Bytes(Bytes::from_static(b"x"))).await
}

#[tokio::test(start_paused = true)]
async fn every_other_call_may_fail_and_the_contract_of_a_store_still_holds() {
    check_store(|| {
        let faulty = FaultStore::new(MemoryStore::new());
        faulty.set_rule(|call| (call.number % 2 == 1).then_some(AWAY));
        // Of 64 puts at a time it may be the same one that fails, more than a dozen times.
        let settings = RetrySettings {
            total: Duration::from_secs(60),
            ..RetrySettings::default()
        };
        RetryStore::new(faulty, settings)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_comes_back_in_time_was_never_away() {
    let (faulty, store) = stores();
    faulty.set_rule(|call: &Call| (call.number <= 3).then_some(AWAY));
    assert!(matches!(
        put(&*store, "a").await.unwrap(),
        Put::Created { .. }
    ));
    store.get_range("a", 0, 1).await.unwrap();
    store.list("", None).await.unwrap();
    store.list_folder("").await.unwrap();
    store.delete(&["a".to_string()]).await.unwrap();
    for verb in [
        Verb::Put,
        Verb::GetRange,
        Verb::List,
        Verb::ListFolder,
        Verb::Delete,
    ] {
        assert_eq!(faulty.counts(verb).calls, 4, "{verb:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_attempt_cannot_mend_is_not_tried_again() {
    for kind in [
        ErrorKind::NotFound,
        ErrorKind::Conflict,
        ErrorKind::Disk,
        ErrorKind::Corrupt,
        ErrorKind::Invalid,
        ErrorKind::Refused,
    ] {
        let (faulty, store) = stores();
        faulty.set_rule(every(Fault::Refuse(kind)));
        assert_eq!(put(&*store, "a").await.unwrap_err().kind(), kind);
        assert_eq!(faulty.counts(Verb::Put).calls, 1, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_put_whose_reply_was_lost_finds_its_object_there() {
    let (faulty, store) = stores();
    faulty.set_rule(nth(Verb::Put, 1, Fault::LoseReply));
    assert_eq!(put(&*store, "a").await.unwrap(), Put::Exists);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_given_up_and_made_again() {
    let (faulty, store) = stores();
    faulty.set_rule(nth(Verb::Put, 1, Fault::Delay(Duration::from_secs(3600))));
    let start = Instant::now();
    assert!(matches!(
        put(&*store, "a").await.unwrap(),
        Put::Created { .. }
    ));
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_secs(15), "{elapsed:?}");
    assert!(elapsed <= Duration::from_millis(15_051), "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_ends_a_call_at_its_deadline() {
    let (faulty, store) = stores();
    faulty.set_rule(every(Fault::Delay(Duration::from_secs(3600))));
    let start = Instant::now();
    let error = put(&*store, "a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error
            .to_string()
            .contains("put a in memory: no answer within"),
        "{error}"
    );
    let elapsed = start.elapsed();
    assert!(elapsed <= Duration::from_millis(45_151), "{elapsed:?}");
    assert_eq!(faulty.counts(Verb::Put).calls, 3);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_away_is_asked_less_and_less_and_then_no_more() {
    let (faulty, store) = stores();
    faulty.set_rule(every(AWAY));
    let start = Instant::now();
    let error = put(&*store, "a").await.unwrap_err();
    let (calls, elapsed) = (faulty.counts(Verb::Put).calls, start.elapsed());
    assert!(elapsed < Duration::from_secs(4), "{elapsed:?}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error
            .to_string()
            .starts_with(&format!("gave up after {calls} attempts")),
        "{error}"
    );
    // Waits of at most 0.05, 0.1, 0.2, 0.4, 0.8, 1.6 and then 2 s; half of that on average.
    assert!((7..60).contains(&calls), "{calls} attempts");
}

/// README: "A line of 2 Mbit/s is enough"; the story restores over one.
#[tokio::test(start_paused = true)]
async fn a_call_has_the_time_that_it_takes_where_many_share_the_slowest_line() {
    const BYTES: usize = 4 << 20;
    let (faulty, store) = stores();
    let body = Body::Bytes(Bytes::from(vec![0; BYTES]));
    let shared_by = |calls| Duration::from_secs(calls * BYTES as u64 / SLOWEST_LINE);
    faulty.set_rule(every(Fault::Delay(shared_by(SHARED_BY))));
    assert!(matches!(
        store.put("a", body).await.unwrap(),
        Put::Created { .. }
    ));
    store.get_range("a", 0, BYTES as u64).await.unwrap();
    store.get_range("a", 0, 1).await.unwrap_err();
    faulty.set_rule(every(Fault::Delay(shared_by(SHARED_BY + 1))));
    store.get_range("a", 0, BYTES as u64).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_listing_may_be_of_many_pages() {
    let (faulty, store) = stores();
    faulty.set_rule(every(Fault::Delay(Duration::from_secs(120))));
    store.list("", None).await.unwrap();
    assert_eq!(faulty.counts(Verb::List).calls, 1);
}

/// A store that asks to be left alone for a second, so many times.
struct Throttling {
    inner: Arc<dyn Store>,
    left: std::sync::atomic::AtomicU64,
}

impl Throttling {
    fn times(left: u64) -> Arc<RetryStore> {
        let throttling = Self {
            inner: MemoryStore::new(),
            left: left.into(),
        };
        RetryStore::new(Arc::new(throttling), RetrySettings::default())
    }
}

#[async_trait]
impl Store for Throttling {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn server(&self) -> &str {
        self.inner.server()
    }

    fn below(&self, name: &str) -> Arc<dyn Store> {
        self.inner.below(name)
    }

    fn date(&self) -> Option<Timestamp> {
        self.inner.date()
    }

    async fn put(&self, key: &str, body: Body) -> Result<Put> {
        use std::sync::atomic::Ordering::Relaxed;
        let one_less = |left: u64| left.checked_sub(1);
        match self.left.fetch_update(Relaxed, Relaxed, one_less) {
            Ok(_) => Err(Error::unavailable("slow down").after(Duration::from_secs(1))),
            Err(_) => self.inner.put(key, body).await,
        }
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.inner.get_range(key, offset, length).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        self.inner.list(prefix, start_after).await
    }

    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>> {
        self.inner.list_folder(prefix).await
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        self.inner.delete(keys).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_asks_to_be_left_alone_is_left_alone_and_not_given_up_for_it() {
    let start = Instant::now();
    let created = put(&*Throttling::times(6), "a").await.unwrap();
    assert!(matches!(created, Put::Created { .. }));
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_secs(6), "{elapsed:?}");
    assert!(elapsed <= Duration::from_secs(10), "{elapsed:?}");

    put(&*Throttling::times(1_000), "a").await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_store_below_has_the_same_patience() {
    let (faulty, store) = stores();
    faulty.set_rule(nth(Verb::Put, 1, AWAY));
    put(&*store.below("app"), "a").await.unwrap();
    assert_eq!(store.list("", None).await.unwrap()[0].key, "app/a");
}
