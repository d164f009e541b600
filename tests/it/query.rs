//! `sqlrepl query`: SQL on a moment, without a mount.

use crate::program::{LONG, Output, Running, bound, run, wait_for, wait_until};
use crate::s3_server::Verb;
use crate::world::{VERSION, World, three_versions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdout, ExitStatus, Stdio};

/// Runs `query` with these arguments and SQL.
#[track_caller]
fn query(world: &World, arguments: &str, sql: &str) -> Output {
    run(world.ours(&format!("query {arguments}")).arg(sql))
}

/// The same on the newest moment of `replicas/app`, which must succeed.
#[track_caller]
fn ask(world: &World, options: &str, sql: &str) -> String {
    query(world, &format!("replicas/app {options}"), sql).ok()
}

/// A `query` whose output is read from a pipe. Killed when this is dropped.
struct Piped(Child);

impl Piped {
    /// Starts it on the newest moment of `replicas/app`.
    fn start(world: &World, options: &str, sql: &str) -> Self {
        let mut command = world.ours(&format!("query replicas/app {options}"));
        let command = command
            .arg(sql)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn rows(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.0.stdout.take().unwrap())
    }

    /// What it said, once it has ended.
    fn said(&mut self) -> String {
        let mut said = String::new();
        let mut stderr = self.0.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        said
    }

    /// Waits for its end.
    #[track_caller]
    fn ended(&mut self) -> ExitStatus {
        wait_for(LONG, "the end of a query", || self.0.try_wait().unwrap())
    }

    /// The most memory that it has taken so far, in KiB.
    fn peak_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let mut lines = status.lines();
        let peak = lines.find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.unwrap().trim().trim_end_matches(" kB");
        peak.parse().unwrap()
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        // It may have ended by itself; all that matters is that it is gone.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_moment_is_asked_about_however_it_is_named() {
    let world = three_versions();
    let points = world.points();
    let [start, one, two, three] = points.as_slice() else {
        panic!("not four restore points: {points:?}");
    };
    let short = two.txid.trim_start_matches('0');
    for (arguments, version) in [
        ("replicas/app".to_owned(), "three"),
        ("replicas/app@latest".to_owned(), "three"),
        (format!("replicas/app@{}", three.time), "three"),
        (format!("replicas/app@{short}"), "two"),
        (format!("replicas/app --txid {short}"), "two"),
        (format!("replicas/app --timestamp {}", one.time), "one"),
        (
            format!("replicas/app@{}-{}", one.generation, one.txid),
            "one",
        ),
        (
            format!(
                "replicas/app@{} --generation {}",
                start.txid, start.generation
            ),
            "row 1",
        ),
    ] {
        let printed = query(&world, &arguments, VERSION).ok();
        assert_eq!(printed, format!("v\n{version}\n"), "{arguments}");
    }
}

/// README: "`sqlrepl query` gives what `sqlite3` gives on the restored file, and writes nothing."
#[test]
fn a_query_gives_what_sqlite3_gives_on_the_restored_file_and_writes_nothing() {
    let world = World::new();
    world.sample();
    world.sql(
        "app.db",
        "CREATE TABLE typed(id INTEGER PRIMARY KEY, a, b);
         INSERT INTO typed(a, b) VALUES (NULL, 1.5), ('', -9223372036854775807), ('a,\"b\"', 0.25),
             ('line' || char(10) || 'two', 100.0), ('\u{fc}\u{df}', x''), (3, 'x');
         CREATE INDEX by_a ON typed(a);
         CREATE VIEW both AS SELECT t.v, typed.* FROM t JOIN typed USING (id);
         CREATE VIRTUAL TABLE words USING fts5(text); INSERT INTO words SELECT v FROM t",
    );
    let mut daemon = world.daemon();
    world.sql("app.db", "DELETE FROM t WHERE id % 7 = 0");
    world.sync();
    assert_eq!(daemon.term(), 0);
    world.restore("restored.db", "");
    fs::create_dir(world.path("tmp")).unwrap();
    let before = files(&world);
    for sql in [
        "SELECT * FROM typed",
        "SELECT v, a, b FROM both ORDER BY v DESC",
        "SELECT sqrt(id), floor(1.5), pi() > 3 FROM t WHERE id IN (1, 4, 9)",
        "SELECT t.id % 10 AS tens, count(*) n, group_concat(v) FROM t GROUP BY 1 ORDER BY 2, 1",
        "SELECT * FROM t ORDER BY v LIMIT 20 OFFSET 3",
        "SELECT rowid, text FROM words WHERE words MATCH '12 OR 13'",
        "SELECT a FROM typed WHERE a > 'a' ORDER BY a",
        "SELECT name, type FROM sqlite_schema ORDER BY name",
        "PRAGMA integrity_check",
        "PRAGMA page_count",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) \
         SELECT i * i % 31 AS k, i FROM n ORDER BY 1, 2 DESC",
    ] {
        let sqlite3 = |mode: &str| {
            world
                .run("sqlite3", &[mode, "-header", "restored.db", sql])
                .ok()
        };
        let ours = |options: &str| {
            let mut command = world.ours(&format!("query replicas/app {options}"));
            run(command.arg(sql).env("TMPDIR", world.path("tmp"))).ok()
        };
        let parse = |csv: String| {
            fs::write(world.path("tmp.csv"), csv).unwrap();
            world.run("/usr/bin/python3", &["-c", CSV, "tmp.csv"]).ok()
        };
        // It quotes where it need not.
        assert_eq!(parse(ours("--csv")), parse(sqlite3("-csv")), "{sql}");
        let parsed = |text: String| serde_json::from_str::<Value>(&text).unwrap();
        assert_eq!(parsed(ours("--json")), parsed(sqlite3("-json")), "{sql}");
    }
    fs::remove_file(world.path("tmp.csv")).unwrap();
    assert_eq!(files(&world), before);
}

