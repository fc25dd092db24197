//! An actor on a bench: a clock that the test turns, a store that writes when told, a hub that only listens.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iothub_protocol::id::{DeviceId, MethodName, RequestId};
use iothub_protocol::link::{CloudMessage, FromHub, ToHub, TwinDocument};
use plugin_runtime::{
    Effects, GuestResponse, IncomingMessage, MessageSource, OutgoingTelemetry, PeerMessage, Placement, PluginName,
    Timer, Verdict,
};
use serde_json::{Map, Value, json};

use crate::actor::recording::CONFIRMATIONS_WAIT;
use crate::actor::{Actor, Call, Input, Outcome, Output, Work};
use crate::failure::{Failure, FailureKind};
use crate::limits::Limits;
use crate::lineup::{Lineup, Offer, Offered, Offers, Plugin};
use crate::record::{Changes, DeviceRecord, Unsent};
use crate::timers::Now;

pub(super) struct Bench {
    pub(super) actor: Actor,
    pub(super) now: Instant,
    /// The wall clock, which runs along and can be set.
    pub(super) wall: u64,
    /// What is written.
    pub(super) db: DeviceRecord,
    pub(super) call: Option<Call>,
    pub(super) records: VecDeque<(u64, Changes)>,
    pub(super) sent: Vec<ToHub>,
    /// To other devices.
    pub(super) to_peers: Vec<(DeviceId, IncomingMessage)>,
    pub(super) dropped: Vec<String>,
    /// Hashes of the versions that it needs loaded.
    pub(super) wanted: Vec<String>,
    pub(super) stopped: bool,
    /// How many outputs are done before the process ends.
    pub(super) outputs_left: usize,
    /// The process has ended with something undone.
    pub(super) ended: bool,
}

impl Bench {
    /// On `db`, with these plugins, not connected.
    pub(super) fn on(db: DeviceRecord, plugins: &[Arc<Plugin>]) -> Bench {
        Bench::at(1_700_000_000_000, db, plugins)
    }

    pub(super) fn at(wall: u64, db: DeviceRecord, plugins: &[Arc<Plugin>]) -> Bench {
        let now = Instant::now();
        let device = DeviceId::parse("door-0001").expect("an id");
        let actor = Actor::new(device, db.clone(), Limits::default(), 42, Now { monotonic: now, wall });
        let (call, records, sent) = (None, VecDeque::new(), Vec::new());
        let mut bench = Bench {
            actor,
            now,
            wall,
            db,
            call,
            records,
            sent,
            to_peers: Vec::new(),
            dropped: Vec::new(),
            wanted: Vec::new(),
            stopped: false,
            outputs_left: usize::MAX,
            ended: false,
        };
        bench.plugins(1, plugins);
        bench
    }

    /// A new device, connected, with its twin at desired version 1.
    pub(super) fn connected(plugins: &[Arc<Plugin>]) -> Bench {
        let mut bench = Bench::on(DeviceRecord::default(), plugins);
        bench.connect(json!({}), 1);
        bench.write_all();
        bench
    }

    pub(super) fn input(&mut self, input: Input) {
        self.actor.handle(Now { monotonic: self.now, wall: self.wall }, input);
        while let Some(output) = self.actor.poll() {
            if self.outputs_left == 0 {
                self.ended = true;
                return;
            }
            self.outputs_left -= 1;
            match output {
                Output::Call(call) => assert!(self.call.replace(*call).is_none(), "one call at a time"),
                Output::Record { id, changes } => self.records.push_back((id, *changes)),
                Output::ToHub(message) => self.sent.push(message),
                Output::ToPeer { to, message } => self.to_peers.push((to, message)),
                Output::Want(versions) => {
                    self.wanted = versions.into_iter().map(|(_, hash)| hash.to_string()).collect()
                }
                Output::DropInstance(id) => self.dropped.push(id.to_string()),
                Output::Stopped => assert!(!std::mem::replace(&mut self.stopped, true)),
            }
        }
        assert!(self.actor.deadline().is_none_or(|at| at > self.now), "a deadline in the past would spin");
    }

    pub(super) fn hub(&mut self, message: FromHub) {
        self.input(Input::Hub(message));
    }

