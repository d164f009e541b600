//! The words with which a user names a moment: one parser for mount names, `--timestamp`, `--txid`
//! and what stands behind the `@` of `app@5m-ago`.
//!
//! | form | means |
//! | --- | --- |
//! | `2026-11-20T17:45:12.345678Z`, `20261120T174512Z` | RFC 3339, also without the punctuation |
//! | `2026-11-20T17-45-12.345678Z` | the same, as files are named |
//! | `2026-11-20T17:45:12+02:00`, `...+0200`, `...+02` | at an offset from UTC |
//! | `2026-11-20T17:45Z`, `2026-11-20T17Z` | a minute, an hour |
//! | `2026-11-20`, `20261120`, `2026-11` | a day, a month |
//! | `@1795196712`, `@1795196712.5` | seconds since 1970-01-01 UTC |
//! | `5m-ago`, `1h30m-ago`, `2d-ago` | exactly so long before now; `w`, `d`, `h`, `m`, `s` |
//! | `yesterday` | the end of yesterday in UTC |
//! | `now`, `today`, `latest` | the last commit |
//!
//! A time means the *end* of the smallest unit that it names: `10:00:00Z` the last microsecond of
//! that second, `2024-01-01` that of the day, `.5` that of a tenth of a second. What has no zone is
//! UTC. A `-` behind the hour always begins the minutes; it begins an offset behind minutes that
//! have a `:` before them, behind seconds, and behind the form without punctuation.

use crate::error::{Error, Result};
use crate::format::ids::{GenerationId, Timestamp, Txid};
use jiff::civil::{Date, DateTime};

/// A moment as asked for; `materialize` turns it into a restore point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The last commit of the highest generation, whatever any clock says.
    Latest,
    /// The last commit at or before this time: the end of the smallest unit that was named.
    At(Timestamp),
    /// A transaction, of the newest generation that has it unless one is named.
    Txid(Option<GenerationId>, Txid),
}

impl Moment {
    /// Parses a time in any of the forms above.
    ///
    /// # Errors
    /// `Invalid`, with the forms that would do.
    pub fn parse_time(text: &str, now: Timestamp) -> Result<Self> {
        if let Some(relative) = Relative::parse(text) {
            return Ok(match relative {
                Relative::Latest => Self::Latest,
                Relative::Yesterday => Self::At(end_of_yesterday(now)),
                Relative::Ago(micros) => Self::At(before(now, micros)),
            });
        }
        if let Some(seconds) = text.strip_prefix('@') {
            return since_1970(seconds).map(Self::At).ok_or_else(|| {
                Error::invalid(format!(
                    "{text:?} is no moment: it needs seconds since 1970, up to the year 9999, such \
                     as @1704067200 or @1704067200.5"
                ))
            });
        }
        let spelled = Spelled::parse(text).ok_or_else(|| no_moment(text))?;
        spelled.end().map(Self::At).ok_or_else(|| {
            Error::invalid(format!(
                "{text:?} is no moment: the calendar and the clock have no such date and time"
            ))
        })
    }

    /// Parses `<txid>` or `<generation>-<txid>`, in hex.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn parse_txid(text: &str) -> Result<Self> {
        let (generation, txid) = match text.rsplit_once('-') {
            Some((generation, txid)) => (Some(generation), txid),
            None => (None, text),
        };
        match (generation.map(str::parse).transpose(), txid.parse()) {
            (Ok(generation), Ok(txid)) => Ok(Self::Txid(generation, txid)),
            _ => Err(Error::invalid(format!(
                "{text:?} is no txid: say up to 16 hex digits such as 1c, or with its generation \
                 00000001-9f3c2a7b-000000000000001c"
            ))),
        }
    }

    /// Parses a time or a txid, whichever it is. Ten digits are seconds since 1970, also without
    /// their `@`, and eight are a day: a txid of so many is one with all its 16 digits.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn parse(text: &str, now: Timestamp) -> Result<Self> {
        if is_spelled_as_time(text) {
            return Self::parse_time(text, now);
        }
        if is_seconds(text) {
            return Self::parse_time(&format!("@{text}"), now);
        }
        Self::parse_txid(text).map_err(|_| {
            Error::invalid(format!(
                "{text:?} is neither a time nor a txid: say a time such as 2024-01-01T10:30:00Z, \
                 2024-01-01, 5m-ago or latest, or a txid such as 1c"
            ))
        })
    }

    /// True if the words mean another moment later on (`now`, `5m-ago`, `yesterday`).
    pub fn is_relative(text: &str) -> bool {
        Relative::parse(text).is_some()
    }
}

