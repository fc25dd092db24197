//! `latch run --jobs`: jobs with policies on a hub that is somewhere else and knows none, as Azure's does not.
//!
//! The hub here is another `latch hub`, and whatever goes to it goes over its service API, as it would to Azure's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::back_end::{BackEnd, connection, door};
use crate::harness::{FREE_PORTS, Latch, latch, latch_json, latch_ok, plugin_folder, wait_until};

/// So many that a job over them takes longer than a kill, at its rate.
const DOORS: usize = 60;
const JOB_BOUND: Duration = Duration::from_secs(60);
/// What a hub of the tier S1 lets through at once, and what it then lets wait.
const QUERIES: usize = 20 + 3;

/// A hub, and a host with its doors and an engine of its own.
struct Apart {
    hub: Latch,
    hub_data: TempDir,
    host_data: TempDir,
    plugins: TempDir,
}

impl Apart {
    fn new(doors: usize, tier: &[&str]) -> Apart {
        let (hub_data, host_data) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let doors = doors.to_string();
        let hub = Latch::start(hub_data.path(), &[&["hub", "--devices", &doors], tier, FREE_PORTS].concat());
        Apart { hub, hub_data, host_data, plugins: plugin_folder(&["lock-door"]) }
    }

    fn of_hub(&self, name: &str) -> PathBuf {
        self.hub_data.path().join(name)
    }

    /// The hub dies, and comes back after `meanwhile`.
    fn restart_hub(self, doors: usize, meanwhile: impl FnOnce()) -> Apart {
        let (doors, ports) = (doors.to_string(), self.hub.same_ports());
        self.hub.kill();
        meanwhile();
        let args: Vec<_> = ["hub", "--devices", &doors].into_iter().chain(ports.iter().map(String::as_str)).collect();
        Apart { hub: Latch::start(self.hub_data.path(), &args), ..self }
    }

    /// `latch run --jobs`.
    fn host(&self) -> Latch {
        let [connections, ca, hub] = ["devices", "ca.pem", "service.connstr"].map(|name| self.of_hub(name));
        let paths = [&*connections, &*ca, &*hub, self.plugins.path()];
        let [connections, ca, hub, plugins] = paths.map(|path| path.to_str().expect("a readable name"));
        let args = ["run", "--jobs", "--connections", connections, "--plugins", plugins, "--hub", hub, "--ca", ca];
        Latch::start(self.host_data.path(), &args)
    }

    fn host_data(&self) -> &Path {
        self.host_data.path()
    }

    /// The options by which a command finds hub and host.
    fn both(&self) -> [String; 4] {
        let path = |name| self.of_hub(name).to_str().expect("a readable name").to_owned();
        ["--hub".to_owned(), path("service.connstr"), "--ca".to_owned(), path("ca.pem")]
    }

    /// A command for hub and host, as JSON.
    fn ask(&self, args: &[&str]) -> Value {
        let both = self.both();
        latch_json(self.host_data(), &args.iter().copied().chain(both.iter().map(String::as_str)).collect::<Vec<_>>())
    }
}

fn by_device(rows: &Value) -> BTreeMap<String, Value> {
    let rows = rows.as_array().expect("rows").iter();
    rows.map(|row| (row["deviceId"].as_str().expect("a device").to_owned(), row.clone())).collect()
}

