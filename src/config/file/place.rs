//! Where the replica of a `[[db.replica]]` lies: `url`, `path`, or `bucket` with `path`.

use crate::config::file::table::{At, Table};
use crate::config::location::{
    Credentials, Location, S3Location, Secret, check_bucket, parse_endpoint, parse_prefix,
    parse_region, without_secrets,
};
use crate::error::{Error, Result};
use std::path::Path;

/// What only a bucket has.
const S3_KEYS: [&str; 7] = [
    "bucket",
    "region",
    "endpoint",
    "force-path-style",
    "checksums",
    "access-key-id",
    "secret-access-key",
];

/// What a replica may be.
#[derive(Clone, Copy)]
enum Type {
    File,
    S3,
}

/// The place as it is written.
enum Written {
    Url(At<String>),
    Directory(At<String>),
    Bucket(At<String>, Option<At<String>>),
}

/// Where a replica lies, and how the user wrote that. Directories that are not absolute lie below
/// `base`; `credentials` are those of all buckets without ones of their own.
///
/// # Errors
/// `Invalid`, for contradictions too.
pub(crate) fn place(
    table: &Table<'_>,
    base: &Path,
    credentials: Option<&Credentials>,
) -> Result<(Location, String)> {
    match written(table)? {
        Written::Directory(path) => directory(table, path, base),
        Written::Url(url) => from_url(table, url, credentials),
        Written::Bucket(bucket, path) => in_bucket(table, bucket, path, credentials),
    }
}

fn written(table: &Table<'_>) -> Result<Written> {
    let wrong = |at, sentence: &str| Err(table.source.wrong(at, sentence));
    let bucket = table.text("bucket")?;
    let written = match (table.text("url")?, bucket, table.text("path")?) {
        (Some(url), None, None) => Written::Url(url),
        (None, Some(bucket), path) => Written::Bucket(bucket, path),
        (None, None, Some(path)) => Written::Directory(path),
        (Some(_), Some(bucket), _) => {
            return wrong(bucket.at, "bucket beside url: give one of them");
        }
        (Some(_), None, Some(path)) => {
            return wrong(path.at, "path beside url: give one of them");
        }
        (None, None, None) => {
            let sentence = "[[db.replica]] needs a place: url = \"s3://bucket/prefix\", or path \
                            for a directory, or bucket";
            return wrong(table.at, sentence);
        }
    };
    let told = table.parsed("type", parse_type)?;
    match (told, &written) {
        (
            Some(At {
                value: Type::S3,
                at,
            }),
            Written::Directory(_),
        ) => wrong(at, "type is \"s3\", but url or bucket is missing"),
        (
            Some(At {
                value: Type::File,
                at,
            }),
            Written::Url(_) | Written::Bucket(..),
        ) => {
            let sentence = "type is \"file\", but url and bucket are for s3; give path alone";
            wrong(at, sentence)
        }
        _ => Ok(written),
    }
}

fn parse_type(text: &str) -> Result<Type> {
    match text {
        "file" => Ok(Type::File),
        "s3" => Ok(Type::S3),
        _ => Err(Error::invalid(format!("{text:?} is neither s3 nor file"))),
    }
}

fn directory(table: &Table<'_>, path: At<String>, base: &Path) -> Result<(Location, String)> {
    if let Some((key, at)) = S3_KEYS
        .iter()
        .find_map(|key| Some((key, table.place(key)?)))
    {
        return Err(table.source.wrong(
            at,
            format!("{key} is for buckets, but path alone is a directory; give url or bucket"),
        ));
    }
    if path.value.contains("://") {
        let place = without_secrets(&path.value);
        let sentence = format!("path is the URL {place}; give it as url");
        return Err(table.source.wrong(path.at, sentence));
    }
    let location = Location::parse_below(&path.value, base)
        .map_err(|e| e.context(format!("{}: path", table.source.line(path.at))))?;
    Ok((location, path.value))
}

