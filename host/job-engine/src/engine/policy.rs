//! What the engine does for jobs with a policy.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::PolicyOutcome;
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus, JobStatus};
use iothub_protocol::plugin_report::PinState;

use super::awaited::Verdict;
use super::course::Judgement;
use super::job::Phase;
use super::outcome::policy_outcome;
use super::{Engine, Output, What, push};

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
            let (status, outcome) = match verdict {
                Verdict::Succeeded => (DeviceJobStatus::Completed, DeviceJobOutcome::TwinUpdated),
                Verdict::Failed(reason) => {
                    (DeviceJobStatus::Failed, policy_outcome(PolicyOutcome::PluginVersionFailed, reason))
                }
                Verdict::NotReported(what) => {
                    (DeviceJobStatus::Failed, policy_outcome(PolicyOutcome::PluginVersionNotReported, what))
                }
            };
            job.end(now, &device, status);
            if let (Some(course), DeviceJobOutcome::Error { description, .. }) = (&mut job.course, &outcome) {
                course.failed_because(&device, description);
            }
            push(&mut self.changes, now, id, What::Ended { device, status, outcome: Some(outcome) });
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
        let Some(course) = &mut job.course else { return };
        match course.judge(now) {
            Judgement::GoOn => {}
            Judgement::NextStage => {
                if let Some(number) = job.next_stage() {
                    push(&mut self.changes, now, id, What::Stage { number });
                }
                // The stage may have no device of its own.
                self.judge(now, id);
            }
            Judgement::Abort(reason) => {
                job.cancelling = true;
                job.aborted = Some(reason.clone());
                push(&mut self.changes, now, id, What::Aborting { reason });
                self.stop_sending(now, id);
            }
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

/// What a device has of an aborted job whose turn did not come.
pub(super) fn skipped() -> DeviceJobOutcome {
    policy_outcome(PolicyOutcome::JobAborted, "skipped: the job was aborted before this device's turn".to_owned())
}

/// Something was sent to the device, but nobody waits any more for what comes of it.
pub(super) fn ended_unknown(device: &Address, is_aborted: bool) -> What {
    let (outcome, how) = match is_aborted {
        true => (PolicyOutcome::JobAborted, "aborted"),
        false => (PolicyOutcome::JobCancelled, "cancelled"),
    };
    let text = format!("the job was {how} after the device's turn had begun, and before its outcome was known");
    let (status, outcome) = (DeviceJobStatus::Canceled, Some(policy_outcome(outcome, text)));
    What::Ended { device: device.clone(), status, outcome }
}
