use super::history::{History, PAGE, TestClock, at, page};
use super::*;
use crate::error::ErrorKind;
use crate::storage::Store;
use crate::storage::fault::{Fault, FaultStore, Verb, every};
use crate::storage::memory::MemoryStore;
use std::ffi::OsStr;

const SECOND: Duration = Duration::from_secs(1);

/// A source with replicas, and the tree of it.
struct World {
    faults: Arc<FaultStore>,
    source: Arc<dyn Store>,
    clock: TestClock,
    view: Arc<View>,
}

impl World {
    /// An empty source, at 18:00:00.
    fn new() -> Self {
        let faults = FaultStore::new(MemoryStore::new());
        let source: Arc<dyn Store> = faults.clone();
        Self::of(faults, source.below("src"))
    }

    fn of(faults: Arc<FaultStore>, source: Arc<dyn Store>) -> Self {
        let shown = Source::Folder(source.clone());
        Self::showing(shown, faults, source)
    }

    fn showing(shown: Source, faults: Arc<FaultStore>, source: Arc<dyn Store>) -> Self {
        Self::listing(Listed::All, shown, faults, source)
    }

    fn listing(
        listed: Listed,
        shown: Source,
        faults: Arc<FaultStore>,
        source: Arc<dyn Store>,
    ) -> Self {
        let clock = TestClock::at("18:00:00");
        let options = ViewOptions {
            refresh: SECOND,
            patience: SECOND * 5,
            listed,
        };
        let cache = Arc::new(BlockCache::new(1 << 20));
        let view = View::new(vec![shown], None, cache, options, clock.clock());
        Self {
            faults,
            source,
            clock,
            view,
        }
    }

    /// A source with the database `app`: commits 2 to 5, at 10, 11, 12 and 13 o'clock.
    async fn with_app() -> (Self, History) {
        let world = Self::new();
        let mut app = History::begin(&world.source.below("app"), 1, None, "09:00:00").await;
        app.commit("10:00:00.000001", 3).await;
        app.commit("11:00:00.5", 4).await;
        app.commit("12:00:00", 4).await;
        app.commit("13:00:00.123456", 2).await;
        (world, app)
    }

    /// Asks as the kernel does: looks where the answer says so, and waits.
    async fn ask<T>(&self, ask: impl Fn(How) -> Result<Answer<T>>) -> Result<T> {
        match ask(How::Fresh)? {
            Answer::Now(answer) => Ok(answer),
            Answer::Behind(answer, subject) => {
                self.view.look(subject).await;
                Ok(answer)
            }
            Answer::After(subject) => {
                self.view.look(subject).await;
                match ask(How::Known)? {
                    Answer::Now(answer) | Answer::Behind(answer, _) => Ok(answer),
                    Answer::After(_) => panic!("asked to look twice"),
                }
            }
        }
    }

    async fn lookup_in(&self, directory: Inode, name: &str) -> Result<Found> {
        let name = OsStr::new(name);
        self.ask(|how| self.view.lookup(directory, name, how)).await
    }

    async fn inode(&self, directory: Inode, name: &str) -> Inode {
        match self.lookup_in(directory, name).await.unwrap() {
            Found::Entry(entry) => entry.attributes.inode,
            Found::Nothing(_) => panic!("there is no {name}"),
        }
    }

    async fn app(&self) -> Inode {
        self.inode(Inode::ROOT, "app").await
    }

    /// What a name in `app` means, in words.
    async fn lookup(&self, name: &str) -> String {
        self.explain(self.lookup_in(self.app().await, name).await)
    }

    #[track_caller]
    fn explain(&self, found: Result<Found>) -> String {
        match found {
            Ok(Found::Nothing(ttl)) => format!("nothing for {} s", ttl.as_secs()),
            Ok(Found::Entry(Entry { attributes, ttl })) => {
                let what = match attributes.kind {
                    Kind::File => {
                        let (_, point) = self.view.moment(attributes.inode).unwrap();
                        assert_eq!(attributes.time, point.time);
                        format!("{}-{}", point.generation.ordinal, point.txid.get())
                    }
                    Kind::Link => "link".to_owned(),
                    Kind::Directory => "directory".to_owned(),
                    Kind::Text => "text".to_owned(),
                };
                format!("{what} for {} s", ttl.as_secs())
            }
            Err(error) => format!("{:?}: {error}", error.kind()),
        }
    }

    /// All lines of a directory, as the kernel reads them.
    async fn list(&self, directory: Inode) -> Result<Vec<Line>> {
        let list = |how| self.view.list(directory, 0, how);
        let mut lines = self.ask(list).await?;
        loop {
            let last = lines.last().map_or(0, |line| line.cookie);
            let more = self.lines_after(directory, last)?;
            if more.is_empty() {
                return Ok(lines);
            }
            lines.extend(more);
        }
    }

