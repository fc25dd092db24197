//! The host as `up`, `run` and `demo` run it: plugins, actors, and a connection for each device. Devices can come and go
//! while it runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use admin::AdminState;
use anyhow::{Context as _, bail};
use device_actors::{Roster, RosterSettings, StateStore};
use durable_store::Durability;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use iothub_device::{DeviceConnection, DeviceConnectionSettings, LinkState};
use iothub_protocol::connection_string::DeviceConnectionString;
use iothub_protocol::id::DeviceId;
use iothub_protocol::link::{FromHub, ToHub};
use plugin_runtime::{CacheSettings, Catalog, CatalogOptions, PluginSet, Runtime, RuntimeSettings};
use rustls::ClientConfig;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::data_folder::DataFolder;
use crate::device_certificates::DeviceTls;
use crate::machine;
use crate::scenarios;
use crate::settings::HostSettings;

/// Devices that shake hands at once; more would only take the processors from each other.
const CONNECTS: usize = 64;
/// From a connection to its actor: a burst of notices and calls. When full the connection stops reading.
const TO_ACTOR: usize = 16;
/// From an actor to its connection.
const TO_HUB: usize = 16;
/// How long devices may take to connect: so much, and a second more for every so many of them.
const CONNECT_TIME: Duration = Duration::from_secs(30);
const CONNECTS_PER_SECOND: u64 = 50;
/// The folder in the data folder with earlier versions of plugins, and the operator's decisions.
const VERSIONS: &str = "versions";
/// The folder in the data folder with compiled plugins, and the file with the key that vouches for them.
const CACHE: &str = "cache";
const CACHE_KEY: &str = "cache.key";
/// So few instances must fit, or something else is wrong.
const FEW_INSTANCES: u32 = 16;
/// How many failed devices an error names.
const NAMED: usize = 3;

/// Plugins, loaded before anything else, as a wrong directory is the commonest mistake.
pub(crate) struct Plugins {
    runtime: Runtime,
    pub(crate) catalog: Option<Catalog>,
}

impl Plugins {
    pub(crate) async fn load(settings: &HostSettings, data: &DataFolder) -> anyhow::Result<Plugins> {
        let (limits, asked) = (settings.limits.runtime.clone(), settings.limits.instances);
        let cache = CacheSettings::new(data.path().join(CACHE), data.path().join(CACHE_KEY));
        let runtime = tokio::task::spawn_blocking(move || start_runtime(limits, asked, &cache)).await??;
        let catalog = match &settings.plugins {
            None => None,
            Some(folder) => {
                let versions = data.path().join(VERSIONS);
                let self_test = Some(scenarios::self_test(folder, &runtime));
                let options = CatalogOptions { plans: settings.plans.clone(), self_test };
                let catalog = Catalog::open_with(folder, &versions, runtime.clone(), options).await;
                Some(catalog.with_context(
                    || "hint: --plugins names a folder of components; `latch plugin build` makes target/plugins",
                )?)
            }
        };
        Ok(Plugins { runtime, catalog })
    }
}

/// A runtime with room for as many instances as were asked for, else for as many as suit the machine.
fn start_runtime(mut settings: RuntimeSettings, asked: Option<u32>, cache: &CacheSettings) -> anyhow::Result<Runtime> {
    let machine = machine::machine();
    settings.max_resident = machine::resident_cap(asked, machine, &settings)?;
    let runtime = loop {
        match Runtime::with_cache(settings.clone(), cache) {
            // A small address space (39 bits, or `ulimit -v`) has no room for what the memory could bear.
            Err(error) if asked.is_none() && settings.max_resident > FEW_INSTANCES => {
                tracing::info!(%error, instances = settings.max_resident, "not so many plugin instances fit, half is tried");
                settings.max_resident = (settings.max_resident / 2).max(FEW_INSTANCES);
            }
            started => break started?,
        }
    };
    tracing::info!(instances = settings.max_resident, ?machine, "room for plugin instances");
    Ok(runtime)
}

