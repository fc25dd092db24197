//! What happened on the hub lately, for whoever follows: telemetry, reported changes, devices coming and going.
//!
//! Kept in a ring bounded in number and bytes; an event that nobody took in time is gone, as the hub is no archive.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use iothub_protocol::feedback::{FeedbackRecord, MessageEnd};
use iothub_protocol::id::DeviceId;
use iothub_protocol::time;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

/// Events kept: enough for a burst from 10,000 devices.
const MAX_EVENTS: usize = 10_000;
/// Bytes kept, so that large messages cannot make the hub large.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// What an event takes beside its body and properties, roughly.
const EVENT_OVERHEAD: usize = 200;
/// What a property or another value takes beside its text, roughly.
const VALUE_OVERHEAD: usize = 100;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct HubEvent {
    pub device: DeviceId,
    pub time: DateTime<Utc>,
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// A device-to-cloud message, with system properties (`$.mid` and so on) first.
    Telemetry {
        properties: Vec<(String, String)>,
        body: Bytes,
    },
    /// Reported properties changed.
    Reported {
        version: u64,
        patch: Map<String, Value>,
    },
    Connected,
    Disconnected,
    Created,
    Deleted,
    /// A cloud-to-device message was queued.
    Queued {
        message_id: Option<String>,
        sequence: u64,
    },
    /// A cloud-to-device message has left its queue.
    Settled {
        message_id: Option<String>,
        sequence: u64,
        ended: MessageEnd,
        /// The feedback that its sender asked for, with its number.
        feedback: Option<(u64, FeedbackRecord)>,
    },
}

impl HubEvent {
    pub(crate) fn telemetry(
        device: DeviceId,
        time: DateTime<Utc>,
        properties: Vec<(String, String)>,
        body: &[u8],
    ) -> HubEvent {
        // Copied: a slice of what came from a socket would keep all of that.
        HubEvent { device, time, kind: EventKind::Telemetry { properties, body: Bytes::copy_from_slice(body) } }
    }

    pub(crate) fn reported(device: DeviceId, time: DateTime<Utc>, version: u64, patch: Map<String, Value>) -> HubEvent {
        HubEvent { device, time, kind: EventKind::Reported { version, patch } }
    }

    pub(crate) fn connected(device: DeviceId, time: DateTime<Utc>) -> HubEvent {
        HubEvent { device, time, kind: EventKind::Connected }
    }

    pub(crate) fn disconnected(device: DeviceId, time: DateTime<Utc>) -> HubEvent {
        HubEvent { device, time, kind: EventKind::Disconnected }
    }

    pub(crate) fn created(device: DeviceId, time: DateTime<Utc>) -> HubEvent {
        HubEvent { device, time, kind: EventKind::Created }
    }

    pub(crate) fn deleted(device: DeviceId, time: DateTime<Utc>) -> HubEvent {
        HubEvent { device, time, kind: EventKind::Deleted }
    }

    pub(crate) fn queued(device: DeviceId, time: DateTime<Utc>, message_id: Option<String>, sequence: u64) -> HubEvent {
        HubEvent { device, time, kind: EventKind::Queued { message_id, sequence } }
    }

    pub(crate) fn settled(
        device: DeviceId,
        time: DateTime<Utc>,
        message_id: Option<String>,
        sequence: u64,
        ended: MessageEnd,
        feedback: Option<(u64, FeedbackRecord)>,
    ) -> HubEvent {
        HubEvent { device, time, kind: EventKind::Settled { message_id, sequence, ended, feedback } }
    }

    /// The kind's name, as filters and JSON have it.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            EventKind::Telemetry { .. } => "telemetry",
            EventKind::Reported { .. } => "reported",
            EventKind::Connected => "connected",
            EventKind::Disconnected => "disconnected",
            EventKind::Created => "created",
            EventKind::Deleted => "deleted",
            EventKind::Queued { .. } => "queued",
            EventKind::Settled { .. } => "settled",
        }
    }

    /// One line of `latch events --json`. A body that is JSON stands as JSON, other text as text, bytes as
    /// `bodyBase64`.
    pub fn to_json(&self, sequence: u64) -> Value {
        let mut line = Map::new();
        line.insert("sequence".into(), json!(sequence));
        line.insert("time".into(), json!(time::format(self.time)));
        line.insert("kind".into(), json!(self.kind_name()));
        line.insert("deviceId".into(), json!(self.device));
        match &self.kind {
            EventKind::Telemetry { properties, body } => {
                let properties: Map<_, _> = properties.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
                line.insert("properties".into(), Value::Object(properties));
                let (name, body) = body_member(body);
                line.insert(name.into(), body);
            }
            EventKind::Reported { version, patch } => {
                line.insert("version".into(), json!(version));
                line.insert("patch".into(), json!(patch));
            }
            EventKind::Connected | EventKind::Disconnected | EventKind::Created | EventKind::Deleted => {}
            EventKind::Queued { message_id, sequence } => {
                line.insert("messageId".into(), json!(message_id));
                line.insert("messageSequence".into(), json!(sequence));
            }
            EventKind::Settled { message_id, sequence, ended, .. } => {
                line.insert("messageId".into(), json!(message_id));
                line.insert("messageSequence".into(), json!(sequence));
                line.insert("statusCode".into(), json!(ended.name()));
            }
        }
        Value::Object(line)
    }

    fn bytes(&self) -> usize {
        EVENT_OVERHEAD
            + match &self.kind {
                EventKind::Telemetry { properties, body } => {
                    body.len() + properties.iter().map(|(k, v)| VALUE_OVERHEAD + k.len() + v.len()).sum::<usize>()
                }
                EventKind::Reported { patch, .. } => members_size(patch),
                _ => 0,
            }
    }
}

