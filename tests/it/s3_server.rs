//! An S3 server in the process of the test: real HTTP on a port of 127.0.0.1, signatures checked,
//! objects as files.
//!
//! `s3s` speaks the protocol and `s3s-fs` keeps the objects; `objects.rs` mends where the latter
//! differs from S3, `listing.rs` lists, `wire.rs` counts the requests and lets them go wrong.
//!
//! Stops when it is dropped; what still runs is cut off.

mod listing;
mod objects;
mod wire;

use crate::program::{LONG, wait_until};
use sqlrepl::config::location::{Credentials, S3Location, Secret};
use sqlrepl::format::ids::Timestamp;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, watch};

/// The only access key that the server knows.
pub(crate) const ACCESS_KEY_ID: &str = "AKIATESTS";

/// What belongs to it.
pub(crate) const SECRET_ACCESS_KEY: &str = "the/secret+of+the+tests";

/// What requests may be signed for, unless a test says otherwise.
pub(crate) const REGION: &str = "us-east-1";

/// What can be asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Verb {
    Put,
    Get,
    Head,
    List,
    Delete,
    CreateUpload,
    UploadPart,
    CompleteUpload,
    AbortUpload,
    ListUploads,
    Other,
}

/// A request, as a rule sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    /// Which call of this verb, from 1.
    pub(crate) number: u64,
    /// Within the bucket; the prefix of a listing; empty for a deletion of several.
    pub(crate) key: String,
}

/// What goes wrong with a request. "The body" is that of the request where objects are stored, else
/// that of the answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Nothing is done; the answer is this status with this error code.
    Refuse(u16, &'static str),
    /// Nothing is done, and the connection ends.
    Cut,
    /// All is done, and the connection ends without an answer.
    LoseReply,
    /// The connection ends in the middle of the body.
    CutBody,
    /// A bit in the middle of the body is wrong.
    Flip,
    /// The body takes so long.
    Slow(Duration),
    /// Nothing is done, and no answer comes.
    Stall,
    /// The request stops where the hold says.
    Hold(Stop, Gate),
}

/// Where a request is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Nothing is done yet.
    Before,
    /// All is done; the answer is not sent yet.
    Done,
}

/// The server's side of a hold.
#[derive(Clone, Debug)]
pub(crate) struct Gate(watch::Sender<Held>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    NotYet,
    Waiting,
    LetGo,
    /// Nobody lets it go any more: the connection ends.
    Cut,
}

/// A request that is stopped, or will be. When this is dropped its connection ends.
pub(crate) struct Hold(Gate);

impl Hold {
    /// Waits until the request has come so far.
    #[track_caller]
    pub(crate) fn wait(&self) {
        wait_until(LONG, "a request to hold", || self.is_reached());
    }

    /// True once the request has come so far.
    pub(crate) fn is_reached(&self) -> bool {
        *self.0.0.borrow() == Held::Waiting
    }

    /// Lets it go on.
    pub(crate) fn let_go(self) {
        self.0.0.send_replace(Held::LetGo);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.0.send_if_modified(|held| {
            let ends = *held != Held::LetGo;
            if ends {
                *held = Held::Cut;
            }
            ends
        });
    }
}

/// How the server behaves. All of it can change at any time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// Waited before each request is looked at.
    pub(crate) latency: Duration,
    /// Bytes per second of the line that all connections share; none: as fast as can be.
    pub(crate) rate: Option<u64>,
    /// How far the server's clock is ahead of the machine's, in seconds.
    pub(crate) clock_ahead: i64,
    /// Requests signed by a clock that is far off are not refused.
    pub(crate) any_clock: bool,
    /// Requests signed for another region are refused.
    pub(crate) region: Option<&'static str>,
    /// Answers a put of a taken key with 200, and overwrites; some servers do.
    pub(crate) ignores_if_none_match: bool,
}

/// What was asked so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Requests of each verb, those that went wrong too.
    pub(crate) calls: BTreeMap<Verb, u64>,
    /// Bytes that came over the wire, headers too.
    pub(crate) received: u64,
    /// Bytes that went over the wire, headers too.
    pub(crate) sent: u64,
}

type Rule = Arc<dyn Fn(&Call) -> Option<Fault> + Send + Sync>;

/// What the test and the server both hold.
struct Shared {
    rule: Mutex<Rule>,
    settings: Mutex<Settings>,
    log: Mutex<Vec<Call>>,
    received: AtomicU64,
    sent: AtomicU64,
    /// When what is on the line has come over it.
    line_free: Mutex<Option<Instant>>,
    uploads: Mutex<BTreeMap<String, Upload>>,
}

/// An upload in parts that was begun and not ended.
#[derive(Clone, Debug)]
struct Upload {
    bucket: String,
    key: String,
    began: Timestamp,
}

/// A lock whose holder leaves what it guards whole, also where it panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn settings(&self) -> Settings {
        lock(&self.settings).clone()
    }

    /// What time it is to the server.
    fn now(&self) -> Timestamp {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let ahead = self.settings().clock_ahead * 1_000_000;
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap() + ahead)
    }

    /// Puts bytes on the line, behind what is on it already; when they have come over it.
    fn over_the_line(&self, bytes: usize) -> Option<Instant> {
        let rate = self.settings().rate?;
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut free = lock(&self.line_free);
        let now = Instant::now();
        *free = Some(free.map_or(now, |free| free.max(now)) + takes);
        *free
    }

    /// Notes a request; what goes wrong with it.
    fn note(&self, verb: Verb, key: String) -> Option<Fault> {
        let mut log = lock(&self.log);
        let before = log.iter().filter(|call| call.verb == verb).count() as u64;
        let number = before + 1;
        let call = Call { verb, number, key };
        log.push(call.clone());
        drop(log);
        let rule = lock(&self.rule).clone();
        rule(&call)
    }
}

