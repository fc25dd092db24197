//! Jobs as `/jobs/v2` and `FROM devices.jobs` show them.

mod attempt;
mod extension;
mod failures;
pub mod label;
mod moment;
pub mod policy;
pub mod recurrence;
pub mod steps;
pub mod targets;
pub mod template;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};

use crate::address::Address;
use crate::error::{ErrorCode, HubError};
use crate::id::JobId;
use crate::method::{DirectMethod, MethodResponse};
use crate::time;
pub use attempt::{AttemptId, DeviceAttempt, LateAnswer};
pub use extension::EXTENSION_VERSION;
use extension::{Described, Extension};
pub use failures::FailureCounts;
use policy::{EndThen, FailureClass, JobPolicy, WindowState};
use recurrence::{Recurrence, SeriesProgress};
use steps::Step;
use targets::JobTargets;

/// The window of a job that names none, in seconds; what the Node SDK's shorthand and the CLI send.
pub const DEFAULT_MAX_EXECUTION: u32 = 3600;
/// The longest window, in seconds: 30 days, as long as history is kept. Azure documents no bound; ours keeps times
/// finite.
pub const MAX_MAX_EXECUTION: u32 = 30 * 24 * 3600;
/// Longest condition, in characters; the query language's own limit.
pub const MAX_CONDITION: usize = 8192;

/// What to do on each device.
#[derive(Debug, Clone, PartialEq)]
pub enum JobAction {
    /// `scheduleDeviceMethod`
    Method(DirectMethod),
    /// `scheduleUpdateTwin`
    UpdateTwin(TwinUpdate),
}

/// What a twin job merges. The `etag` of the request is always `*` and is not kept.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TwinUpdate {
    pub tags: Option<Map<String, Value>>,
    pub desired: Option<Map<String, Value>>,
}

/// A job as created.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRequest {
    pub job_id: JobId,
    pub action: JobAction,
    /// The WHERE part of a twin query; `*` for all devices.
    pub query_condition: String,
    /// `None` is now.
    pub start_time: Option<DateTime<Utc>>,
    /// Seconds from the start until the job ends, whatever is left of it.
    pub max_execution_time_in_seconds: u32,
    /// How it goes over its devices; `None` as at Azure.
    pub policy: Option<JobPolicy>,
    /// Which devices it is for beyond its condition; `None` as at Azure.
    pub targets: Option<JobTargets>,
    /// What follows `action` on each device, step by step; nothing at Azure.
    pub then: Vec<Step>,
    /// Whether it comes again and again, or is one of the jobs of such a series.
    pub recurrence: Option<Recurrence>,
}

/// A job's status; the names are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStatus {
    Queued,
    Scheduled,
    Running,
    Completed,
    Failed,
    Cancelled,
}

/// A device's status within a job; the names are the wire's (`canceled` with one l).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceJobStatus {
    Pending,
    Scheduled,
    Running,
    Completed,
    Failed,
    Canceled,
}

/// Why a job that could go on does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub cause: HoldCause,
    /// For people.
    pub reason: String,
    pub since: DateTime<Utc>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldCause {
    /// Somebody has paused it.
    Operator,
    /// A stage went well, and the next one waits for approval.
    Approval,
    /// An abort rule was broken, or a stage failed, and the policy says to pause.
    Rule,
}

/// `deviceJobStatistics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JobStatistics {
    pub device_count: u64,
    pub failed_count: u64,
    pub succeeded_count: u64,
    pub running_count: u64,
    pub pending_count: u64,
    /// `failed_count` by class; not on Azure's wire.
    pub failures: FailureCounts,
}

