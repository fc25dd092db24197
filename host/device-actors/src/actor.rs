//! One device: its mailbox, its state and what it owes the hub. Decides everything, waits for nothing.
//!
//! Whoever drives an actor hands it each [`Input`] with the time, then takes every [`Output`], then waits for the next
//! input or the deadline. The actor has at most one message in hand, from its [`Output::Call`] until what it did is
//! recorded: a direct method, a change of desired properties, a message from the cloud or a peer, a timer or the
//! activation of a version. Everything else (connects, twins, answers of the hub, swaps) is taken when it comes,
//! which is between two calls as far as plugins can see.

mod activating;
mod delivering;
mod from_hub;
mod in_hand;
mod recording;
#[cfg(test)]
mod tests;
mod versions;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use iothub_protocol::id::{DeviceId, MethodName, RequestId};
use iothub_protocol::link::{FromHub, ToHub};
use plugin_runtime::{Effects, GuestResponse, IncomingMessage, PluginName, Snapshot, Timer, Verdict, VersionTag};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use self::in_hand::InHand;
use self::recording::Records;
use crate::activation::Activations;
use crate::desired::Desired;
use crate::failure::{Failure, LastFailure};
use crate::health::Health;
use crate::inbox::Inbox;
use crate::limits::Limits;
use crate::lineup::{Lineup, Offers, Plugin};
use crate::outbox::Outbox;
use crate::record::{Changes, DeviceRecord, PluginState};
use crate::selection::Past;
use crate::share::Shares;
use crate::timers::{Now, Timers};
use crate::view::ActorView;

/// What can happen to an actor.
#[derive(Debug)]
pub enum Input {
    Hub(FromHub),
    /// A message from a plugin on another device of this host, or on this one.
    Peer(IncomingMessage),
    /// There are other plugins to run, or other rules. The first ones come right after the start.
    Plugins(Arc<Offers>),
    /// Other bounds hold from now on.
    Limits(Limits),
    /// The call of the last [`Output::Call`] is over.
    Called(Outcome),
    /// The record `id` is durable, or it could not be written and nothing of it is.
    Recorded {
        id: u64,
        written: bool,
    },
    /// The last [`Output::ToPeer`] is lost.
    Undelivered,
    /// Others need the room of this device's unused instances.
    Evict,
    /// The deadline passed.
    Timeout,
    /// Finish what is in hand and in the mailbox; take nothing more.
    Stop,
}

/// What an actor wants done.
#[derive(Debug)]
pub enum Output {
    /// Call a plugin, and answer with [`Input::Called`]. Not another one before that.
    Call(Box<Call>),
    /// Write, and answer with [`Input::Recorded`]. Records are to be written in the order in which they come.
    Record {
        id: u64,
        changes: Box<Changes>,
    },
    ToHub(ToHub),
    /// Give this to the device `to`, if it is on this host and has room.
    ToPeer {
        to: DeviceId,
        message: IncomingMessage,
    },
    /// Have these versions loaded, by plugin and hash, and no others beyond those that come anyway.
    Want(BTreeSet<(PluginName, Arc<str>)>),
    /// The instance of the version with this [`Plugin::id`] is not needed, if there is one.
    DropInstance(Arc<str>),
    /// Everything is done and recorded; the last output.
    Stopped,
}

#[derive(Debug)]
pub struct Call {
    pub plugin: Arc<Plugin>,
    pub snapshot: Snapshot,
    pub work: Work,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    Method { name: MethodName, payload: String },
    Change { version: u64, patch: String },
    Message(Arc<IncomingMessage>),
    Timer { name: String, timer: Timer },
    Activation { previous: Option<VersionTag> },
}

impl Work {
    /// In a word, for the log.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Work::Method { .. } => "method",
            Work::Message(_) => "message",
            Work::Change { .. } => "change",
            Work::Timer { .. } => "timer",
            Work::Activation { .. } => "activation",
        }
    }
}

/// How a call ended.
#[derive(Debug)]
pub enum Outcome {
    Answered { response: GuestResponse, effects: Effects },
    Reacted { verdict: Verdict, effects: Effects },
    Activated { result: Result<(), String>, effects: Effects },
    Failed(Failure),
}

#[derive(Debug)]
pub struct Actor {
    device: DeviceId,
    limits: Limits,
    rng: SmallRng,
    offers: Arc<Offers>,
    /// What this device runs of them, which need not be what it was given: a version may refuse to take over.
    lineup: Arc<Lineup>,
    activations: Activations,
    past: Past,
    wanted: BTreeSet<(PluginName, Arc<str>)>,
    link: Link,
    /// Counts connections, so that no answer reaches a caller on a later one.
    connection: u64,
    mailbox: VecDeque<Waiting>,
    inbox: Inbox,
    /// Whether the hub was asked on this connection for messages.
    messages_subscribed: bool,
    lost_messages: u64,
    undelivered: u64,
    in_hand: InHand,
    desired: Desired,
    state: BTreeMap<PluginName, Arc<PluginState>>,
    timers: Timers,
    outbox: Outbox,
    health: Health,
    shares: Shares,
    /// Versions with an unused instance, and since when. So few that they are looked through.
    resident: Vec<(Arc<str>, Instant)>,
    records: Records,
    stop: Stop,
    calls: u64,
    failures: u64,
    last_failure: Option<Arc<LastFailure>>,
    outputs: VecDeque<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    /// Connected, and the twin is on its way; methods wait for it until then.
    Greeting {
        until: Instant,
    },
    Up,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    Asked,
    Done,
}

