//! A host with one device and one plugin: the actor that every host runs, on a clock that the scenario turns. Its store
//! is memory, and its hub takes everything at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use device_actors::actor::{Actor, Call, Input, Outcome, Output, Work};
use device_actors::{DeviceRecord, Limits, Now, Offers};
use iothub_protocol::id::{DeviceId, MethodName, RequestId};
use iothub_protocol::link::{CloudMessage, FromHub, TelemetryMessage, ToHub, TwinDocument};
use iothub_protocol::twin;
use plugin_runtime::{IncomingMessage, Instance, MessageSource, PluginVersion, Runtime, Timer, Verdict};
use serde_json::{Map, Value};

use super::clock::milliseconds;
use super::run::Instances;
use super::scenario::Start;

pub(super) struct Host<'a> {
    runtime: &'a Runtime,
    version: &'a Arc<PluginVersion>,
    offers: Arc<Offers>,
    instances: Instances,
    device: DeviceId,
    actor: Actor,
    clock: Clock,
    /// What a store would hold.
    record: DeviceRecord,
    /// The hub's.
    twin: TwinDocument,
    /// Messages that the hub keeps until they are taken, with the token of the last delivery.
    queue: Vec<(u64, CloudMessage)>,
    /// Messages are brought as soon as there are any.
    subscribed: bool,
    next_token: u64,
    instance: Option<Instance>,
    /// What the host brings again by itself.
    put_off: Option<Brought>,
    happened: Happened,
    calls_left: usize,
}

/// What came of a step.
#[derive(Debug, Default)]
pub(super) struct Happened {
    /// Status and payload.
    pub(super) answer: Option<(i32, String)>,
    /// Every call of the plugin, in order.
    pub(super) calls: Vec<(Brought, Came)>,
    pub(super) telemetry: Vec<TelemetryMessage>,
    /// What it sent to other devices.
    pub(super) peers: Vec<(DeviceId, CloudMessage)>,
    /// Why the step as such came to nothing.
    pub(super) trouble: Option<String>,
}

/// What was brought to the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Brought {
    Call,
    Change,
    Message,
    Timer(String),
    Activation,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came {
    DealtWith,
    PutOff(String),
    Failed(String),
}

impl Happened {
    /// Whether the method did not return.
    pub(super) fn has_failed_call(&self) -> bool {
        self.calls.iter().any(|(brought, came)| *brought == Brought::Call && matches!(came, Came::Failed(_)))
    }
}

impl Brought {
    /// Where a scenario says what came of it.
    pub(super) fn place(&self) -> String {
        match self {
            Brought::Call => "call".to_owned(),
            Brought::Change => "desired".to_owned(),
            Brought::Message => "message".to_owned(),
            Brought::Timer(name) => format!("timer {name}"),
            Brought::Activation => "activation".to_owned(),
        }
    }

    /// What should come of it.
    pub(super) fn wish(&self) -> &'static str {
        match self {
            Brought::Call => "an answer",
            Brought::Change => "the change is dealt with",
            Brought::Message => "the message is dealt with",
            Brought::Timer(_) => "the timer is dealt with",
            Brought::Activation => "the version is activated",
        }
    }

    pub(super) fn words(&self) -> String {
        match self {
            Brought::Call => "the call".to_owned(),
            Brought::Change => "the change".to_owned(),
            Brought::Message => "the message".to_owned(),
            Brought::Timer(name) => format!("the timer {name}"),
            Brought::Activation => "the activation".to_owned(),
        }
    }
}

/// Both clocks of a host, which run together.
struct Clock {
    start: Instant,
    /// What the wall clock showed at the start, in milliseconds since 1970.
    wall: u64,
    passed: Duration,
}

impl Clock {
    fn now(&self) -> Now {
        Now { monotonic: self.start + self.passed, wall: self.wall + milliseconds(self.passed) }
    }

    fn turn_to(&mut self, at: Instant) {
        self.passed = at.saturating_duration_since(self.start).max(self.passed);
    }
}

