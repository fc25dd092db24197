//! What is kept of jobs: every attempt at a device, and who did what.

use std::path::Path;
use std::time::Duration;

use durable_store::sql::Connection;
use serde_json::{Value, json};

use crate::back_end::door;
use crate::harness::{FREE_PORTS, Latch, latch, latch_json, latch_ok, plugin_folder, wait_until};

/// Until a device that has connected has answered.
const ANSWERED_BOUND: Duration = Duration::from_secs(60);
/// As `latch help` documents it.
const EXIT_ENDED_BADLY: i32 = 4;

/// A hub of which nothing runs any more, and a trail of four entries in it.
fn trail(data: &Path) {
    let hub = Latch::start(data, &[&["hub", "--devices", "2"], FREE_PORTS].concat());
    let later = ["--query", "*", "--start", "2100-01-01T00:00:00Z"];
    latch_ok(data, &[&["job", "method", "lockDoor", "--id", "one"][..], &later].concat());
    latch_ok(data, &["job", "pause", "one", "--reason", "not now"]);
    latch_ok(data, &["job", "cancel", "one"]);
    latch_ok(data, &[&["job", "twin", "--desired", "{}", "--id", "two"][..], &later].concat());
    let trail = latch_json(data, &["job", "audit", "one"]);
    let entries = trail.as_array().expect("entries").iter();
    let entries: Vec<_> = entries.map(|entry| (entry["number"].as_u64(), &entry["actor"], &entry["action"])).collect();
    let owner = json!("iothubowner");
    let expected = [(3, "cancel"), (2, "pause"), (1, "create")].map(|(number, action)| (Some(number), json!(action)));
    assert_eq!(entries, expected.each_ref().map(|(number, action)| (*number, &owner, action)), "{trail:#}");
    assert_eq!(trail[1]["details"], json!({"reason": "not now"}));
    assert!(trail[2]["details"]["request"].as_str().is_some_and(|name| name.starts_with("sha256:")), "{trail:#}");
    let key = std::fs::read_to_string(data.join("audit.key")).expect("the key of the trail");
    assert!(!trail.to_string().contains(key.trim()));
    hub.stop();
}

#[test]
fn whoever_edits_the_audit_trail_is_found_out() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    trail(data);
    let hub = Latch::start(data, &[&["hub"], FREE_PORTS].concat());
    let checked = latch_ok(data, &["job", "audit", "--verify"]);
    let head = checked.trim_end().strip_prefix("4 entries, head ").unwrap_or_else(|| panic!("{checked}")).to_owned();
    assert!(head.starts_with("4:"), "{head}");
    latch_ok(data, &["job", "audit", "--verify", "--head", &head]);
    latch_ok(data, &["job", "cancel", "two"]);
    latch_ok(data, &["job", "audit", "--verify", "--head", &head]);
    hub.stop();

    let edits = [
        ("UPDATE audit SET actor = 'somebody' WHERE number = 2", "at entry 2: the entry has been changed"),
        ("DELETE FROM audit WHERE number = 2", "at entry 3: entries 2 to 2 are missing"),
        ("DELETE FROM audit WHERE number > 3", "at entry 3: entries 4 to 5 are missing at the end"),
        ("DELETE FROM audit; DELETE FROM audit_ends", "entry 4 of --head is not there"),
        ("UPDATE jobs SET request = replace(request, 'lockDoor', 'openDoor')", "the job one is not what was created"),
    ];
    let whole = std::fs::read(data.join("jobs.db")).expect("the journal");
    for (edit, told) in edits {
        std::fs::write(data.join("jobs.db"), &whole).expect("the journal as it was");
        Connection::open(data.join("jobs.db")).and_then(|database| database.execute_batch(edit)).expect(edit);
        let hub = Latch::start(data, &[&["hub"], FREE_PORTS].concat());
        let outcome = latch(data, &["job", "audit", "--verify", "--head", &head]);
        assert_eq!(outcome.code, Some(EXIT_ENDED_BADLY), "{edit}: {outcome:?}");
        assert!(outcome.stderr.contains(told), "{edit}: {outcome:?}");
        hub.stop();
    }
}

