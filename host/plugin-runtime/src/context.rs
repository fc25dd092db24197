//! One call's copy of the device: what the guest reads and writes instead of the world.
//!
//! Everything here is memory. A guest reads its own writes; nobody else does before the call has returned and its
//! [`Effects`] have been recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iothub_protocol::id::DeviceId;
use iothub_protocol::topic;
use iothub_protocol::twin::{self, Part};
use serde_json::{Map, Value};

use crate::reported;
use crate::settings::CallLimits;

/// The device as it is when a call begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub device_id: DeviceId,
    pub desired: Arc<Map<String, Value>>,
    pub desired_version: u64,
    /// With everything merged that earlier calls reported, sent or not.
    pub reported: Arc<Map<String, Value>>,
    /// What this plugin keeps on this device.
    pub state: Arc<BTreeMap<String, Vec<u8>>>,
    /// What this plugin has set on this device and has not dealt with, by name.
    pub timers: Arc<BTreeMap<String, Timer>>,
    /// Milliseconds since the beginning of 1970, UTC.
    pub now: u64,
    /// Bytes free in the device's queue, counted by [`OutgoingTelemetry::queue_cost`].
    pub telemetry_room: usize,
}

/// A plugin's wish to be called later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    /// Milliseconds since the beginning of 1970, UTC.
    pub due: u64,
    pub payload: Arc<[u8]>,
}

/// What a call did: to be recorded in one transaction, or to be dropped whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effects {
    /// One merge patch for the reported properties; empty if nothing was reported.
    pub reported: Map<String, Value>,
    /// Keys that were set, or deleted (`None`). Writes that changed nothing are not here.
    pub state: BTreeMap<String, Option<Vec<u8>>>,
    /// Timers that were set, or cancelled (`None`). Changes that changed nothing are not here.
    pub timers: BTreeMap<String, Option<Timer>>,
    /// In the order of sending.
    pub telemetry: Vec<OutgoingTelemetry>,
}

impl Effects {
    pub fn is_empty(&self) -> bool {
        self.reported.is_empty() && self.state.is_empty() && self.timers.is_empty() && self.telemetry.is_empty()
    }
}

/// A device-to-cloud message as a guest queued it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingTelemetry {
    pub body: Vec<u8>,
    pub content_type: Option<String>,
    pub properties: Vec<(String, String)>,
}

impl OutgoingTelemetry {
    /// Bytes by the hub's rule: body and properties together.
    pub fn size(&self) -> usize {
        let properties: usize = self.properties.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.body.len() + self.content_type.as_ref().map_or(0, String::len) + properties
    }

    /// Bytes of the topic that carries everything but the body, percent-encoded.
    fn topic_size(&self, device: &str) -> usize {
        let properties = self.properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let content_type = self.content_type.iter().map(|value| ("$.ct", value.as_str()));
        let bag = topic::encode_bag(content_type.chain(properties));
        bag.len() + device.len() + TOPIC_REST
    }

    /// Bytes that the message takes of the device's queue: its size and what keeping it costs, so that a guest cannot
    /// queue empty messages without end.
    pub fn queue_cost(&self) -> usize {
        self.size() + 64
    }
}

/// Why the host refuses what a guest asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    Denied,
    Invalid(String),
    TooLarge,
    Busy,
}

/// A call in hand. The default stands for no device: that is what a version sees while it is loaded.
#[derive(Debug, Default)]
pub(crate) struct CallContext {
    before: Option<Snapshot>,
    limits: CallLimits,
    /// The reported properties with this call's patches, from the first report on.
    merged: Option<Map<String, Value>>,
    effects: Effects,
    /// Bytes in keys and values, with this call's changes; summed up at the first `set`.
    state_size: Option<usize>,
    telemetry_cost: usize,
}

impl CallContext {
    pub(crate) fn new(before: Option<Snapshot>, limits: CallLimits) -> CallContext {
        CallContext { before, limits, ..CallContext::default() }
    }

    pub(crate) fn into_effects(self) -> Effects {
        self.effects
    }

    pub(crate) fn device_id(&self) -> &str {
        self.before.as_ref().map_or("", |before| before.device_id.as_str())
    }

