//! What back ends are told of a twin: the bodies of Azure's twin change and life-cycle notifications.

use serde_json::{Map, Value, json};

use super::{Section, Twin, TwinPatch};
use crate::address::Address;

impl Twin {
    /// The body of `updateTwin` after a back end's change: what `patch` names, as it was sent, with its metadata and
    /// the section's version.
    pub fn updated_body(&self, patch: &TwinPatch) -> Value {
        let desired = patch.desired.as_ref().filter(|desired| !desired.is_empty());
        self.change_body(patch.tags.as_ref(), "desired", desired.map(|desired| self.desired.changed(desired)))
    }

    /// The body of `updateTwin` after a device's report.
    pub fn reported_body(&self, patch: &Map<String, Value>) -> Value {
        self.change_body(None, "reported", Some(self.reported.changed(patch)))
    }

    /// The body of `replaceTwin`, `createDeviceIdentity` and `deleteDeviceIdentity`: the twin whole.
    pub fn whole_body(&self, address: &Address) -> Value {
        let mut body = json!({
            "deviceId": address.device(),
            "etag": self.etag(),
            "version": self.version,
            "properties": {"desired": self.desired.to_json(), "reported": self.reported.to_json()},
        });
        if let Some(module) = address.module() {
            body["moduleId"] = json!(module);
        }
        if !self.tags.is_empty() {
            body["tags"] = json!(self.tags);
        }
        body
    }

    fn change_body(&self, tags: Option<&Map<String, Value>>, name: &str, section: Option<Value>) -> Value {
        let mut body = json!({"version": self.version});
        if let Some(tags) = tags {
            body["tags"] = json!(tags);
        }
        if let Some(section) = section {
            body["properties"] = json!({name: section});
        }
        body
    }
}

impl Section {
    /// A patch that was merged, with the metadata of what it touched.
    fn changed(&self, patch: &Map<String, Value>) -> Value {
        let mut body = patch.clone();
        body.insert("$metadata".into(), Value::Object(stamps_of(patch, &self.metadata)));
        body.insert("$version".into(), json!(self.version));
        Value::Object(body)
    }
}

/// The stamps of this level and of the keys in `patch`; a key that the patch deleted has none.
fn stamps_of(patch: &Map<String, Value>, metadata: &Map<String, Value>) -> Map<String, Value> {
    let own = metadata.iter().filter(|(key, _)| key.starts_with('$'));
    let mut stamps: Map<String, Value> = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    for (key, value) in patch {
        match (value, metadata.get(key)) {
            (Value::Object(inner), Some(Value::Object(below))) => {
                stamps.insert(key.clone(), Value::Object(stamps_of(inner, below)));
            }
            (_, Some(stamp)) => {
                stamps.insert(key.clone(), stamp.clone());
            }
            (_, None) => {}
        }
    }
    stamps
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};

    use super::*;

    const LATER: &str = "1970-01-01T00:00:05.000Z";

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    fn later() -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(5)
    }

    fn twin() -> Twin {
        let mut twin = Twin::new(DateTime::UNIX_EPOCH);
        let first = TwinPatch { tags: None, desired: Some(object(json!({"a": {"b": 1, "c": 2}, "gone": 1}))) };
        twin.patch(&first, DateTime::UNIX_EPOCH).expect("a patch");
        twin
    }

    #[test]
    fn an_update_tells_what_changed_and_its_metadata_alone() {
        let mut twin = twin();
        let patch = TwinPatch {
            tags: Some(object(json!({"site": "A"}))),
            desired: Some(object(json!({"a": {"b": 7}, "gone": null}))),
        };
        twin.patch(&patch, later()).expect("a patch");
        let stamp = json!({"$lastUpdated": LATER, "$lastUpdatedVersion": 3});
        let mut inner = stamp.clone();
        inner["b"] = stamp.clone();
        let mut metadata = stamp;
        metadata["a"] = inner;
        let desired = json!({"a": {"b": 7}, "gone": null, "$metadata": metadata, "$version": 3});
        let expected = json!({"version": 3, "tags": {"site": "A"}, "properties": {"desired": desired}});
        assert_eq!(twin.updated_body(&patch), expected);
    }

    #[test]
    fn tags_alone_bring_no_properties_and_a_report_no_versions_of_keys() {
        let mut twin = twin();
        let patch = TwinPatch { tags: Some(object(json!({"site": null}))), desired: Some(Map::new()) };
        twin.patch(&patch, later()).expect("a patch");
        assert_eq!(twin.updated_body(&patch), json!({"version": 3, "tags": {"site": null}}));

        let report = object(json!({"door": "open"}));
        twin.report(&report, None, later()).expect("a report");
        let stamp = json!({"$lastUpdated": LATER});
        let metadata = json!({"$lastUpdated": LATER, "door": stamp});
        let reported = json!({"door": "open", "$metadata": metadata, "$version": 2});
        assert_eq!(twin.reported_body(&report), json!({"version": 3, "properties": {"reported": reported}}));
    }

    #[test]
    fn the_whole_twin_stands_in_a_replacement() {
        let body = twin().whole_body(&Address::parse("d1").expect("an address"));
        assert_eq!(
            (&body["deviceId"], &body["etag"], &body["version"]),
            (&json!("d1"), &json!("AAAAAAAAAAI="), &json!(2))
        );
        assert_eq!(body["properties"]["desired"]["a"], json!({"b": 1, "c": 2}));
        assert_eq!(body["properties"]["reported"]["$version"], json!(1));
        assert!(body.get("tags").is_none() && body.get("moduleId").is_none());
        let of_module = twin().whole_body(&Address::parse("d1/m1").expect("an address"));
        assert_eq!((&of_module["deviceId"], &of_module["moduleId"]), (&json!("d1"), &json!("m1")));
    }
}
