//! Configurations of automatic device management, as `/configurations` shows them.
//!
//! A [`Configuration`] says which devices or modules it is for, which desired properties they shall have, and what to count.
//! What it does to a twin is the hub's affair; [`Setting`] is how a part of its content is laid into desired properties.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{ErrorCode, HubError};
use crate::id::ConfigurationId;
use crate::query::{Condition, Query, Source};
use crate::time;
use crate::twin::{Part, check_patch, check_size, merge};

#[cfg(test)]
mod tests;

/// Most configurations of a hub; Azure's number for its standard tiers.
pub const MAX_CONFIGURATIONS: usize = 100;
/// Most custom metrics of a configuration; Azure's number.
pub const MAX_METRICS: usize = 5;
/// Longest name or value of a label, and name of a metric, in characters; Azure's number for labels.
const MAX_NAME: usize = 128;
/// Most bytes of all labels together; Azure documents no number.
const MAX_LABELS: usize = 8 * 1024;
/// What the paths of a configuration's content begin with.
const DESIRED: [&str; 2] = ["properties", "desired"];

/// The configurations that target a device.
pub type ConfigurationMarks = BTreeMap<ConfigurationId, ConfigurationStatus>;

/// What became of a configuration on a device that it targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigurationStatus {
    /// Others of higher priority set all that it would.
    Targeted,
    /// At least a part of it is in the desired properties.
    Applied,
}

impl ConfigurationStatus {
    /// The word on the wire.
    pub fn name(self) -> &'static str {
        match self {
            ConfigurationStatus::Targeted => "Targeted",
            ConfigurationStatus::Applied => "Applied",
        }
    }

    /// The status of that word.
    pub fn by_name(name: &str) -> Option<ConfigurationStatus> {
        [ConfigurationStatus::Targeted, ConfigurationStatus::Applied].into_iter().find(|status| status.name() == name)
    }
}

/// A twin's member `configurations`.
pub fn marks_to_json(marks: &ConfigurationMarks) -> Value {
    let marks = marks.iter().map(|(id, status)| (id.to_string(), json!({"status": status.name()})));
    Value::Object(marks.collect())
}

/// Read a twin's member `configurations`; what is none of ours is left out.
pub fn marks_from_json(marks: &Value) -> ConfigurationMarks {
    let marks = marks.as_object().into_iter().flatten();
    let read = marks.filter_map(|(id, mark)| {
        Some((ConfigurationId::parse(id).ok()?, ConfigurationStatus::by_name(mark["status"].as_str()?)?))
    });
    read.collect()
}

/// What a configuration is for: the member of `content` that it has, and the source of its target condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Subject {
    #[default]
    Devices,
    Modules,
}

impl Subject {
    const ALL: [Subject; 2] = [Subject::Devices, Subject::Modules];

    /// The member of `content`.
    fn content(self) -> &'static str {
        match self {
            Subject::Devices => "deviceContent",
            Subject::Modules => "moduleContent",
        }
    }

    /// How a query begins that counts them.
    fn query(self) -> &'static str {
        match self {
            Subject::Devices => "select deviceId from devices",
            Subject::Modules => "select deviceId, moduleId from devices.modules",
        }
    }

    /// Of a condition or query; `None` for jobs.
    pub fn of_source(source: Source) -> Option<Subject> {
        match source {
            Source::Devices => Some(Subject::Devices),
            Source::Modules => Some(Subject::Modules),
            Source::Jobs => None,
        }
    }

    /// Of a twin as back ends see it.
    pub fn of_twin(twin: &Value) -> Subject {
        if twin["moduleId"].is_string() { Subject::Modules } else { Subject::Devices }
    }
}

/// Values by their paths, and what they are for.
type Content = (Subject, Map<String, Value>);

/// A configuration as the hub keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    pub id: ConfigurationId,
    pub schema_version: String,
    pub labels: Option<BTreeMap<String, String>>,
    /// What it is for. Configurations of before there were modules do not say.
    #[serde(default)]
    pub subject: Subject,
    /// Values by their paths, which begin with `properties.desired`.
    pub content: Map<String, Value>,
    /// Empty for none.
    pub target_condition: String,
    /// The higher wins.
    pub priority: u32,
    /// Queries by the name of the metric.
    pub metrics: BTreeMap<String, String>,
    pub created: DateTime<Utc>,
    pub updated: DateTime<Utc>,
    /// Counts changes; the etag is made of it.
    pub revision: u64,
}

/// What the hub counted for a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigurationResults {
    pub targeted: u64,
    pub applied: u64,
    /// By the name of the metric; without those that were not counted yet.
    pub metrics: BTreeMap<String, u64>,
}

