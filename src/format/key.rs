//! Object keys and what they mean. The only file that knows how keys are spelled.
//!
//! ```text
//! generations/<generation>/claim
//! generations/<generation>/pages/<since>-<first pgno>-<hash8>.pages
//! generations/<generation>/snapshots/<txid>-<time>-<hash8>.snapshot
//! generations/<generation>/wal/0/<first txid>.wal
//! generations/<generation>/wal/<level>/<first>-<last>-<time>-<hash8>.wal
//! ```
//!
//! | field | spelling |
//! | --- | --- |
//! | generation | 8 hex digits of ordinal, `-`, 8 random hex digits |
//! | txid, since, first, last | 16 hex digits |
//! | pgno, hash8 | 8 hex digits |
//! | level | 1 hex digit, 1 to f for merged segments |
//! | time | `20261120T174512.345678Z`, of the last txid |
//!
//! Hex digits are lower case. A key parses only if it is exactly what [`Key`] prints: what does not
//! parse may belong to somebody else, or to a later version of ours, and is never deleted.

use crate::format::ids::{GenerationId, Pgno, Timestamp, Txid, is_lower_hex};
use std::fmt;

/// The folder of all generations, as it begins every key.
pub const GENERATIONS: &str = "generations/";

/// The highest level that a merged segment can have: its key has one hex digit for it.
pub const MAX_LEVEL: u8 = 15;

/// A key below a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The history that the object belongs to.
    pub generation: GenerationId,
    /// Which of its objects.
    pub object: ObjectKey,
}

/// The part of a key below its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// `claim`
    Claim,
    /// `pages/<since>-<first pgno>-<hash8>.pages`
    Part {
        /// Every page of the snapshot is at least as new as this.
        since: Txid,
        /// The first page in the part.
        first: Pgno,
        /// The first 32 bits of the object's hash.
        hash8: u32,
    },
    /// `snapshots/<txid>-<time>-<hash8>.snapshot`
    Snapshot {
        /// The transaction whose state it is.
        txid: Txid,
        /// When that was committed.
        time: Timestamp,
        /// The first 32 bits of the object's hash.
        hash8: u32,
    },
    /// `wal/0/<first txid>.wal`
    Upload {
        /// The first transaction in it; the last one stands in its footer.
        first: Txid,
    },
    /// `wal/<level>/<first>-<last>-<time>-<hash8>.wal`, level 1 to 15
    Merged {
        /// From 1 to [`MAX_LEVEL`].
        level: u8,
        /// The first transaction in it.
        first: Txid,
        /// The last transaction in it.
        last: Txid,
        /// When the last one was committed.
        time: Timestamp,
        /// The first 32 bits of the object's hash.
        hash8: u32,
    },
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", generation_prefix(self.generation), self.object)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Claim => f.write_str("claim"),
            Self::Part {
                since,
                first,
                hash8,
            } => write!(f, "pages/{since}-{:08x}-{hash8:08x}.pages", first.get()),
            Self::Snapshot { txid, time, hash8 } => {
                write!(
                    f,
                    "snapshots/{txid}-{}-{hash8:08x}.snapshot",
                    time.compact()
                )
            }
            Self::Upload { first } => write!(f, "wal/0/{first}.wal"),
            Self::Merged {
                level,
                first,
                last,
                time,
                hash8,
            } => write!(
                f,
                "wal/{level:x}/{first}-{last}-{}-{hash8:08x}.wal",
                time.compact()
            ),
        }
    }
}

impl Key {
    /// What a key means, or `None`: then it is not ours and is never deleted.
    pub fn parse(text: &str) -> Option<Self> {
        let (generation, object) = text.strip_prefix(GENERATIONS)?.split_once('/')?;
        Some(Self {
            generation: generation.parse().ok()?,
            object: ObjectKey::parse(object)?,
        })
    }
}

impl ObjectKey {
    /// What the part of a key below its generation means.
    pub fn parse(text: &str) -> Option<Self> {
        let Some((folder, name)) = text.split_once('/') else {
            return (text == "claim").then_some(Self::Claim);
        };
        match folder {
            "pages" => {
                let [since, first, hash8] = fields(name.strip_suffix(".pages")?)?;
                Some(Self::Part {
                    since: txid(since)?,
                    first: Pgno::new(hex32(first)?)?,
                    hash8: hex32(hash8)?,
                })
            }
            "snapshots" => {
                let [at, time, hash8] = fields(name.strip_suffix(".snapshot")?)?;
                Some(Self::Snapshot {
                    txid: txid(at)?,
                    time: Timestamp::parse_compact(time).ok()?,
                    hash8: hex32(hash8)?,
                })
            }
            "wal" => parse_segment(name),
            _ => None,
        }
    }
}

