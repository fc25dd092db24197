//! What changes in the journal.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use durable_store::sql::{self, Connection, OptionalExtension, Transaction, params};
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::EndThen;
use iothub_protocol::job::recurrence;
use iothub_protocol::job::targets::JobTargets;
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus, JobRequest, JobStatistics, JobStatus};
use serde_json::json;

use super::{events, list, millis};
use crate::audit;
use crate::record::{BegunTarget, Change, Record, SavedJob, SavedSeries, What};

/// How many device rows one step of [`prune`] removes: some milliseconds of the writer's time.
const PRUNE_STEP: u32 = 5000;

/// How many attempts of a device that did not end it are kept: a device that is offline for a month is looked for some
/// thousand times.
const MAX_ATTEMPTS: u32 = 100;

/// Record a new job. `None` if its id is taken, as one of a series' jobs perhaps.
pub fn insert(tx: &Transaction<'_>, request: JobRequest, now: DateTime<Utc>) -> sql::Result<Option<SavedJob>> {
    if let Some(series) = recurrence::series_of(&request.job_id) {
        let is_series = "SELECT EXISTS (SELECT 1 FROM series JOIN jobs ON number = job WHERE id = ?1)";
        if tx.query_row(is_series, [series.as_str()], |row| row.get(0))? {
            return Ok(None);
        }
    }
    let start = request.start_time.unwrap_or(now);
    let number = insert_row(tx, &request, JobStatus::Queued, (millis(start), None), millis(now))?;
    Ok(number.map(|_| SavedJob::new(request, start)))
}

/// Record a new series, whose first occurrence is known. `None` if its id or one of its jobs' is taken.
pub fn insert_series(
    tx: &Transaction<'_>,
    request: JobRequest,
    first: DateTime<Utc>,
    now: DateTime<Utc>,
) -> sql::Result<Option<SavedJob>> {
    let id = &request.job_id;
    let of_form = "SELECT id FROM jobs WHERE id >= ?1 || '-0' AND id < ?1 || '-:'";
    let mut of_form = tx.prepare(of_form)?;
    let mut found = of_form.query([id.as_str()])?;
    while let Some(row) = found.next()? {
        let other = JobId::parse(&row.get::<_, String>(0)?).ok();
        if other.and_then(|other| recurrence::series_of(&other)).as_ref() == Some(id) {
            return Ok(None);
        }
    }
    let Some(number) = insert_row(tx, &request, JobStatus::Scheduled, (millis(first), None), millis(now))? else {
        return Ok(None);
    };
    tx.execute("INSERT INTO series (job, next) VALUES (?1, ?2)", [number, millis(first)])?;
    let series = Some(SavedSeries { next: first, jobs: 0 });
    Ok(Some(SavedJob { status: JobStatus::Scheduled, series, ..SavedJob::new(request, first) }))
}

/// The number of a new job, to begin at a time and perhaps of a series; `None` if its id is taken.
fn insert_row(
    tx: &Transaction<'_>,
    request: &JobRequest,
    status: JobStatus,
    (start, parent): (i64, Option<i64>),
    now: i64,
) -> sql::Result<Option<i64>> {
    let is_listing = request.targets.as_ref().is_some_and(JobTargets::is_uploaded);
    let row = "INSERT INTO jobs (id, type, request, status, created, start, parent, listing, changed)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (id) DO NOTHING RETURNING number";
    let values = params![
        request.job_id.as_str(),
        request.action.job_type(),
        request.to_json().to_string(),
        status.name(),
        now,
        start,
        parent,
        is_listing.then_some(now),
        next_change(tx)?
    ];
    let number = tx.prepare_cached(row)?.query_row(values, |row| row.get(0)).optional()?;
    if let Some(number) = number {
        events::created(tx, number, now)?;
    }
    Ok(number)
}

