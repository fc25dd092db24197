//! A version on trial: who gets it, and when it has failed. Pure: it is told the time and what was counted.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

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
    /// When this process began to watch it.
    pub(super) since: Instant,
    /// What the version had counted then.
    pub(super) before: Counts,
    /// What processes before this one saw.
    pub(super) earlier: Watched,
    /// When what was seen was last kept.
    pub(super) kept_at: Instant,
    pub(super) passed: bool,
}

/// What was seen of a canary, over restarts of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Watched {
    /// How long it was watched, in milliseconds.
    milliseconds: u64,
    calls: u64,
    failures: u64,
}

impl Watched {
    pub(super) fn counts(self) -> Counts {
        Counts { calls: self.calls, failures: self.failures }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The window is open, or too few calls were made to tell.
    Open,
    Passed,
    Failed,
}

impl Trial {
    /// All that was seen until `now`. `counts` are the version's own, in this process.
    pub(super) fn watched(&self, now: Instant, counts: Counts) -> Watched {
        let (time, counts) = (now.saturating_duration_since(self.since), counts.since(self.before));
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Watched {
            milliseconds: self.earlier.milliseconds.saturating_add(milliseconds),
            calls: self.earlier.calls.saturating_add(counts.calls),
            failures: self.earlier.failures.saturating_add(counts.failures),
        }
    }

    /// Fewer calls than [`MIN_CALLS`] decide nothing, since one failure of one call says little about the next
    /// thousand.
    pub(super) fn judge(&self, policy: &CanaryPolicy, watched: Watched) -> Judgement {
        let Watched { milliseconds, calls, failures } = watched;
        if self.passed {
            Judgement::Passed
        } else if calls < MIN_CALLS {
            Judgement::Open
        } else if failures.saturating_mul(100) > calls.saturating_mul(policy.max_failures.into()) {
            Judgement::Failed
        } else if Duration::from_millis(milliseconds) >= policy.window {
            Judgement::Passed
        } else {
            Judgement::Open
        }
    }
}

/// Calls before a canary is judged at all.
pub(super) const MIN_CALLS: u64 = 10;
/// How often what is seen of a canary is kept, while there are calls: a host that is killed forgets no more than this.
pub(super) const KEEP: Duration = Duration::from_secs(2);
const DEFAULT_MAX_FAILURES: u8 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_fails_above_the_threshold_and_passes_after_a_healthy_window() {
        let policy = CanaryPolicy::default();
        let since = Instant::now();
        let before = Counts { calls: 100, failures: 90 };
        let trial = Trial { since, before, earlier: Watched::default(), kept_at: since, passed: false };
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
            let judged = trial.judge(&policy, trial.watched(since + Duration::from_secs(seconds), counts));
            assert_eq!(judged, expected, "{seconds} s, {failures} of {calls}");
        }
        let counts = Counts { calls: 200, failures: 190 };
        let passed = Trial { passed: true, ..trial };
        assert_eq!(passed.judge(&policy, passed.watched(since, counts)), Judgement::Passed, "the window is over");
    }

    #[test]
    fn a_trial_goes_on_where_an_earlier_process_left_it() {
        let policy = CanaryPolicy::default();
        let since = Instant::now();
        let earlier = Watched { milliseconds: 50_000, calls: 99, failures: 5 };
        let trial = Trial { since, before: Counts::default(), earlier, kept_at: since, passed: false };
        for (seconds, calls, failures, expected) in [
            (0, 0, 0, Judgement::Failed),
            (9, 1, 0, Judgement::Open),
            (10, 1, 0, Judgement::Passed),
            (10, 1, 1, Judgement::Failed),
        ] {
            let watched = trial.watched(since + Duration::from_secs(seconds), Counts { calls, failures });
            assert_eq!(trial.judge(&policy, watched), expected, "{watched:?}");
        }
    }
}
