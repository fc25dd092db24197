//! The host as `up`, `run` and `demo` run it: plugins, actors, and a connection for each device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use admin::AdminState;
use anyhow::{Context as _, bail};
use device_actors::{Limits, Roster, RosterSettings, StateStore};
use durable_store::Durability;
use iothub_device::{DeviceConnection, DeviceConnectionSettings, LinkState};
use iothub_protocol::connection_string::DeviceConnectionString;
use plugin_runtime::{CacheSettings, Catalog, PluginSet, Runtime, RuntimeSettings};
use rustls::ClientConfig;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::HostArgs;
use crate::data_folder::DataFolder;

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
/// How many failed devices an error names.
const NAMED: usize = 3;

/// Plugins, loaded before anything else, as a wrong directory is the commonest mistake.
pub(crate) struct Plugins {
    runtime: Runtime,
    pub(crate) catalog: Option<Catalog>,
}

impl Plugins {
    pub(crate) async fn load(args: &HostArgs, data: &DataFolder) -> anyhow::Result<Plugins> {
        let settings = RuntimeSettings {
            call_time_limit: Duration::from_secs(args.call_limit.into()),
            memory_limit: (args.memory_limit as usize) << 20,
            max_resident: args.max_instances,
            ..RuntimeSettings::default()
        };
        let cache = CacheSettings::new(data.path().join(CACHE), data.path().join(CACHE_KEY));
        let runtime = tokio::task::spawn_blocking(move || Runtime::with_cache(settings, &cache)).await??;
        let catalog = match &args.plugins {
            None => None,
            Some(folder) => {
                let versions = data.path().join(VERSIONS);
                let catalog = Catalog::open(folder, &versions, runtime.clone()).await;
                Some(catalog.with_context(
                    || "hint: --plugins names a folder of components; `latch plugin build` makes target/plugins",
                )?)
            }
        };
        Ok(Plugins { runtime, catalog })
    }
}

/// A host that runs.
pub(crate) struct Fleet {
    pub(crate) roster: Arc<Roster>,
    pub(crate) catalog: Option<Catalog>,
    connections: Vec<DeviceConnection>,
    links: CancellationToken,
    watcher: Option<JoinHandle<()>>,
    store: StateStore,
}

impl Fleet {
    /// Start an actor and a connection for each device. Does not wait for the connections.
    pub(crate) async fn start(
        plugins: Plugins,
        args: &HostArgs,
        data: &DataFolder,
        devices: Vec<DeviceConnectionString>,
        tls: Arc<ClientConfig>,
    ) -> anyhow::Result<Fleet> {
        let path = data.path().join("state.db");
        let store = tokio::task::spawn_blocking(move || StateStore::open(&path, Durability::Process)).await??;
        let links = CancellationToken::new();
        let connects = Arc::new(Semaphore::new(CONNECTS));
        let (mut connections, mut ends) = (Vec::new(), Vec::new());
        for device in devices {
            let (to_actor, from_hub) = mpsc::channel(TO_ACTOR);
            let (to_hub, from_actor) = mpsc::channel(TO_HUB);
            ends.push((device.device_id.clone(), from_hub, to_hub));
            let settings = DeviceConnectionSettings::new(device, tls.clone(), connects.clone(), rand::random());
            connections.push(iothub_device::spawn(settings, to_actor, from_actor, links.clone()));
        }
        let settings = RosterSettings {
            limits: Limits { idle: Duration::from_millis(args.idle.into()), ..Limits::default() },
            max_resident: args.max_instances as usize,
            ..RosterSettings::default()
        };
        let current = match &plugins.catalog {
            Some(catalog) => catalog.subscribe(),
            None => watch::channel(Arc::new(PluginSet::default())).1,
        };
        let stop = CancellationToken::new();
        let roster = Roster::start(settings, plugins.runtime, store.clone(), current, ends, stop).await?;
        let watcher =
            plugins.catalog.clone().map(|catalog| tokio::spawn(async move { match catalog.watch().await {} }));
        Ok(Fleet { roster: Arc::new(roster), catalog: plugins.catalog, connections, links, watcher, store })
    }

    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Wait until all devices are connected.
    ///
    /// # Errors
    /// If some are not in time: how many, and why the first few are not. Fewer devices than asked for are never passed off
    /// as all.
    pub(crate) async fn connected(&self) -> anyhow::Result<()> {
        let count = self.connections.len();
        let patience = CONNECT_TIME + Duration::from_secs(count as u64 / CONNECTS_PER_SECOND);
        let deadline = Instant::now() + patience;
        let mut missing = Vec::new();
        for connection in &self.connections {
            let mut state = connection.state.clone();
            let ready = tokio::time::timeout_at(deadline.into(), state.wait_for(LinkState::is_ready)).await;
            if !matches!(ready, Ok(Ok(_))) {
                missing.push(connection);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let reasons: Vec<String> = missing
            .iter()
            .take(NAMED)
            .map(|connection| {
                let state = connection.state.borrow();
                let reason = state.failure().map_or("no answer yet", |failure| failure.reason.as_str());
                format!("{}: {reason}", connection.device_id)
            })
            .collect();
        bail!("{} of {count} devices are not connected after {patience:?} ({})", missing.len(), reasons.join("; "))
    }

    pub(crate) fn admin_state(&self) -> AdminState {
        AdminState { roster: self.roster.clone(), catalog: self.catalog.clone() }
    }

    /// Finish what is in hand, then disconnect.
    pub(crate) async fn stop(self) {
        if let Some(watcher) = self.watcher {
            watcher.abort();
        }
        self.roster.shutdown().await;
        self.links.cancel();
        for connection in self.connections {
            // One that panicked has nothing left to wait for.
            drop(connection.task.await);
        }
        self.store.close().await;
    }
}

/// Descriptors beside those of devices: listeners, stores, plugins, requests, the standard ones.
const SPARE_DESCRIPTORS: u64 = 256;

/// Whether so many devices fit under the descriptor limit, after raising it as far as the system allows.
pub(crate) fn check_descriptors(devices: u32, each: u64) -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    // No limit at all is a limit of as many as there are numbers.
    let current = current.unwrap_or(u64::MAX);
    let fit = current.saturating_sub(SPARE_DESCRIPTORS) / each;
    if u64::from(devices) > fit {
        bail!(
            "{devices} devices do not fit: this process may open {current} files, enough for {fit} devices\nhint: raise the \
             limit with `ulimit -n`, or start fewer"
        );
    }
    Ok(())
}
