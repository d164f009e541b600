//! What a daemon says of its databases and their replicas: plain data that has a JSON form.

use crate::config::settings::DatabaseSettings;
use crate::format::ids::{GenerationId, Txid};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatabaseStatus {
    /// Its name.
    pub name: String,
    /// The database file.
    pub path: PathBuf,
    /// Where its spool lies.
    pub meta_path: PathBuf,
    /// How it is.
    pub state: DatabaseState,
    /// What is wrong with it, if something is: a sentence.
    pub trouble: Option<String>,
    /// When the last commit was captured.
    pub last_commit: Option<String>,
    /// Bytes in its spool.
    pub spool_bytes: Option<u64>,
    /// Bytes of its `-wal` file.
    pub wal_bytes: Option<u64>,
    /// Its replicas.
    pub replicas: Vec<ReplicaStatus>,
}

/// How a database is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatabaseState {
    /// It is about to be opened.
    Starting,
    /// Its commits go into the spool.
    Capturing,
    /// Nothing is captured at the moment.
    Interrupted,
    /// Its start or work failed, and is tried again.
    Waiting,
    /// It failed for good.
    Failed,
    /// No process replicates it.
    NotRunning,
    /// A process may replicate it, but does not say how it is.
    Unknown,
}

/// A replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub location: String,
    /// How it is.
    pub state: ReplicaState,
    /// What is wrong with it, if something is: a sentence.
    pub trouble: Option<String>,
    /// The generation that is written.
    pub generation: Option<GenerationId>,
    /// The newest durable restore point.
    pub txid: Option<Txid>,
    /// Its time.
    pub time: Option<String>,
    /// Whether the store keeps two writers apart: `unknown`, `put-if-absent` or `none`.
    pub fencing: Option<String>,
    /// Why readers follow another writer, if they do: a sentence.
    pub superseded: Option<String>,
    /// Commits in the spool that are not durable here.
    pub waiting_commits: Option<u64>,
    /// The age of the oldest commit that is not durable here; 0 if there is none, absent if that is
    /// not known yet.
    pub lag_seconds: Option<f64>,
}

/// How a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaState {
    /// Nothing is stored since the start.
    Starting,
    /// Commits go there.
    Replicating,
    /// The last try failed, and another follows.
    Retrying,
    /// Commits go there, but readers follow another writer.
    Superseded,
    /// It gave up.
    Failed,
    /// Its database is not replicated.
    NotRunning,
    /// Whoever replicates its database does not say.
    Unknown,
}

impl DatabaseStatus {
    /// A database that no process replicates, as far as is known.
    pub fn not_running(name: String, path: PathBuf, meta_path: PathBuf) -> Self {
        Self {
            name,
            path,
            meta_path,
            state: DatabaseState::NotRunning,
            trouble: None,
            last_commit: None,
            spool_bytes: None,
            wal_bytes: None,
            replicas: Vec::new(),
        }
    }

    /// A database that does not run, with its replicas.
    pub fn of_settings(settings: &DatabaseSettings) -> Self {
        let replicas = settings.replicas.iter().map(|replica| ReplicaStatus {
            name: replica.name.clone(),
            location: replica.location.to_string(),
            state: ReplicaState::NotRunning,
            trouble: None,
            generation: None,
            txid: None,
            time: None,
            fencing: None,
            superseded: None,
            waiting_commits: None,
            lag_seconds: None,
        });
        let (path, meta_path) = (&settings.capture.database, &settings.capture.meta_path);
        Self {
            replicas: replicas.collect(),
            ..Self::not_running(settings.name.clone(), path.clone(), meta_path.clone())
        }
    }

    /// The same of a database that a process may replicate which does not say how it is.
    #[must_use]
    pub fn unknown(mut self, trouble: String) -> Self {
        for replica in &mut self.replicas {
            replica.state = ReplicaState::Unknown;
        }
        self.with(DatabaseState::Unknown, Some(trouble))
    }

    /// The same in another state.
    #[must_use]
    pub(super) fn with(self, state: DatabaseState, trouble: Option<String>) -> Self {
        Self {
            state,
            trouble,
            ..self
        }
    }

    /// Whether nothing is wrong with it or with one of its replicas.
    pub fn is_well(&self) -> bool {
        let states = [DatabaseState::Starting, DatabaseState::Capturing];
        states.contains(&self.state)
            && self.trouble.is_none()
            && self.replicas.iter().all(ReplicaStatus::is_well)
    }
}

impl ReplicaStatus {
    /// Whether nothing is wrong with it.
    pub fn is_well(&self) -> bool {
        self.complaint().is_none()
    }

    /// What is wrong with it, if something is: a sentence.
    pub fn complaint(&self) -> Option<&str> {
        self.trouble.as_deref().or(self.superseded.as_deref())
    }
}
