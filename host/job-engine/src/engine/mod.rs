//! What happens to jobs, decided without a clock, a socket or a task.
//!
//! The driver calls [`Engine::handle`] with whatever happened and carries out at once what [`Engine::poll`] then gives.
//! It records what [`Engine::take_record`] gives, hands that back as [`Input::Recorded`], and calls again at
//! [`Engine::deadline`]. A send is given out only after its attempt was recorded.
//!
//! Choices that IoT Hub's documentation leaves open:
//! - A job is `completed` once every device has an outcome, even if all of them failed, and with no device at all;
//!   `failed` is a job that could not select its devices, or that its policy aborted.
//! - The window counts from when the job really began. When it ends, devices that were never sent anything fail with
//!   `JobRunPreconditionFailed`, as Azure's do; those whose answer is still out with `GatewayTimeout`.
//! - A paused job keeps its status. What is out is waited for, nothing new begins, and its time stands still.
//! - Maintenance windows say when a device is begun or tried again. One that has come through the first of several steps
//!   goes on with the others, open or closed: half a job is worse than a late one.
//! - Cancelling a running job keeps it `running` until the answers that are out have come; they are kept. The devices
//!   not yet sent to are `canceled` at once.
//!
//! A job with a policy, which Azure has not, starts only the devices of its stage, as fast as its rate says; `course`
//! judges whether it goes on. Where a device succeeds by what it reports, it stays `running` until then without being
//! in anybody's way: `awaited` has the engine look at the reports of those that are waited for, some at a time. Looking
//! rather than listening is what a hub in this process and one behind HTTP have in common, it misses nothing over a
//! restart, and it costs nothing while nobody waits.
//!
//! A continuous job goes on until its time is over, and `gathering` has devices join it that come to match.

mod awaited;
mod course;
mod ends;
mod fresh;
mod gathering;
mod hold;
mod job;
mod looks;
mod outcome;
mod policy;
mod resume;
mod series;
mod steps;
mod target;
mod targets;
#[cfg(test)]
mod tests;
mod turns;
mod watch;
pub(crate) mod windows;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::{FailureClass, PolicyOutcome, Priority};
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus, JobAction, JobStatistics, JobStatus};
use iothub_protocol::plugin_report::PinState;
use iothub_protocol::query::Condition;

use crate::audit::Note;
use crate::fleet::{Selected, Selection};
pub use crate::record::{BegunTarget, Change, Record, SavedCourse, SavedEnd, SavedJob, SavedSeries, SavedTarget, What};
use job::{Job, Phase};
use outcome::{error_outcome, failed};
use policy::{end_offline, ended_unknown, failing, skipped, succeeded};
use series::Series;
use target::{End, Lack, State};
pub use targets::{Found, Scope, includes};
use turns::Turns;

/// How soon after the engine's start a job of before it has to begin to wait for devices that are offline: the devices
/// lost their connections with the same restart and need about this long to come back.
const RECONNECT_GRACE: TimeDelta = TimeDelta::seconds(60);

/// Between tries of a device that is not connected: the first wait, doubled each time up to the longest.
#[derive(Debug, Clone, Copy)]
struct Waits {
    first: TimeDelta,
    longest: TimeDelta,
}

/// After a restart, when devices are on their way back.
const AFTER_RESTART: Waits = Waits { first: TimeDelta::seconds(1), longest: TimeDelta::seconds(30) };
/// Where the policy waits: for hours, perhaps, and for very many. A fleet that tells of arrivals makes it unnecessary.
const BY_POLICY: Waits = Waits { first: TimeDelta::seconds(30), longest: TimeDelta::minutes(10) };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many devices of one job may be in flight at once.
    pub in_flight_per_job: usize,
    /// How many devices of all jobs together; those that want more take turns.
    pub in_flight: usize,
    /// How many jobs run at once; further ones stay queued. Each running job keeps its unfinished devices in memory. Those
    /// that wait for devices to join them do not count.
    pub concurrent_jobs: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        // Enough to hide a device's round trip many times over, few enough not to flood a hub's links at once.
        Limits { in_flight_per_job: 256, in_flight: 1024, concurrent_jobs: 64 }
    }
}

