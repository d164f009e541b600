//! The life of a mount: first look, mounting, serving, unmounting.
//!
//! Prints nothing. fuser 0.18 unmounts wrongly in several cases (busy mounts stay, a mount that
//! somebody else made later on the same path goes), so it only serves a device that
//! [`crate::mount::mountpoint`] opened, and never knows where that is mounted.

use crate::config::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::materialize::cache::BlockCache;
use crate::mount::discover::Source;
use crate::mount::fuse::{FuseOptions, MountedView};
use crate::mount::mountpoint::{self, Mount};
use crate::mount::view::{View, ViewOptions};
use fuser::{Config, Session, SessionACL};
use nix::unistd::{getegid, geteuid};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Threads that read requests. They answer hits and never wait, so two keep two cores busy.
const THREADS: usize = 2;

/// How long open files may hold up the end.
const LAST_READERS: Duration = Duration::from_secs(5);

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Bytes of pages kept in memory.
    pub cache_bytes: u64,
    /// At least this long between two looks at one database.
    pub refresh: Duration,
    /// How long a name waits for such a look before it is answered from what is known.
    pub patience: Duration,
    /// How long a read may wait for the store before it fails.
    pub read_deadline: Duration,
    /// Whether other users may look; else only the one who mounted.
    pub allow_other: bool,
    /// Directories that the mount point must not lie in: what the mount itself reads.
    pub keep_out: Vec<PathBuf>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            refresh: Duration::from_secs(1),
            patience: Duration::from_secs(5),
            read_deadline: Duration::from_secs(30),
            allow_other: false,
            keep_out: Vec::new(),
        }
    }
}

/// What is mounted, once it is.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The full path of the mount point.
    pub mountpoint: PathBuf,
    /// How many databases there are; None while the store does not answer.
    pub databases: Option<usize>,
}

/// Mounts the databases in `sources` on a directory; `label` is the source that the kernel shows;
/// calls `ready` when files can be read, and serves them until `stop` or until somebody unmounts.
///
/// # Errors
/// `Invalid` for a mount point that will not do and for two replicas of one name; `Refused` if that
/// is all the answer there is.
pub async fn run(
    sources: Vec<Source>,
    label: &str,
    mountpoint: &Path,
    options: MountOptions,
    clock: Clock,
    ready: impl FnOnce(&Ready),
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let view = View::new(
        sources,
        Arc::new(BlockCache::new(options.cache_bytes)),
        ViewOptions {
            refresh: options.refresh,
            patience: options.patience,
        },
        clock,
    );
    let databases = first_look(&view, options.patience).await?;
    let fuse_options = FuseOptions {
        read_deadline: options.read_deadline,
        patience: options.patience,
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
    };
    let files = MountedView::new(view, runtime::Handle::current(), fuse_options);
    let (path, label) = (mountpoint.to_owned(), label.to_owned());
    // Looking at a path may wait for whatever file system lies there.
    let mounting = tokio::task::spawn_blocking(move || mount(files, &path, &label, &options));
    let (session, mount, mountpoint) = mounting
        .await
        .map_err(|broken| Error::invalid(format!("mounting broke off: {broken}")))??;
    let mut ended = serve(session)?;
    ready(&Ready {
        mountpoint,
        databases,
    });
    tokio::select! {
        outcome = &mut ended => return outcome_of(outcome),
        () = stop => {}
    }
    mount.detach()?;
    match timeout(LAST_READERS, ended).await {
        Ok(outcome) => outcome_of(outcome),
        // Their reads fail when the process ends; waiting for a shell that stands in the mount
        // would be for ever.
        Err(_) => {
            tracing::warn!("unmounted while files were open; they cannot be read any more");
            Ok(())
        }
    }
}

/// A store that is away does not stop a mount; a source that cannot be mounted does.
async fn first_look(view: &View, patience: Duration) -> Result<Option<usize>> {
    match timeout(patience, view.start()).await {
        Ok(Ok(databases)) => Ok(Some(databases)),
        Ok(Err(error)) if matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Refused) => {
            Err(error)
        }
        Ok(Err(error)) => {
            tracing::warn!("mounting without a look at the databases: {error}");
            Ok(None)
        }
        Err(_) => {
            tracing::warn!("mounting without a look at the databases: no answer in {patience:?}");
            Ok(None)
        }
    }
}

fn mount(
    files: MountedView,
    path: &Path,
    source: &str,
    options: &MountOptions,
) -> Result<(Session<MountedView>, Mount, PathBuf)> {
    let at = mountpoint::prepare(path, &options.keep_out)?;
    let (device, mount) = Mount::new(&at, source, options.allow_other)?;
    let mut config = Config::default();
    config.acl = match options.allow_other {
        true => SessionACL::All,
        false => SessionACL::Owner,
    };
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let session = Session::from_fd(files, device, config.acl, config)
        .map_err(|error| Error::invalid(format!("cannot serve {}", at.display())).because(error))?;
    Ok((session, mount, at))
}

/// Serves on threads of its own: the runtime would wait for them at its end, and they wait for the
/// last reader.
fn serve(session: Session<MountedView>) -> Result<oneshot::Receiver<io::Result<()>>> {
    let (end, ended) = oneshot::channel();
    thread::Builder::new()
        .name("fuse".to_owned())
        // Nobody listens any more once the mount was given up with files open.
        .spawn(move || drop(end.send(session.run())))
        .map_err(|e| Error::disk("start a thread for the mount", e))?;
    Ok(ended)
}

/// The end of a session is success however it came; a thread that broke off is not.
fn outcome_of(ended: Result<io::Result<()>, oneshot::error::RecvError>) -> Result<()> {
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Error::disk("serve the mount", error)),
        Err(_) => Err(Error::invalid("a thread of the mount broke off")),
    }
}
