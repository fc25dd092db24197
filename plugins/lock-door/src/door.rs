//! What a door is and what a request to it may say. No host in here, so `cargo test` runs it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A name longer than this is a mistake, and the state that keeps it is small.
const LONGEST_NAME: usize = 64;

/// As kept between calls, by every version of this plugin. A later version that needs another
/// field gives it a default, so that it can read what this one wrote.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Door {
    pub(crate) locked: bool,
    /// How often the door has moved.
    pub(crate) count: u64,
    /// Who moved it last, if they said so. 1.0.0 keeps it; 2.0.0 shows it.
    pub(crate) moved_by: Option<String>,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Move {
    Moved,
    AlreadyThere,
}

impl Door {
    pub(crate) fn turn(&mut self, locked: bool, by: Option<String>) -> Move {
        if self.locked == locked {
            return Move::AlreadyThere;
        }
        *self = Door { locked, count: self.count + 1, moved_by: by };
        Move::Moved
    }
}

/// Who asks, from a method's payload: `null` (nobody in particular) or `{"by": "name"}`.
pub(crate) fn mover(payload: &str) -> Result<Option<String>, String> {
    let payload = serde_json::from_str(payload).map_err(|error| format!("the payload is not JSON: {error}"))?;
    match &payload {
        Value::Null => return Ok(None),
        Value::Object(members) if members.len() == 1 => {
            if let Some(Value::String(name)) = members.get("by")
                && (1..=LONGEST_NAME).contains(&name.chars().count())
            {
                return Ok(Some(name.clone()));
            }
        }
        _ => {}
    }
    Err(format!(r#"the payload must be null or {{"by": "name"}}, a name of 1 to {LONGEST_NAME} characters"#))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_counts_its_moves_and_knows_who_moved_it() {
        let mut door = Door::default();
        assert_eq!(door.turn(false, None), Move::AlreadyThere, "a new door is unlocked");
        assert_eq!(door.turn(true, Some("ann".to_owned())), Move::Moved);
        assert_eq!(door.turn(true, Some("bob".to_owned())), Move::AlreadyThere);
        assert_eq!(door, Door { locked: true, count: 1, moved_by: Some("ann".to_owned()) });
        assert_eq!(door.turn(false, None), Move::Moved);
        assert_eq!(door, Door { locked: false, count: 2, moved_by: None });
    }

    #[test]
    fn only_null_and_a_name_are_payloads() {
        assert_eq!(mover("null"), Ok(None));
        assert_eq!(mover(r#"{"by": "ann"}"#), Ok(Some("ann".to_owned())));
        let too_long = format!(r#"{{"by": "{}"}}"#, "x".repeat(LONGEST_NAME + 1));
        let no_name = ["", "{}", "[]", "3", r#""ann""#, r#"["ann"]"#, r#"{"by": null}"#, r#"{"by": ""}"#];
        let too_much = [r#"{"by": "ann", "to": "bob"}"#, r#"{"by": "ann"} null"#, &too_long];
        for bad in no_name.into_iter().chain(too_much) {
            assert!(mover(bad).is_err(), "{bad}");
        }
    }
}
