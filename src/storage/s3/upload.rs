//! Putting an object: in one request, or in parts when it is large.
//!
//! Parts are of no use until the last request makes them an object, and cost money until then: an
//! upload that fails, or whose future is dropped, is given up by another request. What a crash
//! leaves, [`Store::abort_unfinished`](crate::storage::Store::abort_unfinished) finds.

use crate::error::{Error, Result};
use crate::format::ids::Timestamp;
use crate::storage::retry::{RetrySettings, persist};
use crate::storage::s3::S3Store;
use crate::storage::s3::answer::{AT_ONCE, Action, Answer, Asked, Failure, PATIENCE, timestamp};
use crate::storage::s3::client::Connected;
use crate::storage::s3::watch::Watch;
use crate::storage::{Body, Put};
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::{ByteStream, Length};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::fs::Metadata;
use std::io;
use std::ops::Range;
use std::path::Path;

/// The largest file that goes up in one request, bytes.
const WHOLE: u64 = 16 << 20;

/// Bytes of a part. A multiple of it where 10,000 of them, the most that there may be, are not
/// enough.
const PART: u64 = 8 << 20;

/// How much faster than a line a server's disk is, at least.
const FASTER: u64 = 64;

/// Bytes that are read from a file at once; with what the connections buffer, all that a put of a
/// file keeps in memory.
const READ: usize = 64 << 10;

impl S3Store {
    /// Stores an object, if nothing has its key.
    pub(super) async fn upload(&self, key: &str, body: Body) -> Result<Put> {
        let path = match body {
            Body::Bytes(bytes) => {
                let length = bytes.len() as u64;
                return self.put_whole(key, ByteStream::from(bytes), length).await;
            }
            Body::File(path) => path,
        };
        let length = match tokio::fs::metadata(&path).await {
            Ok(file) => Metadata::len(&file),
            Err(e) => return Err(unreadable(&path, e)),
        };
        if length > WHOLE {
            return self.put_in_parts(key, &path, length).await;
        }
        let body = bytes_of(&path, 0..length).await?;
        self.put_whole(key, body, length).await
    }

    async fn put_whole(&self, key: &str, body: ByteStream, length: u64) -> Result<Put> {
        let connected = self.connected().await?;
        let asked = self.asked(Action::Put, key, connected);
        let watch = Watch::default();
        let request = connected
            .client
            .put_object()
            .bucket(self.bucket())
            .key(self.full(key))
            .if_none_match("*")
            .body(body)
            .customize()
            .interceptor(watch.clone())
            .send();
        let done = asked.while_it_moves(length, &watch, request).await;
        came_of(done, &watch, &asked)
    }

    async fn put_in_parts(&self, key: &str, path: &Path, length: u64) -> Result<Put> {
        let connected = self.connected().await?;
        let asked = self.asked(Action::Put, key, connected);
        // The condition is judged when all has gone up. One cheap request spares an attempt after a
        // lost reply that: there it finds the object.
        if is_there(&connected.client, self.bucket(), &self.full(key), &asked).await? {
            return Ok(Put::Exists);
        }
        let upload = self.begin(key, connected, &asked).await?;
        let put = upload.send(path, length, &asked).await;
        upload.end(put).await
    }

    /// Begins an upload in parts.
    async fn begin(&self, key: &str, connected: &Connected, asked: &Asked<'_>) -> Result<Upload> {
        let key = self.full(key);
        // That of the client for the parts.
        let checksums = connected.checksums.then_some(ChecksumAlgorithm::Crc32);
        let request = connected
            .client
            .create_multipart_upload()
            .bucket(self.bucket())
            .key(&key)
            .set_checksum_algorithm(checksums)
            .send();
        let begun = asked.within(request).await;
        let begun = begun.map_err(|failure| asked.explain(failure))?;
        match begun.upload_id {
            Some(id) => Ok(Upload {
                client: connected.client.clone(),
                bucket: self.bucket().to_owned(),
                key,
                id,
                retries: self.bucket.retries,
                is_over: false,
            }),
            None => Err(asked.explain(Failure::NotS3("an upload without an id".to_owned()))),
        }
    }

