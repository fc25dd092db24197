mod ends;
mod gathering;
mod hold;
mod ledger;
mod model;
mod policy;
mod retries;
mod series;
mod steps;
mod targets;
mod turns;
mod windows;

use std::collections::BTreeMap;

use durable_store::sql::Connection;
use iothub_protocol::job::{DeviceJob, JobRequest, JobResponse};
use iothub_protocol::method::MethodResponse;
use serde_json::json;

use super::*;
use crate::journal;
use crate::testing::{at, database, device, job_id, method_job, recount, rows, selected, stored, twin_job};

/// An engine, its journal and a fleet that answers when the test says so.
struct World {
    engine: Engine,
    journal: Connection,
    now: i64,
    limits: Limits,
    fleet: usize,
    /// Selections that are out.
    selections: Vec<(JobId, Selection)>,
    /// Looks for devices that have come, that are out.
    gatherings: Vec<(JobId, Selection)>,
    /// The types of all actions that were sent.
    sent: Vec<&'static str>,
    matches: Vec<(JobId, u32, Condition, Vec<Address>)>,
    /// Calls that are out.
    calls: Vec<(JobId, Address, u32)>,
    /// Looks that are out.
    looks: Vec<(JobId, Vec<Address>)>,
    /// Pins that are being taken back.
    unpins: Vec<(JobId, Address)>,
    /// The statuses that devices report; one that is not here has reported nothing.
    reported: BTreeMap<Address, &'static str>,
}

impl World {
    fn new(fleet: usize, limits: Limits) -> World {
        let engine = Engine::new(limits, at(0), Vec::new());
        World {
            engine,
            journal: database(),
            now: 0,
            limits,
            fleet,
            selections: Vec::new(),
            gatherings: Vec::new(),
            sent: Vec::new(),
            matches: Vec::new(),
            calls: Vec::new(),
            looks: Vec::new(),
            unpins: Vec::new(),
            reported: BTreeMap::new(),
        }
    }

    fn create(&mut self, request: JobRequest) -> JobId {
        let id = request.job_id.clone();
        let tx = self.journal.transaction().expect("a transaction");
        let job = journal::insert(&tx, request, at(self.now)).expect("an insert").expect("a new id");
        tx.commit().expect("a commit");
        self.engine.handle(at(self.now), Input::Created(Box::new(job)));
        id
    }

    /// Carry out what the engine wants, without recording.
    fn pump(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Select { job, selection, .. } => self.selections.push((job, selection)),
                Output::Gather { job, selection, .. } => self.gatherings.push((job, selection)),
                Output::Look { job, plugin, devices } => {
                    assert!(plugin == "lock-door" && !devices.is_empty());
                    self.looks.push((job, devices));
                }
                Output::Match { job, step, condition, devices } => self.matches.push((job, step, condition, devices)),
                Output::Unpin { job, device, .. } => self.unpins.push((job, device)),
                Output::Send { job, device, attempt, action } => {
                    self.sent.push(action.job_type());
                    assert!(self.calls.iter().all(|(_, other, _)| *other != device), "{device} has a call already");
                    let row = rows(&self.journal, &job).into_iter().find(|row| row.address == device);
                    let status = row.map(|row| row.status);
                    assert_eq!(status, Some(DeviceJobStatus::Running), "{device} is sent to before that is recorded");
                    self.calls.push((job, device, attempt));
                }
            }
        }
    }

    fn select(&mut self) {
        for (job, selection) in std::mem::take(&mut self.selections) {
            let result = Ok(selected(self.fleet, &selection).into());
            self.engine.handle(at(self.now), Input::Selected { job, result });
        }
    }

    /// Answer the looks that are out.
    fn see(&mut self) {
        for (job, devices) in std::mem::take(&mut self.looks) {
            let found = devices.iter().map(|device| (device.clone(), policy::state(self.reported.get(device))));
            let result = Ok(found.collect());
            self.engine.handle(at(self.now), Input::Seen { job, devices, result });
        }
    }

    fn commit(&mut self) {
        let Some(record) = self.engine.take_record() else { return };
        let tx = self.journal.transaction().expect("a transaction");
        journal::record(&tx, &record).expect("a record");
        tx.commit().expect("a commit");
        for (id, statistics) in &record.statistics {
            assert_eq!(*statistics, recount(&rows(&self.journal, id)), "{id}");
        }
        self.engine.handle(at(self.now), Input::Recorded(Arc::new(record)));
    }

    fn settle(&mut self) {
        for _ in 0..10 {
            self.pump();
            self.select();
            self.commit();
        }
        assert!(
            self.engine.poll().is_none() && self.engine.take_record().is_none(),
            "the engine does not come to rest"
        );
    }

    fn pass(&mut self, seconds: i64) {
        self.now += seconds;
        self.engine.handle(at(self.now), Input::Tick);
        self.settle();
    }

    fn answer(&mut self, name: &str, number: usize, result: Result<DeviceJobOutcome, HubError>) {
        let (id, target) = (job_id(name), device(number));
        let place = self.calls.iter().position(|(job, device, _)| *job == id && *device == target).expect("a call");
        let (job, device, attempt) = self.calls.remove(place);
        self.engine.handle(at(self.now), Input::Outcome { job, device, attempt, result });
        self.settle();
    }

    fn cancel(&mut self, name: &str) -> Obedience {
        let cancelled = self.engine.command(at(self.now), &job_id(name), Command::Cancel);
        self.settle();
        cancelled
    }

    /// As `kill -9` does: what was not recorded, and every call, is lost.
    fn restart(&mut self) {
        self.calls.clear();
        self.selections.clear();
        self.gatherings.clear();
        self.looks.clear();
        self.matches.clear();
        self.unpins.clear();
        let saved = journal::unfinished(&self.journal).expect("the jobs");
        self.engine = Engine::new(self.limits, at(self.now), saved);
    }

    fn job(&self, name: &str) -> JobResponse {
        stored(&self.journal, &job_id(name))
    }

    fn row(&self, name: &str, number: usize) -> DeviceJob {
        rows(&self.journal, &job_id(name)).into_iter().find(|row| row.address == device(number)).expect("a row")
    }

    #[track_caller]
    fn is(&self, name: &str, status: JobStatus, succeeded: u64, failed: u64) {
        let job = self.job(name);
        let counts = job.statistics.unwrap_or_default();
        assert_eq!((job.status, counts.succeeded_count, counts.failed_count), (status, succeeded, failed), "{name}");
    }

    #[track_caller]
    fn failed_with(&self, name: &str, number: usize, expected: ErrorCode) {
        match self.row(name, number).outcome {
            Some(DeviceJobOutcome::Error { code, .. }) => assert_eq!(code, expected.name()),
            other => panic!("{other:?}"),
        }
    }
}

