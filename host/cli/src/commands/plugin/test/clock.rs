//! Times in scenarios: `90s`, `1h 30m`, `in 5m`, `2026-01-01T00:00:00Z`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use iothub_protocol::time;

/// When a timer is due, as a scenario says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// So long after what the clock shows.
    In(Duration),
    /// Milliseconds since the beginning of 1970, UTC.
    At(u64),
}

impl Due {
    pub(super) fn parse(text: &str) -> Result<Due, String> {
        match text.strip_prefix("in ") {
            Some(span) => duration(span).map(Due::In),
            None => moment(text).map(Due::At).map_err(|_| format!("{text:?} is neither `in 5m` nor {MOMENT}")),
        }
    }

    /// Milliseconds since the beginning of 1970, when the clock shows `now`.
    pub(super) fn at(self, now: u64) -> u64 {
        match self {
            Due::In(span) => now.saturating_add(milliseconds(span)),
            Due::At(at) => at,
        }
    }

    /// The same moment as `at`, said in the way of this one.
    pub(super) fn in_the_words_of(self, at: u64, now: u64) -> String {
        match self {
            Due::In(_) => from_now(at, now),
            Due::At(_) => shown(at),
        }
    }
}

/// A moment as a scenario reads it best: `in 5m`, or `5m ago` for what is overdue.
pub(super) fn from_now(at: u64, now: u64) -> String {
    match at.checked_sub(now) {
        Some(left) => format!("in {}", span(left)),
        None => format!("{} ago", span(now - at)),
    }
}

/// A span of time: numbers with the units `d`, `h`, `m`, `s` and `ms`, the larger ones first.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no span of time such as 90s, 250ms or 1h 30m, of at most {LONGEST_DAYS} days");
    let (mut rest, mut sum, mut above) = (text.trim(), 0_u64, u64::MAX);
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(after.len());
        let (name, after) = after.split_at(letters);
        let unit = UNITS.iter().find(|(known, _)| *known == name).map(|(_, unit)| *unit).filter(|unit| *unit < above);
        let (Some(unit), Ok(number)) = (unit, number.parse::<u64>()) else { return Err(wrong()) };
        let part = number.checked_mul(unit).ok_or_else(wrong)?;
        sum = sum.checked_add(part).ok_or_else(wrong)?;
        (rest, above) = (after.trim_start(), unit);
    }
    if sum > LONGEST_DAYS * DAY { Err(wrong()) } else { Ok(Duration::from_millis(sum)) }
}

/// A moment, in milliseconds since the beginning of 1970, UTC.
pub(super) fn moment(text: &str) -> Result<u64, String> {
    let moment = time::parse(text).and_then(|moment| u64::try_from(moment.timestamp_millis()).ok());
    moment.ok_or_else(|| format!("{text:?} is not {MOMENT}"))
}

pub(super) fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn span(milliseconds: u64) -> String {
    let mut left = milliseconds;
    let mut parts = Vec::new();
    for (name, unit) in UNITS {
        if left >= *unit {
            parts.push(format!("{}{name}", left / unit));
            left %= unit;
        }
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

fn shown(at: u64) -> String {
    let moment = i64::try_from(at).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
    moment.map_or_else(|| format!("{at} ms after 1970"), time::format)
}

const UNITS: &[(&str, u64)] = &[("d", DAY), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
/// In milliseconds.
const DAY: u64 = 86_400_000;
/// As far ahead as a timer can be.
const LONGEST_DAYS: u64 = 366;
const MOMENT: &str = "a time with a zone, such as 2026-01-01T00:00:00Z";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        for (text, milliseconds) in [
            ("0s", 0),
            ("90s", 90_000),
            ("250ms", 250),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("2d 1ms", 172_800_001),
            ("366d", LONGEST_DAYS * DAY),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
            assert_eq!(duration(&span(milliseconds)), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "5", "s", "1m 1h", "1s 1s", "1 s", "-1s", "1.5s", "1week", "367d", "99999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!((span(90_000), span(5_400_000)), ("1m 30s".to_owned(), "1h 30m".to_owned()));
    }

    #[test]
    fn a_due_time_is_said_in_the_scenarios_words() {
        let now = moment("2026-01-01T00:00:00Z").expect("a time");
        let (relative, absolute) = (Due::parse("in 5m"), Due::parse("2026-01-01T01:00:00+01:00"));
        assert_eq!((relative, absolute), (Ok(Due::In(Duration::from_secs(300))), Ok(Due::At(now))));
        let words = |due: Due, at| due.in_the_words_of(at, now);
        assert_eq!(words(Due::In(Duration::ZERO), now + 1500), "in 1s 500ms");
        assert_eq!(words(Due::In(Duration::ZERO), now - 1000), "1s ago");
        assert_eq!(words(Due::At(0), now + 1500), "2026-01-01T00:00:01.500Z");
        assert!(Due::parse("5m").is_err() && Due::parse("in").is_err() && moment("1969-01-01T00:00:00Z").is_err());
    }
}
