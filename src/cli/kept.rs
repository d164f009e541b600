//! The replicas that `compact`, `retain` and `du` are about: what of each is kept, and who writes
//! it.

use crate::cli::args::Kept;
use crate::cli::config::Config;
use crate::cli::target::{self, Target};
use crate::cli::{environment, say, stop_signal};
use serde_json::Value;
use sqlrepl::config::file::{SNAPSHOT_INTERVAL, SYNC_INTERVAL};
use sqlrepl::config::location::Location;
use sqlrepl::config::settings::{DatabaseSettings, ReplicaSettings, Retention, Settings};
use sqlrepl::daemon::control;
use sqlrepl::error::{Error, Result};
use sqlrepl::format::ids::WriterId;
use sqlrepl::maintain::keeper::asked::Refused;
use sqlrepl::maintain::keeper::{KeepSettings, Keeper};
use sqlrepl::maintain::workshop::Workshop;
use std::time::Duration;
use tempfile::TempDir;

/// A replica, and what is known of it.
pub(crate) struct Replica<'a> {
    /// How messages name it.
    pub(crate) name: String,
    /// Where it lies.
    pub(crate) location: Location,
    /// What of it is kept, if anybody said.
    pub(crate) retention: Option<Retention>,
    /// How long the first commit that is not sent waits for company.
    pub(crate) sync_interval: Duration,
    /// Whose it is, by the config file.
    database: Option<&'a DatabaseSettings>,
}

/// The replicas of a target. One that the config file has is kept as the file says, also where the
/// command names it by its place. `why` says why the command takes no moment.
///
/// # Errors
/// As [`Target::find_whole`] and [`Target::candidates`].
pub(crate) async fn replicas<'a>(
    args: &Kept,
    config: &'a Config,
    why: &str,
) -> Result<Vec<Replica<'a>>> {
    let target = Target::find_whole(&args.target, config, why).await?;
    let candidates = target.candidates(args.replica.as_deref())?;
    let replicas = candidates.into_iter().map(|candidate| {
        let known = config.known();
        let known = known.and_then(|settings| known_as(settings, &candidate.location));
        let says = known.map(|(_, replica)| replica.retention);
        let sync_interval = known.map(|(_, replica)| replica.sync_interval);
        Replica {
            name: candidate.name,
            location: candidate.location,
            retention: args.retention.or(says),
            sync_interval: sync_interval.unwrap_or(SYNC_INTERVAL),
            database: known.map(|(database, _)| database),
        }
    });
    Ok(replicas.collect())
}

/// What the config file says of the replica at a place.
fn known_as<'a>(
    settings: &'a Settings,
    location: &Location,
) -> Option<(&'a DatabaseSettings, &'a ReplicaSettings)> {
    settings.databases.iter().find_map(|database| {
        let mut replicas = database.replicas.iter();
        let replica = replicas.find(|replica| is_same_place(&replica.location, location))?;
        Some((database, replica))
    })
}

fn is_same_place(one: &Location, other: &Location) -> bool {
    match (one, other) {
        (Location::S3(one), Location::S3(other)) => {
            (&one.bucket, &one.prefix, &one.endpoint)
                == (&other.bucket, &other.prefix, &other.endpoint)
        }
        _ => one == other,
    }
}

