//! Made-up parts of objects for tests all over the crate, and how much is tested.

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

/// A number that a variable of the environment has.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// How many times more than in a normal run: `SQLREPL_SOAK`, 1 by default.
pub(crate) fn soak() -> u64 {
    number("SQLREPL_SOAK").unwrap_or(1)
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
