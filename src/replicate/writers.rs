//! Who may write. Pure.
//!
//! Two daemons on one replica (a machine that was cloned, or restored from an old image) must never
//! mix their commits in one history. Names collide where both write, and hashes show whose an
//! object is; these rules say what follows from what is found.
//!
//! The words: *our position* is the last transaction of our generation that we know to be stored.
//! *Our chain* is what the capture has proved: each commit of its run, with the end of SQLite's WAL
//! behind it (salts, frame, running checksum). An end that another writer's segment carries lies on
//! our chain only if its commits are ours, byte for byte.

use crate::format::claim::Claim;
use crate::format::container::Parent;
use crate::format::ids::{GenerationId, ObjectHash, PageSize, Timestamp, Txid, WalEnd, WriterId};
use crate::format::key::{Key, ObjectKey};
use crate::maintain::keeper::BARE_CLAIM;
use crate::storage::Listed;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// A store that was not spoken to for longer than this may hold another writer's objects, and their
/// names may be free again: merged, and deleted no less than an hour later.
pub const PAUSE: Duration = Duration::from_secs(600);

/// What stands behind the last transaction of a stored object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The transaction.
    pub txid: Txid,
    /// Its time.
    pub time: Timestamp,
    /// It is as old as `time`, or older.
    pub upper_bound: bool,
    /// Database size, pages.
    pub pages: u32,
    /// SQLite's WAL.
    pub end: WalEnd,
    /// The database's.
    pub page_size: PageSize,
    /// SQLITE_VERSION_NUMBER of the application; 0 where unknown.
    pub sqlite_version: u32,
}

/// A segment in the store, as its footer describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it lies.
    pub key: String,
    /// 0 for an upload, 1 and up for a merged one.
    pub level: u8,
    /// Its first transaction.
    pub first: Txid,
    /// Its last one; of an upload that cannot be read, the first.
    pub last: Txid,
    /// `None` if it is damaged, or of a later version.
    pub inside: Option<Inside>,
}

/// What a footer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// Of the object.
    pub hash: ObjectHash,
    /// 0 for an upload, 1 and up for a merged one.
    pub level: u8,
    /// The first transaction.
    pub first: Txid,
    /// Of the upload before `first`, or of the claim.
    pub previous: ObjectHash,
    /// What the upload behind `last` names as `previous`.
    pub hands_on: ObjectHash,
    /// Who wrote it.
    pub writer: WriterId,
    /// Behind its last transaction.
    pub ending: Ending,
    /// The key of the snapshot that holds the pages of its one transaction, if one does.
    pub snapshot: Option<String>,
}

impl Inside {
    /// Whether a segment with this level and these transactions in its name says so itself.
    pub fn is_named(&self, level: u8, first: Txid, last: Option<Txid>) -> bool {
        let is_last = last.is_none_or(|last| last == self.ending.txid);
        (self.level, self.first) == (level, first) && is_last
    }
}

/// Our position, as far as it is known to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The first transaction that is not stored.
    pub next: Txid,
    /// The number in the spool of txid 1.
    pub base: u64,
    /// What the next upload names as `previous`.
    pub last_hash: ObjectHash,
    /// The hash of the object that we sent, or are about to send, from `next` on.
    pub waiting: Option<ObjectHash>,
}

/// What follows from what is found behind our position. Numbers are indexes into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody else wrote: the generation goes on behind these, which hold our own commits.
    GoOn {
        /// In the order of their transactions.
        adopted: Vec<usize>,
    },
    /// Another writer wrote here: a new generation begins. Both share what is stored before our
    /// position and these.
    NewGeneration {
        /// In the order of their transactions.
        adopted: Vec<usize>,
        /// The first segment that is not ours.
        other: usize,
    },
}

/// Judges what is found behind our position. `seq_of` says where our chain has an end.
///
/// A segment is ours if it is the object that waits; or if it goes on from the hash that we know,
/// and its end lies on our chain with as many commits before it as it has transactions. What it
/// goes on from cannot be told where a merged one begins before our position. Of several that hold
/// a transaction the one counts that readers take.
pub fn judge(known: &Known, found: &[Found], seq_of: &dyn Fn(&WalEnd) -> Option<u64>) -> Verdict {
    follow(known, found, |segment, inside, goes_on| {
        let is_waiting = segment.first == known.next && known.waiting == Some(inside.hash);
        let seq = known.base + segment.last.get() - 1;
        is_waiting || (goes_on && seq_of(&inside.ending.end) == Some(seq))
    })
}

