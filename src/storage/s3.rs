//! A store in an S3 bucket, or in what speaks like one: an object under its key behind a prefix.
//!
//! Objects are put with `If-None-Match: *`, so that of two writers one is told that it came second;
//! larger ones go up in parts, and appear with the last request or not at all. Nothing is asked
//! before the first call, nothing while nobody calls, and nothing twice: who wants another attempt
//! makes it (`storage/retry.rs`).

mod answer;
mod client;
mod upload;

use crate::config::location::{Location, S3Location};
use crate::error::{Error, Result};
use crate::format::ids::Timestamp;
use crate::storage::s3::answer::{Action, Answer, Asked, Failure, PATIENCE, root, timestamp};
use crate::storage::s3::client::{Connected, connect};
use crate::storage::{
    Body, Listed, Put, Store, assert_part, check_folder, check_key, check_prefix, no_object,
    range_end,
};
use async_trait::async_trait;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{Delete, Object, ObjectIdentifier};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;
use tokio::sync::OnceCell;

/// How many objects one request deletes at most.
const DELETE_BATCH: usize = 1000;

/// A prefix in a bucket.
pub struct S3Store {
    bucket: Arc<Bucket>,
    /// What all keys begin with in the bucket: empty, or with `/` at the end.
    folder: String,
    location: String,
}

/// What a store and those below it share.
struct Bucket {
    place: S3Location,
    connected: OnceCell<Connected>,
}

impl S3Store {
    /// The store at a place. Asks nobody anything.
    pub fn new(place: S3Location) -> Arc<Self> {
        let folder = match place.prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Arc::new(Self {
            folder,
            location: Location::S3(place.clone()).to_string(),
            bucket: Arc::new(Bucket {
                place,
                connected: OnceCell::new(),
            }),
        })
    }

    /// The client, made when it is first needed.
    async fn connected(&self) -> Result<&Connected> {
        let bucket = &self.bucket;
        bucket
            .connected
            .get_or_try_init(|| connect(&bucket.place))
            .await
    }

    /// The name of the bucket, for a request.
    fn bucket(&self) -> &str {
        &self.bucket.place.bucket
    }

