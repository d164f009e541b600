//! The rules of the source that no compiler checks: which module may name which, what only one file
//! may name, the shape of the text, and that the README promises what a story shows.

use crate::world::walk;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A module may name those of its own row and of the rows before it.
const LAYERS: [&[&str]; 9] = [
    &["error"],
    &["format"],
    &["config"],
    &["storage"],
    &["maintain"],
    &["replicate", "materialize"],
    &["restore", "mount", "query", "validate"],
    &["daemon"],
    &["cli"],
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a folder with this extension, their paths relative to the crate, and their text.
fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    walk(&root().join(folder), &mut |path| {
        if path.extension().is_some_and(|found| found == extension) {
            let name = path
                .strip_prefix(root())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            files.push((name, fs::read_to_string(path).unwrap()));
        }
    });
    assert!(!files.is_empty(), "no .{extension} files in {folder}");
    files.sort();
    files
}

/// All text files that people write.
fn texts() -> Vec<(String, String)> {
    let mut texts = [files("src", "rs"), files("tests", "rs")].concat();
    texts.extend([files("tests", "c"), files("tests", "py")].concat());
    let mut others: Vec<PathBuf> = ["Makefile", "README.md", ".ci/run"]
        .iter()
        .map(|name| root().join(name))
        .collect();
    walk(&root().join("contrib"), &mut |path| {
        others.push(path.to_owned())
    });
    texts.extend(others.iter().map(|path| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
        (name.to_owned(), fs::read_to_string(path).unwrap())
    }));
    texts
}

/// The lines of code, without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate();
    numbered.map(|(n, line)| (n + 1, line.split("//").next().unwrap_or_default()))
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// The top-level module that a file of `src` belongs to.
fn module_of(name: &str) -> &str {
    let below = name.strip_prefix("src/").unwrap_or(name);
    below.split(['/', '.']).next().unwrap_or_default()
}

/// The top-level modules that a line of code names by their full path.
fn named(line: &str) -> impl Iterator<Item = &str> {
    let paths = line
        .match_indices("crate::")
        .map(|(at, found)| &line[at + found.len()..]);
    paths.map(|path| {
        let end = path.find(|c: char| !c.is_alphanumeric() && c != '_');
        &path[..end.unwrap_or(path.len())]
    })
}

#[track_caller]
fn none(found: &[String], rule: &str) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn imports_point_left_only() {
    let mut found = Vec::new();
    for (name, text) in files("src", "rs") {
        let own = module_of(&name);
        if matches!(own, "lib" | "main") {
            continue;
        }
        let own_layer = layer(own).unwrap_or_else(|| panic!("{name} has no layer in tidy.rs"));
        for (number, line) in code(&text) {
            for other in named(line).filter(|other| *other != own) {
                if layer(other).is_none_or(|layer| layer >= own_layer) {
                    found.push(format!("{name}:{number}: {own} names {other}"));
                }
            }
        }
    }
    none(
        &found,
        "a module names only those to its left (see the code map in src/lib.rs)",
    );
}

#[test]
fn only_the_fuse_shell_names_the_fuse_crate() {
    let shell = ["src/mount/fuse.rs", "src/mount/session.rs"];
    let mut found = Vec::new();
    for (name, text) in files("src", "rs") {
        let foreign = code(&text).filter(|(_, line)| line.contains("fuser::"));
        if !shell.contains(&name.as_str()) {
            found.extend(foreign.map(|(number, line)| format!("{name}:{number}: {line}")));
        }
    }
    none(
        &found,
        "only mount/fuse.rs and mount/session.rs name the FUSE crate",
    );
}

#[test]
fn only_the_s3_store_names_the_s3_client() {
    let mut found = Vec::new();
    for (name, text) in files("src", "rs") {
        let foreign = code(&text).filter(|(_, line)| line.contains("aws_"));
        if !name.starts_with("src/storage/s3") {
            found.extend(foreign.map(|(number, line)| format!("{name}:{number}: {line}")));
        }
    }
    none(&found, "only storage/s3 names the S3 client");
}