/// Refuses what a daemon does by itself. `instead`: what can be done beside it.
///
/// # Errors
/// `Conflict` if one runs here; `Unavailable` if nobody can say.
pub(crate) async fn refuse_beside_daemon(replicas: &[Replica<'_>], instead: &str) -> Result<()> {
    for database in replicas.iter().filter_map(|replica| replica.database) {
        let asked = control::status(&database.capture.meta_path, false).await;
        if asked?.is_some() {
            let name = &database.name;
            return Err(Error::conflict(format!(
                "database {name} is replicated by a running daemon, which does this by itself; \
                 stop it first, or {instead}"
            )));
        }
    }
    Ok(())
}

/// A keeper of a replica, and the directory where its objects are made.
///
/// # Errors
/// `NotFound` if there is no such directory; `Invalid`, `Disk`.
pub(crate) async fn keeper(
    replica: &Replica<'_>,
    retention: Retention,
) -> Result<(Keeper, TempDir)> {
    let directory = tempfile::Builder::new().prefix("sqlrepl-").tempdir();
    let directory = directory
        .map_err(|e| Error::disk(format!("create {}", std::env::temp_dir().display()), e))?;
    let environment = environment();
    let workshop = Workshop {
        store: target::store(&replica.location).await?,
        directory: directory.path().to_owned(),
        writer: WriterId(environment.draw()?),
        environment,
        kept: None,
    };
    let settings = KeepSettings {
        retention,
        snapshot_interval: SNAPSHOT_INTERVAL,
        // Nobody has written for a day, or the user answers for it.
        merged_grace: Duration::ZERO,
        notes: None,
    };
    Ok((Keeper::new(workshop, settings)?, directory))
}

/// What is to be said of a replica.
pub(crate) struct Report {
    /// For people.
    pub(crate) text: String,
    /// For programs: an object.
    pub(crate) json: Value,
}

/// Does something with each replica, and says what came of it. A failure stops no other replica.
///
/// # Errors
/// The last failure; the ones before it are logged. `Unavailable` if a signal ends it.
pub(crate) async fn each(
    replicas: &[Replica<'_>],
    is_json: bool,
    act: impl AsyncFn(&Replica<'_>) -> Result<Report>,
) -> Result<()> {
    let stop = stop_signal()?;
    let work = async {
        let (mut shown, mut failures) = (Vec::new(), Vec::new());
        for replica in replicas {
            match act(replica).await {
                Ok(report) if is_json => shown.push(report.json),
                Ok(report) => say(&report.text)?,
                Err(e) => failures.push(e),
            }
        }
        if is_json {
            say(&Value::Array(shown).to_string())?;
        }
        let Some(last) = failures.pop() else {
            return Ok(());
        };
        for failure in failures {
            tracing::error!("{failure}");
        }
        Err(last)
    };
    tokio::select! {
        done = work => done,
        () = stop => Err(Error::unavailable("ended by a signal; what is done stays done")),
    }
}

/// Why nothing is deleted, of the replica of this name.
pub(crate) fn why(refused: &Refused, name: &str) -> String {
    match refused {
        Refused::Recent(age) => format!(
            "{name} was added to {}: nothing is deleted; --force deletes all the same",
            ago(*age)
        ),
        Refused::Clock(why) => format!("{name}: {why}"),
        Refused::Claim(claim) => format!("{name}: nothing is deleted: {claim} cannot be read"),
    }
}

fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        _ => (seconds / 3600, "hour"),
    };
    match count {
        1 => format!("1 {unit} ago"),
        _ => format!("{count} {unit}s ago"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_told_in_its_greatest_unit() {
        for (seconds, shown) in [
            (0, "0 seconds ago"),
            (59, "59 seconds ago"),
            (60, "1 minute ago"),
            (10_900, "3 hours ago"),
        ] {
            assert_eq!(ago(Duration::from_secs(seconds)), shown);
        }
    }

    #[test]
    fn one_place_is_one_replica_however_its_server_is_spoken_to() {
        let place = |text: &str| Location::parse(text).unwrap();
        let is_same = |one, other| is_same_place(&place(one), &place(other));
        assert!(is_same("/backup/app", "/backup/app/"));
        assert!(is_same(
            "s3://bucket/app?region=eu-central-1",
            "s3://bucket/app"
        ));
        assert!(!is_same(
            "s3://bucket/app?endpoint=http://one:9000",
            "s3://bucket/app"
        ));
        assert!(!is_same("/bucket/app", "s3://bucket/app"));
    }
}
