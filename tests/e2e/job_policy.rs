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
    // Before the job: to make them can take longer than the job's first wait.
    let plugins = plugin_folder(&["lock-door"]);
    let hub = Latch::start(data, &[&["hub", "--devices", "2"], FREE_PORTS].concat());
    let policy = ["--wait-offline", "1h", "--skip-offline"];
    latch_json(data, &[&["job", "method", "lockDoor", "--query", "*", "--id", "late"][..], &policy].concat());
    // When the first is looked for again, as long as it has not connected.
    let mut next = wait_until("both devices were looked for in vain", ANSWERED_BOUND, || {
        let rows = [1, 2].map(|number| row(data, "late", &door(number)));
        let all_wait = rows.iter().all(|row| row["status"] == "pending" && row["latch"]["nextAttempt"].is_string());
        all_wait.then(|| moment(&rows[0]["latch"]["nextAttempt"]))
    });

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

#[test]
fn a_rollout_that_fails_in_one_building_pauses_names_it_and_goes_on_with_the_rest_once_it_is_mended() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (data, plugins) = (data.path(), plugin_folder(&["lock-door"]));
    let folder = plugins.path().to_str().expect("a readable name");
    let _latch = Latch::start(data, &[&["up", "--devices", "40", "--plugins", folder], FREE_PORTS].concat());
    // Ten doors in building 43, which are locked already and so answer 409.
    let quoted: Vec<_> = (1..=10).map(|number| format!("'{}'", door(number))).collect();
    let in_43 = format!("deviceId IN [{}]", quoted.join(", "));
    let tag = |building: &str, query: &str| {
        latch_json(
            data,
            &["job", "twin", "--tags", &json!({"building": building}).to_string(), "--query", query, "--wait"],
        )
    };
    tag("44", "*");
    tag("43", &in_43);
    latch_json(data, &["job", "method", "lockDoor", "--query", &in_43, "--wait"]);

    let staged = ["--stage", "50,100", "--stage-success", "0", "--stage-approval", "--rate", "20"];
    let by_building = ["--group-by", "tags.building", "--abort-failures", "30%", "--abort-per-group", "--minimum", "3"];
    let lock =
        ["job", "method", "lockDoor", "--query", "*", "--id", "lock", "--success-status", "200", "--pause-on-abort"];
    latch_json(data, &[&lock[..], &staged, &by_building].concat());
    let shown = || latch_json(data, &["job", "show", "lock"]);
    let paused = |by: &str| {
        wait_until(&format!("the job is paused by its {by}"), ANSWERED_BOUND, || {
            let job = shown();
            (job["latch"]["progress"]["paused"]["by"] == by).then_some(job)
        })
    };
    let job = paused("rule");
    let progress = &job["latch"]["progress"];
    let reason = progress["paused"]["reason"].as_str().expect("a reason");
    assert_eq!((&job["status"], &progress["stage"]), (&json!("running"), &json!(1)), "{job:#}");
    assert!(reason.contains(" devices of 43 failed, more than 30%; by tags.building: 43: "), "{reason}");
    // What was out when the rule broke is taken, too.
    let settled = wait_until("nothing is out", ANSWERED_BOUND, || {
        let job = shown();
        (job["deviceJobStatistics"]["runningCount"] == 0).then_some(job)
    });
    let failed = settled["deviceJobStatistics"]["failedCount"].as_u64().expect("a count");
    let report = latch(data, &["job", "report", "lock"]);
    let line = report.stdout.lines().nth(1).unwrap_or_default();
    assert!(report.stdout.starts_with("TAGS.BUILDING") && line.starts_with("43 "), "{report:?}");
    assert!(line.ends_with(&format!("{failed} answer")), "{report:?}");

    latch_json(data, &["job", "method", "unlockDoor", "--query", &in_43, "--wait"]);
    let told = latch(data, &["job", "resume", "lock"]);
    assert_eq!((told.code, told.stdout.as_str()), (Some(0), "lock running\n"), "{told:?}");
    paused("approval");
    let refused = latch(data, &["job", "resume", "lock"]);
    assert!(refused.code != Some(0) && refused.stderr.contains("approve of it, or cancel the job"), "{refused:?}");
    let approved = latch(data, &["job", "approve", "lock", "--stage", "1"]);
    assert_eq!(approved.code, Some(0), "{approved:?}");
    let ended = latch(data, &["job", "watch", "lock"]);
    let expected =
        format!("lock completed: {} of 40 devices succeeded, {failed} failed: {failed} answer\n", 40 - failed);
    assert_eq!(ended.stdout, expected, "{ended:?}");
    // Nobody was asked twice: a second call of the same attempt would have been answered 409.
    let rows = latch_json(data, &["query", "SELECT * FROM devices.jobs WHERE jobId = 'lock'"]);
    assert!(rows.as_array().expect("rows").iter().all(|row| row["latch"]["attempts"] == 1), "{rows:#}");

    // Once more for those that failed, whose doors have been unlocked meanwhile.
    let none = latch(data, &["job", "retry", "lock", "--class", "timeout"]);
    assert!(none.stderr.contains("no device of the job lock failed so"), "{none:?}");
    latch_json(data, &["job", "retry", "lock", "--class", "answer", "--id", "again"]);
    wait_until("its first stage waits for approval, too", ANSWERED_BOUND, || {
        let job = latch_json(data, &["job", "show", "again"]);
        (job["latch"]["progress"]["paused"]["by"] == "approval").then_some(())
    });
    latch_json(data, &["job", "approve", "again"]);
    let again = latch(data, &["job", "watch", "again"]);
    assert_eq!(again.stdout, format!("again completed: {failed} of {failed} devices succeeded\n"), "{again:?}");
}

