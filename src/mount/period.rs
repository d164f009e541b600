//! The directories of `by-time`: a year, a month, a day or an hour of UTC. Pure.

use crate::format::ids::Timestamp;
use jiff::civil::{Date, DateTime, Time};

const YEAR_SHIFT: u32 = 14;
const MONTH_SHIFT: u32 = 10;
const DAY_SHIFT: u32 = 5;

/// All times, or a part of them that a directory stands for. What is not named is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    year: u16,
    month: u8,
    day: u8,
    /// From 1.
    hour: u8,
}

impl Period {
    /// All times.
    pub const EVER: Self = Self {
        year: 0,
        month: 0,
        day: 0,
        hour: 0,
    };
    /// Bits of [`Period::number`].
    pub const BITS: u32 = 28;

    /// A number for it, in the order of time among the periods within the same one.
    pub fn number(self) -> u32 {
        u32::from(self.year) << YEAR_SHIFT
            | u32::from(self.month) << MONTH_SHIFT
            | u32::from(self.day) << DAY_SHIFT
            | u32::from(self.hour)
    }

    /// The period of a number; `None` if it is nobody's.
    pub fn from_number(number: u32) -> Option<Self> {
        let period = Self {
            year: u16::try_from(number >> YEAR_SHIFT).ok()?,
            month: (number >> MONTH_SHIFT & 15) as u8,
            day: (number >> DAY_SHIFT & 31) as u8,
            hour: (number & 31) as u8,
        };
        let depth = period.depth();
        let parts = [period.month, period.day, period.hour];
        let is_nested = parts
            .iter()
            .skip(depth.saturating_sub(1))
            .all(|&part| part == 0);
        let exists = period == Self::EVER || period.first_second().is_some();
        (is_nested && exists).then_some(period)
    }

    /// How many units are named: 4 for an hour.
    fn depth(self) -> usize {
        let parts = [
            self.year,
            self.month.into(),
            self.day.into(),
            self.hour.into(),
        ];
        parts.iter().take_while(|&&part| part != 0).count()
    }

    /// Whether it lists commits, not periods.
    pub fn is_hour(self) -> bool {
        self.hour != 0
    }

    fn first_second(self) -> Option<DateTime> {
        let date = Date::new(
            self.year as i16,
            self.month.max(1) as i8,
            self.day.max(1) as i8,
        );
        let time = Time::new(self.hour.max(1) as i8 - 1, 0, 0, 0);
        (self.year > 0).then_some(DateTime::from_parts(date.ok()?, time.ok()?))
    }

    /// Its first microsecond.
    pub fn first(self) -> Timestamp {
        match self.first_second() {
            Some(first) => Timestamp::from_civil(first),
            None => Timestamp::from_micros(i64::MIN),
        }
    }

    /// Its last microsecond.
    pub fn last(self) -> Timestamp {
        let first = self.first_second();
        let next = first.and_then(|first| match self.depth() {
            1 => first.checked_add(jiff::Span::new().years(1)).ok(),
            2 => first.checked_add(jiff::Span::new().months(1)).ok(),
            3 => first.checked_add(jiff::Span::new().days(1)).ok(),
            _ => first.checked_add(jiff::Span::new().hours(1)).ok(),
        });
        match next {
            Some(next) => Timestamp::from_micros(Timestamp::from_civil(next).micros() - 1),
            // Behind the last year there is none.
            None => Timestamp::from_micros(i64::MAX),
        }
    }

    /// Whether a time lies in it.
    pub fn has(self, time: Timestamp) -> bool {
        (self.first()..=self.last()).contains(&time)
    }

    /// The directory in this one that a time lies in.
    pub fn around(self, time: Timestamp) -> Self {
        let civil = time.civil();
        let parts = [
            civil.year() as u16,
            civil.month() as u16,
            civil.day() as u16,
            civil.hour() as u16 + 1,
        ];
        let depth = self.depth() + 1;
        let part = |index: usize| if index < depth { parts[index] } else { 0 };
        Self {
            year: part(0),
            month: part(1) as u8,
            day: part(2) as u8,
            hour: part(3) as u8,
        }
    }

    /// The directory of this name in this one: `2026`, then `11`, `20` and `17`.
    pub fn within(self, name: &str) -> Option<Self> {
        let digits = if self == Self::EVER { 4 } else { 2 };
        let is_number = name.len() == digits && name.bytes().all(|b| b.is_ascii_digit());
        let part: u16 = name.parse().ok().filter(|_| is_number)?;
        let mut period = self;
        match self.depth() {
            0 => period.year = part,
            1 => period.month = part as u8,
            2 => period.day = part as u8,
            3 => period.hour = part as u8 + 1,
            _ => return None,
        }
        (period.depth() > self.depth() && period.first_second().is_some()).then_some(period)
    }

