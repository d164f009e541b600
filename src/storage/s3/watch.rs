//! What is seen of one request on its way: whether its body moves, and the date of its answer.

use crate::format::ids::Timestamp;
use crate::storage::s3::clock::date_of;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextMut,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use tokio::time::Instant;

/// The eyes on one request, to be given to it as an interceptor.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    moved: Arc<Mutex<Moved>>,
    date: Arc<OnceLock<Timestamp>>,
}

/// What the connection has taken in so far of a body.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moved {
    pub(super) pieces: u64,
    /// When it took the last one.
    pub(super) last: Option<Instant>,
}

impl Watch {
    /// How far the body is.
    pub(super) fn moved(&self) -> Moved {
        *self.lock()
    }

    /// The `Date` of the answer, once it is there.
    pub(super) fn date(&self) -> Option<Timestamp> {
        self.date.get().copied()
    }

    /// Notes that a piece was taken in.
    pub(super) fn note(&self) {
        let mut moved = self.lock();
        moved.pieces += 1;
        moved.last = Some(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, Moved> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same body, under watch.
    fn over(&self, body: SdkBody) -> SdkBody {
        let watch = self.clone();
        body.map_preserve_contents(move |body| {
            let watch = watch.clone();
            SdkBody::from_body_1_x(Watched { body, watch })
        })
    }
}

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "Watch"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.request_mut().body_mut();
        *body = self.over(std::mem::replace(body, SdkBody::taken()));
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(date) = date_of(context) {
            // A request has one answer.
            let _ = self.date.set(date);
        }
        Ok(())
    }
}

/// A body of which each piece is noted when it is taken.
struct Watched {
    body: SdkBody,
    watch: Watch,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready() {
            self.watch.note();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        Body::is_end_stream(&self.body)
    }

    fn size_hint(&self) -> SizeHint {
        Body::size_hint(&self.body)
    }
}
