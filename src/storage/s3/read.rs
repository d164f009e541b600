//! Reading a range: exactly what was asked for, or an error that says why not.

use crate::error::{Error, Result};
use crate::storage::s3::S3Store;
use crate::storage::s3::answer::{Action, Answer, Asked, Failure, PATIENCE, root};
use crate::storage::{no_object, range_end};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::{Bytes, BytesMut};

/// Bytes of an object. One at least, and the last one has a number.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    key: &'a str,
    offset: u64,
    length: u64,
}

impl S3Store {
    /// Reads exactly `length` bytes from `offset`.
    pub(super) async fn read(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let end = offset.checked_add(length).filter(|_| length > 0);
        let Some(end) = end else {
            return self.read_by_size(key, offset, length).await;
        };
        let wanted = Wanted {
            key,
            offset,
            length,
        };
        let connected = self.connected().await?;
        let asked = self.asked(Action::Read, key, connected);
        let request = connected
            .client
            .get_object()
            .bucket(self.bucket())
            .key(self.full(key))
            .range(format!("bytes={offset}-{}", end - 1))
            .send();
        match asked.within(request).await {
            Ok(answer) => {
                self.check(wanted, &answer)?;
                self.take(wanted, answer, &asked).await
            }
            Err(failure) => Err(self.unread(wanted, failure, &asked)),
        }
    }

    /// A read of nothing, or beyond all that can be: the size alone decides what comes of it.
    async fn read_by_size(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let connected = self.connected().await?;
        let asked = self.asked(Action::Read, key, connected);
        let request = connected.client.head_object().bucket(self.bucket());
        let size = match asked.within(request.key(self.full(key)).send()).await {
            Ok(found) => found.content_length.unwrap_or_default().unsigned_abs(),
            Err(Failure::Answered(Answer { status: 404, .. })) => {
                return Err(no_object(&self.location, key));
            }
            Err(failure) => return Err(asked.explain(failure)),
        };
        range_end(&self.location, key, size, offset, length)?;
        Ok(Bytes::new())
    }

    /// Why a read failed. Some answers are those that the contract of a store knows.
    fn unread(&self, wanted: Wanted<'_>, failure: Failure, asked: &Asked<'_>) -> Error {
        match &failure {
            Failure::Answered(answer) if answer.code.as_deref() == Some("NoSuchKey") => {
                no_object(&self.location, wanted.key)
            }
            Failure::Answered(answer) if answer.status == 416 => {
                let range = answer.content_range.as_deref();
                let size = range.and_then(|range| range.strip_prefix("bytes */")?.parse().ok());
                self.too_short(wanted, size)
            }
            _ => asked.explain(failure),
        }
    }

    /// The sentence for an object that ends before the range does.
    fn too_short(&self, wanted: Wanted<'_>, size: Option<u64>) -> Error {
        let Wanted {
            key,
            offset,
            length,
        } = wanted;
        let known = size.map(|size| range_end(&self.location, key, size, offset, length));
        match known {
            Some(Err(error)) => error,
            _ => self.corrupt(wanted, "the server says that it is shorter"),
        }
    }

    fn corrupt(&self, wanted: Wanted<'_>, seen: &str) -> Error {
        Error::corrupt(format!(
            "read {}/{}, {} bytes from {} on: {seen}",
            self.location, wanted.key, wanted.length, wanted.offset
        ))
    }

    /// Refuses an answer about anything else than the range that was asked for.
    fn check(&self, wanted: Wanted<'_>, answer: &GetObjectOutput) -> Result<()> {
        let Wanted { offset, length, .. } = wanted;
        let Some(said) = &answer.content_range else {
            let size = answer.content_length.unwrap_or_default().unsigned_abs();
            // The same bytes, if the range is all there is.
            return match offset == 0 && size == length {
                true => Ok(()),
                false => Err(self.corrupt(wanted, "the server sends the whole object")),
            };
        };
        match parse_range(said) {
            Some((first, last, _)) if first == offset && last - first == length - 1 => Ok(()),
            Some((first, last, size)) if first == offset && last - first < length - 1 => {
                Err(self.too_short(wanted, size))
            }
            _ => Err(self.corrupt(wanted, &format!("the server sends {said}"))),
        }
    }

    /// Takes in the body of an answer.
    async fn take(
        &self,
        wanted: Wanted<'_>,
        answer: GetObjectOutput,
        asked: &Asked<'_>,
    ) -> Result<Bytes> {
        let length = wanted.length;
        let mut body = answer.body;
        let mut taken = BytesMut::new();
        loop {
            let have = taken.len() as u64;
            let cut = |why: &str| {
                let seen = format!("{why} after {have} of {length} bytes");
                asked.explain(Failure::Broken(seen))
            };
            match tokio::time::timeout(PATIENCE, body.next()).await {
                Err(_) => return Err(cut(&format!("nothing came for {PATIENCE:?}"))),
                Ok(Some(Err(e))) => return Err(cut(&root(&e))),
                Ok(None) if have < length => return Err(cut("it ended")),
                Ok(None) => return Ok(taken.freeze()),
                Ok(Some(Ok(piece))) if have + piece.len() as u64 > length => {
                    return Err(self.corrupt(wanted, "the server sends more"));
                }
                // Blocks of pages come in one piece.
                Ok(Some(Ok(piece))) if piece.len() as u64 == length => return Ok(piece),
                Ok(Some(Ok(piece))) => {
                    if have == 0 {
                        taken.reserve(length as usize);
                    }
                    taken.extend_from_slice(&piece);
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_understood_or_nothing() {
        for (text, expect) in [
            ("bytes 0-9/10", Some((0, 9, Some(10)))),
            ("bytes 5-5/*", Some((5, 5, None))),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("items 0-9/10", None),
            ("bytes 0-/10", None),
            ("", None),
        ] {
            assert_eq!(parse_range(text), expect, "{text:?}");
        }
    }
}
