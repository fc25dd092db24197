//! What the README says of speed and size, measured on the whole binary: `cargo bench -p cli`.
//!
//! Everything is on loopback, bounded in number and time, and ends by itself. The figures that were seen are in
//! `README.md` beside this file. Give a name (`fleet`, `swap`, `load`, `twins`, `connections`, `connected`, `away`,
//! `fair`) to run one part, or several; `count=N` is how many devices the four before the last have.

#![expect(clippy::print_stdout, reason = "figures are what it is for")]

mod connections;
mod figures;
#[path = "../harness/mod.rs"]
mod harness;
mod jobs;
mod swarm;
mod twins;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iothub_device::tls::{Roots, client_config};
use iothub_protocol::address::Address;
use iothub_protocol::connection_string::ServiceConnectionString;
use iothub_protocol::id::{JobId, MethodName};
use iothub_protocol::job::{JobAction, JobRequest};
use iothub_protocol::method::DirectMethod;
use iothub_service::ServiceClient;
use plugin_runtime::{CacheSettings, PluginName, PluginSource, Runtime as PluginRuntime, RuntimeSettings, Terms};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use figures::resident;
use harness::{FREE_PORTS, Latch, guests, latch_json, plugin_folder};

/// Devices of the fleet part.
const FLEET: u32 = 1000;
/// Devices, calls in flight and swaps of the swap part.
const DEVICES: u32 = 100;
const IN_FLIGHT: u32 = 64;
const SWAPS: usize = 50;
/// Loads from the cache, of which the middle one counts.
const CACHED_LOADS: usize = 5;
/// How long calls run without swaps, for comparison.
const BEFORE: Duration = Duration::from_secs(3);

fn main() {
    // cargo passes `--bench`, which is no name of a part.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let runtime = Runtime::new().expect("the async runtime starts");
    let count = wanted.iter().find_map(|argument| argument.strip_prefix("count=")?.parse().ok());
    let names: Vec<&String> = wanted.iter().filter(|argument| !argument.contains('=')).collect();
    let wants = |name: &str| names.is_empty() || names.iter().any(|wanted| *wanted == name);
    if wants("fleet") {
        fleet(&runtime);
    }
    if wants("swap") {
        swap(&runtime);
    }
    if wants("load") {
        load();
    }
    if wants("twins") {
        twins::twins(&runtime, count.unwrap_or(twins::COUNT));
    }
    if wants("connections") {
        connections::connections(&runtime, count.unwrap_or(connections::COUNT));
    }
    if wants("connected") {
        jobs::connected(&runtime, count.unwrap_or(jobs::CONNECTED));
    }
    if wants("away") {
        jobs::away(&runtime, count.unwrap_or(jobs::AWAY));
    }
    if wants("fair") {
        jobs::fair(&runtime);
    }
}

/// A fleet comes up and runs a job.
fn fleet(runtime: &Runtime) {
    println!("== fleet");
    let data = tempfile::tempdir().expect("a temporary folder can be made");
    let plugins = guests().to_str().expect("a readable name").to_owned();
    let begun = Instant::now();
    let devices = FLEET.to_string();
    let latch =
        Latch::start(data.path(), &[&["up", "--devices", &devices, "--plugins", &plugins], FREE_PORTS].concat());
    println!("{FLEET} devices ready (created, connected over TLS, subscribed, twin read): {:.2?}", begun.elapsed());
    println!("resident memory when ready: {:.0} MiB", resident(latch.pid()));
    let service = client(data.path());
    for (id, method) in [("first", "lockDoor"), ("second", "unlockDoor"), ("third", "unlockDoor")] {
        let took = runtime.block_on(run_job(&service, id, method));
        println!("job {method} on {FLEET} devices, outcome of each durable: {took:.2?}");
    }
    println!("resident memory after the jobs: {:.0} MiB", resident(latch.pid()));
    latch.stop();
}

