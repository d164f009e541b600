//! The fields of SQLite's database header that we need (fileformat2, "The Database Header").
//!
//! | offset | size | field, big-endian                                  |
//! |-------:|-----:|----------------------------------------------------|
//! |      0 |   16 | `SQLite format 3` and a zero byte                  |
//! |     16 |    2 | page size, bytes; 1 is 65536                       |
//! |     18 |    1 | write version: 1 rollback journal, 2 WAL           |
//! |     19 |    1 | read version, likewise                             |
//! |     24 |    4 | file change counter                                |
//! |     28 |    4 | database size, pages                               |
//! |     92 |    4 | change counter for which the size is valid         |
//! |     96 |    4 | version number of the SQLite that wrote last       |

use crate::error::{Error, Result};
use crate::format::ids::PageSize;
use bytes::Bytes;

/// Size of the header, bytes.
pub const DB_HEADER_BYTES: usize = 100;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// The start of page 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DbHeader {
    /// Size of every page.
    pub page_size: PageSize,
    /// Whether the database is in WAL mode.
    pub is_wal: bool,
    /// Size of the database, pages; `None` if whoever wrote last did not set it.
    pub pages: Option<u32>,
    /// The SQLite that wrote last: 3040001 is 3.40.1.
    pub sqlite_version: u32,
}

impl DbHeader {
    /// Reads the header from the first bytes of page 1.
    ///
    /// # Errors
    /// `Invalid` if this is no SQLite database, or an encrypted one.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let be16 = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let be32 = |at: usize| u32::from(be16(at)) << 16 | u32::from(be16(at + 2));
        if bytes.len() < DB_HEADER_BYTES {
            return Err(Error::invalid(format!(
                "not an SQLite database: {} bytes, and the header alone has {DB_HEADER_BYTES}",
                bytes.len()
            )));
        }
        if !bytes.starts_with(MAGIC) {
            return Err(Error::invalid(
                "not an SQLite database, or an encrypted one: \
                 it does not begin with \"SQLite format 3\"",
            ));
        }
        let page_size = match be16(16) {
            1 => 65536,
            bytes => u32::from(bytes),
        };
        Ok(Self {
            page_size: PageSize::new(page_size).ok_or_else(|| {
                Error::invalid(format!(
                    "not an SQLite database: its header says a page has {page_size} bytes"
                ))
            })?,
            is_wal: bytes[18] == 2 && bytes[19] == 2,
            pages: (be32(28) != 0 && be32(24) == be32(92)).then_some(be32(28)),
            sqlite_version: be32(96),
        })
    }

    /// True if the SQLite that wrote last may lose committed pages when two checkpoints race with
    /// a commit that restarts the WAL (the WAL-reset bug, 3.7.0 to 3.51.2; mended in 3.51.3,
    /// 3.50.7 and 3.44.6).
    pub fn has_wal_reset_bug(&self) -> bool {
        let mended = matches!(
            self.sqlite_version,
            3_044_006..=3_044_999 | 3_050_007..=3_050_999 | 3_051_003..
        );
        self.sqlite_version >= 3_007_000 && !mended
    }

    /// [`DbHeader::sqlite_version`] as people write it: `3.40.1`.
    pub fn sqlite_version_text(&self) -> String {
        let version = self.sqlite_version;
        format!(
            "{}.{}.{}",
            version / 1_000_000,
            version / 1000 % 1000,
            version % 1000
        )
    }
}

