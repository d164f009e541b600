//! What directories list.

use super::*;
use crate::error::ErrorKind;
use crate::materialize::points::Points;
use crate::mount::period::Period;
use crate::mount::view::curated::curated;
use std::ops::Range;

/// Lines made at a time: about what the kernel asks for at once.
const LINES: usize = 64;

/// What the directory of a database lists of its restore points.
pub(super) struct Shown {
    points: Points,
    only: Only,
}

/// Some of many, by their indexes.
enum Only {
    Range(Range<usize>),
    /// Ascending.
    Chosen(Vec<usize>),
}

impl View {
    /// The lines of a directory behind the one with this cookie, some at a time; from the first
    /// one for 0.
    ///
    /// # Errors
    /// `NotFound` for no such directory, `Unavailable` when nothing is known of it yet.
    pub fn list(&self, directory: Inode, after: u64, how: How) -> Result<Answer<Vec<Line>>> {
        let Some(after) = self.place(after) else {
            return Ok(Answer::Now(Vec::new()));
        };
        let behind = |lines: Vec<Line>| -> Vec<Line> {
            lines
                .into_iter()
                .filter(|line| line.place > after)
                .collect()
        };
        let of = |number, list: &dyn Fn(&Member) -> Result<Vec<Line>>| {
            let member = self.database(number)?;
            let subject = Subject::Database(member.clone());
            self.answer(subject, how, || list(&member))
        };
        match self.meaning(directory)? {
            Meaning::Root => self.answer(Subject::Root, how, || Ok(behind(self.list_databases()))),
            Meaning::Database(number) => of(number, &|member| {
                let fixed = behind(self.fixed_lines(member)?);
                self.with_moments(fixed, member, &member.shown(self.options.listed), after)
            }),
            Meaning::ByTime(number, hour) if hour.is_hour() => of(number, &|member| {
                let fixed = behind(self.dots(directory)?);
                let points = member.replica.points_by_time();
                let only = Only::Range(in_period(&points, hour));
                self.with_moments(fixed, member, &Shown { points, only }, after)
            }),
            Meaning::ByTime(number, period) => of(number, &|member| {
                Ok(behind(self.list_periods(member, period)?))
            }),
            Meaning::ByTxid(number) => of(number, &|member| {
                let fixed = behind(self.dots(directory)?);
                self.list_txids(fixed, member, after)
            }),
            Meaning::About(number) => Ok(Answer::Now(behind(self.list_about(number)?))),
            Meaning::Latest(_) | Meaning::Status(_) | Meaning::Points(_) | Meaning::Moment(..) => {
                Err(not_here("no directory"))
            }
        }
    }

    /// Where a line with this cookie is, whether it is still there or not; `None` if it never was.
    fn place(&self, cookie: u64) -> Option<PlaceInDirectory> {
        match Inode(cookie).meaning() {
            Some(Meaning::Moment(slot, txid)) => {
                let (_, generation) = locked(&self.slots).pair(slot)?;
                Some(PlaceInDirectory::Moment(generation, txid))
            }
            _ => Some(PlaceInDirectory::Fixed(cookie)),
        }
    }

    /// The directory itself, and the one around it.
    fn dots(&self, directory: Inode) -> Result<Vec<Line>> {
        let around = match self.meaning(directory)? {
            Meaning::ByTime(number, period) => match period.parent() {
                Some(parent) => Inode::by_time(number, parent),
                None => Inode::database(number),
            },
            Meaning::ByTxid(number) | Meaning::About(Some(number)) => Inode::database(number),
            _ => Inode::ROOT,
        };
        let ttl = self.moving_ttl();
        Ok(vec![
            fixed_line(1, ".", self.attributes(directory)?, ttl),
            fixed_line(2, "..", self.attributes(around)?, ttl),
        ])
    }

    fn list_databases(&self) -> Vec<Line> {
        let root = self.root_attributes();
        let ttl = self.moving_ttl();
        let mut lines = vec![
            fixed_line(1, ".", root, ttl),
            fixed_line(2, "..", root, ttl),
        ];
        let databases = locked(&self.databases);
        lines.extend(databases.by_name.iter().map(|(name, member)| {
            let attributes = self.database_attributes(member);
            fixed_line(
                attributes.inode.0,
                name,
                attributes,
                self.database_ttl(member),
            )
        }));
        // The order in which they were seen, so that a new one comes last.
        lines.sort_by_key(|line| line.place);
        lines
    }

    fn fixed_lines(&self, member: &Member) -> Result<Vec<Line>> {
        let mut lines = self.dots(Inode::database(member.number))?;
        let ttl = self.moving_ttl();
        if let Some(attributes) = self.latest_attributes(member) {
            lines.push(fixed_line(attributes.inode.0, LATEST, attributes, ttl));
        }
        for (name, inode) in [
            (BY_TXID, Inode::by_txid(member.number)),
            (BY_TIME, Inode::by_time(member.number, Period::EVER)),
        ] {
            lines.push(fixed_line(inode.0, name, self.attributes(inode)?, ttl));
        }
        Ok(lines)
    }