/// A host that runs.
pub(crate) struct Fleet {
    pub(crate) roster: Arc<Roster>,
    pub(crate) catalog: Option<Catalog>,
    connector: Connector,
    links: Mutex<BTreeMap<DeviceId, Link>>,
    watcher: Option<JoinHandle<()>>,
    store: StateStore,
}

/// What all connections share.
struct Connector {
    tls: DeviceTls,
    connects: Arc<Semaphore>,
    stop: CancellationToken,
}

/// One device's connection.
struct Link {
    /// What it was made from.
    device: DeviceConnectionString,
    connection: DeviceConnection,
    stop: CancellationToken,
}

/// The actor's side of a connection.
type ActorEnds = (DeviceId, mpsc::Receiver<FromHub>, mpsc::Sender<ToHub>);

/// How many devices came and went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DeviceChanges {
    pub(crate) added: usize,
    pub(crate) removed: usize,
    /// Stayed, with another connection string.
    pub(crate) reconnected: usize,
}

impl Fleet {
    /// Start an actor and a connection for each device. Does not wait for the connections.
    pub(crate) async fn start(
        plugins: Plugins,
        settings: &HostSettings,
        data: &DataFolder,
        devices: Vec<DeviceConnectionString>,
        tls: Arc<ClientConfig>,
    ) -> anyhow::Result<Fleet> {
        let path = data.path().join("state.db");
        let store = tokio::task::spawn_blocking(move || StateStore::open(&path, Durability::Process)).await??;
        let connects = Arc::new(Semaphore::new(CONNECTS));
        let tls = DeviceTls::new(tls, settings.certificates.clone());
        let connector = Connector { tls, connects, stop: CancellationToken::new() };
        let connected = devices.into_iter().map(|device| {
            let (link, ends) = connector.connect(device)?;
            Ok(((link.device.device_id.clone(), link), ends))
        });
        let connected: Vec<_> = connected.collect::<anyhow::Result<_>>()?;
        let (links, ends): (BTreeMap<_, _>, Vec<_>) = connected.into_iter().unzip();
        let roster = RosterSettings {
            limits: settings.limits.actors,
            max_resident: plugins.runtime.settings().max_resident as usize,
            ..RosterSettings::default()
        };
        let current = match &plugins.catalog {
            Some(catalog) => catalog.subscribe(),
            None => watch::channel(Arc::new(PluginSet::default())).1,
        };
        let stop = CancellationToken::new();
        let roster = Roster::start(roster, plugins.runtime, store.clone(), current, ends, stop).await?;
        let watcher =
            plugins.catalog.clone().map(|catalog| tokio::spawn(async move { match catalog.watch().await {} }));
        let (roster, links) = (Arc::new(roster), Mutex::new(links));
        Ok(Fleet { roster, catalog: plugins.catalog, connector, links, watcher, store })
    }

    pub(crate) fn len(&self) -> usize {
        self.links().len()
    }

    /// Run exactly these devices from now on. Those that go finish what they have in hand, and what they keep stays for
    /// when they come back. Does not wait for new connections. Not to be called twice at a time.
    ///
    /// # Errors
    /// If the state or the certificate of one cannot be read; that one is missing, and called again this tries it again.
    pub(crate) async fn set_devices(&self, devices: Vec<DeviceConnectionString>) -> anyhow::Result<DeviceChanges> {
        let mut wanted: BTreeMap<_, _> = devices.into_iter().map(|device| (device.device_id.clone(), device)).collect();
        let mut changes = DeviceChanges::default();
        let mut going = Vec::new();
        for (id, link) in &*self.links() {
            match wanted.get(id) {
                Some(device) if device.reveal() == link.device.reveal() => {
                    wanted.remove(id);
                    continue;
                }
                Some(_) => changes.reconnected += 1,
                None => changes.removed += 1,
            }
            going.push(id.clone());
        }
        changes.added = wanted.len() - changes.reconnected;
        stream::iter(going).for_each_concurrent(CONNECTS, |id| self.remove(id)).await;
        let coming = stream::iter(wanted.into_values().map(Ok));
        coming.try_for_each_concurrent(CONNECTS, |device| self.add(device)).await?;
        Ok(changes)
    }

