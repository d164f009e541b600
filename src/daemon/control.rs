//! The control socket in each spool directory: one JSON line to ask, one to answer. Mode 0600.

use crate::daemon::fleet::Fleet;
use crate::daemon::status::DatabaseStatus;
use crate::error::{Error, Result};
use crate::replicate::blocking;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::Instrument;

const SOCKET: &str = "control.sock";

/// Wait after a request that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A file system that works, and a daemon, answer within this.
const STATUS: Duration = Duration::from_secs(5);

const LOST: &str = "replicate ended before it answered";

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    /// Answer when everything that is committed now is durable.
    Sync {
        replica: Option<String>,
        timeout_ms: u64,
    },
    /// Answer how the database is, or all databases of the process.
    Status { all: bool },
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Response {
    Done,
    Status(Vec<DatabaseStatus>),
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

/// Serves the requests of one database until it is dropped.
pub(super) struct Served(JoinHandle<()>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens the socket of a database. The caller holds the spool's lock, so a socket that is there is
/// a dead process's. Blocking.
///
/// # Errors
/// `Disk`.
pub(super) fn listen(meta_path: &Path) -> Result<std::os::unix::net::UnixListener> {
    let bind = || -> std::io::Result<_> {
        let path = meta_path.join(SOCKET);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = std::os::unix::net::UnixListener::bind(Address::of(meta_path)?.path)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bind().map_err(|e| failed(meta_path, e))
}

/// Serves requests for the database at this place of the fleet.
///
/// # Errors
/// `Disk`.
pub(super) fn serve(
    listener: std::os::unix::net::UnixListener,
    fleet: &Arc<Fleet>,
    at: usize,
) -> Result<Served> {
    let listener = UnixListener::from_std(listener).map_err(|e| failed(fleet.meta_path(at), e))?;
    let accepting = accept(listener, Arc::downgrade(fleet), at);
    Ok(Served(tokio::spawn(accepting.in_current_span())))
}

fn failed(meta_path: &Path, error: std::io::Error) -> Error {
    Error::disk(format!("open {}/{SOCKET}", meta_path.display()), error)
}

async fn accept(listener: UnixListener, fleet: Weak<Fleet>, at: usize) {
    loop {
        let accepted = listener.accept().await;
        let Some(fleet) = fleet.upgrade() else {
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
            if let Err(e) = answer(stream, &fleet, at).await {
                tracing::debug!("a request on the control socket: {e}");
            }
        });
    }
}

async fn answer(stream: UnixStream, fleet: &Fleet, at: usize) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let Some(line) = lines.next_line().await? else {
        return Ok(());
    };
    let response = tokio::select! {
        response = respond(&line, fleet, at) => response,
        // Who asked is gone.
        _ = lines.next_line() => return Ok(()),
    };
    let mut line = serde_json::to_vec(&response).expect("plain data has a JSON form");
    line.push(b'\n');
    write.write_all(&line).await
}

async fn respond(line: &str, fleet: &Fleet, at: usize) -> Response {
    let done = match serde_json::from_str(line) {
        Ok(Request::Status { all: true }) => return Response::Status(fleet.statuses()),
        Ok(Request::Status { all: false }) => return Response::Status(vec![fleet.status(at)]),
        Ok(Request::Sync {
            replica,
            timeout_ms,
        }) => match fleet.running(at) {
            Ok(database) => {
                let timeout = Duration::from_millis(timeout_ms);
                database.sync(replica.as_deref(), timeout).await
            }
            Err(e) => Err(e),
        },
        Err(e) => Err(Error::invalid(format!("not a request: {e}"))),
    };
    match done {
        Ok(()) => Response::Done,
        Err(e) => Response::Failed(e.to_string()),
    }
}

/// Asks the daemon whose spool lies in `meta_path` to make everything that is committed now durable
/// on its replicas, and waits for that.
///
/// # Errors
/// `Unavailable`: no daemon runs there, or with its reason.
pub async fn sync(meta_path: &Path, replica: Option<String>, timeout: Duration) -> Result<()> {
    let request = Request::Sync {
        replica,
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
    };
    match ask(meta_path, &request).await? {
        Response::Done => Ok(()),
        other => Err(unexpected(other)),
    }
}

/// Asks the daemon whose spool lies in `meta_path` how its database is; with `all`, how all the
/// databases of that process are.
///
/// # Errors
/// `Unavailable`: no daemon runs there, or it does not answer.
pub async fn status(meta_path: &Path, all: bool) -> Result<Vec<DatabaseStatus>> {
    let request = Request::Status { all };
    match timeout(STATUS, ask(meta_path, &request)).await {
        Ok(answer) => match answer? {
            Response::Status(statuses) => Ok(statuses),
            other => Err(unexpected(other)),
        },
        Err(_) => Err(Error::unavailable(format!(
            "replicate did not answer within {} s",
            STATUS.as_secs()
        ))),
    }
}

fn unexpected(response: Response) -> Error {
    match response {
        Response::Failed(why) => Error::unavailable(why),
        _ => Error::unavailable("replicate gave another answer than was asked for"),
    }
}

async fn ask(meta_path: &Path, request: &Request) -> Result<Response> {
    let absent = |e: std::io::Error| {
        let place = meta_path.display();
        Error::unavailable(format!(
            "no replicate runs with its spool in {place} (start it, or give --meta-path)"
        ))
        .because(e)
    };
    let place = meta_path.to_owned();
    let address = blocking(move || Ok(Address::of(&place)));
    let address = match timeout(STATUS, address).await {
        Ok(address) => address?.map_err(absent)?,
        Err(_) => {
            return Err(Error::unavailable(format!(
                "{} did not answer within {} s",
                meta_path.display(),
                STATUS.as_secs()
            )));
        }
    };
    let mut stream = UnixStream::connect(&address.path).await.map_err(absent)?;
    let mut line = serde_json::to_vec(request).expect("plain data has a JSON form");
    line.push(b'\n');
    let lost = |e: std::io::Error| Error::unavailable(LOST).because(e);
    stream.write_all(&line).await.map_err(lost)?;
    let answer = BufReader::new(&mut stream)
        .lines()
        .next_line()
        .await
        .map_err(lost)?;
    serde_json::from_str(&answer.unwrap_or_default()).map_err(|_| Error::unavailable(LOST))
}
