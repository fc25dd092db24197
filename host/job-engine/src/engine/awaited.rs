//! The devices of a job whose twins pin a version and that have not told yet how it does.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::job::policy::ReportRule;
use iothub_protocol::plugin_report::{PinState, Standing};

/// Between two looks at reports.
const LOOK_EVERY: TimeDelta = TimeDelta::seconds(1);
/// Devices that are looked at together, in turn if there are more: some milliseconds of a hub's time.
const LOOK: usize = 500;

/// Whoever waits is decided on only by a look, never by time alone: while a hub cannot be asked, nobody fails.
#[derive(Debug)]
pub(super) struct Awaited {
    plugin: String,
    version: String,
    soak: TimeDelta,
    timeout: TimeDelta,
    waits: HashMap<Address, Wait>,
    /// Those to look at, in this order. May name devices that are awaited no longer.
    turns: VecDeque<Address>,
    /// When to look; `None` while a look is out or nobody waits.
    next_look: Option<DateTime<Utc>>,
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
            waits: HashMap::new(),
            turns: VecDeque::new(),
            next_look: None,
        }
    }

    pub(super) fn plugin(&self) -> &str {
        &self.plugin
    }

    /// Wait for a device whose twin was updated at `since`, but until `at_least` in any case.
    pub(super) fn add(&mut self, now: DateTime<Utc>, device: Address, since: DateTime<Utc>, at_least: DateTime<Utc>) {
        if self.waits.is_empty() {
            self.next_look = Some(now + LOOK_EVERY);
        }
        self.turns.push_back(device.clone());
        let until = (since + self.timeout).max(at_least);
        self.waits.insert(device, Wait { until, runs_since: None });
    }

    pub(super) fn remove(&mut self, device: &Address) {
        self.waits.remove(device);
        if self.waits.is_empty() {
            self.turns.clear();
            self.next_look = None;
        }
    }

    pub(super) fn deadline(&self) -> Option<DateTime<Utc>> {
        self.next_look
    }

    /// The devices to look at now; their answer goes to [`Awaited::seen`].
    pub(super) fn look(&mut self, now: DateTime<Utc>) -> Option<Vec<Address>> {
        self.next_look.take_if(|at| *at <= now)?;
        let mut devices = Vec::new();
        while devices.len() < LOOK
            && let Some(device) = self.turns.pop_front()
        {
            if self.waits.contains_key(&device) {
                devices.push(device);
            }
        }
        Some(devices)
    }

    /// No more looks: the process is about to end.
    pub(super) fn close(&mut self) {
        self.next_look = None;
    }

    /// What a look at `devices` found. One that is not among the found does not exist any more. `None`: the hub could
    /// not be asked.
    pub(super) fn seen(
        &mut self,
        now: DateTime<Utc>,
        devices: Vec<Address>,
        found: Option<&HashMap<Address, PinState>>,
    ) -> Vec<(Address, Verdict)> {
        let mut verdicts = Vec::new();
        for device in devices {
            let Some(wait) = self.waits.get_mut(&device) else { continue };
            match found.and_then(|found| wait.judge(now, self.soak, &self.version, found.get(&device))) {
                Some(verdict) => verdicts.push((device, verdict)),
                None => self.turns.push_back(device),
            }
        }
        if !self.waits.is_empty() {
            self.next_look = Some(now + LOOK_EVERY);
        }
        verdicts
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