/// A method in the mailbox.
#[derive(Debug)]
struct Waiting {
    rid: RequestId,
    name: MethodName,
    payload: String,
    received: Instant,
}

impl Actor {
    /// `seed` makes delays and message ids; it must differ between devices and between starts.
    pub fn new(device: DeviceId, recovered: DeviceRecord, limits: Limits, seed: u64, now: Now) -> Actor {
        let state = recovered.state.into_iter().map(|(name, state)| (name, Arc::new(state))).collect();
        Actor {
            device,
            limits,
            rng: SmallRng::seed_from_u64(seed),
            offers: Arc::default(),
            lineup: Arc::default(),
            activations: Activations::new(recovered.versions),
            past: Past::new(recovered.past),
            wanted: BTreeSet::new(),
            link: Link::Down,
            connection: 0,
            mailbox: VecDeque::new(),
            inbox: Inbox::new(recovered.handled),
            messages_subscribed: false,
            lost_messages: 0,
            undelivered: 0,
            in_hand: InHand::Nothing,
            desired: Desired::new(recovered.desired, recovered.desired_version, recovered.applied),
            state,
            timers: Timers::new(recovered.timers, now),
            outbox: Outbox::new(recovered.reported, recovered.unsent, recovered.telemetry),
            health: Health::default(),
            shares: Shares::default(),
            resident: Vec::new(),
            records: Records::default(),
            stop: Stop::No,
            calls: 0,
            failures: 0,
            last_failure: None,
            outputs: VecDeque::new(),
        }
    }

    pub fn handle(&mut self, now: Now, input: Input) {
        self.timers.look(now);
        let now = now.monotonic;
        match input {
            Input::Hub(message) => self.on_hub(now, message),
            Input::Peer(message) => self.peer_message(now, message),
            Input::Plugins(offers) => self.take_offers(now, offers),
            Input::Limits(limits) => self.limits = limits,
            Input::Called(outcome) => self.called(now, outcome),
            Input::Recorded { id, written } => self.recorded(now, id, written),
            Input::Undelivered => self.undelivered += 1,
            Input::Evict => self.drop_resident(|_, _| true),
            Input::Timeout => {}
            Input::Stop => self.stop = if self.stop == Stop::No { Stop::Asked } else { self.stop },
        }
        self.advance(now);
    }

    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Actor::handle`] with [`Input::Timeout`] if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        if self.stop == Stop::Done {
            return None;
        }
        let idle = self.resident.iter().map(|(_, since)| *since + self.limits.idle).min();
        let outbox = if self.link == Link::Up { self.outbox.deadline() } else { None };
        [idle, outbox, self.records.deadline(), self.next_message_at()].into_iter().flatten().min()
    }

    /// Give back memory that is needed only while there is much to do.
    pub(crate) fn rest(&mut self) {
        self.mailbox.shrink_to_fit();
        self.outputs.shrink_to_fit();
    }

    /// Whether the device runs the version with this [`Plugin::id`].
    pub(crate) fn runs(&self, id: &str) -> bool {
        self.lineup.has_version(id)
    }

    pub fn view(&self) -> ActorView {
        let mut view = ActorView::default();
        self.show(&mut view);
        view
    }

    /// As [`Actor::view`], in place: it is wanted after each message, and then little of it is new. What belongs to
    /// whoever runs the actor is left as it is.
    pub(crate) fn show(&self, view: &mut ActorView) {
        if !Arc::ptr_eq(&view.lineup, &self.lineup) {
            view.lineup = self.lineup.clone();
        }
        view.quarantined = self.past.quarantined();
        view.mailbox = self.mailbox.len();
        view.messages = self.inbox.waiting();
        view.lost_messages = self.lost_messages;
        view.undelivered = self.undelivered;
        view.busy = !matches!(self.in_hand, InHand::Nothing);
        view.connected = self.link != Link::Down;
        view.resident = self.resident.len() + usize::from(matches!(self.in_hand, InHand::Calling { .. }));
        view.calls = self.calls;
        view.failures = self.failures;
        view.last_failure.clone_from(&self.last_failure);
        view.desired_version = self.desired.version();
        view.held_back = self.activations.held_back();
        view.timers = self.timers.pending();
        view.queued_telemetry = self.outbox.queued();
    }

    /// Whatever has become possible.
    fn advance(&mut self, now: Instant) {
        if self.stop == Stop::Done {
            return;
        }
        let idle = self.limits.idle;
        self.drop_resident(|_, since| since + idle <= now);
        self.drop_expired_messages();
        self.start_next(now);
        self.subscribe_messages();
        self.send(now);
        self.record_dirty(now);
        self.finish_stop();
    }
}
