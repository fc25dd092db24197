//! How a job goes over its devices: in stages, at a rate, and only as long as it goes well. Azure has none of this; the
//! field `latch` beside its own is ignored by its clients. `host/job-engine/policy.schema.json` describes it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{JobAction, MAX_MAX_EXECUTION};
use crate::error::{ErrorCode, HubError};
use crate::plugin_report;

/// The version of the field `latch` that this crate reads and writes.
pub const POLICY_VERSION: u64 = 1;
/// Fastest rate, in devices a second. Beyond it no rate is the plainer wish.
pub const MAX_RATE: u32 = 10_000;

/// Percent of a stage's devices that must succeed, if the stage does not say.
pub const DEFAULT_SUCCESS_THRESHOLD: u8 = 90;
/// Devices with an outcome before an abort rule is applied, if it does not say; as many as a canary's calls.
pub const DEFAULT_ABORT_MINIMUM: u32 = 10;
/// Seconds in which a device must report, if the policy does not say.
pub const DEFAULT_REPORT_TIMEOUT: u32 = 600;

/// A job's policy. Without any of its rules a job is as at Azure.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobPolicy {
    /// Growing shares of the devices, the last of them all. None is one stage with all devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
    /// How many devices are started in a second, 1 to [`MAX_RATE`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<AbortRule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub succeed: Option<SuccessRule>,
    pub on_abort: OnAbort,
}

/// A share of the devices, and what it takes to go on to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stage {
    /// Of all devices, 1 to 100, those of earlier stages included.
    pub percent: u8,
    /// Percent of the stage's devices with an outcome that must have succeeded, 0 to 100. When so many have failed that
    /// it cannot be reached any more, the job is aborted.
    #[serde(default = "default_threshold")]
    pub success_threshold: u8,
    /// How many of the stage's devices must have an outcome; all of them if absent or if there are fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_sample: Option<u32>,
    /// Seconds from when that is so until the next stage.
    #[serde(default)]
    pub pause_in_seconds: u32,
}

/// When a job is aborted, whatever its stages say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AbortRule {
    /// More than so many percent failed, 0 to 99, of the devices with an outcome.
    pub failure_percent: u8,
    /// But not before so many have one, at least 1.
    #[serde(default = "default_minimum")]
    pub minimum: u32,
    /// Only outcomes of so many seconds up to now count; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_in_seconds: Option<u32>,
}

/// What makes a device of a twin job succeed, instead of the update alone: that it reports to run what the update pins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuccessRule {
    /// The plugin that the update pins to a version, in `desired.latch.plugins`.
    pub plugin: String,
    /// Seconds for which the device must go on to report it; a restart of the hub begins them anew.
    #[serde(default)]
    pub soak_in_seconds: u32,
    /// Seconds from the update until the device must have reported it, the time that it is offline included.
    #[serde(default = "default_timeout")]
    pub timeout_in_seconds: u32,
}

/// What becomes of the devices that an aborted job has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnAbort {
    /// They stay as they are.
    #[default]
    Keep,
    /// The pin of [`SuccessRule::plugin`] is removed from their twins.
    Unpin,
}

/// Why a device of a job with a policy has the outcome that it has; beside IoT Hub's own codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyOutcome {
    /// The device reports that the version fails on it, or that it does not run it.
    PluginVersionFailed,
    /// The device did not report in time that it runs the version.
    PluginVersionNotReported,
    /// The job was aborted before the device's turn, or before its outcome was known.
    JobAborted,
    /// The job was cancelled before the device's outcome was known.
    JobCancelled,
}

impl PolicyOutcome {
    /// The error's code in a device's row.
    pub fn code(self) -> &'static str {
        match self {
            PolicyOutcome::PluginVersionFailed => "PluginVersionFailed",
            PolicyOutcome::PluginVersionNotReported => "PluginVersionNotReported",
            PolicyOutcome::JobAborted => "JobAborted",
            PolicyOutcome::JobCancelled => "JobCancelled",
        }
    }
}

fn default_threshold() -> u8 {
    DEFAULT_SUCCESS_THRESHOLD
}

fn default_minimum() -> u32 {
    DEFAULT_ABORT_MINIMUM
}

fn default_timeout() -> u32 {
    DEFAULT_REPORT_TIMEOUT
}

