//! What a job does on a device after its own action.

use std::collections::HashSet;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::PolicyOutcome;
use iothub_protocol::job::steps::{Otherwise, Step, StepCondition};
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus, JobAction};
use iothub_protocol::query::Condition;

use super::job::Job;
use super::looks::Looks;
use super::outcome::policy_outcome;
use super::policy::{ended_unknown, fail};
use super::target::End;
use super::{Call, Engine, Output, What, push};

/// The actions of a job, the first of which is its own.
#[derive(Debug)]
pub(super) struct Steps {
    first: Arc<JobAction>,
    then: Vec<NextStep>,
}

#[derive(Debug)]
struct NextStep {
    action: Arc<JobAction>,
    when: StepCondition,
    /// Devices whose twins are waited for before it, each until then.
    looks: Looks<DateTime<Utc>>,
}

/// What is to be done with a device that has come through a step.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// There is no further step, or none for this device.
    Finish,
    /// The step of that number, counted from 0, which is now.
    Step(u32),
    /// That step, once its twin is so.
    Wait(u32),
    /// The condition of that step is not fulfilled.
    NotMet(u32),
}

impl Steps {
    pub(super) fn new(first: JobAction, then: Vec<Step>) -> Steps {
        let next = |Step { action, when }| NextStep { action: Arc::new(action), when, looks: Looks::default() };
        Steps { first: Arc::new(first), then: then.into_iter().map(next).collect() }
    }

    /// Of the step of that number, counted from 0.
    pub(super) fn action(&self, step: u32) -> &Arc<JobAction> {
        match self.next(step) {
            Some(next) => &next.action,
            None => &self.first,
        }
    }

    pub(super) fn clock_set(&mut self, by: TimeDelta) {
        for step in &mut self.then {
            step.looks.clock_set(by, |until| *until += by);
        }
    }

    pub(super) fn deadline(&self) -> Option<DateTime<Utc>> {
        self.then.iter().filter_map(|step| step.looks.deadline()).min()
    }

    pub(super) fn remove(&mut self, device: &Address, step: u32) {
        if let Some(next) = self.next_mut(step) {
            next.looks.remove(device);
        }
    }

    /// Wait for the twin of a device that is to do that step; since when, and until when at least.
    pub(super) fn wait(
        &mut self,
        now: DateTime<Utc>,
        device: Address,
        step: u32,
        (since, at_least): (DateTime<Utc>, DateTime<Utc>),
    ) {
        let Some(next) = self.next_mut(step) else { return };
        let seconds = next.when.twin.as_ref().map_or(0, |twin| twin.within_in_seconds);
        let until = (since + TimeDelta::seconds(seconds.into())).max(at_least);
        next.looks.add(now, device, until);
    }

    fn after(&self, step: u32, outcome: &DeviceJobOutcome) -> Next {
        let number = step + 1;
        let Some(next) = self.next(number) else { return Next::Finish };
        let answer = match outcome {
            DeviceJobOutcome::Method(response) => Some(response.status),
            _ => None,
        };
        match &next.when {
            StepCondition { answer: Some(rule), .. } if !answer.is_some_and(|status| rule.includes(status)) => {
                Next::NotMet(number)
            }
            StepCondition { twin: Some(_), .. } => Next::Wait(number),
            _ => Next::Step(number),
        }
    }

    fn next(&self, step: u32) -> Option<&NextStep> {
        self.then.get(usize::try_from(step).ok()?.checked_sub(1)?)
    }

    fn next_mut(&mut self, step: u32) -> Option<&mut NextStep> {
        self.then.get_mut(usize::try_from(step).ok()?.checked_sub(1)?)
    }
}

impl NextStep {
    fn describe(&self, number: u32) -> String {
        match &self.when.twin {
            Some(twin) => format!(
                "step {}: within {} s the device's twin did not fulfil: {}",
                number + 1,
                twin.within_in_seconds,
                twin.condition
            ),
            None => format!("step {}: the answer before it has another status", number + 1),
        }
    }
}

