//! Tells when the machine's clock was set.

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

/// Less than that is drift, or time between two looks at two clocks.
const STEP: i64 = 2;

/// The time of day beside a clock that nobody sets.
#[derive(Debug)]
pub(super) struct Clock {
    last: (Instant, DateTime<Utc>),
}

impl Clock {
    pub(super) fn new(instant: Instant, time: DateTime<Utc>) -> Clock {
        Clock { last: (instant, time) }
    }

    /// By how much the clock was set since the last look, if it was: back if below zero. A machine that slept is taken
    /// for one whose clock was set: nothing went on meanwhile, so nothing has taken too long.
    pub(super) fn look(&mut self, instant: Instant, time: DateTime<Utc>) -> Option<TimeDelta> {
        let (last_instant, last_time) = std::mem::replace(&mut self.last, (instant, time));
        let passed = TimeDelta::from_std(instant.saturating_duration_since(last_instant)).unwrap_or(TimeDelta::MAX);
        let set = (time - last_time).checked_sub(&passed)?;
        (set.abs() >= TimeDelta::seconds(STEP)).then_some(set)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_that_is_set_is_told_from_one_that_goes() {
        let (start, time) = (Instant::now(), DateTime::UNIX_EPOCH);
        let mut clock = Clock::new(start, time);
        for (instant, seconds, set) in [
            (0, 0, None),
            (1000, 1000, None),
            // It drifts.
            (2000, 2001, None),
            (3000, 3000, None),
            // An hour back, and on from there.
            (3001, 3001 - 3600, Some(-3600)),
            (3010, 3010 - 3600, None),
            // And forward again, seen late.
            (5000, 5000, Some(3600)),
            (5000, 5000, None),
        ] {
            let found = clock.look(start + Duration::from_secs(instant), time + TimeDelta::seconds(seconds));
            assert_eq!(found.map(|set| set.num_seconds()), set, "{instant}");
        }
    }
}
