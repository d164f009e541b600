//! The clock of a server, as its answers tell it.

use crate::format::ids::Timestamp;
use crate::storage::s3::answer::http_date;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Set by each answer of a client that has it as an interceptor. Clones are one clock.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerClock {
    /// What the last answer said, and when it came.
    last: Arc<Mutex<Option<(Timestamp, Instant)>>>,
}

impl ServerClock {
    /// The time there, unless no answer has said it yet.
    pub(super) fn now(&self) -> Option<Timestamp> {
        let (date, came) = (*self.lock())?;
        let since = i64::try_from(came.elapsed().as_micros()).unwrap_or(i64::MAX);
        Some(Timestamp::from_micros(date.micros().saturating_add(since)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Timestamp, Instant)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for ServerClock {
    fn name(&self) -> &'static str {
        "ServerClock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(date) = date_of(context) {
            *self.lock() = Some((date, Instant::now()));
        }
        Ok(())
    }
}

/// The `Date` of an answer.
pub(super) fn date_of(
    context: &BeforeDeserializationInterceptorContextRef<'_>,
) -> Option<Timestamp> {
    context.response().headers().get("date").and_then(http_date)
}