impl Engine {
    /// A device has come through a step. Tells whether another one follows, so that it has not ended.
    pub(super) fn goes_on(
        &mut self,
        now: DateTime<Utc>,
        id: &JobId,
        device: &Address,
        outcome: &DeviceJobOutcome,
    ) -> bool {
        let Some(job) = self.jobs.get_mut(id) else { return false };
        let stands_still = self.draining || job.is_held();
        let Some(target) = job.targets.get_mut(device) else { return false };
        if let DeviceJobOutcome::Method(response) = outcome {
            target.answered = Some(Box::new(response.clone()));
        }
        target.has_come_through();
        let next = job.steps.after(target.step, outcome);
        if next != Next::Finish && job.cancelling {
            job.end(now, device, End::LeftOut);
            push(&mut self.changes, now, id, ended_unknown(device, job.stopped_by()));
            return true;
        }
        match next {
            Next::Finish => return false,
            Next::NotMet(step) => return self.not_met(now, id, device, step),
            Next::Wait(step) => {
                target.step = step;
                let stepped = What::Stepped { device: device.clone(), step, outcome: outcome.clone(), awaits: true };
                push(&mut self.changes, now, id, stepped);
                job.steps.wait(now, device.clone(), step, (now, now));
                job.await_twin(device);
            }
            Next::Step(step) => {
                target.step = step;
                let stepped = What::Stepped { device: device.clone(), step, outcome: outcome.clone(), awaits: false };
                push(&mut self.changes, now, id, stepped);
                if stands_still {
                    job.put_back(device);
                } else {
                    // It keeps its place among those in flight, and no other job comes between.
                    target.begin_attempt();
                    let attempt = target.attempt;
                    self.busy.insert(device.clone(), Call { job: id.clone(), attempt });
                    push(&mut self.changes, now, id, What::Started { device: device.clone(), attempt });
                }
            }
        }
        true
    }

    /// The condition of a step is not fulfilled. Tells whether that is the end of the device, which it is unless it
    /// finishes with what it has done.
    fn not_met(&mut self, now: DateTime<Utc>, id: &JobId, device: &Address, step: u32) -> bool {
        let Some(job) = self.jobs.get_mut(id) else { return false };
        let Some(next) = job.steps.next(step) else { return false };
        match next.when.otherwise {
            Otherwise::Finish => false,
            Otherwise::Fail => {
                let outcome = policy_outcome(PolicyOutcome::StepConditionNotMet, next.describe(step));
                let what = fail(now, job, device, outcome);
                push(&mut self.changes, now, id, what);
                true
            }
        }
    }

    /// Have the twins looked at that steps wait for, if it is time.
    pub(super) fn look_at_twins(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        for (number, next) in (1..).zip(&mut job.steps.then) {
            if self.draining {
                next.looks.close();
            } else if let Some(devices) = next.looks.look(now)
                && let Some(Ok(condition)) = next.when.twin.as_ref().map(|twin| Condition::parse_job(&twin.condition))
            {
                self.outputs.push_back(Output::Match { job: id.clone(), step: number, condition, devices });
            }
        }
    }

    /// Take what a look at twins found: the devices whose twins are as the step wants them; `None` if the hub could not
    /// be asked.
    pub(super) fn matched(
        &mut self,
        now: DateTime<Utc>,
        id: &JobId,
        step: u32,
        devices: Vec<Address>,
        found: Option<&HashSet<Address>>,
    ) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let Some(next) = job.steps.next_mut(step) else { return };
        let verdicts = next.looks.seen(now, devices, |device, until| match found?.contains(device) {
            true => Some(true),
            false => (now >= *until).then_some(false),
        });
        for (device, is_met) in verdicts {
            if is_met {
                if let Some(job) = self.jobs.get_mut(id) {
                    job.steps.remove(&device, step);
                    job.go_on(&device);
                    push(
                        &mut self.changes,
                        now,
                        id,
                        What::Waiting { device, until: None, outcome: None, failures: None },
                    );
                }
            } else if !self.not_met(now, id, &device, step)
                && let Some(job) = self.jobs.get_mut(id)
            {
                let what = finished(now, job, device);
                push(&mut self.changes, now, id, what);
            }
        }
        self.judge(now, id);
        self.end_if_done(now, id);
        self.fill(now, id);
    }
}

/// The device ends well, with the answer of its last method, if there was one.
fn finished(now: DateTime<Utc>, job: &mut Job, device: Address) -> What {
    let outcome = job.answer_of(&device, DeviceJobOutcome::TwinUpdated);
    job.end(now, &device, End::Succeeded);
    What::Ended { device, status: DeviceJobStatus::Completed, outcome: Some(outcome) }
}
