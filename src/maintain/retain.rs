//! What of a replica stays and what goes. Pure.
//!
//! Owns the rules of retention; reads, rewrites and deletes nothing. Whoever carries a decision
//! out reads an output back before its inputs go, and deletes in [`waves`].
//!
//! Invariants:
//! - The newest state that readers can open is never given up, however old it is.
//! - What is kept is a function of the points that are there, the policy and the time. To drop
//!   what is not kept changes nothing for the rest, so a run may be cut short anywhere.
//! - What was not read, or is damaged, counts as kept: nothing goes because of it.
//!
//! | module | owns |
//! | --- | --- |
//! | `clock` | the time, the windows, and when the next decision may be another |
//! | `line` | what can be opened in a generation, and from what |
//! | `points` | which points are kept, and what they need |
//! | `objects` | snapshots, parts and claims, over all generations |

use crate::config::settings::Retention;
use crate::format::ids::{GenerationId, Timestamp, Txid};
use crate::format::key::{Key, MAX_LEVEL, ObjectKey};
use crate::maintain::survey::{Survey, SurveyedSegment, end};
use crate::storage::Listed;
use crate::storage::cover::Piece;
use clock::{Clock, Windows};
use line::Line;
use points::{Chosen, children, choose};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

mod clock;
mod line;
mod objects;
mod points;

/// A snapshot or part goes when two listings so far apart show that nothing needs it.
pub const UNNEEDED_FOR: Duration = Duration::from_secs(24 * 3600);

/// A snapshot that is younger is needed, whatever the policy says.
pub const YOUNG: Duration = Duration::from_secs(24 * 3600);

/// What was never finished is given up after this time.
pub const ORPHANED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// What retention waits for, beside the policy and the constants here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a segment stays after another one was stored that holds it; zero for not at all,
    /// whatever clocks say.
    pub merged_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            merged_grace: Duration::from_secs(3600),
        }
    }
}

/// What stays and what goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// What the window of all commits keeps, by generation.
    pub recent: Vec<Recent>,
    /// All other kept points, by generation, then by transaction.
    pub kept: Vec<Kept>,
    /// Segments to store again with fewer points, by generation, then by transaction.
    pub rewrites: Vec<Rewrite>,
    /// What goes: see [`waves`].
    pub deletions: Vec<Deletion>,
    /// Snapshots and parts that nothing needs, and since which listing: to hand in the next time.
    pub unneeded: BTreeMap<String, Timestamp>,
    /// The earliest time at which the decision could be another if nothing is added or deleted,
    /// and no segment is read that was not.
    pub next: Option<Timestamp>,
}

/// What the window of all commits keeps of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recent {
    /// Which one.
    pub generation: GenerationId,
    /// How many points; those of segments that were not read are not counted.
    pub points: u64,
    /// The first of them.
    pub first: Option<(Txid, Timestamp)>,
    /// The last of them.
    pub last: Option<(Txid, Timestamp)>,
    /// Segments that were not read: all that is in them is kept.
    pub not_read: u64,
}

impl Recent {
    fn none(generation: GenerationId) -> Self {
        Self {
            generation,
            points: 0,
            first: None,
            last: None,
            not_read: 0,
        }
    }

    fn add(&mut self, point: (Txid, Timestamp)) {
        self.points += 1;
        self.first = self.first.or(Some(point));
        self.last = Some(point);
    }
}

/// A restore point that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its generation.
    pub generation: GenerationId,
    /// Its transaction.
    pub txid: Txid,
    /// When that was committed.
    pub time: Timestamp,
    /// The first reason that holds.
    pub why: Keep,
}

/// Why a restore point stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is the last of its hour.
    Hourly,
    /// It is the last of its day.
    Daily,
    /// The start of a window means it.
    WindowStart,
    /// It is the newest of its generation.
    Newest,
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hourly => "the last commit of its hour",
            Self::Daily => "the last commit of its day",
            Self::WindowStart => "what the start of a window means",
            Self::Newest => "the newest of its generation",
        })
    }
}

