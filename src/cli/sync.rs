//! `sqlrepl sync`

use crate::cli::args::Sync;
use crate::cli::replicate::full_path;
use sqlrepl::config::default_meta_path;
use sqlrepl::config::file::replica_name;
use sqlrepl::daemon::control;
use sqlrepl::error::Result;

pub(crate) async fn run(args: Sync) -> Result<()> {
    let meta_path = match args.meta_path {
        Some(path) => path,
        None => default_meta_path(&full_path(&args.database)?),
    };
    let replica = args.replica.map(|place| replica_name(&place));
    control::sync(&meta_path, replica, args.timeout).await
}
