//! A table of the config file: typed access to its values, with errors that name file and line.

use crate::config::file::expand::{Lookup, expand};
use crate::config::nearest::nearest;
use crate::config::{parse_duration, parse_period, parse_size};
use crate::error::{Error, Result};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A kind of table, and the keys that it knows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Its heading; empty for what stands before all headings.
    pub(crate) heading: &'static str,
    /// Its keys.
    pub(crate) keys: &'static [&'static str],
}

/// What stands before all headings.
pub(crate) const TOP: Kind = Kind {
    heading: "",
    keys: &[
        "access-key-id",
        "secret-access-key",
        "addr",
        "max-spool-size",
        "log",
        "db",
    ],
};

/// What is logged, and how.
pub(crate) const LOG: Kind = Kind {
    heading: "[log]",
    keys: &["level", "format", "target"],
};

/// A database.
pub(crate) const DB: Kind = Kind {
    heading: "[[db]]",
    keys: &[
        "path",
        "name",
        "monitor-interval",
        "wal-size",
        "writer-lock",
        "meta-path",
        "replica",
    ],
};

/// A replica of the database before it.
pub(crate) const REPLICA: Kind = Kind {
    heading: "[[db.replica]]",
    keys: &[
        "name",
        "type",
        "url",
        "path",
        "bucket",
        "region",
        "endpoint",
        "force-path-style",
        "checksums",
        "access-key-id",
        "secret-access-key",
        "sync-interval",
        "retention",
        "retention-check-interval",
        "snapshot-interval",
        "merged-grace",
        "validation-interval",
    ],
};

/// How long which restore points of a replica are kept.
pub(crate) const RETENTION: Kind = Kind {
    heading: "retention",
    keys: &["all", "hourly", "daily"],
};

/// All tables.
pub(crate) const KINDS: [&Kind; 5] = [&TOP, &LOG, &DB, &REPLICA, &RETENTION];

/// The file that is read.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// How messages name it.
    pub(crate) file: &'a Path,
    /// What it holds.
    pub(crate) text: &'a str,
    /// The environment.
    pub(crate) environment: Lookup<'a>,
}

impl Source<'_> {
    /// An error at a place in the file.
    pub(crate) fn wrong(&self, at: usize, sentence: impl std::fmt::Display) -> Error {
        Error::invalid(sentence.to_string()).context(self.line(at))
    }

    /// File and line of a place.
    pub(crate) fn line(&self, at: usize) -> String {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("{}:{line}", self.file.display())
    }
}

/// A value and where in the file it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct At<T> {
    /// The value.
    pub(crate) value: T,
    /// Bytes before it.
    pub(crate) at: usize,
}

