//! What an uploader does next, what becomes of what failed, and what it says of itself.

use crate::config::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::format::container::Kind;
use crate::format::ids::{GenerationId, Timestamp, Txid};
use crate::replicate::backoff::Backoff;
use crate::replicate::history;
use crate::replicate::identity::Identity;
use crate::replicate::sent::Recent;
use crate::replicate::source::Source;
use crate::replicate::spool::{RunInfo, Spool, SpooledCommit, Tip};
use crate::replicate::state::{Begun, GenerationState};
use crate::replicate::unfinished;
use crate::replicate::upload::begin::FirstAgain;
use crate::replicate::upload::look::{After, Looked};
use crate::replicate::upload::pace::{Sent, Waiting};
use crate::replicate::upload::send::remove_files;
use crate::replicate::upload::{Status, UploadSettings, hurry};
use crate::replicate::writers::{Contact, Fencing, Higher};
use crate::storage::Store;
use crate::storage::blocking::blocking;
use crate::storage::kept::Kept;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

/// So often an uploader looks at what the replica holds, and whether it is superseded.
const LOOKED_UPLOADS: u64 = 64;

/// A replica is asked so long after the start, though there is no database yet.
const ASKED_AFTER: Duration = Duration::from_secs(2);

/// What an uploader is started with.
pub(super) struct Given {
    pub(super) store: Arc<dyn Store>,
    pub(super) source: Arc<dyn Source>,
    pub(super) spool: Arc<Spool>,
    pub(super) identity: Arc<Identity>,
    pub(super) settings: UploadSettings,
    pub(super) environment: Environment,
}

/// An uploader at work.
pub(super) struct Task {
    pub(super) store: Arc<dyn Store>,
    pub(super) source: Arc<dyn Source>,
    pub(super) spool: Arc<Spool>,
    pub(super) identity: Arc<Identity>,
    pub(super) settings: UploadSettings,
    pub(super) environment: Environment,
    /// Where objects wait until they are stored.
    pub(super) pending: PathBuf,
    /// Segments that are not stored, but shipped as snapshots.
    pub(super) aside: Arc<Kept>,
    pub(super) state: Option<GenerationState>,
    /// The generation that ended, from which the next one goes on.
    pub(super) previous: Option<GenerationState>,
    /// Why the current generation cannot go on: another writer is in it, or the spool dropped what
    /// it needed.
    pub(super) ended: Option<Error>,
    /// The next generation is no fork: the first snapshot of one could not be made, or the commit
    /// behind its start would end it, too.
    pub(super) must_begin_live: bool,
    /// The generations that were begun here.
    pub(super) begun: Begun,
    pub(super) recent: Recent,
    /// The first snapshot that is being made.
    pub(super) first: Option<JoinHandle<Result<Txid>>>,
    pub(super) first_again: Option<FirstAgain>,
    /// Why what was made of it cannot be stored at the moment, if so.
    pub(super) first_trouble: watch::Receiver<Option<String>>,
    /// The last commit that is stored, for whoever makes the first snapshot.
    pub(super) sent: watch::Sender<Option<SpooledCommit>>,
    pub(super) tip: watch::Receiver<Option<Tip>>,
    pub(super) urgent: watch::Receiver<u64>,
    pub(super) hurry: watch::Sender<u64>,
    status: watch::Sender<Status>,
    stop: watch::Receiver<bool>,
    /// Since the last failure the replica was found as the state says.
    pub(super) resumed: bool,
    /// Since the start the replica has had us once: a refusal may pass.
    pub(super) established: bool,
    /// The replica answered while there was nothing to send yet.
    has_asked: bool,
    /// The objects that the last daemon was putting when it ended.
    pub(super) unfinished: Vec<String>,
    /// When what others left unfinished in the store was given up last, by the store's clock.
    pub(super) cleaned_at: Option<Timestamp>,
    pub(super) waiting: Option<Waiting>,
    /// The time of the oldest commit that is not durable.
    pub(super) waiting_since: Option<Timestamp>,
    /// When the store last answered.
    pub(super) contact: Option<Contact>,
    /// The generations above ours, as far as they were read.
    pub(super) higher: BTreeMap<GenerationId, Higher>,
    /// They were read when the store had said the time.
    pub(super) knows_ages: bool,
    pub(super) superseded: Option<String>,
    /// A generation above all is wanted, if another writer's is above ours.
    pub(super) take_over: bool,
    /// Segments stored since the start.
    pub(super) uploads: u64,
    /// Everything up to this `seq` is durable on the replica.
    pub(super) durable: Option<u64>,
}

