//! What the journal holds, in maps: the rows that follow from a list of changes, one after the other.
//!
//! It stands for SQLite in most runs, and is compared with it, row for row, in the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::{EndThen, FailureClass, JobPolicy, Priority, ReportRule, SuccessRule};
use iothub_protocol::job::{
    DeviceJob, DeviceJobOutcome, DeviceJobStatus, FailureCounts, Hold, JobAction, JobRequest, JobStatistics, JobStatus,
};
use iothub_protocol::method::MethodResponse;

use super::{BegunTarget, Change, SavedCourse, SavedEnd, SavedJob, SavedTarget, What};

#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    /// In the order of their creation.
    pub(super) order: Vec<JobId>,
    pub(super) jobs: BTreeMap<JobId, JobRow>,
}

#[derive(Debug, Clone)]
pub(super) struct JobRow {
    pub(super) request: Arc<JobRequest>,
    pub(super) status: JobStatus,
    pub(super) start: DateTime<Utc>,
    pub(super) begun: Option<DateTime<Utc>>,
    pub(super) ended: Option<DateTime<Utc>>,
    pub(super) cancelling: bool,
    pub(super) ending: Option<EndThen>,
    pub(super) hold: Option<Hold>,
    pub(super) held_for: TimeDelta,
    /// Until when its failures are forgiven.
    forgiven: Option<DateTime<Utc>>,
    pub(super) reason: Option<String>,
    pub(super) stage: Option<u32>,
    pub(super) rows: BTreeMap<Address, Row>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) status: DeviceJobStatus,
    pub(super) attempt: u32,
    /// Counted from 1; `None` without a policy.
    pub(super) stage: Option<u32>,
    pub(super) group: Option<Arc<str>>,
    pub(super) created: DateTime<Utc>,
    pub(super) updated: DateTime<Utc>,
    version: u64,
    pub(super) started: Option<DateTime<Utc>>,
    pub(super) ended: Option<DateTime<Utc>>,
    pub(super) outcome: Option<DeviceJobOutcome>,
    pub(super) awaited: Option<DateTime<Utc>>,
    pub(super) failures: u32,
    pub(super) until: Option<DateTime<Utc>>,
    /// Counted from 0.
    pub(super) step: u32,
    /// It ended before its job was resumed that the policy had paused.
    pub(super) is_forgiven: bool,
}

impl Ledger {
    pub(super) fn create(&mut self, saved: &SavedJob) {
        let row = JobRow {
            request: Arc::new(saved.request.clone()),
            status: saved.status,
            start: saved.start,
            begun: None,
            ended: None,
            cancelling: false,
            ending: None,
            hold: None,
            held_for: TimeDelta::zero(),
            forgiven: None,
            reason: None,
            stage: None,
            rows: BTreeMap::new(),
        };
        self.order.push(saved.request.job_id.clone());
        self.jobs.insert(saved.request.job_id.clone(), row);
    }

