//! Where what was found is not what was expected, told so that one sees it at once.

use serde_json::{Map, Value, json};

/// One place where a step did not do as expected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) line: usize,
    /// Such as `answer.count` or `telemetry[0].body`.
    pub(crate) place: String,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl Difference {
    pub(super) fn new(
        line: usize,
        place: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Difference {
        Difference { line, place: place.into(), expected: expected.into(), found: found.into() }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({ "line": self.line, "place": self.place, "expected": self.expected, "found": self.found })
    }
}

/// Finds the innermost places where two documents differ.
pub(super) fn compare(line: usize, place: &str, expected: &Value, found: &Value, into: &mut Vec<Difference>) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => compare_objects(line, place, expected, found, into),
        (Value::Array(expected), Value::Array(found)) => {
            for index in 0..expected.len().max(found.len()) {
                compare_members(line, &format!("{place}[{index}]"), expected.get(index), found.get(index), into);
            }
        }
        _ if expected == found => {}
        _ => into.push(Difference::new(line, place, expected.to_string(), found.to_string())),
    }
}

fn compare_objects(
    line: usize,
    place: &str,
    expected: &Map<String, Value>,
    found: &Map<String, Value>,
    into: &mut Vec<Difference>,
) {
    let unexpected = found.keys().filter(|key| !expected.contains_key(*key));
    for key in expected.keys().chain(unexpected) {
        compare_members(line, &format!("{place}.{key}"), expected.get(key), found.get(key), into);
    }
}

fn compare_members(
    line: usize,
    place: &str,
    expected: Option<&Value>,
    found: Option<&Value>,
    into: &mut Vec<Difference>,
) {
    match (expected, found) {
        (Some(expected), Some(found)) => compare(line, place, expected, found, into),
        (expected, found) => {
            let text = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
            into.push(Difference::new(line, place, text(expected), text(found)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expected: Value, found: Value, differences: &[(&str, &str, &str)]) {
        let mut into = Vec::new();
        compare(7, "answer", &expected, &found, &mut into);
        let differences =
            differences.iter().map(|(place, expected, found)| Difference::new(7, *place, *expected, *found));
        assert_eq!(into, differences.collect::<Vec<_>>());
    }

    #[test]
    fn only_the_innermost_places_are_named() {
        check(json!({"a": [1, {"b": null}]}), json!({"a": [1, {"b": null}]}), &[]);
        check(json!({"count": 2, "ok": true}), json!({"count": 1, "ok": true}), &[("answer.count", "2", "1")]);
        check(
            json!({"a": [1, {"b": 2}], "gone": "x"}),
            json!({"a": [1, {"b": 3}, 4], "new": null}),
            &[
                ("answer.a[1].b", "2", "3"),
                ("answer.a[2]", "nothing", "4"),
                ("answer.gone", "\"x\"", "nothing"),
                ("answer.new", "nothing", "null"),
            ],
        );
        check(json!([]), json!({}), &[("answer", "[]", "{}")]);
    }
}
