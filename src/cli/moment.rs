//! The moment that a command is about: how it is asked for, and the replica that has it.

use crate::cli::args::Words;
use crate::cli::target::{Candidate, first, is_url};
use sqlrepl::config::location::Location;
use sqlrepl::error::{Error, Result};
use sqlrepl::format::ids::{GenerationId, RestorePoint, Timestamp};
use sqlrepl::format::moment::Moment;
use sqlrepl::materialize::pages::Database;
use sqlrepl::materialize::replica::Replica;
use std::cell::Cell;
use std::sync::Arc;

/// What stands behind the last `@` of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct At {
    /// As the user wrote it.
    pub(crate) words: String,
    /// What it means.
    pub(crate) moment: Moment,
}

/// A target as `PLACE@MOMENT`; None if its `@`, if there is one, can only be the place's own. Looks
/// at nothing but the text.
///
/// In a URL the moment stands behind all of it, or behind the prefix: `s3://b/p?region=r@1c` and
/// `s3://b/p@1c?region=r` are the same. Seconds since 1970 may keep their `@`: `app@@1704067200`.
pub(crate) fn split(text: &str) -> Option<(String, &str)> {
    if !is_url(text) {
        return cut(text).map(|(place, moment)| (place.to_owned(), moment));
    }
    let (place, query) = text.split_once('?').unwrap_or((text, ""));
    let (place, moment) = match cut(query) {
        Some((keys, moment)) => (format!("{place}?{keys}"), moment),
        None => {
            let (place, moment) = cut(place)?;
            let mark = if query.is_empty() { "" } else { "?" };
            (format!("{place}{mark}{query}"), moment)
        }
    };
    // A secret that stands where none belongs has an `@` behind it. It must not be taken apart: who
    // reads all of it knows not to show it.
    Location::parse(&place).is_ok().then_some((place, moment))
}

/// What stands before and behind the last `@`. No moment has a `/`.
fn cut(text: &str) -> Option<(&str, &str)> {
    let (place, moment) = text.rsplit_once('@')?;
    let is_number = moment.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let (place, moment) = match place.strip_suffix('@') {
        Some(before) if is_number => (before, &text[before.len() + 1..]),
        _ => (place, moment),
    };
    let is_split = !place.is_empty() && !moment.is_empty() && !moment.contains('/');
    is_split.then_some((place, moment))
}

/// The moment that is asked for in one of three ways, if one is.
///
/// # Errors
/// `Invalid`, also if it is asked for twice.
pub(crate) fn asked(at: Option<&At>, words: &Words) -> Result<Option<Moment>> {
    let now = crate::cli::clock()();
    let moment = match (at, words.timestamp.as_deref(), words.txid.as_deref()) {
        (Some(at), Some(_), _) => return Err(twice(at, "--timestamp")),
        (Some(at), None, Some(_)) => return Err(twice(at, "--txid")),
        (Some(at), None, None) => at.moment,
        (None, _, Some(txid)) => Moment::parse_txid(txid)?,
        (None, Some(time), None) => Moment::parse_time(time, now)?,
        (None, None, None) => return Ok(None),
    };
    Ok(Some(moment))
}

/// A moment that is said twice.
pub(crate) fn twice(at: &At, option: &str) -> Error {
    let words = &at.words;
    Error::invalid(format!(
        "@{words} and {option} both say which moment: leave out one of them"
    ))
}

/// A moment, opened.
pub(crate) struct Opened {
    pub(crate) database: Arc<Database>,
    pub(crate) point: RestorePoint,
    /// How messages name the replica that has it.
    pub(crate) from: String,
}

/// Opens a moment of the first replica that has it; the newest moment of the one that goes
/// furthest. `holds_something` becomes true if any of them holds any moment.
///
/// # Errors
/// As [`first`].
pub(crate) async fn open(
    candidates: &[Candidate],
    moment: Moment,
    generation: Option<GenerationId>,
    cache_bytes: u64,
    holds_something: &Cell<bool>,
) -> Result<Opened> {
    let look = async |replica: &Arc<Replica>| {
        let located = replica.locate(moment, generation).await;
        // All of it was read then.
        let holds = located.is_err() && replica.newest().is_some();
        holds_something.set(holds_something.get() || located.is_ok() || holds);
        located
    };
    let has_others = candidates.len() > 1;
    let open = async |replica: &Arc<Replica>, candidate: &Candidate, point: RestorePoint| {
        let database = replica.open(&point).await?;
        let last = async || replica.locate(Moment::Latest, generation).await;
        let end = end(moment, &point, has_others, last).await?;
        let opened = Opened {
            database,
            point,
            from: candidate.name.clone(),
        };
        Ok((opened, end))
    };
    first(candidates, cache_bytes, look, open).await
}

