//! Jobs that come again and again: each occurrence becomes an ordinary job.
//!
//! A series has no devices of its own. When an occurrence is due, one change of the record adds its job and moves the
//! series on to the next one, so that a crash finds both or neither. The next one is looked for strictly after the last,
//! in absolute time: a clock that is set back makes none fall due twice.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};
use iothub_protocol::id::JobId;
use iothub_protocol::job::recurrence::{Overlap, PassedOver, Recurrence};
use iothub_protocol::job::{JobRequest, JobStatus};

use super::job::Phase;
use super::{Command, Engine, Obedience, What, push};
use crate::plan::Plan;
use crate::record::{SavedJob, SavedSeries};

/// How many jobs of a series can be without an end: one that runs, and a day of hourly ones that wait for it.
const UNFINISHED: usize = 25;

#[derive(Debug)]
pub(super) struct Series {
    request: JobRequest,
    plan: Plan,
    next: DateTime<Utc>,
    /// How many jobs it has begun.
    jobs: u32,
}

impl Engine {
    /// Take a new series, or one of before. Anything else comes back.
    pub(super) fn admit_series(&mut self, now: DateTime<Utc>, saved: SavedJob) -> Option<SavedJob> {
        let Some(Recurrence::Series(schedule)) = &saved.request.recurrence else { return Some(saved) };
        let id = saved.request.job_id.clone();
        let plan = Plan::new(schedule, saved.request.start_time);
        match (plan, saved.series) {
            (Ok(plan), Some(SavedSeries { next, jobs })) => {
                self.calendar.insert((next, id.clone()));
                self.series.insert(id, Series { request: saved.request, plan, next, jobs });
            }
            // It was read when it was created; a zone can have left the database since.
            (Err(error), _) => self.end_series(now, &id, JobStatus::Failed, Some(error)),
            (Ok(_), None) => self.end_series(now, &id, JobStatus::Completed, None),
        }
        None
    }

    /// Begin the jobs of all occurrences that are due.
    pub(super) fn recur(&mut self, now: DateTime<Utc>) {
        while !self.draining && self.calendar.first().is_some_and(|(next, _)| *next <= now) {
            if let Some((_, id)) = self.calendar.pop_first() {
                self.fall_due(now, &id);
            }
        }
    }

    /// When the next occurrence of any series is due.
    pub(super) fn next_occurrence(&self) -> Option<DateTime<Utc>> {
        self.calendar.first().filter(|_| !self.draining).map(|(next, _)| *next)
    }

    /// Carry out a command that is for a series.
    pub(super) fn command_series(&mut self, now: DateTime<Utc>, id: &JobId, command: &Command) -> Obedience {
        if *command != Command::Cancel {
            return Obedience::Refused(format!(
                "{id} is a series, which can only be cancelled; each of its jobs can be paused by itself"
            ));
        }
        self.cancel_series(now, id);
        self.tick(now);
        Obedience::Begun
    }

    /// Its jobs that have begun go on, those that wait do not begin.
    fn cancel_series(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(series) = self.series.get(id) else { return };
        self.calendar.remove(&(series.next, id.clone()));
        self.end_series(now, id, JobStatus::Cancelled, None);
        let line = self.lines.get(id).cloned().unwrap_or_default();
        for job in line {
            match self.jobs.get(&job).map(|job| job.phase) {
                Some(Phase::Waiting) => self.cancel(now, &job),
                Some(_) => {}
                None => _ = self.unwanted.insert(job),
            }
        }
    }

    /// A job of a series is in its line, from its creation to its end.
    pub(super) fn join_line(&mut self, request: &JobRequest) {
        let Some(occurrence) = request.recurrence.as_ref().and_then(Recurrence::occurrence) else { return };
        let line = self.lines.entry(occurrence.job.clone()).or_default();
        if !line.contains(&request.job_id) {
            line.push_back(request.job_id.clone());
        }
    }

    /// Whether a job may begin, as far as those before it in its series are concerned.
    pub(super) fn has_turn(&self, id: &JobId) -> bool {
        let Some(occurrence) = self.jobs.get(id).and_then(|job| job.occurrence.as_ref()) else { return true };
        !occurrence.queued || self.lines.get(&occurrence.job).and_then(VecDeque::front) == Some(id)
    }

    /// A job has ended; the next one of its series may begin.
    pub(super) fn leave_line(&mut self, id: &JobId) {
        let Some(occurrence) = self.jobs.get(id).and_then(|job| job.occurrence.as_ref()) else { return };
        let Some(line) = self.lines.get_mut(&occurrence.job) else { return };
        line.retain(|job| job != id);
        let next = line.front().cloned();
        if line.is_empty() {
            self.lines.remove(&occurrence.job);
        }
        if let Some(next) = next
            && let Some(job) = self.jobs.get(&next).filter(|job| job.phase == Phase::Waiting && job.hold.is_none())
        {
            self.agenda.insert((job.start, next));
        }
    }

    fn fall_due(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(series) = self.series.get_mut(id) else { return };
        let due = series.plan.due(series.next, now);
        let mut passed_over = due.missed.map(|at| (at, PassedOver::Missed));
        let mut jobs = Vec::new();
        for at in due.begin {
            if series.plan.is_complete(series.jobs) {
                break;
            }
            let line = self.lines.entry(id.clone()).or_default();
            let has_room = match series.plan.overlap() {
                Overlap::Skip => line.is_empty(),
                Overlap::Queue | Overlap::Start => line.len() < UNFINISHED,
            };
            match series.request.at_occurrence(at).filter(|_| has_room) {
                Some(job) => {
                    line.push_back(job.job_id.clone());
                    series.jobs = series.jobs.saturating_add(1);
                    jobs.push(job);
                }
                None => passed_over = Some((at, PassedOver::Overlap)),
            }
        }
        let next = due.next.filter(|_| !series.plan.is_complete(series.jobs));
        let count = series.jobs;
        if let Some(next) = next {
            series.next = next;
            self.calendar.insert((next, id.clone()));
        }
        push(&mut self.changes, now, id, What::Recurred { jobs, count, next, passed_over });
        if next.is_none() {
            self.end_series(now, id, JobStatus::Completed, None);
        }
    }

    fn end_series(&mut self, now: DateTime<Utc>, id: &JobId, status: JobStatus, reason: Option<String>) {
        self.series.remove(id);
        push(&mut self.changes, now, id, What::Finished { status, reason });
    }
}
