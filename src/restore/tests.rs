use super::*;
use crate::materialize::model::{Random, Writer, build, image, open_replica};
use crate::storage::Store;
use crate::storage::fault::{Fault, FaultStore, Verb, nth};
use crate::storage::memory::MemoryStore;
use std::sync::Mutex;

const CACHE: u64 = 16 << 20;

fn files_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<String> = entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_file_is_the_database_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    for (seed, page_size, pages) in [(1, 512, 40), (2, 4096, 25), (3, 512, 5000), (4, 65536, 3)] {
        let store: Arc<dyn Store> = MemoryStore::new();
        let writers: [Writer; 2] = build(&store, seed, page_size, pages).await;
        let replica = open_replica(&store, CACHE).await;
        let mut random = Random::new(seed);
        for writer in &writers {
            let points = writer.points();
            let chosen = points
                .iter()
                .filter(|_| random.percent(25))
                .chain(points.last());
            for (number, point) in chosen.enumerate() {
                let database = replica.open(point).await.unwrap();
                let path = directory
                    .path()
                    .join(format!("{seed}-{}-{number}.db", writer.id));
                let options = RestoreOptions {
                    parallelism: 1 + number % 9,
                    progress: None,
                };
                let summary = restore(&database, &path, &options).await.unwrap();
                let restored = std::fs::read(&path).unwrap();
                assert!(restored == image(writer, point), "seed {seed}, {point:?}");
                assert_eq!(summary.file_bytes, restored.len() as u64);
                std::fs::remove_file(&path).unwrap();
            }
        }
    }
    assert_eq!(files_in(directory.path()), [""; 0]);
}

#[tokio::test]
async fn no_block_is_read_twice_and_progress_ends_at_its_total() {
    let memory: Arc<dyn Store> = MemoryStore::new();
    let [writer, _] = build(&memory, 9, 512, 6000).await;
    let store = FaultStore::new(memory);
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    let point = writer.points()[writer.points().len() - 1];
    let database = replica.open(&point).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.db");
    let planned = summarize(&database, &path).await.unwrap();
    let seen: Arc<Mutex<Vec<(u64, u64)>>> = Arc::default();
    let told = Arc::clone(&seen);
    let options = RestoreOptions {
        progress: Some(Arc::new(move |done, total| {
            told.lock().unwrap().push((done, total))
        })),
        ..RestoreOptions::default()
    };
    let before = store.counts(Verb::GetRange);
    let summary = restore(&database, &path, &options).await.unwrap();
    let after = store.counts(Verb::GetRange);
    assert_eq!(summary, planned);
    assert_eq!(after.calls - before.calls, summary.reads as u64);
    assert_eq!(after.bytes - before.bytes, summary.stored_bytes);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), summary.reads);
    assert_eq!(
        seen.last(),
        Some(&(summary.stored_bytes, summary.stored_bytes))
    );
    assert!(seen.is_sorted());
}

async fn small() -> (Arc<FaultStore>, Arc<Database>, Vec<u8>) {
    let store = FaultStore::new(MemoryStore::new());
    let mut writer = Writer::new(store.clone(), 5, 1, 512, 30).await;
    writer.exact_snapshot(false).await;
    writer.commit();
    writer.upload().await;
    let replica = open_replica(&(store.clone() as Arc<dyn Store>), CACHE).await;
    let point = writer.points()[1];
    let database = replica.open(&point).await.unwrap();
    (store, database, image(&writer, &point))
}

#[tokio::test]
async fn a_path_that_exists_is_refused_and_left_alone() {
    let (_, database, _) = small().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.db");
    std::fs::write(&path, "precious").unwrap();
    let error = restore(&database, &path, &RestoreOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("app.db exists"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    assert!(
        summarize(&database, &path).await.is_err(),
        "a dangling link is something too"
    );
    assert_eq!(files_in(directory.path()), ["app.db"]);
}

#[tokio::test]
async fn files_of_an_earlier_database_beside_the_path_are_refused_by_name() {
    let (_, database, _) = small().await;
    for suffix in SIDECARS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.db");
        let beside = directory.path().join(format!("app.db{suffix}"));
        std::fs::write(&beside, "old").unwrap();
        let error = restore(&database, &path, &RestoreOptions::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let sentence = error.to_string();
        assert!(
            sentence.contains(&format!("app.db{suffix} lies beside")),
            "{sentence}"
        );
        assert_eq!(files_in(directory.path()), [format!("app.db{suffix}")]);
    }
}

#[tokio::test]
async fn a_failed_restore_leaves_nothing() {
    let (store, database, whole) = small().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.db");
    let next = || store.counts(Verb::GetRange).calls + 1;
    let faults = [
        (
            Fault::Refuse(ErrorKind::Unavailable),
            ErrorKind::Unavailable,
        ),
        (Fault::Cut(1), ErrorKind::Corrupt),
        (Fault::Flip(999), ErrorKind::Corrupt),
    ];
    for (fault, kind) in faults {
        store.set_rule(nth(Verb::GetRange, next(), fault));
        let error = restore(&database, &path, &RestoreOptions::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains("generations/"), "{error}");
        assert_eq!(files_in(directory.path()), [""; 0]);
    }
    // Something that was merged away meanwhile is looked for again.
    store.set_rule(nth(
        Verb::GetRange,
        next(),
        Fault::Refuse(ErrorKind::NotFound),
    ));
    restore(&database, &path, &RestoreOptions::default())
        .await
        .unwrap();
    assert!(std::fs::read(&path).unwrap() == whole);
    let nowhere = directory.path().join("no/such/folder.db");
    let error = restore(&database, &nowhere, &RestoreOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disk);
}

#[test]
fn strips_are_cut_where_blocks_end() {
    let strip = |slot, page, count| Strip { slot, page, count };
    assert_eq!(strip(4, 9, 3).split(8), (Some(strip(4, 9, 3)), None));
    assert_eq!(
        strip(4, 9, 8).split(8),
        (Some(strip(4, 9, 4)), Some(strip(8, 13, 4)))
    );
    assert_eq!(strip(8, 9, 3).split(8), (None, Some(strip(8, 9, 3))));
}
