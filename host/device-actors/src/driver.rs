//! The task of one device: waits for what its actor must know, and does what it decides.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, pending};
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use iothub_protocol::id::DeviceId;
use iothub_protocol::link::{FromHub, ToHub};
use plugin_runtime::{CallFailure, Instance, Lease, PluginSet, PluginVersion, Runtime};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::actor::{Actor, Call, Input, Outcome, Output, Work};
use crate::failure::{Failure, FailureKind};
use crate::limits::Limits;
use crate::lineup::{self, Offers};
use crate::residency::{Place, Residency};
use crate::store::StateStore;
use crate::supervisor::Crashes;
use crate::timers::Now;
use crate::view::ActorView;

/// What all drivers share.
pub(crate) struct Shared {
    pub(crate) runtime: Runtime,
    pub(crate) store: StateStore,
    pub(crate) residency: Residency,
    pub(crate) current: CurrentPlugins,
}

/// The two ends of a device's connection.
pub(crate) struct HubLink {
    pub(crate) from_hub: mpsc::Receiver<FromHub>,
    pub(crate) to_hub: mpsc::Sender<ToHub>,
}

pub(crate) struct Driver<'a> {
    device: DeviceId,
    actor: Actor,
    shared: Arc<Shared>,
    /// Not its own, since the next driver takes it over if this one fails.
    link: &'a mut HubLink,
    plugins: watch::Receiver<Arc<PluginSet>>,
    limits: watch::Receiver<Limits>,
    versions: Arc<Versions>,
    /// Versions that are not current any more, but that the actor goes on with.
    former: HashMap<Arc<str>, Arc<PluginVersion>>,
    /// Versions that are loaded for this device.
    leases: Vec<Lease>,
    instances: HashMap<Arc<str>, Resident>,
    calling: Option<Calling>,
    /// Filled from the store's thread.
    recorded: (mpsc::UnboundedSender<Recorded>, mpsc::UnboundedReceiver<Recorded>),
    /// Waits for room in `to_hub`.
    outgoing: VecDeque<ToHub>,
    evict: Arc<Notify>,
    view: &'a watch::Sender<ActorView>,
    crashes: &'a Crashes,
    open: Open,
    stopped: bool,
}

/// Which sources can still wake the driver; one that is closed is ready for ever.
struct Open {
    from_hub: bool,
    to_hub: bool,
    plugins: bool,
    limits: bool,
    stop: bool,
}

type Calling = Pin<Box<dyn Future<Output = Box<Finished>> + Send>>;

struct Resident {
    instance: Instance,
    place: Place,
}

/// A call that is over. The instance is gone if it failed.
struct Finished {
    id: Arc<str>,
    resident: Option<Resident>,
    outcome: Outcome,
}

struct Recorded {
    id: u64,
    written: bool,
}

