use super::*;
use crate::error::ErrorKind;
use crate::materialize::model::{Writer, open_replica};
use crate::storage::Store;
use crate::storage::fault::{Fault, FaultStore, every};
use crate::storage::memory::MemoryStore;

/// Results as text: a line of columns, and one of each row.
#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    /// Breaks off after so many lines.
    limit: Option<usize>,
}

impl Lines {
    fn push(&mut self, line: String) -> Result<ControlFlow<()>> {
        self.lines.push(line);
        Ok(
            match self.limit.is_some_and(|limit| self.lines.len() >= limit) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            },
        )
    }
}

impl Output for Lines {
    fn begin(&mut self, columns: &[String]) -> Result<ControlFlow<()>> {
        self.push(columns.join(" "))
    }

    fn row(&mut self, row: &[ValueRef<'_>]) -> Result<ControlFlow<()>> {
        let value = |value: &ValueRef<'_>| match value {
            ValueRef::Null => "NULL".to_owned(),
            ValueRef::Integer(number) => number.to_string(),
            ValueRef::Real(number) => format!("{number:?}"),
            ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
            ValueRef::Blob(bytes) => format!("{} bytes", bytes.len()),
        };
        self.push(row.iter().map(value).collect::<Vec<_>>().join(" "))
    }

    fn end(&mut self) -> Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }
}

/// A replica of one moment: tables `t(id, v)` of 1,000 rows of some 500 bytes and `other(id)`.
async fn moment() -> (Arc<FaultStore>, Arc<Database>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("app.db");
    let made = Connection::open(&file).unwrap();
    made.execute_batch(
        "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
         INSERT INTO t SELECT i, printf('%d-%500d', i, i) FROM n;
         CREATE TABLE other(id); INSERT INTO other VALUES(2), (3);",
    )
    .unwrap();
    made.close().unwrap();
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(bytes[18..20], [2, 2]);
    let store = FaultStore::new(MemoryStore::new());
    let reading: Arc<dyn Store> = store.clone();
    let mut writer = Writer::with_image(Arc::clone(&reading), 1, 4096, &bytes).await;
    writer.exact_snapshot(false).await;
    let replica = open_replica(&reading, 1 << 20).await;
    let point = writer.points()[0];
    (store, replica.open(&point).await.unwrap())
}

async fn run_into(database: &Arc<Database>, sql: &str, mut into: Lines) -> (Result<()>, Lines) {
    let (database, sql) = (Arc::clone(database), sql.to_owned());
    let running = tokio::task::spawn_blocking(move || {
        let ran = Session::open(database).and_then(|session| session.run(&sql, &mut into));
        (ran, into)
    });
    running.await.unwrap()
}

#[track_caller]
fn lines((ran, into): (Result<()>, Lines)) -> String {
    ran.unwrap();
    into.lines.join("\n")
}

