//! A version goes out to a part of the fleet: a bad one comes back by itself, a twin job rolls a good one out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{FREE_PORTS, Latch, guests, latch, latch_json, latch_ok, plugin_folder, wait_until};
use crate::operator;

const DOORS: usize = 40;
/// Doors of site A.
const PINNED: usize = 5;
/// Rounds of calls until the canary is caught. In the fifth, each canary fails.
const ROUNDS: usize = 12;
/// A twin's way to a device and back, the loading of a version by a debug build included.
const FOLLOWED_BOUND: Duration = Duration::from_secs(60);

#[test]
fn a_canary_that_fails_is_caught_and_the_others_never_saw_it() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door"]));
    let (data, plugins) = (data.path(), plugins.path());
    let _latch = fleet(data, plugins);
    let flaky = guests().join("fixtures/flaky-lock-door.wasm");
    let told = latch_ok(data, &["plugin", "swap", "lock-door", path_text(&flaky), "--percent", "20"]);
    assert_eq!(told, "lock-door 3.0.0 is a canary beside 1.0.0\n");
    let by_version = devices_by_version(data);
    let canaries = by_version["3.0.0"];
    assert!((1..=20).contains(&canaries), "20% of 40: {by_version:?}");
    assert_eq!(by_version["1.0.0"], DOORS as u64 - canaries);

    let mut touched = BTreeSet::new();
    let mut failures = 0;
    for round in 0.. {
        assert!(round < ROUNDS, "not caught after {failures} failures");
        for (device, (status, version)) in call_all(data, &format!("round-{round}")) {
            if version == "3.0.0" {
                touched.insert(device);
                failures += usize::from(status == 500);
            } else {
                assert_eq!((&*version, matches!(status, 200 | 409)), ("1.0.0", true), "{device}: {status}");
            }
        }
        if !plugin(data)["withdrawn"].is_null() {
            break;
        }
    }
    assert!(failures > 0 && touched.len() as u64 == canaries, "{canaries} canaries, {failures} failures: {touched:?}");
    let lock_door = plugin(data);
    assert_eq!((&lock_door["canary"], &lock_door["version"]["label"]), (&Value::Null, &json!("1.0.0")));
    assert_eq!(lock_door["withdrawn"]["version"], "3.0.0");
    let list = latch(data, &["plugin", "list"]);
    assert!(
        list.stderr.contains("lock-door 3.0.0 was withdrawn: ") && list.stderr.contains(" calls failed"),
        "{list:?}"
    );

    let after = call_all(data, "after");
    assert!(after.values().all(|(status, version)| matches!(status, 200 | 409) && version == "1.0.0"), "{after:?}");
}

