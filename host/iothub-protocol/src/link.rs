//! What travels on one device's connection, as data: the only thing that a connection and an actor share.
//!
//! A connection turns MQTT into [`FromHub`] and [`ToHub`] into MQTT. It subscribes and GETs the twin on every connect,
//! by the rule that every SDK follows: subscribe, GET, then notices newer than what the GET brought.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use crate::id::{MethodName, RequestId};

/// From the hub, through the connection, to the device's actor.
#[derive(Debug, Clone, PartialEq)]
pub enum FromHub {
    /// Connected, subscribed, and nothing received yet. A [`FromHub::Twin`] follows.
    Connected,
    /// The link is gone; the connection tries again by itself. Methods in flight have lost their caller.
    Disconnected { reason: String },
    /// The whole twin, asked for after each connect. Always counts.
    Twin(TwinDocument),
    /// Desired properties changed. Counts only if `version` is above the last one seen.
    Desired { version: u64, patch: Map<String, Value> },
    /// A direct method was invoked. Answer with [`ToHub::MethodResponse`] and the same `rid`. `payload` is the JSON
    /// text as it came, `null` if there was none.
    Method { rid: RequestId, name: MethodName, payload: String },
    /// The hub's answer to [`ToHub::Report`] with the same `token`. 204 means recorded.
    Reported { token: u64, status: u16, version: Option<u64>, message: String },
    /// The hub has taken the message with this `token` ([`ToHub::Telemetry`]).
    TelemetryTaken { token: u64 },
    /// A cloud-to-device message. Answer with [`ToHub::MessageTaken`] and the same `token` once it is dealt with for
    /// good; until then it stays in the hub's queue and may come again: with the same token on the same connection, or
    /// with another one.
    Message { token: u64, message: CloudMessage },
}

/// From a device's actor, through the connection, to the hub.
#[derive(Debug, Clone, PartialEq)]
pub enum ToHub {
    /// The answer to a direct method; dropped if the link broke since, as the hub has told the caller.
    MethodResponse { rid: RequestId, status: i32, payload: String },
    /// Merge into the reported properties. Dropped when not connected; after a connect the actor sends again.
    Report { token: u64, patch: Map<String, Value> },
    /// A device-to-cloud message, QoS 1. Dropped when not connected; after a connect the actor sends again.
    Telemetry { token: u64, message: TelemetryMessage },
    /// The message with this `token` ([`FromHub::Message`]) is dealt with: the hub may forget it, and tells whoever asked
    /// for feedback. There is no other answer, since a device on MQTT can complete a message but neither reject nor
    /// abandon it. Dropped if the link broke since, as the hub brings the message again.
    MessageTaken { token: u64 },
    /// Subscribe to cloud-to-device messages, once for each connection: what is not subscribed to waits in the hub's queue
    /// until it expires. Said after [`FromHub::Connected`] by a device that deals with messages. A hub remembers the
    /// subscription, so later connections may bring messages without it.
    SubscribeMessages,
}

/// A device-to-cloud message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetryMessage {
    /// The same on each try, so that a back end can tell a repetition.
    pub message_id: String,
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    /// Application properties.
    pub properties: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// A cloud-to-device message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CloudMessage {
    /// Given by the sender, and the same on each delivery. A sender may leave it out or use it twice.
    pub message_id: Option<String>,
    /// What it answers to.
    pub correlation_id: Option<String>,
    /// Who sent it, as far as the sender says so.
    pub user_id: Option<String>,
    /// When the hub drops it, to the millisecond.
    pub expiry: Option<DateTime<Utc>>,
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    /// What the hub tells the sender about it.
    pub feedback: Feedback,
    /// Application properties, in their order. A name that begins with `$.`, or is `iothub-ack`, means something to the
    /// hub and cannot travel here.
    pub properties: Vec<(String, String)>,
    /// Any bytes; the hub takes at most 64 KiB.
    pub body: Vec<u8>,
}

/// Which outcomes of a cloud-to-device message its sender wants to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Feedback {
    #[default]
    None,
    /// That it was completed.
    Positive,
    /// That it expired or was delivered too often.
    Negative,
    Full,
}

/// A twin as a device gets it: no tags, no metadata, `$version` taken out of each section.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TwinDocument {
    pub desired: Map<String, Value>,
    pub desired_version: u64,
    pub reported: Map<String, Value>,
    pub reported_version: u64,
}
