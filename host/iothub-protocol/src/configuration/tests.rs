use proptest::prelude::*;

use super::*;

fn id() -> ConfigurationId {
    ConfigurationId::parse("c1").expect("an id")
}

fn request(body: &Value) -> Result<ConfigurationRequest, HubError> {
    ConfigurationRequest::from_json(&id(), body.to_string().as_bytes())
}

fn object_of(value: Value) -> Map<String, Value> {
    value.as_object().cloned().expect("an object")
}

fn chiller() -> Value {
    json!({
        "id": "c1",
        "schemaVersion": "1.0",
        "labels": {"version": "3"},
        "content": {"deviceContent": {"properties.desired.chiller": {"temperature": 66}}},
        "targetCondition": "tags.site = 'A'",
        "priority": 5,
        "metrics": {"queries": {"cold": "SELECT deviceId FROM devices WHERE properties.reported.cold = true"}},
    })
}

#[test]
fn a_configuration_is_shown_as_azure_shows_it() {
    let now = DateTime::from_timestamp(1_795_546_687, 0).expect("a time");
    let made = Configuration::new(id(), request(&chiller()).expect("a request"), now);
    let results = ConfigurationResults { targeted: 3, applied: 2, metrics: BTreeMap::from([("cold".to_owned(), 1)]) };
    let mut expected = chiller();
    expected["createdTimeUtc"] = json!("2026-11-24T18:58:07.000Z");
    expected["lastUpdatedTimeUtc"] = json!("2026-11-24T18:58:07.000Z");
    expected["systemMetrics"] = json!({
        "results": {"targetedCount": 3, "appliedCount": 2},
        "queries": {
            "targetedCount": "select deviceId from devices where tags.site = 'A'",
            "appliedCount": "select deviceId from devices where configurations.[[c1]].status = 'Applied'",
        },
    });
    expected["metrics"]["results"] = json!({"cold": 1});
    expected["etag"] = json!(made.etag());
    assert_eq!(made.to_json(&results), expected);
    let stored = serde_json::to_string(&made).expect("JSON");
    assert_eq!(serde_json::from_str::<Configuration>(&stored).expect("a configuration"), made);
    for query in ["targetedCount", "appliedCount"] {
        let query = expected["systemMetrics"]["queries"][query].as_str().expect("a query");
        assert!(metric(query).is_ok(), "{query} can be asked");
    }
    // What was got can be sent back.
    let again = made.update(request(&expected).expect("a request"), now).expect("an update");
    assert_eq!((again.revision, &again.content), (made.revision + 1, &made.content));
}

#[test]
fn a_configuration_may_be_for_modules() {
    let body = json!({
        "content": {"moduleContent": {"properties.desired.bolts": 2}},
        "targetCondition": "FROM devices.modules WHERE moduleId = 'lock'",
        "metrics": {"queries": {"m": "SELECT moduleId FROM devices.modules WHERE properties.reported.bolts = 2"}},
    });
    let made = Configuration::new(id(), request(&body).expect("a request"), DateTime::UNIX_EPOCH);
    assert_eq!((made.subject, made.settings().len()), (Subject::Modules, 1));
    let shown = made.to_json(&ConfigurationResults::default());
    assert_eq!(shown["content"], body["content"]);
    let queries = &shown["systemMetrics"]["queries"];
    let targeted = "select deviceId, moduleId FROM devices.modules WHERE moduleId = 'lock'";
    assert_eq!(queries["targetedCount"], targeted);
    for query in ["targetedCount", "appliedCount"] {
        let query = metric(queries[query].as_str().expect("a query")).expect("it can be asked");
        assert_eq!(query.source(), Source::Modules);
    }
    // What was got can be sent back; what is for devices cannot take its place.
    assert!(made.update(request(&shown).expect("a request"), DateTime::UNIX_EPOCH).is_ok());
    let devices = request(&json!({"targetCondition": "*"})).expect("a request");
    assert!(made.update(devices, DateTime::UNIX_EPOCH).is_err());
    let content = request(&json!({"content": {"deviceContent": {"properties.desired.bolts": 2}}})).expect("a request");
    assert!(made.update(content, DateTime::UNIX_EPOCH).is_err(), "the same settings for others are another content");
    let old = r#"{"id":"c1","schema_version":"1.0","labels":null,"content":{},"target_condition":"","priority":0,
        "metrics":{},"created":"2026-11-24T00:00:00Z","updated":"2026-11-24T00:00:00Z","revision":1}"#;
    let old: Configuration = serde_json::from_str(old).expect("one of before there were modules");
    assert_eq!(old.subject, Subject::Devices);
}

