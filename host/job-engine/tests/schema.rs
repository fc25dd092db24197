//! The schema of policies says what the reader does.

use iothub_protocol::id::JobId;
use iothub_protocol::job::JobRequest;
use serde_json::{Value, json};

/// The field `latch` of a job that is created with this one and shown again; `None` if it is refused.
fn shown(latch: &Value) -> Option<Value> {
    let body = json!({"type": "scheduleUpdateTwin", "queryCondition": "*", "latch": latch,
        "maxExecutionTimeInSeconds": 2_592_000,
        "updateTwin": {"etag": "*", "properties": {"desired": {"latch": {"plugins": {"door": "1.0.0"}}}}}});
    let id = JobId::parse("j").expect("an id");
    let request = JobRequest::from_json(id, body.to_string().as_bytes()).ok()?;
    Some(request.to_json()["latch"].clone())
}

fn schema() -> Value {
    serde_json::from_str(include_str!("../policy.schema.json")).expect("JSON")
}

/// Every field of the schema within `value`, by its way there and with its schema.
fn fields<'s>(schema: &'s Value, value: &Value, way: &str, found: &mut Vec<(String, &'s Value)>) {
    if let Some(properties) = schema["properties"].as_object() {
        assert_eq!(schema["additionalProperties"], json!(false), "{way}");
        for (name, field) in properties {
            let way = format!("{way}/{name}");
            found.push((way.clone(), field));
            fields(field, &value[name], &way, found);
        }
    }
    if schema.get("items").is_some() {
        fields(&schema["items"], &value[0], &format!("{way}/0"), found);
    }
}

#[test]
fn the_schema_has_the_fields_bounds_and_defaults_of_the_reader() {
    let full = json!({"version": 1, "policy": {
        "stages": [{"percent": 100, "successThreshold": 80, "minimumSample": 7, "pauseInSeconds": 6}],
        "rate": 5,
        "abort": {"failurePercent": 4, "minimum": 3, "windowInSeconds": 2},
        "succeed": {"plugin": "door", "soakInSeconds": 1, "timeoutInSeconds": 9},
        "onAbort": "unpin",
    }});
    assert_eq!(shown(&full).as_ref(), Some(&full), "all of it is read");
    let schema = schema();
    let mut found = Vec::new();
    fields(&schema, &full, "", &mut found);
    assert_eq!(found.len(), 17, "and no more");
    for (way, field) in found {
        let value = full.pointer(&way).unwrap_or_else(|| panic!("{way} is in the schema only"));
        let with = |changed: Value| {
            let mut latch = full.clone();
            *latch.pointer_mut(&way).expect("found above") = changed;
            shown(&latch)
        };
        if let Some(default) = field.get("default") {
            let (parent, name) = way.rsplit_once('/').expect("a way");
            let mut latch = full.clone();
            let parent = latch.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
            parent.remove(name);
            assert_eq!(shown(&latch).expect("optional").pointer(&way), Some(default), "{way}");
        }
        for (bound, beyond) in [("minimum", -1), ("maximum", 1)] {
            let Some(bound) = field.get(bound).and_then(Value::as_i64) else { continue };
            // A stage of less than everything is refused for another reason.
            assert!(way.ends_with("percent") || with(json!(bound)).is_some(), "{way} {bound}");
            assert!(with(json!(bound + beyond)).is_none(), "{way} {bound}");
        }
        for choice in field["enum"].as_array().into_iter().flatten() {
            assert!(with(choice.clone()).is_some(), "{way} {choice}");
        }
        if value.is_number() {
            assert!(with(json!("1")).is_none(), "{way} is no text");
        }
    }
}
