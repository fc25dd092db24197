//! The message in hand: taking one, calling its plugin, and what becomes of it.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use iothub_protocol::id::RequestId;
use iothub_protocol::link::ToHub;
use plugin_runtime::{Effects, PeerMessage, Snapshot, Verdict};
use serde_json::{Map, Value};

use super::{Actor, Call, Link, Outcome, Output, Stop, Waiting, Work};
use crate::answer::Answer;
use crate::desired::Change;
use crate::failure::{Failure, LastFailure};
use crate::inbox::Delivery;
use crate::lineup::Plugin;
use crate::record::{Applied, QueuedTelemetry, StateChanges, TimerChanges, set_or_remove};
use crate::timers::Firing;

/// The message that is being dealt with.
#[derive(Debug, Default)]
pub(super) enum InHand {
    #[default]
    Nothing,
    Calling {
        message: Message,
        plugin: Arc<Plugin>,
    },
    Recording {
        record: u64,
        message: Message,
        plugin: Arc<Plugin>,
        done: Done,
    },
}

#[derive(Debug)]
pub(super) enum Message {
    Method { rid: RequestId, connection: u64 },
    Change(Change),
    Delivery(Delivery),
    Timer(Firing),
    Activation,
}

/// What could be taken next.
enum Next {
    Activation(Arc<Plugin>),
    Method,
    Change(Arc<Plugin>),
    Delivery(Arc<Plugin>, Delivery),
    Timer(Arc<Plugin>, Firing),
}

/// What a call did, until it is recorded.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) answer: Option<Answer>,
    pub(super) state: Arc<StateChanges>,
    pub(super) timers: Arc<TimerChanges>,
    pub(super) reported: Map<String, Value>,
    pub(super) telemetry: Vec<QueuedTelemetry>,
    pub(super) peers: Vec<PeerMessage>,
}

impl Actor {
    /// The change that is due first, unless none may be taken.
    fn next_change(&self) -> Option<(Instant, &Arc<Plugin>)> {
        if self.stop != Stop::No {
            return None;
        }
        self.desired.next(&self.lineup, |plugin| self.held_until(plugin))
    }

    /// The timer that is due first, unless none may be taken.
    fn next_timer(&self) -> Option<(Instant, &Arc<Plugin>, Firing)> {
        if self.stop != Stop::No {
            return None;
        }
        self.timers.next(&self.lineup, |plugin| self.held_until(plugin))
    }

    /// The method at the front of the mailbox, and from when on it may be taken.
    fn next_method(&self) -> Option<(Instant, &Waiting)> {
        let waiting = self.mailbox.front()?;
        let from = if let Link::Greeting { until } = self.link { until } else { waiting.received };
        Some((from, waiting))
    }

    pub(super) fn next_message_at(&self) -> Option<Instant> {
        if !matches!(self.in_hand, InHand::Nothing) {
            return None;
        }
        let change = self.next_change().map(|(due, _)| due);
        let timer = self.next_timer().map(|(from, ..)| self.timers.look_at(from));
        let delivery = self.next_delivery().map(|(from, ..)| from);
        let method = self.next_method().map(|(from, _)| from);
        let activation = self.activations.next().filter(|_| self.stop == Stop::No).and_then(|(from, _)| from);
        [activation, change, timer, delivery, method].into_iter().flatten().min()
    }

    /// Take messages until one is in hand or none may be taken, in the order in which they came.
    pub(super) fn start_next(&mut self, now: Instant) {
        while matches!(self.in_hand, InHand::Nothing) {
            match self.next_message(now) {
                Some(Next::Activation(plugin)) => self.start_activation(plugin),
                Some(Next::Change(plugin)) => self.start_change(plugin),
                Some(Next::Delivery(plugin, delivery)) => self.start_delivery(plugin, delivery),
                Some(Next::Timer(plugin, firing)) => self.start_timer(plugin, firing),
                Some(Next::Method) => self.start_method(now),
                None => return,
            }
        }
    }

    fn next_message(&self, now: Instant) -> Option<Next> {
        if let Some((_, plugin)) = self.next_activation(now).filter(|(from, _)| *from <= now) {
            return Some(Next::Activation(plugin.clone()));
        }
        let change = self.next_change().filter(|(due, _)| *due <= now);
        let change = change.map(|(due, plugin)| (due, Next::Change(plugin.clone())));
        let timer = self.next_timer().filter(|(from, ..)| *from <= now);
        let timer = timer.map(|(from, plugin, firing)| (from, Next::Timer(plugin.clone(), firing)));
        let delivery = self.next_delivery().filter(|(from, ..)| *from <= now);
        let delivery = delivery.map(|(from, plugin, delivery)| (from, Next::Delivery(plugin.clone(), delivery)));
        let method = self.next_method().filter(|(from, _)| *from <= now);
        let method = method.map(|(_, method)| (method.received, Next::Method));
        // Of what came at the same instant, the first in this order.
        [change, timer, delivery, method].into_iter().flatten().min_by_key(|(since, _)| *since).map(|(_, next)| next)
    }