#[test]
fn a_job_of_azures_kind_can_be_paused_and_its_clients_see_it_running() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = Latch::start(data, &[&["hub", "--devices", "3"], FREE_PORTS].concat());
    let start = "2099-01-01T00:00:00Z";
    latch_json(data, &["job", "twin", "--desired", "{\"a\": 1}", "--query", "*", "--id", "plain", "--start", start]);
    let paused = latch(data, &["job", "pause", "plain", "--reason", "not before the fair"]);
    assert_eq!((paused.code, paused.stdout.as_str()), (Some(0), "plain paused: not before the fair\n"), "{paused:?}");
    let job = latch_json(data, &["job", "show", "plain"]);
    assert_eq!((&job["status"], &job["latch"]["progress"]["paused"]["by"]), (&json!("scheduled"), &json!("operator")));
    latch_json(data, &["job", "resume", "plain"]);
    assert!(latch_json(data, &["job", "show", "plain"])["latch"].is_null());
    let refused = latch(data, &["job", "approve", "plain"]);
    assert!(refused.stderr.contains("the job does not wait for approval"), "{refused:?}");
    let absent = latch(data, &["job", "pause", "nothing"]);
    assert!(absent.stderr.contains("there is no job nothing"), "{absent:?}");
}

#[test]
fn a_door_is_locked_then_reports_it_and_then_its_twin_says_so() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (data, plugins) = (data.path(), plugin_folder(&["lock-door"]));
    let folder = plugins.path().to_str().expect("a readable name");
    let _latch = Latch::start(data, &[&["up", "--devices", "3", "--plugins", folder], FREE_PORTS].concat());
    latch_json(data, &["method", &door(3), "lockDoor"]);
    let steps = data.join("steps.json");
    let tag = |state: &str, when: Value| json!({"type": "scheduleUpdateTwin", "updateTwin": {"etag": "*", "tags": {"state": state}}, "when": when});
    let reported = json!({"statuses": [[200, 200]], "condition": "properties.reported.door.locked = true",
        "withinInSeconds": 60, "otherwise": "finish"});
    std::fs::write(&steps, json!([tag("locked", reported)]).to_string()).expect("a file");
    let steps = steps.to_str().expect("a readable name");
    let ended =
        latch_json(data, &["job", "method", "lockDoor", "--query", "*", "--id", "all", "--then", steps, "--wait"]);
    assert_eq!(ended["deviceJobStatistics"]["succeededCount"], json!(3), "{ended:#}");
    let states = latch_json(data, &["query", "SELECT deviceId, tags.state FROM devices"]);
    // The third was locked before, answered 409, and is left as it was.
    let expected = json!([{"deviceId": door(1), "state": "locked"}, {"deviceId": door(2), "state": "locked"},
        {"deviceId": door(3)}]);
    assert_eq!(states, expected);
    let rows = [1, 3].map(|number| row(data, "all", &door(number)));
    let statuses = rows.each_ref().map(|row| row["outcome"]["deviceMethodResponse"]["status"].clone());
    assert_eq!((statuses, &rows[0]["latch"]["step"]), ([json!(200), json!(409)], &json!(2)), "{rows:#?}");

    let wrong = json!([tag("x", json!({"condition": "tags.a ="}))]).to_string();
    std::fs::write(steps, wrong).expect("a file");
    let refused = latch(data, &["job", "method", "lockDoor", "--query", "*", "--then", steps]);
    assert!(refused.stderr.contains("latch.then[0].when.condition: "), "{refused:?}");
}

