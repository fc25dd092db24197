//! A scenario: what happens to a device, and what should come of it. A TOML file, with JSON in texts.
//!
//! ```toml
//! [device]                        # as it is at first; may be left out
//! id = "door-0001"
//! desired = '{"building": "43"}'
//! reported = '{"door": {"locked": true}}'
//! state = { door = '{"locked":true,"count":7,"moved_by":null}' }
//!
//! [config]                        # settings that the plugin can ask for
//! site = "A"
//!
//! [[step]]
//! about = "ann locks the door"
//! call = "lockDoor"
//! payload = '{"by": "ann"}'       # `null` if left out
//! status = 200
//! answer = '{"locked": true}'     # compared as JSON; `answer-text` compares the text
//! reported = '{"door": {"locked": true}}'
//! state = { door = '{"locked":true,"count":8,"moved_by":"ann"}' }
//! telemetry = [{ body = '{"event": "doorMoved"}', content-type = "application/json", properties = { event = "x" } }]
//!
//! [[step]]
//! desired = '{"floor": 5}'        # a merge patch to the desired properties
//! retry = "no room"               # put off, for a reason with these words; else the change must be dealt with
//!
//! [[step]]
//! again = true                    # the change that was put off is brought again
//!
//! [[step]]
//! call = "crash"
//! fails = "trapped"               # there is no answer, for a reason with these words
//! ```
//!
//! `reported` and `state` are the whole of each, as they are after the step; `telemetry` is what the step sent. What a
//! step does not mention is not compared.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use iothub_protocol::id::{DeviceId, MethodName};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::{Map, Value};
use toml::Spanned;

pub(super) struct Scenario {
    pub(super) file: PathBuf,
    pub(super) config: BTreeMap<String, String>,
    pub(super) start: Start,
    pub(super) steps: Vec<Step>,
}

/// The device before the first step.
#[derive(Clone)]
pub(super) struct Start {
    pub(super) id: DeviceId,
    pub(super) desired: Map<String, Value>,
    pub(super) reported: Map<String, Value>,
    pub(super) state: BTreeMap<String, String>,
}

pub(super) struct Step {
    pub(super) line: usize,
    pub(super) about: Option<String>,
    pub(super) action: Action,
    pub(super) expect: Expect,
}

pub(super) enum Action {
    Call { method: MethodName, payload: String },
    Desired { patch: Map<String, Value>, version: Option<u64> },
    Again,
}

/// What should come of a step, as far as the scenario says.
#[derive(Default)]
pub(super) struct Expect {
    pub(super) status: Option<At<i32>>,
    pub(super) answer: Option<At<Value>>,
    pub(super) answer_text: Option<At<String>>,
    pub(super) reported: Option<At<Value>>,
    pub(super) state: Option<At<BTreeMap<String, String>>>,
    pub(super) telemetry: Option<At<Vec<Message>>>,
    pub(super) retry: Option<At<String>>,
    pub(super) fails: Option<At<String>>,
}

/// Something in a file, and its line.
pub(super) struct At<T> {
    pub(super) line: usize,
    pub(super) value: T,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Message {
    pub(super) body: String,
    pub(super) content_type: Option<String>,
    pub(super) properties: Option<BTreeMap<String, String>>,
}

impl Scenario {
    pub(super) fn read(file: &Path) -> anyhow::Result<Scenario> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Scenario::parse(file, &text)
    }

    fn parse(file: &Path, text: &str) -> anyhow::Result<Scenario> {
        let lines = Lines { file, text };
        let tables: Tables = toml::from_str(text).map_err(|error| {
            let place = error.span().map_or_else(|| file.display().to_string(), |span| lines.place(span));
            anyhow!("{place}: {}", error.message())
        })?;
        if tables.step.is_empty() {
            bail!("{} has no [[step]]", file.display());
        }
        let steps = tables.step.into_iter().map(|step| lines.step(step)).collect::<anyhow::Result<_>>()?;
        let device = tables.device;
        let id = DeviceId::parse(device.id.as_deref().unwrap_or(DEVICE))
            .with_context(|| format!("{}: the device's id", file.display()))?;
        let start = Start { id, desired: device.desired.0, reported: device.reported.0, state: device.state };
        Ok(Scenario { file: file.to_owned(), config: tables.config, start, steps })
    }
}

