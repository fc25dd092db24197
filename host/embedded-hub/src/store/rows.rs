//! Reading many devices: chunks of rows for queries and lists, as they are committed.
//!
//! What is in memory only, who is connected and when they were last heard of, comes from [`Presence`]. Rows come in the order
//! of their keys: ids of devices, addresses of modules.

use std::sync::Arc;

use durable_store::sql::{self, params_from_iter, types::Value as SqlValue};
use iothub_protocol::address::Address;
use iothub_protocol::id::DeviceId;
use iothub_protocol::query::{Condition, Parts};
use iothub_protocol::time;
use serde_json::Value;

use super::indexes::TwinPath;
use super::{Kind, identity, modules_of, parsed, twins};
use crate::hub::{Counts, facts};
use crate::presence::Presence;

/// Most rows of a chunk, and devices that an index is asked for at once.
pub(crate) const MAX_ROWS: usize = 1024;
/// Most bytes of twins in a chunk, about; one twin may be larger.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Most rows that are looked at for a chunk, so that one does not take long.
const MAX_LOOKED_AT: usize = 20_000;
/// A range of an index is used if it holds at most so many devices: they must be sorted by their ids.
const MAX_RANGE: usize = 10_000;

/// A device or a module with its twin as a query sees it.
pub(crate) type Row = (Address, Value);

/// Which devices or modules are wanted, and what of them.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) kind: Kind,
    pub(crate) condition: Condition,
    pub(crate) parts: Parts,
    pub(crate) access: Access,
    /// Most rows of a chunk.
    pub(crate) most: usize,
    /// For a column, texts of which one must stand in it: a column without any is not worth parsing.
    pub(crate) needles: Vec<(TwinPath, Vec<String>)>,
}

/// The way to the rows. Each leads to all for which the condition can hold, in order of their keys; which of them it does hold
/// for is seen from the row. Indexes are of devices' twins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Access {
    /// Keys from `from` on, below `below`.
    Range { from: String, below: Option<String> },
    /// These keys, sorted.
    Keys(Arc<[String]>),
    /// Disabled devices.
    Disabled,
    /// Devices for which the index holds one of these values.
    Index { name: String, expression: String, values: Vec<SqlValue> },
    /// Devices for which what the index holds lies between these.
    IndexRange { name: String, expression: String, least: Option<SqlValue>, most: Option<SqlValue> },
}

/// Some of the rows.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Those for which the condition holds.
    pub(crate) rows: Vec<Row>,
    /// The last id that was looked at; `None` if there are no more.
    pub(crate) next: Option<String>,
}

/// The next rows after the id `after`.
pub(crate) fn chunk(
    connection: &sql::Connection,
    selection: &Selection,
    after: &str,
    presence: &Presence,
) -> sql::Result<Chunk> {
    let mut reader = ChunkReader { selection, presence, each: None, rows: Vec::new(), bytes: 0 };
    let next = reader.read(connection, after)?;
    Ok(Chunk { rows: reader.rows, next })
}

/// Call `each` with the next rows after the id `after`; with some for which the condition does not hold, too. Gives the last
/// id that was looked at; `None` if there are no more.
pub(crate) fn each_row(
    connection: &sql::Connection,
    selection: &Selection,
    after: &str,
    presence: &Presence,
    each: &mut dyn FnMut(&Value),
) -> sql::Result<Option<String>> {
    let mut reader = ChunkReader { selection, presence, each: Some(each), rows: Vec::new(), bytes: 0 };
    reader.read(connection, after)
}

/// The way to all rows.
const EVERYTHING: Access = Access::Range { from: String::new(), below: None };

/// Whether the index that the way needs is there: it may have been removed since the way was found.
fn has_index(connection: &sql::Connection, access: &Access) -> sql::Result<bool> {
    match access {
        Access::Index { name, .. } | Access::IndexRange { name, .. } => {
            let query = "SELECT 1 FROM sqlite_schema WHERE type = 'index' AND name = ?1";
            connection.prepare_cached(query)?.exists([name])
        }
        Access::Range { .. } | Access::Keys(_) | Access::Disabled => Ok(true),
    }
}

