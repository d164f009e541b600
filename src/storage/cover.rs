//! Which segment stands for which transactions. Pure.
//!
//! Invariant: pieces are ascending and without overlap.

use crate::format::ids::Txid;
use std::collections::BinaryHeap;

/// A segment as planning sees it. Lists of them are in the order of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) level: u8,
    pub(crate) first: Txid,
    pub(crate) last: Txid,
}

/// The transactions for which one segment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Which segment.
    pub(crate) index: usize,
    pub(crate) from: Txid,
    pub(crate) to: Txid,
}

/// Which segment stands for which transactions: of several the one of the higher level, then the
/// one that ends later, then the one with the greater key. Gaps stay open.
pub(crate) fn cover(spans: &[Span]) -> Vec<Piece> {
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|&index| spans[index].first);
    let mut waiting = order.into_iter().peekable();
    // Those that have begun, the preferred one on top.
    let mut open: BinaryHeap<(u8, Txid, usize)> = BinaryHeap::new();
    let mut pieces: Vec<Piece> = Vec::new();
    let mut at = Txid::FIRST;
    loop {
        while let Some(index) = waiting.next_if(|&index| spans[index].first <= at) {
            open.push((spans[index].level, spans[index].last, index));
        }
        while open.peek().is_some_and(|&(_, last, _)| last < at) {
            open.pop();
        }
        let begins = waiting.peek().map(|&index| spans[index].first);
        let Some(&(_, last, index)) = open.peek() else {
            match begins {
                Some(next) => at = next,
                None => return pieces,
            }
            continue;
        };
        // The choice stands until it ends or another one begins.
        let to = match begins {
            Some(next) if next <= last => Txid::new(next.get() - 1).expect("it begins after `at`"),
            _ => last,
        };
        match pieces.last_mut() {
            Some(piece) if piece.index == index => piece.to = to,
            _ => pieces.push(Piece {
                index,
                from: at,
                to,
            }),
        }
        if to == Txid::MAX {
            return pieces;
        }
        at = to.next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn txid(number: u64) -> Txid {
        Txid::new(number).unwrap()
    }

    #[test]
    fn the_last_txid_that_can_be_is_no_special_case() {
        let spans = [Span {
            level: 0,
            first: txid(2),
            last: Txid::MAX,
        }];
        assert_eq!(cover(&spans).len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn each_transaction_is_covered_by_the_segment_that_a_plain_search_prefers(
            spans in prop::collection::vec((0_u8..3, 2_u64..40, 0_u64..12), 0..12),
        ) {
            let spans: Vec<Span> = spans.iter()
                .map(|&(level, first, length)| Span {
                    level,
                    first: txid(first),
                    last: txid(first + length),
                })
                .collect();
            let pieces = cover(&spans);
            prop_assert!(pieces.windows(2).all(|w| w[0].to < w[1].from));
            for t in 1..60 {
                let plain = spans.iter().enumerate()
                    .filter(|(_, s)| s.first.get() <= t && t <= s.last.get())
                    .max_by_key(|(index, s)| (s.level, s.last, *index))
                    .map(|(index, _)| index);
                let found = pieces.iter()
                    .find(|p| p.from.get() <= t && t <= p.to.get())
                    .map(|p| p.index);
                prop_assert_eq!(found, plain, "txid {}", t);
            }
        }
    }
}
