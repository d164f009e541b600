//! `sqlrepl restore`

use crate::cli::args::Restore;
use crate::cli::{clock, replica_at, say};
use indicatif::{ProgressBar, ProgressStyle};
use sqlrepl::error::Result;
use sqlrepl::format::ids::RestorePoint;
use sqlrepl::format::moment::Moment;
use sqlrepl::restore::{RestoreOptions, refuse_existing, restore, summarize};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) async fn run(args: Restore) -> Result<()> {
    if args.if_db_not_exists && args.output.exists() {
        tracing::info!("{} exists: nothing to restore", args.output.display());
        return Ok(());
    }
    refuse_existing(&args.output)?;
    let moment = match (&args.timestamp, &args.txid) {
        (_, Some(txid)) => Moment::parse_txid(txid)?,
        (Some(time), None) => Moment::parse_time(time, clock()())?,
        (None, None) => Moment::Latest,
    };
    let replica = replica_at(&args.replica).await?;
    let point = match args.generation {
        Some(generation) => replica.resolve_in(generation, moment)?,
        None => replica.resolve(moment)?,
    };
    let database = replica.open(&point).await?;
    if args.dry_run {
        let summary = summarize(&database, &args.output).await?;
        return say(&format!(
            "would restore {}: {} bytes, from {} bytes in {} objects by {} reads",
            described(&args, &point),
            summary.file_bytes,
            summary.stored_bytes,
            summary.objects,
            summary.reads
        ));
    }
    let (bar, progress) = progress();
    let options = RestoreOptions {
        parallelism: args.parallelism,
        progress: Some(progress),
    };
    let restored = restore(&database, &args.output, &options).await;
    bar.finish_and_clear();
    let summary = restored?;
    say(&format!(
        "restored {}: {} bytes",
        described(&args, &point),
        summary.file_bytes
    ))
}

fn described(args: &Restore, point: &RestorePoint) -> String {
    format!(
        "{} as of {} (txid {} of generation {}) to {}",
        args.replica,
        point.time,
        point.txid,
        point.generation,
        args.output.display()
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
