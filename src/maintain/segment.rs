//! A stored segment, opened to be merged, accounted for, or laid over a snapshot.

use crate::error::{Error, Result};
use crate::format::container::{BlockTable, Header, Kind, SectionKind};
use crate::format::ids::{ObjectHash, Pgno, Txid};
use crate::format::segment::{SegmentIndex, TimelineEntry, VersionCursor, decode_timeline_section};
use crate::maintain::pour::{self, Poured, Sink};
use crate::maintain::versions::{Keep, Listed};
use crate::storage::Store;
use crate::storage::object::StoredObject;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A segment whose footer and index were read. Its versions stay encoded.
pub(super) struct OpenSegment {
    pub(super) object: StoredObject,
    pub(super) blocks: BlockTable,
    pub(super) versions: VersionCursor,
    pub(super) timeline: Vec<TimelineEntry>,
}

impl OpenSegment {
    /// Reads the footer and the index of the segment of `size` bytes at `key`.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Invalid`, `Unavailable`, naming the object.
    pub(super) async fn open(store: &dyn Store, key: &str, size: u64) -> Result<Self> {
        let object = StoredObject::open(store, key, size).await?;
        let sections = object.sections(store, SegmentIndex::SECTIONS).await?;
        let decoded = decode(&object, sections);
        let (blocks, versions, timeline) =
            decoded.map_err(|e| e.context(format!("read {}/{key}", store.location())))?;
        Ok(Self {
            object,
            blocks,
            versions,
            timeline,
        })
    }

    pub(super) fn header(&self) -> &Header {
        &self.object.footer.header
    }

    /// The hash that the level-0 segment behind this one carries.
    pub(super) fn hands_on(&self) -> ObjectHash {
        match self.header().level {
            0 => self.object.footer.hash,
            _ => self.header().last_input,
        }
    }

    /// Its pages lie in a snapshot.
    pub(super) fn is_mark(&self) -> bool {
        self.object
            .footer
            .section(SectionKind::SnapshotKey)
            .is_some()
    }

    /// All its transactions.
    pub(super) fn range(&self) -> RangeInclusive<Txid> {
        self.header().first..=self.header().last
    }

    /// Its versions of these transactions.
    pub(super) fn listed(&self, counts: RangeInclusive<Txid>) -> Listed {
        Listed::Segment {
            cursor: self.versions.clone(),
            counts,
        }
    }

    /// What is read of it when the pages of these transactions are.
    pub(super) fn poured(&self, counts: RangeInclusive<Txid>) -> Poured {
        Poured {
            key: self.object.key.clone(),
            blocks: self.blocks.clone(),
            listed: self.listed(counts),
        }
    }
}

/// Reads all of a segment.
///
/// # Errors
/// `Corrupt` if it is damaged; `NotFound`, `Unavailable`.
pub(super) async fn verify(store: &Arc<dyn Store>, key: &str, size: u64) -> Result<()> {
    let segment = OpenSegment::open(&**store, key, size).await?;
    let page_size = segment.header().page_size;
    let poured = vec![segment.poured(segment.range())];
    pour::pour(store, page_size, poured, Keep::All, Nowhere).await?;
    Ok(())
}

/// Where pages go that are only looked at.
struct Nowhere;

impl Sink for Nowhere {
    fn push(&mut self, _: Pgno, _: Txid, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

fn decode(
    object: &StoredObject,
    sections: [Option<Vec<u8>>; 3],
) -> Result<(BlockTable, VersionCursor, Vec<TimelineEntry>)> {
    let footer = &object.footer;
    if footer.header.kind != Kind::Segment {
        let kind = footer.header.kind;
        return Err(Error::corrupt(format!("a {kind:?}, not a segment")));
    }
    let [Some(blocks), Some(versions), Some(timeline)] = sections else {
        return Err(Error::corrupt("a segment without an index"));
    };
    let blocks = BlockTable::decode_section(footer, &blocks)?;
    let versions = VersionCursor::new(footer, versions.into())?;
    if versions.count() != blocks.slots() as usize {
        return Err(Error::corrupt(format!(
            "{} versions in {} slots",
            versions.count(),
            blocks.slots()
        )));
    }
    let timeline = decode_timeline_section(&footer.header, &timeline)?;
    Ok((blocks, versions, timeline))
}
