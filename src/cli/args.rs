//! The command line.

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use nix::unistd::{Group, User};
use sqlrepl::config::settings::Retention;
use sqlrepl::config::{
    parse_duration, parse_merged_grace, parse_period, parse_retention, parse_size,
};
use sqlrepl::format::ids::GenerationId;
use sqlrepl::materialize::hydrate;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// SQLite replication with time travel: every commit stays a file that opens in milliseconds.
#[derive(Debug, Parser)]
#[command(
    name = "sqlrepl",
    version,
    disable_help_subcommand = true,
    args_override_self = true
)]
pub(crate) struct Cli {
    /// The config file [default: $SQLREPL_CONFIG, else /etc/sqlrepl.toml]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Understands a command line, or ends the process with what is to be said of it.
    pub(crate) fn understand(argv: &[OsString]) -> Self {
        let mut command = Self::command();
        // No option has a blank in it. SQL that begins with a comment has; only where there is such
        // an argument may SQL look like an option, so that a slip is called what it is.
        let is_comment = |word: &OsString| {
            let word = word.to_string_lossy();
            word.starts_with("--") && word.contains(char::is_whitespace)
        };
        if argv.iter().any(is_comment) {
            command = command.mut_subcommand("query", |query| {
                query.mut_arg("sql", |sql| sql.allow_hyphen_values(true))
            });
        }
        let understood = Self::from_arg_matches(&command.get_matches_from(argv));
        understood.unwrap_or_else(|e| e.exit())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send every commit of a database to its replicas, until SIGINT or SIGTERM
    Replicate(Replicate),
    /// Wait until everything committed by now is durable on the replicas
    Sync(Sync),
    /// Say how a running `replicate` gets on
    Status(Status),
    /// Show replicas as files: one for each moment of each database
    ///
    /// mount(8) and /etc/fstab know it as file system type sqlrepl or fuse.sqlrepl. Their options
    /// are those below, as in -o allow_other,page_cache=64MiB, and their source is SOURCE, or the
    /// path of a config file (*.toml), or none for the databases of the config file.
    #[command(verbatim_doc_comment)]
    Mount(Mount),
    /// End a mount: also one whose process was killed
    Umount(Umount),
    /// Write a database as it was to a new file
    Restore(Restore),
    /// Run SQL on a moment of a replica, without a mount
    ///
    /// Prints what each statement gives: a table, or with --csv or --json what `sqlite3` prints
    /// with these options, but for headers in CSV, and blobs, which are hex digits everywhere.
    /// Only what the statements need is read of the replica, and nothing is written.
    #[command(verbatim_doc_comment)]
    Query(Query),
    /// List the generations of a replica
    Generations(Listing),
    /// List the snapshots of a replica; of app@5m-ago those that reading this moment takes
    Snapshots(Objects),
    /// List the WAL segments of a replica; of app@5m-ago those that reading this moment takes
    Wal(Objects),
    /// List the restore points of a replica; of app@5m-ago up to that moment
    Points(Points),
    /// Merge what a daemon that is gone left, and delete what nothing needs
    ///
    /// Of a database of the config file all replicas, or the one of --replica; or any replica. The
    /// WAL segments of all generations become as few as their sizes allow. Then what is merged or
    /// no longer wanted is deleted, if nothing was added to the replica for 24 hours. Restore
    /// points are given up only as the config file or --retention says. A daemon that runs does
    /// all this by itself, and also deletes snapshots that nothing needs any more, which only a
    /// daemon does: it takes two looks a day apart. Temporary files lie in $TMPDIR.
    #[command(verbatim_doc_comment)]
    Compact(Compact),
    /// Give up restore points now as retention says, and delete what only they needed
    ///
    /// Of a database of the config file all replicas, or the one of --replica; or any replica.
    /// Nothing is deleted if something was added to the replica within 24 hours, and nothing
    /// beside a daemon, which does this by itself. Snapshots that nothing needs any more are left
    /// to a daemon: that takes two looks a day apart. Temporary files lie in $TMPDIR.
    #[command(verbatim_doc_comment)]
    Retain(Retain),
    /// Say what the bytes of a replica are for, and what its daemon asks of a store in a day
    ///
    /// LIVE: pages of the newest snapshot. HISTORY: page versions of WAL segments, and pages of
    /// snapshots that only older moments need. INDEX: what finds and checks them. RECLAIMABLE:
    /// objects that stand for nothing, or would not by the config file or --retention [default:
    /// 7d]. OTHER: what is damaged, or not ours. Each byte counts once.
    ///
    /// Requests are estimated from the commits of the last 24 hours, and prices are those of S3
    /// in the standard class, in US dollars.
    #[command(verbatim_doc_comment)]
    Du(Kept),
    /// List the databases of the config file, and their newest restore points
    Databases(Databases),
    /// Print the config file's path, and what is in force
    Config(Config),
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct Replicate {
    /// The database file; without it, the databases of the config file are replicated
    #[arg(requires = "replicas")]
    pub(crate) database: Option<PathBuf>,
    /// Where its replicas lie: a directory or s3://bucket/prefix each
    pub(crate) replicas: Vec<String>,
    #[command(flatten)]
    pub(crate) options: ReplicateOptions,
    /// If another writer began a generation above ours in a replica, begin one above that, so that
    /// readers follow this database again
    #[arg(long)]
    pub(crate) take_over: bool,
}

/// What the config file says of a database, for the one of the command line.
#[derive(Debug, Args)]
#[group(multiple = true, requires = "database")]
pub(crate) struct ReplicateOptions {
    /// How long the first commit that is not sent waits for company; 0 sends at once
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    pub(crate) sync_interval: Duration,
    /// Size of the -wal file past which we see to its restart
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = parse_size)]
    pub(crate) wal_size: u64,
    /// Never take SQLite's write lock, not even for the 10 ms that end a WAL nothing else ends
    #[arg(long)]
    pub(crate) no_writer_lock: bool,
    /// Where the spool lies [default: .<file>-sqlrepl beside the database]
    #[arg(long, value_name = "DIR")]
    pub(crate) meta_path: Option<PathBuf>,
    /// Bytes that the spool and a held-back WAL may take [default: a tenth of the free space, at
    /// most 10GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_spool_size: Option<u64>,
    /// How often to look at the database without having been woken
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    pub(crate) monitor_interval: Duration,
    /// Which restore points stay for how long: every commit for 7d, as in all=7d; or all=7d,
    /// hourly=30d,daily=1y, or some of these
    #[arg(long, value_name = "WINDOWS", default_value = "7d", value_parser = parse_retention)]
    pub(crate) retention: Retention,
    /// How often what is no longer wanted is looked for
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_period)]
    pub(crate) retention_check_interval: Duration,
    /// How often at least a snapshot is taken after changes
    #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = parse_period)]
    pub(crate) snapshot_interval: Duration,
    /// How long merged WAL segments stay; at least 15m
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_merged_grace)]
    pub(crate) merged_grace: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Sync {
    /// The database: by its name in the config file, or its path
    pub(crate) database: PathBuf,
    /// Only this replica, as it was given to `replicate`
    #[arg(long, value_name = "NAME")]
    pub(crate) replica: Option<String>,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Where the spool of `replicate` lies [default: .<file>-sqlrepl beside the database]
    #[arg(long, value_name = "DIR")]
    pub(crate) meta_path: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// The database: by its name in the config file, or its path; without it, all databases of the
    /// config file
    pub(crate) database: Option<PathBuf>,
    /// Where the spool of `replicate` lies [default: .<file>-sqlrepl beside the database]
    #[arg(long, value_name = "DIR", requires = "database")]
    pub(crate) meta_path: Option<PathBuf>,
    /// Print one JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(override_usage = "sqlrepl mount [OPTIONS] [SOURCE] <DIR>")]
pub(crate) struct Mount {
    /// What to show, and an empty directory for it. SOURCE is a replica, or a directory or prefix
    /// of replicas; without it, the databases of the config file are shown
    #[arg(required = true, num_args = 1..=2, value_name = "PLACE")]
    pub(crate) places: Vec<String>,
    /// Return when it is mounted, and go on in the background
    #[arg(long)]
    pub(crate) daemon: bool,
    /// The log [default: as the config file says; with --daemon syslog, unless that is a file]
    #[arg(long, value_name = "PATH")]
    pub(crate) log_file: Option<PathBuf>,
    /// Let other users look, too
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// Let root look, too
    #[arg(long, conflicts_with = "allow_other")]
    pub(crate) allow_root: bool,
    /// The user that everything belongs to, by name or number [default: who mounts]
    #[arg(long, value_name = "USER", value_parser = user)]
    pub(crate) uid: Option<u32>,
    /// The group that everything belongs to, by name or number [default: that of who mounts]
    #[arg(long, value_name = "GROUP", value_parser = group)]
    pub(crate) gid: Option<u32>,
    /// The permissions to take away, in octal: with 027 only owner and group may read
    #[arg(long, value_name = "MASK", default_value = "000", value_parser = umask)]
    pub(crate) umask: u16,
    /// How long what was seen of a database may answer for what is new in it
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    pub(crate) refresh: Duration,
    /// What the table of mounts has as the source [default: SOURCE, or the config file]
    #[arg(long, value_name = "NAME")]
    pub(crate) fsname: Option<String>,
    /// Bytes of pages kept in memory
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    pub(crate) page_cache: u64,
    /// Which commits the directory of a database lists; all of them have names
    #[arg(long, value_name = "WHICH", default_value = "curated")]
    pub(crate) list: ListedCommits,
    /// Keep what is read in this directory too, for mounts to come; one mount at a time has it
    #[arg(long, value_name = "DIR")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Bytes that the directory may take, at least 16MiB; of memory about 3 MB for each GiB
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse_size)]
    #[arg(requires = "cache_dir")]
    pub(crate) cache_size: u64,
    /// Fetch a moment whole into that directory, behind its readers: when they wait for the store
    /// again and again, when it is opened, or never; without --cache-dir it is never
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "auto",
        requires = "cache_dir"
    )]
    pub(crate) hydrate: Hydrate,
    /// Bytes of the largest database that is fetched whole
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = parse_size)]
    #[arg(requires = "cache_dir")]
    pub(crate) hydrate_limit: u64,
}