/// From positions in a text to its lines.
struct Lines<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Lines<'_> {
    fn line(&self, span: Range<usize>) -> usize {
        self.text.as_bytes().iter().take(span.start).filter(|&&byte| byte == b'\n').count() + 1
    }

    fn place(&self, span: Range<usize>) -> String {
        format!("{}:{}", self.file.display(), self.line(span))
    }

    fn at<T>(&self, spanned: Option<Spanned<T>>) -> Option<At<T>> {
        spanned.map(|spanned| At { line: self.line(spanned.span()), value: spanned.into_inner() })
    }

    fn step(&self, table: Spanned<StepTable>) -> anyhow::Result<Step> {
        let line = self.line(table.span());
        let wrong = |what: &str| anyhow!("{}:{line}: {what}", self.file.display());
        let table = table.into_inner();
        let is_call = table.call.is_some();
        let action = match (table.call, table.desired, table.again) {
            (Some(method), None, false) => Action::Call {
                method: MethodName::parse(&method).map_err(|error| wrong(&error.to_string()))?,
                payload: table.payload.map_or_else(|| "null".to_owned(), |payload| payload.0),
            },
            (None, Some(patch), false) => Action::Desired { patch: patch.0, version: table.version },
            (None, None, true) => Action::Again,
            _ => return Err(wrong("a step has one of `call`, `desired` and `again = true`")),
        };
        if !is_call && (table.status.is_some() || table.answer.is_some() || table.answer_text.is_some()) {
            return Err(wrong("only a `call` has `status`, `answer` and `answer-text`"));
        }
        if is_call && table.retry.is_some() {
            return Err(wrong("only a change of desired properties has `retry`"));
        }
        let json = |at: At<JsonText>| -> anyhow::Result<At<Value>> {
            Ok(At { line: at.line, value: serde_json::from_str(&at.value.0)? })
        };
        let expect = Expect {
            status: self.at(table.status),
            answer: self.at(table.answer).map(json).transpose()?,
            answer_text: self.at(table.answer_text),
            reported: self.at(table.reported).map(|at| At { line: at.line, value: Value::Object(at.value.0) }),
            state: self.at(table.state),
            telemetry: self.at(table.telemetry),
            retry: self.at(table.retry),
            fails: self.at(table.fails),
        };
        Ok(Step { line, about: table.about, action, expect })
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    #[serde(default)]
    device: DeviceTable,
    #[serde(default)]
    config: BTreeMap<String, String>,
    #[serde(default)]
    step: Vec<Spanned<StepTable>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DeviceTable {
    id: Option<String>,
    desired: JsonObject,
    reported: JsonObject,
    state: BTreeMap<String, String>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct StepTable {
    about: Option<String>,
    call: Option<String>,
    payload: Option<JsonText>,
    desired: Option<JsonObject>,
    version: Option<u64>,
    again: bool,
    status: Option<Spanned<i32>>,
    answer: Option<Spanned<JsonText>>,
    answer_text: Option<Spanned<String>>,
    reported: Option<Spanned<JsonObject>>,
    state: Option<Spanned<BTreeMap<String, String>>>,
    telemetry: Option<Spanned<Vec<Message>>>,
    retry: Option<Spanned<String>>,
    fails: Option<Spanned<String>>,
}

/// A JSON document, as its text.
struct JsonText(String);

impl<'de> Deserialize<'de> for JsonText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<JsonText, D::Error> {
        let text = String::deserialize(deserializer)?;
        match serde_json::from_str::<Value>(&text) {
            Ok(_) => Ok(JsonText(text)),
            Err(error) => Err(D::Error::custom(format!("not JSON: {error}"))),
        }
    }
}

/// A JSON object in a text.
#[derive(Default)]
struct JsonObject(Map<String, Value>);

impl<'de> Deserialize<'de> for JsonObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<JsonObject, D::Error> {
        let text = String::deserialize(deserializer)?;
        let object = serde_json::from_str(&text).map_err(|error| D::Error::custom(format!("no JSON object: {error}")));
        object.map(JsonObject)
    }
}

/// Who the device is, unless the scenario says.
const DEVICE: &str = "device-1";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Scenario> {
        Scenario::parse(Path::new("door.toml"), text)
    }

    #[test]
    fn everything_knows_its_line() {
        let scenario = parse(
            "[device]\nid = \"door-0001\"\n\n[[step]]\ncall = \"lockDoor\"\nstatus = 200\n\n[[step]]\n\
             desired = '{\"floor\": null}'\nreported = '{}'\n",
        )
        .expect("a good file");
        assert_eq!(scenario.start.id.as_str(), "door-0001");
        let [call, desired] = &scenario.steps[..] else { panic!("two steps") };
        assert!(matches!(&call.action, Action::Call { payload, .. } if payload == "null"));
        assert_eq!((call.line, call.expect.status.as_ref().map(|at| (at.line, at.value))), (4, Some((6, 200))));
        assert!(matches!(&desired.action, Action::Desired { patch, version: None } if patch["floor"].is_null()));
        assert_eq!(desired.expect.reported.as_ref().map(|at| at.line), Some(10));
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, expect) in [
            ("", "door.toml has no [[step]]"),
            ("[[step]]\ncal = 'x'\n", "door.toml:2: unknown field `cal`"),
            ("[[step]]\ncall = 'x'\nanswer = 'no'\n", "door.toml:3: not JSON: expected ident at line 1 column 2"),
            ("[[step]]\ndesired = '[]'\n", "door.toml:2: no JSON object: invalid type: sequence"),
            ("\n[[step]]\nstatus = 200\n", "door.toml:2: a step has one of"),
            ("[[step]]\ncall = 'x'\nagain = true\n", "door.toml:1: a step has one of"),
            ("[[step]]\nagain = true\nstatus = 200\n", "door.toml:1: only a `call` has `status`"),
            ("[[step]]\ncall = 'x'\nretry = 'later'\n", "door.toml:1: only a change of desired"),
        ] {
            let error = parse(text).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.starts_with(expect), "{text:?}: {error}");
        }
    }
}
