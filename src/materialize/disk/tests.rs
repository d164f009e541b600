use super::*;
use crate::error::ErrorKind;
use crate::format::ids::Timestamp;
use crate::materialize::model::Random;
use crate::storage::memory::MemoryStore;
use proptest::prelude::*;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use tempfile::TempDir;

const CAPACITY: u64 = CACHE_BYTES_MIN;

fn identity() -> Identity {
    of("replica", "key", 1 << 40, 1)
}

/// An object of a replica in memory, by its size and when it was stored.
fn of(replica: &str, key: &str, size: u64, at: i64) -> Identity {
    let listed = Listed {
        key: key.to_owned(),
        size,
        modified: Timestamp::from_micros(at),
    };
    Identity::new(&*MemoryStore::new().below(replica), &listed)
}

/// The piece of a number, and its bytes: up to 64 KB, others for each number.
fn piece(number: u64) -> (PieceKey, Bytes) {
    let mut random = Random::new(number);
    let length = 1 + random.below(64_000);
    let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
    (identity().piece(number << 20, length), bytes.into())
}

async fn put(cache: &DiskCache, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        cache.put(vec![piece(number)]);
        cache.settle().await;
    }
}

/// How many of these pieces are there; each that is must be right.
async fn right(cache: &DiskCache, numbers: impl IntoIterator<Item = u64>) -> usize {
    let (keys, pieces): (Vec<_>, Vec<_>) = numbers.into_iter().map(piece).unzip();
    let found = cache.get(keys).await;
    let found = found.into_iter().zip(pieces);
    let found = found.filter_map(|(found, piece)| Some((found?, piece)));
    found
        .inspect(|(found, piece)| assert!(found == piece))
        .count()
}

/// The files, and what they take, bytes.
fn files(directory: &Path) -> (Vec<PathBuf>, u64) {
    let entries = fs::read_dir(directory).unwrap();
    let paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    let sizes = paths
        .iter()
        .map(|path| fs::metadata(path).unwrap().blocks() * 512);
    let bytes = sizes.sum::<u64>() + fs::metadata(directory).unwrap().blocks() * 512;
    (paths, bytes)
}

/// Opens a cache, once the writer of the one before has seen that nobody sends any more.
pub(crate) async fn open(directory: &Path, capacity: u64) -> Arc<DiskCache> {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        match DiskCache::open(directory, capacity) {
            // Tasks of readers that are gone may hold it, too.
            Err(e) if e.kind() == ErrorKind::Conflict && std::time::Instant::now() < deadline => {
                tokio::task::yield_now().await;
            }
            opened => return opened.unwrap(),
        }
    }
}

/// A cache of ten pieces that nobody has open.
async fn ten() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), CAPACITY).await;
    put(&cache, 0..10).await;
    directory
}

#[tokio::test]
async fn what_was_put_is_there_after_a_restart_and_nothing_else() {
    let directory = ten().await;
    for _ in 0..3 {
        let cache = open(directory.path(), CAPACITY).await;
        assert_eq!(right(&cache, 0..20).await, 10);
        put(&cache, 0..10).await;
    }
    // Nothing is stored twice, and no start leaves files.
    assert_eq!(files(directory.path()).0.len(), 3);
}

#[test]
fn another_replica_size_time_or_range_is_another_piece() {
    let piece =
        |replica, key, size, at, offset, length| of(replica, key, size, at).piece(offset, length);
    let keys = [
        piece("a", "k", 9, 1, 0, 4),
        piece("b", "k", 9, 1, 0, 4),
        piece("a", "l", 9, 1, 0, 4),
        piece("a", "k", 8, 1, 0, 4),
        piece("a", "k", 9, 2, 0, 4),
        piece("a", "k", 9, 1, 1, 4),
        piece("a", "k", 9, 1, 0, 5),
    ];
    let distinct: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!(distinct.len(), keys.len());
}

#[tokio::test]
async fn the_directory_never_takes_more_than_it_may_and_keeps_what_is_used() {
    let directory = tempfile::tempdir().unwrap();
    for part in 0..4 {
        let cache = open(directory.path(), CAPACITY).await;
        for number in part * 500..(part + 1) * 500 {
            put(&cache, [number]).await;
            assert_eq!(right(&cache, [0, number]).await, 2, "{number}");
            let (_, bytes) = files(directory.path());
            assert!(bytes <= CAPACITY, "{bytes} bytes after {number}");
        }
        assert!(part == 0 || files(directory.path()).1 > CAPACITY * 8 / 10);
    }
    let cache = open(directory.path(), CAPACITY).await;
    let kept = right(&cache, 0..2000).await;
    assert!((350..800).contains(&kept), "{kept} pieces of 32 KB");
}

