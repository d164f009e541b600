//! `sqlrepl restore`

use crate::cli::args::Restore;
use crate::cli::config::Config;
use crate::cli::moment::{asked, open};
use crate::cli::target::{AS_WRITTEN, Target};
use crate::cli::{CACHE_BYTES, say};
use indicatif::{ProgressBar, ProgressStyle};
use sqlrepl::error::{Error, ErrorKind, Result};
use sqlrepl::format::ids::RestorePoint;
use sqlrepl::format::moment::Moment;
use sqlrepl::materialize::pages::Database;
use sqlrepl::restore::{RestoreOptions, refuse_existing, restore, summarize};
use std::cell::Cell;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) async fn run(args: Restore, config: &Config) -> Result<()> {
    let (target, at) = match Target::find_at(&args.target, config).await {
        Err(e)
            if e.kind() == ErrorKind::NotFound
                && args.if_replica_exists
                && may_come(&args.target, config) =>
        {
            return nothing_yet(&args.target, &e);
        }
        found => found?,
    };
    if let (true, Target::Replica(_), Some(at)) = (args.if_replica_exists, &target, &at) {
        // It may be a replica of its own that is not there yet, beside this one.
        return Err(Error::invalid(format!(
            "{}: with --if-replica-exists say the moment with --timestamp or --txid, since {} may \
             belong to the name; {AS_WRITTEN}",
            args.target, at.words
        )));
    }
    let candidates = target.candidates(args.of.replica.as_deref())?;
    let output = output(&args, &target)?;
    if args.if_db_not_exists && output.exists() {
        tracing::info!("{} exists: nothing to restore", output.display());
        return Ok(());
    }
    refuse_existing(&output)?;
    let moment = asked(at.as_ref(), &args.of.words)?.unwrap_or(Moment::Latest);
    let seen = Cell::new(false);
    match open(&candidates, moment, args.of.generation, CACHE_BYTES, &seen).await {
        Err(e) if args.if_replica_exists && e.kind() == ErrorKind::NotFound && !seen.get() => {
            nothing_yet(&args.target, &e)
        }
        opened => {
            let opened = opened?;
            let what = described(&opened.from, &opened.point, &output);
            write(&args, &opened.database, &output, &what).await
        }
    }
}

/// Whether what is not there may only not be there yet: a place, where a name that the config file
/// does not know is more likely a slip.
fn may_come(target: &str, config: &Config) -> bool {
    target.contains('/') || config.known().is_none()
}

fn nothing_yet(target: &str, why: &Error) -> Result<()> {
    tracing::info!("{target} holds nothing to restore yet: {why}");
    Ok(())
}

/// The file to write.
fn output(args: &Restore, target: &Target<'_>) -> Result<PathBuf> {
    match (&args.output, target) {
        (Some(output), _) => Ok(output.clone()),
        (None, Target::Database(database)) => Ok(database.capture.database.clone()),
        (None, Target::Replica(candidate)) => Err(Error::invalid(format!(
            "{}: a replica does not say where its database belongs; give -o PATH, or a database \
             of the config file",
            candidate.name
        ))),
    }
}

async fn write(args: &Restore, database: &Arc<Database>, output: &Path, what: &str) -> Result<()> {
    if args.dry_run {
        let summary = summarize(database, output).await?;
        return say(&format!(
            "would restore {what}: {} bytes, from {} bytes in {} objects by {} reads",
            summary.file_bytes, summary.stored_bytes, summary.objects, summary.reads
        ));
    }
    let (bar, progress) = progress();
    let options = RestoreOptions {
        parallelism: args.parallelism,
        progress: Some(progress),
    };
    let restored = restore(database, output, &options).await;
    bar.finish_and_clear();
    let summary = restored?;
    say(&format!("restored {what}: {} bytes", summary.file_bytes))
}

fn described(from: &str, point: &RestorePoint, output: &Path) -> String {
    format!(
        "{from} as of {} (txid {} of generation {}) to {}",
        point.time,
        point.txid,
        point.generation,
        output.display()
    )
}

/// Stored bytes from which on a restore takes long enough to say where it is.
const LOGGED_BYTES: u64 = 16 << 20;

/// A bar on a terminal, log lines elsewhere.
fn progress() -> (ProgressBar, Arc<dyn Fn(u64, u64) + Send + Sync>) {
    if std::io::stderr().is_terminal() {
        let bar = ProgressBar::new(0);
        let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
        let shown = bar.clone();
        let show = move |done, total| {
            shown.set_length(total);
            shown.set_position(done);
        };
        return (bar, Arc::new(show));
    }
    let logged = AtomicU64::new(0);
    let log = move |done: u64, total: u64| {
        let tenths = done * 10 / total.max(1);
        if total >= LOGGED_BYTES && tenths > logged.fetch_max(tenths, Ordering::Relaxed) {
            tracing::info!("restore: {}0 % of {total} stored bytes read", tenths);
        }
    };
    (ProgressBar::hidden(), Arc::new(log))
}
