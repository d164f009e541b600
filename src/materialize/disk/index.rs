//! What lies where in a disk cache, and what goes when it is full. Pure.
//!
//! Pieces lie behind each other in *segments*, numbered files that are only appended to. The oldest
//! segment goes as a whole; what was used since it was written is carried over to the newest one
//! first, up to half of a segment (CLOCK: a second chance). So the order of eviction needs no write
//! when something is read, and no file is ever changed in its middle.

use std::collections::{BTreeMap, HashMap};

/// What the directory and the lock take, bytes, and what a segment's two files take at least.
const FIXED_BYTES: u64 = 64 << 10;
/// Files take whole blocks of the file system, bytes.
const FILE_BLOCK_BYTES: u64 = 4096;
/// How many segments a full cache has, about.
const SEGMENTS: u64 = 32;
const SEGMENT_BYTES_MIN: u64 = 1 << 20;
const SEGMENT_BYTES_MAX: u64 = 256 << 20;
/// One piece for each so many bytes of the cache at most, which bounds its memory: a piece takes
/// about 40 bytes of it. Most are larger: a block is up to 64 KiB of pages, compressed.
const PIECE_BYTES: u64 = 16 << 10;
/// The least size of a cache, bytes.
pub(crate) const CACHE_BYTES_MIN: u64 = 16 << 20;

/// In the data of a segment, before each piece: its checksum, bytes.
pub(super) const SUM_BYTES: u64 = 8;
/// In the list of a segment, for each piece, bytes.
pub(super) const LINE_BYTES: u64 = 24;

/// Where a piece lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    /// Of its checksum, which the piece follows.
    pub(super) offset: u32,
    /// Bytes, without the checksum.
    pub(super) length: u32,
}

/// What is to be done before a piece is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: it is too large to be kept.
    Refuse,
    /// Carry these over, oldest first, then delete the files of this segment and ask again.
    Evict(u32, Vec<(u64, Place)>),
    /// Write.
    Write,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    place: Place,
    is_used: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    /// Sizes of its two files, bytes.
    data: u64,
    list: u64,
}

/// All pieces of a cache.
#[derive(Debug)]
pub(super) struct Index {
    entries: HashMap<u64, Entry>,
    /// By number: the oldest one first.
    segments: BTreeMap<u32, Segment>,
    capacity: u64,
    segment_bytes: u64,
}

impl Index {
    /// An empty cache of at most `capacity` bytes.
    pub(super) fn new(capacity: u64) -> Self {
        let segment_bytes = capacity / SEGMENTS;
        Self {
            entries: HashMap::new(),
            segments: BTreeMap::new(),
            capacity,
            segment_bytes: segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
        }
    }

    /// Adds a segment that was found, with the sizes of its files and what its list says. A line
    /// that points behind the end of the data counts for nothing.
    pub(super) fn found(
        &mut self,
        number: u32,
        data: u64,
        list: u64,
        lines: impl IntoIterator<Item = (u64, u32, u32)>,
    ) {
        self.segments.insert(number, Segment { data, list });
        for (key, offset, length) in lines {
            if u64::from(offset) + SUM_BYTES + u64::from(length) <= data {
                let place = Place {
                    segment: number,
                    offset,
                    length,
                };
                let is_used = false;
                self.entries.insert(key, Entry { place, is_used });
            }
        }
    }

    /// Where a piece lies.
    pub(super) fn find(&mut self, key: u64) -> Option<Place> {
        let entry = self.entries.get_mut(&key)?;
        entry.is_used = true;
        Some(entry.place)
    }

    /// True if a piece is there.
    pub(super) fn has(&self, key: u64) -> bool {
        self.entries.contains_key(&key)
    }

    /// Forgets a piece, if it still lies there: its bytes are wrong.
    pub(super) fn forget(&mut self, key: u64, place: Place) {
        if self.entries.get(&key).is_some_and(|e| e.place == place) {
            self.entries.remove(&key);
        }
    }

