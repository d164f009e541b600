use super::*;
use crate::error::ErrorKind;
use crate::format::wal::checksum;

const SIZE: PageSize = PageSize::new(512).unwrap();
const SALTS: [u32; 2] = [11, 12];

/// A capture of made-up commits.
struct Maker {
    end: WalEnd,
    seq: u64,
    time: i64,
}

impl Maker {
    fn at(position: &Position) -> Self {
        Self {
            end: position.end,
            seq: position.seq,
            time: position.time.micros(),
        }
    }

    /// Appends a commit with these pages; page content follows from `seq` and page number.
    fn commit(&mut self, spool: &Spool, pgnos: &[u32]) {
        let start = self.end.checksum;
        for (i, pgno) in pgnos.iter().enumerate() {
            let commit = if i + 1 == pgnos.len() { 9_u32 } else { 0 };
            let mut frame = Vec::new();
            frame.extend(pgno.to_be_bytes());
            frame.extend(commit.to_be_bytes());
            let page = page(self.seq + 1, *pgno);
            let sum = checksum(WordOrder::Little, self.end.checksum, &frame);
            let sum = checksum(WordOrder::Little, sum, &page);
            for word in [self.end.salts[0], self.end.salts[1], sum[0], sum[1]] {
                frame.extend(word.to_be_bytes());
            }
            frame.extend(page);
            spool.append(&frame).unwrap();
            self.end.checksum = sum;
            self.end.frame += 1;
        }
        self.seq += 1;
        self.time += 1;
        let commit = SpooledCommit {
            seq: self.seq,
            time: Timestamp::from_micros(self.time),
            upper_bound: self.seq % 2 == 1,
            pages: 9,
            frames: pgnos.len() as u32,
            end: self.end,
        };
        spool.commit(commit, start, WordOrder::Little).unwrap();
    }
}

fn page(seq: u64, pgno: u32) -> Vec<u8> {
    (0..512)
        .map(|i| (i * 7 + seq * 13 + u64::from(pgno)) as u8)
        .collect()
}

fn begin(spool: &Spool) -> Maker {
    spool
        .begin_run(RunStart {
            token: 1,
            base: 0,
            page_size: SIZE,
            pages: 9,
            end: WalEnd {
                salts: SALTS,
                frame: 3,
                checksum: [21, 22],
            },
            order: WordOrder::Little,
            after: Timestamp::from_micros(1000),
            began: Timestamp::from_micros(1001),
            reason: "a test".into(),
        })
        .unwrap();
    Maker::at(&spool.position().unwrap())
}

fn seqs(batch: Option<Batch>) -> Vec<u64> {
    batch.map_or(Vec::new(), |batch| {
        batch.commits.iter().map(|c| c.seq).collect()
    })
}

fn all(spool: &Spool, run: u64, after: u64) -> Vec<u64> {
    seqs(spool.batch(run, after, u64::MAX).unwrap())
}

fn newest_log(dir: &Path) -> PathBuf {
    let mut paths: Vec<_> = fs::read_dir(dir.join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.pop().unwrap()
}

#[test]
fn what_was_synced_is_read_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("meta");
    let spool = Spool::open(&dir, Arc::default()).unwrap();
    assert_eq!(*spool.tip().borrow(), None);
    let mut maker = begin(&spool);
    maker.commit(&spool, &[1, 2]);
    maker.commit(&spool, &[3]);
    spool.sync().unwrap();
    let position = spool.position().unwrap();
    drop(spool);

    let spool = Spool::open(&dir, Arc::default()).unwrap();
    assert_eq!(spool.position(), Some(position));
    assert_eq!(
        *spool.tip().borrow(),
        Some(Tip {
            run: 1,
            seq: 2,
            bytes: 0
        })
    );
    let batch = spool.batch(1, 0, u64::MAX).unwrap().unwrap();
    assert_eq!(batch.run, spool.runs()[0]);
    assert_eq!(batch.commits[1].end, maker.end);
    assert_eq!(batch.commits[0].frames, 2);
    assert!(batch.commits[0].upper_bound && !batch.commits[1].upper_bound);
    let mut frames = Vec::new();
    for frame in batch.frames() {
        let frame = frame.unwrap();
        let mut bytes = vec![0; 512];
        batch.read_page(frame.offset, &mut bytes).unwrap();
        let seq = batch.commits[frame.commit as usize].seq;
        assert_eq!(bytes, page(seq, frame.pgno.get()));
        frames.push((seq, frame.pgno.get()));
    }
    assert_eq!(frames, [(1, 1), (1, 2), (2, 3)]);
}

