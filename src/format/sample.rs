//! Made-up parts of objects for tests all over the crate.

use crate::format::container::{Header, Kind, ScratchFile};
use crate::format::ids::{
    DatabaseId, GenerationId, ObjectHash, ObjectId, PageSize, Pgno, Txid, WalEnd, WriterId,
};
use std::io::{self, Cursor};

pub(crate) fn txid(number: u64) -> Txid {
    Txid::new(number).unwrap()
}

pub(crate) fn pgno(number: u32) -> Pgno {
    Pgno::new(number).unwrap()
}

/// A scratch file in memory.
pub(crate) fn scratch() -> io::Result<Box<dyn ScratchFile>> {
    Ok(Box::new(Cursor::new(Vec::new())))
}

/// A header of generation 00000001-00000002 in which all that can be empty is.
pub(crate) fn header(kind: Kind, page_size: PageSize, first: u64, last: u64) -> Header {
    Header {
        kind,
        level: 0,
        page_size,
        object_id: ObjectId([3; 8]),
        database_id: DatabaseId([4; 16]),
        writer_id: WriterId([5; 8]),
        generation: GenerationId {
            ordinal: 1,
            random: 2,
        },
        parent: None,
        first: txid(first),
        last: txid(last),
        since: txid(first),
        end: WalEnd::default(),
        exact: false,
        thinned: false,
        sqlite_version: 0,
        previous: ObjectHash([0; 32]),
        last_input: ObjectHash([0; 32]),
    }
}