async fn run_job(service: &ServiceClient, id: &str, method: &str) -> Duration {
    let request = JobRequest {
        job_id: JobId::parse(id).expect("an id"),
        action: JobAction::Method(direct_method(method)),
        query_condition: "*".to_owned(),
        start_time: None,
        max_execution_time_in_seconds: 60,
        policy: None,
        targets: None,
        then: Vec::new(),
        recurrence: None,
    };
    let begun = Instant::now();
    service.create_job(&request).await.expect("a job");
    loop {
        let job = service.get_job(&request.job_id).await.expect("the job");
        if job["status"] == json!("completed") {
            assert_eq!(job["deviceJobStatistics"]["succeededCount"], json!(FLEET), "{job}");
            return begun.elapsed();
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{job}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Calls are always in flight while lock-door is swapped.
fn swap(runtime: &Runtime) {
    println!("== swap");
    let data = tempfile::tempdir().expect("a temporary folder can be made");
    let plugins = plugin_folder(&["lock-door"]);
    let folder = plugins.path().to_str().expect("a readable name").to_owned();
    let devices = DEVICES.to_string();
    let latch = Latch::start(data.path(), &[&["up", "--devices", &devices, "--plugins", &folder], FREE_PORTS].concat());
    let service = Arc::new(client(data.path()));
    let stop = Arc::new(AtomicBool::new(false));
    let callers = runtime.block_on(async {
        let mut callers = JoinSet::new();
        for caller in 0..IN_FLIGHT {
            callers.spawn(call_until(service.clone(), caller, stop.clone()));
        }
        callers
    });
    let begun = Instant::now();
    harness::poll(BEFORE, || None::<()>);
    let first_swap = begun.elapsed();
    let versions = [guests().join("next/lock-door.wasm"), guests().join("lock-door.wasm")];
    for turn in 0..SWAPS {
        let file = versions[turn % 2].to_str().expect("a readable name");
        latch_json(data.path(), &["plugin", "swap", "lock-door", file]);
    }
    let took = begun.elapsed() - first_swap;
    stop.store(true, Ordering::Relaxed);
    let calls: Vec<Call> = runtime.block_on(callers.join_all()).into_iter().flatten().collect();
    report(&calls, begun + first_swap, took);
    latch.stop();
}

/// A plugin is loaded: compiled, and from the cache on disk.
fn load() {
    println!("== load");
    for file in ["lock-door.wasm", "lang/js/lock-door.wasm", "lang/python/lock-door.wasm"] {
        let Ok(wasm) = std::fs::read(guests().join(file)) else {
            println!("{file} is not there; `latch plugin build --lang js,python` makes it");
            continue;
        };
        let data = tempfile::tempdir().expect("a temporary folder can be made");
        let cache = CacheSettings::new(data.path().join("cache"), data.path().join("cache.key"));
        let compiled = load_once(&wasm, &cache);
        let mut cached: Vec<Duration> = (0..CACHED_LOADS).map(|_| load_once(&wasm, &cache)).collect();
        cached.sort_unstable();
        let cached = cached[CACHED_LOADS / 2];
        let ratio = compiled.as_secs_f64() / cached.as_secs_f64();
        println!("{file}: compiled {compiled:.1?}, from the cache {cached:.1?}, {ratio:.0} times as fast");
    }
}

/// As a host does after its start: in a runtime that has nothing in memory.
fn load_once(wasm: &[u8], cache: &CacheSettings) -> Duration {
    let runtime = PluginRuntime::with_cache(RuntimeSettings::default(), cache).expect("a runtime");
    let name = PluginName::parse("lock-door").expect("a name");
    let source = PluginSource { name, wasm: wasm.to_owned(), terms: Terms::default() };
    let begun = Instant::now();
    runtime.load(source).expect("a good plugin");
    begun.elapsed()
}

struct Call {
    at: Instant,
    took: Duration,
    /// `None` for a call that failed.
    version: Option<String>,
}

async fn call_until(service: Arc<ServiceClient>, caller: u32, stop: Arc<AtomicBool>) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        let door = (caller + turn * IN_FLIGHT) % DEVICES + 1;
        let method = if turn % 2 == 0 { "lockDoor" } else { "unlockDoor" };
        turn += 1;
        let device = Address::parse(&format!("door-{door:04}")).expect("an address");
        let at = Instant::now();
        let answer = service.invoke_method(&device, &direct_method(method)).await;
        let version = answer.ok().and_then(|answer| Some(answer.payload["version"].as_str()?.to_owned()));
        calls.push(Call { at, took: at.elapsed(), version });
    }
    calls
}

fn report(calls: &[Call], first_swap: Instant, took: Duration) {
    let failed = calls.iter().filter(|call| call.version.is_none()).count();
    println!("{SWAPS} swaps in {took:.2?}, {} calls, {failed} failed", calls.len());
    for (name, during) in [("before", false), ("during", true)] {
        let mut times: Vec<Duration> =
            calls.iter().filter(|call| (call.at >= first_swap) == during).map(|call| call.took).collect();
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        println!(
            "calls {name} the swaps: {} calls, median {:.1?}, p99 {:.1?}, longest {:.1?}",
            times.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}

fn direct_method(name: &str) -> DirectMethod {
    DirectMethod {
        method_name: MethodName::parse(name).expect("a name"),
        payload: Value::Null,
        response_timeout_in_seconds: Some(30),
        connect_timeout_in_seconds: None,
    }
}

fn client(data: &Path) -> ServiceClient {
    let text = std::fs::read_to_string(data.join("service.connstr")).expect("the hub wrote it");
    let pem = std::fs::read(data.join("ca.pem")).expect("the hub wrote it");
    let tls = client_config(Roots::Pem(&pem)).expect("a configuration");
    let connection = ServiceConnectionString::parse(text.trim()).expect("a connection string");
    ServiceClient::new(connection, tls).expect("a client")
}
