//! `sqlrepl compact`

use crate::cli::args::Compact;
use crate::cli::config::Config;
use crate::cli::kept::{Replica, Report, each, keeper, refuse_beside_daemon, replicas, why};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use sqlrepl::config::settings::Retention;
use sqlrepl::error::Result;
use sqlrepl::maintain::keeper::asked::Done;
use std::io::IsTerminal;
use std::time::Duration;

pub(crate) async fn run(args: Compact, config: &Config) -> Result<()> {
    let why = "`compact` merges all of a replica, and no single moment";
    let replicas = replicas(&args.kept, config, why).await?;
    if args.snapshot {
        return each(&replicas, args.kept.json, snapshot).await;
    }
    refuse_beside_daemon(&replicas, "take a snapshot with --snapshot").await?;
    each(&replicas, args.kept.json, async |replica| {
        compact(replica, args.force).await
    })
    .await
}

async fn compact(replica: &Replica<'_>, is_forced: bool) -> Result<Report> {
    // Where nobody is known to have said how long restore points stay, all of them do.
    let retention = replica.retention.unwrap_or(Retention::EVERYTHING);
    let (mut keeper, _directory) = keeper(replica, retention).await?;
    let bar = bar("{bar:40} {pos}/{len} segments {eta}");
    let shown = bar.clone();
    let show = move |done, all| {
        shown.set_length(all);
        shown.set_position(done);
    };
    let done = keeper.compact(is_forced, &show).await;
    bar.finish_and_clear();
    let done = done?;
    let (before, after) = done.segments;
    let merged = match before > after {
        true => format!("merged {before} segments into {after}"),
        false => "nothing to merge".to_owned(),
    };
    Ok(report(replica, &done, Some(merged)))
}

/// What thinned and deleted, and before that perhaps merged.
pub(crate) fn report(replica: &Replica<'_>, done: &Done, merged: Option<String>) -> Report {
    let refused = done
        .refused
        .as_ref()
        .map(|refused| why(refused, &replica.name));
    let (objects, bytes) = done.deleted;
    let mut parts: Vec<String> = merged.into_iter().collect();
    if done.thinned > 0 {
        parts.push(format!("thinned {}", done.thinned));
    }
    match objects {
        0 if refused.is_some() => {}
        0 => parts.push("nothing to delete".to_owned()),
        _ => parts.push(format!("deleted {objects} objects, {bytes} bytes")),
    }
    let mut text = format!("{}: {}", replica.name, parts.join(", "));
    if let Some(refused) = &refused {
        text.push_str(&format!("\n{refused}"));
    }
    Report {
        text,
        json: json!({
            "replica": replica.name,
            "location": replica.location.to_string(),
            "segments_before": done.segments.0,
            "segments_after": done.segments.1,
            "thinned": done.thinned,
            "deleted": objects,
            "deleted_bytes": bytes,
            "refused": refused,
        }),
    }
}

async fn snapshot(replica: &Replica<'_>) -> Result<Report> {
    // It deletes nothing.
    let (mut keeper, _directory) = keeper(replica, Retention::EVERYTHING).await?;
    let bar = bar("{spinner} taking a snapshot of {msg} {elapsed}");
    bar.set_message(replica.name.clone());
    bar.enable_steady_tick(Duration::from_millis(100));
    let taken = keeper.snapshot_now().await;
    bar.finish_and_clear();
    let (name, taken) = (&replica.name, taken?);
    let text = match &taken {
        Some(taken) => format!(
            "{name}: took a snapshot of txid {}, {} pages in {} bytes: {}",
            taken.txid, taken.pages, taken.bytes, taken.key
        ),
        None => format!("{name}: nothing was committed since the last snapshot"),
    };
    let json = taken.map(|taken| {
        json!({
            "key": taken.key,
            "txid": taken.txid,
            "pages": taken.pages,
            "bytes": taken.bytes,
        })
    });
    Ok(Report {
        text,
        json: json!({
            "replica": name,
            "location": replica.location.to_string(),
            "snapshot": json,
        }),
    })
}

/// A bar on a terminal.
fn bar(template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
    bar
}
