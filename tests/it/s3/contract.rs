//! The contract of a store, over HTTP with signatures.

use crate::s3_server::{Server, Stop, Verb};
use bytes::Bytes;
use sqlrepl::config::location::Location;
use sqlrepl::storage::conformance::check_store;
use sqlrepl::storage::retry::{RetrySettings, RetryStore};
use sqlrepl::storage::s3::S3Store;
use sqlrepl::storage::{Body, Put, Store};
use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

/// A server with one empty bucket `tests`.
pub(super) struct Bucket {
    pub(super) server: Server,
    pub(super) root: TempDir,
}

impl Bucket {
    pub(super) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("tests")).unwrap();
        let server = Server::start(root.path());
        Self { server, root }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_of_a_store_holds_in_a_bucket_and_below_a_prefix() {
    let bucket = Bucket::new();
    let number = AtomicU64::new(0);
    let next = || number.fetch_add(1, Ordering::Relaxed);
    check_store(|| {
        let name = format!("tests-{}", next());
        fs::create_dir(bucket.root.path().join(&name)).unwrap();
        S3Store::new(bucket.server.place(&name, ""))
    })
    .await;
    check_store(|| {
        let mut place = bucket
            .server
            .place("tests", &format!("a/prefix/{}", next()));
        place.checksums = false;
        S3Store::new(place)
    })
    .await;
}

/// Also in another bucket, when its URL is in `SQLREPL_TEST_S3_URL`, with what the environment says
/// of credentials and region; what is stored there is deleted again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_of_a_store_holds_in_the_bucket_that_the_environment_names() {
    // Past the test harness, which shows only what failed.
    let mut shown = std::io::stderr();
    let url = std::env::var("SQLREPL_TEST_S3_URL").unwrap_or_default();
    if url.is_empty() {
        let line = "SQLREPL_TEST_S3_URL is not set: the contract was checked on our server only";
        writeln!(shown, "{line}").unwrap();
        return;
    }
    writeln!(
        shown,
        "SQLREPL_TEST_S3_URL is set: checking the contract at {url}"
    )
    .unwrap();
    let Location::S3(mut place) = Location::parse(&url).unwrap() else {
        panic!("SQLREPL_TEST_S3_URL is no s3:// URL: {url}");
    };
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    place.prefix = format!("{}/sqlrepl-{now}", place.prefix);
    place.prefix = place.prefix.trim_start_matches('/').to_owned();
    let all = RetryStore::new(S3Store::new(place), RetrySettings::default());
    let number = AtomicU64::new(0);
    check_store(|| all.below(&number.fetch_add(1, Ordering::Relaxed).to_string())).await;
    let left = all.list("", None).await.unwrap();
    let left: Vec<String> = left.into_iter().map(|object| object.key).collect();
    all.delete(&left).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_keys_than_fit_in_two_pages_are_listed_and_deleted() {
    let bucket = Bucket::new();
    let folder = bucket.root.path().join("tests/app/many");
    fs::create_dir_all(&folder).unwrap();
    let names: Vec<String> = (0..2_600).map(|n| format!("{n:04}")).collect();
    for name in &names {
        fs::write(folder.join(name), name).unwrap();
    }
    let store = S3Store::new(bucket.server.place("tests", "app"));
    let keys: Vec<String> = names.iter().map(|name| format!("many/{name}")).collect();
    let list = async |after| -> Vec<String> {
        let listed = store.list("", after).await.unwrap();
        listed.into_iter().map(|object| object.key).collect()
    };
    assert_eq!(list(None).await, keys);
    assert_eq!(bucket.server.requests(), 3);
    assert_eq!(list(Some("many/0099")).await, keys[100..]);
    assert_eq!(store.list_folder("many/").await.unwrap(), names);
    bucket.server.reset();
    store.delete(&keys[..2_500]).await.unwrap();
    assert_eq!(bucket.server.requests(), 3);
    assert_eq!(list(None).await, keys[2_500..]);
}

#[tokio::test]
async fn the_date_of_a_put_is_the_servers() {
    let bucket = Bucket::new();
    bucket.server.set(|s| s.clock_ahead = 500);
    let store: Arc<dyn Store> = S3Store::new(bucket.server.place("tests", ""));
    let body = Body::Bytes(Bytes::from("body"));
    let Put::Created { date: Some(date) } = store.put("key", body).await.unwrap() else {
        panic!("no date");
    };
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let ahead = date.micros() / 1_000_000 - i64::try_from(now).unwrap();
    assert!((490..=500).contains(&ahead), "{ahead} s ahead");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_take_the_place_of_no_object_also_where_the_condition_is_ignored() {
    let bucket = Bucket::new();
    bucket.server.set(|s| s.ignores_if_none_match = true);
    let store = || S3Store::new(bucket.server.place("tests", ""));
    let large = tempfile::NamedTempFile::new().unwrap();
    large.as_file().set_len(17 << 20).unwrap();
    let hold = bucket
        .server
        .hold(Stop::Before, |call| call.verb == Verb::UploadPart);
    let body = Body::File(large.path().to_owned());
    let slow = store();
    let put = tokio::spawn(async move { slow.put("a", body).await });
    tokio::task::block_in_place(|| hold.wait());
    let other = store().put("a", Body::Bytes("another".into())).await;
    assert!(matches!(other.unwrap(), Put::Created { .. }));
    hold.let_go();
    assert_eq!(put.await.unwrap().unwrap(), Put::Exists);
    assert_eq!(store().get_range("a", 0, 7).await.unwrap(), "another");
    assert!(bucket.server.uploads().is_empty());
}