/// A job as the hub shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobResponse {
    pub request: JobRequest,
    pub status: JobStatus,
    pub created_time: DateTime<Utc>,
    /// When it began or is to begin.
    pub start_time: DateTime<Utc>,
    pub end_time: Option<DateTime<Utc>>,
    pub failure_reason: Option<String>,
    /// Absent until the targets are known.
    pub statistics: Option<JobStatistics>,
    /// The stage in which a job with a policy is, counted from 1; `None` before it has begun.
    pub stage: Option<u32>,
    /// Set while it is paused. Azure has no status for that: it stays `running`, `scheduled` or `queued`.
    pub hold: Option<Hold>,
    /// How many devices would be in the job if they were not excluded; `None` before it has begun.
    pub excluded: Option<u64>,
    /// How many devices have been listed for it, as long as its list is not whole.
    pub listed: Option<u64>,
    /// Until when devices that come to match its condition are in it, too. `None` before it has begun, while it is
    /// paused, and once it is stopped or has ended.
    pub continuous_until: Option<DateTime<Utc>>,
    /// Of a series.
    pub series: Option<SeriesProgress>,
    /// What is being done, or was, since the end came that its policy gives it.
    pub ending: Option<EndThen>,
    /// What its devices name as their time zones, each once; `None` stands for those that name none. Not on the wire.
    pub zones: Vec<Option<Arc<str>>>,
    /// How its maintenance windows are now, if it has any and devices wait for their turns.
    pub window: Option<WindowState>,
}

/// The row of a job for one device or module.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceJob {
    pub address: Address,
    pub job_id: JobId,
    pub job_type: &'static str,
    pub status: DeviceJobStatus,
    pub created: DateTime<Utc>,
    pub last_updated: DateTime<Utc>,
    pub start: Option<DateTime<Utc>>,
    pub end: Option<DateTime<Utc>>,
    pub outcome: Option<DeviceJobOutcome>,
    /// The device's stage in a job with a policy, counted from 1.
    pub stage: Option<u32>,
    /// The twin is updated, and what makes the device succeed has not been reported yet.
    pub is_awaited: bool,
    /// How often the device was asked.
    pub attempts: u32,
    /// When it is tried again, if it is.
    pub next_attempt: Option<DateTime<Utc>>,
    /// The step that is under way or was the last, counted from 1: the job's own action.
    pub step: u32,
    /// Grows by one with each change of the row, from 1. A row that has ended keeps its version.
    pub version: u64,
}

/// How a device's part of a job ended.
#[derive(Debug, Clone, PartialEq)]
pub enum DeviceJobOutcome {
    /// The device answered, with whatever status.
    Method(MethodResponse),
    /// The twin was updated.
    TwinUpdated,
    Error {
        code: String,
        description: String,
    },
}

impl JobAction {
    /// `type` on the wire.
    pub fn job_type(&self) -> &'static str {
        match self {
            JobAction::Method(_) => "scheduleDeviceMethod",
            JobAction::UpdateTwin(_) => "scheduleUpdateTwin",
        }
    }
}

impl JobRequest {
    /// Read the body of `PUT /jobs/v2/{jobId}`.
    ///
    /// # Errors
    /// The codes and texts that Azure gives: an unknown type is 400000 `BadRequest`; an `etag` other than `*` is
    /// 412001; `desired` outside `properties` is 400004.
    pub fn from_json(job_id: JobId, body: &[u8]) -> Result<JobRequest, HubError> {
        JobRequest::read(job_id, &json_of(body)?, false)
    }

    /// Read the body of a preview: as that of a job, but it needs no id, and its lists may be long.
    ///
    /// # Errors
    /// As [`JobRequest::from_json`].
    pub fn of_preview(body: &Value) -> Result<JobRequest, HubError> {
        let id = body["jobId"].as_str().unwrap_or("preview");
        let id = JobId::parse(id).map_err(|error| HubError::new(ErrorCode::ArgumentInvalid, error.to_string()))?;
        JobRequest::read(id, body, true)
    }

