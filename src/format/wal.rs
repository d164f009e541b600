//! SQLite's WAL: header, frames and the running checksum (fileformat2, "The Write-Ahead Log").
//!
//! Owns the layout of the `-wal` file and the proof that a frame goes on from the one before it.
//! Never decides which frames are committed: a frame that chains may belong to a transaction that
//! never happened; only the wal-index knows.
//!
//! | offset | size | field of the header, big-endian                                   |
//! |-------:|-----:|-------------------------------------------------------------------|
//! |      0 |    4 | magic `377f0682`; its lowest bit: checksum words are big-endian    |
//! |      4 |    4 | format version, 3007000                                           |
//! |      8 |    4 | page size, bytes                                                  |
//! |     12 |    4 | checkpoint sequence number                                        |
//! |     16 |    8 | salt-1, salt-2                                                    |
//! |     24 |    8 | checksum of bytes 0 to 24                                         |
//!
//! | offset | size | field of a frame, big-endian                                      |
//! |-------:|-----:|-------------------------------------------------------------------|
//! |      0 |    4 | page number                                                       |
//! |      4 |    4 | of a commit frame the database size in pages; else 0               |
//! |      8 |    8 | salt-1, salt-2, as in the header                                  |
//! |     16 |    8 | checksum so far: of bytes 0 to 8 and the page, seeded by the last  |
//! |     24 |    n | the page                                                          |

use crate::format::ids::{PageSize, Pgno, WalEnd};

/// Size of the header of the file, bytes.
pub const HEADER_BYTES: usize = 32;
/// Size of the header of a frame, bytes.
pub const FRAME_HEADER_BYTES: usize = 24;

const MAGIC: u32 = 0x377f_0682;
const FORMAT: u32 = 3_007_000;

/// How the checksum reads its 32-bit words: as the machine that began the WAL does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

impl WordOrder {
    /// As a WAL has it that is begun on this machine.
    pub const NATIVE: Self = if cfg!(target_endian = "big") {
        Self::Big
    } else {
        Self::Little
    };
}

/// The header of a WAL, verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalHeader {
    /// How the checksums of this WAL read words.
    pub order: WordOrder,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Counted by whoever restarts the WAL; the same salts may come back with another count.
    pub checkpoints: u32,
    /// Salt-1 and salt-2.
    pub salts: [u32; 2],
    /// Checksum of the header, the seed of the frames' checksums.
    pub checksum: [u32; 2],
}

impl WalHeader {
    /// `None` unless `bytes` begin with a whole header whose checksum is right.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let order = match be32(bytes, 0) {
            MAGIC => WordOrder::Little,
            magic if magic == MAGIC | 1 => WordOrder::Big,
            _ => return None,
        };
        let seen = [be32(bytes, 24), be32(bytes, 28)];
        if be32(bytes, 4) != FORMAT || checksum(order, [0; 2], &bytes[..24]) != seen {
            return None;
        }
        Some(Self {
            order,
            page_size: PageSize::new(be32(bytes, 8))?,
            checkpoints: be32(bytes, 12),
            salts: [be32(bytes, 16), be32(bytes, 20)],
            checksum: seen,
        })
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The page that the frame holds.
    pub pgno: Pgno,
    /// Database size in pages after the transaction, if this frame is its last.
    pub commit: Option<u32>,
    /// Salt-1 and salt-2 of the WAL that the frame was written for.
    pub salts: [u32; 2],
    /// The running checksum behind this frame.
    pub checksum: [u32; 2],
}

impl FrameHeader {
    /// Takes a frame header apart; nothing is verified. `None` for page 0, which no frame holds.
    pub fn parse(bytes: &[u8; FRAME_HEADER_BYTES]) -> Option<Self> {
        let pages = be32(bytes, 4);
        Some(Self {
            pgno: Pgno::new(be32(bytes, 0))?,
            commit: (pages != 0).then_some(pages),
            salts: [be32(bytes, 8), be32(bytes, 12)],
            checksum: [be32(bytes, 16), be32(bytes, 20)],
        })
    }
}

/// Why a chain goes no further. An outcome: every WAL ends in one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainEnd {
    /// The bytes end before the frame does.
    Short,
    /// The frame has other salts: it is left over from an earlier WAL.
    Salt,
    /// The frame has our salts but does not go on from the one before it.
    Checksum,
}

/// A place between two frames of a WAL, with what it takes to verify the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// How the checksums of this WAL read words.
    pub order: WordOrder,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Salts, frames so far, and the running checksum behind them.
    pub end: WalEnd,
}

