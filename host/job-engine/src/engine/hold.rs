//! Jobs that are paused: by somebody, by their policy, or until somebody approves of their next stage.

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::id::JobId;
use iothub_protocol::job::{Hold, HoldCause};

use super::job::{Job, Phase};
use super::{Engine, What, push};

impl Engine {
    pub(super) fn pause(&mut self, now: DateTime<Utc>, id: &JobId, reason: String) -> Result<(), String> {
        let Some(job) = self.jobs.get(id) else { return Ok(()) };
        if job.cancelling {
            return Err("the job is being stopped: it begins nothing new anyway".to_owned());
        }
        match &job.hold {
            // What waits for approval goes on with its stage; a pause stops that, too, and approval is asked for again.
            Some(hold) if hold.cause == HoldCause::Approval => self.release_hold(now, id, false),
            Some(_) => return Ok(()),
            None => {}
        }
        self.hold(now, id, HoldCause::Operator, reason);
        Ok(())
    }

    pub(super) fn resume_paused(&mut self, now: DateTime<Utc>, id: &JobId) -> Result<(), String> {
        let Some(cause) = self.jobs.get(id).and_then(|job| Some(job.hold.as_ref()?.cause)) else { return Ok(()) };
        if cause == HoldCause::Approval {
            return Err("the job waits for approval of its next stage: approve of it, or cancel the job".to_owned());
        }
        self.release_hold(now, id, cause == HoldCause::Rule);
        self.judge(now, id);
        self.end_if_done(now, id);
        self.fill(now, id);
        Ok(())
    }

    pub(super) fn approve(&mut self, now: DateTime<Utc>, id: &JobId, stage: Option<u32>) -> Result<(), String> {
        let Some(job) = self.jobs.get(id) else { return Ok(()) };
        let waits = job.hold.as_ref().is_some_and(|hold| hold.cause == HoldCause::Approval);
        let Some(current) = job.course.as_ref().map(|course| course.stage()).filter(|_| waits) else {
            return Err("the job does not wait for approval".to_owned());
        };
        if let Some(stage) = stage.filter(|stage| *stage != current) {
            return Err(format!("the job waits for approval of stage {current}, and not of stage {stage}"));
        }
        self.release_hold(now, id, false);
        self.begin_next_stage(now, id);
        self.judge(now, id);
        self.end_if_done(now, id);
        self.fill(now, id);
        Ok(())
    }

    pub(super) fn begin_next_stage(&mut self, now: DateTime<Utc>, id: &JobId) {
        if let Some(number) = self.jobs.get_mut(id).and_then(Job::next_stage) {
            push(&mut self.changes, now, id, What::Stage { number });
        }
    }

    pub(super) fn hold(&mut self, now: DateTime<Utc>, id: &JobId, cause: HoldCause, reason: String) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.hold = Some(Hold { cause, reason: reason.clone(), since: now });
        job.set_times();
        if let Some(course) = &mut job.course {
            course.pause();
        }
        if job.phase == Phase::Waiting {
            self.agenda.remove(&(job.start, id.clone()));
        }
        push(&mut self.changes, now, id, What::Paused { cause, reason });
    }

    /// A paused job is so no longer.
    pub(super) fn release_hold(&mut self, now: DateTime<Utc>, id: &JobId, is_forgiven: bool) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let Some(hold) = job.hold.take() else { return };
        if let Some(begun) = job.begun {
            // The clock may have been set back meanwhile.
            job.held_for += (now - hold.since.max(begun)).max(TimeDelta::zero());
        }
        job.set_times();
        if is_forgiven && let Some(course) = &mut job.course {
            course.forgive();
        }
        if job.phase == Phase::Waiting {
            self.agenda.insert((job.start, id.clone()));
        }
        let held_for = job.held_for;
        push(&mut self.changes, now, id, What::Resumed { held_for, is_forgiven });
    }
}
