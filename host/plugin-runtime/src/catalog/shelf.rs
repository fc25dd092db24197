//! Which version of each plugin is current.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use iothub_protocol::id::MethodName;

use super::CatalogEntry;
use crate::name::PluginName;
use crate::version::{LoadError, PluginVersion};

/// The current version of every plugin. No two of them answer one method.
#[derive(Debug, Clone, Default)]
pub struct PluginSet {
    /// Grows by one with each change.
    pub generation: u64,
    /// By name.
    pub plugins: Vec<Arc<PluginVersion>>,
}

impl PluginSet {
    pub fn get(&self, name: &PluginName) -> Option<&Arc<PluginVersion>> {
        let position = self.plugins.binary_search_by(|version| version.name().cmp(name)).ok()?;
        self.plugins.get(position)
    }

    /// The plugin that answers `method`.
    pub fn answering(&self, method: &MethodName) -> Option<&Arc<PluginVersion>> {
        self.plugins.iter().find(|version| version.methods().contains(method))
    }
}

/// Why a file is not what runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    /// SHA-256 of what was refused; empty if it could not be read.
    pub hash: String,
    pub at: SystemTime,
}

/// Everything that is known by name.
#[derive(Default)]
pub(super) struct Shelf {
    generation: u64,
    entries: BTreeMap<String, Entry>,
}

#[derive(Default)]
struct Entry {
    version: Option<Arc<PluginVersion>>,
    loaded_at: Option<SystemTime>,
    removed: bool,
    refusal: Option<Refusal>,
    /// Whether the file was refused for what another plugin answers, which may change.
    in_conflict: bool,
}

/// What became of a version.
pub(super) struct Placed {
    /// The label of the version before.
    pub(super) from: Option<String>,
    pub(super) changed: bool,
}

impl Shelf {
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn set(&self) -> PluginSet {
        let plugins = self.entries.values().filter_map(|entry| entry.version.clone()).collect();
        PluginSet { generation: self.generation, plugins }
    }

    pub(super) fn list(&self) -> Vec<CatalogEntry> {
        let entries = self.entries.iter().map(|(name, entry)| CatalogEntry {
            name: name.clone(),
            version: entry.version.clone(),
            loaded_at: entry.loaded_at,
            removed: entry.removed,
            refusal: entry.refusal.clone(),
        });
        entries.collect()
    }

    /// Whether `version` could be current: nobody else answers its methods.
    pub(super) fn check(&self, version: &PluginVersion) -> Result<(), LoadError> {
        let others = self.entries.values().filter_map(|entry| entry.version.as_ref());
        for other in others.filter(|other| other.name() != version.name()) {
            if let Some(method) = version.methods().iter().find(|method| other.methods().contains(method)) {
                return Err(LoadError::Conflict {
                    plugin: version.name().clone(),
                    other: other.name().clone(),
                    method: method.clone(),
                });
            }
        }
        Ok(())
    }

    /// Make `version` current. The same code and configuration again changes nothing.
    pub(super) fn place(&mut self, version: Arc<PluginVersion>, now: SystemTime) -> Result<Placed, LoadError> {
        self.check(&version)?;
        let entry = self.entries.entry(version.name().to_string()).or_default();
        entry.refusal = None;
        entry.in_conflict = false;
        entry.removed = false;
        let from = entry.version.as_ref().map(|before| before.label().to_owned());
        let changed = entry.version.as_ref().is_none_or(|before| !before.is_same(&version));
        if changed {
            entry.version = Some(version);
            entry.loaded_at = Some(now);
            self.generation += 1;
        }
        Ok(Placed { from, changed })
    }

    /// The files that were refused because of another plugin.
    pub(super) fn in_conflict(&self) -> Vec<String> {
        let stems = self.entries.iter().filter(|(_, entry)| entry.in_conflict);
        stems.map(|(stem, _)| stem.clone()).collect()
    }

    /// Keep why a file was refused. Answers whether that is news.
    pub(super) fn refuse(&mut self, stem: &str, refusal: Refusal, in_conflict: bool) -> bool {
        let entry = self.entries.entry(stem.to_owned()).or_default();
        entry.removed = false;
        entry.in_conflict = in_conflict;
        let known = entry.refusal.as_ref();
        if known.is_some_and(|known| known.hash == refusal.hash && known.reason == refusal.reason) {
            return false;
        }
        entry.refusal = Some(refusal);
        true
    }

    /// A file is gone. Answers the label of the version that keeps running.
    pub(super) fn remove(&mut self, stem: &str) -> Option<String> {
        let entry = self.entries.get_mut(stem)?;
        let Some(version) = &entry.version else {
            self.entries.remove(stem);
            return None;
        };
        entry.removed = true;
        entry.refusal = None;
        entry.in_conflict = false;
        Some(version.label().to_owned())
    }
}
