//! Lists of devices that come after their jobs, some at a time.

use chrono::{DateTime, Utc};
use durable_store::sql::{self, Connection, OptionalExtension, Transaction, params};
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;
use iothub_protocol::job::JobStatus;
use iothub_protocol::job::targets::{ListDigest, ListPart, ListSeal, MAX_LISTED};

use super::read::saved;
use super::write::{next_change, number_of};
use super::{events, millis, unreadable};
use crate::record::SavedJob;

/// How far a job's list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListState {
    /// There is no such job.
    NoJob,
    /// The job's devices are known: it has no list, or a whole one, or has ended.
    Settled,
    /// More would be more than [`MAX_LISTED`]; none of them was taken.
    Full,
    /// So many devices so far, those to leave out included; so many of the last part were there before.
    Open { listed: u64, repeated: u64 },
}

/// Add to a job's list. What is there already changes nothing, so a part may come again.
pub fn extend_list(tx: &Transaction<'_>, job: &JobId, part: &ListPart, now: DateTime<Utc>) -> sql::Result<ListState> {
    let (number, listed) = match open_list(tx, job)? {
        Ok(open) => open,
        Err(state) => return Ok(state),
    };
    let sent = (part.devices.len() + part.excluded.len()) as u64;
    if listed + sent > MAX_LISTED && listed + unknown(tx, number, part)? > MAX_LISTED {
        return Ok(ListState::Full);
    }
    let mut insert = tx.prepare_cached("INSERT INTO job_lists VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?;
    let mut new = 0;
    for (devices, is_excluded) in [(&part.devices, false), (&part.excluded, true)] {
        for device in devices {
            new += insert.execute(params![number, is_excluded, device.to_string()])? as u64;
        }
    }
    let row = "UPDATE jobs SET listed = ?2, listing = ?3 WHERE number = ?1";
    tx.prepare_cached(row)?.execute(params![number, (listed + new).cast_signed(), millis(now)])?;
    Ok(ListState::Open { listed: listed + new, repeated: sent - new })
}

/// How many of a part the list has not.
fn unknown(connection: &Connection, job: i64, part: &ListPart) -> sql::Result<u64> {
    let query = "SELECT 1 FROM job_lists WHERE job = ?1 AND excluded = ?2 AND device = ?3";
    let mut select = connection.prepare_cached(query)?;
    let mut count = 0;
    for (devices, is_excluded) in [(&part.devices, false), (&part.excluded, true)] {
        for device in devices {
            count += u64::from(!select.exists(params![job, is_excluded, device.to_string()])?);
        }
    }
    Ok(count)
}

/// The number of a job whose list may grow, and how many it has.
fn open_list(connection: &Connection, job: &JobId) -> sql::Result<Result<(i64, u64), ListState>> {
    let query = "SELECT number, listed, listing IS NOT NULL FROM jobs WHERE id = ?1";
    let found = connection
        .prepare_cached(query)?
        .query_row([job.as_str()], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, bool>(2)?)));
    Ok(match found.optional()? {
        None => Err(ListState::NoJob),
        Some((_, _, false)) => Err(ListState::Settled),
        Some((number, listed, true)) => Ok((number, u64::try_from(listed).unwrap_or(0))),
    })
}

/// What a job's list comes to. As long as it is being uploaded nobody but its sender changes it.
pub fn sealed(connection: &Connection, job: &JobId) -> sql::Result<ListSeal> {
    let mut digest = ListDigest::new();
    let query = "SELECT excluded, device FROM job_lists WHERE job = (SELECT number FROM jobs WHERE id = ?1)
                 ORDER BY excluded, device";
    let mut select = connection.prepare_cached(query)?;
    let mut rows = select.query([job.as_str()])?;
    while let Some(row) = rows.next()? {
        digest.push(row.get_ref(1)?.as_str()?, row.get(0)?);
    }
    Ok(digest.finish())
}

