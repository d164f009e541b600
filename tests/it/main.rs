//! The stories: what a user can do, with the real binary, the real SQLite and the real kernel.
//!
//! `world.rs` is the harness: a temporary folder, the programs that run in it, and their end.
//! `program.rs` runs programs, `writer.rs` is the applications that write, `oracle.rs` what SQLite
//! showed after each of their commits, `exact.rs` the comparison with every restore point,
//! `s3_server.rs` the S3 server. `machine.rs` is machines that write one replica, `lineage.rs` what
//! came of that. The other modules are stories; the README's promises stand above the tests that
//! show them.

mod at;
#[path = "../bench/table.rs"]
mod bench;
mod cache_beside;
mod checkpoint;
mod clients;
mod config;
mod crash;
mod damage;
mod demo;
mod disk_cache;
mod exact;
mod fleet;
mod hangs;
mod hydrate;
mod informed;
mod lineage;
mod listing;
mod machine;
mod maintain;
mod mishaps;
mod model;
mod mount;
mod names;
mod oracle;
mod program;
mod query;
mod replicate;
mod restore;
mod s3;
mod s3_server;
mod signals;
mod start;
mod store_calls;
mod stored;
mod tidy;
mod time_travel;
mod world;
mod writer;
mod writers;

/// How many times more than in a normal run: `SQLREPL_SOAK`, 1 by default.
pub(crate) fn soak() -> u64 {
    std::env::var("SQLREPL_SOAK").map_or(1, |times| {
        times.parse().expect("SQLREPL_SOAK is a number of times")
    })
}

/// Where random choices start: `SQLREPL_SEED`; else a normal run makes the same ones each time, and
/// a longer one others. Printed, so that a failure shows it.
pub(crate) fn seed() -> u64 {
    let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    let seed = match std::env::var("SQLREPL_SEED") {
        Ok(seed) => seed.parse().expect("SQLREPL_SEED is a number"),
        Err(_) if soak() > 1 => clock().into(),
        Err(_) => 1,
    };
    println!("SQLREPL_SEED={seed}");
    seed
}
