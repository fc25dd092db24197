//! Which devices a bad day is for.

use std::fmt;

use iothub_protocol::id::DeviceId;

/// A pattern for whole device ids: `*` stands for any text, `?` for any one character.
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

    pub fn matches(&self, device: &DeviceId) -> bool {
        matches(self.0.as_bytes(), device.as_str().as_bytes())
    }
}

impl fmt::Display for DevicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// At worst quadratic: after a mismatch only the last `*` takes one character more.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match (pattern.get(p), star) {
            (Some(b'*'), _) => {
                star = Some((p, t));
                p += 1;
            }
            (Some(&c), _) if c == b'?' || c == text[t] => (p, t) = (p + 1, t + 1),
            (_, Some((at, taken))) => {
                star = Some((at, taken + 1));
                (p, t) = (at + 1, taken + 1);
            }
            (_, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
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
        ] {
            let parsed = DevicePattern::parse(pattern).expect("a pattern");
            assert_eq!(parsed.matches(&DeviceId::parse(id).expect("an id")), expected, "{pattern} {id}");
        }
        assert!(DevicePattern::parse("").is_err() && DevicePattern::parse(&"a".repeat(257)).is_err());
    }
}