/// Record what the engine decided, in its order, and what it counts.
pub fn record(tx: &Transaction<'_>, record: &Record) -> sql::Result<()> {
    let mut numbers = HashMap::new();
    for Change { job, at, what } in &record.changes {
        if let What::Audited(note) = what {
            audit::append(tx, note)?;
            continue;
        }
        let number = match numbers.get(job) {
            Some(number) => *number,
            None => {
                let number = number_of(tx, job).optional()?;
                numbers.insert(job, number);
                number
            }
        };
        match (number, what) {
            (Some(number), _) => {
                apply(tx, number, millis(*at), what)?;
                events::keep(tx, number, millis(*at), what)?;
            }
            // So late that the job itself is gone.
            (None, What::Late { .. }) => {}
            (None, _) => return Err(sql::Error::QueryReturnedNoRows),
        }
    }
    for (job, statistics) in &record.statistics {
        count(tx, job, statistics)?;
    }
    Ok(())
}

/// Take one step to remove the jobs that ended before `before`, oldest first. `false` once there are none.
pub fn prune(tx: &Transaction<'_>, before: DateTime<Utc>) -> sql::Result<bool> {
    let oldest = "SELECT number FROM jobs WHERE ended < ?1 ORDER BY ended LIMIT 1";
    let Some(number) = tx.query_row(oldest, [millis(before)], |row| row.get::<_, i64>(0)).optional()? else {
        return Ok(false);
    };
    for table in ["attempts", "device_jobs"] {
        let rows = format!(
            "DELETE FROM {table} WHERE job = ?1 AND device IN (SELECT device FROM {table} WHERE job = ?1 LIMIT ?2)"
        );
        if tx.execute(&rows, params![number, PRUNE_STEP])? > 0 {
            return Ok(true);
        }
    }
    events::forget(tx, number)?;
    tx.execute("DELETE FROM jobs WHERE number = ?1", [number])?;
    Ok(true)
}

pub(super) fn number_of(connection: &Connection, job: &JobId) -> sql::Result<i64> {
    connection.prepare_cached("SELECT number FROM jobs WHERE id = ?1")?.query_row([job.as_str()], |row| row.get(0))
}

/// Note that a job has changed that has nothing to count.
fn changed(tx: &Transaction<'_>, job: i64) -> sql::Result<()> {
    let change = next_change(tx)?;
    tx.prepare_cached("UPDATE jobs SET changed = ?2 WHERE number = ?1")?.execute([job, change]).map(drop)
}

/// The number of a change, of whichever job.
pub(super) fn next_change(tx: &Transaction<'_>) -> sql::Result<i64> {
    let next = "UPDATE clock SET changes = changes + 1 RETURNING changes";
    tx.prepare_cached(next)?.query_row([], |row| row.get(0))
}

