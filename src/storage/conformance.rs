//! The contract of [`Store`] as a test that runs on any store.
//!
//! It is compiled into the library, hidden from its documentation, because both the unit tests of
//! the stores here and the tests in `tests/` (S3 against a server) run it, and the latter see only
//! what is public. The linker drops it from the binary.
//!
//! Everything here panics with what is wrong, as tests do.

use crate::error::ErrorKind;
use crate::storage::{Body, Listed, Put, Store};
use bytes::Bytes;
use std::io::Write;
use std::sync::Arc;
use tokio::task::JoinSet;

/// More than the 1,000 keys that an S3 server lists or deletes at once.
const MANY: usize = 1_100;

/// Bytes of a file that goes up in parts where there are parts.
const LARGE: usize = (17 << 20) + 17;

/// Checks a kind of store. `make` gives an empty one each time.
///
/// # Panics
/// If the store breaks the contract; with what is wrong.
pub async fn check_store(make: impl Fn() -> Arc<dyn Store>) {
    what_was_put_is_read_back(make()).await;
    a_file_is_stored_whole(make()).await;
    what_is_there_stays_as_it_is(make()).await;
    one_of_many_puts_of_a_key_wins(make()).await;
    one_of_two_puts_of_a_large_file_wins(make()).await;
    a_read_gives_all_that_was_asked_for_or_an_error(make()).await;
    a_listing_is_in_the_order_of_the_keys(make()).await;
    a_folder_shows_one_level(make()).await;
    a_listing_and_a_deletion_may_be_long(make()).await;
    what_was_deleted_is_gone_and_may_be_put_again(make()).await;
    puts_and_deletes_in_one_folder_do_not_disturb_each_other(make()).await;
    a_store_below_is_a_folder_of_this_one(make()).await;
    a_key_may_hold_what_a_url_must_escape(make()).await;
    what_is_no_key_is_refused(make()).await;
}

fn bytes(text: &str) -> Body {
    Body::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}

async fn put(store: &dyn Store, key: &str, text: &str) {
    let put = store.put(key, bytes(text)).await;
    assert!(matches!(put, Ok(Put::Created { .. })), "put {key}: {put:?}");
}

#[track_caller]
fn assert_read(read: crate::error::Result<Bytes>, expect: &[u8], what: &str) {
    match read {
        Ok(read) => assert!(read == expect, "{what}: other bytes than were stored"),
        Err(e) => panic!("{what}: {e}"),
    }
}

#[track_caller]
fn assert_fails<T: std::fmt::Debug>(result: crate::error::Result<T>, kind: ErrorKind, what: &str) {
    match result {
        Ok(value) => panic!("{what}: gave {value:?}, expected an error"),
        Err(e) => assert_eq!(e.kind(), kind, "{what}: {e}"),
    }
}

async fn list(store: &dyn Store, prefix: &str, start_after: Option<&str>) -> Vec<Listed> {
    match store.list(prefix, start_after).await {
        Ok(listed) => listed,
        Err(e) => panic!("list {prefix:?} after {start_after:?}: {e}"),
    }
}

async fn list_keys(store: &dyn Store, prefix: &str, start_after: Option<&str>) -> Vec<String> {
    let listed = list(store, prefix, start_after).await;
    listed.into_iter().map(|object| object.key).collect()
}

async fn folder(store: &dyn Store, prefix: &str) -> Vec<String> {
    match store.list_folder(prefix).await {
        Ok(names) => names,
        Err(e) => panic!("list the folder {prefix:?}: {e}"),
    }
}

async fn delete(store: &dyn Store, keys: &[String]) {
    let deleted = store.delete(keys).await;
    assert!(deleted.is_ok(), "delete {} keys: {deleted:?}", keys.len());
}

async fn what_was_put_is_read_back(store: Arc<dyn Store>) {
    put(&*store, "a/b", "0123456789").await;
    put(&*store, "empty", "").await;
    for (offset, length, expect) in [
        (0, 10, "0123456789"),
        (0, 1, "0"),
        (9, 1, "9"),
        (3, 4, "3456"),
        (0, 0, ""),
        (10, 0, ""),
    ] {
        let read = store.get_range("a/b", offset, length).await;
        assert_read(read, expect.as_bytes(), "read a/b");
    }
    assert_read(store.get_range("empty", 0, 0).await, b"", "read empty");

    let listed = list(&*store, "", None).await;
    let sizes: Vec<(&str, u64)> = listed.iter().map(|l| (l.key.as_str(), l.size)).collect();
    assert_eq!(sizes, [("a/b", 10), ("empty", 0)]);
    let again = list(&*store, "", None).await;
    assert_eq!(listed, again, "a listing changed and no object did");
}

