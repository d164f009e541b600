//! What commands ask of a replica: each at once, and to its end.
//!
//! A command does not know whether somebody writes the replica. To add an object harms nobody; it
//! deletes and thins only where nothing was added for [`UNTOUCHED_FOR`], or where it is told to. It
//! remembers nothing, so it never finds a snapshot or a part unneeded for long enough: those are
//! left to a daemon.

use super::{Behalf, Keeper, Looked};
use crate::error::{Error, Result};
use crate::format::ids::{GenerationId, Timestamp};
use crate::format::key::GENERATIONS;
use crate::maintain::clock::{self, Now};
use crate::maintain::later::{self, Taken};
use crate::maintain::look;
use crate::maintain::merge::Merge;
use crate::maintain::retain::Decision;
use crate::maintain::rules;
use crate::maintain::survey::Survey;
use crate::maintain::usage::{self, Bytes, Known};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A command deletes where nothing was added for so long.
pub const UNTOUCHED_FOR: Duration = Duration::from_secs(24 * 3600);

/// If nothing was added for so long, it is the clock that is wrong.
const ABSURD: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Told how many segments are merged, and of how many.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// What a command came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The segments that stood for the transactions before and after merging.
    pub segments: (usize, usize),
    /// Segments stored again with fewer restore points.
    pub thinned: usize,
    /// Objects deleted, and their bytes.
    pub deleted: (usize, u64),
    /// Why nothing was thinned or deleted.
    pub refused: Option<Refused>,
}

/// Why a command deletes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Something was added so long ago: somebody may write.
    Recent(Duration),
    /// Nobody can say what time it is: a sentence.
    Clock(String),
    /// A claim cannot be read, so that nobody knows where its generation goes on from.
    Claim(String),
}

/// A replica, and what retention says of it now.
#[derive(Clone, Debug)]
pub struct Preview {
    /// What is there.
    pub survey: Survey,
    /// What stays and what goes.
    pub decision: Decision,
    /// Why a command would delete nothing now, unless it is told to.
    pub refused: Option<Refused>,
}

/// What a replica takes, and what came to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What the bytes of each generation are for.
    pub generations: BTreeMap<GenerationId, Bytes>,
    /// Of all, with what is not ours: the bytes of the listing.
    pub total: Bytes,
    /// The commits of the last 24 hours, as far as they are restore points, ascending.
    pub commits: BTreeSet<Timestamp>,
}

impl Keeper {
    /// Merges the segments of all generations into as few as their sizes allow; then thins and
    /// deletes what retention says, if it may.
    ///
    /// # Errors
    /// `NotFound` if there is no replica, or something went while it was needed; `Unavailable`,
    /// `Disk`.
    pub async fn compact(&mut self, is_forced: bool, progress: Progress<'_>) -> Result<Done> {
        let mut looked = self.look_first().await?;
        let all = self.standing(&looked.survey);
        let mut done = Done {
            segments: (all, all),
            refused: self.refused(&looked, is_forced),
            ..Done::default()
        };
        loop {
            while let Some(merge) = self.next_of_all(&looked.survey) {
                self.merge(&merge).await?;
                looked = self.look_at_all().await?;
                let left = self.standing(&looked.survey);
                progress(all.saturating_sub(left) as u64, all as u64);
            }
            done.segments.1 = self.standing(&looked.survey);
            let thinned = done.thinned;
            if done.refused.is_none() {
                self.settle(&mut done, is_forced).await?;
            }
            // What was thinned is smaller: more of it may fit into one.
            if done.thinned == thinned {
                return Ok(done);
            }
            looked = self.look_at_all().await?;
        }
    }

    /// Thins and deletes what retention says, if it may.
    ///
    /// # Errors
    /// As [`Keeper::compact`].
    pub async fn apply_retention(&mut self, is_forced: bool) -> Result<Done> {
        let looked = self.look_first().await?;
        let all = self.standing(&looked.survey);
        let mut done = Done {
            segments: (all, all),
            refused: self.refused(&looked, is_forced),
            ..Done::default()
        };
        if done.refused.is_none() {
            self.settle(&mut done, is_forced).await?;
        }
        Ok(done)
    }

    /// Says what retention would do now. Stores and deletes nothing.
    ///
    /// # Errors
    /// As [`Keeper::compact`].
    pub async fn preview(&mut self) -> Result<Preview> {
        let looked = self.look_at_all().await?;
        Ok(Preview {
            decision: self.decide(&looked, self.now().0),
            refused: self.refused(&looked, false),
            survey: looked.survey,
        })
    }

    /// Takes a snapshot of the newest state, and merges nothing: somebody may write. `None` if
    /// nothing was committed since the last one.
    ///
    /// # Errors
    /// `NotFound` if there is no replica, no complete snapshot to go on from, or something went
    /// while it was needed; `Unavailable`, `Disk`.
    pub async fn snapshot_now(&mut self) -> Result<Option<Taken>> {
        let looked = self.look_at_all().await?;
        let Some((_, line)) = self.newest(&looked.survey) else {
            let location = self.workshop.store.location();
            return Err(Error::not_found(format!(
                "{location} has no complete snapshot yet, and so nothing that another one goes on \
                 from"
            )));
        };
        match line.later(line.last()) {
            Some(later) => later::take(&self.workshop, &later).await.map(Some),
            None => Ok(None),
        }
    }

