//! `kill -9` between any two steps of the host, in a process of its own, with the real store, driver and plugin.
//!
//! The host tells its steps in its log, at the finest level: a call begins, is over, what it did is handed over,
//! committed and written, a message leaves. The test runs the host as another process, notes each step that it takes,
//! and has it killed at each of them in turn. After that it starts the host again over the same folder, and the hub,
//! which has outlived it, sees what has become of the calls.

mod component;
mod host;
mod hub;
mod steps;
mod trial;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use tempfile::TempDir;

use hub::Kind;
use steps::Point;
use trial::{End, Trial};
use wire::Step;

/// What there must be among the points, and of which work.
const STEPS: &[(&str, &[&str])] = &[
    ("call begins", WORKS),
    ("about to return", WORKS),
    ("call is over", WORKS),
    ("record is handed over", WORKS),
    ("commit begins", WORKS),
    ("record is written", WORKS),
    // What the hub has confirmed.
    ("record is handed over", &[""]),
    ("commit begins", &[""]),
    ("record is written", &[""]),
    ("message has left", &[""]),
    ("hub has the subscription", &[""]),
    ("hub has an answer", &[""]),
    ("hub has reported properties", &[""]),
    ("hub has telemetry", &[""]),
    ("hub knows that a message is dealt with", &[""]),
];
const WORKS: &[&str] = &["method", "message", "change", "timer"];

/// A folder with the plugin, and its compiled code once the first host has made it.
fn shared() -> TempDir {
    let shared = tempfile::tempdir().expect("a folder");
    let plugins = shared.path().join("plugins");
    fs::create_dir(&plugins).expect("a folder");
    fs::write(plugins.join("ledger.wasm"), component::ledger()).expect("written");
    shared
}

/// Every step that a host takes which nobody kills, each as often as it is taken.
fn points(shared: &Path) -> BTreeSet<Point> {
    let mut trial = Trial::new(shared, TO_DO, 1);
    assert_eq!(trial.live(None), End::Stopped);
    trial.check();
    let mut taken: BTreeMap<Step, usize> = BTreeMap::new();
    let counted = trial.steps().map(|step| {
        let nth = taken.entry(step.clone()).or_default();
        *nth += 1;
        Point { step: Some(step), nth: *nth }
    });
    counted.collect()
}

#[test]
fn after_a_kill_at_any_step_there_is_what_was_recorded_and_nothing_else() {
    let shared = shared();
    let points = points(shared.path());
    for (what, works) in STEPS {
        for work in *works {
            let step = Step { what: (*what).to_owned(), work: (*work).to_owned() };
            let point = Point { step: Some(step), nth: 1 };
            assert!(points.contains(&point), "no host says `{what}` of the work `{work}`: {points:?}");
        }
    }
    let to_try = Mutex::new(points.into_iter());
    let next = || to_try.lock().expect("nobody panics with it").next();
    let try_them = || {
        while let Some(point) = next() {
            let mut trial = Trial::new(shared.path(), TO_DO, 1);
            let end = trial.live(Some(&point));
            // Timers run by the clock, so one host may send in one piece what another one sends in two.
            assert!(end == End::Killed || point.nth > 1, "no host has come to {point:?}");
            trial.live(None);
            trial.check();
            trial.check_that_nothing_is_left();
        }
    };
    thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(try_them))));
}

/// Each host comes one step further than the one before, so most are killed while they make up for that one's end.
#[test]
fn hosts_that_are_killed_one_after_the_other_get_there() {
    let shared = shared();
    let to_do = [[Kind::Letter, Kind::Method, Kind::Change, Kind::Letter]; 6].concat();
    let mut trial = Trial::new(shared.path(), &to_do, 3);
    for nth in 1..=KILLS {
        assert_eq!(trial.live(Some(&Point { step: None, nth })), End::Killed);
    }
    trial.live(None);
    trial.check();
    trial.check_that_nothing_is_left();
}

/// What a device is to do beside the method that each host's hub begins with.
const TO_DO: &[Kind] = &[Kind::Letter, Kind::Change];
/// So few that there is something left to do after the last of them.
const KILLS: usize = 60;
