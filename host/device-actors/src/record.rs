//! What an actor keeps for ever, and the changes to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use iothub_protocol::link::TelemetryMessage;
use plugin_runtime::{OutgoingTelemetry, PluginName, Timer, VersionTag};
use serde_json::{Map, Value};

/// State of one plugin on one device.
pub(crate) type PluginState = BTreeMap<String, Vec<u8>>;

/// Values set, or removed, by key.
pub(crate) type StateChanges = BTreeMap<String, Option<Vec<u8>>>;

/// Timers set, or gone, by name.
pub(crate) type TimerChanges = BTreeMap<String, Option<Timer>>;

/// Everything that a device's actor starts from. The default is a device that was never seen.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeviceRecord {
    /// The last desired document seen, whole.
    pub desired: Map<String, Value>,
    pub desired_version: u64,
    /// Reported properties that the hub is known to hold.
    pub reported: Map<String, Value>,
    pub unsent: Unsent,
    pub state: BTreeMap<PluginName, PluginState>,
    pub applied: BTreeMap<PluginName, Applied>,
    pub timers: BTreeMap<PluginName, BTreeMap<String, Timer>>,
    /// Whose changes were recorded last.
    pub versions: BTreeMap<PluginName, VersionTag>,
    /// In order of `sequence`.
    pub telemetry: Vec<QueuedTelemetry>,
}

/// Reported patches that the hub has not confirmed, in their order; empty if there are none.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Unsent {
    /// The hub may have it.
    pub in_flight: Map<String, Value>,
    /// Relative to what the hub holds after the one in flight.
    pub pending: Map<String, Value>,
}

/// What a plugin saw last of the desired properties.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Applied {
    pub version: u64,
    /// The part that it watched, as it was in that version. What is left to deliver is the difference to this.
    pub view: Map<String, Value>,
}

/// A message that the hub has not taken yet.
#[derive(Debug, Clone, PartialEq)]
pub struct QueuedTelemetry {
    /// Grows by one with each message of a device while any is queued.
    pub sequence: u64,
    pub message: Arc<TelemetryMessage>,
}

impl QueuedTelemetry {
    /// Bytes that count against the device's queue, as [`plugin_runtime::OutgoingTelemetry::queue_cost`] has it.
    pub(crate) fn queue_cost(&self) -> usize {
        let message = &self.message;
        let outgoing = OutgoingTelemetry {
            body: Vec::new(),
            content_type: message.content_type.clone(),
            properties: message.properties.clone(),
        };
        outgoing.queue_cost() + message.body.len()
    }
}

/// One transaction's worth of changes; `None` and empty leave things as they are.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Changes {
    /// The desired document and its version.
    pub desired: Option<(Arc<Map<String, Value>>, u64)>,
    pub reported: Option<Arc<Map<String, Value>>>,
    pub unsent: Option<Unsent>,
    /// Of the plugin that was called.
    pub state: Option<(PluginName, Arc<StateChanges>)>,
    /// Of the same plugin; the timer that it dealt with is gone.
    pub timers: Option<(PluginName, Arc<TimerChanges>)>,
    /// The version that was called, if another one was before it.
    pub version: Option<(PluginName, VersionTag)>,
    pub applied: Vec<(PluginName, Applied)>,
    pub telemetry_queued: Vec<QueuedTelemetry>,
    /// Sequence numbers that the hub has taken.
    pub telemetry_taken: Vec<u64>,
}

impl DeviceRecord {
    /// What a store makes of `changes`, for whoever keeps the record in memory.
    pub fn apply(&mut self, changes: Changes) {
        if let Some((desired, version)) = changes.desired {
            (self.desired, self.desired_version) = (Arc::unwrap_or_clone(desired), version);
        }
        if let Some(reported) = changes.reported {
            self.reported = Arc::unwrap_or_clone(reported);
        }
        if let Some(unsent) = changes.unsent {
            self.unsent = unsent;
        }
        if let Some((plugin, state)) = changes.state {
            set_or_remove(self.state.entry(plugin).or_default(), &state);
        }
        if let Some((plugin, timers)) = changes.timers {
            set_or_remove(self.timers.entry(plugin).or_default(), &timers);
        }
        self.versions.extend(changes.version);
        self.applied.extend(changes.applied);
        self.telemetry.retain(|queued| !changes.telemetry_taken.contains(&queued.sequence));
        self.telemetry.extend(changes.telemetry_queued);
    }
}

/// Take changes by name: a value is set, `None` is gone.
pub(crate) fn set_or_remove<T: Clone>(kept: &mut BTreeMap<String, T>, changes: &BTreeMap<String, Option<T>>) {
    for (name, change) in changes {
        match change {
            Some(value) => kept.insert(name.clone(), value.clone()),
            None => kept.remove(name),
        };
    }
}

/// What differs between memory and the store, to be written when there is a chance.
///
/// All of it may be lost in a crash: a confirmed patch or message is then sent again, and the twin is asked for on
/// the next connect anyway.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Dirty {
    pub(crate) desired: bool,
    pub(crate) reported: bool,
    pub(crate) unsent: bool,
    pub(crate) applied: bool,
    pub(crate) telemetry_taken: Vec<u64>,
}

impl Dirty {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Dirty::default()
    }

    pub(crate) fn merge(&mut self, other: Dirty) {
        self.desired |= other.desired;
        self.reported |= other.reported;
        self.unsent |= other.unsent;
        self.applied |= other.applied;
        self.telemetry_taken.extend(other.telemetry_taken);
    }
}
