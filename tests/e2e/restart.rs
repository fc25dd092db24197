//! `latch up` ends, by force or when asked, and the next one goes on where it was.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use chrono::Utc;
use iothub_protocol::time;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::back_end::BackEnd;
use crate::harness::{FREE_PORTS, Latch, latch_json, latch_ok, plugin_folder, wait_until};
use crate::operator;

/// So many that a job over them takes longer than a kill.
const DOORS: usize = 400;
/// How often the kill may come too late.
const TRIES: usize = 5;
/// Devices that are still away just after the restart are asked again after seconds.
const JOB_BOUND: Duration = Duration::from_secs(60);

/// What a kill left behind.
struct Interrupted {
    data: TempDir,
    /// How to start it again.
    args: Vec<String>,
    kept: Kept,
    /// The outcomes that were seen before, by device.
    seen: BTreeMap<String, Value>,
    /// When it was dead, as rows write time.
    dead_at: String,
}

/// What a restart must not change.
struct Kept {
    connections: BTreeMap<String, String>,
    twins: BTreeMap<String, [u64; 3]>,
}

#[test]
fn a_job_that_a_kill_interrupts_is_finished_by_the_next_start() {
    let plugins = plugin_folder(&["lock-door"]);
    let survived = (0..TRIES).any(|_| interrupt(plugins.path()).is_some_and(|interrupted| interrupted.is_survived()));
    assert!(survived, "each of {TRIES} jobs had ended before it could be interrupted");
}

/// Kills `latch up` once a part of a job's outcomes can be read. `None` if all of them could.
fn interrupt(plugins: &Path) -> Option<Interrupted> {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (doors, plugins) = (DOORS.to_string(), plugins.to_str().expect("a readable name"));
    let args = ["up", "--devices", &doors, "--plugins", plugins];
    let latch = Latch::start(data.path(), &[&args, FREE_PORTS].concat());
    let again = args.iter().map(ToString::to_string).chain(latch.same_ports()).collect();
    let back_end = BackEnd::of(data.path());
    let tags = ["twin", "update", "door-0001", "--tags", r#"{"site": "A"}"#, "--desired", r#"{"colour": "red"}"#];
    latch_ok(data.path(), &tags);
    let kept = Kept::now(data.path(), &back_end);

    back_end.start_job("lock", "lockDoor");
    let seen = wait_until("first outcomes", JOB_BOUND, || {
        let rows = back_end.query("SELECT * FROM devices.jobs WHERE jobId = 'lock' AND status = 'completed'");
        (!rows.is_empty()).then_some(rows)
    });
    latch.kill();
    let dead_at = time::format(Utc::now());
    (seen.len() < DOORS).then(|| Interrupted { data, args: again, kept, seen: by_device(seen), dead_at })
}

impl Interrupted {
    /// Starts it again and checks. `false` if the job had ended after all.
    fn is_survived(&self) -> bool {
        let data = self.data.path();
        let latch = Latch::start(data, &self.args.iter().map(String::as_str).collect::<Vec<_>>());
        let back_end = BackEnd::of(data);
        let job = wait_until("the job's end", JOB_BOUND, || {
            Some(back_end.job("lock")).filter(|job| job["status"] != json!("running"))
        });
        assert_eq!(job["status"], json!("completed"), "{job:#}");
        assert_eq!(job["deviceJobStatistics"]["succeededCount"], json!(DOORS), "{job:#}");
        if job["endTime"].as_str() < Some(&self.dead_at) {
            return false;
        }
        self.check_outcomes(&back_end);
        self.check_calls(&operator::actors(data));
        self.kept.check(data, &back_end);
        // Locked once each, whether asked once or twice.
        let again = latch_json(data, &["job", "method", "lockDoor", "--query", "*", "--id", "again", "--wait"]);
        assert_eq!(again["deviceJobStatistics"]["succeededCount"], json!(DOORS), "{again:#}");
        for row in back_end.query("SELECT * FROM devices.jobs WHERE jobId = 'again'") {
            assert_eq!(answer(&row), (409, 1), "{row:#}");
        }
        assert!(latch.stop().success());
        true
    }

    /// An outcome that was seen is the outcome; every door has one.
    fn check_outcomes(&self, back_end: &BackEnd) {
        let rows = by_device(back_end.query("SELECT * FROM devices.jobs WHERE jobId = 'lock'"));
        assert_eq!(rows.len(), DOORS);
        for (device, row) in &self.seen {
            assert_eq!(&rows[device], row, "{device} had that outcome");
        }
        for (device, row) in &rows {
            // The second of two sends finds the door locked by the first.
            assert!(matches!(answer(row), (200 | 409, 1)), "{device}: {row:#}");
        }
    }

    /// A door whose outcome was seen was not asked again, the others were at most once.
    fn check_calls(&self, actors: &[Value]) {
        assert_eq!(actors.len(), DOORS);
        for actor in actors {
            let device = actor["deviceId"].as_str().expect("a device");
            let calls = actor["calls"].as_u64().expect("a number");
            let most = if self.seen.contains_key(device) { 0 } else { 1 };
            assert!(calls <= most, "{device} was called {calls} times after the restart: {actor:#}");
        }
    }
}

impl Kept {
    fn now(data: &Path, back_end: &BackEnd) -> Kept {
        let files = fs::read_dir(data.join("devices")).expect("a folder").map(|entry| entry.expect("an entry").path());
        let connections = files.filter(|path| path.extension().is_some_and(|extension| extension == "connstr"));
        let connections = connections.map(|path| {
            let text = fs::read_to_string(&path).expect("a connection string");
            (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), text)
        });
        let twins = back_end.query("SELECT * FROM devices").into_iter().map(|twin| {
            let pointers = ["/version", "/properties/desired/$version", "/properties/reported/$version"];
            let versions = pointers.map(|pointer| twin.pointer(pointer).and_then(Value::as_u64).expect("a version"));
            (twin["deviceId"].as_str().expect("a device").to_owned(), versions)
        });
        Kept { connections: connections.collect(), twins: twins.collect() }
    }

    fn check(&self, data: &Path, back_end: &BackEnd) {
        let now = Kept::now(data, back_end);
        assert_eq!(now.connections, self.connections);
        assert_eq!(now.twins.len(), self.twins.len());
        for (device, [version, desired, reported]) in &self.twins {
            let [version_now, desired_now, reported_now] = now.twins[device];
            assert_eq!((version_now, desired_now), (*version, *desired), "{device}");
            assert!(reported_now >= *reported, "{device} reports {reported_now} after {reported}");
        }
        let twin = latch_json(data, &["twin", "show", "door-0001"]);
        assert_eq!((&twin["tags"]["site"], &twin["properties"]["desired"]["colour"]), (&json!("A"), &json!("red")));
    }
}

