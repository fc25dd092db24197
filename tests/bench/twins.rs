//! A store of a million twins: loaded, started on, queried.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use iothub_service::{PageRequest, ServiceClient};
use serde_json::json;
use tokio::runtime::Runtime;

use super::client;
use super::figures::{processor_time, resident, verdict};
use super::harness::{FREE_PORTS, Latch, latch_command};

/// Twins of a run that says nothing else.
pub(crate) const COUNT: usize = 1_000_000;
/// Values of the tag that is looked for.
const SITES: usize = 1000;
/// Runs of a query, of which the middle one counts.
const RUNS: usize = 5;
/// Devices imported in a second, at least.
const RATE: f64 = 50_000.0;
/// What an answer takes at most that an index leads to, or the order of ids.
const FOUND: Duration = Duration::from_millis(50);
/// What one takes at most for which all twins have to be looked at.
const LOOKED_FOR: Duration = Duration::from_secs(3);
/// Resident memory of the hub, in MiB, at most.
const MEMORY: f64 = 500.0;
/// Loading, or an index, takes no longer.
const BOUND: Duration = Duration::from_secs(600);

pub(crate) fn twins(runtime: &Runtime, count: usize) {
    println!("== twins");
    let data = tempfile::tempdir().expect("a temporary folder can be made");
    let file = data.path().join("devices.jsonl");
    write_devices(&file, count);
    let file = file.to_str().expect("a readable name");
    let took = command(data.path(), &["hub", "import", file]);
    let rate = count as f64 / took.as_secs_f64();
    println!("{count} devices imported into a hub that does not run: {took:.2?}, {rate:.0}/s{}", verdict(rate >= RATE));
    let size = std::fs::metadata(data.path().join("hub.db")).expect("it is there").len();
    println!("the store: {} MiB", size / 1024 / 1024);

    let begun = Instant::now();
    let latch = Latch::start(data.path(), &[&["hub"], FREE_PORTS].concat());
    println!("a hub with them ready: {:.2?}; resident memory: {:.1} MiB", begun.elapsed(), resident(latch.pid()));
    let service = client(data.path());
    let ask = |what: &str, query: &str, bound: Duration| {
        let begun = processor_time(latch.pid());
        let took = runtime.block_on(first_page(&service, query));
        let used = (processor_time(latch.pid()) - begun) / RUNS as f64;
        println!("{what}: {took:.1?}, {used:.2}s of processor time{}", verdict(took < bound));
    };
    let by_site = "SELECT deviceId FROM devices WHERE tags.site = 'site-7'";
    ask("first page of WHERE tags.site = 'site-7', not indexed", by_site, LOOKED_FOR);
    ask(
        "first page of WHERE tags.site = 'nowhere', not indexed",
        "SELECT deviceId FROM devices WHERE tags.site = 'nowhere'",
        LOOKED_FOR,
    );
    ask("first page of SELECT *", "SELECT * FROM devices", FOUND);
    let by_tag = "SELECT tags.floor AS floor, COUNT() AS n FROM devices GROUP BY tags.floor";
    ask("COUNT by tag", by_tag, LOOKED_FOR);
    ask(
        "COUNT where a reported property has a value",
        "SELECT COUNT() AS n FROM devices WHERE properties.reported.firmware = 3",
        LOOKED_FOR,
    );
    ask("COUNT of all", "SELECT COUNT() AS n FROM devices", LOOKED_FOR);
    let took = command(data.path(), &["hub", "index", "add", "tags.site"]);
    println!("index on tags.site built: {took:.2?}");
    ask("first page of WHERE tags.site = 'site-7', indexed", by_site, FOUND);
    let count_of_site = "SELECT COUNT() AS n FROM devices WHERE tags.site = 'site-7'";
    ask("COUNT WHERE tags.site = 'site-7', indexed", count_of_site, FOUND);
    ask("one device by its id", "SELECT * FROM devices WHERE deviceId = 'device-0000007'", FOUND);
    let copy = data.path().join("copy.db");
    let took = command(data.path(), &["hub", "backup", copy.to_str().expect("a readable name")]);
    println!("copied while it runs: {took:.2?}");
    let memory = resident(latch.pid());
    println!("resident memory after all: {memory:.1} MiB{}", verdict(memory < MEMORY));
    latch.stop();
}

fn write_devices(path: &Path, count: usize) {
    let mut file = BufWriter::new(File::create(path).expect("the folder can be written"));
    for number in 0..count {
        let line = json!({
            "id": format!("device-{number:07}"),
            "tags": {"site": format!("site-{}", number % SITES), "floor": number % 5},
            "properties": {"desired": {"interval": 60}, "reported": {"firmware": number % 10}},
        });
        writeln!(file, "{line}").expect("the disk has room");
    }
    file.flush().expect("the disk has room");
}

/// Runs `latch ARGS` to its end.
fn command(data: &Path, args: &[&str]) -> Duration {
    let begun = Instant::now();
    let status = latch_command(data, args).status().expect("latch runs");
    let took = begun.elapsed();
    assert!(status.success() && took < BOUND, "latch {args:?}: {status} after {took:?}");
    took
}

/// How long the first page of a query takes, a hundred rows.
async fn first_page(service: &ServiceClient, query: &str) -> Duration {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let page = PageRequest { max_items: Some(100), continuation: None };
        let begun = Instant::now();
        let answer = service.query(query, &page).await;
        times.push(begun.elapsed());
        answer.unwrap_or_else(|error| panic!("{query}: {error}"));
    }
    times.sort_unstable();
    times[RUNS / 2]
}