    /// A key as the bucket has it.
    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.folder)
    }

    /// What messages say of a request for an object, or for those with a prefix.
    fn asked<'a>(&self, action: Action, key: &str, connected: &'a Connected) -> Asked<'a> {
        Asked::new(
            action,
            format!("{}/{key}", self.location),
            &connected.server,
        )
    }

    /// A read of nothing, or of more than there can be: what to answer depends on the size alone.
    async fn read_by_size(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let connected = self.connected().await?;
        let asked = self.asked(Action::Read, key, connected);
        let request = connected
            .client
            .head_object()
            .bucket(self.bucket())
            .key(self.full(key));
        let size = match asked.within(0, request.send()).await {
            Ok(found) => found.content_length.unwrap_or_default().unsigned_abs(),
            Err(Failure::Answered(Answer { status: 404, .. })) => {
                return Err(no_object(&self.location, key));
            }
            Err(failure) => return Err(asked.explain(failure)),
        };
        range_end(&self.location, key, size, offset, length)?;
        match length {
            0 => Ok(Bytes::new()),
            _ => Err(Error::corrupt(format!(
                "read {}/{key}: {length} bytes from {offset} are more than can be asked for",
                self.location
            ))),
        }
    }

    /// Why a read failed: much of it is an answer of the contract.
    fn unread(&self, key: &str, range: (u64, u64), asked: &Asked<'_>, failure: Failure) -> Error {
        match failure {
            Failure::Answered(answer) if answer.code.as_deref() == Some("NoSuchKey") => {
                no_object(&self.location, key)
            }
            Failure::Answered(Answer {
                status: 416,
                content_range,
                ..
            }) => {
                let size =
                    content_range.and_then(|range| range.strip_prefix("bytes */")?.parse().ok());
                self.too_short(key, range, size)
            }
            failure => asked.explain(failure),
        }
    }

    /// The sentence for an object that ends before the range does.
    fn too_short(&self, key: &str, (offset, length): (u64, u64), size: Option<u64>) -> Error {
        let known =
            size.and_then(|size| range_end(&self.location, key, size, offset, length).err());
        known.unwrap_or_else(|| {
            Error::corrupt(format!(
                "read {}/{key}: it ends before {length} bytes from {offset} on",
                self.location
            ))
        })
    }

    /// Refuses an answer that is not about exactly the range that was asked for.
    fn check_range(&self, key: &str, range: (u64, u64), answer: &GetObjectOutput) -> Result<()> {
        let (offset, length) = range;
        let Some(said) = &answer.content_range else {
            let whole = answer
                .content_length
                .and_then(|size| u64::try_from(size).ok());
            return match whole {
                Some(size) if offset == 0 && size == length => Ok(()),
                _ => Err(Error::corrupt(format!(
                    "read {}/{key}: asked for {length} bytes from {offset} on, the server sends \
                     the whole object",
                    self.location
                ))),
            };
        };
        match parse_range(said) {
            Some((first, last, _)) if first == offset && last - first == length - 1 => Ok(()),
            Some((first, last, size)) if first == offset && last - first < length - 1 => {
                Err(self.too_short(key, range, size))
            }
            _ => Err(Error::corrupt(format!(
                "read {}/{key}: asked for {length} bytes from {offset} on, the server sends {said}",
                self.location
            ))),
        }
    }

    /// Takes in the body of an answer, which is exactly so long.
    async fn take(&self, key: &str, length: u64, answer: GetObjectOutput) -> Result<Bytes> {
        let mut body = answer.body;
        let mut taken = BytesMut::new();
        let cut = |taken: u64, why: String| {
            Error::unavailable(format!(
                "read {}/{key}: {why} after {taken} bytes of {length}",
                self.location
            ))
        };
        loop {
            let have = taken.len() as u64;
            match tokio::time::timeout(PATIENCE, body.next()).await {
                Err(_) => return Err(cut(have, format!("nothing came for {PATIENCE:?}"))),
                Ok(Some(Err(e))) => {
                    return Err(cut(have, format!("the answer was cut ({})", root(&e))));
                }
                Ok(None) if have < length => return Err(cut(have, "the answer ended".to_owned())),
                Ok(None) => return Ok(taken.freeze()),
                // Blocks of pages come in one piece.
                Ok(Some(Ok(piece))) if have == 0 && piece.len() as u64 == length => {
                    return Ok(piece);
                }
                Ok(Some(Ok(piece))) if have + piece.len() as u64 > length => {
                    return Err(Error::corrupt(format!(
                        "read {}/{key}: the server sends more than {length} bytes",
                        self.location
                    )));
                }
                Ok(Some(Ok(piece))) => taken.extend_from_slice(&piece),
            }
        }
    }

    /// One page of a listing.
    async fn page(
        &self,
        wanted: &Wanted<'_>,
        token: Option<String>,
    ) -> Result<ListObjectsV2Output> {
        let connected = self.connected().await?;
        let asked = self.asked(Action::List, wanted.prefix, connected);
        let request = connected
            .client
            .list_objects_v2()
            .bucket(self.bucket())
            .prefix(self.full(wanted.prefix))
            .set_delimiter(wanted.delimiter.map(str::to_owned))
            .set_start_after(wanted.start_after.map(|key| self.full(key)))
            .set_continuation_token(token)
            .send();
        asked
            .within(0, request)
            .await
            .map_err(|failure| asked.explain(failure))
    }

    /// All pages of a listing, one after the other.
    async fn pages(&self, wanted: Wanted<'_>) -> Result<Vec<ListObjectsV2Output>> {
        let mut pages: Vec<ListObjectsV2Output> = Vec::new();
        loop {
            let token = pages
                .last()
                .and_then(|page| page.next_continuation_token.clone());
            let page = self.page(&wanted, token).await?;
            let goes_on = page.is_truncated == Some(true);
            let moves = page.next_continuation_token.is_some()
                && page.next_continuation_token
                    != pages
                        .last()
                        .and_then(|page| page.next_continuation_token.clone());
            pages.push(page);
            match (goes_on, moves) {
                (false, _) => return Ok(pages),
                (true, true) => {}
                (true, false) => {
                    return Err(Error::unavailable(format!(
                        "list {}/{}: the server says that there is more and not where",
                        self.location, wanted.prefix
                    )));
                }
            }
        }
    }

    /// An object of a page, if its key is one of ours.
    fn listed(&self, object: &Object) -> Option<Listed> {
        let key = object.key()?.strip_prefix(&self.folder)?;
        check_key(key).ok()?;
        Some(Listed {
            key: key.to_owned(),
            size: u64::try_from(object.size()?).ok()?,
            modified: timestamp(object.last_modified()?)?,
        })
    }
}

/// What a listing shows.
struct Wanted<'a> {
    prefix: &'a str,
    start_after: Option<&'a str>,
    delimiter: Option<&'a str>,
}

