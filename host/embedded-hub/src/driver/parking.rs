//! Inputs that wait until the device that they concern is in memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use iothub_protocol::address::Address;

use super::Reply;
use crate::hub::{Hub, Input, LinkId, LinkInput};

/// Most inputs that wait; beyond that no more are taken, which slows sockets down rather than growing.
const MAX_PARKED: usize = 4096;
/// Most devices read at once: enough to share what a read costs beside the devices, few enough that none waits long.
const MAX_BATCH: usize = 256;

/// Inputs by what has to be read for them, in the order in which they came.
#[derive(Default)]
pub(super) struct Parking {
    waiting: HashMap<Address, Vec<Input<Reply>>>,
    /// Connections whose CONNECT waits here, and as whom: what they say after it waits behind it.
    links: HashMap<LinkId, Address>,
    /// What nobody reads yet.
    wanted: Vec<Address>,
    count: usize,
}

impl Parking {
    /// Gives the input back if the hub can take it now.
    pub(super) fn park(&mut self, hub: &Hub<Reply>, input: Input<Reply>) -> Option<Input<Reply>> {
        let address = match &input {
            Input::Link(link, _) => self.links.get(link).cloned().or_else(|| input.address()),
            Input::Request { .. } => input.address(),
        };
        let Some(address) = address else { return Some(input) };
        let Some(place) = self.place(hub, &address) else { return Some(input) };
        if let Input::Link(link, _) = &input {
            self.links.insert(*link, address);
        }
        self.want(hub, &place);
        self.waiting.entry(place).or_default().push(input);
        self.count += 1;
        None
    }

    /// What an input that concerns this one has to wait for.
    fn place(&self, hub: &Hub<Reply>, address: &Address) -> Option<Address> {
        // Behind what waits already, else the order would be lost: for a module itself before for its device.
        let device = Address::from(address.device());
        let behind = [address, &device].into_iter().find(|place| self.waiting.contains_key(*place));
        behind.cloned().or_else(|| hub.lacks(address))
    }

    /// Have a device or a module read, if that is not in memory.
    pub(super) fn want(&mut self, hub: &Hub<Reply>, address: &Address) {
        let Some(address) = hub.lacks(address) else { return };
        if let Entry::Vacant(entry) = self.waiting.entry(address.clone()) {
            entry.insert(Vec::new());
            self.wanted.push(address);
        }
    }

    /// What to read next.
    pub(super) fn take_wanted(&mut self) -> Vec<Address> {
        let take = self.wanted.len().min(MAX_BATCH);
        self.wanted.drain(..take).collect()
    }

    /// It is in memory: what waited for it. Some may have to be [parked](Parking::park) again, as it concerns a module of it.
    pub(super) fn release(&mut self, address: &Address) -> Vec<Input<Reply>> {
        let inputs = self.waiting.remove(address).unwrap_or_default();
        self.count -= inputs.len();
        for input in &inputs {
            if let Input::Link(link, LinkInput::Connect(_)) = input {
                self.links.remove(link);
            }
        }
        inputs
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= MAX_PARKED
    }
}
