//! Templates of jobs.

use chrono::{DateTime, Utc};
use durable_store::sql::{self, Connection, OptionalExtension, Row, Transaction, params};
use iothub_protocol::id::TemplateName;
use serde_json::Value;

use super::{millis, unreadable};

/// Keep a template in place of one of that name. `false`, and nothing is kept, if it would be one too many.
pub fn put_template(
    tx: &Transaction<'_>,
    name: &TemplateName,
    body: &Value,
    now: DateTime<Utc>,
    most: u32,
) -> sql::Result<bool> {
    let row = "INSERT INTO job_templates (name, body, updated) SELECT ?1, ?2, ?3
               WHERE EXISTS (SELECT 1 FROM job_templates WHERE name = ?1)
                  OR (SELECT count(*) FROM job_templates) < ?4
               ON CONFLICT (name) DO UPDATE SET body = excluded.body, updated = excluded.updated";
    Ok(tx.execute(row, params![name.as_str(), body.to_string(), millis(now), most])? == 1)
}

/// `false` if there is none.
pub fn delete_template(tx: &Transaction<'_>, name: &TemplateName) -> sql::Result<bool> {
    Ok(tx.execute("DELETE FROM job_templates WHERE name = ?1", [name.as_str()])? == 1)
}

pub fn template(connection: &Connection, name: &TemplateName) -> sql::Result<Option<Value>> {
    let query = "SELECT body FROM job_templates WHERE name = ?1";
    connection.prepare_cached(query)?.query_row([name.as_str()], body).optional()
}

/// All templates, in the order of their names.
pub fn templates(connection: &Connection) -> sql::Result<Vec<Value>> {
    connection.prepare_cached("SELECT body FROM job_templates ORDER BY name")?.query_map([], body)?.collect()
}

fn body(row: &Row<'_>) -> sql::Result<Value> {
    let body: String = row.get(0)?;
    serde_json::from_str(&body).map_err(|error| unreadable(0, error))
}
