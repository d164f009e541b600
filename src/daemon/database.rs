//! One database that is being replicated: start, release of the spool, `sync`, stop.

use crate::config::Environment;
use crate::config::file::{is_named, replica_name};
use crate::config::settings::{DatabaseSettings, ReplicaSettings};
use crate::daemon::fleet::Fleet;
use crate::daemon::maintenance::{Given, Maintenance, keeper};
use crate::daemon::replica::{ENDED, Replica, folder_of};
use crate::daemon::status::{DatabaseState, DatabaseStatus, ReplicaState};
use crate::error::{Error, ErrorKind, Result};
use crate::maintain::keeper::KeepSettings;
use crate::replicate::act::Capture;
use crate::replicate::identity::Identity;
use crate::replicate::seed::{self, Asking, Held};
use crate::replicate::source::Source;
use crate::replicate::spool::Spool;
use crate::replicate::state::GenerationState;
use crate::replicate::upload::{HUGE_BYTES, KEPT, Status, UploadSettings, Uploader, open_kept};
use crate::storage::Store;
use crate::storage::blocking::blocking;
use crate::storage::changes::{Changes, Mark, Recorded, Since};
use crate::storage::informed::News;
use futures_util::future::{join_all, select_all};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SetOnce, watch};
use tokio::time::{Instant, timeout, timeout_at};

/// How long a stop waits for what is pending to reach the replicas.
const FLUSH: Duration = Duration::from_secs(10);

/// How long it waits at least for what was captured by the stop itself.
const FLUSH_REST: Duration = Duration::from_secs(3);

/// How long it waits for a capture, which may take half of that to leave an empty WAL behind.
const CAPTURE_STOP: Duration = Duration::from_secs(10);

/// How long it waits for a local disk to take files away.
const RELEASE_STOP: Duration = Duration::from_secs(2);

/// How long a database has the first contact with its replicas for itself, a few others excepted.
const CONTACT: Duration = Duration::from_secs(3);

/// How often a `sync` asks a capture that is away.
const BARRIER_POLL: Duration = Duration::from_millis(50);

/// From a change of what the replicas have to the release of the spool, so that many make one.
const RELEASE_PAUSE: Duration = Duration::from_secs(1);

/// A database that is being replicated.
pub(super) struct Database {
    settings: DatabaseSettings,
    take_over: bool,
    environment: Environment,
    turns: Arc<Semaphore>,
    identity: Arc<Identity>,
    spool: Arc<Spool>,
    capture: Arc<Capture>,
    /// Set once the replicas are known.
    replicas: SetOnce<Vec<Replica>>,
}

impl Database {
    /// Takes the spool's lock and begins to capture.
    ///
    /// # Errors
    /// `Conflict` if another process replicates the database, `Disk`, `Corrupt`, `Unavailable`.
    pub(super) async fn open(settings: &DatabaseSettings, fleet: &Fleet) -> Result<Self> {
        let environment = fleet.environment.clone();
        let capture = settings.capture.clone();
        let (budget, host) = (fleet.budget.clone(), fleet.host.clone());
        let (path, meta_path) = (capture.database.clone(), capture.meta_path.clone());
        let outside = environment.clone();
        let (spool, identity) = blocking(move || {
            let spool = Arc::new(Spool::open(&meta_path, budget)?);
            let known = meta_path.join("database-id");
            let identity = Identity::load(known, host, path.display().to_string(), &outside)?;
            Ok((spool, Arc::new(identity)))
        })
        .await?;
        if identity.database_id().is_none() || spool.position().is_none() {
            ask_replicas(settings, &identity, &spool, &environment).await?;
        }
        let (outside, captured) = (environment.clone(), spool.clone());
        let capture = blocking(move || Capture::start(capture, captured, outside)).await?;
        Ok(Self {
            settings: settings.clone(),
            take_over: fleet.take_over,
            turns: fleet.turns.clone(),
            environment,
            identity,
            spool,
            capture: Arc::new(capture),
            replicas: SetOnce::new(),
        })
    }

    /// Sends what is captured to the replicas, and lets the spool drop what they have, until all
    /// replicas have given up. `contacts`: how many databases may meet their replicas at once.
    ///
    /// # Errors
    /// `Disk`.
    pub(super) async fn work(&self, contacts: &Semaphore) -> Result<()> {
        let turn = contacts.acquire().await.expect("it is never closed");
        // In a box of its own, so that what it needs is not kept for as long as the work goes on.
        Box::pin(self.begin_uploads()).await?;
        drop(turn);
        let replicas = self.replicas();
        let mut statuses: Vec<_> = replicas
            .iter()
            .map(|replica| (&*replica.name, replica.uploader.status.clone()))
            .collect();
        while replicas.iter().any(|replica| !replica.gave_up()) {
            await_change(&mut statuses).await;
            tokio::time::sleep(RELEASE_PAUSE).await;
            self.release().await?;
        }
        Ok(())
    }