    /// The directory that it lies in; `None` for all times.
    pub fn parent(self) -> Option<Self> {
        let mut parent = self;
        match self.depth() {
            0 => return None,
            1 => parent.year = 0,
            2 => parent.month = 0,
            3 => parent.day = 0,
            _ => parent.hour = 0,
        }
        Some(parent)
    }

    /// Its name in the directory that it lies in.
    pub fn name(self) -> String {
        match self.depth() {
            0 => String::new(),
            1 => format!("{:04}", self.year),
            2 => format!("{:02}", self.month),
            3 => format!("{:02}", self.day),
            _ => format!("{:02}", self.hour - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The period of a path such as `2026/11`.
    fn period(path: &str) -> Option<Period> {
        let names = path.split('/').filter(|name| !name.is_empty());
        names.into_iter().try_fold(Period::EVER, Period::within)
    }

    #[track_caller]
    fn check(path: &str, first: &str, last: &str) {
        let found = period(path).unwrap();
        let shown = (found.first().to_string(), found.last().to_string());
        assert_eq!(shown, (first.to_owned(), last.to_owned()));
        assert_eq!(Period::from_number(found.number()), Some(found));
        assert!(found.number() < 1 << Period::BITS);
        let parent = found.parent().unwrap();
        assert_eq!(parent.within(&found.name()), Some(found));
        assert_eq!(parent.around(found.first()), found);
        assert_eq!(parent.around(found.last()), found);
        for (end, micros, expect) in [
            (found.first(), -1, false),
            (found.first(), 0, true),
            (found.last(), 0, true),
            (found.last(), 1, false),
        ] {
            let time = Timestamp::from_micros(end.micros() + micros);
            assert_eq!(found.has(time), expect, "{time}");
        }
    }

    #[test]
    fn a_path_names_a_year_a_month_a_day_or_an_hour() {
        let last = "2026-12-31T23:59:59.999999Z";
        check("2026", "2026-01-01T00:00:00.000000Z", last);
        check("2026/12", "2026-12-01T00:00:00.000000Z", last);
        let last = "2024-02-29T23:59:59.999999Z";
        check("2024/02", "2024-02-01T00:00:00.000000Z", last);
        check("2024/02/29", "2024-02-29T00:00:00.000000Z", last);
        check("2024/02/29/23", "2024-02-29T23:00:00.000000Z", last);
        let last = "2024-02-29T00:59:59.999999Z";
        check("2024/02/29/00", "2024-02-29T00:00:00.000000Z", last);
    }

    #[test]
    fn the_last_year_has_an_end() {
        let last = period("9999/12/31/23").unwrap();
        assert_eq!(last.last(), Timestamp::from_micros(i64::MAX));
        assert_eq!(Period::EVER.last(), last.last());
        assert!(last.has(last.last()) && Period::EVER.has(last.last()));
        assert_eq!(
            (Period::EVER.parent(), Period::EVER.name()),
            (None, String::new())
        );
    }

    #[test]
    fn what_is_no_date_is_no_path() {
        for path in [
            "0000",
            "26",
            "02026",
            "+026",
            "x",
            "2026/0",
            "2026/00",
            "2026/13",
            "2026/1",
            "2026/011",
            "2026/02/29",
            "2026/11/00",
            "2026/11/31",
            "2026/11/20/24",
            "2026/11/20/5",
            "2026/11/20/17/45",
        ] {
            assert_eq!(period(path), None, "{path}");
        }
    }

    #[test]
    fn a_number_that_was_never_made_is_no_period() {
        let hour = period("2026/11/20/17").unwrap().number();
        let of = |year: u32, month: u32, day: u32, hour: u32| {
            year << YEAR_SHIFT | month << MONTH_SHIFT | day << DAY_SHIFT | hour
        };
        assert_eq!(hour, of(2026, 11, 20, 18));
        for number in [
            of(0, 11, 0, 0),
            of(2026, 0, 20, 0),
            of(2026, 11, 0, 18),
            of(2026, 13, 0, 0),
            of(2026, 2, 30, 0),
            of(2026, 11, 20, 25),
            of(10_000, 0, 0, 0),
            u32::MAX,
        ] {
            assert_eq!(Period::from_number(number), None, "{number:#x}");
        }
    }
}
