//! By what rows are grouped, and in which order groups come.

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::eval::Term;

/// A group's place in the order in which groups are given out. It is small whatever the grouped value is, and means
/// the same in another process, so that a continuation token can hold it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupKey(Key);

/// In the order of groups.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Key {
    Undefined,
    Null,
    Bool(bool),
    /// See [`ordered`].
    Number(u64),
    Text(Abbreviated),
    /// The JSON of an object or array.
    Composite(Abbreviated),
}

/// A text, or the beginning of a long one and a digest of the whole, which tells it from others that begin so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Abbreviated(String, #[serde(default, skip_serializing_if = "Option::is_none")] Option<[u8; 32]>);

/// Longest text that a key holds whole, in bytes: a token travels in a header, and clients bound those.
const MAX_TEXT: usize = 256;

impl GroupKey {
    pub(super) fn of(value: &Term<'_>) -> GroupKey {
        GroupKey(match value {
            Term::Undefined => Key::Undefined,
            Term::Null => Key::Null,
            Term::Bool(value) => Key::Bool(*value),
            Term::Number(number) => Key::Number(ordered(*number)),
            Term::Text(text) => Key::Text(Abbreviated::new(text)),
            Term::Composite(value) => Key::Composite(Abbreviated::new(&value.to_string())),
        })
    }
}

impl Abbreviated {
    fn new(text: &str) -> Abbreviated {
        if text.len() <= MAX_TEXT {
            return Abbreviated(text.to_owned(), None);
        }
        let mut sum = [0; 32];
        sum.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
        Abbreviated(text[..text.floor_char_boundary(MAX_TEXT)].to_owned(), Some(sum))
    }
}

/// Whole numbers in the order of the (finite) doubles that they stand for; both zeros are one.
fn ordered(number: f64) -> u64 {
    const SIGN: u64 = 1 << 63;
    let bits = if number == 0.0 { 0 } else { number.to_bits() };
    if bits & SIGN == 0 { bits | SIGN } else { !bits }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn key(value: &Value) -> GroupKey {
        GroupKey::of(&Term::from(value))
    }

    #[test]
    fn groups_are_ordered_by_type_then_value() {
        let ordered = [
            json!(null),
            json!(false),
            json!(true),
            json!(-1e300),
            json!(-2),
            json!(-0.5),
            json!(0),
            json!(1.5),
            json!(10),
            json!(""),
            json!("10"),
            json!("9"),
            json!("a"),
            json!([1]),
            json!({"a": 1}),
        ];
        let keys: Vec<GroupKey> = ordered.iter().map(key).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        assert!(GroupKey::of(&Term::Undefined) < keys[0]);
        assert_eq!(key(&json!(0)), key(&json!(-0.0)));
        assert_eq!(key(&json!(2)), key(&json!(2.0)));
    }

    #[test]
    fn long_values_have_short_keys_of_their_own() {
        let long = |last: char| Value::String(format!("{}{last}", "é".repeat(4000)));
        let (a, b) = (key(&long('a')), key(&long('b')));
        assert_ne!(a, b);
        assert_eq!(a, key(&long('a')));
        assert!(key(&json!("é")) < a && a < key(&json!("ê")), "its place is that of its beginning");
        let written = serde_json::to_string(&a).expect("JSON");
        assert!(written.len() < 600, "{written}");
        assert_eq!(serde_json::from_str::<GroupKey>(&written).expect("a key"), a);
    }

    proptest! {
        #[test]
        fn numbers_keep_their_order(a: f64, b: f64) {
            prop_assume!(a.is_finite() && b.is_finite());
            prop_assert_eq!(a.partial_cmp(&b), Some(ordered(a).cmp(&ordered(b))));
        }

        #[test]
        fn a_key_survives_its_token(text in ".{0,400}") {
            let key = GroupKey::of(&Term::Text(Cow::Owned(text)));
            let written = serde_json::to_string(&key).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<GroupKey>(&written).expect("a key"), key);
        }
    }
}
