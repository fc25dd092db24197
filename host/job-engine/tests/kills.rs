//! `kill -9` two hundred times during one job over ten thousand devices, with stages, a rate and retries.
//!
//! The engine runs in a process of its own, this test run again, on the real journal; the devices are part of it and
//! note in a file, which outlives it, that they were called. The process ends itself at a step that is drawn each time:
//! as a commit begins, once one is done, as a device is called, as it is about to answer, or after some time. This
//! process then reads what is left: what the engine could have shown anybody, since it shows only what is committed.
//!
//! Not shown: a loss of power, for which the journal has `synchronous=FULL` in a hub, and what a real device does with
//! a second call.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::env;
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use durable_store::{ClosedStore, Durability, Store};
use iothub_protocol::address::Address;
use iothub_protocol::error::{ErrorCode, HubError};
use iothub_protocol::id::JobId;
use iothub_protocol::job::policy::{FailureClass, JobPolicy, Rate, RetryRule, Stage};
use iothub_protocol::job::{JobAction, JobRequest, JobStatus, TwinUpdate};
use iothub_protocol::method::{DirectMethod, MethodResponse};
use iothub_protocol::plugin_report::PinState;
use iothub_protocol::query::Condition;
use job_engine::{Fleet, JobEngine, Limits, MIGRATIONS, Selected, Selection, Settings, Survey, Surveyed};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const DEVICES: usize = 10_000;
const KILLS: u64 = 200;
/// Calls that are out at once, and so the most that one kill leaves in doubt.
const IN_FLIGHT: usize = 16;
/// Calls that a process makes at the most before it ends; with commits of up to [`IN_FLIGHT`] outcomes each.
const MOST_CALLS: u64 = 70;
const MOST_COMMITS: u64 = 4;
const LONGEST: Duration = Duration::from_millis(300);
/// From the start of a process to the first call that it makes, but for one process in twenty: the machine may be busy.
const RESUMED: Duration = Duration::from_secs(2);
/// A device answers in time but for one call in so many.
const LATE: u64 = 10;
const JOB: &str = "locked";

/// For the process that is killed: its folder, and its number, counted from 1; that of the last, which is not, is 0.
const FOLDER_VARIABLE: &str = "LATCH_CRASH_FOLDER";
const LIFE_VARIABLE: &str = "LATCH_CRASH_LIFE";

fn device(number: usize) -> Address {
    Address::parse(&format!("door-{number:05}")).expect("an address")
}

/// The same for the same place in the test, whatever the run.
fn drawn(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

fn job() -> JobRequest {
    let method = DirectMethod {
        method_name: "lockDoor".parse().expect("a name"),
        payload: Value::Null,
        response_timeout_in_seconds: None,
        connect_timeout_in_seconds: None,
    };
    let retry = RetryRule {
        on: vec![FailureClass::Timeout],
        retries: 100,
        backoff_in_seconds: 1,
        maximum_backoff_in_seconds: 1,
    };
    let policy = JobPolicy {
        stages: [5, 40, 100].map(|percent| Stage { success_threshold: 90, ..Stage::new(percent) }).to_vec(),
        rate: Some(Rate::Constant(5000)),
        retry: vec![retry],
        ..JobPolicy::default()
    };
    JobRequest {
        job_id: JobId::parse(JOB).expect("an id"),
        action: JobAction::Method(method),
        query_condition: "*".to_owned(),
        start_time: None,
        max_execution_time_in_seconds: 3600,
        policy: Some(policy),
        then: Vec::new(),
        recurrence: None,
        targets: None,
    }
}

/// Where a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    CommitBegins(u64),
    CommitIsDone(u64),
    Called(u64),
    AboutToAnswer(u64),
    After(Duration),
}

