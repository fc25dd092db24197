//! The rules that a policy is made of.

use serde::{Deserialize, Serialize};

use super::failure::FailureClass;
use super::{MAX_RATE, MAX_RETRIES, range};
use crate::job::MAX_MAX_EXECUTION;
use crate::query::Condition;

/// Percent of a stage's devices that must succeed, if the stage does not say.
pub const DEFAULT_SUCCESS_THRESHOLD: u8 = 90;
/// Devices with an outcome before an abort rule is applied, if it does not say; as many as a canary's calls.
pub const DEFAULT_ABORT_MINIMUM: u32 = 10;
/// Seconds in which a device must report, if the policy does not say.
pub const DEFAULT_REPORT_TIMEOUT: u32 = 600;
/// By how much a rate grows, if it does not say.
pub const DEFAULT_RATE_FACTOR: u32 = 2;
/// Seconds before the first retry, if the rule does not say, doubled for each further one.
pub const DEFAULT_BACKOFF: u32 = 5;
/// The longest wait before a retry in seconds, if the rule does not say.
pub const DEFAULT_LONGEST_BACKOFF: u32 = 600;

/// A share of the devices, and what it takes to go on to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stage {
    /// Of all devices, 1 to 100, those of earlier stages included. `None` in a stage by condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// The job's devices for which it holds when the job begins, without those of earlier stages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
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
    /// After that the job is paused, until somebody approves of the next stage.
    #[serde(default, skip_serializing_if = "is_false")]
    pub approval: bool,
}

/// How many devices are started in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "the rate is a whole number, or an object with base, factor, maximum and growAfter")]
pub enum Rate {
    /// 1 to [`MAX_RATE`].
    Constant(u32),
    Growing(GrowingRate),
}

/// A rate that is multiplied whenever so many devices more have come through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrowingRate {
    /// Devices a second at first, 1 to [`MAX_RATE`].
    pub base: u32,
    /// By how much it is multiplied, 2 to 10.
    #[serde(default = "default_factor")]
    pub factor: u32,
    /// It grows no further, `base` to [`MAX_RATE`].
    #[serde(default = "default_maximum")]
    pub maximum: u32,
    pub grow_after: GrowAfter,
}

/// What a rate grows with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GrowAfter {
    /// So many devices have been started, at least 1.
    Started(u32),
    /// So many have succeeded, at least 1.
    Succeeded(u32),
}

/// When a job is aborted, whatever its stages say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AbortRule {
    /// More than so many percent failed, 0 to 99, of the devices with an outcome.
    pub failure_percent: u8,
    /// Which failures count; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<FailureClass>,
    /// But not before so many have an outcome, at least 1.
    #[serde(default = "default_minimum")]
    pub minimum: u32,
    /// Only outcomes of so many seconds up to now count; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_in_seconds: Option<u32>,
    /// The rule holds for each group of devices by itself, as `groupBy` has them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub per_group: bool,
}

/// Which failures are no outcome yet: the device is tried again, later each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryRule {
    /// The first rule that names a failure's class is the one that counts for it.
    pub on: Vec<FailureClass>,
    /// How often a device is tried again, 1 to [`MAX_RETRIES`], its retries by other rules included.
    pub retries: u32,
    /// Seconds before the first retry, doubled for each further one. What is waited is between half of it and all.
    #[serde(default = "default_backoff")]
    pub backoff_in_seconds: u32,
    #[serde(default = "default_longest_backoff")]
    pub maximum_backoff_in_seconds: u32,
}

/// Which of the jobs that want to begin something has its turn first: 0 to [`MAX_PRIORITY`], the highest first. Equal
/// ones take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Priority(pub u8);

/// The highest priority.
pub const MAX_PRIORITY: u8 = 9;

impl Default for Priority {
    fn default() -> Priority {
        Priority(5)
    }
}

impl Priority {
    pub(super) fn check(self) -> Result<(), String> {
        range("priority", self.0.into(), 0, MAX_PRIORITY.into())
    }

    pub(super) fn is_default(&self) -> bool {
        *self == Priority::default()
    }
}

/// What becomes of a device that is not connected when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OfflineRule {
    /// Seconds from when the job began for which devices are waited for: each runs when it connects. 0 is not at all.
    #[serde(default)]
    pub wait_in_seconds: u32,
    /// What it comes to after that.
    #[serde(default)]
    pub then: OfflineEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OfflineEnd {
    /// The device has failed.
    #[default]
    Fail,
    /// It is left out, which is no failure.
    Skip,
}

/// What becomes of a device that was perhaps reached when the host ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InDoubt {
    /// It is asked again: the job's action may be done twice.
    #[default]
    Again,
    /// It has failed.
    Fail,
}

