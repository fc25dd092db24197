//! One device's part of an unfinished job.

use chrono::{DateTime, TimeDelta, Utc};
use iothub_protocol::job::policy::FailureClass;
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus};
use iothub_protocol::method::MethodResponse;

use super::watch::Group;
use super::windows::Place;

#[derive(Debug)]
pub(super) struct Target {
    /// The number of the last attempt, 0 before the first.
    pub(super) attempt: u32,
    /// How often it was found offline and waited for.
    pub(super) offline: u32,
    /// How often it has failed so that it is tried again, and how the last time.
    pub(super) failures: u32,
    pub(super) last: Option<Box<DeviceJobOutcome>>,
    /// Later is when it connects, or at that time.
    pub(super) awaits_connection: bool,
    /// It has connected since its attempt began, which may have been too late for that.
    pub(super) has_arrived: bool,
    /// Counted from 1; 0 without a policy.
    pub(super) stage: u32,
    pub(super) group: Group,
    /// Of its windows.
    pub(super) zone: Place,
    /// Its place in the job's expiries.
    pub(super) expires: Option<DateTime<Utc>>,
    /// How long after its job's beginning it has joined, or its window has opened first since.
    pub(super) late: TimeDelta,
    /// The step that it does, counted from 0: the job's own action.
    pub(super) step: u32,
    /// What it answered to the last method that is done with.
    pub(super) answered: Option<Box<MethodResponse>>,
    pub(super) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// In the job's `ready` queue.
    Ready,
    /// Another job's call to the device is out.
    Blocked,
    /// Its attempt is being recorded.
    Starting,
    Sent,
    /// Its twin is updated, and its report is waited for.
    Awaited,
    /// To be tried again at that time.
    Later(DateTime<Utc>),
}

/// How a device's part of a job is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Succeeded,
    Failed(FailureClass),
    /// Neither: cancelled or skipped.
    LeftOut,
}

impl End {
    pub(super) fn status(self) -> DeviceJobStatus {
        match self {
            End::Succeeded => DeviceJobStatus::Completed,
            End::Failed(_) => DeviceJobStatus::Failed,
            End::LeftOut => DeviceJobStatus::Canceled,
        }
    }
}

/// What a device without an outcome waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    Start,
    Connection,
    Answer,
    Report,
    /// The condition before its next step.
    Step,
}

impl Target {
    pub(super) fn new(attempt: u32, stage: u32, group: Group, state: State) -> Target {
        Target {
            attempt,
            offline: 0,
            failures: 0,
            last: None,
            awaits_connection: false,
            has_arrived: false,
            stage,
            group,
            zone: 0,
            expires: None,
            late: TimeDelta::zero(),
            step: 0,
            answered: None,
            state,
        }
    }

    /// Until when it is waited for while it is offline, where those of the job's beginning are until `end`.
    pub(super) fn offline_until(&self, end: DateTime<Utc>) -> DateTime<Utc> {
        // While the job is paused, that is the end of all time.
        end.checked_add_signed(self.late).unwrap_or(end)
    }

    pub(super) fn begin_attempt(&mut self) {
        self.attempt += 1;
        self.state = State::Starting;
        self.has_arrived = false;
    }

    /// It has done what it was sent: no failure of that, and no wait for it, is told of what follows.
    pub(super) fn has_come_through(&mut self) {
        (self.last, self.awaits_connection, self.offline) = (None, false, 0);
    }

    /// What it comes to if nothing comes any more.
    pub(super) fn lacking(&self) -> DeviceJobOutcome {
        match &self.last {
            Some(last) if !matches!(self.state, State::Starting | State::Sent | State::Awaited) => (**last).clone(),
            _ => self.lack().outcome(),
        }
    }

    fn lack(&self) -> Lack {
        match self.state {
            State::Awaited if self.step > 0 => Lack::Step,
            State::Awaited => Lack::Report,
            State::Sent => Lack::Answer,
            _ if self.offline > 0 || self.awaits_connection => Lack::Connection,
            State::Starting if self.attempt == 1 => Lack::Start,
            _ if self.attempt == 0 => Lack::Start,
            // An attempt before a restart was sent, and its answer was lost.
            _ => Lack::Answer,
        }
    }
}
