//! The claim: who began a generation, and from what. JSON, so that a person can read it.

use crate::error::Result;
use crate::format::container::Parent;
use crate::format::ids::{DatabaseId, GenerationId, ObjectHash, Timestamp, WriterId};

/// What the first object of a generation says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub generation: GenerationId,
    pub database_id: DatabaseId,
    pub writer_id: WriterId,
    pub parent: Option<Parent>,
    /// The machine and the path of the database, for messages.
    pub host: String,
    pub path: String,
    /// When the writer started.
    pub started: Timestamp,
    /// Why a new generation began: a sentence.
    pub reason: String,
}

impl Claim {
    /// The stored form; the same value always gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }

    /// Parses a claim.
    ///
    /// # Errors
    /// `Corrupt`, and `Invalid` for a later format version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let _ = bytes;
        todo!()
    }

    /// The hash that the first segment of the generation carries.
    pub fn hash(&self) -> ObjectHash {
        ObjectHash(*blake3::hash(&self.encode()).as_bytes())
    }
}
