//! What the kernel asked of a mount so far: what it remembers it does not ask again.

use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often each was asked for.
#[derive(Debug, Default)]
pub struct Calls([AtomicU64; 7]);

/// What may be asked for.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    /// What a name means, or where a link leads.
    Lookup,
    /// Attributes, extended ones too.
    Attributes,
    /// Some lines of a directory.
    List,
    /// Opening a file.
    Open,
    /// Bytes of a file.
    Read,
    /// Those of them that were not in memory.
    Miss,
    /// The end of an open file.
    Release,
}

/// The counts at one time.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Counts {
    lookups: u64,
    attributes: u64,
    lists: u64,
    opens: u64,
    reads: u64,
    misses: u64,
    releases: u64,
}

impl Calls {
    /// Counts one more.
    pub fn count(&self, call: Call) {
        // ORDERING: a count says nothing about anything else.
        self.0[call as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        let count = |call: Call| self.0[call as usize].load(Ordering::Relaxed);
        Counts {
            lookups: count(Call::Lookup),
            attributes: count(Call::Attributes),
            lists: count(Call::List),
            opens: count(Call::Open),
            reads: count(Call::Read),
            misses: count(Call::Miss),
            releases: count(Call::Release),
        }
    }
}
