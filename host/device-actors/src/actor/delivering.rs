//! Messages from the cloud: to plugins that get messages, and back to the hub that they are dealt with.

use std::sync::Arc;
use std::time::Instant;

use iothub_protocol::link::{CloudMessage, ToHub};

use super::in_hand::{InHand, Message};
use super::{Actor, Link, Output, Stop, Work};
use crate::inbox::{Arrival, Delivery, End};
use crate::lineup::Plugin;

impl Actor {
    /// Ask the hub for messages if there is a plugin for them. Without one they wait in the hub's queue; a hub that was
    /// asked on an earlier connection may bring them all the same, and has them back unanswered.
    pub(super) fn subscribe_messages(&mut self) {
        let wanted = self.link != Link::Down && self.lineup.getting_messages().next().is_some();
        if wanted && !self.messages_subscribed {
            self.messages_subscribed = true;
            self.outputs.push_back(Output::ToHub(ToHub::SubscribeMessages));
        }
    }

    pub(super) fn message(&mut self, now: Instant, token: u64, message: CloudMessage) {
        if self.link == Link::Down || self.stop != Stop::No {
            // Unanswered, so that the hub brings it again.
            return;
        }
        let device = &self.device;
        match self.inbox.take_cloud(now, token, message, &self.lineup, self.limits.inbox) {
            Arrival::Waits | Arrival::Known => {}
            Arrival::Handled => self.outputs.push_back(Output::ToHub(ToHub::MessageTaken { token })),
            Arrival::NobodyFor => tracing::debug!(%device, "no plugin gets messages, one is left in the hub's queue"),
            Arrival::Full => tracing::warn!(%device, "inbox is full, a message is left in the hub's queue"),
        }
    }

    /// The message that can be brought first, unless none may be.
    pub(super) fn next_delivery(&self) -> Option<(Instant, &Arc<Plugin>, Delivery)> {
        if self.stop != Stop::No {
            return None;
        }
        self.inbox.next(&self.lineup, |plugin| self.held_until(plugin))
    }

    pub(super) fn start_delivery(&mut self, plugin: Arc<Plugin>, delivery: Delivery) {
        let work = Work::Message(delivery.message.clone());
        self.call(plugin, Message::Delivery(delivery), work);
    }

    /// The message comes again, unless that was the last try.
    pub(super) fn delivery_failed(&mut self, now: Instant, delivery: &Delivery, plugin: &Plugin) {
        let (retry, tries, rng) = (self.limits.retry, self.limits.message_tries, &mut self.rng);
        if self.inbox.failed(now, plugin, delivery, tries, |nth| retry.jittered(nth, rng)) {
            let (device, name, version) = (&self.device, &plugin.name, &plugin.label);
            tracing::warn!(%device, plugin = %name, %version, tries, "plugin does not deal with a message, given up");
        }
        self.part_with_messages();
    }

    pub(super) fn delivery_done(&mut self, delivery: &Delivery, plugin: &Plugin) {
        self.inbox.done(plugin, delivery);
        self.part_with_messages();
    }

    /// Messages that are over, for the hub or for want of a plugin.
    pub(super) fn part_with_messages(&mut self) {
        let device = &self.device;
        for end in self.inbox.settle(&self.lineup) {
            match end {
                End::Taken(token) => self.outputs.push_back(Output::ToHub(ToHub::MessageTaken { token })),
                End::Left => tracing::warn!(%device, "a message is left in the hub's queue"),
                End::Lost => {
                    self.lost_messages += 1;
                    tracing::warn!(%device, "a message from a peer is lost");
                }
            }
        }
    }

    pub(super) fn drop_expired_messages(&mut self) {
        let in_hand = match &self.in_hand {
            InHand::Calling { message: Message::Delivery(delivery), .. }
            | InHand::Recording { message: Message::Delivery(delivery), .. } => Some(delivery),
            _ => None,
        };
        let expired = self.inbox.drop_expired(self.timers.wall(), in_hand);
        if expired > 0 {
            tracing::warn!(device = %self.device, expired, "messages expired before a plugin dealt with them");
        }
    }
}