/// A file of which each part differs from the others.
fn file_of(length: usize, seed: &[u8]) -> (tempfile::NamedTempFile, Vec<u8>) {
    let mut content = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(seed).finalize_xof().fill(&mut content);
    let mut file = tempfile::NamedTempFile::new().expect("room for a temporary file");
    file.write_all(&content).expect("room for a temporary file");
    (file, content)
}

async fn a_file_is_stored_whole(store: Arc<dyn Store>) {
    for length in [(6 << 20) + 17, LARGE] {
        let (file, content) = file_of(length, b"a file");
        let body = Body::File(file.path().to_path_buf());
        // The same body twice: a retry sends it again.
        for key in ["first", "second"].map(|name| format!("{name}/{length}")) {
            let put = store.put(&key, body.clone()).await;
            assert!(matches!(put, Ok(Put::Created { .. })), "put {key}: {put:?}");
            for (offset, size) in [(0, length), (1 << 20, 4 << 20), (length - 1, 1)] {
                let read = store.get_range(&key, offset as u64, size as u64).await;
                assert_read(read, &content[offset..offset + size], &key);
            }
        }
        assert!(file.path().exists(), "a put took its file away");
    }
}

async fn one_of_two_puts_of_a_large_file_wins(store: Arc<dyn Store>) {
    let files = [file_of(LARGE, b"one"), file_of(LARGE, b"other")];
    let [one, other] = files
        .each_ref()
        .map(|(file, _)| store.put("a", Body::File(file.path().to_path_buf())));
    let puts = tokio::join!(one, other);
    let winner = match puts {
        (Ok(Put::Created { .. }), Ok(Put::Exists)) => 0,
        (Ok(Put::Exists), Ok(Put::Created { .. })) => 1,
        _ => panic!("two puts of one key: {puts:?}"),
    };
    for (file, _) in &files {
        let put = store.put("a", Body::File(file.path().to_path_buf())).await;
        assert!(matches!(put, Ok(Put::Exists)), "put it again: {put:?}");
    }
    let read = store.get_range("a", 0, LARGE as u64).await;
    assert_read(read, &files[winner].1, "read the winner's bytes");
}

async fn what_is_there_stays_as_it_is(store: Arc<dyn Store>) {
    put(&*store, "a", "first").await;
    let before = list(&*store, "", None).await;
    for text in ["second", "first"] {
        let put = store.put("a", bytes(text)).await;
        assert!(matches!(put, Ok(Put::Exists)), "put it again: {put:?}");
        assert_read(store.get_range("a", 0, 5).await, b"first", "read a");
    }
    assert_eq!(list(&*store, "", None).await, before);
}

async fn one_of_many_puts_of_a_key_wins(store: Arc<dyn Store>) {
    let mut puts = JoinSet::new();
    for number in 10..30 {
        let store = store.clone();
        puts.spawn(async move {
            (
                number,
                store.put("folder/a", bytes(&number.to_string())).await,
            )
        });
    }
    let mut winners = Vec::new();
    for (number, put) in puts.join_all().await {
        match put {
            Ok(Put::Created { .. }) => winners.push(number.to_string()),
            Ok(Put::Exists) => {}
            Err(e) => panic!("put {number}: {e}"),
        }
    }
    assert_eq!(
        winners.len(),
        1,
        "puts that created the object: {winners:?}"
    );
    let read = store.get_range("folder/a", 0, 2).await;
    assert_read(read, winners[0].as_bytes(), "read the winner's bytes");
}

