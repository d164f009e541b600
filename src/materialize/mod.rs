//! A database as it was: which objects a moment needs, and its pages, read when asked for.

pub mod ahead;
pub mod cache;
pub(crate) mod fetch;
pub(crate) mod history;
#[cfg(test)]
pub(crate) mod model;
pub(crate) mod overlay;
pub mod pages;
pub(crate) mod plan;
mod refresh;
pub mod replica;
