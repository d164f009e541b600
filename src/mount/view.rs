//! The read-only tree: what names mean, what attributes things have, what their bytes are.
//!
//! ```text
//! /<database>/latest.db                        link to the newest restore point's name
//! /<database>/2026-11-20T17-45-12.345678Z.db   a restore point; the newest 1,000 are listed
//! /<database>/<any other time>.db              the same files under names that are not listed
//! ```
//! Names and attributes come from memory, so no method without `async` ever waits. Where an answer
//! should first look for what is new, [`Answer`] says so and the caller decides how long to wait.
//! Nothing here is FUSE's, and nothing here changes once it was answered: an inode is one restore
//! point for as long as the mount lives.

use crate::config::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::ids::{GenerationId, RestorePoint, Timestamp, Txid};
use crate::format::moment::Moment;
use crate::materialize::cache::BlockCache;
use crate::materialize::pages::Database;
use crate::materialize::replica::{PointsQuery, Replica};
use crate::mount::complaints::Complaints;
use crate::mount::discover::{self, Before, Place, Source};
use crate::mount::follow::{Follow, Look, Need};
use crate::mount::inode::{DatabaseNumber, Inode, Meaning, Slots};
use crate::mount::locked;
use crate::mount::opened::Opened;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How many restore points a directory shows; every other one has a name all the same.
pub const LISTED_POINTS: usize = 1000;

const LATEST: &str = "latest.db";
const SUFFIX: &str = ".db";

/// SQLite looks these up before every statement. The answer can never be another one.
const SIDECARS: [&str; 3] = ["-journal", "-wal", "-shm"];
const SIDECAR_TTL: Duration = Duration::from_secs(3600);

/// Of names whose meaning changes only if history itself does: a late second writer, thinning.
const SETTLED_TTL: Duration = Duration::from_secs(60);

/// Of names and attributes that mean something else with the next commit, at most.
const MOVING_TTL_MAX: Duration = Duration::from_secs(1);

/// Of the attributes of a restore point, which never change.
const MOMENT_TTL: Duration = Duration::from_secs(3600);

/// How the tree keeps up with the store.
#[derive(Clone, Copy, Debug)]
pub struct ViewOptions {
    /// At least this long between two looks at one database.
    pub refresh: Duration,
    /// How long anyone waits for a look.
    pub patience: Duration,
}

/// What a thing in the tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The root, or a database.
    Directory,
    /// `latest.db`.
    Link,
    /// A restore point.
    File,
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

/// All lines of a directory, in order.
pub type Listing = Arc<[Line]>;

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
    cache: Arc<BlockCache>,
    clock: Clock,
    options: ViewOptions,
    started: Timestamp,
    root: Arc<Follow>,
    databases: Mutex<Databases>,
    slots: Mutex<Slots>,
    opened: Mutex<Opened>,
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
    follow: Arc<Follow>,
    /// Made when asked for, forgotten when something may be new.
    listing: Mutex<Option<Listing>>,
    complaints: Mutex<Complaints>,
}