/// The fields of a CSV file.
const CSV: &str = "import csv, sys
print(list(csv.reader(open(sys.argv[1], newline=''), strict=True)))";

/// All files in a world but logs, their lengths, and when they were written.
fn files(world: &World) -> Vec<String> {
    let mut files = Vec::new();
    crate::world::walk(&world.path(""), &mut |path| {
        let file = fs::metadata(path).unwrap();
        if !path.starts_with(world.logs()) {
            let written = file.modified().unwrap();
            files.push(format!("{} {} {written:?}", path.display(), file.len()));
        }
    });
    files.sort();
    files
}

#[test]
fn rows_are_printed_as_a_table_as_csv_and_as_json() {
    let world = three_versions();
    let sql = "SELECT id, v AS \"Version\", id / 4.0 AS part, x'00ff' AS bytes, NULL AS none, \
               id FROM t WHERE id < 3; SELECT 1 WHERE 0; SELECT 'a' || char(27) || ',\"' AS odd";
    assert_eq!(
        ask(&world, "", sql),
        "id  Version  part  bytes  none  id\n\
         \u{20}1  three    0.25  00FF   -      1\n\
         \u{20}2  row 2     0.5  00FF   -      2\n\
         \n1\n\nodd\na\\u{1b},\"\n"
    );
    assert_eq!(
        ask(&world, "--csv", sql),
        "id,Version,part,bytes,none,id\r\n1,three,0.25,00FF,,1\r\n2,row 2,0.5,00FF,,2\r\n1\r\n\
         odd\r\n\"a\u{1b},\"\"\"\r\n"
    );
    let printed = ask(&world, "--json", sql);
    let arrays = serde_json::Deserializer::from_str(&printed).into_iter::<Value>();
    let arrays: Vec<Value> = arrays.map(Result::unwrap).collect();
    let row = |id: u64, version: &str, part: f64| {
        json!({
            "id": id, "Version": version, "part": part, "bytes": "00FF", "none": null, "id:1": id,
        })
    };
    assert_eq!(
        arrays,
        [
            json!([row(1, "three", 0.25), row(2, "row 2", 0.5)]),
            json!([]),
            json!([{ "odd": "a\u{1b},\"" }])
        ]
    );
    query(&world, "replicas/app --csv --json", sql).fails(2, "cannot be used with");
}

#[test]
fn statements_come_from_the_standard_input_when_no_argument_has_them() {
    let world = three_versions();
    let fed = |input: &[u8]| {
        let mut command = world.ours("query replicas/app");
        let mut program = Running::start(command.stdin(Stdio::piped()), &world.logs());
        program.stdin().unwrap().write_all(input).unwrap();
        (program.wait_exit(), program.stdout(), program.stderr())
    };
    let script = b"-- of the day\nCREATE TEMP TABLE few AS SELECT * FROM t WHERE id < 4;\n\
                   SELECT count(*) FROM few;\n\nSELECT v FROM few\n  WHERE id = 1;\n";
    assert_eq!(
        fed(script),
        (
            0,
            "count(*)\n       3\n\nv\nthree\n".to_owned(),
            String::new()
        )
    );
    assert_eq!(fed(b""), (0, String::new(), String::new()));
    let (code, printed, said) = fed(b"SELECT 1;\nSELECT v FORM t;\n");
    assert_eq!((code, &*printed), (1, "1\n1\n"));
    assert!(
        said.contains("line 2, column 15: near \"t\": syntax error"),
        "{said}"
    );
    let (code, _, said) = fed(b"SELECT '\xff'");
    assert_eq!(code, 2);
    assert!(
        said.contains("the standard input is no text in UTF-8"),
        "{said}"
    );
}

