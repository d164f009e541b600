//! The config file: TOML in, [`Settings`] out, or one sentence with file and line.
//!
//! Tables and their keys are listed in `table.rs`; nothing else is understood. Values are text with
//! the environment's words in it (`expand.rs`), and paths that are not absolute lie
//! below the directory of the file, wherever a command is started.

pub(crate) mod expand;
mod place;
mod table;
pub mod unique;

use crate::config::file::expand::Lookup;
use crate::config::file::place::{keys, place};
use crate::config::file::table::{DB, LOG, REPLICA, RETENTION, Source, TOP, Table};
use crate::config::location::{Credentials, Location, asked_in_time, real_path, without_secrets};
use crate::config::parse_merged_grace;
use crate::config::settings::{
    DatabaseSettings, LogFormat, LogSettings, LogTarget, ReplicaSettings, Retention, Settings,
};
use crate::config::{CaptureSettings, default_meta_path};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::DeTable;
use tracing_subscriber::EnvFilter;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Size of the `-wal` file past which we see to its restart, unless told otherwise, bytes.
pub const WAL_SIZE: u64 = 4 << 20;
/// The slow poll behind inotify, unless told otherwise.
pub const MONITOR_INTERVAL: Duration = Duration::from_secs(1);
/// How long the first commit that is not sent waits for company, unless told otherwise.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// How often what is kept is looked through, unless told otherwise.
pub const RETENTION_CHECK_INTERVAL: Duration = HOUR;
/// How often a snapshot is taken when there are changes, unless told otherwise.
pub const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long merged segments stay, unless told otherwise.
pub const MERGED_GRACE: Duration = HOUR;

/// Reads a config file.
///
/// # Errors
/// `Invalid`, with file and line.
pub fn load(file: &Path, environment: Lookup<'_>) -> Result<Settings> {
    let unreadable = |e| Error::invalid(format!("read config file {}", file.display())).because(e);
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    let absolute = std::path::absolute(file).map_err(unreadable)?;
    let base = absolute.parent().unwrap_or(Path::new("/"));
    parse(&text, &absolute, base, environment)
}

/// Understands the text of a config file. Messages name it `file`; its paths lie below `base`.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, file: &Path, base: &Path, environment: Lookup<'_>) -> Result<Settings> {
    let source = Source {
        file,
        text,
        environment,
    };
    let document = DeTable::parse(text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start);
        let message = e.message().replace('\n', ", ");
        source.wrong(at, format!("no TOML: {}", message.trim_end_matches(", ")))
    })?;
    let top = Table::new(source, &TOP, document.get_ref(), 0..0)?;
    let credentials = keys(&top)?;
    let databases: Vec<DatabaseSettings> = top
        .tables("db", &DB)?
        .iter()
        .map(|table| database(table, base, credentials.as_ref()))
        .collect::<Result<_>>()?;
    unique::check(&databases).map_err(|e| e.context(file.display()))?;
    Ok(Settings {
        file: Some(file.to_owned()),
        log: log(&top, base)?,
        credentials,
        addr: top.parsed("addr", parse_addr)?.map(|addr| addr.value),
        max_spool_size: top.size("max-spool-size")?,
        databases,
    })
}

fn log(top: &Table<'_>, base: &Path) -> Result<LogSettings> {
    let default = LogSettings::default();
    let Some(table) = top.table("log", &LOG)? else {
        return Ok(default);
    };
    let level = table.parsed("level", parse_level)?;
    let format = table.parsed("format", |text| match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(Error::invalid(format!("{text:?} is neither text nor json"))),
    })?;
    let target = table.parsed("target", |text| match text {
        "stderr" => Ok(LogTarget::Stderr),
        "stdout" => Ok(LogTarget::Stdout),
        path if path.contains('/') => real_path(&base.join(path)).map(LogTarget::File),
        _ => Err(Error::invalid(format!(
            "{text:?} is neither stderr nor stdout nor a path with a /"
        ))),
    })?;
    Ok(LogSettings {
        level: level.map_or(default.level, |level| level.value),
        format: format.map_or(default.format, |format| format.value),
        target: target.map_or(default.target, |target| target.value),
    })
}

/// A level, or a filter as `SQLREPL_LOG` takes it.
fn parse_level(text: &str) -> Result<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    // A single word that is no level would be taken for the name of a module.
    let is_filter = text.contains(['=', ',']) && EnvFilter::try_new(text).is_ok();
    if is_filter || LEVELS.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(Error::invalid(format!(
        "{text:?} is no level: say one of {}",
        LEVELS.join(", ")
    )))
}

fn parse_addr(text: &str) -> Result<String> {
    let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) if !text.contains(|c: char| c.is_whitespace() || c == '/') => {
            Ok(text.to_owned())
        }
        _ => Err(Error::invalid(format!(
            "{text:?} is no address: say 127.0.0.1:9090 or :9090"
        ))),
    }
}