    /// Starts the uploaders, and waits a while until they have done what they do only once.
    async fn begin_uploads(&self) -> Result<()> {
        let mut stores = Vec::new();
        for replica in &self.settings.replicas {
            stores.push(crate::storage::open(&replica.location).await);
        }
        let mut replicas = Vec::new();
        for (store, settings) in stores.into_iter().zip(&self.settings.replicas) {
            let (name, location) = (settings.name.clone(), settings.location.to_string());
            let started = match store {
                Ok(store) => self.start_uploader(store, settings).await,
                Err(e) => Err(e),
            };
            let (uploader, maintenance, changes) = match started {
                Ok((uploader, maintenance, changes)) => {
                    (uploader, Some(maintenance), Some(changes))
                }
                // The disk of the spool, which all replicas need.
                Err(e) if e.kind() == ErrorKind::Disk => return Err(e),
                Err(e) => {
                    tracing::error!(replica = %name, "{e}");
                    let left = self.left_at(settings).await;
                    (Uploader::given_up(&e, left), None, None)
                }
            };
            tracing::info!(replica = %name, %location, "replicating");
            replicas.push(Replica {
                name,
                location,
                uploader,
                maintenance,
                changes,
            });
        }
        if self.replicas.set(replicas).is_err() {
            unreachable!("a database works once");
        }
        let settled = join_all(self.replicas().iter().map(Replica::settled));
        if self.capture.trouble().is_none() && timeout(CONTACT, settled).await.is_err() {
            tracing::debug!("the first contact goes on beside others");
        }
        Ok(())
    }

    /// Up to where a replica got in an earlier run.
    async fn left_at(&self, replica: &ReplicaSettings) -> Option<u64> {
        let state = self.folder(replica).join("state.json");
        let load = blocking(move || GenerationState::load(&state));
        // What cannot be read is no claim on the spool.
        Some(load.await.ok()??.sent_seq())
    }

    /// Where the state of a replica lies.
    fn folder(&self, replica: &ReplicaSettings) -> PathBuf {
        let meta_path = &self.settings.capture.meta_path;
        meta_path.join(state_folder(replica))
    }

    async fn start_uploader(
        &self,
        store: Arc<dyn Store>,
        replica: &ReplicaSettings,
    ) -> Result<(Uploader, Maintenance, Arc<Changes>)> {
        let changes = Changes::new(u64::from_be_bytes(self.environment.draw()?));
        let store: Arc<dyn Store> = Recorded::new(store, changes.clone());
        let directory = self.folder(replica);
        let folder = directory.clone();
        let kept = blocking(move || open_kept(&folder)).await?;
        let settings = UploadSettings {
            name: replica.name.clone(),
            sync_interval: replica.sync_interval,
            take_over: self.take_over,
            kept: kept.clone(),
            directory: directory.clone(),
            huge_bytes: HUGE_BYTES,
        };
        let (capture, spool) = (self.capture.clone(), self.spool.clone());
        let (identity, environment) = (self.identity.clone(), self.environment.clone());
        let (replicated, writer, clock) =
            (store.clone(), identity.writer, environment.clock.clone());
        let outside = environment.clone();
        let uploader = blocking(move || {
            Uploader::start(store, capture, spool, identity, settings, environment)
        })
        .await?;
        let settings = KeepSettings {
            retention: replica.retention,
            snapshot_interval: replica.snapshot_interval,
            merged_grace: replica.merged_grace,
            notes: Some(directory.join("maintenance.json")),
        };
        let keeper =
            blocking(move || keeper(replicated, kept, &directory, writer, outside, settings));
        let given = Given {
            keeper: keeper.await?,
            status: uploader.status.clone(),
            turns: self.turns.clone(),
            clock,
            check_interval: replica.retention_check_interval.min(replica.merged_grace),
        };
        let maintenance = Maintenance::start(given, &replica.name);
        Ok((uploader, maintenance, changes))
    }

    /// None until the uploads have begun.
    fn replicas(&self) -> &[Replica] {
        self.replicas.get().map_or(&[], Vec::as_slice)
    }

