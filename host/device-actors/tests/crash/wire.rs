//! What the hub and the host under it say to each other: lines of JSON on a socket.

use iothub_protocol::id::{MethodName, RequestId};
use iothub_protocol::link::{CloudMessage, FromHub, ToHub, TwinDocument};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What the hub says to the device.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToHost {
    Connected,
    Twin { desired: Map<String, Value>, version: u64, reported: Map<String, Value> },
    Method { rid: String, entry: String },
    Desired { version: u64, patch: Map<String, Value> },
    Letter { token: u64, entry: String },
    ReportTaken { token: u64 },
    TelemetryTaken { token: u64 },
}

/// A line from the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum FromHost {
    Step(Step),
    Sent(Sent),
}

/// A step that the host has taken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Step {
    /// In the words of the host's log.
    pub(crate) what: String,
    /// What the call is for that it belongs to: `method`, `message`, `change` or `timer`; empty if it belongs to none.
    pub(crate) work: String,
}

/// What has reached the hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Sent {
    Subscribe,
    Answer { rid: String, status: i32, payload: String },
    Report { token: u64, patch: Map<String, Value> },
    Telemetry { token: u64, id: String, body: String },
    LetterTaken { token: u64 },
}

impl FromHost {
    /// That something has reached the hub is a step as well.
    pub(crate) fn step(&self) -> Step {
        match self {
            FromHost::Step(step) => step.clone(),
            FromHost::Sent(sent) => Step { what: sent.arrival().to_owned(), work: String::new() },
        }
    }
}

impl Sent {
    fn arrival(&self) -> &'static str {
        match self {
            Sent::Subscribe => "hub has the subscription",
            Sent::Answer { .. } => "hub has an answer",
            Sent::Report { .. } => "hub has reported properties",
            Sent::Telemetry { .. } => "hub has telemetry",
            Sent::LetterTaken { .. } => "hub knows that a message is dealt with",
        }
    }
}

impl From<ToHost> for FromHub {
    fn from(message: ToHost) -> FromHub {
        match message {
            ToHost::Connected => FromHub::Connected,
            ToHost::Twin { desired, version, reported } => {
                FromHub::Twin(TwinDocument { desired, desired_version: version, reported, reported_version: 1 })
            }
            ToHost::Method { rid, entry } => FromHub::Method {
                rid: RequestId::parse(&rid).expect("an id"),
                name: MethodName::parse("note").expect("a name"),
                payload: format!("\"{entry}\""),
            },
            ToHost::Desired { version, patch } => FromHub::Desired { version, patch },
            ToHost::Letter { token, entry } => {
                let body = entry.clone().into_bytes();
                let message = CloudMessage { message_id: Some(entry), body, ..CloudMessage::default() };
                FromHub::Message { token, message: Box::new(message) }
            }
            ToHost::ReportTaken { token } => {
                FromHub::Reported { token, status: 204, version: None, message: String::new() }
            }
            ToHost::TelemetryTaken { token } => FromHub::TelemetryTaken { token },
        }
    }
}

impl From<ToHub> for Sent {
    fn from(message: ToHub) -> Sent {
        match message {
            ToHub::SubscribeMessages => Sent::Subscribe,
            ToHub::MethodResponse { rid, status, payload } => Sent::Answer { rid: rid.to_string(), status, payload },
            ToHub::Report { token, patch } => Sent::Report { token, patch },
            ToHub::Telemetry { token, message } => {
                let body = String::from_utf8(message.body).expect("text");
                Sent::Telemetry { token, id: message.message_id, body }
            }
            ToHub::MessageTaken { token } => Sent::LetterTaken { token },
            ToHub::Reconnect { .. } => panic!("an actor has failed"),
        }
    }
}
