//! Where a replica lies, as the user says it: a directory, or a prefix in an S3 bucket.

use std::fmt;
use std::path::PathBuf;

/// The place of a replica, or of several below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory.
    Directory(PathBuf),
    /// A prefix in a bucket.
    S3(S3Location),
}

/// A prefix in a bucket, and how its server is spoken to. What is absent is looked up as the AWS
/// SDK does: environment, profile, instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Location {
    /// The bucket.
    pub bucket: String,
    /// What all keys begin with, without slashes at its ends; empty for the whole bucket.
    pub prefix: String,
    /// The bucket's region; looked up when absent.
    pub region: Option<String>,
    /// The URL of a server other than AWS.
    pub endpoint: Option<String>,
    /// The bucket in the path, not in the host name. None: so with an `endpoint`, not so without.
    pub force_path_style: Option<bool>,
    /// Whether uploads carry checksums; some servers do not know them.
    pub checksums: bool,
    /// Access key id and secret; the SDK's default chain when absent.
    pub credentials: Option<Credentials>,
}

/// An access key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Which key.
    pub access_key_id: String,
    /// What signs requests.
    pub secret_access_key: Secret,
}

/// Text that no log, error or listing shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text out of sight.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for the one who signs with it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Location {
    /// A path or a URL without secrets: one replica has one such name, however it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::S3(place) => write!(f, "{place}"),
        }
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        match self.prefix.as_str() {
            "" => Ok(()),
            prefix => write!(f, "/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let credentials = Credentials {
            access_key_id: "AKIA".into(),
            secret_access_key: Secret::new("hunter2".into()),
        };
        let shown = format!("{credentials:?}");
        assert!(
            shown.contains("AKIA") && !shown.contains("hunter2"),
            "{shown}"
        );
        assert_eq!(credentials.secret_access_key.reveal(), "hunter2");
    }
}
