//! Begins a generation: its claim, and its first snapshot in the background.

use crate::error::{Error, ErrorKind, Result};
use crate::format::claim::Claim;
use crate::format::container::{Header, Kind, Parent};
use crate::format::ids::{DatabaseId, GenerationId, Timestamp, Txid, WalEnd};
use crate::format::key::GENERATIONS;
use crate::replicate::backoff::Backoff;
use crate::replicate::decide::{clock_stepped_back, stamp};
use crate::replicate::first::FirstSnapshot;
use crate::replicate::history::Past;
use crate::replicate::known::{self, KnownPages};
use crate::replicate::making::Making;
use crate::replicate::source::PageSource;
use crate::replicate::spool::{RunInfo, Tip};
use crate::replicate::state::GenerationState;
use crate::replicate::upload::fork::Fork;
use crate::replicate::upload::hurry;
use crate::replicate::upload::task::Task;
use crate::replicate::writers::{Fencing, Place, goes_on_from};
use crate::storage::Body;
use crate::storage::blocking::blocking;
use crate::storage::catalog::Catalog;
use crate::storage::put::{self, Stored};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

/// A first snapshot for which no page could be read.
pub(super) struct FirstAgain {
    /// When to try again.
    pub(super) at: Instant,
    pub(super) why: String,
    pauses: Backoff,
}

/// What a generation starts from.
enum Start {
    /// A stored commit.
    Stored(Fork),
    /// The database as it is now.
    Live(Box<dyn PageSource>),
}

impl Start {
    /// The number and the token of the run that it belongs to, one of these.
    fn run(&self, runs: &[RunInfo]) -> (u64, u64) {
        match self {
            Self::Stored(fork) => fork.place.run,
            Self::Live(pin) => {
                let run = runs.iter().find(|run| run.id == pin.run());
                (pin.run(), run.map_or(0, |run| run.token))
            }
        }
    }

    /// Its number in the spool, and SQLite's WAL there.
    fn base(&self) -> (u64, WalEnd) {
        match self {
            Self::Stored(fork) => (fork.place.seq, fork.place.end),
            Self::Live(pin) => (pin.seq(), pin.end()),
        }
    }
}

/// What the replica held before a generation begins.
pub(super) struct Survey {
    pub(super) catalog: Catalog,
    past: Past,
    database_id: DatabaseId,
}

impl Task {
    /// Looks at all that the replica holds.
    ///
    /// # Errors
    /// `Invalid` if that is another database's, or another tool's.
    pub(super) async fn survey(&mut self) -> Result<Survey> {
        let catalog = self.list_all().await?;
        let past = Past::find(&*self.store, &catalog).await?;
        self.answered(None);
        let (identity, location) = (self.identity.clone(), self.store.location().to_owned());
        let found = past.database_id;
        let database_id = blocking(move || identity.decide(found, &location)).await?;
        Ok(Survey {
            catalog,
            past,
            database_id,
        })
    }

    /// Begins a generation: from the commit that it goes on from, if all that came behind that one
    /// is in the spool, else on the database as it is now.
    pub(super) async fn begin(
        &mut self,
        tip: Tip,
        reason: Option<String>,
        survey: Survey,
    ) -> Result<()> {
        let place = self.place(&survey).await?;
        let start = match self.fork_from(place, tip, &survey.catalog).await? {
            Some(fork) => Start::Stored(fork),
            None => Start::Live(self.pin_to_begin(tip).await?),
        };
        let shared = place.map(|place| (place.parent, place.time));
        let claim = self.claim(&start, &survey, shared.or(survey.past.newest), reason)?;
        self.note_begun(claim.generation).await?;
        let state = self.first_state(&start, &claim);
        let key = state.claim_key();
        let bytes = bytes::Bytes::from(claim.encode());
        match put::put_bytes(&*self.store, &key, bytes.clone()).await? {
            Stored::Now(date) => self.answered(date),
            Stored::Before => self.answered(None),
            Stored::Taken => return Err(put::taken(&*self.store, &key)),
        }
        tracing::info!(generation = %claim.generation, "new generation: {}", claim.reason);
        self.sent.send_replace(None);
        let base = state.base;
        self.state = Some(state);
        self.save().await?;
        self.needs_after(base);
        (self.previous, self.ended) = (None, None);
        (self.waiting, self.take_over) = (None, false);
        self.must_begin_live = false;
        self.forget_segments().await?;
        let second = self.store.put(&key, Body::Bytes(bytes)).await?;
        self.fenced_by(&second).await?;
        // Another daemon may have begun one at the same time.
        self.look_above().await?;
        self.resumed = true;
        match start {
            Start::Stored(fork) => self.make_fork_snapshot(Some(fork)),
            Start::Live(pin) => self.read_first_snapshot(pin, &survey.catalog).await?,
        }
        Ok(())
    }

