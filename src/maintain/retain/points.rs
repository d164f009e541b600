//! Which restore points of a generation are kept, and what of it they need. Pure.
//!
//! Dropping a point that is not kept changes nothing for the others: so it does not matter in how
//! many runs, or how far, a decision is carried out.

use super::clock::{Clock, Window, Windows};
use super::line::{Content, Line, Point, Run, Stretch};
use super::{Keep, Kept, Recent};
use crate::format::ids::{GenerationId, Timestamp, Txid};
use std::collections::{BTreeMap, BTreeSet};

/// A younger generation through which readers come to this one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Child {
    /// The last transaction that is part of the younger one's past.
    pub(super) shared: Txid,
    /// The younger one's first restore point; none as long as it has no complete snapshot.
    pub(super) first: Option<Timestamp>,
}

/// What is kept of a generation.
pub(super) struct Chosen {
    /// By transaction, but for those of the window of all commits.
    pub(super) kept: BTreeMap<Txid, (Timestamp, Keep)>,
    /// Those of the window of all commits, and segments that were not read.
    pub(super) recent: Option<Recent>,
    /// Of each segment: a kept point needs it.
    pub(super) needed: Vec<bool>,
    /// Of each segment: it stays for another reason, and as it is.
    pub(super) held: Vec<bool>,
    /// The snapshots that are bases of kept points, by index.
    pub(super) bases: BTreeSet<usize>,
    /// No generation that readers can open continues this one.
    pub(super) is_end: bool,
}

impl Chosen {
    /// The points that are named one by one, for people.
    pub(super) fn list(&self, generation: GenerationId) -> impl Iterator<Item = Kept> + '_ {
        self.kept.iter().map(move |(&txid, &(time, why))| Kept {
            generation,
            txid,
            time,
            why,
        })
    }
}

/// Which generations lie on readers' ways to which older ones, by the older one. Readers pass over
/// a generation without restore points; unless it is higher than all that have some, it never gets
/// any, and does not count.
pub(super) fn children(
    lines: &BTreeMap<GenerationId, Line<'_>>,
) -> BTreeMap<GenerationId, Vec<Child>> {
    let mut children: BTreeMap<GenerationId, Vec<Child>> = BTreeMap::new();
    let highest = lines.values().rev().find(|line| line.first().is_some());
    let highest = highest.map(|line| line.id);
    for line in lines.values() {
        let first = line.first().map(|(_, time)| time);
        let may_have = line.hoped.as_ref().is_some_and(|hoped| !hoped.is_empty());
        if first.is_none() && Some(line.id) < highest && !may_have {
            continue;
        }
        let mut from = line;
        while let Some(parent) = from.surveyed.parent
            && parent.generation < from.id
            && let Some(older) = lines.get(&parent.generation)
        {
            let shared = parent.txid;
            if older.has_base() {
                let those = children.entry(older.id).or_default();
                those.push(Child { shared, first });
            }
            // With nothing to open that is shared readers go on to where this one came from.
            if older.first().is_some_and(|(begins, _)| begins <= shared) {
                break;
            }
            from = older;
        }
    }
    children
}

/// What is kept of a generation, and what that needs.
pub(super) fn choose(
    line: &Line<'_>,
    children: &[Child],
    windows: &Windows,
    clock: &mut Clock,
) -> Chosen {
    let last = line.last();
    let continues =
        |child: &Child| child.first.is_some() && last.is_some_and(|l| child.shared >= l);
    let segments = line.surveyed.segments.len();
    let mut chosen = Chosen {
        kept: BTreeMap::new(),
        recent: None,
        needed: vec![false; segments],
        held: vec![false; segments],
        bases: BTreeSet::new(),
        is_end: !children.iter().any(continues),
    };
    let runs = line.runs(&line.stretches);
    let settled = settled(&runs, children, chosen.is_end, windows, clock);
    let views = [Some(&line.stretches), line.hoped.as_ref()];
    for stretches in views.into_iter().flatten() {
        let mut view = View {
            runs: line.runs(stretches),
            settled,
            through: vec![None; stretches.len()],
            chosen: &mut chosen,
            clock: &mut *clock,
        };
        view.choose(line.id, children, windows);
        let through = view.through;
        chosen.need(line, stretches, &through);
    }
    chosen.hold(line, settled, windows, clock);
    chosen
}

