//! The world of one story: a temporary folder with a database, its replicas and whatever the story
//! starts there. All of it is gone when the story ends, also when it fails.
//!
//! Where replicas lie is chosen by `SQLREPL_STORE`. Commands say `replicas` and `replicas/app`, and
//! those are directories in the folder; with `s3` they become `s3://replicas` and
//! `s3://replicas/app` on a server of the world's own, whose objects are the files in the same
//! directories.

use crate::program::{LONG, Output, Running, bound, run, wait_until};
use crate::s3_server::{self, Server};
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Held in common by ordinary stories, and alone by those that measure time.
static MACHINE: RwLock<()> = RwLock::new(());

/// Where replicas lie.
#[derive(Clone, Copy)]
enum Kind {
    Directory,
    S3,
}

/// What `SQLREPL_STORE` says.
fn chosen() -> Kind {
    match std::env::var("SQLREPL_STORE").as_deref() {
        Err(_) | Ok("directory") => Kind::Directory,
        Ok("s3") => Kind::S3,
        Ok(other) => panic!("SQLREPL_STORE is directory or s3, not {other}"),
    }
}

enum Turn {
    Shared {
        _guard: RwLockReadGuard<'static, ()>,
    },
    Alone {
        _guard: RwLockWriteGuard<'static, ()>,
    },
}

/// The world of one story. Its programs run in its folder, so paths in commands are relative.
pub(crate) struct World {
    server: Option<Server>,
    folder: TempDir,
    // Dropped after the folder: the next story begins when this one has cleaned up.
    _turn: Turn,
}

/// A restore point as `sqlrepl points --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) generation: String,
    pub(crate) txid: String,
    pub(crate) time: String,
    pub(crate) pages: u64,
    pub(crate) size: u64,
}

impl World {
    /// A world that shares the machine with other stories.
    pub(crate) fn new() -> Self {
        // A story that failed while it was alone leaves nothing behind that others would see.
        let guard = MACHINE
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        Self::with(Turn::Shared { _guard: guard }, chosen())
    }

    /// The same on S3, whatever is chosen.
    pub(crate) fn on_s3() -> Self {
        let guard = MACHINE
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        Self::with(Turn::Shared { _guard: guard }, Kind::S3)
    }

    /// A world that has the machine for itself, to measure time.
    pub(crate) fn alone() -> Self {
        let guard = MACHINE
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        Self::with(Turn::Alone { _guard: guard }, chosen())
    }

    /// The same on S3, whatever is chosen.
    pub(crate) fn alone_on_s3() -> Self {
        let guard = MACHINE
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        Self::with(Turn::Alone { _guard: guard }, Kind::S3)
    }

