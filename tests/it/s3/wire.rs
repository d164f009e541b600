//! What goes wrong on the wire: each fault in each kind of request. A call either gives what it
//! should, or fails in time with a kind and a sentence; nothing half done is ever seen.

use super::contract::Bucket;
use crate::program::{LONG, wait_until};
use crate::s3_server::{Call, Fault, Verb};
use crate::world::World;
use bytes::Bytes;
use sqlrepl::error::{Error, ErrorKind};
use sqlrepl::format::ids::Timestamp;
use sqlrepl::storage::retry::{RetrySettings, RetryStore};
use sqlrepl::storage::s3::S3Store;
use sqlrepl::storage::{Body, Store};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// More than goes up in one request.
const LARGE: usize = (16 << 20) + 1;

/// What goes wrong for a time only.
const TRANSIENT: [Fault; 9] = [
    Fault::Refuse(500, "InternalError"),
    Fault::Refuse(503, "SlowDown"),
    Fault::Refuse(429, "TooManyRequests"),
    Fault::Refuse(409, "ConditionalRequestConflict"),
    Fault::Cut,
    Fault::LoseReply,
    Fault::CutBody,
    Fault::Stall,
    Fault::Flip,
];

/// What a test asks of a store so that it makes a kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Put,
    PutInParts,
    Read,
    ReadNothing,
    List,
    Delete,
    Abort,
}

const WORKS: [(Verb, Work); 10] = [
    (Verb::Put, Work::Put),
    (Verb::CreateUpload, Work::PutInParts),
    (Verb::UploadPart, Work::PutInParts),
    (Verb::CompleteUpload, Work::PutInParts),
    (Verb::Get, Work::Read),
    (Verb::Head, Work::ReadNothing),
    (Verb::List, Work::List),
    (Verb::Delete, Work::Delete),
    (Verb::ListUploads, Work::Abort),
    (Verb::AbortUpload, Work::Abort),
];

/// A store in which one kind of work is done again and again, each time under another key.
struct Bench {
    bucket: Bucket,
    work: Work,
    number: AtomicU64,
    large: tempfile::NamedTempFile,
}

impl Bench {
    fn new(work: Work) -> Self {
        let mut large = tempfile::NamedTempFile::new().unwrap();
        if work == Work::PutInParts {
            let mut content = vec![0; LARGE];
            blake3::Hasher::new().finalize_xof().fill(&mut content);
            std::io::Write::write_all(&mut large, &content).unwrap();
        }
        Self {
            bucket: Bucket::new(),
            work,
            number: AtomicU64::new(0),
            large,
        }
    }

    fn file(&self, key: &str) -> std::path::PathBuf {
        self.bucket.root.path().join("tests/app").join(key)
    }

    /// Does the work, in so many attempts, under a rule that holds from its beginning.
    async fn run(
        &self,
        attempts: u64,
        rule: impl Fn(&Call) -> Option<Fault> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let key = format!("folder/{number}");
        let place = self.bucket.server.place("tests", "app");
        let settings = RetrySettings {
            first_wait: Duration::from_millis(1),
            longest_wait: Duration::from_millis(10),
            // A large object takes its time where eight programs run besides.
            attempt: match self.work {
                Work::PutInParts => Duration::from_secs(5),
                _ => Duration::from_secs(1),
            },
            attempts,
            total: Duration::ZERO,
            slowest: 1 << 40,
            ..RetrySettings::default()
        };
        let store = RetryStore::new(S3Store::with_retries(place, settings), settings);
        self.prepare(&key).await;
        self.bucket.server.reset();
        self.bucket.server.set_rule(rule);
        let done = self.call(&*store, &key).await;
        self.bucket.server.heal();
        self.check(&key, done.is_ok());
        done
    }

    /// What must be there before.
    async fn prepare(&self, key: &str) {
        let folder = self.file("folder");
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(&folder).unwrap();
        match self.work {
            Work::Put | Work::PutInParts => {}
            Work::Read | Work::ReadNothing | Work::List | Work::Delete => {
                fs::write(self.file(key), "0123456789").unwrap();
            }
            Work::Abort => self
                .bucket
                .server
                .leave_upload("tests", &format!("app/{key}")),
        }
    }

