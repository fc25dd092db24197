//! Actors with plugins and a store, and no connections: whoever runs this is the hub of every device, at the other ends
//! of its channels.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use device_actors::{Limits, Roster, RosterSettings, StateStore};
use durable_store::Durability;
use iothub_protocol::id::{DeviceId, MethodName, RequestId};
use iothub_protocol::link::{FromHub, ToHub, TwinDocument};
use plugin_runtime::{Catalog, PluginSet, Runtime, RuntimeSettings};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Messages that wait in one of a door's channels: as many as `latch` lets wait.
const CHANNEL: usize = 64;
/// A call that is not answered by then is lost, however busy the machine is.
const LOST: Duration = Duration::from_secs(120);

/// How large everything may get.
pub(crate) struct Sizes {
    pub(crate) devices: usize,
    pub(crate) limits: Limits,
    pub(crate) runtime: RuntimeSettings,
}

impl Sizes {
    /// So many devices, everything else as `latch` has it.
    pub(crate) fn of(devices: usize) -> Sizes {
        Sizes { devices, limits: Limits::default(), runtime: RuntimeSettings::default() }
    }

    /// Instances that may stay at once.
    pub(crate) fn resident(mut self, most: usize) -> Sizes {
        self.runtime.max_resident = u32::try_from(most).expect("a small number");
        self
    }
}

/// The running actors, their plugins and their store.
pub(crate) struct Fleet {
    pub(crate) runtime: Runtime,
    pub(crate) roster: Roster,
    pub(crate) catalog: Catalog,
    store: StateStore,
    watcher: JoinHandle<()>,
}

/// One device, seen from its hub.
pub(crate) struct Door {
    pub(crate) id: DeviceId,
    to_actor: mpsc::Sender<FromHub>,
    from_actor: mpsc::Receiver<ToHub>,
    next_rid: u64,
    /// Requests without an answer, the oldest first.
    asked: VecDeque<u64>,
    /// What the device has reported, as the hub holds it.
    pub(crate) reported: Map<String, Value>,
    /// Bodies of the messages that came, repetitions left out by their ids.
    pub(crate) messages: Vec<(String, Vec<u8>)>,
    /// Whether `messages` are kept at all.
    pub(crate) listens: bool,
}

/// The answer to a direct method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: i32,
    pub(crate) payload: String,
}

impl Fleet {
    /// Start `sizes.devices` devices on `data` with the plugins of a directory, all of them connected.
    pub(crate) async fn start(data: &Path, plugins: &Path, sizes: Sizes) -> (Fleet, Vec<Door>) {
        let runtime = Runtime::new(sizes.runtime.clone()).expect("the runtime starts");
        let catalog = Catalog::open(plugins, &data.join("versions"), runtime.clone())
            .await
            .expect("the plugin directory is read");
        let watcher = catalog.clone();
        let watcher = tokio::spawn(async move { match watcher.watch().await {} });
        let store = open_store(data);
        let (doors, ends) = doors(sizes.devices);
        let roster = start_roster(&sizes, runtime.clone(), &store, catalog.subscribe(), ends).await;
        for door in &doors {
            door.connect().await;
        }
        (Fleet { runtime, roster, catalog, store, watcher }, doors)
    }

    /// Finish what is in hand and close the store, for whoever opens it again.
    pub(crate) async fn stop(self) {
        self.watcher.abort();
        assert_eq!(self.roster.shutdown().await, 0, "devices did not finish");
        self.store.close().await;
    }
}

/// A device's ends of its channels.
pub(crate) type Ends = (DeviceId, mpsc::Receiver<FromHub>, mpsc::Sender<ToHub>);

fn open_store(data: &Path) -> StateStore {
    StateStore::open(&data.join("state.db"), Durability::Process).expect("the store opens")
}

async fn start_roster(
    sizes: &Sizes,
    runtime: Runtime,
    store: &StateStore,
    plugins: watch::Receiver<Arc<PluginSet>>,
    ends: Vec<Ends>,
) -> Roster {
    let max_resident = sizes.runtime.max_resident as usize;
    let settings = RosterSettings { limits: sizes.limits, max_resident, ..RosterSettings::default() };
    let started = Roster::start(settings, runtime, store.clone(), plugins, ends, CancellationToken::new()).await;
    started.expect("the store is read")
}

