//! What names mean.

use super::*;
use crate::error::ErrorKind;
use crate::format::moment::Moment;
use crate::mount::period::Period;
use std::ffi::OsStr;

/// SQLite looks these up before every statement. The answer can never be another one.
const SIDECARS: [&str; 3] = ["-journal", "-wal", "-shm"];
const SIDECAR_TTL: Duration = Duration::from_secs(3600);

impl View {
    /// What a name in a directory means.
    ///
    /// # Errors
    /// `NotFound` for no such directory, `Unavailable` when nothing is known of it yet.
    pub fn lookup(&self, directory: Inode, name: &OsStr, how: How) -> Result<Answer<Found>> {
        let meaning = self.meaning(directory)?;
        // No name here is without text, so one that is not UTF-8 is as good as none.
        let name = name.to_str().unwrap_or("");
        let is_sidecar = SIDECARS.iter().any(|suffix| name.ends_with(suffix));
        if is_sidecar && meaning != Meaning::Root {
            return Ok(Answer::Now(Found::Nothing(SIDECAR_TTL)));
        }
        match meaning {
            Meaning::Root if name == ABOUT => self.fixed(Inode::about(None)),
            Meaning::Root => self.lookup_database(name, how),
            Meaning::Database(number) => match name {
                LATEST => self.lookup_latest(&self.database(number)?, how),
                BY_TIME => self.fixed(Inode::by_time(number, Period::EVER)),
                BY_TXID => self.fixed(Inode::by_txid(number)),
                ABOUT => self.fixed(Inode::about(Some(number))),
                _ => self.lookup_time(&self.database(number)?, name, Period::EVER, how),
            },
            Meaning::ByTime(number, hour) if hour.is_hour() => {
                self.lookup_time(&self.database(number)?, name, hour, how)
            }
            Meaning::ByTime(number, period) => {
                self.lookup_period(&self.database(number)?, period.within(name), how)
            }
            Meaning::ByTxid(number) => self.lookup_txid(&self.database(number)?, name, how),
            Meaning::About(number) => self.lookup_about(number, name, how),
            Meaning::Latest(_) | Meaning::Status(_) | Meaning::Points(_) | Meaning::Moment(..) => {
                Err(not_here("no directory"))
            }
        }
    }

    /// What is there for as long as the directory around it.
    fn fixed(&self, inode: Inode) -> Result<Answer<Found>> {
        Ok(Answer::Now(Found::Entry(Entry {
            attributes: self.attributes(inode)?,
            ttl: SETTLED_TTL,
        })))
    }

