//! What the engine does for jobs with a policy.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::error::ErrorCode;
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::{FailureClass, OfflineEnd, PolicyOutcome};
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus, HoldCause, JobStatus};
use iothub_protocol::plugin_report::PinState;

use super::awaited::Verdict;
use super::course::{After, Judgement};
use super::job::{Job, Phase};
use super::outcome::{describe, error_outcome, failed, policy_outcome};
use super::target::End;
use super::{BY_POLICY, Engine, Output, What, push};

impl Engine {
    /// Have the reports looked at that are waited for, if it is time.
    pub(super) fn look(&mut self, now: DateTime<Utc>, id: &JobId) {
        let course = self.jobs.get_mut(id).and_then(|job| job.course.as_mut());
        let Some(awaited) = course.and_then(|course| course.awaited.as_mut()) else { return };
        if self.draining {
            awaited.close();
        } else if let Some(devices) = awaited.look(now) {
            let plugin = awaited.plugin().to_owned();
            self.outputs.push_back(Output::Look { job: id.clone(), plugin, devices });
        }
    }

    /// Take what a look found; `None` if the hub could not be asked.
    pub(super) fn seen(
        &mut self,
        now: DateTime<Utc>,
        id: &JobId,
        devices: Vec<Address>,
        found: Option<&HashMap<Address, PinState>>,
    ) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let awaited = job.course.as_mut().and_then(|course| course.awaited.as_mut());
        let verdicts = awaited.map(|awaited| awaited.seen(now, devices, found)).unwrap_or_default();
        for (device, verdict) in verdicts {
            let what = match verdict {
                Verdict::Succeeded => {
                    job.end(now, &device, End::Succeeded);
                    let (status, outcome) = (End::Succeeded.status(), Some(DeviceJobOutcome::TwinUpdated));
                    What::Ended { device, status, outcome }
                }
                Verdict::Failed(reason) => {
                    fail(now, job, &device, policy_outcome(PolicyOutcome::PluginVersionFailed, reason))
                }
                Verdict::NotReported(what) => {
                    fail(now, job, &device, policy_outcome(PolicyOutcome::PluginVersionNotReported, what))
                }
            };
            push(&mut self.changes, now, id, what);
        }
        self.judge(now, id);
        self.end_if_done(now, id);
        self.fill(now, id);
    }

    /// Go on to the next stage, or abort, if it is time for that.
    pub(super) fn judge(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        if job.phase != Phase::Running || job.cancelling {
            return;
        }
        // One whose end has come goes on to no other stage either.
        let is_paused = job.hold.is_some() || job.ending.is_some();
        let Some(course) = &mut job.course else { return };
        match course.judge(now, is_paused) {
            Judgement::GoOn => {}
            Judgement::NextStage => {
                self.begin_next_stage(now, id);
                // The stage may have no device of its own.
                self.judge(now, id);
            }
            Judgement::AwaitApproval(reason) => self.hold(now, id, HoldCause::Approval, reason),
            Judgement::Pause(reason) => self.hold(now, id, HoldCause::Rule, reason),
            Judgement::Abort(reason) => {
                self.release_hold(now, id, false);
                let Some(job) = self.jobs.get_mut(id) else { return };
                job.cancelling = true;
                job.aborted = Some(reason.clone());
                push(&mut self.changes, now, id, What::Aborting { reason });
                self.stop_sending(now, id);
                // Time alone can bring it here, when no answer follows.
                self.end_if_done(now, id);
            }
        }
    }

    /// Devices have connected.
    pub(super) fn arrived(&mut self, now: DateTime<Utc>, mut arrived: impl FnMut(&mut Job) -> bool) {
        let active: Vec<JobId> = self.active.iter().cloned().collect();
        for id in active {
            if self.jobs.get_mut(&id).is_some_and(&mut arrived) {
                self.fill(now, &id);
            }
        }
    }

    /// Wait no longer for these devices.
    pub(super) fn give_up(&mut self, now: DateTime<Utc>, id: &JobId, devices: Vec<Address>) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let is_any = !devices.is_empty();
        for device in devices {
            let what = end_offline(now, job, &device);
            push(&mut self.changes, now, id, what);
        }
        if is_any {
            self.judge(now, id);
            self.end_if_done(now, id);
        }
    }

    /// Take pins back, as many at once as may be in flight.
    pub(super) fn unpin(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id).filter(|job| job.phase == Phase::Unpinning) else { return };
        let Some(course) = &mut job.course else { return };
        let Some(awaited) = &course.awaited else { return };
        while !self.draining
            && job.in_flight < self.limits.in_flight_per_job
            && let Some(device) = course.reached.pop_first()
        {
            job.in_flight += 1;
            let plugin = awaited.plugin().to_owned();
            self.outputs.push_back(Output::Unpin { job: id.clone(), device, plugin });
        }
        if job.in_flight == 0 && course.reached.is_empty() {
            let mut reason = job.aborted.clone().unwrap_or_default();
            match course.not_unpinned {
                0 => {}
                count => reason.push_str(&format!("; {count} devices could not be unpinned, see the log")),
            }
            self.finish(now, id, JobStatus::Failed, Some(reason));
        }
    }

    pub(super) fn unpinned(&mut self, now: DateTime<Utc>, id: &JobId, is_done: bool) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.in_flight = job.in_flight.saturating_sub(1);
        if let Some(course) = &mut job.course
            && !is_done
        {
            course.not_unpinned += 1;
        }
        self.unpin(now, id);
    }
}

