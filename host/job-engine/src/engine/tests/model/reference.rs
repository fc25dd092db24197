//! What the engine may do, and what it must, worked out anew each time from what has happened.
//!
//! Nothing is counted here while it goes on: there are the rows that the engine's decisions make, and lists of what
//! happened in this life of the process.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::{
    AbortRule, AnswerRule, EndThen, FailureClass, InDoubt, JobPolicy, OfflineEnd, OfflineRule, OnAbort, PolicyOutcome,
    Stage, SuccessRule,
};
use iothub_protocol::job::steps::Otherwise;
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus, HoldCause, JobStatus};
use iothub_protocol::method::MethodResponse;
use iothub_protocol::plugin_report::{PinState, Standing};

use super::ledger::{JobRow, Ledger, Row};
use super::{BegunTarget, Change, Check, Command, Found, Input, Limits, OPEN, What, hold, seconds};

/// For how long after its start the process waits for devices to come back.
const GRACE: TimeDelta = TimeDelta::seconds(60);
/// How far a job may catch up with its rate.
const SLACK: TimeDelta = TimeDelta::milliseconds(100);

pub(super) struct Model {
    limits: Limits,
    pub(super) now: DateTime<Utc>,
    /// When this life began.
    opened: DateTime<Utc>,
    pub(super) is_draining: bool,
    /// Everything that the engine has decided, recorded or not.
    pub(super) decided: Ledger,
    /// Changes that there must be before the engine comes to rest.
    due: Vec<Due>,
    /// Whether this is the engine's start.
    is_start: bool,
    /// What somebody has just asked for.
    command: Option<(JobId, Command)>,
    /// Orders what happened: one more with each input.
    moment: u64,
    life: Life,
}

/// What happened in this life, each list in its order.
#[derive(Default)]
struct Life {
    /// Jobs that there were at its beginning, those that had begun with the devices that they had reached.
    loaded: BTreeMap<JobId, Option<BTreeSet<Address>>>,
    selections: BTreeMap<JobId, DateTime<Utc>>,
    attempts: Vec<Attempt>,
    /// Devices that were found offline and waited for.
    offline: Vec<(JobId, Address)>,
    /// When who connected; `None` is everybody.
    arrivals: Vec<(u64, Option<Address>)>,
    looks: Vec<(JobId, Address, DateTime<Utc>, Standing)>,
    /// Answers that were as they should be, and those that were recorded before.
    answers: Vec<(JobId, Address, MethodResponse)>,
    unpinning: Vec<(JobId, Address)>,
    unpinned: Vec<JobId>,
    /// Jobs for which it is asked who has come to them.
    gathering: BTreeSet<JobId>,
    /// By when it must be asked for a job, if nothing is in the way.
    to_gather: BTreeMap<JobId, DateTime<Utc>>,
    /// When each job was last resumed.
    resumed: BTreeMap<JobId, DateTime<Utc>>,
    /// For how long its job had been paused when a device had its first attempt.
    held: BTreeMap<(JobId, Address), TimeDelta>,
    /// Jobs that could begin more, were there room for more of all jobs; since when.
    wanting: BTreeMap<JobId, u64>,
    /// The last end of a device of each job.
    ends: BTreeMap<JobId, (u64, DateTime<Utc>)>,
    /// For each job the stages, and since when each was seen to be good enough for the next or not.
    judged: BTreeMap<JobId, Vec<(u32, DateTime<Utc>, bool)>>,
}

#[derive(Debug)]
struct Attempt {
    call: Call,
    at: DateTime<Utc>,
    moment: u64,
    /// The time that its job's rate leaves between it and the next. Further steps do not count.
    period: Option<TimeDelta>,
    is_sent: bool,
    is_answered: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub(super) job: JobId,
    pub(super) device: Address,
    pub(super) attempt: u32,
}

#[derive(Debug)]
struct Due {
    job: JobId,
    what: What,
}

/// A stage's own devices.
#[derive(Debug)]
struct Tally {
    devices: usize,
    succeeded: usize,
    failed: usize,
}

impl Model {
    pub(super) fn new(limits: Limits, now: DateTime<Utc>, decided: Ledger) -> Model {
        let reached = |job: &JobRow| {
            let reached = job.rows.iter().filter(|(_, row)| row.attempt > 0);
            job.begun.map(|_| reached.map(|(device, _)| device.clone()).collect())
        };
        let answers = decided.unfinished().flat_map(|(id, job)| {
            let answered =
                |(device, row): (&Address, &Row)| Some((id.clone(), device.clone(), row.answered()?.clone()));
            job.rows.iter().filter_map(answered).collect::<Vec<_>>()
        });
        let answers = answers.collect();
        let loaded = decided.unfinished().map(|(id, job)| (id.clone(), reached(job))).collect();
        Model {
            limits,
            now,
            opened: now,
            is_draining: false,
            decided,
            due: Vec::new(),
            is_start: true,
            command: None,
            moment: 0,
            life: Life { loaded, answers, ..Life::default() },
        }
    }

    /// The engine is about to hear of it.
    pub(super) fn hear(&mut self, input: &Input) {
        self.moment += 1;
        match input {
            Input::Outcome { job, device, attempt, result } => {
                let call = Call { job: job.clone(), device: device.clone(), attempt: *attempt };
                let Some(place) = self.life.attempts.iter().position(|one| one.is_out() && one.call == call) else {
                    return;
                };
                let follows = self.follows(&call, result);
                self.due.extend(follows.into_iter().map(|what| Due { job: job.clone(), what }));
                self.life.attempts[place].is_answered = true;
            }
            Input::Seen { job, devices, result } => {
                for device in devices {
                    self.look(job, device, result.as_ref().ok());
                }
            }
            Input::Matched { job, step, devices, result } => {
                for device in devices {
                    self.matched(job, *step, device, result.as_ref().ok());
                }
            }
            Input::Gathered { job, result } => self.gather(job, result.as_ref().ok()),
            Input::Changed(devices) => self.change(devices),
            // All are looked at then, after a pause that other looks decide on.
            Input::ManyChanged => self.life.to_gather.clear(),
            Input::Arrived(device) => self.life.arrivals.push((self.moment, Some(device.clone()))),
            Input::ManyArrived => self.life.arrivals.push((self.moment, None)),
            Input::Late { job, device, attempt, outcome } => {
                let what = What::Late { device: device.clone(), attempt: *attempt, outcome: outcome.clone() };
                self.due.push(Due { job: job.clone(), what });
            }
            Input::Unpinned { job, .. } => self.life.unpinned.push(job.clone()),
            Input::Selected { job, result } => self.select(job, result.as_ref().ok()),
            Input::Created(_) | Input::Recorded(_) | Input::Tick => {}
        }
    }

    /// The engine is about to be asked for it.
    pub(super) fn hear_command(&mut self, id: &JobId, command: &Command) {
        self.moment += 1;
        self.command = Some((id.clone(), command.clone()));
    }

