//! What a snapshot carries once more: the first pages, with which every reader begins, and the
//! b-tree interior pages. One read at open brings them, and a cold point query then needs one more
//! read instead of one for each level of its tree.
//!
//! They are copies, chosen by their looks (fileformat2, "B-tree Pages"): a page that only looks
//! like an interior page costs a little space and nothing else. [`crate::format::snapshot`] has the
//! layout of the section.

use crate::error::Result;
use crate::format::container::Scratch;
use crate::format::ids::{PageSize, Pgno};
use crate::format::object::{ObjectWriter, Spill, scratch_failed};
use crate::format::varint::{self, Fields};
use std::cmp::Reverse;
use std::collections::HashSet;
use std::io::{Seek, Write};

/// What is stored of them at most, bytes.
pub const STORED_MAX: usize = 512 * 1024;
/// What they take at most once inflated, bytes.
pub const RAW_MAX: usize = 4 * 1024 * 1024;
/// The beginning of the database that is always among them, bytes: the kernel reads some more pages
/// along with page 1, at first 4 and then 8 (measured on Linux 6.18).
const FIRST_BYTES: u32 = 64 * 1024;
/// SQLite's b-trees are no deeper (btree.c, BTCURSOR_MAX_DEPTH); what seems so is no tree.
const DEPTH_MAX: u32 = 20;
/// The database header before the b-tree header of page 1, bytes.
const DATABASE_HEADER_BYTES: usize = 100;
/// The b-tree header of an interior page, bytes.
const INTERIOR_HEADER_BYTES: usize = 12;

/// Decodes the inflated section: (pgno, page), ascending.
///
/// # Errors
/// `Corrupt`.
pub fn decode_interior(section: &[u8], page_size: usize) -> Result<Vec<(Pgno, Vec<u8>)>> {
    let mut fields = Fields::new("section InteriorPages", section);
    let count = fields.count(1 + page_size)?;
    let mut pgnos = Vec::with_capacity(count);
    let mut pgno = 0_u32;
    for _ in 0..count {
        let step = fields.number32()?;
        match pgno.checked_add(step).and_then(Pgno::new) {
            Some(next) if step > 0 => pgnos.push(next),
            _ => return Err(fields.wrong(format!("pgno {pgno} plus {step}"))),
        }
        pgno += step;
    }
    let pages = pgnos
        .into_iter()
        .map(|pgno| Ok((pgno, fields.bytes(page_size)?.to_vec())))
        .collect::<Result<_>>()?;
    fields.end()?;
    Ok(pages)
}

/// A page in the scratch file.
#[derive(Clone, Copy, Debug)]
struct Kept {
    pgno: u32,
    /// The child with the smallest keys; 0 if it is a leaf.
    first_child: u32,
    /// Which page of the scratch file it is.
    position: u32,
}

/// Collects the first pages and the b-tree interior pages that go by, over all parts of a snapshot,
/// in a scratch file; at the end chooses at most 512 KiB (stored): the first pages, then roots and
/// upper levels. In memory it holds 12 bytes for each.
pub struct InteriorPages {
    page_size: PageSize,
    pages: Spill,
    kept: Vec<Kept>,
}

impl InteriorPages {
    /// An empty collection.
    ///
    /// # Errors
    /// `Disk`.
    pub fn new(page_size: PageSize, scratch: Scratch<'_>) -> Result<Self> {
        Ok(Self {
            page_size,
            pages: Spill::new(scratch().map_err(scratch_failed)?),
            kept: Vec::new(),
        })
    }

    /// Keeps the page if it is one of the first or looks like an interior page. Of a page that is
    /// offered again the last one counts.
    ///
    /// # Errors
    /// `Disk`.
    ///
    /// # Panics
    /// If the page has another size than given to `new`.
    pub fn offer(&mut self, pgno: Pgno, page: &[u8]) -> Result<()> {
        assert_eq!(page.len(), self.page_size.bytes(), "the size of a page");
        let first_child = match children(pgno.get(), page) {
            Some(children) => children[0],
            None if self.is_first(pgno.get()) => 0,
            None => return Ok(()),
        };
        self.pages.append(page)?;
        self.kept.push(Kept {
            pgno: pgno.get(),
            first_child,
            position: self.kept.len() as u32,
        });
        Ok(())
    }

