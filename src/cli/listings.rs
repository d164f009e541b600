//! `sqlrepl generations`, `snapshots`, `wal` and `points`: what a replica holds.

use crate::cli::args::{Listing, OfGeneration, Points};
use crate::cli::config::Config;
use crate::cli::moment::twice;
use crate::cli::table::{self, Align, Column};
use crate::cli::target::{Candidate, Target, first};
use crate::cli::{CACHE_BYTES, clock};
use serde_json::{Value, json};
use sqlrepl::error::{Error, Result};
use sqlrepl::format::ids::{GenerationId, RestorePoint, Timestamp};
use sqlrepl::format::moment::Moment;
use sqlrepl::materialize::replica::{PointsQuery, Replica};
use std::sync::Arc;

pub(crate) async fn generations(args: Listing, config: &Config) -> Result<()> {
    const COLUMNS: [Column; 9] = [
        ("GENERATION", Align::Left),
        ("PARENT", Align::Left),
        ("SHARED", Align::Left),
        ("FIRST", Align::Left),
        ("LAST", Align::Left),
        ("SNAPSHOTS", Align::Right),
        ("SEGMENTS", Align::Right),
        ("BYTES", Align::Right),
        ("REASON", Align::Left),
    ];
    let candidates = whole(&args, config).await?;
    let replica = replica_of(&candidates, None).await?;
    let time = |point: Option<RestorePoint>| json!(point.map(|point| point.time.to_string()));
    let mut rows = Vec::new();
    for generation in replica.generations() {
        let parent = generation.claim.as_ref().and_then(|claim| claim.parent);
        rows.push(vec![
            json!(generation.id),
            json!(parent.map(|parent| parent.generation)),
            json!(parent.map(|parent| parent.txid)),
            time(generation.first),
            time(generation.last),
            json!(generation.snapshots),
            json!(generation.segments),
            json!(generation.bytes),
            json!(generation.claim.map(|claim| claim.reason)),
        ]);
    }
    table::print(&COLUMNS, &rows, args.json)?;
    damage(&replica)
}

pub(crate) async fn snapshots(args: Listing, config: &Config) -> Result<()> {
    const COLUMNS: [Column; 9] = [
        ("GENERATION", Align::Left),
        ("TXID", Align::Left),
        ("TIME", Align::Left),
        ("PAGES", Align::Right),
        ("STORED", Align::Right),
        ("BYTES", Align::Right),
        ("RATIO", Align::Right),
        ("EXACT", Align::Left),
        ("COMPLETE", Align::Left),
    ];
    let candidates = whole(&args, config).await?;
    let replica = replica_of(&candidates, None).await?;
    let mut rows = Vec::new();
    for snapshot in replica.snapshots() {
        rows.push(vec![
            json!(snapshot.generation),
            json!(snapshot.txid),
            json!(snapshot.time.to_string()),
            json!(snapshot.pages),
            json!(snapshot.stored),
            json!(snapshot.bytes),
            ratio(snapshot.raw_bytes, snapshot.bytes),
            json!(snapshot.is_exact),
            json!(snapshot.is_complete),
        ]);
    }
    table::print(&COLUMNS, &rows, args.json)?;
    damage(&replica)
}

pub(crate) async fn wal(args: OfGeneration, config: &Config) -> Result<()> {
    const COLUMNS: [Column; 10] = [
        ("GENERATION", Align::Left),
        ("LEVEL", Align::Right),
        ("FIRST", Align::Left),
        ("LAST", Align::Left),
        ("TIME", Align::Left),
        ("COUNT", Align::Right),
        ("VERSIONS", Align::Right),
        ("BYTES", Align::Right),
        ("RATIO", Align::Right),
        ("THINNED", Align::Left),
    ];
    let candidates = whole(&args.listing, config).await?;
    let replica = replica_of(&candidates, args.generation).await?;
    let mut rows = Vec::new();
    for segment in replica.segments(args.generation) {
        rows.push(vec![
            json!(segment.generation),
            json!(segment.level),
            json!(segment.first),
            json!(segment.last),
            json!(segment.time.map(|time| time.to_string())),
            json!(segment.count),
            json!(segment.versions),
            json!(segment.bytes),
            ratio(segment.raw_bytes, segment.bytes),
            json!(segment.is_thinned),
        ]);
    }
    table::print(&COLUMNS, &rows, args.listing.json)?;
    damage(&replica)
}

