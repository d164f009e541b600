//! `sqlrepl mount`

use crate::cli::args::Mount;
use crate::cli::config::Config;
use crate::cli::{clock, say, stop_signal};
use sqlrepl::config::location::Location;
use sqlrepl::config::settings::Settings;
use sqlrepl::error::{Error, Result};
use sqlrepl::mount::discover::Source;
use sqlrepl::mount::session::{self, MountOptions, Ready};
use sqlrepl::storage;
use std::path::{Path, PathBuf};

pub(crate) async fn run(args: Mount, config: &Config) -> Result<()> {
    // First of all: whoever starts us may end us at any time.
    let stop = stop_signal()?;
    let shown = match args.places.as_slice() {
        [source, _] => one(config.location(source)?, source).await?,
        _ => all(config.settings()?).await?,
    };
    let mountpoint = Path::new(args.places.last().expect("there is at least one"));
    let options = MountOptions {
        cache_bytes: args.page_cache,
        allow_other: args.allow_other,
        keep_out: shown.directories,
        ..MountOptions::default()
    };
    session::run(
        shown.sources,
        &shown.label,
        mountpoint,
        options,
        clock(),
        say_ready,
        stop,
    )
    .await
}

/// What is mounted.
struct Shown {
    sources: Vec<Source>,
    label: String,
    /// What the mount point must not lie in.
    directories: Vec<PathBuf>,
}

/// What a place holds: one replica, or several.
async fn one(location: Location, written: &str) -> Result<Shown> {
    let mut directories = Vec::new();
    if let Location::Directory(path) = &location {
        if !path.is_dir() {
            return Err(Error::not_found(format!(
                "{written}: no such directory, so no replica is there"
            )));
        }
        directories.push(path.clone());
    }
    let store = storage::open(&location).await?;
    Ok(Shown {
        label: store.location().to_owned(),
        sources: vec![Source::Folder(store)],
        directories,
    })
}

/// The databases of the config file.
async fn all(settings: &Settings) -> Result<Shown> {
    let file = settings.file.as_deref().unwrap_or(Path::new(""));
    if settings.databases.is_empty() {
        return Err(Error::invalid(format!(
            "{} has no [[db]], so there is nothing to mount; add one, or give a replica",
            file.display()
        )));
    }
    let mut sources = Vec::new();
    let mut directories = Vec::new();
    for database in &settings.databases {
        let mut replicas = Vec::new();
        for replica in &database.replicas {
            if let Location::Directory(path) = &replica.location {
                directories.push(path.clone());
            }
            replicas.push(storage::open(&replica.location).await?);
        }
        sources.push(Source::Database {
            name: database.name.clone(),
            replicas,
        });
    }
    Ok(Shown {
        sources,
        label: file.display().to_string(),
        directories,
    })
}

/// The one line of a mount.
fn say_ready(ready: &Ready) {
    let place = ready.mountpoint.display();
    let line = match ready.databases {
        Some(1) => format!("mounted 1 database on {place}"),
        Some(databases) => format!("mounted {databases} databases on {place}"),
        None => format!("mounted on {place}; it fills when the replicas answer"),
    };
    // The mount serves whether or not somebody reads of it.
    if let Err(e) = say(&line) {
        tracing::warn!("{e}");
    }
}
