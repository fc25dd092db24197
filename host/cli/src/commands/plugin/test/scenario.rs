//! A scenario: what happens to a device, and what should come of it. A TOML file, with JSON in texts.
//!
//! ```toml
//! [device]                        # as the plugin finds it; may be left out
//! id = "door-0001"
//! now = "2026-01-01T00:00:00Z"    # what the clock shows at first
//! desired = '{"building": "43"}'  # brought to the plugin before the first step, as far as it watches it
//! reported = '{"door": {"locked": true}}'
//! state = { door = '{"locked":true,"count":7,"moved_by":null}' }
//! timers = { relock = "in 5m", test = { due = "2026-01-01T12:00:00Z", payload = "7" } }
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
//! timers = { relock = "in 5m" }
//!
//! [[step]]
//! desired = '{"floor": 5}'        # a merge patch to the desired properties
//! retry = "no room"               # put off, for a reason with these words; else it must be dealt with
//!
//! [[step]]
//! again = true                    # time passes until what was put off is brought again
//!
//! [[step]]
//! wait = "1h 30m"                 # time passes; timers fire when they are due
//! fired = ["relock", "test"]      # the timers that were brought in this step, in order
//! timers = {}
//!
//! [[step]]
//! restart = true                  # the host is killed and starts from what it had recorded; `"1h"`: an hour later
//!
//! [[step]]
//! call = "crash"
//! fails = "trapped"               # it does not return, for a reason with these words
//! ```
//!
//! `reported`, `state` and `timers` are the whole of each, as they are after the step; `telemetry` is what the step sent.
//! What a step does not mention is not compared, but whatever is brought to the plugin must be dealt with.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use iothub_protocol::id::{DeviceId, MethodName};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::{Map, Value};
use toml::Spanned;

use super::clock::{self, Due};

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
    /// With their payloads.
    pub(super) timers: BTreeMap<String, (Due, String)>,
    /// Milliseconds since the beginning of 1970, UTC.
    pub(super) now: u64,
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
    Wait(Duration),
    Restart { down: Duration },
}

impl Action {
    /// As the file has it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Action::Call { .. } => "call",
            Action::Desired { .. } => "desired",
            Action::Again => "again",
            Action::Wait(_) => "wait",
            Action::Restart { .. } => "restart",
        }
    }

    /// What should come of it, if nothing is said.
    pub(super) fn wish(&self) -> &'static str {
        match self {
            Action::Call { .. } => "an answer",
            Action::Desired { .. } => "the change is dealt with",
            Action::Again => "it comes again",
            Action::Wait(_) | Action::Restart { .. } => "what is brought is dealt with",
        }
    }
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
    pub(super) fired: Option<At<Vec<String>>>,
    pub(super) timers: Option<At<BTreeMap<String, ExpectedTimer>>>,
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

/// A timer, as `"in 5m"` or with its payload.
#[derive(serde::Deserialize)]
#[serde(try_from = "TimerTable")]
pub(super) struct ExpectedTimer {
    pub(super) due: Due,
    pub(super) payload: Option<String>,
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
        let now = device.now.map_or(NOW, |now| now.0);
        let timers =
            device.timers.into_iter().map(|(name, timer)| (name, (timer.due, timer.payload.unwrap_or_default())));
        let (desired, reported, state) = (device.desired.0, device.reported.0, device.state);
        let start = Start { id, desired, reported, state, timers: timers.collect(), now };
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
        let again = table.again.then_some(Action::Again);
        let actions = [
            table.call.map(|method| call(&method, table.payload)).transpose().map_err(|error| wrong(&error))?,
            table.desired.map(|patch| Action::Desired { patch: patch.0, version: table.version }),
            again,
            table.wait.map(|span| Action::Wait(span.0)),
            table.restart.map(|restart| Action::Restart { down: restart.0 }),
        ];
        let mut actions = actions.into_iter().flatten();
        let (Some(action), None) = (actions.next(), actions.next()) else {
            return Err(wrong("a step has one of `call`, `desired`, `again = true`, `wait` and `restart`"));
        };
        if !is_call && (table.status.is_some() || table.answer.is_some() || table.answer_text.is_some()) {
            return Err(wrong("only a `call` has `status`, `answer` and `answer-text`"));
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
            fired: self.at(table.fired),
            timers: self.at(table.timers),
            retry: self.at(table.retry),
            fails: self.at(table.fails),
        };
        Ok(Step { line, about: table.about, action, expect })
    }
}

