//! The restore points of one object in few bytes, found by their place or by what ascends in them.
//! Pure.
//!
//! A *block* is 128 points. The first of each stands in a directory as it is, so that a search goes
//! through these; what comes behind it is coded as steps, so that an answer costs the decoding of
//! one block. Each block begins at a word of 64 bits and has four *columns*, a number for each of
//! its points but the first one:
//!
//! | column | each is |
//! | --- | --- |
//! | txid, time | that of the point minus that of the one before |
//! | size | pages minus those of the point before, `(n << 1) ^ (n >> 63)` |
//! | dip | pages minus the smallest size since the point before |
//!
//! | bits of a column | hold |
//! | --- | --- |
//! | 7 | bits of the smallest number, 0 to 64 |
//! | so many | the smallest number |
//! | 7 | `low`, 0 to 63; or 64: all numbers are the smallest, and nothing follows |
//! | each | the number minus the smallest (Rice): `n >> low` ones, a zero, the low bits of `n` |
//!
//! Where that were 24 ones or more, 24 stand before all 64 bits of `n`. `low` is chosen for each
//! column of each block, so that no number takes more than 65 bits on the average: a point takes 1
//! to 3 bytes as a rule and never much more than the 24 that it has in the open.

use crate::format::ids::{Timestamp, Txid};
use crate::format::segment::TimelineEntry;
use std::ops::Range;

/// Points of a block.
const BLOCK: usize = 128;
const WORD_BITS: usize = u64::BITS as usize;
/// Bits of `low`, and of the width of the smallest number.
const WIDTH_BITS: usize = 7;
/// For `low`: all numbers are the smallest.
const ALIKE: usize = 64;
const LOW_MAX: usize = 63;
/// So many ones stand before a number that is written out.
const ESCAPE: usize = 24;

/// One transaction of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) txid: Txid,
    pub(crate) time: Timestamp,
    /// Database size after it.
    pub(crate) pages: u32,
    /// The smallest size since the entry before.
    pub(crate) min_pages: u32,
}

const _: () = assert!(size_of::<Point>() == 24);

impl From<&TimelineEntry> for Point {
    fn from(entry: &TimelineEntry) -> Self {
        Self {
            txid: entry.txid,
            time: entry.time,
            pages: entry.pages,
            min_pages: entry.min_pages,
        }
    }
}

/// Points, ascending by txid and by time.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    count: usize,
    blocks: Box<[Block]>,
    /// The columns of all blocks, and one word more: what reads bits may look beyond them.
    words: Box<[u64]>,
}

#[derive(Debug)]
struct Block {
    first: Point,
    /// Where its columns begin.
    word: usize,
}

impl Timeline {
    /// How many points there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The point with this place, from 0.
    pub(crate) fn get(&self, index: usize) -> Option<Point> {
        (index < self.count).then(|| self.block(index / BLOCK)[index % BLOCK])
    }

    /// The last point.
    pub(crate) fn last(&self) -> Option<Point> {
        self.get(self.count.checked_sub(1)?)
    }

    /// The point of a transaction.
    pub(crate) fn find(&self, txid: Txid) -> Option<Point> {
        let block = self.last_block(|point| point.txid <= txid)?;
        let points = self.block(block);
        let found = points.binary_search_by_key(&txid, |point| point.txid);
        Some(points[found.ok()?])
    }

    /// How many of the first points are so. What holds of one holds of all before it.
    pub(crate) fn partition_point(&self, holds: impl Fn(&Point) -> bool) -> usize {
        let block = self.last_block(&holds);
        block.map_or(0, |block| {
            block * BLOCK + self.block(block).partition_point(holds)
        })
    }