/// The body of `PUT /configurations/{id}`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigurationRequest {
    schema_version: String,
    labels: Option<BTreeMap<String, String>>,
    /// `None` where the body has no content, which an update may leave out.
    content: Option<Content>,
    /// What the target condition is over; `None` if it is empty.
    targeted: Option<Subject>,
    target_condition: String,
    priority: u32,
    metrics: BTreeMap<String, String>,
}

impl ConfigurationRequest {
    /// Read the body. What the hub computes (times, system metrics, results, etag) is ignored, as the SDKs send back
    /// what they got.
    ///
    /// # Errors
    /// 400006 for what is no JSON, 400004 with the member that is wrong.
    pub fn from_json(id: &ConfigurationId, body: &[u8]) -> Result<ConfigurationRequest, HubError> {
        let body = object(body)?;
        if let Some(other) = body.get("id").filter(|other| !other.is_null() && **other != json!(id)) {
            return Err(invalid(format!("the body is of the configuration {other}, the path of {:?}", id.as_str())));
        }
        let content = read_content(body.get("content"))?;
        if let Some((subject, content)) = &content {
            check_content(*subject, content)?;
        }
        let target_condition = text(&body, "targetCondition")?.unwrap_or_default();
        let targeted = target(&target_condition)?.and_then(|condition| Subject::of_source(condition.source()));
        check_subject(content.as_ref().map(|(subject, _)| *subject), targeted)?;
        let metrics = queries(body.get("metrics").and_then(|metrics| metrics.get("queries")), "metrics.queries")?;
        for (name, query) in &metrics {
            metric(query).map_err(|error| invalid(format!("metrics.queries.{name}: {}", error.message)))?;
        }
        Ok(ConfigurationRequest {
            schema_version: text(&body, "schemaVersion")?.unwrap_or_else(|| "1.0".to_owned()),
            labels: labels(body.get("labels"))?,
            content,
            targeted,
            target_condition,
            priority: priority(body.get("priority"))?,
            metrics,
        })
    }
}

impl Configuration {
    pub fn new(id: ConfigurationId, request: ConfigurationRequest, now: DateTime<Utc>) -> Configuration {
        let (subject, content) = request.content.unwrap_or_else(|| (request.targeted.unwrap_or_default(), Map::new()));
        Configuration {
            id,
            schema_version: request.schema_version,
            labels: request.labels,
            subject,
            content,
            target_condition: request.target_condition,
            priority: request.priority,
            metrics: request.metrics,
            created: now,
            updated: now,
            // Not the same for each that is made under one id: an etag from before must not match.
            revision: u64::try_from(now.timestamp_micros()).unwrap_or_default(),
        }
    }

    /// Change everything but id and content, which Azure holds to be immutable.
    ///
    /// # Errors
    /// 400004 for another content, or a target condition that does not fit it.
    pub fn update(&self, request: ConfigurationRequest, now: DateTime<Utc>) -> Result<Configuration, HubError> {
        let is_same = |(subject, content): &Content| *content == self.content && *subject == self.subject;
        if request.content.as_ref().is_some_and(|content| !is_same(content)) {
            return Err(invalid("the content of a configuration cannot be changed: create another one".to_owned()));
        }
        check_subject(Some(self.subject), request.targeted)?;
        Ok(Configuration {
            id: self.id.clone(),
            schema_version: request.schema_version,
            labels: request.labels,
            subject: self.subject,
            content: self.content.clone(),
            target_condition: request.target_condition,
            priority: request.priority,
            metrics: request.metrics,
            created: self.created,
            updated: now,
            revision: self.revision + 1,
        })
    }

    /// Base64 of a decimal number.
    pub fn etag(&self) -> String {
        BASE64.encode(self.revision.to_string())
    }

    /// The content in parts.
    pub fn settings(&self) -> Vec<Setting> {
        let parts = self.content.iter();
        parts.filter_map(|(path, value)| Setting::parse(self.subject, path, value).ok()).collect()
    }

