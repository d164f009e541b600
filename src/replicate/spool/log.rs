//! The layout of the spool's log files. Pure.
//!
//! A file holds commits of one run: a header, then for each commit its frames, byte for byte as in
//! SQLite's WAL, and a record. What stands behind the last good record was never acknowledged.
//!
//! | offset |  size | field of the header, little-endian                            |
//! |-------:|------:|----------------------------------------------------------------|
//! |      0 |     8 | magic `sqlrspl1`                                              |
//! |      8 |     4 | length n of the JSON                                          |
//! |     12 |     n | [`LogHeader`] as JSON                                         |
//! | 12 + n |     8 | xxh3-64 of all before                                         |
//!
//! | offset | size | field of a record, little-endian                               |
//! |-------:|-----:|-----------------------------------------------------------------|
//! |      0 |    8 | magic `sqlrcmt1`                                               |
//! |      8 |    8 | seq                                                            |
//! |     16 |    8 | time, microseconds since 1970                                  |
//! |     24 |    4 | flags: bit 0 time is an upper bound, bit 1 big-endian checksums |
//! |     28 |    4 | database size, pages                                           |
//! |     32 |    4 | frames                                                         |
//! |     36 |    4 | frames of the WAL before the first of them                     |
//! |     40 |    8 | salt-1, salt-2                                                 |
//! |     48 |    8 | running checksum before the first frame                        |
//! |     56 |    8 | running checksum behind the last frame                         |
//! |     64 |    8 | xxh3-64 of all before                                          |

use crate::error::{Error, Result};
use crate::format::ids::{Timestamp, WalEnd};
use crate::format::wal::WordOrder;
use crate::replicate::spool::{RunInfo, SpooledCommit};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

const HEADER_MAGIC: &[u8; 8] = b"sqlrspl1";
const RECORD_MAGIC: &[u8; 8] = b"sqlrcmt1";
const UPPER_BOUND: u32 = 1;
const BIG_ENDIAN: u32 = 2;

/// Size of a commit record, bytes.
pub(super) const RECORD_BYTES: usize = 72;
/// The largest header that we write or believe, bytes.
pub(super) const HEADER_BYTES_MAX: usize = 64 << 10;

/// What a log file says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogHeader {
    /// The run that all its commits belong to.
    pub run: RunInfo,
    /// The commit before its first one.
    pub after: u64,
    /// The time of that commit.
    pub time: Timestamp,
    /// The database size at that commit, pages.
    pub pages: u32,
    /// Where SQLite's WAL stood behind that commit.
    pub end: WalEnd,
    /// Whether that WAL's checksums read words as big-endian.
    pub big_endian: bool,
}

impl LogHeader {
    /// The stored form.
    pub(super) fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("numbers and strings become JSON");
        let length = u32::try_from(json.len()).expect("a reason is a sentence");
        let mut bytes = HEADER_MAGIC.to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(json);
        let hash = xxh3_64(&bytes);
        bytes.extend(hash.to_le_bytes());
        bytes
    }

    /// Reads a header from the start of a file; also its size in bytes.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, u64)> {
        let wrong = |what: &str| Error::corrupt(format!("its header {what}"));
        if !bytes.starts_with(HEADER_MAGIC) {
            return Err(wrong("does not begin with \"sqlrspl1\""));
        }
        let json_end = bytes
            .get(8..12)
            .map(|field| u32::from_le_bytes(field.try_into().expect("4 bytes")))
            .map(|length| 12 + length as usize)
            .ok_or_else(|| wrong("is cut short"))?;
        let stored = bytes
            .get(json_end..json_end + 8)
            .ok_or_else(|| wrong("is cut short"))?;
        if xxh3_64(&bytes[..json_end]).to_le_bytes() != stored {
            return Err(wrong("has a wrong checksum"));
        }
        serde_json::from_slice(&bytes[12..json_end])
            .map(|header| (header, json_end as u64 + 8))
            .map_err(|e| wrong("is of another version").because(e))
    }
}

/// What stands behind the frames of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The commit.
    pub commit: SpooledCommit,
    /// How the checksums of its frames read words.
    pub order: WordOrder,
    /// The running checksum before its first frame.
    pub start: [u32; 2],
}

impl Record {
    /// Where SQLite's WAL stood before the commit.
    pub(super) fn start(&self) -> WalEnd {
        WalEnd {
            salts: self.commit.end.salts,
            frame: self.commit.end.frame - self.commit.frames,
            checksum: self.start,
        }
    }

    /// The stored form.
    pub(super) fn encode(&self) -> [u8; RECORD_BYTES] {
        let commit = &self.commit;
        let flags = if commit.upper_bound { UPPER_BOUND } else { 0 }
            | if self.order == WordOrder::Big {
                BIG_ENDIAN
            } else {
                0
            };
        let start = self.start();
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(RECORD_MAGIC);
        bytes[8..16].copy_from_slice(&commit.seq.to_le_bytes());
        bytes[16..24].copy_from_slice(&commit.time.micros().to_le_bytes());
        let words = [
            flags,
            commit.pages,
            commit.frames,
            start.frame,
            start.salts[0],
            start.salts[1],
            start.checksum[0],
            start.checksum[1],
            commit.end.checksum[0],
            commit.end.checksum[1],
        ];
        for (field, word) in bytes[24..64].chunks_exact_mut(4).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        let hash = xxh3_64(&bytes[..64]);
        bytes[64..].copy_from_slice(&hash.to_le_bytes());
        bytes
    }

    /// `None` unless this is a whole record with the right checksum.
    pub(super) fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        if !bytes.starts_with(RECORD_MAGIC) || xxh3_64(&bytes[..64]) != long(64) {
            return None;
        }
        Some(Self {
            commit: SpooledCommit {
                seq: long(8),
                time: Timestamp::from_micros(long(16) as i64),
                upper_bound: word(24) & UPPER_BOUND != 0,
                pages: word(28),
                frames: word(32),
                end: WalEnd {
                    salts: [word(40), word(44)],
                    frame: word(36).checked_add(word(32))?,
                    checksum: [word(56), word(60)],
                },
            },
            order: if word(24) & BIG_ENDIAN == 0 {
                WordOrder::Little
            } else {
                WordOrder::Big
            },
            start: [word(48), word(52)],
        })
    }
}
