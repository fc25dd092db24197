//! What the tests share.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use durable_store::sql::Connection;
use iothub_protocol::address::Address;
use iothub_protocol::id::JobId;
use iothub_protocol::job::label::TagPath;
use iothub_protocol::job::policy::FailureClass;
use iothub_protocol::job::{
    DeviceJob, DeviceJobStatus, FailureCounts, JobAction, JobRequest, JobResponse, JobStatistics, TwinUpdate,
};
use iothub_protocol::method::DirectMethod;
use iothub_protocol::query::{Condition, Query};
use serde_json::{Value, json};

use crate::fleet::{Selected, Selection};
use crate::journal;

pub(crate) fn device(number: usize) -> Address {
    Address::parse(&format!("door-{number:04}")).expect("an address")
}

pub(crate) fn job_id(name: &str) -> JobId {
    JobId::parse(name).expect("a job id")
}

pub(crate) fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
}

/// Of so many devices those that match. A device is in the building of its number's last digit.
pub(crate) fn selected(fleet: usize, selection: &Selection) -> Vec<Selected> {
    let twin = |number| {
        let address = device(number);
        let twin = json!({"deviceId": address.to_string(), "tags": {"building": format!("b{}", number % 10)}});
        (address, twin)
    };
    let label = |label: &TagPath, twin: &Value| label.read(twin).map(Into::into);
    let among = selection.among.as_ref().map(|among| among.iter().collect::<HashSet<_>>());
    let is_among = |address: &Address| among.as_ref().is_none_or(|among| among.contains(address));
    let matching = (0..fleet).map(twin);
    let matching = matching.filter(|(address, twin)| is_among(address) && selection.condition.matches(twin));
    let selected = matching.map(|(address, twin)| Selected {
        address,
        labels: selection.labels.iter().map(|path| label(path, &twin)).collect(),
    });
    selected.collect()
}

/// A twin job over all devices, to begin at once, with a window of 100 seconds.
pub(crate) fn twin_job(name: &str) -> JobRequest {
    JobRequest {
        job_id: job_id(name),
        action: JobAction::UpdateTwin(TwinUpdate::default()),
        query_condition: "*".to_owned(),
        start_time: None,
        max_execution_time_in_seconds: 100,
        policy: None,
        targets: None,
        then: Vec::new(),
    }
}

pub(crate) fn method_job(name: &str) -> JobRequest {
    let method = DirectMethod {
        method_name: "lockDoor".parse().expect("a method name"),
        payload: Value::Null,
        response_timeout_in_seconds: Some(15),
        connect_timeout_in_seconds: None,
    };
    JobRequest { action: JobAction::Method(method), ..twin_job(name) }
}

pub(crate) fn database() -> Connection {
    let connection = Connection::open_in_memory().expect("a database");
    for migration in journal::MIGRATIONS {
        connection.execute_batch(migration).expect("a migration");
    }
    connection
}

pub(crate) fn stored(connection: &Connection, job: &JobId) -> JobResponse {
    journal::job(connection, job).expect("a read").expect("the job")
}

pub(crate) fn condition(text: &str) -> Condition {
    Query::parse(&format!("SELECT * FROM devices.jobs WHERE {text}")).expect(text).condition().clone()
}

pub(crate) fn rows(connection: &Connection, job: &JobId) -> Vec<DeviceJob> {
    let condition = condition(&format!("jobId = '{job}'"));
    journal::device_rows(connection, &condition, usize::MAX, None).expect("rows").items
}

/// A job's statistics, counted from its rows.
pub(crate) fn recount(rows: &[DeviceJob]) -> JobStatistics {
    let count = |status| rows.iter().filter(|row| row.status == status).count() as u64;
    let mut failures = FailureCounts::default();
    for row in rows.iter().filter(|row| row.status == DeviceJobStatus::Failed) {
        failures.add(row.outcome.as_ref().map_or(FailureClass::Fault, FailureClass::of_outcome), 1);
    }
    JobStatistics {
        device_count: rows.len() as u64,
        failed_count: count(DeviceJobStatus::Failed),
        succeeded_count: count(DeviceJobStatus::Completed),
        running_count: count(DeviceJobStatus::Running),
        pending_count: count(DeviceJobStatus::Pending),
        failures,
    }
}
