//! Cold queries of a mount beside those of Litestream's VFS: the same pages on the same server,
//! asked by the same program.

use super::cold::{AWAY, forget, total};
use super::{SMALL, milliseconds, random_ids, replicated};
use crate::bench::{RUNS, Row};
use crate::clients::python_with;
use crate::program::{Output, bound, run};
use crate::s3_server::{ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY};
use crate::world::World;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const ROWS: u32 = 200_000;
/// Pages of it that a scan of these rows reads: so few, since each is a request of the VFS.
const SCANNED: u32 = 10_000;

const PACKAGE: &str = "litestream-vfs==0.5.17";

/// Litestream's VFS with a replica in its own format.
struct Peer<'a> {
    world: &'a World,
    python: PathBuf,
}

/// What a query took.
struct Asked {
    seconds: f64,
    said: String,
}

impl Peer<'_> {
    /// Runs the program with the replica, and what else it is told.
    fn run(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Output {
        let endpoint = self.world.server().endpoint();
        let url = format!("s3://peer/app?endpoint={endpoint}&region={REGION}&forcePathStyle=true");
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/litestream.py");
        let mut command = bound(&self.python);
        command
            .arg(program)
            .args(arguments)
            .current_dir(self.world.path(""))
            .env("LITESTREAM_REPLICA_URL", url)
            .env("LITESTREAM_ACCESS_KEY_ID", ACCESS_KEY_ID)
            .env("LITESTREAM_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
            .env("LITESTREAM_LOG_LEVEL", "error")
            // Its client does not start where the environment names certificates.
            .env_remove("AWS_CA_BUNDLE")
            .envs(settings.iter().copied());
        run(&mut command)
    }

    /// Copies a database into the replica, through the VFS, which writes it in its own way.
    fn fill(&self, database: &str) -> Result<(), Output> {
        let buffer = self.world.path("buffer");
        let writes = [
            ("LITESTREAM_WRITE_ENABLED", "true"),
            ("LITESTREAM_BUFFER_PATH", buffer.to_str().unwrap()),
        ];
        let filled = self.run(&["fill", database], &writes);
        if filled.code == 0 {
            Ok(())
        } else {
            Err(filled)
        }
    }

    /// Asks a file, or `vfs`, in a new process with every request slower.
    fn ask(&self, file: &str, query: &Query, settings: &[(&str, &str)]) -> Asked {
        let server = self.world.server();
        let numbers: Vec<String> = query.numbers.iter().map(u32::to_string).collect();
        let words = ["ask", file, query.of];
        let numbers = numbers.iter().map(String::as_str);
        let arguments: Vec<&str> = words.into_iter().chain(numbers).collect();
        server.set(|settings| settings.latency = AWAY);
        server.reset();
        let printed = self.run(&arguments, settings).ok();
        let counts = server.counts();
        server.set(|settings| settings.latency = Duration::ZERO);
        let (requests, sent) = (total(&counts), counts.sent as f64 / 1e6);
        Asked {
            seconds: printed.trim().parse().unwrap(),
            said: format!("{requests} requests, {sent:.1} MB"),
        }
    }

    /// The same through a new mount.
    fn ask_mount(&self, query: &Query, options: &str) -> Asked {
        let options = format!("mount {SMALL} replicas mnt {options}");
        let _mount = self.world.mount_at(&options);
        self.ask("mnt/app/now.db", query, &[])
    }
}

/// Numbers that something is asked for.
struct Query {
    what: &'static str,
    of: &'static str,
    numbers: Vec<u32>,
    runs: usize,
}

/// The median run.
fn median(runs: usize, ask: impl Fn() -> Asked) -> Asked {
    let mut all: Vec<Asked> = (0..runs).map(|_| ask()).collect();
    all.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    all.swap_remove(runs / 2)
}

fn row(what: &'static str, ours: &Asked, theirs: &Asked) -> Row {
    milliseconds(what, ours.seconds, "", f64::INFINITY).beside(format!(
        "{}; the VFS: {:.0} ms, {}",
        ours.said,
        theirs.seconds * 1e3,
        theirs.said
    ))
}

/// Cold queries of 200 MB some way off, beside Litestream's VFS; or why it has none.
pub(in crate::bench) fn litestream() -> Vec<Row> {
    let world = World::alone_on_s3();
    replicated(&world, ROWS);
    fs::create_dir(world.path(".s3/peer")).unwrap();
    world.sql("app.db", "PRAGMA journal_mode=DELETE");
    let peer = python_with("litestream-vfs-0.5.17", &[PACKAGE]).and_then(|python| {
        let world = &world;
        let peer = Peer { world, python };
        peer.fill("app.db").map(|()| peer)
    });
    match peer {
        Ok(peer) => compare(&peer),
        Err(output) => vec![Row {
            what: "Litestream's VFS",
            figure: "none".to_owned(),
            target: "",
            met: true,
            beside: output.to_string().trim().replace('\n', " "),
        }],
    }
}

fn compare(peer: &Peer) -> Vec<Row> {
    let ids = random_ids(2, 1_000, ROWS);
    let queries = [
        Query {
            what: "first point query of 200 MB, 25 ms away",
            of: "points",
            numbers: ids[..1].to_vec(),
            runs: RUNS,
        },
        Query {
            what: "  1,000 random points",
            of: "points",
            numbers: ids.clone(),
            runs: 1,
        },
        Query {
            what: "  a scan of 10 MB",
            of: "scan",
            numbers: vec![SCANNED],
            runs: 1,
        },
    ];
    let mut rows = Vec::new();
    for query in &queries {
        let ours = median(query.runs, || peer.ask_mount(query, ""));
        let theirs = median(query.runs, || peer.ask("vfs", query, &[]));
        rows.push(row(query.what, &ours, &theirs));
    }
    forget(peer.world);
    let ours = peer.ask_mount(&queries[1], "--cache-dir cache --hydrate always");
    let whole = peer.world.path("hydrated.db");
    let fetches = [
        ("LITESTREAM_HYDRATION_ENABLED", "true"),
        ("LITESTREAM_HYDRATION_PATH", whole.to_str().unwrap()),
    ];
    let theirs = peer.ask("vfs", &queries[1], &fetches);
    rows.push(row("  the same, fetched whole beside it", &ours, &theirs));
    rows
}
