//! `sqlrepl sync`

use crate::cli::args::Sync;
use crate::cli::replica_name;
use crate::cli::replicate::full_path;
use sqlrepl::daemon::{self, control};
use sqlrepl::error::Result;

pub(crate) async fn run(args: Sync) -> Result<()> {
    let meta_path = match args.meta_path {
        Some(path) => path,
        None => daemon::default_meta_path(&full_path(&args.database)?),
    };
    let replica = args.replica.map(|place| replica_name(&place).to_owned());
    control::sync(&meta_path, replica, args.timeout).await
}
