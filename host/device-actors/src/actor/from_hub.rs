//! What an actor makes of what comes from the hub.

use std::time::Instant;

use iothub_protocol::id::{MethodName, RequestId};
use iothub_protocol::link::{FromHub, TwinDocument};
use serde_json::{Map, Value};

use super::{Actor, Link, Stop, Waiting};
use crate::answer::Answer;
use crate::outbox::ReportOutcome;

impl Actor {
    pub(super) fn on_hub(&mut self, now: Instant, message: FromHub) {
        match message {
            FromHub::Connected => {
                self.disconnected();
                self.desired.connected();
                self.link = Link::Greeting { until: now + self.limits.twin_wait };
            }
            FromHub::Disconnected { reason } => {
                tracing::debug!(device = %self.device, reason, "disconnected");
                self.disconnected();
            }
            FromHub::Twin(twin) => self.twin(now, twin),
            FromHub::Desired { version, patch } => self.desired_notice(now, version, patch),
            FromHub::Method { rid, name, payload } => self.method(now, rid, name, payload),
            FromHub::Reported { token, status, message, .. } => self.report_answered(now, token, status, &message),
            FromHub::Message { token, message } => self.message(now, token, *message),
            FromHub::TelemetryTaken { token } => {
                if self.outbox.taken(token) {
                    self.records.dirty.telemetry_taken.push(token);
                }
            }
        }
    }

    fn disconnected(&mut self) {
        self.link = Link::Down;
        self.connection += 1;
        // Their callers have been told by the hub; running them now would be acting for nobody.
        self.mailbox.clear();
        self.inbox.disconnected();
        self.messages_subscribed = false;
        self.outbox.disconnected();
    }

    fn twin(&mut self, now: Instant, twin: TwinDocument) {
        if self.link == Link::Down {
            // Of a connection that is gone; the next one asks anew.
            return;
        }
        self.link = Link::Up;
        if self.outbox.hub_holds(twin.reported) {
            self.records.dirty.reported = true;
            self.records.dirty.unsent = true;
        }
        let before = (self.desired.document().clone(), self.desired.version());
        let recreated = self.desired.answered(twin.desired, twin.desired_version);
        if recreated {
            tracing::info!(device = %self.device, version = twin.desired_version, "device was re-created in the hub");
            self.records.dirty.applied = true;
        }
        self.records.dirty.desired |= before != (self.desired.document().clone(), self.desired.version());
        self.pins_meanwhile(&before.0, before.1);
        self.reselect(now);
    }

    fn desired_notice(&mut self, now: Instant, version: u64, patch: Map<String, Value>) {
        match self.link {
            Link::Down => {}
            Link::Greeting { .. } => self.desired.noticed_early(version, patch),
            Link::Up if self.desired.noticed(version, &patch) => {
                self.records.dirty.desired = true;
                self.desired.reconsider(now, &self.lineup);
                self.desired_versions(now, &patch);
            }
            Link::Up => tracing::debug!(device = %self.device, version, "notice of desired properties is not news"),
        }
    }

    fn method(&mut self, now: Instant, rid: RequestId, name: MethodName, payload: String) {
        if self.link == Link::Down || self.stop != Stop::No {
            // Unanswered on purpose: the hub tells the caller that the device went away, and a job tries again. An
            // answer, whatever its status, would count as the method's outcome.
            return;
        }
        if self.mailbox.len() >= self.limits.mailbox {
            tracing::warn!(device = %self.device, method = %name, "mailbox is full");
            self.answer(rid, Answer::mailbox_full(self.limits.mailbox));
            return;
        }
        self.mailbox.push_back(Waiting { rid, name, payload, received: now });
    }

    fn report_answered(&mut self, now: Instant, token: u64, status: u16, message: &str) {
        let device = &self.device;
        match self.outbox.answered(now, token, status, &self.limits, &mut self.rng) {
            ReportOutcome::Stale => return,
            ReportOutcome::Confirmed => {}
            ReportOutcome::Again => {
                tracing::warn!(%device, status, message, "reported properties were not taken, will be sent again");
                return;
            }
            ReportOutcome::Dropped => {
                tracing::error!(%device, status, message, "reported properties were refused by the hub and are lost");
            }
        }
        self.records.dirty.report_answered = true;
    }
}