    /// Answers what cannot be written.
    pub(super) fn apply(&mut self, change: &Change) -> Result<(), String> {
        let Change { job, at, what } = change;
        let job = self.jobs.get_mut(job).ok_or("no such job")?;
        match what {
            What::Scheduled => job.status = JobStatus::Scheduled,
            What::Begun { targets, .. } => {
                (job.status, job.begun) = (JobStatus::Running, Some(*at));
                job.rows.extend(targets.iter().map(|target| (target.device.clone(), Row::new(*at, target))));
            }
            What::Joined { targets } => {
                for target in targets {
                    if job.rows.insert(target.device.clone(), Row::new(*at, target)).is_some() {
                        return Err(format!("{} is in the job already", target.device));
                    }
                }
            }
            What::Stage { number } => job.stage = Some(*number),
            What::Started { device, attempt } => {
                let row = job.row(device, *at)?;
                (row.status, row.attempt) = (DeviceJobStatus::Running, *attempt);
                row.started.get_or_insert(*at);
            }
            What::Waiting { device, until, outcome, failures } => {
                let failed = failures.zip(outcome.clone());
                let row = job.row(device, *at)?;
                (row.status, row.until) = (DeviceJobStatus::Pending, *until);
                if failed.is_none() {
                    row.awaited = None;
                }
                match failed {
                    Some((failures, outcome)) => (row.failures, row.outcome) = (failures, Some(outcome)),
                    // What it waits for now is its connection, not the end of a pause.
                    None if until.is_some() => row.outcome = None,
                    None => {}
                }
            }
            // Not of the rows.
            What::Late { .. } | What::Audited(_) => {}
            What::Stepped { device, step, outcome, awaits } => {
                let row = job.row(device, *at)?;
                row.status = if *awaits { DeviceJobStatus::Running } else { DeviceJobStatus::Pending };
                (row.step, row.awaited, row.until) = (*step, awaits.then_some(*at), None);
                let is_answer = |outcome: &DeviceJobOutcome| matches!(outcome, DeviceJobOutcome::Method(_));
                row.outcome = Some(outcome.clone()).filter(is_answer).or(row.outcome.take().filter(is_answer));
            }
            What::Recurred { .. } => return Err("there is no series".to_owned()),
            What::Awaited { device } => job.row(device, *at)?.awaited = Some(*at),
            What::Ended { device, status, outcome } => job.row(device, *at)?.end(*at, *status, outcome.clone()),
            What::PendingEnded { status, outcome } => {
                for row in job.rows.values_mut().filter(|row| row.status == DeviceJobStatus::Pending) {
                    row.change(*at);
                    let kept = row.outcome.take();
                    row.end(*at, *status, outcome.clone().or(kept));
                }
            }
            What::Paused { cause, reason } => {
                job.hold = Some(Hold { cause: *cause, reason: reason.clone(), since: *at });
            }
            What::Resumed { held_for, is_forgiven } => {
                (job.hold, job.held_for) = (None, *held_for);
                if *is_forgiven {
                    job.forgiven = Some(*at);
                    job.rows.values_mut().for_each(|row| row.is_forgiven = row.ended.is_some());
                }
            }
            What::Cancelling => job.cancelling = true,
            What::Ending { then } => {
                job.ending = Some(*then);
                job.cancelling |= *then != EndThen::Stop;
            }
            What::UnbegunEnded { outcome } => {
                let is_unbegun = |row: &&mut Row| row.status == DeviceJobStatus::Pending && row.attempt == 0;
                for row in job.rows.values_mut().filter(is_unbegun) {
                    row.change(*at);
                    row.end(*at, DeviceJobStatus::Canceled, Some(outcome.clone()));
                }
            }
            What::Aborting { reason } => (job.cancelling, job.reason) = (true, Some(reason.clone())),
            What::Finished { status, reason } => {
                (job.status, job.ended, job.reason, job.hold) = (*status, Some(*at), reason.clone(), None);
            }
        }
        Ok(())
    }

    /// As it reads after the end of the process: what ended in the millisecond of a resume counts as before it.
    pub(super) fn read_again(mut self) -> Ledger {
        for job in self.jobs.values_mut() {
            let forgiven = job.forgiven;
            job.rows.values_mut().for_each(|row| row.is_forgiven = row.ended.is_some() && row.ended <= forgiven);
        }
        self
    }

    pub(super) fn unfinished(&self) -> impl Iterator<Item = (&JobId, &JobRow)> {
        self.jobs.iter().filter(|(_, job)| job.ended.is_none())
    }

    /// What an engine takes up.
    pub(super) fn saved(&self) -> Vec<SavedJob> {
        let jobs = self.order.iter().map(|id| &self.jobs[id]).filter(|job| job.ended.is_none());
        jobs.map(JobRow::saved).collect()
    }

    pub(super) fn device_jobs(&self, id: &JobId) -> Vec<DeviceJob> {
        let job = &self.jobs[id];
        job.rows.iter().map(|(device, row)| row.device_job(id, job, device)).collect()
    }
}