    fn start_method(&mut self, now: Instant) {
        let Some(waiting) = self.mailbox.pop_front() else { return };
        let Waiting { rid, name, payload, received } = waiting;
        if received + self.limits.method_expiry <= now {
            tracing::warn!(device = %self.device, method = %name, "method waited too long and is not run");
            return;
        }
        let Some(plugin) = self.lineup.answering(&name).cloned() else {
            let answer = Answer::no_such_method(&self.lineup, &name);
            return self.answer(rid, answer);
        };
        if let Some(left) = self.health.pause(now, &plugin.id) {
            return self.answer(rid, Answer::paused(&plugin, left));
        }
        if self.activations.is_open(&plugin) {
            let until = self.activations.waits_until(&plugin).unwrap_or(now);
            return self.answer(rid, Answer::not_activated(&plugin, until.saturating_duration_since(now)));
        }
        let message = Message::Method { rid, connection: self.connection };
        self.call(plugin, message, Work::Method { name, payload });
    }

    fn start_change(&mut self, plugin: Arc<Plugin>) {
        let change = self.desired.take(&plugin);
        let patch = Value::Object(change.patch.clone()).to_string();
        let work = Work::Change { version: change.version, patch };
        self.call(plugin, Message::Change(change), work);
    }

    fn start_timer(&mut self, plugin: Arc<Plugin>, firing: Firing) {
        let work = Work::Timer { name: firing.name.clone(), timer: firing.timer.clone() };
        self.call(plugin, Message::Timer(firing), work);
    }

    pub(super) fn call(&mut self, plugin: Arc<Plugin>, message: Message, work: Work) {
        let firing = if let Message::Timer(firing) = &message { Some(firing) } else { None };
        let snapshot = Snapshot {
            device_id: self.device.clone(),
            desired: self.desired.shown().clone(),
            desired_version: self.desired.version(),
            reported: self.outbox.reported().clone(),
            state: self.state.get(&plugin.name).cloned().unwrap_or_default(),
            timers: self.timers.shown(&plugin.name, firing),
            now: self.timers.wall(),
            telemetry_room: self.outbox.telemetry_room(&self.limits),
        };
        self.calls += 1;
        // In use, so neither idle nor to be evicted.
        self.resident.retain(|(id, _)| *id != plugin.id);
        self.outputs.push_back(Output::Call(Box::new(Call { plugin: plugin.clone(), snapshot, work })));
        self.in_hand = InHand::Calling { message, plugin };
    }

    pub(super) fn called(&mut self, now: Instant, outcome: Outcome) {
        let (message, plugin) = match mem::take(&mut self.in_hand) {
            InHand::Calling { message, plugin } => (message, plugin),
            other => {
                self.in_hand = other;
                return;
            }
        };
        match outcome {
            Outcome::Failed(failure) => self.call_failed(now, message, &plugin, failure),
            Outcome::Answered { response, effects } => {
                self.past.worked(&plugin);
                self.call_returned(now, &plugin);
                let answer = Answer::of_guest(&plugin, response);
                self.settle(message, plugin, Some(answer), effects);
            }
            Outcome::Activated { result: Ok(()), effects } => {
                self.call_returned(now, &plugin);
                self.settle(message, plugin, None, effects);
            }
            Outcome::Activated { result: Err(reason), .. } => self.activation_refused(now, &plugin, reason),
            Outcome::Reacted { verdict: Verdict::Done, effects } => {
                self.past.worked(&plugin);
                self.call_returned(now, &plugin);
                self.settle(message, plugin, None, effects);
            }
            Outcome::Reacted { verdict: Verdict::Retry(reason), .. } => {
                self.call_returned(now, &plugin);
                let (device, version) = (&self.device, &plugin.label);
                tracing::info!(%device, plugin = %plugin.name, %version, reason, "plugin wants it again later");
                self.comes_again(now, message, &plugin);
            }
        }
    }

    fn call_returned(&mut self, now: Instant, plugin: &Plugin) {
        self.health.worked(&plugin.id);
        if self.lineup.has_version(&plugin.id) {
            self.resident.push((plugin.id.clone(), now));
            self.call_counted(plugin, false);
        } else {
            self.outputs.push_back(Output::DropInstance(plugin.id.clone()));
        }
    }

