//! Times in scenarios: `90s`, `1h 30m`, `in 5m`, `2026-01-01T00:00:00Z`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use iothub_protocol::time;

use crate::units;

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

/// A span of time that a timer can wait.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let span = units::duration(text).filter(|span| *span <= LONGEST);
    span.ok_or_else(|| {
        let longest = units::shown_duration(LONGEST);
        format!("{text:?} is no span of time such as 90s, 250ms or 1h 30m, of at most {longest}")
    })
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
    units::shown_duration(Duration::from_millis(milliseconds))
}

fn shown(at: u64) -> String {
    let moment = i64::try_from(at).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
    moment.map_or_else(|| format!("{at} ms after 1970"), time::format)
}

/// As far ahead as a timer can be.
const LONGEST: Duration = Duration::from_hours(366 * 24);
const MOMENT: &str = "a time with a zone, such as 2026-01-01T00:00:00Z";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_no_longer_than_a_timer_can_wait() {
        assert_eq!(duration("366d"), Ok(LONGEST));
        for text in ["", "5", "367d"] {
            let refused = duration(text).expect_err("no span");
            assert!(refused.starts_with(&format!("{text:?} is no span")) && refused.ends_with("366d"), "{refused}");
        }
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
