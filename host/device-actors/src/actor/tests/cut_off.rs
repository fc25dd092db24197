//! The process ends between any two outputs of the actor, whatever the store and the hub have got by then.
//!
//! `tests/crash` ends a real process, which has one order of things in each run; here are all of them.

use std::collections::{BTreeSet, VecDeque};
use std::mem;

use iothub_protocol::link::{FromHub, ToHub, TwinDocument};
use iothub_protocol::twin;
use plugin_runtime::Effects;
use serde_json::{Map, Value};

use super::bench::*;
use crate::actor::{Call, Work};
use crate::record::DeviceRecord;

/// A device that is told to start, and a hub that does its part.
struct World {
    bench: Bench,
    hub: Hub,
    is_asked: bool,
    /// What the device has sent, on its way to the hub.
    wire: VecDeque<ToHub>,
}

/// How things go before the end.
#[derive(Debug, Clone, Copy)]
struct Course {
    /// What is on the wire at the end does not arrive.
    is_lost: bool,
    /// Nothing arrives before the timers have fired.
    is_slow: bool,
}

/// What outlives the process beside the store.
#[derive(Clone, Default)]
struct Hub {
    is_answered: bool,
    reported: Map<String, Value>,
    /// Message ids and bodies.
    telemetry: BTreeSet<(String, String)>,
}

impl World {
    fn new(outputs: usize) -> World {
        let mut bench = Bench::on(DeviceRecord::default(), &[ticker("1")]);
        bench.outputs_left = outputs;
        World { bench, hub: Hub::default(), is_asked: false, wire: VecDeque::new() }
    }

    /// The next process, when the store has written so many of the records that it was given last.
    fn restarted(&self, written: usize) -> World {
        let mut db = self.bench.db.clone();
        self.bench.records.iter().take(written).for_each(|(_, changes)| db.apply(changes.clone()));
        let bench = Bench::at(self.bench.wall, db, &[ticker("1")]);
        World { bench, hub: self.hub.clone(), is_asked: true, wire: VecDeque::new() }
    }

    /// Until the process ends or nothing more happens.
    fn run(&mut self, Course { is_lost, is_slow }: Course) {
        let twin = TwinDocument { reported: self.hub.reported.clone(), desired_version: 1, ..TwinDocument::default() };
        self.bench.hub(FromHub::Connected);
        self.bench.hub(FromHub::Twin(twin));
        for _ in 0..1000 {
            self.listen();
            if self.bench.ended {
                break;
            } else if let Some(call) = &self.bench.call {
                self.bench.returns(effects(call));
            } else if !self.bench.records.is_empty() {
                self.bench.write();
            } else if is_slow && self.bench.actor.view().timers > 0 {
                self.bench.wait_for_deadline();
            } else if let Some(message) = self.wire.pop_front() {
                let answer = self.hub.take(message);
                answer.into_iter().for_each(|answer| self.bench.hub(answer));
            } else if !mem::replace(&mut self.is_asked, true) {
                self.bench.method("1", "start");
            } else if self.bench.actor.deadline().is_some() {
                self.bench.wait_for_deadline();
            } else {
                return;
            }
        }
        assert!(self.bench.ended, "the actor does not come to rest");
        for message in self.wire.drain(..).filter(|_| !is_lost) {
            self.hub.take(message);
        }
    }

    /// Nothing leaves before it is recorded.
    fn listen(&mut self) {
        let ledger = ledger(&self.bench.db);
        for message in self.bench.take_sent() {
            let is_recorded = match &message {
                ToHub::MethodResponse { .. } => ledger.starts_with('m'),
                ToHub::Report { patch, .. } => patch.keys().all(|entry| ledger.contains(entry)),
                ToHub::Telemetry { message, .. } => ledger.as_bytes().starts_with(&message.body),
                _ => false,
            };
            assert!(is_recorded, "{message:?} leaves, and what is recorded is `{ledger}`");
            self.wire.push_back(message);
        }
    }

    /// All that follows from what is recorded has happened once, and nothing else.
    fn check(&self) {
        let db = &self.bench.db;
        let ledger = ledger(db);
        assert!(ledger == "mtu" || ledger.is_empty() && !self.hub.is_answered, "{ledger}");
        let told: Vec<&str> = self.hub.telemetry.iter().map(|(_, body)| body.as_str()).collect();
        let told_once: BTreeSet<&str> = told.iter().copied().collect();
        assert_eq!((told.len(), told_once), (ledger.len(), (1..=ledger.len()).map(|end| &ledger[..end]).collect()));
        assert!(self.hub.reported.keys().map(String::as_str).eq(["m", "t", "u"].into_iter().take(ledger.len())));
        assert_eq!(db.reported, self.hub.reported);
        assert!(db.telemetry.is_empty() && db.timers.values().all(|timers| timers.is_empty()));
    }
}

impl Hub {
    fn take(&mut self, message: ToHub) -> Option<FromHub> {
        match message {
            ToHub::MethodResponse { status, .. } => {
                assert_eq!((status, mem::replace(&mut self.is_answered, true)), (200, false));
                None
            }
            ToHub::Report { token, patch } => {
                twin::merge(&mut self.reported, &patch);
                Some(FromHub::Reported { token, status: 204, version: None, message: String::new() })
            }
            ToHub::Telemetry { token, message } => {
                let body = String::from_utf8(message.body).expect("text");
                self.telemetry.insert((message.message_id, body));
                Some(FromHub::TelemetryTaken { token })
            }
            other => panic!("nobody asked for {other:?}"),
        }
    }
}

/// A plugin that remembers, says and reports what it is called with. It goes on with the timer `t`, which sets itself
/// again as `u`.
fn effects(call: &Call) -> Effects {
    let (entry, next) = match &call.work {
        Work::Method { .. } => ("m", Some("t")),
        Work::Timer { timer, .. } if *timer.payload == *b"t" => ("t", Some("u")),
        Work::Timer { .. } => ("u", None),
        other => panic!("nobody asked for {other:?}"),
    };
    let before = call.snapshot.state.get("ledger").map(|kept| String::from_utf8_lossy(kept)).unwrap_or_default();
    let ledger = format!("{before}{entry}");
    let due = call.snapshot.now + 50;
    Effects {
        state: sets("ledger", &ledger).state,
        timers: next.map(|payload| timers(&[("step", due, payload)]).timers).unwrap_or_default(),
        reported: Map::from_iter([(entry.to_owned(), Value::from(1))]),
        telemetry: sends(&[&ledger]).telemetry,
        ..Effects::default()
    }
}

fn ledger(db: &DeviceRecord) -> String {
    let kept = db.state.values().next().and_then(|state| state.get("ledger"));
    kept.map(|ledger| String::from_utf8_lossy(ledger).into_owned()).unwrap_or_default()
}

/// Tells whether the process has come to its end after so many outputs.
fn survives(outputs: usize, course: Course) -> bool {
    let mut world = World::new(outputs);
    world.run(course);
    for written in 0..=world.bench.records.len() {
        let mut next = world.restarted(written);
        next.run(Course { is_lost: false, ..course });
        next.check();
    }
    world.bench.ended
}

#[test]
fn timers_and_what_they_do_survive_an_end_between_any_two_outputs() {
    for (is_lost, is_slow) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut outputs = 0;
        while survives(outputs, Course { is_lost, is_slow }) {
            outputs += 1;
        }
        // Each of three calls begins, is recorded and says something, and what it reports is reported.
        assert!(outputs > 3 * 3, "there are but {outputs} outputs");
    }
}