async fn a_read_gives_all_that_was_asked_for_or_an_error(store: Arc<dyn Store>) {
    put(&*store, "folder/a", "0123456789").await;
    put(&*store, "empty", "").await;
    for (offset, length) in [
        (0, 11),
        (5, 6),
        (10, 1),
        (11, 0),
        (u64::MAX, 1),
        (1, u64::MAX),
    ] {
        let what = format!("read {length} bytes from {offset} of 10");
        let read = store.get_range("folder/a", offset, length).await;
        assert_fails(read, ErrorKind::Corrupt, &what);
    }
    let read = store.get_range("empty", 0, 1).await;
    assert_fails(read, ErrorKind::Corrupt, "read a byte of nothing");
    for absent in ["b", "folder", "folder/b", "folder/a/b", "other/a"] {
        let read = store.get_range(absent, 0, 1).await;
        assert_fails(read, ErrorKind::NotFound, absent);
        let read = store.get_range(absent, 0, 0).await;
        assert_fails(read, ErrorKind::NotFound, absent);
    }
}

async fn a_listing_is_in_the_order_of_the_keys(store: Arc<dyn Store>) {
    // As strings, '-' and '.' come before '/', and digits after it.
    let mut keys = [
        "a-b",
        "a.b",
        "a/b",
        "a/b-c",
        "a/b.c",
        "a/bc/d",
        "a/bc/d-",
        "a/c/d/e/f",
        "a0",
        "b/a",
        "b0/a",
        "b-/a",
        "c",
    ];
    for key in keys {
        put(&*store, key, key).await;
    }
    keys.sort_unstable();
    let mut cuts: Vec<&str> = keys
        .iter()
        .flat_map(|k| (0..=k.len()).map(|n| &k[..n]))
        .collect();
    cuts.extend(["a/b0", "zzz", "a/bc/d/", "b-/"]);
    cuts.sort_unstable();
    cuts.dedup();
    for prefix in &cuts {
        for after in cuts.iter().map(Some).chain([None]) {
            let expect: Vec<&str> = keys
                .into_iter()
                .filter(|key| key.starts_with(prefix) && after.is_none_or(|after| key > after))
                .collect();
            let seen = list_keys(&*store, prefix, after.copied()).await;
            assert_eq!(seen, expect, "list {prefix:?} after {after:?}");
        }
    }
}

async fn a_folder_shows_one_level(store: Arc<dyn Store>) {
    assert_eq!(folder(&*store, "").await, [] as [&str; 0]);
    for key in ["a/b/c", "a/b/d", "a/b-", "a/b0", "a/c", "a-", "b"] {
        put(&*store, key, "").await;
    }
    assert_eq!(folder(&*store, "").await, ["a-", "a/", "b"]);
    assert_eq!(folder(&*store, "a/").await, ["b-", "b/", "b0", "c"]);
    assert_eq!(folder(&*store, "a/b/").await, ["c", "d"]);
    for absent in ["c/", "b/", "a/b/c/"] {
        assert_eq!(folder(&*store, absent).await, [] as [&str; 0], "{absent}");
    }
}

async fn a_listing_and_a_deletion_may_be_long(store: Arc<dyn Store>) {
    let keys: Vec<String> = (0..MANY).map(|n| format!("many/{n:05}")).collect();
    let mut puts = JoinSet::new();
    for key in keys.clone() {
        let store = store.clone();
        puts.spawn(async move { put(&*store, &key, &key).await });
        if puts.len() >= 64 {
            let done = puts.join_next().await.expect("there are 64");
            assert!(done.is_ok(), "a put failed");
        }
    }
    puts.join_all().await;
    put(&*store, "other", "").await;

    assert_eq!(list_keys(&*store, "many/", None).await, keys);
    let after = list_keys(&*store, "many/", Some(&keys[20])).await;
    assert_eq!(after, keys[21..]);

    let mut doomed = keys[..MANY - 5].to_vec();
    doomed.push("many/never".to_string());
    delete(&*store, &doomed).await;
    assert_eq!(list_keys(&*store, "many/", None).await, keys[MANY - 5..]);
    assert_eq!(folder(&*store, "").await, ["many/", "other"]);
}

