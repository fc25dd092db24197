//! What a job does on a device after its own action: further actions, each if the one before came to what it should.

use serde_json::{Map, Value, json};

use super::extension::{invalid, object};
use super::policy::AnswerRule;
use super::{JobAction, MAX_CONDITION, MAX_MAX_EXECUTION};
use crate::error::HubError;
use crate::query::Condition;

/// Steps that may follow a job's own action.
pub const MAX_STEPS: usize = 16;

/// A further action, once the one before has succeeded on the device.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub action: JobAction,
    pub when: StepCondition,
}

/// What has to be so before a step. Without any of it, it is always.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepCondition {
    /// The answer before has one of these statuses.
    pub answer: Option<AnswerRule>,
    /// The device's twin fulfils a condition, in time.
    pub twin: Option<TwinWait>,
    pub otherwise: Otherwise,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TwinWait {
    /// As the `queryCondition` of a job.
    pub condition: String,
    /// Seconds for which it is waited for; 0 is one look.
    pub within_in_seconds: u32,
}

/// What a device comes to where the condition of a step is not fulfilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Otherwise {
    /// It has failed.
    #[default]
    Fail,
    /// It has succeeded with what was done until then.
    Finish,
}

/// Read the list `latch.then` of a job with that action.
///
/// # Errors
/// 400004, naming the step and what is wrong with it; for an action, as a job's own.
pub fn from_json(then: &Value, first: &JobAction) -> Result<Vec<Step>, HubError> {
    let list = then.as_array().ok_or_else(|| invalid("latch.then must be a list of steps".into()))?;
    if list.len() > MAX_STEPS {
        return Err(invalid(format!("latch.then has more than {MAX_STEPS} steps")));
    }
    let mut steps: Vec<Step> = Vec::with_capacity(list.len());
    for (number, step) in list.iter().enumerate() {
        let at = format!("latch.then[{number}]");
        let fields = object(step, &at, &["type", "cloudToDeviceMethod", "updateTwin", "when"])?;
        let action = JobAction::from_body(fields)
            .map_err(|error| HubError { message: format!("{at}: {}", error.message), ..error })?;
        let when = fields.get("when").filter(|when| !when.is_null());
        let when = when.map(|when| StepCondition::from_json(when, &format!("{at}.when"))).transpose()?;
        let when = when.unwrap_or_default();
        let before = steps.last().map_or(first, |step| &step.action);
        if when.answer.is_some() && !matches!(before, JobAction::Method(_)) {
            return Err(invalid(format!(
                "{at}.when.statuses needs a scheduleDeviceMethod before it, which is answered"
            )));
        }
        steps.push(Step { action, when });
    }
    Ok(steps)
}

impl Step {
    pub(super) fn to_json(&self) -> Value {
        let mut body = Map::new();
        self.action.write_request(&mut body);
        if self.when != StepCondition::default() {
            body.insert("when".into(), self.when.to_json());
        }
        Value::Object(body)
    }
}

impl StepCondition {
    fn from_json(when: &Value, at: &str) -> Result<StepCondition, HubError> {
        let fields = object(when, at, &["statuses", "condition", "withinInSeconds", "otherwise"])?;
        let given = |name: &str| fields.get(name).filter(|value| !value.is_null());
        let answer = match given("statuses") {
            None => None,
            Some(statuses) => {
                let rule: AnswerRule = serde_json::from_value(json!({"statuses": statuses}))
                    .map_err(|error| invalid(format!("{at}.statuses: {error}")))?;
                rule.check().map_err(|text| invalid(format!("{at}.{text}")))?;
                Some(rule)
            }
        };
        let within =
            match given("withinInSeconds") {
                None => None,
                Some(value) => {
                    let seconds = value.as_u64().and_then(|seconds| u32::try_from(seconds).ok());
                    let seconds = seconds.filter(|seconds| *seconds <= MAX_MAX_EXECUTION);
                    Some(seconds.ok_or_else(|| {
                        invalid(format!("{at}.withinInSeconds must be within [0; {MAX_MAX_EXECUTION}]"))
                    })?)
                }
            };
        let twin = match (given("condition"), within) {
            (None, None) => None,
            (None, Some(_)) => {
                return Err(invalid(format!("{at}.withinInSeconds needs condition, which is waited for")));
            }
            (Some(condition), within) => {
                let text = condition.as_str().filter(|text| text.chars().count() <= MAX_CONDITION);
                let text = text.ok_or_else(|| {
                    invalid(format!(
                        "{at}.condition must be a condition on twins of at most {MAX_CONDITION} characters"
                    ))
                })?;
                Condition::parse_job(text).map_err(|error| invalid(format!("{at}.condition: {error}")))?;
                Some(TwinWait { condition: text.to_owned(), within_in_seconds: within.unwrap_or(0) })
            }
        };
        let otherwise = match given("otherwise").map(Value::as_str) {
            None | Some(Some("fail")) => Otherwise::Fail,
            Some(Some("finish")) => Otherwise::Finish,
            Some(_) => return Err(invalid(format!("{at}.otherwise must be \"fail\" or \"finish\""))),
        };
        Ok(StepCondition { answer, twin, otherwise })
    }

