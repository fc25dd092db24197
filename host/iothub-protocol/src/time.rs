//! Times as IoT Hub writes them.

use chrono::{DateTime, SecondsFormat, Utc};

/// What the hub writes where something never happened.
pub const NEVER: &str = "0001-01-01T00:00:00Z";

/// ISO 8601 in UTC with milliseconds, such as `2026-11-24T08:40:04.171Z`.
pub fn format(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Read any ISO 8601 time with a zone (the SDKs send milliseconds, microseconds or none).
pub fn parse(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.with_timezone(&Utc))
}
