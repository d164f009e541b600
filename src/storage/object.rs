//! Reading one stored object: its footer from one ranged read of the tail, then its sections.

use crate::error::{Error, Result};
use crate::format::container::{Footer, SectionKind, SectionRef, Tail};
use crate::storage::Store;
use bytes::Bytes;

/// The first read of an object is this part of it, within limits: enough for the footer and most
/// sections. A block table takes about 1/3,600 of a snapshot.
const TAIL_PART: u64 = 2048;
const TAIL_BYTES_MIN: u64 = 64 << 10;
const TAIL_BYTES_MAX: u64 = 512 << 10;
/// Sections before the tail are read together with what lies between them and it, up to so many
/// bytes.
const GAP_BYTES: u64 = 64 << 10;

/// Reads a range of an object, and refuses an answer of another length: stores promise that, but
/// what they answer comes from servers.
///
/// # Errors
/// `NotFound`, `Unavailable`, `Corrupt`, naming the object.
pub async fn get_exactly(store: &dyn Store, key: &str, offset: u64, length: u64) -> Result<Bytes> {
    let bytes = store.get_range(key, offset, length).await?;
    if bytes.len() as u64 != length {
        return Err(Error::corrupt(format!(
            "read {}/{key}: {} bytes from offset {offset}, expected {length}",
            store.location(),
            bytes.len()
        )));
    }
    Ok(bytes)
}

/// An object of a store whose footer was read and verified.
#[derive(Clone, Debug)]
pub struct StoredObject {
    /// Where it lies.
    pub key: String,
    /// What its footer says.
    pub footer: Footer,
    tail: Bytes,
}

impl StoredObject {
    /// Reads the footer of the object of `size` bytes at `key`.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, and `Corrupt` or `Invalid`, naming the object.
    pub async fn open(store: &dyn Store, key: &str, size: u64) -> Result<Self> {
        let part = (size / TAIL_PART).clamp(TAIL_BYTES_MIN, TAIL_BYTES_MAX);
        Self::open_tail(store, key, size, part).await
    }

    /// The same by a first read of so many bytes from the end, which may bring sections too.
    ///
    /// # Errors
    /// As [`StoredObject::open`].
    pub async fn open_tail(store: &dyn Store, key: &str, size: u64, tail: u64) -> Result<Self> {
        let named = |e: Error| e.context(format!("read {}/{key}", store.location()));
        let mut wanted = tail.min(size);
        loop {
            let tail = get_exactly(store, key, size - wanted, wanted).await?;
            match Footer::decode(&tail, size).map_err(named)? {
                Tail::Whole(footer) => {
                    return Ok(Self {
                        key: key.to_owned(),
                        footer,
                        tail,
                    });
                }
                Tail::Needs(more) if more > wanted && more <= size => wanted = more,
                Tail::Needs(more) => {
                    return Err(named(Error::corrupt(format!(
                        "the footer claims {more} bytes of an object of {size}"
                    ))));
                }
            }
        }
    }

    /// The sections of these kinds, verified and inflated; `None` for one that the object lacks.
    /// Sections that the tail did not bring take one read together if they lie close before it,
    /// else one each.
    ///
    /// # Errors
    /// As [`StoredObject::open`].
    pub async fn sections<const N: usize>(
        &self,
        store: &dyn Store,
        kinds: [SectionKind; N],
    ) -> Result<[Option<Vec<u8>>; N]> {
        let places = kinds.map(|kind| self.footer.section(kind));
        let end = self.end_with(store, places.into_iter().flatten()).await?;
        let mut opened = [const { None }; N];
        for (section, place) in opened.iter_mut().zip(places) {
            let Some(place) = place else {
                continue;
            };
            let stored = match part_of(&end, self.footer.length, place.offset, place.length) {
                Some(stored) => stored,
                None => get_exactly(store, &self.key, place.offset, place.length).await?,
            };
            let inflated = place.open(&stored).map_err(|e| {
                e.context(format!(
                    "read {}/{}, offset {}",
                    store.location(),
                    self.key,
                    place.offset
                ))
            })?;
            *section = Some(inflated);
        }
        Ok(opened)
    }

    /// Bytes of the object that came with the footer, if these did.
    pub fn read_already(&self, offset: u64, length: u64) -> Option<Bytes> {
        part_of(&self.tail, self.footer.length, offset, length)
    }

    /// The one section of a kind.
    ///
    /// # Errors
    /// As [`StoredObject::open`]; `Corrupt` if the object lacks it.
    pub async fn section(&self, store: &dyn Store, kind: SectionKind) -> Result<Vec<u8>> {
        let [section] = self.sections(store, [kind]).await?;
        section.ok_or_else(|| {
            Error::corrupt(format!(
                "{}/{} has no section {kind:?}",
                store.location(),
                self.key
            ))
        })
    }

    /// The end of the object: the tail, and what lies before it from the first of these sections
    /// on, if that brings little else.
    async fn end_with<'a>(
        &self,
        store: &dyn Store,
        wanted: impl Iterator<Item = &'a SectionRef>,
    ) -> Result<Bytes> {
        let tail_offset = self.footer.length - self.tail.len() as u64;
        let (mut start, mut bytes) = (tail_offset, 0);
        for place in wanted.filter(|place| place.offset < tail_offset) {
            start = start.min(place.offset);
            bytes += place.length;
        }
        let length = tail_offset - start;
        if length == 0 || length > bytes + GAP_BYTES {
            return Ok(self.tail.clone());
        }
        let before = get_exactly(store, &self.key, start, length).await?;
        Ok([before, self.tail.clone()].concat().into())
    }
}

/// Bytes within the end of an object of `size` bytes, if they lie there.
fn part_of(end: &Bytes, size: u64, offset: u64, length: u64) -> Option<Bytes> {
    let start = offset.checked_sub(size - end.len() as u64)? as usize;
    let stop = start.checked_add(length as usize)?;
    (stop <= end.len()).then(|| end.slice(start..stop))
}
