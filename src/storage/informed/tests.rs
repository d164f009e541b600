use super::*;
use crate::error::{Error, ErrorKind};
use crate::format::ids::{DatabaseId, WriterId};
use crate::storage::changes::{Changes, Recorded, Since};
use crate::storage::conformance::check_store;
use crate::storage::fault::{Fault, FaultStore, Verb, every};
use crate::storage::memory::MemoryStore;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

const GENERATION: GenerationId = GenerationId {
    ordinal: 1,
    random: 2,
};

/// How a daemon answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Tells,
    Gone,
    Silent,
}

/// A daemon, and whoever asks it.
struct Daemon {
    changes: Mutex<Arc<Changes>>,
    generation: Mutex<GenerationId>,
    mood: Mutex<Mood>,
    asked: AtomicU64,
}

#[async_trait]
impl Informant for Daemon {
    async fn news(&self, claim: &Claim, since: Option<Mark>) -> Result<Option<News>> {
        assert_eq!(claim.path, "/data/app.db");
        self.asked.fetch_add(1, Ordering::Relaxed);
        match *self.mood.lock().unwrap() {
            Mood::Gone => return Ok(None),
            Mood::Silent => return Err(Error::unavailable("it does not answer")),
            Mood::Tells => {}
        }
        let Since { mark, changes } = self.changes.lock().unwrap().since(since);
        Ok(Some(News {
            mark,
            changes,
            generation: Some(*self.generation.lock().unwrap()),
            kept: "/absent".into(),
        }))
    }
}

struct World {
    stored: Arc<MemoryStore>,
    /// Between the daemon and the store.
    line: Arc<FaultStore>,
    daemon: Arc<Daemon>,
    /// Between the reader and the store.
    reads: Arc<FaultStore>,
    informed: Arc<Informed>,
    seconds: Arc<AtomicI64>,
    epoch: u64,
}

impl World {
    /// A replica with a claim, and a reader that has looked twice: since then it is informed.
    async fn new() -> Self {
        let world = Self::unseen().await;
        world.list().await;
        world.informed.set_claim(Some(claim(GENERATION)));
        world.list().await;
        assert!(world.informed.is_informed());
        world
    }

    async fn unseen() -> Self {
        let stored = MemoryStore::new();
        let (line, reads) = (
            FaultStore::new(stored.clone()),
            FaultStore::new(stored.clone()),
        );
        let daemon = Arc::new(Daemon {
            changes: Mutex::new(Changes::new(1000)),
            generation: Mutex::new(GENERATION),
            mood: Mutex::new(Mood::Tells),
            asked: AtomicU64::new(0),
        });
        let seconds = Arc::new(AtomicI64::new(0));
        let now = seconds.clone();
        let clock: Clock =
            Arc::new(move || Timestamp::from_micros(now.load(Ordering::Relaxed) * 1_000_000));
        let informed = Informed::new(reads.clone(), daemon.clone(), clock);
        let world = Self {
            stored,
            line,
            daemon,
            reads,
            informed,
            seconds,
            epoch: 1000,
        };
        world.claim(GENERATION).await;
        world
    }

    /// The store as the daemon has it.
    fn recorded(&self) -> Arc<Recorded> {
        let changes = self.daemon.changes.lock().unwrap().clone();
        Recorded::new(self.line.clone(), changes)
    }

    async fn claim(&self, generation: GenerationId) {
        let body = Body::Bytes(claim(generation).encode().into());
        let key = claim_key(generation);
        self.recorded().put(&key, body).await.unwrap();
    }

    async fn put(&self, number: u64) -> Result<Put> {
        let body = Body::Bytes(vec![0; number as usize].into());
        self.recorded().put(&upload(number), body).await
    }

    /// Another start of the daemon.
    fn restart(&mut self) {
        self.epoch += 1000;
        *self.daemon.changes.lock().unwrap() = Changes::new(self.epoch);
    }

    fn is(&self, mood: Mood) {
        *self.daemon.mood.lock().unwrap() = mood;
    }

    fn pass(&self, seconds: i64) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
    }

    async fn list(&self) -> Vec<Listed> {
        self.informed.list(GENERATIONS, None).await.unwrap()
    }

    /// Lists; how many requests that took. What was listed is what is there.
    async fn look(&self) -> u64 {
        let before = self.reads.counts(Verb::List).calls;
        let listed = self.list().await;
        assert_eq!(listed, self.stored.list(GENERATIONS, None).await.unwrap());
        self.reads.counts(Verb::List).calls - before
    }

    fn asked(&self) -> u64 {
        self.daemon.asked.load(Ordering::Relaxed)
    }
}

fn claim(generation: GenerationId) -> Claim {
    Claim {
        generation,
        database_id: DatabaseId([1; 16]),
        writer_id: WriterId([2; 8]),
        parent: None,
        host: "host".into(),
        path: "/data/app.db".into(),
        started: Timestamp::from_micros(1),
        reason: "first start".into(),
    }
}

