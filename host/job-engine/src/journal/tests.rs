use chrono::TimeDelta;
use durable_store::sql::Connection;
use iothub_protocol::id::DeviceId;
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus};
use iothub_protocol::method::MethodResponse;
use serde_json::json;

use super::*;
use crate::record::{Change, Record, What};
use crate::testing::{at, condition, database, device, job_id, method_job, rows, stored, twin_job};

fn write<T>(connection: &mut Connection, write: impl FnOnce(&sql::Transaction<'_>) -> sql::Result<T>) -> T {
    let tx = connection.transaction().expect("a transaction");
    let value = write(&tx).expect("a write");
    tx.commit().expect("a commit");
    value
}

/// Two jobs over five devices each; in the first, each device has another end.
fn filled() -> Connection {
    let mut connection = database();
    for request in [method_job("a"), twin_job("b")] {
        let job = request.job_id.clone();
        write(&mut connection, |tx| insert(tx, request, at(1))).expect("a new id");
        let targets: Vec<DeviceId> = (0..5).map(device).collect();
        change(&mut connection, job.as_str(), What::Begun { targets });
    }
    let outcomes = [
        (
            0,
            DeviceJobStatus::Completed,
            Some(DeviceJobOutcome::Method(MethodResponse { status: 200, payload: json!("ok") })),
        ),
        (1, DeviceJobStatus::Failed, Some(error())),
        (2, DeviceJobStatus::Canceled, None),
    ];
    for (number, status, outcome) in outcomes {
        change(&mut connection, "a", What::Started { device: device(number), attempt: 1 });
        change(&mut connection, "a", What::Ended { device: device(number), status, outcome });
    }
    change(&mut connection, "a", What::PendingEnded { status: DeviceJobStatus::Failed, outcome: Some(error()) });
    connection
}

fn error() -> DeviceJobOutcome {
    DeviceJobOutcome::Error { code: "DeviceNotOnline".into(), description: "gone".into() }
}

fn change(connection: &mut Connection, job: &str, what: What) {
    let changes = vec![Change { job: job_id(job), at: at(2), what }];
    write(connection, |tx| record(tx, &Record { changes, statistics: Vec::new() }));
}

#[test]
fn an_id_is_taken_once() {
    let mut connection = filled();
    assert_eq!(write(&mut connection, |tx| insert(tx, twin_job("a"), at(9))), None);
    assert_eq!(stored(&connection, &job_id("a")).request, method_job("a"));
    assert_eq!(job(&connection, &job_id("nothing")), Ok(None));
}

#[test]
fn outcomes_read_back_as_written() {
    let mut connection = filled();
    let found: Vec<_> = rows(&connection, &job_id("a")).into_iter().map(|row| (row.status, row.outcome)).collect();
    assert_eq!(found[0].1, Some(DeviceJobOutcome::Method(MethodResponse { status: 200, payload: json!("ok") })));
    assert_eq!(found[1], (DeviceJobStatus::Failed, Some(error())));
    assert_eq!(found[2], (DeviceJobStatus::Canceled, None));
    assert_eq!(found[4], (DeviceJobStatus::Failed, Some(error())));
    let (status, outcome) = (DeviceJobStatus::Completed, Some(DeviceJobOutcome::TwinUpdated));
    change(&mut connection, "b", What::Ended { device: device(3), status, outcome: outcome.clone() });
    assert_eq!(rows(&connection, &job_id("b"))[3].outcome, outcome);
    assert_eq!(rows(&connection, &job_id("b"))[4].outcome, None);
}

#[test]
fn device_rows_come_in_pages_by_any_condition() {
    let connection = filled();
    for (text, expected) in [
        ("jobId = 'a'", vec!["a0", "a1", "a2", "a3", "a4"]),
        ("devices.jobs.status = 'failed'", vec!["a1", "a3", "a4"]),
        ("deviceId IN ['door-0004', 'door-0001', 'nobody']", vec!["a1", "a4", "b1", "b4"]),
        ("jobType = 'scheduleUpdateTwin' AND deviceId = 'door-0002'", vec!["b2"]),
        ("outcome.deviceMethodResponse.status = 200 OR error.code = 'DeviceNotOnline'", vec!["a0", "a1", "a3", "a4"]),
        ("jobId = 'nothing'", vec![]),
    ] {
        for limit in [1, 2, 4, 5, 100] {
            let mut found = Vec::new();
            let mut after = None;
            loop {
                let page = device_rows(&connection, &condition(text), limit, after.as_ref()).expect(text);
                assert!(page.items.len() == limit || page.continuation.is_none(), "{text}");
                found.extend(page.items.iter().map(|row| format!("{}{}", row.job_id, &row.device_id.as_str()[8..])));
                match page.continuation {
                    None => break,
                    Some(text) => after = Some(Position::parse(&text).expect("a position")),
                }
            }
            assert_eq!(found, expected, "{text} by {limit}");
        }
    }
    assert_eq!(Position::parse("x"), None);
}

#[test]
fn jobs_are_listed_newest_first() {
    let mut connection = filled();
    write(&mut connection, |tx| insert(tx, twin_job("c"), at(3)));
    let names = |filter: &JobFilter, limit, after: Option<&str>| {
        let page = jobs(&connection, filter, limit, after).expect("a page");
        let names: Vec<_> = page.items.iter().map(|job| job.request.job_id.to_string()).collect();
        (names.concat(), page.continuation)
    };
    let (first, after) = names(&JobFilter::default(), 2, None);
    assert_eq!((first.as_str(), names(&JobFilter::default(), 2, after.as_deref())), ("cb", ("a".into(), None)));
    let twins = JobFilter { job_type: Some("scheduleUpdateTwin".into()), status: None };
    assert_eq!(names(&twins, 9, None), ("cb".into(), None));
    let running = JobFilter { status: Some(JobStatus::Running), ..twins };
    assert_eq!(names(&running, 9, None), ("b".into(), None));
}

#[test]
fn old_jobs_go_with_their_rows() {
    let mut connection = filled();
    change(&mut connection, "a", What::Finished { status: JobStatus::Completed, reason: None });
    assert!(!write(&mut connection, |tx| prune(tx, at(2))));
    let mut steps = 0;
    while write(&mut connection, |tx| prune(tx, at(2) + TimeDelta::milliseconds(1))) {
        steps += 1;
    }
    assert_eq!(steps, 2);
    assert_eq!(job(&connection, &job_id("a")), Ok(None));
    assert_eq!((rows(&connection, &job_id("a")).len(), rows(&connection, &job_id("b")).len()), (0, 5));
}