fn from_url(
    table: &Table<'_>,
    url: At<String>,
    credentials: Option<&Credentials>,
) -> Result<(Location, String)> {
    let context = || format!("{}: url", table.source.line(url.at));
    let mut location = match Location::parse(&url.value).map_err(|e| e.context(context()))? {
        Location::S3(location) => location,
        Location::Directory(_) => {
            let sentence = "url is none such as s3://bucket/prefix; give a directory as path";
            return Err(table.source.wrong(url.at, sentence));
        }
    };
    let query = url.value.split_once('?').map_or("", |(_, query)| query);
    let in_query = |key: &str| {
        query
            .split('&')
            .any(|pair| pair.split('=').next() == Some(key))
    };
    for key in crate::config::location::URL_KEYS {
        if let Some(at) = table.place(key).filter(|_| in_query(key)) {
            let sentence = format!("{key} is given here and in the url; give it once");
            return Err(table.source.wrong(at, sentence));
        }
    }
    fill(table, &mut location, credentials)?;
    Ok((Location::S3(location), url.value))
}

fn in_bucket(
    table: &Table<'_>,
    bucket: At<String>,
    path: Option<At<String>>,
    credentials: Option<&Credentials>,
) -> Result<(Location, String)> {
    check_bucket(&bucket.value)
        .map_err(|e| e.context(format!("{}: bucket", table.source.line(bucket.at))))?;
    let prefix = match path {
        None => String::new(),
        Some(path) => parse_prefix(&path.value)
            .map_err(|e| e.context(format!("{}: path", table.source.line(path.at))))?,
    };
    let mut location = S3Location {
        bucket: bucket.value,
        prefix,
        region: None,
        endpoint: None,
        force_path_style: None,
        checksums: true,
        credentials: None,
    };
    fill(table, &mut location, credentials)?;
    let written = location.to_string();
    Ok((Location::S3(location), written))
}

/// What stands beside the place of a bucket.
fn fill(
    table: &Table<'_>,
    location: &mut S3Location,
    credentials: Option<&Credentials>,
) -> Result<()> {
    if let Some(region) = table.parsed("region", parse_region)? {
        location.region = Some(region.value);
    }
    if let Some(endpoint) = table.parsed("endpoint", parse_endpoint)? {
        location.endpoint = Some(endpoint.value);
    }
    location
        .take_endpoint(table.source.environment)
        .map_err(|e| e.context(table.source.line(table.at)))?;
    if let Some(is_forced) = table.boolean("force-path-style")? {
        location.force_path_style = Some(is_forced);
    }
    if let Some(checksums) = table.boolean("checksums")? {
        location.checksums = checksums;
    }
    location.credentials = keys(table)?.or_else(|| credentials.cloned());
    Ok(())
}

/// The access key that a table holds, if it does.
///
/// # Errors
/// `Invalid` for half a key.
pub(crate) fn keys(table: &Table<'_>) -> Result<Option<Credentials>> {
    let id = table.text("access-key-id")?;
    let secret = table.text("secret-access-key")?;
    for (key, value) in [("access-key-id", &id), ("secret-access-key", &secret)] {
        if let Some(empty) = value.as_ref().filter(|found| found.value.is_empty()) {
            return Err(table.source.wrong(empty.at, format!("{key} is empty")));
        }
    }
    let (given, missing, at) = match (id, secret) {
        (None, None) => return Ok(None),
        (Some(id), Some(secret)) => {
            return Ok(Some(Credentials {
                access_key_id: id.value,
                secret_access_key: Secret::new(secret.value),
            }));
        }
        (Some(id), None) => ("access-key-id", "secret-access-key", id.at),
        (None, Some(secret)) => ("secret-access-key", "access-key-id", secret.at),
    };
    let sentence = format!("{given} without {missing}; give both or neither");
    Err(table.source.wrong(at, sentence))
}
