//! How a job goes over its devices: in stages, at a rate, and only as long as it goes well.

mod failure;
mod rules;
#[cfg(test)]
mod tests;
mod times;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::extension::{invalid, object};
use super::label::TagPath;
use super::{JobAction, MAX_MAX_EXECUTION};
use crate::error::HubError;
use crate::plugin_report;

pub use failure::{FailureClass, PolicyOutcome};
pub use rules::{
    AbortRule, AnswerRule, DEFAULT_ABORT_MINIMUM, DEFAULT_BACKOFF, DEFAULT_LONGEST_BACKOFF, DEFAULT_RATE_FACTOR,
    DEFAULT_REPORT_TIMEOUT, DEFAULT_SUCCESS_THRESHOLD, GrowAfter, GrowingRate, InDoubt, MAX_PRIORITY, OfflineEnd,
    OfflineRule, OnAbort, Priority, Rate, ReportRule, RetryRule, Stage, SuccessRule,
};
pub use times::{EndRule, EndThen, MAX_WINDOW, MaintenanceWindow, WindowState, WindowZone, ZoneTag};

/// Fastest rate, in devices a second. Beyond it no rate is the plainer wish.
pub const MAX_RATE: u32 = 10_000;
/// How often a device can be tried again.
pub const MAX_RETRIES: u32 = 100;
/// Rules of one kind that a policy may have.
pub const MAX_RULES: usize = 16;

/// A job's policy. Without any of its rules a job is as at Azure.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobPolicy {
    /// Growing shares of the devices, the last of them all. None is one stage with all devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Any of them aborts the job.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub abort: Vec<AbortRule>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retry: Vec<RetryRule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub succeed: Option<SuccessRule>,
    pub offline: OfflineRule,
    pub in_doubt: InDoubt,
    pub on_abort: OnAbort,
    /// A tag by which devices are told apart: a job's report and the reason of an abort say how each group does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_by: Option<TagPath>,
    #[serde(skip_serializing_if = "Priority::is_default")]
    pub priority: Priority,
    /// Devices are begun only while one of these is open; at any time if there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<MaintenanceWindow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<EndRule>,
    /// Seconds that a device may take from its first attempt on, all that follows and all waiting included, 1 to
    /// [`MAX_MAX_EXECUTION`]. The job's pauses do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_timeout_in_seconds: Option<u32>,
}

impl JobPolicy {
    /// Read the policy of a job with that action.
    ///
    /// # Errors
    /// 400004, naming the place and what is allowed there: for a field that is not known, a number out of its range,
    /// and rules that do not fit each other, the action or the job's time of so many seconds.
    pub(super) fn from_json(policy: &Value, action: &JobAction, window: u32) -> Result<JobPolicy, HubError> {
        let fields = object(policy, "latch.policy", FIELDS)?;
        let policy = JobPolicy {
            stages: part(fields, "stages")?.unwrap_or_default(),
            rate: part(fields, "rate")?,
            abort: abort(fields)?,
            retry: part(fields, "retry")?.unwrap_or_default(),
            succeed: succeed(fields)?,
            offline: part(fields, "offline")?.unwrap_or_default(),
            in_doubt: part(fields, "inDoubt")?.unwrap_or_default(),
            on_abort: part(fields, "onAbort")?.unwrap_or_default(),
            group_by: part(fields, "groupBy")?,
            priority: part(fields, "priority")?.unwrap_or_default(),
            windows: part(fields, "windows")?.unwrap_or_default(),
            end: part(fields, "end")?,
            device_timeout_in_seconds: part(fields, "deviceTimeoutInSeconds")?,
        };
        policy.check(action).map_err(|text| invalid(format!("latch.policy.{text}")))?;
        let shortest = policy.shortest();
        if shortest >= u64::from(window) {
            return Err(invalid(format!(
                "maxExecutionTimeInSeconds is {window}, and latch.policy alone pauses and soaks for {shortest} seconds"
            )));
        }
        if let Some(seconds) = policy.end.and_then(|end| end.after_in_seconds).filter(|seconds| *seconds >= window) {
            return Err(invalid(format!(
                "maxExecutionTimeInSeconds is {window}, so that latch.policy.end.afterInSeconds {seconds} never comes"
            )));
        }
        Ok(policy)
    }