#[derive(Debug)]
pub enum Input {
    /// A new job is in the journal.
    Created(Box<SavedJob>),
    /// The answer to [`Output::Select`].
    Selected { job: JobId, result: Result<Found, HubError> },
    /// A record is durable.
    Recorded(Arc<Record>),
    /// The answer to [`Output::Send`].
    Outcome { job: JobId, device: Address, attempt: u32, result: Result<DeviceJobOutcome, HubError> },
    /// A device has answered an attempt after its time-out.
    Late { job: JobId, device: Address, attempt: u32, outcome: DeviceJobOutcome },
    /// The answer to [`Output::Look`]: how each of the devices that exist stands.
    Seen { job: JobId, devices: Vec<Address>, result: Result<HashMap<Address, PinState>, HubError> },
    /// The answer to [`Output::Match`]: those whose twins are so.
    Matched { job: JobId, step: u32, devices: Vec<Address>, result: Result<HashSet<Address>, HubError> },
    /// The answer to [`Output::Gather`]: those that are not in the job yet.
    Gathered { job: JobId, result: Result<Found, HubError> },
    /// Devices or modules were created or connected, or their twins have changed.
    Changed(Vec<Address>),
    /// So many have that nobody can tell which.
    ManyChanged,
    /// A device has connected and listens for methods.
    Arrived(Address),
    /// So many have that nobody can tell which.
    ManyArrived,
    /// The answer to [`Output::Unpin`].
    Unpinned { job: JobId, result: Result<(), HubError> },
    /// Time has passed.
    Tick,
}

#[derive(Debug, PartialEq)]
pub enum Output {
    Select {
        job: JobId,
        selection: Selection,
        scope: Scope,
    },
    /// As [`Output::Select`], of a job that has begun; only those that were never in it.
    Gather {
        job: JobId,
        selection: Selection,
        scope: Scope,
    },
    Send {
        job: JobId,
        device: Address,
        attempt: u32,
        action: Arc<JobAction>,
    },
    /// See how these devices stand to the pin of a plugin.
    Look {
        job: JobId,
        plugin: String,
        devices: Vec<Address>,
    },
    /// See which of these devices' twins are as a step wants them.
    Match {
        job: JobId,
        /// For [`Input::Matched`].
        step: u32,
        condition: Condition,
        devices: Vec<Address>,
    },
    /// Remove a device's pin of a plugin. It waits for no other call to the device.
    Unpin {
        job: JobId,
        device: Address,
        plugin: String,
    },
}

/// What can be done with an unfinished job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Stop it: before it began for good, else as far as it has not been sent.
    Cancel,
    /// Begin nothing new on any device, until it is resumed. Again and again is as once.
    Pause { reason: String },
    /// Go on; as if nothing had happened, where an abort rule has paused it.
    Resume,
    /// Go on to the next stage, which has waited for that.
    Approve {
        /// The stage that is approved of, counted from 1, if it has to be that one.
        stage: Option<u32>,
    },
}

/// What a command met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obedience {
    /// Under way; holds once what the engine has to record is durable.
    Begun,
    /// It does not fit how the job is.
    Refused(String),
    /// Too late: the job has ended.
    Finished,
    /// No unfinished job has that id.
    Unknown,
}

