//! Jobs over a fleet whose behaviour is plugins, by the command line alone.

use std::path::Path;
use std::time::Duration;

use chrono::Utc;
use iothub_protocol::time;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{FREE_PORTS, Latch, latch, latch_json, latch_ok, plugin_folder, wait_until};

const DOORS: usize = 200;
/// From the end of a twin job to the last report of a plugin.
const REPORT_BOUND: Duration = Duration::from_secs(30);

fn fleet(data: &Path, doors: usize) -> (Latch, TempDir) {
    let plugins = plugin_folder(&["lock-door", "building"]);
    let folder = plugins.path().to_str().expect("a readable name");
    let args = ["up", "--devices", &doors.to_string(), "--plugins", folder];
    (Latch::start(data, &[&args, FREE_PORTS].concat()), plugins)
}

fn succeeded(job: &Value) -> (&Value, &Value, &Value) {
    let statistics = &job["deviceJobStatistics"];
    (&job["status"], &statistics["succeededCount"], &statistics["failedCount"])
}

/// The status that each door answered and how often it had moved by then, from a job's rows.
fn answers(rows: &Value) -> Vec<(&str, &Value, &Value)> {
    let rows = rows.as_array().expect("rows");
    let answers = rows.iter().map(|row| {
        let answer = &row["outcome"]["deviceMethodResponse"];
        (row["deviceId"].as_str().expect("a device"), &answer["status"], &answer["payload"]["count"])
    });
    answers.collect()
}

#[test]
fn a_method_job_reaches_every_door() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _fleet = fleet(data, DOORS);

    let job = latch_json(data, &["job", "method", "lockDoor", "--query", "*", "--id", "lock", "--wait"]);
    assert_eq!(succeeded(&job), (&json!("completed"), &json!(DOORS), &json!(0)), "{job:#}");
    let rows = latch_json(data, &["job", "results", "lock"]);
    let answers_of_lock = answers(&rows);
    assert_eq!(answers_of_lock.len(), DOORS);
    for (device, status, count) in answers_of_lock {
        assert_eq!((status, count), (&json!(200), &json!(1)), "{device}: {rows:#}");
    }

    // A refusal by the device is an answer of the device, and so a success of the job.
    let job = latch_json(data, &["job", "method", "lockDoor", "--query", "*", "--id", "again", "--wait"]);
    assert_eq!(succeeded(&job), (&json!("completed"), &json!(DOORS), &json!(0)), "{job:#}");
    let rows = latch_json(data, &["query", "SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'again'"]);
    let answers_of_again = answers(&rows);
    assert_eq!(answers_of_again.len(), DOORS);
    for (device, status, count) in answers_of_again {
        assert_eq!((status, count), (&json!(409), &json!(1)), "{device}");
    }

    let table = latch_ok(data, &["job", "results", "lock"]);
    let mut lines = table.lines();
    let heading: Vec<_> = lines.next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(heading, ["DEVICE", "STATUS", "TRIES", "TOOK", "OUTCOME", "ENDED"]);
    let first = lines.find(|line| line.starts_with("door-0001 ")).unwrap_or_else(|| panic!("{table}"));
    assert!(first.contains("completed") && first.contains(r#"200 {"count":1,"locked":true"#), "{first}");
    assert_eq!(table.lines().count(), DOORS + 1);
}

#[test]
fn a_twin_job_is_answered_by_every_door() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _fleet = fleet(data, DOORS);

    let moved = ["job", "twin", "--desired", r#"{"building": "43", "floor": 3}"#, "--query", "*", "--wait"];
    let job = latch_json(data, &moved);
    assert_eq!(succeeded(&job), (&json!("completed"), &json!(DOORS), &json!(0)), "{job:#}");
    let accepted = "SELECT COUNT() AS doors FROM devices WHERE properties.reported.building.value = '43' \
                    AND properties.reported.building.ac = 200 AND properties.reported.floor.value = 3 \
                    AND properties.reported.floor.ac = 200";
    wait_until_counted(data, accepted);

    // Nonsense is refused by the plugin on each door, which stays where it was.
    let nonsense =
        ["job", "twin", "--desired", r#"{"floor": "x"}"#, "--query", "properties.desired.floor = 3", "--wait"];
    let job = latch_json(data, &nonsense);
    assert_eq!(succeeded(&job), (&json!("completed"), &json!(DOORS), &json!(0)), "{job:#}");
    let refused = "SELECT COUNT() AS doors FROM devices WHERE properties.reported.floor.ac = 400 \
                   AND properties.reported.floor.value = 3 AND properties.reported.building.ac = 200";
    wait_until_counted(data, refused);
    let twin = latch_json(data, &["twin", "show", "door-0001"]);
    let floor = &twin["properties"]["reported"]["floor"];
    assert_eq!(floor["av"], twin["properties"]["desired"]["$version"], "{twin:#}");
    assert_eq!(floor["ad"], json!("floor must be a whole number from -10 to 200"));
}

fn wait_until_counted(data: &Path, query: &str) {
    wait_until("all doors have reported", REPORT_BOUND, || {
        let counted = latch_json(data, &["query", query]);
        (counted == json!([{ "doors": DOORS }])).then_some(())
    });
}

#[test]
fn a_job_starts_when_it_is_told_unless_it_was_cancelled() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _fleet = fleet(data, 3);
    let after = |seconds| time::format(Utc::now() + chrono::Duration::seconds(seconds));
    let schedule = |id: &str, method: &str, start: &str| {
        let created = latch_ok(data, &["job", "method", method, "--query", "*", "--id", id, "--start", start]);
        assert!(created.starts_with(id), "{created}");
    };

    schedule("never", "lockDoor", &after(3600));
    assert_eq!(latch_json(data, &["job", "show", "never"])["status"], json!("scheduled"));
    let cancelled = latch_json(data, &["job", "cancel", "never"]);
    assert_eq!(cancelled["status"], json!("cancelled"), "{cancelled:#}");
    let again = latch(data, &["job", "cancel", "never"]);
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("JobRunPreconditionFailed") && again.stderr.contains("has ended"), "{again:?}");
    let watched = latch(data, &["job", "watch", "never"]);
    assert_eq!(watched.code, Some(4), "{watched:?}");

    let start = after(3);
    schedule("soon", "lockDoor", &start);
    let scheduled = latch_json(data, &["job", "show", "soon"]);
    assert_eq!((&scheduled["status"], &scheduled["startTime"]), (&json!("scheduled"), &json!(start)));
    let job = latch_json(data, &["job", "watch", "soon"]);
    assert_eq!(succeeded(&job), (&json!("completed"), &json!(3), &json!(0)), "{job:#}");
    for row in latch_json(data, &["job", "results", "soon"]).as_array().expect("rows") {
        // Both are in the one format that sorts by time.
        assert!(row["startTimeUtc"].as_str() >= Some(&start), "{row:#} started before {start}");
        // The cancelled job has not moved the doors: this is their first time.
        assert_eq!(row["outcome"]["deviceMethodResponse"]["payload"]["count"], json!(1), "{row:#}");
    }
    let list = latch_ok(data, &["job", "list"]);
    let line = |id: &str| list.lines().find(|line| line.starts_with(id)).unwrap_or_default();
    assert!(line("soon").contains("completed") && line("never").contains("cancelled"), "{list}");
}

