//! Jobs that are made of others.

use chrono::{DateTime, Utc};
use durable_store::sql::{self, OptionalExtension, Transaction, params};
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::FailureClass;
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus, JobRequest};
use iothub_protocol::method::MethodResponse;
use serde_json::Value;

use super::events;
use super::read::saved;
use super::write::{insert, number_of};
use crate::record::SavedJob;

/// Which devices of a job are copied into the list of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copied {
    All,
    /// Those that failed so; in any way, if there is no class.
    Failed(Vec<FailureClass>),
}

/// What became of such a job.
#[derive(Debug)]
pub enum Again {
    Made(Box<SavedJob>),
    /// Its id is taken.
    Taken,
    /// There is no device to copy.
    Nobody,
}

/// Whether the job that has this one's id was made by the same request.
pub fn is_same(tx: &Transaction<'_>, request: &JobRequest) -> sql::Result<bool> {
    let query = "SELECT request FROM jobs WHERE id = ?1";
    let found = tx.query_row(query, [request.job_id.as_str()], |row| row.get::<_, String>(0)).optional()?;
    let text = request.to_json().to_string();
    Ok(found.is_some_and(|found| found == text))
}

/// Record a job whose list is copied from another, and so is whole. Nothing is kept unless it is made.
pub fn insert_copy(
    tx: &Transaction<'_>,
    source: &JobId,
    request: JobRequest,
    copied: &Copied,
    now: DateTime<Utc>,
) -> sql::Result<Again> {
    let source = number_of(tx, source)?;
    let id = request.job_id.clone();
    if insert(tx, request, now)?.is_none() {
        return Ok(Again::Taken);
    }
    let job = number_of(tx, &id)?;
    let devices = match copied {
        Copied::All => copy_all(tx, source, job)?,
        Copied::Failed(classes) => copy_failed(tx, source, job, classes)?,
    };
    if devices == 0 {
        events::forget(tx, job)?;
        tx.execute("DELETE FROM jobs WHERE number = ?1", [job])?;
        return Ok(Again::Nobody);
    }
    let row = "UPDATE jobs SET listing = NULL, listed = ?2 WHERE number = ?1";
    tx.execute(row, params![job, i64::try_from(devices).unwrap_or(i64::MAX)])?;
    Ok(saved(tx, &id)?.map_or(Again::Taken, |saved| Again::Made(Box::new(saved))))
}

/// The devices of a job that has begun, or the list of one that has not, with those to leave out.
fn copy_all(tx: &Transaction<'_>, source: i64, job: i64) -> sql::Result<usize> {
    let rows = "INSERT INTO job_lists (job, excluded, device) SELECT ?2, 0, device FROM device_jobs WHERE job = ?1";
    let begun = tx.execute(rows, [source, job])?;
    if begun > 0 {
        return Ok(begun);
    }
    let rows =
        "INSERT INTO job_lists (job, excluded, device) SELECT ?2, excluded, device FROM job_lists WHERE job = ?1";
    tx.execute(rows, [source, job])
}

fn copy_failed(tx: &Transaction<'_>, source: i64, job: i64, classes: &[FailureClass]) -> sql::Result<usize> {
    let query = "SELECT device, error, answer FROM device_jobs WHERE job = ?1 AND status = ?2";
    let mut select = tx.prepare_cached(query)?;
    let mut insert = tx.prepare_cached("INSERT INTO job_lists (job, excluded, device) VALUES (?1, 0, ?2)")?;
    let mut rows = select.query(params![source, DeviceJobStatus::Failed.name()])?;
    let mut devices = 0;
    while let Some(row) = rows.next()? {
        let class = failure_class(row.get(1)?, row.get(2)?);
        if classes.is_empty() || classes.contains(&class) {
            devices += insert.execute(params![job, row.get::<_, String>(0)?])?;
        }
    }
    Ok(devices)
}

/// How a device failed whose row has this error code, or else this answer.
pub(super) fn failure_class(code: Option<String>, answer: Option<i32>) -> FailureClass {
    match (code, answer) {
        (Some(code), _) => FailureClass::of_code(&code),
        (None, Some(status)) => {
            FailureClass::of_outcome(&DeviceJobOutcome::Method(MethodResponse { status, payload: Value::Null }))
        }
        // A failure that says nothing of itself is a fault of whoever wrote it.
        (None, None) => FailureClass::Fault,
    }
}