/// A sent device has come through what it was sent.
pub(super) fn succeeded(now: DateTime<Utc>, job: &mut Job, device: &Address, outcome: DeviceJobOutcome) -> What {
    if !job.cancelling && job.wait_for_report(now, device) {
        return What::Awaited { device: device.clone() };
    }
    if job.cancelling && job.succeeds_by_report() {
        job.end(now, device, End::LeftOut);
        return ended_unknown(device, job.stopped_by());
    }
    let outcome = job.answer_of(device, outcome);
    job.end(now, device, End::Succeeded);
    What::Ended { device: device.clone(), status: End::Succeeded.status(), outcome: Some(outcome) }
}

/// A sent device has failed: for good, or for now.
pub(super) fn failing(now: DateTime<Utc>, job: &mut Job, device: &Address, outcome: DeviceJobOutcome) -> What {
    let class = FailureClass::of_outcome(&outcome);
    let next = match &job.course {
        Some(course) if !job.cancelling => {
            course.after_failure(now, (device, job.late(device)), class, job.failures(device))
        }
        _ => After::Fail,
    };
    match next {
        After::Fail => fail(now, job, device, outcome),
        After::LeaveOut => end_offline(now, job, device),
        After::Wait => {
            let until = Some(job.wait_for(now, device, BY_POLICY));
            What::Waiting { device: device.clone(), until, outcome: Some(outcome), failures: None }
        }
        After::Retry(at) => {
            let failures = job.retry(at, device, outcome.clone());
            What::Waiting { device: device.clone(), until: Some(at), outcome: Some(outcome), failures: Some(failures) }
        }
    }
}

pub(super) fn fail(now: DateTime<Utc>, job: &mut Job, device: &Address, outcome: DeviceJobOutcome) -> What {
    job.end(now, device, End::Failed(FailureClass::of_outcome(&outcome)));
    if let Some(course) = &mut job.course {
        course.failed_because(device, &describe(&outcome));
    }
    failed(device, outcome)
}

/// A device that was not connected is not waited for, or no longer.
pub(super) fn end_offline(now: DateTime<Utc>, job: &mut Job, device: &Address) -> What {
    let Some(rule) = job.course.as_ref().map(|course| course.offline()) else {
        return fail(now, job, device, error_outcome(ErrorCode::DeviceNotOnline, "the device is not connected"));
    };
    let when = match rule.wait_in_seconds {
        0 => "when its turn came".to_owned(),
        seconds if job.windows.is_some() => {
            format!("within {seconds} s of the first opening of its maintenance window, and while one was open")
        }
        seconds if job.late(device).is_zero() => format!("within {seconds} s of the job's beginning"),
        seconds => format!("within {seconds} s since it is in the job"),
    };
    let outcome = policy_outcome(PolicyOutcome::DeviceWasOffline, format!("the device was not connected {when}"));
    match rule.then {
        OfflineEnd::Fail => fail(now, job, device, outcome),
        OfflineEnd::Skip => {
            job.end(now, device, End::LeftOut);
            What::Ended { device: device.clone(), status: End::LeftOut.status(), outcome: Some(outcome) }
        }
    }
}

/// What becomes of a device that was perhaps reached, and is not to be asked again.
pub(super) fn in_doubt() -> DeviceJobOutcome {
    let text = "the host ended before the device had answered, and the policy does not have it asked again";
    policy_outcome(PolicyOutcome::AttemptInDoubt, text.to_owned())
}

/// What came of an attempt that was perhaps sent, where the device is asked again.
pub(super) fn asked_again() -> DeviceJobOutcome {
    let text = "the host ended before the device had answered, and the device is asked again";
    policy_outcome(PolicyOutcome::AttemptInDoubt, text.to_owned())
}

/// What a device has of an aborted job whose turn did not come.
pub(super) fn skipped() -> DeviceJobOutcome {
    policy_outcome(PolicyOutcome::JobAborted, "skipped: the job was aborted before this device's turn".to_owned())
}

/// Something was sent to the device, but nobody waits any more for what comes of it.
pub(super) fn ended_unknown(device: &Address, outcome: PolicyOutcome) -> What {
    let how = match outcome {
        PolicyOutcome::JobAborted => "aborted",
        PolicyOutcome::JobEnded => "ended by its policy",
        _ => "cancelled",
    };
    let text = format!("the job was {how} after the device's turn had begun, and before its outcome was known");
    let (status, outcome) = (DeviceJobStatus::Canceled, Some(policy_outcome(outcome, text)));
    What::Ended { device: device.clone(), status, outcome }
}