/// What makes a device succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum SuccessRule {
    /// Of a twin job, instead of the update alone.
    Report(ReportRule),
    /// Of a method job, instead of any answer.
    Answer(AnswerRule),
}

/// The device reports to run what the update pins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReportRule {
    /// The plugin that the update pins to a version, in `desired.latch.plugins`.
    pub plugin: String,
    /// Seconds for which the device must go on to report it; a restart of the hub begins them anew.
    #[serde(default)]
    pub soak_in_seconds: u32,
    /// Seconds from the update until the device must have reported it, the time that it is offline included.
    #[serde(default = "default_timeout")]
    pub timeout_in_seconds: u32,
}

/// The device answers with one of these statuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AnswerRule {
    /// Ranges, each from its first to its last status. At least one.
    pub statuses: Vec<[i32; 2]>,
}

/// What is done when an abort rule is broken, or a stage fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnAbort {
    /// The job ends. Devices that it has reached stay as they are.
    #[default]
    Keep,
    /// The job ends, and the pin of [`ReportRule::plugin`] is removed from the twins that it has reached.
    Unpin,
    /// The job is paused. Resumed, it goes on with the rest, and the outcomes so far break no rule any more.
    Pause,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn default_threshold() -> u8 {
    DEFAULT_SUCCESS_THRESHOLD
}

fn default_factor() -> u32 {
    DEFAULT_RATE_FACTOR
}

fn default_maximum() -> u32 {
    MAX_RATE
}

fn default_minimum() -> u32 {
    DEFAULT_ABORT_MINIMUM
}

fn default_backoff() -> u32 {
    DEFAULT_BACKOFF
}

fn default_longest_backoff() -> u32 {
    DEFAULT_LONGEST_BACKOFF
}

fn default_timeout() -> u32 {
    DEFAULT_REPORT_TIMEOUT
}

impl Stage {
    /// With every default.
    pub fn new(percent: u8) -> Stage {
        Stage { percent: Some(percent), ..Stage::of_condition(None) }
    }

    /// As [`Stage::new`], of the devices for which a condition holds.
    pub fn of_condition(condition: Option<String>) -> Stage {
        Stage {
            percent: None,
            condition,
            success_threshold: DEFAULT_SUCCESS_THRESHOLD,
            minimum_sample: None,
            pause_in_seconds: 0,
            approval: false,
        }
    }

    /// For people: `5%`, or the condition.
    pub fn name(&self) -> String {
        /// Characters of a condition.
        const SHOWN: usize = 60;
        match (self.percent, &self.condition) {
            (Some(percent), _) => format!("{percent}%"),
            (None, Some(condition)) => condition.chars().take(SHOWN).collect(),
            (None, None) => "-".to_owned(),
        }
    }

    /// `before` is the percentage of the stage before.
    pub(super) fn check(&self, before: u8) -> Result<(), String> {
        match (self.percent, &self.condition) {
            (Some(percent), None) if percent <= before || percent > 100 => {
                return Err(format!("percent must be above {before} and at most 100: each stage adds devices"));
            }
            (Some(_), None) => {}
            (None, Some(_)) if before > 0 => {
                return Err("condition must come before the stages by percent, which are of all devices".into());
            }
            (None, Some(condition)) => match Condition::parse_job(condition) {
                Ok(parsed) if parsed.is_all() => {
                    return Err("condition holds for every device: say {\"percent\": 100}".into());
                }
                Ok(_) => {}
                Err(error) => return Err(format!("condition: {error}")),
            },
            (Some(_), Some(_)) | (None, None) => return Err("percent or condition must be there, and not both".into()),
        }
        range("successThreshold", u32::from(self.success_threshold), 0, 100)?;
        range("minimumSample", self.minimum_sample.unwrap_or(1), 1, u32::MAX)?;
        range("pauseInSeconds", self.pause_in_seconds, 0, MAX_MAX_EXECUTION)
    }
}

impl Rate {
    pub(super) fn check(&self) -> Result<(), String> {
        let GrowingRate { base, factor, maximum, grow_after } = match *self {
            Rate::Constant(rate) => return range("rate", rate, 1, MAX_RATE),
            Rate::Growing(growing) => growing,
        };
        range("rate.base", base, 1, MAX_RATE)?;
        range("rate.factor", factor, 2, 10)?;
        range("rate.maximum", maximum, base, MAX_RATE)?;
        let (name, count) = match grow_after {
            GrowAfter::Started(count) => ("rate.growAfter.started", count),
            GrowAfter::Succeeded(count) => ("rate.growAfter.succeeded", count),
        };
        range(name, count, 1, u32::MAX)
    }