    /// The engine has decided something: is that allowed?
    pub(super) fn decide(&mut self, change: &Change) -> Check {
        let Change { job: id, at, what } = change;
        hold!(*at == self.now, "dated {at}");
        let job = self.decided.jobs.get(id).ok_or("no such job")?;
        hold!(job.ended.is_none() || matches!(what, What::Late { .. }), "the job has ended");
        match what {
            What::Scheduled => hold!(job.status == JobStatus::Queued && job.start > self.now, "it is due"),
            What::Begun { .. } => hold!(self.is_due(id, what), "it was not selected like that: {:?}", self.due),
            What::Joined { .. } => hold!(self.is_due(id, what), "nobody came like that: {:?}", self.due),
            What::Stage { number } => self.check_stage(id, job, *number)?,
            What::Started { device, attempt } => self.check_start(id, job, device, *attempt)?,
            What::Late { .. } => hold!(self.is_due(id, what), "no answer came late: {:?}", self.due),
            What::Audited(_) => {}
            What::Waiting { device, until, failures, .. } => {
                let is_lost = self.is_start && job.rows.get(device).is_some_and(Row::is_in_flight);
                let is_again = is_lost && until.is_none() && failures.is_none() && !fails_in_doubt(job);
                hold!(is_again || self.is_due(id, what), "there is nothing to wait for: {:?}", self.due);
            }
            What::Stepped { .. } => hold!(self.is_due(id, what), "no step is done: {:?}", self.due),
            What::Awaited { .. } => hold!(self.is_due(id, what), "no update came through"),
            What::Ended { device, status, outcome } => {
                let row = job.rows.get(device).ok_or("no row")?;
                hold!(!row.status.is_terminal(), "it had ended: {row:?}");
                let (found, may_end) = ((*status, code(outcome.as_ref())), self.ends(id, job, device, row));
                hold!(may_end.contains(&found) || self.is_due(id, what), "only {may_end:?} or {:?}", self.due);
            }
            What::PendingEnded { status, outcome } => {
                let found = (*status, code(outcome.as_ref()));
                let missed = job.has_windows().then(|| name(PolicyOutcome::WindowMissed)).flatten();
                let over = (DeviceJobStatus::Failed, missed.or(Some("JobRunPreconditionFailed".to_owned())));
                let is_over = self.is_over(job) && found == over;
                hold!(
                    is_over || job.cancelling && found == (DeviceJobStatus::Canceled, unsent(job)),
                    "the job goes on"
                );
            }
            What::Paused { cause, .. } => {
                let is_possible = job.hold.is_none() && !job.cancelling;
                hold!(is_possible && self.may_pause(id, job, *cause), "there is no reason to pause");
            }
            What::Resumed { held_for, .. } => {
                let hold = job.hold.as_ref().ok_or("it is not paused")?;
                let held = job.begun.map_or(TimeDelta::zero(), |begun| self.now - hold.since.max(begun));
                hold!(*held_for == job.held_for + held, "it was paused for {held}");
            }
            What::Cancelling => hold!(job.begun.is_some() && !job.cancelling, "there is nothing to cancel"),
            What::Ending { then } => {
                let end = job.policy().and_then(|policy| policy.end).filter(|_| is_at_end(job, self.now));
                hold!(job.ending.is_none() && end.is_some_and(|end| end.then == *then), "its end has not come");
            }
            What::UnbegunEnded { outcome } => {
                let found = code(Some(outcome));
                hold!(job.ending == Some(EndThen::Stop) && found == name(PolicyOutcome::JobEnded), "the job goes on");
            }
            What::Aborting { .. } => {
                let is_bad = self.breaks_a_rule(job) || fails_its_stage(job);
                hold!(!job.cancelling && is_bad && !pauses(job), "it goes well, or is to be paused");
            }
            What::Recurred { .. } => hold!(false, "there is no series"),
            What::Finished { status, .. } => self.check_end(id, job, *status)?,
        }
        self.note(id, what);
        self.decided.apply(change)
    }

    fn note(&mut self, id: &JobId, what: &What) {
        let now = self.now;
        if let Some(place) = self.due.iter().position(|due| due.job == *id && same(&due.what, what, now)) {
            self.due.remove(place);
        }
        match what {
            What::Started { device, attempt } => self.start(id, device, *attempt),
            What::Waiting { device, until: Some(_), failures: None, .. } => {
                self.life.offline.push((id.clone(), device.clone()));
            }
            What::Resumed { .. } => {
                self.life.resumed.insert(id.clone(), now);
            }
            // A wait for what it was sent is over.
            What::Stepped { device, .. } => {
                self.life.offline.retain(|(job, other)| job != id || other != device);
            }
            What::Ended { .. } | What::PendingEnded { .. } => {
                self.life.ends.insert(id.clone(), (self.moment, now));
            }
            _ => {}
        }
    }

    /// The engine wants to know a job's devices.
    pub(super) fn selects(&mut self, id: &JobId) -> Check {
        let job = &self.decided.jobs[id];
        hold!(job.ended.is_none() && job.begun.is_none() && job.start <= self.now, "{id} selects");
        hold!(!self.is_draining && self.active() < self.limits.concurrent_jobs, "{id} selects, and there is no room");
        let place = |at, id| (Reverse(self.decided.jobs[id].priority()), at, id);
        let is_next = self.waiting().all(|(other, at)| at > self.now || place(at, other) >= place(job.start, id));
        hold!(is_next, "{id} selects before its turn");
        self.life.selections.insert(id.clone(), self.now);
        Ok(())
    }

    /// The engine wants to know who has come to a job.
    pub(super) fn gathers(&mut self, id: &JobId, recorded: &Ledger) -> Check {
        let job = &self.decided.jobs[id];
        hold!(self.is_open(job) && !self.is_draining, "{id} is not to grow");
        hold!(has_recorded_all(job, &recorded.jobs[id]), "{id} has devices that a look at the journal does not find");
        hold!(self.life.gathering.insert(id.clone()), "{id} asks twice");
        self.life.to_gather.remove(id);
        Ok(())
    }

    /// The engine calls a device.
    pub(super) fn sends(&mut self, call: &Call, recorded: &Ledger) -> Check {
        let row = recorded.jobs.get(&call.job).and_then(|job| job.rows.get(&call.device));
        let is_recorded = row.is_some_and(|row| row.is_in_flight() && row.attempt == call.attempt);
        hold!(is_recorded, "{call:?} is sent, and recorded is {row:?}");
        hold!(!self.is_draining, "{call:?} is sent by a process that is about to end");
        let job = &self.decided.jobs[&call.job];
        hold!(job.ended.is_none() && !job.cancelling, "{call:?} is sent for a job that sends nothing more");
        let other = self.calls().find(|other| other.call.device == call.device && other.call != *call);
        hold!(other.is_none(), "{call:?} is sent during {other:?}");
        let attempt = self.life.attempts.iter_mut().find(|attempt| attempt.call == *call);
        let Some(attempt) = attempt.filter(|attempt| !attempt.is_sent) else {
            return Err(format!("{call:?} is sent twice"));
        };
        attempt.is_sent = true;
        Ok(())
    }

