//! What happened on the hub lately, for whoever follows: telemetry, changes of twins, devices coming and going.
//!
//! Kept in a ring bounded in number and bytes; an event that nobody took in time is gone, as the hub is no archive.
//! [`form`] gives an event the shape that Azure's built-in endpoint has, [`filter`] says who wants which.

pub mod filter;
mod form;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::feedback::{FeedbackRecord, MessageEnd};
use serde_json::Value;
use tokio::sync::watch;

pub use filter::{EventFilter, FilterError};
pub(crate) use form::body_member;

/// Events kept: enough for a burst from 10,000 devices.
const MAX_EVENTS: usize = 10_000;
/// Bytes kept, so that large messages cannot make the hub large.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of one page, unless its first event alone is larger: a slow reader holds what it was given.
const MAX_PAGE_BYTES: usize = 512 * 1024;
/// What an event takes beside its body and properties, roughly.
const EVENT_OVERHEAD: usize = 200;
/// What a property takes beside its text, roughly.
const VALUE_OVERHEAD: usize = 100;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct HubEvent {
    /// Whom it is of.
    pub address: Address,
    pub time: DateTime<Utc>,
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// A device-to-cloud message, with system properties (`$.mid` and so on) as they were sent.
    Telemetry {
        properties: Vec<(String, String)>,
        body: Bytes,
        sender: Sender,
    },
    /// A twin changed; `body` is the notification's, JSON text.
    Twin {
        change: TwinChange,
        body: Bytes,
    },
    Connected,
    Disconnected,
    /// A device or a module was registered; its twin, JSON text.
    Created {
        twin: Bytes,
    },
    /// A device or a module was deleted; its last twin, JSON text.
    Deleted {
        twin: Bytes,
    },
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

/// Who changed a twin, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TwinChange {
    /// The device reported.
    Reported,
    /// A back end merged tags or desired properties.
    Updated,
    /// A back end replaced tags or desired properties.
    Replaced,
}

/// What the hub knows of a message's sender and stamps on the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// Which registration of its id sent it.
    pub generation_id: u64,
    pub auth: AuthMethod,
}

/// How a connection proved whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// A token signed with the key of the device, or of the module.
    OwnKey,
    /// A token signed with a policy's key.
    PolicyKey,
    /// A client certificate.
    Certificate,
}

impl HubEvent {
    pub(crate) fn telemetry(
        address: Address,
        time: DateTime<Utc>,
        properties: Vec<(String, String)>,
        body: &[u8],
        sender: Sender,
    ) -> HubEvent {
        // Copied: a slice of what came from a socket would keep all of that.
        let kind = EventKind::Telemetry { properties, body: Bytes::copy_from_slice(body), sender };
        HubEvent { address, time, kind }
    }

    pub(crate) fn twin(address: Address, time: DateTime<Utc>, change: TwinChange, body: &Value) -> HubEvent {
        HubEvent { address, time, kind: EventKind::Twin { change, body: body.to_string().into() } }
    }

    pub(crate) fn connected(address: Address, time: DateTime<Utc>) -> HubEvent {
        HubEvent { address, time, kind: EventKind::Connected }
    }

    pub(crate) fn disconnected(address: Address, time: DateTime<Utc>) -> HubEvent {
        HubEvent { address, time, kind: EventKind::Disconnected }
    }

    pub(crate) fn created(address: Address, time: DateTime<Utc>, twin: &Value) -> HubEvent {
        HubEvent { address, time, kind: EventKind::Created { twin: twin.to_string().into() } }
    }

    pub(crate) fn deleted(address: Address, time: DateTime<Utc>, twin: &Value) -> HubEvent {
        HubEvent { address, time, kind: EventKind::Deleted { twin: twin.to_string().into() } }
    }

    pub(crate) fn queued(address: Address, time: DateTime<Utc>, message_id: Option<String>, sequence: u64) -> HubEvent {
        HubEvent { address, time, kind: EventKind::Queued { message_id, sequence } }
    }

    pub(crate) fn settled(
        address: Address,
        time: DateTime<Utc>,
        message_id: Option<String>,
        sequence: u64,
        ended: MessageEnd,
        feedback: Option<(u64, FeedbackRecord)>,
    ) -> HubEvent {
        HubEvent { address, time, kind: EventKind::Settled { message_id, sequence, ended, feedback } }
    }

