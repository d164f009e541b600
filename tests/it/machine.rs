//! Machines that write one replica: each a folder with a database, the state of its daemon, an
//! application that writes, and the ledger of what SQLite showed it. A machine can crash, be copied
//! and be put back as it was, as disks are; its daemon's clock can be set.

use crate::oracle::{ImageHash, images};
use crate::program::{LONG, Running, wait_until};
use crate::world::World;
use crate::writer::{Setup, Writer};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The replica that all of them write.
pub(crate) const REPLICA: &str = "replicas/app";

/// What the daemon's state directory is called.
pub(crate) const STATE: &str = ".app.db-sqlrepl";

/// No two applications write the same values.
static SEED: AtomicU64 = AtomicU64::new(1);

/// One machine of a world.
pub(crate) struct Machine<'w> {
    world: &'w World,
    folder: String,
    writer: Option<Writer>,
    daemon: Option<Running>,
    /// Those before it: what they said is shown when a story fails.
    ended: Vec<Running>,
    /// What its daemon has in its environment.
    pub(crate) environment: Vec<(String, PathBuf)>,
    /// What a `sqlrepl sync` called durable.
    pub(crate) durable: Vec<ImageHash>,
}

impl<'w> Machine<'w> {
    /// A machine in this folder of the world, with a database of 100 short rows in `t` and so many
    /// random bytes beside them, and no program.
    #[track_caller]
    pub(crate) fn new(world: &'w World, folder: &str, filler: u64) -> Self {
        fs::create_dir(world.path(folder)).unwrap();
        let rows = filler / 1000;
        world.sql(
            &format!("{folder}/app.db"),
            &format!(
                "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
                 INSERT INTO t SELECT i, 'row ' || i FROM n;
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
                 INSERT INTO t SELECT i + 1000, randomblob(1000) FROM n WHERE {rows} > 0;"
            ),
        );
        Self::found(world, folder)
    }

    /// A new machine with the newest commit in the replica, which is one of this other's.
    #[track_caller]
    pub(crate) fn restored(world: &'w World, folder: &str, of: &Self) -> Self {
        fs::create_dir(world.path(folder)).unwrap();
        world.restore(&format!("{folder}/app.db"), "");
        let machine = Self::found(world, folder);
        fs::copy(of.path("ledger"), machine.path("ledger")).unwrap();
        machine
    }

    /// A machine whose disk is there already.
    fn found(world: &'w World, folder: &str) -> Self {
        Self {
            world,
            folder: folder.to_owned(),
            writer: None,
            daemon: None,
            ended: Vec::new(),
            environment: Vec::new(),
            durable: Vec::new(),
        }
    }