    fn with(turn: Turn, kind: Kind) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("sqlrepl-it-")
            .tempdir()
            .unwrap();
        fs::create_dir(folder.path().join("logs")).unwrap();
        let server = serve(kind, folder.path());
        Self {
            server,
            folder,
            _turn: turn,
        }
    }

    /// The S3 server of a world on S3.
    #[track_caller]
    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().expect("the world is on S3")
    }

    /// Lets the server, if there is one, take requests that are signed by a wrong clock.
    pub(crate) fn believe_any_clock(&self) {
        if let Some(server) = &self.server {
            server.set(|settings| settings.any_clock = true);
        }
    }

    /// As if so much time had passed for the server, if there is one.
    pub(crate) fn let_pass(&self, time: Duration) {
        if let Some(server) = &self.server {
            let seconds = i64::try_from(time.as_secs()).unwrap();
            server.set(|settings| settings.clock_ahead = seconds);
        }
    }

    /// Takes the place of `replicas/app` away: the server goes down, or the directory goes as that
    /// of a network mount does.
    pub(crate) fn take_replica_away(&self) {
        match &self.server {
            Some(server) => server.down(),
            None => {
                fs::rename(self.path("replicas/app"), self.path("away")).unwrap();
                fs::write(self.path("replicas/app"), "not a directory").unwrap();
            }
        }
    }

    /// How many requests its server has seen, if it has one.
    pub(crate) fn requests(&self) -> Option<u64> {
        self.server.as_ref().map(Server::requests)
    }

    /// Brings it back as it was.
    pub(crate) fn bring_replica_back(&self) {
        match &self.server {
            Some(server) => server.up(),
            None => {
                fs::remove_file(self.path("replicas/app")).unwrap();
                fs::rename(self.path("away"), self.path("replicas/app")).unwrap();
            }
        }
    }

    /// A path in this world.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the programs' output goes.
    pub(crate) fn logs(&self) -> PathBuf {
        self.path("logs")
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = bound(program);
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    /// `sqlrepl` with arguments that hold no spaces themselves, on the replicas of this world.
    pub(crate) fn ours(&self, arguments: &str) -> Command {
        let words = arguments.split_whitespace();
        let arguments: Vec<String> = words.map(|word| self.place(word)).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = self.command(env!("CARGO_BIN_EXE_sqlrepl"), &arguments);
        // Whatever this machine knows of AWS is not for stories.
        for name in ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"] {
            command.env(name, "/dev/null");
        }
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command.env_remove("SQLREPL_CONFIG");
        if let Some(server) = &self.server {
            command
                .env("AWS_ENDPOINT_URL", server.endpoint())
                .env("AWS_REGION", s3_server::REGION)
                .env("AWS_ACCESS_KEY_ID", s3_server::ACCESS_KEY_ID)
                .env("AWS_SECRET_ACCESS_KEY", s3_server::SECRET_ACCESS_KEY);
        }
        command
    }

    /// A word of a command: the place of a replica where this world has it.
    pub(crate) fn place(&self, word: &str) -> String {
        let below = word.strip_prefix("./").unwrap_or(word);
        let is_replica = below == "replicas" || below.starts_with("replicas/");
        match self.server {
            Some(_) if is_replica => format!("s3://{below}"),
            _ => word.to_owned(),
        }
    }

    /// Runs `sqlrepl` with arguments that hold no spaces themselves.
    #[track_caller]
    pub(crate) fn sqlrepl(&self, arguments: &str) -> Output {
        run(&mut self.ours(arguments))
    }

    /// Starts `sqlrepl` and waits for nothing.
    #[track_caller]
    pub(crate) fn start(&self, arguments: &str) -> Running {
        Running::start(&mut self.ours(arguments), &self.logs())
    }

    /// Runs any other program.
    #[track_caller]
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Output {
        run(&mut self.command(program, arguments))
    }

    /// Runs SQL in the real `sqlite3`; what it printed, without the last line end.
    #[track_caller]
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        self.try_sql(database, sql).ok().trim_end().to_owned()
    }

    /// Runs SQL that may fail in the real `sqlite3`.
    #[track_caller]
    pub(crate) fn try_sql(&self, database: &str, sql: &str) -> Output {
        let arguments = ["-batch", "-bail", "-cmd", ".timeout 10000", database, sql];
        self.run("sqlite3", &arguments)
    }

    /// Starts a `sqlite3` that runs SQL and then keeps its connection until it is dropped.
    #[track_caller]
    pub(crate) fn keep_open(&self, database: &str, sql: &str) -> Session {
        let mut command = self.command("sqlite3", &["-batch", "-bail", database]);
        let mut program = Running::start(command.stdin(Stdio::piped()), &self.logs());
        let mut stdin = program.stdin().expect("the command asked for a pipe");
        writeln!(stdin, "{sql}; SELECT 'done';").unwrap();
        program.wait_says("done");
        Session { program, stdin }
    }

    /// Makes `app.db`: in WAL mode, with a table `t(id, v)` of 100 rows.
    #[track_caller]
    pub(crate) fn sample(&self) {
        self.sql(
            "app.db",
            "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
             INSERT INTO t SELECT i, 'row ' || i FROM n;",
        );
    }

    /// Compiles the library that makes chosen syncs of a `-wal` go wrong.
    #[track_caller]
    pub(crate) fn fault_library(&self) -> PathBuf {
        self.preloaded("eio.c")
    }

    /// Compiles a library to preload from its source beside this file.
    #[track_caller]
    pub(crate) fn preloaded(&self, source: &str) -> PathBuf {
        let from = format!("{}/tests/it/{source}", env!("CARGO_MANIFEST_DIR"));
        let to = source.replace(".c", ".so");
        let words = ["-O1", "-shared", "-fPIC", "-o", &to, &from];
        self.run("cc", &words).ok();
        self.path(&to)
    }

    /// Starts `sqlrepl replicate` with these arguments and waits for nothing.
    #[track_caller]
    pub(crate) fn replicate(&self, arguments: &str) -> Running {
        Running::start(
            &mut self.ours(&format!("replicate {arguments}")),
            &self.logs(),
        )
    }

    /// Starts the daemon on `app.db` and `replicas/app`, and waits until a restore point is there.
    #[track_caller]
    pub(crate) fn daemon(&self) -> Running {
        self.daemon_with("")
    }

    /// The same with more options.
    #[track_caller]
    pub(crate) fn daemon_with(&self, options: &str) -> Running {
        let interval = if options.contains("--sync-interval") {
            ""
        } else {
            "--sync-interval 50ms"
        };
        let options = format!("app.db replicas/app {interval} {options}");
        let mut daemon = self.replicate(&options);
        self.await_sync(&mut daemon);
        daemon
    }

    /// Waits until all that is committed is durable, from a daemon that may just be starting.
    #[track_caller]
    pub(crate) fn await_sync(&self, daemon: &mut Running) {
        wait_until(LONG, "the first sync", || {
            assert!(daemon.is_running(), "the daemon ended");
            self.sqlrepl("sync app.db --timeout 30s").code == 0
        });
    }

    /// `sqlrepl sync`, which must succeed.
    #[track_caller]
    pub(crate) fn sync(&self) {
        self.sqlrepl("sync app.db --timeout 300s").ok();
    }

    /// Mounts `replicas` at `mnt` and waits for the line that says so.
    #[track_caller]
    pub(crate) fn mount(&self) -> Mount {
        self.mount_at("mount replicas mnt")
    }

    /// Mounts something else at `mnt` and waits for the line that says so.
    #[track_caller]
    pub(crate) fn mount_at(&self, arguments: &str) -> Mount {
        self.mount_by(&mut self.ours(arguments))
    }

    /// Mounts at `mnt` by a command and waits for the line that says so.
    #[track_caller]
    pub(crate) fn mount_by(&self, command: &mut Command) -> Mount {
        let at = self.path("mnt");
        // A mount that was killed answers nothing there, not even that it is a directory.
        if let Err(error) = fs::create_dir(&at) {
            assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
        }
        let program = Running::start(command, &self.logs());
        // The guard stands before anything can fail.
        let mut mount = Mount { program, at };
        wait_until(LONG, "the line that says that the mount is ready", || {
            assert!(mount.program.is_running(), "the mount ended");
            mount.program.stdout().contains('\n')
        });
        mount
    }

    /// Restores `replicas/app` to a new file, with more options.
    #[track_caller]
    pub(crate) fn restore(&self, to: &str, options: &str) {
        self.sqlrepl(&format!("restore -o {to} replicas/app {options}"))
            .ok();
    }

    /// What a listing command prints with `--json`.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &str) -> Vec<Value> {
        let printed = self.sqlrepl(&format!("{arguments} --json")).ok();
        match serde_json::from_str(&printed) {
            Ok(Value::Array(entries)) => entries,
            _ => panic!("`{arguments} --json` did not print one array: {printed}"),
        }
    }

    /// All restore points of `replicas/app`, oldest first.
    #[track_caller]
    pub(crate) fn points(&self) -> Vec<Point> {
        self.points_of("replicas/app")
    }

    /// All restore points of a replica, oldest first.
    #[track_caller]
    pub(crate) fn points_of(&self, replica: &str) -> Vec<Point> {
        let entries = self.json(&format!("points {replica}"));
        entries.iter().map(Point::new).collect()
    }

    /// The names of the generations of `replicas/app`, oldest first.
    #[track_caller]
    pub(crate) fn generations(&self) -> Vec<String> {
        let entries = self.json("generations replicas/app");
        entries
            .iter()
            .map(|entry| text(entry, "generation"))
            .collect()
    }

    /// All objects below a replica: their paths relative to it, ascending, and sizes.
    pub(crate) fn objects(&self, replica: &str) -> Vec<(String, u64)> {
        let root = self.path(replica);
        let mut objects = Vec::new();
        walk(&root.join("generations"), &mut |path| {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
            objects.push((name.to_owned(), fs::metadata(path).unwrap().len()));
        });
        objects.sort();
        objects
    }

    /// Waits until the daemon rests: the `-wal` is empty, and the daemon has noted how the database
    /// file looks.
    #[track_caller]
    pub(crate) fn await_rest(&self) {
        wait_until(LONG, "the daemon to rest", || {
            let length = fs::metadata(self.path("app.db-wal")).map_or(0, |wal| wal.len());
            let note = fs::read(self.path(".app.db-sqlrepl/capture.json")).unwrap_or_default();
            let note: Value = serde_json::from_slice(&note).unwrap_or_default();
            let file = fs::metadata(self.path("app.db")).unwrap();
            let modified = file.mtime() * 1_000_000_000 + file.mtime_nsec();
            let noted = &note["file"];
            length == 0 && noted["inode"] == file.ino() && noted["modified_ns"] == modified
        });
    }
}

