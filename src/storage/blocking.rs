//! Blocking work, beside the runtime.

use crate::error::{Error, Result};
use tokio::task::JoinError;

/// Runs blocking work beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let span = tracing::Span::current();
    joined(tokio::task::spawn_blocking(move || span.in_scope(work)).await)
}

/// What a task came to. One that panicked panics here too; one that the end of the runtime took
/// away is an error of nobody's.
pub(crate) fn joined<T>(ended: Result<Result<T>, JoinError>) -> Result<T> {
    match ended {
        Ok(outcome) => outcome,
        Err(e) => match e.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::unavailable("the process is ending")),
        },
    }
}
