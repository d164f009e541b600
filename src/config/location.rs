//! Where a replica lies, as the user says it: a directory, or a prefix in an S3 bucket.

use crate::config::nearest::nearest;
use crate::error::{Error, Result};
use std::fmt;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, mpsc};
use std::thread::Builder;
use std::time::Duration;

/// How long a file system may take to say what a path leads to.
const ANSWER: Duration = Duration::from_secs(2);

/// What may stand behind the `?` of a URL.
pub const URL_KEYS: [&str; 4] = ["endpoint", "region", "force-path-style", "checksums"];

/// The place of a replica, or of several below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory.
    Directory(PathBuf),
    /// A prefix in a bucket.
    S3(S3Location),
}

/// A prefix in a bucket, and how its server is spoken to. Absent credentials are looked up as the
/// AWS SDK does: environment, profile, instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Location {
    /// The bucket.
    pub bucket: String,
    /// What all keys begin with, without slashes at its ends; empty for the whole bucket.
    pub prefix: String,
    /// The bucket's region. When absent AWS is asked; another server is told what environment or
    /// profile name, or `us-east-1`.
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

impl Location {
    /// Understands a directory, or
    /// `s3://bucket/prefix?endpoint=URL&region=R&force-path-style=true&checksums=false`, whose
    /// prefix and values may be percent-encoded.
    ///
    /// # Errors
    /// `Invalid`, which never shows what may be a secret.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_below(text, Path::new(""))
    }

    /// The same; a directory that is not absolute lies below `base`.
    ///
    /// # Errors
    /// As [`Location::parse`].
    pub fn parse_below(text: &str, base: &Path) -> Result<Self> {
        match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("s3") => parse_url(rest)
                .map(Self::S3)
                .map_err(|e| e.context(without_secrets(text))),
            Some((scheme, _)) => Err(Error::invalid(format!(
                "{}: {scheme} is no kind of replica; give a directory or s3://bucket/prefix",
                without_secrets(text)
            ))),
            None if text.starts_with("s3:") => Err(Error::invalid(format!(
                "{}: a URL begins with s3://, a directory of this name with ./",
                without_secrets(text)
            ))),
            None if text.is_empty() => Err(Error::invalid(
                "a replica's place is empty; give a directory or s3://bucket/prefix",
            )),
            None => Ok(Self::Directory(real_path(&base.join(text))?)),
        }
    }

    /// The place of what lies in a folder of it.
    pub fn below(&self, folder: &str) -> Self {
        match self {
            Self::Directory(path) => Self::Directory(path.join(folder)),
            Self::S3(place) => {
                let parts = [place.prefix.as_str(), folder];
                let parts = parts.iter().filter(|part| !part.is_empty()).copied();
                Self::S3(S3Location {
                    prefix: parts.collect::<Vec<_>>().join("/"),
                    ..place.clone()
                })
            }
        }
    }

    /// What tells it from every other place: two servers may have buckets of one name.
    pub fn identity(&self) -> String {
        match self {
            Self::Directory(path) => path.display().to_string(),
            Self::S3(place) => match &place.endpoint {
                Some(endpoint) => format!("{}?endpoint={endpoint}", place.url()),
                None => place.url(),
            },
        }
    }
}

/// The one path of a file or directory, however it is written, so that it is one place: absolute,
/// with the links resolved in as much of it as exists. Taken as it is written where the file system
/// does not answer.
///
/// # Errors
/// `Invalid` for what is no path.
pub fn real_path(path: &Path) -> Result<PathBuf> {
    let unusable = |e| Error::invalid(format!("{}: no path", path.display())).because(e);
    let absolute = std::path::absolute(path).map_err(unusable)?;
    let asked = absolute.clone();
    let resolved = asked_in_time(&absolute, move || resolve(&asked));
    Ok(resolved.unwrap_or_else(|| absolute.components().collect()))
}

fn resolve(absolute: &Path) -> PathBuf {
    let existing = absolute
        .ancestors()
        .find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
    match existing {
        Some((ancestor, real)) => {
            let rest = absolute.strip_prefix(ancestor).expect("it is an ancestor");
            // Collected anew: to join nothing ends a path in a slash.
            real.join(rest).components().collect()
        }
        None => absolute.components().collect(),
    }
}

