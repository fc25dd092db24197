//! What a call of a plugin costs on a warm instance, from a device's mailbox to its answer, beside a handler in Rust that
//! does the same work between the same channels.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use device_actors::Limits;
use durable_store::{Durability, Store, sql};
use iothub_protocol::id::MethodName;
use iothub_protocol::link::{FromHub, TelemetryMessage, ToHub};
use plugin_runtime::{PluginName, PluginSource, PluginVersion, Snapshot, Terms};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::runtime::Builder;

use crate::Asked;
use crate::figures::{Times, verdict};
use crate::fleet::channels::{Door, Ends, Fleet, Sizes, door_id, doors, in_time, method};
use crate::fleet::vices::Vice;
use crate::harness::plugin_folder;
use door::Move;

/// The rules of lock-door, which the plugin and the native handler share.
#[path = "../../../plugins/lock-door/src/door.rs"]
#[expect(unused_imports, reason = "the plugin uses them")]
mod door;

/// Pairs of batches.
const ROUNDS: usize = 4000;
/// Calls in a batch: of those that change nothing, and of those that are recorded.
const BATCH: usize = 20;
const BATCH_RECORDED: usize = 4;
/// What a plugin may cost more than the native handler.
const TARGET: Duration = Duration::from_micros(3);

pub(crate) fn run(asked: &Asked) {
    let rounds = ["bare", "still", "recorded"].map(|kind| asked.size(kind, ROUNDS));
    println!("on one thread:");
    Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(measure(rounds));
    println!("on two threads:");
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime").block_on(async move {
        // On a worker, as the actors are.
        tokio::spawn(measure(rounds)).await.expect("no call is lost");
    });
}

/// So many pairs of batches of each kind.
async fn measure([bare_rounds, still_rounds, recorded_rounds]: [usize; 3]) {
    let (data, plugins) = (tempfile::tempdir().expect("a folder"), plugin_folder(&["lock-door"]));
    // Instances stay warm between batches.
    let limits = Limits { idle: Duration::from_secs(3600), ..Limits::default() };
    let (fleet, mut plugin) = Fleet::start(data.path(), plugins.path(), Sizes { limits, ..Sizes::of(1) }).await;
    let (mut native, ends) = doors(1);
    let store = Store::open(&data.path().join("native.db"), &[NATIVE_TABLES], Durability::Process).expect("a store");
    for ends in ends {
        tokio::spawn(native_handler(ends, store.clone()));
    }
    let (plugin, native) = (&mut plugin[0], &mut native[0]);
    let (lock, unlock) = (method("lockDoor"), method("unlockDoor"));
    let lock_door = fleet.catalog.current().plugins[0].clone();
    for (what, name, status) in [("changes nothing", &lock, 409), ("is recorded", &unlock, 200)] {
        let native = handled(name, status, bare_rounds);
        println!("  the work of a call that {what} in the host itself: {}", native.summary());
        let bare = bare_instance(&fleet, &lock_door, name, status, bare_rounds).await;
        let more = bare.at(0.5).saturating_sub(native.at(0.5));
        println!("  the same on an instance, without actor, channels and store: {}", bare.summary());
        println!("    difference of the medians: {more:.1?}{}", verdict(more <= TARGET));
    }
    let echo = load(&fleet, Vice::None.component()).await;
    let bare = bare_instance(&fleet, &echo, &lock, 200, bare_rounds).await;
    println!("  a call on an instance that only echoes: {}", bare.summary());
    // The door is locked: it is again and again, and nothing changes.
    let still = [lock.clone(), lock.clone()];
    let comparing = compare("changes nothing", plugin, native, &still, (still_rounds, BATCH));
    let more = in_time("calls that change nothing", comparing).await;
    println!("    difference: {}{}", more.summary(), verdict(more.at(0.5) <= TARGET));
    let moving = [unlock, lock];
    let comparing = compare("is recorded", plugin, native, &moving, (recorded_rounds, BATCH_RECORDED));
    let more = in_time("recorded calls", comparing).await;
    println!("    difference: {}{}", more.summary(), verdict(more.at(0.5) <= TARGET));
    fleet.stop().await;
    store.close().await;
}

