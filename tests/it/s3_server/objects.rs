//! The objects, kept by `s3s-fs` as the files `<root>/<bucket>/<key>`. Mended here, so that it
//! answers as S3 does:
//!
//! - a body is received whole and its checksums verified before anything is stored;
//! - of several puts of one key at a time with `If-None-Match: *` one wins, in parts or not;
//! - a bucket that does not exist is said, not made;
//! - a folder is no object, neither to read nor to delete;
//! - an upload that was ended or aborted is no upload, and those that were not are listed;
//! - a page of a listing has at most 1,000 keys and costs no walk over all of them;
//! - answers carry no checksum of an object: who reads has their own;
//! - a range is read at once, not in 4 KiB, each in another thread.

use super::listing::{Ask, Entry, page};
use super::{ACCESS_KEY_ID, SECRET_ACCESS_KEY, Shared, Upload, lock};
use async_trait::async_trait;
use bytes::Bytes;
use s3s::auth::{S3Auth, SecretKey};
use s3s::checksum::ChecksumHasher;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::dto::*;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result};
use s3s::{TrailingHeaders, s3_error};
use s3s_fs::FileSystem;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// As many as S3 lists at once.
const PAGE: usize = 1_000;

/// The S3 service on the folders of `root`.
pub(super) fn service(root: &Path, shared: Arc<Shared>) -> S3Service {
    let mut builder = S3ServiceBuilder::new(Objects {
        files: FileSystem::new(root).unwrap(),
        root: root.to_owned(),
        shared,
        keys: Mutex::default(),
    });
    builder.set_auth(OneKey);
    let mut config = S3Config::default();
    // `wire.rs` compares the clocks, for it knows which one the test has set.
    config.presigned_url_max_skew_time_secs = u32::MAX;
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    builder.build()
}

struct OneKey;

#[async_trait]
impl S3Auth for OneKey {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        match access_key {
            ACCESS_KEY_ID => Ok(SECRET_ACCESS_KEY.into()),
            _ => Err(s3_error!(
                InvalidAccessKeyId,
                "The AWS Access Key Id you provided does not exist in our records."
            )),
        }
    }
}

struct Objects {
    files: FileSystem,
    root: PathBuf,
    shared: Arc<Shared>,
    /// Held while something is stored under a key.
    keys: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
}

impl Objects {
    fn path(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.join(bucket).join(key)
    }

    fn check_bucket(&self, bucket: &str) -> S3Result<()> {
        match self.root.join(bucket).is_dir() {
            true => Ok(()),
            false => Err(s3_error!(
                NoSuchBucket,
                "The specified bucket does not exist"
            )),
        }
    }

    fn check_object(&self, bucket: &str, key: &str) -> S3Result<()> {
        self.check_bucket(bucket)?;
        match self.path(bucket, key).is_file() {
            true => Ok(()),
            false => Err(s3_error!(NoSuchKey, "The specified key does not exist.")),
        }
    }

    fn check_upload(&self, upload_id: &str) -> S3Result<()> {
        match lock(&self.shared.uploads).contains_key(upload_id) {
            true => Ok(()),
            false => Err(s3_error!(
                NoSuchUpload,
                "The specified multipart upload does not exist."
            )),
        }
    }

    /// Waits until nobody else stores anything under a key.
    async fn only_one(&self, bucket: &str, key: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let path = self.path(bucket, key);
        let mutex = lock(&self.keys).entry(path).or_default().clone();
        mutex.lock_owned().await
    }

    /// The condition of a put, unless the test wants a server that does not know it.
    fn condition(&self, asked: Option<IfNoneMatch>) -> Option<IfNoneMatch> {
        asked.filter(|_| !self.shared.settings().ignores_if_none_match)
    }
}

/// Reads a body to its end and compares its checksums, those behind it too.
async fn receive(
    body: Option<StreamingBlob>,
    mut claimed: Checksum,
    trailers: Option<TrailingHeaders>,
) -> S3Result<Bytes> {
    let Some(body) = body else {
        return Ok(Bytes::new());
    };
    let bytes = Body::from(body).store_all_limited(usize::MAX).await;
    let bytes = bytes.map_err(|e| match e.to_string() {
        text if text.contains("Sha256Mismatch") => {
            let mut error = S3Error::new(S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into()));
            error.set_status_code(hyper::StatusCode::BAD_REQUEST);
            error
        }
        text => s3_error!(IncompleteBody, "{text}"),
    })?;
    let trailers = trailers.and_then(|trailers| trailers.take());
    let take = |name: &str| Some(trailers.as_ref()?.get(name)?.to_str().ok()?.to_owned());
    let or = |claim: Option<String>, name| claim.or_else(|| take(name));
    claimed.checksum_crc32 = or(claimed.checksum_crc32, "x-amz-checksum-crc32");
    claimed.checksum_crc32c = or(claimed.checksum_crc32c, "x-amz-checksum-crc32c");
    claimed.checksum_crc64nvme = or(claimed.checksum_crc64nvme, "x-amz-checksum-crc64nvme");
    claimed.checksum_sha1 = or(claimed.checksum_sha1, "x-amz-checksum-sha1");
    claimed.checksum_sha256 = or(claimed.checksum_sha256, "x-amz-checksum-sha256");
    let mut hasher = ChecksumHasher {
        crc32: claimed.checksum_crc32.as_ref().map(|_| Default::default()),
        crc32c: claimed.checksum_crc32c.as_ref().map(|_| Default::default()),
        crc64nvme: claimed
            .checksum_crc64nvme
            .as_ref()
            .map(|_| Default::default()),
        sha1: claimed.checksum_sha1.as_ref().map(|_| Default::default()),
        sha256: claimed.checksum_sha256.as_ref().map(|_| Default::default()),
    };
    hasher.update(&bytes);
    match hasher.finalize() == claimed {
        true => Ok(bytes),
        false => Err(s3_error!(
            BadDigest,
            "The checksum you specified did not match what we received."
        )),
    }
}