impl View {
    /// The tree of the replicas in `sources`. Reads nothing yet.
    pub fn new(
        sources: Vec<Source>,
        cache: Arc<BlockCache>,
        options: ViewOptions,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            sources,
            cache,
            started: clock(),
            clock,
            options,
            root: Follow::new("the list of databases".to_owned()),
            databases: Mutex::default(),
            slots: Mutex::default(),
            opened: Mutex::default(),
            complaints: Mutex::default(),
        })
    }

    /// The first look for databases, for a caller who wants to know why it failed; gives how many
    /// there are.
    ///
    /// # Errors
    /// `Unavailable`, and `Invalid` if two replicas have one name.
    pub async fn start(&self) -> Result<usize> {
        let started = (self.clock)();
        self.discover().await?;
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
        let store = place.store(&self.sources);
        let number = u32::try_from(all.len() + 1).expect("a listing has less than 2^32 folders");
        let member = Arc::new(Member {
            number: DatabaseNumber(number),
            place,
            follow: Follow::new(store.location().to_owned()),
            replica: Replica::new(store, self.cache.clone()),
            listing: Mutex::default(),
            complaints: Mutex::default(),
        });
        all.push(member.clone());
        member
    }

    /// What a name in a directory means.
    ///
    /// # Errors
    /// `NotFound` for no such directory, `Unavailable` when nothing is known of it yet.
    pub fn lookup(&self, directory: Inode, name: &OsStr, how: How) -> Result<Answer<Found>> {
        let name = name.to_str();
        match self.meaning(directory)? {
            Meaning::Root => self.lookup_database(name, how),
            Meaning::Database(number) => self.lookup_moment(&self.database(number)?, name, how),
            Meaning::Latest(_) | Meaning::Moment(..) => Err(not_here("no directory")),
        }
    }

    fn lookup_database(&self, name: Option<&str>, how: How) -> Result<Answer<Found>> {
        let Some(name) = name else {
            return Ok(Answer::Now(Found::Nothing(SETTLED_TTL)));
        };
        let known = || locked(&self.databases).by_name.get(name).cloned();
        let entry = |member: Arc<Member>| {
            Found::Entry(Entry {
                attributes: self.database_attributes(&member),
                ttl: self.database_ttl(&member),
            })
        };
        if let Some(member) = known() {
            // Another replica may answer while this one fails.
            let need = match self.has_others(&member) && member.follow.is_failing() {
                true => self.need(&Subject::Root, how, self.options.refresh),
                false => Need::Nothing,
            };
            return Ok(match need {
                Need::Nothing => Answer::Now(entry(member)),
                Need::Wait | Need::Behind => Answer::Behind(entry(member), Subject::Root),
            });
        }
        self.answer(Subject::Root, how, || {
            Ok(known().map_or_else(|| Found::Nothing(self.name_ttl(&self.root)), entry))
        })
    }

    fn lookup_moment(
        &self,
        member: &Arc<Member>,
        name: Option<&str>,
        how: How,
    ) -> Result<Answer<Found>> {
        let name = name.unwrap_or("");
        if SIDECARS.iter().any(|suffix| name.ends_with(suffix)) {
            return Ok(Answer::Now(Found::Nothing(SIDECAR_TTL)));
        }
        if name == LATEST {
            return self.answer(Subject::Database(member.clone()), how, || {
                Ok(match self.latest_attributes(member) {
                    Some(attributes) => Found::Entry(Entry {
                        attributes,
                        ttl: self.name_ttl(&member.follow),
                    }),
                    None => Found::Nothing(self.name_ttl(&member.follow)),
                })
            });
        }
        let words = name.strip_suffix(SUFFIX);
        let moment = words.and_then(|words| Moment::parse_time(words, (self.clock)()).ok());
        let (Some(words), Some(moment)) = (words, moment) else {
            return Ok(Answer::Now(Found::Nothing(SETTLED_TTL)));
        };
        let subject = Subject::Database(member.clone());
        if !is_settled(moment, member.replica.newest()) {
            return self.answer(subject, how, || {
                self.resolve(member, moment, self.name_ttl(&member.follow))
            });
        }
        // `5m-ago` needs no look, but means another moment soon.
        let ttl = match Moment::is_relative(words) {
            true => self.moving_ttl(),
            false => SETTLED_TTL,
        };
        self.settled_answer(subject, how, || self.resolve(member, moment, ttl))
    }

    fn resolve(&self, member: &Member, moment: Moment, ttl: Duration) -> Result<Found> {
        match member.replica.resolve(moment) {
            Ok(point) => Ok(Found::Entry(Entry {
                attributes: self.moment_attributes(member, &point)?,
                ttl,
            })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Found::Nothing(ttl)),
            Err(error) => Err(error),
        }
    }

    /// What `stat` shows of an inode that was given out.
    ///
    /// # Errors
    /// `NotFound` if it is gone.
    pub fn attributes(&self, inode: Inode) -> Result<Attributes> {
        match self.meaning(inode)? {
            Meaning::Root => Ok(self.root_attributes()),
            Meaning::Database(number) => Ok(self.database_attributes(&*self.database(number)?)),
            Meaning::Latest(number) => self
                .latest_attributes(&*self.database(number)?)
                .ok_or_else(|| not_here("no restore point yet")),
            Meaning::Moment(..) => {
                let (member, point) = self.moment(inode)?;
                self.moment_attributes(&member, &point)
            }
        }
    }

    /// Where the link of an inode leads.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for no link, `Unavailable` when nothing is known yet.
    pub fn link_target(&self, inode: Inode, how: How) -> Result<Answer<String>> {
        let Meaning::Latest(number) = self.meaning(inode)? else {
            return Err(Error::invalid("not a link"));
        };
        let member = self.database(number)?;
        self.answer(Subject::Database(member.clone()), how, || {
            let newest = member.replica.newest();
            newest
                .map(|point| file_name(&point))
                .ok_or_else(|| not_here("no restore point yet"))
        })
    }

    /// The lines of a directory.
    ///
    /// # Errors
    /// `NotFound` for no such directory, `Unavailable` when nothing is known of it yet.
    pub fn list(&self, directory: Inode, how: How) -> Result<Answer<Listing>> {
        match self.meaning(directory)? {
            Meaning::Root => self.answer(Subject::Root, how, || Ok(self.list_databases())),
            Meaning::Database(number) => {
                let member = self.database(number)?;
                self.answer(Subject::Database(member.clone()), how, || {
                    let mut listing = locked(&member.listing);
                    if listing.is_none() {
                        *listing = Some(self.list_moments(&member)?);
                    }
                    Ok(listing.clone().expect("made just now"))
                })
            }
            Meaning::Latest(_) | Meaning::Moment(..) => Err(not_here("no directory")),
        }
    }

    /// The lines behind the one with this cookie; all for 0.
    pub fn lines_after<'a>(&self, listing: &'a Listing, cookie: u64) -> &'a [Line] {
        let place = match Inode(cookie).meaning() {
            Some(Meaning::Moment(slot, txid)) => match locked(&self.slots).pair(slot) {
                Some((_, generation)) => PlaceInDirectory::Moment(generation, txid),
                None => return &[],
            },
            _ => PlaceInDirectory::Fixed(cookie),
        };
        &listing[listing.partition_point(|line| line.place <= place)..]
    }

    fn list_databases(&self) -> Listing {
        let root = self.root_attributes();
        let ttl = self.moving_ttl();
        let mut lines = vec![
            fixed_line(1, ".", root, ttl),
            fixed_line(2, "..", root, ttl),
        ];
        let databases = locked(&self.databases);
        lines.extend(databases.by_name.iter().map(|(name, member)| {
            let attributes = self.database_attributes(member);
            fixed_line(
                attributes.inode.0,
                name,
                attributes,
                self.database_ttl(member),
            )
        }));
        // The order in which they were seen, so that a new one comes last.
        lines.sort_by_key(|line| line.place);
        lines.into()
    }

    fn list_moments(&self, member: &Member) -> Result<Listing> {
        let ttl = self.moving_ttl();
        let mut lines = vec![
            fixed_line(1, ".", self.database_attributes(member), ttl),
            fixed_line(2, "..", self.root_attributes(), ttl),
        ];
        if let Some(attributes) = self.latest_attributes(member) {
            lines.push(fixed_line(attributes.inode.0, LATEST, attributes, ttl));
        }
        for point in &newest_named(&member.replica) {
            let attributes = self.moment_attributes(member, point)?;
            lines.push(Line {
                cookie: attributes.inode.0,
                name: file_name(point),
                entry: Entry {
                    attributes,
                    ttl: SETTLED_TTL,
                },
                place: PlaceInDirectory::Moment(point.generation, point.txid),
            });
        }
        Ok(lines.into())
    }

    /// The moment of an inode, if somebody has it open.
    pub fn opened(&self, inode: Inode) -> Option<Arc<Database>> {
        locked(&self.opened).get(inode)
    }

    /// Opens the moment of an inode.
    ///
    /// # Errors
    /// `NotFound` if it is gone, `Invalid` if the inode is no file, `Corrupt`, `Unavailable`.
    pub async fn open(&self, inode: Inode) -> Result<Arc<Database>> {
        let (member, point) = self.moment(inode)?;
        let database = member.replica.open(&point).await?;
        Ok(locked(&self.opened).keep(inode, database))
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

    /// How long a name that may mean something else with the next commit keeps its meaning: until
    /// the next look, so that a commit is not late by what the kernel remembers and by what we do.
    fn name_ttl(&self, follow: &Follow) -> Duration {
        let fresh_for = follow.fresh_for((self.clock)(), self.options.refresh);
        fresh_for.min(MOVING_TTL_MAX)
    }

    /// How long the name of a database means the replica that is shown.
    fn database_ttl(&self, member: &Member) -> Duration {
        match self.has_others(member) {
            true => self.moving_ttl(),
            false => SETTLED_TTL,
        }
    }

    /// Whether a database has other replicas that could be shown.
    fn has_others(&self, member: &Member) -> bool {
        match &self.sources[member.place.source] {
            Source::Database { replicas, .. } => replicas.len() > 1,
            Source::Folder(_) => false,
        }
    }

    fn moving_ttl(&self) -> Duration {
        self.options.refresh.min(MOVING_TTL_MAX)
    }

    fn root_attributes(&self) -> Attributes {
        let databases = locked(&self.databases);
        let newest = databases
            .by_name
            .values()
            .filter_map(|m| m.replica.newest());
        Attributes {
            inode: Inode::ROOT,
            kind: Kind::Directory,
            size: 0,
            time: newest.map(|p| p.time).max().unwrap_or(self.started),
            ttl: self.moving_ttl(),
        }
    }

    fn database_attributes(&self, member: &Member) -> Attributes {
        Attributes {
            inode: Inode::database(member.number),
            kind: Kind::Directory,
            size: 0,
            time: member.replica.newest().map_or(self.started, |p| p.time),
            ttl: self.moving_ttl(),
        }
    }

    fn latest_attributes(&self, member: &Member) -> Option<Attributes> {
        let newest = member.replica.newest()?;
        Some(Attributes {
            inode: Inode::latest(member.number),
            kind: Kind::Link,
            size: file_name(&newest).len() as u64,
            time: newest.time,
            ttl: self.moving_ttl(),
        })
    }

    fn moment_attributes(&self, member: &Member, point: &RestorePoint) -> Result<Attributes> {
        let slot = locked(&self.slots).of(member.number, point.generation);
        let inode = slot.and_then(|slot| Inode::moment(slot, point.txid));
        let page_size = member.replica.page_size(point.generation);
        match (inode, page_size) {
            (Some(inode), Some(page_size)) => Ok(Attributes {
                inode,
                kind: Kind::File,
                size: u64::from(point.pages) * u64::from(page_size),
                time: point.time,
                ttl: MOMENT_TTL,
            }),
            (None, _) => Err(Error::invalid(format!(
                "no inode number is left for {}-{}; mount again",
                point.generation, point.txid
            ))),
            (_, None) => Err(not_here("the generation is gone")),
        }
    }
}