const UPDATED: Result<DeviceJobOutcome, HubError> = Ok(DeviceJobOutcome::TwinUpdated);

fn offline() -> Result<DeviceJobOutcome, HubError> {
    Err(HubError::new(ErrorCode::DeviceNotOnline, "Timed out waiting for device to connect."))
}

fn limits(in_flight_per_job: usize, concurrent_jobs: usize) -> Limits {
    Limits { in_flight_per_job, concurrent_jobs, ..Limits::default() }
}

#[test]
fn any_answer_of_a_device_is_a_success_and_an_error_is_not() {
    let mut world = World::new(3, Limits::default());
    world.create(method_job("j"));
    world.is("j", JobStatus::Queued, 0, 0);
    world.settle();
    world.is("j", JobStatus::Running, 0, 0);
    let answer = DeviceJobOutcome::Method(MethodResponse { status: 500, payload: json!({"stuck": true}) });
    world.answer("j", 0, Ok(answer.clone()));
    world.answer("j", 1, offline());
    assert_eq!(world.row("j", 0).outcome, Some(answer));
    world.failed_with("j", 1, ErrorCode::DeviceNotOnline);
    world.answer("j", 2, Err(HubError::new(ErrorCode::GatewayTimeout, "late")));
    world.is("j", JobStatus::Completed, 1, 2);
    assert_eq!(world.engine.deadline(), None);
    assert_eq!(world.cancel("j"), Obedience::Unknown);
}

#[test]
fn a_job_waits_for_its_time_over_a_restart() {
    let mut world = World::new(1, Limits::default());
    world.create(JobRequest { start_time: Some(at(50)), ..twin_job("j") });
    world.settle();
    world.is("j", JobStatus::Scheduled, 0, 0);
    world.restart();
    assert_eq!(world.engine.deadline(), Some(at(50)));
    world.pass(49);
    world.is("j", JobStatus::Scheduled, 0, 0);
    world.pass(1);
    world.is("j", JobStatus::Running, 0, 0);
    assert_eq!(world.job("j").start_time, at(50));
}

#[test]
fn a_window_ends_with_a_named_failure_for_each_device() {
    let mut world = World::new(3, limits(2, 1));
    world.create(twin_job("j"));
    world.settle();
    world.answer("j", 0, UPDATED);
    // Now 1 and 2 are out. A job created last gets none of their time.
    world.create(twin_job("k"));
    world.pass(99);
    world.is("j", JobStatus::Running, 1, 0);
    world.pass(1);
    world.is("j", JobStatus::Completed, 1, 2);
    world.failed_with("j", 1, ErrorCode::GatewayTimeout);
    // Its calls are out all the same, so the next job can have device 0 only.
    world.is("k", JobStatus::Running, 0, 0);
    let sent = world.calls.iter().filter(|(job, ..)| *job == job_id("k")).map(|(_, device, _)| device.clone());
    assert_eq!(sent.collect::<Vec<_>>(), [device(0)]);
    world.answer("j", 1, UPDATED);
    world.is("j", JobStatus::Completed, 1, 2);
    assert_eq!(world.row("k", 1).status, DeviceJobStatus::Running);
    world.pass(100);
    world.failed_with("k", 2, ErrorCode::JobRunPreconditionFailed);
}

