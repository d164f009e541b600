//! Restore points in order, by index: what listings of any length are made from.
//!
//! Shares the timelines of the replica, so that it costs the same for ten points and for ten
//! million, and stays as it is whatever the replica learns meanwhile.

use crate::format::ids::{GenerationId, RestorePoint, Timestamp, Txid};
use crate::materialize::history::History;
use crate::materialize::plan::{self, Line};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

type Histories = BTreeMap<GenerationId, Arc<History>>;

/// Restore points, ascending by (generation, txid), and by time where they are those that times
/// mean.
#[derive(Clone, Default)]
pub struct Points {
    /// Never one without points.
    runs: Vec<Run>,
    count: usize,
}

/// The first restore points of a generation.
#[derive(Clone)]
struct Run {
    history: Arc<History>,
    /// How many lie before it.
    start: usize,
    count: usize,
    last: RestorePoint,
}

impl Points {
    /// All that can be opened.
    pub(crate) fn all(histories: &Histories) -> Self {
        Self::of(histories.values().map(|h| (Arc::clone(h), h.count())))
    }

    /// Those that times mean: of each generation what came before the next one.
    pub(crate) fn by_time(histories: &Histories) -> Self {
        let mut runs = Vec::new();
        let mut next = plan::highest(histories).ok();
        let (mut limit, mut begins) = (None, None);
        while let Some((id, history)) = next {
            let is_before = |point: &RestorePoint| {
                limit.is_none_or(|limit| point.txid <= limit)
                    && begins.is_none_or(|begins| point.time < begins)
            };
            if history.exists() {
                runs.push((Arc::clone(history), history.count_while(is_before)));
                begins = [history.begins(), begins].into_iter().flatten().min();
            }
            // What lies behind a claim that cannot be read cannot be told either.
            let parent = history.parent().ok().flatten();
            next = parent
                .filter(|parent| parent.generation < id)
                .and_then(|parent| {
                    limit = Some(parent.txid);
                    Some((parent.generation, histories.get(&parent.generation)?))
                });
        }
        Self::of(runs.into_iter().rev())
    }

    fn of(runs: impl Iterator<Item = (Arc<History>, usize)>) -> Self {
        let mut points = Self::default();
        for (history, count) in runs {
            let last = count.checked_sub(1);
            let last = last.and_then(|last| history.points_from(last).next());
            if let Some(last) = last {
                points.runs.push(Run {
                    history,
                    start: points.count,
                    count,
                    last,
                });
                points.count += count;
            }
        }
        points
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Those from this index on.
    pub fn from(&self, index: usize) -> impl Iterator<Item = RestorePoint> + '_ {
        let first = self
            .runs
            .partition_point(|run| run.start + run.count <= index);
        self.runs[first..].iter().flat_map(move |run| {
            let skipped = index.saturating_sub(run.start);
            run.history.points_from(skipped).take(run.count - skipped)
        })
    }

    /// The one with this index.
    pub fn get(&self, index: usize) -> Option<RestorePoint> {
        self.from(index).next()
    }

    /// How many there are up to a place in the order, whether there is a point or not.
    pub fn count_through(&self, generation: GenerationId, txid: Txid) -> usize {
        self.count_while(|point| (point.generation, point.txid) <= (generation, txid))
    }

    /// How many there are up to a time, of those that times mean.
    pub fn count_until(&self, time: Timestamp) -> usize {
        self.count_while(|point| point.time <= time)
    }

    /// Bytes in a page of a generation's database.
    pub fn page_size(&self, generation: GenerationId) -> Option<u32> {
        let run = self.runs.iter().find(|run| run.history.id == generation)?;
        run.history.page_size().map(|size| size.get())
    }

    fn count_while(&self, holds: impl Fn(&RestorePoint) -> bool) -> usize {
        let whole = self.runs.partition_point(|run| holds(&run.last));
        let of_the_next = |run: &Run| run.start + run.history.count_while(&holds).min(run.count);
        self.runs.get(whole).map_or(self.count, of_the_next)
    }
}

impl fmt::Debug for Points {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Points")
            .field("count", &self.count)
            .finish()
    }
}

#[cfg(test)]
mod tests;
