//! The uploader of one replica: follows the spool, stores segments, begins generations.
//!
//! A commit is *durable* on a replica when its segment, all before it and the generation's first
//! snapshot are stored. Group commit: while one upload is on its way, commits gather for the next.
//! Each step is safe to be killed in: what the state file says is stored is stored, and what was on
//! its way waits in the spool and is sent again, byte for byte.

use crate::config::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::format::claim::Claim;
use crate::format::container::{Header, Kind};
use crate::format::ids::{DatabaseId, GenerationId, ObjectHash, ObjectId, PageSize, Txid, WalEnd};
use crate::format::key::{self, Key, ObjectKey};
use crate::replicate::blocking;
use crate::replicate::decide::{clock_stepped_back, stamp};
use crate::replicate::encode::{encode_segment, timeline};
use crate::replicate::first::{FirstSnapshot, scratch_in};
use crate::replicate::history::Past;
use crate::replicate::identity::Identity;
use crate::replicate::known::{self, KnownPages};
use crate::replicate::making::Making;
use crate::replicate::put;
use crate::replicate::sent::{Recent, SentSegment};
use crate::replicate::source::{PageSource, Source};
use crate::replicate::spool::{Batch, Spool, SpooledCommit, Tip};
use crate::replicate::state::GenerationState;
use crate::storage::Store;
use crate::storage::catalog::Catalog;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument;

/// Raw frames that are sent at once without waiting for the interval, and that a busy database
/// gathers for one put.
const GATHERED_BYTES: u64 = 1 << 20;

/// Raw frames in a segment, unless one transaction has more.
const SEGMENT_BYTES: u64 = 16 << 20;

/// So often an uploader looks whether the replica still holds its generation.
const CHECKED_UPLOADS: u64 = 64;

/// Wait between attempts that the store or the disk refused.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// How the database goes to one replica.
#[derive(Clone, Debug)]
pub struct UploadSettings {
    /// How messages and `--replica` name it.
    pub name: String,
    /// How long the first commit that is not sent waits for company.
    pub sync_interval: Duration,
    /// Where this replica's state and waiting objects lie, within the spool.
    pub directory: PathBuf,
}

/// What an uploader says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The generation that it writes.
    pub generation: Option<GenerationId>,
    /// Everything up to this `seq` is durable on the replica.
    pub durable: Option<u64>,
    /// The spool must keep what comes after this `seq`.
    pub needs: Option<u64>,
    /// What it cannot do at the moment, if so: a sentence.
    pub trouble: Option<String>,
    /// It gave up, for a trouble of this kind, which does not go away by itself.
    pub failed: Option<ErrorKind>,
}

/// A running uploader.
pub struct Uploader {
    /// Follow this.
    pub status: watch::Receiver<Status>,
    urgent: watch::Sender<u64>,
    stop: watch::Sender<bool>,
}

impl Uploader {
    /// Starts the uploader of one replica on the current runtime.
    ///
    /// # Errors
    /// `Disk`, `Corrupt`: the state of an earlier run cannot be read.
    pub fn start(
        store: Arc<dyn Store>,
        source: Arc<dyn Source>,
        spool: Arc<Spool>,
        identity: Arc<Identity>,
        settings: UploadSettings,
        environment: Environment,
    ) -> Result<Self> {
        let pending = settings.directory.join("pending");
        fs::create_dir_all(&pending)
            .map_err(|e| Error::disk(format!("create {}", pending.display()), e))?;
        let state_path = settings.directory.join("state.json");
        let state = GenerationState::load(&state_path)?;
        let (status_sender, status) = watch::channel(Status::default());
        let (urgent, urgent_receiver) = watch::channel(0);
        let (stop, stop_receiver) = watch::channel(false);
        let mut task = Task {
            tip: spool.tip(),
            store,
            source,
            spool,
            identity,
            settings,
            environment,
            pending,
            state_path,
            state,
            previous: None,
            ended: None,
            recent: Recent::default(),
            first: None,
            cancelled: Arc::default(),
            sent: watch::Sender::default(),
            status: status_sender,
            urgent: urgent_receiver,
            hurry: urgent.clone(),
            stop: stop_receiver,
            resumed: false,
            waiting: None,
            first_again: None,
            uploads: 0,
            durable: None,
        };
        task.remove_leftovers(false)?;
        // Its end shows in `status`, whose sender it holds.
        let span = tracing::error_span!("replica", name = %task.settings.name);
        tokio::spawn(async move { task.run().await }.instrument(span));
        Ok(Self {
            status,
            urgent,
            stop,
        })
    }

