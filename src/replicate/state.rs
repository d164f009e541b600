//! What the uploader of one replica remembers across restarts: its generation, and how far it is.
//!
//! Stored after each step that the store has acknowledged, so that it is never ahead of the store;
//! where it is behind, the object that waits in the spool is sent again, byte for byte.

use crate::error::{Error, Result};
use crate::format::container::Parent;
use crate::format::ids::{GenerationId, ObjectHash, ObjectId, Timestamp, Txid};
use crate::replicate::spool::SpooledCommit;
use crate::storage::durable;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One replica's generation, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationState {
    /// Its name.
    pub id: GenerationId,
    /// The run of the spool that it follows.
    pub run: u64,
    /// The `seq` of the state that it starts from: txid 1.
    pub base: u64,
    /// The generation it goes on from, and the last txid that both share.
    pub parent: Option<(GenerationId, Txid)>,
    /// When it began, which is the time of txid 1.
    pub started: Timestamp,
    /// Why it began.
    pub reason: String,
    /// Parts of the first snapshot that are stored, ascending.
    pub parts: Vec<StoredPart>,
    /// The txid of the first snapshot, once it is stored and all that it needs was listed.
    pub complete: Option<Txid>,
    /// The last commit that is stored, if there is one: the last of a level-0 segment.
    pub sent: Option<SpooledCommit>,
    /// The hash of the last stored segment; before the first one, the claim's.
    pub last_hash: ObjectHash,
    /// The key of that object.
    pub last_key: String,
    /// SQLITE_VERSION_NUMBER of the application as page 1 last showed it; 0 where unknown.
    pub sqlite_version: u32,
}

/// A stored part of a first snapshot that is still being made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPart {
    /// Below the replica.
    pub key: String,
    /// Bytes.
    pub length: u64,
    /// How page maps name it.
    pub object: ObjectId,
    /// The last page that was read when it was made; the next part goes on behind it.
    pub last_page: u32,
}

impl GenerationState {
    /// The last stored `seq`; the base if no commit is stored.
    pub fn sent_seq(&self) -> u64 {
        self.sent.map_or(self.base, |commit| commit.seq)
    }

    /// The number of a commit in this generation.
    ///
    /// # Panics
    /// If the commit lies before the generation.
    pub fn txid(&self, seq: u64) -> Txid {
        seq.checked_sub(self.base)
            .and_then(|after| Txid::new(after + 1))
            .expect("a generation holds no commit from before its base")
    }

    /// The last stored txid, as a parent for the generation that comes next.
    pub fn as_parent(&self) -> Parent {
        Parent {
            generation: self.id,
            txid: self.txid(self.sent_seq()),
        }
    }

    /// The time of the last stored commit, which the next one lies behind.
    pub fn last_time(&self) -> Timestamp {
        self.sent.map_or(self.started, |commit| commit.time)
    }

    /// The parent as objects name it.
    pub fn parent(&self) -> Option<Parent> {
        self.parent
            .map(|(generation, txid)| Parent { generation, txid })
    }

    /// Reads the state at `path`, if there is one.
    ///
    /// # Errors
    /// `Disk`; `Corrupt` if it is not what [`GenerationState::save`] writes.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let Some(bytes) = durable::read_if_there(path)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            Error::corrupt(format!(
                "read {}: not the state of a replica (move it away to start a new generation)",
                path.display()
            ))
            .because(e)
        })
    }

    /// Stores the state at `path`, durably.
    ///
    /// # Errors
    /// `Disk`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self).expect("plain data has a JSON form");
        durable::replace_file(path, &bytes)
    }
}