/// Whether each of these segments, in any order, goes on from one before it, but for the first, and
/// nothing is missing between them.
pub fn is_unbroken(found: &[Found]) -> bool {
    let first = found
        .iter()
        .min_by_key(|segment| (segment.first, segment.last));
    let Some(Some(inside)) = first.map(|first| &first.inside) else {
        return first.is_none();
    };
    let known = Known {
        next: first.map_or(Txid::FIRST, |first| first.first),
        base: 0,
        last_hash: inside.previous,
        waiting: None,
    };
    let verdict = follow(&known, found, |_, _, goes_on| goes_on);
    matches!(verdict, Verdict::GoOn { .. })
}

/// Follows the segments that readers take from a position on. `is_ours` says which belong there,
/// given also whether they go on from the hash before them, as far as that can be told.
fn follow(
    known: &Known,
    found: &[Found],
    is_ours: impl Fn(&Found, &Inside, bool) -> bool,
) -> Verdict {
    let (mut next, mut before) = (known.next, known.last_hash);
    let mut adopted = Vec::new();
    loop {
        let holds = |segment: &Found| segment.first <= next && next <= segment.last;
        let best = (0..found.len())
            .filter(|&index| holds(&found[index]))
            .max_by_key(|&index| (found[index].level, found[index].last, &found[index].key));
        let Some(best) = best else {
            // Nothing can be adopted across a gap.
            let beyond = (0..found.len()).filter(|&index| found[index].first > next);
            return match beyond.min_by_key(|&index| found[index].first) {
                Some(other) => Verdict::NewGeneration { adopted, other },
                None => Verdict::GoOn { adopted },
            };
        };
        let segment = &found[best];
        let ours = segment.inside.as_ref().filter(|inside| {
            let goes_on = segment.first != next || inside.previous == before;
            is_ours(segment, inside, goes_on)
        });
        match ours {
            Some(inside) => {
                adopted.push(best);
                (next, before) = (segment.last.next(), inside.hands_on);
            }
            None => {
                return Verdict::NewGeneration {
                    adopted,
                    other: best,
                };
            }
        }
    }
}

/// Whether a generation is ours, though we have no state of it, or a wrong one: it was lost, or is
/// older than what the replica holds. Then this is the number in the spool of its txid 1.
///
/// `end`: its last transaction, and the number of that in the spool if it lies on our chain.
/// `known`: the number of txid 1 as our state has it, if that is of this generation and this run:
/// as many commits must lie before the end as the generation counts. A generation whose last time
/// the clock is so far behind that times must begin anew is not gone on in.
pub fn base_if_ours(
    end: (Txid, Option<u64>),
    known: Option<u64>,
    clock_stepped_back: bool,
) -> Option<u64> {
    let base = end.1?.checked_sub(end.0.get() - 1)?;
    let is_ours = !clock_stepped_back && known.is_none_or(|known| known == base);
    is_ours.then_some(base)
}

/// A stored commit that lies in our past, and where the spool has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it is stored.
    pub parent: Parent,
    /// Its time.
    pub time: Timestamp,
    /// The run of the spool that it belongs to: its number and its token.
    pub run: (u64, u64),
    /// Its number in the spool.
    pub seq: u64,
    /// SQLite's WAL behind it.
    pub end: WalEnd,
}

/// From where the next generation goes on, of two commits of our past: the last one that the state
/// knows, and the last one that the newest run of the spool shows. The later one, since no time
/// resolves to what lies between: by the spool where one run has both, else by their generations.
pub fn goes_on_from(known: Option<Place>, shown: Option<Place>) -> Option<Place> {
    let (Some(a), Some(b)) = (known, shown) else {
        return known.or(shown);
    };
    let is_shown_later = if a.parent.generation != b.parent.generation && a.run == b.run {
        b.seq > a.seq
    } else {
        (b.parent.generation, b.parent.txid) > (a.parent.generation, a.parent.txid)
    };
    if is_shown_later { shown } else { known }
}

/// When the store last answered, by each clock that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contact {
    /// Since boot, sleep included.
    pub uptime: Duration,
    /// The time of day.
    pub clock: Timestamp,
    /// The store's own time, when it last said it.
    pub date: Option<(Timestamp, Duration)>,
}

impl Contact {
    /// Whether so much time has passed by one of our clocks, or the time of day was set, that
    /// another writer may have come: before an upload the store is looked at.
    pub fn was_long_ago(&self, uptime: Duration, clock: Timestamp) -> bool {
        let passed = uptime.saturating_sub(self.uptime);
        passed > PAUSE || micros_between(self.clock, clock) > PAUSE.as_micros()
    }

    /// The time by the clock of the store, if it ever said it.
    pub fn store_time(&self, uptime: Duration) -> Option<Timestamp> {
        let (date, at) = self.date?;
        let passed = uptime.saturating_sub(at).as_micros();
        Some(Timestamp::from_micros(
            date.micros()
                .saturating_add(i64::try_from(passed).unwrap_or(i64::MAX)),
        ))
    }

