//! Devices whose twins are looked at in turn, until something can be said of each.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;

/// Between two looks.
const LOOK_EVERY: TimeDelta = TimeDelta::seconds(1);
/// Devices that are looked at together, in turn if there are more: some milliseconds of a hub's time.
const LOOK: usize = 500;

/// Whoever waits is decided on only by a look, never by time alone: while a hub cannot be asked, nobody fails.
#[derive(Debug)]
pub(super) struct Looks<W> {
    waits: HashMap<Address, W>,
    /// Those to look at, in this order. May name devices that wait no longer.
    turns: VecDeque<Address>,
    /// When to look; `None` while a look is out or nobody waits.
    next: Option<DateTime<Utc>>,
}

impl<W> Default for Looks<W> {
    fn default() -> Looks<W> {
        Looks { waits: HashMap::new(), turns: VecDeque::new(), next: None }
    }
}

impl<W> Looks<W> {
    pub(super) fn add(&mut self, now: DateTime<Utc>, device: Address, wait: W) {
        if self.waits.is_empty() {
            self.next = Some(now + LOOK_EVERY);
        }
        self.turns.push_back(device.clone());
        self.waits.insert(device, wait);
    }

    pub(super) fn remove(&mut self, device: &Address) {
        self.waits.remove(device);
        if self.waits.is_empty() {
            self.turns.clear();
            self.next = None;
        }
    }

    /// The clock was set by so much; `wait` tells so to each that waits.
    pub(super) fn clock_set(&mut self, by: TimeDelta, wait: impl FnMut(&mut W)) {
        self.next = self.next.map(|at| at + by);
        self.waits.values_mut().for_each(wait);
    }

    pub(super) fn deadline(&self) -> Option<DateTime<Utc>> {
        self.next
    }

    /// The devices to look at now; what is seen goes to [`Looks::seen`].
    pub(super) fn look(&mut self, now: DateTime<Utc>) -> Option<Vec<Address>> {
        self.next.take_if(|at| *at <= now)?;
        let mut devices = Vec::new();
        while devices.len() < LOOK
            && let Some(device) = self.turns.pop_front()
        {
            if self.waits.contains_key(&device) {
                devices.push(device);
            }
        }
        Some(devices)
    }

    /// No more looks: the process is about to end.
    pub(super) fn close(&mut self) {
        self.next = None;
    }

    /// A look at `devices` has come back: what it says of each, if anything.
    pub(super) fn seen<V>(
        &mut self,
        now: DateTime<Utc>,
        devices: Vec<Address>,
        mut judge: impl FnMut(&Address, &mut W) -> Option<V>,
    ) -> Vec<(Address, V)> {
        let mut verdicts = Vec::new();
        for device in devices {
            let Some(wait) = self.waits.get_mut(&device) else { continue };
            match judge(&device, wait) {
                Some(verdict) => verdicts.push((device, verdict)),
                None => self.turns.push_back(device),
            }
        }
        if !self.waits.is_empty() {
            self.next = Some(now + LOOK_EVERY);
        }
        verdicts
    }
}