    fn lines_after(&self, directory: Inode, cookie: u64) -> Result<Vec<Line>> {
        match self.view.list(directory, cookie, How::Known)? {
            Answer::Now(lines) | Answer::Behind(lines, _) => Ok(lines),
            Answer::After(_) => panic!("what is known needs no look"),
        }
    }

    /// The inode of a path.
    async fn walk(&self, path: &str) -> Inode {
        let mut at = Inode::ROOT;
        for name in path.split('/') {
            at = self.inode(at, name).await;
        }
        at
    }

    /// What a text says.
    async fn text(&self, path: &str) -> String {
        let inode = self.walk(path).await;
        let Some(Contents::Text(text)) = self.view.opened(inode) else {
            panic!("{path} is no text");
        };
        String::from_utf8(text.read(0, usize::MAX).to_vec()).unwrap()
    }

    /// The names in a directory, without the dots.
    async fn names(&self, directory: Inode) -> Vec<String> {
        let listing = self.list(directory).await.unwrap();
        assert_eq!((&*listing[0].name, &*listing[1].name), (".", ".."));
        listing[2..].iter().map(|line| line.name.clone()).collect()
    }

    async fn latest(&self) -> String {
        let latest = self.inode(self.app().await, "latest.db").await;
        self.ask(|how| self.view.link_target(latest, how))
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn a_name_means_the_last_commit_at_or_before_its_time() {
    let (world, _app) = World::with_app().await;
    for (name, means) in [
        ("2026-11-20T13-00-00.123456Z.db", "1-5 for 60 s"),
        ("2026-11-20T13-00-00.123455Z.db", "1-4 for 60 s"),
        ("2026-11-20T12:00:00Z.db", "1-4 for 60 s"),
        ("2026-11-20T12:00:00+01:00.db", "1-3 for 60 s"),
        ("20261120T110000Z.db", "1-3 for 60 s"),
        ("20261120T110000.4Z.db", "1-2 for 60 s"),
        ("2026-11-20T10.db", "1-2 for 60 s"),
        ("2026-11-20T09:00:00Z.db", "1-1 for 60 s"),
        // Later than the last commit, so the next one may change what these mean.
        ("2026-11-20.db", "1-5 for 1 s"),
        ("2099-01-01T00:00:00Z.db", "1-5 for 1 s"),
        // Before the history.
        ("2026-11-20T08:59:59Z.db", "nothing for 60 s"),
        ("2024-01-01T00:00:00Z.db", "nothing for 60 s"),
        // Another moment in a second.
        ("now.db", "1-5 for 1 s"),
        ("6h30m-ago.db", "1-3 for 1 s"),
        ("1d-ago.db", "nothing for 1 s"),
        ("latest.db", "link for 1 s"),
    ] {
        assert_eq!(world.lookup(name).await, means, "{name}");
    }
}

#[tokio::test]
async fn what_is_no_time_is_nothing_for_a_minute_without_a_look() {
    let (world, _app) = World::with_app().await;
    let app = world.app().await;
    let asked = world.faults.counts(Verb::List);
    for name in [
        "x.db",
        ".db",
        "",
        "2026-11-20T13-00-00.123456Z",
        "README",
        "2026-13-01.db",
    ] {
        assert_eq!(world.lookup(name).await, "nothing for 60 s", "{name}");
    }
    let name = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff.db");
    let found = world.ask(|how| world.view.lookup(app, name, how)).await;
    assert_eq!(world.explain(found), "nothing for 60 s");
    assert_eq!(world.faults.counts(Verb::List), asked);
}

#[tokio::test]
async fn journals_never_exist_and_nobody_is_asked_about_them() {
    let (world, _app) = World::with_app().await;
    let app = world.app().await;
    world
        .faults
        .set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
    for suffix in ["-journal", "-wal", "-shm"] {
        let name = format!("2026-11-20T13-00-00.123456Z.db{suffix}");
        let found = world.view.lookup(app, OsStr::new(&name), How::Fresh);
        let Ok(Answer::Now(found)) = found else {
            panic!("{name} is looked for");
        };
        assert_eq!(world.explain(Ok(found)), "nothing for 3600 s", "{name}");
    }
}

#[tokio::test]
async fn one_restore_point_is_one_inode_under_all_its_names() {
    let (world, _app) = World::with_app().await;
    let app = world.app().await;
    let listed = world.inode(app, "2026-11-20T11-00-00.500000Z.db").await;
    for name in [
        "2026-11-20T11:59Z.db",
        "20261120T110000.5Z.db",
        "2026-11-20T11-30Z.db",
    ] {
        assert_eq!(world.inode(app, name).await, listed, "{name}");
    }
    let other = world.inode(app, "2026-11-20T12-00-00.000000Z.db").await;
    assert_ne!(other, listed);
}

#[tokio::test]
async fn a_file_shows_the_size_and_the_time_of_its_commit() {
    let (world, _app) = World::with_app().await;
    let app = world.app().await;
    let inode = world.inode(app, "2026-11-20T11-00-00.500000Z.db").await;
    let expect = Attributes {
        inode,
        kind: Kind::File,
        size: 4 * PAGE as u64,
        time: at("11:00:00.5"),
        ttl: Duration::from_secs(3600),
    };
    assert_eq!(world.view.attributes(inode).unwrap(), expect);
    for directory in [Inode::ROOT, app] {
        let attributes = world.view.attributes(directory).unwrap();
        assert_eq!(attributes.kind, Kind::Directory);
        assert_eq!(attributes.time, at("13:00:00.123456"));
    }
}

#[tokio::test]
async fn no_attribute_and_no_name_reads_a_page() {
    let (world, _app) = World::with_app().await;
    let app = world.app().await;
    world.names(app).await;
    let read = world.faults.counts(Verb::GetRange);
    let listing = world.list(app).await.unwrap();
    for line in listing.iter() {
        world.view.attributes(line.entry.attributes.inode).unwrap();
        world.lookup_in(app, &line.name).await.unwrap();
    }
    assert_eq!(world.faults.counts(Verb::GetRange), read);
}

#[tokio::test]
async fn a_directory_lists_the_link_and_the_commits_in_order() {
    let (world, _app) = World::with_app().await;
    assert_eq!(world.names(Inode::ROOT).await, ["app"]);
    let expect = [
        "latest.db",
        "by-txid",
        "by-time",
        "2026-11-20T09-00-00.000000Z.db",
        "2026-11-20T10-00-00.000001Z.db",
        "2026-11-20T11-00-00.500000Z.db",
        "2026-11-20T12-00-00.000000Z.db",
        "2026-11-20T13-00-00.123456Z.db",
    ];
    let app = world.app().await;
    assert_eq!(world.names(app).await, expect);
    for line in &world.list(app).await.unwrap()[2..] {
        let Found::Entry(found) = world.lookup_in(app, &line.name).await.unwrap() else {
            panic!("{} is listed and not there", line.name);
        };
        assert_eq!(found.attributes, line.entry.attributes, "{}", line.name);
    }
}

/// The names that a directory lists of 1,200 commits, one a second from 10:00:00 on.
async fn listed_as(listed: Listed) -> (World, Vec<String>) {
    let faults = FaultStore::new(MemoryStore::new());
    let source: Arc<dyn Store> = faults.clone();
    let world = World::listing(listed, Source::Folder(source.clone()), faults, source);
    let mut app = History::begin(&world.source.below("app"), 1, None, "09:00:00").await;
    let second = |n: i64| Timestamp::from_micros(at("10:00:00").micros() + n * 1_000_000);
    let times: Vec<Timestamp> = (0..1200).map(second).collect();
    app.commits(&times, 2).await;
    let names = world.names(world.app().await).await;
    assert_eq!(names[..3], ["latest.db", "by-txid", "by-time"]);
    (world, names[3..].to_vec())
}

#[tokio::test]
async fn a_directory_lists_all_commits_or_few_of_them_or_none() {
    let (_, all) = listed_as(Listed::All).await;
    assert_eq!(all.len(), 1201);
    assert_eq!(all[0], "2026-11-20T09-00-00.000000Z.db");
    assert_eq!(all[1200], "2026-11-20T10-19-59.000000Z.db");
    let (world, curated) = listed_as(Listed::Curated).await;
    assert_eq!(curated[curated.len() - 100..], all[1101..]);
    let before = &curated[..curated.len() - 100];
    // 10:18:20 is the first of the newest hundred.
    let minutes = (0..=17).map(|minute| format!("2026-11-20T10-{minute:02}-59.000000Z.db"));
    let minutes: Vec<String> = minutes.collect();
    assert_eq!(before[1..], minutes);
    assert_eq!(before[0], all[0], "the hour before them has one");
    let (_, none) = listed_as(Listed::None).await;
    assert_eq!(none, [""; 0]);
    let second = world.lookup("2026-11-20T10:00:07Z.db").await;
    assert_eq!(second, "1-9 for 60 s", "listed or not, it has a name");
}

#[tokio::test]
async fn by_time_leads_to_every_commit_of_an_hour() {
    let (world, _app) = World::with_app().await;
    let by_time = world.walk("app/by-time").await;
    assert_eq!(world.names(by_time).await, ["2026"]);
    assert_eq!(
        world.names(world.walk("app/by-time/2026").await).await,
        ["11"]
    );
    let day = world.walk("app/by-time/2026/11/20").await;
    assert_eq!(world.names(day).await, ["09", "10", "11", "12", "13"]);
    let hour = world.inode(day, "11").await;
    assert_eq!(world.view.attributes(hour).unwrap().time, at("11:00:00.5"));
    let name = "2026-11-20T11-00-00.500000Z.db";
    assert_eq!(world.names(hour).await, [name]);
    let listed = world.inode(world.app().await, name).await;
    assert_eq!(world.inode(hour, name).await, listed);
    for (directory, name, means) in [
        (hour, "2026-11-20T11:30Z.db", "1-3 for 60 s"),
        (hour, "2026-11-20T12:00:00Z.db", "nothing for 60 s"),
        (hour, "2026-11-20T11:00:00.4Z.db", "nothing for 60 s"),
        (hour, "x.db-wal", "nothing for 3600 s"),
        (hour, "x", "nothing for 60 s"),
        (day, "08", "nothing for 60 s"),
        (day, "11", "directory for 60 s"),
        // The clock says 18:00, so a commit may still come.
        (day, "14", "nothing for 1 s"),
        (day, "24", "nothing for 60 s"),
        (by_time, "2025", "nothing for 60 s"),
        (by_time, "2027", "nothing for 1 s"),
    ] {
        let found = world.lookup_in(directory, name).await;
        assert_eq!(world.explain(found), means, "{name}");
    }
    let dots = &world.list(hour).await.unwrap()[..2];
    let inodes: Vec<Inode> = dots.iter().map(|l| l.entry.attributes.inode).collect();
    assert_eq!(inodes, [hour, day]);
    let above = &world.list(by_time).await.unwrap()[1];
    assert_eq!(above.entry.attributes.inode, world.app().await);
}

#[tokio::test]
async fn by_txid_has_every_commit_those_too_that_no_time_means() {
    let world = World::new();
    let store = world.source.below("app");
    let mut old = History::begin(&store, 1, None, "09:00:00").await;
    old.commit("10:00:00", 2).await;
    old.commit("11:00:00", 2).await;
    History::begin(&store, 2, Some((1, 2)), "10:30:00").await;
    let by_txid = world.walk("app/by-txid").await;
    let name = |ordinal, txid| format!("0000000{ordinal}-000000ab-{txid:016x}.db");
    let all = [name(1, 1), name(1, 2), name(1, 3), name(2, 1)];
    assert_eq!(world.names(by_txid).await, all);
    for (name, means) in [
        (&*name(1, 3), "1-3 for 60 s"),
        (&*name(2, 1), "2-1 for 60 s"),
        (&*name(2, 2), "nothing for 1 s"),
        (&*name(3, 1), "nothing for 1 s"),
        ("1.db", "2-1 for 60 s"),
        // The second generation may get as far.
        ("3.db", "1-3 for 1 s"),
        ("2026-11-20.db", "nothing for 60 s"),
        ("1", "nothing for 60 s"),
        ("1.db-journal", "nothing for 3600 s"),
    ] {
        let found = world.lookup_in(by_txid, name).await;
        assert_eq!(world.explain(found), means, "{name}");
    }
}

#[tokio::test]
async fn a_file_says_in_extended_attributes_which_moment_it_is() {
    let (world, _app) = World::with_app().await;
    let inode = world.walk("app/2026-11-20T11-00-00.500000Z.db").await;
    let shown = world.view.extended(inode).unwrap();
    let expect = [
        ("user.sqlrepl.txid", "0000000000000003"),
        ("user.sqlrepl.timestamp", "2026-11-20T11:00:00.500000Z"),
        ("user.sqlrepl.generation", "00000001-000000ab"),
        ("user.sqlrepl.snapshot", "0000000000000001"),
    ];
    assert_eq!(shown, expect.map(|(n, v)| (n.to_owned(), v.to_owned())));
    for inode in [Inode::ROOT, world.app().await] {
        assert_eq!(world.view.extended(inode).unwrap(), []);
    }
}

#[tokio::test]
async fn status_json_says_what_is_known_and_why_no_more() {
    let (world, _app) = World::with_app().await;
    let app = world.app().await;
    let about = world.inode(app, ".sqlrepl").await;
    assert_eq!(world.names(about).await, ["status.json", "points.jsonl"]);
    assert!(!world.names(app).await.contains(&".sqlrepl".to_owned()));
    let status: serde_json::Value =
        serde_json::from_str(&world.text("app/.sqlrepl/status.json").await).unwrap();
    let expect = serde_json::json!({
        "database": "app",
        "location": "memory/src/app",
        "state": "known",
        "error": null,
        "as_of": "2026-11-20T18:00:00.000000Z",
        "informed": false,
        "points": 5,
        "since": "2026-11-20T09:00:00.000000Z",
        "newest": {
            "generation": "00000001-000000ab",
            "txid": "0000000000000005",
            "time": "2026-11-20T13:00:00.123456Z",
            "pages": 2,
            "size": 1024,
            "name": "2026-11-20T13-00-00.123456Z.db",
        },
    });
    assert_eq!(status, expect);
    world
        .faults
        .set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
    world.clock.set("18:00:02");
    let text = world.text("app/.sqlrepl/status.json").await;
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["state"], "failing");
    assert_eq!(status["as_of"], "2026-11-20T18:00:00.000000Z");
    assert!(
        status["error"].as_str().unwrap().contains("memory/src/app"),
        "{text}"
    );
}

#[tokio::test]
async fn the_status_of_a_mount_whose_store_never_answered_says_why_it_is_empty() {
    let (world, _app) = World::with_app().await;
    world
        .faults
        .set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
    let text = world.text(".sqlrepl/status.json").await;
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["state"], "unknown");
    assert!(status["error"].is_string(), "{text}");
    assert_eq!(status["databases"], serde_json::json!([]));
    world.faults.heal();
    world.clock.set("18:00:02");
    let text = world.text(".sqlrepl/status.json").await;
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&status["state"], &status["error"]),
        (&"known".into(), &().into())
    );
    assert_eq!(status["databases"][0]["database"], "app");
    let nothing = world
        .lookup_in(world.walk(".sqlrepl").await, "points.jsonl")
        .await;
    assert_eq!(world.explain(nothing), "nothing for 60 s");
}