/// A segment to store again with fewer points, one level higher, for the same range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Its generation.
    pub generation: GenerationId,
    /// Its key.
    pub key: String,
    /// The level of the output.
    pub level: u8,
    /// The transactions whose points and versions stay, ascending; the last one is its last.
    pub keep: Vec<Txid>,
}

/// An object that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Why it goes.
    pub why: Why,
    /// It is a segment that stands for nothing.
    is_hidden: bool,
}

impl Deletion {
    fn new(object: &Listed, why: Why) -> Self {
        Self {
            key: object.key.clone(),
            size: object.size,
            why,
            is_hidden: false,
        }
    }

    fn hidden(object: &Listed, why: Why) -> Self {
        Self {
            is_hidden: true,
            ..Self::new(object, why)
        }
    }

    /// What goes earlier: first what others hide; a snapshot before what it names.
    fn rank(&self) -> Rank {
        match Key::parse(&self.key).map(|key| key.object) {
            Some(ObjectKey::Upload { .. } | ObjectKey::Merged { .. }) if self.is_hidden => {
                Rank::Hidden
            }
            Some(ObjectKey::Upload { .. } | ObjectKey::Merged { .. }) => Rank::Standing,
            Some(ObjectKey::Snapshot { .. }) => Rank::Snapshot(Reverse(self.key.clone())),
            Some(ObjectKey::Part { .. }) => Rank::Part,
            Some(ObjectKey::Claim) | None => Rank::Claim,
        }
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Hidden,
    Standing,
    /// One after the other, the newest first: its map may need the others.
    Snapshot(Reverse<String>),
    Part,
    Claim,
}

/// Deletions that go one after the other, those of one in any order: a store promises none. After
/// any of them it may end.
pub fn waves(mut deletions: Vec<Deletion>) -> Vec<Vec<Deletion>> {
    deletions.sort_by_cached_key(Deletion::rank);
    let waves = deletions.chunk_by(|a, b| a.rank() == b.rank());
    waves.map(<[Deletion]>::to_vec).collect()
}

/// Why an object goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// This segment holds all of it. To be checked before it goes.
    MergedInto(String),
    /// No kept restore point needs this segment.
    Expired,
    /// Nothing has needed this snapshot, or part of one, since this listing.
    Unneeded(Timestamp),
    /// A part, or a snapshot that lacks something, that no complete snapshot names.
    Orphan,
    /// Its generation never got a complete snapshot, or lost it.
    Abandoned,
    /// A claim with nothing left to claim.
    EmptyGeneration,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MergedInto(key) => write!(f, "merged into {key}"),
            Self::Expired => f.write_str("no kept restore point needs it"),
            Self::Unneeded(since) => write!(f, "nothing has needed it since {since}"),
            Self::Orphan => f.write_str("no complete snapshot names it"),
            Self::Abandoned => f.write_str("its generation has no complete snapshot"),
            Self::EmptyGeneration => f.write_str("nothing else is left of its generation"),
        }
    }
}

/// Decides what of a replica stays and goes. `unneeded` is what the decision before this one said;
/// `now` was checked against the store's clock.
///
/// A segment may be left unread if it lies wholly in the window of all commits. An upload that a
/// merged segment holds, and that ends behind it by its neighbours' names, should be read: as long
/// as it may hold more than that one, both stay.
///
/// A claim that is damaged hides through which generations readers come: as long as there is one,
/// nobody should decide.
pub fn retain(
    survey: &Survey,
    unneeded: &BTreeMap<String, Timestamp>,
    policy: &Retention,
    limits: &Limits,
    now: Timestamp,
) -> Decision {
    let mut clock = Clock::new(now);
    let windows = Windows::new(policy, now);
    let sizes = survey.sizes();
    let lines = survey.generations.iter();
    let lines: BTreeMap<GenerationId, Line<'_>> = lines
        .map(|(&id, surveyed)| (id, Line::new(id, surveyed, &sizes)))
        .collect();
    let children = children(&lines);
    let mut decision = Decision::default();
    let mut chosen: BTreeMap<GenerationId, Chosen> = BTreeMap::new();
    for line in lines.values().filter(|line| line.has_base()) {
        let children = children.get(&line.id).map_or(&[][..], Vec::as_slice);
        let of_line = choose(line, children, &windows, &mut clock);
        decision.recent.extend(of_line.recent);
        decision.kept.extend(of_line.list(line.id));
        decision.rewrites.extend(rewrites(line, &of_line, &windows));
        let gone = segments(line, &of_line, limits, &mut clock);
        decision.deletions.extend(gone);
        chosen.insert(line.id, of_line);
    }
    objects::decide(&lines, &chosen, unneeded, &mut clock, &mut decision);
    decision.next = clock.next();
    decision
}