    pub(super) fn unpins(&mut self, id: &JobId, device: &Address) -> Check {
        let job = &self.decided.jobs[id];
        hold!(takes_back(job) && job.rows[device].attempt > 0, "{id} unpins {device}");
        let unpin = (id.clone(), device.clone());
        hold!(!self.life.unpinning.contains(&unpin), "{id} unpins {device} twice");
        self.life.unpinning.push(unpin);
        Ok(())
    }

    /// The engine has come to rest: is anything missing that must be by now?
    pub(super) fn rest(&mut self, recorded: &Ledger) -> Check {
        hold!(self.due.is_empty(), "there must be {:?}", self.due);
        (self.is_start, self.command) = (false, None);
        let busy: BTreeSet<Address> = self.calls().map(|one| one.call.device.clone()).collect();
        let jobs: Vec<JobId> = self.decided.unfinished().map(|(id, _)| id.clone()).collect();
        for id in jobs {
            self.rest_of(&id, &busy).map_err(|text| format!("{id}: {text}"))?;
        }
        let may_gather = |id: &JobId| {
            let job = &self.decided.jobs[id];
            let is_free = !self.is_draining && !self.life.gathering.contains(id);
            is_free && self.is_open(job) && has_recorded_all(job, &recorded.jobs[id])
        };
        let unasked = self.life.to_gather.iter().find(|(id, at)| **at <= self.now && may_gather(id));
        hold!(unasked.is_none(), "it is not asked who has come: {unasked:?}");
        let has_room = !self.is_draining && self.active() < self.limits.concurrent_jobs;
        let overdue = self.waiting().find(|(_, at)| has_room && *at <= self.now);
        hold!(overdue.is_none(), "a job is to begin: {overdue:?}");
        Ok(())
    }

    fn rest_of(&mut self, id: &JobId, busy: &BTreeSet<Address>) -> Check {
        let job = &self.decided.jobs[id];
        if job.begun.is_none() {
            return Ok(());
        }
        let has_call = |device, row: &Row| self.attempt(id, device).is_some_and(|one| one.call.attempt == row.attempt);
        let lost = job.rows.iter().find(|(device, row)| row.is_in_flight() && !has_call(device, row));
        hold!(lost.is_none(), "running without a call: {lost:?}");
        let is_open = job.rows.values().any(|row| !row.status.is_terminal());
        let may_go_on = is_open || self.is_open(job) || self.has_to_unpin(id, job);
        hold!(may_go_on, "all devices have ended, and the job has not");
        hold!(!is_open || !self.is_over(job), "its time is over, and it has not ended");
        let is_overdue = |device, row: &Row| !row.status.is_terminal() && self.has_expired(id, job, device, row);
        let overdue = job.rows.iter().find(|(device, row)| is_overdue(device, row));
        hold!(overdue.is_none(), "it has taken too long: {overdue:?}");
        let is_at_end = is_at_end(job, self.now);
        hold!(!is_open || !is_at_end || job.ending.is_some(), "its end has come, and nothing is done");
        let is_fresh = |row: &Row| row.status == DeviceJobStatus::Pending && row.attempt == 0;
        let unbegun = job.rows.iter().find(|(_, row)| job.ending.is_some() && is_fresh(row));
        hold!(unbegun.is_none(), "its end has come, and there is {unbegun:?}");
        let waits = job.rows.iter().find(|(_, row)| job.ending == Some(EndThen::Force) && !row.status.is_terminal());
        hold!(waits.is_none(), "it was ended by force, and there is {waits:?}");
        if job.cancelling || !is_open && !self.is_open(job) {
            return Ok(());
        }
        hold!(job.stage.is_some() == job.policy().is_some(), "its first stage has not begun");
        // Outcomes are what it is judged by: that old ones count no more, as time goes on, is seen with the next.
        let has_just_ended = self.life.ends.get(id) == Some(&(self.moment, self.now));
        let is_bad = has_just_ended && self.breaks_a_rule(job) || fails_its_stage(job);
        let is_at_rest = job.hold.is_some() || job.ending.is_some();
        hold!(!is_bad || pauses(job) && is_at_rest, "a rule is broken, or a stage fails");
        self.judge(id)?;
        let job = &self.decided.jobs[id];
        // One whose next try was due before, or during a pause, has that.
        let resumed = self.life.resumed.get(id).copied();
        let is_past = |row: &Row| {
            let end = self.offline_until(job, row).filter(|end| *end <= self.now);
            end.is_some_and(|end| row.until >= Some(end)) && row.until > resumed
        };
        let is_overdue = |device, row: &Row| row.is_offline() && is_past(row) && !self.is_woken(id, device, row);
        let overdue = job.rows.iter().find(|(device, row)| is_overdue(device, row));
        hold!(overdue.is_none(), "waited for too long: {overdue:?}");
        let may_start = !self.is_draining && !is_held(job);
        let has_room = may_start && in_flight(job) < self.limits.in_flight_per_job && self.rate_allows(id);
        let is_ready = |device: &Address, row: &Row| !busy.contains(device) && self.is_ready(id, job, device, row);
        let ready = job.rows.iter().find(|(device, row)| has_room && is_ready(device, row));
        let Some(ready) = ready else {
            self.life.wanting.remove(id);
            return Ok(());
        };
        hold!(busy.len() >= self.limits.in_flight, "to be started: {ready:?}");
        // It has waited since before what was begun just now.
        let just_now = |one: &&Attempt| one.moment == self.moment && one.period.is_some();
        let is_behind = |one: &Attempt| self.decided.jobs[&one.call.job].priority() < job.priority();
        let before = self.life.attempts.iter().rev().filter(just_now).find(|one| is_behind(one));
        let has_waited = self.life.wanting.get(id).is_some_and(|since| *since < self.moment);
        hold!(before.is_none() || !has_waited, "{ready:?} is to be started before {before:?}");
        self.life.wanting.entry(id.clone()).or_insert(self.moment);
        Ok(())
    }

    // Beginnings.

    /// Jobs that select or run, without those that are paused or wait for devices to come.
    fn active(&self) -> usize {
        let is_idle = |job: &JobRow| self.is_open(job) && job.rows.values().all(|row| row.status.is_terminal());
        let is_active = |id: &JobId, job: &JobRow| match job.begun {
            Some(_) => !is_idle(job),
            None => self.life.selections.contains_key(id),
        };
        self.decided.unfinished().filter(|(id, job)| job.hold.is_none() && is_active(id, job)).count()
    }

    /// Jobs that have not begun, and when they are to.
    fn waiting(&self) -> impl Iterator<Item = (&JobId, DateTime<Utc>)> {
        let is_active = |id: &JobId, job: &JobRow| job.begun.is_some() || self.life.selections.contains_key(id);
        let waiting = self.decided.unfinished().filter(move |(id, job)| job.hold.is_none() && !is_active(id, job));
        waiting.map(|(id, job)| (id, job.start))
    }

