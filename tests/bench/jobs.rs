//! Jobs: ten thousand connected devices, a million that are away, fifty jobs at once.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use iothub_protocol::id::JobId;
use iothub_protocol::job::{JobAction, JobRequest, TwinUpdate};
use iothub_service::ServiceClient;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::sleep;

use super::figures::{peak, processor_time, reset_peak, resident, verdict};
use super::harness::{FREE_PORTS, Latch, latch_ok, plugin_folder, wait_until};
use super::{client, direct_method};

/// Connected devices of a run that says nothing else.
pub(crate) const CONNECTED: usize = 10_000;
/// Devices of one that are away.
pub(crate) const AWAY: usize = 1_000_000;
/// Jobs at once, and devices of each.
const JOBS: usize = 50;
const DEVICES_OF_EACH: usize = 1000;
/// A job over all that are connected takes no longer.
const CALLED: Duration = Duration::from_secs(2);
/// A job over all that are away takes no longer, and the hub grows by no more meanwhile, in MiB.
const UPDATED: Duration = Duration::from_secs(40);
const GROWTH: f64 = 200.0;
/// Jain's index of how far the jobs are when the first one ends is at least that.
const FAIR: f64 = 0.9;
/// What Azure paces a job at, in devices a second: S1, and one unit of S3.
const AZURE: [f64; 2] = [10.0, 50.0];
/// Devices come, and jobs end, within that.
const BOUND: Duration = Duration::from_secs(600);
/// How long all jobs of [`fair`] wait for each other's creation.
const HEAD_START: chrono::TimeDelta = chrono::TimeDelta::seconds(3);

/// `latch hub` and `latch run`, two processes, and methods through wasm.
pub(crate) fn connected(runtime: &Runtime, count: usize) {
    println!("== connected");
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder can be made"));
    let [data, host_data] = folders.each_ref().map(|folder| folder.path());
    let plugins = plugin_folder(&["lock-door"]);
    let devices = count.to_string();
    let begun = Instant::now();
    let hub = Latch::start(data, &[&["hub", "--devices", &devices], FREE_PORTS].concat());
    println!("{count} devices registered: {:.2?}", begun.elapsed());
    let begun = Instant::now();
    let [connections, ca, plugins] = [&data.join("devices"), &data.join("ca.pem"), plugins.path()]
        .map(|path| path.to_str().expect("a readable name").to_owned());
    let host = Latch::start(host_data, &["run", "--connections", &connections, "--ca", &ca, "--plugins", &plugins]);
    let service = client(data);
    wait_until("all devices are connected", BOUND, || {
        let query = "SELECT COUNT() AS n FROM devices WHERE connectionState = 'Connected'";
        let rows = runtime.block_on(service.query_all(query)).expect("an answer");
        (rows[0]["n"] == json!(count)).then_some(())
    });
    println!("connected, from another process: {:.2?}", begun.elapsed());
    // The last of them subscribes.
    runtime.block_on(async { sleep(Duration::from_secs(2)).await });
    for (id, method, what) in [
        ("first", "unlockDoor", "the first, which changes nothing"),
        ("idle", "unlockDoor", "changes nothing"),
        ("lock", "lockDoor", "locks each, recorded on the device"),
        ("again", "lockDoor", "changes nothing"),
    ] {
        let job = request(id, JobAction::Method(direct_method(method)), "*");
        let worked = || [hub.pid(), host.pid()].map(processor_time);
        let (begun, before) = (Instant::now(), worked());
        runtime.block_on(async {
            service.create_job(&job).await.expect("a job");
            ended(&service, id, count).await;
        });
        let (took, after) = (begun.elapsed(), worked());
        println!("job {method} ({what}), outcome of each durable: {}", pace(count, took, took <= CALLED));
        println!("  processor time: hub {:.1}s, host {:.1}s", after[0] - before[0], after[1] - before[1]);
    }
    println!("resident memory: hub {:.0} MiB, host {:.0} MiB", resident(hub.pid()), resident(host.pid()));
    host.stop();
    hub.stop();
}

/// Desired properties of devices none of which is there.
pub(crate) fn away(runtime: &Runtime, count: usize) {
    println!("== away");
    let data = tempfile::tempdir().expect("a temporary folder can be made");
    let latch = import(data.path(), count);
    let service = client(data.path());
    reset_peak(latch.pid());
    let before = resident(latch.pid());
    println!("{count} devices that are away; resident memory of the hub: {before:.1} MiB");
    let job = request("update", update(30), "*");
    let (begun, worked) = (Instant::now(), processor_time(latch.pid()));
    runtime.block_on(async {
        service.create_job(&job).await.expect("a job");
        ended(&service, "update", count).await;
    });
    let took = begun.elapsed();
    println!("job of desired properties, outcome of each durable: {}", pace(count, took, took <= UPDATED));
    println!("  processor time of the hub: {:.1}s", processor_time(latch.pid()) - worked);
    let growth = peak(latch.pid()) - before;
    println!("resident memory: {growth:.0} MiB more at most{}", verdict(growth < GROWTH));
    println!("  and {:.0} MiB more once it has ended", resident(latch.pid()) - before);
    let journal = fs::metadata(data.path().join("jobs.db")).expect("it is there").len();
    println!("the journal: {} MiB", journal / 1024 / 1024);
    latch.stop();
}

