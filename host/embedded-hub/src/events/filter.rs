//! Which events a reader wants.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;

use super::HubEvent;

/// Each kind with the category it belongs to; both are names for filters.
const KINDS: [(&str, &str); 10] = [
    ("telemetry", "telemetry"),
    ("reported", "twin"),
    ("updated", "twin"),
    ("replaced", "twin"),
    ("created", "lifecycle"),
    ("deleted", "lifecycle"),
    ("connected", "connection"),
    ("disconnected", "connection"),
    ("queued", "message"),
    ("settled", "message"),
];
/// Longest pattern: the ids of every device and module can be written out with a star around each letter.
const MAX_PATTERN: usize = 515;

/// Why a filter is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error(
        "there is no kind {0:?}: take telemetry, twin (reported, updated, replaced), lifecycle (created, deleted), \
         connection (connected, disconnected) or message (queued, settled)"
    )]
    Kind(String),
    #[error("the pattern for devices is longer than {MAX_PATTERN} characters")]
    Pattern,
}

/// What an event must be to pass; the default lets all pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    device: Option<String>,
    kinds: Option<BTreeSet<&'static str>>,
    since: Option<DateTime<Utc>>,
}

impl EventFilter {
    /// `device` is an id in which `*` stands for any text and `?` for one character, for the device and its modules, or
    /// `device/module` with such ids for modules alone; `kinds` are names joined by commas, of kinds or of categories.
    ///
    /// # Errors
    /// [`FilterError`] names what is wrong, and what there is instead.
    pub fn new(
        device: Option<String>,
        kinds: Option<&str>,
        since: Option<DateTime<Utc>>,
    ) -> Result<EventFilter, FilterError> {
        if device.as_ref().is_some_and(|pattern| pattern.len() > MAX_PATTERN) {
            return Err(FilterError::Pattern);
        }
        Ok(EventFilter { device, kinds: kinds.map(parse_kinds).transpose()?, since })
    }

    pub fn wants(&self, event: &HubEvent) -> bool {
        self.since.is_none_or(|since| event.time >= since)
            && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(event.kind_name()))
            && self.device.as_ref().is_none_or(|pattern| covers(pattern, &event.address))
    }

    /// From when on events are wanted.
    pub fn since(&self) -> Option<DateTime<Utc>> {
        self.since
    }
}

fn parse_kinds(text: &str) -> Result<BTreeSet<&'static str>, FilterError> {
    let mut wanted = BTreeSet::new();
    for name in text.split(',').map(str::trim) {
        let before = wanted.len();
        let named = KINDS.iter().filter(|(kind, category)| *kind == name || *category == name);
        wanted.extend(named.map(|(kind, _)| *kind));
        if wanted.len() == before && !KINDS.iter().any(|(kind, category)| *kind == name || *category == name) {
            return Err(FilterError::Kind(name.to_owned()));
        }
    }
    Ok(wanted)
}

/// Whether a pattern covers a device or a module: one without a slash says nothing of modules, and covers them with their
/// device.
pub(crate) fn covers(pattern: &str, address: &Address) -> bool {
    match (pattern.split_once('/'), address.module()) {
        (None, _) => matches(pattern, address.device().as_str()),
        (Some(_), None) => false,
        (Some((device, module)), Some(id)) => {
            matches(device, address.device().as_str()) && matches(module, id.as_str())
        }
    }
}

/// Whether a pattern covers a text. Goes back to the last star only, so that no pattern takes long.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at_pattern, mut at_text, mut star) = (0, 0, None);
    while at_text < text.len() {
        match pattern.get(at_pattern) {
            Some(b'*') => {
                star = Some((at_pattern, at_text));
                at_pattern += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[at_text] => {
                at_pattern += 1;
                at_text += 1;
            }
            _ => {
                let Some((star_pattern, star_text)) = star else { return false };
                at_pattern = star_pattern + 1;
                at_text = star_text + 1;
                star = Some((star_pattern, at_text));
            }
        }
    }
    pattern[at_pattern..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn a_pattern_covers_whole_ids() {
        for (pattern, text, expected) in [
            ("door-0001", "door-0001", true),
            ("door-0001", "door-00010", false),
            ("door-*", "door-0001", true),
            ("*", "x", true),
            ("*-0001", "door-0001", true),
            ("d*-*1", "door-0001", true),
            ("d*-*2", "door-0001", false),
            ("door-000?", "door-0001", true),
            ("door-000?", "door-000", false),
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXbXb", false),
            ("**", "x", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        assert!(!matches(&"*a".repeat(200), &"a".repeat(128)), "and that quickly");
    }

    #[test]
    fn a_pattern_with_a_slash_is_for_modules() {
        for (pattern, text, expected) in [
            ("door-1", "door-1/m1", true),
            ("door-*", "door-1/m1", true),
            ("door-1/m1", "door-1/m1", true),
            ("*/m?", "door-1/m1", true),
            ("door-1/*", "door-1/m1", true),
            ("door-1/*", "door-1", false),
            ("door-2/*", "door-1/m1", false),
            ("door-1/m2", "door-1/m1", false),
            ("*1", "door-2/m1", false),
        ] {
            assert_eq!(covers(pattern, &Address::parse(text).expect(text)), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn kinds_go_by_name_or_category() {
        let event = |make: fn(Address, DateTime<Utc>) -> HubEvent| {
            make(Address::parse("d1").expect("an address"), DateTime::UNIX_EPOCH)
        };
        let (connected, disconnected) = (event(HubEvent::connected), event(HubEvent::disconnected));
        let filter = |kinds: &str| EventFilter::new(None, Some(kinds), None).expect("kinds");
        assert!(filter("connection").wants(&connected) && filter("connection").wants(&disconnected));
        assert!(filter("twin, connected").wants(&connected) && !filter("twin,connected").wants(&disconnected));
        assert!(!filter("twin,twin,reported").wants(&connected));
        for wrong in ["", "twins", "telemetry,", "Telemetry"] {
            assert!(matches!(EventFilter::new(None, Some(wrong), None), Err(FilterError::Kind(_))), "{wrong}");
        }
        let long = EventFilter::new(Some("*".repeat(600)), None, None);
        assert_eq!(long, Err(FilterError::Pattern));
        let later = EventFilter::new(None, None, Some(DateTime::UNIX_EPOCH + TimeDelta::seconds(1))).expect("a time");
        assert!(!later.wants(&connected));
    }

    #[test]
    fn every_kind_is_known() {
        let id = || Address::parse("d1").expect("an address");
        let null = serde_json::Value::Null;
        let now = DateTime::UNIX_EPOCH;
        let twin = |change| HubEvent::twin(id(), now, change, &null);
        let end = iothub_protocol::feedback::MessageEnd::Purged;
        let all = [
            super::super::tests::telemetry(b""),
            twin(super::super::TwinChange::Reported),
            twin(super::super::TwinChange::Updated),
            twin(super::super::TwinChange::Replaced),
            HubEvent::created(id(), now, &null),
            HubEvent::deleted(id(), now, &null),
            HubEvent::connected(id(), now),
            HubEvent::disconnected(id(), now),
            HubEvent::queued(id(), now, None, 1),
            HubEvent::settled(id(), now, None, 1, end, None),
        ];
        assert_eq!(all.each_ref().map(HubEvent::kind_name), KINDS.map(|(kind, _)| kind));
    }
}
