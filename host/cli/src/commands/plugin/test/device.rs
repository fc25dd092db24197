//! The device of a scenario: all that a host keeps of one, in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use iothub_protocol::id::DeviceId;
use iothub_protocol::twin;
use plugin_runtime::{Effects, OutgoingTelemetry, Snapshot, Timer};
use serde_json::{Map, Value};

use super::scenario::Start;

pub(super) struct Device {
    id: DeviceId,
    desired: Map<String, Value>,
    desired_version: u64,
    /// What the plugin has dealt with of what it watches.
    applied: Map<String, Value>,
    pub(super) reported: Map<String, Value>,
    pub(super) state: BTreeMap<String, Vec<u8>>,
    /// Set and never fired: a scenario's clock stands still.
    timers: BTreeMap<String, Timer>,
}

/// A change of desired properties, for the plugin.
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) patch: Map<String, Value>,
    /// What will have been dealt with.
    view: Map<String, Value>,
}

impl Device {
    pub(super) fn new(start: &Start) -> Device {
        let state = start.state.iter().map(|(key, value)| (key.clone(), value.clone().into_bytes())).collect();
        Device {
            id: start.id.clone(),
            desired: start.desired.clone(),
            desired_version: 1,
            applied: Map::new(),
            reported: start.reported.clone(),
            state,
            timers: BTreeMap::new(),
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            device_id: self.id.clone(),
            desired: Arc::new(self.desired.clone()),
            desired_version: self.desired_version,
            reported: Arc::new(self.reported.clone()),
            state: Arc::new(self.state.clone()),
            timers: Arc::new(self.timers.clone()),
            now: NOW,
            telemetry_room: TELEMETRY_ROOM,
        }
    }

    /// A back end changes the desired properties.
    pub(super) fn desire(&mut self, patch: &Map<String, Value>, version: Option<u64>) {
        twin::merge(&mut self.desired, patch);
        self.desired_version = version.unwrap_or(self.desired_version + 1);
    }

    /// What a plugin that watches these paths has not dealt with yet.
    pub(super) fn change(&self, watched: &[String]) -> Option<Change> {
        let view = view(&self.desired, watched);
        let patch = twin::diff(&self.applied, &view);
        (!patch.is_empty()).then_some(Change { version: self.desired_version, patch, view })
    }

    pub(super) fn dealt_with(&mut self, change: Change) {
        self.applied = change.view;
    }

    /// Keeps what a call did. What it sent leaves at once: this device is always connected.
    pub(super) fn keep(&mut self, effects: Effects) -> Vec<OutgoingTelemetry> {
        twin::merge(&mut self.reported, &effects.reported);
        for (key, value) in effects.state {
            match value {
                Some(value) => self.state.insert(key, value),
                None => self.state.remove(&key),
            };
        }
        for (name, timer) in effects.timers {
            match timer {
                Some(timer) => self.timers.insert(name, timer),
                None => self.timers.remove(&name),
            };
        }
        effects.telemetry
    }
}

/// The part of `document` at the `watched` paths, which are names joined by dots.
fn view(document: &Map<String, Value>, watched: &[String]) -> Map<String, Value> {
    let mut view = Map::new();
    for path in watched {
        let mut names = path.split('.').rev();
        let found = path.split('.').try_fold(None::<&Value>, |inside, name| match inside {
            None => document.get(name).map(Some),
            Some(inside) => inside.get(name).map(Some),
        });
        if let (Some(Some(value)), Some(last)) = (found, names.next()) {
            let innermost = Map::from_iter([(last.to_owned(), value.clone())]);
            let nested = names.fold(innermost, |inner, name| Map::from_iter([(name.to_owned(), Value::Object(inner))]));
            twin::merge(&mut view, &nested);
        }
    }
    view
}

/// The time in every scenario, 2026-01-01, in milliseconds since 1970.
const NOW: u64 = 1_767_225_600_000;
/// A host's queue for one device.
const TELEMETRY_ROOM: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn a_change_is_brought_until_it_was_dealt_with() {
        let id = DeviceId::parse("d").expect("an id");
        let desired = object(json!({"a": {"b": 1, "c": 2}, "d": 3}));
        let mut device = Device::new(&Start { id, desired, reported: Map::new(), state: BTreeMap::new() });
        let watched = ["a.b".to_owned(), "e".to_owned(), "d.x".to_owned()];
        let first = device.change(&watched).expect("not seen yet");
        assert_eq!((first.version, first.patch), (1, object(json!({"a": {"b": 1}}))));

        device.desire(&object(json!({"a": null, "e": [4]})), None);
        let second = device.change(&watched).expect("still not dealt with");
        assert_eq!((second.version, &second.patch), (2, &object(json!({"e": [4]}))));
        device.dealt_with(second);
        assert!(device.change(&watched).is_none());

        device.desire(&object(json!({"e": null})), Some(9));
        let third = device.change(&watched).expect("news");
        assert_eq!((third.version, third.patch), (9, object(json!({"e": null}))));
    }
}
