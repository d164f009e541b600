//! The names of things: pages, transactions, generations, times. Parsed once, ordered, printed.
//!
//! Every type here prints in the form that object keys use, and parses what it prints.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, num::NonZeroU32, str::FromStr};

/// The number of a page, counted from 1 as SQLite does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pgno(NonZeroU32);

impl Pgno {
    /// The first page, with the database header.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// `None` for 0, which is no page.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number, from 1.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// The size of a page in bytes: a power of two from 512 to 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PageSize(u32);

impl PageSize {
    /// `None` unless `bytes` is a power of two from 512 to 65536.
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= 65536 {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// The size in bytes, as SQLite's headers hold it.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The page around byte 2^30, in which SQLite stores nothing (fileformat2, "The Lock-Byte
    /// Page").
    pub const fn lock_byte_page(self) -> u32 {
        0x4000_0000 / self.0 + 1
    }
}

impl TryFrom<u32> for PageSize {
    type Error = Error;
    fn try_from(bytes: u32) -> Result<Self> {
        Self::new(bytes).ok_or_else(|| Error::invalid(format!("{bytes} is not a page size")))
    }
}

impl From<PageSize> for u32 {
    fn from(size: PageSize) -> u32 {
        size.0
    }
}

/// Our number for a committed transaction: from 2, without gaps within a generation; 1 is the
/// state that the generation starts from. Prints as 16 hex digits and parses from up to 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid(u64);

impl Txid {
    /// The state from which a generation starts.
    pub const FIRST: Self = Self(1);

    /// The largest: it has a next number, which is no transaction.
    pub const MAX: Self = Self(u64::MAX - 1);

    /// `None` for 0, which is no transaction, and above [`Self::MAX`].
    pub const fn new(number: u64) -> Option<Self> {
        match number {
            0 | u64::MAX => None,
            number => Some(Self(number)),
        }
    }

    /// The number, from 1.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The transaction after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Txid {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid(format!("\"{text}\" is not a txid of 1 to 16 hex digits"));
        if text.is_empty() || text.len() > 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        u64::from_str_radix(text, 16)
            .ok()
            .and_then(Self::new)
            .ok_or_else(wrong)
    }
}

/// The name of a generation: 8 hex digits of ordinal, `-`, 8 random hex digits. The derived order,
/// by ordinal and then by the random part, is that of the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationId {
    /// One more than the highest that was listed when the generation began.
    pub ordinal: u32,
    /// Makes two generations with the same ordinal two.
    pub random: u32,
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:08x}", self.ordinal, self.random)
    }
}

impl FromStr for GenerationId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let part = |part: Option<&str>| {
            part.filter(|p| p.len() == 8 && is_lower_hex(p))
                .and_then(|p| u32::from_str_radix(p, 16).ok())
        };
        let mut parts = text.splitn(2, '-');
        match (part(parts.next()), part(parts.next())) {
            (Some(ordinal), Some(random)) => Ok(Self { ordinal, random }),
            _ => Err(Error::invalid(format!(
                "\"{text}\" is not a generation such as 00000001-9f3c2a7b"
            ))),
        }
    }
}

/// True if `text` is made of the digits that our names use, and nothing else.
pub fn is_lower_hex(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A moment in UTC: microseconds since 1970-01-01, years 1 to 9999.
///
/// Prints as RFC 3339 with microseconds, `2026-11-20T17:45:12.345678Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From microseconds since 1970-01-01 UTC; what lies outside the years 1 to 9999 is cut to
    /// them.
    pub fn from_micros(micros: i64) -> Self {
        // 0001-01-01 and the last microsecond of 9999.
        Self(micros.clamp(-62_135_596_800_000_000, 253_402_300_799_999_999))
    }

    /// Microseconds since 1970-01-01 UTC.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The form in object keys, `20261120T174512.345678Z`.
    pub fn compact(self) -> String {
        self.civil().strftime("%Y%m%dT%H%M%S.%6fZ").to_string()
    }

    /// The form in file names, `2026-11-20T17-45-12.345678Z`: no colons, which scp, `docker -v`
    /// and PATH split on.
    pub fn file_name(self) -> String {
        self.civil().strftime("%Y-%m-%dT%H-%M-%S.%6fZ").to_string()
    }

    /// Parses what [`Timestamp::compact`] prints, and nothing else.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn parse_compact(text: &str) -> Result<Self> {
        jiff::civil::DateTime::strptime("%Y%m%dT%H%M%S.%6fZ", text)
            .ok()
            .map(Self::from_civil)
            .filter(|time| time.compact() == text)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "\"{text}\" is not a time such as 20261120T174512.345678Z"
                ))
            })
    }

    /// From a calendar's date and time of day in UTC, cut to microseconds.
    pub fn from_civil(civil: jiff::civil::DateTime) -> Self {
        let micros = civil.duration_since(EPOCH).as_micros();
        Self::from_micros(i64::try_from(micros).expect("a calendar of 9,999 years fits"))
    }

    /// The calendar's date and time of day in UTC. By civil arithmetic: jiff's own timestamps end
    /// 26 hours before the year 9999 does.
    pub fn civil(self) -> jiff::civil::DateTime {
        EPOCH
            .checked_add(jiff::SignedDuration::from_micros(self.0))
            .expect("the constructor keeps to the years that a calendar has")
    }
}

