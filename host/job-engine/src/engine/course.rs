//! Where a job with a policy stands: its stages, its rate, and whether it goes well enough to go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::job::label::TagPath;
use iothub_protocol::job::policy::{FailureClass, InDoubt, JobPolicy, OfflineRule, OnAbort, Stage};
use iothub_protocol::job::{DeviceJobOutcome, JobAction};

use super::awaited::Awaited;
use super::watch::{Group, Watch};
use super::windows::{ZoneName, zone_tag};
use crate::fleet::Selected;
use crate::record::{BegunTarget, SavedEnd};

/// How far a job that could not start anybody may catch up with its rate.
const SLACK: TimeDelta = TimeDelta::milliseconds(100);
/// Characters of a device's failure in the reason for an abort.
const SHOWN: usize = 200;
/// Groups of devices that are told apart; what is in further ones is in [`OTHERS`]. Buildings or regions, not serial
/// numbers.
const MAX_GROUPS: usize = 1000;
const OTHERS: &str = "(others)";
/// Groups in the reason for an abort: the worst.
const SHOWN_GROUPS: usize = 3;

#[derive(Debug)]
pub(super) struct Course {
    policy: JobPolicy,
    /// Of each stage's own devices. One, if the policy has none.
    stages: Vec<Count>,
    /// The stage that is under way, counted from 0.
    current: usize,
    /// Since when it has gone well enough for the next one.
    good_since: Option<DateTime<Utc>>,
    watches: Vec<Watch>,
    /// Of each group of devices, where the policy names a tag.
    groups: BTreeMap<Group, Count>,
    /// Devices that have had a turn.
    started: u64,
    /// Until when devices that are not connected are waited for, if they are.
    offline_until: Option<DateTime<Utc>>,
    last_failure: Option<String>,
    /// When the rate allows the next start.
    next_start: Option<DateTime<Utc>>,
    /// A device is ready and waits for that.
    is_throttled: bool,
    pub(super) awaited: Option<Awaited>,
    /// The devices to which anything was sent, where they are to be unpinned if the job is aborted.
    pub(super) reached: BTreeSet<Address>,
    /// How many could not be.
    pub(super) not_unpinned: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    devices: u64,
    succeeded: u64,
    failed: u64,
}

/// The group that a device is in, and its time zone.
type Labels = (Group, ZoneName);

/// What comes after a device's failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum After {
    Fail,
    /// It is not connected, and not waited for.
    LeaveOut,
    /// It is tried again when it connects.
    Wait,
    Retry(DateTime<Utc>),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    GoOn,
    NextStage,
    /// The stage went well, and the next one needs somebody's approval.
    AwaitApproval(String),
    /// Paused, as the policy wants it instead of an abort.
    Pause(String),
    Abort(String),
}

impl Course {
    pub(super) fn new(policy: JobPolicy, action: &JobAction) -> Course {
        let stages = policy.stages.len().max(1);
        let awaited = policy.awaited(action).map(|(rule, version)| Awaited::new(rule, version));
        let watches = policy.abort.iter().cloned().map(Watch::new).collect();
        Course {
            policy,
            stages: vec![Count::default(); stages],
            current: 0,
            good_since: None,
            watches,
            groups: BTreeMap::new(),
            started: 0,
            offline_until: None,
            last_failure: None,
            next_start: None,
            is_throttled: false,
            awaited,
            reached: BTreeSet::new(),
            not_unpinned: 0,
        }
    }

    /// The job began at `begun`, its pauses not counted; `None` while it is paused, when nobody's wait ends.
    pub(super) fn begin(&mut self, begun: Option<DateTime<Utc>>) {
        let seconds = self.policy.offline.wait_in_seconds;
        let until = begun.map_or(DateTime::<Utc>::MAX_UTC, |begun| begun + TimeDelta::seconds(seconds.into()));
        self.offline_until = (seconds > 0).then_some(until);
    }

