//! What an uploader asks of a capture, besides the commits in the spool.

use crate::error::Result;
use crate::format::ids::{PageSize, Pgno, WalEnd};
use async_trait::async_trait;

/// A database that is being captured into a spool.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Waits until everything that was committed before the call is in the spool; its last `seq`.
    ///
    /// # Errors
    /// What keeps the capture from working.
    async fn barrier(&self) -> Result<u64>;

    /// The pages of the database at a known commit, for a first snapshot.
    ///
    /// # Errors
    /// What keeps the capture from working.
    async fn snapshot_pin(&self) -> Result<Box<dyn PageSource>>;
}

/// Pages of a live database in page order, as they were at one commit for as long as that is
/// possible; after that each page is as new as that commit, or newer.
pub trait PageSource: Send {
    /// The run that the commit belongs to.
    fn run(&self) -> u64;

    /// The commit whose state this is; when no longer exact, the state before the first page read.
    fn seq(&self) -> u64;

    /// Page size and database size in pages at that commit.
    fn size(&self) -> (PageSize, u32);

    /// Where SQLite's WAL stood at `seq`.
    fn end(&self) -> WalEnd;

    /// Gives up exactness.
    fn let_go(&mut self);

    /// False once it was let go: the pages read later may be newer than `seq`.
    fn is_exact(&self) -> bool;

    /// Reads a page; zeros for the lock-byte page and for one that is no longer there. In ascending
    /// order reads are cheap.
    ///
    /// # Errors
    /// `Disk`; `Conflict` if the run ended meanwhile; `Unavailable` if the database is locked.
    ///
    /// # Panics
    /// If `page` has not the size of a page.
    fn read(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<()>;
}
