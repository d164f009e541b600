use crate::error::ErrorKind;
use crate::format::ids::Timestamp;
use crate::storage::directory::DirectoryStore;
use crate::storage::fault::FaultStore;
use crate::storage::memory::MemoryStore;
use crate::storage::retry::{RetrySettings, RetryStore};
use crate::storage::{Body, Store, refuse_foreign};
use bytes::Bytes;
use std::sync::Arc;

#[test]
fn a_wrapped_store_and_what_lies_below_it_have_the_date_of_the_inner_one() {
    let noon = Timestamp::from_micros(1_795_176_000_000_000);
    let patient = |store| RetryStore::new(FaultStore::new(store), RetrySettings::default());
    let store = patient(MemoryStore::with_clock(Arc::new(move || noon)));
    assert_eq!(store.date(), Some(noon));
    assert_eq!(store.below("app").date(), Some(noon));
    let dir = tempfile::tempdir().unwrap();
    let without = patient(DirectoryStore::open(dir.path()).unwrap());
    assert_eq!(without.date(), None);
}

#[track_caller]
fn check(keys: &str, expect: Result<(), &str>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let seen = runtime.block_on(async {
        let store = MemoryStore::new();
        for key in keys.split_whitespace() {
            store.put(key, Body::Bytes(Bytes::new())).await.unwrap();
        }
        refuse_foreign(&*store).await
    });
    match (seen, expect) {
        (Ok(()), Ok(())) => {}
        (Err(seen), Err(expect)) => {
            assert_eq!(seen.kind(), ErrorKind::Invalid);
            assert_eq!(seen.to_string(), expect);
        }
        (seen, expect) => panic!("{keys}: {seen:?}, expected {expect:?}"),
    }
}

#[test]
fn another_tools_replica_is_refused_and_ours_and_an_empty_path_are_not() {
    check("", Ok(()));
    check("README generations/00000001-9f3c2a7b/claim", Ok(()));
    check(
        "generations/00000001-9f3c2a7b/claim ltx/0/0000000000000001-0000000000000001.ltx",
        Err("memory holds objects of another tool, such as ltx/; \
             give replicate an empty directory or prefix"),
    );
    check(
        "generations/0123456789abcdef/snapshots/00000000.snapshot.lz4",
        Err(
            "memory holds objects of another tool, such as generations/0123456789abcdef/; \
             give replicate an empty directory or prefix",
        ),
    );
}
