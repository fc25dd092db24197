//! Which plugins a device runs, as plain data: what an actor needs to know of a version, without the version itself.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use iothub_protocol::id::MethodName;
use plugin_runtime::{PluginName, PluginSet, PluginVersion, VersionTag};

/// One version of one plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    pub name: PluginName,
    /// The version's identity: name, code and configuration. Only ever compared.
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

/// The plugins that are current together. Replaced as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lineup {
    pub generation: u64,
    pub plugins: Vec<Arc<Plugin>>,
}

impl Lineup {
    pub(crate) fn of(set: &PluginSet) -> Lineup {
        let plugins = set.plugins.iter().map(|version| {
            Arc::new(Plugin {
                name: version.name().clone(),
                id: identity(version),
                hash: Arc::from(version.hash()),
                label: Arc::from(version.label()),
                methods: version.methods().to_vec(),
                watched: version.watched().to_vec(),
                has_ticks: version.has_ticks(),
                has_lifecycle: version.has_lifecycle(),
            })
        });
        Lineup { generation: set.generation, plugins: plugins.collect() }
    }

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

/// The same code under two names, or with two configurations, is two versions.
pub(crate) fn identity(version: &PluginVersion) -> Arc<str> {
    let mut config = DefaultHasher::new();
    version.config().hash(&mut config);
    Arc::from(format!("{}@{}+{:x}", version.name(), version.hash(), config.finish()))
}
