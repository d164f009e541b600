//! Whether a merged segment accounts for others, so that they may go: judged by what is stored,
//! without trust in how it was made.

use crate::error::{Error, Result};
use crate::format::container::SectionKind;
use crate::format::ids::{PageHash, Txid};
use crate::format::segment::TimelineEntry;
use crate::maintain::segment::OpenSegment;
use crate::maintain::versions::{Keep, Versions};
use crate::storage::Store;
use crate::storage::blocking::blocking;
use crate::storage::durable::scratch_in;
use crate::storage::object::{StoredObject, get_exactly};
use std::io::{BufReader, Cursor, Read, Seek, Write};
use std::path::Path;
use xxhash_rust::xxh3::Xxh3Default;

/// Hashes that are fetched at once, bytes.
const FETCHED_AT_ONCE: u64 = 1 << 20;
/// More hashes of one object than this lie in a scratch file, bytes.
const IN_MEMORY: u64 = 64 << 10;

/// Makes sure that a merged segment holds every page version of these segments, with its hash; of a
/// thinned one, every version that one of its restore points sees. Reads the index and the hashes
/// of all of them. `scratch` is a directory for what does not fit in memory.
///
/// # Errors
/// `Corrupt` if something is missing, naming it; `NotFound`, `Unavailable`, `Disk`.
pub async fn account(
    store: &dyn Store,
    scratch: &Path,
    inputs: &[(String, u64)],
    output: &(String, u64),
) -> Result<()> {
    let read = format!("read {}/{}", store.location(), output.0);
    let mut output = Hashed::open(store, scratch, output).await?;
    let mut opened = Vec::new();
    for input in inputs {
        let mut input = Hashed::open(store, scratch, input).await?;
        let compared = blocking(move || {
            compare_ranges(&input.segment, &output.segment)?;
            compare_timelines(&input.segment, &output.segment)?;
            // Of many inputs they would take more than all else.
            input.segment.timeline = Vec::new();
            Ok((input, output))
        });
        (input, output) = compared.await.map_err(|e| e.context(&read))?;
        opened.push(input);
    }
    let compared = blocking(move || compare_versions(opened, output)).await;
    compared.map_err(|e| e.context(read))
}

/// A segment with the hashes of its versions, in the order of the slots.
struct Hashed {
    segment: OpenSegment,
    hashes: Box<dyn Read + Send>,
}

impl Hashed {
    async fn open(store: &dyn Store, scratch: &Path, listed: &(String, u64)) -> Result<Self> {
        let segment = OpenSegment::open(store, &listed.0, listed.1).await?;
        let hashes = hashes(store, scratch, &segment.object).await?;
        Ok(Self { segment, hashes })
    }

    fn next_hash(&mut self) -> Result<PageHash> {
        let mut hash = [0; 16];
        let read = self.hashes.read_exact(&mut hash);
        read.map_err(|e| {
            let key = &self.segment.object.key;
            Error::corrupt(format!("{key}: fewer hashes than versions")).because(e)
        })?;
        Ok(PageHash(hash))
    }
}

/// The hashes of an object, verified.
async fn hashes(
    store: &dyn Store,
    scratch: &Path,
    object: &StoredObject,
) -> Result<Box<dyn Read + Send>> {
    let Some(section) = object.footer.section(SectionKind::PageHashes) else {
        return Ok(Box::new(std::io::empty()));
    };
    let failed = |e| Error::disk(format!("keep page hashes in {}", scratch.display()), e);
    let mut file = match section.length > IN_MEMORY {
        true => Some(scratch_in(scratch)().map_err(failed)?),
        false => None,
    };
    let (mut memory, mut checksum, mut at) = (Vec::new(), Xxh3Default::new(), 0);
    while at < section.length {
        let length = FETCHED_AT_ONCE.min(section.length - at);
        let bytes = get_exactly(store, &object.key, section.offset + at, length).await?;
        checksum.update(&bytes);
        match &mut file {
            Some(file) => file.write_all(&bytes).map_err(failed)?,
            None => memory.extend_from_slice(&bytes),
        }
        at += length;
    }
    if checksum.digest() != section.checksum {
        return Err(Error::corrupt(format!(
            "read {}/{}: the page hashes at {} fail their checksum",
            store.location(),
            object.key,
            section.offset
        )));
    }
    Ok(match file {
        Some(mut file) => {
            file.rewind().map_err(failed)?;
            Box::new(BufReader::new(file))
        }
        None => Box::new(Cursor::new(memory)),
    })
}

