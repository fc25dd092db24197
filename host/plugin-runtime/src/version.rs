//! A version of a plugin: code and terms that passed every check.

use std::fmt;
use std::sync::Arc;

use iothub_protocol::id::{IdError, MethodName};
use ring::digest::{SHA256, digest};
use wasmtime::component::InstancePre;

use crate::bindings::Exports;
use crate::context::HOST_KEY;
use crate::guest::Guest;
use crate::instance::CallFailure;
use crate::name::{PluginName, PluginNameError};
use crate::random::Seeding;
use crate::tally::Tally;
use crate::terms::Terms;

/// What a version is made from. Not printable: settings can be secrets.
#[derive(Clone)]
pub struct PluginSource {
    pub name: PluginName,
    /// A component. Never precompiled code, which could not be checked.
    pub wasm: Vec<u8>,
    pub terms: Terms,
}

/// One version of a plugin, ready to be instantiated. Never changes.
pub struct PluginVersion {
    pub(crate) name: PluginName,
    pub(crate) hash: String,
    pub(crate) semver: Option<String>,
    pub(crate) label: Arc<str>,
    pub(crate) size: usize,
    pub(crate) terms: Arc<Terms>,
    pub(crate) methods: Vec<MethodName>,
    pub(crate) watched: Vec<String>,
    pub(crate) pre: InstancePre<Guest>,
    pub(crate) exports: Exports,
    pub(crate) tally: Tally,
    pub(crate) seeding: Arc<Seeding>,
}

impl PluginVersion {
    pub fn name(&self) -> &PluginName {
        &self.name
    }

    /// SHA-256 of the component, in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// What its author called it.
    pub fn semver(&self) -> Option<&str> {
        self.semver.as_deref()
    }

    /// What people call it: the semantic version, else the first 12 digits of the hash.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The direct methods that it answers.
    pub fn methods(&self) -> &[MethodName] {
        &self.methods
    }

    /// The paths in the desired properties that it reacts to.
    pub fn watched(&self) -> &[String] {
        &self.watched
    }

    /// Whether it deals with timers that are due.
    pub fn has_ticks(&self) -> bool {
        self.exports.ticks()
    }

    /// Whether it is to be told when it takes over on a device.
    pub fn has_lifecycle(&self) -> bool {
        self.exports.lifecycle()
    }

    /// Bytes of the component.
    pub fn size(&self) -> usize {
        self.size
    }

    /// What it was loaded with.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// How its calls have ended. Whoever calls it counts.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether `other` is the same code on the same terms.
    pub fn is_same(&self, other: &PluginVersion) -> bool {
        self.name == other.name && self.hash == other.hash && self.terms == other.terms
    }
}

impl fmt::Debug for PluginVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("PluginVersion");
        debug.field("name", &self.name).field("label", &self.label).field("methods", &self.methods);
        debug.field("watched", &self.watched).finish_non_exhaustive()
    }
}

/// A version in words: what is left of one that may not be loaded any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionTag {
    /// As [`PluginVersion::label`].
    pub label: Arc<str>,
    /// As [`PluginVersion::hash`].
    pub hash: Arc<str>,
}