#[tokio::test]
async fn a_second_one_in_one_directory_is_refused_and_says_who_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let first = DiskCache::open(directory.path(), CAPACITY).unwrap();
    let error = DiskCache::open(directory.path(), CAPACITY).err().unwrap();
    let (path, id) = (directory.path().display(), std::process::id());
    assert_eq!(
        error.to_string(),
        format!(
            "{path} is the cache of process {id}, which runs: give each mount a directory of its \
             own"
        )
    );
    drop(first);
    open(directory.path(), CAPACITY).await;
}

#[tokio::test]
async fn a_full_disk_turns_it_off_and_no_read_fails() {
    let directory = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(directory.path(), CAPACITY).unwrap();
    let data = directory.path().join("00000000.data");
    std::os::unix::fs::symlink("/dev/full", data).unwrap();
    put(&cache, 0..3).await;
    assert!(cache.is_off());
    assert_eq!(right(&cache, 0..3).await, 0);
    assert!(!cache.has(piece(0).0));
    put(&cache, 3..6).await;
}

/// Puts a pipe in the place of a file: whoever opens it waits.
fn hang(file: &Path) {
    fs::rename(file, file.with_extension("aside")).unwrap();
    nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

/// Lets those go on who wait, and puts the file back.
fn heal(file: &Path) {
    // Open until the pipe is gone: who comes to open it only now must not wait, either.
    let _writer = both_ways(file);
    fs::rename(file.with_extension("aside"), file).unwrap();
}

/// A pipe that nobody waits for any more.
fn both_ways(pipe: &Path) -> fs::File {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).open(pipe).unwrap()
}

#[tokio::test]
async fn a_disk_that_does_not_answer_is_left_alone_for_a_while() {
    let directory = ten().await;
    let data = directory.path().join("00000000.data");
    let cache = open(directory.path(), CAPACITY).await;
    tokio::time::pause();
    hang(&data);
    let reading = tokio::spawn({
        let cache = Arc::clone(&cache);
        async move { right(&cache, 0..1).await }
    });
    tokio::task::yield_now().await;
    // Timers are late by up to a millisecond.
    tokio::time::advance(PATIENCE + Duration::from_millis(2)).await;
    assert_eq!(reading.await.unwrap(), 0);
    assert!(cache.is_off());
    heal(&data);
    assert_eq!(right(&cache, 1..10).await, 0);
    tokio::time::advance(health::PAUSE_MIN).await;
    assert!(!cache.is_off());
    assert_eq!(right(&cache, 1..10).await, 9);
    assert!(!cache.is_off());
}

#[tokio::test]
async fn whoever_has_time_does_not_wait_for_ever_for_a_disk_that_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), CAPACITY).await;
    let data = directory.path().join("00000000.data");
    nix::unistd::mkfifo(&data, nix::sys::stat::Mode::S_IRWXU).unwrap();
    tokio::time::pause();
    let large = Bytes::from(vec![0; WAITING_BYTES]);
    let pieces = |offset| {
        vec![
            piece(offset),
            (identity().piece(offset, 1 << 30), large.clone()),
        ]
    };
    assert!(cache.put_in_turn(pieces(0)).await);
    assert!(!cache.put_in_turn(pieces(1)).await);
    assert!(cache.is_off());
    let _writer = both_ways(&data);
    fs::remove_file(data).unwrap();
}

#[tokio::test]
async fn a_piece_that_cannot_be_read_is_lost_alone() {
    let directory = ten().await;
    let cache = open(directory.path(), CAPACITY).await;
    let data = directory.path().join("00000000.data");
    let aside = data.with_extension("aside");
    fs::rename(&data, &aside).unwrap();
    fs::create_dir(&data).unwrap();
    assert_eq!(right(&cache, 0..1).await, 0);
    fs::remove_dir(&data).unwrap();
    fs::rename(&aside, &data).unwrap();
    assert!(!cache.is_off());
    assert_eq!(right(&cache, 0..10).await, 9);
}

#[tokio::test]
async fn a_directory_that_is_taken_away_is_an_empty_cache_and_then_none() {
    let directory = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(directory.path(), CAPACITY).unwrap();
    put(&cache, 0..3).await;
    fs::remove_dir_all(directory.path()).unwrap();
    assert_eq!(right(&cache, 0..3).await, 0);
    assert!(!cache.is_off());
    // The next segment cannot be begun.
    put(&cache, 3..100).await;
    assert!(cache.is_off());
}

#[tokio::test]
async fn a_file_in_the_way_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = DiskCache::open(&file, CAPACITY).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Disk);
    let sentence = error.to_string();
    assert!(
        sentence.contains(&format!("use the cache directory {}", file.display())),
        "{sentence}"
    );
}