/// Before which transaction nothing is kept, whatever segments hold that were not read: a point
/// that readers can open lies at or before the start of the longest window.
fn settled(
    runs: &[Run<'_>],
    children: &[Child],
    is_end: bool,
    windows: &Windows,
    clock: &mut Clock,
) -> Option<Txid> {
    let limits = limits(&windows.longest, children, is_end, clock);
    if limits.is_empty() {
        // Times resolve in younger generations, which begin after this one ends.
        return Some(Txid::MAX);
    }
    let least = limits.into_iter().flatten().min();
    last_at(runs, &windows.longest, least).map(|(txid, _)| txid)
}

/// Up to which transactions readers look for the start of a window; `None` is up to the end.
fn limits(
    window: &Window,
    children: &[Child],
    is_end: bool,
    clock: &mut Clock,
) -> Vec<Option<Txid>> {
    let mut limits: Vec<Option<Txid>> = is_end.then_some(None).into_iter().collect();
    for child in children {
        // Later times than this resolve in the child.
        let is_inside = child
            .first
            .is_some_and(|first| window.has_passed(first, clock));
        if !is_inside {
            limits.push(Some(child.shared));
        }
    }
    limits
}

/// The last known point at or before the start of a window, and not after a transaction.
fn last_at(runs: &[Run<'_>], window: &Window, limit: Option<Txid>) -> Option<Point> {
    let is_it =
        |&(txid, time): &Point| !window.has(time) && limit.is_none_or(|limit| txid <= limit);
    runs.iter().rev().find_map(|run| match run.content {
        Content::Points(points) => points.iter().rev().copied().find(is_it),
        Content::NotRead { .. } => None,
    })
}

/// One way to see a generation: with these stretches.
struct View<'a> {
    runs: Vec<Run<'a>>,
    settled: Option<Txid>,
    /// Of each stretch: up to which transaction kept points need it.
    through: Vec<Option<Txid>>,
    chosen: &'a mut Chosen,
    clock: &'a mut Clock,
}

impl View<'_> {
    fn choose(&mut self, generation: GenerationId, children: &[Child], windows: &Windows) {
        self.keep_recent(generation, windows);
        self.keep_last_of_each(children, windows);
        for window in &windows.given {
            for limit in limits(window, children, self.chosen.is_end, self.clock) {
                if let Some(point) = last_at(&self.runs, window, limit) {
                    self.keep(point, Keep::WindowStart, windows);
                }
            }
        }
        for window in windows.hourly.iter().chain(&windows.daily) {
            // There the start of the window moves on.
            let mut points = self.runs.iter().flat_map(Run::points);
            if let Some(&(_, time)) = points.find(|(_, time)| window.has(*time)) {
                window.has_passed(time, self.clock);
            }
        }
        let newest = self.runs.iter().rev().find_map(|run| run.points().last());
        if let Some(&newest) = newest.filter(|_| self.chosen.is_end) {
            self.keep(newest, Keep::Newest, windows);
        }
        self.follow();
    }

    /// The window of all commits, and what was not read.
    fn keep_recent(&mut self, generation: GenerationId, windows: &Windows) {
        let mut recent = Recent::none(generation);
        for run in &self.runs {
            match run.content {
                Content::NotRead { to, time } => {
                    // A clock that ran ahead has made points that are younger than what follows.
                    if !is_settled(self.settled, to) || !windows.all.has_passed(time, self.clock) {
                        recent.not_read += 1;
                        let through = &mut self.through[run.stretch];
                        *through = (*through).max(Some(to));
                    }
                }
                Content::Points(points) => {
                    let times = points.iter().map(|(_, time)| *time);
                    // While it holds any point of the window it does not matter how many.
                    for time in times.clone().min().into_iter().chain(times.max()) {
                        windows.all.has_passed(time, self.clock);
                    }
                    for point in points.iter().filter(|(_, time)| windows.all.has(*time)) {
                        recent.add(*point);
                        let through = &mut self.through[run.stretch];
                        *through = (*through).max(Some(point.0));
                    }
                }
            }
        }
        if recent.points > 0 || recent.not_read > 0 {
            // What readers would see if nothing was damaged is more, never less.
            self.chosen.recent = Some(recent);
        }
    }

    /// The last point of each hour and day, also of a past that ends within the generation.
    fn keep_last_of_each(&mut self, children: &[Child], windows: &Windows) {
        if windows.hourly.is_none() && windows.daily.is_none() {
            return;
        }
        let mut last: Vec<(Point, Ends)> = Vec::new();
        let mut before: Option<Point> = None;
        for run in &self.runs {
            for &point in run.points() {
                if let Some(before) = before {
                    let ends = Ends::between(before, point, children);
                    last.extend((ends != Ends::Nothing).then_some((before, ends)));
                }
                before = Some(point);
            }
            if matches!(run.content, Content::NotRead { .. }) {
                last.extend(before.take().map(|before| (before, Ends::Day)));
            }
        }
        last.extend(before.map(|before| (before, Ends::Day)));
        for (point, ends) in last {
            let hourly = windows.hourly.map(|window| (window, Keep::Hourly));
            let daily = windows.daily.filter(|_| ends == Ends::Day);
            let daily = daily.map(|window| (window, Keep::Daily));
            for (window, why) in hourly.into_iter().chain(daily) {
                if !window.has_passed(point.1, self.clock) {
                    self.keep(point, why, windows);
                }
            }
        }
    }

    fn keep(&mut self, (txid, time): Point, why: Keep, windows: &Windows) {
        if !windows.all.has(time) {
            self.chosen.kept.entry(txid).or_insert((time, why));
        }
    }

    /// The kept points that are named one by one need their stretches, too.
    fn follow(&mut self) {
        for run in &self.runs {
            if let (Some((from, _)), Some((to, _))) = (run.points().first(), run.points().last()) {
                let kept = self.chosen.kept.range(from..=to).next_back();
                let through = &mut self.through[run.stretch];
                *through = (*through).max(kept.map(|(&txid, _)| txid));
            }
        }
    }
}

