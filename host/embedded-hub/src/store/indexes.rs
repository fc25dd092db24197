//! Indexes on parts of twins that an operator has declared.

use std::fmt;
use std::sync::Arc;

use durable_store::sql::{self, Transaction, params};

/// Most declared indexes: each makes every change of a twin dearer.
pub(crate) const MAX_INDEXES: usize = 16;
/// Longest declared path, in bytes.
const MAX_PATH: usize = 1024;

/// A place in twins, such as `tags.site` or `properties.reported.firmware.version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TwinPath {
    part: TwinPart,
    /// Below the part; never empty.
    names: Arc<[String]>,
}

/// What of a twin stands in a column of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TwinPart {
    Tags,
    Desired,
    Reported,
}

/// Why a path cannot be indexed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} cannot be indexed: {reason}; name a place such as tags.site or properties.reported.battery.level")]
pub(crate) struct PathError {
    path: String,
    reason: &'static str,
}

impl TwinPath {
    /// Read a path as it is typed. Names that hold a dot cannot be in twins.
    pub(crate) fn parse(text: &str) -> Result<TwinPath, PathError> {
        let wrong = |reason| PathError { path: text.chars().take(100).collect(), reason };
        if text.len() > MAX_PATH {
            return Err(wrong("it is too long"));
        }
        let names: Vec<String> = text.split('.').map(str::to_owned).collect();
        let path = TwinPath::of(&names).ok_or_else(|| wrong("it names no tag, desired or reported property"))?;
        // The last two could not be told from the quotes and escapes of SQLite's own paths.
        let is_odd = |c: char| c.is_control() || matches!(c, ' ' | '$' | '"' | '\\' | '\'');
        if path.names.iter().any(|name| name.is_empty() || name.contains(is_odd)) {
            return Err(wrong("a name in it is empty or holds a space, a quote or a character that twins do not have"));
        }
        Ok(path)
    }

    /// The place that a path of a query names, if it is one of twins' own.
    pub(crate) fn of(names: &[String]) -> Option<TwinPath> {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (part, rest) = match names.as_slice() {
            ["tags", rest @ ..] => (TwinPart::Tags, rest),
            ["properties", "desired", rest @ ..] => (TwinPart::Desired, rest),
            ["properties", "reported", rest @ ..] => (TwinPart::Reported, rest),
            _ => return None,
        };
        // Names with a dollar are the hub's own and stand elsewhere.
        if rest.is_empty() || rest[0].starts_with('$') {
            return None;
        }
        Some(TwinPath { part, names: rest.iter().map(|name| (*name).to_owned()).collect() })
    }

    pub(crate) fn part(&self) -> TwinPart {
        self.part
    }

    /// What SQLite computes for the index; the planner writes the same text, or the index would not be used.
    pub(crate) fn expression(&self) -> String {
        let path: String = self.names.iter().map(|name| format!(".\"{name}\"")).collect();
        format!("json_extract({}, '${path}')", self.part.column())
    }
}

impl fmt::Display for TwinPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.part {
            TwinPart::Tags => "tags",
            TwinPart::Desired => "properties.desired",
            TwinPart::Reported => "properties.reported",
        })?;
        self.names.iter().try_for_each(|name| write!(f, ".{name}"))
    }
}

impl TwinPart {
    /// The column's name.
    pub(crate) fn column(self) -> &'static str {
        match self {
            TwinPart::Tags => "tags",
            TwinPart::Desired => "desired",
            TwinPart::Reported => "reported",
        }
    }

    /// Its place among the columns of a twin's row, behind the device's id.
    pub(super) fn place(self) -> usize {
        match self {
            TwinPart::Tags => 2,
            TwinPart::Desired => 4,
            TwinPart::Reported => 7,
        }
    }
}

/// An index that was declared and is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeclaredIndex {
    pub(crate) path: TwinPath,
    /// Of SQLite.
    pub(crate) name: String,
}

impl DeclaredIndex {
    fn new(path: TwinPath, number: i64) -> DeclaredIndex {
        DeclaredIndex { path, name: format!("declared_{number}") }
    }
}

/// All declared indexes, in the order of their paths.
pub(crate) fn load_indexes(connection: &sql::Connection) -> sql::Result<Vec<DeclaredIndex>> {
    let mut select = connection.prepare("SELECT path, number FROM indexes ORDER BY path")?;
    let rows = select.query_map([], |row| {
        let path = super::parsed(row, 0, TwinPath::parse)?;
        Ok(DeclaredIndex::new(path, row.get(1)?))
    })?;
    rows.collect()
}

/// Declare and build an index; `false` if it is there already. `None` if there are too many.
pub(crate) fn add_index(tx: &Transaction<'_>, path: &TwinPath) -> sql::Result<Option<bool>> {
    let declared = load_indexes(tx)?;
    if declared.iter().any(|index| index.path == *path) {
        return Ok(Some(false));
    }
    if declared.len() >= MAX_INDEXES {
        return Ok(None);
    }
    let number = tx.query_row("SELECT COALESCE(MAX(number), 0) + 1 FROM indexes", [], |row| row.get(0))?;
    let index = DeclaredIndex::new(path.clone(), number);
    // The device's id comes behind the value by itself, as it is the table's key: what has one value is in order.
    tx.execute_batch(&format!("CREATE INDEX {} ON twins ({})", index.name, path.expression()))?;
    tx.execute("INSERT INTO indexes VALUES (?1, ?2)", params![path.to_string(), number])?;
    Ok(Some(true))
}

/// Remove a declared index; `false` if there is none.
pub(crate) fn remove_index(tx: &Transaction<'_>, path: &TwinPath) -> sql::Result<bool> {
    let declared = load_indexes(tx)?;
    let Some(index) = declared.into_iter().find(|index| index.path == *path) else { return Ok(false) };
    tx.execute_batch(&format!("DROP INDEX {}", index.name))?;
    tx.execute("DELETE FROM indexes WHERE path = ?1", [path.to_string()])?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_of_twins_and_holds_nothing_that_sqlite_would_misread() {
        for (path, expression) in [
            ("tags.site", r#"json_extract(tags, '$."site"')"#),
            ("properties.desired.a.b-c", r#"json_extract(desired, '$."a"."b-c"')"#),
            ("properties.reported.münchen", r#"json_extract(reported, '$."münchen"')"#),
        ] {
            let parsed = TwinPath::parse(path).expect(path);
            assert_eq!((parsed.expression().as_str(), parsed.to_string().as_str()), (expression, path));
        }
        for path in [
            "",
            "tags",
            "tags.",
            "tags..a",
            "status",
            "deviceId",
            "properties",
            "properties.desired",
            "Tags.a",
            "properties.desired.$version",
            "tags.a'b",
            "tags.a\"b",
            "tags.a\\b",
            "tags.a b",
            "tags.a\u{0}",
            "properties.x.y",
        ] {
            let error = TwinPath::parse(path).expect_err(path).to_string();
            assert!(error.contains("name a place such as tags.site"), "{error}");
        }
        assert!(TwinPath::parse(&format!("tags.{}", "x".repeat(1024))).is_err());
    }
}
