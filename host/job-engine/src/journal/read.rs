//! What can be asked of the journal.

use std::collections::HashSet;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use durable_store::sql::types::Value;
use durable_store::sql::{self, Connection, OptionalExtension, Row, params, params_from_iter};
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::{EndThen, FailureClass};
use iothub_protocol::job::recurrence::{OccurrenceStatus, PassedOver, Recurrence, SeriesProgress};
use iothub_protocol::job::{
    DeviceJob, DeviceJobOutcome, DeviceJobStatus, FailureCounts, Hold, HoldCause, JobRequest, JobResponse,
    JobStatistics, JobStatus,
};
use iothub_protocol::method::MethodResponse;
use iothub_protocol::query::Condition;

use super::{JobFilter, Page, unreadable};
use crate::record::{SavedCourse, SavedEnd, SavedJob, SavedSeries, SavedTarget};

/// How many device rows one page looks at before it comes back with fewer than asked for: a fraction of a second of a
/// reader's time.
const MAX_SCANNED: usize = 50_000;
/// How many of a series' jobs are shown with it.
const SHOWN_OF_SERIES: u32 = 5;

/// A job as the hub shows it.
pub fn job(connection: &Connection, id: &JobId) -> sql::Result<Option<JobResponse>> {
    let query = format!("{SELECT_JOB} WHERE id = ?1");
    let found = connection.prepare_cached(&query)?.query_row([id.as_str()], read_job).optional()?;
    let Some(NumberedJob { number, mut response, .. }) = found else { return Ok(None) };
    if let Some(series) = &mut response.series {
        series.last = last_of_series(connection, number)?;
    }
    Ok(Some(response))
}

/// Jobs, the newest first. `after` is the continuation of the page before; one that never was gives the first page.
pub fn jobs(
    connection: &Connection,
    filter: &JobFilter,
    limit: usize,
    after: Option<&str>,
) -> sql::Result<Page<JobResponse>> {
    let query = format!(
        "{SELECT_JOB} WHERE number < ?1 AND (?2 IS NULL OR type = ?2) AND (?3 IS NULL OR status = ?3)
         ORDER BY number DESC LIMIT ?4"
    );
    let below = after.and_then(|after| after.parse().ok()).unwrap_or(i64::MAX);
    let one_more = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    let values = params![below, filter.job_type, filter.status.map(JobStatus::name), one_more];
    let mut statement = connection.prepare_cached(&query)?;
    let mut found = statement.query_map(values, read_job)?.collect::<sql::Result<Vec<_>>>()?;
    let has_more = found.len() > limit;
    found.truncate(limit);
    let continuation = found.last().filter(|_| has_more).map(|last| last.number.to_string());
    Ok(Page { items: found.into_iter().map(|job| job.response).collect(), continuation })
}

/// All jobs that have not ended, in the order of their creation, each with its devices that have not; without those whose
/// lists are still being uploaded.
pub fn unfinished(connection: &Connection) -> sql::Result<Vec<SavedJob>> {
    let query = format!("{SELECT_JOB} WHERE ended IS NULL AND listing IS NULL ORDER BY number");
    let mut statement = connection.prepare(&query)?;
    let found = statement.query_map([], read_job)?.collect::<sql::Result<Vec<_>>>()?;
    found.into_iter().map(|job| with_targets(connection, job)).collect()
}

/// A job that has not ended.
pub(super) fn saved(connection: &Connection, id: &JobId) -> sql::Result<Option<SavedJob>> {
    let query = format!("{SELECT_JOB} WHERE id = ?1 AND ended IS NULL");
    let found = connection.prepare_cached(&query)?.query_row([id.as_str()], read_job).optional()?;
    found.map(|job| with_targets(connection, job)).transpose()
}

fn with_targets(connection: &Connection, job: NumberedJob) -> sql::Result<SavedJob> {
    let NumberedJob { number, response, start, begun, cancelling, held_for, forgiven, .. } = job;
    let JobResponse { request, status, statistics, failure_reason, stage, hold, series, ending, .. } = response;
    let (mut statistics, targets) = (statistics.unwrap_or_default(), unfinished_targets(connection, number, begun)?);
    if statistics.failures.total() != statistics.failed_count {
        // It began before they were counted by class.
        statistics.failures = recounted(connection, number)?;
    }
    let course = stage.map(|stage| course(connection, number, stage, forgiven)).transpose()?;
    Ok(SavedJob {
        request,
        status,
        start,
        begun,
        cancelling,
        ending,
        hold,
        held_for,
        // A job that has not ended has a reason only if its policy stops it.
        aborted: failure_reason,
        statistics,
        targets,
        course,
        series: series.and_then(|series| Some(SavedSeries { next: *series.next.first()?, jobs: series.jobs })),
    })
}

