//! What one device's connection asks its rehearsal: whether a packet may go on, what is lost, what happens to the link.

use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::Utc;
use iothub_protocol::address::Address;
use iothub_protocol::error::HubError;
use iothub_protocol::id::RequestId;
use iothub_protocol::topic::{FromDevice, ToDevice, decode_bag};
use tokio::sync::watch;

use super::Rehearsal;
use super::bad_days::{Blow, Strike};
use super::meter::Admission;
use crate::driver::HubHandle;
use crate::hub::{LinkInput, LinkOutput};
use iothub_protocol::quota::tier::Class;

/// What becomes of something that a device sends.
pub(crate) enum Passage {
    Go,
    /// It and all behind it wait.
    WaitUntil(Instant),
    /// The hub answers this and knows nothing of it.
    Answer(LinkOutput),
    /// The connection is not accepted: too many at once.
    Busy,
    Close {
        reason: &'static str,
    },
}

/// What becomes of the link.
#[derive(Debug, PartialEq)]
pub(crate) enum Turn {
    Close {
        reason: &'static str,
    },
    /// Neither read nor write. With `ends`, the link is none any more after that.
    Mute {
        until: Instant,
        ends: bool,
    },
}

pub(crate) struct Gate {
    rehearsal: Rehearsal,
    changes: watch::Receiver<u64>,
    /// Who it says it is, until the hub has accepted it: what is counted by device is so of real ones only.
    claimed: Option<Address>,
    /// Who it is, and since when.
    device: Option<(Address, Instant)>,
    strike: Option<Strike>,
    is_taken_over: bool,
    /// The day whose hit on this link was counted last.
    counted: Option<u64>,
}

impl Gate {
    pub(crate) fn new(hub: &HubHandle) -> Gate {
        let rehearsal = hub.rehearsal().clone();
        let changes = rehearsal.shared.changes.subscribe();
        Gate { rehearsal, changes, claimed: None, device: None, strike: None, is_taken_over: false, counted: None }
    }

    /// Resolves when a bad day begins or ends; then [`Gate::turn`] may say something new, as it may at
    /// [`Gate::deadline`].
    pub(crate) async fn changed(&mut self) {
        // An error would be that nobody changes anything any more; but the gate itself keeps the sender.
        let _ = self.changes.changed().await;
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.strike.map(|strike| strike.at)
    }

    /// What becomes of the link now. Asked again, it says the same until that is over.
    pub(crate) fn turn(&mut self, now: Instant, hub: &HubHandle) -> Option<Turn> {
        // One that was due before its day ended still counts.
        let due = self.strike.take_if(|strike| strike.at <= now);
        let next = self.next_strike(now);
        let due = due.or_else(|| next.filter(|strike| strike.at <= now));
        if let Some(turn) = due.and_then(|strike| self.struck(strike, hub)) {
            return Some(turn);
        }
        self.strike = next.filter(|strike| strike.at > now);
        let (day, until) = self.rehearsal.silence(self.device.as_ref().map(|(device, _)| device))?;
        if until <= now {
            return None;
        }
        self.count(day);
        Some(Turn::Mute { until, ends: false })
    }

    /// Whether what the device sends may go on to the hub, which will refuse it unless `is_known`. Asked once for each,
    /// unless it has to wait: then it goes.
    pub(crate) fn passage(&mut self, input: &LinkInput, is_known: bool) -> Passage {
        if let LinkInput::Connect(request) = input {
            self.claimed = Some(request.address.clone());
            if let Some((_, until)) = self.rehearsal.silence(Some(&request.address)) {
                return Passage::WaitUntil(until);
            }
        }
        if !self.rehearsal.has_tier() || !is_known {
            return Passage::Go;
        }
        let (class, bytes) = match input {
            LinkInput::Connect(_) => (Class::Connections, None),
            LinkInput::Published { message: FromDevice::Telemetry { bag }, payload, .. } => {
                (Class::Telemetry, Some(payload.len() + bag_size(bag)))
            }
            LinkInput::Published { message: FromDevice::ReportedPatch { .. }, payload, .. } => {
                (Class::TwinUpdates, Some(payload.len()))
            }
            // What it costs is known with the answer.
            LinkInput::Published { message: FromDevice::TwinGet { .. }, .. } => (Class::TwinReads, None),
            _ => return Passage::Go,
        };
        let admission = self.rehearsal.admit(class, 1);
        if let (Admission::Now | Admission::At(_), Some(bytes)) = (admission, bytes) {
            self.rehearsal.charge(|| bytes);
        }
        passage(admission, input)
    }

