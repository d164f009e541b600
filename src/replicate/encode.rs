//! From a batch of captured commits to a WAL segment: sorted by (page, transaction), in bounded
//! memory whatever the size of a transaction.

use crate::error::{Error, Result};
use crate::format::container::{Header, Scratch, ScratchFile, Written};
use crate::format::ids::{Pgno, Timestamp, Txid};
use crate::format::segment::{Predecessor, SegmentWriter, TimelineEntry};
use crate::replicate::spool::{Batch, SpooledCommit};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};

/// Page versions that are sorted in memory at once: 8 MiB of them.
const SORTED_AT_ONCE: usize = 512 << 10;

/// Where the newest frame of a page in a transaction lies. Ordered as segments are; of two frames
/// of one page in one transaction the later one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    pgno: u32,
    /// Which commit of the batch, from 0.
    commit: u32,
    /// Where in the spool.
    offset: u64,
}

const VERSION_BYTES: usize = 16;

/// The timeline of a batch whose first commit is `first`; times go on after `after`, strictly
/// increasing.
pub fn timeline(commits: &[SpooledCommit], first: Txid, after: Timestamp) -> Vec<TimelineEntry> {
    let mut last = after;
    let mut txid = first;
    let mut entries = Vec::with_capacity(commits.len());
    for commit in commits {
        last = commit.time.max(Timestamp::from_micros(last.micros() + 1));
        entries.push(TimelineEntry {
            upper_bound: commit.upper_bound,
            ..TimelineEntry::new(txid, last, commit.pages)
        });
        txid = txid.next();
    }
    entries
}

/// Writes the segment of a batch to `out`. `header` is complete but for the application's SQLite
/// version, which page 1 may show; the version that was written comes back with the object.
///
/// # Errors
/// `Disk`.
pub fn encode_segment(
    batch: &Batch,
    out: File,
    header: &Header,
    timeline: &[TimelineEntry],
    predecessors: &[Predecessor],
    scratch: Scratch<'_>,
) -> Result<(Written, u32)> {
    let mut header = header.clone();
    let mut writer = SegmentWriter::new(
        BufWriter::new(out),
        header.object_id,
        header.page_size,
        scratch,
    )?;
    let mut page = vec![0; header.page_size.bytes()];
    let mut add = |version: Version| -> Result<()> {
        batch.read_page(version.offset, &mut page)?;
        let pgno = Pgno::new(version.pgno).expect("the spool numbers pages from 1");
        if pgno == Pgno::FIRST {
            header.sqlite_version = u32::from_be_bytes([page[96], page[97], page[98], page[99]]);
        }
        writer.push(pgno, timeline[version.commit as usize].txid, &page)
    };
    let mut last: Option<Version> = None;
    for version in sorted(batch, SORTED_AT_ONCE, scratch)? {
        let version = version?;
        if let Some(last) = last.replace(version)
            && (last.pgno, last.commit) != (version.pgno, version.commit)
        {
            add(last)?;
        }
    }
    if let Some(last) = last {
        add(last)?;
    }
    let (out, written) = writer.finish(&header, timeline, predecessors, None)?;
    sync(out)?;
    Ok((written, header.sqlite_version))
}

/// Writes the segment of a transaction whose pages lie in the snapshot at `snapshot_key` to `out`:
/// nothing but its place in the history.
///
/// # Errors
/// `Disk`.
pub fn encode_mark(
    snapshot_key: &str,
    out: File,
    header: &Header,
    entry: TimelineEntry,
    predecessors: &[Predecessor],
    scratch: Scratch<'_>,
) -> Result<Written> {
    let out = BufWriter::new(out);
    let writer = SegmentWriter::new(out, header.object_id, header.page_size, scratch)?;
    let timeline = [TimelineEntry {
        in_snapshot: true,
        ..entry
    }];
    let (out, written) = writer.finish(header, &timeline, predecessors, Some(snapshot_key))?;
    sync(out)?;
    Ok(written)
}

fn sync(out: BufWriter<File>) -> Result<()> {
    let synced = out
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error);
    synced
        .and_then(|file| file.sync_all())
        .map_err(|e| Error::disk("write a WAL segment to the spool", e))
}

