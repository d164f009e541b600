//! Which segments are merged, and when a snapshot is taken. Pure.
//!
//! A *stretch* is a run of segments that follow each other, with no snapshot between them: nothing
//! is merged across one. The last stretch grows: uploads become segments of level 1, and what came
//! later joins an older segment once it has as many bytes, or a quarter at rest. So each byte is
//! written again only a few times, and there are few segments: each has its own copy of a page that
//! changes all the time. Once a snapshot has ended a stretch, what is left of it is merged into as
//! few as the largest size allows.

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
/// Segments join an older one that has at most so many times their restore points, however few
/// bytes it has: a merge reads all its versions.
const OLDER_POINTS: u64 = 4;
/// When nothing came for so long, they join one that has at most [`OLDER_BYTES`] times their bytes.
const SETTLED_AGE: Duration = UPLOADS_AGE;
/// See [`SETTLED_AGE`].
const OLDER_BYTES: u64 = 4;
/// The largest output of a merge, bytes of its inputs.
const OUTPUT_BYTES: u64 = 64 << 20;
/// A segment of this size stays as it is while its stretch grows, bytes.
const FULL_BYTES: u64 = OUTPUT_BYTES / 2;
/// The most restore points in the output of a merge: their timeline is held in memory.
const OUTPUT_POINTS: u64 = 256 << 10;

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
    /// It is never merged: its pages lie in a snapshot, or it is damaged.
    pub stays: bool,
    /// Its restore points, as far as they are known, else its transactions.
    pub points: u64,
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
    let mut open = open.into_iter().rev();
    let mut closed = closed.into_iter().rev();
    open.find_map(|stretch| growing(segments, stretch, now))
        .or_else(|| closed.find_map(|stretch| rest(segments, stretch)))
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
    for (index, segment) in segments.iter().enumerate().filter(|(_, s)| !s.stays) {
        let goes_on = index > 0 && {
            let before = &segments[index - 1];
            let behind = snapshots.partition_point(|snapshot| *snapshot < before.last);
            let is_between = snapshots.get(behind).is_some_and(|s| *s < segment.first);
            !before.stays && before.last.next() == segment.first && !is_between
        };
        match stretches.last_mut().filter(|_| goes_on) {
            Some(stretch) => stretch.end = index + 1,
            None => stretches.push(index..index + 1),
        }
    }
    stretches
}

/// The longest runs of uploads.
fn uploads(segments: &[Standing], stretch: Range<usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for index in stretch.filter(|&index| segments[index].level == 0) {
        match runs.last_mut() {
            Some(run) if run.end == index => run.end += 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs
}

/// A merge of a stretch that grows; uploads first, for readers need most of what is newest.
fn growing(segments: &[Standing], stretch: Range<usize>, now: Timestamp) -> Option<Planned> {
    let of_uploads = uploads(segments, stretch.clone())
        .into_iter()
        .find_map(|run| {
            let run = behind_full(segments, run)?;
            let is_old = later(segments[run.start].stored, UPLOADS_AGE) <= now;
            let is_due = run.len() >= UPLOADS || run.len() >= UPLOADS_MIN && is_old;
            is_due.then(|| planned(segments, fitting(segments, run)))?
        });
    let newest = segments[stretch.end - 1].stored;
    let times = match later(newest, SETTLED_AGE) <= now {
        true => OLDER_BYTES,
        false => 1,
    };
    of_uploads.or_else(|| joining(segments, stretch, times))
}

/// A merge of an older segment with what came after it, if that has at least one in so many times
/// its bytes: the oldest that can be.
fn joining(segments: &[Standing], stretch: Range<usize>, times: u64) -> Option<Planned> {
    let merged = stretch.clone().rfind(|&index| segments[index].level > 0)?;
    let open = behind_full(segments, stretch.start..merged + 1)?;
    open.clone().find_map(|oldest| {
        let inputs = fitting(segments, oldest..open.end);
        let older = &segments[oldest];
        let newer = &segments[oldest + 1..inputs.end];
        let bytes: u64 = newer.iter().map(|s| s.bytes).sum();
        let points: u64 = newer.iter().map(|s| s.points).sum();
        let is_due = bytes * times >= older.bytes && points * OLDER_POINTS >= older.points;
        is_due.then(|| planned(segments, inputs))?
    })
}

/// What lies behind the last full segment: that one stays, and so does what lies before it.
fn behind_full(segments: &[Standing], range: Range<usize>) -> Option<Range<usize>> {
    let full = range
        .clone()
        .rfind(|&index| segments[index].bytes >= FULL_BYTES);
    let start = full.map_or(range.start, |full| full + 1);
    (start < range.end).then_some(start..range.end)
}

/// A merge of neighbours that fit one segment, whatever their levels.
fn rest(segments: &[Standing], stretch: Range<usize>) -> Option<Planned> {
    let mut start = stretch.start;
    while start < stretch.end {
        let inputs = fitting(segments, start..stretch.end);
        start = inputs.end;
        if let Some(planned) = planned(segments, inputs) {
            return Some(planned);
        }
    }
    None
}

/// As many as one output may hold, and no more than are read at once; at least one.
fn fitting(segments: &[Standing], range: Range<usize>) -> Range<usize> {
    let mut end = range.start + 1;
    let Standing {
        mut bytes,
        mut points,
        ..
    } = segments[range.start];
    while end < range.end.min(range.start + UPLOADS) {
        bytes += segments[end].bytes;
        points += segments[end].points;
        if bytes > OUTPUT_BYTES || points > OUTPUT_POINTS {
            break;
        }
        end += 1;
    }
    range.start..end
}

/// A merge of more than one, of the lowest level at which readers prefer the output to each of its
/// inputs: where two of a level overlap they take the one that ends later.
fn planned(segments: &[Standing], inputs: Range<usize>) -> Option<Planned> {
    let highest = segments[inputs.clone()].iter().map(|s| s.level).max()?;
    let level = highest.max(segments[inputs.end - 1].level + 1);
    (inputs.len() > 1 && level <= MAX_LEVEL).then_some(Planned { inputs, level })
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
/// Segments exceed so much, bytes: each that is full costs whoever opens a moment a request.
const LONG_BYTES: u64 = 192 << 20;
/// The pages of a snapshot would cost less than so many thirds of them.
const LONG_THIRDS: u64 = 2;
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
    let is_long =
        since.segment_bytes > LONG_BYTES && costs_less_than(since.segment_bytes / 3 * LONG_THIRDS);
    let is_wide = since.index_bytes > INDEX_BYTES && costs_less_than(since.segment_bytes);
    let is_too_wide = since.index_bytes > INDEX_BYTES_MAX;
    let is_old = since.segment_bytes > 0 && since.age >= interval;
    is_hot || is_long || is_wide || is_too_wide || is_old
}

#[cfg(test)]
mod tests;
