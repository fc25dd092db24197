//! One device's queue of cloud-to-device messages, without I/O: which may go, which are in somebody's hand, which are
//! over.
//!
//! A message is either *enqueued* or *invisible*: locked by whoever it was handed to, for [`LOCK`]. It leaves the queue by
//! being completed, rejected or purged, at its expiry if nobody holds it then, or once it was given back
//! [`MAX_DELIVERY_COUNT`] times. As at Azure, a lock that runs out is not counted; a connection that ends with the
//! message in its hand is (Azure says nothing of it), as nothing else would end the circle of a message that kills its
//! device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use iothub_protocol::feedback::MessageEnd;
use iothub_protocol::link::CloudMessage;

use crate::hub::LinkId;

/// Most messages of one queue; Azure's number.
pub const MAX_DEPTH: usize = 50;
/// How long a message that was handed out stays invisible; Azure's number, which nobody can change there either.
pub const LOCK: Duration = Duration::from_secs(60);
/// How often a message may be given back; Azure's default.
pub const MAX_DELIVERY_COUNT: u32 = 10;

/// One message in a queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Queued {
    /// Its place; higher than that of every message before it.
    pub sequence: u64,
    /// Its MQTT packet id, the same on each delivery, so that any PUBACK means this message.
    pub packet_id: u16,
    pub message: Arc<CloudMessage>,
    pub enqueued: DateTime<Utc>,
    /// What its sender said, else the default.
    pub expiry: DateTime<Utc>,
    /// How often it was given back.
    pub delivery_count: u32,
    lock: Option<Lock>,
    /// The connection that it was last sent on. Survives the lock: an acknowledgement that comes late still counts.
    link: Option<LinkId>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Lock {
    holder: Holder,
    until: Instant,
}

/// Who has a message in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// An MQTT connection.
    Link(LinkId),
    /// Whoever knows the token: a device over HTTPS.
    Token(u128),
}

impl Queued {
    /// One that nobody has in hand, as it is stored.
    pub fn new(
        sequence: u64,
        packet_id: u16,
        message: Arc<CloudMessage>,
        enqueued: DateTime<Utc>,
        expiry: DateTime<Utc>,
    ) -> Queued {
        Queued { sequence, packet_id, message, enqueued, expiry, delivery_count: 0, lock: None, link: None }
    }

    /// Whether somebody has it in hand.
    pub fn is_invisible(&self) -> bool {
        self.lock.is_some()
    }

    fn is_held_by(&self, holder: Holder) -> bool {
        self.lock.is_some_and(|lock| lock.holder == holder)
    }
}

/// A message handed to a connection.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub packet_id: u16,
    /// It was sent to the device before, on this connection or another.
    pub is_repeated: bool,
    pub message: Arc<CloudMessage>,
}

/// What a device does with a message in its hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    Complete,
    Reject,
    Abandon,
}

/// What became of a message that was dealt with.
#[derive(Debug)]
pub enum Settled {
    Ended(Queued, MessageEnd),
    /// It is back in the queue; its delivery count has changed.
    Kept(u64),
}

/// The queue: messages in the order of their sequence numbers.
#[derive(Debug, Default)]
pub struct Queue {
    messages: Vec<Queued>,
    last_sequence: u64,
}

impl Queue {
    /// A queue as it was stored, in any order.
    pub fn restored(mut messages: Vec<Queued>) -> Queue {
        messages.sort_by_key(|queued| queued.sequence);
        let last_sequence = messages.last().map_or(0, |last| last.sequence);
        Queue { messages, last_sequence }
    }

    /// Give the next messages numbers above `sequence`, if those in the queue do not see to that.
    pub fn numbered_from(mut self, sequence: u64) -> Queue {
        self.last_sequence = self.last_sequence.max(sequence);
        self
    }

