//! What the actor sends, while there is a connection that it knows of.

use std::time::Instant;

use iothub_protocol::id::RequestId;
use iothub_protocol::link::{TelemetryMessage, ToHub};
use iothub_protocol::topic::{FromDevice, telemetry_topic};
use serde_json::Value;
use tracing::error;

use super::link::PendingReport;
use super::{MAX_PACKET, MAX_REPORTS, MAX_TOPIC, Output, Phase, Publication, REPORT_TIMEOUT, Session, unreported};

impl Session {
    pub(super) fn send(&mut self, now: Instant, message: ToHub) {
        let link = match &mut self.phase {
            Phase::Online(link) if link.is_announced() => Some(link),
            _ => None,
        };
        match (message, link) {
            (ToHub::Reconnect { after }, _) => self.reconnect(now, after),
            (_, None) => {}
            (ToHub::MethodResponse { rid, status, payload }, Some(link)) => {
                if link.method_ended(&rid) {
                    self.answer(rid, status, payload);
                }
            }
            (ToHub::Report { token, patch }, _) => {
                self.report(now, token, Value::Object(patch).to_string());
            }
            (ToHub::MessageTaken { token }, Some(link)) => {
                let packet_id = link.message_ended(token);
                self.outputs.extend(packet_id.map(|packet_id| Output::Acknowledge { packet_id }));
            }
            (ToHub::SubscribeMessages, _) => self.subscribe_messages(),
            (ToHub::Telemetry { token, message }, _) => self.send_telemetry(now, token, *message),
        }
    }

    fn send_telemetry(&mut self, now: Instant, token: u64, message: TelemetryMessage) {
        let topic = telemetry_topic(&self.address(), &message);
        if fits(&topic, &message.body) {
            if let Phase::Online(link) = &mut self.phase {
                link.telemetry_sent(token, now);
            }
            let publication = Publication { topic, payload: message.body, token: Some(token) };
            self.outputs.push_back(Output::Publish(publication));
        } else {
            // No hub can ever take it; kept, it would hold up everything behind it for good.
            let (message_id, bytes) = (&message.message_id, message.body.len());
            error!(device = %self.settings.device_id, message_id, bytes, "message dropped: mqtt cannot carry it");
            self.taken(now, token);
        }
    }

    pub(super) fn answer(&mut self, rid: RequestId, status: i32, payload: String) {
        let topic = FromDevice::MethodResponse { status, rid: rid.clone() };
        if fits(&topic.format(&self.address()), payload.as_bytes()) {
            self.publish(&topic, payload.into_bytes());
        } else {
            let text = r#"{"message":"the answer is larger than a packet may be"}"#;
            self.publish(&FromDevice::MethodResponse { status: 500, rid }, text.into());
        }
    }

    fn report(&mut self, now: Instant, token: u64, patch: String) {
        let (number, rid) = self.request_id();
        let topic = FromDevice::ReportedPatch { rid, version: None };
        let is_too_large = !fits(&topic.format(&self.address()), patch.as_bytes());
        let Phase::Online(link) = &mut self.phase else { return };
        let refusal = if is_too_large {
            Some((413, "the patch is larger than a packet may be"))
        } else if link.reports.len() >= MAX_REPORTS {
            Some((429, "too many patches without an answer"))
        } else {
            None
        };
        match refusal {
            Some((status, text)) => self.outputs.push_back(Output::Deliver(unreported(token, status, text))),
            None => {
                link.reports.insert(number, PendingReport { token, deadline: now + REPORT_TIMEOUT });
                self.publish(&topic, patch.into_bytes());
            }
        }
    }
}

/// Whether MQTT can carry it: a packet over the limit would end the connection, and wildcards are no topic.
fn fits(topic: &str, payload: &[u8]) -> bool {
    topic.len() <= MAX_TOPIC && !topic.contains(['+', '#']) && topic.len() + payload.len() + 16 <= MAX_PACKET
}