async fn load(fleet: &Fleet, wasm: Vec<u8>) -> Arc<PluginVersion> {
    let name = PluginName::parse("echo").expect("a name");
    let (runtime, source) = (fleet.runtime.clone(), PluginSource { name, wasm, terms: Terms::default() });
    let loading = tokio::task::spawn_blocking(move || runtime.load(source));
    loading.await.expect("no panic").expect("a good plugin")
}

/// A call of a locked door, without actor, driver and channels.
async fn bare_instance(
    fleet: &Fleet,
    version: &Arc<PluginVersion>,
    name: &MethodName,
    status: i32,
    rounds: usize,
) -> Times {
    let mut instance = fleet.runtime.instantiate(version, &door_id(1), 0).await.expect("an instance");
    let snapshot = Snapshot {
        device_id: door_id(1),
        desired: Arc::default(),
        desired_version: 1,
        reported: Arc::default(),
        state: Arc::new([("door".to_owned(), DOOR.to_vec())].into()),
        timers: Arc::default(),
        now: 0,
        telemetry_room: 1024,
    };
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let begun = Instant::now();
        for _ in 0..BATCH {
            let (response, effects) = instance.call_method(snapshot.clone(), name, PAYLOAD).await.expect("an answer");
            assert!(
                response.status == status && effects.state.is_empty() == (name.as_str() == "lockDoor"),
                "{response:?}"
            );
        }
        times.push(begun.elapsed() / BATCH as u32);
    }
    Times::new(times)
}

/// So many batches of calls on both, in turn; by how much a call of the plugin takes longer, pair by pair.
async fn compare(
    what: &str,
    plugin: &mut Door,
    native: &mut Door,
    names: &[MethodName],
    (rounds, batch): (usize, usize),
) -> Times {
    let (mut of_plugin, mut of_native) = (Vec::new(), Vec::new());
    for round in 0..rounds + WARM_UP {
        let (ours, theirs) = (calls(plugin, names, batch).await, calls(native, names, batch).await);
        if round >= WARM_UP {
            of_plugin.push(ours);
            of_native.push(theirs);
        }
    }
    let more = of_plugin.iter().zip(&of_native).map(|(ours, theirs)| ours.saturating_sub(*theirs)).collect();
    println!("  a call that {what}, {rounds} pairs of batches of {batch}:");
    println!("    plugin: {}", Times::new(of_plugin).summary());
    println!("    native: {}", Times::new(of_native).summary());
    Times::new(more)
}

async fn calls(door: &mut Door, names: &[MethodName], count: usize) -> Duration {
    let begun = Instant::now();
    for turn in 0..count {
        let answer = door.call(&names[turn % names.len()], PAYLOAD).await;
        assert!(matches!(answer.status, 200 | 409), "{answer:?}");
    }
    begun.elapsed() / u32::try_from(count).expect("a small number")
}

/// A device without a plugin: as lock-door does it, in the host itself.
async fn native_handler((_, mut from_hub, to_hub): Ends, store: Store) {
    let mut kept: Option<Vec<u8>> = None;
    let mut sequence = 0;
    while let Some(message) = from_hub.recv().await {
        let FromHub::Method { rid, name, payload } = message else { continue };
        let (status, payload, moved) = handle(kept.as_deref(), &name, &payload);
        let Some(door) = moved else {
            to_hub.send(ToHub::MethodResponse { rid, status, payload }).await.expect("the caller waits");
            continue;
        };
        sequence += 1;
        let Texts { state, report, event } = texts(&door);
        kept = Some(state.clone());
        record(&store, sequence, state, report.clone(), event.clone()).await;
        to_hub.send(ToHub::MethodResponse { rid, status, payload }).await.expect("the caller waits");
        to_hub.send(ToHub::Telemetry { token: sequence, message: Box::new(event) }).await.expect("the caller waits");
        to_hub.send(ToHub::Report { token: sequence, patch: report }).await.expect("the caller waits");
    }
}

/// What a door that has moved keeps, reports and sends.
struct Texts {
    state: Vec<u8>,
    report: Map<String, Value>,
    event: TelemetryMessage,
}