    /// What is known of a generation that begins.
    fn first_state(&self, start: &Start, claim: &Claim) -> GenerationState {
        let (run, token) = start.run(&self.spool.runs());
        let (base, end) = start.base();
        let mut state = GenerationState {
            id: claim.generation,
            run,
            token,
            base,
            start: end,
            is_fork: matches!(start, Start::Stored(_)),
            parent: claim.parent.map(|parent| (parent.generation, parent.txid)),
            started: claim.started,
            last_hash: claim.hash(),
            reason: claim.reason.clone(),
            complete: None,
            sent: None,
            last_key: String::new(),
            sqlite_version: 0,
            fencing: Fencing::Unknown,
        };
        state.last_key = state.claim_key();
        state
    }

    /// The pages that a generation begins with. What it will not need stays in the spool until its
    /// state is saved, for the generation before may go on after all. But if the spool is so full
    /// that the capture waits for room, nobody can begin before that is dropped.
    async fn pin_to_begin(&self, tip: Tip) -> Result<Box<dyn PageSource>> {
        let pin = self.source.snapshot_pin().await;
        let spool = self.spool.clone();
        if pin.is_err() && blocking(move || Ok(spool.is_tight())).await? {
            self.needs_after(tip.seq);
        }
        pin
    }

    /// Remembers that a generation is ours, before anybody can see it.
    async fn note_begun(&mut self, generation: GenerationId) -> Result<()> {
        let (mut begun, path) = (
            std::mem::take(&mut self.begun),
            self.settings.directory.join("begun.json"),
        );
        let noted = blocking(move || {
            let noted = begun.note(generation, &path);
            Ok((begun, noted))
        })
        .await?;
        self.begun = noted.0;
        noted.1
    }

    /// The commit of our past from which the next generation goes on, if one is known.
    async fn place(&self, survey: &Survey) -> Result<Option<Place>> {
        let known = self.previous.as_ref().map(GenerationState::place);
        // While nothing is wrong nobody stored more than our state knows.
        let is_in_doubt = known.is_none() || self.ended.is_some() || self.superseded.is_some();
        let shown = match is_in_doubt {
            true => self.shared_with(&survey.catalog).await?,
            false => None,
        };
        Ok(goes_on_from(known, shown))
    }

    /// What the next generation says of itself: a name above all that are listed, and where it goes
    /// on from.
    fn claim(
        &self,
        start: &Start,
        survey: &Survey,
        parent: Option<(Parent, Timestamp)>,
        reason: Option<String>,
    ) -> Result<Claim> {
        let now = self.environment.now();
        let started = match (start, parent) {
            (Start::Stored(fork), _) => fork.started,
            (Start::Live(_), Some((_, time))) if !clock_stepped_back(now, time) => stamp(now, time),
            _ => now,
        };
        let runs = self.spool.runs();
        let run = start.run(&runs).0;
        let of_run = runs.into_iter().find(|it| it.id == run).map(|it| it.reason);
        let ordinal = survey.catalog.highest_ordinal().checked_add(1);
        let ordinal = ordinal.ok_or_else(|| {
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
            database_id: survey.database_id,
            writer_id: self.identity.writer,
            parent: parent.map(|(parent, _)| parent),
            host: self.identity.host.clone(),
            path: self.identity.database.clone(),
            started,
            reason: reason.or(of_run).unwrap_or_default(),
        })
    }

