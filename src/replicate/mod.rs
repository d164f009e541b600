//! From a live database to a replica: WAL capture into the spool, upload, first snapshots.

pub mod act;
pub mod decide;
pub mod observe;
pub mod spool;
