//! Maintenance windows, ends and time-outs of jobs, through the real binaries and in real time.

use std::time::Duration;

use chrono::{TimeDelta, Timelike as _, Utc};
use serde_json::{Value, json};

use crate::harness::{FREE_PORTS, Latch, latch, latch_json, wait_until};

const TWIN: [&str; 6] = ["job", "twin", "--query", "*", "--tags", r#"{"seen": true}"#];

/// A window that opened ten minutes ago on the clock of UTC, for an hour.
fn open_in_utc() -> String {
    let opened = Utc::now() - TimeDelta::minutes(10);
    format!("{} {} * * * 1h", opened.minute(), opened.hour())
}

#[test]
fn devices_are_begun_by_their_own_clocks_and_the_others_are_left_out_at_the_jobs_end() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = Latch::start(data, &[&["hub", "--devices", "4"], FREE_PORTS].concat());
    for (device, zone) in [("door-0001", "Etc/UTC"), ("door-0002", "Asia/Tokyo"), ("door-0003", "Mars/Phobos")] {
        latch_json(data, &["twin", "update", device, "--tags", &json!({"zone": zone}).to_string()]);
    }
    let window = open_in_utc() + " tags.zone";
    let options = ["--id", "own", "--window", &window, "--max-execution", "86400", "--end", "5s"];
    latch_json(data, &[&TWIN[..], &options].concat());
    let job = latch_json(data, &["job", "show", "own"]);
    assert_eq!(job["latch"]["policy"]["windows"][0]["timeZone"], json!({"tag": "tags.zone"}), "{job:#}");
    let watched = latch(data, &["job", "watch", "own"]);
    assert_eq!(watched.code, Some(4), "{watched:?}");
    let told = "own completed: 1 of 4 devices succeeded, 2 failed: 2 window, 1 left out";
    assert!(watched.stdout.contains(told), "{watched:?}");
    let row = |device: &str| latch_json(data, &["job", "show", "own", "--device", device]);
    assert_eq!(row("door-0001")["status"], "completed");
    assert_eq!(row("door-0002")["error"]["code"], "JobEnded");
    for device in ["door-0003", "door-0004"] {
        let row = row(device);
        assert_eq!(
            (&row["error"]["code"], &row["latch"]["failure"]),
            (&json!("DeviceHasNoTimeZone"), &json!("window"))
        );
    }

    // Nothing is begun while a window is closed, which the job tells.
    let later = Utc::now() + TimeDelta::hours(2);
    let later = format!("{} {} * * * 30m", later.minute(), later.hour());
    let options = ["--id", "later", "--window", &later, "--max-execution", "86400"];
    let preview = latch_json(data, &[&TWIN[..], &options, &["--dry-run"]].concat());
    let least = preview["seconds"]["least"].as_u64().expect("seconds");
    assert!((6900..=7200).contains(&least) && preview["windowOpens"].is_string(), "{preview:#}");
    latch_json(data, &[&TWIN[..], &options].concat());
    let shown = wait_until("the job has begun", Duration::from_secs(30), || {
        let job = latch_json(data, &["job", "show", "later"]);
        (job["status"] == "running").then_some(job)
    });
    let window = &shown["latch"]["progress"]["window"];
    assert!(window["open"] == false && window["opensAt"].is_string(), "{shown:#}");
    assert_eq!(shown["deviceJobStatistics"]["pendingCount"], json!(4));
    assert_eq!(latch_json(data, &["job", "cancel", "later"])["status"], "cancelled");
}

#[test]
fn an_end_by_force_and_a_time_for_each_device_end_what_waits() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    // Nobody is connected.
    let _hub = Latch::start(data, &[&["hub", "--devices", "2"], FREE_PORTS].concat());
    let call = ["job", "method", "lockDoor", "--query", "*", "--wait-offline", "30m", "--wait"];
    let forced = latch(data, &[&call[..], &["--end", "1s", "--end-then", "force"]].concat());
    assert_eq!(forced.code, Some(4), "{forced:?}");
    assert!(forced.stdout.contains("cancelled: 0 of 2 devices succeeded, 2 left out (the end came"), "{forced:?}");
    let timed = latch(data, &[&call[..], &["--device-timeout", "1s", "--id", "timed"]].concat());
    assert!(
        timed.code == Some(4) && timed.stdout.contains("completed: 0 of 2 devices succeeded, 2 failed: 2 timeout"),
        "{timed:?}"
    );
    let rows = latch_json(data, &["job", "results", "timed", "--class", "timeout"]);
    let codes: Vec<&Value> = rows.as_array().expect("rows").iter().map(|row| &row["error"]["code"]).collect();
    assert_eq!(codes, ["DeviceExecutionTimedOut"; 2]);
}

#[test]
fn windows_and_ends_that_make_no_sense_are_refused_with_what_to_write() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = Latch::start(data, &[&["hub", "--devices", "1"], FREE_PORTS].concat());
    let later = Utc::now() + TimeDelta::hours(2);
    let later = format!("{} {} * * * 30m", later.minute(), later.hour());
    for (options, told) in [
        (&["--window", later.as_str()][..], "the job's time is over: maxExecutionTimeInSeconds is 3600"),
        (&["--window", "0 2 * * *"], "'0 2 * * * 2h Europe/Berlin'"),
        (&["--window", "0 2 * * * 2h Europe/Berln"], "is no time zone of the IANA database"),
        (&["--window", "0 2 * * 2h"], "is no pattern such as"),
        (&["--end", "2020-01-01T00:00:00Z"], "latch.policy.end.at is not after the job's beginning"),
        (&["--end", "2h"], "never comes"),
        (&["--end-then", "force"], "--end"),
        (&["--cron", "0 2 * * *", "--end", "2099-01-01T00:00:00Z"], "do not go together"),
        (&["--cron", "x", "--dry-run"], "is no pattern such as"),
    ] {
        let outcome = latch(data, &[&TWIN[..], options].concat());
        assert!(outcome.code != Some(0) && outcome.stderr.contains(told), "{options:?}: {outcome:?}");
    }
}
