//! A version on trial: who gets it, and when it has failed. Pure: it is told the time and what was counted.

use std::time::{Duration, Instant};

use super::selector::DeviceSelector;
use crate::tally::Counts;

/// Who gets a canary, and what makes it fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryPolicy {
    /// Of `devices`, 1 to 100. A larger share contains a smaller one.
    pub percent: u8,
    pub devices: DeviceSelector,
    /// How long its calls are watched.
    pub window: Duration,
    /// Percent of its calls that may fail in that time. One above and the canary is withdrawn.
    pub max_failures: u8,
}

impl Default for CanaryPolicy {
    fn default() -> CanaryPolicy {
        CanaryPolicy {
            percent: 100,
            devices: DeviceSelector::all(),
            window: Duration::from_secs(60),
            max_failures: DEFAULT_MAX_FAILURES,
        }
    }
}

/// The trial of one canary.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    pub(super) since: Instant,
    /// What the version had counted before.
    pub(super) before: Counts,
    pub(super) passed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The window is open, or too few calls were made to tell.
    Open,
    Passed,
    Failed,
}

impl Trial {
    /// `counts` are the version's own; fewer than [`MIN_CALLS`] decide nothing, since one failure of one call says little
    /// about the next thousand.
    pub(super) fn judge(&self, policy: &CanaryPolicy, now: Instant, counts: Counts) -> Judgement {
        let Counts { calls, failures } = counts.since(self.before);
        if self.passed {
            Judgement::Passed
        } else if calls < MIN_CALLS {
            Judgement::Open
        } else if failures.saturating_mul(100) > calls.saturating_mul(policy.max_failures.into()) {
            Judgement::Failed
        } else if now.saturating_duration_since(self.since) >= policy.window {
            Judgement::Passed
        } else {
            Judgement::Open
        }
    }
}

/// Calls before a canary is judged at all.
pub(super) const MIN_CALLS: u64 = 10;
const DEFAULT_MAX_FAILURES: u8 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_fails_above_the_threshold_and_passes_after_a_healthy_window() {
        let policy = CanaryPolicy::default();
        let since = Instant::now();
        let before = Counts { calls: 100, failures: 90 };
        let trial = Trial { since, before, passed: false };
        for (seconds, calls, failures, expected) in [
            (0, 0, 0, Judgement::Open),
            (1, 9, 9, Judgement::Open),
            (1, 10, 1, Judgement::Failed),
            (1, 20, 1, Judgement::Open),
            (1, 20, 2, Judgement::Failed),
            (59, 1000, 50, Judgement::Open),
            (60, 1000, 50, Judgement::Passed),
            (60, 1000, 51, Judgement::Failed),
            (60, 9, 9, Judgement::Open),
            (3600, 10, 0, Judgement::Passed),
        ] {
            let counts = Counts { calls: before.calls + calls, failures: before.failures + failures };
            let judged = trial.judge(&policy, since + Duration::from_secs(seconds), counts);
            assert_eq!(judged, expected, "{seconds} s, {failures} of {calls}");
        }
        let passed = Trial { passed: true, ..trial };
        let counts = Counts { calls: 200, failures: 190 };
        assert_eq!(passed.judge(&policy, since, counts), Judgement::Passed, "the window is over");
    }
}
