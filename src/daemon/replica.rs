//! One replica of a database that runs: its uploader, and what is to be said of it.

use crate::config::location::Location;
use crate::daemon::maintenance::Maintenance;
use crate::daemon::status::{ReplicaState, ReplicaStatus};
use crate::error::{Error, Result};
use crate::format::ids::Timestamp;
use crate::replicate::upload::{Status, Uploader};
use crate::storage::changes::Changes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a stop waits for an uploader that is in the middle of something.
const STOP: Duration = Duration::from_secs(1);

/// Said of an uploader that panicked, which is logged.
pub(super) const ENDED: &str =
    "its uploader ended unexpectedly; it starts anew when its database does";

/// A replica of a database that runs.
pub(super) struct Replica {
    pub(super) name: String,
    pub(super) location: String,
    pub(super) uploader: Uploader,
    /// None if it gave up before it began.
    pub(super) maintenance: Option<Maintenance>,
    /// What the two have changed; the same.
    pub(super) changes: Option<Arc<Changes>>,
}

impl Replica {
    /// The uploader does nothing any more.
    pub(super) fn gave_up(&self) -> bool {
        gave_up(&self.uploader.status)
    }

    /// Returns when something is durable, or is in the way.
    pub(super) async fn settled(&self) {
        let mut status = self.uploader.status.clone();
        let settled = status.wait_for(|status| {
            status.durable.is_some() || status.trouble.is_some() || status.failed.is_some()
        });
        // One that has ended is settled, too.
        drop(settled.await);
    }

    /// Returns when everything up to `seq` is durable.
    ///
    /// # Errors
    /// `Unavailable`, with the reason, if it is not so by `deadline`, `timeout` after it was asked
    /// for.
    pub(super) async fn durable(
        &self,
        seq: u64,
        timeout: Duration,
        deadline: Instant,
    ) -> Result<()> {
        let mut status = self.uploader.status.clone();
        let there =
            status.wait_for(|status| status.failed.is_some() || status.durable >= Some(seq));
        let there = timeout_at(deadline, there).await;
        let there = there.map(|ended| ended.is_ok_and(|status| status.failed.is_none()));
        match there {
            Ok(true) => Ok(()),
            Ok(false) => Err(not_durable(&self.name, &self.uploader.status, "")),
            Err(_) => {
                let after = format!(" after {timeout:?}");
                Err(not_durable(&self.name, &self.uploader.status, &after))
            }
        }
    }

    /// Waits until everything up to `seq` is stored, and says so if it is not by `deadline`.
    pub(super) async fn sent(&self, seq: u64, deadline: Instant) {
        let mut status = self.uploader.status.clone();
        let sent = status.wait_for(|status| status.failed.is_some() || status.needs >= Some(seq));
        if timeout_at(deadline, sent).await.is_err() {
            tracing::warn!(replica = %self.name, "the last commits stay in the spool");
        }
    }

    /// Ends the uploader.
    ///
    /// # Errors
    /// What made it give up.
    pub(super) async fn stop(&self) -> Result<()> {
        let name = &self.name;
        let status = &self.uploader.status;
        self.maintenance.iter().for_each(Maintenance::stop);
        if has_panicked(status) {
            return Err(Error::unavailable(format!("replica {name}: {ENDED}")));
        }
        let stopped = timeout(STOP, self.uploader.stop()).await;
        stopped.unwrap_or_else(|_| {
            tracing::warn!(replica = %name, "the store did not answer before the end");
            Ok(())
        })
    }