/// All unfinished jobs.
#[derive(Debug)]
pub struct Engine {
    limits: Limits,
    opened: DateTime<Utc>,
    jobs: HashMap<JobId, Job>,
    /// Jobs that have not begun, by when they are to.
    agenda: BTreeSet<(DateTime<Utc>, JobId)>,
    series: HashMap<JobId, Series>,
    /// All series, by when the next job of each is due.
    calendar: BTreeSet<(DateTime<Utc>, JobId)>,
    /// Of each series its jobs that have not ended, the oldest first. The series itself may be over.
    lines: HashMap<JobId, VecDeque<JobId>>,
    /// Jobs of series that were cancelled while they were being recorded: they are not to begin.
    unwanted: HashSet<JobId>,
    /// Jobs that select or run.
    active: BTreeSet<JobId>,
    /// The call of each device that has one: there is one at a time, over all jobs.
    busy: HashMap<Address, Call>,
    /// Jobs that want a busy device, those of a higher priority first, else first come first served. May name jobs that
    /// no longer do.
    blocked: HashMap<Address, VecDeque<JobId>>,
    turns: Turns,
    draining: bool,
    /// The fleet tells which devices have changed.
    is_told: bool,
    changes: Vec<Change>,
    outputs: VecDeque<Output>,
}

#[derive(Debug, PartialEq)]
struct Call {
    job: JobId,
    attempt: u32,
}

impl Engine {
    /// Take up the jobs that the journal has. What was in flight is in doubt and will be sent again, as the next
    /// attempt.
    pub fn new(limits: Limits, now: DateTime<Utc>, saved: Vec<SavedJob>) -> Engine {
        let mut engine = Engine {
            limits,
            opened: now,
            jobs: HashMap::new(),
            agenda: BTreeSet::new(),
            series: HashMap::new(),
            calendar: BTreeSet::new(),
            lines: HashMap::new(),
            unwanted: HashSet::new(),
            active: BTreeSet::new(),
            busy: HashMap::new(),
            blocked: HashMap::new(),
            turns: Turns::default(),
            draining: false,
            is_told: false,
            changes: Vec::new(),
            outputs: VecDeque::new(),
        };
        for job in saved {
            let Some(job) = engine.admit_series(now, job) else { continue };
            engine.join_line(&job.request);
            match job.begun {
                Some(begun) => engine.resume(now, job, begun),
                None => engine.admit(now, job, true),
            }
        }
        engine.handle(now, Input::Tick);
        engine
    }

    pub fn handle(&mut self, now: DateTime<Utc>, input: Input) {
        match input {
            Input::Created(job) => {
                if let Some(job) = self.admit_series(now, *job) {
                    self.admit(now, job, false);
                }
            }
            Input::Selected { job, result } => self.selected(now, &job, result),
            Input::Recorded(record) => self.recorded(now, &record),
            Input::Outcome { job, device, attempt, result } => {
                let call = Call { job, attempt };
                let is_out = self.busy.get(&device) == Some(&call);
                match result {
                    result if self.awaits(&call.job, &device, attempt) => self.settle(now, &call.job, &device, result),
                    // The device has ended without the answer: its time was over.
                    Ok(outcome) if is_out => self.late(now, &call.job, device.clone(), attempt, outcome),
                    _ => {}
                }
                if self.busy.get(&device) == Some(&call) {
                    self.release(now, &device);
                }
            }
            Input::Late { job, device, attempt, outcome } => self.late(now, &job, device, attempt, outcome),
            Input::Seen { job, devices, result } => self.seen(now, &job, devices, result.ok().as_ref()),
            Input::Matched { job, step, devices, result } => {
                self.matched(now, &job, step, devices, result.ok().as_ref());
            }
            Input::Gathered { job, result } => self.gathered(now, &job, result),
            Input::Changed(devices) => self.changed(now, Some(&devices)),
            Input::ManyChanged => self.changed(now, None),
            Input::Arrived(device) => self.arrived(now, |job| job.arrived(&device)),
            Input::ManyArrived => self.arrived(now, Job::all_arrived),
            Input::Unpinned { job, result } => self.unpinned(now, &job, result.is_ok()),
            Input::Tick => {}
        }
        self.tick(now);
    }

