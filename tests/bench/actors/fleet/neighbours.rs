//! One device among others that runs a bad version of lock-door, and what its neighbours notice.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use device_actors::Limits;
use plugin_runtime::{DeviceGlob, LoadError, PluginName};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::channels::{Answer, Door, Fleet, Sizes, door_id, in_time, method};
use super::vices::Vice;
use crate::harness::guests;

/// What is wrong with what a device is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evil {
    /// A plugin that misbehaves when it is called.
    Plugin(Vice),
    /// A component that is no plugin.
    WrongWorld,
    /// Bytes.
    Garbage,
    /// The first half of a good component.
    Truncated,
}

impl Evil {
    pub(crate) fn all() -> Vec<Evil> {
        Vice::ALL.map(Evil::Plugin).into_iter().chain([Evil::WrongWorld, Evil::Garbage, Evil::Truncated]).collect()
    }
}

/// How the neighbours are called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) devices: usize,
    /// Between two calls of one device.
    pub(crate) pause: Duration,
    /// Of each device.
    pub(crate) calls: u32,
}

/// What came of it.
pub(crate) struct Noticed {
    /// How long each call of a neighbour took.
    pub(crate) neighbours: Vec<Duration>,
    /// How long the bad one's callers waited, or whoever tried to load it.
    pub(crate) bad: Vec<Duration>,
}

/// Call all devices at a steady pace, the bad one among them, if there is one; what cannot be loaded is brought at that
/// pace. Each call of a neighbour must be answered well; each call of the bad one must get the answer that it deserves.
pub(crate) async fn observe(
    data: &Path,
    plugins: &Path,
    evil: Option<Evil>,
    load: Load,
    call_limit: Duration,
) -> Noticed {
    // Neither paused nor in quarantine, so that it goes on for as long as anybody looks.
    let limits = Limits { failures_in_a_row: u32::MAX, quarantine_after: u32::MAX, ..Limits::default() };
    let mut sizes = Sizes { limits, ..Sizes::of(load.devices) };
    sizes.runtime.call_time_limit = call_limit;
    let (fleet, mut doors) = Fleet::start(data, plugins, sizes).await;
    let bad = doors.remove(0);
    if let Some(Evil::Plugin(vice)) = evil {
        pin(&fleet, vice).await;
    }
    let mut neighbours = JoinSet::new();
    let (enough, begun) = (CancellationToken::new(), Instant::now());
    for (number, door) in doors.into_iter().enumerate() {
        let offset = load.pause * u32::try_from(number).expect("few") / u32::try_from(load.devices).expect("few");
        neighbours.spawn(call_steadily(door, load, begun + offset));
    }
    let work = async {
        let neighbours = neighbours.join_all().await;
        enough.cancel();
        neighbours
    };
    let misbehave = async {
        match evil {
            Some(Evil::Plugin(vice)) => call_bad(bad, vice, load.pause, &enough).await,
            Some(other) => load_bad(&fleet, other, load.pause, &enough).await,
            None => Vec::new(),
        }
    };
    let (neighbours, bad) = in_time("calls beside a bad plugin", async { tokio::join!(work, misbehave) }).await;
    fleet.stop().await;
    Noticed { neighbours: neighbours.into_iter().flatten().collect(), bad }
}

/// The first device runs the bad version, the others the one that they had.
async fn pin(fleet: &Fleet, vice: Vice) {
    let name = lock_door();
    let good = fs::read(guests().join("lock-door.wasm")).expect("a component");
    let bad = fleet.catalog.swap(&name, vice.component()).await.expect("it can be loaded").to;
    fleet.catalog.swap(&name, good).await.expect("a good version");
    let first = DeviceGlob::parse(door_id(1).as_str()).expect("a pattern");
    fleet.catalog.pin(&name, &bad, &first.into()).await.expect("it is kept");
}

async fn call_steadily(mut door: Door, load: Load, first: Instant) -> Vec<Duration> {
    let names = [method("lockDoor"), method("unlockDoor")];
    let mut ticks = paced(first, load.pause);
    let mut times = Vec::new();
    for (_, name) in (0..load.calls).zip(names.iter().cycle()) {
        ticks.tick().await;
        let begun = Instant::now();
        let answer = door.call(name, "null").await;
        times.push(begun.elapsed());
        assert_eq!(answer.status, 200, "{} beside a bad one: {answer:?}", door.id);
    }
    times
}

/// What is missed is not made up for, so that a slow device is called less often and not all at once.
fn paced(first: Instant, pause: Duration) -> Interval {
    let mut ticks = interval_at(first.into(), pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn call_bad(mut door: Door, vice: Vice, pause: Duration, enough: &CancellationToken) -> Vec<Duration> {
    let (lock, mut ticks) = (method("lockDoor"), paced(Instant::now(), pause));
    let mut times = Vec::new();
    while times.is_empty() || !enough.is_cancelled() {
        ticks.tick().await;
        let begun = Instant::now();
        let answer = door.call(&lock, "null").await;
        times.push(begun.elapsed());
        let fine = vice == Vice::TrapsEachThirdTime && !times.len().is_multiple_of(3);
        let Answer { status, payload } = answer;
        assert_eq!(status, if fine { 200 } else { vice.status() }, "{vice:?}, call {}: {payload}", times.len());
    }
    times
}

async fn load_bad(fleet: &Fleet, evil: Evil, pause: Duration, enough: &CancellationToken) -> Vec<Duration> {
    let good = fs::read(guests().join("lock-door.wasm")).expect("a component");
    let bytes = match evil {
        Evil::WrongWorld => fs::read(guests().join("fixtures/wrong-world.wasm")).expect("a component"),
        Evil::Truncated => good[..good.len() / 2].to_owned(),
        _ => good.iter().rev().copied().collect(),
    };
    let (mut times, mut ticks) = (Vec::new(), paced(Instant::now(), pause));
    while times.is_empty() || !enough.is_cancelled() {
        ticks.tick().await;
        let begun = Instant::now();
        let refused = fleet.catalog.swap(&lock_door(), bytes.clone()).await.expect_err("no good version");
        times.push(begun.elapsed());
        let as_it_should = match evil {
            Evil::WrongWorld => matches!(refused, LoadError::World { .. }),
            Evil::Truncated => matches!(refused, LoadError::Truncated { .. }),
            _ => matches!(refused, LoadError::NotWasm { .. } | LoadError::Text { .. }),
        };
        assert!(as_it_should, "{evil:?}: {refused}");
    }
    times
}

fn lock_door() -> PluginName {
    PluginName::parse("lock-door").expect("a name")
}
