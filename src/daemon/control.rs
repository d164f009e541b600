//! The control socket in each spool directory: one JSON line to ask, one to answer. Mode 0600.

use crate::daemon::fleet::Fleet;
use crate::daemon::status::DatabaseStatus;
use crate::error::{Error, Result};
use crate::storage::blocking::blocking;
use crate::storage::changes::Mark;
use crate::storage::informed::News;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Take};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::Instrument;

const SOCKET: &str = "control.sock";

/// Wait after a request that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A daemon that works answers how it is within this, and who asks has asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who only wants to save a request waits no longer than one takes.
const NEWS_PATIENCE: Duration = Duration::from_secs(1);

/// Threads that ask at a time, or wait for file systems that do not answer.
static CONNECTING: Semaphore = Semaphore::const_new(32);

/// The longest answer: 1,000 databases, or all that is noted of changes.
const ANSWER_BYTES: u64 = 64 << 20;

/// The longest request.
const REQUEST_BYTES: u64 = 64 << 10;

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
    /// Answer what has changed since then in the replica at a place.
    News { place: String, since: Option<Mark> },
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Response {
    Done,
    Status(Vec<DatabaseStatus>),
    /// Where things are kept is told relative to the spool; None if the replica is not written.
    News(Option<News>),
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
        // Whatever else lies there is not opened.
        let flags = OFlag::O_DIRECTORY.bits();
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(meta_path)?;
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
    let mut lines = lines(read);
    let Some(line) = request(&mut lines).await? else {
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

type Lines = tokio::io::Lines<BufReader<Take<OwnedReadHalf>>>;

fn lines(read: OwnedReadHalf) -> Lines {
    BufReader::new(read.take(REQUEST_BYTES)).lines()
}

/// What is asked; who takes too long for that holds nothing of ours.
async fn request(lines: &mut Lines) -> std::io::Result<Option<String>> {
    timeout(PATIENCE, lines.next_line()).await?
}

async fn respond(line: &str, fleet: &Fleet, at: usize) -> Response {
    let done = match serde_json::from_str(line) {
        Ok(Request::Status { all: true }) => return Response::Status(fleet.statuses()),
        Ok(Request::Status { all: false }) => return Response::Status(vec![fleet.status(at)]),
        Ok(Request::News { place, since }) => {
            let running = fleet.running(at).ok();
            return Response::News(running.and_then(|database| database.news(&place, since)));
        }
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
/// `Unavailable`: no daemon runs there, it does not answer, or with its reason.
pub async fn sync(meta_path: &Path, replica: Option<String>, timeout: Duration) -> Result<()> {
    let request = Request::Sync {
        replica,
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
    };
    match ask(meta_path, &request, timeout.saturating_add(PATIENCE)).await? {
        Some(Response::Done) => Ok(()),
        Some(other) => Err(unexpected(other)),
        None => Err(Error::unavailable(format!(
            "no replicate runs with its spool in {} (start it, or give --meta-path)",
            meta_path.display()
        ))),
    }
}

/// Asks the daemon whose spool lies in `meta_path` how its database is; with `all`, how all the
/// databases of that process are. None if no daemon runs there.
///
/// # Errors
/// `Unavailable`: one may run there, but it does not say.
pub async fn status(meta_path: &Path, all: bool) -> Result<Option<Vec<DatabaseStatus>>> {
    match ask(meta_path, &Request::Status { all }, PATIENCE).await? {
        Some(Response::Status(statuses)) => Ok(Some(statuses)),
        Some(other) => Err(unexpected(other)),
        None => Ok(None),
    }
}

/// Asks the daemon whose spool lies in `meta_path` what has changed since a mark in the replica
/// whose place has this identity. None if no daemon runs there, or none that writes that replica.
///
/// # Errors
/// `Unavailable`: one may run there, but it does not say at once.
pub async fn news(meta_path: &Path, place: &str, since: Option<Mark>) -> Result<Option<News>> {
    let place = place.to_owned();
    let asked = Request::News { place, since };
    match ask(meta_path, &asked, NEWS_PATIENCE).await? {
        Some(Response::News(news)) => {
            let is_within = |part: Component<'_>| matches!(part, Component::Normal(_));
            let news = news.filter(|news| news.kept.components().all(is_within));
            Ok(news.map(|news| News {
                kept: meta_path.join(&news.kept),
                ..news
            }))
        }
        Some(other) => Err(unexpected(other)),
        None => Ok(None),
    }
}

fn unexpected(response: Response) -> Error {
    match response {
        Response::Failed(why) => Error::unavailable(why),
        _ => Error::unavailable("replicate gave another answer than was asked for"),
    }
}

/// The answer; None if nobody is there to give one.
async fn ask(meta_path: &Path, request: &Request, limit: Duration) -> Result<Option<Response>> {
    let answered = async {
        let stream = match connect(meta_path).await {
            Ok(stream) => stream,
            Err(e) if is_absent(&e) => return Ok(None),
            Err(e) => return Err(unasked(meta_path, e)),
        };
        converse(stream, request).await.map(Some)
    };
    timeout(limit, answered).await.unwrap_or_else(|_| {
        Err(Error::unavailable(format!(
            "the replicate with its spool in {} did not answer within {limit:?}; look at its log, \
             or end it and start it again",
            meta_path.display()
        )))
    })
}

async fn connect(meta_path: &Path) -> std::io::Result<UnixStream> {
    let place = meta_path.to_owned();
    // Its file system may be dead.
    let connecting = async {
        let turn = CONNECTING.acquire().await.map_err(std::io::Error::other)?;
        let connect = move || {
            let _turn = turn;
            Ok(connect_now(&place))
        };
        blocking(connect).await.map_err(std::io::Error::other)?
    };
    let stream = timeout(PATIENCE / 2, connecting).await??;
    UnixStream::from_std(stream)
}

fn connect_now(meta_path: &Path) -> std::io::Result<std::os::unix::net::UnixStream> {
    let address = Address::of(meta_path)?;
    let stream = std::os::unix::net::UnixStream::connect(&address.path)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Whether nobody listens: there is no spool, no socket in it, or that of a process that ended.
fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused)
}

/// Whether somebody listens is not known.
fn unasked(meta_path: &Path, error: std::io::Error) -> Error {
    let place = meta_path.display();
    let sentence = match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            format!("the spool in {place} is another's; ask as the user that runs replicate")
        }
        std::io::ErrorKind::TimedOut => format!("{place} does not answer; see to its file system"),
        _ => format!("ask the replicate with its spool in {place}"),
    };
    Error::unavailable(sentence).because(error)
}

async fn converse(mut stream: UnixStream, request: &Request) -> Result<Response> {
    let mut line = serde_json::to_vec(request).expect("plain data has a JSON form");
    line.push(b'\n');
    let lost = |e: std::io::Error| Error::unavailable(LOST).because(e);
    stream.write_all(&line).await.map_err(lost)?;
    let answer = BufReader::new((&mut stream).take(ANSWER_BYTES))
        .lines()
        .next_line()
        .await
        .map_err(lost)?;
    serde_json::from_str(&answer.unwrap_or_default()).map_err(|_| Error::unavailable(LOST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    #[test]
    fn only_a_socket_that_nobody_has_open_means_that_no_daemon_runs() {
        for (kind, is_nobody) in [
            (ErrorKind::NotFound, true),
            (ErrorKind::ConnectionRefused, true),
            (ErrorKind::PermissionDenied, false),
            (ErrorKind::WouldBlock, false),
        ] {
            assert_eq!(is_absent(&kind.into()), is_nobody, "{kind}");
        }
        let said = unasked(Path::new("/spool"), ErrorKind::PermissionDenied.into());
        assert_eq!(
            said.to_string(),
            "the spool in /spool is another's; ask as the user that runs replicate: permission \
             denied"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_does_not_answer_is_no_daemon_that_does_not_run() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(status(folder.path(), false).await.unwrap(), None);
        let none = news(folder.path(), "/backup/app", None).await;
        assert_eq!(none.unwrap(), None);
        let _deaf = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let place = folder.path().display();
        let expected = |limit| {
            format!(
                "the replicate with its spool in {place} did not answer within {limit}; look at \
                 its log, or end it and start it again"
            )
        };
        let said = status(folder.path(), false).await.unwrap_err();
        assert_eq!(said.to_string(), expected("5s"));
        let said = news(folder.path(), "/backup/app", None).await.unwrap_err();
        assert_eq!(said.to_string(), expected("1s"));
        let said = sync(folder.path(), None, Duration::from_secs(2)).await;
        assert_eq!(said.unwrap_err().to_string(), expected("7s"));
    }

    #[tokio::test]
    async fn what_lies_in_the_place_of_a_spool_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Opened for reading it would wait for a writer.
        let said = news(&pipe, "/backup/app", None).await.unwrap_err();
        let expected = format!("ask the replicate with its spool in {}", pipe.display());
        assert!(said.to_string().starts_with(&expected), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_ends_a_request_is_not_waited_for() {
        let (mut asking, asked) = UnixStream::pair().unwrap();
        asking.write_all(b"{").await.unwrap();
        let (read, _write) = asked.into_split();
        let never = request(&mut lines(read)).await.unwrap_err();
        assert_eq!(never.kind(), ErrorKind::TimedOut);
        let (mut asking, asked) = UnixStream::pair().unwrap();
        let endless =
            tokio::spawn(async move { while asking.write_all(&[b'x'; 4096]).await.is_ok() {} });
        let (read, write) = asked.into_split();
        let text = request(&mut lines(read)).await.unwrap().unwrap();
        assert_eq!(text.len() as u64, REQUEST_BYTES);
        drop(write);
        endless.abort();
    }
}
