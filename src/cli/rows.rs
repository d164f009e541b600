//! What statements give, as a table, CSV or JSON. Rows are written as they come, but for the first
//! of a table, so that a result of any size takes little memory.
//!
//! | | table | CSV (RFC 4180) | JSON |
//! | --- | --- | --- | --- |
//! | NULL | `-` | nothing, also alone in a row, as of the sqlite3 program; an empty text is `""` | `null` |
//! | integer, real | digits; as few of a real as it takes to tell it from every other | the same | a number; infinity is `9.0e999` |
//! | text | control characters escaped | as it is stored | a string |
//! | blob | hex digits, as `hex()` gives them | the same | a string of them |
//! | between results | an empty line | nothing | nothing: an array each |

use crate::cli::table::{Align, line};
use rusqlite::types::ValueRef;
use serde_json::Value;
use sqlrepl::error::{Error, Result};
use sqlrepl::query::Output;
use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{self, Write};
use std::ops::ControlFlow;

/// The columns of a table are as wide as these many rows need, or as many as have these many bytes.
const MEASURED_ROWS: usize = 1000;
const MEASURED_BYTES: usize = 1 << 20;
/// Characters that a cell is padded to, at most; a longer one moves what stands behind it.
const PADDED_MAX: usize = 80;

/// How rows are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Csv,
    Json,
}

/// Prints rows.
pub(crate) struct Rows<W: Write> {
    out: W,
    result: Box<dyn Shape>,
    format: Format,
    /// Results begun so far.
    results: usize,
}

impl<W: Write> Rows<W> {
    /// Rows on their way to `out`, which gathers them, and which may go away: then nobody misses
    /// the rest.
    pub(crate) fn new(out: W, format: Format) -> Self {
        Self {
            out,
            result: shape(format, &[]),
            format,
            results: 0,
        }
    }
}

impl<W: Write> Output for Rows<W> {
    fn begin(&mut self, columns: &[String]) -> Result<ControlFlow<()>> {
        self.result = shape(self.format, columns);
        self.results += 1;
        if self.format == Format::Table && self.results > 1 {
            return went(writeln!(self.out).and_then(|()| self.result.begin(&mut self.out)));
        }
        went(self.result.begin(&mut self.out))
    }

