//! What came of a request that gave nothing: from what the server said, or did not say, to one
//! sentence with its remedy. Pure, but for how long a request may take.

use crate::error::Error;
use crate::format::ids::Timestamp;
use crate::storage::retry::SLOWEST_LINE;
use crate::storage::s3::watch::Watch;
use aws_config::imds::client::error::ImdsError;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use std::error::Error as Source;
use std::fmt;
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long nothing may move, where nothing lies on the way in buffers.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Large requests that are on their way at once, and share a line.
pub(super) const AT_ONCE: usize = 4;

/// How long a server that says "slow down" is left alone at least, if it does not say how long.
const SLOW_DOWN: Duration = Duration::from_secs(1);

/// The longest that a server may make us wait by saying so.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The header in which our connections put the time at which a request was signed into its answer.
pub(super) const SIGNED_AT: &str = "x-sqlrepl-signed-at";

/// What keys are missing or wrong, and where to put them.
const GIVE_KEYS: &str = "set access-key-id and secret-access-key in the config, or \
                         AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";

/// Who is asked, as messages say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// The bucket.
    pub(super) bucket: String,
    /// The region for which requests are signed.
    pub(super) region: String,
    /// The endpoint without scheme.
    pub(super) host: String,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Put,
    Read,
    List,
    Delete,
    Abort,
    LookUp,
}

impl Action {
    /// The permission that it takes.
    fn permission(self) -> &'static str {
        match self {
            Self::Put => "s3:PutObject",
            Self::Read => "s3:GetObject",
            Self::List | Self::LookUp => "s3:ListBucket",
            Self::Delete => "s3:DeleteObject",
            Self::Abort => "s3:ListBucketMultipartUploads and s3:AbortMultipartUpload",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Put => "put",
            Self::Read => "read",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Abort => "abort the unfinished uploads of",
            Self::LookUp => "look up the region of",
        })
    }
}

/// Why a request gave nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server said no.
    Answered(Answer),
    /// No answer came; with what is known of the reason.
    Unanswered(String),
    /// An answer that is not whole, or not in order: what of it is wrong.
    Broken(String),
    /// Something answered that does not speak S3: what it said.
    NotS3(String),
    /// Nobody is sure who answers.
    Certificate(String),
    /// There is nothing to sign with: what was looked for.
    NoCredentials(String),
    /// Who should give the credentials did not, this time.
    NoSource(String),
    /// The request could not even be made.
    Unusable(String),
}

/// What the server said instead of doing what it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// S3's own name of the error; none in the answer to a HEAD.
    pub(super) code: Option<String>,
    /// Its words.
    pub(super) message: Option<String>,
    /// Where the bucket lies.
    pub(super) region: Option<String>,
    /// `Content-Range`: of a range that cannot be, the object's size.
    pub(super) content_range: Option<String>,
    /// The server's time.
    pub(super) date: Option<Timestamp>,
    /// Our time when the request was signed.
    pub(super) signed_at: Option<Timestamp>,
    /// How long it wants to be left alone.
    pub(super) retry_after: Option<Duration>,
    /// Whether it said something that is none of S3.
    pub(super) is_foreign: bool,
}

/// A request: what messages say of it.
pub(super) struct Asked<'a> {
    action: Action,
    object: String,
    server: &'a Server,
}

impl<'a> Asked<'a> {
    pub(super) fn new(action: Action, object: impl Into<String>, server: &'a Server) -> Self {
        Self {
            action,
            object: object.into(),
            server,
        }
    }

