//! Reading one stored object: its footer from one ranged read of the tail, then its sections.

use crate::error::{Error, Result};
use crate::format::container::{Footer, SectionKind, SectionRef, Tail};
use crate::storage::Store;
use bytes::Bytes;

/// Bytes of the first read of an object: enough for the footer and most sections.
const TAIL_BYTES: u64 = 64 << 10;

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
        let named = |e: Error| e.context(format!("read {}/{key}", store.location()));
        let mut wanted = TAIL_BYTES.min(size);
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
    /// Sections that the tail did not bring take one read each.
    ///
    /// # Errors
    /// As [`StoredObject::open`].
    pub async fn sections<const N: usize>(
        &self,
        store: &dyn Store,
        kinds: [SectionKind; N],
    ) -> Result<[Option<Vec<u8>>; N]> {
        let mut opened = [const { None }; N];
        for (section, kind) in opened.iter_mut().zip(kinds) {
            let Some(place) = self.footer.section(kind) else {
                continue;
            };
            let stored = self.stored(store, place).await?;
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

    async fn stored(&self, store: &dyn Store, place: &SectionRef) -> Result<Bytes> {
        let tail_offset = self.footer.length - self.tail.len() as u64;
        match place.offset.checked_sub(tail_offset) {
            Some(start) => {
                let start = start as usize;
                Ok(self.tail.slice(start..start + place.length as usize))
            }
            None => get_exactly(store, &self.key, place.offset, place.length).await,
        }
    }
}