/// All versions of a batch in order. Pages beyond the size that their own commit leaves are gone:
/// a transaction may write pages and then shrink the database below them.
fn sorted<'a>(
    batch: &'a Batch,
    at_once: usize,
    scratch: Scratch<'_>,
) -> Result<Box<dyn Iterator<Item = Result<Version>> + 'a>> {
    let mut runs: Vec<SortedRun> = Vec::new();
    let mut versions: Vec<Version> = Vec::new();
    for frame in batch.frames() {
        let frame = frame?;
        if frame.pgno.get() > batch.commits[frame.commit as usize].pages {
            continue;
        }
        if versions.len() == at_once {
            versions.sort_unstable();
            runs.push(SortedRun::write(&versions, scratch)?);
            versions.clear();
        }
        versions.push(Version {
            pgno: frame.pgno.get(),
            commit: frame.commit,
            offset: frame.offset,
        });
    }
    versions.sort_unstable();
    if runs.is_empty() {
        return Ok(Box::new(versions.into_iter().map(Ok)));
    }
    runs.push(SortedRun::write(&versions, scratch)?);
    Ok(Box::new(Merge::new(runs)?))
}

/// A sorted run of versions in a scratch file.
struct SortedRun {
    file: BufReader<Box<dyn ScratchFile>>,
    left: usize,
}

impl SortedRun {
    fn write(versions: &[Version], scratch: Scratch<'_>) -> Result<Self> {
        let written = || -> std::io::Result<Box<dyn ScratchFile>> {
            let mut file = BufWriter::with_capacity(64 << 10, scratch()?);
            for version in versions {
                let mut bytes = [0; VERSION_BYTES];
                bytes[..4].copy_from_slice(&version.pgno.to_le_bytes());
                bytes[4..8].copy_from_slice(&version.commit.to_le_bytes());
                bytes[8..].copy_from_slice(&version.offset.to_le_bytes());
                file.write_all(&bytes)?;
            }
            let mut file = file
                .into_inner()
                .map_err(std::io::IntoInnerError::into_error)?;
            file.seek(SeekFrom::Start(0))?;
            Ok(file)
        };
        let file = written().map_err(|e| Error::disk("sort the pages of a transaction", e))?;
        Ok(Self {
            file: BufReader::with_capacity(64 << 10, file),
            left: versions.len(),
        })
    }

    fn next(&mut self) -> Result<Option<Version>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut bytes = [0; VERSION_BYTES];
        self.file
            .read_exact(&mut bytes)
            .map_err(|e| Error::disk("sort the pages of a transaction", e))?;
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        Ok(Some(Version {
            pgno: word(0),
            commit: word(4),
            offset: u64::from(word(8)) | u64::from(word(12)) << 32,
        }))
    }
}

/// The runs, merged.
struct Merge {
    runs: Vec<SortedRun>,
    heads: BinaryHeap<Reverse<(Version, usize)>>,
}

impl Merge {
    fn new(mut runs: Vec<SortedRun>) -> Result<Self> {
        let mut heads = BinaryHeap::with_capacity(runs.len());
        for (number, run) in runs.iter_mut().enumerate() {
            heads.extend(run.next()?.map(|version| Reverse((version, number))));
        }
        Ok(Self { runs, heads })
    }
}

impl Iterator for Merge {
    type Item = Result<Version>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((version, number)) = self.heads.pop()?;
        match self.runs[number].next() {
            Ok(Some(next)) => self.heads.push(Reverse((next, number))),
            Ok(None) => {}
            Err(e) => return Some(Err(e)),
        }
        Some(Ok(version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::container::Kind;
    use crate::format::ids::{PageSize, WalEnd};
    use crate::format::sample;
    use crate::format::wal::WordOrder;
    use crate::replicate::sent::SentSegment;
    use crate::replicate::spool::{RunStart, Spool};
    use crate::storage::durable::scratch_in;

    const SIZE: PageSize = PageSize::new(512).unwrap();

    /// A batch of commits, each a list of pages and the size that it leaves. A page is filled with
    /// the number of its frame, counted over the batch.
    fn batch(dir: &std::path::Path, commits: &[(&[u32], u32)]) -> Batch {
        let spool = Spool::open(dir, std::sync::Arc::default()).unwrap();
        let began = Timestamp::from_micros(1000);
        spool
            .begin_run(RunStart {
                token: 1,
                base: 0,
                page_size: SIZE,
                pages: 1,
                end: WalEnd::default(),
                order: WordOrder::Little,
                after: began,
                began,
                reason: "a test".to_owned(),
            })
            .unwrap();
        let mut frame = 0_u32;
        for (at, (pages, size)) in commits.iter().enumerate() {
            for (i, pgno) in pages.iter().enumerate() {
                frame += 1;
                let commit = if i + 1 == pages.len() { *size } else { 0 };
                let mut bytes = Vec::new();
                bytes.extend(pgno.to_be_bytes());
                bytes.extend(commit.to_be_bytes());
                bytes.extend([0; 16]);
                bytes.extend([frame as u8; 512]);
                spool.append(&bytes).unwrap();
            }
            let seq = at as u64 + 1;
            let commit = SpooledCommit {
                seq,
                time: Timestamp::from_micros(1000 + at as i64 * 10 + 1),
                upper_bound: false,
                pages: *size,
                frames: pages.len() as u32,
                end: WalEnd {
                    frame,
                    ..WalEnd::default()
                },
            };
            spool.commit(commit, [0, 0], WordOrder::Little).unwrap();
        }
        spool.sync().unwrap();
        spool.batch(1, 0, u64::MAX).unwrap().unwrap()
    }

    /// `pgno.commit=fill` of all versions in order.
    fn explain(batch: &Batch, at_once: usize, dir: &std::path::Path) -> String {
        let mut page = vec![0; SIZE.bytes()];
        let versions = sorted(batch, at_once, &scratch_in(dir))
            .unwrap()
            .map(|version| {
                let version = version.unwrap();
                batch.read_page(version.offset, &mut page).unwrap();
                format!("{}.{}={}", version.pgno, version.commit, page[0])
            });
        versions.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn versions_are_sorted_by_page_and_then_by_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let batch = batch(dir.path(), &[(&[3, 1], 3), (&[2, 3], 3)]);
        assert_eq!(explain(&batch, 100, dir.path()), "1.0=2 2.1=3 3.0=1 3.1=4");
    }

    #[test]
    fn sorting_in_scratch_files_gives_the_same_as_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let batch = batch(
            dir.path(),
            &[(&[5, 1, 4, 2], 5), (&[2, 5, 3], 5), (&[1], 5)],
        );
        let in_memory = explain(&batch, 100, dir.path());
        for at_once in 1..9 {
            assert_eq!(
                explain(&batch, at_once, dir.path()),
                in_memory,
                "{at_once} at once"
            );
        }
    }

    #[test]
    fn pages_beyond_the_size_that_a_transaction_leaves_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let batch = batch(dir.path(), &[(&[9, 1, 2], 2), (&[3], 3)]);
        assert_eq!(explain(&batch, 100, dir.path()), "1.0=2 2.0=3 3.1=4");
    }