    /// What a request gives that carries nothing, unless it takes too long.
    pub(super) async fn within<T, E>(
        &self,
        request: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + Source + 'static,
    {
        self.while_it_moves(0, &Watch::default(), request).await
    }

    /// What a request gives that carries so many bytes, unless for too long nothing of them moves.
    /// How long it takes in all says nothing: nobody knows how many share the line.
    pub(super) async fn while_it_moves<T, E>(
        &self,
        bytes: u64,
        watch: &Watch,
        request: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + Source + 'static,
    {
        let patience = patience(bytes);
        let mut request = std::pin::pin!(request);
        let mut since = Instant::now();
        loop {
            if let Ok(done) = timeout_at(since + patience, request.as_mut()).await {
                return done.map_err(Failure::of);
            }
            let moved = watch.moved();
            match moved.last.filter(|last| *last > since) {
                Some(last) => since = last,
                None => {
                    tracing::debug!(pieces = moved.pieces, "a request stands still");
                    let why = format!("nothing moved for {patience:?}");
                    return Err(Failure::Unanswered(why));
                }
            }
        }
    }

    /// The error that a user sees.
    pub(super) fn explain(&self, failure: Failure) -> Error {
        let host = &self.server.host;
        match failure {
            Failure::Answered(answer) => self.explain_answer(&answer),
            Failure::Unanswered(why) => self.unavailable(format!("no answer from {host}: {why}")),
            Failure::Broken(why) => {
                self.unavailable(format!("the answer of {host} is broken: {why}"))
            }
            Failure::NotS3(said) => self.refused(format!(
                "{host} does not answer as an S3 server does ({said}); correct the endpoint"
            )),
            Failure::Certificate(why) => self.refused(format!(
                "the certificate of {host} does not verify ({why}); correct the endpoint, or add \
                 the server's CA to those of the system"
            )),
            Failure::NoCredentials(why) => {
                self.refused(format!("no credentials were found ({why}); {GIVE_KEYS}"))
            }
            Failure::NoSource(why) => {
                self.unavailable(format!("the source of the credentials gave none: {why}"))
            }
            Failure::Unusable(why) => Error::invalid(self.sentence(&why)),
        }
    }

    fn explain_answer(&self, answer: &Answer) -> Error {
        let Server {
            bucket,
            region,
            host,
        } = self.server;
        match (answer.status, answer.code.as_deref().unwrap_or_default()) {
            (_, "InvalidAccessKeyId") => {
                self.refused(format!("{host} knows no such access key; {GIVE_KEYS}"))
            }
            (_, "SignatureDoesNotMatch") => self.refused(format!(
                "{host} says that the secret access key is not the access key's; {GIVE_KEYS}"
            )),
            (_, "ExpiredToken" | "TokenRefreshRequired") => self.refused(
                "the session token of the credentials has expired; get new credentials".to_owned(),
            ),
            (_, "InvalidToken") => self.refused(format!(
                "{host} does not accept the session token of the credentials; get new credentials"
            )),
            (_, "RequestTimeTooSkewed" | "RequestExpired") => self.refused(clocks(answer, host)),
            (404, "") if self.action == Action::LookUp => self.no_bucket(),
            (_, "NoSuchBucket") => self.no_bucket(),
            (301 | 400, _) | (_, "AuthorizationHeaderMalformed")
                if answer.region.as_ref().is_some_and(|there| there != region) =>
            {
                let there = answer.region.as_deref().unwrap_or_default();
                self.refused(format!(
                    "the bucket \"{bucket}\" lies in region {there}, not in {region}; set region \
                     to {there}"
                ))
            }
            (301, _)
            | (_, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => self
                .refused(format!(
                    "the bucket \"{bucket}\" does not lie in region {region}{}; set region to the \
                     one that it lies in",
                    answer.said()
                )),
            (_, "SlowDown") | (429 | 503, _) => self
                .unavailable(format!("{host} asks to slow down{}", answer.said()))
                .after(answer.retry_after.unwrap_or(SLOW_DOWN).min(LONGEST_WAIT)),
            (408 | 409 | 500 | 502..=599, _)
            | (_, "RequestTimeout" | "InternalError" | "TemporaryRedirect" | "NoSuchUpload")
            | (_, "BadDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch") => {
                self.unavailable(format!("{host} failed{}", answer.said()))
            }
            (401 | 403, _) | (_, "AccessDenied") => self.refused(format!(
                "{host} denies it to these credentials{}; allow them {} in bucket \"{bucket}\", \
                 or give others",
                answer.said(),
                self.action.permission()
            )),
            (501, _) => self.refused(format!(
                "{host} cannot do that{}; if it does not know upload checksums, set checksums to \
                 false",
                answer.said()
            )),
            (_, "") if answer.is_foreign => {
                self.explain(Failure::NotS3(format!("status {}", answer.status)))
            }
            _ => self.refused(format!("{host} refuses it{}", answer.said())),
        }
    }

    fn no_bucket(&self) -> Error {
        let Server { bucket, host, .. } = self.server;
        self.refused(format!(
            "there is no bucket \"{bucket}\" at {host}; create it, or correct its name"
        ))
    }

    fn sentence(&self, why: &str) -> String {
        format!("{} {}: {why}", self.action, self.object)
    }

    fn refused(&self, why: String) -> Error {
        Error::refused(self.sentence(&why))
    }

    fn unavailable(&self, why: String) -> Error {
        Error::unavailable(self.sentence(&why))
    }
}

/// The sentence for clocks that differ.
fn clocks(answer: &Answer, host: &str) -> String {
    match (answer.signed_at, answer.date) {
        (Some(here), Some(there)) => {
            format!("the clock here says {here}, that of {host} {there}; set the clock")
        }
        _ => format!("the clock here and that of {host} differ too much; set the clock"),
    }
}

/// How long nothing may move of a request that carries so many bytes: all of them may lie in
/// buffers on the way, with those of the others.
fn patience(bytes: u64) -> Duration {
    PATIENCE + Duration::from_secs(bytes * AT_ONCE as u64 / SLOWEST_LINE)
}

impl Failure {
    fn of<E: ProvideErrorMetadata + Source + 'static>(error: SdkError<E>) -> Self {
        match &error {
            SdkError::ServiceError(refusal) => {
                let meta = refusal.err().meta();
                Self::of_answer(meta.code(), meta.message(), refusal.raw(), root(&error))
            }
            SdkError::ResponseError(garbled) => {
                Self::of_answer(None, None, garbled.raw(), root(&error))
            }
            SdkError::ConstructionFailure(_) => Self::Unusable(root(&error)),
            _ => Self::of_silence(&error),
        }
    }

    /// What the server said; what it means that it cannot be understood, if it cannot.
    fn of_answer(
        code: Option<&str>,
        message: Option<&str>,
        raw: &HttpResponse,
        why: String,
    ) -> Self {
        let of_s3 = raw.body().bytes().is_none_or(is_xml);
        match code {
            None if of_s3 => Self::Broken(why),
            _ => Self::Answered(Answer::of(code, message, raw)),
        }
    }

    /// What came before, or instead of, an answer.
    fn of_silence(error: &(dyn Source + 'static)) -> Self {
        let why = root(error);
        let nowhere = "neither in the config nor in environment, profile or instance";
        if sources(error).any(|source| source.is::<ImdsError>()) {
            return Self::NoCredentials(nowhere.to_owned());
        }
        match sources(error).find_map(|source| source.downcast_ref()) {
            Some(CredentialsError::CredentialsNotLoaded(_)) => {
                Self::NoCredentials(nowhere.to_owned())
            }
            Some(CredentialsError::InvalidConfiguration(_)) => Self::NoCredentials(why),
            Some(_) => Self::NoSource(why),
            None if why.contains("identity resolver") => Self::NoSource(why),
            // An endpoint or a region that cannot be.
            None if why.contains("was not a valid") => Self::Unusable(why),
            None if why.contains("certificate") => Self::Certificate(why),
            // TLS to who speaks none.
            None if why.contains("InvalidContentType") => Self::NotS3("no TLS".to_owned()),
            None => Self::Unanswered(why),
        }
    }
}

impl Answer {
    fn of(code: Option<&str>, message: Option<&str>, raw: &HttpResponse) -> Self {
        let header = |name| raw.headers().get(name);
        let body = raw
            .body()
            .bytes()
            .and_then(|body| std::str::from_utf8(body).ok());
        let in_body = body.and_then(|body| element(body, "Region"));
        Self {
            status: raw.status().as_u16(),
            code: code.map(str::to_owned),
            message: message.map(str::to_owned),
            region: header("x-amz-bucket-region").or(in_body).map(str::to_owned),
            content_range: header("content-range").map(str::to_owned),
            date: header("date").and_then(http_date),
            signed_at: header(SIGNED_AT).and_then(signing_time),
            retry_after: header("retry-after").and_then(|seconds| {
                let seconds = seconds.parse().ok()?;
                Some(Duration::from_secs(seconds))
            }),
            is_foreign: code.is_none() && (raw.status().is_success() || body != Some("")),
        }
    }

    /// What it said, for the end of a sentence.
    fn said(&self) -> String {
        let code = self.code.as_deref().unwrap_or("no S3 error code");
        format!(" (status {}, {code}{})", self.status, self.words())
    }

    /// The server's words behind a colon, as much of them as fits a line.
    fn words(&self) -> String {
        const LONGEST: usize = 200;
        match self
            .message
            .as_deref()
            .map(str::trim)
            .filter(|words| !words.is_empty())
        {
            None => String::new(),
            Some(words) => {
                let words = words.chars().filter(|c| !c.is_control()).take(LONGEST);
                format!(": {}", words.collect::<String>())
            }
        }
    }
}

/// An error and what caused it, down to the last cause.
fn sources<'a>(
    error: &'a (dyn Source + 'static),
) -> impl Iterator<Item = &'a (dyn Source + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// The last cause that says something.
pub(super) fn root(error: &(dyn Source + 'static)) -> String {
    let texts = sources(error).map(ToString::to_string);
    let speaking = texts.filter(|text| text != "timed out");
    let last = speaking.last().unwrap_or_else(|| "timed out".to_owned());
    last.trim_end_matches('.').to_owned()
}

/// Whether a body is one of S3, and not a page for people.
fn is_xml(body: &[u8]) -> bool {
    const HEAD: usize = 512;
    let head = &body[..body.len().min(HEAD)];
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    head.trim_start().starts_with('<') && !head.contains("<html")
}

/// The text of an element without children.
fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, behind) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = behind.split_once(&format!("</{name}>"))?;
    Some(text)
}

/// The time in a `Date` header.
pub(super) fn http_date(text: &str) -> Option<Timestamp> {
    timestamp(&DateTime::from_str(text, DateTimeFormat::HttpDate).ok()?)
}

/// The client's form of a moment in ours.
pub(super) fn timestamp(time: &DateTime) -> Option<Timestamp> {
    let micros = i64::try_from(time.as_nanos() / 1000).ok()?;
    Some(Timestamp::from_micros(micros))
}

/// The time in a header `x-amz-date`.
fn signing_time(text: &str) -> Option<Timestamp> {
    let civil = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    Some(Timestamp::from_civil(civil))
}

#[cfg(test)]
mod tests;
