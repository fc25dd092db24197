//! Devices that come to match the condition of a job that runs, which is continuous.
//!
//! Who has changed is looked at soon, some thousand together. All devices are looked at where it is not known who has: after a
//! restart, if too many have, and now and then, for what nobody tells of. One look of a job is out at a time, and none
//! begins before what the one before has found is recorded: whoever looks leaves out those that the journal has, so that a
//! device is in the job once, however it has ended there.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::error::HubError;
use iothub_protocol::id::JobId;
use iothub_protocol::query::{Condition, Source};

use super::job::Phase;
use super::{Engine, Found, Output, What, alike, push};

/// From a change until it is looked at, with those that come meanwhile.
const SOON: TimeDelta = TimeDelta::seconds(1);
/// Changed devices that are remembered; if more have, all are looked at.
const MOST: usize = 10_000;
/// Continuous jobs that run at once; further ones stay queued. Each looks at every change of a twin, also while it has
/// nothing to do and takes no other job's place.
const MOST_JOBS: usize = 64;
/// Between looks at all devices, where changes are told of and where they are not.
const ALL_EVERY: TimeDelta = TimeDelta::minutes(10);
const ALL_EVERY_UNTOLD: TimeDelta = TimeDelta::minutes(1);
/// After a look at all a pause of at least so many times what it took: it may read a million twins, or use up a quota of queries.
const PAUSE_FACTOR: i32 = 10;
/// After a look that failed.
const AGAIN: TimeDelta = TimeDelta::seconds(10);

#[derive(Debug)]
pub(super) struct Gathering {
    are_modules: bool,
    /// They have changed since they were last looked at.
    changed: BTreeSet<Address>,
    /// When these are to be looked at, if there are any.
    look_at: DateTime<Utc>,
    /// When all are; `None` before the job has begun, unless too many have changed since it was asked for its devices.
    all_at: Option<DateTime<Utc>>,
    /// The end of the pause after the last look at all.
    pause_until: DateTime<Utc>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    /// A look is out.
    Looking {
        since: DateTime<Utc>,
        at_all: bool,
    },
    /// What was found is being recorded; at first the devices with which the job begins.
    Recording,
}

impl Gathering {
    /// Of a job that has not begun.
    pub(super) fn new(condition: &str, now: DateTime<Utc>) -> Gathering {
        // A condition that is none ends the job before it begins.
        let source = Condition::parse_job(condition).map_or(Source::Devices, |condition| condition.source());
        Gathering {
            are_modules: source == Source::Modules,
            changed: BTreeSet::new(),
            look_at: now,
            all_at: None,
            pause_until: now,
            state: State::Recording,
        }
    }

    /// The job was under way when the process ended: anybody may have changed since.
    pub(super) fn resume(&mut self, now: DateTime<Utc>) {
        (self.all_at, self.state) = (Some(now), State::Idle);
    }

    /// The job has begun, with those that match now.
    pub(super) fn begin(&mut self, now: DateTime<Utc>, is_told: bool) {
        self.all_at.get_or_insert(now + every(is_told));
    }

    pub(super) fn clock_set(&mut self, by: TimeDelta) {
        for at in [Some(&mut self.look_at), self.all_at.as_mut(), Some(&mut self.pause_until)].into_iter().flatten() {
            *at += by;
        }
        if let State::Looking { since, .. } = &mut self.state {
            *since += by;
        }
    }

    fn change(&mut self, now: DateTime<Utc>, device: &Address) {
        if device.is_module() != self.are_modules {
            return;
        }
        if self.changed.is_empty() {
            self.look_at = now + SOON;
        }
        self.changed.insert(device.clone());
        if self.changed.len() > MOST {
            self.change_all(now);
        }
    }

    /// Too many have changed to tell which.
    fn change_all(&mut self, now: DateTime<Utc>) {
        self.changed.clear();
        self.look_at_all_by(self.pause_until.max(now + SOON));
    }

    fn look_at_all_by(&mut self, at: DateTime<Utc>) {
        self.all_at = Some(self.all_at.map_or(at, |before| before.min(at)));
    }

    pub(super) fn deadline(&self) -> Option<DateTime<Utc>> {
        let look = Some(self.look_at).filter(|_| !self.changed.is_empty());
        look.into_iter().chain(self.all_at).min().filter(|_| self.state == State::Idle)
    }

    /// Whom to look at now: all, if there is no list.
    fn look(&mut self, now: DateTime<Utc>) -> Option<Option<Vec<Address>>> {
        if self.deadline().is_none_or(|at| at > now) {
            return None;
        }
        let at_all = self.all_at.is_some_and(|at| at <= now);
        self.state = State::Looking { since: now, at_all };
        let changed = std::mem::take(&mut self.changed);
        Some((!at_all).then(|| changed.into_iter().collect()))
    }

