//! Anything may happen in any order. Nothing that was recorded is lost, and nobody is answered twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use iothub_protocol::link::{FromHub, ToHub, TwinDocument};
use iothub_protocol::twin;
use plugin_runtime::Effects;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::bench::*;
use crate::actor::{Input, Work};
use crate::failure::FailureKind;
use crate::lineup::Plugin;
use crate::record::{DeviceRecord, Unsent};

#[derive(Debug, Clone)]
enum Step {
    Connect,
    AnswerGet,
    Disconnect,
    Method,
    Desire(u8),
    Return {
        report: Option<u8>,
        send: bool,
        set: bool,
        timer: Option<(u8, u16)>,
    },
    Trap,
    Refuse,
    Later,
    Write,
    CannotWrite,
    /// The hub takes the oldest patch, and its answer arrives or not.
    TakeReport {
        answered: bool,
    },
    Throttle,
    TakeTelemetry,
    Wait(u16),
    /// Somebody sets the wall clock.
    SetClock(i16),
    Swap,
    Evict,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Connect),
        3 => Just(Step::AnswerGet),
        1 => Just(Step::Disconnect),
        5 => Just(Step::Method),
        3 => (0..4_u8).prop_map(Step::Desire),
        8 => (prop::option::of(0..6_u8), any::<bool>(), any::<bool>(), prop::option::of((0..3_u8, 0..3000_u16)))
            .prop_map(|(report, send, set, timer)| Step::Return { report, send, set, timer }),
        1 => Just(Step::Trap),
        1 => Just(Step::Refuse),
        1 => Just(Step::Later),
        8 => Just(Step::Write),
        1 => Just(Step::CannotWrite),
        3 => any::<bool>().prop_map(|answered| Step::TakeReport { answered }),
        1 => Just(Step::Throttle),
        4 => Just(Step::TakeTelemetry),
        2 => (0..3000_u16).prop_map(Step::Wait),
        1 => (-5000..5000_i16).prop_map(Step::SetClock),
        1 => Just(Step::Swap),
        1 => Just(Step::Evict),
        1 => Just(Step::Crash),
    ]
}

/// The actor, a hub that does its part, and what must come out.
struct World {
    bench: Bench,
    generation: u64,
    connected: bool,
    get_asked: bool,
    desired: Map<String, Value>,
    version: u64,
    hub_reported: Map<String, Value>,
    /// On the wire to the hub.
    patches: VecDeque<(u64, Map<String, Value>)>,
    messages: VecDeque<u64>,
    received: Vec<String>,
    /// Effects of the call that returned last, and the record that holds them.
    unrecorded: Option<Unrecorded>,
    reported: Map<String, Value>,
    sent: Vec<String>,
    state: BTreeMap<String, Vec<u8>>,
    /// Payloads by name.
    timers: BTreeMap<String, String>,
    seen: Map<String, Value>,
    asked: BTreeSet<String>,
    answered: BTreeSet<String>,
    counter: u32,
}

/// A call that returned, with what it consumed.
struct Unrecorded {
    record: u64,
    effects: Effects,
    change: Option<Value>,
    timer: Option<(String, String)>,
}

