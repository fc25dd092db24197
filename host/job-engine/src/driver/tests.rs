mod targets;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use durable_store::Durability;
use iothub_protocol::address::Address;
use iothub_protocol::job::policy::{AbortRule, JobPolicy, OnAbort, ReportRule, SuccessRule};
use iothub_protocol::job::{DeviceJobOutcome, DeviceJobStatus, JobAction, JobStatus, TwinUpdate};
use iothub_protocol::method::{DirectMethod, MethodResponse};
use iothub_protocol::plugin_report::{self, PinState};
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::*;
use crate::fleet::{Selected, Selection, Standing, Survey, Surveyed};
use crate::testing::{condition, device, job_id, method_job, recount, selected, twin_job};

/// Devices that do as they are told by their numbers.
struct Scripted {
    size: AtomicUsize,
    answer: fn(usize) -> Answer,
    asked: Mutex<Vec<Address>>,
    patched: Mutex<Vec<(Address, TwinUpdate)>>,
    changes: broadcast::Sender<Address>,
}

enum Answer {
    Status(i32),
    Never,
    Error,
    Panic,
}

impl Scripted {
    fn new(size: usize, answer: fn(usize) -> Answer) -> Arc<Scripted> {
        let (size, (changes, _)) = (AtomicUsize::new(size), broadcast::channel(4));
        Arc::new(Scripted { size, answer, asked: Mutex::default(), patched: Mutex::default(), changes })
    }

    fn size(&self) -> usize {
        self.size.load(Ordering::SeqCst)
    }

    /// Have more devices from now on, and tell of each.
    fn grow(&self, size: usize) {
        let before = self.size.swap(size, Ordering::SeqCst);
        for number in before..size {
            self.changes.send(device(number)).expect("somebody listens");
        }
    }

    fn asked(&self) -> Vec<Address> {
        let mut asked = self.asked.lock().expect("no panic holds the lock").clone();
        asked.sort();
        asked
    }
}

impl Fleet for Scripted {
    async fn select(&self, selection: &Selection) -> Result<Vec<Selected>, HubError> {
        Ok(selected(self.size(), selection))
    }

    fn changes(&self) -> Option<broadcast::Receiver<Address>> {
        Some(self.changes.subscribe())
    }

    async fn call_method(&self, id: &Address, method: &DirectMethod) -> Result<MethodResponse, HubError> {
        self.asked.lock().expect("no panic holds the lock").push(id.clone());
        if number(id) >= self.size() {
            return Err(HubError::new(ErrorCode::DeviceNotFound, format!("the hub has no device {id:?}")));
        }
        match (self.answer)(number(id)) {
            Answer::Status(status) => Ok(MethodResponse { status, payload: json!(method.method_name) }),
            Answer::Never => std::future::pending().await,
            Answer::Error => Err(HubError::new(ErrorCode::DeviceNotOnline, "Timed out waiting for device to connect.")),
            Answer::Panic => panic!("the script says so"),
        }
    }

    async fn patch_twin(&self, id: &Address, update: &TwinUpdate) -> Result<(), HubError> {
        self.patched.lock().expect("no panic holds the lock").push((id.clone(), update.clone()));
        Ok(())
    }

    async fn matching(&self, condition: &Condition, devices: &[Address]) -> Result<HashSet<Address>, HubError> {
        let (condition, among) = (condition.clone(), Some(devices.to_vec()));
        let found = selected(self.size(), &Selection { condition, among, labels: Vec::new() });
        Ok(found.into_iter().map(|selected| selected.address).collect())
    }

    async fn survey(&self, survey: &Survey, pages: &mpsc::Sender<Vec<Surveyed>>) -> Result<(), HubError> {
        let find = |condition: &Condition| {
            let selection = Selection { condition: condition.clone(), among: survey.among.clone(), labels: Vec::new() };
            selected(self.size(), &selection).into_iter().map(|selected| selected.address)
        };
        let marked: Vec<HashSet<Address>> = survey.marks.iter().map(|mark| find(mark).collect()).collect();
        let surveyed = find(&survey.condition).map(|address| {
            let holding = marked.iter().enumerate().filter(|(_, marked)| marked.contains(&address));
            let marks = holding.fold(0, |holding, (bit, _)| holding | (1 << bit));
            Surveyed { address, marks, standing: Standing::default() }
        });
        pages.send(surveyed.collect()).await.map_err(|_| HubError::new(ErrorCode::ServerError, "nobody takes it"))
    }

