//! Sees sequential access and says what to fetch before it is asked for. Pure but for a short lock.
//!
//! The kernel's own readahead stays small (larger values multiply the traffic of mmap readers), so
//! a file that is copied or scanned would wait for one round trip after the other. Each handle has
//! a [`ReadAhead`]; up to four readers that take turns on it are told apart.

use crate::materialize::cache::locked;
use std::ops::Range;
use std::sync::Mutex;

/// The first window, bytes.
const WINDOW_MIN: u64 = 1 << 20;
/// The largest window, bytes.
const WINDOW_MAX: u64 = 32 << 20;
/// So many bytes in a row make a reader sequential: two of the kernel's reads.
const TRUST_BYTES: u64 = 192 << 10;
/// Reads of one stream arrive out of order by up to so many bytes, since threads hand them on.
const SLACK_BYTES: u64 = 512 << 10;
/// Readers told apart on one handle.
const STREAMS: usize = 4;

/// How one reader goes through a database; sees sequential access and reads ahead of it.
#[derive(Debug, Default)]
pub struct ReadAhead {
    streams: Mutex<[Stream; STREAMS]>,
}

/// One sequence of reads. A fresh one expects offset 0, so that a copy is seen at its first read.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// Where the next read is expected.
    next: u64,
    /// Bytes read in a row.
    run: u64,
    /// Up to where was fetched ahead.
    fetched: u64,
    /// Bytes fetched ahead at a time; 0 before the reader is trusted.
    window: u64,
    /// When it was used last, in reads of this handle.
    used: u64,
}

impl ReadAhead {
    /// Notes a read and returns what to fetch now, if anything: bytes of a file of `size`, in
    /// windows of at most `limit` bytes.
    pub(crate) fn note(
        &self,
        offset: u64,
        length: u64,
        size: u64,
        limit: u64,
    ) -> Option<Range<u64>> {
        let mut streams = locked(&self.streams);
        let now = streams.iter().map(|s| s.used).max().unwrap_or(0) + 1;
        let stream = match streams.iter().position(|s| s.expects(offset)) {
            Some(index) => &mut streams[index],
            None => {
                let oldest = streams
                    .iter_mut()
                    .min_by_key(|s| s.used)
                    .expect("there are four");
                *oldest = Stream {
                    next: offset,
                    fetched: offset,
                    ..Stream::default()
                };
                oldest
            }
        };
        stream.used = now;
        stream.run += length;
        stream.next = stream.next.max(offset + length);
        stream.advance(size, limit)
    }
}

impl Stream {
    fn expects(&self, offset: u64) -> bool {
        if self.window == 0 {
            return offset == self.next;
        }
        // Behind an established stream some reads are late; ahead of it others come early.
        offset + SLACK_BYTES >= self.next && offset <= self.next + SLACK_BYTES
    }

    fn advance(&mut self, size: u64, limit: u64) -> Option<Range<u64>> {
        let max = WINDOW_MAX.min(limit);
        if self.run < TRUST_BYTES || max < WINDOW_MIN {
            return None;
        }
        let first = self.window == 0;
        // Refill when half is consumed: the other half covers the time of the round trip.
        if !first && self.next + self.window / 2 < self.fetched {
            return None;
        }
        self.window = if first {
            WINDOW_MIN
        } else {
            (self.window * 2).min(max)
        };
        let start = self.fetched.max(self.next);
        let end = (self.next + self.window).min(size);
        (start < end).then(|| {
            self.fetched = end;
            start..end
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL_READ: u64 = 128 << 10;
    const FILE: u64 = 1 << 30;

    fn sequential(ahead: &ReadAhead, from: u64, reads: u64) -> Vec<Range<u64>> {
        (0..reads)
            .filter_map(|i| ahead.note(from + i * KERNEL_READ, KERNEL_READ, FILE, WINDOW_MAX))
            .collect()
    }

    #[test]
    fn windows_double_from_1_to_32_mib_without_holes_or_overlaps() {
        let ahead = ReadAhead::default();
        let windows = sequential(&ahead, 0, 4096);
        assert_eq!(windows[0].start, 2 * KERNEL_READ);
        assert_eq!(windows[0].end - windows[0].start, WINDOW_MIN);
        assert!(windows.windows(2).all(|w| w[0].end == w[1].start));
        let largest = windows.iter().map(|w| w.end - w.start).max();
        assert!(largest.unwrap() <= WINDOW_MAX && largest.unwrap() >= WINDOW_MAX / 2);
    }

    #[test]
    fn a_window_is_refilled_before_it_is_used_up() {
        let ahead = ReadAhead::default();
        let mut fetched = 0;
        for i in 0..2048 {
            let read = i * KERNEL_READ..(i + 1) * KERNEL_READ;
            if let Some(window) = ahead.note(read.start, KERNEL_READ, FILE, WINDOW_MAX) {
                assert!(i < 2 || fetched > read.end, "the reader had caught up");
                fetched = window.end;
            }
        }
    }

    #[test]
    fn random_reads_fetch_nothing() {
        let ahead = ReadAhead::default();
        let mut offset = 12345_u64;
        for _ in 0..1000 {
            offset = offset
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1)
                % FILE;
            assert_eq!(
                ahead.note(offset / 4096 * 4096, 4096, FILE, WINDOW_MAX),
                None
            );
        }
    }

    #[test]
    fn four_readers_that_take_turns_are_told_apart() {
        let ahead = ReadAhead::default();
        let mut windows = [0; 4];
        for i in 0..64 {
            for (reader, windows) in windows.iter_mut().enumerate() {
                let start = reader as u64 * (FILE / 4) + i * KERNEL_READ;
                let window = ahead.note(start, KERNEL_READ, FILE, WINDOW_MAX);
                *windows += usize::from(window.is_some());
            }
        }
        assert!(windows.iter().all(|&count| count >= 3), "{windows:?}");
    }

    #[test]
    fn reads_out_of_order_stay_one_stream() {
        let ahead = ReadAhead::default();
        sequential(&ahead, 0, 4);
        let swapped = [5, 4, 7, 6, 9, 8];
        for i in swapped {
            ahead.note(i * KERNEL_READ, KERNEL_READ, FILE, WINDOW_MAX);
        }
        let used = locked(&ahead.streams).iter().filter(|s| s.used > 0).count();
        assert_eq!(used, 1);
    }

    #[test]
    fn nothing_is_fetched_beyond_the_end_or_into_a_cache_without_room() {
        let ahead = ReadAhead::default();
        let size = 10 * KERNEL_READ;
        let windows: Vec<_> = (0..10)
            .filter_map(|i| ahead.note(i * KERNEL_READ, KERNEL_READ, size, WINDOW_MAX))
            .collect();
        assert!(windows.iter().all(|w| w.end <= size));
        let ahead = ReadAhead::default();
        assert!((0..100).all(|i| {
            ahead
                .note(i * KERNEL_READ, KERNEL_READ, FILE, 1000)
                .is_none()
        }));
    }
}
