//! Each row of COVERAGE.md names a test that there is, or says why there is none.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Rust files by their path.
type Sources = BTreeMap<PathBuf, String>;

/// How the state of a feature begins that the hub leaves out, or does not limit.
const LEFT_OUT: &[&str] = &["not", "left out"];

#[test]
fn every_row_names_a_test_or_says_why_there_is_none() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Sources::new();
    for folder in ["../../host", "../../tests"] {
        collect(&here.join(folder), &mut sources);
    }
    let table = fs::read_to_string(here.join("COVERAGE.md")).expect("the table");
    let mistakes = mistakes(&table, &sources);
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

fn collect(folder: &Path, sources: &mut Sources) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let is_built = path.file_name().is_some_and(|name| name == "target" || name == "node_modules");
        if path.is_dir() && !is_built {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("text");
            sources.insert(path, text);
        }
    }
}

/// What is wrong with a table, row by row.
fn mistakes(table: &str, sources: &Sources) -> Vec<String> {
    let mut mistakes = Vec::new();
    let mut is_in_table = false;
    for (number, line) in (1..).zip(table.lines()) {
        let is_row = line.starts_with('|');
        // The first row is the head.
        if is_row && is_in_table && !line.starts_with("|---") {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let (state, test) = (cells.get(1).copied().unwrap_or_default(), cells.last().copied().unwrap_or_default());
            mistakes.extend(judge(state, test, sources).err().map(|why| format!("COVERAGE.md:{number}: {why}")));
        }
        is_in_table = is_row;
    }
    mistakes
}

fn judge(state: &str, test: &str, sources: &Sources) -> Result<(), String> {
    if test.is_empty() {
        let has_reason = LEFT_OUT.iter().any(|word| state.starts_with(word));
        return if has_reason { Ok(()) } else { Err("names no test, and its state gives no reason".to_owned()) };
    }
    if test == "as above" || test.starts_with("none: ") {
        return Ok(());
    }
    let mut files: Vec<&String> = Vec::new();
    let mut names = 0;
    // Backticks stand around each second piece.
    let pieces: Vec<&str> = test.split('`').collect();
    for pair in pieces.chunks(2) {
        let [between, quoted] = pair else { break };
        if between.contains("interop") {
            files = matching(sources, "interop/");
        }
        if quoted.ends_with(".rs") {
            files = matching(sources, quoted.trim_start_matches("../"));
            if files.is_empty() {
                return Err(format!("there is no file {quoted}"));
            }
        } else {
            names += 1;
            if !files.iter().any(|text| has_test(text, quoted)) {
                return Err(format!("{quoted} is no test of the file that is named before it"));
            }
        }
    }
    if names > 0 { Ok(()) } else { Err("names a file and no test of it".to_owned()) }
}

/// The files whose path ends so, or those of the folder `interop/`.
fn matching<'s>(sources: &'s Sources, wanted: &str) -> Vec<&'s String> {
    let fits = |path: &Path| match wanted.strip_suffix('/') {
        Some(folder) => path.parent().is_some_and(|parent| parent.ends_with(folder)),
        None => path.ends_with(wanted),
    };
    sources.iter().filter(|(path, _)| fits(path)).map(|(_, text)| text).collect()
}

/// Whether a file has a function of that name, or an area of the conformance suite.
fn has_test(text: &str, name: &str) -> bool {
    text.lines().map(str::trim_start).any(|line| {
        let line = line.trim_start_matches("async ");
        let rest = line.strip_prefix("fn ").and_then(|line| line.strip_prefix(name));
        rest.is_some_and(|rest| rest.starts_with('('))
            || line.strip_prefix(name).is_some_and(|rest| rest.starts_with(": Node ") || rest.starts_with(": Python "))
    })
}

#[test]
fn a_wrong_row_is_told() {
    let sources = Sources::from([
        (PathBuf::from("host/a/src/one.rs"), "#[test]\nfn there() {}\n".to_owned()),
        (PathBuf::from("tests/interop/conformance.rs"), "    node_area: Node \"x.js\" 1;\n".to_owned()),
    ]);
    let table =
        |state: &str, test: &str| format!("| feature | state | test |\n|---|---|---|\n| x | {state} | {test} |\n");
    for (state, test) in [
        ("as Azure", "`one.rs`: `there`"),
        ("as Azure", "`src/one.rs`: `there`; interop `node_area`"),
        ("as Azure", "as above"),
        ("as Azure", "none: it takes too long"),
        ("not: it is another service", ""),
        ("left out: nobody asks", ""),
    ] {
        assert_eq!(mistakes(&table(state, test), &sources), [""; 0], "{state} {test}");
    }
    for (state, test, why) in [
        ("as Azure", "", "names no test"),
        ("as Azure", "`one.rs`", "names a file"),
        ("as Azure", "`two.rs`: `there`", "no file two.rs"),
        ("as Azure", "`one.rs`: `gone`", "gone is no test"),
        ("as Azure", "`there`", "there is no test"),
        ("as Azure", "interop `node_gone`", "node_gone is no test"),
    ] {
        let found = mistakes(&table(state, test), &sources);
        assert!(found.len() == 1 && found[0].starts_with("COVERAGE.md:3: ") && found[0].contains(why), "{found:?}");
    }
}
