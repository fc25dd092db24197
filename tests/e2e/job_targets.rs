//! Which devices a job is for: lists, and who is left out.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::back_end::door;
use crate::harness::{FREE_PORTS, Latch, Outcome, latch, latch_json, latch_ok, plugin_folder, wait_until};

/// As `latch help` documents it.
const EXIT_ENDED_BADLY: i32 = 4;
/// Until a job has begun.
const BEGUN_BOUND: Duration = Duration::from_secs(30);

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

#[test]
fn a_preview_tells_what_a_job_would_come_to_and_the_job_does() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (data, plugins) = (data.path(), plugin_folder(&["lock-door"]));
    let folder = plugins.path().to_str().expect("a readable name");
    let _latch = Latch::start(data, &[&["up", "--devices", "20", "--plugins", folder], FREE_PORTS].concat());
    for number in 1..=4 {
        latch_ok(data, &["twin", "update", &door(number), "--tags", r#"{"ring": "canary"}"#]);
    }
    latch_ok(data, &["twin", "update", &door(20), "--tags", r#"{"pilot": true}"#]);
    // A device that is not there, and one that may not be.
    let away = data.join("away");
    fs::write(&away, r#"{"id": "away", "status": "disabled"}"#).expect("a file can be written");
    latch_ok(data, &["hub", "import", away.to_str().expect("a readable name")]);
    let waiting = ["--query", "deviceId = 'away'", "--wait-offline", "1h", "--id", "waits"];
    latch_ok(data, &[&["job", "method", "lockDoor"][..], &waiting].concat());
    wait_until("the other job has begun", BEGUN_BOUND, || {
        (latch_json(data, &["job", "show", "waits"])["status"] == "running").then_some(())
    });

    let stages =
        ["--stage", "query:tags.ring = 'canary'", "--stage", "50,100", "--pause", "5m", "--abort-failures", "10%"];
    let job = [&["job", "method", "lockDoor", "--query", "*", "--exclude", "tags.pilot = true"][..], &stages].concat();
    let preview = latch_json(data, &[&job[..], &["--dry-run"]].concat());
    let counts = ["targets", "excluded", "missing", "connected", "listening", "disabled"];
    assert_eq!(counts.map(|name| preview[name].as_u64()), [20, 1, 0, 19, 19, 1].map(Some), "{preview:#}");
    let sizes: Vec<_> = preview["stages"].as_array().expect("stages").iter().map(|stage| &stage["devices"]).collect();
    assert_eq!(sizes, [&json!(4), &json!(6), &json!(10)], "{preview:#}");
    assert_eq!(preview["overlaps"], json!([{"jobId": "waits", "devices": 1}]));
    assert_eq!(preview["seconds"]["least"], json!(600), "two pauses");
    let warnings = preview["warnings"].to_string();
    assert!(warnings.contains("1 of the devices are disabled"), "{warnings}");
    let azure: Vec<_> = preview["cost"].as_array().expect("costs").iter().map(|cost| &cost["messages"]).collect();
    assert_eq!(azure, [&json!(40), &json!(40)], "a request and an answer for each");
    let told = latch_ok(data, &[&job[..], &["--dry-run"]].concat());
    for text in ["also in the job", "waits: 1 devices", "tags.ring = 'canary'  4 ", "Azure would take"] {
        assert!(told.contains(text), "{told}");
    }
    let series = [&job[..], &["--cron", "0 0 1 1 *", "--id", "yearly", "--dry-run"]].concat();
    assert!(latch_ok(data, &series).contains("-01-01T00:00:00.000Z, for the devices that there are then"));
    let wrong = latch(data, &[&job[..], &["--cron", "61 * * * *", "--dry-run"]].concat());
    assert!(wrong.code == Some(1) && wrong.stderr.contains("latch.schedule"), "{wrong:?}");
    let jobs = latch_json(data, &["job", "list"]);
    assert_eq!(jobs.as_array().map(Vec::len), Some(1), "a preview makes no job: {jobs:#}");

    // Modules: by a condition, and in a list with devices and what does not exist.
    for (module, tags) in [("door-0001/a", r#"{"ring": "canary"}"#), ("door-0001/b", r#"{"pilot": true}"#)] {
        latch_ok(data, &["module", "create", module]);
        latch_ok(data, &["twin", "update", module, "--tags", tags]);
    }
    let of_modules = "FROM devices.modules WHERE tags.ring = 'canary'";
    let stages = ["--stage", &format!("query:{of_modules}"), "--stage", "100"];
    let query = ["--query", "FROM devices.modules", "--exclude", "FROM devices.modules WHERE tags.pilot = true"];
    let update = ["job", "twin", "--tags", "{}", "--dry-run"];
    let list = data.join("list");
    fs::write(&list, "door-0001/a\ndoor-0001/b\ndoor-0001/c\ndoor-0002\ngone\n").expect("a file can be written");
    let list = [
        "--list",
        list.to_str().expect("a readable name"),
        "--exclude",
        "FROM devices.modules WHERE tags.pilot = true",
    ];
    for (whom, expected, canaries) in [(query, [1, 1, 0], 1), (list, [4, 1, 2], 1)] {
        let preview = latch_json(data, &[&update[..], &whom, &stages].concat());
        let found = ["targets", "excluded", "missing"].map(|name| preview[name].as_u64());
        assert_eq!((found, &preview["stages"][0]["devices"]), (expected.map(Some), &json!(canaries)), "{preview:#}");
        assert_eq!(preview["sample"][0], "door-0001/a");
    }

    // The canaries go first. Those that are not there are left out.
    let run = ["--stage", "query:tags.ring = 'canary'", "--stage", "100", "--skip-offline", "--id", "staged", "--wait"];
    let job = latch_json(data, &[&["job", "method", "lockDoor", "--query", "deviceId != 'away'"][..], &run].concat());
    assert_eq!(job["deviceJobStatistics"]["succeededCount"], json!(20), "{job:#}");
    let first = latch_json(data, &["query", "SELECT * FROM devices.jobs WHERE jobId = 'staged'"]);
    let first = first.as_array().expect("rows").iter().filter(|row| row["latch"]["stage"] == json!(1));
    let mut first: Vec<_> = first.map(|row| row["deviceId"].as_str().expect("an id").to_owned()).collect();
    first.sort();
    assert_eq!(first, [1, 2, 3, 4].map(door));
}

#[test]
fn a_preview_of_a_long_list_goes_in_parts() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = Latch::start(data, &[&["hub", "--devices", "5"], FREE_PORTS].concat());
    let list = data.join("list");
    let ids: String = (0..25_000).map(|number| format!("gone-{number}\n")).collect();
    let doors: String = (1..=5).map(|number| format!("{}\n", door(number))).collect();
    fs::write(&list, ids + &doors).expect("a file can be written");
    let excluded = data.join("excluded");
    fs::write(&excluded, format!("{}\ngone-7\n", door(1))).expect("a file can be written");
    let [list, excluded] = [&list, &excluded].map(|path| path.to_str().expect("a readable name"));
    let job = ["job", "twin", "--tags", "{}", "--list", list, "--exclude-list", excluded, "--dry-run"];
    let preview = latch_json(data, &job);
    let counts = ["targets", "excluded", "missing", "disabled"].map(|name| preview[name].as_u64());
    assert_eq!(counts, [25_003, 2, 24_999, 0].map(Some), "{preview:#}");
    assert_eq!(preview["sample"].as_array().map(Vec::len), Some(10));
    assert_eq!(latch_json(data, &["job", "list"]), json!([]));
    let outcome = latch(data, &["job", "method", "m", "--query", "tags.", "--dry-run"]);
    assert!(outcome.code == Some(1) && outcome.stderr.contains("SQL query parse failed"), "{outcome:?}");
}

#[test]
fn devices_and_modules_that_come_to_match_join_a_continuous_job_once() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let hub = Latch::start(data, &[&["hub", "--devices", "3"], FREE_PORTS].concat());
    let tag = |id: &str, tags: &str| latch_ok(data, &["twin", "update", id, "--tags", tags]);
    tag(&door(1), r#"{"site": "A"}"#);
    tag(&door(3), r#"{"site": "B", "pilot": true}"#);
    let update = ["job", "twin", "--tags", r#"{"seen": 1}"#, "--continuous", "--max-execution", "3600"];
    let devices = ["--query", "tags.site = 'A'", "--exclude", "tags.pilot = true", "--id", "doors"];
    let rows = ["--query", "FROM devices.modules WHERE tags.lock = true", "--stage", "50,100", "--id", "locks"];
    let preview = latch_json(data, &[&update[..], &devices, &["--dry-run"]].concat());
    assert_eq!((&preview["targets"], &preview["continuousForSeconds"]), (&json!(1), &json!(3600)));
    let told = latch_ok(data, &[&update[..], &devices, &["--dry-run"]].concat());
    assert!(told.contains("with devices that come to match meanwhile"), "{told}");
    for options in [devices, rows] {
        latch_ok(data, &[&update[..], &options].concat());
    }
    let show = |id: &str| latch_json(data, &["job", "show", id]);
    let succeeded = |id: &str, count: u64| {
        let what = format!("{count} have come to {id}");
        wait_until(&what, BEGUN_BOUND, || {
            let job = show(id);
            let counts = &job["deviceJobStatistics"];
            let is_it = counts["succeededCount"] == json!(count) && counts["deviceCount"] == json!(count);
            (is_it && job["status"] == "running").then_some(job)
        })
    };
    let job = succeeded("doors", 1);
    assert_eq!(job["latch"]["targets"]["continuous"], json!(true), "{job:#}");
    let until = job["latch"]["progress"]["continuousUntil"].as_str().expect("a time").to_owned();
    let report = latch_ok(data, &["job", "report", "doors"]);
    assert!(report.contains("continuous until 2"), "{report}");
    assert_eq!(latch_json(data, &["job", "report", "doors"])["continuousUntil"], json!(until));

    // A twin changes, a device is made, and one that leaves and comes back is not asked again.
    tag(&door(2), r#"{"site": "A"}"#);
    succeeded("doors", 2);
    tag(&door(2), r#"{"site": "B", "seen": null}"#);
    tag(&door(2), r#"{"site": "A"}"#);
    tag(&door(3), r#"{"site": "A"}"#);
    let new = data.join("new");
    fs::write(&new, r#"{"id": "new", "tags": {"site": "A"}}"#).expect("a file can be written");
    latch_ok(data, &["hub", "import", new.to_str().expect("a readable name")]);
    succeeded("doors", 3);
    let seen = latch_json(data, &["query", "SELECT deviceId FROM devices WHERE tags.seen = 1"]);
    assert_eq!(seen, json!([{"deviceId": door(1)}, {"deviceId": "new"}]));
    // Modules are a job's over modules.
    let module = format!("{}/lock", door(1));
    latch_ok(data, &["module", "create", &module]);
    tag(&module, r#"{"lock": true, "site": "A"}"#);
    let job = succeeded("locks", 1);
    assert_eq!(job["latch"]["progress"]["stage"], json!(2), "{job:#}");

    // It goes on after the hub was killed, and ends when it is told to.
    hub.kill();
    let hub = Latch::start(data, &[&["hub", "--devices", "3"], FREE_PORTS].concat());
    tag(&door(3), r#"{"pilot": null}"#);
    let job = succeeded("doors", 4);
    assert_eq!(job["latch"]["progress"]["continuousUntil"], json!(until));
    latch_ok(data, &["job", "pause", "locks"]);
    assert_eq!(show("locks")["latch"]["progress"]["continuousUntil"], json!(null));
    let cancelled = latch_json(data, &["job", "cancel", "doors"]);
    assert_eq!(
        (&cancelled["status"], &cancelled["deviceJobStatistics"]["deviceCount"]),
        (&json!("cancelled"), &json!(4))
    );
    drop(hub);
}

#[test]
fn a_continuous_job_ends_with_its_time() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = Latch::start(data, &[&["hub", "--devices", "1"], FREE_PORTS].concat());
    let job = ["job", "twin", "--tags", r#"{"seen": 1}"#, "--query", "*", "--continuous", "--max-execution", "3"];
    let job = latch_json(data, &[&job[..], &["--wait"]].concat());
    let took = ["startTime", "endTime"].map(|name| job[name].as_str().and_then(iothub_protocol::time::parse));
    let [Some(began), Some(ended)] = took else { panic!("{job:#}") };
    assert!((ended - began).num_milliseconds() >= 3000, "{job:#}");
    assert_eq!((&job["status"], &job["deviceJobStatistics"]["succeededCount"]), (&json!("completed"), &json!(1)));
    let list = data.join("list");
    fs::write(&list, door(1)).expect("a file can be written");
    let list = ["--list", list.to_str().expect("a readable name"), "--continuous"];
    let refused = latch(data, &[&["job", "method", "lockDoor"][..], &list].concat());
    assert!(refused.stderr.contains("cannot be used with"), "{refused:?}");
}
