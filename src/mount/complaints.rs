//! What was logged lately: a reader that fails again and again, page after page, says so once.

use lru::LruCache;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

const REMEMBERED: NonZeroUsize = NonZeroUsize::new(256).expect("256 is not zero");

/// What still fails after this long is worth another line.
const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// The last complaints and when they were logged.
pub struct Complaints {
    logged: LruCache<String, Instant>,
}

impl Default for Complaints {
    fn default() -> Self {
        Self {
            logged: LruCache::new(REMEMBERED),
        }
    }
}

impl Complaints {
    /// True if this should be logged now. `what` leaves out what differs from one try to the next.
    pub fn is_news(&mut self, what: &str, now: Instant) -> bool {
        match self.logged.get(what) {
            Some(&logged) if now.duration_since(logged) < AGAIN_AFTER => false,
            _ => {
                self.logged.put(what.to_owned(), now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_news_once_in_ten_minutes() {
        let start = Instant::now();
        let mut complaints = Complaints::default();
        assert!(complaints.is_news("no answer", start));
        assert!(!complaints.is_news("no answer", start + AGAIN_AFTER / 2));
        assert!(complaints.is_news("wrong checksum", start));
        assert!(complaints.is_news("no answer", start + AGAIN_AFTER));
        assert!(!complaints.is_news("no answer", start + AGAIN_AFTER));
    }

    #[test]
    fn only_so_many_complaints_are_remembered() {
        let start = Instant::now();
        let mut complaints = Complaints::default();
        for n in 0..=REMEMBERED.get() {
            assert!(complaints.is_news(&n.to_string(), start));
        }
        assert!(complaints.is_news("0", start));
    }
}