#[test]
fn nothing_shows_before_it_is_synced_and_a_cut_forgets_it() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let mut maker = begin(&spool);
    maker.commit(&spool, &[1]);
    assert_eq!(all(&spool, 1, 0), [0; 0]);
    assert_eq!(spool.tip().borrow().unwrap().seq, 0);
    spool.cut().unwrap();
    let mut maker = Maker::at(&spool.position().unwrap());
    maker.commit(&spool, &[2]);
    spool.sync().unwrap();
    let batch = spool.batch(1, 0, u64::MAX).unwrap().unwrap();
    assert_eq!(batch.frames().next().unwrap().unwrap().pgno.get(), 2);
}

#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let mut maker = begin(&spool);
    maker.commit(&spool, &[1, 2]);
    spool.sync().unwrap();
    let first = spool.position().unwrap();
    let keep = fs::metadata(newest_log(dir.path())).unwrap().len();
    maker.commit(&spool, &[3, 4]);
    spool.sync().unwrap();
    drop(spool);
    let path = newest_log(dir.path());
    let good = fs::read(&path).unwrap();
    let cuts = (keep as usize..good.len())
        .step_by(37)
        .map(|at| good[..at].to_vec());
    let flips = (keep as usize..good.len()).step_by(41).map(|at| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        bytes
    });
    for bytes in cuts.chain(flips) {
        fs::write(&path, &bytes).unwrap();
        let spool = Spool::open(dir.path(), Arc::default()).unwrap();
        assert_eq!(spool.position(), Some(first));
        assert_eq!(fs::metadata(&path).unwrap().len(), keep);
    }
}

#[test]
fn a_batch_takes_what_fits_but_at_least_one_commit() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let mut maker = begin(&spool);
    for pgnos in [&[1, 2, 3][..], &[1], &[2], &[3, 4]] {
        maker.commit(&spool, pgnos);
    }
    spool.sync().unwrap();
    let frame = frame_bytes(SIZE) as u64;
    assert_eq!(seqs(spool.batch(1, 0, 1).unwrap()), [1]);
    assert_eq!(seqs(spool.batch(1, 1, frame * 2).unwrap()), [2, 3]);
    assert_eq!(seqs(spool.batch(1, 1, frame * 4).unwrap()), [2, 3, 4]);
    assert_eq!(seqs(spool.batch(1, 4, frame).unwrap()), [0; 0]);
}

#[test]
fn files_are_rotated_and_released_whole() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let mut maker = begin(&spool);
    let many: Vec<u32> = (1..=20_000).collect();
    for _ in 0..5 {
        maker.commit(&spool, &many);
        spool.sync().unwrap();
    }
    // 10 MiB a commit: two of them fill a file.
    assert_eq!(all(&spool, 1, 0), [1, 2]);
    assert_eq!(all(&spool, 1, 3), [4]);
    assert_eq!(all(&spool, 1, 4), [5]);
    let bytes = spool.bytes();
    spool.release(3).unwrap();
    assert!(spool.bytes() < bytes);
    assert_eq!(all(&spool, 1, 2), [3, 4]);
    let gone = spool.batch(1, 1, 1).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    assert_eq!(
        gone.to_string(),
        "the spool no longer has the commits after 1 of run 1"
    );
    drop(spool);
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    assert_eq!(all(&spool, 1, 4), [5]);
    assert_eq!(spool.position().unwrap().seq, 5);
}

