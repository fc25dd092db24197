//! The devices of a job whose twins pin a version and that have not told yet how it does.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::job::policy::ReportRule;
use iothub_protocol::plugin_report::{PinState, Standing};

use super::looks::Looks;

#[derive(Debug)]
pub(super) struct Awaited {
    plugin: String,
    version: String,
    soak: TimeDelta,
    timeout: TimeDelta,
    looks: Looks<Wait>,
}

#[derive(Debug)]
struct Wait {
    /// When it must have reported to run the version.
    until: DateTime<Utc>,
    /// Since when it was seen to.
    runs_since: Option<DateTime<Utc>>,
}

/// What became of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Succeeded,
    Failed(String),
    NotReported(String),
}

impl Awaited {
    pub(super) fn new(rule: &ReportRule, version: &str) -> Awaited {
        Awaited {
            plugin: rule.plugin.clone(),
            version: version.to_owned(),
            soak: TimeDelta::seconds(rule.soak_in_seconds.into()),
            timeout: TimeDelta::seconds(rule.timeout_in_seconds.into()),
            looks: Looks::default(),
        }
    }

    pub(super) fn plugin(&self) -> &str {
        &self.plugin
    }

    /// Wait for a device whose twin was updated at `since`, but until `at_least` in any case.
    pub(super) fn add(&mut self, now: DateTime<Utc>, device: Address, since: DateTime<Utc>, at_least: DateTime<Utc>) {
        let until = (since + self.timeout).max(at_least);
        self.looks.add(now, device, Wait { until, runs_since: None });
    }

    pub(super) fn remove(&mut self, device: &Address) {
        self.looks.remove(device);
    }

    pub(super) fn clock_set(&mut self, by: TimeDelta) {
        self.looks.clock_set(by, |wait| {
            wait.until += by;
            wait.runs_since = wait.runs_since.map(|since| since + by);
        });
    }

    pub(super) fn deadline(&self) -> Option<DateTime<Utc>> {
        self.looks.deadline()
    }

    /// The devices to look at now; their answer goes to [`Awaited::seen`].
    pub(super) fn look(&mut self, now: DateTime<Utc>) -> Option<Vec<Address>> {
        self.looks.look(now)
    }

    /// No more looks: the process is about to end.
    pub(super) fn close(&mut self) {
        self.looks.close();
    }

    /// What a look at `devices` found. One that is not among the found does not exist any more. `None`: the hub could
    /// not be asked.
    pub(super) fn seen(
        &mut self,
        now: DateTime<Utc>,
        devices: Vec<Address>,
        found: Option<&HashMap<Address, PinState>>,
    ) -> Vec<(Address, Verdict)> {
        let Awaited { soak, version, looks, .. } = self;
        looks.seen(now, devices, |device, wait| {
            found.and_then(|found| wait.judge(now, *soak, version, found.get(device)))
        })
    }
}

impl Wait {
    fn judge(
        &mut self,
        now: DateTime<Utc>,
        soak: TimeDelta,
        version: &str,
        found: Option<&PinState>,
    ) -> Option<Verdict> {
        let absent = || Standing::Unanswered("it does not exist any more".to_owned());
        match found.map_or_else(absent, |state| state.standing(version)) {
            Standing::Runs => {
                let since = *self.runs_since.get_or_insert(now);
                (now >= since + soak).then_some(Verdict::Succeeded)
            }
            Standing::Failed(reason) => Some(Verdict::Failed(reason)),
            Standing::Unanswered(what) => {
                self.runs_since = None;
                (now >= self.until).then_some(Verdict::NotReported(what))
            }
        }
    }
}