    /// One that gave up before it began.
    pub fn given_up(error: &Error) -> Self {
        let status = Status {
            trouble: Some(error.to_string()),
            failed: Some(error.kind()),
            ..Status::default()
        };
        Self {
            status: watch::channel(status).1,
            urgent: watch::Sender::default(),
            stop: watch::Sender::default(),
        }
    }

    /// Sends everything up to `seq` without waiting for company.
    pub fn hurry(&self, seq: u64) {
        hurry(&self.urgent, seq);
    }

    /// Ends the uploader where it stands; what is not sent stays in the spool.
    ///
    /// # Errors
    /// What made it give up, if it did.
    pub async fn stop(&self) -> Result<()> {
        self.stop.send_replace(true);
        let mut status = self.status.clone();
        while status.changed().await.is_ok() {}
        let last = status.borrow();
        match (last.failed, &last.trouble) {
            (Some(kind), Some(trouble)) => Err(Error::new(kind, trouble.clone())),
            _ => Ok(()),
        }
    }
}

fn hurry(urgent: &watch::Sender<u64>, seq: u64) {
    urgent.send_if_modified(|urgent| {
        let later = seq > *urgent;
        *urgent = seq.max(*urgent);
        later
    });
}

/// How many commits wait, and since when.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: Instant,
    /// `Tip::bytes` when nothing waited.
    bytes_before: u64,
}

/// When what waits is to be sent: at once (`Some` of the past) or at some time.
fn due(
    waiting: &Waiting,
    tip: &Tip,
    sent: u64,
    urgent: u64,
    run: u64,
    interval: Duration,
) -> Instant {
    let full = tip.bytes.saturating_sub(waiting.bytes_before) >= GATHERED_BYTES;
    if full || urgent > sent || tip.run != run {
        waiting.since
    } else {
        waiting.since + interval
    }
}

struct Task {
    store: Arc<dyn Store>,
    source: Arc<dyn Source>,
    spool: Arc<Spool>,
    identity: Arc<Identity>,
    settings: UploadSettings,
    environment: Environment,
    pending: PathBuf,
    state_path: PathBuf,
    state: Option<GenerationState>,
    recent: Recent,
    /// The first snapshot that is being made.
    first: Option<JoinHandle<Result<Txid>>>,
    /// Tells the thread that reads its pages to end.
    cancelled: Arc<AtomicBool>,
    /// The last commit that is stored, for whoever makes the first snapshot.
    sent: watch::Sender<Option<SpooledCommit>>,
    /// Why the current generation cannot go on: another writer is in it, or the spool dropped what
    /// it needed.
    ended: Option<Error>,
    /// The generation that ended, from which the next one goes on.
    previous: Option<GenerationState>,
    tip: watch::Receiver<Option<Tip>>,
    status: watch::Sender<Status>,
    urgent: watch::Receiver<u64>,
    hurry: watch::Sender<u64>,
    stop: watch::Receiver<bool>,
    /// The waiting object of an earlier run was looked after.
    resumed: bool,
    waiting: Option<Waiting>,
    /// When to try again to make the first snapshot.
    first_again: Option<Instant>,
    /// Segments stored since the start.
    uploads: u64,
    durable: Option<u64>,
}