/// The segments to store again.
fn rewrites(line: &Line<'_>, chosen: &Chosen, windows: &Windows) -> Vec<Rewrite> {
    let rewrite = |piece: &Piece| {
        let segment = &line.surveyed.segments[piece.index];
        let inside = segment.inside.as_ref().filter(|inside| !inside.is_mark)?;
        let listed = &segment.listed;
        // What ends within another one's range must still be whole there.
        let is_whole = piece.from == listed.first && Some(piece.to) == end(segment);
        let is_old = inside
            .points
            .iter()
            .all(|&(_, time)| !windows.all.has(time));
        if !chosen.needed[piece.index] || !is_whole || !is_old || listed.level >= MAX_LEVEL {
            return None;
        }
        let others = inside.points.iter().map(|&(txid, _)| txid);
        let (mut keep, dropped): (Vec<Txid>, Vec<Txid>) = others
            .filter(|txid| *txid != piece.to)
            .partition(|txid| chosen.kept.contains_key(txid));
        if dropped.is_empty() || dropped.len() < keep.len() {
            return None;
        }
        keep.push(piece.to);
        Some(Rewrite {
            generation: line.id,
            key: listed.object.key.clone(),
            level: listed.level + 1,
            keep,
        })
    };
    line.pieces.iter().filter_map(rewrite).collect()
}

/// The segments that go.
fn segments(line: &Line<'_>, chosen: &Chosen, limits: &Limits, clock: &mut Clock) -> Vec<Deletion> {
    let all = &line.surveyed.segments;
    let mut stands = vec![false; all.len()];
    line.pieces
        .iter()
        .for_each(|piece| stands[piece.index] = true);
    let stays = |index: usize| chosen.needed[index] || chosen.held[index];
    // Those without which another history would come out behind them.
    let mut hides = vec![false; all.len()];
    let mut gone = Vec::new();
    for (_, segment) in all.iter().enumerate().filter(|&(index, _)| !stands[index]) {
        let object = &segment.listed.object;
        let pieces = line.over(segment);
        let is_covered = line.is_covered(segment, pieces.clone());
        let pieces = &line.pieces[pieces];
        if is_covered && !pieces.iter().any(|piece| stays(piece.index)) {
            gone.push(Deletion::hidden(object, Why::Expired));
        } else if let Some(holder) = pieces.iter().find_map(|p| holder(&all[p.index], segment)) {
            let grace = limits.merged_grace;
            if grace.is_zero() || clock.has_passed(holder.modified, grace) {
                gone.push(Deletion::hidden(
                    object,
                    Why::MergedInto(holder.key.clone()),
                ));
            }
        } else if let Some(first) = pieces.first() {
            let is_merged = |piece: &Piece| all[piece.index].listed.level > 0;
            hides[first.index] |= !is_covered || !pieces.iter().all(is_merged);
        }
    }
    let standing = (0..all.len()).filter(|&index| stands[index]);
    let expired = standing.filter(|&index| !stays(index) && !hides[index]);
    gone.extend(expired.map(|index| Deletion::new(&all[index].listed.object, Why::Expired)));
    gone
}

/// The object that holds all of a segment which stands for nothing, if this one does.
fn holder<'a>(other: &'a SurveyedSegment, segment: &SurveyedSegment) -> Option<&'a Listed> {
    let begins = other.listed.first <= segment.listed.first;
    let ends = end(segment).is_some_and(|last| end(other) >= Some(last));
    (other.listed.level > 0 && begins && ends).then_some(&other.listed.object)
}

#[cfg(test)]
mod tests;
