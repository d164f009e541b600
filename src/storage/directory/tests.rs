use super::*;
use crate::storage::conformance::check_store;
use std::fs::FileTimes;
use tempfile::TempDir;

fn store() -> (TempDir, Arc<DirectoryStore>) {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(&directory.path().join("replica")).unwrap();
    (directory, store)
}

async fn put(store: &DirectoryStore, key: &str) -> Result<Put> {
    store.put(key, Body::Bytes(Bytes::from_static(b"x"))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_to_the_contract_of_a_store() {
    let all = tempfile::tempdir().unwrap();
    let next = std::cell::Cell::new(0);
    check_store(|| {
        next.set(next.get() + 1);
        let root = all.path().join(format!("deep/down/{}", next.get()));
        DirectoryStore::open(&root).unwrap()
    })
    .await;
}

#[tokio::test]
async fn readers_write_nothing() {
    let (directory, store) = store();
    assert_eq!(store.list("", None).await.unwrap(), []);
    assert_eq!(store.list_folder("").await.unwrap(), [""; 0]);
    assert!(store.get_range("a", 0, 1).await.is_err());
    store.delete(&["a".to_string()]).await.unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn nothing_unfinished_is_shown_and_nothing_is_left_behind() {
    let (directory, store) = store();
    put(&store, "app/a").await.unwrap();
    put(&store, "app/a").await.unwrap();
    let root = directory.path().join("replica");
    assert_eq!(fs::read_dir(root.join(".tmp")).unwrap().count(), 0);

    let below = DirectoryStore::open(&root.join("app")).unwrap();
    put(&below, "b").await.unwrap();
    fs::write(root.join("app/.tmp/0123456789abcdef"), "half an object").unwrap();
    let keys: Vec<String> = store
        .list("", None)
        .await
        .unwrap()
        .into_iter()
        .map(|l| l.key)
        .collect();
    assert_eq!(keys, ["app/a", "app/b"]);
    assert_eq!(store.list_folder("app/").await.unwrap(), ["a", "b"]);
}

#[tokio::test]
async fn what_a_crashed_put_left_is_swept_a_day_later() {
    let (directory, _) = store();
    let unfinished = directory.path().join("replica/.tmp");
    fs::create_dir_all(&unfinished).unwrap();
    for (name, hours) in [("old", 25), ("young", 23)] {
        let file = File::create(unfinished.join(name)).unwrap();
        let written = SystemTime::now() - Duration::from_secs(hours * 60 * 60);
        file.set_times(FileTimes::new().set_modified(written))
            .unwrap();
    }
    let store = DirectoryStore::open(&directory.path().join("replica")).unwrap();
    put(&store, "a").await.unwrap();
    assert!(!unfinished.join("old").exists());
    assert!(unfinished.join("young").exists());
}

#[tokio::test]
async fn a_replica_that_vanished_is_not_made_again_under_a_running_daemon() {
    let (directory, store) = store();
    put(&store, "a").await.unwrap();
    fs::remove_dir_all(directory.path().join("replica")).unwrap();
    let error = put(&store, "b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().ends_with("is its disk still mounted"),
        "{error}"
    );
    assert!(!directory.path().join("replica").exists());
    // Nor is it taken for an empty one.
    let error = store.list("", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_put_that_cannot_be_written_names_the_file_and_leaves_nothing() {
    let (directory, store) = store();
    let absent = directory.path().join("absent");
    let error = store
        .put("a", Body::File(absent.clone()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disk);
    assert!(
        error
            .to_string()
            .starts_with(&format!("read {}: ", absent.display())),
        "{error}"
    );
    put(&store, "file").await.unwrap();
    let error = put(&store, "file/below").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disk);
    let unfinished = directory.path().join("replica/.tmp");
    assert_eq!(fs::read_dir(unfinished).unwrap().count(), 0);
}

#[test]
fn a_full_disk_passes_and_a_failed_fsync_does_not() {
    #[track_caller]
    fn check(errno: i32, expect: ErrorKind) {
        let error = failed(
            "write",
            Path::new("/a"),
            io::Error::from_raw_os_error(errno),
        );
        assert_eq!(error.kind(), expect, "{error}");
    }
    check(libc::ENOSPC, ErrorKind::Unavailable);
    check(libc::EDQUOT, ErrorKind::Unavailable);
    check(libc::ESTALE, ErrorKind::Unavailable);
    check(libc::EMFILE, ErrorKind::Unavailable);
    check(libc::EIO, ErrorKind::Disk);
    check(libc::EACCES, ErrorKind::Disk);
    check(libc::EROFS, ErrorKind::Disk);
}

#[test]
fn a_path_that_is_a_file_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = DirectoryStore::open(file.path()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(DirectoryStore::open(Path::new("")).is_err());
}

#[tokio::test]
async fn what_is_neither_file_nor_directory_is_not_seen() {
    let (directory, store) = store();
    put(&store, "a").await.unwrap();
    let root = directory.path().join("replica");
    std::os::unix::fs::symlink(root.join("a"), root.join("link")).unwrap();
    std::os::unix::fs::symlink(&root, root.join("loop")).unwrap();
    assert_eq!(store.list_folder("").await.unwrap(), ["a"]);
    assert_eq!(store.list("", None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_read_that_need_not_wait_gives_what_one_that_waits_gives_or_nothing() {
    let (_directory, store) = store();
    let content: Vec<u8> = (0..200_000_u32).map(|n| (n / 7) as u8).collect();
    let body = Body::Bytes(Bytes::from(content.clone()));
    store.put("a/b", body).await.unwrap();
    let path = store.root.path.join("a/b");
    for (offset, length) in [(0, 1), (0, 65_536), (123_456, 70_000), (199_999, 1)] {
        let expect = &content[offset..offset + length];
        let (offset, length) = (offset as u64, length as u64);
        // Written a moment ago: the bytes are in memory, if the file system can tell.
        let quick = read_without_waiting(&path, offset, length);
        assert!(
            quick.is_none_or(|bytes| bytes == expect),
            "{length} from {offset}"
        );
        assert_eq!(
            store.get_range("a/b", offset, length).await.unwrap(),
            expect
        );
    }
    for (offset, length) in [(199_999, 2), (200_000, 1), (u64::MAX, 1)] {
        assert!(read_without_waiting(&path, offset, length).is_none());
    }
    assert!(read_without_waiting(&store.root.path.join("a"), 0, 1).is_none());
    assert!(read_without_waiting(&store.root.path.join("c"), 0, 1).is_none());
}