/// 1970-01-01 in UTC.
const EPOCH: jiff::civil::DateTime = jiff::civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.civil().strftime("%Y-%m-%dT%H:%M:%S.%6fZ"))
    }
}

/// A generation and a transaction in it that a user can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RestorePoint {
    /// The history that the transaction belongs to.
    pub generation: GenerationId,
    /// The transaction.
    pub txid: Txid,
    /// When it was seen committed.
    pub time: Timestamp,
    /// The size of the database after it, in pages.
    pub pages: u32,
}

/// Where SQLite's WAL stood behind a transaction: what proves that a later WAL goes on from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WalEnd {
    /// Salt-1 and salt-2 of the WAL header, as numbers (big-endian in the file).
    pub salts: [u32; 2],
    /// The number of the last frame, from 1; 0 is an empty WAL.
    pub frame: u32,
    /// The running checksum behind that frame.
    pub checksum: [u32; 2],
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                if text.len() != $bytes * 2 || !is_lower_hex(text) {
                    return Err(Error::invalid(format!(
                        "\"{text}\" is not {} hex digits", $bytes * 2
                    )));
                }
                let mut id = [0; $bytes];
                for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
                    let digits = std::str::from_utf8(digits).expect("hex digits are ASCII");
                    *byte = u8::from_str_radix(digits, 16).expect("checked to be hex digits");
                }
                Ok(Self(id))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_as_text!(Txid);
serde_as_text!(GenerationId);

hex_id!(
    /// Which database a replica holds: random, drawn when its first replica began.
    DatabaseId, 16
);
hex_id!(
    /// Which run of a daemon wrote an object: random, drawn at each start.
    WriterId, 8
);
hex_id!(
    /// Which object: drawn by its writer, unique within a replica. Page maps refer to it.
    ObjectId, 8
);
hex_id!(
    /// BLAKE3 of an object's bytes from behind the header at its start up to the hash field of its
    /// footer (which holds the header once more); of a claim, all its bytes.
    ObjectHash, 32
);
hex_id!(
    /// The first 128 bits of BLAKE3 of a page.
    PageHash, 16
);

impl ObjectHash {
    /// The first 32 bits, as object keys carry them: 8 hex digits.
    pub fn hash8(&self) -> u32 {
        u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }
}

impl PageHash {
    /// The hash of a page's bytes.
    pub fn of(page: &[u8]) -> Self {
        let mut hash = [0; 16];
        hash.copy_from_slice(&blake3::hash(page).as_bytes()[..16]);
        Self(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_prints_in_three_forms_and_the_compact_one_parses() {
        let time = Timestamp::from_micros(1_795_196_712_345_678);
        assert_eq!(time.to_string(), "2026-11-20T17:45:12.345678Z");
        assert_eq!(time.compact(), "20261120T174512.345678Z");
        assert_eq!(time.file_name(), "2026-11-20T17-45-12.345678Z");
        assert_eq!(
            Timestamp::parse_compact("20261120T174512.345678Z").unwrap(),
            time
        );
        for wrong in [
            "",
            "20261120T174512Z",
            "20261320T174512.345678Z",
            "20261120T174512.3456Z",
        ] {
            assert!(Timestamp::parse_compact(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_outside_the_calendar_is_cut_to_it() {
        assert_eq!(
            Timestamp::from_micros(i64::MAX).to_string(),
            "9999-12-31T23:59:59.999999Z"
        );
        assert_eq!(
            Timestamp::from_micros(i64::MIN).to_string(),
            "0001-01-01T00:00:00.000000Z"
        );
    }

    #[test]
    fn a_generation_has_two_parts_of_eight_lower_case_digits() {
        let id: GenerationId = "0000000a-9f3c2a7b".parse().unwrap();
        assert_eq!((id.ordinal, id.random), (10, 0x9f3c_2a7b));
        assert_eq!(id.to_string(), "0000000a-9f3c2a7b");
        for wrong in [
            "",
            "0000000a",
            "0000000a-",
            "a-b",
            "0000000A-9f3c2a7b",
            "0000000a-9f3c2a7b0",
        ] {
            assert!(wrong.parse::<GenerationId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_largest_txid_has_a_next() {
        let largest: Txid = "fffffffffffffffe".parse().unwrap();
        assert_eq!(largest, Txid::MAX);
        assert!(largest < largest.next());
    }

    #[test]
    fn a_txid_may_be_shorter_than_it_prints() {
        assert_eq!("c".parse::<Txid>().unwrap().to_string(), "000000000000000c");
        for wrong in ["", "0", "g", "00000000000000001", "+1", "ffffffffffffffff"] {
            assert!(wrong.parse::<Txid>().is_err(), "{wrong}");
        }
    }
}
