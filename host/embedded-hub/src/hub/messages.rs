//! Cloud-to-device messages: queued for a device, sent when it listens, ended by it, by the clock or by a back end.
//!
//! What is sent is stored before, and what has ended is stored before anyone hears of it. A lock is not stored: after a
//! restart of the hub every message may go at once, and no delivery is counted for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::feedback::{FeedbackRecord, MessageEnd};
use iothub_protocol::id::DeviceId;
use iothub_protocol::link::CloudMessage;
use iothub_protocol::time;
use iothub_protocol::topic::{Subscription, cloud_message_topic};
use serde_json::{Value, json};

use super::links::properties_size;
use super::{Answer, Credentials, Entity, Granted, Hub, LinkId, LinkOutput, Now, Output, not_found};
use crate::events::{HubEvent, body_member};
use crate::queue::{Disposition, MAX_DEPTH, Queued, Settled};

/// How long a message lives whose sender says nothing; Azure's default.
const DEFAULT_LIFE: Duration = Duration::from_secs(3600);
/// How long a message may live at most; Azure's number.
const MAX_LIFE: Duration = Duration::from_secs(2 * 24 * 3600);
/// Most bytes of a message, counted as those of telemetry; Azure's number.
const MAX_MESSAGE: usize = 64 * 1024;
/// Most bytes of a topic, and with it of the encoded properties: MQTT cannot say more.
const MAX_TOPIC: usize = 65_535;
/// Longest message id; Azure's number.
const MAX_MESSAGE_ID: usize = 128;
/// What all queues together may hold. Azure has no such limit, but keeps its queues elsewhere than in this process.
const MAX_QUEUED_BYTES: usize = 256 * 1024 * 1024;
/// What a message takes beside its body and properties, roughly.
const MESSAGE_OVERHEAD: usize = 512;

/// Who waits for which message of which device to end. There is one for each message at most.
pub(super) type Waiters<R> = BTreeMap<(Address, u64), R>;

/// When which device's queue is next to be attended to.
#[derive(Default)]
pub(super) struct Schedule {
    /// The next message expires.
    by_wall: BTreeSet<(DateTime<Utc>, Address)>,
    /// The next lock runs out.
    by_steady: BTreeSet<(Instant, Address)>,
    of_device: HashMap<Address, (Option<DateTime<Utc>>, Option<Instant>)>,
}

impl Schedule {
    pub(super) fn next_by_wall(&self) -> Option<DateTime<Utc>> {
        self.by_wall.first().map(|(due, _)| *due)
    }

    pub(super) fn next_by_steady(&self) -> Option<Instant> {
        self.by_steady.first().map(|(due, _)| *due)
    }

    fn due(&self, now: Now) -> Option<Address> {
        let by_wall = self.by_wall.first().filter(|(due, _)| *due <= now.wall).map(|(_, id)| id);
        let by_steady = self.by_steady.first().filter(|(due, _)| *due <= now.steady).map(|(_, id)| id);
        by_wall.or(by_steady).cloned()
    }

    fn set(&mut self, id: &Address, wall: Option<DateTime<Utc>>, steady: Option<Instant>) {
        if let Some((old_wall, old_steady)) = self.of_device.remove(id) {
            old_wall.map(|due| self.by_wall.remove(&(due, id.clone())));
            old_steady.map(|due| self.by_steady.remove(&(due, id.clone())));
        }
        if wall.is_some() || steady.is_some() {
            self.by_wall.extend(wall.map(|due| (due, id.clone())));
            self.by_steady.extend(steady.map(|due| (due, id.clone())));
            self.of_device.insert(id.clone(), (wall, steady));
        }
    }
}

impl<R> Hub<R> {
    /// Count and schedule what was stored.
    pub(super) fn take_up_queues(&mut self) {
        for (id, entity) in self.entities.iter().filter(|(_, entity)| !entity.queue.is_empty()) {
            let sizes = entity.queue.messages().iter().map(|queued| held_size(&queued.message));
            self.queued_bytes += sizes.sum::<usize>();
            self.schedule.set(id, entity.queue.next_expiry(), None);
        }
    }