fn apply(tx: &Transaction<'_>, job: i64, at: i64, what: &What) -> sql::Result<()> {
    match what {
        What::Scheduled => set_status(tx, job, JobStatus::Scheduled),
        What::Begun { targets, excluded } => begin(tx, job, at, targets, *excluded),
        What::Joined { targets } => insert_targets(tx, job, at, targets),
        What::Started { device, attempt } => {
            let row = "UPDATE device_jobs SET version = version + 1,
                       status = ?3, attempt = ?4, updated = ?5, started = coalesce(started, ?5),
                       attempted = ?6 WHERE job = ?1 AND device = ?2";
            let status = DeviceJobStatus::Running.name();
            let attempted = (*attempt > 1).then_some(at);
            let values = params![job, device.to_string(), status, attempt, at, attempted];
            tx.prepare_cached(row)?.execute(values).map(drop)
        }
        What::Waiting { device, until, outcome, failures } => {
            if let Some(outcome) = outcome {
                keep_attempt(tx, job, at, device, outcome, false)?;
            }
            let status = DeviceJobStatus::Pending.name();
            let until = until.map(millis);
            let (Some(failures), Some(outcome)) = (failures, outcome) else {
                // What it waits for is its connection, not a pause after a failure, unless it is in doubt.
                let row = match until {
                    Some(_) => {
                        "UPDATE device_jobs SET version = version + 1,
                         status = ?3, updated = ?4, until = ?5, awaited = NULL, answer = NULL,
                         payload = NULL, error = NULL, description = NULL WHERE job = ?1 AND device = ?2"
                    }
                    None => {
                        "UPDATE device_jobs SET version = version + 1,
                         status = ?3, updated = ?4, until = ?5, awaited = NULL
                         WHERE job = ?1 AND device = ?2"
                    }
                };
                return tx.prepare_cached(row)?.execute(params![job, device.to_string(), status, at, until]).map(drop);
            };
            let row = "UPDATE device_jobs SET version = version + 1,
                       status = ?3, updated = ?4, until = ?5, failures = ?6,
                       answer = ?7, payload = ?8, error = ?9, description = ?10 WHERE job = ?1 AND device = ?2";
            let Outcome { answer, payload, error, description } = columns(Some(outcome));
            let values =
                params![job, device.to_string(), status, at, until, failures, answer, payload, error, description];
            tx.prepare_cached(row)?.execute(values).map(drop)
        }
        What::Stepped { device, step, outcome, awaits } => {
            keep_attempt(tx, job, at, device, outcome, true)?;
            let status = if *awaits { DeviceJobStatus::Running } else { DeviceJobStatus::Pending };
            let row = "UPDATE device_jobs SET version = version + 1,
                       status = ?3, updated = ?4, step = ?5, awaited = iif(?6, ?4, NULL),
                       until = NULL, answer = coalesce(?7, answer), payload = coalesce(?8, payload),
                       error = NULL, description = NULL WHERE job = ?1 AND device = ?2";
            let Outcome { answer, payload, .. } = columns(Some(outcome));
            let values = params![job, device.to_string(), status.name(), at, step, awaits, answer, payload];
            tx.prepare_cached(row)?.execute(values).map(drop)
        }
        What::Late { device, attempt, outcome } => {
            let row = "INSERT OR IGNORE INTO attempts
                       (job, device, attempt, late, ended, answer, payload, error, description)
                       VALUES (?1, ?2, ?3, 1, ?4, ?5, ?6, ?7, ?8)";
            let Outcome { answer, payload, error, description } = columns(Some(outcome));
            let values = params![job, device.to_string(), attempt, at, answer, payload, error, description];
            tx.prepare_cached(row)?.execute(values).map(drop)
        }
        // Not of a job's rows.
        What::Audited(note) => audit::append(tx, note),
        What::Stage { number } => {
            tx.execute("UPDATE jobs SET stage = ?2 WHERE number = ?1", params![job, number]).map(drop)
        }
        What::Awaited { device } => {
            let row = "UPDATE device_jobs SET version = version + 1,
                       awaited = ?3, updated = ?3 WHERE job = ?1 AND device = ?2";
            tx.prepare_cached(row)?.execute(params![job, device.to_string(), at]).map(drop)
        }
        What::Ended { device, status, outcome } => {
            let row = "UPDATE device_jobs SET version = version + 1,
                       status = ?3, updated = ?4, ended = ?4,
                       answer = ?5, payload = ?6, error = ?7, description = ?8 WHERE job = ?1 AND device = ?2";
            let Outcome { answer, payload, error, description } = columns(outcome.as_ref());
            let values = params![job, device.to_string(), status.name(), at, answer, payload, error, description];
            tx.prepare_cached(row)?.execute(values).map(drop)
        }
        What::PendingEnded { status, outcome } => {
            let pending = DeviceJobStatus::Pending.name();
            let Some(outcome) = outcome else {
                // A device that was to be tried again goes on to show how it failed.
                let rows = "UPDATE device_jobs SET version = version + 1,
                            status = ?3, updated = ?4, ended = ?4 WHERE job = ?1 AND status = ?2";
                return tx.execute(rows, params![job, pending, status.name(), at]).map(drop);
            };
            let rows = "UPDATE device_jobs SET version = version + 1,
                        status = ?3, updated = ?4, ended = ?4,
                        answer = ?5, payload = ?6, error = ?7, description = ?8 WHERE job = ?1 AND status = ?2";
            let Outcome { answer, payload, error, description } = columns(Some(outcome));
            let values = params![job, pending, status.name(), at, answer, payload, error, description];
            tx.execute(rows, values).map(drop)
        }
        What::Paused { cause, reason } => {
            let row = "UPDATE jobs SET hold = ?2, hold_reason = ?3, held_since = ?4 WHERE number = ?1";
            tx.execute(row, params![job, cause.name(), reason, at]).map(drop)
        }
        What::Resumed { held_for, is_forgiven } => {
            let row = "UPDATE jobs SET hold = NULL, hold_reason = NULL, held_since = NULL, held_for = ?2,
                       forgiven = iif(?3, ?4, forgiven) WHERE number = ?1";
            tx.execute(row, params![job, held_for.num_milliseconds(), is_forgiven, at]).map(drop)
        }
        What::Cancelling => tx.execute("UPDATE jobs SET cancelling = 1 WHERE number = ?1", [job]).map(drop),
        What::Ending { then } => {
            let row = "UPDATE jobs SET ending = ?2, cancelling = max(cancelling, ?3) WHERE number = ?1";
            tx.execute(row, params![job, then.name(), *then != EndThen::Stop]).map(drop)
        }
        What::UnbegunEnded { outcome } => {
            let rows = "UPDATE device_jobs SET version = version + 1,
                        status = ?3, updated = ?4, ended = ?4, error = ?5, description = ?6
                        WHERE job = ?1 AND status = ?2 AND attempt = 0";
            let (pending, canceled) = (DeviceJobStatus::Pending.name(), DeviceJobStatus::Canceled.name());
            let Outcome { error, description, .. } = columns(Some(outcome));
            tx.execute(rows, params![job, pending, canceled, at, error, description]).map(drop)
        }
        What::Aborting { reason } => {
            let row = "UPDATE jobs SET cancelling = 1, reason = ?2 WHERE number = ?1";
            tx.execute(row, params![job, reason]).map(drop)
        }
        What::Recurred { jobs, count, next, passed_over } => {
            for request in jobs {
                insert_row(tx, request, JobStatus::Queued, (request.start_time.map_or(at, millis), Some(job)), at)?;
            }
            let row = "UPDATE series SET jobs = ?2, next = ?3, passed = coalesce(?4, passed), why = coalesce(?5, why)
                       WHERE job = ?1";
            let (passed, why) = passed_over.map(|(at, why)| (millis(at), why.name())).unzip();
            tx.prepare_cached(row)?.execute(params![job, count, next.map(millis), passed, why])?;
            changed(tx, job)
        }
        What::Finished { status, reason } => {
            let row = "UPDATE jobs SET status = ?2, ended = ?3, reason = ?4, hold = NULL WHERE number = ?1";
            tx.execute(row, params![job, status.name(), at, reason])?;
            // If it is a series, nothing comes any more.
            if tx.prepare_cached("UPDATE series SET next = NULL WHERE job = ?1")?.execute([job])? > 0 {
                changed(tx, job)?;
            }
            list::forget(tx, job)
        }
    }
}