enum Event {
    Hub(Option<FromHub>),
    Plugins { open: bool },
    Limits { open: bool },
    Called(Box<Finished>),
    Recorded(Recorded),
    Evict,
    Sent { open: bool },
    Timeout,
    Stop,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(
        device: DeviceId,
        actor: Actor,
        link: &'a mut HubLink,
        plugins: watch::Receiver<Arc<PluginSet>>,
        limits: watch::Receiver<Limits>,
        shared: Arc<Shared>,
        (view, crashes): (&'a watch::Sender<ActorView>, &'a Crashes),
    ) -> Driver<'a> {
        Driver {
            device,
            actor,
            shared,
            link,
            plugins,
            limits,
            versions: Arc::default(),
            former: HashMap::new(),
            leases: Vec::new(),
            instances: HashMap::new(),
            calling: None,
            recorded: mpsc::unbounded_channel(),
            outgoing: VecDeque::new(),
            evict: Arc::new(Notify::new()),
            view,
            crashes,
            open: Open { from_hub: true, to_hub: true, plugins: true, limits: true, stop: true },
            stopped: false,
        }
    }

    /// Until the actor has stopped, which it does on `stop` or when its connection is dropped.
    pub(crate) async fn run(mut self, stop: &CancellationToken) {
        self.take_plugins();
        while !self.stopped || !self.outgoing.is_empty() {
            let event = self.next(stop).await;
            self.on(event);
        }
    }

    /// Every branch may be dropped before it is ready without losing anything.
    async fn next(&mut self, stop: &CancellationToken) -> Event {
        let deadline = self.actor.deadline().map(Instant::from_std);
        tokio::select! {
            message = self.link.from_hub.recv(), if self.open.from_hub => Event::Hub(message),
            changed = self.plugins.changed(), if self.open.plugins => Event::Plugins { open: changed.is_ok() },
            changed = self.limits.changed(), if self.open.limits => Event::Limits { open: changed.is_ok() },
            finished = called(&mut self.calling) => Event::Called(finished),
            Some(recorded) = self.recorded.1.recv() => Event::Recorded(recorded),
            permit = self.link.to_hub.reserve(), if self.open.to_hub && !self.outgoing.is_empty() => {
                let open = permit.is_ok();
                if let (Ok(permit), Some(message)) = (permit, self.outgoing.pop_front()) {
                    permit.send(message);
                }
                Event::Sent { open }
            }
            () = self.evict.notified() => Event::Evict,
            () = passed(deadline) => Event::Timeout,
            () = stop.cancelled(), if self.open.stop => Event::Stop,
        }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Hub(Some(message)) => self.on_hub(message),
            Event::Hub(None) => {
                self.open.from_hub = false;
                self.on_hub(FromHub::Disconnected { reason: "the connection was removed".to_owned() });
                self.handle(Input::Stop);
            }
            Event::Plugins { open: true } => self.take_plugins(),
            Event::Plugins { open: false } => self.open.plugins = false,
            Event::Limits { open: true } => {
                let limits = *self.limits.borrow_and_update();
                self.handle(Input::Limits(limits));
            }
            Event::Limits { open: false } => self.open.limits = false,
            Event::Called(finished) => self.on_called(finished),
            Event::Recorded(Recorded { id, written }) => self.handle(Input::Recorded { id, written }),
            Event::Evict => self.handle(Input::Evict),
            Event::Sent { open: true } => {}
            Event::Sent { open: false } => {
                self.open.to_hub = false;
                self.outgoing.clear();
            }
            Event::Timeout => self.handle(Input::Timeout),
            Event::Stop => {
                self.open.stop = false;
                self.handle(Input::Stop);
            }
        }
    }

    fn on_hub(&mut self, message: FromHub) {
        match message {
            // What has not left belongs to the connection before; the actor says again what it still wants sent.
            FromHub::Connected | FromHub::Disconnected { .. } => self.outgoing.clear(),
            // Whoever swapped a plugin and then called the method must not be answered by the old version.
            FromHub::Method { .. } if self.plugins.has_changed().unwrap_or(false) => self.take_plugins(),
            _ => {}
        }
        self.handle(Input::Hub(message));
    }

    fn take_plugins(&mut self) {
        let set = self.plugins.borrow_and_update().clone();
        let former = mem::replace(&mut self.versions, self.shared.current.of(&set));
        self.former.extend(former.by_id.iter().map(|(id, version)| (id.clone(), version.clone())));
        self.handle(Input::Plugins(self.versions.offers.clone()));
    }

    fn on_called(&mut self, finished: Box<Finished>) {
        self.calling = None;
        let Finished { id, resident, outcome } = *finished;
        if let Some(mut resident) = resident {
            if resident.place.park() {
                self.instances.insert(id, resident);
            } else {
                // The actor is told as well: it counts what it has.
                self.evict.notify_one();
            }
        }
        self.handle(Input::Called(outcome));
    }

    fn handle(&mut self, input: Input) {
        self.actor.handle(now(), input);
        while let Some(output) = self.actor.poll() {
            self.perform(output);
        }
        let view = self.crashes.shown_in(self.actor.view());
        self.former.retain(|id, _| view.lineup.has_version(id));
        self.view.send_replace(view);
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Call(call) => self.calling = Some(self.call(*call)),
            Output::Record { id, changes } => {
                let (device, answer) = (self.device.clone(), self.recorded.0.clone());
                self.shared.store.write(self.device.clone(), *changes, move |result| {
                    if let Err(error) = &result {
                        tracing::error!(%device, %error, "state could not be written");
                    }
                    // A device that was dropped meanwhile does not want to know.
                    drop(answer.send(Recorded { id, written: result.is_ok() }));
                });
            }
            Output::ToHub(message) => self.send(message),
            Output::Want(versions) => {
                let demand = self.plugins.borrow().demand.clone();
                // The new ones first, so that what is needed still is not let go.
                self.leases = versions.into_iter().map(|(name, hash)| demand.want(name, hash)).collect();
            }
            Output::DropInstance(id) => {
                self.instances.remove(&id);
            }
            Output::Stopped => self.stopped = true,
        }
    }

    fn send(&mut self, message: ToHub) {
        if !self.open.to_hub {
            return;
        }
        if self.outgoing.len() >= OUTGOING_LIMIT {
            tracing::warn!(device = %self.device, "connection takes no messages, one is dropped");
            return;
        }
        self.outgoing.push_back(message);
    }

    fn call(&mut self, call: Call) -> Calling {
        let id = call.plugin.id.clone();
        let Some(version) = self.versions.by_id.get(&id).or_else(|| self.former.get(&id)).cloned() else {
            let detail = "the version is not loaded".to_owned();
            let outcome = Outcome::Failed(Failure { kind: FailureKind::Start, detail });
            return Box::pin(async { Box::new(Finished { id, resident: None, outcome }) });
        };
        let mut resident = self.instances.remove(&id);
        if let Some(resident) = &mut resident {
            resident.place.take();
        }
        let (shared, evict) = (self.shared.clone(), self.evict.clone());
        Box::pin(async move {
            let (resident, outcome) = match call_instance(&shared, evict, &version, resident, call).await {
                Ok((resident, outcome)) => {
                    version.tally().answered();
                    (Some(resident), outcome)
                }
                Err(failure) => {
                    version.tally().failed();
                    (None, Outcome::Failed(failure.into()))
                }
            };
            Box::new(Finished { id, resident, outcome })
        })
    }
}