fn claim_key(generation: GenerationId) -> String {
    let object = ObjectKey::Claim;
    Key { generation, object }.to_string()
}

fn upload(number: u64) -> String {
    format!("{GENERATIONS}{GENERATION}/wal/0/{number:016x}.wal")
}

#[tokio::test]
async fn it_keeps_to_the_contract_of_a_store() {
    let daemon = World::unseen().await.daemon;
    let clock: Clock = Arc::new(|| Timestamp::from_micros(0));
    check_store(|| Informed::new(MemoryStore::new(), daemon.clone(), clock.clone())).await;
}

#[tokio::test]
async fn nobody_is_asked_before_it_is_known_whom_to_ask() {
    let world = World::unseen().await;
    for _ in 0..2 {
        assert_eq!(world.look().await, 1);
        assert_eq!(world.asked(), 0);
    }
    world.informed.set_claim(Some(claim(GENERATION)));
    assert_eq!(world.look().await, 1);
    assert_eq!(world.asked(), 1);
    for _ in 0..3 {
        assert_eq!(world.look().await, 0);
    }
    world.informed.set_claim(None);
    assert_eq!(world.look().await, 1);
    assert_eq!(world.asked(), 4);
}

#[tokio::test]
async fn what_the_daemon_stores_and_deletes_is_listed_without_a_request() {
    let world = World::new().await;
    for number in 2..10 {
        world.put(number).await.unwrap();
        assert_eq!(world.look().await, 0, "{number}");
    }
    let keys = [upload(3), upload(5)];
    world.recorded().delete(&keys).await.unwrap();
    assert_eq!(world.look().await, 0);
    assert_eq!(world.list().await.len(), 7);
}

#[tokio::test]
async fn once_a_minute_the_store_is_listed_all_the_same() {
    let world = World::new().await;
    // Another machine's.
    let body = Body::Bytes(Bytes::new());
    world.stored.put(&upload(2), body).await.unwrap();
    world.pass(59);
    assert_eq!(world.list().await.len(), 1);
    world.pass(1);
    assert_eq!(world.look().await, 1);
    assert_eq!(world.list().await.len(), 2);
    assert_eq!(world.look().await, 0);
    // A clock that was set back.
    world.pass(-30);
    assert_eq!(world.look().await, 1);
}