    pub(crate) fn desired(&self) -> (u64, String) {
        let Some(before) = &self.before else { return (0, "{}".to_owned()) };
        (before.desired_version, without_host_key(&before.desired))
    }

    pub(crate) fn reported(&self) -> String {
        let before = self.before.as_ref().map(|before| &*before.reported);
        self.merged.as_ref().or(before).map_or_else(|| "{}".to_owned(), without_host_key)
    }

    pub(crate) fn report(&mut self, patch: &str) -> Result<(), Refused> {
        let patch = match serde_json::from_str(patch) {
            Ok(Value::Object(patch)) => patch,
            Ok(_) => return Err(Refused::Invalid("the patch is not a JSON object".to_owned())),
            Err(error) => return Err(Refused::Invalid(format!("the patch is no JSON: {error}"))),
        };
        if patch.contains_key(HOST_KEY) {
            return Err(Refused::Denied);
        }
        twin::check_patch(Part::Reported, &patch).map_err(|error| Refused::Invalid(error.message))?;
        let nothing = Map::new();
        let before = self.before.as_ref().map_or(&nothing, |before| &before.reported);
        let mut merged = self.merged.as_ref().unwrap_or(before).clone();
        twin::merge(&mut merged, &patch);
        if twin::check_size(Part::Reported, &merged).is_err() {
            return Err(Refused::TooLarge);
        }
        let mut combined = self.effects.reported.clone();
        reported::combine(before, &mut combined, patch);
        if twin::size(&combined) > COMBINED_PATCH_LIMIT {
            return Err(Refused::TooLarge);
        }
        self.effects.reported = combined;
        self.merged = Some(merged);
        Ok(())
    }

    pub(crate) fn send(&mut self, message: OutgoingTelemetry) -> Result<(), Refused> {
        check_properties(&message.properties)?;
        if message.size() > MESSAGE_LIMIT || message.topic_size(self.device_id()) > TOPIC_LIMIT {
            return Err(Refused::TooLarge);
        }
        // The last message may pass the mark: otherwise one of the largest size would never fit.
        if self.telemetry_cost >= self.before.as_ref().map_or(0, |before| before.telemetry_room) {
            return Err(Refused::Busy);
        }
        self.telemetry_cost += message.queue_cost();
        self.effects.telemetry.push(message);
        Ok(())
    }

    pub(crate) fn state(&self, key: &str) -> Option<&Vec<u8>> {
        match self.effects.state.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.kept(key),
        }
    }

    pub(crate) fn set_state(&mut self, key: String, value: Vec<u8>) -> Result<(), Refused> {
        if key.is_empty() || key.len() > self.limits.name {
            let text = format!("a key has 1 to {} bytes, this one {}", self.limits.name, key.len());
            return Err(Refused::Invalid(text));
        }
        let replaced = self.state(&key).map_or(0, |old| key.len() + old.len());
        let size = self.state_size() - replaced + key.len() + value.len();
        if size > self.limits.state {
            return Err(Refused::TooLarge);
        }
        self.state_size = Some(size);
        if self.kept(&key) == Some(&value) {
            self.effects.state.remove(&key);
        } else {
            self.effects.state.insert(key, Some(value));
        }
        Ok(())
    }

    pub(crate) fn delete_state(&mut self, key: String) {
        let removed = self.state(&key).map_or(0, |old| key.len() + old.len());
        self.state_size = Some(self.state_size() - removed);
        if self.kept(&key).is_some() {
            self.effects.state.insert(key, None);
        } else {
            self.effects.state.remove(&key);
        }
    }

    pub(crate) fn state_keys(&self) -> Vec<String> {
        let kept = self.before.iter().flat_map(|before| before.state.keys());
        let keys: BTreeSet<&String> = kept.chain(self.effects.state.keys()).collect();
        keys.into_iter().filter(|key| self.state(key).is_some()).cloned().collect()
    }

    pub(crate) fn now(&self) -> u64 {
        self.before.as_ref().map_or(0, |before| before.now)
    }

    pub(crate) fn set_timer(&mut self, name: String, timer: Timer) -> Result<(), Refused> {
        if name.is_empty() || name.len() > self.limits.name {
            let text = format!("a timer's name has 1 to {} bytes, this one {}", self.limits.name, name.len());
            return Err(Refused::Invalid(text));
        }
        let ahead = self.limits.timer_ahead;
        if timer.due > self.now().saturating_add(u64::try_from(ahead.as_millis()).unwrap_or(u64::MAX)) {
            let days = ahead.as_secs_f64() / (24.0 * 60.0 * 60.0);
            return Err(Refused::Invalid(format!("the time is more than {days} days ahead")));
        }
        if timer.payload.len() > self.limits.timer_payload {
            return Err(Refused::TooLarge);
        }
        let timers = self.timers();
        if !timers.contains_key(&name) && timers.len() >= self.limits.timers {
            return Err(Refused::Busy);
        }
        if self.before.as_ref().and_then(|before| before.timers.get(&name)) == Some(&timer) {
            self.effects.timers.remove(&name);
        } else {
            self.effects.timers.insert(name, Some(timer));
        }
        Ok(())
    }

    pub(crate) fn cancel_timer(&mut self, name: String) {
        if self.before.as_ref().is_some_and(|before| before.timers.contains_key(&name)) {
            self.effects.timers.insert(name, None);
        } else {
            self.effects.timers.remove(&name);
        }
    }

    /// What is set, with this call's changes.
    pub(crate) fn timers(&self) -> BTreeMap<&String, &Timer> {
        let mut timers: BTreeMap<_, _> = self.before.iter().flat_map(|before| before.timers.iter()).collect();
        for (name, changed) in &self.effects.timers {
            match changed {
                Some(timer) => timers.insert(name, timer),
                None => timers.remove(name),
            };
        }
        timers
    }

    fn kept(&self, key: &str) -> Option<&Vec<u8>> {
        self.before.as_ref().and_then(|before| before.state.get(key))
    }

    fn state_size(&self) -> usize {
        self.state_size.unwrap_or_else(|| {
            let kept = self.before.iter().flat_map(|before| before.state.iter());
            kept.map(|(key, value)| key.len() + value.len()).sum()
        })
    }
}

