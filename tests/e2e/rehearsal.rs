//! Rehearsals: the limits of a tier and bad days, from the command line, with devices that Latch itself runs.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{FREE_PORTS, Latch, latch, latch_json, latch_ok, plugin_folder, wait_until};

/// From a broken link to a device that is back, on a busy machine.
const BACK_BOUND: Duration = Duration::from_secs(60);

/// Five doors and their plugins.
struct Doors {
    data: TempDir,
    plugins: TempDir,
}

impl Doors {
    fn new() -> Doors {
        let data = tempfile::tempdir().expect("a temporary folder");
        Doors { data, plugins: plugin_folder(&["lock-door", "building"]) }
    }

    fn up(&self) -> Latch {
        let plugins = self.plugins.path().to_str().expect("a readable name");
        Latch::start(self.data.path(), &[&["up", "--devices", "5", "--plugins", plugins], FREE_PORTS].concat())
    }
}

/// The bad days under way.
fn bad_days(data: &Path) -> Vec<Value> {
    latch_json(data, &["hub", "rehearse", "list"])["badDays"].as_array().expect("an array").clone()
}

fn count(data: &Path, condition: &str) -> u64 {
    let query = format!("SELECT COUNT() AS n FROM devices WHERE {condition}");
    latch_json(data, &["query", &query])[0]["n"].as_u64().expect("a count")
}

#[test]
fn a_fleet_comes_back_from_bad_days() {
    let doors = Doors::new();
    let data = doors.data.path();
    let latch = doors.up();
    for day in ["reconnect-storm", "token-cut", "take-over"] {
        let since = latch_ok(data, &["events", "--kind", "connected"]).lines().count();
        let length: &[&str] = if day == "reconnect-storm" { &[] } else { &["--for", "2s"] };
        let begun = latch_json(data, &[&["hub", "rehearse", day, "--seed", "7"], length].concat());
        assert_eq!((&begun["name"], &begun["seed"]), (&json!(day), &json!("7")));
        if day != "take-over" {
            wait_until("each device has come back", BACK_BOUND, || {
                let events = latch_ok(data, &["events", "--kind", "connected"]);
                (events.lines().count() >= since + 5).then_some(())
            });
        }
        wait_until("the day is over", BACK_BOUND, || bad_days(data).is_empty().then_some(()));
        wait_until("all are there", BACK_BOUND, || (count(data, "connectionState = 'Connected'") == 5).then_some(()));
        latch_ok(data, &["job", "method", "lockDoor", "--query", "*", "--wait"]);
    }
    assert!(latch.stop().success());
}

#[test]
fn a_device_finds_out_what_it_was_not_told() {
    let doors = Doors::new();
    let data = doors.data.path();
    let _latch = doors.up();
    latch_ok(data, &["hub", "rehearse", "lost-notices", "--percent", "100", "--for", "10m"]);
    latch_ok(data, &["job", "twin", "--desired", r#"{"building": "43"}"#, "--query", "*", "--wait"]);
    let days = bad_days(data);
    assert_eq!((&days[0]["name"], &days[0]["count"]), (&json!("lost-notices"), &json!(5)));
    assert_eq!(latch_ok(data, &["hub", "rehearse", "stop"]), "stopped 1 bad day\n");
    assert_eq!(count(data, "IS_DEFINED(properties.reported.building)"), 0);

    latch_ok(data, &["job", "twin", "--desired", r#"{"floor": 3}"#, "--query", "*", "--wait"]);
    wait_until("each device has both", BACK_BOUND, || {
        let both = "IS_DEFINED(properties.reported.building) AND IS_DEFINED(properties.reported.floor)";
        (count(data, both) == 5).then_some(())
    });
}

#[test]
fn a_tier_has_one_job_at_a_time_and_its_count_goes_on_after_a_restart() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let hub = |ports: &[&str]| {
        Latch::start(data, &[&["hub", "--devices", "1", "--tier", "s1", "--units", "2"], ports].concat())
    };
    let first = hub(FREE_PORTS);
    let method = ["job", "method", "m", "--query", "*", "--connect-timeout", "300"];
    latch_ok(data, &[&method[..], &["--id", "one"]].concat());
    let refused = latch(data, &[&method[..], &["--id", "two"]].concat());
    assert!(refused.stderr.contains("ThrottlingMaxActiveJobCountExceeded"), "{refused:#?}");
    latch_ok(data, &["twin", "show", "door-0001"]);
    let tier = |data| latch_json(data, &["hub", "rehearse", "list"])["tier"].clone();
    let before = tier(data);
    assert_eq!((&before["tier"], &before["units"], &before["dailyQuota"]), (&json!("S1"), &json!(2), &json!(800_000)));
    assert!(before["messagesToday"].as_u64().is_some_and(|messages| messages > 0), "{before}");
    let ports = first.same_ports();
    assert!(first.stop().success());

    let ports: Vec<_> = ports.iter().map(String::as_str).collect();
    let _second = hub(&ports);
    let (before, after) = (before["messagesToday"].as_u64(), tier(data)["messagesToday"].as_u64());
    assert!(after >= before, "{before:?} {after:?}");
}

#[test]
fn what_cannot_be_rehearsed_says_why() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    for (args, expected) in [
        (&["hub", "--tier", "F1", "--devices", "501"][..], "a hub of the tier F1 has at most 500 devices, not 501"),
        (&["hub", "--tier", "S3", "--units", "11"], "a hub of the tier S3 has 1 to 10 units"),
        (&["hub", "--tier", "B1"], "the tiers are F1, S1, S2 and S3"),
        (&["hub", "--units", "2"], "--tier"),
        (&["hub", "rehearse", "silence"], "no latch runs here"),
    ] {
        let outcome = latch(data, args);
        assert!(outcome.code != Some(0) && outcome.stderr.contains(expected), "{args:?}: {outcome:#?}");
    }
    let _hub = Latch::start(data, &[&["hub"], FREE_PORTS].concat());
    for (args, expected) in [
        (&["reconnect-storm", "--for", "1s"][..], "a reconnect storm is one moment and has no length"),
        (&["silence", "--for", "25h"], "a bad day lasts from 1 ms to 24 h"),
        (&["slow-hub", "--min", "2s", "--max", "1s"], "--min is longer than --max"),
        (&["stop", "7"], "there is no bad day \"7\" under way"),
    ] {
        let outcome = latch(data, &[&["hub", "rehearse"], args].concat());
        assert!(outcome.code != Some(0) && outcome.stderr.contains(expected), "{args:?}: {outcome:#?}");
    }
}
