//! Inputs that wait until the device that they concern is in memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use iothub_protocol::id::DeviceId;

use super::Reply;
use crate::hub::{Hub, Input, LinkId};

/// Most inputs that wait; beyond that no more are taken, which slows sockets down rather than growing.
const MAX_PARKED: usize = 4096;
/// Most devices read at once: enough to share what a read costs beside the devices, few enough that none waits long.
const MAX_BATCH: usize = 256;

/// Inputs by device, in the order in which they came.
#[derive(Default)]
pub(super) struct Parking {
    of_device: HashMap<DeviceId, Vec<Input<Reply>>>,
    /// Connections whose CONNECT waits here: what they say after it waits behind it.
    links: HashMap<LinkId, DeviceId>,
    /// Devices that nobody reads yet.
    wanted: Vec<DeviceId>,
    count: usize,
}

impl Parking {
    /// Gives the input back if the hub can take it now.
    pub(super) fn park(&mut self, hub: &Hub<Reply>, input: Input<Reply>) -> Option<Input<Reply>> {
        let device = match &input {
            Input::Link(link, _) => self.links.get(link).or(input.device()),
            Input::Request { .. } => input.device(),
        };
        let Some(device) = device.cloned() else { return Some(input) };
        // Behind what waits already, else the order would be lost.
        if !self.of_device.contains_key(&device) && hub.knows(&device) {
            return Some(input);
        }
        if let Input::Link(link, _) = &input {
            self.links.insert(*link, device.clone());
        }
        self.want(hub, &device);
        self.of_device.entry(device).or_default().push(input);
        self.count += 1;
        None
    }

    /// Have a device read, if it is not in memory.
    pub(super) fn want(&mut self, hub: &Hub<Reply>, id: &DeviceId) {
        if hub.knows(id) {
            return;
        }
        if let Entry::Vacant(entry) = self.of_device.entry(id.clone()) {
            entry.insert(Vec::new());
            self.wanted.push(id.clone());
        }
    }

    /// The devices to read next.
    pub(super) fn take_wanted(&mut self) -> Vec<DeviceId> {
        let take = self.wanted.len().min(MAX_BATCH);
        self.wanted.drain(..take).collect()
    }

    /// The device is in memory: what waited for it.
    pub(super) fn release(&mut self, id: &DeviceId) -> Vec<Input<Reply>> {
        let inputs = self.of_device.remove(id).unwrap_or_default();
        self.count -= inputs.len();
        for input in &inputs {
            if let Input::Link(link, _) = input {
                self.links.remove(link);
            }
        }
        inputs
    }

    pub(super) fn is_full(&self) -> bool {
        self.count >= MAX_PARKED
    }
}