    pub fn command(&mut self, now: DateTime<Utc>, id: &JobId, command: Command) -> Obedience {
        if self.series.contains_key(id) {
            return self.command_series(now, id, &command);
        }
        let Some(job) = self.jobs.get(id) else { return Obedience::Unknown };
        if job.phase == Phase::Finished {
            return Obedience::Finished;
        }
        let done = match command {
            Command::Cancel => {
                self.cancel(now, id);
                Ok(())
            }
            Command::Pause { reason } => self.pause(now, id, reason),
            Command::Resume => self.resume_paused(now, id),
            Command::Approve { stage } => self.approve(now, id, stage),
        };
        self.tick(now);
        done.map_or_else(Obedience::Refused, |()| Obedience::Begun)
    }

    fn cancel(&mut self, now: DateTime<Utc>, id: &JobId) {
        self.release_hold(now, id, false);
        let Some(job) = self.jobs.get_mut(id) else { return };
        match job.phase {
            Phase::Finished => {}
            Phase::Waiting | Phase::Selecting => {
                self.agenda.remove(&(job.start, id.clone()));
                self.finish(now, id, JobStatus::Cancelled, None);
            }
            Phase::Unpinning => {}
            Phase::Running if job.cancelling => {}
            Phase::Running => {
                job.cancelling = true;
                push(&mut self.changes, now, id, What::Cancelling);
                self.stop_sending(now, id);
                self.end_if_done(now, id);
            }
        }
    }

    /// The clock was set by so much; the next `now` is of the new time. What is to be at a time of day stays, what is
    /// measured in seconds from something moves along, so that an hour more or less makes nothing late.
    pub fn clock_set(&mut self, by: TimeDelta) {
        self.opened += by;
        for job in self.jobs.values_mut() {
            job.clock_set(by);
        }
    }

    /// Record who asked for what has just been done, together with it.
    pub fn audit(&mut self, now: DateTime<Utc>, job: &JobId, note: Note) {
        push(&mut self.changes, now, job, What::Audited(Box::new(note)));
    }

    /// Begin nothing new: the process is about to end. Outcomes are still taken.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// How many devices of a job may be in flight.
    pub fn in_flight_per_job(&self) -> usize {
        self.limits.in_flight_per_job
    }

    /// How many calls are out.
    pub fn in_flight(&self) -> usize {
        self.busy.len()
    }

    /// What to do next.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// All changes since the last record, to be recorded together.
    pub fn take_record(&mut self) -> Option<Record> {
        if self.changes.is_empty() {
            return None;
        }
        let changes = std::mem::take(&mut self.changes);
        let touched: BTreeSet<&JobId> = changes.iter().map(|change| &change.job).collect();
        let statistics = touched.into_iter().filter_map(|id| Some((id.clone(), self.statistics(id)?))).collect();
        Some(Record { changes, statistics })
    }

    /// When to call again at the latest.
    pub fn deadline(&self) -> Option<DateTime<Utc>> {
        let active = self.active.iter().filter_map(|id| self.jobs.get(id)?.deadline());
        let next = self.next_start().filter(|_| self.has_room());
        active.chain(next).chain(self.next_occurrence()).min()
    }

    fn statistics(&self, id: &JobId) -> Option<JobStatistics> {
        self.jobs.get(id).map(|job| job.statistics)
    }

    fn has_room(&self) -> bool {
        // A paused job does not keep others from running, nor does one that waits for devices to come.
        let is_running = |job: &Job| job.hold.is_none() && !job.is_idle();
        let running = self.active.iter().filter(|id| self.jobs.get(*id).is_some_and(is_running));
        !self.draining && running.count() < self.limits.concurrent_jobs
    }