/// At most [`MAX_ROWS`] ids.
fn some_ids(connection: &sql::Connection, query: &str, values: [SqlValue; 2]) -> sql::Result<Vec<String>> {
    let mut select = connection.prepare_cached(&format!("{query} LIMIT {MAX_ROWS}"))?;
    select.query_map(params_from_iter(values), |row| row.get(0))?.collect()
}

/// Ids after `after` in a range of an index, in order; `None` if the range holds too many.
fn range_ids(
    connection: &sql::Connection,
    name: &str,
    expression: &str,
    least: Option<&SqlValue>,
    most: Option<&SqlValue>,
    after: &str,
) -> sql::Result<Option<Vec<String>>> {
    let bounds = [(">=", least), ("<=", most)].into_iter().filter_map(|(operator, bound)| Some((operator, bound?)));
    let (conditions, values): (Vec<String>, Vec<SqlValue>) =
        bounds.map(|(operator, bound)| (format!("{expression} {operator} ?"), bound.clone())).unzip();
    let conditions = conditions.join(" AND ");
    let mut select = connection.prepare_cached(&format!(
        "SELECT id FROM twins INDEXED BY {name} WHERE {conditions} LIMIT {}",
        MAX_RANGE + 1
    ))?;
    let ids = select.query_map(params_from_iter(values), |row| row.get(0))?;
    let mut ids = ids.collect::<sql::Result<Vec<String>>>()?;
    if ids.len() > MAX_RANGE {
        return Ok(None);
    }
    ids.retain(|id| id.as_str() > after);
    ids.sort_unstable();
    ids.truncate(MAX_ROWS);
    Ok(Some(ids))
}

struct ChunkReader<'c> {
    selection: &'c Selection,
    presence: &'c Presence,
    /// Who takes the rows, if they are not kept.
    each: Option<&'c mut dyn FnMut(&Value)>,
    rows: Vec<Row>,
    bytes: usize,
}