    async fn remove(&self, id: DeviceId) {
        // First, so that its last answers still leave.
        self.roster.remove(&id).await;
        let stopped = self.links().get(&id).map(|link| {
            link.stop.cancel();
            link.connection.state.clone()
        });
        if let Some(mut state) = stopped {
            while state.changed().await.is_ok() {}
        }
        self.links().remove(&id);
    }

    async fn add(&self, device: DeviceConnectionString) -> anyhow::Result<()> {
        let (link, (id, from_hub, to_hub)) = self.connector.connect(device)?;
        // Without an actor the connection ends by itself.
        self.roster.add(id.clone(), from_hub, to_hub).await?;
        self.links().insert(id, link);
        Ok(())
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Link>> {
        // Nothing under the lock panics half-way.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait until all devices are connected.
    ///
    /// # Errors
    /// If some are not in time: how many, and why the first few are not. Fewer devices than asked for are never passed off
    /// as all.
    pub(crate) async fn connected(&self) -> anyhow::Result<()> {
        let states: Vec<_> =
            self.links().iter().map(|(id, link)| (id.clone(), link.connection.state.clone())).collect();
        let count = states.len();
        let patience = CONNECT_TIME + Duration::from_secs(count as u64 / CONNECTS_PER_SECOND);
        let deadline = Instant::now() + patience;
        let mut missing = Vec::new();
        for (id, mut state) in states {
            let ready = tokio::time::timeout_at(deadline.into(), state.wait_for(LinkState::is_ready)).await;
            let is_ready = matches!(ready, Ok(Ok(_)));
            drop(ready);
            if !is_ready {
                missing.push((id, state));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let reasons = missing.iter().take(NAMED).map(|(id, state)| {
            let state = state.borrow();
            let reason = state.failure().map_or("no answer yet", |failure| failure.reason.as_str());
            format!("{id}: {reason}")
        });
        let reasons: Vec<String> = reasons.collect();
        bail!("{} of {count} devices are not connected after {patience:?} ({})", missing.len(), reasons.join("; "))
    }

    pub(crate) fn admin_state(&self) -> AdminState {
        AdminState { roster: self.roster.clone(), catalog: self.catalog.clone() }
    }

    /// Finish what is in hand, then disconnect.
    pub(crate) async fn stop(&self) {
        if let Some(watcher) = &self.watcher {
            watcher.abort();
        }
        self.roster.shutdown().await;
        if let Some(catalog) = &self.catalog {
            catalog.keep_trials().await;
        }
        self.connector.stop.cancel();
        let links = std::mem::take(&mut *self.links());
        for link in links.into_values() {
            // One that panicked has nothing left to wait for.
            drop(link.connection.task.await);
        }
        self.store.close().await;
    }
}

impl Connector {
    fn connect(&self, device: DeviceConnectionString) -> anyhow::Result<(Link, ActorEnds)> {
        let tls = self.tls.of(&device)?;
        let (to_actor, from_hub) = mpsc::channel(TO_ACTOR);
        let (to_hub, from_actor) = mpsc::channel(TO_HUB);
        let settings = DeviceConnectionSettings::new(device.clone(), tls, self.connects.clone(), rand::random());
        let stop = self.stop.child_token();
        let connection = iothub_device::spawn(settings, to_actor, from_actor, stop.clone());
        let ends = (device.device_id.clone(), from_hub, to_hub);
        Ok((Link { device, connection, stop }, ends))
    }
}
