//! SQLite replication with time travel: every commit of a live database stays a file that opens in
//! milliseconds.
//!
//! ```text
//!  app --SQL--> app.db + app.db-wal
//!                    | committed WAL frames, copied before SQLite may overwrite them
//!              replicate --> spool (local, fsynced) --> replica: generations/<generation>/
//!                                                          snapshots/  pages of one moment
//!                                                          wal/        every version since
//!                                                             | ranged reads, verified, cached
//!  sqlite3, cp, Python <--FUSE-- mount <-- materialize <------+
//!                       restore, query <-----+
//! ```
//!
//! # Code map
//!
//! Imports point up this list, never down; `materialize` and `replicate` never meet, nor do
//! `mount`, `query` and `restore`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`error`] | the error type: what the caller can do, and one sentence |
//! | [`mod@format`] | pure: the storage format, SQLite's WAL, the names of things |
//! | [`config`] | settings, and what comes from outside: clock and randomness |
//! | [`storage`] | where objects live: the `Store` trait, its implementations and wrappers |
//! | [`maintain`] | a replica over time: merging, later snapshots, retention |
//! | [`materialize`] | a database as it was, page by page |
//! | [`replicate`] | from a live database to a replica |
//! | [`restore`] | every page to a new file |
//! | [`query`] | SQL on a moment in this process |
//! | [`mount`] | replicas as a read-only file system |
//! | [`daemon`] | many databases in a running process, each by itself, and their control sockets |
//!
//! The binary (`src/main.rs`, `src/cli/`) sees only what is public here.
//!
//! # Invariants
//!
//! - *Stored objects are written once and never changed.* What exists is what a listing shows.
//! - *The wal-index says what is committed*; the `-wal` file only holds the bytes. Continuity of
//!   the capture is proved, never assumed: where it cannot be, a new generation begins.
//! - *At every moment a read transaction pins the WAL*, and it moves forward only when what it
//!   protected is durable in the spool.
//! - *A commit is durable on a replica* when its segment, all before it and the generation's first
//!   snapshot are stored.
//! - *Two writers never mix their commits*: what a replica holds behind our last commit is ours
//!   only if it ends where SQLite's WAL did; else a new generation begins.
//! - *No unverified byte reaches a reader*: every byte of an object is covered by a checksum.
//! - *Neither the database nor its `-shm` file is ever opened beside SQLite*: closing any
//!   descriptor of a file drops all POSIX locks that the process has on it.
//! - *Decide in pure code, act in thin code*: the rules are functions from values to values.

pub mod error;

pub mod format;

pub mod config;

pub mod storage;

pub mod maintain;

pub mod materialize;
pub mod replicate;

pub mod mount;
pub mod query;
pub mod restore;

pub mod daemon;
