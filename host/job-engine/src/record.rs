//! What the engine hands to the journal and gets back from it.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::{EndThen, FailureClass};
use iothub_protocol::job::recurrence::PassedOver;
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus, Hold, HoldCause, JobRequest, JobStatistics, JobStatus};
use iothub_protocol::method::MethodResponse;

use crate::audit::Note;

/// Changes to record in one transaction, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub changes: Vec<Change>,
    /// Of each job in `changes`, after all of them.
    pub statistics: Vec<(JobId, JobStatistics)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub job: JobId,
    pub at: DateTime<Utc>,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// The job waits for its start time.
    Scheduled,
    /// The job has started, with these devices, all pending, and with a policy the stage of each, counted from 1.
    Begun {
        /// There may be very many, and whoever begins them has the same list.
        targets: Arc<Vec<BegunTarget>>,
        /// How many more there would be without exclusions.
        excluded: u64,
    },
    /// These have come to a job that runs, all pending.
    Joined {
        targets: Vec<BegunTarget>,
    },
    /// A stage has begun, counted from 1.
    Stage {
        number: u32,
    },
    /// The device is to be sent this attempt once that is recorded.
    Started {
        device: Address,
        attempt: u32,
    },
    /// The device is pending again: its attempt came to nothing and another one will follow.
    Waiting {
        device: Address,
        /// Not before that, unless the device connects; at once if absent.
        until: Option<DateTime<Utc>>,
        /// What came of the attempt, if that is not recorded yet.
        outcome: Option<DeviceJobOutcome>,
        /// How often the device has failed by now, if that was a failure: one that was not connected is waited for.
        failures: Option<u32>,
    },
    /// The device answered an attempt that was over. It changes nothing but the ledger.
    Late {
        device: Address,
        attempt: u32,
        outcome: DeviceJobOutcome,
    },
    /// Somebody asked for what is recorded with this.
    Audited(Box<Note>),
    /// The device has come through a step, and has another before it, counted from 0: the job's own action.
    Stepped {
        device: Address,
        step: u32,
        /// Of the step that is done.
        outcome: DeviceJobOutcome,
        /// Its twin is waited for before that step.
        awaits: bool,
    },
    /// The device's twin is updated, and its report is waited for.
    Awaited {
        device: Address,
    },
    Ended {
        device: Address,
        status: DeviceJobStatus,
        outcome: Option<DeviceJobOutcome>,
    },
    /// Every pending device of the job ended alike.
    PendingEnded {
        status: DeviceJobStatus,
        outcome: Option<DeviceJobOutcome>,
    },
    /// The job does not go on, until [`What::Resumed`].
    Paused {
        cause: HoldCause,
        reason: String,
    },
    Resumed {
        /// For how long it has been paused by now, all in all.
        held_for: TimeDelta,
        /// The outcomes so far break no rule any more.
        is_forgiven: bool,
    },
    /// Nothing more is sent for the job; it ends with the last outcome in flight.
    Cancelling,
    /// The end has come that the job's policy gives it. Unless it only stops, nothing more is sent.
    Ending {
        then: EndThen,
    },
    /// Every device of the job that has had no attempt is left out.
    UnbegunEnded {
        outcome: DeviceJobOutcome,
    },
    /// The same, because the job's policy says so; it will end as failed.
    Aborting {
        reason: String,
    },
    /// Occurrences of a series were due.
    Recurred {
        /// Those that become jobs.
        jobs: Vec<JobRequest>,
        /// How many it has begun by now.
        count: u32,
        /// The next one, unless the series is over.
        next: Option<DateTime<Utc>>,
        /// The last one that becomes no job.
        passed_over: Option<(DateTime<Utc>, PassedOver)>,
    },
    Finished {
        status: JobStatus,
        reason: Option<String>,
    },
}

/// A device at its job's beginning, or when it joins.
#[derive(Debug, Clone, PartialEq)]
pub struct BegunTarget {
    pub device: Address,
    /// Counted from 1; `None` in a job without a policy.
    pub stage: Option<u32>,
    pub group: Option<Arc<str>>,
    /// What it names as its time zone, in a job whose windows go by that.
    pub zone: Option<Arc<str>>,
}

impl BegunTarget {
    /// One of a job without a policy.
    pub fn new(device: Address) -> BegunTarget {
        BegunTarget { device, stage: None, group: None, zone: None }
    }
}

/// An unfinished job as the journal has it.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedJob {
    pub request: JobRequest,
    pub status: JobStatus,
    /// When it is to begin.
    pub start: DateTime<Utc>,
    /// When it began, once its targets are known.
    pub begun: Option<DateTime<Utc>>,
    pub cancelling: bool,
    /// What is being done since the end has come that its policy gives it.
    pub ending: Option<EndThen>,
    pub hold: Option<Hold>,
    /// For how long it was paused before.
    pub held_for: TimeDelta,
    /// Why its policy stops it.
    pub aborted: Option<String>,
    pub statistics: JobStatistics,
    /// The devices that have not ended.
    pub targets: Vec<SavedTarget>,
    /// What there is to know of a job with a policy that has begun.
    pub course: Option<SavedCourse>,
    /// Of a series that is not over.
    pub series: Option<SavedSeries>,
}

/// How far a series has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedSeries {
    /// Its next occurrence.
    pub next: DateTime<Utc>,
    /// How many jobs it has begun.
    pub jobs: u32,
}

impl SavedJob {
    /// A new one.
    pub fn new(request: JobRequest, start: DateTime<Utc>) -> SavedJob {
        SavedJob {
            request,
            status: JobStatus::Queued,
            start,
            begun: None,
            cancelling: false,
            ending: None,
            hold: None,
            held_for: TimeDelta::zero(),
            aborted: None,
            statistics: JobStatistics::default(),
            targets: Vec::new(),
            course: None,
            series: None,
        }
    }
}

/// How far a job with a policy has come.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedCourse {
    /// The stage that is under way, counted from 1.
    pub stage: u32,
    /// Its devices that have succeeded or failed, in the order of that.
    pub ended: Vec<SavedEnd>,
    /// The devices to which anything was sent.
    pub reached: Vec<Address>,
    /// What ended until then breaks no rule any more.
    pub forgiven: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SavedEnd {
    /// Counted from 1.
    pub stage: u32,
    pub at: DateTime<Utc>,
    /// `None` for a success.
    pub failure: Option<FailureClass>,
    pub group: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SavedTarget {
    pub device: Address,
    /// The number of the last attempt, 0 if there was none.
    pub attempt: u32,
    /// The attempt was recorded and may have been sent; its outcome is not known.
    pub in_doubt: bool,
    /// How often it has failed so that it is tried again, and how the last time.
    pub failures: u32,
    pub last: Option<DeviceJobOutcome>,
    /// When it is to be tried again.
    pub until: Option<DateTime<Utc>>,
    /// Since when its report is waited for.
    pub awaited: Option<DateTime<Utc>>,
    /// Counted from 1; 0 in a job without a policy.
    pub stage: u32,
    pub group: Option<Arc<str>>,
    /// What it names as its time zone.
    pub zone: Option<Arc<str>>,
    /// When its first attempt began.
    pub started: Option<DateTime<Utc>>,
    /// How long after the job's beginning it has joined.
    pub late: TimeDelta,
    /// The step that it is to do, counted from 0: the job's own action.
    pub step: u32,
    /// What it answered to the last method that is done with.
    pub answered: Option<MethodResponse>,
}