    /// What is to be said of it now, while the spool goes up to `tip`.
    pub(super) fn status(&self, tip: Option<u64>, now: Timestamp) -> ReplicaStatus {
        let has_panicked = has_panicked(&self.uploader.status);
        let status = self.uploader.status.borrow().clone();
        let trouble = has_panicked.then(|| ENDED.to_owned()).or(status.trouble);
        let state = match &trouble {
            _ if has_panicked || status.failed.is_some() => ReplicaState::Failed,
            Some(_) => ReplicaState::Retrying,
            None if status.superseded.is_some() => ReplicaState::Superseded,
            None if status.durable.is_none() => ReplicaState::Starting,
            None => ReplicaState::Replicating,
        };
        let waiting = |(tip, durable): (u64, u64)| tip.saturating_sub(durable);
        ReplicaStatus {
            name: self.name.clone(),
            location: self.location.clone(),
            state,
            trouble,
            generation: status.generation,
            txid: status.newest.map(|(txid, _)| txid),
            time: status.newest.map(|(_, time)| time.to_string()),
            fencing: Some(status.fencing.to_string()),
            superseded: status.superseded,
            waiting_commits: tip.zip(status.durable).map(waiting),
            lag_seconds: match status.waiting_since {
                Some(since) => Some(age(since, now)),
                // Not asked yet.
                None => status.durable.map(|_| 0.0),
            },
        }
    }
}

/// Seconds from `since` to `now`.
fn age(since: Timestamp, now: Timestamp) -> f64 {
    let micros = now.micros().saturating_sub(since.micros()).max(0);
    Duration::from_micros(micros.unsigned_abs()).as_secs_f64()
}

fn gave_up(status: &watch::Receiver<Status>) -> bool {
    status.borrow().failed.is_some() || status.has_changed().is_err()
}

fn has_panicked(status: &watch::Receiver<Status>) -> bool {
    status.borrow().failed.is_none() && status.has_changed().is_err()
}

/// `after`: the time that has passed, if it is that which is over.
fn not_durable(name: &str, status: &watch::Receiver<Status>, after: &str) -> Error {
    let has_panicked = has_panicked(status);
    let status = status.borrow();
    let why = match (&status.trouble, status.durable) {
        (Some(trouble), _) => trouble.clone(),
        (None, _) if has_panicked => ENDED.to_owned(),
        (None, None) => "its first snapshot is not stored yet".to_owned(),
        (None, Some(_)) => "commits are still on their way".to_owned(),
    };
    Error::unavailable(format!("replica {name} lacks commits{after}: {why}"))
}

/// The folder of a replica's state in the spool, told by where the replica lies.
pub(super) fn folder_of(location: &Location) -> String {
    blake3::hash(location.identity().as_bytes()).to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uploader_that_panicked_counts_as_one_that_gave_up() {
        let (sender, status) = watch::channel(Status::default());
        assert!(!gave_up(&status));
        drop(sender);
        assert!(gave_up(&status));
        let said = not_durable("r", &status, "").to_string();
        assert!(said.contains(ENDED), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_is_named_only_if_it_is_over() {
        let lacks = async |uploader| {
            let (name, location) = ("r".to_owned(), "/r".to_owned());
            let replica = Replica {
                name,
                location,
                uploader,
                maintenance: None,
                changes: None,
            };
            let timeout = Duration::from_secs(30);
            let said = replica.durable(1, timeout, Instant::now() + timeout).await;
            said.unwrap_err().to_string()
        };
        let gave_up = Uploader::given_up(&Error::invalid("it has moved"), None);
        assert_eq!(
            lacks(gave_up).await,
            "replica r lacks commits: it has moved"
        );
        let (sender, status) = watch::channel(Status::default());
        let mut busy = Uploader::given_up(&Error::invalid("it has moved"), None);
        busy.status = status;
        assert_eq!(
            lacks(busy).await,
            "replica r lacks commits after 30s: its first snapshot is not stored yet"
        );
        drop(sender);
    }

    #[test]
    fn buckets_of_one_name_on_two_servers_are_two_replicas() {
        let folder = |place: &str| folder_of(&Location::parse(place).unwrap());
        let two = ["http://one:9000", "http://two:9000"]
            .map(|server| folder(&format!("s3://bucket/app?endpoint={server}")));
        assert_ne!(two[0], two[1]);
        assert_ne!(two[0], folder("s3://bucket/app"));
        assert_eq!(folder("s3://bucket/app"), folder("s3://bucket/app/"));
    }
}