    fn list_about(&self, number: Option<DatabaseNumber>) -> Result<Vec<Line>> {
        let mut lines = self.dots(Inode::about(number))?;
        let status = (STATUS, Inode::status(number));
        let points = number.map(|number| (POINTS, Inode::points(number)));
        for (name, inode) in [Some(status), points].into_iter().flatten() {
            let attributes = self.attributes(inode)?;
            lines.push(fixed_line(inode.0, name, attributes, self.moving_ttl()));
        }
        Ok(lines)
    }

    /// The directories of `by-time` that have commits in them.
    fn list_periods(&self, member: &Member, period: Period) -> Result<Vec<Line>> {
        let mut lines = self.dots(Inode::by_time(member.number, period))?;
        let points = member.replica.points_by_time();
        let mut within = in_period(&points, period);
        while let Some(point) = points.get(within.start).filter(|_| !within.is_empty()) {
            let part = period.around(point.time);
            let inode = Inode::by_time(member.number, part);
            let attributes = self.attributes(inode)?;
            lines.push(fixed_line(
                inode.0,
                &part.name(),
                attributes,
                self.moving_ttl(),
            ));
            within.start = points.count_until(part.last());
        }
        Ok(lines)
    }

    /// Adds some of the restore points that are shown, under their times.
    fn with_moments(
        &self,
        lines: Vec<Line>,
        member: &Member,
        shown: &Shown,
        after: PlaceInDirectory,
    ) -> Result<Vec<Line>> {
        let start = match after {
            PlaceInDirectory::Fixed(_) => 0,
            PlaceInDirectory::Moment(generation, txid) => {
                shown.points.count_through(generation, txid)
            }
        };
        let points = &shown.points;
        match &shown.only {
            Only::Range(range) => {
                let rest = start.max(range.start)..range.end;
                let points = points.from(rest.start).take(rest.len());
                self.with_points(lines, member, points, file_name)
            }
            Only::Chosen(chosen) => {
                let rest = &chosen[chosen.partition_point(|index| *index < start)..];
                let points = rest.iter().filter_map(|index| points.get(*index));
                self.with_points(lines, member, points, file_name)
            }
        }
    }

    /// Adds some restore points, under their txids.
    fn list_txids(
        &self,
        lines: Vec<Line>,
        member: &Member,
        after: PlaceInDirectory,
    ) -> Result<Vec<Line>> {
        let points = member.replica.all_points();
        let start = match after {
            PlaceInDirectory::Fixed(_) => 0,
            PlaceInDirectory::Moment(generation, txid) => points.count_through(generation, txid),
        };
        let name = |point: &RestorePoint| format!("{}-{}{SUFFIX}", point.generation, point.txid);
        self.with_points(lines, member, points.from(start), name)
    }

    fn with_points(
        &self,
        mut lines: Vec<Line>,
        member: &Member,
        points: impl Iterator<Item = RestorePoint>,
        name: impl Fn(&RestorePoint) -> String,
    ) -> Result<Vec<Line>> {
        for point in points.take(LINES) {
            let attributes = match self.moment_attributes(member, &point) {
                Ok(attributes) => attributes,
                // Its generation went since these points were listed.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            lines.push(Line {
                cookie: attributes.inode.0,
                name: name(&point),
                entry: Entry {
                    attributes,
                    ttl: SETTLED_TTL,
                },
                place: PlaceInDirectory::Moment(point.generation, point.txid),
            });
        }
        Ok(lines)
    }
}

impl Member {
    /// What its directory lists, made once for every look.
    fn shown(&self, listed: Listed) -> Arc<Shown> {
        let make = || {
            let points = self.replica.points_by_time();
            let time = |index| points.get(index).expect("it is below the count").time;
            let only = match listed {
                Listed::All => Only::Range(0..points.count()),
                Listed::Curated => {
                    let before = |time| count_before(&points, time);
                    Only::Chosen(curated(points.count(), time, before))
                }
                Listed::None => Only::Range(0..0),
            };
            Arc::new(Shown { points, only })
        };
        Arc::clone(locked(&self.shown).get_or_insert_with(make))
    }

    /// The places of the restore points of a period among those that times mean.
    pub(super) fn points_in(&self, period: Period) -> Range<usize> {
        in_period(&self.replica.points_by_time(), period)
    }
}

fn in_period(points: &Points, period: Period) -> Range<usize> {
    let start = match period == Period::EVER {
        true => 0,
        false => count_before(points, period.first()),
    };
    start..points.count_until(period.last())
}

fn count_before(points: &Points, time: Timestamp) -> usize {
    points.count_until(Timestamp::from_micros(time.micros().saturating_sub(1)))
}

fn fixed_line(cookie: u64, name: &str, attributes: Attributes, ttl: Duration) -> Line {
    Line {
        cookie,
        name: name.to_owned(),
        entry: Entry { attributes, ttl },
        place: PlaceInDirectory::Fixed(cookie),
    }
}