    /// What each device must report to succeed, and the version that it must run, if that is what makes it succeed.
    pub fn awaited<'a>(&'a self, action: &'a JobAction) -> Option<(&'a ReportRule, &'a str)> {
        let SuccessRule::Report(rule) = self.succeed.as_ref()? else { return None };
        let JobAction::UpdateTwin(update) = action else { return None };
        let version = plugin_report::pins(update.desired.as_ref()?)?.get(&rule.plugin)?.as_str()?;
        Some((rule, version))
    }

    /// Whether a device that answered with that status has succeeded.
    pub fn is_success(&self, status: i32) -> bool {
        !matches!(&self.succeed, Some(SuccessRule::Answer(rule)) if !rule.includes(status))
    }

    /// The rule by which a device is tried again after a failure of that class.
    pub fn retry_of(&self, class: FailureClass) -> Option<&RetryRule> {
        self.retry.iter().find(|rule| rule.on.contains(&class))
    }

    /// Seconds that pass even if every device succeeds as soon as it may.
    fn shortest(&self) -> u64 {
        let soak = match &self.succeed {
            Some(SuccessRule::Report(rule)) => rule.soak_in_seconds,
            _ => 0,
        };
        let pauses = self.stages.iter().rev().skip(1).map(|stage| u64::from(stage.pause_in_seconds));
        pauses.sum::<u64>() + self.stages.len().max(1) as u64 * u64::from(soak)
    }

    fn check(&self, action: &JobAction) -> Result<(), String> {
        let mut before = 0;
        for (number, stage) in self.stages.iter().enumerate() {
            stage.check(before).map_err(|text| format!("stages[{number}].{text}"))?;
            before = stage.percent.unwrap_or(before);
        }
        if self.stages.iter().filter(|stage| stage.condition.is_some()).count() > MAX_RULES {
            return Err(format!("stages has more than {MAX_RULES} stages by condition"));
        }
        if !self.stages.is_empty() && before != 100 {
            return Err("stages must end with {\"percent\": 100}, as every device gets its turn".into());
        }
        self.rate.map_or(Ok(()), |rate| rate.check())?;
        self.priority.check()?;
        times::check_windows(&self.windows)?;
        self.end.map_or(Ok(()), |end| end.check()).map_err(|text| format!("end.{text}"))?;
        range("deviceTimeoutInSeconds", self.device_timeout_in_seconds.unwrap_or(1), 1, MAX_MAX_EXECUTION)?;
        if self.abort.len().max(self.retry.len()) > MAX_RULES {
            return Err(format!("abort and retry have at most {MAX_RULES} rules each"));
        }
        for (number, rule) in self.abort.iter().enumerate() {
            let at = if self.abort.len() == 1 { "abort".to_owned() } else { format!("abort[{number}]") };
            rule.check().map_err(|text| format!("{at}.{text}"))?;
            if rule.per_group && self.group_by.is_none() {
                return Err(format!("{at}.perGroup needs groupBy, which names the tag that makes the groups"));
            }
        }
        for (number, rule) in self.retry.iter().enumerate() {
            rule.check().map_err(|text| format!("retry[{number}].{text}"))?;
        }
        self.offline.check().map_err(|text| format!("offline.{text}"))?;
        if self.offline != OfflineRule::default() {
            if let JobAction::UpdateTwin(_) = action {
                return Err("offline is for methods: a twin is updated whether or not its device is connected".into());
            }
            if self.retry_of(FailureClass::Offline).is_some() {
                return Err("offline and a retry rule for offline do not go together: choose one".into());
            }
        }
        self.check_success(action)
    }

    fn check_success(&self, action: &JobAction) -> Result<(), String> {
        match (&self.succeed, action) {
            (Some(SuccessRule::Answer(rule)), JobAction::Method(_)) => {
                rule.check().map_err(|text| format!("succeed.{text}"))?;
            }
            (Some(SuccessRule::Answer(_)), JobAction::UpdateTwin(_)) => {
                return Err("succeed.statuses needs a scheduleDeviceMethod, whose answers have a status".into());
            }
            (Some(SuccessRule::Report(rule)), _) => {
                range("succeed.soakInSeconds", rule.soak_in_seconds, 0, MAX_MAX_EXECUTION - 1)?;
                range("succeed.timeoutInSeconds", rule.timeout_in_seconds, 1, MAX_MAX_EXECUTION)?;
                if self.awaited(action).is_none() {
                    let name = &rule.plugin;
                    return Err(format!(
                        "succeed.plugin needs a scheduleUpdateTwin that pins it: {{\"properties\": {{\"desired\": \
                         {{\"latch\": {{\"plugins\": {{{name:?}: \"1.2.3\"}}}}}}}}}}"
                    ));
                }
            }
            (None, _) => {}
        }
        match (self.on_abort, &self.succeed) {
            (OnAbort::Keep | OnAbort::Pause, _) | (OnAbort::Unpin, Some(SuccessRule::Report(_))) => Ok(()),
            (OnAbort::Unpin, _) => Err("onAbort \"unpin\" needs succeed, which names the plugin".into()),
        }
    }
}

/// One rule, or a list of them.
fn abort(fields: &Map<String, Value>) -> Result<Vec<AbortRule>, HubError> {
    match fields.get("abort") {
        Some(Value::Array(_)) => Ok(part(fields, "abort")?.unwrap_or_default()),
        _ => Ok(part(fields, "abort")?.into_iter().collect()),
    }
}

fn succeed(fields: &Map<String, Value>) -> Result<Option<SuccessRule>, HubError> {
    match fields.get("succeed") {
        Some(rule) if rule.get("statuses").is_some() => Ok(part(fields, "succeed")?.map(SuccessRule::Answer)),
        _ => Ok(part(fields, "succeed")?.map(SuccessRule::Report)),
    }
}

fn range(name: &str, value: u32, least: u32, most: u32) -> Result<(), String> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false if most == u32::MAX => Err(format!("{name} must be at least {least}")),
        false => Err(format!("{name} must be within [{least}; {most}]")),
    }
}

fn part<T: DeserializeOwned>(fields: &Map<String, Value>, name: &str) -> Result<Option<T>, HubError> {
    let Some(value) = fields.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
    T::deserialize(value).map(Some).map_err(|error| invalid(format!("latch.policy.{name}: {error}")))
}

const FIELDS: &[&str] = &[
    "stages",
    "rate",
    "abort",
    "retry",
    "succeed",
    "offline",
    "inDoubt",
    "onAbort",
    "groupBy",
    "priority",
    "windows",
    "end",
    "deviceTimeoutInSeconds",
];