    fn row(&mut self, row: &[ValueRef<'_>]) -> Result<ControlFlow<()>> {
        went(self.result.row(row, &mut self.out))
    }

    fn end(&mut self) -> Result<ControlFlow<()>> {
        went(
            self.result
                .end(&mut self.out)
                .and_then(|()| self.out.flush()),
        )
    }
}

impl<W: Write> Drop for Rows<W> {
    fn drop(&mut self) {
        // What was given before a failure is shown; where the failure is `out`'s own, this is
        // another one of the same.
        self.result
            .give_up(&mut self.out)
            .and_then(|()| self.out.flush())
            .ok();
    }
}

fn went(written: io::Result<()>) -> Result<ControlFlow<()>> {
    match written {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(e) => Err(Error::disk("write to the standard output", e)),
    }
}

/// How one result is written.
trait Shape {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()>;
    fn row(&mut self, row: &[ValueRef<'_>], out: &mut dyn Write) -> io::Result<()>;
    fn end(&mut self, out: &mut dyn Write) -> io::Result<()>;

    /// Writes what is held back of a result without an end. Nothing that would look like one.
    fn give_up(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

fn shape(format: Format, columns: &[String]) -> Box<dyn Shape> {
    match format {
        Format::Table => Box::new(Table::new(columns)),
        Format::Csv => Box::new(Csv(columns.to_vec())),
        Format::Json => Box::new(Json::new(columns)),
    }
}

/// Holds the first rows back until they are enough to say how wide the columns are.
struct Table {
    heading: Vec<String>,
    held: Vec<Vec<String>>,
    held_bytes: usize,
    /// False for a column in which something else stands.
    is_number: Vec<bool>,
    /// Once it is known.
    columns: Option<Vec<(Align, usize)>>,
}

impl Table {
    fn new(columns: &[String]) -> Self {
        Self {
            heading: columns.iter().map(|name| printable(name)).collect(),
            held: Vec::new(),
            held_bytes: 0,
            is_number: vec![true; columns.len()],
            columns: None,
        }
    }

    /// The columns, when what is held has been written.
    fn measured(&mut self, out: &mut dyn Write) -> io::Result<&[(Align, usize)]> {
        if self.columns.is_none() {
            let held = std::mem::take(&mut self.held);
            let lines = || std::iter::once(&self.heading).chain(&held);
            let width = |at: usize| {
                let widths = lines().map(|cells| cells[at].chars().count().min(PADDED_MAX));
                widths.max().unwrap_or(0)
            };
            let align = |is_number| if is_number { Align::Right } else { Align::Left };
            let aligned = self.is_number.iter().enumerate();
            // A column without a value in it is taken for text.
            let aligned = aligned.map(|(at, is_number)| {
                let has_value = held.iter().any(|cells| cells[at] != NULL);
                (align(*is_number && has_value), width(at))
            });
            let columns: Vec<(Align, usize)> = aligned.collect();
            for cells in lines() {
                out.write_all(line(cells, &columns).as_bytes())?;
            }
            self.columns = Some(columns);
        }
        Ok(self.columns.as_deref().unwrap_or_default())
    }
}

impl Shape for Table {
    fn begin(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn row(&mut self, row: &[ValueRef<'_>], out: &mut dyn Write) -> io::Result<()> {
        let cells: Vec<String> = row.iter().map(cell).collect();
        if self.columns.is_some() {
            let columns = self.measured(out)?;
            return out.write_all(line(&cells, columns).as_bytes());
        }
        for (is_number, value) in self.is_number.iter_mut().zip(row) {
            *is_number &= !matches!(value, ValueRef::Text(_) | ValueRef::Blob(_));
        }
        self.held_bytes += cells.iter().map(String::len).sum::<usize>();
        self.held.push(cells);
        if self.held.len() >= MEASURED_ROWS || self.held_bytes >= MEASURED_BYTES {
            self.measured(out)?;
        }
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.measured(out).map(|_| ())
    }

    fn give_up(&mut self, out: &mut dyn Write) -> io::Result<()> {
        match self.held.is_empty() {
            true => Ok(()),
            false => self.end(out),
        }
    }
}

/// What stands for NULL in a table.
const NULL: &str = "-";

fn cell(value: &ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => NULL.to_owned(),
        ValueRef::Text(text) => printable(&String::from_utf8_lossy(text)),
        other => String::from_utf8_lossy(&plain(other)).into_owned(),
    }
}

/// Text on one line of a terminal, which no character of it commands.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// A value as plain text; NULL is none.
fn plain<'a>(value: &ValueRef<'a>) -> Cow<'a, [u8]> {
    let text = match value {
        ValueRef::Null => String::new(),
        ValueRef::Text(text) => return Cow::Borrowed(text),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) if number.is_infinite() => {
            if *number > 0.0 { "Inf" } else { "-Inf" }.to_owned()
        }
        ValueRef::Real(number) => format!("{number:?}"),
        ValueRef::Blob(bytes) => hex(bytes),
    };
    Cow::Owned(text.into_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// With its header.
struct Csv(Vec<String>);

impl Shape for Csv {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let names: Vec<_> = self
            .0
            .iter()
            .map(|name| ValueRef::Text(name.as_bytes()))
            .collect();
        csv_line(&names, out)
    }

    fn row(&mut self, row: &[ValueRef<'_>], out: &mut dyn Write) -> io::Result<()> {
        csv_line(row, out)
    }

    fn end(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

fn csv_line(values: &[ValueRef<'_>], out: &mut dyn Write) -> io::Result<()> {
    for (n, value) in values.iter().enumerate() {
        if n > 0 {
            out.write_all(b",")?;
        }
        let text = plain(value);
        let is_null = matches!(value, ValueRef::Null);
        let is_quoted = text.is_empty() || text.iter().any(|byte| b",\"\r\n".contains(byte));
        if is_null || !is_quoted {
            out.write_all(&text)?;
            continue;
        }
        out.write_all(b"\"")?;
        for (n, piece) in text.split(|byte| *byte == b'"').enumerate() {
            if n > 0 {
                out.write_all(b"\"\"")?;
            }
            out.write_all(piece)?;
        }
        out.write_all(b"\"")?;
    }
    out.write_all(b"\r\n")
}

/// An array, with an object on each line.
struct Json {
    /// Quoted, and each another one.
    names: Vec<String>,
    rows: u64,
}

impl Json {
    fn new(columns: &[String]) -> Self {
        let mut seen = HashSet::new();
        let mut unique = |name: &String| {
            // As SQLite names the columns of a subquery; else a parser would keep only the last.
            let numbered = (1..).map(|n| format!("{name}:{n}"));
            let mut names = std::iter::once(name.clone()).chain(numbered);
            let name = names.find(|name| seen.insert(name.clone()));
            Value::String(name.expect("there is always another number")).to_string()
        };
        Self {
            names: columns.iter().map(&mut unique).collect(),
            rows: 0,
        }
    }
}

impl Shape for Json {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(b"[")
    }

    fn row(&mut self, row: &[ValueRef<'_>], out: &mut dyn Write) -> io::Result<()> {
        let before = if self.rows == 0 { "{" } else { ",\n{" };
        self.rows += 1;
        for (n, (name, value)) in self.names.iter().zip(row).enumerate() {
            let before = if n == 0 { before } else { "," };
            write!(out, "{before}{name}:{}", json(value))?;
        }
        out.write_all(b"}")
    }

    fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(b"]\n")
    }
}

fn json(value: &ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "null".to_owned(),
        ValueRef::Text(text) => Value::String(String::from_utf8_lossy(text).into()).to_string(),
        ValueRef::Blob(bytes) => format!("\"{}\"", hex(bytes)),
        ValueRef::Integer(number) => number.to_string(),
        // JSON has no word for it; parsers that know doubles read this as infinity.
        ValueRef::Real(number) if number.is_infinite() => {
            if *number > 0.0 { "9.0e999" } else { "-9.0e999" }.to_owned()
        }
        ValueRef::Real(number) => format!("{number:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufWriter;

    /// Prints results, each as its columns and rows.
    fn printed(format: Format, results: &[(&[&str], &[&[ValueRef<'_>]])]) -> String {
        let mut out = Vec::new();
        let mut rows = Rows::new(&mut out, format);
        for (columns, values) in results {
            let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
            assert!(rows.begin(&columns).unwrap().is_continue());
            for row in *values {
                assert!(rows.row(row).unwrap().is_continue());
            }
            assert!(rows.end().unwrap().is_continue());
        }
        drop(rows);
        String::from_utf8(out).unwrap()
    }

    const TEXT: ValueRef<'static> = ValueRef::Text("a \"b\", c\u{e4}\n\u{1b}[2J".as_bytes());
    const VALUES: [ValueRef<'static>; 4] = [
        ValueRef::Integer(-7),
        TEXT,
        ValueRef::Blob(&[0, 0xab]),
        ValueRef::Null,
    ];

    #[test]
    fn a_table_is_aligned_and_no_text_of_it_commands_a_terminal() {
        let numbers: &[&[ValueRef<'_>]] = &[
            &[ValueRef::Integer(5), ValueRef::Real(0.1)],
            &[ValueRef::Null, ValueRef::Real(1e300)],
        ];
        assert_eq!(
            printed(
                Format::Table,
                &[(&["n", "x"], numbers), (&["a", "b", "c", "d"], &[&VALUES])]
            ),
            "n      x\n5    0.1\n-  1e300\n\n\
             \u{20}a  b                     c     d\n\
             -7  a \"b\", c\u{e4}\\n\\u{1b}[2J  00AB  -\n"
        );
        assert_eq!(printed(Format::Table, &[(&["none"], &[])]), "none\n");
    }

    #[test]
    fn csv_is_that_of_rfc_4180_and_tells_null_from_an_empty_text() {
        let more: &[ValueRef<'_>] = &[
            ValueRef::Text(b""),
            ValueRef::Real(1.0),
            ValueRef::Real(f64::NEG_INFINITY),
            ValueRef::Blob(b""),
        ];
        assert_eq!(
            printed(Format::Csv, &[(&["a", "b,b", "c", "d"], &[&VALUES, more])]),
            "a,\"b,b\",c,d\r\n\
             -7,\"a \"\"b\"\", c\u{e4}\n\u{1b}[2J\",00AB,\r\n\
             \"\",1.0,-Inf,\"\"\r\n"
        );
    }

    #[test]
    fn a_null_alone_in_its_row_is_an_empty_line_of_csv() {
        let rows: &[&[ValueRef<'_>]] = &[&[ValueRef::Null], &[ValueRef::Text(b"")]];
        assert_eq!(printed(Format::Csv, &[(&["a"], rows)]), "a\r\n\r\n\"\"\r\n");
    }

    #[test]
    fn json_keeps_types_and_the_order_and_all_columns_of_one_name() {
        let more: &[ValueRef<'_>] = &[
            ValueRef::Integer(i64::MAX),
            ValueRef::Real(2.0),
            ValueRef::Real(f64::INFINITY),
            ValueRef::Text(b"\xff"),
        ];
        let seen = printed(
            Format::Json,
            &[(&["z", "a", "z", "z:1"], &[&VALUES, more]), (&["n"], &[])],
        );
        assert_eq!(
            seen,
            "[{\"z\":-7,\"a\":\"a \\\"b\\\", c\u{e4}\\n\\u001b[2J\",\"z:1\":\"00AB\",\
             \"z:1:1\":null},\n\
             {\"z\":9223372036854775807,\"a\":2.0,\"z:1\":9.0e999,\"z:1:1\":\"\u{fffd}\"}]\n[]\n"
        );
        let array = seen.split("\n[]").next().unwrap().replace("9.0e999", "9");
        let parsed: Value = serde_json::from_str(&array).unwrap();
        assert_eq!(parsed[1]["z"], i64::MAX);
    }

    #[test]
    fn a_table_holds_back_only_the_first_rows() {
        let mut rows = Rows::new(Vec::new(), Format::Table);
        rows.begin(&["n".to_owned(), "text".to_owned()])
            .unwrap()
            .is_continue();
        let long = "x".repeat(5000);
        for n in 0..10_000 {
            let text = if n < 1000 { "short" } else { &long };
            let row = [ValueRef::Integer(n), ValueRef::Text(text.as_bytes())];
            assert!(rows.row(&row).unwrap().is_continue());
        }
        let written = rows.out.len();
        assert!(written > 40_000_000, "{written}");
    }

    #[test]
    fn rows_of_a_result_that_breaks_off_are_printed_and_json_stays_open() {
        for (format, expected) in [
            (Format::Table, "n\n1\n"),
            (Format::Csv, "n\r\n1\r\n"),
            (Format::Json, "[{\"n\":1}"),
        ] {
            let mut out = Vec::new();
            let mut rows = Rows::new(&mut out, format);
            assert!(rows.begin(&["n".to_owned()]).unwrap().is_continue());
            assert!(rows.row(&[ValueRef::Integer(1)]).unwrap().is_continue());
            drop(rows);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn a_reader_that_has_gone_ends_the_run_and_a_full_disk_is_an_error() {
        struct Failing(io::ErrorKind);
        impl Write for Failing {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(self.0.into())
            }
        }
        let gathered = |kind| BufWriter::new(Failing(kind));
        let mut gone = Rows::new(gathered(io::ErrorKind::BrokenPipe), Format::Csv);
        assert!(gone.begin(&["n".to_owned()]).unwrap().is_continue());
        assert!(gone.end().unwrap().is_break());
        let mut full = Rows::new(gathered(io::ErrorKind::StorageFull), Format::Csv);
        assert!(full.begin(&["n".to_owned()]).unwrap().is_continue());
        let full = full.end().unwrap_err();
        assert_eq!(full.kind(), sqlrepl::error::ErrorKind::Disk);
    }
}