    fn admit(&mut self, now: DateTime<Utc>, saved: SavedJob, is_loaded: bool) {
        let id = saved.request.job_id.clone();
        if saved.start > now && saved.status == JobStatus::Queued {
            push(&mut self.changes, now, &id, What::Scheduled);
        }
        if saved.hold.is_none() {
            self.agenda.insert((saved.start, id.clone()));
        }
        self.jobs.insert(id, Job::new(saved, is_loaded));
    }

    fn tick(&mut self, now: DateTime<Utc>) {
        while self.deadline().is_some_and(|deadline| deadline <= now) {
            let active: Vec<JobId> = self.active.iter().cloned().collect();
            for id in active {
                self.advance(now, &id);
            }
            self.recur(now);
            while self.has_room()
                && let Some(due) = self.due(now)
            {
                self.agenda.remove(&due);
                // One that waits for others of its series is on the agenda again when they have ended.
                if self.has_turn(&due.1) {
                    self.select(now, &due.1);
                }
            }
        }
        self.take_turns(now);
    }

    /// Of the jobs whose time has come, one of the highest priority, and of those the one that waits longest.
    fn due(&self, now: DateTime<Utc>) -> Option<(DateTime<Utc>, JobId)> {
        let may_gather = self.may_gather();
        let due = self.agenda.iter().take_while(|(start, _)| *start <= now).filter(|(_, id)| may_gather(id));
        due.min_by_key(|(start, id)| (Reverse(self.priority(id)), *start)).cloned()
    }

    /// When the next job begins that may, if there is room.
    fn next_start(&self) -> Option<DateTime<Utc>> {
        let first = self.agenda.first()?;
        let may_gather = self.may_gather();
        let next = if may_gather(&first.1) { Some(first) } else { self.agenda.iter().find(|(_, id)| may_gather(id)) };
        next.map(|(start, _)| *start)
    }

    fn priority(&self, id: &JobId) -> Priority {
        self.jobs.get(id).map_or_else(Priority::default, Job::priority)
    }

    /// What time alone does to a running job.
    fn advance(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        if job.ends.is_some_and(|ends| ends <= now) {
            self.end_window(now, id);
            return;
        }
        self.end_by_rule(now, id);
        self.expire(now, id);
        let Some(job) = self.jobs.get_mut(id) else { return };
        let given_up = job.wake(now);
        self.give_up(now, id, given_up);
        self.look(now, id);
        self.look_at_twins(now, id);
        self.gather(now, id);
        self.judge(now, id);
        self.fill(now, id);
    }

    fn select(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.phase = Phase::Selecting;
        job.waits_for_offline = job.is_loaded && now < self.opened + RECONNECT_GRACE;
        self.active.insert(id.clone());
        match job.selection() {
            Ok((selection, scope)) => self.outputs.push_back(Output::Select { job: id.clone(), selection, scope }),
            Err(error) => self.finish(now, id, JobStatus::Failed, Some(error.to_string())),
        }
    }

    fn selected(&mut self, now: DateTime<Utc>, id: &JobId, result: Result<Found, HubError>) {
        let Some(job) = self.jobs.get_mut(id).filter(|job| job.phase == Phase::Selecting) else { return };
        let Found { devices, excluded, stages } = match result {
            Ok(found) => found,
            Err(error) => return self.finish(now, id, JobStatus::Failed, Some(error.to_string())),
        };
        job.begin(now);
        if let Some(gathering) = &mut job.gathering {
            gathering.begin(now, self.is_told);
        }
        let targets = match &mut job.course {
            Some(course) => course.begin_with(devices, stages),
            None => alike(devices),
        };
        let count = targets.len() as u64;
        job.statistics = JobStatistics { device_count: count, pending_count: count, ..JobStatistics::default() };
        let targets = Arc::new(targets);
        let list = Arc::clone(&targets);
        push(&mut self.changes, now, id, What::Begun { targets, excluded });
        if job.course.is_some() {
            push(&mut self.changes, now, id, What::Stage { number: 1 });
        }
        self.line_up(now, id, &list);
        self.end_by_rule(now, id);
        self.judge(now, id);
        self.end_if_done(now, id);
        self.fill(now, id);
    }

