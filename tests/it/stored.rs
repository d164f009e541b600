//! A replica that is written with the library's encoders from what SQLite's own file holds after
//! each change: for stories that need a replica, not a daemon. Where it lies is chosen as in
//! `world.rs`.

use crate::program::{bound, run};
use crate::s3_server::Server;
use crate::world;
use sqlrepl::format::claim::Claim;
use sqlrepl::format::container::{Header, Kind, ScratchFile};
use sqlrepl::format::ids::{
    DatabaseId, GenerationId, ObjectHash, ObjectId, PageSize, Pgno, Timestamp, Txid, WalEnd,
    WriterId,
};
use sqlrepl::format::key::{Key, ObjectKey};
use sqlrepl::format::segment::{SegmentWriter, TimelineEntry};
use sqlrepl::format::snapshot::{LeafSource, MapToWrite, SnapshotWriter, leaves};
use sqlrepl::storage::Store;
use sqlrepl::storage::directory::DirectoryStore;
use sqlrepl::storage::s3::S3Store;
use std::cell::RefCell;
use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

const GENERATION: GenerationId = GenerationId {
    ordinal: 1,
    random: 0xab,
};

/// A database and a replica of it, `app`, which starts at 9 o'clock with an empty database.
pub(crate) struct Stored {
    server: Option<Server>,
    folder: TempDir,
    last: RefCell<Last>,
}

struct Last {
    txid: Txid,
    image: Vec<u8>,
    /// The hash of the object before the next segment.
    previous: ObjectHash,
}

/// An hour of 2026-11-20.
pub(crate) fn at(hour: i64) -> Timestamp {
    let midnight = Timestamp::parse_compact("20261120T000000.000000Z").unwrap();
    Timestamp::from_micros(midnight.micros() + hour * 3_600_000_000)
}

fn scratch() -> std::io::Result<Box<dyn ScratchFile>> {
    Ok(Box::new(tempfile::tempfile()?))
}

impl Stored {
    /// A replica of a database in WAL mode without tables.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let claim = Claim {
            generation: GENERATION,
            database_id: DatabaseId([1; 16]),
            writer_id: WriterId([2; 8]),
            parent: None,
            host: "host".to_owned(),
            path: "app.db".to_owned(),
            started: at(9),
            reason: "a story".to_owned(),
        };
        let last = Last {
            txid: Txid::FIRST,
            image: Vec::new(),
            previous: claim.hash(),
        };
        let stored = Self {
            server: world::serve_if_chosen(folder.path()),
            folder,
            last: RefCell::new(last),
        };
        stored.put(ObjectKey::Claim, &claim.encode());
        let image = stored.change("PRAGMA journal_mode=WAL; PRAGMA user_version=1");
        stored.put_snapshot(&image);
        stored.last.borrow_mut().image = image;
        stored
    }

    /// The folder or the bucket with the replica `app`; gone when this is.
    pub(crate) fn replicas(&self) -> Arc<dyn Store> {
        match &self.server {
            Some(server) => S3Store::new(server.place("replicas", "")),
            None => DirectoryStore::open(&self.folder.path().join("replicas")).unwrap(),
        }
    }

    /// Runs SQL and stores what it changed as one transaction; what the file holds then.
    pub(crate) fn commit(&self, time: Timestamp, sql: &str) -> Vec<u8> {
        let image = self.change(sql);
        let mut last = self.last.borrow_mut();
        let txid = last.txid.next();
        let header = header(&image, Kind::Segment, txid, last.previous);
        let out = Cursor::new(Vec::new());
        let mut writer =
            SegmentWriter::new(out, header.object_id, header.page_size, &scratch).unwrap();
        let size = header.page_size.bytes();
        for (pgno, page) in (1..).zip(image.chunks(size)) {
            let start = (pgno as usize - 1) * size;
            if last.image.get(start..start + size) != Some(page) {
                writer.push(Pgno::new(pgno).unwrap(), txid, page).unwrap();
            }
        }
        let timeline = [entry(txid, time, &image)];
        let (bytes, written) = writer.finish(&header, &timeline, &[], None).unwrap();
        self.put(ObjectKey::Upload { first: txid }, bytes.get_ref());
        *last = Last {
            txid,
            image: image.clone(),
            previous: written.hash,
        };
        image
    }

    /// Runs SQL; what the file holds then, all of it.
    fn change(&self, sql: &str) -> Vec<u8> {
        let path = self.folder.path().join("app.db");
        let sql = format!("{sql}; PRAGMA wal_checkpoint(TRUNCATE)");
        run(bound("sqlite3").arg("-bail").arg(&path).arg(sql)).ok();
        fs::read(path).unwrap()
    }

    fn put_snapshot(&self, image: &[u8]) {
        let header = Header {
            exact: true,
            ..header(image, Kind::Snapshot, Txid::FIRST, ObjectHash([0; 32]))
        };
        let out = Cursor::new(Vec::new());
        let mut writer =
            SnapshotWriter::new(out, header.object_id, header.page_size, &scratch).unwrap();
        for (pgno, page) in (1..).zip(image.chunks(header.page_size.bytes())) {
            writer.push(Pgno::new(pgno).unwrap(), page).unwrap();
        }
        let entry = entry(Txid::FIRST, at(9), image);
        let leaves = leaves(writer.stored(), entry.pages);
        let map = MapToWrite {
            pages: entry.pages,
            homes: &[],
            leaves: &leaves.into_iter().map(LeafSource::Here).collect::<Vec<_>>(),
        };
        let (bytes, written) = writer.finish(&header, &map, entry, None).unwrap();
        let key = ObjectKey::Snapshot {
            txid: Txid::FIRST,
            time: at(9),
            hash8: written.hash.hash8(),
        };
        self.put(key, bytes.get_ref());
    }

    fn put(&self, object: ObjectKey, bytes: &[u8]) {
        let key = Key {
            generation: GENERATION,
            object,
        };
        let path: PathBuf = self.folder.path().join(format!("replicas/app/{key}"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn header(image: &[u8], kind: Kind, txid: Txid, previous: ObjectHash) -> Header {
    let page_bytes = u32::from(u16::from_be_bytes([image[16], image[17]]));
    let mut id = [kind as u8; 8];
    id[1..].copy_from_slice(&txid.get().to_be_bytes()[1..]);
    Header {
        kind,
        level: 0,
        page_size: PageSize::new(page_bytes).unwrap(),
        object_id: ObjectId(id),
        database_id: DatabaseId([1; 16]),
        writer_id: WriterId([2; 8]),
        generation: GENERATION,
        parent: None,
        first: txid,
        last: txid,
        since: txid,
        end: WalEnd::default(),
        exact: false,
        thinned: false,
        sqlite_version: 0,
        previous,
        last_input: ObjectHash([0; 32]),
    }
}

fn entry(txid: Txid, time: Timestamp, image: &[u8]) -> TimelineEntry {
    let page_bytes = usize::from(u16::from_be_bytes([image[16], image[17]]));
    let pages = u32::try_from(image.len() / page_bytes).unwrap();
    TimelineEntry::new(txid, time, pages)
}