    fn select(&mut self, id: &JobId, found: Option<&Found>) {
        let job = &self.decided.jobs[id];
        if job.ended.is_some() || job.begun.is_some() {
            return;
        }
        let Some(Found { devices: selected, excluded, stages }) = found else { return };
        let group = |labels: &[Option<Arc<str>>]| labels.first().cloned().flatten();
        let devices: BTreeMap<&Address, Option<Arc<str>>> =
            selected.iter().map(|selected| (&selected.address, group(&selected.labels))).collect();
        let addresses = selected.iter().map(|selected| &selected.address);
        let by_condition: BTreeMap<&Address, u32> =
            addresses.zip(stages.iter().copied()).filter(|(_, stage)| *stage > 0).collect();
        let mut ranked: Vec<&Address> = devices.keys().copied().collect();
        ranked.sort_by_key(|device| {
            let stage = by_condition.get(*device);
            (stage.is_none(), stage, device.rollout_place())
        });
        let count = ranked.len();
        let stage_of = |rank: usize, policy: &JobPolicy| {
            let is_in = |stage: &Stage| match stage.percent {
                Some(percent) => rank < (count * usize::from(percent)).div_ceil(100),
                None => false,
            };
            let by_percentage =
                1 + policy.stages.iter().position(is_in).unwrap_or(policy.stages.len().max(1) - 1) as u32;
            by_condition.get(ranked[rank]).copied().unwrap_or(by_percentage)
        };
        let targets = ranked.iter().enumerate().map(|(rank, device)| BegunTarget {
            device: (*device).clone(),
            stage: job.policy().map(|policy| stage_of(rank, policy)),
            group: devices[*device].clone(),
            zone: None,
        });
        let what = What::Begun { targets: Arc::new(targets.collect()), excluded: *excluded };
        self.due.push(Due { job: id.clone(), what });
    }

    /// Whether devices can come to a job.
    fn is_open(&self, job: &JobRow) -> bool {
        let is_running = job.begun.is_some() && job.ended.is_none() && !job.cancelling && job.ending.is_none();
        job.request.is_continuous() && is_running && !self.is_over(job)
    }

    /// Devices have changed: those that are under way in a job need not be looked at for it.
    fn change(&mut self, devices: &[Address]) {
        for (id, job) in self.decided.unfinished().filter(|(_, job)| job.request.is_continuous()) {
            let is_under_way = |device| job.rows.get(device).is_some_and(|row| !row.status.is_terminal());
            let is_heard = self.is_open(job) || job.begun.is_none() && self.life.selections.contains_key(id);
            if is_heard && devices.iter().any(|device| !is_under_way(device)) {
                self.life.to_gather.entry(id.clone()).or_insert(self.now + seconds(1));
            }
        }
    }

    fn gather(&mut self, id: &JobId, found: Option<&Found>) {
        self.life.gathering.remove(id);
        let job = &self.decided.jobs[id];
        let Some(Found { devices, stages, .. }) = found.filter(|_| self.is_open(job)) else { return };
        let addresses = devices.iter().map(|selected| &selected.address);
        let by_condition: BTreeMap<&Address, u32> = addresses.zip(stages.iter().copied()).collect();
        let stage_of = |device: &Address, policy: &JobPolicy| match by_condition.get(device).copied() {
            Some(stage) if Some(stage) > job.stage => stage,
            _ => policy.stages.len().max(1) as u32,
        };
        let new = devices.iter().map(|selected| (&selected.address, selected.labels.first().cloned().flatten()));
        let new: BTreeMap<&Address, Option<Arc<str>>> = new.collect();
        let targets = new.into_iter().map(|(device, group)| BegunTarget {
            device: device.clone(),
            stage: job.policy().map(|policy| stage_of(device, policy)),
            group,
            zone: None,
        });
        let targets: Vec<BegunTarget> = targets.collect();
        if !targets.is_empty() {
            self.due.push(Due { job: id.clone(), what: What::Joined { targets } });
        }
    }

    // Calls.

    /// How many calls keep a device busy.
    pub(super) fn in_flight(&self) -> usize {
        self.calls().count()
    }

    /// Those that keep a device busy: begun and not stopped before they were sent, or sent and not answered.
    fn calls(&self) -> impl Iterator<Item = &Attempt> {
        let is_begun = |one: &Attempt| {
            let row = &self.decided.jobs[&one.call.job].rows[&one.call.device];
            row.is_in_flight() && row.attempt == one.call.attempt
        };
        self.life.attempts.iter().filter(move |one| !one.is_answered && (one.is_sent || is_begun(one)))
    }

    /// A device's last attempt in this life.
    fn attempt(&self, id: &JobId, device: &Address) -> Option<&Attempt> {
        self.life.attempts.iter().rev().find(|one| one.call.device == *device && one.call.job == *id)
    }

    fn check_start(&self, id: &JobId, job: &JobRow, device: &Address, attempt: u32) -> Check {
        let row = job.rows.get(device).ok_or("no row")?;
        hold!(job.begun.is_some() && !job.cancelling && !is_held(job) && !self.is_draining, "nothing may start");
        hold!(attempt == row.attempt + 1, "after the attempt {}", row.attempt);
        hold!(in_flight(job) < self.limits.in_flight_per_job, "too many of the job are in flight");
        hold!(self.in_flight() < self.limits.in_flight, "too many are in flight");
        hold!(self.calls().all(|one| one.call.device != *device), "the device has a call");
        hold!(row.step > 0 || self.rate_allows(id), "too fast");
        hold!(self.is_ready(id, job, device, row), "it is not its turn: {row:?}");
        Ok(())
    }

    fn is_ready(&self, id: &JobId, job: &JobRow, device: &Address, row: &Row) -> bool {
        row.status == DeviceJobStatus::Pending
            && row.stage.is_none_or(|stage| Some(stage) <= job.stage)
            && (row.step > 0 || !job.has_windows() || to_window(self.now).is_zero())
            && (row.until.is_none_or(|until| until <= self.now) || self.is_woken(id, device, row))
    }

    /// It was waited for, and has connected.
    fn is_woken(&self, id: &JobId, device: &Address, row: &Row) -> bool {
        row.is_offline() && self.has_arrived(id, device)
    }

    /// Whether it has connected since its last attempt began.
    fn has_arrived(&self, id: &JobId, device: &Address) -> bool {
        let begun = self.attempt(id, device).map_or(0, |one| one.moment);
        let is_it = |who: &Option<Address>| who.as_ref().is_none_or(|who| who == device);
        self.life.arrivals.iter().rev().take_while(|(moment, _)| *moment > begun).any(|(_, who)| is_it(who))
    }