/// A server for the replicas in a folder, if the stories are told to run on S3.
pub(crate) fn serve_if_chosen(folder: &Path) -> Option<Server> {
    serve(chosen(), folder)
}

/// A server with the bucket `replicas`, which is the directory of that name.
fn serve(kind: Kind, folder: &Path) -> Option<Server> {
    if let Kind::Directory = kind {
        return None;
    }
    let root = folder.join(".s3");
    fs::create_dir(&root).unwrap();
    fs::create_dir(folder.join("replicas")).unwrap();
    std::os::unix::fs::symlink("../replicas", root.join("replicas")).unwrap();
    Some(Server::start(&root))
}

impl Drop for World {
    fn drop(&mut self) {
        // For a look at what a failed story has left.
        if std::thread::panicking() && std::env::var_os("SQLREPL_KEEP").is_some() {
            self.folder.disable_cleanup(true);
            println!("kept {}", self.folder.path().display());
        }
    }
}

impl Point {
    fn new(entry: &Value) -> Self {
        let number = |field: &str| match entry[field].as_u64() {
            Some(number) => number,
            None => panic!("{field} is no number in {entry}"),
        };
        Self {
            generation: text(entry, "generation"),
            txid: text(entry, "txid"),
            time: text(entry, "time"),
            pages: number("pages"),
            size: number("size"),
        }
    }
}

