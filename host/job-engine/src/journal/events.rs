//! What has happened to jobs, for those who are told of each: a few rows for a job, however many devices it has.

use chrono::{DateTime, TimeDelta, Utc};
use durable_store::sql::{self, Connection, OptionalExtension, Transaction, params};
use iothub_protocol::job::{JobResponse, JobStatus};
use serde_json::{Map, Value, json};

use super::read::{SELECT_JOB, read_job, time};
use super::{millis, unreadable};
use crate::record::What;

/// Something that has happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobEvent {
    /// Grows with each event.
    pub number: u64,
    pub at: DateTime<Utc>,
    /// `created`, `started`, `stage`, `paused`, `resumed` or `ended`.
    pub kind: String,
    /// What there is to say of it as it was then.
    pub details: Map<String, Value>,
    /// As it is now.
    pub job: JobResponse,
}

/// Keep what there is to tell of a change.
pub(super) fn keep(tx: &Transaction<'_>, job: i64, at: i64, what: &What) -> sql::Result<()> {
    match what {
        What::Begun { .. } => append(tx, job, at, "started", &json!({})),
        // The first one begins with the job.
        What::Stage { number } if *number > 1 => append(tx, job, at, "stage", &json!({"stage": number})),
        What::Paused { cause, reason } => {
            append(tx, job, at, "paused", &json!({"paused": {"by": cause.name(), "reason": reason}}))
        }
        What::Resumed { .. } => append(tx, job, at, "resumed", &json!({})),
        What::Finished { status, reason } => ended(tx, job, at, *status, reason.as_deref()),
        _ => Ok(()),
    }
}

pub(super) fn created(tx: &Transaction<'_>, job: i64, at: i64) -> sql::Result<()> {
    append(tx, job, at, "created", &json!({}))
}

pub(super) fn ended(
    tx: &Transaction<'_>,
    job: i64,
    at: i64,
    status: JobStatus,
    reason: Option<&str>,
) -> sql::Result<()> {
    let mut details = json!({"status": status.name()});
    if let Some(reason) = reason {
        details["failureReason"] = json!(reason);
    }
    append(tx, job, at, "ended", &details)
}

fn append(tx: &Transaction<'_>, job: i64, at: i64, kind: &str, details: &Value) -> sql::Result<()> {
    let row = "INSERT INTO job_events (job, at, kind, details) VALUES (?1, ?2, ?3, ?4)";
    tx.prepare_cached(row)?.execute(params![job, at, kind, details.to_string()]).map(drop)
}

/// A job is to be gone.
pub(super) fn forget(tx: &Transaction<'_>, job: i64) -> sql::Result<()> {
    tx.execute("DELETE FROM job_events WHERE job = ?1", [job]).map(drop)
}

/// The first event after that one, not older than `patience`.
pub fn next_event(
    connection: &Connection,
    after: u64,
    now: DateTime<Utc>,
    patience: TimeDelta,
) -> sql::Result<Option<JobEvent>> {
    let query =
        "SELECT number, job, at, kind, details FROM job_events WHERE number > ?1 AND at >= ?2 ORDER BY number LIMIT 1";
    let values = params![after.cast_signed(), millis(now - patience)];
    let found = connection.prepare_cached(query)?.query_row(values, |row| {
        let details: String = row.get("details")?;
        let details = serde_json::from_str::<Map<_, _>>(&details).map_err(|error| unreadable(4, error))?;
        let at = time(row, "at")?.unwrap_or_default();
        let (number, job) = (row.get::<_, i64>("number")?.unsigned_abs(), row.get::<_, i64>("job")?);
        Ok((number, job, at, row.get("kind")?, details))
    });
    let Some((number, job, at, kind, details)) = found.optional()? else { return Ok(None) };
    let query = format!("{SELECT_JOB} WHERE number = ?1");
    let job = connection.prepare_cached(&query)?.query_row([job], read_job)?.response;
    Ok(Some(JobEvent { number, at, kind, details, job }))
}

/// The number of the last event that a listener has been told of. A new one is told of what comes from now on.
pub fn listener(tx: &Transaction<'_>, name: &str) -> sql::Result<u64> {
    let row = "INSERT INTO listeners (name, told)
               SELECT ?1, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'job_events'), 0)
               WHERE NOT EXISTS (SELECT 1 FROM listeners WHERE name = ?1)";
    tx.execute(row, [name])?;
    tx.query_row("SELECT told FROM listeners WHERE name = ?1", [name], |row| row.get::<_, i64>(0))
        .map(i64::unsigned_abs)
}

/// A listener has been told of that event, and of all before.
pub fn told(tx: &Transaction<'_>, name: &str, number: u64) -> sql::Result<()> {
    let row = "UPDATE listeners SET told = ?2 WHERE name = ?1";
    tx.prepare_cached(row)?.execute(params![name, number.cast_signed()]).map(drop)
}
