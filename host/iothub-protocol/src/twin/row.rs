//! A twin as a row that a query looks at in parts.

use serde_json::{Map, Value, json};

use super::Twin;
use crate::address::Address;
use crate::query::Parts;

impl Twin {
    /// The ids and those members of [`Twin::to_json`] that `parts` names except for
    /// [`rest`](Parts::rest), which needs more than a twin. A query over many rows takes a fraction of the time so.
    pub fn row(self, address: &Address, parts: Parts) -> Value {
        let mut row = Map::from_iter([("deviceId".to_owned(), json!(address.device().as_str()))]);
        if let Some(module) = address.module() {
            row.insert("moduleId".to_owned(), json!(module.as_str()));
        }
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
        let now = DateTime::UNIX_EPOCH;
        let mut twin = Twin::new(now);
        let patch = br#"{"tags":{"site":"A"},"properties":{"desired":{"n":1}}}"#;
        twin.patch(&TwinPatch::from_json(patch).expect("a patch"), now).expect("fits");
        twin.report(json!({"m": {"k": 2}}).as_object().expect("an object"), None, now).expect("fits");
        for (address, text) in [
            ("d1", "SELECT deviceId FROM devices WHERE tags.site = 'A'"),
            ("d1", "SELECT tags, properties.desired.n FROM devices"),
            ("d1", "SELECT properties.reported.m.k AS k, properties.reported.$version AS v FROM devices"),
            ("d1", "SELECT properties FROM devices"),
            ("d1", "SELECT COUNT() AS n FROM devices WHERE properties.desired.$metadata.n.$lastUpdatedVersion = 2"),
            ("d1/m1", "SELECT deviceId, moduleId FROM devices.modules WHERE moduleId = 'm1'"),
            ("d1/m1", "SELECT moduleId, COUNT() AS n FROM devices.modules GROUP BY moduleId"),
        ] {
            let address = Address::parse(address).expect("an address");
            let facts = TwinFacts {
                address: address.clone(),
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
            let query = Query::parse(text).expect(text);
            let parts = query.parts();
            assert!(!parts.rest, "{text}");
            let answer = query.run([twin.to_json(&facts)]);
            assert!(!answer.is_empty(), "{text}");
            assert_eq!(query.run([twin.clone().row(&address, parts)]), answer, "{text}");
        }
    }
}
