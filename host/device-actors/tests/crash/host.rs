//! The process that is killed: one device on the real store, with a real plugin, its connection on a socket.

use std::env;
use std::io::{BufRead, BufReader, stdin};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use device_actors::{Limits, Roster, RosterSettings, StateStore};
use durable_store::Durability;
use iothub_protocol::id::DeviceId;
use iothub_protocol::link::FromHub;
use plugin_runtime::{CacheSettings, Catalog, Runtime, RuntimeSettings};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::steps::{Point, Steps};
use crate::wire::ToHost;

/// The folder with everything that a device keeps; set for the second process.
pub(crate) const DATA_VARIABLE: &str = "LATCH_CRASH_DATA";
/// The folder with everything that devices share, `plugins` and compiled code.
pub(crate) const SHARED_VARIABLE: &str = "LATCH_CRASH_SHARED";
/// Where the process ends, if it is not told to: a [`Point`] in JSON.
pub(crate) const POINT_VARIABLE: &str = "LATCH_CRASH_POINT";

#[test]
#[ignore = "the process that the other tests start and kill"]
fn host() {
    let folder = |name: &str| env::var_os(name).map(PathBuf::from);
    let (Some(data), Some(shared)) = (folder(DATA_VARIABLE), folder(SHARED_VARIABLE)) else { return };
    let last = env::var(POINT_VARIABLE).ok();
    let last = last.map(|text| serde_json::from_str::<Point>(&text).expect("a point"));
    let hub = UnixStream::from(stdin().as_fd().try_clone_to_owned().expect("one more handle"));
    let steps = Steps::new(hub.try_clone().expect("one more handle"), last);
    tracing::subscriber::set_global_default(steps.clone()).expect("the first one");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(serve(&data, &shared, hub, &steps));
}

/// Until the hub hangs up.
async fn serve(data: &Path, shared: &Path, hub: UnixStream, steps: &Steps) {
    let cache = CacheSettings { folder: shared.join("cache"), key_file: shared.join("cache.key"), max_bytes: 64 << 20 };
    let settings = RuntimeSettings { max_resident: 1, max_in_flight: 1, ..RuntimeSettings::default() };
    let runtime = Runtime::with_cache(settings, &cache).expect("a runtime");
    let (plugins, versions) = (shared.join("plugins"), data.join("versions"));
    let catalog = Catalog::open(&plugins, &versions, runtime.clone()).await.expect("a catalog");
    let store = StateStore::open(&data.join("state.db"), Durability::Process).expect("a store");
    let ((to_actor, from_hub), (to_hub, mut from_actor)) = (mpsc::channel(8), mpsc::channel(8));
    std::thread::spawn(move || listen(hub, &to_actor));
    let device = vec![(DeviceId::parse("door").expect("an id"), from_hub, to_hub)];
    let settings = RosterSettings { limits: Limits::default(), max_resident: 1, ..RosterSettings::default() };
    let (plugins, stop) = (catalog.subscribe(), CancellationToken::new());
    let roster = Roster::start(settings, runtime, store.clone(), plugins, device, stop).await.expect("a roster");
    while let Some(message) = from_actor.recv().await {
        steps.send(message.into());
    }
    assert_eq!(roster.shutdown().await, 0, "it stops in time");
    store.close().await;
}

/// The device loses its connection for good when the hub hangs up.
fn listen(hub: UnixStream, to_actor: &mpsc::Sender<FromHub>) {
    for line in BufReader::new(hub).lines() {
        let message: ToHost = serde_json::from_str(&line.expect("a line")).expect("what the hub says");
        to_actor.blocking_send(message.into()).expect("the actor runs");
    }
}
