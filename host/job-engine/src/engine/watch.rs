//! Whether so many devices fail that a job is aborted.

use std::collections::VecDeque;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::job::policy::{AbortRule, FailureClass};

/// One abort rule and what it has seen.
#[derive(Debug)]
pub(super) struct Watch {
    rule: AbortRule,
    /// Outcomes within the rule's window, and whether they are failures that count. Empty for a rule without a window.
    recent: VecDeque<(DateTime<Utc>, bool)>,
    ended: u64,
    failed: u64,
}

impl Watch {
    pub(super) fn new(rule: AbortRule) -> Watch {
        Watch { rule, recent: VecDeque::new(), ended: 0, failed: 0 }
    }

    pub(super) fn count(&mut self, now: DateTime<Utc>, failure: Option<FailureClass>) {
        let counts = failure.is_some_and(|class| self.rule.counts(class));
        self.ended += 1;
        self.failed += u64::from(counts);
        if self.rule.window_in_seconds.is_some() {
            self.recent.push_back((now, counts));
        }
    }

    /// Why the job is to be aborted, if it is.
    pub(super) fn judge(&mut self, now: DateTime<Utc>) -> Option<String> {
        if let Some(seconds) = self.rule.window_in_seconds {
            let from = now - TimeDelta::seconds(seconds.into());
            while let Some((_, counted)) = self.recent.pop_front_if(|(at, _)| *at <= from) {
                self.ended -= 1;
                self.failed -= u64::from(counted);
            }
        }
        let AbortRule { failure_percent, minimum, window_in_seconds, on } = &self.rule;
        if self.ended < u64::from(*minimum) || self.failed * 100 <= self.ended * u64::from(*failure_percent) {
            return None;
        }
        let names: Vec<_> = on.iter().map(|class| class.name()).collect();
        let by = if names.is_empty() { String::new() } else { format!(" by {}", names.join(" or ")) };
        let within = window_in_seconds.map(|seconds| format!(" within {seconds} s")).unwrap_or_default();
        Some(format!("{} of {} devices failed{by}{within}, more than {failure_percent}%", self.failed, self.ended))
    }
}
