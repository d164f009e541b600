//! Aligned tables, and JSON arrays of the same rows.

use crate::cli::say;
use serde_json::{Map, Value};
use sqlrepl::error::Result;

/// How a column lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A column: its heading, which in lower case is its name in JSON.
pub(crate) type Column = (&'static str, Align);

/// Prints rows as a table, or as one JSON array of objects.
///
/// # Errors
/// As [`say`].
pub(crate) fn print(columns: &[Column], rows: &[Vec<Value>], json: bool) -> Result<()> {
    if json {
        say(&as_json(columns, rows).to_string())
    } else {
        say(as_text(columns, rows).trim_end_matches('\n'))
    }
}

/// Rows as an array of objects.
pub(crate) fn as_json(columns: &[Column], rows: &[Vec<Value>]) -> Value {
    let object = |row: &Vec<Value>| {
        let names = columns.iter().map(|(name, _)| name.to_lowercase());
        Value::Object(names.zip(row.iter().cloned()).collect::<Map<_, _>>())
    };
    rows.iter().map(object).collect()
}

/// Rows as lines under a line of headings.
pub(crate) fn as_text(columns: &[Column], rows: &[Vec<Value>]) -> String {
    let heading: Vec<String> = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    let cells = rows.iter().map(|row| row.iter().map(cell).collect());
    let lines: Vec<Vec<String>> = std::iter::once(heading).chain(cells).collect();
    // In characters, as they are padded.
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max();
    let width = |at: usize| width(at).unwrap_or(0);
    let aligned = columns.iter().enumerate();
    let aligned: Vec<(Align, usize)> = aligned
        .map(|(at, (_, align))| (*align, width(at)))
        .collect();
    lines.iter().map(|cells| line(cells, &aligned)).collect()
}

/// A line of cells, each padded to its width in characters.
pub(crate) fn line(cells: &[String], columns: &[(Align, usize)]) -> String {
    let padded = cells
        .iter()
        .zip(columns)
        .map(|(cell, (align, width))| match align {
            Align::Left => format!("{cell:width$}"),
            Align::Right => format!("{cell:>width$}"),
        });
    let padded: Vec<String> = padded.collect();
    format!("{}\n", padded.join("  ").trim_end())
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COLUMNS: [Column; 3] = [
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("EXACT", Align::Left),
    ];

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec![json!("a"), json!(12345), json!(true)],
            vec![json!("bc\u{e4}\u{f6}fg"), Value::Null, json!(false)],
        ];
        assert_eq!(
            as_text(&COLUMNS, &rows),
            "NAME     SIZE  EXACT\na       12345  yes\nbc\u{e4}\u{f6}fg      -  no\n"
        );
    }

    #[test]
    fn json_keeps_numbers_and_absent_values() {
        let rows = vec![vec![json!("a"), json!(7), Value::Null]];
        assert_eq!(
            as_json(&COLUMNS, &rows).to_string(),
            r#"[{"exact":null,"name":"a","size":7}]"#
        );
        assert_eq!(as_json(&COLUMNS, &[]).to_string(), "[]");
    }
}