    fn lookup_database(&self, name: &str, how: How) -> Result<Answer<Found>> {
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

    fn lookup_latest(&self, member: &Arc<Member>, how: How) -> Result<Answer<Found>> {
        self.answer(Subject::Database(member.clone()), how, || {
            let ttl = self.name_ttl(&member.follow);
            let entry = |attributes| Found::Entry(Entry { attributes, ttl });
            let latest = self.latest_attributes(member);
            Ok(latest.map_or(Found::Nothing(ttl), entry))
        })
    }

    /// A restore point by a time; one that does not lie in `within` is none.
    fn lookup_time(
        &self,
        member: &Arc<Member>,
        name: &str,
        within: Period,
        how: How,
    ) -> Result<Answer<Found>> {
        let words = name.strip_suffix(SUFFIX);
        let parsed = words.map(|words| Moment::parse_time(words, (self.clock)()));
        let (words, moment) = match (words, parsed) {
            (Some(words), Some(Ok(moment))) => (words, moment),
            (_, parsed) => return Ok(no_moment(name, parsed.and_then(Result::err))),
        };
        let subject = Subject::Database(member.clone());
        let resolve = |ttl| {
            let found = self.resolve(member, moment, ttl)?;
            Ok(match found {
                Found::Entry(entry) if !within.has(entry.attributes.time) => Found::Nothing(ttl),
                found => found,
            })
        };
        if !is_settled(moment, member.replica.newest()) {
            return self.answer(subject, how, || resolve(self.name_ttl(&member.follow)));
        }
        // `5m-ago` needs no look, but means another moment soon.
        let ttl = match Moment::is_relative(words) {
            true => self.moving_ttl(),
            false => SETTLED_TTL,
        };
        self.settled_answer(subject, how, || resolve(ttl))
    }

    fn lookup_txid(&self, member: &Arc<Member>, name: &str, how: How) -> Result<Answer<Found>> {
        let parsed = name.strip_suffix(SUFFIX).map(Moment::parse_txid);
        let moment = match parsed {
            Some(Ok(moment)) => moment,
            parsed => return Ok(no_moment(name, parsed.and_then(Result::err))),
        };
        let subject = Subject::Database(member.clone());
        // A txid alone means another one when a later generation gets as far.
        let highest = member.replica.newest().map(|newest| newest.generation);
        let is_settled = member.replica.resolve(moment).is_ok_and(|point| {
            matches!(moment, Moment::Txid(Some(_), _)) || Some(point.generation) == highest
        });
        if is_settled {
            return self.settled_answer(subject, how, || self.resolve(member, moment, SETTLED_TTL));
        }
        self.answer(subject, how, || {
            self.resolve(member, moment, self.name_ttl(&member.follow))
        })
    }

    /// A directory of `by-time`: there is one where there are commits.
    fn lookup_period(
        &self,
        member: &Arc<Member>,
        period: Option<Period>,
        how: How,
    ) -> Result<Answer<Found>> {
        let Some(period) = period else {
            return Ok(Answer::Now(Found::Nothing(SETTLED_TTL)));
        };
        let inode = Inode::by_time(member.number, period);
        let entry = |ttl| {
            Ok(match member.points_in(period).is_empty() {
                true => Found::Nothing(ttl),
                false => Found::Entry(Entry {
                    attributes: self.attributes(inode)?,
                    ttl,
                }),
            })
        };
        let subject = Subject::Database(member.clone());
        let newest = member.replica.newest();
        let is_settled = newest.is_some_and(|newest| period.last() <= newest.time);
        if is_settled || !member.points_in(period).is_empty() {
            return self.settled_answer(subject, how, || entry(SETTLED_TTL));
        }
        self.answer(subject, how, || entry(self.name_ttl(&member.follow)))
    }

    fn lookup_about(
        &self,
        number: Option<DatabaseNumber>,
        name: &str,
        how: How,
    ) -> Result<Answer<Found>> {
        let (inode, subject) = match (name, number) {
            (STATUS, None) => (Inode::status(None), Subject::Root),
            (STATUS, Some(number)) => {
                let member = self.database(number)?;
                (Inode::status(Some(number)), Subject::Database(member))
            }
            (POINTS, Some(number)) => {
                let member = self.database(number)?;
                (Inode::points(number), Subject::Database(member))
            }
            _ => return Ok(Answer::Now(Found::Nothing(SETTLED_TTL))),
        };
        // It tells of a store that is away, too.
        match self.need(&subject, how, self.options.refresh) {
            Need::Wait => Ok(Answer::After(subject)),
            need => {
                let found = Found::Entry(Entry {
                    attributes: self.attributes(inode)?,
                    ttl: self.name_ttl(subject.follow(self)),
                });
                Ok(match need {
                    Need::Behind => Answer::Behind(found, subject),
                    Need::Nothing | Need::Wait => Answer::Now(found),
                })
            }
        }
    }

    fn resolve(&self, member: &Member, moment: Moment, ttl: Duration) -> Result<Found> {
        match member.replica.resolve(moment) {
            Ok(point) => Ok(Found::Entry(Entry {
                attributes: self.moment_attributes(member, &point)?,
                ttl,
            })),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                member.say_once(&error);
                Ok(Found::Nothing(ttl))
            }
            Err(error) => Err(error),
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
}

impl Member {
    /// Names that mean no commit are tried in rows: by a crawler, or by a script that counts.
    fn say_once(&self, error: &Error) {
        let is_news = locked(&self.complaints).is_news("no such moment", Instant::now());
        match is_news {
            true => tracing::warn!("no such file: {error}"),
            false => tracing::debug!("no such file: {error}"),
        }
    }
}

fn no_moment(name: &str, error: Option<Error>) -> Answer<Found> {
    match error {
        Some(error) => tracing::debug!("no such file: {error}"),
        None => tracing::debug!("no such file: {name:?} does not end in {SUFFIX}"),
    }
    Answer::Now(Found::Nothing(SETTLED_TTL))
}

/// True if no commit to come can change what a moment means.
fn is_settled(moment: Moment, newest: Option<RestorePoint>) -> bool {
    match (moment, newest) {
        (Moment::At(time), Some(newest)) => time <= newest.time,
        _ => false,
    }
}
