//! What leaves a device: reported properties and telemetry, kept until the hub has confirmed them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use iothub_protocol::link::{TelemetryMessage, ToHub};
use iothub_protocol::twin;
use plugin_runtime::OutgoingTelemetry;
use rand::Rng;
use serde_json::{Map, Value};

use crate::limits::Limits;
use crate::record::{QueuedTelemetry, Unsent};

#[derive(Debug)]
pub(crate) struct Outbox {
    /// What the hub is known to hold.
    confirmed: Arc<Map<String, Value>>,
    /// The same with everything that is on its way.
    reported: Arc<Map<String, Value>>,
    /// The patch that the hub may have, sent unchanged until it is confirmed or a GET shows what became of it. Were
    /// later changes merged into it, there would be no saying what the patch must delete.
    in_flight: Option<InFlight>,
    /// Follows the one in flight; surely not with the hub yet.
    pending: Map<String, Value>,
    next_token: u64,
    /// After a failure: not before.
    retry_at: Option<Instant>,
    failures: u32,
    queue: VecDeque<QueuedTelemetry>,
    queued_bytes: usize,
    /// How many at the queue's front were sent on this connection.
    sent: usize,
    next_sequence: u64,
}

#[derive(Debug)]
struct InFlight {
    patch: Map<String, Value>,
    /// The try that may still be answered: its token, and until when.
    sent: Option<(u64, Instant)>,
}

/// What an answer of the hub to a reported patch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReportOutcome {
    /// To a patch that is no longer in flight.
    Stale,
    Confirmed,
    /// Sent again later.
    Again,
    /// Refused for what it is, so that repeating cannot help; dropped.
    Dropped,
}

impl Outbox {
    pub(crate) fn new(confirmed: Map<String, Value>, unsent: Unsent, telemetry: Vec<QueuedTelemetry>) -> Outbox {
        // How far the hub got before the process ended is not known, so all of it may be with the hub.
        let patch = sum(&confirmed, [&unsent.in_flight, &unsent.pending]);
        let in_flight = if patch.is_empty() { None } else { Some(InFlight { patch, sent: None }) };
        let mut outbox = Outbox {
            reported: Arc::default(),
            confirmed: Arc::new(confirmed),
            in_flight,
            pending: Map::new(),
            next_token: 1,
            retry_at: None,
            failures: 0,
            queued_bytes: telemetry.iter().map(QueuedTelemetry::queue_cost).sum(),
            next_sequence: telemetry.last().map_or(1, |last| last.sequence + 1),
            queue: telemetry.into(),
            sent: 0,
        };
        outbox.merge_reported();
        outbox
    }

    pub(crate) fn confirmed(&self) -> &Arc<Map<String, Value>> {
        &self.confirmed
    }

    pub(crate) fn reported(&self) -> &Arc<Map<String, Value>> {
        &self.reported
    }

    /// What the hub has not confirmed, with `more` behind it.
    pub(crate) fn unsent_with(&self, more: &Map<String, Value>) -> Unsent {
        let in_flight = self.in_flight.as_ref().map(|in_flight| in_flight.patch.clone()).unwrap_or_default();
        Unsent { in_flight, pending: sum(&self.after_in_flight(), [&self.pending, more]) }
    }

    pub(crate) fn telemetry_room(&self, limits: &Limits) -> usize {
        limits.telemetry_bytes.saturating_sub(self.queued_bytes)
    }

    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Give messages their place in the queue, which they take with [`Outbox::queue`] once they are recorded.
    pub(crate) fn number(&self, messages: Vec<OutgoingTelemetry>, rng: &mut impl Rng) -> Vec<QueuedTelemetry> {
        let numbered = (self.next_sequence..).zip(messages);
        numbered.map(|(sequence, message)| QueuedTelemetry { sequence, message: outgoing(message, rng) }).collect()
    }

    pub(crate) fn queue(&mut self, messages: Vec<QueuedTelemetry>) {
        for message in messages {
            self.next_sequence = message.sequence + 1;
            self.queued_bytes += message.queue_cost();
            self.queue.push_back(message);
        }
    }