#[test]
fn what_is_left_out_is_as_azure_has_it() {
    let made = Configuration::new(id(), request(&json!({})).expect("a request"), DateTime::UNIX_EPOCH);
    let shown = made.to_json(&ConfigurationResults::default());
    for (name, expected) in [
        ("labels", Value::Null),
        ("priority", json!(0)),
        ("targetCondition", json!("")),
        ("schemaVersion", json!("1.0")),
        ("content", json!({"deviceContent": {}})),
        ("metrics", json!({"results": {}, "queries": {}})),
    ] {
        assert_eq!(shown[name], expected, "{name}");
    }
    assert_eq!(target("").expect("none"), None);
    assert!(target("*").expect("all").is_some_and(|condition| condition.is_all()));
}

#[test]
fn content_stays_as_it_was_made() {
    let made = Configuration::new(id(), request(&chiller()).expect("a request"), DateTime::UNIX_EPOCH);
    let mut other = chiller();
    other["content"]["deviceContent"]["properties.desired.chiller"]["temperature"] = json!(67);
    let refused = made.update(request(&other).expect("a request"), DateTime::UNIX_EPOCH).expect_err("another content");
    assert_eq!(refused.code, ErrorCode::ArgumentInvalid);
    other["content"] = Value::Null;
    other["priority"] = json!(7);
    let updated = made.update(request(&other).expect("a request"), DateTime::UNIX_EPOCH).expect("an update");
    assert_eq!((updated.priority, updated.content), (7, made.content));
}

#[test]
fn what_is_wrong_is_named() {
    for (member, value, text) in [
        ("id", json!("c2"), "of the configuration \"c2\""),
        ("priority", json!(-1), "priority"),
        ("priority", json!(1.5), "priority"),
        ("priority", json!(3_000_000_000_u64), "priority"),
        ("labels", json!({"a": 1}), "labels must"),
        ("labels", json!({"a": "x".repeat(129)}), "at most 128"),
        ("targetCondition", json!(7), "targetCondition must"),
        ("targetCondition", json!("tags.site ="), "targetCondition: SQL query parse failed"),
        ("targetCondition", json!("SELECT * FROM devices"), "targetCondition: SQL query parse failed"),
        ("content", json!([]), "content must"),
        ("content", json!({"deviceContent": 1}), "content.deviceContent must"),
        ("content", json!({"modulesContent": {}}), "deploys to IoT Edge"),
        ("content", json!({"moduleContent": {}}), "content.moduleContent is for modules"),
        ("content", json!({"moduleContent": {}, "deviceContent": {}}), "not both"),
        ("targetCondition", json!("FROM devices.modules WHERE moduleId = 'm'"), "modules take content.moduleContent"),
        ("content", json!({"deviceContent": {"tags.site": 1}}), "does not begin with properties.desired"),
        ("content", json!({"deviceContent": {"properties.reported.a": 1}}), "does not begin with properties.desired"),
        ("content", json!({"deviceContent": {"properties.desired.a..b": 1}}), "an empty part"),
        ("content", json!({"deviceContent": {"properties.desired": 1}}), "needs an object"),
        ("content", json!({"deviceContent": {"properties.desired.a b": 1}}), "desired"),
        ("content", json!({"deviceContent": {"properties.desired.a": "x".repeat(5000)}}), "desired"),
        ("metrics", json!({"queries": {"m": "SELECT"}}), "metrics.queries.m: SQL query parse failed"),
        ("metrics", json!({"queries": {"m": "SELECT COUNT() FROM devices"}}), "without aggregates"),
        ("metrics", json!({"queries": {"m": "SELECT * FROM devices.jobs"}}), "FROM devices"),
        ("metrics", json!({"queries": {"": "SELECT * FROM devices"}}), "a metric's name"),
    ] {
        let mut body = chiller();
        body[member] = value;
        let refused = request(&body).expect_err(text);
        assert_eq!(refused.code, ErrorCode::ArgumentInvalid, "{refused}");
        assert!(refused.message.contains(text), "{text:?}: {refused}");
    }
    let many: Map<String, Value> = (0..6).map(|n| (format!("m{n}"), json!("SELECT * FROM devices"))).collect();
    let refused = request(&json!({"metrics": {"queries": many}})).expect_err("too many");
    assert!(refused.message.contains("6 queries; the limit is 5"), "{refused}");
    let broken = ConfigurationRequest::from_json(&id(), b"{").expect_err("no JSON");
    assert_eq!(broken.code, ErrorCode::IotHubFormatError);
    for text in ["", "A", "a b", "a/b", "a[b", "\u{e9}", &"x".repeat(129)] {
        assert!(ConfigurationId::parse(text).is_err(), "{text}");
    }
}

