//! What people and programs see: data on stdout, talk on stderr.

use std::io::{self, Write as _};

use serde_json::Value;

/// Print a line of data. A closed pipe (`latch query … | head`) ends the output, not the command with an error.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Print JSON for people: indented.
pub(crate) fn document(value: &Value) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Say something that is not data.
pub(crate) fn say(text: &str) {
    // Nothing can be done for a closed stderr.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Print rows in columns; the first row is the heading.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let heading: Vec<String> = heading.iter().map(|&text| text.to_owned()).collect();
    let widths: Vec<usize> = (0..heading.len())
        .map(|column| rows.iter().chain([&heading]).map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    for row in [&heading].into_iter().chain(rows) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// Names in one cell, or `none`.
pub(crate) fn or_none(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Whom a row or an event is of: the device, or device/module.
pub(crate) fn name(row: &Value) -> String {
    let device = cell(&row["deviceId"]);
    if row["moduleId"].is_null() { device } else { format!("{device}/{}", cell(&row["moduleId"])) }
}

/// A JSON value in one cell.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
