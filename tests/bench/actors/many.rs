//! Very many actors in one process: what each costs, and how long a call takes that must first make an instance.

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use tokio::runtime::Builder;

use crate::Asked;
use crate::figures::{Times, maps, resident, verdict};
use crate::fleet::channels::{Door, Fleet, Sizes, in_time, method};
use crate::harness::plugin_folder;

const DEVICES: usize = 100_000;
/// As `latch` has it.
const RESIDENT: usize = 256;
/// MiB that all of it may take.
const MEMORY: f64 = 2048.0;
/// From a call's message to its answer, instance made on the way.
const ACTIVATION: Duration = Duration::from_millis(1);
/// Views are read this often: reading all of them takes as long as hundreds of calls.
const LOOKS: usize = 20;

pub(crate) fn run(asked: &Asked) {
    let devices = asked.size("devices", DEVICES);
    let resident = asked.size("resident", RESIDENT);
    Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(async move {
        tokio::spawn(measure(devices, resident)).await.expect("no call is lost");
    });
}

async fn measure(devices: usize, most: usize) {
    let (data, plugins) = (tempfile::tempdir().expect("a folder"), plugin_folder(&["lock-door"]));
    let before = resident();
    let begun = Instant::now();
    let mut sizes = Sizes::of(devices).resident(most);
    // One call at a time, so a single instance more than may stay would have no room and fail its call.
    sizes.runtime.max_in_flight = 1;
    let (fleet, mut doors) = Fleet::start(data.path(), plugins.path(), sizes).await;
    wait_for_all(&fleet, |view| view.connected).await;
    println!("{devices} devices started and connected: {:.2?}", begun.elapsed());
    report_memory("when connected", before, devices);

    doors.shuffle(&mut SmallRng::seed_from_u64(4));
    let times = in_time("a call to each", call_each(&fleet, &mut doors, most)).await;
    let p99 = times.at(0.99);
    println!("cold activations, message to answer: {}{}", times.summary(), verdict(p99 < ACTIVATION));
    report_memory("after a recorded call to each", before, devices);
    println!("memory maps: {}", maps());
    println!("resident memory in all: {:.0} MiB{}", resident(), verdict(resident() < MEMORY));
    fleet.stop().await;
    drop(doors);

    let begun = Instant::now();
    let (fleet, doors) = Fleet::start(data.path(), plugins.path(), Sizes::of(devices).resident(most)).await;
    wait_for_all(&fleet, |view| view.connected).await;
    println!("started again, with the state of {devices} devices: {:.2?}", begun.elapsed());
    println!("resident memory then: {:.0} MiB{}", resident(), verdict(resident() < MEMORY));
    fleet.stop().await;
    drop(doors);
}

async fn call_each(fleet: &Fleet, doors: &mut [Door], most: usize) -> Times {
    let lock = method("lockDoor");
    let look = doors.len().div_ceil(LOOKS);
    let mut times = Vec::with_capacity(doors.len());
    let mut instances = 0;
    for (number, door) in doors.iter_mut().enumerate() {
        let begun = Instant::now();
        let answer = door.call(&lock, r#"{"by": "ann"}"#).await;
        times.push(begun.elapsed());
        assert_eq!(answer.status, 200, "{answer:?}");
        // The event and the reported property.
        door.attend_to(2).await;
        if (number + 1).is_multiple_of(look) {
            let resident = fleet.roster.views().iter().map(|(_, view)| view.resident).sum();
            assert!(resident <= most, "{resident} instances, {most} may stay");
            instances = instances.max(resident);
        }
    }
    println!("most instances seen at once: {instances}, {most} may stay");
    Times::new(times)
}

async fn wait_for_all(fleet: &Fleet, is_so: impl Fn(&device_actors::ActorView) -> bool) {
    while !fleet.roster.views().iter().all(|(_, view)| is_so(view)) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn report_memory(when: &str, before: f64, devices: usize) {
    let grown = resident() - before;
    println!("resident memory {when}: {grown:.0} MiB more, {:.2} KiB a device", grown * 1024.0 / devices as f64);
}
