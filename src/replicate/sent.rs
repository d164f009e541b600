//! Segments on the local disk: the one that waits to be stored, and the last one that was, from
//! which the next one takes its list of predecessors.

use crate::error::{Error, Result};
use crate::format::container::{Footer, SectionKind, Tail};
use crate::format::segment::{self, Predecessor, SegmentIndex};
use crate::replicate::spool::SpooledCommit;
use crate::storage::durable;
use std::collections::VecDeque;
use std::fs;
use std::path::Path;

/// Predecessors that a segment lists at most.
const PREDECESSORS: usize = 64;

/// A complete segment in a local file.
pub struct SentSegment {
    /// Its footer.
    pub footer: Footer,
    /// Its index.
    pub index: SegmentIndex,
    /// What it lists.
    pub predecessors: Vec<Predecessor>,
}

impl SentSegment {
    /// Reads the segment in `file`, if there is one. It was fsynced before it got this name.
    ///
    /// # Errors
    /// `Disk`, `Corrupt`, naming the file.
    pub fn read(file: &Path) -> Result<Option<Self>> {
        let Some(bytes) = durable::read_if_there(file)? else {
            return Ok(None);
        };
        Self::decode(&bytes)
            .map(Some)
            .map_err(|e| e.context(format!("read {}", file.display())))
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let Tail::Whole(footer) = Footer::decode(bytes, bytes.len() as u64)? else {
            return Err(Error::corrupt("the footer is longer than the object"));
        };
        let open = |kind: SectionKind| -> Result<Vec<u8>> {
            match footer.section(kind) {
                Some(place) => {
                    let start = place.offset as usize;
                    place.open(&bytes[start..start + place.length as usize])
                }
                None => Ok(Vec::new()),
            }
        };
        let [blocks, versions, timeline] = SegmentIndex::SECTIONS;
        let (blocks, versions, timeline) = (open(blocks)?, open(versions)?, open(timeline)?);
        let index = SegmentIndex::decode(&footer, [&blocks, &versions, &timeline])?;
        let predecessors = match footer.section(SectionKind::Predecessors) {
            Some(_) => segment::decode_predecessors(&open(SectionKind::Predecessors)?)?,
            None => Vec::new(),
        };
        Ok(Self {
            footer,
            index,
            predecessors,
        })
    }

    /// The last commit in it, in a generation that starts from `base`.
    pub fn last_commit(&self, base: u64) -> SpooledCommit {
        let entry = self
            .index
            .timeline
            .last()
            .expect("a segment has a transaction");
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

    /// The segment in `file` was stored under `key`: keeps it as the last one in `directory`.
    ///
    /// # Errors
    /// `Disk`, `Corrupt`.
    pub fn keep(&mut self, directory: &Path, key: String, file: &Path) -> Result<()> {
        if let Some(sent) = SentSegment::read(file)? {
            self.push(Predecessor::new(key, &sent.footer, Some(sent.index)));
        }
        let last = directory.join(Self::FILE);
        fs::rename(file, &last).map_err(|e| Error::disk(format!("rename {}", file.display()), e))
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
            self.push(Predecessor::new(key, &sent.footer, Some(sent.index)));
        }
        Ok(())
    }
}
