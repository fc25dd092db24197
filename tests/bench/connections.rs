//! Many connected devices on one hub: how fast they come, what each costs while it is idle.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use iothub_device::tls::{Roots, client_config};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::runtime::Runtime;

use super::figures::{processor_time, resident, verdict};
use super::harness::{FREE_PORTS, Latch, latch_ok};
use super::swarm::{self, Hub};

/// Devices that connect in a run that says nothing else; twice as many are registered.
pub(crate) const COUNT: usize = 10_000;
/// Connections a second, at least.
const RATE: f64 = 2000.0;
/// Memory of the hub for each idle connection, in KiB, at most.
const MEMORY: f64 = 20.0;
/// How often all of them connect: the hub must not keep what the first ones needed.
const ROUNDS: usize = 3;
/// Descriptors beside those of devices.
const SPARE: u64 = 256;

pub(crate) fn connections(runtime: &Runtime, count: usize) {
    println!("== connections");
    raise_descriptors(count);
    let data = tempfile::tempdir().expect("a temporary folder can be made");
    let file = data.path().join("devices.jsonl");
    write_devices(&file, 2 * count);
    latch_ok(data.path(), &["hub", "import", file.to_str().expect("a readable name")]);
    let latch = Latch::start(data.path(), &[&["hub"], FREE_PORTS].concat());
    let before = resident(latch.pid());
    println!("{} devices registered; resident memory of the hub without connections: {before:.1} MiB", 2 * count);
    let pem = fs::read(data.path().join("ca.pem")).expect("the hub wrote it");
    let tls = client_config(Roots::Pem(&pem)).expect("a configuration");
    let hub = Hub::new(mqtt_address(latch.ready()), &tls);
    for round in 1..=ROUNDS {
        let begun = [processor_time(latch.pid()), processor_time(std::process::id())];
        let (mut devices, took) = runtime.block_on(swarm::connect(&hub, count));
        let used = [processor_time(latch.pid()) - begun[0], processor_time(std::process::id()) - begun[1]];
        let rate = count as f64 / took.as_secs_f64();
        println!(
            "{count} devices connected and subscribed, each having verified the hub: {took:.2?}, {rate:.0}/s{}",
            verdict(rate >= RATE)
        );
        let micros = used.map(|seconds| seconds * 1e6 / count as f64);
        println!("  processor time of each: {:.0}µs in the hub, {:.0}µs in the devices' process", micros[0], micros[1]);
        let took = runtime.block_on(swarm::ping(&mut devices));
        println!("  all of them answered a ping: {took:.2?}");
        let each = (resident(latch.pid()) - before) * 1024.0 / count as f64;
        println!("  resident memory of the hub: {each:.1} KiB for each{}", verdict(each < MEMORY));
        drop(devices);
        if round < ROUNDS {
            println!("all of them are gone without a word");
        }
    }
    latch.stop();
}

fn write_devices(path: &Path, count: usize) {
    let mut file = BufWriter::new(File::create(path).expect("the folder can be written"));
    for number in 0..count {
        let key = swarm::key(number).to_base64();
        let keys = json!({"primaryKey": key, "secondaryKey": key});
        let line = json!({"id": swarm::id(number), "authentication": {"type": "sas", "symmetricKey": keys}});
        writeln!(file, "{line}").expect("the disk has room");
    }
    file.flush().expect("the disk has room");
}

/// From the line that the hub says when it is ready.
fn mqtt_address(ready: &str) -> SocketAddr {
    let address = ready.split_whitespace().find_map(|field| field.strip_prefix("mqtt="));
    address.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("no address in `{ready}`"))
}

/// This process has one end of each connection; the hub, another process, raises its own limit.
fn raise_descriptors(count: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("the soft limit can be raised to the hard one");
    let fit = limit.maximum.unwrap_or(u64::MAX).saturating_sub(SPARE);
    assert!(count as u64 <= fit, "{count} devices do not fit: a process may open so many files that {fit} do");
}
