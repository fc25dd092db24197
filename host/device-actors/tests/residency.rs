//! Many devices share few instances: never more than the cap exist, and every device gets its turn.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use device_actors::{Limits, Roster, RosterSettings, StateStore};
use durable_store::Durability;
use iothub_protocol::id::{DeviceId, MethodName, RequestId};
use iothub_protocol::link::{FromHub, ToHub, TwinDocument};
use plugin_runtime::{Catalog, Runtime, RuntimeSettings};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const DEVICES: u32 = 200;
const CAP: u32 = 8;
/// Calls of each device, one after the other; between two of them it may lose its instance to another.
const CALLS: u32 = 5;

/// The hub's ends of a device's channels.
type Ends = (mpsc::Sender<FromHub>, mpsc::Receiver<ToHub>);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_never_more_instances_than_places() {
    let folder = tempfile::tempdir().expect("a folder");
    let plugins = folder.path().join("plugins");
    std::fs::create_dir(&plugins).expect("made");
    let echo = ECHO.replace(";; methods", include_str!("../../../tests/fixtures/methods.wat"));
    std::fs::write(plugins.join("echo.wasm"), wat::parse_str(echo).expect("a component")).expect("written");
    // The pool has one place more, for the self-test: with it as many as the devices may have, so that one instance too
    // many is a call that fails.
    let settings = RuntimeSettings { max_resident: CAP - 1, max_in_flight: 0, ..RuntimeSettings::default() };
    let runtime = Runtime::new(settings).expect("a runtime");
    let catalog = Catalog::open(&plugins, &folder.path().join("versions"), runtime.clone()).await.expect("a catalog");
    let store = StateStore::open(&folder.path().join("state.db"), Durability::Process).expect("a store");
    let limits = Limits { idle: Duration::from_secs(3600), ..Limits::default() };
    let settings = RosterSettings { limits, max_resident: CAP as usize, ..RosterSettings::default() };

    let (mut ends, mut devices) = (HashMap::new(), Vec::new());
    for number in 0..DEVICES {
        let id = DeviceId::parse(&format!("door-{number}")).expect("an id");
        let ((to_actor, from_hub), (to_hub, from_actor)) = (mpsc::channel(4), mpsc::channel(4));
        ends.insert(id.clone(), (to_actor, from_actor));
        devices.push((id, from_hub, to_hub));
    }
    let set = catalog.subscribe();
    let started = Roster::start(settings, runtime.clone(), store.clone(), set, devices, CancellationToken::new()).await;
    let roster = started.expect("a roster");

    let over = Arc::new(AtomicBool::new(false));
    let watching = std::thread::spawn(watch(runtime.clone(), over.clone()));
    let mut callers = JoinSet::new();
    for ends in ends.into_values() {
        callers.spawn(call(ends));
    }
    // The ends are kept, since a device that loses its connection stops.
    let ends = callers.join_all().await;
    over.store(true, Ordering::Relaxed);
    let most = watching.join().expect("it watched");

    assert!((1..=u64::from(CAP)).contains(&most), "{most} at once");
    let views = roster.views();
    let failures: u64 = views.iter().map(|(_, view)| view.failures).sum();
    let calls: u64 = views.iter().map(|(_, view)| view.calls).sum();
    assert_eq!((ends.len(), calls, failures), (DEVICES as usize, u64::from(DEVICES * CALLS), 0));
    assert_eq!(roster.shutdown().await, 0);
    assert_eq!(runtime.live_instances(), 0, "a device that stops takes its instances along");
    store.close().await;
}

/// The most instances that were seen at once.
fn watch(runtime: Runtime, over: Arc<AtomicBool>) -> impl FnOnce() -> u64 {
    move || {
        let mut most = 0;
        while !over.load(Ordering::Relaxed) {
            most = runtime.live_instances().max(most);
            std::thread::yield_now();
        }
        most
    }
}

/// A hub that calls one device.
async fn call((to_actor, mut from_actor): Ends) -> Ends {
    let name = MethodName::parse("echo").expect("a name");
    for greeting in [FromHub::Connected, FromHub::Twin(TwinDocument::default())] {
        to_actor.send(greeting).await.expect("the actor runs");
    }
    for turn in 0..CALLS {
        let rid = RequestId::parse(&turn.to_string()).expect("an id");
        let payload = format!("\"{turn}\"");
        let method = FromHub::Method { rid: rid.clone(), name: name.clone(), payload: payload.clone() };
        to_actor.send(method).await.expect("the actor runs");
        let answer = from_actor.recv().await.expect("the actor runs");
        assert_eq!(answer, ToHub::MethodResponse { rid, status: 200, payload });
    }
    (to_actor, from_actor)
}

/// Answers the method `echo` with its payload. Memory: the list of names at 0, the answer at 32, the name at 64,
/// arguments from 4096 on.
const ECHO: &str = r#"
(component
  (core module $guest
    (memory (export "memory") 1)
    (data (i32.const 0) "\08\00\00\00\01\00\00\00\40\00\00\00\04\00\00\00")
    (data (i32.const 64) "echo")
    (global $free (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.get $free)
      (global.set $free (i32.add (global.get $free) (local.get 3))))
    (func (export "names") (result i32) (i32.const 0))
    (func (export "call")
      (param $name i32) (param $name_len i32) (param $payload i32) (param $payload_len i32) (result i32)
      (global.set $free (i32.const 4096))
      (i32.store (i32.const 32) (i32.const 200))
      (i32.store (i32.const 36) (local.get $payload))
      (i32.store (i32.const 40) (local.get $payload_len))
      (i32.const 32)))
  (core instance $guest (instantiate $guest))
  (core instance $libc (export "memory" (memory $guest "memory")) (export "realloc" (func $guest "realloc")))
  ;; methods
)
"#;
