//! A replica over time: merging, later snapshots, retention.
//!
//! | module | owns |
//! | --- | --- |
//! | [`retain`] | what stays and what goes, as retention has it: decides, does nothing |
//! | [`survey`] | what is known of a replica: a listing, and what its objects say of themselves |

pub mod retain;
pub mod survey;