#[tokio::test]
async fn points_jsonl_has_a_line_for_each_restore_point_and_any_part_of_it_can_be_read() {
    let (world, _app) = World::with_app().await;
    let text = world.text("app/.sqlrepl/points.jsonl").await;
    let inode = world.walk("app/.sqlrepl/points.jsonl").await;
    let size = world.view.attributes(inode).unwrap().size;
    assert_eq!(size, text.len() as u64);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5);
    let second: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
    let expect = serde_json::json!({
        "generation": "00000001-000000ab",
        "txid": "0000000000000002",
        "time": "2026-11-20T10:00:00.000001Z",
        "pages": 3,
        "size": 3 * PAGE,
    });
    assert_eq!(second, expect);
    let Some(Contents::Text(part)) = world.view.opened(inode) else {
        panic!("it is a text");
    };
    for start in 0..=text.len() + 1 {
        for length in [0, 1, 139, 140, 141, 1000] {
            let end = (start + length).min(text.len());
            let expect = text.get(start..end).unwrap_or("");
            assert_eq!(part.read(start as u64, length), expect, "{start}+{length}");
        }
    }
}

#[tokio::test]
async fn a_directory_that_grows_while_it_is_read_neither_skips_nor_repeats() {
    let (world, mut app) = World::with_app().await;
    let directory = world.app().await;
    let mut read = Vec::new();
    let mut cookie = 0;
    for round in 0.. {
        let mut lines = match cookie {
            0 => world.list(directory).await.unwrap(),
            cookie => world.lines_after(directory, cookie).unwrap(),
        };
        if lines.is_empty() {
            break;
        }
        let line = lines.swap_remove(0);
        read.push(line.name.clone());
        cookie = line.cookie;
        if round < 9 {
            app.commit(&format!("14:00:0{round}"), 2).await;
            world.clock.set(&format!("18:00:1{round}"));
            world.latest().await;
        }
    }
    // The dots, the link and two directories, five commits from before and nine from meanwhile.
    assert_eq!(read.len(), 2 + 3 + 5 + 9);
    let names = world.names(directory).await;
    assert_eq!(read[2..], names);
}

