//! Messages that wait for plugins: which one comes next, which were dealt with, and what becomes of the rest.
//!
//! A message goes to every plugin of the device that gets messages. It is over when each of them has dealt with it, or
//! has failed on it too often. Messages from the cloud are the hub's until they are taken: dropping one here is safe.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iothub_protocol::link::CloudMessage;
use plugin_runtime::{IncomingMessage, MessageSource, PluginName};

use crate::lineup::{Lineup, Plugin};
use crate::record::Handled;

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// In the order of arrival.
    waiting: VecDeque<Waiting>,
    next_number: u64,
    /// What each plugin has dealt with last, oldest first.
    handled: BTreeMap<PluginName, VecDeque<Handled>>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    /// The hub's, for a message from the cloud.
    token: Option<u64>,
    message: Arc<IncomingMessage>,
    fingerprint: Option<u128>,
    received: Instant,
    done: BTreeSet<PluginName>,
    given_up: BTreeSet<PluginName>,
    delays: BTreeMap<PluginName, Delay>,
}

/// After calls of a version that did not deal with the message.
#[derive(Debug)]
struct Delay {
    version: Arc<str>,
    failures: u32,
    until: Instant,
}

/// A message on its way to a plugin.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Delivery {
    number: u64,
    pub(crate) message: Arc<IncomingMessage>,
    fingerprint: Option<u128>,
}

/// What became of a message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    Waits,
    /// It is one that waits already.
    Known,
    /// Every plugin has dealt with it before.
    Handled,
    /// No plugin gets messages.
    NobodyFor,
    Full,
}

/// How the way of a message through the plugins ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// A message from the cloud is dealt with: the hub may forget the one with this token.
    Taken(u64),
    /// A message from the cloud is left to the hub.
    Left,
    /// A message from a peer is lost.
    Lost,
}

impl Inbox {
    pub(crate) fn new(handled: BTreeMap<PluginName, Vec<Handled>>) -> Inbox {
        let handled = handled.into_iter().map(|(name, handled)| (name, handled.into())).collect();
        Inbox { handled, ..Inbox::default() }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn peers(&self) -> usize {
        self.waiting.iter().filter(|waiting| waiting.token.is_none()).count()
    }

    /// `limit` counts messages from the cloud, and messages from peers, each by themselves.
    pub(crate) fn take_cloud(
        &mut self,
        now: Instant,
        token: u64,
        message: CloudMessage,
        lineup: &Lineup,
        limit: usize,
    ) -> Arrival {
        if self.waiting.iter().any(|waiting| waiting.token == Some(token)) {
            return Arrival::Known;
        }
        let fingerprint = message.fingerprint();
        let is_same = |waiting: &&mut Waiting| fingerprint.is_some() && waiting.fingerprint == fingerprint;
        if let Some(same) = self.waiting.iter_mut().find(is_same) {
            // The hub has taken back what it gave with the token before.
            same.token = Some(token);
            return Arrival::Known;
        }
        let done = lineup.getting_messages().filter(|plugin| self.has_handled(plugin, fingerprint));
        let done: BTreeSet<_> = done.map(|plugin| plugin.name.clone()).collect();
        match lineup.getting_messages().count() {
            0 => return Arrival::NobodyFor,
            plugins if plugins == done.len() => return Arrival::Handled,
            _ => {}
        }
        if self.waiting.len() - self.peers() >= limit {
            return Arrival::Full;
        }
        let message = IncomingMessage { source: MessageSource::Cloud, message };
        self.push(now, Some(token), message, fingerprint, done);
        Arrival::Waits
    }

    pub(crate) fn take_peer(
        &mut self,
        now: Instant,
        message: IncomingMessage,
        lineup: &Lineup,
        limit: usize,
    ) -> Arrival {
        if lineup.getting_messages().next().is_none() {
            return Arrival::NobodyFor;
        }
        if self.peers() >= limit {
            return Arrival::Full;
        }
        self.push(now, None, message, None, BTreeSet::new());
        Arrival::Waits
    }

    fn push(
        &mut self,
        received: Instant,
        token: Option<u64>,
        message: IncomingMessage,
        fingerprint: Option<u128>,
        done: BTreeSet<PluginName>,
    ) {
        self.next_number += 1;
        let (number, message) = (self.next_number, Arc::new(message));
        let (given_up, delays) = (BTreeSet::new(), BTreeMap::new());
        self.waiting.push_back(Waiting { number, token, message, fingerprint, received, done, given_up, delays });
    }

    fn has_handled(&self, plugin: &Plugin, fingerprint: Option<u128>) -> bool {
        let mut handled = self.handled.get(&plugin.name).into_iter().flatten();
        handled.any(|handled| Some(handled.fingerprint) == fingerprint)
    }

    /// The message that can be brought first, to whom, and from when on.
    pub(crate) fn next<'a>(
        &self,
        lineup: &'a Lineup,
        not_before: impl Fn(&Plugin) -> Option<Instant>,
    ) -> Option<(Instant, &'a Arc<Plugin>, Delivery)> {
        if self.waiting.is_empty() {
            return None;
        }
        let mut first: Option<(Instant, &Arc<Plugin>, &Waiting)> = None;
        for plugin in lineup.getting_messages() {
            let pause = not_before(plugin);
            for waiting in self.waiting.iter().filter(|waiting| waiting.is_for(plugin)) {
                let from = waiting.ready(plugin).max(pause.unwrap_or(waiting.received));
                if first.is_none_or(|(at, _, other)| (from, waiting.number) < (at, other.number)) {
                    first = Some((from, plugin, waiting));
                }
            }
        }
        first.map(|(from, plugin, waiting)| (from, plugin, waiting.delivery()))
    }