fn check_properties(properties: &[(String, String)]) -> Result<(), Refused> {
    let mut names = BTreeSet::new();
    for (name, _) in properties {
        let wrong = match name {
            _ if name.is_empty() => "is empty",
            _ if name.starts_with('$') => "begins with $, which the hub's own properties do",
            _ if !names.insert(name) => "occurs twice",
            _ => continue,
        };
        return Err(Refused::Invalid(format!("the property name {name:?} {wrong}")));
    }
    Ok(())
}

fn without_host_key(section: &Map<String, Value>) -> String {
    let shown: BTreeMap<&String, &Value> = section.iter().filter(|(key, _)| *key != HOST_KEY).collect();
    serde_json::to_string(&shown).expect("a map with text keys is JSON")
}

/// The key in both sections that is the host's: it pins and reports versions of plugins there.
pub(crate) const HOST_KEY: &str = "latch";
/// The hub refuses larger messages.
const MESSAGE_LIMIT: usize = 256 << 10;
/// MQTT writes a topic's length in two bytes. A message that no packet can carry would be queued for nothing.
const TOPIC_LIMIT: usize = 65_535;
/// The topic's fixed text, the message id and the content encoding.
const TOPIC_REST: usize = 128;
/// A patch that replaces a whole section deletes up to 32 KiB and writes up to 32 KiB.
const COMBINED_PATCH_LIMIT: usize = 2 * twin::limit::PROPERTIES;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::snapshot;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    fn call(change: impl FnOnce(&mut Snapshot)) -> CallContext {
        let mut snapshot = snapshot();
        change(&mut snapshot);
        CallContext::new(Some(snapshot), CallLimits::default())
    }

    fn message(size: usize) -> OutgoingTelemetry {
        OutgoingTelemetry { body: vec![0; size], content_type: None, properties: Vec::new() }
    }

    #[test]
    fn a_call_reads_what_it_reported() {
        let mut call = call(|it| it.reported = Arc::new(map(json!({"a": 1, "latch": {"x": 1}}))));
        assert_eq!(call.reported(), r#"{"a":1}"#);
        assert_eq!(call.report(r#"{"b": {"c": 2}}"#), Ok(()));
        assert_eq!(call.report(r#"{"a": null}"#), Ok(()));
        assert_eq!(call.reported(), r#"{"b":{"c":2}}"#);
        assert_eq!(call.into_effects().reported, map(json!({"a": null, "b": {"c": 2}})));
    }

    #[test]
    fn the_hosts_key_is_neither_shown_nor_written() {
        let mut call = call(|it| it.desired = Arc::new(map(json!({"latch": {"plugins": {}}, "lock": true}))));
        assert_eq!(call.desired(), (3, r#"{"lock":true}"#.to_owned()));
        assert_eq!(call.report(r#"{"latch": {}}"#), Err(Refused::Denied));
        assert!(call.into_effects().is_empty());
    }

    #[test]
    fn a_report_that_breaks_a_rule_leaves_nothing() {
        let mut call = call(|it| it.reported = Arc::new(Map::new()));
        for patch in ["[1]", "{", "{} {}", r#"{"a.b": 1}"#] {
            assert!(matches!(call.report(patch), Err(Refused::Invalid(_))), "{patch}");
        }
        let part = json!(vec!["x".repeat(4000); 5]);
        assert_eq!(call.report(&json!({"a": part}).to_string()), Ok(()));
        assert_eq!(call.report(&json!({"b": part}).to_string()), Err(Refused::TooLarge));
        assert_eq!(call.into_effects().reported.keys().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn state_is_counted_with_the_calls_own_changes() {
        let kept = BTreeMap::from([("kept".to_owned(), vec![1]), ("old".to_owned(), vec![0; 60 << 10])]);
        let mut call = call(|it| it.state = Arc::new(kept));
        assert_eq!(call.set_state("new".to_owned(), vec![0; 8 << 10]), Err(Refused::TooLarge));
        call.delete_state("old".to_owned());
        call.delete_state("never was".to_owned());
        assert_eq!(call.set_state("new".to_owned(), vec![7; 60 << 10]), Ok(()));
        assert_eq!(call.set_state("kept".to_owned(), vec![1]), Ok(()));
        assert_eq!(call.state("old"), None);
        assert_eq!(call.state_keys(), ["kept", "new"]);
        assert!(matches!(call.set_state(String::new(), vec![]), Err(Refused::Invalid(_))));
        assert!(matches!(call.set_state("k".repeat(257), vec![]), Err(Refused::Invalid(_))));
        let expected = BTreeMap::from([("new".to_owned(), Some(vec![7; 60 << 10])), ("old".to_owned(), None)]);
        assert_eq!(call.into_effects().state, expected);
    }

    #[test]
    fn writing_state_back_is_no_effect() {
        let mut call = call(|it| it.state = Arc::new(BTreeMap::from([("a".to_owned(), vec![1])])));
        assert_eq!(call.set_state("a".to_owned(), vec![2]), Ok(()));
        assert_eq!(call.set_state("a".to_owned(), vec![1]), Ok(()));
        assert!(call.into_effects().is_empty());
    }

    fn timer(due: u64, payload: &[u8]) -> Timer {
        Timer { due, payload: payload.into() }
    }

    #[test]
    fn timers_are_replaced_cancelled_and_counted_with_the_calls_own_changes() {
        let before: BTreeMap<_, _> = (0..63).map(|n| (format!("t{n:02}"), timer(n, b""))).collect();
        let mut call = call(|it| it.timers = Arc::new(before));
        assert_eq!(call.set_timer("new".to_owned(), timer(7, b"x")), Ok(()));
        assert_eq!(call.set_timer("one more".to_owned(), timer(7, b"x")), Err(Refused::Busy));
        assert_eq!(call.set_timer("t00".to_owned(), timer(9, b"")), Ok(()), "replaced");
        call.cancel_timer("t01".to_owned());
        call.cancel_timer("never was".to_owned());
        assert_eq!(call.set_timer("t02".to_owned(), timer(2, b"")), Ok(()), "as it is");
        assert_eq!(call.timers().len(), 63);
        let expected = [("new", Some(timer(7, b"x"))), ("t00", Some(timer(9, b""))), ("t01", None)];
        let expected = expected.map(|(name, change)| (name.to_owned(), change));
        assert_eq!(call.into_effects().timers, BTreeMap::from(expected));
    }

    #[test]
    fn a_timer_has_a_name_a_small_payload_and_a_time_within_a_year() {
        let mut call = call(|_| {});
        let now = call.now();
        for name in ["", &"n".repeat(257)] {
            assert!(matches!(call.set_timer(name.to_owned(), timer(now, b"")), Err(Refused::Invalid(_))));
        }
        assert_eq!(call.set_timer("t".to_owned(), timer(now, &[0; 4097])), Err(Refused::TooLarge));
        const FARTHEST_TIMER: u64 = 366 * 24 * 60 * 60 * 1000;
        assert_eq!(call.set_timer("t".to_owned(), timer(now + FARTHEST_TIMER, &[0; 4096])), Ok(()));
        for due in [now + FARTHEST_TIMER + 1, u64::MAX] {
            assert!(matches!(call.set_timer("t".to_owned(), timer(due, b"")), Err(Refused::Invalid(_))));
        }
        assert_eq!(call.set_timer("t".to_owned(), timer(0, b"")), Ok(()), "overdue from the start");
    }

    #[test]
    fn a_host_can_give_less() {
        let limits = CallLimits {
            state: 8,
            timers: 1,
            timer_payload: 2,
            timer_ahead: std::time::Duration::from_secs(24 * 60 * 60),
            name: 3,
            ..CallLimits::default()
        };
        let mut call = CallContext::new(Some(snapshot()), limits);
        let now = call.now();
        assert_eq!(call.set_state("abc".to_owned(), vec![0; 6]), Err(Refused::TooLarge));
        assert_eq!(call.set_state("abc".to_owned(), vec![0; 5]), Ok(()));
        let refused = Err(Refused::Invalid("a key has 1 to 3 bytes, this one 4".to_owned()));
        assert_eq!(call.set_state("abcd".to_owned(), vec![]), refused);
        let refused = Err(Refused::Invalid("a timer's name has 1 to 3 bytes, this one 4".to_owned()));
        assert_eq!(call.set_timer("abcd".to_owned(), timer(now, b"")), refused);
        let refused = Err(Refused::Invalid("the time is more than 1 days ahead".to_owned()));
        assert_eq!(call.set_timer("abc".to_owned(), timer(now + 86_400_001, b"")), refused);
        assert_eq!(call.set_timer("abc".to_owned(), timer(now, b"123")), Err(Refused::TooLarge));
        assert_eq!(call.set_timer("abc".to_owned(), timer(now, b"12")), Ok(()));
        assert_eq!(call.set_timer("b".to_owned(), timer(now, b"")), Err(Refused::Busy));
    }

    #[test]
    fn telemetry_fills_the_queue_and_then_is_busy() {
        let mut call = call(|it| it.telemetry_room = 256 << 10);
        assert_eq!(call.send(message((256 << 10) + 1)), Err(Refused::TooLarge));
        assert_eq!(call.send(message(200 << 10)), Ok(()));
        assert_eq!(call.send(message(200 << 10)), Ok(()));
        assert_eq!(call.send(message(0)), Err(Refused::Busy));
        assert_eq!(call.into_effects().telemetry.len(), 2);
    }

    #[test]
    fn properties_fit_into_a_topic_or_are_refused() {
        for (value, fits) in [("x".repeat(60_000), true), ("x".repeat(66_000), false), ("ü".repeat(15_000), false)] {
            let properties = vec![("name".to_owned(), value)];
            let sent = call(|_| {}).send(OutgoingTelemetry { properties, ..message(1) });
            assert_eq!(sent, if fits { Ok(()) } else { Err(Refused::TooLarge) });
        }
    }

    #[test]
    fn telemetry_properties_have_names_of_their_own() {
        let mut call = call(|_| {});
        for names in [&[""][..], &["$.mid"], &["a", "a"]] {
            let properties = names.iter().map(|name| ((*name).to_owned(), "v".to_owned())).collect();
            assert!(matches!(call.send(OutgoingTelemetry { properties, ..message(1) }), Err(Refused::Invalid(_))));
        }
    }

    #[test]
    fn while_loading_there_is_no_device() {
        let mut call = CallContext::default();
        assert_eq!((call.device_id(), call.desired()), ("", (0, "{}".to_owned())));
        assert_eq!(call.send(message(1)), Err(Refused::Busy));
    }
}
