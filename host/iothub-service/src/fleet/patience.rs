//! When a call that has failed is sent again, and when not any more. Pure.

use std::time::{Duration, Instant};

use crate::error::{Failure, FailureKind};

/// How long a call goes on after its first failure, while the hub is throttling or out of reach. Long enough for a hub's
/// restart or a network's bad minutes; beyond it, whoever waits is to know.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// The first wait between two tries, which doubles up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// One call's tries.
#[derive(Debug)]
pub(super) struct Patience {
    /// Sending it twice is the same as sending it once.
    repeatable: bool,
    failures: u32,
    /// Of the first failure and [`PATIENCE`].
    ends: Option<Instant>,
}

impl Patience {
    pub(super) fn new(repeatable: bool) -> Patience {
        Patience { repeatable, failures: 0, ends: None }
    }

    /// How long to wait before the call is sent again; `None` if it is over. `random`, from 0 to 1, keeps callers that
    /// have failed together from coming back together.
    pub(super) fn after(&mut self, now: Instant, failure: &Failure, random: f64) -> Option<Duration> {
        let may_again = match failure.kind {
            FailureKind::Throttled | FailureKind::NotSent => true,
            FailureKind::Lost | FailureKind::Unavailable | FailureKind::Broken => self.repeatable,
            FailureKind::Refused => false,
        };
        let ends = *self.ends.get_or_insert(now + PATIENCE);
        // Beyond 2^8 the longest wait rules anyway.
        let own = (FIRST_WAIT * 2_u32.pow(self.failures.min(8))).min(LONGEST_WAIT);
        self.failures += 1;
        let wait = match failure.retry_after {
            Some(asked) => asked + own.mul_f64(random / 4.0),
            None => own.mul_f64(0.5 + random / 2.0),
        };
        (may_again && now + wait < ends).then_some(wait)
    }
}
