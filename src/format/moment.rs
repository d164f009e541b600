//! The words with which a user names a moment: one parser for mount names, `--timestamp` and `--txid`.

use crate::error::Result;
use crate::format::ids::{GenerationId, Timestamp, Txid};

/// A moment as asked for; `storage`'s timelines turn it into a restore point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The last commit of the highest generation, whatever any clock says.
    Latest,
    /// The last commit at or before this time, which is the end of the smallest unit that was named.
    At(Timestamp),
    /// A transaction, of the newest generation that has it unless one is named.
    Txid(Option<GenerationId>, Txid),
}

impl Moment {
    /// Parses a time: `2024-01-01T00:00:00Z` with any offset or fraction, `-` for `:` in the time of
    /// day, `20240101T000000Z`, `2024-01-01`, `2024-01`, `@1704067200`, `5m-ago`, `now`, `latest`,
    /// `today`, `yesterday`.
    ///
    /// # Errors
    /// `Invalid`, with the forms that would do.
    pub fn parse_time(text: &str, now: Timestamp) -> Result<Self> {
        let _ = (text, now);
        todo!()
    }

    /// Parses `<txid>` or `<generation>-<txid>`, in hex.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn parse_txid(text: &str) -> Result<Self> {
        let _ = text;
        todo!()
    }

    /// True if the words mean another moment later on (`now`, `5m-ago`, `yesterday`).
    pub fn is_relative(text: &str) -> bool {
        let _ = text;
        todo!()
    }
}