    /// Points by their places, from either end.
    pub(crate) fn points(
        &self,
        range: Range<usize>,
    ) -> impl DoubleEndedIterator<Item = Point> + '_ {
        let range = range.start..range.end.min(self.count);
        let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
        blocks.flat_map(move |block| {
            let start = block * BLOCK;
            let mut points = self.block(block);
            points.truncate(range.end - start);
            points.drain(..range.start.saturating_sub(start).min(points.len()));
            points
        })
    }

    /// The last block of whose first point it holds.
    fn last_block(&self, holds: impl Fn(&Point) -> bool) -> Option<usize> {
        let block = self.blocks.partition_point(|block| holds(&block.first));
        block.checked_sub(1)
    }

    fn block(&self, index: usize) -> Vec<Point> {
        let Block { first, word } = self.blocks[index];
        let count = (self.count - index * BLOCK).min(BLOCK);
        let mut points = vec![first; count];
        let behind = &mut points[1..];
        if behind.is_empty() {
            return points;
        }
        let mut bits = Bits::at(&self.words, word);
        let (mut txid, mut time) = (first.txid.get(), first.time.micros());
        let mut pages = i64::from(first.pages);
        bits.column(behind, |point, step| {
            txid = txid.wrapping_add(step);
            point.txid = Txid::new(txid).expect("it was one");
        });
        bits.column(behind, |point, step| {
            time = time.wrapping_add_unsigned(step);
            point.time = Timestamp::from_micros(time);
        });
        bits.column(behind, |point, step| {
            pages += (step >> 1) as i64 ^ -((step & 1) as i64);
            point.pages = pages as u32;
        });
        bits.column(behind, |point, dip| {
            point.min_pages = point.pages.wrapping_sub(dip as u32);
        });
        points
    }

    /// Bytes on the heap.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        size_of_val(&self.blocks[..]) + size_of_val(&self.words[..])
    }
}

impl FromIterator<Point> for Timeline {
    fn from_iter<I: IntoIterator<Item = Point>>(points: I) -> Self {
        let mut writer = TimelineWriter::default();
        for point in points {
            writer.push(point);
        }
        writer.finish()
    }
}

/// Makes a timeline of points that come one after the other.
#[derive(Default)]
pub(crate) struct TimelineWriter {
    /// Of the block to come.
    points: Vec<Point>,
    blocks: Vec<Block>,
    bits: BitWriter,
}

impl TimelineWriter {
    /// Adds the next point.
    pub(crate) fn push(&mut self, point: Point) {
        if self.points.len() == BLOCK {
            self.end_block();
        }
        self.points.push(point);
    }

    /// The timeline of all points.
    pub(crate) fn finish(mut self) -> Timeline {
        let whole = self.blocks.len() * BLOCK;
        let count = whole + self.points.len();
        self.end_block();
        let mut words = self.bits.words;
        if !words.is_empty() {
            words.push(0);
        }
        Timeline {
            count,
            blocks: self.blocks.into(),
            words: words.into(),
        }
    }

    fn end_block(&mut self) {
        let points = std::mem::take(&mut self.points);
        let Some(&first) = points.first() else {
            return;
        };
        let word = self.bits.words.len();
        self.blocks.push(Block { first, word });
        let mut column = |step: &dyn Fn(&Point, &Point) -> u64| {
            let pairs = points.windows(2);
            let mut steps: Vec<u64> = pairs.map(|pair| step(&pair[0], &pair[1])).collect();
            self.bits.put_column(&mut steps);
        };
        if points.len() > 1 {
            column(&|a, b| b.txid.get().wrapping_sub(a.txid.get()));
            column(&|a, b| b.time.micros().wrapping_sub(a.time.micros()) as u64);
            column(&|a, b| {
                let step = i64::from(b.pages) - i64::from(a.pages);
                (step << 1 ^ step >> 63) as u64
            });
            column(&|_, b| b.pages.wrapping_sub(b.min_pages).into());
            self.bits.end_word();
        }
        self.points = points;
        self.points.clear();
    }
}

/// Bits of words, the lowest of each first.
#[derive(Default)]
struct BitWriter {
    words: Vec<u64>,
    /// How many of the last word are taken; all of it for 0.
    taken: usize,
}