    async fn call(&self, store: &dyn Store, key: &str) -> Result<(), Error> {
        match self.work {
            Work::Put => {
                let body = Body::Bytes(Bytes::from("0123456789"));
                store.put(key, body).await.map(drop)
            }
            Work::PutInParts => {
                let body = Body::File(self.large.path().to_owned());
                store.put(key, body).await.map(drop)
            }
            Work::Read => {
                let bytes = store.get_range(key, 2, 6).await?;
                // Wrong bytes are found by the checksums of what reads an object.
                assert_eq!(bytes.len(), 6);
                Ok(())
            }
            Work::ReadNothing => store.get_range(key, 10, 0).await.map(drop),
            Work::List => {
                let listed = store.list("folder/", None).await?;
                let keys: Vec<&str> = listed.iter().map(|object| object.key.as_str()).collect();
                assert_eq!(keys, [key]);
                let names = store.list_folder("folder/").await?;
                assert_eq!(names, [key.trim_start_matches("folder/")]);
                Ok(())
            }
            Work::Delete => store.delete(&[key.to_owned()]).await,
            Work::Abort => {
                let later = Timestamp::from_micros(i64::MAX / 2);
                store.abort_unfinished("folder/", later).await.map(drop)
            }
        }
    }

    /// How many calls the work takes.
    async fn usual(&self) -> usize {
        self.least(|| |_: &Call| None).await
    }

    /// How many calls it takes under a rule: the least of three times, since an answer that comes
    /// late is asked for again.
    async fn least<R>(&self, rule: impl Fn() -> R) -> usize
    where
        R: Fn(&Call) -> Option<Fault> + Send + Sync + 'static,
    {
        let mut least = usize::MAX;
        for _ in 0..3 {
            self.run(5, rule()).await.unwrap();
            least = least.min(self.bucket.server.calls().len());
        }
        least
    }

    /// Waits until the server has no unfinished upload any more.
    async fn await_given_up(&self, verb: Verb, fault: &Fault) {
        let later = Timestamp::from_micros(i64::MAX / 2);
        if matches!(fault, Fault::LoseReply | Fault::CutBody) && verb == Verb::CreateUpload {
            // Nobody knows the number of these.
            let store = S3Store::new(self.bucket.server.place("tests", "app"));
            assert!(store.abort_unfinished("folder/", later).await.unwrap() > 0);
        }
        if self.work == Work::PutInParts {
            tokio::task::block_in_place(|| {
                wait_until(LONG, "the upload to be given up", || {
                    self.bucket.server.uploads().is_empty()
                });
            });
        }
    }

    /// What the server has after a call that succeeded or failed.
    fn check(&self, key: &str, done: bool) {
        let what = format!("{:?} ({done})", self.work);
        let stored = fs::read(self.file(key)).ok();
        match self.work {
            Work::Put | Work::PutInParts => {
                let whole = match self.work {
                    Work::Put => b"0123456789".to_vec(),
                    _ => fs::read(self.large.path()).unwrap(),
                };
                assert!(
                    stored.as_ref().is_none_or(|bytes| *bytes == whole),
                    "{what}"
                );
                assert!(stored.is_some() || !done, "{what}");
            }
            Work::Delete => assert!(stored.is_none() || !done, "{what}"),
            Work::Abort => assert!(self.bucket.server.uploads().is_empty() || !done, "{what}"),
            _ => assert_eq!(stored.as_deref(), Some(&b"0123456789"[..]), "{what}"),
        }
    }
}

/// Whether a fault can be seen in a kind of request; a wrong bit in the words of an answer cannot.
fn shows(fault: &Fault, verb: Verb) -> bool {
    match fault {
        Fault::Flip => matches!(verb, Verb::Put | Verb::UploadPart),
        // Their answers have no body.
        Fault::CutBody => !matches!(verb, Verb::Head | Verb::AbortUpload),
        Fault::Refuse(409, _) => matches!(verb, Verb::Put | Verb::CompleteUpload),
        _ => true,
    }
}

fn on(verb: Verb, fault: Fault) -> impl Fn(&Call) -> Option<Fault> {
    move |call| (call.verb == verb).then(|| fault.clone())
}

