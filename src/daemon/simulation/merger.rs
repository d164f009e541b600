//! Merges uploads, and deletes them an hour later: so their names are free again, for a writer that
//! slept meanwhile.

use crate::daemon::simulation::database::{Commit, PAGE_SIZE};
use crate::format::container::{Header, SectionKind};
use crate::format::ids::{GenerationId, ObjectId, Pgno, Txid};
use crate::format::key::{Key, ObjectKey};
use crate::format::segment::{SegmentWriter, TimelineEntry, decode_timeline_section};
use crate::materialize::model::Random;
use crate::storage::catalog::{Catalog, SegmentListing};
use crate::storage::object::StoredObject;
use crate::storage::{Body, Store};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

/// Inputs stay for so long.
const STAY_MICROS: i64 = 3_600_000_000;

/// What a merger remembers: which uploads are to be deleted, and when.
#[derive(Default)]
pub(super) struct Merger {
    due: Vec<(i64, String)>,
}

/// The commits of restore points.
pub(super) type Commits = BTreeMap<(GenerationId, Txid), Arc<Commit>>;

impl Merger {
    /// Merges some uploads in a row of the highest generation that is complete, newer than its
    /// snapshots, if there are two. What was merged.
    pub(super) async fn merge(
        &mut self,
        store: &dyn Store,
        commits: &Commits,
        now: i64,
        random: &mut Random,
    ) -> Option<String> {
        let catalog = Catalog::new(store.list("generations/", None).await.unwrap());
        let mut generations = catalog.generations.iter().rev();
        let (&generation, listing) = generations.find(|(_, g)| !g.snapshots.is_empty())?;
        let snapshot = listing.snapshots.last()?.txid;
        let is_open = |segment: &&SegmentListing| {
            let is_due = |(_, key): &(i64, String)| *key == segment.object.key;
            segment.level == 0 && segment.first > snapshot && !self.due.iter().any(is_due)
        };
        let mut inputs: Vec<&SegmentListing> = listing.segments.iter().filter(is_open).collect();
        if random.percent(50) {
            inputs.pop();
        }
        if inputs.len() < 2 {
            return None;
        }
        let merged = merge_all(store, generation, &inputs, commits, random).await?;
        let keys = inputs.iter().map(|input| input.object.key.clone());
        self.due.extend(keys.map(|key| (now + STAY_MICROS, key)));
        Some(merged)
    }

    /// Deletes what was merged an hour ago.
    pub(super) async fn delete_due(&mut self, store: &dyn Store, now: i64) -> Vec<String> {
        let due = self.due.extract_if(.., |(at, _)| *at <= now);
        let keys: Vec<String> = due.map(|(_, key)| key).collect();
        store.delete(&keys).await.unwrap();
        keys
    }
}

/// Stores the merged segment. `None` if the inputs are not one history, or hold what no restore
/// point shows, or have no pages.
async fn merge_all(
    store: &dyn Store,
    generation: GenerationId,
    inputs: &[&SegmentListing],
    commits: &Commits,
    random: &mut Random,
) -> Option<String> {
    let mut headers: Vec<Header> = Vec::new();
    let mut timeline: Vec<TimelineEntry> = Vec::new();
    let mut hands_on = None;
    for input in inputs {
        let stored = StoredObject::open(store, &input.object.key, input.object.size).await;
        let stored = stored.unwrap();
        let header = stored.footer.header.clone();
        if stored.footer.section(SectionKind::SnapshotKey).is_some() {
            return None;
        }
        if hands_on.is_some_and(|hash| hash != header.previous) {
            return None;
        }
        hands_on = Some(stored.footer.hash);
        let section = stored.section(store, SectionKind::Timeline).await.unwrap();
        timeline.extend(decode_timeline_section(&header, &section).unwrap());
        headers.push(header);
    }
    let (first, last) = (headers.first()?, headers.last()?);
    let header = Header {
        level: 1,
        object_id: ObjectId(random.next().to_be_bytes()),
        first: first.first,
        since: first.first,
        previous: first.previous,
        last_input: hands_on?,
        ..last.clone()
    };
    let mut versions: BTreeMap<(usize, Txid), Bytes> = BTreeMap::new();
    for entry in &timeline {
        let commit = commits.get(&(generation, entry.txid))?;
        let written = commit.written.iter();
        versions.extend(written.map(|&page| ((page, entry.txid), commit.image[page].clone())));
    }
    let scratch = || Ok(Box::new(Cursor::new(Vec::new())) as _);
    let out = Cursor::new(Vec::new());
    let writer = SegmentWriter::new(out, header.object_id, PAGE_SIZE, &scratch);
    let mut writer = writer.unwrap();
    for ((page, txid), bytes) in versions {
        let pgno = Pgno::new(page as u32 + 1).unwrap();
        writer.push(pgno, txid, &bytes).unwrap();
    }
    let (out, written) = writer.finish(&header, &timeline, &[], None).unwrap();
    let object = ObjectKey::Merged {
        level: 1,
        first: header.first,
        last: header.last,
        time: timeline.last()?.time,
        hash8: written.hash.hash8(),
    };
    let key = Key { generation, object }.to_string();
    let body = Body::Bytes(out.into_inner().into());
    store.put(&key, body).await.unwrap();
    Some(key)
}
