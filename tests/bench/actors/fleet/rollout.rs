//! A bad version that goes out to a part of a fleet: who sees it, and what becomes of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iothub_protocol::id::DeviceId;
use plugin_runtime::{CanaryPolicy, Catalog, PluginName};
use serde_json::Value;
use tokio::task::JoinSet;

use super::channels::{Door, Fleet, Sizes, in_time, method};
use super::vices::Vice;

/// Whoever calls the devices, all of them again and again.
const CALLERS: usize = 8;
/// What a call of the bad version is answered with where it does not trap.
const BAD: i32 = 202;

/// What became of a canary.
pub(crate) struct Tried {
    /// Devices that it went to.
    pub(crate) canaries: usize,
    /// Of the version, until the last caller had heard that it is withdrawn.
    pub(crate) calls: usize,
    pub(crate) failures: usize,
    pub(crate) caught_after: Duration,
    pub(crate) reason: String,
}

/// What one caller has seen.
#[derive(Default)]
struct Seen {
    calls: usize,
    failures: usize,
    devices: BTreeSet<DeviceId>,
}

/// Put a version that fails a fifth of its calls on that many percent of the devices, call all devices until it is
/// withdrawn, and then once more. Every call of a device that is not a canary is answered well.
pub(crate) async fn try_a_bad_canary(data: &Path, plugins: &Path, devices: usize, percent: u8) -> Tried {
    let name = PluginName::parse("lock-door").expect("a name");
    // Room for every device, so that nobody waits for anybody.
    let (fleet, mut doors) = Fleet::start(data, plugins, Sizes::of(devices)).await;
    fleet.catalog.swap(&name, Vice::None.component()).await.expect("a good version");
    let policy = CanaryPolicy { percent, ..CanaryPolicy::default() };
    let report = fleet.catalog.canary(&name, Vice::TrapsForOneInFive.component(), policy).await.expect("on trial");
    let canaries = wait_for_canaries(&fleet, &report.to).await;
    let begun = Instant::now();
    let mut callers = JoinSet::new();
    let each = doors.len().div_ceil(CALLERS);
    while !doors.is_empty() {
        let some = doors.split_off(doors.len().saturating_sub(each));
        callers.spawn(call_until_withdrawn(some, fleet.catalog.clone(), Arc::from(&*report.to)));
    }
    let done = in_time("the canary is withdrawn", callers.join_all()).await;
    let caught_after = begun.elapsed();
    let seen = done.iter().map(|(seen, _)| seen);
    let touched: BTreeSet<_> = seen.clone().flat_map(|seen| &seen.devices).cloned().collect();
    assert!(touched.is_subset(&canaries), "only canaries saw it");
    let (calls, failures) = (seen.clone().map(|seen| seen.calls).sum(), seen.map(|seen| seen.failures).sum());
    let doors = done.into_iter().flat_map(|(_, doors)| doors);
    check_all_good(&fleet, doors.collect(), &canaries).await;
    let reason = withdrawn(&fleet.catalog).expect("it was withdrawn");
    fleet.stop().await;
    Tried { canaries: canaries.len(), calls, failures, caught_after, reason }
}

/// The devices that run the version, once all have taken the new rules.
async fn wait_for_canaries(fleet: &Fleet, version: &str) -> BTreeSet<DeviceId> {
    let generation = fleet.catalog.current().generation;
    in_time("all devices know the rules", async {
        loop {
            let views = fleet.roster.views();
            if views.iter().all(|(_, view)| view.lineup.generation >= generation) {
                let runs = views.into_iter().filter(|(_, view)| &*view.lineup.plugins[0].label == version);
                return runs.map(|(device, _)| device).collect();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

async fn call_until_withdrawn(mut doors: Vec<Door>, catalog: Catalog, bad: Arc<str>) -> (Seen, Vec<Door>) {
    let (mut seen, lock) = (Seen::default(), method("lockDoor"));
    for round in 0.. {
        if withdrawn(&catalog).is_some() {
            break;
        }
        for (number, door) in doors.iter_mut().enumerate() {
            // A number below a hundred, another one for each device and each time.
            let payload = ((number * 37 + round * 17) % 100).to_string();
            let answer = door.call(&lock, &payload).await;
            let told: Option<Value> = serde_json::from_str(&answer.payload).ok();
            let failed = answer.status >= 500;
            if failed {
                assert_eq!(told.expect("JSON")["version"], *bad, "{}: {}", door.id, answer.payload);
            }
            if failed || answer.status == BAD {
                seen.calls += 1;
                seen.failures += usize::from(failed);
                seen.devices.insert(door.id.clone());
            } else {
                assert_eq!((answer.status, answer.payload), (200, payload), "{}", door.id);
            }
        }
    }
    (seen, doors)
}

/// Every device answers with the good version.
async fn check_all_good(fleet: &Fleet, mut doors: Vec<Door>, canaries: &BTreeSet<DeviceId>) {
    let lock = method("lockDoor");
    let check = async {
        for door in &mut doors {
            let answer = door.call(&lock, "7").await;
            assert_eq!((answer.status, &*answer.payload), (200, "7"), "{}, {}", door.id, canaries.contains(&door.id));
        }
    };
    in_time("a call to each", check).await;
    assert!(fleet.roster.views().iter().all(|(device, view)| canaries.contains(device) || view.failures == 0));
}

fn withdrawn(catalog: &Catalog) -> Option<String> {
    let entry = catalog.list().into_iter().find(|entry| entry.name == "lock-door").expect("it runs");
    entry.withdrawn.map(|withdrawn| withdrawn.reason)
}
