//! Settings: plain validated data, and the things that come from outside: clocks and randomness.

pub mod file;
pub mod location;
pub mod nearest;
pub mod print;
pub mod settings;

use crate::config::settings::Retention;
use crate::error::{Error, Result};
use crate::format::ids::Timestamp;
use std::path::{Path, PathBuf};
use std::{sync::Arc, time::Duration};

/// What time it is. Comes in as a value, so that tests can say what they like.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Fills bytes with random ones. Comes in as a value, so that tests repeat themselves.
pub type Random = Arc<dyn Fn(&mut [u8]) -> Result<()> + Send + Sync>;

/// What comes from outside a daemon. Comes in as values, so that tests can say what they like.
#[derive(Clone)]
pub struct Environment {
    /// The time of day.
    pub clock: Clock,
    /// Time since the machine was booted, including the time that it slept.
    pub uptime: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// Random bytes.
    pub random: Random,
}

impl Environment {
    /// The time and randomness of this machine; its uptime stands still.
    #[cfg(test)]
    pub(crate) fn of_tests() -> Self {
        Self {
            clock: Arc::new(|| {
                let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
                Timestamp::from_micros(since.expect("after 1970").as_micros() as i64)
            }),
            uptime: Arc::new(|| Duration::ZERO),
            random: Arc::new(random),
        }
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Random bytes.
    ///
    /// # Errors
    /// `Unavailable` if there are none.
    pub fn draw<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        (self.random)(&mut bytes)?;
        Ok(bytes)
    }
}

/// How one database is captured.
#[derive(Clone, Debug)]
pub struct CaptureSettings {
    /// The database file.
    pub database: PathBuf,
    /// Where the spool lies.
    pub meta_path: PathBuf,
    /// Size of the `-wal` file, in bytes, past which we see to its restart.
    pub wal_size: u64,
    /// Whether we may take the write lock for 10 ms at most when nothing else restarts the WAL.
    pub writer_lock: bool,
    /// The slow poll behind inotify.
    pub monitor_interval: Duration,
}

/// Fills `bytes` with random bytes of the operating system.
///
/// # Errors
/// `Unavailable` if it has none.
pub fn random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes)
        .map_err(|e| Error::unavailable(format!("the system gave no random bytes: {e}")))
}

/// The default place of a database's spool: beside it.
pub fn default_meta_path(database: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(database.file_name().unwrap_or_default());
    name.push("-sqlrepl");
    database.with_file_name(name)
}

/// The units of durations, and their milliseconds.
const DURATIONS: [(&str, u64); 7] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60 * 1000),
    ("h", 60 * 60 * 1000),
    ("d", 24 * 60 * 60 * 1000),
    ("w", 7 * 24 * 60 * 60 * 1000),
    ("y", 365 * 24 * 60 * 60 * 1000),
];

/// The units of sizes, and their bytes.
const SIZES: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Parses `10s`, `500ms`, `1h30m`, `7d`, `1y` (days of 24 hours, years of 365 days), or `0`.
///
/// # Errors
/// `Invalid`, with the forms that would do.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let wrong = || {
        Error::invalid(format!(
            "{text:?} is no duration: say 10s, 500ms, 1h30m, 7d, 1y or 0"
        ))
    };
    let mut rest = text;
    let mut millis: u64 = 0;
    while !rest.is_empty() && text != "0" {
        let (number, behind) = split(rest, |c| c.is_ascii_digit()).ok_or_else(wrong)?;
        let (unit, behind) = split(behind, |c| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (_, factor) = DURATIONS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        millis = number
            .checked_mul(*factor)
            .and_then(|part| millis.checked_add(part))
            .ok_or_else(wrong)?;
        rest = behind;
    }
    if text.is_empty() {
        Err(wrong())
    } else {
        Ok(Duration::from_millis(millis))
    }
}

/// Parses a duration that is not zero.
///
/// # Errors
/// As [`parse_duration`].
pub fn parse_period(text: &str) -> Result<Duration> {
    match parse_duration(text)? {
        Duration::ZERO => Err(Error::invalid(format!("{text:?} must be longer than 0"))),
        duration => Ok(duration),
    }
}

/// Parses `all=7d,hourly=30d,daily=1y`, of which one is enough, or `7d`, which is `all=7d`.
///
/// # Errors
/// `Invalid`, with the forms that would do.
pub fn parse_retention(text: &str) -> Result<Retention> {
    let mut retention = Retention::default();
    for part in text.split(',') {
        let (window, length) = part.split_once('=').unwrap_or(("all", part));
        let place = match window {
            "all" => &mut retention.all,
            "hourly" => &mut retention.hourly,
            "daily" => &mut retention.daily,
            _ => {
                return Err(Error::invalid(format!(
                    "{window:?} is no window of retention: say all=7d,hourly=30d,daily=1y, or one \
                     of them, or 7d"
                )));
            }
        };
        if place.replace(parse_period(length)?).is_some() {
            return Err(Error::invalid(format!("{text:?} says {window} twice")));
        }
    }
    Ok(retention)
}

/// The least time that merged segments stay.
const MERGED_GRACE_MIN: Duration = Duration::from_secs(15 * 60);