/// The device rows that match, ordered by job and device. `after` is the continuation of the page before.
///
/// A page may hold fewer rows than `limit`, even none, and still have a continuation: a search looks at a bounded
/// number of rows at a time.
pub fn device_rows(
    connection: &Connection,
    condition: &Condition,
    limit: usize,
    after: Option<&Position>,
) -> sql::Result<Page<DeviceJob>> {
    let (query, values) = rows_query(condition, after);
    let mut statement = connection.prepare_cached(&query)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut items = Vec::new();
    let mut last = None;
    let mut scanned = 0;
    while let Some(row) = rows.next()? {
        let device_job = read_device_job(row)?;
        let is_match = condition.matches(&device_job.to_json());
        if scanned == MAX_SCANNED || (is_match && items.len() == limit) {
            return Ok(Page { items, continuation: last.map(|position: Position| position.to_string()) });
        }
        scanned += 1;
        if items.len() < limit {
            last = Some(Position { job: row.get("job")?, device: device_job.address.clone() });
        }
        if is_match {
            items.push(device_job);
        }
    }
    Ok(Page { items, continuation: None })
}

/// Where a page of device rows ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    job: i64,
    device: Address,
}

impl Position {
    /// `None` if the text is no continuation.
    pub fn parse(text: &str) -> Option<Position> {
        let (job, device) = text.split_once('/')?;
        Some(Position { job: job.parse().ok()?, device: Address::parse(device).ok()? })
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.job, self.device)
    }
}

/// What an index can do of a condition is done by one; the condition itself is checked on each row anyway.
pub(super) fn rows_query(condition: &Condition, after: Option<&Position>) -> (String, Vec<Value>) {
    // A cross join keeps the device rows in front, and with them the order that their key has.
    let mut query =
        "SELECT d.*, j.id, j.type FROM device_jobs d CROSS JOIN jobs j ON j.number = d.job WHERE 1".to_owned();
    let mut values = Vec::new();
    if let Some(job) = condition.equals("jobId") {
        query.push_str(" AND d.job = (SELECT number FROM jobs WHERE id = ?)");
        values.push(Value::from(job.to_owned()));
    }
    if let Some(status) = condition.equals("status") {
        query.push_str(" AND d.status = ?");
        values.push(Value::from(status.to_owned()));
    }
    if let Some(devices) = condition.one_of("deviceId") {
        let places = vec!["?"; devices.len()].join(", ");
        query.push_str(&format!(" AND {DEVICE_OF_ROW} IN ({places})"));
        values.extend(devices.into_iter().map(|device| Value::from(device.to_owned())));
    }
    if let Some(Position { job, device }) = after {
        query.push_str(" AND (d.job, d.device) > (?, ?)");
        let device = Value::from(device.to_string());
        values.extend([Value::from(*job), device.clone()]);
        if let Some(named) = condition.equals("jobId") {
            // Of pairs beside a job that is given, the key would serve for the job alone: each page would go over all
            // before it.
            query.push_str(" AND d.device > iif((SELECT number FROM jobs WHERE id = ?) = ?, ?, '')");
            values.extend([Value::from(named.to_owned()), Value::from(*job), device]);
        }
    }
    query.push_str(" ORDER BY d.job, d.device");
    (query, values)
}

/// The device's id of a row, which is of that device or of a module of it: what [`super::MIGRATIONS`] has an index of.
const DEVICE_OF_ROW: &str = "substr(d.device, 1, instr(d.device || '/', '/') - 1)";

