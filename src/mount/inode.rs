//! Inode numbers: made from what they stand for, so that no table of files is kept and one restore
//! point has one number under all its names.
//!
//! | bits | of a restore point | of a directory of `by-time` | of everything else |
//! | --- | --- | --- | --- |
//! | 62..64 | 1 | 0 | 0 |
//! | 61 | slot | 1 | 0 |
//! | 40..61 | of the pair (database, generation) | | 0 |
//! | 28..60 | | number of the database | |
//! | 0..40 | txid | | 8 x number of the database + which of its fixed things |
//! | 0..28 | | [`Period::number`] | |
//!
//! The root has the number 1, and its own fixed things those of database 0.
//!
//! Slots and database numbers are handed out on first sight and never again while mounted: the
//! kernel caches pages by inode, so a number that meant something else before would serve the old
//! pages. Kinds 2 and 3 are free (a moment that lies complete on the local disk is another inode).

use crate::format::ids::{GenerationId, Txid};
use crate::mount::period::Period;
use std::collections::HashMap;

const KIND_SHIFT: u32 = 62;
const SLOT_SHIFT: u32 = 40;
const SLOTS: u64 = 1 << (KIND_SHIFT - SLOT_SHIFT);
const TXIDS: u64 = 1 << SLOT_SHIFT;
const KIND_FIXED: u64 = 0;
const KIND_MOMENT: u64 = 1;
/// Within the fixed kind: a directory of `by-time`.
const BY_TIME: u64 = 1 << 61;
/// Of the fixed things of a database.
const DIRECTORY: u64 = 0;
const LATEST: u64 = 1;
const BY_TXID: u64 = 2;
const ABOUT: u64 = 3;
const STATUS: u64 = 4;
const POINTS: u64 = 5;
const FIXED_THINGS: u64 = 8;

/// The number of a database while mounted, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseNumber(pub u32);

/// An inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode(pub u64);

/// What an inode number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The directory of the databases.
    Root,
    /// The directory of one database.
    Database(DatabaseNumber),
    /// The link to the newest restore point.
    Latest(DatabaseNumber),
    /// `by-time`, or a directory in it.
    ByTime(DatabaseNumber, Period),
    /// `by-txid`.
    ByTxid(DatabaseNumber),
    /// `.sqlrepl` of a database, or of the root.
    About(Option<DatabaseNumber>),
    /// `status.json` in it.
    Status(Option<DatabaseNumber>),
    /// `points.jsonl` in it.
    Points(DatabaseNumber),
    /// One restore point.
    Moment(Slot, Txid),
}

/// The number of a pair (database, generation) while mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u32);

impl Inode {
    /// The root, as FUSE numbers it.
    pub const ROOT: Self = Self(1);

    /// The directory of a database.
    pub fn database(number: DatabaseNumber) -> Self {
        Self::fixed(number.0, DIRECTORY)
    }

    /// The link to a database's newest restore point.
    pub fn latest(number: DatabaseNumber) -> Self {
        Self::fixed(number.0, LATEST)
    }

    /// `by-time` of a database, or a directory in it.
    pub fn by_time(number: DatabaseNumber, period: Period) -> Self {
        Self(BY_TIME | u64::from(number.0) << Period::BITS | u64::from(period.number()))
    }

    /// `by-txid` of a database.
    pub fn by_txid(number: DatabaseNumber) -> Self {
        Self::fixed(number.0, BY_TXID)
    }

    /// `.sqlrepl` of a database, or of the root.
    pub fn about(number: Option<DatabaseNumber>) -> Self {
        Self::fixed(number.map_or(0, |number| number.0), ABOUT)
    }

    /// `status.json` of a database, or of the root.
    pub fn status(number: Option<DatabaseNumber>) -> Self {
        Self::fixed(number.map_or(0, |number| number.0), STATUS)
    }

    /// `points.jsonl` of a database.
    pub fn points(number: DatabaseNumber) -> Self {
        Self::fixed(number.0, POINTS)
    }