/// So many bytes of a file, from where a range begins.
fn read(path: &Path, range: Option<Range>, length: u64) -> io::Result<Bytes> {
    let mut file = File::open(path)?;
    match range {
        Some(Range::Int { first, .. }) => file.seek(SeekFrom::Start(first))?,
        Some(Range::Suffix { length }) => file.seek(SeekFrom::End(-(length as i64)))?,
        None => 0,
    };
    let mut bytes = vec![0; length as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes.into())
}

/// A body that is in memory.
fn blob(bytes: Bytes) -> StreamingBlob {
    StreamingBlob::from(Body::from(bytes))
}

#[async_trait]
impl S3 for Objects {
    async fn put_object(
        &self,
        mut req: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let input = &mut req.input;
        self.check_bucket(&input.bucket)?;
        let claimed = Checksum {
            checksum_crc32: input.checksum_crc32.take(),
            checksum_crc32c: input.checksum_crc32c.take(),
            checksum_crc64nvme: input.checksum_crc64nvme.take(),
            checksum_sha1: input.checksum_sha1.take(),
            checksum_sha256: input.checksum_sha256.take(),
            ..Default::default()
        };
        let bytes = receive(input.body.take(), claimed, req.trailing_headers.take()).await?;
        input.checksum_algorithm = None;
        input.body = Some(blob(bytes));
        input.if_none_match = self.condition(input.if_none_match.take());
        let _only = self.only_one(&input.bucket, &input.key).await;
        self.files.put_object(req).await
    }

    async fn get_object(
        &self,
        req: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        self.check_object(&req.input.bucket, &req.input.key)?;
        let path = self.path(&req.input.bucket, &req.input.key);
        let range = req.input.range;
        let mut got = self.files.get_object(req).await?;
        let output = &mut got.output;
        let length = output.content_length.unwrap_or_default() as u64;
        let read = tokio::task::spawn_blocking(move || read(&path, range, length));
        let bytes = read.await.map_err(S3Error::internal_error)?;
        output.body = Some(blob(bytes.map_err(S3Error::internal_error)?));
        output.checksum_crc32 = None;
        output.checksum_crc32c = None;
        output.checksum_crc64nvme = None;
        output.checksum_sha1 = None;
        output.checksum_sha256 = None;
        Ok(got)
    }

    async fn head_object(
        &self,
        req: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.check_object(&req.input.bucket, &req.input.key)?;
        self.files.head_object(req).await
    }

    async fn head_bucket(
        &self,
        req: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.files.head_bucket(req).await
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.check_bucket(&req.input.bucket)?;
        match self.check_object(&req.input.bucket, &req.input.key) {
            Ok(()) => self.files.delete_object(req).await,
            Err(_) => Ok(S3Response::new(DeleteObjectOutput::default())),
        }
    }

    async fn delete_objects(
        &self,
        mut req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.check_bucket(&req.input.bucket)?;
        let asked = std::mem::take(&mut req.input.delete.objects);
        if asked.len() > PAGE {
            return Err(s3_error!(MalformedXML));
        }
        let (bucket, quiet) = (req.input.bucket.clone(), req.input.delete.quiet);
        let is_there = |object: &ObjectIdentifier| self.path(&bucket, &object.key).is_file();
        req.input.delete.objects = asked.iter().filter(|o| is_there(o)).cloned().collect();
        let mut answer = self.files.delete_objects(req).await?;
        let deleted = asked.into_iter().map(|object| DeletedObject {
            key: Some(object.key),
            ..Default::default()
        });
        answer.output.deleted = (quiet != Some(true)).then(|| deleted.collect());
        Ok(answer)
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        self.check_bucket(&input.bucket)?;
        let asked = input.max_keys.unwrap_or(i32::MAX);
        let token = input.continuation_token.clone();
        let ask = Ask {
            prefix: input.prefix.clone().unwrap_or_default(),
            one_level: match input.delimiter.as_deref() {
                None => false,
                Some("/") => true,
                Some(_) => return Err(s3_error!(NotImplemented)),
            },
            after: token.or(input.start_after.clone()).unwrap_or_default(),
            limit: PAGE.min(usize::try_from(asked).map_err(|_| s3_error!(InvalidArgument))?),
        };
        let limit = ask.limit;
        let bucket = self.root.join(&input.bucket);
        let listing = tokio::task::spawn_blocking(move || page(&bucket, &ask));
        let (entries, more) = listing
            .await
            .map_err(S3Error::internal_error)?
            .map_err(S3Error::internal_error)?;
        let last = entries.last().map(Entry::last_key);
        let (contents, folders): (Vec<_>, Vec<_>) = entries
            .iter()
            .partition(|entry| matches!(entry, Entry::Object { .. }));
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            start_after: input.start_after,
            continuation_token: input.continuation_token,
            max_keys: i32::try_from(limit).ok(),
            key_count: i32::try_from(entries.len()).ok(),
            is_truncated: Some(more),
            next_continuation_token: last.filter(|_| more),
            contents: Some(contents.into_iter().filter_map(object).collect()),
            common_prefixes: Some(folders.into_iter().filter_map(common_prefix).collect()),
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.check_bucket(&req.input.bucket)?;
        let upload = Upload {
            bucket: req.input.bucket.clone(),
            key: req.input.key.clone(),
            began: self.shared.now(),
        };
        let answer = self.files.create_multipart_upload(req).await?;
        let id = answer.output.upload_id.clone().expect("s3s-fs names it");
        lock(&self.shared.uploads).insert(id, upload);
        Ok(answer)
    }