impl ChunkReader<'_> {
    /// Gives the last id that was looked at, if there may be more.
    fn read(&mut self, connection: &sql::Connection, after: &str) -> sql::Result<Option<String>> {
        let access = if has_index(connection, &self.selection.access)? { &self.selection.access } else { &EVERYTHING };
        match access {
            Access::Range { from, below } => self.read_range(connection, after, from, below.as_deref()),
            Access::Keys(keys) => {
                let begin = keys.partition_point(|key| key.as_str() <= after);
                self.read_ids(connection, keys[begin..].iter().take(MAX_ROWS).cloned().collect())
            }
            Access::Disabled => {
                let query =
                    "SELECT id FROM devices INDEXED BY devices_by_status WHERE enabled = ?1 AND id > ?2 ORDER BY id";
                self.read_ids(connection, some_ids(connection, query, [SqlValue::Integer(0), text(after)])?)
            }
            Access::Index { name, expression, values } => {
                let query =
                    format!("SELECT id FROM twins INDEXED BY {name} WHERE {expression} = ?1 AND id > ?2 ORDER BY id");
                let mut ids = Vec::new();
                for value in values {
                    ids.extend(some_ids(connection, &query, [value.clone(), text(after)])?);
                }
                // The first of each value: no id among the first of all can be missing.
                ids.sort_unstable();
                ids.dedup();
                ids.truncate(MAX_ROWS);
                self.read_ids(connection, ids)
            }
            Access::IndexRange { name, expression, least, most } => {
                match range_ids(connection, name, expression, least.as_ref(), most.as_ref(), after)? {
                    Some(ids) => self.read_ids(connection, ids),
                    None => self.read_range(connection, after, "", None),
                }
            }
        }
    }

    /// Gives the id where it stopped, if there may be more.
    fn read_range(
        &mut self,
        connection: &sql::Connection,
        after: &str,
        from: &str,
        below: Option<&str>,
    ) -> sql::Result<Option<String>> {
        // One bound on each side, and none that may be absent: SQLite walks from the first to the last.
        let (lower, bound) = if after < from { ("t.id >= ?1", from) } else { ("t.id > ?1", after) };
        let upper = if below.is_some() { "AND t.id < ?2" } else { "" };
        let mut select =
            connection.prepare_cached(&format!("{} WHERE {lower} {upper} ORDER BY t.id", self.select()))?;
        let mut found = select.query(params_from_iter([bound].into_iter().chain(below)))?;
        let mut looked_at = 0;
        while let Some(row) = found.next()? {
            looked_at += 1;
            self.take(row)?;
            if looked_at == MAX_LOOKED_AT || self.is_full() {
                return Ok(Some(row.get(0)?));
            }
        }
        Ok(None)
    }

    /// These, sorted: all there are, or the first [`MAX_ROWS`].
    fn read_ids(&mut self, connection: &sql::Connection, ids: Vec<String>) -> sql::Result<Option<String>> {
        let mut select = connection.prepare_cached(&format!("{} WHERE t.id = ?1", self.select()))?;
        let there_may_be_more = ids.len() >= MAX_ROWS;
        let mut ids = ids.into_iter().peekable();
        while let Some(id) = ids.next() {
            let mut found = select.query([&id])?;
            if let Some(row) = found.next()? {
                self.take(row)?;
            }
            if self.is_full() || ids.peek().is_none() {
                return Ok((there_may_be_more || ids.peek().is_some()).then_some(id));
            }
        }
        Ok(None)
    }

    fn select(&self) -> String {
        let parts = self.selection.parts;
        let column = |name: &'static str, is_wanted: bool| if is_wanted { name } else { "NULL" };
        let twin = [
            "t.version",
            column("t.tags", parts.tags),
            column("t.desired_version", parts.desired),
            column("t.desired", parts.desired),
            column("t.desired_metadata", parts.desired && parts.metadata),
            column("t.reported_version", parts.reported),
            column("t.reported", parts.reported),
            column("t.reported_metadata", parts.reported && parts.metadata),
            column("t.configurations", parts.rest),
            column("t.model_id", parts.rest),
        ];
        let twin = twin.join(", ");
        let kind = self.selection.kind;
        let twins = kind.twins();
        if !parts.rest {
            return format!("SELECT t.id, {twin} FROM {twins} t");
        }
        let (identities, identity) = (kind.identities(), identity::columns(kind));
        format!(
            "SELECT t.id, {twin}, {identity}, a.last_activity, (SELECT COUNT(*) FROM messages m WHERE m.device = t.id)
             FROM {twins} t CROSS JOIN {identities} d ON d.id = t.id LEFT JOIN activity a ON a.id = t.id"
        )
    }

    fn take(&mut self, row: &sql::Row<'_>) -> sql::Result<()> {
        /// Columns before those of the identity.
        const OWN: usize = 11;
        if self.is_hopeless(row)? {
            return Ok(());
        }
        let id = parsed(row, 0, Address::parse)?;
        let twin = twins::twin(row, 1)?;
        let document = if self.selection.parts.rest {
            let identity = identity::read(row, OWN)?;
            let after = OWN + identity::COUNT;
            let seen = self.presence.seen(&id);
            let stored = || Ok(row.get::<_, Option<String>>(after)?.and_then(|text| time::parse(&text)));
            let last_activity = seen.map_or_else(stored, |seen| Ok::<_, sql::Error>(seen.last_activity))?;
            let message_count = usize::try_from(row.get::<_, i64>(after + 1)?).unwrap_or_default();
            let connected = seen.is_some_and(|seen| seen.connected);
            twin.to_json(&facts(&identity, connected, last_activity, message_count))
        } else {
            twin.row(&id, self.selection.parts)
        };
        if let Some(each) = &mut self.each {
            each(&document);
        } else if self.selection.condition.matches(&document) {
            for column in 0..OWN {
                self.bytes += row.get_ref(column)?.as_str().map_or(0, str::len);
            }
            self.rows.push((id, document));
        }
        Ok(())
    }

    /// Whether the condition cannot hold, seen from the texts alone.
    fn is_hopeless(&self, row: &sql::Row<'_>) -> sql::Result<bool> {
        for (path, needles) in &self.selection.needles {
            let text = row.get_ref(path.part().place())?.as_str()?;
            if !needles.iter().any(|needle| text.contains(needle.as_str())) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= self.selection.most || self.bytes >= MAX_BYTES
    }
}

