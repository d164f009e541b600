//! The moments that somebody reads: one [`Database`] for all handles of an inode.
//!
//! Holds weakly what is open, so that any number may be, and strongly only the last few, so that a
//! program that opens and closes the same file for every query does not open it anew each time.

use crate::materialize::pages::Database;
use crate::mount::inode::Inode;
use lru::LruCache;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};

/// Each may hold an overlay of tens of MB, and to open one anew costs little as long as the cache
/// has what it needs.
const KEPT: NonZeroUsize = NonZeroUsize::new(8).expect("8 is not zero");
const SWEEP_MIN: usize = 1024;

/// Open moments by inode.
pub struct Opened<D = Database> {
    all: HashMap<Inode, Weak<D>>,
    recent: LruCache<Inode, Arc<D>>,
    /// Entries of moments that nobody holds any more go when there are so many.
    sweep_at: usize,
}

impl<D> Default for Opened<D> {
    fn default() -> Self {
        Self {
            all: HashMap::new(),
            recent: LruCache::new(KEPT),
            sweep_at: SWEEP_MIN,
        }
    }
}

impl<D> Opened<D> {
    /// The moment, if anybody has it open or had until lately.
    pub fn get(&mut self, inode: Inode) -> Option<Arc<D>> {
        if let Some(database) = self.recent.get(&inode) {
            return Some(database.clone());
        }
        let database = self.all.get(&inode)?.upgrade()?;
        self.recent.put(inode, database.clone());
        Some(database)
    }

    /// Keeps a moment that was just opened. Of two that were opened at once all use the first.
    pub fn keep(&mut self, inode: Inode, database: Arc<D>) -> Arc<D> {
        if let Some(first) = self.get(inode) {
            return first;
        }
        self.all.insert(inode, Arc::downgrade(&database));
        self.recent.put(inode, database.clone());
        if self.all.len() >= self.sweep_at {
            self.all.retain(|_, database| database.strong_count() > 0);
            self.sweep_at = (self.all.len() * 2).max(SWEEP_MIN);
        }
        database
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_that_somebody_holds_is_found_however_many_came_after_it() {
        let mut opened = Opened::default();
        let held = opened.keep(Inode(1), Arc::new(1));
        for n in 2..5000 {
            opened.keep(Inode(n), Arc::new(n));
        }
        assert!(Arc::ptr_eq(&opened.get(Inode(1)).unwrap(), &held));
    }

    #[test]
    fn a_moment_that_nobody_holds_goes_when_others_came_after_it() {
        let mut opened = Opened::default();
        opened.keep(Inode(1), Arc::new(1));
        assert_eq!(opened.get(Inode(1)).as_deref(), Some(&1));
        for n in 2..5000 {
            opened.keep(Inode(n), Arc::new(n));
        }
        assert_eq!(opened.get(Inode(1)), None);
        assert!(opened.all.len() < 2 * SWEEP_MIN, "{}", opened.all.len());
    }

    #[test]
    fn two_who_open_a_moment_at_once_share_the_first() {
        let mut opened = Opened::default();
        let first = opened.keep(Inode(1), Arc::new(1));
        let second = opened.keep(Inode(1), Arc::new(2));
        assert!(Arc::ptr_eq(&first, &second));
    }
}
