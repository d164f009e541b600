//! The room that the spools of a process have on the local disk, together.
//!
//! Counts the log files of all spools and what of the databases' WALs is held back because it is
//! not copied yet; not the objects that uploaders have on their way, which are bounded by
//! themselves. Half of the room is dealt out evenly, so that a database whose replica is away
//! cannot stop the others; the other half is for whoever needs it. All together never take more
//! than there is.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A tenth of the free space, and no more than this unless told, bytes.
const LIMIT_MAX: u64 = 10 << 30;

/// What all spools of a process and the WALs that they hold back may take.
#[derive(Debug, Default)]
pub struct Budget {
    /// `None`: by the free space.
    limit: Option<u64>,
    used: AtomicU64,
    shares: AtomicU64,
}

/// What one spool takes of a budget.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    spool: AtomicU64,
    held: AtomicU64,
}

impl Budget {
    /// So many bytes; if not given, a tenth of the free space, at most 10 GiB.
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            limit,
            ..Self::default()
        })
    }

    /// Bytes that all take now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn limit(&self, dir: &Path) -> u64 {
        self.limit
            .unwrap_or_else(|| match nix::sys::statvfs::statvfs(dir) {
                Ok(stat) => {
                    let free = stat.blocks_available() * stat.fragment_size();
                    limit_of(free, self.used())
                }
                Err(errno) => {
                    tracing::warn!("free space of {}: {errno}", dir.display());
                    LIMIT_MAX
                }
            })
    }
}

impl Share {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        budget.shares.fetch_add(1, Ordering::Relaxed);
        Self {
            budget,
            spool: AtomicU64::new(0),
            held: AtomicU64::new(0),
        }
    }

    /// The log files have so many bytes now.
    pub(super) fn set_spool(&self, bytes: u64) {
        self.change(&self.spool, bytes);
    }

    /// So many bytes of the WAL are not copied yet.
    pub(super) fn set_held(&self, bytes: u64) {
        self.change(&self.held, bytes);
    }

    fn change(&self, part: &AtomicU64, bytes: u64) {
        let before = part.swap(bytes, Ordering::Relaxed);
        // Wraps around where it becomes less.
        self.budget
            .used
            .fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Bytes that this one may take now, with what it takes already. `dir`: where.
    pub(super) fn room(&self, dir: &Path) -> u64 {
        let own = self.spool.load(Ordering::Relaxed) + self.held.load(Ordering::Relaxed);
        let others = self.budget.used().saturating_sub(own);
        let shares = self.budget.shares.load(Ordering::Relaxed);
        room(self.budget.limit(dir), shares, others)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set_spool(0);
        self.set_held(0);
        self.budget.shares.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What may be taken where so much is free beside what is taken.
fn limit_of(free: u64, used: u64) -> u64 {
    ((free + used) / 10).min(LIMIT_MAX)
}

/// What one of `shares` may take while the others have `others`.
fn room(limit: u64, shares: u64, others: u64) -> u64 {
    let dealt_out = limit / 2;
    dealt_out / shares.max(1) + (limit - dealt_out).saturating_sub(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_takes_all_that_is_common_leaves_each_other_its_own_part() {
        for (shares, others, expected) in [
            (1, 0, 1001),
            (4, 0, 626),
            (4, 501, 125),
            (4, 5000, 125),
            (1000, 0, 501),
        ] {
            assert_eq!(
                room(1001, shares, others),
                expected,
                "{shares} shares, {others}"
            );
        }
    }

    #[test]
    fn all_together_never_take_more_than_there_is() {
        for order in [[0, 1, 2, 3], [3, 1, 0, 2]] {
            let budget = Budget::new(Some(1000));
            let shares = [(); 4].map(|()| Share::new(budget.clone()));
            for at in order {
                shares[at].set_spool(shares[at].room(Path::new("/")));
            }
            assert!(budget.used() <= 1000, "{budget:?}");
        }
    }

    #[test]
    fn what_a_spool_gives_back_or_leaves_behind_is_room_for_the_others() {
        let budget = Budget::new(Some(1000));
        let (one, two) = (Share::new(budget.clone()), Share::new(budget.clone()));
        let dir = Path::new("/");
        one.set_spool(300);
        one.set_held(100);
        assert_eq!((budget.used(), two.room(dir)), (400, 350));
        one.set_spool(50);
        assert_eq!((budget.used(), two.room(dir)), (150, 600));
        drop(one);
        assert_eq!((budget.used(), two.room(dir)), (0, 1000));
    }

    #[test]
    fn without_a_limit_it_is_a_tenth_of_the_free_space() {
        assert_eq!(limit_of(1000, 0), 100);
        assert_eq!(limit_of(900, 100), 100);
        assert_eq!(limit_of(u64::MAX / 2, 0), 10 << 30);
        let share = Share::new(Budget::new(None));
        let dir = std::env::temp_dir();
        let free = || {
            let stat = nix::sys::statvfs::statvfs(&dir).unwrap();
            stat.blocks_available() * stat.fragment_size()
        };
        let (before, room, after) = (free(), share.room(&dir), free());
        // Others write there, too.
        let range = limit_of(before.min(after) / 2, 0)..=limit_of(before.max(after) * 2, 0);
        assert!(range.contains(&room), "{room} not in {range:?}");
    }
}