impl Point {
    fn of(life: u64) -> Point {
        let nth = |most| 1 + drawn(("nth", life)) % most;
        match life % 5 {
            0 => Point::CommitBegins(nth(MOST_COMMITS)),
            1 => Point::CommitIsDone(nth(MOST_COMMITS)),
            2 => Point::Called(nth(MOST_CALLS)),
            3 => Point::AboutToAnswer(nth(MOST_CALLS)),
            _ => Point::After(Duration::from_micros(nth(LONGEST.as_micros() as u64))),
        }
    }
}

/// Ends the process when it is there.
struct Death {
    point: Option<Point>,
    commits: AtomicUsize,
    called: AtomicUsize,
    answers: AtomicUsize,
}

impl Death {
    /// Answers the how manyth it is.
    fn count(&self, counter: &AtomicUsize, point: fn(u64) -> Point) -> u64 {
        let nth = 1 + counter.fetch_add(1, Ordering::SeqCst) as u64;
        // A process that ends at some time may be faster than that.
        let is_late = matches!(self.point, Some(Point::After(_))) && nth == MOST_CALLS;
        if self.point == Some(point(nth)) || is_late {
            die();
        }
        nth
    }
}

fn die() -> ! {
    kill_process(getpid(), Signal::KILL).expect("one may end oneself");
    loop {
        thread::park();
    }
}

/// Hears of the store's commits.
struct Commits(Arc<Death>);

