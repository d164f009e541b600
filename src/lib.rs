//! SQLite replication with time travel.

pub mod error;
pub mod format;

pub mod config;

pub mod storage;

pub mod materialize;
pub mod replicate;

pub mod restore;

pub mod mount;

pub mod daemon;
