//! A database and its replicas in a running process: start, release of the spool, `sync`, stop.

pub mod control;

use crate::config::{CaptureSettings, Clock};
use crate::error::{Error, Result};
use crate::format::ids::WriterId;
use crate::replicate::act::Capture;
use crate::replicate::identity::Identity;
use crate::replicate::spool::Spool;
use crate::replicate::upload::{ReplicaSettings, Status, Uploader};
use crate::storage::Store;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long a stop waits for what is pending to reach the replicas.
const FLUSH: Duration = Duration::from_secs(10);

/// How often the spool is looked at for what may go.
const RELEASE_INTERVAL: Duration = Duration::from_secs(1);

/// One database and where it goes.
pub struct Replicated {
    /// How it is captured.
    pub capture: CaptureSettings,
    /// Its replicas.
    pub replicas: Vec<Replica>,
    /// The machine, for messages.
    pub host: String,
}

/// One replica.
pub struct Replica {
    /// How messages and `--replica` name it.
    pub name: String,
    /// Where it lies.
    pub store: Arc<dyn Store>,
    /// How long the first commit that is not sent waits for company.
    pub sync_interval: Duration,
}

/// A database that is being replicated.
pub struct Daemon {
    name: String,
    capture: Arc<Capture>,
    uploaders: Vec<(String, Uploader)>,
}

/// Replicates a database until `stop`; then sends what is pending, as far as that goes within ten
/// seconds. What is not sent stays in the spool for the next start.
///
/// # Errors
/// `Conflict` if another process replicates the database, `Disk`, `Invalid`; what made a replica
/// give up.
pub async fn run(settings: Replicated, clock: Clock, stop: impl Future<Output = ()>) -> Result<()> {
    let meta_path = settings.capture.meta_path.clone();
    let spool = Arc::new(Spool::open(&meta_path)?);
    let daemon = Arc::new(Daemon::start(settings, spool.clone(), clock)?);
    let control = control::serve(&meta_path, daemon.clone())?;
    let mut failed = std::pin::pin!(daemon.all_failed());
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            () = &mut failed => break,
            () = tokio::time::sleep(RELEASE_INTERVAL) => daemon.release(&spool)?,
        }
    }
    control.abort();
    daemon.flush().await;
    daemon.release(&spool)?;
    daemon.capture.stop().await?;
    daemon.flush_rest(&spool).await;
    daemon.stop().await
}

impl Daemon {
    fn start(settings: Replicated, spool: Arc<Spool>, clock: Clock) -> Result<Self> {
        let Replicated {
            capture,
            replicas,
            host,
        } = settings;
        let (name, meta_path) = (
            capture.database.display().to_string(),
            capture.meta_path.clone(),
        );
        let mut writer = [0; 8];
        crate::config::random(&mut writer)?;
        let path = meta_path.join("database-id");
        let identity = Arc::new(Identity::load(path, WriterId(writer), host, name.clone())?);
        let capture = Arc::new(Capture::start(capture, spool.clone(), clock.clone())?);
        let mut uploaders = Vec::new();
        for replica in replicas {
            let settings = ReplicaSettings {
                name: replica.name.clone(),
                sync_interval: replica.sync_interval,
                directory: meta_path.join("replicas").join(folder_of(&replica)),
            };
            tracing::info!(database = %name, replica = %replica.store.location(), "replicating");
            let uploader = Uploader::start(
                replica.store,
                capture.clone(),
                spool.clone(),
                identity.clone(),
                settings,
                clock.clone(),
            )?;
            uploaders.push((replica.name, uploader));
        }
        Ok(Self {
            name,
            capture,
            uploaders,
        })
    }

