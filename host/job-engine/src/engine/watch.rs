//! Whether so many devices fail that a job is aborted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::job::policy::{AbortRule, FailureClass};

/// A group of devices; `None` for those without a group, and for all where a rule does not look at groups.
pub(super) type Group = Option<Arc<str>>;

/// One abort rule and what it has seen.
#[derive(Debug)]
pub(super) struct Watch {
    rule: AbortRule,
    /// Outcomes within the rule's window, and whether they are failures that count. Empty for a rule without a window.
    recent: VecDeque<(DateTime<Utc>, bool, Group)>,
    tallies: BTreeMap<Group, Tally>,
    /// Whose tally has changed since it was judged.
    changed: BTreeSet<Group>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    ended: u64,
    failed: u64,
}

impl Watch {
    pub(super) fn new(rule: AbortRule) -> Watch {
        Watch { rule, recent: VecDeque::new(), tallies: BTreeMap::new(), changed: BTreeSet::new() }
    }

    pub(super) fn count(&mut self, now: DateTime<Utc>, failure: Option<FailureClass>, group: &Group) {
        let counts = failure.is_some_and(|class| self.rule.counts(class));
        let group = if self.rule.per_group { group.clone() } else { None };
        let tally = self.tallies.entry(group.clone()).or_default();
        tally.ended += 1;
        tally.failed += u64::from(counts);
        if self.rule.window_in_seconds.is_some() {
            self.recent.push_back((now, counts, group.clone()));
        }
        self.changed.insert(group);
    }

    /// What was seen counts no longer.
    pub(super) fn forget(&mut self) {
        self.recent.clear();
        self.tallies.clear();
        self.changed.clear();
    }

    pub(super) fn clock_set(&mut self, by: TimeDelta) {
        for (at, _, _) in &mut self.recent {
            *at += by;
        }
    }

    /// Why the job is to be aborted, if it is.
    pub(super) fn judge(&mut self, now: DateTime<Utc>) -> Option<String> {
        self.expire(now);
        while let Some(group) = self.changed.pop_first() {
            let tally = self.tallies.get(&group).copied().unwrap_or_default();
            if self.is_broken_by(tally) {
                // Looked at again, should the job go on all the same.
                self.changed.insert(group.clone());
                return Some(self.reason(tally, &group));
            }
        }
        None
    }

    fn expire(&mut self, now: DateTime<Utc>) {
        let Some(seconds) = self.rule.window_in_seconds else { return };
        let from = now - TimeDelta::seconds(seconds.into());
        while let Some((_, counted, group)) = self.recent.pop_front_if(|(at, ..)| *at <= from) {
            let Some(tally) = self.tallies.get_mut(&group) else { continue };
            tally.ended -= 1;
            tally.failed -= u64::from(counted);
            if tally.ended == 0 {
                self.tallies.remove(&group);
            }
            self.changed.insert(group);
        }
    }

    fn is_broken_by(&self, tally: Tally) -> bool {
        tally.ended >= u64::from(self.rule.minimum)
            && tally.failed * 100 > tally.ended * u64::from(self.rule.failure_percent)
    }

    fn reason(&self, tally: Tally, group: &Group) -> String {
        let AbortRule { failure_percent, window_in_seconds, on, per_group, minimum: _ } = &self.rule;
        let names: Vec<_> = on.iter().map(|class| class.name()).collect();
        let by = if names.is_empty() { String::new() } else { format!(" by {}", names.join(" or ")) };
        let within = window_in_seconds.map(|seconds| format!(" within {seconds} s")).unwrap_or_default();
        let of = match (per_group, group) {
            (false, _) => String::new(),
            (true, Some(group)) => format!(" of {group}"),
            (true, None) => " without a group".to_owned(),
        };
        let Tally { ended, failed } = tally;
        format!("{failed} of {ended} devices{of} failed{by}{within}, more than {failure_percent}%")
    }
}
