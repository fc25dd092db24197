//! Which devices and modules are in memory.
//!
//! A device is put there from the store before an input reaches the hub that concerns it, and leaves once nothing goes on
//! with it, everything of it is durable and it has not been asked for in a while. That there is no device of a name is
//! known in the same way: from the store, or from a deletion, until that is durable.
//!
//! A module comes and goes in the same way, for itself. Which modules there are is known from their device, which is in
//! memory first, and which stays until the changes to its modules are durable.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::topic::Subscription;

use super::{Entity, Hub, Input, LinkInput, Now, Presence, Seen};

/// Devices and modules that stay in memory though nothing goes on with them, since they may be asked for again. Reading one takes far
/// less than a commit, so there need not be many.
pub(crate) const MAX_IDLE: usize = 1000;

/// What is known of its stay, or of that of the knowledge that there is none.
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
    absent: HashMap<Address, Residence>,
    line: VecDeque<Address>,
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
    pub(super) fn is_there(&mut self, id: &Address) {
        self.absent.remove(id);
    }
}

impl<R> Input<R> {
    /// Whose state the hub needs for this. What a connection says after its CONNECT concerns one that is in memory for as
    /// long as it is connected.
    pub fn address(&self) -> Option<Address> {
        match self {
            Input::Link(_, LinkInput::Connect(request)) => Some(request.address.clone()),
            Input::Link(..) => None,
            Input::Request { operation, .. } => operation.address(),
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

    /// What has to be read from the store before the hub can deal with this device or module; `None` if nothing has. For a
    /// module that is its device first, which tells whether there is such a module.
    pub fn lacks(&self, address: &Address) -> Option<Address> {
        let Some(module) = address.module() else {
            return (!self.knows(address)).then(|| address.clone());
        };
        let device = Address::from(address.device());
        match self.entities.get(&device) {
            Some(device) if device.modules.contains(module) => (!self.knows(address)).then(|| address.clone()),
            Some(_) => None,
            None => (!self.knows(&device)).then_some(device),
        }
    }

    /// Whether it is in memory, or a device that is known not to exist.
    fn knows(&self, address: &Address) -> bool {
        self.entities.contains_key(address) || self.residency.absent.contains_key(address)
    }

    /// Put what is stored of a device or a module into memory; `None` if nothing is. A queue is brought up to the moment.
    pub fn take_in(&mut self, now: Now, id: &Address, stored: Option<Entity>) {
        // What the hub does not ask for any more has changed since it was read.
        if self.lacks(id).as_ref() != Some(id) {
            return;
        }
        match (stored, id.module()) {
            (Some(entity), _) => {
                self.entities.insert(id.clone(), entity);
                self.attend_queue(now, id);
                self.used(id);
            }
            (None, None) => self.is_absent(id),
            (None, Some(module)) => {
                if let Some(device) = self.entities.get_mut(&id.device().into()) {
                    device.modules.remove(module);
                }
            }
        }
    }

    /// Let those go that were not used for longest, down to [`MAX_IDLE`]. `durable` is the number of the last changes that
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
                    if let Some(entity) = self.entities.remove(&id) {
                        next_expiry = [next_expiry, entity.queue.next_expiry()].into_iter().flatten().min();
                        self.schedule_none(&id);
                    }
                    self.presence.forget(&id);
                }
            }
        }
        next_expiry
    }

    fn verdict(&mut self, id: &Address, durable: u64) -> Verdict {
        let is_busy = self.unwritten.contains_key(id) || self.has_calls(id) || self.has_waiters(id);
        let Some(entity) = self.entities.get_mut(id) else {
            return match self.residency.absent.get_mut(id) {
                None => Verdict::LeavesTheLine,
                Some(residence) => residence.verdict(is_busy, durable),
            };
        };
        if entity.link.is_some() {
            // It comes back when the connection ends.
            entity.residence.in_line = false;
            return Verdict::LeavesTheLine;
        }
        // Locks are in memory only.
        let is_busy = is_busy || entity.queue.next_unlock().is_some();
        let verdict = entity.residence.verdict(is_busy, durable);
        if matches!(verdict, Verdict::Goes) && entity.residence.is_behind {
            entity.residence.is_behind = false;
            self.unwritten(id).activity = true;
            return Verdict::Stays;
        }
        verdict
    }

    /// Have everything written that was kept for later, since the hub is about to stop.
    pub fn settle_up(&mut self) {
        let behind = self.entities.iter_mut().filter(|(_, entity)| entity.residence.is_behind);
        let behind = behind.map(|(id, entity)| {
            entity.residence.is_behind = false;
            id.clone()
        });
        for id in behind.collect::<Vec<_>>() {
            self.unwritten(&id).activity = true;
        }
    }

    /// It was asked for, or that there is none. A module with its device.
    pub(super) fn used(&mut self, id: &Address) {
        if id.is_module() {
            self.used(&id.device().into());
        }
        let residence = match self.entities.get_mut(id) {
            Some(entity) if entity.link.is_some() => return,
            Some(entity) => &mut entity.residence,
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

    /// It has just been heard of.
    pub(super) fn heard(&mut self, now: Now, id: &Address) {
        if let Some(entity) = self.entities.get_mut(id) {
            entity.last_activity = Some(now.wall);
            entity.residence.is_behind = true;
        }
        self.show(id);
    }

    /// Let those who read past the hub see what is not stored of it.
    pub(super) fn show(&self, id: &Address) {
        if let Some(entity) = self.entities.get(id) {
            let listens = entity.listening(Subscription::Methods).is_some();
            let connected = entity.link.is_some();
            self.presence.set(id, Seen { connected, listens, last_activity: entity.last_activity });
        }
    }

    /// There is no device of that name.
    pub(super) fn is_absent(&mut self, id: &Address) {
        self.residency.absent.insert(id.clone(), Residence::default());
        self.presence.forget(id);
        self.used(id);
    }

    /// It is among the changes of that number. A module with its device, which knows of it.
    pub(super) fn changed_in(&mut self, id: &Address, batch: u64) {
        if id.is_module() {
            self.changed_in(&id.device().into(), batch);
        }
        let entity = self.entities.get_mut(id).map(|entity| &mut entity.residence);
        if let Some(residence) = entity.or_else(|| self.residency.absent.get_mut(id)) {
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
    /// Something of it is to be written before it leaves.
    pub(super) fn is_behind(&mut self) {
        self.is_behind = true;
    }

    fn verdict(&mut self, is_busy: bool, durable: u64) -> Verdict {
        let is_used = std::mem::take(&mut self.is_used);
        if is_used || is_busy || self.batch > durable { Verdict::Stays } else { Verdict::Goes }
    }
}
