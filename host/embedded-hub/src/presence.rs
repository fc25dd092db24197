//! Who is connected, and when devices and modules were last heard of: what no store keeps up with.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;

/// What is known of a device or a module that the hub has in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) connected: bool,
    /// It is connected and has subscribed to methods.
    pub(crate) listens: bool,
    pub(crate) last_activity: Option<DateTime<Utc>>,
}

/// Written by the hub, read by those who read its store. Holds those that differ from what is stored of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Presence {
    seen: Arc<RwLock<HashMap<Address, Seen>>>,
}

impl Presence {
    /// `None` for one that is not connected and of which the store knows all.
    pub(crate) fn seen(&self, id: &Address) -> Option<Seen> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    pub(crate) fn set(&self, id: &Address, seen: Seen) {
        let mut all = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(id) {
            Some(known) => *known = seen,
            None => {
                all.insert(id.clone(), seen);
            }
        }
    }

    pub(crate) fn forget(&self, id: &Address) {
        self.seen.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// The devices that are connected, or the modules.
    pub(crate) fn connected(&self, are_modules: bool) -> Vec<Address> {
        let all = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let connected = all.iter().filter(|(id, seen)| seen.connected && id.is_module() == are_modules);
        connected.map(|(id, _)| id.clone()).collect()
    }

    /// How many devices are.
    pub(crate) fn connected_count(&self) -> usize {
        let all = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|(id, seen)| seen.connected && !id.is_module()).count()
    }
}
