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
    compressor: zstd::bulk::Compressor<'static>,
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
            compressor: zstd::bulk::Compressor::new(LEVEL).map_err(write_failed)?,
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
        self.compressed.clear();
        self.compressed
            .reserve(zstd::zstd_safe::compress_bound(raw.len()));
        self.compressor
            .compress_to_buffer(raw, &mut self.compressed)
            .map_err(write_failed)?;
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

/// A zstd encoder for a section of known raw length, whose output is taken piece by piece.
pub(super) struct SectionEncoder(zstd::stream::write::Encoder<'static, Vec<u8>>);

impl SectionEncoder {
    pub(super) fn new(raw_length: u64) -> Result<Self> {
        let mut encoder =
            zstd::stream::write::Encoder::new(Vec::new(), LEVEL).map_err(write_failed)?;
        encoder
            .set_pledged_src_size(Some(raw_length))
            .map_err(write_failed)?;
        Ok(Self(encoder))
    }

    /// Compresses `raw` and appends to `spill` what came of it so far.
    pub(super) fn write(&mut self, raw: &[u8], spill: &mut Spill) -> Result<()> {
        self.0.write_all(raw).map_err(write_failed)?;
        let stored = std::mem::take(self.0.get_mut());
        spill.append(&stored)
    }

    pub(super) fn finish(self, spill: &mut Spill) -> Result<()> {
        spill.append(&self.0.finish().map_err(write_failed)?)
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