    fn read(job_id: JobId, body: &Value, is_preview: bool) -> Result<JobRequest, HubError> {
        let invalid = |text: String| HubError::new(ErrorCode::ArgumentInvalid, text);
        let body = body.as_object().ok_or_else(|| invalid("the body must be a JSON object".into()))?;
        if let Some(other) = body.get("jobId").filter(|v| !v.is_null())
            && other.as_str() != Some(job_id.as_str())
        {
            return Err(invalid(format!("the body's jobId {other} is not the path's {job_id:?}")));
        }
        let action = JobAction::from_body(body)?;
        let query_condition = present(body, "queryCondition")?
            .as_str()
            .ok_or_else(|| invalid("queryCondition must be a string".into()))?
            .to_owned();
        if query_condition.chars().count() > MAX_CONDITION {
            return Err(invalid(format!("queryCondition is longer than {MAX_CONDITION} characters")));
        }
        let start_time = match body.get("startTime") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(given) => Some(given.as_str().and_then(time::parse).ok_or_else(|| {
                invalid(format!("startTime {given} is not an ISO 8601 time with a zone, such as 2026-11-24T08:40:04Z"))
            })?),
        };
        let max_execution_time_in_seconds = match body.get("maxExecutionTimeInSeconds") {
            None | Some(Value::Null) => DEFAULT_MAX_EXECUTION,
            Some(given) => given
                .as_u64()
                .and_then(|seconds| u32::try_from(seconds).ok())
                .filter(|seconds| (1..=MAX_MAX_EXECUTION).contains(seconds))
                .ok_or_else(|| invalid(format!("maxExecutionTimeInSeconds must be within [1; {MAX_MAX_EXECUTION}]")))?,
        };
        let latch = body.get("latch").unwrap_or(&Value::Null);
        let window = max_execution_time_in_seconds;
        let job = Described { action: &action, condition: &query_condition, window, is_preview };
        let Extension { policy, targets, then, recurrence } = Extension::from_json(latch, &job)?;
        Ok(JobRequest {
            job_id,
            action,
            query_condition,
            start_time,
            max_execution_time_in_seconds,
            policy,
            targets,
            then,
            recurrence,
        })
    }

    /// When it ends, if its time begins then and it is not paused: by its policy, or with the time that it may take.
    pub fn ends(&self, from: DateTime<Utc>) -> DateTime<Utc> {
        let after = |seconds: u32| from + TimeDelta::seconds(seconds.into());
        let rule = self.policy.as_ref().and_then(|policy| policy.end);
        let by_rule = rule.and_then(|end| end.at.or(end.after_in_seconds.map(after)));
        let window = after(self.max_execution_time_in_seconds);
        by_rule.map_or(window, |end| end.min(window))
    }

    /// Whether devices that come to match its condition while it runs are in it, too.
    pub fn is_continuous(&self) -> bool {
        self.targets.as_ref().is_some_and(|targets| targets.continuous)
    }

    /// The body that a client sends, and that a journal keeps.
    pub fn to_json(&self) -> Value {
        let mut body = Map::new();
        body.insert("jobId".into(), json!(self.job_id));
        self.action.write_request(&mut body);
        body.insert("queryCondition".into(), json!(self.query_condition));
        if let Some(start) = self.start_time {
            body.insert("startTime".into(), json!(time::format(start)));
        }
        body.insert("maxExecutionTimeInSeconds".into(), json!(self.max_execution_time_in_seconds));
        if let Some(latch) = self.extension() {
            body.insert("latch".into(), latch);
        }
        Value::Object(body)
    }

    /// The whole body that the service answers a PUT with. The field `latch` comes back, so that its sender knows that it counts.
    pub fn created(&self) -> Value {
        let mut body =
            json!({"jobId": self.job_id, "type": self.action.job_type(), "status": JobStatus::Queued.name()});
        if let Some(latch) = self.extension() {
            body["latch"] = latch;
        }
        body
    }
}

fn json_of(body: &[u8]) -> Result<Value, HubError> {
    serde_json::from_slice(body)
        .map_err(|e| HubError::new(ErrorCode::IotHubFormatError, format!("the body is not JSON: {e}")))
}

fn present<'a>(body: &'a Map<String, Value>, name: &str) -> Result<&'a Value, HubError> {
    body.get(name)
        .filter(|value| !value.is_null())
        .ok_or_else(|| HubError::new(ErrorCode::ArgumentNull, format!("{name} is missing")))
}