    fn start(&mut self, id: &JobId, device: &Address, attempt: u32) {
        let job = &self.decided.jobs[id];
        let tried = job.rows.values().filter(|row| row.attempt > 0).count() as u64 + u64::from(attempt == 1);
        let succeeded = job.statistics().succeeded_count;
        let rate = job.policy().and_then(|policy| policy.rate).map(|rate| rate.after(tried, succeeded));
        let period = rate.map_or(TimeDelta::zero(), |rate| TimeDelta::microseconds(1_000_000 / i64::from(rate)));
        let period = Some(period).filter(|_| job.rows[device].step == 0);
        if attempt == 1 {
            self.life.held.insert((id.clone(), device.clone()), job.held(self.now));
        }
        let call = Call { job: id.clone(), device: device.clone(), attempt };
        let (at, moment) = (self.now, self.moment);
        self.life.attempts.push(Attempt { call, at, moment, period, is_sent: false, is_answered: false });
    }

    /// Whether one more start keeps to the rate, after those of this life.
    fn rate_allows(&self, id: &JobId) -> bool {
        let of_job = self.life.attempts.iter().filter(|one| one.call.job == *id);
        let starts = of_job.filter_map(|one| Some((one.at, one.period?)));
        let next = starts.fold(None, |next: Option<DateTime<Utc>>, (at, period)| {
            Some(next.map_or(at, |next| next.max(at - SLACK)) + period)
        });
        next.is_none_or(|next| next <= self.now)
    }

    // Answers.

    /// What the answer of a call that is out must lead to.
    fn follows(&mut self, call: &Call, result: &Result<DeviceJobOutcome, HubError>) -> Vec<What> {
        let Call { job: id, device, attempt } = call;
        let job = &self.decided.jobs[id];
        let row = &job.rows[device];
        if !row.is_in_flight() || row.attempt != *attempt {
            let late = |outcome| What::Late { device: device.clone(), attempt: *attempt, outcome };
            return result.clone().ok().map(late).into_iter().collect();
        }
        let outcome = result.clone().unwrap_or_else(|error| DeviceJobOutcome::Error {
            code: error.code.name().to_owned(),
            description: error.message,
        });
        let is_success = match (&outcome, job.policy().and_then(|policy| policy.succeed.as_ref())) {
            (DeviceJobOutcome::Method(answer), Some(SuccessRule::Answer(rule))) => includes(rule, answer.status),
            (DeviceJobOutcome::Error { .. }, _) => false,
            _ => true,
        };
        if !is_success {
            let is_away = matches!(result, Err(error) if error.code == ErrorCode::DeviceNotOnline);
            return vec![self.after_failure(id, device, outcome, is_away)];
        }
        if let DeviceJobOutcome::Method(answer) = &outcome {
            self.life.answers.push((id.clone(), device.clone(), answer.clone()));
        }
        self.after_success(call, outcome)
    }

    fn after_success(&self, call: &Call, outcome: DeviceJobOutcome) -> Vec<What> {
        let Call { job: id, device, attempt } = call;
        let job = &self.decided.jobs[id];
        let ended = |status, outcome| vec![What::Ended { device: device.clone(), status, outcome }];
        let step = job.rows[device].step + 1;
        let next = job.request.then.get(step as usize - 1);
        if job.cancelling && (next.is_some() || job.report_rule().is_some()) {
            return ended(DeviceJobStatus::Canceled, error(unknown(job)));
        }
        let is_met = next.is_some_and(|next| match (&next.when.answer, &outcome) {
            (Some(rule), DeviceJobOutcome::Method(answer)) => includes(rule, answer.status),
            (Some(_), _) => false,
            (None, _) => true,
        });
        match next {
            Some(next) if !is_met && next.when.otherwise == Otherwise::Fail => {
                ended(DeviceJobStatus::Failed, error(PolicyOutcome::StepConditionNotMet))
            }
            Some(next) if is_met => {
                let awaits = next.when.twin.is_some();
                let mut follows = vec![What::Stepped { device: device.clone(), step, outcome, awaits }];
                // It goes on at once, if anything does.
                if !awaits && !is_held(job) && !self.is_draining {
                    follows.push(What::Started { device: device.clone(), attempt: attempt + 1 });
                }
                follows
            }
            _ if job.report_rule().is_some() => vec![What::Awaited { device: device.clone() }],
            _ => ended(DeviceJobStatus::Completed, Some(self.answer_of(id, device, outcome))),
        }
    }

    /// What a device ends with that has done all: its last answer, if there was one.
    fn answer_of(&self, id: &JobId, device: &Address, outcome: DeviceJobOutcome) -> DeviceJobOutcome {
        let mut answers = self.life.answers.iter().rev();
        let last = answers.find(|(job, other, _)| job == id && other == device);
        last.map_or(outcome, |(.., answer)| DeviceJobOutcome::Method(answer.clone()))
    }

    /// Whether a device's twin is as its next step wants it was looked at.
    fn matched(&mut self, id: &JobId, step: u32, device: &Address, found: Option<&HashSet<Address>>) {
        let job = &self.decided.jobs[id];
        let (Some(row), Some(found)) = (job.rows.get(device), found) else { return };
        let Some(since) = row.awaited.filter(|_| row.step == step && !row.status.is_terminal()) else { return };
        let when = &job.request.then[step as usize - 1].when;
        let may_take = since + seconds(when.twin.as_ref().map_or(0, |twin| twin.within_in_seconds));
        let until = if self.attempt(id, device).is_some() { may_take } else { may_take.max(self.opened + GRACE) };
        let device = device.clone();
        let what = match (found.contains(&device), when.otherwise) {
            (true, _) => What::Waiting { device, until: None, outcome: None, failures: None },
            (false, _) if self.now < until => return,
            (false, Otherwise::Fail) => {
                let outcome = error(PolicyOutcome::StepConditionNotMet);
                What::Ended { device, status: DeviceJobStatus::Failed, outcome }
            }
            (false, Otherwise::Finish) => {
                let outcome = Some(self.answer_of(id, &device, DeviceJobOutcome::TwinUpdated));
                What::Ended { device, status: DeviceJobStatus::Completed, outcome }
            }
        };
        self.due.push(Due { job: id.clone(), what });
    }

    fn after_failure(&self, id: &JobId, device: &Address, outcome: DeviceJobOutcome, is_away: bool) -> What {
        let job = &self.decided.jobs[id];
        let row = &job.rows[device];
        let none = JobPolicy::default();
        let policy = job.policy().unwrap_or(&none);
        let ended = |status, outcome| What::Ended { device: device.clone(), status, outcome };
        if job.cancelling {
            return ended(DeviceJobStatus::Failed, Some(outcome));
        }
        let wait = |first, longest| {
            let until = Some(self.wait(id, job, device, seconds(first), seconds(longest)));
            What::Waiting { device: device.clone(), until, outcome: Some(outcome.clone()), failures: None }
        };
        if is_away && self.waits_for_all(id) {
            return wait(1, 30);
        }
        let class = FailureClass::of_outcome(&outcome);
        if class == FailureClass::Offline && policy.offline != OfflineRule::default() {
            if self.offline_until(job, row).is_some_and(|until| self.now < until) {
                return wait(30, 600);
            }
            return ended(offline_end(job), error(PolicyOutcome::DeviceWasOffline));
        }
        match policy.retry.iter().find(|rule| rule.on.contains(&class)) {
            Some(rule) if row.failures < rule.retries => {
                let longest = (rule.backoff_in_seconds << row.failures.min(20)).min(rule.maximum_backoff_in_seconds);
                let (until, outcome) = (Some(self.now + seconds(longest)), Some(outcome));
                What::Waiting { device: device.clone(), until, outcome, failures: Some(row.failures + 1) }
            }
            _ => ended(DeviceJobStatus::Failed, Some(outcome)),
        }
    }

