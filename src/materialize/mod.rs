//! A database as it was: which objects a moment needs, and its pages, read when asked for.
//!
//! | module | owns |
//! | --- | --- |
//! | [`replica`] | one replica as readers see it: restore points, resolving, opening |
//! | `refresh` | from listings to histories: reads what is new, once |
//! | `narrow` | pure: what of a listing one moment can need |
//! | `history` | one generation: its objects checked against each other, its restore points |
//! | `plan` | pure: which objects a moment needs, which moment a time means |
//! | `overlay` | pure: page versions of many segments, laid over a map |
//! | [`pages`] | the pages of one moment |
//! | `fetch` | from the store into the cache: shared, coalesced, verified |
//! | [`cache`] | the bytes that are kept, within a bound |
//! | [`ahead`] | sees sequential access |
//!
//! Callers ask [`replica::Replica`] for restore points and get a [`pages::Database`], which knows
//! where pages lie through its layout alone: replicas in another layout would be another source of
//! histories and layouts, and nothing above would notice.

pub mod ahead;
pub mod cache;
pub(crate) mod fetch;
pub(crate) mod history;
#[cfg(test)]
pub(crate) mod model;
pub(crate) mod narrow;
pub(crate) mod overlay;
pub mod pages;
pub(crate) mod plan;
mod refresh;
pub mod replica;
