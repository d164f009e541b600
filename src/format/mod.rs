//! Bytes to values and back: the storage format. Pure: no files, no clock, no network.
//!
//! This documentation is the specification of what a replica holds; another reader can be written
//! from it. Start with [`container`], which every object but the claim shares; [`segment`] and
//! [`snapshot`] say what its sections hold, [`claim`] what begins a generation, [`key`] how objects
//! are named.
//!
//! # Conventions
//!
//! - Integers of fixed size are little-endian, unless they are SQLite's own.
//! - A *varint* is an unsigned number in LEB128: seven bits a byte, the lowest first, the top bit
//!   set in every byte but the last, and never more bytes than needed. A *signed varint* is the
//!   varint of `(n << 1) ^ (n >> 63)` (arithmetic shift), so that small numbers of either sign are
//!   short.
//! - Sizes are in bytes unless the table says pages; times in microseconds since 1970-01-01 UTC.
//! - A page's number (pgno) counts from 1; a slot, a block's number and a leaf's number from 0.
//! - Checksums are xxh3-64 with seed 0, of bytes as they are stored; hashes are BLAKE3.
//!
//! # What holds
//!
//! - Every byte of an object is covered: its blocks, sections and map leaves by a checksum each, so
//!   that a ranged read can be verified by itself; header and footer by theirs; and all of it by
//!   the object's hash ([`container::verify_object`]).
//! - A decoder never panics. It checks each length against the bytes at hand before it allocates
//!   for it; a section inflates to 1 GiB at most, and memory for it grows with what is really
//!   found.
//! - What a later version adds announces itself: a required feature bit or a section that must not
//!   be skipped makes an older reader refuse the object by name; all else it ignores.

pub mod claim;
pub mod container;
pub mod db_header;
pub mod ids;
pub mod interior;
pub mod key;
pub mod moment;
mod object;
#[cfg(test)]
pub(crate) mod sample;
pub mod segment;
pub mod snapshot;
mod varint;
pub mod wal;
