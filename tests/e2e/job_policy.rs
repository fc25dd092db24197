//! What a job's policy makes of devices that are not there, and of answers that are none to be content with.

use std::path::Path;
use std::time::Duration;

use iothub_protocol::time;
use serde_json::{Value, json};

use crate::back_end::door;
use crate::harness::{FREE_PORTS, Latch, latch, latch_json, plugin_folder, wait_until};

/// Until a device that has connected has answered.
const ANSWERED_BOUND: Duration = Duration::from_secs(60);

fn row(data: &Path, job: &str, device: &str) -> Value {
    let query = format!("SELECT * FROM devices.jobs WHERE jobId = '{job}' AND deviceId = '{device}'");
    latch_json(data, &["query", &query])[0].clone()
}

fn moment(value: &Value) -> chrono::DateTime<chrono::Utc> {
    value.as_str().and_then(time::parse).unwrap_or_else(|| panic!("{value} is no time"))
}

#[test]
fn a_device_that_connects_late_has_its_turn_then_and_not_at_the_next_look() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [data, host_data] = folders.each_ref().map(|folder| folder.path());
    let hub = Latch::start(data, &[&["hub", "--devices", "2"], FREE_PORTS].concat());
    let policy = ["--wait-offline", "1h", "--skip-offline"];
    latch_json(data, &[&["job", "method", "lockDoor", "--query", "*", "--id", "late"][..], &policy].concat());
    // When the first is looked for again, as long as it has not connected.
    let mut next = wait_until("both devices were looked for in vain", ANSWERED_BOUND, || {
        let rows = [1, 2].map(|number| row(data, "late", &door(number)));
        let all_wait = rows.iter().all(|row| row["status"] == "pending" && row["latch"]["nextAttempt"].is_string());
        all_wait.then(|| moment(&rows[0]["latch"]["nextAttempt"]))
    });

    let plugins = plugin_folder(&["lock-door"]);
    let connection = data.join("devices").join(format!("{}.connstr", door(1)));
    let (ca, folder) = (hub.data().join("ca.pem"), plugins.path());
    let [connection, ca, folder] = [&*connection, &*ca, folder].map(|path| path.to_str().expect("a readable name"));
    let _host = Latch::start(host_data, &["run", "--connections", connection, "--ca", ca, "--plugins", folder]);
    let done = wait_until("the device that has connected has answered", ANSWERED_BOUND, || {
        let row = row(data, "late", &door(1));
        next = row["latch"].get("nextAttempt").map_or(next, moment);
        (row["status"] == "completed").then_some(row)
    });
    assert_eq!(done["outcome"]["deviceMethodResponse"]["status"], json!(200), "{done:#}");
    assert!(moment(&done["endTimeUtc"]) < next, "{next}: {done:#}");
    assert_eq!(row(data, "late", &door(2))["status"], "pending");

    // Nobody waits for ever.
    let ended = latch_json(data, &["job", "method", "lockDoor", "--query", "*", "--skip-offline", "--wait"]);
    assert_eq!(ended["status"], "completed", "{ended:#}");
    let id = ended["jobId"].as_str().expect("an id");
    let skipped = row(data, id, &door(2));
    assert_eq!((&skipped["status"], &skipped["error"]["code"]), (&json!("canceled"), &json!("DeviceWasOffline")));
}

#[test]
fn answers_that_are_none_to_be_content_with_stop_a_job() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (data, plugins) = (data.path(), plugin_folder(&["lock-door"]));
    let folder = plugins.path().to_str().expect("a readable name");
    let _latch = Latch::start(data, &[&["up", "--devices", "40", "--plugins", folder], FREE_PORTS].concat());
    let lock = ["job", "method", "lockDoor", "--query", "*"];
    let content = ["--success-status", "200-299", "--retry", "timeout:3", "--fail-in-doubt"];
    let ended = latch_json(data, &[&lock[..], &content, &["--wait"]].concat());
    assert_eq!(ended["deviceJobStatistics"]["succeededCount"], json!(40), "{ended:#}");

    // They are locked, and answer 409.
    let stop = ["--abort-failures", "10%", "--abort-on", "answer", "--rate", "20", "--id", "again"];
    let outcome = latch(data, &[&lock[..], &content, &stop, &["--wait"]].concat());
    assert_eq!(outcome.code, Some(EXIT_ENDED_BADLY), "{outcome:?}");
    let told = " (10 of 10 devices failed by answer, more than 10%; door-";
    assert!(outcome.stdout.contains(told) && outcome.stdout.contains(": it answered 409)"), "{outcome:?}");
    let rows = latch_json(data, &["query", "SELECT * FROM devices.jobs WHERE jobId = 'again' AND status = 'failed'"]);
    for row in rows.as_array().expect("rows") {
        let answer = &row["outcome"]["deviceMethodResponse"]["status"];
        assert_eq!((answer, &row["latch"]["failure"]), (&json!(409), &json!("answer")), "{row:#}");
    }
}

/// As `latch help` documents it.
const EXIT_ENDED_BADLY: i32 = 4;