/// When moments are fetched whole.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Hydrate {
    Auto,
    Always,
    Never,
}

impl From<Hydrate> for hydrate::Hydrate {
    fn from(when: Hydrate) -> Self {
        match when {
            Hydrate::Auto => Self::Auto,
            Hydrate::Always => Self::Always,
            Hydrate::Never => Self::Never,
        }
    }
}

/// For [`Mount::list`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListedCommits {
    /// Every one
    All,
    /// The newest 100, before them one a minute for an hour, one an hour for 30 days, one a day
    Curated,
    /// None
    None,
}

#[derive(Debug, Args)]
pub(crate) struct Umount {
    /// The directory
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

/// The number of a user who is named, or given by number.
fn user(text: &str) -> Result<u32, String> {
    id(text, "user", |name| {
        Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
    })
}

/// The same of a group.
fn group(text: &str) -> Result<u32, String> {
    id(text, "group", |name| {
        Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
    })
}

fn id(
    text: &str,
    kind: &str,
    find: impl Fn(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, String> {
    match text.parse() {
        Ok(id) => Ok(id),
        Err(_) => match find(text) {
            Ok(Some(id)) => Ok(id),
            Ok(None) => Err(format!("there is no {kind} of this name")),
            Err(error) => Err(error.to_string()),
        },
    }
}

fn umask(text: &str) -> Result<u16, String> {
    match u16::from_str_radix(text, 8) {
        Ok(mask) if mask <= 0o777 => Ok(mask),
        _ => Err("it is three octal digits, as in 027".to_owned()),
    }
}

/// A moment, as options say it.
#[derive(Debug, Args)]
pub(crate) struct Words {
    /// The moment: 2024-01-01T10:30:00Z, 2024-01-01, @1704105000, 5m-ago, yesterday, latest, ...
    #[arg(long, value_name = "T", conflicts_with = "txid")]
    pub(crate) timestamp: Option<String>,
    /// The transaction, in hex
    #[arg(long, value_name = "N")]
    pub(crate) txid: Option<String>,
}

/// Which moment, and of which replica.
#[derive(Debug, Args)]
pub(crate) struct OfMoment {
    /// From this replica [default: the first of the database that has the moment, for the newest
    /// moment the one that goes furthest]
    #[arg(long, value_name = "NAME")]
    pub(crate) replica: Option<String>,
    #[command(flatten)]
    pub(crate) words: Words,
    /// Only this generation
    #[arg(long, value_name = "G")]
    pub(crate) generation: Option<GenerationId>,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// A database of the config file, by name or path, or a replica: a directory or s3://...; with
    /// a moment: app@5m-ago, app@1c
    pub(crate) target: String,
    /// The file to write; must not exist [default: the database's path in the config file]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) of: OfMoment,
    /// Say what would be written, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do nothing, successfully, if the file exists
    #[arg(long)]
    pub(crate) if_db_not_exists: bool,
    /// Do nothing, successfully, if no replica holds anything yet
    #[arg(long)]
    pub(crate) if_replica_exists: bool,
    /// Reads that are under way at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) parallelism: usize,
}

#[derive(Debug, Args)]
pub(crate) struct Query {
    /// A database of the config file, by name or path, or a replica: a directory or s3://...; with
    /// a moment: app@5m-ago, app@1c
    pub(crate) target: String,
    /// The statements [default: what the standard input says]
    pub(crate) sql: Option<String>,
    #[command(flatten)]
    pub(crate) of: OfMoment,
    /// Print CSV, with the names of the columns in the first line
    #[arg(long, conflicts_with = "json")]
    pub(crate) csv: bool,
    /// Print one JSON array for each statement that gives rows
    #[arg(long)]
    pub(crate) json: bool,
    /// Bytes of pages kept in memory
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    pub(crate) page_cache: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Listing {
    /// A database of the config file, by name or path, or a replica: a directory or s3://...
    pub(crate) target: String,
    /// Of this replica [default: the first of the database that answers]
    #[arg(long, value_name = "NAME")]
    pub(crate) replica: Option<String>,
    /// Print one JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct OfGeneration {
    #[command(flatten)]
    pub(crate) listing: Listing,
    /// Only this generation
    #[arg(long, value_name = "G")]
    pub(crate) generation: Option<GenerationId>,
}

#[derive(Debug, Args)]
pub(crate) struct Objects {
    #[command(flatten)]
    pub(crate) of: OfGeneration,
    #[command(flatten)]
    pub(crate) words: Words,
}

#[derive(Debug, Args)]
pub(crate) struct Points {
    #[command(flatten)]
    pub(crate) of: OfGeneration,
    /// From this moment on
    #[arg(long, value_name = "T")]
    pub(crate) since: Option<String>,
    /// Up to this moment
    #[arg(long, value_name = "T")]
    pub(crate) until: Option<String>,
    /// Only the newest so many
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
}

/// A replica, or those of a database, and what is kept of it.
#[derive(Debug, Args)]
pub(crate) struct Kept {
    /// A database of the config file, by name or path, or a replica: a directory or s3://...
    pub(crate) target: String,
    /// Only this replica of the database
    #[arg(long, value_name = "NAME")]
    pub(crate) replica: Option<String>,
    /// Which restore points stay for how long, whatever the config file says: 7d, or
    /// all=7d,hourly=30d,daily=1y
    #[arg(long, value_name = "WINDOWS", value_parser = parse_retention)]
    pub(crate) retention: Option<Retention>,
    /// Print one JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Compact {
    #[command(flatten)]
    pub(crate) kept: Kept,
    /// Delete although something was added within 24 hours: nobody else writes the replica
    #[arg(long)]
    pub(crate) force: bool,
    /// Take a snapshot of the newest commit, and do nothing else; also beside a daemon
    #[arg(long, conflicts_with_all = ["force", "retention"])]
    pub(crate) snapshot: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Retain {
    #[command(flatten)]
    pub(crate) kept: Kept,
    /// Delete although something was added within 24 hours: nobody else writes the replica
    #[arg(long)]
    pub(crate) force: bool,
    /// Say what would stay and go, and why, and change nothing; also beside a daemon
    #[arg(long, conflicts_with = "force")]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Config {
    /// Fail if there is no config file
    #[arg(long)]
    pub(crate) check: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Databases {
    /// Print one JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlrepl::config::file::{
        MERGED_GRACE, MONITOR_INTERVAL, RETENTION_CHECK_INTERVAL, SNAPSHOT_INTERVAL, SYNC_INTERVAL,
        WAL_SIZE,
    };

    #[test]
    fn the_command_line_and_the_config_file_have_the_same_defaults() {
        let parsed = Cli::parse_from(["sqlrepl", "replicate", "app.db", "backup"]);
        let Command::Replicate(Replicate { options, .. }) = parsed.command else {
            panic!("{parsed:?}");
        };
        assert_eq!(options.sync_interval, SYNC_INTERVAL);
        assert_eq!(options.monitor_interval, MONITOR_INTERVAL);
        assert_eq!(options.wal_size, WAL_SIZE);
        assert_eq!(options.retention, Retention::WEEK);
        assert_eq!(options.retention_check_interval, RETENTION_CHECK_INTERVAL);
        assert_eq!(options.snapshot_interval, SNAPSHOT_INTERVAL);
        assert_eq!(options.merged_grace, MERGED_GRACE);
    }
}