fn unfinished_targets(
    connection: &Connection,
    job: i64,
    begun: Option<DateTime<Utc>>,
) -> sql::Result<Vec<SavedTarget>> {
    let (mut groups, mut zones) = (HashSet::new(), HashSet::new());
    let query = "SELECT device, attempt, status, created, stage, grp, zone, started, step, awaited, failures, until,
                 answer, payload, error, description FROM device_jobs WHERE job = ?1 AND ended IS NULL ORDER BY device";
    let mut statement = connection.prepare_cached(query)?;
    let targets = statement.query_map([job], |row| {
        let status: String = row.get("status")?;
        let awaited = time(row, "awaited")?;
        let in_doubt = DeviceJobStatus::by_name(&status) == Some(DeviceJobStatus::Running) && awaited.is_none();
        let stage = row.get::<_, Option<u32>>("stage")?.unwrap_or_default();
        let step = row.get("step")?;
        // An answer is that to the step before, unless the device is to be tried again for it.
        let until = time(row, "until")?;
        let (last, answered) = match told(row)? {
            Some(DeviceJobOutcome::Method(answer)) if step > 0 && until.is_none() => (None, Some(answer)),
            other => (other, None),
        };
        Ok(SavedTarget {
            device: address(row)?,
            attempt: row.get("attempt")?,
            in_doubt,
            failures: row.get("failures")?,
            last,
            until,
            awaited,
            stage,
            group: shared(row, "grp", &mut groups)?,
            zone: shared(row, "zone", &mut zones)?,
            started: time(row, "started")?,
            late: time(row, "created")?.zip(begun).map_or(TimeDelta::zero(), |(created, begun)| created - begun),
            step,
            answered,
        })
    })?;
    targets.collect()
}

/// A job's failed devices by class, from its rows.
fn recounted(connection: &Connection, job: i64) -> sql::Result<FailureCounts> {
    let query = "SELECT answer, payload, error, description FROM device_jobs WHERE job = ?1 AND status = ?2";
    let mut statement = connection.prepare_cached(query)?;
    let mut rows = statement.query(params![job, DeviceJobStatus::Failed.name()])?;
    let mut counts = FailureCounts::default();
    while let Some(row) = rows.next()? {
        counts.add(failure_class(row)?, 1);
    }
    Ok(counts)
}

/// The class of a failed device's outcome. A failure that says nothing of itself is a fault of whoever wrote it.
fn failure_class(row: &Row<'_>) -> sql::Result<FailureClass> {
    Ok(told(row)?.map_or(FailureClass::Fault, |outcome| FailureClass::of_outcome(&outcome)))
}

/// How far a job with a policy has come.
fn course(connection: &Connection, job: i64, stage: u32, forgiven: Option<DateTime<Utc>>) -> sql::Result<SavedCourse> {
    let mut groups = HashSet::new();
    let query = "SELECT stage, grp, status, ended, answer, payload, error, description FROM device_jobs
                 WHERE job = ?1 AND status IN (?2, ?3) AND ended IS NOT NULL ORDER BY ended, device";
    let (completed, failed) = (DeviceJobStatus::Completed.name(), DeviceJobStatus::Failed.name());
    let mut statement = connection.prepare_cached(query)?;
    let ended = statement.query_map(params![job, completed, failed], |row| {
        let stage = row.get::<_, Option<u32>>("stage")?.unwrap_or_default();
        let failure = match row.get::<_, String>("status")? == completed {
            true => None,
            false => Some(failure_class(row)?),
        };
        let at = time(row, "ended")?.unwrap_or_default();
        Ok(SavedEnd { stage, at, failure, group: shared(row, "grp", &mut groups)? })
    })?;
    let ended = ended.collect::<sql::Result<_>>()?;
    let query = "SELECT device FROM device_jobs WHERE job = ?1 AND attempt > 0 ORDER BY device";
    let mut statement = connection.prepare_cached(query)?;
    let reached = statement.query_map([job], address)?.collect::<sql::Result<_>>()?;
    Ok(SavedCourse { stage, ended, reached, forgiven })
}

pub(super) const SELECT_JOB: &str =
    "SELECT id, request, status, number, created, start, begun, ended, cancelling, reason,
    devices, pending, running, succeeded, failed, failures, stage, hold, hold_reason, held_since, held_for, forgiven,
    ending, zones, excluded, listed, listing, changed, series.* FROM jobs LEFT JOIN series ON job = number";

pub(super) struct NumberedJob {
    number: i64,
    /// Of its last change.
    pub(super) change: u64,
    pub(super) response: JobResponse,
    start: DateTime<Utc>,
    begun: Option<DateTime<Utc>>,
    cancelling: bool,
    held_for: TimeDelta,
    forgiven: Option<DateTime<Utc>>,
}