    /// Says what the bytes are for. Stores and deletes nothing.
    ///
    /// # Errors
    /// As [`Keeper::compact`].
    pub async fn usage(&mut self) -> Result<Usage> {
        let looked = self.look_at_all().await?;
        let decision = self.decide(&looked, self.now().0);
        let mut known = Known {
            parts: look::parts(&*self.workshop.store, &looked.survey).await?,
            ..Known::default()
        };
        if let Some((_, line)) = self.newest(&looked.survey) {
            let object = &line.base().listed.object;
            let newest = (object.key.clone(), object.size);
            let used = later::used(&self.workshop, &newest).await;
            known.used = look::readable(used)?.unwrap_or_default();
        }
        let generations = usage::split(&looked.survey, &decision, &known);
        let mut total = Bytes::default();
        generations.values().for_each(|bytes| total += *bytes);
        total.other += looked.bytes - total.total();
        let segments = looked.survey.generations.values().flat_map(|g| &g.segments);
        let points = segments.filter_map(|segment| segment.inside.as_ref());
        let times = points.flat_map(|inside| inside.points.iter().map(|&(_, time)| time));
        let now = self.now().0;
        Ok(Usage {
            commits: times.filter(|time| since(*time, now) < DAY).collect(),
            generations,
            total,
        })
    }

    /// What is added from now on, somebody else adds.
    async fn look_first(&mut self) -> Result<Looked> {
        let looked = self.look_at_all().await?;
        self.stranger = None;
        Ok(looked)
    }

    async fn look_at_all(&mut self) -> Result<Looked> {
        let looked = self.look(Behalf::Nobody).await?;
        if looked.added.is_none() {
            let location = self.workshop.store.location();
            return Err(Error::not_found(format!(
                "{location} holds no replica: there is no object below {GENERATIONS}"
            )));
        }
        Ok(looked)
    }

    /// By levels first, so that each version is written only a few times; then what is left.
    fn next_of_all(&self, survey: &Survey) -> Option<Merge> {
        let now = self.now().0;
        survey.generations.keys().rev().find_map(|&id| {
            let line = self.line(survey, id)?;
            let by_level = rules::next_merge(&line.segments, &line.snapshots, now);
            let rest = || rules::next_closing(&line.segments, &line.snapshots);
            Some(line.merge(&by_level.or_else(rest)?))
        })
    }

    /// How many segments stand for all transactions that can be opened.
    fn standing(&self, survey: &Survey) -> usize {
        let ids = survey.generations.keys();
        let lines = ids.filter_map(|&id| self.line(survey, id));
        lines.map(|line| line.segments.len()).sum()
    }

    /// Why nothing may be deleted. Asked before anything is added.
    fn refused(&self, looked: &Looked, is_forced: bool) -> Option<Refused> {
        let environment = &self.workshop.environment;
        let (clock, uptime) = (environment.now(), (environment.uptime)());
        let now = match clock::judge(None, clock, uptime, self.now().1).0 {
            Now::At(now) => now,
            Now::Unknown(why) => return Some(Refused::Clock(why)),
        };
        if let Some(claim) = &looked.damaged_claim {
            return Some(Refused::Claim(claim.clone()));
        }
        let added = looked.added.filter(|_| !is_forced)?;
        let age = since(added, now);
        if age > ABSURD {
            return Some(Refused::Clock(format!(
                "nothing is deleted: the clock says {now}, and the newest object is of {added}; \
                 --force deletes all the same"
            )));
        }
        (age < UNTOUCHED_FOR).then_some(Refused::Recent(age))
    }

    /// Thins and deletes until nothing is left to do: what was thinned makes what it stands for
    /// superfluous.
    async fn settle(&mut self, done: &mut Done, is_forced: bool) -> Result<()> {
        loop {
            let looked = self.look_at_all().await?;
            if self.stranger.is_some() && !is_forced {
                done.refused = Some(Refused::Recent(Duration::ZERO));
                return Ok(());
            }
            let decision = self.decide(&looked, self.now().0);
            let thinned = self.rewrite(&looked, &decision).await?;
            let (objects, bytes) = self.let_go(&looked, &decision).await?;
            done.thinned += thinned;
            done.deleted.0 += objects;
            done.deleted.1 += bytes;
            if thinned == 0 && objects == 0 {
                return Ok(());
            }
        }
    }
}

/// The time that passed; none if that lies ahead.
fn since(then: Timestamp, now: Timestamp) -> Duration {
    let micros = now.micros().saturating_sub(then.micros()).max(0);
    Duration::from_micros(micros.unsigned_abs())
}