    fn fixed(number: u32, thing: u64) -> Self {
        Self(u64::from(number) * FIXED_THINGS + thing)
    }

    /// A restore point; `None` for a txid of 2^40 and more, which no number is left for.
    pub fn moment(slot: Slot, txid: Txid) -> Option<Self> {
        (txid.get() < TXIDS)
            .then(|| Self(KIND_MOMENT << KIND_SHIFT | u64::from(slot.0) << SLOT_SHIFT | txid.get()))
    }

    /// What the number stands for; `None` for one that [`Inode`] never makes.
    pub fn meaning(self) -> Option<Meaning> {
        let low = self.0 & (TXIDS - 1);
        let slot = (self.0 >> SLOT_SHIFT) & (SLOTS - 1);
        match (self.0 >> KIND_SHIFT, slot) {
            (KIND_FIXED, 0) => fixed_meaning(low),
            (KIND_FIXED, _) => by_time_meaning(self.0.checked_sub(BY_TIME)?),
            (KIND_MOMENT, slot) => {
                let slot = u32::try_from(slot).expect("a slot has 22 bits");
                Txid::new(low).map(|txid| Meaning::Moment(Slot(slot), txid))
            }
            _ => None,
        }
    }
}

fn fixed_meaning(low: u64) -> Option<Meaning> {
    let number = u32::try_from(low / FIXED_THINGS).ok()?;
    let database = (number > 0).then_some(DatabaseNumber(number));
    match (low % FIXED_THINGS, database) {
        (LATEST, None) => Some(Meaning::Root),
        (ABOUT, _) => Some(Meaning::About(database)),
        (STATUS, _) => Some(Meaning::Status(database)),
        (DIRECTORY, Some(number)) => Some(Meaning::Database(number)),
        (LATEST, Some(number)) => Some(Meaning::Latest(number)),
        (BY_TXID, Some(number)) => Some(Meaning::ByTxid(number)),
        (POINTS, Some(number)) => Some(Meaning::Points(number)),
        _ => None,
    }
}

fn by_time_meaning(rest: u64) -> Option<Meaning> {
    let number = u32::try_from(rest >> Period::BITS)
        .ok()
        .filter(|&n| n > 0)?;
    let period = rest & ((1 << Period::BITS) - 1);
    let period = Period::from_number(u32::try_from(period).ok()?)?;
    Some(Meaning::ByTime(DatabaseNumber(number), period))
}

const _: () = assert!(
    Inode::ROOT.0 == LATEST,
    "the root is where database 0 would have a link"
);

/// The slots handed out so far.
#[derive(Debug, Default)]
pub struct Slots {
    pairs: Vec<(DatabaseNumber, GenerationId)>,
    by_pair: HashMap<(DatabaseNumber, GenerationId), Slot>,
}

impl Slots {
    /// The slot of a pair, handed out now if it has none; `None` when all 2^22 are taken.
    pub fn of(&mut self, database: DatabaseNumber, generation: GenerationId) -> Option<Slot> {
        let pair = (database, generation);
        if let Some(&slot) = self.by_pair.get(&pair) {
            return Some(slot);
        }
        let slot = u32::try_from(self.pairs.len())
            .ok()
            .filter(|&n| u64::from(n) < SLOTS)
            .map(Slot)?;
        self.pairs.push(pair);
        self.by_pair.insert(pair, slot);
        Some(slot)
    }