    /// Queue a message. The answer comes when it is stored, or when it has ended.
    pub(super) fn send_message(&mut self, now: Now, reply: R, id: &Address, message: CloudMessage, wait: bool) {
        // What has expired must not stand in the way.
        self.attend_queue(now, id);
        match self.enqueue(now, id, message) {
            Ok((sequence, _)) if wait => {
                self.waiters.insert((id.clone(), sequence), reply);
            }
            Ok((_, document)) => self.gated.push_back(Output::Reply(reply, Ok(Answer::Document(document)))),
            Err(error) => self.gated.push_back(Output::Reply(reply, Err(error))),
        }
        self.attend_queue(now, id);
    }

    fn enqueue(&mut self, now: Now, id: &Address, message: CloudMessage) -> Result<(u64, Value), HubError> {
        let entity = self.entities.get_mut(id).ok_or_else(|| not_found(id))?;
        check(id.device(), &message)?;
        let expiry = expiry(now.wall, &message)?;
        if entity.queue.is_full() {
            let text = format!(
                "the queue of the device holds {MAX_DEPTH} messages: wait until the device has completed some, or purge it"
            );
            return Err(HubError::new(ErrorCode::DeviceMaximumQueueDepthExceeded, text));
        }
        let size = held_size(&message);
        if self.queued_bytes + size > MAX_QUEUED_BYTES {
            let text = format!("the queues of this hub hold {MAX_QUEUED_BYTES} bytes, which is all that it keeps");
            return Err(HubError::new(ErrorCode::IotHubQuotaExceeded, text));
        }
        self.queued_bytes += size;
        entity.residence.is_behind();
        let queued = entity.queue.push(Arc::new(message), now.wall, expiry);
        let (sequence, document) = (queued.sequence, summary(id.device(), queued));
        let event = HubEvent::queued(id.clone(), now.wall, queued.message.message_id.clone(), sequence);
        self.unwritten(id).messages.insert(sequence);
        self.gated.push_back(Output::Event(event));
        Ok((sequence, document))
    }

    /// Bring a device's queue up to the moment: make visible what was held for too long, end what has expired, send what
    /// may go.
    pub(super) fn attend_queue(&mut self, now: Now, id: &Address) {
        let expired = match self.entities.get_mut(id) {
            Some(entity) if !entity.queue.is_empty() => entity.queue.tidy(now.wall, now.steady),
            _ => return self.schedule.set(id, None, None),
        };
        for queued in expired {
            self.end_message(now, id, &queued, MessageEnd::Expired);
        }
        self.deliver(now, id);
        if let Some(entity) = self.entities.get(id) {
            self.schedule.set(id, entity.queue.next_expiry(), entity.queue.next_unlock());
        }
    }

    pub(super) fn attend_due_queues(&mut self, now: Now) {
        while let Some(id) = self.schedule.due(now) {
            self.attend_queue(now, &id);
        }
    }

    /// Gated, as what goes must be stored, and the subscription that it waited for is acknowledged first.
    fn deliver(&mut self, now: Now, id: &Address) {
        let Some(entity) = self.entities.get_mut(id) else { return };
        let Some(link) = entity.listening(Subscription::DeviceBound) else { return };
        if entity.subscriptions.get(&Subscription::DeviceBound) == Some(&Granted::AtMostOnce) {
            // Nobody will acknowledge it, so that it goes is all that can be known.
            for queued in entity.queue.deliver_for_good() {
                let (topic, payload) = packet(id.device(), &queued.message);
                self.gated.push_back(Output::Link(link, LinkOutput::Publish { topic, payload }));
                self.end_message(now, id, &queued, MessageEnd::Success);
            }
            return;
        }
        for delivery in entity.queue.deliver(now.steady, link) {
            let (topic, payload) = packet(id.device(), &delivery.message);
            let (packet_id, is_repeated) = (delivery.packet_id, delivery.is_repeated);
            let output = LinkOutput::Message { packet_id, is_repeated, topic, payload };
            self.gated.push_back(Output::Link(link, output));
        }
    }