#[tokio::test]
async fn a_directory_of_many_lines_grows_between_its_parts_and_none_is_skipped_or_repeated() {
    let (world, mut app) = World::with_app().await;
    let second = |n: i64| Timestamp::from_micros(at("14:00:00").micros() + n * 1_000_000);
    app.commits(&(0..200).map(second).collect::<Vec<_>>(), 2)
        .await;
    world.clock.set("18:00:10");
    world.latest().await;
    let mut commits = 4 + 200;
    for (fixed, name) in [(2 + 3, "app"), (2, "app/by-txid")] {
        let directory = world.walk(name).await;
        let first = |how| world.view.list(directory, 0, how);
        let mut read = world.ask(first).await.unwrap();
        let mut parts = 1;
        loop {
            let last = read.last().unwrap().cookie;
            let more = world.lines_after(directory, last).unwrap();
            if more.is_empty() {
                break;
            }
            read.extend(more);
            parts += 1;
            if parts < 4 {
                app.commits(&[second(commits)], 2).await;
                commits += 1;
                world.clock.set(&format!("18:{parts}0:{fixed}0"));
                world.latest().await;
            }
        }
        assert!(parts > 3, "{parts} parts");
        // With that of the snapshot.
        assert_eq!(read.len() as i64, fixed + 1 + commits, "{name}");
        let names: Vec<String> = read.into_iter().map(|line| line.name).collect();
        assert_eq!(names[2..], world.names(directory).await, "{name}");
    }
}

