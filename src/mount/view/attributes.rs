//! What `stat` and `getfattr` show, and for how long.

use super::*;
use crate::mount::period::Period;

/// Of the attributes of a restore point, which never change.
const MOMENT_TTL: Duration = Duration::from_secs(3600);

/// The names of the extended attributes of a restore point.
const PREFIX: &str = "user.sqlrepl.";

impl View {
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
            Meaning::ByTime(number, period) => {
                Ok(self.period_attributes(&*self.database(number)?, period))
            }
            Meaning::ByTxid(number) | Meaning::About(Some(number)) => Ok(Attributes {
                inode,
                ..self.database_attributes(&*self.database(number)?)
            }),
            Meaning::About(None) => Ok(Attributes {
                inode,
                ..self.root_attributes()
            }),
            Meaning::Status(_) | Meaning::Points(_) => self.text_attributes(inode),
            Meaning::Moment(..) => {
                let (member, point) = self.moment(inode)?;
                self.moment_attributes(&member, &point)
            }
        }
    }

    /// The extended attributes of an inode: which moment a file is.
    ///
    /// # Errors
    /// `NotFound` if it is gone.
    pub fn extended(&self, inode: Inode) -> Result<Vec<(String, String)>> {
        let Meaning::Moment(..) = self.meaning(inode)? else {
            return Ok(Vec::new());
        };
        let (member, point) = self.moment(inode)?;
        let snapshot = member.replica.snapshot_under(&point)?;
        let values = [
            ("txid", point.txid.to_string()),
            ("timestamp", point.time.to_string()),
            ("generation", point.generation.to_string()),
            ("snapshot", snapshot.to_string()),
        ];
        let named = values.map(|(name, value)| (format!("{PREFIX}{name}"), value));
        Ok(named.into())
    }

    /// How long a name that may mean something else with the next commit keeps its meaning: until
    /// the next look, so that a commit is not late by what the kernel remembers and by what we do.
    pub(super) fn name_ttl(&self, follow: &Follow) -> Duration {
        let fresh_for = follow.fresh_for((self.clock)(), self.options.refresh);
        fresh_for.min(MOVING_TTL_MAX)
    }

    /// How long the name of a database means the replica that is shown.
    pub(super) fn database_ttl(&self, member: &Member) -> Duration {
        match self.has_others(member) {
            true => self.moving_ttl(),
            false => SETTLED_TTL,
        }
    }

    /// Whether a database has other replicas that could be shown.
    pub(super) fn has_others(&self, member: &Member) -> bool {
        match &self.sources[member.place.source] {
            Source::Database { replicas, .. } => replicas.len() > 1,
            Source::Folder(_) => false,
        }
    }

    pub(super) fn moving_ttl(&self) -> Duration {
        self.options.refresh.min(MOVING_TTL_MAX)
    }

    pub(super) fn root_attributes(&self) -> Attributes {
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

    pub(super) fn database_attributes(&self, member: &Member) -> Attributes {
        Attributes {
            inode: Inode::database(member.number),
            kind: Kind::Directory,
            size: 0,
            time: member.replica.newest().map_or(self.started, |p| p.time),
            ttl: self.moving_ttl(),
        }
    }

    pub(super) fn latest_attributes(&self, member: &Member) -> Option<Attributes> {
        let newest = member.replica.newest()?;
        Some(Attributes {
            inode: Inode::latest(member.number),
            kind: Kind::Link,
            size: file_name(&newest).len() as u64,
            time: newest.time,
            ttl: self.moving_ttl(),
        })
    }

    /// Of a directory of `by-time`: its last commit is when it last changed.
    fn period_attributes(&self, member: &Member, period: Period) -> Attributes {
        let points = member.replica.points_by_time();
        let last = points.count_until(period.last()).checked_sub(1);
        let last = last.and_then(|index| points.get(index));
        Attributes {
            inode: Inode::by_time(member.number, period),
            time: last.map_or(self.started, |point| point.time),
            ..self.database_attributes(member)
        }
    }

    pub(super) fn moment_attributes(
        &self,
        member: &Member,
        point: &RestorePoint,
    ) -> Result<Attributes> {
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
