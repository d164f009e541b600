//! The read-only tree: what names mean, what attributes things have, what their bytes are.
//!
//! ```text
//! /<database>/latest.db                        link to the newest restore point's name
//! /<database>/2026-11-20T17-45-12.345678Z.db   a restore point; some are listed, as asked for
//! /<database>/<any other time>.db              the same files under names that are not listed
//! /<database>/by-time/2026/11/20/17/...        the commits of an hour
//! /<database>/by-txid/<generation>-<txid>.db   every commit, those too that no time means
//! /<database>/.sqlrepl/status.json             what is known, and how new it is; not listed
//! /<database>/.sqlrepl/points.jsonl            all restore points
//! /.sqlrepl/status.json                        the same of all databases
//! ```
//! Names and attributes come from memory, so no method without `async` ever waits. Where an answer
//! should first look for what is new, [`Answer`] says so and the caller decides how long to wait.
//! Nothing here is FUSE's, and no restore point changes once it was answered: an inode is one for
//! as long as the mount lives.

mod about;
mod attributes;
mod curated;
mod lines;
mod names;

pub use about::Text;

use crate::config::Clock;
use crate::error::{Error, Result};
use crate::format::ids::{GenerationId, RestorePoint, Timestamp, Txid};
use crate::materialize::cache::BlockCache;
use crate::materialize::pages::Database;
use crate::materialize::replica::Replica;
use crate::mount::calls::{Call, Calls};
use crate::mount::complaints::Complaints;
use crate::mount::discover::{self, Before, Informants, Place, Source};
use crate::mount::follow::{Follow, Look, Need};
use crate::mount::inode::{DatabaseNumber, Inode, Meaning, Slots};
use crate::mount::locked;
use crate::mount::opened::Opened;
use crate::storage::Store;
use crate::storage::circuit::CircuitStore;
use crate::storage::informed::Informed;
use lines::Shown;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LATEST: &str = "latest.db";
const BY_TIME: &str = "by-time";
const BY_TXID: &str = "by-txid";
const ABOUT: &str = ".sqlrepl";
const STATUS: &str = "status.json";
const POINTS: &str = "points.jsonl";
const SUFFIX: &str = ".db";

/// Of names whose meaning changes only if history itself does: a late second writer, thinning.
const SETTLED_TTL: Duration = Duration::from_secs(60);

/// Of names and attributes that mean something else with the next commit, at most.
const MOVING_TTL_MAX: Duration = Duration::from_secs(1);

/// How the tree keeps up with the store.
#[derive(Clone, Copy, Debug)]
pub struct ViewOptions {
    /// At least this long between two looks at one database.
    pub refresh: Duration,
    /// How long anyone waits for a look.
    pub patience: Duration,
    /// Which restore points the directory of a database shows.
    pub listed: Listed,
}

/// Which restore points a directory shows; all of them have names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listed {
    /// Every one that a time means.
    All,
    /// The newest hundred, and before them the last of each minute, hour or day.
    #[default]
    Curated,
    /// None.
    None,
}

/// What a thing in the tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The root, a database, or a way to name its commits.
    Directory,
    /// `latest.db`.
    Link,
    /// A restore point.
    File,
    /// `status.json` or `points.jsonl`: made when it is opened.
    Text,
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The inode number.
    pub inode: Inode,
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// When the commit was seen; of a directory, the newest commit in it.
    pub time: Timestamp,
    /// How long these may be remembered.
    pub ttl: Duration,
}

/// A name and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the name means.
    pub attributes: Attributes,
    /// How long the name may be remembered to mean that.
    pub ttl: Duration,
}

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Something.
    Entry(Entry),
    /// Nothing, for at least this long.
    Nothing(Duration),
}

/// One line of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Where to go on behind this line: made from what the line is, never from where it stands, so
    /// that a directory that grows meanwhile neither skips nor repeats.
    pub cookie: u64,
    /// The name.
    pub name: String,
    /// What it means.
    pub entry: Entry,
    place: PlaceInDirectory,
}

/// The order of a directory's lines: what is always there, then the commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PlaceInDirectory {
    Fixed(u64),
    Moment(GenerationId, Txid),
}

/// What an open file reads.
#[derive(Clone)]
pub enum Contents {
    /// A restore point.
    Moment(Arc<Database>),
    /// What was known when it was opened.
    Text(Arc<Text>),
}

impl Contents {
    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Moment(database) => database.size(),
            Self::Text(text) => text.size(),
        }
    }
}

/// What to look at in the store.
#[derive(Clone)]
pub enum Subject {
    /// Which databases there are.
    Root,
    /// One database's commits.
    Database(Arc<Member>),
}

/// How new an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// As new as [`ViewOptions::refresh`] says.
    Fresh,
    /// Whatever is known: the caller has looked, or tried to.
    Known,
}