impl Member {
    async fn refresh(&self) -> Result<()> {
        self.replica.refresh().await?;
        *locked(&self.listing) = None;
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

/// The bytes from `offset` as they are served: bytes 18 and 19 of page 1 say that the journal is a
/// rollback journal. With those of WAL mode SQLite wants a `-wal` and `-shm` that a read-only file
/// system cannot hold, and refuses the file (fileformat2, "File format version numbers").
pub fn served(offset: u64, bytes: Bytes) -> Bytes {
    const ROLLBACK: [(u64, u8); 2] = [(18, 1), (19, 1)];
    let end = offset + bytes.len() as u64;
    if offset > ROLLBACK[1].0 || end <= ROLLBACK[0].0 {
        return bytes;
    }
    let mut bytes = bytes.to_vec();
    for (at, byte) in ROLLBACK {
        if (offset..end).contains(&at) {
            bytes[usize::try_from(at - offset).expect("at most 19")] = byte;
        }
    }
    bytes.into()
}

/// The newest restore points that have names of their own: not those that a later generation
/// hides, since a time that lies in both means the later one.
fn newest_named(replica: &Replica) -> Vec<RestorePoint> {
    // Hidden ones are few: where more than half of so many are, a shorter list will do.
    let mut asked = LISTED_POINTS;
    loop {
        let mut points = replica.points(&PointsQuery {
            newest: Some(asked),
            ..PointsQuery::default()
        });
        let is_all = points.len() < asked || asked > LISTED_POINTS;
        points.retain(|point| {
            let resolved = replica.resolve(Moment::At(point.time));
            resolved.is_ok_and(|resolved| resolved == *point)
        });
        if is_all || points.len() >= LISTED_POINTS {
            let surplus = points.len().saturating_sub(LISTED_POINTS);
            return points.split_off(surplus);
        }
        asked *= 2;
    }
}

/// The name under which a restore point is listed.
fn file_name(point: &RestorePoint) -> String {
    point.time.file_name() + SUFFIX
}

/// True if no commit to come can change what a moment means.
fn is_settled(moment: Moment, newest: Option<RestorePoint>) -> bool {
    match (moment, newest) {
        (Moment::At(time), Some(newest)) => time <= newest.time,
        _ => false,
    }
}

fn fixed_line(cookie: u64, name: &str, attributes: Attributes, ttl: Duration) -> Line {
    Line {
        cookie,
        name: name.to_owned(),
        entry: Entry { attributes, ttl },
        place: PlaceInDirectory::Fixed(cookie),
    }
}

fn not_here(sentence: &str) -> Error {
    Error::not_found(sentence)
}

#[cfg(test)]
mod history;
#[cfg(test)]
mod tests;
