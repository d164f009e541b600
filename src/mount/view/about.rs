//! `.sqlrepl`: what is known of a database and how new it is, and all its restore points, for
//! scripts. Made when it is opened, from memory.

use super::*;
use crate::materialize::points::Points;
use crate::mount::calls::Counts;
use bytes::Bytes;
use serde::Serialize;
use std::fmt::Write as _;

/// Bytes in a line of `points.jsonl`. All are as long, with blanks before numbers, so that any part
/// of millions can be read without the rest.
const LINE_BYTES: u64 = 140;

/// The text of a file in `.sqlrepl`, as of when it was opened.
#[derive(Debug)]
pub enum Text {
    /// `status.json`.
    Status(Bytes),
    /// `points.jsonl`.
    Points(Points),
}

/// `status.json` of a database.
#[derive(Serialize)]
struct DatabaseStatus {
    database: String,
    location: String,
    #[serde(flatten)]
    known: Known,
    /// A daemon on this machine tells what changes.
    informed: bool,
    /// Restore points that can be opened.
    points: usize,
    /// The time of the first one that times mean.
    since: Option<String>,
    newest: Option<Newest>,
}

/// `status.json` of the root.
#[derive(Serialize)]
struct RootStatus {
    version: &'static str,
    #[serde(flatten)]
    known: Known,
    /// What the kernel asked for since the mount began.
    calls: Counts,
    databases: Vec<DatabaseStatus>,
}

/// How new it is.
#[derive(Serialize)]
struct Known {
    /// `known`, `failing` if the last look failed, and `unknown` if none succeeded yet.
    state: &'static str,
    /// Why the last look at the store failed.
    error: Option<String>,
    /// What is shown is what was there at this time.
    as_of: Option<String>,
}

#[derive(Serialize)]
struct Newest {
    generation: GenerationId,
    txid: Txid,
    time: String,
    pages: u32,
    /// Bytes.
    size: Option<u64>,
    name: String,
}

impl Text {
    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Status(json) => json.len() as u64,
            Self::Points(points) => points.count() as u64 * LINE_BYTES,
        }
    }

    /// The bytes from `offset`, fewer than `length` only at the end.
    pub fn read(&self, offset: u64, length: usize) -> Bytes {
        let end = self.size().min(offset.saturating_add(length as u64));
        let start = offset.min(end);
        match self {
            Self::Status(json) => json.slice(start as usize..end as usize),
            Self::Points(points) => {
                let first = start / LINE_BYTES;
                let count = end.div_ceil(LINE_BYTES) - first;
                let mut lines = String::with_capacity((count * LINE_BYTES) as usize);
                for point in points.from(first as usize).take(count as usize) {
                    push_line(&mut lines, points, &point);
                }
                let skipped = (start - first * LINE_BYTES) as usize;
                let bytes = Bytes::from(lines);
                bytes.slice(skipped..skipped + (end - start) as usize)
            }
        }
    }
}

fn push_line(lines: &mut String, points: &Points, point: &RestorePoint) {
    let page_size = points.page_size(point.generation).unwrap_or(0);
    let size = u64::from(point.pages) * u64::from(page_size);
    let before = lines.len();
    // Writing to a string does not fail.
    let _written = writeln!(
        lines,
        r#"{{"generation":"{}","txid":"{}","time":"{}","pages":{:10},"size":{:15}}}"#,
        point.generation, point.txid, point.time, point.pages, size
    );
    debug_assert_eq!((lines.len() - before) as u64, LINE_BYTES);
}

impl View {
    /// What a text says now; `None` for an inode that is none.
    pub(super) fn text(&self, inode: Inode) -> Option<Text> {
        match inode.meaning()? {
            Meaning::Status(None) => Some(status(&self.root_status())),
            Meaning::Status(Some(number)) => {
                let member = self.database(number).ok()?;
                Some(status(
                    &self.database_status(&self.name_of(&member), &member),
                ))
            }
            Meaning::Points(number) => {
                let member = self.database(number).ok()?;
                Some(Text::Points(member.replica.all_points()))
            }
            _ => None,
        }
    }

    pub(super) fn text_attributes(&self, inode: Inode) -> Result<Attributes> {
        let text = self.text(inode).ok_or_else(|| not_here("no such file"))?;
        Ok(Attributes {
            inode,
            kind: Kind::Text,
            size: text.size(),
            time: (self.clock)(),
            ttl: self.moving_ttl(),
        })
    }

    fn root_status(&self) -> RootStatus {
        let databases = locked(&self.databases).by_name.clone();
        let status = |(name, member): (&String, &Arc<Member>)| self.database_status(name, member);
        RootStatus {
            version: env!("CARGO_PKG_VERSION"),
            known: Known::of(&self.root),
            calls: self.calls.counts(),
            databases: databases.iter().map(status).collect(),
        }
    }

    fn database_status(&self, name: &str, member: &Member) -> DatabaseStatus {
        let replica = &member.replica;
        let newest = replica.newest().map(|point| {
            let page_size = replica.page_size(point.generation);
            Newest {
                generation: point.generation,
                txid: point.txid,
                time: point.time.to_string(),
                pages: point.pages,
                size: page_size.map(|bytes| u64::from(point.pages) * u64::from(bytes)),
                name: file_name(&point),
            }
        });
        let first = replica.points_by_time().get(0);
        DatabaseStatus {
            database: name.to_owned(),
            location: member.follow.name().to_owned(),
            known: Known::of(&member.follow),
            informed: member.informed.as_ref().is_some_and(|i| i.is_informed()),
            points: replica.all_points().count(),
            since: first.map(|point| point.time.to_string()),
            newest,
        }
    }

    /// The name under which a database is shown; one that is gone has none.
    fn name_of(&self, member: &Arc<Member>) -> String {
        let databases = locked(&self.databases);
        let mut names = databases.by_name.iter();
        let named = names.find(|(_, other)| Arc::ptr_eq(other, member));
        named.map_or_else(String::new, |(name, _)| name.clone())
    }
}

impl Known {
    fn of(follow: &Follow) -> Self {
        let error = follow.error();
        let state = match (follow.is_known(), &error) {
            (false, _) => "unknown",
            (true, None) => "known",
            (true, Some(_)) => "failing",
        };
        let as_of = follow.known_since().map(|time| time.to_string());
        Self {
            state,
            error,
            as_of,
        }
    }
}

fn status(status: &impl Serialize) -> Text {
    let mut json = serde_json::to_string_pretty(status).expect("words and numbers become JSON");
    json.push('\n');
    Text::Status(json.into())
}