    pub(super) fn message_acknowledged(&mut self, now: Now, link: LinkId, id: &Address, packet_id: u16) {
        let Some(entity) = self.entities.get_mut(id) else { return };
        // There is none if it was purged meanwhile.
        let Some(queued) = entity.queue.acknowledge(link, packet_id) else { return };
        self.end_message(now, id, &queued, MessageEnd::Success);
        self.attend_queue(now, id);
    }

    /// The link is gone or taken over: what the device had in hand is back in its queue.
    pub(super) fn release_messages(&mut self, now: Now, id: &Address, link: LinkId) {
        let Some(entity) = self.entities.get_mut(id) else { return };
        for settled in entity.queue.release(link) {
            self.message_settled(now, id, &settled);
        }
        self.attend_queue(now, id);
    }

    fn message_settled(&mut self, now: Now, id: &Address, settled: &Settled) {
        match settled {
            Settled::Ended(queued, ended) => self.end_message(now, id, queued, *ended),
            Settled::Kept(sequence) => {
                self.unwritten(id).messages.insert(*sequence);
            }
        }
    }

    /// Tell whoever wants to know how a message ended that has left its queue.
    fn end_message(&mut self, now: Now, id: &Address, queued: &Queued, ended: MessageEnd) {
        self.queued_bytes = self.queued_bytes.saturating_sub(held_size(&queued.message));
        self.unwritten(id).messages.insert(queued.sequence);
        if let Some(reply) = self.waiters.remove(&(id.clone(), queued.sequence)) {
            let mut document = summary(id.device(), queued);
            document["statusCode"] = json!(ended.name());
            document["endedTimeUtc"] = json!(time::format(now.wall));
            self.gated.push_back(Output::Reply(reply, Ok(Answer::Document(document))));
        }
        let feedback = queued.message.feedback.wants(ended).then(|| self.give_feedback(now, id, queued, ended));
        let message_id = queued.message.message_id.clone();
        let event = HubEvent::settled(id.clone(), now.wall, message_id, queued.sequence, ended, feedback.flatten());
        self.gated.push_back(Output::Event(event));
    }

    /// The number of the record, and the record.
    fn give_feedback(
        &mut self,
        now: Now,
        id: &Address,
        queued: &Queued,
        ended: MessageEnd,
    ) -> Option<(u64, FeedbackRecord)> {
        let record = FeedbackRecord {
            message_id: queued.message.message_id.clone(),
            time: now.wall,
            ended,
            device_id: id.device().clone(),
            generation_id: self.entities.get(id)?.identity.generation_id,
        };
        let (sequence, dropped) = self.feedback.push(record.clone());
        self.unwritten_feedback.extend(dropped.into_iter().chain([sequence]));
        Some((sequence, record))
    }

    pub(super) fn purge_messages(&mut self, now: Now, id: &Address) -> Result<Answer, HubError> {
        let entity = self.entities.get_mut(id).ok_or_else(|| not_found(id))?;
        let purged = entity.queue.purge();
        for queued in &purged {
            self.end_message(now, id, queued, MessageEnd::Purged);
        }
        self.schedule.set(id, None, None);
        Ok(Answer::Document(json!({"totalMessagesPurged": purged.len(), "deviceId": id.device(), "moduleId": null})))
    }

    pub(super) fn receive_message(
        &mut self,
        now: Now,
        id: &Address,
        credentials: &Credentials,
        token: u128,
        lock: Duration,
    ) -> Result<Answer, HubError> {
        self.admit(now, id, credentials)?;
        // What has expired is not handed out.
        self.attend_queue(now, id);
        let entity = self.entities.get_mut(id).ok_or_else(|| not_found(id))?;
        let received = entity.queue.receive(now.steady, token, lock).cloned();
        self.attend_queue(now, id);
        Ok(received.map_or(Answer::Done, |queued| Answer::Message(Box::new(queued))))
    }