#[tokio::test]
async fn a_directory_goes_on_behind_a_line_that_is_gone() {
    let (world, _app) = World::with_app().await;
    let directory = world.app().await;
    for listed in [directory, world.walk("app/by-txid").await] {
        let lines = world.list(listed).await.unwrap();
        let last = lines.last().unwrap();
        assert_eq!(world.lines_after(listed, last.cookie).unwrap(), []);
    }
    // The cookie of a line that another directory has, and this one never had.
    let hour = world.walk("app/by-time/2026/11/20/13").await;
    let elsewhere = world.list(directory).await.unwrap();
    let elsewhere = elsewhere.iter().find(|line| line.name.contains("T11"));
    let next = world.lines_after(hour, elsewhere.unwrap().cookie).unwrap();
    assert!(next[0].name.contains("T13"), "{}", next[0].name);
    // Another writer goes on from the second commit: times mean its commits from there on.
    let cookies = world.list(directory).await.unwrap();
    let app = world.source.below("app");
    let mut other = History::begin(&app, 2, Some((1, 3)), "14:00:00").await;
    other.commit("15:00:00", 2).await;
    world.clock.set("18:00:10");
    world.latest().await;
    let names = |lines: Vec<Line>| -> Vec<String> {
        lines
            .into_iter()
            .map(|line| line.name[11..16].to_owned())
            .collect()
    };
    let (mut gone, mut rest) = (0, Vec::new());
    for line in cookies.iter().filter(|line| line.name.contains("T1")) {
        let is_there = world.names(directory).await.contains(&line.name);
        gone += usize::from(!is_there);
        rest.push(names(world.lines_after(directory, line.cookie).unwrap()));
    }
    assert_eq!(gone, 2);
    let (ours, theirs) = (["11-00", "14-00", "15-00"], ["14-00", "15-00"]);
    assert_eq!(rest, [&ours[..], &theirs, &theirs, &theirs]);
    // A restore point of a generation that nobody was shown.
    let nobodys = 1 << 62 | 77 << 40 | 1;
    assert_eq!(world.lines_after(hour, nobodys).unwrap(), []);
}

