//! Desired properties: which document is current, and what each plugin has yet to see of it.
//!
//! A plugin's next change is not a queue but the difference between what it saw last and what is there now, so changes
//! that arrive while it is busy or failing become one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iothub_protocol::plugin_report::{HOST_KEY, pins};
use iothub_protocol::twin;
use plugin_runtime::PluginName;
use serde_json::{Map, Value};

use crate::lineup::{Lineup, Plugin};
use crate::record::Applied;

#[derive(Debug)]
pub(crate) struct Desired {
    /// As the hub has it.
    document: Arc<Map<String, Value>>,
    /// The same as guests see it.
    shown: Arc<Map<String, Value>>,
    version: u64,
    /// Whether the hub was asked since the start. Before, what was recorded may be long outdated, and nothing acts on
    /// it.
    known: bool,
    /// Notices that overtook the answer to the GET. Only the answer tells which of them are news.
    early: Vec<(u64, Map<String, Value>)>,
    reactions: BTreeMap<PluginName, Reaction>,
}

/// One plugin's progress.
#[derive(Debug, Default)]
struct Reaction {
    applied: Applied,
    failures: u32,
    /// When the plugin gets its change. None: there is none, or it is in hand.
    due: Option<Instant>,
    /// The version, and the view, that failed last. Another one need not wait for the back-off.
    failed: Option<(Arc<str>, Map<String, Value>)>,
}

/// What a plugin gets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) patch: Map<String, Value>,
    /// What the plugin has seen once it is done.
    pub(crate) view: Map<String, Value>,
}

impl Desired {
    pub(crate) fn new(document: Map<String, Value>, version: u64, applied: BTreeMap<PluginName, Applied>) -> Desired {
        let reactions =
            applied.into_iter().map(|(name, applied)| (name, Reaction { applied, ..Reaction::default() })).collect();
        let document = Arc::new(document);
        let shown = shown(&document);
        Desired { document, shown, version, known: false, early: Vec::new(), reactions }
    }

    pub(crate) fn document(&self) -> &Arc<Map<String, Value>> {
        &self.document
    }

    pub(crate) fn shown(&self) -> &Arc<Map<String, Value>> {
        &self.shown
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Whether the hub was asked since the start.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// The versions that the twin wants, by plugin.
    pub(crate) fn pins(&self) -> Option<&Map<String, Value>> {
        pins(&self.document)
    }

    pub(crate) fn applied(&self) -> impl Iterator<Item = (&PluginName, &Applied)> {
        self.reactions.iter().map(|(name, reaction)| (name, &reaction.applied))
    }

    /// A connection begins: notices wait for the answer to its GET.
    pub(crate) fn connected(&mut self) {
        self.early.clear();
    }

    /// The answer to a GET, which always counts. Tells whether the device was re-created, so that plugins begin anew.
    pub(crate) fn answered(&mut self, document: Map<String, Value>, version: u64) -> bool {
        let recreated = version < self.version;
        if recreated {
            // What plugins saw belonged to another device of the same name. Its values are forgotten and its keys
            // kept: the next change brings everything there is, and `null` for what is gone.
            self.reactions.values_mut().for_each(|reaction| forget_values(&mut reaction.applied.view));
        }
        self.known = true;
        self.replace(document, version);
        for (version, patch) in std::mem::take(&mut self.early) {
            self.noticed(version, &patch);
        }
        recreated
    }

    /// A notice before the answer to the GET.
    pub(crate) fn noticed_early(&mut self, version: u64, patch: Map<String, Value>) {
        self.early.push((version, patch));
    }

    /// A notice. Tells whether it was news.
    pub(crate) fn noticed(&mut self, version: u64, patch: &Map<String, Value>) -> bool {
        if version <= self.version {
            return false;
        }
        let mut document = Map::clone(&self.document);
        twin::merge(&mut document, patch);
        self.replace(document, version);
        true
    }

    fn replace(&mut self, document: Map<String, Value>, version: u64) {
        self.document = Arc::new(document);
        self.shown = shown(&self.document);
        self.version = version;
    }

    /// See for each plugin whether there is a change; after anything that may have made or settled one.
    pub(crate) fn reconsider(&mut self, now: Instant, lineup: &Lineup) {
        if !self.known {
            return;
        }
        for plugin in lineup.plugins.iter().filter(|plugin| !plugin.watched.is_empty()) {
            let view = view(&self.shown, &plugin.watched);
            let reaction = self.reactions.entry(plugin.name.clone()).or_default();
            if reaction.patch(plugin, &view).is_empty() {
                (reaction.due, reaction.failed, reaction.failures) = (None, None, 0);
                continue;
            }
            let same_as_failed =
                reaction.failed.as_ref().is_some_and(|failed| failed.0 == plugin.id && failed.1 == view);
            match reaction.due {
                Some(_) if same_as_failed => {}
                Some(due) => reaction.due = Some(due.min(now)),
                None => reaction.due = Some(now),
            }
        }
    }

    /// The plugin whose change is due first, and when.
    pub(crate) fn next<'a>(
        &self,
        lineup: &'a Lineup,
        not_before: impl Fn(&Plugin) -> Option<Instant>,
    ) -> Option<(Instant, &'a Arc<Plugin>)> {
        let due = |plugin: &Plugin| {
            let due = self.reactions.get(&plugin.name).filter(|_| !plugin.watched.is_empty())?.due?;
            Some(not_before(plugin).map_or(due, |pause| due.max(pause)))
        };
        lineup.plugins.iter().filter_map(|plugin| Some((due(plugin)?, plugin))).min_by_key(|(due, _)| *due)
    }