pub(super) fn read_job(row: &Row<'_>) -> sql::Result<NumberedJob> {
    let id: String = row.get("id")?;
    let job_id = JobId::parse(&id).map_err(|error| unreadable(0, error))?;
    let request: String = row.get("request")?;
    let request = JobRequest::from_json(job_id, request.as_bytes()).map_err(|error| unreadable(1, error))?;
    let status: String = row.get("status")?;
    let status = JobStatus::by_name(&status).ok_or_else(|| unreadable(2, Unknown(status)))?;
    let start = time(row, "start")?.unwrap_or_default();
    let begun = time(row, "begun")?;
    let series = match request.recurrence {
        Some(Recurrence::Series(_)) => Some(progress(row)?),
        _ => None,
    };
    let next = series.as_ref().and_then(|series| series.next.first().copied());
    let response = JobResponse {
        request,
        status,
        created_time: time(row, "created")?.unwrap_or_default(),
        start_time: begun.or(next).unwrap_or(start),
        end_time: time(row, "ended")?,
        failure_reason: row.get("reason")?,
        statistics: begun.map(|_| statistics(row)).transpose()?,
        stage: row.get("stage")?,
        hold: hold(row)?,
        series,
        ending: row.get::<_, Option<String>>("ending")?.and_then(|name| EndThen::by_name(&name)),
        zones: zones(row)?,
        window: None,
        excluded: begun.map(|_| count(row, "excluded")).transpose()?,
        listed: time(row, "listing")?.map(|_| count(row, "listed")).transpose()?,
        continuous_until: None,
    };
    let held_for = TimeDelta::milliseconds(row.get("held_for")?);
    let cancelling: bool = row.get("cancelling")?;
    let gathers_from = begun.filter(|_| !cancelling).map(|begun| begun + held_for);
    let continuous_until = gathers_from.and_then(|from| response.gathers_until(from));
    let response = JobResponse { continuous_until, ..response };
    Ok(NumberedJob {
        number: row.get("number")?,
        change: count(row, "changed")?,
        response,
        start,
        begun,
        cancelling,
        held_for,
        forgiven: time(row, "forgiven")?,
    })
}

fn hold(row: &Row<'_>) -> sql::Result<Option<Hold>> {
    let Some(cause) = row.get::<_, Option<String>>("hold")? else { return Ok(None) };
    Ok(Some(Hold {
        cause: HoldCause::by_name(&cause).ok_or_else(|| unreadable(16, Unknown(cause)))?,
        reason: row.get::<_, Option<String>>("hold_reason")?.unwrap_or_default(),
        since: time(row, "held_since")?.unwrap_or_default(),
    }))
}

/// What a job's devices named as their time zones.
fn zones(row: &Row<'_>) -> sql::Result<Vec<Option<Arc<str>>>> {
    let Some(text) = row.get::<_, Option<String>>("zones")? else { return Ok(vec![None]) };
    let names: Vec<Option<String>> = serde_json::from_str(&text).map_err(|error| unreadable(0, error))?;
    Ok(names.into_iter().map(|name| name.map(Into::into)).collect())
}

/// One text for all rows that have the same.
fn shared(row: &Row<'_>, column: &str, known: &mut HashSet<Arc<str>>) -> sql::Result<Option<Arc<str>>> {
    let Some(name) = row.get::<_, Option<String>>(column)? else { return Ok(None) };
    let name = known.get(name.as_str()).cloned().unwrap_or_else(|| name.into());
    known.insert(Arc::clone(&name));
    Ok(Some(name))
}

fn progress(row: &Row<'_>) -> sql::Result<SeriesProgress> {
    let why = row.get::<_, Option<String>>("why")?.and_then(|name| PassedOver::by_name(&name));
    Ok(SeriesProgress {
        next: time(row, "next")?.into_iter().collect(),
        jobs: row.get::<_, Option<u32>>("jobs")?.unwrap_or_default(),
        last: Vec::new(),
        passed_over: time(row, "passed")?.zip(why),
    })
}