fn compare_versions(mut inputs: Vec<Hashed>, mut output: Hashed) -> Result<()> {
    let timeline = std::mem::take(&mut output.segment.timeline);
    let keep = match output.segment.header().thinned {
        true => Keep::SeenBy(timeline.iter().map(|entry| entry.txid).collect()),
        false => Keep::All,
    };
    drop(timeline);
    let listed = inputs.iter().map(|i| i.segment.listed(i.segment.range()));
    let mut versions = Versions::new(listed.collect())?;
    let mut there = output.next_version()?;
    while let Some(version) = versions.next()? {
        let input = &mut inputs[version.object];
        let hash = input.next_hash()?;
        let wanted = (version.pgno, version.txid);
        while there.is_some_and(|(place, _)| place < wanted) {
            there = output.next_version()?;
        }
        let next = there.filter(|((pgno, _), _)| *pgno == version.pgno);
        let is_there = next.filter(|((_, txid), _)| *txid == version.txid);
        let of = || {
            let (page, txid, key) = (version.pgno.get(), version.txid, &input.segment.object.key);
            format!("page {page} of txid {txid}, which {key} has")
        };
        match is_there {
            Some((_, found)) if found != hash => {
                return Err(Error::corrupt(format!("another content of {}", of())));
            }
            None if keep.keeps(version.txid, next.map(|((_, txid), _)| txid)) => {
                return Err(Error::corrupt(format!("it lacks {}", of())));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Hashed {
    fn next_version(&mut self) -> Result<Option<((crate::format::ids::Pgno, Txid), PageHash)>> {
        match self.segment.versions.next_version()? {
            Some((pgno, txid, _)) => Ok(Some(((pgno, txid), self.next_hash()?))),
            None => Ok(None),
        }
    }
}

fn compare_ranges(input: &OpenSegment, output: &OpenSegment) -> Result<()> {
    let (inner, outer) = (input.header(), output.header());
    let is_within = outer.first <= inner.first
        && inner.last <= outer.last
        && outer.generation == inner.generation
        && outer.database_id == inner.database_id;
    match is_within {
        true => Ok(()),
        false => Err(Error::corrupt(format!(
            "it does not stand for {}",
            input.object.key
        ))),
    }
}

/// The restore points that stay are what they were, and no shrink is lost.
fn compare_timelines(input: &OpenSegment, output: &OpenSegment) -> Result<()> {
    let is_thinned = output.header().thinned;
    for entry in &input.timeline {
        let behind = output
            .timeline
            .partition_point(|kept| kept.txid < entry.txid);
        let says = output
            .timeline
            .get(behind)
            .is_some_and(|kept| match kept.txid == entry.txid {
                true => is_same(entry, kept),
                false => is_thinned && kept.min_pages <= entry.min_pages,
            });
        if !says {
            let (txid, key) = (entry.txid, &input.object.key);
            return Err(Error::corrupt(format!(
                "it does not say what {key} says of txid {txid}"
            )));
        }
    }
    Ok(())
}

fn is_same(entry: &TimelineEntry, kept: &TimelineEntry) -> bool {
    let min_pages = kept.min_pages;
    min_pages <= entry.min_pages
        && *kept
            == TimelineEntry {
                min_pages,
                ..*entry
            }
}
