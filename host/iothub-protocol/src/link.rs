//! What travels on one device's connection, as data: the only thing that a connection and an actor share.
//!
//! A connection turns MQTT into [`FromHub`] and [`ToHub`] into MQTT. It subscribes and GETs the twin on every connect,
//! by the rule that every SDK follows: subscribe, GET, then notices newer than what the GET brought.

use std::time::Duration;

use chrono::{DateTime, Utc};
use ring::digest::{Context, SHA256};
use serde_json::{Map, Value};

use crate::id::{MethodName, RequestId};
use crate::time;

/// From the hub, through the connection, to the device's actor. A device's channels have room for many messages even
/// when there are none, so those with many parts are on the heap.
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
    Message { token: u64, message: Box<CloudMessage> },
}

/// From a device's actor, through the connection, to the hub.
#[derive(Debug, Clone, PartialEq)]
pub enum ToHub {
    /// The answer to a direct method; dropped if the link broke since, as the hub has told the caller.
    MethodResponse { rid: RequestId, status: i32, payload: String },
    /// Merge into the reported properties. Dropped when not connected; after a connect the actor sends again.
    Report { token: u64, patch: Map<String, Value> },
    /// A device-to-cloud message, QoS 1. Dropped when not connected; after a connect the actor sends again.
    Telemetry { token: u64, message: Box<TelemetryMessage> },
    /// The message with this `token` ([`FromHub::Message`]) is dealt with: the hub may forget it, and tells whoever
    /// asked for feedback. There is no other answer, since a device on MQTT can complete a message but neither reject
    /// nor abandon it. Dropped if the link broke since, as the hub brings the message again.
    MessageTaken { token: u64 },
    /// Subscribe to cloud-to-device messages, once for each connection: what is not subscribed to waits in the hub's
    /// queue until it expires. Said after [`FromHub::Connected`] by a device that deals with messages. A hub remembers
    /// the subscription, so later connections may bring messages without it.
    SubscribeMessages,
    /// Part from the hub, which tells whoever waits for an answer, and connect anew after this time at the earliest.
    /// What follows is as after any break: [`FromHub::Connected`] and the whole twin.
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

impl CloudMessage {
    /// What tells this message from any other, the same on each delivery, today and in later versions: a digest of
    /// everything in it. `None` without a message id: two messages that say the same may then be two.
    ///
    /// The id alone would not do, since senders that count from 1 at each start use ids again.
    pub fn fingerprint(&self) -> Option<u128> {
        let id = self.message_id.as_deref()?;
        let expiry = self.expiry.map(time::format);
        let optional = [&self.correlation_id, &self.user_id, &expiry, &self.content_type, &self.content_encoding];
        let properties = self.properties.iter().flat_map(|(name, value)| [Some(name.as_str()), Some(value.as_str())]);
        let texts = [Some(id)].into_iter().chain(optional.map(|text| text.as_deref())).chain(properties);
        let mut context = Context::new(&SHA256);
        for text in texts {
            // With its length, so that what ends one text cannot begin the next.
            context.update(&text.map_or(u64::MAX, |text| text.len() as u64).to_be_bytes());
            context.update(text.unwrap_or_default().as_bytes());
        }
        context.update(&self.body);
        let digest = context.finish();
        // Half of it is enough to tell apart the last messages of one device.
        let half = digest.as_ref().first_chunk().expect("a SHA-256 has 32 bytes");
        Some(u128::from_be_bytes(*half))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_covers_the_whole_message() {
        let message = CloudMessage { message_id: Some("1".into()), body: b"lock".to_vec(), ..CloudMessage::default() };
        let fingerprint = message.fingerprint().expect("a message with an id");
        assert_eq!(
            fingerprint, 70145056637529027150897372803126060893,
            "what was recorded by an earlier version is compared with it"
        );
        let property = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let others = [
            CloudMessage { message_id: Some("2".into()), ..message.clone() },
            CloudMessage { correlation_id: Some(String::new()), ..message.clone() },
            CloudMessage { user_id: Some(String::new()), ..message.clone() },
            CloudMessage { expiry: Some(DateTime::UNIX_EPOCH), ..message.clone() },
            CloudMessage { properties: property("a", "bc"), ..message.clone() },
            CloudMessage { properties: property("ab", "c"), ..message.clone() },
            CloudMessage { body: b"unlock".to_vec(), ..message.clone() },
        ];
        let all: std::collections::BTreeSet<_> = others.iter().map(CloudMessage::fingerprint).collect();
        assert!(all.len() == others.len() && !all.contains(&Some(fingerprint)), "{all:?}");
        assert_eq!(CloudMessage { message_id: None, ..message }.fingerprint(), None);
    }
}
