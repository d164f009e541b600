//! What the uploader of one replica remembers across restarts: its generation, and how far it is.
//!
//! Stored after each step that the store has acknowledged, so that it is never ahead of the store;
//! where it is behind, the object that waits in the spool is sent again, byte for byte.

use crate::error::{Error, Result};
use crate::format::container::Parent;
use crate::format::ids::{GenerationId, ObjectHash, Timestamp, Txid, WalEnd};
use crate::format::key::{Key, ObjectKey};
use crate::replicate::spool::{RunInfo, SpooledCommit};
use crate::replicate::writers::{Ending, Fencing, Inside, Known, Place};
use crate::storage::durable;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One replica's generation, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationState {
    /// Its name.
    pub id: GenerationId,
    /// The run of the spool that it follows.
    pub run: u64,
    /// Tells that run from one with the same number in another spool.
    pub token: u64,
    /// The `seq` of the state that it starts from: txid 1.
    pub base: u64,
    /// Where SQLite's WAL stood at that state; all zeros if that is not known.
    #[serde(default)]
    pub start: WalEnd,
    /// It starts from a stored commit: its first snapshot is made of what its parent has stored.
    #[serde(default)]
    pub is_fork: bool,
    /// The generation it goes on from, and the last txid that both share.
    pub parent: Option<(GenerationId, Txid)>,
    /// When it began, which is the time of txid 1.
    pub started: Timestamp,
    /// Why it began.
    pub reason: String,
    /// The txid of the first snapshot, once it is stored and all that it needs was listed.
    pub complete: Option<Txid>,
    /// The last commit that is stored, if there is one: the last of an upload, which may be merged
    /// by now.
    pub sent: Option<SpooledCommit>,
    /// The hash of that upload, which the next one names; before the first one, the claim's.
    pub last_hash: ObjectHash,
    /// The key of the object that holds it: the upload itself, one that it was merged into, or the
    /// claim.
    pub last_key: String,
    /// SQLITE_VERSION_NUMBER of the application as page 1 last showed it; 0 where unknown.
    pub sqlite_version: u32,
    /// Whether the store keeps two writers apart.
    #[serde(default)]
    pub fencing: Fencing,
}

impl GenerationState {
    /// The last stored `seq`; the base if no commit is stored.
    pub fn sent_seq(&self) -> u64 {
        self.sent.map_or(self.base, |commit| commit.seq)
    }

    /// The last stored txid.
    pub fn sent_txid(&self) -> Txid {
        self.txid(self.sent_seq())
    }

    /// Our position, and the hash of what waits to be stored behind it.
    pub fn known(&self, waiting: Option<ObjectHash>) -> Known {
        Known {
            next: self.sent_txid().next(),
            base: self.base,
            last_hash: self.last_hash,
            waiting,
        }
    }

    /// Goes on behind a stored segment of our own commits.
    pub fn adopt(&mut self, key: String, inside: &Inside) {
        let ending = &inside.ending;
        self.sent = Some(ending.commit(self.base));
        (self.last_hash, self.last_key) = (inside.hands_on, key);
        self.sqlite_version = ending.sqlite_version;
    }

    /// After which key to list the segments, so that the listing shows the last one of ours and all
    /// that stands behind it.
    pub fn list_after(&self) -> Option<String> {
        let object = match Key::parse(&self.last_key)?.object {
            ObjectKey::Upload { first } => ObjectKey::Upload { first },
            // The merged ones are listed behind all uploads.
            ObjectKey::Merged { last, .. } => ObjectKey::Upload { first: last },
            _ => return None,
        };
        let key = Key {
            generation: self.id,
            object,
        }
        .to_string();
        // Just before the key itself.
        key.strip_suffix(".wal").map(str::to_owned)
    }

    /// The number of a commit in this generation.
    ///
    /// # Panics
    /// If the commit lies before the generation.
    pub fn txid(&self, seq: u64) -> Txid {
        seq.checked_sub(self.base)
            .and_then(|after| Txid::new(after + 1))
            .expect("a generation holds no commit from before its base")
    }

