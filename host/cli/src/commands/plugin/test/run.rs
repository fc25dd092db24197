//! One run of a scenario: step by step, until one does not do as expected.

use std::collections::BTreeMap;
use std::sync::Arc;

use iothub_protocol::id::MethodName;
use plugin_runtime::{CallFailure, Instance, OutgoingTelemetry, PluginVersion, Runtime, Snapshot, Verdict};
use serde_json::{Map, Value};

use super::super::or_none;
use super::device::Device;
use super::difference::{Difference, compare};
use super::scenario::{Action, At, Expect, Message, Scenario, Step};

/// How long an instance lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instances {
    OneForEachStep,
    OneForAll,
}

impl Instances {
    pub(super) fn words(self) -> &'static str {
        match self {
            Instances::OneForEachStep => "with a new instance for each step",
            Instances::OneForAll => "with one instance for all steps",
        }
    }
}

/// Where a run stopped.
pub(super) struct Stop {
    pub(super) step: usize,
    pub(super) differences: Vec<Difference>,
}

/// Runs `scenario` until a step goes wrong.
pub(super) async fn run(
    runtime: &Runtime,
    version: &Arc<PluginVersion>,
    scenario: &Scenario,
    instances: Instances,
) -> Option<Stop> {
    let mut run = Run { runtime, version, device: Device::new(&scenario.start), instance: None };
    for (number, step) in scenario.steps.iter().enumerate() {
        let done = run.step(&step.action).await;
        if instances == Instances::OneForEachStep {
            run.instance = None;
        }
        let differences = differences(step, &done, &run.device);
        if !differences.is_empty() {
            return Some(Stop { step: number, differences });
        }
    }
    None
}

struct Run<'a> {
    runtime: &'a Runtime,
    version: &'a Arc<PluginVersion>,
    device: Device,
    instance: Option<Instance>,
}

/// What a step did, beside what it changed on the device.
struct Done {
    came: Came,
    telemetry: Vec<OutgoingTelemetry>,
}

/// What came of a step.
enum Came {
    Answer {
        status: i32,
        payload: String,
    },
    /// The change was dealt with, or nothing in it was for the plugin.
    DealtWith,
    PutOff(String),
    Failed(String),
}

impl Came {
    fn words(&self) -> String {
        match self {
            Came::Answer { status, .. } => format!("an answer, with status {status}"),
            Came::DealtWith => "the change was dealt with".to_owned(),
            Came::PutOff(reason) => format!("the change was put off: {reason}"),
            Came::Failed(reason) => reason.clone(),
        }
    }
}

impl Run<'_> {
    async fn step(&mut self, action: &Action) -> Done {
        let outcome = match action {
            Action::Call { method, payload } => self.call(method, payload).await,
            Action::Desired { patch, version } => {
                self.device.desire(patch, *version);
                self.react().await
            }
            Action::Again => self.react().await,
        };
        outcome.unwrap_or_else(|reason| {
            // An instance that failed is worth nothing any more.
            self.instance = None;
            Done { came: Came::Failed(reason), telemetry: Vec::new() }
        })
    }

    async fn call(&mut self, method: &MethodName, payload: &str) -> Result<Done, String> {
        if !self.version.methods().contains(method) {
            let names: Vec<_> = self.version.methods().iter().map(ToString::to_string).collect();
            return Err(format!("the plugin does not answer {method}; it answers {}", or_none(&names)));
        }
        let snapshot = self.device.snapshot();
        let call = self.instance().await?.call_method(snapshot, method, payload).await;
        let (response, effects) = call.map_err(|failure| failure.to_string())?;
        let telemetry = self.device.keep(effects);
        Ok(Done { came: Came::Answer { status: response.status, payload: response.payload }, telemetry })
    }

    async fn react(&mut self) -> Result<Done, String> {
        let Some(change) = self.device.change(self.version.watched()) else {
            return Ok(Done { came: Came::DealtWith, telemetry: Vec::new() });
        };
        let patch = Value::Object(change.patch.clone()).to_string();
        let snapshot = self.device.snapshot();
        let reaction = self.instance().await?.changed(snapshot, change.version, &patch).await;
        let (verdict, effects) = reaction.map_err(|failure| failure.to_string())?;
        let telemetry = self.device.keep(effects);
        let came = match verdict {
            Verdict::Done => {
                self.device.dealt_with(change);
                Came::DealtWith
            }
            Verdict::Retry(reason) => Came::PutOff(reason),
        };
        Ok(Done { came, telemetry })
    }

    async fn instance(&mut self) -> Result<&mut Instance, String> {
        let instance = match self.instance.take() {
            Some(instance) => instance,
            None => {
                let Snapshot { device_id, now, .. } = self.device.snapshot();
                let made = self.runtime.instantiate(self.version, &device_id, now).await;
                made.map_err(|failure: CallFailure| failure.to_string())?
            }
        };
        Ok(self.instance.insert(instance))
    }
}