#[test]
fn an_argument_that_begins_with_a_comment_is_sql_and_a_slip_is_none() {
    let world = three_versions();
    for sql in [
        "-- of the day\nSELECT v FROM t WHERE id = 1",
        "--of the day\nSELECT v FROM t WHERE id = 1",
        "--csv stands for nothing here\nSELECT v FROM t WHERE id = 1",
    ] {
        assert_eq!(ask(&world, "", sql), "v\nthree\n", "{sql}");
        assert_eq!(ask(&world, "--csv", sql), "v\r\nthree\r\n", "{sql}");
        let mut command = world.ours("query replicas/app");
        let shown = run(command.args([sql, "--csv"])).ok();
        assert_eq!(shown, "v\r\nthree\r\n", "{sql}");
    }
    for arguments in ["replicas/app --cvs", "--cvs replicas/app"] {
        let says = "unexpected argument '--cvs' found";
        query(&world, arguments, VERSION).fails(2, says);
        world.sqlrepl(&format!("query {arguments}")).fails(2, says);
    }
    query(&world, "replicas/app --cvs", "-- a comment\nSELECT 1").fails(2, "unexpected argument");
}

#[test]
fn a_row_is_shown_while_the_next_one_takes_its_time() {
    let world = three_versions();
    let slow = "SELECT v FROM t WHERE id = 1 UNION ALL SELECT count(*) FROM \
                (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n)";
    for (options, shown) in [
        ("--csv", "v\r\nthree\r\n"),
        ("--json", "[{\"v\":\"three\"}"),
    ] {
        let mut command = world.ours(&format!("query replicas/app {options}"));
        let mut program = Running::start(command.arg(slow), &world.logs());
        wait_until(LONG, "the first row", || program.stdout() == shown);
        assert!(program.is_running());
    }
}

/// README: "`sqlrepl query` opens no other file: for a join of two moments, ATTACH them in a
/// mount."
#[test]
fn what_sqlite_refuses_is_said_in_one_sentence_with_the_remedy() {
    let world = three_versions();
    let beside = world.path("other.db");
    let attach = format!("ATTACH '{}' AS other", beside.display());
    let read_only = "a moment is read only; `sqlrepl restore` makes a file of it that can be \
                     changed";
    for (sql, says) in [
        ("SELECT * FROM none", "statement 1: no such table: none"),
        ("SELECT v FROM t WHERE (", "statement 1: incomplete input"),
        (
            "SELECT 1; DELETE FROM t",
            &format!("statement 2: {read_only}"),
        ),
        ("CREATE TABLE u(x)", read_only),
        ("PRAGMA user_version = 7", read_only),
        ("VACUUM INTO 'copy.db'", read_only),
        (
            &attach,
            "statement 1: a query sees one moment and no other file; `sqlrepl mount` shows \
             several, which sqlite3 can ATTACH",
        ),
    ] {
        let refused = query(&world, "replicas/app", sql).fails(1, says);
        assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
    }
    assert!(!beside.exists() && !world.path("copy.db").exists());
    let _mount = world.mount();
    let two = format!("mnt/app/{}.db", world.points()[2].time);
    let joined = "SELECT a.v, b.v FROM t a JOIN two.t b USING (id) WHERE id = 1";
    let joined = format!("ATTACH '{two}' AS two; {joined}");
    assert_eq!(world.sql("mnt/app/latest.db", &joined), "three|two");
}