impl World {
    fn new() -> World {
        World {
            bench: Bench::on(DeviceRecord::default(), &plugins(1)),
            generation: 1,
            connected: false,
            get_asked: false,
            desired: Map::new(),
            version: 1,
            hub_reported: Map::new(),
            patches: VecDeque::new(),
            messages: VecDeque::new(),
            received: Vec::new(),
            unrecorded: None,
            reported: Map::new(),
            sent: Vec::new(),
            state: BTreeMap::new(),
            timers: BTreeMap::new(),
            seen: Map::new(),
            asked: BTreeSet::new(),
            answered: BTreeSet::new(),
            counter: 0,
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Connect if !self.connected => {
                (self.connected, self.get_asked) = (true, true);
                self.bench.hub(FromHub::Connected);
            }
            Step::AnswerGet if self.get_asked => {
                self.get_asked = false;
                let (desired, reported) = (self.desired.clone(), self.hub_reported.clone());
                let twin = TwinDocument { desired, desired_version: self.version, reported, reported_version: 1 };
                self.bench.hub(FromHub::Twin(twin));
            }
            Step::Disconnect if self.connected => {
                self.lose_link();
                self.bench.disconnect();
            }
            Step::Method if self.connected => {
                self.counter += 1;
                self.asked.insert(self.counter.to_string());
                self.bench.method(&self.counter.to_string(), "lockDoor");
            }
            Step::Desire(value) => self.desire(*value),
            Step::Return { report, send, set, timer } if self.bench.call.is_some() => {
                let effects = self.effects(*report, *send, *set, *timer);
                self.call_returns(effects);
            }
            Step::Trap if self.bench.call.is_some() => self.bench.fails(FailureKind::Trap),
            Step::Refuse if self.bench.activation().is_some() => self.bench.refuses("no"),
            Step::Later if self.bench.change().is_some() || self.bench.timer().is_some() => self.bench.wants_it_later(),
            Step::Write if !self.bench.records.is_empty() => self.write(),
            Step::CannotWrite if !self.bench.records.is_empty() => {
                let id = self.bench.records[0].0;
                self.unrecorded.take_if(|call| call.record == id);
                self.bench.cannot_write();
            }
            Step::TakeReport { answered } => self.take_report(*answered),
            Step::Throttle => {
                if let Some((token, _)) = self.patches.pop_front() {
                    self.report_answer(token, 429);
                }
            }
            Step::TakeTelemetry => {
                if let Some(token) = self.messages.pop_front() {
                    self.bench.hub(FromHub::TelemetryTaken { token });
                }
            }
            Step::Wait(millis) => self.bench.wait(Duration::from_millis((*millis).into())),
            Step::SetClock(by) => self.bench.wall = self.bench.wall.saturating_add_signed((*by).into()),
            Step::Swap => {
                self.generation += 1;
                self.bench.plugins(self.generation, &plugins(self.generation));
            }
            Step::Evict => self.bench.input(Input::Evict),
            Step::Crash => {
                self.lose_link();
                self.unrecorded = None;
                self.bench = Bench::at(self.bench.wall, self.bench.db.clone(), &plugins(self.generation));
            }
            _ => {}
        }
        self.listen();
    }

    fn lose_link(&mut self) {
        (self.connected, self.get_asked) = (false, false);
        self.patches.clear();
        self.messages.clear();
        // Their callers have been told.
        self.asked.clear();
    }

    fn desire(&mut self, value: u8) {
        self.version += 1;
        let patch = match value {
            0 => json!({"x": null}),
            1 => json!({"x": {"y": null}}),
            _ => json!({"x": {"y": self.version}, "unwatched": self.version}),
        };
        twin::merge(&mut self.desired, &object(patch.clone()));
        if self.connected {
            self.bench.desired(self.version, patch);
        }
    }

    fn effects(&mut self, report: Option<u8>, send: bool, set: bool, timer: Option<(u8, u16)>) -> Effects {
        self.counter += 1;
        let (text, n) = (self.counter.to_string(), self.counter);
        let reported = report.map(|kind| match kind {
            0 => json!({"a": null}),
            1 => json!({"a": {"x": n}}),
            2 => json!({"a": {"y": n, "x": null}}),
            3 => json!({"a": n}),
            _ => json!({"b": n}),
        });
        let due = timer.map(|(name, after)| (name.to_string(), self.bench.wall + u64::from(after)));
        Effects {
            timers: due.map(|(name, due)| timers(&[(&name, due, &text)]).timers).unwrap_or_default(),
            reported: reported.map(object).unwrap_or_default(),
            telemetry: if send { sends(&[text.as_str()]).telemetry } else { Vec::new() },
            state: if set { sets("k", &text).state } else { BTreeMap::new() },
        }
    }

    fn call_returns(&mut self, effects: Effects) {
        let change = self.bench.change().map(|(_, _, patch)| patch);
        let timer = self.bench.timer().map(|(_, name, payload)| (name, payload));
        let is_method = matches!(self.bench.call.as_ref().map(|call| &call.work), Some(Work::Method { .. }));
        let recorded = !effects.is_empty() || !is_method;
        self.bench.returns(effects.clone());
        if recorded {
            let (id, _) = self.bench.records.back().expect("a record of the call");
            self.unrecorded = Some(Unrecorded { record: *id, effects, change, timer });
        }
    }

