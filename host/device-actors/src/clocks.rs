//! Reads the clocks for an actor.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::time;

use crate::timers::Now;

/// How long the wall clock is reckoned from the monotonic one: as late is noticed that somebody has set it.
const TRUSTED: Duration = Duration::from_millis(100);

/// The two clocks of one device. Reading a clock is a noticeable part of what a call costs, and an actor wants both for
/// each message: so the wall clock is read only by whoever has been quiet for a while, and now and then.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    /// When the wall clock was read last, and what it showed.
    read: Option<(Instant, Duration)>,
}

impl Clocks {
    /// What the clocks show.
    pub(crate) fn now(&mut self) -> Now {
        self.at(time::Instant::now().into_std(), || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    fn at(&mut self, monotonic: Instant, wall: impl FnOnce() -> Duration) -> Now {
        let wall = match self.read {
            Some((read, wall)) if monotonic < read + TRUSTED => wall + monotonic.saturating_duration_since(read),
            _ => self.read.insert((monotonic, wall())).1,
        };
        Now { monotonic, wall: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_is_read_again_after_a_while() {
        let (mut clocks, start) = (Clocks::default(), Instant::now());
        let mut shown = |after: u64, wall: u64| {
            clocks.at(start + Duration::from_millis(after), || Duration::from_millis(wall)).wall
        };
        assert_eq!(shown(0, 5000), 5000);
        assert_eq!(shown(99, 9000), 5099, "reckoned");
        assert_eq!(shown(100, 9000), 9000, "somebody has set it");
        assert_eq!(shown(150, 1000), 9050);
        assert_eq!(shown(200, 1000), 1000, "also backwards");
    }
}