#[test]
fn queries_can_be_tried_beforehand() {
    let body = json!({
        "targetCondition": "tags.site =",
        "customMetricQueries": {"good": "SELECT deviceId FROM devices", "bad": "SELECT"},
    });
    let answer = test_queries(body.to_string().as_bytes()).expect("an answer");
    assert!(answer["targetConditionError"].as_str().is_some_and(|text| text.contains("parse failed")), "{answer}");
    let errors = answer["customMetricQueryErrors"].as_object().expect("an object");
    assert_eq!(errors.keys().collect::<Vec<_>>(), ["bad"]);
    let fine = test_queries(b"{}").expect("an answer");
    assert_eq!(fine, json!({"targetConditionError": null, "customMetricQueryErrors": {}}));
    assert!(test_queries(b"[]").is_err());
}

#[test]
fn settings_lie_over_each_other_and_come_out_again() {
    let setting = |path: &str, value: Value| Setting::parse(Subject::Devices, path, &value).expect("a setting");
    let mut patch = Map::new();
    for (path, value) in [
        ("properties.desired.a", json!({"b": 1, "c": {"d": 2}})),
        ("properties.desired.a.c", json!({"e": 3})),
        ("properties.desired.a.b", json!(null)),
        ("properties.desired.x.y", json!([1])),
        ("properties.desired", json!({"z": true})),
    ] {
        setting(path, value).lay_over(&mut patch);
    }
    let expected = json!({"a": {"b": null, "c": {"d": 2, "e": 3}}, "x": {"y": [1]}, "z": true});
    assert_eq!(Value::Object(patch), expected);

    let mut desired = object_of(json!({"a": {"b": 9, "c": {"d": 2}, "own": 1}, "x": {"y": [1]}, "z": true}));
    for (path, value, left) in [
        ("properties.desired.x.y", json!([1]), json!({"a": {"b": 9, "c": {"d": 2}, "own": 1}, "z": true})),
        ("properties.desired.a", json!({"b": 1, "c": {"d": 2}}), json!({"a": {"own": 1}, "z": true})),
        ("properties.desired.a.own", json!(null), json!({"a": {"own": 1}, "z": true})),
        ("properties.desired.not.there", json!(1), json!({"a": {"own": 1}, "z": true})),
        ("properties.desired", json!({"z": true}), json!({"a": {"own": 1}})),
    ] {
        setting(path, value).take_out(&mut desired);
        assert_eq!(Value::Object(desired.clone()), left, "{path}");
    }
}

#[test]
fn marks_are_read_back() {
    let marks = ConfigurationMarks::from([
        (id(), ConfigurationStatus::Applied),
        (ConfigurationId::parse("c2").expect("an id"), ConfigurationStatus::Targeted),
    ]);
    let shown = marks_to_json(&marks);
    assert_eq!(shown, json!({"c1": {"status": "Applied"}, "c2": {"status": "Targeted"}}));
    assert_eq!(marks_from_json(&shown), marks);
    assert_eq!(
        marks_from_json(&json!({"c1": {"status": "odd"}, "A": {"status": "Applied"}})),
        ConfigurationMarks::new()
    );
}

proptest! {
    #[test]
    fn no_body_makes_the_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = ConfigurationRequest::from_json(&id(), &body);
        let _ = test_queries(&body);
    }
}