#[test]
fn a_cancelled_job_keeps_what_is_in_flight() {
    let mut world = World::new(3, limits(1, 4));
    world.create(JobRequest { start_time: Some(at(50)), ..twin_job("later") });
    world.settle();
    assert_eq!(world.cancel("later"), Obedience::Begun);
    world.is("later", JobStatus::Cancelled, 0, 0);

    world.create(twin_job("j"));
    world.settle();
    assert_eq!(world.cancel("j"), Obedience::Begun);
    world.is("j", JobStatus::Running, 0, 0);
    assert_eq!(world.row("j", 1).status, DeviceJobStatus::Canceled);
    assert_eq!(world.cancel("j"), Obedience::Begun);
    world.answer("j", 0, UPDATED);
    world.is("j", JobStatus::Cancelled, 1, 0);
    assert_eq!(world.cancel("nothing"), Obedience::Unknown);

    // Over a restart the answer that was out is lost, and the device is not asked again.
    world.create(twin_job("k"));
    world.settle();
    world.cancel("k");
    world.restart();
    world.settle();
    world.is("k", JobStatus::Cancelled, 0, 0);
    assert_eq!(world.calls, []);
}

#[test]
fn an_attempt_that_is_being_recorded_can_still_be_cancelled() {
    let mut world = World::new(1, Limits::default());
    world.create(twin_job("j"));
    world.pump();
    world.select();
    assert_eq!(world.engine.command(at(0), &job_id("j"), Command::Cancel), Obedience::Begun);
    assert_eq!(world.engine.command(at(0), &job_id("j"), Command::Cancel), Obedience::Finished);
    world.settle();
    world.is("j", JobStatus::Cancelled, 0, 0);
    assert_eq!((world.calls.len(), world.engine.in_flight()), (0, 0));
}

#[test]
fn a_job_without_devices_is_completed_and_one_that_cannot_select_is_failed() {
    let mut world = World::new(1, Limits::default());
    world.create(JobRequest { query_condition: "deviceId = 'nobody'".into(), ..twin_job("empty") });
    world.create(JobRequest { query_condition: "SELECT * FROM devices".into(), ..twin_job("wrong") });
    world.settle();
    world.is("empty", JobStatus::Completed, 0, 0);
    assert_eq!(world.job("empty").statistics.map(|counts| counts.device_count), Some(0));
    world.is("wrong", JobStatus::Failed, 0, 0);
    let reason = world.job("wrong").failure_reason.expect("a reason");
    assert!(reason.contains("Line 1:29 Unexpected character at input 'SELECT'"), "{reason}");
}

#[test]
fn a_device_serves_one_job_at_a_time() {
    let mut world = World::new(1, Limits::default());
    for name in ["a", "b", "c"] {
        world.create(twin_job(name));
        world.settle();
    }
    assert_eq!(world.calls, [(job_id("a"), device(0), 1)]);
    world.cancel("b");
    world.answer("a", 0, UPDATED);
    assert_eq!(world.calls, [(job_id("c"), device(0), 1)]);
}

#[test]
fn jobs_beyond_the_limit_stay_queued() {
    let mut world = World::new(1, limits(1, 1));
    world.create(twin_job("a"));
    world.create(twin_job("b"));
    world.settle();
    world.is("b", JobStatus::Queued, 0, 0);
    assert_eq!(world.engine.deadline(), Some(at(100)));
    world.answer("a", 0, UPDATED);
    world.is("b", JobStatus::Running, 0, 0);
}

#[test]
fn after_a_restart_the_unknown_is_sent_again_and_the_offline_waited_for() {
    let mut world = World::new(3, limits(2, 4));
    world.create(method_job("j"));
    world.settle();
    world.answer("j", 0, UPDATED);
    world.restart();
    world.settle();
    let attempts: Vec<_> = world.calls.iter().map(|(_, device, attempt)| (device.clone(), *attempt)).collect();
    assert_eq!(attempts, [(device(1), 2), (device(2), 2)]);
    world.answer("j", 1, offline());
    assert_eq!(world.row("j", 1).status, DeviceJobStatus::Pending);
    assert_eq!(world.engine.deadline(), Some(at(1)));
    world.pass(1);
    world.answer("j", 1, offline());
    assert_eq!(world.engine.deadline(), Some(at(3)));
    world.answer("j", 2, UPDATED);
    world.pass(99);
    world.failed_with("j", 1, ErrorCode::DeviceNotOnline);
    world.is("j", JobStatus::Completed, 2, 1);
}

#[test]
fn draining_sends_nothing_more() {
    let mut world = World::new(2, limits(1, 4));
    world.create(twin_job("j"));
    world.settle();
    world.engine.drain();
    world.answer("j", 0, UPDATED);
    assert_eq!((world.calls.len(), world.engine.in_flight()), (0, 0));
    world.is("j", JobStatus::Running, 1, 0);
}