/// The list is whole, with so many devices: its job may begin. `None` if that was so before, or there are not so many.
pub fn seal_list(tx: &Transaction<'_>, job: &JobId, count: u64) -> sql::Result<Option<SavedJob>> {
    let row = "UPDATE jobs SET listing = NULL, changed = ?3 WHERE id = ?1 AND listing IS NOT NULL AND listed = ?2";
    match tx.prepare_cached(row)?.execute(params![job.as_str(), count.cast_signed(), next_change(tx)?])? {
        0 => Ok(None),
        _ => saved(tx, job),
    }
}

/// Some of a job's list after `after`, in order.
pub fn listed(connection: &Connection, job: &JobId, after: Option<&Address>, most: usize) -> sql::Result<Vec<Address>> {
    let number = number_of(connection, job)?;
    let query = "SELECT device FROM job_lists WHERE job = ?1 AND excluded = 0 AND device > ?2 ORDER BY device LIMIT ?3";
    let after = after.map(Address::to_string).unwrap_or_default();
    let mut select = connection.prepare_cached(query)?;
    let devices =
        select.query_map(params![number, after, most.cast_signed()], |row| address(row.get_ref(0)?.as_str()?))?;
    devices.collect()
}

/// Which of these devices the list has among those to leave out, by itself or by the device that it is a module of.
pub fn listed_among(connection: &Connection, job: &JobId, devices: &[Address]) -> sql::Result<Vec<bool>> {
    let number = number_of(connection, job)?;
    let mut select =
        connection.prepare_cached("SELECT 1 FROM job_lists WHERE job = ?1 AND excluded = 1 AND device IN (?2, ?3)")?;
    devices.iter().map(|device| select.exists(params![number, device.to_string(), device.device().as_str()])).collect()
}

/// End the jobs whose lists have not grown since `before`; how many there were.
pub fn expire_lists(
    tx: &Transaction<'_>,
    before: DateTime<Utc>,
    now: DateTime<Utc>,
    reason: &str,
) -> sql::Result<usize> {
    let query = "SELECT number FROM jobs WHERE listing < ?1";
    let mut select = tx.prepare_cached(query)?;
    let jobs = select.query_map([millis(before)], |row| row.get::<_, i64>(0))?.collect::<sql::Result<Vec<_>>>()?;
    for job in &jobs {
        end(tx, *job, JobStatus::Failed, Some(reason), now)?;
    }
    Ok(jobs.len())
}

/// End a job whose list is still being uploaded. `false` if there is no such job.
pub fn cancel_list(tx: &Transaction<'_>, job: &JobId, now: DateTime<Utc>) -> sql::Result<bool> {
    match open_list(tx, job)? {
        Ok((number, _)) => end(tx, number, JobStatus::Cancelled, None, now).map(|()| true),
        Err(_) => Ok(false),
    }
}

fn end(tx: &Transaction<'_>, job: i64, status: JobStatus, reason: Option<&str>, now: DateTime<Utc>) -> sql::Result<()> {
    let row = "UPDATE jobs SET status = ?2, ended = ?3, reason = ?4, listing = NULL, changed = ?5 WHERE number = ?1";
    tx.prepare_cached(row)?.execute(params![job, status.name(), millis(now), reason, next_change(tx)?])?;
    events::ended(tx, job, millis(now), status, reason)?;
    forget(tx, job)
}

/// A job has begun: its list has served, unless devices can come that it leaves out.
pub(super) fn forget_begun(tx: &Transaction<'_>, job: i64) -> sql::Result<()> {
    let continuous =
        "SELECT coalesce(json_extract(request, '$.latch.targets.continuous'), 0) FROM jobs WHERE number = ?1";
    match tx.prepare_cached(continuous)?.query_row([job], |row| row.get(0))? {
        true => Ok(()),
        false => forget(tx, job),
    }
}

/// A list has served.
pub(super) fn forget(tx: &Transaction<'_>, job: i64) -> sql::Result<()> {
    tx.prepare_cached("DELETE FROM job_lists WHERE job = ?1")?.execute([job]).map(drop)
}

fn address(text: &str) -> sql::Result<Address> {
    Address::parse(text).map_err(|error| unreadable(0, error))
}