    /// Whether more time has passed by the clock of the store than by ours: a virtual machine that
    /// was paused sees neither of its own clocks jump. What was stored with this answer counts only
    /// after a look at the store.
    pub fn is_doubtful(&self, date: Timestamp, uptime: Duration) -> bool {
        let Some((last, at)) = self.date else {
            return true;
        };
        let passed = uptime.saturating_sub(at).as_micros();
        micros_between(last, date).abs_diff(passed) > PAUSE.as_micros()
    }
}

/// Whether an object counts only after a look at what stands behind it, though its put was
/// answered: nobody knows of an answer before, or a pause may lie between that one and this, by our
/// clocks or one that we did not see. `date` is that of the answer. None has an object that a put
/// found there, for when it came there the store does not say.
pub fn is_doubtful(
    last: Option<&Contact>,
    date: Option<Timestamp>,
    uptime: Duration,
    clock: Timestamp,
) -> bool {
    last.is_none_or(|last| {
        last.was_long_ago(uptime, clock) || date.is_some_and(|date| last.is_doubtful(date, uptime))
    })
}

fn micros_between(a: Timestamp, b: Timestamp) -> u128 {
    u128::from(a.micros().abs_diff(b.micros()))
}

/// Whether a store keeps two writers apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fencing {
    /// Not tried yet.
    #[default]
    Unknown,
    /// A put of a key that is taken is refused.
    PutIfAbsent,
    /// The store ignores `If-None-Match` and overwrites.
    None,
}

impl fmt::Display for Fencing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::PutIfAbsent => "put-if-absent",
            Self::None => "none",
        })
    }
}

/// A generation above ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Higher {
    /// Its name.
    pub generation: GenerationId,
    /// We began it ourselves, and gave it up.
    pub is_ours: bool,
    /// Who began it, if that can be read.
    pub claim: Option<Claim>,
    /// How long it has had nothing but its claim.
    pub bare_for: Option<Duration>,
}

/// True if an upload was stored where somebody had gone on before: what lies behind it was there
/// earlier, by the clock of the store. Whoever stored that never builds on the upload. Otherwise
/// somebody may have.
pub fn came_late(key: &str, listed: &[Listed]) -> bool {
    let ours = listed.iter().find(|listed| listed.key == key);
    let object = |key: &str| Key::parse(key).map(|key| key.object);
    let (Some(ours), Some(ObjectKey::Upload { first })) = (ours, object(key)) else {
        return false;
    };
    listed.iter().any(|other| {
        let is_behind = match object(&other.key) {
            Some(ObjectKey::Upload { first: next }) => next > first,
            Some(ObjectKey::Merged { last, .. }) => last >= first,
            Some(ObjectKey::Snapshot { txid, .. }) => txid > first,
            Some(ObjectKey::Claim | ObjectKey::Part { .. }) | None => false,
        };
        is_behind && other.modified < ours.modified
    })
}

/// How old a claim is, given when it was stored and what time it is now, by the clock of the store.
/// As long as that has not said the time, the claim counts as new: by our own clock, which may be
/// years ahead, no other writer's claim is told to be old.
pub fn age_of_claim(stored: Timestamp, now: Option<Timestamp>) -> Duration {
    let age = now.map_or(0, |now| now.micros().saturating_sub(stored.micros()));
    Duration::from_micros(u64::try_from(age).unwrap_or(0))
}

/// The generation that supersedes ours: the highest one of another writer, unless there is nothing
/// but an old claim.
pub fn superseded(higher: &[Higher]) -> Option<&Higher> {
    let counts = |higher: &&Higher| {
        let is_bare = higher.bare_for.is_some_and(|time| time > BARE_CLAIM);
        !higher.is_ours && !is_bare
    };
    higher
        .iter()
        .filter(counts)
        .max_by_key(|higher| higher.generation)
}

/// What a superseded daemon says: who came after it, and the remedy.
pub fn superseded_sentence(ours: GenerationId, other: &Higher) -> String {
    let generation = other.generation;
    let who = match &other.claim {
        Some(claim) => writer_of(claim),
        None => "a writer whose claim cannot be read".to_owned(),
    };
    format!(
        "{who} began generation {generation} above ours: readers follow that one, this daemon goes \
         on in {ours}; if this is the one to follow, stop the other and start this one once with \
         replicate --take-over"
    )
}

/// How messages name the writer of a claim.
pub fn writer_of(claim: &Claim) -> String {
    let Claim {
        host,
        path,
        started,
        ..
    } = claim;
    format!("the daemon of {path} on {host} (writing since {started})")
}

#[cfg(test)]
mod tests;