/// The bytes of a database from `offset` as a moment is served to SQLite: bytes 18 and 19 of page 1
/// say that the journal is a rollback journal. With those of WAL mode SQLite wants a `-wal` and
/// `-shm` that a read-only place cannot hold, and refuses the file (fileformat2, "File format
/// version numbers").
pub fn served(offset: u64, bytes: Bytes) -> Bytes {
    const ROLLBACK: [(u64, u8); 2] = [(18, 1), (19, 1)];
    let end = offset + bytes.len() as u64;
    if offset > ROLLBACK[1].0 || end <= ROLLBACK[0].0 {
        return bytes;
    }
    let mut bytes = bytes.to_vec();
    for (at, byte) in ROLLBACK {
        if (offset..end).contains(&at) {
            bytes[usize::try_from(at - offset).expect("at most 19")] = byte;
        }
    }
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    fn header(page_size: u16, version: u32) -> [u8; DB_HEADER_BYTES] {
        let mut bytes = [0; DB_HEADER_BYTES];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..18].copy_from_slice(&page_size.to_be_bytes());
        bytes[18..20].copy_from_slice(&[2, 2]);
        bytes[28..32].copy_from_slice(&7_u32.to_be_bytes());
        bytes[96..].copy_from_slice(&version.to_be_bytes());
        bytes
    }

    #[test]
    fn the_fields_stand_where_the_file_format_says() {
        let seen = DbHeader::parse(&header(4096, 3_040_001)).unwrap();
        assert_eq!(seen.page_size.get(), 4096);
        assert!(seen.is_wal);
        assert_eq!(seen.pages, Some(7));
        assert_eq!(seen.sqlite_version_text(), "3.40.1");
    }

    #[test]
    fn a_size_that_the_last_writer_did_not_set_is_none() {
        let mut bytes = header(4096, 3_006_000);
        bytes[27] = 1;
        assert_eq!(DbHeader::parse(&bytes).unwrap().pages, None);
    }

    #[test]
    fn a_page_size_of_one_is_65536() {
        let seen = DbHeader::parse(&header(1, 3_040_001)).unwrap();
        assert_eq!(seen.page_size.get(), 65536);
    }

    #[test]
    fn what_is_no_database_is_refused_with_the_reason() {
        let check = |bytes: &[u8], expected: &str| {
            assert_eq!(DbHeader::parse(bytes).unwrap_err().to_string(), expected);
        };
        check(
            b"SQLite",
            "not an SQLite database: 6 bytes, and the header alone has 100",
        );
        check(
            &[0x5a; 100],
            "not an SQLite database, or an encrypted one: \
             it does not begin with \"SQLite format 3\"",
        );
        check(
            &header(1000, 0),
            "not an SQLite database: its header says a page has 1000 bytes",
        );
    }

    #[test]
    fn versions_with_the_wal_reset_bug_are_known() {
        let check = |version: u32, expected: bool| {
            let header = DbHeader::parse(&header(4096, version)).unwrap();
            assert_eq!(header.has_wal_reset_bug(), expected, "{version}");
        };
        check(3_006_023, false);
        check(3_007_000, true);
        check(3_040_001, true);
        check(3_044_005, true);
        check(3_044_006, false);
        check(3_045_000, true);
        check(3_050_006, true);
        check(3_050_007, false);
        check(3_051_000, true);
        check(3_051_002, true);
        check(3_051_003, false);
        check(3_054_001, false);
    }

    #[test]
    fn only_bytes_18_and_19_of_the_file_are_served_as_others() {
        let stored = Bytes::from(vec![7; 64]);
        let mut seen = String::new();
        for (offset, length) in [
            (0, 64),
            (0, 18),
            (0, 19),
            (18, 1),
            (19, 1),
            (19, 9),
            (20, 9),
            (512, 64),
        ] {
            let bytes = served(offset, stored.slice(..length));
            assert_eq!(bytes.len(), length);
            let changed: Vec<u64> = (offset..)
                .zip(bytes.iter())
                .filter(|(_, byte)| **byte != 7)
                .map(|(at, byte)| at * 10 + u64::from(*byte))
                .collect();
            writeln!(seen, "{offset}+{length}: {changed:?}").unwrap();
        }
        let expect = "\
0+64: [181, 191]
0+18: []
0+19: [181]
18+1: [181]
19+1: [191]
19+9: [191]
20+9: []
512+64: []
";
        assert_eq!(seen, expect);
    }
}
