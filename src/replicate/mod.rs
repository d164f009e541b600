//! From a live database to a replica: WAL capture into the spool, upload, first snapshots.

pub mod act;
pub mod decide;
pub mod encode;
pub mod first;
pub mod history;
pub mod identity;
pub mod known;
pub mod observe;
pub mod put;
pub mod sent;
pub mod spool;
pub mod state;
pub mod upload;