    /// What to do before a piece of so many bytes is written; with 0, what to do at the start, when
    /// the cache may have become smaller.
    pub(super) fn before(&self, length: usize) -> Step {
        let cost = SUM_BYTES + LINE_BYTES + length as u64;
        if cost > self.segment_bytes / 2 {
            return Step::Refuse;
        }
        // Room for what the next eviction carries over, while its segment still stands; and for the
        // blocks of the file system that a new segment begins.
        let room = self.segment_bytes + 4 * FILE_BLOCK_BYTES;
        let is_full = self.bytes() + cost + room > self.capacity
            || self.entries.len() as u64 >= self.pieces_max();
        match self.segments.first_key_value() {
            Some((&oldest, _)) if is_full => Step::Evict(oldest, self.worth_keeping(oldest)),
            _ => Step::Write,
        }
    }

    /// What of the oldest segment was used since it was written, up to half of a segment.
    fn worth_keeping(&self, oldest: u32) -> Vec<(u64, Place)> {
        let in_it = self.entries.iter();
        let in_it = in_it.filter(|(_, entry)| entry.place.segment == oldest && entry.is_used);
        let mut kept: Vec<_> = in_it.map(|(key, entry)| (*key, entry.place)).collect();
        kept.sort_unstable_by_key(|(_, place)| place.offset);
        let mut bytes = 0;
        kept.retain(|(_, place)| {
            bytes += SUM_BYTES + LINE_BYTES + u64::from(place.length);
            bytes <= self.segment_bytes / 2
        });
        // Nothing can be carried over from the segment that it would go to.
        if self.segments.len() == 1 {
            kept.clear();
        }
        kept
    }

    /// Where to write a piece, behind all that was written before.
    pub(super) fn next(&self, length: usize) -> Place {
        let cost = SUM_BYTES + length as u64;
        let length = u32::try_from(length).expect("a piece is smaller than a segment");
        match self.segments.last_key_value() {
            Some((&segment, last))
                if last.data + cost <= self.segment_bytes
                    && last.list < self.pieces_max() / SEGMENTS * LINE_BYTES =>
            {
                Place {
                    segment,
                    offset: u32::try_from(last.data).expect("a segment is at most 256 MiB"),
                    length,
                }
            }
            last => Place {
                segment: last.map_or(0, |(number, _)| number + 1),
                offset: 0,
                length,
            },
        }
    }

    /// Where the line of that piece goes in the list of its segment, bytes.
    pub(super) fn next_line(&self, place: Place) -> u64 {
        self.segments.get(&place.segment).map_or(0, |s| s.list)
    }

    /// Notes that a piece was written where [`Index::next`] said.
    pub(super) fn wrote(&mut self, key: u64, place: Place) {
        let segment = self.segments.entry(place.segment).or_default();
        segment.data = u64::from(place.offset) + SUM_BYTES + u64::from(place.length);
        segment.list += LINE_BYTES;
        let is_used = false;
        self.entries.insert(key, Entry { place, is_used });
    }

    /// Notes that the files of a segment are gone.
    pub(super) fn evicted(&mut self, number: u32) {
        self.segments.remove(&number);
        self.entries
            .retain(|_, entry| entry.place.segment != number);
    }

    fn pieces_max(&self) -> u64 {
        self.capacity / PIECE_BYTES
    }

