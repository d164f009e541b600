//! All that a config file decides: plain validated data.

use crate::config::CaptureSettings;
use crate::config::location::{Credentials, Location};
use std::path::PathBuf;
use std::time::Duration;

/// What is in force: the config file, or the command line in its place.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The file that it was read from, if there was one.
    pub file: Option<PathBuf>,
    /// What is logged, and how.
    pub log: LogSettings,
    /// The access key for places in buckets that have none of their own.
    pub credentials: Option<Credentials>,
    /// Where metrics are served: for later versions.
    pub addr: Option<String>,
    /// Bytes that all spools and held-back WALs together may take; None: a tenth of the free
    /// space, at most 10 GiB.
    pub max_spool_size: Option<u64>,
    /// The databases, in the order of the file. Names, files, meta-paths and places of replicas
    /// are unique, and no replica lies within another.
    pub databases: Vec<DatabaseSettings>,
}

/// One database and its replicas.
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    /// Its directory in a mount, and how commands name it.
    pub name: String,
    /// How it is captured.
    pub capture: CaptureSettings,
    /// Where it goes, in the order of the file; at least one.
    pub replicas: Vec<ReplicaSettings>,
}

/// One replica.
#[derive(Clone, Debug)]
pub struct ReplicaSettings {
    /// How messages and `--replica` name it; unique in its database.
    pub name: String,
    /// Where it lies.
    pub location: Location,
    /// How long the first commit that is not sent waits for company.
    pub sync_interval: Duration,
    /// How long which restore points are kept.
    pub retention: Retention,
    /// How often what is kept is looked through.
    pub retention_check_interval: Duration,
    /// How often a snapshot is taken when there are changes.
    pub snapshot_interval: Duration,
    /// How long a WAL segment stays after another one was stored that holds it.
    pub merged_grace: Duration,
    /// How often the replica is checked; never when absent.
    pub validation_interval: Option<Duration>,
}

/// How long restore points are kept. A window that is absent keeps nothing, but there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Every commit.
    pub all: Option<Duration>,
    /// The last commit of each hour.
    pub hourly: Option<Duration>,
    /// The last commit of each day.
    pub daily: Option<Duration>,
}

impl Retention {
    /// Every commit of a week: what is kept when nobody says otherwise.
    pub const WEEK: Self = Self {
        all: Some(Duration::from_secs(7 * 24 * 3600)),
        hourly: None,
        daily: None,
    };

    /// Every commit, for ever: what is kept where nobody is known to have said anything.
    pub const EVERYTHING: Self = Self {
        all: Some(Duration::MAX),
        hourly: None,
        daily: None,
    };
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// The least grave level that is logged, or a filter as `SQLREPL_LOG` takes it.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
    /// Where `replicate` and `mount` write them; other commands write to the standard error.
    pub target: LogTarget,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
            target: LogTarget::Stderr,
        }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where log lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// The standard error.
    Stderr,
    /// The standard output.
    Stdout,
    /// The end of a file.
    File(PathBuf),
}
