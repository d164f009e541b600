//! SQL on one moment, in this process: no mount, no file, nothing written.
//!
//! `vfs` shows the pages of a moment to SQLite as a file; here statements are run on it. What
//! fails below SQLite (a store that is away, a damaged object) is reported in our own words and
//! not in SQLite's, which only knows of a "disk I/O error".

mod vfs;

use crate::error::{Error, Result};
use crate::materialize::pages::Database;
use crate::query::vfs::Vfs;
use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::ValueRef;
use rusqlite::{Batch, Connection, ErrorCode, OpenFlags, Statement, ffi};
use std::ops::ControlFlow;
use std::sync::Arc;

/// What takes the results of statements, row by row.
pub trait Output {
    /// A statement gives rows of these columns, of which several may have one name; `Break` ends
    /// the run as if all was done.
    ///
    /// # Errors
    /// Whatever ends the run.
    fn begin(&mut self, columns: &[String]) -> Result<ControlFlow<()>>;

    /// A row; `Break` ends the run as if all was done.
    ///
    /// # Errors
    /// Whatever ends the run.
    fn row(&mut self, row: &[ValueRef<'_>]) -> Result<ControlFlow<()>>;

    /// The statement has given all its rows; `Break` ends the run as if all was done.
    ///
    /// # Errors
    /// Whatever ends the run.
    fn end(&mut self) -> Result<ControlFlow<()>>;
}

/// An SQLite connection to one moment.
pub struct Session {
    // Dropped before what it reads through.
    connection: Connection,
    vfs: Vfs,
}

impl Session {
    /// Connects to a moment, and reads its header. A thread may wait here and in [`Session::run`],
    /// so that it must be none that drives tasks.
    ///
    /// # Errors
    /// As [`Database::read`]; `Refused`, with SQLite's words.
    pub fn open(database: Arc<Database>) -> Result<Self> {
        let vfs = Vfs::register(database)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags_and_vfs(vfs::FILE, flags, vfs.name());
        let set_up = opened.and_then(|mut connection| {
            connection.authorizer(Some(no_other_file))?;
            Ok(connection)
        });
        match set_up {
            Ok(connection) => Ok(Self { connection, vfs }),
            Err(e) => {
                let ours = vfs.take_failure();
                Err(ours.unwrap_or_else(|| refused("open the moment", &e)))
            }
        }
    }

    /// Runs the statements of a text in their order. The first that fails ends the run, with what
    /// the ones before it gave handed over.
    ///
    /// # Errors
    /// `Invalid` for a zero byte; `Refused` if SQLite does not take a statement, with its words and
    /// the place in the text; as [`Database::read`]; what `output` says.
    pub fn run(&self, sql: &str, output: &mut dyn Output) -> Result<()> {
        let mut statements = Batch::new(&self.connection, sql);
        if let Some(at) = sql.find('\0') {
            return Err(Error::invalid(format!(
                "byte {at} of the SQL is a zero, behind which SQLite reads nothing"
            )));
        }
        for number in 1.. {
            // What a statement before it could do without.
            self.vfs.take_failure();
            let prepared = statements.next();
            let prepared = prepared.map_err(|e| self.failure(sql, number, &e, Doing::Preparing))?;
            let Some(mut statement) = prepared else {
                break;
            };
            if self
                .run_one(sql, number, &mut statement, output)?
                .is_break()
            {
                break;
            }
        }
        Ok(())
    }

    fn run_one(
        &self,
        sql: &str,
        number: usize,
        statement: &mut Statement<'_>,
        output: &mut dyn Output,
    ) -> Result<ControlFlow<()>> {
        let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let failure = |e: rusqlite::Error| self.failure(sql, number, &e, Doing::Running);
        // What stands for a `?` is NULL, as in the sqlite3 program.
        let mut rows = statement.raw_query();
        let mut next = rows.next().map_err(failure)?;
        if names.is_empty() {
            // INSERT and the like step once, and PRAGMA may, without a row that shows anything.
            while next.is_some() {
                next = rows.next().map_err(failure)?;
            }
            return self.unharmed().map(ControlFlow::Continue);
        }
        // Not before it is known to run: a statement that fails at once shows nothing.
        if output.begin(&names)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        while let Some(row) = next {
            let values = (0..names.len()).map(|n| row.get_ref(n));
            let values: Vec<_> = values.collect::<Result<_, _>>().map_err(failure)?;
            if output.row(&values)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            next = rows.next().map_err(failure)?;
        }
        self.unharmed()?;
        output.end()
    }

    /// An error that SQLite made a row of, as `PRAGMA integrity_check` does, or did without.
    fn unharmed(&self) -> Result<()> {
        self.vfs.take_failure().map_or(Ok(()), Err)
    }

    /// What came of a statement that failed, counted from 1.
    fn failure(&self, sql: &str, number: usize, error: &rusqlite::Error, doing: Doing) -> Error {
        if let Some(below) = self.vfs.take_failure() {
            return below;
        }
        let place = match error {
            rusqlite::Error::SqlInputError {
                sql: rest, offset, ..
            } => place(sql, rest, *offset),
            _ => format!("statement {number}"),
        };
        refused(&place, explained(error, doing))
    }
}

/// How far a statement had come.
#[derive(Clone, Copy)]
enum Doing {
    Preparing,
    Running,
}

/// SQLite's words, or ours where they would not say what to do instead.
fn explained(error: &rusqlite::Error, doing: Doing) -> String {
    match (error.sqlite_error_code(), doing) {
        (Some(ErrorCode::ReadOnly), _)
        | (Some(ErrorCode::AuthorizationForStatementDenied), Doing::Running) => {
            "a moment is read only; `sqlrepl restore` makes a file of it that can be changed".into()
        }
        (Some(ErrorCode::AuthorizationForStatementDenied), Doing::Preparing) => {
            "a query sees one moment and no other file; `sqlrepl mount` shows several, which \
             sqlite3 can ATTACH"
                .into()
        }
        _ => match error {
            rusqlite::Error::SqlInputError { msg, .. }
            | rusqlite::Error::SqliteFailure(_, Some(msg)) => msg.clone(),
            other => other.to_string(),
        },
    }
}

fn refused(place: &str, why: impl std::fmt::Display) -> Error {
    Error::refused(format!("{place}: {why}"))
}

/// Where SQLite stopped, in all of the text: it was given `rest`, and counts bytes in that.
fn place(sql: &str, rest: &str, offset: i32) -> String {
    let offset = usize::try_from(offset).unwrap_or(0);
    let read = sql.len().saturating_sub(rest.len()) + offset;
    let before = sql.get(..read).unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    let lines = before.matches('\n').count() + 1;
    format!("line {lines}, column {}", line.chars().count() + 1)
}

/// Nothing but the moment is opened: neither read, nor written as VACUUM INTO would, which attaches
/// its target.
fn no_other_file(asked: AuthContext<'_>) -> Authorization {
    match asked.action {
        AuthAction::Attach { .. } => Authorization::Deny,
        // One whose file name is not known before the statement runs.
        AuthAction::Unknown { code, .. } if code == ffi::SQLITE_ATTACH => Authorization::Deny,
        _ => Authorization::Allow,
    }
}

#[cfg(test)]
mod tests;