/// Why bytes did not become a version, or a version not the current one. The texts are for whoever built the plugin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("the file is empty")]
    Empty,
    #[error("the file has {size} bytes; the limit is {limit}")]
    TooLarge { size: u64, limit: usize },
    #[error("the file is text, not a compiled component: it begins with {begins:?}")]
    Text { begins: String },
    #[error("the file is no WebAssembly: it begins with {begins}")]
    NotWasm { begins: String },
    #[error("the file is precompiled code, which is never accepted; give the .wasm that it was made from")]
    Precompiled,
    #[error(
        "the file is a core module, not a component; build it for wasm32-wasip2, or make a component of it with \
         `wasm-tools component new`"
    )]
    CoreModule,
    #[error("the file ends early, after {bytes} bytes")]
    Truncated { bytes: usize },
    #[error("the file is damaged at byte {offset}: {reason}")]
    Malformed { offset: usize, reason: String },
    #[error(
        "the component exports {exports}; a plugin exports `iothub:plugin/methods@0.1.0`, \
         `iothub:plugin/reactions@0.1.0`, `iothub:plugin/lifecycle@0.1.0` or several of them"
    )]
    World { exports: String },
    #[error("the type of `{function}` in `{interface}` is wrong: expected {expected}, found {found}")]
    Type { interface: String, function: &'static str, expected: &'static str, found: String },
    #[error("the component imports something that the host does not offer: {reason}")]
    Imports { reason: String },
    #[error("the component does not compile: {reason}")]
    Compile { reason: String },
    #[error("the component fails when it is asked what it answers: {failure}")]
    SelfTest { failure: CallFailure },
    #[error("the component answers no method, watches no property and takes part in no lifecycle")]
    Idle,
    #[error("the component answers a method whose name is impossible: {reason}")]
    MethodName { reason: IdError },
    #[error("the component watches {path:?}, which {reason}")]
    Watched { path: String, reason: &'static str },
    #[error("the component names {found} methods or paths; the limit is {limit}")]
    TooMany { found: usize, limit: usize },
    #[error("the plugins {plugin} and {other} both answer the method {method}; {other} was there first")]
    Conflict { plugin: PluginName, other: PluginName, method: MethodName },
    #[error("the file's name names no plugin: {reason}")]
    Name { reason: PluginNameError },
    #[error("the file cannot be {action}: {reason}")]
    File { action: &'static str, reason: String },
}

/// The hash that names a component.
pub(crate) fn hash(wasm: &[u8]) -> String {
    digest(&SHA256, wasm).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The position of the version that `wanted` names, among versions given as hash and semver, the newest first: the newest
/// with that semver, else the one whose hash begins with at least 12 such digits.
pub fn resolve_version<'a>(
    wanted: &str,
    newest_first: impl Iterator<Item = (&'a str, Option<&'a str>)>,
) -> Option<usize> {
    let mut by_hash = None;
    for (position, (hash, semver)) in newest_first.enumerate() {
        if semver == Some(wanted) {
            return Some(position);
        }
        if by_hash.is_none() && wanted.len() >= LABEL_DIGITS && hash.starts_with(wanted) {
            by_hash = Some(position);
        }
    }
    by_hash
}

/// The names that a guest says it answers, each once.
pub(crate) fn methods(names: &[String]) -> Result<Vec<MethodName>, LoadError> {
    check_count(names)?;
    let mut methods = Vec::with_capacity(names.len());
    for name in names {
        let method = MethodName::parse(name).map_err(|reason| LoadError::MethodName { reason })?;
        if !methods.contains(&method) {
            methods.push(method);
        }
    }
    Ok(methods)
}

/// The paths that a guest says it watches, each once.
pub(crate) fn watched(paths: &[String]) -> Result<Vec<String>, LoadError> {
    check_count(paths)?;
    let mut watched = Vec::with_capacity(paths.len());
    for path in paths {
        if let Some(reason) = wrong_path(path) {
            return Err(LoadError::Watched { path: path.chars().take(PATH_LIMIT).collect(), reason });
        }
        if !watched.contains(path) {
            watched.push(path.clone());
        }
    }
    Ok(watched)
}

fn wrong_path(path: &str) -> Option<&'static str> {
    if path.len() > PATH_LIMIT {
        return Some("is too long");
    }
    if path.split('.').any(str::is_empty) {
        return Some("has an empty name in it");
    }
    (path.split('.').next() == Some(HOST_KEY)).then_some("is the host's")
}

fn check_count(names: &[String]) -> Result<(), LoadError> {
    if names.len() > NAMES_LIMIT {
        return Err(LoadError::TooMany { found: names.len(), limit: NAMES_LIMIT });
    }
    Ok(())
}

/// Digits of a hash that stand for all of it: as many as Git and container tools show.
pub(crate) const LABEL_DIGITS: usize = 12;
/// Every device routes by this list.
const NAMES_LIMIT: usize = 256;
/// A key has up to 1 KiB, but nobody nests such keys.
const PATH_LIMIT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_are_parsed_and_kept_once() {
        let found = methods(&texts(&["lockDoor", "a", "lockDoor"])).expect("good names");
        assert_eq!(found.iter().map(MethodName::as_str).collect::<Vec<_>>(), ["lockDoor", "a"]);
        assert!(matches!(methods(&texts(&["lock door"])), Err(LoadError::MethodName { .. })));
        assert!(matches!(methods(&vec!["a".to_owned(); 257]), Err(LoadError::TooMany { found: 257, limit: 256 })));
    }

    #[test]
    fn watched_paths_have_names_and_are_not_the_hosts() {
        assert_eq!(watched(&texts(&["a.b", "latches", "a.b"])), Ok(texts(&["a.b", "latches"])));
        for path in ["", "a..b", ".a", "latch", "latch.plugins"] {
            assert!(matches!(watched(&texts(&[path])), Err(LoadError::Watched { .. })), "{path}");
        }
    }
}
