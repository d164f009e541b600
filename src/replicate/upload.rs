//! The uploader of one replica: follows the spool, stores segments, begins generations.
//!
//! A commit is *durable* on a replica when its segment, all before it and the generation's first
//! snapshot are stored. Group commit: while one upload is on its way, commits gather for the next.
//! Each step is safe to be killed in: what the state file says is stored is stored, and what was on
//! its way waits in the spool and is sent again, byte for byte.
//!
//! | part | does |
//! | --- | --- |
//! | `task` | the loop: what comes next, what failed, what is said of it |
//! | `pace` | when what waits is sent (pure) |
//! | `send` | from the spool to a stored segment |
//! | `huge` | a transaction too large for a segment, which becomes a snapshot |
//! | `look` | what others stored behind our position or above our generation |
//! | `resume` | goes on in a generation after a start, with a state or without |
//! | `begin` | begins a generation, and its first snapshot |
//! | `fork` | a generation that starts from a stored commit, and its first snapshot |
//!
//! Who may write is decided in [`crate::replicate::writers`].

mod begin;
mod fork;
mod huge;
mod look;
mod pace;
mod resume;
mod send;
mod task;

use crate::config::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::format::ids::{GenerationId, Timestamp, Txid};
use crate::replicate::identity::Identity;
use crate::replicate::source::Source;
use crate::replicate::spool::Spool;
use crate::replicate::upload::task::Task;
use crate::replicate::writers::Fencing;
use crate::storage::Store;
use crate::storage::kept::Kept;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::Instrument;

/// How the database goes to one replica.
#[derive(Clone, Debug)]
pub struct UploadSettings {
    /// How messages and `--replica` name it.
    pub name: String,
    /// How long the first commit that is not sent waits for company.
    pub sync_interval: Duration,
    /// Where this replica's state and waiting objects lie, within the spool.
    pub directory: PathBuf,
    /// If another writer's generation is above ours, begin one above all.
    pub take_over: bool,
    /// Where segments stay for a while once they are stored.
    pub kept: Arc<Kept>,
    /// A transaction whose pages take more than this, stored, becomes a snapshot.
    pub huge_bytes: u64,
}

/// What a transaction takes at most as a segment, stored bytes of its pages.
pub const HUGE_BYTES: u64 = 64 << 20;

/// Bytes of stored segments that stay on the local disk, for each replica.
const KEPT_BYTES: u64 = 64 << 20;

/// The folder of a replica's state in which they lie.
pub const KEPT: &str = "kept";

/// What stays of the segments of the replica whose state lies in `directory`. Blocking.
///
/// # Errors
/// `Disk`.
pub fn open_kept(directory: &Path) -> Result<Arc<Kept>> {
    Kept::open(&directory.join(KEPT), KEPT_BYTES).map(Arc::new)
}

/// What an uploader says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The generation that it writes.
    pub generation: Option<GenerationId>,
    /// Everything up to this `seq` is durable on the replica.
    pub durable: Option<u64>,
    /// The newest restore point that is durable, and its time.
    pub newest: Option<(Txid, Timestamp)>,
    /// Segments stored since the start.
    pub uploads: u64,
    /// When the oldest commit that is not durable was made, or seen here.
    pub waiting_since: Option<Timestamp>,
    /// The spool must keep what comes after this `seq`.
    pub needs: Option<u64>,
    /// Whether the store keeps two writers apart.
    pub fencing: Fencing,
    /// Readers follow the generation of another writer: a sentence that names it and the remedy.
    pub superseded: Option<String>,
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
    /// Starts the uploader of one replica on the current runtime. Blocking: reads what an earlier
    /// run left.
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
        let (status_sender, status) = watch::channel(Status::default());
        let urgent = watch::Sender::new(0);
        let stop = watch::Sender::new(false);
        let span = tracing::error_span!("replica", replica = %settings.name);
        let given = task::Given {
            store,
            source,
            spool,
            identity,
            settings,
            environment,
        };
        let mut task = Task::new(given, status_sender, urgent.clone(), stop.subscribe())?;
        if let Some(since) = task.left_waiting() {
            task.waits_since(since);
        }
        // Its end shows in `status`, whose sender it holds.
        tokio::spawn(async move { task.run().await }.instrument(span));
        Ok(Self {
            status,
            urgent,
            stop,
        })
    }

    /// One that gave up before it began. What comes after `needs` it will need once it is mended.
    pub fn given_up(error: &Error, needs: Option<u64>) -> Self {
        let status = Status {
            needs,
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
