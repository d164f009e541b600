//! A database and its replicas in a running process: start, release of the spool, `sync`, stop.

pub mod control;

use crate::config::{CaptureSettings, Environment};
use crate::error::{Error, ErrorKind, Result};
use crate::replicate::act::Capture;
use crate::replicate::budget::Budget;
use crate::replicate::history;
use crate::replicate::identity::Identity;
use crate::replicate::source::Source;
use crate::replicate::spool::Spool;
use crate::replicate::upload::{Status, UploadSettings, Uploader};
use crate::storage::Store;
use crate::storage::catalog::Catalog;
use futures_util::future::join_all;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a stop waits for what is pending to reach the replicas.
const FLUSH: Duration = Duration::from_secs(10);

/// How long it waits at least for what was captured by the stop itself.
const FLUSH_REST: Duration = Duration::from_secs(3);

/// How long it waits for an uploader that is in the middle of something.
const UPLOADER_STOP: Duration = Duration::from_secs(1);

/// How long a start waits for the replicas to say which database they hold.
const ASK_REPLICAS: Duration = Duration::from_secs(3);

/// How often a `sync` asks a capture that is away.
const BARRIER_POLL: Duration = Duration::from_millis(50);

/// How often the spool is looked at for what may go.
const RELEASE_INTERVAL: Duration = Duration::from_secs(1);