#[test]
fn a_job_with_a_failed_device_ends_badly_and_names_it() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _fleet = fleet(data, 3);
    latch_ok(data, &["device", "create", "nobody"]);

    let job = latch(data, &["job", "method", "lockDoor", "--query", "*", "--id", "mixed", "--wait"]);
    assert_eq!(job.code, Some(4), "{job:?}");
    assert_eq!(job.stdout, "mixed completed: 3 of 4 devices succeeded, 1 failed: 1 offline\n");
    assert!(job.stderr.contains("1 device failed") && job.stderr.contains("latch job results mixed --failed"));

    let failed = latch_ok(data, &["job", "results", "mixed", "--failed"]);
    let rows: Vec<_> = failed.lines().skip(1).collect();
    assert_eq!(rows.len(), 1, "{failed}");
    assert!(rows[0].starts_with("nobody") && rows[0].contains("DeviceNotOnline"), "{failed}");
    let rows = latch_json(data, &["job", "results", "mixed"]);
    let completed = rows.as_array().into_iter().flatten().filter(|row| row["status"] == json!("completed"));
    assert_eq!(completed.count(), 3, "{rows:#}");
}

#[test]
fn a_job_whose_condition_makes_no_sense_fails_and_says_where() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _fleet = fleet(data, 1);
    // The hub takes the job and fails it, as Azure's does.
    let job = latch(data, &["job", "method", "lockDoor", "--query", "tags.site = = 'A'", "--id", "odd", "--wait"]);
    assert_eq!(job.code, Some(4), "{job:?}");
    // Counted in the whole query, whose beginning the condition does not have.
    let place = "Line 1:41 Unexpected character at input '='";
    assert!(job.stdout.starts_with("odd failed: ") && job.stdout.contains(place), "{job:?}");
    let shown = latch_json(data, &["job", "show", "odd"]);
    assert!(shown["failureReason"].as_str().is_some_and(|reason| reason.contains(place)), "{shown:#}");
    assert_eq!(latch_json(data, &["job", "results", "odd"]), json!([]));
}
