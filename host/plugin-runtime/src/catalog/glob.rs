//! Which devices a rule is for.

use std::fmt;
use std::sync::Arc;

use iothub_protocol::id::DeviceId;

/// A pattern for whole device ids: `*` stands for any text, `?` for any one character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceGlob(Arc<str>);

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a pattern for device ids has 1 to {LIMIT} characters")]
pub struct DeviceGlobError;

impl DeviceGlob {
    /// # Errors
    /// If `text` is empty, or longer than any sensible pattern.
    pub fn parse(text: &str) -> Result<DeviceGlob, DeviceGlobError> {
        if text.is_empty() || text.len() > LIMIT { Err(DeviceGlobError) } else { Ok(DeviceGlob(Arc::from(text))) }
    }

    /// Every device.
    pub fn all() -> DeviceGlob {
        DeviceGlob(Arc::from("*"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn matches(&self, device: &DeviceId) -> bool {
        matches(self.0.as_bytes(), device.as_str().as_bytes())
    }
}

impl fmt::Display for DeviceGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Linear in memory and at worst quadratic in time: after a mismatch only the last `*` takes one character more.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => (p, t) = (p + 1, t + 1),
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                (p, t) = (at + 1, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// Twice the longest device id.
const LIMIT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, device, expected) in [
            ("*", "door-0001", true),
            ("door-00*", "door-0001", true),
            ("door-00*", "door-0101", false),
            ("door-000?", "door-0001", true),
            ("door-000?", "door-00012", false),
            ("*-0001", "door-0001", true),
            ("d*o*1", "door-0001", true),
            ("d*x*1", "door-0001", false),
            ("door-0001", "door-0001", true),
            ("door-0001", "door-00012", false),
            ("a**b", "ab", true),
        ] {
            let glob = DeviceGlob::parse(pattern).expect("a pattern");
            assert_eq!(glob.matches(&DeviceId::parse(device).expect("an id")), expected, "{pattern} {device}");
        }
        assert!(DeviceGlob::parse("").is_err() && DeviceGlob::parse(&"x".repeat(257)).is_err());
    }
}