/// A table whose keys are all known.
pub(crate) struct Table<'a> {
    /// The file.
    pub(crate) source: Source<'a>,
    /// Where its heading stands.
    pub(crate) at: usize,
    kind: &'static Kind,
    entries: &'a DeTable<'a>,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl<'a> Table<'a> {
    /// A table of this kind.
    ///
    /// # Errors
    /// `Invalid` for the first key that it does not know.
    pub(crate) fn new(
        source: Source<'a>,
        kind: &'static Kind,
        entries: &'a DeTable<'a>,
        span: Range<usize>,
    ) -> Result<Self> {
        let unknown = entries
            .keys()
            .filter(|key| !kind.keys.contains(&key.get_ref().as_ref()))
            .min_by_key(|key| key.span().start);
        match unknown {
            Some(key) => Err(source.wrong(key.span().start, unknown_key(kind, key.get_ref()))),
            None => Ok(Self {
                source,
                at: span.start,
                kind,
                entries,
            }),
        }
    }

    /// Text, with the environment's values in it.
    ///
    /// # Errors
    /// `Invalid`.
    pub(crate) fn text(&self, key: &str) -> Result<Option<At<String>>> {
        let Some(found) = self.get(key) else {
            return Ok(None);
        };
        let at = found.span().start;
        let text = found
            .get_ref()
            .as_str()
            .ok_or_else(|| self.mistyped(key, found, "text in quotes"))?;
        let value = expand(text, self.source.environment)
            .map_err(|e| e.context(format!("{}: {key}", self.source.line(at))))?;
        Ok(Some(At { value, at }))
    }

    /// Text that means something.
    ///
    /// # Errors
    /// `Invalid`, also from `parse`.
    pub(crate) fn parsed<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T>,
    ) -> Result<Option<At<T>>> {
        let Some(At { value, at }) = self.text(key)? else {
            return Ok(None);
        };
        let value =
            parse(&value).map_err(|e| e.context(format!("{}: {key}", self.source.line(at))))?;
        Ok(Some(At { value, at }))
    }

    /// A span of time that is not zero.
    ///
    /// # Errors
    /// `Invalid`.
    pub(crate) fn period(&self, key: &str) -> Result<Option<Duration>> {
        Ok(self.parsed(key, parse_period)?.map(|found| found.value))
    }

    /// A span of time; 0 needs no quotes.
    ///
    /// # Errors
    /// `Invalid`.
    pub(crate) fn duration(&self, key: &str) -> Result<Option<Duration>> {
        match self.get(key).map(Spanned::get_ref) {
            Some(DeValue::Integer(number)) if number.as_str() == "0" => Ok(Some(Duration::ZERO)),
            Some(DeValue::Integer(_)) => {
                let found = self.get(key).expect("it was just there");
                Err(self.mistyped(key, found, "a duration in quotes, such as \"10s\""))
            }
            _ => Ok(self.parsed(key, parse_duration)?.map(|found| found.value)),
        }
    }

    /// A number of bytes: a size in quotes, or a plain number.
    ///
    /// # Errors
    /// `Invalid`.
    pub(crate) fn size(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            Some(found) if found.get_ref().is_integer() => {
                let number = found.get_ref().as_integer().map(ToString::to_string);
                let bytes = parse_size(&number.unwrap_or_default());
                let bytes = bytes.map_err(|e| {
                    e.context(format!("{}: {key}", self.source.line(found.span().start)))
                })?;
                Ok(Some(bytes))
            }
            _ => Ok(self.parsed(key, parse_size)?.map(|found| found.value)),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// `Invalid`.
    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>> {
        let Some(found) = self.get(key) else {
            return Ok(None);
        };
        match found.get_ref().as_bool() {
            Some(value) => Ok(Some(value)),
            None => Err(self.mistyped(key, found, "true or false, without quotes")),
        }
    }

    /// The table under a key.
    ///
    /// # Errors
    /// `Invalid`.
    pub(crate) fn table(&self, key: &str, kind: &'static Kind) -> Result<Option<Table<'a>>> {
        let Some(found) = self.get(key) else {
            return Ok(None);
        };
        match found.get_ref().as_table() {
            Some(table) => Table::new(self.source, kind, table, found.span()).map(Some),
            None => Err(self.mistyped(key, found, &format!("a table {}", kind.heading))),
        }
    }

    /// The tables under a key, in the order of the file.
    ///
    /// # Errors
    /// `Invalid`.
    pub(crate) fn tables(&self, key: &str, kind: &'static Kind) -> Result<Vec<Table<'a>>> {
        let Some(found) = self.get(key) else {
            return Ok(Vec::new());
        };
        let expected = format!("tables, each with the heading {}", kind.heading);
        let wrong = |found: &Value<'_>| self.mistyped(key, found, &expected);
        let array = found.get_ref().as_array().ok_or_else(|| wrong(found))?;
        let each = array.iter().map(|value| {
            let table = value.get_ref().as_table().ok_or_else(|| wrong(value))?;
            Table::new(self.source, kind, table, value.span())
        });
        each.collect()
    }

    /// Whether a key is there, and where.
    pub(crate) fn place(&self, key: &str) -> Option<usize> {
        self.get(key).map(|value| value.span().start)
    }

    /// Whether the value under a key is a table.
    pub(crate) fn is_table(&self, key: &str) -> bool {
        self.get(key)
            .is_some_and(|value| value.get_ref().is_table())
    }

    fn get(&self, key: &str) -> Option<&'a Value<'a>> {
        debug_assert!(self.kind.keys.contains(&key), "{key} is read but not known");
        self.entries.get(key)
    }

    fn mistyped(&self, key: &str, found: &Value<'_>, expected: &str) -> Error {
        let seen = match found.get_ref() {
            DeValue::String(_) => "text",
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        let sentence = format!("{key} is {seen}, expected {expected}");
        self.source.wrong(found.span().start, sentence)
    }
}

/// What to say of a key that a table does not know: the table that does, or the nearest key.
fn unknown_key(kind: &Kind, key: &str) -> String {
    let table = match kind.heading {
        "" => "the part before all [tables]",
        heading => heading,
    };
    let homes: Vec<&str> = KINDS
        .iter()
        .filter(|other| other.keys.contains(&key))
        .map(|other| match other.heading {
            "" => "the part before all [tables]",
            heading => heading,
        })
        .collect();
    let hint = match homes.as_slice() {
        [] => nearest(key, kind.keys),
        homes => format!("it belongs into {}", homes.join(" or ")),
    };
    format!("{table} has no key {key:?}; {hint}")
}