    pub(crate) fn report(&mut self, patch: &Map<String, Value>) {
        if patch.is_empty() {
            return;
        }
        self.pending = sum(&self.after_in_flight(), [&self.pending, patch]);
        self.merge_reported();
    }

    /// The link is gone: what was in flight may or may not have arrived, and is sent again.
    pub(crate) fn disconnected(&mut self) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.sent = None;
        }
        self.sent = 0;
        (self.retry_at, self.failures) = (None, 0);
    }

    /// What the hub holds, from a GET. That ends all doubt: what is unconfirmed becomes one patch to this. Tells
    /// whether anything is different now.
    pub(crate) fn hub_holds(&mut self, reported: Map<String, Value>) -> bool {
        let in_flight = self.in_flight.take();
        let news = in_flight.is_some() || reported != *self.confirmed;
        let in_flight = in_flight.map(|in_flight| in_flight.patch).unwrap_or_default();
        self.pending = sum(&reported, [&in_flight, &self.pending]);
        self.confirmed = Arc::new(reported);
        self.merge_reported();
        news
    }

    /// The hub's answer to a reported patch.
    pub(crate) fn answered(
        &mut self,
        now: Instant,
        token: u64,
        status: u16,
        limits: &Limits,
        rng: &mut impl Rng,
    ) -> ReportOutcome {
        let is_this = |in_flight: &mut InFlight| in_flight.sent.is_some_and(|(sent, _)| sent == token);
        let Some(in_flight) = self.in_flight.take_if(is_this) else { return ReportOutcome::Stale };
        match status {
            200..=299 => {
                let mut confirmed = Map::clone(&self.confirmed);
                twin::merge(&mut confirmed, &in_flight.patch);
                self.confirmed = Arc::new(confirmed);
                self.failures = 0;
                self.merge_reported();
                ReportOutcome::Confirmed
            }
            429 | 500.. => {
                self.in_flight = Some(in_flight);
                self.try_again(now, limits, rng);
                ReportOutcome::Again
            }
            _ => {
                self.failures = 0;
                self.merge_reported();
                ReportOutcome::Dropped
            }
        }
    }

    /// The hub has taken a message. False if it was taken before.
    pub(crate) fn taken(&mut self, sequence: u64) -> bool {
        let Some(place) = self.queue.iter().take(self.sent).position(|message| message.sequence == sequence) else {
            return false;
        };
        let taken = self.queue.remove(place);
        self.queued_bytes -= taken.map_or(0, |message| message.queue_cost());
        self.sent -= 1;
        true
    }

    /// A patch whose answer is overdue is sent again. True if there was one.
    pub(crate) fn give_up_waiting(&mut self, now: Instant, limits: &Limits, rng: &mut impl Rng) -> bool {
        let overdue = self.waits_until().is_some_and(|until| until <= now);
        if overdue {
            self.try_again(now, limits, rng);
        }
        overdue
    }

    /// The next patch to send, unless one waits for its answer.
    pub(crate) fn next_report(&mut self, now: Instant, limits: &Limits) -> Option<ToHub> {
        if self.waits_until().is_some() || self.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        let patch = match self.in_flight.take() {
            Some(in_flight) => in_flight.patch,
            None => std::mem::take(&mut self.pending),
        };
        if patch.is_empty() {
            return None;
        }
        let token = self.next_token;
        self.next_token += 1;
        self.retry_at = None;
        self.in_flight = Some(InFlight { patch: patch.clone(), sent: Some((token, now + limits.report_timeout)) });
        Some(ToHub::Report { token, patch })
    }

    /// The next message to send, if the window allows one.
    pub(crate) fn next_telemetry(&mut self, limits: &Limits) -> Option<ToHub> {
        let next = self.queue.get(self.sent).filter(|_| self.sent < limits.telemetry_window)?;
        self.sent += 1;
        Some(ToHub::Telemetry { token: next.sequence, message: Box::new(TelemetryMessage::clone(&next.message)) })
    }

    /// When reporting needs attention again, while connected.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.waits_until().or(self.retry_at)
    }

    fn waits_until(&self) -> Option<Instant> {
        self.in_flight.as_ref().and_then(|in_flight| in_flight.sent).map(|(_, until)| until)
    }

    fn try_again(&mut self, now: Instant, limits: &Limits, rng: &mut impl Rng) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.sent = None;
        }
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + limits.retry.jittered(self.failures, rng));
    }

    /// What the hub holds once it has what is in flight.
    fn after_in_flight(&self) -> Map<String, Value> {
        let mut after = Map::clone(&self.confirmed);
        if let Some(in_flight) = &self.in_flight {
            twin::merge(&mut after, &in_flight.patch);
        }
        after
    }

    fn merge_reported(&mut self) {
        self.reported = if self.in_flight.is_none() && self.pending.is_empty() {
            // One document for both, as for most devices most of the time.
            self.confirmed.clone()
        } else {
            let mut reported = self.after_in_flight();
            twin::merge(&mut reported, &self.pending);
            Arc::new(reported)
        };
    }
}