    /// Whether what the hub says reaches the device. Counts it, where it costs.
    pub(crate) fn reaches(&mut self, now: Instant, output: &LinkOutput) -> bool {
        if let LinkOutput::Accepted { .. } = output {
            self.device = self.claimed.take().map(|device| (device, now));
        }
        if self.rehearsal.is_off() {
            return true;
        }
        let (topic, payload) = match output {
            LinkOutput::PubAck { is_message: true, .. } => return !self.loses_puback(),
            LinkOutput::Publish { topic, payload } => (topic, payload),
            _ => return true,
        };
        match ToDevice::parse(topic) {
            Some(ToDevice::Desired { .. }) => {
                let is_lost = self.device.as_ref().is_some_and(|(device, _)| self.rehearsal.loses_notice(device));
                if !is_lost {
                    self.rehearsal.charge(|| payload.len());
                }
                !is_lost
            }
            Some(ToDevice::TwinResponse { status: 200, .. }) => {
                self.rehearsal.charge(|| payload.len());
                true
            }
            _ => true,
        }
    }

    /// Whether the PUBACK of a message is lost.
    fn loses_puback(&mut self) -> bool {
        self.device.as_ref().is_some_and(|(device, _)| self.rehearsal.loses_puback(device))
    }

    /// How late what is to be sent now is.
    pub(crate) fn lateness(&mut self) -> Option<Duration> {
        self.device.as_ref().and_then(|(device, _)| self.rehearsal.lateness(Some(device)))
    }

    fn next_strike(&self, now: Instant) -> Option<Strike> {
        let (device, since) = self.device.as_ref()?;
        let strike = self.rehearsal.strike(device, *since)?;
        let is_over = match strike.what {
            Blow::TakeOver { .. } => self.is_taken_over,
            Blow::GoMute { until } => until <= now,
            Blow::ExpireToken | Blow::Cut => false,
        };
        (!is_over).then_some(strike)
    }

    fn struck(&mut self, strike: Strike, hub: &HubHandle) -> Option<Turn> {
        self.count(strike.day);
        match strike.what {
            Blow::ExpireToken => Some(Turn::Close { reason: "the token has expired: renew it and reconnect" }),
            Blow::Cut => Some(Turn::Close { reason: "a reconnect storm is rehearsed" }),
            Blow::GoMute { until } => Some(Turn::Mute { until, ends: true }),
            Blow::TakeOver { until } => {
                // The hub closes this link when the other one is there.
                self.is_taken_over = true;
                if let Some((device, _)) = &self.device {
                    self.rehearsal.take_over(hub, device.clone(), until);
                }
                None
            }
        }
    }

    fn count(&mut self, day: u64) {
        if self.counted.replace(day) != Some(day) {
            self.rehearsal.count(day);
        }
    }
}

/// MQTT has no word for a refusal, so Azure closes the connection; only twin operations have answers. A device whose
/// twin is refused for the rest of the day would ask at once again, forever, so that is no answer either.
fn passage(admission: Admission, input: &LinkInput) -> Passage {
    match (admission, input) {
        (Admission::Now, _) => Passage::Go,
        (Admission::At(at), _) => Passage::WaitUntil(at),
        (Admission::Throttled { .. }, LinkInput::Connect(_)) => Passage::Busy,
        (
            Admission::Throttled { .. },
            LinkInput::Published {
                message: FromDevice::TwinGet { rid } | FromDevice::ReportedPatch { rid, .. }, ..
            },
        ) => match admission.refusal() {
            Some(error) => Passage::Answer(twin_refusal(&error, rid.clone())),
            None => Passage::Go,
        },
        (Admission::Throttled { .. }, _) => {
            Passage::Close { reason: "429002: the device sends more than the tier allows" }
        }
        (Admission::QuotaSpent { .. }, _) => Passage::Close { reason: "403002: the day's quota of messages is spent" },
    }
}

fn twin_refusal(error: &HubError, rid: RequestId) -> LinkOutput {
    let tracking = format!("{:032x}", rand::random::<u128>());
    let payload: Bytes = error.twin_body(&tracking, Utc::now()).to_string().into();
    let topic = ToDevice::TwinResponse { status: error.code.http_status(), rid, version: None }.format();
    LinkOutput::Publish { topic, payload }
}

/// As Azure counts a message: values of system properties, names and values of the others.
fn bag_size(bag: &str) -> usize {
    decode_bag(bag).map_or(0, |properties| crate::hub::properties_size(&properties))
}