/// Jobs that begin in the same second, each with devices of its own, and one small job that comes later.
pub(crate) fn fair(runtime: &Runtime) {
    println!("== fair");
    let data = tempfile::tempdir().expect("a temporary folder can be made");
    let latch = import(data.path(), JOBS * DEVICES_OF_EACH);
    let service = client(data.path());
    runtime.block_on(async {
        let alone = {
            service.create_job(&request("alone", update(1), "tags.site = 'site-0'")).await.expect("a job");
            let begun = Instant::now();
            ended(&service, "alone", DEVICES_OF_EACH).await;
            begun.elapsed()
        };
        println!("a job over {DEVICES_OF_EACH} devices, alone: {alone:.2?}");
        let start = chrono::Utc::now() + HEAD_START;
        for number in 0..JOBS {
            let of_site = format!("tags.site = 'site-{number}'");
            let job = request(&format!("j{number}"), update(2), &of_site);
            service.create_job(&JobRequest { start_time: Some(start), ..job }).await.expect("a job");
        }
        let wait = (start - chrono::Utc::now()).to_std().unwrap_or_default();
        sleep(wait).await;
        let begun = Instant::now();
        let mut when_first_ended = None;
        let all = loop {
            let done = progress(&service).await;
            let ended = done.iter().filter(|count| **count == DEVICES_OF_EACH as u64).count();
            if ended > 0 && when_first_ended.is_none() {
                when_first_ended = Some((begun.elapsed(), jain(&done), done.iter().min().copied().unwrap_or_default()));
            }
            if ended == JOBS {
                break begun.elapsed();
            }
            assert!(begun.elapsed() < BOUND, "jobs do not end: {done:?}");
            sleep(Duration::from_millis(5)).await;
        };
        let (first, index, least) = when_first_ended.expect("one was the first");
        println!("{JOBS} jobs at once over {DEVICES_OF_EACH} devices each: {}", pace(JOBS * DEVICES_OF_EACH, all, true));
        println!("  the first has ended after {first:.2?}, the last after {all:.2?}");
        println!(
            "  fairness when the first ended (Jain's index, 1 is equal): {index:.3}; the last had done {least} of {DEVICES_OF_EACH}{}",
            verdict(index >= FAIR)
        );
    });
    latch.stop();
}

/// How many devices each of the jobs is done with.
async fn progress(service: &ServiceClient) -> Vec<u64> {
    let mut done = Vec::with_capacity(JOBS);
    for number in 0..JOBS {
        let job = service.get_job(&JobId::parse(&format!("j{number}")).expect("an id")).await.expect("the job");
        done.push(job["deviceJobStatistics"]["succeededCount"].as_u64().unwrap_or_default());
    }
    done
}

/// 1 if all have come as far, one share of 1 if one has come far and the others nowhere.
fn jain(done: &[u64]) -> f64 {
    let done: Vec<f64> = done.iter().map(|count| *count as f64).collect();
    let (sum, squares) = (done.iter().sum::<f64>(), done.iter().map(|count| count * count).sum::<f64>());
    if squares == 0.0 { 1.0 } else { sum * sum / (done.len() as f64 * squares) }
}

fn pace(count: usize, took: Duration, holds: bool) -> String {
    let rate = count as f64 / took.as_secs_f64();
    let times = AZURE.map(|azure| rate / azure);
    format!(
        "{took:.2?}, {rate:.0}/s; Azure's pace is {} or {}/s (S1, a unit of S3), {:.0} and {:.0} times as slow{}",
        AZURE[0],
        AZURE[1],
        times[0],
        times[1],
        verdict(holds)
    )
}

fn request(id: &str, action: JobAction, condition: &str) -> JobRequest {
    JobRequest {
        job_id: JobId::parse(id).expect("an id"),
        action,
        query_condition: condition.to_owned(),
        start_time: None,
        max_execution_time_in_seconds: BOUND.as_secs() as u32,
        policy: None,
        then: Vec::new(),
        recurrence: None,
        targets: None,
    }
}

fn update(interval: u32) -> JobAction {
    let desired = json!({"interval": interval}).as_object().cloned();
    JobAction::UpdateTwin(TwinUpdate { tags: None, desired })
}

/// Waits until the job has ended, on so many devices, all of them well.
async fn ended(service: &ServiceClient, id: &str, devices: usize) -> Value {
    let (id, begun) = (JobId::parse(id).expect("an id"), Instant::now());
    loop {
        let job = service.get_job(&id).await.expect("the job");
        if job["status"] == json!("completed") {
            assert_eq!(job["deviceJobStatistics"]["succeededCount"], json!(devices), "{job}");
            return job;
        }
        assert!(begun.elapsed() < BOUND, "{job}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A hub that runs and has so many devices.
fn import(data: &Path, count: usize) -> Latch {
    let file = data.join("devices.jsonl");
    let mut lines = BufWriter::new(File::create(&file).expect("the folder can be written"));
    for number in 0..count {
        let tags = json!({"site": format!("site-{}", number % JOBS)});
        let properties = json!({"desired": {"interval": 60}, "reported": {"firmware": number % 10}});
        let line = json!({"id": format!("device-{number:07}"), "tags": tags, "properties": properties});
        writeln!(lines, "{line}").expect("the disk has room");
    }
    lines.flush().expect("the disk has room");
    latch_ok(data, &["hub", "import", file.to_str().expect("a readable name")]);
    Latch::start(data, &[&["hub"], FREE_PORTS].concat())
}