impl Task {
    /// Reads what an earlier run left.
    pub(super) fn new(
        given: Given,
        status: watch::Sender<Status>,
        urgent: watch::Sender<u64>,
        stop: watch::Receiver<bool>,
    ) -> Result<Self> {
        let Given {
            store,
            source,
            spool,
            identity,
            settings,
            environment,
        } = given;
        let pending = settings.directory.join("pending");
        fs::create_dir_all(&pending)
            .map_err(|e| Error::disk(format!("create {}", pending.display()), e))?;
        let unfinished = unfinished::left(&pending)?;
        // Of snapshots that were not stored; segments are sent again.
        remove_files(&pending, Kind::Snapshot)?;
        let aside = Kept::open(&settings.directory.join("aside"), u64::MAX)?;
        aside.retain(|_| false);
        Ok(Self {
            state: GenerationState::load(&settings.directory.join("state.json"))?,
            begun: Begun::load(&settings.directory.join("begun.json"))?,
            tip: spool.tip(),
            take_over: settings.take_over,
            store,
            source,
            spool,
            identity,
            settings,
            environment,
            pending,
            aside: Arc::new(aside),
            previous: None,
            ended: None,
            must_begin_live: false,
            recent: Recent::default(),
            first: None,
            first_again: None,
            first_trouble: watch::channel(None).1,
            sent: watch::Sender::default(),
            status,
            urgent: urgent.subscribe(),
            hurry: urgent,
            stop,
            resumed: false,
            established: false,
            has_asked: false,
            unfinished,
            cleaned_at: None,
            waiting: None,
            waiting_since: None,
            contact: None,
            higher: BTreeMap::new(),
            knows_ages: false,
            superseded: None,
            uploads: 0,
            durable: None,
        })
    }

    /// The generation that is written.
    ///
    /// # Panics
    /// If none has begun.
    pub(super) fn state(&self) -> &GenerationState {
        self.state.as_ref().expect("begun before")
    }

    /// Stores what is known to be stored.
    pub(super) async fn save(&self) -> Result<()> {
        let (state, path) = (self.state().clone(), self.state_path());
        blocking(move || state.save(&path)).await
    }

    fn state_path(&self) -> PathBuf {
        self.settings.directory.join("state.json")
    }

