//! Which segments are merged, and when a snapshot is taken. Pure.
//!
//! A *stretch* is a run of segments that follow each other, with no snapshot between them: nothing
//! is merged across one. The last stretch grows, and is merged by levels, so that each version is
//! written again only a few times; once a snapshot has ended a stretch, what is left of it is
//! merged into as few segments as the largest size allows.

use crate::format::ids::{Timestamp, Txid};
use crate::format::key::MAX_LEVEL;
use std::ops::Range;
use std::time::Duration;

/// So many segments of level 0 make one of level 1 at once,
pub const UPLOADS: usize = 64;
/// or so many, of which the oldest is so old.
pub const UPLOADS_MIN: usize = 8;
/// See [`UPLOADS_MIN`].
pub const UPLOADS_AGE: Duration = Duration::from_secs(600);
/// So many segments of a level make one of the next.
pub const MERGED: usize = 8;
/// The largest output of a merge, bytes of its inputs.
const OUTPUT_BYTES: u64 = 64 << 20;
/// A segment of this size stays as it is while its stretch grows, bytes.
const FULL_BYTES: u64 = OUTPUT_BYTES / 2;
/// The most transactions in the output of a merge: their timeline is held in memory.
const OUTPUT_TRANSACTIONS: u64 = 256 << 10;

/// A segment that stands for all its transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// 0 for an upload.
    pub level: u8,
    /// Its first transaction.
    pub first: Txid,
    /// Its last one.
    pub last: Txid,
    /// Of the object.
    pub bytes: u64,
    /// When it was stored.
    pub stored: Timestamp,
    /// Its pages lie in a snapshot: it is never merged.
    pub is_mark: bool,
}

/// A merge to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Which segments.
    pub inputs: Range<usize>,
    /// The level of what they become.
    pub level: u8,
}

/// The next merge of a generation: the last stretch first, which grows. `segments` ascend without
/// overlap, `snapshots` ascend.
pub fn next_merge(segments: &[Standing], snapshots: &[Txid], now: Timestamp) -> Option<Planned> {
    let all = stretches(segments, snapshots);
    let is_open = |stretch: &Range<usize>| {
        let behind = snapshots.last();
        behind.is_none_or(|snapshot| segments[stretch.start].first > *snapshot)
    };
    let (open, closed): (Vec<_>, Vec<_>) = all.into_iter().partition(is_open);
    let growing = open.into_iter().rev();
    let mut growing = growing.filter_map(|stretch| by_level(segments, stretch, now));
    growing.next().or_else(|| {
        closed
            .into_iter()
            .rev()
            .find_map(|stretch| rest(segments, stretch))
    })
}

/// The next merge of what a snapshot at the end of the last stretch would end.
pub fn next_closing(segments: &[Standing], snapshots: &[Txid]) -> Option<Planned> {
    rest(segments, stretches(segments, snapshots).pop()?)
}

/// A time so much later.
pub fn later(time: Timestamp, by: Duration) -> Timestamp {
    let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(time.micros().saturating_add(micros))
}

fn stretches(segments: &[Standing], snapshots: &[Txid]) -> Vec<Range<usize>> {
    let mut stretches: Vec<Range<usize>> = Vec::new();
    for (index, segment) in segments.iter().enumerate().filter(|(_, s)| !s.is_mark) {
        let goes_on = index > 0 && {
            let before = &segments[index - 1];
            let behind = snapshots.partition_point(|snapshot| *snapshot < before.last);
            let is_between = snapshots.get(behind).is_some_and(|s| *s < segment.first);
            !before.is_mark && before.last.next() == segment.first && !is_between
        };
        match stretches.last_mut().filter(|_| goes_on) {
            Some(stretch) => stretch.end = index + 1,
            None => stretches.push(index..index + 1),
        }
    }
    stretches
}