    async fn upload_part(
        &self,
        mut req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let input = &mut req.input;
        self.check_upload(&input.upload_id)?;
        let claimed = Checksum {
            checksum_crc32: input.checksum_crc32.take(),
            checksum_crc32c: input.checksum_crc32c.take(),
            checksum_crc64nvme: input.checksum_crc64nvme.take(),
            checksum_sha1: input.checksum_sha1.take(),
            checksum_sha256: input.checksum_sha256.take(),
            ..Default::default()
        };
        let bytes = receive(input.body.take(), claimed, req.trailing_headers.take()).await?;
        input.body = Some(blob(bytes));
        self.files.upload_part(req).await
    }

    async fn complete_multipart_upload(
        &self,
        mut req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = &mut req.input;
        let _only = self.only_one(&input.bucket, &input.key).await;
        self.check_upload(&input.upload_id)?;
        input.if_none_match = self.condition(input.if_none_match.take());
        let id = input.upload_id.clone();
        let answer = self.files.complete_multipart_upload(req).await?;
        lock(&self.shared.uploads).remove(&id);
        Ok(answer)
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.check_upload(&req.input.upload_id)?;
        let id = req.input.upload_id.clone();
        let answer = self.files.abort_multipart_upload(req).await?;
        lock(&self.shared.uploads).remove(&id);
        Ok(answer)
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = req.input;
        self.check_bucket(&input.bucket)?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let mut uploads: Vec<(String, Upload)> = lock(&self.shared.uploads)
            .iter()
            .map(|(id, upload)| (id.clone(), upload.clone()))
            .filter(|(_, upload)| upload.bucket == input.bucket && upload.key.starts_with(&prefix))
            .collect();
        uploads.sort_by(|(a, at), (b, bt)| (&at.key, a).cmp(&(&bt.key, b)));
        let after = (input.key_marker.clone(), input.upload_id_marker.clone());
        if let (Some(key), id) = &after {
            let id = id.clone().unwrap_or(char::MAX.to_string());
            uploads.retain(|(other, upload)| (&upload.key, other) > (key, &id));
        }
        let asked = input.max_uploads.unwrap_or(i32::MAX);
        let limit = PAGE.min(usize::try_from(asked).map_err(|_| s3_error!(InvalidArgument))?);
        let more = uploads.len() > limit;
        uploads.truncate(limit);
        let last = uploads.last().filter(|_| more);
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            prefix: input.prefix,
            key_marker: input.key_marker,
            upload_id_marker: input.upload_id_marker,
            is_truncated: Some(more),
            next_key_marker: last.map(|(_, upload)| upload.key.clone()),
            next_upload_id_marker: last.map(|(id, _)| id.clone()),
            uploads: Some(uploads.into_iter().map(unfinished).collect()),
            ..Default::default()
        }))
    }
}

fn object(entry: &Entry) -> Option<Object> {
    match entry {
        Entry::Folder(_) => None,
        Entry::Object {
            key,
            size,
            modified,
        } => Some(Object {
            key: Some(key.clone()),
            size: i64::try_from(*size).ok(),
            last_modified: Some((*modified).into()),
            ..Default::default()
        }),
    }
}

fn common_prefix(entry: &Entry) -> Option<CommonPrefix> {
    match entry {
        Entry::Object { .. } => None,
        Entry::Folder(key) => Some(CommonPrefix {
            prefix: Some(key.clone()),
        }),
    }
}

fn unfinished((id, upload): (String, Upload)) -> MultipartUpload {
    let micros = u64::try_from(upload.began.micros()).unwrap_or_default();
    let began = std::time::UNIX_EPOCH + std::time::Duration::from_micros(micros);
    MultipartUpload {
        key: Some(upload.key),
        upload_id: Some(id),
        initiated: Some(began.into()),
        ..Default::default()
    }
}
