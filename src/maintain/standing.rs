//! One generation as merging and snapshots see it: the segments that stand, and the snapshots that
//! moments can be opened from. Pure.

use crate::format::ids::{GenerationId, Timestamp, Txid};
use crate::maintain::later::{Later, Place};
use crate::maintain::merge::Merge;
use crate::maintain::rules::{self, Planned, Since, Standing};
use crate::maintain::survey::{Survey, SurveyedSegment, SurveyedSnapshot, end, pieces};
use crate::storage::cover::Piece;
use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::time::Duration;

/// What pages cost in a snapshot before anything is known of them, thousandths.
const RATIO: u64 = 450;
/// A snapshot of so many pages says how well they compress.
const TELLING_PAGES: u32 = 256;

/// What stands of a generation.
pub(super) struct Line<'a> {
    id: GenerationId,
    all: &'a [SurveyedSegment],
    pieces: Vec<Piece>,
    /// Those that stand for all their transactions, ascending, without overlap.
    pub(super) segments: Vec<Standing>,
    /// Which of all segments each of them is.
    indexes: Vec<usize>,
    /// The transactions of all snapshots, ascending.
    pub(super) snapshots: Vec<Txid>,
    complete: Vec<&'a SurveyedSnapshot>,
}

impl<'a> Line<'a> {
    /// Of a generation; `None` if it has no complete snapshot: a first snapshot that is still being
    /// made ends at the end of some upload. `damaged`: the keys of segments that are never merged.
    pub(super) fn new(
        survey: &'a Survey,
        id: GenerationId,
        damaged: &HashSet<String>,
    ) -> Option<Self> {
        let generation = survey.generations.get(&id)?;
        let sizes = survey.sizes();
        let complete = generation.snapshots.iter();
        let complete: Vec<_> = complete.filter(|s| s.is_complete(&sizes)).collect();
        complete.first()?;
        let all = &generation.segments[..];
        let pieces = pieces(all);
        let is_whole = |piece: &&Piece| {
            let segment = &all[piece.index];
            // Where the newest upload ends is not known before it was read.
            piece.from == segment.listed.first && Some(piece.to) == end(segment)
        };
        let indexes: Vec<usize> = pieces.iter().filter(is_whole).map(|p| p.index).collect();
        let segments = indexes.iter().map(|&index| standing(&all[index], damaged));
        Some(Self {
            id,
            all,
            pieces,
            segments: segments.collect(),
            indexes,
            snapshots: generation.snapshots.iter().map(|s| s.listed.txid).collect(),
            complete,
        })
    }

    fn segment(&self, index: usize) -> &'a SurveyedSegment {
        &self.all[self.indexes[index]]
    }

    /// What a plan means.
    pub(super) fn merge(&self, planned: &Planned) -> Merge {
        let inputs = planned.inputs.clone().map(|index| {
            let object = &self.segment(index).listed.object;
            (object.key.clone(), object.size)
        });
        Merge {
            generation: self.id,
            inputs: inputs.collect(),
            level: planned.level,
            keep: None,
        }
    }

    /// The last snapshot from which moments can be opened.
    pub(super) fn base(&self) -> &'a SurveyedSnapshot {
        self.complete[self.complete.len() - 1]
    }

    /// The segments behind the last snapshot's `since`.
    fn behind_base(&self) -> impl Iterator<Item = (&'a SurveyedSegment, RangeInclusive<Txid>)> {
        let since = self.base().inside.as_ref().map_or(Txid::FIRST, |i| i.since);
        let behind = self.pieces.iter().filter(move |piece| piece.to > since);
        behind.map(move |piece| {
            let from = piece.from.max(since.next());
            (&self.all[piece.index], from..=piece.to)
        })
    }

    /// What came after the last snapshot.
    pub(super) fn since(&self, now: Timestamp) -> Since {
        let (base, mut since) = (self.base(), Since::default());
        let behind = self.behind_base();
        for (segment, _) in behind.filter(|(_, counts)| *counts.end() > base.listed.txid) {
            since.segment_bytes += segment.listed.object.size;
            since.index_bytes += segment.inside.as_ref().map_or(0, |i| i.index_bytes);
        }
        let age = now.micros().saturating_sub(base.listed.time.micros());
        since.age = Duration::from_micros(age.max(0).unsigned_abs());
        since
    }

    /// The last transaction.
    pub(super) fn last(&self) -> Txid {
        let last = self.pieces.last().map(|piece| piece.to);
        last.unwrap_or(self.base().listed.txid)
    }

    /// The next merge of what a snapshot at a transaction would end.
    pub(super) fn closing(&self, through: Txid) -> Option<Merge> {
        let ended = self.segments.partition_point(|s| s.last <= through);
        let planned = rules::next_closing(&self.segments[..ended], &self.snapshots)?;
        Some(self.merge(&planned))
    }

    /// A snapshot at a transaction with which a segment ends; `None` if nothing came before it
    /// since the last one, or if the pages of one lie in a snapshot that is still to come.
    pub(super) fn later(&self, through: Txid) -> Option<Later> {
        let base = self.base();
        let behind = self.behind_base();
        let ended: Vec<_> = behind
            .take_while(|(_, counts)| *counts.end() <= through)
            .collect();
        if ended.iter().any(|(segment, _)| is_mark(segment)) {
            return None;
        }
        let segments: Vec<_> = ended
            .into_iter()
            .map(|(segment, counts)| {
                let object = &segment.listed.object;
                (object.key.clone(), object.size, counts)
            })
            .collect();
        let last = segments.last().map(|(_, _, counts)| *counts.end());
        (last > Some(base.listed.txid)).then(|| Later {
            base: (base.listed.object.key.clone(), base.listed.object.size),
            segments,
            place: Place::Later,
        })
    }

    /// What so many bytes of pages would take in a snapshot.
    pub(super) fn cost(&self, page_bytes: u64) -> u64 {
        let telling = self.complete.iter().filter_map(|snapshot| {
            let inside = snapshot.inside.as_ref()?;
            Some((
                inside.stored_pages,
                inside.page_bytes,
                snapshot.listed.object.size,
            ))
        });
        let telling = telling.filter(|(pages, ..)| *pages >= TELLING_PAGES).max();
        match telling {
            Some((pages, page, stored)) => {
                let raw = u64::from(pages) * u64::from(page);
                (u128::from(page_bytes) * u128::from(stored) / u128::from(raw)) as u64
            }
            None => page_bytes / 1000 * RATIO,
        }
    }
}

fn standing(segment: &SurveyedSegment, damaged: &HashSet<String>) -> Standing {
    let (listed, inside) = (&segment.listed, segment.inside.as_ref());
    let last = end(segment).expect("it stands for all its transactions");
    let transactions = last.get() - listed.first.get() + 1;
    Standing {
        level: listed.level,
        first: listed.first,
        last,
        bytes: listed.object.size,
        stored: listed.object.modified,
        stays: damaged.contains(&listed.object.key) || is_mark(segment),
        points: inside.map_or(transactions, |inside| inside.points.len() as u64),
    }
}

fn is_mark(segment: &SurveyedSegment) -> bool {
    segment.inside.as_ref().is_some_and(|inside| inside.is_mark)
}