fn database(
    table: &Table<'_>,
    base: &Path,
    credentials: Option<&Credentials>,
) -> Result<DatabaseSettings> {
    let source = table.source;
    let path = table.parsed("path", |text| database_path(text, base))?;
    let Some(path) = path else {
        return Err(source.wrong(table.at, "[[db]] needs the path of its database file"));
    };
    let name = match table.text("name")? {
        Some(name) => name,
        None => table::At {
            value: path
                .value
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            at: path.at,
        },
    };
    check_name(&name.value).map_err(|e| e.context(format!("{}: name", source.line(name.at))))?;
    let meta_path = table.parsed("meta-path", |text| place_of_directory(text, base))?;
    let capture = CaptureSettings {
        meta_path: match meta_path {
            Some(meta_path) => meta_path.value,
            None => default_meta_path(&path.value),
        },
        database: path.value,
        wal_size: table.size("wal-size")?.unwrap_or(WAL_SIZE),
        writer_lock: table.boolean("writer-lock")?.unwrap_or(true),
        monitor_interval: table
            .period("monitor-interval")?
            .unwrap_or(MONITOR_INTERVAL),
    };
    let replicas: Vec<ReplicaSettings> = table
        .tables("replica", &REPLICA)?
        .iter()
        .map(|table| replica(table, base, credentials))
        .collect::<Result<_>>()?;
    if replicas.is_empty() {
        let sentence = format!("database {} needs a [[db.replica]]", name.value);
        return Err(source.wrong(table.at, sentence));
    }
    Ok(DatabaseSettings {
        name: name.value,
        capture,
        replicas,
    })
}

/// The database may not be there yet, but has a name.
fn database_path(text: &str, base: &Path) -> Result<PathBuf> {
    let wrong = |why: &str| Err(Error::invalid(format!("{text:?}: {why}")));
    if text.is_empty() || text.ends_with('/') || Path::new(text).file_name().is_none() {
        return wrong("not the path of a database file");
    }
    let path = real_path(&base.join(text))?;
    let asked = path.clone();
    if asked_in_time(&path, move || asked.is_dir()).unwrap_or(false) {
        return wrong("a directory, expected a database file");
    }
    Ok(path)
}

fn place_of_directory(text: &str, base: &Path) -> Result<PathBuf> {
    if text.is_empty() {
        return Err(Error::invalid("the path of a directory is empty"));
    }
    real_path(&base.join(text))
}

/// A database is a directory in the mount.
fn check_name(name: &str) -> Result<()> {
    let is_fine = !matches!(name, "" | "." | "..")
        && name.len() <= 255
        && !name.contains(|c: char| c == '/' || c.is_control());
    if is_fine {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name:?} cannot name a directory in the mount: 1 to 255 bytes, no / and no control \
         characters, neither . nor .."
    )))
}

fn replica(
    table: &Table<'_>,
    base: &Path,
    credentials: Option<&Credentials>,
) -> Result<ReplicaSettings> {
    let (location, written) = place(table, base, credentials)?;
    let name = table.parsed("name", |name| {
        if name.is_empty() {
            return Err(Error::invalid("a name has at least one letter"));
        }
        Ok(name.to_owned())
    })?;
    Ok(ReplicaSettings {
        name: name.map_or_else(|| replica_name(&written), |name| name.value),
        location,
        sync_interval: table.duration("sync-interval")?.unwrap_or(SYNC_INTERVAL),
        retention: retention(table)?.unwrap_or(Retention::WEEK),
        retention_check_interval: table
            .period("retention-check-interval")?
            .unwrap_or(RETENTION_CHECK_INTERVAL),
        snapshot_interval: table
            .period("snapshot-interval")?
            .unwrap_or(SNAPSHOT_INTERVAL),
        merged_grace: table
            .parsed("merged-grace", parse_merged_grace)?
            .map_or(MERGED_GRACE, |grace| grace.value),
        validation_interval: table.period("validation-interval")?,
    })
}

/// How messages and `--replica` name the replica at a place that has no name of its own: as the
/// user writes it, but for slashes at the end and what follows a URL's `?`.
pub fn replica_name(place: &str) -> String {
    let place = match place.contains("://") {
        true if Location::parse(place).is_err() => without_secrets(place),
        true => place.split('?').next().unwrap_or_default().to_owned(),
        false => place.to_owned(),
    };
    match place.trim_end_matches('/') {
        "" => place,
        name => name.to_owned(),
    }
}

/// Whether a replica is meant: by its very name, or as a place is written.
pub fn is_named(name: &str, asked: &str) -> bool {
    name == asked || name == replica_name(asked)
}

fn retention(table: &Table<'_>) -> Result<Option<Retention>> {
    if !table.is_table("retention") {
        let all = table.period("retention")?;
        return Ok(all.map(|all| Retention {
            all: Some(all),
            ..Retention::default()
        }));
    }
    let Some(windows) = table.table("retention", &RETENTION)? else {
        return Ok(None);
    };
    let retention = Retention {
        all: windows.period("all")?,
        hourly: windows.period("hourly")?,
        daily: windows.period("daily")?,
    };
    if retention == Retention::default() {
        let sentence = "retention keeps nothing; say all, hourly or daily, or leave it out";
        return Err(windows.source.wrong(windows.at, sentence));
    }
    Ok(Some(retention))
}

#[cfg(test)]
mod tests;
