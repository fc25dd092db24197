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

use crate::bell::{Bell, Signal, bell};
use crate::driver::{CurrentPlugins, HubLink, Shared};
use crate::limits::Limits;
use crate::peers::Peers;
use crate::record::DeviceRecord;
use crate::residency::Residency;
use crate::store::StateStore;
use crate::supervisor::{Supervised, Wires};
use crate::view::{ActorView, Showing, Shown};

#[derive(Debug, Clone)]
pub struct RosterSettings {
    /// Of each device. [`Roster::set_limits`] changes them.
    pub limits: Limits,
    /// Instances at once over all devices, used or not. No more than the runtime's
    /// [`max_resident`](plugin_runtime::RuntimeSettings::max_resident), whose pool would run dry.
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
        let limits = watch::Sender::new(settings.limits);
        let (current, peers) = (CurrentPlugins::default(), Peers::default());
        let roster = Roster {
            settings,
            shared: Arc::new(Shared { runtime, store, residency, current, peers, limits }),
            plugins: plugins.clone(),
            running: Arc::default(),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
        };
        tokio::spawn(announce(roster.running.clone(), plugins, roster.shared.limits.subscribe(), stop));
        // All can be reached before the first one runs.
        let reachable: Vec<_> = devices.iter().map(|(device, ..)| roster.shared.peers.join(device.clone())).collect();
        for ((device, from_hub, to_hub), from_peers) in devices.into_iter().zip(reachable) {
            let record = records.remove(&device).unwrap_or_default();
            roster.spawn(device, record, HubLink { from_hub, to_hub, from_peers });
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
        let from_peers = self.shared.peers.join(device.clone());
        self.spawn(device, record, HubLink { from_hub, to_hub, from_peers });
        Ok(())
    }

    /// Stop one device: it takes no more messages, finishes those in hand and in its mailbox, and records everything.
    /// What takes longer than the drain time is given up, as with [`Roster::shutdown`]. What the device keeps stays for
    /// when it is added again. Tells whether it finished in time.
    pub async fn remove(&self, device: &DeviceId) -> bool {
        let Some(shown) = self.running.shown(device) else { return true };
        self.running.ring(device, Signal::Stop);
        let in_time = tokio::time::timeout(self.settings.drain, shown.gone()).await.is_ok();
        if !in_time {
            tracing::warn!(%device, "device did not finish in time, its work in hand is given up");
            self.running.abort(device);
            shown.gone().await;
        }
        self.running.forget_ended();
        in_time
    }

    /// Bound every device by `limits` from now on. Tells whether they are others than before.
    pub fn set_limits(&self, limits: Limits) -> bool {
        self.shared.limits.send_if_modified(|current| std::mem::replace(current, limits) != limits)
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
        self.running.abort_all();
        self.tasks.wait().await;
        devices
    }

