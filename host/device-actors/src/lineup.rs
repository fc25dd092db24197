//! Which plugins a device runs, as plain data: what an actor needs to know of a version, without the version itself.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use iothub_protocol::id::MethodName;
use plugin_runtime::{CanaryRule, KnownVersion, PinRule, Placement, PluginName, PluginSet, PluginVersion, VersionTag};

/// One version of one plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    pub name: PluginName,
    /// The version's identity: name, code and terms. Only ever compared.
    pub id: Arc<str>,
    /// Hash of the code.
    pub hash: Arc<str>,
    /// How people call the version: semver, else the hash's first digits.
    pub label: Arc<str>,
    /// The direct methods that it answers.
    pub methods: Vec<MethodName>,
    /// The paths in the desired properties that it reacts to; empty if it reacts to none.
    pub watched: Vec<String>,
    /// Whether it deals with timers that are due.
    pub has_ticks: bool,
    /// Whether it is to be told when it takes over.
    pub has_lifecycle: bool,
}

impl Plugin {
    pub(crate) fn tag(&self) -> VersionTag {
        VersionTag { label: self.label.clone(), hash: self.hash.clone() }
    }
}

/// The plugins that a device runs together. Replaced as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lineup {
    pub generation: u64,
    pub plugins: Vec<Arc<Plugin>>,
}

/// Everything that devices could run, from which each one takes its own [`Lineup`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offers {
    pub generation: u64,
    /// What devices run on which every plugin is placed and no rule says otherwise, made once for all of them.
    pub current: Arc<Lineup>,
    /// One for each plugin in `current`, in the same order.
    pub plugins: Vec<Offer>,
}

/// The versions of one plugin, and who gets which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub name: PluginName,
    /// The devices that run any version of it.
    pub placement: Placement,
    pub current: Arc<Plugin>,
    /// Everything that is kept, the current one included, the newest first.
    pub versions: Vec<Offered>,
    /// Hash of the version that was current before.
    pub previous: Option<Arc<str>>,
    pub canary: Option<CanaryRule>,
    /// The operator's; the first one that matches counts.
    pub pins: Vec<PinRule>,
}

/// A version that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    pub hash: Arc<str>,
    pub semver: Option<Arc<str>>,
    pub label: Arc<str>,
    /// Once it is loaded.
    pub plugin: Option<Arc<Plugin>>,
    /// Why it cannot be loaded.
    pub failed: Option<Arc<str>>,
}

impl Plugin {
    fn of(version: &PluginVersion) -> Plugin {
        Plugin {
            name: version.name().clone(),
            id: identity(version),
            hash: Arc::from(version.hash()),
            label: Arc::from(version.label()),
            methods: version.methods().to_vec(),
            watched: version.watched().to_vec(),
            has_ticks: version.has_ticks(),
            has_lifecycle: version.has_lifecycle(),
        }
    }
}

impl Offers {
    /// One version of one plugin and nothing else, for whoever runs a device without a catalog.
    pub fn alone(version: &PluginVersion) -> Offers {
        let plugin = Arc::new(Plugin::of(version));
        let lineup = Lineup { generation: 1, plugins: vec![plugin.clone()] };
        let offered = Offered {
            hash: plugin.hash.clone(),
            semver: version.semver().map(Arc::from),
            label: plugin.label.clone(),
            plugin: Some(plugin.clone()),
            failed: None,
        };
        let offer = Offer {
            name: plugin.name.clone(),
            placement: Placement::Everywhere,
            current: plugin,
            versions: vec![offered],
            previous: None,
            canary: None,
            pins: Vec::new(),
        };
        Offers { generation: 1, current: Arc::new(lineup), plugins: vec![offer] }
    }

    pub(crate) fn of(set: &PluginSet) -> Offers {
        let current: Vec<_> = set.plugins.iter().map(|version| Arc::new(Plugin::of(version))).collect();
        let offers = set.rollouts.iter().zip(&current).map(|(rollout, current)| Offer {
            name: rollout.name.clone(),
            placement: rollout.placement.clone(),
            current: current.clone(),
            versions: rollout.versions.iter().map(|known| Offered::of(known, current)).collect(),
            previous: rollout.previous.clone(),
            canary: rollout.canary.clone(),
            pins: rollout.pins.clone(),
        });
        let plugins = offers.collect();
        let current = Arc::new(Lineup { generation: set.generation, plugins: current });
        Offers { generation: set.generation, current, plugins }
    }
}

impl Offered {
    fn of(known: &KnownVersion, current: &Arc<Plugin>) -> Offered {
        let KnownVersion { hash, semver, label, version, failed } = known.clone();
        let plugin = version.map(|version| {
            // The same one, so that it is the same for whoever compares.
            if hash == current.hash { current.clone() } else { Arc::new(Plugin::of(&version)) }
        });
        Offered { hash, semver, label, plugin, failed }
    }
}

impl Lineup {
    pub(crate) fn answering(&self, method: &MethodName) -> Option<&Arc<Plugin>> {
        self.plugins.iter().find(|plugin| plugin.methods.contains(method))
    }

    pub(crate) fn has_version(&self, id: &str) -> bool {
        self.plugins.iter().any(|plugin| &*plugin.id == id)
    }

    /// Every method that some plugin answers, sorted.
    pub(crate) fn methods(&self) -> BTreeSet<&MethodName> {
        self.plugins.iter().flat_map(|plugin| &plugin.methods).collect()
    }
}

/// The same code under two names, or on two sets of terms, is two versions.
pub(crate) fn identity(version: &PluginVersion) -> Arc<str> {
    let mut terms = DefaultHasher::new();
    version.terms().hash(&mut terms);
    Arc::from(format!("{}@{}+{:x}", version.name(), version.hash(), terms.finish()))
}
