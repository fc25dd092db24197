//! Reported patches of one call, put together into one.

use serde_json::{Map, Value};

/// The one patch that does to `base` what `first` and then `second` do.
///
/// Two merge patches have no sum that holds for every document: after `{"a": null}`, `{"a": {"x": 1}}` replaces all of
/// `a`, but as one patch it would merge into an older `a`. With the document known, what must go is deleted by name. A
/// member that is written without a change stays in the patch, because the hub stamps what it receives.
pub(crate) fn combine(base: &Map<String, Value>, first: &mut Map<String, Value>, second: Map<String, Value>) {
    for (key, value) in second {
        let combined = match (value, first.remove(&key)) {
            (Value::Object(second), None) => Value::Object(second),
            (Value::Object(second), Some(Value::Object(mut first))) => {
                let none = Map::new();
                combine(object(base.get(&key)).unwrap_or(&none), &mut first, second);
                Value::Object(first)
            }
            (Value::Object(second), Some(_)) => replacement(base.get(&key), second),
            (value, _) => value,
        };
        first.insert(key, combined);
    }
}

/// The patch that makes `value` out of `before`, whatever `before` held.
fn replacement(before: Option<&Value>, value: Map<String, Value>) -> Value {
    let before = object(before);
    let mut patch = Map::new();
    for key in before.into_iter().flat_map(Map::keys) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, member) in value {
        match member {
            // Deletes what is not there; what was there before is deleted already.
            Value::Null => {}
            Value::Object(member) => {
                let replaced = replacement(before.and_then(|before| before.get(&key)), member);
                patch.insert(key, replaced);
            }
            member => {
                patch.insert(key, member);
            }
        }
    }
    Value::Object(patch)
}

fn object(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

#[cfg(test)]
mod tests {
    use iothub_protocol::twin;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    fn combined(base: &Value, patches: &[Value]) -> Map<String, Value> {
        let mut patch = Map::new();
        for next in patches {
            combine(&map(base.clone()), &mut patch, map(next.clone()));
        }
        patch
    }

    #[test]
    fn deleting_and_writing_anew_replaces() {
        let base = json!({"a": {"old": 1, "deep": {"old": 1}}});
        let patch = combined(&base, &[json!({"a": null}), json!({"a": {"deep": {"new": 2}}})]);
        assert_eq!(Value::Object(patch), json!({"a": {"old": null, "deep": {"old": null, "new": 2}}}));
    }

    #[test]
    fn writing_the_same_again_is_still_written() {
        let patch = combined(&json!({"a": 1}), &[json!({"a": 1}), json!({"b": null})]);
        assert_eq!(Value::Object(patch), json!({"a": 1, "b": null}));
    }

    fn document() -> impl Strategy<Value = Map<String, Value>> {
        let leaf = prop_oneof![Just(Value::Null), (0..3_i32).prop_map(Value::from)];
        let value = leaf.prop_recursive(3, 12, 3, |inner| {
            prop::collection::btree_map("[ab]", inner, 0..3)
                .prop_map(|members| Value::Object(members.into_iter().collect()))
        });
        prop::collection::btree_map("[ab]", value, 0..3).prop_map(|members| members.into_iter().collect())
    }

    proptest! {
        #[test]
        fn one_patch_does_what_the_patches_do(base in document(), patches in prop::collection::vec(document(), 0..4)) {
            let mut before = Map::new();
            twin::merge(&mut before, &base);
            let mut one_by_one = before.clone();
            let mut patch = Map::new();
            for next in patches {
                twin::merge(&mut one_by_one, &next);
                combine(&before, &mut patch, next);
            }
            let mut at_once = before;
            twin::merge(&mut at_once, &patch);
            prop_assert_eq!(at_once, one_by_one);
        }
    }
}
