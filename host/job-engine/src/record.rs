//! What the engine hands to the journal and gets back from it.

use chrono::{DateTime, Utc};
use iothub_protocol::id::{DeviceId, JobId};
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus, JobRequest, JobStatistics, JobStatus};

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
    /// The job has started, with these devices, all pending.
    Begun {
        targets: Vec<DeviceId>,
    },
    /// The device is to be sent this attempt once that is recorded.
    Started {
        device: DeviceId,
        attempt: u32,
    },
    /// The device is pending again: its attempt came to nothing and another one will follow.
    Waiting {
        device: DeviceId,
    },
    Ended {
        device: DeviceId,
        status: DeviceJobStatus,
        outcome: Option<DeviceJobOutcome>,
    },
    /// Every pending device of the job ended alike.
    PendingEnded {
        status: DeviceJobStatus,
        outcome: Option<DeviceJobOutcome>,
    },
    /// Nothing more is sent for the job; it ends with the last outcome in flight.
    Cancelling,
    Finished {
        status: JobStatus,
        reason: Option<String>,
    },
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
    pub statistics: JobStatistics,
    /// The devices that have not ended.
    pub targets: Vec<SavedTarget>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SavedTarget {
    pub device: DeviceId,
    /// The number of the last attempt, 0 if there was none.
    pub attempt: u32,
    /// The attempt was recorded and may have been sent; its outcome is not known.
    pub in_doubt: bool,
}