#[track_caller]
fn text(entry: &Value, field: &str) -> String {
    match entry[field].as_str() {
        Some(text) => text.to_owned(),
        None => panic!("{field} is no text in {entry}"),
    }
}

/// Which version of its first row a database shows.
pub(crate) const VERSION: &str = "SELECT v FROM t WHERE id = 1";

/// A world with a replica of three versions of a row; its daemon has ended.
pub(crate) fn three_versions() -> World {
    let world = World::new();
    world.sample();
    let mut daemon = world.daemon();
    for version in ["one", "two", "three"] {
        world.sql(
            "app.db",
            &format!("UPDATE t SET v = '{version}' WHERE id = 1"),
        );
        world.sync();
    }
    assert_eq!(daemon.term(), 0);
    world
}

/// Calls back with every file below a folder.
pub(crate) fn walk(folder: &Path, found: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), found);
        } else {
            found(&entry.path());
        }
    }
}

/// A `sqlite3` that stays connected.
pub(crate) struct Session {
    program: Running,
    stdin: ChildStdin,
}

impl Session {
    /// Runs more SQL and ends; the connection is closed when this returns.
    #[track_caller]
    pub(crate) fn end(mut self, sql: &str) {
        writeln!(self.stdin, "{sql};").unwrap();
        drop(self.stdin);
        assert_eq!(self.program.wait_exit(), 0, "{sql}");
    }
}

/// A running `sqlrepl mount`; unmounted when dropped, whatever became of the program.
pub(crate) struct Mount {
    pub(crate) program: Running,
    at: PathBuf,
}

impl Mount {
    /// True while something is mounted there.
    pub(crate) fn is_mounted(&self) -> bool {
        let at = self.at.to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(at))
    }

    /// Ends it as Ctrl-C would; the exit code.
    #[track_caller]
    pub(crate) fn interrupt(&mut self) -> i32 {
        self.program.signal(libc::SIGINT);
        self.program.wait_exit()
    }

    /// The names that `ls` shows in a folder of the mount.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.at.join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.program.signal(libc::SIGTERM);
        let asked = Instant::now();
        while self.program.is_running() && asked.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(2));
        }
        if self.is_mounted() {
            // Nothing more can be done about a failure; the story has had its say already.
            nix::mount::umount2(&self.at, nix::mount::MntFlags::MNT_DETACH).ok();
        }
    }
}
