//! A twin as a row that a query looks at in parts.

use serde_json::{Map, Value, json};

use super::Twin;
use crate::id::DeviceId;
use crate::query::Parts;

impl Twin {
    /// The device's id and those members of [`Twin::to_json`] that `parts` names except for
    /// [`rest`](Parts::rest), which needs more than a twin. A query over many rows takes a fraction of the time so.
    pub fn row(self, device_id: &DeviceId, parts: Parts) -> Value {
        let mut row = Map::from_iter([("deviceId".to_owned(), json!(device_id.as_str()))]);
        if parts.tags {
            row.insert("tags".to_owned(), Value::Object(self.tags));
        }
        if parts.desired || parts.reported {
            let sections = [("desired", parts.desired, self.desired), ("reported", parts.reported, self.reported)];
            let asked = sections.into_iter().filter(|(_, is_asked, _)| *is_asked);
            let properties = asked.map(|(name, _, section)| (name.to_owned(), section.into_json()));
            row.insert("properties".to_owned(), Value::Object(properties.collect()));
        }
        Value::Object(row)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::query::Query;
    use crate::twin::{TwinFacts, TwinPatch};

    #[test]
    fn a_query_answers_the_same_from_the_parts_that_it_looks_at() {
        let id = DeviceId::parse("d1").expect("an id");
        let now = DateTime::UNIX_EPOCH;
        let mut twin = Twin::new(now);
        let patch = br#"{"tags":{"site":"A"},"properties":{"desired":{"n":1}}}"#;
        twin.patch(&TwinPatch::from_json(patch).expect("a patch"), now).expect("fits");
        twin.report(json!({"m": {"k": 2}}).as_object().expect("an object"), None, now).expect("fits");
        let facts = TwinFacts {
            device_id: id.clone(),
            device_etag: "e".into(),
            enabled: true,
            status_reason: None,
            status_updated: None,
            connected: false,
            last_activity: None,
            message_count: 0,
            authentication_type: "sas",
            thumbprints: Value::Null,
        };
        for text in [
            "SELECT deviceId FROM devices WHERE tags.site = 'A'",
            "SELECT tags, properties.desired.n FROM devices",
            "SELECT properties.reported.m.k AS k, properties.reported.$version AS v FROM devices",
            "SELECT properties FROM devices",
            "SELECT COUNT() AS n FROM devices WHERE properties.desired.$metadata.n.$lastUpdatedVersion = 2",
        ] {
            let query = Query::parse(text).expect(text);
            let parts = query.parts();
            assert!(!parts.rest, "{text}");
            assert_eq!(query.run([twin.clone().row(&id, parts)]), query.run([twin.to_json(&facts)]), "{text}");
        }
    }
}