impl JobAction {
    fn from_body(body: &Map<String, Value>) -> Result<JobAction, HubError> {
        match body.get("type").and_then(Value::as_str) {
            Some("scheduleDeviceMethod") => {
                let method = present(body, "cloudToDeviceMethod")?;
                Ok(JobAction::Method(DirectMethod::from_json(method.to_string().as_bytes())?))
            }
            Some("scheduleUpdateTwin") => {
                Ok(JobAction::UpdateTwin(TwinUpdate::from_json(present(body, "updateTwin")?)?))
            }
            _ => Err(HubError::new(ErrorCode::GenericBadRequest, "BadRequest")),
        }
    }

    /// As a client sends it.
    fn write_request(&self, body: &mut Map<String, Value>) {
        self.write(body);
        if let JobAction::UpdateTwin(_) = self
            && let Some(update) = body.get_mut("updateTwin").and_then(Value::as_object_mut)
        {
            update.insert("etag".into(), json!("*"));
        }
    }

    fn write(&self, body: &mut Map<String, Value>) {
        body.insert("type".into(), json!(self.job_type()));
        match self {
            JobAction::Method(method) => body.insert("cloudToDeviceMethod".into(), json!(method)),
            JobAction::UpdateTwin(update) => body.insert("updateTwin".into(), update.to_json()),
        };
    }
}

impl TwinUpdate {
    fn from_json(value: &Value) -> Result<TwinUpdate, HubError> {
        let invalid = |text: &str| HubError::new(ErrorCode::ArgumentInvalid, text);
        let object = value.as_object().ok_or_else(|| invalid("updateTwin must be an object"))?;
        if object.get("etag").and_then(Value::as_str) != Some("*") {
            return Err(HubError::new(
                ErrorCode::PreconditionFailed,
                "updateTwin needs \"etag\": \"*\": a job updates many twins, whatever their etags",
            ));
        }
        if object.contains_key("desired") {
            return Err(invalid("desired belongs inside properties: {\"properties\": {\"desired\": {…}}}"));
        }
        let section = |parent: Option<&Map<String, Value>>, name: &str| match parent.and_then(|p| p.get(name)) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(section)) => Ok(Some(section.clone())),
            Some(_) => Err(invalid(&format!("{name} must be an object"))),
        };
        let tags = section(Some(object), "tags")?;
        let desired = section(object.get("properties").and_then(Value::as_object), "desired")?;
        Ok(TwinUpdate { tags, desired })
    }

    /// The body of `PATCH /twins/{id}` for this update.
    pub fn to_json(&self) -> Value {
        let mut update = Map::new();
        if let Some(tags) = &self.tags {
            update.insert("tags".into(), json!(tags));
        }
        if let Some(desired) = &self.desired {
            update.insert("properties".into(), json!({"desired": desired}));
        }
        Value::Object(update)
    }
}

impl JobStatus {
    pub const ALL: [JobStatus; 6] = [
        JobStatus::Queued,
        JobStatus::Scheduled,
        JobStatus::Running,
        JobStatus::Completed,
        JobStatus::Failed,
        JobStatus::Cancelled,
    ];

    pub fn name(self) -> &'static str {
        match self {
            JobStatus::Queued => "queued",
            JobStatus::Scheduled => "scheduled",
            JobStatus::Running => "running",
            JobStatus::Completed => "completed",
            JobStatus::Failed => "failed",
            JobStatus::Cancelled => "cancelled",
        }
    }

    /// Case-insensitive; `enqueued` is the documented synonym of `queued`.
    pub fn by_name(name: &str) -> Option<JobStatus> {
        if name.eq_ignore_ascii_case("enqueued") {
            return Some(JobStatus::Queued);
        }
        JobStatus::ALL.into_iter().find(|status| status.name().eq_ignore_ascii_case(name))
    }

    /// Completed, failed or cancelled: never changes again.
    pub fn is_terminal(self) -> bool {
        matches!(self, JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled)
    }
}

impl Hold {
    fn to_json(&self) -> Value {
        json!({"by": self.cause.name(), "reason": self.reason, "since": time::format(self.since)})
    }
}

impl HoldCause {
    const ALL: [HoldCause; 3] = [HoldCause::Operator, HoldCause::Approval, HoldCause::Rule];