#[async_trait]
impl Store for S3Store {
    fn location(&self) -> &str {
        &self.location
    }

    fn below(&self, name: &str) -> Arc<dyn Store> {
        assert_part(name);
        Arc::new(Self {
            bucket: self.bucket.clone(),
            folder: format!("{}{name}/", self.folder),
            location: format!("{}/{name}", self.location),
        })
    }

    async fn put(&self, key: &str, body: Body) -> Result<Put> {
        check_key(key)?;
        self.upload(key, body).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        check_key(key)?;
        let Some(last) = offset.checked_add(length).filter(|_| length > 0) else {
            return self.read_by_size(key, offset, length).await;
        };
        let connected = self.connected().await?;
        let asked = self.asked(Action::Read, key, connected);
        let request = connected
            .client
            .get_object()
            .bucket(self.bucket())
            .key(self.full(key))
            .range(format!("bytes={offset}-{}", last - 1))
            .send();
        let range = (offset, length);
        match asked.within(0, request).await {
            Ok(answer) => {
                self.check_range(key, range, &answer)?;
                self.take(key, length, answer).await
            }
            Err(failure) => Err(self.unread(key, range, &asked, failure)),
        }
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Listed>> {
        check_prefix(prefix)?;
        let wanted = Wanted {
            prefix,
            start_after,
            delimiter: None,
        };
        let pages = self.pages(wanted).await?;
        let objects = pages.iter().flat_map(ListObjectsV2Output::contents);
        let mut listed: Vec<Listed> = objects
            .filter_map(|object| self.listed(object))
            .filter(|object| {
                let key = object.key.as_str();
                key.starts_with(prefix) && start_after.is_none_or(|after| key > after)
            })
            .collect();
        // Not all servers do it.
        listed.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(listed)
    }

    async fn list_folder(&self, prefix: &str) -> Result<Vec<String>> {
        check_folder(prefix)?;
        let wanted = Wanted {
            prefix,
            start_after: None,
            delimiter: Some("/"),
        };
        let above = self.full(prefix);
        let mut names = Vec::new();
        for page in self.pages(wanted).await? {
            let objects = page.contents().iter().filter_map(Object::key);
            let folders = page
                .common_prefixes()
                .iter()
                .filter_map(|folder| folder.prefix());
            let below = objects
                .chain(folders)
                .filter_map(|key| key.strip_prefix(&above));
            names.extend(below.filter(|name| !name.is_empty()).map(str::to_owned));
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        keys.iter().try_for_each(|key| check_key(key))?;
        for batch in keys.chunks(DELETE_BATCH) {
            self.delete_batch(batch).await?;
        }
        Ok(())
    }

    async fn abort_unfinished(&self, prefix: &str, before: Timestamp) -> Result<u64> {
        check_prefix(prefix)?;
        self.abort_uploads(prefix, before).await
    }
}

impl S3Store {
    async fn delete_batch(&self, keys: &[String]) -> Result<()> {
        let connected = self.connected().await?;
        let asked = self.asked(Action::Delete, &keys[0], connected);
        let identifier = |key: &String| {
            let named = ObjectIdentifier::builder().key(self.full(key)).build();
            named.expect("a key is all that an identifier needs")
        };
        let doomed = keys.iter().map(identifier).collect();
        let doomed = Delete::builder()
            .set_objects(Some(doomed))
            .quiet(true)
            .build();
        let doomed = doomed.expect("objects are all that a deletion needs");
        let request = connected
            .client
            .delete_objects()
            .bucket(self.bucket())
            .delete(doomed);
        let done = asked.within(0, request.send()).await;
        let done = done.map_err(|failure| asked.explain(failure))?;
        let failed = |e: &&aws_sdk_s3::types::Error| e.code() != Some("NoSuchKey");
        match done.errors().iter().find(failed) {
            None => Ok(()),
            Some(e) => {
                let asked = Asked::new(
                    Action::Delete,
                    format!("s3://{}/{}", self.bucket(), e.key().unwrap_or_default()),
                    &connected.server,
                );
                Err(asked.explain(Failure::Answered(Answer {
                    status: 200,
                    code: e.code().map(str::to_owned),
                    message: e.message().map(str::to_owned),
                    ..Answer::default()
                })))
            }
        }
    }
}

/// First and last byte, and the object's size if the server knows it, of a `Content-Range`.
fn parse_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then(|| (first, last, size.parse().ok()))
}
