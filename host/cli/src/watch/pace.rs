//! How fast a job goes, and when it will be over.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The rate is that of so long: short enough to follow a job that slows down, long enough not to jump.
const WINDOW: Duration = Duration::from_secs(10);
/// Readings within the window that are kept.
const MAX_READINGS: usize = 100;

/// Counts of what is done, as they were read.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    readings: VecDeque<(Instant, u64)>,
}

impl Pace {
    /// So many are done by now.
    pub(crate) fn read(&mut self, now: Instant, done: u64) {
        // One in a window at least is left, as what to compare with.
        while self.readings.len() > 1 && self.readings.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.readings.pop_front();
        }
        let is_dense = self.readings.back().is_some_and(|(at, _)| *at + WINDOW / MAX_READINGS as u32 > now);
        if is_dense && self.readings.len() > 1 {
            self.readings.pop_back();
        }
        self.readings.push_back((now, done));
    }

    /// How many a second, once that can be told.
    pub(crate) fn rate(&self) -> Option<f64> {
        let ((from, before), (to, done)) = (self.readings.front()?, self.readings.back()?);
        let seconds = to.checked_duration_since(*from)?.as_secs_f64();
        (seconds > 0.0).then(|| done.saturating_sub(*before) as f64 / seconds)
    }

    /// How long so many more will take.
    pub(crate) fn remaining(&self, left: u64) -> Option<Duration> {
        let rate = self.rate().filter(|rate| *rate > 0.0)?;
        Duration::try_from_secs_f64(left as f64 / rate).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!((pace.rate(), pace.remaining(5)), (None, None));
        pace.read(at(0), 0);
        assert_eq!(pace.rate(), None, "one reading tells nothing");
        // A hundred a second for a minute, then ten.
        (1..=60).for_each(|second| pace.read(at(second), second * 100));
        assert_eq!((pace.rate(), pace.remaining(500)), (Some(100.0), Some(Duration::from_secs(5))));
        (61..=75).for_each(|second| pace.read(at(second), 6000 + (second - 60) * 10));
        assert_eq!(pace.rate(), Some(10.0));
        (76..=90).for_each(|second| pace.read(at(second), 6150));
        assert_eq!((pace.rate(), pace.remaining(1)), (Some(0.0), None), "it stands still");
    }

    #[test]
    fn many_readings_are_not_kept() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        (0..10_000).for_each(|reading| pace.read(start + Duration::from_millis(reading), reading));
        assert!(pace.readings.len() <= MAX_READINGS + 2, "{}", pace.readings.len());
        assert!(pace.rate().is_some_and(|rate| (999.0..=1001.0).contains(&rate)), "{:?}", pace.rate());
    }
}