impl JobRow {
    /// A row that changes at that time.
    fn row(&mut self, device: &Address, at: DateTime<Utc>) -> Result<&mut Row, String> {
        let row = self.rows.get_mut(device).ok_or_else(|| format!("no row of {device}"))?;
        row.change(at);
        Ok(row)
    }

    pub(super) fn policy(&self) -> Option<&JobPolicy> {
        self.request.policy.as_ref()
    }

    pub(super) fn has_windows(&self) -> bool {
        self.policy().is_some_and(|policy| !policy.windows.is_empty())
    }

    pub(super) fn priority(&self) -> Priority {
        self.policy().map(|policy| policy.priority).unwrap_or_default()
    }

    pub(super) fn report_rule(&self) -> Option<&ReportRule> {
        match self.policy()?.succeed.as_ref()? {
            SuccessRule::Report(rule) => Some(rule),
            SuccessRule::Answer(_) => None,
        }
    }

    /// For how long it was paused by then.
    pub(super) fn held(&self, now: DateTime<Utc>) -> TimeDelta {
        let since = self.hold.as_ref().zip(self.begun).map(|(hold, begun)| hold.since.max(begun));
        self.held_for + since.map_or(TimeDelta::zero(), |since| now - since)
    }

    /// When its time began, without its pauses. Nobody's time ends during one.
    pub(super) fn counts_from(&self) -> Option<DateTime<Utc>> {
        self.begun.filter(|_| self.hold.is_none()).map(|begun| begun + self.held_for)
    }

    pub(super) fn statistics(&self) -> JobStatistics {
        let count = |status| self.rows.values().filter(|row| row.status == status).count() as u64;
        let mut failures = FailureCounts::default();
        for row in self.rows.values().filter(|row| row.status == DeviceJobStatus::Failed) {
            failures.add(row.outcome.as_ref().map_or(FailureClass::Fault, FailureClass::of_outcome), 1);
        }
        JobStatistics {
            device_count: self.rows.len() as u64,
            failed_count: count(DeviceJobStatus::Failed),
            succeeded_count: count(DeviceJobStatus::Completed),
            running_count: count(DeviceJobStatus::Running),
            pending_count: count(DeviceJobStatus::Pending),
            failures,
        }
    }

    /// Those that have succeeded or failed, in the order of that.
    pub(super) fn ended(&self) -> Vec<SavedEnd> {
        self.ended_of(|_| true)
    }

    /// Those of them that may break a rule.
    pub(super) fn unforgiven(&self) -> Vec<SavedEnd> {
        self.ended_of(|row| !row.is_forgiven)
    }

    fn ended_of(&self, is_wanted: impl Fn(&Row) -> bool) -> Vec<SavedEnd> {
        let counts = |row: &&Row| matches!(row.status, DeviceJobStatus::Completed | DeviceJobStatus::Failed);
        let mut ended: Vec<&Row> = self.rows.values().filter(counts).filter(|row| is_wanted(row)).collect();
        ended.sort_by_key(|row| row.ended);
        let end = |row: &Row| SavedEnd {
            stage: row.stage.unwrap_or_default(),
            at: row.ended.unwrap_or_default(),
            group: row.group.clone(),
            failure: match (row.status, &row.outcome) {
                (DeviceJobStatus::Completed, _) => None,
                (_, outcome) => Some(outcome.as_ref().map_or(FailureClass::Fault, FailureClass::of_outcome)),
            },
        };
        ended.into_iter().map(end).collect()
    }

    /// How long after the job's beginning a device has come to it.
    pub(super) fn late(&self, row: &Row) -> TimeDelta {
        self.begun.map_or(TimeDelta::zero(), |begun| row.created - begun)
    }