    /// What remembers that `plugin` has dealt with it; nothing if it cannot be told from another message.
    pub(crate) fn to_record(&self, plugin: &Plugin, delivery: &Delivery) -> Option<Handled> {
        let fingerprint = delivery.fingerprint?;
        let last = self.handled.get(&plugin.name).and_then(VecDeque::back);
        Some(Handled { number: last.map_or(1, |last| last.number + 1), fingerprint })
    }

    /// It is recorded that `plugin` has dealt with it.
    pub(crate) fn done(&mut self, plugin: &Plugin, delivery: &Delivery) {
        if let Some(handled) = self.to_record(plugin, delivery) {
            let of_plugin = self.handled.entry(plugin.name.clone()).or_default();
            of_plugin.push_back(handled);
            while of_plugin.len() > HANDLED_LIMIT {
                of_plugin.pop_front();
            }
        }
        if let Some(waiting) = self.find(delivery) {
            waiting.done.insert(plugin.name.clone());
        }
    }

    /// The message comes again after a delay that grows with the failures in a row, unless that was the last of
    /// `tries`, which this tells.
    pub(crate) fn failed(
        &mut self,
        now: Instant,
        plugin: &Plugin,
        delivery: &Delivery,
        tries: u32,
        delay: impl FnOnce(u32) -> Duration,
    ) -> bool {
        let Some(waiting) = self.find(delivery) else { return false };
        let before = waiting.delays.get(&plugin.name).filter(|delay| delay.version == plugin.id);
        let failures = before.map_or(0, |delay| delay.failures).saturating_add(1);
        if failures >= tries {
            waiting.given_up.insert(plugin.name.clone());
            return true;
        }
        let delay = Delay { version: plugin.id.clone(), failures, until: now + delay(failures) };
        waiting.delays.insert(plugin.name.clone(), delay);
        false
    }

    /// Part with messages for which no plugin is left.
    pub(crate) fn settle(&mut self, lineup: &Lineup) -> Vec<End> {
        let over =
            self.waiting.iter().filter(|waiting| !lineup.getting_messages().any(|plugin| waiting.is_for(plugin)));
        let over: Vec<_> = over.map(|waiting| (waiting.number, waiting.end())).collect();
        self.waiting.retain(|waiting| over.iter().all(|(number, _)| *number != waiting.number));
        over.into_iter().filter_map(|(_, end)| end).collect()
    }

    /// Part with messages that the hub has dropped by `wall`, a time in milliseconds, but not with the one in hand.
    /// Tells how many.
    pub(crate) fn drop_expired(&mut self, wall: u64, in_hand: Option<&Delivery>) -> usize {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| {
            let expiry = waiting.message.message.expiry.map(|expiry| expiry.timestamp_millis());
            let is_over = expiry.is_some_and(|expiry| i64::try_from(wall).is_ok_and(|wall| expiry <= wall));
            !is_over || in_hand.is_some_and(|delivery| delivery.number == waiting.number)
        });
        before - self.waiting.len()
    }

    /// The link is gone: the hub brings its messages again.
    pub(crate) fn disconnected(&mut self) {
        self.waiting.retain(|waiting| waiting.token.is_none());
    }

    /// The same, or the same again after a break of the link while it was in hand.
    fn find(&mut self, delivery: &Delivery) -> Option<&mut Waiting> {
        let is_it = |waiting: &&mut Waiting| {
            waiting.number == delivery.number
                || delivery.fingerprint.is_some() && waiting.fingerprint == delivery.fingerprint
        };
        self.waiting.iter_mut().find(is_it)
    }
}

impl Waiting {
    fn is_for(&self, plugin: &Plugin) -> bool {
        !self.done.contains(&plugin.name) && !self.given_up.contains(&plugin.name)
    }

    /// When `plugin` can have it.
    fn ready(&self, plugin: &Plugin) -> Instant {
        let delay = self.delays.get(&plugin.name).filter(|delay| delay.version == plugin.id);
        delay.map_or(self.received, |delay| delay.until)
    }

    fn delivery(&self) -> Delivery {
        Delivery { number: self.number, message: self.message.clone(), fingerprint: self.fingerprint }
    }

    /// What it comes to when no plugin is left for it.
    fn end(&self) -> Option<End> {
        let is_done = !self.done.is_empty() && self.given_up.is_empty();
        match (self.token, is_done) {
            (Some(token), true) => Some(End::Taken(token)),
            (Some(_), false) => Some(End::Left),
            (None, true) => None,
            (None, false) => Some(End::Lost),
        }
    }
}

/// How many messages a plugin is remembered to have dealt with. One can come again as long as the hub was not told that
/// it is over, and of such messages a hub's queue holds 50; the rest is for messages that another plugin holds up.
pub(crate) const HANDLED_LIMIT: usize = 128;