    pub(super) fn plugins(&mut self, generation: u64, plugins: &[Arc<Plugin>]) {
        let current = Arc::new(Lineup { generation, plugins: plugins.to_vec() });
        let plugins = plugins.iter().map(|plugin| offer(plugin, &[])).collect();
        self.offers(Offers { generation, current, plugins });
    }

    /// One plugin: its current version, and others that are kept, of which the newest comes first.
    pub(super) fn versions(&mut self, current: &Arc<Plugin>, others: &[Arc<Plugin>]) {
        self.offers(versions(current, others));
    }

    pub(super) fn offers(&mut self, offers: Offers) {
        self.input(Input::Plugins(Arc::new(offers)));
    }

    pub(super) fn connect(&mut self, desired: Value, version: u64) {
        self.hub(FromHub::Connected);
        self.twin(desired, version);
    }

    pub(super) fn twin(&mut self, desired: Value, desired_version: u64) {
        let reported = self.db.reported.clone();
        self.hub(FromHub::Twin(TwinDocument {
            desired: object(desired),
            desired_version,
            reported,
            reported_version: 1,
        }));
    }

    pub(super) fn disconnect(&mut self) {
        self.hub(FromHub::Disconnected { reason: "test".into() });
    }

    pub(super) fn desired(&mut self, version: u64, patch: Value) {
        self.hub(FromHub::Desired { version, patch: object(patch) });
    }

    pub(super) fn method(&mut self, id: &str, name: &str) {
        let name = MethodName::parse(name).expect("a name");
        self.hub(FromHub::Method { rid: rid(id), name, payload: "null".into() });
    }

    /// A message from the cloud, whose body is its id.
    pub(super) fn message(&mut self, token: u64, id: &str) {
        self.hub(FromHub::Message { token, message: Box::new(cloud_message(id)) });
    }

    /// A message from a plugin on the device `lamp`.
    pub(super) fn peer_message(&mut self, body: &str) {
        let source = MessageSource::Peer(DeviceId::parse("lamp").expect("an id"));
        let message = CloudMessage { body: body.into(), ..CloudMessage::default() };
        self.input(Input::Peer(IncomingMessage { source, message }));
    }

    /// Messages to other devices since the last look: to whom, from whom, body.
    pub(super) fn take_to_peers(&mut self) -> Vec<(String, String, String)> {
        let sent = std::mem::take(&mut self.to_peers).into_iter().map(|(to, message)| {
            let MessageSource::Peer(from) = message.source else { panic!("from the cloud") };
            (to.to_string(), from.to_string(), String::from_utf8(message.message.body).expect("text"))
        });
        sent.collect()
    }

    /// The call in hand returns.
    pub(super) fn returns(&mut self, effects: Effects) {
        let call = self.call.take().expect("a call");
        let outcome = match call.work {
            Work::Method { .. } => {
                let payload = json!({"version": &*call.plugin.label}).to_string();
                Outcome::Answered { response: GuestResponse { status: 200, payload }, effects }
            }
            Work::Activation { .. } => Outcome::Activated { result: Ok(()), effects },
            Work::Change { .. } | Work::Message(_) | Work::Timer { .. } => {
                Outcome::Reacted { verdict: Verdict::Done, effects }
            }
        };
        self.input(Input::Called(outcome));
    }

    pub(super) fn fails(&mut self, kind: FailureKind) {
        self.call.take().expect("a call");
        self.input(Input::Called(Outcome::Failed(Failure { kind, detail: "wasm backtrace".into() })));
    }

    pub(super) fn wants_it_later(&mut self) {
        self.call.take().expect("a call");
        let verdict = Verdict::Retry("not now".into());
        self.input(Input::Called(Outcome::Reacted { verdict, effects: Effects::default() }));
    }

    /// The oldest record becomes durable.
    pub(super) fn write(&mut self) -> Changes {
        let (id, changes) = self.records.pop_front().expect("a record");
        self.db.apply(changes.clone());
        self.input(Input::Recorded { id, written: true });
        changes
    }

    pub(super) fn write_all(&mut self) {
        while !self.records.is_empty() {
            self.write();
        }
    }