    /// Devices a second, once so many have been started and so many have succeeded.
    pub fn after(&self, started: u64, succeeded: u64) -> u32 {
        let growing = match self {
            Rate::Constant(rate) => return *rate,
            Rate::Growing(growing) => growing,
        };
        let steps = match growing.grow_after {
            GrowAfter::Started(count) => started / u64::from(count.max(1)),
            GrowAfter::Succeeded(count) => succeeded / u64::from(count.max(1)),
        };
        // Beyond 32 doublings the maximum rules anyway.
        let steps = u32::try_from(steps.min(32)).unwrap_or(32);
        growing.base.saturating_mul(growing.factor.saturating_pow(steps)).min(growing.maximum)
    }
}

impl AbortRule {
    /// With every default.
    pub fn new(failure_percent: u8) -> AbortRule {
        AbortRule {
            failure_percent,
            on: Vec::new(),
            minimum: DEFAULT_ABORT_MINIMUM,
            window_in_seconds: None,
            per_group: false,
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        range("failurePercent", u32::from(self.failure_percent), 0, 99)?;
        range("minimum", self.minimum, 1, u32::MAX)?;
        range("windowInSeconds", self.window_in_seconds.unwrap_or(1), 1, MAX_MAX_EXECUTION)
    }

    /// Whether a failure of that class counts.
    pub fn counts(&self, class: FailureClass) -> bool {
        self.on.is_empty() || self.on.contains(&class)
    }
}

impl RetryRule {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.on.is_empty() {
            let names = FailureClass::ALL.map(FailureClass::name).join(", ");
            return Err(format!("on must name at least one class of failures: {names}"));
        }
        if self.on.contains(&FailureClass::Version) {
            return Err("on cannot name version: the device has its update, and asking again changes nothing".into());
        }
        if self.on.contains(&FailureClass::Unknown) {
            return Err("on cannot name unknown: inDoubt says what becomes of those devices".into());
        }
        if self.on.contains(&FailureClass::Window) {
            return Err("on cannot name window: a device waits for its maintenance window anyway".into());
        }
        range("retries", self.retries, 1, MAX_RETRIES)?;
        range("backoffInSeconds", self.backoff_in_seconds, 1, MAX_MAX_EXECUTION)?;
        let least = self.backoff_in_seconds;
        range("maximumBackoffInSeconds", self.maximum_backoff_in_seconds, least, MAX_MAX_EXECUTION)
    }

    /// Seconds before the retry after so many failures, at least 1, without jitter.
    pub fn backoff(&self, failures: u32) -> u32 {
        let doublings = failures.saturating_sub(1).min(31);
        self.backoff_in_seconds.saturating_mul(1 << doublings).min(self.maximum_backoff_in_seconds)
    }
}

impl OfflineRule {
    pub(super) fn check(&self) -> Result<(), String> {
        range("waitInSeconds", self.wait_in_seconds, 0, MAX_MAX_EXECUTION)
    }
}

impl AnswerRule {
    pub(in crate::job) fn check(&self) -> Result<(), String> {
        if self.statuses.is_empty() {
            return Err("statuses must have at least one range, such as [200, 299]".into());
        }
        match self.statuses.iter().find(|[first, last]| first > last) {
            Some(range) => Err(format!("statuses has {range:?}, which begins after its end")),
            None => Ok(()),
        }
    }

    pub fn includes(&self, status: i32) -> bool {
        self.statuses.iter().any(|[first, last]| (*first..=*last).contains(&status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_grows_by_what_it_is_told_to_and_no_further() {
        let growing = |grow_after| Rate::Growing(GrowingRate { base: 3, factor: 2, maximum: 20, grow_after });
        let by_started = growing(GrowAfter::Started(10));
        let rates = [0, 9, 10, 20, 30, 1000, u64::MAX].map(|started| by_started.after(started, 0));
        assert_eq!(rates, [3, 3, 6, 12, 20, 20, 20]);
        assert_eq!(growing(GrowAfter::Succeeded(10)).after(1000, 19), 6);
        assert_eq!(Rate::Constant(7).after(1000, 1000), 7);
    }

    #[test]
    fn waits_before_retries_double_up_to_the_longest() {
        let rule = RetryRule {
            on: vec![FailureClass::Timeout],
            retries: 9,
            backoff_in_seconds: 5,
            maximum_backoff_in_seconds: 60,
        };
        assert_eq!([1, 2, 3, 4, 5, 6, 100].map(|failures| rule.backoff(failures)), [5, 10, 20, 40, 60, 60, 60]);
    }

    #[test]
    fn a_status_counts_within_its_range() {
        let rule = AnswerRule { statuses: vec![[200, 299], [409, 409]] };
        let included = [199, 200, 299, 300, 409, 410].map(|status| rule.includes(status));
        assert_eq!(included, [false, true, true, false, true, false]);
    }
}