async fn run(database: &Arc<Database>, sql: &str) -> (Result<()>, Lines) {
    run_into(database, sql, Lines::default()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_run_in_order_and_those_without_columns_say_nothing() {
    let (_, moment) = moment().await;
    let sql = "-- what is there\nSELECT count(*) AS n FROM t; ; BEGIN;
         SELECT t.id, other.id FROM t JOIN other USING (id) ORDER BY 1; END;
         CREATE TEMP TABLE mine AS SELECT id FROM other; INSERT INTO mine VALUES(7);
         SELECT sum(id) FROM mine; SELECT NULL, ?1 WHERE 0; PRAGMA integrity_check; -- the end";
    assert_eq!(
        lines(run(&moment, sql).await),
        "n\n1000\nid id\n2 2\n3 3\nsum(id)\n12\nNULL ?1\nintegrity_check\nok"
    );
    assert_eq!(lines(run(&moment, " ; -- nothing").await), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sort_that_does_not_fit_into_memory_gets_to_its_end() {
    let (_, moment) = moment().await;
    let sql = "PRAGMA cache_size=10; PRAGMA temp_store=FILE;
         CREATE TEMP TABLE big AS SELECT a.id, a.v || b.v AS v FROM t a, t b WHERE b.id <= 40;
         SELECT count(*), min(v) < max(v) FROM (SELECT v FROM big ORDER BY v DESC, id)";
    assert_eq!(
        lines(run(&moment, sql).await),
        "count(*) min(v) < max(v)\n40000 1"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_seen_enough_ends_the_run() {
    let (_, moment) = moment().await;
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
    let sql = format!("{endless}; SELECT 'not reached'");
    let into = Lines {
        limit: Some(4),
        ..Lines::default()
    };
    assert_eq!(lines(run_into(&moment, &sql, into).await), "i\n1\n2\n3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_sqlite_refuses_is_named_with_its_words() {
    let (_, moment) = moment().await;
    let read_only = "a moment is read only; `sqlrepl restore` makes a file of it that can be \
                     changed";
    let alone = "a query sees one moment and no other file; `sqlrepl mount` shows several, which \
                 sqlite3 can ATTACH";
    let folder = tempfile::tempdir().unwrap();
    let written = folder.path().join("written.db");
    let written = written.to_str().unwrap();
    for (sql, says) in [
        (
            "SELEC 1",
            "line 1, column 1: near \"SELEC\": syntax error".to_owned(),
        ),
        (
            "SELECT 1;\nSELECT 2;\n  SELECT * FROM none",
            "statement 3: no such table: none".to_owned(),
        ),
        (
            "SELECT '\u{e4}', x",
            "line 1, column 13: no such column: x".to_owned(),
        ),
        (
            "SELECT 1; SELECT (",
            "statement 2: incomplete input".to_owned(),
        ),
        (
            "SELECT 1; SELECT abs(-9223372036854775807 - 1)",
            "statement 2: integer overflow".to_owned(),
        ),
        ("DELETE FROM t", format!("statement 1: {read_only}")),
        ("CREATE TABLE u(x)", format!("statement 1: {read_only}")),
        ("PRAGMA user_version=3", format!("statement 1: {read_only}")),
        ("SELECT 1; VACUUM", format!("statement 2: {read_only}")),
        (
            &format!("VACUUM INTO '{written}'"),
            format!("statement 1: {read_only}"),
        ),
        (
            &format!("VACUUM INTO 'file:{written}?vfs=unix'"),
            format!("statement 1: {read_only}"),
        ),
        (
            &format!("ATTACH '{written}' AS a"),
            format!("statement 1: {alone}"),
        ),
        (
            &format!("ATTACH 'file:{written}?vfs=unix' AS a"),
            format!("statement 1: {alone}"),
        ),
        (
            &format!("ATTACH 'file:{written}?vfs=unix' || '' AS a"),
            format!("statement 1: {alone}"),
        ),
        ("ATTACH NULL AS a", format!("statement 1: {alone}")),
        ("ATTACH ?1 AS a", format!("statement 1: {alone}")),
        (
            "SELECT load_extension('x')",
            "statement 1: not authorized".to_owned(),
        ),
    ] {
        let (ran, _) = run(&moment, sql).await;
        let error = ran.unwrap_err();
        assert_eq!(error.to_string(), says, "{sql}");
        assert_eq!(error.kind(), ErrorKind::Refused, "{sql}");
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

/// It makes rows of the errors of reads, as if the database were damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_integrity_check_of_a_moment_that_cannot_be_read_fails() {
    let (store, moment) = moment().await;
    lines(run(&moment, "SELECT count(*) FROM other").await);
    store.set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
    for sql in ["PRAGMA integrity_check", "PRAGMA quick_check(1)"] {
        let (ran, _) = run(&moment, sql).await;
        assert_eq!(ran.unwrap_err().kind(), ErrorKind::Unavailable, "{sql}");
    }
    store.heal();
    let (ran, _) = run(&moment, "PRAGMA integrity_check(1); SELECT * FROM nosuch").await;
    assert!(ran.unwrap_err().to_string().contains("no such table"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_behind_a_zero_byte_is_not_passed_over_in_silence() {
    let (_store, moment) = moment().await;
    let (ran, into) = run(&moment, "SELECT 1;\0 SELECT 2").await;
    let error = ran.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(
        error.to_string().starts_with("byte 9 of the SQL is a zero"),
        "{error}"
    );
    assert_eq!(into.lines, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_below_sqlite_is_said_in_our_words_and_what_came_before_is_there() {
    let (store, moment) = moment().await;
    assert_eq!(
        lines(run(&moment, "SELECT v < '2' FROM t WHERE id = 1").await),
        "v < '2'\n1"
    );
    store.set_rule(every(Fault::Refuse(ErrorKind::Unavailable)));
    let (ran, into) = run(&moment, "SELECT 1; SELECT sum(length(v)) FROM t; SELECT 2").await;
    let error = ran.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("generations/"), "{error}");
    assert_eq!(into.lines, ["1", "1"]);
    store.heal();
    let query = "SELECT sum(length(v)) > 500000 AS enough FROM t";
    assert_eq!(lines(run(&moment, query).await), "enough\n1");
}