    /// Confirmations of the hub are written, too.
    pub(super) fn settle(&mut self) {
        self.write_all();
        self.wait(CONFIRMATIONS_WAIT);
        self.write_all();
    }

    pub(super) fn cannot_write(&mut self) {
        let (id, _) = self.records.pop_front().expect("a record");
        self.input(Input::Recorded { id, written: false });
    }

    pub(super) fn wait(&mut self, time: Duration) {
        self.now += time;
        self.wall += u64::try_from(time.as_millis()).expect("few");
        self.input(Input::Timeout);
    }

    /// Turn the clock to the deadline; how long that took.
    pub(super) fn wait_for_deadline(&mut self) -> Duration {
        let time = self.actor.deadline().expect("a deadline") - self.now;
        self.wait(time);
        time
    }

    pub(super) fn take_sent(&mut self) -> Vec<ToHub> {
        std::mem::take(&mut self.sent)
    }

    /// Answers since the last look: request, status, payload.
    pub(super) fn answers(&mut self) -> Vec<(String, i32, Value)> {
        let sent = self.take_sent().into_iter();
        let answers = sent.filter_map(|message| match message {
            ToHub::MethodResponse { rid, status, payload } => {
                Some((rid.to_string(), status, serde_json::from_str(&payload).expect("JSON")))
            }
            _ => None,
        });
        answers.collect()
    }

    /// The change in hand: plugin version, desired version, patch.
    pub(super) fn change(&self) -> Option<(String, u64, Value)> {
        let call = self.call.as_ref()?;
        match &call.work {
            Work::Change { version, patch } => {
                Some((call.plugin.label.to_string(), *version, serde_json::from_str(patch).expect("JSON")))
            }
            Work::Method { .. } | Work::Message(_) | Work::Timer { .. } | Work::Activation { .. } => None,
        }
    }

    /// The message in hand: plugin and body.
    pub(super) fn letter(&self) -> Option<(String, String)> {
        let call = self.call.as_ref()?;
        let Work::Message(letter) = &call.work else { return None };
        let body = String::from_utf8(letter.message.body.clone()).expect("text");
        Some((call.plugin.name.to_string(), body))
    }

    /// Tokens of messages that the hub was told of since the last look.
    pub(super) fn taken(&mut self) -> Vec<u64> {
        let sent = self.take_sent().into_iter();
        let taken = sent.filter_map(|sent| if let ToHub::MessageTaken { token } = sent { Some(token) } else { None });
        taken.collect()
    }

    /// The activation in hand: the version and the one before.
    pub(super) fn activation(&self) -> Option<(String, Option<String>)> {
        let call = self.call.as_ref()?;
        let Work::Activation { previous } = &call.work else { return None };
        Some((call.plugin.label.to_string(), previous.as_ref().map(|tag| tag.label.to_string())))
    }

    /// The state format of the version before.
    pub(super) fn format_before(&self) -> Option<u32> {
        let Work::Activation { previous } = &self.call.as_ref()?.work else { return None };
        previous.as_ref().map(|tag| tag.state_format)
    }

    pub(super) fn refuses(&mut self, reason: &str) {
        self.call.take().expect("a call");
        let result = Err(reason.to_owned());
        self.input(Input::Called(Outcome::Activated { result, effects: Effects::default() }));
    }

    /// The timer in hand: plugin version, name, payload.
    pub(super) fn timer(&self) -> Option<(String, String, String)> {
        let call = self.call.as_ref()?;
        let Work::Timer { name, timer } = &call.work else { return None };
        assert!(timer.due <= call.snapshot.now, "too early");
        let payload = String::from_utf8(timer.payload.to_vec()).expect("text");
        Some((call.plugin.label.to_string(), name.clone(), payload))
    }
}

pub(super) fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().expect("an object")
}

pub(super) fn rid(text: &str) -> RequestId {
    RequestId::parse(text).expect("an id")
}

pub(super) fn name(text: &str) -> PluginName {
    PluginName::parse(text).expect("a name")
}