impl Subscriber for Commits {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && metadata.target() == "durable_store::writer"
            && *metadata.level() == tracing::Level::TRACE
    }

    fn event(&self, _: &Event<'_>) {
        self.0.count(&self.0.commits, Point::CommitBegins);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Devices that note each call before they do anything.
struct Noted {
    life: u64,
    calls: File,
    begun: Instant,
    death: Arc<Death>,
}

impl Fleet for Noted {
    async fn select(&self, _: &Selection) -> Result<Vec<Selected>, HubError> {
        Ok((0..DEVICES).map(|number| Selected { address: device(number), labels: Box::default() }).collect())
    }

    async fn call_method(&self, device: &Address, _: &DirectMethod) -> Result<MethodResponse, HubError> {
        let line = format!("{} {device} {}\n", self.life, self.begun.elapsed().as_micros());
        (&self.calls).write_all(line.as_bytes()).expect("the file can be written");
        let nth = self.death.count(&self.death.called, Point::Called);
        // The others of this moment get theirs.
        tokio::task::yield_now().await;
        let is_late = drawn(("late", self.life, device, nth)).is_multiple_of(LATE);
        self.death.count(&self.death.answers, Point::AboutToAnswer);
        match is_late {
            true => Err(HubError::new(ErrorCode::GatewayTimeout, "late")),
            false => Ok(MethodResponse { status: 200, payload: json!(null) }),
        }
    }

    async fn patch_twin(&self, _: &Address, _: &TwinUpdate) -> Result<(), HubError> {
        Err(HubError::new(ErrorCode::ArgumentInvalid, "only methods are called"))
    }

    async fn pin_states(&self, _: &str, _: &[Address]) -> Result<HashMap<Address, PinState>, HubError> {
        Ok(HashMap::new())
    }

    async fn survey(&self, _: &Survey, _: &mpsc::Sender<Vec<Surveyed>>) -> Result<(), HubError> {
        Err(HubError::new(ErrorCode::ArgumentInvalid, "no job is previewed"))
    }

    async fn matching(&self, _: &Condition, _: &[Address]) -> Result<HashSet<Address>, HubError> {
        Ok(HashSet::new())
    }
}

/// The process that is killed.
#[test]
#[ignore = "the process that the other test starts and kills"]
fn engine() {
    let begun = Instant::now();
    let folder = PathBuf::from(env::var_os(FOLDER_VARIABLE).expect("the folder"));
    let life: u64 = env::var(LIFE_VARIABLE).expect("a number").parse().expect("a number");
    let death = Arc::new(Death {
        point: (life > 0).then(|| Point::of(life)),
        commits: AtomicUsize::new(0),
        called: AtomicUsize::new(0),
        answers: AtomicUsize::new(0),
    });
    let calls = OpenOptions::new().append(true).create(true).open(folder.join("calls")).expect("a file");
    let fleet = Arc::new(Noted { life, calls, begun, death: Arc::clone(&death) });
    let store = Store::open(&folder.join("jobs.db"), MIGRATIONS, Durability::Process).expect("a store");
    tracing::subscriber::set_global_default(Commits(Arc::clone(&death))).expect("the only one");
    if let Some(Point::After(time)) = death.point {
        thread::spawn(move || {
            thread::park_timeout(time);
            die();
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let limits = Limits { in_flight_per_job: IN_FLIGHT, ..Limits::default() };
        let settings = Settings { limits, ..Settings::default() };
        let engine = JobEngine::start(fleet, store, settings, CancellationToken::new()).await.expect("an engine");
        let id = job().job_id;
        if engine.get(&id).await.is_err() {
            engine.create(job()).await.expect("a job");
        }
        let mut commits = engine.commits();
        let counting = async {
            let done = AtomicUsize::new(0);
            while commits.changed().await.is_ok() {
                death.count(&done, Point::CommitIsDone);
            }
        };
        let ended = tokio::select! {
            ended = engine.ended(&id) => ended.expect("its end"),
            () = counting => unreachable!("the engine runs on"),
        };
        assert_eq!(ended.status, JobStatus::Completed);
    });
}

/// A device's row.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    status: String,
    attempts: u64,
    failures: u64,
    /// What is shown of its end, if it has ended.
    end: Option<String>,
}

impl Row {
    fn is_terminal(&self) -> bool {
        ["completed", "failed", "canceled"].contains(&self.status.as_str())
    }
}

/// What is committed.
fn rows(folder: &Path) -> BTreeMap<String, Row> {
    let journal = ClosedStore::open(&folder.join("jobs.db"), MIGRATIONS).expect("the journal");
    let query = "SELECT device, status, attempt, failures, ended, answer, payload, error, description FROM device_jobs";
    let rows = journal.read(|connection| {
        let mut statement = connection.prepare(query)?;
        let rows = statement.query_map([], |row| {
            let text = |column: usize| row.get::<_, Option<String>>(column).map(Option::unwrap_or_default);
            let number = |column: usize| row.get::<_, Option<i64>>(column);
            let number_of = |column: usize| number(column).map(|number| number.unwrap_or_default().unsigned_abs());
            let (ended, answer) = (number(4)?, number(5)?);
            let texts = [text(6)?, text(7)?, text(8)?];
            let end = ended.map(|at| format!("{at}: {answer:?} {texts:?}"));
            Ok((text(0)?, Row { status: text(1)?, attempts: number_of(2)?, failures: number_of(3)?, end }))
        })?;
        rows.collect()
    });
    rows.expect("the rows")
}

/// The devices that were called in that life, and when in it the first was.
fn calls(folder: &Path, life: u64) -> (Vec<String>, Option<Duration>) {
    let noted = fs::read_to_string(folder.join("calls")).unwrap_or_default();
    let of_life = noted.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let is_of_life = fields.next()?.parse() == Ok(life);
        let (device, micros) = (fields.next()?.to_owned(), fields.next()?.parse().ok()?);
        is_of_life.then_some((device, Duration::from_micros(micros)))
    });
    let (devices, times): (Vec<_>, Vec<_>) = of_life.unzip();
    (devices, times.first().copied())
}

/// What the lives so far have left.
#[derive(Default)]
struct Seen {
    rows: BTreeMap<String, Row>,
    /// How often each device was called.
    calls: BTreeMap<String, u64>,
    /// Attempts that were under way when a process ended, called or not.
    doubts: BTreeSet<(String, u64)>,
    /// How long each process took until it made its first call.
    resumed: Vec<Duration>,
}

