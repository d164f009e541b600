//! `sqlrepl query`

use crate::cli::args::Query;
use crate::cli::config::Config;
use crate::cli::gathered::Gathered;
use crate::cli::moment::{asked, open};
use crate::cli::rows::{Format, Rows};
use crate::cli::target::Target;
use sqlrepl::error::{Error, Result};
use sqlrepl::format::moment::Moment;
use sqlrepl::query::Session;
use std::cell::Cell;
use std::io;
use tokio::task::spawn_blocking;

/// No signal is caught: there is nothing to put in order, and a statement may run for long.
pub(crate) async fn run(args: Query, config: &Config) -> Result<()> {
    let (target, at) = Target::find_at(&args.target, config).await?;
    let candidates = target.candidates(args.of.replica.as_deref())?;
    let moment = asked(at.as_ref(), &args.of.words)?.unwrap_or(Moment::Latest);
    let sql = statements(args.sql)?;
    let seen = Cell::default();
    let opened = open(
        &candidates,
        moment,
        args.of.generation,
        args.page_cache,
        &seen,
    )
    .await?;
    let format = match (args.csv, args.json) {
        (true, _) => Format::Csv,
        (_, true) => Format::Json,
        _ => Format::Table,
    };
    // SQLite waits for its pages, and so needs a thread of its own.
    let running = spawn_blocking(move || {
        let session = Session::open(opened.database)?;
        session.run(&sql, &mut Rows::new(Gathered::new(io::stdout())?, format))
    });
    running
        .await
        .map_err(|broken| Error::corrupt(format!("a bug: the query broke off: {broken}")))?
}

fn statements(argument: Option<String>) -> Result<String> {
    match argument {
        Some(sql) => Ok(sql),
        None => io::read_to_string(io::stdin()).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => {
                Error::invalid("the standard input is no text in UTF-8, so it is no SQL")
            }
            _ => Error::disk("read SQL from the standard input", e),
        }),
    }
}