    #[test]
    fn of_two_frames_of_a_page_in_one_transaction_the_later_one_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let batch = batch(dir.path(), &[(&[2, 1, 2], 2)]);
        let file = dir.path().join("segment.wal");
        let header = sample::header(Kind::Segment, SIZE, 2, 2);
        let entries = timeline(&batch.commits, header.first, Timestamp::from_micros(0));
        let out = File::create(&file).unwrap();
        let scratch = scratch_in(dir.path());
        let (written, version) =
            encode_segment(&batch, out, &header, &entries, &[], &scratch).unwrap();
        assert_eq!(written.slots, 2);
        assert_eq!(
            version, 0x0202_0202,
            "bytes 96 to 99 of page 1, whose frame is the second"
        );
        let segment = SentSegment::read(&file).unwrap().unwrap();
        assert_eq!(segment.footer.hash, written.hash);
        let bytes = std::fs::read(&file).unwrap();
        let block = &segment.index.unwrap().blocks.blocks[0];
        let stored = &bytes[block.offset as usize..][..block.length as usize];
        let pages = block.open(stored, SIZE).unwrap();
        assert_eq!((pages[0], pages[512]), (2, 3));
    }

    #[test]
    fn a_mark_has_no_page_and_names_its_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let batch = batch(dir.path(), &[(&[2, 1], 2)]);
        let file = dir.path().join("mark.wal");
        let header = sample::header(Kind::Segment, SIZE, 2, 2);
        let entry = timeline(&batch.commits, header.first, Timestamp::from_micros(0))[0];
        let (out, scratch) = (File::create(&file).unwrap(), scratch_in(dir.path()));
        let written = encode_mark("a key", out, &header, entry, &[], &scratch).unwrap();
        assert_eq!((written.slots, written.block_bytes), (0, 0));
        let mark = SentSegment::read_if_right(&file).unwrap().unwrap();
        assert_eq!(mark.snapshot.as_deref(), Some("a key"));
        let marked = TimelineEntry {
            in_snapshot: true,
            ..entry
        };
        assert_eq!(mark.timeline, [marked]);
    }

    #[test]
    fn times_ascend_strictly_and_go_on_after_what_is_stored() {
        let commit = |time| SpooledCommit {
            seq: 1,
            time: Timestamp::from_micros(time),
            upper_bound: false,
            pages: 1,
            frames: 1,
            end: WalEnd::default(),
        };
        let times = timeline(&[commit(5), commit(20), commit(3)], Txid::FIRST.next(), {
            Timestamp::from_micros(10)
        });
        let micros: Vec<i64> = times.iter().map(|entry| entry.time.micros()).collect();
        assert_eq!(micros, [11, 20, 21]);
        assert_eq!(times[2].txid, Txid::new(4).unwrap());
    }
}
