//! A tag of each device that a job looks at: by which its results are told apart, or its hours are.

use serde_json::Value;

/// A tag's place in a twin, such as `tags.building` or `tags.location.floor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagPath(Vec<String>);

/// Longest place, in characters.
const MAX_PATH: usize = 256;
/// Characters of a value that are kept: it is a name, and there is one for each device.
const MAX_VALUE: usize = 128;

impl TagPath {
    /// # Errors
    /// What a place looks like.
    pub fn parse(text: &str) -> Result<TagPath, String> {
        let wrong = || format!("{text:?} is not a tag such as tags.building");
        let names = text.strip_prefix("tags.").filter(|_| text.len() <= MAX_PATH).ok_or_else(wrong)?;
        let names: Vec<String> = names.split('.').map(str::to_owned).collect();
        match names.iter().any(|name| name.is_empty() || name.contains(['$', ' ', '\'', '"'])) {
            true => Err(wrong()),
            false => Ok(TagPath(names)),
        }
    }

    /// Its value in a twin: a text, a number or a truth value. `None` if there is none, or no such value.
    pub fn read(&self, twin: &Value) -> Option<String> {
        let mut place = twin.get("tags")?;
        for name in &self.0 {
            place = place.get(name)?;
        }
        let text = match place {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => return None,
        };
        Some(text.chars().take(MAX_VALUE).collect())
    }
}

impl std::fmt::Display for TagPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tags.{}", self.0.join("."))
    }
}

impl serde::Serialize for TagPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for TagPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<TagPath, D::Error> {
        let text = String::deserialize(deserializer)?;
        TagPath::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tags_value_is_found_by_its_place() {
        let twin = json!({"tags": {"building": "43", "place": {"floor": 3, "open": true, "rooms": []}}});
        for (path, value) in [
            ("tags.building", Some("43")),
            ("tags.place.floor", Some("3")),
            ("tags.place.open", Some("true")),
            ("tags.place.rooms", None),
            ("tags.place", None),
            ("tags.nothing.there", None),
        ] {
            let parsed = TagPath::parse(path).expect(path);
            assert_eq!((parsed.read(&twin).as_deref(), parsed.to_string().as_str()), (value, path));
        }
        for wrong in ["building", "tags.", "tags", "tags.a..b", "tags.$x", "properties.desired.x", "tags.a b"] {
            assert!(TagPath::parse(wrong).is_err(), "{wrong}");
        }
    }
}