/// So many devices: the hub's side of each, and the actor's.
pub(crate) fn doors(count: usize) -> (Vec<Door>, Vec<Ends>) {
    (1..=count).map(Door::new).unzip()
}

/// The id of the device with this number, counted from 1.
pub(crate) fn door_id(number: usize) -> DeviceId {
    DeviceId::parse(&format!("door-{number:06}")).expect("an id")
}

/// What `work` gives; fails, naming `what`, if a call in it is lost.
pub(crate) async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LOST, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not done after {LOST:?}, a call is lost"),
    }
}

pub(crate) fn method(name: &str) -> MethodName {
    MethodName::parse(name).expect("a name")
}

impl Door {
    pub(crate) fn new(number: usize) -> (Door, Ends) {
        let id = door_id(number);
        let (to_actor, from_hub) = mpsc::channel(CHANNEL);
        let (to_hub, from_actor) = mpsc::channel(CHANNEL);
        let door = Door {
            id: id.clone(),
            to_actor,
            from_actor,
            next_rid: 1,
            asked: VecDeque::new(),
            reported: Map::new(),
            messages: Vec::new(),
            listens: false,
        };
        (door, (id, from_hub, to_hub))
    }

    /// Connect with an empty desired document, as a device does that was just created.
    pub(crate) async fn connect(&self) {
        let reported = self.reported.clone();
        let twin = TwinDocument { desired: Map::new(), desired_version: 1, reported, reported_version: 1 };
        self.tell(FromHub::Connected).await;
        self.tell(FromHub::Twin(twin)).await;
    }

    /// Call a method and wait for its answer, being the device's hub meanwhile.
    pub(crate) async fn call(&mut self, name: &MethodName, payload: &str) -> Answer {
        self.ask(name, payload).await;
        self.answer().await
    }

    /// Call a method; [`Door::answer`] gives the answer.
    pub(crate) async fn ask(&mut self, name: &MethodName, payload: &str) {
        let rid = self.next_rid;
        self.next_rid += 1;
        self.asked.push_back(rid);
        let id = RequestId::parse(&rid.to_string()).expect("an id");
        self.tell(FromHub::Method { rid: id, name: name.clone(), payload: payload.to_owned() }).await;
    }

    /// The answer to the oldest call that has none. Waits for ever for one that is lost; see [`in_time`].
    pub(crate) async fn answer(&mut self) -> Answer {
        let (rid, answer) = self.next_answer().await;
        assert_eq!(Some(rid), self.asked.pop_front(), "{} answers the oldest call first", self.id);
        answer
    }

    /// Do the hub's part with so many messages, of which none is an answer.
    pub(crate) async fn attend_to(&mut self, messages: usize) {
        for _ in 0..messages {
            let message = self.from_actor.recv().await.expect("the actor runs");
            let answer = self.take(message).await;
            assert_eq!(answer, None, "nobody asked {}", self.id);
        }
    }

    async fn next_answer(&mut self) -> (u64, Answer) {
        loop {
            let message = self.from_actor.recv().await.expect("the actor runs");
            if let Some(answered) = self.take(message).await {
                return answered;
            }
        }
    }

    /// Do the hub's part with a message; an answer is for the caller.
    async fn take(&mut self, message: ToHub) -> Option<(u64, Answer)> {
        match message {
            ToHub::MethodResponse { rid, status, payload } => {
                return Some((rid.as_str().parse().expect("one of ours"), Answer { status, payload }));
            }
            ToHub::Report { token, patch } => {
                iothub_protocol::twin::merge(&mut self.reported, &patch);
                let message = String::new();
                self.tell(FromHub::Reported { token, status: 204, version: Some(token), message }).await;
            }
            ToHub::Telemetry { token, message } => {
                if self.listens && self.messages.iter().all(|(id, _)| *id != message.message_id) {
                    self.messages.push((message.message_id, message.body));
                }
                self.tell(FromHub::TelemetryTaken { token }).await;
            }
            // Nobody sends messages to these devices.
            ToHub::MessageTaken { .. } | ToHub::SubscribeMessages => {}
            ToHub::Reconnect { .. } => panic!("the actor has failed"),
        }
        None
    }

    pub(crate) async fn tell(&self, message: FromHub) {
        self.to_actor.send(message).await.expect("the actor runs");
    }
}
