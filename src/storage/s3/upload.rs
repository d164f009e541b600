//! Putting an object: in one request, or in parts when it is large.

use crate::error::{Error, Result};
use crate::format::ids::Timestamp;
use crate::storage::s3::S3Store;
use crate::storage::s3::answer::{Action, Answer, Asked, Failure, http_date, timestamp};
use crate::storage::s3::client::Connected;
use crate::storage::{Body, Put};
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{ByteStream, Length};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Bytes that are read from a file at once.
const READ: usize = 64 * 1024;

/// The `Date` of the answer to one request, once it is there.
#[derive(Clone, Debug, Default)]
struct AnswerDate(Arc<OnceLock<Timestamp>>);

impl Intercept for AnswerDate {
    fn name(&self) -> &'static str {
        "AnswerDate"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(date) = context.response().headers().get("date").and_then(http_date) {
            // There is one answer to a request.
            let _ = self.0.set(date);
        }
        Ok(())
    }
}

impl S3Store {
    pub(super) async fn upload(&self, key: &str, body: Body) -> Result<Put> {
        let length = body.length().await;
        let stream = match &body {
            Body::Bytes(bytes) => ByteStream::from(bytes.clone()),
            Body::File(path) => part_of(path, 0, length).await?,
        };
        self.put_whole(key, stream, length).await
    }

    async fn put_whole(&self, key: &str, body: ByteStream, length: u64) -> Result<Put> {
        let connected = self.connected().await?;
        let asked = self.asked(Action::Put, key, connected);
        let date = AnswerDate::default();
        let request = connected
            .client
            .put_object()
            .bucket(self.bucket())
            .key(self.full(key))
            .if_none_match("*")
            .content_length(length as i64)
            .body(body)
            .customize()
            .interceptor(date.clone())
            .send();
        match asked.within(length, request).await {
            Ok(_) => Ok(Put::Created {
                date: date.0.get().copied(),
            }),
            Err(Failure::Answered(Answer { status: 412, .. })) => Ok(Put::Exists),
            Err(failure) => Err(asked.explain(failure)),
        }
    }
}

impl S3Store {
    /// Gives up uploads below a prefix that began before a time.
    pub(super) async fn abort_uploads(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        let connected = self.connected().await?;
        let asked = self.asked(Action::Abort, prefix, connected);
        let mut aborted = 0;
        let mut after = (None, None);
        loop {
            let request = connected
                .client
                .list_multipart_uploads()
                .bucket(self.bucket())
                .prefix(self.full(prefix))
                .set_key_marker(after.0.take())
                .set_upload_id_marker(after.1.take())
                .send();
            let page = match asked.within(0, request).await {
                Err(Failure::Answered(Answer { status, .. })) if matches!(status, 405 | 501) => {
                    tracing::debug!(status, "{} lists no unfinished uploads", self.location);
                    return Ok(aborted);
                }
                page => page.map_err(|failure| asked.explain(failure))?,
            };
            for upload in page.uploads() {
                let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else {
                    continue;
                };
                let began = upload.initiated().and_then(timestamp);
                if key.starts_with(&self.full(prefix)) && began.is_some_and(|began| began < before)
                {
                    aborted += u64::from(self.abort(connected, key, id).await?);
                }
            }
            after = (page.next_key_marker, page.next_upload_id_marker);
            if page.is_truncated != Some(true) || after.0.is_none() {
                return Ok(aborted);
            }
        }
    }

    /// Gives up one upload; false if it is gone already.
    async fn abort(&self, connected: &Connected, key: &str, id: &str) -> Result<bool> {
        let object = format!("s3://{}/{key}", self.bucket());
        let asked = Asked::new(Action::Abort, object, &connected.server);
        let request = connected.client.abort_multipart_upload();
        let request = request.bucket(self.bucket()).key(key).upload_id(id).send();
        match asked.within(0, request).await {
            Ok(_) => Ok(true),
            Err(Failure::Answered(Answer { status: 404, .. })) => Ok(false),
            Err(failure) => Err(asked.explain(failure)),
        }
    }
}

/// Some bytes of a file, read when they are sent.
async fn part_of(path: &Path, offset: u64, length: u64) -> Result<ByteStream> {
    ByteStream::read_from()
        .path(path)
        .offset(offset)
        .length(Length::Exact(length))
        .buffer_size(READ)
        .build()
        .await
        .map_err(|e| {
            let sentence = format!("read {} to put it", path.display());
            Error::disk(sentence, std::io::Error::other(e))
        })
}
