//! `sqlrepl replicate`

use crate::cli::args::{Replicate, ReplicateOptions};
use crate::cli::config::Config;
use crate::cli::{environment, notify, stop_signal};
use sqlrepl::config::file::{replica_name, unique};
use sqlrepl::config::location::asked_in_time;
use sqlrepl::config::settings::{DatabaseSettings, ReplicaSettings};
use sqlrepl::config::{CaptureSettings, default_meta_path};
use sqlrepl::daemon::{self, Replicated};
use sqlrepl::error::{Error, Result};
use std::path::{Path, PathBuf};

pub(crate) async fn run(args: Replicate, config: &Config) -> Result<()> {
    // First of all: whoever starts us may end us at any time.
    let stop = stop_signal()?;
    let (databases, max_spool_size) = match &args.database {
        Some(path) => {
            let replicas = places(&args.replicas, &args.options, config)?;
            let database = database(path, replicas, &args.options)?;
            unique::check(std::slice::from_ref(&database))?;
            (vec![database], args.options.max_spool_size)
        }
        None => {
            let settings = config.settings()?;
            if settings.databases.is_empty() {
                return Err(Error::invalid(
                    "the config file names no database to replicate: add a [[db]]",
                ));
            }
            (settings.databases.clone(), settings.max_spool_size)
        }
    };
    let replicated = Replicated {
        databases,
        max_spool_size,
        take_over: args.take_over,
        host: host(),
    };
    let status = match replicated.databases.as_slice() {
        [database] => format!("replicating {}", database.name),
        databases => format!("replicating {} databases", databases.len()),
    };
    let ready = || notify::ready(&status);
    daemon::run(replicated, environment(), ready, stop).await
}

/// The replicas of the command line.
fn places(
    places: &[String],
    options: &ReplicateOptions,
    config: &Config,
) -> Result<Vec<ReplicaSettings>> {
    let replica = |place: &String| {
        Ok(ReplicaSettings {
            name: replica_name(place),
            location: config.location(place)?,
            sync_interval: options.sync_interval,
            retention: options.retention,
            retention_check_interval: options.retention_check_interval,
            snapshot_interval: options.snapshot_interval,
            merged_grace: options.merged_grace,
            validation_interval: None,
        })
    };
    places.iter().map(replica).collect()
}

/// The database of the command line.
fn database(
    path: &Path,
    replicas: Vec<ReplicaSettings>,
    options: &ReplicateOptions,
) -> Result<DatabaseSettings> {
    let database = full_path(path)?;
    let name = database.file_stem().unwrap_or_default();
    let meta_path = options.meta_path.clone();
    Ok(DatabaseSettings {
        name: name.to_string_lossy().into_owned(),
        capture: CaptureSettings {
            meta_path: meta_path.unwrap_or_else(|| default_meta_path(&database)),
            wal_size: options.wal_size,
            writer_lock: !options.no_writer_lock,
            monitor_interval: options.monitor_interval,
            database,
        },
        replicas,
    })
}

/// The absolute path of a database that may not be there yet. Its directory must be, as far as its
/// file system answers.
pub(crate) fn full_path(database: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(database)
        .map_err(|e| Error::invalid(format!("{}: no path", database.display())).because(e))?;
    let asked = database.to_owned();
    asked_in_time(&absolute, move || find(&asked)).unwrap_or(Ok(absolute))
}

fn find(database: &Path) -> Result<PathBuf> {
    let wrong = |why: &str| Error::invalid(format!("{}: {why}", database.display()));
    let name = database
        .file_name()
        .ok_or_else(|| wrong("not the path of a database file"))?;
    if let Ok(path) = database.canonicalize() {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(wrong("not a file"))
        };
    }
    let directory = match database.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = directory
        .canonicalize()
        .map_err(|e| wrong("its directory does not exist").because(e))?;
    Ok(directory.join(name))
}

/// The machine, as claims name it.
pub(crate) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
