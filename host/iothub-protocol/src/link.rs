//! What travels on one device's connection, as data: the only thing that a connection and an actor share.
//!
//! A connection turns MQTT into [`FromHub`] and [`ToHub`] into MQTT. It subscribes and GETs the twin on every connect,
//! by the rule that every SDK follows: subscribe, GET, then notices newer than what the GET brought.

use std::time::Duration;

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
    /// Part from the hub, which tells whoever waits for an answer, and connect anew after this time at the earliest. What
    /// follows is as after any break: [`FromHub::Connected`] and the whole twin.
    Reconnect { after: Duration },
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

/// A twin as a device gets it: no tags, no metadata, `$version` taken out of each section.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TwinDocument {
    pub desired: Map<String, Value>,
    pub desired_version: u64,
    pub reported: Map<String, Value>,
    pub reported_version: u64,
}