    /// The number of the last message that was ever queued.
    pub fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.messages.len() >= MAX_DEPTH
    }

    pub fn messages(&self) -> &[Queued] {
        &self.messages
    }

    pub fn get(&self, sequence: u64) -> Option<&Queued> {
        let found = self.messages.binary_search_by_key(&sequence, |queued| queued.sequence);
        found.ok().map(|index| &self.messages[index])
    }

    /// Add a message at the end. Not for a queue that is full.
    pub fn push(&mut self, message: Arc<CloudMessage>, now: DateTime<Utc>, expiry: DateTime<Utc>) -> &Queued {
        self.last_sequence += 1;
        let packet_id = self.free_packet_id();
        self.messages.push(Queued::new(self.last_sequence, packet_id, message, now, expiry));
        self.messages.last().expect("one was pushed")
    }

    /// Going round, so that an id is used again as late as can be.
    fn free_packet_id(&self) -> u16 {
        let ids = u64::from(u16::MAX);
        let candidates = (0..ids).map(|step| ((self.last_sequence - 1 + step) % ids + 1) as u16);
        let is_free = |id: &u16| self.messages.iter().all(|queued| queued.packet_id != *id);
        candidates.into_iter().find(is_free).expect("a queue has fewer messages than there are packet ids")
    }

    /// Hand everything that may go to a connection, in order; the messages stay, invisible.
    pub fn deliver(&mut self, now: Instant, link: LinkId) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        for queued in self.messages.iter_mut().filter(|queued| queued.lock.is_none()) {
            queued.lock = Some(Lock { holder: Holder::Link(link), until: now + LOCK });
            let is_repeated = queued.link.replace(link).is_some();
            let message = queued.message.clone();
            deliveries.push(Delivery { packet_id: queued.packet_id, is_repeated, message });
        }
        deliveries
    }

    /// Take out everything that may go, in order: for a connection whose messages are completed by being sent.
    pub fn deliver_for_good(&mut self) -> Vec<Queued> {
        self.messages.extract_if(.., |queued| queued.lock.is_none()).collect()
    }

    /// Hand the first message that may go to whoever knows `token`.
    pub fn receive(&mut self, now: Instant, token: u128, lock: Duration) -> Option<&Queued> {
        let queued = self.messages.iter_mut().find(|queued| queued.lock.is_none())?;
        queued.lock = Some(Lock { holder: Holder::Token(token), until: now + lock });
        Some(queued)
    }

    /// A connection has acknowledged a packet. `None` if it was not sent one of that id, or has acknowledged it before.
    pub fn acknowledge(&mut self, link: LinkId, packet_id: u16) -> Option<Queued> {
        let is_meant = |queued: &Queued| queued.packet_id == packet_id && queued.link == Some(link);
        let index = self.messages.iter().position(is_meant)?;
        Some(self.messages.remove(index))
    }

    /// Deal with the message that `token` stands for. `None` if the lock has run out, or never was.
    pub fn settle(&mut self, token: u128, disposition: Disposition) -> Option<Settled> {
        let index = self.messages.iter().position(|queued| queued.is_held_by(Holder::Token(token)))?;
        Some(match disposition {
            Disposition::Complete => Settled::Ended(self.messages.remove(index), MessageEnd::Success),
            Disposition::Reject => Settled::Ended(self.messages.remove(index), MessageEnd::Rejected),
            Disposition::Abandon => self.give_back(index),
        })
    }

    /// A connection has ended: what it had in hand is given back.
    pub fn release(&mut self, link: LinkId) -> Vec<Settled> {
        let held = self.messages.iter().filter(|queued| queued.is_held_by(Holder::Link(link)));
        let held: Vec<u64> = held.map(|queued| queued.sequence).collect();
        let indexes = held.into_iter().filter_map(|sequence| {
            let index = self.messages.iter().position(|queued| queued.sequence == sequence)?;
            Some(self.give_back(index))
        });
        indexes.collect()
    }

    fn give_back(&mut self, index: usize) -> Settled {
        let queued = &mut self.messages[index];
        queued.lock = None;
        queued.delivery_count += 1;
        if queued.delivery_count < MAX_DELIVERY_COUNT {
            return Settled::Kept(queued.sequence);
        }
        Settled::Ended(self.messages.remove(index), MessageEnd::DeliveryCountExceeded)
    }

    /// Make visible again what was held for too long, and take out what has expired in nobody's hand.
    pub fn tidy(&mut self, wall: DateTime<Utc>, steady: Instant) -> Vec<Queued> {
        for queued in &mut self.messages {
            queued.lock = queued.lock.filter(|lock| lock.until > steady);
        }
        self.messages.extract_if(.., |queued| queued.lock.is_none() && queued.expiry <= wall).collect()
    }

    /// Take out everything, whoever has it in hand.
    pub fn purge(&mut self) -> Vec<Queued> {
        std::mem::take(&mut self.messages)
    }

    /// When the next lock runs out.
    pub fn next_unlock(&self) -> Option<Instant> {
        self.messages.iter().filter_map(|queued| queued.lock).map(|lock| lock.until).min()
    }

    /// When the next message expires in nobody's hand.
    pub fn next_expiry(&self) -> Option<DateTime<Utc>> {
        self.messages.iter().filter(|queued| queued.lock.is_none()).map(|queued| queued.expiry).min()
    }
}

#[cfg(test)]
mod tests;
