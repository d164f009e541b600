//! Two databases or replicas never share what must be one's own.

use crate::config::location::{Location, S3Location};
use crate::config::settings::{DatabaseSettings, ReplicaSettings};
use crate::error::{Error, Result};

/// Refuses databases that share a name, a file, a meta-path or the place of a replica, where a
/// place within another's counts as shared.
///
/// # Errors
/// `Invalid`, naming both.
pub fn check(databases: &[DatabaseSettings]) -> Result<()> {
    for (n, database) in databases.iter().enumerate() {
        for other in &databases[..n] {
            check_pair(other, database)?;
        }
    }
    let replicas: Vec<(&DatabaseSettings, &ReplicaSettings)> = databases
        .iter()
        .flat_map(|database| {
            database
                .replicas
                .iter()
                .map(move |replica| (database, replica))
        })
        .collect();
    for (n, (database, replica)) in replicas.iter().enumerate() {
        for (other_database, other) in &replicas[..n] {
            let shared = |how: &str| {
                Err(Error::invalid(format!(
                    "replica {:?} of database {} {how} replica {:?} of database {}: {} and {}; \
                     each replica needs a place of its own",
                    other.name,
                    other_database.name,
                    replica.name,
                    database.name,
                    other.location,
                    replica.location
                )))
            };
            match (
                holds(&other.location, &replica.location),
                holds(&replica.location, &other.location),
            ) {
                (true, true) => return shared("lies in the place of"),
                (true, false) => return shared("lies around"),
                (false, true) => return shared("lies within"),
                (false, false) => {}
            }
            if database.name == other_database.name && replica.name == other.name {
                return Err(Error::invalid(format!(
                    "database {} has two replicas with the name {:?}; give one of them another in \
                     the config file",
                    database.name, replica.name
                )));
            }
        }
    }
    Ok(())
}

fn check_pair(one: &DatabaseSettings, other: &DatabaseSettings) -> Result<()> {
    let (path, other_path) = (&one.capture.database, &other.capture.database);
    if path == other_path {
        return Err(Error::invalid(format!(
            "the databases {} and {} are one file: {}",
            one.name,
            other.name,
            path.display()
        )));
    }
    if one.name == other.name {
        return Err(Error::invalid(format!(
            "two databases have the name {:?}: {} and {}; give one of them a name of its own",
            one.name,
            path.display(),
            other_path.display()
        )));
    }
    if one.capture.meta_path == other.capture.meta_path {
        return Err(Error::invalid(format!(
            "the databases {} and {} have one meta-path: {}",
            one.name,
            other.name,
            one.capture.meta_path.display()
        )));
    }
    Ok(())
}

/// Whether a place is the other one, or has it within.
fn holds(outer: &Location, inner: &Location) -> bool {
    match (outer, inner) {
        (Location::Directory(outer), Location::Directory(inner)) => inner.starts_with(outer),
        (Location::S3(outer), Location::S3(inner)) => holds_prefix(outer, inner),
        _ => false,
    }
}

/// Buckets of one name at two servers are two.
fn holds_prefix(outer: &S3Location, inner: &S3Location) -> bool {
    outer.bucket == inner.bucket
        && outer.endpoint == inner.endpoint
        && match inner.prefix.strip_prefix(&outer.prefix) {
            Some(rest) => outer.prefix.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
}
