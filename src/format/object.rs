//! The writing half of the container: frames in order, their checksums, the object's hash, and the
//! room for what is written last but known first.
//!
//! An [`ObjectWriter`] holds the block table and one buffer; whatever else grows with the object
//! goes through a [`Spill`].

use crate::error::{Error, Result};
use crate::format::container::{
    BLOCKS_START, BlockRef, BlockTable, FRAME_BYTES, HEADER_MAGIC, Header, SECTION_MAGIC,
    SECTION_RAW_MAX, ScratchFile, SectionKind, SectionRef, Written, encode_footer, frame_start,
};
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

/// zstd's level: what the ratios in the design were measured with.
const LEVEL: i32 = 3;
/// How much of a [`Spill`] is copied at a time, bytes.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;

/// Writes one object from front to back; the header, at its start, last.
pub(super) struct ObjectWriter<W> {
    out: W,
    position: u64,
    hasher: blake3::Hasher,
    blocks: BlockTable,
    directory: Vec<SectionRef>,
    compressed: Vec<u8>,
}

impl<W: Write + Seek> ObjectWriter<W> {
    /// Leaves room for the header.
    pub(super) fn new(mut out: W) -> Result<Self> {
        out.write_all(&[0; BLOCKS_START as usize])
            .map_err(write_failed)?;
        Ok(Self {
            out,
            position: BLOCKS_START,
            hasher: blake3::Hasher::new(),
            blocks: BlockTable::default(),
            directory: Vec::new(),
            compressed: Vec::new(),
        })
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Where the stored bytes of the next section go.
    pub(super) fn section_offset(&self) -> u64 {
        self.position + FRAME_BYTES as u64
    }

    /// The blocks written so far.
    pub(super) fn blocks(&self) -> &BlockTable {
        &self.blocks
    }

    /// Writes a block of `slots` pages and returns its stored length, bytes.
    pub(super) fn block(&mut self, raw: &[u8], slots: u32) -> Result<u32> {
        assert!(self.directory.is_empty(), "blocks come before the sections");
        self.compress(raw)?;
        let stored = std::mem::take(&mut self.compressed);
        let length = u32::try_from(stored.len()).expect("a block of 256 KiB is shorter than 4 GiB");
        self.blocks.blocks.push(BlockRef {
            offset: self.position,
            length,
            checksum: xxh3_64(&stored),
            first_slot: self.blocks.slots(),
            slots,
        });
        self.write(&stored)?;
        self.compressed = stored;
        Ok(length)
    }

    /// `raw` as one zstd frame.
    pub(super) fn compress(&mut self, raw: &[u8]) -> Result<&[u8]> {
        compress_into(raw, &mut self.compressed).map_err(write_failed)?;
        Ok(&self.compressed)
    }

    /// Writes a section, compressed if that makes it shorter.
    pub(super) fn section(&mut self, kind: SectionKind, raw: &[u8]) -> Result<()> {
        self.compress(raw)?;
        let compressed = std::mem::take(&mut self.compressed);
        let stored = if compressed.len() < raw.len() {
            &compressed
        } else {
            raw
        };
        let mut section = self.open_section(kind, stored.len() as u64, raw.len() as u64)?;
        section.write(stored)?;
        section.close()?;
        self.compressed = compressed;
        Ok(())
    }

    /// Writes a section whose stored bytes lie in a [`Spill`].
    pub(super) fn section_from(
        &mut self,
        kind: SectionKind,
        raw_length: u64,
        spill: &mut Spill,
        stored: Range<u64>,
    ) -> Result<()> {
        let mut section = self.open_section(kind, stored.end - stored.start, raw_length)?;
        let mut at = stored.start;
        let mut chunk = vec![0; CHUNK_BYTES];
        while at < stored.end {
            let length = (stored.end - at).min(CHUNK_BYTES as u64) as usize;
            spill.read_at(at, &mut chunk[..length])?;
            section.write(&chunk[..length])?;
            at += length as u64;
        }
        section.close()
    }

    /// Starts a section of `length` stored bytes, which follow piece by piece.
    pub(super) fn open_section(
        &mut self,
        kind: SectionKind,
        length: u64,
        raw_length: u64,
    ) -> Result<OpenSection<'_, W>> {
        let too_large = || {
            Error::invalid(format!(
                "section {kind:?} of {raw_length} bytes is larger than any can be; \
                 the object must become several"
            ))
        };
        let frame_length = u32::try_from(length).map_err(|_| too_large())?;
        if length < raw_length && raw_length > SECTION_RAW_MAX {
            return Err(too_large());
        }
        self.write(&frame_start(SECTION_MAGIC, frame_length))?;
        Ok(OpenSection {
            section: SectionRef {
                kind,
                offset: self.position,
                length,
                raw_length,
                checksum: 0,
            },
            checksum: Xxh3Default::new(),
            object: self,
        })
    }

