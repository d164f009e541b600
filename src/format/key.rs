//! Object keys and what they mean. The only file that knows how keys are spelled.

use crate::format::ids::{GenerationId, Pgno, Timestamp, Txid};
use std::fmt;

/// A key below a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub generation: GenerationId,
    pub object: ObjectKey,
}

/// The part of a key below its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// `claim`
    Claim,
    /// `pages/<since>-<first pgno>-<hash8>.pages`
    Part {
        since: Txid,
        first: Pgno,
        hash8: u32,
    },
    /// `snapshots/<txid>-<time>-<hash8>.snapshot`
    Snapshot {
        txid: Txid,
        time: Timestamp,
        hash8: u32,
    },
    /// `wal/0/<first txid>.wal`
    Upload { first: Txid },
    /// `wal/<level>/<first>-<last>-<time>-<hash8>.wal`, level 1 to 15
    Merged {
        level: u8,
        first: Txid,
        last: Txid,
        time: Timestamp,
        hash8: u32,
    },
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = f;
        todo!()
    }
}

impl Key {
    /// What a key means, or `None`: then it is not ours and is never deleted.
    pub fn parse(text: &str) -> Option<Self> {
        let _ = text;
        todo!()
    }
}