    /// Works until it is stopped or what is wrong does not go away by itself. A stop drops the work
    /// where it stands: each step is safe to be killed in, and a store that hangs must not hold up
    /// the end.
    pub(super) async fn run(&mut self) {
        let mut stop = self.stop.clone();
        let mut backoff = Backoff::default();
        loop {
            let worked = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                worked = self.work(&mut backoff) => worked,
            };
            let Err(error) = worked else { break };
            if self.has_failed_with(error).await {
                break;
            }
            let stopped = tokio::time::timeout(backoff.pause(), stop.wait_for(|stop| *stop)).await;
            if stopped.is_ok() {
                break;
            }
        }
        self.cancel_first_snapshot();
    }

    /// Says what went wrong. True if it does not go away by itself.
    async fn has_failed_with(&mut self, error: Error) -> bool {
        tracing::error!("{error}");
        let failed = match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Invalid => true,
            // A store that has never had us will not; one that has may be mended.
            ErrorKind::Refused => !self.established,
            _ => false,
        };
        self.publish(Some(error.to_string()), failed.then_some(error.kind()));
        match error.kind() {
            ErrorKind::Conflict => self.ended = Some(error),
            // What is durable is what the disk says.
            ErrorKind::Disk => {
                let path = self.state_path();
                let read = blocking(move || GenerationState::load(&path)).await;
                self.state = read.unwrap_or(self.state.take());
            }
            _ => {}
        }
        self.resumed = false;
        failed
    }

    /// Follows the spool until something fails.
    async fn work(&mut self, backoff: &mut Backoff) -> Result<()> {
        loop {
            let tip = *self.tip.borrow_and_update();
            if let Some(tip) = tip {
                self.go_on(tip).await?;
                // Before all else: what is sent makes room in the spool, without which there may be
                // no pin to read pages by.
                self.send_what_is_due(tip).await?;
                if !self.resumed {
                    continue;
                }
                self.end_generation(tip).await?;
                self.take_over(tip).await?;
                self.make_first_snapshot().await?;
                *backoff = Backoff::default();
                self.publish(None, None);
                self.give_up_old_unfinished().await;
            } else if !self.has_asked {
                self.ask_early().await?;
                continue;
            }
            if let Some(result) = self.wait(tip).await {
                self.first_snapshot_ended(result).await?;
            }
        }
    }

    /// Waits for the first commit, but not long, and asks the replica once: a refusal is said also
    /// where the database is not there yet.
    async fn ask_early(&mut self) -> Result<()> {
        let begun = self.tip.wait_for(Option::is_some);
        if tokio::time::timeout(ASKED_AFTER, begun).await.is_err() {
            history::generations(&*self.store).await?;
            self.has_asked = true;
            self.publish(None, None);
        }
        Ok(())
    }

    /// Sees to it that there is a generation to write, and that the replica is as we know it.
    async fn go_on(&mut self, tip: Tip) -> Result<()> {
        self.give_up_our_unfinished().await;
        if self.ended.is_some() || self.previous.is_some() {
            self.complete_fork().await?;
            let survey = self.survey().await?;
            self.drop_generation();
            let why = self.ended.as_ref().map(Error::to_string);
            self.begin(tip, why, survey).await?;
        }
        if self.state.is_none() {
            self.begin_or_adopt(tip).await?;
        }
        while !self.resumed {
            self.resume().await?;
        }
        if self.take_over {
            // What is captured by now belongs to the generation so far.
            hurry(&self.hurry, tip.seq);
        }
        self.established = true;
        Ok(())
    }

    /// Waits until there may be something to do. What became of the first snapshot, if it ended.
    async fn wait(&mut self, tip: Option<Tip>) -> Option<Result<Txid>> {
        let due = match (&self.state, tip, self.waiting) {
            (Some(state), Some(tip), Some(waiting)) => {
                let sent = self.progress(state);
                Some(waiting.due(&tip, &sent, self.settings.sync_interval))
            }
            _ => None,
        };
        let first_again = self.first_again.as_ref().map(|again| again.at);
        let until = due.into_iter().chain(first_again).min();
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
                Some(joined(ended))
            }
            _ = self.tip.changed() => None,
            _ = self.urgent.changed() => None,
            Ok(()) = self.first_trouble.changed() => None,
            () = timer => None,
        }
    }

    /// How far the generation is.
    pub(super) fn progress(&self, state: &GenerationState) -> Sent {
        Sent {
            run: state.run,
            seq: state.sent_seq(),
            urgent: *self.urgent.borrow(),
        }
    }

    /// After a number of uploads: looks at the store.
    pub(super) async fn look_now_and_then(&mut self) -> Result<Looked> {
        if !self.uploads.is_multiple_of(LOOKED_UPLOADS) {
            self.look_at_ages().await?;
            return Ok(Looked::Clear);
        }
        self.check_presence().await?;
        let looked = self.look(None, After::Contact).await?;
        if looked == Looked::Clear {
            self.look_above().await?;
        }
        Ok(looked)
    }

    /// The store answered; `date` is its own time, if it said so.
    pub(super) fn answered(&mut self, date: Option<Timestamp>) {
        let uptime = (self.environment.uptime)();
        let last = self.contact.and_then(|contact| contact.date);
        self.contact = Some(Contact {
            uptime,
            clock: self.environment.now(),
            date: date.map(|date| (date, uptime)).or(last),
        });
    }

    /// What comes after `seq` must stay in the spool for us.
    pub(super) fn needs_after(&self, seq: u64) {
        self.status.send_modify(|status| status.needs = Some(seq));
    }

    /// When the oldest commit was made that an earlier run left in the spool without sending it.
    pub(super) fn left_waiting(&self) -> Option<Timestamp> {
        let state = self.state.as_ref()?;
        let runs = self.spool.runs();
        let is_ours = |run: &RunInfo| (run.id, run.token) == (state.run, state.token);
        runs.iter().find(|run| is_ours(run))?;
        // What cannot be read is said when it is to be sent.
        let batch = self.spool.batch(state.run, state.sent_seq(), 1).ok()??;
        Some(batch.commits[0].time)
    }

    /// The oldest commit that is not durable was made then. Said before it is sent, which takes
    /// long while a store is away.
    pub(super) fn waits_since(&mut self, since: Timestamp) {
        self.waiting_since = Some(since);
        self.status.send_if_modified(|status| {
            let before = status.waiting_since.replace(since);
            before != Some(since)
        });
    }

    /// Why the first snapshot is not made or stored at the moment, if so.
    fn trouble_of_first(&mut self) -> Option<String> {
        match &self.first {
            Some(_) => self.first_trouble.borrow_and_update().clone(),
            None => self.first_again.as_ref().map(|again| again.why.clone()),
        }
    }

    pub(super) fn publish(&mut self, trouble: Option<String>, failed: Option<ErrorKind>) {
        let is_complete = |state: &&GenerationState| self.resumed && state.complete.is_some();
        let complete = self.state.as_ref().filter(is_complete);
        if let Some(state) = complete {
            self.durable = self.durable.max(Some(state.sent_seq()));
        }
        let newest = complete.map(|state| (state.sent_txid(), state.last_time()));
        let is_behind = match (complete, *self.tip.borrow()) {
            (Some(state), Some(tip)) => (state.run, state.sent_seq()) < (tip.run, tip.seq),
            (_, tip) => tip.is_some(),
        };
        let now = self.environment.now();
        self.waiting_since = is_behind.then(|| self.waiting_since.unwrap_or(now));
        let state = self.state.as_ref();
        let before = self.status.borrow().clone();
        let status = Status {
            generation: state.map(|state| state.id),
            durable: self.durable,
            newest: newest.or(before.newest.filter(|_| self.durable.is_some())),
            uploads: self.uploads,
            waiting_since: self.waiting_since,
            needs: state.map(GenerationState::sent_seq).or(before.needs),
            fencing: state.map_or(Fencing::Unknown, |state| state.fencing),
            superseded: self.superseded.clone(),
            trouble: trouble.or_else(|| self.trouble_of_first()),
            failed,
        };
        self.status.send_if_modified(|before| {
            let changed = *before != status;
            *before = status;
            changed
        });
    }
}

/// What became of a task of its own.
pub(super) fn joined(ended: std::result::Result<Result<Txid>, JoinError>) -> Result<Txid> {
    ended.unwrap_or_else(|e| {
        let ended = "the making of the first snapshot ended unexpectedly";
        Err(Error::new(ErrorKind::Disk, ended).because(e))
    })
}