    /// A look has come back, and something was found that is to be recorded first.
    fn seen(&mut self, now: DateTime<Utc>, is_told: bool, has_found: bool) {
        if let State::Looking { since, at_all: true } = self.state {
            self.pause_until = now + (now - since).max(TimeDelta::zero()) * PAUSE_FACTOR;
            self.all_at = Some(self.pause_until.max(now + every(is_told)));
        }
        self.state = if has_found { State::Recording } else { State::Idle };
    }

    /// A look has failed: whom it was at is not known any more.
    fn failed(&mut self, now: DateTime<Utc>) {
        if let State::Looking { at_all: true, .. } = self.state {
            self.all_at = None;
        }
        self.look_at_all_by(now + AGAIN);
        self.state = State::Idle;
    }

    /// What was found is recorded.
    fn recorded(&mut self) {
        if self.state == State::Recording {
            self.state = State::Idle;
        }
    }

    /// No more looks: the process is about to end.
    fn close(&mut self) {
        self.state = State::Recording;
    }
}

fn every(is_told: bool) -> TimeDelta {
    if is_told { ALL_EVERY } else { ALL_EVERY_UNTOLD }
}

impl Engine {
    /// Whether a job wants to hear which devices have changed, from before it asks for those that it begins with.
    pub fn gathers(&self) -> bool {
        self.active.iter().filter_map(|id| self.jobs.get(id)).any(|job| job.gathering.is_some() && !job.is_stopped())
    }

    /// Whether a job may run beside those that run, as far as it is continuous.
    pub(super) fn may_gather(&self) -> impl Fn(&JobId) -> bool {
        let gathers = |id: &JobId| self.jobs.get(id).is_some_and(|job| job.gathering.is_some());
        let is_full = self.active.iter().filter(|id| gathers(id)).count() >= MOST_JOBS;
        move |id| !is_full || !gathers(id)
    }

    /// Whether the fleet tells which devices have changed. As long as nobody says so, it does not.
    pub fn is_told_of_changes(&mut self, is_told: bool) {
        self.is_told = is_told;
    }

    /// Devices have changed; all of them, if there is no list.
    pub(super) fn changed(&mut self, now: DateTime<Utc>, devices: Option<&[Address]>) {
        for id in &self.active {
            let Some(job) = self.jobs.get_mut(id) else { continue };
            let Some(gathering) = &mut job.gathering else { continue };
            let Some(devices) = devices else {
                gathering.change_all(now);
                continue;
            };
            for device in devices.iter().filter(|device| !job.targets.contains_key(*device)) {
                gathering.change(now, device);
            }
        }
    }

    /// Have devices looked at that are perhaps in the job from now on, if it is time.
    pub(super) fn gather(&mut self, now: DateTime<Utc>, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id).filter(|job| job.gathers(now)) else { return };
        let Some(gathering) = &mut job.gathering else { return };
        if self.draining {
            return gathering.close();
        }
        let Some(among) = gathering.look(now) else { return };
        // It was a condition when the job began.
        let Ok((mut selection, scope)) = job.selection() else { return };
        selection.among = among;
        self.outputs.push_back(Output::Gather { job: id.clone(), selection, scope });
    }

    /// Take the devices that were found, none of which was in the job before.
    pub(super) fn gathered(&mut self, now: DateTime<Utc>, id: &JobId, result: Result<Found, HubError>) {
        let is_told = self.is_told;
        let Some(job) = self.jobs.get_mut(id).filter(|job| job.gathers(now)) else { return };
        let Ok(Found { devices, stages, .. }) = result else {
            return job.gathering.iter_mut().for_each(|gathering| gathering.failed(now));
        };
        let targets = match &mut job.course {
            Some(course) => course.join(devices, stages),
            None => alike(devices),
        };
        if let Some(gathering) = &mut job.gathering {
            gathering.seen(now, is_told, !targets.is_empty());
        }
        if !targets.is_empty() {
            let late = job.join(now, targets.len());
            let joined = targets.iter().map(|target| (target.clone(), late)).collect();
            push(&mut self.changes, now, id, What::Joined { targets });
            self.line_up_joined(now, id, joined);
            self.judge(now, id);
            self.fill(now, id);
        }
    }

    /// What a job has begun with, or what came to it, is recorded.
    pub(super) fn gathering_recorded(&mut self, id: &JobId) {
        let job = self.jobs.get_mut(id).filter(|job| job.phase == Phase::Running);
        if let Some(gathering) = job.and_then(|job| job.gathering.as_mut()) {
            gathering.recorded();
        }
    }
}