#[test]
fn every_attempt_at_a_device_is_kept_and_results_come_in_every_format() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [data, host_data] = folders.each_ref().map(|folder| folder.path());
    let hub = Latch::start(data, &[&["hub", "--devices", "2"], FREE_PORTS].concat());
    let policy = ["--wait-offline", "1h", "--max-execution", "7200"];
    latch_json(data, &[&["job", "method", "lockDoor", "--query", "*", "--id", "j"][..], &policy].concat());
    let attempts = |number| latch_json(data, &["job", "show", "j", "--device", &door(number)])["attempts"].clone();
    wait_until("both devices were looked for in vain", ANSWERED_BOUND, || {
        [1, 2].iter().all(|number| attempts(*number)[0]["status"] == "failed").then_some(())
    });
    assert_eq!(attempts(2)[0]["failure"], json!("offline"));
    let plugins = plugin_folder(&["lock-door"]);
    let connection = data.join("devices").join(format!("{}.connstr", door(1)));
    let (ca, folder) = (hub.data().join("ca.pem"), plugins.path());
    let [connection, ca, folder] = [&*connection, &*ca, folder].map(|path| path.to_str().expect("a readable name"));
    let _host = Latch::start(host_data, &["run", "--connections", connection, "--ca", ca, "--plugins", folder]);
    let done = wait_until("the device that has connected has answered", ANSWERED_BOUND, || {
        let found = attempts(1);
        let last = found.as_array().and_then(|attempts| attempts.last())?.clone();
        (last["status"] == "completed").then_some(found)
    });
    let done = done.as_array().expect("attempts");
    let numbers: Vec<_> = done.iter().map(|attempt| attempt["attempt"].as_u64()).collect();
    assert_eq!(numbers, (1..=done.len() as u64).map(Some).collect::<Vec<_>>(), "{done:#?}");
    assert!(done[..done.len() - 1].iter().all(|attempt| attempt["error"]["code"] == "DeviceNotOnline"), "{done:#?}");
    latch_ok(data, &["job", "cancel", "j"]);

    let results = |format: &str, more: &[&str]| {
        latch_ok(data, &[&["job", "results", "j", "--format", format][..], more].concat())
    };
    let rows: Value = serde_json::from_str(&results("json", &[])).expect("JSON");
    assert_eq!((rows.as_array().map(Vec::len), &rows[0]["status"]), (Some(2), &json!("completed")));
    assert_eq!(latch_json(data, &["job", "results", "j"]), rows);
    let lines: Vec<Value> =
        results("jsonl", &[]).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(Value::Array(lines), rows);
    assert_eq!(results("jsonl", &["--failed"]), "");
    assert_eq!(results("json", &["--status", "running"]), "[]\n");

    let csv = results("csv", &[]);
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let heading = reader.headers().expect("a heading").clone();
    let records: Vec<_> = reader.records().map(|record| record.expect("a record")).collect();
    let field = |record: &csv::StringRecord, name: &str| {
        let place = heading.iter().position(|known| known == name).unwrap_or_else(|| panic!("no {name} in {csv}"));
        record.get(place).expect("a field").to_owned()
    };
    assert_eq!((field(&records[0], "device"), field(&records[0], "answer_status")), (door(1), "200".to_owned()));
    let payload: Value = serde_json::from_str(&field(&records[0], "payload")).expect("the answer as JSON");
    assert_eq!(payload["locked"], json!(true));
    assert!(!field(&records[0], "duration_ms").is_empty() && !field(&records[0], "queued").is_empty(), "{csv}");
    assert_eq!((field(&records[1], "status"), field(&records[1], "ended").is_empty()), ("canceled".to_owned(), false));
    let all = results("jsonl", &["--attempts", "--class", "offline"]);
    assert!(all.lines().count() > 1 && all.lines().all(|line| line.contains("DeviceNotOnline")), "{all}");
}
