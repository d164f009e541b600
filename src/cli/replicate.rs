//! `sqlrepl replicate`

use crate::cli::args::Replicate;
use crate::cli::config::Config;
use crate::cli::{environment, stop_signal};
use sqlrepl::config::file::replica_name;
use sqlrepl::config::settings::{DatabaseSettings, ReplicaSettings};
use sqlrepl::config::{CaptureSettings, default_meta_path};
use sqlrepl::daemon::{self, Replicated};
use sqlrepl::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) async fn run(args: Replicate, config: &Config) -> Result<()> {
    // First of all: whoever starts us may end us at any time.
    let stop = stop_signal()?;
    let replicated = Replicated {
        max_spool_size: args.max_spool_size,
        take_over: args.take_over,
        databases: vec![database(args, config)?],
        host: host(),
    };
    daemon::run(replicated, environment(), stop).await
}

/// The database of the command line.
fn database(args: Replicate, config: &Config) -> Result<DatabaseSettings> {
    let database = full_path(&args.database)?;
    let mut replicas: Vec<ReplicaSettings> = Vec::new();
    for place in &args.replicas {
        let location = config.location(place)?;
        if replicas.iter().any(|other| other.location == location) {
            return Err(Error::invalid(format!("{place} is given twice")));
        }
        replicas.push(ReplicaSettings {
            name: replica_name(place),
            location,
            sync_interval: args.sync_interval,
            retention: None,
            retention_check_interval: Duration::from_secs(60 * 60),
            snapshot_interval: Duration::from_secs(24 * 60 * 60),
            validation_interval: None,
        });
    }
    let name = database.file_stem().unwrap_or_default();
    let meta_path = args
        .meta_path
        .unwrap_or_else(|| default_meta_path(&database));
    Ok(DatabaseSettings {
        name: name.to_string_lossy().into_owned(),
        capture: CaptureSettings {
            database,
            meta_path,
            wal_size: args.wal_size,
            writer_lock: !args.no_writer_lock,
            monitor_interval: args.monitor_interval,
        },
        replicas,
    })
}

/// The absolute path of a database that may not be there yet. Its directory must be.
pub(crate) fn full_path(database: &Path) -> Result<PathBuf> {
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

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