    pub fn name(self) -> &'static str {
        match self {
            HoldCause::Operator => "operator",
            HoldCause::Approval => "approval",
            HoldCause::Rule => "rule",
        }
    }

    pub fn by_name(name: &str) -> Option<HoldCause> {
        HoldCause::ALL.into_iter().find(|cause| cause.name() == name)
    }
}

impl DeviceJobStatus {
    pub const ALL: [DeviceJobStatus; 6] = [
        DeviceJobStatus::Pending,
        DeviceJobStatus::Scheduled,
        DeviceJobStatus::Running,
        DeviceJobStatus::Completed,
        DeviceJobStatus::Failed,
        DeviceJobStatus::Canceled,
    ];

    pub fn name(self) -> &'static str {
        match self {
            DeviceJobStatus::Pending => "pending",
            DeviceJobStatus::Scheduled => "scheduled",
            DeviceJobStatus::Running => "running",
            DeviceJobStatus::Completed => "completed",
            DeviceJobStatus::Failed => "failed",
            DeviceJobStatus::Canceled => "canceled",
        }
    }

    pub fn by_name(name: &str) -> Option<DeviceJobStatus> {
        DeviceJobStatus::ALL.into_iter().find(|status| status.name() == name)
    }

    pub fn is_terminal(self) -> bool {
        matches!(self, DeviceJobStatus::Completed | DeviceJobStatus::Failed | DeviceJobStatus::Canceled)
    }
}

impl JobStatistics {
    pub fn to_json(self) -> Value {
        json!({
            "deviceCount": self.device_count,
            "failedCount": self.failed_count,
            "succeededCount": self.succeeded_count,
            "runningCount": self.running_count,
            "pendingCount": self.pending_count,
        })
    }
}

impl JobResponse {
    pub fn to_json(&self) -> Value {
        let mut body = Map::new();
        body.insert("jobId".into(), json!(self.request.job_id));
        body.insert("createdTime".into(), json!(time::format(self.created_time)));
        body.insert("startTime".into(), json!(time::format(self.start_time)));
        if let Some(end) = self.end_time {
            body.insert("endTime".into(), json!(time::format(end)));
        }
        body.insert("maxExecutionTimeInSeconds".into(), json!(self.request.max_execution_time_in_seconds));
        self.request.action.write(&mut body);
        body.insert("queryCondition".into(), json!(self.request.query_condition));
        body.insert("status".into(), json!(self.status.name()));
        if let Some(reason) = &self.failure_reason {
            body.insert("failureReason".into(), json!(reason));
        }
        if let Some(statistics) = self.statistics {
            body.insert("deviceJobStatistics".into(), statistics.to_json());
        }
        let progress = self.progress();
        let mut latch = self.request.extension();
        if !progress.is_empty() {
            // Also of a job as at Azure, whose devices can fail and which can be paused here.
            latch.get_or_insert_with(|| json!({"version": EXTENSION_VERSION}))["progress"] = Value::Object(progress);
        }
        if let Some(latch) = latch {
            body.insert("latch".into(), latch);
        }
        Value::Object(body)
    }

    /// Until when devices can come to a continuous job that runs, if its time began then, its pauses not counted.
    pub fn gathers_until(&self, from: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let is_running = self.status == JobStatus::Running && self.hold.is_none() && self.ending.is_none();
        (self.request.is_continuous() && is_running).then(|| self.request.ends(from))
    }

    /// How far it is, without what it does: for those who follow it.
    pub fn to_progress_json(&self) -> Value {
        let whole = self.to_json();
        let mut body = Map::new();
        for name in PROGRESS_FIELDS {
            if let Some(value) = whole.get(name) {
                body.insert((*name).to_owned(), value.clone());
            }
        }
        let progress = self.progress();
        if !progress.is_empty() {
            body.insert("latch".into(), json!({"version": EXTENSION_VERSION, "progress": progress}));
        }
        Value::Object(body)
    }

