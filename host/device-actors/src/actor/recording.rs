//! What an actor sends and what it records, and when it is done with both.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use serde_json::Map;

use super::in_hand::{Done, InHand, Message};
use super::{Actor, Link, Output, Stop};
use crate::lineup::Plugin;
use crate::record::{Applied, Changes, Dirty};

/// How long confirmations of the hub wait for each other, or for the device's next call, to be written with it. If they
/// are lost in a crash, what they are for is sent again.
pub(super) const CONFIRMATIONS_WAIT: Duration = Duration::from_millis(100);

/// Records on their way to the store, and what waits for the next one.
#[derive(Debug, Default)]
pub(super) struct Records {
    last: u64,
    in_flight: VecDeque<(u64, Dirty)>,
    pub(super) dirty: Dirty,
    failures: u32,
    /// After a failure: what nobody waits for is not written before.
    retry_at: Option<Instant>,
    /// Since when something that nobody waits for could have been written.
    dirty_since: Option<Instant>,
}

impl Records {
    /// Whether what nobody waits for is to be written, and may be.
    fn may_write(&self) -> bool {
        !self.dirty.is_empty() && self.in_flight.is_empty()
    }

    /// What nobody waits for is not written before; at once if `None`.
    fn not_before(&self) -> Option<Instant> {
        let since = self.dirty_since.filter(|_| self.dirty.is_confirmation());
        since.map(|since| since + CONFIRMATIONS_WAIT).max(self.retry_at)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.not_before().filter(|_| self.may_write())
    }
}

impl Actor {
    pub(super) fn send(&mut self, now: Instant) {
        if self.link == Link::Down {
            return;
        }
        while let Some(message) = self.outbox.next_telemetry(&self.limits) {
            self.outputs.push_back(Output::ToHub(message));
        }
        if self.link != Link::Up {
            return;
        }
        if self.outbox.give_up_waiting(now, &self.limits, &mut self.rng) {
            tracing::warn!(device = %self.device, "hub did not answer reported properties, will be sent again");
        }
        if let Some(message) = self.outbox.next_report(now, &self.limits) {
            self.outputs.push_back(Output::ToHub(message));
        }
    }

    pub(super) fn record_call(&mut self, message: &Message, plugin: &Plugin, done: &Done) -> u64 {
        let dirty = mem::take(&mut self.records.dirty);
        let mut changes = self.changes(&dirty);
        if !done.state.is_empty() {
            changes.state = Some((plugin.name.clone(), done.state.clone()));
        }
        if !self.activations.is_recorded(plugin) {
            changes.version = Some((plugin.name.clone(), plugin.tag()));
        }
        if !done.timers.is_empty() {
            changes.timers = Some((plugin.name.clone(), done.timers.clone()));
        }
        if !done.reported.is_empty() {
            changes.unsent = Some(self.outbox.unsent_with(&done.reported));
        }
        changes.telemetry_queued = done.telemetry.clone();
        if let Message::Change(change) = message {
            let applied = Applied { version: change.version, view: change.view.clone() };
            changes.applied.retain(|(name, _)| *name != plugin.name);
            changes.applied.push((plugin.name.clone(), applied));
        }
        if let Message::Delivery(delivery) = message {
            let handled = self.inbox.to_record(plugin, delivery);
            changes.handled = handled.map(|handled| (plugin.name.clone(), handled));
        }
        self.record(changes, dirty)
    }

    /// Write what nobody waits for. Not while a record is on its way: a call's effects are in memory only once
    /// recorded, and a whole value written meanwhile from memory would undo them.
    pub(super) fn record_dirty(&mut self, now: Instant) {
        if !self.records.may_write() {
            return;
        }
        self.records.dirty_since.get_or_insert(now);
        let not_before = if self.stop == Stop::No { self.records.not_before() } else { self.records.retry_at };
        if not_before.is_some_and(|at| at > now) {
            return;
        }
        let dirty = mem::take(&mut self.records.dirty);
        let changes = self.changes(&dirty);
        self.record(changes, dirty);
    }

    fn changes(&self, dirty: &Dirty) -> Changes {
        let applied = self.desired.applied().filter(|_| dirty.applied);
        Changes {
            desired: dirty.desired.then(|| (self.desired.document().clone(), self.desired.version())),
            reported: (dirty.reported || dirty.report_answered).then(|| self.outbox.confirmed().clone()),
            unsent: (dirty.unsent || dirty.report_answered).then(|| self.outbox.unsent_with(&Map::new())),
            past: dirty.past.then(|| self.past.recorded()),
            applied: applied.map(|(name, applied)| (name.clone(), applied.clone())).collect(),
            telemetry_taken: dirty.telemetry_taken.clone(),
            ..Changes::default()
        }
    }

    fn record(&mut self, changes: Changes, dirty: Dirty) -> u64 {
        self.records.last += 1;
        let id = self.records.last;
        self.records.in_flight.push_back((id, dirty));
        (self.records.retry_at, self.records.dirty_since) = (None, None);
        self.outputs.push_back(Output::Record { id, changes: Box::new(changes) });
        id
    }

    pub(super) fn recorded(&mut self, now: Instant, id: u64, written: bool) {
        let Some(place) = self.records.in_flight.iter().position(|(known, _)| *known == id) else { return };
        let dirty = self.records.in_flight.remove(place).map(|(_, dirty)| dirty).unwrap_or_default();
        if written {
            self.records.failures = 0;
        } else {
            self.records.dirty.merge(dirty);
            self.records.failures = self.records.failures.saturating_add(1);
            let delay = self.limits.retry.jittered(self.records.failures, &mut self.rng);
            self.records.retry_at = Some(now + delay);
        }
        match mem::take(&mut self.in_hand) {
            InHand::Recording { record, message, plugin, done } if record == id => {
                if written {
                    self.call_recorded(now, message, &plugin, done);
                } else {
                    self.call_not_recorded(now, message, &plugin);
                }
            }
            other => self.in_hand = other,
        }
    }

    pub(super) fn finish_stop(&mut self) {
        let in_hand = !matches!(self.in_hand, InHand::Nothing);
        // What could not be written is not waited for: all of it is known to the hub, or asked for on the next start.
        let unrecorded =
            !self.records.in_flight.is_empty() || !self.records.dirty.is_empty() && self.records.failures == 0;
        if self.stop != Stop::Asked || in_hand || !self.mailbox.is_empty() || unrecorded {
            return;
        }
        self.stop = Stop::Done;
        self.lose_peer_messages();
        self.drop_resident(|_, _| true);
        self.outputs.push_back(Output::Stopped);
    }
}