/// What `ask` finds out about an absolute path, unless its file system does not answer: one that is
/// dead, a network mount say, must not hold up what lies elsewhere. Asks nothing more where it once
/// got no answer.
pub fn asked_in_time<T: Send + 'static>(
    path: &Path,
    ask: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    static SILENT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let silent = || SILENT.lock().expect("nobody panics with this lock held");
    if silent().iter().any(|folder| path.starts_with(folder)) {
        return None;
    }
    let (sender, answer) = mpsc::sync_channel(1);
    let asking = Builder::new().spawn(move || {
        // Whoever asked may have gone on without.
        sender.send(ask()).ok();
    });
    let answered = asking.ok().and_then(|_| answer.recv_timeout(ANSWER).ok());
    if answered.is_none() {
        silent().push(path.parent().unwrap_or(path).to_owned());
    }
    answered
}

/// A place as the user wrote it, for a message: without a query and without what stands before the
/// last `@`, either of which may be a secret in the wrong place. Half of all secrets of AWS hold a
/// `/`, so that nothing but the `@` says where one ends.
pub fn without_secrets(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('@') => (format!("{scheme}://"), rest),
        _ => (String::new(), text),
    };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    match place.rsplit_once('@') {
        // Of the secret, or of the query: nobody can tell.
        _ if query.contains('@') => format!("{scheme}***"),
        Some((_, behind)) => format!("{scheme}***@{behind}"),
        None => format!("{scheme}{place}"),
    }
}

/// What stands behind `s3://`.
fn parse_url(rest: &str) -> Result<S3Location> {
    let (place, query) = match rest.split_once('?') {
        Some((place, query)) => (place, query),
        None => (rest, ""),
    };
    let (bucket, path) = place.split_once('/').unwrap_or((place, ""));
    // A secret may hold a `/` or a `?`: then what stands before the first one is no bucket's name.
    if rest.contains('@') && check_bucket(bucket).is_err() {
        return Err(Error::invalid(format!(
            "a URL holds no credentials; {CREDENTIALS_BELONG}"
        )));
    }
    check_bucket(bucket)?;
    let mut location = S3Location {
        bucket: bucket.to_owned(),
        prefix: parse_prefix(&decode("the prefix", path)?)?,
        region: None,
        endpoint: None,
        force_path_style: None,
        checksums: true,
        credentials: None,
    };
    let mut given = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        check_url_key(key)?;
        if given.contains(&key) {
            return Err(Error::invalid(format!("{key} is given twice")));
        }
        given.push(key);
        let value = decode(key, value)?;
        match key {
            "endpoint" => location.endpoint = Some(parse_endpoint(&value)?),
            "region" => location.region = Some(parse_region(&value)?),
            "force-path-style" => location.force_path_style = Some(parse_bool(key, &value)?),
            _ => location.checksums = parse_bool(key, &value)?,
        }
    }
    Ok(location)
}

impl S3Location {
    /// Without an endpoint of its own it has the one that the environment names, as it has for the
    /// AWS SDK: one place is one, whichever way it is named.
    ///
    /// # Errors
    /// `Invalid`, which names the variable.
    pub fn take_endpoint(&mut self, environment: &dyn Fn(&str) -> Option<String>) -> Result<()> {
        for variable in ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"] {
            let said = environment(variable).filter(|url| !url.is_empty());
            if let (None, Some(url)) = (&self.endpoint, said) {
                let endpoint = parse_endpoint(&url).map_err(|e| e.context(variable))?;
                self.endpoint = Some(endpoint);
            }
        }
        Ok(())
    }

    /// The URL that is read as this bucket and prefix.
    pub fn url(&self) -> String {
        self.to_string().replace('%', "%25").replace('?', "%3F")
    }
}

/// Refuses what a URL cannot say, before its value is looked at.
fn check_url_key(key: &str) -> Result<()> {
    if matches!(key, "access-key-id" | "secret-access-key") {
        return Err(Error::invalid(format!(
            "a URL holds no {key}; {CREDENTIALS_BELONG}"
        )));
    }
    if URL_KEYS.contains(&key) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a URL has no key {key:?}; {}",
        nearest(key, &URL_KEYS)
    )))
}

const CREDENTIALS_BELONG: &str = "set access-key-id and secret-access-key in the config file, or \
     AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment";

/// Refuses what S3 does not take as a bucket's name.
///
/// # Errors
/// `Invalid`, with the rule.
pub fn check_bucket(name: &str) -> Result<()> {
    let is_outer = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_fine = (3..=63).contains(&name.len())
        && name.bytes().all(|b| is_outer(b) || b"-.".contains(&b))
        && name.bytes().next().is_some_and(is_outer)
        && name.bytes().last().is_some_and(is_outer)
        && !name.contains("..")
        && name.parse::<std::net::Ipv4Addr>().is_err();
    if is_fine {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name:?} is no name of a bucket: 3 to 63 lower case letters, digits, - and ., with a \
         letter or digit at each end"
    )))
}