    /// Until when a device is waited for that was found offline.
    fn wait(&self, id: &JobId, job: &JobRow, device: &Address, first: TimeDelta, longest: TimeDelta) -> DateTime<Utc> {
        if self.has_arrived(id, device) {
            return self.now;
        }
        let before = self.life.offline.iter().filter(|(job, other)| job == id && other == device).count();
        let wait = (0..before).fold(first, |wait, _| (wait * 2).min(longest));
        let at = self.now + wait;
        self.offline_until(job, &job.rows[device]).map_or(at, |until| until.min(at))
    }

    /// Whether its devices are on their way back, since the process has just begun.
    fn waits_for_all(&self, id: &JobId) -> bool {
        let has_just_begun = || self.life.selections.get(id).is_some_and(|at| *at < self.opened + GRACE);
        self.life.loaded.get(id).is_some_and(|had_begun| had_begun.is_some() || has_just_begun())
    }

    fn offline_until(&self, job: &JobRow, row: &Row) -> Option<DateTime<Utc>> {
        let wait = job.policy()?.offline.wait_in_seconds;
        let joined = job.begun? + job.late(row);
        let late = job.late(row) + if job.has_windows() { to_window(joined) } else { TimeDelta::zero() };
        let until = job.counts_from().map_or(DateTime::<Utc>::MAX_UTC, |from| from + seconds(wait) + late);
        Some(until).filter(|_| wait > 0)
    }

    fn is_due(&self, id: &JobId, what: &What) -> bool {
        self.due.iter().any(|due| due.job == *id && same(&due.what, what, self.now))
    }

    // Reports.

    fn look(&mut self, id: &JobId, device: &Address, found: Option<&HashMap<Address, PinState>>) {
        let job = &self.decided.jobs[id];
        let (Some(row), Some(rule), Some(found)) = (job.rows.get(device), job.report_rule(), found) else { return };
        let (Some(since), false) = (row.awaited, row.status.is_terminal()) else { return };
        let standing = found.get(device).map_or(Standing::Unanswered(String::new()), |state| state.standing("2.0.0"));
        let mut looks: Vec<(DateTime<Utc>, &Standing)> = Vec::new();
        looks.extend(
            self.life.looks.iter().filter(|(job, seen, ..)| job == id && seen == device).map(|look| (look.2, &look.3)),
        );
        looks.push((self.now, &standing));
        let runs_since = looks.iter().rev().take_while(|(_, standing)| **standing == Standing::Runs).last();
        let may_take = since + seconds(rule.timeout_in_seconds);
        let until = if self.attempt(id, device).is_some() { may_take } else { may_take.max(self.opened + GRACE) };
        let end = match &standing {
            Standing::Runs if runs_since.is_some_and(|(at, _)| self.now >= *at + seconds(rule.soak_in_seconds)) => {
                Some((DeviceJobStatus::Completed, Some(DeviceJobOutcome::TwinUpdated)))
            }
            Standing::Failed(_) => Some((DeviceJobStatus::Failed, error(PolicyOutcome::PluginVersionFailed))),
            Standing::Unanswered(_) if self.now >= until => {
                Some((DeviceJobStatus::Failed, error(PolicyOutcome::PluginVersionNotReported)))
            }
            Standing::Runs | Standing::Unanswered(_) => None,
        };
        self.life.looks.push((id.clone(), device.clone(), self.now, standing));
        if let Some((status, outcome)) = end {
            let what = What::Ended { device: device.clone(), status, outcome };
            self.due.push(Due { job: id.clone(), what });
        }
    }

    // Ends.

    /// Whether a device has taken longer than its job gives it. Nobody's time ends during a pause of the job.
    fn has_expired(&self, id: &JobId, job: &JobRow, device: &Address, row: &Row) -> bool {
        let seconds = job.policy().and_then(|policy| policy.device_timeout_in_seconds).map(seconds);
        let (Some(may_take), Some(started), None) = (seconds, row.started, &job.hold) else { return false };
        // Of a life before, nobody knows how long that was.
        let before = self.life.held.get(&(id.clone(), device.clone())).copied().unwrap_or_default();
        started + may_take + (job.held_for - before) <= self.now
    }

    fn is_over(&self, job: &JobRow) -> bool {
        let window = seconds(job.request.max_execution_time_in_seconds);
        job.counts_from().is_some_and(|from| from + window <= self.now)
    }

    /// How a device may end without an answer.
    fn ends(&self, id: &JobId, job: &JobRow, device: &Address, row: &Row) -> Vec<(DeviceJobStatus, Option<String>)> {
        let mut ends = Vec::new();
        let is_sent = self.attempt(id, device).is_some_and(|one| one.is_sent && one.call.attempt == row.attempt);
        let (is_starting, is_pending) = (row.is_in_flight() && !is_sent, row.status == DeviceJobStatus::Pending);
        if self.is_over(job) {
            let was_offline = row.is_found_offline() || self.life.offline.contains(&(id.clone(), device.clone()));
            let code = match row.last() {
                _ if row.awaited.is_some() && row.step > 0 => name(PolicyOutcome::StepConditionNotMet),
                _ if row.awaited.is_some() => name(PolicyOutcome::PluginVersionNotReported),
                Some(last) if is_pending => code(Some(last)),
                _ if (is_starting || is_pending) && was_offline => Some("DeviceNotOnline".to_owned()),
                _ if is_starting && row.attempt == 1 => Some("JobRunPreconditionFailed".to_owned()),
                _ => Some("GatewayTimeout".to_owned()),
            };
            ends.push((DeviceJobStatus::Failed, code));
        }
        if self.has_expired(id, job, device, row) {
            ends.push((DeviceJobStatus::Failed, name(PolicyOutcome::DeviceTimedOut)));
        }
        let leaves_out = job.has_windows() && offline_end(job) == DeviceJobStatus::Canceled;
        if self.is_over(job) && leaves_out && is_pending {
            ends.push((DeviceJobStatus::Canceled, name(PolicyOutcome::DeviceWasOffline)));
        }
        if job.cancelling && is_starting {
            ends.push((DeviceJobStatus::Canceled, unsent(job)));
        }
        if job.ending == Some(EndThen::Force) && is_sent {
            ends.push((DeviceJobStatus::Canceled, name(unknown(job))));
        }
        if job.cancelling && (row.awaited.is_some() || unsent(job).is_some() && is_pending && row.attempt > 0) {
            ends.push((DeviceJobStatus::Canceled, name(unknown(job))));
        }
        if row.is_offline() && self.offline_until(job, row).is_some_and(|until| until <= self.now) {
            ends.push((offline_end(job), name(PolicyOutcome::DeviceWasOffline)));
        }
        if self.is_start && row.is_in_flight() && fails_in_doubt(job) {
            ends.push((DeviceJobStatus::Failed, name(PolicyOutcome::AttemptInDoubt)));
        }
        ends
    }

