//! A replica over time: merging, later snapshots, retention.
//!
//! | module | owns |
//! | --- | --- |
//! | [`survey`] | what is known of a replica: a listing, and what its objects say of themselves |

pub mod survey;