fn begin(tx: &Transaction<'_>, job: i64, at: i64, targets: &[BegunTarget], excluded: u64) -> sql::Result<()> {
    set_status(tx, job, JobStatus::Running)?;
    let row = "UPDATE jobs SET begun = ?2, excluded = ?3 WHERE number = ?1";
    tx.execute(row, [job, at, excluded.cast_signed()])?;
    insert_targets(tx, job, at, targets)?;
    list::forget_begun(tx, job)
}

fn insert_targets(tx: &Transaction<'_>, job: i64, at: i64, targets: &[BegunTarget]) -> sql::Result<()> {
    let row = "INSERT INTO device_jobs (job, device, status, created, updated, stage, grp, zone)
               VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6, ?7)";
    let mut insert = tx.prepare_cached(row)?;
    let mut zones = BTreeSet::new();
    for BegunTarget { device, stage, group, zone } in targets {
        let status = DeviceJobStatus::Pending.name();
        insert.execute(params![job, device.to_string(), status, at, stage, group.as_deref(), zone.as_deref()])?;
        zones.insert(zone.as_deref());
    }
    // Where no device names any, one that names none stands for all.
    if zones.iter().any(Option::is_some) {
        add_zones(tx, job, &zones)?;
    }
    Ok(())
}

/// Note what devices name as their time zones, beside those of before.
fn add_zones(tx: &Transaction<'_>, job: i64, zones: &BTreeSet<Option<&str>>) -> sql::Result<()> {
    let row = "UPDATE jobs SET zones = (SELECT json_group_array(value) FROM
               (SELECT value FROM json_each(coalesce(zones, '[]')) UNION SELECT value FROM json_each(?2))) WHERE number = ?1";
    tx.prepare_cached(row)?.execute(params![job, json!(zones).to_string()]).map(drop)
}

