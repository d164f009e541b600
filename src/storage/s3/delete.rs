//! Deleting objects, as many in one request as the server takes.

use crate::error::Result;
use crate::storage::s3::S3Store;
use crate::storage::s3::answer::{Action, Answer, Failure};
use crate::storage::s3::watch::Watch;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use futures_util::{StreamExt, TryStreamExt, stream};

/// As many as one request may delete.
const BATCH: usize = 1_000;

/// What a request for so many takes, bytes.
const BATCH_BYTES: u64 = 256 << 10;

/// Requests at once to a server that deletes one object at a time.
const AT_ONCE: usize = 16;

impl S3Store {
    /// Deletes objects, also such as are not there.
    pub(super) async fn delete_objects(&self, keys: &[String]) -> Result<()> {
        for batch in keys.chunks(BATCH) {
            if !self.delete_batch(batch).await? {
                self.delete_singly(batch).await?;
            }
        }
        Ok(())
    }

    /// Deletes at most [`BATCH`] objects; false if the server does not know how.
    async fn delete_batch(&self, keys: &[String]) -> Result<bool> {
        let connected = self.connected().await?;
        let asked = self.asked(Action::Delete, &keys[0], connected);
        let doomed = keys.iter().map(|key| {
            let named = ObjectIdentifier::builder().key(self.full(key)).build();
            named.expect("a key is all that it needs")
        });
        let doomed = Delete::builder().set_objects(Some(doomed.collect()));
        let doomed = doomed.quiet(true).build();
        let request = connected
            .client
            .delete_objects()
            .bucket(self.bucket())
            .delete(doomed.expect("objects are all that it needs"));
        let watch = Watch::default();
        let sent = asked.while_it_moves(BATCH_BYTES, &watch, request.send());
        let done = match sent.await {
            Ok(done) => done,
            Err(Failure::Answered(answer)) if knows_no_batch(&answer) => return Ok(false),
            Err(failure) => return Err(asked.explain(failure)),
        };
        let is_left = |e: &&aws_sdk_s3::types::Error| e.code() != Some("NoSuchKey");
        match done.errors().iter().find(is_left) {
            None => Ok(true),
            Some(e) => {
                let key = e.key().unwrap_or_default();
                let key = key.strip_prefix(&self.folder).unwrap_or(key);
                let asked = self.asked(Action::Delete, key, connected);
                Err(asked.explain(Failure::Answered(Answer {
                    status: 200,
                    code: e.code().map(str::to_owned),
                    message: e.message().map(str::to_owned),
                    ..Answer::default()
                })))
            }
        }
    }

    async fn delete_singly(&self, keys: &[String]) -> Result<()> {
        let doomed = stream::iter(keys).map(Ok);
        doomed
            .try_for_each_concurrent(AT_ONCE, |key| self.delete_one(key))
            .await
    }

    async fn delete_one(&self, key: &str) -> Result<()> {
        let connected = self.connected().await?;
        let asked = self.asked(Action::Delete, key, connected);
        let request = connected.client.delete_object().bucket(self.bucket());
        match asked.within(request.key(self.full(key)).send()).await {
            Ok(_) => Ok(()),
            Err(Failure::Answered(answer)) if answer.code.as_deref() == Some("NoSuchKey") => Ok(()),
            Err(failure) => Err(asked.explain(failure)),
        }
    }
}

/// Whether a server does not know how to delete several objects, or wants another checksum of the
/// request than it got.
fn knows_no_batch(answer: &Answer) -> bool {
    let code = answer.code.as_deref().unwrap_or_default();
    matches!(answer.status, 405 | 501) || matches!(code, "MissingContentMD5" | "NotImplemented")
}
