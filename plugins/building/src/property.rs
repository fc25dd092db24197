//! The desired properties there are and what makes sense for each. No host in here, so
//! `cargo test` runs it.

use serde_json::Value;

/// A house number or a name; longer is a mistake.
const LONGEST_BUILDING: usize = 64;

const LOWEST_FLOOR: i64 = -10;
const HIGHEST_FLOOR: i64 = 200;

/// One desired property.
pub(crate) struct Property {
    pub(crate) name: &'static str,
    accepts: fn(&Value) -> bool,
    rule: &'static str,
}

pub(crate) const PROPERTIES: &[Property] = &[
    Property { name: "building", accepts: is_building, rule: "a text of 1 to 64 characters" },
    Property { name: "floor", accepts: is_floor, rule: "a whole number from -10 to 200" },
];

impl Property {
    /// Whether `value` makes sense; if not, why, in words for whoever desired it.
    pub(crate) fn check(&self, value: &Value) -> Result<(), String> {
        if (self.accepts)(value) { Ok(()) } else { Err(format!("{} must be {}", self.name, self.rule)) }
    }
}

fn is_building(value: &Value) -> bool {
    value.as_str().is_some_and(|name| (1..=LONGEST_BUILDING).contains(&name.chars().count()))
}

fn is_floor(value: &Value) -> bool {
    value.as_i64().is_some_and(|floor| (LOWEST_FLOOR..=HIGHEST_FLOOR).contains(&floor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(name: &str, value: Value, expect: bool) {
        let property = PROPERTIES.iter().find(|property| property.name == name).expect("known");
        assert_eq!(property.check(&value).is_ok(), expect, "{name} = {value}");
    }

    #[test]
    fn buildings() {
        check("building", json!("43"), true);
        check("building", json!("ü".repeat(64)), true);
        check("building", json!("x".repeat(65)), false);
        check("building", json!(""), false);
        check("building", json!(43), false);
        check("building", json!({ "number": "43" }), false);
    }

    #[test]
    fn floors() {
        check("floor", json!(-10), true);
        check("floor", json!(200), true);
        check("floor", json!(-11), false);
        check("floor", json!(201), false);
        check("floor", json!(1.5), false);
        check("floor", json!("1"), false);
        check("floor", json!(u64::MAX), false);
    }
}