/// The last jobs of a series, the newest first.
fn last_of_series(connection: &Connection, number: i64) -> sql::Result<Vec<OccurrenceStatus>> {
    let query = "SELECT id, status, coalesce(begun, start) AS start FROM jobs WHERE parent = ?1
                 ORDER BY number DESC LIMIT ?2";
    let mut statement = connection.prepare_cached(query)?;
    let last = statement.query_map(params![number, SHOWN_OF_SERIES], |row| {
        let id: String = row.get("id")?;
        let status: String = row.get("status")?;
        Ok(OccurrenceStatus {
            job_id: JobId::parse(&id).map_err(|error| unreadable(0, error))?,
            status: JobStatus::by_name(&status).ok_or_else(|| unreadable(1, Unknown(status)))?,
            start_time: time(row, "start")?.unwrap_or_default(),
        })
    })?;
    last.collect()
}

fn statistics(row: &Row<'_>) -> sql::Result<JobStatistics> {
    Ok(JobStatistics {
        device_count: count(row, "devices")?,
        failed_count: count(row, "failed")?,
        succeeded_count: count(row, "succeeded")?,
        running_count: count(row, "running")?,
        pending_count: count(row, "pending")?,
        failures: match row.get::<_, Option<String>>("failures")? {
            Some(text) => FailureCounts::from_json(&serde_json::from_str(&text).unwrap_or_default()),
            None => FailureCounts::default(),
        },
    })
}

fn count(row: &Row<'_>, column: &str) -> sql::Result<u64> {
    row.get::<_, i64>(column).map(|count| u64::try_from(count).unwrap_or(0))
}

fn read_device_job(row: &Row<'_>) -> sql::Result<DeviceJob> {
    let id: String = row.get("id")?;
    let job_type: String = row.get("type")?;
    let status: String = row.get("status")?;
    let status = DeviceJobStatus::by_name(&status).ok_or_else(|| unreadable(2, Unknown(status)))?;
    Ok(DeviceJob {
        address: address(row)?,
        job_id: JobId::parse(&id).map_err(|error| unreadable(0, error))?,
        job_type: if job_type == METHOD { METHOD } else { TWIN },
        status,
        created: time(row, "created")?.unwrap_or_default(),
        last_updated: time(row, "updated")?.unwrap_or_default(),
        start: time(row, "started")?,
        end: time(row, "ended")?,
        outcome: outcome(row, &job_type, status)?,
        stage: row.get("stage")?,
        is_awaited: !status.is_terminal() && time(row, "awaited")?.is_some(),
        attempts: row.get("attempt")?,
        next_attempt: if status == DeviceJobStatus::Pending { time(row, "until")? } else { None },
        step: row.get::<_, u32>("step")? + 1,
        version: count(row, "version")?,
    })
}

const METHOD: &str = "scheduleDeviceMethod";
pub(super) const TWIN: &str = "scheduleUpdateTwin";

fn outcome(row: &Row<'_>, job_type: &str, status: DeviceJobStatus) -> sql::Result<Option<DeviceJobOutcome>> {
    let is_updated = job_type == TWIN && status == DeviceJobStatus::Completed;
    Ok(told(row)?.or(is_updated.then_some(DeviceJobOutcome::TwinUpdated)))
}

/// What the columns of the outcome say.
pub(super) fn told(row: &Row<'_>) -> sql::Result<Option<DeviceJobOutcome>> {
    if let Some(code) = row.get("error")? {
        let description = row.get::<_, Option<String>>("description")?.unwrap_or_default();
        return Ok(Some(DeviceJobOutcome::Error { code, description }));
    }
    if let Some(status) = row.get("answer")? {
        let payload: String = row.get("payload")?;
        let payload = serde_json::from_str(&payload).map_err(|error| unreadable(9, error))?;
        return Ok(Some(DeviceJobOutcome::Method(MethodResponse { status, payload })));
    }
    Ok(None)
}

pub(super) fn address(row: &Row<'_>) -> sql::Result<Address> {
    let device: String = row.get("device")?;
    Address::parse(&device).map_err(|error| unreadable(1, error))
}

pub(super) fn time(row: &Row<'_>, column: &str) -> sql::Result<Option<DateTime<Utc>>> {
    Ok(row.get::<_, Option<i64>>(column)?.and_then(DateTime::from_timestamp_millis))
}

#[derive(Debug, thiserror::Error)]
#[error("unknown status {0:?}")]
pub(super) struct Unknown(pub(super) String);
