//! From a live database to a replica: WAL capture into the spool, upload, first snapshots.

pub mod act;
mod backoff;
pub mod budget;
mod connection;
mod copy;
pub mod decide;
pub mod encode;
pub mod first;
pub mod history;
pub mod identity;
pub mod known;
mod live;
mod locks;
pub mod making;
pub mod observe;
pub mod pages;
mod pool;
pub mod put;
mod rest;
mod salvage;
pub mod seed;
pub mod sent;
pub mod source;
pub mod spool;
pub mod state;
pub mod upload;
mod wake;
pub mod writers;

#[cfg(test)]
mod tests;

use crate::error::Result;

/// Runs blocking work beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}