async fn what_was_deleted_is_gone_and_may_be_put_again(store: Arc<dyn Store>) {
    delete(&*store, &[]).await;
    put(&*store, "a/b/c", "old").await;
    put(&*store, "a/d", "other").await;
    let keys = ["a/b/c".to_string(), "a/e".to_string(), "f/g".to_string()];
    // The second time nothing is there.
    for _ in 0..2 {
        delete(&*store, &keys).await;
        assert_eq!(list_keys(&*store, "", None).await, ["a/d"]);
        assert_eq!(folder(&*store, "a/").await, ["d"]);
        let read = store.get_range("a/b/c", 0, 1).await;
        assert_fails(read, ErrorKind::NotFound, "read what was deleted");
    }
    put(&*store, "a/b/c", "new").await;
    assert_read(
        store.get_range("a/b/c", 0, 3).await,
        b"new",
        "read it again",
    );
}

async fn puts_and_deletes_in_one_folder_do_not_disturb_each_other(store: Arc<dyn Store>) {
    let mut workers = JoinSet::new();
    for worker in 0..4 {
        let store = store.clone();
        workers.spawn(async move {
            for round in 0..25 {
                let key = format!("x/y/{worker}");
                put(&*store, &key, &format!("{round:03}")).await;
                let read = store.get_range(&key, 0, 3).await;
                assert_read(read, format!("{round:03}").as_bytes(), &key);
                delete(&*store, std::slice::from_ref(&key)).await;
            }
        });
    }
    workers.join_all().await;
    assert_eq!(list_keys(&*store, "", None).await, [] as [&str; 0]);
    assert_eq!(folder(&*store, "").await, [] as [&str; 0]);
}

async fn a_store_below_is_a_folder_of_this_one(store: Arc<dyn Store>) {
    let app = store.below("app");
    assert_eq!(app.location(), format!("{}/app", store.location()));
    put(&*app, "a/b", "inner").await;
    put(&*store, "app/c", "outer").await;
    put(&*store, "apple", "").await;
    put(&*store, "ap/a/b", "").await;

    assert_eq!(list_keys(&*app, "", None).await, ["a/b", "c"]);
    assert_eq!(list_keys(&*app, "", Some("a/b")).await, ["c"]);
    assert_eq!(list_keys(&*app, "a/", Some("a")).await, ["a/b"]);
    assert_eq!(list_keys(&*store, "app/", None).await, ["app/a/b", "app/c"]);
    assert_eq!(folder(&*app, "").await, ["a/", "c"]);
    assert_read(app.get_range("c", 0, 5).await, b"outer", "read from below");
    let read = store.get_range("app/a/b", 0, 5).await;
    assert_read(read, b"inner", "read from above");
    let deep = store.below("x").below("y");
    put(&*deep, "z", "").await;
    assert_eq!(list_keys(&*store, "x/", None).await, ["x/y/z"]);
    delete(&*app, &["a/b".to_string()]).await;
    assert_eq!(list_keys(&*app, "", None).await, ["c"]);
}

async fn a_key_may_hold_what_a_url_must_escape(store: Arc<dyn Store>) {
    let key = "a b+c/%41%/d=e&f?g#h/\u{e4}\u{1f418}";
    put(&*store, key, "strange").await;
    assert_read(store.get_range(key, 0, 7).await, b"strange", key);
    assert_eq!(list_keys(&*store, "a b+c/%41", None).await, [key]);
    assert_eq!(folder(&*store, "a b+c/%41%/").await, ["d=e&f?g#h/"]);
    delete(&*store, &[key.to_string()]).await;
    assert_eq!(list_keys(&*store, "", None).await, [] as [&str; 0]);
}

async fn what_is_no_key_is_refused(store: Arc<dyn Store>) {
    for wrong in [
        "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", ".tmp/a", "a\n", "\0",
    ] {
        let invalid = ErrorKind::Invalid;
        assert_fails(store.put(wrong, bytes("")).await, invalid, wrong);
        assert_fails(store.get_range(wrong, 0, 0).await, invalid, wrong);
        assert_fails(store.delete(&[wrong.to_string()]).await, invalid, wrong);
    }
    for wrong in ["/", "/a", "a//", "../a", "a/../", "a\n", ".tmp/"] {
        let listed = store.list(wrong, None).await;
        assert_fails(listed, ErrorKind::Invalid, wrong);
    }
    for wrong in ["/", "a", "a//", "../", "a/./", "a\n/", ".tmp/"] {
        let listed = store.list_folder(wrong).await;
        assert_fails(listed, ErrorKind::Invalid, wrong);
    }
    assert_eq!(list_keys(&*store, "", None).await, [] as [&str; 0]);
}
