//! `sqlrepl points`

use crate::cli::args::Points;
use crate::cli::table::{self, Align, Column};
use crate::cli::{clock, replica_at};
use serde_json::json;
use sqlrepl::error::{Error, Result};
use sqlrepl::format::ids::Timestamp;
use sqlrepl::format::moment::Moment;
use sqlrepl::materialize::replica::PointsQuery;

const COLUMNS: [Column; 5] = [
    ("GENERATION", Align::Left),
    ("TXID", Align::Left),
    ("TIME", Align::Left),
    ("PAGES", Align::Right),
    ("SIZE", Align::Right),
];

pub(crate) async fn run(args: Points) -> Result<()> {
    let replica = replica_at(&args.of.listing.replica).await?;
    let query = PointsQuery {
        generation: args.of.generation,
        since: args.since.as_deref().map(bound).transpose()?,
        until: args.until.as_deref().map(bound).transpose()?,
        newest: args.limit,
    };
    let points = replica.points(&query);
    let mut rows = Vec::with_capacity(points.len());
    for point in points {
        let page_size = replica.page_size(point.generation).unwrap_or(0);
        rows.push(vec![
            json!(point.generation),
            json!(point.txid),
            json!(point.time.to_string()),
            json!(point.pages),
            json!(u64::from(point.pages) * u64::from(page_size)),
        ]);
    }
    table::print(&COLUMNS, &rows, args.of.listing.json);
    Ok(())
}

/// The time that a user's words mean.
fn bound(words: &str) -> Result<Timestamp> {
    let now = clock()();
    match Moment::parse_time(words, now)? {
        Moment::At(time) => Ok(time),
        Moment::Latest => Ok(now),
        Moment::Txid(..) => Err(Error::invalid(format!("{words:?} is no time"))),
    }
}