/// True for what has the form of a time, be there such a time or not.
fn is_spelled_as_time(text: &str) -> bool {
    text.starts_with('@') || Relative::parse(text).is_some() || Spelled::parse(text).is_some()
}

/// True for ten digits, of the years 2001 to 2286, and perhaps a fraction.
fn is_seconds(text: &str) -> bool {
    let seconds = text.split_once('.').map_or(text, |(seconds, _)| seconds);
    seconds.len() == 10 && !seconds.starts_with('0') && all_digits(seconds).is_some()
}

fn no_moment(text: &str) -> Error {
    Error::invalid(format!(
        "{text:?} is no moment: say a time such as 2024-01-01T10:30:00Z, \
         2024-01-01T12-30-00+02:00, 20240101T103000Z or @1704105000, a day or a month such as \
         2024-01-01 or 2024-01, or 5m-ago, 1h30m-ago, yesterday, today, now, latest"
    ))
}

/// Words whose meaning moves.
enum Relative {
    Latest,
    Yesterday,
    /// Microseconds.
    Ago(i64),
}

impl Relative {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "latest" | "now" | "today" => Some(Self::Latest),
            "yesterday" => Some(Self::Yesterday),
            _ => duration(text.strip_suffix("-ago")?).map(Self::Ago),
        }
    }
}

/// Parses `1h30m`: units from large to small, each at most once. Microseconds.
fn duration(text: &str) -> Option<i64> {
    const UNITS: [(char, i64); 5] = [
        ('w', 7 * 24 * 60 * 60),
        ('d', 24 * 60 * 60),
        ('h', 60 * 60),
        ('m', 60),
        ('s', 1),
    ];
    let mut rest = text;
    let mut seconds = 0_i64;
    for (unit, length) in UNITS {
        if let Some((count, behind)) = rest.split_once(unit) {
            let count: i64 = all_digits(count)?.parse().ok()?;
            seconds = seconds.checked_add(count.checked_mul(length)?)?;
            rest = behind;
        }
    }
    (rest.is_empty() && !text.is_empty()).then_some(())?;
    seconds.checked_mul(1_000_000)
}

fn before(now: Timestamp, micros: i64) -> Timestamp {
    Timestamp::from_micros(now.micros().saturating_sub(micros))
}

fn end_of_yesterday(now: Timestamp) -> Timestamp {
    let midnight = now.civil().date().at(0, 0, 0, 0);
    before(Timestamp::from_civil(midnight), 1)
}

/// The end of a second or of a part of one, given as seconds since 1970; up to the year 9999, since
/// a larger number is one of milliseconds.
fn since_1970(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = match text.split_once('.') {
        Some((seconds, fraction)) => (seconds, end_of_fraction(fraction)?),
        None => (text, 999_999),
    };
    let seconds: i64 = all_digits(seconds)?.parse().ok()?;
    let micros = seconds.checked_mul(1_000_000)?.checked_add(fraction)?;
    let time = Timestamp::from_micros(micros);
    (time.micros() == micros).then_some(time)
}

/// The last microsecond of what a fraction of a second names: `5` is a tenth, up to 599,999.
/// Digits beyond the sixth name a moment within a microsecond, which has no end of its own.
fn end_of_fraction(digits: &str) -> Option<i64> {
    let digits = all_digits(digits)?;
    let kept = &digits[..digits.len().min(6)];
    format!("{kept:9<6}").parse().ok()
}

fn all_digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then_some(text)
}

/// A date with or without a time of day, as spelled: numbers that may lie outside any calendar.
struct Spelled {
    year: i16,
    month: i8,
    day: Option<i8>,
    hour: Option<i8>,
    minute: Option<i8>,
    second: Option<i8>,
    /// The last microsecond within the second.
    fraction: Option<i64>,
    offset: Offset,
}

/// What a local time is ahead of UTC.
#[derive(Default)]
struct Offset {
    is_behind: bool,
    hours: i64,
    minutes: i64,
}

