//! The life of a mount: first look, mounting, serving, unmounting.
//!
//! Prints nothing. fuser 0.18 unmounts wrongly in several cases (busy mounts stay, a mount that
//! somebody else made later on the same path goes), so it only serves a device that
//! [`crate::mount::mountpoint`] opened, and never knows where that is mounted.

use crate::config::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::materialize::cache::BlockCache;
use crate::materialize::disk::DiskCache;
use crate::mount::discover::{Informants, Source};
use crate::mount::disk_cache;
pub use crate::mount::disk_cache::DiskCacheOptions;
use crate::mount::fuse::{FuseOptions, MountedView};
use crate::mount::mountpoint::{self, Mount};
use crate::mount::view::{Listed, View, ViewOptions};
use fuser::{Config, Session, SessionACL};
use nix::unistd::{getegid, geteuid};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
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
/// How long the disk cache may.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// Who may look into a mount; what the modes of its files say decides for each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Viewers {
    /// The user who mounts, and nobody else, not even root.
    Owner,
    /// That user and root.
    OwnerAndRoot,
    /// Every user.
    All,
}

impl Viewers {
    /// What the kernel has for it: to let in others than the owner, or not.
    fn are_others(self) -> bool {
        self != Self::Owner
    }

    /// The permissions that nothing has. The kernel knows no mount for the owner and root, and
    /// answers others itself from what it remembers: only modes keep them out of that.
    fn umask(self) -> u16 {
        match self {
            Self::OwnerAndRoot => 0o077,
            Self::Owner | Self::All => 0,
        }
    }
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Bytes of pages kept in memory.
    pub cache_bytes: u64,
    /// What is read is kept here, too.
    pub disk_cache: Option<DiskCacheOptions>,
    /// At least this long between two looks at one database.
    pub refresh: Duration,
    /// How long a name waits for such a look before it is answered from what is known.
    pub patience: Duration,
    /// Which restore points directories show.
    pub listed: Listed,
    /// Who asks a daemon on this machine what changes; None: the store alone is asked.
    pub informants: Option<Arc<dyn Informants>>,
    /// How long a read may wait for the store before it fails.
    pub read_deadline: Duration,
    /// Who may look.
    pub viewers: Viewers,
    /// The user that everything belongs to; None: the one who mounts.
    pub uid: Option<u32>,
    /// The group that everything belongs to; None: that of the one who mounts.
    pub gid: Option<u32>,
    /// The permissions that nothing has.
    pub umask: u16,
    /// Directories that the mount point must not lie in: replicas, spools, caches.
    pub keep_out: Vec<PathBuf>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            disk_cache: None,
            refresh: Duration::from_secs(1),
            patience: Duration::from_secs(5),
            listed: Listed::default(),
            informants: None,
            read_deadline: Duration::from_secs(30),
            viewers: Viewers::Owner,
            uid: None,
            gid: None,
            umask: 0,
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
/// That of `ready`, after which nothing is mounted;
/// `Invalid` for a mount point that will not do and for two replicas of one name; `Refused` if that
/// is all the answer there is.
pub async fn run(
    sources: Vec<Source>,
    label: &str,
    mountpoint: &Path,
    mut options: MountOptions,
    clock: Clock,
    ready: impl FnOnce(&Ready) -> Result<()>,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let mut stop = pin!(stop);
    let disk = tokio::select! {
        disk = open_disk_cache(&mut options, mountpoint) => disk?,
        () = &mut stop => return Ok(()),
    };
    let cache = match (&disk, &options.disk_cache) {
        (Some(disk), Some(DiskCacheOptions { hydrate, .. })) => {
            BlockCache::over(Arc::clone(disk), *hydrate, options.cache_bytes)
        }
        _ => BlockCache::new(options.cache_bytes),
    };
    let view = View::new(
        sources,
        options.informants.clone(),
        Arc::new(cache),
        ViewOptions {
            refresh: options.refresh,
            patience: options.patience,
            listed: options.listed,
        },
        clock,
    );
    let databases = tokio::select! {
        databases = first_look(&view, options.patience) => databases?,
        () = &mut stop => return Ok(()),
    };
    let fuse_options = FuseOptions {
        read_deadline: options.read_deadline,
        patience: options.patience,
        uid: options.uid.unwrap_or_else(|| geteuid().as_raw()),
        gid: options.gid.unwrap_or_else(|| getegid().as_raw()),
        umask: options.umask | options.viewers.umask(),
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
    })?;
    let outcome = tokio::select! {
        outcome = &mut ended => outcome_of(outcome),
        () = &mut stop => {
            mount.detach()?;
            last_readers(ended).await
        }
    };
    if let Some(disk) = disk {
        // What is not written by then costs a request of the next mount.
        timeout(LAST_WRITES, disk.settle())
            .await
            .unwrap_or_default();
    }
    outcome
}

/// Waits for the end of a session that is mounted no more.
async fn last_readers(ended: oneshot::Receiver<io::Result<()>>) -> Result<()> {
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

/// Opens the disk cache, and keeps the mount point out of it.
async fn open_disk_cache(
    options: &mut MountOptions,
    mountpoint: &Path,
) -> Result<Option<Arc<DiskCache>>> {
    let Some(disk) = options.disk_cache.clone() else {
        return Ok(None);
    };
    let opened = disk_cache::open_in_time(&disk, mountpoint, &options.keep_out).await?;
    if opened.is_some() {
        options.keep_out.push(disk.directory);
    }
    Ok(opened)
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
    let (device, mount) = Mount::new(&at, source, options.viewers.are_others())?;
    let mut config = Config::default();
    config.acl = match options.viewers {
        Viewers::Owner => SessionACL::Owner,
        Viewers::OwnerAndRoot => SessionACL::RootAndOwner,
        Viewers::All => SessionACL::All,
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
        // What the kernel says to who is about to take a request as the mount ends.
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
        Ok(Err(error)) => Err(Error::disk("serve the mount", error)),
        Err(_) => Err(Error::new(
            ErrorKind::Disk,
            "a thread of the mount broke off",
        )),
    }
}