#[tokio::test]
async fn a_daemon_that_went_away_or_began_anew_is_no_loss() {
    let mut world = World::new().await;
    world.is(Mood::Gone);
    world.put(2).await.unwrap();
    assert_eq!(world.look().await, 1);
    assert!(!world.informed.is_informed());
    assert_eq!(world.look().await, 1);
    world.restart();
    world.is(Mood::Tells);
    assert_eq!(world.look().await, 1);
    assert!(world.informed.is_informed());
    world.put(3).await.unwrap();
    assert_eq!(world.look().await, 0);
    world.restart();
    world.put(4).await.unwrap();
    assert_eq!(world.look().await, 1);
    assert_eq!(world.look().await, 0);
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_is_left_alone_for_a_minute() {
    let world = World::new().await;
    world.is(Mood::Silent);
    let before = world.asked();
    for _ in 0..59 {
        world.pass(1);
        assert_eq!(world.look().await, 1);
    }
    assert_eq!(world.asked(), before + 1);
    world.is(Mood::Tells);
    world.pass(2);
    assert_eq!(world.look().await, 1);
    assert_eq!(world.look().await, 0);
}

#[tokio::test]
async fn a_daemon_that_does_not_write_the_highest_generation_is_not_believed() {
    let world = World::new().await;
    let ours = GenerationId {
        ordinal: 2,
        ..GENERATION
    };
    // It begins another one: for a moment it says that it writes the one before.
    world.claim(ours).await;
    assert_eq!(world.look().await, 1);
    assert!(!world.informed.is_informed());
    *world.daemon.generation.lock().unwrap() = ours;
    world.look().await;
    assert_eq!(world.look().await, 0);
    // Another machine takes over.
    let theirs = GenerationId {
        ordinal: 3,
        ..GENERATION
    };
    let body = Body::Bytes(claim(theirs).encode().into());
    world.stored.put(&claim_key(theirs), body).await.unwrap();
    world.pass(60);
    for _ in 0..3 {
        assert_eq!(world.look().await, 1);
        assert!(!world.informed.is_informed());
    }
}

#[tokio::test]
async fn what_is_in_doubt_is_listed_by_the_store() {
    let world = World::new().await;
    // What a daemon that lies would lead to.
    world
        .stored
        .put(&upload(2), Body::Bytes(Bytes::new()))
        .await
        .unwrap();
    assert_eq!(world.list().await.len(), 1);
    world.informed.doubt_listing();
    assert_eq!(world.look().await, 1);
    assert_eq!(world.look().await, 0);
    // A doubt is not over with a listing that failed.
    world
        .stored
        .put(&upload(3), Body::Bytes(Bytes::new()))
        .await
        .unwrap();
    world.informed.doubt_listing();
    world
        .reads
        .set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
    world.informed.list(GENERATIONS, None).await.unwrap_err();
    assert!(!world.informed.is_informed());
    world.reads.heal();
    assert_eq!(world.look().await, 1);
}

#[tokio::test]
async fn other_questions_go_to_the_store() {
    let world = World::new().await;
    let before = world.reads.counts(Verb::List).calls;
    let prefix = format!("{GENERATIONS}{GENERATION}/");
    assert_eq!(world.informed.list(&prefix, None).await.unwrap().len(), 1);
    let after = world.informed.list(GENERATIONS, Some("h")).await.unwrap();
    assert!(after.is_empty());
    assert_eq!(world.reads.counts(Verb::List).calls, before + 2);
}

/// Random numbers of a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[tokio::test]
async fn it_lists_what_is_there_whatever_the_daemon_goes_through() {
    let (mut looks, mut requests) = (0, 0);
    for seed in 1..=200 {
        println!("seed {seed}");
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let mut world = World::new().await;
        for _ in 0..100 {
            let number = 2 + random.below(100);
            match random.below(20) {
                0..10 => drop(world.put(number).await),
                10..13 => {
                    let numbers = number..number + random.below(20);
                    let keys: Vec<String> = numbers.map(upload).collect();
                    world.recorded().delete(&keys).await.unwrap();
                }
                13 => {
                    let fault = match random.below(2) {
                        0 => Fault::LoseReply,
                        _ => Fault::Refuse(ErrorKind::Unavailable),
                    };
                    world.line.set_rule(every(fault));
                    world.put(number).await.unwrap_err();
                    world
                        .recorded()
                        .delete(&[upload(number + 1)])
                        .await
                        .unwrap_err();
                    world.line.heal();
                }
                14 => world.restart(),
                15 => world.is(Mood::Gone),
                16 => world.informed.doubt_listing(),
                17 => world.pass(random.below(40) as i64),
                _ => world.is(Mood::Tells),
            }
            if random.below(3) > 0 {
                looks += 1;
                requests += world.look().await;
            }
        }
    }
    assert!(
        requests * 3 < looks * 2,
        "{requests} requests for {looks} looks"
    );
}

#[test]
fn a_listing_goes_on_only_while_it_is_believed() {
    let listed = [claim_key(GENERATION), upload(2)].map(|key| Listed {
        key,
        size: 1,
        modified: Timestamp::from_micros(7),
    });
    let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
    let mark = |count| Mark { epoch: 1, count };
    let stored = |number, size| Change::Stored {
        key: upload(number),
        size,
        modified_micros: 9,
    };
    let deleted = |number| Change::Deleted {
        key: upload(number),
    };
    let check = |changes: Option<Vec<Change>>, generation, now, expect: Option<&[(u64, u64)]>| {
        let mut known = Known::new(&listed, mark(3), at(100));
        let news = News {
            mark: mark(8),
            changes,
            generation,
            kept: PathBuf::new(),
        };
        let goes_on = known.go_on(&news, at(now));
        assert_eq!(goes_on, expect.is_some(), "{news:?} at {now}");
        if let Some(expect) = expect {
            let seen: Vec<(String, u64)> = known.list()[1..]
                .iter()
                .map(|object| (object.key.clone(), object.size))
                .collect();
            let expect = expect.iter().map(|(number, size)| (upload(*number), *size));
            assert_eq!(seen, expect.collect::<Vec<_>>());
            assert_eq!(known.mark, mark(8));
        }
    };
    let ours = Some(GENERATION);
    check(Some(vec![]), ours, 100, Some(&[(2, 1)]));
    check(Some(vec![]), ours, 159, Some(&[(2, 1)]));
    check(Some(vec![stored(3, 5)]), ours, 130, Some(&[(2, 1), (3, 5)]));
    // A change that the listing showed already.
    check(Some(vec![stored(2, 1)]), ours, 130, Some(&[(2, 1)]));
    check(Some(vec![deleted(9)]), ours, 130, Some(&[(2, 1)]));
    // The last change of a key counts.
    let anew = vec![deleted(2), stored(2, 6), stored(3, 5), deleted(3)];
    check(Some(anew), ours, 130, Some(&[(2, 6)]));
    check(Some(vec![]), ours, 160, None);
    check(Some(vec![]), ours, 99, None);
    check(None, ours, 100, None);
    check(Some(vec![]), None, 100, None);
    let other = GenerationId {
        ordinal: 1,
        random: 3,
    };
    check(Some(vec![]), Some(other), 100, None);
}
