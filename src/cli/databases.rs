//! `sqlrepl databases`: each replica of the config file, and how far it is.

use crate::cli::args::Databases;
use crate::cli::clock;
use crate::cli::config::Config;
use crate::cli::table::{self, Align, Column};
use crate::cli::target::open;
use futures_util::future::join_all;
use futures_util::stream::{StreamExt, iter};
use serde_json::{Value, json};
use sqlrepl::config::settings::{DatabaseSettings, ReplicaSettings};
use sqlrepl::daemon::control;
use sqlrepl::daemon::status::ReplicaStatus;
use sqlrepl::error::{Error, ErrorKind, Result};
use sqlrepl::format::ids::Timestamp;
use std::time::Duration;
use tokio::time::timeout;

/// Databases that are looked at together.
const AT_ONCE: usize = 16;

/// How long one replica may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

const COLUMNS: [Column; 8] = [
    ("DATABASE", Align::Left),
    ("PATH", Align::Left),
    ("REPLICA", Align::Left),
    ("LOCATION", Align::Left),
    ("NEWEST", Align::Left),
    ("AGE", Align::Right),
    ("LAG", Align::Right),
    ("FENCING", Align::Left),
];

pub(crate) async fn run(args: &Databases, config: &Config) -> Result<()> {
    let databases = config.settings()?.databases.iter();
    let looked: Vec<Vec<(Vec<Value>, Option<Error>)>> = iter(databases)
        .map(|database| rows(database, args.json))
        .buffered(AT_ONCE)
        .collect()
        .await;
    let (rows, failures): (Vec<_>, Vec<_>) = looked.into_iter().flatten().unzip();
    table::print(&COLUMNS, &rows, args.json)?;
    let mut failures: Vec<Error> = failures.into_iter().flatten().collect();
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    for failure in failures {
        tracing::error!("{failure}");
    }
    Err(last)
}

/// A row for each replica of a database, and what kept it from being looked at.
async fn rows(database: &DatabaseSettings, is_json: bool) -> Vec<(Vec<Value>, Option<Error>)> {
    // Whatever keeps the daemon from answering, the replicas can be looked at.
    let running = control::status(&database.capture.meta_path, false).await;
    let running = running.ok().flatten().and_then(|mut all| all.pop());
    let statuses = running.map(|status| status.replicas).unwrap_or_default();
    let looked = join_all(database.replicas.iter().map(|it| newest(database, it))).await;
    let row_of = |(replica, looked): (&ReplicaSettings, Result<_>)| {
        let (newest, failure) = match looked {
            Ok(newest) => (newest, None),
            Err(e) => (None, Some(e)),
        };
        // A daemon that was started without the config file calls it by its place.
        let location = replica.location.to_string();
        let status = statuses
            .iter()
            .find(|status| status.name == replica.name || status.location == location);
        let row = row(database, replica, newest, status, clock()(), is_json);
        (row, failure)
    };
    database.replicas.iter().zip(looked).map(row_of).collect()
}

/// The newest restore point; None if there is nothing yet.
async fn newest(
    database: &DatabaseSettings,
    replica: &ReplicaSettings,
) -> Result<Option<Timestamp>> {
    let looked = timeout(PATIENCE, open(&replica.location)).await;
    match looked {
        Ok(Ok(opened)) => Ok(opened.newest().map(|point| point.time)),
        Ok(Err(e)) if e.kind() == ErrorKind::NotFound => Ok(None),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(Error::unavailable(format!(
            "{}: no answer within {} s; `sqlrepl points {} --replica {}` waits longer",
            replica.location,
            PATIENCE.as_secs(),
            database.name,
            replica.name
        ))),
    }
}

/// Durations are seconds in JSON and words in a table.
fn row(
    database: &DatabaseSettings,
    replica: &ReplicaSettings,
    newest: Option<Timestamp>,
    status: Option<&ReplicaStatus>,
    now: Timestamp,
    is_json: bool,
) -> Vec<Value> {
    let span = |seconds: f64| match is_json {
        true => json!(seconds),
        false => json!(words(seconds)),
    };
    // A clock that was set back makes nothing younger than now.
    let age = newest.map(|time| (now.micros() - time.micros()).max(0) as f64 / 1e6);
    vec![
        json!(database.name),
        json!(database.capture.database),
        json!(replica.name),
        json!(replica.location.to_string()),
        json!(newest.map(|time| time.to_string())),
        json!(age.map(span)),
        json!(status.and_then(|status| status.lag_seconds).map(span)),
        json!(status.and_then(|status| status.fencing.as_deref())),
    ]
}

/// The two greatest units of a span of time.
fn words(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{seconds:.1}s");
    }
    let units = [("d", 86400), ("h", 3600), ("m", 60), ("s", 1)];
    let mut left = seconds as u64;
    let mut words = Vec::new();
    for (unit, length) in units {
        if left >= length && words.len() < 2 {
            words.push(format!("{}{unit}", left / length));
        }
        left %= length;
    }
    words.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_shows_its_two_greatest_units() {
        for (seconds, shown) in [
            (0.0, "0.0s"),
            (1.26, "1.3s"),
            (59.9, "59s"),
            (61.0, "1m1s"),
            (3600.0, "1h"),
            (90_061.0, "1d1h"),
        ] {
            assert_eq!(words(seconds), shown);
        }
    }
}