/// The longest runs of segments of one level.
fn runs(segments: &[Standing], stretch: Range<usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for index in stretch {
        match runs.last_mut() {
            Some(run) if segments[run.start].level == segments[index].level => run.end = index + 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs
}

/// A merge by levels; the lowest level first, for readers need most of what is newest.
fn by_level(segments: &[Standing], stretch: Range<usize>, now: Timestamp) -> Option<Planned> {
    let mut runs = runs(segments, stretch);
    runs.sort_by_key(|run| segments[run.start].level);
    runs.into_iter().find_map(|run| {
        // What is full stays, and so does what lies before it.
        let full = segments[run.clone()]
            .iter()
            .rposition(|s| s.bytes >= FULL_BYTES);
        let run = full.map_or(run.start, |full| run.start + full + 1)..run.end;
        let oldest = segments.get(run.start)?;
        let is_due = match oldest.level {
            0 => {
                let is_old = later(oldest.stored, UPLOADS_AGE) <= now;
                run.len() >= UPLOADS || run.len() >= UPLOADS_MIN && is_old
            }
            _ => run.len() >= MERGED,
        };
        let most = if oldest.level == 0 { UPLOADS } else { MERGED };
        let inputs = fitting(segments, run.start..run.end.min(run.start + most));
        (is_due && inputs.len() > 1).then(|| planned(segments, inputs))?
    })
}

/// A merge of neighbours that fit one segment, whatever their levels.
fn rest(segments: &[Standing], stretch: Range<usize>) -> Option<Planned> {
    let mut start = stretch.start;
    while start < stretch.end {
        let inputs = fitting(segments, start..stretch.end);
        if inputs.len() > 1
            && let Some(planned) = planned(segments, inputs.clone())
        {
            return Some(planned);
        }
        start = inputs.end;
    }
    None
}

/// As many as one output may hold, and no more than are read at once; at least one.
fn fitting(segments: &[Standing], range: Range<usize>) -> Range<usize> {
    let mut end = range.start + 1;
    let mut bytes = segments[range.start].bytes;
    while end < range.end.min(range.start + UPLOADS) {
        bytes += segments[end].bytes;
        let transactions = segments[end].last.get() - segments[range.start].first.get() + 1;
        if bytes > OUTPUT_BYTES || transactions > OUTPUT_TRANSACTIONS {
            break;
        }
        end += 1;
    }
    range.start..end
}

fn planned(segments: &[Standing], inputs: Range<usize>) -> Option<Planned> {
    let level = segments[inputs.clone()].iter().map(|s| s.level).max()? + 1;
    (level <= MAX_LEVEL).then_some(Planned { inputs, level })
}

/// What came after the last snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// Stored bytes of the segments.
    pub segment_bytes: u64,
    /// Stored bytes of their page indexes.
    pub index_bytes: u64,
    /// What the pages would cost that a snapshot must store, bytes; unknown before it is asked for.
    pub snapshot_bytes: Option<u64>,
    /// Since the last snapshot's time.
    pub age: Duration,
}

/// Segments exceed so much, bytes,
const HOT_BYTES: u64 = 16 << 20;
/// and the pages of a snapshot would cost less than this part of them.
const HOT_PART: u64 = 4;
/// The page indexes exceed so much, bytes, and the snapshot costs less than the segments.
const INDEX_BYTES: u64 = 2 << 20;
/// The page indexes exceed so much, bytes.
const INDEX_BYTES_MAX: u64 = 16 << 20;

/// Whether a snapshot may be due, so that what it would cost is worth asking for.
pub fn may_be_due(since: &Since, interval: Duration) -> bool {
    let free = Since {
        snapshot_bytes: Some(0),
        ..*since
    };
    is_due(&free, interval)
}

/// Whether a snapshot is due, when one is taken at least so often if there are changes.
pub fn is_due(since: &Since, interval: Duration) -> bool {
    let costs_less_than = |bytes| since.snapshot_bytes.is_some_and(|cost| cost < bytes);
    let is_hot = since.segment_bytes > HOT_BYTES && costs_less_than(since.segment_bytes / HOT_PART);
    let is_long = since.index_bytes > INDEX_BYTES && costs_less_than(since.segment_bytes);
    let is_too_long = since.index_bytes > INDEX_BYTES_MAX;
    let is_old = since.segment_bytes > 0 && since.age >= interval;
    is_hot || is_long || is_too_long || is_old
}

#[cfg(test)]
mod tests;