    fn check_end(&self, id: &JobId, job: &JobRow, status: JobStatus) -> Check {
        let open = job.rows.iter().find(|(_, row)| !row.status.is_terminal());
        hold!(open.is_none(), "{open:?} has not ended");
        hold!(!self.has_to_unpin(id, job), "there are pins to take back");
        hold!(!self.is_open(job), "devices can come yet");
        let allowed = match (job.begun, job.cancelling, &job.reason) {
            (Some(_), _, Some(_)) => &[JobStatus::Failed][..],
            (Some(_), true, None) => &[JobStatus::Cancelled],
            (Some(_), false, None) => &[JobStatus::Completed],
            (None, ..) => &[JobStatus::Failed, JobStatus::Cancelled],
        };
        hold!(allowed.contains(&status), "only as {allowed:?}");
        Ok(())
    }

    fn has_to_unpin(&self, id: &JobId, job: &JobRow) -> bool {
        if !takes_back(job) {
            return false;
        }
        let asked: BTreeSet<&Address> =
            self.life.unpinning.iter().filter(|(job, _)| job == id).map(|(_, device)| device).collect();
        let answered = self.life.unpinned.iter().filter(|job| *job == id).count();
        let sent = self.life.attempts.iter().filter(|one| one.is_sent && one.call.job == *id);
        let before = self.life.loaded.get(id).into_iter().flatten().flatten();
        answered < asked.len() || sent.map(|one| &one.call.device).chain(before).any(|device| !asked.contains(device))
    }

    // Policies.

    fn breaks_a_rule(&self, job: &JobRow) -> bool {
        let Some(policy) = job.policy() else { return false };
        let is_broken = |rule: &AbortRule| {
            let from = rule.window_in_seconds.map(|window| self.now - seconds(window));
            let ended = job.unforgiven().into_iter().filter(|end| from.is_none_or(|from| end.at > from));
            let counts = |class: FailureClass| rule.on.is_empty() || rule.on.contains(&class);
            let mut groups: BTreeMap<Option<Arc<str>>, Vec<bool>> = BTreeMap::new();
            for end in ended {
                let group = end.group.filter(|_| rule.per_group);
                groups.entry(group).or_default().push(end.failure.is_some_and(counts));
            }
            groups.values().any(|failed| {
                let (ended, failed) = (failed.len(), failed.iter().filter(|failed| **failed).count());
                ended >= rule.minimum as usize && failed * 100 > ended * usize::from(rule.failure_percent)
            })
        };
        policy.abort.iter().any(is_broken)
    }

    fn may_pause(&self, id: &JobId, job: &JobRow, cause: HoldCause) -> bool {
        match cause {
            HoldCause::Operator => self.is_asked(id, |command| matches!(command, Command::Pause { .. })),
            HoldCause::Rule => pauses(job) && (self.breaks_a_rule(job) || fails_its_stage(job)),
            HoldCause::Approval => {
                job.stage.is_some_and(|stage| needs_approval(job, stage) && self.is_stage_over(id, job, stage).is_ok())
            }
        }
    }

    fn is_asked(&self, id: &JobId, is_it: impl Fn(&Command) -> bool) -> bool {
        self.command.as_ref().is_some_and(|(job, command)| job == id && is_it(command))
    }

    fn check_stage(&self, id: &JobId, job: &JobRow, number: u32) -> Check {
        let Some(before) = job.stage else {
            hold!(number == 1, "not the first");
            return Ok(());
        };
        hold!(number == before + 1 && !job.cancelling && job.hold.is_none(), "after stage {before}");
        if needs_approval(job, before) {
            hold!(self.is_asked(id, |command| matches!(command, Command::Approve { .. })), "nobody approved");
            return Ok(());
        }
        hold!(job.ending.is_none(), "its end has come");
        self.is_stage_over(id, job, before)
    }

    /// Whether it has been good for long enough.
    fn is_stage_over(&self, id: &JobId, job: &JobRow, stage: u32) -> Check {
        let tally = Tally::of(job, stage);
        hold!(tally.is_good(job, stage), "the stage is {tally:?}");
        // Since when it has been, as far as it was seen between inputs.
        let since = match self.life.judged.get(id).and_then(|judged| judged.last()) {
            Some((judged, at, true)) if *judged == stage => *at,
            _ => self.now,
        };
        let pause = seconds(job.policy().map_or(0, |policy| policy.stages[stage as usize - 1].pause_in_seconds));
        hold!(tally.devices == 0 || self.now >= since + pause, "the stage is good only since {since}");
        Ok(())
    }

    /// A stage that has been good for long enough gives way to the next.
    fn judge(&mut self, id: &JobId) -> Check {
        let job = &self.decided.jobs[id];
        let (Some(stage), Some(policy)) = (job.stage, job.policy()) else { return Ok(()) };
        let (tally, is_last) = (Tally::of(job, stage), stage as usize >= policy.stages.len());
        // The pause begins anew after one of the job.
        let is_good = tally.is_good(job, stage) && job.hold.is_none() && job.ending.is_none();
        let judged = self.life.judged.entry(id.clone()).or_default();
        if judged.last().is_none_or(|(before, _, was_good)| (*before, *was_good) != (stage, is_good)) {
            judged.push((stage, self.now, is_good));
        }
        let since = judged.last().map_or(self.now, |(_, at, _)| *at);
        // Within one input it may have been otherwise for a moment, after which the pause counts anew.
        let since = self.life.ends.get(id).map_or(since, |(_, at)| since.max(*at));
        if is_good && !is_last {
            let pause = seconds(policy.stages[stage as usize - 1].pause_in_seconds);
            hold!(tally.devices > 0 && self.now < since + pause, "stage {stage} is good since {since}: {tally:?}");
        }
        Ok(())
    }
}

impl Attempt {
    fn is_out(&self) -> bool {
        self.is_sent && !self.is_answered
    }
}