    /// When the run ended and all its commits are sent, the next generation begins.
    pub(super) async fn end_generation(&mut self, tip: Tip) -> Result<()> {
        let (run, sent) = (self.state().run, self.state().sent_seq());
        // The generation may follow a run that began after this look at the tip.
        if tip.run <= run || self.state().is_unmade_fork() {
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
        let survey = self.survey().await?;
        self.drop_generation();
        self.begin(tip, None, survey).await
    }

    /// When a generation above all is wanted since another writer's is above ours, it begins once
    /// all is sent that was captured before.
    pub(super) async fn take_over(&mut self, tip: Tip) -> Result<()> {
        if self.take_over && self.superseded.is_none() {
            let ours = self.state().id;
            tracing::info!("nothing to take over: no other writer is above {ours}");
            self.take_over = false;
        }
        let state = self.state();
        if !self.take_over
            || state.is_unmade_fork()
            || (state.run, state.sent_seq()) < (tip.run, tip.seq)
        {
            return Ok(());
        }
        let survey = self.survey().await?;
        self.drop_generation();
        let reason = "this daemon was told to take over".to_owned();
        self.begin(tip, Some(reason), survey).await
    }

    pub(super) fn drop_generation(&mut self) {
        self.cancel_first_snapshot();
        self.previous = self.state.take().or(self.previous.take());
    }

    pub(super) fn cancel_first_snapshot(&mut self) {
        if let Some(first) = self.first.take() {
            first.abort();
        }
    }

    /// Restarts the first snapshot if the generation lacks it and none is being made.
    pub(super) async fn make_first_snapshot(&mut self) -> Result<()> {
        let state = self.state();
        let run_goes_on = self.tip.borrow().is_some_and(|tip| tip.run == state.run);
        let can_be_made = run_goes_on || state.is_fork;
        if state.complete.is_some() || self.first.is_some() || !can_be_made {
            self.first_again = None;
            return Ok(());
        }
        // As long as no page can be read, the store is asked nothing.
        let catalog = match &self.first_again {
            Some(again) if again.at > Instant::now() => return Ok(()),
            Some(_) => None,
            None => Some(self.list_all().await?),
        };
        if let Some(catalog) = &catalog
            && let Some(txid) = known::complete_snapshot(&*self.store, catalog, state.id).await?
        {
            // Stored by an earlier run of the daemon, which was killed before it could note that.
            self.first_snapshot_ended(Ok(txid)).await?;
            return Ok(());
        }
        if self.state().is_fork {
            self.make_fork_snapshot(None);
            return Ok(());
        }
        match self.source.snapshot_pin().await {
            Ok(pin) => {
                self.first_again = None;
                let catalog = match catalog {
                    Some(catalog) => catalog,
                    None => self.list_all().await?,
                };
                self.read_first_snapshot(pin, &catalog).await
            }
            Err(e) if e.kind() == ErrorKind::Unavailable => {
                let before = self.first_again.take();
                let mut pauses = before.map_or_else(Backoff::default, |again| again.pauses);
                let (at, why) = (Instant::now() + pauses.pause(), e.to_string());
                self.first_again = Some(FirstAgain { at, why, pauses });
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    pub(super) async fn list_all(&self) -> Result<Catalog> {
        Ok(Catalog::new(self.store.list(GENERATIONS, None).await?))
    }

    /// Reads and stores the first snapshot in the background.
    async fn read_first_snapshot(
        &mut self,
        pin: Box<dyn PageSource>,
        catalog: &Catalog,
    ) -> Result<()> {
        let page_size = pin.size().0;
        let (trouble, first_trouble) = watch::channel(None);
        let state = self.state();
        let job = FirstSnapshot {
            store: self.store.clone(),
            trouble,
            pending: self.pending.clone(),
            environment: self.environment.clone(),
            header: Header {
                sqlite_version: state.sqlite_version,
                ..self.header(Kind::Snapshot, page_size)
            },
            known: KnownPages::load(self.store.clone(), catalog, page_size).await?,
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
        self.first_trouble = first_trouble;
        self.first = Some(tokio::spawn(making.make(job, pin).in_current_span()));
        Ok(())
    }

    pub(super) async fn first_snapshot_ended(&mut self, result: Result<Txid>) -> Result<()> {
        match result {
            Ok(txid) => {
                let state = self.state.as_mut().expect("begun before");
                state.complete = Some(txid);
                let generation = state.id;
                tracing::info!(%generation, %txid, "first snapshot stored");
                self.save().await
            }
            Err(e) if e.kind() == ErrorKind::Conflict && self.state().is_fork => {
                self.must_begin_live = true;
                Err(e)
            }
            // The run ended under it; so does the generation when all its commits are sent.
            Err(e) if e.kind() == ErrorKind::Conflict => {
                tracing::warn!("first snapshot given up: {e}");
                Ok(())
            }
            Err(e) => Err(e),
        }
    }
}
