//! The task of one device: waits for what its actor must know, and does what it decides.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use iothub_protocol::id::DeviceId;
use iothub_protocol::link::{FromHub, ToHub};
use plugin_runtime::{CallFailure, IncomingMessage, Instance, Lease, PluginSet, PluginVersion, Runtime, Snapshot};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::ReusableBoxFuture;

use crate::actor::{Actor, Call, Input, Outcome, Output, Work};
use crate::bell::{Bell, Signal, Signals};
use crate::clocks::Clocks;
use crate::failure::{Failure, FailureKind};
use crate::limits::Limits;
use crate::lineup::{self, Offers};
use crate::peers::{Peers, Reachable};
use crate::record::Changes;
use crate::residency::{Place, Residency};
use crate::store::StateStore;
use crate::supervisor::{Crashes, Supervised, Wires};
use crate::view::Showing;

/// What all drivers share.
pub(crate) struct Shared {
    pub(crate) runtime: Runtime,
    pub(crate) store: StateStore,
    pub(crate) residency: Residency,
    pub(crate) current: CurrentPlugins,
    pub(crate) peers: Peers,
    /// Of each device.
    pub(crate) limits: watch::Sender<Limits>,
}

/// The two ends of a device's connection, and its way from other devices.
pub(crate) struct HubLink {
    pub(crate) from_hub: mpsc::Receiver<FromHub>,
    pub(crate) to_hub: mpsc::Sender<ToHub>,
    pub(crate) from_peers: Reachable,
}

pub(crate) struct Driver<'a> {
    device: DeviceId,
    actor: Actor,
    clocks: Clocks,
    shared: Arc<Shared>,
    /// Not its own, since the next driver takes it over if this one fails.
    link: &'a mut HubLink,
    plugins: watch::Receiver<Arc<PluginSet>>,
    versions: Arc<Versions>,
    /// Versions that are not current any more, but that the actor goes on with.
    former: HashMap<Arc<str>, Arc<PluginVersion>>,
    /// Versions that are loaded for this device.
    leases: Vec<Lease>,
    /// By version. A device has few, so they are looked through.
    instances: Vec<(Arc<str>, Box<Resident>)>,
    /// Its memory is kept from call to call, for as long as there are instances.
    calls: Option<Calls>,
    calling: bool,
    /// Rung by others; kept here to be given to them.
    bell: Bell,
    signals: &'a mut Signals,
    /// Waits for room in `to_hub`.
    outgoing: VecDeque<ToHub>,
    /// Rings at the actor's deadline, or at an earlier one that is not its deadline any more.
    alarm: Option<Pin<Box<Sleep>>>,
    showing: &'a Showing,
    crashes: &'a Crashes,
    /// What is shown is not what is.
    stale: bool,
    open: Open,
    stopped: bool,
}

/// Whether the connection's ends are still there; a channel that is closed is ready for ever.
struct Open {
    from_hub: bool,
    to_hub: bool,
}

type Calls = ReusableBoxFuture<'static, Box<Finished>>;

struct Resident {
    instance: Instance,
    place: Place,
}

/// A call that is over. The instance is gone if it failed.
struct Finished {
    id: Arc<str>,
    resident: Option<Box<Resident>>,
    outcome: Outcome,
}

