//! `sqlrepl retain`

use crate::cli::args::Retain;
use crate::cli::compact::report;
use crate::cli::config::Config;
use crate::cli::kept::{Replica, Report, each, keeper, refuse_beside_daemon, replicas, why};
use crate::cli::table::{Align, Column, as_json, as_text};
use serde_json::{Value, json};
use sqlrepl::config::settings::Retention;
use sqlrepl::error::{Error, Result};
use sqlrepl::format::ids::{Timestamp, Txid};
use sqlrepl::maintain::keeper::asked::{Preview, Refused};
use sqlrepl::maintain::retain::Rewrite;
use std::collections::HashMap;

pub(crate) async fn run(args: Retain, config: &Config) -> Result<()> {
    let why = "`retain` decides about all moments of a replica, and --retention says which stay";
    let replicas = replicas(&args.kept, config, why).await?;
    if args.dry_run {
        return each(&replicas, args.kept.json, preview).await;
    }
    refuse_beside_daemon(&replicas, "look at what it does with --dry-run").await?;
    each(&replicas, args.kept.json, async |replica| {
        retain(replica, args.force).await
    })
    .await
}

async fn retain(replica: &Replica<'_>, is_forced: bool) -> Result<Report> {
    let retention = replica.retention.unwrap_or(Retention::WEEK);
    let (mut keeper, _directory) = keeper(replica, retention).await?;
    let done = keeper.apply_retention(is_forced).await?;
    match &done.refused {
        None => Ok(report(replica, &done, None)),
        Some(refused @ Refused::Recent(_)) => Err(Error::conflict(why(refused, &replica.name))),
        Some(refused @ Refused::Claim(_)) => Err(Error::corrupt(why(refused, &replica.name))),
        Some(refused @ Refused::Clock(_)) => Err(Error::unavailable(why(refused, &replica.name))),
    }
}

const STAYS: [Column; 7] = [
    ("GENERATION", Align::Left),
    ("FIRST", Align::Left),
    ("LAST", Align::Left),
    ("FROM", Align::Left),
    ("TO", Align::Left),
    ("COMMITS", Align::Right),
    ("WHY", Align::Left),
];
const THINNED: [Column; 4] = [
    ("KEY", Align::Left),
    ("BYTES", Align::Right),
    ("COMMITS", Align::Right),
    ("STAY", Align::Right),
];
const GOES: [Column; 3] = [
    ("KEY", Align::Left),
    ("BYTES", Align::Right),
    ("WHY", Align::Left),
];

async fn preview(replica: &Replica<'_>) -> Result<Report> {
    let retention = replica.retention.unwrap_or(Retention::WEEK);
    let (mut keeper, _directory) = keeper(replica, retention).await?;
    let preview = keeper.preview().await?;
    let sizes = preview.survey.all_sizes();
    let (stays, thinned) = (stays(&preview), thinned(&preview, &sizes));
    let goes = preview.decision.deletions.iter();
    let goes: Vec<Vec<Value>> = goes
        .map(|gone| {
            vec![
                json!(gone.key),
                json!(gone.size),
                json!(gone.why.to_string()),
            ]
        })
        .collect();
    let later = later(&preview, &sizes);
    let refused = preview.refused.as_ref();
    let refused = refused.map(|refused| why(refused, &replica.name));
    let mut text = String::new();
    let mut add = |title: &str, columns: &[Column], rows: &[Vec<Value>]| {
        text.push_str(&format!("{}: {title}: {}\n", replica.name, rows.len()));
        if !rows.is_empty() {
            text.push_str(&as_text(columns, rows));
        }
    };
    add("stays", &STAYS, &stays);
    add("would be thinned", &THINNED, &thinned);
    add("would go", &GOES, &goes);
    add("left to a daemon", &GOES, &later);
    text.extend(refused.clone());
    Ok(Report {
        text: text.trim_end().to_owned(),
        json: json!({
            "replica": replica.name,
            "location": replica.location.to_string(),
            "stays": as_json(&STAYS, &stays),
            "thinned": as_json(&THINNED, &thinned),
            "goes": as_json(&GOES, &goes),
            "later": as_json(&GOES, &later),
            "refused": refused,
        }),
    })
}

/// The restore points that stay, and why.
fn stays(preview: &Preview) -> Vec<Vec<Value>> {
    let txid = |point: Option<(Txid, Timestamp)>| json!(point.map(|(txid, _)| txid));
    let time = |point: Option<(Txid, Timestamp)>| json!(point.map(|(_, time)| time.to_string()));
    let recent = preview.decision.recent.iter().map(|recent| {
        let why = match recent.not_read {
            0 => "every commit of the window".to_owned(),
            unread => format!("every commit of the window, and of {unread} segments not read"),
        };
        vec![
            json!(recent.generation),
            txid(recent.first),
            txid(recent.last),
            time(recent.first),
            time(recent.last),
            json!(recent.points),
            json!(why),
        ]
    });
    let kept = preview.decision.kept.iter().map(|kept| {
        let point = Some((kept.txid, kept.time));
        vec![
            json!(kept.generation),
            txid(point),
            txid(point),
            time(point),
            time(point),
            json!(1),
            json!(kept.why.to_string()),
        ]
    });
    recent.chain(kept).collect()
}

/// The segments that would be stored again with fewer restore points.
fn thinned(preview: &Preview, sizes: &HashMap<&str, u64>) -> Vec<Vec<Value>> {
    let generations = &preview.survey.generations;
    let points = |rewrite: &Rewrite| {
        let segments = &generations.get(&rewrite.generation)?.segments;
        let segment = segments.iter().find(|s| s.listed.object.key == rewrite.key);
        Some(segment?.inside.as_ref()?.points.len())
    };
    let rewrites = preview.decision.rewrites.iter().map(|rewrite| {
        vec![
            json!(rewrite.key),
            json!(sizes.get(rewrite.key.as_str())),
            json!(points(rewrite)),
            json!(rewrite.keep.len()),
        ]
    });
    rewrites.collect()
}

/// Snapshots and parts that nothing needs, which takes two looks to be sure of.
fn later(preview: &Preview, sizes: &HashMap<&str, u64>) -> Vec<Vec<Value>> {
    let unneeded = preview.decision.unneeded.keys();
    let rows = unneeded.map(|key| {
        let why = "nothing needs it now: it goes when that is so a day later, too";
        vec![json!(key), json!(sizes.get(key.as_str())), json!(why)]
    });
    rows.collect()
}