fn text(text: &str) -> SqlValue {
    SqlValue::Text(text.to_owned())
}

/// Devices in order of their ids, after `after`, as the registry shows them.
pub(crate) fn devices(
    connection: &sql::Connection,
    after: &str,
    limit: usize,
    presence: &Presence,
) -> sql::Result<Vec<Row>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    identities(connection, Kind::Devices, "d.id > ?1 ORDER BY d.id LIMIT ?2", sql::params![after, limit], presence)
}

/// The modules of a device in order of their ids, as the registry shows them; `None` if there is no such device.
pub(crate) fn modules(
    connection: &sql::Connection,
    device: &DeviceId,
    presence: &Presence,
) -> sql::Result<Option<Vec<Row>>> {
    if !connection.prepare_cached("SELECT 1 FROM devices WHERE id = ?1")?.exists([device.as_str()])? {
        return Ok(None);
    }
    let (from, below) = modules_of(device.as_str());
    let condition = "d.id >= ?1 AND d.id < ?2 ORDER BY d.id";
    identities(connection, Kind::Modules, condition, sql::params![from, below], presence).map(Some)
}

fn identities(
    connection: &sql::Connection,
    kind: Kind,
    condition: &str,
    parameters: impl sql::Params,
    presence: &Presence,
) -> sql::Result<Vec<Row>> {
    let (table, columns) = (kind.identities(), identity::columns(kind));
    let mut select = connection.prepare_cached(&format!(
        "SELECT {columns}, a.last_activity, (SELECT COUNT(*) FROM messages m WHERE m.device = d.id)
         FROM {table} d LEFT JOIN activity a ON a.id = d.id WHERE {condition}"
    ))?;
    let rows = select.query_map(parameters, |row| {
        let identity = identity::read(row, 0)?;
        let stored = row.get::<_, Option<String>>(identity::COUNT)?.and_then(|text| time::parse(&text));
        let seen = presence.seen(&identity.address);
        let last_activity = seen.map_or(stored, |seen| seen.last_activity);
        let message_count = usize::try_from(row.get::<_, i64>(identity::COUNT + 1)?).unwrap_or_default();
        let connected = seen.is_some_and(|seen| seen.connected);
        let document = identity.to_json(connected, last_activity, message_count);
        Ok((identity.address, document))
    })?;
    rows.collect()
}

/// How many devices there are, how many of them are disabled, and how many modules there are; who is connected is not stored.
pub(crate) fn counts(connection: &sql::Connection) -> sql::Result<Counts> {
    let count = |table: &str| {
        let query = format!("SELECT COUNT(*) FROM {table}");
        let count: i64 = connection.prepare_cached(&query)?.query_row([], |row| row.get(0))?;
        Ok::<_, sql::Error>(usize::try_from(count).unwrap_or_default())
    };
    let devices = |condition: &str| count(&format!("devices INDEXED BY devices_by_status WHERE {condition}"));
    Ok(Counts {
        total: devices("enabled >= 0")?,
        disabled: devices("enabled = 0")?,
        modules: count("modules")?,
        connected: 0,
    })
}