    async fn pin_states(&self, plugin: &str, devices: &[Address]) -> Result<HashMap<Address, PinState>, HubError> {
        let state = |id: &Address| {
            let status = match (self.answer)(number(id)) {
                Answer::Status(_) => plugin_report::ACTIVE,
                _ => plugin_report::FAILING,
            };
            let section = |entry: Value| {
                json!({"latch": {"plugins": {plugin: entry}},
                    "$metadata": {"latch": {"plugins": {plugin: {"$lastUpdated": "2026-11-24T08:40:04.171Z"}}}}})
            };
            let reported = section(json!({"version": "2.0.0", "status": status, "reason": "so it is"}));
            let twin = json!({"properties": {"desired": section(json!("2.0.0")), "reported": reported}});
            PinState::of_twin(&twin, plugin)
        };
        Ok(devices.iter().map(|id| (id.clone(), state(id))).collect())
    }
}

fn number(id: &Address) -> usize {
    id.to_string().trim_start_matches("door-").parse().expect("a number")
}

struct Running {
    engine: JobEngine,
    store: Store,
    cancel: CancellationToken,
}

async fn start(folder: &Path, fleet: &Arc<Scripted>) -> Running {
    let store = Store::open(&folder.join("jobs.db"), crate::MIGRATIONS, Durability::Process).expect("a store");
    let cancel = CancellationToken::new();
    let settings = Settings { drain: Duration::ZERO, ..Settings::default() };
    let engine = JobEngine::start(Arc::clone(fleet), store.clone(), settings, cancel.clone()).await.expect("an engine");
    Running { engine, store, cancel }
}

impl Running {
    async fn stop(self) {
        self.cancel.cancel();
        self.engine.stopped().await;
        self.store.close().await;
    }

    async fn rows(&self, job: &str) -> Vec<DeviceJob> {
        let condition = condition(&format!("jobId = '{job}'"));
        let mut rows = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.engine.device_rows(condition.clone(), 300, after.as_deref()).await.expect("a page");
            rows.extend(page.items);
            after = page.continuation;
            if after.is_none() {
                return rows;
            }
        }
    }
}

#[tokio::test]
async fn a_thousand_devices_are_asked_once_each() {
    let folder = tempfile::tempdir().expect("a folder");
    let fleet = Scripted::new(1000, |number| if number % 10 == 0 { Answer::Error } else { Answer::Status(200) });
    let running = start(folder.path(), &fleet).await;
    running.engine.create(method_job("j")).await.expect("a job");
    let job = running.engine.ended(&job_id("j")).await.expect("its end");
    let rows = running.rows("j").await;
    assert_eq!((job.status, job.statistics), (JobStatus::Completed, Some(recount(&rows))));
    assert_eq!((rows.len(), job.statistics.map(|counts| counts.failed_count)), (1000, Some(100)));
    assert_eq!(fleet.asked(), (0..1000).map(device).collect::<Vec<_>>());
    running.stop().await;
}

#[tokio::test]
async fn errors_have_the_hubs_codes() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(folder.path(), &Scripted::new(1, |_| Answer::Never)).await;
    let engine = &running.engine;
    engine.create(twin_job("j")).await.expect("a job");
    let code = |result: Result<JobResponse, HubError>| result.map(|job| job.status).map_err(|error| error.code);
    assert_eq!(engine.create(twin_job("j")).await.map_err(|error| error.code), Err(ErrorCode::JobAlreadyExists));
    engine.ended(&job_id("j")).await.expect("its end");
    assert_eq!(code(engine.command(&job_id("j"), Command::Cancel).await), Err(ErrorCode::JobRunPreconditionFailed));
    assert_eq!(code(engine.command(&job_id("k"), Command::Cancel).await), Err(ErrorCode::JobNotFound));
    assert_eq!(code(engine.get(&job_id("k")).await), Err(ErrorCode::JobNotFound));
    let start_time = Some(Utc::now() + TimeDelta::hours(1));
    engine.create(JobRequest { start_time, ..method_job("later") }).await.expect("a job");
    assert_eq!(code(engine.command(&job_id("later"), Command::Cancel).await), Ok(JobStatus::Cancelled));
    let rows = engine.device_rows(Condition::all(), 1, Some("?")).await;
    assert_eq!(rows.map_err(|error| error.code), Err(ErrorCode::ArgumentInvalid));
    running.stop().await;
}

#[tokio::test]
async fn a_panic_in_the_fleet_is_one_devices_failure() {
    let folder = tempfile::tempdir().expect("a folder");
    let fleet = Scripted::new(2, |number| if number == 0 { Answer::Panic } else { Answer::Status(404) });
    let running = start(folder.path(), &fleet).await;
    running.engine.create(method_job("j")).await.expect("a job");
    running.engine.ended(&job_id("j")).await.expect("its end");
    let rows = running.rows("j").await;
    assert!(matches!(&rows[0].outcome, Some(DeviceJobOutcome::Error { code, .. }) if code == "ServerError"));
    assert_eq!(rows[1].status, DeviceJobStatus::Completed);
    running.stop().await;
}

