//! All devices of a process: starts their tasks, shows what they do, stops them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use durable_store::StoreError;
use iothub_protocol::id::DeviceId;
use iothub_protocol::link::{FromHub, ToHub};
use plugin_runtime::{PluginSet, Runtime};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::driver::{CurrentPlugins, HubLink, Shared};
use crate::limits::Limits;
use crate::record::DeviceRecord;
use crate::residency::Residency;
use crate::store::StateStore;
use crate::supervisor::Supervised;
use crate::view::ActorView;

#[derive(Debug, Clone)]
pub struct RosterSettings {
    /// Of each device.
    pub limits: Limits,
    /// Instances at once over all devices, used or not. Each takes about 90 KB and some of the process's memory maps.
    pub max_resident: usize,
    /// How long a shutdown waits for what is in hand.
    pub drain: Duration,
}

impl Default for RosterSettings {
    fn default() -> RosterSettings {
        RosterSettings { limits: Limits::default(), max_resident: 256, drain: Duration::from_secs(10) }
    }
}

/// The running actors.
pub struct Roster {
    settings: RosterSettings,
    shared: Arc<Shared>,
    plugins: watch::Receiver<Arc<PluginSet>>,
    views: Mutex<HashMap<DeviceId, watch::Receiver<ActorView>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Ends tasks that did not drain in time.
    give_up: CancellationToken,
}

impl Roster {
    /// Load what the devices keep and start a task for each. Cancelling `stop` has the same effect as the first step of
    /// [`Roster::shutdown`].
    pub async fn start(
        settings: RosterSettings,
        runtime: Runtime,
        store: StateStore,
        plugins: watch::Receiver<Arc<PluginSet>>,
        devices: Vec<(DeviceId, mpsc::Receiver<FromHub>, mpsc::Sender<ToHub>)>,
        stop: CancellationToken,
    ) -> Result<Roster, StoreError> {
        let mut records = store.load_all().await?;
        let residency = Residency::new(settings.max_resident);
        let roster = Roster {
            settings,
            shared: Arc::new(Shared { runtime, store, residency, current: CurrentPlugins::default() }),
            plugins,
            views: Mutex::default(),
            tasks: TaskTracker::new(),
            stop,
            give_up: CancellationToken::new(),
        };
        for (device, from_hub, to_hub) in devices {
            let record = records.remove(&device).unwrap_or_default();
            roster.spawn(device, record, HubLink { from_hub, to_hub });
        }
        Ok(roster)
    }

    /// Start one more device. It runs until its `FromHub` channel closes. If an actor of the same device is still
    /// finishing, this waits for it: state has one owner.
    pub async fn add(
        &self,
        device: DeviceId,
        from_hub: mpsc::Receiver<FromHub>,
        to_hub: mpsc::Sender<ToHub>,
    ) -> Result<(), StoreError> {
        let before = self.watch(&device);
        if let Some(mut before) = before {
            while before.changed().await.is_ok() {}
        }
        self.lock().retain(|_, view| current(view).is_some());
        let record = self.shared.store.load(&device).await?;
        self.spawn(device, record, HubLink { from_hub, to_hub });
        Ok(())
    }

    /// What the device's actor is doing; none if there is no such actor.
    pub fn snapshot(&self, device: &DeviceId) -> Option<ActorView> {
        self.lock().get(device).and_then(current)
    }

    /// Every device's view, in order of their ids.
    pub fn views(&self) -> Vec<(DeviceId, ActorView)> {
        let mut all: Vec<_> =
            self.lock().iter().filter_map(|(device, view)| Some((device.clone(), current(view)?))).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// A view that can be waited on. It closes when the actor has stopped.
    pub fn watch(&self, device: &DeviceId) -> Option<watch::Receiver<ActorView>> {
        self.lock().get(device).filter(|view| current(view).is_some()).cloned()
    }

    /// Take no more messages, finish those in hand and in the mailboxes, record everything. What takes longer than
    /// the drain time is given up, which loses nothing that was answered or recorded. Tells how many devices that
    /// were.
    pub async fn shutdown(&self) -> usize {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(self.settings.drain, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let devices = self.tasks.len();
        tracing::warn!(devices, "devices did not finish in time, their work in hand is given up");
        self.give_up.cancel();
        self.tasks.wait().await;
        devices
    }

    fn spawn(&self, device: DeviceId, record: DeviceRecord, link: HubLink) {
        let (view, limits) = (watch::Sender::new(ActorView::default()), self.settings.limits);
        let (plugins, shared, stop) = (self.plugins.clone(), self.shared.clone(), self.stop.clone());
        self.lock().insert(device.clone(), view.subscribe());
        let supervised = Supervised { device, limits, plugins, shared, view, stop };
        let give_up = self.give_up.clone();
        self.tasks.spawn(async move { give_up.run_until_cancelled(supervised.run(record, link)).await });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, watch::Receiver<ActorView>>> {
        // A map of handles is whole after any panic.
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// None once the actor has stopped and dropped its end.
fn current(view: &watch::Receiver<ActorView>) -> Option<ActorView> {
    view.has_changed().is_ok().then(|| view.borrow().clone())
}
