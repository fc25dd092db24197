//! Times as IoT Hub writes them.

use chrono::{DateTime, Datelike as _, SecondsFormat, Utc};

/// What the hub writes where something never happened.
pub const NEVER: &str = "0001-01-01T00:00:00Z";

/// ISO 8601 in UTC with milliseconds, such as `2026-11-24T08:40:04.171Z`.
pub fn format(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Read any ISO 8601 time with a zone (the SDKs send milliseconds, microseconds or none). One whose year in UTC has not
/// four digits is none: [`format()`] could write it, and nobody read that again.
pub fn parse(text: &str) -> Option<DateTime<Utc>> {
    let time = DateTime::parse_from_rfc3339(text).ok()?.with_timezone(&Utc);
    (0..=9999).contains(&time.year()).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_can_be_written_and_read_again() {
        for (text, written) in [
            ("2026-11-24T08:40:04.171Z", Some("2026-11-24T08:40:04.171Z")),
            ("2026-11-24T09:40:04+01:00", Some("2026-11-24T08:40:04.000Z")),
            ("9999-12-31T23:59:59.999999Z", Some("9999-12-31T23:59:59.999Z")),
            ("9999-12-31T23:59:59-01:00", None),
            ("0000-01-01T00:30:00+01:00", None),
            ("tomorrow", None),
        ] {
            let time = parse(text);
            assert_eq!(time.map(format).as_deref(), written, "{text}");
            assert!(time.map(format).is_none_or(|written| parse(&written).is_some()), "{text}");
        }
    }
}
