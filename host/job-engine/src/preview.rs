//! What a job would come to, counted without making it.
//!
//! A [`Counter`] looks at one device after the other, so a million of them take no memory. What it has counted is a
//! [`Tally`], which can go to a client and come back with the next part of a long list.

mod estimate;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::{AbortRule, JobPolicy, Stage};
use iothub_protocol::job::targets::List;
use iothub_protocol::job::{JobAction, JobRequest};
use iothub_protocol::query::Condition;
use iothub_protocol::quota::tier::{Class, METHOD_STEP, Sku, Tier};
use iothub_protocol::time;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::engine::{Scope, includes, windows};
use crate::fleet::{Quota, Standing, Surveyed};
use estimate::{Pace, seconds};

/// Devices of the sample: those that have their turn first.
const SAMPLE: usize = 10;
/// A start that lies further back is told of: whoever gave it has perhaps mistaken the zone.
const PAST: TimeDelta = TimeDelta::seconds(60);

/// What was counted so far.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Tally {
    pub targets: u64,
    pub excluded: u64,
    /// Listed targets that do not exist.
    pub missing: u64,
    /// Targets that are disabled, `None` as long as nobody knows. So are the next two.
    pub disabled: Option<u64>,
    pub connected: Option<u64>,
    /// Connected, and a method would reach them now.
    pub listening: Option<u64>,
    /// Of each stage by condition, in their order.
    pub stages: Vec<u64>,
    /// How many targets are unfinished in jobs that run.
    pub overlaps: BTreeMap<String, u64>,
    /// Stages and ids of those that have their turn first.
    pub sample: Vec<(u32, String)>,
}

/// What a job is up against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) now: DateTime<Utc>,
    /// Of a series, when it first falls due.
    pub(crate) first: Option<DateTime<Utc>>,
    /// How many devices of a job may be in flight.
    pub(crate) in_flight: usize,
    /// The tier that the hub keeps to.
    pub(crate) own: Option<Quota>,
}

/// Counts the targets of a job.
#[derive(Debug)]
pub(crate) struct Counter {
    /// Sorted.
    excluded: Vec<Address>,
    /// Whether the first mark is that of those to leave out.
    excludes: bool,
    stages: usize,
    tally: Tally,
}

impl Counter {
    /// Count on from `tally` what a job is for, and what to look at for that.
    ///
    /// # Errors
    /// 400004 if a list is not there.
    pub(crate) fn new(scope: &Scope, tally: Tally) -> Result<(Counter, Vec<Condition>), HubError> {
        let mut excluded = match &scope.exclude_list {
            None => Vec::new(),
            Some(List::Inline(devices)) => devices.clone(),
            Some(List::Uploaded) => return Err(list_needed("latch.targets.exclude")),
        };
        excluded.sort_unstable();
        let mut tally = tally;
        tally.stages.resize(scope.stages.len(), 0);
        let marks = scope.exclude.iter().chain(&scope.stages).cloned().collect();
        let (excludes, stages) = (scope.exclude.is_some(), scope.stages.len());
        Ok((Counter { excluded, excludes, stages, tally }, marks))
    }

    /// A device or module that the job's condition or list has. Whether it is a target.
    pub(crate) fn count(&mut self, device: &Surveyed) -> bool {
        let Surveyed { address, marks, standing } = device;
        let is_excluded = self.excludes && marks & 1 == 1;
        if is_excluded || includes(&self.excluded, address) {
            self.tally.excluded += 1;
            return false;
        }
        let of_stages = if self.excludes { marks >> 1 } else { *marks };
        let place = (of_stages.trailing_zeros() as usize).min(self.stages);
        if let Some(count) = self.tally.stages.get_mut(place) {
            *count += 1;
        }
        self.target(address, place);
        let Standing { is_connected, is_listening, is_disabled } = *standing;
        for (count, is_so) in [
            (&mut self.tally.connected, is_connected),
            (&mut self.tally.listening, is_listening),
            (&mut self.tally.disabled, is_disabled),
        ] {
            if let Some(is_so) = is_so {
                *count.get_or_insert(0) += u64::from(is_so);
            }
        }
        true
    }

    /// A device or module of a list that does not exist. Whether it is a target.
    pub(crate) fn count_missing(&mut self, address: &Address) -> bool {
        if includes(&self.excluded, address) {
            self.tally.excluded += 1;
            return false;
        }
        self.tally.missing += 1;
        self.target(address, self.stages);
        true
    }

    /// So many of the targets are unfinished in another job.
    pub(crate) fn count_overlap(&mut self, job: &JobId, devices: u64) {
        if devices > 0 {
            *self.tally.overlaps.entry(job.to_string()).or_default() += devices;
        }
    }

