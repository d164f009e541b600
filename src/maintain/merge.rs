//! Several segments made one: the same page versions, in one order. What retention keeps of them,
//! when a filter is given.

use crate::error::{Error, Result};
use crate::format::container::{Header, Written};
use crate::format::ids::{GenerationId, ObjectId, Pgno, Txid};
use crate::format::key::{Key, MAX_LEVEL, ObjectKey};
use crate::format::segment::{SegmentWriter, TimelineEntry};
use crate::maintain::pour::{self, Sink};
use crate::maintain::segment::OpenSegment;
use crate::maintain::versions::Keep;
use crate::maintain::workshop::{Out, Workshop};
use crate::storage::blocking::blocking;
use crate::storage::durable::scratch_in;
use std::sync::Arc;
use tempfile::TempPath;

/// Segments of one generation that become one. They follow each other without a gap and without
/// overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Theirs.
    pub generation: GenerationId,
    /// Key and bytes of each, in the order of their transactions.
    pub inputs: Vec<(String, u64)>,
    /// Of the output: above that of the last input, below that of none.
    pub level: u8,
    /// The restore points to keep, ascending, the last transaction among them; all when absent.
    pub keep: Option<Vec<Txid>>,
}

/// What came of it.
#[derive(Debug)]
pub struct Merged {
    /// Where the output lies.
    pub key: String,
    /// Bytes.
    pub length: u64,
    /// What was stored.
    pub(super) file: TempPath,
}

/// Merges segments and stores the output; the inputs stay.
///
/// # Errors
/// `NotFound` if an input is gone; `Corrupt` if one is damaged, or they do not follow each other;
/// `Unavailable`, `Disk`.
pub async fn merge(workshop: &Workshop, merge: &Merge) -> Result<Merged> {
    let mut segments = Vec::new();
    for (key, size) in &merge.inputs {
        segments.push(OpenSegment::open(&*workshop.store, key, *size).await?);
    }
    check_chain(&segments, merge)?;
    let (draft, out) = workshop.draft()?;
    let header = header(workshop, merge, &segments, draft.id);
    let timeline = timeline(&mut segments, merge.keep.as_deref());
    let keep = match &merge.keep {
        Some(points) => Keep::SeenBy(Arc::from(points.as_slice())),
        None => Keep::All,
    };
    let scratch = scratch_in(&workshop.directory);
    let writer = SegmentWriter::new(out, draft.id, header.page_size, &scratch)?;
    let poured = segments.iter().map(|s| s.poured(s.range())).collect();
    let writer = pour::pour(&workshop.store, header.page_size, poured, keep, writer).await?;
    let last = *timeline.last().expect("the last transaction is kept");
    let (out, written): (Out, Written) =
        blocking(move || writer.finish(&header, &timeline, &[], None)).await?;
    let object = ObjectKey::Merged {
        level: merge.level,
        first: segments[0].header().first,
        last: last.txid,
        time: last.time,
        hash8: written.hash.hash8(),
    };
    let generation = merge.generation;
    let key = Key { generation, object }.to_string();
    let file = workshop.store(draft, out, &key, &written.hash).await?;
    Ok(Merged {
        key,
        length: written.length,
        file,
    })
}

impl Sink for SegmentWriter<Out> {
    fn push(&mut self, pgno: Pgno, txid: Txid, page: &[u8]) -> Result<()> {
        SegmentWriter::push(self, pgno, txid, page)
    }
}

/// Inputs that do not follow each other must not become one: nobody could tell afterwards.
fn check_chain(segments: &[OpenSegment], merge: &Merge) -> Result<()> {
    let wrong = |segment: &OpenSegment, what: &str| {
        Err(Error::corrupt(format!(
            "merge {}: {what}",
            segment.object.key
        )))
    };
    assert!(!segments.is_empty(), "there is something to merge");
    let last = segments[segments.len() - 1].header().last;
    for segment in segments {
        let header = segment.header();
        if header.generation != merge.generation {
            return wrong(segment, "it belongs to another generation");
        }
        if header.page_size != segments[0].header().page_size
            || header.database_id != segments[0].header().database_id
        {
            return wrong(segment, "it belongs to another database");
        }
        // Readers take the output instead: it ends later than inputs of its own level.
        let lowest = header.level + u8::from(header.last == last);
        if lowest > merge.level || merge.level > MAX_LEVEL {
            return wrong(segment, "its level is not below that of the output");
        }
        if segment.is_mark() {
            return wrong(segment, "its pages lie in a snapshot");
        }
    }
    for pair in segments.windows(2) {
        if pair[1].header().first != pair[0].header().last.next()
            || pair[1].header().previous != pair[0].hands_on()
        {
            return wrong(
                &pair[1],
                &format!("it does not follow {}", pair[0].object.key),
            );
        }
    }
    Ok(())
}

fn header(
    workshop: &Workshop,
    merge: &Merge,
    segments: &[OpenSegment],
    object_id: ObjectId,
) -> Header {
    let first = segments[0].header();
    let last = segments[segments.len() - 1].header();
    Header {
        level: merge.level,
        object_id,
        writer_id: workshop.writer,
        first: first.first,
        since: first.first,
        previous: first.previous,
        last_input: segments[segments.len() - 1].hands_on(),
        thinned: merge.keep.is_some() || segments.iter().any(|s| s.header().thinned),
        ..last.clone()
    }
}

/// The entries that stay, in which no shrink is lost; the segments lose theirs.
fn timeline(segments: &mut [OpenSegment], keep: Option<&[Txid]>) -> Vec<TimelineEntry> {
    let entries = segments.iter().map(|segment| segment.timeline.len()).sum();
    let all = segments
        .iter_mut()
        .flat_map(|segment| std::mem::take(&mut segment.timeline));
    match keep {
        Some(points) => thinned(all, points),
        None => {
            let mut kept = Vec::with_capacity(entries);
            kept.extend(all);
            kept
        }
    }
}

fn thinned(all: impl Iterator<Item = TimelineEntry>, points: &[Txid]) -> Vec<TimelineEntry> {
    let mut kept = Vec::new();
    let mut smallest = u32::MAX;
    for entry in all {
        smallest = smallest.min(entry.min_pages);
        if points.binary_search(&entry.txid).is_ok() {
            kept.push(TimelineEntry {
                min_pages: smallest,
                ..entry
            });
            smallest = u32::MAX;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::Timestamp;

    #[test]
    fn the_smallest_size_of_what_is_dropped_stays_with_the_next_entry() {
        let entry = |txid, pages, min_pages| TimelineEntry {
            txid: Txid::new(txid).unwrap(),
            time: Timestamp::from_micros(txid as i64),
            upper_bound: false,
            in_snapshot: false,
            pages,
            min_pages,
        };
        let all = [
            entry(2, 9, 9),
            entry(3, 4, 4),
            entry(4, 8, 8),
            entry(5, 8, 7),
        ];
        let points = [2, 4, 5].map(|txid| Txid::new(txid).unwrap());
        let kept = thinned(all.into_iter(), &points);
        let sizes: Vec<_> = kept.iter().map(|e| (e.txid.get(), e.min_pages)).collect();
        assert_eq!(sizes, [(2, 9), (4, 4), (5, 7)]);
    }
}