    /// A path on its disk.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.world.path(&self.folder).join(name)
    }

    /// The same as text.
    pub(crate) fn text_path(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// What SQLite showed its applications.
    pub(crate) fn images(&self) -> Vec<ImageHash> {
        images(&self.path("ledger"))
    }

    /// Its application, which has the database open until the machine crashes.
    pub(crate) fn writer(&mut self) -> &mut Writer {
        self.writer.get_or_insert_with(|| {
            let folder = self.world.path(&self.folder);
            let mut setup = Setup::new(&folder);
            setup.seed = SEED.fetch_add(1, Ordering::Relaxed);
            Writer::rust(&setup, &self.world.logs())
        })
    }

    /// Commits so many times.
    #[track_caller]
    pub(crate) fn commit(&mut self, count: u64) {
        self.writer().ask(&format!("updates {count} 0"));
    }

    /// Starts the daemon with more options, and waits until everything is durable.
    #[track_caller]
    pub(crate) fn replicate(&mut self, options: &str) {
        self.start(options);
        self.sync();
    }

    /// Starts the daemon with more options, and waits for nothing.
    #[track_caller]
    pub(crate) fn start(&mut self, options: &str) {
        // It notes what is there before the daemon can.
        self.writer();
        let database = format!("{}/app.db", self.folder);
        let words = format!("replicate {database} {REPLICA} --sync-interval 10ms {options}");
        let mut command = self.world.ours(&words);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.ended.extend(self.daemon.take());
        self.daemon = Some(Running::start(&mut command, &self.world.logs()));
    }

    /// The running daemon.
    pub(crate) fn daemon(&mut self) -> &mut Running {
        self.daemon.as_mut().expect("the daemon was started")
    }

    /// Waits until what is committed by now is durable, from a daemon that may just be starting.
    #[track_caller]
    pub(crate) fn sync(&mut self) {
        self.sync_unless(|| false);
    }

    /// The same; false if something else comes first.
    #[track_caller]
    pub(crate) fn sync_unless(&mut self, comes: impl Fn() -> bool) -> bool {
        let newest = self.images().pop();
        let words = format!("sync {}/app.db --timeout 30s", self.folder);
        let daemon = self.daemon.as_mut().expect("the daemon was started");
        let mut sync = self.world.start(&words);
        wait_until(LONG, "a sync", || {
            assert!(daemon.is_running(), "the daemon ended");
            match sync.exit_code() {
                Some(0) => true,
                Some(_) => {
                    println!("`{words}` said: {}", sync.stderr().trim_end());
                    sync = self.world.start(&words);
                    comes()
                }
                None => comes(),
            }
        });
        let is_durable = sync.exit_code() == Some(0);
        self.durable.extend(newest.filter(|_| is_durable));
        is_durable
    }

    /// Commits so many times, each of them durable before the next.
    #[track_caller]
    pub(crate) fn commit_each(&mut self, count: u64) {
        for _ in 0..count {
            self.commit(1);
            self.sync();
        }
    }

    /// What `sqlrepl status` shows of its replica.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let words = format!("status {}/app.db --json", self.folder);
        let printed = self.world.sqlrepl(&words).stdout;
        let shown: Value = serde_json::from_str(&printed).expect(&printed);
        shown[0]["replicas"][0].clone()
    }

    /// Ends the daemon as a service manager does.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        assert_eq!(self.daemon().term(), 0);
        self.ended.extend(self.daemon.take());
    }

    /// Kills the daemon.
    #[track_caller]
    pub(crate) fn kill(&mut self) {
        self.daemon().kill9();
        self.ended.extend(self.daemon.take());
    }

    /// Loses its power: all that runs is killed.
    #[track_caller]
    pub(crate) fn crash(&mut self) {
        if let Some(mut writer) = self.writer.take() {
            writer.program.kill9();
        }
        if self.daemon.is_some() {
            self.kill();
        }
    }

    /// Copies its disk, from which another machine starts. Crashes it: what is copied stands still.
    #[track_caller]
    pub(crate) fn clone_to(&mut self, folder: &str) -> Machine<'w> {
        self.crash();
        self.world.run("cp", &["-a", &self.folder, folder]).ok();
        Machine::found(self.world, folder)
    }

    /// Puts the disk of another machine in the place of its own, as a restored image of it does.
    /// What it was is kept in another folder, as a machine that no longer runs.
    #[track_caller]
    pub(crate) fn replace_by(&mut self, image: &Self, kept: &str) -> Self {
        self.crash();
        self.world.run("mv", &[&self.folder, kept]).ok();
        self.world
            .run("cp", &["-a", &image.folder, &self.folder])
            .ok();
        let mut gone = Self::found(self.world, kept);
        gone.durable = std::mem::take(&mut self.durable);
        gone
    }
}

/// The clocks of a daemon: the machine's, but so much ahead of them or behind.
pub(crate) struct Clock {
    library: PathBuf,
    file: PathBuf,
}

/// An hour, for clocks.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

impl Clock {
    /// A clock that is right, in a world whose S3 server, if it has one, takes requests of any
    /// time: what most servers do with a daemon whose clock is off, the stories of `s3.rs` tell.
    #[track_caller]
    pub(crate) fn new(world: &World, name: &str) -> Self {
        world.believe_any_clock();
        let clock = Self {
            library: world.preloaded("clock.c"),
            file: world.path(&format!("{name}.clock")),
        };
        fs::write(&clock.file, [0; 16]).unwrap();
        clock
    }

    /// Sets it ahead of the machine's.
    pub(crate) fn set_ahead(&self, by: Duration) {
        self.set(i64::try_from(by.as_micros()).unwrap());
    }

    /// As if so much time had passed: the time since boot is ahead, too.
    pub(crate) fn set_passed(&self, time: Duration) {
        let micros = i64::try_from(time.as_micros()).unwrap();
        self.write(8, micros);
        self.write(0, micros);
    }

    /// Sets it behind the machine's.
    pub(crate) fn set_back(&self, by: Duration) {
        self.set(-i64::try_from(by.as_micros()).unwrap());
    }

    fn set(&self, micros: i64) {
        self.write(0, micros);
    }

    fn write(&self, offset: u64, micros: i64) {
        // In place: the daemon has the file in its memory.
        let file = File::options().write(true).open(&self.file).unwrap();
        file.write_all_at(&micros.to_ne_bytes(), offset).unwrap();
    }

    /// What makes it the clock of a daemon.
    pub(crate) fn environment(&self) -> Vec<(String, PathBuf)> {
        vec![
            ("LD_PRELOAD".to_owned(), self.library.clone()),
            ("SQLREPL_CLOCK".to_owned(), self.file.clone()),
        ]
    }
}