    fn write(&mut self) {
        let id = self.bench.records[0].0;
        if let Some(Unrecorded { effects, change, timer, .. }) = self.unrecorded.take_if(|call| call.record == id) {
            twin::merge(&mut self.reported, &effects.reported);
            self.sent.extend(effects.telemetry.iter().map(|message| text(&message.body)));
            for (key, value) in effects.state {
                self.state.insert(key, value.expect("only set here"));
            }
            if let Some((name, payload)) = timer {
                assert_eq!(self.timers.remove(&name), Some(payload), "each is dealt with once");
            }
            for (name, timer) in effects.timers {
                let payload = text(&timer.expect("only set here").payload);
                self.timers.insert(name, payload);
            }
            if let Some(change) = change {
                twin::merge(&mut self.seen, &object(change));
            }
        }
        self.bench.write();
    }

    fn take_report(&mut self, answered: bool) {
        let Some((token, patch)) = self.patches.pop_front() else { return };
        twin::merge(&mut self.hub_reported, &patch);
        if answered {
            self.report_answer(token, 204);
        }
    }

    fn report_answer(&mut self, token: u64, status: u16) {
        self.bench.hub(FromHub::Reported { token, status, version: None, message: String::new() });
    }

    /// What the actor has sent.
    fn listen(&mut self) {
        for message in self.bench.take_sent() {
            assert!(self.connected, "nothing is sent to nobody: {message:?}");
            match message {
                ToHub::MethodResponse { rid, .. } => {
                    assert!(self.asked.contains(rid.as_str()), "nobody on this connection asked {rid}");
                    assert!(self.answered.insert(rid.to_string()), "{rid} was answered twice");
                }
                ToHub::MessageTaken { .. } | ToHub::SubscribeMessages => {
                    panic!("there are no messages here: {message:?}")
                }
                ToHub::Report { token, patch } => self.patches.push_back((token, patch)),
                ToHub::Telemetry { token, message } => {
                    self.messages.push_back(token);
                    let body = text(&message.body);
                    if !self.received.contains(&body) {
                        self.received.push(body);
                    }
                }
            }
        }
    }

    /// From here on everything goes well, until nothing more happens.
    fn settle(&mut self) {
        let quiet = Effects::default;
        for _ in 0..2000 {
            self.take(&Step::Connect);
            self.take(&Step::AnswerGet);
            self.take(&Step::Write);
            self.take(&Step::TakeReport { answered: true });
            self.take(&Step::TakeTelemetry);
            if self.bench.call.is_some() {
                self.call_returns(quiet());
                self.listen();
            }
            let busy = self.bench.call.is_some() || !self.bench.records.is_empty();
            match self.bench.actor.deadline() {
                None if !busy && self.patches.is_empty() && self.messages.is_empty() => return,
                Some(_) if !busy => {
                    self.bench.wait_for_deadline();
                    self.listen();
                }
                _ => {}
            }
        }
        panic!("the actor does not come to rest");
    }

    fn check(&self) {
        let db = &self.bench.db;
        assert_eq!(self.hub_reported, self.reported, "reported");
        assert_eq!((&db.reported, &db.unsent), (&self.reported, &Unsent::default()));
        assert_eq!(self.received, self.sent, "telemetry");
        assert!(db.telemetry.is_empty());
        let kept: BTreeMap<_, _> =
            db.state.values().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        assert_eq!(kept, self.state, "state");
        assert!(self.timers.is_empty() && db.timers.values().all(BTreeMap::is_empty), "every timer was dealt with");
        let watched: Map<_, _> = self.desired.clone().into_iter().filter(|(key, _)| key == "x").collect();
        assert_eq!(self.seen, watched, "desired, as the plugin saw it");
        assert_eq!((&db.desired, db.desired_version), (&self.desired, self.version));
        assert!(self.asked.is_subset(&self.answered), "everybody who still listens is answered");
    }
}

/// One plugin, so that all effects are its own.
fn plugins(version: u64) -> Vec<Arc<Plugin>> {
    let label: Arc<str> = Arc::from(version.to_string());
    let plugin = Plugin {
        id: label.clone(),
        label: label.clone(),
        hash: label,
        watched: vec!["x".into()],
        has_ticks: true,
        has_lifecycle: version.is_multiple_of(2),
        ..Plugin::clone(&lock_door("1"))
    };
    vec![Arc::new(plugin)]
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

proptest! {
    #[test]
    fn nothing_recorded_is_lost_and_nobody_is_answered_twice(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        world.settle();
        world.check();
    }
}