    /// When that end comes that the policy gives the job; one after so many seconds does not come while it is paused.
    pub(super) fn ends(&self, begun: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
        let rule = self.policy.end?;
        let after = rule.after_in_seconds.map(|seconds| TimeDelta::seconds(seconds.into()));
        rule.at.or_else(|| Some(begun? + after?))
    }

    /// The tags that are looked at: that by which devices are told apart, and that of their time zones.
    pub(super) fn labels(&self) -> Vec<TagPath> {
        self.policy.group_by.iter().chain(zone_tag(&self.policy.windows)).cloned().collect()
    }

    pub(super) fn policy(&self) -> &JobPolicy {
        &self.policy
    }

    pub(super) fn clock_set(&mut self, by: TimeDelta) {
        for at in [&mut self.good_since, &mut self.offline_until, &mut self.next_start].into_iter().flatten() {
            // While the job is paused, one of them is the end of all time.
            *at = at.checked_add_signed(by).unwrap_or(*at);
        }
        self.watches.iter_mut().for_each(|watch| watch.clock_set(by));
        if let Some(awaited) = &mut self.awaited {
            awaited.clock_set(by);
        }
    }

    pub(super) fn offline(&self) -> OfflineRule {
        self.policy.offline
    }

    pub(super) fn offline_until(&self) -> Option<DateTime<Utc>> {
        self.offline_until
    }

    pub(super) fn fails_in_doubt(&self) -> bool {
        self.policy.in_doubt == InDoubt::Fail
    }

    pub(super) fn is_success(&self, outcome: &DeviceJobOutcome) -> bool {
        match outcome {
            DeviceJobOutcome::Method(response) => self.policy.is_success(response.status),
            _ => true,
        }
    }

    /// What comes after a device's failure, which is its first after so many. The device has joined so long after the
    /// job's beginning.
    pub(super) fn after_failure(
        &self,
        now: DateTime<Utc>,
        (device, late): (&Address, TimeDelta),
        class: FailureClass,
        failures: u32,
    ) -> After {
        if class == FailureClass::Offline && self.policy.offline != OfflineRule::default() {
            return match self.offline_until {
                Some(until) if now - late < until => After::Wait,
                _ => After::LeaveOut,
            };
        }
        match self.policy.retry_of(class) {
            Some(rule) if failures < rule.retries => {
                let longest = u64::from(rule.backoff(failures + 1)) * 1000;
                // From half of it to all, so that those who failed together do not come back together.
                let wait = longest / 2 + device.rollout_place().1.rotate_left(failures) % (longest / 2 + 1);
                After::Retry(now + TimeDelta::milliseconds(wait.cast_signed()))
            }
            _ => After::Fail,
        }
    }