/// An answer from memory, and what the store should be asked for it.
#[derive(Clone)]
pub enum Answer<T> {
    /// New enough.
    Now(T),
    /// An answer to give at once; look at this behind it.
    Behind(T, Subject),
    /// Look at this, then ask again with [`How::Known`].
    After(Subject),
}

/// The tree.
pub struct View {
    sources: Vec<Source>,
    informants: Option<Arc<dyn Informants>>,
    cache: Arc<BlockCache>,
    clock: Clock,
    options: ViewOptions,
    started: Timestamp,
    root: Arc<Follow>,
    databases: Mutex<Databases>,
    slots: Mutex<Slots>,
    opened: Mutex<Opened>,
    calls: Calls,
    complaints: Mutex<Complaints>,
}

/// The databases seen so far.
#[derive(Default)]
struct Databases {
    /// Number n stands at n - 1. One that goes stays here, in case that it comes back.
    all: Vec<Arc<Member>>,
    by_name: BTreeMap<String, Arc<Member>>,
}

/// One database.
pub struct Member {
    number: DatabaseNumber,
    place: Place,
    replica: Arc<Replica>,
    /// `None` if no daemon can be asked what changes.
    informed: Option<Arc<Informed>>,
    follow: Arc<Follow>,
    /// Made when asked for, forgotten when something may be new.
    shown: Mutex<Option<Arc<Shown>>>,
    complaints: Mutex<Complaints>,
}

