//! One run of a scenario: step by step, until one does not do as expected.

use std::collections::BTreeMap;
use std::sync::Arc;

use iothub_protocol::link::TelemetryMessage;
use plugin_runtime::{PluginVersion, Runtime, Timer};
use serde_json::{Map, Value, json};

use super::super::or_none;
use super::clock::from_now;
use super::difference::{Difference, compare};
use super::host::{Brought, Came, Happened, Host};
use super::scenario::{Action, At, Expect, ExpectedTimer, Message, Scenario, Step};

/// How long an instance lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instances {
    OneForEachCall,
    OneForAll,
}

impl Instances {
    pub(super) fn words(self) -> &'static str {
        match self {
            Instances::OneForEachCall => "with a new instance for each call",
            Instances::OneForAll => "with one instance for all calls",
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
    let mut host = Host::new(runtime, version, &scenario.start, instances);
    // What comes of it belongs to the first step.
    host.connect().await;
    for (number, step) in scenario.steps.iter().enumerate() {
        take(&mut host, version, &step.action).await;
        let happened = host.take_happened();
        let differences = differences(step, &happened, &host);
        if !differences.is_empty() {
            return Some(Stop { step: number, differences });
        }
    }
    None
}

async fn take(host: &mut Host<'_>, version: &PluginVersion, action: &Action) {
    match action {
        Action::Call { method, payload } => {
            if version.methods().contains(method) {
                return host.call(method, payload).await;
            }
            let names: Vec<_> = version.methods().iter().map(ToString::to_string).collect();
            host.fail(format!("the plugin does not answer {method}; it answers {}", or_none(&names)));
        }
        Action::Desired { patch, version } => host.desire(patch, *version).await,
        Action::Again => host.wait_for_again().await,
        Action::Wait(time) => host.wait(*time).await,
        Action::Restart { down } => host.restart(*down).await,
    }
}

fn differences(step: &Step, happened: &Happened, host: &Host<'_>) -> Vec<Difference> {
    let mut found = Vec::new();
    compare_what_came(step, happened, &mut found);
    let Expect { reported, state, telemetry, fired, timers, .. } = &step.expect;
    if let Some(At { line, value }) = fired {
        let names = happened.calls.iter().filter_map(|(brought, _)| match brought {
            Brought::Timer(name) => Some(Value::from(name.as_str())),
            _ => None,
        });
        compare(*line, "fired", &json!(value), &names.collect(), &mut found);
    }
    if let Some(At { line, value }) = reported {
        compare(*line, "reported", value, &Value::Object(host.reported().clone()), &mut found);
    }
    if let Some(At { line, value }) = state {
        let kept = host.state().map(|(key, value)| (key.clone(), Value::from(String::from_utf8_lossy(value))));
        compare(*line, "state", &texts(value), &Value::Object(kept.collect()), &mut found);
    }
    if let Some(At { line, value }) = timers {
        let now = host.now();
        let expected = value.iter().map(|(name, timer)| (name.clone(), expected_timer(timer, now)));
        let set = host.timers().map(|(name, timer)| (name.clone(), shown_timer(timer, value.get(name), now)));
        let (expected, set) = (Value::Object(expected.collect()), Value::Object(set.collect()));
        compare(*line, "timers", &expected, &set, &mut found);
    }
    if let Some(At { line, value }) = telemetry {
        let sent = happened.telemetry.iter().zip(0..).map(|(sent, index)| shown(sent, value.get(index)));
        let expected: Vec<_> = value.iter().map(expected_message).collect();
        compare(*line, "telemetry", &Value::Array(expected), &sent.collect(), &mut found);
    }
    found
}

fn compare_what_came(step: &Step, happened: &Happened, into: &mut Vec<Difference>) {
    let Expect { fails, retry, .. } = &step.expect;
    let failed = happened.calls.iter().filter_map(|(brought, came)| match came {
        Came::Failed(reason) => Some((brought, reason)),
        _ => None,
    });
    let put_off = happened.calls.iter().filter_map(|(brought, came)| match came {
        Came::PutOff(reason) => Some((brought, reason)),
        _ => None,
    });
    compare_reasons(step, happened, ("fails", "a failure", fails.as_ref()), failed, into);
    compare_reasons(step, happened, ("retry", "put off", retry.as_ref()), put_off, into);
    if let Some(trouble) = &happened.trouble {
        let fails_so = fails.as_ref().is_some_and(|At { value, .. }| trouble.contains(value));
        if !fails_so {
            into.push(Difference::new(step.line, step.action.name(), step.action.wish(), trouble));
        }
    }
    if fails.is_none() && happened.trouble.is_none() {
        compare_answer(step, happened, into);
    }
}

/// Every reason must have the words that are expected, and there must be one if any are.
fn compare_reasons<'a>(
    step: &Step,
    happened: &Happened,
    (key, what, expected): (&str, &str, Option<&At<String>>),
    reasons: impl Iterator<Item = (&'a Brought, &'a String)>,
    into: &mut Vec<Difference>,
) {
    let trouble = happened.trouble.as_ref().filter(|_| key == "fails");
    let mut is_met = expected.is_some_and(|At { value, .. }| trouble.is_some_and(|trouble| trouble.contains(value)));
    for (brought, reason) in reasons {
        match expected {
            Some(At { value, .. }) if reason.contains(value) => is_met = true,
            Some(At { line, value }) => {
                into.push(Difference::new(*line, key, format!("{what}, with the words: {value}"), reason));
                return;
            }
            None => {
                let found = if key == "retry" { format!("it is put off: {reason}") } else { reason.clone() };
                into.push(Difference::new(step.line, brought.place(), brought.wish(), found));
            }
        }
    }
    if let Some(At { line, value }) = expected.filter(|_| !is_met) {
        into.push(Difference::new(*line, key, format!("{what}, with the words: {value}"), words(happened)));
    }
}

