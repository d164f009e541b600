//! Who writes, and which database: what objects say of their origin.

use crate::config::{Environment, Random};
use crate::error::{Error, Result};
use crate::format::ids::{DatabaseId, WriterId};
use crate::storage::durable;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// The origin of a daemon's objects.
pub struct Identity {
    /// Drawn at this start.
    pub writer: WriterId,
    /// The machine, for messages.
    pub host: String,
    /// The database file, for messages.
    pub database: String,
    path: PathBuf,
    random: Random,
    id: Mutex<Option<DatabaseId>>,
}

impl Identity {
    /// The identity that is kept in the file at `path`, once it is decided.
    ///
    /// # Errors
    /// `Disk`, `Corrupt`; `Unavailable` if there are no random bytes.
    pub fn load(
        path: PathBuf,
        host: String,
        database: String,
        environment: &Environment,
    ) -> Result<Self> {
        let id = match durable::read_if_there(&path)? {
            Some(bytes) => Some(
                String::from_utf8_lossy(&bytes)
                    .trim()
                    .parse()
                    .map_err(|e: Error| Error::corrupt(format!("read {}: {e}", path.display())))?,
            ),
            None => None,
        };
        Ok(Self {
            writer: WriterId(environment.draw()?),
            host,
            database,
            path,
            random: environment.random.clone(),
            id: Mutex::new(id),
        })
    }

    /// The database id, once it is decided.
    pub fn database_id(&self) -> Option<DatabaseId> {
        *self.id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides the id if it is not: `found` is what the replica at `location` holds.
    ///
    /// # Errors
    /// `Invalid` if the replica holds another database; `Disk`.
    pub fn decide(&self, found: Option<DatabaseId>, location: &str) -> Result<DatabaseId> {
        let mut id = self.id.lock().unwrap_or_else(PoisonError::into_inner);
        match (*id, found) {
            (Some(ours), Some(theirs)) if ours != theirs => Err(Error::invalid(format!(
                "{location} holds another database (id {theirs}, this one is {ours}): give {} a \
                 replica path of its own",
                self.database
            ))),
            (Some(ours), _) => Ok(ours),
            (None, found) => {
                let decided = match found {
                    Some(theirs) => theirs,
                    None => {
                        let mut drawn = [0; 16];
                        (self.random)(&mut drawn)?;
                        DatabaseId(drawn)
                    }
                };
                durable::replace_file(&self.path, format!("{decided}\n").as_bytes())?;
                *id = Some(decided);
                Ok(decided)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(dir: &std::path::Path) -> Identity {
        let path = dir.join("database-id");
        let environment = Environment::of_tests();
        Identity::load(path, "host".into(), "/data/app.db".into(), &environment).unwrap()
    }

    #[test]
    fn the_first_replica_decides_and_a_restart_remembers() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = DatabaseId([7; 16]);
        assert_eq!(identity(dir.path()).database_id(), None);
        assert_eq!(
            identity(dir.path()).decide(Some(theirs), "r").unwrap(),
            theirs
        );
        assert_eq!(identity(dir.path()).database_id(), Some(theirs));
        assert_eq!(identity(dir.path()).decide(None, "other").unwrap(), theirs);
    }

    #[test]
    fn a_replica_of_another_database_is_refused_with_both_ids() {
        let dir = tempfile::tempdir().unwrap();
        let ours = identity(dir.path()).decide(None, "r").unwrap();
        let error = identity(dir.path())
            .decide(Some(DatabaseId([7; 16])), "/replica")
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "/replica holds another database (id {}, this one is {ours}): give /data/app.db \
                 a replica path of its own",
                "07".repeat(16)
            )
        );
    }
}
