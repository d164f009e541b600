//! `sqlrepl mount`

use crate::cli::args::{ListedCommits, Mount};
use crate::cli::config::Config;
use crate::cli::informant::Daemons;
use crate::cli::{background, clock, notify, say, stop_signal};
use nix::unistd::geteuid;
use sqlrepl::config::location::Location;
use sqlrepl::config::settings::Settings;
use sqlrepl::error::{Error, Result};
use sqlrepl::materialize::hydrate::HydrateOptions;
use sqlrepl::mount::discover::Source;
use sqlrepl::mount::session::{self, DiskCacheOptions, MountOptions, Ready, Viewers};
use sqlrepl::mount::view::Listed;
use sqlrepl::storage;
use std::path::{Path, PathBuf};
use std::pin::pin;

pub(crate) async fn run(args: Mount, config: &Config) -> Result<()> {
    // First of all: whoever starts us may end us at any time.
    let mut stop = pin!(stop_signal()?);
    let shown = tokio::select! {
        shown = shown(&args, config) => shown?,
        () = &mut stop => return Ok(()),
    };
    let mountpoint = Path::new(args.places.last().expect("there is at least one"));
    let mut keep_out = shown.directories;
    keep_out.extend(config.known().into_iter().flat_map(places));
    let options = MountOptions {
        disk_cache: disk_cache(&args)?,
        cache_bytes: args.page_cache,
        listed: match args.list {
            ListedCommits::All => Listed::All,
            ListedCommits::Curated => Listed::Curated,
            ListedCommits::None => Listed::None,
        },
        refresh: args.refresh,
        informants: Some(Daemons::known(shown.places, config.known())),
        viewers: viewers(&args)?,
        uid: args.uid,
        gid: args.gid,
        umask: args.umask,
        keep_out,
        ..MountOptions::default()
    };
    session::run(
        shown.sources,
        args.fsname.as_ref().unwrap_or(&shown.label),
        mountpoint,
        options,
        clock(),
        |ready| is_ready(ready, args.daemon),
        stop,
    )
    .await
}

/// Absolute: a mount in the background leaves the directory in which it was begun.
fn disk_cache(args: &Mount) -> Result<Option<DiskCacheOptions>> {
    let Some(directory) = &args.cache_dir else {
        return Ok(None);
    };
    let unusable = |e| Error::invalid(format!("{}: no path", directory.display())).because(e);
    Ok(Some(DiskCacheOptions {
        directory: std::path::absolute(directory).map_err(unusable)?,
        bytes: args.cache_size,
        hydrate: HydrateOptions {
            when: args.hydrate.into(),
            limit: args.hydrate_limit,
        },
    }))
}

/// The kernel does not tell who mounts and root from others, so with `--allow-root` modes keep
/// these out; and they would keep out who mounts, if everything belonged to somebody else.
fn viewers(args: &Mount) -> Result<Viewers> {
    match (args.allow_other, args.allow_root, args.uid) {
        (true, _, _) => Ok(Viewers::All),
        (false, true, Some(uid)) if uid != geteuid().as_raw() => Err(Error::invalid(format!(
            "--allow-root lets in who mounts and root alone, and --uid gives everything to user \
             {uid}: leave out --uid, or let others in with --allow-other and --umask 077"
        ))),
        (false, true, _) => Ok(Viewers::OwnerAndRoot),
        (false, false, _) => Ok(Viewers::Owner),
    }
}

/// The directories that a config file gives to replicas and spools.
fn places(settings: &Settings) -> impl Iterator<Item = PathBuf> {
    settings.databases.iter().flat_map(|database| {
        let replicas = database.replicas.iter();
        let replicas = replicas.filter_map(|replica| match &replica.location {
            Location::Directory(path) => Some(path.clone()),
            Location::S3(_) => None,
        });
        replicas.chain([database.capture.meta_path.clone()])
    })
}

/// What is mounted.
struct Shown {
    sources: Vec<Source>,
    /// Where the stores of each source lie, in their order.
    places: Vec<Vec<Location>>,
    label: String,
    /// What of it lies in directories, in which the mount point must not be.
    directories: Vec<PathBuf>,
}

async fn shown(args: &Mount, config: &Config) -> Result<Shown> {
    match args.places.as_slice() {
        [source, _] => one(config.location(source)?, source).await,
        _ => all(config.settings()?).await,
    }
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
        places: vec![vec![location]],
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
    let (mut sources, mut places) = (Vec::new(), Vec::new());
    for database in &settings.databases {
        let mut replicas = Vec::new();
        for replica in &database.replicas {
            replicas.push(storage::open(&replica.location).await?);
        }
        let locations = database.replicas.iter().map(|replica| &replica.location);
        places.push(locations.cloned().collect());
        sources.push(Source::Database {
            name: database.name.clone(),
            replicas,
        });
    }
    Ok(Shown {
        sources,
        places,
        label: file.display().to_string(),
        directories: Vec::new(),
    })
}

/// Tells all who wait for it: the one line of a mount, the service manager, the command that began
/// it in the background.
fn is_ready(ready: &Ready, is_daemon: bool) -> Result<()> {
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
    notify::ready(&line);
    match is_daemon {
        true => background::leave(),
        false => Ok(()),
    }
}