/// What happened instead of a failure, in short.
fn words(happened: &Happened) -> String {
    if let Some(trouble) = &happened.trouble {
        return trouble.clone();
    }
    if let Some((status, _)) = &happened.answer {
        return format!("an answer, with status {status}");
    }
    match happened.calls.last() {
        Some((brought, Came::DealtWith)) => format!("{} was dealt with", brought.words()),
        Some((brought, Came::PutOff(reason))) => format!("{} was put off: {reason}", brought.words()),
        Some((_, Came::Failed(reason))) => reason.clone(),
        None => "nothing was brought to the plugin".to_owned(),
    }
}

fn compare_answer(step: &Step, happened: &Happened, into: &mut Vec<Difference>) {
    if !matches!(step.action, Action::Call { .. }) || happened.has_failed_call() {
        return;
    }
    let Some((status, payload)) = &happened.answer else {
        into.push(Difference::new(step.line, "call", "an answer", "none"));
        return;
    };
    let Expect { status: expected_status, answer, answer_text, .. } = &step.expect;
    if let Some(At { line, value }) = expected_status
        && value != status
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

fn expected_timer(timer: &ExpectedTimer, now: u64) -> Value {
    let mut shown = Map::from_iter([("due".to_owned(), timer.due.in_the_words_of(timer.due.at(now), now).into())]);
    shown.extend(timer.payload.as_ref().map(|text| ("payload".to_owned(), body(text))));
    Value::Object(shown)
}

/// As much of a timer as the scenario speaks of.
fn shown_timer(timer: &Timer, expected: Option<&ExpectedTimer>, now: u64) -> Value {
    let due = match expected {
        Some(expected) => expected.due.in_the_words_of(timer.due, now),
        None => from_now(timer.due, now),
    };
    let mut shown = Map::from_iter([("due".to_owned(), due.into())]);
    if expected.is_none_or(|expected| expected.payload.is_some()) {
        shown.insert("payload".to_owned(), body(&String::from_utf8_lossy(&timer.payload)));
    }
    Value::Object(shown)
}

fn expected_message(message: &Message) -> Value {
    let mut shown = Map::from_iter([("body".to_owned(), body(&message.body))]);
    shown.extend(message.content_type.as_ref().map(|text| ("content-type".to_owned(), text.as_str().into())));
    shown.extend(message.properties.as_ref().map(|values| ("properties".to_owned(), texts(values))));
    Value::Object(shown)
}

/// As much of a message as the scenario speaks of; all of one that it does not expect.
fn shown(sent: &TelemetryMessage, expected: Option<&Message>) -> Value {
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
