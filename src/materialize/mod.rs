//! A database as it was: which objects a moment needs, and its pages, read when asked for.

pub mod cache;
pub mod overlay;
pub mod pages;
pub mod plan;
pub mod replica;