#[tokio::test]
async fn latest_leads_to_the_newest_commit_a_second_after_it_is_there() {
    let (world, mut app) = World::with_app().await;
    assert_eq!(world.latest().await, "2026-11-20T13-00-00.123456Z.db");
    app.commit("13:30:00", 2).await;
    world.clock.set("18:00:00.9");
    assert_eq!(world.latest().await, "2026-11-20T13-00-00.123456Z.db");
    let found = world.lookup_in(world.app().await, "now.db").await.unwrap();
    let Found::Entry(entry) = found else {
        panic!("there is a newest commit");
    };
    assert_eq!(
        entry.ttl,
        SECOND / 10,
        "the kernel asks again when we look again"
    );
    world.clock.set("18:00:01");
    assert_eq!(world.latest().await, "2026-11-20T13-30-00.000000Z.db");
    assert_eq!(
        world.lookup("2026-11-20T13-30-00.000000Z.db").await,
        "1-6 for 60 s"
    );
}

#[tokio::test]
async fn a_database_is_looked_at_once_a_second_while_somebody_asks_and_never_else() {
    let (world, _app) = World::with_app().await;
    world.latest().await;
    let lists = || world.faults.counts(Verb::List).calls;
    let first = lists();
    for _ in 0..100 {
        world.latest().await;
        world.lookup("now.db").await;
    }
    assert_eq!(lists(), first);
    world.clock.set("18:00:01");
    world.latest().await;
    let again = lists();
    assert!(again > first);
    world.clock.set("18:00:30");
    for _ in 0..100 {
        world.lookup("2026-11-20T12:00:00Z.db").await;
    }
    assert_eq!(lists(), again, "what is settled needs no look");
}

