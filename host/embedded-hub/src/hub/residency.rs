//! Which devices are in memory.
//!
//! A device is put there from the store before an input reaches the hub that concerns it, and leaves once nothing goes on
//! with it, everything of it is durable and it has not been asked for in a while. That there is no device of a name is
//! known in the same way: from the store, or from a deletion, until that is durable.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, Utc};
use iothub_protocol::id::DeviceId;

use super::{Device, Hub, Input, LinkInput, Now, Operation, Presence, Seen};

/// Devices that stay in memory though nothing goes on with them, since they may be asked for again. Reading one takes far
/// less than a commit, so there need not be many.
pub(crate) const MAX_IDLE: usize = 1000;

/// What is known of a device's stay, or of that of the knowledge that there is none.
#[derive(Debug, Default)]
pub(super) struct Residence {
    /// It is in the line of those who may have to leave.
    in_line: bool,
    /// It was asked for since it was last looked at.
    is_used: bool,
    /// The number of the last changes that it was among.
    batch: u64,
    /// When it was heard of, or what was queued for it, is not all stored.
    is_behind: bool,
}

/// The line of those who may have to leave. Whoever was asked for since gets to its end again.
#[derive(Default)]
pub(super) struct Residency {
    absent: HashMap<DeviceId, Residence>,
    line: VecDeque<DeviceId>,
    /// The number of the last changes.
    batch: u64,
}

impl Residency {
    pub(super) fn batch(&self) -> u64 {
        self.batch
    }

    /// The number of what is written now.
    pub(super) fn next_batch(&mut self, is_any: bool) -> u64 {
        self.batch += u64::from(is_any);
        self.batch
    }

    /// There is a device of that name now.
    pub(super) fn is_there(&mut self, id: &DeviceId) {
        self.absent.remove(id);
    }
}

impl<R> Input<R> {
    /// The device whose state the hub needs for this. What a connection says after its CONNECT concerns a device that is in
    /// memory for as long as it is connected.
    pub fn device(&self) -> Option<&DeviceId> {
        match self {
            Input::Link(_, LinkInput::Connect(request)) => Some(&request.device),
            Input::Link(..) => None,
            Input::Request { operation, .. } => operation.device(),
        }
    }
}

impl Operation {
    fn device(&self) -> Option<&DeviceId> {
        match self {
            Operation::GetDevice(id)
            | Operation::GetTwin(id)
            | Operation::ListMessages(id)
            | Operation::PurgeMessages(id)
            | Operation::PutDevice { id, .. }
            | Operation::DeleteDevice { id, .. }
            | Operation::PatchTwin { id, .. }
            | Operation::ReplaceTwin { id, .. }
            | Operation::Configure { id, .. }
            | Operation::CallMethod { id, .. }
            | Operation::SendMessage { id, .. }
            | Operation::Authenticate { id, .. }
            | Operation::ReceiveMessage { id, .. }
            | Operation::SettleMessage { id, .. } => Some(id),
            Operation::ImportDevice(device) => Some(&device.identity.device_id),
            Operation::ListFeedback | Operation::ReceiveFeedback { .. } | Operation::SettleFeedback { .. } => None,
        }
    }
}

impl<R> Hub<R> {
    /// Take into account what the queues of devices hold that are not in memory.
    pub fn with_queued_bytes(mut self, bytes: usize) -> Hub<R> {
        self.queued_bytes += bytes;
        self
    }

    /// Who is connected, for those who read past the hub.
    pub(crate) fn presence(&self) -> Presence {
        self.presence.clone()
    }

    /// Whether the device is in memory, or known not to exist.
    pub fn knows(&self, id: &DeviceId) -> bool {
        self.devices.contains_key(id) || self.residency.absent.contains_key(id)
    }

    /// Put what is stored of a device into memory; `None` if nothing is. Its queue is brought up to the moment.
    pub fn take_in(&mut self, now: Now, id: &DeviceId, stored: Option<Device>) {
        if self.knows(id) {
            return;
        }
        match stored {
            None => self.is_absent(id),
            Some(device) => {
                self.devices.insert(id.clone(), device);
                self.attend_queue(now, id);
                self.used(id);
            }
        }
    }

    /// Let devices go that were not used for longest, down to [`MAX_IDLE`]. `durable` is the number of the last changes that
    /// are. Gives the first time at which a message in a queue of theirs expires.
    pub fn let_go(&mut self, durable: u64) -> Option<DateTime<Utc>> {
        self.let_go_beyond(MAX_IDLE, durable)
    }

