//! The desired properties there are and what makes sense for each. No host in here, so
//! `cargo test` runs it.

use serde_json::Value;

/// A house number or a name; longer is a mistake.
const LONGEST_BUILDING: usize = 64;

const LOWEST_FLOOR: i64 = -10;
/// Where the settings say nothing.
pub(crate) const HIGHEST_FLOOR: i64 = 200;

/// One desired property.
pub(crate) struct Property {
    pub(crate) name: &'static str,
    check: fn(&Value, Site) -> Result<(), String>,
}

/// What is known of the place, from the plugin's settings.
#[derive(Clone, Copy)]
pub(crate) struct Site {
    pub(crate) highest_floor: i64,
}

pub(crate) const PROPERTIES: &[Property] =
    &[Property { name: "building", check: check_building }, Property { name: "floor", check: check_floor }];

impl Property {
    /// Whether `value` makes sense; if not, why, in words for whoever desired it.
    pub(crate) fn check(&self, value: &Value, site: Site) -> Result<(), String> {
        (self.check)(value, site).map_err(|rule| format!("{} must be {rule}", self.name))
    }
}

fn check_building(value: &Value, _site: Site) -> Result<(), String> {
    let fits = value.as_str().is_some_and(|name| (1..=LONGEST_BUILDING).contains(&name.chars().count()));
    fits.then_some(()).ok_or_else(|| format!("a text of 1 to {LONGEST_BUILDING} characters"))
}

fn check_floor(value: &Value, site: Site) -> Result<(), String> {
    let floors = LOWEST_FLOOR..=site.highest_floor;
    let fits = value.as_i64().is_some_and(|floor| floors.contains(&floor));
    fits.then_some(()).ok_or_else(|| format!("a whole number from {} to {}", floors.start(), floors.end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(name: &str, value: Value, expect: bool) {
        let property = PROPERTIES.iter().find(|property| property.name == name).expect("known");
        let site = Site { highest_floor: HIGHEST_FLOOR };
        assert_eq!(property.check(&value, site).is_ok(), expect, "{name} = {value}");
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

    #[test]
    fn a_lower_house() {
        let floor = &PROPERTIES[1];
        let site = Site { highest_floor: 3 };
        assert_eq!(floor.check(&json!(3), site), Ok(()));
        let refused = floor.check(&json!(4), site);
        assert_eq!(refused, Err("floor must be a whole number from -10 to 3".to_owned()));
    }
}
