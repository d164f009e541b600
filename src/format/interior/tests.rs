//! Which pages are kept, and in which order they are given up.

use super::*;
use crate::format::container::tests::{pgno, scratch};
use std::io::Cursor;

const SIZE: u32 = 512;

fn interior(kind: u8, children: &[u32]) -> Vec<u8> {
    let mut page = vec![0; SIZE as usize];
    fill(&mut page, 0, kind, children);
    page
}

/// Makes an interior page with cells of 8 bytes.
fn fill(page: &mut [u8], start: usize, kind: u8, children: &[u32]) {
    let (right, cells) = children.split_last().unwrap();
    page[start] = kind;
    page[start + 3..start + 5].copy_from_slice(&(cells.len() as u16).to_be_bytes());
    let content = page.len() - 8 * cells.len();
    page[start + 5..start + 7].copy_from_slice(&(content as u16).to_be_bytes());
    page[start + 8..start + 12].copy_from_slice(&right.to_be_bytes());
    for (index, child) in cells.iter().enumerate() {
        let cell = content + 8 * index;
        page[start + 12 + 2 * index..][..2].copy_from_slice(&(cell as u16).to_be_bytes());
        page[cell..cell + 4].copy_from_slice(&child.to_be_bytes());
    }
}

fn collect(pages: &[(u32, Vec<u8>)]) -> InteriorPages {
    let size = PageSize::new(pages[0].1.len() as u32).unwrap();
    let mut collection = InteriorPages::new(size, &scratch).unwrap();
    for (number, page) in pages {
        collection.offer(pgno(*number), page).unwrap();
    }
    collection
}

fn section(collection: InteriorPages) -> Option<Vec<u8>> {
    let mut object = ObjectWriter::new(Cursor::new(Vec::new())).unwrap();
    collection.section(&mut object).unwrap()
}

fn order(mut collection: InteriorPages) -> Vec<u32> {
    let order = collection.by_importance().unwrap();
    order.into_iter().map(|page| page.pgno).collect()
}

#[test]
fn roots_come_first_then_upper_levels() {
    let pages = [
        (2, interior(5, &[10, 11])),
        (3, interior(2, &[20, 21, 22])),
        (10, interior(5, &[30, 31])),
        (11, interior(5, &[40, 41])),
        (20, interior(2, &[50, 51])),
        (21, interior(2, &[52, 53])),
        (22, interior(2, &[54, 55])),
        (30, interior(5, &[60, 61])),
        (31, interior(5, &[62, 63])),
        (40, interior(5, &[64, 65])),
        (41, interior(5, &[66, 67])),
        (70, interior(5, &[80, 81])),
    ];
    assert_eq!(
        order(collect(&pages)),
        [2, 3, 70, 10, 11, 20, 21, 22, 30, 31, 40, 41]
    );
}

#[test]
fn pages_in_a_circle_are_no_trees_and_no_end() {
    let pages = [
        (2, interior(5, &[3, 9])),
        (3, interior(5, &[2, 9])),
        (4, interior(5, &[4, 9])),
    ];
    assert_eq!(order(collect(&pages)), [2, 3, 4]);
}

#[test]
fn the_first_64_kib_are_kept_whatever_they_are_and_before_all_else() {
    let leaf = || vec![0; SIZE as usize];
    let pages = [
        (1, leaf()),
        (128, leaf()),
        (129, leaf()),
        (200, interior(5, &[300, 301])),
        (300, interior(5, &[7, 8])),
        (400, interior(5, &[7, 8])),
    ];
    assert_eq!(order(collect(&pages)), [1, 128, 200, 400, 300]);
    // The header of page 1 stands at 100: page 300 is no root.
    let mut first = leaf();
    fill(&mut first, 100, 5, &[300, 301]);
    let pages = [
        (1, first),
        (300, interior(5, &[7, 8])),
        (400, interior(5, &[7, 8])),
    ];
    assert_eq!(order(collect(&pages)), [1, 400, 300]);
}

#[test]
fn only_what_looks_like_an_interior_page_is_kept() {
    let good = interior(5, &[7, 8]);
    let kept = |pgno_: u32, page: &[u8]| {
        let mut collection = InteriorPages::new(PageSize::new(SIZE).unwrap(), &scratch).unwrap();
        collection.offer(pgno(pgno_), page).unwrap();
        collection.kept.len() == 1
    };
    assert!(kept(1000, &good));
    let mut first = vec![0; SIZE as usize];
    fill(&mut first, 100, 5, &[7, 8]);
    assert!(!kept(1000, &first));
    for (offset, byte) in [
        (0, 13),
        (0, 0),
        (3, 0xff),
        (4, 0),
        (5, 0xff),
        (12, 0),
        (12, 0xff),
    ] {
        let mut page = good.clone();
        page[offset] = byte;
        assert!(!kept(1000, &page), "byte {offset} is {byte}");
    }
    assert!(!kept(1000, &interior(5, &[0, 8])), "page 0 is no child");
    assert!(!kept(1000, &interior(5, &[8, 1])), "nor is page 1");
}

#[test]
fn a_chosen_page_reads_back_as_it_was_last() {
    let pages = [
        (9, interior(5, &[7, 8])),
        (4, interior(2, &[5, 6])),
        (9, interior(5, &[17, 18])),
    ];
    let raw = section(collect(&pages)).unwrap();
    let read = decode_interior(&raw, SIZE as usize).unwrap();
    assert_eq!(
        read,
        [
            (pgno(4), interior(2, &[5, 6])),
            (pgno(9), interior(5, &[17, 18]))
        ]
    );
    for length in 0..raw.len() {
        assert!(decode_interior(&raw[..length], SIZE as usize).is_err());
    }
}

#[test]
fn without_interior_pages_there_is_no_section() {
    assert_eq!(section(collect(&[(1000, vec![0; SIZE as usize])])), None);
}

#[test]
fn what_does_not_fit_is_given_up_from_below() {
    // 600 pages of 4 KiB of noise, of which 512 KiB hold 128 at most; the last is the only root.
    let mut pages: Vec<(u32, Vec<u8>)> = (0..600_u32)
        .map(|n| {
            let mut page = vec![0; 4096];
            blake3::Hasher::new()
                .update(&n.to_le_bytes())
                .finalize_xof()
                .fill(&mut page);
            page[..16].copy_from_slice(&[5, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 9, 1, 0, 0, 0]);
            page[256..260].copy_from_slice(&[0, 0, 0, 9]);
            (n + 1000, page)
        })
        .collect();
    let all: Vec<u32> = pages.iter().map(|(number, _)| *number).take(400).collect();
    let mut root = vec![0; 4096];
    fill(&mut root, 0, 5, &all);
    pages.push((5000, root));
    let raw = section(collect(&pages)).unwrap();
    let stored = zstd::bulk::compress(&raw, 3).unwrap().len();
    assert!(
        stored <= STORED_MAX && stored > STORED_MAX * 9 / 10,
        "{stored}"
    );
    let kept = decode_interior(&raw, 4096).unwrap();
    assert_eq!(kept.last().unwrap().0, pgno(5000));
    // The 200 pages without a parent count as roots.
    assert!(kept.iter().all(|(number, _)| number.get() >= 1400));
}