    pub(super) fn let_go_beyond(&mut self, idle: usize, durable: u64) -> Option<DateTime<Utc>> {
        let mut next_expiry = None;
        // Each is looked at once at most, also if all must stay.
        for _ in 0..self.residency.line.len().saturating_sub(idle) {
            let Some(id) = self.residency.line.pop_front() else { break };
            match self.verdict(&id, durable) {
                Verdict::Stays => self.residency.line.push_back(id),
                Verdict::LeavesTheLine => {}
                Verdict::Goes => {
                    self.residency.absent.remove(&id);
                    if let Some(device) = self.devices.remove(&id) {
                        next_expiry = [next_expiry, device.queue.next_expiry()].into_iter().flatten().min();
                        self.schedule_none(&id);
                    }
                    self.presence.forget(&id);
                }
            }
        }
        next_expiry
    }

    fn verdict(&mut self, id: &DeviceId, durable: u64) -> Verdict {
        let is_busy = self.unwritten.contains_key(id) || self.has_calls(id) || self.has_waiters(id);
        let Some(device) = self.devices.get_mut(id) else {
            return match self.residency.absent.get_mut(id) {
                None => Verdict::LeavesTheLine,
                Some(residence) => residence.verdict(is_busy, durable),
            };
        };
        if device.link.is_some() {
            // It comes back when the connection ends.
            device.residence.in_line = false;
            return Verdict::LeavesTheLine;
        }
        // Locks are in memory only.
        let is_busy = is_busy || device.queue.next_unlock().is_some();
        let verdict = device.residence.verdict(is_busy, durable);
        if matches!(verdict, Verdict::Goes) && device.residence.is_behind {
            device.residence.is_behind = false;
            self.unwritten(id).activity = true;
            return Verdict::Stays;
        }
        verdict
    }

    /// Have everything written that was kept for later, since the hub is about to stop.
    pub fn settle_up(&mut self) {
        let behind = self.devices.iter_mut().filter(|(_, device)| device.residence.is_behind);
        let behind = behind.map(|(id, device)| {
            device.residence.is_behind = false;
            id.clone()
        });
        for id in behind.collect::<Vec<_>>() {
            self.unwritten(&id).activity = true;
        }
    }

    /// The device, or that there is none, was asked for.
    pub(super) fn used(&mut self, id: &DeviceId) {
        let residence = match self.devices.get_mut(id) {
            Some(device) if device.link.is_some() => return,
            Some(device) => &mut device.residence,
            None => match self.residency.absent.get_mut(id) {
                Some(residence) => residence,
                None => return,
            },
        };
        residence.is_used = true;
        if !std::mem::replace(&mut residence.in_line, true) {
            self.residency.line.push_back(id.clone());
        }
    }

    /// The device has just been heard of.
    pub(super) fn heard(&mut self, now: Now, id: &DeviceId) {
        if let Some(device) = self.devices.get_mut(id) {
            device.last_activity = Some(now.wall);
            device.residence.is_behind = true;
        }
        self.show(id);
    }

    /// Let those who read past the hub see what is not stored of the device.
    pub(super) fn show(&self, id: &DeviceId) {
        if let Some(device) = self.devices.get(id) {
            self.presence.set(id, Seen { connected: device.link.is_some(), last_activity: device.last_activity });
        }
    }

    /// There is no device of that name.
    pub(super) fn is_absent(&mut self, id: &DeviceId) {
        self.residency.absent.insert(id.clone(), Residence::default());
        self.presence.forget(id);
        self.used(id);
    }

    /// The device is among the changes of that number.
    pub(super) fn changed_in(&mut self, id: &DeviceId, batch: u64) {
        let device = self.devices.get_mut(id).map(|device| &mut device.residence);
        if let Some(residence) = device.or_else(|| self.residency.absent.get_mut(id)) {
            residence.batch = batch;
        }
    }
}

enum Verdict {
    Stays,
    Goes,
    LeavesTheLine,
}

impl Residence {
    /// Something of the device is to be written before it leaves.
    pub(super) fn is_behind(&mut self) {
        self.is_behind = true;
    }

    fn verdict(&mut self, is_busy: bool, durable: u64) -> Verdict {
        let is_used = std::mem::take(&mut self.is_used);
        if is_used || is_busy || self.batch > durable { Verdict::Stays } else { Verdict::Goes }
    }
}
