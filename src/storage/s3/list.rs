//! Listing objects, a thousand at a time.
//!
//! Keys come as XML, not URL-encoded: none of ours has a character that XML cannot hold, and some
//! servers say that they encode and do not.

use crate::error::{Error, Result};
use crate::storage::s3::S3Store;
use crate::storage::s3::answer::{Action, timestamp};
use crate::storage::s3::watch::Watch;
use crate::storage::{Listed, check_key};
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{CommonPrefix, Object};

/// What an answer with 1,000 keys takes, bytes.
const PAGE_BYTES: u64 = 512 << 10;

/// What a listing shows.
struct Wanted<'a> {
    prefix: &'a str,
    start_after: Option<&'a str>,
    delimiter: Option<&'a str>,
}

impl S3Store {
    /// The objects with a prefix, after a key, in order.
    pub(super) async fn list_objects(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<Listed>> {
        let wanted = match self.is_express() {
            // It knows no start, and prefixes that are folders only.
            true => Wanted {
                prefix: prefix.rfind('/').map_or("", |end| &prefix[..=end]),
                start_after: None,
                delimiter: None,
            },
            false => Wanted {
                prefix,
                start_after,
                delimiter: None,
            },
        };
        let pages = self.pages(&wanted).await?;
        let objects = pages.iter().flat_map(ListObjectsV2Output::contents);
        let listed = objects.map(|object| self.listed(&wanted, object));
        let mut listed: Vec<Listed> = listed
            .filter_map(Result::transpose)
            .collect::<Result<_>>()?;
        listed.retain(|object| {
            let key = object.key.as_str();
            key.starts_with(prefix) && start_after.is_none_or(|after| key > after)
        });
        // S3 Express lists in no order.
        listed.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(listed)
    }

    /// The names one level below a folder.
    pub(super) async fn list_names(&self, folder: &str) -> Result<Vec<String>> {
        let wanted = Wanted {
            prefix: folder,
            start_after: None,
            delimiter: Some("/"),
        };
        let above = self.full(folder);
        let mut names = Vec::new();
        for page in self.pages(&wanted).await? {
            let objects = page.contents().iter().filter_map(Object::key);
            let folders = page.common_prefixes().iter();
            let keys = objects.chain(folders.filter_map(CommonPrefix::prefix));
            let below = keys.filter_map(|key| key.strip_prefix(&above));
            // What some tools store to show an empty folder has no name here.
            names.extend(below.filter(|name| !name.is_empty()).map(str::to_owned));
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Whether the bucket is one of S3 Express, whose names end so.
    fn is_express(&self) -> bool {
        self.bucket().ends_with("--x-s3")
    }

    /// All pages of a listing, one after the other.
    async fn pages(&self, wanted: &Wanted<'_>) -> Result<Vec<ListObjectsV2Output>> {
        let mut pages = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = self.page(wanted, token.clone()).await?;
            let next = page.next_continuation_token.clone();
            // A page that does not say whether there are more is taken at its token.
            let goes_on = page.is_truncated.unwrap_or(next.is_some());
            pages.push(page);
            match next {
                _ if !goes_on => return Ok(pages),
                Some(next) if token.as_ref() != Some(&next) => token = Some(next),
                _ => return Err(self.broken(wanted, "there is more, and it does not say where")),
            }
        }
    }

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
        let watch = Watch::default();
        let page = asked.while_it_moves(PAGE_BYTES, &watch, request).await;
        let page = page.map_err(|failure| asked.explain(failure))?;
        // No checksum covers a listing, and what is missing in it is missing in silence.
        let shown = page.contents().len() + page.common_prefixes().len();
        match page
            .key_count
            .is_none_or(|count| usize::try_from(count) == Ok(shown))
        {
            true => Ok(page),
            false => Err(self.broken(wanted, "its number of keys is not the one that it says")),
        }
    }

    /// A listing that cannot be true. The next one may be.
    fn broken(&self, wanted: &Wanted<'_>, seen: &str) -> Error {
        Error::unavailable(format!(
            "list {}/{}: the answer of the server is broken: {seen}",
            self.location, wanted.prefix
        ))
    }

    /// An object of a page; none if its key is none of a store.
    fn listed(&self, wanted: &Wanted<'_>, object: &Object) -> Result<Option<Listed>> {
        let key = object.key().unwrap_or_default();
        let Some(key) = key.strip_prefix(&self.folder) else {
            return Err(self.broken(wanted, &format!("{key:?} lies elsewhere")));
        };
        if check_key(key).is_err() {
            return Ok(None);
        }
        let size = object.size().and_then(|size| u64::try_from(size).ok());
        let modified = object.last_modified().and_then(timestamp);
        match (size, modified) {
            (Some(size), Some(modified)) => Ok(Some(Listed {
                key: key.to_owned(),
                size,
                modified,
            })),
            _ => Err(self.broken(wanted, &format!("{key} has no size or no time"))),
        }
    }
}