/// Status and count of a row's answer.
fn answer(row: &Value) -> (i64, i64) {
    let answer = &row["outcome"]["deviceMethodResponse"];
    (answer["status"].as_i64().unwrap_or_default(), answer["payload"]["count"].as_i64().unwrap_or_default())
}

fn by_device(rows: Vec<Value>) -> BTreeMap<String, Value> {
    rows.into_iter().map(|row| (row["deviceId"].as_str().expect("a device").to_owned(), row)).collect()
}

#[test]
fn a_clean_stop_keeps_everything() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door", "building"]));
    let data = data.path();
    let plugins = plugins.path().to_str().expect("a readable name");
    let args = ["up", "--devices", "3", "--plugins", plugins];
    let latch = Latch::start(data, &[&args, FREE_PORTS].concat());
    let back_end = BackEnd::of(data);
    assert_eq!(back_end.call("door-0001", "lockDoor").status, 200);
    latch_ok(data, &["twin", "update", "door-0002", "--desired", r#"{"floor": 7}"#]);
    wait_until("the floor is reported", JOB_BOUND, || reported_floor(data).then_some(()));
    latch_ok(
        data,
        &["job", "method", "unlockDoor", "--query", "*", "--id", "later", "--start", "2100-01-01T00:00:00Z"],
    );
    latch_ok(data, &["device", "create", "spare"]);
    latch_ok(data, &["device", "delete", "door-0003"]);
    let kept = Kept::now(data, &back_end);
    let ports = latch.same_ports();
    let status = latch.stop();
    assert_eq!(status.code(), Some(0), "{status}");

    let args = ["up", "--devices", "2", "--plugins", plugins];
    let latch = Latch::start(data, &args.into_iter().chain(ports.iter().map(String::as_str)).collect::<Vec<_>>());
    let back_end = BackEnd::of(data);
    kept_after_clean_stop(data, &back_end, &kept);
    let status = latch.stop();
    assert_eq!(status.code(), Some(0), "{status}");
}

fn kept_after_clean_stop(data: &Path, back_end: &BackEnd, kept: &Kept) {
    let now = Kept::now(data, back_end);
    assert_eq!((&now.connections, &now.twins), (&kept.connections, &kept.twins));
    let locked = back_end.call("door-0001", "lockDoor");
    assert_eq!((locked.status, &locked.payload["count"]), (409, &json!(1)), "the door's own memory");
    assert!(reported_floor(data));
    let later = back_end.job("later");
    assert_eq!((&later["status"], &later["startTime"]), (&json!("scheduled"), &json!("2100-01-01T00:00:00.000Z")));
    // A reactor that has acted on what is desired is not told again.
    let actors = operator::actors(data);
    let second = actors.iter().find(|actor| actor["deviceId"] == json!("door-0002")).expect("an actor");
    assert_eq!(second["calls"], json!(0), "{second:#}");
}

fn reported_floor(data: &Path) -> bool {
    let twin = latch_json(data, &["twin", "show", "door-0002"]);
    twin["properties"]["reported"]["floor"]["value"] == json!(7)
}

#[test]
fn a_stop_is_clean_from_the_moment_of_readiness() {
    let data = tempfile::tempdir().expect("a temporary folder");
    for command in ["hub", "up", "hub", "up", "hub", "up"] {
        let status = Latch::start(data.path(), &[&[command], FREE_PORTS].concat()).stop();
        assert_eq!(status.code(), Some(0), "{command}: {status}");
    }
}