/// Parses how long merged segments stay: a reader that listed one must find it for a while, and a
/// copy of a machine that wakes up must still meet it.
///
/// # Errors
/// `Invalid` if it is too short; else as [`parse_duration`].
pub fn parse_merged_grace(text: &str) -> Result<Duration> {
    match parse_duration(text)? {
        grace if grace < MERGED_GRACE_MIN => Err(Error::invalid(format!(
            "{text} is too short: merged segments stay for 15m at least"
        ))),
        grace => Ok(grace),
    }
}

/// A duration as [`parse_duration`] reads it, in whole milliseconds.
pub fn format_duration(duration: Duration) -> String {
    let mut left = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    // Nobody thinks of 30 days as of 4 weeks and 2 days.
    let units = DURATIONS.iter().rev().filter(|(unit, _)| *unit != "w");
    for (unit, millis) in units {
        if left >= *millis {
            text.push_str(&format!("{}{unit}", left / millis));
            left %= millis;
        }
    }
    match text.as_str() {
        "" => "0".to_owned(),
        _ => text,
    }
}

/// A size as [`parse_size`] reads it.
pub fn format_size(bytes: u64) -> String {
    let whole = SIZES
        .iter()
        .filter(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor))
        .max_by_key(|(_, factor)| factor);
    match whole {
        Some((unit, factor)) if *factor > 1 => format!("{}{unit}", bytes / factor),
        _ => bytes.to_string(),
    }
}

/// Parses a size in bytes: `4MiB`, `1GiB`, `64KiB`, `500MB`, `4096`.
///
/// # Errors
/// `Invalid`, with the forms that would do.
pub fn parse_size(text: &str) -> Result<u64> {
    let parse = || {
        let (number, unit) = split(text, |c| c.is_ascii_digit())?;
        let (_, factor) = SIZES.iter().find(|(name, _)| *name == unit)?;
        number.parse::<u64>().ok()?.checked_mul(*factor)
    };
    parse().ok_or_else(|| {
        Error::invalid(format!(
            "{text:?} is no size: say 4MiB, 64KiB, 1GiB, 500MB or 4096"
        ))
    })
}

/// The longest non-empty start of `text` that is made of such characters, and the rest.
fn split(text: &str, is: impl Fn(char) -> bool) -> Option<(&str, &str)> {
    let end = text.find(|c| !is(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_sums_of_numbers_with_units() {
        for (text, millis) in [
            ("0", 0),
            ("10s", 10_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
            ("1y", 31_536_000_000),
        ] {
            assert_eq!(
                parse_duration(text).unwrap(),
                Duration::from_millis(millis),
                "{text}"
            );
        }
        for wrong in [
            "",
            "10",
            "s",
            "1x",
            "-1s",
            "1s2",
            "99999999999999999999s",
            "9999999999999y",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            parse_duration("soon").unwrap_err().to_string(),
            "\"soon\" is no duration: say 10s, 500ms, 1h30m, 7d, 1y or 0"
        );
    }

    #[test]
    fn retention_is_windows_or_how_long_every_commit_stays() {
        let days = |days: u64| Some(Duration::from_secs(days * 86400));
        let parsed = |text| parse_retention(text).unwrap();
        assert_eq!(parsed("7d"), Retention::WEEK);
        assert_eq!(parsed("all=7d"), Retention::WEEK);
        let all = Retention {
            all: days(1),
            hourly: days(30),
            daily: days(365),
        };
        assert_eq!(parsed("daily=1y,all=24h,hourly=30d"), all);
        assert_eq!(parsed("24h,hourly=30d,daily=1y"), all);
        for (wrong, says) in [
            (
                "",
                "\"\" is no duration: say 10s, 500ms, 1h30m, 7d, 1y or 0",
            ),
            ("all=0", "\"0\" must be longer than 0"),
            ("7d,all=1d", "\"7d,all=1d\" says all twice"),
            (
                "weekly=1y",
                "\"weekly\" is no window of retention: say all=7d,hourly=30d,daily=1y, or one of \
                 them, or 7d",
            ),
        ] {
            assert_eq!(parse_retention(wrong).unwrap_err().to_string(), says);
        }
    }

    #[test]
    fn durations_and_sizes_are_printed_as_they_are_read() {
        for (text, shown) in [
            ("0", "0"),
            ("0s", "0"),
            ("90m", "1h30m"),
            ("4w2d", "30d"),
            ("365d", "1y"),
            ("1500ms", "1s500ms"),
        ] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(format_duration(duration), shown);
            assert_eq!(parse_duration(shown).unwrap(), duration);
        }
        for (text, shown) in [
            ("0", "0"),
            ("1025", "1025"),
            ("4096", "4KiB"),
            ("1024MiB", "1GiB"),
            ("500MB", "500MB"),
            ("1000000", "1MB"),
        ] {
            let bytes = parse_size(text).unwrap();
            assert_eq!(format_size(bytes), shown);
            assert_eq!(parse_size(shown).unwrap(), bytes);
        }
    }

    #[test]
    fn sizes_are_numbers_with_a_unit() {
        for (text, bytes) in [
            ("4096", 4096),
            ("4MiB", 4 << 20),
            ("500MB", 500_000_000),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for wrong in ["", "MiB", "4M", "4 MiB", "-4", "99999999TiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
