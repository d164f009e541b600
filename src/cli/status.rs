//! `sqlrepl status`: how the databases get on, as the daemons that replicate them say.

use crate::cli::args::Status;
use crate::cli::config::Config;
use crate::cli::replicate::full_path;
use crate::cli::say;
use crate::cli::table::{self, Align, Column};
use crate::cli::target::named;
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlrepl::config::default_meta_path;
use sqlrepl::daemon::control;
use sqlrepl::daemon::status::{DatabaseState, DatabaseStatus, ReplicaState, ReplicaStatus};
use sqlrepl::error::{Error, Result};
use std::path::Path;

pub(crate) async fn run(args: Status, config: &Config) -> Result<()> {
    let asked = match &args.database {
        Some(database) => vec![one(database, args.meta_path.as_deref(), config)?],
        None => {
            let databases = &config.settings()?.databases;
            databases.iter().map(DatabaseStatus::of_settings).collect()
        }
    };
    let found = ask(asked).await;
    if args.json {
        say(&json!(found).to_string())?;
    } else {
        let rows: Vec<_> = found.iter().flat_map(rows).collect();
        table::print(&COLUMNS, &rows, false)?;
    }
    verdict(&found)
}

/// The database that the user named, before anybody was asked.
fn one(database: &Path, meta_path: Option<&Path>, config: &Config) -> Result<DatabaseStatus> {
    let text = database.to_string_lossy();
    let known = config.known().and_then(|known| named(known, &text));
    let mut asked = match known {
        Some(database) => DatabaseStatus::of_settings(database),
        None => {
            let path = full_path(database)?;
            let name = path.file_stem().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            let meta_path = default_meta_path(&path);
            DatabaseStatus::not_running(name, path, meta_path)
        }
    };
    if let Some(meta_path) = meta_path {
        asked.meta_path = meta_path.to_owned();
    }
    Ok(asked)
}

/// What is to be said of databases that, as far as is known, do not run. A process that replicates
/// several speaks for all of them, also for one that it could not open, whose spool has no socket.
async fn ask(asked: Vec<DatabaseStatus>) -> Vec<DatabaseStatus> {
    let answers = asked.iter().map(|it| control::status(&it.meta_path, false));
    let answers = join_all(answers).await;
    let speaks = |answer: &Result<_>| matches!(answer, Ok(Some(_)));
    let speaker = asked
        .iter()
        .zip(&answers)
        .find(|(_, answer)| speaks(answer));
    let others = match speaker {
        Some((speaker, _)) if !answers.iter().all(speaks) => {
            control::status(&speaker.meta_path, true).await
        }
        _ => Ok(None),
    };
    // A daemon that ended meanwhile has nothing to say of the others.
    let others = others.ok().flatten().unwrap_or_default();
    let found = asked.into_iter().zip(answers).map(|(asked, answer)| {
        let told = others.iter().find(|other| other.path == asked.path);
        match (answer, told) {
            (Ok(Some(mut found)), _) => found.pop().unwrap_or(asked),
            (_, Some(told)) => told.clone(),
            (Ok(None), None) => asked,
            (Err(e), None) => asked.unknown(e.to_string()),
        }
    });
    found.collect()
}

const COLUMNS: [Column; 8] = [
    ("DATABASE", Align::Left),
    ("REPLICA", Align::Left),
    ("STATE", Align::Left),
    ("NEWEST", Align::Left),
    ("LAG", Align::Right),
    ("WAITING", Align::Right),
    ("SPOOL", Align::Right),
    ("TROUBLE", Align::Left),
];

/// A row for each replica, one for a database without any.
fn rows(database: &DatabaseStatus) -> Vec<Vec<Value>> {
    let row = |replica: Option<&ReplicaStatus>| {
        let complaint = replica.and_then(ReplicaStatus::complaint);
        vec![
            json!(database.name),
            json!(replica.map(|replica| &replica.name)),
            json!(state(database, replica)),
            json!(replica.and_then(|replica| replica.time.as_ref())),
            json!(replica.and_then(|replica| replica.lag_seconds).map(seconds)),
            json!(replica.and_then(|replica| replica.waiting_commits)),
            json!(database.spool_bytes),
            json!(database.trouble.as_deref().or(complaint)),
        ]
    };
    match database.replicas.as_slice() {
        [] => vec![row(None)],
        replicas => replicas.iter().map(|replica| row(Some(replica))).collect(),
    }
}

/// How it is, in a word or two: what keeps the database keeps its replicas.
fn state(database: &DatabaseStatus, replica: Option<&ReplicaStatus>) -> &'static str {
    match (database.state, replica.map(|replica| replica.state)) {
        (DatabaseState::NotRunning, _) => "not running",
        (DatabaseState::Unknown, _) | (_, Some(ReplicaState::Unknown)) => "unknown",
        (DatabaseState::Failed, _) => "failed",
        (DatabaseState::Waiting, _) => "waiting to be tried again",
        (DatabaseState::Interrupted, _) => "not captured",
        (DatabaseState::Starting, _) | (_, Some(ReplicaState::Starting)) => "starting",
        (DatabaseState::Capturing, None) => "capturing",
        (DatabaseState::Capturing, Some(ReplicaState::Replicating)) => "replicating",
        (DatabaseState::Capturing, Some(ReplicaState::Retrying)) => "retrying",
        (DatabaseState::Capturing, Some(ReplicaState::Superseded)) => "superseded",
        (DatabaseState::Capturing, Some(ReplicaState::Failed)) => "failed",
        (DatabaseState::Capturing, Some(ReplicaState::NotRunning)) => "not running",
    }
}

/// A time span as people read it.
fn seconds(lag: f64) -> String {
    match lag {
        lag if lag < 10.0 => format!("{lag:.1}s"),
        lag if lag < 120.0 => format!("{lag:.0}s"),
        lag if lag < 7200.0 => format!("{:.0}m", lag / 60.0),
        lag => format!("{:.0}h", lag / 3600.0),
    }
}

/// Whether all runs without trouble, for the exit code.
fn verdict(found: &[DatabaseStatus]) -> Result<()> {
    let unwell = found.iter().filter(|database| !database.is_well());
    let names: Vec<&str> = unwell.map(|database| &*database.name).collect();
    match (names.len(), found.len()) {
        (0, _) => Ok(()),
        (1, 1) => Err(Error::unavailable(format!("{} is not well", names[0]))),
        (unwell, all) => Err(Error::unavailable(format!(
            "{unwell} of {all} databases are not well: {}",
            names.join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_is_as_exact_as_people_need_it() {
        for (lag, shown) in [
            (0.0, "0.0s"),
            (1.26, "1.3s"),
            (59.7, "60s"),
            (150.0, "2m"),
            (7300.0, "2h"),
        ] {
            assert_eq!(seconds(lag), shown);
        }
    }

    #[test]
    fn the_verdict_names_who_is_not_well() {
        let database = |name: &str, state| {
            let path = std::path::PathBuf::from(name);
            let database = DatabaseStatus::not_running(name.into(), path.clone(), path);
            DatabaseStatus { state, ..database }
        };
        let well = database("app", DatabaseState::Capturing);
        verdict(std::slice::from_ref(&well)).unwrap();
        let down = database("shop", DatabaseState::NotRunning);
        let said = |found: &[DatabaseStatus]| verdict(found).unwrap_err().to_string();
        assert_eq!(said(std::slice::from_ref(&down)), "shop is not well");
        assert_eq!(said(&[well, down]), "1 of 2 databases are not well: shop");
    }
}