/// What the clocks show.
pub(crate) fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { monotonic: Instant::now().into_std(), wall: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
}

async fn call_instance(
    shared: &Shared,
    evict: Arc<Notify>,
    version: &Arc<PluginVersion>,
    resident: Option<Resident>,
    call: Call,
) -> Result<(Resident, Outcome), CallFailure> {
    let mut resident = match resident {
        Some(resident) => resident,
        None => {
            let place = shared.residency.admit(evict).await;
            Resident {
                instance: shared.runtime.instantiate(version, &call.snapshot.device_id, call.snapshot.now).await?,
                place,
            }
        }
    };
    let outcome = call.run(&mut resident.instance).await?;
    Ok((resident, outcome))
}

impl Call {
    /// Do it on an instance of the version that it is for. After a failure the instance is worth nothing.
    ///
    /// # Errors
    /// If the plugin did not return.
    pub async fn run(self, instance: &mut Instance) -> Result<Outcome, CallFailure> {
        Ok(match self.work {
            Work::Method { name, payload } => {
                let (response, effects) = instance.call_method(self.snapshot, &name, &payload).await?;
                Outcome::Answered { response, effects }
            }
            Work::Activation { previous } => {
                let (result, effects) = instance.activated(self.snapshot, previous.as_ref()).await?;
                Outcome::Activated { result, effects }
            }
            Work::Message(message) => {
                let (verdict, effects) = instance.received(self.snapshot, &message).await?;
                Outcome::Reacted { verdict, effects }
            }
            Work::Timer { name, timer } => {
                let (verdict, effects) = instance.fired(self.snapshot, &name, &timer).await?;
                Outcome::Reacted { verdict, effects }
            }
            Work::Change { version, patch } => {
                let (verdict, effects) = instance.changed(self.snapshot, version, &patch).await?;
                Outcome::Reacted { verdict, effects }
            }
        })
    }
}

async fn called(calling: &mut Option<Calling>) -> Box<Finished> {
    match calling {
        Some(calling) => calling.await,
        None => pending().await,
    }
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// The versions that are loaded, as actors see them and as the runtime needs them.
#[derive(Default)]
pub(crate) struct Versions {
    pub(crate) offers: Arc<Offers>,
    by_id: HashMap<Arc<str>, Arc<PluginVersion>>,
}

/// Describes each plugin set once for all devices.
#[derive(Default)]
pub(crate) struct CurrentPlugins {
    last: Mutex<Option<(Arc<PluginSet>, Arc<Versions>)>>,
}

impl CurrentPlugins {
    fn of(&self, set: &Arc<PluginSet>) -> Arc<Versions> {
        // A value that is replaced as a whole is whole, even after a panic.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, versions)) = last.as_ref().filter(|(known, _)| Arc::ptr_eq(known, set)) {
            return versions.clone();
        }
        let by_id = set.loaded().map(|version| (lineup::identity(version), version.clone())).collect();
        let versions = Arc::new(Versions { offers: Arc::new(Offers::of(set)), by_id });
        *last = Some((set.clone(), versions.clone()));
        versions
    }
}

/// Messages that wait because the connection takes none: far more than one patch, a window of telemetry and a mailbox
/// of answers come to, so that only a connection that hangs loses any. A lost patch is sent again after its time-out.
const OUTGOING_LIMIT: usize = 1024;
