//! All devices of a process: starts their tasks, shows what they do, stops them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use durable_store::StoreError;
use iothub_protocol::id::DeviceId;
use iothub_protocol::link::{FromHub, ToHub};
use plugin_runtime::{PluginSet, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::actor::Actor;
use crate::bell::{Bell, Signal, bell};
use crate::driver::{CurrentPlugins, Driver, HubLink, Shared, now};
use crate::limits::Limits;
use crate::record::DeviceRecord;
use crate::residency::Residency;
use crate::store::StateStore;
use crate::view::{ActorView, Shown};

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
    running: Arc<Running>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The tasks by device, some of which may have ended.
#[derive(Default)]
struct Running(Mutex<HashMap<DeviceId, Handle>>);

struct Handle {
    shown: Arc<Shown>,
    bell: Bell,
    task: AbortHandle,
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
            plugins: plugins.clone(),
            running: Arc::default(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        };
        tokio::spawn(announce(roster.running.clone(), plugins, stop));
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
        let before = self.running.shown(&device);
        if let Some(before) = before {
            before.gone().await;
        }
        self.running.forget_ended();
        let record = self.shared.store.load(&device).await?;
        self.spawn(device, record, HubLink { from_hub, to_hub });
        Ok(())
    }

    /// What the device's actor is doing; none if there is no such actor.
    pub fn snapshot(&self, device: &DeviceId) -> Option<ActorView> {
        self.running.shown(device)?.view()
    }

    /// Every device's view, in order of their ids.
    pub fn views(&self) -> Vec<(DeviceId, ActorView)> {
        let mut all = self.running.views();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
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
        self.running.abort();
        self.tasks.wait().await;
        devices
    }

    fn spawn(&self, device: DeviceId, record: DeviceRecord, link: HubLink) {
        let actor = Actor::new(device.clone(), record, self.settings.limits, rand::random(), now());
        let (bell, signals) = bell();
        let wires = (bell.clone(), signals);
        let driver = Driver::new(device.clone(), actor, link, self.plugins.clone(), wires, self.shared.clone());
        let shown = driver.shown();
        {
            // Held while the task begins: whoever announces something to all either finds it here or was heard by it.
            let mut running = self.running.lock();
            let task = self.tasks.spawn(driver.run()).abort_handle();
            running.insert(device, Handle { shown, bell: bell.clone(), task });
        }
        if self.stop.is_cancelled() {
            bell.ring(Signal::Stop);
        }
    }
}

impl Running {
    fn shown(&self, device: &DeviceId) -> Option<Arc<Shown>> {
        self.lock().get(device).map(|handle| handle.shown.clone())
    }

    fn views(&self) -> Vec<(DeviceId, ActorView)> {
        let running = self.lock();
        running.iter().filter_map(|(device, handle)| Some((device.clone(), handle.shown.view()?))).collect()
    }

    fn bells(&self) -> Vec<Bell> {
        self.lock().values().map(|handle| handle.bell.clone()).collect()
    }

    fn forget_ended(&self) {
        self.lock().retain(|_, handle| !handle.task.is_finished());
    }

    fn abort(&self) {
        self.lock().values().for_each(|handle| handle.task.abort());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, Handle>> {
        // A map of handles is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tell every device when there are other plugins and when to stop, which is the end of it. One task that rings many
/// bells: were each device to listen by itself, each of its messages would pay for that.
async fn announce(running: Arc<Running>, mut plugins: watch::Receiver<Arc<PluginSet>>, stop: CancellationToken) {
    let mut open = true;
    loop {
        tokio::select! {
            changed = plugins.changed(), if open => match changed {
                Ok(()) => ring_all(&running, Signal::Plugins).await,
                Err(_) => open = false,
            },
            () = stop.cancelled() => return ring_all(&running, Signal::Stop).await,
        }
    }
}

async fn ring_all(running: &Running, signal: Signal) {
    for bells in running.bells().chunks(AT_ONCE) {
        bells.iter().for_each(|bell| bell.ring(signal));
        tokio::task::yield_now().await;
    }
}

/// Devices that are woken together. Others' messages wait behind them, for less than a millisecond.
const AT_ONCE: usize = 64;