/// What all keys begin with, without the slashes at its ends.
///
/// # Errors
/// `Invalid` for a part that no key may have.
pub fn parse_prefix(text: &str) -> Result<String> {
    let prefix = text.trim_matches('/');
    let is_part = |part: &str| {
        !matches!(part, "" | "." | "..") && !part.contains(|c: char| c.is_ascii_control())
    };
    // 1,024 bytes is the longest key of S3; below the prefix ours need some 120.
    if prefix.is_empty() || (prefix.len() <= 900 && prefix.split('/').all(is_part)) {
        return Ok(prefix.to_owned());
    }
    Err(Error::invalid(format!(
        "{prefix:?} is no prefix: parts with / between them, none empty, . or .., no control \
         characters, at most 900 bytes"
    )))
}

/// The URL of a server.
///
/// # Errors
/// `Invalid`, which does not show what may be a password.
pub fn parse_endpoint(text: &str) -> Result<String> {
    let wrong = |why: &str| Error::invalid(format!("{}: {why}", without_secrets(text)));
    if text.contains('@') {
        return Err(wrong(&format!(
            "an endpoint holds no credentials; {CREDENTIALS_BELONG}"
        )));
    }
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    let Some(rest) = rest else {
        return Err(wrong("no endpoint: say http://host:port or https://host"));
    };
    let host = rest.split('/').next().unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_graphic() && !"?#%\\\"<>".contains(c);
    if host.is_empty() || host.starts_with(':') || !rest.chars().all(is_plain) {
        return Err(wrong("no endpoint: say http://host:port or https://host"));
    }
    // Behind an IPv6 address, which has colons itself.
    let behind = host.rsplit(']').next().unwrap_or_default();
    let port = behind.split_once(':').map(|(_, port)| port);
    if port.is_some_and(|port| !is_port(port)) {
        return Err(wrong("no endpoint: a port is a number from 1 to 65535"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn is_port(text: &str) -> bool {
    let is_number = text.bytes().all(|digit| digit.is_ascii_digit());
    is_number && text.parse::<NonZeroU16>().is_ok()
}

/// A region's name, also of a server other than AWS.
///
/// # Errors
/// `Invalid`.
pub fn parse_region(text: &str) -> Result<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if text.is_empty() || !text.chars().all(is_plain) {
        return Err(Error::invalid(format!(
            "{text:?} is no region: say one such as eu-central-1, or leave it out"
        )));
    }
    Ok(text.to_owned())
}

fn parse_bool(key: &str, text: &str) -> Result<bool> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Error::invalid(format!(
            "{key} is {text:?}; say true or false"
        ))),
    }
}