enum Event {
    Called(Box<Finished>),
    Signal(Signal),
    Sent { open: bool },
    Hub(Option<FromHub>),
    Peer(Box<IncomingMessage>),
    Timeout,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(
        supervised: &'a Supervised,
        actor: Actor,
        Wires { link, signals }: &'a mut Wires,
        crashes: &'a Crashes,
    ) -> Driver<'a> {
        Driver {
            device: supervised.device.clone(),
            actor,
            clocks: Clocks::default(),
            shared: supervised.shared.clone(),
            link,
            plugins: supervised.plugins.clone(),
            versions: Arc::default(),
            former: HashMap::new(),
            leases: Vec::new(),
            instances: Vec::new(),
            calls: None,
            calling: false,
            bell: supervised.bell.clone(),
            signals,
            outgoing: VecDeque::new(),
            alarm: None,
            showing: &supervised.showing,
            crashes,
            stale: false,
            open: Open { from_hub: true, to_hub: true },
            stopped: false,
        }
    }

    /// Until the actor has stopped, which it does when it is told to or when its connection is dropped.
    pub(crate) async fn run(mut self: Box<Self>) {
        self.take_plugins();
        // As of now: whoever changes them later rings for it.
        self.take_limits();
        while !self.stopped || !self.outgoing.is_empty() {
            let event = self.next().await;
            self.on(event);
        }
    }

    /// Every branch may be dropped before it is ready without losing anything. In this order, so that a call goes on at
    /// once and that no flood of messages holds up what makes room for them.
    async fn next(&mut self) -> Event {
        tokio::select! {
            biased;
            finished = called(&mut self.calls), if self.calling => Event::Called(finished),
            signal = self.signals.next() => Event::Signal(signal),
            permit = self.link.to_hub.reserve(), if !self.outgoing.is_empty() => {
                let open = permit.is_ok();
                if let (Ok(permit), Some(message)) = (permit, self.outgoing.pop_front()) {
                    permit.send(message);
                    tracing::trace!(device = %self.device, "message has left");
                }
                Event::Sent { open }
            }
            message = self.link.from_hub.recv(), if self.open.from_hub => Event::Hub(message),
            Some(message) = self.link.from_peers.next() => Event::Peer(message),
            () = rests(&self.actor, (self.showing, self.crashes), &mut self.stale, &mut self.alarm) => Event::Timeout,
        }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Called(finished) => self.on_called(*finished),
            Event::Signal(Signal::Recorded { id, written }) => self.handle(Input::Recorded { id, written }),
            Event::Signal(Signal::Evict) => self.handle(Input::Evict),
            Event::Signal(Signal::Plugins) => self.take_newer_plugins(),
            Event::Signal(Signal::Limits) => self.take_limits(),
            Event::Signal(Signal::Stop) => self.handle(Input::Stop),
            Event::Sent { open: true } => {}
            Event::Sent { open: false } => self.hub_is_gone(),
            Event::Hub(Some(message)) => self.on_hub(message),
            Event::Hub(None) => {
                self.open.from_hub = false;
                self.on_hub(FromHub::Disconnected { reason: "the connection was removed".to_owned() });
                self.handle(Input::Stop);
            }
            Event::Peer(message) => self.handle(Input::Peer(*message)),
            Event::Timeout => {
                // Made again when there is a deadline; a device without one needs no memory for it.
                self.alarm = None;
                self.handle(Input::Timeout);
                self.actor.rest();
                self.outgoing.shrink_to_fit();
            }
        }
    }

    fn on_hub(&mut self, message: FromHub) {
        match message {
            // What has not left belongs to the connection before; the actor says again what it still wants sent.
            FromHub::Connected | FromHub::Disconnected { .. } => self.outgoing.clear(),
            // Whoever swapped a plugin and then called the method must not be answered by the old version.
            FromHub::Method { .. } => self.take_newer_plugins(),
            _ => {}
        }
        self.handle(Input::Hub(message));
    }

    fn take_newer_plugins(&mut self) {
        if self.plugins.has_changed().unwrap_or(false) {
            self.take_plugins();
        }
    }

    fn take_plugins(&mut self) {
        let _span = tracing::trace_span!("take_plugins").entered();
        let set = self.plugins.borrow_and_update().clone();
        let former = mem::replace(&mut self.versions, self.shared.current.of(&set));
        self.former.extend(former.by_id.iter().map(|(id, version)| (id.clone(), version.clone())));
        self.handle(Input::Plugins(self.versions.offers.clone()));
    }

    fn take_limits(&mut self) {
        let limits = *self.shared.limits.borrow();
        self.handle(Input::Limits(limits));
    }

    fn on_called(&mut self, finished: Finished) {
        tracing::trace!(device = %self.device, "call is over");
        self.calling = false;
        let Finished { id, resident, outcome } = finished;
        if let Some(mut resident) = resident {
            if resident.place.park() {
                self.instances.push((id, resident));
            } else {
                // The actor is told as well: it counts what it has.
                self.bell.ring(Signal::Evict);
            }
        }
        self.handle(Input::Called(outcome));
    }

    fn handle(&mut self, input: Input) {
        self.actor.handle(self.clocks.now(), input);
        self.stale = true;
        while let Some(output) = self.actor.poll() {
            self.perform(output);
        }
        self.former.retain(|id, _| self.actor.runs(id));
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Call(call) => {
                tracing::trace!(device = %self.device, plugin = %call.plugin.name, work = call.work.kind(), "call begins");
                self.call(call);
            }
            Output::Record { id, changes } => self.record(id, *changes),
            Output::ToHub(message) => self.send(message),
            Output::ToPeer { to, message } => {
                if let Err(lost) = self.shared.peers.send(&to, message) {
                    tracing::warn!(device = %self.device, %to, reason = lost.reason(), "a message to a peer is lost");
                    self.actor.handle(self.clocks.now(), Input::Undelivered);
                }
            }
            Output::Want(versions) => {
                let demand = self.plugins.borrow().demand.clone();
                // The new ones first, so that what is needed still is not let go.
                self.leases = versions.into_iter().map(|(name, hash)| demand.want(name, hash)).collect();
            }
            Output::DropInstance(id) => {
                drop(self.take_instance(&id));
                self.calls.take_if(|_| self.instances.is_empty() && !self.calling);
            }
            Output::Stopped => self.stopped = true,
        }
    }

    fn record(&self, id: u64, changes: Changes) {
        let (device, bell) = (self.device.clone(), self.bell.clone());
        tracing::trace!(%device, record = id, "record is handed over");
        self.shared.store.write(self.device.clone(), changes, move |result| {
            match &result {
                Ok(()) => tracing::trace!(%device, record = id, "record is written"),
                Err(error) => tracing::error!(%device, record = id, %error, "state could not be written"),
            }
            bell.ring(Signal::Recorded { id, written: result.is_ok() });
        });
    }

    /// At once if there is room, behind what waits otherwise.
    fn send(&mut self, message: ToHub) {
        if !self.open.to_hub {
            return;
        }
        // Whoever gets an answer and then looks must see what became of the call.
        show(&self.actor, (self.showing, self.crashes), &mut self.stale);
        let message = if self.outgoing.is_empty() {
            match self.link.to_hub.try_send(message) {
                Ok(()) => {
                    tracing::trace!(device = %self.device, "message has left");
                    return;
                }
                Err(TrySendError::Closed(_)) => return self.hub_is_gone(),
                Err(TrySendError::Full(message)) => message,
            }
        } else {
            message
        };
        if self.outgoing.len() >= OUTGOING_LIMIT {
            tracing::warn!(device = %self.device, "connection takes no messages, one is dropped");
            return;
        }
        self.outgoing.push_back(message);
    }

    fn hub_is_gone(&mut self) {
        self.open.to_hub = false;
        self.outgoing.clear();
    }

    fn take_instance(&mut self, id: &str) -> Option<Box<Resident>> {
        let place = self.instances.iter().position(|(known, _)| **known == *id)?;
        Some(self.instances.swap_remove(place).1)
    }

    fn call(&mut self, call: Box<Call>) {
        let id = &call.plugin.id;
        let source = match self.take_instance(id) {
            Some(mut resident) => {
                resident.place.take();
                Source::Resident(resident)
            }
            None => match self.versions.by_id.get(id).or_else(|| self.former.get(id)) {
                Some(version) => Source::Version(version.clone(), self.shared.clone(), self.bell.clone()),
                None => Source::Nothing,
            },
        };
        self.calling = true;
        let finished = finish(source, call);
        match &mut self.calls {
            Some(calls) => calls.set(finished),
            None => self.calls = Some(ReusableBoxFuture::new(finished)),
        }
    }
}