    fn recorded(&mut self, now: DateTime<Utc>, record: &Record) {
        for Change { job: id, what, .. } in &record.changes {
            match what {
                What::Started { device, attempt } => self.send(id, device, *attempt),
                What::Begun { .. } | What::Joined { .. } => self.gathering_recorded(id),
                What::Recurred { jobs, .. } => {
                    for request in jobs {
                        let start = request.start_time.unwrap_or(now);
                        self.admit(now, SavedJob::new(request.clone(), start), false);
                        if self.unwanted.remove(&request.job_id) {
                            self.cancel(now, &request.job_id);
                        }
                    }
                }
                What::Finished { .. } => {
                    self.jobs.remove(id);
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, id: &JobId, device: &Address, attempt: u32) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let Some(target) = job.targets.get_mut(device) else { return };
        // It may have been stopped while it was being recorded.
        if target.state != State::Starting || target.attempt != attempt {
            return;
        }
        if self.draining {
            // Recorded and not sent is in doubt for the next start, which sends it then.
            self.busy.remove(device);
            return;
        }
        target.state = State::Sent;
        if let Some(course) = &mut job.course {
            course.reach(device);
        }
        let action = Arc::clone(job.steps.action(target.step));
        self.outputs.push_back(Output::Send { job: id.clone(), device: device.clone(), attempt, action });
    }

    /// Whether the device's outcome is what comes of that attempt.
    fn awaits(&self, id: &JobId, device: &Address, attempt: u32) -> bool {
        let target = self.jobs.get(id).and_then(|job| job.targets.get(device));
        target.is_some_and(|target| target.state == State::Sent && target.attempt == attempt)
    }

    /// A device has answered an attempt that was over.
    fn late(&mut self, now: DateTime<Utc>, id: &JobId, device: Address, attempt: u32, outcome: DeviceJobOutcome) {
        push(&mut self.changes, now, id, What::Late { device, attempt, outcome });
    }

    /// Take the answer of a call that is waited for.
    fn settle(&mut self, now: DateTime<Utc>, id: &JobId, device: &Address, result: Result<DeviceJobOutcome, HubError>) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let what = match result {
            Err(error) if job.waits_for_offline && !job.cancelling && error.code == ErrorCode::DeviceNotOnline => {
                let until = Some(job.wait_for(now, device, AFTER_RESTART));
                let outcome = Some(error_outcome(error.code, &error.message));
                What::Waiting { device: device.clone(), until, outcome, failures: None }
            }
            Ok(outcome) if job.is_success(&outcome) => {
                if self.goes_on(now, id, device, &outcome) {
                    self.judge(now, id);
                    self.end_if_done(now, id);
                    self.fill(now, id);
                    return;
                }
                let Some(job) = self.jobs.get_mut(id) else { return };
                succeeded(now, job, device, outcome)
            }
            Ok(outcome) => failing(now, job, device, outcome),
            Err(error) => failing(now, job, device, error_outcome(error.code, &error.message)),
        };
        push(&mut self.changes, now, id, what);
        self.judge(now, id);
        self.end_if_done(now, id);
        self.fill(now, id);
    }

    /// A device is free: the next job that waits for it may have it.
    fn release(&mut self, now: DateTime<Utc>, device: &Address) {
        self.busy.remove(device);
        let Some(mut queue) = self.blocked.remove(device) else { return };
        while let Some(id) = queue.pop_front() {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let Some(target) = job.targets.get_mut(device).filter(|t| t.state == State::Blocked) else { continue };
            target.state = State::Ready;
            job.ready.push_front(device.clone());
            self.fill(now, &id);
            // The job may be at its limit; then the device is the next one's.
            if self.busy.contains_key(device) {
                break;
            }
        }
        if !queue.is_empty() {
            self.blocked.insert(device.clone(), queue);
        }
    }

    /// Cancel whatever has not been sent, and wait for no report any more.
    fn stop_sending(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let outcome = match (&job.aborted, job.stopped_by()) {
            (Some(_), _) => Some(skipped()),
            (None, PolicyOutcome::JobEnded) => Some(ends::not_begun()),
            (None, _) => None,
        };
        let by = job.stopped_by();
        let unsent: Vec<Address> = job.in_state(State::Starting);
        for device in &unsent {
            job.end(now, device, End::LeftOut);
            let (status, outcome) = (DeviceJobStatus::Canceled, outcome.clone());
            push(&mut self.changes, now, id, What::Ended { device: device.clone(), status, outcome });
        }
        let mut unknown = job.in_state(State::Awaited);
        if outcome.is_some() {
            unknown.extend(job.tried_and_pending());
        }
        for device in unknown {
            job.end(now, &device, End::LeftOut);
            push(&mut self.changes, now, id, ended_unknown(&device, by));
        }
        job.end_pending(End::LeftOut);
        push(&mut self.changes, now, id, What::PendingEnded { status: DeviceJobStatus::Canceled, outcome });
        for device in unsent {
            self.release(now, &device);
        }
    }

    /// The time is up: nothing of the job is left open.
    fn end_window(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let unsent = job.in_state(State::Starting);
        for device in job.away_from_windows() {
            let what = end_offline(now, job, &device);
            push(&mut self.changes, now, id, what);
        }
        for (device, outcome) in job.begun_targets() {
            job.end(now, &device, End::Failed(FailureClass::of_outcome(&outcome)));
            push(&mut self.changes, now, id, failed(&device, outcome));
        }
        let outcome = if job.windows.is_some() { windows::missed() } else { Lack::Start.outcome() };
        job.end_pending(End::Failed(FailureClass::of_outcome(&outcome)));
        let (status, outcome) = (DeviceJobStatus::Failed, Some(outcome));
        push(&mut self.changes, now, id, What::PendingEnded { status, outcome });
        self.end_if_done(now, id);
        // Calls that are out go on, and keep their devices busy, until they are answered or give up.
        for device in unsent {
            self.release(now, &device);
        }
    }

    fn end_if_done(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        if job.phase != Phase::Running || job.is_open() || job.gathers(now) {
            return;
        }
        if job.begins_to_unpin() {
            self.unpin(now, id);
            return;
        }
        let (status, reason) = match (&job.aborted, job.cancelling) {
            (Some(reason), _) => (JobStatus::Failed, Some(reason.clone())),
            (None, true) => {
                let by_rule = job.stopped_by() == PolicyOutcome::JobEnded;
                let reason = by_rule.then(|| "the end came that its policy gives it".to_owned());
                (JobStatus::Cancelled, reason)
            }
            (None, false) => (JobStatus::Completed, None),
        };
        self.finish(now, id, status, reason);
    }

    /// The job stays known until its end is recorded.
    fn finish(&mut self, now: DateTime<Utc>, id: &JobId, status: JobStatus, reason: Option<String>) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.phase = Phase::Finished;
        self.active.remove(id);
        self.leave_line(id);
        push(&mut self.changes, now, id, What::Finished { status, reason });
    }
}

/// Devices of a job without a policy, in the order of their ids. One that was selected twice is one target.
fn alike(mut devices: Vec<Selected>) -> Vec<BegunTarget> {
    if !devices.is_sorted_by(|one, next| one.address < next.address) {
        devices.sort_by(|one, other| one.address.cmp(&other.address));
        devices.dedup_by(|one, other| one.address == other.address);
    }
    devices.into_iter().map(|selected| BegunTarget::new(selected.address)).collect()
}

fn push(changes: &mut Vec<Change>, at: DateTime<Utc>, job: &JobId, what: What) {
    changes.push(Change { job: job.clone(), at, what });
}
