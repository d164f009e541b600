//! Segments on the local disk: the one that waits to be stored, and the last one that was, from
//! which the next one takes its list of predecessors.

use crate::error::{Error, ErrorKind, Result};
use crate::format::container::{Footer, SectionKind, TAIL_BYTES, Tail, verify_object};
use crate::format::segment::{self, Predecessor, SegmentIndex, TimelineEntry};
use crate::replicate::spool::SpooledCommit;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Predecessors that a segment lists at most.
const PREDECESSORS: usize = 64;

/// The index of a segment is read only if it is at most this long, inflated: longer ones are in no
/// list.
const INDEX_BYTES: u64 = 64 << 10;

/// What the indexes of a list take in memory at most. This is above what 64 KiB, the most that a
/// list carries, decode to.
const INDEXES_MEMORY: usize = 1 << 20;

/// A larger segment is not kept once it is stored; after a restart the list then begins anew.
const KEPT_BYTES: u64 = 4 << 20;

/// What is known of a complete segment in a local file; the pages are not read, for one transaction
/// may exceed memory.
pub struct SentSegment {
    /// Its footer.
    pub footer: Footer,
    /// Its transactions.
    pub timeline: Vec<TimelineEntry>,
    /// Its index, while it is small.
    pub index: Option<SegmentIndex>,
    /// What it lists.
    pub predecessors: Vec<Predecessor>,
    /// The key of the snapshot that holds the pages of its one transaction, if one does.
    pub snapshot: Option<String>,
}

impl SentSegment {
    /// Reads the segment in `path`, if there is one. It was fsynced before it got this name.
    ///
    /// # Errors
    /// `Disk`, `Corrupt`, naming the file.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let failed = |e| Error::disk(format!("read {}", path.display()), e);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let length = file.metadata().map_err(failed)?.len();
        let read = |offset: u64, count: u64| -> Result<Vec<u8>> {
            let mut bytes = vec![0; count as usize];
            file.read_exact_at(&mut bytes, offset).map_err(failed)?;
            Ok(bytes)
        };
        Self::decode(length, read)
            .map(Some)
            .map_err(|e| e.context(format!("read {}", path.display())))
    }

    /// Reads the segment in `path`, if there is one that is whole as far as it is read.
    ///
    /// # Errors
    /// `Disk`.
    pub fn read_if_whole(path: &Path) -> Result<Option<Self>> {
        whole(Self::read(path))
    }

    /// Reads the segment in `path`, if there is one of which every byte is right.
    ///
    /// # Errors
    /// `Disk`.
    pub fn read_if_right(path: &Path) -> Result<Option<Self>> {
        let read = Self::read(path).and_then(|read| {
            if read.is_some() {
                let failed = |e| Error::disk(format!("read {}", path.display()), e);
                let verified = verify_object(&mut File::open(path).map_err(failed)?);
                verified.map_err(|e| e.context(format!("read {}", path.display())))?;
            }
            Ok(read)
        });
        whole(read)
    }

    fn decode(length: u64, read: impl Fn(u64, u64) -> Result<Vec<u8>>) -> Result<Self> {
        let tail = TAIL_BYTES.min(length);
        let Tail::Whole(footer) = Footer::decode(&read(length - tail, tail)?, length)? else {
            return Err(Error::corrupt("the footer is longer than a footer can be"));
        };
        let open = |kind: SectionKind| -> Result<Vec<u8>> {
            match footer.section(kind) {
                Some(place) => place.open(&read(place.offset, place.length)?),
                None => Ok(Vec::new()),
            }
        };
        let timeline =
            segment::decode_timeline_section(&footer.header, &open(SectionKind::Timeline)?)?;
        let index_bytes: u64 = SegmentIndex::SECTIONS
            .iter()
            .filter_map(|&kind| footer.section(kind))
            .map(|place| place.raw_length)
            .sum();
        let index = if index_bytes <= INDEX_BYTES {
            let [blocks, versions, timeline] = SegmentIndex::SECTIONS;
            let (blocks, versions, timeline) = (open(blocks)?, open(versions)?, open(timeline)?);
            Some(SegmentIndex::decode(
                &footer,
                [&blocks, &versions, &timeline],
            )?)
        } else {
            None
        };
        let predecessors = match footer.section(SectionKind::Predecessors) {
            Some(_) => segment::decode_predecessors(&open(SectionKind::Predecessors)?)?,
            None => Vec::new(),
        };
        let snapshot = match footer.section(SectionKind::SnapshotKey) {
            Some(_) => Some(segment::decode_snapshot_key(&open(
                SectionKind::SnapshotKey,
            )?)?),
            None => None,
        };
        Ok(Self {
            footer,
            timeline,
            index,
            predecessors,
            snapshot,
        })
    }

    /// The last commit in it, in a generation that starts from `base`.
    pub fn last_commit(&self, base: u64) -> SpooledCommit {
        let entry = self.timeline.last().expect("a segment has a transaction");
        SpooledCommit {
            seq: base + entry.txid.get() - 1,
            time: entry.time,
            upper_bound: entry.upper_bound,
            pages: entry.pages,
            frames: 0,
            end: self.footer.header.end,
        }
    }
}