    /// The pair that a slot was handed out for.
    pub fn pair(&self, slot: Slot) -> Option<(DatabaseNumber, GenerationId)> {
        self.pairs.get(slot.0 as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::Timestamp;

    fn generation(ordinal: u32) -> GenerationId {
        GenerationId { ordinal, random: 7 }
    }

    #[test]
    fn a_number_stands_for_what_it_was_made_from() {
        let mut slots = Slots::default();
        slots.of(DatabaseNumber(1), generation(1)).unwrap();
        let slot = slots.of(DatabaseNumber(1), generation(2)).unwrap();
        let txid = Txid::new(TXIDS - 1).unwrap();
        let last = DatabaseNumber(u32::MAX);
        let hour = Period::EVER.around(Timestamp::from_micros(i64::MAX));
        let hour = hour.within("12").and_then(|month| month.within("31"));
        let hour = hour.and_then(|day| day.within("23")).unwrap();
        for (inode, meaning) in [
            (Inode::ROOT, Meaning::Root),
            (Inode::database(last), Meaning::Database(last)),
            (Inode::latest(last), Meaning::Latest(last)),
            (Inode::by_txid(last), Meaning::ByTxid(last)),
            (Inode::points(last), Meaning::Points(last)),
            (Inode::about(Some(last)), Meaning::About(Some(last))),
            (Inode::about(None), Meaning::About(None)),
            (Inode::status(Some(last)), Meaning::Status(Some(last))),
            (Inode::status(None), Meaning::Status(None)),
            (Inode::by_time(last, hour), Meaning::ByTime(last, hour)),
            (
                Inode::by_time(last, Period::EVER),
                Meaning::ByTime(last, Period::EVER),
            ),
            (
                Inode::moment(slot, Txid::FIRST).unwrap(),
                Meaning::Moment(slot, Txid::FIRST),
            ),
            (
                Inode::moment(slot, txid).unwrap(),
                Meaning::Moment(slot, txid),
            ),
        ] {
            assert_eq!(inode.meaning(), Some(meaning), "{inode:?}");
        }
    }

    #[test]
    fn a_number_that_was_never_made_means_nothing() {
        let empty_txid = KIND_MOMENT << KIND_SHIFT;
        for number in [
            0,
            2,
            5,
            8 + 6,
            1 << SLOT_SHIFT,
            BY_TIME,
            BY_TIME | 1 << Period::BITS | 1,
            BY_TIME | 1 << 60,
            empty_txid,
            2 << KIND_SHIFT,
            u64::MAX,
        ] {
            assert_eq!(Inode(number).meaning(), None, "{number:#x}");
        }
    }

    #[test]
    fn numbers_of_restore_points_are_positive_as_directory_offsets() {
        let mut slots = Slots {
            pairs: vec![(DatabaseNumber(1), generation(1)); (SLOTS - 1) as usize],
            ..Slots::default()
        };
        let slot = slots.of(DatabaseNumber(2), generation(1)).unwrap();
        let inode = Inode::moment(slot, Txid::new(TXIDS - 1).unwrap()).unwrap();
        assert!(i64::try_from(inode.0).is_ok());
        let by_time = Inode::by_time(DatabaseNumber(u32::MAX), Period::EVER);
        assert!(i64::try_from(by_time.0).is_ok());
        assert_eq!(slots.of(DatabaseNumber(3), generation(1)), None);
        assert_eq!(slots.of(DatabaseNumber(2), generation(1)), Some(slot));
    }

    #[test]
    fn a_slot_belongs_to_one_generation_of_one_database_for_ever() {
        let mut slots = Slots::default();
        let pairs = [(1, 1), (1, 2), (2, 1)];
        let given: Vec<Slot> = pairs
            .iter()
            .map(|&(d, g)| slots.of(DatabaseNumber(d), generation(g)).unwrap())
            .collect();
        assert!(given[0] != given[1] && given[0] != given[2] && given[1] != given[2]);
        for (&(d, g), &slot) in pairs.iter().zip(&given) {
            let pair = (DatabaseNumber(d), generation(g));
            assert_eq!(slots.of(pair.0, pair.1), Some(slot));
            assert_eq!(slots.pair(slot), Some(pair));
        }
    }

    #[test]
    fn a_txid_of_more_than_40_bits_has_no_number() {
        let slot = Slots::default()
            .of(DatabaseNumber(1), generation(1))
            .unwrap();
        assert_eq!(Inode::moment(slot, Txid::new(TXIDS).unwrap()), None);
    }
}