impl Spelled {
    fn parse(text: &str) -> Option<Self> {
        let mut rest = Rest(text);
        let year = rest.digits(4)?;
        let (month, day) = if rest.skip('-') {
            let month = rest.digits(2)?;
            (month, rest.skip('-').then(|| rest.digits(2)))
        } else {
            (rest.digits(2)?, Some(rest.digits(2)))
        };
        let mut spelled = Self {
            year,
            month: month as i8,
            day: match day {
                Some(day) => Some(day? as i8),
                None => None,
            },
            hour: None,
            minute: None,
            second: None,
            fraction: None,
            offset: Offset::default(),
        };
        if spelled.day.is_some() && (rest.skip('T') || rest.skip('t') || rest.skip(' ')) {
            spelled.parse_time_of_day(&mut rest)?;
            // With colons elsewhere, dashes here would look like a time of day.
            let dash_for_colon = !text.contains(':');
            spelled.offset = Offset::parse(&mut rest, dash_for_colon)?;
        }
        rest.0.is_empty().then_some(spelled)
    }

    fn parse_time_of_day(&mut self, rest: &mut Rest<'_>) -> Option<()> {
        self.hour = Some(rest.digits(2)? as i8);
        let punctuation = [':', '-'].into_iter().find(|sign| rest.skip(*sign));
        if punctuation.is_none() && !rest.is_digit() {
            return Some(());
        }
        self.minute = Some(rest.digits(2)? as i8);
        let has_seconds = match punctuation {
            Some(sign) => rest.skip(sign),
            None => rest.is_digit(),
        };
        if !has_seconds {
            return Some(());
        }
        self.second = Some(rest.digits(2)? as i8);
        if rest.skip('.') {
            self.fraction = Some(end_of_fraction(rest.all_digits())?);
        }
        Some(())
    }

    /// The last microsecond of the smallest unit that is named, or `None` if there is no such date
    /// or time of day.
    fn end(&self) -> Option<Timestamp> {
        let date = match self.day {
            Some(day) => Date::new(self.year, self.month, day).ok()?,
            None => Date::new(self.year, self.month, 1).ok()?.last_of_month(),
        };
        // A leap second counts as the end of the one before: no clock of ours has it.
        let (second, fraction) = match (self.second, self.fraction) {
            (Some(60), _) => (59, 999_999),
            (second, fraction) => (second.unwrap_or(59), fraction.unwrap_or(999_999)),
        };
        let (hour, minute) = (self.hour.unwrap_or(23), self.minute.unwrap_or(59));
        let local = DateTime::new(
            date.year(),
            date.month(),
            date.day(),
            hour,
            minute,
            second,
            0,
        );
        let local = Timestamp::from_civil(local.ok()?).micros() + fraction;
        Some(before(Timestamp::from_micros(local), self.offset.micros()?))
    }
}

impl Offset {
    /// Parses `Z`, `+02:00`, `+02-00`, `+0200` or `+02`; nothing at all is UTC.
    fn parse(rest: &mut Rest<'_>, dash_for_colon: bool) -> Option<Self> {
        if rest.0.is_empty() || rest.skip('Z') || rest.skip('z') {
            return Some(Self::default());
        }
        let is_behind = rest.skip('-');
        if !is_behind && !rest.skip('+') {
            return None;
        }
        let hours = rest.digits(2)?;
        let has_minutes = rest.skip(':') || (dash_for_colon && rest.skip('-')) || rest.is_digit();
        Some(Self {
            is_behind,
            hours: hours.into(),
            minutes: if has_minutes {
                rest.digits(2)?.into()
            } else {
                0
            },
        })
    }

    /// `None` if no clock shows so many hours or minutes.
    fn micros(&self) -> Option<i64> {
        (self.hours <= 23 && self.minutes <= 59).then_some(())?;
        let micros = (self.hours * 60 + self.minutes) * 60_000_000;
        Some(if self.is_behind { -micros } else { micros })
    }
}

/// What is not parsed yet.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    fn skip(&mut self, sign: char) -> bool {
        match self.0.strip_prefix(sign) {
            Some(behind) => {
                self.0 = behind;
                true
            }
            None => false,
        }
    }

    fn is_digit(&self) -> bool {
        self.0.starts_with(|c: char| c.is_ascii_digit())
    }

    /// The number in exactly `count` digits, at most four.
    fn digits(&mut self, count: usize) -> Option<i16> {
        let (digits, behind) = self.0.split_at_checked(count)?;
        let number = all_digits(digits)?.parse().ok()?;
        self.0 = behind;
        Some(number)
    }

    /// All digits that follow, if only none.
    fn all_digits(&mut self) -> &'a str {
        let end = self.0.find(|c: char| !c.is_ascii_digit());
        let (digits, behind) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = behind;
        digits
    }
}

#[cfg(test)]
mod tests;