    pub fn to_json(&self, results: &ConfigurationResults) -> Value {
        let select = self.subject.query();
        let targeted = match (self.subject, self.target_condition.trim()) {
            (_, "") => format!("{select} where false"),
            (Subject::Devices, "*") => select.to_owned(),
            // It names its source itself.
            (Subject::Modules, condition) => format!("select deviceId, moduleId {condition}"),
            (Subject::Devices, condition) => format!("{select} where {condition}"),
        };
        let applied = format!("{select} where configurations.[[{}]].status = 'Applied'", self.id);
        json!({
            "id": self.id,
            "schemaVersion": self.schema_version,
            "labels": self.labels,
            "content": {self.subject.content(): self.content},
            "targetCondition": self.target_condition,
            "createdTimeUtc": time::format(self.created),
            "lastUpdatedTimeUtc": time::format(self.updated),
            "priority": self.priority,
            "systemMetrics": {
                "results": {"targetedCount": results.targeted, "appliedCount": results.applied},
                "queries": {"targetedCount": targeted, "appliedCount": applied},
            },
            "metrics": {"results": results.metrics, "queries": self.metrics},
            "etag": self.etag(),
        })
    }
}

/// The devices or modules that a target condition is for; `None` for none.
///
/// # Errors
/// 400004 for what is no condition on twins.
pub fn target(condition: &str) -> Result<Option<Condition>, HubError> {
    if condition.trim().is_empty() {
        return Ok(None);
    }
    Condition::parse_job(condition).map(Some).map_err(|e| invalid(format!("targetCondition: {e}")))
}

/// Whether what is targeted can take the content.
fn check_subject(content: Option<Subject>, targeted: Option<Subject>) -> Result<(), HubError> {
    match (content, targeted) {
        (Some(Subject::Modules), Some(Subject::Devices)) => {
            let text = "targetCondition: content.moduleContent is for modules: FROM devices.modules WHERE …";
            Err(invalid(text.to_owned()))
        }
        (Some(Subject::Devices), Some(Subject::Modules)) => {
            let text = "targetCondition: content.deviceContent is for devices; modules take content.moduleContent";
            Err(invalid(text.to_owned()))
        }
        _ => Ok(()),
    }
}

/// A metric's query: it counts the twins of devices or modules that it finds.
///
/// # Errors
/// 400004 for what is no such query.
pub fn metric(query: &str) -> Result<Query, HubError> {
    let read = Query::parse(query).map_err(|e| invalid(e.to_string()))?;
    if Subject::of_source(read.source()).is_none() || read.is_aggregate() {
        let text = "a metric counts the rows of SELECT … FROM devices or FROM devices.modules, without aggregates";
        return Err(invalid(text.to_owned()));
    }
    Ok(read)
}

/// The answer to `POST /configurations/testQueries`.
///
/// # Errors
/// As [`ConfigurationRequest::from_json`], for the body itself; what is wrong with queries stands in the answer.
pub fn test_queries(body: &[u8]) -> Result<Value, HubError> {
    let body = object(body)?;
    let condition = text(&body, "targetCondition")?.unwrap_or_default();
    let queries = queries(body.get("customMetricQueries"), "customMetricQueries")?;
    let wrong = queries.iter().filter_map(|(name, query)| Some((name.clone(), json!(metric(query).err()?.message))));
    Ok(json!({
        "targetConditionError": target(&condition).err().map(|error| error.message),
        "customMetricQueryErrors": Value::Object(wrong.collect()),
    }))
}

/// A value and where in the desired properties it belongs.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Below `properties.desired`; empty for all of it.
    pub path: Vec<String>,
    pub value: Value,
}

impl Setting {
    fn parse(subject: Subject, path: &str, value: &Value) -> Result<Setting, HubError> {
        let wrong = |why: &str| invalid(format!("content.{}: the path {path:?} {why}", subject.content()));
        let mut parts = path.split('.');
        if DESIRED.iter().any(|expected| parts.next() != Some(expected)) {
            return Err(wrong("does not begin with properties.desired"));
        }
        let path: Vec<String> = parts.map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err(wrong("has an empty part"));
        }
        if path.is_empty() && !value.is_object() {
            return Err(wrong("needs an object"));
        }
        Ok(Setting { path, value: value.clone() })
    }

    /// Lay the value into a merge patch, where later ones go over earlier ones.
    pub fn lay_over(&self, patch: &mut Map<String, Value>) {
        let mut value = self.value.clone();
        for name in self.path.iter().rev() {
            value = json!({name: value});
        }
        if let Value::Object(members) = value {
            compose(patch, members);
        }
    }

    /// Take out of desired properties what the value put there, and objects that are left empty by that.
    pub fn take_out(&self, desired: &mut Map<String, Value>) {
        take_out(desired, &self.path, &self.value);
    }
}

/// Two merge patches in one; nulls stay.
fn compose(patch: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (patch.get_mut(&key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => compose(below, above),
            (_, value) => {
                patch.insert(key, value);
            }
        }
    }
}