    /// Returns when everything that was committed before the call is durable on every replica, or
    /// on the one that is named.
    ///
    /// # Errors
    /// `Invalid` if no replica has that name; `Unavailable`, with the reason, if it is not so
    /// within `timeout`; what keeps the capture from working.
    pub(super) async fn sync(&self, replica: Option<&str>, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let named = |name: &str| replica.is_none_or(|replica| is_named(name, replica));
        let mut names = self.settings.replicas.iter().map(|replica| &*replica.name);
        if let (false, Some(replica)) = (names.clone().any(named), replica) {
            let has: Vec<&str> = names.by_ref().collect();
            return Err(Error::invalid(format!(
                "{} has no replica {}; it has {}",
                self.path().display(),
                replica_name(replica),
                has.join(", ")
            )));
        }
        let seq = match timeout_at(deadline, self.barrier(deadline)).await {
            Ok(seq) => seq?,
            Err(_) => {
                let trouble = self.capture.trouble();
                return Err(Error::unavailable(format!(
                    "{} was not captured within {timeout:?}: {}",
                    self.path().display(),
                    trouble.as_deref().unwrap_or("it is busy")
                )));
            }
        };
        let Ok(replicas) = timeout_at(deadline, self.replicas.wait()).await else {
            return Err(Error::unavailable(format!(
                "the replicas of {} were not asked within {timeout:?}: others come first",
                self.path().display()
            )));
        };
        let wanted = || replicas.iter().filter(|replica| named(&replica.name));
        for replica in wanted() {
            replica.uploader.hurry(seq);
        }
        for replica in wanted() {
            replica.durable(seq, timeout, deadline).await?;
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

    /// Lets the spool drop what every replica has, or, before it is full, what one of them has.
    async fn release(&self) -> Result<()> {
        let needs_of = |replica: &Replica| replica.uploader.status.borrow().needs;
        let (left, working): (Vec<_>, Vec<_>) = self
            .replicas()
            .iter()
            .partition(|replica| replica.gave_up());
        let left: Vec<u64> = left.into_iter().filter_map(needs_of).collect();
        let needs: Vec<Option<u64>> = working.into_iter().map(needs_of).collect();
        let spool = self.spool.clone();
        blocking(move || match may_go(&needs, &left, spool.is_tight()) {
            Some(seq) => spool.release(seq),
            None => Ok(()),
        })
        .await
    }

    /// Sends what is pending and ends everything. Each step is taken whatever came of those before
    /// it, and none takes for ever; the first failure is returned.
    ///
    /// # Errors
    /// `Disk`; `Unavailable` if the capture is held up; what made replicas give up.
    pub(super) async fn stop(&self) -> Result<()> {
        let deadline = Instant::now() + FLUSH;
        self.flush().await;
        let released = timeout(RELEASE_STOP, self.release()).await;
        // What is not taken away is at the next start.
        let outcome = released.unwrap_or(Ok(()));
        let outcome = outcome.and(self.stop_capture().await);
        self.flush_rest(deadline.max(Instant::now() + FLUSH_REST))
            .await;
        outcome.and(self.stop_uploaders().await)
    }

    async fn stop_capture(&self) -> Result<()> {
        let stopped = timeout(CAPTURE_STOP, self.capture.stop()).await;
        stopped.unwrap_or_else(|_| {
            Err(Error::unavailable(format!(
                "the capture of {} did not end within {} s: its file system, or that of its \
                 spool, does not answer",
                self.path().display(),
                CAPTURE_STOP.as_secs()
            )))
        })
    }

    /// Returns when the capture that was told to stop has closed its files.
    pub(super) async fn closed(&self) {
        // Once it is over, to ask is an error.
        self.capture.stop().await.ok();
    }

    async fn flush(&self) {
        if !self.replicas().iter().all(Replica::gave_up)
            && self.capture.trouble().is_none()
            && let Err(e) = self.sync(None, FLUSH).await
        {
            tracing::warn!("what is pending stays in the spool: {e}");
        }
    }

    /// What was captured by the stop itself.
    async fn flush_rest(&self, deadline: Instant) {
        let Some(seq) = self.spool.tip().borrow().map(|tip| tip.seq) else {
            return;
        };
        for replica in self.replicas() {
            replica.uploader.hurry(seq);
        }
        for replica in self.replicas() {
            replica.sent(seq, deadline).await;
        }
    }

    async fn stop_uploaders(&self) -> Result<()> {
        let stopped = join_all(self.replicas().iter().map(Replica::stop)).await;
        crate::daemon::gravest(stopped.into_iter().filter_map(Result::err)).map_or(Ok(()), Err)
    }

    /// What is to be said of it.
    pub(super) fn status(&self) -> DatabaseStatus {
        let trouble = self.capture.trouble();
        let state = match &trouble {
            None => DatabaseState::Capturing,
            Some(_) => DatabaseState::Interrupted,
        };
        let mut status = DatabaseStatus::of_settings(&self.settings).with(state, trouble);
        status.spool_bytes = Some(self.spool.bytes());
        let last = self.spool.position();
        status.last_commit = last.map(|position| position.time.to_string());
        status.wal_bytes = self.capture.wal_bytes();
        for replica in &mut status.replicas {
            replica.state = ReplicaState::Starting;
        }
        if let Some(replicas) = self.replicas.get() {
            let tip = self.spool.tip().borrow().map(|tip| tip.seq);
            let now = self.environment.now();
            status.replicas = replicas.iter().map(|it| it.status(tip, now)).collect();
        }
        status
    }

    /// What has changed since a mark in the replica whose place has this identity; `None` if it is
    /// none of this database's, or is not written yet.
    pub(super) fn news(&self, place: &str, since: Option<Mark>) -> Option<News> {
        let is_here = |replica: &ReplicaSettings| replica.location.identity() == place;
        let at = self.settings.replicas.iter().position(is_here)?;
        let replica = self.replicas().get(at)?;
        let Since { mark, changes } = replica.changes.as_ref()?.since(since);
        let generation = replica.uploader.status.borrow().generation;
        Some(News {
            mark,
            changes,
            generation,
            kept: state_folder(&self.settings.replicas[at]).join(KEPT),
        })
    }

    fn path(&self) -> &Path {
        &self.settings.capture.database
    }
}

/// Where the state of a replica lies in the spool.
fn state_folder(replica: &ReplicaSettings) -> PathBuf {
    Path::new("replicas").join(folder_of(&replica.location))
}

/// Waits until an uploader has something new to say. One that has ended leaves the list.
async fn await_change(statuses: &mut Vec<(&str, watch::Receiver<Status>)>) {
    if statuses.is_empty() {
        return;
    }
    let each = statuses
        .iter_mut()
        .map(|(_, status)| Box::pin(status.changed()));
    let (changed, at, _) = select_all(each).await;
    if changed.is_err() {
        let (replica, status) = statuses.swap_remove(at);
        if status.borrow().failed.is_none() {
            tracing::error!(%replica, "{ENDED}");
        }
    }
}

/// Up to where the spool may drop, given after which `seq` each replica needs it. A replica that
/// has not said so yet needs everything. One that gave up goes on from `left` once its setting or
/// store is mended. When the spool is tight the replicas that are behind have to begin anew, so
/// that the one that is ahead can go on.
fn may_go(needs: &[Option<u64>], left: &[u64], is_tight: bool) -> Option<u64> {
    if is_tight {
        return needs.iter().copied().flatten().max();
    }
    // None is less than any number.
    let working = needs.iter().copied().min().flatten()?;
    left.iter().copied().chain([working]).min()
}

/// Asks the replicas of a database that is new here, or whose spool was lost: which database it is,
/// and where its capture begins. What cannot be asked shows once it is written to.
async fn ask_replicas(
    settings: &DatabaseSettings,
    identity: &Arc<Identity>,
    spool: &Arc<Spool>,
    environment: &Environment,
) -> Result<()> {
    let database = settings.capture.database.clone();
    let asking = blocking(move || Asking::open(&database)).await?;
    let mut stores = Vec::new();
    for replica in &settings.replicas {
        if let Ok(store) = crate::storage::open(&replica.location).await {
            stores.push((&*replica.name, store));
        }
    }
    let held = ask(&asking, &stores).await;
    // It keeps a capture away, our own too.
    drop(asking);
    let (identity, spool) = (identity.clone(), spool.clone());
    let environment = environment.clone();
    blocking(move || {
        decide_database(&identity, &held)?;
        if spool.position().is_none() {
            let held: Vec<Held> = held.into_iter().map(|(held, _)| held).collect();
            seed::begin_at(&spool, &held, &environment)?;
        }
        Ok(())
    })
    .await
}

/// What the replicas hold that answer in time, and where they lie.
async fn ask(asking: &Asking, replicas: &[(&str, Arc<dyn Store>)]) -> Vec<(Held, String)> {
    let each = replicas.iter().map(|(name, store)| async move {
        match asking.ask(&**store).await {
            Ok(held) => Some((held, store.location().to_owned())),
            Err(e) if e.kind() == ErrorKind::Unavailable => {
                tracing::warn!(replica = %name, "not asked what it holds: {e}");
                None
            }
            Err(e) => {
                // Its uploader meets the same, and says so.
                tracing::debug!(replica = %name, "not asked what it holds: {e}");
                None
            }
        }
    });
    join_all(each).await.into_iter().flatten().collect()
}

/// Decides which database it is, if that is not known, by the first replica that holds one: else an
/// empty replica would draw a new id, and the others would be refused. A replica that does not
/// answer has no say.
fn decide_database(identity: &Identity, held: &[(Held, String)]) -> Result<()> {
    let known = held
        .iter()
        .find_map(|(held, location)| Some((held.database_id?, location)));
    match known {
        Some((id, location)) if identity.database_id().is_none() => {
            identity.decide(Some(id), location).map(drop)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::claim::Claim;
    use crate::format::ids::{DatabaseId, GenerationId, Timestamp, WriterId};
    use crate::format::key::{Key, ObjectKey};
    use crate::storage::Body;
    use crate::storage::fault::{Fault, FaultStore, Verb, every, nth};
    use crate::storage::memory::MemoryStore;

    #[test]
    fn the_spool_keeps_what_any_replica_needs_until_it_is_tight() {
        for (needs, left, roomy, tight) in [
            (&[Some(3), Some(7)][..], &[][..], Some(3), Some(7)),
            (&[Some(3)], &[], Some(3), Some(3)),
            (&[None, Some(7)], &[], None, Some(7)),
            (&[None, None], &[], None, None),
            (&[], &[], None, None),
            // Replicas that gave up, and may be mended.
            (&[Some(3), Some(7)], &[2], Some(2), Some(7)),
            (&[Some(3), Some(7)], &[9], Some(3), Some(7)),
            (&[None], &[2], None, None),
            (&[], &[2], None, None),
        ] {
            let shown = format!("{needs:?} {left:?}");
            assert_eq!(may_go(needs, left, false), roomy, "{shown}");
            assert_eq!(may_go(needs, left, true), tight, "{shown}, tight");
        }
    }

    /// A replica that holds nothing but the claim of its first generation.
    async fn bare(id: DatabaseId) -> Arc<MemoryStore> {
        let generation = GenerationId {
            ordinal: 1,
            random: 2,
        };
        let claim = Claim {
            generation,
            database_id: id,
            writer_id: WriterId([1; 8]),
            parent: None,
            host: "host".into(),
            path: "/data/app.db".into(),
            started: Timestamp::from_micros(1),
            reason: "first start".into(),
        };
        let object = ObjectKey::Claim;
        let key = Key { generation, object }.to_string();
        let store = MemoryStore::new();
        let body = Body::Bytes(claim.encode().into());
        store.put(&key, body).await.unwrap();
        store
    }

    /// Asking about a database without a WAL.
    fn asking() -> Asking {
        Asking::new(|_, _| Ok(None))
    }

    #[tokio::test]
    async fn a_lost_id_comes_from_the_first_replica_that_has_one() {
        let id = DatabaseId([7; 16]);
        let old = bare(id).await;
        let away = FaultStore::new(old.clone());
        away.set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("database-id");
        let environment = Environment::of_tests();
        let identity = Identity::load(path, "host".into(), "app.db".into(), &environment).unwrap();
        let empty = MemoryStore::new();
        let mut replicas: Vec<(&str, Arc<dyn Store>)> = vec![("away", away), ("empty", empty)];
        decide_database(&identity, &ask(&asking(), &replicas).await).unwrap();
        assert_eq!(identity.database_id(), None);
        replicas.push(("old", old));
        decide_database(&identity, &ask(&asking(), &replicas).await).unwrap();
        assert_eq!(identity.database_id(), Some(id));
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_answers_may_take_long_and_one_that_does_not_holds_up_nobody() {
        let id = DatabaseId([7; 16]);
        for (verb, seconds, expect) in [
            // A generation of many pages.
            (Verb::List, 10, Some(id)),
            (Verb::ListFolder, 2, Some(id)),
            (Verb::ListFolder, 4, None),
            (Verb::List, 40, None),
        ] {
            let replica = FaultStore::new(bare(id).await);
            let slow = Fault::Delay(Duration::from_secs(seconds));
            replica.set_rule(nth(verb, 1, slow));
            let began = Instant::now();
            let held = ask(&asking(), &[("slow", replica)]).await;
            let found = held.first().and_then(|(held, _)| held.database_id);
            assert_eq!(found, expect, "{verb:?} {seconds}");
            let patience = if verb == Verb::List { 30 } else { 3 };
            let took = began.elapsed().as_secs();
            assert_eq!(took, seconds.min(patience), "{verb:?} {seconds}");
        }
    }
}