    /// Gives up the uploads of keys with a prefix that began before a time; how many.
    pub(super) async fn abort_uploads(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        let connected = self.connected().await?;
        let asked = self.asked(Action::Abort, prefix, connected);
        let prefix = self.full(prefix);
        let mut aborted = 0;
        let mut after = (None, None);
        loop {
            let request = connected
                .client
                .list_multipart_uploads()
                .bucket(self.bucket())
                .prefix(&prefix)
                .set_key_marker(after.0)
                .set_upload_id_marker(after.1)
                .send();
            let page = match asked.within(request).await {
                Err(Failure::Answered(Answer { status, .. })) if matches!(status, 405 | 501) => {
                    tracing::debug!(status, "{} lists no unfinished uploads", self.location);
                    return Ok(aborted);
                }
                page => page.map_err(|failure| asked.explain(failure))?,
            };
            for found in page.uploads() {
                let began = found.initiated().and_then(timestamp);
                let (Some(key), Some(id)) = (found.key(), found.upload_id()) else {
                    continue;
                };
                if key.starts_with(&prefix) && began.is_some_and(|began| began < before) {
                    let request = abort(&connected.client, self.bucket(), key, id);
                    match asked.within(request.send()).await {
                        Ok(_) => aborted += 1,
                        // It has ended meanwhile.
                        Err(Failure::Answered(Answer { status: 404, .. })) => {}
                        Err(failure) => return Err(asked.explain(failure)),
                    }
                }
            }
            after = (page.next_key_marker, page.next_upload_id_marker);
            if page.is_truncated != Some(true) || after.0.is_none() {
                return Ok(aborted);
            }
        }
    }
}

/// An upload in parts that has begun.
struct Upload {
    client: Client,
    bucket: String,
    key: String,
    id: String,
    retries: RetrySettings,
    is_over: bool,
}

impl Upload {
    /// Sends all parts, and makes them an object if there is none.
    async fn send(&self, path: &Path, length: u64, asked: &Asked<'_>) -> Result<Put> {
        let parts = stream::iter((1..).zip(parts_of(length)));
        let parts: Vec<CompletedPart> = parts
            .map(async |(number, range)| {
                let send = || self.send_part(path, number, range.clone(), asked);
                let sent = persist(&self.retries, send).await;
                sent.map_err(|e| e.context(format_args!("part {number}")))
            })
            // One stream alone rarely fills a line.
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        // Some servers keep the condition for whole objects, and not for those in parts. What
        // another writer stored while the parts went up is seen without it.
        let look = || is_there(&self.client, &self.bucket, &self.key, asked);
        if persist(&self.retries, look).await? {
            return Ok(Put::Exists);
        }
        persist(&self.retries, || self.complete(&parts, length, asked)).await
    }

    async fn send_part(
        &self,
        path: &Path,
        number: i32,
        range: Range<u64>,
        asked: &Asked<'_>,
    ) -> Result<CompletedPart> {
        let length = range.end - range.start;
        let watch = Watch::default();
        let request = self
            .client
            .upload_part()
            .bucket(&self.bucket)
            .key(&self.key)
            .upload_id(&self.id)
            .part_number(number)
            .body(bytes_of(path, range).await?)
            .customize()
            .interceptor(watch.clone())
            .send();
        let sent = asked.while_it_moves(length, &watch, request).await;
        let sent = sent.map_err(|failure| asked.explain(failure))?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(sent.e_tag)
            .set_checksum_crc32(sent.checksum_crc32)
            .build())
    }

    /// Makes the parts an object. If an earlier attempt did, and only its answer was lost, this one
    /// finds it there, or fails: then the next upload finds it.
    async fn complete(
        &self,
        parts: &[CompletedPart],
        length: u64,
        asked: &Asked<'_>,
    ) -> Result<Put> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.to_vec()));
        let watch = Watch::default();
        let request = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(&self.key)
            .upload_id(&self.id)
            .if_none_match("*")
            .multipart_upload(parts.build())
            .customize()
            .interceptor(watch.clone())
            .send();
        // Some servers copy all of it once more, and say nothing meanwhile.
        let copied = length / FASTER;
        let done = asked.while_it_moves(copied, &watch, request).await;
        came_of(done, &watch, asked)
    }

    /// Passes on what came of it. Gives the upload up unless it made an object.
    async fn end(mut self, put: Result<Put>) -> Result<Put> {
        if !matches!(put, Ok(Put::Created { .. })) {
            let request = abort(&self.client, &self.bucket, &self.key, &self.id);
            give_up(request).await;
        }
        self.is_over = true;
        put
    }
}