fn take_out(desired: &mut Map<String, Value>, path: &[String], value: &Value) {
    match (path.split_first(), value) {
        (Some((name, rest)), _) => take_out_one(desired, name, rest, value),
        (None, Value::Object(members)) => {
            for (name, value) in members {
                take_out_one(desired, name, &[], value);
            }
        }
        (None, _) => {}
    }
}

fn take_out_one(desired: &mut Map<String, Value>, name: &str, rest: &[String], value: &Value) {
    let is_leaf = rest.is_empty() && value.as_object().is_none_or(Map::is_empty);
    if is_leaf {
        if !value.is_null() {
            desired.remove(name);
        }
        return;
    }
    let Some(Value::Object(below)) = desired.get_mut(name) else { return };
    take_out(below, rest, value);
    if below.is_empty() {
        desired.remove(name);
    }
}

fn invalid(text: String) -> HubError {
    HubError::new(ErrorCode::ArgumentInvalid, text)
}

fn object(body: &[u8]) -> Result<Map<String, Value>, HubError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(body)) => Ok(body),
        Ok(_) => Err(invalid("the body must be a JSON object".to_owned())),
        Err(error) => Err(HubError::new(ErrorCode::IotHubFormatError, format!("the body is not JSON: {error}"))),
    }
}

fn text(body: &Map<String, Value>, name: &str) -> Result<Option<String>, HubError> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(invalid(format!("{name} must be a text"))),
    }
}

fn priority(value: Option<&Value>) -> Result<u32, HubError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(0) };
    let whole = value.as_u64().and_then(|number| i32::try_from(number).ok());
    let whole = whole.and_then(|number| u32::try_from(number).ok());
    whole.ok_or_else(|| invalid(format!("priority must be a whole number from 0 to {}", i32::MAX)))
}

fn labels(value: Option<&Value>) -> Result<Option<BTreeMap<String, String>>, HubError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    let labels = texts(value, "labels")?;
    let length: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
    let is_long = |text: &String| text.chars().count() > MAX_NAME;
    if labels.iter().any(|(name, value)| is_long(name) || is_long(value)) {
        return Err(invalid(format!("a label's name and value have at most {MAX_NAME} characters")));
    }
    if length > MAX_LABELS {
        return Err(invalid(format!("labels have {length} bytes; the limit is {MAX_LABELS}")));
    }
    Ok(Some(labels))
}

fn queries(value: Option<&Value>, name: &str) -> Result<BTreeMap<String, String>, HubError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(BTreeMap::new()) };
    let queries = texts(value, name)?;
    if queries.len() > MAX_METRICS {
        return Err(invalid(format!("{name} has {} queries; the limit is {MAX_METRICS}", queries.len())));
    }
    if queries.keys().any(|metric| metric.is_empty() || metric.chars().count() > MAX_NAME) {
        return Err(invalid(format!("{name}: a metric's name has 1 to {MAX_NAME} characters")));
    }
    Ok(queries)
}

fn texts(value: &Value, name: &str) -> Result<BTreeMap<String, String>, HubError> {
    let wrong = || invalid(format!("{name} must be an object of texts"));
    let members = value.as_object().ok_or_else(wrong)?.iter();
    members.map(|(name, value)| Ok((name.clone(), value.as_str().ok_or_else(wrong)?.to_owned()))).collect()
}

fn read_content(value: Option<&Value>) -> Result<Option<Content>, HubError> {
    let content = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(content)) => content,
        Some(_) => return Err(invalid("content must be an object".to_owned())),
    };
    let part = |name: &str| content.get(name).filter(|part| !part.is_null());
    if part("modulesContent").is_some() {
        let text = "content.modulesContent deploys to IoT Edge, which this hub has not: use content.moduleContent";
        return Err(invalid(text.to_owned()));
    }
    let parts: Vec<_> =
        Subject::ALL.into_iter().filter_map(|subject| Some((subject, part(subject.content())?))).collect();
    match parts.as_slice() {
        [] => Ok(None),
        [(subject, Value::Object(content))] => Ok(Some((*subject, content.clone()))),
        [(subject, _)] => Err(invalid(format!("content.{} must be an object", subject.content()))),
        _ => Err(invalid("content has deviceContent or moduleContent, not both".to_owned())),
    }
}

/// Whether content can be in any twin at all.
fn check_content(subject: Subject, content: &Map<String, Value>) -> Result<(), HubError> {
    let mut patch = Map::new();
    for (path, value) in content {
        Setting::parse(subject, path, value)?.lay_over(&mut patch);
    }
    check_patch(Part::Desired, &patch)?;
    let mut desired = Map::new();
    merge(&mut desired, &patch);
    check_size(Part::Desired, &desired)
}