#[test]
fn what_is_all_released_leaves_no_bytes_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let mut maker = begin(&spool);
    let many: Vec<u32> = (1..=500).collect();
    for _ in 0..4 {
        maker.commit(&spool, &many);
        spool.sync().unwrap();
    }
    let full = spool.bytes();
    spool.release(1).unwrap();
    assert_eq!(spool.bytes(), full);
    // What is appended but not durable is neither lost nor shown.
    maker.commit(&spool, &[5]);
    spool.release(4).unwrap();
    assert_eq!(spool.tip().borrow().unwrap().seq, 4);
    spool.sync().unwrap();
    assert_eq!(all(&spool, 1, 4), [5]);
    spool.release(4).unwrap();
    assert_eq!(all(&spool, 1, 4), [5]);
    spool.release(5).unwrap();
    assert!(spool.bytes() < KEEP_BYTES, "{}", spool.bytes());
    assert_eq!(all(&spool, 1, 5), [0; 0]);
    maker.commit(&spool, &[7]);
    spool.sync().unwrap();
    let position = spool.position();
    drop(spool);
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    assert_eq!(spool.position(), position);
    assert_eq!(all(&spool, 1, 5), [6]);
}

#[test]
fn a_run_is_durable_before_its_first_commit_and_ends_where_the_next_begins() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let mut maker = begin(&spool);
    maker.commit(&spool, &[1]);
    spool.sync().unwrap();
    begin(&spool);
    begin(&spool);
    drop(spool);

    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let ids: Vec<u64> = spool.runs().iter().map(|run| run.id).collect();
    assert_eq!(ids, [1, 3]);
    // The state that each run starts from has a number of its own.
    assert_eq!(spool.runs()[1].base, 3);
    assert_eq!(all(&spool, 1, 0), [1]);
    assert_eq!(all(&spool, 1, 1), [0; 0]);
    assert_eq!(all(&spool, 3, 3), [0; 0]);
    spool.release(1).unwrap();
    assert_eq!(all(&spool, 1, 1), [0; 0]);
    assert_eq!(
        spool.batch(1, 0, 1).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(spool.runs().len(), 1);
}

#[test]
fn damage_in_an_older_file_reads_as_lost_commits() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let mut maker = begin(&spool);
    maker.commit(&spool, &[1]);
    maker.commit(&spool, &[2]);
    spool.sync().unwrap();
    let path = newest_log(dir.path());
    begin(&spool);
    drop(spool);
    let mut bytes = fs::read(&path).unwrap();
    let middle_of_the_second = bytes.len() - 200;
    bytes[middle_of_the_second] ^= 1;
    fs::write(&path, bytes).unwrap();

    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let lost = spool.batch(1, 0, u64::MAX).unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::NotFound);
    let sentence = lost.to_string();
    assert!(
        sentence.starts_with("the spool has lost commits after 1: ") && sentence.contains(".log"),
        "{sentence}"
    );
}

#[test]
fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let refused = Spool::open(dir.path(), Arc::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert_eq!(
        refused.to_string(),
        format!(
            "another process uses the spool {0}: it holds the lock on {0}/lock",
            dir.path().display()
        )
    );
}

#[test]
fn only_the_owner_may_look_inside() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("meta");
    let spool = Spool::open(&dir, Arc::default()).unwrap();
    begin(&spool);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&newest_log(&dir)), 0o600);
    assert_eq!(mode(&dir.join("lock")), 0o600);
}

#[test]
fn a_failure_latches_until_the_disk_was_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let mut maker = begin(&spool);
    maker.commit(&spool, &[1]);
    spool.sync().unwrap();
    // Without the directory no next file can be made.
    let moved = dir.path().join("moved");
    fs::rename(dir.path().join("log"), &moved).unwrap();
    let many: Vec<u32> = (1..=40_000).collect();
    maker.commit(&spool, &many);
    let failed = spool.sync().unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Disk);
    let latched = spool.append(&[0; 536]).unwrap_err();
    assert_eq!(latched.to_string(), failed.to_string());
    assert_eq!(latched.kind(), ErrorKind::Disk);
    fs::rename(&moved, dir.path().join("log")).unwrap();
    assert!(spool.sync().is_err());
    spool.read_back().unwrap();
    assert_eq!(spool.position().unwrap().seq, 2);
    maker.commit(&spool, &[7]);
    spool.sync().unwrap();
    assert_eq!(spool.tip().borrow().unwrap().seq, 3);
}