#[test]
fn a_directory_of_somebody_else_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("00000003.data");
    fs::write(&file, "mine").unwrap();
    let error = DiskCache::open(directory.path(), CAPACITY).err().unwrap();
    let wanted = "is no cache and not empty, it holds 00000003.data: give the cache a directory of";
    assert!(error.to_string().contains(wanted), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[test]
fn the_root_of_a_new_file_system_is_empty() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("lost+found")).unwrap();
    DiskCache::open(directory.path(), CAPACITY).unwrap();
}

#[tokio::test]
async fn a_list_that_cannot_be_read_now_is_left_for_another_time() {
    let directory = ten().await;
    let [list, aside] = ["00000000.list", "aside"].map(|name| directory.path().join(name));
    fs::rename(&list, &aside).unwrap();
    fs::create_dir(&list).unwrap();
    let cache = open(directory.path(), CAPACITY).await;
    assert_eq!(right(&cache, 0..10).await, 0);
    drop(cache);
    fs::remove_dir(&list).unwrap();
    fs::rename(&aside, &list).unwrap();
    let cache = open(directory.path(), CAPACITY).await;
    assert_eq!(right(&cache, 0..10).await, 10);
}

#[tokio::test]
async fn what_cannot_be_carried_over_goes_and_the_cache_stays() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), CAPACITY).await;
    put(&cache, 0..20).await;
    assert_eq!(right(&cache, 0..20).await, 20);
    fs::remove_file(directory.path().join("00000000.data")).unwrap();
    put(&cache, 20..700).await;
    assert!(!directory.path().join("00000000.list").exists());
    assert!(!cache.is_off());
    assert_eq!(right(&cache, [0, 699]).await, 1);
}

#[test]
fn a_size_that_holds_nothing_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let error = DiskCache::open(directory.path(), CAPACITY - 1)
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("give it 16MiB or more"),
        "{error}"
    );
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

/// Opens what is left of ten pieces, reads them, and goes on.
async fn check_and_go_on(directory: &Path) -> usize {
    let cache = open(directory, CAPACITY).await;
    let left = right(&cache, 0..10).await;
    put(&cache, 0..20).await;
    assert_eq!(right(&cache, 0..20).await, 20);
    left
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// A crash, or the loss of power, leaves any part of the end of each file.
    #[test]
    fn a_crash_at_any_write_leaves_right_pieces_or_none(
        data in 0_u64..700_000,
        list in 0_u64..300,
    ) {
        runtime().block_on(async {
            let directory = ten().await;
            for (name, length) in [("00000000.data", data), ("00000000.list", list)] {
                let mut options = fs::OpenOptions::new();
                let file = options.write(true).open(directory.path().join(name)).unwrap();
                file.set_len(length.min(file.metadata().unwrap().len())).unwrap();
            }
            check_and_go_on(directory.path()).await;
        });
    }

    /// Any bytes of any file are wrong: what is damaged is not there, and can be put again.
    #[test]
    fn damage_is_never_served(
        damages in prop::collection::vec((any::<u64>(), any::<u8>(), any::<bool>()), 1..12),
    ) {
        runtime().block_on(async {
            let directory = ten().await;
            let mut hit = HashMap::new();
            for &(at, byte, in_list) in &damages {
                let name = if in_list { "00000000.list" } else { "00000000.data" };
                let mut options = fs::OpenOptions::new();
                let file = options.read(true).write(true);
                let file = file.open(directory.path().join(name)).unwrap();
                let at = at % file.metadata().unwrap().len();
                file.write_all_at(&[byte], at).unwrap();
                hit.insert((name, at), byte);
            }
            let left = check_and_go_on(directory.path()).await;
            assert!(left + hit.len() >= 10, "{left} pieces are left of {damages:?}");
        });
    }
}

#[tokio::test]
async fn what_comes_in_a_rush_waits_for_room_and_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), 4 * CAPACITY).await;
    // More than may wait to be written.
    let rush: Vec<_> = (0..80_u64)
        .map(|number| {
            let bytes = Bytes::from(vec![number as u8; 256 << 10]);
            (identity().piece(number << 30, bytes.len() as u64), bytes)
        })
        .collect();
    for piece in &rush {
        cache.put_soon(vec![piece.clone()]).await;
    }
    cache.settle().await;
    for (key, bytes) in rush {
        assert!(cache.get(vec![key]).await == [Some(bytes)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_is_only_slow_is_not_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), 4 * CAPACITY).await;
    let piece = |number: u64| {
        (
            identity().piece(number << 30, 4),
            Bytes::from_static(b"page"),
        )
    };
    cache.put(vec![piece(1)]);
    cache.settle().await;
    let all = u32::try_from(WAITING_BYTES).unwrap();
    let busy = Arc::clone(&cache.room)
        .acquire_many_owned(all)
        .await
        .unwrap();
    cache.put_soon(vec![piece(2)]).await;
    let (first, second) = (piece(1), piece(2));
    let kept = cache.get(vec![first.0, second.0]).await;
    assert!(kept == [Some(first.1), None]);
    drop(busy);
}