#[test]
fn a_moment_that_is_not_there_is_exit_code_3() {
    let world = three_versions();
    let points = world.points();
    for (arguments, code, words) in [
        ("replicas/app@2001-01-01", 3, "2001-01-01"),
        ("replicas/app@ffffff", 3, "ffffff"),
        (
            "replicas/app --generation 00000009-00000009",
            3,
            "00000009-00000009",
        ),
        ("replicas/none", 3, "none"),
        (
            "replicas/app@someday",
            2,
            "\"someday\" is neither a time nor a txid",
        ),
        ("replicas/app --txid xyz", 2, "xyz"),
        (
            "replicas/app@1c --txid 1c",
            2,
            "@1c and --txid both say which moment",
        ),
    ] {
        query(&world, arguments, VERSION).fails(code, words);
    }
    // Given up by retention: all but the newest.
    let gone = format!("replicas/app@{}", points[1].txid);
    assert_eq!(query(&world, &gone, VERSION).ok(), "v\none\n");
    world.sqlrepl("compact replicas/app --force").ok();
    world
        .sqlrepl("retain replicas/app --retention 1ms --force")
        .ok();
    query(&world, &gone, VERSION).fails(3, &points[1].txid);
    assert_eq!(ask(&world, "", VERSION), "v\nthree\n");
}

#[test]
fn a_store_that_is_away_or_damaged_is_named_as_everywhere() {
    let world = three_versions();
    let objects = world.objects("replicas/app");
    let (snapshot, size) = objects
        .iter()
        .find(|(name, _)| name.ends_with(".snapshot"))
        .unwrap();
    let path = world.path("replicas/app").join(snapshot);
    let good = fs::read(&path).unwrap();
    let mut bytes = good.clone();
    // The pages come first; the middle of what is there is one that a scan needs.
    bytes[usize::try_from(size / 2).unwrap()] ^= 0x10;
    fs::write(&path, bytes).unwrap();
    let first = format!("replicas/app@{}", world.points()[0].txid);
    let damaged = query(&world, &first, "SELECT sum(length(v)) FROM t").fails(1, snapshot);
    assert!(!damaged.stderr.contains("disk I/O error"), "{damaged}");
    fs::write(&path, good).unwrap();
    world.take_replica_away();
    let away = query(&world, "replicas/app", VERSION);
    match world.requests() {
        Some(_) => away.fails(1, "s3://replicas/app"),
        None => away.fails(3, "replicas/app: no such directory"),
    };
    world.bring_replica_back();
    assert_eq!(ask(&world, "", VERSION), "v\nthree\n");
}

#[test]
fn a_database_is_asked_by_its_name_and_a_replica_that_is_away_is_passed_over() {
    let world = three_versions();
    let text = format!(
        "[[db]]\npath = \"app.db\"\n[[db.replica]]\nname = \"away\"\nurl = \"{}\"\n\
         [[db.replica]]\nname = \"here\"\n{} = \"{}\"\n",
        "s3://bucket/app?endpoint=http://127.0.0.1:1&region=us-east-1",
        if world.requests().is_some() {
            "url"
        } else {
            "path"
        },
        world.place("replicas/app"),
    );
    fs::write(world.path("c.toml"), text).unwrap();
    let two = &world.points()[2];
    for target in ["app", "app.db"] {
        let mut command = world.ours("--config c.toml query");
        let asked = run(command.args([&format!("{target}@{}", two.time), VERSION]));
        assert!(
            asked.stderr.contains("replica away is passed over"),
            "{asked}"
        );
        assert_eq!(asked.ok(), "v\ntwo\n");
    }
    let mut command = world.ours("--config c.toml query app --replica here");
    assert_eq!(run(command.arg(VERSION)).ok(), "v\nthree\n");
}

#[test]
fn a_table_that_is_larger_than_the_page_cache_takes_little_more_memory() {
    let world = World::new();
    world.sql(
        "app.db",
        "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
         INSERT INTO t SELECT i, hex(randomblob(500)) FROM n",
    );
    let mut daemon = world.daemon();
    world.sync();
    assert_eq!(daemon.term(), 0);
    let mut program = Piped::start(&world, "--csv --page-cache 8MiB", "SELECT * FROM t");
    let mut rows = program.rows();
    let mut line = String::new();
    for _ in 0..90_000 {
        line.clear();
        rows.read_line(&mut line).unwrap();
    }
    assert!(line.starts_with("89999,"), "{line}");
    let peak = program.peak_kib();
    assert!(peak < 72 << 10, "{peak} KiB");
    assert_eq!(rows.lines().count(), 10_001);
    assert_eq!(program.ended().code(), Some(0));
}

const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) \
                       SELECT i, printf('%100d', i) AS padded FROM n";