#[tokio::test]
async fn reports_decide_and_pins_are_taken_back() {
    for (answer, status, succeeded, updates) in [
        ((|_| Answer::Status(200)) as fn(usize) -> Answer, JobStatus::Completed, 4, 4),
        (|number| if number == 3 { Answer::Error } else { Answer::Status(200) }, JobStatus::Failed, 3, 8),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let fleet = Scripted::new(4, answer);
        let running = start(folder.path(), &fleet).await;
        let pin = TwinUpdate { tags: None, desired: Some(plugin_report::pin("lock-door", "2.0.0")) };
        let policy = JobPolicy {
            abort: vec![AbortRule { minimum: 4, ..AbortRule::new(0) }],
            succeed: Some(SuccessRule::Report(ReportRule {
                plugin: "lock-door".into(),
                soak_in_seconds: 0,
                timeout_in_seconds: 60,
            })),
            on_abort: OnAbort::Unpin,
            ..JobPolicy::default()
        };
        let action = JobAction::UpdateTwin(pin.clone());
        running.engine.create(JobRequest { action, policy: Some(policy), ..twin_job("j") }).await.expect("a job");
        let job = running.engine.ended(&job_id("j")).await.expect("its end");
        assert_eq!((job.status, job.statistics.map(|counts| counts.succeeded_count)), (status, Some(succeeded)));
        let patched = fleet.patched.lock().expect("no panic holds the lock").clone();
        assert_eq!(patched.len(), updates);
        let unpin = TwinUpdate { tags: None, desired: Some(plugin_report::unpin("lock-door")) };
        assert!(patched[..4].iter().all(|(_, update)| *update == pin), "{patched:?}");
        assert!(patched[4..].iter().all(|(_, update)| *update == unpin), "{patched:?}");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_restart_sends_only_what_has_no_outcome() {
    let folder = tempfile::tempdir().expect("a folder");
    let fleet = Scripted::new(300, |number| if number < 200 { Answer::Status(200) } else { Answer::Never });
    let running = start(folder.path(), &fleet).await;
    running.engine.create(method_job("j")).await.expect("a job");
    let mut commits = running.engine.commits();
    loop {
        let counts = running.engine.get(&job_id("j")).await.expect("the job").statistics.unwrap_or_default();
        if (counts.succeeded_count, counts.running_count) == (200, 100) {
            break;
        }
        commits.changed().await.expect("the engine runs");
    }
    running.stop().await;

    let fleet = Scripted::new(300, |_| Answer::Status(200));
    let running = start(folder.path(), &fleet).await;
    let job = running.engine.ended(&job_id("j")).await.expect("its end");
    assert_eq!(job.statistics.map(|counts| counts.succeeded_count), Some(300));
    assert_eq!(fleet.asked(), (200..300).map(device).collect::<Vec<_>>());
    running.stop().await;
}

#[tokio::test]
async fn the_trail_names_who_created_and_stopped_a_job_and_shows_when_the_job_was_edited() {
    let folder = tempfile::tempdir().expect("a folder");
    let running = start(folder.path(), &Scripted::new(1, |_| Answer::Status(200))).await;
    let engine = running.engine.by("service");
    let start_time = Some(Utc::now() + TimeDelta::hours(1));
    engine.create(JobRequest { start_time, ..method_job("later") }).await.expect("a job");
    assert!(running.engine.create(method_job("later")).await.is_err(), "what was refused has no entry");
    engine.command(&job_id("later"), Command::Pause { reason: "lunch".to_owned() }).await.expect("a pause");
    running.engine.by("iothubowner").command(&job_id("later"), Command::Cancel).await.expect("an end");
    assert!(engine.command(&job_id("later"), Command::Cancel).await.is_err());
    let page = engine.audit_trail(Some(job_id("later")), 2, None).await.expect("a page");
    let next = page.continuation.as_deref();
    let rest = engine.audit_trail(Some(job_id("later")), 2, next).await.expect("a page");
    let entries = page.items.iter().chain(&rest.items);
    let entries: Vec<_> = entries.map(|entry| (&*entry.actor, &*entry.action)).collect();
    assert_eq!(entries, [("iothubowner", "cancel"), ("service", "pause"), ("service", "create")]);
    assert_eq!(page.items[1].details, r#"{"reason":"lunch"}"#);
    assert_eq!(engine.check_audit().await.expect("a check").breaks, []);
    let edit = "UPDATE jobs SET request = replace(request, 'lockDoor', 'openDoor')";
    running.store.write(move |tx| tx.execute(edit, [])).await.expect("an edit");
    let breaks = engine.check_audit().await.expect("a check").breaks;
    assert_eq!((breaks.len(), &*breaks[0].reason), (1, "the job later is not what was created"));
    let refused = engine.audit_trail(None, 2, Some("x")).await.map_err(|error| error.code).err();
    assert_eq!(refused, Some(ErrorCode::ArgumentInvalid));
    running.stop().await;
}