#[test]
fn what_the_disk_lost_is_not_there_after_it_was_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let mut maker = begin(&spool);
    maker.commit(&spool, &[1]);
    spool.sync().unwrap();
    let first = spool.position().unwrap();
    maker.commit(&spool, &[2, 3]);
    spool.sync().unwrap();
    let path = newest_log(dir.path());
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    file.write_all_at(b"lost", length - 500).unwrap();
    spool.read_back().unwrap();
    assert_eq!(spool.position(), Some(first));
    assert_eq!(spool.tip().borrow().unwrap().seq, 1);
    assert_eq!(all(&spool, 1, 0), [1]);
    // A replica may have the lost commit 2: its number is not used again.
    begin(&spool);
    assert_eq!(spool.runs()[1].base, 3);
    assert_eq!(all(&spool, 1, 1), [0; 0]);
    assert_eq!(all(&spool, 1, 2), [0; 0]);
}

#[test]
fn a_run_is_told_from_one_with_its_number_in_another_spool_by_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    begin(&spool);
    let before = spool.runs().pop().unwrap();
    assert_eq!(before.token, 1);
    drop(spool);
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    assert_eq!(spool.runs().pop().unwrap(), before);
}

#[test]
fn a_file_that_is_no_log_names_itself_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    begin(&spool);
    drop(spool);
    let path = newest_log(dir.path());
    let good = fs::read(&path).unwrap();
    let check = |bytes: &[u8], reason: &str| {
        fs::write(&path, bytes).unwrap();
        let refused = Spool::open(dir.path(), Arc::default()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
        assert_eq!(
            refused.to_string(),
            format!(
                "spool file {} cannot be read; remove it to let a new generation begin: {reason}",
                path.display()
            )
        );
    };
    check(b"", "its header does not begin with \"sqlrspl1\"");
    check(&good[..20], "its header is cut short");
    let mut bytes = good.clone();
    bytes[30] ^= 1;
    check(&bytes, "its header has a wrong checksum");
}

#[test]
fn an_end_of_the_wal_is_found_where_it_was_in_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let mut maker = begin(&spool);
    let mut ends = vec![maker.end];
    for _ in 0..3 {
        maker.commit(&spool, &[1, 2]);
        ends.push(maker.end);
    }
    spool.sync().unwrap();
    let other = WalEnd {
        checksum: [1, 2],
        ..maker.end
    };
    ends.push(other);
    let seqs = |spool: &Spool, run| {
        let found = spool.seqs(run, &ends).unwrap();
        ends.iter()
            .map(|end| found.get(end).copied())
            .collect::<Vec<_>>()
    };
    let expect = [Some(0), Some(1), Some(2), Some(3), None];
    assert_eq!(seqs(&spool, 1), expect);
    drop(spool);
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    assert_eq!(seqs(&spool, 1), expect);
    begin(&spool);
    assert_eq!(seqs(&spool, 2), [Some(4), None, None, None, None]);
}

#[test]
fn an_empty_wal_is_no_place_that_could_be_found() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), Arc::default()).unwrap();
    let empty = WalEnd::default();
    spool
        .begin_run(RunStart {
            token: 1,
            base: 7,
            page_size: SIZE,
            pages: 9,
            end: empty,
            order: WordOrder::Little,
            after: Timestamp::from_micros(1000),
            began: Timestamp::from_micros(1001),
            reason: "a test".into(),
        })
        .unwrap();
    assert_eq!(spool.position().unwrap().seq, 7);
    assert!(spool.seqs(1, &[empty]).unwrap().is_empty());
}

#[test]
fn where_the_capture_stands_is_told_while_the_disk_keeps_it_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Arc::new(Spool::open(dir.path(), Arc::default()).unwrap());
    let waiting = spool.writer();
    let (sender, told) = std::sync::mpsc::channel();
    let asked = Arc::clone(&spool);
    let asking = std::thread::spawn(move || sender.send(asked.position()));
    let told = told.recv_timeout(std::time::Duration::from_secs(20));
    drop(waiting);
    asking.join().unwrap().ok();
    assert_eq!(told, Ok(None));
}
