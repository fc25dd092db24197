//! The field `latch` of a job: what Azure has not. Its clients ignore the field.
//! `host/job-engine/policy.schema.json` describes it.

use serde_json::{Map, Value, json};

use super::policy::JobPolicy;
use super::recurrence::Recurrence;
use super::steps::{self, Step};
use super::targets::{JobTargets, same_source};
use super::{JobAction, JobRequest};
use crate::error::{ErrorCode, HubError};

/// The version of the field that this crate reads and writes.
pub const EXTENSION_VERSION: u64 = 1;

/// What the field holds.
#[derive(Debug, Default)]
pub(super) struct Extension {
    pub(super) policy: Option<JobPolicy>,
    pub(super) targets: Option<JobTargets>,
    pub(super) then: Vec<Step>,
    pub(super) recurrence: Option<Recurrence>,
}

/// The rest of the job, as its extension has to fit it.
pub(super) struct Described<'a> {
    pub(super) action: &'a JobAction,
    pub(super) condition: &'a str,
    /// In seconds.
    pub(super) window: u32,
    /// For a look at it only: its lists may be as long as its body.
    pub(super) is_preview: bool,
}

impl Extension {
    /// Read the field of a job. `null` is nothing.
    ///
    /// # Errors
    /// 400004, naming the place and what is allowed there, for another version and a field that is not known; and as
    /// each part says.
    pub(super) fn from_json(latch: &Value, job: &Described<'_>) -> Result<Extension, HubError> {
        if latch.is_null() {
            return Ok(Extension::default());
        }
        let fields = object(latch, "latch", FIELDS)?;
        if fields.get("version").and_then(Value::as_u64) != Some(EXTENSION_VERSION) {
            return Err(invalid(format!("latch.version must be {EXTENSION_VERSION}, as this hub knows no other")));
        }
        let given = |name: &str| fields.get(name).filter(|value| !value.is_null());
        let policy = given("policy").map(|policy| JobPolicy::from_json(policy, job.action, job.window)).transpose()?;
        let targets = given("targets")
            .map(|targets| JobTargets::from_json(targets, job.condition, job.is_preview))
            .transpose()?;
        let then = given("then").map(|then| steps::from_json(then, job.action)).transpose()?.unwrap_or_default();
        if !then.is_empty() && policy.as_ref().is_some_and(|policy| policy.awaited(job.action).is_some()) {
            return Err(invalid(
                "latch.then and policy.succeed.plugin do not go together: wait with a step's when".into(),
            ));
        }
        let is_listed = targets.as_ref().is_some_and(|targets| targets.list.is_some());
        for (number, stage) in policy.iter().flat_map(|policy| &policy.stages).enumerate().filter(|_| !is_listed) {
            let at = || format!("latch.policy.stages[{number}].condition");
            stage.condition.as_ref().map_or(Ok(()), |text| same_source(&at(), text, job.condition))?;
        }
        let recurrence = Recurrence::from_json(given("schedule"), given("series"))?;
        if given("schedule").is_some() && targets.as_ref().is_some_and(JobTargets::is_uploaded) {
            return Err(invalid(
                "latch.schedule and an uploaded list do not go together: the list is of one job".into(),
            ));
        }
        let has_end = policy.as_ref().is_some_and(|policy| policy.end.is_some_and(|end| end.at.is_some()));
        if given("schedule").is_some() && has_end {
            return Err(invalid(
                "latch.schedule and policy.end.at do not go together: end each job afterInSeconds, and the series until"
                    .into(),
            ));
        }
        Ok(Extension { policy, targets, then, recurrence })
    }
}

impl JobRequest {
    /// The field `latch`, with every default filled in; `None` for a job as at Azure.
    pub fn extension(&self) -> Option<Value> {
        let mut fields = Map::new();
        if let Some(policy) = &self.policy {
            fields.insert("policy".into(), json!(policy));
        }
        if let Some(targets) = &self.targets {
            fields.insert("targets".into(), targets.to_json());
        }
        if !self.then.is_empty() {
            fields.insert("then".into(), self.then.iter().map(Step::to_json).collect());
        }
        match &self.recurrence {
            Some(Recurrence::Series(schedule)) => _ = fields.insert("schedule".into(), json!(schedule)),
            Some(Recurrence::Occurrence(occurrence)) => _ = fields.insert("series".into(), json!(occurrence)),
            None => {}
        }
        if fields.is_empty() {
            return None;
        }
        fields.insert("version".into(), json!(EXTENSION_VERSION));
        Some(Value::Object(fields))
    }
}

pub(super) fn object<'a>(value: &'a Value, at: &str, known: &[&str]) -> Result<&'a Map<String, Value>, HubError> {
    let fields = value.as_object().ok_or_else(|| invalid(format!("{at} must be an object")))?;
    match fields.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(invalid(format!("{at} has no field {name:?}, only {}", known.join(", ")))),
        None => Ok(fields),
    }
}

pub(super) fn invalid(text: String) -> HubError {
    HubError::new(ErrorCode::ArgumentInvalid, text)
}

const FIELDS: &[&str] = &["version", "policy", "targets", "then", "schedule", "series"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::TwinUpdate;

    #[test]
    fn what_is_no_extension_is_refused_and_nothing_is_none() {
        let action = JobAction::UpdateTwin(TwinUpdate::default());
        let job = Described { action: &action, condition: "*", window: 1000, is_preview: false };
        for latch in [json!(1), json!({}), json!({"version": 2, "policy": {}}), json!({"version": 1, "rules": {}})] {
            let refused = Extension::from_json(&latch, &job).map_err(|error| error.code).err();
            assert_eq!(refused, Some(ErrorCode::ArgumentInvalid), "{latch}");
        }
        for latch in [Value::Null, json!({"version": 1}), json!({"version": 1, "policy": null})] {
            assert_eq!(Extension::from_json(&latch, &job).expect("nothing").policy, None, "{latch}");
        }
    }
}