impl Chain {
    /// The place before the first frame.
    pub fn of_header(header: &WalHeader) -> Self {
        Self {
            order: header.order,
            page_size: header.page_size,
            end: WalEnd {
                salts: header.salts,
                frame: 0,
                checksum: header.checksum,
            },
        }
    }

    /// Size of a frame with its header, bytes.
    pub fn frame_bytes(&self) -> usize {
        frame_bytes(self.page_size)
    }

    /// Where the next frame starts in the `-wal` file, bytes.
    pub fn offset(&self) -> u64 {
        frame_offset(self.page_size, self.end.frame)
    }

    /// Steps over the frame at the start of `bytes` if it goes on from here; else says why not and
    /// stays.
    ///
    /// # Errors
    /// The outcome that ends the chain; no [`crate::error::Error`].
    pub fn advance(&mut self, bytes: &[u8]) -> Result<FrameHeader, ChainEnd> {
        let header = bytes
            .first_chunk::<FRAME_HEADER_BYTES>()
            .ok_or(ChainEnd::Short)?;
        if [be32(header, 8), be32(header, 12)] != self.end.salts {
            return Err(ChainEnd::Salt);
        }
        let page = bytes
            .get(FRAME_HEADER_BYTES..self.frame_bytes())
            .ok_or(ChainEnd::Short)?;
        let seen = checksum(self.order, self.end.checksum, &header[..8]);
        let seen = checksum(self.order, seen, page);
        match FrameHeader::parse(header) {
            Some(frame) if frame.checksum == seen => {
                self.end.frame += 1;
                self.end.checksum = seen;
                Ok(frame)
            }
            _ => Err(ChainEnd::Checksum),
        }
    }
}

/// Size of a frame with its header, bytes.
pub const fn frame_bytes(page_size: PageSize) -> usize {
    FRAME_HEADER_BYTES + page_size.bytes()
}

/// Where the frame behind the first `frames` ones starts in the `-wal` file, bytes.
pub const fn frame_offset(page_size: PageSize, frames: u32) -> u64 {
    HEADER_BYTES as u64 + frames as u64 * frame_bytes(page_size) as u64
}

/// SQLite's running checksum over `bytes`, whose length is a multiple of 8; what is over is left
/// out. Every captured byte passes here: two additions a word, in a chain that no machine can do
/// in parallel, and nothing else.
pub fn checksum(order: WordOrder, seed: [u32; 2], bytes: &[u8]) -> [u32; 2] {
    match order {
        WordOrder::Little => sum(seed, bytes, |pair| {
            let pair = u64::from_le_bytes(*pair);
            (pair as u32, (pair >> 32) as u32)
        }),
        WordOrder::Big => sum(seed, bytes, |pair| {
            let pair = u64::from_be_bytes(*pair);
            ((pair >> 32) as u32, pair as u32)
        }),
    }
}

#[inline(always)]
fn sum(seed: [u32; 2], bytes: &[u8], words: impl Fn(&[u8; 8]) -> (u32, u32)) -> [u32; 2] {
    let [mut a, mut b] = seed;
    let mut add = |pair: &[u8; 8]| {
        let (first, second) = words(pair);
        a = a.wrapping_add(first).wrapping_add(b);
        b = b.wrapping_add(second).wrapping_add(a);
    };
    let (pairs, _) = bytes.as_chunks::<8>();
    let (fours, rest) = pairs.as_chunks::<4>();
    for [one, two, three, four] in fours {
        add(one);
        add(two);
        add(three);
        add(four);
    }
    rest.iter().for_each(add);
    [a, b]
}

