//! From a live database to a replica: WAL capture into the spool, upload, first snapshots.

pub mod act;
mod backoff;
pub mod budget;
mod connection;
mod copy;
pub mod decide;
pub mod encode;
pub mod first;
pub mod fork;
pub mod history;
pub mod identity;
pub mod known;
mod live;
mod locks;
pub mod making;
pub mod observe;
pub mod pages;
mod pool;
mod rest;
mod salvage;
pub mod seed;
pub mod sent;
mod shown;
pub mod source;
pub mod spool;
pub mod state;
pub mod unfinished;
pub mod upload;
mod wake;
pub mod writers;

#[cfg(test)]
mod tests;