    /// The stage that is under way, counted from 1.
    pub(super) fn stage(&self) -> u32 {
        u32::try_from(self.current).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// Put devices in the order in which every rollout takes them, each with its stage, counted from 1. Given are those
    /// of the stages by condition, which come first; 0 is none of them. A stage by percentage has at least the first
    /// device, however few there are.
    pub(super) fn arrange(&self, mut devices: Vec<(Address, Labels, u32)>) -> Vec<(Address, Labels, u32)> {
        let by_condition = |stage: u32| if stage == 0 { u32::MAX } else { stage };
        devices.sort_by_cached_key(|(device, _, stage)| (by_condition(*stage), device.rollout_place(), device.clone()));
        devices.dedup_by(|(one, ..), (other, ..)| one == other);
        let count = devices.len();
        let mut ends = Vec::with_capacity(self.policy.stages.len());
        for (number, stage) in (1..).zip(&self.policy.stages) {
            ends.push(match stage.percent {
                None => devices.partition_point(|(_, _, stage)| by_condition(*stage) <= number),
                // Not less than those who are in stages by condition.
                Some(percent) => (count * usize::from(percent)).div_ceil(100).max(ends.last().copied().unwrap_or(0)),
            });
        }
        let stage_of = |rank: usize| ends.iter().take_while(|end| **end <= rank).count();
        let ranked = devices.into_iter().enumerate();
        let with_stage = |(rank, (device, labels, _))| {
            (device, labels, u32::try_from(stage_of(rank)).unwrap_or(u32::MAX).saturating_add(1))
        };
        ranked.map(with_stage).collect()
    }

    /// The group under which a device is counted that has this value of the tag.
    pub(super) fn group(&mut self, value: Group) -> Group {
        self.policy.group_by.as_ref()?;
        let group = match self.groups.contains_key(&value) || self.groups.len() < MAX_GROUPS {
            true => value,
            false => Some(OTHERS.into()),
        };
        self.groups.entry(group.clone()).or_default();
        group
    }

    /// The devices that the job begins with, in the order of their turns. `stages` has those of the devices in stages by
    /// condition, as [`Course::arrange`] takes them; it is empty if there are no such stages.
    pub(super) fn begin_with(&mut self, devices: Vec<Selected>, stages: Vec<u32>) -> Vec<BegunTarget> {
        let stages = stages.into_iter().chain(std::iter::repeat(0));
        let with_group =
            |(Selected { address, labels }, stage): (Selected, u32)| (address, self.labelled(labels), stage);
        let devices = devices.into_iter().zip(stages).map(with_group).collect();
        let arranged = self.arrange(devices).into_iter();
        let target = |(device, (group, zone), stage)| {
            self.add(stage, &group);
            BegunTarget { device, stage: Some(stage), group, zone }
        };
        arranged.map(target).collect()
    }

    /// What a device's values of [`Course::labels`] make of it.
    fn labelled(&mut self, labels: Box<[Option<Arc<str>>]>) -> Labels {
        let mut labels = labels.into_iter();
        let group = self.policy.group_by.is_some().then(|| labels.next()).flatten().flatten();
        (self.group(group), labels.next().flatten())
    }

    /// Devices that come while the job runs, with stages as in [`Course::begin_with`]: each is in its stage by condition
    /// if that has not begun, else in the last, which is everybody's. No other stage grows that is under way, as it would
    /// not come to its end.
    pub(super) fn join(&mut self, devices: Vec<Selected>, stages: Vec<u32>) -> Vec<BegunTarget> {
        let stages = stages.into_iter().chain(std::iter::repeat(0));
        let mut devices: Vec<_> = devices.into_iter().zip(stages).collect();
        devices.sort_by_cached_key(|(device, _)| (device.address.rollout_place(), device.address.clone()));
        devices.dedup_by(|(one, _), (other, _)| one.address == other.address);
        let last = u32::try_from(self.stages.len()).unwrap_or(u32::MAX);
        let target = |(Selected { address: device, labels }, by_condition): (Selected, u32)| {
            let (group, zone) = self.labelled(labels);
            let stage = if by_condition > self.stage() { by_condition } else { last };
            self.add(stage, &group);
            BegunTarget { device, stage: Some(stage), group, zone }
        };
        devices.into_iter().map(target).collect()
    }

    /// Take a device of a stage, counted from 1, that has no outcome.
    pub(super) fn add(&mut self, stage: u32, group: &Group) {
        if self.policy.group_by.is_some() {
            self.groups.entry(group.clone()).or_default().devices += 1;
        }
        let place = self.place(stage);
        self.stages[place].devices += 1;
    }

    /// Go on where the journal says that the job was.
    pub(super) fn resume(&mut self, stage: u32, ended: &[SavedEnd], forgiven: Option<DateTime<Utc>>) {
        self.current = self.place(stage);
        let mut is_due = forgiven.is_some();
        for end in ended {
            if is_due && forgiven.is_some_and(|forgiven| end.at > forgiven) {
                self.forgive();
                is_due = false;
            }
            let place = self.place(end.stage);
            self.stages[place].devices += 1;
            if self.policy.group_by.is_some() {
                self.groups.entry(end.group.clone()).or_default().devices += 1;
            }
            self.count(end.at, end.stage, end.failure, &end.group);
        }
        if is_due {
            self.forgive();
        }
    }

    /// A device has succeeded or failed.
    pub(super) fn count(&mut self, now: DateTime<Utc>, stage: u32, failure: Option<FailureClass>, group: &Group) {
        let place = self.place(stage);
        self.stages[place].count(failure);
        if let Some(count) = self.groups.get_mut(group) {
            count.count(failure);
        }
        for watch in &mut self.watches {
            watch.count(now, failure, group);
        }
    }

    /// The outcomes so far break no rule any more: those that failed are none of their stages' devices.
    pub(super) fn forgive(&mut self) {
        for count in self.stages.iter_mut().chain(self.groups.values_mut()) {
            count.devices = count.devices.saturating_sub(count.failed);
            count.failed = 0;
        }
        self.watches.iter_mut().for_each(Watch::forget);
    }

    /// A device of the stage is none of the job's any more.
    pub(super) fn leave_out(&mut self, stage: u32, group: &Group) {
        let place = self.place(stage);
        for count in [Some(&mut self.stages[place]), self.groups.get_mut(group)].into_iter().flatten() {
            count.devices = count.devices.saturating_sub(1);
        }
    }

    /// Why the last device failed, for the reason that an abort gives.
    pub(super) fn failed_because(&mut self, device: &Address, reason: &str) {
        let reason: String = reason.chars().take(SHOWN).collect();
        self.last_failure = Some(format!("{device}: {reason}"));
    }

    /// Whether the rate allows to start a device now.
    pub(super) fn may_start(&mut self, now: DateTime<Utc>) -> bool {
        self.is_throttled = self.next_start.is_some_and(|at| at > now);
        !self.is_throttled
    }

    /// Nobody waits for the rate.
    pub(super) fn unthrottle(&mut self) {
        self.is_throttled = false;
    }

    /// A device has its turn, perhaps again.
    pub(super) fn started(&mut self, now: DateTime<Utc>, attempt: u32) {
        self.started += u64::from(attempt == 1);
        if let Some(rate) = self.policy.rate {
            let succeeded = self.stages.iter().map(|count| count.succeeded).sum();
            let rate = rate.after(self.started, succeeded);
            let from = self.next_start.map_or(now, |at| at.max(now - SLACK));
            self.next_start = Some(from + TimeDelta::microseconds(1_000_000 / i64::from(rate.max(1))));
        }
    }

    /// So many devices had a turn before the process began.
    pub(super) fn resume_started(&mut self, started: u64) {
        self.started = started;
    }

    pub(super) fn deadline(&self) -> Option<DateTime<Utc>> {
        let start = self.next_start.filter(|_| self.is_throttled);
        let look = self.awaited.as_ref().and_then(Awaited::deadline);
        let stage =
            self.good_since.zip(self.policy.stages.get(self.current)).map(|(since, stage)| since + pause(stage));
        start.into_iter().chain(look).chain(stage).min()
    }

    /// Whether the job is to go on as it does. One that is paused can be aborted, but not go on to the next stage.
    pub(super) fn judge(&mut self, now: DateTime<Utc>, is_paused: bool) -> Judgement {
        if let Some(reason) = self.breaks_a_rule(now).or_else(|| self.fails_its_stage()) {
            let last = self.last_failure.as_ref().map(|last| format!("; {last}")).unwrap_or_default();
            let reason = reason + &self.worst_groups() + &last;
            match (self.policy.on_abort, is_paused) {
                (OnAbort::Pause, false) => return Judgement::Pause(reason),
                (OnAbort::Pause, true) => {}
                (OnAbort::Keep | OnAbort::Unpin, _) => return Judgement::Abort(reason),
            }
        }
        if is_paused || self.current + 1 >= self.stages.len() || !self.is_good() {
            self.good_since = None;
            return Judgement::GoOn;
        }
        let since = *self.good_since.get_or_insert(now);
        let Some(stage) = self.policy.stages.get(self.current) else { return Judgement::GoOn };
        let count = self.stages[self.current];
        if count.devices > 0 && now < since + pause(stage) {
            return Judgement::GoOn;
        }
        match stage.approval && count.devices > 0 {
            true => Judgement::AwaitApproval(format!(
                "stage {} of {} went well: {} of {} devices succeeded",
                self.current + 1,
                self.stages.len(),
                count.succeeded,
                count.devices
            )),
            false => Judgement::NextStage,
        }
    }

    /// `; by tags.building: 43: 6 of 9 failed, 44: 1 of 12 failed`, those first where most have.
    fn worst_groups(&self) -> String {
        let Some(tag) = &self.policy.group_by else { return String::new() };
        let mut groups: Vec<_> = self.groups.iter().filter(|(_, count)| count.failed > 0).collect();
        groups.sort_by_key(|(_, count)| std::cmp::Reverse(count.failed));
        let shown = groups.iter().take(SHOWN_GROUPS).map(|(group, count)| {
            let ended = count.failed + count.succeeded;
            format!("{}: {} of {ended} failed", group.as_deref().unwrap_or("(none)"), count.failed)
        });
        let shown: Vec<_> = shown.collect();
        match groups.len().saturating_sub(SHOWN_GROUPS) {
            0 => format!("; by {tag}: {}", shown.join(", ")),
            more => format!("; by {tag}: {}, and {more} more", shown.join(", ")),
        }
    }

    /// Begin the next stage.
    pub(super) fn next_stage(&mut self) {
        self.good_since = None;
        self.current = (self.current + 1).min(self.stages.len() - 1);
    }

    /// The job is paused: the pause before the next stage begins anew after that.
    pub(super) fn pause(&mut self) {
        self.good_since = None;
    }

    /// Nobody has a turn any more.
    pub(super) fn stop(&mut self) {
        (self.good_since, self.is_throttled) = (None, false);
    }

    /// Remember that something was sent to the device.
    pub(super) fn reach(&mut self, device: &Address) {
        if self.unpins() {
            self.reached.insert(device.clone());
        }
    }

    pub(super) fn unpins(&self) -> bool {
        self.policy.on_abort == OnAbort::Unpin
    }

    fn breaks_a_rule(&mut self, now: DateTime<Utc>) -> Option<String> {
        self.watches.iter_mut().find_map(|watch| watch.judge(now))
    }

    /// So many have failed that the stage cannot be good any more.
    fn fails_its_stage(&self) -> Option<String> {
        // Devices of a stage that is behind can fail as well, if it did not wait for all of them.
        (0..=self.current).find_map(|place| {
            let (stage, count) = (self.policy.stages.get(place)?, self.stages[place]);
            let may_fail = u64::from(100 - stage.success_threshold.min(100));
            (count.failed * 100 > count.devices * may_fail).then(|| {
                format!(
                    "stage {} of {} ({}): {} of {} devices failed, and at least {}% must succeed",
                    place + 1,
                    self.stages.len(),
                    stage.name(),
                    count.failed,
                    count.devices,
                    stage.success_threshold
                )
            })
        })
    }

    fn is_good(&self) -> bool {
        let (Some(stage), count) = (self.policy.stages.get(self.current), self.stages[self.current]) else {
            return false;
        };
        let ended = count.succeeded + count.failed;
        let sample = stage.minimum_sample.map_or(count.devices, u64::from).min(count.devices);
        ended >= sample && count.succeeded * 100 >= ended * u64::from(stage.success_threshold)
    }

    fn place(&self, stage: u32) -> usize {
        usize::try_from(stage).unwrap_or(usize::MAX).saturating_sub(1).min(self.stages.len() - 1)
    }
}

impl Count {
    fn count(&mut self, failure: Option<FailureClass>) {
        match failure {
            None => self.succeeded += 1,
            Some(_) => self.failed += 1,
        }
    }
}

fn pause(stage: &Stage) -> TimeDelta {
    TimeDelta::seconds(stage.pause_in_seconds.into())
}
