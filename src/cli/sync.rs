//! `sqlrepl sync`

use crate::cli::args::Sync;
use crate::cli::config::Config;
use crate::cli::replicate::full_path;
use crate::cli::target::named;
use sqlrepl::config::default_meta_path;
use sqlrepl::daemon::control;
use sqlrepl::error::Result;
use std::path::PathBuf;

pub(crate) async fn run(args: Sync, config: &Config) -> Result<()> {
    let meta_path = meta_path(&args, config)?;
    control::sync(&meta_path, args.replica, args.timeout).await
}

/// Where the daemon of the database keeps its spool.
fn meta_path(args: &Sync, config: &Config) -> Result<PathBuf> {
    if let Some(path) = &args.meta_path {
        return Ok(path.clone());
    }
    let text = args.database.to_string_lossy();
    match config.known().and_then(|known| named(known, &text)) {
        Some(database) => Ok(database.capture.meta_path.clone()),
        None => Ok(default_meta_path(&full_path(&args.database)?)),
    }
}