fn once(verb: Verb, fault: Fault) -> impl Fn(&Call) -> Option<Fault> {
    move |call| (call.verb == verb && call.number == 1).then(|| fault.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_once_is_made_up_for_in_every_kind_of_request() {
    let works = WORKS.map(|(verb, work)| {
        tokio::spawn(async move {
            let bench = Bench::new(work);
            let usual = bench.usual().await;
            for fault in TRANSIENT.iter().filter(|fault| shows(fault, verb)) {
                let done = bench.run(5, once(verb, fault.clone()));
                let done = done.await;
                assert!(done.is_ok(), "{verb:?}, {fault:?}: {done:?}");
                let asked = bench.bucket.server.calls();
                assert!(asked.len() > usual, "{verb:?}, {fault:?}: {asked:?}");
            }
            // Slow, but going on: not a failure.
            let slow = once(verb, Fault::Slow(Duration::from_millis(300)));
            bench.run(5, slow).await.unwrap();
        })
    });
    for work in works {
        work.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_again_and_again_fails_and_leaves_nothing_half_done() {
    let works = WORKS.map(|(verb, work)| {
        tokio::spawn(async move {
            let bench = Bench::new(work);
            let attempts = if work == Work::PutInParts { 1 } else { 2 };
            for fault in TRANSIENT.iter().filter(|fault| shows(fault, verb)) {
                let done = bench.run(attempts, on(verb, fault.clone()));
                let done = done.await;
                let what = format!("{verb:?}, {fault:?}");
                let Err(error) = done else {
                    // The first attempt did it; that its reply was lost, the second found out.
                    assert!(matches!(fault, Fault::LoseReply | Fault::CutBody), "{what}");
                    continue;
                };
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{what}: {error}");
                let says = error.to_string();
                assert!(says.contains("s3://tests/app"), "{what}: {says}");
                bench.await_given_up(verb, fault).await;
            }
        })
    });
    for work in works {
        work.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_gone_up_of_an_upload_is_not_sent_again_when_one_part_fails() {
    for verb in [Verb::UploadPart, Verb::CompleteUpload] {
        let bench = Bench::new(Work::PutInParts);
        let usual = bench.usual().await;
        let busy = || once(verb, Fault::Refuse(500, "InternalError"));
        assert_eq!(bench.least(busy).await, usual + 1, "{verb:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_not_asked_again() {
    for (verb, work) in WORKS {
        let bench = Bench::new(work);
        let refuse = on(verb, Fault::Refuse(403, "AccessDenied"));
        let error = bench.run(5, refuse).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{verb:?}: {error}");
        let calls = bench.bucket.server.counts().calls[&verb];
        // Several parts may be on their way at a time.
        let at_most = if verb == Verb::UploadPart { 8 } else { 1 };
        assert!(calls <= at_most, "{verb:?}: {calls} calls");
    }
}

/// Others may be sending just now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_unfinished_uploads_only_those_that_began_before_a_time_are_given_up() {
    const DAY: i64 = 24 * 3600;
    let bucket = Bucket::new();
    for (days, key) in [(8, "app/folder/old"), (6, "app/folder/young")] {
        bucket.server.set(|s| s.clock_ahead = -days * DAY);
        bucket.server.leave_upload("tests", key);
    }
    bucket.server.set(|s| s.clock_ahead = 0);
    let store = S3Store::new(bucket.server.place("tests", "app"));
    let now = i64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let week = Timestamp::from_micros((now - 7 * DAY) * 1_000_000);
    assert_eq!(store.abort_unfinished("", week).await.unwrap(), 1);
    assert_eq!(bucket.server.uploads(), ["app/folder/young"]);
}

#[tokio::test]
async fn a_server_that_is_down_is_unavailable_and_named() {
    let bucket = Bucket::new();
    bucket.server.down();
    let store: Arc<dyn Store> = S3Store::new(bucket.server.place("tests", "app"));
    let error = store.list("", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let host = bucket.server.endpoint().replace("http://", "");
    let says = error.to_string();
    assert!(says.contains(&host) && says.contains("refused"), "{says}");
    bucket.server.up();
    store.list("", None).await.unwrap();
}

/// Every answer with an object's bytes has a wrong bit in one run: a restore either has asked again
/// or says which object is wrong, and never writes a wrong byte.
#[test]
fn wrong_bytes_on_the_wire_never_reach_a_restored_file() {
    let world = World::on_s3();
    world.sample();
    let mut daemon = world.daemon();
    for n in 0..3 {
        world.sql(
            "app.db",
            &format!("UPDATE t SET v = 'version {n}' WHERE id = 1"),
        );
        world.sync();
    }
    assert_eq!(daemon.term(), 0);
    world.restore("good.db", "");
    let good = fs::read(world.path("good.db")).unwrap();
    let server = world.server();
    let mut seen = 0;
    for number in 1.. {
        server.reset();
        server.set_rule(once_number(Verb::Get, number));
        let output = world.sqlrepl("restore -o out.db replicas/app");
        if server.counts().calls[&Verb::Get] < number {
            break;
        }
        seen += 1;
        if output.code == 0 {
            assert!(
                fs::read(world.path("out.db")).unwrap() == good,
                "answer {number}"
            );
        } else {
            let output = output.fails(1, "generations/");
            assert!(!Path::exists(&world.path("out.db")), "{output}");
        }
        fs::remove_file(world.path("out.db")).ok();
    }
    assert!(seen >= 2, "only {seen} answers");
}

fn once_number(verb: Verb, number: u64) -> impl Fn(&Call) -> Option<Fault> {
    move |call| (call.verb == verb && call.number == number).then_some(Fault::Flip)
}