impl JobPolicy {
    /// Read the field `latch` of a job with that action. `null` is no policy.
    ///
    /// # Errors
    /// 400004, naming the place and what is allowed there: for another version, a field that is not known, a number
    /// out of its range, and rules that do not fit the action or the job's time of so many seconds.
    pub(super) fn from_json(latch: &Value, action: &JobAction, window: u32) -> Result<Option<JobPolicy>, HubError> {
        if latch.is_null() {
            return Ok(None);
        }
        let fields = object(latch, "latch", &["version", "policy"])?;
        if fields.get("version").and_then(Value::as_u64) != Some(POLICY_VERSION) {
            return Err(invalid(format!("latch.version must be {POLICY_VERSION}, as this hub knows no other")));
        }
        let policy = fields.get("policy").ok_or_else(|| invalid("latch.policy is missing".into()))?;
        let fields = object(policy, "latch.policy", &["stages", "rate", "abort", "succeed", "onAbort"])?;
        let policy = JobPolicy {
            stages: part(fields, "stages")?.unwrap_or_default(),
            rate: part(fields, "rate")?,
            abort: part(fields, "abort")?,
            succeed: part(fields, "succeed")?,
            on_abort: part(fields, "onAbort")?.unwrap_or_default(),
        };
        policy.check(action)?;
        let shortest = policy.shortest();
        if shortest >= u64::from(window) {
            return Err(invalid(format!(
                "maxExecutionTimeInSeconds is {window}, and latch.policy alone pauses and soaks for {shortest} seconds"
            )));
        }
        Ok(Some(policy))
    }

    /// The field `latch`, with every default filled in.
    pub fn to_json(&self) -> Value {
        json!({"version": POLICY_VERSION, "policy": self})
    }

    /// The plugin and the version that each device must report, if that is what makes it succeed.
    pub fn pinned<'a>(&'a self, action: &'a JobAction) -> Option<(&'a str, &'a str)> {
        let plugin = self.succeed.as_ref()?.plugin.as_str();
        let JobAction::UpdateTwin(update) = action else { return None };
        Some((plugin, plugin_report::pins(update.desired.as_ref()?)?.get(plugin)?.as_str()?))
    }

    /// Seconds that pass even if every device succeeds as soon as it may.
    fn shortest(&self) -> u64 {
        let (stages, soak) =
            (self.stages.len().max(1) as u64, self.succeed.as_ref().map_or(0, |it| it.soak_in_seconds));
        let pauses = self.stages.iter().rev().skip(1).map(|stage| u64::from(stage.pause_in_seconds));
        pauses.sum::<u64>() + stages * u64::from(soak)
    }

    fn check(&self, action: &JobAction) -> Result<(), HubError> {
        let mut before = 0;
        for (number, stage) in self.stages.iter().enumerate() {
            let at = |text: String| invalid(format!("latch.policy.stages[{number}].{text}"));
            if stage.percent <= before || stage.percent > 100 {
                return Err(at(format!("percent must be above {before} and at most 100: each stage adds devices")));
            }
            before = stage.percent;
            range("successThreshold", u32::from(stage.success_threshold), 0, 100).map_err(at)?;
            range("minimumSample", stage.minimum_sample.unwrap_or(1), 1, u32::MAX).map_err(at)?;
            range("pauseInSeconds", stage.pause_in_seconds, 0, MAX_MAX_EXECUTION).map_err(at)?;
        }
        if !matches!(before, 0 | 100) {
            let text = "latch.policy.stages must end with {\"percent\": 100}, as every device gets its turn";
            return Err(invalid(text.into()));
        }
        let at = |text: String| invalid(format!("latch.policy.{text}"));
        range("rate", self.rate.unwrap_or(1), 1, MAX_RATE).map_err(at)?;
        if let Some(abort) = self.abort {
            let at = |text: String| invalid(format!("latch.policy.abort.{text}"));
            range("failurePercent", u32::from(abort.failure_percent), 0, 99).map_err(at)?;
            range("minimum", abort.minimum, 1, u32::MAX).map_err(at)?;
            range("windowInSeconds", abort.window_in_seconds.unwrap_or(1), 1, MAX_MAX_EXECUTION).map_err(at)?;
        }
        if let Some(succeed) = &self.succeed {
            let at = |text: String| invalid(format!("latch.policy.succeed.{text}"));
            range("soakInSeconds", succeed.soak_in_seconds, 0, MAX_MAX_EXECUTION - 1).map_err(at)?;
            range("timeoutInSeconds", succeed.timeout_in_seconds, 1, MAX_MAX_EXECUTION).map_err(at)?;
            if self.pinned(action).is_none() {
                let name = &succeed.plugin;
                return Err(at(format!(
                    "plugin needs a scheduleUpdateTwin that pins it: {{\"properties\": {{\"desired\": {{\"latch\": \
                     {{\"plugins\": {{{name:?}: \"1.2.3\"}}}}}}}}}}"
                )));
            }
        } else if self.on_abort == OnAbort::Unpin {
            return Err(at("onAbort \"unpin\" needs succeed, which names the plugin".into()));
        }
        Ok(())
    }
}

