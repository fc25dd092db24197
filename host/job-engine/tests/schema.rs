//! The schema of policies says what the reader does.

use iothub_protocol::id::JobId;
use iothub_protocol::job::JobRequest;
use serde_json::{Value, json};

/// The field `latch` of a job that is created with this one and shown again; `None` if it is refused.
fn shown(latch: &Value) -> Option<Value> {
    let mut body = json!({"queryCondition": "*", "latch": latch, "maxExecutionTimeInSeconds": 2_592_000,
        "updateTwin": {"etag": "*", "properties": {"desired": {"latch": {"plugins": {"door": "1.0.0"}}}}},
        "cloudToDeviceMethod": {"methodName": "lockDoor"}});
    let is_twin = latch["policy"]["succeed"].get("plugin").is_some();
    body["type"] = json!(if is_twin { "scheduleUpdateTwin" } else { "scheduleDeviceMethod" });
    let id = JobId::parse("j").expect("an id");
    let request = JobRequest::from_json(id, body.to_string().as_bytes()).ok()?;
    Some(request.to_json()["latch"].clone())
}

fn schema() -> Value {
    serde_json::from_str(include_str!("../policy.schema.json")).expect("JSON")
}

/// Follows references, and of several forms takes the one that `value` has.
fn form<'s>(root: &'s Value, schema: &'s Value, value: &Value) -> &'s Value {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = root.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference}"));
        return form(root, target, value);
    }
    let Some(forms) = schema["anyOf"].as_array() else { return schema };
    let forms = forms.iter().map(|one| form(root, one, value));
    let has = |form: &&Value| match form["type"].as_str() {
        Some("object") => {
            value.as_object().is_some_and(|value| value.keys().all(|name| form["properties"].get(name).is_some()))
        }
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        _ => value.is_number(),
    };
    forms.into_iter().find(has).unwrap_or_else(|| panic!("{value} has none of the forms"))
}

/// Every field of the schema within `value`, by its way there and with its schema.
fn fields<'s>(root: &'s Value, schema: &'s Value, value: &Value, way: &str, found: &mut Vec<(String, &'s Value)>) {
    let schema = form(root, schema, value);
    if let Some(properties) = schema["properties"].as_object() {
        assert_eq!(schema["additionalProperties"], json!(false), "{way}");
        for (name, field) in properties {
            // Of a choice one is there.
            let choices = schema["not"]["required"].as_array();
            let is_choice =
                schema["maxProperties"] == json!(1) || choices.is_some_and(|all| all.contains(&json!(name)));
            if is_choice && value.get(name).is_none() {
                continue;
            }
            let way = format!("{way}/{name}");
            // Steps do not go with a report, and a step has one of two actions.
            // Nor does a series with being one of another's jobs.
            // Nothing comes to a list.
            let choices = ["/then", "/then/0/updateTwin", "/schedule", "/series", "/targets/continuous"];
            if choices.contains(&way.as_str()) && value.get(name).is_none() {
                continue;
            }
            let value = &value[name];
            assert!(!value.is_null(), "{way} is in the schema only");
            found.push((way.clone(), form(root, field, value)));
            fields(root, field, value, &way, found);
        }
    }
    if schema.get("items").is_some() {
        let way = format!("{way}/0");
        found.push((way.clone(), form(root, &schema["items"], &value[0])));
        fields(root, &schema["items"], &value[0], &way, found);
    }
}

