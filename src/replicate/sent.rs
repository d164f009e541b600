//! Segments on the local disk: the one that waits to be stored, and the last one that was, from
//! which the next one takes its list of predecessors.

use crate::error::{Error, Result};
use crate::format::container::{Footer, SectionKind, TAIL_BYTES, Tail};
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
        let versions = footer.section(SectionKind::Versions);
        let index = if versions.is_some_and(|place| place.raw_length <= INDEX_BYTES) {
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
        Ok(Self {
            footer,
            timeline,
            index,
            predecessors,
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
    /// in `directory`, unless it is large.
    ///
    /// # Errors
    /// `Disk`, `Corrupt`.
    pub fn keep(&mut self, directory: &Path, key: String, file: &Path) -> Result<()> {
        let length = match SentSegment::read(file)? {
            Some(sent) => {
                let length = sent.footer.length;
                self.push(Predecessor::new(key, &sent.footer, sent.index));
                length
            }
            None => return Ok(()),
        };
        let moved = if length <= KEPT_BYTES {
            fs::rename(file, directory.join(Self::FILE))
        } else {
            fs::remove_file(file)
        };
        moved.map_err(|e| Error::disk(format!("put away {}", file.display()), e))
    }

    fn push(&mut self, segment: Predecessor) {
        if self.segments.len() == PREDECESSORS {
            self.segments.pop_front();
        }
        self.segments.push_back(segment);
    }

    /// After a restart: what the last stored segment listed, and itself as `key`, if it is the one
    /// with this hash.
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
        let Some(sent) = SentSegment::read(&directory.join(Self::FILE))? else {
            return Ok(());
        };
        if sent.footer.hash == *hash {
            self.segments.extend(sent.predecessors);
            self.push(Predecessor::new(key, &sent.footer, sent.index));
        }
        Ok(())
    }
}