impl View {
    /// The tree of the replicas in `sources`. Reads nothing yet.
    pub fn new(
        sources: Vec<Source>,
        informants: Option<Arc<dyn Informants>>,
        cache: Arc<BlockCache>,
        options: ViewOptions,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            sources,
            informants,
            cache,
            started: clock(),
            clock,
            options,
            root: Follow::new("the list of databases".to_owned()),
            databases: Mutex::default(),
            slots: Mutex::default(),
            opened: Mutex::default(),
            calls: Calls::default(),
            complaints: Mutex::default(),
        })
    }

    /// Counts what was asked for; `status.json` of the root shows it.
    pub fn count(&self, call: Call) {
        self.calls.count(call);
    }

    /// The first look for databases, for a caller who wants to know why it failed; gives how many
    /// there are.
    ///
    /// # Errors
    /// `Unavailable`, and `Invalid` if two replicas have one name.
    pub async fn start(&self) -> Result<usize> {
        let started = (self.clock)();
        if let Err(error) = self.discover().await {
            self.root.failed((self.clock)(), &error);
            return Err(error);
        }
        self.root.seen(started);
        Ok(locked(&self.databases).by_name.len())
    }

    /// Looks at the store; everybody who asks meanwhile gets the same look. Must be called within
    /// the runtime.
    pub fn look(self: &Arc<Self>, subject: Subject) -> Look {
        match subject {
            Subject::Root => {
                let view = self.clone();
                self.root
                    .look(&self.clock, async move { view.discover().await })
            }
            Subject::Database(member) => member
                .clone()
                .follow
                .look(&self.clock, async move { member.refresh().await }),
        }
    }

    async fn discover(&self) -> Result<()> {
        let before = |place: &Place| {
            let databases = locked(&self.databases);
            let member = databases.all.iter().find(|member| member.place == *place);
            match member {
                None => Before::New,
                Some(member) if member.follow.is_failing() => Before::Failing,
                Some(_) => Before::Found,
            }
        };
        let found = discover::replicas(&self.sources, &before).await?;
        for error in &found.passed_over {
            if locked(&self.complaints).is_news(&error.to_string(), Instant::now()) {
                tracing::warn!("a replica is passed over: {error}");
            }
        }
        let mut databases = locked(&self.databases);
        let all = &mut databases.all;
        let by_name = found
            .by_name
            .into_iter()
            .map(|(name, place)| (name, self.member(all, place)))
            .collect();
        databases.by_name = by_name;
        Ok(())
    }

    /// The database at a place, with a number of its own if it is seen for the first time.
    fn member(&self, all: &mut Vec<Arc<Member>>, place: Place) -> Arc<Member> {
        if let Some(member) = all.iter().find(|member| member.place == place) {
            return member.clone();
        }
        let mut store: Arc<dyn Store> = CircuitStore::new(place.store(&self.sources));
        let informants = self.informants.as_ref();
        let informant = informants.and_then(|informants| informants.of(&place));
        // Outside of the circuit: what a daemon tells and keeps is there when the store is away.
        let informed =
            informant.map(|informant| Informed::new(store.clone(), informant, self.clock.clone()));
        if let Some(informed) = &informed {
            store = informed.clone();
        }
        let number = u32::try_from(all.len() + 1).expect("a listing has less than 2^32 folders");
        let member = Arc::new(Member {
            number: DatabaseNumber(number),
            place,
            follow: Follow::new(store.location().to_owned()),
            replica: Replica::new(store, self.cache.clone()),
            informed,
            shown: Mutex::default(),
            complaints: Mutex::default(),
        });
        all.push(member.clone());
        member
    }

    /// What an inode reads, if that is in memory: what somebody has open, and texts.
    pub fn opened(&self, inode: Inode) -> Option<Contents> {
        match self.text(inode) {
            Some(text) => Some(Contents::Text(Arc::new(text))),
            None => locked(&self.opened).get(inode).map(Contents::Moment),
        }
    }

    /// Opens the moment of an inode.
    ///
    /// # Errors
    /// `NotFound` if it is gone, `Invalid` if the inode is no file, `Corrupt`, `Unavailable`.
    pub async fn open(&self, inode: Inode) -> Result<Contents> {
        let (member, point) = self.moment(inode)?;
        let database = member.replica.open(&point).await?;
        let database = locked(&self.opened).keep(inode, database);
        Ok(Contents::Moment(database))
    }

    /// The words by which messages name an inode: a database, and a moment of it.
    pub fn describe(&self, inode: Inode) -> String {
        match self.moment(inode) {
            Ok((member, point)) => format!(
                "{} at {} ({}-{})",
                member.follow.name(),
                point.time,
                point.generation,
                point.txid
            ),
            Err(_) => format!("inode {:#x}", inode.0),
        }
    }

    /// Answers from memory if that is new enough.
    fn answer<T>(
        &self,
        subject: Subject,
        how: How,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Answer<T>> {
        let need = self.need(&subject, how, self.options.refresh);
        self.answer_with(need, subject, make)
    }

    /// The same where new commits cannot change the answer: history itself is looked at again now
    /// and then, behind it.
    fn settled_answer<T>(
        &self,
        subject: Subject,
        how: How,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Answer<T>> {
        let need = match self.need(&subject, how, SETTLED_TTL.max(self.options.refresh)) {
            Need::Wait => Need::Behind,
            need => need,
        };
        self.answer_with(need, subject, make)
    }

    fn need(&self, subject: &Subject, how: How, interval: Duration) -> Need {
        match how {
            How::Known => Need::Nothing,
            How::Fresh => {
                subject
                    .follow(self)
                    .need((self.clock)(), interval, self.options.patience)
            }
        }
    }

    fn answer_with<T>(
        &self,
        need: Need,
        subject: Subject,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Answer<T>> {
        if need == Need::Wait {
            return Ok(Answer::After(subject));
        }
        let follow = subject.follow(self);
        if !follow.is_known() {
            return Err(Error::unavailable(format!(
                "{} could not be read yet",
                follow.name()
            )));
        }
        let answer = make()?;
        Ok(match need {
            Need::Behind => Answer::Behind(answer, subject),
            Need::Nothing | Need::Wait => Answer::Now(answer),
        })
    }

    fn meaning(&self, inode: Inode) -> Result<Meaning> {
        inode.meaning().ok_or_else(|| not_here("no such inode"))
    }

    fn database(&self, number: DatabaseNumber) -> Result<Arc<Member>> {
        let databases = locked(&self.databases);
        let member = databases.all.get(number.0 as usize - 1).cloned();
        member.ok_or_else(|| not_here("no such database"))
    }

    /// The restore point of an inode.
    fn moment(&self, inode: Inode) -> Result<(Arc<Member>, RestorePoint)> {
        let Meaning::Moment(slot, txid) = self.meaning(inode)? else {
            return Err(Error::invalid("not a file"));
        };
        let pair = locked(&self.slots).pair(slot);
        let (number, generation) = pair.ok_or_else(|| not_here("no such inode"))?;
        let member = self.database(number)?;
        match member.replica.point(generation, txid) {
            Some(point) => Ok((member, point)),
            None => Err(not_here("the restore point is gone")),
        }
    }
}

impl Member {
    async fn refresh(&self) -> Result<()> {
        self.replica.refresh().await?;
        if let Some(informed) = &self.informed {
            informed.set_claim(self.replica.highest_claim());
        }
        *locked(&self.shown) = None;
        for trouble in self.replica.troubles() {
            let trouble = trouble.to_string();
            if locked(&self.complaints).is_news(&trouble, Instant::now()) {
                tracing::warn!("{}: {trouble}", self.follow.name());
            }
        }
        Ok(())
    }
}

impl Subject {
    fn follow<'a>(&'a self, view: &'a View) -> &'a Arc<Follow> {
        match self {
            Self::Root => &view.root,
            Self::Database(member) => &member.follow,
        }
    }
}

/// The name under which a restore point is listed.
fn file_name(point: &RestorePoint) -> String {
    point.time.file_name() + SUFFIX
}

fn not_here(sentence: &str) -> Error {
    Error::not_found(sentence)
}

#[cfg(test)]
mod history;
#[cfg(test)]
mod informed;
#[cfg(test)]
mod tests;