/// One patch that does to `base` what the `patches` do one after the other.
///
/// That is the difference of the documents before and after, since patches as such have no exact sum: what one
/// deletes as a whole and a later one writes anew in part must be deleted by name. Members that were written without
/// a change are put into it as well, because the hub stamps what it receives.
fn sum<'a>(base: &Map<String, Value>, patches: impl IntoIterator<Item = &'a Map<String, Value>>) -> Map<String, Value> {
    let (mut target, mut written) = (base.clone(), Map::new());
    for patch in patches {
        twin::merge(&mut target, patch);
        overlay(&mut written, patch);
    }
    overlay(&mut written, &twin::diff(base, &target));
    written
}

/// Lay `patch` over `written`: objects by member, everything else, `null` too, as it is.
fn overlay(written: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match (written.get_mut(key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => overlay(below, above),
            _ => {
                written.insert(key.clone(), value.clone());
            }
        }
    }
}

fn outgoing(message: OutgoingTelemetry, rng: &mut impl Rng) -> Arc<TelemetryMessage> {
    // The hub routes on a JSON body only if it is told the encoding as well.
    let is_json = message.content_type.as_deref().is_some_and(|text| text.starts_with("application/json"));
    Arc::new(TelemetryMessage {
        message_id: format!("{:032x}", rng.random::<u128>()),
        content_type: message.content_type,
        content_encoding: is_json.then(|| "utf-8".to_owned()),
        properties: message.properties,
        body: message.body,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn a_sum_deletes_by_name_and_keeps_what_was_written_unchanged() {
        let base = object(json!({"a": {"old": 1}, "same": 1}));
        let patches = [json!({"a": null, "same": 1}), json!({"a": {"new": 2}})].map(object);
        assert_eq!(sum(&base, &patches), object(json!({"a": {"old": null, "new": 2}, "same": 1})));
    }

    #[test]
    fn a_message_costs_what_the_runtime_counts() {
        let message = OutgoingTelemetry {
            body: vec![0; 100],
            content_type: Some("application/json".into()),
            properties: vec![("name".into(), "value".into())],
        };
        let cost = message.queue_cost();
        let queued = QueuedTelemetry { sequence: 1, message: outgoing(message, &mut SmallRng::seed_from_u64(1)) };
        assert_eq!(queued.queue_cost(), cost);
        assert_eq!(queued.message.content_encoding.as_deref(), Some("utf-8"));
    }

    fn patch() -> impl Strategy<Value = Map<String, Value>> {
        let leaf = prop_oneof![Just(Value::Null), (0..3_i32).prop_map(Value::from)];
        let value = leaf.prop_recursive(3, 12, 3, |inner| {
            prop::collection::btree_map("[ab]", inner, 0..3).prop_map(|map| Value::Object(map.into_iter().collect()))
        });
        prop::collection::btree_map("[ab]", value, 0..3).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn a_sum_does_what_the_patches_do(base in patch(), patches in prop::collection::vec(patch(), 0..4)) {
            let mut start = Map::new();
            twin::merge(&mut start, &base);
            let (mut one_by_one, mut at_once) = (start.clone(), start.clone());
            patches.iter().for_each(|patch| twin::merge(&mut one_by_one, patch));
            twin::merge(&mut at_once, &sum(&start, &patches));
            prop_assert_eq!(at_once, one_by_one);
        }
    }
}