    /// The last stored commit, from which the generation that comes next may go on.
    pub fn place(&self) -> Place {
        Place {
            parent: Parent {
                generation: self.id,
                txid: self.sent_txid(),
            },
            time: self.last_time(),
            run: (self.run, self.token),
            seq: self.sent_seq(),
            end: self.sent.map_or(self.start, |commit| commit.end),
        }
    }

    /// The key of its claim.
    pub fn claim_key(&self) -> String {
        let (generation, object) = (self.id, ObjectKey::Claim);
        Key { generation, object }.to_string()
    }

    /// Whether it is a fork whose first snapshot is not stored yet: it must not end before that.
    pub fn is_unmade_fork(&self) -> bool {
        self.is_fork && self.complete.is_none()
    }

    /// The time of the last stored commit, which the next one lies behind.
    pub fn last_time(&self) -> Timestamp {
        self.sent.map_or(self.started, |commit| commit.time)
    }

    /// Whether the spool still is the one that this state counts by. `runs` are those in the spool,
    /// `tip` its last `seq`.
    ///
    /// # Errors
    /// `Conflict` if it was lost or replaced: its numbers mean other commits.
    pub fn check_spool(&self, runs: &[RunInfo], tip: u64) -> Result<()> {
        let same = match runs.iter().find(|run| run.id == self.run) {
            Some(run) => run.token == self.token && self.sent_seq() <= tip,
            None => runs.last().is_some_and(|newest| newest.id > self.run),
        };
        if same {
            Ok(())
        } else {
            Err(Error::conflict(
                "the spool is another one than this replica was written from",
            ))
        }
    }

    /// The parent as objects name it.
    pub fn parent(&self) -> Option<Parent> {
        self.parent
            .map(|(generation, txid)| Parent { generation, txid })
    }

    /// Reads the state at `path`, if there is one.
    ///
    /// # Errors
    /// `Disk`; `Corrupt` if it is not what [`GenerationState::save`] writes.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let Some(bytes) = durable::read_if_there(path)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            Error::corrupt(format!(
                "read {}: not the state of a replica (move it away to start a new generation)",
                path.display()
            ))
            .because(e)
        })
    }

    /// Stores the state at `path`, durably.
    ///
    /// # Errors
    /// `Disk`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self).expect("plain data has a JSON form");
        durable::replace_file(path, &bytes)
    }
}

impl Ending {
    /// The commit in the spool that it is, in a generation that starts from `base`.
    pub fn commit(&self, base: u64) -> SpooledCommit {
        SpooledCommit {
            seq: base + self.txid.get() - 1,
            time: self.time,
            upper_bound: self.upper_bound,
            pages: self.pages,
            frames: 0,
            end: self.end,
        }
    }
}

/// The generations that this daemon and those before it began, in a file of their own: noted before
/// their claims are stored, so that none of them is ever taken for another writer's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Begun(Vec<GenerationId>);

impl Begun {
    /// So many are remembered.
    const MAX: usize = 64;

    /// Reads the file at `path`, if there is one.
    ///
    /// # Errors
    /// `Disk`, `Corrupt`.
    pub fn load(path: &Path) -> Result<Self> {
        let Some(bytes) = durable::read_if_there(path)? else {
            return Ok(Self::default());
        };
        serde_json::from_slice(&bytes).map_err(|e| {
            let path = path.display();
            Error::corrupt(format!(
                "read {path}: not a list of generations (remove it)"
            ))
            .because(e)
        })
    }

    /// Notes a generation that is about to begin, durably.
    ///
    /// # Errors
    /// `Disk`.
    pub fn note(&mut self, generation: GenerationId, path: &Path) -> Result<()> {
        self.0.push(generation);
        let forgotten = self.0.len().saturating_sub(Self::MAX);
        self.0.drain(..forgotten);
        let bytes = serde_json::to_vec(self).expect("plain data has a JSON form");
        durable::replace_file(path, &bytes)
    }