#[test]
fn a_twin_job_rolls_a_version_out_and_it_is_reported_back() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door"]));
    let (data, plugins) = (data.path(), plugins.path());
    let running = fleet(data, plugins);
    let next = guests().join("next/lock-door.wasm");
    latch_ok(data, &["plugin", "swap", "lock-door", path_text(&next)]);
    assert_eq!(latch_ok(data, &["plugin", "rollback", "lock-door"]), "lock-door 2.0.0 -> 1.0.0\n");
    for number in 1..=PINNED {
        latch_ok(data, &["twin", "update", &door(number), "--tags", r#"{"site": "A"}"#]);
    }

    pin_site_a(data, "pin", &json!("2.0.0"));
    let active = json!({"version": "2.0.0", "status": "active", "reason": "pinned by the twin"});
    wait_for_report(data, &active);
    check_versions(data, "pinned", "2.0.0");
    assert_eq!(devices_by_version(data)["2.0.0"], PINNED as u64);

    pin_site_a(data, "pin-unknown", &json!("9.0.0"));
    let reason = "no version 9.0.0 is kept here; there are 2.0.0, 1.0.0";
    wait_for_report(data, &json!({"version": "1.0.0", "status": "unknown-version", "reason": reason}));
    check_versions(data, "unknown", "1.0.0");

    pin_site_a(data, "pin-again", &json!("2.0.0"));
    wait_for_report(data, &active);
    let told = latch_ok(data, &["plugin", "pin", "lock-door", "2.0.0", "--devices", "door-003?"]);
    assert_eq!(told, "lock-door 2.0.0 is pinned for door-003?\n");
    assert!(running.stop().success());
    let _latch = fleet(data, plugins);
    check_versions(data, "restarted", "2.0.0");
    assert_eq!(devices_by_version(data)["2.0.0"], PINNED as u64 + 10, "a pin of the operator's survives, too");

    pin_site_a(data, "unpin", &Value::Null);
    wait_for_report(data, &Value::Null);
    assert_eq!(latch_ok(data, &["plugin", "unpin", "lock-door"]), "lock-door: 1 pins removed\n");
    check_versions(data, "unpinned", "1.0.0");
}

#[test]
fn a_canary_for_a_query_goes_to_the_devices_of_that_moment() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door"]));
    let (data, plugins) = (data.path(), plugins.path());
    let running = fleet(data, plugins);
    for number in 1..=PINNED {
        latch_ok(data, &["twin", "update", &door(number), "--tags", r#"{"site": "A"}"#]);
    }
    let next = guests().join("next/lock-door.wasm");
    let swap = |query: &str| latch(data, &["plugin", "swap", "lock-door", path_text(&next), "--query", query]);
    let nobody = swap("tags.site = 'B'");
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.stderr.starts_with("error: no device meets: tags.site = 'B'\n"), "{nobody:?}");
    assert!(swap("tags.site =").stderr.contains("parse failed"), "no query");
    assert_eq!(plugin(data)["versions"].as_array().map(Vec::len), Some(1), "nothing was kept");

    let told = swap("tags.site = 'A'");
    assert_eq!(told.stdout, "lock-door 2.0.0 is a canary beside 1.0.0 for 5 devices\n", "{told:?}");
    latch_ok(data, &["twin", "update", &door(PINNED + 1), "--tags", r#"{"site": "A"}"#]);
    check_versions(data, "canary", "2.0.0");
    assert!(running.stop().success());
    let _latch = fleet(data, plugins);
    assert_eq!(plugin(data)["canary"]["calls"], json!(PINNED), "the trial goes on");
    check_versions(data, "after-a-restart", "2.0.0");
    let list = latch_ok(data, &["plugin", "list"]);
    assert!(list.contains("canary 100% of 5 devices (tags.site = 'A')"), "{list}");
    let list = latch_ok(data, &["plugin", "list", "lock-door"]);
    assert!(list.contains("door-0001 door-0002 door-0003 door-0004 door-0005  "), "{list}");
    assert!(list.contains("door-0006 door-0007 door-0008 door-0009 door-0010 and 30 more"), "{list}");
    let nobody = latch(data, &["plugin", "list", "lamp"]);
    assert_eq!((nobody.code, nobody.stderr.as_str()), (Some(1), "error: no plugin lamp runs here\n"));

    latch_ok(data, &["plugin", "promote", "lock-door"]);
    let pin = ["plugin", "pin", "lock-door", "1.0.0", "--query", "tags.site = 'A' AND deviceId != 'door-0006'"];
    let told = latch_ok(data, &pin);
    assert!(told.starts_with("lock-door 1.0.0 is pinned for 5 devices (tags.site = 'A'"), "{told}");
    let runs = |version: &'static str, devices: usize| {
        wait_until("the devices follow", FOLLOWED_BOUND, || {
            (devices_by_version(data)[version] == devices as u64).then_some(())
        });
    };
    runs("1.0.0", PINNED);
    assert_eq!(latch_ok(data, &["plugin", "unpin", "lock-door", "--query", pin[5]]), "lock-door: 1 pins removed\n");
    runs("2.0.0", DOORS);
}

#[test]
fn a_version_in_quarantine_stays_there_over_a_restart() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door"]));
    let (data, plugins) = (data.path(), plugins.path());
    let arguments = [&["up", "--devices", "1", "--plugins", path_text(plugins)], FREE_PORTS].concat();
    let running = Latch::start(data, &arguments);
    let crash = guests().join("fixtures/trap.wasm");
    latch_ok(data, &["plugin", "swap", "lock-door", path_text(&crash)]);
    let quarantined = || operator::actors(data)[0]["quarantined"].as_array().map_or(0, Vec::len);
    wait_until("the version is in quarantine", FOLLOWED_BOUND, || {
        latch(data, &["method", "door-0001", "crash"]);
        (quarantined() == 1).then_some(())
    });
    let lock = || latch_json(data, &["method", "door-0001", "lockDoor"])["status"].clone();
    // The version before is loaded once the device asks for it.
    wait_until("the version before is back", FOLLOWED_BOUND, || (lock() == json!(200)).then_some(()));
    running.kill();
    let _latch = Latch::start(data, &arguments);
    assert_eq!(quarantined(), 1);
    let list = latch_ok(data, &["plugin", "list", "lock-door"]);
    assert!(list.ends_with("door-0001  1.0.0         in quarantine: it failed too often\n"), "{list}");
    wait_until("the version before answers", FOLLOWED_BOUND, || (lock() == json!(409)).then_some(()));
    assert_eq!(latch_json(data, &["method", "door-0001", "crash"])["status"], json!(404));
}

fn fleet(data: &Path, plugins: &Path) -> Latch {
    // Instances stay, as the canary fails on the fifth call of one.
    let devices = DOORS.to_string();
    let args = ["up", "--devices", &devices, "--plugins", path_text(plugins), "--idle", "600000"];
    Latch::start(data, &[&args, FREE_PORTS].concat())
}

/// Lock every door; each one's status and the version that answered.
fn call_all(data: &Path, job: &str) -> BTreeMap<String, (i64, String)> {
    latch_ok(data, &["job", "method", "lockDoor", "--query", "*", "--id", job, "--wait"]);
    let results = latch_json(data, &["job", "results", job]);
    let answers = results.as_array().expect("rows").iter().map(|row| {
        let answer = &row["outcome"]["deviceMethodResponse"];
        let version = answer["payload"]["version"].as_str().unwrap_or_else(|| panic!("no version: {row}"));
        let device = row["deviceId"].as_str().expect("a device").to_owned();
        (device, (answer["status"].as_i64().expect("a status"), version.to_owned()))
    });
    let answers: BTreeMap<_, _> = answers.collect();
    assert_eq!(answers.len(), DOORS);
    answers
}

/// The doors of site A are answered by `expected`; the others outside of the operator's pin by 1.0.0.
fn check_versions(data: &Path, job: &str, expected: &str) {
    for (device, (status, version)) in call_all(data, job) {
        let in_site_a = (1..=PINNED).any(|number| door(number) == device);
        let pinned_by_operator = job == "restarted" && device.starts_with("door-003");
        let wanted = if in_site_a {
            expected
        } else if pinned_by_operator {
            "2.0.0"
        } else {
            "1.0.0"
        };
        assert_eq!(version, wanted, "{job}: {device} {status}");
    }
}

/// A twin job over site A.
fn pin_site_a(data: &Path, job: &str, version: &Value) {
    let desired = json!({"latch": {"plugins": {"lock-door": version}}}).to_string();
    latch_ok(data, &["job", "twin", "--desired", &desired, "--query", "tags.site = 'A'", "--id", job, "--wait"]);
}

fn wait_for_report(data: &Path, expected: &Value) {
    wait_until("the doors of site A report their version", FOLLOWED_BOUND, || {
        let query = "SELECT properties.reported.latch AS latch FROM devices WHERE tags.site = 'A'";
        let rows = latch_json(data, &["query", query]);
        let rows = rows.as_array().expect("rows").iter();
        let reported: Vec<_> = rows.map(|row| row["latch"]["plugins"]["lock-door"].clone()).collect();
        (reported.len() == PINNED && reported.iter().all(|report| report == expected)).then_some(())
    });
}

fn devices_by_version(data: &Path) -> BTreeMap<String, u64> {
    let lock_door = plugin(data);
    let versions = lock_door["versions"].as_array().expect("versions").iter();
    let counts = versions.map(|version| {
        (version["label"].as_str().expect("a label").to_owned(), version["devices"].as_u64().expect("a count"))
    });
    counts.collect()
}

fn plugin(data: &Path) -> Value {
    latch_json(data, &["plugin", "list"])[0].clone()
}

fn door(number: usize) -> String {
    format!("door-{number:04}")
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}
