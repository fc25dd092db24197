//! Jobs that come again, through the real binaries and in real time.

use std::time::Duration;

use iothub_protocol::time;
use serde_json::{Value, json};

use crate::harness::{FREE_PORTS, Latch, latch, latch_json, wait_until};

/// Until an occurrence that is due every other second has come, been worked off, and is seen.
const COME_BOUND: Duration = Duration::from_secs(60);

#[test]
fn a_job_comes_again_until_its_count_and_over_a_restart() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let hub = Latch::start(data, &[&["hub", "--devices", "3"], FREE_PORTS].concat());
    let twin = ["job", "twin", "--query", "*", "--tags", r#"{"seen": true}"#];
    let often = ["--id", "often", "--cron", "*/2 * * * * *", "--time-zone", "Europe/Berlin", "--count", "4"];
    latch_json(data, &[&twin[..], &often, &["--missed", "run"]].concat());
    let show = |id: &str| latch_json(data, &["job", "show", id]);
    wait_until("the first job of the series is done", COME_BOUND, || {
        let last = show("often")["latch"]["progress"]["last"].clone();
        last.as_array().is_some_and(|last| last.iter().any(|job| job["status"] == "completed")).then_some(())
    });
    drop(hub);
    let _hub = Latch::start(data, &[&["hub"], FREE_PORTS].concat());
    let ended = wait_until("the series is over", COME_BOUND, || {
        let job = show("often");
        (job["status"] == "completed").then_some(job)
    });
    let progress = &ended["latch"]["progress"];
    assert_eq!((&progress["jobs"], &progress["next"]), (&json!(4), &json!([])), "{ended:#}");
    let jobs: Vec<String> = progress["last"]
        .as_array()
        .expect("its jobs")
        .iter()
        .map(|job| job["jobId"].as_str().expect("an id").to_owned())
        .collect();
    assert_eq!(jobs.len(), 4, "{ended:#}");
    for id in &jobs {
        let job = latch_json(data, &["job", "watch", id]);
        assert_eq!((&job["status"], &job["latch"]["series"]["job"]), (&json!("completed"), &json!("often")), "{job:#}");
        assert_eq!(job["deviceJobStatistics"]["succeededCount"], json!(3), "{job:#}");
    }

    // One that is to come is listed with its next time, and shown with those after it.
    let yearly = ["--id", "yearly", "--cron", "0 12 29 2 *", "--time-zone", "Europe/Berlin"];
    latch_json(data, &[&twin[..], &yearly].concat());
    let next: Vec<_> = show("yearly")["latch"]["progress"]["next"].as_array().expect("times").clone();
    assert_eq!(next.len(), 5);
    let year = |text: &Value| text.as_str().and_then(time::parse).expect("a time").format("%Y-%m-%dT%H:%M").to_string();
    assert_eq!(year(&next[0]), "2028-02-29T11:00");
    let listed = latch(data, &["job", "list"]).stdout;
    let line = listed.lines().find(|line| line.starts_with("yearly")).expect("the series");
    assert!(line.contains("scheduled") && line.contains("2028-02-29T11:00:00"), "{listed}");
    let cancelled = latch_json(data, &["job", "cancel", "yearly"]);
    assert_eq!(cancelled["status"], "cancelled");
}

#[test]
fn what_is_no_schedule_is_refused_with_what_to_write() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let data = data.path();
    let _hub = Latch::start(data, &[&["hub", "--devices", "1"], FREE_PORTS].concat());
    let twin = ["job", "twin", "--query", "*", "--tags", r#"{"seen": true}"#];
    for (options, told) in [
        (&["--cron", "* * *"][..], "is no pattern such as"),
        (&["--cron", "0 2 * * *", "--time-zone", "Europe/Berln"], "is no time zone of the IANA database"),
        (&["--cron", "0 0 30 2 *"], "has no occurrence"),
        (&["--cron", "0 2 * * *", "--until", "2020-01-01T00:00:00Z"], "has no occurrence"),
        (&["--cron", "0 2 * * *", "--wait"], "cannot be used with"),
        (&["--time-zone", "UTC"], "--cron"),
    ] {
        let outcome = latch(data, &[&twin[..], options].concat());
        assert!(outcome.code != Some(0) && outcome.stderr.contains(told), "{options:?}: {outcome:?}");
    }
}