    pub(super) fn call_failed(&mut self, now: Instant, message: Message, plugin: &Arc<Plugin>, failure: Failure) {
        let (device, version) = (&self.device, &plugin.label);
        let (kind, detail) = (failure.kind, &failure.detail);
        tracing::warn!(%device, plugin = %plugin.name, %version, ?kind, detail, "call failed");
        self.failures += 1;
        self.outputs.push_back(Output::DropInstance(plugin.id.clone()));
        if let Message::Activation = &message {
            self.activation_failed(now, plugin, failure.detail.clone());
        } else if self.lineup.has_version(&plugin.id) {
            let in_a_row = self.health.failed(now, &plugin.id, &self.limits);
            self.failed_in_a_row(now, plugin, in_a_row);
            self.call_counted(plugin, true);
        }
        if let Message::Method { rid, connection } = &message {
            self.answer_on(*connection, rid.clone(), Answer::failed(plugin, &failure));
        }
        let (plugin_name, version) = (plugin.name.clone(), plugin.label.clone());
        self.last_failure = Some(Arc::new(LastFailure { at: now, plugin: plugin_name, version, failure }));
        self.comes_again(now, message, plugin);
    }

    /// A change, a message or a timer comes again; a method does not, and an activation by a rule of its own.
    fn comes_again(&mut self, now: Instant, message: Message, plugin: &Plugin) {
        let (retry, rng) = (self.limits.retry, &mut self.rng);
        match message {
            Message::Method { .. } | Message::Activation => {}
            Message::Delivery(delivery) => self.delivery_failed(now, &delivery, plugin),
            Message::Change(change) => {
                self.desired.failed(now, plugin, change.view, |nth| retry.jittered(nth, rng));
                self.desired.reconsider(now, &self.lineup);
            }
            Message::Timer(firing) => self.timers.failed(plugin, firing, |nth| retry.jittered(nth, rng)),
        }
    }

    /// The call returned: record what it did and consumed, and let the answer go after that.
    fn settle(&mut self, message: Message, plugin: Arc<Plugin>, answer: Option<Answer>, effects: Effects) {
        if let Message::Method { rid, connection } = &message
            && effects.is_empty()
        {
            if let Some(answer) = answer {
                self.answer_on(*connection, rid.clone(), answer);
            }
            return;
        }
        let mut timers = effects.timers;
        if let Message::Timer(firing) = &message {
            // Gone, unless the call has set it again.
            timers.entry(firing.name.clone()).or_insert(None);
        }
        let done = Done {
            answer,
            state: Arc::new(effects.state),
            timers: Arc::new(timers),
            reported: effects.reported,
            telemetry: self.outbox.number(effects.telemetry, &mut self.rng),
            peers: effects.peers,
        };
        let record = self.record_call(&message, &plugin, &done);
        self.in_hand = InHand::Recording { record, message, plugin, done };
    }

    pub(super) fn call_recorded(&mut self, now: Instant, message: Message, plugin: &Plugin, done: Done) {
        if !done.state.is_empty() {
            let state = Arc::make_mut(self.state.entry(plugin.name.clone()).or_default());
            set_or_remove(state, &done.state);
        }
        self.activations.recorded(plugin);
        self.timers.apply(&plugin.name, &done.timers);
        self.outbox.report(&done.reported);
        self.outbox.queue(done.telemetry);
        self.send_to_peers(done.peers);
        match (message, done.answer) {
            (Message::Method { rid, connection }, Some(answer)) => self.answer_on(connection, rid, answer),
            (Message::Change(change), _) => {
                self.desired.done(&plugin.name, Applied { version: change.version, view: change.view });
                self.desired.reconsider(now, &self.lineup);
            }
            (Message::Delivery(delivery), _) => self.delivery_done(&delivery, plugin),
            (Message::Activation, _) => {
                tracing::info!(device = %self.device, plugin = %plugin.name, version = %plugin.label, "version was activated");
                self.reselect(now);
            }
            (Message::Method { .. } | Message::Timer(_), _) => {}
        }
    }

    pub(super) fn call_not_recorded(&mut self, now: Instant, message: Message, plugin: &Arc<Plugin>) {
        if let Message::Method { rid, connection } = &message {
            self.answer_on(*connection, rid.clone(), Answer::not_recorded(plugin));
        }
        if let Message::Activation = &message {
            self.activate_later(now, plugin, "its activation could not be recorded".to_owned());
        }
        self.comes_again(now, message, plugin);
    }

    pub(super) fn answer(&mut self, rid: RequestId, answer: Answer) {
        let Answer { status, payload } = answer;
        self.outputs.push_back(Output::ToHub(ToHub::MethodResponse { rid, status, payload }));
    }

    fn answer_on(&mut self, connection: u64, rid: RequestId, answer: Answer) {
        if connection == self.connection {
            self.answer(rid, answer);
        }
    }

    pub(super) fn drop_resident(&mut self, unwanted: impl Fn(&str, Instant) -> bool) {
        let dropped = self.resident.extract_if(.., |(id, since)| unwanted(id, *since));
        self.outputs.extend(dropped.map(|(id, _)| Output::DropInstance(id)));
    }
}