impl Task {
    /// Works until it is stopped or what is wrong does not go away by itself. A stop drops the work
    /// where it stands: each step is safe to be killed in, and a store that hangs must not hold up
    /// the end.
    async fn run(&mut self) {
        let mut stop = self.stop.clone();
        let mut backoff = BACKOFF.0;
        loop {
            let worked = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                worked = self.work(&mut backoff) => worked,
            };
            let Err(error) = worked else { break };
            if self.has_failed_with(error) {
                break;
            }
            if tokio::time::timeout(backoff, stop.wait_for(|stop| *stop))
                .await
                .is_ok()
            {
                break;
            }
            backoff = (backoff * 2).min(BACKOFF.1);
        }
        self.cancel_first_snapshot();
    }

    /// Says what went wrong. True if it does not go away by itself.
    fn has_failed_with(&mut self, error: Error) -> bool {
        tracing::error!("{error}");
        let failed = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid);
        self.publish(Some(error.to_string()), failed.then_some(error.kind()));
        match error.kind() {
            ErrorKind::Conflict => self.ended = Some(error),
            // What is durable is what the disk says.
            ErrorKind::Disk => {
                self.state = GenerationState::load(&self.state_path).unwrap_or(self.state.take());
            }
            _ => {}
        }
        self.resumed = false;
        failed
    }

    /// Follows the spool until something fails.
    async fn work(&mut self, backoff: &mut Duration) -> Result<()> {
        loop {
            let tip = *self.tip.borrow_and_update();
            if let Some(tip) = tip {
                if let Some(why) = self.ended.take() {
                    self.drop_generation();
                    self.begin(tip, Some(why.to_string())).await?;
                }
                if self.state.is_none() {
                    self.begin(tip, None).await?;
                }
                if !self.resumed {
                    self.resume().await?;
                }
                // Before all else: what is sent makes room in the spool, without which there may be
                // no pin to read pages by.
                self.send_what_is_due(tip).await?;
                self.end_generation(tip).await?;
                let trouble = self.make_first_snapshot().await?;
                *backoff = BACKOFF.0;
                self.publish(trouble, None);
            }
            if let Some(result) = self.wait(tip).await {
                self.first_snapshot_ended(result)?;
            }
        }
    }

    /// Waits until there may be something to do. What became of the first snapshot, if it ended.
    async fn wait(&mut self, tip: Option<Tip>) -> Option<Result<Txid>> {
        let state = self.state.as_ref();
        let until = state
            .zip(tip)
            .zip(self.waiting.as_ref())
            .map(|((state, tip), waiting)| {
                let urgent = *self.urgent.borrow();
                due(
                    waiting,
                    &tip,
                    state.sent_seq(),
                    urgent,
                    state.run,
                    self.settings.sync_interval,
                )
            });
        let until = until.into_iter().chain(self.first_again).min();
        let timer = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let first = async {
            match self.first.as_mut() {
                Some(first) => first.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = first => {
                self.first = None;
                Some(ended.unwrap_or_else(|e| {
                    let ended = "the making of the first snapshot ended unexpectedly";
                    Err(Error::new(ErrorKind::Disk, ended).because(e))
                }))
            }
            _ = self.tip.changed() => None,
            _ = self.urgent.changed() => None,
            () = timer => None,
        }
    }

    /// Sends batches as long as one is due.
    async fn send_what_is_due(&mut self, mut tip: Tip) -> Result<()> {
        loop {
            let state = self.state.as_ref().expect("begun before");
            let (run, sent) = (state.run, state.sent_seq());
            if tip.run == run && tip.seq <= sent {
                self.waiting = None;
                return Ok(());
            }
            let waiting = *self.waiting.get_or_insert(Waiting {
                since: Instant::now(),
                bytes_before: tip.bytes,
            });
            let urgent = *self.urgent.borrow();
            if due(
                &waiting,
                &tip,
                sent,
                urgent,
                run,
                self.settings.sync_interval,
            ) > Instant::now()
            {
                return Ok(());
            }
            let spool = self.spool.clone();
            let batch = blocking(move || spool.batch(run, sent, SEGMENT_BYTES))
                .await
                .map_err(|e| {
                    if e.kind() == ErrorKind::NotFound {
                        Error::conflict(format!("the replica was too far behind: {e}"))
                    } else {
                        e
                    }
                })?;
            let Some(batch) = batch else {
                self.waiting = None;
                return Ok(());
            };
            self.send(batch).await?;
            // What came meanwhile gathered while the upload was on its way; it waits from now on.
            // What was there before is due.
            let sent = self.state.as_ref().expect("begun before").sent_seq();
            if tip.run == run && sent >= tip.seq {
                self.waiting = Some(Waiting {
                    since: Instant::now(),
                    bytes_before: tip.bytes,
                });
                tip = self.tip.borrow_and_update().unwrap_or(tip);
            }
            self.publish(None, None);
            if self.uploads.is_multiple_of(CHECKED_UPLOADS) {
                self.check_presence().await?;
            }
        }
    }

    async fn send(&mut self, batch: Batch) -> Result<()> {
        let state = self.state.as_ref().expect("begun before");
        let last = *batch.commits.last().expect("a batch holds a commit");
        let (first, last_txid) = (state.txid(batch.commits[0].seq), state.txid(last.seq));
        let id = self.environment.draw()?;
        let mut header = self.header(Kind::Segment, batch.run.page_size)?;
        header.object_id = ObjectId(id);
        (header.first, header.last, header.since) = (first, last_txid, first);
        header.end = last.end;
        header.previous = state.last_hash;
        header.sqlite_version = state.sqlite_version;
        let timeline = timeline(&batch.commits, first, state.last_time());
        let sent = SpooledCommit {
            time: timeline.last().expect("one entry a commit").time,
            ..last
        };
        let file = self.segment_file(state.id, first);
        let (path, scratch) = (file.clone(), scratch_in(&self.pending));
        let predecessors = self.recent.predecessors();
        let (written, version) = blocking(move || {
            let beside = path.with_extension("new");
            let out = File::create(&beside)
                .map_err(|e| Error::disk(format!("create {}", beside.display()), e))?;
            let done = encode_segment(&batch, out, &header, &timeline, &predecessors, &scratch)?;
            fs::rename(&beside, &path)
                .and_then(|()| crate::storage::durable::sync_directory(&path))
                .map_err(|e| Error::disk(format!("write {}", path.display()), e))?;
            Ok(done)
        })
        .await?;
        self.store_segment(first, &file, written.hash, sent, version)
            .await
    }

    /// Stores an encoded segment and remembers that it is stored.
    async fn store_segment(
        &mut self,
        first: Txid,
        file: &Path,
        hash: ObjectHash,
        sent: SpooledCommit,
        sqlite_version: u32,
    ) -> Result<()> {
        let state = self.state.as_mut().expect("begun before");
        let object = ObjectKey::Upload { first };
        let key = Key {
            generation: state.id,
            object,
        }
        .to_string();
        put::put_object(&*self.store, &key, file, &hash).await?;
        (state.sent, state.last_hash, state.sqlite_version) = (Some(sent), hash, sqlite_version);
        state.last_key.clone_from(&key);
        self.save()?;
        self.uploads += 1;
        self.sent.send_replace(Some(sent));
        self.recent.keep(&self.pending, key, file)
    }

    fn segment_file(&self, generation: GenerationId, first: Txid) -> PathBuf {
        self.pending.join(format!("{generation}-{first}.wal"))
    }

    /// What all objects of the current generation say.
    fn header(&self, kind: Kind, page_size: PageSize) -> Result<Header> {
        let state = self.state.as_ref().expect("begun before");
        Ok(Header {
            kind,
            level: 0,
            page_size,
            object_id: ObjectId([0; 8]),
            database_id: self
                .identity
                .database_id()
                .expect("decided before a generation begins"),
            writer_id: self.identity.writer,
            generation: state.id,
            parent: state.parent(),
            first: Txid::FIRST,
            last: Txid::FIRST,
            since: Txid::FIRST,
            end: WalEnd::default(),
            exact: false,
            thinned: false,
            sqlite_version: 0,
            previous: ObjectHash([0; 32]),
            last_input: ObjectHash([0; 32]),
        })
    }

    /// After a start: sends the object that waited, and looks whether anybody else wrote here.
    async fn resume(&mut self) -> Result<()> {
        let state = self.state.as_ref().expect("begun before");
        let tip = *self.tip.borrow();
        state.check_spool(&self.spool.runs(), tip.map_or(0, |tip| tip.seq))?;
        self.status
            .send_modify(|status| status.needs = Some(state.sent_seq()));
        self.sent.send_replace(state.sent);
        self.check_presence().await?;
        let state = self.state.as_ref().expect("begun before");
        let next = state.txid(state.sent_seq()).next();
        let (base, file) = (state.base, self.segment_file(state.id, next));
        self.recent
            .load(&self.pending, state.last_key.clone(), &state.last_hash)?;
        if let Some(waiting) = SentSegment::read(&file)? {
            let sent = waiting.last_commit(base);
            let version = waiting.footer.header.sqlite_version;
            self.store_segment(next, &file, waiting.footer.hash, sent, version)
                .await?;
        }
        let state = self.state.as_ref().expect("begun before");
        let last = Key {
            generation: state.id,
            object: ObjectKey::Upload {
                first: state.txid(state.sent_seq()),
            },
        };
        let folder = key::wal_prefix(state.id, 0);
        let beyond = self.store.list(&folder, Some(&last.to_string())).await?;
        if let Some(other) = beyond.first() {
            return Err(Error::conflict(format!(
                "{}/{} was not written by this daemon",
                self.store.location(),
                other.key
            )));
        }
        self.resumed = true;
        Ok(())
    }

    /// Whether the replica still holds what the generation stands on. Somebody may have emptied it.
    async fn check_presence(&self) -> Result<()> {
        let state = self.state.as_ref().expect("begun before");
        let claim = Key {
            generation: state.id,
            object: ObjectKey::Claim,
        }
        .to_string();
        for key in [&claim, &state.last_key] {
            let listed = self.store.list(key, None).await?;
            if !listed.iter().any(|object| object.key == *key) {
                return Err(Error::conflict(format!(
                    "{}/{key} is gone: somebody removed what the replica held",
                    self.store.location()
                )));
            }
        }
        let snapshots = self
            .store
            .list(&key::snapshots_prefix(state.id), None)
            .await?;
        if state.complete.is_some() && snapshots.is_empty() {
            return Err(Error::conflict(format!(
                "{} lost the first snapshot of generation {}",
                self.store.location(),
                state.id
            )));
        }
        Ok(())
    }

    /// Removes the objects of attempts that were given up; with `segments` also those that wait.
    fn remove_leftovers(&self, segments: bool) -> Result<()> {
        let failed = |e| Error::disk(format!("clean {}", self.pending.display()), e);
        for entry in fs::read_dir(&self.pending).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if segments || path.extension().is_none_or(|extension| extension != "wal") {
                fs::remove_file(path).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Stores what is known to be stored.
    fn save(&mut self) -> Result<()> {
        let state = self.state.as_ref().expect("begun before");
        state.save(&self.state_path)
    }

    /// Begins a generation on the database as it is now.
    async fn begin(&mut self, tip: Tip, reason: Option<String>) -> Result<()> {
        // What is committed from here on must stay in the spool for us.
        self.status
            .send_modify(|status| status.needs = Some(tip.seq));
        let listing = self.store.list("generations/", None).await?;
        let catalog = Catalog::new(listing);
        let past = Past::find(&*self.store, &catalog).await?;
        let database_id = self
            .identity
            .decide(past.database_id, self.store.location())?;
        let pin = self.source.snapshot_pin().await?;
        let run = self
            .spool
            .runs()
            .into_iter()
            .find(|run| run.id == pin.run());
        let token = run.as_ref().map_or(0, |run| run.token);
        let reason = reason.or(run.map(|run| run.reason)).unwrap_or_default();
        let claim = self.claim(&catalog, &past, database_id, reason)?;
        let key = Key {
            generation: claim.generation,
            object: ObjectKey::Claim,
        }
        .to_string();
        put::put_bytes(&*self.store, &key, claim.encode().into()).await?;
        tracing::info!(
            generation = %claim.generation,
            "new generation: {}", claim.reason
        );
        self.sent.send_replace(None);
        self.state = Some(GenerationState {
            id: claim.generation,
            run: pin.run(),
            token,
            base: pin.seq(),
            parent: claim.parent.map(|parent| (parent.generation, parent.txid)),
            started: claim.started,
            last_hash: claim.hash(),
            reason: claim.reason,
            complete: None,
            sent: None,
            last_key: key,
            sqlite_version: 0,
        });
        self.save()?;
        (self.previous, self.resumed, self.waiting) = (None, true, None);
        self.recent = Recent::default();
        self.remove_leftovers(true)?;
        self.read_first_snapshot(pin, &catalog).await
    }

    /// What the next generation says of itself: a name above all that are listed, and where it goes
    /// on from.
    fn claim(
        &self,
        catalog: &Catalog,
        past: &Past,
        database_id: DatabaseId,
        reason: String,
    ) -> Result<Claim> {
        let parent = match &self.previous {
            Some(previous) => Some((previous.as_parent(), previous.last_time())),
            None => past.newest,
        };
        let now = self.environment.now();
        let started = match parent {
            Some((_, time)) if !clock_stepped_back(now, time) => stamp(now, time),
            _ => now,
        };
        let ordinal = catalog.highest_ordinal().checked_add(1).ok_or_else(|| {
            Error::invalid(format!(
                "{} has used up its ordinals",
                self.store.location()
            ))
        })?;
        Ok(Claim {
            generation: GenerationId {
                ordinal,
                random: u32::from_be_bytes(self.environment.draw()?),
            },
            database_id,
            writer_id: self.identity.writer,
            parent: parent.map(|(parent, _)| parent),
            host: self.identity.host.clone(),
            path: self.identity.database.clone(),
            started,
            reason,
        })
    }

    /// When the run ended and all its commits are sent, the next generation begins.
    async fn end_generation(&mut self, tip: Tip) -> Result<()> {
        let state = self.state.as_ref().expect("begun before");
        let (run, sent) = (state.run, state.sent_seq());
        // The generation may follow a run that began after this look at the tip.
        if tip.run <= run {
            return Ok(());
        }
        let spool = self.spool.clone();
        let more = match blocking(move || spool.batch(run, sent, 1)).await {
            Ok(batch) => batch.is_some(),
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        if more {
            return Ok(());
        }
        self.drop_generation();
        self.begin(tip, None).await
    }

    fn drop_generation(&mut self) {
        self.cancel_first_snapshot();
        self.previous = self.state.take().or(self.previous.take());
    }

    fn cancel_first_snapshot(&mut self) {
        if let Some(first) = self.first.take() {
            self.cancelled.store(true, Ordering::Relaxed);
            first.abort();
        }
    }

    /// Restarts the first snapshot if the generation lacks it and none is being made. Why that is
    /// not possible at the moment, if so.
    async fn make_first_snapshot(&mut self) -> Result<Option<String>> {
        let state = self.state.as_ref().expect("begun before");
        let run_goes_on = self.tip.borrow().is_some_and(|tip| tip.run == state.run);
        let is_early = self.first_again.is_some_and(|again| again > Instant::now());
        if state.complete.is_some() || self.first.is_some() || !run_goes_on || is_early {
            return Ok(None);
        }
        let catalog = Catalog::new(self.store.list("generations/", None).await?);
        if let Some(txid) = known::complete_snapshot(&*self.store, &catalog, state.id).await? {
            // Stored by an earlier run of the daemon, which was killed before it could note that.
            self.first_snapshot_ended(Ok(txid))?;
            return Ok(None);
        }
        match self.source.snapshot_pin().await {
            Ok(pin) => {
                self.first_again = None;
                self.read_first_snapshot(pin, &catalog).await?;
                Ok(None)
            }
            Err(e) if e.kind() == ErrorKind::Unavailable => {
                self.first_again = Some(Instant::now() + BACKOFF.0);
                Ok(Some(e.to_string()))
            }
            Err(e) => Err(e),
        }
    }

    /// Reads and stores the first snapshot in the background.
    async fn read_first_snapshot(
        &mut self,
        pin: Box<dyn PageSource>,
        catalog: &Catalog,
    ) -> Result<()> {
        let page_size = pin.size().0;
        let header = self.header(Kind::Snapshot, page_size)?;
        let state = self.state.as_ref().expect("begun before");
        self.cancelled = Arc::default();
        let job = FirstSnapshot {
            store: self.store.clone(),
            pending: self.pending.clone(),
            environment: self.environment.clone(),
            header: Header {
                sqlite_version: state.sqlite_version,
                ..header
            },
            known: KnownPages::load(self.store.clone(), catalog, page_size).await?,
            cancelled: self.cancelled.clone(),
        };
        let urgent = self.hurry.clone();
        let making = Making {
            source: self.source.clone(),
            sent: self.sent.subscribe(),
            hurry: Box::new(move |seq| hurry(&urgent, seq)),
            tip: self.tip.clone(),
            spool: self.spool.clone(),
            generation: state.clone(),
        };
        self.first = Some(tokio::spawn(making.make(job, pin).in_current_span()));
        Ok(())
    }

    fn first_snapshot_ended(&mut self, result: Result<Txid>) -> Result<()> {
        match result {
            Ok(txid) => {
                let state = self.state.as_mut().expect("begun before");
                state.complete = Some(txid);
                let generation = state.id;
                tracing::info!(%generation, %txid, "first snapshot stored");
                self.save()
            }
            // The run ended under it; so does the generation when all its commits are sent.
            Err(e) if e.kind() == ErrorKind::Conflict => {
                tracing::warn!("first snapshot given up: {e}");
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    fn publish(&mut self, trouble: Option<String>, failed: Option<ErrorKind>) {
        let complete = |state: &&GenerationState| self.resumed && state.complete.is_some();
        if let Some(state) = self.state.as_ref().filter(complete) {
            self.durable = self.durable.max(Some(state.sent_seq()));
        }
        let state = self.state.as_ref();
        let status = Status {
            generation: state.map(|state| state.id),
            durable: self.durable,
            needs: state
                .map(GenerationState::sent_seq)
                .or(self.status.borrow().needs),
            trouble,
            failed,
        };
        self.status.send_if_modified(|before| {
            let changed = *before != status;
            *before = status;
            changed
        });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::format::ids::{DatabaseId, WriterId};

    /// The header of a made-up segment of generation 00000001-00000002.
    pub(crate) fn header(page_size: PageSize, first: u64, last: u64) -> Header {
        let first = Txid::new(first).unwrap();
        Header {
            kind: Kind::Segment,
            level: 0,
            page_size,
            object_id: ObjectId([3; 8]),
            database_id: DatabaseId([4; 16]),
            writer_id: WriterId([5; 8]),
            generation: GenerationId {
                ordinal: 1,
                random: 2,
            },
            parent: None,
            first,
            last: Txid::new(last).unwrap(),
            since: first,
            end: WalEnd::default(),
            exact: false,
            thinned: false,
            sqlite_version: 0,
            previous: ObjectHash([6; 32]),
            last_input: ObjectHash([0; 32]),
        }
    }

    const INTERVAL: Duration = Duration::from_secs(1);

    /// How long after the first waiting commit it is sent, in milliseconds.
    #[track_caller]
    fn check(waiting_bytes: u64, urgent: u64, tip_run: u64, expect_ms: u64) {
        let since = Instant::now();
        let waiting = Waiting {
            since,
            bytes_before: 1000,
        };
        let tip = Tip {
            run: tip_run,
            seq: 8,
            bytes: 1000 + waiting_bytes,
        };
        let due = due(&waiting, &tip, 7, urgent, 1, INTERVAL);
        assert_eq!(due - since, Duration::from_millis(expect_ms));
    }

    #[test]
    fn a_quiet_database_waits_for_company_and_a_busy_one_does_not() {
        check(4096, 0, 1, 1000);
        check(1 << 20, 0, 1, 0);
    }

    #[test]
    fn a_sync_sends_at_once_but_only_what_it_asks_for() {
        check(4096, 8, 1, 0);
        check(4096, 7, 1, 1000);
    }

    #[test]
    fn what_a_run_left_behind_is_sent_at_once() {
        check(4096, 0, 2, 0);
    }
}