/// A segment that is damaged, or of a later version, is as if it were not there.
fn whole(read: Result<Option<SentSegment>>) -> Result<Option<SentSegment>> {
    match read {
        Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) => {
            tracing::warn!("it counts for nothing: {e}");
            Ok(None)
        }
        read => read,
    }
}

/// The newest stored segments of the generation, newest last.
#[derive(Debug, Default)]
pub struct Recent {
    segments: VecDeque<Predecessor>,
}

impl Recent {
    /// The name of the last stored segment's file.
    pub const FILE: &str = "last.wal";

    /// What the next segment lists.
    pub fn predecessors(&self) -> Vec<Predecessor> {
        self.segments.iter().cloned().collect()
    }

    /// The segment in `file` was stored under `key`: lists it, and keeps its file as the last one
    /// in `directory`, unless it is large. If the file is gone or damaged the list begins anew.
    ///
    /// # Errors
    /// `Disk`.
    pub fn keep(&mut self, directory: &Path, key: String, file: &Path) -> Result<()> {
        let sent = SentSegment::read_if_whole(file)?;
        let is_kept = sent
            .as_ref()
            .is_some_and(|sent| sent.footer.length <= KEPT_BYTES);
        match sent {
            Some(sent) => self.push(Predecessor::new(key, &sent.footer, sent.index)),
            None => self.segments.clear(),
        }
        let moved = if is_kept {
            fs::rename(file, directory.join(Self::FILE))
        } else {
            fs::remove_file(file)
        };
        match moved {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::disk(format!("put away {}", file.display()), e))
            }
            _ => Ok(()),
        }
    }

    fn push(&mut self, segment: Predecessor) {
        if self.segments.len() == PREDECESSORS {
            self.segments.pop_front();
        }
        self.segments.push_back(segment);
        let mut taken = 0;
        for segment in self.segments.iter_mut().rev() {
            taken += segment.index.as_ref().map_or(0, memory_of);
            if taken > INDEXES_MEMORY {
                segment.index = None;
            }
        }
    }

    /// After a restart: what the last stored segment listed, and itself as `key`, if it is the one
    /// with this hash. The list only spares readers some requests, so a damaged file gives none.
    ///
    /// # Errors
    /// `Disk`.
    pub fn load(
        &mut self,
        directory: &Path,
        key: String,
        hash: &crate::format::ids::ObjectHash,
    ) -> Result<()> {
        self.segments.clear();
        let sent = SentSegment::read_if_whole(&directory.join(Self::FILE))?;
        if let Some(sent) = sent.filter(|sent| sent.footer.hash == *hash) {
            self.segments.extend(sent.predecessors);
            self.push(Predecessor::new(key, &sent.footer, sent.index));
        }
        Ok(())
    }
}

/// Bytes of a decoded index.
fn memory_of(index: &SegmentIndex) -> usize {
    size_of_val(&*index.versions)
        + size_of_val(&*index.timeline)
        + size_of_val(&*index.blocks.blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::container::BlockTable;
    use crate::format::ids::{ObjectHash, ObjectId, Pgno, Txid};

    fn segment(number: u64, versions: usize) -> Predecessor {
        let txid = Txid::new(number).unwrap();
        Predecessor {
            key: String::new(),
            length: 0,
            hash: ObjectHash([0; 32]),
            object_id: ObjectId([0; 8]),
            first: txid,
            last: txid,
            previous: ObjectHash([0; 32]),
            index: Some(SegmentIndex {
                blocks: BlockTable::default(),
                versions: vec![(Pgno::new(1).unwrap(), txid); versions],
                timeline: Vec::new(),
            }),
        }
    }

    /// How many of the listed segments, the newest ones, keep their index.
    fn indexed(versions: usize) -> usize {
        let mut recent = Recent::default();
        for number in 1..=100 {
            recent.push(segment(number, versions));
        }
        let list = recent.predecessors();
        assert_eq!(list.len(), PREDECESSORS);
        let indexed = list.iter().rev().take_while(|s| s.index.is_some()).count();
        assert!(
            list[..PREDECESSORS - indexed]
                .iter()
                .all(|s| s.index.is_none())
        );
        indexed
    }

    #[test]
    fn the_oldest_of_many_large_indexes_are_given_up() {
        assert_eq!(indexed(10), PREDECESSORS);
        let version = size_of::<(Pgno, Txid)>();
        assert_eq!(indexed(INDEXES_MEMORY / version / 4), 4);
    }

    #[test]
    fn a_damaged_last_segment_gives_an_empty_list() {
        let dir = tempfile::tempdir().unwrap();
        let mut recent = Recent::default();
        recent.push(segment(1, 1));
        fs::write(dir.path().join(Recent::FILE), "damaged").unwrap();
        recent
            .load(dir.path(), "key".into(), &ObjectHash([0; 32]))
            .unwrap();
        assert_eq!(recent.predecessors(), []);
    }

    #[test]
    fn a_stored_segment_whose_file_was_damaged_is_put_away_and_in_no_list() {
        let dir = tempfile::tempdir().unwrap();
        let mut recent = Recent::default();
        recent.push(segment(1, 1));
        let file = dir.path().join("2.wal");
        fs::write(&file, "damaged").unwrap();
        recent.keep(dir.path(), "key".into(), &file).unwrap();
        assert_eq!(recent.predecessors(), []);
        assert!(!file.exists());
    }
}
