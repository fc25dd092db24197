//! Ends by the clock: of a job, as its policy says, and of a device that takes too long.

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;
use iothub_protocol::job::DeviceJobOutcome;
use iothub_protocol::job::policy::{EndThen, PolicyOutcome};

use super::job::{Job, Phase};
use super::outcome::policy_outcome;
use super::policy::{ended_unknown, fail};
use super::target::{End, State};
use super::{Engine, What, push};

impl Job {
    /// What is to be done, if the end has come that its policy gives it.
    fn due_end(&self, now: DateTime<Utc>) -> Option<EndThen> {
        self.end_deadline().filter(|at| *at <= now)?;
        self.course.as_ref()?.policy().end.map(|end| end.then)
    }

    /// When that end comes, if it has not. To a job that is being stopped anyway it makes a difference only by force.
    pub(super) fn end_deadline(&self) -> Option<DateTime<Utc>> {
        let end = self.course.as_ref()?.policy().end?;
        let matters = self.phase == Phase::Running && self.ending.is_none();
        self.rule_ends.filter(|_| matters && (!self.cancelling || end.then == EndThen::Force))
    }

    /// For how long it has been paused since it began, by now.
    pub(super) fn held(&self, now: DateTime<Utc>) -> TimeDelta {
        let since = self.hold.as_ref().zip(self.begun).map(|(hold, begun)| hold.since.max(begun));
        // The clock may have been set back meanwhile.
        self.held_for + since.map_or(TimeDelta::zero(), |since| (now - since).max(TimeDelta::zero()))
    }

    /// A device has had its first attempt, at `started`: from then on it has so much time.
    pub(super) fn limit(&mut self, device: &Address, started: DateTime<Utc>, held: TimeDelta) {
        let seconds = self.course.as_ref().and_then(|course| course.policy().device_timeout_in_seconds);
        let (Some(seconds), Some(target)) = (seconds, self.targets.get_mut(device)) else { return };
        let at = started - held + TimeDelta::seconds(seconds.into());
        target.expires = Some(at);
        self.expiries.insert((at, device.clone()));
    }

    /// When a device has taken too long. Nobody's time ends during a pause.
    pub(super) fn expiry(&self) -> Option<DateTime<Utc>> {
        self.expiries.first().filter(|_| self.hold.is_none()).map(|(at, _)| *at + self.held_for)
    }

    fn expired(&mut self, now: DateTime<Utc>) -> Vec<Address> {
        let mut expired = Vec::new();
        while self.expiry().is_some_and(|at| at <= now) {
            expired.extend(self.expiries.pop_first().map(|(_, device)| device));
        }
        expired
    }
}

impl Engine {
    /// End the job as its policy says, if it is time for that.
    pub(super) fn end_by_rule(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let Some(then) = job.due_end(now) else { return };
        job.ending = Some(then);
        push(&mut self.changes, now, id, What::Ending { then });
        match then {
            EndThen::Stop => {
                job.end_unbegun();
                push(&mut self.changes, now, id, What::UnbegunEnded { outcome: not_begun() });
            }
            EndThen::Cancel | EndThen::Force => {
                self.release_hold(now, id, false);
                if let Some(job) = self.jobs.get_mut(id) {
                    job.cancelling = true;
                }
                self.stop_sending(now, id);
            }
        }
        if then == EndThen::Force {
            self.stop_waiting(now, id);
        }
        self.end_if_done(now, id);
    }

    /// Wait for no answer any more. Calls that are out go on, and keep their devices busy.
    fn stop_waiting(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        for device in job.in_state(State::Sent) {
            let by = job.stopped_by();
            job.end(now, &device, End::LeftOut);
            push(&mut self.changes, now, id, ended_unknown(&device, by));
        }
    }

    /// Devices that have taken too long fail.
    pub(super) fn expire(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let expired = job.expired(now);
        for device in &expired {
            let Some(job) = self.jobs.get_mut(id) else { return };
            let Some(target) = job.targets.get(device) else { continue };
            let is_unsent = target.state == State::Starting;
            let outcome = timed_out(job);
            let what = fail(now, job, device, outcome);
            push(&mut self.changes, now, id, what);
            if is_unsent {
                self.release(now, device);
            }
        }
        if !expired.is_empty() {
            self.judge(now, id);
            self.end_if_done(now, id);
        }
    }
}

fn timed_out(job: &Job) -> DeviceJobOutcome {
    let seconds = job.course.as_ref().and_then(|course| course.policy().device_timeout_in_seconds).unwrap_or_default();
    let text =
        format!("the device took longer than {seconds} s from its first attempt, which is what the job gives it");
    policy_outcome(PolicyOutcome::DeviceTimedOut, text)
}

/// What a device has whose turn did not come before the end that the policy gives its job.
pub(super) fn not_begun() -> DeviceJobOutcome {
    policy_outcome(PolicyOutcome::JobEnded, "skipped: the job's end came before this device's turn".to_owned())
}