/// Where the instance for a call comes from.
enum Source {
    Resident(Box<Resident>),
    Version(Arc<PluginVersion>, Arc<Shared>, Bell),
    /// The version is not loaded.
    Nothing,
}

async fn finish(source: Source, call: Box<Call>) -> Box<Finished> {
    let id = call.plugin.id.clone();
    let mut resident = match source {
        Source::Resident(resident) => resident,
        // On the heap, since every call would otherwise carry the room for it.
        Source::Version(version, shared, bell) => {
            match Box::pin(make_instance(&shared, bell, &version, &call.snapshot)).await {
                Ok(resident) => resident,
                Err(failure) => {
                    version.tally().failed();
                    return Box::new(Finished { id, resident: None, outcome: Outcome::Failed(failure.into()) });
                }
            }
        }
        Source::Nothing => {
            let detail = "the version is not loaded".to_owned();
            let outcome = Outcome::Failed(Failure { kind: FailureKind::Start, detail });
            return Box::new(Finished { id, resident: None, outcome });
        }
    };
    let outcome = call.run(&mut resident.instance).await;
    let tally = resident.instance.version().tally();
    Box::new(match outcome {
        Ok(outcome) => {
            tally.answered();
            Finished { id, resident: Some(resident), outcome }
        }
        Err(failure) => {
            tally.failed();
            Finished { id, resident: None, outcome: Outcome::Failed(failure.into()) }
        }
    })
}