pub(crate) async fn points(args: Points, config: &Config) -> Result<()> {
    const COLUMNS: [Column; 6] = [
        ("GENERATION", Align::Left),
        ("TXID", Align::Left),
        ("TIME", Align::Left),
        ("PAGES", Align::Right),
        ("SIZE", Align::Right),
        ("LEVEL", Align::Right),
    ];
    let listing = &args.of.listing;
    let (target, at) = Target::find_at(&listing.target, config).await?;
    let candidates = target.candidates(listing.replica.as_deref())?;
    let mut query = PointsQuery {
        generation: args.of.generation,
        since: args.since.as_deref().map(time_of).transpose()?,
        until: args.until.as_deref().map(time_of).transpose()?,
        newest: args.limit,
    };
    if let (Some(at), Some(_)) = (&at, query.until) {
        return Err(twice(at, "--until"));
    }
    let replica = replica_of(&candidates, args.of.generation).await?;
    if let Some(at) = at {
        narrow(&mut query, &replica, at.moment)?;
    }
    let mut rows: Vec<Vec<Value>> = Vec::new();
    for point in replica.points(&query) {
        let page_size = replica.page_size(point.generation);
        rows.push(vec![
            json!(point.generation),
            json!(point.txid),
            json!(point.time.to_string()),
            json!(point.pages),
            json!(page_size.map(|bytes| u64::from(point.pages) * u64::from(bytes))),
            // Of the segment that holds it; a snapshot has none.
            replica
                .level(&point)
                .map_or(json!("S"), |level| json!(level)),
        ]);
    }
    table::print(&COLUMNS, &rows, listing.json)?;
    damage(&replica)
}

/// How many bytes one stored byte stands for, to a tenth.
fn ratio(raw_bytes: Option<u64>, bytes: u64) -> Value {
    json!(raw_bytes.map(|raw| (raw as f64 / bytes as f64 * 10.0).round() / 10.0))
}

/// Has a query end with a moment: a time, or a transaction in its own generation.
fn narrow(query: &mut PointsQuery, replica: &Replica, moment: Moment) -> Result<()> {
    match (moment, query.generation) {
        (Moment::Latest, _) => {}
        (Moment::At(time), _) => query.until = Some(time),
        (Moment::Txid(..), generation) => {
            let point = match generation {
                Some(generation) => replica.resolve_in(generation, moment)?,
                None => replica.resolve(moment)?,
            };
            query.generation = Some(point.generation);
            // Times ascend strictly within a generation.
            query.until = Some(point.time);
        }
    }
    Ok(())
}

/// The replicas of a target that are listed for all moments at once.
async fn whole(args: &Listing, config: &Config) -> Result<Vec<Candidate>> {
    let why = "this lists what all moments of a replica are made of, and only `points`, \
               `query` and `restore` take one";
    let target = Target::find_whole(&args.target, config, why).await?;
    target.candidates(args.replica.as_deref())
}

/// The first replica that answers, and has the generation if one is named.
async fn replica_of(
    candidates: &[Candidate],
    generation: Option<GenerationId>,
) -> Result<Arc<Replica>> {
    let look = async |replica: &Arc<Replica>| replica.refresh().await;
    first(candidates, CACHE_BYTES, look, async |replica, _, ()| {
        refuse_unknown(replica, generation)?;
        Ok((Arc::clone(replica), None))
    })
    .await
}

/// After the listing of what is there: what is damaged or missing is a failure.
fn damage(replica: &Replica) -> Result<()> {
    let mut troubles = replica.troubles();
    let Some(last) = troubles.pop() else {
        return Ok(());
    };
    for trouble in troubles {
        tracing::error!("{trouble}");
    }
    Err(last)
}

fn refuse_unknown(replica: &Replica, generation: Option<GenerationId>) -> Result<()> {
    let known = |id| {
        replica
            .generations()
            .iter()
            .any(|generation| generation.id == id)
    };
    match generation {
        Some(id) if !known(id) => Err(Error::not_found(format!("there is no generation {id}"))),
        _ => Ok(()),
    }
}

/// The time that a user's words mean: as everywhere the end of the unit that they name.
fn time_of(words: &str) -> Result<Timestamp> {
    let now = clock()();
    match Moment::parse_time(words, now)? {
        Moment::At(time) => Ok(time),
        Moment::Latest | Moment::Txid(..) => Ok(now),
    }
}