/// Keep what came of a device's attempt, as its row is to tell of the next one.
fn keep_attempt(
    tx: &Transaction<'_>,
    job: i64,
    at: i64,
    device: &Address,
    outcome: &DeviceJobOutcome,
    succeeded: bool,
) -> sql::Result<()> {
    let device = device.to_string();
    // What is there already is there from before a restart.
    let row = "INSERT OR IGNORE INTO attempts
               (job, device, attempt, late, step, succeeded, started, ended, answer, payload, error, description)
               SELECT job, device, attempt, 0, step, ?8, coalesce(attempted, started), ?3, ?4, ?5, ?6, ?7
               FROM device_jobs WHERE job = ?1 AND device = ?2";
    let Outcome { answer, payload, error, description } = columns(Some(outcome));
    tx.prepare_cached(row)?.execute(params![job, device, at, answer, payload, error, description, succeeded])?;
    let old = "DELETE FROM attempts WHERE job = ?1 AND device = ?2
               AND attempt <= (SELECT attempt FROM device_jobs WHERE job = ?1 AND device = ?2) - ?3";
    tx.prepare_cached(old)?.execute(params![job, device, MAX_ATTEMPTS]).map(drop)
}

fn set_status(tx: &Transaction<'_>, job: i64, status: JobStatus) -> sql::Result<()> {
    tx.execute("UPDATE jobs SET status = ?2 WHERE number = ?1", params![job, status.name()]).map(drop)
}

fn count(tx: &Transaction<'_>, job: &JobId, statistics: &JobStatistics) -> sql::Result<()> {
    let row = "UPDATE jobs SET devices = ?2, pending = ?3, running = ?4, succeeded = ?5, failed = ?6, failures = ?7,
               changed = ?8 WHERE id = ?1";
    let JobStatistics { device_count, failed_count, succeeded_count, running_count, pending_count, failures } =
        *statistics;
    let counts = [device_count, pending_count, running_count, succeeded_count, failed_count];
    let [devices, pending, running, succeeded, failed] = counts.map(u64::cast_signed);
    let failures = (failures.total() > 0).then(|| failures.to_json().to_string());
    let values = params![job.as_str(), devices, pending, running, succeeded, failed, failures, next_change(tx)?];
    tx.prepare_cached(row)?.execute(values).map(drop)
}

/// An outcome's columns. All are empty for an updated twin: that it was updated is what the status says.
#[derive(Default)]
struct Outcome<'a> {
    answer: Option<i32>,
    payload: Option<String>,
    error: Option<&'a str>,
    description: Option<&'a str>,
}

fn columns(outcome: Option<&DeviceJobOutcome>) -> Outcome<'_> {
    match outcome {
        None | Some(DeviceJobOutcome::TwinUpdated) => Outcome::default(),
        Some(DeviceJobOutcome::Method(response)) => {
            Outcome { answer: Some(response.status), payload: Some(response.payload.to_string()), ..Outcome::default() }
        }
        Some(DeviceJobOutcome::Error { code, description }) => {
            Outcome { error: Some(code), description: Some(description), ..Outcome::default() }
        }
    }
}