impl BitWriter {
    /// Appends the lowest bits of a number; the others are zeros.
    fn put(&mut self, value: u64, bits: usize) {
        if bits == 0 {
            return;
        }
        match self.words.last_mut().filter(|_| self.taken > 0) {
            Some(last) => {
                *last |= value << self.taken;
                if self.taken + bits > WORD_BITS {
                    self.words.push(value >> (WORD_BITS - self.taken));
                }
            }
            None => self.words.push(value),
        }
        self.taken = (self.taken + bits) % WORD_BITS;
    }

    /// What comes next begins at a word.
    fn end_word(&mut self) {
        self.taken = 0;
    }

    fn put_column(&mut self, numbers: &mut [u64]) {
        let least = numbers.iter().copied().min().unwrap_or(0);
        let width = bit_length(least);
        self.put(width as u64, WIDTH_BITS);
        self.put(least, width);
        for number in numbers.iter_mut() {
            *number -= least;
        }
        let low = best_low(numbers);
        self.put(low as u64, WIDTH_BITS);
        if low < ALIKE {
            for number in numbers {
                self.put_rice(*number, low);
            }
        }
    }

    fn put_rice(&mut self, number: u64, low: usize) {
        match number >> low {
            high if high < ESCAPE as u64 => {
                self.put((1 << high) - 1, high as usize + 1);
                self.put(number & ((1 << low) - 1), low);
            }
            _ => {
                self.put((1 << ESCAPE) - 1, ESCAPE);
                self.put(number, WORD_BITS);
            }
        }
    }
}

fn bit_length(number: u64) -> usize {
    (u64::BITS - number.leading_zeros()) as usize
}

/// How many low bits of these numbers to write as they are. The median says it where some stand
/// far out; the largest bounds what all of them take.
fn best_low(numbers: &[u64]) -> usize {
    let largest = numbers.iter().copied().max().unwrap_or(0);
    if largest == 0 {
        return ALIKE;
    }
    let mut sorted = numbers.to_vec();
    let middle = sorted.len() / 2;
    let (_, median, _) = sorted.select_nth_unstable(middle);
    let typical = bit_length(*median);
    let candidates = [typical.saturating_sub(1), typical, bit_length(largest)];
    let candidates = candidates.map(|low| low.min(LOW_MAX));
    let bits = |low: &usize| -> usize { numbers.iter().map(|n| rice_bits(*n, *low)).sum() };
    let best = candidates.into_iter().min_by_key(bits);
    best.expect("there are three")
}

fn rice_bits(number: u64, low: usize) -> usize {
    match number >> low {
        high if high < ESCAPE as u64 => high as usize + 1 + low,
        _ => ESCAPE + WORD_BITS,
    }
}

/// Reads bits one after the other.
struct Bits<'a> {
    words: &'a [u64],
    at: usize,
}

impl<'a> Bits<'a> {
    fn at(words: &'a [u64], word: usize) -> Self {
        Self {
            words,
            at: word * WORD_BITS,
        }
    }

    /// The next 64 bits.
    fn peek(&self) -> u64 {
        let (word, taken) = (self.at / WORD_BITS, self.at % WORD_BITS);
        let rest = self.words[word] >> taken;
        match taken {
            0 => rest,
            _ => rest | self.words[word + 1] << (WORD_BITS - taken),
        }
    }

    fn take(&mut self, bits: usize) -> u64 {
        let taken = self.peek() & u64::MAX.unbounded_shr((WORD_BITS - bits) as u32);
        self.at += bits;
        taken
    }

    /// Reads a column, a number for each point.
    fn column(&mut self, points: &mut [Point], mut set: impl FnMut(&mut Point, u64)) {
        let width = self.take(WIDTH_BITS) as usize;
        let least = self.take(width);
        let low = self.take(WIDTH_BITS) as usize;
        for point in points {
            let more = if low == ALIKE { 0 } else { self.rice(low) };
            set(point, least + more);
        }
    }

    fn rice(&mut self, low: usize) -> u64 {
        let ones = self.peek().trailing_ones() as usize;
        if ones >= ESCAPE {
            self.at += ESCAPE;
            return self.take(WORD_BITS);
        }
        self.at += ones + 1;
        (ones as u64) << low | self.take(low)
    }
}

#[cfg(test)]
mod tests;