#[test]
fn text_is_ascii_in_100_columns_without_trailing_blanks() {
    let mut found = Vec::new();
    for (name, text) in texts() {
        for (number, line) in text.lines().enumerate() {
            let place = format!("{name}:{}", number + 1);
            if !line.is_ascii() {
                found.push(format!("{place}: not ASCII"));
            }
            // A row of a table in the documentation cannot be broken.
            let is_row = ["//! |", "/// |"]
                .iter()
                .any(|row| line.trim_start().starts_with(row));
            if line.chars().count() > 100 && !is_row {
                found.push(format!("{place}: longer than 100 columns"));
            }
            if line.ends_with([' ', '\t']) {
                found.push(format!("{place}: a blank at the end"));
            }
        }
        if !text.is_empty() && !text.ends_with('\n') {
            found.push(format!("{name}: no line end at the end"));
        }
    }
    none(
        &found,
        "text is ASCII in 100 columns, without trailing blanks",
    );
}

#[test]
fn a_function_fits_a_screen() {
    let mut found = Vec::new();
    for (name, text) in [files("src", "rs"), files("tests", "rs")].concat() {
        let lines: Vec<&str> = text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let body = line.trim_start();
            let indent = &line[..line.len() - body.len()];
            let is_fn = body.split("fn ").next().is_some_and(|before| {
                let words = [
                    "pub",
                    "pub(crate)",
                    "pub(super)",
                    "async",
                    "const",
                    "unsafe",
                ];
                before.split_whitespace().all(|word| words.contains(&word))
            });
            if !is_fn || !body.contains("fn ") || body.ends_with([';', '}']) {
                continue;
            }
            // rustfmt puts the closing brace of an item at its own indentation.
            let end = lines[start..]
                .iter()
                .position(|line| *line == format!("{indent}}}"));
            if end.is_some_and(|end| end >= 70) {
                found.push(format!("{name}:{}: {body}", start + 1));
            }
        }
    }
    none(&found, "a function has at most 70 lines");
}

#[test]
fn nothing_is_left_unfinished_and_no_machine_shows() {
    // Put together here, so that this file does not find itself.
    let words = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("dbg", "!("),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("/ho", "me/"),
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("allow(", "dead_code"),
    ];
    let mut found = Vec::new();
    for (name, text) in texts() {
        for (number, line) in text.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                found.push(format!("{name}:{}: {word}", number + 1));
            }
        }
    }
    none(&found, "nothing is left to do, and no machine's paths show");
}

#[test]
fn a_file_is_named_for_what_it_owns() {
    let vague = [
        "util", "utils", "common", "helper", "helpers", "manager", "misc",
    ];
    let found: Vec<String> = [files("src", "rs"), files("tests", "rs")]
        .concat()
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| {
            name.split(['/', '.', '_'])
                .any(|part| vague.contains(&part))
        })
        .collect();
    none(&found, "a file is named for what it owns");
}

/// Words in a row, so that line breaks and comment marks do not matter.
fn words(text: &str) -> String {
    let words = text
        .split_whitespace()
        .filter(|word| !matches!(*word, "///" | "//" | "//!"));
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn each_promise_of_the_readme_is_quoted_by_a_story_and_each_quote_stands_there() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let promises: BTreeSet<String> = readme
        .split("\n## ")
        .filter(|section| section.starts_with("Promises") || section.starts_with("Limits"))
        .flat_map(|section| section.split("\n- ").skip(1))
        .map(|item| words(item.split("\n\n").next().unwrap_or_default()))
        .collect();
    assert!(promises.len() > 10, "the README's promises were not found");
    let stories = files("tests/it", "rs")
        .into_iter()
        .filter(|(name, _)| !name.ends_with("tidy.rs"));
    let quotes: BTreeSet<String> = stories
        .flat_map(|(_, text)| {
            let text = words(&text);
            let quotes = text.split("README: \"").skip(1);
            quotes
                .map(|quote| quote.split("\" ").next().unwrap().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let unshown: Vec<String> = promises.difference(&quotes).cloned().collect();
    none(&unshown, "no story quotes these promises of the README");
    let foreign: Vec<String> = quotes.difference(&promises).cloned().collect();
    none(&foreign, "the README does not promise what stories quote");
}