    /// Take the plugin's change in hand; [`Desired::done`], [`Desired::failed`] or neither and [`Desired::reconsider`]
    /// follows.
    pub(crate) fn take(&mut self, plugin: &Plugin) -> Change {
        let view = view(&self.shown, &plugin.watched);
        let reaction = self.reactions.entry(plugin.name.clone()).or_default();
        reaction.due = None;
        Change { version: self.version, patch: reaction.patch(plugin, &view), view }
    }

    pub(crate) fn done(&mut self, name: &PluginName, applied: Applied) {
        let reaction = self.reactions.entry(name.clone()).or_default();
        *reaction = Reaction { applied, ..Reaction::default() };
    }

    /// The change comes again after a delay that grows with the failures in a row.
    pub(crate) fn failed(
        &mut self,
        now: Instant,
        plugin: &Plugin,
        view: Map<String, Value>,
        delay: impl FnOnce(u32) -> Duration,
    ) {
        let reaction = self.reactions.entry(plugin.name.clone()).or_default();
        reaction.failures = reaction.failures.saturating_add(1);
        reaction.due = Some(now + delay(reaction.failures));
        reaction.failed = Some((plugin.id.clone(), view));
    }
}

impl Reaction {
    /// What is left to deliver. A version that watches less than its predecessor is not told that the rest is gone.
    fn patch(&self, plugin: &Plugin, view_now: &Map<String, Value>) -> Map<String, Value> {
        twin::diff(&view(&self.applied.view, &plugin.watched), view_now)
    }
}

fn shown(document: &Arc<Map<String, Value>>) -> Arc<Map<String, Value>> {
    if !document.contains_key(HOST_KEY) {
        return document.clone();
    }
    let mut shown = Map::clone(document);
    shown.remove(HOST_KEY);
    Arc::new(shown)
}

/// The part of `document` at the `watched` paths, which are names joined by dots.
fn view(document: &Map<String, Value>, watched: &[String]) -> Map<String, Value> {
    let mut view = Map::new();
    for path in watched {
        copy_path(&mut view, document, path);
    }
    view
}

fn copy_path(view: &mut Map<String, Value>, document: &Map<String, Value>, path: &str) {
    let Some((name, rest)) = path.split_once('.') else {
        if let Some(value) = document.get(path) {
            view.insert(path.to_owned(), value.clone());
        }
        return;
    };
    let Some(Value::Object(inner)) = document.get(name) else { return };
    let mut part = match view.remove(name) {
        Some(Value::Object(part)) => part,
        _ => Map::new(),
    };
    copy_path(&mut part, inner, rest);
    if !part.is_empty() {
        view.insert(name.to_owned(), Value::Object(part));
    }
}

fn forget_values(object: &mut Map<String, Value>) {
    for value in object.values_mut() {
        match value {
            Value::Object(inner) => forget_values(inner),
            // No document holds a null, so this differs from whatever comes.
            other => *other = Value::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn a_view_is_what_the_paths_reach() {
        let document = object(json!({"a": 1, "b": {"c": {"d": 2}, "e": 3}, "f": [1]}));
        for (watched, expected) in [
            (vec!["a", "missing"], json!({"a": 1})),
            (vec!["b.c"], json!({"b": {"c": {"d": 2}}})),
            (vec!["b.e", "b.c.d"], json!({"b": {"c": {"d": 2}, "e": 3}})),
            (vec!["b", "b.c"], json!({"b": {"c": {"d": 2}, "e": 3}})),
            (vec!["b.c", "b"], json!({"b": {"c": {"d": 2}, "e": 3}})),
            (vec!["a.x", "f.0", "b.missing", "b.e.x"], json!({})),
        ] {
            let watched: Vec<String> = watched.into_iter().map(str::to_owned).collect();
            assert_eq!(Value::Object(view(&document, &watched)), expected, "{watched:?}");
        }
    }

    #[test]
    fn the_hosts_key_is_not_shown() {
        let document = Arc::new(object(json!({"latch": {"plugins": {}}, "a": 1})));
        assert_eq!(*shown(&document), object(json!({"a": 1})));
        let plain = Arc::new(object(json!({"a": 1})));
        assert!(Arc::ptr_eq(&shown(&plain), &plain));
    }
}