fn range(name: &str, value: u32, least: u32, most: u32) -> Result<(), String> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false if most == u32::MAX => Err(format!("{name} must be at least {least}")),
        false => Err(format!("{name} must be within [{least}; {most}]")),
    }
}

fn object<'a>(value: &'a Value, at: &str, known: &[&str]) -> Result<&'a Map<String, Value>, HubError> {
    let fields = value.as_object().ok_or_else(|| invalid(format!("{at} must be an object")))?;
    match fields.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(invalid(format!("{at} has no field {name:?}, only {}", known.join(", ")))),
        None => Ok(fields),
    }
}

fn part<T: DeserializeOwned>(fields: &Map<String, Value>, name: &str) -> Result<Option<T>, HubError> {
    let Some(value) = fields.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
    T::deserialize(value).map(Some).map_err(|error| invalid(format!("latch.policy.{name}: {error}")))
}

fn invalid(text: String) -> HubError {
    HubError::new(ErrorCode::ArgumentInvalid, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::TwinUpdate;

    fn pin() -> JobAction {
        let desired = json!({"latch": {"plugins": {"lock-door": "2.0.0"}}}).as_object().cloned();
        JobAction::UpdateTwin(TwinUpdate { tags: None, desired })
    }

    fn read(policy: &str) -> Result<JobPolicy, String> {
        let latch = serde_json::from_str(&format!(r#"{{"version": 1, "policy": {policy}}}"#)).expect(policy);
        let read = JobPolicy::from_json(&latch, &pin(), 1000).map_err(|error| error.message)?;
        Ok(read.expect("a policy"))
    }

    #[test]
    fn a_policy_is_read_with_its_defaults_and_written_back() {
        let stage = |percent| Stage { percent, success_threshold: 90, minimum_sample: None, pause_in_seconds: 0 };
        let staged = JobPolicy { stages: vec![stage(5), stage(100)], ..JobPolicy::default() };
        let whole = r#"{"stages": [{"percent": 100, "successThreshold": 50, "minimumSample": 3, "pauseInSeconds": 60}],
            "rate": 7, "abort": {"failurePercent": 10, "minimum": 20, "windowInSeconds": 600},
            "succeed": {"plugin": "lock-door", "soakInSeconds": 10, "timeoutInSeconds": 30}, "onAbort": "unpin"}"#;
        let stage = Stage { percent: 100, success_threshold: 50, minimum_sample: Some(3), pause_in_seconds: 60 };
        let plugin = || "lock-door".to_owned();
        for (text, expected) in [
            ("{}", JobPolicy::default()),
            (r#"{"stages": [], "rate": null, "onAbort": "keep"}"#, JobPolicy::default()),
            (r#"{"stages": [{"percent": 5}, {"percent": 100}]}"#, staged),
            (
                r#"{"abort": {"failurePercent": 0}, "succeed": {"plugin": "lock-door"}}"#,
                JobPolicy {
                    abort: Some(AbortRule { failure_percent: 0, minimum: 10, window_in_seconds: None }),
                    succeed: Some(SuccessRule { plugin: plugin(), soak_in_seconds: 0, timeout_in_seconds: 600 }),
                    ..JobPolicy::default()
                },
            ),
            (
                whole,
                JobPolicy {
                    stages: vec![stage],
                    rate: Some(7),
                    abort: Some(AbortRule { failure_percent: 10, minimum: 20, window_in_seconds: Some(600) }),
                    succeed: Some(SuccessRule { plugin: plugin(), soak_in_seconds: 10, timeout_in_seconds: 30 }),
                    on_abort: OnAbort::Unpin,
                },
            ),
        ] {
            assert_eq!(read(text).as_ref(), Ok(&expected), "{text}");
            assert_eq!(JobPolicy::from_json(&expected.to_json(), &pin(), 1000), Ok(Some(expected)), "{text}");
        }
        assert_eq!(JobPolicy::from_json(&Value::Null, &pin(), 1000), Ok(None));
    }

    #[test]
    fn what_is_not_known_or_not_possible_is_refused_with_its_place() {
        for (policy, text) in [
            ("[]", "latch.policy must be an object"),
            (r#"{"stage": []}"#, r#"latch.policy has no field "stage", only stages, rate, abort, succeed, onAbort"#),
            (r#"{"stages": [{}]}"#, "latch.policy.stages: missing field `percent`"),
            (r#"{"stages": [{"percent": 5, "soak": 1}]}"#, "latch.policy.stages: unknown field `soak`"),
            (r#"{"stages": [{"percent": "5"}]}"#, "latch.policy.stages: invalid type"),
            (r#"{"stages": [{"percent": 0}]}"#, "latch.policy.stages[0].percent must be above 0"),
            (r#"{"stages": [{"percent": 5}, {"percent": 5}]}"#, "latch.policy.stages[1].percent must be above 5"),
            (r#"{"stages": [{"percent": 101}]}"#, "latch.policy.stages[0].percent must be above 0 and at most 100"),
            (r#"{"stages": [{"percent": 50}]}"#, "latch.policy.stages must end with"),
            (r#"{"stages": [{"percent": 100, "successThreshold": 101}]}"#, "successThreshold must be within [0; 100]"),
            (r#"{"stages": [{"percent": 100, "minimumSample": 0}]}"#, "minimumSample must be at least 1"),
            (r#"{"stages": [{"percent": 100, "pauseInSeconds": 2592001}]}"#, "pauseInSeconds must be within"),
            (r#"{"rate": 0}"#, "latch.policy.rate must be within [1; 10000]"),
            (r#"{"rate": -1}"#, "latch.policy.rate: invalid value"),
            (r#"{"abort": {}}"#, "latch.policy.abort: missing field `failurePercent`"),
            (r#"{"abort": {"failurePercent": 100}}"#, "latch.policy.abort.failurePercent must be within [0; 99]"),
            (r#"{"abort": {"failurePercent": 1, "minimum": 0}}"#, "latch.policy.abort.minimum must be at least 1"),
            (r#"{"abort": {"failurePercent": 1, "windowInSeconds": 0}}"#, "abort.windowInSeconds must be within"),
            (r#"{"succeed": {}}"#, "latch.policy.succeed: missing field `plugin`"),
            (r#"{"succeed": {"plugin": "lamp"}}"#, r#"plugin needs a scheduleUpdateTwin that pins it: {"properties""#),
            (r#"{"succeed": {"plugin": "lock-door", "timeoutInSeconds": 0}}"#, "timeoutInSeconds must be within"),
            (
                r#"{"stages": [{"percent": 50, "pauseInSeconds": 800}, {"percent": 100, "pauseInSeconds": 999}],
                    "succeed": {"plugin": "lock-door", "soakInSeconds": 100}}"#,
                "maxExecutionTimeInSeconds is 1000, and latch.policy alone pauses and soaks for 1000 seconds",
            ),
            (r#"{"onAbort": "explode"}"#, "latch.policy.onAbort: unknown variant `explode`"),
            (r#"{"onAbort": "unpin"}"#, "onAbort \"unpin\" needs succeed"),
        ] {
            let refused = read(policy).expect_err(policy);
            assert!(refused.contains(text), "{policy}: {refused}");
        }
        for latch in [json!(1), json!({}), json!({"version": 2, "policy": {}}), json!({"version": 1})] {
            let refused = JobPolicy::from_json(&latch, &pin(), 1000).map_err(|error| error.code);
            assert_eq!(refused, Err(ErrorCode::ArgumentInvalid), "{latch}");
        }
    }
}