impl<'a> Host<'a> {
    /// A host that has never seen the device, except for what the scenario says. Nothing has happened yet.
    pub(super) fn new(
        runtime: &'a Runtime,
        version: &'a Arc<PluginVersion>,
        start: &Start,
        instances: Instances,
    ) -> Host<'a> {
        let clock = Clock { start: Instant::now(), wall: start.now, passed: Duration::ZERO };
        let name = version.name();
        let state = start.state.iter().map(|(key, value)| (key.clone(), value.clone().into_bytes())).collect();
        let timers = start.timers.iter().map(|(name, (due, payload))| {
            (name.clone(), Timer { due: due.at(start.now), payload: Arc::from(payload.as_bytes()) })
        });
        let record = DeviceRecord {
            reported: start.reported.clone(),
            state: BTreeMap::from([(name.clone(), state)]),
            timers: BTreeMap::from([(name.clone(), timers.collect())]),
            versions: start.previous.iter().map(|previous| (name.clone(), previous.clone())).collect(),
            ..DeviceRecord::default()
        };
        let twin = TwinDocument {
            desired: start.desired.clone(),
            desired_version: 1,
            reported: start.reported.clone(),
            reported_version: 1,
        };
        let actor = actor(&start.id, &record, &clock);
        Host {
            runtime,
            version,
            offers: Arc::new(Offers::alone(version)),
            instances,
            device: start.id.clone(),
            actor,
            clock,
            record,
            twin,
            queue: Vec::new(),
            subscribed: false,
            next_token: 1,
            instance: None,
            put_off: None,
            happened: Happened::default(),
            calls_left: CALLS,
        }
    }

    /// What has happened since the last look.
    pub(super) fn take_happened(&mut self) -> Happened {
        self.calls_left = CALLS;
        std::mem::take(&mut self.happened)
    }

    /// The step cannot be done.
    pub(super) fn fail(&mut self, reason: String) {
        self.happened.trouble = Some(reason);
    }

    /// The plugin is loaded and the device connects. What waits for the plugin is brought to it.
    pub(super) async fn connect(&mut self) {
        self.take(Input::Plugins(self.offers.clone())).await;
        self.take(Input::Hub(FromHub::Connected)).await;
        self.take(Input::Hub(FromHub::Twin(self.twin.clone()))).await;
    }

    /// A back end calls a method.
    pub(super) async fn call(&mut self, name: &MethodName, payload: &str) {
        let rid = RequestId::parse("1").expect("digits make a request id");
        self.take(Input::Hub(FromHub::Method { rid, name: name.clone(), payload: payload.to_owned() })).await;
    }

    /// A back end changes the desired properties.
    pub(super) async fn desire(&mut self, patch: &Map<String, Value>, version: Option<u64>) {
        let before = self.twin.desired_version;
        let version = version.unwrap_or(before + 1);
        if version <= before {
            let text = format!("version {version} is no news: the desired properties are at version {before} already");
            return self.fail(text);
        }
        twin::merge(&mut self.twin.desired, patch);
        self.twin.desired_version = version;
        self.take(Input::Hub(FromHub::Desired { version, patch: patch.clone() })).await;
    }

    /// A back end or a plugin on another device sends a message.
    pub(super) async fn message(&mut self, message: &IncomingMessage) {
        if !self.version.has_messages() {
            return self.fail("the plugin gets no messages: it does not export iothub:plugin/messages".to_owned());
        }
        match message.source {
            MessageSource::Peer(_) => self.take(Input::Peer(message.clone())).await,
            MessageSource::Cloud => {
                self.queue.push((self.next_token, message.message.clone()));
                self.next_token += 1;
                if let Some((token, message)) = self.queue.last().cloned().filter(|_| self.subscribed) {
                    self.take(Input::Hub(FromHub::Message { token, message: Box::new(message) })).await;
                }
            }
        }
    }

    /// Time passes. What falls due is brought at its time.
    pub(super) async fn wait(&mut self, time: Duration) {
        let end = self.clock.now().monotonic + time;
        while let Some(deadline) = self.actor.deadline().filter(|deadline| *deadline < end)
            && self.happened.trouble.is_none()
        {
            self.pass(deadline).await;
        }
        self.pass(end).await;
    }

    /// Time passes until what was put off is brought again.
    pub(super) async fn wait_for_again(&mut self) {
        let Some(wanted) = self.put_off.clone() else {
            return self.fail("nothing was put off".to_owned());
        };
        while self.happened.trouble.is_none() && !self.happened.calls.iter().any(|(brought, _)| *brought == wanted) {
            match self.actor.deadline() {
                Some(deadline) => self.pass(deadline).await,
                None => self.fail("what was put off does not come again".to_owned()),
            }
        }
    }

    /// The host ends, is down for a while, and starts anew from what was recorded.
    pub(super) async fn restart(&mut self, down: Duration) {
        self.instance = None;
        self.subscribed = false;
        self.clock.passed += down;
        self.actor = actor(&self.device, &self.record, &self.clock);
        self.connect().await;
    }

    /// Milliseconds since the beginning of 1970, UTC.
    pub(super) fn now(&self) -> u64 {
        self.clock.now().wall
    }

    /// As the hub holds them.
    pub(super) fn reported(&self) -> &Map<String, Value> {
        &self.twin.reported
    }

    /// What the plugin keeps.
    pub(super) fn state(&self) -> impl Iterator<Item = (&String, &Vec<u8>)> {
        self.record.state.get(self.version.name()).into_iter().flatten()
    }

    /// The plugin's timers that wait.
    pub(super) fn timers(&self) -> impl Iterator<Item = (&String, &Timer)> {
        self.record.timers.get(self.version.name()).into_iter().flatten()
    }

    async fn pass(&mut self, until: Instant) {
        self.clock.turn_to(until);
        self.take(Input::Timeout).await;
    }

    /// Give the actor one input, and do all that comes of it. That takes no time.
    async fn take(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            self.actor.handle(self.clock.now(), input);
            while let Some(output) = self.actor.poll() {
                match output {
                    Output::Call(call) => match self.calls_left.checked_sub(1) {
                        Some(left) => {
                            self.calls_left = left;
                            let outcome = self.run(*call).await;
                            inputs.push_back(Input::Called(outcome));
                        }
                        None => {
                            return self.fail(format!("the plugin was called {CALLS} times in this step, and more"));
                        }
                    },
                    Output::Record { id, changes } => {
                        self.record.apply(*changes);
                        inputs.push_back(Input::Recorded { id, written: true });
                    }
                    Output::ToHub(message) => inputs.extend(self.hub_takes(message).into_iter().map(Input::Hub)),
                    Output::ToPeer { to, message } => self.happened.peers.push((to, message.message)),
                    // There are no other versions, and instances live as the run wants it.
                    Output::Want(_) | Output::DropInstance(_) | Output::Stopped => {}
                }
            }
        }
    }

    async fn run(&mut self, call: Call) -> Outcome {
        let brought = match &call.work {
            Work::Method { .. } => Brought::Call,
            Work::Change { .. } => Brought::Change,
            Work::Message(_) => Brought::Message,
            Work::Timer { name, .. } => Brought::Timer(name.clone()),
            Work::Activation { .. } => Brought::Activation,
        };
        let outcome = self.run_on_instance(call).await;
        let came = match &outcome {
            Outcome::Failed(failure) => Came::Failed(failure.detail.clone()),
            Outcome::Activated { result: Err(reason), .. } => Came::Failed(format!("it was not activated: {reason}")),
            Outcome::Reacted { verdict: Verdict::Retry(reason), .. } => Came::PutOff(reason.clone()),
            Outcome::Reacted { .. } | Outcome::Answered { .. } | Outcome::Activated { .. } => Came::DealtWith,
        };
        if came == Came::DealtWith {
            self.put_off.take_if(|put_off| *put_off == brought);
        } else if brought != Brought::Call {
            self.put_off = Some(brought.clone());
        }
        self.happened.calls.push((brought, came));
        outcome
    }

    async fn run_on_instance(&mut self, call: Call) -> Outcome {
        let instance = match self.instance.take() {
            Some(instance) => Ok(instance),
            None => self.runtime.instantiate(self.version, &call.snapshot.device_id, call.snapshot.now).await,
        };
        let mut instance = match instance {
            Ok(instance) => instance,
            Err(failure) => return Outcome::Failed(failure.into()),
        };
        match call.run(&mut instance).await {
            Ok(outcome) => {
                self.instance = Some(instance).filter(|_| self.instances == Instances::OneForAll);
                outcome
            }
            Err(failure) => Outcome::Failed(failure.into()),
        }
    }

    fn hub_takes(&mut self, message: ToHub) -> Vec<FromHub> {
        match message {
            ToHub::MethodResponse { status, payload, .. } => {
                self.happened.answer = Some((status, payload));
                Vec::new()
            }
            ToHub::Report { token, patch } => {
                twin::merge(&mut self.twin.reported, &patch);
                self.twin.reported_version += 1;
                let version = Some(self.twin.reported_version);
                vec![FromHub::Reported { token, status: 204, version, message: String::new() }]
            }
            ToHub::Telemetry { token, message } => {
                self.happened.telemetry.push(*message);
                vec![FromHub::TelemetryTaken { token }]
            }
            ToHub::MessageTaken { token } => {
                self.queue.retain(|(last, _)| *last != token);
                Vec::new()
            }
            ToHub::SubscribeMessages => {
                self.subscribed = true;
                self.bring_queue()
            }
            // Only from hosts, for an actor that failed.
            ToHub::Reconnect { .. } => Vec::new(),
        }
    }

    /// All messages that were not taken, with new tokens.
    fn bring_queue(&mut self) -> Vec<FromHub> {
        for (token, _) in &mut self.queue {
            *token = self.next_token;
            self.next_token += 1;
        }
        self.queue
            .iter()
            .map(|(token, message)| FromHub::Message { token: *token, message: Box::new(message.clone()) })
            .collect()
    }
}

fn actor(device: &DeviceId, record: &DeviceRecord, clock: &Clock) -> Actor {
    Actor::new(device.clone(), record.clone(), Limits::default(), SEED, clock.now())
}

/// Delays are the same in every run.
const SEED: u64 = 1;
/// Calls of the plugin in one step: a day of one timer each ten seconds.
const CALLS: usize = 10_000;
