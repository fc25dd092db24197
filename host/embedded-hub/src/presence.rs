//! Who is connected, and when devices were last heard of: what no store keeps up with.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, Utc};
use iothub_protocol::id::DeviceId;

/// What is known of a device that the hub has in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) connected: bool,
    pub(crate) last_activity: Option<DateTime<Utc>>,
}

/// Written by the hub, read by those who read its store. Holds the devices that differ from what is stored of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Presence {
    devices: Arc<RwLock<HashMap<DeviceId, Seen>>>,
}

impl Presence {
    /// `None` for a device that is not connected and of which the store knows all.
    pub(crate) fn seen(&self, id: &DeviceId) -> Option<Seen> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    pub(crate) fn set(&self, id: &DeviceId, seen: Seen) {
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        match devices.get_mut(id) {
            Some(known) => *known = seen,
            None => {
                devices.insert(id.clone(), seen);
            }
        }
    }

    pub(crate) fn forget(&self, id: &DeviceId) {
        self.devices.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Those who are connected, in order of their ids.
    pub(crate) fn connected(&self) -> Vec<DeviceId> {
        let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
        let mut connected: Vec<_> =
            devices.iter().filter(|(_, seen)| seen.connected).map(|(id, _)| id.clone()).collect();
        connected.sort_unstable();
        connected
    }

    pub(crate) fn connected_count(&self) -> usize {
        let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
        devices.values().filter(|seen| seen.connected).count()
    }
}