/// Policies that have every field between them, and how many fields the schema finds in each.
fn full() -> [(Value, usize); 2] {
    let stages = json!([{"percent": 100, "successThreshold": 80, "minimumSample": 7, "pauseInSeconds": 6,
        "approval": true}]);
    let twin = json!({"version": 1, "policy": {
        "stages": stages, "rate": 5, "inDoubt": "again", "onAbort": "unpin", "groupBy": "tags.building", "priority": 7,
        "abort": [{"failurePercent": 4, "on": ["timeout"], "minimum": 3, "windowInSeconds": 2, "perGroup": true}],
        "retry": [{"on": ["fault"], "retries": 3, "backoffInSeconds": 4, "maximumBackoffInSeconds": 5}],
        "succeed": {"plugin": "door", "soakInSeconds": 1, "timeoutInSeconds": 9},
        "offline": {"waitInSeconds": 0, "then": "fail"},
        "windows": [{"cron": "0 2 * * *", "durationInSeconds": 60,
            "timeZone": {"tag": "tags.zone", "default": "UTC"}}],
        "end": {"afterInSeconds": 60, "then": "force"}, "deviceTimeoutInSeconds": 60,
    }, "targets": {"devices": ["a"], "exclude": {"condition": "tags.pilot = true", "devices": ["b"]}},
        "schedule": {"cron": "0 2 * * *", "timeZone": "Europe/Berlin", "from": "2026-12-24T18:00:00.000Z",
        "until": "2027-12-24T18:00:00.000Z", "count": 9, "missed": "run", "overlap": "skip"}});
    let then = json!([{"type": "scheduleDeviceMethod", "cloudToDeviceMethod": {"methodName": "report", "payload": null},
        "when": {"statuses": [[200, 299]], "condition": "tags.a = 1", "withinInSeconds": 5, "otherwise": "finish"}}]);
    let by_condition = json!([{"condition": "tags.ring = 'canary'", "successThreshold": 80, "minimumSample": 7,
        "pauseInSeconds": 6, "approval": true}, {"percent": 100, "successThreshold": 90, "pauseInSeconds": 0}]);
    let method = json!({"version": 1, "policy": {
        "stages": by_condition, "inDoubt": "fail", "onAbort": "keep", "groupBy": "tags.building", "priority": 7,
        "rate": {"base": 5, "factor": 3, "maximum": 50, "growAfter": {"started": 10}},
        "abort": [{"failurePercent": 4, "on": ["timeout"], "minimum": 3, "windowInSeconds": 2, "perGroup": true}],
        "retry": [{"on": ["fault"], "retries": 3, "backoffInSeconds": 4, "maximumBackoffInSeconds": 5}],
        "succeed": {"statuses": [[200, 299]]},
        "offline": {"waitInSeconds": 60, "then": "skip"},
        "windows": [{"cron": "0 2 * * *", "durationInSeconds": 60, "timeZone": "Europe/Berlin"}],
        "end": {"at": "2026-12-24T18:00:00.000Z", "then": "cancel"}, "deviceTimeoutInSeconds": 60,
    }, "targets": {"continuous": true, "exclude": {"condition": "tags.pilot = true", "list": "upload"}}, "then": then,
        "series": {"job": "nightly", "queued": true}});
    [(twin, 62), (method, 69)]
}

#[test]
fn the_schema_has_the_fields_bounds_and_defaults_of_the_reader() {
    let schema = schema();
    for (full, count) in full() {
        assert_eq!(shown(&full).as_ref(), Some(&full), "all of it is read");
        let mut found = Vec::new();
        fields(&schema, &schema, &full, "", &mut found);
        assert_eq!(found.len(), count, "and no more");
        for (way, field) in found {
            agrees(&full, &way, field);
        }
    }
}

/// The reader's bounds, default and choices of a field are the schema's.
fn agrees(full: &Value, way: &str, field: &Value) {
    let value = full.pointer(way).expect("found there");
    let is_twin = full["policy"]["succeed"].get("plugin").is_some();
    let with = |changed: Value| {
        let mut latch = full.clone();
        *latch.pointer_mut(way).expect("found there") = changed;
        shown(&latch)
    };
    if let Some(default) = field.get("default") {
        let (parent, name) = way.rsplit_once('/').expect("a way");
        let mut latch = full.clone();
        let parent = latch.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
        parent.remove(name);
        assert_eq!(shown(&latch).expect("optional").pointer(way), Some(default), "{way}");
    }
    for (bound, beyond) in [("minimum", -1), ("maximum", 1)] {
        let Some(bound) = field.get(bound).and_then(Value::as_i64) else { continue };
        // Some bounds leave no room for another field: a stage of less than everything, a base above the maximum, a
        // pause of all the time there is.
        let binds_others =
            ["percent", "base", "backoffInSeconds", "pauseInSeconds"].iter().any(|name| way.ends_with(name));
        let is_for_methods = is_twin && way.contains("/offline/");
        assert!(binds_others || is_for_methods || with(json!(bound)).is_some(), "{way} {bound}");
        assert!(with(json!(bound + beyond)).is_none(), "{way} {bound}");
    }
    for choice in field["enum"].as_array().into_iter().flatten() {
        // Where there is a rule for devices that are offline, no other may name them.
        let never = ["unknown", "version", "window"];
        let is_never = never.iter().any(|name| choice == name) || choice == "offline" && !is_twin;
        let is_excluded = way.contains("/retry/") && is_never;
        let is_for_methods = choice == "skip" && is_twin && way.contains("/offline/");
        let needs_a_pin = choice == "unpin" && !is_twin;
        let is_other_action = choice == "scheduleUpdateTwin";
        let allowed = !is_excluded && !is_for_methods && !needs_a_pin && !is_other_action;
        assert_eq!(with(choice.clone()).is_some(), allowed, "{way} {choice}");
    }
    if value.is_number() {
        assert!(with(json!("1")).is_none(), "{way} is no text");
    }
}