/// README: "`sqlrepl query` takes little more memory than `--page-cache` says, also for millions of
/// rows, and ends quietly when nobody reads them any more."
#[test]
fn millions_of_rows_take_little_memory_and_head_ends_them_quietly() {
    let world = three_versions();
    for options in ["", "--csv", "--json"] {
        let mut program = Piped::start(&world, options, ENDLESS);
        let mut rows = program.rows();
        let mut line = String::new();
        for _ in 0..1_000_000 {
            line.clear();
            rows.read_line(&mut line).unwrap();
        }
        assert!(
            line.contains("99999") || line.contains("1000000"),
            "{options}: {line}"
        );
        let peak = program.peak_kib();
        assert!(peak < 64 << 10, "{options}: {peak} KiB");
        drop(rows);
        assert_eq!(program.ended().code(), Some(0), "{options}");
        assert_eq!(program.said(), "", "{options}");
    }
    let shell = format!(
        "'{}' query replicas/app \"$1\" | head -n 2",
        env!("CARGO_BIN_EXE_sqlrepl")
    );
    let shell = shell.replace("replicas/app", &world.place("replicas/app"));
    let mut command = bound("bash");
    command.args([
        "-o",
        "pipefail",
        "-c",
        &shell,
        "bash",
        "SELECT * FROM t AS a, t AS b",
    ]);
    let environment = world.ours("").get_envs().map(owned).collect::<Vec<_>>();
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let head = run(command.current_dir(world.path(""))).ok();
    assert_eq!(head.lines().count(), 2, "{head}");
}

fn owned(
    (name, value): (&std::ffi::OsStr, Option<&std::ffi::OsStr>),
) -> (std::ffi::OsString, Option<std::ffi::OsString>) {
    (name.to_owned(), value.map(ToOwned::to_owned))
}

/// As Ctrl-C does; but SIGINT is ignored in what a shell began in the background, and so below it.
#[test]
fn a_signal_ends_a_statement_that_would_not_end() {
    let world = three_versions();
    let mut program = Piped::start(&world, "--csv", ENDLESS);
    let mut rows = program.rows();
    rows.read_line(&mut String::new()).unwrap();
    let pid = Pid::from_raw(program.0.id().cast_signed());
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(program.ended().signal(), Some(libc::SIGTERM));
}

/// README: "`sqlrepl query` reads of a replica only what its statements need: one row of a large
/// database takes a handful of requests."
#[test]
fn one_row_of_a_large_database_takes_a_handful_of_requests_and_little_of_its_bytes() {
    let world = World::on_s3();
    world.sample();
    world.sql(
        "app.db",
        "CREATE TABLE large(id INTEGER PRIMARY KEY, v BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
         INSERT INTO large SELECT i, randomblob(500) FROM n",
    );
    let mut daemon = world.daemon();
    for n in 0..20 {
        world.sql(
            "app.db",
            &format!("UPDATE large SET v = randomblob(500) WHERE id = {n} * 977"),
        );
        world.sync();
    }
    assert_eq!(daemon.term(), 0);
    let stored: u64 = world
        .objects("replicas/app")
        .iter()
        .map(|(_, size)| size)
        .sum();
    assert!(stored > 30_000_000, "{stored} bytes");
    let row = "SELECT hex(v) FROM large WHERE id = 40000";
    let expected = format!("hex(v)\n{}\n", world.sql("app.db", row));
    let moment = world.points()[10].clone();
    for (arguments, expected) in [
        ("replicas/app".to_owned(), &expected),
        (format!("replicas/app@{}", moment.time), &expected),
        (format!("replicas/app@{}", moment.txid), &expected),
    ] {
        world.server().reset();
        assert_eq!(&query(&world, &arguments, row).ok(), expected);
        let counts = world.server().counts();
        println!("{arguments}: {counts:?}");
        let requests: u64 = counts.calls.values().sum();
        // In S3 `app@1c` may be the name of a replica, too.
        let listings = if arguments.contains('@') { 2 } else { 1 };
        assert_eq!(
            counts.calls[&Verb::List],
            listings,
            "{arguments}: {counts:?}"
        );
        assert!(requests <= 6, "{arguments}: {counts:?}");
        assert!(counts.sent < 1_000_000, "{arguments}: {counts:?}");
    }
    // A scan reads ahead: far fewer requests than blocks.
    world.server().reset();
    let sum = "SELECT sum(length(v)) FROM large";
    assert_eq!(
        ask(&world, "--csv", sum),
        format!("sum(length(v))\r\n{}\r\n", 60_000 * 500)
    );
    let counts = world.server().counts();
    println!("a scan: {counts:?}");
    assert!(counts.calls[&Verb::Get] <= 80, "{counts:?}");
    assert!(counts.sent < stored * 5 / 4, "{counts:?}");
}