fn differences(step: &Step, done: &Done, device: &Device) -> Vec<Difference> {
    let mut found = Vec::new();
    compare_what_came(step, &done.came, &mut found);
    let Expect { reported, state, telemetry, .. } = &step.expect;
    if let Some(At { line, value }) = reported {
        compare(*line, "reported", value, &Value::Object(device.reported.clone()), &mut found);
    }
    if let Some(At { line, value }) = state {
        compare(*line, "state", &texts(value), &kept(&device.state), &mut found);
    }
    if let Some(At { line, value }) = telemetry {
        let sent: Vec<_> = done.telemetry.iter().zip(0..).map(|(sent, index)| shown(sent, value.get(index))).collect();
        let expected: Vec<_> = value.iter().map(expected_message).collect();
        compare(*line, "telemetry", &Value::Array(expected), &Value::Array(sent), &mut found);
    }
    found
}

fn compare_what_came(step: &Step, came: &Came, into: &mut Vec<Difference>) {
    let expect = &step.expect;
    match (came, &expect.fails, &expect.retry) {
        (Came::Failed(reason), Some(At { value, .. }), _) if reason.contains(value) => {}
        (came, Some(At { line, value }), _) => {
            into.push(Difference::new(*line, "fails", format!("a failure with the words: {value}"), came.words()));
        }
        (Came::PutOff(reason), None, Some(At { value, .. })) if reason.contains(value) => {}
        (came, None, Some(At { line, value })) => {
            into.push(Difference::new(*line, "retry", format!("put off, with the words: {value}"), came.words()));
        }
        (Came::Answer { status, payload }, None, None) => compare_answer(step, *status, payload, into),
        (Came::DealtWith, None, None) => {}
        (came @ (Came::PutOff(_) | Came::Failed(_)), None, None) => {
            let (place, expected) = match step.action {
                Action::Call { .. } => ("call", "an answer"),
                Action::Desired { .. } => ("desired", "the change is dealt with"),
                Action::Again => ("again", "the change is dealt with"),
            };
            into.push(Difference::new(step.line, place, expected, came.words()));
        }
    }
}

fn compare_answer(step: &Step, status: i32, payload: &str, into: &mut Vec<Difference>) {
    let Expect { status: expected_status, answer, answer_text, .. } = &step.expect;
    if let Some(At { line, value }) = expected_status
        && *value != status
    {
        into.push(Difference::new(*line, "status", value.to_string(), format!("{status}, with {payload}")));
    }
    match (serde_json::from_str::<Value>(payload), answer) {
        (Err(error), _) => into.push(Difference::new(step.line, "answer", "JSON", format!("{payload:?}: {error}"))),
        (Ok(payload), Some(At { line, value })) => compare(*line, "answer", value, &payload, into),
        (Ok(_), None) => {}
    }
    if let Some(At { line, value }) = answer_text
        && value != payload
    {
        into.push(Difference::new(*line, "answer-text", value, payload));
    }
}

fn texts(values: &BTreeMap<String, String>) -> Value {
    Value::Object(values.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect())
}

fn kept(values: &BTreeMap<String, Vec<u8>>) -> Value {
    let text = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes));
    Value::Object(values.iter().map(|(key, value)| (key.clone(), text(value))).collect())
}

fn expected_message(message: &Message) -> Value {
    let mut shown = Map::from_iter([("body".to_owned(), body(&message.body))]);
    shown.extend(message.content_type.as_ref().map(|text| ("content-type".to_owned(), text.as_str().into())));
    shown.extend(message.properties.as_ref().map(|values| ("properties".to_owned(), texts(values))));
    Value::Object(shown)
}

/// As much of a message as the scenario speaks of; all of one that it does not expect.
fn shown(sent: &OutgoingTelemetry, expected: Option<&Message>) -> Value {
    let mut shown = Map::from_iter([("body".to_owned(), body(&String::from_utf8_lossy(&sent.body)))]);
    if let Some(text) = &sent.content_type
        && expected.is_none_or(|expected| expected.content_type.is_some())
    {
        shown.insert("content-type".to_owned(), text.as_str().into());
    }
    if expected.is_none_or(|expected| expected.properties.is_some()) {
        shown.insert("properties".to_owned(), texts(&sent.properties.iter().cloned().collect()));
    }
    Value::Object(shown)
}

/// A body is compared as JSON if it is.
fn body(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}