    /// What the cache takes on the disk, bytes.
    pub(super) fn bytes(&self) -> u64 {
        let blocks = |bytes: u64| bytes.next_multiple_of(FILE_BLOCK_BYTES);
        let segments = self.segments.values();
        FIXED_BYTES
            + segments
                .map(|s| blocks(s.data) + blocks(s.list))
                .sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const CAPACITY: u64 = CACHE_BYTES_MIN;

    /// Writes a piece as the shell does; which segments went.
    fn write(index: &mut Index, key: u64, length: usize) -> Vec<u32> {
        let mut gone = Vec::new();
        loop {
            match index.before(length) {
                Step::Refuse => return gone,
                Step::Write => break,
                Step::Evict(segment, kept) => {
                    for (key, place) in kept {
                        let length = place.length as usize;
                        let to = index.next(length);
                        assert_ne!(to.segment, segment);
                        index.wrote(key, to);
                        assert!(index.bytes() <= CAPACITY);
                    }
                    index.evicted(segment);
                    gone.push(segment);
                }
            }
        }
        let place = index.next(length);
        index.wrote(key, place);
        gone
    }

    #[test]
    fn the_oldest_goes_first_and_what_was_used_stays() {
        let mut index = Index::new(CAPACITY);
        let mut last = 0;
        while write(&mut index, last, 60_000).is_empty() {
            last += 1;
            index.find(3);
        }
        assert!(!index.has(0) && !index.has(4) && index.has(3) && index.has(last));
        let kept = last * 60_000;
        assert!(kept > CAPACITY * 9 / 10, "{kept} bytes were kept");
        // Used once more or never again.
        let place = index.find(3).unwrap();
        assert!(place.segment > 0);
    }

    #[test]
    fn a_piece_of_half_a_segment_is_not_kept_and_pushes_nothing_out() {
        let mut index = Index::new(CAPACITY);
        write(&mut index, 1, 1000);
        assert_eq!(index.before((SEGMENT_BYTES_MIN / 2) as usize), Step::Refuse);
        assert!(index.has(1));
    }

    #[test]
    fn small_pieces_are_bounded_by_their_number() {
        let mut index = Index::new(CAPACITY);
        for key in 0..10_000 {
            write(&mut index, key, 10);
        }
        assert!(index.entries.len() as u64 <= index.pieces_max());
        assert!(index.has(9_999) && index.has(9_100) && !index.has(8_000));
    }

    #[test]
    fn a_smaller_cache_than_before_is_emptied_from_its_oldest_end() {
        let mut index = Index::new(CAPACITY);
        for number in 0..40 {
            index.found(number, 1 << 20, 24, [(number.into(), 0, 1000)]);
        }
        let mut gone = Vec::new();
        while let Step::Evict(segment, _) = index.before(0) {
            index.evicted(segment);
            gone.push(segment);
        }
        assert!(index.bytes() <= CAPACITY && gone.len() < 30);
        assert!(gone.iter().copied().eq(0..gone.len() as u32));
        assert!(index.has(39) && !index.has(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Against a map: nothing is found that was not written, what is found lies where it was
        /// written last, no two pieces overlap, and the bytes hold at every step.
        #[test]
        fn it_behaves_as_a_map_that_forgets(
            steps in prop::collection::vec((0_u64..200, 1_usize..520_000, 0_u8..3), 1..300),
        ) {
            let mut index = Index::new(CAPACITY);
            let mut lengths = HashMap::new();
            for (key, length, what) in steps {
                match what {
                    0 => {
                        let found = index.find(key);
                        prop_assert!(found.is_none() || lengths.contains_key(&key));
                    }
                    _ if index.has(key) => {}
                    _ => {
                        write(&mut index, key, length);
                        lengths.insert(key, length);
                        let is_small = index.before(length) != Step::Refuse;
                        prop_assert_eq!(index.has(key), is_small);
                    }
                }
                prop_assert!(index.bytes() <= CAPACITY);
            }
            let mut ends = HashSet::new();
            for (key, entry) in &index.entries {
                let place = entry.place;
                prop_assert_eq!(lengths[key], place.length as usize);
                let segment = index.segments[&place.segment];
                let end = u64::from(place.offset) + SUM_BYTES + u64::from(place.length);
                prop_assert!(end <= segment.data);
                prop_assert!(ends.insert((place.segment, place.offset)));
            }
        }
    }
}
