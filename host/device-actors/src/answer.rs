//! Answers to direct methods that come from the host and not from a plugin.

use std::fmt;
use std::time::Duration;

use iothub_protocol::id::MethodName;
use iothub_protocol::method::MAX_PAYLOAD;
use plugin_runtime::GuestResponse;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};

use crate::failure::{Failure, FailureKind};
use crate::lineup::{Lineup, Plugin};

/// A status and a payload that is JSON and within the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: i32,
    pub(crate) payload: String,
}

impl Answer {
    fn host(status: i32, payload: &Value) -> Answer {
        Answer { status, payload: payload.to_string() }
    }

    /// What the plugin answered, or 500 if it is nothing that the hub would take. Read whole, as a hub does: JSON in
    /// form only, such as a thousand arrays in each other, would come to the caller as no answer at all.
    pub(crate) fn of_guest(plugin: &Plugin, response: GuestResponse) -> Answer {
        let reason = if response.payload.len() > MAX_PAYLOAD {
            "the answer is larger than 128 KiB"
        } else if serde_json::from_str::<Json>(&response.payload).is_err() {
            "the answer is not JSON"
        } else {
            return Answer { status: response.status, payload: response.payload };
        };
        Answer::host(500, &about(plugin, "invalid-answer", reason))
    }

    /// The plugin did not return. Its own words go to the log: they may hold what a caller must not see.
    pub(crate) fn failed(plugin: &Plugin, failure: &Failure) -> Answer {
        let (status, error) = match failure.kind {
            FailureKind::Timeout => (504, "timeout"),
            FailureKind::Trap => (500, "trap"),
            FailureKind::Memory => (500, "memory"),
            FailureKind::Start => (500, "start"),
            FailureKind::Activation => (500, "activation"),
        };
        Answer::host(status, &about(plugin, error, failure.kind.reason()))
    }

    pub(crate) fn not_recorded(plugin: &Plugin) -> Answer {
        Answer::host(500, &about(plugin, "not-recorded", "what the plugin did could not be recorded and was undone"))
    }

    pub(crate) fn paused(plugin: &Plugin, left: Duration) -> Answer {
        Answer::later(about(plugin, "paused", "the plugin failed several times in a row"), left)
    }

    pub(crate) fn not_activated(plugin: &Plugin, left: Duration) -> Answer {
        Answer::later(about(plugin, "not-activated", FailureKind::Activation.reason()), left)
    }

    fn later(mut payload: Value, left: Duration) -> Answer {
        payload["retryAfterMs"] = json!(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        Answer::host(503, &payload)
    }

    pub(crate) fn no_such_method(lineup: &Lineup, name: &MethodName) -> Answer {
        let reason = format!("no plugin answers {name}");
        Answer::host(404, &json!({"error": "no-such-method", "reason": reason, "methods": lineup.methods()}))
    }

    pub(crate) fn mailbox_full(limit: usize) -> Answer {
        let reason = format!("{limit} methods are waiting for this device already");
        Answer::host(429, &json!({"error": "mailbox-full", "reason": reason}))
    }
}

fn about(plugin: &Plugin, error: &str, reason: &str) -> Value {
    json!({"error": error, "plugin": plugin.name.as_str(), "version": &*plugin.label, "reason": reason})
}

/// What can be read as [`Value`], read without keeping it.
struct Json;

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(Json)
    }
}

impl<'de> Visitor<'de> for Json {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json)
    }

    fn visit_str<E>(self, _: &str) -> Result<Json, E> {
        Ok(Json)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Json, A::Error> {
        while elements.next_element::<Json>()?.is_some() {}
        Ok(Json)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        while members.next_entry::<Json, Json>()?.is_some() {}
        Ok(Json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_what_a_hub_can_read() {
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let texts =
            ["null", " true ", "-1", "18446744073709551616", "1.5e3", r#""a\u00e9""#, r#"{"a": [1, {"b": ""}]}"#];
        let wrong = ["", "nul", "1e999", "01", "[1,]", r#"{"a"}"#, r#""\ud800""#, "1 2", "{1: 2}"];
        for text in texts.into_iter().chain(wrong).map(str::to_owned).chain([deep(100), deep(1000)]) {
            let as_value = serde_json::from_str::<Value>(&text).is_ok();
            assert_eq!(serde_json::from_str::<Json>(&text).is_ok(), as_value, "{text}");
        }
        assert!(texts.iter().all(|text| serde_json::from_str::<Json>(text).is_ok()));
        assert!(wrong.iter().all(|text| serde_json::from_str::<Json>(text).is_err()));
    }
}
