//! What a catalog publishes: the versions there are of each plugin, and the rules by which a device gets one of them.

use std::sync::Arc;

use iothub_protocol::id::{DeviceId, MethodName};

use super::demand::Demand;
use super::selector::DeviceSelector;
use crate::name::PluginName;
use crate::terms::Placement;
use crate::version::PluginVersion;

/// The current version of every plugin, of which no two answer one method on the same device, and what else devices may
/// run.
#[derive(Debug, Clone, Default)]
pub struct PluginSet {
    /// Grows by one with each change.
    pub generation: u64,
    /// The current versions, by name.
    pub plugins: Vec<Arc<PluginVersion>>,
    /// One for each of `plugins`, in the same order.
    pub rollouts: Vec<Rollout>,
    /// Where to ask for kept versions that are not loaded.
    pub demand: Demand,
}

/// Which versions there are of one plugin, and who gets which.
#[derive(Debug, Clone)]
pub struct Rollout {
    pub name: PluginName,
    /// The devices that run any of them.
    pub placement: Placement,
    /// Everything that is kept, the newest first.
    pub versions: Vec<KnownVersion>,
    /// Hash of the version that was current before.
    pub previous: Option<Arc<str>>,
    pub canary: Option<CanaryRule>,
    /// The operator's; the first one that matches counts.
    pub pins: Vec<PinRule>,
}

/// A version that is kept.
#[derive(Debug, Clone)]
pub struct KnownVersion {
    pub hash: Arc<str>,
    pub semver: Option<Arc<str>>,
    pub label: Arc<str>,
    /// Once it is loaded.
    pub version: Option<Arc<PluginVersion>>,
    /// Why it cannot be loaded.
    pub failed: Option<Arc<str>>,
}

/// A version for a share of the devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryRule {
    pub hash: Arc<str>,
    pub percent: u8,
    pub devices: DeviceSelector,
}

/// A version for certain devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinRule {
    pub hash: Arc<str>,
    pub devices: DeviceSelector,
}

impl PluginSet {
    pub fn get(&self, name: &PluginName) -> Option<&Arc<PluginVersion>> {
        let position = self.plugins.binary_search_by(|version| version.name().cmp(name)).ok()?;
        self.plugins.get(position)
    }

    /// The plugin whose current version answers `method` on `device`.
    pub fn answering(&self, device: &DeviceId, method: &MethodName) -> Option<&Arc<PluginVersion>> {
        let here = self.plugins.iter().zip(&self.rollouts).filter(|(_, rollout)| rollout.placement.includes(device));
        here.map(|(version, _)| version).find(|version| version.methods().contains(method))
    }

    /// Every version that is loaded.
    pub fn loaded(&self) -> impl Iterator<Item = &Arc<PluginVersion>> {
        let known = self.rollouts.iter().flat_map(|rollout| &rollout.versions);
        known.filter_map(|known| known.version.as_ref())
    }
}
