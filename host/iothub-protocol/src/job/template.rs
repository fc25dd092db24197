//! Jobs with places left open: written once, and made into a job with values for those places.
//!
//! In every text of the job, `${name}` stands for a parameter. A text that is nothing else becomes the value itself,
//! whatever it is; within a longer text it becomes the value's text. `$${` is a `${` that is meant.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::JobRequest;
use super::extension::{invalid, object};
use crate::error::HubError;
use crate::id::{JobId, TemplateName};

/// Longest template, in bytes of its JSON.
pub const MAX_TEMPLATE: usize = 64 * 1024;
/// Parameters that a template may have.
pub const MAX_PARAMETERS: usize = 50;
/// How deep values may be in each other.
const MAX_DEPTH: usize = 64;

/// A job with places left open.
#[derive(Debug, Clone, PartialEq)]
pub struct JobTemplate {
    pub name: TemplateName,
    /// For people.
    pub description: String,
    pub parameters: BTreeMap<String, Parameter>,
    /// The body of `PUT /jobs/v2/{id}`, without an id.
    job: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Without one, a value has to be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
}

impl JobTemplate {
    /// Read the body of `PUT /jobs/templates/{name}`: `{"description", "parameters": {"building": {"default": "43"}},
    /// "job": {…}}`.
    ///
    /// # Errors
    /// 400004, naming the place: for a parameter that is used and not declared or the other way round, and, if every
    /// parameter has a default, for a job that would be refused.
    pub fn from_json(name: TemplateName, body: &Value) -> Result<JobTemplate, HubError> {
        let fields = object(body, "the template", &["name", "description", "parameters", "job"])?;
        if body.to_string().len() > MAX_TEMPLATE {
            return Err(invalid(format!("the template is longer than {MAX_TEMPLATE} bytes")));
        }
        if let Some(other) = fields.get("name").filter(|other| !other.is_null() && **other != json!(name)) {
            return Err(invalid(format!("the template's name {other} is not the path's {:?}", name.as_str())));
        }
        let description = match fields.get("description") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(_) => return Err(invalid("description must be a text".into())),
        };
        let job = match fields.get("job") {
            Some(Value::Object(job)) => job.clone(),
            _ => return Err(invalid("job must be an object, as in PUT /jobs/v2/{id}".into())),
        };
        if job.contains_key("jobId") {
            return Err(invalid("job must have no jobId: each job that is made of a template has its own".into()));
        }
        let parameters = match fields.get("parameters").filter(|value| !value.is_null()) {
            None => BTreeMap::new(),
            Some(parameters) => BTreeMap::<String, Parameter>::deserialize(parameters)
                .map_err(|error| invalid(format!("parameters: {error}")))?,
        };
        let template = JobTemplate { name, description, parameters, job };
        template.check()?;
        Ok(template)
    }

    pub fn to_json(&self) -> Value {
        let JobTemplate { name, description, parameters, job } = self;
        let mut body = json!({"name": name, "parameters": parameters, "job": job});
        if !description.is_empty() {
            body["description"] = json!(description);
        }
        body
    }

    /// The job that it becomes with these values.
    ///
    /// # Errors
    /// 400004 for a value that is missing, or is for no parameter, or would change the meaning of the text that it is
    /// put into; and as [`JobRequest::from_json`].
    pub fn job(&self, job_id: JobId, values: &Map<String, Value>) -> Result<JobRequest, HubError> {
        if let Some(unknown) = values.keys().find(|name| !self.parameters.contains_key(*name)) {
            let known: Vec<_> = self.parameters.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(invalid(format!("the template {} has no parameter {unknown:?}: it has {known}", self.name)));
        }
        let value = |name: &str| {
            let default = || self.parameters.get(name).and_then(|parameter| parameter.default.as_ref());
            values
                .get(name)
                .or_else(default)
                .ok_or_else(|| invalid(format!("the template {} needs a value for its parameter {name}", self.name)))
        };
        // Each of them, used or not: what is missing is told before the job is judged.
        for name in self.parameters.keys() {
            value(name)?;
        }
        let job = filled(&Value::Object(self.job.clone()), &|name| value(name).cloned(), 0)?;
        JobRequest::from_json(job_id, job.to_string().as_bytes())
    }

    fn check(&self) -> Result<(), HubError> {
        if self.parameters.len() > MAX_PARAMETERS {
            return Err(invalid(format!("the template has more than {MAX_PARAMETERS} parameters")));
        }
        if let Some(wrong) = self.parameters.keys().find(|name| !is_name(name)) {
            return Err(invalid(format!("{wrong:?} is no name of a parameter: use letters, digits and _")));
        }
        let mut used = BTreeSet::new();
        let sample = std::cell::RefCell::new(&mut used);
        filled(
            &Value::Object(self.job.clone()),
            &|name| {
                sample.borrow_mut().insert(name.to_owned());
                Ok(Value::Null)
            },
            0,
        )?;
        if let Some(name) = used.iter().find(|name| !self.parameters.contains_key(*name)) {
            return Err(invalid(format!("the job uses ${{{name}}}, which is not among the parameters")));
        }
        if let Some(name) = self.parameters.keys().find(|name| !used.contains(*name)) {
            return Err(invalid(format!("the job does not use its parameter {name}: write ${{{name}}} where it goes")));
        }
        if self.parameters.values().all(|parameter| parameter.default.is_some()) {
            let sample = JobId::parse("sample").map_err(|error| invalid(error.to_string()))?;
            self.job(sample, &Map::new())?;
        }
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The value with every place filled.
fn filled(value: &Value, of: &dyn Fn(&str) -> Result<Value, HubError>, depth: usize) -> Result<Value, HubError> {
    if depth > MAX_DEPTH {
        return Err(invalid(format!("the job is nested more than {MAX_DEPTH} deep")));
    }
    match value {
        Value::String(text) => filled_text(text, of),
        Value::Array(list) => list.iter().map(|value| filled(value, of, depth + 1)).collect(),
        Value::Object(fields) => {
            let filled = fields.iter().map(|(name, value)| Ok((name.clone(), filled(value, of, depth + 1)?)));
            filled.collect::<Result<Map<_, _>, _>>().map(Value::Object)
        }
        other => Ok(other.clone()),
    }
}

fn filled_text(text: &str, of: &dyn Fn(&str) -> Result<Value, HubError>) -> Result<Value, HubError> {
    if let Some(name) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'))
        && is_name(name)
    {
        return of(name);
    }
    let mut whole = String::new();
    let mut rest = text;
    while let Some(place) = rest.find("${") {
        let (before, after) = (&rest[..place], &rest[place + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            whole.push_str(before);
            whole.push_str("${");
            rest = after;
            continue;
        }
        whole.push_str(before);
        let name = after.split_once('}').filter(|(name, _)| is_name(name));
        let (name, after) = name.ok_or_else(|| {
            invalid(format!(
                "{text:?} has ${{ without the name of a parameter and }}; write $${{ for one that is meant"
            ))
        })?;
        whole.push_str(&within_text(name, &of(name)?)?);
        rest = after;
    }
    whole.push_str(rest);
    Ok(Value::String(whole))
}

/// A value as part of a text, which may be a condition: it must not end a literal there and go on by itself.
fn within_text(name: &str, value: &Value) -> Result<String, HubError> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Null => String::new(),
        Value::Array(_) | Value::Object(_) => {
            return Err(invalid(format!("the value of {name} is put into a text, and has to be a text or a number")));
        }
    };
    match text.chars().find(|c| matches!(c, '\'' | '"' | '\\' | '`') || c.is_control()) {
        Some(wrong) => Err(invalid(format!("the value of {name} is put into a text, and must not contain {wrong:?}"))),
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(parameters: Value, job: Value) -> Result<JobTemplate, HubError> {
        let name = TemplateName::parse("lock").expect("a name");
        JobTemplate::from_json(name, &json!({"description": "Lock up", "parameters": parameters, "job": job}))
    }

    fn lock(more: Value) -> Value {
        let mut job = json!({"type": "scheduleDeviceMethod", "queryCondition": "tags.building = '${building}'",
            "cloudToDeviceMethod": {"methodName": "lockDoor", "payload": {"by": "${by}", "note": "a $${ and ${by}"}}});
        job.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        job
    }

    fn values(values: &Value) -> Map<String, Value> {
        values.as_object().expect("an object").clone()
    }

    #[test]
    fn values_take_their_places_as_they_are_or_as_text() {
        let parameters =
            json!({"building": {"description": "Which"}, "by": {"default": {"name": "ann"}}, "rate": {"default": 5}});
        let refused = template(parameters, lock(json!({"latch": {"version": 1, "policy": {"rate": "${rate}"}}})));
        let template = refused.expect("a template");
        let id = JobId::parse("j").expect("an id");
        let refused = template.job(id.clone(), &values(&json!({"building": "43"}))).expect_err("an object in a text");
        assert!(refused.message.contains("the value of by is put into a text"), "{}", refused.message);
        let made = template.job(id, &values(&json!({"building": "43", "by": 7}))).expect("a job");
        let body = made.to_json();
        assert_eq!(body["queryCondition"], "tags.building = '43'");
        assert_eq!(body["cloudToDeviceMethod"]["payload"], json!({"by": 7, "note": "a ${ and 7"}));
        assert_eq!(body["latch"]["policy"]["rate"], 5);
        let name = TemplateName::parse("lock").expect("a name");
        assert_eq!(JobTemplate::from_json(name, &template.to_json()), Ok(template));
    }

    #[test]
    fn a_value_cannot_change_the_condition_that_it_is_in() {
        let template = template(json!({"building": {}, "by": {}}), lock(json!({}))).expect("a template");
        for value in ["x' OR '1' = '1", "x\\", "a\nb", "a\"b"] {
            let id = JobId::parse("j").expect("an id");
            let refused = template.job(id, &values(&json!({"building": value, "by": 1}))).expect_err(value);
            assert!(refused.message.contains("must not contain"), "{}", refused.message);
        }
    }

    #[test]
    fn mistakes_are_told_when_the_template_is_kept_or_filled() {
        let by = || json!({"building": {"default": "43"}, "by": {"default": "ann"}});
        for (parameters, job, text) in [
            (json!({"building": {}}), lock(json!({})), "the job uses ${by}, which is not among the parameters"),
            (json!({"building": {}, "by": {}, "x": {}}), lock(json!({})), "the job does not use its parameter x"),
            (json!({"building": {"type": "int"}, "by": {}}), lock(json!({})), "parameters: unknown field `type`"),
            (json!({"a b": {}}), lock(json!({})), "is no name of a parameter"),
            (by(), lock(json!({"jobId": "j"})), "job must have no jobId"),
            (by(), lock(json!({"startTime": "soon"})), "startTime \"soon\" is not an ISO 8601 time"),
            (by(), lock(json!({"startTime": "${"})), "without the name of a parameter"),
            (by(), json!(1), "job must be an object"),
        ] {
            let refused = template(parameters, job).expect_err(text);
            assert!(refused.message.contains(text), "{text}: {}", refused.message);
        }
        let template = template(json!({"building": {}, "by": {}}), lock(json!({}))).expect("a template");
        for (given, text) in [
            (json!({"building": "43"}), "needs a value for its parameter by"),
            (json!({"building": "43", "by": 1, "floor": 2}), "has no parameter \"floor\": it has building, by"),
        ] {
            let id = JobId::parse("j").expect("an id");
            let refused = template.job(id, &values(&given)).expect_err(text);
            assert!(refused.message.contains(text), "{text}: {}", refused.message);
        }
    }
}