/// Parses `<level>/<name>.wal`.
fn parse_segment(text: &str) -> Option<ObjectKey> {
    let (level, name) = text.split_once('/')?;
    let name = name.strip_suffix(".wal")?;
    if level == "0" {
        return Some(ObjectKey::Upload { first: txid(name)? });
    }
    if level.len() != 1 || !is_lower_hex(level) {
        return None;
    }
    let [first, last, time, hash8] = fields(name)?;
    let (first, last) = (txid(first)?, txid(last)?);
    // A range that ends before it begins covers nothing; nobody writes it.
    (first <= last).then_some(())?;
    Some(ObjectKey::Merged {
        level: u8::from_str_radix(level, 16).ok()?,
        first,
        last,
        time: Timestamp::parse_compact(time).ok()?,
        hash8: hex32(hash8)?,
    })
}

/// Exactly `N` fields with `-` between them; none of ours has one inside.
fn fields<const N: usize>(text: &str) -> Option<[&str; N]> {
    let mut parts = text.split('-');
    let mut fields = [""; N];
    for field in &mut fields {
        *field = parts.next()?;
    }
    parts.next().is_none().then_some(fields)
}

/// Sixteen digits; `Txid` itself parses shorter ones, which users may write but keys never hold.
fn txid(text: &str) -> Option<Txid> {
    (text.len() == 16 && is_lower_hex(text)).then_some(())?;
    text.parse().ok()
}

fn hex32(text: &str) -> Option<u32> {
    (text.len() == 8 && is_lower_hex(text)).then_some(())?;
    u32::from_str_radix(text, 16).ok()
}

/// Where the objects of a generation lie, with `/` at the end.
pub fn generation_prefix(generation: GenerationId) -> String {
    format!("{GENERATIONS}{generation}/")
}

/// Where the segments of a generation lie, of all levels, with `/` at the end.
pub fn segments_prefix(generation: GenerationId) -> String {
    format!("{}wal/", generation_prefix(generation))
}

/// Where the snapshots of a generation lie, with `/` at the end.
pub fn snapshots_prefix(generation: GenerationId) -> String {
    format!("{}snapshots/", generation_prefix(generation))
}

/// Says whether another tool's objects lie in a path, and names one.
///
/// `names` are keys or folders (with `/` at the end) relative to the path: what
/// `list_folder("")` gives, and what `list_folder("generations/")` gives with `generations/` before
/// it. Known are the layouts of Litestream: `ltx/<level>/` and `0000/` to `0009/` of 0.5, and
/// `generations/` with names of 16 digits of 0.3, which deletes what it does not know there.
pub fn foreign<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names.into_iter().find(|name| {
        let mut parts = name.split('/');
        // Only a folder proves something: what follows its `/` may be empty, but is there.
        match (parts.next(), parts.next(), parts.next()) {
            (Some("generations"), Some(id), Some(_)) => id.len() == 16 && is_lower_hex(id),
            (Some(folder), Some(_), _) => folder == "ltx" || is_level_of_litestream(folder),
            _ => false,
        }
    })
}