/// Undoes percent-encoding. The error shows no value, which may be a secret.
fn decode(what: &str, text: &str) -> Result<String> {
    let wrong = || {
        Error::invalid(format!(
            "{what} is not percent-encoded; write %25 for a percent sign"
        ))
    };
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        let (digits, behind) = after.split_at_checked(2).ok_or_else(wrong)?;
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let byte = u8::from_str_radix(digits, 16).ok().filter(|_| is_hex);
        bytes.push(byte.ok_or_else(wrong)?);
        rest = behind;
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).map_err(|_| wrong())
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
    use crate::error::ErrorKind;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn s3(text: &str) -> S3Location {
        match Location::parse(text) {
            Ok(Location::S3(place)) => place,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_url_is_a_bucket_and_a_prefix_without_slashes_at_its_ends() {
        for (text, bucket, prefix) in [
            ("s3://bucket", "bucket", ""),
            ("s3://bucket/", "bucket", ""),
            ("S3://bucket", "bucket", ""),
            ("s3://my.bucket-1/a", "my.bucket-1", "a"),
            ("s3://bucket/a/b/", "bucket", "a/b"),
            ("s3://bucket//a//", "bucket", "a"),
            ("s3://bucket/a%20b/%C3%A4%3F%25", "bucket", "a b/\u{e4}?%"),
            ("s3://bucket/a b#c", "bucket", "a b#c"),
            ("s3://bucket/a?", "bucket", "a"),
        ] {
            let place = s3(text);
            assert_eq!((&*place.bucket, &*place.prefix), (bucket, prefix), "{text}");
            assert_eq!(place.region, None);
            assert_eq!(place.endpoint, None);
            assert_eq!(place.force_path_style, None);
            assert!(place.checksums && place.credentials.is_none());
        }
        for text in [
            "s3://bucket",
            "s3://bucket/a%20b/%C3%A4%3F%25",
            "s3://bucket/a#b$",
        ] {
            assert_eq!(s3(&s3(text).url()), s3(text));
        }
        assert_eq!(s3("s3://bucket/a/?region=x").to_string(), "s3://bucket/a");
        assert_eq!(s3("s3://bucket").to_string(), "s3://bucket");
    }

    #[test]
    fn a_place_without_an_endpoint_takes_that_of_the_environment() {
        let with = |text: &str, variables: &[(&str, &str)]| {
            let mut place = s3(text);
            let environment = |name: &str| {
                let found = variables.iter().find(|(variable, _)| *variable == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            place.take_endpoint(&environment)?;
            Ok::<_, Error>(place.endpoint)
        };
        let for_all = ("AWS_ENDPOINT_URL", "http://all:9000/");
        let for_s3 = ("AWS_ENDPOINT_URL_S3", "http://s3:9000");
        for (text, variables, endpoint) in [
            ("s3://bucket", &[][..], None),
            ("s3://bucket", &[for_all], Some("http://all:9000")),
            ("s3://bucket", &[for_all, for_s3], Some("http://s3:9000")),
            (
                "s3://bucket",
                &[for_all, ("AWS_ENDPOINT_URL_S3", "")],
                Some("http://all:9000"),
            ),
            (
                "s3://bucket?endpoint=http://own",
                &[for_s3],
                Some("http://own"),
            ),
        ] {
            assert_eq!(with(text, variables).unwrap().as_deref(), endpoint);
        }
        let said = with("s3://bucket", &[("AWS_ENDPOINT_URL", "localhost:9000")]).unwrap_err();
        assert_eq!(
            said.to_string(),
            "AWS_ENDPOINT_URL: localhost:9000: no endpoint: say http://host:port or https://host"
        );
    }

    #[test]
    fn the_query_of_a_url_says_how_its_server_is_spoken_to() {
        let place = s3(
            "s3://bucket/a?endpoint=http%3A%2F%2F127.0.0.1:9000/&region=eu-central-1\
             &force-path-style=false&checksums=false",
        );
        assert_eq!(place.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!(place.region.as_deref(), Some("eu-central-1"));
        assert_eq!(place.force_path_style, Some(false));
        assert!(!place.checksums);
        let place = s3("s3://bucket?endpoint=https://s3.example.org&force-path-style=true");
        assert_eq!(place.endpoint.as_deref(), Some("https://s3.example.org"));
        assert_eq!(place.force_path_style, Some(true));
    }

    #[test]
    fn what_is_no_place_is_refused_with_the_remedy() {
        for (text, sentence) in [
            (
                "gs://bucket/a",
                "gs://bucket/a: gs is no kind of replica; give a directory or s3://bucket/prefix",
            ),
            (
                "s3:/bucket",
                "s3:/bucket: a URL begins with s3://, a directory of this name with ./",
            ),
            (
                "",
                "a replica's place is empty; give a directory or s3://bucket/prefix",
            ),
            (
                "s3://b/a",
                "s3://b/a: \"b\" is no name of a bucket: 3 to 63 lower case letters, digits, - \
                 and ., with a letter or digit at each end",
            ),
            (
                "s3://bucket/a//b",
                "s3://bucket/a//b: \"a//b\" is no prefix: parts with / between them, none empty, \
                 . or .., no control characters, at most 900 bytes",
            ),
            (
                "s3://bucket/50%",
                "s3://bucket/50%: the prefix is not percent-encoded; write %25 for a percent sign",
            ),
            (
                "s3://bucket?regoin=x",
                "s3://bucket: a URL has no key \"regoin\"; did you mean region?",
            ),
            (
                "s3://bucket?acl=x",
                "s3://bucket: a URL has no key \"acl\"; known are endpoint, region, \
                 force-path-style, checksums",
            ),
            (
                "s3://bucket?region=a&region=b",
                "s3://bucket: region is given twice",
            ),
            (
                "s3://bucket?region=",
                "s3://bucket: \"\" is no region: say one such as eu-central-1, or leave it out",
            ),
            (
                "s3://bucket?checksums=no",
                "s3://bucket: checksums is \"no\"; say true or false",
            ),
            (
                "s3://bucket?endpoint=localhost:9000",
                "s3://bucket: localhost:9000: no endpoint: say http://host:port or https://host",
            ),
        ] {
            let error = Location::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            assert_eq!(error.to_string(), sentence);
        }
    }

    #[test]
    fn buckets_prefixes_and_endpoints_that_will_not_do_are_refused() {
        for bucket in [
            "",
            "ab",
            "Bucket",
            "my_bucket",
            "-bucket",
            "bucket.",
            "a..b",
            "10.0.0.1",
            "b%75cket",
            &"a".repeat(64),
        ] {
            assert!(check_bucket(bucket).is_err(), "{bucket}");
        }
        for prefix in ["a/../b", ".", "a/./b", "a\nb", &"a".repeat(901)] {
            assert!(parse_prefix(prefix).is_err(), "{prefix}");
        }
        for prefix in ["%", "%4", "%zz", "%+1", "%ff", "%\u{e4}"] {
            assert!(decode("it", prefix).is_err(), "{prefix}");
        }
        for endpoint in [
            "",
            "http://",
            "https://:90",
            "ftp://x",
            "http://a b",
            "http://x?y",
            "http://127.0.0.1:99999",
            "http://host:0/a",
            "http://host:+80",
            "http://host:",
            "http://host:80:90",
            "https://[::1]:port",
        ] {
            assert!(parse_endpoint(endpoint).is_err(), "{endpoint}");
        }
        for endpoint in [
            "http://host:65535/a:b",
            "https://[::1]",
            "http://[::1]:9000",
        ] {
            assert_eq!(parse_endpoint(endpoint).unwrap(), endpoint);
        }
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_never_shown() {
        for text in [
            "s3://key:hunter2@bucket/a",
            "s3://bucket/a?secret-access-key=hunter2",
            "s3://bucket/a?secret-access-key=hunter2%",
            "s3://bucket/a?password=hunter2",
            "s3://bucket/a?endpoint=http://me:hunter2@host",
            "gs://me:hunter2@bucket/a?secret=hunter2",
            "s3://AKIA:hun/ter2@bucket/app",
            "s3://AKIA:hun?ter2@bucket/app",
            "s3://bucket/app?endpoint=http://AKIA:hun/ter2@host",
            "s3://bucket/app?endpoint=http://me:hunter2%@host",
            "s3:/AKIA:hunter2@bucket",
            "gs://AKIA:hun/ter2@bucket/app",
        ] {
            let said = Location::parse(text).unwrap_err().to_string();
            assert!(!said.contains("hun") && !said.contains("ter2"), "{said}");
        }
        let belong = "set access-key-id and secret-access-key in the config file, or \
                      AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment";
        let said = Location::parse("s3://AKIA:hun/ter2@bucket/app").unwrap_err();
        assert_eq!(
            said.to_string(),
            format!("s3://***@bucket/app: a URL holds no credentials; {belong}")
        );
        let said = parse_endpoint("http://AKIA:hun/ter2@host").unwrap_err();
        assert_eq!(
            said.to_string(),
            format!("http://***@host: an endpoint holds no credentials; {belong}")
        );
        let said = Location::parse("s3://bucket?access-key-id=A").unwrap_err();
        assert_eq!(
            said.to_string(),
            format!("s3://bucket: a URL holds no access-key-id; {belong}")
        );
        // Elsewhere in a prefix it is a letter like any other.
        assert_eq!(s3("s3://bucket/app@host/a").prefix, "app@host/a");
    }

    #[test]
    fn one_directory_is_one_location_however_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("r")).unwrap();
        symlink(&root, root.join("link")).unwrap();
        let location = |place: &str| {
            let location = Location::parse(&format!("{}/{place}", root.display())).unwrap();
            assert_eq!(Location::parse_below(place, &root).unwrap(), location);
            location.to_string()
        };
        for place in ["r", "r/", "r//", "./r", "link/r", "link/r/"] {
            assert_eq!(location(place), root.join("r").to_str().unwrap(), "{place}");
        }
        // Not there yet, and then it is.
        let before: Vec<String> = ["a/b", "a/b/", "link/a/b"].map(location).to_vec();
        fs::create_dir_all(root.join("a/b")).unwrap();
        assert_eq!(before, vec![location("a/b"); 3]);
    }

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

    #[test]
    fn a_place_is_told_from_every_other_one_also_below() {
        let identity = |text: &str| Location::parse(text).unwrap().below("app").identity();
        assert_eq!(identity("/backup"), "/backup/app");
        assert_eq!(identity("s3://bucket"), "s3://bucket/app");
        assert_eq!(identity("s3://bucket/a"), "s3://bucket/a/app");
        let two = ["one", "two"].map(|host| {
            let place = format!("s3://bucket/a?endpoint=http://{host}:9000");
            identity(&place)
        });
        assert_eq!(two[0], "s3://bucket/a/app?endpoint=http://one:9000");
        assert_ne!(two[0], two[1]);
    }
}
