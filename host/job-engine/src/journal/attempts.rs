//! What can be asked of attempts.
//!
//! Most devices have one attempt, which their own row tells of; only what came before it has rows of its own.

use durable_store::sql::{self, Connection, OptionalExtension, Row, params};
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;
use iothub_protocol::job::{DeviceAttempt, DeviceJobOutcome, DeviceJobStatus, LateAnswer};

use super::read::{TWIN, Unknown, address, time, told};
use super::{Page, unreadable};

/// How many devices one page looks at before it comes back with fewer attempts than asked for.
const MAX_SCANNED: usize = 10_000;

/// A job's attempts, by device and in the order of their numbers. `after` is the continuation of the page before, a
/// device. A page ends with a device's last attempt, and so may hold some more than `limit`; none if there is no such
/// job.
pub fn attempts(
    connection: &Connection,
    job: &JobId,
    limit: usize,
    after: Option<&Address>,
) -> sql::Result<Page<DeviceAttempt>> {
    let Some((number, job_type)) = job_row(connection, job)? else {
        return Ok(Page { items: Vec::new(), continuation: None });
    };
    let mut statement = connection.prepare_cached(&format!("{SELECT_ROW} AND device > ?2 ORDER BY device"))?;
    let mut rows = statement.query(params![number, after.map(ToString::to_string).unwrap_or_default()])?;
    let (mut items, mut last, mut scanned) = (Vec::new(), None, 0);
    while let Some(row) = rows.next()? {
        if items.len() >= limit || scanned == MAX_SCANNED {
            return Ok(Page { items, continuation: last });
        }
        let device = address(row)?;
        last = Some(device.to_string());
        items.extend(of_row(connection, number, job, &job_type, &device, row)?);
        scanned += 1;
    }
    Ok(Page { items, continuation: None })
}

/// The attempts at one device of a job, in the order of their numbers. `None` if it is none of the job's.
pub fn device_attempts(
    connection: &Connection,
    job: &JobId,
    device: &Address,
) -> sql::Result<Option<Vec<DeviceAttempt>>> {
    let Some((number, job_type)) = job_row(connection, job)? else { return Ok(None) };
    let mut statement = connection.prepare_cached(&format!("{SELECT_ROW} AND device = ?2"))?;
    let mut rows = statement.query(params![number, device.to_string()])?;
    rows.next()?.map(|row| of_row(connection, number, job, &job_type, device, row)).transpose()
}

const SELECT_ROW: &str = "SELECT device, attempt, step, status, coalesce(attempted, started) AS started, ended,
    answer, payload, error, description FROM device_jobs WHERE job = ?1";

fn job_row(connection: &Connection, job: &JobId) -> sql::Result<Option<(i64, String)>> {
    let query = "SELECT number, type FROM jobs WHERE id = ?1";
    connection.prepare_cached(query)?.query_row([job.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional()
}

/// The attempts of a device, whose own row is `row`.
fn of_row(
    connection: &Connection,
    number: i64,
    job: &JobId,
    job_type: &str,
    device: &Address,
    row: &Row<'_>,
) -> sql::Result<Vec<DeviceAttempt>> {
    let last: u32 = row.get("attempt")?;
    let mut attempts = Vec::new();
    let query =
        "SELECT attempt, late, step, succeeded, started, ended, answer, payload, error, description FROM attempts
                 WHERE job = ?1 AND device = ?2 ORDER BY attempt, late";
    let mut statement = connection.prepare_cached(query)?;
    let mut kept = statement.query(params![number, device.to_string()])?;
    let mut late = Vec::new();
    while let Some(kept) = kept.next()? {
        let (number, ended) = (kept.get("attempt")?, time(kept, "ended")?);
        if kept.get("late")? {
            let outcome = told(kept)?.unwrap_or(DeviceJobOutcome::TwinUpdated);
            late.push((number, LateAnswer { at: ended.unwrap_or_default(), outcome }));
            continue;
        }
        let succeeded: bool = kept.get("succeeded")?;
        attempts.push(DeviceAttempt {
            address: device.clone(),
            job_id: job.clone(),
            number,
            step: kept.get::<_, u32>("step")? + 1,
            status: if succeeded { DeviceJobStatus::Completed } else { DeviceJobStatus::Failed },
            start: time(kept, "started")?,
            end: ended,
            outcome: told(kept)?.or(succeeded.then_some(DeviceJobOutcome::TwinUpdated)),
            late: None,
        });
    }
    if last > 0 && attempts.last().is_none_or(|attempt| attempt.number < last) {
        attempts.push(own(job, job_type, device, last, row)?);
    }
    for (number, answer) in late {
        // One whose attempt is not kept any more has nothing to stand beside.
        if let Some(attempt) = attempts.iter_mut().find(|attempt| attempt.number == number) {
            attempt.late = Some(answer);
        }
    }
    Ok(attempts)
}

/// The attempt that the device's own row tells of: it is under way, or has ended the device.
fn own(job: &JobId, job_type: &str, device: &Address, number: u32, row: &Row<'_>) -> sql::Result<DeviceAttempt> {
    let status: String = row.get("status")?;
    let status = DeviceJobStatus::by_name(&status).ok_or_else(|| unreadable(2, Unknown(status)))?;
    let is_updated = job_type == TWIN && status == DeviceJobStatus::Completed;
    let outcome = match status.is_terminal() {
        true => told(row)?.or(is_updated.then_some(DeviceJobOutcome::TwinUpdated)),
        // What the row has is of the attempt before.
        false => None,
    };
    Ok(DeviceAttempt {
        address: device.clone(),
        job_id: job.clone(),
        number,
        step: row.get::<_, u32>("step")? + 1,
        status,
        start: time(row, "started")?,
        end: time(row, "ended")?,
        outcome,
        late: None,
    })
}
