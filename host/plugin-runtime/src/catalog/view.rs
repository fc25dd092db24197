//! What the catalog shows its operator.

use std::sync::Arc;
use std::time::SystemTime;

use super::canary::CanaryPolicy;
use super::shelf::Refusal;
use crate::tally::Counts;
use crate::terms::Placement;
use crate::version::PluginVersion;

/// One plugin, or one file that could be one.
#[derive(Debug, Clone)]
pub struct CatalogEntry {
    /// The file's name without `.wasm`.
    pub name: String,
    /// What is current. `None` if no version was ever accepted.
    pub version: Option<Arc<PluginVersion>>,
    pub loaded_at: Option<SystemTime>,
    /// Whether the file is gone; the version keeps running until the host ends.
    pub removed: bool,
    /// Why the file as it is now is not what runs.
    pub refusal: Option<Refusal>,
    /// Where its plan lets it run.
    pub placement: Placement,
    /// Every version that is kept, the newest first.
    pub versions: Vec<VersionView>,
    pub canary: Option<CanaryView>,
    /// The last canary, if it was withdrawn.
    pub withdrawn: Option<WithdrawnView>,
}

#[derive(Debug, Clone)]
pub struct VersionView {
    pub hash: String,
    pub semver: Option<String>,
    pub label: String,
    pub arrived: SystemTime,
    pub is_current: bool,
    /// Whether a rollback would make it current.
    pub is_previous: bool,
    /// Patterns of the devices that the operator pinned to it.
    pub pinned: Vec<String>,
    /// Of its calls since it was loaded; `None` while it is not.
    pub counts: Option<Counts>,
}

#[derive(Debug, Clone)]
pub struct CanaryView {
    pub hash: String,
    pub label: String,
    pub policy: CanaryPolicy,
    /// Whether its window is over and it did well.
    pub passed: bool,
    /// Of its calls since it became the canary.
    pub counts: Counts,
}

#[derive(Debug, Clone)]
pub struct WithdrawnView {
    pub hash: String,
    pub label: String,
    pub reason: String,
    pub at: SystemTime,
}
