//! Which devices a job is for: lists, and who is left out.

use std::fs;

use serde_json::{Value, json};

use crate::back_end::door;
use crate::harness::{FREE_PORTS, Latch, Outcome, latch, latch_json, latch_ok};

/// As `latch help` documents it.
const EXIT_ENDED_BADLY: i32 = 4;

fn job_of(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

#[test]
fn a_long_list_with_devices_modules_and_ids_that_do_not_exist() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = Latch::start(data, &[&["hub", "--devices", "20"], FREE_PORTS].concat());
    latch_ok(data, &["module", "create", &format!("{}/lock", door(1))]);
    latch_ok(data, &["module", "create", &format!("{}/lock", door(2))]);
    for number in [2, 3] {
        latch_ok(data, &["twin", "update", &door(number), "--tags", r#"{"pilot": true}"#]);
    }
    let file = |name: &str, text: String| {
        let path = data.join(name);
        fs::write(&path, text).expect("a file can be written");
        path.to_str().expect("a readable name").to_owned()
    };
    let missing: String = (0..1500).map(|number| format!("gone-{number},x\n")).collect();
    let doors: String = (1..=20).map(|number| format!("{},43\n", door(number))).collect();
    let modules = format!("{}/lock\n{}/lock\n", door(1), door(2));
    let list = file("doors.csv", format!("deviceId,building\n{doors}{modules}# twice\n{}\n{missing}", door(1)));
    let excluded = file("excluded", format!("{}\n{}\n", door(2), door(20)));

    let tags = ["job", "twin", "--tags", r#"{"seen": 1}"#];
    let options = ["--list", &list, "--exclude", "tags.pilot = true", "--exclude-list", &excluded, "--id", "list"];
    let outcome = latch(data, &[&tags[..], &options, &["--wait", "--json"]].concat());
    assert_eq!(outcome.code, Some(EXIT_ENDED_BADLY), "{outcome:?}");
    assert!(outcome.stderr.contains(":25: door-0001, as in line 2"), "{outcome:?}");
    assert!(outcome.stderr.contains("taken for a heading: deviceId,building"), "{outcome:?}");
    let job = job_of(&outcome);
    // Left out: both pilots, one of which is listed as well, its module, and the last.
    let (counts, progress) = (&job["deviceJobStatistics"], &job["latch"]["progress"]);
    assert_eq!((&counts["succeededCount"], &counts["failedCount"]), (&json!(18), &json!(1500)), "{job:#}");
    assert_eq!(progress["excluded"], json!(4), "{job:#}");
    let failed = "SELECT * FROM devices.jobs WHERE jobId = 'list' AND status = 'failed' AND deviceId = 'gone-7'";
    assert_eq!(latch_json(data, &["query", failed])[0]["error"]["code"], "DeviceNotFound");
    let seen = latch_json(data, &["query", "SELECT deviceId FROM devices WHERE tags.seen = 1"]);
    assert_eq!(seen.as_array().map(Vec::len), Some(17));
    let seen = latch_json(data, &["query", "SELECT deviceId FROM devices.modules WHERE tags.seen = 1"]);
    assert_eq!(seen, json!([{"deviceId": door(1)}]));

    // A short one goes with the job itself.
    let short = file("short", format!("{}\n", door(5)));
    let job = latch_json(data, &[&tags[..], &["--list", &short, "--wait"]].concat());
    assert_eq!(job["latch"]["targets"], json!({"devices": [door(5)]}), "{job:#}");
    let modules = "FROM devices.modules WHERE moduleId = 'lock'";
    let options = ["--query", modules, "--exclude", "FROM devices.modules WHERE tags.seen = 1", "--wait"];
    let job = latch_json(data, &[&tags[..], &options].concat());
    let counts = (&job["deviceJobStatistics"]["succeededCount"], &job["latch"]["progress"]["excluded"]);
    assert_eq!(counts, (&json!(1), &json!(1)), "{job:#}");
}

#[test]
fn a_wrong_list_is_told_whole_and_makes_no_job() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = Latch::start(data, &[&["hub", "--devices", "1"], FREE_PORTS].concat());
    let list = data.join("list");
    fs::write(&list, "door-0001\nno door\n\n# fine\n/m\n").expect("a file can be written");
    let list = list.to_str().expect("a readable name");
    let outcome = latch(data, &["job", "method", "lockDoor", "--list", list]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    for told in [":2: a device id contains ' '", ":5: a device id is empty"] {
        assert!(outcome.stderr.contains(told), "{outcome:?}");
    }
    for (options, told) in [
        (&["--list", list, "--query", "*"][..], "cannot be used with"),
        (&[], "--query"),
        (&["--query", "*", "--exclude", "*"], "nothing would be left"),
        (&["--query", "*", "--exclude", "tags."], "latch.targets.exclude.condition: SQL query parse failed"),
        (&["--list", "-", "--exclude-list", "-"], "cannot both be read from stdin"),
    ] {
        let outcome = latch(data, &[&["job", "method", "lockDoor"][..], options].concat());
        assert!(outcome.code != Some(0) && outcome.stderr.contains(told), "{options:?}: {outcome:?}");
    }
    assert_eq!(latch_json(data, &["job", "list"]), json!([]));
}