#[tokio::test]
async fn of_two_generations_each_time_means_the_one_that_history_goes_through() {
    let world = World::new();
    let store = world.source.below("app");
    let mut old = History::begin(&store, 1, None, "09:00:00").await;
    old.commit("10:00:00", 2).await;
    old.commit("11:00:00", 2).await;
    // Goes on from the old one's second transaction; the third is a stranger's.
    let mut new = History::begin(&store, 2, Some((1, 2)), "10:30:00").await;
    new.commit("12:00:00", 2).await;
    for (name, means) in [
        ("2026-11-20T12:00:00.000000Z.db", "2-2 for 60 s"),
        // The end of the second, so another commit may come in it.
        ("2026-11-20T12:00:00Z.db", "2-2 for 1 s"),
        ("2026-11-20T11:00:00Z.db", "2-1 for 60 s"),
        ("2026-11-20T10:15:00Z.db", "1-2 for 60 s"),
        ("2026-11-20T09:00:00Z.db", "1-1 for 60 s"),
    ] {
        assert_eq!(world.lookup(name).await, means, "{name}");
    }
    let listed = world.names(world.app().await).await;
    assert!(
        listed.iter().all(|name| !name.contains("T11")),
        "{listed:?}"
    );
    assert_eq!(listed.len(), 3 + 4);
}

#[tokio::test]
async fn a_database_that_appears_is_found_and_keeps_its_number_when_it_goes_and_comes_back() {
    let (world, _app) = World::with_app().await;
    world.view.start().await.unwrap();
    let app = world.app().await;
    let found = world.lookup_in(Inode::ROOT, "shop").await;
    assert_eq!(world.explain(found), "nothing for 1 s");
    History::begin(&world.source.below("shop"), 1, None, "09:00:00").await;
    world
        .source
        .put("notes/readme", crate::storage::Body::Bytes("x".into()))
        .await
        .unwrap();
    world.clock.set("18:00:01");
    assert_eq!(world.names(Inode::ROOT).await, ["app", "shop"]);
    let shop = world.inode(Inode::ROOT, "shop").await;

    let keys = world.source.list("app/", None).await.unwrap();
    let keys: Vec<String> = keys.into_iter().map(|listed| listed.key).collect();
    world.source.delete(&keys).await.unwrap();
    world.clock.set("18:00:02");
    assert_eq!(world.names(Inode::ROOT).await, ["shop"]);
    History::begin(&world.source.below("app"), 1, None, "09:00:00").await;
    world.clock.set("18:00:03");
    assert_eq!(world.names(Inode::ROOT).await, ["app", "shop"]);
    assert_eq!(
        (world.app().await, world.inode(Inode::ROOT, "shop").await),
        (app, shop)
    );
}

#[tokio::test]
async fn a_source_that_is_a_replica_itself_is_named_by_its_last_part() {
    let faults = FaultStore::new(MemoryStore::new());
    let source = faults.below("replicas").below("app");
    History::begin(&source, 1, None, "09:00:00").await;
    let world = World::of(faults, source);
    assert_eq!(world.view.start().await.unwrap(), 1);
    assert_eq!(world.names(Inode::ROOT).await, ["app"]);
    assert_eq!(world.lookup("now.db").await, "1-1 for 1 s");
}

#[tokio::test]
async fn a_replica_that_dies_gives_way_to_the_next_one_of_its_database() {
    let dying = FaultStore::new(MemoryStore::new());
    let first: Arc<dyn Store> = dying.clone();
    let second: Arc<dyn Store> = MemoryStore::new();
    History::begin(&first, 1, None, "09:00:00").await;
    History::begin(&second, 2, None, "09:00:00").await;
    let shown = Source::Database {
        name: "app".to_owned(),
        replicas: vec![first.clone(), second],
    };
    let world = World::showing(shown, dying.clone(), first);
    let app = world.app().await;
    assert_eq!(world.lookup("now.db").await, "1-1 for 1 s");
    dying.set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
    world.clock.set("18:00:02");
    // What is known is answered; that the replica fails is found out behind it.
    world.lookup("now.db").await;
    world.clock.set("18:00:04");
    assert_eq!(world.app().await, app);
    assert_ne!(world.app().await, app);
    assert_eq!(world.lookup("now.db").await, "2-1 for 1 s");
    dying.set_rule(|_| None);
    world.clock.set("18:00:06");
    assert_eq!(world.names(Inode::ROOT).await, ["app"]);
    assert_eq!(world.app().await, app);
}