impl Run<'_> {
    fn points(&self) -> &[Point] {
        match self.content {
            Content::Points(points) => points,
            Content::NotRead { .. } => &[],
        }
    }
}

fn is_settled(settled: Option<Txid>, txid: Txid) -> bool {
    settled.is_some_and(|settled| txid < settled)
}

/// What ends between two points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Nothing,
    Hour,
    /// And an hour with it.
    Day,
}

impl Ends {
    fn between(before: Point, after: Point, children: &[Child]) -> Self {
        const HOUR: i64 = 3_600_000_000;
        let hours = |point: Point| point.1.micros().div_euclid(HOUR);
        let is_shared = |child: &Child| before.0 <= child.shared && child.shared < after.0;
        let (hour, next) = (hours(before), hours(after));
        if hour.div_euclid(24) != next.div_euclid(24) || children.iter().any(is_shared) {
            Self::Day
        } else if hour == next {
            Self::Nothing
        } else {
            Self::Hour
        }
    }
}

impl Chosen {
    /// Notes what the stretches of a view need, each up to a transaction.
    fn need(&mut self, line: &Line<'_>, stretches: &[Stretch], through: &[Option<Txid>]) {
        for (stretch, through) in stretches.iter().zip(through) {
            let Some(through) = *through else { continue };
            self.bases.insert(stretch.base.index);
            for piece in &line.pieces[line.between(stretch.base.over, through)] {
                self.needed[piece.index] = true;
            }
        }
        if !self.bases.is_empty() {
            let complete = line
                .is_complete
                .iter()
                .rposition(|is_complete| *is_complete);
            self.bases.extend(complete);
        }
    }

    /// Notes which segments stay although no kept point needs them: what cannot be opened and is
    /// new, what is not known, and what leads to the end.
    fn hold(
        &mut self,
        line: &Line<'_>,
        settled: Option<Txid>,
        windows: &Windows,
        clock: &mut Clock,
    ) {
        for piece in &line.pieces {
            let segment = &line.surveyed.segments[piece.index];
            let is_recent = match &segment.inside {
                None => !is_settled(settled, piece.to),
                Some(inside) => {
                    let newest = inside.points.iter().map(|(_, time)| *time).max();
                    newest.is_some_and(|newest| !windows.all.has_passed(newest, clock))
                }
            };
            let is_last = line
                .pieces
                .last()
                .is_some_and(|last| last.index == piece.index);
            let is_open = line.last_since.is_some_and(|since| piece.to > since);
            self.held[piece.index] |= is_recent || self.is_end && (is_last || is_open);
        }
    }
}