#[test]
fn a_template_is_kept_over_a_restart_and_made_into_jobs() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let arguments = [&["hub", "--devices", "4"], FREE_PORTS].concat();
    let hub = Latch::start(data, &arguments);
    let file = data.join("tag.json");
    let file_name = file.to_str().expect("a readable name");
    let template = json!({"description": "Tag a ring", "parameters": {"device": {}, "ring": {"default": 1}},
        "job": {"type": "scheduleUpdateTwin", "queryCondition": "deviceId = '${device}'",
            "updateTwin": {"etag": "*", "tags": {"ring": "${ring}"}}}});
    std::fs::write(&file, template.to_string()).expect("a file");
    assert_eq!(latch(data, &["job", "template", "put", "tag", file_name]).stdout, "tag kept\n");
    hub.kill();
    let _hub = Latch::start(data, &arguments);
    let listed = latch(data, &["job", "template", "list"]).stdout;
    assert_eq!(listed.lines().nth(1).map(str::trim_end), Some("tag       device ring=1  Tag a ring"), "{listed}");
    let ran =
        latch(data, &["job", "run", "tag", "--set", &format!("device={}", door(2)), "--set-json", "ring=7", "--wait"]);
    assert!(ran.stdout.ends_with("completed: 1 of 1 devices succeeded\n"), "{ran:?}");
    let tagged = latch_json(data, &["query", "SELECT deviceId, tags.ring FROM devices WHERE is_defined(tags.ring)"]);
    assert_eq!(tagged, json!([{"deviceId": door(2), "ring": 7}]));
    for (arguments, text) in [
        (&["job", "run", "tag"][..], "needs a value for its parameter device"),
        (&["job", "run", "tag", "--set", "device=x' OR '1' = '1"], "must not contain"),
        (&["job", "run", "tag", "--set", "device"], "a parameter is NAME=VALUE"),
        (&["job", "run", "nothing"], "there is no job template nothing"),
    ] {
        let refused = latch(data, arguments);
        assert!(refused.code != Some(0) && refused.stderr.contains(text), "{text}: {refused:?}");
    }
    assert_eq!(latch(data, &["job", "template", "delete", "tag"]).stdout, "tag deleted\n");
    assert_eq!(latch_json(data, &["job", "template", "list"]), json!([]));
}

#[test]
fn a_job_can_be_sent_again_without_being_done_twice_and_be_cloned() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = Latch::start(data, &[&["hub", "--devices", "3"], FREE_PORTS].concat());
    let tag = |tags: &str| {
        latch(data, &["job", "twin", "--tags", tags, "--query", "*", "--id", "tag", "--rate", "1000", "--wait"])
    };
    for _ in 0..2 {
        let done = tag("{\"a\": 1}");
        assert_eq!(done.stdout, "tag completed: 3 of 3 devices succeeded\n", "{done:?}");
    }
    let other = tag("{\"a\": 2}");
    assert!(other.code != Some(0) && other.stderr.contains("the job tag exists already"), "{other:?}");
    let rows = latch_json(data, &["query", "SELECT * FROM devices.jobs"]);
    assert_eq!(rows.as_array().map(Vec::len), Some(3), "it was one job");

    let cloned = latch(data, &["job", "clone", "tag", "--id", "once-more", "--wait"]);
    assert_eq!(cloned.stdout, "once-more completed: 3 of 3 devices succeeded\n", "{cloned:?}");
    let list = data.join("list.txt");
    std::fs::write(&list, format!("{}\n{}\n", door(1), door(3))).expect("a file");
    let list = list.to_str().expect("a readable name");
    let listed = latch(data, &["job", "twin", "--tags", "{\"b\": 1}", "--list", list, "--id", "listed", "--wait"]);
    assert_eq!(listed.stdout, "listed completed: 2 of 2 devices succeeded\n", "{listed:?}");
    let cloned = latch(data, &["job", "clone", "listed", "--id", "listed-2", "--wait"]);
    assert_eq!(cloned.stdout, "listed-2 completed: 2 of 2 devices succeeded\n", "{cloned:?}");
    let start = ["--start", "2099-01-01T00:00:00Z"];
    let later = latch_json(data, &[&["job", "clone", "listed", "--id", "listed-3"][..], &start].concat());
    assert!(later["startTime"].as_str().is_some_and(|start| start.starts_with("2099")), "{later:#}");
    let of_later = latch(data, &["job", "clone", "listed-3", "--id", "listed-4", "--wait"]);
    assert_eq!(of_later.stdout, "listed-4 completed: 2 of 2 devices succeeded\n", "{of_later:?}");
    for (arguments, text) in [
        (["job", "clone", "listed", "--id", "tag"], "the job tag exists already"),
        (["job", "clone", "nothing", "--id", "x"], "there is no job nothing"),
    ] {
        let refused = latch(data, &arguments);
        assert!(refused.code != Some(0) && refused.stderr.contains(text), "{text}: {refused:?}");
    }
}