    /// `latch.progress`.
    fn progress(&self) -> Map<String, Value> {
        let mut progress = Map::new();
        if let (Some(number), Some(policy)) = (self.stage, &self.request.policy) {
            progress.insert("stage".into(), json!(number));
            progress.insert("stages".into(), json!(policy.stages.len().max(1)));
        }
        if let Some(hold) = &self.hold {
            progress.insert("paused".into(), hold.to_json());
        }
        let excludes = self.request.targets.as_ref().is_some_and(|targets| targets.exclude.is_some());
        if let Some(excluded) = self.excluded.filter(|_| excludes) {
            progress.insert("excluded".into(), json!(excluded));
        }
        if let Some(listed) = self.listed {
            progress.insert("listed".into(), json!(listed));
        }
        if let Some(until) = self.continuous_until {
            progress.insert("continuousUntil".into(), json!(time::format(until)));
        }
        if let Some(series) = &self.series {
            series.write(&mut progress);
        }
        if let Some(then) = self.ending {
            progress.insert("ending".into(), json!(then));
        }
        if let Some(window) = self.window {
            progress.insert("window".into(), window.to_json());
        }
        let failures = self.statistics.map(|statistics| statistics.failures).unwrap_or_default();
        if failures.total() > 0 {
            progress.insert("failures".into(), failures.to_json());
        }
        progress
    }
}

/// What changes of a job while it goes on, with what tells it from others.
const PROGRESS_FIELDS: &[&str] =
    &["jobId", "type", "status", "createdTime", "startTime", "endTime", "failureReason", "deviceJobStatistics"];

impl DeviceJobOutcome {
    fn write(&self, row: &mut Map<String, Value>) {
        match self {
            DeviceJobOutcome::Method(response) => {
                row.insert("outcome".into(), json!({"deviceMethodResponse": response}))
            }
            DeviceJobOutcome::TwinUpdated => row.insert("outcome".into(), json!({"deviceMethodResponse": null})),
            DeviceJobOutcome::Error { code, description } => {
                row.insert("error".into(), json!({"code": code, "description": description}))
            }
        };
    }
}