impl Seen {
    /// After the end of a process, however it ended.
    fn look(&mut self, folder: &Path, life: u64) {
        let rows = rows(folder);
        let (called, resumed) = calls(folder, life);
        for (device, before) in self.rows.iter().filter(|(_, row)| row.is_terminal()) {
            assert_eq!(Some(before), rows.get(device), "{device} could be read before life {life}");
        }
        let is_called_in_vain = |device: &&String| self.rows.get(*device).is_some_and(Row::is_terminal);
        let again: Vec<_> = called.iter().filter(is_called_in_vain).collect();
        assert!(again.is_empty(), "life {life} has called {again:?}, whose outcomes could be read");

        called.iter().for_each(|device| *self.calls.entry(device.clone()).or_default() += 1);
        let in_doubt = rows.iter().filter(|(_, row)| row.status == "running");
        let in_doubt: Vec<_> = in_doubt.map(|(device, row)| (device.clone(), row.attempts)).collect();
        assert!(in_doubt.len() <= IN_FLIGHT, "life {life} leaves {} devices in doubt", in_doubt.len());
        // One that a process did not come to is in doubt once.
        self.doubts.extend(in_doubt);
        for (device, calls) in &self.calls {
            let row = &rows[device];
            assert!(*calls <= row.attempts, "{device} was called {calls} times, and recorded before is {row:?}");
        }
        self.resumed.extend(resumed);
        self.rows = rows;
    }

    fn done(&self) -> usize {
        self.rows.values().filter(|row| row.is_terminal()).count()
    }
}

/// This test, run again as the engine. How it ended: by a kill or not.
fn live(folder: &Path, life: u64) -> bool {
    let mut command = Command::new(env::current_exe().expect("this test"));
    command.args(["--ignored", "--nocapture", "--exact", "engine"]).stdout(Stdio::null());
    command.env(FOLDER_VARIABLE, folder).env(LIFE_VARIABLE, life.to_string());
    let status = command.status().expect("this test runs again");
    assert!(status.signal() == Some(9) || status.success(), "life {life}: {status}");
    status.signal() == Some(9)
}

#[test]
fn a_job_that_is_killed_at_two_hundred_points_gives_each_device_one_outcome() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut seen = Seen::default();
    for life in 1..=KILLS {
        let was_killed = live(folder.path(), life);
        seen.look(folder.path(), life);
        let done = seen.done();
        assert!(was_killed && done < DEVICES, "the job has ended in life {life}, at {:?}", Point::of(life));
    }
    let begun = Instant::now();
    assert!(!live(folder.path(), 0), "nobody kills the last");
    seen.look(folder.path(), 0);
    let took = begun.elapsed();

    assert_eq!((seen.done(), seen.rows.len()), (DEVICES, DEVICES));
    let mut again = 0;
    for (device, row) in &seen.rows {
        assert_eq!(row.status, "completed", "{device}: {row:?}");
        // Each attempt was called, and came to a failure, to the outcome, or to nothing that anybody knows.
        let of_device = (device.clone(), 0)..=(device.clone(), u64::MAX);
        let doubts = seen.doubts.range(of_device).count() as u64;
        assert_eq!(row.attempts, row.failures + 1 + doubts, "{device}: {row:?}");
        again += seen.calls[device] - row.failures - 1;
    }
    let doubts = seen.doubts.len() as u64;
    assert!(again <= doubts && doubts <= KILLS * IN_FLIGHT as u64, "{again} calls more, {doubts} in doubt");
    seen.resumed.sort_unstable();
    let [usual, slow, slowest] = [50, 95, 100].map(|percent| seen.resumed[(seen.resumed.len() - 1) * percent / 100]);
    assert!(slow < RESUMED, "the first call comes after {slow:?}");
    eprintln!(
        "{KILLS} kills: {doubts} attempts were in doubt, {again} of which had been called; the first call came \
         {usual:?} after the start, and {slowest:?} at the longest; the last process took {took:?}"
    );
}
