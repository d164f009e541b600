//! The one error type: a kind that says what the caller can do, a sentence, and the source.

use std::fmt;
use std::time::Duration;

/// What the caller can do. A kind exists only where some caller acts differently.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No such database, generation, object or restore point; ask for another.
    NotFound,
    /// Someone else writes this generation or holds this lock; never retry.
    Conflict,
    /// The store or the database did not answer in time; the only kind that is retried.
    Unavailable,
    /// The store answered and refuses us: credentials, region, bucket, clock; or SQLite refuses a
    /// statement. Goes away only when somebody mends it; the message says what to mend.
    Refused,
    /// Local file work failed; stop this database until the truth is read back from disk.
    Disk,
    /// Bytes fail a checksum or break the format; report, never "repair".
    Corrupt,
    /// A flag, setting, name or path is wrong; the message says which and why.
    Invalid,
}

/// A failure: its kind, one sentence in lower case without a full stop, and what caused it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    sentence: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    wait: Duration,
}

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a source.
    pub fn new(kind: ErrorKind, sentence: impl Into<String>) -> Self {
        Self {
            kind,
            sentence: sentence.into(),
            source: None,
            wait: Duration::ZERO,
        }
    }

    /// No such thing: see [`ErrorKind::NotFound`].
    pub fn not_found(sentence: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, sentence)
    }

    /// Somebody else's: see [`ErrorKind::Conflict`].
    pub fn conflict(sentence: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, sentence)
    }

    /// No answer: see [`ErrorKind::Unavailable`].
    pub fn unavailable(sentence: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, sentence)
    }

    /// A store that will not have us, or SQL that SQLite will not: see [`ErrorKind::Refused`].
    pub fn refused(sentence: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, sentence)
    }

    /// Damaged bytes: see [`ErrorKind::Corrupt`].
    pub fn corrupt(sentence: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, sentence)
    }

    /// A wrong setting: see [`ErrorKind::Invalid`].
    pub fn invalid(sentence: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, sentence)
    }

    /// Failed work on local files, with what was tried on which file.
    pub fn disk(sentence: impl Into<String>, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Disk, sentence).because(source)
    }

    /// The same error with its cause attached.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error with what was being done put before the sentence.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.sentence = format!("{doing}: {}", self.sentence);
        self
    }

    /// The same error of a store that asked to be left alone for so long.
    #[must_use]
    pub fn after(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// How long the store asked to be left alone.
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

/// The source is part of the sentence already, so that a reporter that walks the chain does not
/// print it twice.
impl std::error::Error for Error {}
