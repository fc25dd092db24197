//! What an actor keeps for ever, and the changes to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use iothub_protocol::link::TelemetryMessage;
use plugin_runtime::{OutgoingTelemetry, PluginName, Timer, VersionTag};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::inbox::HANDLED_LIMIT;

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
    /// Messages that each plugin has dealt with last, in order of `number`.
    pub handled: BTreeMap<PluginName, Vec<Handled>>,
    /// Whose changes were recorded last.
    pub versions: BTreeMap<PluginName, VersionTag>,
    /// Of plugins with a version in quarantine.
    pub past: BTreeMap<PluginName, PluginPast>,
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

/// How versions of a plugin did on the device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PluginPast {
    /// Hashes of versions that answered well, the last one first.
    pub good: Vec<Arc<str>>,
    pub quarantined: Vec<Quarantined>,
    /// [`Plugin::id`](crate::Plugin::id) of what the rules said last. Quarantine ends when they say something else.
    pub ruled: Option<Arc<str>>,
}

/// A version that failed too often to be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    pub hash: Arc<str>,
    pub label: Arc<str>,
    pub reason: String,
}

/// A message that a plugin has dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handled {
    /// Grows by one with each message of a device and plugin.
    pub number: u64,
    /// See [`CloudMessage::fingerprint`](iothub_protocol::link::CloudMessage::fingerprint).
    pub fingerprint: u128,
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
    /// The message that the same plugin dealt with.
    pub handled: Option<(PluginName, Handled)>,
    /// The version that was called, if another one was before it.
    pub version: Option<(PluginName, VersionTag)>,
    pub applied: Vec<(PluginName, Applied)>,
    /// All there is of [`DeviceRecord::past`].
    pub past: Option<BTreeMap<PluginName, PluginPast>>,
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
        if let Some((plugin, handled)) = changes.handled {
            let of_plugin = self.handled.entry(plugin).or_default();
            of_plugin.push(handled);
            of_plugin.drain(..of_plugin.len().saturating_sub(HANDLED_LIMIT));
        }
        self.versions.extend(changes.version);
        self.applied.extend(changes.applied);
        if let Some(past) = changes.past {
            self.past = past;
        }
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
/// All of it may be lost in a crash: a confirmed patch or message is then sent again, the twin is asked for on the next
/// connect anyway, and a version that belongs into quarantine fails again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Dirty {
    pub(crate) desired: bool,
    pub(crate) reported: bool,
    pub(crate) unsent: bool,
    pub(crate) applied: bool,
    pub(crate) past: bool,
    /// What was reported and what is unsent, since the hub has answered to it.
    pub(crate) report_answered: bool,
    pub(crate) telemetry_taken: Vec<u64>,
}

impl Dirty {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Dirty::default()
    }

    /// Whether all of it is what the hub has answered to what was sent.
    pub(crate) fn is_confirmation(&self) -> bool {
        !(self.desired || self.reported || self.unsent || self.applied || self.past)
    }

    pub(crate) fn merge(&mut self, other: Dirty) {
        self.desired |= other.desired;
        self.reported |= other.reported;
        self.unsent |= other.unsent;
        self.applied |= other.applied;
        self.past |= other.past;
        self.report_answered |= other.report_answered;
        self.telemetry_taken.extend(other.telemetry_taken);
    }
}