impl Drop for Upload {
    /// The future was dropped on its way.
    fn drop(&mut self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !self.is_over
        {
            let request = abort(&self.client, &self.bucket, &self.key, &self.id);
            runtime.spawn(give_up(request));
        }
    }
}

/// Whether there is an object with a key.
async fn is_there(client: &Client, bucket: &str, key: &str, asked: &Asked<'_>) -> Result<bool> {
    let head = client.head_object().bucket(bucket).key(key).send();
    match asked.within(head).await {
        Ok(_) => Ok(true),
        // Not there; or not for us to see, and then the put itself says so.
        Err(Failure::Answered(answer)) if matches!(answer.status, 403..=405) => Ok(false),
        Err(failure) => Err(asked.explain(failure)),
    }
}

/// What came of the request that stores an object if there is none.
fn came_of<T>(done: Result<T, Failure>, watch: &Watch, asked: &Asked<'_>) -> Result<Put> {
    match done {
        Ok(_) => Ok(Put::Created { date: watch.date() }),
        Err(Failure::Answered(Answer { status: 412, .. })) => Ok(Put::Exists),
        Err(failure) => Err(asked.explain(failure)),
    }
}

type Abort =
    aws_sdk_s3::operation::abort_multipart_upload::builders::AbortMultipartUploadFluentBuilder;

/// The request that gives up an upload.
fn abort(client: &Client, bucket: &str, key: &str, id: &str) -> Abort {
    let request = client.abort_multipart_upload();
    request.bucket(bucket).key(key).upload_id(id)
}

/// Gives up an upload, if that can be: what is left over is found later.
async fn give_up(request: Abort) {
    let key = request.get_key().clone().unwrap_or_default();
    match tokio::time::timeout(PATIENCE, request.send()).await {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => tracing::debug!(key, "an upload in parts is left over: {e}"),
        Err(_) => tracing::debug!(key, "an upload in parts is left over: no answer"),
    }
}

/// How a file of so many bytes is cut.
fn parts_of(length: u64) -> impl Iterator<Item = Range<u64>> {
    const MOST: u64 = 10_000;
    let part = length.div_ceil(MOST * PART).max(1) * PART;
    let count = length.div_ceil(part);
    (0..count).map(move |number| number * part..length.min((number + 1) * part))
}

/// Some bytes of a file, read when they are sent.
async fn bytes_of(path: &Path, range: Range<u64>) -> Result<ByteStream> {
    ByteStream::read_from()
        .path(path)
        .offset(range.start)
        .length(Length::Exact(range.end - range.start))
        .buffer_size(READ)
        .build()
        .await
        .map_err(|e| unreadable(path, io::Error::other(e)))
}

fn unreadable(path: &Path, e: io::Error) -> Error {
    Error::disk(format!("read {} to put it", path.display()), e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_cut_into_at_most_ten_thousand_parts_that_leave_no_byte_out() {
        for (length, count, last) in [
            (WHOLE + 1, 3, 1),
            (3 * PART, 3, PART),
            (10_000 * PART, 10_000, PART),
            (10_000 * PART + 1, 5_001, 1),
            (5 << 40, 9_930, 385_875_968),
        ] {
            let parts: Vec<Range<u64>> = parts_of(length).collect();
            assert_eq!(parts.len(), count, "{length}");
            let end = parts.last().unwrap();
            assert_eq!((end.end, end.end - end.start), (length, last), "{length}");
            let meet = |pair: &[Range<u64>]| pair[0].end == pair[1].start;
            assert!(parts[0].start == 0 && parts.windows(2).all(meet));
        }
    }
}