    /// Writes the footer and the header.
    pub(super) fn finish(mut self, header: &Header) -> Result<(W, Written)> {
        let payload = header.encode_payload();
        let (footer, length, hash) =
            encode_footer(&payload, &self.directory, self.position, self.hasher);
        self.out.write_all(&footer).map_err(write_failed)?;
        self.out.seek(SeekFrom::Start(0)).map_err(write_failed)?;
        let mut start = frame_start(HEADER_MAGIC, payload.len() as u32).to_vec();
        start.extend_from_slice(&payload);
        self.out.write_all(&start).map_err(write_failed)?;
        self.out.flush().map_err(write_failed)?;
        let written = Written {
            length,
            hash,
            object_id: header.object_id,
            slots: self.blocks.slots(),
            block_bytes: self.blocks.end().saturating_sub(BLOCKS_START),
        };
        Ok((self.out, written))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(write_failed)?;
        self.hasher.update(bytes);
        self.position += bytes.len() as u64;
        Ok(())
    }
}

/// A section whose bytes are being written.
pub(super) struct OpenSection<'a, W> {
    object: &'a mut ObjectWriter<W>,
    section: SectionRef,
    checksum: Xxh3Default,
}

impl<W: Write + Seek> OpenSection<'_, W> {
    /// The next stored bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.checksum.update(bytes);
        self.object.write(bytes)
    }

    /// Puts the section into the directory.
    pub(super) fn close(mut self) -> Result<()> {
        assert_eq!(
            self.object.position,
            self.section.offset + self.section.length,
            "a section has the length that its frame says"
        );
        self.section.checksum = self.checksum.digest();
        self.object.directory.push(self.section);
        Ok(())
    }
}

/// Fills a buffer with one zstd frame.
fn compress_into(raw: &[u8], frame: &mut Vec<u8>) -> std::io::Result<()> {
    /// A new one takes a megabyte, and costs more than all else of a small segment.
    static IDLE: Mutex<Vec<zstd::bulk::Compressor<'static>>> = Mutex::new(Vec::new());
    const IDLE_MAX: usize = 2;
    // One is taken or put back whole, whoever panicked.
    let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = idle().pop();
    let mut compressor = match kept {
        Some(compressor) => compressor,
        None => zstd::bulk::Compressor::new(LEVEL)?,
    };
    frame.clear();
    frame.reserve(zstd::zstd_safe::compress_bound(raw.len()));
    compressor.compress_to_buffer(raw, frame)?;
    let mut idle = idle();
    if idle.len() < IDLE_MAX {
        idle.push(compressor);
    }
    Ok(())
}

