//! Which version a device runs of each plugin that is placed on it: its twin's pin, else the operator's pin, else the
//! canary, else the current version; and what it is to report of that. A version in quarantine runs on none of these
//! grounds. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iothub_protocol::id::DeviceId;
use iothub_protocol::plugin_report::{ACTIVE, QUARANTINED, UNKNOWN_VERSION};
use plugin_runtime::{PluginName, resolve_version};
use serde_json::{Map, Value, json};

use crate::lineup::{Lineup, Offer, Offered, Offers, Plugin};
use crate::record::{PluginPast, Quarantined};

/// A version of a plugin, by its hash.
pub(crate) type VersionKey = (PluginName, Arc<str>);

/// What a device runs, and what follows from it.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub(crate) lineup: Arc<Lineup>,
    /// Kept versions that this device needs loaded.
    pub(crate) wanted: BTreeSet<VersionKey>,
    /// What the rules say, quarantine aside, by [`Plugin::id`]; nothing while that is on its way.
    ruled: BTreeMap<PluginName, Arc<str>>,
    /// By plugin: what the twin is to hold, or `None` for what it holds, while a version is on its way.
    pub(crate) reports: BTreeMap<String, Option<Value>>,
}

/// How versions did on one device.
#[derive(Debug, Default)]
pub(crate) struct Past {
    /// A device has few, so they are looked through.
    plugins: Vec<(PluginName, PluginPast)>,
}

/// Choose for one device. `pins` are those of its twin, by plugin.
pub(crate) fn select(device: &DeviceId, offers: &Offers, pins: Option<&Map<String, Value>>, past: &Past) -> Selection {
    let mut selection = Selection::default();
    let mut plugins = Vec::with_capacity(offers.plugins.len());
    for offer in &offers.plugins {
        let pin = pins.and_then(|pins| pins.get(offer.name.as_str()));
        if !offer.placement.includes(device) {
            if pin.is_some() {
                selection.report_absent(
                    offer.name.as_str(),
                    format!("the plugin {} is not placed on this device", offer.name),
                );
            }
            continue;
        }
        plugins.push(selection.choose(device, offer, pin, past.get(&offer.name)));
    }
    for name in pins.into_iter().flat_map(Map::keys) {
        if !offers.plugins.iter().any(|offer| offer.name.as_str() == name) {
            selection.report_absent(name, format!("no plugin {name} runs here"));
        }
    }
    let is_current = plugins.len() == offers.current.plugins.len()
        && plugins.iter().zip(&offers.current.plugins).all(|(one, other)| Arc::ptr_eq(one, other));
    selection.lineup =
        if is_current { offers.current.clone() } else { Arc::new(Lineup { generation: offers.generation, plugins }) };
    selection
}

impl Selection {
    /// A plugin that is pinned runs in no version.
    fn report_absent(&mut self, name: &str, reason: String) {
        self.reports.insert(name.to_owned(), Some(json!({"status": UNKNOWN_VERSION, "reason": reason})));
    }

    fn choose(
        &mut self,
        device: &DeviceId,
        offer: &Offer,
        pin: Option<&Value>,
        past: Option<&PluginPast>,
    ) -> Arc<Plugin> {
        let pinned = pin.map(|pin| self.pinned(offer, pin));
        let ruled = match &pinned {
            Some(Pinned::Version(plugin)) => plugin.clone(),
            _ => by_rule(device, offer),
        };
        if !matches!(pinned, Some(Pinned::OnItsWay)) {
            self.ruled.insert(offer.name.clone(), ruled.id.clone());
        }
        let (chosen, quarantined) = match past.and_then(|past| past.quarantine_of(&ruled.hash)) {
            Some(quarantined) => (self.fallback(offer, &ruled, past), Some(quarantined)),
            None => (ruled, None),
        };
        let report =
            |status: &str, reason: String| Some(json!({"version": &*chosen.label, "status": status, "reason": reason}));
        let report = match (quarantined, pinned) {
            (Some(quarantined), _) => {
                Some(report(QUARANTINED, format!("{} {}", quarantined.label, quarantined.reason)))
            }
            (None, Some(Pinned::Version(_))) => Some(report(ACTIVE, "pinned by the twin".to_owned())),
            (None, Some(Pinned::Unknown(reason))) => Some(report(UNKNOWN_VERSION, reason)),
            (None, Some(Pinned::OnItsWay)) => Some(None),
            (None, None) => None,
        };
        if let Some(report) = report {
            self.reports.insert(offer.name.to_string(), report);
        }
        chosen
    }

    fn pinned(&mut self, offer: &Offer, pin: &Value) -> Pinned {
        let Some(wanted) = pin.as_str() else {
            return Pinned::Unknown("a pin is a text: a semantic version or a hash".to_owned());
        };
        let Some(version) = offer.find(wanted) else {
            let known: Vec<_> = offer.versions.iter().map(|version| &*version.label).collect();
            let wanted: String = wanted.chars().take(SHOWN).collect();
            return Pinned::Unknown(format!("no version {wanted} is kept here; there are {}", known.join(", ")));
        };
        if version.hash != offer.current.hash {
            self.wanted.insert((offer.name.clone(), version.hash.clone()));
        }
        match (&version.plugin, &version.failed) {
            (Some(plugin), _) => Pinned::Version(plugin.clone()),
            (None, Some(failed)) => Pinned::Unknown(format!("version {} cannot be loaded: {failed}", version.label)),
            (None, None) => Pinned::OnItsWay,
        }
    }

