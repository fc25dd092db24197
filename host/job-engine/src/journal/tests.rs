use std::sync::Arc;

use chrono::TimeDelta;
use durable_store::sql::{Connection, params};
use iothub_protocol::address::Address;
use iothub_protocol::job::policy::{FailureClass, JobPolicy};
use iothub_protocol::job::targets::{JobTargets, List, ListPart};
use iothub_protocol::job::{DeviceAttempt, FailureCounts, JobStatistics};
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus, Hold, HoldCause, JobRequest};
use iothub_protocol::method::MethodResponse;
use serde_json::json;

use super::*;
use crate::record::{BegunTarget, Change, Record, SavedJob, SavedTarget, What};
use crate::testing::{at, condition, database, device, job_id, method_job, rows, stored, twin_job};

fn write<T>(connection: &mut Connection, write: impl FnOnce(&sql::Transaction<'_>) -> sql::Result<T>) -> T {
    let tx = connection.transaction().expect("a transaction");
    let value = write(&tx).expect("a write");
    tx.commit().expect("a commit");
    value
}

fn target(device: Address) -> BegunTarget {
    BegunTarget::new(device)
}

/// Two jobs over five devices each; in the first, each device has another end.
fn filled() -> Connection {
    let mut connection = database();
    for request in [method_job("a"), twin_job("b")] {
        let job = request.job_id.clone();
        write(&mut connection, |tx| insert(tx, request, at(1))).expect("a new id");
        let targets = (0..5).map(|number| target(device(number))).collect();
        change(&mut connection, job.as_str(), What::Begun { targets: Arc::new(targets), excluded: 0 });
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

#[test]
fn a_list_that_does_not_come_ends_its_job_and_one_that_is_whole_lets_it_begin() {
    let mut connection = database();
    let address = |text: &str| Address::parse(text).expect("an address");
    let targets = || Some(JobTargets { list: Some(List::Uploaded), ..JobTargets::default() });
    for name in ["late", "whole", "gone"] {
        let request = JobRequest { targets: targets(), ..twin_job(name) };
        write(&mut connection, |tx| insert(tx, request, at(1))).expect("a new id");
    }
    write(&mut connection, |tx| insert(tx, twin_job("other"), at(1))).expect("a new id");
    let part = |devices: &[&str], excluded: &[&str]| {
        let read = |texts: &[&str]| texts.iter().map(|text| address(text)).collect();
        ListPart { devices: read(devices), excluded: read(excluded) }
    };
    let mut extend = |name: &str, part: &ListPart, seconds: i64| {
        write(&mut connection, |tx| extend_list(tx, &job_id(name), part, at(seconds)))
    };
    let open = |listed, repeated| ListState::Open { listed, repeated };
    assert_eq!(extend("whole", &part(&["b", "a"], &["b"]), 5), open(3, 0));
    assert_eq!(extend("whole", &part(&["a", "a/m"], &["b"]), 6), open(4, 2), "said again, it changes nothing");
    assert_eq!(extend("late", &part(&["a"], &[]), 6), open(1, 0));
    assert_eq!(extend("other", &part(&["a"], &[]), 6), ListState::Settled);
    assert_eq!(extend("nothing", &part(&["a"], &[]), 6), ListState::NoJob);

    let is_known = |saved: &[SavedJob], name: &str| saved.iter().any(|job| job.request.job_id == job_id(name));
    let saved = unfinished(&connection).expect("jobs");
    assert!(is_known(&saved, "other") && saved.len() == 1, "none begins without its list");
    let seal = sealed(&connection, &job_id("whole")).expect("a seal");
    assert_eq!(seal.count, 4);
    assert_eq!(write(&mut connection, |tx| seal_list(tx, &job_id("whole"), 3)), None, "it has grown since");
    assert!(write(&mut connection, |tx| seal_list(tx, &job_id("whole"), 4)).is_some());
    assert_eq!(write(&mut connection, |tx| seal_list(tx, &job_id("whole"), 4)), None, "it is whole");
    assert!(write(&mut connection, |tx| cancel_list(tx, &job_id("gone"), at(7))));
    assert!(!write(&mut connection, |tx| cancel_list(tx, &job_id("whole"), at(7))));
    assert_eq!(write(&mut connection, |tx| expire_lists(tx, at(6), at(8), "late")), 0);
    assert_eq!(write(&mut connection, |tx| expire_lists(tx, at(7), at(8), "late")), 1);
    let ended = |name| (stored(&connection, &job_id(name)).status, stored(&connection, &job_id(name)).failure_reason);
    assert_eq!(ended("late"), (JobStatus::Failed, Some("late".to_owned())));
    assert_eq!(ended("gone"), (JobStatus::Cancelled, None));
    assert!(is_known(&unfinished(&connection).expect("jobs"), "whole"));

    let page = |after: Option<&str>, most| {
        let after = after.map(address);
        listed(&connection, &job_id("whole"), after.as_ref(), most).expect("a page")
    };
    assert_eq!((page(None, 2), page(Some("a/m"), 9)), (vec![address("a"), address("a/m")], vec![address("b")]));
    let asked = ["a", "b", "b/m"].map(address);
    assert_eq!(listed_among(&connection, &job_id("whole"), &asked), Ok(vec![false, true, true]));
    change(&mut connection, "whole", What::Begun { targets: Arc::new(vec![target(address("a"))]), excluded: 2 });
    let left: i64 = connection.query_row("SELECT count(*) FROM job_lists", [], |row| row.get(0)).expect("a count");
    assert_eq!((left, stored(&connection, &job_id("whole")).excluded), (0, Some(2)), "a list has served");
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
fn how_far_a_job_with_a_policy_has_come_reads_back() {
    let mut connection = database();
    let request = JobRequest { policy: Some(JobPolicy::default()), ..twin_job("p") };
    write(&mut connection, |tx| insert(tx, request.clone(), at(1))).expect("a new id");
    assert_eq!(unfinished(&connection).expect("jobs")[0].course, None, "it has not begun");
    let target = |number| {
        let group = (number != 3).then(|| format!("b{}", number % 2).into());
        BegunTarget { device: device(number), stage: Some(1 + number as u32 / 2), group, zone: None }
    };
    let targets = (0..5).map(target).collect();
    change(&mut connection, "p", What::Begun { targets: Arc::new(targets), excluded: 0 });
    change(&mut connection, "p", What::Stage { number: 1 });
    for number in 0..4 {
        change(&mut connection, "p", What::Started { device: device(number), attempt: 1 });
    }
    change(&mut connection, "p", What::Awaited { device: device(0) });
    change(&mut connection, "p", What::Awaited { device: device(2) });
    for (number, status) in [(0, DeviceJobStatus::Failed), (3, DeviceJobStatus::Completed)] {
        change(&mut connection, "p", What::Ended { device: device(number), status, outcome: None });
    }
    change(&mut connection, "p", What::Stage { number: 2 });
    change(&mut connection, "p", What::Paused { cause: HoldCause::Rule, reason: "too many".to_owned() });
    let hold = Hold { cause: HoldCause::Rule, reason: "too many".to_owned(), since: at(2) };
    assert_eq!(unfinished(&connection).expect("jobs")[0].hold, Some(hold));
    let shown = stored(&connection, &job_id("p")).to_json()["latch"]["progress"]["paused"].clone();
    assert_eq!(shown, json!({"by": "rule", "reason": "too many", "since": "1970-01-01T00:00:02.000Z"}));
    let held_for = TimeDelta::seconds(7);
    change(&mut connection, "p", What::Resumed { held_for, is_forgiven: true });
    change(&mut connection, "p", What::Resumed { held_for, is_forgiven: false });
    change(&mut connection, "p", What::Aborting { reason: "too many".to_owned() });

    let saved = unfinished(&connection).expect("jobs").remove(0);
    assert_eq!((saved.request, saved.cancelling, saved.aborted), (request, true, Some("too many".to_owned())));
    assert_eq!((saved.hold, saved.held_for), (None, held_for));
    let course = saved.course.expect("it has begun");
    assert_eq!(course.forgiven, Some(at(2)));
    let groups: Vec<_> = course.ended.iter().map(|end| end.group.as_deref()).collect();
    assert_eq!(groups, [Some("b0"), None]);
    let groups: Vec<_> = saved.targets.iter().map(|target| target.group.as_deref()).collect();
    assert_eq!(groups, [Some("b1"), Some("b0"), Some("b0")]);
    let ends: Vec<_> = course.ended.iter().map(|end| (end.stage, end.at, end.failure)).collect();
    let failed = (1, at(2), Some(FailureClass::Fault));
    assert_eq!((course.stage, ends), (2, vec![failed, (2, at(2), None)]));
    assert_eq!(course.reached, [0, 1, 2, 3].map(device));
    let targets: Vec<_> =
        saved.targets.iter().map(|it| (it.device.clone(), it.stage, it.in_doubt, it.awaited)).collect();
    let expected = [(device(1), 1, true, None), (device(2), 2, false, Some(at(2))), (device(4), 3, false, None)];
    assert_eq!(targets, expected);
    let shown: Vec<_> = rows(&connection, &job_id("p")).iter().map(|row| row.to_json()["latch"].clone()).collect();
    let shown: Vec<_> = shown.iter().map(|latch| (latch["stage"].clone(), latch["awaited"] == json!(true))).collect();
    let of = |stage, awaited| (json!(stage), awaited);
    assert_eq!(shown, [of(1, false), of(1, false), of(2, true), of(2, false), of(3, false)]);
    assert_eq!(stored(&connection, &job_id("p")).to_json()["latch"]["progress"], json!({"stage": 2, "stages": 1}));
}

#[test]
fn a_device_that_is_tried_again_reads_back_with_its_last_failure() {
    let mut connection = filled();
    let failure = DeviceJobOutcome::Error { code: "GatewayTimeout".into(), description: "late".into() };
    change(&mut connection, "b", What::Started { device: device(0), attempt: 1 });
    let (until, outcome) = (Some(at(60)), Some(failure.clone()));
    change(&mut connection, "b", What::Waiting { device: device(0), until, outcome, failures: Some(1) });
    let target = unfinished(&connection).expect("jobs")[1].targets[0].clone();
    let expected = SavedTarget {
        device: device(0),
        attempt: 1,
        in_doubt: false,
        failures: 1,
        last: Some(failure.clone()),
        until: Some(at(60)),
        awaited: None,
        stage: 0,
        group: None,
        zone: None,
        started: Some(at(2)),
        late: TimeDelta::zero(),
        step: 0,
        answered: None,
    };
    assert_eq!(target, expected);
    let row = rows(&connection, &job_id("b")).remove(0);
    assert_eq!((row.status, row.next_attempt), (DeviceJobStatus::Pending, Some(at(60))));
    // Cancelled meanwhile, it shows how it failed.
    change(&mut connection, "b", What::PendingEnded { status: DeviceJobStatus::Canceled, outcome: None });
    let row = rows(&connection, &job_id("b")).remove(0);
    assert_eq!((row.status, row.outcome, row.next_attempt), (DeviceJobStatus::Canceled, Some(failure), None));
}

#[test]
fn rows_of_modules_name_them_and_are_found_by_their_device() {
    let mut connection = database();
    write(&mut connection, |tx| insert(tx, twin_job("m"), at(1))).expect("a new id");
    let address = |text: &str| Address::parse(text).expect("an address");
    let targets = ["d", "d/m1", "d/m2", "d1/m1", "d0"].map(|text| target(address(text))).to_vec();
    change(&mut connection, "m", What::Begun { targets: Arc::new(targets), excluded: 0 });
    change(&mut connection, "m", What::Started { device: address("d/m1"), attempt: 1 });
    let found = |text: &str, after: Option<&Position>| {
        let page = device_rows(&connection, &condition(text), 2, after).expect("rows");
        let shown = page.items.iter().map(|row| row.address.to_string()).collect::<Vec<_>>();
        (shown, page.continuation.and_then(|text| Position::parse(&text)))
    };
    let (first, next) = found("deviceId = 'd'", None);
    assert_eq!(first, ["d", "d/m1"]);
    assert_eq!(found("deviceId = 'd'", next.as_ref()), (vec!["d/m2".to_owned()], None), "a page may end at a module");
    assert_eq!(found("deviceId = 'd' AND moduleId = 'm1' AND status = 'running'", None).0, ["d/m1"]);
    assert_eq!(found("moduleId = 'm1'", None).0, ["d/m1", "d1/m1"]);
    let row = rows(&connection, &job_id("m"))[1].to_json();
    assert_eq!((&row["deviceId"], &row["moduleId"]), (&json!("d"), &json!("m1")));
    assert!(rows(&connection, &job_id("m"))[0].to_json().get("moduleId").is_none());
    let plan = "EXPLAIN QUERY PLAN SELECT * FROM device_jobs d WHERE substr(d.device, 1, instr(d.device || '/', '/') - 1) IN ('d')";
    let plan: String = connection.query_row(plan, [], |row| row.get(3)).expect("a plan");
    assert!(plan.contains("device_jobs_of_device"), "{plan}");
}

#[test]
fn a_journal_of_before_policies_is_read() {
    let mut connection = Connection::open_in_memory().expect("a database");
    connection.execute_batch(MIGRATIONS[0]).expect("the first version");
    let row = "INSERT INTO jobs (id, type, request, status, created, start, begun) VALUES (?1, ?2, ?3, ?4, 1, 1, 1)";
    let request = twin_job("old");
    let values = params!["old", request.action.job_type(), request.to_json().to_string(), "running"];
    connection.execute(row, values).expect("a job");
    let row = "INSERT INTO device_jobs (job, device, status, attempt, created, updated) VALUES (1, ?1, ?2, 1, 1, 1)";
    connection.execute(row, params![device(1).to_string(), "running"]).expect("a row");
    MIGRATIONS[1..].iter().for_each(|next| connection.execute_batch(next).expect("the next version"));
    let saved = unfinished(&connection).expect("jobs").remove(0);
    assert_eq!((saved.request, saved.course, saved.aborted), (request, None, None));
    assert_eq!((saved.targets[0].in_doubt, saved.targets[0].awaited, saved.targets[0].stage), (true, None, 0));
    change(&mut connection, "old", What::Finished { status: JobStatus::Completed, reason: None });
    assert_eq!(stored(&connection, &job_id("old")).to_json().get("latch"), None);
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
                found.extend(page.items.iter().map(|row| format!("{}{}", row.job_id, &row.address.to_string()[8..])));
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
fn a_page_of_rows_does_not_go_over_those_before_it() {
    let connection = filled();
    let after = Position::parse("1/door-0002").expect("a position");
    for (text, expected) in [
        ("jobId = 'a' AND status = 'failed'", "SEARCH d USING PRIMARY KEY (job=? AND device>?)"),
        ("status = 'failed'", "SEARCH d USING PRIMARY KEY ((job,device)>(?,?))"),
    ] {
        let (query, values) = read::rows_query(&condition(text), Some(&after));
        let mut explained = connection.prepare(&format!("EXPLAIN QUERY PLAN {query}")).expect(text);
        let plan = explained.query_map(sql::params_from_iter(values), |row| row.get::<_, String>("detail"));
        let plan: Vec<_> = plan.expect(text).map(|step| step.expect("a step")).collect();
        assert_eq!(plan[0], expected, "{text}: {plan:#?}");
    }
    // A place in another job is before or after all of this one's.
    let page = |text: &str, after: &str| {
        let after = Position::parse(after).expect("a position");
        device_rows(&connection, &condition(text), 9, Some(&after)).expect("a page").items.len()
    };
    assert_eq!((page("jobId = 'b'", "1/door-0002"), page("jobId = 'a'", "2/door-0000")), (5, 0));
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
    change(&mut connection, "a", What::Late { device: device(1), attempt: 1, outcome: error() });
    change(&mut connection, "a", What::Finished { status: JobStatus::Completed, reason: None });
    assert!(!write(&mut connection, |tx| prune(tx, at(2))));
    let mut steps = 0;
    while write(&mut connection, |tx| prune(tx, at(2) + TimeDelta::milliseconds(1))) {
        steps += 1;
    }
    // The attempt, the rows, the job.
    assert_eq!(steps, 3);
    let left: i64 = connection.query_row("SELECT count(*) FROM attempts", [], |row| row.get(0)).expect("a count");
    assert_eq!(left, 0);
    assert_eq!(job(&connection, &job_id("a")), Ok(None));
    assert_eq!((rows(&connection, &job_id("a")).len(), rows(&connection, &job_id("b")).len()), (0, 5));
}

/// Of each attempt its number, status, error's code, and whether an answer came late.
fn shown(attempts: &[DeviceAttempt]) -> Vec<(u32, DeviceJobStatus, Option<&str>, bool)> {
    let code = |outcome: &DeviceJobOutcome| match outcome {
        DeviceJobOutcome::Error { code, .. } => Some(code.clone().leak() as &str),
        _ => None,
    };
    let shown = attempts.iter().map(|it| (it.number, it.status, it.outcome.as_ref().and_then(code), it.late.is_some()));
    shown.collect()
}

#[test]
fn every_attempt_is_kept_and_a_late_answer_beside_it() {
    let mut connection = database();
    write(&mut connection, |tx| insert(tx, method_job("j"), at(1))).expect("a new id");
    let targets = (0..4).map(|number| target(device(number))).collect();
    change(&mut connection, "j", What::Begun { targets: Arc::new(targets), excluded: 0 });
    let waiting = |code: &str| {
        let outcome = DeviceJobOutcome::Error { code: code.to_owned(), description: String::new() };
        What::Waiting { device: device(0), until: None, outcome: Some(outcome), failures: None }
    };
    let answer = DeviceJobOutcome::Method(MethodResponse { status: 200, payload: json!("late") });
    for what in [
        What::Started { device: device(0), attempt: 1 },
        waiting("DeviceNotOnline"),
        What::Started { device: device(0), attempt: 2 },
        waiting("GatewayTimeout"),
        What::Late { device: device(0), attempt: 2, outcome: answer.clone() },
        What::Started { device: device(0), attempt: 3 },
        What::Started { device: device(2), attempt: 1 },
        What::Ended { device: device(2), status: DeviceJobStatus::Completed, outcome: Some(answer.clone()) },
    ] {
        change(&mut connection, "j", what);
    }
    let id = job_id("j");
    let of = |connection: &Connection, number| device_attempts(connection, &id, &device(number)).expect("a read");
    let first = of(&connection, 0).expect("a device of the job");
    let failed = |number, code, late| (number, DeviceJobStatus::Failed, Some(code), late);
    let before = [failed(1, "DeviceNotOnline", false), failed(2, "GatewayTimeout", true)];
    assert_eq!(shown(&first), [&before[..], &[(3, DeviceJobStatus::Running, None, false)]].concat());
    assert_eq!((first[0].start, first[0].end, first[2].end), (Some(at(2)), Some(at(2)), None));
    assert_eq!(first[1].late.as_ref().map(|late| &late.outcome), Some(&answer));
    assert_eq!((of(&connection, 1), of(&connection, 9)), (Some(vec![]), None));
    assert_eq!(device_attempts(&connection, &job_id("other"), &device(0)), Ok(None));

    // An end of the device is its last attempt's; what it shows of an earlier one is told of once.
    change(
        &mut connection,
        "j",
        What::Ended { device: device(0), status: DeviceJobStatus::Failed, outcome: Some(error()) },
    );
    assert_eq!(shown(&of(&connection, 0).expect("a device"))[2], failed(3, "DeviceNotOnline", false));
    change(&mut connection, "j", What::Late { device: device(0), attempt: 3, outcome: answer.clone() });
    assert!(of(&connection, 0).expect("a device")[2].late.is_some());
    let row = rows(&connection, &id).remove(0);
    assert_eq!((row.status, row.outcome), (DeviceJobStatus::Failed, Some(error())), "late changes no outcome");

    let by_page = |limit| {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = attempts(&connection, &id, limit, after.as_ref()).expect("a page");
            found.extend(page.items.iter().map(|it| (it.address.to_string(), it.number)));
            match page.continuation {
                None => return found,
                Some(text) => after = Some(Address::parse(&text).expect("a device")),
            }
        }
    };
    let expected = [(0, 1), (0, 2), (0, 3), (2, 1)].map(|(number, attempt)| (device(number).to_string(), attempt));
    for limit in [1, 2, 100] {
        assert_eq!(by_page(limit), expected, "{limit}");
    }
}

#[test]
fn a_device_that_is_looked_for_a_thousand_times_keeps_its_last_attempts() {
    let mut connection = database();
    write(&mut connection, |tx| insert(tx, method_job("j"), at(1))).expect("a new id");
    change(&mut connection, "j", What::Begun { targets: Arc::new(vec![target(device(0))]), excluded: 0 });
    for attempt in 1..=1000 {
        change(&mut connection, "j", What::Started { device: device(0), attempt });
        let waiting = What::Waiting { device: device(0), until: None, outcome: Some(error()), failures: None };
        change(&mut connection, "j", waiting);
    }
    let attempts = device_attempts(&connection, &job_id("j"), &device(0)).expect("a read").expect("the device");
    assert_eq!((attempts.len(), attempts[0].number, attempts[99].number), (100, 901, 1000));
}

#[test]
fn failures_that_were_not_counted_by_class_are_recounted() {
    let mut connection = filled();
    let job = |connection: &Connection| unfinished(connection).expect("jobs").remove(0).statistics.failures;
    connection.execute("UPDATE jobs SET failed = 3", []).expect("an edit");
    let mut expected = FailureCounts::default();
    expected.add(FailureClass::Offline, 3);
    assert_eq!(job(&connection), expected);
    let statistics = JobStatistics { failed_count: 3, failures: expected, ..JobStatistics::default() };
    let record_of = Record { changes: Vec::new(), statistics: vec![(job_id("a"), statistics)] };
    write(&mut connection, |tx| record(tx, &record_of));
    assert_eq!(stored(&connection, &job_id("a")).statistics.map(|it| it.failures), Some(expected));
    let progress = &stored(&connection, &job_id("a")).to_json()["latch"]["progress"];
    assert_eq!(*progress, json!({"failures": {"offline": 3}}));
}

#[test]
fn what_comes_late_for_a_job_that_is_gone_is_no_trouble() {
    let mut connection = database();
    change(&mut connection, "gone", What::Late { device: device(0), attempt: 1, outcome: error() });
    let changes = vec![Change { job: job_id("gone"), at: at(2), what: What::Cancelling }];
    let tx = connection.transaction().expect("a transaction");
    assert!(record(&tx, &Record { changes, statistics: Vec::new() }).is_err());
}

#[test]
fn a_listener_is_told_of_each_event_once_and_of_none_that_is_too_old() {
    let mut connection = database();
    write(&mut connection, |tx| insert(tx, twin_job("before"), at(1))).expect("a new id");
    let told = write(&mut connection, |tx| listener(tx, "w"));
    assert_eq!(told, 1, "what was before it came is not its business");
    write(&mut connection, |tx| insert(tx, twin_job("a"), at(1))).expect("a new id");
    let targets = Arc::new(vec![target(device(1))]);
    change(&mut connection, "a", What::Begun { targets, excluded: 0 });
    change(&mut connection, "a", What::Stage { number: 1 });
    change(&mut connection, "a", What::Started { device: device(1), attempt: 1 });
    change(&mut connection, "a", What::Paused { cause: HoldCause::Rule, reason: "why".into() });
    change(&mut connection, "a", What::Resumed { held_for: TimeDelta::zero(), is_forgiven: false });
    change(&mut connection, "a", What::Stage { number: 2 });
    change(&mut connection, "a", What::Finished { status: JobStatus::Failed, reason: Some("so".into()) });
    let events = |connection: &Connection, mut after: u64, patience: i64| {
        let mut found = Vec::new();
        let next = |after| next_event(connection, after, at(10), TimeDelta::seconds(patience)).expect("a read");
        while let Some(event) = next(after) {
            after = event.number;
            assert!(event.job.request.job_id == job_id("a") && event.job.status == JobStatus::Failed, "as it is now");
            found.push((event.kind, serde_json::Value::Object(event.details)));
        }
        found
    };
    let event = |kind: &str, details: serde_json::Value| (kind.to_owned(), details);
    let expected = [
        event("created", json!({})),
        event("started", json!({})),
        event("paused", json!({"paused": {"by": "rule", "reason": "why"}})),
        event("resumed", json!({})),
        event("stage", json!({"stage": 2})),
        event("ended", json!({"status": "failed", "failureReason": "so"})),
    ];
    assert_eq!(events(&connection, told, 100), expected);
    assert_eq!(events(&connection, told, 8)[0].0, "started", "the first one is too old");
    write(&mut connection, |tx| super::told(tx, "w", told + 4));
    assert_eq!(write(&mut connection, |tx| listener(tx, "w")), told + 4);
    assert_eq!(events(&connection, told + 4, 100), expected[4..]);

    // Numbers do not come again when the events are gone.
    while write(&mut connection, |tx| prune(tx, at(100))) {}
    assert_eq!(events(&connection, told, 100), []);
    assert_eq!(write(&mut connection, |tx| listener(tx, "later")), told + expected.len() as u64);
}

#[test]
fn a_reader_who_knows_the_last_change_misses_none() {
    let mut connection = database();
    let names = |found: Vec<Progress>| found.iter().map(|job| job.job.request.job_id.to_string()).collect::<Vec<_>>();
    for name in ["a", "b", "c"] {
        write(&mut connection, |tx| insert(tx, twin_job(name), at(1))).expect("a new id");
    }
    let last = last_change(&connection).expect("a number");
    assert_eq!(names(changed(&connection, 0, false, 2).expect("jobs")), ["a", "b"], "some at a time");
    assert_eq!(changed(&connection, last, false, 9), Ok(Vec::new()));
    let change = |connection: &mut Connection, name: &str, what: What| {
        let statistics = vec![(job_id(name), JobStatistics::default())];
        let record = Record { changes: vec![Change { job: job_id(name), at: at(2), what }], statistics };
        write(connection, |tx| super::record(tx, &record));
    };
    change(&mut connection, "b", What::Scheduled);
    change(&mut connection, "a", What::Finished { status: JobStatus::Completed, reason: None });
    change(&mut connection, "b", What::Scheduled);
    let found = changed(&connection, last, false, 9).expect("jobs");
    assert_eq!(names(found.clone()), ["a", "b"], "in the order of their last changes, each once");
    assert_eq!(progress(&connection, &job_id("b")).expect("a read").as_ref(), found.last());
    assert_eq!(last_change(&connection), Ok(found[1].change));
    assert_eq!(names(changed(&connection, 0, true, 9).expect("jobs")), ["c", "b"], "one has ended");
    assert_eq!(progress(&connection, &job_id("none")), Ok(None));
}
