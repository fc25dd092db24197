//! A new version lands in the plugin directory: how soon every device is on it, and how long each one pauses for that.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;
use tracing::Subscriber;
use tracing::span::Id;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::Asked;
use crate::figures::{Times, resident, verdict};
use crate::fleet::channels::{Door, Fleet, Sizes, in_time, method};
use crate::harness::{guests, plugin_folder};

const DEVICES: usize = 10_000;
/// Devices that have an instance when the version lands, and are called all the time.
const BUSY: usize = 200;
const LANDINGS: usize = 5;
/// From the file's arrival to the last device.
const ALL: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_micros(200);
const LABELS: [&str; 2] = ["1.0.0", "2.0.0"];

pub(crate) fn run(asked: &Asked) {
    let (devices, landings) = (asked.size("devices", DEVICES), asked.size("landings", LANDINGS));
    let pauses = Pauses::default();
    let is_pause = filter_fn(|metadata| metadata.is_span() && metadata.name() == "take_plugins");
    let subscriber = tracing_subscriber::registry().with(pauses.clone().with_filter(is_pause));
    tracing::subscriber::set_global_default(subscriber).expect("nobody else in this process listens");
    Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(async move {
        tokio::spawn(measure(devices, landings, pauses)).await.expect("no call is lost");
    });
}

async fn measure(devices: usize, landings: usize, pauses: Pauses) {
    let (data, plugins) = (tempfile::tempdir().expect("a folder"), plugin_folder(&["lock-door"]));
    // The busy devices stay warm; nothing else is called.
    let (fleet, mut doors) = Fleet::start(data.path(), plugins.path(), Sizes::of(devices)).await;
    let busy = doors.split_off(doors.len().saturating_sub(BUSY));
    let (stop, calls) = (CancellationToken::new(), Arc::new(Mutex::new(Vec::new())));
    let callers = busy.into_iter().map(|door| tokio::spawn(call_steadily(door, calls.clone(), stop.clone())));
    let callers: Vec<_> = callers.collect();
    // Both versions are compiled once, and every device has begun.
    for label in [LABELS[1], LABELS[0]] {
        land(&fleet, plugins.path(), label, devices, &pauses).await;
    }
    println!("{devices} devices, of which {BUSY} are called every {CALL_PAUSE:?}");
    take(&calls);
    for landing in 1..=landings {
        tokio::time::sleep(QUIET).await;
        let usual = Times::new(take(&calls));
        let label = LABELS[landing % 2];
        let (published, all) = land(&fleet, plugins.path(), label, devices, &pauses).await;
        let during = Times::new(take(&calls));
        let spans = Times::new(pauses.take());
        let p99 = spans.at(0.99);
        println!(
            "landing {landing}: current after {published:.0?}, on all devices after {all:.0?}{}; a device pauses for {}{}",
            verdict(all < ALL),
            spans.summary(),
            verdict(p99 < PAUSE)
        );
        println!("  calls before: {}; meanwhile: {}", usual.summary(), during.summary());
    }
    println!("resident memory: {:.0} MiB", resident());
    stop.cancel();
    for caller in callers {
        in_time("the last calls", caller).await.expect("no panic");
    }
    fleet.stop().await;
}

/// Put a version there as installers do. Until it was current, and until all devices had it.
async fn land(fleet: &Fleet, plugins: &Path, label: &str, devices: usize, pauses: &Pauses) -> (Duration, Duration) {
    let file = if label == LABELS[0] { "lock-door.wasm" } else { "next/lock-door.wasm" };
    let temporary = plugins.join(".lock-door.new");
    fs::copy(guests().join(file), &temporary).expect("copied");
    pauses.take();
    let mut current = fleet.catalog.subscribe();
    current.borrow_and_update();
    let begun = Instant::now();
    fs::rename(&temporary, plugins.join("lock-door.wasm")).expect("renamed");
    in_time("the version is current", current.changed()).await.expect("the catalog is there");
    let published = begun.elapsed();
    in_time("all devices have the version", async {
        while pauses.count() < devices {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let all = pauses.last().saturating_duration_since(begun);
    for (device, view) in fleet.roster.views() {
        assert_eq!(&*view.lineup.plugins[0].label, label, "{device}");
    }
    (published, all)
}

async fn call_steadily(mut door: Door, calls: Arc<Mutex<Vec<Duration>>>, stop: CancellationToken) {
    let names = [method("lockDoor"), method("unlockDoor")];
    for name in names.iter().cycle() {
        tokio::time::sleep(CALL_PAUSE).await;
        if stop.is_cancelled() {
            return;
        }
        let begun = Instant::now();
        let answer = door.call(name, "null").await;
        calls.lock().expect("no panic").push(begun.elapsed());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

fn take(calls: &Mutex<Vec<Duration>>) -> Vec<Duration> {
    std::mem::take(&mut calls.lock().expect("no panic"))
}

/// How long each device was busy with taking a version, as its driver's spans tell.
#[derive(Clone, Default)]
struct Pauses(Arc<Mutex<Vec<(Instant, Duration)>>>);

impl Pauses {
    fn count(&self) -> usize {
        self.0.lock().expect("no panic").len()
    }

    fn last(&self) -> Instant {
        self.0.lock().expect("no panic").iter().map(|(ended, _)| *ended).max().expect("some")
    }

    fn take(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.0.lock().expect("no panic")).into_iter().map(|(_, took)| took).collect()
    }
}

thread_local! {
    static ENTERED: Cell<Option<Instant>> = const { Cell::new(None) };
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Pauses {
    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        ENTERED.set(Some(Instant::now()));
    }

    fn on_exit(&self, _: &Id, _: Context<'_, S>) {
        let ended = Instant::now();
        if let Some(begun) = ENTERED.take() {
            self.0.lock().expect("no panic").push((ended, ended - begun));
        }
    }
}

/// Between two calls of a busy device: less than an instance may idle.
const CALL_PAUSE: Duration = Duration::from_millis(100);
/// Between two landings: calls as they are without one.
const QUIET: Duration = Duration::from_secs(2);
