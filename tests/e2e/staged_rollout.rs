//! A job pins a version on a fleet stage by stage: a bad one stops it by itself, a good one reaches everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{FREE_PORTS, Latch, guests, latch, latch_json, latch_ok, plugin_folder, wait_until};

const DOORS: usize = 60;
/// 5% of them.
const FIRST_STAGE: usize = 3;
/// Rounds of calls until the bad version is found out. Ten are enough, once each door of the stage runs it.
const ROUNDS: usize = 60;
/// A twin's way to a device and back for a whole fleet, and the looks at it, by a debug build.
const FOLLOWED_BOUND: Duration = Duration::from_secs(60);

#[test]
fn a_version_that_fails_a_fifth_of_its_calls_stops_itself_and_most_doors_never_run_it() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door"]));
    let data = data.path();
    let _latch = fleet(data, plugins.path());
    keep_version(data, "fixtures/flaky-lock-door");
    let policy = ["--stage", "5,50,100", "--soak", "10m", "--abort-failures", "10%", "--minimum", "20"];
    let rollout = ["plugin", "rollout", "lock-door", "3.0.0", "--query", "*", "--id", "out", "--unpin-on-abort"];
    assert_eq!(latch_ok(data, &[&rollout[..], &policy].concat()), "out queued\n");

    let mut touched = BTreeSet::new();
    for round in 0.. {
        assert!(round < ROUNDS, "not stopped: {:#}", job(data));
        let answers = call_all(data, &format!("round-{round}"));
        touched.extend(answers.into_iter().filter(|(_, version)| version == "3.0.0").map(|(device, _)| device));
        let job = job(data);
        if job["status"] != "running" && job["status"] != "queued" {
            break;
        }
        let progress = &job["latch"]["progress"];
        assert_eq!((&progress["stage"], &progress["stages"]), (&json!(1), &json!(3)), "{job:#}");
    }
    assert_eq!(touched.len(), FIRST_STAGE, "only the first stage ran it: {touched:?}");
    assert!(touched.len() * 10 <= DOORS, "at least 90% never ran it");

    let ended = job(data);
    let reason = ended["failureReason"].as_str().expect("a reason");
    assert_eq!(ended["status"], "failed", "{ended:#}");
    assert!(reason.starts_with("stage 1 of 3 (5%): ") && reason.contains(" of 3 devices failed, "), "{reason}");
    assert!(reason.contains("3.0.0 failing: 2 of its last 10 calls failed"), "{reason}");
    let rows = latch_json(data, &["job", "results", "out"]);
    let mut outcomes: BTreeMap<_, usize> = BTreeMap::new();
    for row in rows.as_array().expect("rows") {
        let was_reached = touched.contains(row["deviceId"].as_str().expect("a device"));
        let outcome = (was_reached, row["error"]["code"].as_str().unwrap_or("none"), row["status"].as_str());
        *outcomes.entry(outcome).or_default() += 1;
    }
    assert_eq!(outcomes[&(false, "JobAborted", Some("canceled"))], DOORS - FIRST_STAGE, "{outcomes:?}");
    assert!(outcomes[&(true, "PluginVersionFailed", Some("failed"))] > 0, "{outcomes:?}");
    let watched = latch(data, &["job", "watch", "out"]);
    assert_eq!(watched.code, Some(4), "{watched:?}");
    assert!(watched.stdout.starts_with("out failed: 0 of 60 devices succeeded, ") && watched.stdout.contains(reason));
    assert!(watched.stdout.contains(" left out ("), "{watched:?}");

    wait_until("the pins are gone", FOLLOWED_BOUND, || {
        let twins = latch_json(data, &["query", "SELECT deviceId, properties.desired.latch AS latch FROM devices"]);
        let twins = twins.as_array().expect("rows").iter();
        twins.map(|twin| &twin["latch"]["plugins"]["lock-door"]).all(Value::is_null).then_some(())
    });
    let mut round = 0;
    wait_until("the version before answers everywhere", FOLLOWED_BOUND, || {
        round += 1;
        call_all(data, &format!("after-{round}")).values().all(|version| version == "1.0.0").then_some(())
    });
}