    pub(super) fn settle_message(
        &mut self,
        now: Now,
        id: &Address,
        credentials: &Credentials,
        token: u128,
        disposition: Disposition,
    ) -> Result<Answer, HubError> {
        self.admit(now, id, credentials)?;
        self.attend_queue(now, id);
        let entity = self.entities.get_mut(id).ok_or_else(|| not_found(id))?;
        let settled = entity.queue.settle(token, disposition).ok_or_else(lock_lost)?;
        self.message_settled(now, id, &settled);
        self.attend_queue(now, id);
        Ok(Answer::Done)
    }

    /// Whether a request over HTTPS is the device's own.
    fn admit(&mut self, now: Now, id: &Address, credentials: &Credentials) -> Result<(), HubError> {
        self.authenticate(now, id, credentials).map_err(|reason| {
            tracing::info!(device = %id, %reason, "request refused");
            reason.answer()
        })?;
        self.heard(now, id);
        Ok(())
    }

    /// The device is being deleted: its queue goes, and the feedback on what was in it.
    pub(super) fn drop_messages(&mut self, id: &Address) {
        let Some(entity) = self.entities.get_mut(id) else { return };
        for queued in entity.queue.purge() {
            self.queued_bytes = self.queued_bytes.saturating_sub(held_size(&queued.message));
            if let Some(reply) = self.waiters.remove(&(id.clone(), queued.sequence)) {
                self.gated.push_back(Output::Reply(reply, Err(not_found(id))));
            }
        }
        self.schedule.set(id, None, None);
        self.unwritten_feedback.extend(self.feedback.forget(id.device()));
    }

    /// Whether somebody waits for a message of this device to end.
    pub(super) fn has_waiters(&self, id: &Address) -> bool {
        self.waiters.range((id.clone(), 0)..=(id.clone(), u64::MAX)).next().is_some()
    }

    /// The device leaves memory; whoever reads the store sees to its queue.
    pub(super) fn schedule_none(&mut self, id: &Address) {
        self.schedule.set(id, None, None);
    }

    pub(super) fn list_feedback(&self) -> Answer {
        let records = self.feedback.records().map(|(sequence, record)| numbered(sequence, record));
        Answer::Document(Value::Array(records.collect()))
    }

    pub(super) fn receive_feedback(&mut self, now: Now, token: u128) -> Answer {
        self.expire_feedback(now);
        let records = self.feedback.receive(now.steady, token);
        Answer::Document(Value::Array(records.into_iter().map(FeedbackRecord::to_json).collect()))
    }

    pub(super) fn settle_feedback(
        &mut self,
        now: Now,
        token: u128,
        disposition: Disposition,
    ) -> Result<Answer, HubError> {
        let gone = match disposition {
            Disposition::Complete | Disposition::Reject => {
                Some(self.feedback.complete(now.steady, token)).filter(|gone| !gone.is_empty())
            }
            Disposition::Abandon => self.feedback.abandon(now.steady, token),
        };
        self.unwritten_feedback.extend(gone.ok_or_else(lock_lost)?);
        Ok(Answer::Done)
    }

    pub(super) fn expire_feedback(&mut self, now: Now) {
        let gone = self.feedback.expire(now.wall);
        self.unwritten_feedback.extend(gone);
    }
}

/// A queue as its operator sees it.
pub(super) fn list(entity: &Entity) -> Answer {
    let messages = entity.queue.messages().iter().map(|queued| {
        let message = &queued.message;
        let mut document = summary(entity.identity.address.device(), queued);
        document["state"] = json!(if queued.is_invisible() { "invisible" } else { "enqueued" });
        document["correlationId"] = json!(message.correlation_id);
        document["userId"] = json!(message.user_id);
        document["contentType"] = json!(message.content_type);
        document["contentEncoding"] = json!(message.content_encoding);
        document["ack"] = json!(message.feedback.name());
        let properties = message.properties.iter().map(|(name, value)| (name.clone(), json!(value)));
        document["properties"] = Value::Object(properties.collect());
        document["size"] = json!(message.body.len());
        let (name, body) = body_member(&message.body);
        document[name] = body;
        document
    });
    Answer::Document(Value::Array(messages.collect()))
}

