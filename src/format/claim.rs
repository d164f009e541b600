//! The claim: who began a generation, and from what. JSON, so that a person can read it.
//!
//! An object of the fields below in this order, indented by two spaces, and a line feed. A reader
//! refuses another `format` and ignores fields that it does not know.
//!
//! | field | value |
//! | --- | --- |
//! | `format` | 1 |
//! | `generation` | its name |
//! | `database_id` | 32 hex digits |
//! | `writer_id` | 16 hex digits |
//! | `parent` | null, or `generation` and `txid` (16 hex digits) |
//! | `host`, `path` | strings |
//! | `started` | a time in RFC 3339, UTC, with microseconds |
//! | `reason` | a sentence |

use crate::error::{Error, Result};
use crate::format::container::Parent;
use crate::format::ids::{DatabaseId, GenerationId, ObjectHash, Timestamp, Txid, WriterId};
use serde::{Deserialize, Serialize};

/// The version of what a claim holds.
const FORMAT: u32 = 1;

/// What the first object of a generation says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The generation that begins.
    pub generation: GenerationId,
    /// Whose history it is.
    pub database_id: DatabaseId,
    /// The run of the daemon that began it.
    pub writer_id: WriterId,
    /// The generation that it goes on from.
    pub parent: Option<Parent>,
    /// The machine of the database, for messages and for mounts there, which ask the daemon.
    pub host: String,
    /// The path of the database, for the same.
    pub path: String,
    /// When the writer started.
    pub started: Timestamp,
    /// Why a new generation began: a sentence.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    generation: GenerationId,
    database_id: DatabaseId,
    writer_id: WriterId,
    parent: Option<StoredParent>,
    host: String,
    path: String,
    started: String,
    reason: String,
}

#[derive(Serialize, Deserialize)]
struct StoredParent {
    generation: GenerationId,
    txid: Txid,
}

/// All that is certain of a claim of a later version.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

impl Claim {
    /// The stored form; the same value always gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        let stored = Stored {
            format: FORMAT,
            generation: self.generation,
            database_id: self.database_id,
            writer_id: self.writer_id,
            parent: self.parent.map(|parent| StoredParent {
                generation: parent.generation,
                txid: parent.txid,
            }),
            host: self.host.clone(),
            path: self.path.clone(),
            started: self.started.to_string(),
            reason: self.reason.clone(),
        };
        let mut bytes = serde_json::to_vec_pretty(&stored)
            .expect("a struct of strings and numbers is valid JSON");
        bytes.push(b'\n');
        bytes
    }

    /// Parses a claim.
    ///
    /// # Errors
    /// `Corrupt`, and `Invalid` for a later format version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let corrupt = |error| Error::corrupt(format!("claim: {error}"));
        let Version { format } = serde_json::from_slice(bytes).map_err(corrupt)?;
        if format != FORMAT {
            return Err(Error::invalid(format!(
                "claim: format {format} is not {FORMAT}; a later sqlrepl wrote it"
            )));
        }
        let stored: Stored = serde_json::from_slice(bytes).map_err(corrupt)?;
        let started = stored
            .started
            .parse::<jiff::Timestamp>()
            .map(|time| Timestamp::from_micros(time.as_microsecond()))
            .ok()
            .filter(|time| time.to_string() == stored.started)
            .ok_or_else(|| {
                Error::corrupt(format!(
                    "claim: started \"{}\" is not a time such as 2026-11-20T17:45:12.345678Z",
                    stored.started
                ))
            })?;
        Ok(Self {
            generation: stored.generation,
            database_id: stored.database_id,
            writer_id: stored.writer_id,
            parent: stored.parent.map(|parent| Parent {
                generation: parent.generation,
                txid: parent.txid,
            }),
            host: stored.host,
            path: stored.path,
            started,
            reason: stored.reason,
        })
    }

    /// The hash that the first segment of the generation carries.
    pub fn hash(&self) -> ObjectHash {
        ObjectHash(*blake3::hash(&self.encode()).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn claim() -> Claim {
        Claim {
            generation: "00000002-9f3c2a7b".parse().unwrap(),
            database_id: DatabaseId([0xd1; 16]),
            writer_id: WriterId([0xa2; 8]),
            parent: Some(Parent {
                generation: "00000001-00c0ffee".parse().unwrap(),
                txid: Txid::new(12).unwrap(),
            }),
            host: "db1".into(),
            path: "/srv/\"app\"\n.db".into(),
            started: Timestamp::from_micros(1_795_196_712_345_678),
            reason: "the file was replaced".into(),
        }
    }

    #[test]
    fn a_claim_is_stored_in_these_bytes() {
        let expected = r#"{
  "format": 1,
  "generation": "00000002-9f3c2a7b",
  "database_id": "d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1",
  "writer_id": "a2a2a2a2a2a2a2a2",
  "parent": {
    "generation": "00000001-00c0ffee",
    "txid": "000000000000000c"
  },
  "host": "db1",
  "path": "/srv/\"app\"\n.db",
  "started": "2026-11-20T17:45:12.345678Z",
  "reason": "the file was replaced"
}
"#
        .replace("\"app\"\n", "\\\"app\\\"\\n");
        assert_eq!(String::from_utf8(claim().encode()).unwrap(), expected);
    }

    #[test]
    fn a_claim_reads_back_with_and_without_a_parent() {
        let mut claim = claim();
        assert_eq!(Claim::decode(&claim.encode()).unwrap(), claim);
        claim.parent = None;
        assert_eq!(Claim::decode(&claim.encode()).unwrap(), claim);
    }

    #[test]
    fn a_later_format_is_refused_whatever_else_it_says() {
        let error = Claim::decode(b"{\"format\": 2, \"parent\": 7}").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("format 2"), "{error}");
    }

    #[test]
    fn every_truncated_claim_is_an_error() {
        let bytes = claim().encode();
        for length in 0..bytes.len() - 1 {
            let error = Claim::decode(&bytes[..length]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{length}");
        }
    }

    #[test]
    fn another_hash_means_another_claim() {
        let mut other = claim();
        other.reason.push('!');
        assert_ne!(claim().hash(), other.hash());
        assert_eq!(claim().hash(), claim().hash());
    }
}