#[tokio::test]
async fn two_replicas_of_one_name_are_refused_with_both_their_places() {
    let store = MemoryStore::new();
    let sources = [store.below("a"), store.below("b")];
    for source in &sources {
        History::begin(&source.below("app"), 1, None, "09:00:00").await;
    }
    let clock = TestClock::at("18:00:00").clock();
    let options = ViewOptions {
        refresh: SECOND,
        patience: SECOND,
        listed: Listed::Curated,
    };
    let cache = Arc::new(BlockCache::new(1 << 20));
    let sources = sources.map(Source::Folder).to_vec();
    let view = View::new(sources, None, cache, options, clock);
    let error = view.start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(
        error.to_string().contains("memory/a/app and memory/b/app"),
        "{error}"
    );
}

#[tokio::test]
async fn while_the_store_is_away_what_is_known_goes_on_and_the_rest_fails() {
    let (world, mut app) = World::with_app().await;
    History::begin(&world.source.below("shop"), 1, None, "09:00:00").await;
    let (known, unknown) = (world.app().await, world.inode(Inode::ROOT, "shop").await);
    let before = world.names(known).await;
    world
        .faults
        .set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
    world.clock.set("18:00:01");
    assert_eq!(world.names(known).await, before);
    assert_eq!(world.latest().await, "2026-11-20T13-00-00.123456Z.db");
    assert_eq!(world.names(Inode::ROOT).await, ["app", "shop"]);
    let failed = world.list(unknown).await.err().unwrap();
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
    // Nobody waits for a store that is known to be away, and it is asked again behind them.
    world.clock.set("18:00:03");
    let answer = world.view.list(known, 0, How::Fresh).unwrap();
    assert!(matches!(answer, Answer::Behind(..)));

    world.faults.heal();
    app.commit("14:00:00", 2).await;
    world.names(known).await;
    assert_eq!(world.latest().await, "2026-11-20T14-00-00.000000Z.db");
    assert_eq!(world.names(unknown).await.len(), 4);
}

#[tokio::test]
async fn an_open_file_serves_its_commit_for_ever_and_with_a_rollback_header() {
    let (world, mut app) = World::with_app().await;
    let directory = world.app().await;
    let inode = world
        .inode(directory, "2026-11-20T11-00-00.500000Z.db")
        .await;
    assert!(world.view.opened(inode).is_none());
    let Contents::Moment(database) = world.view.open(inode).await.unwrap() else {
        panic!("it is a moment");
    };
    app.commit("14:00:00", 1).await;
    world.clock.set("18:00:05");
    assert_eq!(world.latest().await, "2026-11-20T14-00-00.000000Z.db");
    let ahead = crate::materialize::pages::ReadAhead::default();
    let bytes = database.read(0, 1 << 20, &ahead).await.unwrap();
    let mut expect = [page(1, 3), page(2, 3), page(3, 3), page(4, 3)].concat();
    assert_eq!(bytes, expect);
    expect[18..20].fill(1);
    assert_eq!(crate::format::db_header::served(0, bytes), expect);
    let Some(Contents::Moment(opened)) = world.view.opened(inode) else {
        panic!("it is open");
    };
    assert!(Arc::ptr_eq(&opened, &database));
    let words = world.view.describe(inode);
    assert!(
        words.contains("app") && words.contains("T11:00:00.500000Z"),
        "{words}"
    );
}

#[tokio::test]
async fn what_is_no_directory_has_no_names_and_what_is_no_file_no_bytes() {
    let (world, _app) = World::with_app().await;
    let app = world.app().await;
    let latest = world.inode(app, "latest.db").await;
    let file = world.inode(app, "now.db").await;
    for inode in [latest, file, Inode(2), Inode(u64::MAX)] {
        let found = world.lookup_in(inode, "x").await;
        assert_eq!(found.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(world.list(inode).await.is_err());
    }
    for inode in [Inode::ROOT, app, latest] {
        assert!(world.view.opened(inode).is_none());
        assert_eq!(
            world.view.open(inode).await.err().unwrap().kind(),
            ErrorKind::Invalid
        );
    }
    for inode in [Inode::ROOT, app, file] {
        assert!(world.view.link_target(inode, How::Fresh).is_err());
    }
}

#[tokio::test]
async fn a_database_without_a_commit_is_an_empty_directory() {
    let world = World::new();
    let key = crate::storage::Body::Bytes("not a claim".into());
    world.source.put("app/generations/x", key).await.unwrap();
    let names = world.names(world.app().await).await;
    assert_eq!(names, ["by-txid", "by-time"]);
    assert_eq!(world.lookup("now.db").await, "nothing for 1 s");
    assert_eq!(world.lookup("latest.db").await, "nothing for 1 s");
    assert_eq!(
        world.lookup("2026-11-20T12:00:00Z.db").await,
        "nothing for 1 s"
    );
}