fn call(method: &str, payload: Option<JsonText>) -> Result<Action, String> {
    let method = MethodName::parse(method).map_err(|error| error.to_string())?;
    Ok(Action::Call { method, payload: payload.map_or_else(|| "null".to_owned(), |payload| payload.0) })
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
    now: Option<Moment>,
    desired: JsonObject,
    reported: JsonObject,
    state: BTreeMap<String, String>,
    timers: BTreeMap<String, ExpectedTimer>,
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
    wait: Option<Span>,
    restart: Option<Restart>,
    status: Option<Spanned<i32>>,
    answer: Option<Spanned<JsonText>>,
    answer_text: Option<Spanned<String>>,
    reported: Option<Spanned<JsonObject>>,
    state: Option<Spanned<BTreeMap<String, String>>>,
    telemetry: Option<Spanned<Vec<Message>>>,
    fired: Option<Spanned<Vec<String>>>,
    timers: Option<Spanned<BTreeMap<String, ExpectedTimer>>>,
    retry: Option<Spanned<String>>,
    fails: Option<Spanned<String>>,
}

#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "a timer is a text such as \"in 5m\", or { due = \"in 5m\", payload = \"…\" }")]
enum TimerTable {
    Due(String),
    Whole(TimerWhole),
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct TimerWhole {
    due: String,
    payload: Option<String>,
}

impl TryFrom<TimerTable> for ExpectedTimer {
    type Error = String;

    fn try_from(table: TimerTable) -> Result<ExpectedTimer, String> {
        let (due, payload) = match table {
            TimerTable::Due(due) => (due, None),
            TimerTable::Whole(TimerWhole { due, payload }) => (due, payload),
        };
        Ok(ExpectedTimer { due: Due::parse(&due)?, payload })
    }
}

#[derive(serde::Deserialize)]
#[serde(try_from = "String")]
struct Span(Duration);

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Span, String> {
        clock::duration(&text).map(Span)
    }
}

#[derive(serde::Deserialize)]
#[serde(try_from = "String")]
struct Moment(u64);

impl TryFrom<String> for Moment {
    type Error = String;

    fn try_from(text: String) -> Result<Moment, String> {
        clock::moment(&text).map(Moment)
    }
}

/// How long the host is down.
#[derive(serde::Deserialize)]
#[serde(try_from = "RestartTable")]
struct Restart(Duration);

#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "`restart` is true, or for how long the host is down, such as \"1h\"")]
enum RestartTable {
    Now(bool),
    After(String),
}

impl TryFrom<RestartTable> for Restart {
    type Error = String;

    fn try_from(table: RestartTable) -> Result<Restart, String> {
        match table {
            RestartTable::Now(true) => Ok(Restart(Duration::ZERO)),
            RestartTable::Now(false) => Err("`restart = false` says nothing; leave it out".to_owned()),
            RestartTable::After(text) => clock::duration(&text).map(Restart),
        }
    }
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
/// The beginning of 2026, unless the scenario says.
const NOW: u64 = 1_767_225_600_000;

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
    fn time_passes_and_timers_wait() {
        let scenario = parse(
            "[device]\nnow = '2026-01-01T00:00:01Z'\ntimers = { a = 'in 1s' }\n[[step]]\nwait = '1m 30s'\n\
             timers = { a = { due = 'in 5s', payload = '7' } }\n[[step]]\nrestart = '1h'\n",
        )
        .expect("a good file");
        let a = &scenario.start.timers["a"];
        assert_eq!((a, scenario.start.now), (&(Due::In(Duration::from_secs(1)), String::new()), NOW + 1000));
        let [wait, restart] = &scenario.steps[..] else { panic!("two steps") };
        assert!(matches!(wait.action, Action::Wait(time) if time == Duration::from_secs(90)));
        let timers = &wait.expect.timers.as_ref().expect("timers").value;
        assert_eq!((timers["a"].due, timers["a"].payload.as_deref()), (Due::In(Duration::from_secs(5)), Some("7")));
        assert!(matches!(restart.action, Action::Restart { down } if down == Duration::from_secs(3600)));
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
            ("[[step]]\nwait = '1h'\nrestart = true\n", "door.toml:1: a step has one of"),
            ("[[step]]\nwait = '1'\n", "door.toml:2: \"1\" is no span of time such as 90s"),
            ("[[step]]\nrestart = 7\n", "door.toml:2: `restart` is true, or for how long"),
            ("[[step]]\nrestart = false\n", "door.toml:2: `restart = false` says nothing"),
            ("[[step]]\nwait = '1s'\n\ntimers = { a = '5m' }\n", "door.toml:4: \"5m\" is neither `in 5m` nor a time"),
            ("[[step]]\nwait = '1s'\ntimers = { a = { du = '' } }\n", "door.toml:3: a timer is a text such as"),
            ("[device]\nnow = 'noon'\n[[step]]\nwait = '1s'\n", "door.toml:2: \"noon\" is not a time with a zone"),
        ] {
            let error = parse(text).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.starts_with(expect), "{text:?}: {error}");
        }
    }
}