    /// Whether it was begun here.
    pub fn contains(&self, generation: GenerationId) -> bool {
        self.0.contains(&generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::PageSize;

    fn run(id: u64, token: u64, base: u64) -> RunInfo {
        let time = Timestamp::from_micros(0);
        RunInfo {
            id,
            token,
            base,
            page_size: PageSize::new(512).unwrap(),
            start: WalEnd::default(),
            reason: String::new(),
            after: time,
            began: time,
        }
    }

    /// A generation that follows run 3 with token 7 from base 20; 5 commits of it are stored.
    fn state() -> GenerationState {
        let time = Timestamp::from_micros(0);
        GenerationState {
            id: GenerationId {
                ordinal: 1,
                random: 2,
            },
            run: 3,
            token: 7,
            base: 20,
            start: WalEnd::default(),
            is_fork: false,
            parent: None,
            started: time,
            reason: String::new(),
            complete: None,
            sent: Some(SpooledCommit {
                seq: 25,
                time,
                upper_bound: false,
                pages: 1,
                frames: 1,
                end: WalEnd::default(),
            }),
            last_hash: ObjectHash([0; 32]),
            last_key: String::new(),
            sqlite_version: 0,
            fencing: Fencing::PutIfAbsent,
        }
    }

    #[track_caller]
    fn check(runs: &[RunInfo], tip: u64, is_ours: bool) {
        assert_eq!(state().check_spool(runs, tip).is_ok(), is_ours);
    }

    #[test]
    fn the_spool_is_ours_while_it_holds_our_run_and_what_we_stored() {
        check(&[run(3, 7, 20)], 25, true);
        check(&[run(3, 7, 20), run(4, 8, 31)], 40, true);
        check(&[run(3, 7, 20)], 24, false);
    }

    #[test]
    fn a_run_of_the_same_number_in_another_spool_is_not_ours() {
        check(&[run(3, 9, 20)], 30, false);
        check(&[run(1, 9, 0)], 30, false);
        check(&[], 0, false);
    }

    #[test]
    fn a_run_that_was_sent_and_dropped_is_ours_while_a_later_one_goes_on() {
        check(&[run(5, 1, 50)], 60, true);
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert_eq!(GenerationState::load(&path).unwrap(), None);
        state().save(&path).unwrap();
        assert_eq!(GenerationState::load(&path).unwrap(), Some(state()));
        std::fs::write(&path, "{}").unwrap();
        let error = GenerationState::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("move it away to start a new generation"),
            "{error}"
        );
    }

    #[test]
    fn a_state_of_an_earlier_version_knows_nothing_of_fencing_and_forks() {
        let mut old = serde_json::to_value(state()).unwrap();
        let fields = old.as_object_mut().unwrap();
        fields.retain(|name, _| !["fencing", "start", "is_fork"].contains(&name.as_str()));
        let read: GenerationState = serde_json::from_value(old).unwrap();
        assert_eq!(read.fencing, Fencing::Unknown);
        assert_eq!((read.start, read.is_fork), (WalEnd::default(), false));
    }

    #[test]
    fn a_listing_begins_with_our_last_segment() {
        let mut state = state();
        let prefix = "generations/00000001-00000002";
        for (last_key, after) in [
            ("claim", None),
            ("wal/0/0000000000000004.wal", Some("wal/0/0000000000000004")),
            (
                "wal/1/0000000000000002-0000000000000041-20261120T174512.345678Z-00000001.wal",
                Some("wal/0/0000000000000041"),
            ),
        ] {
            state.last_key = format!("{prefix}/{last_key}");
            assert_eq!(
                state.list_after(),
                after.map(|key| format!("{prefix}/{key}"))
            );
        }
    }

    #[test]
    fn the_last_generations_that_were_begun_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("begun.json");
        let id = |ordinal| GenerationId { ordinal, random: 1 };
        let mut begun = Begun::load(&path).unwrap();
        for ordinal in 1..=Begun::MAX as u32 + 2 {
            begun.note(id(ordinal), &path).unwrap();
        }
        assert_eq!(Begun::load(&path).unwrap(), begun);
        assert!(begun.contains(id(3)) && !begun.contains(id(2)));
        std::fs::write(&path, "?").unwrap();
        let error = Begun::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("not a list of generations (remove it)"),
            "{error}"
        );
    }

    #[test]
    fn txids_count_from_the_state_that_the_generation_starts_from() {
        assert_eq!(state().txid(20), Txid::FIRST);
        assert_eq!(state().place().parent.txid, Txid::new(6).unwrap());
    }
}
