//! Which devices a bad day is for.

use std::fmt;

use iothub_protocol::address::Address;

use crate::events::filter::covers;

/// A pattern for whole device ids, and so for their modules, or for `device/module`: `*` stands for any text, `?` for any
/// one character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePattern(String);

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a pattern for device ids has 1 to {LIMIT} characters")]
pub struct DevicePatternError;

/// As long as an id, with a `*` before each character.
const LIMIT: usize = 256;

impl DevicePattern {
    /// # Errors
    /// If `text` is empty or too long.
    pub fn parse(text: &str) -> Result<DevicePattern, DevicePatternError> {
        if text.is_empty() || text.len() > LIMIT { Err(DevicePatternError) } else { Ok(DevicePattern(text.to_owned())) }
    }

    /// Every device.
    pub fn all() -> DevicePattern {
        DevicePattern("*".to_owned())
    }

    pub fn is_all(&self) -> bool {
        self.0 == "*"
    }

    pub fn matches(&self, address: &Address) -> bool {
        covers(&self.0, address)
    }
}

impl fmt::Display for DevicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_for_whole_ids() {
        for (pattern, id, expected) in [
            ("*", "door-1", true),
            ("door-*", "door-1", true),
            ("door-?", "door-12", false),
            ("d*r-*2", "door-12", true),
            ("*1*2", "door-12", true),
            ("*or", "door-1", false),
            ("door-1", "door-1", true),
            ("door", "door-1", false),
            ("?", "?", true),
            ("door-1", "door-1/m1", true),
            ("door-1/*", "door-1/m1", true),
            ("door-1/*", "door-1", false),
        ] {
            let parsed = DevicePattern::parse(pattern).expect("a pattern");
            assert_eq!(parsed.matches(&Address::parse(id).expect("an address")), expected, "{pattern} {id}");
        }
        assert!(DevicePattern::parse("").is_err() && DevicePattern::parse(&"a".repeat(257)).is_err());
    }
}