    /// `place` counts from 0.
    fn target(&mut self, address: &Address, place: usize) {
        self.tally.targets += 1;
        let stage = u32::try_from(place).unwrap_or(u32::MAX).saturating_add(1);
        let sample = &mut self.tally.sample;
        let rank = |stage: u32, address: &Address| (stage, address.rollout_place());
        let is_before = |last: &(u32, String)| {
            Address::parse(&last.1).is_ok_and(|other| rank(stage, address) < rank(last.0, &other))
        };
        if sample.len() >= SAMPLE && !sample.last().is_some_and(is_before) {
            return;
        }
        let at = sample.iter().position(is_before).unwrap_or(sample.len());
        sample.insert(at, (stage, address.to_string()));
        sample.truncate(SAMPLE);
    }

    /// The answer for people and programs.
    pub(crate) fn finish(self, request: &JobRequest, terms: &Terms) -> Value {
        let tally = self.tally;
        let policy = request.policy.as_ref();
        let stages = stage_sizes(policy, &tally);
        let devices = terms.own.map(|own| devices_per_second(request, own));
        let pace = Pace { in_flight: terms.in_flight, devices };
        let begins = terms.first.or(request.start_time).map_or(terms.now, |start| start.max(terms.now));
        let rules = policy.map(|policy| policy.windows.as_slice()).unwrap_or_default();
        // How those are that go by devices' own zones depends on the devices.
        let opens = windows::first_opening(rules, begins);
        let wait = opens.map_or(0, |opens| (opens - begins).num_seconds().unsigned_abs());
        let (least, most) = seconds(request, &stages, pace);
        let whole = u64::from(request.max_execution_time_in_seconds);
        let (least, most) = (least + wait, (most + wait).min(whole.max(least + wait)));
        let mut shown = Map::new();
        for (name, count) in [
            ("targets", Some(tally.targets)),
            ("excluded", Some(tally.excluded)),
            ("missing", Some(tally.missing)),
            ("connected", tally.connected),
            ("listening", tally.listening),
            ("disabled", tally.disabled),
        ] {
            shown.insert(name.into(), json!(count));
        }
        let rows = policy.map(|policy| policy.stages.iter().zip(&stages).map(stage_row).collect::<Vec<_>>());
        shown.insert("stages".into(), json!(rows.unwrap_or_default()));
        let rules = policy.map(|policy| policy.abort.iter().map(|rule| abort_row(rule, tally.targets)));
        shown.insert("abort".into(), json!(rules.into_iter().flatten().collect::<Vec<_>>()));
        let overlaps = tally.overlaps.iter().map(|(job, devices)| json!({"jobId": job, "devices": devices}));
        shown.insert("overlaps".into(), overlaps.collect());
        shown.insert("seconds".into(), json!({"least": least, "most": most}));
        if let Some(opens) = opens {
            shown.insert("windowOpens".into(), json!(time::format(opens)));
        }
        shown.insert("firstOccurrence".into(), json!(terms.first.map(time::format)));
        let begins = request.start_time.map_or(terms.now, |start| start.max(terms.now));
        let lasts = (request.ends(begins) - begins).num_seconds().max(0);
        shown.insert("continuousForSeconds".into(), json!(request.is_continuous().then_some(lasts)));
        let azures = [Tier::S1, Tier::S3].into_iter().filter_map(|tier| Sku::new(tier, 1).ok().map(Quota::Jobs));
        let costs = terms.own.map(|own| (own, true)).into_iter().chain(azures.map(|quota| (quota, false)));
        let costs = costs.map(|(quota, is_own)| cost_row(request, tally.targets, quota, is_own));
        shown.insert("cost".into(), costs.collect());
        shown.insert("sample".into(), tally.sample.iter().map(|(_, id)| json!(id)).collect());
        shown.insert("warnings".into(), json!(warnings(request, &tally, least, terms)));
        shown.insert("tally".into(), json!(tally));
        Value::Object(shown)
    }
}

pub(crate) fn list_needed(at: &str) -> HubError {
    let text = format!("{at}: a preview takes the list itself, as \"devices\", in parts if it is long");
    HubError::new(ErrorCode::ArgumentInvalid, text)
}

/// How many devices each stage adds. One stage with all, if the policy has none.
fn stage_sizes(policy: Option<&JobPolicy>, tally: &Tally) -> Vec<u64> {
    let stages = policy.map(|policy| policy.stages.as_slice()).unwrap_or_default();
    let mut by_condition = tally.stages.iter().copied();
    let mut before = 0;
    let sizes: Vec<u64> = stages
        .iter()
        .map(|stage| {
            let size = match stage.percent {
                None => by_condition.next().unwrap_or(0),
                Some(percent) => (tally.targets * u64::from(percent)).div_ceil(100).saturating_sub(before),
            };
            before += size;
            size
        })
        .collect();
    if sizes.is_empty() { vec![tally.targets] } else { sizes }
}

fn stage_row((stage, devices): (&Stage, &u64)) -> Value {
    let mut row = match (&stage.condition, stage.percent) {
        (Some(condition), _) => json!({"condition": condition}),
        (None, percent) => json!({"percent": percent}),
    };
    row["devices"] = json!(devices);
    let may_fail = u64::from(100 - stage.success_threshold.min(100));
    if may_fail < 100 && *devices > 0 {
        row["abortsAtFailures"] = json!(devices * may_fail / 100 + 1);
    }
    row
}

