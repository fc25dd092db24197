//! Jobs that were under way when the process ended go on.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::job::policy::FailureClass;

use super::job::Job;
use super::outcome::failed;
use super::policy::{asked_again, in_doubt};
use super::target::{End, State, Target};
use super::watch::Group;
use super::windows::Place;
use super::{BegunTarget, Engine, RECONNECT_GRACE, SavedJob, SavedTarget, What, push};

impl Engine {
    /// Take up a job that had begun at `begun`.
    pub(super) fn resume(&mut self, now: DateTime<Utc>, mut saved: SavedJob, begun: DateTime<Utc>) {
        let id = saved.request.job_id.clone();
        let targets = std::mem::take(&mut saved.targets);
        let saved_course = saved.course.take();
        let mut job = Job::new(saved, true);
        job.begin(begun);
        job.waits_for_offline = true;
        if let (Some(course), Some(saved)) = (&mut job.course, saved_course) {
            course.resume(saved.stage, &saved.ended, saved.forgiven);
            course.resume_started(saved.reached.len() as u64);
            saved.reached.iter().for_each(|device| course.reach(device));
        }
        let fails_in_doubt = job.course.as_ref().is_some_and(|course| course.fails_in_doubt());
        let (mut lost, mut fresh, mut zoneless) = (Vec::new(), Vec::new(), Vec::new());
        for mut target in targets {
            if let Some(since) = target.awaited {
                let at_least = now + RECONNECT_GRACE;
                if target.step > 0 {
                    job.add_stepping(now, target, (since, at_least));
                    continue;
                }
                let place = (target.attempt, target.stage, target.group);
                job.add_awaited(now, target.device, place, (since, at_least), target.started);
                continue;
            }
            if target.in_doubt {
                // Of a wait that was over before its attempt.
                target.until = None;
                job.statistics.running_count = job.statistics.running_count.saturating_sub(1);
                job.statistics.pending_count += 1;
                match fails_in_doubt {
                    true => lost.push(target.device.clone()),
                    false => {
                        let device = target.device.clone();
                        let outcome = Some(asked_again());
                        let waiting = What::Waiting { device, until: None, outcome, failures: None };
                        push(&mut self.changes, now, &id, waiting);
                    }
                }
            }
            let zone = job.zone(now, target.zone.clone());
            // One that has not had a turn is seen to with all others like it.
            if let Err(reason) = &zone
                && target.attempt > 0
            {
                zoneless.push((target.device.clone(), reason.clone()));
            }
            fresh.extend(job.add_waiting(target, zone.unwrap_or_default()));
        }
        let (mut list, joined): (Vec<_>, Vec<_>) = fresh.into_iter().partition(|(_, late)| late.is_zero());
        list.sort_by_key(|(target, _)| target.stage);
        let list = list.into_iter().map(|(target, _)| target).collect();
        job.bound_waits();
        if let Some(gathering) = &mut job.gathering {
            gathering.resume(now);
        }
        for device in lost {
            job.end(now, &device, End::Failed(FailureClass::Unknown));
            push(&mut self.changes, now, &id, failed(&device, in_doubt()));
        }
        self.active.insert(id.clone());
        self.jobs.insert(id.clone(), job);
        self.line_up(now, &id, &Arc::new(list));
        self.line_up_joined(now, &id, joined);
        for (device, reason) in zoneless {
            self.fail_without_zone(now, &id, &device, reason);
        }
        if self.jobs.get(&id).is_some_and(|job| job.cancelling) {
            self.stop_sending(now, &id);
        }
        self.end_by_rule(now, &id);
        self.judge(now, &id);
        self.end_if_done(now, &id);
        self.fill(now, &id);
    }
}

impl Job {
    /// Take a device that has not ended when the process did. Gives it back if it has not had a turn, with how long after
    /// the job's beginning it has joined.
    fn add_waiting(&mut self, saved: SavedTarget, place: Place) -> Option<(BegunTarget, TimeDelta)> {
        let SavedTarget { device, attempt, failures, last, until, stage, group, zone, late, .. } = saved;
        let SavedTarget { step, answered, started, .. } = saved;
        if let Some(course) = &mut self.course {
            course.add(stage, &group);
        }
        if attempt == 0 {
            let stage = self.course.is_some().then_some(stage);
            return Some((BegunTarget { device, stage, group, zone }, late));
        }
        let mut target = Target::new(attempt, stage, group, State::Ready);
        target.awaits_connection = last.is_none() && until.is_some();
        (target.zone, target.late) = (place, self.late_in(place, late));
        (target.step, target.answered) = (step, answered.map(Box::new));
        (target.failures, target.last) = (failures, last.map(Box::new));
        match until {
            Some(until) => {
                target.state = State::Later(until);
                self.later.insert((until, device.clone()));
            }
            None => self.ready.push_back(device.clone()),
        }
        self.targets.insert(device.clone(), target);
        self.limit_again(&device, started);
        None
    }

    /// Take a device whose report was waited for when the process ended, since `since`. It may take until `at_least` to
    /// come back.
    fn add_awaited(
        &mut self,
        now: DateTime<Utc>,
        device: Address,
        (attempt, stage, group): (u32, u32, Group),
        (since, at_least): (DateTime<Utc>, DateTime<Utc>),
        started: Option<DateTime<Utc>>,
    ) {
        let Some(course) = &mut self.course else { return };
        course.add(stage, &group);
        if let Some(awaited) = &mut course.awaited {
            awaited.add(now, device.clone(), since, at_least);
        }
        self.targets.insert(device.clone(), Target::new(attempt, stage, group, State::Awaited));
        self.limit_again(&device, started);
    }

    /// Take a device whose twin was waited for when the process ended, before one of its steps.
    fn add_stepping(
        &mut self,
        now: DateTime<Utc>,
        saved: SavedTarget,
        (since, at_least): (DateTime<Utc>, DateTime<Utc>),
    ) {
        let SavedTarget { device, attempt, stage, group, late, step, answered, failures, started, .. } = saved;
        if let Some(course) = &mut self.course {
            course.add(stage, &group);
        }
        self.steps.wait(now, device.clone(), step, (since, at_least));
        let target = Target::new(attempt, stage, group, State::Awaited);
        let target = Target { late, step, failures, answered: answered.map(Box::new), ..target };
        self.targets.insert(device.clone(), target);
        self.limit_again(&device, started);
    }

    /// A device that began before the process did has its time as it had. What the job was paused before that counts for
    /// it as well, as nobody knows which pauses were.
    fn limit_again(&mut self, device: &Address, started: Option<DateTime<Utc>>) {
        if let Some(started) = started {
            self.limit(device, started, TimeDelta::zero());
        }
    }
}