    fn saved(&self) -> SavedJob {
        let open = self.rows.iter().filter(|(_, row)| row.ended.is_none());
        let targets = open.map(|(device, row)| SavedTarget {
            device: device.clone(),
            attempt: row.attempt,
            in_doubt: row.is_in_flight(),
            failures: row.failures,
            last: row.last().cloned(),
            until: row.until,
            awaited: row.awaited,
            stage: row.stage.unwrap_or_default(),
            group: row.group.clone(),
            zone: None,
            started: row.started,
            late: self.late(row),
            step: row.step,
            answered: row.answered().cloned(),
        });
        let reached = self.rows.iter().filter(|(_, row)| row.attempt > 0).map(|(device, _)| device.clone());
        SavedJob {
            request: (*self.request).clone(),
            status: self.status,
            start: self.start,
            begun: self.begun,
            cancelling: self.cancelling,
            ending: self.ending,
            hold: self.hold.clone(),
            held_for: self.held_for,
            aborted: self.reason.clone(),
            statistics: self.begun.map(|_| self.statistics()).unwrap_or_default(),
            targets: targets.collect(),
            course: self.stage.map(|stage| SavedCourse {
                stage,
                ended: self.ended(),
                reached: reached.collect(),
                forgiven: self.forgiven,
            }),
            series: None,
        }
    }
}

impl Row {
    fn new(at: DateTime<Utc>, target: &BegunTarget) -> Row {
        Row {
            status: DeviceJobStatus::Pending,
            attempt: 0,
            stage: target.stage,
            group: target.group.clone(),
            created: at,
            updated: at,
            version: 1,
            started: None,
            ended: None,
            outcome: None,
            awaited: None,
            failures: 0,
            until: None,
            step: 0,
            is_forgiven: false,
        }
    }

    fn change(&mut self, at: DateTime<Utc>) {
        (self.updated, self.version) = (at, self.version + 1);
    }

    fn end(&mut self, at: DateTime<Utc>, status: DeviceJobStatus, outcome: Option<DeviceJobOutcome>) {
        (self.status, self.outcome, self.ended) = (status, outcome, Some(at));
    }

    /// An attempt was begun, and nothing has come of it.
    pub(super) fn is_in_flight(&self) -> bool {
        self.status == DeviceJobStatus::Running && self.awaited.is_none()
    }

    /// How it failed, if it is to be tried again for that.
    pub(super) fn last(&self) -> Option<&DeviceJobOutcome> {
        if self.answered().is_some() { None } else { self.outcome.as_ref() }
    }

    /// The answer of a step that is done.
    pub(super) fn answered(&self) -> Option<&MethodResponse> {
        match &self.outcome {
            Some(DeviceJobOutcome::Method(answer)) if self.step > 0 && self.until.is_none() => Some(answer),
            _ => None,
        }
    }

    /// It is waited for, since it was not connected.
    pub(super) fn is_offline(&self) -> bool {
        self.status == DeviceJobStatus::Pending && self.is_found_offline()
    }

    /// It was not connected when it was last tried, as far as that has an end.
    pub(super) fn is_found_offline(&self) -> bool {
        self.until.is_some() && self.outcome.is_none()
    }

    fn device_job(&self, job_id: &JobId, job: &JobRow, address: &Address) -> DeviceJob {
        let is_told = |outcome: &DeviceJobOutcome| *outcome != DeviceJobOutcome::TwinUpdated;
        let is_updated =
            matches!(job.request.action, JobAction::UpdateTwin(_)) && self.status == DeviceJobStatus::Completed;
        DeviceJob {
            address: address.clone(),
            job_id: job_id.clone(),
            job_type: job.request.action.job_type(),
            status: self.status,
            created: self.created,
            last_updated: self.updated,
            start: self.started,
            end: self.ended,
            outcome: self.outcome.clone().filter(is_told).or(is_updated.then_some(DeviceJobOutcome::TwinUpdated)),
            stage: self.stage,
            is_awaited: !self.status.is_terminal() && self.awaited.is_some(),
            attempts: self.attempt,
            next_attempt: if self.status == DeviceJobStatus::Pending { self.until } else { None },
            step: self.step + 1,
            version: self.version,
        }
    }
}