    fn spawn(&self, device: DeviceId, record: DeviceRecord, link: HubLink) {
        let (bell, signals) = bell();
        let showing = Showing::new(ActorView::default());
        let shown = showing.shown();
        let (plugins, shared) = (self.plugins.clone(), self.shared.clone());
        let supervised = Supervised { device: device.clone(), plugins, shared, showing, bell: bell.clone() };
        {
            // Held while the task begins: whoever announces something to all either finds it here or was heard by it.
            let mut running = self.running.lock();
            let run = async move { supervised.run(record, Wires { link, signals }).await };
            let task = self.tasks.spawn(run).abort_handle();
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

    fn ring(&self, device: &DeviceId, signal: Signal) {
        if let Some(handle) = self.lock().get(device) {
            handle.bell.ring(signal);
        }
    }

    fn abort(&self, device: &DeviceId) {
        if let Some(handle) = self.lock().get(device) {
            handle.task.abort();
        }
    }

    fn abort_all(&self) {
        self.lock().values().for_each(|handle| handle.task.abort());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, Handle>> {
        // A map of handles is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tell every device when there are other plugins, or other bounds, and when to stop, which is the end of it. One task
/// that rings many bells: were each device to listen by itself, each of its messages would pay for that.
async fn announce(
    running: Arc<Running>,
    mut plugins: watch::Receiver<Arc<PluginSet>>,
    mut limits: watch::Receiver<Limits>,
    stop: CancellationToken,
) {
    let mut plugins_open = true;
    loop {
        tokio::select! {
            changed = plugins.changed(), if plugins_open => match changed {
                Ok(()) => ring_all(&running, Signal::Plugins).await,
                Err(_) => plugins_open = false,
            },
            changed = limits.changed() => match changed {
                Ok(()) => ring_all(&running, Signal::Limits).await,
                // The roster is gone, and the last device with it.
                Err(_) => return,
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

#[cfg(test)]
mod tests {
    use durable_store::Durability;
    use iothub_protocol::id::{MethodName, RequestId};
    use iothub_protocol::link::TwinDocument;
    use plugin_runtime::RuntimeSettings;
    use serde_json::Map;

    use super::*;

    struct Link {
        to_actor: mpsc::Sender<FromHub>,
        from_actor: mpsc::Receiver<ToHub>,
    }

    impl Link {
        fn new() -> (Link, mpsc::Receiver<FromHub>, mpsc::Sender<ToHub>) {
            let ((to_actor, from_hub), (to_hub, from_actor)) = (mpsc::channel(8), mpsc::channel(8));
            (Link { to_actor, from_actor }, from_hub, to_hub)
        }

        async fn call(&self, rid: &str) {
            let (rid, name) = (RequestId::parse(rid).expect("an id"), MethodName::parse("lockDoor").expect("a name"));
            let method = FromHub::Method { rid, name, payload: "null".to_owned() };
            self.to_actor.send(method).await.expect("the actor runs");
        }
    }

    #[tokio::test]
    async fn a_device_that_is_removed_answers_what_it_has_and_may_come_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = StateStore::open(&folder.path().join("state.db"), Durability::Process).expect("a store");
        let settings = RuntimeSettings { max_resident: 1, max_in_flight: 1, ..RuntimeSettings::default() };
        let runtime = Runtime::new(settings).expect("a runtime");
        let plugins = watch::Sender::new(Arc::new(PluginSet::default()));
        let (device, other) = ["a", "b"].map(|id| DeviceId::parse(id).expect("an id")).into();
        let ((mut link, from_hub, to_hub), (other_link, from_other, to_other)) = (Link::new(), Link::new());
        let devices = vec![(device.clone(), from_hub, to_hub), (other.clone(), from_other, to_other)];
        let settings = RosterSettings::default();
        let roster = Roster::start(settings, runtime, store, plugins.subscribe(), devices, CancellationToken::new());
        let roster = roster.await.expect("started");

        link.to_actor.send(FromHub::Connected).await.expect("the actor runs");
        link.call("1").await;
        while roster.snapshot(&device).expect("it runs").mailbox == 0 {
            // Until the method waits for the twin.
            tokio::task::yield_now().await;
        }
        let twin = TwinDocument { desired: Map::new(), desired_version: 1, reported: Map::new(), reported_version: 1 };
        let (in_time, sent) = tokio::join!(roster.remove(&device), link.to_actor.send(FromHub::Twin(twin)));
        assert!(in_time && sent.is_ok());
        let answer = link.from_actor.recv().await;
        assert!(matches!(answer, Some(ToHub::MethodResponse { status: 404, .. })), "no plugin answers it: {answer:?}");
        assert!(link.from_actor.recv().await.is_none(), "and it lets go of its connection");
        assert!(roster.snapshot(&device).is_none() && roster.snapshot(&other).is_some());
        assert!(roster.remove(&device).await, "it is gone already");

        let limits = Limits { mailbox: 0, ..Limits::default() };
        assert!(roster.set_limits(limits) && !roster.set_limits(limits));
        let (link, from_hub, to_hub) = Link::new();
        roster.add(device.clone(), from_hub, to_hub).await.expect("added");
        for mut link in [link, other_link] {
            link.to_actor.send(FromHub::Connected).await.expect("the actor runs");
            let full = async {
                // The one that ran may take a few before it sees its new limits.
                for rid in 0.. {
                    link.call(&rid.to_string()).await;
                    tokio::task::yield_now().await;
                    if let Ok(ToHub::MethodResponse { status, .. }) = link.from_actor.try_recv() {
                        return status;
                    }
                }
                unreachable!("there are enough numbers")
            };
            let status = tokio::time::timeout(Duration::from_secs(30), full).await.expect("an answer");
            assert_eq!(status, 429, "the mailbox takes nothing any more");
        }
        assert_eq!(roster.shutdown().await, 0);
    }
}