    /// Returns when everything that was committed before the call is durable on every replica, or
    /// on the one that is named.
    ///
    /// # Errors
    /// `Invalid` if no replica has that name; `Unavailable`, with the reason, if it is not so
    /// within `timeout`; what keeps the capture from working.
    pub async fn sync(&self, replica: Option<&str>, timeout: Duration) -> Result<()> {
        let deadline = tokio::time::Instant::now() + timeout;
        let wanted: Vec<_> = self
            .uploaders
            .iter()
            .filter(|(name, _)| replica.is_none_or(|replica| replica == name))
            .collect();
        if let (true, Some(replica)) = (wanted.is_empty(), replica) {
            let names: Vec<&str> = self
                .uploaders
                .iter()
                .map(|(name, _)| name.as_str())
                .collect();
            return Err(Error::invalid(format!(
                "{} has no replica {replica}; it has {}",
                self.name,
                names.join(", ")
            )));
        }
        let seq = match tokio::time::timeout_at(deadline, self.capture.barrier()).await {
            Ok(seq) => seq?,
            Err(_) => {
                let why = self
                    .capture
                    .trouble()
                    .unwrap_or_else(|| "it is busy".to_owned());
                return Err(Error::unavailable(format!(
                    "{} was not captured within {timeout:?}: {why}",
                    self.name
                )));
            }
        };
        for (_, uploader) in &wanted {
            uploader.hurry(seq);
        }
        for (name, uploader) in wanted {
            let mut status = uploader.status.clone();
            let there = status.wait_for(|status| status.failed || status.has(seq));
            match tokio::time::timeout_at(deadline, there).await {
                Ok(Ok(status)) if !status.failed => {}
                _ => return Err(not_durable(name, &uploader.status, timeout)),
            }
        }
        Ok(())
    }

    /// Returns when every replica gave up; never if there is one that did not.
    async fn all_failed(&self) {
        for (_, uploader) in &self.uploaders {
            let mut status = uploader.status.clone();
            if status.wait_for(|status| status.failed).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Lets the spool drop what every replica has.
    fn release(&self, spool: &Spool) -> Result<()> {
        let needs: Option<Vec<u64>> = self
            .uploaders
            .iter()
            .filter(|(_, uploader)| !uploader.status.borrow().failed)
            .map(|(_, uploader)| uploader.status.borrow().needs)
            .collect();
        match needs.and_then(|needs| needs.into_iter().min()) {
            Some(seq) => spool.release(seq),
            None => Ok(()),
        }
    }

    async fn flush(&self) {
        if self.capture.trouble().is_none()
            && let Err(e) = self.sync(None, FLUSH).await
        {
            tracing::warn!(database = %self.name, "what is pending stays in the spool: {e}");
        }
    }

    /// What was captured by the stop itself.
    async fn flush_rest(&self, spool: &Spool) {
        let Some(seq) = spool.tip().borrow().map(|tip| tip.seq) else {
            return;
        };
        for (_, uploader) in &self.uploaders {
            uploader.hurry(seq);
        }
        for (name, uploader) in &self.uploaders {
            let mut status = uploader.status.clone();
            let sent = status.wait_for(|status| status.failed || status.needs >= Some(seq));
            if tokio::time::timeout(FLUSH, sent).await.is_err() {
                tracing::warn!(replica = %name, "the last commits stay in the spool");
            }
        }
    }

    async fn stop(&self) -> Result<()> {
        let mut outcome = Ok(());
        for (_, uploader) in &self.uploaders {
            outcome = outcome.and(uploader.stop().await);
        }
        outcome
    }
}

impl Status {
    /// Everything up to `seq` is durable.
    fn has(&self, seq: u64) -> bool {
        self.durable.is_some_and(|durable| durable >= seq)
    }
}

fn not_durable(name: &str, status: &watch::Receiver<Status>, timeout: Duration) -> Error {
    let status = status.borrow();
    let why = match (&status.trouble, status.durable) {
        (Some(trouble), _) => trouble.clone(),
        (None, None) => "its first snapshot is not stored yet".to_owned(),
        (None, Some(_)) => "commits are still on their way".to_owned(),
    };
    Error::unavailable(format!(
        "replica {name} lacks commits after {timeout:?}: {why}"
    ))
}

/// The folder of a replica's state in the spool, told by where the replica lies.
fn folder_of(replica: &Replica) -> String {
    let hash = blake3::hash(replica.store.location().as_bytes());
    hash.to_hex()[..16].to_owned()
}

/// The default place of a database's spool: beside it.
pub fn default_meta_path(database: &Path) -> std::path::PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(database.file_name().unwrap_or_default());
    name.push("-sqlrepl");
    database.with_file_name(name)
}
