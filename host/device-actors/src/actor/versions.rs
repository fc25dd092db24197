//! Which version of each plugin the actor runs, and what it reports of that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use iothub_protocol::plugin_report::{ACTIVE, FAILING, HOST_KEY, NOT_ACTIVATED, PLUGINS, pins};
use iothub_protocol::twin;
use serde_json::{Map, Value, json};

use super::{Actor, Output};
use crate::lineup::{Offers, Plugin};
use crate::selection::{Selection, select};

impl Actor {
    pub(super) fn take_offers(&mut self, now: Instant, offers: Arc<Offers>) {
        self.offers = offers;
        self.reselect(now);
    }

    /// The twin has changed by this patch. Whoever pins a plugin, also to the same version again, gives what is in
    /// quarantine another chance.
    pub(super) fn desired_versions(&mut self, now: Instant, patch: &Map<String, Value>) {
        let Some(host) = patch.get(HOST_KEY) else { return };
        for name in host.get(PLUGINS).and_then(Value::as_object).into_iter().flat_map(Map::keys) {
            self.records.dirty.past |= self.past.release(name);
            self.shares.forget(name);
        }
        self.reselect(now);
    }

    /// The whole twin has come, which was at `before` when it was last seen. A pin that was set meanwhile releases,
    /// too. One that was set to the same version again does not show in the document; but if all of that is the same
    /// and only its version is newer, something was set again, and a pin is what people set again.
    pub(super) fn pins_meanwhile(&mut self, before: &Map<String, Value>, version_before: u64) {
        let version = self.desired.version();
        let is_set_again = version > version_before && self.desired.document().as_ref() == before;
        // An older version is another device of that name.
        let is_set = is_set_again || version < version_before;
        let pinned_before = pins(before);
        let pinned = self.desired.pins().into_iter().flatten();
        let set = pinned.filter(|(name, pin)| is_set || pinned_before.and_then(|pins| pins.get(*name)) != Some(*pin));
        let set: Vec<_> = set.map(|(name, _)| name.clone()).collect();
        for name in set {
            self.records.dirty.past |= self.past.release(&name);
            self.shares.forget(&name);
        }
    }

    /// See anew which versions to run; after anything that the choice depends on.
    pub(super) fn reselect(&mut self, now: Instant) {
        let mut selection = self.select();
        if self.past.follow(&selection) {
            self.records.dirty.past = true;
            selection = self.select();
        }
        let Selection { lineup, wanted, reports, .. } = selection;
        if wanted != self.wanted {
            self.wanted.clone_from(&wanted);
            self.outputs.push_back(Output::Want(wanted));
        }
        self.activations.offer(lineup);
        self.run_lineup(now);
        // Before the hub was asked, it is not known what the twin wants nor what it holds.
        if self.desired.is_known() {
            self.report_versions(reports);
        }
    }

    fn select(&self) -> Selection {
        let mut selection = select(&self.device, &self.offers, self.desired.pins(), &self.past);
        for (name, id, reason) in self.shares.failing() {
            if selection.lineup.has_version(id)
                && let Some(Some(report)) = selection.reports.get_mut(name.as_str())
                && report["status"] == ACTIVE
            {
                (report["status"], report["reason"]) = (json!(FAILING), json!(reason));
            }
        }
        selection
    }

    /// Make the twin hold exactly these reports. Recorded when there is a chance: after a crash they are made again.
    fn report_versions(&mut self, reports: BTreeMap<String, Option<Value>>) {
        let held = self.outbox.reported().get(HOST_KEY).and_then(|host| host.get(PLUGINS)).and_then(Value::as_object);
        let (none, mut wanted) = (Map::new(), Map::new());
        let held = held.unwrap_or(&none);
        for (name, report) in reports {
            if let Some(report) = report.or_else(|| held.get(&name).cloned()) {
                wanted.insert(name, report);
            }
        }
        for held_back in self.activations.held_back() {
            // Only where the twin is told of the plugin at all: what it asked for does not run.
            if let Some(report) = wanted.get_mut(held_back.plugin.as_str()) {
                *report = json!({"version": held_back.version, "status": NOT_ACTIVATED, "reason": held_back.reason});
            }
        }
        let patch = twin::diff(held, &wanted);
        if patch.is_empty() {
            return;
        }
        let plugins = Map::from_iter([(PLUGINS.to_owned(), Value::Object(patch))]);
        self.outbox.report(&Map::from_iter([(HOST_KEY.to_owned(), Value::Object(plugins))]));
        self.records.dirty.unsent = true;
    }

    /// A call of a version that runs has ended. Of one that the twin pins it is reported if too many fail.
    pub(super) fn call_counted(&mut self, plugin: &Plugin, failed: bool) {
        let is_pinned = self.desired.pins().is_some_and(|pins| pins.contains_key(plugin.name.as_str()));
        if is_pinned && self.lineup.has_version(&plugin.id) && self.shares.count(plugin, failed) {
            let reports = self.select().reports;
            self.report_versions(reports);
        }
    }

    /// A version failed here so many times in a row: run another one, if there is any.
    pub(super) fn failed_in_a_row(&mut self, now: Instant, plugin: &Plugin, failures: u32) {
        if failures < self.limits.quarantine_after || !self.past.quarantine(&self.offers, plugin, failures) {
            return;
        }
        self.records.dirty.past = true;
        self.reselect(now);
        let instead = self.lineup.plugins.iter().find(|running| running.name == plugin.name);
        let instead = instead.map_or("none", |running| &*running.label);
        let (device, version) = (&self.device, &plugin.label);
        tracing::warn!(%device, plugin = %plugin.name, %version, failures, instead, "plugin version is in quarantine");
    }
}