/// What the server's thread is told.
enum Order {
    Up,
    Down,
}

/// The running server.
pub(crate) struct Server {
    root: PathBuf,
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Each with the channel on which it is answered. None: about to end.
    orders: Option<mpsc::UnboundedSender<(Order, std::sync::mpsc::Sender<()>)>>,
    thread: Option<JoinHandle<()>>,
    // Bound and never listening: while the server is down nobody else gets its port.
    _port: TcpSocket,
}

impl Server {
    /// Serves the folders of `root` as buckets. Hidden files beside them are the server's own.
    pub(crate) fn start(root: &Path) -> Self {
        let shared = Arc::new(Shared {
            rule: Mutex::new(Arc::new(|_| None)),
            settings: Mutex::default(),
            log: Mutex::default(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            line_free: Mutex::default(),
            uploads: Mutex::default(),
        });
        let port = wire::bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = port.local_addr().unwrap();
        let service = objects::service(root, shared.clone());
        let (orders, told) = mpsc::unbounded_channel();
        let serving = wire::serve(address, service, shared.clone(), told);
        let thread = std::thread::spawn(|| {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(serving);
        });
        let server = Self {
            root: root.to_owned(),
            address,
            shared,
            orders: Some(orders),
            thread: Some(thread),
            _port: port,
        };
        server.up();
        server
    }

    /// Its URL.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A prefix in a bucket of its own, with all that it takes to get there.
    pub(crate) fn place(&self, bucket: &str, prefix: &str) -> S3Location {
        S3Location {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            region: Some(REGION.to_owned()),
            endpoint: Some(self.endpoint()),
            force_path_style: None,
            checksums: true,
            credentials: Some(Credentials {
                access_key_id: ACCESS_KEY_ID.to_owned(),
                secret_access_key: Secret::new(SECRET_ACCESS_KEY.to_owned()),
            }),
        }
    }

    /// From now on requests go wrong by this rule and no other.
    pub(crate) fn set_rule(&self, rule: impl Fn(&Call) -> Option<Fault> + Send + Sync + 'static) {
        *lock(&self.shared.rule) = Arc::new(rule);
    }

    /// From now on nothing goes wrong.
    pub(crate) fn heal(&self) {
        self.set_rule(|_| None);
    }

    /// Holds the first request for which `which` is true. Replaces the rule.
    pub(crate) fn hold(
        &self,
        stop: Stop,
        which: impl Fn(&Call) -> bool + Send + Sync + 'static,
    ) -> Hold {
        let gate = Gate(watch::Sender::new(Held::NotYet));
        let (held, first) = (gate.clone(), Mutex::new(true));
        self.set_rule(move |call| {
            let is_it = which(call) && std::mem::take(&mut *lock(&first));
            is_it.then(|| Fault::Hold(stop, held.clone()))
        });
        Hold(gate)
    }

    /// Changes how the server behaves.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut lock(&self.shared.settings));
    }

    /// What was asked since the start or the last reset.
    pub(crate) fn counts(&self) -> Counts {
        let mut calls = BTreeMap::new();
        for call in lock(&self.shared.log).iter() {
            *calls.entry(call.verb).or_default() += 1;
        }
        Counts {
            calls,
            received: self.shared.received.load(Ordering::Relaxed),
            sent: self.shared.sent.load(Ordering::Relaxed),
        }
    }

    /// How many requests came, in all.
    pub(crate) fn requests(&self) -> u64 {
        self.calls().len() as u64
    }

    /// Each request, in the order in which they came.
    pub(crate) fn calls(&self) -> Vec<Call> {
        lock(&self.shared.log).clone()
    }

    /// Counts from 0 again.
    pub(crate) fn reset(&self) {
        lock(&self.shared.log).clear();
        self.shared.received.store(0, Ordering::Relaxed);
        self.shared.sent.store(0, Ordering::Relaxed);
    }

    /// The keys of the uploads in parts that were begun and not ended.
    pub(crate) fn uploads(&self) -> Vec<String> {
        let uploads = lock(&self.shared.uploads);
        uploads.values().map(|upload| upload.key.clone()).collect()
    }

    /// Leaves an upload in parts behind, as a program does that was killed; it can be aborted only.
    pub(crate) fn leave_upload(&self, bucket: &str, key: &str) {
        let upload = Upload {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            began: self.shared.now(),
        };
        let number = lock(&self.shared.uploads).len();
        let id = format!("00000000-0000-4000-8000-{number:012}");
        // How `s3s-fs` knows it, and to whom it belongs.
        let note = self.root.join(format!(".upload-{id}.json"));
        std::fs::write(note, format!("\"{ACCESS_KEY_ID}\"")).unwrap();
        lock(&self.shared.uploads).insert(id, upload);
    }

    /// Goes away: open connections end, new ones are refused. Back from it with [`Server::up`].
    pub(crate) fn down(&self) {
        self.order(Order::Down);
    }

    /// Comes back, on the same port.
    pub(crate) fn up(&self) {
        self.order(Order::Up);
    }

    fn order(&self, order: Order) {
        let (done, is_done) = std::sync::mpsc::channel();
        let orders = self.orders.as_ref().expect("the server runs");
        assert!(orders.send((order, done)).is_ok(), "the server has ended");
        is_done.recv_timeout(LONG).expect("the server obeys");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // It has shown its panic already.
            thread.join().ok();
        }
    }
}

mod tests;