    /// The kind's name, as filters and JSON have it.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            EventKind::Telemetry { .. } => "telemetry",
            EventKind::Twin { change: TwinChange::Reported, .. } => "reported",
            EventKind::Twin { change: TwinChange::Updated, .. } => "updated",
            EventKind::Twin { change: TwinChange::Replaced, .. } => "replaced",
            EventKind::Connected => "connected",
            EventKind::Disconnected => "disconnected",
            EventKind::Created { .. } => "created",
            EventKind::Deleted { .. } => "deleted",
            EventKind::Queued { .. } => "queued",
            EventKind::Settled { .. } => "settled",
        }
    }

    fn bytes(&self) -> usize {
        EVENT_OVERHEAD
            + match &self.kind {
                EventKind::Telemetry { properties, body, .. } => {
                    body.len() + properties.iter().map(|(k, v)| VALUE_OVERHEAD + k.len() + v.len()).sum::<usize>()
                }
                EventKind::Twin { body, .. } => body.len(),
                EventKind::Created { twin } | EventKind::Deleted { twin } => twin.len(),
                _ => 0,
            }
    }
}

/// The ring, shared by the hub that fills it and those who follow.
#[derive(Clone)]
pub struct EventLog {
    ring: Arc<Mutex<Ring>>,
    /// The sequence number that the next event gets.
    next: watch::Sender<u64>,
    /// Milliseconds since 1970 at which the ring began. Sequence numbers begin anew with it, ids do not.
    epoch: u64,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<Arc<HubEvent>>,
    bytes: usize,
    first: u64,
}

/// Where a reader goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumed {
    pub from: u64,
    /// The id is from before a restart of the hub: how many events there were since is not known.
    pub other_ring: bool,
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
        let epoch = u64::try_from(Utc::now().timestamp_millis()).unwrap_or_default();
        EventLog { ring: Arc::default(), next: watch::Sender::new(0), epoch }
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

    /// Up to `limit` events from number `from` on, fewer if they are large.
    pub fn page(&self, from: u64, limit: usize) -> Page {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let start = from.max(ring.first);
        let skip = usize::try_from(start - ring.first).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let fits = |event: &&Arc<HubEvent>| {
            let is_first = bytes == 0;
            bytes += event.bytes();
            is_first || bytes <= MAX_PAGE_BYTES
        };
        let events = ring.events.iter().skip(skip).take(limit).take_while(fits).cloned().zip(start..);
        let events: Vec<_> = events.map(|(event, sequence)| (sequence, event)).collect();
        Page { next: start + events.len() as u64, missed: start - from, events }
    }

    /// An event's id: unlike its number, never that of another event, whatever was restarted between.
    pub fn id(&self, sequence: u64) -> String {
        format!("{:x}.{sequence}", self.epoch)
    }

    /// Where to go on after the event of this id. `None` if it is no id.
    pub fn after(&self, id: &str) -> Option<Resumed> {
        let (epoch, sequence) = id.split_once('.')?;
        let (epoch, sequence) = (u64::from_str_radix(epoch, 16).ok()?, sequence.parse::<u64>().ok()?);
        if epoch != self.epoch {
            return Some(Resumed { from: 0, other_ring: true });
        }
        Some(Resumed { from: sequence.saturating_add(1).min(self.next()), other_ring: false })
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

    pub(super) const SENDER: Sender = Sender { generation_id: 638_000_000_000_000_000, auth: AuthMethod::OwnKey };

    pub(super) fn telemetry(body: &[u8]) -> HubEvent {
        let address = Address::parse("d1").expect("an address");
        HubEvent::telemetry(address, DateTime::UNIX_EPOCH, vec![("$.mid".into(), "1".into())], body, SENDER)
    }

    #[test]
    fn the_ring_is_bounded_and_tells_what_is_gone() {
        let log = EventLog::new();
        for _ in 0..MAX_EVENTS + 5 {
            log.push(telemetry(b"{}"));
        }
        let page = log.page(0, 3);
        assert_eq!((page.missed, page.events[0].0, page.next), (5, 5, 8));
        let page = log.page(u64::MAX, 3);
        assert_eq!((page.missed, page.events.len(), page.next), (0, 0, u64::MAX));
        let large = vec![b'x'; 256 * 1024];
        for _ in 0..100 {
            log.push(telemetry(&large));
        }
        let mut kept = 0;
        let mut next = 0;
        while next < log.next() {
            let page = log.page(next, usize::MAX);
            assert!(page.events.len() <= 2, "{} events of 256 KiB in a page", page.events.len());
            kept += page.events.len();
            next = page.next;
        }
        assert!((1..64).contains(&kept), "{kept} events of 256 KiB");
    }

    #[test]
    fn an_id_leads_back_and_one_of_another_ring_is_known() {
        let log = EventLog::new();
        for _ in 0..3 {
            log.push(telemetry(b"{}"));
        }
        assert_eq!(log.after(&log.id(1)), Some(Resumed { from: 2, other_ring: false }));
        assert_eq!(log.after(&log.id(u64::MAX)), Some(Resumed { from: 3, other_ring: false }), "not beyond the end");
        assert_eq!(log.after("1f.7"), Some(Resumed { from: 0, other_ring: true }));
        for text in ["", "7", "x.1", "1.", "1.x", "1.-1"] {
            assert_eq!(log.after(text), None, "{text}");
        }
    }
}
