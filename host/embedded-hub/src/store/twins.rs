//! Twins in their columns, and when devices and modules were last heard of.

use chrono::{DateTime, Utc};
use durable_store::sql::{self, OptionalExtension as _, Row, Transaction, params};
use iothub_protocol::address::Address;
use iothub_protocol::configuration::ConfigurationMarks;
use iothub_protocol::id::ModelId;
use iothub_protocol::time;
use iothub_protocol::twin::{Section, Twin};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Kind, number, parsed};

/// The models that devices have announced; the empty text for none.
pub(super) const MODELS: &str = "ALTER TABLE twins ADD COLUMN model_id TEXT NOT NULL DEFAULT '';";

/// Columns of a whole twin, for [`twin`].
pub(super) const COLUMNS: &str = "t.version, t.tags, t.desired_version, t.desired, t.desired_metadata, \
                                  t.reported_version, t.reported, t.reported_metadata, t.configurations, t.model_id";

/// A twin whose columns begin at `first`. What was not selected (`NULL`) is empty.
pub(super) fn twin(row: &Row<'_>, first: usize) -> sql::Result<Twin> {
    Ok(Twin {
        version: count(row, first)?,
        tags: object(row, first + 1)?,
        desired: section(row, first + 2)?,
        reported: section(row, first + 5)?,
        configurations: match row.get_ref(first + 8)? {
            sql::types::ValueRef::Null => ConfigurationMarks::new(),
            _ => parsed(row, first + 8, |text| serde_json::from_str(text))?,
        },
        model_id: match row.get_ref(first + 9)?.as_str_or_null()? {
            None | Some("") => None,
            Some(_) => Some(parsed(row, first + 9, ModelId::parse)?),
        },
    })
}

fn section(row: &Row<'_>, first: usize) -> sql::Result<Section> {
    Ok(Section { version: count(row, first)?, properties: object(row, first + 1)?, metadata: object(row, first + 2)? })
}

fn count(row: &Row<'_>, column: usize) -> sql::Result<u64> {
    Ok(row.get::<_, Option<i64>>(column)?.and_then(|count| u64::try_from(count).ok()).unwrap_or_default())
}

fn object(row: &Row<'_>, column: usize) -> sql::Result<Map<String, Value>> {
    match row.get_ref(column)? {
        sql::types::ValueRef::Null => Ok(Map::new()),
        _ => parsed(row, column, |text| serde_json::from_str(text)),
    }
}

/// A twin as it stands in the table, beside its key.
#[derive(Debug)]
pub(super) struct TwinRow {
    version: i64,
    tags: String,
    desired: SectionRow,
    reported: SectionRow,
    configurations: String,
    /// Empty if there is none.
    model_id: String,
}

#[derive(Debug)]
struct SectionRow {
    version: i64,
    properties: String,
    metadata: String,
}

impl TwinRow {
    pub(super) fn new(twin: &Twin) -> sql::Result<TwinRow> {
        Ok(TwinRow {
            version: number(twin.version),
            tags: text(&twin.tags)?,
            desired: SectionRow::new(&twin.desired)?,
            reported: SectionRow::new(&twin.reported)?,
            configurations: text(&twin.configurations)?,
            model_id: twin.model_id.as_ref().map_or_else(String::new, ToString::to_string),
        })
    }

    pub(super) fn put(&self, tx: &Transaction<'_>, id: &Address) -> sql::Result<()> {
        let TwinRow { version, tags, desired, reported, configurations, model_id } = self;
        let table = Kind::of(id).twins();
        let mut put = tx.prepare_cached(&format!(
            "INSERT OR REPLACE INTO {table} VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
        ))?;
        put.execute(params![
            id.to_string(),
            version,
            tags,
            desired.version,
            desired.properties,
            reported.version,
            reported.properties,
            desired.metadata,
            reported.metadata,
            configurations,
            model_id,
        ])?;
        Ok(())
    }
}

impl SectionRow {
    fn new(section: &Section) -> sql::Result<SectionRow> {
        Ok(SectionRow {
            version: number(section.version),
            properties: text(&section.properties)?,
            metadata: text(&section.metadata)?,
        })
    }
}

fn text(value: &impl Serialize) -> sql::Result<String> {
    serde_json::to_string(value).map_err(|e| sql::Error::ToSqlConversionFailure(e.into()))
}

/// When it was last heard of, and the number of the last message that was queued for it.
pub(super) fn activity(connection: &sql::Connection, id: &Address) -> sql::Result<(Option<DateTime<Utc>>, u64)> {
    let mut select = connection.prepare_cached("SELECT last_activity, last_sequence FROM activity WHERE id = ?1")?;
    let found = select.query_row([id.to_string()], |row| {
        let last_activity = row.get::<_, Option<String>>(0)?.and_then(|text| time::parse(&text));
        Ok((last_activity, u64::try_from(row.get::<_, i64>(1)?).unwrap_or_default()))
    });
    Ok(found.optional()?.unwrap_or_default())
}

pub(super) fn put_activity(
    tx: &Transaction<'_>,
    id: &Address,
    last_activity: Option<DateTime<Utc>>,
    last_sequence: u64,
) -> sql::Result<()> {
    tx.prepare_cached("INSERT OR REPLACE INTO activity VALUES (?1, ?2, ?3)")?.execute(params![
        id.to_string(),
        last_activity.map(time::format),
        number(last_sequence)
    ])?;
    Ok(())
}
