//! Bytes to values and back: the storage format. Pure: no files, no clock, no network.
//!
//! (The layout tables that follow are the specification.)

pub mod claim;
pub mod container;
pub mod db_header;
pub mod ids;
pub mod key;
pub mod moment;
pub mod segment;
pub mod snapshot;
pub mod wal;