#[test]
fn a_good_version_goes_through_all_stages_also_over_a_crash() {
    let (data, plugins) = (tempfile::tempdir().expect("a temporary folder"), plugin_folder(&["lock-door"]));
    let data = data.path();
    let running = fleet(data, plugins.path());
    keep_version(data, "next/lock-door");
    let desired = json!({"latch": {"plugins": {"lock-door": "2.0.0"}}}).to_string();
    let policy = ["--stage", "5,50,100", "--success-by", "plugin:lock-door", "--soak", "2s", "--abort-failures", "0%"];
    let create = ["job", "twin", "--desired", &desired, "--query", "*", "--id", "out"];
    latch_ok(data, &[&create[..], &policy].concat());
    wait_until("the second stage has begun", FOLLOWED_BOUND, || {
        (job(data)["latch"]["progress"]["stage"] == json!(2)).then_some(())
    });
    running.kill();
    let _latch = fleet(data, plugins.path());
    let told = latch_ok(data, &["job", "watch", "out"]);
    assert_eq!(told, "out completed: 60 of 60 devices succeeded\n");
    let ended = job(data);
    assert_eq!(ended["latch"]["progress"], json!({"stage": 3, "stages": 3}));
    let stage = |percent: u8| json!({"percent": percent, "successThreshold": 90, "pauseInSeconds": 0});
    let policy = json!({
        "stages": [stage(5), stage(50), stage(100)],
        "abort": [{"failurePercent": 0, "minimum": 10}],
        "succeed": {"plugin": "lock-door", "soakInSeconds": 2, "timeoutInSeconds": 600},
        "offline": {"waitInSeconds": 0, "then": "fail"}, "inDoubt": "again", "onAbort": "keep",
    });
    assert_eq!((&ended["latch"]["version"], &ended["latch"]["policy"]), (&json!(1), &policy));
    let answers = call_all(data, "after");
    assert!(answers.values().all(|version| version == "2.0.0"), "{answers:?}");
    let stages = latch_json(data, &["query", "SELECT * FROM devices.jobs WHERE jobId = 'out' AND latch.stage = 1"]);
    assert_eq!(stages.as_array().map(Vec::len), Some(FIRST_STAGE));
}

fn fleet(data: &Path, plugins: &Path) -> Latch {
    // Instances stay, as the bad version fails on the fifth call of one.
    let (devices, plugins) = (DOORS.to_string(), plugins.to_str().expect("paths of tests are text"));
    Latch::start(data, &[&["up", "--devices", &devices, "--plugins", plugins, "--idle", "600000"], FREE_PORTS].concat())
}

/// Have the host keep a version that no device runs.
fn keep_version(data: &Path, component: &str) {
    let file = guests().join(format!("{component}.wasm"));
    let file = file.to_str().expect("paths of tests are text");
    latch_ok(data, &["plugin", "swap", "lock-door", file, "--devices", "none"]);
    latch_ok(data, &["plugin", "rollback", "lock-door"]);
}

fn job(data: &Path) -> Value {
    latch_json(data, &["job", "show", "out"])
}

/// Lock every door; the version that answered each, or failed to.
fn call_all(data: &Path, id: &str) -> BTreeMap<String, String> {
    latch_ok(data, &["job", "method", "lockDoor", "--query", "*", "--id", id, "--wait"]);
    let results = latch_json(data, &["job", "results", id]);
    let answers = results.as_array().expect("rows").iter().map(|row| {
        let version = row["outcome"]["deviceMethodResponse"]["payload"]["version"].as_str();
        let version = version.unwrap_or_else(|| panic!("no version: {row}"));
        (row["deviceId"].as_str().expect("a device").to_owned(), version.to_owned())
    });
    let answers: BTreeMap<_, _> = answers.collect();
    assert_eq!(answers.len(), DOORS);
    answers
}
