//! Desired or reported properties, with a stamp for each.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::merge::object_at;
use crate::time;

/// Desired or reported properties with their bookkeeping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Section {
    pub properties: Map<String, Value>,
    /// `$lastUpdated` (and `$lastUpdatedVersion`, desired only) for each level, mirroring `properties`.
    pub metadata: Map<String, Value>,
    /// Begins at 1 and grows by one with each change.
    pub version: u64,
}

impl Section {
    pub(super) fn new(now: DateTime<Utc>) -> Section {
        let metadata = Map::from_iter([("$lastUpdated".to_owned(), json!(time::format(now)))]);
        Section { properties: Map::new(), metadata, version: 1 }
    }

    /// Merge and count.
    pub(super) fn merge(&mut self, patch: &Map<String, Value>, stamped: Stamped, now: DateTime<Utc>) {
        self.version += 1;
        let version = matches!(stamped, Stamped::WithVersion).then_some(self.version);
        let stamp = Stamp { time: time::format(now), version };
        merge_stamped(&mut self.properties, &mut self.metadata, patch, &stamp);
    }

    /// Hold `properties` and nothing else, as the next version.
    pub(super) fn replace(&mut self, properties: &Map<String, Value>, stamped: Stamped, now: DateTime<Utc>) {
        self.properties.clear();
        self.metadata.clear();
        self.merge(properties, stamped, now);
    }

    pub(super) fn to_json(&self) -> Value {
        self.clone().into_json()
    }

    pub(super) fn into_json(self) -> Value {
        let mut body = self.properties;
        body.insert("$metadata".into(), Value::Object(self.metadata));
        body.insert("$version".into(), json!(self.version));
        Value::Object(body)
    }

    /// Without the metadata, as a device gets it.
    pub(super) fn versioned(&self) -> Value {
        let mut body = self.properties.clone();
        body.insert("$version".into(), json!(self.version));
        Value::Object(body)
    }
}

/// What stands beside each property.
#[derive(Clone, Copy)]
pub(super) enum Stamped {
    /// When it changed: reported properties.
    WithTime,
    /// When, and in which version: desired properties.
    WithVersion,
}

struct Stamp {
    time: String,
    version: Option<u64>,
}

impl Stamp {
    fn put(&self, metadata: &mut Map<String, Value>) {
        metadata.insert("$lastUpdated".into(), json!(self.time));
        if let Some(version) = self.version {
            metadata.insert("$lastUpdatedVersion".into(), json!(version));
        }
    }
}

/// [`super::merge`], and the same changes to the metadata beside it. Entries of deleted keys go; each parent's stamp
/// moves.
fn merge_stamped(
    target: &mut Map<String, Value>,
    metadata: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    stamp: &Stamp,
) {
    stamp.put(metadata);
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
                metadata.remove(key);
            }
            Value::Object(inner) => {
                if !target.get(key).is_some_and(Value::is_object) {
                    metadata.insert(key.clone(), Value::Object(Map::new()));
                }
                merge_stamped(object_at(target, key), object_at(metadata, key), inner, stamp);
            }
            other => {
                let mut leaf = Map::new();
                stamp.put(&mut leaf);
                target.insert(key.clone(), other.clone());
                metadata.insert(key.clone(), Value::Object(leaf));
            }
        }
    }
}