fn be32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes([
        bytes[offset],
        bytes[offset + 1],
        bytes[offset + 2],
        bytes[offset + 3],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: PageSize = PageSize::new(512).unwrap();

    /// A WAL with the given frames (page, commit size or 0), as SQLite writes it.
    fn wal(order: WordOrder, frames: &[(u32, u32)]) -> Vec<u8> {
        let mut wal = Vec::new();
        let magic = MAGIC | u32::from(order == WordOrder::Big);
        for word in [magic, FORMAT, SIZE.get(), 7, 0xaaaa_0001, 0xbbbb_0002] {
            wal.extend(word.to_be_bytes());
        }
        let mut sum = checksum(order, [0; 2], &wal);
        wal.extend(sum.iter().flat_map(|word| word.to_be_bytes()));
        for &(pgno, commit) in frames {
            let page: Vec<u8> = (0..SIZE.get()).map(|i| (i * 31 + pgno * 7) as u8).collect();
            let start = wal.len();
            wal.extend(pgno.to_be_bytes());
            wal.extend(commit.to_be_bytes());
            sum = checksum(order, sum, &wal[start..]);
            sum = checksum(order, sum, &page);
            for word in [0xaaaa_0001, 0xbbbb_0002, sum[0], sum[1]] {
                wal.extend(word.to_be_bytes());
            }
            wal.extend(page);
        }
        wal
    }

    fn follow(wal: &[u8]) -> (u32, ChainEnd) {
        let mut chain = Chain::of_header(&WalHeader::parse(wal).unwrap());
        loop {
            if let Err(end) = chain.advance(&wal[chain.offset() as usize..]) {
                return (chain.end.frame, end);
            }
        }
    }

    #[test]
    fn the_checksum_is_that_of_the_file_format_in_both_word_orders() {
        // s0 += x0 + s1, s1 += x1 + s0, by hand for two pairs of words.
        let bytes = [
            1, 0, 0, 0, 2, 0, 0, 0, //
            3, 0, 0, 0, 4, 0, 0, 0,
        ];
        assert_eq!(
            checksum(WordOrder::Little, [10, 20], &bytes),
            [31 + 3 + 53, 53 + 4 + 87]
        );
        let turned: Vec<u8> = bytes
            .chunks(4)
            .flat_map(|w| w.iter().rev().copied())
            .collect();
        assert_eq!(
            checksum(WordOrder::Big, [10, 20], &turned),
            checksum(WordOrder::Little, [10, 20], &bytes)
        );
    }

    #[test]
    fn a_checksum_of_parts_is_that_of_the_whole() {
        let bytes: Vec<u8> = (0..4096_u32).map(|i| ((i * i) >> 3) as u8).collect();
        for order in [WordOrder::Little, WordOrder::Big] {
            let whole = checksum(order, [1, 2], &bytes);
            for cut in [0, 8, 24, 40, 512, 4088] {
                let first = checksum(order, [1, 2], &bytes[..cut]);
                assert_eq!(checksum(order, first, &bytes[cut..]), whole, "cut at {cut}");
            }
        }
    }

    #[test]
    fn sqlite_itself_writes_what_we_verify() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch(
            "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1);
             BEGIN; INSERT INTO t VALUES(randomblob(20000)); COMMIT;",
        )
        .unwrap();
        let wal = std::fs::read(dir.path().join("a.db-wal")).unwrap();
        let header = WalHeader::parse(&wal).unwrap();
        let mut chain = Chain::of_header(&header);
        let mut commits = Vec::new();
        let end = loop {
            match chain.advance(&wal[chain.offset() as usize..]) {
                Ok(frame) => commits.extend(frame.commit),
                Err(end) => break end,
            }
        };
        assert_eq!(end, ChainEnd::Short);
        assert_eq!(chain.offset(), wal.len() as u64);
        assert_eq!(commits, [2, 2, 6]);
    }

    #[test]
    fn a_chain_ends_where_the_file_does() {
        for order in [WordOrder::Little, WordOrder::Big] {
            let wal = wal(order, &[(1, 0), (2, 2), (3, 3)]);
            assert_eq!(follow(&wal), (3, ChainEnd::Short));
            assert_eq!(follow(&wal[..wal.len() - 1]), (2, ChainEnd::Short));
        }
    }

    #[test]
    fn a_frame_of_an_earlier_wal_ends_the_chain_by_its_salts() {
        let mut wal = wal(WordOrder::Little, &[(1, 1), (2, 2)]);
        let second = frame_offset(SIZE, 1) as usize;
        wal[second + 11] ^= 1;
        assert_eq!(follow(&wal), (1, ChainEnd::Salt));
    }

    #[test]
    fn every_flipped_bit_of_a_frame_ends_the_chain_before_it() {
        let good = wal(WordOrder::Little, &[(1, 1), (2, 2)]);
        let second = frame_offset(SIZE, 1) as usize;
        for bit in second * 8..good.len() * 8 {
            let mut wal = good.clone();
            wal[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(follow(&wal).0, 1, "bit {bit}");
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_of_the_header_is_seen() {
        let good = wal(WordOrder::Big, &[]);
        assert!(WalHeader::parse(&good).is_some());
        for bit in 0..HEADER_BYTES * 8 {
            let mut wal = good.clone();
            wal[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(WalHeader::parse(&wal), None, "bit {bit}");
        }
        for length in 0..HEADER_BYTES {
            assert_eq!(WalHeader::parse(&good[..length]), None, "{length} bytes");
        }
    }
}
