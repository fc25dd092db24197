//! A version takes over on the device, or does not.

use std::sync::Arc;
use std::time::Instant;

use super::in_hand::Message;
use super::{Actor, Stop, Work};
use crate::failure::{Failure, FailureKind};
use crate::lineup::Plugin;

impl Actor {
    /// Run what was chosen for this device and is activated.
    pub(super) fn run_lineup(&mut self, now: Instant) {
        let lineup = self.activations.lineup(&self.lineup);
        self.lineup = lineup.clone();
        self.health.keep(&lineup);
        self.shares.keep(&lineup);
        self.drop_resident(|id, _| !lineup.has_version(id));
        self.desired.reconsider(now, &lineup);
        self.part_with_messages();
    }

    /// The version that is to be activated first, unless none may be. Everything else waits for it.
    pub(super) fn next_activation(&self, now: Instant) -> Option<(Instant, &Arc<Plugin>)> {
        if self.stop != Stop::No {
            return None;
        }
        self.activations.next().map(|(from, plugin)| (from.unwrap_or(now), plugin))
    }

    pub(super) fn start_activation(&mut self, plugin: Arc<Plugin>) {
        let previous = self.activations.before(&plugin, &self.lineup);
        self.call(plugin, Message::Activation, Work::Activation { previous });
    }

    /// The version did not want to take over.
    pub(super) fn activation_refused(&mut self, now: Instant, plugin: &Arc<Plugin>, reason: String) {
        self.call_failed(now, Message::Activation, plugin, Failure { kind: FailureKind::Activation, detail: reason });
    }

    /// The device stays on the version that it runs. If it has no other than this one, it tries again.
    pub(super) fn activation_failed(&mut self, now: Instant, plugin: &Arc<Plugin>, reason: String) {
        let stays = self.lineup.plugins.iter().find(|other| other.name == plugin.name && other.id != plugin.id);
        match stays {
            Some(stays) => {
                let (device, version, stays) = (&self.device, &plugin.label, &stays.label);
                let name = &plugin.name;
                tracing::warn!(%device, plugin = %name, %version, %stays, "version was not activated, the former one stays");
                self.activations.failed(plugin, reason, None);
            }
            None => self.activate_later(now, plugin, reason),
        }
        self.reselect(now);
    }

    pub(super) fn activate_later(&mut self, now: Instant, plugin: &Arc<Plugin>, reason: String) {
        let delay = self.limits.retry.jittered(self.activations.failures_with(plugin), &mut self.rng);
        self.activations.failed(plugin, reason, Some(now + delay));
    }

    /// When a version may run again: it failed too often, or could not be activated.
    pub(super) fn held_until(&self, plugin: &Plugin) -> Option<Instant> {
        self.health.paused_until(&plugin.id).max(self.activations.waits_until(plugin))
    }
}
