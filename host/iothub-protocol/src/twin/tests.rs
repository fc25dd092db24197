//! Twins: what a patch leads to, and what is refused.

use proptest::prelude::*;

use super::*;

fn object(value: Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

fn desired(value: Value) -> TwinPatch {
    TwinPatch { tags: None, desired: Some(object(value)) }
}

#[test]
fn a_patch_counts_stamps_and_makes_a_notice() {
    let now = DateTime::UNIX_EPOCH;
    let mut twin = Twin::new(now);
    assert_eq!(twin.device_json(), json!({"desired": {"$version": 1}, "reported": {"$version": 1}}));
    let notice = twin.patch(&desired(json!({"building": "43", "cfg": {"f": 1}})), now).expect("fits");
    let notice = notice.expect("a notice");
    assert_eq!(notice.to_json(), json!({"building": "43", "cfg": {"f": 1}, "$version": 2}));
    assert_eq!(DesiredNotice::from_json(notice.to_json().to_string().as_bytes()), Some(notice));
    twin.patch(&desired(json!({"cfg": {"f": null}, "building": null})), now).expect("fits");
    assert_eq!(Value::Object(twin.desired.properties.clone()), json!({"cfg": {}}));
    assert_eq!(twin.desired.metadata["cfg"]["$lastUpdatedVersion"], 3);
    assert!(!twin.desired.metadata.contains_key("building"));
    assert_eq!((twin.desired.version, twin.version, twin.etag()), (3, 3, "AAAAAAAAAAM=".to_owned()));
}

#[test]
fn a_replacement_leaves_nothing_of_the_old_and_tells_what_went() {
    let now = DateTime::UNIX_EPOCH;
    let mut twin = Twin::new(now);
    twin.patch(&desired(json!({"a": 1, "o": {"x": 1}})), now).expect("fits");
    let notice = twin.replace(&desired(json!({"o": {"y": 2, "z": null}})), now).expect("fits").expect("a notice");
    assert_eq!(Value::Object(twin.desired.properties.clone()), json!({"o": {"y": 2}}));
    assert_eq!(Value::Object(notice.properties), json!({"a": null, "o": {"x": null, "y": 2}}));
    assert_eq!(twin.desired.version, 3);
    assert!(mirrors(&twin.desired.properties, &twin.desired.metadata));
}

#[test]
fn a_replacement_is_measured_without_the_old() {
    let now = DateTime::UNIX_EPOCH;
    let half = |name: &str| desired(json!({"o": {name: vec!["x".repeat(4000); 5]}}));
    let mut twin = Twin::new(now);
    twin.patch(&half("a"), now).expect("fits");
    assert!(twin.clone().patch(&half("b"), now).is_err(), "both together are too large");
    twin.replace(&half("b"), now).expect("fits alone");
}

#[test]
fn what_breaks_a_limit_changes_nothing() {
    let now = DateTime::UNIX_EPOCH;
    let deep = (0..12).fold(json!(1), |inner, _| json!({"a": inner}));
    for wrong in [
        json!({"a.b": 1}),
        json!({"$a": 1}),
        json!({"a b": 1}),
        json!({"a": "x".repeat(4097)}),
        json!({"a": 4_503_599_627_370_496_i64}),
        json!({"a": u64::MAX}),
        deep,
        serde_json::from_str(&format!(r#"{{"a":{}{}}}"#, "[".repeat(11), "]".repeat(11))).expect("json"),
        // Nothing in these counts towards the size, but much towards the text.
        json!({"a": vec![Value::Null; 50_000]}),
        Value::Object((0..50).map(|i| (format!("k{i}"), json!("\u{1}".repeat(4096)))).collect()),
        Value::Object((0..9).map(|i| (format!("k{i}"), json!("x".repeat(4096)))).collect()),
    ] {
        let mut twin = Twin::new(now);
        let error = twin.patch(&desired(wrong.clone()), now).expect_err("refused");
        assert_eq!((error.code, twin), (ErrorCode::ArgumentInvalid, Twin::new(now)));
        assert!(Twin::new(now).report(&object(wrong), None, now).is_err());
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let found = |patch| check_patch(Part::Reported, &object(patch)).expect_err("wrong").message;
    assert_eq!(found(json!({"a": {"b": [1, {"c d": 1}]}})), "reported.a.b[1] has the key \"c d\", which contains ' '");
    assert_eq!(found(json!({"a": u64::MAX})), "reported.a is an integer outside of ±4503599627370495");
    assert!(found(json!({"$version": 1})).starts_with("reported has the key \"$version\""));
}

#[test]
fn a_report_can_insist_on_a_version() {
    let now = DateTime::UNIX_EPOCH;
    let mut twin = Twin::new(now);
    assert_eq!(twin.report(&object(json!({"a": 1})), Some(1), now), Ok(2));
    let error = twin.report(&object(json!({"a": 2})), Some(1), now).expect_err("stale");
    assert_eq!(error.code, ErrorCode::PreconditionFailed);
    assert_eq!(twin.version, 1, "a report leaves the etag alone");
}

#[test]
fn if_match_in_every_spelling() {
    for (header, allowed) in [
        (None, true),
        (Some("*"), true),
        (Some("\"*\""), true),
        (Some("AAAAAAAAAAE="), true),
        (Some("\"AAAAAAAAAAE=\""), true),
        (Some("\"AAAAAAAAAAI=\""), false),
    ] {
        assert_eq!(Twin::new(DateTime::UNIX_EPOCH).matches(header), allowed, "{header:?}");
    }
}

fn any_object() -> impl Strategy<Value = Map<String, Value>> {
    let leaf = prop_oneof![any::<bool>().prop_map(Value::from), (0..9i64).prop_map(Value::from)];
    let value = leaf.prop_recursive(3, 24, 4, |inner| {
        prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect()))
    });
    prop::collection::btree_map("[a-d]", value, 0..4).prop_map(|map| map.into_iter().collect())
}

proptest! {
    #[test]
    fn merging_the_difference_leads_from_old_to_new(old in any_object(), new in any_object()) {
        let mut reached = old.clone();
        merge(&mut reached, &diff(&old, &new));
        prop_assert_eq!(reached, new);
    }

    #[test]
    fn a_device_that_merges_the_notice_of_a_replacement_has_the_replacement(old in any_object(), new in any_object()) {
        let now = DateTime::UNIX_EPOCH;
        let mut twin = Twin::new(now);
        twin.patch(&TwinPatch { tags: None, desired: Some(old) }, now).expect("small");
        let mut device = twin.desired.properties.clone();
        let replaced = twin.replace(&TwinPatch { tags: None, desired: Some(new.clone()) }, now).expect("small");
        merge(&mut device, &replaced.map(|notice| notice.properties).unwrap_or_default());
        prop_assert_eq!(&device, &new);
        prop_assert_eq!(&twin.desired.properties, &new);
    }

    #[test]
    fn metadata_mirrors_what_is_there(old in any_object(), new in any_object()) {
        let now = DateTime::UNIX_EPOCH;
        let mut twin = Twin::new(now);
        twin.report(&old, None, now).expect("small");
        twin.report(&diff(&old, &new), None, now).expect("small");
        prop_assert_eq!(&twin.reported.properties, &new);
        prop_assert!(mirrors(&twin.reported.properties, &twin.reported.metadata));
    }
}

fn mirrors(properties: &Map<String, Value>, metadata: &Map<String, Value>) -> bool {
    let keys = metadata.keys().filter(|key| !key.starts_with('$')).count();
    keys == properties.len()
        && properties.iter().all(|(key, value)| match (value, metadata.get(key)) {
            (Value::Object(inner), Some(Value::Object(meta))) => mirrors(inner, meta),
            (_, Some(Value::Object(meta))) => meta.contains_key("$lastUpdated"),
            _ => false,
        })
}