/// A message's body under the name that says how it is shown: JSON as JSON, other text as text, bytes in base64.
pub(crate) fn body_member(body: &[u8]) -> (&'static str, Value) {
    match (serde_json::from_slice::<Value>(body), std::str::from_utf8(body)) {
        (Ok(document), _) => ("body", document),
        (Err(_), Ok(text)) => ("body", json!(text)),
        (Err(_), Err(_)) => ("bodyBase64", json!(BASE64.encode(body))),
    }
}

fn members_size(members: &Map<String, Value>) -> usize {
    members.iter().map(|(key, value)| VALUE_OVERHEAD + key.len() + value_size(value)).sum()
}

fn value_size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(|item| VALUE_OVERHEAD + value_size(item)).sum(),
        Value::Object(members) => members_size(members),
    }
}

/// The ring, shared by the hub that fills it and those who follow.
#[derive(Clone)]
pub struct EventLog {
    ring: Arc<Mutex<Ring>>,
    /// The sequence number that the next event gets.
    next: watch::Sender<u64>,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<Arc<HubEvent>>,
    bytes: usize,
    first: u64,
}

/// Events that were asked for.
#[derive(Debug, Clone)]
pub struct Page {
    pub events: Vec<(u64, Arc<HubEvent>)>,
    /// Ask from here next.
    pub next: u64,
    /// How many between what was asked for and what is here are gone.
    pub missed: u64,
}

impl EventLog {
    pub fn new() -> EventLog {
        EventLog { ring: Arc::default(), next: watch::Sender::new(0) }
    }

    pub(crate) fn push(&self, event: HubEvent) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.bytes += event.bytes();
        ring.events.push_back(Arc::new(event));
        while ring.events.len() > MAX_EVENTS || ring.bytes > MAX_BYTES {
            let Some(oldest) = ring.events.pop_front() else { break };
            ring.bytes -= oldest.bytes();
            ring.first += 1;
        }
        self.next.send_replace(ring.first + ring.events.len() as u64);
    }

    /// The sequence number that the next event will get.
    pub fn next(&self) -> u64 {
        *self.next.borrow()
    }

    /// Up to `limit` events from number `from` on.
    pub fn page(&self, from: u64, limit: usize) -> Page {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let start = from.max(ring.first);
        let skip = usize::try_from(start - ring.first).unwrap_or(usize::MAX);
        let events = ring.events.iter().skip(skip).take(limit).cloned().zip(start..);
        let events: Vec<_> = events.map(|(event, sequence)| (sequence, event)).collect();
        Page { next: start + events.len() as u64, missed: start - from, events }
    }

    /// Wait until there is an event with number `from` or later. `false` if the hub has ended.
    pub async fn wait(&self, from: u64) -> bool {
        self.next.subscribe().wait_for(|next| *next > from).await.is_ok()
    }
}

impl Default for EventLog {
    fn default() -> EventLog {
        EventLog::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(body: &str) -> HubEvent {
        let id = DeviceId::parse("d1").expect("an id");
        HubEvent::telemetry(id, DateTime::UNIX_EPOCH, vec![("$.mid".into(), "1".into())], body.as_bytes())
    }

    #[test]
    fn the_ring_is_bounded_and_tells_what_is_gone() {
        let log = EventLog::new();
        for _ in 0..MAX_EVENTS + 5 {
            log.push(event("{}"));
        }
        let page = log.page(0, 3);
        assert_eq!((page.missed, page.events[0].0, page.next), (5, 5, 8));
        let page = log.page(u64::MAX, 3);
        assert_eq!((page.missed, page.events.len(), page.next), (0, 0, u64::MAX));
        let large = "x".repeat(256 * 1024);
        for _ in 0..100 {
            log.push(event(&large));
        }
        let kept = log.page(0, usize::MAX).events.len();
        assert!(kept < 64, "{kept} events of 256 KiB");
    }

    #[test]
    fn a_body_is_shown_as_what_it_is() {
        assert_eq!(event("{\"a\":1}").to_json(0)["body"], json!({"a": 1}));
        assert_eq!(event("hello").to_json(0)["body"], json!("hello"));
        let mut bytes = event("");
        bytes.kind = EventKind::Telemetry { properties: vec![], body: Bytes::from_static(&[0xff]) };
        assert_eq!(bytes.to_json(0)["bodyBase64"], json!("/w=="));
    }
}