fn plugin(plugin: &str, version: &str, methods: &[&str], watched: &[&str]) -> Arc<Plugin> {
    Arc::new(Plugin {
        name: name(plugin),
        id: Arc::from(format!("{plugin}@{version}")),
        hash: Arc::from(format!("{version:0>64}")),
        label: Arc::from(version),
        methods: methods.iter().map(|name| MethodName::parse(name).expect("a name")).collect(),
        watched: watched.iter().map(|&path| path.to_owned()).collect(),
        has_messages: false,
        has_ticks: false,
        has_lifecycle: false,
        state_format: 0,
    })
}

/// As [`Bench::versions`] has it.
pub(super) fn versions(current: &Arc<Plugin>, others: &[Arc<Plugin>]) -> Offers {
    let lineup = Arc::new(Lineup { generation: 1, plugins: vec![current.clone()] });
    Offers { generation: 1, current: lineup, plugins: vec![offer(current, others)] }
}

fn offer(current: &Arc<Plugin>, others: &[Arc<Plugin>]) -> Offer {
    let versions = [current].into_iter().chain(others).map(|plugin| Offered {
        hash: plugin.hash.clone(),
        semver: Some(plugin.label.clone()),
        label: plugin.label.clone(),
        plugin: Some(plugin.clone()),
        failed: None,
    });
    let (name, current) = (current.name.clone(), current.clone());
    let previous = others.first().map(|plugin| plugin.hash.clone());
    Offer {
        name,
        placement: Placement::Everywhere,
        current,
        versions: versions.collect(),
        previous,
        canary: None,
        pins: Vec::new(),
    }
}

pub(super) fn lock_door(version: &str) -> Arc<Plugin> {
    plugin("lock-door", version, &["lockDoor", "unlockDoor"], &[])
}

pub(super) fn ticker(version: &str) -> Arc<Plugin> {
    Arc::new(Plugin { has_ticks: true, ..Plugin::clone(&plugin("ticker", version, &["start"], &["x"])) })
}

pub(super) fn reader(name: &str, version: &str) -> Arc<Plugin> {
    Arc::new(Plugin { has_messages: true, ..Plugin::clone(&plugin(name, version, &["read"], &[])) })
}

pub(super) fn cloud_message(id: &str) -> CloudMessage {
    CloudMessage { message_id: Some(id.into()), body: id.into(), ..CloudMessage::default() }
}

pub(super) fn living(version: &str) -> Arc<Plugin> {
    let state_format = version.parse().expect("a number");
    Arc::new(Plugin { has_lifecycle: true, state_format, ..Plugin::clone(&ticker(version)) })
}

pub(super) fn reactor(version: &str, watched: &[&str]) -> Arc<Plugin> {
    plugin("reactor", version, &[], watched)
}

pub(super) fn unsent(in_flight: Value, pending: Value) -> Unsent {
    Unsent { in_flight: object(in_flight), pending: object(pending) }
}

pub(super) fn reports(patch: Value) -> Effects {
    Effects { reported: object(patch), ..Effects::default() }
}

pub(super) fn sets(key: &str, value: &str) -> Effects {
    Effects { state: BTreeMap::from([(key.to_owned(), Some(value.into()))]), ..Effects::default() }
}

/// Timers by name, with their due times and payloads.
pub(super) fn timers(timers: &[(&str, u64, &str)]) -> Effects {
    let timers = timers
        .iter()
        .map(|&(name, due, payload)| (name.to_owned(), Some(Timer { due, payload: Arc::from(payload.as_bytes()) })));
    Effects { timers: timers.collect(), ..Effects::default() }
}

/// Messages to devices.
pub(super) fn sends_to(messages: &[(&str, &str)]) -> Effects {
    let message = |&(to, body): &(&str, &str)| PeerMessage {
        to: DeviceId::parse(to).expect("an id"),
        message: CloudMessage { body: body.into(), ..CloudMessage::default() },
    };
    Effects { peers: messages.iter().map(message).collect(), ..Effects::default() }
}

pub(super) fn sends(bodies: &[&str]) -> Effects {
    let message = |body: &&str| OutgoingTelemetry { body: (*body).into(), content_type: None, properties: Vec::new() };
    Effects { telemetry: bodies.iter().map(message).collect(), ..Effects::default() }
}