    /// The raw section, or `None` without any page.
    pub(super) fn section<W: Write + Seek>(
        mut self,
        object: &mut ObjectWriter<W>,
    ) -> Result<Option<Vec<u8>>> {
        let mut order = self.by_importance()?;
        order.truncate(RAW_MAX / self.page_size.bytes());
        while !order.is_empty() {
            let raw = self.encode(&order)?;
            let stored = object.compress(&raw)?.len();
            if stored <= STORED_MAX {
                return Ok(Some(raw));
            }
            // A little less than should fit, so that one more try mostly suffices.
            order.truncate(order.len() * STORED_MAX / stored * 31 / 32);
        }
        Ok(None)
    }

    /// All pages: the first pages, then roots, then by height, then by number.
    fn by_importance(&mut self) -> Result<Vec<Kept>> {
        // Ascending, and of pages that were offered again only the last.
        self.kept
            .sort_by_key(|page| (page.pgno, Reverse(page.position)));
        self.kept.dedup_by_key(|page| page.pgno);
        let heights: Vec<u32> = self.kept.iter().map(|page| self.height(page)).collect();
        // Only a page above other interior pages has children that matter here.
        let mut has_parent = HashSet::new();
        let mut bytes = vec![0; self.page_size.bytes()];
        for (page, _) in self.kept.iter().zip(&heights).filter(|(_, h)| **h > 1) {
            let offset = u64::from(page.position) * bytes.len() as u64;
            self.pages.read_at(offset, &mut bytes)?;
            let children = children(page.pgno, &bytes).unwrap_or_default();
            has_parent.extend(
                children
                    .into_iter()
                    .filter(|&child| child != page.pgno && find(&self.kept, child).is_some()),
            );
        }
        let mut order: Vec<(bool, Reverse<u32>, Kept)> = self
            .kept
            .iter()
            .zip(heights)
            .map(|(page, height)| (has_parent.contains(&page.pgno), Reverse(height), *page))
            .collect();
        order.sort_by_key(|&(below, height, page)| {
            (!self.is_first(page.pgno), below, height, page.pgno)
        });
        Ok(order.into_iter().map(|(_, _, page)| page).collect())
    }

    fn is_first(&self, pgno: u32) -> bool {
        pgno <= FIRST_BYTES / self.page_size.get()
    }

    /// Levels of interior pages from this one down: 1 above leaves.
    fn height(&self, page: &Kept) -> u32 {
        let mut page = *page;
        let mut height = 1;
        while let Some(child) = find(&self.kept, page.first_child) {
            if height == DEPTH_MAX {
                return 1;
            }
            page = *child;
            height += 1;
        }
        height
    }

    fn encode(&mut self, chosen: &[Kept]) -> Result<Vec<u8>> {
        let page_bytes = self.page_size.bytes();
        let mut chosen = chosen.to_vec();
        chosen.sort_unstable_by_key(|page| page.pgno);
        let mut raw = Vec::with_capacity(chosen.len() * (page_bytes + 5));
        varint::put(&mut raw, chosen.len() as u64);
        let mut before = 0;
        for page in &chosen {
            varint::put(&mut raw, u64::from(page.pgno - before));
            before = page.pgno;
        }
        for page in &chosen {
            let start = raw.len();
            raw.resize(start + page_bytes, 0);
            let offset = u64::from(page.position) * page_bytes as u64;
            self.pages.read_at(offset, &mut raw[start..])?;
        }
        Ok(raw)
    }
}

fn find(kept: &[Kept], pgno: u32) -> Option<&Kept> {
    kept.binary_search_by_key(&pgno, |page| page.pgno)
        .ok()
        .map(|index| &kept[index])
}

/// The children of a page in key order, if it looks like an interior page.
fn children(pgno: u32, page: &[u8]) -> Option<Vec<u32>> {
    let start = if pgno == 1 { DATABASE_HEADER_BYTES } else { 0 };
    let number16 = |at: usize| usize::from(u16::from_be_bytes([page[at], page[at + 1]]));
    let number32 =
        |at: usize| u32::from_be_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    // 2 is an index's, 5 a table's.
    if !matches!(page[start], 2 | 5) {
        return None;
    }
    let cells = number16(start + 3);
    let pointers = start + INTERIOR_HEADER_BYTES;
    let pointers_end = pointers + 2 * cells;
    let content = match number16(start + 5) {
        0 => 65536,
        content => content,
    };
    if cells == 0 || pointers_end > content || content > page.len() {
        return None;
    }
    let mut children = Vec::with_capacity(cells + 1);
    for pointer in (pointers..pointers_end).step_by(2) {
        let cell = number16(pointer);
        if cell < content || cell + 4 > page.len() {
            return None;
        }
        children.push(number32(cell));
    }
    children.push(number32(start + 8));
    children.iter().all(|&child| child > 1).then_some(children)
}

#[cfg(test)]
mod tests;