#[test]
fn a_staged_job_on_a_hub_elsewhere_survives_a_kill() {
    let apart = Apart::new(DOORS, &[]);
    let host = apart.host();
    let data = apart.host_data();
    assert!(host.ready().contains(" jobs=localhost:"), "{}", host.ready());
    let policy = ["--stage", "10,100", "--rate", "20", "--retry", "timeout,fault:3", "--backoff", "1s"];
    let create = ["job", "method", "lockDoor", "--query", "*", "--id", "lock", "--engine", "latch"];
    let created = apart.ask(&[&create[..], &policy].concat());
    assert!(created["latch"]["policy"]["stages"].is_array(), "{created:#}");
    let seen = wait_until("first outcomes", JOB_BOUND, || {
        let rows = by_device(&latch_json(data, &["job", "results", "lock"]));
        let ended: BTreeMap<_, _> = rows.into_iter().filter(|(_, row)| row["status"] == "completed").collect();
        (ended.len() > 10).then_some(ended)
    });
    assert!(seen.len() < DOORS, "the kill would come too late");
    host.kill();

    let host = apart.host();
    let job = latch_json(data, &["job", "watch", "lock"]);
    assert_eq!((&job["status"], &job["deviceJobStatistics"]["succeededCount"]), (&json!("completed"), &json!(DOORS)));
    let rows = by_device(&latch_json(data, &["job", "results", "lock"]));
    assert_eq!(rows.len(), DOORS);
    for (device, row) in &seen {
        assert_eq!(&rows[device], row, "{device} had that outcome");
    }
    for (device, row) in &rows {
        let answer = &row["outcome"]["deviceMethodResponse"];
        // The second of two sends finds the door locked by the first.
        assert!(answer["status"] == 200 || answer["status"] == 409, "{device}: {row:#}");
        assert_eq!(answer["payload"]["count"], json!(1), "{device}: {row:#}");
    }

    // A job without a policy is the hub's own; each is found where it is.
    let plain = ["job", "method", "lockDoor", "--query", "*", "--id", "plain", "--wait"];
    assert_eq!(apart.ask(&plain)["status"], "completed");
    let list = apart.ask(&["job", "list"]);
    let engines: Vec<_> = list.as_array().expect("jobs").iter().map(|job| (&job["jobId"], &job["engine"])).collect();
    assert_eq!(engines, [(&json!("plain"), &json!("hub")), (&json!("lock"), &json!("latch"))]);
    for (id, has_policy) in [("lock", true), ("plain", false)] {
        assert_eq!(apart.ask(&["job", "show", id])["latch"].is_object(), has_policy, "{id}");
        assert_eq!(apart.ask(&["job", "results", id]).as_array().map(Vec::len), Some(DOORS), "{id}");
    }
    let elsewhere = latch(apart.hub_data.path(), &["job", "show", "lock"]);
    assert!(elsewhere.stderr.contains("JobNotFound"), "{elsewhere:?}");

    // What is stopped in good order goes on, too.
    apart.ask(&["job", "method", "lockDoor", "--query", "*", "--id", "slow", "--rate", "1", "--engine", "latch"]);
    assert!(host.stop().success());
    let _host = apart.host();
    assert_eq!(latch_json(data, &["job", "show", "slow"])["status"], "running");
    let cancelled = latch_json(data, &["job", "cancel", "slow"]);
    assert_eq!(cancelled["latch"]["policy"]["rate"], 1, "{cancelled:#}");
    drop(apart.hub);
}