    fn to_json(&self) -> Value {
        let mut fields = Map::new();
        if let Some(rule) = &self.answer {
            fields.insert("statuses".into(), json!(rule.statuses));
        }
        if let Some(TwinWait { condition, within_in_seconds }) = &self.twin {
            fields.insert("condition".into(), json!(condition));
            fields.insert("withinInSeconds".into(), json!(within_in_seconds));
        }
        let otherwise = match self.otherwise {
            Otherwise::Fail => "fail",
            Otherwise::Finish => "finish",
        };
        fields.insert("otherwise".into(), json!(otherwise));
        Value::Object(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::TwinUpdate;
    use crate::method::DirectMethod;

    fn lock() -> JobAction {
        JobAction::Method(DirectMethod::from_json(br#"{"methodName": "lockDoor"}"#).expect("a method"))
    }

    #[test]
    fn steps_read_back_as_they_are_written_with_their_defaults() {
        let steps = json!([
            {"type": "scheduleDeviceMethod", "cloudToDeviceMethod": {"methodName": "report"},
             "when": {"statuses": [[200, 299]], "otherwise": "finish"}},
            {"type": "scheduleUpdateTwin", "updateTwin": {"etag": "*", "tags": {"state": "locked"}},
             "when": {"condition": "properties.reported.locked = true", "withinInSeconds": 60, "otherwise": "fail"}},
            {"type": "scheduleUpdateTwin", "updateTwin": {"etag": "*", "tags": {"done": true}}},
        ]);
        let read = from_json(&steps, &lock()).expect("steps");
        let written: Vec<_> = read.iter().map(Step::to_json).collect();
        assert_eq!(from_json(&json!(written), &lock()), Ok(read.clone()));
        assert_eq!(written[1], steps[1]);
        assert_eq!((read[0].when.otherwise, read[2].when.clone()), (Otherwise::Finish, StepCondition::default()));
    }

    #[test]
    fn what_is_wrong_with_a_step_is_told_with_its_place() {
        let update = || JobAction::UpdateTwin(TwinUpdate::default());
        let step = |more: Value| {
            let mut step = json!({"type": "scheduleUpdateTwin", "updateTwin": {"etag": "*", "tags": {}}});
            step.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            json!([step])
        };
        for (then, first, text) in [
            (json!({}), lock(), "latch.then must be a list"),
            (json!([{"type": "reboot"}]), lock(), "latch.then[0]: BadRequest"),
            (json!([{"type": "scheduleDeviceMethod"}]), lock(), "latch.then[0]: cloudToDeviceMethod is missing"),
            (step(json!({"etag": "*"})), lock(), "latch.then[0] has no field \"etag\""),
            (step(json!({"when": {"statuses": [[200, 200]]}})), update(), "when.statuses needs a scheduleDeviceMethod"),
            (step(json!({"when": {"statuses": []}})), lock(), "latch.then[0].when.statuses must have at least one"),
            (step(json!({"when": {"withinInSeconds": 5}})), lock(), "when.withinInSeconds needs condition"),
            (step(json!({"when": {"condition": "tags.a ="}})), lock(), "latch.then[0].when.condition: "),
            (
                step(json!({"when": {"condition": "*", "withinInSeconds": -1}})),
                lock(),
                "withinInSeconds must be within",
            ),
            (step(json!({"when": {"otherwise": "perhaps"}})), lock(), "when.otherwise must be"),
            (json!(vec![step(json!({}))[0].clone(); 17]), lock(), "more than 16 steps"),
        ] {
            let refused = from_json(&then, &first).expect_err(text);
            assert!(refused.message.contains(text), "{text}: {}", refused.message);
        }
    }
}
