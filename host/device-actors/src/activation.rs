//! Which version of each plugin has been activated on a device, and which of those that are current has yet to be.
//!
//! A version that wants to be told when it takes over runs nothing before it has agreed. Until then, and after a
//! failure, the device stays on the version that it ran before, if that one is still loaded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use plugin_runtime::{PluginName, VersionTag};

use crate::lineup::{Lineup, Plugin};

#[derive(Debug)]
pub(crate) struct Activations {
    /// The version of each plugin whose changes were recorded last; a device has few.
    recorded: Vec<(PluginName, VersionTag)>,
    /// What is current, whether the device runs it or not.
    offered: Arc<Lineup>,
    failed: BTreeMap<PluginName, Failed>,
}

#[derive(Debug)]
struct Failed {
    plugin: Arc<Plugin>,
    reason: String,
    in_a_row: u32,
    /// None: not as long as this version is the current one.
    again: Option<Instant>,
}

/// A current version that the device does not run, or not yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBack {
    pub plugin: PluginName,
    pub version: Arc<str>,
    pub reason: String,
}

impl Activations {
    pub(crate) fn new(recorded: BTreeMap<PluginName, VersionTag>) -> Activations {
        Activations { recorded: recorded.into_iter().collect(), offered: Arc::default(), failed: BTreeMap::new() }
    }

    /// Other versions are current. Failures of versions that are not among them are forgotten.
    pub(crate) fn offer(&mut self, offered: Arc<Lineup>) {
        self.failed.retain(|_, failed| offered.has_version(&failed.plugin.id));
        self.offered = offered;
    }

    /// What the device runs, given what it ran up to now.
    pub(crate) fn lineup(&self, running: &Lineup) -> Arc<Lineup> {
        let stays = |plugin: &Arc<Plugin>| {
            let before = running.plugins.iter().find(|before| before.name == plugin.name);
            before.filter(|before| self.is_open(plugin) && !self.is_open(before)).cloned()
        };
        if self.offered.plugins.iter().all(|plugin| stays(plugin).is_none()) {
            return self.offered.clone();
        }
        let plugins = self.offered.plugins.iter().map(|plugin| stays(plugin).unwrap_or_else(|| plugin.clone()));
        Arc::new(Lineup { generation: self.offered.generation, plugins: plugins.collect() })
    }

    /// Whether the version must be activated before it runs anything here.
    pub(crate) fn is_open(&self, plugin: &Plugin) -> bool {
        plugin.has_lifecycle && !self.is_recorded(plugin)
    }

    /// Whether the version's changes were the last to be recorded.
    pub(crate) fn is_recorded(&self, plugin: &Plugin) -> bool {
        self.last(&plugin.name).is_some_and(|tag| tag.hash == plugin.hash)
    }

    /// The version that is to be activated first, and from when on; `None` is at once.
    pub(crate) fn next(&self) -> Option<(Option<Instant>, &Arc<Plugin>)> {
        let open = self.offered.plugins.iter().filter(|plugin| self.is_open(plugin));
        let waiting = open.filter_map(|plugin| match self.failed.get(&plugin.name) {
            Some(failed) => failed.again.map(|again| (Some(again), plugin)),
            None => Some((None, plugin)),
        });
        waiting.min_by_key(|(from, _)| *from)
    }

    fn last(&self, name: &PluginName) -> Option<&VersionTag> {
        self.recorded.iter().find(|(recorded, _)| recorded == name).map(|(_, tag)| tag)
    }

    /// Until when the version runs nothing because its activation failed.
    pub(crate) fn waits_until(&self, plugin: &Plugin) -> Option<Instant> {
        self.failed.get(&plugin.name).filter(|failed| failed.plugin.id == plugin.id)?.again
    }

    /// The version before `plugin`: whoever left something, else whoever ran.
    pub(crate) fn before(&self, plugin: &Plugin, running: &Lineup) -> Option<VersionTag> {
        let ran = || {
            let before = running.plugins.iter().find(|before| before.name == plugin.name && before.id != plugin.id);
            before.map(|before| before.tag())
        };
        self.last(&plugin.name).cloned().or_else(ran)
    }

    /// Changes of the version are recorded.
    pub(crate) fn recorded(&mut self, plugin: &Plugin) {
        if !self.is_recorded(plugin) {
            self.recorded.retain(|(name, _)| *name != plugin.name);
            self.recorded.push((plugin.name.clone(), plugin.tag()));
        }
        if self.failed.get(&plugin.name).is_some_and(|failed| failed.plugin.id == plugin.id) {
            self.failed.remove(&plugin.name);
        }
    }

    /// How often in a row the version's activation will have failed, with once more.
    pub(crate) fn failures_with(&self, plugin: &Plugin) -> u32 {
        self.failed.get(&plugin.name).map_or(0, |failed| failed.in_a_row).saturating_add(1)
    }

    pub(crate) fn failed(&mut self, plugin: &Arc<Plugin>, reason: String, again: Option<Instant>) {
        if !self.offered.has_version(&plugin.id) {
            return;
        }
        let in_a_row = self.failures_with(plugin);
        self.failed.insert(plugin.name.clone(), Failed { plugin: plugin.clone(), reason, in_a_row, again });
    }

    pub(crate) fn held_back(&self) -> Vec<HeldBack> {
        let held_back = self.failed.values().map(|failed| HeldBack {
            plugin: failed.plugin.name.clone(),
            version: failed.plugin.label.clone(),
            reason: failed.reason.clone(),
        });
        held_back.collect()
    }
}
