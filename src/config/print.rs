//! Settings as the config file that would say them: defaults filled in, secrets masked.

use crate::config::file::expand::escape;
use crate::config::location::{Credentials, Location};
use crate::config::settings::{
    DatabaseSettings, LogFormat, LogSettings, LogTarget, ReplicaSettings, Retention, Settings,
};
use crate::config::{format_duration, format_size};
use serde::Serialize;
use std::path::Path;

/// What is shown in the place of a secret.
const MASK: &str = "***";

/// The settings in TOML that reads as these settings, but for secrets.
pub fn as_toml(settings: &Settings) -> String {
    let shown = File::new(settings, &escape);
    toml::to_string(&shown).expect("plain data has a TOML form")
}

/// The settings in JSON, with the keys of the file.
pub fn as_json(settings: &Settings) -> serde_json::Value {
    let shown = File::new(settings, &str::to_owned);
    serde_json::to_value(&shown).expect("plain data has a JSON form")
}

/// How text is written.
type Write<'a> = &'a dyn Fn(&str) -> String;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    keys: Option<Keys>,
    #[serde(skip_serializing_if = "Option::is_none")]
    addr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_spool_size: Option<String>,
    log: Log,
    db: Vec<Db>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Keys {
    access_key_id: String,
    secret_access_key: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Log {
    level: String,
    format: &'static str,
    target: String,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Db {
    path: String,
    name: String,
    monitor_interval: String,
    wal_size: String,
    writer_lock: bool,
    meta_path: String,
    replica: Vec<Replica>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Replica {
    name: String,
    #[serde(flatten)]
    place: Place,
    sync_interval: String,
    retention: Windows,
    retention_check_interval: String,
    snapshot_interval: String,
    merged_grace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    validation_interval: Option<String>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Place {
    File {
        path: String,
    },
    S3 {
        url: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        region: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
        #[serde(rename = "force-path-style", skip_serializing_if = "Option::is_none")]
        force_path_style: Option<bool>,
        checksums: bool,
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        keys: Option<Keys>,
    },
}

#[derive(Serialize)]
struct Windows {
    #[serde(skip_serializing_if = "Option::is_none")]
    all: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hourly: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daily: Option<String>,
}

impl File {
    fn new(settings: &Settings, write: Write<'_>) -> Self {
        let credentials = settings.credentials.as_ref();
        let databases = settings.databases.iter();
        Self {
            keys: credentials.map(|credentials| Keys::new(credentials, write)),
            addr: settings.addr.as_deref().map(write),
            max_spool_size: settings.max_spool_size.map(format_size),
            log: Log::new(&settings.log, write),
            db: databases
                .map(|database| Db::new(database, credentials, write))
                .collect(),
        }
    }
}

impl Keys {
    fn new(credentials: &Credentials, write: Write<'_>) -> Self {
        Self {
            access_key_id: write(&credentials.access_key_id),
            secret_access_key: MASK,
        }
    }
}

impl Log {
    fn new(log: &LogSettings, write: Write<'_>) -> Self {
        Self {
            level: write(&log.level),
            format: match log.format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
            target: match &log.target {
                LogTarget::Stderr => "stderr".to_owned(),
                LogTarget::Stdout => "stdout".to_owned(),
                LogTarget::File(path) => path_text(path, write),
            },
        }
    }
}

impl Db {
    fn new(
        database: &DatabaseSettings,
        credentials: Option<&Credentials>,
        write: Write<'_>,
    ) -> Self {
        let capture = &database.capture;
        let replicas = database.replicas.iter();
        Self {
            path: path_text(&capture.database, write),
            name: write(&database.name),
            monitor_interval: format_duration(capture.monitor_interval),
            wal_size: format_size(capture.wal_size),
            writer_lock: capture.writer_lock,
            meta_path: path_text(&capture.meta_path, write),
            replica: replicas
                .map(|replica| Replica::new(replica, credentials, write))
                .collect(),
        }
    }
}

impl Replica {
    fn new(replica: &ReplicaSettings, credentials: Option<&Credentials>, write: Write<'_>) -> Self {
        Self {
            name: write(&replica.name),
            place: Place::new(&replica.location, credentials, write),
            sync_interval: format_duration(replica.sync_interval),
            retention: Windows::new(&replica.retention),
            retention_check_interval: format_duration(replica.retention_check_interval),
            snapshot_interval: format_duration(replica.snapshot_interval),
            merged_grace: format_duration(replica.merged_grace),
            validation_interval: replica.validation_interval.map(format_duration),
        }
    }
}

impl Place {
    /// The access key for all is shown once, at the top.
    fn new(location: &Location, for_all: Option<&Credentials>, write: Write<'_>) -> Self {
        match location {
            Location::Directory(path) => Self::File {
                path: path_text(path, write),
            },
            Location::S3(place) => Self::S3 {
                url: write(&place.url()),
                region: place.region.as_deref().map(write),
                endpoint: place.endpoint.as_deref().map(write),
                force_path_style: place
                    .force_path_style
                    .or(place.endpoint.as_ref().map(|_| true)),
                checksums: place.checksums,
                keys: place
                    .credentials
                    .as_ref()
                    .filter(|own| Some(*own) != for_all)
                    .map(|own| Keys::new(own, write)),
            },
        }
    }
}

impl Windows {
    fn new(retention: &Retention) -> Self {
        Self {
            all: retention.all.map(format_duration),
            hourly: retention.hourly.map(format_duration),
            daily: retention.daily.map(format_duration),
        }
    }
}

fn path_text(path: &Path, write: Write<'_>) -> String {
    write(&path.to_string_lossy())
}
