//! Merge patches (RFC 7396): applied, found, and made of a replacement.

use serde_json::{Map, Value};

/// Merge `patch` into `target` (RFC 7396): objects merge, `null` deletes, anything else replaces.
pub fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(inner) => merge(object_at(target, key), inner),
            other => {
                target.insert(key.clone(), other.clone());
            }
        }
    }
}

/// The merge patch that leads from `old` to `new`: removed keys are `null`, what is equal is left out.
///
/// Whoever must combine patches keeps both documents and takes their difference: two merge patches have no exact sum
/// (`{"a": null}` then `{"a": {}}` empties an object, which no single patch can say without knowing what was there).
pub fn diff(old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        match (old.get(key), value) {
            (Some(before), after) if before == after => {}
            (Some(Value::Object(before)), Value::Object(after)) => {
                patch.insert(key.clone(), Value::Object(diff(before, after)));
            }
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    patch
}

/// The merge patch that turns `old` into `new` and tells all of `new`, unlike [`diff`]: what is in `old` only is
/// `null`, at every level.
pub(super) fn replacement(old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let here = new.iter().map(|(key, value)| {
        let value = match (old.get(key), value) {
            (Some(Value::Object(before)), Value::Object(after)) => Value::Object(replacement(before, after)),
            _ => value.clone(),
        };
        (key.clone(), value)
    });
    gone.chain(here).collect()
}

pub(super) fn object_at<'a>(parent: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let slot = parent.entry(key).or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().expect("an object was just put there")
}