impl DeviceJob {
    /// A row of `SELECT * FROM devices.jobs`.
    pub fn to_json(&self) -> Value {
        let mut row = Map::new();
        row.insert("deviceId".into(), json!(self.address.device()));
        if let Some(module) = self.address.module() {
            row.insert("moduleId".into(), json!(module));
        }
        row.insert("jobId".into(), json!(self.job_id));
        row.insert("jobType".into(), json!(self.job_type));
        row.insert("status".into(), json!(self.status.name()));
        if let Some(start) = self.start {
            row.insert("startTimeUtc".into(), json!(time::format(start)));
        }
        if let Some(end) = self.end {
            row.insert("endTimeUtc".into(), json!(time::format(end)));
        }
        row.insert("createdDateTimeUtc".into(), json!(time::format(self.created)));
        row.insert("lastUpdatedDateTimeUtc".into(), json!(time::format(self.last_updated)));
        if let Some(outcome) = &self.outcome {
            outcome.write(&mut row);
        }
        let mut latch = json!({"attempts": self.attempts, "version": self.version});
        if let Some(number) = self.stage {
            latch["stage"] = json!(number);
            latch["awaited"] = json!(self.is_awaited);
        }
        if self.step > 1 {
            latch["step"] = json!(self.step);
        }
        if let Some(next) = self.next_attempt {
            latch["nextAttempt"] = json!(time::format(next));
        }
        if let (DeviceJobStatus::Failed, Some(outcome)) = (self.status, &self.outcome) {
            latch["failure"] = json!(FailureClass::of_outcome(outcome));
        }
        row.insert("latch".into(), latch);
        Value::Object(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> JobId {
        JobId::parse("j1").expect("an id")
    }

    #[test]
    fn the_tutorials_requests_are_read() {
        let method = br#"{"jobId":"j1","type":"scheduleDeviceMethod","cloudToDeviceMethod":{"methodName":"lockDoor","payload":null,
            "responseTimeoutInSeconds":15},"startTime":"2026-11-24T08:36:51.579Z","maxExecutionTimeInSeconds":300,
            "queryCondition":"deviceId IN ['myDeviceId']"}"#;
        let request = JobRequest::from_json(id(), method).expect("a job");
        assert_eq!(request.action.job_type(), "scheduleDeviceMethod");
        assert_eq!(request.max_execution_time_in_seconds, 300);
        assert_eq!(JobRequest::from_json(id(), request.to_json().to_string().as_bytes()), Ok(request));

        let twin = br#"{"type":"scheduleUpdateTwin","updateTwin":{"etag":"*","properties":{"desired":{"building":"43","floor":3}}},
            "queryCondition":"*","startTime":null}"#;
        let request = JobRequest::from_json(id(), twin).expect("a job");
        assert_eq!((request.start_time, request.max_execution_time_in_seconds), (None, DEFAULT_MAX_EXECUTION));
        assert_eq!(JobRequest::from_json(id(), request.to_json().to_string().as_bytes()), Ok(request));
    }

    #[test]
    fn a_policy_comes_back_wherever_the_job_does_and_without_one_there_is_no_field() {
        let plain = r#"{"type":"scheduleUpdateTwin","updateTwin":{"etag":"*","tags":{}},"queryCondition":"*"}"#;
        let policy = json!({"version": 1, "policy": {"rate": 5,
            "offline": {"waitInSeconds": 0, "then": "fail"}, "inDoubt": "again", "onAbort": "keep"}});
        let with = format!("{}, \"latch\": {policy}}}", &plain[..plain.len() - 1]);
        for (body, latch, progress) in
            [(plain, Value::Null, Value::Null), (with.as_str(), policy.clone(), json!({"stage": 1, "stages": 1}))]
        {
            let request = JobRequest::from_json(id(), body.as_bytes()).expect("a job");
            assert_eq!((&request.to_json()["latch"], &request.created()["latch"]), (&latch, &latch));
            assert_eq!(JobRequest::from_json(id(), request.to_json().to_string().as_bytes()).as_ref(), Ok(&request));
            let response = JobResponse {
                status: JobStatus::Running,
                created_time: DateTime::UNIX_EPOCH,
                start_time: DateTime::UNIX_EPOCH,
                end_time: None,
                failure_reason: None,
                statistics: None,
                stage: request.policy.as_ref().map(|_| 1),
                hold: None,
                excluded: None,
                listed: None,
                continuous_until: None,
                series: None,
                zones: Vec::new(),
                window: None,
                ending: None,
                request,
            };
            let mut shown = response.to_json()["latch"].clone();
            let shown_progress = shown.as_object_mut().and_then(|latch| latch.remove("progress"));
            assert_eq!((shown, shown_progress.unwrap_or_default()), (latch, progress));
        }
    }

    #[test]
    fn wrong_requests_get_azures_codes() {
        for (body, code) in [
            (r#"{"type":"scheduleTwinUpdate"}"#, ErrorCode::GenericBadRequest),
            (
                r#"{"type":"scheduleUpdateTwin","updateTwin":{"tags":{}},"queryCondition":"*"}"#,
                ErrorCode::PreconditionFailed,
            ),
            (
                r#"{"type":"scheduleUpdateTwin","updateTwin":{"etag":"*","desired":{}},"queryCondition":"*"}"#,
                ErrorCode::ArgumentInvalid,
            ),
            (r#"{"type":"scheduleUpdateTwin","updateTwin":{"etag":"*"}}"#, ErrorCode::ArgumentNull),
            (
                r#"{"type":"scheduleDeviceMethod","cloudToDeviceMethod":{},"queryCondition":"*"}"#,
                ErrorCode::ArgumentNull,
            ),
            (
                r#"{"jobId":"other","type":"scheduleUpdateTwin","updateTwin":{"etag":"*"},"queryCondition":"*"}"#,
                ErrorCode::ArgumentInvalid,
            ),
            (
                r#"{"type":"scheduleUpdateTwin","updateTwin":{"etag":"*"},"queryCondition":"*","latch":{"version":2}}"#,
                ErrorCode::ArgumentInvalid,
            ),
            ("{", ErrorCode::IotHubFormatError),
        ] {
            assert_eq!(JobRequest::from_json(id(), body.as_bytes()).map_err(|e| e.code), Err(code), "{body}");
        }
    }
}