fn texts(door: &door::Door) -> Texts {
    let event = json!({ "event": "doorMoved", "locked": door.locked, "by": door.moved_by, "count": door.count });
    Texts {
        state: serde_json::to_vec(door).expect("plain data"),
        report: json!({"door": {"locked": door.locked}}).as_object().cloned().expect("an object"),
        event: TelemetryMessage {
            message_id: format!("{:032x}", rand::random::<u128>()),
            content_type: Some("application/json".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            properties: vec![("event".to_owned(), "doorMoved".to_owned())],
            body: event.to_string().into_bytes(),
        },
    }
}

#[derive(Serialize)]
struct Body {
    locked: bool,
    count: u64,
    version: &'static str,
}

/// What lock-door answers, and the door if it has moved.
fn handle(kept: Option<&[u8]>, name: &MethodName, payload: &str) -> (i32, String, Option<door::Door>) {
    let by = match door::mover(payload) {
        Ok(by) => by,
        Err(reason) => return (400, json!({ "error": reason }).to_string(), None),
    };
    let mut door: door::Door = kept.map(|kept| serde_json::from_slice(kept).expect("ours")).unwrap_or_default();
    let moved = door.turn(name.as_str() == "lockDoor", by);
    let body = Body { locked: door.locked, count: door.count, version: "1.0.0" };
    let payload = serde_json::to_string(&body).expect("plain data");
    match moved {
        Move::Moved => (200, payload, Some(door)),
        Move::AlreadyThere => (409, payload, None),
    }
}

/// What such a call of a locked door takes without any plugin.
fn handled(name: &MethodName, expected: i32, rounds: usize) -> Times {
    let batches = (0..rounds).map(|_| {
        let begun = Instant::now();
        for _ in 0..BATCH {
            let (status, payload, moved) = black_box(handle(Some(DOOR), name, PAYLOAD));
            // What is kept, reported and sent of a door that has moved is text, too.
            black_box(moved.map(|door| texts(&door)));
            assert!(status == expected, "{payload}");
        }
        begun.elapsed() / BATCH as u32
    });
    Times::new(batches.collect())
}

/// The rows that an actor writes for a call of lock-door, in one transaction.
async fn record(store: &Store, sequence: u64, state: Vec<u8>, report: Map<String, Value>, event: TelemetryMessage) {
    let written = store.write(move |transaction| {
        let state = sql::params!["door", "lock-door", "door", state];
        transaction.prepare_cached("INSERT OR REPLACE INTO state VALUES (?1, ?2, ?3, ?4)")?.execute(state)?;
        let pending = sql::params!["door", json!(report).to_string()];
        transaction.prepare_cached("INSERT OR REPLACE INTO device VALUES (?1, ?2)")?.execute(pending)?;
        let taken = sql::params!["door", sequence.saturating_sub(1).cast_signed()];
        transaction.prepare_cached("DELETE FROM telemetry WHERE device = ?1 AND sequence = ?2")?.execute(taken)?;
        let properties = json!(event.properties).to_string();
        let number = sequence.cast_signed();
        let event = sql::params!["door", number, event.message_id, event.content_type, properties, event.body];
        transaction.prepare_cached("INSERT INTO telemetry VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(event)
    });
    written.await.expect("written");
}

const WARM_UP: usize = 200;
/// What a door that was locked once keeps.
const DOOR: &[u8] = br#"{"locked":true,"count":1,"moved_by":"ann"}"#;
const PAYLOAD: &str = r#"{"by": "ann"}"#;
const NATIVE_TABLES: &str = "
    CREATE TABLE state (device TEXT, plugin TEXT, key TEXT, value BLOB, PRIMARY KEY (device, plugin, key)) WITHOUT ROWID;
    CREATE TABLE device (id TEXT PRIMARY KEY, pending TEXT) WITHOUT ROWID;
    CREATE TABLE telemetry (
        device TEXT, sequence INTEGER, message_id TEXT, content_type TEXT, properties TEXT, body BLOB,
        PRIMARY KEY (device, sequence)
    ) WITHOUT ROWID;
";
