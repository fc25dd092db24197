//! When a call must be over, known only of calls that are not over soon.

use std::time::{Duration, Instant};

/// The end of a call, counted from the first look at it rather than from the call's beginning: nearly all calls are
/// over before anybody looks, and reading a clock is a noticeable part of what a short one costs. Looks come with the
/// ticks of the epoch, so a call has up to one tick more than its limit.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Deadline {
    Within(Duration),
    At(Instant),
}

impl Deadline {
    pub(crate) fn within(limit: Duration) -> Deadline {
        Deadline::Within(limit)
    }

    pub(crate) fn has_passed(&mut self, now: Instant) -> bool {
        if let Deadline::Within(limit) = *self {
            *self = Deadline::At(now + limit);
        }
        matches!(self, Deadline::At(end) if *end <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_runs_from_the_first_look() {
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        let mut deadline = Deadline::within(2 * second);
        assert!(!deadline.has_passed(begun + second));
        assert!(!deadline.has_passed(begun + 2 * second));
        assert!(deadline.has_passed(begun + 3 * second));
    }

    #[test]
    fn without_time_the_first_look_is_too_late() {
        assert!(Deadline::within(Duration::ZERO).has_passed(Instant::now()));
    }
}
