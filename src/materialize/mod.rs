//! A database as it was: which objects a moment needs, and its pages, read when asked for.
//!
//! | module | owns |
//! | --- | --- |
//! | [`replica`] | one replica as readers see it: restore points, resolving, opening |
//! | `refresh` | from listings to histories: reads what is new, once |
//! | `narrow` | pure: what of a listing one moment can need |
//! | `history` | one generation: its objects checked against each other, its restore points |
//! | `timeline` | pure: the restore points of one object, in few bytes |
//! | `plan` | pure: which objects a moment needs, which moment a time means |
//! | `overlay` | pure: page versions of many segments, laid over a map |
//! | [`pages`] | the pages of one moment |
//! | `fetch` | from the store into the cache: shared, coalesced, verified |
//! | [`points`] | restore points in order, by index, however many there are |
//! | `flights` | one fetch for all who wait for the same thing |
//! | [`cache`] | the bytes that are kept in memory, within a bound |
//! | [`disk`] | what is kept on the disk, across processes |
//! | [`hydrate`] | which moments are fetched whole, and that |
//! | `through` | footers and indexes by way of the disk cache |
//! | [`ahead`] | sees sequential access |
//!
//! Callers ask [`replica::Replica`] for restore points and get a [`pages::Database`], which knows
//! where pages lie through its layout alone: replicas in another layout would be another source of
//! histories and layouts, and nothing above would notice.

pub mod ahead;
pub mod cache;
pub mod disk;
pub(crate) mod fetch;
mod flights;
pub(crate) mod history;
pub mod hydrate;
#[cfg(test)]
pub(crate) mod model;
pub(crate) mod narrow;
pub(crate) mod overlay;
pub mod pages;
pub(crate) mod plan;
pub mod points;
mod refresh;
pub mod replica;
mod through;
mod timeline;
