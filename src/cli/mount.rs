//! `sqlrepl mount`

use crate::cli::args::Mount;
use crate::cli::{clock, existing_store_at, say, stop_signal};
use sqlrepl::config::location::Location;
use sqlrepl::error::Result;
use sqlrepl::mount::session::{self, MountOptions, Ready};
use std::path::PathBuf;

pub(crate) async fn run(args: Mount) -> Result<()> {
    // First of all: whoever starts us may end us at any time.
    let stop = stop_signal()?;
    let source = existing_store_at(&args.source).await?;
    let options = MountOptions {
        cache_bytes: args.page_cache,
        allow_other: args.allow_other,
        keep_out: directory(&args.source)?,
        ..MountOptions::default()
    };
    session::run(
        vec![source],
        &args.mountpoint,
        options,
        clock(),
        say_ready,
        stop,
    )
    .await
}

/// What the mount point must not lie in.
fn directory(source: &str) -> Result<Vec<PathBuf>> {
    match Location::parse(source)? {
        Location::Directory(path) => Ok(vec![path]),
        Location::S3(_) => Ok(Vec::new()),
    }
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
