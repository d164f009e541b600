//! Histories for the tests of the tree: real objects, of a few pages of 512 bytes each.

use crate::config::Clock;
use crate::format::claim::Claim;
use crate::format::container::{Header, Kind, Parent, ScratchFile};
use crate::format::ids::{
    DatabaseId, GenerationId, ObjectHash, ObjectId, PageSize, Pgno, Timestamp, Txid, WriterId,
};
use crate::format::key::{Key, ObjectKey};
use crate::format::sample;
use crate::format::segment::{SegmentWriter, TimelineEntry};
use crate::format::snapshot::{LeafSource, MapToWrite, SnapshotWriter, leaves};
use crate::storage::{Body, Put, Store};
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Bytes in a page.
pub(super) const PAGE: usize = 512;

/// A generation that is being written.
pub(super) struct History {
    store: Arc<dyn Store>,
    generation: GenerationId,
    parent: Option<Parent>,
    /// The hash of the object before the next segment.
    previous: ObjectHash,
    last: Txid,
    objects: u8,
}

fn scratch() -> std::io::Result<Box<dyn ScratchFile>> {
    Ok(Box::new(Cursor::new(Vec::new())))
}

/// A time of 2026-11-20, from `17:45:12` and fractions.
#[track_caller]
pub(super) fn at(time: &str) -> Timestamp {
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let compact = format!("20261120T{}.{fraction:0<6}Z", time.replace(':', ""));
    Timestamp::parse_compact(&compact).unwrap()
}

/// A page as transaction `txid` wrote it; page 1 says that the database is in WAL mode.
pub(super) fn page(pgno: u32, txid: u64) -> Vec<u8> {
    let mut page = [&pgno.to_be_bytes()[..], &txid.to_be_bytes()[..]].concat();
    page.resize(PAGE, 0xa5);
    if pgno == 1 {
        page[18..20].fill(2);
    }
    page
}

impl History {
    /// A generation that starts with a database of 2 pages at this time.
    pub(super) async fn begin(
        store: &Arc<dyn Store>,
        ordinal: u32,
        parent: Option<(u32, u64)>,
        time: &str,
    ) -> Self {
        let id = |ordinal| GenerationId {
            ordinal,
            random: 0xab,
        };
        let claim = Claim {
            generation: id(ordinal),
            database_id: DatabaseId([1; 16]),
            writer_id: WriterId([2; 8]),
            parent: parent.map(|(ordinal, txid)| Parent {
                generation: id(ordinal),
                txid: Txid::new(txid).unwrap(),
            }),
            host: "host".to_owned(),
            path: "app.db".to_owned(),
            started: at(time),
            reason: "a test".to_owned(),
        };
        let mut history = Self {
            store: store.clone(),
            generation: claim.generation,
            parent: claim.parent,
            previous: claim.hash(),
            last: Txid::FIRST,
            objects: 0,
        };
        history.put(ObjectKey::Claim, claim.encode()).await;
        history.put_snapshot(at(time)).await;
        history
    }

    async fn put_snapshot(&mut self, time: Timestamp) {
        let header = Header {
            exact: true,
            ..self.header(Kind::Snapshot, Txid::FIRST, Txid::FIRST)
        };
        let mut writer = SnapshotWriter::new(
            Cursor::new(Vec::new()),
            header.object_id,
            header.page_size,
            &scratch,
        )
        .unwrap();
        for pgno in 1..=2 {
            writer
                .push(Pgno::new(pgno).unwrap(), &page(pgno, 1))
                .unwrap();
        }
        let leaves = leaves(writer.stored(), 2);
        let map = MapToWrite {
            pages: 2,
            homes: &[],
            leaves: &leaves.into_iter().map(LeafSource::Here).collect::<Vec<_>>(),
        };
        let entry = TimelineEntry::new(Txid::FIRST, time, 2);
        let (bytes, written) = writer.finish(&header, &map, entry, None).unwrap();
        let key = ObjectKey::Snapshot {
            txid: Txid::FIRST,
            time,
            hash8: written.hash.hash8(),
        };
        self.put(key, bytes.into_inner()).await;
    }

    /// One transaction, in an upload of its own: page 1 anew, and a database of so many pages.
    pub(super) async fn commit(&mut self, time: &str, pages: u32) {
        self.commits(&[at(time)], pages).await;
    }

    /// Transactions at these times, in one upload.
    pub(super) async fn commits(&mut self, times: &[Timestamp], pages: u32) {
        let first = self.last.next();
        let timeline: Vec<TimelineEntry> = (first.get()..)
            .zip(times)
            .map(|(txid, &time)| TimelineEntry::new(Txid::new(txid).unwrap(), time, pages))
            .collect();
        let last = timeline.last().expect("at least one").txid;
        let header = self.header(Kind::Segment, first, last);
        let mut writer = SegmentWriter::new(
            Cursor::new(Vec::new()),
            header.object_id,
            header.page_size,
            &scratch,
        )
        .unwrap();
        for &TimelineEntry { txid, .. } in &timeline {
            writer
                .push(Pgno::FIRST, txid, &page(1, txid.get()))
                .unwrap();
        }
        for pgno in 2..=pages {
            let page = page(pgno, first.get());
            writer.push(Pgno::new(pgno).unwrap(), first, &page).unwrap();
        }
        let (bytes, written) = writer.finish(&header, &timeline, &[], None).unwrap();
        self.previous = written.hash;
        self.last = last;
        self.put(ObjectKey::Upload { first }, bytes.into_inner())
            .await;
    }

    fn header(&mut self, kind: Kind, first: Txid, last: Txid) -> Header {
        self.objects += 1;
        let id = [
            self.generation.ordinal as u8,
            self.objects,
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        let page_size = PageSize::new(PAGE as u32).unwrap();
        let made = sample::header(kind, page_size, first.get(), last.get());
        Header {
            object_id: ObjectId(id),
            generation: self.generation,
            parent: self.parent,
            previous: match kind {
                Kind::Segment => self.previous,
                Kind::Snapshot | Kind::Part => made.previous,
            },
            ..made
        }
    }

    async fn put(&self, object: ObjectKey, bytes: Vec<u8>) {
        let key = Key {
            generation: self.generation,
            object,
        };
        let body = Body::Bytes(bytes.into());
        let put = self.store.put(&key.to_string(), body).await.unwrap();
        assert!(matches!(put, Put::Created { .. }), "{key}");
    }
}

/// A clock that stands until it is set.
#[derive(Clone)]
pub(super) struct TestClock(Arc<AtomicI64>);

impl TestClock {
    pub(super) fn at(time: &str) -> Self {
        Self(Arc::new(AtomicI64::new(at(time).micros())))
    }

    pub(super) fn set(&self, time: &str) {
        self.0.store(at(time).micros(), Ordering::SeqCst);
    }

    pub(super) fn clock(&self) -> Clock {
        let micros = self.0.clone();
        Arc::new(move || Timestamp::from_micros(micros.load(Ordering::SeqCst)))
    }
}