/// The end of the replica that has this point for a moment, if the moment may lie behind it.
///
/// # Errors
/// Those of `last`.
pub(crate) async fn end(
    moment: Moment,
    point: &RestorePoint,
    has_others: bool,
    last: impl AsyncFnOnce() -> Result<RestorePoint>,
) -> Result<Option<Timestamp>> {
    match moment {
        Moment::Latest => Ok(Some(point.time)),
        Moment::At(time) if has_others => {
            let last = last().await?;
            Ok((time > last.time).then_some(last.time))
        }
        Moment::At(_) | Moment::Txid(..) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, place: &str, moment: &str) {
        let expected = (!moment.is_empty()).then(|| (place.to_owned(), moment));
        assert_eq!(split(text), expected, "{text}");
    }

    #[test]
    fn what_stands_behind_the_last_at_is_the_moment() {
        check(
            "app@2026-11-20T17:45:12.345678Z",
            "app",
            "2026-11-20T17:45:12.345678Z",
        );
        check("app@5m-ago", "app", "5m-ago");
        check("app@home", "app", "home");
        check("/backup/app@1c", "/backup/app", "1c");
        check("./app.db@2026-11-20 17:45", "./app.db", "2026-11-20 17:45");
        check("/backup@home/app@now", "/backup@home/app", "now");
        check("backup@home@now", "backup@home", "now");
        check("app@17:45", "app", "17:45");
    }

    #[test]
    fn an_at_of_the_place_itself_is_none() {
        for place in [
            "app",
            "",
            "@",
            "app@",
            "@now",
            "/backup@home/app",
            "/backup@home/",
            "s3://bucket/app",
            "s3://bucket/team@home/app",
            "s3://bucket/app@home/",
            "s3:bucket@now",
        ] {
            check(place, "", "");
        }
    }

    #[test]
    fn seconds_since_1970_may_keep_their_own_at() {
        check("app@1704067200", "app", "1704067200");
        check("app@@1704067200", "app", "@1704067200");
        check("app@@1704067200.5", "app", "@1704067200.5");
        check(
            "s3://bucket/app@@1704067200",
            "s3://bucket/app",
            "@1704067200",
        );
        check("backups@@now", "backups@", "now");
        check("@@1704067200", "", "");
    }

    #[test]
    fn in_a_url_it_stands_at_the_end_or_behind_the_prefix() {
        check("s3://bucket@now", "s3://bucket", "now");
        check("s3://bucket/app@now", "s3://bucket/app", "now");
        check("S3://bucket/app@now", "S3://bucket/app", "now");
        check("s3://bucket/a@b@1c", "s3://bucket/a@b", "1c");
        let (place, endpoint) = ("s3://bucket/app", "endpoint=http://host:9000/below");
        let expected = format!("{place}?{endpoint}");
        check(&format!("{place}?{endpoint}@5m-ago"), &expected, "5m-ago");
        check(&format!("{place}@5m-ago?{endpoint}"), &expected, "5m-ago");
        check("s3://bucket/app@now?", "s3://bucket/app", "now");
    }

    #[test]
    fn a_url_with_a_secret_in_it_is_not_taken_apart() {
        for place in [
            "s3://AKIAID:secret@beef",
            "s3://AKIAID:se/cret@beef",
            "s3://AKIAID:secret@bucket/app",
            "s3://bucket/app?endpoint=http://user:secret@beef",
            "s3://bucket/app?secret-access-key=sec@ret",
            "http://user:secret@beef",
        ] {
            check(place, "", "");
        }
    }

    #[test]
    fn a_moment_is_asked_for_once() {
        let at = At {
            words: "1c".to_owned(),
            moment: Moment::parse_txid("1c").unwrap(),
        };
        let words = |timestamp: Option<&str>, txid: Option<&str>| Words {
            timestamp: timestamp.map(str::to_owned),
            txid: txid.map(str::to_owned),
        };
        let nothing = words(None, None);
        assert_eq!(asked(None, &nothing).unwrap(), None);
        assert_eq!(asked(Some(&at), &nothing).unwrap(), Some(at.moment));
        let txid = words(None, Some("1c"));
        assert_eq!(asked(None, &txid).unwrap(), Some(at.moment));
        let latest = words(Some("latest"), None);
        assert_eq!(asked(None, &latest).unwrap(), Some(Moment::Latest));
        for (words, says) in [
            (
                latest,
                "@1c and --timestamp both say which moment: leave out one of them",
            ),
            (
                txid,
                "@1c and --txid both say which moment: leave out one of them",
            ),
        ] {
            let said = asked(Some(&at), &words).unwrap_err();
            assert_eq!(said.to_string(), says);
        }
    }
}
