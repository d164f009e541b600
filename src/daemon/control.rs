//! The control socket in the spool directory: one JSON line to ask, one to answer. Mode 0600.

use crate::daemon::Daemon;
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

const SOCKET: &str = "control.sock";

/// Wait after a request that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    /// Answer when everything that is committed now is durable.
    Sync {
        replica: Option<String>,
        timeout_ms: u64,
    },
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Response {
    Done,
    Failed(String),
}

/// A name for the socket that is short whatever the directory is called: addresses of Unix sockets
/// end at 108 bytes.
struct Address {
    _directory: File,
    path: String,
}

impl Address {
    fn of(meta_path: &Path) -> std::io::Result<Self> {
        let directory = File::open(meta_path)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
        Ok(Self {
            _directory: directory,
            path,
        })
    }
}

/// Serves requests until the task is aborted. The caller holds the spool's lock, so a socket that
/// is there is a dead process's.
///
/// # Errors
/// `Disk`.
pub(crate) fn serve(meta_path: &Path, daemon: Arc<Daemon>) -> Result<JoinHandle<()>> {
    let bind = || -> std::io::Result<UnixListener> {
        let path = meta_path.join(SOCKET);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(Address::of(meta_path)?.path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    let listener =
        bind().map_err(|e| Error::disk(format!("open {}/{SOCKET}", meta_path.display()), e))?;
    let daemon = Arc::downgrade(&daemon);
    Ok(tokio::spawn(async move {
        loop {
            let accepted = listener.accept().await;
            let Some(daemon) = daemon.upgrade() else {
                return;
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                // Such as too many open files, which passes.
                Err(e) => {
                    tracing::warn!("accept a request on the control socket: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            tokio::spawn(async move {
                if let Err(e) = answer(stream, &daemon).await {
                    tracing::debug!("a request on the control socket: {e}");
                }
            });
        }
    }))
}

async fn answer(stream: UnixStream, daemon: &Daemon) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let Some(line) = lines.next_line().await? else {
        return Ok(());
    };
    let work = async {
        match serde_json::from_str(&line) {
            Ok(Request::Sync {
                replica,
                timeout_ms,
            }) => {
                daemon
                    .sync(replica.as_deref(), Duration::from_millis(timeout_ms))
                    .await
            }
            Err(e) => Err(Error::invalid(format!("not a request: {e}"))),
        }
    };
    let response = tokio::select! {
        done = work => match done {
            Ok(()) => Response::Done,
            Err(e) => Response::Failed(e.to_string()),
        },
        // Who asked is gone.
        _ = lines.next_line() => return Ok(()),
    };
    let mut line = serde_json::to_vec(&response).expect("plain data has a JSON form");
    line.push(b'\n');
    write.write_all(&line).await
}

/// Asks the daemon whose spool lies in `meta_path` to make everything that is committed now durable
/// on its replicas, and waits for that.
///
/// # Errors
/// `Unavailable`: no daemon runs there, or with its reason.
pub async fn sync(meta_path: &Path, replica: Option<String>, timeout: Duration) -> Result<()> {
    let absent = |e: std::io::Error| {
        let place = meta_path.display();
        Error::unavailable(format!(
            "no replicate runs with its spool in {place} (start it, or give --meta-path)"
        ))
        .because(e)
    };
    let address = Address::of(meta_path).map_err(absent)?;
    let mut stream = UnixStream::connect(&address.path).await.map_err(absent)?;
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let request = Request::Sync {
        replica,
        timeout_ms,
    };
    let mut line = serde_json::to_vec(&request).expect("plain data has a JSON form");
    line.push(b'\n');
    let lost = |e: std::io::Error| {
        Error::new(ErrorKind::Unavailable, "replicate ended before it answered").because(e)
    };
    stream.write_all(&line).await.map_err(lost)?;
    let answer = BufReader::new(&mut stream)
        .lines()
        .next_line()
        .await
        .map_err(lost)?;
    match serde_json::from_str(&answer.unwrap_or_default()) {
        Ok(Response::Done) => Ok(()),
        Ok(Response::Failed(why)) => Err(Error::unavailable(why)),
        Err(_) => Err(Error::unavailable("replicate ended before it answered")),
    }
}
