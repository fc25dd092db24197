//! What came of each time that a device of a job was asked. Azure shows only the last.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use super::policy::FailureClass;
use super::{DeviceJobOutcome, DeviceJobStatus};
use crate::address::Address;
use crate::id::JobId;
use crate::time;

/// Which attempt of which job a call to a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptId {
    pub job: JobId,
    /// Counted from 1.
    pub number: u32,
}

/// One attempt at a device or module of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceAttempt {
    pub address: Address,
    pub job_id: JobId,
    /// Counted from 1.
    pub number: u32,
    /// The step that it was for, counted from 1.
    pub step: u32,
    /// Running, completed, failed or canceled.
    pub status: DeviceJobStatus,
    /// When it was recorded, just before it was sent.
    pub start: Option<DateTime<Utc>>,
    pub end: Option<DateTime<Utc>>,
    pub outcome: Option<DeviceJobOutcome>,
    /// What the device answered when the attempt was over. It changes no outcome.
    pub late: Option<LateAnswer>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LateAnswer {
    pub at: DateTime<Utc>,
    pub outcome: DeviceJobOutcome,
}

impl DeviceAttempt {
    pub fn to_json(&self) -> Value {
        let mut row = Map::new();
        row.insert("deviceId".into(), json!(self.address.device()));
        if let Some(module) = self.address.module() {
            row.insert("moduleId".into(), json!(module));
        }
        row.insert("jobId".into(), json!(self.job_id));
        row.insert("attempt".into(), json!(self.number));
        if self.step > 1 {
            row.insert("step".into(), json!(self.step));
        }
        row.insert("status".into(), json!(self.status.name()));
        for (name, at) in [("startTimeUtc", self.start), ("endTimeUtc", self.end)] {
            if let Some(at) = at {
                row.insert(name.into(), json!(time::format(at)));
            }
        }
        if let Some(outcome) = &self.outcome {
            outcome.write(&mut row);
            if self.status == DeviceJobStatus::Failed {
                row.insert("failure".into(), json!(FailureClass::of_outcome(outcome)));
            }
        }
        if let Some(late) = &self.late {
            let mut shown = Map::new();
            shown.insert("timeUtc".into(), json!(time::format(late.at)));
            late.outcome.write(&mut shown);
            row.insert("late".into(), Value::Object(shown));
        }
        Value::Object(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::MethodResponse;

    #[test]
    fn an_attempt_shows_what_came_of_it_and_what_came_late() {
        let at = DateTime::UNIX_EPOCH;
        let mut attempt = DeviceAttempt {
            address: Address::parse("d1/m").expect("an address"),
            job_id: JobId::parse("j").expect("an id"),
            number: 2,
            step: 1,
            status: DeviceJobStatus::Failed,
            start: Some(at),
            end: Some(at),
            outcome: Some(DeviceJobOutcome::Error { code: "GatewayTimeout".into(), description: "late".into() }),
            late: Some(LateAnswer {
                at,
                outcome: DeviceJobOutcome::Method(MethodResponse { status: 200, payload: json!("done") }),
            }),
        };
        let epoch = time::format(at);
        let answer = json!({"deviceMethodResponse": {"status": 200, "payload": "done"}});
        assert_eq!(
            attempt.to_json(),
            json!({"deviceId": "d1", "moduleId": "m", "jobId": "j", "attempt": 2, "status": "failed",
                "startTimeUtc": epoch, "endTimeUtc": epoch, "failure": "timeout",
                "error": {"code": "GatewayTimeout", "description": "late"},
                "late": {"timeUtc": epoch, "outcome": answer}})
        );
        (attempt.end, attempt.outcome, attempt.late) = (None, None, None);
        attempt.status = DeviceJobStatus::Running;
        assert_eq!(attempt.to_json()["status"], "running");
        assert!(attempt.to_json().get("outcome").is_none() && attempt.to_json().get("endTimeUtc").is_none());
    }
}
