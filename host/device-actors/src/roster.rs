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
use crate::peers::Peers;
use crate::record::DeviceRecord;
use crate::residency::Residency;
use crate::store::StateStore;
use crate::supervisor::Supervised;
use crate::view::ActorView;

#[derive(Debug, Clone)]
pub struct RosterSettings {
    /// Of each device. [`Roster::set_limits`] changes them.
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
    limits: watch::Sender<Limits>,
    running: Mutex<HashMap<DeviceId, Running>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Ends tasks that did not drain in time.
    give_up: CancellationToken,
}

/// One actor.
struct Running {
    view: watch::Receiver<ActorView>,
    stop: CancellationToken,
    /// Ends the task whatever it does.
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
        let limits = watch::Sender::new(settings.limits);
        let (current, peers) = (CurrentPlugins::default(), Peers::default());
        let roster = Roster {
            settings,
            shared: Arc::new(Shared { runtime, store, residency, current, peers }),
            plugins,
            limits,
            running: Mutex::default(),
            tasks: TaskTracker::new(),
            stop,
            give_up: CancellationToken::new(),
        };
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
        let before = self.watch(&device);
        if let Some(mut before) = before {
            while before.changed().await.is_ok() {}
        }
        self.forget_ended();
        let record = self.shared.store.load(&device).await?;
        let from_peers = self.shared.peers.join(device.clone());
        self.spawn(device, record, HubLink { from_hub, to_hub, from_peers });
        Ok(())
    }

    /// Stop one device: it takes no more messages, finishes those in hand and in its mailbox, and records everything.
    /// What takes longer than the drain time is given up, as with [`Roster::shutdown`]. What the device keeps stays for
    /// when it is added again. Tells whether it finished in time.
    pub async fn remove(&self, device: &DeviceId) -> bool {
        let asked = self.lock().get(device).map(|running| {
            running.stop.cancel();
            (running.view.clone(), running.give_up.clone())
        });
        let Some((mut view, give_up)) = asked else { return true };
        let mut ended = async || while view.changed().await.is_ok() {};
        let in_time = tokio::time::timeout(self.settings.drain, ended()).await.is_ok();
        if !in_time {
            tracing::warn!(%device, "device did not finish in time, its work in hand is given up");
            give_up.cancel();
            ended().await;
        }
        self.forget_ended();
        in_time
    }

    /// Bound every device by `limits` from now on. Tells whether they are others than before.
    pub fn set_limits(&self, limits: Limits) -> bool {
        self.limits.send_if_modified(|current| std::mem::replace(current, limits) != limits)
    }

    /// What the device's actor is doing; none if there is no such actor.
    pub fn snapshot(&self, device: &DeviceId) -> Option<ActorView> {
        self.lock().get(device).and_then(|running| current(&running.view))
    }

    /// Every device's view, in order of their ids.
    pub fn views(&self) -> Vec<(DeviceId, ActorView)> {
        let mut all: Vec<_> = self
            .lock()
            .iter()
            .filter_map(|(device, running)| Some((device.clone(), current(&running.view)?)))
            .collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// A view that can be waited on. It closes when the actor has stopped.
    pub fn watch(&self, device: &DeviceId) -> Option<watch::Receiver<ActorView>> {
        self.lock().get(device).map(|running| running.view.clone()).filter(|view| current(view).is_some())
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
        let (view, limits) = (watch::Sender::new(ActorView::default()), self.limits.subscribe());
        let (plugins, shared) = (self.plugins.clone(), self.shared.clone());
        let (stop, give_up) = (self.stop.child_token(), self.give_up.child_token());
        let running = Running { view: view.subscribe(), stop: stop.clone(), give_up: give_up.clone() };
        self.lock().insert(device.clone(), running);
        let supervised = Supervised { device, limits, plugins, shared, view, stop };
        self.tasks.spawn(async move { give_up.run_until_cancelled(supervised.run(record, link)).await });
    }

    fn forget_ended(&self) {
        self.lock().retain(|_, running| current(&running.view).is_some());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, Running>> {
        // A map of handles is whole after any panic.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// None once the actor has stopped and dropped its end.
fn current(view: &watch::Receiver<ActorView>) -> Option<ActorView> {
    view.has_changed().is_ok().then(|| view.borrow().clone())
}

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
        let mut view = roster.watch(&device).expect("it runs");
        view.wait_for(|view| view.mailbox == 1).await.expect("it waits for its twin");
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