/// `0000` to `0009`: not any four digits, which may be a year.
fn is_level_of_litestream(folder: &str) -> bool {
    matches!(folder.as_bytes(), [b'0', b'0', b'0', digit] if digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GENERATION: &str = "generations/0000000a-9f3c2a7b/";

    #[track_caller]
    fn check(text: &str, expect: &str) {
        let object = Key::parse(text).map(|key| key.object);
        assert_eq!(format!("{object:?}"), expect, "{text}");
    }

    fn keys() -> impl Strategy<Value = Key> {
        let txid = (1..u64::MAX).prop_map(|n| Txid::new(n).unwrap());
        let time = any::<i64>().prop_map(Timestamp::from_micros);
        let object = prop_oneof![
            Just(ObjectKey::Claim),
            (txid.clone(), 1_u32.., any::<u32>()).prop_map(|(since, first, hash8)| {
                let first = Pgno::new(first).unwrap();
                ObjectKey::Part {
                    since,
                    first,
                    hash8,
                }
            }),
            (txid.clone(), time.clone(), any::<u32>())
                .prop_map(|(txid, time, hash8)| ObjectKey::Snapshot { txid, time, hash8 }),
            txid.clone().prop_map(|first| ObjectKey::Upload { first }),
            (1..=MAX_LEVEL, txid.clone(), txid, time, any::<u32>()).prop_map(
                |(level, a, b, time, hash8)| ObjectKey::Merged {
                    level,
                    first: a.min(b),
                    last: a.max(b),
                    time,
                    hash8,
                }
            ),
        ];
        (any::<u32>(), any::<u32>(), object).prop_map(|(ordinal, random, object)| Key {
            generation: GenerationId { ordinal, random },
            object,
        })
    }

    proptest! {
        #[test]
        fn every_key_parses_to_what_it_was_printed_from(key in keys()) {
            prop_assert_eq!(Key::parse(&key.to_string()), Some(key));
        }

        #[test]
        fn what_parses_is_spelled_as_it_prints(key in keys(), at in any::<prop::sample::Index>(),
                                               put in "[0-9a-fA-FT/.+_ -]{0,2}") {
            let mut text = key.to_string();
            let at = at.index(text.len());
            text.replace_range(at..at + 1, &put);
            if let Some(parsed) = Key::parse(&text) {
                prop_assert_eq!(parsed.to_string(), text);
            }
        }

        #[test]
        fn no_text_is_too_strange_to_be_refused(text in "(generations/)?\\PC{0,60}") {
            if let Some(parsed) = Key::parse(&text) {
                prop_assert_eq!(parsed.to_string(), text);
            }
        }
    }

    #[test]
    fn keys_are_spelled_as_the_format_says() {
        let id = |text: &str| format!("{GENERATION}{text}");
        check(&id("claim"), "Some(Claim)");
        check(
            &id("pages/0000000000000001-00000041-0badcafe.pages"),
            "Some(Part { since: Txid(1), first: Pgno(65), hash8: 195939070 })",
        );
        check(
            &id("snapshots/000000000000000c-20261120T174512.345678Z-00000001.snapshot"),
            "Some(Snapshot { txid: Txid(12), time: Timestamp(1795196712345678), hash8: 1 })",
        );
        check(
            &id("wal/0/0000000000000002.wal"),
            "Some(Upload { first: Txid(2) })",
        );
        check(
            &id("wal/f/0000000000000002-0000000000000041-20261120T174512.345678Z-00000001.wal"),
            "Some(Merged { level: 15, first: Txid(2), last: Txid(65), \
             time: Timestamp(1795196712345678), hash8: 1 })",
        );
    }

    #[test]
    fn what_is_not_exactly_ours_does_not_parse() {
        for below in [
            "",
            "claim/",
            "Claim",
            "claim.tmp",
            "pages/0000000000000001-00000000-0badcafe.pages",
            "pages/0000000000000001-00000041-0badcafe.page",
            "snapshots/c-20261120T174512.345678Z-00000001.snapshot",
            "snapshots/000000000000000c-20261120T174512Z-00000001.snapshot",
            "snapshots/000000000000000c-20261120T174512.345678Z-00000001.snapshot.tmp",
            "snapshots/000000000000000c-20261120T174512.345678Z-00000001-1.snapshot",
            "wal/0000000000000002.wal",
            "wal/0/2.wal",
            "wal/0/0000000000000000.wal",
            "wal/0/000000000000000C.wal",
            "wal/0/0000000000000002-0000000000000041-20261120T174512.345678Z-00000001.wal",
            "wal/01/0000000000000002-0000000000000041-20261120T174512.345678Z-00000001.wal",
            "wal/g/0000000000000002-0000000000000041-20261120T174512.345678Z-00000001.wal",
            "wal/1/0000000000000041-0000000000000002-20261120T174512.345678Z-00000001.wal",
            "wal/1/0000000000000002.wal",
            "other/0000000000000002.wal",
        ] {
            check(&format!("{GENERATION}{below}"), "None");
        }
        check("claim", "None");
        check("/generations/0000000a-9f3c2a7b/claim", "None");
        check("generations/0123456789abcdef/claim", "None");
    }

    #[test]
    fn prefixes_end_where_the_names_begin() {
        let generation = "0000000a-9f3c2a7b".parse().unwrap();
        assert_eq!(generation_prefix(generation), GENERATION);
        assert_eq!(segments_prefix(generation), format!("{GENERATION}wal/"));
    }

    #[test]
    fn another_tools_objects_are_named_and_ours_and_strangers_are_not() {
        #[track_caller]
        fn check(names: &[&str], expect: Option<&str>) {
            assert_eq!(foreign(names.iter().copied()), expect);
        }
        check(&["app.db", "generations/", "ltx/"], Some("ltx/"));
        check(&["0000/"], Some("0000/"));
        check(
            &["0009/0000000000000001-000000000000000c.ltx"],
            Some("0009/0000000000000001-000000000000000c.ltx"),
        );
        check(
            &["generations/0123456789abcdef/"],
            Some("generations/0123456789abcdef/"),
        );
        check(
            &[
                "generations/",
                "generations/0000000a-9f3c2a7b/",
                "2024/",
                "ltx",
                "000a/",
            ],
            None,
        );
        check(&["generations/0123456789abcdef"], None);
        check(&[], None);
    }
}