/// How many failures break a rule: at the earliest, and of all targets.
fn abort_row(rule: &AbortRule, targets: u64) -> Value {
    let breaks = |ended: u64| ended * u64::from(rule.failure_percent) / 100 + 1;
    let mut row = json!(rule);
    row["soonestAtFailures"] = json!(breaks(u64::from(rule.minimum)));
    row["ofAllAtFailures"] = json!(breaks(targets));
    row
}

/// What the job takes of a tier: messages of the day's, and seconds at its pace.
fn cost_row(request: &JobRequest, targets: u64, quota: Quota, is_own: bool) -> Value {
    let (devices, sku) = (devices_per_second(request, quota), sku_of(quota));
    json!({
        "tier": sku.to_string(),
        "isOwn": is_own,
        "devicesPerSecond": (devices * 100.0).round() / 100.0,
        "seconds": (targets as f64 / devices).ceil() as u64,
        "messages": messages(request, targets, sku),
        "dailyMessages": sku.daily_messages(),
    })
}

/// A method's answer is a message, too.
fn messages(request: &JobRequest, targets: u64, sku: Sku) -> u64 {
    let of_one = |action: &JobAction| {
        let (size, answers) = match action {
            JobAction::Method(method) => (method.payload.to_string().len(), 1),
            JobAction::UpdateTwin(update) => (update.to_json().to_string().len(), 0),
        };
        (size as u64).div_ceil(sku.message_block()).max(1) + answers
    };
    targets * actions(request).map(of_one).sum::<u64>()
}

/// On how many devices everything can be done in a second.
fn devices_per_second(request: &JobRequest, quota: Quota) -> f64 {
    let seconds = |class: Class, amount: u64| {
        let rate = sku_of(quota).rate(class);
        amount as f64 * rate.per.as_secs_f64() / rate.amount.max(1) as f64
    };
    let of_one = match quota {
        Quota::Jobs(_) => seconds(Class::JobDevices, actions(request).count() as u64),
        Quota::Calls(_) => {
            let steps = actions(request).filter_map(|action| match action {
                JobAction::Method(method) => {
                    Some((method.payload.to_string().len() as u64).div_ceil(METHOD_STEP).max(1))
                }
                JobAction::UpdateTwin(_) => None,
            });
            let updates = actions(request).filter(|action| matches!(action, JobAction::UpdateTwin(_))).count();
            let methods = seconds(Class::Methods, steps.sum::<u64>() * METHOD_STEP);
            methods.max(seconds(Class::TwinUpdates, updates as u64))
        }
    };
    1.0 / of_one
}

fn sku_of(quota: Quota) -> Sku {
    let (Quota::Jobs(sku) | Quota::Calls(sku)) = quota;
    sku
}

/// The stages that [`Tally::stages`] counts.
fn by_condition(request: &JobRequest) -> impl Iterator<Item = &Stage> {
    let stages = request.policy.iter().flat_map(|policy| &policy.stages);
    stages.filter(|stage| stage.condition.is_some())
}

/// What is done on each device.
fn actions(request: &JobRequest) -> impl Iterator<Item = &JobAction> {
    std::iter::once(&request.action).chain(request.then.iter().map(|step| &step.action))
}

fn warnings(request: &JobRequest, tally: &Tally, least: u64, terms: &Terms) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |is_so: bool, text: &dyn Fn() -> String| {
        if is_so {
            warnings.push(text());
        }
    };
    let is_method = actions(request).any(|action| matches!(action, JobAction::Method(_)));
    let Tally { targets, missing, disabled, listening, .. } = *tally;
    warn(targets == 0 && !request.is_continuous(), &|| "no device is in the job".into());
    warn(missing > 0, &|| format!("{missing} of the listed devices do not exist, and will fail with DeviceNotFound"));
    let disabled = disabled.unwrap_or(0);
    warn(disabled > 0, &|| format!("{disabled} of the devices are disabled"));
    warn(is_method && targets > 0 && listening == Some(0), &|| "none of the devices listens for methods now".into());
    let is_nobody_there = listening.is_none() && tally.connected == Some(0);
    warn(is_method && targets > 0 && is_nobody_there, &|| "none of the devices is connected now".into());
    let start = request.start_time.filter(|start| *start < terms.now - PAST);
    warn(start.is_some(), &|| "the start lies in the past: the job begins at once".into());
    let window = u64::from(request.max_execution_time_in_seconds);
    warn(least > window, &|| format!("the job takes {least} s at least, and its time is over after {window} s"));
    for (stage, count) in by_condition(request).zip(&tally.stages) {
        let condition = stage.condition.as_deref().unwrap_or_default();
        warn(*count == 0 && targets > 0, &|| format!("no device is in the stage of {condition}"));
    }
    if let Some(own) = terms.own.map(sku_of) {
        let (messages, daily) = (messages(request, targets, own), own.daily_messages());
        warn(messages > daily, &|| format!("the job takes {messages} messages, and a hub of {own} has {daily} a day"));
    }
    warnings
}