/// One database and where it goes.
pub struct Replicated {
    /// How it is captured.
    pub capture: CaptureSettings,
    /// Its replicas.
    pub replicas: Vec<Replica>,
    /// Bytes that spool and held-back WAL may take; None: a tenth of the free space, at most
    /// 10 GiB.
    pub max_spool_size: Option<u64>,
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
pub async fn run(
    settings: Replicated,
    environment: Environment,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let meta_path = settings.capture.meta_path.clone();
    let budget = Budget::new(settings.max_spool_size);
    let spool = Arc::new(Spool::open(&meta_path, budget)?);
    let daemon = Arc::new(Daemon::start(settings, spool.clone(), environment).await?);
    let control = control::serve(&meta_path, daemon.clone())?;
    let mut failed = std::pin::pin!(daemon.all_failed());
    let mut stop = std::pin::pin!(stop);
    let mut outcome = Ok(());
    while outcome.is_ok() {
        tokio::select! {
            () = &mut stop => break,
            () = &mut failed => break,
            () = tokio::time::sleep(RELEASE_INTERVAL) => outcome = daemon.release(&spool),
        }
    }
    control.abort();
    outcome.and(daemon.stop(&spool).await)
}

impl Daemon {
    async fn start(
        settings: Replicated,
        spool: Arc<Spool>,
        environment: Environment,
    ) -> Result<Self> {
        let Replicated {
            capture,
            replicas,
            host,
            ..
        } = settings;
        let (name, meta_path) = (
            capture.database.display().to_string(),
            capture.meta_path.clone(),
        );
        let path = meta_path.join("database-id");
        let identity = Arc::new(Identity::load(path, host, name.clone(), &environment)?);
        let capture = Arc::new(Capture::start(capture, spool.clone(), environment.clone())?);
        decide_database(&identity, &replicas).await?;
        let mut uploaders = Vec::new();
        for replica in replicas {
            let settings = UploadSettings {
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
                environment.clone(),
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
        let deadline = Instant::now() + timeout;
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
        let seq = match timeout_at(deadline, self.barrier(deadline)).await {
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
            let there = status.wait_for(|status| status.failed.is_some() || status.has(seq));
            match timeout_at(deadline, there).await {
                Ok(Ok(status)) if status.failed.is_none() => {}
                _ => return Err(not_durable(name, &uploader.status, timeout)),
            }
        }
        Ok(())
    }

    /// Captures up to now; asks again, up to a moment before `deadline`, while the capture is away.
    async fn barrier(&self, deadline: Instant) -> Result<u64> {
        loop {
            match self.capture.barrier().await {
                Err(e)
                    if e.kind() == ErrorKind::Unavailable
                        && Instant::now() + BARRIER_POLL * 2 < deadline =>
                {
                    tokio::time::sleep(BARRIER_POLL).await;
                }
                answer => return answer,
            }
        }
    }

    /// Returns when every replica gave up; never if there is one that did not.
    async fn all_failed(&self) {
        let each = self.uploaders.iter().map(|(name, uploader)| async move {
            let mut status = uploader.status.clone();
            if status
                .wait_for(|status| status.failed.is_some())
                .await
                .is_err()
            {
                tracing::error!(replica = %name, "{ENDED}");
            }
        });
        join_all(each).await;
    }

    /// Lets the spool drop what every replica has, or, before it is full, what one of them has.
    fn release(&self, spool: &Spool) -> Result<()> {
        let needs: Vec<Option<u64>> = self
            .uploaders
            .iter()
            .filter(|(_, uploader)| !gave_up(&uploader.status))
            .map(|(_, uploader)| uploader.status.borrow().needs)
            .collect();
        let is_tight = spool.bytes() > spool.room() / 2;
        match may_go(&needs, is_tight) {
            Some(seq) => spool.release(seq),
            None => Ok(()),
        }
    }

    /// Sends what is pending and ends everything. Each step is taken whatever came of those before
    /// it; the first failure is returned.
    async fn stop(&self, spool: &Spool) -> Result<()> {
        let deadline = Instant::now() + FLUSH;
        self.flush().await;
        let outcome = self.release(spool);
        let outcome = outcome.and(self.capture.stop().await);
        self.flush_rest(spool, deadline.max(Instant::now() + FLUSH_REST))
            .await;
        outcome.and(self.stop_uploaders().await)
    }

    async fn flush(&self) {
        if self.capture.trouble().is_none()
            && let Err(e) = self.sync(None, FLUSH).await
        {
            tracing::warn!(database = %self.name, "what is pending stays in the spool: {e}");
        }
    }

    /// What was captured by the stop itself.
    async fn flush_rest(&self, spool: &Spool, deadline: Instant) {
        let Some(seq) = spool.tip().borrow().map(|tip| tip.seq) else {
            return;
        };
        for (_, uploader) in &self.uploaders {
            uploader.hurry(seq);
        }
        for (name, uploader) in &self.uploaders {
            let mut status = uploader.status.clone();
            let sent =
                status.wait_for(|status| status.failed.is_some() || status.needs >= Some(seq));
            if timeout_at(deadline, sent).await.is_err() {
                tracing::warn!(replica = %name, "the last commits stay in the spool");
            }
        }
    }

    async fn stop_uploaders(&self) -> Result<()> {
        let each = self.uploaders.iter().map(|(name, uploader)| async move {
            if uploader.status.has_changed().is_err() && uploader.status.borrow().failed.is_none() {
                return Err(Error::unavailable(format!("replica {name}: {ENDED}")));
            }
            let stopped = timeout(UPLOADER_STOP, uploader.stop()).await;
            stopped.unwrap_or_else(|_| {
                tracing::warn!(replica = %name, "the store did not answer before the end");
                Ok(())
            })
        });
        join_all(each).await.into_iter().collect()
    }
}

/// Said of an uploader that panicked, which is logged.
const ENDED: &str = "its uploader ended unexpectedly; start replicate again";

/// The uploader does nothing any more.
fn gave_up(status: &watch::Receiver<Status>) -> bool {
    status.borrow().failed.is_some() || status.has_changed().is_err()
}

/// Up to where the spool may drop, given after which `seq` each replica needs it. A replica that
/// has not said so yet needs everything. When the spool is tight the replicas that are behind have
/// to begin anew, so that the one that is ahead can go on.
fn may_go(needs: &[Option<u64>], is_tight: bool) -> Option<u64> {
    if is_tight {
        needs.iter().copied().flatten().max()
    } else {
        // None is less than any number.
        needs.iter().copied().min().flatten()
    }
}

/// Decides which database it is, if that is not known, by the first replica that holds one: else an
/// empty replica would draw a new id, and the others would be refused. A replica that does not
/// answer has no say.
async fn decide_database(identity: &Identity, replicas: &[Replica]) -> Result<()> {
    if identity.database_id().is_some() {
        return Ok(());
    }
    let each = replicas.iter().map(|replica| async move {
        let held = async {
            let listing = replica.store.list("generations/", None).await?;
            history::database_id(&*replica.store, &Catalog::new(listing)).await
        };
        let found = match timeout(ASK_REPLICAS, held).await {
            Ok(Ok(found)) => found,
            Ok(Err(e)) => {
                tracing::warn!(replica = %replica.name, "not asked which database it holds: {e}");
                None
            }
            Err(_) => {
                let seconds = ASK_REPLICAS.as_secs();
                tracing::warn!(replica = %replica.name, "no answer within {seconds} s");
                None
            }
        };
        found.map(|id| (id, replica.store.location()))
    });
    match join_all(each).await.into_iter().flatten().next() {
        Some((id, location)) => identity.decide(Some(id), location).map(drop),
        None => Ok(()),
    }
}

impl Status {
    /// Everything up to `seq` is durable.
    fn has(&self, seq: u64) -> bool {
        self.durable.is_some_and(|durable| durable >= seq)
    }
}

fn not_durable(name: &str, status: &watch::Receiver<Status>, timeout: Duration) -> Error {
    let has_ended = status.has_changed().is_err();
    let status = status.borrow();
    let why = match (&status.trouble, status.durable) {
        (Some(trouble), _) => trouble.clone(),
        (None, _) if has_ended => ENDED.to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::claim::Claim;
    use crate::format::ids::{DatabaseId, GenerationId, Timestamp, WriterId};
    use crate::format::key::{Key, ObjectKey};
    use crate::storage::Body;
    use crate::storage::fault::{Fault, FaultStore, every};
    use crate::storage::memory::MemoryStore;

    #[test]
    fn the_spool_keeps_what_any_replica_needs_until_it_is_tight() {
        for (needs, roomy, tight) in [
            (&[Some(3), Some(7)][..], Some(3), Some(7)),
            (&[Some(3)], Some(3), Some(3)),
            (&[None, Some(7)], None, Some(7)),
            (&[None, None], None, None),
            (&[], None, None),
        ] {
            assert_eq!(may_go(needs, false), roomy, "{needs:?}");
            assert_eq!(may_go(needs, true), tight, "{needs:?}, tight");
        }
    }

    #[test]
    fn an_uploader_that_panicked_counts_as_one_that_gave_up() {
        let (sender, status) = watch::channel(Status::default());
        assert!(!gave_up(&status));
        drop(sender);
        assert!(gave_up(&status));
        let said = not_durable("r", &status, Duration::from_secs(1)).to_string();
        assert!(said.contains(ENDED), "{said}");
    }

    fn replica(store: Arc<dyn Store>) -> Replica {
        Replica {
            name: "r".into(),
            store,
            sync_interval: Duration::ZERO,
        }
    }

    #[tokio::test]
    async fn a_lost_id_comes_from_the_first_replica_that_has_one() {
        let generation = GenerationId {
            ordinal: 1,
            random: 2,
        };
        let (id, writer) = (DatabaseId([7; 16]), WriterId([1; 8]));
        let claim = Claim {
            generation,
            database_id: id,
            writer_id: writer,
            parent: None,
            host: "host".into(),
            path: "/data/app.db".into(),
            started: Timestamp::from_micros(1),
            reason: "first start".into(),
        };
        let object = ObjectKey::Claim;
        let key = Key { generation, object }.to_string();
        let old = MemoryStore::new();
        let body = Body::Bytes(claim.encode().into());
        old.put(&key, body).await.unwrap();
        let away = FaultStore::new(old.clone());
        away.set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("database-id");
        let environment = Environment::of_tests();
        let identity = Identity::load(path, "host".into(), "app.db".into(), &environment).unwrap();
        let mut replicas = vec![replica(away), replica(MemoryStore::new())];
        decide_database(&identity, &replicas).await.unwrap();
        assert_eq!(identity.database_id(), None);
        replicas.push(replica(old));
        decide_database(&identity, &replicas).await.unwrap();
        assert_eq!(identity.database_id(), Some(id));
    }
}
