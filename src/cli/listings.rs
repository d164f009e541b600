//! `sqlrepl generations`, `snapshots`, `wal` and `points`: what a replica holds.

use crate::cli::args::{Listing, Objects, Points};
use crate::cli::config::Config;
use crate::cli::moment::{asked, end, twice};
use crate::cli::table::{self, Align, Column};
use crate::cli::target::{Candidate, Target, first};
use crate::cli::{CACHE_BYTES, clock};
use serde_json::{Value, json};
use sqlrepl::error::{Error, Result};
use sqlrepl::format::ids::{GenerationId, RestorePoint, Timestamp};
use sqlrepl::format::moment::Moment;
use sqlrepl::materialize::replica::{PointsQuery, Replica};
use std::collections::HashSet;
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
    let why = "`generations` lists the histories that all moments of a replica lie in";
    let target = Target::find_whole(&args.target, config, why).await?;
    let candidates = target.candidates(args.replica.as_deref())?;
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

pub(crate) async fn snapshots(args: Objects, config: &Config) -> Result<()> {
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
    let shown = Shown::find(&args, config).await?;
    let mut rows = Vec::new();
    for snapshot in shown.replica.snapshots() {
        if !shown.has(snapshot.generation, &snapshot.key) {
            continue;
        }
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
    table::print(&COLUMNS, &rows, args.of.listing.json)?;
    shown.damage()
}

pub(crate) async fn wal(args: Objects, config: &Config) -> Result<()> {
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
    let shown = Shown::find(&args, config).await?;
    let mut rows = Vec::new();
    for segment in shown.replica.segments(None) {
        if !shown.has(segment.generation, &segment.key) {
            continue;
        }
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
    table::print(&COLUMNS, &rows, args.of.listing.json)?;
    shown.damage()
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
            let point = resolve(replica, moment, generation)?;
            query.generation = Some(point.generation);
            // Times ascend strictly within a generation.
            query.until = Some(point.time);
        }
    }
    Ok(())
}

/// What of a replica is listed: the objects that reading one moment takes, those of one generation,
/// or all of them.
struct Shown {
    replica: Arc<Replica>,
    generation: Option<GenerationId>,
    /// The keys of a moment's.
    keys: Option<HashSet<String>>,
}

impl Shown {
    async fn find(args: &Objects, config: &Config) -> Result<Self> {
        let Objects { of, words } = args;
        let (target, at) = Target::find_at(&of.listing.target, config).await?;
        let candidates = target.candidates(of.listing.replica.as_deref())?;
        let generation = of.generation;
        let Some(moment) = asked(at.as_ref(), words)? else {
            let replica = replica_of(&candidates, generation).await?;
            return Ok(Self {
                replica,
                generation,
                keys: None,
            });
        };
        let has_others = candidates.len() > 1;
        let look = async |replica: &Arc<Replica>| {
            replica.refresh().await?;
            resolve(replica, moment, generation)
        };
        first(&candidates, CACHE_BYTES, look, async |replica, _, point| {
            let last = async || resolve(replica, Moment::Latest, generation);
            let end = end(moment, &point, has_others, last).await?;
            let shown = Self {
                replica: Arc::clone(replica),
                // What a moment needs may lie in an earlier one, too.
                generation: None,
                keys: Some(replica.keys_under(&point)?),
            };
            Ok((shown, end))
        })
        .await
    }

    fn has(&self, generation: GenerationId, key: &str) -> bool {
        let is_asked_for = self.generation.is_none_or(|only| only == generation);
        is_asked_for && self.keys.as_ref().is_none_or(|keys| keys.contains(key))
    }

    /// What is damaged of all that is listed. A moment whose objects are listed has all of them.
    fn damage(&self) -> Result<()> {
        match self.keys {
            Some(_) => Ok(()),
            None => damage(&self.replica),
        }
    }
}

/// The restore point of a moment, in one generation or by parentage.
fn resolve(
    replica: &Replica,
    moment: Moment,
    generation: Option<GenerationId>,
) -> Result<RestorePoint> {
    match generation {
        Some(generation) => replica.resolve_in(generation, moment),
        None => replica.resolve(moment),
    }
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
