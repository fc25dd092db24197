//! Which device of which job is next.
//!
//! A job begins devices by itself as long as there is room for all. From then on jobs wait in line: those of a higher
//! priority before the others, and equal ones one device each in turn, so that a small job is not behind a large one.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::Priority;

use super::job::Phase;
use super::target::State;
use super::{Call, Engine, What, push};

/// The jobs that want to begin more than there is room for.
#[derive(Debug, Default)]
pub(super) struct Turns {
    line: BTreeSet<(Reverse<Priority>, u64, JobId)>,
    /// The place of the next that comes.
    next: u64,
}

impl Turns {
    fn wait(&mut self, priority: Priority, id: &JobId) {
        self.next += 1;
        self.line.insert((Reverse(priority), self.next, id.clone()));
    }

    fn pop(&mut self) -> Option<JobId> {
        self.line.pop_first().map(|(_, _, id)| id)
    }
}

impl Engine {
    /// Have the job begin devices, as many as may be in flight, or wait for its turn.
    pub(super) fn fill(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        if let Some(course) = &mut job.course {
            course.unthrottle();
        }
        job.look_at_windows(now);
        while self.wants_more(id) {
            if self.busy.len() >= self.limits.in_flight || !self.turns.line.is_empty() {
                self.wait_for_turn(id);
                return;
            }
            if !self.begin_one(now, id) {
                return;
            }
        }
    }

    /// Give those that wait for it their turns, as far as there is room.
    pub(super) fn take_turns(&mut self, now: DateTime<Utc>) {
        while self.busy.len() < self.limits.in_flight
            && let Some(id) = self.turns.pop()
        {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            job.waits_for_turn = false;
            if self.wants_more(&id) && self.begin_one(now, &id) && self.wants_more(&id) {
                self.wait_for_turn(&id);
            }
        }
    }

    fn wait_for_turn(&mut self, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        if !job.waits_for_turn {
            job.waits_for_turn = true;
            self.turns.wait(job.priority(), id);
        }
    }

    fn wants_more(&self, id: &JobId) -> bool {
        self.jobs.get(id).is_some_and(|job| {
            let may = !self.draining && job.phase == Phase::Running && !job.is_held();
            may && job.in_flight < self.limits.in_flight_per_job && job.has_ready()
        })
    }

    /// Begin one device. `false` if there is none that could: all are busy, or the rate or their windows do not allow it
    /// yet.
    fn begin_one(&mut self, now: DateTime<Utc>, id: &JobId) -> bool {
        let Some(mut job) = self.jobs.get_mut(id) else { return false };
        job.look_at_windows(now);
        while let Some(counts) = job.counts_next() {
            if job.closes_out_next() {
                continue;
            }
            if counts && job.course.as_mut().is_some_and(|course| !course.may_start(now)) {
                return false;
            }
            let Some(device) = job.take_next() else { return false };
            let Some(target) = job.targets.get_mut(&device) else { continue };
            if self.busy.contains_key(&device) {
                target.state = State::Blocked;
                let priority = job.priority();
                let line = self.blocked.entry(device).or_default();
                let ahead =
                    line.iter().filter(|other| self.jobs.get(*other).is_some_and(|job| job.priority() >= priority));
                let place = ahead.count();
                line.insert(place, id.clone());
                let Some(again) = self.jobs.get_mut(id) else { return false };
                job = again;
                continue;
            }
            target.begin_attempt();
            let attempt = target.attempt;
            if attempt == 1 {
                let held = job.held(now);
                job.limit(&device, now, held);
            }
            job.started();
            if let Some(course) = job.course.as_mut().filter(|_| counts) {
                course.started(now, attempt);
            }
            self.busy.insert(device.clone(), Call { job: id.clone(), attempt });
            push(&mut self.changes, now, id, What::Started { device, attempt });
            return true;
        }
        false
    }
}