async fn make_instance(
    shared: &Shared,
    bell: Bell,
    version: &Arc<PluginVersion>,
    snapshot: &Snapshot,
) -> Result<Box<Resident>, CallFailure> {
    let place = shared.residency.admit(bell).await;
    let instance = shared.runtime.instantiate(version, &snapshot.device_id, snapshot.now).await?;
    Ok(Box::new(Resident { instance, place }))
}

impl Call {
    /// Do it on an instance of the version that it is for. After a failure the instance is worth nothing.
    ///
    /// # Errors
    /// If the plugin did not return.
    pub async fn run(self, instance: &mut Instance) -> Result<Outcome, CallFailure> {
        Ok(match self.work {
            Work::Method { name, payload } => {
                let (response, effects) = instance.call_method(self.snapshot, &name, payload).await?;
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
                let (verdict, effects) = instance.changed(self.snapshot, version, patch).await?;
                Outcome::Reacted { verdict, effects }
            }
        })
    }
}

async fn called(calls: &mut Option<Calls>) -> Box<Finished> {
    match calls {
        Some(calls) => calls.get_pin().await,
        None => pending().await,
    }
}

/// Nothing else is to be done: show how things are, and wait for the actor's deadline.
///
/// An alarm that rings too early costs a look, and setting it anew for each message would cost more: deadlines move with
/// every call.
async fn rests(actor: &Actor, shown: (&Showing, &Crashes), stale: &mut bool, alarm: &mut Option<Pin<Box<Sleep>>>) {
    show(actor, shown, stale);
    if let Some(deadline) = actor.deadline().map(Instant::from_std) {
        match alarm {
            Some(alarm) if alarm.deadline() <= deadline => {}
            Some(alarm) => alarm.as_mut().reset(deadline),
            None => *alarm = Some(Box::pin(sleep_until(deadline))),
        }
    }
    match alarm {
        Some(alarm) => alarm.await,
        None => pending().await,
    }
}

fn show(actor: &Actor, (showing, crashes): (&Showing, &Crashes), stale: &mut bool) {
    if mem::take(stale) {
        showing.show(|view| {
            actor.show(view);
            crashes.show(view);
        });
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
