//! `sqlrepl umount`

use crate::cli::args::Umount;
use sqlrepl::error::Result;
use sqlrepl::mount::mountpoint;

pub(crate) fn run(args: &Umount) -> Result<()> {
    mountpoint::unmount(&args.directory)
}