/// Compresses a section of known raw length, piece by piece.
pub(super) enum SectionEncoder {
    /// All that came so far of what is small.
    Small(Vec<u8>),
    /// What is large, whose output is taken piece by piece.
    Large(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl SectionEncoder {
    /// Sections of up to so many raw bytes are compressed in one step.
    const SMALL: u64 = 64 * 1024;

    pub(super) fn new(raw_length: u64) -> Result<Self> {
        if raw_length <= Self::SMALL {
            return Ok(Self::Small(Vec::new()));
        }
        let encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL);
        let mut encoder = encoder.map_err(write_failed)?;
        encoder
            .set_pledged_src_size(Some(raw_length))
            .map_err(write_failed)?;
        Ok(Self::Large(encoder))
    }

    /// Takes the next bytes of the section and appends to `spill` what came of all so far.
    pub(super) fn write(&mut self, raw: &[u8], spill: &mut Spill) -> Result<()> {
        match self {
            Self::Small(all) => {
                all.extend_from_slice(raw);
                Ok(())
            }
            Self::Large(encoder) => {
                encoder.write_all(raw).map_err(write_failed)?;
                let stored = std::mem::take(encoder.get_mut());
                spill.append(&stored)
            }
        }
    }

    pub(super) fn finish(self, spill: &mut Spill) -> Result<()> {
        match self {
            Self::Small(all) => {
                let mut stored = Vec::new();
                compress_into(&all, &mut stored).map_err(write_failed)?;
                spill.append(&stored)
            }
            Self::Large(encoder) => spill.append(&encoder.finish().map_err(write_failed)?),
        }
    }
}

/// Bytes that are appended, and read back from anywhere: in memory while they are few, then in a
/// scratch file.
pub(super) struct Spill {
    file: Box<dyn ScratchFile>,
    in_file: u64,
    memory: Vec<u8>,
}

impl Spill {
    /// At most this many bytes lie in memory.
    const MEMORY_BYTES: usize = 1024 * 1024;

    pub(super) fn new(file: Box<dyn ScratchFile>) -> Self {
        Self {
            file,
            in_file: 0,
            memory: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.in_file + self.memory.len() as u64
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.memory.extend_from_slice(bytes);
        if self.memory.len() < Self::MEMORY_BYTES {
            return Ok(());
        }
        self.file
            .seek(SeekFrom::Start(self.in_file))
            .and_then(|_| self.file.write_all(&self.memory))
            .map_err(scratch_failed)?;
        self.in_file += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }

    /// Reads what was appended at `offset`.
    pub(super) fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let from_file = self.in_file.saturating_sub(offset).min(bytes.len() as u64) as usize;
        let (first, rest) = bytes.split_at_mut(from_file);
        if !first.is_empty() {
            self.file
                .seek(SeekFrom::Start(offset))
                .and_then(|_| self.file.read_exact(first))
                .map_err(scratch_failed)?;
        }
        if !rest.is_empty() {
            let at = (offset + from_file as u64 - self.in_file) as usize;
            rest.copy_from_slice(&self.memory[at..at + rest.len()]);
        }
        Ok(())
    }
}

fn write_failed(error: std::io::Error) -> Error {
    Error::disk("write the object", error)
}

pub(super) fn scratch_failed(error: std::io::Error) -> Error {
    Error::disk("keep what an object needs last in a scratch file", error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::sample::scratch;

    #[test]
    fn a_section_in_pieces_is_one_frame_however_large_it_is() {
        for length in [
            0,
            1,
            SectionEncoder::SMALL,
            SectionEncoder::SMALL + 1,
            1 << 20,
        ] {
            let raw: Vec<u8> = (0..length).map(|at| ((at * at) >> 8) as u8).collect();
            let mut spill = Spill::new(scratch().unwrap());
            let mut encoder = SectionEncoder::new(length).unwrap();
            for piece in raw.chunks(10_000) {
                encoder.write(piece, &mut spill).unwrap();
            }
            encoder.finish(&mut spill).unwrap();
            let mut stored = vec![0; spill.len() as usize];
            spill.read_at(0, &mut stored).unwrap();
            assert_eq!(zstd::bulk::decompress(&stored, raw.len()).unwrap(), raw);
        }
    }
}
