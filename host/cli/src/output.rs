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
    Columns::new(heading).print(rows)
}

/// A table that is printed page by page. Its columns are as wide as the first page needs.
pub(crate) struct Columns {
    heading: Vec<String>,
    /// Of what has been printed.
    widths: Option<Vec<usize>>,
}

impl Columns {
    pub(crate) fn new(heading: &[&str]) -> Columns {
        Columns { heading: heading.iter().map(|&text| text.to_owned()).collect(), widths: None }
    }

    /// Print a page, the first one with the heading.
    pub(crate) fn print(&mut self, rows: &[Vec<String>]) -> anyhow::Result<()> {
        let is_first = self.widths.is_none();
        let heading = &self.heading;
        let widths = self.widths.get_or_insert_with(|| {
            let width = |column: usize| rows.iter().chain([heading]).map(|row| row[column].chars().count()).max();
            (0..heading.len()).map(|column| width(column).unwrap_or(0)).collect()
        });
        for row in is_first.then_some(heading).into_iter().chain(rows) {
            let cells = row.iter().zip(&*widths).map(|(cell, width)| format!("{cell:<width$}"));
            line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
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
