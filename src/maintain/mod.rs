//! A replica over time: merging, later snapshots, retention.
//!
//! | module | owns |
//! | --- | --- |
//! | [`keeper`] | one replica, kept cheap, round by round |
//! | [`survey`] | what is known of a replica: a listing, and what its objects say of themselves |
//! | `look` | from a listing to a survey |
//! | `standing` | pure: one generation as merging and snapshots see it |
//! | [`rules`] | pure: which segments are merged, when a snapshot is taken |
//! | [`retain`] | pure: what stays and what goes |
//! | [`usage`] | pure: what the bytes are for |
//! | [`requests`] | pure: what a daemon asks of a store in a day |
//! | [`clock`] | pure: what time it is for deletions |
//! | [`merge`] | several segments made one |
//! | [`account`] | whether a merged segment accounts for others |
//! | [`later`] | snapshots made from what is stored |
//! | `map` | pure: what of a page map stays |
//! | [`workshop`] | where objects are made |
//! | `segment` | a stored segment, opened |
//! | `pour` | pages of several objects, read in order and in bounded memory |
//! | `versions` | pure: page versions in one order, and which are kept |

pub mod account;
pub mod clock;
pub mod keeper;
pub mod later;
mod look;
mod map;
pub mod merge;
mod pour;
pub mod requests;
pub mod retain;
pub mod rules;
mod segment;
mod standing;
pub mod survey;
pub mod usage;
mod versions;
pub mod workshop;

#[cfg(test)]
mod tests;
