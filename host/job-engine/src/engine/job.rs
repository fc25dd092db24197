//! One unfinished job.

use std::collections::{BTreeSet, HashMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::job::policy::{EndThen, OfflineEnd, PolicyOutcome, Priority};
use iothub_protocol::job::recurrence::{Occurrence, Recurrence};
use iothub_protocol::job::targets::JobTargets;
use iothub_protocol::job::{DeviceJobOutcome, Hold, HoldCause, JobStatistics};
use iothub_protocol::query::{Condition, QueryError};

use super::course::Course;
use super::fresh::{Fresh, Turn};
use super::gathering::Gathering;
use super::steps::Steps;
use super::target::{End, State, Target};
use super::windows::{Place, Windows};
use super::{BegunTarget, SavedJob, Scope, Waits};
use crate::fleet::Selection;

#[derive(Debug)]
pub(super) struct Job {
    pub(super) steps: Steps,
    priority: Priority,
    /// It is in line to begin more.
    pub(super) waits_for_turn: bool,
    pub(super) condition: String,
    /// Which devices it is for beyond the condition.
    pub(super) scope: Option<JobTargets>,
    pub(super) phase: Phase,
    pub(super) start: DateTime<Utc>,
    /// If it is one of a series.
    pub(super) occurrence: Option<Occurrence>,
    window: TimeDelta,
    pub(super) begun: Option<DateTime<Utc>>,
    /// When the window ends, once the job has begun and while it is not paused.
    pub(super) ends: Option<DateTime<Utc>>,
    /// When that end comes that its policy gives it.
    pub(super) rule_ends: Option<DateTime<Utc>>,
    /// What is being done as it has come.
    pub(super) ending: Option<EndThen>,
    /// It does not go on.
    pub(super) hold: Option<Hold>,
    /// For how long it was paused before: the window and the wait for devices are longer by that.
    pub(super) held_for: TimeDelta,
    /// Whether it was created before the engine was opened.
    pub(super) is_loaded: bool,
    /// Whether a device that is offline is tried again until the window ends: just after a restart.
    pub(super) waits_for_offline: bool,
    pub(super) cancelling: bool,
    /// Why its policy stops it; then it is `cancelling` as well.
    pub(super) aborted: Option<String>,
    /// Only a job with a policy has one.
    pub(super) course: Option<Box<Course>>,
    /// Only a continuous job has one.
    pub(super) gathering: Option<Gathering>,
    pub(super) statistics: JobStatistics,
    /// The devices that have had a turn, or were to have one, and have not ended.
    pub(super) targets: HashMap<Address, Target>,
    /// Those of them to start next: in [`State::Ready`], and none twice.
    pub(super) ready: VecDeque<Address>,
    /// The devices that follow after those.
    pub(super) fresh: Fresh,
    /// Devices to try again, by when. Those in [`State::Later`].
    pub(super) later: BTreeSet<(DateTime<Utc>, Address)>,
    /// By when devices have to have ended that have begun, the job's pauses not counted.
    pub(super) expiries: BTreeSet<(DateTime<Utc>, Address)>,
    pub(super) windows: Option<Box<Windows>>,
    /// How many devices are starting or sent.
    pub(super) in_flight: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not begun: before its time, or no room.
    Waiting,
    Selecting,
    Running,
    /// Aborted, and every device has ended: pins are taken back.
    Unpinning,
    /// Over; its end is being recorded.
    Finished,
}

impl Job {
    pub(super) fn new(saved: SavedJob, is_loaded: bool) -> Job {
        let priority = saved.request.policy.as_ref().map(|policy| policy.priority).unwrap_or_default();
        let windows = saved.request.policy.as_ref().and_then(|policy| Windows::new(&policy.windows));
        let condition = &saved.request.query_condition;
        let gathering = saved.request.is_continuous().then(|| Gathering::new(condition, saved.start));
        let course = saved.request.policy.map(|policy| Box::new(Course::new(policy, &saved.request.action)));
        Job {
            priority,
            waits_for_turn: false,
            steps: Steps::new(saved.request.action, saved.request.then),
            condition: saved.request.query_condition,
            scope: saved.request.targets,
            phase: Phase::Waiting,
            start: saved.start,
            occurrence: saved.request.recurrence.as_ref().and_then(Recurrence::occurrence).cloned(),
            window: TimeDelta::seconds(i64::from(saved.request.max_execution_time_in_seconds)),
            begun: None,
            ends: None,
            rule_ends: None,
            ending: saved.ending,
            hold: saved.hold,
            held_for: saved.held_for,
            is_loaded,
            waits_for_offline: false,
            cancelling: saved.cancelling,
            aborted: saved.aborted,
            course,
            gathering,
            statistics: saved.statistics,
            targets: HashMap::new(),
            ready: VecDeque::new(),
            fresh: Fresh::default(),
            later: BTreeSet::new(),
            expiries: BTreeSet::new(),
            windows,
            in_flight: 0,
        }
    }

    pub(super) fn priority(&self) -> Priority {
        self.priority
    }

    pub(super) fn begin(&mut self, begun: DateTime<Utc>) {
        self.phase = Phase::Running;
        self.begun = Some(begun);
        self.set_times();
    }

    /// Set what counts from the beginning, the time that the job was paused apart. Nothing ends while it is paused.
    pub(super) fn set_times(&mut self) {
        let counts_from = self.begun.filter(|_| self.hold.is_none()).map(|begun| begun + self.held_for);
        self.ends = counts_from.map(|from| from + self.window);
        if let Some(course) = &mut self.course {
            self.rule_ends = course.ends(counts_from);
            course.begin(counts_from);
        }
        self.bound_waits();
    }

    /// Nobody waits for a device longer than the policy says, also if the wait began during a pause, when it had no end.
    pub(super) fn bound_waits(&mut self) {
        let Some(end) = self.course.as_ref().and_then(|course| course.offline_until()) else { return };
        let is_beyond = |(at, device): &&(DateTime<Utc>, Address)| {
            let target = self.targets.get(device);
            target.is_some_and(|target| target.awaits_connection && *at > target.offline_until(end))
        };
        let beyond: Vec<_> = self.later.iter().filter(is_beyond).cloned().collect();
        for place in beyond {
            self.later.remove(&place);
            if let Some(target) = self.targets.get_mut(&place.1) {
                let end = target.offline_until(end);
                target.state = State::Later(end);
                self.later.insert((end, place.1));
            }
        }
    }

    /// How long after the job's beginning the time of a device begins that has joined so long after it: with its window.
    pub(super) fn late_in(&self, zone: Place, late: TimeDelta) -> TimeDelta {
        let (Some(windows), Some(begun)) = (&self.windows, self.begun) else { return late };
        late + windows.opens_after(zone, begun, late)
    }

    /// What stops it, if anything does.
    pub(super) fn stopped_by(&self) -> PolicyOutcome {
        match (&self.aborted, self.ending) {
            (Some(_), _) => PolicyOutcome::JobAborted,
            (None, Some(EndThen::Cancel | EndThen::Force)) => PolicyOutcome::JobEnded,
            (None, Some(EndThen::Stop) | None) => PolicyOutcome::JobCancelled,
        }
    }

    /// Whether nothing new begins. While it waits for approval, its stage goes on.
    pub(super) fn is_held(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.cause != HoldCause::Approval)
    }

    /// So many devices come while the job runs. Answers how long after its beginning that is.
    pub(super) fn join(&mut self, now: DateTime<Utc>, count: usize) -> TimeDelta {
        self.statistics.device_count += count as u64;
        self.statistics.pending_count += count as u64;
        self.begun.map_or(TimeDelta::zero(), |begun| (now - begun).max(TimeDelta::zero()))
    }

    /// Whether devices can come to it yet, which keeps it from its end.
    pub(super) fn gathers(&self, now: DateTime<Utc>) -> bool {
        let is_over = self.is_stopped() || self.ends.is_some_and(|ends| ends <= now);
        self.phase == Phase::Running && self.gathering.is_some() && !is_over
    }

    /// Nobody else is to begin in it.
    pub(super) fn is_stopped(&self) -> bool {
        self.cancelling || self.ending.is_some()
    }

    /// All its devices have ended, and it waits for others.
    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Running && !self.is_open()
    }

    /// Whom it is for.
    ///
    /// # Errors
    /// If a condition is none.
    pub(super) fn selection(&self) -> Result<(Selection, Scope), QueryError> {
        let condition = Condition::parse_job(&self.condition)?;
        let scope = Scope::new(self.scope.as_ref(), self.course.as_deref().map(Course::policy))?;
        let labels = self.course.as_ref().map(|course| course.labels()).unwrap_or_default();
        Ok((Selection { condition, among: None, labels }, scope))
    }

    pub(super) fn clock_set(&mut self, by: TimeDelta) {
        let since = self.hold.as_mut().map(|hold| &mut hold.since);
        // An end at a time of day stays.
        let counted = self.course.as_ref().and_then(|course| course.policy().end?.after_in_seconds);
        let rule_ends = self.rule_ends.as_mut().filter(|_| counted.is_some());
        for at in [self.begun.as_mut(), self.ends.as_mut(), since, rule_ends].into_iter().flatten() {
            *at += by;
        }
        self.steps.clock_set(by);
        for target in self.targets.values_mut() {
            if let State::Later(at) = &mut target.state {
                *at += by;
            }
            target.expires = target.expires.map(|at| at + by);
        }
        self.expiries = std::mem::take(&mut self.expiries).into_iter().map(|(at, device)| (at + by, device)).collect();
        if let Some(windows) = &mut self.windows {
            windows.clock_set();
        }
        self.later = std::mem::take(&mut self.later).into_iter().map(|(at, device)| (at + by, device)).collect();
        if let Some(course) = &mut self.course {
            course.clock_set(by);
        }
        if let Some(gathering) = &mut self.gathering {
            gathering.clock_set(by);
        }
    }

    /// Whether any device has not ended.
    pub(super) fn is_open(&self) -> bool {
        !self.targets.is_empty() || !self.fresh.is_empty()
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || self.has_fresh()
    }

    /// Whether the job's rate counts the next device: it is one of devices, and those that have begun go on. `None` if
    /// there is no next one.
    pub(super) fn counts_next(&self) -> Option<bool> {
        match self.ready.front() {
            Some(device) => Some(self.targets.get(device).is_none_or(|target| target.step == 0)),
            None => self.has_fresh().then_some(true),
        }
    }

    /// Whether a device that has not had a turn can have it, as its window is open.
    fn has_fresh(&self) -> bool {
        self.fresh.has_next(self.stage(), |place| self.windows.as_ref().is_none_or(|windows| windows.is_open(place)))
    }

    /// Take the next device, to start it.
    pub(super) fn take_next(&mut self) -> Option<Address> {
        if let Some(device) = self.ready.pop_front() {
            return Some(device);
        }
        let windows = self.windows.as_ref();
        let is_open = |place| windows.is_none_or(|windows| windows.is_open(place));
        let stage = self.course.as_ref().map_or(0, |course| course.stage());
        let Turn { target, late, place } = self.fresh.pop(stage, is_open)?;
        let device = target.device.clone();
        self.take_in(target, late, place);
        Some(device)
    }

    /// Take a device that has its first turn, and has joined so long after the job's beginning.
    pub(super) fn take_in(&mut self, target: BegunTarget, late: TimeDelta, zone: Place) {
        let BegunTarget { device, stage, group, .. } = target;
        let target = Target::new(0, stage.unwrap_or_default(), group, State::Ready);
        let late = self.late_in(zone, late);
        self.targets.insert(device, Target { zone, late, ..target });
    }

    /// The stage under way, counted from 1.
    fn stage(&self) -> u32 {
        self.course.as_ref().map_or(0, |course| course.stage())
    }

    /// A sent device waits for its twin before its next step; it is in nobody's way.
    pub(super) fn await_twin(&mut self, device: &Address) {
        let Some(target) = self.targets.get_mut(device) else { return };
        target.state = State::Awaited;
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// A device whose twin was waited for has its next step at its next turn, before those that have not begun.
    pub(super) fn go_on(&mut self, device: &Address) {
        let Some(target) = self.targets.get_mut(device) else { return };
        target.state = State::Ready;
        self.ready.push_front(device.clone());
        self.statistics.running_count = self.statistics.running_count.saturating_sub(1);
        self.statistics.pending_count += 1;
    }

    /// A sent device has its next step at its next turn.
    pub(super) fn put_back(&mut self, device: &Address) {
        let Some(target) = self.targets.get_mut(device) else { return };
        target.state = State::Ready;
        self.ready.push_front(device.clone());
        self.landed();
        self.statistics.pending_count += 1;
    }

    /// The answer of the device's last method, or else `outcome`.
    pub(super) fn answer_of(&self, device: &Address, outcome: DeviceJobOutcome) -> DeviceJobOutcome {
        let answered = self.targets.get(device).and_then(|target| target.answered.clone());
        match (outcome, answered) {
            (DeviceJobOutcome::TwinUpdated, Some(answered)) => DeviceJobOutcome::Method(*answered),
            (outcome, _) => outcome,
        }
    }

    /// A sent device has its update, and succeeds or fails by what it reports. `false` if the update is all there is.
    pub(super) fn wait_for_report(&mut self, now: DateTime<Utc>, device: &Address) -> bool {
        let awaited = self.course.as_mut().and_then(|course| course.awaited.as_mut());
        let (Some(awaited), Some(target)) = (awaited, self.targets.get_mut(device)) else { return false };
        awaited.add(now, device.clone(), now, now);
        target.state = State::Awaited;
        // Still running, as the wire has it, but not in anybody's way.
        self.in_flight = self.in_flight.saturating_sub(1);
        true
    }

    /// Whether that answer is what the job wants.
    pub(super) fn is_success(&self, outcome: &DeviceJobOutcome) -> bool {
        self.course.as_ref().is_none_or(|course| course.is_success(outcome))
    }

    /// Whether a device's update is not yet its success.
    pub(super) fn succeeds_by_report(&self) -> bool {
        self.course.as_ref().is_some_and(|course| course.awaited.is_some())
    }

    /// Whether an aborted job, all of whose devices have ended, has pins to take back first. No time ends that.
    pub(super) fn begins_to_unpin(&mut self) -> bool {
        let reached = self.course.as_ref().is_some_and(|course| !course.reached.is_empty());
        let unpins = self.aborted.is_some() && reached;
        if unpins {
            (self.phase, self.ends) = (Phase::Unpinning, None);
        }
        unpins
    }

    /// The next stage begins; its number, counted from 1.
    pub(super) fn next_stage(&mut self) -> Option<u32> {
        let course = self.course.as_mut()?;
        course.next_stage();
        Some(course.stage())
    }

    /// When time alone changes something.
    pub(super) fn deadline(&self) -> Option<DateTime<Utc>> {
        let retry = self.later.first().map(|(at, _)| *at);
        let course = self.course.as_ref().and_then(|course| course.deadline());
        let window =
            self.windows.as_ref().and_then(|windows| windows.deadline(|place| self.fresh.waits(self.stage(), place)));
        let gathering = self.gathering.as_ref().filter(|_| !self.is_stopped()).and_then(Gathering::deadline);
        let ends = [self.ends, self.end_deadline(), self.expiry(), gathering];
        ends.into_iter().flatten().chain(retry).chain(course).chain(window).chain(self.steps.deadline()).min()
    }

    /// Devices whose wait is over are ready again. Answers those that are waited for no longer.
    #[must_use]
    pub(super) fn wake(&mut self, now: DateTime<Utc>) -> Vec<Address> {
        let until = self.course.as_ref().and_then(|course| course.offline_until());
        let mut given_up = Vec::new();
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, device)) = self.later.pop_first() else { break };
            let Some(target) = self.targets.get_mut(&device) else { continue };
            if target.awaits_connection && until.is_some_and(|until| target.offline_until(until) <= now) {
                given_up.push(device);
            } else {
                target.state = State::Ready;
                self.ready.push_back(device);
            }
        }
        given_up
    }

    /// A device has connected. Whether it was waited for.
    pub(super) fn arrived(&mut self, device: &Address) -> bool {
        let Some(target) = self.targets.get_mut(device) else { return false };
        match target.state {
            State::Starting | State::Sent => target.has_arrived = true,
            State::Later(at) if target.awaits_connection => {
                self.later.remove(&(at, device.clone()));
                target.state = State::Ready;
                self.ready.push_back(device.clone());
                return true;
            }
            _ => {}
        }
        false
    }

    /// As [`Job::arrived`], of every device that is waited for.
    pub(super) fn all_arrived(&mut self) -> bool {
        let awaited = self.targets.iter().filter(|(_, target)| match target.state {
            State::Starting | State::Sent => true,
            State::Later(_) => target.awaits_connection,
            _ => false,
        });
        let awaited: Vec<_> = awaited.map(|(device, _)| device.clone()).collect();
        // Each of them, whatever came of those before it.
        awaited.iter().filter(|device| self.arrived(device)).count() > 0
    }

    /// A device has left the pending ones.
    pub(super) fn started(&mut self) {
        self.in_flight += 1;
        self.statistics.pending_count = self.statistics.pending_count.saturating_sub(1);
        self.statistics.running_count += 1;
    }

    /// A sent device was offline: pending again, until it connects or its next try. Answers when that is.
    pub(super) fn wait_for(&mut self, now: DateTime<Utc>, device: &Address, waits: Waits) -> DateTime<Utc> {
        let until = self.course.as_ref().and_then(|course| course.offline_until());
        let Some(target) = self.targets.get_mut(device) else { return now };
        // Beyond 2^8 the longest wait rules anyway.
        let wait = (waits.first * 2_i32.pow(target.offline.min(8))).min(waits.longest);
        let at = match std::mem::take(&mut target.has_arrived) {
            // It has connected while its attempt failed.
            true => now,
            false => until.map_or(now + wait, |until| target.offline_until(until).min(now + wait)),
        };
        target.offline += 1;
        target.awaits_connection = true;
        target.last = None;
        self.try_again(at, device);
        at
    }

    /// A sent device failed: pending again, until its next try. Answers how often it has failed.
    pub(super) fn retry(&mut self, at: DateTime<Utc>, device: &Address, outcome: DeviceJobOutcome) -> u32 {
        let Some(target) = self.targets.get_mut(device) else { return 0 };
        target.failures += 1;
        target.last = Some(Box::new(outcome));
        target.awaits_connection = false;
        let failures = target.failures;
        self.try_again(at, device);
        failures
    }

    fn try_again(&mut self, at: DateTime<Utc>, device: &Address) {
        let Some(target) = self.targets.get_mut(device) else { return };
        target.state = State::Later(at);
        self.later.insert((at, device.clone()));
        self.landed();
        self.statistics.pending_count += 1;
    }

    /// How long after the job's beginning a device has joined it.
    pub(super) fn late(&self, device: &Address) -> TimeDelta {
        self.targets.get(device).map_or(TimeDelta::zero(), |target| target.late)
    }

    /// How often a device has failed.
    pub(super) fn failures(&self, device: &Address) -> u32 {
        self.targets.get(device).map_or(0, |target| target.failures)
    }

    /// A device has its end. Counted by the state that it was in.
    pub(super) fn end(&mut self, now: DateTime<Utc>, device: &Address, end: End) {
        let Some(target) = self.targets.remove(device) else { return };
        if let Some(at) = target.expires {
            self.expiries.remove(&(at, device.clone()));
        }
        self.steps.remove(device, target.step);
        if let Some(course) = &mut self.course {
            if let Some(awaited) = &mut course.awaited {
                awaited.remove(device);
            }
            match end {
                End::Succeeded => course.count(now, target.stage, None, &target.group),
                End::Failed(class) => course.count(now, target.stage, Some(class), &target.group),
                End::LeftOut => course.leave_out(target.stage, &target.group),
            }
        }
        match target.state {
            State::Starting | State::Sent => self.landed(),
            State::Awaited => self.statistics.running_count = self.statistics.running_count.saturating_sub(1),
            State::Later(at) => {
                self.later.remove(&(at, device.clone()));
                self.statistics.pending_count = self.statistics.pending_count.saturating_sub(1);
            }
            State::Ready | State::Blocked => {
                self.statistics.pending_count = self.statistics.pending_count.saturating_sub(1);
            }
        }
        self.count(end, 1);
    }

    /// All devices that are pending have their end.
    pub(super) fn end_pending(&mut self, end: End) {
        let is_pending = |target: &Target| !matches!(target.state, State::Starting | State::Sent | State::Awaited);
        for (device, target) in self.targets.extract_if(|_, target| is_pending(target)) {
            if let Some(at) = target.expires {
                self.expiries.remove(&(at, device));
            }
        }
        self.ready.clear();
        self.fresh.clear();
        self.later.clear();
        if let Some(windows) = &mut self.windows {
            windows.stop();
        }
        if let Some(course) = &mut self.course {
            course.stop();
        }
        let pending = std::mem::take(&mut self.statistics.pending_count);
        self.count(end, pending);
    }

    /// All devices that have not begun are left out. Those that have go on.
    pub(super) fn end_unbegun(&mut self) {
        let targets = self.targets.len();
        self.targets.retain(|_, target| target.attempt > 0);
        let count = (targets - self.targets.len() + self.fresh.len()) as u64;
        self.fresh.clear();
        self.statistics.pending_count = self.statistics.pending_count.saturating_sub(count);
        self.count(End::LeftOut, count);
    }

    /// Devices that a rule waits for and leaves out if they do not come, in a job whose windows are over.
    pub(super) fn away_from_windows(&self) -> Vec<Address> {
        let leaves_out = self.course.as_ref().is_some_and(|course| course.offline().then == OfflineEnd::Skip);
        let is_away =
            |target: &Target| target.awaits_connection && !matches!(target.state, State::Starting | State::Sent);
        let targets = self.targets.iter().filter(|_| leaves_out && self.windows.is_some());
        targets.filter(|(_, target)| is_away(target)).map(|(device, _)| device.clone()).collect()
    }

    pub(super) fn in_state(&self, state: State) -> Vec<Address> {
        let found = self.targets.iter().filter(|(_, target)| target.state == state);
        found.map(|(device, _)| device.clone()).collect()
    }

    /// Pending devices that had an attempt: offline, or in doubt after a restart.
    pub(super) fn tried_and_pending(&self) -> Vec<Address> {
        let is_pending = |state| !matches!(state, State::Starting | State::Sent | State::Awaited);
        let tried = self.targets.iter().filter(|(_, target)| target.attempt > 0 && is_pending(target.state));
        tried.map(|(device, _)| device.clone()).collect()
    }

    /// The devices for which anything was begun, and what they come to without an end of their own.
    pub(super) fn begun_targets(&self) -> Vec<(Address, DeviceJobOutcome)> {
        let begun = self.targets.iter().filter(|(_, target)| target.attempt > 0);
        begun.map(|(device, target)| (device.clone(), target.lacking())).collect()
    }

    fn landed(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.statistics.running_count = self.statistics.running_count.saturating_sub(1);
    }

    fn count(&mut self, end: End, devices: u64) {
        match end {
            End::Succeeded => self.statistics.succeeded_count += devices,
            End::Failed(class) => {
                self.statistics.failed_count += devices;
                self.statistics.failures.add(class, devices);
            }
            // The wire has no number for them.
            End::LeftOut => {}
        }
    }
}
