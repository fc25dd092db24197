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

    /// Whether there can be a device that both match.
    pub fn overlaps(&self, other: &DeviceGlob) -> bool {
        shortest_common(self.0.as_bytes(), other.0.as_bytes()).is_some_and(|length| length <= ID_LENGTH)
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

/// Length of the shortest text of characters that ids have, which both patterns match.
///
/// Both are walked together: a `*` either ends, or takes whatever the other pattern takes next. Only the row after the
/// current one is kept, so memory is linear and time the product of the lengths.
fn shortest_common(one: &[u8], other: &[u8]) -> Option<usize> {
    let mut next_row: Vec<Option<usize>> = Vec::new();
    for i in (0..=one.len()).rev() {
        let mut row = vec![None; other.len() + 1];
        for j in (0..=other.len()).rev() {
            let after_one = || next_row.get(j).copied().flatten();
            let after_other = |row: &[Option<usize>]| row.get(j + 1).copied().flatten();
            let after_both = || next_row.get(j + 1).copied().flatten();
            let longer = |length: Option<usize>| length.map(|length| length + 1);
            row[j] = match (one.get(i), other.get(j)) {
                (None, None) => Some(0),
                (Some(b'*'), None) => after_one(),
                (None, Some(b'*')) => after_other(&row),
                (Some(b'*'), Some(b'*')) => shorter(after_one(), after_other(&row)),
                (Some(b'*'), Some(&c)) if is_in_ids(c) => shorter(after_one(), longer(after_other(&row))),
                (Some(&c), Some(b'*')) if is_in_ids(c) => shorter(after_other(&row), longer(after_one())),
                (Some(b'?'), Some(&c)) | (Some(&c), Some(b'?')) if is_in_ids(c) => longer(after_both()),
                (Some(c), Some(d)) if c == d && is_in_ids(*c) => longer(after_both()),
                (Some(b'*'), Some(_)) => after_one(),
                (Some(_), Some(b'*')) => after_other(&row),
                _ => None,
            };
        }
        next_row = row;
    }
    next_row.first().copied().flatten()
}

fn shorter(one: Option<usize>, other: Option<usize>) -> Option<usize> {
    one.into_iter().chain(other).min()
}

/// Whether ids can have the character. `?` as a pattern can always stand for one that they have, and is one itself.
fn is_in_ids(byte: u8) -> bool {
    str::from_utf8(&[byte]).is_ok_and(|text| DeviceId::parse(text).is_ok())
}

/// Twice the longest device id.
const LIMIT: usize = 256;
/// Characters of the longest device id.
const ID_LENGTH: usize = 128;

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

    fn glob(text: &str) -> DeviceGlob {
        DeviceGlob::parse(text).expect("a pattern")
    }

    #[test]
    fn patterns_overlap_where_a_device_can_match_both() {
        let long = "?".repeat(128);
        for (one, other, expected) in [
            ("*", "*", true),
            ("*", "door-0001", true),
            ("door-*", "gate-*", false),
            ("door-*", "*-0001", true),
            ("door-*", "*gate", true),
            ("door-0*", "door-1*", false),
            ("door-?", "door-??", false),
            ("a*b", "a*c", false),
            ("a*b*", "*b*c", true),
            ("a?c", "?b?", true),
            ("a?*", "?", false),
            ("**", "?", true),
            // No id has a slash or another script's letters, and none has 129 characters.
            ("a/*", "*", false),
            ("t\u{fc}r", "*", false),
            ("a/*", "?/*", false),
            (&long, "*", true),
            (&long, "*?", true),
            (&format!("{long}?"), "*", false),
            (&format!("{}*", &long[..100]), &format!("*{}", "x".repeat(29)), true),
            (&format!("{}b*", &long[..100]), &format!("a{}*", "a".repeat(100)), false),
        ] {
            assert_eq!(glob(one).overlaps(&glob(other)), expected, "{one} {other}");
            assert_eq!(glob(other).overlaps(&glob(one)), expected, "{other} {one}");
        }
    }

    proptest::proptest! {
        /// Patterns of up to four characters over two letters: if any id matches both, one of up to eight does.
        #[test]
        fn overlapping_is_what_trying_every_id_finds(one in "[ab?*]{1,4}", other in "[ab?*]{1,4}") {
            let ids = (1..=8).flat_map(|length| (0..1_u32 << length).map(move |bits| -> String {
                (0..length).map(|bit| if bits >> bit & 1 == 0 { 'a' } else { 'b' }).collect()
            }));
            let found = ids.map(|id| DeviceId::parse(&id).expect("an id"))
                .any(|id| glob(&one).matches(&id) && glob(&other).matches(&id));
            proptest::prop_assert_eq!(glob(&one).overlaps(&glob(&other)), found);
        }
    }
}
