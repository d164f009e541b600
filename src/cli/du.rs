//! `sqlrepl du`

use crate::cli::args::Kept;
use crate::cli::config::Config;
use crate::cli::kept::{Replica, Report, each, keeper, replicas};
use crate::cli::table::{Align, Column, as_json, as_text};
use serde_json::{Value, json};
use sqlrepl::config::settings::Retention;
use sqlrepl::error::Result;
use sqlrepl::maintain::keeper::asked::Usage;
use sqlrepl::maintain::requests::{Requests, of_a_day, storage_usd_a_month};
use sqlrepl::maintain::usage::Bytes;

const COLUMNS: [Column; 7] = [
    ("GENERATION", Align::Left),
    ("LIVE", Align::Right),
    ("HISTORY", Align::Right),
    ("INDEX", Align::Right),
    ("RECLAIMABLE", Align::Right),
    ("OTHER", Align::Right),
    ("TOTAL", Align::Right),
];

pub(crate) async fn run(args: Kept, config: &Config) -> Result<()> {
    let why = "`du` counts all bytes of a replica, which its moments share";
    let replicas = replicas(&args, config, why).await?;
    each(&replicas, args.json, async |replica| {
        let retention = replica.retention.unwrap_or(Retention::WEEK);
        let (mut keeper, _directory) = keeper(replica, retention).await?;
        let usage = keeper.usage().await?;
        let requests = of_a_day(usage.commits.iter().copied(), replica.sync_interval);
        Ok(report(replica, &usage, &requests))
    })
    .await
}

fn report(replica: &Replica<'_>, usage: &Usage, requests: &Requests) -> Report {
    let generations = usage.generations.iter();
    let mut rows: Vec<Vec<Value>> = generations
        .map(|(id, bytes)| row(json!(id), bytes))
        .collect();
    rows.push(row(json!("all"), &usage.total));
    let stored = usage.total.total();
    let usd = (requests.usd_a_month(), storage_usd_a_month(stored));
    let Requests { puts, lists, gets } = requests;
    let text = format!(
        "{}: {stored} bytes\n{}{} commits in the last 24 h: about {puts} PUT, {lists} LIST and \
         {gets} GET a day\nat S3 standard prices {:.2} USD a month for requests like these, {:.2} \
         USD for the bytes",
        replica.name,
        as_text(&COLUMNS, &rows),
        usage.commits.len(),
        usd.0,
        usd.1
    );
    Report {
        text,
        json: json!({
            "replica": replica.name,
            "location": replica.location.to_string(),
            "bytes": as_json(&COLUMNS, &rows),
            "commits": usage.commits.len(),
            "requests": { "put": puts, "list": lists, "get": gets },
            "usd_a_month": { "requests": usd.0, "bytes": usd.1 },
        }),
    }
}

fn row(name: Value, bytes: &Bytes) -> Vec<Value> {
    let numbers = [
        bytes.live,
        bytes.history,
        bytes.index,
        bytes.reclaimable,
        bytes.other,
        bytes.total(),
    ];
    let numbers = numbers.map(|number| json!(number));
    [name].into_iter().chain(numbers).collect()
}