    /// What runs instead of a version in quarantine; that version itself while the other is on its way.
    fn fallback(&mut self, offer: &Offer, ruled: &Arc<Plugin>, past: Option<&PluginPast>) -> Arc<Plugin> {
        for version in past.iter().flat_map(|past| past.fallbacks(offer)) {
            if version.hash != offer.current.hash {
                self.wanted.insert((offer.name.clone(), version.hash.clone()));
            }
            if let Some(plugin) = &version.plugin {
                return plugin.clone();
            }
        }
        ruled.clone()
    }
}

/// What a twin's pin comes to.
enum Pinned {
    Version(Arc<Plugin>),
    OnItsWay,
    Unknown(String),
}

fn by_rule(device: &DeviceId, offer: &Offer) -> Arc<Plugin> {
    let loaded = |hash: &str| offer.find(hash).and_then(|version| version.plugin.clone());
    let pin = offer.pins.iter().find(|pin| pin.devices.includes(device));
    if let Some(plugin) = pin.and_then(|pin| loaded(&pin.hash)) {
        return plugin;
    }
    let canary = offer.canary.as_ref();
    let canary = canary.filter(|canary| canary.devices.includes(device) && device.rollout_place().0 < canary.percent);
    canary.and_then(|canary| loaded(&canary.hash)).unwrap_or_else(|| offer.current.clone())
}

impl Offer {
    fn find(&self, wanted: &str) -> Option<&Offered> {
        let versions = self.versions.iter().map(|version| (&*version.hash, version.semver.as_deref()));
        self.versions.get(resolve_version(wanted, versions)?)
    }
}

impl Past {
    pub(crate) fn new(recovered: BTreeMap<PluginName, PluginPast>) -> Past {
        Past { plugins: recovered.into_iter().collect() }
    }

    /// What a restart must not forget.
    pub(crate) fn recorded(&self) -> BTreeMap<PluginName, PluginPast> {
        let plugins = self.plugins.iter().filter(|(_, past)| !past.quarantined.is_empty());
        plugins.map(|(name, past)| (name.clone(), past.clone())).collect()
    }

    pub(crate) fn worked(&mut self, plugin: &Plugin) {
        let good = &mut self.of(&plugin.name).good;
        if good.first() != Some(&plugin.hash) {
            good.retain(|hash| *hash != plugin.hash);
            good.insert(0, plugin.hash.clone());
            good.truncate(GOOD);
        }
    }

    /// Stop running a version here, if there is another one to run instead. Tells whether it was stopped.
    pub(crate) fn quarantine(&mut self, offers: &Offers, plugin: &Plugin, failures: u32) -> bool {
        let Some(offer) = offers.plugins.iter().find(|offer| offer.name == plugin.name) else { return false };
        let past = self.of(&plugin.name);
        let reason = format!("failed {failures} times in a row");
        let (hash, label) = (plugin.hash.clone(), plugin.label.clone());
        past.quarantined.push(Quarantined { hash, label, reason });
        let has_other = past.fallbacks(offer).next().is_some();
        if !has_other {
            past.quarantined.pop();
        }
        has_other
    }

    /// The twin speaks of the plugin's version: what was in quarantine gets another chance. Tells whether there was
    /// any.
    pub(crate) fn release(&mut self, name: &str) -> bool {
        let past = self.plugins.iter_mut().find(|(known, _)| known.as_str() == name);
        past.is_some_and(|(_, past)| !std::mem::take(&mut past.quarantined).is_empty())
    }

    /// End quarantines whose grounds are gone: the rules say something else now. Tells whether there were any.
    pub(crate) fn follow(&mut self, selection: &Selection) -> bool {
        let mut released = false;
        for (name, ruled) in &selection.ruled {
            let past = self.of(name);
            if past.ruled.as_ref() != Some(ruled) {
                released |= !past.quarantined.is_empty();
                past.quarantined.clear();
                past.ruled = Some(ruled.clone());
            }
        }
        released
    }

    /// Plugins with the labels of their versions in quarantine.
    pub(crate) fn quarantined(&self) -> Vec<(PluginName, Arc<str>)> {
        let all = self.plugins.iter().flat_map(|(name, past)| past.quarantined.iter().map(move |it| (name, it)));
        all.map(|(name, quarantined)| (name.clone(), quarantined.label.clone())).collect()
    }

    fn get(&self, name: &PluginName) -> Option<&PluginPast> {
        self.plugins.iter().find(|(known, _)| known == name).map(|(_, past)| past)
    }

    fn of(&mut self, name: &PluginName) -> &mut PluginPast {
        let place = self.plugins.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.plugins.push((name.clone(), PluginPast::default()));
            self.plugins.len() - 1
        });
        &mut self.plugins[place].1
    }
}

impl PluginPast {
    fn quarantine_of(&self, hash: &str) -> Option<&Quarantined> {
        self.quarantined.iter().find(|quarantined| &*quarantined.hash == hash)
    }

    /// What could run instead of what is in quarantine, the best first: what answered well here, the current version,
    /// the one before.
    fn fallbacks<'a>(&'a self, offer: &'a Offer) -> impl Iterator<Item = &'a Offered> {
        let hashes = self.good.iter().chain([&offer.current.hash]).chain(&offer.previous);
        let versions = hashes.filter(|hash| self.quarantine_of(hash).is_none()).filter_map(|hash| offer.find(hash));
        versions.filter(|version| version.failed.is_none())
    }
}

/// Good versions that a device remembers: a fallback, and some for the case that it fails as well.
const GOOD: usize = 4;
/// Characters of a pin that are repeated in a report, which has a size limit.
const SHOWN: usize = 64;

#[cfg(test)]
mod tests;