#[test]
fn a_job_outlasts_a_hub_that_is_away() {
    let apart = Apart::new(DOORS, &[]);
    let _host = apart.host();
    let host_data = apart.host_data().to_owned();
    let twin = ["job", "twin", "--desired", r#"{"floor": 3}"#, "--query", "*", "--rate", "20", "--engine", "latch"];
    let method = ["job", "method", "lockDoor", "--query", "*", "--rate", "20", "--engine", "latch"];
    // Of what was under way when the hub died nobody knows whether it arrived; and the doors have to come back.
    let again = ["--retry", "fault,timeout,offline:9", "--backoff", "1s", "--backoff-max", "4s"];
    apart.ask(&[&twin[..], &["--id", "twin"]].concat());
    apart.ask(&[&method[..], &again, &["--id", "method"]].concat());
    let ended = |job: &str, status: &str| {
        latch_json(&host_data, &["job", "show", job])["deviceJobStatistics"][status].as_u64().unwrap_or(0)
    };
    wait_until("both jobs are under way", JOB_BOUND, || {
        (ended("twin", "succeededCount") > 5 && ended("method", "succeededCount") > 5).then_some(())
    });
    let apart = apart.restart_hub(DOORS, || {
        wait_until("calls that wait for the hub", JOB_BOUND, || (ended("twin", "runningCount") > 10).then_some(()));
    });
    for job in ["twin", "method"] {
        let job = latch_json(&host_data, &["job", "watch", job]);
        let found = (&job["status"], &job["deviceJobStatistics"]["succeededCount"]);
        assert_eq!(found, (&json!("completed"), &json!(DOORS)), "{job:#}");
    }
    drop(apart);
}

#[test]
fn a_rollout_on_a_hub_elsewhere_is_judged_by_what_the_devices_report() {
    let apart = Apart::new(3, &[]);
    let _host = apart.host();
    let rollout = ["plugin", "rollout", "lock-door", "1.0.0", "--query", "*", "--engine", "latch", "--wait"];
    let job = apart.ask(&rollout);
    assert_eq!((&job["status"], &job["deviceJobStatistics"]["succeededCount"]), (&json!("completed"), &json!(3)));
    let missing = ["plugin", "rollout", "lock-door", "9.9.9", "--query", "*", "--engine", "latch", "--wait"];
    let both = apart.both();
    let args: Vec<_> = missing.into_iter().chain(both.iter().map(String::as_str)).collect();
    let stopped = latch(apart.host_data(), &args);
    assert_eq!(stopped.code, Some(EXIT_ENDED_BADLY), "{stopped:?}");
    assert!(stopped.stdout.contains("failed"), "{stopped:?}");
}

#[test]
fn no_device_fails_because_the_hub_is_throttling() {
    let apart = Apart::new(5, &["--tier", "s1"]);
    let _host = apart.host();
    let refused = || {
        let tier = latch_json(apart.hub_data.path(), &["hub", "rehearse", "list"])["tier"].clone();
        tier["refused"]["queries"].as_u64().unwrap_or(0)
    };
    let back_end = BackEnd::of(apart.hub_data.path());
    // Not waited for: the last of them wait in the hub's own queue.
    for _ in 0..QUERIES {
        let service = back_end.service.clone();
        back_end.runtime.spawn(async move { service.query("SELECT * FROM devices", &Default::default()).await });
    }
    wait_until("there is no room for another query", JOB_BOUND, || {
        let tier = latch_json(apart.hub_data.path(), &["hub", "rehearse", "list"])["tier"].clone();
        (tier["delayed"]["queries"] == json!(QUERIES - 20)).then_some(())
    });
    let before = refused();
    let job = apart.ask(&["job", "method", "lockDoor", "--query", "*", "--engine", "latch", "--rate", "100", "--wait"]);
    assert_eq!((&job["status"], &job["deviceJobStatistics"]["succeededCount"]), (&json!("completed"), &json!(5)));
    assert!(refused() > before, "the job has met no throttle");
}

#[test]
fn a_folder_runs_the_jobs_of_one_hub() {
    let (apart, other) = (Apart::new(1, &[]), tempfile::tempdir().expect("a folder"));
    let _other = Latch::start(other.path(), &[&["hub"], FREE_PORTS].concat());
    assert!(apart.host().stop().success());
    let [hub, ca] = ["service.connstr", "ca.pem"].map(|name| other.path().join(name));
    let [hub, ca] = [&hub, &ca].map(|path| path.to_str().expect("a readable name"));
    let refused = latch(apart.host_data(), &["run", "--jobs", "--hub", hub, "--ca", ca]);
    assert!(refused.code == Some(1) && refused.stderr.contains("are those of the hub localhost:"), "{refused:?}");
    let refused = latch(apart.host_data(), &[&["hub"], FREE_PORTS].concat());
    assert!(refused.code == Some(1) && refused.stderr.contains("on which `latch run --jobs` runs them"), "{refused:?}");

    // Without devices of its own it runs jobs alone, and says which hub's.
    let _host = apart.host();
    let wrong = latch(apart.host_data(), &["job", "list", "--engine", "latch", "--hub", hub, "--ca", ca]);
    assert!(wrong.code == Some(1) && wrong.stderr.contains("runs jobs on the hub localhost:"), "{wrong:?}");
    let alone = tempfile::tempdir().expect("a folder");
    let jobs_alone = Latch::start(alone.path(), &["run", "--jobs", "--hub", hub, "--ca", ca, "--tier", "s3", "-vv"]);
    assert!(jobs_alone.ready().starts_with("ready devices=0 plugins=0 jobs=localhost:"), "{}", jobs_alone.ready());
    let done = latch_ok(alone.path(), &["job", "method", "m", "--query", "*", "--rate", "1", "--wait"]);
    assert!(done.ends_with(" completed: 0 of 0 devices succeeded\n"), "{done}");
    let (said, key) = (jobs_alone.transcript(), connection(other.path()).key.to_base64());
    assert!(said.contains("job created"), "{said}");
    assert!(!said.contains(&key) && !said.contains("sig="), "a secret is in the log");
}

/// As `latch help` documents it.
const EXIT_ENDED_BADLY: i32 = 4;

#[test]
fn a_device_that_comes_while_the_host_is_away_joins_a_continuous_job() {
    let apart = Apart::new(2, &[]);
    let host = apart.host();
    let data = apart.host_data();
    let create = ["job", "twin", "--tags", r#"{"seen": 1}"#, "--query", "*", "--id", "j", "--continuous"];
    let create = [&create[..], &["--engine", "latch"]].concat();
    // The hub is asked who is there: its doors are the host's.
    latch_ok(apart.hub_data.path(), &["twin", "update", &door(1), "--tags", r#"{"ring": "canary"}"#]);
    let stages = ["--stage", "query:tags.ring = 'canary'", "--stage", "100", "--dry-run"];
    for (options, canaries) in [(&stages[4..], json!(null)), (&stages[..], json!(1))] {
        let preview = apart.ask(&[&create[..], options].concat());
        let found = ["targets", "connected", "disabled", "listening"].map(|name| &preview[name]);
        assert_eq!(found, [&json!(2), &json!(2), &json!(0), &json!(null)], "{preview:#}");
        assert_eq!(preview["stages"][0]["devices"], canaries);
    }
    apart.ask(&create);
    let succeeded = |count: u64| {
        wait_until("devices have come", JOB_BOUND, || {
            let job = latch_json(data, &["job", "show", "j"]);
            (job["deviceJobStatistics"]["succeededCount"] == json!(count)).then_some(job)
        })
    };
    let job = succeeded(2);
    assert!(job["status"] == "running" && job["latch"]["progress"]["continuousUntil"].is_string(), "{job:#}");
    host.kill();
    latch_ok(apart.hub_data.path(), &["device", "create", "new"]);
    let _host = apart.host();
    let job = succeeded(3);
    assert_eq!((&job["status"], &job["deviceJobStatistics"]["deviceCount"]), (&json!("running"), &json!(3)));
    let rows = by_device(&latch_json(data, &["job", "results", "j"]));
    assert!(rows.values().all(|row| row["latch"]["attempts"] == json!(1)), "{rows:#?}");
}

#[test]
fn devices_that_connect_join_a_job_for_those_that_are_connected() {
    let apart = Apart::new(2, &[]);
    let hub = apart.hub_data.path();
    let job = ["job", "method", "lockDoor", "--query", "connectionState = 'Connected'", "--id", "j", "--continuous"];
    latch_ok(hub, &job);
    wait_until("it has begun", JOB_BOUND, || {
        (latch_json(hub, &["job", "show", "j"])["status"] == "running").then_some(())
    });
    let _host = apart.host();
    let job = wait_until("both have their turn", JOB_BOUND, || {
        let job = latch_json(hub, &["job", "show", "j"]);
        let counts = &job["deviceJobStatistics"];
        let ended = ["succeededCount", "failedCount"].map(|name| counts[name].as_u64().unwrap_or(0));
        (ended.iter().sum::<u64>() == 2).then_some(job)
    });
    assert_eq!(job["deviceJobStatistics"]["succeededCount"], json!(2), "{job:#}");
}