impl Tally {
    fn of(job: &JobRow, stage: u32) -> Tally {
        let is_forgiven = |row: &Row| row.status == DeviceJobStatus::Failed && row.is_forgiven;
        let rows = job.rows.values().filter(|row| row.stage == Some(stage) && !is_forgiven(row));
        let statuses: Vec<DeviceJobStatus> = rows.map(|row| row.status).collect();
        let count = |status| statuses.iter().filter(|one| **one == status).count();
        // Who was left out is none of the stage's any more.
        let devices = statuses.len() - count(DeviceJobStatus::Canceled);
        Tally { devices, succeeded: count(DeviceJobStatus::Completed), failed: count(DeviceJobStatus::Failed) }
    }

    /// Good enough for the next stage.
    fn is_good(&self, job: &JobRow, stage: u32) -> bool {
        let Some(stage) = job.policy().and_then(|policy| policy.stages.get(stage as usize - 1)) else { return false };
        let ended = self.succeeded + self.failed;
        let sample = stage.minimum_sample.map_or(self.devices, |sample| self.devices.min(sample as usize));
        ended >= sample && self.succeeded * 100 >= ended * usize::from(stage.success_threshold)
    }
}

/// How long it is until a maintenance window is open.
fn to_window(now: DateTime<Utc>) -> TimeDelta {
    let since = TimeDelta::milliseconds(now.timestamp_millis().rem_euclid(10_000));
    if since < seconds(OPEN) { TimeDelta::zero() } else { seconds(10) - since }
}

/// So many of a stage that has begun have failed that it cannot be good any more.
fn fails_its_stage(job: &JobRow) -> bool {
    let stages = job.policy().map_or(&[][..], |policy| &policy.stages);
    let begun = stages.iter().zip(1..).take(job.stage.unwrap_or_default() as usize);
    let mut tallies = begun.map(|(stage, number)| (stage, Tally::of(job, number)));
    tallies.any(|(stage, tally)| tally.failed * 100 > tally.devices * usize::from(100 - stage.success_threshold))
}

fn includes(rule: &AnswerRule, status: i32) -> bool {
    rule.statuses.iter().any(|[from, to]| (*from..=*to).contains(&status))
}

fn fails_in_doubt(job: &JobRow) -> bool {
    job.policy().is_some_and(|policy| policy.in_doubt == InDoubt::Fail)
}

/// Whether its pins are taken back.
fn takes_back(job: &JobRow) -> bool {
    job.reason.is_some() && job.policy().is_some_and(|policy| policy.on_abort == OnAbort::Unpin)
}

/// Whether it is paused where others are aborted.
fn pauses(job: &JobRow) -> bool {
    job.policy().is_some_and(|policy| policy.on_abort == OnAbort::Pause)
}

/// Paused so that nothing begins. While approval is waited for, the stage goes on.
fn is_held(job: &JobRow) -> bool {
    job.hold.as_ref().is_some_and(|hold| hold.cause != HoldCause::Approval)
}

fn needs_approval(job: &JobRow, stage: u32) -> bool {
    let has_rule =
        job.policy().and_then(|policy| policy.stages.get(stage as usize - 1)).is_some_and(|stage| stage.approval);
    has_rule && Tally::of(job, stage).devices > 0
}

/// Whether every device of a job stands in the journal.
fn has_recorded_all(job: &JobRow, recorded: &JobRow) -> bool {
    recorded.begun.is_some() && recorded.rows.len() == job.rows.len()
}

fn in_flight(job: &JobRow) -> usize {
    job.rows.values().filter(|row| row.is_in_flight()).count()
}

/// How a device ends that is waited for no longer.
fn offline_end(job: &JobRow) -> DeviceJobStatus {
    match job.policy().map(|policy| policy.offline.then) {
        Some(OfflineEnd::Skip) => DeviceJobStatus::Canceled,
        _ => DeviceJobStatus::Failed,
    }
}

/// How a device ends that was perhaps reached when its job was stopped.
fn unknown(job: &JobRow) -> PolicyOutcome {
    match (&job.reason, job.ending) {
        (Some(_), _) => PolicyOutcome::JobAborted,
        (None, Some(EndThen::Cancel | EndThen::Force)) => PolicyOutcome::JobEnded,
        (None, _) => PolicyOutcome::JobCancelled,
    }
}

/// And one whose turn had not come: of a job that somebody cancelled it has nothing.
fn unsent(job: &JobRow) -> Option<String> {
    Some(unknown(job)).filter(|outcome| *outcome != PolicyOutcome::JobCancelled).and_then(name)
}

/// Whether the end has come that the policy gives it.
fn is_at_end(job: &JobRow, now: DateTime<Utc>) -> bool {
    let Some(end) = job.policy().and_then(|policy| policy.end) else { return false };
    let after = job.counts_from().zip(end.after_in_seconds).map(|(from, after)| from + seconds(after));
    let matters = job.begun.is_some() && (!job.cancelling || end.then == EndThen::Force);
    matters && end.at.or(after).is_some_and(|at| at <= now)
}

fn error(outcome: PolicyOutcome) -> Option<DeviceJobOutcome> {
    Some(DeviceJobOutcome::Error { code: outcome.code().to_owned(), description: String::new() })
}

fn name(outcome: PolicyOutcome) -> Option<String> {
    Some(outcome.code().to_owned())
}

/// The code of an error. An answer has its status for one.
fn code(outcome: Option<&DeviceJobOutcome>) -> Option<String> {
    match outcome? {
        DeviceJobOutcome::Error { code, .. } => Some(code.clone()),
        DeviceJobOutcome::Method(answer) => Some(answer.status.to_string()),
        DeviceJobOutcome::TwinUpdated => None,
    }
}

/// Whether that is what must be. A policy's texts are its own affair, and a retry's pause is at least half of the longest.
fn same(due: &What, found: &What, now: DateTime<Utc>) -> bool {
    match (due, found) {
        (
            What::Waiting { device, until: Some(longest), outcome, failures: Some(failures) },
            What::Waiting { device: found, until: Some(until), outcome: told, failures: Some(counted) },
        ) => {
            let is_same = device == found && outcome == told && failures == counted;
            is_same && *until <= *longest && *until - now >= (*longest - now) / 2
        }
        (
            What::Ended { device, status, outcome },
            What::Ended { device: found, status: found_status, outcome: found_outcome },
        ) => {
            let code = code(outcome.as_ref());
            let is_ours = code.as_deref().is_some_and(|code| PolicyOutcome::by_code(code).is_some());
            let is_same = outcome == found_outcome || is_ours && code == self::code(found_outcome.as_ref());
            device == found && status == found_status && is_same
        }
        // The order in which devices have their turns is not a matter of the record.
        (What::Begun { targets, excluded }, What::Begun { targets: found, excluded: found_excluded }) => {
            let sorted = |targets: &[BegunTarget]| {
                let mut targets = targets.to_vec();
                targets.sort_by(|one, other| one.device.cmp(&other.device));
                targets
            };
            excluded == found_excluded && sorted(targets) == sorted(found)
        }
        (What::Joined { targets }, What::Joined { targets: found }) => {
            let same = |target: &BegunTarget| found.contains(target);
            targets.len() == found.len() && targets.iter().all(same)
        }
        _ => due == found,
    }
}