/// A feedback record with its number, which tells it from all others that wait.
pub(crate) fn numbered(sequence: u64, record: &FeedbackRecord) -> Value {
    let mut document = record.to_json();
    document["sequence"] = json!(sequence);
    document
}

fn summary(id: &DeviceId, queued: &Queued) -> Value {
    json!({
        "deviceId": id,
        "sequence": queued.sequence,
        "messageId": queued.message.message_id,
        "enqueuedTimeUtc": time::format(queued.enqueued),
        "expiryTimeUtc": time::format(queued.expiry),
        "deliveryCount": queued.delivery_count,
    })
}

/// Topic and payload.
fn packet(id: &DeviceId, message: &CloudMessage) -> (String, Bytes) {
    (cloud_message_topic(id, message), Bytes::copy_from_slice(&message.body))
}

fn check(id: &DeviceId, message: &CloudMessage) -> Result<(), HubError> {
    let invalid = |text: String| Err(HubError::new(ErrorCode::ArgumentInvalid, text));
    if let Some(message_id) = &message.message_id {
        if message_id.is_empty() || message_id.len() > MAX_MESSAGE_ID {
            return invalid(format!("a message id has 1 to {MAX_MESSAGE_ID} characters"));
        }
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-:.+%_#*?!(),=@;$'".contains(c);
        if let Some(character) = message_id.chars().find(|c| !is_allowed(*c)) {
            let allowed = "ASCII letters, digits and - : . + % _ # * ? ! ( ) , = @ ; $ '";
            return invalid(format!("the message id contains {character:?}; allowed are {allowed}"));
        }
    }
    let reserved = |name: &str| name.is_empty() || name.starts_with("$.") || name == "iothub-ack";
    if let Some((name, _)) = message.properties.iter().find(|(name, _)| reserved(name)) {
        return invalid(format!("the property name {name:?} cannot be used: it is empty, or the hub's own"));
    }
    if message_size(message) > MAX_MESSAGE {
        let text = "a cloud-to-device message with its properties is larger than 64 KiB";
        return Err(HubError::new(ErrorCode::MessageTooLarge, text));
    }
    if cloud_message_topic(id, message).len() > MAX_TOPIC {
        let text =
            format!("the properties, once they are percent-encoded, do not fit into a topic of {MAX_TOPIC} bytes");
        return Err(HubError::new(ErrorCode::MessageTooLarge, text));
    }
    Ok(())
}

fn expiry(now: DateTime<Utc>, message: &CloudMessage) -> Result<DateTime<Utc>, HubError> {
    match message.expiry {
        None => Ok(now + DEFAULT_LIFE),
        Some(expiry) if expiry > now && expiry <= now + MAX_LIFE => Ok(expiry),
        Some(_) => {
            let text = "the expiry of a message must lie in the future, at most two days from now";
            Err(HubError::new(ErrorCode::InvalidMessageExpiryTime, text))
        }
    }
}

/// What Azure counts: the body, the values of system properties, names and values of the others.
fn message_size(message: &CloudMessage) -> usize {
    let system = [
        &message.message_id,
        &message.correlation_id,
        &message.user_id,
        &message.content_type,
        &message.content_encoding,
    ];
    let system: usize = system.into_iter().flatten().map(String::len).sum();
    message.body.len() + system + properties_size(&message.properties)
}

/// What a message counts towards what all queues may hold.
pub(crate) fn held_size(message: &CloudMessage) -> usize {
    message_size(message) + MESSAGE_OVERHEAD
}

fn lock_lost() -> HubError {
    HubError::new(ErrorCode::DeviceMessageLockLost, "the lock has run out, or was given back before")
}
